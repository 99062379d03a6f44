//! openraft's network: each replica's messages to the other members of its group.
//!
//! Replication goes over the shared data connection (`replication`); heartbeats, votes and transfers go over the control
//! connection, so that they never queue behind data (RULES.md R8).
//!
//! It keeps no retries of its own, and never shows openraft an answer that vouches for more than was sent.

use std::future::Future;
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
use tokio::time::Instant;

use self::replication::Replication;
use super::catch_up::{Backlog, CatchUp};
use super::message;
use super::peer::Peer;
use super::requests::RequestError;
use super::wire::{APPEND_BYTES_MAX, Kind, SNAPSHOT_BYTES_MAX};
use super::{
    AppendEntriesRequest, AppendResult, Liveness, Shared, Snapshot, SnapshotResponse, Target, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use crate::log::frame::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX};
use crate::log_store::READ_BYTES_MAX;
use crate::types::{BrokerId, GroupId, ReplicaHome, ReplicaId, TypeConfig, Vote};

mod replication;

pub(super) type RpcError = RPCError<TypeConfig>;
pub(super) type Appended = Result<AppendResult, RpcError>;
pub(super) type AppendedStream<'s> = BoxStream<'s, Appended>;

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
