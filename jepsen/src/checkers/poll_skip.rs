//! **poll-skip**: the last value of a key in a process's previous `:ok` poll against the first in its next one, δ > 1: it passed over
//! values that exist. Only for keys that stayed assigned in between.

use super::analysis::Analysis;
use super::successive::{self, Side};
use super::workloads::Workload;
use super::{Anomaly, Checker, Findings};

/// See above.
pub const CHECKER: Checker =
    Checker { anomaly: Anomaly::PollSkip, summary: "a process polled past values that exist", check };

fn check(analysis: &Analysis<'_>, _: Workload) -> Findings {
    successive::collect(
        |found| successive::between(analysis, Side::Polls, found),
        |delta| delta > 1,
        |pair| pair.skip(analysis, "a process polled"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Story, found, plant, simple_log};

    #[test]
    fn a_process_that_leaves_out_a_value_is_named_with_it() {
        let clean = simple_log(34);
        assert_eq!(found(&clean, Anomaly::PollSkip).count, 0);
        let (history, planted) = plant::polls_apart(&clean);
        let findings = found(&history, Anomaly::PollSkip);
        assert_eq!(findings.count, 1);
        let case = findings.cases.iter().find(|case| case.values == planted.values).expect("the planted case");
        assert_eq!((case.key, &case.events), (Some(planted.key), &planted.events));
    }

    fn story() -> Story {
        Story::new().sent(0, &[(0, 1, 10), (0, 2, 11), (0, 4, 12)]).polled(1, &[(0, 1, 10)])
    }

    #[test]
    fn a_key_that_stays_assigned_keeps_its_position_and_one_that_goes_does_not() {
        let stayed = story().assigned(1, &[0, 1], false).polled(1, &[(0, 4, 12)]).history();
        assert_eq!(found(&stayed, Anomaly::PollSkip).count, 1);
        let gone = story().assigned(1, &[1], false).assigned(1, &[0, 1], false).polled(1, &[(0, 4, 12)]).history();
        assert_eq!(found(&gone, Anomaly::PollSkip).count, 0);
    }

    #[test]
    fn a_failed_poll_moves_no_position_but_is_held_to_it() {
        let failed = story().failed_poll(1, &[(0, 2, 11)]).polled(1, &[(0, 2, 11)]).history();
        assert_eq!(found(&failed, Anomaly::PollSkip).count, 0);
        let skipped = story().failed_poll(1, &[(0, 4, 12)]).polled(1, &[(0, 4, 12)]).history();
        assert_eq!(found(&skipped, Anomaly::PollSkip).count, 2);
    }

    #[test]
    fn another_process_begins_where_it_likes() {
        assert_eq!(found(&story().polled(2, &[(0, 4, 12)]).history(), Anomaly::PollSkip).count, 0);
    }
}
