//! **stale-read** (b): a linearizable read does not cover a send that was acknowledged before it was invoked.
//!
//! An answered linearizable read claims, for each key, a range [from, end): it has every record in there, and at or past `end` nothing
//! had been acknowledged when it was asked. It is wrong if
//!
//! 1. a send that had been acknowledged before the read was invoked stands at an offset ≥ end, or
//! 2. a record that is known to stand in [from, end) is missing in its answer.
//!
//! So an empty answer after an acknowledgement is seen, too. Plain polls claim nothing and may lag.

use std::collections::BTreeMap;

use super::analysis::{Analysis, OperationId};
use super::realtime_send_order::Acknowledged;
use super::workloads::Workload;
use super::{Anomaly, Case, Checker, Findings};
use crate::history::{ClaimedRange, Key, Kind, Offset};

/// See above.
pub const CHECKER: Checker = Checker {
    anomaly: Anomaly::StaleRead,
    summary: "a linearizable read does not cover what was acknowledged before it began",
    check,
};

fn check(analysis: &Analysis<'_>, _: Workload) -> Findings {
    let mut findings = Findings::default();
    let mut acknowledged = Acknowledged::default();
    for event in analysis.history.events() {
        let id = analysis.history.operation_of(event.index);
        analysis.meter.add(1);
        match event.kind {
            Kind::Ok => acknowledged.complete(analysis, id),
            Kind::Invoke if analysis.operation(id).outcome == Kind::Ok => {
                let claims = &analysis.event(id).ranges;
                let read = if claims.is_empty() { BTreeMap::new() } else { offsets_read(analysis, id) };
                for claim in claims {
                    beyond_the_end(analysis, id, claim, &acknowledged, &mut findings);
                    let read = read.get(&claim.key).map_or(&[][..], Vec::as_slice);
                    missing_in_between(analysis, id, claim, read, &mut findings);
                }
            }
            _ => {}
        }
    }
    findings
}

fn beyond_the_end(
    analysis: &Analysis<'_>,
    id: OperationId,
    claim: &ClaimedRange,
    acknowledged: &Acknowledged,
    findings: &mut Findings,
) {
    let Some((offset, value, writer)) = acknowledged.furthest(claim.key).filter(|(offset, ..)| *offset >= claim.end)
    else {
        return;
    };
    findings.push(|| {
        let message = format!(
            "a linearizable read of key {} ended at offset {}, though {} had been acknowledged at offset {} before it began",
            claim.key.0, claim.end.0, value.0, offset.0
        );
        let events = [analysis.evidence(writer), analysis.operation(id).invoked, analysis.evidence(id)];
        Case::of(claim.key, message).values([value]).offsets([offset, claim.end]).events(events)
    });
}

/// The offsets that an operation read, by key, ascending.
fn offsets_read(analysis: &Analysis<'_>, id: OperationId) -> BTreeMap<Key, Vec<Offset>> {
    let mut offsets: BTreeMap<Key, Vec<Offset>> = BTreeMap::new();
    analysis.reads(id).for_each(|(key, offset, _)| offsets.entry(key).or_default().push(offset));
    offsets.values_mut().for_each(|of_key| of_key.sort_unstable());
    offsets
}

/// Finds the first hole only: one is enough, and it keeps the work in proportion to what was read.
fn missing_in_between(
    analysis: &Analysis<'_>,
    id: OperationId,
    claim: &ClaimedRange,
    read: &[Offset],
    findings: &mut Findings,
) {
    let Some(log) = analysis.keys.get(&claim.key) else { return };
    let start = log.slots.partition_point(|slot| slot.offset < claim.from);
    analysis.meter.add(read.len() + 1);
    let claimed = log.slots[start..].iter().take_while(|slot| slot.offset < claim.end);
    let mut read = read.iter().peekable();
    for slot in claimed {
        analysis.meter.add(1);
        while read.next_if(|offset| **offset < slot.offset).is_some() {}
        if read.peek() == Some(&&slot.offset) {
            continue;
        }
        let Some(sighting) = slot.sightings.first() else { continue };
        findings.push(|| {
            let message = format!(
                "a linearizable read of key {} claims offsets {} to {}, but has not {} at offset {}",
                claim.key.0, claim.from.0, claim.end.0, sighting.value.0, slot.offset.0
            );
            let events = [analysis.evidence(sighting.seen_by), analysis.evidence(id)];
            Case::of(claim.key, message).values([sighting.value]).offsets([slot.offset]).events(events)
        });
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Value;
    use crate::testing::{Story, found, found_names, plant, simple_log};

    #[test]
    fn a_linearizable_read_that_misses_an_acknowledged_send_is_named_with_both() {
        let clean = simple_log(19);
        assert_eq!(found(&clean, Anomaly::StaleRead).count, 0);
        let (history, planted) = plant::stale_answer(&clean);
        let findings = found(&history, Anomaly::StaleRead);
        assert_eq!(findings.count, 1);
        let case = &findings.cases[0];
        assert_eq!((case.key, &case.values), (Some(planted.key), &planted.values));
        assert!(planted.events.iter().all(|event| case.events.contains(event)), "{case:?} {planted:?}");
    }

    /// faults.md §1: an empty poll after an acknowledgement.
    #[test]
    fn an_empty_answer_after_an_acknowledgement_is_seen() {
        let story = Story::new().sent(0, &[(0, 0, 10)]).linearizable(1, &[], (0, 0, 0));
        let history = story.polled(2, &[(0, 0, 10)]).history();
        let findings = found(&history, Anomaly::StaleRead);
        assert_eq!((findings.count, findings.cases[0].events.as_slice()), (1, &[1, 2, 3][..]));
        assert_eq!(found_names(&history), ["stale-read".to_owned()]);
    }

    #[test]
    fn a_hole_in_the_claimed_range_is_seen() {
        let story = Story::new().sent(0, &[(0, 0, 10), (0, 1, 11), (0, 2, 12)]);
        let history = story.clone().linearizable(1, &[(0, 2, 12)], (0, 1, 3)).history();
        let findings = found(&history, Anomaly::StaleRead);
        assert_eq!((findings.count, findings.cases[0].values.as_slice()), (1, &[Value(11)][..]));
        let whole = story.linearizable(1, &[(0, 1, 11), (0, 2, 12)], (0, 1, 3)).history();
        assert_eq!(found(&whole, Anomaly::StaleRead).count, 0);
    }

    #[test]
    fn what_is_acknowledged_during_the_read_need_not_be_covered() {
        let story =
            Story::new().sent(0, &[(0, 0, 10)]).linearizable_during_send(1, &[(0, 0, 10)], (0, 0, 1), 2, (0, 1, 11));
        assert_eq!(found(&story.history(), Anomaly::StaleRead).count, 0);
    }
}
