//! Broker to broker: two connections to each peer, control and data (RULES.md R8), and the failure detector.
//!
//! Each broker dials both to every peer that has an address: *control* carries pings, votes, heartbeats, transfers,
//! reports and calls; *data* carries replication streams and snapshots, in frames, round robin between groups, each
//! group within its credit. What a broker asks goes over the connections it dialled, answers come back on the same.
//!
//! It carries openraft's messages for every group ([`RaftService`]), and calls of the layer above ([`PeerService`])
//! whose meaning it does not know. It holds no group's state, never waits for one group's mailbox, and decides
//! nothing about elections: see `raft_groups`.
//!
//! Rooms: `service` what may be asked, [`handshake`] and [`wire`] formats, `message` bodies, `connection` one connection's
//! queues, `peer` dialling, `requests` lanes and answers, [`client`] openraft's network, `accept` who is let in, `server`
//! what is asked then, `liveness` the detector, [`net`] sockets, `testing` faults.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

use self::connection::Connection;
use self::handshake::ConnectionKind;
use self::liveness::Detector;
use self::peer::{DialError, Peer};
use self::requests::{Client, RequestError};
use self::wire::Kind;
use crate::config::RaftConfig;
use crate::instruments::{Instrument, OF_PEERS, ReplicationInstruments};
use crate::runtime;
use crate::types::{BrokerId, ClusterId, GroupId, TypeConfig};
use crate::vital::vital;

mod accept;
pub mod catch_up;
pub mod client;
mod connection;
pub mod handshake;
mod liveness;
mod message;
pub mod net;
mod peer;
mod requests;
mod server;
mod service;
#[cfg(any(test, feature = "simulation"))]
pub mod testing;
pub mod wire;

pub use service::{
    CALL_BYTES_MAX, Caller, FRAMES_BYTES_MAX, FramesRequest, PeerService, RaftService, Refusal, Target, WINDOW_BYTES,
    WINDOW_REQUESTS,
};

/// Raft's AppendEntries.
pub type AppendEntriesRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
/// The answer to a single AppendEntries.
pub type AppendEntriesResponse = openraft::raft::AppendEntriesResponse<TypeConfig>;
/// The answer to one AppendEntries of a stream: the last matching log id, or why the stream ends.
pub type AppendResult = openraft::raft::StreamAppendResult<TypeConfig>;
/// Raft's RequestVote, and pre-vote.
pub type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
/// Its answer.
pub type VoteResponse = openraft::raft::VoteResponse<TypeConfig>;
/// A leader hands over.
pub type TransferLeaderRequest = openraft::raft::TransferLeaderRequest<TypeConfig>;
/// Its answer.
pub type TransferLeaderResponse = openraft::raft::TransferLeaderResponse<TypeConfig>;
/// A whole snapshot. Its contents are the state machine's.
pub type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, Bytes>;
/// The answer to a snapshot.
pub type SnapshotResponse = openraft::raft::SnapshotResponse<TypeConfig>;

/// A byte stream between brokers.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// The network, by constructor, so that a simulation can own it.
pub trait Network: Send + Sync + 'static {
    /// Connects to `address` (`host:port`). `ConnectionRefused` means that nobody listens there.
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, std::io::Result<Box<dyn Stream>>>;
    /// Listens on `address`.
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, std::io::Result<Box<dyn Listener>>>;
}

/// A listening socket.
pub trait Listener: Send + Sync + 'static {
    /// The next connection.
    fn accept(&self) -> BoxFuture<'_, std::io::Result<Box<dyn Stream>>>;
    /// Where it listens (after port 0 was resolved), `host:port`.
    fn local_address(&self) -> String;
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The peer could not be reached; it did not see the call.
    #[error("broker {0} is unreachable: {1}")]
    Unreachable(BrokerId, String),
    /// Sent, but no answer came: the peer may have acted on it.
    #[error("broker {0} did not answer: {1}")]
    NoAnswer(BrokerId, String),
    /// The peer refused; it did nothing.
    #[error("broker {0} refused: {1}")]
    Refused(BrokerId, String),
}

/// Whether a peer is alive, as this broker's detector sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Never heard of since this process started.
    Unknown,
    /// Answers.
    Alive,
    /// Closed its connections and refuses new ones, or was silent for too long, or its process was replaced.
    Dead,
}

/// All the detector knows of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its state now.
    pub liveness: Liveness,
    /// When it last proved that it both hears and answers this broker.
    pub last_heard: Option<Instant>,
    /// A random number its process drew at its start; it changes when the process is replaced.
    pub incarnation: Option<u64>,
    /// How often it turned out to be another process than before.
    pub replacements: u64,
    /// How often it was declared dead.
    pub deaths: u64,
    /// Since when it has been alive without a break, if it is.
    pub alive_since: Option<Instant>,
}

/// Who this broker is towards its peers.
#[derive(Clone, Debug)]
pub struct TransportIdentity {
    /// This broker.
    pub broker: BrokerId,
    /// Its cluster; `None` while it is not part of one (then only calls are exchanged, with any cluster's brokers).
    pub cluster: Option<ClusterId>,
}

/// This broker's connections. Shared.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
    address: Arc<str>,
}

/// What others have dialled: by whom and for what, and which process.
type Accepted = BTreeMap<(BrokerId, ConnectionKind), (u64, Arc<Connection>)>;

/// What every task of the transport needs.
pub(crate) struct Shared {
    network: Arc<dyn Network>,
    broker: BrokerId,
    incarnation: u64,
    started: Instant,
    cluster: watch::Sender<Option<ClusterId>>,
    /// Ids that the cluster had before it was recovered from a survivor.
    superseded: Mutex<BTreeSet<ClusterId>>,
    /// Who said that this broker's cluster is one of those, and what it is called now.
    outdated: watch::Sender<Option<(BrokerId, ClusterId)>>,
    /// Which of the lasting tasks panicked.
    panicked: watch::Sender<Option<String>>,
    config: RaftConfig,
    service: Arc<dyn PeerService>,
    raft: Mutex<Option<Arc<dyn RaftService>>>,
    peers: Mutex<BTreeMap<BrokerId, Arc<Peer>>>,
    accepted: Mutex<Accepted>,
    detector: Detector,
    pace: Arc<catch_up::Pace>,
    instruments: ReplicationInstruments,
    ended: watch::Sender<bool>,
}

/// What is told, once it is.
async fn told<T: Clone>(watched: &watch::Sender<Option<T>>) -> T {
    let mut watched = watched.subscribe();
    // The sender is borrowed: it cannot be gone.
    let told = watched.wait_for(Option::is_some).await.ok().and_then(|told| told.clone());
    match told {
        Some(told) => told,
        None => std::future::pending().await,
    }
}

impl Shared {
    /// `task`, whose panic is told by [`Transport::panicked`].
    fn vital<F: Future<Output = ()>>(
        self: &Arc<Self>,
        name: &'static str,
        task: F,
    ) -> impl Future<Output = ()> + use<F> {
        let shared = Arc::downgrade(self);
        let tell = move |why: &str| {
            tracing::error!(why, "a task of the transport ended");
            if let Some(shared) = shared.upgrade() {
                shared.panicked.send_replace(Some(why.to_owned()));
            }
        };
        vital(name, tell, task)
    }

    fn peer(&self, broker: BrokerId) -> Option<Arc<Peer>> {
        self.peers.lock().get(&broker).cloned()
    }

    /// Resolves at shutdown.
    async fn ended(&self) {
        let mut ended = self.ended.subscribe();
        // The sender lives in `self`: it cannot be gone.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Closes what we dialled to a peer.
    fn shut_peer(&self, broker: BrokerId, why: &str) {
        if let Some(peer) = self.peer(broker) {
            peer.shut(why);
        }
    }

    /// A peer has just shown itself: dialling it may succeed.
    fn redial(&self, broker: BrokerId) {
        if let Some(peer) = self.peer(broker) {
            peer.control.redial();
            peer.data.redial();
        }
    }

    /// Takes note of an accepted connection; an older one of the same kind from the same broker is dead or foreign.
    fn register_accepted(&self, connection: &Arc<Connection>, incarnation: u64) -> Arc<Connection> {
        let key = (connection.peer, connection.kind);
        if let Some((_, older)) = self.accepted.lock().insert(key, (incarnation, connection.clone())) {
            older.close("replaced by a newer connection");
        }
        connection.clone()
    }

    /// Whether a process is not the one of its number that is alive and that has a connection: it must not take that one's place. The
    /// process that the number had before it has none any more, once it is dead.
    fn is_taken(&self, broker: BrokerId, incarnation: u64) -> bool {
        let known = self.detector.status(broker).filter(|known| known.liveness == Liveness::Alive);
        let Some(other) = known.and_then(|known| known.incarnation).filter(|known| *known != incarnation) else {
            return false;
        };
        let dialled = self.peer(broker).is_some_and(|peer| peer.control.is_up());
        dialled || self.accepted.lock().iter().any(|((from, _), (by, _))| *from == broker && *by == other)
    }

    fn unregister_accepted(&self, connection: Arc<Connection>) {
        let mut accepted = self.accepted.lock();
        let key = (connection.peer, connection.kind);
        if accepted.get(&key).is_some_and(|(_, current)| Arc::ptr_eq(current, &connection)) {
            accepted.remove(&key);
        }
    }

    /// Closes what a peer dialled to us.
    fn close_accepted(&self, broker: BrokerId, why: &str) {
        for ((from, _), (_, connection)) in &*self.accepted.lock() {
            if *from == broker {
                connection.close(why);
            }
        }
    }
}

impl Transport {
    /// Starts listening and detecting. `listen` may have port 0.
    pub async fn start(
        network: Arc<dyn Network>,
        listen: &str,
        identity: TransportIdentity,
        config: RaftConfig,
        service: Arc<dyn PeerService>,
    ) -> std::io::Result<Transport> {
        OF_PEERS.iter().for_each(Instrument::describe);
        let listener = network.listen(listen).await?;
        let address = listener.local_address();
        let shared = Arc::new(Shared {
            network,
            broker: identity.broker,
            incarnation: runtime::random_u64(),
            started: Instant::now(),
            cluster: watch::Sender::new(identity.cluster),
            superseded: Mutex::default(),
            outdated: watch::Sender::new(None),
            panicked: watch::Sender::new(None),
            detector: Detector::new(config.silence_max),
            pace: Arc::new(catch_up::Pace::new(config.catch_up_bytes_per_second)),
            instruments: ReplicationInstruments::new(identity.broker),
            config,
            service,
            raft: Mutex::default(),
            peers: Mutex::default(),
            accepted: Mutex::default(),
            ended: watch::Sender::new(false),
        });
        let accepting = shared.clone();
        tokio::spawn(shared.vital("peers' connections", async move {
            tokio::select! {
                biased;
                () = accepting.ended() => {}
                () = accept::accept_loop(accepting.clone(), listener) => {}
            }
        }));
        Ok(Transport { shared, address: address.into() })
    }

    /// This broker.
    pub fn broker(&self) -> BrokerId {
        self.shared.broker
    }

    /// Where it listens.
    pub fn local_address(&self) -> String {
        self.address.to_string()
    }

    /// From now on part of this cluster: handshakes check it. Connections made before are made anew.
    pub fn set_cluster(&self, cluster: ClusterId) {
        self.shared.cluster.send_if_modified(|known| known.replace(cluster) != Some(cluster));
    }

    /// The cluster had these ids before it was recovered from a survivor: who still has one is turned away and told so.
    pub fn supersede(&self, former: impl IntoIterator<Item = ClusterId>) {
        self.shared.superseded.lock().extend(former);
    }

    /// Whether the cluster is known to have had other ids.
    pub fn has_superseded(&self) -> bool {
        !self.shared.superseded.lock().is_empty()
    }

    /// Resolves when some broker has said that this one's cluster was recovered without it: with that broker, and with what the
    /// cluster is called now.
    pub async fn outdated(&self) -> (BrokerId, ClusterId) {
        told(&self.shared.outdated).await
    }

    /// Resolves when one of the lasting tasks has panicked, with which and why: a peer may never be reached again from here.
    pub async fn panicked(&self) -> String {
        told(&self.shared.panicked).await
    }

    /// Who takes Raft messages from now on. Until then they are answered with [`Refusal::NotHere`].
    pub fn set_raft_service(&self, service: Arc<dyn RaftService>) {
        *self.shared.raft.lock() = Some(service);
    }

    /// openraft's network for the replica of `group` on this broker.
    pub fn raft_network(&self, group: GroupId) -> client::GroupNetwork {
        client::GroupNetwork::new(self.shared.clone(), group)
    }

    /// Where a peer is reached from now on; connections to another address are dropped. The detector follows every
    /// broker that has an address. This broker itself is no peer.
    pub fn set_peer(&self, broker: BrokerId, address: String) {
        if broker == self.shared.broker || *self.shared.ended.borrow() {
            return;
        }
        let mut peers = self.shared.peers.lock();
        if peers.get(&broker).is_some_and(|peer| peer.address == address) {
            return;
        }
        self.shared.detector.follow(broker);
        if let Some(old) = peers.insert(broker, Peer::start(&self.shared, broker, address)) {
            old.stop("its address has changed");
        }
    }

    /// Forgets a peer.
    pub fn remove_peer(&self, broker: BrokerId) {
        let removed = self.shared.peers.lock().remove(&broker);
        if let Some(peer) = removed {
            peer.stop("no longer a peer");
            self.shared.close_accepted(broker, "no longer a peer");
        }
        self.shared.detector.forget(broker);
    }

    /// Every peer that has an address, ascending.
    pub fn peers(&self) -> Vec<BrokerId> {
        self.shared.peers.lock().keys().copied().collect()
    }

    /// Calls the peer's [`PeerService`].
    pub async fn call(&self, to: BrokerId, body: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        self.ask(Kind::Call, to, body, timeout).await
    }

    /// Calls whoever listens at `address` (bootstrap: its broker id is not known to be true yet): which process
    /// ([`PeerStatus::incarnation`]), and its answer. Errors name broker `u32::MAX`.
    pub async fn call_address(&self, address: &str, body: Bytes, timeout: Duration) -> Result<(u64, Bytes), CallError> {
        let somebody = BrokerId(u32::MAX);
        check_length(somebody, &body)?;
        let deadline = Instant::now() + timeout;
        let dial = peer::dial(&self.shared, address, ConnectionKind::Call, None);
        let (stream, welcome) = match tokio::time::timeout_at(deadline, dial).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(error @ DialError::Turned(_))) => return Err(CallError::Refused(somebody, error.to_string())),
            Ok(Err(error)) => return Err(CallError::Unreachable(somebody, error.to_string())),
            Err(_) => return Err(CallError::Unreachable(somebody, "no connection within the time given".into())),
        };
        let client = Client::new((self.shared.broker, welcome.broker), ConnectionKind::Call);
        let request = client.request(Kind::Call, vec![body], deadline);
        let answer = tokio::select! {
            biased;
            answer = request => answer,
            // The request learns of the connection's end by itself, but cannot while it is not looked at.
            closed = client.run(stream, self.shared.started, None) => Err(RequestError::NoAnswer(closed.to_string())),
        };
        answer.map(|body| (welcome.incarnation, body)).map_err(|error| call_error(somebody, error))
    }

    /// Sends a report to the peer's [`RaftService::report`] and waits until it is taken in.
    pub async fn report(&self, to: BrokerId, body: Bytes, timeout: Duration) -> Result<(), CallError> {
        self.ask(Kind::Report, to, body, timeout).await.map(|_| ())
    }

    /// Asks a peer's [`RaftService::frames`], over the data connection.
    pub async fn frames(&self, to: BrokerId, request: FramesRequest, timeout: Duration) -> Result<Bytes, CallError> {
        self.ask(Kind::Frames, to, message::encode_frames(&request), timeout).await
    }

    /// Asks a peer's [`RaftService::may_lead`].
    pub async fn may_lead(&self, broker: BrokerId, to: Target, timeout: Duration) -> Result<bool, CallError> {
        let answer = self.ask(Kind::Fitness, broker, message::encode_fitness(to), timeout).await?;
        message::decode_fitness_answer(&answer).map_err(|error| CallError::NoAnswer(broker, error.to_string()))
    }

    async fn ask(&self, kind: Kind, to: BrokerId, body: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        check_length(to, &body)?;
        let deadline = Instant::now() + timeout;
        let unreachable = |why: String| CallError::Unreachable(to, why);
        let peer = self.shared.peer(to).ok_or_else(|| unreachable("it has no address".into()))?;
        let late = |_| CallError::Unreachable(to, "too many calls wait".into());
        let kib = body.len().div_ceil(1 << 10) as u32;
        // A question of a few bytes does not wait behind calls.
        let places = if kind == Kind::Fitness { &peer.rpcs } else { &peer.calls };
        let _place = tokio::time::timeout_at(deadline, places.acquire()).await.map_err(late)?;
        let _room = tokio::time::timeout_at(deadline, peer.call_kib.acquire_many(kib)).await.map_err(late)?;
        let link = if kind == Kind::Frames { &peer.data } else { &peer.control };
        let client = link.up(deadline).await.map_err(unreachable)?;
        client.request(kind, vec![body], deadline).await.map_err(|error| call_error(to, error))
    }

    /// What the detector says of a peer; `Unknown` for one without an address.
    pub fn liveness(&self, broker: BrokerId) -> Liveness {
        self.peer_status(broker).map_or(Liveness::Unknown, |status| status.liveness)
    }

    /// This process, as its peers know it: [`PeerStatus::incarnation`].
    pub fn incarnation(&self) -> u64 {
        self.shared.incarnation
    }

    /// Whether another process of the caller's number is alive and has a connection.
    pub fn is_taken(&self, caller: Caller) -> bool {
        self.shared.is_taken(caller.broker, caller.incarnation)
    }

    /// All the detector knows of a peer; `None` for one without an address.
    pub fn peer_status(&self, broker: BrokerId) -> Option<PeerStatus> {
        self.shared.detector.status(broker)
    }

    /// Changes of liveness, in order. A process that was replaced before anyone missed it gives `Dead`, then `Alive`.
    /// A receiver that lags loses events (`Lagged`): it should then ask [`Self::peer_status`] of every peer.
    pub fn watch_liveness(&self) -> tokio::sync::broadcast::Receiver<(BrokerId, Liveness)> {
        self.shared.detector.events()
    }

    /// Stops listening and closes every connection.
    pub async fn shutdown(&self) {
        self.shared.ended.send_replace(true);
        let peers = std::mem::take(&mut *self.shared.peers.lock());
        for peer in peers.into_values() {
            peer.stop("shut down");
        }
        *self.shared.raft.lock() = None;
    }
}

fn check_length(to: BrokerId, body: &Bytes) -> Result<(), CallError> {
    if body.len() <= CALL_BYTES_MAX {
        return Ok(());
    }
    Err(CallError::Refused(to, format!("a call of {} bytes is longer than {CALL_BYTES_MAX}", body.len())))
}

fn call_error(to: BrokerId, error: RequestError) -> CallError {
    match error {
        RequestError::Unreachable(why) => CallError::Unreachable(to, why),
        RequestError::NoAnswer(why) => CallError::NoAnswer(to, why),
        RequestError::Refused(Refusal::NotHere) => CallError::Refused(to, "it is not ready".into()),
        RequestError::Refused(Refusal::Unable(why)) => CallError::Refused(to, why),
    }
}

#[cfg(test)]
mod tests;
