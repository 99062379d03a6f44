//! openraft's log storage over a [`Log`]: a thin translation, entries in, frames out.
//!
//! Entries are moved in and never cloned; what is read back shares its payload with the tail cache or with the chunk it was
//! read in. It decides nothing: that is the log's business, at its one serial point (RULES.md O2).

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::Arc;

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use openraft::EntryPayload;
use openraft::errors::LeaderChanged;
use openraft::storage::{
    IOFlushed, LeaderBoundedStreamError, LeaderBoundedStreamResult, LogState, RaftLogReader, RaftLogStorage,
};
use openraft::type_config::alias::LeaderIdOf;

use crate::error::ReadError;
use crate::log::Log;
use crate::log::append::NewEntry;
use crate::log::entry::from_frame;
use crate::log::frame::Frame;
use crate::types::{Entry, EntryData, LogId, TypeConfig, Vote};

/// Most bytes that are read at a time, whatever the configuration says, beside the frame that reaches the limit: with that one they
/// must fit into one request, or a follower that is further behind would never get any.
pub(crate) const READ_BYTES_MAX: usize = 3 << 20;

/// What is read after a single entry, and how much more each time that reading goes on.
const LITTLE_BYTES: usize = 16 << 10;
const GROWTH: usize = 8;

/// openraft's way to one replica's log. One per group; clones read.
#[derive(Clone)]
pub struct LogStore {
    log: Arc<Log>,
    /// Where [`RaftLogReader::limited_get_log_entries`] left off: a reader that goes on there replicates, any other looks for the
    /// place where a follower's log leaves the leader's.
    next: Option<Next>,
}

/// Where reading goes on, and how much of it may be read there.
#[derive(Clone, Copy)]
struct Next {
    index: u64,
    bytes_max: usize,
}

impl LogStore {
    /// Over a recovered log ([`crate::store::Replica::log`]).
    pub fn new(log: Arc<Log>) -> Self {
        Self { log, next: None }
    }

    /// The log itself.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// The log id of an entry that is applied here and cannot be read, because its segment is rotten.
    fn known_id(&self, index: u64) -> Option<LogId> {
        let applied = self.log.applied().is_some_and(|applied| index <= applied.index);
        (applied && self.log.is_rotten()).then(|| self.log.log_id_at(index)).flatten()
    }

    /// Whether this replica has voted otherwise since it led: what it read to replicate goes nowhere any more.
    fn is_deposed(&self) -> bool {
        let leads = |vote: Vote| vote.committed && vote.leader_id.voted_for == self.log.replica();
        self.log.vote().is_some_and(|vote| !leads(vote))
    }

    fn bytes_max(&self) -> usize {
        self.log.context().config.append_bytes_max.clamp(1, READ_BYTES_MAX)
    }

    /// Entries in chunks of bounded size, up to where the log ends. Asked for beyond that, or below where it begins, it gives
    /// what there is; a hole is an error.
    fn chunks<RB: RangeBounds<u64>>(
        &self,
        range: RB,
    ) -> impl Stream<Item = Result<Vec<Entry>, io::Error>> + Send + use<RB> {
        let (log, bytes_max) = (self.log.clone(), self.bytes_max());
        let (from, to) = bounds(range);
        stream::try_unfold(from.max(log.first_index()), move |from| {
            let log = log.clone();
            async move {
                let frames = log.read_mended(from, to, bytes_max).await.map_err(read_error)?;
                let Some(last) = frames.last() else { return Ok(None) };
                let next = last.header.index + 1;
                let entries: Result<Vec<Entry>, io::Error> = frames.into_iter().map(entry).collect();
                Ok(Some((entries?, next)))
            }
        })
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn leader_bounded_stream<RB>(
        &mut self,
        leader: LeaderIdOf<TypeConfig>,
        range: RB,
    ) -> impl Stream<Item = LeaderBoundedStreamResult<TypeConfig>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let log = self.log.clone();
        let changed = move || match log.vote() {
            Some(vote) if vote.leader_id == leader && vote.committed => None,
            vote => Some(LeaderBoundedStreamError::from(LeaderChanged::new(leader, vote))),
        };
        if let Some(error) = changed() {
            return stream::iter([Err(error)]).left_stream();
        }
        // Asked again after each chunk was read: what was truncated meanwhile must not be sent under this leader's name.
        let checked = self.chunks(range).map(move |chunk| match (changed(), chunk) {
            (Some(error), _) => vec![Err(error)],
            (None, Ok(entries)) => entries.into_iter().map(Ok).collect(),
            (None, Err(error)) => vec![Err(LeaderBoundedStreamError::IoError(error))],
        });
        stop_at_error(checked.flat_map(stream::iter)).right_stream()
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        self.chunks(range).map_ok(|entries| stream::iter(entries.into_iter().map(Ok))).try_flatten()
    }

    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let one = match (range.start_bound(), range.end_bound()) {
            (Bound::Included(from), Bound::Included(to)) if from == to => Some(*from),
            _ => None,
        };
        let read = self.chunks(range).try_concat().await;
        // In this form openraft asks for an entry only to learn its log id (`RaftLogReaderExt::get_log_id`), first of all when a
        // core starts. Raft's knowledge is enough for that: rot must not keep a replica from voting (RULES.md R7).
        match (one.and_then(|index| self.known_id(index)), read) {
            (Some(id), Err(_)) => Ok(vec![Entry { log_id: id, payload: EntryPayload::Blank }]),
            (_, read) => read,
        }
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.log.durable_state().await?.0)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        // A new leader finds out where each follower stands by bisection over the whole log, with entries from each place it tries. One
        // tells as much as a request full of them, which would be read from disk, sent and thrown away a dozen times for each follower.
        // The last tries follow one another without being sequential reading yet, so it grows step by step.
        let goes_on = self.next.filter(|next| next.index == start);
        let bytes_max = goes_on.map_or(1, |next| next.bytes_max.min(self.bytes_max()));
        let read = self.log.read_mended(start, end, bytes_max).await;
        if self.is_deposed() && !matches!(&read, Ok(frames) if !frames.is_empty()) {
            // Another leader's truncation came between. openraft would end the core at an error; after nothing it sees who leads.
            return Ok(Vec::new());
        }
        let frames = read.map_err(read_error)?;
        let grown = bytes_max.saturating_mul(GROWTH).max(LITTLE_BYTES);
        self.next = frames.last().map(|frame| Next { index: frame.header.index + 1, bytes_max: grown });
        if frames.is_empty() && start < end {
            // openraft would take nothing for a heartbeat and go round in circles.
            let (first, last) = (self.log.first_index(), self.log.last_log_id());
            return Err(io::Error::other(format!("entry {start} is not in the log, {first} to {last:?}")));
        }
        frames.into_iter().map(entry).collect()
    }

    async fn get_key_log_ids(&mut self, range: RangeInclusive<LogId>) -> Result<Vec<LogId>, io::Error> {
        Ok(self.log.key_log_ids(range.start().index, range.end().index))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let (_, last_purged_log_id, last_log_id) = self.log.durable_state().await?;
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        Self::new(self.log.clone())
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.log.save_vote(*vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.log.set_committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.log.committed_log_id())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries = entries.into_iter().map(new_entry).collect();
        self.log.append(entries, Box::new(move |result| callback.io_completed(result))).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.log.truncate_after(last_log_id).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.log.purge(log_id).await
    }
}

fn new_entry(entry: Entry) -> NewEntry {
    let id = entry.log_id;
    match entry.payload {
        EntryPayload::Blank => NewEntry::Blank(id),
        EntryPayload::Membership(membership) => NewEntry::Membership(id, membership),
        EntryPayload::Normal(EntryData::Proposed(proposal)) => NewEntry::Proposed(id, proposal),
        EntryPayload::Normal(EntryData::Stored(frame)) => NewEntry::Stored(id, frame),
    }
}

/// The entry that a frame holds, as openraft knows it.
pub(crate) fn entry(frame: Frame) -> Result<Entry, io::Error> {
    from_frame(frame).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn read_error(error: ReadError) -> io::Error {
    match error {
        ReadError::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

/// First index and the index behind the last.
fn bounds(range: impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

/// The stream up to and including its first error.
fn stop_at_error<T, E>(items: impl Stream<Item = Result<T, E>> + Send) -> impl Stream<Item = Result<T, E>> + Send
where
    T: Send,
    E: Send,
{
    items.scan(false, |failed, item| {
        let next = (!*failed).then_some(item);
        *failed |= next.as_ref().is_some_and(Result::is_err);
        std::future::ready(next)
    })
}
