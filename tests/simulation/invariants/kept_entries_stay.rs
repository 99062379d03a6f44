//! A replica keeps what it was asked to keep: its log begins neither at an index nor at an offset above that. (It may begin below:
//! whole segments go. And what holds no records, at a log's very beginning say, goes to retention unasked.)

use std::collections::BTreeMap;

use super::Invariant;
use crate::event::Event;

/// What is known of a group.
#[derive(Default)]
struct Group {
    /// The offset at each index of the committed log.
    offsets: Vec<u64>,
    /// The one behind its last record.
    end: u64,
    /// The last index that any replica was asked to keep the entries from: the others may get its snapshot.
    kept: u64,
}

impl Group {
    /// The offset of the first record at or behind this index.
    fn offset_at(&self, index: u64) -> u64 {
        self.offsets.get(index as usize).copied().unwrap_or(self.end)
    }
}

/// The partitions' groups. The catalog's snapshots hold its tables: its log may go as far as it is applied.
#[derive(Default)]
pub(super) struct KeptEntriesStay(BTreeMap<u64, Group>);

impl Invariant for KeptEntriesStay {
    fn name(&self) -> &'static str {
        "kept_entries_stay"
    }

    fn see(&mut self, event: &Event<'_>) -> Result<(), String> {
        match *event {
            Event::Committed { group, fact, .. } => {
                let group = self.0.entry(group).or_default();
                group.offsets.push(fact.base_offset);
                group.end = fact.base_offset + u64::from(fact.span);
            }
            Event::Boundary { group, index } => {
                let kept = &mut self.0.entry(group).or_default().kept;
                *kept = index.max(*kept);
            }
            Event::Start { by, first, log_start } if by.group != 0 => {
                let group = self.0.entry(by.group).or_default();
                let (kept, offset) = (group.kept, group.offset_at(group.kept));
                if group.offset_at(first).max(log_start) > offset {
                    let why = format!("its log begins at index {first}, offset {log_start}");
                    return Err(format!("{by:?}: {why}; it was asked to keep all from {kept}, offset {offset}, on"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pontoon_raft::log::frame::{Frame, FrameHeader, FrameKind};
    use pontoon_raft::types::log_id;

    use super::*;
    use crate::invariants::samples::{attempt, commit, frame, replica};

    #[test]
    fn a_log_that_begins_above_the_boundary_is_seen() {
        let start = |first, log_start| Event::Start { by: replica(1), first, log_start };
        let mut invariant = KeptEntriesStay::default();
        for number in 0..4 {
            commit(&mut invariant, &frame(number, 2 * number, attempt(number as u32, 1))).unwrap();
        }
        invariant.see(&start(0, 0)).unwrap();
        invariant.see(&start(1, 2)).unwrap_err();
        invariant.see(&Event::Boundary { group: 1, index: 2 }).unwrap();
        invariant.see(&Event::Boundary { group: 1, index: 1 }).unwrap();
        invariant.see(&start(2, 4)).unwrap();
        invariant.see(&start(3, 4)).unwrap_err();
        invariant.see(&start(2, 5)).unwrap_err();
    }

    /// As at seed 3035526: a leader's first entry, and one of a membership.
    #[test]
    fn what_holds_no_records_may_go() {
        let start = |first| Event::Start { by: replica(1), first, log_start: 0 };
        let mut invariant = KeptEntriesStay::default();
        for index in 0..2 {
            let blank = FrameHeader::bare(FrameKind::Blank, log_id(1, index), 0);
            commit(&mut invariant, &Frame::new(blank, bytes::Bytes::new())).unwrap();
        }
        invariant.see(&start(2)).unwrap();
        commit(&mut invariant, &frame(2, 0, attempt(2, 1))).unwrap();
        invariant.see(&start(2)).unwrap();
        invariant.see(&start(3)).unwrap_err();
    }
}
