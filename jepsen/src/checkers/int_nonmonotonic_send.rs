//! **int-nonmonotonic-send**: two successive sends to a key within one operation with δ < 1: the later stands before the earlier.

use super::analysis::Analysis;
use super::successive::{self, Side};
use super::workloads::Workload;
use super::{Anomaly, Checker, Findings};

/// See above.
pub const CHECKER: Checker =
    Checker { anomaly: Anomaly::IntNonmonotonicSend, summary: "one operation's sends stand in the wrong order", check };

fn check(analysis: &Analysis<'_>, _: Workload) -> Findings {
    successive::collect(
        |found| successive::within(analysis, Side::Sends, found),
        |delta| delta < 1,
        |pair| pair.back(analysis, "one operation sent"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{found, plant, simple_log};

    #[test]
    fn sends_that_swapped_are_named() {
        let clean = simple_log(33);
        assert_eq!(found(&clean, Anomaly::IntNonmonotonicSend).count, 0);
        let (history, planted) = plant::sends_turned_around(&clean);
        let findings = found(&history, Anomaly::IntNonmonotonicSend);
        assert_eq!(findings.count, 1);
        let case = findings.cases.iter().find(|case| case.values == planted.values).expect("the planted case");
        assert_eq!((case.key, &case.events), (Some(planted.key), &planted.events));
    }
}
