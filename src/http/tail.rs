//! Tails: a partition's records as an endless `text/event-stream`.
//!
//! The broker that the client came to keeps the stream and its cursor; from wherever the partition's leader is it fetches
//! whole batches, one long poll after the other, and writes them down as events. So a change of leader is a pause and no
//! more. What cannot pass (retention took the next record, the topic is gone, though another may have its name) is said in a last `event: error`.
//!
//! A tail runs only while its client takes what there is: it holds one chunk of text, accounted for until the socket has
//! it, and no batch. A client that stops reading loses its connection after `limits.write_timeout_ms`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt, stream};
use pontoon_raft::types::Offset;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::api::fetched::{Framing, RecordsForm, RecordsJson, ValueFormat};
use crate::api::{self, ErrorBody, OffsetsAnswer};
use crate::error::Code;
use crate::http::fetch::{self, BATCHES, EVENTS, FetchWork, OffsetsWork};
use crate::http::leader::{AtLeader, Passable, Repeat};
use crate::http::refusal::Refusal;
use crate::http::request::{Params, Target, left, number_header, text_header};
use crate::http::{Shared, Stage};
use crate::partition::{Consistency, Fetch, FetchFrom, Partition};
use crate::telemetry::recorder::Open;

/// A comment is sent when there was nothing else for so long.
const COMMENT_INTERVAL: Duration = Duration::from_secs(15);
const COMMENT: &[u8] = b":\n\n";
/// Bytes that are fetched at a time, and of text that are written at a time, about.
const CHUNK_BYTES: usize = 128 << 10;
/// Longest answer of another broker: the largest batch there can be.
const BATCHES_BYTES_MAX: usize = (1 << 30) + (64 << 20);
/// How long one look waits for records.
const LOOK_WAIT: Duration = Duration::from_secs(15);
/// And how long for a leader.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after a look that failed; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// What a fetch may ask for and a tail cannot.
const NOT_FOR_TAILS: &[&str] = &["max_bytes", "max_records", "max_wait_ms"];

/// `GET /v1/topics/{t}/partitions/{p}/records` with `Accept: text/event-stream`.
pub(super) async fn tail(
    shared: Arc<Shared>,
    target: Target,
    parts: &Parts,
    params: &Params,
) -> Result<Response, Refusal> {
    for name in NOT_FOR_TAILS {
        if params.text(name).is_some() {
            return Err(Refusal::invalid(format!("{name} cannot go with a stream (Accept: {EVENTS})")));
        }
    }
    let deadline = Instant::now() + params.timeout(&parts.headers, fetch::READ_TIMEOUT_MS)?;
    let from = from(parts, params)?;
    let consistency = fetch::consistency(params.text("consistency"))?;
    let values = fetch::value_format(params.text("value_format"))?;
    let broker = Arc::clone(shared.broker()?);
    // There is no stream without a leader, and who has one knows the topic.
    broker.route_wait(&target.topic, target.partition, left(deadline)).await?;
    let topic_id = broker.topic_shape(&target.topic, left(deadline)).await?.topic_id;
    let source = Source { shared, target, topic_id, path: parts.uri.path().to_owned() };
    let topic_id = format!("{topic_id:032x}");
    if let Some(redirect) = source.redirect(parts, left(deadline)).await? {
        return Ok(redirect);
    }
    // Looked at before the head is sent, so that what is refused now is refused with its status.
    let (next, first) = source.begin(from, consistency, values, deadline).await?;
    let open = Open::new(&source.shared.metrics.door.tails);
    let tail = Tail { source, values, next, first: Some(first), pause: PAUSE_MIN, over: false, _open: open };
    let shared = Arc::clone(&tail.source.shared);
    let events = stream::unfold(tail, |mut tail| async {
        let chunk = tail.chunk().await?;
        Some((chunk, tail))
    });
    let headers =
        [(header::CONTENT_TYPE, EVENTS), (header::CACHE_CONTROL, "no-store"), (fetch::TOPIC_ID, topic_id.as_str())];
    Ok((headers, Body::from_stream(with_comments(shared, events).map(Ok::<_, Infallible>))).into_response())
}

/// The events, and a comment whenever there were none for so long, whatever they wait for: records, a leader, the rest of its
/// answer, room.
fn with_comments(shared: Arc<Shared>, events: impl Stream<Item = Bytes> + Send) -> impl Stream<Item = Bytes> + Send {
    stream::unfold((shared, Box::pin(events)), |(shared, mut events)| async {
        let chunk = tokio::select! {
            biased;
            chunk = events.next() => chunk?,
            () = shared.deadlines.after(COMMENT_INTERVAL) => Bytes::from_static(COMMENT),
        };
        Some((chunk, (shared, events)))
    })
}

/// `Last-Event-ID` beats `offset`; with neither, latest.
fn from(parts: &Parts, params: &Params) -> Result<FetchFrom, Refusal> {
    if let Some(last) = number_header(&parts.headers, "last-event-id", 0..=u64::MAX - 1)? {
        return Ok(FetchFrom::Offset(Offset(last + 1)));
    }
    match params.text("offset") {
        None => Ok(FetchFrom::Latest),
        some => fetch::from(some),
    }
}

/// Whether retention has taken what is asked for. Not so an offset past the end: that was never there.
fn is_gap(refusal: &Refusal, next: Offset) -> bool {
    let start = refusal.offsets.map(|offsets| offsets.log_start_offset);
    refusal.error.code == Code::OffsetOutOfRange && start.is_some_and(|start| next < start)
}

fn error_event(refusal: Refusal) -> Bytes {
    let mut body = ErrorBody::from(&refusal.error);
    body.log_start_offset = refusal.offsets.map(|offsets| offsets.log_start_offset.0);
    body.high_watermark = refusal.offsets.map(|offsets| offsets.high_watermark.0);
    let json = serde_json::to_string(&body).unwrap_or_default();
    format!("event: error\ndata: {json}\n\n").into()
}

/// One client's stream.
struct Tail {
    source: Source,
    values: ValueFormat,
    next: Offset,
    /// Found before the stream began.
    first: Option<Found>,
    pause: Duration,
    over: bool,
    _open: Open,
}

impl Tail {
    /// The next piece of the stream; `None` at its end.
    async fn chunk(&mut self) -> Option<Bytes> {
        while !self.over && self.source.shared.stage() == Stage::Serving {
            let found = match self.first.take() {
                Some(first) => first,
                None => match self.source.look(self.next, self.values, LOOK_WAIT, LOOK_TIMEOUT).await {
                    _ if self.source.replaced() => self.last(self.source.gone()),
                    Ok(found) => found,
                    Err(refusal) => match self.after(refusal).await {
                        Some(last) => last,
                        None => continue,
                    },
                },
            };
            (self.next, self.over, self.pause) = (found.next, found.last, PAUSE_MIN);
            if !found.events.is_empty() {
                return Some(found.events);
            }
        }
        // A broker that stops ends its streams: clients come back, to another one, with the id they saw last.
        None
    }

    /// What may pass is waited for; of the rest the client is told.
    async fn after(&mut self, refusal: Refusal) -> Option<Found> {
        if !refusal.error.code.retriable() {
            return Some(self.last(refusal));
        }
        tracing::debug!(target = %self.source.target, error = %refusal.error, "a tail looks again");
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        None
    }

    /// The last word.
    fn last(&self, refusal: Refusal) -> Found {
        Found { next: self.next, events: error_event(refusal), last: true }
    }
}

/// What one look brought.
struct Found {
    next: Offset,
    events: Bytes,
    /// Nothing comes after it.
    last: bool,
}

/// Where the records come from, whoever leads.
struct Source {
    shared: Arc<Shared>,
    target: Target,
    /// Of the topic that had the name when the stream began.
    topic_id: u128,
    /// As the client wrote it, encoded.
    path: String,
}

impl Source {
    /// Whether another topic has the name by now: this one's offsets mean nothing there.
    fn replaced(&self) -> bool {
        let broker = self.shared.broker().ok();
        broker.and_then(|broker| broker.topic_id(&self.target.topic)).is_some_and(|id| id != self.topic_id)
    }

    /// The leader may know of another topic of the name before this broker does.
    fn check_topic(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let read = text_header(headers, api::TOPIC_ID)?.and_then(|id| u128::from_str_radix(id, 16).ok());
        if read.is_some_and(|id| id != self.topic_id) { Err(self.gone()) } else { Ok(()) }
    }

    fn gone(&self) -> Refusal {
        let why = format!("topic {:?} was deleted, and another created under its name", self.target.topic);
        (Code::UnknownTopic, why).into()
    }

    /// 307, if the client prefers to be sent to the leader and that is elsewhere.
    async fn redirect(&self, parts: &Parts, timeout: Duration) -> Result<Option<Response>, Refusal> {
        let passable = Passable::new(parts, Bytes::new(), timeout, Repeat::Read);
        if !passable.wants_redirect() {
            return Ok(None);
        }
        let response = passable.at_leader(&self.shared, &self.target, &Here).await?;
        Ok(Some(response).filter(|response| response.status() == StatusCode::TEMPORARY_REDIRECT))
    }

    /// The offset at which the stream begins.
    async fn resolve(&self, from: FetchFrom, consistency: Consistency, timeout: Duration) -> Result<Offset, Refusal> {
        let timestamp = match from {
            FetchFrom::Offset(offset) => return Ok(offset),
            FetchFrom::Timestamp(timestamp) => Some(timestamp),
            FetchFrom::Earliest | FetchFrom::Latest => None,
        };
        let level = if consistency == Consistency::Linearizable { "linearizable" } else { "committed" };
        let at = timestamp.map(|ms| format!("&timestamp={ms}")).unwrap_or_default();
        let path = self.path.strip_suffix("records").unwrap_or(&self.path);
        let request = self.request(&format!("{path}offsets?consistency={level}{at}"), "application/json", timeout)?;
        let answer = request.at_leader(&self.shared, &self.target, &OffsetsWork { timestamp, consistency }).await?;
        let body = self.whole(answer, 1 << 16).await?;
        let offsets: OffsetsAnswer = serde_json::from_slice(&body).map_err(|error| self.unreadable(&error))?;
        Ok(Offset(match from {
            FetchFrom::Earliest => offsets.log_start_offset,
            FetchFrom::Timestamp(_) => offsets.offset.unwrap_or(offsets.high_watermark),
            FetchFrom::Offset(_) | FetchFrom::Latest => offsets.high_watermark,
        }))
    }

    /// Where the stream begins, and what is there already. A shortage of room is waited out: browsers give up at a refusal.
    async fn begin(
        &self,
        from: FetchFrom,
        consistency: Consistency,
        values: ValueFormat,
        deadline: Instant,
    ) -> Result<(Offset, Found), Refusal> {
        loop {
            let next = self.resolve(from, consistency, left(deadline)).await?;
            match self.look(next, values, Duration::ZERO, left(deadline)).await {
                Ok(first) => return Ok((next, first)),
                Err(refusal) if refusal.error.code == Code::TooManyRequests && left(deadline) > PAUSE_MAX => {
                    tokio::time::sleep(PAUSE_MAX / 10).await;
                }
                // Who named no record need not hear of one that went between the two questions.
                Err(refusal) if is_gap(&refusal, next) => {
                    if matches!(from, FetchFrom::Offset(_)) || left(deadline).is_zero() {
                        return Ok((next, Found { next, events: error_event(refusal), last: true }));
                    }
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    /// The next events from `next` on, waiting for records up to `wait`, and for a leader up to `timeout` on top.
    async fn look(
        &self,
        next: Offset,
        values: ValueFormat,
        wait: Duration,
        timeout: Duration,
    ) -> Result<Found, Refusal> {
        let wait_ms = wait.as_millis();
        let query = format!("{}?offset={next}&max_bytes={CHUNK_BYTES}&max_wait_ms={wait_ms}", self.path);
        let fetch =
            Fetch { from: FetchFrom::Offset(next), bytes_max: CHUNK_BYTES, wait, consistency: Consistency::Committed };
        let work = FetchWork { shared: &self.shared, target: &self.target, fetch, form: None };
        let answer =
            self.request(&query, BATCHES, timeout + wait)?.at_leader(&self.shared, &self.target, &work).await?;
        self.check_topic(answer.headers())?;
        let end = number_header(answer.headers(), api::NEXT_OFFSET, 0..=u64::MAX)?.map(Offset);
        let announced = number_header(answer.headers(), header::CONTENT_LENGTH.as_str(), 0..=BATCHES_BYTES_MAX)?;
        let announced = announced.ok_or_else(|| self.unreadable(&"it has no length"))?;
        if announced == 0 {
            return Ok(Found { next: end.unwrap_or(next), events: Bytes::new(), last: false });
        }
        // For the batches, and for their text, which is longer if they are compressed.
        let share = self.shared.tail_bytes.wait(announced + CHUNK_BYTES).await?;
        let batches = self.whole(answer, announced).await?;
        self.write(next, end, values, batches, share).await
    }

    /// Writes batches down as events, as far as one chunk goes. The share goes with the text until it is sent.
    async fn write(
        &self,
        next: Offset,
        end: Option<Offset>,
        values: ValueFormat,
        mut batches: Bytes,
        mut share: OwnedSemaphorePermit,
    ) -> Result<Found, Refusal> {
        let form = RecordsForm { records_max: usize::MAX, bytes_max: CHUNK_BYTES, values, framing: Framing::Events };
        let mut events = RecordsJson::new(next, form);
        let mut complete = true;
        while complete && !batches.is_empty() {
            let batch = split_batch(&mut batches).ok_or_else(|| self.unreadable(&"a batch is cut short"))?;
            complete = fetch::write_down(&mut events, batch).await?;
        }
        let next = events.next_offset(end.filter(|_| complete));
        let text = events.into_records();
        drop(share.split(share.num_permits().saturating_sub(text.len())));
        let events = if text.is_empty() { text } else { Bytes::from_owner(Sending { text, _share: share }) };
        Ok(Found { next, events, last: false })
    }

    fn request(&self, path_and_query: &str, accept: &str, timeout: Duration) -> Result<Passable, Refusal> {
        let request = axum::http::Request::builder().method(Method::GET).uri(path_and_query);
        let request = request.header(header::ACCEPT, accept).body(());
        let (parts, ()) = request.map_err(|error| Refusal::invalid(error.to_string()))?.into_parts();
        Ok(Passable::new(&parts, Bytes::new(), timeout, Repeat::Read))
    }

    /// The body of the leader's answer. One that breaks off is one more reason to look again.
    async fn whole(&self, answer: Response, bytes_max: usize) -> Result<Bytes, Refusal> {
        let status = answer.status();
        if !status.is_success() {
            return Err(self.unreadable(&format_args!("status {status}")));
        }
        axum::body::to_bytes(answer.into_body(), bytes_max).await.map_err(|error| self.unreadable(&error))
    }

    fn unreadable(&self, why: &dyn std::fmt::Display) -> Refusal {
        (Code::NoLeader, format!("the answer of the leader of {} cannot be read: {why}", self.target)).into()
    }
}

/// Nothing to be done here but to lead.
struct Here;

impl AtLeader for Here {
    async fn run(&self, _: &Partition, _: Duration) -> Result<Response, Refusal> {
        Ok(StatusCode::OK.into_response())
    }
}

/// Text on its way to a socket, and its share of the room for such.
struct Sending {
    text: Bytes,
    _share: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Sending {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// Takes the first batch off several.
fn split_batch(batches: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(batches.get(8..12)?.get_i32()).ok()?.checked_add(12)?;
    (length <= batches.len()).then(|| batches.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::partition::Offsets;

    fn parts(uri: &str, last: Option<&str>) -> (Parts, Params) {
        let mut request = axum::http::Request::builder().uri(uri);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let params = Params::read(&parts.uri, &["offset"]).unwrap();
        (parts, params)
    }

    #[test]
    fn the_last_event_beats_the_offset_and_without_both_it_is_the_end() {
        for (uri, last, wanted) in [
            ("/", None, FetchFrom::Latest),
            ("/?offset=earliest", None, FetchFrom::Earliest),
            ("/?offset=3", Some("7"), FetchFrom::Offset(Offset(8))),
        ] {
            let (parts, params) = parts(uri, last);
            assert_eq!(from(&parts, &params).unwrap(), wanted);
        }
        for wrong in ["", "-1", "x", "18446744073709551615"] {
            let (parts, params) = parts("/", Some(wrong));
            assert!(from(&parts, &params).unwrap_err().error.message.contains("last-event-id"));
        }
    }

    #[test]
    fn only_what_retention_took_is_a_gap() {
        let offsets = Offsets { log_start_offset: Offset(5), high_watermark: Offset(9), log_end_offset: Offset(9) };
        let error = Error::new(Code::OffsetOutOfRange, "m");
        let refusal = |offsets| Refusal { offsets, ..Refusal::from(error.clone()) };
        assert!(is_gap(&refusal(Some(offsets)), Offset(4)));
        assert!(!is_gap(&refusal(Some(offsets)), Offset(10)));
        assert!(!is_gap(&refusal(None), Offset(4)));
        let event = String::from_utf8(error_event(refusal(Some(offsets))).to_vec()).unwrap();
        assert!(
            event.starts_with("event: error\ndata: {\"error\":\"OFFSET_OUT_OF_RANGE\"") && event.ends_with("}\n\n")
        );
        assert!(event.contains("\"log_start_offset\":5"), "{event}");
    }

    #[test]
    fn batches_are_taken_apart_and_never_past_the_end() {
        let batch = |bytes: usize| [&[0; 8][..], &(bytes as i32).to_be_bytes(), &vec![1; bytes]].concat();
        let mut both = Bytes::from([batch(3), batch(0)].concat());
        assert_eq!(split_batch(&mut both).unwrap().len(), 15);
        assert_eq!(split_batch(&mut both).unwrap().len(), 12);
        assert!(both.is_empty());
        for mut wrong in
            [Bytes::from(batch(3)[..14].to_vec()), Bytes::from_static(&[0; 11]), Bytes::from_static(&[255; 20])]
        {
            assert!(split_batch(&mut wrong).is_none());
        }
    }

    #[tokio::test]
    async fn text_gives_its_room_back_once_it_is_sent() {
        let budget = crate::http::budget::Budget::new(100);
        let held = budget.wait(60).await.unwrap();
        let text = Bytes::from_owner(Sending { text: Bytes::from_static(b"abc"), _share: held });
        let part = text.slice(1..);
        drop(text);
        assert_eq!((budget.held(), &part[..]), (60, &b"bc"[..]));
        drop(part);
        assert_eq!(budget.held(), 0);
    }
}
