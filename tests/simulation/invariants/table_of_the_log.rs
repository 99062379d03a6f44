//! The table at append (producers, sequences) is a function of the log and of nothing else: on every replica, at any moment, it is
//! what a fold over the log gives (RULES.md O1, O6).

use std::collections::BTreeMap;

use pontoon::partition::PartitionApplication;
use pontoon_raft::log::frame::FrameKind;
use pontoon_raft::payload::{AppendState, Application};

use super::Invariant;
use crate::event::{Event, Replica};
use crate::trace::digest;

/// A group's fold so far.
struct Fold {
    state: Box<dyn AppendState>,
    /// Term of each entry, and the table's digest after it.
    at: Vec<(u64, u32)>,
    /// What replicas have shown that the fold has not come to yet.
    shown: BTreeMap<u64, Vec<(Replica, u64, u32)>>,
    compared: u64,
}

impl Default for Fold {
    fn default() -> Self {
        let state = PartitionApplication.append_state(None).expect("an empty table");
        Self { state, at: Vec::new(), shown: BTreeMap::new(), compared: 0 }
    }
}

impl Fold {
    /// `None`: it is too early to tell, or the entry is not the committed one.
    fn check(&mut self, by: Replica, index: u64, term: u64, shown: u32) -> Option<Result<(), String>> {
        let (folded_term, folded) = self.at.get(index as usize)?;
        let agrees = *folded_term != term || *folded == shown;
        self.compared += u64::from(*folded_term == term);
        Some(if agrees { Ok(()) } else { Err(format!("{by:?}: the table at index {index} is not the log's")) })
    }
}

/// The partitions' folds. The catalog's own state is applied, not appended.
#[derive(Default)]
pub(super) struct TableOfTheLog(BTreeMap<u64, Fold>);

impl Invariant for TableOfTheLog {
    fn name(&self) -> &'static str {
        "table_of_the_log"
    }

    fn looked_at(&self) -> Option<(&'static str, u64)> {
        Some(("tables compared", self.0.values().map(|fold| fold.compared).sum()))
    }

    fn see(&mut self, event: &Event<'_>) -> Result<(), String> {
        match *event {
            Event::Committed { group, index, fact, frame } if group != 0 => {
                let fold = self.0.entry(group).or_default();
                if matches!(fact.kind, FrameKind::Records | FrameKind::Void) {
                    fold.state.observe(&frame.header, &frame.payload);
                }
                fold.at.push((fact.term, digest([&fold.state.save()[..]])));
                let shown = fold.shown.remove(&index).unwrap_or_default();
                shown.into_iter().filter_map(|(by, term, digest)| fold.check(by, index, term, digest)).collect()
            }
            Event::Table { by, index, term, digest } if by.group != 0 => {
                let fold = self.0.entry(by.group).or_default();
                let checked = fold.check(by, index, term, digest);
                if checked.is_none() {
                    fold.shown.entry(index).or_default().push((by, term, digest));
                }
                checked.unwrap_or(Ok(()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::samples::{commit, replica, sequenced};

    #[test]
    fn tables_that_end_with_their_own_checksum_have_digests_of_their_own() {
        let mut state = PartitionApplication.append_state(None).unwrap();
        let empty = digest([&state.save()[..]]);
        let frame = sequenced();
        state.observe(&frame.header, &frame.payload);
        assert_ne!(digest([&state.save()[..]]), empty);
    }

    #[test]
    fn another_table_is_seen_before_and_after_its_entry_is_committed() {
        let table = |digest| Event::Table { by: replica(1), index: 0, term: 1, digest };
        let frame = sequenced();
        let mut state = PartitionApplication.append_state(None).unwrap();
        state.observe(&frame.header, &frame.payload);
        let right = digest([&state.save()[..]]);
        for (digest, holds) in [(right, true), (right ^ 1, false)] {
            let mut invariant = TableOfTheLog::default();
            commit(&mut invariant, &frame).unwrap();
            assert_eq!(invariant.see(&table(digest)).is_ok(), holds);
            let mut invariant = TableOfTheLog::default();
            invariant.see(&table(digest)).unwrap();
            assert_eq!(invariant.looked_at(), Some(("tables compared", 0)));
            assert_eq!(commit(&mut invariant, &frame).is_ok(), holds);
            assert_eq!(invariant.looked_at(), Some(("tables compared", 1)));
        }
    }
}
