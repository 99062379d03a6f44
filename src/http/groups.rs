//! Consumer groups: what Kafka's clients do with them, seen and set over HTTP. A group's requests are done by its coordinator, the
//! leader of its partition of [`OFFSETS_TOPIC`]; the list is gathered from all brokers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::future::join_all;
use pontoon_raft::types::BrokerId;
use tokio::time::{Instant, timeout};

use crate::api;
use crate::api::groups::{
    AssignedTopic, GroupDescription, GroupLag, GroupList, GroupMember, GroupOffset, GroupOffsets, GroupSummary,
};
use crate::broker::{Broker, PartitionDescription, TopicShape};
use crate::coordinator::{self, CommittedOffset, GroupError, OFFSETS_TOPIC, Speaker};
use crate::error::{Code, Error, WriteOutcome};
use crate::http::Shared;
use crate::http::leader::{AtLeader, Passable, Repeat};
use crate::http::refusal::Refusal;
use crate::http::request::{Params, Target, TopicName, check_json, left, read_body};
use crate::partition::Partition;

/// Longest that a broker may take to list its groups.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest that it waits for the catalog, when a committed offset is of a topic that this broker does not know.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to look for a group's coordinator, unless the request says.
const READ_TIMEOUT_MS: u64 = 10_000;
/// Most offsets of one request.
const OFFSETS_MAX: usize = 100_000;
/// So many offsets are looked at before others get their turn.
const OFFSETS_AT_ONCE: usize = 500;

/// `GET /v1/groups`
pub(super) async fn list(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<GroupList>, Refusal> {
    Params::read(request.uri(), &[])?;
    let broker = shared.broker()?;
    let own = broker.id();
    let mut others = broker.cluster().brokers;
    let passed_on = request.headers().contains_key(api::FORWARDED);
    others.retain(|other| other.broker_id != own && !passed_on);
    let peers = &shared.peers;
    let silent = if passed_on { Some(BTreeSet::new()) } else { uncoordinated(broker) };
    // A dead one coordinates nothing that others do.
    others.retain(|other| other.alive || silent.as_ref().is_none_or(|silent| silent.contains(&other.broker_id)));
    let asked = others.into_iter().map(|other| async move {
        let found = if other.alive { ask(peers, &other.http_address, own).await } else { None };
        (other.broker_id, found)
    });
    // A broker that cannot tell of its own in time, for want of a majority say, still tells of the others'.
    let here = async {
        let listed = timeout(LIST_TIMEOUT, broker.groups().list()).await.ok()?.ok()?;
        let groups = listed.iter().map(|group| summary(group, own)).collect();
        Some(GroupList { groups, unavailable: Vec::new() })
    };
    let (here, mut told) = tokio::join!(here, join_all(asked));
    told.push((own, here));
    let mut list = GroupList::default();
    for (of, found) in told {
        match found {
            Some(found) => {
                list.groups.extend(found.groups);
                list.unavailable.extend(found.unavailable);
            }
            None => list.unavailable.push(of),
        }
    }
    // A group that has just moved may be told by both.
    list.groups.sort_by(|a, b| a.group.cmp(&b.group));
    list.groups.dedup_by(|a, b| a.group == b.group);
    list.unavailable.extend(silent.unwrap_or_default());
    list.unavailable.sort_unstable();
    list.unavailable.dedup();
    Ok(Json(list))
}

/// The brokers of those partitions of [`OFFSETS_TOPIC`] that nobody leads, or who does has no majority: nobody can say which groups are
/// theirs. `None`: this broker does not know of the topic.
fn uncoordinated(broker: &Broker) -> Option<BTreeSet<BrokerId>> {
    let topic = broker.topic(OFFSETS_TOPIC).ok()?;
    let silent = topic.partitions.into_iter().filter(|partition| !partition.takes_writes);
    Some(silent.flat_map(|partition| partition.replicas).collect())
}

/// Another broker's own groups.
async fn ask(peers: &reqwest::Client, address: &str, asker: BrokerId) -> Option<GroupList> {
    let request = peers.get(format!("http://{address}/v1/groups")).header(api::FORWARDED, asker.to_string());
    let answer = request.timeout(LIST_TIMEOUT).send().await.ok()?.error_for_status().ok()?;
    serde_json::from_slice(&answer.bytes().await.ok()?).ok()
}

fn summary(group: &coordinator::GroupListing, coordinator: BrokerId) -> GroupSummary {
    GroupSummary {
        group: group.name.clone(),
        state: group.state.as_str().to_owned(),
        protocol_type: group.protocol_type.clone(),
        members: group.members as u32,
        coordinator,
    }
}

/// `GET /v1/groups/{g}`
pub(super) async fn describe(
    State(shared): State<Arc<Shared>>,
    TopicName(group): TopicName,
    request: Request,
) -> Result<Response, Refusal> {
    read(shared, group, request, What::Description).await
}

/// `GET /v1/groups/{g}/offsets`
pub(super) async fn offsets(
    State(shared): State<Arc<Shared>>,
    TopicName(group): TopicName,
    request: Request,
) -> Result<Response, Refusal> {
    read(shared, group, request, What::Offsets).await
}

async fn read(shared: Arc<Shared>, group: String, request: Request, what: What) -> Result<Response, Refusal> {
    let (parts, _) = request.into_parts();
    let timeout = Params::read(&parts.uri, &["timeout_ms"])?.timeout(&parts.headers, READ_TIMEOUT_MS)?;
    let deadline = Instant::now() + timeout;
    let broker = Arc::clone(shared.broker()?);
    let Some(partition) = broker.group_partition(&group, timeout).await? else {
        // Nobody has ever been in a group.
        return match what {
            What::Offsets => Ok(Json(GroupOffsets::default()).into_response()),
            _ => Err(refusal(&group, &GroupError::NotFound).into()),
        };
    };
    let passable = Passable::new(&parts, Bytes::new(), left(deadline), Repeat::Read);
    let target = Target { topic: OFFSETS_TOPIC.to_owned(), partition };
    passable.at_leader(&shared, &target, &AtCoordinator { broker, group, what }).await
}

/// `PUT /v1/groups/{g}/offsets`: only while the group has no members, who would not notice.
pub(super) async fn commit(
    State(shared): State<Arc<Shared>>,
    TopicName(group): TopicName,
    request: Request,
) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let timeout = Params::read(&parts.uri, &["timeout_ms"])?.timeout(&parts.headers, api::TIMEOUT_MS_DEFAULT)?;
    check_json(&parts.headers)?;
    let broker = Arc::clone(shared.broker()?);
    let received = read_body(&parts.headers, body, &shared.limits, &shared.request_bytes).await?;
    let offsets = api::parse::<GroupOffsets>(&received.bytes)?.offsets;
    if offsets.len() > OFFSETS_MAX {
        return Err((Code::RequestTooLarge, format!("the request has more than {OFFSETS_MAX} offsets")).into());
    }
    let deadline = Instant::now() + timeout;
    let offsets = place(&broker, offsets, deadline).await?;
    broker.ensure_offsets_topic(left(deadline)).await?;
    let Some(partition) = broker.groups().partition_of(&group) else {
        return Err((Code::NotReady, "the groups' topic is being created".to_owned()).into());
    };
    // A second attempt could overwrite what somebody else has committed since the first: the client is told instead.
    let passable = Passable::new(&parts, received.bytes.clone(), left(deadline), Repeat::Harmful);
    let target = Target { topic: OFFSETS_TOPIC.to_owned(), partition };
    passable.at_leader(&shared, &target, &AtCoordinator { broker, group, what: What::Commit(offsets) }).await
}

/// Offsets with their topics' ids; the topics and the partitions must be there. Each topic is looked at once.
async fn place(broker: &Broker, offsets: Vec<GroupOffset>, deadline: Instant) -> Result<Vec<CommittedOffset>, Error> {
    let mut topics: BTreeMap<String, TopicShape> = BTreeMap::new();
    let mut placed = Vec::with_capacity(offsets.len());
    for (at, GroupOffset { topic, partition, offset, metadata }) in offsets.into_iter().enumerate() {
        if at % OFFSETS_AT_ONCE == OFFSETS_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        let shape = match topics.get(&topic) {
            Some(shape) => *shape,
            None => {
                // This broker may not have heard of the topic yet.
                let shape = broker.topic_shape(&topic, left(deadline)).await?;
                topics.insert(topic.clone(), shape);
                shape
            }
        };
        if shape.partitions <= partition {
            let why = format!("topic {topic:?} has {} partitions, no {partition}", shape.partitions);
            return Err(Error::new(Code::UnknownPartition, why));
        }
        let offset = i64::try_from(offset).map_err(|_| {
            Error::new(Code::InvalidRequest, format!("offset {offset} of {topic}/{partition} is too large"))
        })?;
        let topic_id = shape.topic_id;
        placed.push(CommittedOffset { topic, topic_id, partition, offset, leader_epoch: -1, metadata, time_ms: 0 });
    }
    Ok(placed)
}

/// What is wanted of a coordinator.
enum What {
    Description,
    Offsets,
    Commit(Vec<CommittedOffset>),
}

struct AtCoordinator {
    broker: Arc<Broker>,
    group: String,
    what: What,
}

impl AtLeader for AtCoordinator {
    /// A coordinator that has just begun reads its groups first, and writes when a majority answers: both may take longer than there is.
    async fn run(&self, _partition: &Partition, left: Duration) -> Result<Response, Refusal> {
        let late = |_| {
            let code = if matches!(self.what, What::Commit(_)) { Code::OutcomeUnknown } else { Code::NoLeader };
            Error::new(code, format!("group {:?}: its coordinator had no answer within the timeout", self.group))
        };
        timeout(left, self.answer()).await.map_err(late)?
    }
}

impl AtCoordinator {
    async fn answer(&self) -> Result<Response, Refusal> {
        let refused = |error: GroupError| Refusal::from(refusal(&self.group, &error));
        match &self.what {
            What::Description => Ok(Json(self.describe().await.map_err(refused)?).into_response()),
            What::Offsets => {
                let offsets = self.committed().await.map_err(refused)?.into_iter().map(|(offset, _)| GroupOffset {
                    topic: offset.topic,
                    partition: offset.partition,
                    offset: offset.offset.max(0) as u64,
                    metadata: offset.metadata,
                });
                Ok(Json(GroupOffsets { offsets: offsets.collect() }).into_response())
            }
            What::Commit(offsets) => {
                let outside = Speaker { generation: -1, ..Speaker::default() };
                let done = self.broker.groups().commit(&self.group, outside, offsets.clone()).await;
                match done {
                    Ok(()) => Ok(StatusCode::NO_CONTENT.into_response()),
                    Err(GroupError::UnknownMember) => Err(refused(GroupError::NonEmpty)),
                    // It may have been written before leadership moved.
                    Err(GroupError::Lost) => {
                        let why = format!("the coordinator of group {:?} changed under way", self.group);
                        Err(Error::new(Code::OutcomeUnknown, why).with_outcome(WriteOutcome::Unknown).into())
                    }
                    Err(error) => Err(refused(error)),
                }
            }
        }
    }

    async fn describe(&self) -> Result<GroupDescription, GroupError> {
        let group = self.broker.groups().describe(&self.group).await?;
        let lag = |(offset, partition): (CommittedOffset, PartitionDescription)| {
            let high_watermark = partition.high_watermark.0;
            GroupLag {
                topic: offset.topic,
                partition: offset.partition,
                offset: offset.offset,
                metadata: offset.metadata,
                high_watermark,
                lag: high_watermark.saturating_sub(offset.offset.max(0) as u64),
            }
        };
        let offsets: Vec<GroupLag> = self.committed().await?.into_iter().map(lag).collect();
        let member = |member: coordinator::MemberDescription| {
            let assigned = member.assigned(&group.protocol_type).into_iter();
            GroupMember {
                member_id: member.id,
                group_instance_id: member.instance_id,
                client_id: member.client_id,
                client_host: member.client_host,
                assignment: assigned.map(|(topic, partitions)| AssignedTopic { topic, partitions }).collect(),
            }
        };
        Ok(GroupDescription {
            members: group.members.into_iter().map(member).collect(),
            group: group.name,
            state: group.state.as_str().to_owned(),
            generation: group.generation,
            protocol_type: group.protocol_type,
            protocol: group.protocol,
            coordinator: self.broker.id(),
            lag: offsets.iter().map(|offset| offset.lag).sum(),
            offsets,
        })
    }

    /// Committed offsets with the partitions they are of. To a topic that was created again they mean nothing.
    async fn committed(&self) -> Result<Vec<(CommittedOffset, PartitionDescription)>, GroupError> {
        let (mut found, mut caught_up) = (Vec::new(), false);
        let partition = |of: &CommittedOffset| self.broker.partition(&of.topic, of.topic_id, of.partition);
        for (at, offset) in self.broker.groups().committed(&self.group, None).await?.into_iter().enumerate() {
            if at % OFFSETS_AT_ONCE == OFFSETS_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let mut described = partition(&offset);
            if described.is_none() && !caught_up {
                // Only a copy of the catalog that is up to date can say that a topic is gone.
                self.broker.catch_up(CATALOG_TIMEOUT).await.map_err(|_| GroupError::Loading)?;
                caught_up = true;
                described = partition(&offset);
            }
            found.extend(described.map(|described| (offset, described)));
        }
        Ok(found)
    }
}

fn refusal(group: &str, error: &GroupError) -> Error {
    let code = match error {
        // Of a question; nothing was to be changed.
        GroupError::NotCoordinator | GroupError::Lost => Code::NotLeader,
        GroupError::Loading => Code::NotReady,
        GroupError::NotFound => Code::UnknownGroup,
        // Others have to go first.
        GroupError::NoRoom => Code::TooManyRequests,
        GroupError::NonEmpty
        | GroupError::UnknownMember
        | GroupError::IllegalGeneration
        | GroupError::RebalanceInProgress
        | GroupError::MemberIdRequired(_)
        | GroupError::FencedInstance
        | GroupError::Subscribed => Code::GroupNotEmpty,
        GroupError::InvalidGroup
        | GroupError::InconsistentProtocol
        | GroupError::Full
        | GroupError::InvalidSessionTimeout
        | GroupError::MetadataTooLarge => Code::InvalidRequest,
    };
    Error::new(code, format!("group {group:?}: {error}"))
}
