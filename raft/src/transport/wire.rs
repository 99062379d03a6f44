//! The formats between brokers: the handshake, and the frames that carry messages in pieces.
//!
//! A dialler writes a [`Hello`], the acceptor answers with a [`Welcome`]; after it both write frames. All little endian.
//!
//! Hello and welcome, 64 bytes each:
//!
//! | at | bytes | hello | welcome |
//! |---|---|---|---|
//! | 0 | 8 | magic `PONTOONH` | magic `PONTOONW` |
//! | 8 | 2 | protocol version, 1 | protocol version of the acceptor |
//! | 10 | 1 | connection kind: 1 control, 2 data, 3 call | verdict: 0 welcome, otherwise a [`Turned`] |
//! | 11 | 1 | 1 if a target broker is expected | 0 |
//! | 12 | 4 | broker that dials | broker that answers |
//! | 16 | 4 | broker that is expected to answer | 0 |
//! | 20 | 4 | reserved, 0 | reserved, 0 |
//! | 24 | 16 | cluster id of the dialler, 0 for none | cluster id of the acceptor |
//! | 40 | 8 | incarnation of the dialler's process | incarnation of the acceptor's process |
//! | 48 | 12 | reserved, 0 | reserved, 0 |
//! | 60 | 4 | CRC-32C of bytes 0..60 | CRC-32C of bytes 0..60 |
//!
//! A frame, 24 bytes of header, then the body:
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
use crate::types::{BrokerId, ClusterId};

/// The protocol version that is spoken; no other is.
pub const PROTOCOL_VERSION: u16 = 1;
/// Size of [`Hello`] and [`Welcome`] in bytes.
pub const HANDSHAKE_BYTES: usize = 64;
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

const HELLO_MAGIC: [u8; 8] = *b"PONTOONH";
const WELCOME_MAGIC: [u8; 8] = *b"PONTOONW";
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

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ConnectionKind {
    /// Pings, votes, heartbeats, transfers, reports, calls.
    Control = 1,
    /// Replication streams and snapshots.
    Data = 2,
    /// Calls only, from anyone (bootstrap).
    Call = 3,
}

impl ConnectionKind {
    fn from_byte(byte: u8) -> Result<Self, WireError> {
        Ok(match byte {
            1 => Self::Control,
            2 => Self::Data,
            3 => Self::Call,
            value => return Err(WireError::Unknown { field: "connection kind", value: value.into() }),
        })
    }

    /// Its name in metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Data => "data",
            Self::Call => "call",
        }
    }
}

/// Why an acceptor turned a dialler away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum Turned {
    /// It speaks another protocol version.
    #[error("it speaks another protocol version")]
    Version = 1,
    /// It belongs to another cluster.
    #[error("it belongs to another cluster")]
    ForeignCluster = 2,
    /// It is another broker than the one expected.
    #[error("it is another broker")]
    WrongBroker = 3,
    /// It has the dialler's own broker id.
    #[error("it has the same broker id")]
    SameBroker = 4,
    /// One of the two is not part of a cluster yet; only calls are possible.
    #[error("one of the two is not part of a cluster yet")]
    NoCluster = 5,
    /// It has too many connections.
    #[error("it has too many connections")]
    Busy = 6,
}

impl Turned {
    fn from_byte(byte: u8) -> Result<Option<Self>, WireError> {
        Ok(Some(match byte {
            0 => return Ok(None),
            1 => Self::Version,
            2 => Self::ForeignCluster,
            3 => Self::WrongBroker,
            4 => Self::SameBroker,
            5 => Self::NoCluster,
            6 => Self::Busy,
            value => return Err(WireError::Unknown { field: "verdict", value: value.into() }),
        }))
    }
}

/// The dialler's half of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What the connection is for.
    pub kind: ConnectionKind,
    /// Who dials.
    pub broker: BrokerId,
    /// Who is expected to answer.
    pub target: Option<BrokerId>,
    /// The dialler's cluster.
    pub cluster: Option<ClusterId>,
    /// The dialler's process.
    pub incarnation: u64,
}

/// The acceptor's half of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The acceptor's protocol version.
    pub version: u16,
    /// `None`: welcome.
    pub turned: Option<Turned>,
    /// Who answers.
    pub broker: BrokerId,
    /// The acceptor's cluster.
    pub cluster: Option<ClusterId>,
    /// The acceptor's process.
    pub incarnation: u64,
}

struct Handshake {
    magic: [u8; 8],
    version: u16,
    code: u8,
    has_target: bool,
    broker: BrokerId,
    target: BrokerId,
    cluster: Option<ClusterId>,
    incarnation: u64,
}

impl Handshake {
    fn encode(&self) -> [u8; HANDSHAKE_BYTES] {
        let mut bytes = [0; HANDSHAKE_BYTES];
        let mut out = &mut bytes[..];
        out.put_slice(&self.magic);
        out.put_u16_le(self.version);
        out.put_u8(self.code);
        out.put_u8(self.has_target.into());
        out.put_u32_le(self.broker.0);
        out.put_u32_le(self.target.0);
        out.put_u32_le(0);
        out.put_u128_le(self.cluster.map_or(0, |c| c.0));
        out.put_u64_le(self.incarnation);
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HANDSHAKE_BYTES], magic: [u8; 8]) -> Result<Self, WireError> {
        let mut at = &bytes[..];
        let mut found = [0; 8];
        at.copy_to_slice(&mut found);
        let crc = u32::from_le_bytes([bytes[60], bytes[61], bytes[62], bytes[63]]);
        if found != magic || crc != crc32c::crc32c(&bytes[..60]) {
            return Err(WireError::NotPontoon);
        }
        let version = at.get_u16_le();
        let code = at.get_u8();
        let has_target = at.get_u8() != 0;
        let broker = BrokerId(at.get_u32_le());
        let target = BrokerId(at.get_u32_le());
        at.advance(4);
        let cluster = Some(ClusterId(at.get_u128_le())).filter(|c| c.0 != 0);
        Ok(Self { magic, version, code, has_target, broker, target, cluster, incarnation: at.get_u64_le() })
    }
}

impl Hello {
    /// Its bytes.
    pub fn encode(&self) -> [u8; HANDSHAKE_BYTES] {
        Handshake {
            magic: HELLO_MAGIC,
            version: PROTOCOL_VERSION,
            code: self.kind as u8,
            has_target: self.target.is_some(),
            broker: self.broker,
            target: self.target.unwrap_or_default(),
            cluster: self.cluster,
            incarnation: self.incarnation,
        }
        .encode()
    }

    /// Reads a hello. `Ok(Err(version))`: a Pontoon broker of another version; the rest of its hello is not read.
    pub fn decode(bytes: &[u8; HANDSHAKE_BYTES]) -> Result<Result<Self, u16>, WireError> {
        let h = Handshake::decode(bytes, HELLO_MAGIC)?;
        if h.version != PROTOCOL_VERSION {
            return Ok(Err(h.version));
        }
        Ok(Ok(Self {
            kind: ConnectionKind::from_byte(h.code)?,
            broker: h.broker,
            target: h.has_target.then_some(h.target),
            cluster: h.cluster,
            incarnation: h.incarnation,
        }))
    }
}

impl Welcome {
    /// Its bytes.
    pub fn encode(&self) -> [u8; HANDSHAKE_BYTES] {
        Handshake {
            magic: WELCOME_MAGIC,
            version: self.version,
            code: self.turned.map_or(0, |t| t as u8),
            has_target: false,
            broker: self.broker,
            target: BrokerId(0),
            cluster: self.cluster,
            incarnation: self.incarnation,
        }
        .encode()
    }

    /// Reads a welcome, of any version.
    pub fn decode(bytes: &[u8; HANDSHAKE_BYTES]) -> Result<Self, WireError> {
        let h = Handshake::decode(bytes, WELCOME_MAGIC)?;
        let turned = if h.version == PROTOCOL_VERSION { Turned::from_byte(h.code)? } else { Some(Turned::Version) };
        Ok(Self { version: h.version, turned, broker: h.broker, cluster: h.cluster, incarnation: h.incarnation })
    }
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
}

impl Kind {
    const ALL: [Self; 14] = [
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
            Self::Heartbeat | Self::Vote | Self::PreVote | Self::Transfer | Self::Open | Self::Appended => {
                SMALL_BYTES_MAX
            }
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
        fn a_handshake_survives_the_round_trip(
            kind in prop::sample::select(vec![ConnectionKind::Control, ConnectionKind::Data, ConnectionKind::Call]),
            broker in any::<u32>(), target in any::<Option<u32>>(), cluster in any::<u128>(), incarnation in any::<u64>(),
        ) {
            let cluster = Some(ClusterId(cluster)).filter(|c| c.0 != 0);
            let hello = Hello { kind, broker: BrokerId(broker), target: target.map(BrokerId), cluster, incarnation };
            prop_assert_eq!(Hello::decode(&hello.encode()).unwrap(), Ok(hello));
            let welcome = Welcome {
                version: PROTOCOL_VERSION, turned: Some(Turned::Busy), broker: BrokerId(broker), cluster, incarnation,
            };
            prop_assert_eq!(Welcome::decode(&welcome.encode()).unwrap(), welcome);
        }

        #[test]
        fn a_flipped_bit_in_a_handshake_is_seen(at in 0..HANDSHAKE_BYTES, bit in 0..8u8) {
            let hello = Hello {
                kind: ConnectionKind::Data, broker: BrokerId(1), target: None, cluster: None, incarnation: 1,
            };
            let mut bytes = hello.encode();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Hello::decode(&bytes), Err(WireError::NotPontoon));
        }

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
        fn random_bytes_are_refused_without_a_panic(bytes in any::<[u8; HANDSHAKE_BYTES]>()) {
            prop_assert!(Hello::decode(&bytes).is_err());
            prop_assert!(Welcome::decode(&bytes).is_err());
            let header: [u8; HEADER_BYTES] = bytes[..HEADER_BYTES].try_into().unwrap();
            if let Ok(header) = Header::decode(&header) {
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
