use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
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
    let mut ahead = Ahead::new(before, limits.bytes_max);
    let reading = tokio::spawn(async move { read_frame(&mut input, &room, limits, &mut ahead).await });
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

/// Produces without end, all of them under way: nobody waits, and nobody is slow.
#[tokio::test(start_paused = true)]
async fn a_connection_holds_a_part_of_the_room_and_is_not_read_beyond_it() {
    let room = Arc::new(FrameRoom::new(32 * MIB, 4 * MIB));
    let (stream, mut input) = duplex(16 << 10);
    let mut sender = Sender { stream, length: MIB, sent: 0 };
    let sending = tokio::spawn(async move {
        while sender.send(MIB).await {
            sender.sent = 0;
        }
    });
    let (frames, mut under_way) = mpsc::unbounded_channel();
    let reading = Arc::clone(&room);
    tokio::spawn(async move {
        let mut ahead = Ahead::new(watch::channel(0).1, FrameRoom::of_one(32 * MIB));
        while frames.send(read_frame(&mut input, &reading, LIMITS, &mut ahead).await.unwrap()).is_ok() {}
    });
    let mut held = VecDeque::new();
    for answered in 0..20 {
        sleep(Duration::from_secs(60)).await;
        held.extend(std::iter::from_fn(|| under_way.try_recv().ok()));
        assert_eq!(held.len(), 8, "after {answered} were answered");
        quick(&room, 4 * MIB).await;
        held.pop_front();
    }
    // It goes, whatever it is at.
    drop(under_way);
    held.clear();
    timeout(Duration::from_secs(60), sending).await.expect("nobody reads it").unwrap();
}

/// A frame that is larger than a connection's part of the room: it comes alone.
#[tokio::test(start_paused = true)]
async fn a_large_frame_comes_when_its_connection_has_nothing_else() {
    for largest in [3 * MIB, 8 * MIB] {
        let room = Arc::new(FrameRoom::new(8 * MIB, largest));
        let (stream, mut input) = duplex(16 << 10);
        let sending = tokio::spawn(async move {
            let mut stream = stream;
            for length in [10, largest, 10, largest] {
                let mut sender = Sender { stream, length, sent: 0 };
                assert!(sender.send(length).await);
                stream = sender.stream;
            }
        });
        let mut ahead = Ahead::new(watch::channel(0).1, FrameRoom::of_one(8 * MIB));
        let mut held = None;
        for length in [10, largest, 10, largest] {
            {
                let mut next = pin!(read_frame(&mut input, &room, LIMITS, &mut ahead));
                if held.is_some() {
                    assert!(timeout(Duration::from_secs(60), &mut next).await.is_err(), "beside another");
                }
                drop(held.take());
                held = Some(next.await.unwrap());
            }
            assert_eq!(held.as_ref().unwrap().bytes.len(), length);
        }
        sending.await.unwrap();
    }
}
