//! **unseen**: an `:ok` send that no `:ok` poll ever read, though at the end every client read everything.
//!
//! This is how a lost tail shows: nothing stands after it, so it is no lost-write.

use super::analysis::Analysis;
use super::workloads::Workload;
use super::{Anomaly, Case, Checker, Findings};
use crate::history::Kind;

/// See above.
pub const CHECKER: Checker =
    Checker { anomaly: Anomaly::Unseen, summary: "an acknowledged value was never read by the end", check };

fn check(analysis: &Analysis<'_>, _: Workload) -> Findings {
    let mut findings = Findings::default();
    for (key, log) in &analysis.keys {
        for facts in &log.values {
            analysis.meter.add(1);
            let Some(writer) = facts.writer.filter(|_| !facts.read_ok) else { continue };
            if analysis.operation(writer).outcome != Kind::Ok {
                continue;
            }
            findings.push(|| {
                let message = format!("{} was acknowledged by key {} and never read", facts.value.0, key.0);
                Case::of(*key, message)
                    .values([facts.value])
                    .offsets(log.offset_of(facts))
                    .events([analysis.evidence(writer)])
            });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Story, found, plant, simple_log};

    #[test]
    fn an_acknowledged_tail_that_nobody_reads_is_named_with_its_writer() {
        let clean = simple_log(14);
        assert_eq!(found(&clean, Anomaly::Unseen).count, 0);
        let (history, planted) = plant::lost_tail(&clean);
        let findings = found(&history, Anomaly::Unseen);
        assert_eq!(findings.count, 1);
        let case = &findings.cases[0];
        assert_eq!((case.key, &case.values, &case.events), (Some(planted.key), &planted.values, &planted.events));
        assert_eq!(found(&history, Anomaly::LostWrite).count, 0);
    }

    #[test]
    fn only_an_ok_poll_sees_and_only_an_ok_send_must_be_seen() {
        let story = Story::new().sent(0, &[(0, 0, 1)]).failed_poll(1, &[(0, 0, 1)]).sent_unknown(2, &[(0, None, 2)]);
        let story = story.failed_send(3, &[(0, 7, 3)]);
        assert_eq!(found(&story.clone().history(), Anomaly::Unseen).count, 1);
        assert_eq!(found(&story.polled(4, &[(0, 0, 1)]).history(), Anomaly::Unseen).count, 0);
    }
}
