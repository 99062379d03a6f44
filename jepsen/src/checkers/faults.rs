//! **(d) each fault and each recovery really happened**, or the run is rejected: a run in which nothing was broken proves nothing.
//!
//! 1. Each kind of fault that was planned was injected and confirmed at least once.
//! 2. Each fault that was started was confirmed (seen to have happened, by other means than having asked for it), was taken back, and
//!    the cluster was seen to recover from it.
//! 3. The recovery shows in the history itself: for each key that anybody sends to, some send was invoked after the fault's end and
//!    acknowledged before the recovery was claimed.

use std::collections::BTreeMap;

use super::sends::{self, Sends};
use crate::history::{History, Key};
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
    let keys = sends::by_key(history);
    found.extend(timeline.faults.iter().flat_map(|fault| missing(fault, &keys)));
    found
}

fn missing(fault: &Fault, keys: &BTreeMap<Key, Sends>) -> Vec<String> {
    let name = format!("fault {} ({} of {})", fault.id, fault.kind, fault.targets.join(", "));
    let mut found = Vec::new();
    if fault.confirmed.is_none() {
        found.push(format!("{name} was never seen to have happened"));
    }
    match (fault.stop_ns, &fault.recovered) {
        (None, _) => found.push(format!("{name} was never taken back")),
        (Some(_), None) => found.push(format!("the cluster was never seen to recover from {name}")),
        (Some(stop_ns), Some((recovered_ns, _))) => {
            let silent = without_acknowledgement(keys, stop_ns, *recovered_ns);
            if !silent.is_empty() {
                found.push(format!(
                    "no send to keys {silent:?} worked between the end of {name} and the recovery from it"
                ));
            }
        }
    }
    found
}

/// The keys of which no send began and was acknowledged between the two.
fn without_acknowledgement(keys: &BTreeMap<Key, Sends>, from_ns: u64, to_ns: u64) -> Vec<u64> {
    let works = |sends: &Sends| {
        sends.acknowledged_ns.iter().any(|(time_ns, invoked_ns)| *invoked_ns >= from_ns && *time_ns <= to_ns)
    };
    keys.iter().filter(|(_, sends)| !works(sends)).map(|(key, _)| key.0).collect()
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
        let silent = |stop_ns, recovered_ns| {
            let recovered = Some((recovered_ns, "said so".to_owned()));
            rejected(&[], vec![Fault { stop_ns: Some(stop_ns), recovered, ..a_fault("kill") }])
        };
        assert!(silent(2, 3).is_empty());
        let named = ["no send to keys [0] worked between the end of fault 0 (kill of n1) and the recovery from it"];
        // Invoked before its end, or acknowledged after the claim.
        assert_eq!(silent(3, 9), named);
        assert_eq!(silent(2, 2), named);
    }

    #[test]
    fn each_key_that_anybody_sends_to_must_show_the_recovery() {
        let one_of_two = Story::new().failed_send(7, &[(1, 0, 9)]).sent(0, &[(0, 0, 1)]).history();
        let fault = Fault { stop_ns: Some(0), recovered: Some((9, "said so".into())), ..a_fault("kill") };
        let timeline = Timeline { faults: vec![fault], ..Timeline::default() };
        let found = rejections(&[], &timeline, &one_of_two);
        assert!(found.len() == 1 && found[0].starts_with("no send to keys [1] worked"), "{found:?}");
    }
}
