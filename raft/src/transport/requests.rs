//! A connection we dialled: requests go out on lanes of their own, answers find their way back to who waits.
//!
//! It knows which lane belongs to whom, and no message's meaning but a ping's. When the connection ends, everybody who
//! waits learns of it; a request that was never handed to the network whole is told apart from one that was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Refusal;
use super::Stream;
use super::connection::{Closed, Connection, Handler};
use super::handshake::ConnectionKind;
use super::message;
use super::peer::{CALLS_MAX, IDLE_MAX};
use super::wire::{Assembler, Kind, Message, WireError};
use crate::types::BrokerId;

/// The lane of pings.
const PING_LANE: u64 = 0;

/// Tells the detector of a round trip, and how long it took.
pub(crate) type Heard = Box<dyn Fn(Duration) + Send>;

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
    /// Of this broker's connection to `peer`.
    pub(crate) fn new((own, peer): (BrokerId, BrokerId), kind: ConnectionKind) -> Arc<Self> {
        Arc::new(Self {
            connection: Connection::new((own, peer), kind, kind != ConnectionKind::Call),
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

    /// Closes the connection; whoever waits for an answer learns that none will come.
    pub(crate) fn shut(&self, why: &str) {
        self.connection.close(why);
        self.routes.lock().clear();
    }

    /// Asks for a pong. The ping's number is the time since `started`, so that its answer tells how long it took.
    pub(crate) fn ping(&self, started: Instant) {
        let mut body = BytesMut::with_capacity(16);
        body.put_u64_le(started.elapsed().as_nanos() as u64);
        body.put_u64_le(self.pong.load(Ordering::Relaxed));
        // A closed connection is noticed by its owner.
        let _ = self.connection.send_urgent(Kind::Ping, PING_LANE, body.freeze());
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
