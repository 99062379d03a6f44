//! CreateTopics, DeleteTopics, CreatePartitions: any broker takes them and has the controller do it. DeleteRecords: the
//! partition's leader moves its log start.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use pontoon_raft::types::{BrokerId, Offset};
use tokio::task::yield_now;
use tokio::time::Instant;

use super::dispatch::Handled;
use super::group_answers::{answered, reserve};
use super::messages::{
    CreatableTopic, CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse,
    CreatedConfig, CreatedTopic, DeletableTopic, DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsResponse,
    DeleteRecordsTopic, DeleteTopicsRequest, DeleteTopicsResponse, DeletedRecordsPartition, DeletedRecordsTopic,
    DeletedTopic, MorePartitions, MorePartitionsResult, ReplicaAssignment, Response,
};
use super::metadata::{READY_TIMEOUT, topic_uuid};
use super::offsets::side_by_side;
use super::produce::leading;
use super::wire::Uuid;
use super::{Door, ErrorCode, configs, promises};
use crate::broker::{ConfigEntry, TopicDescription, TopicSpec, check_not_internal};
use crate::clock::now_ms;
use crate::error::{Code, Error};

/// Longest that such a request may take, whatever it asks for.
const TIMEOUT_MAX: Duration = Duration::from_secs(120);
/// Most partitions that a request may ask for, as in Kafka.
const PARTITIONS_AT_ONCE_MAX: u64 = 10_000;
/// What is told of a topic that is created, in bytes, about: its configuration, above all.
const TOLD_BYTES: usize = 3 << 10;
/// Of what a request names, how many are looked at before others have their turn.
const AT_ONCE: usize = 100;
/// Least time that a partition has for moving its log start.
const DELETE_RECORDS_MIN: Duration = Duration::from_secs(2);

/// A refusal: the number and a word for people.
pub(super) struct Refused(pub(super) ErrorCode, pub(super) String);

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let code = match error.code {
            // Of a topic as a whole, not of a partition: there is no other leader to look for.
            Code::NotReady | Code::NoLeader => ErrorCode::RequestTimedOut,
            Code::NotEnoughReplicas => ErrorCode::InvalidReplicationFactor,
            code => code.into(),
        };
        Self(code, error.message)
    }
}

pub(super) fn timeout(ms: i32) -> Duration {
    Duration::from_millis(ms.max(1) as u64).min(TIMEOUT_MAX)
}

/// The time of a request, for all that it names together: without a controller each would take all of it, and a frame may name hundreds
/// of thousands.
pub(super) struct Time {
    deadline: Instant,
}

impl Time {
    pub(super) fn of(timeout: Duration) -> Self {
        Self { deadline: Instant::now() + timeout }
    }

    /// What the next one has. `NOT_READY`: nothing is left, and it is not tried any more.
    pub(super) fn left(&self) -> Result<Duration, Error> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(Error::new(Code::NotReady, "the time of the request was over before it was tried")),
            false => Ok(left),
        }
    }
}

/// A broker that was just started has to know the catalog first. Admin clients do not ask again where it does not.
pub(super) async fn await_joined(door: &Door, time: &Time) {
    let left = time.left().unwrap_or_default();
    door.broker.await_joined(left.min(READY_TIMEOUT)).await;
}

/// What is named more than once. What a request means by that nobody knows.
pub(super) fn named_twice<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    names.filter(|name| !seen.insert(*name)).map(str::to_owned).collect()
}

/// Others have their turn on the worker thread now and then, however many a request names: what is looked at here may never have to wait.
pub(super) async fn make_way(done: usize) {
    if done % AT_ONCE == AT_ONCE - 1 {
        yield_now().await;
    }
}

/// How many partitions a request asks for, as far as its numbers make sense: for each topic one at least, to which its answer is in
/// proportion.
fn partitions_asked_for(door: &Door, topics: &[CreatableTopic]) -> u64 {
    let partitions = |topic: &CreatableTopic| match topic.num_partitions {
        -1 if topic.assignments.is_empty() => u64::from(door.config.num_partitions),
        -1 => topic.assignments.len() as u64,
        number => number.max(1) as u64,
    };
    topics.iter().map(partitions).sum()
}

/// CreateTopics.
pub(super) async fn create(door: &Arc<Door>, request: CreateTopicsRequest) -> Handled {
    let time = Time::of(timeout(request.timeout_ms));
    await_joined(door, &time).await;
    if partitions_asked_for(door, &request.topics) > PARTITIONS_AT_ONCE_MAX {
        return too_many(request).into();
    }
    // Who only asks is answered at once. Who has topics created may wait for long, and holds no room meanwhile.
    let told_at_once = if request.validate_only { request.topics.len() } else { 0 };
    let share = reserve(door, told_at_once * TOLD_BYTES).await;
    let twice = named_twice(request.topics.iter().map(|topic| topic.name.as_str()));
    let (mut topics, mut seen) = (Vec::new(), BTreeSet::new());
    for (at, topic) in request.topics.into_iter().enumerate() {
        make_way(at).await;
        let name = topic.name.clone();
        if !seen.insert(name.clone()) {
            continue;
        }
        let created = if twice.contains(&name) {
            Err(Refused(ErrorCode::InvalidRequest, "the topic is named twice".to_owned()))
        } else {
            create_one(door, topic, &time, request.validate_only).await
        };
        topics.push(created.unwrap_or_else(|Refused(code, message)| CreatedTopic {
            name,
            error_code: code.number(),
            error_message: Some(message),
            ..Default::default()
        }));
    }
    let created = if request.validate_only { 0 } else { topics.iter().filter(|one| one.configs.is_some()).count() };
    let share = share.or(reserve(door, created * TOLD_BYTES).await);
    answered(Response::CreateTopics(CreateTopicsResponse { topics, ..Default::default() }), share)
}

/// As Kafka refuses it, all of it. Only the first is told why: there may be very many.
fn too_many(request: CreateTopicsRequest) -> Response {
    let mut why =
        Some(format!("more than {PARTITIONS_AT_ONCE_MAX} partitions in one request; none of its topics was created"));
    let refused = |topic: CreatableTopic| CreatedTopic {
        name: topic.name,
        error_code: ErrorCode::PolicyViolation.number(),
        error_message: why.take(),
        ..Default::default()
    };
    let topics = request.topics.into_iter().map(refused).collect();
    Response::CreateTopics(CreateTopicsResponse { topics, ..Default::default() })
}

async fn create_one(
    door: &Arc<Door>,
    topic: CreatableTopic,
    time: &Time,
    validate_only: bool,
) -> Result<CreatedTopic, Refused> {
    let left = time.left()?;
    let spec = spec(door, topic)?;
    if validate_only {
        door.broker.check_topic(&spec)?;
        return Ok(describe_checked(door, spec));
    }
    let created = door.broker.create_topic(spec, left).await?;
    Ok(describe(door, &created))
}

/// What would be created. Java's admin client reads the configurations of every topic that it is told a number of partitions of.
fn describe_checked(door: &Door, spec: TopicSpec) -> CreatedTopic {
    let placed = spec.assignment.iter().flatten().map(|on| on.len() as u32).min();
    let replicas = spec.replicas.unwrap_or_else(|| door.broker.default_replicas());
    CreatedTopic {
        num_partitions: spec.partitions as i32,
        replication_factor: replicas as i16,
        configs: Some(created_configs(&door.broker.config_entries(&spec.config), placed.unwrap_or(replicas))),
        name: spec.name,
        ..Default::default()
    }
}

fn describe(door: &Door, topic: &TopicDescription) -> CreatedTopic {
    let configs = door.broker.topic_config_entries(&topic.name).unwrap_or_default();
    let replicas = topic.partitions.iter().map(|partition| partition.replicas.len() as u32).min().unwrap_or(1);
    CreatedTopic {
        name: topic.name.clone(),
        topic_id: topic_uuid(topic),
        num_partitions: topic.partitions.len() as i32,
        replication_factor: topic.partitions.first().map_or(-1, |first| first.replicas.len() as i16),
        configs: Some(created_configs(&configs, replicas)),
        ..Default::default()
    }
}

/// A topic's configuration, and what so many replicas promise.
fn created_configs(entries: &[ConfigEntry], replicas: u32) -> Vec<CreatedConfig> {
    let configs = entries.iter().map(|entry| {
        let (value, source) = configs::effective(entry);
        CreatedConfig {
            name: entry.name.to_owned(),
            value: Some(value.to_owned()),
            read_only: false,
            config_source: source,
            is_sensitive: false,
        }
    });
    let promised = promises::of(replicas).map(|(name, value)| CreatedConfig {
        name: name.to_owned(),
        value: Some(value),
        read_only: true,
        config_source: configs::SOURCE_DEFAULT,
        is_sensitive: false,
    });
    configs.chain(promised).collect()
}

/// What a request asks for, in the broker's words.
fn spec(door: &Door, topic: CreatableTopic) -> Result<TopicSpec, Refused> {
    let assignment = match topic.assignments.is_empty() {
        true => None,
        false if topic.num_partitions != -1 || topic.replication_factor != -1 => {
            let why = "replicas are placed by name or by number, not both".to_owned();
            return Err(Refused(ErrorCode::InvalidRequest, why));
        }
        false => Some(assignment(topic.assignments)?),
    };
    let partitions = match topic.num_partitions {
        -1 => assignment.as_ref().map_or(door.config.num_partitions, |assignment| assignment.len() as u32),
        number => u32::try_from(number).ok().filter(|number| *number > 0).ok_or_else(|| {
            Refused(ErrorCode::InvalidPartitions, format!("{number} partitions: at least 1, or -1 for the default"))
        })?,
    };
    let replicas = match topic.replication_factor {
        -1 => assignment.as_ref().and_then(|assignment| Some(assignment.first()?.len() as u32)),
        number => Some(u32::try_from(number).ok().filter(|number| *number > 0).ok_or_else(|| {
            Refused(
                ErrorCode::InvalidReplicationFactor,
                format!("{number} replicas: at least 1, or -1 for the default"),
            )
        })?),
    };
    let fewest = assignment.iter().flatten().map(|on| on.len() as u32).min();
    let fewest = fewest.or(replicas).unwrap_or_else(|| door.broker.default_replicas());
    let mut config = BTreeMap::new();
    for entry in topic.configs {
        let value = entry.value.ok_or_else(|| {
            Refused(ErrorCode::InvalidConfig, format!("{} has no value; leave it out for the default", entry.name))
        })?;
        match promises::check(&entry.name, &value, fewest) {
            Some(holds) => holds?,
            None => drop(config.insert(entry.name, value)),
        }
    }
    Ok(TopicSpec { name: topic.name, partitions, replicas, assignment, config })
}

/// For each partition its brokers; the partitions may come in any order, each once, from 0 on.
fn assignment(mut assignments: Vec<ReplicaAssignment>) -> Result<Vec<Vec<BrokerId>>, Refused> {
    assignments.sort_by_key(|one| one.partition_index);
    let numbers = assignments.iter().map(|one| i64::from(one.partition_index));
    if !numbers.eq(0..assignments.len() as i64) {
        let why = "the partitions of an assignment are numbered from 0 on, each once".to_owned();
        return Err(Refused(ErrorCode::InvalidReplicaAssignment, why));
    }
    assignments.into_iter().map(|one| brokers(one.broker_ids)).collect()
}

fn brokers(ids: Vec<i32>) -> Result<Vec<BrokerId>, Refused> {
    let broker = |id: i32| {
        u32::try_from(id)
            .map(BrokerId)
            .map_err(|_| Refused(ErrorCode::InvalidReplicaAssignment, format!("there is no broker {id}")))
    };
    ids.into_iter().map(broker).collect()
}

/// DeleteTopics.
pub(super) async fn delete(door: &Arc<Door>, request: DeleteTopicsRequest, version: i16) -> Response {
    let named = |name: String| DeletableTopic { name: Some(name), topic_id: Uuid::default() };
    let wanted = match version {
        ..=5 => request.topic_names.into_iter().map(named).collect(),
        _ => request.topics,
    };
    let mut topics = Vec::with_capacity(wanted.len());
    let time = Time::of(timeout(request.timeout_ms));
    await_joined(door, &time).await;
    for (at, DeletableTopic { name, topic_id }) in wanted.into_iter().enumerate() {
        make_way(at).await;
        topics.push(match delete_one(door, name.clone(), topic_id, &time).await {
            Ok((name, topic_id)) => DeletedTopic { name: Some(name), topic_id, ..Default::default() },
            Err(Refused(code, message)) => {
                DeletedTopic { name, topic_id, error_code: code.number(), error_message: Some(message) }
            }
        });
    }
    Response::DeleteTopics(DeleteTopicsResponse { topics, ..Default::default() })
}

async fn delete_one(
    door: &Arc<Door>,
    name: Option<String>,
    topic_id: Uuid,
    time: &Time,
) -> Result<(String, Uuid), Refused> {
    let Some(name) = name else {
        let deleted = door.broker.delete_topic_by_id(topic_id.0, time.left()?).await;
        return deleted.map(|name| (name, topic_id)).map_err(|error| match error.code {
            Code::UnknownTopic => Refused(ErrorCode::UnknownTopicId, error.message),
            _ => error.into(),
        });
    };
    let left = time.left()?;
    let id = door.broker.topic_id(&name).map_or(topic_id, Uuid);
    door.broker.delete_topic(&name, left).await?;
    Ok((name, id))
}

/// CreatePartitions.
pub(super) async fn create_partitions(door: &Arc<Door>, request: CreatePartitionsRequest) -> Response {
    let mut results = Vec::with_capacity(request.topics.len());
    let time = Time::of(timeout(request.timeout_ms));
    await_joined(door, &time).await;
    let twice = named_twice(request.topics.iter().map(|topic| topic.name.as_str()));
    for (at, topic) in request.topics.into_iter().enumerate() {
        make_way(at).await;
        let name = topic.name.clone();
        let done = match twice.contains(&name) {
            true => Err(Refused(ErrorCode::InvalidRequest, "the topic is named twice".to_owned())),
            false => more_partitions(door, topic, &time, request.validate_only).await,
        };
        results.push(match done {
            Ok(()) => MorePartitionsResult { name, ..Default::default() },
            Err(Refused(code, message)) => {
                MorePartitionsResult { name, error_code: code.number(), error_message: Some(message) }
            }
        });
    }
    Response::CreatePartitions(CreatePartitionsResponse { results, ..Default::default() })
}

async fn more_partitions(
    door: &Arc<Door>,
    topic: MorePartitions,
    time: &Time,
    validate_only: bool,
) -> Result<(), Refused> {
    let left = time.left()?;
    let has = door.broker.topic(&topic.name)?.partitions.len();
    let count = u32::try_from(topic.count).map_err(|_| {
        Refused(ErrorCode::InvalidPartitions, format!("topic {:?} cannot have {} partitions", topic.name, topic.count))
    })?;
    door.broker.check_growth(&topic.name, count)?;
    let Some(assignments) = topic.assignments.filter(|assignments| !assignments.is_empty()) else {
        if !validate_only {
            door.broker.alter_topic(&topic.name, Some(count), BTreeMap::new(), left).await?;
        }
        return Ok(());
    };
    if assignments.len() != count as usize - has {
        let why = format!("replicas of {} partitions for {} new ones", assignments.len(), count as usize - has);
        return Err(Refused(ErrorCode::InvalidReplicaAssignment, why));
    }
    let assignment: Vec<_> = assignments.into_iter().map(|one| brokers(one.broker_ids)).collect::<Result<_, _>>()?;
    match validate_only {
        true => door.broker.check_assignment(&assignment)?,
        false => drop(door.broker.grow_topic(&topic.name, has as u32, assignment, left).await?),
    }
    Ok(())
}

/// DeleteRecords: the log starts at the offset, or at the high watermark (-1).
pub(super) async fn delete_records(door: &Arc<Door>, request: DeleteRecordsRequest) -> Response {
    // Who gives no time at all still wants to know: a log start moves by a commit, and that takes a moment here.
    let limit = timeout(request.timeout_ms).max(DELETE_RECORDS_MIN);
    let (mut topics, mut asked) = (Vec::with_capacity(request.topics.len()), Vec::new());
    for DeleteRecordsTopic { name, partitions } in request.topics {
        let topic: Arc<str> = name.as_str().into();
        asked.extend(partitions.into_iter().map(|partition| (topics.len(), Arc::clone(&topic), partition)));
        topics.push(DeletedRecordsTopic { name, partitions: Vec::new() });
    }
    let done = side_by_side(asked, |(at, topic, DeleteRecordsPartition { partition, offset })| async move {
        let done = match delete_records_of(door, &topic, partition, offset, limit).await {
            Ok(start) => DeletedRecordsPartition { partition, low_watermark: start, error_code: 0 },
            Err(error) => DeletedRecordsPartition {
                partition,
                error_code: ErrorCode::from(&error).number(),
                ..Default::default()
            },
        };
        (at, done)
    });
    let mut done = pin!(done);
    while let Some((at, partition)) = done.next().await {
        topics[at].partitions.push(partition);
    }
    Response::DeleteRecords(DeleteRecordsResponse { topics, ..Default::default() })
}

async fn delete_records_of(
    door: &Door,
    topic: &str,
    partition: i32,
    offset: i64,
    limit: Duration,
) -> Result<i64, Error> {
    const HIGH_WATERMARK: i64 = -1;
    check_not_internal(topic)?;
    let found = leading(door, topic, partition)?;
    let start = match u64::try_from(offset) {
        Ok(offset) => Offset(offset),
        Err(_) if offset == HIGH_WATERMARK => found.high_watermark(),
        Err(_) => return Err(Error::new(Code::OffsetOutOfRange, format!("offset {offset}"))),
    };
    Ok(found.start_log_at(start, now_ms(), limit).await?.0 as i64)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_of_a_request_ends_for_all_that_it_names() {
        let time = Time::of(Duration::from_secs(3));
        assert_eq!(time.left(), Ok(Duration::from_secs(3)));
        advance(Duration::from_millis(2999)).await;
        assert_eq!(time.left(), Ok(Duration::from_millis(1)));
        for _ in 0..2 {
            advance(Duration::from_millis(1)).await;
            let Refused(code, why) = time.left().unwrap_err().into();
            assert_eq!(code, ErrorCode::RequestTimedOut, "{why}");
        }
    }
}
