//! Consumer groups: the classic group protocol and administration, as calls of [`crate::coordinator`]. Their offsets are
//! `group_offsets`'.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;

use super::connection::Client;
use super::dispatch::Handled;
use super::group_answers::{answered, once_there_is_room, within_room};
use super::messages::*;
use super::metadata::{Allowed, brokers};
use super::{Door, ErrorCode};
use crate::coordinator::{
    GroupDescription, GroupError, GroupState, Join, Joined, Leaving, Speaker, Sync, TOLD_BYTES, Within,
};

/// Longest that a client waits for the groups' topic to be created by its asking for a coordinator.
const TOPIC_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes that are kept of what a member calls itself.
const CLIENT_ID_BYTES_MAX: usize = 255;
/// Most members that a SyncGroup may assign something, unless more may be in a group.
const ASSIGNMENTS_MAX: usize = 10_000;
/// What FindCoordinator looks for.
const GROUP: i8 = 0;

impl From<&GroupError> for ErrorCode {
    fn from(error: &GroupError) -> Self {
        match error {
            // Clients ask again after both.
            // Kafka, too, answers so where its own log has no room.
            GroupError::NotCoordinator | GroupError::Lost | GroupError::DiskFull => Self::NotCoordinator,
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

pub(super) fn code<T>(result: &Result<T, GroupError>) -> i16 {
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
        // A leader without a majority decides nothing, and may be one no more.
        let leader = partition.filter(|partition| partition.takes_writes).and_then(|partition| partition.leader);
        let leader = leader.map(|leader| leader.0 as i32);
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
    let told = |member: &JoinGroupMember| {
        let names = member.member_id.len() + member.group_instance_id.as_ref().map_or(0, String::len);
        TOLD_BYTES + names + member.metadata.len()
    };
    let bytes = response.members.iter().map(told).sum();
    once_there_is_room(door, client, Response::JoinGroup(response), bytes).await
}

/// SyncGroup.
pub(super) async fn sync(door: &Arc<Door>, client: &Client, request: SyncGroupRequest) -> Handled {
    // Those of a member that does not lead are not looked at, and may wait for the leader's.
    if request.assignments.len() > ASSIGNMENTS_MAX.max(door.config.group_members_max) {
        let error_code = ErrorCode::InvalidRequest.number();
        return Response::SyncGroup(SyncGroupResponse { error_code, ..Default::default() }).into();
    }
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
    let bytes = synced.as_ref().map_or(0, |synced| synced.assignment.len());
    let response = match synced {
        Ok(synced) => SyncGroupResponse {
            protocol_type: Some(synced.protocol_type),
            protocol_name: Some(synced.protocol),
            assignment: synced.assignment,
            ..Default::default()
        },
        Err(_) => SyncGroupResponse { error_code, ..Default::default() },
    };
    once_there_is_room(door, client, Response::SyncGroup(response), bytes).await
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

/// DescribeGroups.
pub(super) async fn describe(door: &Arc<Door>, request: DescribeGroupsRequest) -> Handled {
    let authorized_operations = Allowed::Group.bits(request.include_authorized_operations);
    // Named twice, described once.
    let mut seen = BTreeSet::new();
    let asked: Vec<String> = request.groups.into_iter().filter(|group| seen.insert(group.clone())).collect();
    drop(seen);
    let besides = asked.iter().map(|group_id| TOLD_BYTES + group_id.len()).sum();
    let (groups, share) = within_room(door, &asked, besides, |group_id, bytes_max| {
        describe_one(door, group_id, authorized_operations, bytes_max).boxed()
    })
    .await;
    answered(Response::DescribeGroups(DescribeGroupsResponse { groups, ..Default::default() }), share)
}

async fn describe_one(
    door: &Door,
    group_id: &str,
    authorized_operations: i32,
    bytes_max: usize,
) -> Within<DescribedGroup> {
    let group_id = group_id.to_owned();
    Ok(match door.broker.groups().describe_within(&group_id, bytes_max).await {
        Ok(group) => DescribedGroup { authorized_operations, ..described(group?) },
        // A group that was never heard of is a dead one.
        Err(GroupError::NotFound) => DescribedGroup { group_id, group_state: "Dead".to_owned(), ..Default::default() },
        Err(error) => DescribedGroup { group_id, error_code: ErrorCode::from(&error).number(), ..Default::default() },
    })
}

/// What members said and were given is told of a group that has come to its end with that, as by Kafka: meanwhile it is of another
/// generation.
fn described(group: GroupDescription) -> DescribedGroup {
    let stable = group.state == GroupState::Stable;
    let member = |member: crate::coordinator::MemberDescription| DescribedGroupMember {
        member_id: member.id,
        group_instance_id: member.instance_id,
        client_id: member.client_id,
        client_host: member.client_host,
        member_metadata: if stable { member.metadata } else { Bytes::new() },
        member_assignment: if stable { member.assignment } else { Bytes::new() },
    };
    DescribedGroup {
        group_id: group.name,
        group_state: group.state.as_str().to_owned(),
        protocol_type: group.protocol_type,
        protocol_data: if stable { group.protocol } else { String::new() },
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::MemberDescription;

    #[test]
    fn what_members_were_given_is_told_of_a_stable_group_only() {
        for state in
            [GroupState::Empty, GroupState::PreparingRebalance, GroupState::CompletingRebalance, GroupState::Stable]
        {
            let bytes = || Bytes::from_static(b"bytes");
            let member = MemberDescription {
                id: "m".into(),
                instance_id: None,
                client_id: "c".into(),
                client_host: "h".into(),
                metadata: bytes(),
                assignment: bytes(),
            };
            let group = described(GroupDescription {
                name: "g".into(),
                state,
                generation: 3,
                protocol_type: "consumer".into(),
                protocol: "range".into(),
                members: vec![member],
            });
            let told = [
                !group.protocol_data.is_empty(),
                !group.members[0].member_metadata.is_empty(),
                !group.members[0].member_assignment.is_empty(),
            ];
            assert_eq!(told, [state == GroupState::Stable; 3], "{state:?}");
            assert_eq!((&group.protocol_type[..], &group.members[0].client_id[..]), ("consumer", "c"));
        }
    }
}
