//! Produce by key: a request's records are divided between a topic's partitions, each partition's share is one batch and
//! goes to its leader as a produce of its own, and the answer says of each record where it is.
//!
//! A share is atomic, the request is not: one partition may refuse what another has written. Nothing is written if any
//! record is malformed or too large. There are no sequences here (they are a partition's own), so a share whose outcome is
//! unknown is never sent again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use crate::api::records::Record;
use crate::api::{self, ProduceAnswer, RecordResult, TopicProduceAnswer};
use crate::broker::{TopicShape, check_not_internal};
use crate::clock::now_ms;
use crate::error::{Code, Error, WriteOutcome};
use crate::http::Shared;
use crate::http::leader::{Passable, Repeat};
use crate::http::partitioner::{self, Turn};
use crate::http::produce::{Produce, acks, each_record, to_new};
use crate::http::refusal::Refusal;
use crate::http::request::{BodyKind, Params, Target, TopicName, left, read_body};
use crate::partition::Acks;
use crate::partition::aside::aside_if_many;
use crate::record_batch::{BatchError, RecordBatch, RecordBatchBuilder};

/// Most records of one request: each has a result in the answer, which would otherwise outgrow the request.
const RECORDS_MAX: usize = 100_000;
const SERVER_TIMING: HeaderName = HeaderName::from_static(api::SERVER_TIMING);
/// Longest answer of a partition that is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// `POST /v1/topics/{t}/records`
pub(super) async fn produce(
    State(shared): State<Arc<Shared>>,
    TopicName(topic): TopicName,
    request: Request,
) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let params = Params::read(&parts.uri, &["acks", "timeout_ms"])?;
    let acks = acks(params.text("acks"))?;
    let deadline = Instant::now() + params.timeout(&parts.headers, api::TIMEOUT_MS_DEFAULT)?;
    let kind = body_kind(&parts.headers)?;
    let broker = Arc::clone(shared.broker()?);
    check_not_internal(&topic)?;
    let received = read_body(&parts.headers, body, &shared.limits, &shared.request_bytes).await?;
    let shape = shared.while_open(broker.topic_shape(&topic, left(deadline))).await?;
    let turn = shared.turns.of(&topic);
    let divide = || divide(&received.bytes, kind, shape, &turn, now_ms());
    let shares = aside_if_many(received.bytes.len(), deadline, divide).await.map_err(Error::from)??;
    let bytes = received.bytes.len();
    let sending = shares.into_iter().map(|share| share.send(&shared, &topic, bytes, acks, deadline));
    // All at once: a partition without a leader holds up no other. To one leader go only so many at a time ([`Passable::part`]).
    answer(futures_util::future::join_all(sending).await, acks)
}

/// What goes with one partition only is refused: sequences, a condition on its log end, a batch, whose records may belong
/// to several.
fn body_kind(headers: &HeaderMap) -> Result<BodyKind, Refusal> {
    for name in [api::PRODUCER_ID, api::PRODUCER_EPOCH, api::PRODUCER_SEQUENCE, api::IF_MATCH_OFFSET] {
        if headers.contains_key(name) {
            let why = "goes with one partition: POST /v1/topics/{topic}/partitions/{partition}/records";
            return Err(Refusal::invalid(format!("header {name} {why}")));
        }
    }
    match BodyKind::of(headers)? {
        BodyKind::Batch => Err((
            Code::UnsupportedMediaType,
            "a RecordBatch goes to one partition: POST /v1/topics/{topic}/partitions/{partition}/records; \
             here send application/json, text/plain or application/x-ndjson"
                .to_owned(),
        )
            .into()),
        kind => Ok(kind),
    }
}

/// What one partition gets of a request.
struct Share {
    partition: u32,
    batch: RecordBatch,
    /// Where its records stood in the request.
    places: Vec<u32>,
}

/// Gives every record to the partition of its key, or to the next one in turn.
fn divide(body: &Bytes, kind: BodyKind, shape: TopicShape, turn: &Turn, now: i64) -> Result<Vec<Share>, Refusal> {
    let mut open: BTreeMap<u32, (RecordBatchBuilder, Vec<u32>)> = BTreeMap::new();
    let mut count = 0;
    each_record(body, kind, &mut |record: Record<'_>| {
        if count as usize == RECORDS_MAX {
            let why = format!("the request has more than {RECORDS_MAX} records");
            return Err(Error::new(Code::RequestTooLarge, why));
        }
        let partition = match &record.key {
            Some(key) => partitioner::of_key(key, shape.partitions),
            None => turn.next(shape.partitions),
        };
        let new = || (RecordBatchBuilder::new(shape.limits), Vec::new());
        let (builder, places) = open.entry(partition).or_insert_with(new);
        builder.push(&to_new(body, record, now)).map_err(|error| numbered(error, count))?;
        places.push(count);
        count += 1;
        Ok(())
    })?;
    let built = open.into_iter().map(|(partition, (builder, places))| {
        let batch = builder.build(None).map_err(Error::from)?;
        Ok(Share { partition, batch, places })
    });
    built.collect()
}

/// The record's number in the request, not in its partition's batch.
fn numbered(mut error: BatchError, at: u32) -> Error {
    if let BatchError::RecordTooLarge { number, .. } | BatchError::Record { number, .. } = &mut error {
        *number = i32::try_from(at).unwrap_or(i32::MAX);
    }
    error.into()
}

/// What became of a share: where its first record is (nothing with `acks=none`), or why not.
struct Sent {
    partition: u32,
    places: Vec<u32>,
    result: Result<Option<ProduceAnswer>, Error>,
    /// Where its time went, as its leader tells it.
    timing: Option<HeaderValue>,
}

impl Share {
    /// `among`: the bytes of the whole request.
    async fn send(self, shared: &Shared, topic: &str, among: usize, acks: Acks, deadline: Instant) -> Sent {
        let target = Target { topic: topic.to_owned(), partition: self.partition };
        let produced = produce_batch(shared, &target, (self.batch, among), acks, deadline).await;
        let (result, timing) = match produced {
            Ok((answer, timing)) => (Ok(answer), timing),
            Err(error) => (Err(error), None),
        };
        Sent { partition: self.partition, places: self.places, result, timing }
    }
}

/// Produces a batch, made among so many bytes, at its partition's leader, here or elsewhere; with its `Server-Timing`.
async fn produce_batch(
    shared: &Shared,
    target: &Target,
    made: (RecordBatch, usize),
    acks: Acks,
    deadline: Instant,
) -> Result<(Option<ProduceAnswer>, Option<HeaderValue>), Error> {
    let timeout = left(deadline);
    let parts = batch_request(target, acks, timeout)?;
    let passable = Passable::new(&parts, made.0.bytes().clone(), timeout, Repeat::Harmful).part();
    let work = Produce::of_batch(target, made, acks, &shared.request_bytes);
    let response = passable.at_leader(shared, target, &work).await.map_err(|refusal| refusal.error)?;
    let status = response.status();
    let unreadable = |why: String| {
        Error::new(Code::OutcomeUnknown, format!("{target}: its leader's answer ({status}) cannot be read: {why}"))
    };
    if status == StatusCode::ACCEPTED {
        return Ok((None, None));
    }
    let timing = response.headers().get(api::SERVER_TIMING).cloned();
    let body = axum::body::to_bytes(response.into_body(), ANSWER_BYTES_MAX).await;
    let body = body.map_err(|error| unreadable(error.to_string()))?;
    serde_json::from_slice(&body).map(|answer| (Some(answer), timing)).map_err(|error| unreadable(error.to_string()))
}

/// The request that another broker is sent if it leads the partition.
fn batch_request(target: &Target, acks: Acks, timeout: Duration) -> Result<Parts, Error> {
    let acks = match acks {
        Acks::All => "all",
        Acks::Every => "every",
        Acks::Leader => "leader",
        Acks::None => "none",
    };
    let Target { topic, partition } = target;
    let timeout = timeout.as_millis().clamp(1, api::TIMEOUT_MS_MAX.into());
    // The topic exists, so its name needs no encoding.
    let uri = format!("/v1/topics/{topic}/partitions/{partition}/records?acks={acks}&timeout_ms={timeout}");
    let request = axum::http::Request::builder().method(Method::POST).uri(uri);
    let request = request.header(header::CONTENT_TYPE, "application/octet-stream").body(());
    let request = request.map_err(|error| Error::new(Code::Internal, error.to_string()))?;
    Ok(request.into_parts().0)
}

/// 200 if every record is acknowledged; otherwise the refusal of the first that is not, with every record's own result.
fn answer(sent: Vec<Sent>, acks: Acks) -> Result<Response, Refusal> {
    let first = sent.iter().filter_map(|sent| Some((sent.places.first()?, sent.result.as_ref().err()?)));
    let first = first.min_by_key(|(place, _)| *place).map(|(place, error)| (*place, error.clone()));
    let Some((place, mut error)) = first else {
        return Ok(match acks {
            Acks::None => (StatusCode::ACCEPTED, Json(json!({}))).into_response(),
            _ => {
                let mut response = Json(TopicProduceAnswer { results: results(&sent) }).into_response();
                response.headers_mut().extend(slowest(&sent).map(|timing| (SERVER_TIMING, timing.clone())));
                response
            }
        });
    };
    let refused: usize = sent.iter().filter(|sent| sent.result.is_err()).map(|sent| sent.places.len()).sum();
    let all: usize = sent.iter().map(|sent| sent.places.len()).sum();
    error.message = format!("{refused} of {all} records are not acknowledged; record {place}: {}", error.message);
    error.outcome = outcome(&sent);
    Err(Refusal { results: Some(results(&sent)), ..Refusal::from(error) })
}

/// The `Server-Timing` of the partition that took longest: the others did not hold the answer up.
fn slowest(sent: &[Sent]) -> Option<&HeaderValue> {
    sent.iter().filter_map(|sent| sent.timing.as_ref()).max_by(|a, b| whole_ms(a).total_cmp(&whole_ms(b)))
}

/// The stages of a `Server-Timing` together.
fn whole_ms(timing: &HeaderValue) -> f64 {
    let stages = timing.to_str().unwrap_or_default().split(',');
    stages.filter_map(|stage| stage.split_once("dur=")?.1.trim().parse::<f64>().ok()).sum()
}

/// What happened to the request as a whole, once something was refused.
fn outcome(sent: &[Sent]) -> WriteOutcome {
    let outcomes = || sent.iter().map(|sent| sent.result.as_ref().err().map(|error| error.outcome));
    if outcomes().any(|outcome| matches!(outcome, None | Some(WriteOutcome::Partial))) {
        WriteOutcome::Partial
    } else if outcomes().any(|outcome| outcome == Some(WriteOutcome::Unknown)) {
        WriteOutcome::Unknown
    } else {
        WriteOutcome::None
    }
}

/// Every record's result, in the order of the request.
fn results(sent: &[Sent]) -> Vec<RecordResult> {
    let mut all: Vec<(u32, RecordResult)> = Vec::with_capacity(sent.iter().map(|sent| sent.places.len()).sum());
    for Sent { partition, places, result, .. } in sent {
        let partition = *partition;
        for (at, place) in (0..).zip(places) {
            let result = match result {
                Ok(answer) => RecordResult::Written {
                    partition,
                    offset: answer.as_ref().map(|answer| answer.base_offset + at),
                    leader_epoch: answer.as_ref().map(|answer| answer.leader_epoch),
                },
                Err(error) => RecordResult::Refused {
                    partition,
                    error: error.code.as_str().to_owned(),
                    message: error.message.clone(),
                    retriable: error.code.retriable(),
                    outcome: error.outcome,
                },
            };
            all.push((*place, result));
        }
    }
    all.sort_unstable_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::partitioner::RoundRobin;
    use crate::record_batch::BatchLimits;

    fn shape(partitions: u32) -> TopicShape {
        let limits = BatchLimits { record_bytes_max: 20, ..BatchLimits::default() };
        TopicShape { topic_id: 1, partitions, limits }
    }

    fn divided(body: &str, kind: BodyKind, partitions: u32) -> Result<Vec<Share>, Refusal> {
        let body = Bytes::copy_from_slice(body.as_bytes());
        divide(&body, kind, shape(partitions), &RoundRobin::default().of("t"), 9)
    }

    fn values(share: &Share) -> Vec<String> {
        let records = share.batch.records(1 << 20).unwrap();
        records.map(|record| String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap()).collect()
    }

    #[test]
    fn records_of_a_key_stay_together_in_their_order_and_others_go_round() {
        let body = r#"{"records":[{"value":"a"},{"key":"21","value":"b"},{"value":"c"},{"key":"21","value":"d"},{"value":"e"},
            {"key":"","value":"f"}]}"#;
        let shares = divided(body, BodyKind::Json, 3).unwrap();
        let all: Vec<_> = shares.iter().map(|share| (share.partition, share.places.clone(), values(share))).collect();
        let of_key = partitioner::of_key(b"21", 3);
        let of_empty = partitioner::of_key(b"", 3);
        let mut wanted: BTreeMap<u32, Vec<(u32, &str)>> = BTreeMap::new();
        let order = [(0, 0, "a"), (of_key, 1, "b"), (1, 2, "c"), (of_key, 3, "d"), (2, 4, "e"), (of_empty, 5, "f")];
        for (partition, place, value) in order {
            wanted.entry(partition).or_default().push((place, value));
        }
        let wanted: Vec<_> = wanted
            .into_iter()
            .map(|(partition, records)| {
                let (places, values): (Vec<u32>, Vec<&str>) = records.into_iter().unzip();
                (partition, places, values.into_iter().map(str::to_owned).collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(all, wanted);
    }

    #[test]
    fn one_bad_record_refuses_all_and_is_named_by_its_place_in_the_request() {
        let refused = |body: &str, kind| divided(body, kind, 3).err().unwrap().error;
        let error = refused(r#"{"records":[{},{},{},{"value":"a value of more than twenty"}]}"#, BodyKind::Json);
        assert_eq!(error.code, Code::RecordTooLarge);
        assert!(error.message.contains("record 3 "), "{error}");
        let error = refused("{}\n{}\n{\"value\":\"a value of more than twenty\"}\n", BodyKind::Lines);
        assert!(error.message.contains("line 3"), "{error}");
        let many = "{}\n".repeat(RECORDS_MAX + 1);
        assert_eq!(refused(&many, BodyKind::Lines).code, Code::RequestTooLarge);
        assert_eq!(divided(&many[3..], BodyKind::Lines, 3).unwrap().len(), 3);
    }

    fn sent(partition: u32, places: &[u32], result: Result<u64, (Code, WriteOutcome)>) -> Sent {
        let result = match result {
            Ok(base_offset) => Ok(Some(ProduceAnswer {
                topic: "t".into(),
                partition,
                base_offset,
                last_offset: base_offset + places.len() as u64 - 1,
                leader_epoch: 2,
                duplicate: false,
            })),
            Err((code, outcome)) => Err(Error::new(code, "why").with_outcome(outcome)),
        };
        Sent { partition, places: places.to_vec(), result, timing: None }
    }

    #[test]
    fn each_record_is_told_its_own_offset_in_the_order_of_the_request() {
        let sent = [sent(0, &[1, 2], Ok(7)), sent(1, &[0, 3], Ok(4))];
        let at = |partition, offset| RecordResult::Written { partition, offset: Some(offset), leader_epoch: Some(2) };
        assert_eq!(results(&sent), [at(1, 4), at(0, 7), at(0, 8), at(1, 5)]);
    }

    #[test]
    fn the_first_refused_record_gives_the_status_and_all_together_the_outcome() {
        use WriteOutcome::{None, Partial, Unknown};
        let no_leader = || Err((Code::NoLeader, None));
        let unknown = || Err((Code::OutcomeUnknown, Unknown));
        for (shares, status, wanted) in [
            (vec![sent(0, &[1], no_leader()), sent(1, &[0], no_leader())], 503, None),
            (vec![sent(0, &[1], no_leader()), sent(1, &[0], unknown())], 504, Unknown),
            (vec![sent(0, &[0], no_leader()), sent(1, &[1], unknown())], 503, Unknown),
            (vec![sent(0, &[0], no_leader()), sent(1, &[1], Ok(3))], 503, Partial),
            (vec![sent(0, &[0], Ok(3)), sent(1, &[1], unknown())], 504, Partial),
        ] {
            let refusal = answer(shares, Acks::All).unwrap_err();
            assert_eq!((refusal.error.code.status(), refusal.error.outcome), (status, wanted));
            assert_eq!(refusal.results.unwrap().len(), 2);
        }
        assert_eq!(answer(vec![sent(0, &[0], Ok(3))], Acks::All).unwrap().status(), StatusCode::OK);
        assert_eq!(answer(vec![sent(0, &[0], Ok(3))], Acks::None).unwrap().status(), StatusCode::ACCEPTED);
    }

    #[test]
    fn what_belongs_to_one_partition_is_refused() {
        let headers = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
            headers.insert(name, value.parse().unwrap());
            headers
        };
        for name in [api::PRODUCER_ID, api::PRODUCER_EPOCH, api::PRODUCER_SEQUENCE, api::IF_MATCH_OFFSET] {
            let refusal = body_kind(&headers(name, "1")).unwrap_err();
            assert_eq!(refusal.error.code, Code::InvalidRequest);
            assert!(refusal.error.message.contains(name));
        }
        let batch = body_kind(&headers("content-type", "application/octet-stream")).unwrap_err();
        assert_eq!(batch.error.code, Code::UnsupportedMediaType);
        assert_eq!(body_kind(&headers("x-other", "1")).unwrap(), BodyKind::Text);
    }

    #[test]
    fn the_slowest_partition_tells_where_the_time_went() {
        let timed = |timing| Sent { timing: Some(HeaderValue::from_static(timing)), ..sent(0, &[0], Ok(1)) };
        let (fast, slow) = ("queue;dur=9.0, journal;dur=1.5", "queue;dur=0.5, journal;dur=2.0, replicate;dur=8.25");
        assert_eq!(slowest(&[timed(fast), timed(slow), sent(1, &[1], Ok(1))]).unwrap(), slow);
        assert_eq!(slowest(&[sent(1, &[1], Ok(1))]), None);
    }
}
