//! Produce and InitProducerId.
//!
//! The batches that came off the socket are what is proposed: one that is most of its frame is taken over in place, others
//! are copied once each, out of the frame. Batches of a request, and of the requests behind it, are proposed in their order; so
//! a leader that is still taking over refuses at once, lest a later batch overtake one that waits.
//!
//! Batches are checked one at a time, and compressed as their topic says, large ones aside ([`crate::partition::aside`]). A request that takes long makes way for others between
//! its batches; what comes behind it on its connection waits for its [`Turn`] to end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{unconstrained, yield_now};
use tokio::time::Instant;

use super::connection::Turn;
use super::dispatch::Handled;
use super::messages::{
    InitProducerIdRequest, InitProducerIdResponse, ProducePartition, ProduceRequest, ProduceResponse, ProduceTopic,
    ProducedPartition, ProducedTopic, Response,
};
use super::metadata::{Leaders, TopicNames};
use super::{Door, ErrorCode};
use crate::broker::{Route, check_not_internal};
use crate::error::Code;
use crate::partition::aside::{NoPlace, check_batch, cost};
use crate::partition::{Acks, Partition};
use crate::record_batch::{Allowance, BatchLimits, Compression, RecordBatch};

/// The first version of Produce that may carry Zstandard, as in Kafka.
const ZSTD_SINCE: i16 = 7;
/// Longest that a produce may wait to be looked at and for its ack level, whatever it asks for.
const TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// Batches of a request that are proposed at the same time.
pub(super) const PRODUCE_SIDE_BY_SIDE: usize = 1024;
/// What the batches of a request may decompress to together, for each byte that the largest frame may have. Producers that compress
/// that well send far smaller frames: Java's 1 MiB at most unless it is told otherwise, and the others count what is not compressed yet.
const DECOMPRESSED_PER_FRAME_BYTE: usize = 8;
/// Bytes of records that are checked before others get their turn on the worker thread.
const CHECKED_AT_ONCE: usize = 1 << 20;
/// Longest that a producer id may take.
const PRODUCER_ID_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a batch was not acknowledged.
struct Refused {
    code: ErrorCode,
    message: Option<String>,
}

impl From<crate::error::Error> for Refused {
    fn from(error: crate::error::Error) -> Self {
        let code = match error.code {
            // Its time was over while it waited for those before it. Producers do not know THROTTLING_QUOTA_EXCEEDED, and librdkafka's
            // gives the records up; after this one they come again.
            Code::TooManyRequests => ErrorCode::RequestTimedOut,
            code => code.into(),
        };
        // These codes say it all, and a short frame can name very many that are not there, or not led here.
        let says_more = ![ErrorCode::UnknownTopicOrPartition, ErrorCode::NotLeaderOrFollower].contains(&code);
        Self { code, message: says_more.then_some(error.message) }
    }
}

impl Refused {
    fn tell(self, answer: &mut ProducedPartition) {
        (answer.error_code, answer.error_message) = (self.code.number(), self.message);
    }
}

impl From<NoPlace> for Refused {
    fn from(error: NoPlace) -> Self {
        Self { code: ErrorCode::RequestTimedOut, message: Some(error.to_string()) }
    }
}

impl From<ErrorCode> for Refused {
    fn from(code: ErrorCode) -> Self {
        Self { code, message: None }
    }
}

fn acks(number: i16) -> Option<Acks> {
    match number {
        -1 => Some(Acks::All),
        0 => Some(Acks::None),
        1 => Some(Acks::Leader),
        _ => None,
    }
}

/// A batch that can be proposed.
struct Checked {
    partition: Arc<Partition>,
    batch: RecordBatch,
    /// For what it is larger than what came.
    room: Option<OwnedSemaphorePermit>,
}

/// The same, and where it stands in the request.
struct Ready {
    topic: usize,
    at: usize,
    checked: Checked,
}

/// Produce. The turn ends once all its batches are proposed.
pub(super) async fn produce(door: &Arc<Door>, request: ProduceRequest, version: i16, turn: Turn) -> Handled {
    let acks = acks(request.acks);
    let deadline = Instant::now() + Duration::from_millis(request.timeout_ms.max(0) as u64).min(TIMEOUT_MAX);
    let refusal = match (&acks, &request.transactional_id) {
        (None, _) => Some((ErrorCode::InvalidRequiredAcks, format!("acks {} is not -1, 0 or 1", request.acks))),
        (_, Some(_)) => Some((ErrorCode::InvalidRequest, "there are no transactions".to_owned())),
        _ => None,
    };
    let (mut topics, ready) = check(door, request.topics, refusal, version, deadline).await;
    // Side by side, in their order; so many at a time, for a frame may hold very many. Whoever sends more than that waits for the answer.
    let acks = acks.unwrap_or_default();
    let mut produced = stream::iter(ready)
        .map(|Ready { topic, at, checked: Checked { partition, batch, room } }| async move {
            let _room = room;
            // Proposed when it is polled first, before what comes behind it: not even tokio's budget, used up by those before, may put
            // that off. Its leader may have changed since it was checked.
            let produced = match partition.leader_epoch() {
                Ok(_) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    unconstrained(partition.produce(batch, acks, None, left)).await
                }
                Err(error) => Err(error),
            };
            (topic, at, produced, partition)
        })
        .buffered(PRODUCE_SIDE_BY_SIDE);
    // Whoever waits for that is looked at after the poll that proposes them.
    drop(turn);
    while let Some((topic, at, produced, partition)) = produced.next().await {
        let answer = &mut topics[topic].partitions[at];
        // Of a refusal too: a producer that the partition has forgotten goes on if that is since what it has produced has gone.
        answer.log_start_offset = partition.log_start_offset().0 as i64;
        match produced {
            Ok(produced) => {
                answer.base_offset = produced.base_offset.0 as i64;
                answer.log_append_time_ms = produced.append_time.unwrap_or(-1);
            }
            Err(error) => Refused::from(error).tell(answer),
        }
    }
    if acks == Acks::None {
        let mut partitions = topics.iter().flat_map(|topic| &topic.partitions);
        return match partitions.find(|partition| partition.error_code != 0) {
            None => Handled::Silence,
            Some(failed) => Handled::Close(format!(
                "a produce with acks=0 failed with error {}: {}",
                failed.error_code,
                failed.error_message.as_deref().unwrap_or_default()
            )),
        };
    }
    let mut leaders = Leaders::new(door);
    for topic in &mut topics {
        for partition in topic.partitions.iter_mut().filter(|partition| moved(partition.error_code)) {
            partition.current_leader = leaders.of(&topic.name, partition.index);
        }
    }
    Response::Produce(ProduceResponse { topics, node_endpoints: leaders.endpoints(), ..Default::default() }).into()
}

/// Checks every batch of a request: an answer for each, and those that can be proposed.
async fn check(
    door: &Door,
    asked: Vec<ProduceTopic>,
    refusal: Option<(ErrorCode, String)>,
    version: i16,
    deadline: Instant,
) -> (Vec<ProducedTopic>, Vec<Ready>) {
    let (mut topics, mut ready) = (Vec::with_capacity(asked.len()), Vec::new());
    let mut allowance = allowance(door);
    // Bytes that were looked at since others had their turn.
    let mut looked_at = 0;
    let mut names = TopicNames::new(door, version >= 13);
    for ProduceTopic { name, topic_id, partitions } in asked {
        let name = names.resolve(name, topic_id);
        let mut answers = Vec::with_capacity(partitions.len());
        for ProducePartition { index, records } in partitions {
            if looked_at >= CHECKED_AT_ONCE {
                looked_at = 0;
                yield_now().await;
            }
            let mut answer = ProducedPartition { index, ..Default::default() };
            let records = records.0.and_then(|mut records| records.pop()).unwrap_or_default();
            let checked = match (&refusal, name.error) {
                (Some((code, message)), _) => Err(Refused { code: *code, message: Some(message.clone()) }),
                (None, Some(code)) => Err(code.into()),
                (None, None) if version < ZSTD_SINCE && is_zstd(&records) => {
                    let message = format!("Zstandard is for versions of Produce from {ZSTD_SINCE} on, not {version}");
                    Err(Refused { code: ErrorCode::UnsupportedCompressionType, message: Some(message) })
                }
                (None, None) => {
                    check_one(door, &name.name, index, records, &mut allowance, &mut looked_at, deadline).await
                }
            };
            match checked {
                Ok(checked) => ready.push(Ready { topic: topics.len(), at: answers.len(), checked }),
                Err(refused) => refused.tell(&mut answer),
            }
            answers.push(answer);
        }
        topics.push(ProducedTopic { name: name.name, topic_id: name.id, partitions: answers });
    }
    (topics, ready)
}

/// Whether the attributes of a batch say that it is compressed so, whatever else is wrong with it.
fn is_zstd(records: &[u8]) -> bool {
    records.get(22).is_some_and(|low| low & 7 == Compression::Zstd as u8)
}

/// What a request's batches may decompress to.
fn allowance(door: &Door) -> Allowance {
    let together = door.request_bytes_max().saturating_mul(DECOMPRESSED_PER_FRAME_BYTE);
    Allowance::new(together.max(BatchLimits::default().decompressed_bytes_max))
}

/// Checks a batch, and adds what that took to `looked_at`.
async fn check_one(
    door: &Door,
    topic: &str,
    index: i32,
    records: Bytes,
    allowance: &mut Allowance,
    looked_at: &mut usize,
    deadline: Instant,
) -> Result<Checked, Refused> {
    check_not_internal(topic)?;
    let partition = leading(door, topic, index)?;
    let (sent, spent, stored_as) = (records.len(), allowance.spent(), partition.stored_as());
    let cost = cost(&records, stored_as);
    let checked = check_batch(records, partition.limits(), stored_as, allowance, deadline).await;
    *looked_at += (sent + allowance.spent() - spent).saturating_mul(cost);
    let batch = checked?.map_err(|error| Refused { code: (&error).into(), message: Some(error.to_string()) })?;
    let room = room_for(door, batch.bytes().len().saturating_sub(sent))?;
    Ok(Checked { partition, batch, room })
}

/// Room for what a batch is larger than what came: a small one may come to very much in a topic that stores it uncompressed. Nobody waits
/// for it, for the batch is there already.
fn room_for(door: &Door, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, Refused> {
    if bytes == 0 {
        return Ok(None);
    }
    let room = door.decoded_bytes.try_reserve(bytes);
    room.map(Some).ok_or_else(|| Refused {
        code: ErrorCode::RequestTimedOut,
        message: Some(format!(
            "no room for {bytes} bytes more, as which its topic stores the batch; nothing was written"
        )),
    })
}

/// Whether an error says that the leader is elsewhere.
pub(super) fn moved(error_code: i16) -> bool {
    [ErrorCode::NotLeaderOrFollower, ErrorCode::FencedLeaderEpoch].iter().any(|code| code.number() == error_code)
}

/// The partition, if its replica here leads and is able to take writes.
pub(super) fn leading(door: &Door, topic: &str, index: i32) -> Result<Arc<Partition>, crate::error::Error> {
    let number = u32::try_from(index).unwrap_or(u32::MAX);
    match door.broker.route(topic, number)? {
        Route::Local(partition) => {
            partition.leader_epoch()?;
            Ok(partition)
        }
        Route::Remote { broker, .. } => {
            Err(crate::error::Error::new(Code::NotLeader, format!("{topic}/{index}: broker {broker} leads it")))
        }
    }
}

/// InitProducerId: always a new id with epoch 0, as Kafka's for producers without transactions.
pub(super) async fn init_producer_id(door: &Arc<Door>, request: InitProducerIdRequest) -> Response {
    let failed = |code: ErrorCode| InitProducerIdResponse { error_code: code.number(), ..Default::default() };
    let response = match request.transactional_id {
        Some(_) => failed(ErrorCode::InvalidRequest), // There are no transactions yet.
        None => match door.broker.create_producer(PRODUCER_ID_TIMEOUT).await {
            Ok((producer_id, producer_epoch)) => {
                InitProducerIdResponse { producer_id, producer_epoch, ..Default::default() }
            }
            // Nothing but "come again" can be said to a producer that has no id yet.
            Err(_) => failed(ErrorCode::CoordinatorLoadInProgress),
        },
    };
    Response::InitProducerId(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_are_kafkas_three() {
        let known = [-1, 0, 1].map(|number| acks(number).unwrap());
        assert_eq!(known, [Acks::All, Acks::None, Acks::Leader]);
        assert!([-2, 2, 7].into_iter().all(|number| acks(number).is_none()));
    }

    #[test]
    fn who_waited_in_vain_is_told_to_come_again() {
        let error = crate::error::Error::new(Code::TooManyRequests, "too many unacknowledged records are waiting");
        let Refused { code, message } = error.into();
        assert_eq!((code, message.is_some()), (ErrorCode::RequestTimedOut, true));
    }
}
