//! `results.json`: the verdict for machines.

use std::collections::BTreeMap;

use serde::Serialize;

use super::evidence::brief;
use super::series::{Class, Series};
use crate::history::History;
use crate::timeline::Fault;
use crate::verdict::{Judgement, Run, RunInfo, Verdict};

#[derive(Serialize)]
struct Results<'r> {
    verdict: Verdict,
    /// Jepsen's way: true, false or "unknown".
    valid: serde_json::Value,
    run: &'r RunInfo,
    /// By name; only those that were found.
    anomalies: BTreeMap<&'static str, Found>,
    /// The names of all checkers that were run.
    checked: Vec<&'static str>,
    /// What brokers did that they never may, whatever clients saw.
    accusations: &'r [String],
    unknowns: &'r [String],
    rejections: &'r [String],
    faults: Vec<FaultResult<'r>>,
    /// What was tested beside the history.
    notes: Vec<&'r str>,
    /// Operations on consumer groups' offsets.
    registers: Option<Outcomes>,
    statistics: Option<Statistics>,
}

#[derive(Serialize)]
struct Found {
    /// How often; more than there are cases if it was often.
    count: usize,
    /// The workload may show it.
    allowed: bool,
    cases: Vec<CaseResult>,
}

#[derive(Serialize)]
struct CaseResult {
    message: String,
    key: Option<u64>,
    values: Vec<i64>,
    offsets: Vec<u64>,
    /// Lines of the history; long polls are cut.
    operations: Vec<String>,
}

#[derive(Serialize)]
struct FaultResult<'r> {
    #[serde(flatten)]
    fault: &'r Fault,
    time_to_recover_ms: Option<f64>,
}

#[derive(Serialize)]
struct Statistics {
    duration_s: f64,
    processes: usize,
    operations: BTreeMap<&'static str, Outcomes>,
    latency_ms: BTreeMap<&'static str, LatencyMs>,
    values_sent: u64,
    values_read: u64,
    linearizable_reads: u64,
    unseen_at_end: u64,
    unseen_worst: u64,
    lag_worst_ms: f64,
}

#[derive(Serialize)]
struct Outcomes {
    ok: u64,
    info: u64,
    fail: u64,
}

#[derive(Serialize)]
struct LatencyMs {
    p50: f64,
    p99: f64,
    max: f64,
}

/// The document, indented, with a newline at its end.
pub fn document(run: &Run, judgement: &Judgement, series: Option<&Series>) -> Result<String, serde_json::Error> {
    let history = run.history.as_ref().ok();
    let found = judgement.outcomes.iter().filter(|outcome| outcome.findings.count > 0).map(|outcome| {
        let cases = outcome.findings.cases.iter().map(|case| CaseResult {
            message: case.message.clone(),
            key: case.key.map(|key| key.0),
            values: case.values.iter().map(|value| value.0).collect(),
            offsets: case.offsets.iter().map(|offset| offset.0).collect(),
            operations: history.map_or(Vec::new(), |history| lines(history, case)),
        });
        let found = Found { count: outcome.findings.count, allowed: outcome.allowed, cases: cases.collect() };
        (outcome.anomaly.name(), found)
    });
    let faults = run.timeline.as_ref().map_or(&[][..], |timeline| &timeline.faults);
    let results = Results {
        verdict: judgement.verdict,
        valid: match judgement.verdict {
            Verdict::Valid => true.into(),
            Verdict::Anomalies => false.into(),
            Verdict::Rejected | Verdict::Unknown => "unknown".into(),
        },
        run: &run.info,
        anomalies: found.collect(),
        checked: judgement.outcomes.iter().map(|outcome| outcome.anomaly.name()).collect(),
        accusations: &judgement.accusations,
        unknowns: &judgement.unknowns,
        rejections: &judgement.rejections,
        faults: faults
            .iter()
            .map(|fault| FaultResult { fault, time_to_recover_ms: fault.time_to_recover_ns().map(milliseconds) })
            .collect(),
        notes: run.timeline.iter().flat_map(|timeline| &timeline.notes).map(|(_, text)| text.as_str()).collect(),
        registers: run.registers.as_ref().ok().and_then(Option::as_ref).map(|registers| {
            let [ok, fail, info] = registers.ended;
            Outcomes { ok, info, fail }
        }),
        statistics: history.zip(series).map(|(history, series)| statistics(history, series)),
    };
    serde_json::to_string_pretty(&results).map(|text| text + "\n")
}

fn lines(history: &History, case: &crate::checkers::Case) -> Vec<String> {
    case.events.iter().map(|event| brief(&history.events()[*event], case)).collect()
}

fn statistics(history: &History, series: &Series) -> Statistics {
    let (unseen_at_end, unseen_worst) = series.unseen();
    let lag_worst_ns = series.spans.iter().filter_map(|span| span.lag_ns).max().unwrap_or(0);
    let outcomes = |class: Class| {
        let [ok, info, fail] = series.ended[class as usize];
        (class.name(), Outcomes { ok, info, fail })
    };
    let latency = |class: Class| {
        let latency = series.latency[class as usize]?;
        let [p50, p99, max] = [latency.p50_ns, latency.p99_ns, latency.max_ns].map(milliseconds);
        Some((class.name(), LatencyMs { p50, p99, max }))
    };
    Statistics {
        duration_s: history.end_ns() as f64 / 1e9,
        processes: series.processes,
        operations: Class::ALL.into_iter().map(outcomes).collect(),
        latency_ms: Class::ALL.into_iter().filter_map(latency).collect(),
        values_sent: series.records.0,
        values_read: series.records.1,
        linearizable_reads: series.linearizable_reads,
        unseen_at_end,
        unseen_worst,
        lag_worst_ms: milliseconds(lag_worst_ns),
    }
}

fn milliseconds(ns: u64) -> f64 {
    ns as f64 / 1e6
}
