//! **G0** (write cycle): writes of operations follow each other in a circle: T1 wrote before T2 in one log, T2 before T1 in another (or
//! further on in the same). A cycle of ww edges only.
//!
//! **G0-process**: a circle of ww edges and process order, with process order in it. **G0-realtime**: with real-time order in it: T1 was
//! over before T2 began, and yet T2's write stands first. See [`super::graph`] for the edges.

use super::analysis::Analysis;
use super::graph::{Cycles, PROCESS, REALTIME, Relation, WR, WW};
use super::workloads::Workload;
use super::{Anomaly, CASES_MAX, Case, Checker, Findings};

/// Write-write edges only.
pub const CHECKER: Checker =
    Checker { anomaly: Anomaly::G0, summary: "writes follow each other in a circle", check: |a, _| search(a, WW, WW) };

/// With process order.
pub const PROCESS_CHECKER: Checker = Checker {
    anomaly: Anomaly::G0Process,
    summary: "writes and a process's own order form a circle",
    check: |a, _| search(a, WW | PROCESS, WW | PROCESS),
};

/// With real-time order.
pub const REALTIME_CHECKER: Checker = Checker {
    anomaly: Anomaly::G0Realtime,
    summary: "writes and real time form a circle",
    check: |a, _| search(a, WW | PROCESS | REALTIME, WW | REALTIME),
};

/// Finds the cycles over `allowed` edges that have one of every kind in `needed`, and tells them.
pub(super) fn search(analysis: &Analysis<'_>, allowed: u8, needed: u8) -> Findings {
    let Cycles { count, cycles } = analysis.graph().cycles(analysis, allowed, needed, CASES_MAX);
    let cases = cycles.into_iter().map(|cycle| {
        let mut case =
            Case { message: String::new(), key: None, values: Vec::new(), offsets: Vec::new(), events: Vec::new() };
        for (at, (id, relation)) in cycle.iter().enumerate() {
            let next = cycle[(at + 1) % cycle.len()].0;
            let (this, next) = (analysis.evidence(*id), analysis.evidence(next));
            case.events.push(this);
            let step = match relation {
                Relation::Ww { key, before, after } => {
                    case.values.extend([*before, *after]);
                    case.key.get_or_insert(*key);
                    format!("event {this} sent {} to key {} before event {next} sent {}", before.0, key.0, after.0)
                }
                Relation::Wr { key, value } => {
                    case.values.push(*value);
                    case.key.get_or_insert(*key);
                    format!("event {this} sent {} to key {}, which event {next} polled", value.0, key.0)
                }
                Relation::Process => format!("event {this} came before event {next} in the same process"),
                Relation::Realtime => format!("event {this} was over before event {next} began"),
            };
            case.message.push_str(if at == 0 { "" } else { "; " });
            case.message.push_str(&step);
        }
        case.message.push_str(": a circle");
        case
    });
    Findings { count, cases: cases.collect() }
}

/// The edges of G1c in a workload: see [`Workload::row`].
pub(super) fn g1c_edges(workload: Workload) -> u8 {
    if workload.row().g1c_with_ww { WW | WR } else { WR }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Story, found, found_in, plant, simple_log, transactions};

    #[test]
    fn a_circle_of_writes_is_named_with_both_writers() {
        let clean = simple_log(20);
        let families = [Anomaly::G0, Anomaly::G0Process, Anomaly::G0Realtime];
        assert!(families.iter().all(|anomaly| found(&clean, *anomaly).count == 0));
        let (history, planted) = plant::circle_of_writes(&clean);
        let findings = found(&history, Anomaly::G0);
        assert_eq!(findings.count, 1);
        assert_eq!(findings.cases[0].events, planted.events);
        assert!(planted.values.iter().all(|value| findings.cases[0].values.contains(value)));
    }

    #[test]
    fn a_process_whose_writes_swapped_is_a_circle_with_its_own_order() {
        let clean = simple_log(21);
        let (history, planted) = plant::own_sends_swapped(&clean);
        let findings = found(&history, Anomaly::G0Process);
        assert!(findings.count > 0 && found(&history, Anomaly::G0).count == 0);
        assert!(
            planted.events.iter().all(|event| findings.cases[0].events.contains(event)),
            "{findings:?} {planted:?}"
        );
    }

    #[test]
    fn writes_against_real_time_are_a_circle() {
        let history = Story::new().sent(0, &[(0, 1, 10)]).sent(1, &[(0, 0, 11)]).history();
        let findings = found(&history, Anomaly::G0Realtime);
        assert_eq!(findings.cases[0].events, [1, 3]);
        assert_eq!(
            findings.cases[0].message,
            "event 1 was over before event 3 began; event 3 sent 11 to key 0 before event 1 sent 10: a circle"
        );
        assert_eq!(found(&history, Anomaly::G0Process).count, 0);
    }

    #[test]
    fn transactions_interleave_their_writes_and_may() {
        let history = transactions(22);
        assert!(found_in(&history, Anomaly::G0, Workload::Txn).count > 0, "the generator interleaves");
        assert!(Workload::Txn.allows(Anomaly::G0));
    }
}
