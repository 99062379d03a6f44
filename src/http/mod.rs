//! The HTTP door: bytes to calls of [`Broker`], and back (API.md).
//!
//! It knows topics, partitions and record batches; it never knows openraft, segments or the catalog's tables. The router is
//! in [`router`], passing a request on to the leader in [`leader`], the one shape of every refusal in [`refusal`].
//!
//! A [`Server`] listens before its broker is open, so that `/healthz` and `/readyz` can tell about a long recovery, and
//! goes on while the broker hands its leaderships over, passing requests on to where they went.

mod budget;
mod deadlines;
mod fetch;
mod groups;
mod keyed;
mod leader;
pub mod metrics;
mod openapi;
mod partitioner;
mod path;
mod produce;
mod refusal;
mod request;
mod router;
mod stall;
mod tail;
mod told;
mod topics;
mod wire;

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use pontoon_raft::transport::{Listener, Stream};
use pontoon_raft::vital::vital;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;
use tracing::{Instrument, debug, error, info_span, warn};

use crate::broker::Broker;
use crate::config::{Config, Limits, host_of};
use crate::error::{Code, Error};
use budget::Budget;
use deadlines::Deadlines;
use leader::Places;
use partitioner::RoundRobin;
use refusal::Refusal;
use stall::Stall;
use wire::{Busy, Wire};

/// How long a connection to another broker may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Idle connections to other brokers are dropped before those close them (`limits.header_timeout_ms`).
const PEER_IDLE: Duration = Duration::from_secs(15);

/// How long requests may go on once the broker is closed. Then they are answered with what is known, before their connections end.
const CLOSED_GRACE: Duration = Duration::from_secs(1);

/// How many connections too many are told so at a time; the others are closed without a word.
const TURNED_AWAY_MAX: usize = 64;

/// How much of their requests is read before that.
const TURNED_AWAY_BYTES: u64 = 1 << 20;

/// How far along its life a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Answers everything, as far as the broker is open.
    Serving,
    /// Not ready any more, and waits for nothing; still answers.
    Stopping,
    /// The broker is closed.
    Closed,
}

/// What all requests share.
struct Shared {
    broker: OnceLock<Arc<Broker>>,
    stage: watch::Sender<Stage>,
    limits: Limits,
    /// Names under which this broker may be addressed, in lower case.
    hosts: Vec<String>,
    /// Room for requests' bytes.
    request_bytes: Arc<Budget>,
    /// Room for the bytes of answers to fetches and about groups; apart, so that readers cannot starve writers.
    answer_bytes: Arc<Budget>,
    /// Room for what tails have not taken yet; apart, so that those who never read hold up none but each other.
    tail_bytes: Arc<Budget>,
    /// When waits end.
    deadlines: Deadlines,
    /// Connections to other brokers' HTTP.
    peers: reqwest::Client,
    places: Places,
    metrics: metrics::Metrics,
    /// Which partition is next for records without a key.
    turns: RoundRobin,
}

impl Shared {
    /// The broker, if it is open.
    fn broker(&self) -> Result<&Arc<Broker>, Refusal> {
        if self.stage() == Stage::Closed {
            return Err(stopping().into());
        }
        self.broker.get().ok_or_else(|| (Code::NotReady, "the broker is opening its data directory".to_owned()).into())
    }

    fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Resolves when the server begins to stop.
    async fn stopping(&self) {
        // The sender lives as long as `self`: an error cannot be.
        let _ = self.stage.subscribe().wait_for(|stage| *stage != Stage::Serving).await;
    }

    /// Resolves when the broker is closed.
    async fn closed(&self) {
        let _ = self.stage.subscribe().wait_for(|stage| *stage == Stage::Closed).await;
    }

    /// Resolves when the broker has been closed for so long that no request should still be waiting for it.
    async fn over(&self) {
        self.closed().await;
        tokio::time::sleep(CLOSED_GRACE).await;
    }

    /// What the broker answers, as long as it is open: a closed one would look for others until the time is over. For questions, which
    /// change nothing.
    async fn while_open<T>(&self, asking: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::select! {
            biased;
            answer = asking => answer,
            () = self.closed() => Err(stopping()),
        }
    }

    fn request_bytes_in_flight(&self) -> usize {
        self.request_bytes.held()
    }
}

fn stopping() -> Error {
    Error::new(Code::NotReady, "the broker is stopping")
}

/// A listening HTTP server.
pub struct Server {
    shared: Arc<Shared>,
    address: String,
    advertised: String,
    closing: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Listens and answers from now on; what needs the broker is refused with `NOT_READY` until [`Self::open`].
    pub async fn bind(config: &Config) -> io::Result<Server> {
        let listener = TcpListener::bind(&config.http.listen).await?;
        let bound = listener.local_addr()?;
        let address = format!("{}:{}", bracketed(host_of(&config.http.listen)), bound.port());
        Self::start(config, Door::Tcp(listener), address)
    }

    /// [`Self::bind`] on another network: `listener` listens there already. Clients must want to be redirected to a leader
    /// (`Prefer: redirect`): what is passed on to another broker still goes over the operating system's TCP.
    pub fn serve_on(config: &Config, listener: Box<dyn Listener>) -> io::Result<Server> {
        let address = listener.local_address();
        Self::start(config, Door::Other(listener), address)
    }

    fn start(config: &Config, door: Door, address: String) -> io::Result<Server> {
        let advertised = config.http.advertised.clone().unwrap_or_else(|| address.clone());
        let mut hosts = config.http_hosts.clone();
        hosts.extend(["localhost", host_of(&address), host_of(&advertised)].map(str::to_ascii_lowercase));
        let peers = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(PEER_IDLE.min(config.limits.header_timeout / 2))
            .build()
            .map_err(io::Error::other)?;
        let budget = || Budget::new(config.limits.inflight_bytes_max);
        let shared = Arc::new(Shared {
            broker: OnceLock::new(),
            stage: watch::Sender::new(Stage::Serving),
            limits: config.limits.clone(),
            hosts,
            request_bytes: budget(),
            answer_bytes: budget(),
            tail_bytes: budget(),
            deadlines: Deadlines::start(),
            peers,
            places: Places::default(),
            metrics: metrics::Metrics::new(config.broker_id),
            turns: RoundRobin::default(),
        });
        let closing = watch::Sender::new(false);
        let failing = Arc::clone(&shared);
        let fail = move |why: &str| match failing.broker.get() {
            Some(broker) => broker.fail(why),
            None => error!(why, "nobody is let in any more"),
        };
        let accepting = accept(door, Arc::clone(&shared), closing.subscribe());
        let accepting = tokio::spawn(vital("HTTP's door", fail, accepting));
        Ok(Server { shared, address, advertised, closing, accepting })
    }

    /// `host:port` it listens on.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `host:port` that clients and other brokers are told.
    pub fn advertised(&self) -> &str {
        &self.advertised
    }

    /// From now on requests reach the broker.
    pub fn open(&self, broker: Arc<Broker>) {
        let _ = self.shared.broker.set(broker);
    }

    /// Not ready any more: load balancers look elsewhere, waiting fetches are answered. Requests still are.
    pub fn stopping(&self) {
        self.shared.stage.send_replace(Stage::Stopping);
    }

    /// Stops listening, lets requests finish for at most `grace`, closes. The broker is shut down already; whoever still waits for it is
    /// told after [`CLOSED_GRACE`] how far the request has come.
    pub async fn close(self, grace: Duration) {
        self.shared.stage.send_replace(Stage::Closed);
        self.closing.send_replace(true);
        let mut accepting = self.accepting;
        if tokio::time::timeout(grace, &mut accepting).await.is_err() {
            debug!("some connections were still busy after {grace:?}");
            accepting.abort();
            let _ = accepting.await;
        }
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// Where connections come in.
enum Door {
    /// The operating system's TCP.
    Tcp(TcpListener),
    /// Anything else: a simulation's.
    Other(Box<dyn Listener>),
}

impl Door {
    /// The next connection, and whose it is.
    async fn accept(&self) -> io::Result<(Box<dyn Stream>, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                Ok((Box::new(stream), peer.to_string()))
            }
            Self::Other(listener) => Ok((listener.accept().await?, String::new())),
        }
    }
}

/// Accepts until told to close, then waits for the connections' current requests.
async fn accept(door: Door, shared: Arc<Shared>, mut closing: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(shared.limits.connections_max.min(Semaphore::MAX_PERMITS)));
    let turning_away = Arc::new(Semaphore::new(TURNED_AWAY_MAX));
    let router = router::router(Arc::clone(&shared));
    let connections = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = door.accept() => accepted,
            _ = closing.wait_for(|closing| *closing) => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: trying at once would only spin.
                warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            if let Ok(place) = Arc::clone(&turning_away).try_acquire_owned() {
                shared.metrics.refusals.count(Code::TooManyRequests);
                tokio::spawn(turn_away(stream, shared.limits.connections_max, place));
            }
            continue;
        };
        let (io, busy) = wrapped(stream, &shared);
        let service = service(router.clone(), busy);
        let connection = builder(&shared.limits).serve_connection(io, service);
        let connection = connections.watch(connection);
        let open = shared.metrics.open_connection();
        let serving = async move {
            let _open = (place, open);
            if let Err(error) = connection.await {
                debug!(%error, "an HTTP connection ended");
            }
        };
        tokio::spawn(serving.instrument(info_span!("http", broker = %shared.metrics.broker, %peer)));
    }
    drop(door);
    connections.shutdown().await;
}

/// A connection as hyper sees it.
type Connection = TokioIo<Wire<Stall<Box<dyn Stream>>>>;

/// What lies between hyper and the socket.
fn wrapped(stream: Box<dyn Stream>, shared: &Shared) -> (Connection, Busy) {
    let budgets = [Arc::clone(&shared.answer_bytes), Arc::clone(&shared.tail_bytes)];
    let busy = Busy::default();
    let stall = Stall::new(stream, shared.limits.write_timeout, budgets);
    (
        TokioIo::new(Wire::new(stall, busy.clone(), shared.limits.header_bytes_max, shared.metrics.refusals.clone())),
        busy,
    )
}

/// The router, for one connection.
fn service(
    router: axum::Router,
    busy: Busy,
) -> impl hyper::service::Service<
    hyper::Request<hyper::body::Incoming>,
    Response = hyper::Response<wire::Answer>,
    Error = std::convert::Infallible,
    Future: Send,
> {
    let router = TowerToHyperService::new(router);
    hyper::service::service_fn(move |request| {
        busy.begin();
        let (answering, busy) = (hyper::service::Service::call(&router, request), busy.clone());
        async move { Ok(answering.await?.map(|body| busy.until_sent(body))) }
    })
}

fn builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new());
    builder.header_read_timeout(limits.header_timeout);
    // The one bounds what is buffered, the other a head that arrives in one piece.
    builder.max_buf_size(limits.header_bytes_max);
    builder.max_header_size(limits.header_bytes_max);
    builder
}

/// One connection too many gets a short word and is closed; it never becomes one of ours.
async fn turn_away(mut stream: Box<dyn Stream>, max: usize, _place: OwnedSemaphorePermit) {
    let error = Error::new(Code::TooManyRequests, format!("there are {max} connections already"));
    let telling = async {
        stream.write_all(&wire::closing_answer(&error)).await?;
        stream.shutdown().await?;
        // Closing over an unread request would take the answer back.
        tokio::io::copy(&mut (&mut stream).take(TURNED_AWAY_BYTES), &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), telling).await;
}

#[cfg(test)]
mod tests;
