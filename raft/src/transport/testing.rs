//! A network in memory, with faults: what the tests of transport and groups run on.
//!
//! Hosts have names; each broker dials and listens through its own [`MemoryNetwork::host`], so that a fault has a
//! direction. A cut link loses nothing, like TCP: bytes and closes wait until it is healed. It knows no protocol.
//! With `start_paused` tokio time a test on it is deterministic and takes no time.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};

use super::{Listener, Network, Stream};

/// Bytes one direction of a connection buffers on each of its two hops.
const PIPE_BYTES: usize = 128 << 10;
/// Connections that wait to be accepted by one listener.
const BACKLOG: usize = 128;

/// The wires between named hosts. Shared.
#[derive(Clone, Default)]
pub struct MemoryNetwork(Arc<Hub>);

#[derive(Default)]
struct Hub {
    state: Mutex<State>,
    /// Told after every change of a link.
    links_changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    listeners: BTreeMap<String, ListenerEntry>,
    refusing: BTreeMap<String, bool>,
    links: BTreeMap<(String, String), Link>,
    connections: BTreeMap<u64, Connection>,
    attempts: BTreeMap<(String, String), u64>,
    next_connection: u64,
    next_port: u16,
}

struct ListenerEntry {
    host: String,
    accepted: mpsc::Sender<Box<dyn Stream>>,
}

#[derive(Clone, Copy, Default)]
struct Link {
    cut: bool,
    delay: Duration,
}

struct Connection {
    dialer: String,
    listener: String,
    close: watch::Sender<bool>,
}

impl MemoryNetwork {
    /// Wires without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The network as `name` sees it. It may listen on any `host:port`; port 0 is replaced by a free one.
    pub fn host(&self, name: &str) -> Arc<dyn Network> {
        Arc::new(MemoryHost { name: name.to_owned(), hub: self.0.clone() })
    }

    /// From now on nothing that `from` sends reaches `to`; what is sent waits for [`Self::heal`].
    pub fn cut(&self, from: &str, to: &str) {
        self.0.change_link(from, to, |link| link.cut = true);
    }

    /// Cuts both directions.
    pub fn partition(&self, one: &str, other: &str) {
        self.cut(one, other);
        self.cut(other, one);
    }

    /// Ends [`Self::cut`] in this direction.
    pub fn heal(&self, from: &str, to: &str) {
        self.0.change_link(from, to, |link| link.cut = false);
    }

    /// Ends every cut, delay and refusal.
    pub fn heal_all(&self) {
        let mut state = self.0.state.lock();
        state.links.clear();
        state.refusing.clear();
        drop(state);
        self.0.links_changed.send_replace(());
    }

    /// What `from` sends arrives at `to` this much later.
    pub fn delay(&self, from: &str, to: &str, delay: Duration) {
        self.0.change_link(from, to, |link| link.delay = delay);
    }

    /// From now on new connections to `host` are refused, as if nobody listened. Existing ones stay.
    pub fn refuse(&self, host: &str) {
        self.0.state.lock().refusing.insert(host.to_owned(), true);
    }

    /// Ends [`Self::refuse`].
    pub fn accept(&self, host: &str) {
        self.0.state.lock().refusing.remove(host);
    }

    /// Closes every connection between two hosts, whoever dialled. New ones may be made at once.
    pub fn close(&self, one: &str, other: &str) {
        self.0.close_where(|c| (c.dialer == one && c.listener == other) || (c.dialer == other && c.listener == one));
    }

    /// What a `kill -9` of `host` looks like from outside: its connections close, its listeners are gone.
    pub fn crash(&self, host: &str) {
        self.0.state.lock().listeners.retain(|_, listener| listener.host != host);
        self.0.close_where(|c| c.dialer == host || c.listener == host);
    }

    /// How often `from` has tried to connect to `to`.
    pub fn connect_attempts(&self, from: &str, to: &str) -> u64 {
        self.0.state.lock().attempts.get(&(from.to_owned(), to.to_owned())).copied().unwrap_or(0)
    }
}

impl Hub {
    fn change_link(&self, from: &str, to: &str, change: impl FnOnce(&mut Link)) {
        change(self.state.lock().links.entry((from.to_owned(), to.to_owned())).or_default());
        self.links_changed.send_replace(());
    }

    fn link(&self, from: &str, to: &str) -> Link {
        self.state.lock().links.get(&(from.to_owned(), to.to_owned())).copied().unwrap_or_default()
    }

    fn close_where(&self, which: impl Fn(&Connection) -> bool) {
        let mut state = self.state.lock();
        state.connections.retain(|_, connection| !connection.close.is_closed());
        for connection in state.connections.values().filter(|c| which(c)) {
            connection.close.send_replace(true);
        }
    }

    /// Waits until the link carries something from `from` to `to`.
    async fn carried(&self, from: &str, to: &str) {
        let mut changed = self.links_changed.subscribe();
        loop {
            let link = self.link(from, to);
            if !link.cut {
                return tokio::time::sleep(link.delay).await;
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Registers a connection and returns the listener's queue and the far host, or why there is none.
    fn dial(&self, from: &str, address: &str) -> io::Result<(String, mpsc::Sender<Box<dyn Stream>>)> {
        let mut state = self.state.lock();
        let host = match state.listeners.get(address) {
            Some(listener) => listener.host.clone(),
            None => address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned(),
        };
        *state.attempts.entry((from.to_owned(), host.clone())).or_default() += 1;
        let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, format!("nobody listens on {address}"));
        if state.refusing.contains_key(&host) {
            return Err(refused());
        }
        let listener = state.listeners.get(address).ok_or_else(refused)?;
        Ok((host, listener.accepted.clone()))
    }
}

/// One host's view of a [`MemoryNetwork`].
struct MemoryHost {
    name: String,
    hub: Arc<Hub>,
}

impl Network for MemoryHost {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            // A refusal is an answer too: it needs both directions.
            let there = match self.hub.dial(&self.name, address) {
                Ok((host, _)) => host,
                Err(_) => address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned(),
            };
            self.hub.carried(&self.name, &there).await;
            self.hub.carried(&there, &self.name).await;
            let accepted = {
                let state = self.hub.state.lock();
                let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, format!("{address} refused"));
                if state.refusing.contains_key(&there) {
                    return Err(refused());
                }
                state.listeners.get(address).ok_or_else(refused)?.accepted.clone()
            };
            let (ours, ours_net) = tokio::io::duplex(PIPE_BYTES);
            let (theirs, theirs_net) = tokio::io::duplex(PIPE_BYTES);
            let close = watch::Sender::new(false);
            spawn_pumps(&self.hub, (&self.name, ours_net), (&there, theirs_net), &close);
            {
                let mut state = self.hub.state.lock();
                let id = state.next_connection;
                state.next_connection += 1;
                state.connections.insert(id, Connection { dialer: self.name.clone(), listener: there, close });
            }
            let refused = |_| io::Error::new(io::ErrorKind::ConnectionRefused, format!("{address} stopped listening"));
            accepted.send(Box::new(theirs)).await.map_err(refused)?;
            Ok(Box::new(ours) as Box<dyn Stream>)
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let mut state = self.hub.state.lock();
            let address = match address.rsplit_once(':') {
                Some((host, "0")) => {
                    state.next_port += 1;
                    format!("{host}:{}", state.next_port)
                }
                _ => address.to_owned(),
            };
            if state.listeners.get(&address).is_some_and(|l| !l.accepted.is_closed()) {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{address} is taken")));
            }
            let (accepted, incoming) = mpsc::channel(BACKLOG);
            state.listeners.insert(address.clone(), ListenerEntry { host: self.name.clone(), accepted });
            Ok(Box::new(MemoryListener { address, incoming: tokio::sync::Mutex::new(incoming) }) as Box<dyn Listener>)
        })
    }
}

struct MemoryListener {
    address: String,
    incoming: tokio::sync::Mutex<mpsc::Receiver<Box<dyn Stream>>>,
}

impl Listener for MemoryListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let gone = || io::Error::other("the host crashed");
            self.incoming.lock().await.recv().await.ok_or_else(gone)
        })
    }

    fn local_address(&self) -> String {
        self.address.clone()
    }
}

fn spawn_pumps(hub: &Arc<Hub>, one: (&str, DuplexStream), other: (&str, DuplexStream), close: &watch::Sender<bool>) {
    let (one_read, one_write) = tokio::io::split(one.1);
    let (other_read, other_write) = tokio::io::split(other.1);
    let there = Direction { hub: hub.clone(), from: one.0.to_owned(), to: other.0.to_owned() };
    let back = Direction { hub: hub.clone(), from: other.0.to_owned(), to: one.0.to_owned() };
    tokio::spawn(there.pump(one_read, other_write, close.subscribe()));
    tokio::spawn(back.pump(other_read, one_write, close.subscribe()));
}

struct Direction {
    hub: Arc<Hub>,
    from: String,
    to: String,
}

impl Direction {
    /// Carries bytes, and at last the close, as the link allows.
    async fn pump(
        self,
        mut read: ReadHalf<DuplexStream>,
        mut write: WriteHalf<DuplexStream>,
        mut closed: watch::Receiver<bool>,
    ) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => break,
                count = read.read(&mut buffer) => count.unwrap_or(0),
            };
            if count == 0 {
                break;
            }
            self.hub.carried(&self.from, &self.to).await;
            tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => break,
                written = write.write_all(&buffer[..count]) => if written.is_err() { break },
            }
        }
        drop(read);
        self.hub.carried(&self.from, &self.to).await;
        // The far end may be gone already; then there is nobody to tell.
        let _ = write.shutdown().await;
    }
}

/// Reads bytes as every message a peer may send, the way the connections do; says how many kinds they could be. For fuzzing.
pub fn read_as_messages(bytes: &[u8]) -> usize {
    use super::message as m;
    let whole = || bytes::Bytes::copy_from_slice(bytes);
    let header = bytes.first_chunk().map(super::wire::Header::decode);
    let kinds = [
        header.is_some_and(|header| header.is_ok()),
        m::decode_open(bytes).is_ok(),
        m::decode_append(whole()).is_ok(),
        m::decode_appended(bytes, None, None).is_ok(),
        m::decode_heartbeat(bytes).is_ok(),
        m::decode_vote(bytes).is_ok(),
        m::decode_vote_answer(bytes).is_ok(),
        m::decode_transfer(bytes).is_ok(),
        m::decode_transfer_answer(bytes).is_ok(),
        m::decode_snapshot(whole()).is_ok(),
        m::decode_snapshot_answer(bytes).is_ok(),
        m::decode_answer(whole()).is_ok(),
    ];
    kinds.into_iter().filter(|sound| *sound).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair(network: &MemoryNetwork) -> (Box<dyn Stream>, Box<dyn Stream>) {
        let listener = network.host("b").listen("b:1").await.unwrap();
        let dialer = network.host("a");
        let (ours, theirs) = tokio::join!(dialer.connect("b:1"), listener.accept());
        (ours.unwrap(), theirs.unwrap())
    }

    async fn silent(stream: &mut Box<dyn Stream>) -> bool {
        tokio::time::timeout(Duration::from_secs(60), stream.read_u8()).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_in_one_direction_leaves_the_other_and_loses_nothing() {
        let network = MemoryNetwork::new();
        let (mut a, mut b) = pair(&network).await;
        network.cut("a", "b");
        a.write_u8(1).await.unwrap();
        assert!(silent(&mut b).await);
        b.write_u8(2).await.unwrap();
        assert_eq!(a.read_u8().await.unwrap(), 2);
        network.heal("a", "b");
        assert_eq!(b.read_u8().await.unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_closes_connections_and_refuses_new_ones() {
        let network = MemoryNetwork::new();
        let (mut a, _b) = pair(&network).await;
        network.crash("b");
        assert!(a.read_u8().await.is_err());
        let refused = network.host("a").connect("b:1").await.map(|_| ()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(network.connect_attempts("a", "b"), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_behind_a_cut_is_not_seen() {
        let network = MemoryNetwork::new();
        let (mut a, _b) = pair(&network).await;
        network.cut("b", "a");
        network.crash("b");
        assert!(silent(&mut a).await);
        let dialer = network.host("a");
        assert!(tokio::time::timeout(Duration::from_secs(60), dialer.connect("b:1")).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn delayed_bytes_arrive_late_and_in_order() {
        let network = MemoryNetwork::new();
        let (mut a, mut b) = pair(&network).await;
        network.delay("a", "b", Duration::from_millis(80));
        let start = tokio::time::Instant::now();
        a.write_all(b"12345").await.unwrap();
        let mut got = [0; 5];
        b.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"12345");
        assert!(start.elapsed() >= Duration::from_millis(80));
    }
}
