//! **lost-write**: a write that certainly happened was read by nobody, although someone read what stands after it.
//!
//! For each key, bound = the largest of the first indices of the values that `:ok` polls read. Lost are the values whose *last* index
//! is ≤ bound, which no `:ok` poll read, and whose writer was `:ok`, or `:info` with some value of it read. (First and last, so that
//! a value at several offsets neither raises the bound nor is lost too easily.)

use super::analysis::Analysis;
use super::workloads::Workload;
use super::{Anomaly, Case, Checker, Findings};
use crate::history::Kind;

/// See above.
pub const CHECKER: Checker = Checker {
    anomaly: Anomaly::LostWrite,
    summary: "a write that happened was read by nobody, though what follows it was",
    check,
};

fn check(analysis: &Analysis<'_>, _: Workload) -> Findings {
    let mut findings = Findings::default();
    for (key, log) in &analysis.keys {
        analysis.meter.add(log.values.len());
        let read = log.values.iter().filter(|facts| facts.read_ok);
        let Some(furthest) =
            read.filter(|facts| facts.indices.is_some()).max_by_key(|facts| facts.indices.map(|(first, _)| first))
        else {
            continue;
        };
        let Some((bound, _)) = furthest.indices else { continue };
        // In the order of the log, so that the first loss comes first.
        for (index, slot) in log.slots[..=bound].iter().enumerate() {
            for sighting in &slot.sightings {
                let Some((_, facts)) = analysis.facts(*key, sighting.value) else { continue };
                let is_last = facts.indices.is_some_and(|(_, last)| last == index);
                let Some(writer) = facts.writer.filter(|_| is_last && !facts.read_ok) else { continue };
                if !analysis.happened(writer) {
                    continue;
                }
                findings.push(|| {
                    let message = format!(
                        "{} at offset {} of key {} was acknowledged and read by nobody, though {} at offset {} was read",
                        facts.value.0, slot.offset.0, key.0, furthest.value.0, log.slots[bound].offset.0
                    );
                    let reader = log.readers(furthest).iter().find(|id| analysis.operation(**id).outcome == Kind::Ok);
                    Case::of(*key, message)
                        .values([facts.value])
                        .offsets([slot.offset])
                        .events([analysis.evidence(writer)])
                        .events(reader.map(|id| analysis.evidence(*id)))
                });
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Value;
    use crate::testing::{Story, found, plant, simple_log};

    #[test]
    fn an_acknowledged_value_that_vanished_is_named_with_its_writer() {
        let clean = simple_log(13);
        assert_eq!(found(&clean, Anomaly::LostWrite).count, 0);
        let (history, planted) = plant::loss(&clean);
        let findings = found(&history, Anomaly::LostWrite);
        assert_eq!(findings.count, 1);
        let case = &findings.cases[0];
        assert_eq!((case.key, &case.values, &case.offsets), (Some(planted.key), &planted.values, &planted.offsets));
        assert_eq!(case.events[0], planted.events[0]);
        assert_eq!(case.events.len(), 2);
    }

    #[test]
    fn what_stands_before_a_read_value_must_have_been_read_too() {
        let story =
            Story::new().sent(0, &[(0, 0, 1)]).sent(0, &[(0, 1, 2), (0, 3, 4)]).sent_unknown(1, &[(0, None, 3)]);
        let history = story.polled(2, &[(0, 2, 3)]).history();
        let findings = found(&history, Anomaly::LostWrite);
        assert_eq!(
            findings.cases.iter().flat_map(|case| case.values.clone()).collect::<Vec<_>>(),
            [Value(1), Value(2)]
        );
        assert_eq!(findings.cases[0].events, [1, 7]);
    }

    #[test]
    fn an_overwritten_value_is_lost_though_its_offset_was_read() {
        let history =
            Story::new().sent(0, &[(0, 0, 1)]).sent(1, &[(0, 0, 2), (0, 2, 3)]).polled(2, &[(0, 0, 2), (0, 2, 3)]);
        let findings = found(&history.history(), Anomaly::LostWrite);
        assert_eq!((findings.count, findings.cases[0].values.as_slice()), (1, &[Value(1)][..]));
    }

    #[test]
    fn an_unknown_write_is_lost_only_once_it_is_known_to_have_happened() {
        let story = Story::new().sent_unknown(0, &[(0, None, 1), (1, Some(0), 2)]).sent_unknown(1, &[(1, None, 3)]);
        let story = story.polled(2, &[(1, 1, 3)]);
        assert_eq!(found(&story.clone().history(), Anomaly::LostWrite).count, 0);
        let findings = found(&story.polled(3, &[(0, 0, 1)]).history(), Anomaly::LostWrite);
        assert_eq!((findings.count, findings.cases[0].values.as_slice()), (1, &[Value(2)][..]));
    }

    #[test]
    fn an_unknown_write_that_only_a_failed_poll_saw_need_not_have_happened() {
        let story = Story::new().sent_unknown(0, &[(0, None, 1)]).sent(1, &[(0, 1, 2)]).failed_poll(2, &[(0, 0, 1)]);
        assert_eq!(found(&story.polled(3, &[(0, 1, 2)]).history(), Anomaly::LostWrite).count, 0);
    }

    #[test]
    fn a_value_that_still_stands_beyond_what_was_read_is_not_lost() {
        let story = Story::new().sent(0, &[(0, 0, 1)]).sent(0, &[(0, 1, 2)]).failed_poll(1, &[(0, 5, 1)]);
        assert_eq!(found(&story.polled(2, &[(0, 1, 2)]).history(), Anomaly::LostWrite).count, 0);
    }

    #[test]
    fn a_tail_that_nobody_read_is_not_lost() {
        let history = Story::new().sent(0, &[(0, 0, 1)]).sent(0, &[(0, 1, 2)]).polled(1, &[(0, 0, 1)]).history();
        assert_eq!(found(&history, Anomaly::LostWrite).count, 0);
    }
}
