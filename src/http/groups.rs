//! Consumer groups: what Kafka's clients do with them, seen and set over HTTP. A group's requests are done by its coordinator, the
//! leader of its partition of [`OFFSETS_TOPIC`]; the list is gathered from all brokers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use pontoon_raft::types::BrokerId;
use tokio::time::{Instant, timeout};

use crate::api;
use crate::api::groups::{
    AssignedTopic, GroupDescription, GroupLag, GroupList, GroupMember, GroupOffset, GroupOffsets, GroupSummary,
};
use crate::broker::{Broker, TopicShape};
use crate::coordinator::{self, CommittedOffset, GroupError, Larger, OFFSETS_TOPIC, Speaker, TOLD_BYTES};
use crate::error::{Code, Error, WriteOutcome};
use crate::http::Shared;
use crate::http::leader::{AtLeader, Passable, Repeat};
use crate::http::refusal::Refusal;
use crate::http::request::{Params, Target, TopicName, check_json, left, read_body};
use crate::http::told::{self, Share};
use crate::partition::Partition;

/// Longest that a broker may take to list its groups.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest that it waits for the catalog, when a committed offset is of a topic that this broker does not know.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to look for a group's coordinator, unless the request says.
const READ_TIMEOUT_MS: u64 = 10_000;
/// How many bytes a byte of another broker's list takes, read and understood, at most.
const LISTED: usize = 4;
/// Most offsets of one request.
const OFFSETS_MAX: usize = 100_000;
/// So many offsets are looked at before others get their turn.
const OFFSETS_AT_ONCE: usize = 500;

/// `GET /v1/groups`
pub(super) async fn list(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Refusal> {
    Params::read(request.uri(), &[])?;
    let broker = shared.broker()?;
    let own = broker.id();
    let mut others = broker.cluster().brokers;
    let passed_on = request.headers().contains_key(api::FORWARDED);
    others.retain(|other| other.broker_id != own && !passed_on);
    let silent = if passed_on { Some(BTreeSet::new()) } else { uncoordinated(broker) };
    // A dead one coordinates nothing that others do.
    others.retain(|other| other.alive || silent.as_ref().is_none_or(|silent| silent.contains(&other.broker_id)));
    let asked = others.into_iter().map(|other| {
        let shared = &shared;
        async move {
            let found = if other.alive { ask(shared, &other.http_address, own).await? } else { None };
            Ok::<_, Refusal>((other.broker_id, found))
        }
    });
    // A broker that cannot tell of its own in time, for want of a majority say, still tells of the others'.
    let here = async {
        let Ok(Ok(listed)) = timeout(LIST_TIMEOUT, broker.groups().list()).await else { return Ok((own, None)) };
        let bytes = listed.iter().map(|group| TOLD_BYTES + group.name.len() + group.protocol_type.len()).sum();
        let share = told::room_for(&shared.answer_bytes, bytes)?;
        let groups = listed.iter().map(|group| summary(group, own)).collect();
        Ok::<_, Refusal>((own, Some(Listed { list: GroupList { groups, unavailable: Vec::new() }, bytes, share })))
    };
    let (here, others) = tokio::join!(here, join_all(asked));
    let (mut list, mut bytes, mut share) = (GroupList::default(), 0, None);
    list.unavailable.extend(silent.unwrap_or_default());
    for told in others.into_iter().chain([here]) {
        match told? {
            (_, Some(found)) => {
                list.groups.extend(found.list.groups);
                list.unavailable.extend(found.list.unavailable);
                (bytes, share) = (bytes + found.bytes, told::joined(share, found.share));
            }
            (of, None) => list.unavailable.push(of),
        }
    }
    told::answer(&shared.answer_bytes, (bytes, share), || in_order(list)).await
}

/// What a broker lists, about how many bytes that takes, and its share of the room.
struct Listed {
    list: GroupList,
    bytes: usize,
    share: Share,
}

fn in_order(mut list: GroupList) -> GroupList {
    // A group that has just moved may be told by both.
    list.groups.sort_by(|a, b| a.group.cmp(&b.group));
    list.groups.dedup_by(|a, b| a.group == b.group);
    list.unavailable.sort_unstable();
    list.unavailable.dedup();
    list
}

/// The brokers of those partitions of [`OFFSETS_TOPIC`] that nobody leads, or who does has no majority: nobody can say which groups are
/// theirs. `None`: this broker does not know of the topic.
fn uncoordinated(broker: &Broker) -> Option<BTreeSet<BrokerId>> {
    let topic = broker.topic(OFFSETS_TOPIC).ok()?;
    let silent = topic.partitions.into_iter().filter(|partition| !partition.takes_writes);
    Some(silent.flat_map(|partition| partition.replicas).collect())
}

/// Another broker's own groups, as far as there is room for them. `None`: it does not say.
async fn ask(shared: &Shared, address: &str, asker: BrokerId) -> Result<Option<Listed>, Refusal> {
    let request = shared.peers.get(format!("http://{address}/v1/groups")).header(api::FORWARDED, asker.to_string());
    let Ok(mut answer) = request.timeout(LIST_TIMEOUT).send().await.and_then(reqwest::Response::error_for_status)
    else {
        return Ok(None);
    };
    let (mut text, mut share) = (BytesMut::new(), None);
    loop {
        let Ok(chunk) = answer.chunk().await else { return Ok(None) };
        let Some(chunk) = chunk else { break };
        text.extend_from_slice(&chunk);
        if text.len() > told::SMALL_BYTES {
            share = told::joined(share, Some(shared.answer_bytes.reserve(chunk.len() * LISTED)?));
        }
    }
    let list = serde_json::from_slice(&text).ok();
    Ok(list.map(|list| Listed { list, bytes: text.len(), share }))
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
            What::Description | What::Commit(_) => Err(refusal(&group, &GroupError::NotFound).into()),
        };
    };
    let passable = Passable::new(&parts, Bytes::new(), left(deadline), Repeat::Read);
    let target = Target { topic: OFFSETS_TOPIC.to_owned(), partition };
    passable.at_leader(&shared, &target, &AtCoordinator { shared: &shared, broker, group, what }).await
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
    let work = AtCoordinator { shared: &shared, broker, group, what: What::Commit(offsets) };
    passable.at_leader(&shared, &target, &work).await
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

struct AtCoordinator<'a> {
    shared: &'a Shared,
    broker: Arc<Broker>,
    group: String,
    what: What,
}

impl AtLeader for AtCoordinator<'_> {
    /// A coordinator that has just begun reads its groups first, and writes when a majority answers: both may take longer than there is.
    async fn run(&self, _partition: &Partition, left: Duration) -> Result<Response, Refusal> {
        let late = |_| {
            let code = if matches!(self.what, What::Commit(_)) { Code::OutcomeUnknown } else { Code::NoLeader };
            Error::new(code, format!("group {:?}: its coordinator had no answer within the timeout", self.group))
        };
        timeout(left, self.answer()).await.map_err(late)?
    }
}

impl AtCoordinator<'_> {
    async fn answer(&self) -> Result<Response, Refusal> {
        let refused = |error: GroupError| Refusal::from(refusal(&self.group, &error));
        match &self.what {
            What::Description => {
                let (group, offsets, taken) = self.told(true).await?;
                let group = group.ok_or_else(|| refused(GroupError::NotFound))?;
                let offsets = self.placed(offsets).await.map_err(refused)?;
                told::answer(&self.shared.answer_bytes, taken, || self.description(group, offsets)).await
            }
            What::Offsets => {
                let (_, offsets, taken) = self.told(false).await?;
                let offsets = self.placed(offsets).await.map_err(refused)?;
                told::answer(&self.shared.answer_bytes, taken, || offsets_of(offsets)).await
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

    /// What there is to tell of the group, its description only if that is wanted, with how many bytes it is, about, and their share of the
    /// room. It is asked for with the most that may be told; if there is more, nothing is copied, and it is asked for again once there is
    /// room for all of it.
    async fn told(
        &self,
        described: bool,
    ) -> Result<(Option<coordinator::GroupDescription>, Vec<CommittedOffset>, (usize, Share)), Refusal> {
        let refused = |error: GroupError| Refusal::from(refusal(&self.group, &error));
        let groups = self.broker.groups();
        let (mut most, mut share) = ([told::SMALL_BYTES / 2; 2], None);
        loop {
            let group = match described {
                true => groups.describe_within(&self.group, most[0]).await.map_err(refused)?.map(Some),
                false => Ok(None),
            };
            let offsets = groups.committed_within(&self.group, None, most[1]).await.map_err(refused)?;
            for (larger, most) in [group.as_ref().err(), offsets.as_ref().err()].into_iter().zip(&mut most) {
                *most = larger.map_or(*most, |Larger(bytes)| *bytes);
            }
            let bytes = most.iter().fold(0, |sum: usize, most| sum.saturating_add(*most));
            match (group, offsets) {
                (Ok(group), Ok(offsets)) => return Ok((group, offsets, (bytes, share))),
                // All that it takes at once, and nothing is held meanwhile.
                told => drop((told, share.take())),
            }
            share = told::room_for(&self.shared.answer_bytes, bytes)?;
        }
    }

    /// As it is told. `offsets`: each with its partition's high watermark.
    fn description(
        &self,
        group: coordinator::GroupDescription,
        offsets: Vec<(CommittedOffset, u64)>,
    ) -> GroupDescription {
        let lag = |(offset, high_watermark): (CommittedOffset, u64)| GroupLag {
            topic: offset.topic,
            partition: offset.partition,
            offset: offset.offset,
            metadata: offset.metadata,
            high_watermark,
            lag: high_watermark.saturating_sub(offset.offset.max(0) as u64),
        };
        let offsets: Vec<GroupLag> = offsets.into_iter().map(lag).collect();
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
        GroupDescription {
            members: group.members.into_iter().map(member).collect(),
            group: group.name,
            state: group.state.as_str().to_owned(),
            generation: group.generation,
            protocol_type: group.protocol_type,
            protocol: group.protocol,
            coordinator: self.broker.id(),
            lag: offsets.iter().map(|offset| offset.lag).sum(),
            offsets,
        }
    }

    /// Committed offsets with the high watermarks of their partitions. To a topic that was created again they mean nothing.
    async fn placed(&self, offsets: Vec<CommittedOffset>) -> Result<Vec<(CommittedOffset, u64)>, GroupError> {
        let (mut found, mut caught_up) = (Vec::new(), false);
        let partition = |of: &CommittedOffset| self.broker.partition(&of.topic, of.topic_id, of.partition);
        for (at, offset) in offsets.into_iter().enumerate() {
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
            found.extend(described.map(|described| (offset, described.high_watermark.0)));
        }
        Ok(found)
    }
}

fn offsets_of(offsets: Vec<(CommittedOffset, u64)>) -> GroupOffsets {
    let offset = |(offset, _): (CommittedOffset, u64)| GroupOffset {
        topic: offset.topic,
        partition: offset.partition,
        offset: offset.offset.max(0) as u64,
        metadata: offset.metadata,
    };
    GroupOffsets { offsets: offsets.into_iter().map(offset).collect() }
}

fn refusal(group: &str, error: &GroupError) -> Error {
    let code = match error {
        // Of a question; nothing was to be changed.
        GroupError::NotCoordinator | GroupError::Lost => Code::NotLeader,
        GroupError::Loading => Code::NotReady,
        GroupError::NotFound => Code::UnknownGroup,
        // Others have to go first.
        GroupError::NoRoom => Code::TooManyRequests,
        GroupError::DiskFull => Code::StorageFull,
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
