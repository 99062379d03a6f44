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
    pub(super) share: OwnedSemaphorePermit,
}

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

/// How many requests stand before a frame on its connection that may take long.
pub(super) struct Ahead(pub(super) watch::Receiver<usize>);

impl Ahead {
    /// Waits for the frame's turn.
    async fn turn(&mut self) {
        let _ = self.0.wait_for(|before| *before == 0).await;
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
    Ok(Frame { bytes: bytes.freeze(), share: share.into_permit() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::JoinHandle;
    use tokio::time::sleep;

    use super::*;

    const MIB: usize = 1 << 20;
    const LIMITS: FrameLimits = FrameLimits {
        bytes_max: 32 * MIB,
        idle_timeout: Duration::from_secs(3600),
        body_timeout: Duration::from_secs(3600),
    };

    /// Somebody who sends a frame of this length, and what is read of it. Without room for what was not read yet.
    fn sender(room: &Arc<FrameRoom>, limits: FrameLimits, length: usize) -> (Sender, JoinHandle<Result<Frame, End>>) {
        sender_behind(room, limits, length, watch::channel(0).1)
    }

    /// The same, behind what is before it on its connection.
    fn sender_behind(
        room: &Arc<FrameRoom>,
        limits: FrameLimits,
        length: usize,
        before: watch::Receiver<usize>,
    ) -> (Sender, JoinHandle<Result<Frame, End>>) {
        let (stream, mut input) = duplex(16 << 10);
        let room = Arc::clone(room);
        let reading = tokio::spawn(async move { read_frame(&mut input, &room, limits, &mut Ahead(before)).await });
        (Sender { stream, length, sent: 0 }, reading)
    }

    /// A frame that is sent at once, and read before long.
    async fn quick(room: &Arc<FrameRoom>, length: usize) -> Frame {
        let (mut sender, reading) = sender(room, LIMITS, length);
        let sending = tokio::spawn(async move { sender.send(length).await });
        let frame = timeout(Duration::from_secs(60), reading).await.expect("no room").unwrap().unwrap();
        assert_eq!((frame.bytes.len(), sending.await.unwrap()), (length, true));
        frame
    }

    struct Sender {
        stream: DuplexStream,
        length: usize,
        sent: usize,
    }

    impl Sender {
        /// Sends so much of the frame's bytes, in all; `false`: nobody reads them any more.
        async fn send(&mut self, upto: usize) -> bool {
            let prefix = (self.length as i32).to_be_bytes();
            let prefix = if self.sent == 0 { &prefix[..] } else { &[] };
            let body = vec![7; upto - self.sent];
            self.sent = upto;
            self.stream.write_all(&[prefix, &body].concat()).await.is_ok()
        }

        /// So much a second, until nobody reads it any more.
        async fn trickle(mut self, rate: usize) {
            while self.sent < self.length && self.send((self.sent + rate / 10).min(self.length)).await {
                sleep(Duration::from_millis(100)).await;
            }
        }
    }

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
        assert!(why(*b"POST").contains("HTTP") && why(*b"GET ").contains("HTTP"));
        assert!(why([0x16, 0x03, 0x01, 0x02]).contains("TLS"));
    }

    /// Twelve announce far more than there is, and come slowly; nobody has to wait for them, so nobody is cut off.
    #[tokio::test(start_paused = true)]
    async fn who_sends_little_holds_little_whatever_was_announced() {
        let room = Arc::new(FrameRoom::new(8 * MIB, 4 * MIB));
        let mut slow = Vec::new();
        for _ in 0..12 {
            let (mut sender, reading) = sender(&room, LIMITS, 4 * MIB);
            assert!(sender.send(100 << 10).await);
            slow.push((sender, reading));
        }
        sleep(Duration::from_secs(60)).await;
        quick(&room, MIB).await;
        assert!(slow.iter().all(|(_, reading)| !reading.is_finished()));
    }

    /// All of the room is held by frames that have only begun, and each needs more of it.
    #[tokio::test(start_paused = true)]
    async fn frames_that_hold_room_and_wait_for_more_all_come_to_their_end() {
        for (bytes, largest) in [(8 * MIB, 4 * MIB), (4 * MIB, 4 * MIB), (MIB, 900 << 10)] {
            let room = Arc::new(FrameRoom::new(bytes, largest));
            let limits = FrameLimits { bytes_max: largest, ..LIMITS };
            let mut begun = Vec::new();
            for _ in 0..100 {
                let (mut sender, reading) = sender(&room, limits, largest);
                // In a task of its own: who waits for room is not read.
                let sending = tokio::spawn(async move { sender.send(250 << 10).await && sender.send(largest).await });
                begun.push((sending, reading));
            }
            let read = begun.into_iter().map(async |(sending, reading)| {
                // Answered at once: the room is given back.
                assert_eq!(reading.await.unwrap().unwrap().bytes.len(), largest);
                assert!(sending.await.unwrap());
            });
            timeout(Duration::from_secs(3600), join_all(read)).await.expect("frames hold each other up");
            assert!(room.large.try_reserve(usize::MAX).is_some() && room.small.try_reserve(usize::MAX).is_some());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_holds_much_room_must_come_fast_while_others_wait() {
        let room = Arc::new(FrameRoom::new(64 * MIB, 32 * MIB));
        // Two frames, each with all of its bytes reserved, 17 of 32 MiB there, and the rest at twice the smallest rate.
        let mut slow = Vec::new();
        for _ in 0..2 {
            let (mut sender, reading) = sender(&room, LIMITS, 32 * MIB);
            assert!(sender.send(17 * MIB).await);
            tokio::spawn(sender.trickle(2 * RATE_MIN));
            slow.push(reading);
        }
        sleep(Duration::from_secs(2)).await;
        assert!(slow.iter().all(|reading| !reading.is_finished()), "nobody waits yet");
        let began = Instant::now();
        quick(&room, MIB).await;
        assert!(began.elapsed() < 2 * PATIENCE, "{:?}", began.elapsed());
        let ends = slow.into_iter().filter_map(|reading| reading.now_or_never()).map(Result::unwrap);
        let whys: Vec<_> = ends.map(|end| format!("{:?}", end.unwrap_err())).collect();
        assert!(!whys.is_empty() && whys.iter().all(|why| why.contains("of a frame's 33554432 bytes")), "{whys:?}");
        assert_eq!((pace(0), pace(32 * MIB)), (RATE_MIN as f64, 3.2 * MIB as f64));
    }

    #[tokio::test(start_paused = true)]
    async fn time_counts_while_it_is_the_clients_turn_and_not_while_it_waits_for_room() {
        let room = Arc::new(FrameRoom::new(2 * MIB, MIB));
        let limits = FrameLimits { body_timeout: Duration::from_secs(2), ..LIMITS };
        let all = [room.large.reserve(MIB).await, room.small.reserve(MIB).await, room.spare.reserve(1).await];
        let (mut patient, reading) = sender(&room, limits, MIB);
        let sending = tokio::spawn(async move { patient.send(MIB).await });
        sleep(Duration::from_secs(60)).await;
        assert!(!reading.is_finished());
        let [large, small, spare] = all;
        drop(small);
        sleep(Duration::from_secs(60)).await;
        assert!(!reading.is_finished(), "a large frame waits a second time");
        drop((large, spare));
        assert_eq!(reading.await.unwrap().unwrap().bytes.len(), MIB);
        assert!(sending.await.unwrap());

        for sent in [0, 5, 100 << 10] {
            let (mut lazy, reading) = sender(&room, limits, MIB);
            assert!(lazy.send(sent).await);
            let began = Instant::now();
            let end = reading.await.unwrap().unwrap_err();
            assert!(matches!(&end, End::Malformed(why) if why == "half a frame for 2s"), "{end:?}");
            assert!(began.elapsed() <= Duration::from_secs(2), "{:?}", began.elapsed());
        }
    }

    /// Frames of every size behind fetches that wait; they have all come, and nobody is slow.
    #[tokio::test(start_paused = true)]
    async fn what_is_read_ahead_of_its_turn_leaves_half_of_the_room_to_others() {
        let room = Arc::new(FrameRoom::new(8 * MIB, 4 * MIB));
        let (before, seen) = watch::channel(1);
        let mut behind = Vec::new();
        for length in [SMALL_BYTES, MIB, 4 * MIB].repeat(20) {
            let (mut sender, reading) = sender_behind(&room, LIMITS, length, seen.clone());
            behind.push((length, tokio::spawn(async move { sender.send(length).await }), reading));
        }
        sleep(Duration::from_secs(1)).await;
        let read = behind.iter().filter(|(.., reading)| reading.is_finished()).count();
        assert!(read > 0, "there was room, and nobody wanted it");
        for length in [10, SMALL_BYTES, MIB, 4 * MIB] {
            quick(&room, length).await;
        }
        // Their turn comes.
        before.send_replace(0);
        let all = behind.into_iter().map(async |(length, sending, reading)| {
            assert_eq!(reading.await.unwrap().unwrap().bytes.len(), length);
            assert!(sending.await.unwrap());
        });
        timeout(Duration::from_secs(3600), join_all(all)).await.expect("they hold each other up");
    }
}
