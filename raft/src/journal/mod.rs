//! The journal: one append-only stream for all groups of a data directory, one fdatasync per round (RULES.md J).
//!
//! [`Journal::submit`] queues an operation; the writer task takes whatever gathered while the last sync ran, writes it
//! as one round, syncs once, and completes every waiter in LSN order. No timer, no linger.
//! The journal knows no openraft and never looks into a frame; what the operations mean is the log's business.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::error::Stopped;
use crate::types::{GroupId, LogId, ReplicaId, Vote};

/// A place in the journal's stream; rises by one per operation, never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

/// Names a segment file of a replica; never reused (RULES.md J10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct SegmentName {
    /// Raft index of its first frame.
    pub first_index: u64,
    /// Rises by one with each file of the replica.
    pub file_no: u64,
}

/// Where frames stand in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Extent {
    /// The file.
    pub segment: SegmentName,
    /// Position of the first byte.
    pub position: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// What a large append is written to directly (RULES.md J6).
pub trait ExtentTarget: Send + Sync + 'static {
    /// Writes `parts` at `position` and makes them, the file and its directory entry durable.
    fn write_durably(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<'_, std::io::Result<()>>;
}

/// One operation of one group replica.
pub enum Op {
    /// The replica comes into being.
    Create,
    /// Frames, in index order, that will stand at `extent`.
    Append {
        /// Where they stand.
        extent: Extent,
        /// The frames' bytes: headers and payloads, in order.
        parts: Vec<Bytes>,
        /// Log id of the first frame.
        first: LogId,
        /// Log id of the last frame.
        last: LogId,
        /// Written to directly if the append is large.
        target: Arc<dyn ExtentTarget>,
    },
    /// The log ends after this entry (`None`: it is empty).
    Truncate(Option<LogId>),
    /// Raft's vote.
    Vote(Vote),
    /// A snapshot was installed: everything up to `boundary` is replaced by the snapshot file of that name.
    Installed {
        /// Last log id that the snapshot covers.
        boundary: LogId,
        /// Next offset at the boundary.
        next_offset: u64,
        /// File name within the replica's folder; already durable.
        snapshot: String,
    },
    /// Entries up to and including this one are gone.
    Purge(LogId),
    /// Known to be committed. Rides along with the next round, needs no sync of its own (RULES.md J16).
    Commit(LogId),
    /// The replica is deleted.
    Delete,
}

/// An operation read back from the journal, in LSN order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Its place.
    pub lsn: Lsn,
    /// Its group.
    pub group: GroupId,
    /// Its replica.
    pub replica: ReplicaId,
    /// What it says.
    pub op: RecoveredOp,
}

/// [`Op`], read back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are Op's.
pub enum RecoveredOp {
    Create,
    Append {
        extent: Extent,
        frames: Bytes,
        first: LogId,
        last: LogId,
    },
    /// The frames stand in the segment already, synced before this record was written; `crc` is their CRC-32C.
    Bypass {
        extent: Extent,
        crc: u32,
        first: LogId,
        last: LogId,
    },
    Truncate(Option<LogId>),
    Vote(Vote),
    Installed {
        boundary: LogId,
        next_offset: u64,
        snapshot: String,
    },
    Purge(LogId),
    Commit(LogId),
    Delete,
}

/// Called once, when the operation is durable (with its LSN) or will never be.
pub type Done = Box<dyn FnOnce(Result<Lsn, Stopped>) + Send>;

/// Where a journal lives and who it belongs to.
#[derive(Clone, Debug)]
pub struct JournalIdentity {
    /// The `journal` folder of the data directory.
    pub dir: PathBuf,
    /// The data directory's cluster (0: none yet), stamped into file headers.
    pub cluster: u128,
    /// The data directory's id, stamped into file headers.
    pub directory: u128,
    /// Rises at every opening of the directory (RULES.md J1).
    pub epoch: u64,
}
