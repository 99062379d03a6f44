//! One connection after its handshake: messages out, cut into frames, round robin between lanes; messages in, whole.
//!
//! The writer takes one frame of each lane in turn (RULES.md R8), small urgent messages first, and writes many frames
//! with one vectored write; payloads are never copied. The reader hands every message to a [`Handler`], which must
//! return at once. It knows no message's meaning and does not reconnect: see `peer` and `server`.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use metrics::{Counter, counter};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, watch};

use super::Stream;
use super::handshake::ConnectionKind;
use super::wire::{Assembler, BODY_BYTES_MAX, HEADER_BYTES, Header, Kind, Message, WireError};
use crate::instruments::peer_labels;
use crate::types::BrokerId;

/// Bytes gathered for one write.
const WRITE_BYTES: usize = 1 << 20;
/// Pieces given to the kernel at once.
const WRITE_SLICES: usize = 256;
/// The reader's buffer: many small frames per read.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// Takes the messages of one connection, in order. Must not wait: the next group's message is behind this one.
pub(crate) trait Handler: Send + 'static {
    /// Takes one message. An error closes the connection.
    fn message(&mut self, message: Message) -> Result<(), WireError>;
}

/// The sending half of a connection, and its end. Shared.
pub(crate) struct Connection {
    /// Who is at the other end.
    pub(crate) peer: BrokerId,
    /// What it is for.
    pub(crate) kind: ConnectionKind,
    /// How metrics name both ends: brokers of other clusters have no names of their own there.
    labels: [(&'static str, String); 2],
    out: Mutex<Out>,
    wake: Notify,
    written_bytes: AtomicU64,
    closed: watch::Sender<Option<Arc<str>>>,
}

/// Bytes that may wait to be written, snapshots included; more means that the peer does not read.
const QUEUE_BYTES_MAX: usize = 1 << 30;
/// What a queued message counts for beside its bytes.
const MESSAGE_OVERHEAD_BYTES: usize = 256;

#[derive(Default)]
struct Out {
    queued_bytes: usize,
    urgent: VecDeque<Outgoing>,
    lanes: BTreeMap<u64, VecDeque<Outgoing>>,
    /// Lanes with something to send, each once, in the order they are served.
    ready: VecDeque<u64>,
    closed: bool,
}

impl Out {
    /// The next frame: of an urgent message, else of the lane whose turn it is.
    fn next_frame(&mut self) -> Option<Cut> {
        if let Some(mut urgent) = self.urgent.pop_front() {
            self.queued_bytes -= urgent.weight();
            return Some(urgent.next_frame());
        }
        loop {
            let lane = self.ready.pop_front()?;
            let Some(queue) = self.lanes.get_mut(&lane) else { continue };
            let Some(message) = queue.front_mut() else { continue };
            let (cut, weight) = (message.next_frame(), message.weight());
            if cut.last {
                queue.pop_front();
                self.queued_bytes -= weight;
            }
            if queue.is_empty() {
                self.lanes.remove(&lane);
            } else {
                self.ready.push_back(lane);
            }
            return Some(cut);
        }
    }
}

struct Outgoing {
    kind: Kind,
    lane: u64,
    pieces: VecDeque<Bytes>,
    message_bytes: u32,
    sent_bytes: u32,
}

impl Outgoing {
    fn new(kind: Kind, lane: u64, mut pieces: Vec<Bytes>) -> Self {
        pieces.retain(|piece| !piece.is_empty());
        let message_bytes = pieces.iter().map(Bytes::len).sum::<usize>() as u32;
        Self { kind, lane, pieces: pieces.into(), message_bytes, sent_bytes: 0 }
    }

    /// What it counts for in the queue.
    fn weight(&self) -> usize {
        self.message_bytes as usize + MESSAGE_OVERHEAD_BYTES
    }

    /// Cuts the next frame off.
    fn next_frame(&mut self) -> Cut {
        let mut body = Vec::new();
        let mut room = BODY_BYTES_MAX;
        while room > 0
            && let Some(mut piece) = self.pieces.pop_front()
        {
            if piece.len() > room {
                self.pieces.push_front(piece.split_off(room));
            }
            room -= piece.len();
            body.push(piece);
        }
        let first = self.sent_bytes == 0;
        self.sent_bytes += (BODY_BYTES_MAX - room) as u32;
        let Self { kind, lane, message_bytes, .. } = *self;
        Cut { kind, lane, message_bytes, first, last: self.pieces.is_empty(), body }
    }
}

/// A frame whose checksum is not computed yet: that is done outside the lock.
struct Cut {
    kind: Kind,
    lane: u64,
    message_bytes: u32,
    first: bool,
    last: bool,
    body: Vec<Bytes>,
}

impl Cut {
    fn bytes(&self) -> usize {
        HEADER_BYTES + self.body.iter().map(Bytes::len).sum::<usize>()
    }

    fn encode(self, batch: &mut VecDeque<Bytes>) {
        let header = Header::encode(self.kind, (self.first, self.last), self.lane, self.message_bytes, &self.body);
        batch.push_back(Bytes::copy_from_slice(&header));
        batch.extend(self.body);
    }
}

/// The connection is gone; the message was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("connection closed: {0}")]
pub(crate) struct Closed(pub(crate) Arc<str>);

impl Connection {
    /// Between this broker and `peer`.
    pub(crate) fn new((own, peer): (BrokerId, BrokerId), kind: ConnectionKind, is_known: bool) -> Arc<Self> {
        let mut labels = peer_labels(own, peer);
        if !is_known {
            labels[1].1 = "other".to_owned();
        }
        Arc::new(Self {
            peer,
            kind,
            labels,
            out: Mutex::default(),
            wake: Notify::new(),
            written_bytes: AtomicU64::new(0),
            closed: watch::Sender::new(None),
        })
    }

    /// Queues a message behind its lane's. The caller bounds how much it has under way.
    pub(crate) fn send(&self, kind: Kind, lane: u64, pieces: Vec<Bytes>) -> Result<(), Closed> {
        self.queue(Outgoing::new(kind, lane, pieces), |out, message| {
            let queue = out.lanes.entry(lane).or_default();
            queue.push_back(message);
            if queue.len() == 1 {
                out.ready.push_back(lane);
            }
        })
    }

    /// Queues a small message ahead of every lane.
    pub(crate) fn send_urgent(&self, kind: Kind, lane: u64, body: Bytes) -> Result<(), Closed> {
        self.queue(Outgoing::new(kind, lane, vec![body]), |out, message| out.urgent.push_back(message))
    }

    fn queue(&self, message: Outgoing, push: impl FnOnce(&mut Out, Outgoing)) -> Result<(), Closed> {
        let mut out = self.out.lock();
        if out.closed {
            drop(out);
            return Err(self.why_closed());
        }
        out.queued_bytes += message.weight();
        if out.queued_bytes > QUEUE_BYTES_MAX {
            drop(out);
            self.close(format!("the peer does not read: {QUEUE_BYTES_MAX} bytes wait"));
            return Err(self.why_closed());
        }
        push(&mut out, message);
        drop(out);
        self.wake.notify_one();
        Ok(())
    }

    /// Takes a lane's unsent messages back and tells the peer that the lane is given up, before anything else is sent.
    /// Returns whether all that was ever queued on it had been handed to the network.
    pub(crate) fn give_up(&self, lane: u64) -> bool {
        let mut out = self.out.lock();
        let unsent = out.lanes.remove(&lane);
        if let Some(unsent) = &unsent {
            out.ready.retain(|ready| *ready != lane);
            out.queued_bytes -= unsent.iter().map(Outgoing::weight).sum::<usize>();
        }
        if !out.closed {
            out.queued_bytes += MESSAGE_OVERHEAD_BYTES;
            out.urgent.push_back(Outgoing::new(Kind::Close, lane, Vec::new()));
        }
        drop(out);
        self.wake.notify_one();
        unsent.is_none()
    }

    /// Whether a lane has unsent messages.
    pub(crate) fn is_queued(&self, lane: u64) -> bool {
        self.out.lock().lanes.contains_key(&lane)
    }

    /// Bytes written to the network so far.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Closes the connection. The first reason stays.
    pub(crate) fn close(&self, why: impl Into<Arc<str>>) {
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            if first {
                *closed = Some(why.into());
            }
            first
        });
        self.out.lock().closed = true;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.borrow().is_some()
    }

    fn why_closed(&self) -> Closed {
        Closed(self.closed.borrow().clone().unwrap_or_else(|| "closed".into()))
    }

    /// Resolves once the connection is closed, with the reason.
    pub(crate) async fn closed(&self) -> Closed {
        let mut closed = self.closed.subscribe();
        // The sender lives in `self`: it cannot be gone.
        let _ = closed.wait_for(Option::is_some).await;
        self.why_closed()
    }

    /// The next frames to write, round robin; empty when there is nothing to send.
    fn take(&self) -> Vec<Cut> {
        let mut out = self.out.lock();
        let mut cuts = Vec::new();
        let mut bytes = 0;
        while bytes < WRITE_BYTES
            && let Some(cut) = out.next_frame()
        {
            bytes += cut.bytes();
            cuts.push(cut);
        }
        cuts
    }

    async fn write_loop(&self, mut stream: impl AsyncWrite + Unpin, sent: &Traffic) -> io::Result<()> {
        let mut batch = VecDeque::new();
        loop {
            let cuts = self.take();
            sent.frames.increment(cuts.len() as u64);
            cuts.into_iter().for_each(|cut| cut.encode(&mut batch));
            if batch.is_empty() {
                stream.flush().await?;
                self.wake.notified().await;
                continue;
            }
            if !stream.is_write_vectored() {
                let mut whole = BytesMut::with_capacity(batch.iter().map(Bytes::len).sum());
                batch.drain(..).for_each(|piece| whole.put(piece));
                batch.push_back(whole.freeze());
            }
            while !batch.is_empty() {
                let slices: Vec<_> = batch.iter().take(WRITE_SLICES).map(|piece| IoSlice::new(piece)).collect();
                let mut count = stream.write_vectored(&slices).await?;
                if count == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                sent.bytes.increment(count as u64);
                self.written_bytes.fetch_add(count as u64, Ordering::Relaxed);
                while let Some(front) = batch.front_mut() {
                    let step = count.min(front.len());
                    front.advance(step);
                    count -= step;
                    if !front.is_empty() {
                        break;
                    }
                    batch.pop_front();
                }
            }
        }
    }

    /// Carries messages both ways until the connection is closed from here, by the peer, by an error, or by hearing
    /// nothing for `idle_max`. The reason is in [`Self::closed`] on return.
    pub(crate) async fn run(
        &self,
        stream: Box<dyn Stream>,
        assembler: Assembler,
        handler: impl Handler,
        idle_max: Duration,
    ) {
        let (read, write) = tokio::io::split(stream);
        let sent = Traffic::new(self, "sent");
        let received = Traffic::new(self, "received");
        let why: Arc<str> = tokio::select! {
            biased;
            closed = self.closed() => closed.0,
            why = read_loop(read, assembler, handler, idle_max, &received) => why,
            error = self.write_loop(write, &sent) => match error {
                Ok(()) => "closed".into(),
                Err(error) => error.to_string().into(),
            },
        };
        tracing::debug!(peer = %self.peer, connection = self.kind.name(), %why, "connection closed");
        self.close(why);
    }
}

/// Counters of one direction of one connection.
struct Traffic {
    bytes: Counter,
    frames: Counter,
}

impl Traffic {
    fn new(connection: &Connection, direction: &'static str) -> Self {
        let [broker, peer] = connection.labels.clone();
        let labels =
            [broker, peer, ("connection", connection.kind.name().to_owned()), ("direction", direction.to_owned())];
        Self {
            bytes: counter!("pontoon_peer_bytes_total", &labels),
            frames: counter!("pontoon_peer_frames_total", &labels),
        }
    }
}

/// Reads messages until something is wrong; returns what.
async fn read_loop(
    stream: impl AsyncRead + Unpin,
    mut assembler: Assembler,
    mut handler: impl Handler,
    idle_max: Duration,
    received: &Traffic,
) -> Arc<str> {
    let mut stream = BufReader::with_capacity(READ_BUFFER_BYTES, stream);
    loop {
        let (header, body) = match tokio::time::timeout(idle_max, read_frame(&mut stream)).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(error)) => return error.to_string().into(),
            Err(_) => return format!("silent for {} ms", idle_max.as_millis()).into(),
        };
        received.bytes.increment((HEADER_BYTES + body.len()) as u64);
        received.frames.increment(1);
        if header.kind == Kind::Close {
            assembler.forget(header.lane);
        }
        let outcome = match assembler.feed(&header, body) {
            Ok(Some(message)) => handler.message(message),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, "a peer broke the protocol");
            return error.to_string().into();
        }
    }
}

/// Reads one frame and checks it. Memory is asked for only within the header's bound.
async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(Header, Bytes)> {
    let broken = |error: WireError| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let header = Header::decode(&header).map_err(broken)?;
    let need = header.body_bytes as usize;
    let mut body = BytesMut::with_capacity(need);
    while body.len() < need {
        let rest = need - body.len();
        if stream.read_buf(&mut (&mut body).limit(rest)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    header.check(&body).map_err(broken)?;
    Ok((header, body.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Arc<Connection> {
        Connection::new((BrokerId(2), BrokerId(1)), ConnectionKind::Data, true)
    }

    fn lanes(cuts: &[Cut]) -> Vec<(Kind, u64)> {
        cuts.iter().map(|cut| (cut.kind, cut.lane)).collect()
    }

    fn of(kibs: usize) -> Vec<Bytes> {
        vec![vec![0; kibs << 10].into()]
    }

    #[test]
    fn lanes_take_turns_frame_by_frame_behind_what_is_urgent() {
        let connection = connection();
        connection.send(Kind::Append, 1, of(600)).unwrap();
        connection.send(Kind::Append, 1, of(1)).unwrap();
        connection.send(Kind::Append, 2, of(300)).unwrap();
        connection.send(Kind::Append, 3, of(1)).unwrap();
        connection.send_urgent(Kind::Ping, 0, Bytes::from_static(&[0; 16])).unwrap();
        let append = |lane| (Kind::Append, lane);
        assert_eq!(
            lanes(&connection.take()),
            [(Kind::Ping, 0), append(1), append(2), append(3), append(1), append(2), append(1), append(1)]
        );
        assert!(connection.take().is_empty());
        assert_eq!(connection.out.lock().queued_bytes, 0);
    }

    #[test]
    fn frames_are_bounded_and_share_the_payload() {
        let connection = connection();
        let payload = Bytes::from(vec![7; 700 << 10]);
        connection.send(Kind::Append, 1, vec![Bytes::from_static(b"head"), payload.clone()]).unwrap();
        let cuts = connection.take();
        let ends: Vec<_> = cuts.iter().map(|cut| (cut.first, cut.last)).collect();
        assert_eq!(ends, [(true, false), (false, false), (false, true)]);
        assert!(cuts.iter().all(|cut| cut.bytes() <= HEADER_BYTES + BODY_BYTES_MAX));
        assert_eq!(cuts[0].body[1].as_ptr(), payload.as_ptr());
        let whole: Vec<u8> = cuts.iter().flat_map(|cut| cut.body.concat()).collect();
        assert_eq!(whole, [b"head", &payload[..]].concat());
    }

    #[test]
    fn a_lane_that_is_given_up_says_whether_all_of_it_was_sent() {
        let connection = connection();
        connection.send(Kind::Call, 1, of(2000)).unwrap();
        connection.send(Kind::Call, 2, of(1)).unwrap();
        connection.take();
        assert!(!connection.give_up(1));
        assert!(connection.give_up(2));
        assert_eq!(lanes(&connection.take()), [(Kind::Close, 1), (Kind::Close, 2)]);
        assert_eq!(connection.out.lock().queued_bytes, 0);
        assert!(!connection.is_queued(1));
    }

    #[test]
    fn a_peer_that_does_not_read_is_given_up() {
        let connection = connection();
        let shared = Bytes::from(vec![0; 64 << 20]);
        let sent =
            (0..32).take_while(|lane| connection.send(Kind::Append, *lane, vec![shared.clone()]).is_ok()).count();
        assert_eq!(sent, 15);
        assert!(connection.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_given_up() {
        struct Nothing;
        impl Handler for Nothing {
            fn message(&mut self, _message: Message) -> Result<(), WireError> {
                Ok(())
            }
        }
        let connection = connection();
        let (ours, _theirs) = tokio::io::duplex(64);
        connection.run(Box::new(ours), Assembler::new(0), Nothing, Duration::from_secs(10)).await;
        assert_eq!(&*connection.closed().await.0, "silent for 10000 ms");
    }
}
