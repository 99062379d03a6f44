//! What was acknowledged is there, exactly where it was said to be, and can be read after every recovery; no read leaves a record
//! out; what was said to be the end was not below it.

use std::collections::BTreeMap;

use super::Invariant;
use crate::event::{Attempt, Event, Place};

/// What was promised, and what came of it.
#[derive(Default)]
pub(super) struct AcknowledgedIsReadable {
    acknowledged: BTreeMap<Attempt, Place>,
    /// Where each attempt stands: partition, base offset, term, offsets.
    committed: BTreeMap<Attempt, (u64, u64, u32)>,
    /// What each partition's final read has read; until that begins, what was read of it at all.
    read: BTreeMap<u32, BTreeMap<u64, Attempt>>,
    read_from: BTreeMap<u32, u64>,
}

impl AcknowledgedIsReadable {
    /// The attempt that an acknowledgement is about: the very one, or an earlier one of the same batch.
    fn stands(&self, attempt: Attempt, at: Place) -> Option<(Attempt, (u64, u64, u32))> {
        let earlier = Attempt { attempt: 0, ..attempt };
        let mut of_batch = self.committed.range(earlier..=attempt);
        of_batch.find(|(stands, _)| at.duplicate || **stands == attempt).map(|(stands, place)| (*stands, *place))
    }

    fn check(&self, attempt: Attempt, at: Place) -> Result<(), String> {
        let Some((stands, (base, term, span))) = self.stands(attempt, at) else {
            return Err(format!("{attempt:?}, acknowledged {at:?}, is not in the log"));
        };
        if (base, base + u64::from(span) - 1, term) != (at.base_offset, at.last_offset, at.epoch) {
            return Err(format!("{attempt:?}, acknowledged {at:?}, stands at {base}+{span} in term {term}"));
        }
        let start = self.read_from.get(&attempt.partition).copied().unwrap_or(u64::MAX);
        let read = self.read.get(&attempt.partition);
        match (at.base_offset.max(start)..=at.last_offset)
            .find(|offset| read.and_then(|read| read.get(offset)) != Some(&stands))
        {
            Some(offset) => Err(format!("{attempt:?}, acknowledged {at:?}: offset {offset} was not read at the end")),
            None => Ok(()),
        }
    }
}

/// Offsets are dense, so an answer has each from the one that was asked for on. Only what lies below the log start, which may have
/// moved since the client asked last, may be missing.
fn check_dense(from: u64, log_start: u64, offsets: &[u64]) -> Result<(), String> {
    let mut next = from;
    for offset in offsets {
        let is_below_the_start = (next..=log_start).contains(offset);
        if *offset != next && !is_below_the_start {
            return Err(format!("offset {offset} was read where {next} was due, with a log start at {log_start}"));
        }
        next = offset + 1;
    }
    Ok(())
}

impl Invariant for AcknowledgedIsReadable {
    fn name(&self) -> &'static str {
        "acknowledged_is_readable"
    }

    fn see(&mut self, event: &Event<'_>) -> Result<(), String> {
        match *event {
            Event::Acknowledged { attempt, at } => drop(self.acknowledged.insert(attempt, at)),
            Event::Committed { fact, .. } => {
                let place = (fact.base_offset, fact.term, fact.span);
                fact.attempt.map(|attempt| self.committed.insert(attempt, place));
            }
            Event::Read { partition, offset, attempt, .. } => {
                self.read.entry(partition).or_default().insert(offset, attempt);
            }
            Event::Answered { partition, from, log_start, offsets } => {
                check_dense(from, log_start, offsets).map_err(|why| format!("partition {partition}: {why}"))?;
            }
            Event::ReadingAll { partition } => drop(self.read.remove(&partition)),
            Event::ReadAll { partition, log_start, end } => {
                self.read_from.insert(partition, log_start);
                let read = self.read.entry(partition).or_default();
                if let Some(missing) = (log_start..end).find(|offset| !read.contains_key(offset)) {
                    return Err(format!("partition {partition}: offset {missing} of {log_start}..{end} was not read"));
                }
            }
            Event::Tail { partition, end, known } if end < known => {
                return Err(format!(
                    "partition {partition}: the end {end} was confirmed, {known} was acknowledged before"
                ));
            }
            _ => {}
        }
        Ok(())
    }

    fn judge(&mut self) -> Vec<String> {
        self.acknowledged.iter().filter_map(|(attempt, at)| self.check(*attempt, *at).err()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::samples::{attempt, commit, frame};

    /// Batch 0 stands at offset 0, acknowledged as `at`, and is read or not.
    fn judged(at: Place, read: bool) -> Vec<String> {
        let mut invariant = AcknowledgedIsReadable::default();
        commit(&mut invariant, &frame(0, 0, attempt(0, 2))).unwrap();
        invariant.see(&Event::Acknowledged { attempt: attempt(0, 2), at }).unwrap();
        if read {
            invariant.see(&Event::Read { partition: 0, offset: 0, attempt: attempt(0, 2), record: 0 }).unwrap();
        }
        let complete = invariant.see(&Event::ReadAll { partition: 0, log_start: 0, end: 1 });
        assert_eq!(complete.is_ok(), read);
        invariant.judge()
    }

    #[test]
    fn what_is_not_there_not_where_it_was_said_or_not_read_is_seen() {
        let at = Place { base_offset: 0, last_offset: 0, epoch: 1, duplicate: false };
        assert_eq!(judged(at, true), Vec::<String>::new());
        assert_eq!(judged(Place { duplicate: true, ..at }, true), Vec::<String>::new());
        assert_eq!(judged(Place { epoch: 2, ..at }, true).len(), 1);
        assert_eq!(judged(Place { base_offset: 1, last_offset: 1, ..at }, true).len(), 1);
        assert_eq!(judged(at, false).len(), 1);
        let mut nothing = AcknowledgedIsReadable::default();
        nothing.see(&Event::Acknowledged { attempt: attempt(3, 1), at }).unwrap();
        assert_eq!(nothing.judge().len(), 1);
    }

    #[test]
    fn a_read_that_leaves_a_record_out_is_seen() {
        let answer = |from, log_start, offsets: &[u64]| {
            AcknowledgedIsReadable::default().see(&Event::Answered { partition: 0, from, log_start, offsets })
        };
        answer(3, 0, &[]).unwrap();
        answer(3, 0, &[3, 4, 5]).unwrap();
        answer(3, 0, &[4, 5]).unwrap_err();
        answer(3, 0, &[3, 5]).unwrap_err();
        answer(3, 0, &[3, 3]).unwrap_err();
        // The log start has moved, to 7: the batch that holds it may begin below.
        answer(3, 7, &[6, 7, 8]).unwrap();
        answer(3, 7, &[8]).unwrap_err();
        answer(3, 7, &[7, 9]).unwrap_err();
    }

    #[test]
    fn what_was_read_before_the_final_read_does_not_count() {
        let mut invariant = AcknowledgedIsReadable::default();
        let at = Place { base_offset: 0, last_offset: 0, epoch: 1, duplicate: false };
        commit(&mut invariant, &frame(0, 0, attempt(0, 1))).unwrap();
        invariant.see(&Event::Acknowledged { attempt: attempt(0, 1), at }).unwrap();
        invariant.see(&Event::Read { partition: 0, offset: 0, attempt: attempt(0, 1), record: 0 }).unwrap();
        invariant.see(&Event::ReadingAll { partition: 0 }).unwrap();
        invariant.see(&Event::ReadAll { partition: 0, log_start: 0, end: 1 }).unwrap_err();
        assert_eq!(invariant.judge().len(), 1);
    }

    #[test]
    fn a_confirmed_end_below_an_acknowledged_record_is_seen() {
        let mut invariant = AcknowledgedIsReadable::default();
        invariant.see(&Event::Tail { partition: 0, end: 5, known: 5 }).unwrap();
        invariant.see(&Event::Tail { partition: 0, end: 4, known: 5 }).unwrap_err();
    }
}
