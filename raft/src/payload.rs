//! What the raft crate must know of its payload (RULES.md O10): two traits, implemented by `partition` and `catalog`.
//!
//! [`AppendState`] is what follows from the *log prefix*: it is asked at `append`, the one serial point, and must give
//! the same answers on every replica. [`Application`] is what follows from the *committed* log.

use std::io;

use bytes::Bytes;

use crate::log::frame::{Frame, FrameHeader};
use crate::types::LogId;

/// Where the entry that is being decided about will stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendPosition {
    /// The partition's next offset: what an accepted payload gets as base offset.
    pub next_offset: u64,
    /// Raft index of the entry.
    pub index: u64,
    /// Raft term of the entry: the leader epoch.
    pub term: u64,
}

/// What `append` does with a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Store it. The payload is stamped (base offset and leader epoch written into it).
    Accept {
        /// The stamped payload.
        payload: Bytes,
        /// How many offsets it takes.
        offset_span: u32,
        /// How many records it holds.
        record_count: u32,
        /// Largest record timestamp in ms, -1 if none.
        max_timestamp: i64,
    },
    /// Store this verdict instead. It takes no offsets.
    Void {
        /// The verdict, in the application's own encoding.
        verdict: Bytes,
    },
}

/// State that is a pure function of the log prefix: for a partition, its producers (RULES.md O1).
///
/// The log owns it and calls it under its own lock, so it must be quick and must not block.
pub trait AppendState: Send + 'static {
    /// Decides about a leader's own proposal. Reads the state, changes nothing: [`Self::observe`] follows at once
    /// with the resulting frame.
    fn decide(&self, payload: Bytes, at: AppendPosition) -> Decision;

    /// Takes note of a frame that has been appended, on leader and followers alike, and again during recovery. Only
    /// `Records` and `Void` frames are shown. `prefix` holds the payload's first bytes, at least
    /// [`Application::observe_prefix_bytes`] of them or the whole payload.
    fn observe(&mut self, header: &FrameHeader, prefix: &[u8]);

    /// Below this offset nothing is to be read any more, as far as entries up to and including Raft index `upto` say
    /// (RULES.md O7): retention, and whoever else moves the log start, goes through the log. Never falls as `upto` rises.
    fn log_start(&self, upto: u64) -> u64 {
        let _ = upto;
        0
    }

    /// By when everything below `offset` had been appended, in ms since 1970 by a leader's clock, if the log says so.
    fn appended_by(&self, offset: u64) -> Option<i64> {
        let _ = offset;
        None
    }

    /// Raft index of the oldest entry by which something is remembered here that an entry of the application's can tell it to
    /// forget: a partition's idlest producer. `None`: there is nothing of the kind.
    fn oldest_remembered(&self) -> Option<u64> {
        None
    }

    /// The state as bytes, for checkpoints and snapshots; [`Application::append_state`] reads them back.
    fn save(&self) -> Bytes;
}

/// Where a group's snapshots are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotAt {
    /// At the retention boundary: the log *is* the data (partitions).
    Boundary,
    /// At the last applied entry: the log is a means, the applied state the data (catalog).
    Applied,
}

/// One group's payload, seen from its log and its state machine.
///
/// Calls come from one task at a time. Implementations use interior locks and never block for long.
pub trait Application: Send + Sync + 'static {
    /// An [`AppendState`] as of `saved` (from [`AppendState::save`]), or an empty one.
    fn append_state(&self, saved: Option<&[u8]>) -> io::Result<Box<dyn AppendState>>;

    /// How many bytes of a payload [`AppendState::observe`] must see (for a record batch: its 61-byte header).
    fn observe_prefix_bytes(&self) -> usize;

    /// If this payload, proposed or stored as void, moves the log start: to which offset. The entry then opens a segment of its
    /// own where that lets the ones before it go.
    fn moves_log_start(&self, payload: &[u8]) -> Option<u64> {
        let _ = payload;
        None
    }

    /// Where this application's snapshots are taken.
    fn snapshot_at(&self) -> SnapshotAt;

    /// The last log id that the materialised state reflects, if it survives restarts by itself. `None`: rebuild from
    /// snapshot and log. Never ahead of the recovered log: the group calls [`Self::discard`] first if it is.
    fn applied(&self) -> Option<LogId>;

    /// Throws the materialised state away; [`Self::applied`] is `None` afterwards.
    fn discard(&self) -> io::Result<()>;

    /// Applies one committed frame (`Records` only; Raft's own and void frames are the crate's business) and returns the
    /// answer for the proposer, empty if there is none.
    fn apply(&self, log_id: LogId, frame: &Frame) -> Bytes;

    /// The applied state as bytes ([`SnapshotAt::Applied`] only), reflecting exactly [`Self::apply`]'s calls so far.
    fn snapshot(&self) -> io::Result<Bytes>;

    /// Replaces the applied state by a snapshot's ([`SnapshotAt::Applied`] only).
    fn restore(&self, log_id: Option<LogId>, snapshot: &[u8]) -> io::Result<()>;
}
