//! The handshake: what two brokers say to each other before anything else, and why one is turned away.
//!
//! The dialler writes a [`Hello`], the acceptor answers with a [`Welcome`]; after it both write frames (see
//! [`super::wire`]). Little endian, 64 bytes each:
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
//! Who is welcome is `server`'s decision. The bytes of both stand in `golden/wire.txt`.

use bytes::{Buf, BufMut};

use super::wire::WireError;
use crate::types::{BrokerId, ClusterId};

/// The protocol version that is spoken; no other is.
pub const PROTOCOL_VERSION: u16 = 1;
/// Size of [`Hello`] and [`Welcome`] in bytes.
pub const HANDSHAKE_BYTES: usize = 64;

const HELLO_MAGIC: [u8; 8] = *b"PONTOONH";
const WELCOME_MAGIC: [u8; 8] = *b"PONTOONW";

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
    /// The dialler's cluster was recovered from a survivor and has another id since: what the dialler holds was given up.
    #[error(
        "the cluster was recovered from one survivor and goes on under another id; this broker's data was given up"
    )]
    Superseded = 7,
    /// Another process with the dialler's broker id is alive.
    #[error("another process with this broker's number is alive")]
    Taken = 8,
}

impl Turned {
    /// The same of the dialler, as the acceptor sees it.
    pub(super) fn of_dialler(self) -> &'static str {
        match self {
            Self::Version => "it speaks another protocol version",
            Self::ForeignCluster => "it belongs to another cluster",
            Self::WrongBroker => "it looks for another broker",
            Self::SameBroker => "it has the same broker id",
            Self::NoCluster => "one of the two is not part of a cluster yet",
            Self::Busy => "there are too many connections",
            Self::Superseded => "the cluster was recovered without it and goes on under another id",
            Self::Taken => "another process with its number is alive",
        }
    }

    fn from_byte(byte: u8) -> Result<Option<Self>, WireError> {
        Ok(Some(match byte {
            0 => return Ok(None),
            1 => Self::Version,
            2 => Self::ForeignCluster,
            3 => Self::WrongBroker,
            4 => Self::SameBroker,
            5 => Self::NoCluster,
            6 => Self::Busy,
            7 => Self::Superseded,
            8 => Self::Taken,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
        fn random_bytes_are_no_handshake(bytes in any::<[u8; HANDSHAKE_BYTES]>()) {
            prop_assert!(Hello::decode(&bytes).is_err());
            prop_assert!(Welcome::decode(&bytes).is_err());
        }
    }
}
