//! What other brokers ask of this one: the messages of a connection that was let in (`accept`), handed on.
//!
//! A reader only sorts: replication requests go into their stream's mailbox, whose size the peer's credit bounds (a peer
//! that exceeds it is disconnected, so the reader never waits for a group); everything else gets a task of its own, and
//! too many of those are refused. It knows no group and no call's meaning.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::connection::{Connection, Handler};
use super::handshake::{ConnectionKind, Hello};
use super::message;
use super::peer::{CALL_BYTES_TOTAL, CALLS_MAX, IDLE_MAX, RPCS_MAX, SNAPSHOTS_MAX, WINDOW_BYTES_TOTAL};
use super::wire::{APPEND_BYTES_MAX, Assembler, Kind, Message, WireError};
use super::{
    AppendEntriesRequest, Caller, RaftService, Refusal, Shared, Stream, Target, WINDOW_BYTES, WINDOW_REQUESTS,
};

/// Replication streams on one connection.
const STREAMS_MAX: usize = 64 << 10;
/// Pongs that are remembered until a ping acknowledges them.
const PONGS_MAX: usize = 64;

/// Serves one connection to its end.
pub(super) async fn serve(shared: Arc<Shared>, stream: Box<dyn Stream>, hello: Hello) {
    let mut cluster = shared.cluster.subscribe();
    // A connection between brokers of one cluster may carry Raft; any other may only call.
    let ours = *cluster.borrow_and_update();
    let raft = ours.is_some() && ours == hello.cluster && hello.kind != ConnectionKind::Call;
    let connection = Connection::new((shared.broker, hello.broker), hello.kind, raft);
    let (held_max, is_control) = match hello.kind {
        ConnectionKind::Data => {
            (WINDOW_BYTES_TOTAL + APPEND_BYTES_MAX + SNAPSHOTS_MAX * Kind::Snapshot.bytes_max(), false)
        }
        ConnectionKind::Control => (2 * CALL_BYTES_TOTAL, true),
        ConnectionKind::Call => (Kind::Call.bytes_max(), false),
    };
    let registered =
        (hello.kind != ConnectionKind::Call).then(|| shared.register_accepted(&connection, hello.incarnation));
    if is_control {
        shared.detector.accepted(hello.broker, hello.incarnation);
        shared.redial(hello.broker);
    }
    let incoming = Incoming {
        shared: shared.clone(),
        connection: connection.clone(),
        incarnation: hello.incarnation,
        raft,
        streams: Arc::default(),
        calls: Arc::default(),
        rpcs: Arc::default(),
        snapshots: Arc::default(),
        pongs: VecDeque::new(),
    };
    let ended = async {
        tokio::select! {
            biased;
            _ = cluster.changed() => connection.close("joined a cluster"),
            () = shared.ended() => connection.close("shut down"),
        }
    };
    tokio::select! {
        biased;
        () = ended => {}
        () = connection.run(stream, Assembler::new(held_max), incoming, IDLE_MAX) => {}
    }
    if let Some(registered) = registered {
        shared.unregister_accepted(registered);
    }
    if is_control && shared.detector.accepted_closed(hello.broker) {
        shared.shut_peer(hello.broker, "refused");
    }
}

/// Takes what arrives on one accepted connection.
struct Incoming {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    /// The process that dialled.
    incarnation: u64,
    raft: bool,
    streams: Arc<Mutex<BTreeMap<u64, ServerStream>>>,
    calls: Arc<Busy>,
    rpcs: Arc<Busy>,
    snapshots: Arc<Busy>,
    /// Our last pongs: number, and when it was sent.
    pongs: VecDeque<(u64, Instant)>,
}

/// How much is being worked on.
#[derive(Default)]
struct Busy {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

/// A share of [`Busy`], given back when dropped.
struct Share(Arc<Busy>, usize);

impl Busy {
    /// Takes a share if there is room for it.
    fn take(self: &Arc<Self>, bytes: usize, count_max: usize, bytes_max: usize) -> Option<Share> {
        let share = Share(self.clone(), bytes);
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        // The first is always let in, however long.
        (count == 0 || (count < count_max && held + bytes <= bytes_max)).then_some(share)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        self.0.bytes.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// One replication stream's mailbox.
struct ServerStream {
    /// Unbounded; the credit is counted in `unanswered`.
    mailbox: mpsc::UnboundedSender<AppendEntriesRequest>,
    unanswered: Arc<Mutex<Unanswered>>,
    /// Set when the stream is given up: what is still in the mailbox is not handed out any more, so that it does not
    /// mix with the requests of the stream that follows.
    ended: Arc<AtomicBool>,
    task: AbortHandle,
}

impl ServerStream {
    fn end(self) {
        self.ended.store(true, Ordering::Release);
        self.task.abort();
    }
}

#[derive(Default)]
struct Unanswered {
    sizes: VecDeque<usize>,
    bytes: usize,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        std::mem::take(&mut *self.streams.lock()).into_values().for_each(ServerStream::end);
    }
}

impl Handler for Incoming {
    fn message(&mut self, message: Message) -> Result<(), WireError> {
        let allowed = match self.connection.kind {
            ConnectionKind::Control => {
                !matches!(message.kind, Kind::Open | Kind::Append | Kind::Snapshot | Kind::Frames)
            }
            ConnectionKind::Data => {
                matches!(
                    message.kind,
                    Kind::Ping | Kind::Open | Kind::Append | Kind::Close | Kind::Snapshot | Kind::Frames
                )
            }
            ConnectionKind::Call => matches!(message.kind, Kind::Ping | Kind::Call | Kind::Close),
        };
        if !allowed {
            return Err(WireError::Unknown { field: "kind on this connection", value: message.kind as u64 });
        }
        let Message { kind, lane, body } = message;
        match kind {
            Kind::Ping => self.ping(body),
            Kind::Open => self.open(lane, message::decode_open(&body)?),
            Kind::Append => self.append(lane, body),
            Kind::Close => {
                self.close_stream(lane);
                Ok(())
            }
            Kind::Call => {
                let from = Caller { broker: self.connection.peer, incarnation: self.incarnation };
                let service = self.shared.service.clone();
                let share = self.calls.take(body.len(), CALLS_MAX, CALL_BYTES_TOTAL);
                self.answer(lane, share, async move { service.call(from, body).await.map_err(Refusal::Unable) });
                Ok(())
            }
            Kind::Report
            | Kind::Heartbeat
            | Kind::Vote
            | Kind::PreVote
            | Kind::Transfer
            | Kind::Snapshot
            | Kind::Frames
            | Kind::Fitness => self.raft(kind, lane, body),
            Kind::Pong | Kind::Answer | Kind::Appended => {
                Err(WireError::Unknown { field: "request kind", value: kind as u64 })
            }
        }
    }
}

impl Incoming {
    fn service(&self) -> Option<Arc<dyn RaftService>> {
        if self.raft { self.shared.raft.lock().clone() } else { None }
    }

    /// Answers a ping; a ping that acknowledges one of our answers proves that both directions work.
    fn ping(&mut self, mut body: Bytes) -> Result<(), WireError> {
        if body.len() != 16 {
            return Err(WireError::Body("ping", format!("{} bytes", body.len())));
        }
        let (number, acknowledged) = (body.get_u64_le(), body.get_u64_le());
        if self.connection.kind == ConnectionKind::Control {
            let silence_max = self.shared.config.silence_max;
            let fresh = |(pong, sent): &(u64, Instant)| *pong == acknowledged && sent.elapsed() < silence_max;
            if self.pongs.iter().any(fresh) {
                self.shared.detector.heard(self.connection.peer);
            }
            self.pongs.push_back((number, Instant::now()));
            if self.pongs.len() > PONGS_MAX {
                self.pongs.pop_front();
            }
        }
        // A closed connection is noticed by its owner.
        let _ = self.connection.send_urgent(Kind::Pong, 0, Bytes::copy_from_slice(&number.to_le_bytes()));
        Ok(())
    }

    /// Works on a request in a task of its own and answers it; refuses it if there is no room.
    fn answer(
        &self,
        lane: u64,
        share: Option<Share>,
        work: impl Future<Output = Result<Bytes, Refusal>> + Send + 'static,
    ) {
        let connection = self.connection.clone();
        let reply = move |answer| {
            // A closed connection: the asker knows.
            let _ = connection.send(Kind::Answer, lane, message::encode_answer(answer));
        };
        let Some(share) = share else { return reply(Err(Refusal::Unable("too many requests at once".into()))) };
        tokio::spawn(async move {
            reply(work.await);
            drop(share);
        });
    }

    fn raft(&mut self, kind: Kind, lane: u64, body: Bytes) -> Result<(), WireError> {
        let from = self.connection.peer;
        let Some(service) = self.service() else {
            self.answer(lane, self.rpcs.take(0, RPCS_MAX, usize::MAX), async { Err(Refusal::NotHere) });
            return Ok(());
        };
        let share = match kind {
            Kind::Report => self.calls.take(body.len(), CALLS_MAX, CALL_BYTES_TOTAL),
            // Each answer holds up to FRAMES_BYTES_MAX.
            Kind::Frames => self.calls.take(0, CALLS_MAX, CALL_BYTES_TOTAL),
            Kind::Snapshot => self.snapshots.take(0, SNAPSHOTS_MAX, usize::MAX),
            _ => self.rpcs.take(0, RPCS_MAX, usize::MAX),
        };
        let work: BoxFuture<'static, Result<Bytes, Refusal>> = match kind {
            Kind::Report => Box::pin(async move { service.report(from, body).await.map(|()| Bytes::new()) }),
            Kind::Frames => {
                let request = message::decode_frames(&body)?;
                Box::pin(async move { service.frames(from, request).await })
            }
            Kind::Fitness => {
                let to = message::decode_fitness(&body)?;
                Box::pin(async move { service.may_lead(from, to).await.map(message::encode_fitness_answer) })
            }
            Kind::Heartbeat => {
                let (to, request) = message::decode_heartbeat(&body)?;
                let prev = request.prev_log_id;
                Box::pin(async move {
                    let response = service.heartbeat(from, to, request).await?;
                    Ok(message::encode_heartbeat_answer(response, prev))
                })
            }
            Kind::Vote | Kind::PreVote => {
                let (to, request) = message::decode_vote(&body)?;
                let vote = match kind {
                    Kind::Vote => service.vote(from, to, request),
                    _ => service.pre_vote(from, to, request),
                };
                Box::pin(async move { Ok(message::encode_vote_answer(&vote.await?)) })
            }
            Kind::Transfer => {
                let (to, request) = message::decode_transfer(&body)?;
                Box::pin(async move {
                    Ok(message::encode_transfer_answer(service.transfer_leader(from, to, request).await?))
                })
            }
            _ => {
                let (to, vote, snapshot) = message::decode_snapshot(body)?;
                Box::pin(async move {
                    Ok(message::encode_snapshot_answer(&service.install_snapshot(from, to, vote, snapshot).await?))
                })
            }
        };
        self.answer(lane, share, work);
        Ok(())
    }

    fn open(&mut self, lane: u64, to: Target) -> Result<(), WireError> {
        let mut streams = self.streams.lock();
        if streams.len() >= STREAMS_MAX {
            return Err(WireError::Credit(format!("{STREAMS_MAX} replication streams")));
        }
        if streams.contains_key(&lane) {
            return Err(WireError::Pieces(lane, "opened twice"));
        }
        let (mailbox, mut requests) = mpsc::unbounded_channel();
        let ended = Arc::new(AtomicBool::new(false));
        let no_more = ended.clone();
        let requests = futures_util::stream::poll_fn(move |cx| match no_more.load(Ordering::Acquire) {
            true => Poll::Ready(None),
            false => requests.poll_recv(cx),
        });
        let unanswered = Arc::new(Mutex::new(Unanswered::default()));
        let answers = match self.service() {
            Some(service) => service.append_stream(self.connection.peer, to, requests.boxed()),
            None => futures_util::stream::iter([Err(Refusal::NotHere)]).boxed(),
        };
        let task = tokio::spawn(answer_stream(
            self.connection.clone(),
            lane,
            answers,
            unanswered.clone(),
            Arc::downgrade(&self.streams),
        ));
        streams.insert(lane, ServerStream { mailbox, unanswered, ended, task: task.abort_handle() });
        Ok(())
    }

    fn append(&mut self, lane: u64, body: Bytes) -> Result<(), WireError> {
        // A stream that ended here while the request was on its way is not there any more.
        let found = |stream: &ServerStream| (stream.mailbox.clone(), stream.unanswered.clone());
        let Some((mailbox, unanswered)) = self.streams.lock().get(&lane).map(found) else { return Ok(()) };
        {
            let mut unanswered = unanswered.lock();
            if unanswered.sizes.len() >= WINDOW_REQUESTS || unanswered.bytes >= WINDOW_BYTES {
                let (requests, bytes) = (unanswered.sizes.len(), unanswered.bytes);
                return Err(WireError::Credit(format!("{requests} requests, {bytes} bytes unanswered on one stream")));
            }
            unanswered.sizes.push_back(body.len());
            unanswered.bytes += body.len();
        }
        // The other end is gone only when the stream has just ended.
        let _ = mailbox.send(message::decode_append(body)?);
        Ok(())
    }

    fn close_stream(&mut self, lane: u64) {
        if let Some(stream) = self.streams.lock().remove(&lane) {
            stream.end();
        }
    }
}

/// Sends the answers of one replication stream back, until it ends.
async fn answer_stream(
    connection: Arc<Connection>,
    lane: u64,
    mut answers: futures_util::stream::BoxStream<'static, Result<super::AppendResult, Refusal>>,
    unanswered: Arc<Mutex<Unanswered>>,
    streams: std::sync::Weak<Mutex<BTreeMap<u64, ServerStream>>>,
) {
    while let Some(answer) = answers.next().await {
        let refused = answer.is_err();
        {
            let mut unanswered = unanswered.lock();
            match unanswered.sizes.pop_front() {
                Some(size) => unanswered.bytes -= size,
                // A refusal may come before the first request has; no other answer may.
                None if refused => {}
                None => break,
            }
        }
        if connection.send(Kind::Appended, lane, vec![message::encode_appended(answer)]).is_err() || refused {
            break;
        }
    }
    drop(answers);
    let here = streams.upgrade().and_then(|streams| streams.lock().remove(&lane));
    if let Some(stream) = here {
        stream.ended.store(true, Ordering::Release);
    }
    // Behind the last answer, on the same lane.
    let _ = connection.send(Kind::Close, lane, Vec::new());
}
