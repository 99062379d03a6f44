//! ListOffsets and OffsetForLeaderEpoch: where a partition begins and ends, by time and by epoch.
//!
//! The end is confirmed by a majority before it is told (RULES.md R2): a client that seeks to it must not miss what was
//! acknowledged before it asked. Epochs are found in the batches themselves, which carry the one they were appended in.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use pontoon_raft::types::Offset;
use tokio::sync::mpsc;
use tokio::task::yield_now;

use super::connection::Client;
use super::dispatch::Handled;
use super::fetch::check_epoch;
use super::messages::{
    EpochEndPartition, EpochEndTopic, LeaderEpochPartition, LeaderEpochTopic, ListOffsetsPartition, ListOffsetsRequest,
    ListOffsetsResponse, ListedOffsetsPartition, ListedOffsetsTopic, OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse, Response,
};
use super::metadata::epoch;
use super::produce::leading;
use super::{Door, ErrorCode};
use crate::error::{Code, Error};
use crate::partition::{Consistency, Fetch, FetchFrom, Partition, TimedRecord};
use crate::record_batch::BatchHeader;

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
/// The earliest that is on a broker's own disk; there is no other.
const EARLIEST_LOCAL: i64 = -4;
/// The latest that is in tiered storage; there is none.
const LATEST_TIERED: i64 = -5;
/// The first version that asks for each that came later.
const SINCE: [(i64, i16); 3] = [(MAX_TIMESTAMP, 7), (EARLIEST_LOCAL, 8), (LATEST_TIERED, 9)];
/// What a request names that is looked at at a time.
pub(super) const SIDE_BY_SIDE: usize = 64;

/// An offset and what is known of the record there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    offset: i64,
    timestamp: i64,
    epoch: i32,
}

const NOTHING: Found = Found { offset: -1, timestamp: -1, epoch: -1 };

/// Does something for each of what a request names, and tells what came of it in their order. Side by side: one that has no quorum takes its
/// time to say so, and must not keep the others waiting. So many at a time: a frame may name very many.
pub(super) fn side_by_side<T, F: Future>(asked: Vec<T>, one: impl FnMut(T) -> F) -> impl Stream<Item = F::Output> {
    stream::iter(asked).map(one).buffered(SIDE_BY_SIDE)
}

/// The same in two steps, of which the second is done one by one, in their order. The first go on meanwhile.
async fn one_by_one_behind<T, P: Future, F: Future>(
    asked: Vec<T>,
    first: impl FnMut(T) -> P,
    second: impl Fn(P::Output) -> F,
) -> Vec<F::Output> {
    // All of them fit in.
    let (sender, mut queue) = mpsc::channel(asked.len().max(1));
    let before = async move {
        let mut done = pin!(side_by_side(asked, first));
        while let Some(one) = done.next().await {
            if sender.send(one).await.is_err() {
                break;
            }
        }
    };
    let behind = async {
        let mut done = Vec::new();
        while let Some(one) = queue.recv().await {
            done.push(second(one).await);
        }
        done
    };
    tokio::join!(before, behind).1
}

/// The partitions that a request names more than once.
fn places_twice<'a>(places: impl Iterator<Item = (&'a str, i32)>) -> BTreeSet<(&'a str, i32)> {
    let mut seen = BTreeSet::new();
    places.filter(|place| !seen.insert(*place)).collect()
}

/// What is told of a partition, or what is left to do for it.
enum Told {
    Found(Found),
    /// To be looked for by its time: the partition is known to be led here, and all that is committed to be seen.
    Timed(Arc<Partition>),
}

/// ListOffsets.
pub(super) async fn list(door: &Arc<Door>, client: &Client, request: ListOffsetsRequest, version: i16) -> Handled {
    let mut topics: Vec<ListedOffsetsTopic> = Vec::with_capacity(request.topics.len());
    let mut asked = Vec::new();
    for topic in request.topics {
        asked.extend(topic.partitions.into_iter().map(|partition| (topics.len(), partition)));
        topics.push(ListedOffsetsTopic { name: topic.name, partitions: Vec::new() });
    }
    let names: Vec<String> = topics.iter().map(|topic| topic.name.clone()).collect();
    let twice = places_twice(asked.iter().map(|(at, asked)| (names[*at].as_str(), asked.partition)));
    let one = |(at, asked): (usize, ListOffsetsPartition)| {
        let name = names[at].as_str();
        let twice = twice.contains(&(name, asked.partition));
        async move {
            // As Kafka has it. A short request must not ask for the same again and again: by time that is a look into a batch.
            let told = if twice { Err(ErrorCode::InvalidRequest) } else { tell(door, name, &asked, version).await };
            (at, asked, told)
        }
    };
    // By time one by one, as Kafka does: each is a look into a batch, and there is no end to how many a request may name. Others have their
    // turn before each, and nobody looks on for a client that has gone.
    let look = async |(at, asked, told): (usize, ListOffsetsPartition, _)| {
        let found = match told {
            Ok(Told::Found(found)) => Ok(found),
            Ok(Told::Timed(partition)) => {
                yield_now().await;
                timed(&partition, asked.timestamp).await.map_err(|error| ErrorCode::from(&error))
            }
            Err(code) => Err(code),
        };
        (at, asked, found)
    };
    let listed = tokio::select! {
        biased;
        () = client.gone() => return Handled::Silence,
        listed = one_by_one_behind(asked, one, look) => listed,
    };
    for (at, asked, found) in listed {
        let code = found.as_ref().err().copied().unwrap_or(ErrorCode::None);
        let Found { offset, timestamp, epoch } = found.unwrap_or(NOTHING);
        topics[at].partitions.push(ListedOffsetsPartition {
            partition: asked.partition,
            error_code: code.number(),
            timestamp,
            offset,
            leader_epoch: epoch,
        });
    }
    Response::ListOffsets(ListOffsetsResponse { topics, ..Default::default() }).into()
}

async fn tell(door: &Door, topic: &str, asked: &ListOffsetsPartition, version: i16) -> Result<Told, ErrorCode> {
    let failed = |error: Error| ErrorCode::from(&error);
    if SINCE.iter().any(|(timestamp, since)| asked.timestamp == *timestamp && version < *since) {
        return Err(ErrorCode::UnsupportedVersion);
    }
    let partition = leading(door, topic, asked.partition).map_err(failed)?;
    check_epoch(&partition, asked.current_leader_epoch)?;
    Ok(Told::Found(match asked.timestamp {
        LATEST => latest(&partition).await.map_err(failed)?,
        EARLIEST | EARLIEST_LOCAL => earliest(&partition).await.map_err(failed)?,
        LATEST_TIERED => NOTHING,
        timestamp if timestamp >= 0 || timestamp == MAX_TIMESTAMP => {
            // Linearizable: "there is none" claims an end.
            partition.offsets(Consistency::Linearizable).await.map_err(failed)?;
            return Ok(Told::Timed(partition));
        }
        _ => return Err(ErrorCode::UnsupportedVersion),
    }))
}

async fn latest(partition: &Partition) -> Result<Found, Error> {
    let offsets = partition.offsets(Consistency::Linearizable).await?;
    let epoch = epoch(partition.leader_epoch()?);
    Ok(Found { offset: offsets.high_watermark.0 as i64, timestamp: -1, epoch })
}

async fn earliest(partition: &Partition) -> Result<Found, Error> {
    let offset = partition.log_start_offset();
    let epoch = match first_batch(partition, offset).await? {
        Some(batch) => batch.leader_epoch,
        None => epoch(partition.leader_epoch()?),
    };
    Ok(Found { offset: offset.0 as i64, timestamp: -1, epoch })
}

/// Reads the header of one batch, if `from` is not the end.
async fn first_batch(partition: &Partition, from: Offset) -> Result<Option<BatchHeader>, Error> {
    let from = FetchFrom::Offset(from);
    let fetch = Fetch { from, bytes_max: 1, wait: Duration::ZERO, consistency: Consistency::Committed };
    match partition.fetch(fetch).await {
        Ok(fetched) => fetched.batches.first().map(|batch| Ok(BatchHeader::read(batch)?)).transpose(),
        // Retention took it meanwhile.
        Err(error) if error.code == Code::OffsetOutOfRange => Ok(None),
        Err(error) => Err(error),
    }
}

/// The first record at or after a time, or the first with the largest (KIP-734); nothing if there is none.
async fn timed(partition: &Partition, timestamp: i64) -> Result<Found, Error> {
    let found = match timestamp {
        MAX_TIMESTAMP => partition.latest_record().await?,
        timestamp => partition.record_at(timestamp).await?,
    };
    Ok(found.map_or(NOTHING, |TimedRecord { offset, timestamp, leader_epoch }| Found {
        offset: offset.0 as i64,
        timestamp,
        epoch: leader_epoch,
    }))
}

/// OffsetForLeaderEpoch. A partition that is named twice is refused, as by ListOffsets: each asks a majority.
pub(super) async fn for_leader_epoch(door: &Arc<Door>, request: OffsetForLeaderEpochRequest) -> Response {
    let (mut topics, mut asked) = (Vec::with_capacity(request.topics.len()), Vec::new());
    for LeaderEpochTopic { topic, partitions } in request.topics {
        let name: Arc<str> = topic.as_str().into();
        asked.extend(partitions.into_iter().map(|partition| (topics.len(), Arc::clone(&name), partition)));
        topics.push(EpochEndTopic { topic, partitions: Vec::new() });
    }
    let places: Vec<(Arc<str>, i32)> = asked.iter().map(|(_, name, one)| (Arc::clone(name), one.partition)).collect();
    let twice = &places_twice(places.iter().map(|(name, partition)| (&**name, *partition)));
    let ends = side_by_side(asked, |(at, name, asked)| async move {
        let found = match twice.contains(&(&*name, asked.partition)) {
            true => Err(ErrorCode::InvalidRequest),
            false => epoch_end(door, &name, &asked).await,
        };
        let code = found.as_ref().err().copied().unwrap_or(ErrorCode::None);
        let (leader_epoch, end_offset) = found.unwrap_or((-1, -1));
        (at, EpochEndPartition { error_code: code.number(), partition: asked.partition, leader_epoch, end_offset })
    });
    let mut ends = pin!(ends);
    while let Some((at, end)) = ends.next().await {
        topics[at].partitions.push(end);
    }
    Response::OffsetForLeaderEpoch(OffsetForLeaderEpochResponse { topics, ..Default::default() })
}

/// The largest epoch up to the one asked for that has records, and the offset behind its last one. If none is left, all that is there is
/// later: the epoch that was asked for ends where the log begins, as Kafka says it. "Nothing is known" would be a truncation to
/// consumers, which then begin at the end.
async fn epoch_end(door: &Door, topic: &str, asked: &LeaderEpochPartition) -> Result<(i32, i64), ErrorCode> {
    let failed = |error: Error| ErrorCode::from(&error);
    let partition = leading(door, topic, asked.partition).map_err(failed)?;
    check_epoch(&partition, asked.current_leader_epoch)?;
    let current = epoch(partition.leader_epoch().map_err(failed)?);
    if asked.leader_epoch < 0 || asked.leader_epoch > current {
        return Ok((-1, -1));
    }
    // Claims an end: what a leader that was just elected, or was replaced, does not know to be committed must not look truncated
    // (RULES.md R2).
    let offsets = partition.offsets(Consistency::Linearizable).await.map_err(failed)?;
    if asked.leader_epoch == current {
        return Ok((current, offsets.high_watermark.0 as i64));
    }
    // Epochs rise with offsets: the first batch of a later one is found by halving.
    let (mut low, mut high) = (offsets.log_start_offset.0, offsets.high_watermark.0);
    let mut found = -1;
    while low < high {
        let middle = low + (high - low) / 2;
        let Some(batch) = first_batch(&partition, Offset(middle)).await.map_err(failed)? else {
            low = middle + 1; // Retention is past it.
            continue;
        };
        if batch.leader_epoch <= asked.leader_epoch {
            found = batch.leader_epoch;
            low = batch.last_offset() + 1;
        } else {
            high = batch.base_offset.min(middle);
        }
    }
    Ok(if found < 0 { (asked.leader_epoch, offsets.log_start_offset.0 as i64) } else { (found, low as i64) })
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    const STEP: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn what_is_silent_is_waited_for_side_by_side_and_told_in_order() {
        let began = Instant::now();
        let asked: Vec<usize> = (0..2 * SIDE_BY_SIDE + 2).collect();
        let told = side_by_side(asked.clone(), async |number| {
            sleep(STEP).await;
            number
        });
        assert_eq!(told.collect::<Vec<_>>().await, asked);
        assert_eq!(began.elapsed(), 3 * STEP, "so many at a time");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_steps_go_on_while_a_second_is_taken() {
        let began = Instant::now();
        let first = async |number: u32| {
            for _ in 0..number {
                sleep(STEP).await;
            }
            number
        };
        let second = async |number| {
            sleep(if number == 0 { 2 * STEP } else { STEP }).await;
            number
        };
        assert_eq!(one_by_one_behind(vec![0, 3, 1], first, second).await, [0, 3, 1]);
        assert_eq!(began.elapsed(), 5 * STEP, "three of the first, and two of the second behind them");
    }
}
