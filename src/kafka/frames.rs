//! Frames off a socket: a 32-bit length and that many bytes, and the room that they take until they are understood, or answered if
//! something of them is kept until then.
//!
//! - A length is checked before memory is asked for. A frame's buffer grows fourfold as its bytes come, and so does its share of the
//!   room: who sends little holds little, whatever was announced.
//! - So those who hold a share wait for more of the same, and all of them might, for ever. Hence the *spare*, room for one frame of the
//!   largest size. Who waits takes it if it is free, and waits no more: its frame comes to its end, or is cut off for being slow, and
//!   once it is answered the next one has the spare. Whatever the others hold, one of them always gets on.
//! - A frame behind a request that may take long (a fetch that waits for records) is only read ahead of its turn where that leaves half
//!   of the room to others: nobody could make it give back what it holds.
//! - What a connection holds until it is answered is bounded by itself, too: it may have a quarter of the room, or one frame that is larger.
//!   It is not read beyond that, so that its Produces, however many, leave room to others before anybody has to wait.
//! - While somebody waits, a frame comes at a [`pace`] that grows with what it holds, or its connection ends. Time counts against a
//!   client while it is its turn to send, never while it waits for room.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout};

use super::budget::{Budget, PATIENCE};
use super::connection::End;

/// Frames up to this length, in bytes, are never held up by larger ones.
const SMALL_BYTES: usize = 64 << 10;
/// What a frame's buffer begins with.
const BUFFER_BYTES: usize = 16 << 10;
/// How many times as large it grows at a time.
const GROWTH: usize = 4;
/// While others wait for room, a frame arrives, and an answer is read, at this rate at least, in bytes per second.
pub(super) const RATE_MIN: usize = 256 << 10;
/// And a frame at one that would fill all the room that it holds within this.
const FILLED_WITHIN: Duration = Duration::from_secs(10);

/// How HTTP begins.
const HTTP_METHODS: [&[u8; 4]; 8] = [b"GET ", b"POST", b"PUT ", b"HEAD", b"DELE", b"PATC", b"OPTI", b"PRI "];

/// A request's bytes, and their share of the room.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) bytes: Bytes,
    pub(super) share: FrameShare,
}

/// What a frame holds of the room of all connections, and of its own one's.
pub(super) type FrameShare = [OwnedSemaphorePermit; 2];

/// What a client keeps to when it sends a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameLimits {
    /// The longest frame, in bytes.
    pub(super) bytes_max: usize,
    /// Longest wait for a frame to begin.
    pub(super) idle_timeout: Duration,
    /// Longest that the client may take for the rest of it.
    pub(super) body_timeout: Duration,
}

/// Room for the frames of all connections.
#[derive(Debug)]
pub(super) struct FrameRoom {
    /// Small frames, and the beginnings of large ones.
    small: Budget,
    /// Larger frames, as far as they have come.
    large: Budget,
    /// One frame of any size; see the module.
    spare: Budget,
}

/// What stands before a frame on its connection.
pub(super) struct Ahead {
    /// How many requests that may take long.
    before: watch::Receiver<usize>,
    /// Room for the frames of this connection.
    own: Budget,
}

impl Ahead {
    /// So many requests, and no frames yet; these may have so much room.
    pub(super) fn new(before: watch::Receiver<usize>, bytes: usize) -> Self {
        Self { before, own: Budget::new(bytes) }
    }

    /// Waits for the frame's turn.
    async fn turn(&mut self) {
        let _ = self.before.wait_for(|before| *before == 0).await;
    }
}

/// What a frame holds while it comes.
#[derive(Debug)]
enum Share {
    Small(OwnedSemaphorePermit),
    Large(OwnedSemaphorePermit),
    Spare(OwnedSemaphorePermit),
}

impl FrameRoom {
    /// So many bytes, of which the spare takes what a frame of the largest size needs; but half of them are left to the others, however
    /// large that is. An eighth of them is for small frames, apart.
    pub(super) fn new(bytes: usize, frame_bytes_max: usize) -> Self {
        Self {
            small: Budget::new((bytes / 8).max(SMALL_BYTES)),
            large: Budget::new(bytes - frame_bytes_max.min(bytes / 2)),
            spare: Budget::new(1),
        }
    }

    /// A share to begin with, once there is room.
    async fn begin(&self, bytes: usize, ahead: &mut Ahead) -> Share {
        if let Some(share) = self.small.try_reserve_spare(bytes) {
            return Share::Small(share);
        }
        ahead.turn().await;
        Share::Small(self.small.reserve(bytes).await)
    }

    /// Makes a share one for so many bytes in all, once there is room.
    async fn grow(&self, share: Share, bytes: usize, ahead: &mut Ahead) -> Share {
        let held = match &share {
            Share::Small(_) => 0,
            Share::Large(held) => held.num_permits(),
            Share::Spare(_) => return share,
        };
        if let Some(more) = self.large.try_reserve_spare(bytes - held) {
            return share.with(more);
        }
        ahead.turn().await;
        tokio::select! {
            biased;
            more = self.large.reserve(bytes - held) => share.with(more),
            spare = self.spare.reserve(1) => Share::Spare(spare),
        }
    }

    /// What a connection may have of so much room; a frame that is larger comes when it has nothing else.
    pub(super) fn of_one(bytes: usize) -> usize {
        (bytes / 4).max(1)
    }

    /// Somebody waits, and there is nothing left.
    pub(super) fn short(&self) -> bool {
        self.large.short() || self.small.short()
    }
}

impl Share {
    /// With more of the room for large frames.
    fn with(self, more: OwnedSemaphorePermit) -> Self {
        match self {
            Self::Large(mut held) => {
                held.merge(more);
                Self::Large(held)
            }
            Self::Small(_) | Self::Spare(_) => Self::Large(more),
        }
    }

    fn into_permit(self) -> OwnedSemaphorePermit {
        match self {
            Self::Small(permit) | Self::Large(permit) | Self::Spare(permit) => permit,
        }
    }
}

/// Reads one frame, once there is room for it.
pub(super) async fn read_frame(
    input: &mut (impl AsyncRead + Unpin),
    room: &FrameRoom,
    limits: FrameLimits,
    ahead: &mut Ahead,
) -> Result<Frame, End> {
    let mut prefix = [0; 4];
    let begun = match timeout(limits.idle_timeout, input.read(&mut prefix)).await {
        Ok(Ok(0)) | Err(_) => return Err(End::Closed),
        Ok(begun) => begun?,
    };
    let mut clock = Clock { left: limits.body_timeout, body_timeout: limits.body_timeout };
    let (mut rest, patience) = (&mut prefix[begun..], limits.body_timeout);
    while !rest.is_empty() {
        clock.read(input, &mut rest, patience).await?;
    }
    let length = check_length(prefix, limits.bytes_max)?;
    read_body(input, length, room, clock, ahead).await
}

fn check_length(prefix: [u8; 4], max: usize) -> Result<usize, End> {
    let length = i32::from_be_bytes(prefix);
    match usize::try_from(length) {
        Ok(length) if length <= max => Ok(length),
        _ if HTTP_METHODS.contains(&&prefix) => Err(End::Malformed(format!(
            "it begins with {:?}: is that HTTP? HTTP has another port",
            String::from_utf8_lossy(&prefix)
        ))),
        _ if prefix[..2] == [0x16, 0x03] => {
            Err(End::Malformed("it begins a TLS handshake; there is no TLS here".to_owned()))
        }
        _ => Err(End::Malformed(format!("a frame of {length} bytes; the limit is {max}"))),
    }
}

/// The time that a client has for its frame.
struct Clock {
    left: Duration,
    body_timeout: Duration,
}

impl Clock {
    /// Reads what there is, waiting for so long at most; says how long the client took.
    async fn read(
        &mut self,
        input: &mut (impl AsyncRead + Unpin),
        into: &mut impl BufMut,
        patience: Duration,
    ) -> Result<Duration, End> {
        let began = Instant::now();
        let read = timeout(patience.min(self.left), input.read_buf(into)).await;
        let took = began.elapsed();
        self.left = self.left.saturating_sub(took);
        match read {
            Ok(Ok(0)) => Err(End::Closed),
            Ok(read) => read.map(|_| took).map_err(End::from),
            Err(_) if self.left.is_zero() => Err(End::Malformed(format!("half a frame for {:?}", self.body_timeout))),
            Err(_) => Ok(took),
        }
    }
}

/// Bytes per second at which a frame that holds so much room has to come while others wait for some.
fn pace(room: usize) -> f64 {
    (room as f64 / FILLED_WITHIN.as_secs_f64()).max(RATE_MIN as f64)
}

/// Reads a frame's bytes into memory that grows as they come, up to exactly `length`.
async fn read_body(
    input: &mut (impl AsyncRead + Unpin),
    length: usize,
    room: &FrameRoom,
    mut clock: Clock,
    ahead: &mut Ahead,
) -> Result<Frame, End> {
    let own = ahead.own.reserve(length).await;
    let mut share = room.begin(length.min(SMALL_BYTES), ahead).await;
    let mut capacity = length.min(BUFFER_BYTES);
    let mut bytes = BytesMut::with_capacity(capacity);
    // Since its room has grown: what has come, and how long the client took.
    let (mut come, mut took) = (0, Duration::ZERO);
    while bytes.len() < length {
        if bytes.len() == capacity {
            capacity = (capacity * GROWTH).min(length);
            if capacity > SMALL_BYTES {
                share = room.grow(share, capacity, ahead).await;
                (come, took) = (0, Duration::ZERO);
            }
            bytes.reserve(capacity - bytes.len());
        }
        let (before, left) = (bytes.len(), capacity - bytes.len());
        took += clock.read(input, &mut (&mut bytes).limit(left), PATIENCE).await?;
        come += bytes.len() - before;
        let slow = took >= PATIENCE && (come as f64) < pace(capacity) * took.as_secs_f64();
        if slow && bytes.len() < length && room.short() {
            let (have, rate) = (bytes.len(), pace(capacity));
            return Err(End::Stalled(format!(
                "{have} of a frame's {length} bytes, the last {come} in {took:?}; {rate:.0} a second are due"
            )));
        }
    }
    Ok(Frame { bytes: bytes.freeze(), share: [share.into_permit(), own] })
}

#[cfg(test)]
mod tests;
