//! openraft's network: each replica's messages to the other members of its group.
//!
//! Replication is pipelined over the shared data connection, within the stream's window and the peer's; heartbeats,
//! votes and transfers go over the control connection, so that they never queue behind data (RULES.md R8). Whatever the
//! connections do, a replication stream takes a request from openraft *before* it reports an error: openraft sleeps its
//! back-off inside that input, and would spin if the error came first.
//!
//! It keeps no retries of its own, and never shows openraft an answer that vouches for more than was sent.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, Stream as Requests, StreamExt};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RaftNetworkFactory,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use super::catch_up::{Backlog, CatchUp};
use super::message;
use super::peer::{Peer, WINDOW_BYTES_TOTAL};
use super::requests::{OpenLane, RequestError};
use super::wire::{APPEND_BYTES_MAX, Kind, SNAPSHOT_BYTES_MAX};
use super::{
    AppendEntriesRequest, AppendResult, Liveness, Refusal, Shared, Snapshot, SnapshotResponse, Target,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse, WINDOW_BYTES, WINDOW_REQUESTS,
};
use crate::log::frame::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX};
use crate::log_store::READ_BYTES_MAX;
use crate::types::{BrokerId, GroupId, LogId, ReplicaHome, ReplicaId, TypeConfig, Vote};

pub(super) type RpcError = RPCError<TypeConfig>;
pub(super) type Appended = Result<AppendResult, RpcError>;
pub(super) type AppendedStream<'s> = BoxStream<'s, Appended>;

/// A stream without progress to a broker that is alive is given up after this: its disk may be slow, and sending
/// everything again would not make it faster.
const STALL_MAX: Duration = Duration::from_secs(10);
/// Before a broker that is dead is tried again, by each group.
const DEAD_WAIT: Duration = Duration::from_secs(2);
/// A follower that is no further behind than so many of the largest requests is not catching up.
const LIVE_REQUESTS: u64 = 8;
/// What a log gives for one request is never more than one request carries.
const _: () =
    assert!(READ_BYTES_MAX + FRAME_PAYLOAD_BYTES_MAX as usize + FRAME_HEADER_BYTES + (64 << 10) <= APPEND_BYTES_MAX);
/// The least time a snapshot may take, beside what its size allows.
const SNAPSHOT_TIME_MIN: Duration = Duration::from_secs(30);
/// The slowest rate at which a snapshot is still awaited.
const SNAPSHOT_BYTES_PER_SECOND: u64 = 1 << 20;

/// The factory openraft asks for a network to each member. Snapshots are `Bytes`.
#[derive(Clone)]
pub struct GroupNetwork {
    shared: Arc<Shared>,
    group: GroupId,
    backlog: Option<Arc<dyn Backlog>>,
}

impl GroupNetwork {
    pub(crate) fn new(shared: Arc<Shared>, group: GroupId) -> Self {
        Self { shared, group, backlog: None }
    }

    /// Limits the rate at which replicas that fell behind in this log catch up. Without, there is no limit.
    pub fn paced_by(self, backlog: Arc<dyn Backlog>) -> Self {
        Self { backlog: Some(backlog), ..self }
    }

    fn replica(&self, replica: ReplicaId, home: &ReplicaHome, heartbeats: bool) -> ReplicaNetwork {
        let to = Target { group: self.group, replica };
        let backlog = self.backlog.clone();
        ReplicaNetwork { shared: self.shared.clone(), to, broker: home.broker, heartbeats, backlog }
    }
}

impl RaftNetworkFactory<TypeConfig> for GroupNetwork {
    type Network = ReplicaNetwork;

    async fn new_client(&mut self, target: ReplicaId, node: &ReplicaHome) -> ReplicaNetwork {
        self.replica(target, node, false)
    }

    async fn new_heartbeat_client(&mut self, target: ReplicaId, node: &ReplicaHome) -> ReplicaNetwork {
        self.replica(target, node, true)
    }
}

/// The network to one replica of a group. Cheap: the connections are shared.
pub struct ReplicaNetwork {
    shared: Arc<Shared>,
    to: Target,
    broker: BrokerId,
    /// Its streams carry single heartbeats, which go over the control connection.
    heartbeats: bool,
    backlog: Option<Arc<dyn Backlog>>,
}

fn unreachable(why: impl ToString) -> RpcError {
    Unreachable::from_string(why).into()
}

fn network(why: impl ToString) -> RpcError {
    NetworkError::from_string(why).into()
}

impl From<RequestError> for RpcError {
    fn from(error: RequestError) -> Self {
        match error {
            // Back off; a retry at once would meet the same.
            RequestError::Unreachable(why) => unreachable(why),
            RequestError::Refused(refusal) => unreachable(refusal),
            RequestError::NoAnswer(why) => network(why),
        }
    }
}

impl ReplicaNetwork {
    fn peer(&self) -> Result<Arc<Peer>, RequestError> {
        let unknown = || RequestError::Unreachable(format!("broker {} has no address", self.broker));
        self.shared.peer(self.broker).ok_or_else(unknown)
    }

    /// What holds a stream back that catches up.
    fn catch_up(&self) -> Option<CatchUp> {
        let live_bytes = LIVE_REQUESTS.saturating_mul(self.shared.config.append_bytes_max as u64);
        let backlog = self.backlog.clone()?;
        Some(CatchUp::new(self.shared.pace.clone(), backlog, live_bytes))
    }

    /// One request over the control connection.
    async fn ask(&self, kind: Kind, body: Bytes, option: &RPCOption) -> Result<Bytes, RequestError> {
        let deadline = Instant::now() + option.soft_ttl();
        let peer = self.peer()?;
        let late = |_| RequestError::Unreachable("too many requests wait".into());
        let _permit = tokio::time::timeout_at(deadline, peer.rpcs.acquire()).await.map_err(late)?;
        let client = peer.control.up(deadline).await.map_err(RequestError::Unreachable)?;
        client.request(kind, vec![body], deadline).await
    }

    /// Asks, and reads the answer.
    async fn rpc<T>(
        &self,
        kind: Kind,
        body: Bytes,
        option: &RPCOption,
        decode: impl FnOnce(&[u8]) -> Result<T, super::wire::WireError>,
    ) -> Result<T, RpcError> {
        let answer = self.ask(kind, body, option).await?;
        decode(&answer).map_err(network)
    }

    async fn heartbeat(&self, request: AppendEntriesRequest, option: &RPCOption) -> Appended {
        if !request.entries.is_empty() {
            return Err(network("a heartbeat with entries"));
        }
        let prev = request.prev_log_id;
        let body = message::encode_heartbeat(self.to, &request);
        let answer =
            self.rpc(Kind::Heartbeat, body, option, |answer| message::decode_appended(answer, prev, prev)).await?;
        answer.map_err(unreachable)
    }
}

impl NetBackoff<TypeConfig> for ReplicaNetwork {
    /// Short at first: a broker that restarts should be caught up soon. Long while it is known to be dead, for each group tries by
    /// itself: the elections end the wait when it is back (`reset_backoff`).
    fn backoff(&self) -> Option<Backoff> {
        let (shared, broker) = (self.shared.clone(), self.broker);
        let steps = [20, 50, 100, 200].into_iter().chain(std::iter::repeat(500)).map(Duration::from_millis);
        let is_dead = move || shared.detector.status(broker).is_some_and(|status| status.liveness == Liveness::Dead);
        Some(Backoff::new(steps.map(move |step| if is_dead() { DEAD_WAIT } else { step })))
    }
}

impl NetVote<TypeConfig> for ReplicaNetwork {
    async fn vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, RpcError> {
        self.rpc(Kind::Vote, message::encode_vote(self.to, &rpc), &option, message::decode_vote_answer).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, RpcError> {
        self.rpc(Kind::PreVote, message::encode_vote(self.to, &rpc), &option, message::decode_vote_answer).await
    }
}

impl NetTransferLeader<TypeConfig> for ReplicaNetwork {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse, RpcError> {
        let body = message::encode_transfer(self.to, &req);
        self.rpc(Kind::Transfer, body, &option, message::decode_transfer_answer).await
    }
}

impl NetSnapshot<TypeConfig> for ReplicaNetwork {
    type SnapshotData = Bytes;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse, StreamingError<TypeConfig>> {
        let send = async {
            let bytes = snapshot.snapshot.len();
            if bytes > SNAPSHOT_BYTES_MAX {
                let why = format!("snapshot of {bytes} bytes is longer than {SNAPSHOT_BYTES_MAX}");
                return Err(RequestError::Unreachable(why));
            }
            let peer = self.peer()?;
            let closed = |_| RequestError::Unreachable("closed".into());
            let _permit = peer.snapshots.acquire().await.map_err(closed)?;
            let client = peer.data.up(Instant::now() + option.soft_ttl()).await.map_err(RequestError::Unreachable)?;
            let time = Duration::from_secs(bytes as u64 / SNAPSHOT_BYTES_PER_SECOND) + SNAPSHOT_TIME_MIN;
            let deadline = Instant::now() + time.max(option.soft_ttl());
            client.request(Kind::Snapshot, message::encode_snapshot(self.to, vote, &snapshot), deadline).await
        };
        let answer = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            answer = send => answer.map_err(RpcError::from)?,
        };
        message::decode_snapshot_answer(&answer).map_err(|error| NetworkError::from_string(error).into())
    }
}

impl NetStreamAppend<TypeConfig> for ReplicaNetwork {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<AppendedStream<'s>, RpcError>>
    where
        S: Requests<Item = AppendEntriesRequest> + Send + Unpin + 'static,
    {
        let this = &*self;
        let answers = if this.heartbeats {
            futures_util::stream::unfold(Some(input), move |input| {
                let option = option.clone();
                async move {
                    let mut input = input?;
                    let answer = this.heartbeat(input.next().await?, &option).await;
                    let goes_on = matches!(answer, Ok(Ok(_)));
                    Some((answer, goes_on.then_some(input)))
                }
            })
            .boxed()
        } else {
            let stream = Replication::new(this, input, option.soft_ttl());
            futures_util::stream::unfold(stream, |mut stream| async move {
                let answer = stream.next().await?;
                Some((answer, stream))
            })
            .boxed()
        };
        std::future::ready(Ok(answers)).boxed()
    }
}

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
struct Replication<'s, S> {
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
    fn new(network: &'s ReplicaNetwork, input: S, soft_ttl: Duration) -> Self {
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
    async fn next(&mut self) -> Option<Appended> {
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
    /// wait, what each had taken would be gigabytes. The first request of a stream is small; it may always go.
    fn ask_for_turn(&mut self) {
        if self.cleared || self.turn.is_some() || !self.has_room() {
            return;
        }
        let turn = match (self.sent, &mut self.catch_up) {
            (Some((last, bytes)), Some(catch_up)) => catch_up.admit(last, bytes as u64),
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
        // What comes after a stream's first request, which is small, is likely to be a full one.
        let likely = if self.sent.is_some() { bytes } else { self.network.shared.config.append_bytes_max };
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
