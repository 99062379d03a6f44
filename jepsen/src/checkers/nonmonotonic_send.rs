//! **nonmonotonic-send**: the last send of one operation of a process against the first of its next to the same key, δ < 1: the later
//! stands before the earlier. Failed sends do not count. (Jepsen forgets a key that is not assigned any more; that is about reading, so
//! it is not done here.)

use super::analysis::Analysis;
use super::successive::{self, Side};
use super::workloads::Workload;
use super::{Anomaly, Checker, Findings};

/// See above.
pub const CHECKER: Checker =
    Checker { anomaly: Anomaly::NonmonotonicSend, summary: "a process's sends stand in the wrong order", check };

fn check(analysis: &Analysis<'_>, _: Workload) -> Findings {
    successive::collect(
        |found| successive::between(analysis, Side::Sends, found),
        |delta| delta < 1,
        |pair| pair.back(analysis, "a process sent"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Story, found, plant, simple_log};

    #[test]
    fn a_process_whose_sends_swapped_is_named() {
        let clean = simple_log(36);
        assert_eq!(found(&clean, Anomaly::NonmonotonicSend).count, 0);
        let (history, planted) = plant::own_sends_swapped(&clean);
        let findings = found(&history, Anomaly::NonmonotonicSend);
        assert_eq!(findings.count, 1);
        let case = findings.cases.iter().find(|case| case.values == planted.values).expect("the planted case");
        assert_eq!((case.key, &case.events), (Some(planted.key), &planted.events));
    }

    #[test]
    fn failed_sends_stand_nowhere() {
        let story = Story::new().sent(0, &[(0, 5, 10)]).failed_send(0, &[(0, 4, 11)]).polled(1, &[(0, 4, 11)]);
        assert_eq!(found(&story.history(), Anomaly::NonmonotonicSend).count, 0);
    }
}
