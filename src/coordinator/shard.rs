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

mod log;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pontoon_raft::types::Offset;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::entry::CommittedOffset;
use super::group::{Group, Outbox, Reply};
use super::{
    GroupDescription, GroupError, GroupListing, GroupSettings, Join, Joined, Larger, Leaving, Partitions, Progress,
    QUEUE, Speaker, Sync, Synced, Within,
};
use crate::clock::now_ms;
use crate::error::Error;
use crate::partition::{Consistency, Partition};

/// Most requests of one round.
const ROUND: usize = 500;
/// So many full rounds at least are taken before members are looked for that have not been heard of for long: their heartbeats may wait
/// among the requests, after a stall. As many as there is place for in the queue; those that come without end put it off no longer.
const FULL_ROUNDS: usize = QUEUE.div_ceil(ROUND);
/// Between two attempts at loading.
const LOAD_PAUSE: Duration = Duration::from_secs(2);
/// How often room on the disk is looked for while there is none.
const FULL_PAUSE: Duration = Duration::from_secs(1);
/// How often it is said that there is no room for more.
const FULL_AGAIN: Duration = Duration::from_secs(60);
/// How long a group is kept that has neither members nor offsets, at most: Kafka looks for such every ten minutes.
const EMPTY_GROUP_KEPT: Duration = Duration::from_secs(600);
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
    /// While the disk is full: before that, nothing is looked at that time alone would change.
    full_until: Option<Instant>,
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
            full_until: None,
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

    fn next_wake(&self) -> Instant {
        let due = self.deadlines.values().copied().chain([self.next_expiry]).min().unwrap_or(self.next_expiry);
        self.full_until.map_or(due, |full| full.max(due))
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

    /// `DiskFull` if what is written would be refused: further down that would end the shard, and be of unknown outcome.
    fn check_disk(&self) -> Result<(), GroupError> {
        if self.partition.storage_has_room() { Ok(()) } else { Err(GroupError::DiskFull) }
    }

    fn take(&mut self, request: Request, now: Instant) {
        let name = match request {
            Request::Join(name, join, reply) => {
                let group = self.group(&name).0;
                let growth = group.growth_by_join(&join) + group.uncounted_bytes();
                let (sound, known) = (group.check_join(&join), group.has(&join));
                let done = sound.and_then(|()| self.check_room(growth, known, now)).and_then(|()| self.check_disk());
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
                let writes = self.groups.get(&name).is_some_and(|group| group.is_written_by(&sync));
                let done = growth.and_then(|growth| self.check_room(growth, true, now));
                let done = done.and_then(|()| if writes { self.check_disk() } else { Ok(()) });
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
                let room = self.check_disk();
                let results = leaving.iter().map(|leaving| match self.groups.get_mut(&name) {
                    Some(group) => room.clone().and_then(|()| group.leave(leaving, now, &mut self.out)),
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
                let room = self.check_disk();
                let group =
                    self.groups.get_mut(&name).ok_or(GroupError::NotFound).and_then(|group| room.map(|()| group));
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
                let group = group.and_then(|group| self.check_disk().map(|()| group));
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
        let by = (speaker.member_id.as_str(), speaker.instance_id.as_deref(), speaker.generation);
        let group = self.group(name).0;
        group.check_commit(by)?;
        let growth = group.growth_by_commit(&offsets) + group.uncounted_bytes();
        self.check_room(growth, speaker.generation >= 0, now)?;
        self.check_disk()?;
        let (group, out) = self.group(name);
        group.commit(by, offsets, now, out)
    }

    fn tick(&mut self, now: Instant) {
        self.full_until = self.check_disk().is_err().then(|| now + FULL_PAUSE);
        if self.full_until.is_some() {
            // Who is away is found so later; whose session would end goes on meanwhile.
            return;
        }
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
