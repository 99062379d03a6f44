//! One peer, from the dialling side: two connections kept up, and the watch over them.
//!
//! A lost connection is dialled again at once, then with growing pauses; whoever needs it meanwhile is told so. The
//! watchdog pings over the control connection and tells the detector how long nothing came back. It knows no group:
//! what goes over a connection is `requests`', openraft's side `client`'s; what others dialled is `server`'s.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::Instrument;

use super::handshake::{ConnectionKind, HANDSHAKE_BYTES, Hello, PROTOCOL_VERSION, Turned, Welcome};
use super::requests::{Client, Heard};
use super::{Shared, Stream};
use crate::instruments::peer_labels;
use crate::types::{BrokerId, ClusterId};

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
/// An attempt to connect that takes longer is made anew when the peer shows itself.
const DIAL_PATIENCE: Duration = Duration::from_millis(250);
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
    /// Whether there is a connection.
    pub(super) fn is_up(&self) -> bool {
        matches!(*self.state.borrow(), LinkState::Up(_))
    }

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

    /// Closes the connection; it is dialled again.
    pub(crate) fn shut(&self, why: &str) {
        if let Some(client) = self.current() {
            client.shut(why);
        }
    }

    fn ping(&self, started: Instant) {
        if let Some(client) = self.current() {
            client.ping(started);
        }
    }

    /// Dials at once instead of waiting on: the peer has shown itself. Who needs the connection waits for the outcome.
    pub(crate) fn redial(&self) {
        self.state.send_if_modified(|state| {
            let was_down = matches!(state, LinkState::Down(_));
            if was_down {
                *state = LinkState::Connecting;
            }
            was_down
        });
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
        let span = |kind: ConnectionKind| tracing::info_span!(parent: None, "peer", broker = shared.broker.0, peer = broker.0, connection = kind.name());
        let control = peer.clone().keep(shared.clone(), |peer| &peer.control);
        peer.spawn(shared, control.instrument(span(ConnectionKind::Control)));
        let data = peer.clone().keep(shared.clone(), |peer| &peer.data);
        peer.spawn(shared, data.instrument(span(ConnectionKind::Data)));
        peer.spawn(shared, peer.clone().watch(shared.clone()));
        peer
    }

    fn spawn(&self, shared: &Arc<Shared>, task: impl Future<Output = ()> + Send + 'static) {
        let mut stopped = self.stopped.subscribe();
        let task = shared.vital("peer", task);
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
            match self.dial(&shared, link).await {
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
                Err(DialError::Superseded) => continue,
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

    async fn dial(&self, shared: &Shared, link: &Link) -> Result<(Box<dyn Stream>, Welcome), DialError> {
        if link.kind == ConnectionKind::Data && shared.cluster.borrow().is_none() {
            return Err(DialError::Turned(Turned::NoCluster));
        }
        // An attempt that hangs was perhaps made to a process that is gone, while its successor has shown itself.
        let superseded = async {
            tokio::time::sleep(DIAL_PATIENCE).await;
            link.again.notified().await;
        };
        tokio::select! {
            biased;
            outcome = dial(shared, &self.address, link.kind, Some(self.broker)) => outcome,
            () = tokio::time::sleep(shared.config.silence_max) => Err(DialError::Failed("no answer".into())),
            () = superseded => Err(DialError::Superseded),
        }
    }

    /// Carries one connection from its handshake to its end; returns why it ended.
    async fn carry(&self, shared: &Arc<Shared>, link: &Link, stream: Box<dyn Stream>, welcome: Welcome) -> String {
        let [broker, peer] = peer_labels(shared.broker, self.broker);
        let labels = [broker, peer, ("connection", link.kind.name().to_owned())];
        metrics::counter!("pontoon_peer_connects_total", &labels).increment(1);
        let client = Client::new((shared.broker, self.broker), link.kind);
        let is_control = link.kind == ConnectionKind::Control;
        if is_control {
            shared.detector.connected(self.broker, welcome.incarnation);
        }
        link.state.send_replace(LinkState::Up(client.clone()));
        if is_control {
            link.ping(shared.started);
        }
        let heard = is_control.then(|| heard_by(shared, self.broker));
        client.run(stream, shared.started, heard).await.0.to_string()
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
            self.control.ping(shared.started);
            if round % DATA_PING_ROUNDS == 0 {
                self.data.ping(shared.started);
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
    #[error("no answer yet, but the peer has dialled us meanwhile")]
    Superseded,
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
        (Some(turned), _) => {
            if turned == Turned::Superseded {
                let by = welcome.cluster.map_or(0, |cluster| cluster.0);
                shared.outdated.send_replace(Some((welcome.broker, ClusterId(by))));
            }
            Err(DialError::Turned(turned))
        }
        (None, Some(expected)) if welcome.broker != expected => {
            Err(DialError::WrongBroker { found: welcome.broker, expected })
        }
        (None, _) if cluster.is_some() && welcome.cluster.is_some() && cluster != welcome.cluster => {
            Err(DialError::Turned(Turned::ForeignCluster))
        }
        (None, _) => Ok((stream, welcome)),
    }
}

fn heard_by(shared: &Arc<Shared>, broker: BrokerId) -> Heard {
    let shared = shared.clone();
    let seconds = metrics::histogram!("pontoon_peer_ping_seconds", &peer_labels(shared.broker, broker));
    Box::new(move |took| {
        seconds.record(took.as_secs_f64());
        shared.detector.heard(broker);
    })
}
