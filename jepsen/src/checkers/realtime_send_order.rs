//! **realtime-send-order** (a): send A completed `:ok` before send B to the same key was invoked, and yet offset(B) ≤ offset(A).
//!
//! B counts if it certainly happened. An offset is what the client was told, or where a poll saw the value. Jepsen's own checker
//! cannot see this: no cycle needs to come of it when nobody reads.

use std::collections::BTreeMap;

use super::analysis::{Analysis, OperationId, Sent};
use super::workloads::Workload;
use super::{Anomaly, Case, Checker, Findings};
use crate::history::{Key, Kind, Offset, Value};

/// See above.
pub const CHECKER: Checker = Checker {
    anomaly: Anomaly::RealtimeSendOrder,
    summary: "a send was given an offset below one that had been acknowledged before it began",
    check,
};

/// The furthest acknowledged send of each key so far.
#[derive(Default)]
pub(super) struct Acknowledged(BTreeMap<Key, (Offset, Value, OperationId)>);

impl Acknowledged {
    /// The send of `key` with the largest offset, among those that were acknowledged so far.
    pub(super) fn furthest(&self, key: Key) -> Option<(Offset, Value, OperationId)> {
        self.0.get(&key).copied()
    }

    /// Takes in an operation that just completed `:ok`.
    pub(super) fn complete(&mut self, analysis: &Analysis<'_>, id: OperationId) {
        for Sent { key, value, offset } in analysis.sends(id) {
            let Some(offset) = offset else { continue };
            let furthest = self.0.entry(key).or_insert((offset, value, id));
            if furthest.0 < offset {
                *furthest = (offset, value, id);
            }
        }
    }
}

fn check(analysis: &Analysis<'_>, _: Workload) -> Findings {
    let mut findings = Findings::default();
    let mut acknowledged = Acknowledged::default();
    for event in analysis.history.events() {
        let id = analysis.history.operation_of(event.index);
        analysis.meter.add(1);
        match event.kind {
            Kind::Ok => acknowledged.complete(analysis, id),
            Kind::Invoke if analysis.happened(id) => {
                for sent in analysis.sends(id) {
                    let (Some(offset), Some((before, first, from))) = (sent.offset, acknowledged.furthest(sent.key))
                    else {
                        continue;
                    };
                    if offset > before {
                        continue;
                    }
                    findings.push(|| {
                        let message = format!(
                            "{} went to offset {} of key {}, though {} had been acknowledged at offset {} before it was sent",
                            sent.value.0, offset.0, sent.key.0, first.0, before.0
                        );
                        let mut events = vec![analysis.evidence(from), event.index, analysis.evidence(id)];
                        events.dedup();
                        Case::of(sent.key, message).values([first, sent.value]).offsets([before, offset]).events(events)
                    });
                }
            }
            _ => {}
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Story, found, found_names, plant, simple_log};

    #[test]
    fn a_send_that_goes_before_an_acknowledged_one_is_named_with_both() {
        let clean = simple_log(18);
        assert_eq!(found(&clean, Anomaly::RealtimeSendOrder).count, 0);
        let (history, planted) = plant::offsets_against_real_time(&clean);
        let findings = found(&history, Anomaly::RealtimeSendOrder);
        assert!(findings.count > 0);
        let case = findings.cases.iter().find(|case| case.values == planted.values).expect("the planted case");
        assert_eq!((case.key, &case.offsets), (Some(planted.key), &planted.offsets));
        assert!(planted.events.iter().all(|event| case.events.contains(event)), "{case:?} {planted:?}");
    }

    /// faults.md §1: A acknowledged at offset 1, then B invoked and given offset 0.
    #[test]
    fn what_jepsen_cannot_see_is_seen() {
        let history =
            Story::new().sent(0, &[(0, 1, 10)]).sent(1, &[(0, 0, 11)]).polled(2, &[(0, 0, 11), (0, 1, 10)]).history();
        let findings = found(&history, Anomaly::RealtimeSendOrder);
        assert_eq!((findings.count, findings.cases[0].events.as_slice()), (1, &[1, 2, 3][..]));
        assert_eq!(found_names(&history), ["G0-realtime", "realtime-send-order"].map(String::from));
    }

    #[test]
    fn an_unknown_send_counts_where_it_was_seen() {
        let story = Story::new().sent(0, &[(0, 5, 10)]).sent_unknown(1, &[(0, None, 11)]);
        assert_eq!(found(&story.clone().history(), Anomaly::RealtimeSendOrder).count, 0);
        assert_eq!(found(&story.polled(2, &[(0, 4, 11)]).history(), Anomaly::RealtimeSendOrder).count, 1);
    }

    #[test]
    fn the_same_offset_is_not_behind() {
        let history = Story::new().sent(0, &[(0, 5, 10)]).sent(1, &[(0, 5, 11)]).history();
        assert_eq!(found(&history, Anomaly::RealtimeSendOrder).count, 1);
    }

    #[test]
    fn what_need_not_have_happened_stands_nowhere() {
        let story =
            Story::new().sent(0, &[(0, 5, 10)]).sent_unknown(1, &[(0, Some(4), 11)]).failed_send(2, &[(0, 3, 12)]);
        assert_eq!(found(&story.history(), Anomaly::RealtimeSendOrder).count, 0);
    }

    #[test]
    fn concurrent_sends_may_go_either_way() {
        let history = Story::new().overlapping_sends(&[(0, &[(0, 1, 10)]), (1, &[(0, 0, 11)])]).history();
        assert_eq!(found(&history, Anomaly::RealtimeSendOrder).count, 0);
    }
}
