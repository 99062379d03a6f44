//! Fetch and offsets: reads at a partition's leader.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use pontoon_raft::types::Offset;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use crate::api::fetched::{Framing, RecordsForm, RecordsJson, ValueFormat};
use crate::api::{self, OffsetsAnswer};
use crate::error::{Code, Error};
use crate::http::leader::{AtLeader, Passable, Repeat};
use crate::http::refusal::Refusal;
use crate::http::request::{Params, Target, accept, digits};
use crate::http::{Shared, tail};
use crate::partition::aside::read_batch;
use crate::partition::{Consistency, Fetch, FetchFrom, Fetched, Partition};
use crate::record_batch::{BatchHeader, Compression, STORED_DECOMPRESSED_BYTES_MAX};

pub(super) const TOPIC_ID: HeaderName = HeaderName::from_static(api::TOPIC_ID);
pub(super) const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";
pub(super) const BATCHES: &str = "application/octet-stream";
pub(super) const EVENTS: &str = "text/event-stream";
/// Default of a read's `timeout_ms`: how long to look for a leader.
pub(super) const READ_TIMEOUT_MS: u64 = 10_000;
/// How many of the largest answers there is room for at a time.
const ANSWERS_MIN: usize = 4;
/// What stands around a record's key, value and headers, about.
const RECORD_TEXT_BYTES: usize = 160;
/// A fetch's parameters.
const PARAMS: &[&str] =
    &["offset", "max_bytes", "max_records", "max_wait_ms", "consistency", "value_format", "timeout_ms"];

/// `GET /v1/topics/{t}/partitions/{p}/records`
pub(super) async fn fetch(
    State(shared): State<Arc<Shared>>,
    target: Target,
    request: Request,
) -> Result<Response, Refusal> {
    let (parts, _) = request.into_parts();
    let params = Params::read(&parts.uri, PARAMS)?;
    let accepted = accept(&parts.headers, &[JSON, LINES, BATCHES, EVENTS])?;
    if accepted == EVENTS {
        return tail::tail(shared, target, &parts, &params).await;
    }
    let bytes_max = bytes_max(&params, shared.limits.inflight_bytes_max)?;
    let form = form(&params, accepted, bytes_max)?;
    let wait = Duration::from_millis(params.number("max_wait_ms", 0..=api::FETCH_WAIT_MS_MAX)?.unwrap_or(0));
    let work = FetchWork {
        shared: &shared,
        target: &target,
        fetch: Fetch {
            from: from(params.text("offset"))?,
            bytes_max,
            wait,
            consistency: consistency(params.text("consistency"))?,
        },
        form,
    };
    // The time to find a leader; waiting for records comes on top.
    let timeout = params.timeout_and(wait, &parts.headers, READ_TIMEOUT_MS)?;
    Passable::new(&parts, Bytes::new(), timeout, Repeat::Read).at_leader(&shared, &target, &work).await
}

/// `GET /v1/topics/{t}/partitions/{p}/offsets`
pub(super) async fn offsets(
    State(shared): State<Arc<Shared>>,
    target: Target,
    request: Request,
) -> Result<Response, Refusal> {
    let (parts, _) = request.into_parts();
    let params = Params::read(&parts.uri, &["timestamp", "consistency", "timeout_ms"])?;
    let work = OffsetsWork {
        timestamp: params.number("timestamp", 0..=i64::MAX)?,
        consistency: consistency(params.text("consistency"))?,
    };
    let timeout = params.timeout(&parts.headers, READ_TIMEOUT_MS)?;
    Passable::new(&parts, Bytes::new(), timeout, Repeat::Read).at_leader(&shared, &target, &work).await
}

/// No answer may need so much of all the room that it could hardly ever find it.
fn bytes_max(params: &Params, room: usize) -> Result<usize, Refusal> {
    let asked = params.number("max_bytes", 1..=api::FETCH_BYTES_MAX)?.unwrap_or(api::FETCH_BYTES_DEFAULT);
    Ok(asked.min(room / ANSWERS_MIN).max(1))
}

/// How the records are written; `None`: as whole batches.
fn form(params: &Params, accepted: &str, bytes_max: usize) -> Result<Option<RecordsForm>, Refusal> {
    let records_max = params.number("max_records", 1..=usize::MAX)?;
    let values = value_format(params.text("value_format"))?;
    let framing = match accepted {
        BATCHES => {
            for name in ["max_records", "value_format"] {
                if params.text(name).is_some() {
                    return Err(Refusal::invalid(format!("{name} cannot go with whole batches (Accept: {BATCHES})")));
                }
            }
            return Ok(None);
        }
        LINES => Framing::Lines,
        _ => Framing::Body,
    };
    Ok(Some(RecordsForm { records_max: records_max.unwrap_or(usize::MAX), bytes_max, values, framing }))
}

pub(super) fn value_format(text: Option<&str>) -> Result<ValueFormat, Refusal> {
    match text {
        None | Some("text") => Ok(ValueFormat::Text),
        Some("json") => Ok(ValueFormat::Json),
        Some(other) => Err(Refusal::invalid(format!("value_format={other:?} is not json or text"))),
    }
}

pub(super) fn from(text: Option<&str>) -> Result<FetchFrom, Refusal> {
    let wrong =
        |text: &str| Refusal::invalid(format!("offset={text:?} is not a number, earliest, latest or timestamp:MS"));
    match text {
        None | Some("earliest") => Ok(FetchFrom::Earliest),
        Some("latest") => Ok(FetchFrom::Latest),
        Some(text) => match text.strip_prefix("timestamp:") {
            Some(ms) => digits(ms).map(FetchFrom::Timestamp).ok_or_else(|| wrong(text)),
            None => digits(text).map(|offset| FetchFrom::Offset(Offset(offset))).ok_or_else(|| wrong(text)),
        },
    }
}

pub(super) fn consistency(text: Option<&str>) -> Result<Consistency, Refusal> {
    match text {
        None | Some("committed") => Ok(Consistency::Committed),
        Some("linearizable") => Ok(Consistency::Linearizable),
        Some(other) => Err(Refusal::invalid(format!("consistency={other:?} is not committed or linearizable"))),
    }
}

/// The offsets at the leader.
pub(super) struct OffsetsWork {
    pub(super) timestamp: Option<i64>,
    pub(super) consistency: Consistency,
}

impl AtLeader for OffsetsWork {
    async fn run(&self, partition: &Partition, left: Duration) -> Result<Response, Refusal> {
        let offsets = in_time(left, partition.offsets(self.consistency)).await??;
        let offset = match self.timestamp {
            Some(timestamp) => Some(partition.offset_for_timestamp(timestamp).await?.0),
            None => None,
        };
        let answer = OffsetsAnswer {
            log_start_offset: offsets.log_start_offset.0,
            high_watermark: offsets.high_watermark.0,
            log_end_offset: offsets.log_end_offset.0,
            offset,
        };
        Ok(Json(answer).into_response())
    }
}

/// What a leader reads within the request's own time: one that is cut off would try for longer to confirm that it leads.
async fn in_time<T>(left: Duration, reading: impl Future<Output = T>) -> Result<T, Error> {
    let late = |_| Error::new(Code::NoLeader, "this broker could not confirm that it leads within the timeout");
    timeout(left, reading).await.map_err(late)
}

/// A fetch at its leader.
pub(super) struct FetchWork<'a> {
    pub(super) shared: &'a Shared,
    pub(super) target: &'a Target,
    pub(super) fetch: Fetch,
    /// `None`: whole batches.
    pub(super) form: Option<RecordsForm>,
}

impl AtLeader for FetchWork<'_> {
    async fn run(&self, partition: &Partition, left: Duration) -> Result<Response, Refusal> {
        // Looked up once the partition was found, so that no newer topic's records go under an older one's id.
        let topic_id = self.topic_id();
        let (fetched, permit) = match self.read(partition, left).await {
            Ok(found) => found,
            Err(mut refusal) => {
                if refusal.error.code == Code::OffsetOutOfRange {
                    refusal.offsets = partition.offsets(Consistency::Committed).await.ok();
                }
                return Err(refusal);
            }
        };
        let mut response = match self.form {
            None => self.batches(fetched, permit),
            Some(form) => self.records(form, fetched, permit).await?,
        };
        response.headers_mut().extend(topic_id.map(|id| (TOPIC_ID, id)));
        Ok(response)
    }
}

impl FetchWork<'_> {
    fn topic_id(&self) -> Option<HeaderValue> {
        let id = self.shared.broker().ok()?.topic_id(&self.target.topic)?;
        HeaderValue::from_str(&format!("{id:032x}")).ok()
    }

    /// Reads, waiting for records if there are none. A waiting fetch has no timer of its own, and holds no share of the
    /// bytes in flight: it has none.
    async fn read(&self, partition: &Partition, left: Duration) -> Result<(Fetched, OwnedSemaphorePermit), Refusal> {
        let (wait, deadline) = (self.fetch.wait.min(left), Instant::now() + left);
        let at_once = Fetch { wait: Duration::ZERO, ..self.fetch };
        let found = in_time(left, self.read_at_once(partition, at_once)).await??;
        if !found.0.batches.is_empty() || wait.is_zero() {
            return Ok(found);
        }
        let (fetched, mut nothing) = found;
        keep(&mut nothing, 0);
        tokio::select! {
            biased;
            woken = partition.wait_for(fetched.next_offset) => woken?,
            () = self.shared.deadlines.after(wait) => {}
            // Better an empty answer than a broken connection: the client asks again, elsewhere.
            () = self.shared.stopping() => return Ok((fetched, nothing)),
        }
        let from = FetchFrom::Offset(fetched.next_offset);
        let again = timeout_at(deadline, self.read_at_once(partition, Fetch { from, ..at_once })).await;
        // That there was nothing when it came stands, whatever there is now.
        again.unwrap_or(Ok((fetched, nothing)))
    }

    fn batches(&self, mut fetched: Fetched, permit: OwnedSemaphorePermit) -> Response {
        let batches = std::mem::take(&mut fetched.batches);
        self.shared.metrics.partitions.served(records_in(&batches), batches.iter().map(Bytes::len).sum());
        with_cursor(BATCHES, &fetched, fetched.next_offset, batches, permit)
    }

    async fn read_at_once(
        &self,
        partition: &Partition,
        fetch: Fetch,
    ) -> Result<(Fetched, OwnedSemaphorePermit), Refusal> {
        let mut permit = self.shared.answer_bytes.reserve(fetch.bytes_max)?;
        let fetched = partition.fetch(fetch).await?;
        // A single batch may be larger than what was asked for.
        let found: usize = fetched.batches.iter().map(Bytes::len).sum();
        if let Some(more) = found.checked_sub(permit.num_permits()) {
            permit.merge(self.shared.answer_bytes.reserve(more)?);
        }
        // Hundreds who wait for the same record are woken at once: each holds what it brought, not what it might have brought.
        keep(&mut permit, if self.form.is_some() { text_bytes_max(&fetched.batches) } else { found });
        Ok((fetched, permit))
    }

    async fn records(
        &self,
        form: RecordsForm,
        fetched: Fetched,
        permit: OwnedSemaphorePermit,
    ) -> Result<Response, Refusal> {
        let mut json = RecordsJson::new(fetched.start_offset, form);
        let mut complete = true;
        for (at, batch) in fetched.batches.iter().enumerate() {
            if at > 0 {
                // A large answer takes a while to write down; others get their turn.
                tokio::task::yield_now().await;
            }
            if !write_down(&mut json, batch.clone()).await? {
                complete = false;
                break;
            }
        }
        let bytes = fetched.batches.iter().map(Bytes::len).sum();
        self.shared.metrics.partitions.served(json.count() as u64, bytes);
        if form.framing == Framing::Lines {
            let next = json.next_offset(complete.then_some(fetched.next_offset));
            return Ok(with_cursor(LINES, &fetched, next, vec![json.into_records()], permit));
        }
        let (head, records) = json.finish(&self.target.topic, self.target.partition, &fetched, complete);
        let headers = [
            (header::CONTENT_TYPE.as_str(), JSON.to_owned()),
            (header::CONTENT_LENGTH.as_str(), (head.len() + records.len()).to_string()),
        ];
        Ok((headers, chunks(vec![head, records], permit)).into_response())
    }
}

/// Writes one batch's records down, aside if they are many bytes. Returns false once a limit is reached.
pub(super) async fn write_down(json: &mut RecordsJson, batch: Bytes) -> Result<bool, Error> {
    read_batch(batch, STORED_DECOMPRESSED_BYTES_MAX, |records| json.push(records)).await
}

/// An answer whose cursor is in its headers.
fn with_cursor(
    kind: &str,
    fetched: &Fetched,
    next: Offset,
    body: Vec<Bytes>,
    permit: OwnedSemaphorePermit,
) -> Response {
    let headers = [
        (header::CONTENT_TYPE.as_str(), kind.to_owned()),
        (header::CONTENT_LENGTH.as_str(), body.iter().map(Bytes::len).sum::<usize>().to_string()),
        (api::NEXT_OFFSET, next.to_string()),
        (api::HIGH_WATERMARK, fetched.high_watermark.to_string()),
        (api::LOG_START_OFFSET, fetched.log_start_offset.to_string()),
        (api::LEADER_EPOCH, fetched.leader_epoch.to_string()),
    ];
    (headers, chunks(body, permit)).into_response()
}

/// Gives back what an answer does not take of its share. (What it takes on top, by its last record, it takes unasked.)
fn keep(share: &mut OwnedSemaphorePermit, bytes: usize) {
    drop(share.split(share.num_permits().saturating_sub(bytes)));
}

/// As what text batches may come at most: `\u0000` stands for a byte, and names stand around it. Who knows, of a compressed one.
fn text_bytes_max(batches: &[Bytes]) -> usize {
    let of = |batch: &Bytes| match BatchHeader::read(batch) {
        Ok(header) if matches!(header.compression(), Ok(Compression::None)) => {
            batch.len() * 6 + header.record_count.max(0) as usize * RECORD_TEXT_BYTES
        }
        _ => usize::MAX,
    };
    batches.iter().map(of).fold(0, usize::saturating_add)
}

fn records_in(batches: &[Bytes]) -> u64 {
    let headers = batches.iter().filter_map(|batch| BatchHeader::read(batch).ok());
    headers.map(|header| header.record_count.max(0) as u64).sum()
}

/// A body of several parts, which gives its share of the bytes in flight back once it is sent.
pub(super) fn chunks(parts: Vec<Bytes>, mut permit: OwnedSemaphorePermit) -> Body {
    keep(&mut permit, parts.iter().map(Bytes::len).sum());
    Body::from_stream(futures_util::stream::iter(parts).map(move |part| {
        let _held = &permit;
        Ok::<_, std::convert::Infallible>(part)
    }))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;
    use crate::partition::aside::testing::hold_places;
    use crate::record_batch::{NewRecord, RecordBatchBuilder};

    #[test]
    fn a_fetch_begins_where_it_says() {
        assert_eq!(from(None).unwrap(), FetchFrom::Earliest);
        assert_eq!(from(Some("latest")).unwrap(), FetchFrom::Latest);
        assert_eq!(from(Some("18446744073709551615")).unwrap(), FetchFrom::Offset(Offset(u64::MAX)));
        assert_eq!(from(Some("timestamp:1700000000000")).unwrap(), FetchFrom::Timestamp(1_700_000_000_000));
        for wrong in ["", "-1", "newest", "timestamp:", "timestamp:-5", "timestamp:now", "18446744073709551616", "1 "] {
            let message = from(Some(wrong)).unwrap_err().error.message;
            assert!(message.contains(&format!("{wrong:?}")), "{message}");
        }
    }

    #[test]
    fn consistency_is_two_words() {
        assert_eq!(consistency(None).unwrap(), Consistency::Committed);
        assert_eq!(consistency(Some("linearizable")).unwrap(), Consistency::Linearizable);
        assert!(consistency(Some("strong")).unwrap_err().error.message.contains("\"strong\""));
    }

    #[tokio::test]
    async fn a_body_gives_its_share_back_when_it_is_gone() {
        let budget = crate::http::budget::Budget::new(10);
        let body = chunks(vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")], budget.reserve(7).unwrap());
        assert_eq!(budget.held(), 3, "what it does not take is free for others");
        assert_eq!(&axum::body::to_bytes(body, 10).await.unwrap()[..], b"abc");
        assert_eq!(budget.held(), 0);
    }

    /// A text of 15 MB is escaped for a while.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_large_batch_is_written_down_aside() {
        let mut builder = RecordBatchBuilder::new(crate::record_batch::BatchLimits::default());
        let record = NewRecord { value: Some(vec![b'x'; 1_000_000].into()), ..NewRecord::default() };
        (0..15).for_each(|_| builder.push(&record).unwrap());
        let batch = builder.build(None).unwrap().into_bytes();
        let form =
            RecordsForm { records_max: 9, bytes_max: usize::MAX, values: ValueFormat::Text, framing: Framing::Lines };
        let mut json = RecordsJson::new(Offset(0), form);
        let held = hold_places().await;
        {
            let mut writing = pin!(write_down(&mut json, batch));
            assert!(poll!(&mut writing).is_pending());
            drop(held);
            assert_eq!(writing.await, Ok(false));
        }
        assert_eq!(json.count(), 9);
    }
}
