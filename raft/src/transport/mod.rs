//! Broker to broker: two connections to each peer, control and data (RULES.md R8), and the failure detector.
//!
//!
//! It carries openraft's messages for every group, and calls of the layer above ([`PeerService`]) whose meaning it does
//! not know.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::types::{BrokerId, ClusterId};

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

/// Answers the layer above's calls from other brokers.
pub trait PeerService: Send + Sync + 'static {
    /// Answers one call. `body` is at most [`CALL_BYTES_MAX`]; its meaning is the caller's.
    fn call(&self, from: BrokerId, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>>;
}

/// Longest body of a call or its answer: 16 MiB.
pub const CALL_BYTES_MAX: usize = 16 << 20;

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
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
    /// Closed its connections and refuses new ones, or was silent for too long.
    Dead,
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
pub struct Transport {}

#[allow(unused_variables)]
impl Transport {
    /// Starts listening and detecting. `listen` may have port 0.
    pub async fn start(
        network: Arc<dyn Network>,
        listen: &str,
        identity: TransportIdentity,
        config: crate::config::RaftConfig,
        service: Arc<dyn PeerService>,
    ) -> std::io::Result<Transport> {
        unimplemented!()
    }

    /// Where it listens.
    pub fn local_address(&self) -> String {
        unimplemented!()
    }

    /// From now on part of this cluster: handshakes check it.
    pub fn set_cluster(&self, cluster: ClusterId) {
        unimplemented!()
    }

    /// Where a peer is reached from now on; connections to another address are dropped. The detector follows every
    /// broker that has an address.
    pub fn set_peer(&self, broker: BrokerId, address: String) {
        unimplemented!()
    }

    /// Forgets a peer.
    pub fn remove_peer(&self, broker: BrokerId) {
        unimplemented!()
    }

    /// Calls the peer's [`PeerService`].
    pub async fn call(&self, to: BrokerId, body: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        unimplemented!()
    }

    /// Calls whoever listens at `address` (bootstrap: its broker id is not known to be true yet).
    pub async fn call_address(&self, address: &str, body: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        unimplemented!()
    }

    /// What the detector says of a peer.
    pub fn liveness(&self, broker: BrokerId) -> Liveness {
        unimplemented!()
    }

    /// Changes of liveness, in order.
    pub fn watch_liveness(&self) -> tokio::sync::broadcast::Receiver<(BrokerId, Liveness)> {
        unimplemented!()
    }

    /// Stops listening and closes every connection.
    pub async fn shutdown(&self) {
        unimplemented!()
    }
}
