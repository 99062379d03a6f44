//! **int-poll-skip**: two successive values of a key within one operation with δ > 1: it passed over values that exist.
//!
//! Operations of every outcome count; keys that a consumer group moved during the operation do not.

use super::analysis::Analysis;
use super::successive::{self, Side};
use super::workloads::Workload;
use super::{Anomaly, Checker, Findings};

/// See above.
pub const CHECKER: Checker =
    Checker { anomaly: Anomaly::IntPollSkip, summary: "one operation polled past values that exist", check };

fn check(analysis: &Analysis<'_>, _: Workload) -> Findings {
    successive::collect(
        |found| successive::within(analysis, Side::Polls, found),
        |delta| delta > 1,
        |pair| pair.skip(analysis, "one operation polled"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{History, Key};
    use crate::testing::{Story, found, plant, simple_log};

    #[test]
    fn a_poll_that_leaves_out_a_value_is_named_with_it() {
        let clean = simple_log(30);
        assert_eq!(found(&clean, Anomaly::IntPollSkip).count, 0);
        let (history, planted) = plant::hole_in_a_poll(&clean);
        let findings = found(&history, Anomaly::IntPollSkip);
        assert!(findings.count > 0);
        let case = findings.cases.iter().find(|case| case.values == planted.values).expect("the planted case");
        assert_eq!((case.key, &case.events), (Some(planted.key), &planted.events));
    }

    #[test]
    fn a_skip_from_one_poll_to_the_next_of_an_operation_counts_but_not_over_a_rebalance() {
        let story = Story::new().sent(0, &[(0, 1, 10), (0, 2, 11), (0, 4, 12)]);
        let mut history = story.transaction(1, &[(1, 0, 5)], &[(0, 1, 10), (0, 4, 12)]).history();
        assert_eq!(found(&history, Anomaly::IntPollSkip).count, 1);
        let mut events = history.events().to_vec();
        events[3].rebalanced = vec![Key(0)];
        history = History::new(events).unwrap();
        assert_eq!(found(&history, Anomaly::IntPollSkip).count, 0);
    }
}
