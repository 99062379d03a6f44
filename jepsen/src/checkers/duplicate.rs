//! **duplicate**: one value stands at two or more offsets of its key.
//!
//! Each value is sent once, so its record was appended twice: a retry that was not recognised, or an entry replayed after a crash.

use super::analysis::{Analysis, Sighting};
use super::workloads::Workload;
use super::{Anomaly, Case, Checker, Findings};
use crate::history::Offset;

/// See above.
pub const CHECKER: Checker =
    Checker { anomaly: Anomaly::Duplicate, summary: "one value stands at two or more offsets", check };

/// How many places of one value a case names.
const PLACES_MAX: usize = 8;

fn check(analysis: &Analysis<'_>, _: Workload) -> Findings {
    let mut findings = Findings::default();
    for (key, log) in &analysis.keys {
        for facts in &log.values {
            analysis.meter.add(1);
            let Some((first, last)) = facts.indices.filter(|(first, last)| first < last) else { continue };
            findings.push(|| {
                let place =
                    |sightings: &[Sighting]| sightings.iter().find(|at| at.value == facts.value).map(|at| at.seen_by);
                let places: Vec<(Offset, usize)> = log.slots[first..=last]
                    .iter()
                    .filter_map(|slot| Some((slot.offset, analysis.evidence(place(&slot.sightings)?))))
                    .take(PLACES_MAX)
                    .collect();
                let names = places.iter().map(|(offset, _)| offset.0.to_string()).collect::<Vec<_>>().join(" and ");
                let mut events: Vec<usize> = facts.writer.map(|writer| analysis.evidence(writer)).into_iter().collect();
                events.extend(
                    places
                        .iter()
                        .map(|(_, event)| event)
                        .filter(|event| Some(*event) != events.first())
                        .copied()
                        .collect::<Vec<_>>(),
                );
                Case::of(*key, format!("{} stands at offsets {names} of key {}", facts.value.0, key.0))
                    .values([facts.value])
                    .offsets(places.iter().map(|(offset, _)| *offset))
                    .events(events)
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
    fn a_value_at_two_offsets_is_named_with_both() {
        let clean = simple_log(12);
        assert_eq!(found(&clean, Anomaly::Duplicate).count, 0);
        let (history, planted) = plant::value_again_at_the_end(&clean);
        let findings = found(&history, Anomaly::Duplicate);
        assert_eq!(findings.count, 1);
        let case = &findings.cases[0];
        assert_eq!((case.key, &case.values, &case.offsets), (Some(planted.key), &planted.values, &planted.offsets));
        assert!(planted.events.iter().all(|event| case.events.contains(event)), "{case:?} {planted:?}");
    }

    #[test]
    fn many_values_at_the_same_two_offsets_are_all_found() {
        let story =
            (0..10).fold(Story::new(), |story, value| story.sent(0, &[(0, 0, value)]).polled(1, &[(0, 1, value)]));
        let history = story.history();
        assert_eq!(found(&history, Anomaly::Duplicate).count, 10);
        assert_eq!(found(&history, Anomaly::InconsistentOffsets).count, 2);
    }

    #[test]
    fn reading_an_offset_twice_is_no_duplicate() {
        let history = Story::new().sent(0, &[(0, 0, 1)]).polled(1, &[(0, 0, 1)]).polled(2, &[(0, 0, 1)]).history();
        assert_eq!(found(&history, Anomaly::Duplicate).count, 0);
    }
}
