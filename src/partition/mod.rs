//! One partition on this broker: produce, fetch and offsets over its Raft group.
//!
//! It knows batches and producers; it knows no HTTP, no Kafka, no catalog and no other partition. What is decided at append
//! is in `append_state` (`producers` and `retention`, with `proposal` and `verdict`; `expiry` is when producers go), seen by the raft crate through
//! [`PartitionApplication`]; `append` waits for the ack level, `fetch` reads. Both go through [`ReplicatedLog`] and hold no
//! state of their own. [`aside`]: where large batches are checked and read.

mod append;
mod append_state;
mod application;
pub mod aside;
pub mod expiry;
mod fetch;
mod instruments;
mod observe;
pub mod producers;
mod proposal;
mod replicated_log;
pub mod retention;
pub mod verdict;
mod wait;

#[cfg(test)]
mod fake_log;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pontoon_raft::error::ProposeError;
use pontoon_raft::raft_group::RaftGroup;
use pontoon_raft::types::{BrokerId, Offset};
use tokio::time::Instant;

pub use append::UnacknowledgedRoom;
pub use append_state::PartitionState;
pub use application::PartitionApplication;
pub use instruments::PartitionInstruments;
pub use observe::Follow;
pub use replicated_log::ReplicatedLog;

use crate::error::{Code, Error, Result};
use crate::record_batch::{BatchLimits, Compression};

/// Why a leader does not try what takes a majority.
const MAJORITY_DEAD: &str = "most of its replicas are on brokers that are dead";

/// When a produce is acknowledged (DESIGN.md §6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// A majority has it behind an fsync.
    #[default]
    All,
    /// Every replica has it behind an fsync.
    Every,
    /// The leader has it behind an fsync.
    Leader,
    /// Received.
    None,
}

impl Acks {
    /// The stronger of the two.
    pub fn at_least(self, floor: Self) -> Self {
        let strength = |acks| match acks {
            Self::None => 0,
            Self::Leader => 1,
            Self::All => 2,
            Self::Every => 3,
        };
        if strength(self) < strength(floor) { floor } else { self }
    }
}

/// What a produce was answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produced {
    /// Offset of the batch's first record.
    pub base_offset: Offset,
    /// Offset of its last record.
    pub last_offset: Offset,
    /// The leader epoch (term) in which the records stand.
    pub leader_epoch: u64,
    /// These records had been written before (same producer and sequence).
    pub duplicate: bool,
    /// The time that the leader gave to all its records, ms since 1970, where it does.
    pub append_time: Option<i64>,
}

/// Where a fetch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchFrom {
    /// At this offset.
    Offset(Offset),
    /// At the log start.
    Earliest,
    /// At the high watermark.
    Latest,
    /// At the first record whose timestamp is at or after this, in ms.
    Timestamp(i64),
}

/// What a fetch must not miss (RULES.md R2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Committed records; an answer that claims an end may be a moment old.
    #[default]
    Committed,
    /// An answer that claims an end covers everything acknowledged before the request.
    Linearizable,
}

/// A fetch.
#[derive(Clone, Copy, Debug)]
pub struct Fetch {
    /// Where it begins.
    pub from: FetchFrom,
    /// Stop after about this many bytes; at least one batch is returned if there is one.
    pub bytes_max: usize,
    /// Wait this long for records if there are none.
    pub wait: Duration,
    /// See [`Consistency`].
    pub consistency: Consistency,
}

/// What a fetch found: whole batches, the first may begin before the offset asked for.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// RecordBatch v2, as produced, base offset and leader epoch stamped, in order.
    pub batches: Vec<Bytes>,
    /// The offset the fetch was resolved to begin at.
    pub start_offset: Offset,
    /// Where the next fetch begins if all batches are consumed.
    pub next_offset: Offset,
    /// Oldest readable offset.
    pub log_start_offset: Offset,
    /// One past the last committed.
    pub high_watermark: Offset,
    /// The leader epoch of the answering leader.
    pub leader_epoch: u64,
}

/// A partition's offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// Oldest readable.
    pub log_start_offset: Offset,
    /// One past the last committed.
    pub high_watermark: Offset,
    /// One past the last appended.
    pub log_end_offset: Offset,
}

/// What a topic's configuration says of its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Limits on batches.
    pub limits: BatchLimits,
    /// `acks.floor`: a producer that asks for less gets this.
    pub acks_floor: Acks,
    /// Whether records have the time of their append (`message.timestamp.type`).
    pub log_append_time: bool,
    /// What a client's batch is compressed with before it is proposed (`compression.type`); `None`: as it came.
    pub stored_as: Option<Compression>,
}

/// A record, as it is looked for by its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedRecord {
    /// Where it is.
    pub offset: Offset,
    /// Its timestamp, in ms.
    pub timestamp: i64,
    /// The leader epoch in which it was appended, as its batch says it.
    pub leader_epoch: i32,
}

/// What a partition is told by the broker it is on.
#[derive(Clone)]
pub struct PartitionOptions {
    /// For messages: `topic/partition`.
    pub name: String,
    /// What its topic's configuration says.
    pub settings: Settings,
    /// Whether the data directory has more than its reserve free; if not, produce is refused (RULES.md J18).
    pub storage_has_room: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Whether the failure detector holds a broker alive; this broker always is.
    pub broker_alive: Arc<dyn Fn(BrokerId) -> bool + Send + Sync>,
    /// What it counts and times with: its broker's.
    pub instruments: Arc<PartitionInstruments>,
    /// The clock for records that get the time of their append, in ms since 1970.
    pub now: fn() -> i64,
    /// For the `acks=none` batches of all partitions of its broker together.
    pub unacknowledged: UnacknowledgedRoom,
}

/// A partition whose replica is on this broker.
pub struct Partition<L: ReplicatedLog = RaftGroup> {
    log: L,
    options: PartitionOptions,
    /// Held by a batch until its proposal has begun. Who waits has it in the order of the calls, and is not overtaken once it is theirs.
    proposing: tokio::sync::Mutex<()>,
    /// For this partition's `acks=none` batches.
    unacknowledged: UnacknowledgedRoom,
    /// When it was last said that records cannot be read.
    said_unreadable: Mutex<Option<Instant>>,
}

/// Clients ask again and again for what is rotten; once in so long is enough for whoever reads the log.
const UNREADABLE_AGAIN: Duration = Duration::from_secs(60);

impl<L: ReplicatedLog> Partition<L> {
    /// Over its group, whose application is a [`PartitionApplication`].
    pub fn new(group: L, options: PartitionOptions) -> Arc<Self> {
        let unacknowledged = UnacknowledgedRoom::new(append::UNACKNOWLEDGED_BYTES_MAX);
        let (proposing, said_unreadable) = (tokio::sync::Mutex::new(()), Mutex::new(None));
        Arc::new(Self { log: group, options, proposing, unacknowledged, said_unreadable })
    }

    /// Says that records cannot be read, unless that was said a moment ago. Returns whether it did.
    fn say_unreadable(&self, error: &dyn fmt::Display) -> bool {
        let now = Instant::now();
        let mut said = self.said_unreadable.lock();
        let due = said.is_none_or(|at| now.duration_since(at) >= UNREADABLE_AGAIN);
        if due {
            *said = Some(now);
            tracing::error!(partition = %self.options.name, %error, "records cannot be read");
        }
        due
    }

    /// What a batch for it may have: the topic's `max.message.bytes` among them.
    pub fn limits(&self) -> &BatchLimits {
        &self.options.settings.limits
    }

    /// What clients' batches are to be compressed with, whatever they came with; `None`: nothing else. Whoever checks them sees to it
    /// ([`aside::check_batch`]), for a batch that is to be proposed waits for nothing any more.
    pub fn stored_as(&self) -> Option<Compression> {
        self.options.settings.stored_as
    }

    /// Whether a majority of its replicas may be alive, as far as this broker knows. A leader without is perhaps a leader no more.
    pub fn may_have_majority(&self) -> bool {
        self.log.may_have_majority()
    }

    /// The term in which this replica leads, able to answer reads. `NOT_LEADER`, `NO_LEADER`, `NOT_READY` otherwise.
    fn leading(&self) -> Result<u64> {
        let status = self.log.status();
        if let Some(why) = status.stopped {
            return Err(self.error(Code::NotReady, format_args!("its replica here has stopped: {why}")));
        }
        match status.leader {
            _ if status.leading => Ok(status.term),
            Some(leader) if leader.replica != self.log.replica() => {
                Err(self.error(Code::NotLeader, format_args!("broker {} leads it", leader.broker)))
            }
            Some(_) => Err(self.error(Code::NoLeader, "this broker was just elected and is taking over")),
            None => Err(self.error(Code::NoLeader, "it has no leader at the moment")),
        }
    }

    /// What a [`ProposeError`] means to a producer; a reader's errors have no outcome but `none`.
    fn propose_error(&self, error: ProposeError) -> Error {
        match error {
            ProposeError::NotLeader { leader: Some((_, broker)) } => {
                self.error(Code::NotLeader, format_args!("broker {broker} leads it"))
            }
            ProposeError::NotLeader { leader: None } => self.error(Code::NotLeader, "this broker does not lead it"),
            ProposeError::Unknown(why) => self.error(Code::OutcomeUnknown, why),
            ProposeError::Stopped { why, .. } => {
                self.error(Code::NotReady, format_args!("its replica here has stopped: {why}"))
            }
        }
    }

    fn error(&self, code: Code, what: impl fmt::Display) -> Error {
        Error::new(code, format!("{}: {what}", self.options.name))
    }
}
