//! **G1a** (aborted read): an `:ok` operation reads a value whose writer `:fail`ed, that is, certainly did not happen.

use super::analysis::Analysis;
use super::workloads::Workload;
use super::{Anomaly, Case, Checker, Findings};
use crate::history::Kind;

/// See above.
pub const CHECKER: Checker =
    Checker { anomaly: Anomaly::G1a, summary: "a value was read whose send was refused", check };

fn check(analysis: &Analysis<'_>, _: Workload) -> Findings {
    let mut findings = Findings::default();
    for (key, log) in &analysis.keys {
        for facts in &log.values {
            analysis.meter.add(1);
            let Some(writer) = facts.writer.filter(|writer| analysis.operation(*writer).outcome == Kind::Fail) else {
                continue;
            };
            for reader in log.readers(facts) {
                analysis.meter.add(1);
                if analysis.operation(*reader).outcome != Kind::Ok {
                    continue;
                }
                findings.push(|| {
                    let message = format!("{} was read from key {}, though its send had failed", facts.value.0, key.0);
                    Case::of(*key, message)
                        .values([facts.value])
                        .offsets(log.offset_of(facts))
                        .events([analysis.evidence(writer), analysis.evidence(*reader)])
                });
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Story, found, plant, simple_log};

    #[test]
    fn a_failed_write_that_is_read_is_named_with_writer_and_reader() {
        let clean = simple_log(15);
        assert_eq!(found(&clean, Anomaly::G1a).count, 0);
        let (history, planted) = plant::refused_send_that_is_read(&clean);
        let findings = found(&history, Anomaly::G1a);
        assert!(findings.count > 0);
        let case = &findings.cases[0];
        assert_eq!((case.key, &case.values), (Some(planted.key), &planted.values));
        assert_eq!(case.events[0], planted.events[0]);
    }

    #[test]
    fn a_failed_poll_of_it_does_not_count() {
        let story = Story::new().failed_send(0, &[(0, 0, 1)]).failed_poll(1, &[(0, 0, 1)]);
        assert_eq!(found(&story.clone().history(), Anomaly::G1a).count, 0);
        assert_eq!(found(&story.polled(2, &[(0, 0, 1)]).history(), Anomaly::G1a).cases[0].events, [1, 5]);
    }
}
