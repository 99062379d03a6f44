//! **nonmonotonic-poll**: the last value of a key in a process's previous `:ok` poll against the first in its next one, δ < 1: it went
//! back, or read the same again. Only for keys that stayed assigned in between.

use super::analysis::Analysis;
use super::successive::{self, Side};
use super::workloads::Workload;
use super::{Anomaly, Checker, Findings};

/// See above.
pub const CHECKER: Checker =
    Checker { anomaly: Anomaly::NonmonotonicPoll, summary: "a process polled backwards", check };

fn check(analysis: &Analysis<'_>, _: Workload) -> Findings {
    successive::collect(
        |found| successive::between(analysis, Side::Polls, found),
        |delta| delta < 1,
        |pair| pair.back(analysis, "a process polled"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{found, plant, simple_log};

    #[test]
    fn a_process_that_reads_again_is_named() {
        let clean = simple_log(35);
        assert_eq!(found(&clean, Anomaly::NonmonotonicPoll).count, 0);
        let (history, planted) = plant::polls_back(&clean);
        let findings = found(&history, Anomaly::NonmonotonicPoll);
        assert_eq!(findings.count, 1);
        let case = findings.cases.iter().find(|case| case.values == planted.values).expect("the planted case");
        assert_eq!((case.key, &case.events), (Some(planted.key), &planted.events));
    }
}
