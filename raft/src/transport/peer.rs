//! One peer, from the dialling side: two connections kept up, pings, and requests with their answers.
//!
//! A lost connection is dialled again at once, then with growing pauses; whoever needs it meanwhile is told so. The
//! watchdog pings over the control connection and tells the detector how long nothing came back. It knows no group:
//! openraft's side is `client`; what arrives on connections that others dialled is `server`'s.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::connection::{Closed, Connection, Handler};
use super::message;
use super::wire::{
    Assembler, ConnectionKind, HANDSHAKE_BYTES, Hello, Kind, Message, PROTOCOL_VERSION, Turned, Welcome, WireError,
};
use super::{Refusal, Shared, Stream};
use crate::types::BrokerId;

/// Calls and reports to one peer that may be unanswered.
pub(crate) const CALLS_MAX: usize = 32;
/// Raft's unary messages to one peer that may be unanswered.
pub(crate) const RPCS_MAX: usize = 8192;
/// Snapshots on their way to one peer.
pub(crate) const SNAPSHOTS_MAX: usize = 2;
/// Bytes of all replication streams to one peer that may be unanswered: 64 MiB (one longer message may pass alone).
pub(crate) const WINDOW_BYTES_TOTAL: usize = 64 << 20;
/// Bytes of calls and reports to one peer that may be unanswered: 64 MiB.
pub(crate) const CALL_BYTES_TOTAL: usize = 64 << 20;
/// A connection on which nothing comes for so long, though pings went out, is given up.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(10);
/// The longest pause between two attempts to connect.
const REDIAL_MAX: Duration = Duration::from_millis(500);
/// The shortest.
const REDIAL_MIN: Duration = Duration::from_millis(50);
/// The lane of pings.
const PING_LANE: u64 = 0;
/// Data connections are pinged once in so many rounds, only to notice that one is dead.
const DATA_PING_ROUNDS: u64 = 20;

/// A peer with an address, and the tasks that keep its connections.
pub(crate) struct Peer {
    pub(crate) broker: BrokerId,
    pub(crate) address: String,
    pub(crate) control: Link,
    pub(crate) data: Link,
    /// KiB of calls under way.
    pub(crate) call_kib: Semaphore,
    pub(crate) calls: Semaphore,
    pub(crate) rpcs: Semaphore,
    pub(crate) snapshots: Semaphore,
    /// KiB of appends under way.
    pub(crate) window_kib: Arc<Semaphore>,
    stopped: watch::Sender<bool>,
}

/// One of the two connections to a peer.
pub(crate) struct Link {
    kind: ConnectionKind,
    state: watch::Sender<LinkState>,
    /// Told when dialling at once has a chance.
    again: Notify,
}

#[derive(Clone)]
enum LinkState {
    Connecting,
    Up(Arc<Client>),
    Down(Arc<str>),
}

impl Link {
    fn new(kind: ConnectionKind) -> Self {
        Self { kind, state: watch::Sender::new(LinkState::Connecting), again: Notify::new() }
    }

    /// The connection; waits while one is being made, up to `deadline`.
    pub(crate) async fn up(&self, deadline: Instant) -> Result<Arc<Client>, String> {
        let mut state = self.state.subscribe();
        let ready = state.wait_for(|state| !matches!(state, LinkState::Connecting));
        let Ok(ready) = tokio::time::timeout_at(deadline, ready).await else {
            return Err("no connection within the time given".into());
        };
        match ready.as_deref() {
            Ok(LinkState::Up(client)) => Ok(client.clone()),
            Ok(LinkState::Down(why)) => Err(why.to_string()),
            Ok(LinkState::Connecting) | Err(_) => Err("not connected".into()),
        }
    }

    fn current(&self) -> Option<Arc<Client>> {
        match &*self.state.borrow() {
            LinkState::Up(client) => Some(client.clone()),
            _ => None,
        }
    }

    fn shut(&self, why: &str) {
        if let Some(client) = self.current() {
            client.shut(why);
        }
    }

    /// Dials at once instead of waiting on.
    pub(crate) fn redial(&self) {
        self.again.notify_one();
    }
}

impl Peer {
    /// Begins to keep both connections and to watch the peer.
    pub(crate) fn start(shared: &Arc<Shared>, broker: BrokerId, address: String) -> Arc<Self> {
        let peer = Arc::new(Self {
            broker,
            address,
            control: Link::new(ConnectionKind::Control),
            data: Link::new(ConnectionKind::Data),
            call_kib: Semaphore::new(CALL_BYTES_TOTAL >> 10),
            calls: Semaphore::new(CALLS_MAX),
            rpcs: Semaphore::new(RPCS_MAX),
            snapshots: Semaphore::new(SNAPSHOTS_MAX),
            window_kib: Arc::new(Semaphore::new(WINDOW_BYTES_TOTAL >> 10)),
            stopped: watch::Sender::new(false),
        });
        peer.spawn(peer.clone().keep(shared.clone(), |peer| &peer.control));
        peer.spawn(peer.clone().keep(shared.clone(), |peer| &peer.data));
        peer.spawn(peer.clone().watch(shared.clone()));
        peer
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut stopped = self.stopped.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => {}
                () = task => {}
            }
        });
    }

    /// Gives both connections up for good.
    pub(crate) fn stop(&self, why: &str) {
        self.stopped.send_replace(true);
        for link in [&self.control, &self.data] {
            link.shut(why);
            link.state.send_replace(LinkState::Down(why.into()));
        }
    }

    /// Closes both connections; they are dialled again.
    pub(crate) fn shut(&self, why: &str) {
        self.control.shut(why);
        self.data.shut(why);
    }

    /// Keeps one connection up for ever.
    async fn keep(self: Arc<Self>, shared: Arc<Shared>, link: for<'a> fn(&'a Self) -> &'a Link) {
        let link = link(&self);
        let mut pause = Duration::ZERO;
        let mut cluster = shared.cluster.subscribe();
        loop {
            cluster.mark_unchanged();
            let began = Instant::now();
            match self.dial(&shared, link.kind).await {
                Ok((stream, welcome)) => {
                    let why = tokio::select! {
                        biased;
                        why = self.carry(&shared, link, stream, welcome) => why,
                        _ = cluster.changed() => "joined a cluster".into(),
                    };
                    link.shut(&why);
                    // Callers wait for the next attempt, which follows at once.
                    link.state.send_replace(LinkState::Connecting);
                }
                Err(error) => {
                    tracing::debug!(peer = %self.broker, connection = link.kind.name(), %error, "cannot connect");
                    if link.kind == ConnectionKind::Control
                        && matches!(error, DialError::Refused(_))
                        && shared.detector.refused(self.broker)
                    {
                        self.shut("refused");
                    }
                    link.state.send_replace(LinkState::Down(error.to_string().into()));
                }
            }
            // A connection that lasted is dialled again at once; one that did not last, or was not made, less and less.
            pause =
                if began.elapsed() > REDIAL_MAX { Duration::ZERO } else { (2 * pause).clamp(REDIAL_MIN, REDIAL_MAX) };
            tokio::select! {
                biased;
                () = tokio::time::sleep(pause) => {}
                () = link.again.notified(), if !pause.is_zero() => tokio::time::sleep(REDIAL_MIN).await,
                _ = cluster.changed() => {}
            }
        }
    }

    async fn dial(&self, shared: &Shared, kind: ConnectionKind) -> Result<(Box<dyn Stream>, Welcome), DialError> {
        if kind == ConnectionKind::Data && shared.cluster.borrow().is_none() {
            return Err(DialError::Turned(Turned::NoCluster));
        }
        let attempt = dial(shared, &self.address, kind, Some(self.broker));
        match tokio::time::timeout(shared.config.silence_max, attempt).await {
            Ok(outcome) => outcome,
            Err(_) => Err(DialError::Failed("no answer".into())),
        }
    }

    /// Carries one connection from its handshake to its end; returns why it ended.
    async fn carry(&self, shared: &Arc<Shared>, link: &Link, stream: Box<dyn Stream>, welcome: Welcome) -> String {
        metrics::counter!("pontoon_peer_connects_total", "peer" => self.broker.to_string(), "connection" => link.kind.name())
            .increment(1);
        let client = Client::new(self.broker, link.kind);
        let is_control = link.kind == ConnectionKind::Control;
        if is_control {
            shared.detector.connected(self.broker, welcome.incarnation);
        }
        link.state.send_replace(LinkState::Up(client.clone()));
        if is_control {
            self.ping(shared, link);
        }
        let heard = is_control.then(|| heard_by(shared, self.broker));
        client.run(stream, shared.started, heard).await.0.to_string()
    }

    fn ping(&self, shared: &Shared, link: &Link) {
        let Some(client) = link.current() else { return };
        // The number is the time it was sent, so that its answer tells how long it took.
        let number = shared.started.elapsed().as_nanos() as u64;
        let mut body = BytesMut::with_capacity(16);
        body.put_u64_le(number);
        body.put_u64_le(client.pong.load(Ordering::Relaxed));
        // A closed connection is the other task's business.
        let _ = client.connection.send_urgent(Kind::Ping, PING_LANE, body.freeze());
    }

    /// Pings, and measures silence in time spent listening: what our own process slept through is not silence.
    async fn watch(self: Arc<Self>, shared: Arc<Shared>) {
        let interval = shared.config.ping_interval;
        let mut ticker = tokio::time::interval(interval);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Instant::now();
        for round in 1u64.. {
            ticker.tick().await;
            let now = Instant::now();
            let listened = (now - last).min(2 * interval);
            last = now;
            if shared.detector.listened(self.broker, listened) {
                self.shut("silent");
                shared.close_accepted(self.broker, "silent");
            }
            self.ping(&shared, &self.control);
            if round % DATA_PING_ROUNDS == 0 {
                self.ping(&shared, &self.data);
            }
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("connection refused: {0}")]
    Refused(io::Error),
    #[error("{0}")]
    Failed(String),
    #[error("turned away: {0}")]
    Turned(Turned),
    #[error("it speaks protocol version {0}, this broker {PROTOCOL_VERSION}")]
    Version(u16),
    #[error("broker {found} answers there, not {expected}")]
    WrongBroker { found: BrokerId, expected: BrokerId },
}

/// Connects and shakes hands. The caller bounds the time.
pub(crate) async fn dial(
    shared: &Shared,
    address: &str,
    kind: ConnectionKind,
    target: Option<BrokerId>,
) -> Result<(Box<dyn Stream>, Welcome), DialError> {
    let mut stream = shared.network.connect(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => DialError::Refused(error),
        _ => DialError::Failed(error.to_string()),
    })?;
    let failed = |error: io::Error| DialError::Failed(format!("handshake: {error}"));
    let cluster = *shared.cluster.borrow();
    let hello = Hello { kind, broker: shared.broker, target, cluster, incarnation: shared.incarnation };
    stream.write_all(&hello.encode()).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut bytes = [0; HANDSHAKE_BYTES];
    stream.read_exact(&mut bytes).await.map_err(failed)?;
    let welcome = Welcome::decode(&bytes).map_err(|error| DialError::Failed(error.to_string()))?;
    match (welcome.turned, target) {
        (Some(Turned::Version), _) if welcome.version != PROTOCOL_VERSION => Err(DialError::Version(welcome.version)),
        (Some(turned), _) => Err(DialError::Turned(turned)),
        (None, Some(expected)) if welcome.broker != expected => {
            Err(DialError::WrongBroker { found: welcome.broker, expected })
        }
        (None, _) if cluster.is_some() && welcome.cluster.is_some() && cluster != welcome.cluster => {
            Err(DialError::Turned(Turned::ForeignCluster))
        }
        (None, _) => Ok((stream, welcome)),
    }
}

/// Tells the detector of a round trip, and how long it took.
pub(crate) type Heard = Box<dyn Fn(Duration) + Send>;

fn heard_by(shared: &Arc<Shared>, broker: BrokerId) -> Heard {
    let shared = shared.clone();
    let seconds = metrics::histogram!("pontoon_peer_ping_seconds", "peer" => broker.to_string());
    Box::new(move |took| {
        seconds.record(took.as_secs_f64());
        shared.detector.heard(broker);
    })
}

/// A connection we dialled: requests go out, answers find their way back.
pub(crate) struct Client {
    pub(crate) connection: Arc<Connection>,
    routes: Mutex<BTreeMap<u64, Route>>,
    next_lane: AtomicU64,
    /// The number of the last pong.
    pong: AtomicU64,
}

enum Route {
    Answer(oneshot::Sender<Bytes>),
    Stream(mpsc::UnboundedSender<Bytes>, Arc<AtomicUsize>),
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    /// The peer did not see it.
    #[error("{0}")]
    Unreachable(String),
    /// The peer may have acted on it.
    #[error("{0}")]
    NoAnswer(String),
    /// The peer did nothing.
    #[error("{0}")]
    Refused(Refusal),
}

impl Client {
    pub(crate) fn new(peer: BrokerId, kind: ConnectionKind) -> Arc<Self> {
        Arc::new(Self {
            connection: Connection::new(peer, kind, kind != ConnectionKind::Call),
            routes: Mutex::default(),
            next_lane: AtomicU64::new(PING_LANE + 1),
            pong: AtomicU64::new(0),
        })
    }

    /// Runs the connection to its end. Whoever waits for an answer then learns that none will come.
    pub(crate) async fn run(
        self: &Arc<Self>,
        stream: Box<dyn Stream>,
        started: Instant,
        heard: Option<Heard>,
    ) -> Closed {
        let handler = Answers { client: self.clone(), started, heard };
        // Answers are the only long messages here, and at most one for each call.
        let assembler = Assembler::new(CALLS_MAX * Kind::Answer.bytes_max());
        self.connection.run(stream, assembler, handler, IDLE_MAX).await;
        let why = self.connection.closed().await;
        self.shut(&why.0);
        why
    }

    fn shut(&self, why: &str) {
        self.connection.close(why);
        self.routes.lock().clear();
    }

    fn add(self: &Arc<Self>, route: Route) -> Lane {
        let lane = self.next_lane.fetch_add(1, Ordering::Relaxed);
        self.routes.lock().insert(lane, route);
        Lane { client: self.clone(), lane, done: false }
    }

    /// Sends one request and waits for its answer.
    pub(crate) async fn request(
        self: &Arc<Self>,
        kind: Kind,
        pieces: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<Bytes, RequestError> {
        let (answer, answered) = oneshot::channel();
        let mut lane = self.add(Route::Answer(answer));
        let unreachable = |closed: Closed| RequestError::Unreachable(closed.to_string());
        self.connection.send(kind, lane.lane, pieces).map_err(unreachable)?;
        let why = match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(body)) => {
                lane.done = true;
                return match message::decode_answer(body) {
                    Ok(answer) => answer.map_err(RequestError::Refused),
                    Err(error) => {
                        self.shut(&error.to_string());
                        Err(RequestError::NoAnswer(error.to_string()))
                    }
                };
            }
            Ok(Err(_)) => self.connection.closed().await.to_string(),
            Err(_) => "no answer within the time given".to_owned(),
        };
        // A message whose end was never handed to the network cannot have been acted on.
        if lane.give_up() { Err(RequestError::NoAnswer(why)) } else { Err(RequestError::Unreachable(why)) }
    }

    /// Opens a replication stream's lane. Answers arrive in order; the channel closes when the lane or connection does.
    pub(crate) fn open(self: &Arc<Self>, open: Bytes) -> Result<OpenLane, Closed> {
        let (answers, answered) = mpsc::unbounded_channel();
        // The first request follows at once, and the stream may be refused before it arrives.
        let unanswered = Arc::new(AtomicUsize::new(1));
        let lane = self.add(Route::Stream(answers, unanswered.clone()));
        self.connection.send(Kind::Open, lane.lane, vec![open])?;
        Ok(OpenLane { lane, answers: answered, unanswered, begun: false })
    }
}

/// A lane in use. Dropped unfinished, it is given up, and the peer is told.
struct Lane {
    client: Arc<Client>,
    lane: u64,
    done: bool,
}

impl Lane {
    /// Gives the lane up; returns whether all of it had been handed to the network.
    fn give_up(&mut self) -> bool {
        self.done = true;
        self.client.routes.lock().remove(&self.lane);
        self.client.connection.give_up(self.lane)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if !self.done {
            self.give_up();
        }
    }
}

/// A replication stream's lane.
pub(crate) struct OpenLane {
    lane: Lane,
    /// Bodies of `Appended`, in order. Unbounded, but never more than there are unanswered requests.
    pub(crate) answers: mpsc::UnboundedReceiver<Bytes>,
    unanswered: Arc<AtomicUsize>,
    begun: bool,
}

impl OpenLane {
    /// Sends the next `Append`.
    pub(crate) fn append(&mut self, pieces: Vec<Bytes>) -> Result<(), Closed> {
        if self.begun {
            self.unanswered.fetch_add(1, Ordering::Relaxed);
        }
        self.begun = true;
        self.lane.client.connection.send(Kind::Append, self.lane.lane, pieces)
    }

    /// Whether it can still be used.
    pub(crate) fn is_open(&self) -> bool {
        !self.lane.client.connection.is_closed() && !self.answers.is_closed()
    }

    /// Bytes the connection has written, while this lane still has something to write; `None` otherwise.
    pub(crate) fn sending(&self) -> Option<u64> {
        let connection = &self.lane.client.connection;
        connection.is_queued(self.lane.lane).then(|| connection.written_bytes())
    }

    /// The peer broke the protocol.
    pub(crate) fn shut(&self, why: &str) {
        self.lane.client.shut(why);
    }
}

/// Takes what comes back on a connection we dialled.
struct Answers {
    client: Arc<Client>,
    started: Instant,
    heard: Option<Heard>,
}

impl Handler for Answers {
    fn message(&mut self, message: Message) -> Result<(), WireError> {
        let Message { kind, lane, body } = message;
        let mut routes = self.client.routes.lock();
        match kind {
            Kind::Pong => {
                drop(routes);
                self.pong(body)
            }
            Kind::Answer => {
                // No route: the request was given up meanwhile.
                if let Some(Route::Answer(waiting)) = routes.remove(&lane) {
                    let _ = waiting.send(body);
                }
                Ok(())
            }
            Kind::Appended => {
                if let Some(Route::Stream(answers, unanswered)) = routes.get(&lane) {
                    let one_less = |count: usize| count.checked_sub(1);
                    if unanswered.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err() {
                        return Err(WireError::Credit("an answer to nothing".into()));
                    }
                    let _ = answers.send(body);
                }
                Ok(())
            }
            Kind::Close => {
                routes.remove(&lane);
                Ok(())
            }
            other => Err(WireError::Unknown { field: "answer kind", value: other as u64 }),
        }
    }
}

impl Answers {
    fn pong(&self, mut body: Bytes) -> Result<(), WireError> {
        let now = self.started.elapsed().as_nanos() as u64;
        let number = if body.len() == 8 { body.get_u64_le() } else { u64::MAX };
        if number > now {
            return Err(WireError::Body("pong", "answers no ping".into()));
        }
        self.client.pong.store(number, Ordering::Relaxed);
        if let Some(heard) = &self.heard {
            heard(Duration::from_nanos(now - number));
        }
        Ok(())
    }
}
