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

    /// Reads an index of `segment`'s beginning, of at most `bytes_max` of its bytes. `None` if these bytes are not it, for
    /// whatever reason: it is then rebuilt. (A segment's bytes are written once, so an index of fewer bytes stays true.)
    pub fn decode(bytes: &[u8], segment: SegmentName, bytes_max: u64, interval: u64) -> Option<Self> {
        let (name, index) = Self::parse(bytes, interval).ok()?;
        (name == segment && index.end <= bytes_max).then_some(index)
    }

    /// Reads an index, and whose it is. The error says what is wrong with the bytes.
    pub(crate) fn parse(bytes: &[u8], interval: u64) -> Result<(SegmentName, Self), &'static str> {
        let cut = "cut short";
        let (body, mut crc) = bytes.split_at_checked(bytes.len().checked_sub(4).ok_or(cut)?).ok_or(cut)?;
        let (mut header, mut rest) = body.split_at_checked(HEADER_BYTES).ok_or(cut)?;
        if &header[..8] != MAGIC {
            return Err("not an index file");
        }
        if crc.get_u32_le() != crc32c::crc32c(body) {
            return Err("index file checksum mismatch");
        }
        header.advance(8);
        if header.get_u32_le() != INDEX_VERSION {
            return Err("an index file of a version that is not known");
        }
        let count = header.get_u32_le() as usize;
        let segment = SegmentName { first_index: header.get_u64_le(), file_no: header.get_u64_le() };
        let end = header.get_u64_le();
        if Some(rest.len()) != count.checked_mul(ENTRY_BYTES) {
            return Err("its header counts other entries than there are");
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
        let sound = rising && first && last;
        sound
            .then_some((segment, Self { entries, from: 0, end, interval }))
            .ok_or("its entries do not follow each other")
    }

    /// Its entries, in order.
    pub(crate) fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::FrameKind;
    use super::*;
    use crate::testing::hex;
    use crate::types::log_id;
    use proptest::prelude::*;

    const NAME: SegmentName = SegmentName { first_index: 7, file_no: 1 };

    fn header(index: u64, base_offset: u64, span: u32, payload_bytes: u32, max_timestamp: i64) -> FrameHeader {
        FrameHeader {
            payload_bytes,
            offset_span: span,
            record_count: span,
            max_timestamp,
            ..FrameHeader::bare(FrameKind::Records, log_id(1, index), base_offset)
        }
    }

    /// Frames of 100 bytes each: index, base offset, time.
    fn index_of(frames: &[(u64, u64, i64)], interval: u64) -> SparseIndex {
        let mut index = SparseIndex::new(0, interval);
        for (at, (number, offset, time)) in frames.iter().enumerate() {
            index.note(&header(*number, *offset, 1, 40, *time), at as u64 * 100);
        }
        index
    }

    #[test]
    fn bytes_of_the_first_version_are_still_read_and_written() {
        let index = index_of(&[(7, 20, 500), (8, 21, 400), (9, 22, 900), (10, 23, -1)], 150);
        let golden = include_str!("../../tests/golden/index-1.hex");
        assert_eq!(hex(&index.encode(NAME)), golden);
        assert_eq!(SparseIndex::decode(&index.encode(NAME), NAME, 400, 150).unwrap(), index);
    }

    #[test]
    fn the_example_in_the_header_holds() {
        let bytes = SparseIndex::new(0, 1).encode(NAME);
        let words = [0..8, 8..12, 12..16, 16..24, 24..32].map(|range| hex(&bytes[range]).trim().replace(' ', ""));
        assert!(include_str!("index.rs").contains(&format!("`{} …`", words.join(" "))), "{words:?}");
    }

    #[test]
    fn every_flipped_bit_and_a_foreign_segment_are_seen() {
        let good = index_of(&[(7, 20, 500), (8, 21, 400), (9, 22, 900)], 1).encode(NAME);
        for bit in 0..good.len() * 8 {
            let mut bytes = good.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SparseIndex::decode(&bytes, NAME, 300, 1), None, "bit {bit}");
        }
        for end in 0..good.len() {
            assert_eq!(SparseIndex::decode(&good[..end], NAME, 300, 1), None, "{end} bytes");
        }
        assert_eq!(SparseIndex::decode(&good, SegmentName { file_no: 2, ..NAME }, 300, 1), None);
        // Of a segment that has fewer bytes now.
        assert_eq!(SparseIndex::decode(&good, NAME, 299, 1), None);
    }

    #[test]
    fn a_time_is_looked_for_from_an_index_on() {
        let index = index_of(&[(7, 20, 500), (8, 21, 900), (9, 22, 100), (10, 23, 950), (11, 24, 10)], 150);
        assert_eq!(index.by_timestamp(0, 400), Some((7, Some(9))));
        assert_eq!(index.by_timestamp(8, 901), Some((9, Some(11))));
        assert_eq!(index.by_timestamp(8, 100), Some((8, Some(9))));
        assert_eq!(index.by_timestamp(11, 5), Some((11, None)));
        assert_eq!(index.by_timestamp(0, 951), None);
    }

    proptest! {
        #[test]
        fn an_index_points_at_or_before_what_is_looked_for(spans in prop::collection::vec(0..4u32, 1..60), interval in 1..900u64) {
            let mut index = SparseIndex::new(0, interval);
            let (mut offset, mut frames) = (100, Vec::new());
            for (at, span) in spans.iter().enumerate() {
                index.note(&header(7 + at as u64, offset, *span, 40, -1), at as u64 * 100);
                frames.push((7 + at as u64, offset, offset + u64::from(*span), at as u64 * 100));
                offset += u64::from(*span);
            }
            for (number, base, end, position) in frames {
                let found = index.by_index(number).unwrap();
                prop_assert!(found.index <= number && found.position <= position);
                prop_assert!(position - found.position < interval + 100);
                for offset in base..end {
                    let found = index.by_offset(offset).unwrap();
                    prop_assert!(found.base_offset <= offset && found.position <= position);
                }
            }
            prop_assert_eq!(index.by_index(6), None);
            prop_assert_eq!(index.by_offset(99), None);
            let read = SparseIndex::decode(&index.encode(NAME), NAME, index.end(), interval);
            prop_assert_eq!(read, Some(index));
        }

        #[test]
        fn anything_at_all_is_survived(bytes: Vec<u8>) {
            let _ = SparseIndex::decode(&bytes, NAME, u64::MAX, 1);
        }
    }
}
