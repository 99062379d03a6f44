//! One replica's log: segments, index, tail cache, and the append state that follows from them.
//!
//! Written by [`crate::log_store`] (openraft's side), read by replication, apply and fetch through one reader.

use std::sync::Arc;

use tokio::sync::watch;

use crate::error::ReadError;
use crate::types::{GroupId, LogId, Offset, ReplicaId, Vote};

pub mod frame;

use frame::Frame;

/// One segment, for retention and for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Raft index of its first entry.
    pub first_index: u64,
    /// Raft index of its last entry.
    pub last_index: u64,
    /// The partition's next offset before its first entry.
    pub base_offset: Offset,
    /// The partition's next offset after its last entry.
    pub next_offset: Offset,
    /// Bytes of its frames.
    pub bytes: u64,
    /// Largest record timestamp in it, ms since 1970; -1 if none.
    pub max_timestamp: i64,
}

/// A replica's log. Shared; its methods lock inside and never across an await.
pub struct Log {}

#[allow(unused_variables)]
impl Log {
    /// Oldest readable offset.
    pub fn log_start_offset(&self) -> Offset {
        unimplemented!()
    }

    /// One past the last committed (known committed *and* applied) offset.
    pub fn high_watermark(&self) -> Offset {
        unimplemented!()
    }

    /// One past the last appended offset.
    pub fn log_end_offset(&self) -> Offset {
        unimplemented!()
    }

    /// Follows the high watermark; it never goes back.
    pub fn watch_high_watermark(&self) -> watch::Receiver<Offset> {
        unimplemented!()
    }

    /// `Records` frames from the one that holds `from`, in order, up to but not including `limit` (usually the high
    /// watermark), until `bytes_max` is reached; at least one frame if `from < limit`. `from == limit` gives none. The
    /// first frame may begin before `from`.
    ///
    /// Errors: `OutOfRange` below the log start or above `limit`; `Corrupt` if the stored bytes are rotten.
    pub async fn read(&self, from: Offset, limit: Offset, bytes_max: usize) -> Result<Vec<Frame>, ReadError> {
        unimplemented!()
    }

    /// The first offset below `limit` whose frame's max timestamp is at or after `timestamp` (ms); `None` if there is none.
    /// (The exact record is found by the caller inside the batch.)
    pub async fn offset_for_timestamp(&self, timestamp: i64, limit: Offset) -> Result<Option<Offset>, ReadError> {
        unimplemented!()
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        unimplemented!()
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        unimplemented!()
    }

    /// The replica.
    pub fn replica(&self) -> ReplicaId {
        unimplemented!()
    }

    /// The last entry, flushed or not; the purge boundary if there is none.
    pub fn last_log_id(&self) -> Option<LogId> {
        unimplemented!()
    }

    /// The last entry that is gone; `None` if nothing was purged.
    pub fn purged_log_id(&self) -> Option<LogId> {
        unimplemented!()
    }

    /// The vote as last saved.
    pub fn vote(&self) -> Option<Vote> {
        unimplemented!()
    }

    /// The segments, oldest first; the last one may still grow. What retention decides by.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        unimplemented!()
    }

    /// Where the next boundary snapshot is to be taken: `first_index` is the first index to keep, rounded down to a
    /// segment's start, never above what is applied. Follow it by openraft's `trigger().snapshot()`.
    pub fn set_snapshot_boundary(&self, first_index: u64) {
        unimplemented!()
    }
}

/// For reading outside the group's own tasks.
pub type SharedLog = Arc<Log>;
