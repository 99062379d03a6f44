//! Fetch: record batches of many partitions, waiting for them if there are none.
//!
//! A fetch looks at all its partitions; if there is less than it wants it follows them all under one timer, looks again only
//! at those that have changed, and reads everything once there is enough. While it waits it holds no records. Whole batches
//! are passed on as they are stored, the first may begin before the offset asked for, and one is returned however large it is.
//!
//! Fetch sessions (KIP-227) are declined: every answer has session 0, which tells clients to go on naming all partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, FuturesUnordered};
use pontoon_raft::types::Offset;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

use super::connection::Client;
use super::dispatch::Handled;
use super::messages::{FetchPartition, FetchRequest, FetchResponse, FetchedPartition, FetchedTopic, Response};
use super::metadata::{Leaders, TopicName, TopicNames, epoch};
use super::offsets::SIDE_BY_SIDE;
use super::produce::{leading, moved};
use super::wire::RecordData;
use super::{Door, ErrorCode};
use crate::partition::{Consistency, Fetch, FetchFrom, Follow, Partition};
use crate::record_batch::{BatchHeader, Compression};

/// Most bytes of records in one answer, but for a first batch that is larger.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// What a fetch may hold for what it names, in bytes, while it waits and others wait for room.
const WAITING_BYTES: usize = 64 << 10;
/// Longest that a fetch may wait, whatever it asks for.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// The first version whose clients know Zstandard (KIP-110).
const ZSTD_SINCE: i16 = 10;

/// One partition of a fetch.
struct Slot {
    topic: usize,
    asked: FetchPartition,
    /// Where to read, or why not.
    from: Result<Arc<Partition>, ErrorCode>,
    follow: Option<Follow>,
    /// Bytes that were there at the last look; where there were more than had room, that room.
    seen_bytes: usize,
}

/// What a look at a slot has found.
struct Seen {
    partition: FetchedPartition,
    /// What counts of it towards the least that a fetch wants.
    bytes: usize,
}

impl Slot {
    /// Reads what there is, up to `bytes_max`. If more is there, all of this room counts: the reader counts more than records towards it,
    /// and would never fill it.
    async fn read(&self, bytes_max: usize) -> Result<Seen, ErrorCode> {
        let partition = self.from.as_ref().map_err(|code| *code)?;
        check_epoch(partition, self.asked.current_leader_epoch)?;
        // A negative offset is below every log start.
        let from = u64::try_from(self.asked.fetch_offset).map_err(|_| ErrorCode::OffsetOutOfRange)?;
        let room = self.room(bytes_max);
        let fetched = partition
            .fetch(Fetch {
                from: FetchFrom::Offset(Offset(from)),
                bytes_max: room,
                wait: Duration::ZERO,
                consistency: Consistency::Committed,
            })
            .await
            .map_err(|error| ErrorCode::from(&error))?;
        let there: usize = fetched.batches.iter().map(Bytes::len).sum();
        let more = fetched.next_offset < fetched.high_watermark;
        let partition = FetchedPartition {
            partition: self.asked.partition,
            high_watermark: fetched.high_watermark.0 as i64,
            // Nothing is open for long without transactions.
            last_stable_offset: fetched.high_watermark.0 as i64,
            log_start_offset: fetched.log_start_offset.0 as i64,
            records: RecordData::some(fetched.batches),
            ..Default::default()
        };
        Ok(Seen { partition, bytes: if more { there.max(room) } else { there } })
    }

    /// Of so many bytes, those that this partition may take.
    fn room(&self, bytes_max: usize) -> usize {
        bytes_max.min(self.asked.partition_max_bytes.max(0) as usize)
    }

    /// Whether it is asked for what is not there yet, as far as this broker knows.
    fn is_ahead(&self) -> bool {
        let end = self.from.as_ref().ok().map(|partition| partition.high_watermark().0);
        let from = u64::try_from(self.asked.fetch_offset).ok();
        end.zip(from).is_some_and(|(end, from)| from > end)
    }

    /// Whether there is nothing to tell of it but an end that a majority may have gone beyond: most of its replicas are dead to this broker,
    /// and may have another leader.
    fn is_beyond_sight(&self, found: &FetchedPartition) -> bool {
        let at_end = found.error_code == 0 && self.asked.fetch_offset >= found.high_watermark;
        at_end && self.from.as_ref().is_ok_and(|partition| !partition.may_have_majority())
    }

    fn failed(&self, code: ErrorCode) -> FetchedPartition {
        FetchedPartition {
            partition: self.asked.partition,
            error_code: code.number(),
            records: RecordData::some(Vec::new()),
            ..Default::default()
        }
    }
}

/// Compares the epoch a client believes in with the leader's (KIP-320); -1 is none.
pub(super) fn check_epoch(partition: &Partition, believed: i32) -> Result<(), ErrorCode> {
    let leads = epoch(partition.leader_epoch().map_err(|error| ErrorCode::from(&error))?);
    match believed {
        -1 => Ok(()),
        older if older < leads => Err(ErrorCode::FencedLeaderEpoch),
        newer if newer > leads => Err(ErrorCode::UnknownLeaderEpoch),
        _ => Ok(()),
    }
}

/// Who asks in a version from before Zstandard may not know it. Told only where the topic's batches are all to be that, as in Kafka.
fn check_codec(partition: &Partition, version: i16) -> Result<(), ErrorCode> {
    let unknown = version < ZSTD_SINCE && partition.stored_as() == Some(Compression::Zstd);
    if unknown { Err(ErrorCode::UnsupportedCompressionType) } else { Ok(()) }
}

fn record_bytes(partition: &FetchedPartition) -> usize {
    partition.records.0.iter().flatten().map(Bytes::len).sum()
}

/// Fetch.
pub(super) async fn fetch(door: &Arc<Door>, client: &Client, request: FetchRequest, version: i16) -> Handled {
    // We never gave out a session: a client that goes on with one has it from a broker of before.
    if request.session_id != 0 && request.session_epoch > 0 {
        let error_code = ErrorCode::FetchSessionIdNotFound.number();
        return Response::Fetch(FetchResponse { error_code, ..Default::default() }).into();
    }
    let deadline = Instant::now() + Duration::from_millis(request.max_wait_ms.max(0) as u64).min(WAIT_MAX);
    let bytes_max = (request.max_bytes.max(1) as usize).min(ANSWER_BYTES_MAX);
    let bytes_min = (request.min_bytes.max(0) as usize).min(bytes_max);
    let mut topics = Vec::with_capacity(request.topics.len());
    let mut slots = Vec::new();
    let mut names = TopicNames::new(door, version >= 13);
    for topic in request.topics {
        let name = names.resolve(topic.topic, topic.topic_id);
        for asked in topic.partitions {
            let from = match name.error {
                Some(code) => Err(code),
                None => leading(door, &name.name, asked.partition)
                    .map_err(|error| ErrorCode::from(&error))
                    .and_then(|partition| check_codec(&partition, version).map(|()| partition)),
            };
            slots.push(Slot { topic: topics.len(), asked, from, follow: None, seen_bytes: 0 });
        }
        topics.push(name);
    }
    refuse_named_twice(&topics, &mut slots);
    for slot in &mut slots {
        slot.follow = slot.from.as_ref().ok().map(|partition| partition.follow());
    }
    let (mut found, mut permit) = read_all(door, &mut slots, bytes_max).await;
    let enough = |slots: &[Slot]| slots.iter().map(|slot| slot.seen_bytes).sum::<usize>() >= bytes_min;
    let failed = found.iter().any(|partition| partition.error_code != 0);
    if !failed && !enough(&slots) && !slots.is_empty() && Instant::now() < deadline {
        drop((found, permit));
        tokio::select! {
            () = wait_for(door, &mut slots, bytes_min) => {}
            () = sleep_until(deadline) => {}
            // Better an empty answer than a broken connection: the client asks again, elsewhere.
            () = door.stopping() => {}
            // Nor should room that others need wait for records: it asks again behind them.
            () = door.decoded_bytes.wanted(), if holds_much(&topics, &slots) => {}
            () = client.gone() => return Handled::Silence,
        }
        (found, permit) = read_all(door, &mut slots, bytes_max).await;
    }
    for (slot, partition) in slots.iter().zip(&mut found).filter(|(slot, found)| slot.is_beyond_sight(found)) {
        *partition = slot.failed(ErrorCode::NotLeaderOrFollower);
    }
    respond(door, topics, &slots, found, permit)
}

/// A partition that is named twice has no records, as ListOffsets has it: a short request must not wait with very many names for the same.
fn refuse_named_twice(topics: &[TopicName], slots: &mut [Slot]) {
    let mut names = BTreeMap::new();
    let places = topics.iter().enumerate();
    let first: Vec<usize> = places.map(|(at, topic)| *names.entry(topic.name.as_str()).or_insert(at)).collect();
    let mut places: Vec<_> = slots.iter().map(|slot| (first[slot.topic], slot.asked.partition)).collect();
    places.sort_unstable();
    let twice: BTreeSet<_> = places.windows(2).filter(|two| two[0] == two[1]).map(|two| two[0]).collect();
    let named_twice = |slot: &&mut Slot| twice.contains(&(first[slot.topic], slot.asked.partition));
    for slot in slots.iter_mut().filter(|slot| slot.from.is_ok()).filter(named_twice) {
        slot.from = Err(ErrorCode::InvalidRequest);
    }
}

/// Whether what a fetch names takes so much memory that it should not be kept from others for long.
fn holds_much(topics: &[TopicName], slots: &[Slot]) -> bool {
    size_of_val(topics) + size_of_val(slots) > WAITING_BYTES
}

/// Reads every slot, as far as the answer has room. At least one batch, if there is any; as that may be larger, the room that all of it
/// takes is known only then. If there is not so much, it waits for that, holding nothing.
async fn read_all(door: &Door, slots: &mut [Slot], bytes_max: usize) -> (Vec<FetchedPartition>, OwnedSemaphorePermit) {
    let room = &door.answer_bytes;
    let mut permit = room.reserve(bytes_max).await;
    // Perhaps less than was asked for: as much as there ever is.
    let bytes_max = bytes_max.min(permit.num_permits());
    loop {
        let found = read_slots(slots, bytes_max).await;
        let bytes = room.at_most(found.iter().map(record_bytes).sum());
        if let Some(more) = room.try_reserve(bytes.saturating_sub(permit.num_permits())) {
            permit.merge(more);
            drop(permit.split(permit.num_permits() - bytes));
            return (found, permit);
        }
        drop((found, permit));
        permit = room.reserve(bytes).await;
    }
}

async fn read_slots(slots: &mut [Slot], bytes_max: usize) -> Vec<FetchedPartition> {
    let mut refused = refusals_ahead(slots).await;
    let (mut found, mut left, mut any) = (Vec::with_capacity(slots.len()), bytes_max, false);
    for (at, slot) in slots.iter_mut().enumerate() {
        // The reader returns a batch however little room there is: behind the first, better none than one too many.
        let read = match (refused.remove(&at), left) {
            (Some(code), _) => Err(code),
            (None, 0) => slot.read_nothing(),
            (None, left) => slot.read(left).await,
        };
        let Seen { mut partition, bytes: seen } =
            read.unwrap_or_else(|code| Seen { partition: slot.failed(code), bytes: 0 });
        keep_what_fits(&mut partition, slot.room(left));
        let bytes = record_bytes(&partition);
        slot.seen_bytes = seen;
        if any && bytes > left {
            partition.records = RecordData::some(Vec::new());
            left = 0;
        } else {
            left = left.saturating_sub(bytes);
            any |= bytes > 0;
        }
        found.push(partition);
    }
    found
}

/// What is said of partitions that do not reach as far as they are asked for: whether they do is asked of their majorities, side by side,
/// for one without takes its time to say so. Those that have come so far meanwhile are not among them.
async fn refusals_ahead(slots: &[Slot]) -> BTreeMap<usize, ErrorCode> {
    let ahead = slots.iter().enumerate().filter(|(_, slot)| slot.is_ahead());
    let asked: Vec<_> = ahead.map(|(at, slot)| refusal(at, slot)).collect();
    stream::iter(asked).buffer_unordered(SIDE_BY_SIDE).filter_map(std::future::ready).collect().await
}

async fn refusal(at: usize, slot: &Slot) -> Option<(usize, ErrorCode)> {
    Some((at, slot.read(1).await.err()?))
}

/// The reader goes on until there is enough, which may be one batch too many: a client whose receive buffer is as large as what it
/// asked for would refuse it, now and whenever it asks again. The first batch stays, whatever its size.
fn keep_what_fits(partition: &mut FetchedPartition, room: usize) {
    let Some(batches) = &mut partition.records.0 else { return };
    let ends = batches.iter().scan(0, |bytes, batch| {
        *bytes += batch.len();
        Some(*bytes)
    });
    let fitting = ends.take_while(|end| *end <= room).count();
    batches.truncate(fitting.max(1));
}

impl Slot {
    /// An answer without records, for a partition that has no room in it: not an error, the client comes back.
    fn read_nothing(&self) -> Result<Seen, ErrorCode> {
        let partition = self.from.as_ref().map_err(|code| *code)?;
        check_epoch(partition, self.asked.current_leader_epoch)?;
        let high_watermark = partition.high_watermark().0 as i64;
        let partition = FetchedPartition {
            partition: self.asked.partition,
            high_watermark,
            last_stable_offset: high_watermark,
            log_start_offset: partition.log_start_offset().0 as i64,
            records: RecordData::some(Vec::new()),
            ..Default::default()
        };
        Ok(Seen { partition, bytes: 0 })
    }
}

/// Waits until there are `bytes_min` in all, or something is wrong with a partition.
async fn wait_for(door: &Door, slots: &mut [Slot], bytes_min: usize) {
    let mut bytes: usize = slots.iter().map(|slot| slot.seen_bytes).sum();
    let mut changes = FuturesUnordered::new();
    for (at, slot) in slots.iter_mut().enumerate() {
        if let Some(follow) = slot.follow.take() {
            changes.push(changed(at, follow));
        }
    }
    while let Some((at, follow)) = changes.next().await {
        let slot = &mut slots[at];
        // As much as would be enough, and room for that as long as it takes to look.
        let wanted = bytes_min - (bytes - slot.seen_bytes);
        let room = door.answer_bytes.reserve(wanted).await;
        let Ok(seen) = slot.read(wanted).await else { return };
        drop(room);
        if seen.partition.error_code != 0 {
            return;
        }
        bytes = bytes - slot.seen_bytes + seen.bytes;
        slot.seen_bytes = seen.bytes;
        if bytes >= bytes_min {
            return;
        }
        changes.push(changed(at, follow));
    }
}

async fn changed(at: usize, mut follow: Follow) -> (usize, Follow) {
    follow.changed().await;
    (at, follow)
}

fn respond(
    door: &Door,
    names: Vec<TopicName>,
    slots: &[Slot],
    found: Vec<FetchedPartition>,
    permit: OwnedSemaphorePermit,
) -> Handled {
    let (mut records, mut bytes) = (0, 0);
    for batch in found.iter().flat_map(|partition| partition.records.0.iter().flatten()) {
        bytes += batch.len();
        records += BatchHeader::read(batch).map_or(0, |header| header.record_count.max(0) as u64);
    }
    door.metrics.partitions.served(records, bytes);
    let mut leaders = Leaders::new(door);
    let mut topics: Vec<FetchedTopic> = names
        .iter()
        .map(|name| FetchedTopic { topic: name.name.clone(), topic_id: name.id, partitions: Vec::new() })
        .collect();
    for (slot, mut partition) in slots.iter().zip(found) {
        if moved(partition.error_code) {
            partition.current_leader = leaders.of(&names[slot.topic].name, partition.partition);
        }
        topics[slot.topic].partitions.push(partition);
    }
    let response = FetchResponse { topics, node_endpoints: leaders.endpoints(), ..Default::default() };
    Handled::Holding(Response::Fetch(response), permit)
}
