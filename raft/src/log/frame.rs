//! The frame: one Raft entry as it stands in a segment, in the journal and on the wire between brokers.
//!
//! Layout, little endian, 60 bytes of header, then the payload:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 1 | format version, 1 |
//! | 1 | 1 | kind |
//! | 2 | 2 | flags, 0 |
//! | 4 | 4 | payload length in bytes |
//! | 8 | 8 | term |
//! | 16 | 8 | index |
//! | 24 | 8 | base offset: the partition's next offset before this frame |
//! | 32 | 4 | offset span: how many offsets it takes |
//! | 36 | 4 | record count |
//! | 40 | 8 | max timestamp of the records, ms since 1970, -1 if none |
//! | 48 | 4 | CRC-32C of the payload |
//! | 52 | 4 | reserved, 0 |
//! | 56 | 4 | CRC-32C of bytes 0..56 |
//!
//! A blank at term 1, index 0 is `01 03 0000 00000000 0100000000000000 …`. The header's checksum covers the payload's,
//! so a sound header vouches for its payload's bytes too.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::types::LogId;

/// Size of a frame's header in bytes.
pub const FRAME_HEADER_BYTES: usize = 60;
/// The format version that is written; no other is read.
pub const FRAME_VERSION: u8 = 1;
/// The longest payload a frame may have: 80 MiB. Larger lengths are refused before memory is asked for.
pub const FRAME_PAYLOAD_BYTES_MAX: u32 = 80 << 20;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A payload that was accepted: a record batch, or a catalog command.
    Records = 1,
    /// A proposal that was turned down at append; the payload is the verdict. Takes no offsets.
    Void = 2,
    /// Raft's blank entry at the start of a term.
    Blank = 3,
    /// A membership, in [`crate::codec`].
    Membership = 4,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Records,
            2 => Self::Void,
            3 => Self::Blank,
            4 => Self::Membership,
            _ => return None,
        })
    }
}

/// A frame's header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the payload is.
    pub kind: FrameKind,
    /// Length of the payload in bytes.
    pub payload_bytes: u32,
    /// Raft term.
    pub term: u64,
    /// Raft index.
    pub index: u64,
    /// The partition's next offset before this frame.
    pub base_offset: u64,
    /// How many offsets this frame takes.
    pub offset_span: u32,
    /// How many records it holds.
    pub record_count: u32,
    /// Largest record timestamp, ms since 1970; -1 if none.
    pub max_timestamp: i64,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
}

/// A frame: header and payload, both checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The header.
    pub header: FrameHeader,
    /// The payload, shared, never copied per reader.
    pub payload: Bytes,
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the header or the payload need.
    #[error("frame cut short: {have} of {need} bytes")]
    Short {
        /// Bytes that are there.
        have: usize,
        /// Bytes that it takes.
        need: usize,
    },
    /// The header's own checksum does not match.
    #[error("frame header checksum mismatch")]
    HeaderChecksum,
    /// The payload's checksum does not match.
    #[error("frame payload checksum mismatch at index {index}")]
    PayloadChecksum {
        /// The Raft index the header names.
        index: u64,
    },
    /// A sound header with a value this version does not know.
    #[error("frame {field} {value} is not known")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

impl FrameHeader {
    /// The header of a frame without offsets, records or timestamps: what every kind but `Records` has.
    pub fn bare(kind: FrameKind, id: LogId, base_offset: u64) -> Self {
        Self {
            kind,
            payload_bytes: 0,
            term: id.leader_id.term,
            index: id.index,
            base_offset,
            offset_span: 0,
            record_count: 0,
            max_timestamp: -1,
            payload_crc: 0,
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let mut out = &mut bytes[..];
        out.put_u8(FRAME_VERSION);
        out.put_u8(self.kind as u8);
        out.put_u16_le(0);
        out.put_u32_le(self.payload_bytes);
        out.put_u64_le(self.term);
        out.put_u64_le(self.index);
        out.put_u64_le(self.base_offset);
        out.put_u32_le(self.offset_span);
        out.put_u32_le(self.record_count);
        out.put_i64_le(self.max_timestamp);
        out.put_u32_le(self.payload_crc);
        out.put_u32_le(0);
        let crc = crc32c::crc32c(&bytes[..56]);
        bytes[56..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header from the first [`FRAME_HEADER_BYTES`] of `bytes`. Everything it names is bounded.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let Some(mut at) = bytes.get(..FRAME_HEADER_BYTES) else {
            return Err(FrameError::Short { have: bytes.len(), need: FRAME_HEADER_BYTES });
        };
        let crc = u32::from_le_bytes([at[56], at[57], at[58], at[59]]);
        if crc != crc32c::crc32c(&at[..56]) {
            return Err(FrameError::HeaderChecksum);
        }
        let version = at.get_u8();
        if version != FRAME_VERSION {
            return Err(FrameError::Unknown { field: "version", value: version.into() });
        }
        let kind = at.get_u8();
        let kind = FrameKind::from_byte(kind).ok_or(FrameError::Unknown { field: "kind", value: kind.into() })?;
        let flags = at.get_u16_le();
        if flags != 0 {
            return Err(FrameError::Unknown { field: "flags", value: flags.into() });
        }
        let payload_bytes = at.get_u32_le();
        if payload_bytes > FRAME_PAYLOAD_BYTES_MAX {
            return Err(FrameError::Unknown { field: "payload length", value: payload_bytes.into() });
        }
        Ok(Self {
            kind,
            payload_bytes,
            term: at.get_u64_le(),
            index: at.get_u64_le(),
            base_offset: at.get_u64_le(),
            offset_span: at.get_u32_le(),
            record_count: at.get_u32_le(),
            max_timestamp: at.get_i64_le(),
            payload_crc: at.get_u32_le(),
        })
    }

    /// Bytes of the whole frame.
    pub fn frame_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + u64::from(self.payload_bytes)
    }

    /// The next offset after this frame.
    pub fn next_offset(&self) -> u64 {
        self.base_offset + u64::from(self.offset_span)
    }
}

impl Frame {
    /// Makes a frame, computing the payload's length and checksum. `header`'s own values of those two are ignored.
    pub fn new(mut header: FrameHeader, payload: Bytes) -> Self {
        header.payload_bytes = payload.len() as u32;
        header.payload_crc = crc32c::crc32c(&payload);
        Self { header, payload }
    }

    /// Takes one frame off the front of `bytes`, checking both checksums; the payload shares `bytes`' memory.
    pub fn decode(bytes: &mut Bytes) -> Result<Self, FrameError> {
        let header = FrameHeader::decode(bytes)?;
        let need = header.frame_bytes() as usize;
        if bytes.len() < need {
            return Err(FrameError::Short { have: bytes.len(), need });
        }
        bytes.advance(FRAME_HEADER_BYTES);
        let payload = bytes.split_to(header.payload_bytes as usize);
        if crc32c::crc32c(&payload) != header.payload_crc {
            return Err(FrameError::PayloadChecksum { index: header.index });
        }
        Ok(Self { header, payload })
    }

    /// Header and payload, to be written one after the other; the payload is shared, not copied.
    pub fn encode(&self) -> [Bytes; 2] {
        [Bytes::copy_from_slice(&self.header.encode()), self.payload.clone()]
    }

    /// The frame as one run of bytes (a copy; for tests and small frames).
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.header.frame_bytes() as usize);
        out.put_slice(&self.header.encode());
        out.put_slice(&self.payload);
        out.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn arbitrary_frame() -> impl Strategy<Value = Frame> {
        let kind = prop_oneof![
            Just(FrameKind::Records),
            Just(FrameKind::Void),
            Just(FrameKind::Blank),
            Just(FrameKind::Membership)
        ];
        (kind, any::<[u64; 3]>(), any::<[u32; 2]>(), any::<i64>(), proptest::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(kind, [term, index, base_offset], [offset_span, record_count], max_timestamp, payload)| {
                let header = FrameHeader {
                    kind,
                    payload_bytes: 0,
                    term,
                    index,
                    base_offset,
                    offset_span,
                    record_count,
                    max_timestamp,
                    payload_crc: 0,
                };
                Frame::new(header, payload.into())
            })
    }

    proptest! {
        #[test]
        fn a_frame_survives_the_round_trip(frame in arbitrary_frame()) {
            let mut bytes = frame.to_bytes();
            prop_assert_eq!(Frame::decode(&mut bytes).unwrap(), frame);
            prop_assert!(bytes.is_empty());
        }

        #[test]
        fn a_flipped_bit_is_always_seen(frame in arbitrary_frame(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut bytes = frame.to_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Frame::decode(&mut bytes.into()).is_err());
        }

        #[test]
        fn a_cut_frame_is_short(frame in arbitrary_frame(), at in any::<prop::sample::Index>()) {
            let whole = frame.to_bytes();
            let mut cut = whole.slice(..at.index(whole.len()));
            let short = matches!(Frame::decode(&mut cut), Err(FrameError::Short { .. }));
            prop_assert!(short);
        }
    }

    #[test]
    fn a_blank_has_the_bytes_of_the_header_comment() {
        let header = FrameHeader {
            kind: FrameKind::Blank,
            payload_bytes: 0,
            term: 1,
            index: 0,
            base_offset: 0,
            offset_span: 0,
            record_count: 0,
            max_timestamp: -1,
            payload_crc: 0,
        };
        let bytes = Frame::new(header, Bytes::new()).to_bytes();
        assert_eq!(bytes[..16], [1, 3, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes.len(), FRAME_HEADER_BYTES);
    }
}
