//! Consumer groups: who is in one, what was assigned to whom, and how far they have read.
//!
//! Groups are spread over the partitions of an internal topic, [`OFFSETS_TOPIC`], an ordinary replicated topic: the leader of
//! a partition coordinates its groups, and their state is a function of its log. A failover is an election; the new leader reads
//! the log and goes on with the same generations and offsets.
//!
//! - [`Coordinator`]: finds the shard of a group and asks it. `shard`: one partition's groups, one task; nothing is told to
//!   anybody before it is in the log. `group`: one group's state machine. `messages`: what it is asked and answers.
//!   `entry`: what stands in the log.
//!
//! It knows no protocol: `kafka` and `http` bring the requests. It never knows the catalog: [`Home`] is all it sees of its broker.

mod consumer_protocol;
mod entry;
mod group;
mod messages;
mod shard;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument, Span, info_span};

use crate::clock::now_ms;
use crate::error::{Code, Error};
use crate::partition::Partition;

pub use entry::CommittedOffset;
pub use messages::{
    GroupDescription, GroupError, GroupListing, GroupProgress, GroupState, Join, Joined, JoinedMember, Larger, Leaving,
    MemberDescription, Partitions, Progress, Speaker, Sync, Synced, TOLD_BYTES, Within,
};
use shard::{Request, Shard};

/// The topic that holds the groups.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";
/// Requests that wait for one shard.
const QUEUE: usize = 1024;
/// How often a shard that ends under way is asked what is committed: the next one reads the log anew.
const COMMITTED_ATTEMPTS: usize = 3;
/// Bounds of a session timeout, as a member may ask for it.
const SESSION_TIMEOUT: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(1800);
/// Longest metadata of a committed offset, in bytes.
pub(crate) const METADATA_BYTES_MAX: usize = 4096;
/// Most bytes of names and metadata in one commit: they stand in the log as one entry.
const COMMIT_BYTES_MAX: usize = 8 << 20;
/// Longest name of a group, in bytes.
const NAME_BYTES_MAX: usize = 4096;

/// What the coordinator sees of its broker.
pub trait Home: Send + std::marker::Sync + 'static {
    /// This partition of [`OFFSETS_TOPIC`], if its replica here leads and is able to take writes.
    fn led(&self, partition: u32) -> Result<Arc<Partition>, Error>;
    /// It hands over what it leads, or has.
    fn stopping(&self) -> bool;
    /// How many partitions the topic has; 0 if there is none yet.
    fn partitions(&self) -> u32;
}

type Answer<T> = Result<T, GroupError>;

/// What is set for groups.
#[derive(Clone, Copy, Debug)]
pub struct GroupSettings {
    /// How long committed offsets of a group without members are kept.
    pub offsets_retention: Duration,
    /// How often those that are older are looked for.
    pub expiry_interval: Duration,
    /// Most members of a group.
    pub members_max: usize,
    /// Most bytes of all groups of a shard.
    pub bytes_max: usize,
}

/// This broker's coordinator.
pub struct Coordinator {
    home: Arc<dyn Home>,
    settings: GroupSettings,
    shards: Mutex<BTreeMap<u32, Handle>>,
    /// The broker's, whoever the request is from that starts a shard.
    span: Span,
}

/// A shard's task, in one epoch.
struct Handle {
    epoch: u64,
    requests: mpsc::Sender<Request>,
}

impl Coordinator {
    /// For a broker.
    pub fn new(home: Arc<dyn Home>, settings: GroupSettings) -> Self {
        Self { home, settings, shards: Mutex::default(), span: Span::current() }
    }

    /// The partition whose leader coordinates a group; `None` while the topic is not there.
    pub fn partition_of(&self, group: &str) -> Option<u32> {
        let partitions = self.home.partitions();
        (partitions > 0).then(|| java_hash(group) % partitions)
    }

    /// Joins; the answer comes when the generation begins.
    pub async fn join(&self, group: &str, join: Join) -> Answer<Joined> {
        if !SESSION_TIMEOUT.contains(&join.session_timeout) {
            return Err(GroupError::InvalidSessionTimeout);
        }
        self.ask(group, |group, reply| Request::Join(group, Box::new(join), reply)).await
    }

    /// Gets an assignment; the answer comes when the leader has brought it.
    pub async fn sync(&self, group: &str, sync: Sync) -> Answer<Synced> {
        self.ask(group, |group, reply| Request::Sync(group, Box::new(sync), reply)).await
    }

    /// Says that a member is alive.
    pub async fn heartbeat(&self, group: &str, speaker: Speaker) -> Answer<()> {
        self.ask(group, |group, reply| Request::Heartbeat(group, speaker, reply)).await
    }

    /// Lets members go, each with its own result.
    pub async fn leave(&self, group: &str, leaving: Vec<Leaving>) -> Answer<Vec<Answer<()>>> {
        self.ask(group, |group, reply| Request::Leave(group, leaving, reply)).await
    }

    /// Commits offsets, all or none. On return they are committed on a majority. `time_ms` is set here.
    pub async fn commit(&self, group: &str, speaker: Speaker, mut offsets: Vec<CommittedOffset>) -> Answer<()> {
        let bytes: usize = offsets.iter().map(|offset| offset.topic.len() + offset.metadata.len()).sum();
        if bytes > COMMIT_BYTES_MAX || offsets.iter().any(|offset| offset.metadata.len() > METADATA_BYTES_MAX) {
            return Err(GroupError::MetadataTooLarge);
        }
        let time_ms = now_ms();
        offsets.iter_mut().for_each(|offset| offset.time_ms = time_ms);
        self.ask(group, |group, reply| Request::Commit(group, speaker, offsets, reply)).await
    }

    /// What is committed: of these partitions, or all there is. Covers every commit that was answered before the call.
    /// It changes nothing, so it is asked again if its shard has ended over somebody else's write: librdkafka gives up on partitions whose
    /// coordinator moved between its FindCoordinator and this.
    pub async fn committed(&self, group: &str, partitions: Option<Partitions>) -> Answer<Vec<CommittedOffset>> {
        // Nothing is larger.
        self.committed_within(group, partitions, usize::MAX).await.map(Result::unwrap_or_default)
    }

    /// [`Self::committed`], if it comes to no more than so many bytes.
    pub async fn committed_within(
        &self,
        group: &str,
        partitions: Option<Partitions>,
        bytes_max: usize,
    ) -> Answer<Within<Vec<CommittedOffset>>> {
        for _ in 1..COMMITTED_ATTEMPTS {
            let partitions = partitions.clone();
            match self.ask(group, |group, reply| Request::Committed(group, partitions, bytes_max, reply)).await {
                Err(GroupError::Lost) => {}
                done => return done,
            }
        }
        self.ask(group, |group, reply| Request::Committed(group, partitions, bytes_max, reply)).await
    }

    /// Forgets committed offsets. Each topic has its own result.
    pub async fn remove_offsets(&self, group: &str, partitions: Partitions) -> Answer<Vec<Answer<()>>> {
        self.ask(group, |group, reply| Request::RemoveOffsets(group, partitions, reply)).await
    }

    /// Describes a group. `NotFound` if it has never been heard of.
    pub async fn describe(&self, group: &str) -> Answer<GroupDescription> {
        // Nothing is larger.
        self.describe_within(group, usize::MAX).await?.map_err(|_| GroupError::Loading)
    }

    /// [`Self::describe`], if it comes to no more than so many bytes.
    pub async fn describe_within(&self, group: &str, bytes_max: usize) -> Answer<Within<GroupDescription>> {
        self.ask(group, |group, reply| Request::Describe(group, bytes_max, reply)).await
    }

    /// Deletes a group that has no members.
    pub async fn delete(&self, group: &str) -> Answer<()> {
        self.ask(group, Request::Delete).await
    }

    /// Every group that this broker coordinates. `Loading` if one of its shards cannot say yet.
    pub async fn list(&self) -> Answer<Vec<GroupListing>> {
        if self.home.stopping() {
            return Err(GroupError::Loading); // They are elsewhere in a moment: "none" would be wrong.
        }
        // All are asked before the first is waited for.
        let mut asked = Vec::new();
        for partition in 0..self.home.partitions() {
            let (reply, answer) = oneshot::channel();
            match self.send(partition, Request::List(reply)) {
                Ok(()) => asked.push(answer),
                Err(GroupError::NotCoordinator) => {}
                Err(error) => return Err(error),
            }
        }
        let mut groups = Vec::new();
        for answer in asked {
            groups.extend(answer.await.map_err(|_| GroupError::Loading)??);
        }
        Ok(groups)
    }

    /// How far every group that this broker coordinates has read, as of now, for whoever only looks: a shard that is being loaded, or that
    /// says nothing for so long, is left out.
    pub async fn progress(&self, patience: Duration) -> Progress {
        let asked = (0..self.home.partitions()).filter_map(|partition| {
            let (reply, answer) = oneshot::channel();
            self.send(partition, Request::Progress(reply)).ok()?;
            Some(tokio::time::timeout(patience, answer))
        });
        let asked: Vec<_> = asked.collect();
        let told = join_all(asked).await.into_iter().flatten().flatten();
        let told: Vec<Progress> = told.flatten().collect();
        let bytes = told.iter().map(|progress| progress.bytes).max().unwrap_or(0);
        let mut groups: Vec<GroupProgress> = told.into_iter().flat_map(|progress| progress.groups).collect();
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        Progress { groups, bytes }
    }

    async fn ask<T>(
        &self,
        group: &str,
        request: impl FnOnce(String, oneshot::Sender<Answer<T>>) -> Request,
    ) -> Answer<T> {
        if group.is_empty() || group.len() > NAME_BYTES_MAX {
            return Err(GroupError::InvalidGroup);
        }
        if self.home.stopping() {
            // Not that it is being loaded: who comes would stay until the end.
            return Err(GroupError::NotCoordinator);
        }
        let partition = self.partition_of(group).ok_or(GroupError::NotCoordinator)?;
        let (reply, answer) = oneshot::channel();
        self.send(partition, request(group.to_owned(), reply))?;
        // A shard that has lost its partition drops what waits.
        answer.await.unwrap_or(Err(GroupError::Lost))
    }

    /// Hands a request to a shard, which is started if this broker has come to lead its partition.
    fn send(&self, partition: u32, request: Request) -> Answer<()> {
        let led = self.home.led(partition).map_err(|error| match error.code {
            Code::NotReady => GroupError::Loading,
            _ => GroupError::NotCoordinator,
        })?;
        let epoch = led.leader_epoch().map_err(|_| GroupError::NotCoordinator)?;
        if !led.may_have_majority() {
            // Nothing could be decided, and another may coordinate by now: members must not be told that all is well.
            return Err(GroupError::NotCoordinator);
        }
        let mut shards = self.shards.lock();
        let requests = match shards.get(&partition).filter(|shard| !shard.requests.is_closed()) {
            Some(shard) if shard.epoch == epoch => shard.requests.clone(),
            // Leadership has been won again since the look above: there must not be two of that shard.
            Some(shard) if shard.epoch > epoch => return Err(GroupError::NotCoordinator),
            _ => {
                let (requests, queue) = mpsc::channel(QUEUE);
                let span = info_span!(parent: &self.span, "groups", partition);
                tokio::spawn(Shard::run(led, epoch, self.settings, queue).instrument(span));
                shards.insert(partition, Handle { epoch, requests: requests.clone() });
                requests
            }
        };
        drop(shards);
        requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => GroupError::Loading,
            mpsc::error::TrySendError::Closed(_) => GroupError::NotCoordinator,
        })
    }
}

/// Java's `String.hashCode` without its sign, as Kafka spreads groups.
fn java_hash(text: &str) -> u32 {
    let hash = text.encode_utf16().fold(0i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    hash as u32 & i32::MAX as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_spread_as_kafka_does() {
        // From a JVM: "hello".hashCode() is 99162322, "my-group".hashCode() is -1189880229.
        assert_eq!(java_hash("hello"), 99_162_322);
        assert_eq!(java_hash(""), 0);
        assert_eq!(java_hash("polygenelubricants"), 0, "i32::MIN has no absolute value");
    }
}
