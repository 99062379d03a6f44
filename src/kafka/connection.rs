//! One connection: frames in, answers out, in the order of the requests.
//!
//! - What it holds is counted against the broker's budgets; a frame that stays half (see `frames`), an answer that is not read and a
//!   connection that asks for nothing time out. So does, much sooner, who holds room that others wait for and makes no use of it.
//! - Kafka promises that requests of one connection take effect one after the other. Here each waits for those before it,
//!   but a Produce behind nothing but Produces: it begins once their batches are proposed, so that its own come behind them, in
//!   order, and one fsync may serve all. Answers are written meanwhile: what has begun goes on, whether they are read or not.
//! - A request that is not understood, or has no answer, closes its connection, and only that, with a line in the log.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, OptionFuture};
use futures_util::stream::FuturesOrdered;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tracing::{debug, info};

use super::Door;
use super::dispatch::{self, Done, Handled, Incoming};
use super::frames::{Ahead, Frame, FrameLimits, FrameShare, read_frame};
use super::messages::Response;
use super::writing::Writing;

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

/// What a request holds of the budgets, until it is answered: for its frame, and beside it.
pub(super) type Shares = (Option<FrameShare>, OwnedSemaphorePermit);

/// A request that waits for its turn.
struct Next {
    incoming: Incoming,
    shares: Shares,
}

impl Next {
    fn new(incoming: Incoming, frame: FrameShare, decoded: OwnedSemaphorePermit) -> Self {
        let frame = incoming.keeps_frame().then_some(frame);
        Self { incoming, shares: (frame, decoded) }
    }
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
    let mut ahead = Ahead::new(before.subscribe(), door.connection_bytes_max());
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
        Some(share) => Ok(Next::new(incoming, frame.share, share)),
        None => Err((frame, weight)),
    }
}

/// The same once there is room.
async fn understand_later(frame: Frame, weight: usize, door: &Door) -> Next {
    let share = door.decoded_bytes.reserve(weight).await;
    Next::new(dispatch::parse(frame.bytes), frame.share, share)
}

/// What is under way on a connection, in the order of the requests.
struct UnderWay<'d> {
    door: &'d Arc<Door>,
    client: Client,
    before: &'d watch::Sender<usize>,
    in_flight: FuturesOrdered<BoxFuture<'static, Done>>,
    /// What has come of those before them.
    done: VecDeque<Done>,
    /// The answer before all of these.
    writing: Option<Writing>,
    /// Whether all of this are Produces.
    pipelined: bool,
    /// The end of the turn of the last of them.
    turn: Option<oneshot::Receiver<()>>,
}

impl UnderWay<'_> {
    /// Whether a request may begin. Answers that the client does not read count as requests do.
    fn has_room_for(&self, request: &Incoming) -> bool {
        let count = self.in_flight.len() + self.done.len() + usize::from(self.writing.is_some());
        let room = self.pipelined && self.turn.is_none() && count < self.door.config.inflight_requests_max;
        count == 0 || room && request.may_follow()
    }

    fn begin(&mut self, request: Next) {
        self.pipelined = request.incoming.may_follow();
        if self.pipelined {
            self.before.send_modify(|before| *before -= 1);
        }
        let (door, client) = (Arc::clone(self.door), self.client.clone());
        let (own, end) = Turn::begin();
        self.turn = Some(end);
        let work = async move {
            let Next { incoming, shares } = request;
            match dispatch::handle(door, client, incoming, own).await {
                Done::Answer(answer) => Done::Answer(answer.holding(shares)),
                other => other,
            }
        };
        self.in_flight.push_back(work.boxed());
    }

    /// Takes the next answer that is to be written, if none is. `Err`: something was done that ends the connection.
    fn take_answer(&mut self) -> Result<(), End> {
        while self.writing.is_none() {
            match self.done.pop_front() {
                Some(Done::Answer(answer)) => self.writing = Some(Writing::new(answer)),
                Some(Done::Silence) => self.ended(),
                Some(Done::Malformed(why)) => return Err(End::Malformed(why)),
                Some(Done::Close(why)) => return Err(End::Unanswered(why)),
                None => break,
            }
        }
        Ok(())
    }

    /// The first request's answer is written, or it wants none.
    fn ended(&mut self) {
        self.writing = None;
        if !self.pipelined {
            self.before.send_modify(|before| *before -= 1);
        }
    }
}

/// Answers what comes until there is no more. Whatever the client does with its answers, what has begun goes on: it may stand in line for
/// what others wait for too, and who is served there without being polled keeps it from them.
async fn answer(
    mut output: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Frame>,
    door: &Arc<Door>,
    client: Client,
    before: &watch::Sender<usize>,
) -> End {
    let (in_flight, done) = (FuturesOrdered::new(), VecDeque::new());
    let mut work = UnderWay { door, client, before, in_flight, done, writing: None, pipelined: true, turn: None };
    let (mut next, mut open) = (None::<Next>, true);
    // A frame that becomes the next request once there is room.
    let mut coming: Option<BoxFuture<'_, Next>> = None;
    loop {
        if let Err(end) = work.take_answer() {
            return end;
        }
        if let Some(request) = next.take_if(|next| work.has_room_for(&next.incoming)) {
            work.begin(request);
        }
        // While the client does not read.
        let holds = next.is_some() || coming.is_some() || !work.in_flight.is_empty() || !queue.is_empty();
        tokio::select! {
            // First, so that a Produce that was just started is proposed before the next is looked at.
            biased;
            Some(done) = work.in_flight.next(), if !work.in_flight.is_empty() => work.done.push_back(done),
            Some(written) = OptionFuture::from(work.writing.as_mut().map(|writing| writing.finish(&mut output, door, holds))),
                if work.writing.is_some() => match written {
                Ok(()) => work.ended(),
                Err(end) => return end,
            },
            Some(_) = OptionFuture::from(work.turn.as_mut()), if work.turn.is_some() => work.turn = None,
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
}
