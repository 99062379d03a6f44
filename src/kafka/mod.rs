//! The Kafka door: Kafka's wire protocol to calls of [`Broker`] and its partitions, and back.
//!
//! It knows messages, topics, partitions and record batches; it never knows openraft, segments or the catalog's tables, and
//! never passes a request on: Kafka's clients find the leader themselves.
//!
//! - [`wire`]: primitive types, bounded. [`messages`]: the APIs, field by field. `error_code`: errors as numbers.
//! - `connection`: limits, the order of answers. `frames`: bytes off a socket. `writing`: bytes onto one. `budget`: room for bytes.
//!   `dispatch`: from a request to its handler.
//! - `produce`, `fetch`, `offsets`, `metadata`, `topics`, `configs`, `groups`, `group_offsets`: the handlers. `group_answers`: room for what
//!   the last two tell.

mod budget;
mod configs;
mod connection;
mod dispatch;
mod error_code;
mod fetch;
mod frames;
mod group_answers;
mod group_offsets;
mod groups;
pub mod messages;
mod metadata;
pub mod metrics;
mod offsets;
mod produce;
mod promises;
mod topics;
pub mod wire;
mod writing;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pontoon_raft::vital::vital;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::{Instrument, debug, info_span, warn};

use self::budget::Budget;
use self::frames::FrameRoom;
use crate::broker::Broker;
use crate::config::{Config, KafkaConfig, Limits, host_of};

pub use error_code::ErrorCode;

/// Reads a frame as a connection does, and answers nothing: for whoever throws bytes at it. Returns how many bytes of memory it takes
/// beside the frame; `Err`: why the connection would be closed.
pub fn understand(frame: bytes::Bytes) -> Result<usize, String> {
    let incoming = dispatch::parse(frame);
    let weight = incoming.weight();
    match incoming {
        dispatch::Incoming::Malformed(why) => Err(why),
        _ => Ok(weight),
    }
}

/// How often it is said that there are too many connections.
const TOO_MANY_INTERVAL: Duration = Duration::from_secs(1);

/// How far along its life a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Bound; connections wait until the broker is there.
    Bound,
    /// Answers.
    Serving,
    /// Answers, and waits for nothing.
    Stopping,
    /// Closes every connection after the request it is at.
    Closed,
}

/// What all connections share.
struct Door {
    broker: Arc<Broker>,
    config: KafkaConfig,
    limits: Limits,
    stage: watch::Receiver<Stage>,
    /// Room for requests' bytes.
    frames: FrameRoom,
    /// Room for what requests take in memory beside their frames.
    decoded_bytes: Budget,
    /// Room for the bytes of answers that may be large, to fetches and about groups; apart, so that readers cannot starve writers.
    answer_bytes: Budget,
    metrics: metrics::Metrics,
}

impl Door {
    fn new(broker: Arc<Broker>, config: KafkaConfig, limits: Limits, stage: watch::Receiver<Stage>) -> Self {
        let bytes = limits.inflight_bytes_max;
        let frames = FrameRoom::new(bytes, config.request_bytes_max.min(bytes));
        Self {
            metrics: metrics::Metrics::new(broker.id()),
            broker,
            config,
            limits,
            stage,
            frames,
            decoded_bytes: Budget::new(bytes),
            answer_bytes: Budget::new(bytes),
        }
    }

    /// The largest frame.
    fn request_bytes_max(&self) -> usize {
        self.config.request_bytes_max.min(self.limits.inflight_bytes_max)
    }

    /// What the frames of one connection may hold.
    fn connection_bytes_max(&self) -> usize {
        FrameRoom::of_one(self.limits.inflight_bytes_max)
    }

    /// Resolves when waiting requests should be answered with what there is.
    async fn stopping(&self) {
        let _ = self.stage.clone().wait_for(|stage| *stage >= Stage::Stopping).await;
    }

    /// Resolves when connections should end.
    async fn closed(&self) {
        let _ = self.stage.clone().wait_for(|stage| *stage == Stage::Closed).await;
    }
}

impl PartialOrd for Stage {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        (*self as u8).partial_cmp(&(*other as u8))
    }
}

/// A listening Kafka server.
pub struct Server {
    listener: parking_lot::Mutex<Option<TcpListener>>,
    address: String,
    advertised: String,
    stage: watch::Sender<Stage>,
    config: KafkaConfig,
    limits: Limits,
    accepting: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

impl Server {
    /// Takes the port. Who connects waits until [`Self::open`].
    pub async fn bind(config: &Config) -> io::Result<Server> {
        let listen = &config.kafka.listener.listen;
        let listener = TcpListener::bind(listen).await?;
        let host = host_of(listen);
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let address = format!("{host}:{}", listener.local_addr()?.port());
        let advertised = config.kafka.listener.advertised.clone().unwrap_or_else(|| address.clone());
        Ok(Server {
            listener: Some(listener).into(),
            address,
            advertised,
            stage: watch::Sender::new(Stage::Bound),
            config: config.kafka.clone(),
            limits: config.limits.clone(),
            accepting: None.into(),
        })
    }

    /// `host:port` it listens on.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `host:port` that clients are told.
    pub fn advertised(&self) -> &str {
        &self.advertised
    }

    /// From now on requests are answered, by this broker. A second call does nothing.
    pub fn open(&self, broker: Arc<Broker>) {
        let Some(listener) = self.listener.lock().take() else { return };
        let door = Door::new(broker, self.config.clone(), self.limits.clone(), self.stage.subscribe());
        self.stage.send_replace(Stage::Serving);
        let broker = Arc::clone(&door.broker);
        let accepting = vital("Kafka's door", move |why| broker.fail(why), accept(listener, Arc::new(door)));
        *self.accepting.lock() = Some(tokio::spawn(accepting));
    }

    /// Waiting fetches are answered from now on; the broker is about to hand over.
    pub fn stopping(&self) {
        self.stage.send_replace(Stage::Stopping);
    }

    /// Stops listening, lets requests finish for at most `grace`, closes. The broker is shut down already.
    pub async fn close(&self, grace: Duration) {
        self.stage.send_replace(Stage::Closed);
        let Some(mut accepting) = self.accepting.lock().take() else { return };
        if tokio::time::timeout(grace, &mut accepting).await.is_err() {
            debug!("some Kafka connections were still busy after {grace:?}");
            accepting.abort();
            let _ = accepting.await;
        }
    }
}

/// Accepts until told to close, then waits for the connections' current requests.
async fn accept(listener: TcpListener, door: Arc<Door>) {
    let room = Arc::new(Semaphore::new(door.limits.connections_max.min(Semaphore::MAX_PERMITS)));
    let mut connections = JoinSet::new();
    // When somebody was last told that there are too many, and how many were closed since.
    let (mut told, mut closed) = (None::<Instant>, 0u64);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = door.closed() => break,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: trying at once would only spin.
                warn!(%error, "cannot accept a Kafka connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            closed += 1;
            if told.is_none_or(|told| told.elapsed() >= TOO_MANY_INTERVAL) {
                let max = door.limits.connections_max;
                warn!(%peer, max, closed, "a Kafka connection too many is closed");
                (told, closed) = (Some(Instant::now()), 0);
            }
            continue;
        };
        let _ = stream.set_nodelay(true);
        let door = Arc::clone(&door);
        let span = info_span!("kafka", broker = %door.broker.id(), %peer);
        let serving = async move {
            let _open = (place, door.metrics.open_connection());
            connection::serve(stream, peer, door).await;
        };
        connections.spawn(serving.instrument(span));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests;
