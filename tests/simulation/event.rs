//! What is told to the invariants: every fact that a broker shows or a client learns.

use pontoon::record_batch::RecordBatch;
use pontoon_raft::log::frame::{Frame, FrameKind};

use crate::trace::digest;

/// One attempt at writing one batch: it stands in the value of every record of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attempt {
    pub(crate) partition: u32,
    /// The client's own number of the producer.
    pub(crate) producer: u32,
    /// Number of the batch, per producer, from 0.
    pub(crate) batch: u32,
    /// Number of the attempt, per batch, from 1.
    pub(crate) attempt: u32,
}

impl Attempt {
    /// The value of the batch's record number `record`.
    pub(crate) fn value(&self, record: u32, filler: usize) -> String {
        let Self { partition, producer, batch, attempt } = self;
        format!("{partition}.{producer}.{batch}.{attempt}.{record} {}", "~".repeat(filler))
    }

    /// What a value says of itself: the attempt, and which record of it.
    pub(crate) fn of_value(value: &[u8]) -> Option<(Self, u32)> {
        let text = std::str::from_utf8(value).ok()?;
        let mut numbers = text.split(' ').next()?.split('.').map(|number| number.parse::<u32>().ok());
        let mut next = || numbers.next().flatten();
        let attempt = Self { partition: next()?, producer: next()?, batch: next()?, attempt: next()? };
        Some((attempt, next()?))
    }
}

/// An entry of a group's log, as some replica shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fact {
    pub(crate) term: u64,
    pub(crate) kind: FrameKind,
    pub(crate) base_offset: u64,
    pub(crate) span: u32,
    pub(crate) digest: u32,
    /// Whose batch it is; `None`: not a client's.
    pub(crate) attempt: Option<Attempt>,
}

impl Fact {
    pub(crate) fn of(frame: &Frame) -> Self {
        let header = &frame.header;
        Self {
            term: header.term,
            kind: header.kind,
            base_offset: header.base_offset,
            span: header.offset_span,
            digest: digest([&frame.payload[..]]),
            attempt: (header.kind == FrameKind::Records).then(|| attempt_of(frame)).flatten(),
        }
    }
}

/// Whose batch a frame holds. The catalog's frames hold none.
fn attempt_of(frame: &Frame) -> Option<Attempt> {
    let batch = RecordBatch::stored(frame.payload.clone()).ok()?;
    let first = batch.records(1 << 20).ok()?.next()?.ok()?;
    Attempt::of_value(&first.value?).map(|(attempt, _)| attempt)
}

/// A replica of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Replica {
    pub(crate) broker: u32,
    /// Which life of the broker's process.
    pub(crate) life: u64,
    pub(crate) group: u64,
    pub(crate) id: u64,
}

/// Where a client was told that its batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) base_offset: u64,
    pub(crate) last_offset: u64,
    pub(crate) epoch: u64,
    /// An earlier attempt had written it.
    pub(crate) duplicate: bool,
}

/// Something that somebody showed or learned.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event<'a> {
    /// A replica knows a leader.
    Leader { by: Replica, term: u64, leader: u64 },
    /// A replica's log holds an entry, committed or not. `previous` is the term of the one before it, where both were read together.
    Stored { by: Replica, index: u64, previous: Option<u64>, fact: Fact },
    /// A replica shows an entry that it has applied.
    Applied { by: Replica, index: u64, fact: Fact },
    /// The next entry of a group's committed log: each once, in order, whoever showed it first.
    Committed { group: u64, index: u64, fact: Fact, frame: &'a Frame },
    /// Digest of a replica's append state, as of the last entry of its log.
    Table { by: Replica, index: u64, term: u64, digest: u32 },
    /// A replica's log begins at this index, and its records, so it says, at this offset.
    Start { by: Replica, first: u64, log_start: u64 },
    /// A replica of a group is asked to keep all entries from this index on; those before may go.
    Boundary { group: u64, index: u64 },
    /// A replica's high watermark.
    Watermark { by: Replica, high_watermark: u64 },
    /// A replica's vote, as saved: term, for whom, and whether that one leads.
    Vote { by: Replica, vote: (u64, u64, bool) },
    /// A broker says that a replica's files are corrupt.
    Quarantined { by: Replica },
    /// A client was told that its batch is durable.
    Acknowledged { attempt: Attempt, at: Place },
    /// A client was told that its attempt has not happened and never will.
    Refused { attempt: Attempt },
    /// A client has read a record.
    Read { partition: u32, offset: u64, attempt: Attempt, record: u32 },
    /// A read from `from` on was answered with the records at these offsets, by a broker whose log started at `log_start` then.
    Answered { partition: u32, from: u64, log_start: u64, offsets: &'a [u64] },
    /// The final read of a partition begins: what was read before does not count.
    ReadingAll { partition: u32 },
    /// A client was told, linearizably, where the log ends; before it asked, it knew of acknowledged records up to `known`.
    Tail { partition: u32, end: u64, known: u64 },
    /// All has been read from the oldest readable offset on.
    ReadAll { partition: u32, log_start: u64, end: u64 },
}
