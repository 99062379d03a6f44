//! **int-nonmonotonic-poll**: two successive values of a key within one operation with δ < 1: it went back, or stood still.
//!
//! Operations of every outcome count; keys that a consumer group moved during the operation do not.

use super::analysis::Analysis;
use super::successive::{self, Side};
use super::workloads::Workload;
use super::{Anomaly, Checker, Findings};

/// See above.
pub const CHECKER: Checker =
    Checker { anomaly: Anomaly::IntNonmonotonicPoll, summary: "one operation polled backwards", check };

fn check(analysis: &Analysis<'_>, _: Workload) -> Findings {
    successive::collect(
        |found| successive::within(analysis, Side::Polls, found),
        |delta| delta < 1,
        |pair| pair.back(analysis, "one operation polled"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{found, plant, simple_log};

    #[test]
    fn a_poll_that_goes_back_is_named() {
        let clean = simple_log(31);
        assert_eq!(found(&clean, Anomaly::IntNonmonotonicPoll).count, 0);
        let (history, planted) = plant::poll_turned_around(&clean);
        let findings = found(&history, Anomaly::IntNonmonotonicPoll);
        assert!(findings.count > 0);
        let case = findings.cases.iter().find(|case| case.values == planted.values).expect("the planted case");
        assert_eq!((case.key, &case.events), (Some(planted.key), &planted.events));
    }
}
