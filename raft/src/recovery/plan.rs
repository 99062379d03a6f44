//! The first pass: what the journal's operations, one after the other, make of one replica's log. No frame is looked into.

use std::collections::BTreeMap;

use crate::checkpoint::{ReplicaState, SegmentState};
use crate::journal::{Extent, Lsn, Recovered, RecoveredOp, SegmentName};
use crate::types::{LogId, Vote};

/// One replica's log, as far as it is known without its frames.
#[derive(Default)]
pub(super) struct Plan {
    /// From the checkpoint; `None` if the replica was created since.
    pub(super) state: Option<ReplicaState>,
    /// Records up to this one are in the checkpoint.
    floor: Lsn,
    pub(super) dead: bool,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) last: Option<LogId>,
    pub(super) segments: Vec<SegmentPlan>,
    /// Everything from this index on was taken away at some time since the checkpoint.
    pub(super) cut_from: Option<u64>,
    /// The log was emptied by a snapshot, whose next offset this is.
    pub(super) installed: Option<(LogId, u64)>,
    /// The snapshot installed last.
    pub(super) snapshot: Option<String>,
    pub(super) next_file_no: u64,
    /// Why the records make no sense together, and from which one on.
    pub(super) broken: Option<(Lsn, String)>,
}

/// One segment of the final log.
pub(super) struct SegmentPlan {
    pub(super) name: SegmentName,
    /// The log's last entry before it.
    pub(super) previous: Option<LogId>,
    /// As the checkpoint has it, if it does.
    pub(super) known: Option<SegmentState>,
    /// The known part is kept only up to this index.
    pub(super) known_to: Option<u64>,
    /// Records whose entries are kept, and up to which index.
    pub(super) records: BTreeMap<Lsn, u64>,
    last_index: u64,
    /// Where the next append must stand; `None` if nothing may follow.
    end: Option<u64>,
}

impl SegmentPlan {
    /// Whether it was ended by a truncation: nothing may follow in it.
    pub(super) fn is_cut(&self) -> bool {
        self.end.is_none()
    }
}

impl Plan {
    /// A replica that was created since the checkpoint.
    pub(super) fn created() -> Self {
        Self::default()
    }

    /// A replica of which only its deletion is on record.
    pub(super) fn deleted() -> Self {
        Self { dead: true, ..Self::default() }
    }

    /// A replica as of the checkpoint.
    pub(super) fn from_checkpoint(state: ReplicaState, lsn: Lsn) -> Self {
        let known = |known: &SegmentState| SegmentPlan {
            name: known.name,
            previous: known.previous.map(Into::into),
            known: Some(known.clone()),
            known_to: None,
            records: BTreeMap::new(),
            last_index: known.last.1,
            end: Some(known.bytes),
        };
        Self {
            floor: lsn,
            vote: state.vote.map(Into::into),
            committed: state.committed.map(Into::into),
            purged: state.purged.map(Into::into),
            last: state.last.map(Into::into),
            segments: state.segments.iter().map(known).collect(),
            next_file_no: state.next_file_no,
            state: Some(state),
            ..Self::default()
        }
    }

    /// If an earlier recovery gave this replica up: what it left.
    pub(super) fn known_corrupt(&self) -> Option<ReplicaState> {
        self.state.clone().filter(|state| state.corrupt.is_some())
    }

    /// Up to which index the entries of this record are part of the log, if any are.
    pub(super) fn kept_of(&self, segment: SegmentName, lsn: Lsn) -> Option<u64> {
        self.segments.iter().find(|planned| planned.name == segment)?.records.get(&lsn).copied()
    }

    /// Whether a record may hold what was acknowledged. Of those that made no sense, and of all that came behind, nobody knows.
    pub(super) fn may_hold(&self, segment: SegmentName, lsn: Lsn) -> bool {
        self.kept_of(segment, lsn).is_some() || self.broken.as_ref().is_some_and(|(from, _)| lsn >= *from)
    }

    /// Takes note of the next record.
    pub(super) fn take(&mut self, recovered: &Recovered) {
        if recovered.lsn <= self.floor || self.dead || self.broken.is_some() {
            // Even of a broken log, its end must be heard of.
            self.dead |= recovered.lsn > self.floor && recovered.op == RecoveredOp::Delete;
            return;
        }
        let lsn = recovered.lsn;
        match &recovered.op {
            RecoveredOp::Create => {}
            RecoveredOp::Append { extent, first, last, .. } | RecoveredOp::Bypass { extent, first, last, .. } => {
                if let Err(why) = self.append(lsn, *extent, *first, *last) {
                    self.broken = Some((lsn, format!("journal record {}: {why}", lsn.0)));
                }
            }
            RecoveredOp::Truncate(last) => self.truncate(*last),
            RecoveredOp::Vote(vote) => self.vote = Some(*vote),
            RecoveredOp::Installed { boundary, next_offset, snapshot } => {
                self.snapshot = Some(snapshot.clone());
                self.committed = self.committed.max(Some(*boundary));
                if self.last.is_none_or(|last| last.index < boundary.index) {
                    self.installed = Some((*boundary, *next_offset));
                }
                self.purge(*boundary);
            }
            RecoveredOp::Purge(upto) => self.purge(*upto),
            RecoveredOp::Commit(committed) => self.committed = self.committed.max(Some(*committed)),
            RecoveredOp::Delete => self.dead = true,
        }
    }

    fn append(&mut self, lsn: Lsn, extent: Extent, first: LogId, last: LogId) -> Result<(), String> {
        if self.last.is_some_and(|end| first.index != end.index + 1) {
            return Err(format!("entry {first} does not follow {:?}", self.last));
        }
        self.next_file_no = self.next_file_no.max(extent.segment.file_no + 1);
        if self.segments.last().is_none_or(|segment| segment.name != extent.segment) {
            self.segments.push(SegmentPlan {
                name: extent.segment,
                previous: self.last,
                known: None,
                known_to: None,
                records: BTreeMap::new(),
                last_index: first.index,
                end: Some(0),
            });
        }
        let Some(segment) = self.segments.last_mut() else { return Ok(()) };
        if segment.end != Some(extent.position) {
            return Err(format!("position {} in {:?}, which ends at {:?}", extent.position, segment.name, segment.end));
        }
        segment.end = Some(extent.position + extent.bytes);
        segment.records.insert(lsn, last.index);
        segment.last_index = last.index;
        self.last = Some(last);
        Ok(())
    }

    fn truncate(&mut self, last: Option<LogId>) {
        let next = last.map_or(0, |last| last.index + 1);
        self.cut_from = Some(self.cut_from.map_or(next, |before| before.min(next)));
        self.last = last;
        self.segments.retain(|segment| segment.name.first_index < next);
        self.shorten_last(next);
    }

    /// Takes the entries from `next` on out of the last segment. Nothing is appended to it any more, even if it ended there
    /// before: its file may once have held more (RULES.md J10).
    fn shorten_last(&mut self, next: u64) {
        let Some(segment) = self.segments.last_mut() else { return };
        segment.end = None;
        if segment.last_index < next {
            return;
        }
        // Records stand in the order of their entries: those that begin above the cut go, the one across it is shortened.
        let mut from = segment.known.as_ref().map_or(segment.name.first_index, |known| known.last.1 + 1);
        segment.records.retain(|_, to| {
            let keep = from < next;
            from = *to + 1;
            *to = (*to).min(next - 1);
            keep
        });
        if segment.known.as_ref().is_some_and(|known| known.last.1 >= next) {
            segment.known_to = Some(next - 1);
        }
        segment.last_index = next - 1;
    }

    fn purge(&mut self, upto: LogId) {
        self.purged = self.purged.max(Some(upto));
        if self.last.is_none_or(|last| last.index < upto.index) {
            self.last = Some(upto);
        }
        self.segments.retain(|segment| segment.last_index > upto.index);
    }

    /// What a checkpoint is to say of a replica that cannot be opened.
    pub(super) fn give_up(&self, why: String) -> ReplicaState {
        ReplicaState {
            vote: self.vote.map(Into::into),
            committed: self.committed.map(Into::into),
            purged: self.purged.map(Into::into),
            last: self.last.map(Into::into),
            next_file_no: self.next_file_no,
            corrupt: Some(why),
            ..self.state.clone().unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{GroupId, ReplicaId, log_id};
    use bytes::Bytes;

    #[test]
    fn records_behind_one_that_makes_no_sense_may_hold_what_was_acknowledged() {
        let segment = SegmentName { first_index: 0, file_no: 0 };
        let mut plan = Plan::created();
        for (lsn, index) in [(1, 0), (2, 5), (3, 6)] {
            let extent = Extent { segment, position: 10 * (lsn - 1), bytes: 10 };
            let (first, last) = (log_id(1, index), log_id(1, index));
            let op = RecoveredOp::Append { extent, frames: Bytes::new(), first, last };
            plan.take(&Recovered { lsn: Lsn(lsn), group: GroupId(1), replica: ReplicaId(1), op });
        }
        assert_eq!((plan.last, plan.broken.is_some()), (Some(log_id(1, 0)), true));
        assert_eq!([0, 1, 2, 3, 4].map(|lsn| plan.may_hold(segment, Lsn(lsn))), [false, true, true, true, true]);
        assert_eq!([1, 2, 3].map(|lsn| plan.kept_of(segment, Lsn(lsn))), [Some(0), None, None]);
    }
}
