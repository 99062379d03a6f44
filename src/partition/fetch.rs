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
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout};

use super::aside::read_batch;
use super::{Consistency, Fetch, FetchFrom, Fetched, MAJORITY_DEAD, Offsets, Partition, ReplicatedLog, TimedRecord};
use crate::error::{Code, Error, Result};
use crate::record_batch::{BatchError, BatchHeader, Record};

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

    /// The first record at or after this time (ms), if there is one. Leader only. As above for a linearizable answer.
    pub async fn record_at(&self, timestamp: i64) -> Result<Option<TimedRecord>> {
        Ok(Reading::begin(self, Consistency::Committed)?.find_timestamp(timestamp).await?.ok())
    }

    /// The first of the records with the largest timestamp (KIP-734), if any has one. Leader only. As above.
    pub async fn latest_record(&self) -> Result<Option<TimedRecord>> {
        let mut reading = Reading::begin(self, Consistency::Committed)?;
        match reading.largest_timestamp().await? {
            Some(largest) => Ok(reading.find_timestamp(largest).await?.ok()),
            None => Ok(None),
        }
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
            FetchFrom::Timestamp(timestamp) => {
                Ok(self.find_timestamp(timestamp).await?.map_or_else(|end| end, |found| found.offset))
            }
        }
    }

    /// The first record at or after `timestamp`. `Err`: there is none below the high watermark, which is this, confirmed if asked to be.
    async fn find_timestamp(&mut self, timestamp: i64) -> Result<Result<TimedRecord, Offset>> {
        let mut from = Offset(0);
        loop {
            let frame = match self.first_frame(timestamp, &mut from).await? {
                Ok(frame) => frame,
                Err(end) => return Ok(Err(end)),
            };
            if let Some(found) = self.search_batch(&frame, timestamp, from).await? {
                return Ok(Ok(found));
            }
            from = Offset(frame.header.next_offset());
            // There may be many such batches in a row.
            yield_now().await;
        }
    }

    /// The largest timestamp of all records, or one that is not larger and no record has; `None` if none has any. Each batch says its
    /// own: only one that begins below the log start is looked into, for it may be of a record that has gone. The time index tells
    /// whether there is anything at or after some time, so the largest is found by halving: 64 looks at most.
    async fn largest_timestamp(&mut self) -> Result<Option<i64>> {
        let Some(mut low) = self.largest_from(0).await? else { return Ok(None) };
        let mut high = i64::MAX;
        while low < high {
            let middle = low + (high - low) / 2 + 1;
            match self.largest_from(middle).await? {
                Some(found) => low = found,
                None => high = middle - 1,
            }
        }
        Ok(Some(low))
    }

    /// The largest timestamp of the first batch that has one at or after `timestamp`.
    async fn largest_from(&mut self, timestamp: i64) -> Result<Option<i64>> {
        let mut from = Offset(0);
        loop {
            let Ok(frame) = self.first_frame(timestamp, &mut from).await? else { return Ok(None) };
            let largest = if frame.header.base_offset >= from.0 {
                Some(frame.header.max_timestamp)
            } else {
                let left = |record: &Record| record.offset >= from.0;
                self.look_into(&frame, |records| records.filter(left).map(|record| record.timestamp).max()).await?
            };
            if let Some(largest) = largest.filter(|largest| *largest >= timestamp) {
                return Ok(Some(largest));
            }
            from = Offset(frame.header.next_offset());
            yield_now().await;
        }
    }

    /// The first batch from `from` on that says that it has a record at or after `timestamp`; `from` rises to the log start. `Err`: there
    /// is none below the high watermark, which is this, confirmed if asked to be.
    async fn first_frame(&mut self, timestamp: i64, from: &mut Offset) -> Result<Result<Frame, Offset>> {
        loop {
            let limit = self.high_watermark();
            let log = &self.partition.log;
            *from = (*from).max(log.log_start_offset());
            let found = log.offset_for_timestamp(timestamp, *from, limit).await;
            let Some(at) = found.map_err(|error| self.read_error(error))? else {
                if self.end_may_be_claimed {
                    return Ok(Err(limit));
                }
                self.confirm().await?;
                continue;
            };
            // The batch that holds the log start begins below it.
            match log.read(at.max(*from), limit, 1).await {
                Ok(frames) => {
                    let missing = || self.unreadable(&"a batch that the time index names is not there");
                    return frames.into_iter().next().map(Ok).ok_or_else(missing);
                }
                // Retention took it between the two looks; the next finds a later one.
                Err(ReadError::OutOfRange { .. }) if log.log_start_offset() > at.max(*from) => {}
                Err(error) => return Err(self.read_error(error)),
            }
        }
    }

    /// The exact record, at or behind `from`, in a batch whose max timestamp is at or after `timestamp`. `None`: the record that made
    /// it so lies before `from`, or there is none.
    async fn search_batch(&self, frame: &Frame, timestamp: i64, from: Offset) -> Result<Option<TimedRecord>> {
        let wanted = |record: &Record| record.timestamp >= timestamp && record.offset >= from.0;
        let found = self.look_into(frame, |mut records| Iterator::find(&mut records, wanted)).await?;
        let (base_offset, max_timestamp) = (frame.header.base_offset, frame.header.max_timestamp);
        // 0 is also said of records that have no timestamps.
        if found.is_none() && base_offset >= from.0 && max_timestamp != 0 {
            return Err(
                self.unreadable(&format_args!("the batch at {base_offset} has no record at or after {timestamp}"))
            );
        }
        let header = BatchHeader::read(&frame.payload).map_err(|error| self.unreadable(&error))?;
        Ok(found.map(|record| TimedRecord {
            offset: Offset(record.offset),
            timestamp: record.timestamp,
            leader_epoch: header.leader_epoch,
        }))
    }

    /// Has `look` look at the records of a batch.
    async fn look_into<T>(&self, frame: &Frame, look: impl FnOnce(&mut dyn Iterator<Item = Record>) -> T) -> Result<T> {
        let limit = self.partition.options.settings.limits.decompressed_bytes_max;
        let mut rotten = None;
        let found = read_batch(frame.payload.clone(), limit, |records| {
            let mut records = records?.map_while(|record| record.map_err(|error| rotten = Some(error)).ok());
            Ok::<_, BatchError>(look(&mut records))
        });
        let found = found.await;
        match rotten {
            Some(error) => Err(self.unreadable(&error)),
            None => found.map_err(|error| self.unreadable(&error)),
        }
    }

    fn unreadable(&self, why: &dyn std::fmt::Display) -> Error {
        self.partition.error(Code::CorruptLog, why)
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
