//! One partition on this broker: produce, fetch and offsets over its Raft group.
//!
//! It knows batches and producers; it knows no HTTP, no Kafka, no catalog and no other partition. Its
//! [`pontoon_raft::payload::AppendState`] (the producer table) is in `producers`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pontoon_raft::raft_group::RaftGroup;
use pontoon_raft::types::Offset;

use crate::error::Result;

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

/// A partition whose replica is on this broker.
#[derive(Clone)]
pub struct Partition {}

#[allow(unused_variables)]
impl Partition {
    /// Over its group.
    pub fn new(group: RaftGroup) -> Arc<Self> {
        unimplemented!()
    }

    /// Appends one batch, atomically. `batch` is one RecordBatch v2 that [`crate::record_batch`] has checked; producer id,
    /// epoch and sequence stand in it. `if_match`: only if that is the log end, decided at append (RULES.md O4).
    ///
    /// Errors: `NOT_LEADER` (nothing written), `OFFSET_MISMATCH`, `OUT_OF_ORDER_SEQUENCE`, `PRODUCER_FENCED`,
    /// `UNKNOWN_PRODUCER`, `STORAGE_FULL`, `NOT_ENOUGH_REPLICAS…`, `OUTCOME_UNKNOWN` at the timeout.
    pub async fn produce(
        &self,
        batch: Bytes,
        acks: Acks,
        if_match: Option<Offset>,
        timeout: Duration,
    ) -> Result<Produced> {
        unimplemented!()
    }

    /// Reads committed batches. Leader only (`NOT_LEADER`). `OFFSET_OUT_OF_RANGE` names log start and high watermark.
    pub async fn fetch(&self, fetch: Fetch) -> Result<Fetched> {
        unimplemented!()
    }

    /// The partition's offsets. Leader only.
    pub async fn offsets(&self, consistency: Consistency) -> Result<Offsets> {
        unimplemented!()
    }

    /// Offset of the first record at or after this time (ms); the high watermark if there is none. Leader only.
    pub async fn offset_for_timestamp(&self, timestamp: i64) -> Result<Offset> {
        unimplemented!()
    }
}
