//! One replication stream: openraft's requests to one replica, pipelined over the data connection, within the stream's window and
//! the peer's.
//!
//! Whatever the connections do, it takes a request from openraft *before* it reports an error: openraft sleeps its back-off inside
//! that input, and would spin if the error came first.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream as Requests, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use super::{Appended, ReplicaNetwork, RpcError, network, unreachable};
use crate::transport::catch_up::CatchUp;
use crate::transport::message;
use crate::transport::peer::WINDOW_BYTES_TOTAL;
use crate::transport::requests::OpenLane;
use crate::transport::wire::APPEND_BYTES_MAX;
use crate::transport::{AppendEntriesRequest, Liveness, Refusal, WINDOW_BYTES, WINDOW_REQUESTS};
use crate::types::LogId;

/// A stream without progress to a broker that is alive is given up after this: its disk may be slow, and sending
/// everything again would not make it faster.
const STALL_MAX: Duration = Duration::from_secs(10);

/// So many requests of a stream wait for no turn: the first, which is all there is where openraft looks for a follower's place, and the
/// one that tells that more will come. Both are small.
const FREE_REQUESTS: u32 = 2;

/// A request that was sent and is not answered.
struct InFlight {
    prev: Option<LogId>,
    last: Option<LogId>,
    bytes: usize,
    since: Instant,
    /// Its share of the peer's window.
    _permit: OwnedSemaphorePermit,
}

/// A request on its way out.
struct Pending {
    pieces: Vec<Bytes>,
    prev: Option<LogId>,
    last: Option<LogId>,
    bytes: usize,
}

/// One replication stream: requests in, answers out, pipelined in between.
pub(super) struct Replication<'s, S> {
    network: &'s ReplicaNetwork,
    input: S,
    input_ended: bool,
    soft_ttl: Duration,
    lane: Option<OpenLane>,
    window: Option<Arc<Semaphore>>,
    catch_up: Option<CatchUp>,
    /// Comes before the next request is taken: what waits for it is no memory.
    turn: Option<BoxFuture<'static, ()>>,
    /// The next request may be taken.
    cleared: bool,
    /// The last entry that was sent, and how many bytes the next request is likely to have: what the last one had.
    sent: Option<(u64, usize)>,
    sent_requests: u32,
    pending: Option<Pending>,
    permit: Option<BoxFuture<'static, Option<OwnedSemaphorePermit>>>,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    /// When something moved last, and how much the connection had written then.
    progress: (Instant, u64),
    stall: Pin<Box<Sleep>>,
    ended: bool,
}

/// What woke the stream.
enum Event {
    Answer(Option<Bytes>),
    Turn,
    Permit(Option<OwnedSemaphorePermit>),
    Request(Option<AppendEntriesRequest>),
    Stall,
}

impl<'s, S> Replication<'s, S>
where
    S: Requests<Item = AppendEntriesRequest> + Send + Unpin + 'static,
{
    pub(super) fn new(network: &'s ReplicaNetwork, input: S, soft_ttl: Duration) -> Self {
        Self {
            network,
            input,
            input_ended: false,
            soft_ttl,
            lane: None,
            window: None,
            catch_up: network.catch_up(),
            turn: None,
            cleared: false,
            sent: None,
            sent_requests: 0,
            pending: None,
            permit: None,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            progress: (Instant::now(), 0),
            stall: Box::pin(tokio::time::sleep(soft_ttl)),
            ended: false,
        }
    }

    /// The next answer, in the order of the requests; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Appended> {
        let outcome = loop {
            if self.ended || (self.input_ended && self.in_flight.is_empty() && self.pending.is_none()) {
                return None;
            }
            if let Err(error) = self.prepare().await {
                break Err(error);
            }
            self.ask_for_turn();
            match self.event().await {
                Event::Turn => (self.turn, self.cleared) = (None, true),
                Event::Answer(answer) => match self.answered(answer) {
                    Ok(Ok(matching)) if self.says_no_more_than_the_next(matching) => {}
                    answered => break answered,
                },
                Event::Permit(permit) => {
                    self.permit = None;
                    if let Err(error) = self.send(permit) {
                        break Err(error);
                    }
                }
                Event::Request(None) => self.input_ended = true,
                Event::Request(Some(request)) => {
                    if let Err(error) = self.take(request) {
                        break Err(error);
                    }
                }
                Event::Stall => {
                    if let Some(error) = self.stalled() {
                        break Err(error);
                    }
                }
            }
        };
        self.ended = !matches!(outcome, Ok(Ok(_)));
        if self.ended {
            self.network.shared.instruments.errors.increment(1);
            // The peer is told before the window is given back.
            self.lane = None;
            self.in_flight.clear();
        }
        Some(outcome)
    }

    fn has_room(&self) -> bool {
        self.pending.is_none()
            && !self.input_ended
            && self.in_flight.len() < WINDOW_REQUESTS
            && self.in_flight_bytes < WINDOW_BYTES
    }

    /// Asks for the stream's turn, if it is far behind by what it sent last, and before it takes more: with thousands of streams that
    /// wait, what each had taken would be gigabytes.
    fn ask_for_turn(&mut self) {
        if self.cleared || self.turn.is_some() || !self.has_room() {
            return;
        }
        let turn = match (self.sent, &mut self.catch_up) {
            (Some((last, bytes)), Some(catch_up)) if self.sent_requests >= FREE_REQUESTS => {
                catch_up.admit(last, bytes as u64)
            }
            _ => None,
        };
        (self.cleared, self.turn) = (turn.is_none(), turn.map(FutureExt::boxed));
    }

    /// Waits for whatever comes first. Every branch may be dropped and waited for again.
    async fn event(&mut self) -> Event {
        let may_take = self.cleared && self.has_room();
        let waiting = !self.in_flight.is_empty();
        tokio::select! {
            biased;
            answer = next_answer(&mut self.lane), if waiting => Event::Answer(answer),
            permit = next_permit(&mut self.permit), if self.permit.is_some() => Event::Permit(permit),
            () = next_turn(&mut self.turn), if self.turn.is_some() => Event::Turn,
            request = self.input.next(), if may_take => Event::Request(request),
            () = &mut self.stall, if waiting => Event::Stall,
        }
    }

    fn take(&mut self, request: AppendEntriesRequest) -> Result<(), RpcError> {
        let prev = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(prev);
        let pieces = message::encode_append(&request).map_err(network)?;
        let bytes = pieces.iter().map(Bytes::len).sum();
        if bytes > APPEND_BYTES_MAX {
            return Err(unreachable(format!("entries of {bytes} bytes are longer than {APPEND_BYTES_MAX}")));
        }
        self.pending = Some(Pending { pieces, prev, last, bytes });
        self.cleared = false;
        Ok(())
    }

    /// Makes sure that what is pending has a lane to go out on, and waits for its share of the window.
    async fn prepare(&mut self) -> Result<(), RpcError> {
        let Some(pending) = &self.pending else { return Ok(()) };
        if self.permit.is_some() {
            return Ok(());
        }
        // One without entries waits for nobody: an answer may wait for it.
        let kib = match pending.prev == pending.last {
            true => 0,
            false => pending.bytes.div_ceil(1 << 10).clamp(1, WINDOW_BYTES_TOTAL >> 10) as u32,
        };
        // A stream that was idle while its connection was lost begins anew; one with requests under way learns of it
        // from its answers.
        if self.in_flight.is_empty() && !self.lane.as_ref().is_some_and(OpenLane::is_open) {
            self.lane = None;
            let peer = self.network.peer().map_err(RpcError::from)?;
            let client = peer.data.up(Instant::now() + self.soft_ttl).await.map_err(unreachable)?;
            self.lane = Some(client.open(message::encode_open(self.network.to)).map_err(unreachable)?);
            self.window = Some(peer.window_kib.clone());
        }
        let window = self.window.clone().ok_or_else(|| unreachable("not connected"))?;
        self.permit = Some(match window.clone().try_acquire_many_owned(kib) {
            Ok(permit) => std::future::ready(Some(permit)).boxed(),
            Err(_) => async move { window.acquire_many_owned(kib).await.ok() }.boxed(),
        });
        Ok(())
    }

    fn send(&mut self, permit: Option<OwnedSemaphorePermit>) -> Result<(), RpcError> {
        let (Some(Pending { pieces, prev, last, bytes }), Some(lane), Some(permit)) =
            (self.pending.take(), &mut self.lane, permit)
        else {
            return Err(unreachable("not connected"));
        };
        lane.append(pieces).map_err(unreachable)?;
        let since = Instant::now();
        if self.in_flight.is_empty() {
            self.progress.0 = since;
            self.stall.as_mut().reset(self.progress.0 + self.soft_ttl);
        }
        if prev != last {
            let instruments = &self.network.shared.instruments;
            instruments.requests.increment(1);
            instruments.bytes.increment(bytes as u64);
        }
        self.sent_requests = self.sent_requests.saturating_add(1);
        // What comes after a stream's first requests, which are small, is likely to be a full one.
        let likely =
            if self.sent_requests > FREE_REQUESTS { bytes } else { self.network.shared.config.append_bytes_max };
        self.sent = last.map(|last| (last.index, likely));
        self.in_flight.push_back(InFlight { prev, last, bytes, since, _permit: permit });
        self.in_flight_bytes += bytes;
        Ok(())
    }

    fn answered(&mut self, answer: Option<Bytes>) -> Appended {
        self.progress.0 = Instant::now();
        let Some(answer) = answer else { return Err(unreachable("the connection or the stream was closed")) };
        let Some(asked) = self.in_flight.pop_front() else { return Err(network("an answer to nothing")) };
        self.in_flight_bytes -= asked.bytes;
        match message::decode_appended(&answer, asked.prev, asked.last) {
            Ok(Ok(result)) => {
                if asked.prev != asked.last {
                    let took = self.progress.0.duration_since(asked.since);
                    self.network.shared.instruments.seconds.record(took.as_secs_f64());
                }
                Ok(result)
            }
            Ok(Err(Refusal::NotHere)) => Err(unreachable(Refusal::NotHere)),
            Ok(Err(refusal)) => Err(unreachable(refusal)),
            Err(error) => {
                if let Some(lane) = &self.lane {
                    lane.shut(&error.to_string());
                }
                Err(network(error))
            }
        }
    }

    /// Whether the answer that comes next tells openraft all that this one would: the next request has no entries, it only says what is
    /// committed. This one must not be told before: openraft takes it for an answer to the next request as well, which may not even have
    /// left this broker, and a read for confirmed that began between the two (RULES.md R2).
    fn says_no_more_than_the_next(&self, matching: Option<LogId>) -> bool {
        let next = self.in_flight.front().map(|asked| asked.last).or(self.pending.as_ref().map(|pending| pending.last));
        next.is_some_and(|last| last <= matching)
    }

    /// Nothing was answered for a while: whether that is an error. Bytes that still flow are progress.
    fn stalled(&mut self) -> Option<RpcError> {
        let now = Instant::now();
        if let Some(written) = self.lane.as_ref().and_then(OpenLane::sending)
            && written != self.progress.1
        {
            self.progress = (now, written);
        }
        let alive =
            self.network.shared.detector.status(self.network.broker).map(|s| s.liveness) == Some(Liveness::Alive);
        let limit = if alive { self.soft_ttl.max(STALL_MAX) } else { self.soft_ttl };
        if now >= self.progress.0 + limit {
            return Some(network(format!("no answer for {} ms", limit.as_millis())));
        }
        self.stall.as_mut().reset((self.progress.0 + limit).min(now + self.soft_ttl));
        None
    }
}

async fn next_answer(lane: &mut Option<OpenLane>) -> Option<Bytes> {
    match lane {
        Some(lane) => lane.answers.recv().await,
        None => None,
    }
}

async fn next_turn(turn: &mut Option<BoxFuture<'static, ()>>) {
    if let Some(turn) = turn {
        turn.await;
    }
}

async fn next_permit(
    permit: &mut Option<BoxFuture<'static, Option<OwnedSemaphorePermit>>>,
) -> Option<OwnedSemaphorePermit> {
    match permit {
        Some(permit) => permit.await,
        None => None,
    }
}
