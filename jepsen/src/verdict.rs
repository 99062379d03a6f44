//! The sum: what a run was meant to be, what was found, and what that makes it.
//!
//! | verdict | when | exit code |
//! |---|---|---|
//! | anomalies | an anomaly that the workload does not allow, a broker that was accused in the timeline, or writes that stood still while one broker was away | 1 |
//! | unknown | else, if the harness failed, the history cannot be trusted, or the final read is missing | 3 |
//! | rejected | else, if a planned fault or a recovery did not really happen | 3 |
//! | valid | else | 0 |
//!
//! In a run that never ended, or whose harness failed, *unseen* is no accusation: perhaps nobody looked.
//!
//! A history that cannot be read or breaks the rules of the harness is unknown and judged no further: what would look like an anomaly
//! in it may be the harness's own. It does no I/O; see [`crate::run_dir`] and [`crate::report`].

use serde::{Deserialize, Serialize};

use crate::checkers::analysis::Analysis;
use crate::checkers::under_faults::UnderFaults;
use crate::checkers::workloads::Workload;
use crate::checkers::{self, Anomaly, Outcome, availability, faults, harness};
use crate::history::History;
use crate::registers::{self, Deed, Registers};
use crate::timeline::Timeline;

/// What a run was meant to be: `run.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunInfo {
    /// The scenario or the run, in a few words.
    pub name: String,
    /// What the clients did; selects which anomalies are allowed.
    pub workload: Workload,
    /// The schedule of faults and the clients' choices were drawn from it.
    pub seed: u64,
    /// How many brokers.
    pub nodes: u32,
    /// The kinds of faults that must have happened.
    pub faults_planned: Vec<String>,
}

/// What a run is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything was tested and nothing was wrong.
    Valid,
    /// The brokers did what they must not.
    Anomalies,
    /// The run did not do what it was meant to do.
    Rejected,
    /// The harness failed.
    Unknown,
}

impl Verdict {
    /// Of the process.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Valid => 0,
            Self::Anomalies => 1,
            Self::Rejected | Self::Unknown => 3,
        }
    }

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Anomalies => "anomalies",
            Self::Rejected => "rejected",
            Self::Unknown => "unknown",
        }
    }
}

/// A run as it was found on disk. What could not be read is an error in words.
#[derive(Debug)]
pub struct Run {
    /// What it was meant to be.
    pub info: RunInfo,
    /// What the clients saw.
    pub history: Result<History, String>,
    /// What was done to the brokers.
    pub timeline: Result<Timeline, String>,
    /// What the clients saw of registers; `None`: there is no such file.
    pub registers: Result<Option<Registers>, String>,
}

/// All that was found in a run.
#[derive(Debug)]
pub struct Judgement {
    /// The sum.
    pub verdict: Verdict,
    /// What each checker found; empty if the history could not be judged.
    pub outcomes: Vec<Outcome>,
    /// What brokers did that they never may, whatever clients saw.
    pub accusations: Vec<String>,
    /// Why it is unknown.
    pub unknowns: Vec<String>,
    /// Why it is rejected.
    pub rejections: Vec<String>,
}

/// Judges a run.
pub fn judge(run: &Run) -> Judgement {
    let mut unknowns = Vec::new();
    let none = Timeline::default();
    let timeline = run.timeline.as_ref().unwrap_or_else(|error| {
        unknowns.push(error.clone());
        &none
    });
    let under = UnderFaults::of(timeline, run.info.nodes);
    let (mut outcomes, mut rejections, mut of_availability) = (Vec::new(), Vec::new(), Vec::new());
    match &run.history {
        Err(error) => unknowns.push(error.clone()),
        Ok(history) => {
            let analysis = Analysis::new(history);
            outcomes = checkers::run(&analysis, run.info.workload);
            if run.timeline.is_ok() {
                unknowns.extend(harness::unknowns(timeline, &analysis, &under));
                rejections = faults::rejections(&run.info.faults_planned, timeline, history);
                of_availability = availability::accusations(timeline, history);
            }
        }
    }
    // A run that broke off before its final reads leaves things unread that nobody lost.
    let broke_off = timeline.end_ns.is_none() || !timeline.harness_errors.is_empty();
    let counts = |outcome: &&Outcome| !(outcome.allowed || broke_off && outcome.anomaly == Anomaly::Unseen);
    let accused = timeline.accusations.iter();
    let mut accusations: Vec<String> =
        accused.map(|(time_ns, what)| format!("at {:.3} s, {what}", *time_ns as f64 / 1e9)).collect();
    accusations.extend(of_availability);
    let (of_registers, why) = judge_registers(&run.registers, &under);
    accusations.extend(of_registers);
    unknowns.extend(why);
    let wrong = !accusations.is_empty() || outcomes.iter().filter(counts).any(|outcome| outcome.findings.count > 0);
    let verdict = match (wrong, unknowns.is_empty(), rejections.is_empty()) {
        (true, ..) => Verdict::Anomalies,
        (false, false, _) => Verdict::Unknown,
        (false, true, false) => Verdict::Rejected,
        (false, true, true) => Verdict::Valid,
    };
    Judgement { verdict, outcomes, accusations, unknowns, rejections }
}

/// What registers did that they never may, and why nobody can tell. At the end every register is read, with everything healed: only
/// what was asked for under faults shows that they bear them.
fn judge_registers(
    registers: &Result<Option<Registers>, String>,
    under: &UnderFaults,
) -> (Vec<String>, Option<String>) {
    match registers {
        Ok(None) => (Vec::new(), Some("there is no history of groups' offsets: nothing was tested of them".to_owned())),
        Ok(Some(registers)) => {
            let mut worked = registers.operations.iter().filter(|operation| operation.completed.is_some());
            let written = worked.clone().any(|operation| matches!(operation.deed, Deed::Write(_)));
            let read = worked.any(|operation| {
                matches!(operation.deed, Deed::Read(_)) && under.covers(registers.events[operation.invoked].time_ns)
            });
            let untested = match (written, read) {
                (false, _) => Some("no offset of a group was ever committed: nothing was tested"),
                (_, false) => Some("no offset of a group was ever read under faults: nothing was tested"),
                _ => None,
            };
            (registers::check::findings(registers), untested.map(str::to_owned))
        }
        Err(why) => (Vec::new(), Some(why.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Story, a_fault, a_register, plant, simple_log};
    use crate::timeline::Fault;

    fn run(history: History) -> Run {
        let (stop_ns, recovered) = (Some(history.end_ns() / 2), Some((history.end_ns(), "seen".to_owned())));
        let fault = Fault { stop_ns, recovered, ..a_fault("kill") };
        let timeline = Timeline { faults: vec![fault], end_ns: Some(history.end_ns()), ..Timeline::default() };
        let info = RunInfo {
            name: "test".to_owned(),
            workload: Workload::Single,
            seed: 1,
            nodes: 3,
            faults_planned: vec!["kill".to_owned()],
        };
        Run { info, history: Ok(history), timeline: Ok(timeline), registers: Ok(Some(a_register(0))) }
    }

    fn verdict(run: &Run) -> Verdict {
        judge(run).verdict
    }

    #[test]
    fn a_clean_run_whose_faults_happened_is_valid() {
        let judged = judge(&run(simple_log(1)));
        assert_eq!(judged.verdict, Verdict::Valid, "{judged:?}");
    }

    #[test]
    fn an_anomaly_weighs_more_than_a_failed_harness_and_that_more_than_a_fault_that_never_came() {
        let mut lost = run(plant::loss(&simple_log(1)).0);
        assert_eq!(verdict(&lost), Verdict::Anomalies);
        lost.timeline.as_mut().unwrap().end_ns = None;
        assert_eq!(verdict(&lost), Verdict::Anomalies);

        let mut clean = run(simple_log(1));
        clean.timeline.as_mut().unwrap().faults.clear();
        assert_eq!(verdict(&clean), Verdict::Rejected);
        clean.timeline.as_mut().unwrap().end_ns = None;
        assert_eq!(verdict(&clean), Verdict::Unknown);
    }

    #[test]
    fn a_run_that_broke_off_accuses_nobody_of_what_it_did_not_read() {
        let mut unseen = run(plant::lost_tail(&simple_log(1)).0);
        assert_eq!(verdict(&unseen), Verdict::Anomalies);
        unseen.timeline.as_mut().unwrap().harness_errors.push((1, "interrupted".to_owned()));
        assert_eq!(verdict(&unseen), Verdict::Unknown);
        unseen.timeline = Ok(Timeline::default());
        assert_eq!(verdict(&unseen), Verdict::Unknown);
    }

    #[test]
    fn an_accused_broker_is_an_anomaly_whatever_clients_saw() {
        let mut accused = run(simple_log(1));
        accused.timeline.as_mut().unwrap().accusations.push((1_500_000_000, "n2: it panicked".to_owned()));
        let judged = judge(&accused);
        assert_eq!(
            (judged.verdict, judged.accusations),
            (Verdict::Anomalies, vec!["at 1.500 s, n2: it panicked".to_owned()])
        );
    }

    #[test]
    fn a_group_offset_that_went_back_is_an_anomaly_and_one_nobody_can_read_is_unknown() {
        let mut stale = run(simple_log(1));
        let text = "{:index 0, :time 1, :type :invoke, :process 1, :f :write, :value [4 1]}\n\
                    {:index 1, :time 2, :type :ok, :process 1, :f :write, :value [4 1]}\n\
                    {:index 2, :time 3, :type :invoke, :process 1, :f :read, :value [4 nil]}\n\
                    {:index 3, :time 4, :type :ok, :process 1, :f :read, :value [4 nil]}\n";
        stale.registers = registers::codec::read(text.as_bytes()).and_then(Registers::new).map(Some);
        let judged = judge(&stale);
        assert_eq!(judged.verdict, Verdict::Anomalies);
        assert!(judged.accusations[0].starts_with("group offset 4: it held nothing"), "{judged:?}");
        stale.registers =
            registers::codec::read(text.lines().next().unwrap_or("").as_bytes()).and_then(Registers::new).map(Some);
        assert!(judge(&stale).unknowns[0].contains("nothing was tested"));
        let only_written = registers::codec::read(text.lines().take(2).collect::<Vec<_>>().join("\n").as_bytes());
        stale.registers = only_written.and_then(Registers::new).map(Some);
        assert_eq!(judge(&stale).unknowns, ["no offset of a group was ever read under faults: nothing was tested"]);
        stale.registers = Ok(None);
        assert_eq!(verdict(&stale), Verdict::Unknown);
        stale.registers = Err("line 7".to_owned());
        assert_eq!(verdict(&stale), Verdict::Unknown);
    }

    #[test]
    fn group_offsets_that_are_read_only_with_everything_healed_show_nothing() {
        let mut healed = run(simple_log(1));
        healed.registers = Ok(Some(a_register(healed.timeline.as_ref().unwrap().faults[0].stop_ns.unwrap())));
        let judged = judge(&healed);
        assert_eq!(judged.unknowns, ["no offset of a group was ever read under faults: nothing was tested"]);
        assert_eq!(judged.verdict, Verdict::Unknown);
    }

    #[test]
    fn what_cannot_be_read_is_unknown() {
        let mut no_timeline = run(simple_log(1));
        no_timeline.timeline = Err("timeline line 3: …".to_owned());
        assert_eq!(judge(&no_timeline).unknowns, ["timeline line 3: …"]);
        assert_eq!(verdict(&no_timeline), Verdict::Unknown);
        let mut no_history = run(simple_log(1));
        no_history.history = Err("history line 3: …".to_owned());
        let judged = judge(&no_history);
        assert_eq!((judged.verdict, judged.outcomes.len()), (Verdict::Unknown, 0));
    }

    #[test]
    fn the_workload_decides_what_is_allowed() {
        let mut interleaved = run(Story::new()
            .linearizable(9, &[], (7, 0, 0))
            .overlapping_sends(&[(0, &[(0, 0, 1), (1, 1, 4)]), (1, &[(0, 1, 2), (1, 0, 3)])])
            .seek(2, &[0, 1])
            .polled(2, &[(0, 0, 1), (0, 1, 2), (1, 0, 3), (1, 1, 4)])
            .history());
        // Its sends are asked for at 2 and 3 ns.
        interleaved.timeline.as_mut().unwrap().faults[0].stop_ns = Some(3);
        assert_eq!(verdict(&interleaved), Verdict::Anomalies);
        interleaved.info.workload = Workload::Mixed;
        assert_eq!(verdict(&interleaved), Verdict::Valid);
    }

    #[test]
    fn exit_codes_tell_the_verdicts_apart_from_usage() {
        let codes = [Verdict::Valid, Verdict::Anomalies, Verdict::Rejected, Verdict::Unknown].map(Verdict::exit_code);
        assert_eq!(codes, [0, 1, 3, 3]);
    }
}
