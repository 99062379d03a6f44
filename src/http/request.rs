//! Reading requests: parameters, content types, bodies. Strict, bounded before memory is asked for, and every refusal names
//! the value.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::api;
use crate::config::Limits;
use crate::error::Code;
use crate::http::budget::Budget;
use crate::http::refusal::Refusal;
use crate::nearest::nearest;

/// The partition a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) topic: String,
    pub(super) partition: u32,
}

impl Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Target {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path((topic, partition)): Path<(String, String)> =
            Path::from_request_parts(parts, state).await.map_err(|error| path_refusal(&error))?;
        match digits(&partition) {
            Some(partition) => Ok(Self { topic, partition }),
            None => Err(Refusal::invalid(format!("partition {partition:?} in the path is not a number"))),
        }
    }
}

/// The topic a path names.
pub(super) struct TopicName(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for TopicName {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path(topic) = Path::from_request_parts(parts, state).await.map_err(|error| path_refusal(&error))?;
        Ok(Self(topic))
    }
}

fn path_refusal(error: &PathRejection) -> Refusal {
    Refusal::invalid(format!("path: {error}"))
}

/// A number of digits and nothing else: Rust's own reader also takes a sign.
pub(super) fn digits<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A query's parameters: known ones only, each at most once.
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    pub(super) fn read(uri: &Uri, known: &[&str]) -> Result<Self, Refusal> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Refusal::invalid(format!("query {:?}: {error}", uri.query().unwrap_or_default())))?;
        for (at, (name, _)) in pairs.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                let there = match (nearest(name, known), known) {
                    (_, []) => "; there are none here".to_owned(),
                    (Some(meant), _) => format!("; did you mean {meant:?}? There are {}", known.join(", ")),
                    (None, _) => format!(". There are {}", known.join(", ")),
                };
                return Err(Refusal::invalid(format!("unknown parameter {name:?}{there}")));
            }
            if pairs[..at].iter().any(|(other, _)| other == name) {
                return Err(Refusal::invalid(format!("parameter {name:?} is given twice")));
            }
        }
        Ok(Self(pairs))
    }

    /// A parameter's text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str())
    }

    /// A number in a range.
    pub(super) fn number<T>(&self, name: &str, range: RangeInclusive<T>) -> Result<Option<T>, Refusal>
    where
        T: FromStr + PartialOrd + Display,
    {
        let Some(text) = self.text(name) else { return Ok(None) };
        match digits(text) {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(Refusal::invalid(format!(
                "{name}={text:?} is not a number from {} to {}",
                range.start(),
                range.end()
            ))),
        }
    }

    /// `timeout_ms`, shortened to what a passing broker has left of it.
    pub(super) fn timeout(&self, headers: &HeaderMap, default_ms: u64) -> Result<Duration, Refusal> {
        self.timeout_and(Duration::ZERO, headers, default_ms)
    }

    /// `timeout_ms` and a wait on top of it, shortened to what a passing broker has left of both.
    pub(super) fn timeout_and(
        &self,
        wait: Duration,
        headers: &HeaderMap,
        default_ms: u64,
    ) -> Result<Duration, Refusal> {
        let asked = self.number("timeout_ms", 1..=api::TIMEOUT_MS_MAX)?.unwrap_or(default_ms);
        let asked = Duration::from_millis(asked) + wait;
        let left = number_header(headers, api::TIMEOUT_MS, 0..=api::TIMEOUT_MS_MAX + api::FETCH_WAIT_MS_MAX)?;
        Ok(left.map_or(asked, |left| asked.min(Duration::from_millis(left))))
    }
}

/// What is left of a request's time.
pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// A header's text, if it is there once. Twice, or not text: 400.
pub(super) fn text_header<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Refusal::invalid(format!("header {name} is given twice")));
    }
    let text = value.to_str().map_err(|_| Refusal::invalid(format!("header {name}: {value:?} is not text")))?;
    Ok(Some(text.trim()))
}

/// A header's number, in a range.
pub(super) fn number_header<T>(headers: &HeaderMap, name: &str, range: RangeInclusive<T>) -> Result<Option<T>, Refusal>
where
    T: FromStr + PartialOrd + Display,
{
    let Some(text) = text_header(headers, name)? else { return Ok(None) };
    match digits(text) {
        Some(number) if range.contains(&number) => Ok(Some(number)),
        _ => Err(Refusal::invalid(format!(
            "header {name}: {text:?} is not a number from {} to {}",
            range.start(),
            range.end()
        ))),
    }
}

/// What a produce's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyKind {
    Json,
    Lines,
    Text,
    Batch,
}

impl BodyKind {
    /// By Content-Type; parameters (charset) are not looked at, the body is bytes.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        check_encoding(headers)?;
        let name = media_type(headers)?;
        match name.as_deref() {
            Some("application/json") => Ok(Self::Json),
            Some("application/x-ndjson") => Ok(Self::Lines),
            Some("text/plain") => Ok(Self::Text),
            Some("application/octet-stream") => Ok(Self::Batch),
            other => Err(unsupported(
                other,
                "application/json, text/plain, application/x-ndjson or application/octet-stream",
            )),
        }
    }
}

/// Refuses a body that is not JSON by its Content-Type.
pub(super) fn check_json(headers: &HeaderMap) -> Result<(), Refusal> {
    check_encoding(headers)?;
    match media_type(headers)?.as_deref() {
        Some("application/json") => Ok(()),
        other => Err(unsupported(other, "application/json")),
    }
}

/// A compressed body would be stored as it is, and read as text.
fn check_encoding(headers: &HeaderMap) -> Result<(), Refusal> {
    match text_header(headers, header::CONTENT_ENCODING.as_str())? {
        None | Some("identity") => Ok(()),
        Some(other) => Err((
            Code::UnsupportedMediaType,
            format!("Content-Encoding {other:?} is not supported; compress the record batch instead"),
        )
            .into()),
    }
}

fn media_type(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let text = text_header(headers, header::CONTENT_TYPE.as_str())?;
    Ok(text.map(|text| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()))
}

fn unsupported(found: Option<&str>, wanted: &str) -> Refusal {
    let found = found.map_or("Content-Type is missing".to_owned(), |name| format!("Content-Type {name:?}"));
    (Code::UnsupportedMediaType, format!("{found}; send {wanted}")).into()
}

/// The first of `offers` that has the highest preference in Accept. No Accept takes the first.
pub(super) fn accept<'a>(headers: &HeaderMap, offers: &[&'a str]) -> Result<&'a str, Refusal> {
    let mut wanted = Vec::new();
    for value in headers.get_all(header::ACCEPT) {
        let text = value.to_str().map_err(|_| Refusal::invalid(format!("header accept: {value:?} is not text")))?;
        wanted.extend(text.split(',').map(str::trim).filter(|range| !range.is_empty()).map(media_range));
    }
    if wanted.is_empty() {
        return Ok(offers[0]);
    }
    let mut best: Option<(&'a str, f32)> = None;
    for offer in offers {
        // The most specific range decides (RFC 9110 §12.5.1).
        let matching = wanted.iter().filter_map(|(range, q)| Some((specificity(range, offer)?, *q)));
        let Some((_, q)) = matching.max_by_key(|(specificity, _)| *specificity) else { continue };
        if q > 0.0 && best.is_none_or(|(_, best)| q > best) {
            best = Some((offer, q));
        }
    }
    best.map(|(offer, _)| offer).ok_or_else(|| {
        let wanted: Vec<String> = wanted.into_iter().map(|(range, _)| range).collect();
        (Code::NotAcceptable, format!("Accept {:?}; there is {}", wanted.join(", "), offers.join(" or "))).into()
    })
}

fn media_range(text: &str) -> (String, f32) {
    let mut parts = text.split(';');
    let range = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
    let q = parts.find_map(|part| part.trim().strip_prefix("q=").and_then(|q| q.parse().ok()));
    (range, q.unwrap_or(1.0))
}

/// How closely a range names the offer: `a/b`, `a/*`, `*/*`; none if it does not.
fn specificity(range: &str, offer: &str) -> Option<u8> {
    let family = offer.split('/').next().unwrap_or_default();
    match range {
        "*/*" => Some(0),
        _ if range.strip_suffix("/*") == Some(family) => Some(1),
        _ if range == offer => Some(2),
        _ => None,
    }
}

/// A body, and its share of the bytes in flight while it is held.
pub(super) struct Received {
    pub(super) bytes: Bytes,
    /// Given back when this is dropped.
    _share: OwnedSemaphorePermit,
}

/// Bytes a body gets room for at first, and by how much that grows: half a body holds no more than a few times what came.
const BODY_BYTES_MIN: usize = 64 << 10;
const BODY_GROWTH: usize = 4;
/// How long a body may make no haste while others find no room.
const BODY_PATIENCE: Duration = Duration::from_secs(1);
/// What haste is: bytes a second.
const BODY_RATE_MIN: usize = 64 << 10;

/// Reads a whole body: at most the limit, in time, and only while there is room for it among all others. Who sends slowly
/// while others are refused for lack of room makes way.
pub(super) async fn read_body(
    headers: &HeaderMap,
    body: Body,
    limits: &Limits,
    budget: &Budget,
) -> Result<Received, Refusal> {
    let max = limits.request_bytes_max;
    let announced: usize = number_header(headers, header::CONTENT_LENGTH.as_str(), 0..=usize::MAX)?.unwrap_or(0);
    if announced > max {
        return Err(too_large(announced, max));
    }
    // Of what was announced only the beginning gets room at once: announcing costs nothing.
    let mut share = budget.reserve(announced.min(BODY_BYTES_MIN))?;
    let mut received = BytesMut::with_capacity(share.num_permits());
    let deadline = Instant::now() + limits.body_timeout;
    let mut pace = Pace { since: Instant::now(), received: 0 };
    let mut body = body;
    while let Some(frame) = next_frame(&mut body, received.len(), &mut pace, deadline, budget).await? {
        let Ok(data) = frame.into_data() else { continue };
        let total = received.len() + data.len();
        if total > max {
            return Err(too_large(total, max));
        }
        if total > share.num_permits() {
            // More than it needs now, so that it is not moved with every piece; but only as long as there is room.
            let ahead = (share.num_permits() * BODY_GROWTH).min(if announced > 0 { announced } else { max });
            let held = share.num_permits();
            share.merge(match budget.try_reserve(ahead.max(total) - held) {
                Some(more) => more,
                None => budget.reserve(total - held).map_err(Refusal::and_close)?,
            });
            received.reserve(share.num_permits() - received.len());
        }
        received.extend_from_slice(&data);
    }
    Ok(Received { bytes: received.freeze(), _share: share })
}

/// The next piece of a body; `None` at its end.
async fn next_frame(
    body: &mut Body,
    received: usize,
    pace: &mut Pace,
    deadline: Instant,
    budget: &Budget,
) -> Result<Option<Frame<Bytes>>, Refusal> {
    loop {
        let look = (Instant::now() + BODY_PATIENCE).min(deadline);
        let frame = tokio::time::timeout_at(look, body.frame()).await;
        let late = if pace.is_slow(received) && budget.short() {
            "slowly, and others need the room"
        } else {
            match frame {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => return Ok(Some(frame)),
                Ok(Some(Err(error))) => {
                    return Err(Refusal::invalid(format!("the body broke off: {error}")).and_close());
                }
                Err(_) if Instant::now() < deadline => continue,
                Err(_) => "and no more in time",
            }
        };
        let why = format!("{received} body bytes arrived, {late}");
        return Err(Refusal::from((Code::RequestTimeout, why)).and_close());
    }
}

/// How fast a body comes, looked at every [`BODY_PATIENCE`].
struct Pace {
    since: Instant,
    received: usize,
}

impl Pace {
    fn is_slow(&mut self, received: usize) -> bool {
        let elapsed = self.since.elapsed();
        if elapsed < BODY_PATIENCE {
            return false;
        }
        let slow = ((received - self.received) as f64) < BODY_RATE_MIN as f64 * elapsed.as_secs_f64();
        *self = Self { since: Instant::now(), received };
        slow
    }
}

fn too_large(found: usize, max: usize) -> Refusal {
    Refusal::from((Code::RequestTooLarge, format!("the body has {found} bytes or more; the limit is {max}")))
        .and_close()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use futures_util::StreamExt;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (axum::http::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn params(query: &str) -> Result<Params, Refusal> {
        Params::read(&format!("/x?{query}").parse().unwrap(), &["acks", "timeout_ms", "offset"])
    }

    fn message<T>(result: Result<T, Refusal>) -> String {
        match result {
            Ok(_) => panic!("not refused"),
            Err(refusal) => refusal.error.message,
        }
    }

    #[test]
    fn parameters_are_known_and_given_once() {
        assert_eq!(params("acks=a%20b&offset=1").unwrap().text("acks"), Some("a b"));
        let unknown = message(params("ack=all"));
        assert!(unknown.contains("\"ack\"") && unknown.contains("\"acks\""), "{unknown}");
        assert!(message(params("acks=all&acks=none")).contains("twice"));
        for wrong in ["", "x", "-1", "-0", "+1", "1.5", "11", "99999999999999999999999"] {
            let query = format!("offset={}", wrong.replace('+', "%2B"));
            let text = message(params(&query).unwrap().number("offset", 0..=10i64));
            assert!(text.contains(&format!("offset={wrong:?}")) && text.contains("0 to 10"), "{text}");
        }
    }

    #[test]
    fn a_passed_on_request_has_what_is_left_of_its_time() {
        let params = params("timeout_ms=5000").unwrap();
        assert_eq!(params.timeout(&headers(&[]), 30_000).unwrap(), Duration::from_secs(5));
        let left = headers(&[(api::TIMEOUT_MS, "1200")]);
        assert_eq!(params.timeout(&left, 30_000).unwrap(), Duration::from_millis(1200));
        // Of a fetch the passing broker has used up some of both: there is no telling of which.
        let wait = Duration::from_secs(30);
        assert_eq!(params.timeout_and(wait, &headers(&[]), 30_000).unwrap(), Duration::from_secs(35));
        assert_eq!(params.timeout_and(wait, &left, 30_000).unwrap(), Duration::from_millis(1200));
        let longest = headers(&[(api::TIMEOUT_MS, "3660000")]);
        assert_eq!(params.timeout_and(wait, &longest, 30_000).unwrap(), Duration::from_secs(35));
    }

    #[test]
    fn content_types_are_told_apart_and_others_named() {
        for (text, kind) in [
            ("application/json", BodyKind::Json),
            ("Application/JSON; charset=utf-8", BodyKind::Json),
            ("application/x-ndjson", BodyKind::Lines),
            ("text/plain;charset=utf-8", BodyKind::Text),
            ("application/octet-stream", BodyKind::Batch),
        ] {
            assert_eq!(BodyKind::of(&headers(&[("content-type", text)])).unwrap(), kind);
        }
        let form = BodyKind::of(&headers(&[("content-type", "application/x-www-form-urlencoded")])).unwrap_err();
        assert_eq!(form.error.code, Code::UnsupportedMediaType);
        assert!(form.error.message.contains("application/x-www-form-urlencoded"));
        assert!(message(BodyKind::of(&headers(&[]))).contains("missing"));
        let zipped = headers(&[("content-type", "text/plain"), ("content-encoding", "gzip")]);
        assert!(message(BodyKind::of(&zipped)).contains("gzip"));
    }

    #[test]
    fn accept_picks_what_is_preferred() {
        let offers = ["application/json", "application/octet-stream"];
        for (text, picked) in [
            ("*/*", offers[0]),
            ("application/*", offers[0]),
            ("application/octet-stream", offers[1]),
            ("text/html, application/octet-stream;q=0.5, */*;q=0.1", offers[1]),
            ("application/json;q=0.2, application/octet-stream;q=0.9", offers[1]),
            ("application/json;q=0, */*", offers[1]),
        ] {
            assert_eq!(accept(&headers(&[("accept", text)]), &offers).unwrap(), picked, "{text}");
        }
        assert_eq!(accept(&headers(&[]), &offers).unwrap(), offers[0]);
        let refusal = accept(&headers(&[("accept", "text/html;q=0.9, image/*")]), &offers).unwrap_err();
        assert_eq!(refusal.error.code, Code::NotAcceptable);
        assert!(refusal.error.message.contains("text/html"), "{}", refusal.error.message);
    }

    fn limits() -> Limits {
        Limits { request_bytes_max: 10, body_timeout: Duration::from_secs(1), ..Limits::default() }
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_refused_before_it_is_read() {
        let budget = Budget::new(100);
        let announced = headers(&[("content-length", "11")]);
        let refusal = read_body(&announced, Body::empty(), &limits(), &budget).await.err().unwrap();
        assert_eq!(refusal.error.code, Code::RequestTooLarge);
        let refusal = read_body(&headers(&[]), Body::from("12345678901"), &limits(), &budget).await.err().unwrap();
        assert_eq!(refusal.error.code, Code::RequestTooLarge);
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test]
    async fn bytes_in_flight_are_bounded_and_given_back() {
        let budget = Budget::new(15);
        let first = read_body(&headers(&[]), Body::from("1234567890"), &limits(), &budget).await.ok().unwrap();
        assert_eq!((&first.bytes[..], budget.held()), (&b"1234567890"[..], 10));
        let refusal = read_body(&headers(&[]), Body::from("123456"), &limits(), &budget).await.err().unwrap();
        assert_eq!(refusal.error.code, Code::TooManyRequests);
        assert!(refusal.error.retry_after_ms.is_some());
        drop(first);
        assert!(read_body(&headers(&[]), Body::from("123456"), &limits(), &budget).await.is_ok());
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_times_out() {
        let budget = Budget::new(15);
        let body = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let refusal = read_body(&headers(&[]), body, &limits(), &budget).await.err().unwrap();
        assert_eq!(refusal.error.code, Code::RequestTimeout);
    }

    /// A body that sends these pieces and then nothing more.
    fn half(pieces: &'static [&'static [u8]]) -> Body {
        let pieces = pieces.iter().map(|piece| Ok::<_, std::io::Error>(Bytes::from_static(piece)));
        Body::from_stream(futures_util::stream::iter(pieces).chain(futures_util::stream::pending()))
    }

    #[tokio::test(start_paused = true)]
    async fn announcing_a_large_body_takes_no_room() {
        let budget = Budget::new(1 << 20);
        let limits = Limits { request_bytes_max: 1 << 20, ..Limits::default() };
        let announced = headers(&[("content-length", "1048576")]);
        let mut reading: Vec<_> =
            (0..10).map(|_| Box::pin(read_body(&announced, half(&[b"only this"]), &limits, &budget))).collect();
        for reading in &mut reading {
            assert!(futures_util::poll!(reading).is_pending());
        }
        assert_eq!(budget.held(), 10 * BODY_BYTES_MIN);
        drop(reading);
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_body_makes_way_for_others_before_its_time_is_over() {
        let budget = Budget::new(100);
        let limits = Limits { request_bytes_max: 100, body_timeout: Duration::from_secs(60), ..Limits::default() };
        let stuck = headers(&[("content-length", "90")]);
        let mut stuck = Box::pin(read_body(&stuck, half(&[b"only this"]), &limits, &budget));
        assert!(futures_util::poll!(&mut stuck).is_pending());
        // Nobody needs the room: it may take its time.
        assert!(tokio::time::timeout(Duration::from_secs(10), &mut stuck).await.is_err());
        let refusal = read_body(&headers(&[]), Body::from(vec![1; 50]), &limits, &budget).await.err().unwrap();
        assert_eq!(refusal.error.code, Code::TooManyRequests);
        let refusal = tokio::time::timeout(BODY_PATIENCE * 2, stuck).await.unwrap().err().unwrap();
        assert_eq!(refusal.error.code, Code::RequestTimeout);
        assert!(refusal.error.message.contains("9 body bytes"), "{}", refusal.error.message);
        assert!(read_body(&headers(&[]), Body::from(vec![1; 50]), &limits, &budget).await.is_ok());
    }

    #[tokio::test]
    async fn a_large_body_in_pieces_arrives_whole() {
        let budget = Budget::new(8 << 20);
        let pieces = (0..300).map(|at| Ok::<_, std::io::Error>(Bytes::from(vec![at as u8; 10_000])));
        let limits = Limits::default();
        for announced in [headers(&[]), headers(&[("content-length", "3000000")])] {
            let body = Body::from_stream(futures_util::stream::iter(pieces.clone().collect::<Vec<_>>()));
            let received = read_body(&announced, body, &limits, &budget).await.ok().unwrap();
            assert_eq!(received.bytes.len(), 3_000_000);
            assert!(
                received.bytes.chunks(10_000).zip(0..).all(|(piece, at)| piece.iter().all(|byte| *byte == at as u8))
            );
            assert!(budget.held() >= 3_000_000);
        }
        assert_eq!(budget.held(), 0);
    }
}
