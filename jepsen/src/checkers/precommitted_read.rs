//! **precommitted-read**: an operation polls a value that it sends itself.
//!
//! In a transaction that is a read of what is not committed yet. Without transactions (workload `mixed`) it is allowed.

use super::analysis::Analysis;
use super::workloads::Workload;
use super::{Anomaly, Case, Checker, Findings};

/// See above.
pub const CHECKER: Checker =
    Checker { anomaly: Anomaly::PrecommittedRead, summary: "an operation polled a value that it sent itself", check };

fn check(analysis: &Analysis<'_>, _: Workload) -> Findings {
    let mut findings = Findings::default();
    for (key, log) in &analysis.keys {
        for facts in &log.values {
            let Some(writer) = facts.writer else { continue };
            let readers = log.readers(facts);
            analysis.meter.add(1 + readers.len());
            if readers.contains(&writer) {
                findings.push(|| {
                    let message =
                        format!("{} of key {} was polled by the operation that sent it", facts.value.0, key.0);
                    Case::of(*key, message).values([facts.value]).events([analysis.evidence(writer)])
                });
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{found_in, plant, transactions};

    #[test]
    fn a_transaction_that_reads_its_own_write_is_named() {
        let clean = transactions(16);
        assert_eq!(found_in(&clean, Anomaly::PrecommittedRead, Workload::Txn).count, 0);
        let (history, planted) = plant::own_value_read(&clean);
        let findings = found_in(&history, Anomaly::PrecommittedRead, Workload::Txn);
        assert_eq!(findings.count, 1);
        let case = &findings.cases[0];
        assert_eq!((case.key, &case.values, &case.events), (Some(planted.key), &planted.values, &planted.events));
    }
}
