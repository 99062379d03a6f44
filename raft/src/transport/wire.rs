//! Frames: the format in which messages travel between brokers, in pieces, after the handshake.
//!
//! All little endian, 24 bytes of header, then the body:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | body length, at most 256 KiB |
//! | 4 | 1 | kind ([`Kind`]) |
//! | 5 | 1 | flags: 1 first, 2 last frame of its message |
//! | 6 | 2 | reserved, 0 |
//! | 8 | 8 | lane: what belongs together; frames of one lane stay in order, lanes are interleaved |
//! | 16 | 4 | length of the whole message, the same in each of its frames |
//! | 20 | 4 | CRC-32C of bytes 0..20 and the body |
//!
//! A close of lane 7 is `00000000 0c 03 0000 0700000000000000 00000000` and its checksum. What a message's body means
//! is in [`super::message`].

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes};

use super::CALL_BYTES_MAX;
use crate::log::frame::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX};

/// Size of a frame's header in bytes.
pub const HEADER_BYTES: usize = 24;
/// Longest body of a frame: 256 KiB (RULES.md R8).
pub const BODY_BYTES_MAX: usize = 256 << 10;
/// Longest AppendEntries: the longest log frame, and room for what comes with it.
pub const APPEND_BYTES_MAX: usize = FRAME_PAYLOAD_BYTES_MAX as usize + FRAME_HEADER_BYTES + (4 << 20);
/// Longest snapshot: 256 MiB.
pub const SNAPSHOT_BYTES_MAX: usize = 256 << 20;
/// Longest message of Raft's other kinds.
const SMALL_BYTES_MAX: usize = 64 << 10;
const FIRST: u8 = 1;
const LAST: u8 = 2;

/// Why bytes from a peer were not accepted. The connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not a handshake of Pontoon.
    #[error("not a Pontoon broker: bad magic or checksum in the handshake")]
    NotPontoon,
    /// A checksum does not match.
    #[error("frame checksum mismatch on lane {0}")]
    Checksum(u64),
    /// A value that is not known.
    #[error("frame {field} {value} is not known")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Longer than its kind may be.
    #[error("{what} of {bytes} bytes is longer than {max}")]
    TooLong {
        /// What.
        what: &'static str,
        /// Its length.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// Frames of a message do not fit together.
    #[error("frames do not make a message on lane {0}: {1}")]
    Pieces(u64, &'static str),
    /// The peer sent more than it was allowed to have unanswered.
    #[error("peer exceeded its credit: {0}")]
    Credit(String),
    /// A body that does not decode.
    #[error("malformed {0}: {1}")]
    Body(&'static str, String),
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Are you there? 16 bytes: its number, and the number of the last pong that came back.
    Ping = 1,
    /// Yes. 8 bytes: the ping's number.
    Pong = 2,
    /// A call of the layer above.
    Call = 3,
    /// A report between `raft_groups`.
    Report = 4,
    /// An AppendEntries without entries.
    Heartbeat = 5,
    /// A vote.
    Vote = 6,
    /// A pre-vote.
    PreVote = 7,
    /// A leader hands over.
    Transfer = 8,
    /// The answer to one of these, or to a snapshot: on the request's lane.
    Answer = 9,
    /// Opens a lane for one replication stream.
    Open = 10,
    /// An AppendEntries on an open lane.
    Append = 11,
    /// This lane is given up by the side that says so.
    Close = 12,
    /// The answer to an `Append`.
    Appended = 13,
    /// A whole snapshot.
    Snapshot = 14,
    /// Asks for entries that are rotten at the asker (RULES.md R7).
    Frames = 15,
    /// Asks whether a replica runs, and may lead.
    Fitness = 16,
}

impl Kind {
    const ALL: [Self; 16] = [
        Self::Ping,
        Self::Pong,
        Self::Call,
        Self::Report,
        Self::Heartbeat,
        Self::Vote,
        Self::PreVote,
        Self::Transfer,
        Self::Answer,
        Self::Open,
        Self::Append,
        Self::Close,
        Self::Appended,
        Self::Snapshot,
        Self::Frames,
        Self::Fitness,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }

    /// Longest message of this kind.
    pub fn bytes_max(self) -> usize {
        match self {
            Self::Ping => 16,
            Self::Pong => 8,
            Self::Close => 0,
            Self::Call | Self::Report | Self::Answer => CALL_BYTES_MAX + SMALL_BYTES_MAX,
            Self::Append => APPEND_BYTES_MAX,
            Self::Snapshot => SNAPSHOT_BYTES_MAX + SMALL_BYTES_MAX,
            Self::Heartbeat
            | Self::Vote
            | Self::PreVote
            | Self::Transfer
            | Self::Open
            | Self::Appended
            | Self::Frames
            | Self::Fitness => SMALL_BYTES_MAX,
        }
    }
}

/// A frame's header, decoded and bounded, its checksum not yet compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the message is.
    pub kind: Kind,
    /// Whether the message begins here.
    pub first: bool,
    /// Whether it ends here.
    pub last: bool,
    /// What belongs together.
    pub lane: u64,
    /// Length of the body.
    pub body_bytes: u32,
    /// Length of the whole message.
    pub message_bytes: u32,
    crc: u32,
    seed: u32,
}

impl Header {
    /// The header's bytes for a body in these pieces.
    pub fn encode(
        kind: Kind,
        flags: (bool, bool),
        lane: u64,
        message_bytes: u32,
        body: &[Bytes],
    ) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut out = &mut bytes[..];
        out.put_u32_le(body.iter().map(Bytes::len).sum::<usize>() as u32);
        out.put_u8(kind as u8);
        out.put_u8(if flags.0 { FIRST } else { 0 } | if flags.1 { LAST } else { 0 });
        out.put_u16_le(0);
        out.put_u64_le(lane);
        out.put_u32_le(message_bytes);
        let crc = body.iter().fold(crc32c::crc32c(&bytes[..20]), |crc, piece| crc32c::crc32c_append(crc, piece));
        bytes[20..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header; every length in it is within its bound.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let mut at = &bytes[..];
        let body_bytes = at.get_u32_le();
        let kind = at.get_u8();
        let flags = at.get_u8();
        let reserved = at.get_u16_le();
        let lane = at.get_u64_le();
        let message_bytes = at.get_u32_le();
        let crc = at.get_u32_le();
        let kind = Kind::from_byte(kind).ok_or(WireError::Unknown { field: "kind", value: kind.into() })?;
        if flags & !(FIRST | LAST) != 0 || reserved != 0 {
            return Err(WireError::Unknown { field: "flags", value: flags.into() });
        }
        bounded("frame", body_bytes, BODY_BYTES_MAX.min(message_bytes as usize))?;
        bounded("message", message_bytes, kind.bytes_max())?;
        let seed = crc32c::crc32c(&bytes[..20]);
        Ok(Self {
            kind,
            first: flags & FIRST != 0,
            last: flags & LAST != 0,
            lane,
            body_bytes,
            message_bytes,
            crc,
            seed,
        })
    }

    /// Compares the checksum with the body that came.
    pub fn check(&self, body: &[u8]) -> Result<(), WireError> {
        if crc32c::crc32c_append(self.seed, body) == self.crc { Ok(()) } else { Err(WireError::Checksum(self.lane)) }
    }
}

fn bounded(what: &'static str, bytes: u32, max: usize) -> Result<(), WireError> {
    if bytes as usize <= max { Ok(()) } else { Err(WireError::TooLong { what, bytes: bytes.into(), max: max as u64 }) }
}

/// A whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// Its lane.
    pub lane: u64,
    /// Its body.
    pub body: Bytes,
}

/// Puts messages together from their frames. What it holds is bounded, and asked for only as bytes come.
#[derive(Debug)]
pub struct Assembler {
    pieces: BTreeMap<u64, Pieces>,
    held_bytes: usize,
    held_bytes_max: usize,
}

#[derive(Debug)]
struct Pieces {
    kind: Kind,
    message_bytes: usize,
    body: Vec<u8>,
}

/// Messages that may be under way in pieces at once on one connection.
const PIECES_MAX: usize = 1024;

impl Assembler {
    /// Holds at most `held_bytes_max` bytes of unfinished messages.
    pub fn new(held_bytes_max: usize) -> Self {
        Self { pieces: BTreeMap::new(), held_bytes: 0, held_bytes_max }
    }

    /// Takes a frame whose checksum has been compared; returns the message it completes.
    pub fn feed(&mut self, header: &Header, body: Bytes) -> Result<Option<Message>, WireError> {
        let lane = header.lane;
        let whole = header.message_bytes as usize;
        if header.first && header.last {
            if body.len() != whole || self.pieces.contains_key(&lane) {
                return Err(WireError::Pieces(lane, "a whole message of another length, or inside another one"));
            }
            return Ok(Some(Message { kind: header.kind, lane, body }));
        }
        if body.is_empty() {
            return Err(WireError::Pieces(lane, "an empty piece"));
        }
        if header.first && self.pieces.len() >= PIECES_MAX {
            return Err(WireError::Credit(format!("{PIECES_MAX} unfinished messages")));
        }
        if self.held_bytes + body.len() > self.held_bytes_max {
            return Err(WireError::Credit(format!("{} bytes of unfinished messages", self.held_bytes_max)));
        }
        let pieces = match (header.first, self.pieces.contains_key(&lane)) {
            (true, true) => return Err(WireError::Pieces(lane, "begun twice")),
            (false, false) => return Err(WireError::Pieces(lane, "not begun")),
            _ => self.pieces.entry(lane).or_insert_with(|| Pieces {
                kind: header.kind,
                message_bytes: whole,
                body: Vec::new(),
            }),
        };
        let length = pieces.body.len() + body.len();
        if pieces.kind != header.kind || pieces.message_bytes != whole || length > whole {
            return Err(WireError::Pieces(lane, "pieces of different messages"));
        }
        if (length == whole) != header.last {
            return Err(WireError::Pieces(lane, "its end is not where its length says"));
        }
        if pieces.body.capacity() < length {
            // Doubling, but never beyond the length announced: what is kept later has no slack.
            let want = whole.min(2 * length);
            pieces.body.reserve_exact(want - pieces.body.len());
        }
        pieces.body.extend_from_slice(&body);
        self.held_bytes += body.len();
        if !header.last {
            return Ok(None);
        }
        Ok(self.pieces.remove(&lane).map(|pieces| {
            self.held_bytes -= pieces.body.len();
            Message { kind: pieces.kind, lane, body: pieces.body.into() }
        }))
    }

    /// Forgets what came of an unfinished message: its sender gave it up.
    pub fn forget(&mut self, lane: u64) {
        if let Some(pieces) = self.pieces.remove(&lane) {
            self.held_bytes -= pieces.body.len();
        }
    }

    /// How many unfinished messages of this kind there are.
    pub fn unfinished(&self, kind: Kind) -> usize {
        self.pieces.values().filter(|pieces| pieces.kind == kind).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::transport::handshake::{ConnectionKind, Hello, Turned, Welcome};
    use crate::types::{BrokerId, ClusterId};

    /// A message as its frames, with bodies of at most `step` bytes.
    fn cut(kind: Kind, lane: u64, message: &[u8], step: usize) -> Vec<(Header, Bytes)> {
        let bodies: Vec<_> = if message.is_empty() { vec![message] } else { message.chunks(step).collect() };
        let count = bodies.len();
        let frame = |(at, body): (usize, &[u8])| {
            let body = Bytes::copy_from_slice(body);
            let flags = (at == 0, at + 1 == count);
            let header = Header::encode(kind, flags, lane, message.len() as u32, std::slice::from_ref(&body));
            (Header::decode(&header).unwrap(), body)
        };
        bodies.into_iter().enumerate().map(frame).collect()
    }

    fn kinds() -> impl Strategy<Value = Kind> {
        prop::sample::select(Kind::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn a_flipped_bit_in_a_frame_is_seen(
            kind in kinds(), lane in any::<u64>(), body in prop::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(), bit in 0..8u8,
        ) {
            prop_assume!(body.len() <= kind.bytes_max());
            let body = Bytes::from(body);
            let header = Header::encode(kind, (true, true), lane, body.len() as u32, std::slice::from_ref(&body));
            let mut bytes = [&header[..], &body].concat();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let (header, body) = bytes.split_at(HEADER_BYTES);
            // A flipped length is seen as a wrong checksum over as many bytes as there are.
            let refused = Header::decode(header.try_into().unwrap()).and_then(|header| header.check(body)).is_err();
            prop_assert!(refused);
        }

        #[test]
        fn messages_interleaved_in_any_way_come_out_whole(
            messages in prop::collection::vec((1u64..6, prop::collection::vec(any::<u8>(), 0..300)), 1..12),
            step in 1usize..80, turns in prop::collection::vec(any::<prop::sample::Index>(), 600),
        ) {
            let mut lanes = BTreeMap::<u64, std::collections::VecDeque<_>>::new();
            let mut expected = BTreeMap::<u64, Vec<Bytes>>::new();
            for (lane, body) in messages {
                lanes.entry(lane).or_default().extend(cut(Kind::Append, lane, &body, step));
                expected.entry(lane).or_default().push(body.into());
            }
            let mut assembler = Assembler::new(1 << 20);
            let mut found = BTreeMap::<u64, Vec<Bytes>>::new();
            let mut turns = turns.into_iter().cycle();
            while !lanes.is_empty() {
                let ready: Vec<_> = lanes.keys().copied().collect();
                let lane = ready[turns.next().unwrap().index(ready.len())];
                let queue = lanes.get_mut(&lane).unwrap();
                let (header, body) = queue.pop_front().unwrap();
                if queue.is_empty() {
                    lanes.remove(&lane);
                }
                if let Some(message) = assembler.feed(&header, body).unwrap() {
                    found.entry(message.lane).or_default().push(message.body);
                }
            }
            prop_assert_eq!(found, expected);
            prop_assert_eq!(assembler.held_bytes, 0);
        }

        #[test]
        fn random_bytes_stay_within_the_bounds(bytes in any::<[u8; HEADER_BYTES]>()) {
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert!(header.body_bytes as usize <= BODY_BYTES_MAX);
                prop_assert!(header.message_bytes as usize <= header.kind.bytes_max());
            }
        }

        /// Frames that lie about everything: never a panic, and never memory beyond twice what came.
        #[test]
        fn lying_frames_never_take_more_memory_than_they_bring(
            frames in prop::collection::vec(
                (kinds(), any::<[bool; 2]>(), 0u64..4, any::<u32>(), 0usize..200), 1..60),
        ) {
            let mut assembler = Assembler::new(4096);
            let mut came = 0;
            for (kind, [first, last], lane, message_bytes, length) in frames {
                let body = Bytes::from(vec![0; length]);
                let bytes = Header::encode(kind, (first, last), lane, message_bytes, std::slice::from_ref(&body));
                let Ok(header) = Header::decode(&bytes) else { continue };
                came += length;
                let _ = assembler.feed(&header, body);
                let held: usize = assembler.pieces.values().map(|p| p.body.capacity()).sum();
                prop_assert!(held <= 2 * came && held <= 2 * 4096);
                let bytes: usize = assembler.pieces.values().map(|p| p.body.len()).sum();
                prop_assert_eq!(bytes, assembler.held_bytes);
            }
        }
    }

    #[test]
    fn lengths_are_bounded_by_the_kind() {
        let long = Header::encode(Kind::Append, (true, false), 1, APPEND_BYTES_MAX as u32 + 1, &[]);
        assert!(matches!(Header::decode(&long), Err(WireError::TooLong { what: "message", .. })));
        let long = Header::encode(Kind::Ping, (true, true), 1, 17, &[]);
        assert!(matches!(Header::decode(&long), Err(WireError::TooLong { .. })));
        let body = Bytes::from(vec![0; BODY_BYTES_MAX + 1]);
        let long = Header::encode(Kind::Append, (true, false), 1, 1 << 20, &[body]);
        assert!(matches!(Header::decode(&long), Err(WireError::TooLong { what: "frame", .. })));
    }

    #[test]
    fn unfinished_messages_are_bounded_and_can_be_given_up() {
        let mut assembler = Assembler::new(100);
        let frames = |lane| cut(Kind::Append, lane, &[7; 120], 60);
        let feed = |assembler: &mut Assembler, lane| {
            let (header, body) = frames(lane).swap_remove(0);
            assembler.feed(&header, body)
        };
        assert_eq!(feed(&mut assembler, 1), Ok(None));
        assert!(matches!(feed(&mut assembler, 2), Err(WireError::Credit(_))));
        assembler.forget(1);
        assert_eq!(feed(&mut assembler, 2), Ok(None));
        assert!(matches!(feed(&mut assembler, 2), Err(WireError::Pieces(..) | WireError::Credit(_))));
    }

    /// The bytes of every format, so that a later version reads them. Change them only with the protocol version.
    #[test]
    fn the_formats_are_those_of_the_golden_script() {
        let mut script = String::new();
        let mut show = |what: &str, bytes: &[u8]| {
            let hex: Vec<_> =
                bytes.chunks(4).map(|c| c.iter().map(|b| format!("{b:02x}")).collect::<String>()).collect();
            script.push_str(&format!("{what}\n  {}\n", hex.join(" ")));
        };
        let cluster = Some(ClusterId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10));
        let hello = Hello {
            kind: ConnectionKind::Data,
            broker: BrokerId(1),
            target: Some(BrokerId(2)),
            cluster,
            incarnation: 0x1122_3344_5566_7788,
        };
        show("hello: data, broker 1 to broker 2", &hello.encode());
        let welcome =
            Welcome { version: 1, turned: Some(Turned::ForeignCluster), broker: BrokerId(2), cluster, incarnation: 9 };
        show("welcome: turned away, foreign cluster", &welcome.encode());
        show("close of lane 7", &Header::encode(Kind::Close, (true, true), 7, 0, &[]));
        let body = Bytes::from_static(b"pontoon");
        let header = Header::encode(Kind::Call, (true, false), 3, 100, std::slice::from_ref(&body));
        show("first frame of a call of 100 bytes on lane 3", &[&header[..], &body].concat());
        assert_eq!(script, include_str!("golden/wire.txt"));
    }
}
