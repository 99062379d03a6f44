//! What retention asks of a log: how large and how old a segment may become, and which segments may go.
//!
//! Nothing here decides what is retained: where the log starts stands in the log itself (RULES.md O7,
//! [`crate::payload::AppendState::log_start`]). Segments are each replica's own; those wholly below the log start go by a
//! snapshot at the first one that stays ([`crate::raft_group::RaftGroup::trim`]). Beside it, how far behind a reader of the
//! log is, in bytes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Log;
use super::frame::FrameKind;
use super::segment::Segment;
use super::tail::Room;
use crate::error::ReadError;

/// How much of a segment's beginning is read to learn how old it is.
const BEGINNING_BYTES: usize = 4 << 10;

/// Entries that have waited longer than this to be committed wait for somebody.
const COMMIT_WAIT: Duration = Duration::from_millis(500);

/// How old the segment is that appends go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentAge {
    /// Timestamp of its first records, ms since 1970, as their producer gave it. -1: they have none.
    pub first_timestamp: i64,
    /// How long this process has had it.
    pub open_for: Duration,
}

impl Log {
    /// Closes a segment at this size from now on, at most at [`crate::config::RaftConfig::segment_bytes_max`], the default.
    pub fn set_segment_bytes_max(&self, bytes: u64) {
        let most = self.context.config.segment_bytes_max;
        self.segment_bytes_max.store(bytes.clamp(1, most.max(1)), Ordering::Relaxed);
    }

    /// Closes the last segment: the next append opens another.
    pub fn roll(&self) {
        let mut state = self.state.lock();
        state.roll_due = state.segments.last().is_some_and(Segment::has_records);
    }

    /// The age of the last segment, if it holds records and is not about to be closed anyway. Reads its beginning once per
    /// process.
    pub async fn segment_age(&self) -> Result<Option<SegmentAge>, ReadError> {
        let (first_index, last_index, known, opened) = {
            let state = self.state.lock();
            let Some(segment) = state.segments.last().filter(|last| last.has_records() && !state.roll_due) else {
                return Ok(None);
            };
            (segment.first_index(), segment.last.index, segment.first_timestamp, segment.opened)
        };
        let open_for = opened.elapsed();
        if let Some(first_timestamp) = known {
            return Ok(Some(SegmentAge { first_timestamp, open_for }));
        }
        let mut next = first_index;
        while next <= last_index {
            // Entries that are purged may stand at its beginning.
            let frames = self.read_some(next, last_index + 1, Room::any(BEGINNING_BYTES), true).await?;
            let Some(last) = frames.last() else { return Ok(None) };
            next = last.header.index + 1;
            let Some(first) = frames.iter().find(|frame| frame.header.kind == FrameKind::Records) else { continue };
            let first_timestamp = first.header.max_timestamp;
            let mut state = self.state.lock();
            if let Some(segment) = state.segments.last_mut().filter(|segment| segment.first_index() == first_index) {
                segment.first_timestamp = Some(first_timestamp);
            }
            return Ok(Some(SegmentAge { first_timestamp, open_for }));
        }
        Ok(None)
    }

    /// The first Raft index of the first segment that the log start lets stay; `None` if no segment may go.
    pub(crate) fn first_index_to_keep(&self) -> Option<u64> {
        let state = self.state.lock();
        let last = state.segments.len().checked_sub(1)?;
        let stays = |segment: &Segment| segment.next_offset > state.log_start_offset;
        let keep = state.segments.iter().position(stays).unwrap_or(last);
        // Where it begins must be applied: the snapshot that is taken there says what was.
        let applied = |segment: &Segment| segment.previous <= state.applied;
        let keep = (1..=keep).rev().find(|at| applied(&state.segments[*at]))?;
        Some(state.segments[keep].first_index())
    }
}

/// What is asked of a log that replicas catch up with.
impl Log {
    /// About how many bytes stand behind the entry at `index`.
    pub(crate) fn bytes_behind(&self, index: u64) -> u64 {
        let state = self.state.lock();
        let mut bytes = 0;
        for segment in state.segments.iter().rev() {
            if segment.last.index <= index {
                break;
            }
            let (first, entries) = (segment.first_index(), segment.last.index - segment.first_index() + 1);
            // Its entries are about alike; nobody needs to know better.
            let behind = (segment.last.index - index.max(first.saturating_sub(1))).min(entries);
            bytes += (u128::from(segment.bytes) * u128::from(behind) / u128::from(entries)) as u64;
        }
        bytes
    }

    /// Whether entries have been waiting to be committed for longer than a round takes.
    pub(crate) fn commits_wait(&self) -> bool {
        let state = self.state.lock();
        state.head.last > state.committed && state.committed_at.elapsed() > COMMIT_WAIT
    }
}
