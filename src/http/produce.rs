//! Produce: a body becomes one record batch, and the batch goes to its partition's leader, which compresses it as its topic says.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use pontoon_raft::stages::{StageTimes, Stages};
use pontoon_raft::types::Offset;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::api::records::{self, Record};
use crate::api::{self, ProduceAnswer};
use crate::broker::check_not_internal;
use crate::clock::now_ms;
use crate::error::Error;
use crate::http::Shared;
use crate::http::budget::Budget;
use crate::http::leader::{AtLeader, Passable, Repeat};
use crate::http::refusal::Refusal;
use crate::http::request::{BodyKind, Params, Target, number_header, read_body};
use crate::partition::aside::{NoPlace, aside_if_many, check_batch, recompress_batch};
use crate::partition::{Acks, Partition};
use crate::record_batch::{
    Allowance, BatchHeader, BatchLimits, Compression, Header, NewRecord, ProducerSequence, RecordBatch,
    RecordBatchBuilder,
};

/// `POST /v1/topics/{t}/partitions/{p}/records`
pub(super) async fn produce(
    State(shared): State<Arc<Shared>>,
    target: Target,
    request: Request,
) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let params = Params::read(&parts.uri, &["acks", "timeout_ms"])?;
    let acks = acks(params.text("acks"))?;
    let timeout = params.timeout(&parts.headers, api::TIMEOUT_MS_DEFAULT)?;
    let kind = BodyKind::of(&parts.headers)?;
    let producer = producer(&parts.headers, kind)?;
    let if_match = number_header(&parts.headers, api::IF_MATCH_OFFSET, 0..=u64::MAX)?.map(Offset);
    shared.broker()?;
    check_not_internal(&target.topic)?;
    let received = read_body(&parts.headers, body, &shared.limits, &shared.request_bytes).await?;
    let body = received.bytes;
    let repeat = if producer.is_some() || carries_producer(kind, &body) { Repeat::Idempotent } else { Repeat::Harmful };
    let passable = Passable::new(&parts, body.clone(), timeout, repeat);
    let (room, stored) = (&*shared.request_bytes, OnceLock::new());
    let work = Produce { target: &target, kind, body, producer, made: None, acks, if_match, room, stored };
    passable.at_leader(&shared, &target, &work).await
}

pub(super) fn acks(text: Option<&str>) -> Result<Acks, Refusal> {
    match text {
        None | Some("all") => Ok(Acks::All),
        Some("every") => Ok(Acks::Every),
        Some("leader") => Ok(Acks::Leader),
        Some("none") => Ok(Acks::None),
        Some(other) => Err(Refusal::invalid(format!("acks={other:?} is not all, every, leader or none"))),
    }
}

/// The `Producer-*` headers: all three or none, and none with a batch, which carries its own.
fn producer(headers: &HeaderMap, kind: BodyKind) -> Result<Option<ProducerSequence>, Refusal> {
    let producer_id = number_header(headers, api::PRODUCER_ID, 0..=i64::MAX)?;
    let epoch = number_header(headers, api::PRODUCER_EPOCH, 0..=i16::MAX)?;
    let sequence = number_header(headers, api::PRODUCER_SEQUENCE, 0..=i32::MAX)?;
    match (producer_id, epoch, sequence) {
        (None, None, None) => Ok(None),
        _ if kind == BodyKind::Batch => Err(Refusal::invalid(
            "Producer-Id, Producer-Epoch and Producer-Sequence cannot go with a RecordBatch, which carries its own",
        )),
        (Some(producer_id), Some(epoch), Some(sequence)) => Ok(Some(ProducerSequence { producer_id, epoch, sequence })),
        _ => Err(Refusal::invalid("Producer-Id, Producer-Epoch and Producer-Sequence go together; some are missing")),
    }
}

fn carries_producer(kind: BodyKind, body: &[u8]) -> bool {
    kind == BodyKind::Batch && BatchHeader::read(body).is_ok_and(|header| header.producer().is_some())
}

/// A produce to one partition.
pub(super) struct Produce<'a> {
    target: &'a Target,
    kind: BodyKind,
    body: Bytes,
    producer: Option<ProducerSequence>,
    /// The batch, if it is made already, and the bytes of all that its request has made.
    made: Option<(RecordBatch, usize)>,
    acks: Acks,
    if_match: Option<Offset>,
    /// For requests' bytes.
    room: &'a Budget,
    /// Made when it is first needed: a broker that only passes the request on need not look into it, and a second
    /// attempt has the same timestamps as the first.
    stored: OnceLock<Stored>,
}

/// A batch as it is proposed.
struct Stored {
    batch: RecordBatch,
    /// For what it is larger than what came.
    _room: Option<OwnedSemaphorePermit>,
}

impl<'a> Produce<'a> {
    /// Of a batch that is made already, with others, of a request of so many bytes.
    pub(super) fn of_batch(
        target: &'a Target,
        (batch, among): (RecordBatch, usize),
        acks: Acks,
        room: &'a Budget,
    ) -> Self {
        let (kind, body, stored) = (BodyKind::Batch, batch.bytes().clone(), OnceLock::new());
        let made = Some((batch, among));
        Self { target, kind, body, producer: None, made, acks, if_match: None, room, stored }
    }

    /// The batch, compressed with what its topic stores.
    async fn batch(
        &self,
        limits: &BatchLimits,
        stored_as: Option<Compression>,
        deadline: Instant,
    ) -> Result<&RecordBatch, Refusal> {
        if let Some(stored) = self.stored.get() {
            return Ok(&stored.batch);
        }
        let mut batch = self.taken(limits, stored_as, deadline).await?;
        let mut room = None;
        if let Some(codec) = stored_as {
            let among = self.made.as_ref().map_or(0, |(_, among)| *among);
            let recompressed = recompress_batch(batch, among, limits, codec, deadline).await;
            batch = recompressed.map_err(Error::from)?.map_err(Error::from)?;
            let more = batch.bytes().len().saturating_sub(self.body.len());
            room = Some(self.room.reserve(more)?);
        }
        Ok(&self.stored.get_or_init(|| Stored { batch, _room: room }).batch)
    }

    /// The batch that the body holds, or its records make. One that came as such is compressed while it is looked at.
    async fn taken(
        &self,
        limits: &BatchLimits,
        stored_as: Option<Compression>,
        deadline: Instant,
    ) -> Result<RecordBatch, Refusal> {
        if let Some((made, _)) = &self.made {
            return Ok(made.clone());
        }
        if self.kind == BodyKind::Batch {
            let mut allowance = Allowance::new(limits.decompressed_bytes_max);
            let checked = check_batch(self.body.clone(), limits, stored_as, &mut allowance, deadline).await;
            return Ok(checked.map_err(Error::from)?.map_err(Error::from)?);
        }
        let make = || make_batch(&self.body, self.kind, self.producer, limits, now_ms());
        aside_if_many(self.body.len(), deadline, make).await.map_err(Error::from)?
    }
}

impl AtLeader for Produce<'_> {
    async fn run(&self, partition: &Partition, left: Duration) -> Result<Response, Refusal> {
        let deadline = Instant::now() + left;
        let batch = self.batch(partition.limits(), partition.stored_as(), deadline).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // Proposed now it could only be answered by "perhaps".
            return Err(Error::from(NoPlace).into());
        }
        let stages = Stages::start();
        let produced = partition.produce_staged(batch.clone(), self.acks, self.if_match, left, &stages).await?;
        if self.acks == Acks::None {
            return Ok((StatusCode::ACCEPTED, Json(json!({}))).into_response());
        }
        let answer = ProduceAnswer {
            topic: self.target.topic.clone(),
            partition: self.target.partition,
            base_offset: produced.base_offset.0,
            last_offset: produced.last_offset.0,
            leader_epoch: produced.leader_epoch,
            duplicate: produced.duplicate,
        };
        let mut response = Json(answer).into_response();
        if let Some(timing) = stages.answered().and_then(|times| server_timing(times).parse().ok()) {
            response.headers_mut().insert(api::SERVER_TIMING, timing);
        }
        Ok(response)
    }
}

/// `queue`: until the batch had its place in the log; `journal`: until it was durable at the leader; `replicate`: until
/// enough others had it.
fn server_timing(StageTimes { queue, journal, replicate }: StageTimes) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    format!("queue;dur={:.3}, journal;dur={:.3}, replicate;dur={:.3}", ms(queue), ms(journal), ms(replicate))
}

/// Turns a body of records into one batch. Those without a timestamp get `now`.
fn make_batch(
    body: &Bytes,
    kind: BodyKind,
    producer: Option<ProducerSequence>,
    limits: &BatchLimits,
    now: i64,
) -> Result<RecordBatch, Refusal> {
    let mut builder = RecordBatchBuilder::new(*limits);
    each_record(body, kind, &mut |record| builder.push(&to_new(body, record, now)).map_err(Error::from))?;
    Ok(builder.build(producer).map_err(Error::from)?)
}

/// Gives each record of a body to `push`, in order. (A batch is no body of records.)
pub(super) fn each_record<'a>(
    body: &'a Bytes,
    kind: BodyKind,
    push: &mut dyn FnMut(Record<'a>) -> Result<(), Error>,
) -> Result<usize, Error> {
    match kind {
        BodyKind::Text => push(Record { value: Some(Cow::Borrowed(body)), ..Record::default() }).map(|()| 1),
        BodyKind::Lines => records::parse_ndjson(body, push),
        BodyKind::Json | BodyKind::Batch => records::parse_json(body, push),
    }
}

/// What is borrowed from the body shares its memory.
pub(super) fn to_new(body: &Bytes, record: Record<'_>, now: i64) -> NewRecord {
    let share = |bytes: Cow<'_, [u8]>| match bytes {
        Cow::Borrowed(bytes) => body.slice_ref(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    let headers = record.headers.into_iter().map(|(key, value)| Header {
        key: match key {
            Cow::Borrowed(key) => body.slice_ref(key.as_bytes()),
            Cow::Owned(key) => key.into(),
        },
        value: value.map(share),
    });
    NewRecord {
        timestamp: record.timestamp.unwrap_or(now),
        headers: headers.collect(),
        key: record.key.map(share),
        value: record.value.map(share),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::error::{Code, WriteOutcome};
    use crate::partition::aside::testing::hold_places;

    const LARGE: BatchLimits =
        BatchLimits { record_bytes_max: 4 << 20, batch_bytes_max: 8 << 20, decompressed_bytes_max: 8 << 20 };

    fn make(kind: BodyKind, body: &'static str) -> Result<RecordBatch, Refusal> {
        make_batch(&Bytes::from_static(body.as_bytes()), kind, None, &BatchLimits::default(), 99)
    }

    fn code(result: Result<RecordBatch, Refusal>) -> Code {
        result.unwrap_err().error.code
    }

    #[test]
    fn text_is_one_value_final_newline_and_all() {
        let batch = make(BodyKind::Text, "hello\n").unwrap();
        let record = batch.records(1 << 20).unwrap().next().unwrap().unwrap();
        assert_eq!((record.value.as_deref(), record.key, record.timestamp), (Some(&b"hello\n"[..]), None, 99));
        assert_eq!(batch.header().record_count, 1);
        let empty = make(BodyKind::Text, "").unwrap();
        assert_eq!(empty.records(9).unwrap().next().unwrap().unwrap().value.as_deref(), Some(&b""[..]));
    }

    #[test]
    fn json_becomes_one_batch_with_its_producer() {
        let body = r#"{"records":[{"key":"k","value":{"a": 1},"headers":[["h","\u00e9"]],"timestamp":5},{}]}"#;
        let producer = ProducerSequence { producer_id: 7, epoch: 1, sequence: 3 };
        let body = Bytes::from_static(body.as_bytes());
        let batch = make_batch(&body, BodyKind::Json, Some(producer), &BatchLimits::default(), 99).unwrap();
        assert_eq!(batch.header().producer(), Some(producer));
        let records: Vec<_> = batch.records(1 << 20).unwrap().map(Result::unwrap).collect();
        assert_eq!(records[0].value.as_deref(), Some(&br#"{"a":1}"#[..]));
        assert_eq!(records[0].headers.iter().next().unwrap().value.as_deref(), Some("\u{e9}".as_bytes()));
        assert_eq!((records[0].timestamp, records[1].timestamp), (5, 99));
        assert_eq!(records[1].value, None);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_large_body_waits_for_a_processor_as_long_as_it_has_time() {
        let _held = hold_places().await;
        let target = Target { topic: "t".into(), partition: 0 };
        for kind in [BodyKind::Text, BodyKind::Batch] {
            let text = || make_batch(&vec![b'x'; 2 << 20].into(), BodyKind::Text, None, &LARGE, 0);
            let body = if kind == BodyKind::Batch { text().unwrap().into_bytes() } else { vec![b'x'; 2 << 20].into() };
            let (room, stored) = (Budget::new(1), OnceLock::new());
            let (producer, made, acks, if_match) = (None, None, Acks::All, None);
            let work = Produce { target: &target, kind, body, producer, made, acks, if_match, room: &room, stored };
            let error = work.batch(&LARGE, None, Instant::now()).await.unwrap_err().error;
            assert_eq!((error.code, error.outcome), (Code::TooManyRequests, WriteOutcome::None), "{kind:?}");
            assert!(error.retry_after_ms.is_some() && work.stored.get().is_none());
        }
    }

    #[test]
    fn a_built_batch_passes_the_check_of_a_received_one() {
        let batch = make(BodyKind::Lines, "{\"value\":1}\n{\"key\":2,\"timestamp\":1}\n").unwrap();
        let bytes = batch.into_bytes();
        RecordBatch::check(bytes, &BatchLimits::default()).unwrap();
    }

    #[test]
    fn what_is_too_large_or_malformed_is_refused_with_its_code() {
        let limits = BatchLimits { record_bytes_max: 3, ..BatchLimits::default() };
        let refused = make_batch(&Bytes::from_static(b"four"), BodyKind::Text, None, &limits, 0);
        assert_eq!(code(refused), Code::RecordTooLarge);
        assert_eq!(code(make(BodyKind::Json, "{}")), Code::InvalidRequest);
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (axum::http::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn producer_headers_go_together_and_are_numbers() {
        let all = headers(&[("producer-id", "5"), ("producer-epoch", "0"), ("producer-sequence", "2147483647")]);
        let wanted = ProducerSequence { producer_id: 5, epoch: 0, sequence: i32::MAX };
        assert_eq!(producer(&all, BodyKind::Json).unwrap(), Some(wanted));
        assert_eq!(producer(&headers(&[]), BodyKind::Batch).unwrap(), None);
        assert!(producer(&all, BodyKind::Batch).is_err());
        assert!(producer(&headers(&[("producer-id", "5")]), BodyKind::Json).is_err());
        for (name, value) in [("producer-id", "-1"), ("producer-epoch", "32768"), ("producer-sequence", "2147483648")] {
            let refusal = producer(&headers(&[(name, value)]), BodyKind::Json).unwrap_err();
            assert!(refusal.error.message.contains(name) && refusal.error.message.contains(value));
        }
    }

    #[test]
    fn acks_are_four_words() {
        assert_eq!(acks(None).unwrap(), Acks::All);
        assert_eq!(acks(Some("leader")).unwrap(), Acks::Leader);
        assert!(acks(Some("1")).unwrap_err().error.message.contains("\"1\""));
    }
}
