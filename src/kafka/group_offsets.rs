//! Consumer groups' committed offsets: OffsetCommit, OffsetFetch, OffsetDelete, as calls of [`crate::coordinator`].
//!
//! A committed offset is kept with its topic's id: to a topic that was created again under the name it means nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use super::dispatch::Handled;
use super::group_answers::{answered, within_room};
use super::groups::code;
use super::messages::*;
use super::metadata::topic_uuid;
use super::topics::Time;
use super::{Door, ErrorCode};
use crate::coordinator::{CommittedOffset, GroupError, METADATA_BYTES_MAX, Partitions, Speaker, TOLD_BYTES, Within};
use crate::error::Code;

/// Longest that a request waits for the catalog, when a committed offset is of a topic that this broker does not know; and after which no
/// further group that it names is asked for.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(5);

/// What is told of a partition that has no committed offset, in bytes, about.
const PARTITION_BYTES: usize = 64;

/// Which topics there are, and their ids: each is looked up once per request.
struct Topics<'a> {
    door: &'a Door,
    known: BTreeMap<String, Option<(u128, usize)>>,
    /// This broker could not say of one whether it is there.
    unsure: bool,
}

impl<'a> Topics<'a> {
    fn new(door: &'a Door) -> Self {
        Self { door, known: BTreeMap::new(), unsure: false }
    }

    /// A topic's id and how many partitions it has.
    fn get(&mut self, name: &str) -> Option<(u128, usize)> {
        if let Some(known) = self.known.get(name) {
            return *known;
        }
        let found = self.door.broker.topic(name);
        self.unsure |= found.as_ref().is_err_and(|error| error.code != Code::UnknownTopic);
        let found = found.ok().map(|topic| (topic_uuid(&topic).0, topic.partitions.len()));
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
    time: &Time,
) -> Result<BTreeMap<(String, u32), CommittedOffset>, GroupError> {
    let mut known = Topics::new(door);
    if !offsets.iter().all(|offset| known.has(offset)) {
        let left = time.left().map_err(|_| GroupError::Loading)?;
        door.broker.catch_up(left).await.map_err(|_| GroupError::Loading)?;
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
                // What is said of all of them then.
                None if known.unsure => ErrorCode::None,
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
    let done = match known.unsure {
        true => Err(GroupError::Loading),
        false => door.broker.groups().commit(&request.group_id, speaker, offsets).await,
    };
    let failed = match done {
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
pub(super) async fn fetch(door: &Arc<Door>, request: OffsetFetchRequest, version: i16) -> Handled {
    let time = &Time::of(CATALOG_TIMEOUT);
    let groups = if version >= 8 {
        request.groups
    } else {
        // Before version 2 "all" could not be said: an empty list is one.
        let topics = request.topics.or((version < 2).then(Vec::new));
        vec![OffsetFetchGroup { group_id: request.group_id, topics, ..Default::default() }]
    };
    let mut seen = BTreeSet::new();
    let asked: Vec<_> = groups.into_iter().map(|group| (seen.insert(group.group_id.clone()), group)).collect();
    drop(seen);
    let besides = asked.iter().map(|(_, group)| asked_bytes(group)).sum();
    let fetch = |asked, bytes_max| fetch_once(door, asked, time, bytes_max).boxed();
    let (mut groups, share) = within_room(door, &asked, besides, fetch).await;
    let mut response = OffsetFetchResponse::default();
    match groups.pop_if(|_| version < 8) {
        Some(group) => (response.topics, response.error_code) = (group.topics, group.error_code),
        None => response.groups = groups,
    }
    answered(Response::OffsetFetch(response), share)
}

/// A group's offsets, if it is named for the first time: a short request must not ask for everything again and again.
async fn fetch_once(
    door: &Arc<Door>,
    (first, group): &(bool, OffsetFetchGroup),
    time: &Time,
    bytes_max: usize,
) -> Within<OffsetFetchedGroup> {
    if *first {
        return fetch_group(door, group, time, bytes_max).await;
    }
    let (group_id, error_code) = (group.group_id.clone(), ErrorCode::InvalidRequest.number());
    Ok(OffsetFetchedGroup { group_id, error_code, ..Default::default() })
}

/// Bytes that are told of a group even if nothing is committed, about.
fn asked_bytes(group: &OffsetFetchGroup) -> usize {
    let topics = group.topics.iter().flatten();
    let topics = topics.map(|topic| TOLD_BYTES + topic.name.len() + PARTITION_BYTES * topic.partitions.len());
    TOLD_BYTES + group.group_id.len() + topics.sum::<usize>()
}

/// What is wrong with a group stands with it and with each partition that was asked for: some clients (aiokafka, sarama) look there only,
/// in any version, and would take what they find for "nothing is committed". Others (librdkafka) wait for all that they named.
pub(super) async fn fetch_group(
    door: &Arc<Door>,
    group: &OffsetFetchGroup,
    time: &Time,
    bytes_max: usize,
) -> Within<OffsetFetchedGroup> {
    let asked = group.topics.as_deref().map(by_topic);
    let wanted = asked.as_ref().map(|asked| asked.iter().map(|(name, partitions)| (name.clone(), numbers(partitions))));
    let found = async {
        // Without a majority the coordinator takes its time to say so, too.
        time.left().map_err(|_| GroupError::Loading)?;
        let wanted = wanted.map(Iterator::collect);
        match door.broker.groups().committed_within(&group.group_id, wanted, bytes_max).await? {
            Ok(committed) => of_known_topics(door, committed, time).await.map(Ok),
            Err(larger) => Ok(Err(larger)),
        }
    };
    let found = found.await;
    let error_code = code(&found);
    let mut found = found.unwrap_or_else(|_| Ok(BTreeMap::new()))?;
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
            let metadata = Some(String::new());
            let none = OffsetFetchedPartition { partition, metadata, error_code, ..Default::default() };
            place.1 = number(partition);
            match found.remove(&place) {
                Some(offset) => OffsetFetchedPartition {
                    offset: offset.offset,
                    leader_epoch: offset.leader_epoch,
                    metadata: Some(offset.metadata),
                    ..none
                },
                None => none,
            }
        });
        OffsetFetchedTopic { partitions: partitions.collect(), name }
    });
    Ok(OffsetFetchedGroup { topics: topics.collect(), group_id: group.group_id.clone(), error_code })
}

/// Each partition once, however often it was named: its metadata is a thousand times as long as its number.
fn by_topic(topics: &[OffsetFetchTopic]) -> BTreeMap<String, BTreeSet<i32>> {
    let mut merged: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
    for topic in topics {
        merged.entry(topic.name.clone()).or_default().extend(&topic.partitions);
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
