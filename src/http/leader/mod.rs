//! Doing a request at its partition's leader: here, or one hop away.
//!
//! Any broker takes any request. If another one leads the partition, the request is passed on to it, marked so that it is
//! not passed on again; a broker so asked that does not lead says `NOT_LEADER`. The first broker then looks for the leader
//! anew until the request's time is over, or it is closed itself. It sends a request again only if the first certainly had no effect, or a second
//! one can do no harm: reads, and produces whose producer has sequences (RULES.md O8).

mod places;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use pontoon_raft::types::{BrokerId, Offset};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tracing::debug;

use crate::api::{self, ErrorBody};
use crate::broker::{Broker, Route};
use crate::error::{Code, Error, WriteOutcome};
use crate::http::deadlines::Deadlines;
use crate::http::request::Target;
use crate::http::{Shared, Stage, refusal::Refusal, stopping};
use crate::partition::{Offsets, Partition};

pub(super) use places::Places;

/// Headers that go along with a request that is passed on.
const PASSED_HEADERS: &[&str] =
    &["accept", "content-type", api::PRODUCER_ID, api::PRODUCER_EPOCH, api::PRODUCER_SEQUENCE, api::IF_MATCH_OFFSET];
/// Headers of an answer that goes back.
const RETURNED_HEADERS: &[&str] = &[
    "content-type",
    "content-length",
    api::SERVER_TIMING,
    "retry-after",
    api::NEXT_OFFSET,
    api::HIGH_WATERMARK,
    api::LOG_START_OFFSET,
    api::LEADER_EPOCH,
    api::TOPIC_ID,
];
/// How long a read may go on once the broker stops.
const STOPPING_GRACE: Duration = Duration::from_secs(1);
/// Pause before the first further attempt; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// How long a waiting request lets changes of leadership gather before it looks whether one is its own: a failover changes
/// thousands.
const ROUTE_CHECK: Duration = Duration::from_millis(100);
/// How long a broker that no longer leads may still answer what it was asked while it did.
const DEPOSED_GRACE: Duration = Duration::from_millis(500);
/// What the answering broker gets on top of the request's own time, to say itself that the time is over.
const ANSWER_GRACE: Duration = Duration::from_millis(500);
/// How long a leader may send nothing of an answer that it has begun: it has all of it in memory.
const BODY_PATIENCE: Duration = Duration::from_secs(5);
/// Longest error body that is read from another broker.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// What a second attempt could do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Nothing: it reads.
    Read,
    /// Nothing: the producer's sequences tell it from the first.
    Idempotent,
    /// Write twice.
    Harmful,
}

/// Work for a partition's leader.
pub(super) trait AtLeader: Sync {
    /// Does it here. `left` is what remains of the request's time.
    fn run(&self, partition: &Partition, left: Duration) -> impl Future<Output = Result<Response, Refusal>> + Send;
}

/// Who leads what: the part of [`Broker`] that finding a leader needs, so that tests can say it.
pub(super) trait Routes: Sync {
    fn id(&self) -> BrokerId;
    fn route(&self, target: &Target) -> Result<Route, Error>;
    fn route_wait(&self, target: &Target, timeout: Duration) -> impl Future<Output = Result<Route, Error>> + Send;
    /// Changes whenever `route` may have another answer.
    fn watch(&self) -> watch::Receiver<u64>;
    /// A request is about to go to another broker.
    fn passing_on(&self) {}
    /// The broker is closed, and finds nobody any more.
    fn closed(&self) -> bool {
        false
    }
}

/// A broker, and the door's word for what is passed on.
struct Counted<'a> {
    broker: &'a Broker,
    shared: &'a Shared,
}

impl Routes for Counted<'_> {
    fn id(&self) -> BrokerId {
        self.broker.id()
    }

    fn route(&self, target: &Target) -> Result<Route, Error> {
        Routes::route(self.broker, target)
    }

    async fn route_wait(&self, target: &Target, timeout: Duration) -> Result<Route, Error> {
        if let Ok(route) = Routes::route(self, target) {
            return Ok(route);
        }
        // Boxed: the compiler gives up on futures that lie so deep in one another.
        self.shared.while_open(Box::pin(Routes::route_wait(self.broker, target, timeout))).await
    }

    fn watch(&self) -> watch::Receiver<u64> {
        Routes::watch(self.broker)
    }

    fn passing_on(&self) {
        self.shared.metrics.door.forwarded.increment(1);
    }

    fn closed(&self) -> bool {
        self.shared.stage() == Stage::Closed
    }
}

impl Routes for Broker {
    fn id(&self) -> BrokerId {
        Broker::id(self)
    }

    fn route(&self, target: &Target) -> Result<Route, Error> {
        Broker::route(self, &target.topic, target.partition)
    }

    async fn route_wait(&self, target: &Target, timeout: Duration) -> Result<Route, Error> {
        Broker::route_wait(self, &target.topic, target.partition, timeout).await
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.watch_routes()
    }
}

/// What the way to a leader takes.
struct Way<'a, R> {
    routes: &'a R,
    peers: &'a reqwest::Client,
    deadlines: &'a Deadlines,
    target: &'a Target,
    /// For the parts of a request.
    places: &'a Places,
}

/// A request, kept so that it can be passed on, several times if need be.
pub(super) struct Passable {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
    /// Another broker passed it on to us.
    forwarded: bool,
    /// The client would rather be told where to go.
    redirect: bool,
    deadline: Instant,
    repeat: Repeat,
    /// It is a part of a request that was divided.
    part: bool,
}

impl Passable {
    pub(super) fn new(parts: &Parts, body: Bytes, timeout: Duration, repeat: Repeat) -> Self {
        let prefer = parts.headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
        Self {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            headers: parts.headers.clone(),
            body,
            forwarded: parts.headers.contains_key(api::FORWARDED),
            redirect: prefer.flat_map(|text| text.split(',')).any(|word| word.trim() == "redirect"),
            deadline: Instant::now() + timeout,
            repeat,
            part: false,
        }
    }

    /// One of the many parts of a request: it has to find a place on its way to the leader.
    pub(super) fn part(self) -> Self {
        Self { part: true, ..self }
    }

    /// Whether the client would rather be told where to go.
    pub(super) fn wants_redirect(&self) -> bool {
        self.redirect
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Does the work at the leader, wherever that is, looking for it as long as the request's time lasts.
    pub(super) async fn at_leader(
        &self,
        shared: &Shared,
        target: &Target,
        work: &impl AtLeader,
    ) -> Result<Response, Refusal> {
        let broker = Arc::clone(shared.broker()?);
        let routes = Counted { broker: &broker, shared };
        let (peers, deadlines, places) = (&shared.peers, &shared.deadlines, &shared.places);
        let way = Way { routes: &routes, peers, deadlines, target, places };
        let finding = self.find(&way, work);
        if self.repeat != Repeat::Read {
            return finding.await;
        }
        // A read that waits at another broker does not know that this one stops. What waits here answers by itself, at once.
        let given_up = async {
            shared.stopping().await;
            tokio::time::sleep(STOPPING_GRACE).await;
        };
        tokio::select! {
            biased;
            found = finding => found,
            () = given_up => Err(stopping().into()),
        }
    }

    async fn find(&self, way: &Way<'_, impl Routes>, work: &impl AtLeader) -> Result<Response, Refusal> {
        let mut pause = PAUSE_MIN;
        let mut maybe_written = false;
        loop {
            let refusal = match self.attempt(way, work).await {
                Ok(response) => return Ok(response),
                Err(refusal) => refusal,
            };
            maybe_written |= refusal.error.outcome != WriteOutcome::None;
            let over = way.routes.closed() || self.left() <= pause;
            if self.forwarded || over || !self.again(&refusal.error) {
                return Err(if maybe_written { unknown(refusal) } else { self.in_the_end(refusal) });
            }
            debug!(target = %way.target, error = %refusal.error, "looking for the leader again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// That one broker does not lead matters to the broker which asked it. The client's news is that nobody was found who does.
    fn in_the_end(&self, mut refusal: Refusal) -> Refusal {
        if refusal.error.code == Code::NotLeader && !self.forwarded {
            refusal.error.code = Code::NoLeader;
        }
        refusal
    }

    /// Whether a fresh look for the leader may help and do no harm.
    fn again(&self, error: &Error) -> bool {
        match error.outcome {
            WriteOutcome::None => matches!(error.code, Code::NotLeader | Code::NoLeader | Code::NotReady),
            WriteOutcome::Unknown => error.code == Code::OutcomeUnknown && self.repeat != Repeat::Harmful,
            WriteOutcome::Partial => false,
        }
    }

    async fn attempt(&self, way: &Way<'_, impl Routes>, work: &impl AtLeader) -> Result<Response, Refusal> {
        let Way { routes, target, .. } = *way;
        let route = if self.forwarded { routes.route(target)? } else { routes.route_wait(target, self.left()).await? };
        match route {
            Route::Local(partition) => work.run(&partition, self.left()).await,
            Route::Remote { broker: leader, .. } if self.forwarded => {
                let why = format!("broker {} does not lead {target}; it knows broker {leader} as leader", routes.id());
                Err((Code::NotLeader, why).into())
            }
            Route::Remote { http_address, .. } if self.redirect => Ok(self.redirect_to(&http_address)),
            Route::Remote { broker: leader, http_address } => {
                let hop = Hop { way, leader, address: &http_address };
                let _place = if self.part { Some(self.place(&hop).await?) } else { None };
                way.routes.passing_on();
                self.pass_on(&hop).await
            }
        }
    }

    /// A place on the way to the leader, as long as it is the leader. Nothing has been sent yet.
    async fn place(&self, hop: &Hop<'_, impl Routes>) -> Result<OwnedSemaphorePermit, Refusal> {
        let (leader, target) = (hop.leader, hop.way.target);
        tokio::select! {
            biased;
            place = hop.way.places.to(leader).acquire_owned() => {
                place.map_err(|closed| Error::new(Code::Internal, closed.to_string()).into())
            }
            () = hop.deposed() => Err((Code::NotLeader, format!("broker {leader} does not lead {target} any more")).into()),
            () = hop.way.deadlines.after(self.left()) => {
                let why = format!("too many requests are on their way to broker {leader}, which leads {target}");
                Err((Code::TooManyRequests, why).into())
            }
        }
    }

    fn path_and_query(&self) -> &str {
        self.uri.path_and_query().map_or("/", |path| path.as_str())
    }

    fn redirect_to(&self, address: &str) -> Response {
        let location = format!("http://{address}{}", self.path_and_query());
        (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response()
    }

    /// Sends the request to the leader and brings its answer back.
    async fn pass_on(&self, hop: &Hop<'_, impl Routes>) -> Result<Response, Refusal> {
        let url = format!("http://{}{}", hop.address, self.path_and_query());
        let mut request = hop.way.peers.request(self.method.clone(), url).body(self.body.clone());
        for name in PASSED_HEADERS {
            for value in self.headers.get_all(*name) {
                request = request.header(*name, value);
            }
        }
        request = request.header(api::FORWARDED, hop.way.routes.id().to_string());
        request = request.header(api::TIMEOUT_MS, self.left().as_millis().to_string());
        let answer = tokio::select! {
            biased;
            answer = request.send() => answer,
            () = hop.way.deadlines.after(self.left() + ANSWER_GRACE) => return Err(self.lost(hop, "no answer in time")),
            () = hop.deposed() => return Err(self.lost(hop, "it was deposed before it answered")),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => return Err(hop.unreachable(&error)),
            Err(error) => return Err(self.lost(hop, &chain(&error))),
        };
        if answer.status().is_client_error() || answer.status().is_server_error() {
            return self.refused(hop, answer).await;
        }
        if self.repeat == Repeat::Read {
            return Ok(streamed(answer));
        }
        // An acknowledgement is small, and only whole does it acknowledge anything.
        let status = answer.status();
        let headers = answer.headers().clone();
        let body = read_limited(answer, hop).await.map_err(|why| self.lost(hop, &why))?;
        Ok(rebuilt(status, &headers, Body::from(body)))
    }

    /// The leader refused: as our own error where we know the code, so that it can be judged like one.
    async fn refused(&self, hop: &Hop<'_, impl Routes>, answer: reqwest::Response) -> Result<Response, Refusal> {
        let status = answer.status();
        let headers = answer.headers().clone();
        let body = read_limited(answer, hop).await.map_err(|why| self.lost(hop, &why))?;
        let parsed: Option<ErrorBody> = serde_json::from_slice(&body).ok();
        let known = parsed.and_then(|body| Code::ALL.iter().find(|code| code.as_str() == body.error).zip(Some(body)));
        let Some((code, body)) = known else { return Ok(rebuilt(status, &headers, Body::from(body))) };
        let offsets = body.log_start_offset.zip(body.high_watermark);
        let error =
            Error { code: *code, message: body.message, outcome: body.outcome, retry_after_ms: body.retry_after_ms };
        let offsets = offsets.map(|(start, high)| Offsets {
            log_start_offset: Offset(start),
            high_watermark: Offset(high),
            log_end_offset: Offset(high),
        });
        Err(Refusal { offsets, ..Refusal::from(error) })
    }

    /// The request went out and its answer did not come back.
    fn lost(&self, hop: &Hop<'_, impl Routes>, why: &str) -> Refusal {
        let (leader, target) = (hop.leader, hop.way.target);
        match self.repeat {
            Repeat::Read => (Code::NoLeader, format!("broker {leader}, which led {target}, did not answer: {why}")),
            _ => (
                Code::OutcomeUnknown,
                format!("broker {leader}, which led {target}, was asked and did not answer: {why}"),
            ),
        }
        .into()
    }
}

/// One passing-on.
struct Hop<'a, R> {
    way: &'a Way<'a, R>,
    leader: BrokerId,
    address: &'a str,
}

impl<R: Routes> Hop<'_, R> {
    /// Never connected, so nothing was sent.
    fn unreachable(&self, error: &reqwest::Error) -> Refusal {
        let (leader, target, address) = (self.leader, self.way.target, self.address);
        let why = format!("broker {leader} leads {target} and cannot be reached at {address}: {}", chain(error));
        (Code::NoLeader, why).into()
    }

    /// Resolves once another broker leads and the one that was asked has had its time to answer: a paused process
    /// would keep its requests until their timeout, long after the failover.
    async fn deposed(&self) {
        let mut changes = self.way.routes.watch();
        loop {
            changes.mark_unchanged();
            if self.led_elsewhere() {
                tokio::time::sleep(DEPOSED_GRACE).await;
                if self.led_elsewhere() {
                    return;
                }
            } else if changes.changed().await.is_err() {
                // The broker is gone, and its requests with it.
                return;
            } else {
                tokio::time::sleep(ROUTE_CHECK).await;
            }
        }
    }

    fn led_elsewhere(&self) -> bool {
        match self.way.routes.route(self.way.target) {
            Ok(Route::Remote { broker, .. }) => broker != self.leader,
            Ok(Route::Local(_)) => true,
            // No leader at all is no reason yet: the one that was asked may be elected again.
            Err(_) => false,
        }
    }
}

/// An error after which an earlier attempt may still have written.
fn unknown(mut refusal: Refusal) -> Refusal {
    let error = &mut refusal.error;
    error.outcome = WriteOutcome::Unknown;
    if matches!(error.code, Code::NotLeader | Code::NoLeader | Code::NotReady) {
        let message = format!("an earlier attempt was not answered, and now: {}", error.message);
        return Error::new(Code::OutcomeUnknown, message).into();
    }
    refusal
}

/// An error and its causes: reqwest's own text hides them.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

async fn read_limited(mut answer: reqwest::Response, hop: &Hop<'_, impl Routes>) -> Result<Bytes, String> {
    let mut deposed = pin!(hop.deposed());
    let mut body = BytesMut::new();
    loop {
        let chunk = tokio::select! {
            biased;
            chunk = next_chunk(&mut answer) => chunk?,
            () = &mut deposed => return Err("it was deposed while it answered".to_owned()),
        };
        let Some(chunk) = chunk else { return Ok(body.freeze()) };
        if body.len() + chunk.len() > ERROR_BYTES_MAX {
            return Err(format!("its answer is longer than {ERROR_BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
}

/// The next piece of an answer, `None` at its end. A process that is paused in the middle of one would keep whoever reads it.
async fn next_chunk(answer: &mut reqwest::Response) -> Result<Option<Bytes>, String> {
    match tokio::time::timeout(BODY_PATIENCE, answer.chunk()).await {
        Ok(chunk) => chunk.map_err(|error| chain(&error)),
        Err(_) => Err(format!("nothing more of its answer came for {} s", BODY_PATIENCE.as_secs())),
    }
}

/// The answer as it comes; one that breaks off, or stops, breaks the connection to the client off, too.
fn streamed(answer: reqwest::Response) -> Response {
    let (status, headers) = (answer.status(), answer.headers().clone());
    let chunks = stream::try_unfold(answer, |mut answer| async {
        let chunk = next_chunk(&mut answer).await.map_err(std::io::Error::other)?;
        Ok::<_, std::io::Error>(chunk.map(|chunk| (chunk, answer)))
    });
    rebuilt(status, &headers, Body::from_stream(chunks))
}

fn rebuilt(status: StatusCode, headers: &HeaderMap, body: Body) -> Response {
    let mut response = (status, body).into_response();
    for name in RETURNED_HEADERS {
        if let Some(value) = headers.get(*name) {
            response.headers_mut().insert(*name, value.clone());
        }
    }
    response
}

#[cfg(test)]
mod tests;
