//! **(d) each fault and each recovery really happened**, or the run is rejected: a run in which nothing was broken proves nothing.
//!
//! 1. Each kind of fault that was planned was injected and confirmed at least once.
//! 2. Each fault that was started was confirmed (seen to have happened, by other means than having asked for it), was taken back, and
//!    the cluster was seen to recover from it.
//! 3. The recovery shows in the history itself: some send or poll that was invoked after the fault's end and before the run's end
//!    worked.

use crate::history::{Action, History, Kind};
use crate::timeline::{Fault, Timeline};

/// Why a run is rejected, sentence by sentence; empty if it is not.
pub fn rejections(planned: &[String], timeline: &Timeline, history: &History) -> Vec<String> {
    let mut found = Vec::new();
    for kind in planned {
        let of_kind = || timeline.faults.iter().filter(|fault| fault.kind == *kind);
        if of_kind().next().is_none() {
            found.push(format!("{kind} was planned and never injected"));
        } else if of_kind().all(|fault| fault.confirmed.is_none()) {
            found.push(format!("{kind} was planned, and not once seen to have happened"));
        }
    }
    let last_success_ns = last_invocation_that_worked(history);
    found.extend(timeline.faults.iter().flat_map(|fault| missing(fault, last_success_ns)));
    found
}

fn missing(fault: &Fault, last_success_ns: Option<u64>) -> Vec<String> {
    let name = format!("fault {} ({} of {})", fault.id, fault.kind, fault.targets.join(", "));
    let mut found = Vec::new();
    if fault.confirmed.is_none() {
        found.push(format!("{name} was never seen to have happened"));
    }
    match (fault.stop_ns, &fault.recovered) {
        (None, _) => found.push(format!("{name} was never taken back")),
        (Some(_), None) => found.push(format!("the cluster was never seen to recover from {name}")),
        (Some(stop_ns), Some(_)) if last_success_ns.is_none_or(|time_ns| time_ns < stop_ns) => {
            found.push(format!("no operation that was invoked after {name} ended ever worked"));
        }
        _ => {}
    }
    found
}

/// When the last of the sends and polls that ended `:ok` was invoked.
fn last_invocation_that_worked(history: &History) -> Option<u64> {
    let worked = history.operations().iter().filter(|operation| operation.outcome == Kind::Ok);
    let invoked = worked.map(|operation| &history.events()[operation.invoked]);
    let client_work = |action: &Action| matches!(action, Action::Send(_) | Action::Poll(_) | Action::Txn(_));
    invoked.filter(|event| client_work(&event.action)).map(|event| event.time_ns).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Story, a_fault};

    /// One send at times 0 and 1.
    fn history() -> History {
        Story::new().sent(0, &[(0, 0, 1)]).sent(0, &[(0, 1, 2)]).history()
    }

    fn rejected(planned: &[&str], faults: Vec<Fault>) -> Vec<String> {
        let timeline = Timeline { faults, ..Timeline::default() };
        rejections(&planned.iter().map(|kind| (*kind).to_owned()).collect::<Vec<_>>(), &timeline, &history())
    }

    #[test]
    fn a_run_whose_faults_happened_and_healed_is_taken() {
        assert!(rejected(&["kill"], vec![a_fault("kill")]).is_empty());
        assert!(rejected(&[], vec![]).is_empty());
    }

    #[test]
    fn a_planned_fault_that_never_came_is_named() {
        assert_eq!(rejected(&["kill", "pause"], vec![a_fault("kill")]), ["pause was planned and never injected"]);
        let unconfirmed = Fault { confirmed: None, ..a_fault("kill") };
        assert_eq!(
            rejected(&["kill"], vec![unconfirmed]),
            [
                "kill was planned, and not once seen to have happened",
                "fault 0 (kill of n1) was never seen to have happened"
            ]
        );
    }

    #[test]
    fn a_fault_without_end_or_recovery_is_named() {
        let endless = Fault { stop_ns: None, recovered: None, ..a_fault("kill") };
        assert_eq!(rejected(&[], vec![endless]), ["fault 0 (kill of n1) was never taken back"]);
        let stuck = Fault { recovered: None, ..a_fault("kill") };
        assert_eq!(rejected(&[], vec![stuck]), ["the cluster was never seen to recover from fault 0 (kill of n1)"]);
    }

    #[test]
    fn a_recovery_that_the_history_does_not_show_is_named() {
        let late = Fault {
            stop_ns: Some(history().end_ns() + 1),
            recovered: Some((u64::MAX, "said so".into())),
            ..a_fault("kill")
        };
        assert_eq!(
            rejected(&[], vec![late]),
            ["no operation that was invoked after fault 0 (kill of n1) ended ever worked"]
        );
    }
}
