//! **inconsistent-offsets**: one offset of a key holds two or more values.
//!
//! Polls of any outcome and sends that certainly happened are asked. Brokers that disagree about an offset have split, or one of
//! them cut off what another had acknowledged.

use super::analysis::Analysis;
use super::workloads::Workload;
use super::{Anomaly, Case, Checker, Findings};

/// See above.
pub const CHECKER: Checker =
    Checker { anomaly: Anomaly::InconsistentOffsets, summary: "one offset of a key holds two or more values", check };

fn check(analysis: &Analysis<'_>, _: Workload) -> Findings {
    let mut findings = Findings::default();
    for (key, log) in &analysis.keys {
        for slot in &log.slots {
            analysis.meter.add(1);
            if slot.sightings.len() < 2 {
                continue;
            }
            findings.push(|| {
                let values: Vec<_> = slot.sightings.iter().map(|sighting| sighting.value).collect();
                let names = values.iter().map(|value| value.0.to_string()).collect::<Vec<_>>().join(" and ");
                let events = slot.sightings.iter().map(|sighting| analysis.evidence(sighting.seen_by));
                Case::of(*key, format!("offset {} of key {} holds {names}", slot.offset.0, key.0))
                    .offsets([slot.offset])
                    .values(values)
                    .events(events)
            });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Key, Offset, Value};
    use crate::testing::{Story, found, plant, simple_log};

    #[test]
    fn two_values_at_one_offset_are_named_with_who_saw_them() {
        let clean = simple_log(11);
        assert_eq!(found(&clean, Anomaly::InconsistentOffsets).count, 0);
        let (history, planted) = plant::other_value_at_an_offset(&clean);
        let findings = found(&history, Anomaly::InconsistentOffsets);
        assert_eq!(findings.count, 1);
        let case = &findings.cases[0];
        assert_eq!((case.key, case.offsets.as_slice()), (Some(planted.key), planted.offsets.as_slice()));
        assert!(planted.values.iter().all(|value| case.values.contains(value)), "{case:?} {planted:?}");
        assert!(planted.events.iter().all(|event| case.events.contains(event)), "{case:?} {planted:?}");
    }

    #[test]
    fn a_send_that_may_not_have_happened_conflicts_with_nothing_until_it_is_seen() {
        let unknown = Story::new().sent_unknown(0, &[(0, Some(0), 1), (1, None, 5)]).sent(1, &[(0, 0, 2)]);
        assert_eq!(found(&unknown.clone().history(), Anomaly::InconsistentOffsets).count, 0);
        let seen = unknown.polled(2, &[(1, 5, 5)]).history();
        let findings = found(&seen, Anomaly::InconsistentOffsets);
        assert_eq!(findings.cases[0].message, "offset 0 of key 0 holds 1 and 2");
        assert_eq!(findings.cases[0].key, Some(Key(0)));
        assert_eq!(findings.cases[0].offsets, [Offset(0)]);
        assert_eq!(findings.cases[0].values, [Value(1), Value(2)]);
        assert_eq!(findings.cases[0].events, [1, 3]);
    }
}
