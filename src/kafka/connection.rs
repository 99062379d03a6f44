//! One connection: frames in, answers out, in the order of the requests.
//!
//! - A frame is a 32-bit length and that many bytes. Its length is checked before memory is asked for, memory grows with the
//!   bytes that arrive and is counted against the broker's budget; a frame that stays half, and a connection that asks for
//!   nothing, time out.
//! - Kafka promises that requests of one connection take effect one after the other. Here each waits for those before it,
//!   but a Produce behind nothing but Produces: its batches are proposed behind theirs, in order, and one fsync may serve all.
//! - A request that is not understood closes its connection, and only that, with a line in the log.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use tracing::{debug, info};

use super::Door;
use super::dispatch::{self, Answer, Done, Incoming};

/// What a frame's buffer begins with; it grows as the frame arrives.
const BUFFER_BYTES: usize = 16 << 10;
/// Frames that are read ahead of the one that waits for its turn.
const READ_AHEAD: usize = 1;

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// The client has closed it, or the broker stops.
    Closed,
    /// Something between the machines, or a client that does not read.
    Io(io::Error),
    /// What came is not Kafka's protocol as we speak it.
    Malformed(String),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Closed } else { Self::Io(error) }
    }
}

/// A request's bytes, and their share of the budget.
struct Frame {
    bytes: Bytes,
    permit: OwnedSemaphorePermit,
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
}

/// Serves a connection to its end.
pub(super) async fn serve(stream: TcpStream, peer: SocketAddr, door: Arc<Door>) {
    let (input, output) = stream.into_split();
    let (frames, queue) = mpsc::channel(READ_AHEAD);
    let (gone, gone_seen) = watch::channel(false);
    let client = Client { peer, gone: gone_seen };
    let mut reading = pin!(read_frames(input, frames, &door).fuse());
    let mut answering = pin!(answer(output, queue, &door, client));
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
        (End::Io(error), _) | (_, Some(End::Io(error))) => debug!(%error, "a Kafka connection ended"),
        (End::Closed, _) => {}
    }
}

/// Reads frames until there are no more.
async fn read_frames(mut input: OwnedReadHalf, frames: mpsc::Sender<Frame>, door: &Door) -> End {
    loop {
        let frame = tokio::select! {
            frame = read_frame(&mut input, door) => frame,
            () = door.closed() => return End::Closed,
        };
        match frame {
            Ok(frame) => {
                if frames.send(frame).await.is_err() {
                    return End::Closed;
                }
            }
            Err(end) => return end,
        }
    }
}

async fn read_frame(input: &mut OwnedReadHalf, door: &Door) -> Result<Frame, End> {
    let mut prefix = [0; 4];
    let begun = match timeout(door.config.idle_timeout, input.read(&mut prefix)).await {
        Ok(Ok(0)) | Err(_) => return Err(End::Closed),
        Ok(begun) => begun?,
    };
    let rest = async {
        input.read_exact(&mut prefix[begun..]).await?;
        let length = check_length(prefix, door.limits.request_bytes_max)?;
        read_body(input, length, &door.request_bytes).await
    };
    match timeout(door.limits.body_timeout, rest).await {
        Ok(frame) => frame,
        Err(_) => Err(End::Malformed(format!("half a frame for {:?}", door.limits.body_timeout))),
    }
}

fn check_length(prefix: [u8; 4], max: usize) -> Result<usize, End> {
    let length = i32::from_be_bytes(prefix);
    match usize::try_from(length) {
        Ok(length) if length <= max => Ok(length),
        _ if prefix.is_ascii() && prefix.iter().all(u8::is_ascii_alphabetic) => Err(End::Malformed(format!(
            "it begins with {:?}: is that HTTP? HTTP has another port",
            String::from_utf8_lossy(&prefix)
        ))),
        _ if prefix[..2] == [0x16, 0x03] => {
            Err(End::Malformed("it begins a TLS handshake; there is no TLS here".to_owned()))
        }
        _ => Err(End::Malformed(format!("a frame of {length} bytes; the limit is {max}"))),
    }
}

/// Reads a frame's bytes into memory that grows as they come, four times as large each time, up to exactly `length`.
async fn read_body(input: &mut OwnedReadHalf, length: usize, budget: &Arc<Semaphore>) -> Result<Frame, End> {
    let mut room = length.min(BUFFER_BYTES);
    let mut permit = reserve(budget, room).await;
    let mut bytes = BytesMut::with_capacity(room);
    while bytes.len() < length {
        if bytes.len() == room {
            let more = (room * 4).min(length) - room;
            permit.merge(reserve(budget, more).await);
            bytes.reserve(more);
            room += more;
        }
        let left = room - bytes.len();
        if input.read_buf(&mut (&mut bytes).limit(left)).await? == 0 {
            return Err(End::Closed);
        }
    }
    Ok(Frame { bytes: bytes.freeze(), permit })
}

/// A share of a budget of bytes, once there is room for it. The budget is never closed.
pub(super) async fn reserve(budget: &Arc<Semaphore>, bytes: usize) -> OwnedSemaphorePermit {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    match Arc::clone(budget).acquire_many_owned(bytes).await {
        Ok(permit) => permit,
        Err(_) => std::future::pending().await,
    }
}

/// Answers what comes until there is no more.
async fn answer(mut output: OwnedWriteHalf, mut queue: mpsc::Receiver<Frame>, door: &Arc<Door>, client: Client) -> End {
    let mut in_flight: FuturesOrdered<BoxFuture<'static, Done>> = FuturesOrdered::new();
    // Whether all that is in flight are Produces.
    let mut pipelined = true;
    let (mut next, mut open) = (None::<(Incoming, OwnedSemaphorePermit)>, true);
    loop {
        let room = pipelined && in_flight.len() < door.config.inflight_requests_max;
        let idle = in_flight.is_empty();
        if let Some((request, permit)) = next.take_if(|(request, _)| idle || room && request.may_follow()) {
            pipelined = request.may_follow();
            let (door, client) = (Arc::clone(door), client.clone());
            let work = async move {
                let done = dispatch::handle(door, client, request).await;
                drop(permit);
                done
            };
            in_flight.push_back(work.boxed());
        }
        tokio::select! {
            // First, so that a Produce that was just started is proposed before the next is looked at.
            biased;
            Some(done) = in_flight.next(), if !in_flight.is_empty() => match done {
                Done::Answer(answer) => {
                    if let Err(error) = write(&mut output, answer, door).await {
                        return End::Io(error);
                    }
                }
                Done::Silence => {}
                Done::Close(why) => return End::Malformed(why),
            },
            frame = queue.recv(), if next.is_none() && open => match frame {
                Some(Frame { bytes, permit }) => next = Some((dispatch::parse(bytes), permit)),
                None => open = false,
            },
            else => return End::Closed,
        }
    }
}

/// Writes an answer; a client that does not read for long enough loses the connection, and with it the memory it holds.
async fn write(output: &mut OwnedWriteHalf, answer: Answer, door: &Door) -> io::Result<()> {
    let mut pieces = Pieces::new(answer.pieces);
    while pieces.has_remaining() {
        match timeout(door.limits.write_timeout, output.write_buf(&mut pieces)).await {
            Ok(written) => written?,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
    }
    Ok(())
}

/// Pieces of an answer, written without putting them together.
struct Pieces {
    pieces: Vec<Bytes>,
    at: usize,
    remaining: usize,
}

impl Pieces {
    fn new(pieces: Vec<Bytes>) -> Self {
        let remaining = pieces.iter().map(Bytes::len).sum();
        Self { pieces, at: 0, remaining }
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
            if piece.is_empty() {
                self.at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_impossible_length_are_refused_with_a_word_that_helps() {
        let why = |prefix: [u8; 4]| match check_length(prefix, 100) {
            Ok(length) => length.to_string(),
            Err(End::Malformed(why)) => why,
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(why([0, 0, 0, 100]), "100");
        assert!(why([0, 0, 0, 101]).contains("101 bytes; the limit is 100"));
        assert!(why([0xff, 0xff, 0xff, 0xff]).contains("-1 bytes"));
        assert!(why([0x80, 0, 0, 0]).contains("-2147483648"));
        assert!(why(*b"POST").contains("HTTP"));
        assert!(why([0x16, 0x03, 0x01, 0x02]).contains("TLS"));
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
        whole.advance(6);
        assert_eq!((whole.remaining(), whole.chunk()), (0, &b""[..]));
    }
}
