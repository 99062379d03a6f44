//! Offsets are dense: the committed log gives 0, 1, 2, … to its records and none to anything else, terms never fall, and every batch
//! carries its own offset and epoch.

use std::collections::BTreeMap;

use pontoon::record_batch::RecordBatch;
use pontoon_raft::log::frame::FrameKind;

use super::Invariant;
use crate::event::Event;

/// By group: the next offset, the last term.
#[derive(Default)]
pub(super) struct DenseOffsets(BTreeMap<u64, (u64, u64)>);

impl Invariant for DenseOffsets {
    fn name(&self) -> &'static str {
        "dense_offsets"
    }

    fn see(&mut self, event: &Event<'_>) -> Result<(), String> {
        let Event::Committed { group, index, fact, frame } = *event else { return Ok(()) };
        let (next, term) = self.0.entry(group).or_default();
        let (expected, before) = (*next, *term);
        *next = fact.base_offset + u64::from(fact.span);
        *term = fact.term;
        let wrong = |why: String| Err(format!("group {group}, index {index}: {why}"));
        if fact.base_offset != expected {
            return wrong(format!("offset {} follows an end at {expected}", fact.base_offset));
        }
        if fact.term < before {
            return wrong(format!("term {} follows term {before}", fact.term));
        }
        // The catalog's commands (group 0) are no records.
        let records = fact.kind == FrameKind::Records && group != 0;
        if records != (fact.span > 0) || (records && fact.span != frame.header.record_count) {
            return wrong(format!("{fact:?} takes {} offsets", fact.span));
        }
        if fact.attempt.is_some() {
            let batch = RecordBatch::stored(frame.payload.clone()).map_err(|error| error.to_string())?;
            let header = batch.header();
            if (header.base_offset, i64::from(header.leader_epoch)) != (expected, fact.term as i64) {
                return wrong(format!("stamped {} in epoch {}, not {fact:?}", header.base_offset, header.leader_epoch));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::samples::{attempt, commit, frame};

    #[test]
    fn a_gap_and_an_offset_given_twice_are_seen() {
        for wrong in [2, 0] {
            let mut invariant = DenseOffsets::default();
            commit(&mut invariant, &frame(0, 0, attempt(0, 1))).unwrap();
            commit(&mut invariant, &frame(1, wrong, attempt(1, 1))).unwrap_err();
        }
    }

    #[test]
    fn a_batch_with_another_stamp_than_its_frame_is_seen() {
        let mut stamped = frame(0, 7, attempt(0, 1));
        stamped.header.base_offset = 0;
        commit(&mut DenseOffsets::default(), &stamped).unwrap_err();
    }
}
