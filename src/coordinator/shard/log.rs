//! A shard's log: how it is read, written, and kept short.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use pontoon_raft::types::Offset;
use tokio::time::Instant;

use super::Shard;
use crate::clock::now_ms;
use crate::coordinator::entry::{self, Entry, StoredGroup};
use crate::coordinator::group::Group;
use crate::error::{Code, Error};
use crate::partition::{Acks, Consistency, Fetch, FetchFrom};
use crate::record_batch::{BatchLimits, NewRecord, RecordBatch, RecordBatchBuilder};

/// Longest that a write may take; after it the outcome counts as unknown.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes read at a time while loading.
const LOAD_BYTES: usize = 4 << 20;
/// The log is rewritten when it has this many entries more than [`REWRITE_RATIO`] times what there is to remember.
const REWRITE_SLACK: u64 = 10_000;
const REWRITE_RATIO: u64 = 4;
/// Or so many bytes more than that many times what it was when it was last rewritten: metadata may be long.
const REWRITE_SLACK_BYTES: u64 = 64 << 20;
/// Groups' entries that are made at a time while it is.
const REWRITE_ENTRIES: usize = 200;
/// Committed offsets per entry while it is.
const REWRITE_OFFSETS: usize = 1000;
/// Bytes of entries in one batch; one that is longer goes alone.
const BATCH_BYTES: usize = 1 << 20;
/// Limits of the shard's own batches.
const LIMITS: BatchLimits =
    BatchLimits { record_bytes_max: 32 << 20, batch_bytes_max: 64 << 20, decompressed_bytes_max: 64 << 20 };

impl Shard {
    /// Reads the log, all of it that is committed.
    pub(super) async fn load(mut self) -> Result<Self, Error> {
        let began = Instant::now();
        // Confirmed: an old leader must not begin with an old end.
        let offsets = self.partition.offsets(Consistency::Linearizable).await?;
        let mut stored: BTreeMap<String, StoredGroup> = BTreeMap::new();
        let mut at = offsets.log_start_offset;
        while at < offsets.high_watermark {
            let fetch = Fetch {
                from: FetchFrom::Offset(at),
                bytes_max: LOAD_BYTES,
                wait: Duration::ZERO,
                consistency: Consistency::Committed,
            };
            let fetched = self.partition.fetch(fetch).await?;
            for batch in fetched.batches {
                self.bytes += batch.len() as u64;
                read_batch(batch, &mut stored)?;
            }
            at = fetched.next_offset;
        }
        // What came after that look is not ours to write behind: the first write would find out.
        self.end = at;
        let now = Instant::now();
        for (name, group) in stored {
            self.groups.insert(name.clone(), Group::restore(&name, self.settings.members_max, group, now));
            self.schedule(&name);
        }
        let told =
            self.groups.iter().flat_map(|(name, group)| group.rewrite().into_iter().map(move |entry| (name, entry)));
        self.rewritten_bytes = told.map(|(name, entry)| (name.len() + entry.encode().len()) as u64).sum();
        let (groups, took) = (self.groups.len(), began.elapsed());
        tracing::info!(groups, epoch = self.epoch, ?took, "consumer groups are loaded");
        Ok(self)
    }

    /// Appends entries exactly at the end, in as many batches as their size asks for. If that breaks off half-way, no harm is done:
    /// each entry holds by itself, and nobody has been told of any.
    pub(super) async fn write(&mut self, entries: &[(String, Entry)]) -> Result<(), Error> {
        for batch in batches(entries, now_ms())? {
            self.bytes += batch.bytes().len() as u64;
            let produced = self.partition.produce(batch, Acks::All, Some(self.end), WRITE_TIMEOUT).await?;
            // In a later term another shard may serve already, who read the log before this came to stand there.
            self.check_epoch(produced.leader_epoch)?;
            self.end = Offset(produced.last_offset.0 + 1);
        }
        Ok(())
    }

    /// Whether this is the term in which the log was read. Leadership may have been lost and won again.
    pub(super) fn check_epoch(&self, epoch: u64) -> Result<(), Error> {
        if epoch == self.epoch {
            return Ok(());
        }
        Err(Error::new(Code::NotLeader, format!("the log was read in epoch {}, now it is {epoch}", self.epoch)))
    }

    /// Writes everything once more and lets the log start there, if most of it is overwritten.
    pub(super) async fn rewrite_if_due(&mut self) -> Result<(), Error> {
        let entries = self.end.0 - self.partition.log_start_offset().0.min(self.end.0);
        let weight: u64 = self.groups.values().map(Group::weight).sum();
        let few = entries < REWRITE_SLACK + REWRITE_RATIO * weight;
        if few && self.bytes < REWRITE_SLACK_BYTES + REWRITE_RATIO * self.rewritten_bytes {
            return Ok(());
        }
        if self.check_disk().is_err() {
            // Later: it would end half-way, and the shard with it.
            return Ok(());
        }
        let start = self.end;
        let before = std::mem::take(&mut self.bytes);
        let all: Vec<(String, Entry)> = self
            .groups
            .iter()
            .flat_map(|(name, group)| group.rewrite().into_iter().flat_map(split).map(|entry| (name.clone(), entry)))
            .collect();
        for some in all.chunks(REWRITE_ENTRIES) {
            match self.write(some).await {
                // Nothing of this batch was written, and what went before says what stood there already.
                Err(error) if error.code == Code::StorageFull => {
                    self.bytes += before;
                    return Ok(());
                }
                written => written?,
            }
        }
        self.rewritten_bytes = self.bytes;
        // What is behind is now all there is to know. If this fails nothing is lost: it is tried again.
        match self.partition.start_log_at(start, now_ms(), WRITE_TIMEOUT).await {
            Ok(_) => tracing::debug!(%start, written = all.len(), "the log of consumer groups was rewritten"),
            Err(error) if error.code == Code::OutcomeUnknown => return Err(error),
            Err(error) => {
                self.bytes += before;
                tracing::warn!(%error, "the log of consumer groups could not be shortened");
            }
        }
        Ok(())
    }
}

/// Entries as batches of a bounded size: a group of thousands of members, or many groups in one round, must not make one that the log
/// does not take.
fn batches(entries: &[(String, Entry)], timestamp: i64) -> Result<Vec<RecordBatch>, Error> {
    let mut batches = Vec::new();
    let (mut builder, mut bytes) = (RecordBatchBuilder::new(LIMITS), 0);
    for (group, entry) in entries {
        let (key, value) = (Bytes::copy_from_slice(group.as_bytes()), Bytes::from(entry.encode()));
        let length = key.len() + value.len();
        if bytes > 0 && bytes + length > BATCH_BYTES {
            batches.push(std::mem::replace(&mut builder, RecordBatchBuilder::new(LIMITS)).build(None)?);
            bytes = 0;
        }
        builder.push(&NewRecord { timestamp, key: Some(key), value: Some(value), headers: Vec::new() })?;
        bytes += length;
    }
    if !builder.is_empty() {
        batches.push(builder.build(None)?);
    }
    Ok(batches)
}

/// An entry that says the same in several, if it is one that grows without a limit.
fn split(entry: Entry) -> Vec<Entry> {
    match entry {
        Entry::Committed(offsets) => {
            offsets.chunks(REWRITE_OFFSETS).map(|some| Entry::Committed(some.to_vec())).collect()
        }
        other => vec![other],
    }
}

/// Takes in a batch of the log. Nobody else writes there: what cannot be read is damaged, or of a later version, and may be what somebody
/// was told is committed. Then nobody is told anything.
fn read_batch(batch: Bytes, stored: &mut BTreeMap<String, StoredGroup>) -> Result<(), Error> {
    let batch = RecordBatch::stored(batch)?;
    let first = batch.header().base_offset;
    for record in batch.records(LIMITS.decompressed_bytes_max)? {
        let read = record.map_err(|error| error.to_string()).and_then(|record| {
            let key = record.key.ok_or("it has no key")?;
            let group = String::from_utf8(key.to_vec()).map_err(|error| error.to_string())?;
            let entry = Entry::decode(&record.value.unwrap_or_default()).map_err(|error| error.to_string())?;
            Ok((group, entry))
        });
        match read {
            Ok((group, entry)) => entry::apply(stored, group, entry),
            Err(why) => {
                return Err(Error::new(Code::Internal, format!("the groups' log at {first} is not understood: {why}")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::entry::CommittedOffset;

    fn committed(partition: u32, metadata_bytes: usize) -> CommittedOffset {
        CommittedOffset {
            topic: "t".into(),
            topic_id: 7,
            partition,
            offset: 1,
            leader_epoch: -1,
            metadata: "m".repeat(metadata_bytes),
            time_ms: 5,
        }
    }

    #[test]
    fn what_is_too_much_for_one_batch_goes_into_several_in_order() {
        let entry = |partition, bytes| ("g".to_owned(), Entry::Committed(vec![committed(partition, bytes)]));
        let half = BATCH_BYTES / 2;
        let entries = [entry(0, 10), entry(1, half), entry(2, half), entry(3, 10 * BATCH_BYTES), entry(4, 10)];
        let batches = batches(&entries, 9).unwrap();
        let counts: Vec<i32> = batches.iter().map(|batch| batch.header().record_count).collect();
        assert_eq!(counts, [2, 1, 1, 1]);
        let mut stored = BTreeMap::new();
        batches.into_iter().for_each(|batch| read_batch(batch.into_bytes(), &mut stored).unwrap());
        let lengths: Vec<usize> = stored["g"].offsets.values().map(|offset| offset.metadata.len()).collect();
        assert_eq!(lengths, [10, half, half, 10 * BATCH_BYTES, 10]);
        assert!(super::batches(&[], 9).unwrap().is_empty());
    }

    #[test]
    fn what_is_not_understood_is_not_passed_over() {
        let mut builder = RecordBatchBuilder::new(LIMITS);
        let value = Some(Bytes::from_static(b"\xff of a later version"));
        builder.push(&NewRecord { timestamp: 9, key: Some("g".into()), value, headers: Vec::new() }).unwrap();
        let error = read_batch(builder.build(None).unwrap().into_bytes(), &mut BTreeMap::new()).unwrap_err();
        assert!(error.message.contains("is not understood"), "{error}");
    }

    #[test]
    fn all_offsets_of_a_group_need_not_fit_into_one_entry() {
        let offsets: Vec<_> = (0..2 * REWRITE_OFFSETS as u32 + 1).map(|partition| committed(partition, 0)).collect();
        let mut stored = BTreeMap::new();
        let entries = split(Entry::Committed(offsets.clone()));
        assert_eq!(entries.len(), 3);
        entries.into_iter().for_each(|entry| entry::apply(&mut stored, "g".to_owned(), entry));
        assert!(stored["g"].offsets.values().eq(&offsets));
        assert_eq!(split(Entry::GroupRemoved), [Entry::GroupRemoved]);
    }
}
