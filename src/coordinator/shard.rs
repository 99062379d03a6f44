//! One partition's groups: one task, which reads the log once and then does what is asked for, in rounds.
//!
//! A round is whatever waits: each request changes the groups in memory and leaves its answer and its log entries in the
//! outbox; the entries are written as one batch; only when they are committed are the answers sent. So nobody ever
//! sees a state that is not in the log, and one commit serves all that came meanwhile.
//!
//! Every batch says at which offset it must come to stand (`if_match`): if anything else was written in between, by whomever,
//! the shard ends. It also ends when a write's outcome is unknown, when leadership moves and when most replicas are dead. Whoever
//! waits is then told to look for the coordinator again, and the next request starts a new shard, which reads the log anew. Nothing
//! is decided on doubtful ground.
//!
//! The log is kept short: when most of it is overwritten, all groups are written once more and the log starts there.
//!
//! Clients make groups, as many as they like: all of them together may take so many bytes. At that point nobody is refused what makes
//! them no larger, so that who is there can go on. What is wrong with a request for itself is said first: it tells a client more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pontoon_raft::types::Offset;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::entry::{self, CommittedOffset, Entry, StoredGroup};
use super::group::{Group, Outbox, Reply};
use super::{
    GroupDescription, GroupError, GroupListing, GroupSettings, Join, Joined, Larger, Leaving, Partitions, Progress,
    QUEUE, Speaker, Sync, Synced, Within,
};
use crate::clock::now_ms;
use crate::error::{Code, Error};
use crate::partition::{Acks, Consistency, Fetch, FetchFrom, Partition};
use crate::record_batch::{BatchLimits, NewRecord, RecordBatch, RecordBatchBuilder};

/// Most requests of one round.
const ROUND: usize = 500;
/// So many full rounds at least are taken before members are looked for that have not been heard of for long: their heartbeats may wait
/// among the requests, after a stall. As many as there is place for in the queue; those that come without end put it off no longer.
const FULL_ROUNDS: usize = QUEUE.div_ceil(ROUND);
/// Longest that a write may take; after it the outcome counts as unknown.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes read at a time while loading.
const LOAD_BYTES: usize = 4 << 20;
/// Between two attempts at loading.
const LOAD_PAUSE: Duration = Duration::from_secs(2);
/// How often it is said that there is no room for more.
const FULL_AGAIN: Duration = Duration::from_secs(60);
/// How long a group is kept that has neither members nor offsets, at most: Kafka looks for such every ten minutes.
const EMPTY_GROUP_KEPT: Duration = Duration::from_secs(600);
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

/// What a shard is asked.
pub(super) enum Request {
    Join(String, Box<Join>, Reply<Joined>),
    Sync(String, Box<Sync>, Reply<Synced>),
    Heartbeat(String, Speaker, Reply<()>),
    Leave(String, Vec<Leaving>, Reply<Vec<Result<(), GroupError>>>),
    Commit(String, Speaker, Vec<CommittedOffset>, Reply<()>),
    Committed(String, Option<Partitions>, usize, Reply<Within<Vec<CommittedOffset>>>),
    RemoveOffsets(String, Partitions, Reply<Vec<Result<(), GroupError>>>),
    Describe(String, usize, Reply<Within<GroupDescription>>),
    Delete(String, Reply<()>),
    List(Reply<Vec<GroupListing>>),
    Progress(Reply<Progress>),
}

/// Whether all that waited before this round has been taken by now.
fn heard_all(taken: usize, full_rounds: &mut usize) -> bool {
    *full_rounds += 1;
    let all = taken < ROUND || *full_rounds > FULL_ROUNDS;
    if all {
        *full_rounds = 0;
    }
    all
}

/// See the module's header.
pub(super) struct Shard {
    partition: Arc<Partition>,
    epoch: u64,
    settings: GroupSettings,
    /// Where the next batch must come to stand.
    end: Offset,
    /// Bytes of the log, and of it when it was last rewritten.
    bytes: u64,
    rewritten_bytes: u64,
    groups: BTreeMap<String, Group>,
    /// Bytes of all groups.
    group_bytes: usize,
    /// When it was last said that there is no room.
    said_full: Option<Instant>,
    /// When each group wants to be looked at.
    deadlines: BTreeMap<String, Instant>,
    out: Outbox,
    /// Somebody wants to know what is committed: leadership must be confirmed first.
    must_confirm: bool,
    next_expiry: Instant,
}

impl Shard {
    /// Serves until the partition is lost or nobody can ask any more.
    pub(super) async fn run(
        partition: Arc<Partition>,
        epoch: u64,
        settings: GroupSettings,
        mut queue: mpsc::Receiver<Request>,
    ) {
        let mut follow = partition.follow();
        let shard = Self {
            partition,
            epoch,
            settings,
            end: Offset(0),
            bytes: 0,
            rewritten_bytes: 0,
            groups: BTreeMap::new(),
            group_bytes: 0,
            said_full: None,
            deadlines: BTreeMap::new(),
            out: Outbox::default(),
            must_confirm: false,
            next_expiry: Instant::now() + settings.expiry_interval,
        };
        let mut shard = match shard.load().await {
            Ok(shard) => shard,
            Err(error) => {
                tracing::error!(%error, epoch, "consumer groups could not be loaded");
                // Whoever asks meanwhile waits: clients ask often, and each new shard would read the log once more.
                sleep_until(Instant::now() + LOAD_PAUSE).await;
                return;
            }
        };
        let (mut requests, mut full_rounds) = (Vec::with_capacity(ROUND), 0);
        while shard.partition.leader_epoch() == Ok(shard.epoch) && shard.partition.may_have_majority() {
            tokio::select! {
                biased;
                received = queue.recv_many(&mut requests, ROUND) => if received == 0 { return },
                () = sleep_until(shard.next_wake()) => {}
                () = follow.changed() => continue,
            }
            let now = Instant::now();
            let all_heard = heard_all(requests.len(), &mut full_rounds);
            for request in requests.drain(..) {
                shard.take(request, now);
            }
            if all_heard {
                shard.tick(now);
            }
            if let Err(error) = shard.finish_round().await {
                tracing::info!(%error, "this broker stops coordinating some consumer groups for the moment");
                break;
            }
        }
        // First, so that who is told to ask again finds no queue that nobody reads.
        queue.close();
        drop(shard);
    }

    /// Reads the log, all of it that is committed.
    async fn load(mut self) -> Result<Self, Error> {
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

    fn next_wake(&self) -> Instant {
        self.deadlines.values().copied().chain([self.next_expiry]).min().unwrap_or(self.next_expiry)
    }

    /// What there is to note of a group that may have changed: when it wants to be looked at, and how many bytes it takes.
    fn schedule(&mut self, name: &str) {
        let Some(group) = self.groups.get_mut(name) else { return };
        if group.is_nothing() {
            return self.forget(name);
        }
        let bytes = group.bytes();
        self.group_bytes = self.group_bytes - group.counted_bytes + bytes;
        group.counted_bytes = bytes;
        match group.next_deadline() {
            Some(at) => drop(self.deadlines.insert(name.to_owned(), at)),
            None => drop(self.deadlines.remove(name)),
        }
    }

    fn forget(&mut self, name: &str) {
        self.group_bytes -= self.groups.remove(name).map_or(0, |group| group.counted_bytes);
        self.deadlines.remove(name);
    }

    /// The group of this name, which may be a new one, and where its answers go.
    fn group(&mut self, name: &str) -> (&mut Group, &mut Outbox) {
        let new = || Group::new(name, self.settings.members_max);
        (self.groups.entry(name.to_owned()).or_insert_with(new), &mut self.out)
    }

    /// `NoRoom` if groups may not grow by so many bytes. Those who are there already have an eighth more than those who come, so that
    /// strangers who fill the rest do not keep them from their next generation.
    fn check_room(&mut self, growth: usize, known: bool, now: Instant) -> Result<(), GroupError> {
        let (bytes, max) = (self.group_bytes, self.settings.bytes_max);
        let max = if known { max.saturating_add(max / 8) } else { max };
        if growth == 0 || bytes.saturating_add(growth) <= max {
            return Ok(());
        }
        if self.said_full.is_none_or(|said| now.duration_since(said) >= FULL_AGAIN) {
            self.said_full = Some(now);
            let groups = self.groups.len();
            tracing::warn!(groups, bytes, max, "consumer groups may not grow: limits.groups_bytes_max");
        }
        Err(GroupError::NoRoom)
    }

    fn take(&mut self, request: Request, now: Instant) {
        let name = match request {
            Request::Join(name, join, reply) => {
                let group = self.group(&name).0;
                let growth = group.growth_by_join(&join) + group.uncounted_bytes();
                let (sound, known) = (group.check_join(&join), group.has(&join));
                let done = sound.and_then(|()| self.check_room(growth, known, now));
                let (group, out) = self.group(&name);
                match done {
                    Ok(()) => group.join(*join, reply, now, out),
                    Err(error) => out.answer(reply, Err(error)),
                }
                name
            }
            Request::Commit(name, speaker, offsets, reply) => {
                let done = self.commit(&name, &speaker, offsets, now);
                self.out.answer(reply, done);
                name
            }
            Request::Sync(name, sync, reply) => {
                let group = self.groups.get(&name).ok_or(GroupError::UnknownMember);
                let growth = group.and_then(|group| group.check_sync(&sync).map(|()| group.growth_by_sync(&sync)));
                let done = growth.and_then(|growth| self.check_room(growth, true, now));
                match done.and_then(|()| self.groups.get_mut(&name).ok_or(GroupError::UnknownMember)) {
                    Ok(group) => group.sync(*sync, reply, now, &mut self.out),
                    Err(error) => self.out.answer(reply, Err(error)),
                }
                name
            }
            Request::Heartbeat(name, Speaker { member_id, instance_id, generation }, reply) => {
                let group = self.groups.get_mut(&name).ok_or(GroupError::UnknownMember);
                let alive = group.and_then(|g| g.heartbeat(&member_id, instance_id.as_deref(), generation, now));
                self.out.answer(reply, alive);
                name
            }
            Request::Leave(name, leaving, reply) => {
                let results = leaving.iter().map(|leaving| match self.groups.get_mut(&name) {
                    Some(group) => group.leave(leaving, now, &mut self.out),
                    None => Err(GroupError::UnknownMember),
                });
                let results = results.collect();
                self.out.answer(reply, Ok(results));
                name
            }
            Request::Committed(name, partitions, bytes_max, reply) => {
                let told = self.groups.get(&name).map(|group| {
                    let bytes = group.committed_bytes(partitions.as_deref());
                    if bytes > bytes_max { Err(Larger(bytes)) } else { Ok(group.committed(partitions.as_deref())) }
                });
                let told = told.unwrap_or(Ok(Vec::new()));
                self.must_confirm |= told.is_ok();
                return self.out.answer(reply, Ok(told));
            }
            Request::RemoveOffsets(name, partitions, reply) => {
                let group = self.groups.get_mut(&name).ok_or(GroupError::NotFound);
                let done = group.and_then(|group| group.remove_offsets(&partitions, &mut self.out));
                self.out.answer(reply, done);
                name
            }
            Request::Describe(name, bytes_max, reply) => {
                let described = self.groups.get(&name).ok_or(GroupError::NotFound).map(|group| {
                    let bytes = group.description_bytes();
                    if bytes > bytes_max { Err(Larger(bytes)) } else { Ok(group.describe()) }
                });
                return self.out.answer(reply, described);
            }
            Request::Delete(name, reply) => {
                let group = self.groups.get(&name).ok_or(GroupError::NotFound);
                let done = group.and_then(|group| group.delete(&mut self.out));
                if done.is_ok() {
                    self.forget(&name);
                }
                return self.out.answer(reply, done);
            }
            Request::List(reply) => {
                let groups = self.groups.values().map(Group::listing).collect();
                return self.out.answer(reply, Ok(groups));
            }
            Request::Progress(reply) => {
                let groups = self.groups.values().map(Group::progress).collect();
                return self.out.answer(reply, Ok(Progress { groups, bytes: self.group_bytes }));
            }
        };
        self.schedule(&name);
    }

    fn commit(
        &mut self,
        name: &str,
        speaker: &Speaker,
        offsets: Vec<CommittedOffset>,
        now: Instant,
    ) -> Result<(), GroupError> {
        if speaker.generation >= 0 && !self.groups.contains_key(name) {
            // A generation of a group that is not there any more.
            return Err(GroupError::IllegalGeneration);
        }
        // Refused further down, it would end the shard, and be of unknown outcome.
        if !self.partition.storage_has_room() {
            return Err(GroupError::DiskFull);
        }
        let by = (speaker.member_id.as_str(), speaker.instance_id.as_deref(), speaker.generation);
        let group = self.group(name).0;
        group.check_commit(by)?;
        let growth = group.growth_by_commit(&offsets) + group.uncounted_bytes();
        self.check_room(growth, speaker.generation >= 0, now)?;
        let (group, out) = self.group(name);
        group.commit(by, offsets, now, out)
    }

    fn tick(&mut self, now: Instant) {
        let due: Vec<String> =
            self.deadlines.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
        for name in due {
            if let Some(group) = self.groups.get_mut(&name) {
                group.tick(now, &mut self.out);
            }
            self.schedule(&name);
        }
        if self.next_expiry <= now {
            self.next_expiry = now + self.settings.expiry_interval;
            self.expire();
        }
    }

    /// Forgets what nobody has cared for so long.
    fn expire(&mut self) {
        let before = |kept: Duration| now_ms().saturating_sub(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX));
        let (offsets, empty) = (before(self.settings.offsets_retention), before(EMPTY_GROUP_KEPT));
        for name in self.groups.keys().cloned().collect::<Vec<_>>() {
            let gone = self.groups.get_mut(&name).is_some_and(|group| group.expire(offsets, empty, &mut self.out));
            if gone {
                self.forget(&name);
            } else {
                self.schedule(&name);
            }
        }
    }

    /// Writes what the round has decided, then says it.
    async fn finish_round(&mut self) -> Result<(), Error> {
        let entries = std::mem::take(&mut self.out.entries);
        if !entries.is_empty() {
            self.write(&entries).await?;
        }
        if std::mem::take(&mut self.must_confirm) {
            // A commit that was answered by a newer coordinator must not be missed.
            self.partition.offsets(Consistency::Linearizable).await?;
            self.check_epoch(self.partition.leader_epoch()?)?;
        }
        self.out.send();
        self.rewrite_if_due().await
    }

    /// Appends entries exactly at the end, in as many batches as their size asks for. If that breaks off half-way, no harm is done:
    /// each entry holds by itself, and nobody has been told of any.
    async fn write(&mut self, entries: &[(String, Entry)]) -> Result<(), Error> {
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
    fn check_epoch(&self, epoch: u64) -> Result<(), Error> {
        if epoch == self.epoch {
            return Ok(());
        }
        Err(Error::new(Code::NotLeader, format!("the log was read in epoch {}, now it is {epoch}", self.epoch)))
    }

    /// Writes everything once more and lets the log start there, if most of it is overwritten.
    async fn rewrite_if_due(&mut self) -> Result<(), Error> {
        let entries = self.end.0 - self.partition.log_start_offset().0.min(self.end.0);
        let weight: u64 = self.groups.values().map(Group::weight).sum();
        let few = entries < REWRITE_SLACK + REWRITE_RATIO * weight;
        if few && self.bytes < REWRITE_SLACK_BYTES + REWRITE_RATIO * self.rewritten_bytes {
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
            self.write(some).await?;
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

    #[test]
    fn members_are_looked_for_once_all_that_waited_is_taken() {
        let mut full_rounds = 0;
        let mut heard =
            |taken: &[usize]| -> Vec<bool> { taken.iter().map(|taken| heard_all(*taken, &mut full_rounds)).collect() };
        assert_eq!(heard(&[0, 1, ROUND - 1]), [true; 3]);
        // What a full queue holds after a stall.
        assert_eq!(heard(&[ROUND, ROUND, QUEUE - 2 * ROUND, 0]), [false, false, true, true]);
        // Without end.
        let taken = heard(&[ROUND; 4 * (FULL_ROUNDS + 1)]);
        assert_eq!(taken.iter().filter(|looked| **looked).count(), 4);
    }
}
