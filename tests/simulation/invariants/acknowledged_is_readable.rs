//! What was acknowledged is there, exactly where it was said to be, and can be read after every recovery; no read leaves a record
//! out; what was said to be the end was not below it.

use std::collections::BTreeMap;

use super::Invariant;
use crate::event::{Attempt, Event, Place};

/// Where a batch stands.
#[derive(Clone, Copy)]
struct Stands {
    group: u64,
    index: u64,
    base: u64,
    term: u64,
    span: u32,
}

/// What was promised, and what came of it.
#[derive(Default)]
pub(super) struct AcknowledgedIsReadable {
    acknowledged: BTreeMap<Attempt, Place>,
    committed: BTreeMap<Attempt, Stands>,
    /// By group: the last index that anybody was asked to keep the entries from.
    kept: BTreeMap<u64, u64>,
    /// What each partition's final read has read; until that begins, what was read of it at all.
    read: BTreeMap<u32, BTreeMap<u64, Attempt>>,
    read_from: BTreeMap<u32, u64>,
}

impl AcknowledgedIsReadable {
    /// The attempt that an acknowledgement is about: the very one, or an earlier one of the same batch.
    fn stands(&self, attempt: Attempt, at: Place) -> Option<(Attempt, Stands)> {
        let earlier = Attempt { attempt: 0, ..attempt };
        let mut of_batch = self.committed.range(earlier..=attempt);
        of_batch.find(|(stands, _)| at.duplicate || **stands == attempt).map(|(stands, place)| (*stands, *place))
    }

    /// The first offset of a partition that must be readable, wherever its leader says that the log starts.
    fn kept_from(&self, partition: u32) -> Option<u64> {
        let of_partition = self.committed.iter().filter(|(attempt, _)| attempt.partition == partition);
        let kept = of_partition.filter(|(_, at)| at.index >= self.kept.get(&at.group).copied().unwrap_or(0));
        kept.map(|(_, at)| at.base).min()
    }

    fn check(&self, attempt: Attempt, at: Place) -> Result<(), String> {
        let Some((stands, Stands { base, term, span, .. })) = self.stands(attempt, at) else {
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

/// An offset that is asked for by its number is answered from there on or refused, and offsets are dense.
fn check_dense(from: u64, log_start: u64, offsets: &[u64]) -> Result<(), String> {
    if log_start > from {
        return Err(format!("a read from {from} was answered by a log that starts at {log_start}"));
    }
    match (from..).zip(offsets).find(|(due, offset)| due != *offset) {
        Some((due, offset)) => Err(format!("offset {offset} was read where {due} was due")),
        None => Ok(()),
    }
}

impl Invariant for AcknowledgedIsReadable {
    fn name(&self) -> &'static str {
        "acknowledged_is_readable"
    }

    fn see(&mut self, event: &Event<'_>) -> Result<(), String> {
        match *event {
            Event::Acknowledged { attempt, at } => drop(self.acknowledged.insert(attempt, at)),
            Event::Committed { group, index, fact, .. } => {
                let (base, term, span) = (fact.base_offset, fact.term, fact.span);
                fact.attempt.map(|attempt| self.committed.insert(attempt, Stands { group, index, base, term, span }));
            }
            Event::Boundary { group, index } => {
                let kept = self.kept.entry(group).or_default();
                *kept = index.max(*kept);
            }
            Event::Read { partition, offset, attempt, .. } => {
                self.read.entry(partition).or_default().insert(offset, attempt);
            }
            Event::Answered { partition, from, log_start, offsets } => {
                check_dense(from, log_start, offsets).map_err(|why| format!("partition {partition}: {why}"))?;
            }
            Event::ReadingAll { partition } => drop(self.read.remove(&partition)),
            Event::ReadAll { partition, log_start, end } => {
                let from = self.kept_from(partition).unwrap_or(log_start).min(log_start);
                self.read_from.insert(partition, from);
                let read = self.read.entry(partition).or_default();
                if let Some(missing) = (from..end).find(|offset| !read.contains_key(offset)) {
                    let why = format!("offset {missing} of {from}..{end} was not read, in a log said to start at");
                    return Err(format!("partition {partition}: {why} {log_start}"));
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
        answer(3, 3, &[3]).unwrap();
        // Refused (416) is what it should have been.
        answer(3, 7, &[7, 8]).unwrap_err();
        answer(3, 7, &[6, 7, 8]).unwrap_err();
        answer(3, 7, &[]).unwrap_err();
    }

    #[test]
    fn a_log_that_says_that_it_starts_above_what_was_to_be_kept_is_seen() {
        for (log_start, is_seen) in [(0, false), (1, false), (2, true)] {
            let mut invariant = AcknowledgedIsReadable::default();
            for number in 0..2 {
                let (index, at) = (u64::from(number), u64::from(number));
                let at = Place { base_offset: at, last_offset: at, epoch: 1, duplicate: false };
                commit(&mut invariant, &frame(index, index, attempt(number, 1))).unwrap();
                invariant.see(&Event::Acknowledged { attempt: attempt(number, 1), at }).unwrap();
            }
            invariant.see(&Event::Boundary { group: 1, index: 1 }).unwrap();
            invariant.see(&Event::Boundary { group: 1, index: 0 }).unwrap();
            for number in log_start..2 {
                let (offset, attempt) = (number, attempt(number as u32, 1));
                invariant.see(&Event::Read { partition: 0, offset, attempt, record: 0 }).unwrap();
            }
            let complete = invariant.see(&Event::ReadAll { partition: 0, log_start, end: 2 });
            assert_eq!(complete.is_err(), is_seen, "{log_start}");
            assert_eq!(invariant.judge().len(), usize::from(is_seen), "{log_start}");
        }
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
