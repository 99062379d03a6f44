//! One connection: frames in, answers out, in the order of the requests.
//!
//! - What it holds is counted against the broker's budgets; a frame that stays half (see `frames`), an answer that is not read and a
//!   connection that asks for nothing time out. So does, much sooner, who holds room that others wait for and makes no use of it.
//! - Kafka promises that requests of one connection take effect one after the other. Here each waits for those before it,
//!   but a Produce behind nothing but Produces: it begins once their batches are proposed, so that its own come behind them, in
//!   order, and one fsync may serve all.
//! - A request that is not understood, or has no answer, closes its connection, and only that, with a line in the log.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, OptionFuture};
use futures_util::stream::FuturesOrdered;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

use super::Door;
use super::budget::PATIENCE;
use super::dispatch::{self, Answer, Done, Handled, Incoming};
use super::frames::{Ahead, Frame, FrameLimits, RATE_MIN, read_frame};
use super::messages::Response;

/// Frames that are read ahead of the one that waits for its turn.
const READ_AHEAD: usize = 1;

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum End {
    /// The client has closed it, or the broker stops.
    Closed,
    /// Something between the machines, or a client that does not read.
    Io(io::Error),
    /// What came is not Kafka's protocol as we speak it.
    Malformed(String),
    /// A request that cannot be answered, not even by an error.
    Unanswered(String),
    /// It held room that others waited for.
    Stalled(String),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Closed } else { Self::Io(error) }
    }
}

/// A request that waits for its turn, with its shares of the budgets.
struct Next {
    incoming: Incoming,
    _shares: [OwnedSemaphorePermit; 2],
}

/// Who asks, and whether they are still there.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) peer: SocketAddr,
    gone: watch::Receiver<bool>,
}

impl Client {
    /// Resolves when the client has closed the connection: nobody will read the answer.
    pub(super) async fn gone(&self) {
        let _ = self.gone.clone().wait_for(|gone| *gone).await;
    }

    /// Does what may take long, unless nobody is there any more who wants to know. What has begun may still happen.
    pub(super) async fn while_there(&self, work: impl Future<Output = Response>) -> Handled {
        self.handle_while_there(work.map(Handled::from)).await
    }

    /// The same, for what may hold a share of a budget.
    pub(super) async fn handle_while_there(&self, work: impl Future<Output = Handled>) -> Handled {
        tokio::select! {
            biased;
            handled = work => handled,
            () = self.gone() => Handled::Silence,
        }
    }
}

#[cfg(test)]
impl Client {
    /// One for what is called without a connection: it goes when it is told to.
    pub(super) fn alone() -> (Self, watch::Sender<bool>) {
        let (sender, gone) = watch::channel(false);
        (Self { peer: SocketAddr::from(([127, 0, 0, 1], 1)), gone }, sender)
    }
}

/// A request's turn, which it ends by dropping it: until then nothing behind it on its connection begins, even what may follow it.
#[derive(Debug)]
pub(super) struct Turn {
    _ended: oneshot::Sender<()>,
}

impl Turn {
    /// With what resolves at its end.
    pub(super) fn begin() -> (Self, oneshot::Receiver<()>) {
        let (ended, end) = oneshot::channel();
        (Self { _ended: ended }, end)
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(stream: TcpStream, peer: SocketAddr, door: Arc<Door>) {
    let (input, output) = stream.into_split();
    let (frames, queue) = mpsc::channel(READ_AHEAD);
    let (gone, gone_seen) = watch::channel(false);
    let client = Client { peer, gone: gone_seen };
    // How many requests that may take long stand before what is read next: all but Produces that are under way.
    let before = watch::Sender::new(0);
    let mut reading = pin!(read_frames(input, frames, &door, &before).fuse());
    let mut answering = pin!(answer(output, queue, &door, client, &before));
    let mut read_end = None;
    let end = loop {
        tokio::select! {
            biased;
            end = &mut answering => break end,
            end = &mut reading, if read_end.is_none() => {
                gone.send_replace(true);
                read_end = Some(end);
            }
        }
    };
    match (end, read_end) {
        (End::Malformed(why), _) | (_, Some(End::Malformed(why))) => {
            door.metrics.door.malformed.increment(1);
            info!(%peer, why, "a Kafka connection is closed: the request was not understood");
        }
        (End::Unanswered(why), _) | (_, Some(End::Unanswered(why))) => {
            info!(%peer, why, "a Kafka connection is closed: that is the only answer to a request");
        }
        (End::Stalled(why), _) | (_, Some(End::Stalled(why))) => {
            info!(%peer, why, "a Kafka connection is closed: others wait for the room that it holds");
        }
        (End::Io(error), _) | (_, Some(End::Io(error))) => debug!(%error, "a Kafka connection ended"),
        (End::Closed, _) => {}
    }
}

/// Reads frames until there are no more.
async fn read_frames(
    mut input: OwnedReadHalf,
    frames: mpsc::Sender<Frame>,
    door: &Door,
    before: &watch::Sender<usize>,
) -> End {
    let mut ahead = Ahead(before.subscribe());
    let limits = FrameLimits {
        bytes_max: door.request_bytes_max(),
        idle_timeout: door.config.idle_timeout,
        body_timeout: door.limits.body_timeout,
    };
    loop {
        let frame = tokio::select! {
            frame = read_frame(&mut input, &door.frames, limits, &mut ahead) => frame,
            () = door.closed() => return End::Closed,
        };
        match frame {
            Ok(frame) => {
                before.send_modify(|before| *before += 1);
                if frames.send(frame).await.is_err() {
                    return End::Closed;
                }
            }
            Err(end) => return end,
        }
    }
}

/// Makes a frame a request, with room for what that takes. `Err`: there is not so much room now, and it is the frame it was.
fn understand(frame: Frame, door: &Door) -> Result<Next, (Frame, usize)> {
    let incoming = dispatch::parse(frame.bytes.clone());
    let weight = incoming.weight();
    match door.decoded_bytes.try_reserve(weight) {
        Some(share) => Ok(Next { incoming, _shares: [frame.share, share] }),
        None => Err((frame, weight)),
    }
}

/// The same once there is room.
async fn understand_later(frame: Frame, weight: usize, door: &Door) -> Next {
    let share = door.decoded_bytes.reserve(weight).await;
    Next { incoming: dispatch::parse(frame.bytes), _shares: [frame.share, share] }
}

/// Answers what comes until there is no more.
async fn answer(
    mut output: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Frame>,
    door: &Arc<Door>,
    client: Client,
    before: &watch::Sender<usize>,
) -> End {
    let mut in_flight: FuturesOrdered<BoxFuture<'static, Done>> = FuturesOrdered::new();
    // Whether all that is in flight are Produces.
    let mut pipelined = true;
    // The end of the turn of the last of them.
    let mut turn: Option<oneshot::Receiver<()>> = None;
    let (mut next, mut open) = (None::<Next>, true);
    // A frame that becomes the next request once there is room.
    let mut coming: Option<BoxFuture<'_, Next>> = None;
    loop {
        let room = pipelined && turn.is_none() && in_flight.len() < door.config.inflight_requests_max;
        let idle = in_flight.is_empty();
        if let Some(request) = next.take_if(|next| idle || room && next.incoming.may_follow()) {
            pipelined = request.incoming.may_follow();
            if pipelined {
                before.send_modify(|before| *before -= 1);
            }
            let (door, client) = (Arc::clone(door), client.clone());
            let (own, end) = Turn::begin();
            turn = Some(end);
            let work = async move {
                let Next { incoming, _shares } = request;
                dispatch::handle(door, client, incoming, own).await
            };
            in_flight.push_back(work.boxed());
        }
        tokio::select! {
            // First, so that a Produce that was just started is proposed before the next is looked at.
            biased;
            Some(done) = in_flight.next(), if !in_flight.is_empty() => {
                match done {
                    Done::Answer(answer) => {
                        if let Err(end) = write(&mut output, answer, door).await {
                            return end;
                        }
                    }
                    Done::Silence => {}
                    Done::Malformed(why) => return End::Malformed(why),
                    Done::Close(why) => return End::Unanswered(why),
                }
                if !pipelined {
                    before.send_modify(|before| *before -= 1);
                }
            }
            Some(_) = OptionFuture::from(turn.as_mut()), if turn.is_some() => turn = None,
            Some(understood) = OptionFuture::from(coming.as_mut()), if coming.is_some() => {
                coming = None;
                next = Some(understood);
            }
            frame = queue.recv(), if next.is_none() && coming.is_none() && open => match frame {
                Some(frame) => match understand(frame, door) {
                    Ok(understood) => next = Some(understood),
                    Err((frame, weight)) => coming = Some(understand_later(frame, weight, door).boxed()),
                },
                None => open = false,
            },
            else => return End::Closed,
        }
    }
}

/// Writes an answer, and gives its share of the budget back as it goes. A client that does not read for long enough loses the connection,
/// and with it what it holds; much sooner one that reads little while others wait for room.
async fn write(output: &mut OwnedWriteHalf, answer: Answer, door: &Door) -> Result<(), End> {
    let Answer { pieces, mut permit } = answer;
    let mut pieces = Pieces::new(pieces);
    let mut stuck_since = Instant::now();
    // When it was last looked how much it reads, and what was left then.
    let mut looked = (stuck_since, pieces.remaining());
    while pieces.has_remaining() {
        let patience = PATIENCE.min(door.limits.write_timeout);
        match timeout(patience, output.write_buf(&mut pieces)).await {
            Ok(written) => {
                written.map_err(End::Io)?;
                stuck_since = Instant::now();
            }
            Err(_) if stuck_since.elapsed() >= door.limits.write_timeout => {
                return Err(End::Io(io::ErrorKind::TimedOut.into()));
            }
            Err(_) => {}
        }
        let Some(permit) = &mut permit else { continue };
        let left = pieces.remaining();
        drop(permit.split(permit.num_permits().saturating_sub(pieces.held())));
        let (elapsed, read) = (looked.0.elapsed(), looked.1 - left);
        if elapsed >= PATIENCE {
            let slow = (read as f64) < RATE_MIN as f64 * elapsed.as_secs_f64();
            if slow && left > 0 && door.answer_bytes.short() {
                return Err(End::Stalled(format!("{left} bytes of an answer, {read} read in {elapsed:?}")));
            }
            looked = (Instant::now(), left);
        }
    }
    Ok(())
}

/// Pieces of an answer, written without putting them together.
struct Pieces {
    pieces: Vec<Bytes>,
    at: usize,
    remaining: usize,
    /// Bytes of the piece at hand that are written: its memory is held to its end.
    begun: usize,
}

impl Pieces {
    fn new(pieces: Vec<Bytes>) -> Self {
        let remaining = pieces.iter().map(Bytes::len).sum();
        Self { pieces, at: 0, remaining, begun: 0 }
    }

    /// Bytes of memory that are still held.
    fn held(&self) -> usize {
        self.remaining + self.begun
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.pieces[self.at..].iter().find(|piece| !piece.is_empty()).map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [io::IoSlice<'a>]) -> usize {
        let pieces = self.pieces[self.at..].iter().filter(|piece| !piece.is_empty());
        out.iter_mut().zip(pieces).map(|(slot, piece)| *slot = io::IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "advanced past the end");
        self.remaining -= count;
        while count > 0 {
            let piece = &mut self.pieces[self.at];
            let step = count.min(piece.len());
            piece.advance(step);
            count -= step;
            self.begun += step;
            if piece.is_empty() {
                // With the memory that it shares.
                *piece = Bytes::new();
                self.at += 1;
                self.begun = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::messages::HeartbeatResponse;

    #[tokio::test]
    async fn nothing_is_done_on_for_a_client_that_has_gone() {
        let (client, gone) = Client::alone();
        let answer = async { Response::Heartbeat(HeartbeatResponse::default()) };
        assert!(matches!(client.while_there(answer).await, Handled::Response(_)));
        let mut waiting = pin!(client.while_there(std::future::pending()));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        gone.send_replace(true);
        assert!(matches!(waiting.await, Handled::Silence));
    }

    #[test]
    fn pieces_are_one_run_of_bytes() {
        let pieces = || Pieces::new([&b"ab"[..], b"", b"cde", b"f"].map(Bytes::from_static).to_vec());
        for step in 1..=6 {
            let (mut pieces, mut out) = (pieces(), Vec::new());
            while pieces.has_remaining() {
                let take = step.min(pieces.chunk().len());
                out.extend_from_slice(&pieces.chunk()[..take]);
                pieces.advance(take);
            }
            assert_eq!(out, b"abcdef");
        }
        let mut whole = pieces();
        let mut slots = [io::IoSlice::new(&[]); 8];
        assert_eq!(whole.chunks_vectored(&mut slots), 3);
        whole.advance(4);
        assert_eq!((whole.remaining(), whole.held()), (2, 4), "the piece that is being written is held as a whole");
        whole.advance(2);
        assert_eq!((whole.remaining(), whole.held(), whole.chunk()), (0, 0, &b""[..]));
    }
}
