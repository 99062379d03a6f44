//! What a log's lock guards: everything that is known of the log without reading a file.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::base::{Base, membership_to_repr};
use super::frame::Frame;
use super::head::Head;
use super::index::SparseIndex;
use super::segment::{Segment, SegmentFile};
use super::tail::Tail;
use crate::checkpoint::{ReplicaState, SegmentState};
use crate::journal::{Lsn, SegmentName};
use crate::types::{LogId, StoredMembership, Vote, log_id};

/// The newest snapshot of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotRef {
    /// File name in the replica's folder.
    pub(crate) name: String,
    /// Last entry it covers.
    pub(crate) last: LogId,
}

/// The state of a log. Invariants: segments follow one another without gaps, the last one ends at `head.last`; every
/// segment but the last ends above `purged`; the tail cache ends at `head.last` or is empty; frames that are not in the tail cache are
/// in their segment's file.
pub(crate) struct LogState {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    /// When that rose last.
    pub(crate) committed_at: Instant,
    /// As last handed to the journal.
    pub(crate) committed_journalled: Option<LogId>,
    /// As far as the state machine has come, in this process.
    pub(crate) applied: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    pub(crate) log_start_offset: u64,
    pub(crate) head: Head,
    pub(crate) segments: Vec<Segment>,
    pub(crate) tail: Tail,
    pub(crate) next_file_no: u64,
    /// The next append opens a new file: nothing may be added to the last one (RULES.md J10).
    pub(crate) roll: bool,
    /// The next append closes the last segment and opens another: it is old enough.
    pub(crate) roll_due: bool,
    /// The file made ready for the next segment.
    pub(crate) prepared: Option<Arc<SegmentFile>>,
    pub(crate) snapshot: Option<SnapshotRef>,
    /// Snapshot files that a newer one has replaced.
    pub(crate) obsolete_snapshots: Vec<String>,
    /// The first index that retention wants to keep.
    pub(crate) boundary: u64,
    /// Rises when entries are taken away at the end: what was read before may be void.
    pub(crate) generation: u64,
    /// Operations given to the journal, and those of them that are durable. They become so in order (RULES.md J5).
    pub(crate) submitted: u64,
    pub(crate) durable: u64,
    pub(crate) durable_lsn: Lsn,
    pub(crate) durable_waiters: Vec<(u64, oneshot::Sender<Lsn>)>,
    /// Appends given to the journal, and those of them that are written to their segments, in order.
    pub(crate) appends: u64,
    pub(crate) appends_written: u64,
    /// That it exists stands in the journal or in a checkpoint.
    pub(crate) created: bool,
    /// It is being deleted and takes no more operations.
    pub(crate) closed: bool,
}

impl LogState {
    /// An empty log.
    pub(crate) fn empty(head: Head, tail: Tail) -> Self {
        Self {
            vote: None,
            committed: None,
            committed_at: Instant::now(),
            committed_journalled: None,
            applied: None,
            purged: None,
            log_start_offset: 0,
            head,
            segments: Vec::new(),
            tail,
            next_file_no: 0,
            roll: false,
            roll_due: false,
            prepared: None,
            snapshot: None,
            obsolete_snapshots: Vec::new(),
            boundary: 0,
            generation: 0,
            submitted: 0,
            durable: 0,
            durable_lsn: Lsn(0),
            durable_waiters: Vec::new(),
            appends: 0,
            appends_written: 0,
            created: false,
            closed: false,
        }
    }

    /// The index of the first entry that can be read, if there is one.
    pub(crate) fn first_index(&self) -> u64 {
        let after_purged = self.purged.map_or(0, |purged| purged.index + 1);
        self.segments.first().map_or(after_purged, |segment| after_purged.max(segment.first_index()))
    }

    /// Whether the log holds an entry of this index.
    pub(crate) fn contains(&self, index: u64) -> bool {
        index >= self.first_index() && index < self.head.next_index() && !self.segments.is_empty()
    }

    /// The segment an index is in, purged or not.
    pub(crate) fn segment_of(&self, index: u64) -> Option<usize> {
        let at = self.segments.partition_point(|segment| segment.first_index() <= index).checked_sub(1)?;
        (index <= self.segments[at].last.index).then_some(at)
    }

    /// Whether the segment of the entry at `index` goes on behind it.
    pub(crate) fn is_inside(&self, index: u64) -> bool {
        self.segment_of(index).is_some_and(|at| index < self.segments[at].last.index)
    }

    /// The log id of the entry at `index`, if the log holds it or it is the purge boundary.
    pub(crate) fn log_id_at(&self, index: u64) -> Option<LogId> {
        if let Some(purged) = self.purged.filter(|purged| purged.index == index) {
            return Some(purged);
        }
        if !self.contains(index) {
            return None;
        }
        let segment = &self.segments[self.segment_of(index)?];
        segment.term_at(index).map(|term| log_id(term, index))
    }

    /// The last log id of each term between two indexes, both inclusive.
    pub(crate) fn key_log_ids(&self, from: u64, to: u64) -> Vec<LogId> {
        let mut ids: Vec<LogId> = Vec::new();
        for segment in &self.segments {
            for (at, (term, first)) in segment.terms.iter().enumerate() {
                let end = segment.terms.get(at + 1).map_or(segment.last.index, |(_, next)| next - 1);
                if end < from || *first > to {
                    continue;
                }
                if ids.last().is_some_and(|last| last.leader_id.term == *term) {
                    ids.pop();
                }
                ids.push(log_id(*term, end.min(to)));
            }
        }
        ids
    }

    /// Gives a frame its place: in the last segment, or in a new one over `file`. The caller has checked and observed it.
    pub(crate) fn place(&mut self, frame: &Frame, new: Option<(Arc<SegmentFile>, Arc<Base>)>, interval: u64) {
        if let Some((file, base)) = new {
            self.segments.push(Segment::begin(file, base, &frame.header, interval));
            self.roll = false;
            self.roll_due = false;
        }
        if let Some(segment) = self.segments.last_mut() {
            segment.push(&frame.header);
        }
    }

    /// Takes the segments that end at or below `index` out.
    pub(crate) fn take_segments_below(&mut self, index: u64) -> Vec<Segment> {
        let keep = self.segments.partition_point(|segment| segment.last.index <= index);
        let kept = self.segments.split_off(keep);
        let taken = std::mem::replace(&mut self.segments, kept);
        if self.segments.is_empty() {
            self.roll = true;
        }
        taken
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// The membership as of `index`, as far as is known: the last one at or below it, or the oldest known.
    pub(crate) fn membership_at(&self, index: Option<u64>) -> StoredMembership {
        let known = &self.head.memberships;
        let at = known.iter().rev().find(|membership| membership.log_id().map(|id| id.index) <= index);
        at.or(known.first()).cloned().unwrap_or_default()
    }

    /// What a checkpoint says of this log.
    pub(crate) fn capture(&self) -> ReplicaState {
        ReplicaState {
            vote: self.vote.map(Into::into),
            // A commit may outrun the local log's end; what is kept never does (RULES.md J16).
            committed: self.committed.min(self.head.last).map(Into::into),
            purged: self.purged.map(Into::into),
            log_start_offset: self.log_start_offset,
            last: self.head.last.map(Into::into),
            next_offset: self.head.next_offset,
            append_state: self.head.append_state.save().to_vec(),
            memberships: self.head.memberships.iter().filter_map(membership_to_repr).collect(),
            segments: self.segments.iter().map(capture_segment).collect(),
            next_file_no: self.next_file_no,
            roll: self.roll,
            snapshot: self.snapshot.as_ref().map(|snapshot| (snapshot.name.clone(), snapshot.last.into())),
            corrupt: None,
        }
    }

    /// Whether the pieces fit together, as they must after reading them from a disk.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut previous: Option<&Segment> = None;
        for segment in &self.segments {
            let follows = previous.is_none_or(|before| {
                Some(before.last) == segment.previous && before.next_offset == segment.base_offset
            });
            let sound = segment.bytes > 0
                && segment.first_index() <= segment.last.index
                && segment.terms.first().is_some_and(|(_, first)| *first == segment.first_index());
            if !follows || !sound {
                return Err(format!("segment {:?} does not follow the one before", segment.name()));
            }
            previous = Some(segment);
        }
        let end = previous.map_or(self.purged, |last| Some(last.last));
        if end != self.head.last || self.purged > self.head.last {
            return Err(format!("the log's last entry {:?} is not its segments' {end:?}", self.head.last));
        }
        Ok(())
    }
}

fn capture_segment(segment: &Segment) -> SegmentState {
    SegmentState {
        name: segment.name(),
        previous: segment.previous.map(Into::into),
        base_offset: segment.base_offset,
        bytes: segment.bytes,
        last: segment.last.into(),
        next_offset: segment.next_offset,
        terms: segment.terms.clone(),
        max_timestamp: segment.max_timestamp,
    }
}

/// The segment that a checkpoint speaks of.
pub(crate) fn restore_segment(
    state: &SegmentState,
    interval: u64,
    file: impl Fn(SegmentName) -> Arc<SegmentFile>,
) -> Segment {
    Segment {
        file: file(state.name),
        previous: state.previous.map(Into::into),
        base_offset: state.base_offset,
        bytes: state.bytes,
        last: state.last.into(),
        next_offset: state.next_offset,
        terms: state.terms.clone(),
        max_timestamp: state.max_timestamp,
        // It knows what comes from now on; what is there already is indexed when somebody asks for it.
        index: SparseIndex::new(state.bytes, interval),
        base: None,
        // In its file, for whoever asks.
        first_timestamp: None,
        opened: Instant::now(),
    }
}
