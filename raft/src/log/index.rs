//! The sparse index of a segment: from a Raft index, an offset or a time to a position to start reading at.
//!
//! It is kept in memory while the segment grows, written beside the segment when that is closed, and can always be
//! rebuilt from the segment's headers; so it is checked when read and never trusted over the segment.
//!
//! Layout of the file, little endian:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `PNTNINDX` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | number of entries n |
//! | 16 | 8 | the segment's first index |
//! | 24 | 8 | the segment's file number |
//! | 32 | 8 | bytes of the segment that are indexed |
//! | 40 | 32 n | entries: Raft index, base offset, position, largest timestamp up to the next entry |
//! | 40+32n | 4 | CRC-32C of all before |
//!
//! The index of an empty segment 7-1 is `504e544e494e4458 01000000 00000000 0700000000000000 0100000000000000 …`.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::frame::FrameHeader;
use crate::journal::SegmentName;

/// The format version that is written; no other is read.
pub const INDEX_VERSION: u32 = 1;
/// The longest index file that is read: 64 MiB, two million entries.
pub const INDEX_BYTES_MAX: u64 = 64 << 20;

const MAGIC: &[u8; 8] = b"PNTNINDX";
const HEADER_BYTES: usize = 40;
const ENTRY_BYTES: usize = 32;

/// One place in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Raft index of the frame there.
    pub index: u64,
    /// The partition's next offset before it.
    pub base_offset: u64,
    /// Its position in the segment.
    pub position: u64,
    /// Largest record timestamp from here up to the next entry, ms; -1 if none.
    pub max_timestamp: i64,
}

/// The sparse index of one segment. Entries rise in index and position, and do not fall in offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseIndex {
    entries: Vec<IndexEntry>,
    /// Where in the segment it begins to know; 0 once complete.
    from: u64,
    /// How far into the segment it knows.
    end: u64,
    interval: u64,
}

impl SparseIndex {
    /// Knows nothing yet, and will be told of the frames from position `from` on. One entry per `interval` bytes.
    pub fn new(from: u64, interval: u64) -> Self {
        Self { entries: Vec::new(), from, end: from, interval }
    }

    /// Takes note of the frame at `position`, which follows the last one noted.
    pub fn note(&mut self, header: &FrameHeader, position: u64) {
        self.end = position + header.frame_bytes();
        match self.entries.last_mut() {
            Some(last) if position < last.position + self.interval => {
                last.max_timestamp = last.max_timestamp.max(header.max_timestamp);
            }
            _ => self.entries.push(IndexEntry {
                index: header.index,
                base_offset: header.base_offset,
                position,
                max_timestamp: header.max_timestamp,
            }),
        }
    }

    /// Whether it knows the segment from its beginning.
    pub fn is_complete(&self) -> bool {
        self.from == 0
    }

    /// Where in the segment it begins to know.
    pub fn from(&self) -> u64 {
        self.from
    }

    /// How far into the segment it knows.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Puts an index of the segment's beginning, up to [`Self::from`], in front.
    pub fn prepend(&mut self, mut front: SparseIndex) {
        front.entries.append(&mut self.entries);
        self.entries = front.entries;
        self.from = front.from;
    }

    /// The last entry at or before this Raft index.
    pub fn by_index(&self, index: u64) -> Option<IndexEntry> {
        self.before(self.entries.partition_point(|entry| entry.index <= index))
    }

    /// The last entry at or before this offset: the frame that holds it stands there or behind.
    pub fn by_offset(&self, offset: u64) -> Option<IndexEntry> {
        self.before(self.entries.partition_point(|entry| entry.base_offset <= offset))
    }

    /// From the Raft index `from_index` on, the first stretch of Raft indexes that may hold a timestamp at or after
    /// `timestamp`: its first index, and the first index behind it (`None`: up to the segment's end).
    pub fn by_timestamp(&self, from_index: u64, timestamp: i64) -> Option<(u64, Option<u64>)> {
        let start = self.entries.partition_point(|entry| entry.index <= from_index).saturating_sub(1);
        let found = start + self.entries[start..].iter().position(|entry| entry.max_timestamp >= timestamp)?;
        let first = self.entries[found].index.max(from_index);
        Some((first, self.entries.get(found + 1).map(|next| next.index)))
    }

    fn before(&self, point: usize) -> Option<IndexEntry> {
        point.checked_sub(1).map(|at| self.entries[at])
    }

    /// The file's bytes. Only a complete index is written.
    pub fn encode(&self, segment: SegmentName) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES + self.entries.len() * ENTRY_BYTES + 4);
        out.put_slice(MAGIC);
        out.put_u32_le(INDEX_VERSION);
        out.put_u32_le(self.entries.len() as u32);
        out.put_u64_le(segment.first_index);
        out.put_u64_le(segment.file_no);
        out.put_u64_le(self.end);
        for entry in &self.entries {
            out.put_u64_le(entry.index);
            out.put_u64_le(entry.base_offset);
            out.put_u64_le(entry.position);
            out.put_i64_le(entry.max_timestamp);
        }
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        out.freeze()
    }

    /// Reads the index of `segment`, of which `segment_bytes` bytes count. `None` if these bytes are not it, for whatever
    /// reason: it is then rebuilt.
    pub fn decode(bytes: &[u8], segment: SegmentName, segment_bytes: u64, interval: u64) -> Option<Self> {
        let (body, mut crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        let (mut header, mut rest) = body.split_at_checked(HEADER_BYTES)?;
        if &header[..8] != MAGIC || crc.get_u32_le() != crc32c::crc32c(body) {
            return None;
        }
        header.advance(8);
        let version = header.get_u32_le();
        let count = header.get_u32_le() as usize;
        let name = SegmentName { first_index: header.get_u64_le(), file_no: header.get_u64_le() };
        let end = header.get_u64_le();
        let sound = version == INDEX_VERSION && name == segment && end == segment_bytes;
        if !sound || rest.len() != count.checked_mul(ENTRY_BYTES)? {
            return None;
        }
        let mut entries = Vec::with_capacity(count);
        while rest.has_remaining() {
            entries.push(IndexEntry {
                index: rest.get_u64_le(),
                base_offset: rest.get_u64_le(),
                position: rest.get_u64_le(),
                max_timestamp: rest.get_i64_le(),
            });
        }
        let rising = entries.windows(2).all(|pair| {
            pair[0].index < pair[1].index
                && pair[0].position < pair[1].position
                && pair[0].base_offset <= pair[1].base_offset
        });
        let first = entries.first().is_some_and(|entry| entry.position == 0 && entry.index == segment.first_index);
        let last = entries.last().is_some_and(|entry| entry.position < end);
        (rising && first && last).then_some(Self { entries, from: 0, end, interval })
    }
}
