//! **int-send-skip**: two successive sends to a key within one operation with δ > 1: others stand between them.
//!
//! Without isolation of writes that is natural as soon as an operation sends more than once.

use super::analysis::Analysis;
use super::successive::{self, Side};
use super::workloads::Workload;
use super::{Anomaly, Checker, Findings};

/// See above.
pub const CHECKER: Checker =
    Checker { anomaly: Anomaly::IntSendSkip, summary: "one operation's sends have others between them", check };

fn check(analysis: &Analysis<'_>, _: Workload) -> Findings {
    successive::collect(
        |found| successive::within(analysis, Side::Sends, found),
        |delta| delta > 1,
        |pair| pair.skip(analysis, "one operation sent"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{found, plant, simple_log};

    #[test]
    fn sends_with_anothers_between_them_are_named_with_it() {
        let clean = simple_log(32);
        assert_eq!(found(&clean, Anomaly::IntSendSkip).count, 0);
        let (history, planted) = plant::sends_apart(&clean);
        let findings = found(&history, Anomaly::IntSendSkip);
        assert_eq!(findings.count, 1);
        let case = findings.cases.iter().find(|case| case.values == planted.values).expect("the planted case");
        assert_eq!((case.key, &case.events), (Some(planted.key), &planted.events));
    }
}
