//! Produce and InitProducerId.
//!
//! The batches that came off the socket are what is proposed: a request's only batch is taken over in place, several that
//! share a frame are copied once each. Batches of a request, and of the requests behind it, are proposed in their order; so
//! a leader that is still taking over refuses at once, lest a later batch overtake one that waits.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use super::dispatch::Handled;
use super::messages::{
    InitProducerIdRequest, InitProducerIdResponse, ProducePartition, ProduceRequest, ProduceResponse,
    ProducedPartition, ProducedTopic, Response,
};
use super::metadata::{Leaders, TopicName};
use super::{Door, ErrorCode};
use crate::broker::{Route, check_not_internal};
use crate::partition::{Acks, Partition};
use crate::record_batch::RecordBatch;

/// Longest that a produce may wait for its ack level, whatever it asks for.
const TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// Longest that a producer id may take.
const PRODUCER_ID_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a batch was not acknowledged.
struct Refused {
    code: ErrorCode,
    message: Option<String>,
}

impl From<crate::error::Error> for Refused {
    fn from(error: crate::error::Error) -> Self {
        Self { code: ErrorCode::from(&error), message: Some(error.message) }
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

/// Produce.
pub(super) async fn produce(door: &Arc<Door>, request: ProduceRequest, version: i16) -> Handled {
    let acks = acks(request.acks);
    let timeout = Duration::from_millis(request.timeout_ms.max(0) as u64).min(TIMEOUT_MAX);
    let refusal = match (&acks, &request.transactional_id) {
        (None, _) => Some((ErrorCode::InvalidRequiredAcks, format!("acks {} is not -1, 0 or 1", request.acks))),
        (_, Some(id)) => {
            Some((ErrorCode::InvalidRequest, format!("transactional id {id:?}: there are no transactions")))
        }
        _ => None,
    };
    let work = request.topics.into_iter().map(|topic| {
        let name = TopicName::resolve(door, topic.name, topic.topic_id, version >= 13);
        let refusal = refusal.clone();
        async move {
            let partitions = topic.partitions.into_iter().map(|partition| {
                let refusal = refusal.clone().map(|(code, message)| Refused { code, message: Some(message) });
                produce_one(door, &name, partition, refusal, acks.unwrap_or_default(), timeout)
            });
            let partitions = join_all(partitions).await;
            ProducedTopic { name: name.name.clone(), topic_id: name.id, partitions }
        }
    });
    let mut topics = join_all(work).await;
    if acks == Some(Acks::None) {
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

/// Whether an error says that the leader is elsewhere.
pub(super) fn moved(error_code: i16) -> bool {
    [ErrorCode::NotLeaderOrFollower, ErrorCode::FencedLeaderEpoch].iter().any(|code| code.number() == error_code)
}

async fn produce_one(
    door: &Arc<Door>,
    topic: &TopicName,
    partition: ProducePartition,
    refusal: Option<Refused>,
    acks: Acks,
    timeout: Duration,
) -> ProducedPartition {
    let ProducePartition { index, records } = partition;
    let records = records.0.and_then(|mut records| records.pop()).unwrap_or_default();
    let done = match (refusal, topic.error) {
        (Some(refused), _) => Err(refused),
        (None, Some(code)) => Err(code.into()),
        (None, None) => append(door, &topic.name, index, records, acks, timeout).await,
    };
    match done {
        Ok((base_offset, log_start_offset)) => {
            ProducedPartition { index, base_offset, log_start_offset, ..Default::default() }
        }
        Err(Refused { code, message }) => {
            ProducedPartition { index, error_code: code.number(), error_message: message, ..Default::default() }
        }
    }
}

/// Appends a batch; its base offset and the log start offset.
async fn append(
    door: &Arc<Door>,
    topic: &str,
    index: i32,
    records: Bytes,
    acks: Acks,
    timeout: Duration,
) -> Result<(i64, i64), Refused> {
    check_not_internal(topic)?;
    let partition = leading(door, topic, index)?;
    let batch = RecordBatch::check(records, partition.limits())
        .map_err(|error| Refused { code: ErrorCode::from(&error), message: Some(error.to_string()) })?;
    let produced = partition.produce(batch, acks, None, timeout).await?;
    Ok((produced.base_offset.0 as i64, partition.log_start_offset().0 as i64))
}

/// The partition, if its replica here leads and is able to take writes.
pub(super) fn leading(door: &Door, topic: &str, index: i32) -> Result<Arc<Partition>, crate::error::Error> {
    let number = u32::try_from(index).unwrap_or(u32::MAX);
    match door.broker.route(topic, number)? {
        Route::Local(partition) => {
            partition.leader_epoch()?;
            Ok(partition)
        }
        Route::Remote { broker, .. } => Err(crate::error::Error::new(
            crate::error::Code::NotLeader,
            format!("{topic}/{index}: broker {broker} leads it"),
        )),
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
}
