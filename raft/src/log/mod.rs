//! One replica's log: segments, index, tail cache, and the append state that follows from them.
//!
//! Written by [`crate::log_store`] (openraft's side), read by replication, apply and fetch through one reader.

use std::sync::Arc;

use tokio::sync::watch;

use crate::error::ReadError;
use crate::types::Offset;

pub mod entry;
pub mod frame;

use frame::Frame;

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

    /// Bytes on disk of all segments.
    pub fn bytes(&self) -> u64 {
        unimplemented!()
    }
}

/// For reading outside the group's own tasks.
pub type SharedLog = Arc<Log>;
