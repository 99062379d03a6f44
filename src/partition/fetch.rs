//! Fetch and offsets: committed records, and answers that claim an end (RULES.md R2).
//!
//! Records below the high watermark need no check. What claims an end (reaches the high watermark, is empty, `latest`, a
//! timestamp after all records, the offsets) is confirmed under [`Consistency::Linearizable`] by one ReadIndex that began after
//! the request came; once confirmed, every later look covers it too. An offset above the high watermark is always
//! confirmed before it is refused: a new leader may not know yet that it is committed, and clients answer 416 by starting
//! over.

use std::time::Duration;

use pontoon_raft::error::{ProposeError, ReadError};
use pontoon_raft::log::frame::Frame;
use pontoon_raft::raft_group::Leader;
use pontoon_raft::types::Offset;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Consistency, Fetch, FetchFrom, Fetched, MAJORITY_DEAD, Offsets, Partition, ReplicatedLog};
use crate::error::{Code, Error, Result};
use crate::record_batch::RecordBatch;

/// How long a leader tries to confirm that it leads. A cut-off one cannot, and its clients should look elsewhere.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

impl<L: ReplicatedLog> Partition<L> {
    /// Reads committed batches. Leader only (`NOT_LEADER`). `OFFSET_OUT_OF_RANGE` names log start and high watermark.
    pub async fn fetch(&self, fetch: Fetch) -> Result<Fetched> {
        let began = Instant::now();
        let deadline = began + fetch.wait;
        let mut waited = false;
        let mut reading = Reading::begin(self, fetch.consistency)?;
        let start = reading.resolve(fetch.from).await?;
        // What names a record must find it; the others mean "from there on", also when retention has moved on.
        let exact = matches!(fetch.from, FetchFrom::Offset(_));
        loop {
            let fetched = reading.fetch(start, exact, fetch.bytes_max).await?;
            let found = !fetched.batches.is_empty();
            if found || !reading.wait(deadline).await? {
                let at_once = (found && !waited || fetch.wait.is_zero()).then(|| began.elapsed());
                self.options.instruments.fetched(at_once);
                return Ok(fetched);
            }
            waited = true;
        }
    }

    /// The partition's offsets. Leader only.
    pub async fn offsets(&self, consistency: Consistency) -> Result<Offsets> {
        let mut reading = Reading::begin(self, consistency)?;
        reading.confirm_if_asked().await?;
        // In this order they are ordered, while all three grow.
        let log_start_offset = self.log.log_start_offset();
        let high_watermark = reading.high_watermark();
        let log_end_offset = self.log.log_end_offset().max(high_watermark);
        Ok(Offsets { log_start_offset, high_watermark, log_end_offset })
    }

    /// Offset of the first record at or after this time (ms); the high watermark if there is none. Leader only.
    /// For a linearizable answer call [`Self::offsets`] so before.
    pub async fn offset_for_timestamp(&self, timestamp: i64) -> Result<Offset> {
        Reading::begin(self, Consistency::Committed)?.resolve(FetchFrom::Timestamp(timestamp)).await
    }
}

/// One request's view: the watches it waits on, and whether it has been confirmed since it came.
struct Reading<'a, L: ReplicatedLog> {
    partition: &'a Partition<L>,
    high_watermark: watch::Receiver<Offset>,
    leader: watch::Receiver<Option<Leader>>,
    epoch: u64,
    /// An answer that claims an end may be given: confirmed, or not asked to be.
    end_may_be_claimed: bool,
    confirmed: bool,
}

impl<'a, L: ReplicatedLog> Reading<'a, L> {
    fn begin(partition: &'a Partition<L>, consistency: Consistency) -> Result<Self> {
        // The watch first: what changes after the look is seen by `wait`.
        let mut leader = partition.log.watch_leader();
        leader.mark_unchanged();
        Ok(Self {
            partition,
            high_watermark: partition.log.watch_high_watermark(),
            leader,
            epoch: partition.leading()?,
            end_may_be_claimed: consistency == Consistency::Committed,
            confirmed: false,
        })
    }

    fn high_watermark(&mut self) -> Offset {
        *self.high_watermark.borrow_and_update()
    }

    /// Confirms leadership, once per request.
    async fn confirm(&mut self) -> Result<()> {
        if self.confirmed {
            return Ok(());
        }
        let partition = self.partition;
        let refused = |why: &str| {
            partition.error(Code::NoLeader, format_args!("this broker could not confirm that it leads: {why}"))
        };
        if !partition.log.may_have_majority() {
            return Err(refused(MAJORITY_DEAD));
        }
        match timeout(CONFIRM_TIMEOUT, partition.log.read_index()).await {
            Ok(Ok(())) => {}
            Ok(Err(ProposeError::Unknown(why))) => return Err(refused(&why)),
            Ok(Err(error)) => return Err(partition.propose_error(error)),
            Err(_) => return Err(refused("no majority answered")),
        }
        self.confirmed = true;
        self.end_may_be_claimed = true;
        Ok(())
    }

    async fn confirm_if_asked(&mut self) -> Result<()> {
        if self.end_may_be_claimed { Ok(()) } else { self.confirm().await }
    }

    async fn resolve(&mut self, from: FetchFrom) -> Result<Offset> {
        match from {
            FetchFrom::Offset(offset) => Ok(offset),
            FetchFrom::Earliest => Ok(self.partition.log.log_start_offset()),
            FetchFrom::Latest => {
                self.confirm_if_asked().await?;
                Ok(self.high_watermark())
            }
            FetchFrom::Timestamp(timestamp) => self.resolve_timestamp(timestamp).await,
        }
    }

    /// The first record at or after `timestamp`; the high watermark, confirmed, if there is none.
    async fn resolve_timestamp(&mut self, timestamp: i64) -> Result<Offset> {
        let mut from = Offset(0);
        loop {
            let limit = self.high_watermark();
            let log = &self.partition.log;
            from = from.max(log.log_start_offset());
            let found = log.offset_for_timestamp(timestamp, from, limit).await;
            let Some(at) = found.map_err(|error| self.read_error(error))? else {
                if self.end_may_be_claimed {
                    return Ok(limit);
                }
                self.confirm().await?;
                continue;
            };
            // The batch that holds the log start begins below it.
            match log.read(at.max(from), limit, 1).await {
                Ok(frames) => match self.search_batch(frames.into_iter().next(), timestamp, from)? {
                    Ok(offset) => return Ok(offset),
                    Err(next) => from = next,
                },
                // Retention took it between the two looks; the next finds a later one.
                Err(ReadError::OutOfRange { .. }) if log.log_start_offset() > at.max(from) => {}
                Err(error) => return Err(self.read_error(error)),
            }
        }
    }

    /// The exact record, at or behind `from`, in the batch whose max timestamp is at or after `timestamp`. `Err`: the record
    /// that made it so lies before `from`, or there is none; where the next batch begins.
    fn search_batch(&self, frame: Option<Frame>, timestamp: i64, from: Offset) -> Result<Result<Offset, Offset>> {
        let unreadable = |why: &dyn std::fmt::Display| self.partition.error(Code::CorruptLog, why);
        let frame = frame.ok_or_else(|| unreadable(&"a batch that the time index names is not there"))?;
        let limit = self.partition.options.settings.limits.decompressed_bytes_max;
        let batch = RecordBatch::stored(frame.payload).map_err(|error| unreadable(&error))?;
        for record in batch.records(limit).map_err(|error| unreadable(&error))? {
            let record = record.map_err(|error| unreadable(&error))?;
            if record.timestamp >= timestamp && record.offset >= from.0 {
                return Ok(Ok(Offset(record.offset)));
            }
        }
        // 0 is also said of records that have no timestamps.
        if frame.header.base_offset < from.0 || batch.header().max_timestamp == 0 {
            return Ok(Err(Offset(frame.header.next_offset())));
        }
        Err(unreadable(&format_args!(
            "the batch at {} has no record at or after {timestamp}",
            frame.header.base_offset
        )))
    }

    /// The batches from `start` on, perhaps none. `exact`: refuse what is below the log start, do not begin there.
    async fn fetch(&mut self, start: Offset, exact: bool, bytes_max: usize) -> Result<Fetched> {
        loop {
            let high_watermark = self.high_watermark();
            let log = &self.partition.log;
            let log_start_offset = log.log_start_offset();
            if start < log_start_offset && exact {
                return Err(self.out_of_range(start, log_start_offset, high_watermark));
            }
            if start > high_watermark {
                if self.confirmed {
                    return Err(self.out_of_range(start, log_start_offset, high_watermark));
                }
                self.confirm().await?;
                continue;
            }
            let start = start.max(log_start_offset);
            let frames = match log.read(start, high_watermark, bytes_max).await {
                Ok(frames) => frames,
                Err(ReadError::OutOfRange { .. }) if log.log_start_offset() > start => continue,
                Err(error) => return Err(self.read_error(error)),
            };
            let next_offset = frames.last().map_or(start, |frame| Offset(frame.header.next_offset()));
            if next_offset >= high_watermark && !self.end_may_be_claimed {
                self.confirm().await?;
                if self.high_watermark() != high_watermark {
                    continue;
                }
            }
            return Ok(Fetched {
                batches: frames.into_iter().map(|frame| frame.payload).collect(),
                start_offset: start,
                next_offset,
                log_start_offset,
                high_watermark,
                leader_epoch: self.epoch,
            });
        }
    }

    /// Waits for more: the high watermark, or another leader. `false`: the deadline has passed.
    async fn wait(&mut self, deadline: Instant) -> Result<bool> {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        let open = tokio::select! {
            changed = self.high_watermark.changed() => changed.is_ok(),
            changed = self.leader.changed() => changed.is_ok(),
            () = sleep_until(deadline) => return Ok(false),
        };
        self.epoch = self.partition.leading()?;
        if open { Ok(true) } else { Err(self.partition.error(Code::NotReady, "its replica here is closing")) }
    }

    fn out_of_range(&self, offset: Offset, log_start: Offset, high_watermark: Offset) -> Error {
        self.partition.error(
            Code::OffsetOutOfRange,
            format_args!("offset {offset} is not in {log_start} (log start) to {high_watermark} (high watermark)"),
        )
    }

    fn read_error(&self, error: ReadError) -> Error {
        self.partition.say_unreadable(&error);
        self.partition.error(Code::CorruptLog, error)
    }
}

#[cfg(test)]
mod tests;
