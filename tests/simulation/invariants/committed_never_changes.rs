//! Whoever shows a committed entry shows the same one, in whatever life of whichever broker; and a client reads what the log holds.

use std::collections::BTreeMap;

use super::Invariant;
use crate::event::{Attempt, Event, Fact};

/// What was shown and read first.
#[derive(Default)]
pub(super) struct CommittedNeverChanges {
    entries: BTreeMap<(u64, u64), Fact>,
    /// Which batch begins at which offset of a partition, and how many records it has.
    batches: BTreeMap<(u32, u64), (Attempt, u32)>,
}

impl CommittedNeverChanges {
    fn read(&self, partition: u32, offset: u64, attempt: Attempt, record: u32) -> Result<(), String> {
        let stands = self.batches.range(..=(partition, offset)).next_back();
        match stands {
            Some(((of, base), (stands, span))) if *of == partition && offset < base + u64::from(*span) => {
                if *stands == attempt && base + u64::from(record) == offset {
                    return Ok(());
                }
                Err(format!(
                    "offset {offset} was read as record {record} of {attempt:?}, but is of {stands:?} at {base}"
                ))
            }
            // Nobody has shown it yet.
            _ => Ok(()),
        }
    }
}

impl Invariant for CommittedNeverChanges {
    fn name(&self) -> &'static str {
        "committed_never_changes"
    }

    fn see(&mut self, event: &Event<'_>) -> Result<(), String> {
        match *event {
            Event::Applied { by, index, fact } => {
                let first = *self.entries.entry((by.group, index)).or_insert(fact);
                if first != fact {
                    return Err(format!("{by:?}: index {index} was {first:?}, is {fact:?}"));
                }
                if let Some(attempt) = fact.attempt {
                    self.batches.insert((attempt.partition, fact.base_offset), (attempt, fact.span));
                }
                Ok(())
            }
            Event::Read { partition, offset, attempt, record } => self.read(partition, offset, attempt, record),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::samples::{attempt, frame, replica};

    #[test]
    fn another_entry_at_a_committed_index_is_seen_and_another_record_at_its_offset() {
        let mut invariant = CommittedNeverChanges::default();
        let applied = |broker, number| Event::Applied {
            by: replica(broker),
            index: 4,
            fact: Fact::of(&frame(4, 9, attempt(number, 1))),
        };
        invariant.see(&applied(1, 0)).unwrap();
        invariant.see(&applied(2, 0)).unwrap();
        invariant.see(&applied(2, 1)).unwrap_err();
        let mut invariant = CommittedNeverChanges::default();
        invariant.see(&applied(1, 0)).unwrap();
        let read = |offset, number| Event::Read { partition: 0, offset, attempt: attempt(number, 1), record: 0 };
        invariant.see(&read(9, 0)).unwrap();
        invariant.see(&read(10, 5)).unwrap();
        invariant.see(&read(9, 5)).unwrap_err();
    }
}
