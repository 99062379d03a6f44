//! turmoil's network, with every connection and every piece that is sent or arrives in the trace.
//!
//! It can be severed: a process's connections close in the order in which they were made. When turmoil ends a host, tokio drops
//! its tasks in an order that depends on a counter of the whole process (`OwnedTasks` is sharded by task id), and so would they.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use pontoon_raft::transport::net::TurmoilNetwork;
use pontoon_raft::transport::{Listener, Network, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::trace::{Digest, Trace};

/// A connection's far end; `None` once it is severed.
type Slot = Mutex<Option<Box<dyn Stream>>>;

/// A process's view of the network.
#[derive(Clone)]
pub(crate) struct TracedNetwork {
    trace: Trace,
    who: Arc<str>,
    /// What goes over it stays out of the trace.
    quiet: bool,
    /// All there ever were; `None` once the process is severed.
    connections: Arc<Mutex<Option<Vec<Weak<Slot>>>>>,
}

impl TracedNetwork {
    pub(crate) fn new(trace: Trace, who: Arc<str>) -> Self {
        Self { trace, who, quiet: false, connections: Arc::new(Mutex::new(Some(Vec::new()))) }
    }

    /// The same, without the contents of its connections in the trace: HTTP's answers carry the date.
    #[allow(dead_code)] // The simulation of the raft crate alone has no HTTP.
    pub(crate) fn quiet(self) -> Self {
        Self { quiet: true, ..self }
    }

    /// Closes every connection, in the order of their making. There will be no others.
    pub(crate) fn sever(&self) {
        let connections = self.connections.lock().take().unwrap_or_default();
        connections.iter().filter_map(Weak::upgrade).for_each(|slot| drop(slot.lock().take()));
    }

    fn wrap(&self, stream: Box<dyn Stream>) -> io::Result<Box<dyn Stream>> {
        let mut connections = self.connections.lock();
        let connections = connections.as_mut().ok_or(io::ErrorKind::NetworkDown)?;
        let slot = Arc::new(Mutex::new(Some(stream)));
        let who = format!("{} net {}", self.who, connections.len()).into();
        connections.push(Arc::downgrade(&slot));
        Ok(Box::new(TracedStream { slot, who, quiet: self.quiet, trace: self.trace.clone() }))
    }
}

impl Network for TracedNetwork {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let connected = TurmoilNetwork.connect(address).await;
            let outcome = connected.as_ref().err().map_or("made".to_owned(), ToString::to_string);
            self.trace.note(&self.who, format_args!("net connect {address} {outcome}"));
            self.wrap(connected?)
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = TurmoilNetwork.listen(address).await?;
            Ok(Box::new(TracedListener { listener, network: self.clone() }) as Box<dyn Listener>)
        })
    }
}

struct TracedListener {
    listener: Box<dyn Listener>,
    network: TracedNetwork,
}

impl Listener for TracedListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let stream = self.listener.accept().await?;
            self.network.trace.note(&self.network.who, "net accept");
            self.network.wrap(stream)
        })
    }

    fn local_address(&self) -> String {
        self.listener.local_address()
    }
}

struct TracedStream {
    slot: Arc<Slot>,
    who: Arc<str>,
    quiet: bool,
    trace: Trace,
}

impl TracedStream {
    fn poll<T>(&self, call: impl FnOnce(Pin<&mut Box<dyn Stream>>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &mut *self.slot.lock() {
            Some(stream) => call(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NetworkDown.into())),
        }
    }

    fn note(&self, op: &str, bytes: &[u8]) {
        if self.quiet {
            return;
        }
        self.trace.note(&self.who, format_args!("{op} {} {}", bytes.len(), Digest(bytes)));
    }
}

impl AsyncRead for TracedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = self.poll(|stream| stream.poll_read(cx, into));
        match &read {
            Poll::Ready(Ok(())) => self.note("read", &into.filled()[before..]),
            Poll::Ready(Err(error)) => self.trace.note(&self.who, format_args!("read !{error}")),
            Poll::Pending => {}
        }
        read
    }
}

impl AsyncWrite for TracedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.poll(|stream| stream.poll_write(cx, bytes));
        match &written {
            Poll::Ready(Ok(count)) => self.note("write", &bytes[..*count]),
            Poll::Ready(Err(error)) => self.trace.note(&self.who, format_args!("write !{error}")),
            Poll::Pending => {}
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_shutdown(cx))
    }
}
