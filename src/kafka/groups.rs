//! Consumer groups: the classic group protocol, offsets and administration, as calls of [`crate::coordinator`].
//!
//! A committed offset is kept with its topic's id: to a topic that was created again under the name it means nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::connection::Client;
use super::dispatch::Handled;
use super::messages::*;
use super::metadata::{Allowed, brokers, topic_uuid};
use super::{Door, ErrorCode};
use crate::coordinator::{
    CommittedOffset, GroupDescription, GroupError, Join, Joined, Leaving, METADATA_BYTES_MAX, Partitions, Speaker, Sync,
};

/// Longest that a client waits for the groups' topic to be created by its asking for a coordinator.
const TOPIC_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest that it waits for the catalog, when a committed offset is of a topic that this broker does not know.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes that are kept of what a member calls itself.
const CLIENT_ID_BYTES_MAX: usize = 255;
/// What FindCoordinator looks for.
const GROUP: i8 = 0;

impl From<&GroupError> for ErrorCode {
    fn from(error: &GroupError) -> Self {
        match error {
            // Clients ask again after both.
            GroupError::NotCoordinator | GroupError::Lost => Self::NotCoordinator,
            GroupError::Loading => Self::CoordinatorLoadInProgress,
            GroupError::InvalidGroup => Self::InvalidGroupId,
            GroupError::UnknownMember => Self::UnknownMemberId,
            GroupError::IllegalGeneration => Self::IllegalGeneration,
            GroupError::RebalanceInProgress => Self::RebalanceInProgress,
            GroupError::InconsistentProtocol => Self::InconsistentGroupProtocol,
            GroupError::MemberIdRequired(_) => Self::MemberIdRequired,
            GroupError::FencedInstance => Self::FencedInstanceId,
            GroupError::Full | GroupError::NoRoom => Self::GroupMaxSizeReached,
            GroupError::InvalidSessionTimeout => Self::InvalidSessionTimeout,
            GroupError::NonEmpty => Self::NonEmptyGroup,
            GroupError::NotFound => Self::GroupIdNotFound,
            GroupError::MetadataTooLarge => Self::OffsetMetadataTooLarge,
            GroupError::Subscribed => Self::GroupSubscribedToTopic,
        }
    }
}

/// The code for Heartbeat and SyncGroup, which Kafka never answers by COORDINATOR_LOAD_IN_PROGRESS: consumers do not expect it
/// there (aiokafka's ends). Who is told to look for the coordinator comes back.
fn code_in_session<T>(result: &Result<T, GroupError>) -> i16 {
    match result {
        Err(GroupError::Loading) => ErrorCode::NotCoordinator.number(),
        other => code(other),
    }
}

fn code<T>(result: &Result<T, GroupError>) -> i16 {
    result.as_ref().map_or_else(|error| ErrorCode::from(error).number(), |_| 0)
}

fn millis(ms: i32) -> Duration {
    Duration::from_millis(ms.max(0) as u64)
}

/// FindCoordinator.
pub(super) async fn find_coordinator(door: &Arc<Door>, request: FindCoordinatorRequest, version: i16) -> Response {
    let keys = if version >= 4 { request.keys } else { vec![request.key] };
    let topic = match request.key_type {
        GROUP => door.broker.ensure_offsets_topic(TOPIC_TIMEOUT).await.map_err(|error| error.message),
        other => Err(format!("coordinators of kind {other}: there are no transactions")),
    };
    let known = brokers(door);
    let find = |key: String| {
        let refused = |code: ErrorCode, message: String| FoundCoordinator {
            key: key.clone(),
            error_code: code.number(),
            error_message: Some(message),
            ..Default::default()
        };
        let topic = match &topic {
            Ok(topic) => topic,
            Err(why) if request.key_type != GROUP => return refused(ErrorCode::InvalidRequest, why.clone()),
            Err(why) => return refused(ErrorCode::CoordinatorNotAvailable, why.clone()),
        };
        let partition = door.broker.groups().partition_of(&key).and_then(|at| topic.partitions.get(at as usize));
        let leader = partition.and_then(|partition| partition.leader).map(|leader| leader.0 as i32);
        match known.iter().find(|broker| Some(broker.node_id) == leader) {
            Some(broker) => FoundCoordinator {
                key: key.clone(),
                node_id: broker.node_id,
                host: broker.host.clone(),
                port: broker.port,
                ..Default::default()
            },
            None => refused(ErrorCode::CoordinatorNotAvailable, "it has no leader at the moment".to_owned()),
        }
    };
    let coordinators: Vec<_> = keys.into_iter().map(find).collect();
    let mut response = FindCoordinatorResponse::default();
    match coordinators.first().filter(|_| version < 4) {
        Some(found) => {
            (response.error_code, response.error_message) = (found.error_code, found.error_message.clone());
            (response.node_id, response.host, response.port) = (found.node_id, found.host.clone(), found.port);
        }
        None => response.coordinators = coordinators,
    }
    Response::FindCoordinator(response)
}

/// JoinGroup. Nobody waits for the answer of a client that has gone: it may have left the group for good.
pub(super) async fn join(
    door: &Arc<Door>,
    client: &Client,
    client_id: Option<String>,
    request: JoinGroupRequest,
    version: i16,
) -> Handled {
    let rebalance_timeout = if version == 0 { request.session_timeout_ms } else { request.rebalance_timeout_ms };
    let join = Join {
        member_id: request.member_id.clone(),
        instance_id: request.group_instance_id,
        client_id: client_id.map_or_else(String::new, shortened),
        client_host: format!("/{}", client.peer.ip()),
        session_timeout: millis(request.session_timeout_ms),
        rebalance_timeout: millis(rebalance_timeout),
        protocol_type: request.protocol_type,
        protocols: request.protocols.into_iter().map(|protocol| (protocol.name, protocol.metadata)).collect(),
        id_required: version >= 4,
        may_skip_assignment: version >= 9,
    };
    let joined = tokio::select! {
        joined = door.broker.groups().join(&request.group_id, join) => joined,
        () = client.gone() => return Handled::Silence,
    };
    let error_code = code(&joined);
    let response = match joined {
        Ok(Joined { generation, protocol_type, protocol, leader, member_id, members, skip_assignment }) => {
            let member = |member: crate::coordinator::JoinedMember| JoinGroupMember {
                member_id: member.id,
                group_instance_id: member.instance_id,
                metadata: member.metadata,
            };
            JoinGroupResponse {
                generation_id: generation,
                protocol_type: Some(protocol_type),
                protocol_name: Some(protocol),
                leader,
                skip_assignment,
                member_id,
                members: members.into_iter().map(member).collect(),
                ..Default::default()
            }
        }
        Err(error) => {
            let member_id = match error {
                GroupError::MemberIdRequired(id) => id,
                _ => request.member_id,
            };
            // Before version 7 the name may not be null.
            let protocol_name = (version < 7).then(String::new);
            JoinGroupResponse { error_code, member_id, protocol_name, ..Default::default() }
        }
    };
    Response::JoinGroup(response).into()
}

/// SyncGroup.
pub(super) async fn sync(door: &Arc<Door>, client: &Client, request: SyncGroupRequest) -> Handled {
    let assignments = request.assignments.into_iter().map(|given| (given.member_id, given.assignment)).collect();
    let sync = Sync {
        member_id: request.member_id,
        instance_id: request.group_instance_id,
        generation: request.generation_id,
        protocol_type: request.protocol_type,
        protocol: request.protocol_name,
        assignments,
    };
    let synced = tokio::select! {
        synced = door.broker.groups().sync(&request.group_id, sync) => synced,
        () = client.gone() => return Handled::Silence,
    };
    let error_code = code_in_session(&synced);
    Response::SyncGroup(match synced {
        Ok(synced) => SyncGroupResponse {
            protocol_type: Some(synced.protocol_type),
            protocol_name: Some(synced.protocol),
            assignment: synced.assignment,
            ..Default::default()
        },
        Err(_) => SyncGroupResponse { error_code, ..Default::default() },
    })
    .into()
}

/// What a member calls itself stands in the group, in its log and in every answer about it.
fn shortened(mut client_id: String) -> String {
    let end = (0..=CLIENT_ID_BYTES_MAX).rev().find(|end| client_id.is_char_boundary(*end)).unwrap_or(0);
    client_id.truncate(end);
    client_id.shrink_to_fit();
    client_id
}

/// Heartbeat.
pub(super) async fn heartbeat(door: &Arc<Door>, request: HeartbeatRequest) -> Response {
    let speaker = Speaker {
        member_id: request.member_id,
        instance_id: request.group_instance_id,
        generation: request.generation_id,
    };
    let error_code = code_in_session(&door.broker.groups().heartbeat(&request.group_id, speaker).await);
    Response::Heartbeat(HeartbeatResponse { error_code, ..Default::default() })
}

/// LeaveGroup.
pub(super) async fn leave(door: &Arc<Door>, request: LeaveGroupRequest, version: i16) -> Response {
    let members = match version {
        ..=2 => vec![LeavingMember { member_id: request.member_id, ..Default::default() }],
        _ => request.members,
    };
    let leaving = members
        .iter()
        .map(|member| Leaving { member_id: member.member_id.clone(), instance_id: member.group_instance_id.clone() });
    let left = door.broker.groups().leave(&request.group_id, leaving.collect()).await;
    let mut error_code = code(&left);
    let results = left.unwrap_or_default();
    if version <= 2 {
        error_code = results.first().map_or(error_code, code);
    }
    let members = members.into_iter().zip(&results).map(|(member, result)| LeftMember {
        member_id: member.member_id,
        group_instance_id: member.group_instance_id,
        error_code: code(result),
    });
    Response::LeaveGroup(LeaveGroupResponse { error_code, members: members.collect(), ..Default::default() })
}

/// Which topics there are, and their ids: each is looked up once per request.
struct Topics<'a> {
    door: &'a Door,
    known: BTreeMap<String, Option<(u128, usize)>>,
}

impl<'a> Topics<'a> {
    fn new(door: &'a Door) -> Self {
        Self { door, known: BTreeMap::new() }
    }

    /// A topic's id and how many partitions it has.
    fn get(&mut self, name: &str) -> Option<(u128, usize)> {
        if let Some(known) = self.known.get(name) {
            return *known;
        }
        let found = self.door.broker.topic(name).ok().map(|topic| (topic_uuid(&topic).0, topic.partitions.len()));
        self.known.insert(name.to_owned(), found);
        found
    }

    /// Whether an offset is of the topic that has its name now.
    fn has(&mut self, offset: &CommittedOffset) -> bool {
        self.get(&offset.topic).is_some_and(|(topic_id, _)| topic_id == offset.topic_id)
    }
}

/// Of these offsets those whose topics are there. That one is not is said only by a copy of the catalog that is up to date: a
/// consumer that is told of no committed offset begins anew.
async fn of_known_topics(
    door: &Door,
    offsets: Vec<CommittedOffset>,
) -> Result<BTreeMap<(String, u32), CommittedOffset>, GroupError> {
    let mut known = Topics::new(door);
    if !offsets.iter().all(|offset| known.has(offset)) {
        door.broker.catch_up(CATALOG_TIMEOUT).await.map_err(|_| GroupError::Loading)?;
        known = Topics::new(door);
    }
    let place = |offset: CommittedOffset| ((offset.topic.clone(), offset.partition), offset);
    Ok(offsets.into_iter().filter(|offset| known.has(offset)).map(place).collect())
}

/// OffsetCommit.
pub(super) async fn commit(door: &Arc<Door>, request: OffsetCommitRequest) -> Response {
    let mut known = Topics::new(door);
    let mut offsets = Vec::new();
    let mut topics: Vec<OffsetCommittedTopic> = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let found = known.get(&topic.name);
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in topic.partitions {
            let number = u32::try_from(partition.partition).ok();
            let place = found.zip(number).filter(|((_, count), number)| (*number as usize) < *count);
            let long = partition.metadata.as_ref().is_some_and(|metadata| metadata.len() > METADATA_BYTES_MAX);
            let error_code = match place {
                Some(_) if long => ErrorCode::OffsetMetadataTooLarge,
                Some(_) => ErrorCode::None,
                None => ErrorCode::UnknownTopicOrPartition,
            };
            if let Some(((topic_id, _), number)) = place.filter(|_| !long) {
                offsets.push(CommittedOffset {
                    topic: topic.name.clone(),
                    topic_id,
                    partition: number,
                    offset: partition.offset,
                    leader_epoch: partition.leader_epoch,
                    metadata: partition.metadata.unwrap_or_default(),
                    time_ms: 0,
                });
            }
            partitions.push(PartitionError { partition: partition.partition, error_code: error_code.number() });
        }
        topics.push(OffsetCommittedTopic { name: topic.name, partitions });
    }
    let speaker = Speaker {
        member_id: request.member_id,
        instance_id: request.group_instance_id,
        generation: request.generation_id,
    };
    let failed = match door.broker.groups().commit(&request.group_id, speaker, offsets).await {
        // Those who commit do not know the other code.
        Err(GroupError::NoRoom) => ErrorCode::InvalidCommitOffsetSize.number(),
        done => code(&done),
    };
    for partition in topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
        if partition.error_code == 0 {
            partition.error_code = failed;
        }
    }
    Response::OffsetCommit(OffsetCommitResponse { topics, ..Default::default() })
}

/// OffsetFetch.
pub(super) async fn fetch(door: &Arc<Door>, request: OffsetFetchRequest, version: i16) -> Response {
    if version >= 8 {
        let (mut groups, mut seen) = (Vec::new(), BTreeSet::new());
        for group in request.groups {
            groups.push(match seen.insert(group.group_id.clone()) {
                true => fetch_group(door, group).await,
                // A short request must not ask for everything again and again.
                false => OffsetFetchedGroup {
                    group_id: group.group_id,
                    error_code: ErrorCode::InvalidRequest.number(),
                    ..Default::default()
                },
            });
        }
        return Response::OffsetFetch(OffsetFetchResponse { groups, ..Default::default() });
    }
    // Before version 2 "all" could not be said: an empty list is one.
    let topics = request.topics.or((version < 2).then(Vec::new));
    let group = OffsetFetchGroup { group_id: request.group_id, topics, ..Default::default() };
    let mut fetched = fetch_group(door, group).await;
    if version < 2 && fetched.error_code != 0 {
        // There is no other place to say it.
        for partition in fetched.topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
            partition.error_code = fetched.error_code;
        }
    }
    let OffsetFetchedGroup { topics, error_code, .. } = fetched;
    Response::OffsetFetch(OffsetFetchResponse { topics, error_code, ..Default::default() })
}

async fn fetch_group(door: &Arc<Door>, group: OffsetFetchGroup) -> OffsetFetchedGroup {
    let asked = group.topics.map(by_topic);
    let wanted = asked.as_ref().map(|asked| asked.iter().map(|(name, partitions)| (name.clone(), numbers(partitions))));
    let found = match door.broker.groups().committed(&group.group_id, wanted.map(Iterator::collect)).await {
        Ok(committed) => of_known_topics(door, committed).await,
        Err(error) => Err(error),
    };
    let error_code = code(&found);
    let found = found.unwrap_or_default();
    let asked = asked.unwrap_or_else(|| {
        let mut topics: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
        for (topic, partition) in found.keys() {
            topics.entry(topic.clone()).or_default().insert(*partition as i32);
        }
        topics
    });
    let topics = asked.into_iter().map(|(name, partitions)| {
        let mut place = (name.clone(), 0);
        let partitions = partitions.into_iter().map(|partition| {
            let none = OffsetFetchedPartition { partition, metadata: Some(String::new()), ..Default::default() };
            place.1 = number(partition);
            match found.get(&place) {
                Some(offset) => OffsetFetchedPartition {
                    offset: offset.offset,
                    leader_epoch: offset.leader_epoch,
                    metadata: Some(offset.metadata.clone()),
                    ..none
                },
                None => none,
            }
        });
        OffsetFetchedTopic { partitions: partitions.collect(), name }
    });
    OffsetFetchedGroup { topics: topics.collect(), group_id: group.group_id, error_code }
}

/// Each partition once, however often it was named: its metadata is a thousand times as long as its number.
fn by_topic(topics: Vec<OffsetFetchTopic>) -> BTreeMap<String, BTreeSet<i32>> {
    let mut merged: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
    for topic in topics {
        merged.entry(topic.name).or_default().extend(topic.partitions);
    }
    merged
}

/// A partition's number; none has the largest.
fn number(partition: i32) -> u32 {
    u32::try_from(partition).unwrap_or(u32::MAX)
}

fn numbers<'a>(partitions: impl IntoIterator<Item = &'a i32>) -> Vec<u32> {
    partitions.into_iter().map(|partition| number(*partition)).collect()
}

/// OffsetDelete.
pub(super) async fn delete_offsets(door: &Arc<Door>, request: OffsetDeleteRequest) -> Response {
    let mut known = Topics::new(door);
    let counts: Vec<usize> =
        request.topics.iter().map(|topic| known.get(&topic.name).map_or(0, |(_, count)| count)).collect();
    let partitions: Partitions = request
        .topics
        .iter()
        .zip(&counts)
        .map(|(topic, count)| {
            let there = topic.partitions.iter().map(|partition| &partition.partition);
            (topic.name.clone(), numbers(there.filter(|partition| (number(**partition) as usize) < *count)))
        })
        .collect();
    let removed = door.broker.groups().remove_offsets(&request.group_id, partitions).await;
    let error_code = code(&removed);
    let topics = request.topics.into_iter().zip(counts).zip(removed.unwrap_or_default());
    let topics = topics.map(|((topic, count), removed)| {
        let done = code(&removed);
        let partitions = topic.partitions.iter().map(|OffsetDeletePartition { partition }| {
            let error_code = match number(*partition) as usize {
                number if number < count => done,
                _ => ErrorCode::UnknownTopicOrPartition.number(),
            };
            PartitionError { partition: *partition, error_code }
        });
        OffsetCommittedTopic { partitions: partitions.collect(), name: topic.name }
    });
    Response::OffsetDelete(OffsetDeleteResponse { error_code, topics: topics.collect(), ..Default::default() })
}

/// DescribeGroups.
pub(super) async fn describe(door: &Arc<Door>, request: DescribeGroupsRequest) -> Response {
    let mut groups = Vec::new();
    let authorized_operations = Allowed::Group.bits(request.include_authorized_operations);
    // Named twice, described once.
    let mut seen = BTreeSet::new();
    for group_id in request.groups.into_iter().filter(|group| seen.insert(group.clone())) {
        groups.push(match door.broker.groups().describe(&group_id).await {
            Ok(group) => DescribedGroup { authorized_operations, ..described(group) },
            // A group that was never heard of is a dead one.
            Err(GroupError::NotFound) => {
                DescribedGroup { group_id, group_state: "Dead".to_owned(), ..Default::default() }
            }
            Err(error) => {
                DescribedGroup { group_id, error_code: ErrorCode::from(&error).number(), ..Default::default() }
            }
        });
    }
    Response::DescribeGroups(DescribeGroupsResponse { groups, ..Default::default() })
}

fn described(group: GroupDescription) -> DescribedGroup {
    let member = |member: crate::coordinator::MemberDescription| DescribedGroupMember {
        member_id: member.id,
        group_instance_id: member.instance_id,
        client_id: member.client_id,
        client_host: member.client_host,
        member_metadata: member.metadata,
        member_assignment: member.assignment,
    };
    DescribedGroup {
        group_id: group.name,
        group_state: group.state.as_str().to_owned(),
        protocol_type: group.protocol_type,
        protocol_data: group.protocol,
        members: group.members.into_iter().map(member).collect(),
        ..Default::default()
    }
}

/// ListGroups: those of this broker; clients ask every broker.
pub(super) async fn list(door: &Arc<Door>, request: ListGroupsRequest) -> Response {
    let listed = door.broker.groups().list().await;
    let error_code = code(&listed);
    let wanted = |filter: &[String], value: &str| {
        filter.is_empty() || filter.iter().any(|wanted| wanted.eq_ignore_ascii_case(value))
    };
    let groups = listed.unwrap_or_default().into_iter();
    let groups = groups.filter(|group| {
        wanted(&request.states_filter, group.state.as_str()) && wanted(&request.types_filter, "classic")
    });
    let groups = groups.map(|group| ListedGroup {
        group_id: group.name,
        protocol_type: group.protocol_type,
        group_state: group.state.as_str().to_owned(),
        group_type: "classic".to_owned(),
    });
    Response::ListGroups(ListGroupsResponse { error_code, groups: groups.collect(), ..Default::default() })
}

/// DeleteGroups.
pub(super) async fn delete(door: &Arc<Door>, request: DeleteGroupsRequest) -> Response {
    let mut results = Vec::with_capacity(request.groups.len());
    for group_id in request.groups {
        let error_code = code(&door.broker.groups().delete(&group_id).await);
        results.push(DeletedGroup { group_id, error_code });
    }
    Response::DeleteGroups(DeleteGroupsResponse { results, ..Default::default() })
}
