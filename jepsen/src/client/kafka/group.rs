//! A member of a consumer group, by the classic protocol: join, sync, heartbeats, commits, leave.
//!
//! A poll does what a consumer's poll does: it tells that it lives, joins again when it is told to, commits now and then where it stands, and
//! fetches what it was assigned from where the group stood. The leader shares the keys out in turn. Every committed offset carries a word of
//! its own as metadata, so that what is told later names the very commit; the [`crate::client::ledger`] has
//! both, and who was assigned what.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use kafka_protocol::messages::consumer_protocol_assignment::TopicPartition;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    ConsumerProtocolAssignment, ConsumerProtocolSubscription, FindCoordinatorRequest, GroupId, HeartbeatRequest,
    JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, OffsetCommitRequest, OffsetFetchRequest, SyncGroupRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use super::brokers::{text, topic_name};
use super::connection::NoAnswer;
use super::{KafkaClient, REQUEST_TIMEOUT, Shared, code};
use crate::client::ledger::{Assigned, Open};
use crate::client::{Client as _, FromGroup};
use crate::history::{Key, Kind, Offset};

/// The group gives up on a member that says nothing for so long.
const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
/// How long the others are waited for when a member joins.
const REBALANCE_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a join may take; longer than the others are waited for.
const JOIN_TIMEOUT: Duration = Duration::from_secs(12);
/// A member tells that often that it lives.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(700);
/// A commit for so many polls.
const COMMIT_EVERY: u64 = 3;
/// The way of sharing out, by its name; all clients know this one only.
const PROTOCOL: &str = "jepsen-in-turn";
/// The version of the consumer protocol's two messages.
const CONSUMER_PROTOCOL: i16 = 1;

/// A member, or whoever commits and asks without being one.
pub(super) struct Member {
    group: String,
    /// What it subscribes to.
    keys: Vec<Key>,
    id: StrBytes,
    /// -1 while it has not joined.
    generation: i32,
    coordinator: Option<String>,
    /// What it was assigned, and where it stands there; `None` is the beginning.
    positions: BTreeMap<Key, Option<Offset>>,
    heard: Instant,
    polls: u64,
    /// It goes into the ledger.
    kept: bool,
}

/// An offset was not committed, or nobody knows.
pub(super) struct NotCommitted {
    pub(super) may_have: bool,
    pub(super) why: String,
}

impl Member {
    pub(super) fn new(group: String, keys: Vec<Key>) -> Self {
        let (id, positions, heard) = (StrBytes::default(), BTreeMap::new(), Instant::now());
        Self { group, keys, id, generation: -1, coordinator: None, positions, heard, polls: 0, kept: true }
    }

    /// Nobody: commits of no generation, which are in no ledger.
    pub(super) fn outside(group: &str) -> Self {
        Self { kept: false, ..Self::new(group.to_owned(), Vec::new()) }
    }

    fn group_id(&self) -> GroupId {
        GroupId(text(&self.group))
    }

    /// One poll of a consumer.
    pub(super) async fn poll(&mut self, client: &mut KafkaClient) -> FromGroup {
        self.polls += 1;
        let mut polled = FromGroup::default();
        if let Err(why) = self.stay(client).await {
            polled.errors.push(why);
        }
        if self.generation < 0 {
            let before: Vec<Key> = self.positions.keys().copied().collect();
            let joined = self.join(client).await;
            polled.moved = before.into_iter().chain(self.positions.keys().copied()).collect();
            polled.moved.sort_unstable();
            polled.moved.dedup();
            if let Err(why) = joined {
                polled.errors.push(why);
                return polled;
            }
        }
        // Nothing to read is an answer, too: others have it all.
        polled.answered = self.positions.is_empty();
        for (key, position) in &mut self.positions {
            match client.fetch(*key, *position, false).await {
                Ok(fetched) => {
                    polled.answered = true;
                    polled.errors.extend(fetched.foreign);
                    *position = Some(fetched.next);
                    if !fetched.records.is_empty() {
                        polled.records.push((*key, fetched.records));
                    }
                }
                Err(why) => polled.errors.push(format!("key {}: {why}", key.0)),
            }
        }
        polled
    }

    /// Says that it lives, if it is time, and commits, if it is time. Afterwards it may be no member any more.
    async fn stay(&mut self, client: &mut KafkaClient) -> Result<(), String> {
        if self.generation < 0 {
            return Ok(());
        }
        if self.polls.is_multiple_of(COMMIT_EVERY) {
            self.commit_positions(client).await?;
        }
        if self.generation < 0 || self.heard.elapsed() < HEARTBEAT_INTERVAL {
            return Ok(());
        }
        let request = HeartbeatRequest::default()
            .with_group_id(self.group_id())
            .with_generation_id(self.generation)
            .with_member_id(self.id.clone());
        let coordinator = self.coordinator(client).await?;
        let told = client.brokers.ask(&coordinator, &request, REQUEST_TIMEOUT).await.map_err(|why| self.lost(why))?;
        match told.error_code {
            0 => {
                self.heard = Instant::now();
                Ok(())
            }
            code::REBALANCING => {
                // As consumers do when partitions are taken from them.
                let committed = self.commit_positions(client).await;
                self.generation = -1;
                committed
            }
            other => Err(self.refused("a heartbeat", other)),
        }
    }

    /// No answer: somebody else may coordinate by now.
    fn lost(&mut self, why: NoAnswer) -> String {
        self.coordinator = None;
        format!("group {}: {}", self.group, why.why())
    }

    /// What an error means for the membership.
    fn refused(&mut self, what: &str, error: i16) -> String {
        match error {
            code::LOADING => {}
            code::NOT_COORDINATOR | code::COORDINATOR_NOT_AVAILABLE => self.coordinator = None,
            code::UNKNOWN_MEMBER => {
                self.id = StrBytes::default();
                self.generation = -1;
            }
            code::ILLEGAL_GENERATION | code::REBALANCING => self.generation = -1,
            _ => {}
        }
        format!("group {}: {what}: error {error}", self.group)
    }

    async fn coordinator(&mut self, client: &mut KafkaClient) -> Result<String, String> {
        if let Some(coordinator) = &self.coordinator {
            return Ok(coordinator.clone());
        }
        let request = FindCoordinatorRequest::default().with_key_type(0).with_coordinator_keys(vec![text(&self.group)]);
        let any = client.brokers.any();
        let told = client.brokers.ask(&any, &request, REQUEST_TIMEOUT).await.map_err(|why| self.lost(why))?;
        let found = told.coordinators.into_iter().next().ok_or("no coordinator is named")?;
        if found.error_code != 0 {
            client.brokers.look_elsewhere();
            return Err(self.refused("its coordinator", found.error_code));
        }
        let address = format!("{}:{}", found.host, found.port);
        self.coordinator = Some(address.clone());
        Ok(address)
    }

    /// Joins, is told what to read, and from where on.
    async fn join(&mut self, client: &mut KafkaClient) -> Result<(), String> {
        self.positions.clear();
        let invoked_ns = client.shared.ledger.now_ns();
        let joined = self.ask_to_join(client).await?;
        self.id = joined.member_id.clone();
        let assignments = if joined.leader == joined.member_id { self.share_out(client, &joined)? } else { Vec::new() };
        let request = SyncGroupRequest::default()
            .with_group_id(self.group_id())
            .with_generation_id(joined.generation_id)
            .with_member_id(self.id.clone())
            .with_protocol_type(Some(text("consumer")))
            .with_protocol_name(Some(text(PROTOCOL)))
            .with_assignments(assignments);
        let coordinator = self.coordinator(client).await?;
        let told = client.brokers.ask(&coordinator, &request, JOIN_TIMEOUT).await.map_err(|why| self.lost(why))?;
        if told.error_code != 0 {
            return Err(self.refused("a sync", told.error_code));
        }
        let keys = keys_of(&client.shared, told.assignment)?;
        client.shared.ledger.assigned(Assigned {
            group: self.group.clone(),
            generation: joined.generation_id,
            leader: joined.leader.to_string(),
            member: self.id.to_string(),
            keys: keys.iter().map(|key| key.0).collect(),
            invoked_ns,
            completed_ns: client.shared.ledger.now_ns(),
        });
        let committed = self.committed(client, &keys).await?;
        self.positions = keys.into_iter().map(|key| (key, committed.get(&key).copied())).collect();
        self.generation = joined.generation_id;
        self.heard = Instant::now();
        Ok(())
    }

    async fn ask_to_join(&mut self, client: &mut KafkaClient) -> Result<JoinGroupResponse, String> {
        // The first time a new member is only given its id.
        for _ in 0..2 {
            let coordinator = self.coordinator(client).await?;
            let protocol = JoinGroupRequestProtocol::default()
                .with_name(text(PROTOCOL))
                .with_metadata(subscription(&client.shared, &self.keys)?);
            let request = JoinGroupRequest::default()
                .with_group_id(self.group_id())
                .with_session_timeout_ms(SESSION_TIMEOUT.as_millis() as i32)
                .with_rebalance_timeout_ms(REBALANCE_TIMEOUT.as_millis() as i32)
                .with_member_id(self.id.clone())
                .with_protocol_type(text("consumer"))
                .with_protocols(vec![protocol]);
            let told = client.brokers.ask(&coordinator, &request, JOIN_TIMEOUT).await.map_err(|why| self.lost(why))?;
            match told.error_code {
                0 => return Ok(told),
                code::MEMBER_ID_REQUIRED => self.id = told.member_id,
                other => return Err(self.refused("a join", other)),
            }
        }
        Err(format!("group {}: an id was given twice", self.group))
    }

    /// The keys in turn to the members in the order of their ids: what the group's leader decides.
    fn share_out(
        &self,
        client: &KafkaClient,
        joined: &JoinGroupResponse,
    ) -> Result<Vec<SyncGroupRequestAssignment>, String> {
        let mut members: Vec<&StrBytes> = joined.members.iter().map(|member| &member.member_id).collect();
        members.sort_unstable();
        let shares = members.iter().enumerate().map(|(turn, member)| {
            let keys = self.keys.iter().skip(turn).step_by(members.len()).copied().collect::<Vec<_>>();
            let assignment = assignment(&client.shared, &keys)?;
            Ok(SyncGroupRequestAssignment::default().with_member_id((*member).clone()).with_assignment(assignment))
        });
        shares.collect()
    }

    async fn commit_positions(&mut self, client: &mut KafkaClient) -> Result<(), String> {
        let positions: Vec<(Key, Offset)> =
            self.positions.iter().filter_map(|(key, position)| Some((*key, (*position)?))).collect();
        if positions.is_empty() {
            return Ok(());
        }
        self.commit(client, &positions).await.map_err(|not| not.why)
    }

    /// Commits offsets.
    pub(super) async fn commit(
        &mut self,
        client: &mut KafkaClient,
        offsets: &[(Key, Offset)],
    ) -> Result<(), NotCommitted> {
        let coordinator = self.coordinator(client).await;
        let coordinator = coordinator.map_err(|why| NotCommitted { may_have: false, why })?;
        let shared = client.shared.clone();
        let open = |(key, offset): &(Key, Offset)| {
            (*key, self.kept.then(|| shared.ledger.begin_commit(&self.group, *key, *offset)))
        };
        let open: Vec<(Key, Option<Open>)> = offsets.iter().map(open).collect();
        let words = open.iter().map(|(_, open)| open.as_ref().map_or(String::new(), |open| open.word.to_string()));
        let told = match self.commit_request(&shared, offsets, words) {
            Ok(request) => client.brokers.ask(&coordinator, &request, REQUEST_TIMEOUT).await,
            Err(why) => Err(NoAnswer::Unsent(why)),
        };
        let end = |open: Option<Open>, kind, why: Option<String>| {
            if let Some(open) = open {
                shared.ledger.end_commit(open, kind, why);
            }
        };
        let told = match told {
            Ok(told) => told,
            Err(why) => {
                let may_have = matches!(why, NoAnswer::Unknown(_));
                let (kind, why) = (if may_have { Kind::Info } else { Kind::Fail }, self.lost(why));
                open.into_iter().for_each(|(_, open)| end(open, kind, Some(why.clone())));
                return Err(NotCommitted { may_have, why });
            }
        };
        let mut errors: BTreeMap<Key, i16> = BTreeMap::new();
        for topic in &told.topics {
            for partition in &topic.partitions {
                let key = shared.key_of(&topic.name.0, partition.partition_index);
                errors.extend(key.map(|key| (key, partition.error_code)));
            }
        }
        let mut worst: Option<(bool, i16)> = None;
        for (key, open) in open {
            let error = errors.get(&key).copied();
            let kind = commit_outcome(error);
            end(open, kind, (kind != Kind::Ok).then(|| format!("error {error:?}")));
            if kind != Kind::Ok {
                let before = worst.is_some_and(|(may_have, _)| may_have);
                worst = Some((before || kind == Kind::Info, error.unwrap_or(-1)));
            }
        }
        match worst {
            None => Ok(()),
            Some((may_have, error)) => Err(NotCommitted { may_have, why: self.refused("a commit", error) }),
        }
    }

    fn commit_request(
        &self,
        shared: &Shared,
        offsets: &[(Key, Offset)],
        words: impl Iterator<Item = String>,
    ) -> Result<OffsetCommitRequest, String> {
        let mut topics: BTreeMap<String, Vec<OffsetCommitRequestPartition>> = BTreeMap::new();
        for ((key, offset), word) in offsets.iter().zip(words) {
            let place = shared.place(*key)?;
            let partition = OffsetCommitRequestPartition::default()
                .with_partition_index(place.partition as i32)
                .with_committed_offset(offset.0 as i64)
                .with_committed_leader_epoch(-1)
                .with_committed_metadata(Some(StrBytes::from_string(word)));
            topics.entry(place.topic.clone()).or_default().push(partition);
        }
        let topics = topics.into_iter().map(|(topic, partitions)| {
            OffsetCommitRequestTopic::default().with_name(topic_name(&topic)).with_partitions(partitions)
        });
        let request = OffsetCommitRequest::default()
            .with_group_id(self.group_id())
            .with_generation_id_or_member_epoch(self.generation)
            .with_member_id(self.id.clone())
            .with_retention_time_ms(-1)
            .with_topics(topics.collect());
        Ok(request)
    }

    /// Where the group stands in these keys; without those in which nothing was committed.
    pub(super) async fn committed(
        &mut self,
        client: &mut KafkaClient,
        keys: &[Key],
    ) -> Result<BTreeMap<Key, Offset>, String> {
        if keys.is_empty() {
            return Ok(BTreeMap::new());
        }
        let shared = client.shared.clone();
        let looks = keys.iter().filter(|_| self.kept).map(|key| (*key, shared.ledger.begin_look(&self.group, *key)));
        let mut looks: BTreeMap<Key, Open> = looks.collect();
        let told = self.ask_committed(client, keys).await;
        let mut found = BTreeMap::new();
        for (key, offset, metadata) in told.iter().flatten() {
            let offset = u64::try_from(*offset).ok().map(Offset);
            if let Some(look) = looks.remove(key) {
                shared.ledger.end_look(look, offset.map(|offset| (offset, metadata.as_str())));
            }
            found.extend(offset.map(|offset| (*key, offset)));
        }
        let why = told.as_ref().err().cloned().unwrap_or_else(|| "it is not in the answer".to_owned());
        looks.into_values().for_each(|look| shared.ledger.fail_look(look, why.clone()));
        told.map(|_| found)
    }

    /// Key, offset (-1: none) and metadata of each.
    async fn ask_committed(
        &mut self,
        client: &mut KafkaClient,
        keys: &[Key],
    ) -> Result<Vec<(Key, i64, String)>, String> {
        let mut topics: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for key in keys {
            let place = client.shared.place(*key)?;
            topics.entry(place.topic.clone()).or_default().push(place.partition as i32);
        }
        let topics = topics.into_iter().map(|(topic, partitions)| {
            OffsetFetchRequestTopics::default().with_name(topic_name(&topic)).with_partition_indexes(partitions)
        });
        let group =
            OffsetFetchRequestGroup::default().with_group_id(self.group_id()).with_topics(Some(topics.collect()));
        let request = OffsetFetchRequest::default().with_groups(vec![group]).with_require_stable(true);
        let coordinator = self.coordinator(client).await?;
        let told = client.brokers.ask(&coordinator, &request, REQUEST_TIMEOUT).await.map_err(|why| self.lost(why))?;
        let group = told.groups.into_iter().next().ok_or("an answer without a group")?;
        if group.error_code != 0 {
            return Err(self.refused("its offsets", group.error_code));
        }
        let mut found = Vec::with_capacity(keys.len());
        for topic in &group.topics {
            for partition in &topic.partitions {
                let Some(key) = client.shared.key_of(&topic.name.0, partition.partition_index) else { continue };
                if partition.error_code != 0 {
                    return Err(self.refused("its offsets", partition.error_code));
                }
                let metadata = partition.metadata.as_deref().unwrap_or_default().to_owned();
                found.push((key, partition.committed_offset, metadata));
            }
        }
        Ok(found)
    }

    /// Leaves, as a consumer that is closed: its place is free at once.
    pub(super) async fn leave(mut self, client: &mut KafkaClient) {
        if self.generation < 0 {
            return;
        }
        let _ = self.commit_positions(client).await;
        let Ok(coordinator) = self.coordinator(client).await else { return };
        let members = vec![MemberIdentity::default().with_member_id(self.id.clone())];
        let request = LeaveGroupRequest::default().with_group_id(self.group_id()).with_members(members);
        // If nobody hears it, the session runs out.
        let _ = client.brokers.ask(&coordinator, &request, REQUEST_TIMEOUT).await;
    }
}

/// What became of a commit, by its error; no error at all: the answer did not name it.
fn commit_outcome(error: Option<i16>) -> Kind {
    match error {
        Some(0) => Kind::Ok,
        // Refused by the group's state, before anything was written.
        Some(3 | 12 | code::LOADING | code::ILLEGAL_GENERATION | code::UNKNOWN_MEMBER | code::REBALANCING) => {
            Kind::Fail
        }
        // A coordinator that loses its place says so also of what it may have written.
        _ => Kind::Info,
    }
}

/// A message of the consumer protocol: its version, then its fields.
fn consumer_message(message: &impl Encodable) -> Result<Bytes, String> {
    let mut bytes = BytesMut::new();
    bytes.put_i16(CONSUMER_PROTOCOL);
    message.encode(&mut bytes, CONSUMER_PROTOCOL).map_err(|error| error.to_string())?;
    Ok(bytes.freeze())
}

fn subscription(shared: &Shared, keys: &[Key]) -> Result<Bytes, String> {
    let mut topics: Vec<String> =
        keys.iter().map(|key| Ok(shared.place(*key)?.topic.clone())).collect::<Result<_, String>>()?;
    topics.dedup();
    let topics = topics.iter().map(|topic| text(topic)).collect();
    consumer_message(&ConsumerProtocolSubscription::default().with_topics(topics))
}

fn assignment(shared: &Shared, keys: &[Key]) -> Result<Bytes, String> {
    let mut topics: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for key in keys {
        let place = shared.place(*key)?;
        topics.entry(place.topic.clone()).or_default().push(place.partition as i32);
    }
    let partitions = topics.into_iter().map(|(topic, partitions)| {
        TopicPartition::default().with_topic(topic_name(&topic)).with_partitions(partitions)
    });
    consumer_message(&ConsumerProtocolAssignment::default().with_assigned_partitions(partitions.collect()))
}

/// The keys of an assignment, ascending. An empty one has none.
fn keys_of(shared: &Shared, mut assignment: Bytes) -> Result<Vec<Key>, String> {
    if assignment.is_empty() {
        return Ok(Vec::new());
    }
    if assignment.remaining() < 2 || assignment.get_i16() != CONSUMER_PROTOCOL {
        return Err("an assignment of another version".to_owned());
    }
    let read = ConsumerProtocolAssignment::decode(&mut assignment, CONSUMER_PROTOCOL);
    let read = read.map_err(|error| format!("an assignment that is none: {error}"))?;
    let places = read.assigned_partitions.iter().flat_map(|topic| {
        topic.partitions.iter().map(|partition| {
            let key = shared.key_of(&topic.topic.0, *partition);
            key.ok_or_else(|| format!("{}/{partition} was assigned, and is no key", topic.topic.0))
        })
    });
    let mut keys: Vec<Key> = places.collect::<Result<_, _>>()?;
    keys.sort_unstable();
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;

    use super::*;
    use crate::client::Connector as _;
    use crate::client::http::Place;
    use crate::client::kafka::KafkaConnector;

    fn client() -> KafkaClient {
        let place = |topic: &str, partition| Place { topic: topic.to_owned(), partition };
        let places = vec![place("a", 0), place("a", 1), place("b", 0)];
        let dir = tempfile::tempdir().unwrap();
        let recorder = Arc::new(crate::recorder::Recorder::begin(dir.path()).unwrap());
        KafkaConnector::new(Vec::new(), places, |_| 0, recorder).connect(0, false)
    }

    #[test]
    fn every_key_is_shared_out_once_and_read_back() {
        let client = client();
        let member = Member::new("g".to_owned(), vec![Key(0), Key(1), Key(2)]);
        for count in 1..5 {
            let members = (0..count).map(|number| {
                JoinGroupResponseMember::default().with_member_id(StrBytes::from_string(format!("m{number}")))
            });
            let joined = JoinGroupResponse::default().with_members(members.collect());
            let shares = member.share_out(&client, &joined).unwrap();
            assert_eq!(shares.len(), count);
            let mut keys: Vec<Key> =
                shares.into_iter().flat_map(|share| keys_of(&client.shared, share.assignment).unwrap()).collect();
            keys.sort_unstable();
            assert_eq!(keys, member.keys);
        }
        assert_eq!(keys_of(&client.shared, Bytes::new()), Ok(Vec::new()));
        assert!(keys_of(&client.shared, Bytes::from_static(&[0, 9, 0])).is_err());
    }

    #[test]
    fn a_coordinator_that_loses_its_place_leaves_a_commit_open() {
        assert_eq!(commit_outcome(Some(0)), Kind::Ok);
        for open in [Some(code::NOT_COORDINATOR), Some(code::COORDINATOR_NOT_AVAILABLE), Some(7), Some(-1), None] {
            assert_eq!(commit_outcome(open), Kind::Info, "{open:?}");
        }
        assert_eq!(commit_outcome(Some(code::ILLEGAL_GENERATION)), Kind::Fail);
    }

    #[test]
    fn what_a_refusal_says_of_the_membership_is_taken_to_heart() {
        let after = |error| {
            let mut member = Member::new("g".to_owned(), Vec::new());
            (member.id, member.generation, member.coordinator) = (text("m"), 3, Some("c".to_owned()));
            member.refused("something", error);
            (member.id.is_empty(), member.generation, member.coordinator.is_some())
        };
        assert_eq!(after(code::LOADING), (false, 3, true));
        assert_eq!(after(code::NOT_COORDINATOR), (false, 3, false));
        assert_eq!(after(code::REBALANCING), (false, -1, true));
        assert_eq!(after(code::ILLEGAL_GENERATION), (false, -1, true));
        assert_eq!(after(code::UNKNOWN_MEMBER), (true, -1, true));
    }
}
