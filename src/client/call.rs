//! One request, and the attempts at it.
//!
//! A request is sent again if the first attempt certainly had no effect (never connected, or refused with `outcome: none`
//! and `retriable`), or if a second one does no harm (reads; produces with a [`super::Stamp`]). Everything else is reported as
//! what it is: unknown. When patience is over, what a server said counts for more than that others could not be reached.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use reqwest::header::HeaderMap;
use reqwest::{Method, Response, StatusCode};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use super::{Client, ClientError};
use crate::error::WriteOutcome;

/// How long one attempt at a request that may be repeated takes: a server that hangs is left for the next one.
pub(super) const ATTEMPT: Duration = Duration::from_secs(10);
/// How much longer than the server may take the client waits for its answer.
const GRACE: Duration = Duration::from_secs(2);
/// Most bytes of an answer: one record may be as large as 80 MiB, and each of its characters six.
const ANSWER_BYTES_MAX: usize = 1 << 30;
/// Shortest attempt, when patience is nearly over.
const ATTEMPT_MIN: Duration = Duration::from_millis(100);
/// Pause once every server was tried in vain.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a request is tried without a word ([`Client::telling`]).
const SILENCE: Duration = Duration::from_secs(4);

/// What each server's last attempt at a request came to, by its place among the servers.
type Failures = Mutex<BTreeMap<usize, ClientError>>;

pub(super) struct Call<'a> {
    method: Method,
    path: String,
    headers: Vec<(&'a str, String)>,
    body: Bytes,
    again: Again,
    /// How long the server may take over one attempt.
    attempt: Duration,
    /// Whether the server is told so, and answers within it: `timeout_ms`.
    timed: bool,
    /// How much longer it may wait for records.
    wait: Duration,
}

/// What a second attempt does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Nothing that the caller could notice: whether the first one arrived does not matter.
    Free,
    /// No harm, but the outcome matters.
    Safe,
    /// It could do the same thing twice.
    Harmful,
}

impl<'a> Call<'a> {
    pub(super) fn new(method: Method, path: String) -> Self {
        let again = if method == Method::GET { Again::Free } else { Again::Harmful };
        let (headers, body) = (Vec::new(), Bytes::new());
        Self { method, path, headers, body, again, attempt: ATTEMPT, timed: false, wait: Duration::ZERO }
    }

    pub(super) fn again(self, again: Again) -> Self {
        Self { again, ..self }
    }

    /// The server is told to answer within `attempt`.
    pub(super) fn within(self, attempt: Duration) -> Self {
        Self { attempt, timed: true, ..self }
    }

    /// The server may wait so long for records.
    pub(super) fn waiting(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    pub(super) fn body(self, body: Bytes) -> Self {
        Self { body, ..self }
    }

    pub(super) fn json(mut self, body: &impl serde::Serialize) -> Result<Self, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Protocol(error.to_string()))?;
        self.body = body.into();
        self.headers.push(("content-type", "application/json".into()));
        Ok(self)
    }

    pub(super) fn header(mut self, name: &'a str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }
}

/// An answer that stands.
pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What an answer says.
pub(super) fn read<T: DeserializeOwned>(call: &Call<'_>, Answer { body, .. }: &Answer) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| {
        let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        not_understood(call, format!("{} {}: {error} in the answer {text:?}", call.method, call.path))
    })
}

/// What one attempt came to.
enum Attempt {
    /// So far its head, and how long its body may stop on its way.
    Answered(Response, Duration),
    /// It had no effect.
    NotSent(String),
    /// It may have had an effect.
    Lost(String),
}

impl Client {
    pub(super) async fn call<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, ClientError> {
        read(&call, &self.answer(&call).await?)
    }

    /// Tries until there is an answer that stands, or patience is over. If that takes a while, it is told.
    pub(super) async fn answer(&self, call: &Call<'_>) -> Result<Answer, ClientError> {
        let failures = Failures::default();
        let trying = self.try_all(call, &failures);
        let Some(tell) = self.tell else { return trying.await };
        tokio::pin!(trying);
        let answer = match timeout(SILENCE + call.wait, &mut trying).await {
            Ok(answer) => answer,
            Err(_) => {
                if !self.told.swap(true, Ordering::Relaxed) {
                    tell(&self.silence(&failures.lock()));
                }
                trying.await
            }
        };
        if answer.is_ok() {
            self.told.store(false, Ordering::Relaxed);
        }
        answer
    }

    /// Of whom there is no answer yet, and why, as far as it is known.
    fn silence(&self, failures: &BTreeMap<usize, ClientError>) -> String {
        let of = |(at, server): (usize, &String)| match failures.get(&at) {
            None => server.clone(),
            Some(ClientError::Unreachable(why) | ClientError::Unknown(why)) => why.clone(),
            Some(error) => format!("{server}: {error}"),
        };
        let whys: Vec<String> = self.servers.iter().enumerate().map(of).collect();
        format!("no answer yet, trying for {} s: {}", self.patience.as_secs(), whys.join("; "))
    }

    async fn try_all(&self, call: &Call<'_>, failures: &Failures) -> Result<Answer, ClientError> {
        let deadline = Instant::now() + self.patience;
        let mut lost = false;
        for tries in 1.. {
            let server = self.at.load(Ordering::Relaxed);
            let error = match self.attempt(call, &self.servers[server], deadline).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            lost |= error.outcome() != WriteOutcome::None;
            let last = Instant::now() >= deadline;
            let repeat = repeat(call, &error);
            failures.lock().insert(server, error.clone());
            if last || !repeat {
                let error = if last { summary(std::mem::take(&mut *failures.lock()), error) } else { error };
                return Err(if lost && call.again != Again::Free { unknown(error) } else { error });
            }
            // Others may have moved on already: then theirs is the next.
            let next = (server + 1) % self.servers.len();
            let _ = self.at.compare_exchange(server, next, Ordering::Relaxed, Ordering::Relaxed);
            if tries % self.servers.len() == 0 {
                tokio::time::sleep(PAUSE.min(deadline.saturating_duration_since(Instant::now()))).await;
            }
        }
        unreachable!("the loop ends with its deadline")
    }

    async fn attempt(&self, call: &Call<'_>, server: &str, deadline: Instant) -> Result<Answer, ClientError> {
        let left = deadline.saturating_duration_since(Instant::now()).max(ATTEMPT_MIN);
        let (response, silence) = match self.send(call, server, left).await {
            Attempt::Answered(response, silence) => (response, silence),
            Attempt::NotSent(why) => return Err(ClientError::Unreachable(why)),
            Attempt::Lost(why) => return Err(lost(call, why)),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        let body = match whole(response, silence).await {
            Ok(body) => body,
            Err(why) => return Err(lost(call, format!("{server}: {why}"))),
        };
        if status.is_success() {
            return Ok(Answer { headers, body });
        }
        Err(match refused(status, &body, server) {
            ClientError::Refused { status, mut body } if call.again == Again::Free => {
                body.outcome = WriteOutcome::None;
                ClientError::Refused { status, body }
            }
            ClientError::Protocol(why) => not_understood(call, why),
            refused => refused,
        })
    }

    async fn send(&self, call: &Call<'_>, server: &str, left: Duration) -> Attempt {
        let mut url = format!("{server}{}", call.path);
        let (head, silence) = if call.timed {
            let told = left.min(call.attempt);
            let and = if url.contains('?') { '&' } else { '?' };
            url += &format!("{and}timeout_ms={}", told.as_millis());
            (told + call.wait + GRACE, told + GRACE)
        } else {
            // It is answered at once or not at all; the others are asked within patience, too.
            let all = left.min(call.attempt).min((self.patience / self.servers.len() as u32).max(ATTEMPT_MIN));
            (all, all)
        };
        let mut request = self.http.request(call.method.clone(), url).body(call.body.clone());
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        match timeout(head, request.send()).await {
            Err(_) => Attempt::Lost(format!("{server}: no answer within {head:.1?}")),
            Ok(Ok(response)) => Attempt::Answered(response, silence),
            Ok(Err(error)) => {
                let sent = !(error.is_connect() || error.is_builder());
                let why = format!("{server}: {}", chain(&error.without_url()));
                if sent { Attempt::Lost(why) } else { Attempt::NotSent(why) }
            }
        }
    }
}

/// An answer's body. It may take as long as it takes, over a slow link, while it comes: asked for again, it would take as long again.
async fn whole(mut response: Response, silence: Duration) -> Result<Bytes, String> {
    let mut body = BytesMut::new();
    loop {
        let chunk = match timeout(silence, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| chain(&error.without_url()))?,
            Err(_) => return Err(format!("nothing more of its answer came for {silence:.1?}")),
        };
        let Some(chunk) = chunk else { return Ok(body.freeze()) };
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(format!("its answer is longer than {ANSWER_BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
}

/// The one error of several servers' last ones, `last` being the newest: what one of them said, or that none did.
fn summary(failures: BTreeMap<usize, ClientError>, last: ClientError) -> ClientError {
    if !matches!(last, ClientError::Unreachable(_)) {
        return last;
    }
    let mut whys = Vec::new();
    for failure in failures.into_values() {
        match failure {
            ClientError::Unreachable(why) => whys.push(why),
            said => return said,
        }
    }
    ClientError::Unreachable(whys.join("; "))
}

/// Whether another attempt may be made.
fn repeat(call: &Call<'_>, error: &ClientError) -> bool {
    let safe = call.again != Again::Harmful;
    match error {
        ClientError::Unreachable(_) => true,
        ClientError::Unknown(_) => safe,
        ClientError::Refused { body, .. } => body.retriable && (safe || body.outcome == WriteOutcome::None),
        ClientError::Address(_) | ClientError::Protocol(_) => false,
    }
}

fn lost(call: &Call<'_>, why: String) -> ClientError {
    if call.again == Again::Free { ClientError::Unreachable(why) } else { ClientError::Unknown(why) }
}

/// An answer that no broker gives: something in between may have given it after the broker did what was asked.
fn not_understood(call: &Call<'_>, why: String) -> ClientError {
    if call.again == Again::Free { ClientError::Protocol(why) } else { ClientError::Unknown(why) }
}

/// The last error of several, of which an earlier attempt may have had an effect.
fn unknown(error: ClientError) -> ClientError {
    match error {
        ClientError::Unreachable(why) => ClientError::Unknown(why),
        ClientError::Refused { status, mut body } => {
            body.outcome = WriteOutcome::Unknown;
            ClientError::Refused { status, body }
        }
        other => other,
    }
}

/// What a server refused with.
pub(crate) fn refused(status: StatusCode, body: &[u8], server: &str) -> ClientError {
    match serde_json::from_slice(body) {
        Ok(body) => ClientError::Refused { status: status.as_u16(), body },
        Err(_) => ClientError::Protocol(format!("{server} answered {status} without Pontoon's error body")),
    }
}

/// An error and its causes: reqwest's own text hides them. Where the kernel has a word for it, that says it all.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let kernels = cause.downcast_ref::<std::io::Error>().filter(|error| error.raw_os_error().is_some());
        if let Some(error) = kernels {
            let kind = error.kind().to_string();
            return if kind.starts_with("uncategorized") { error.to_string() } else { kind };
        }
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
