//! The journal's bytes: file header, round, record. Nothing here does I/O.
//!
//! A file is a header block and then *rounds*, each at a multiple of 4096 bytes: a block that is durable is never written
//! again, and a reader that finds a bad round can still look for a later one. Everything is little endian.
//!
//! **File header**, the first 96 bytes of block 0 (the rest is zeros). A later version keeps the first 16 bytes and the extent of the
//! checksum as they are:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | `PONTOONJ` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | CRC-32C of bytes 0..12 and 16..96 |
//! | 16 | 16 | cluster id, 0 if none |
//! | 32 | 16 | directory id |
//! | 48 | 8 | epoch |
//! | 56 | 8 | number of the file within its epoch |
//! | 64 | 8 | first LSN: no record in this file has a smaller one |
//! | 72 | 8 | follows: the last LSN that was durable when this file was begun |
//! | 80 | 8 | bytes of the file when this use of it began; 0: not told. It may grow, and never shrinks |
//! | 88 | 8 | 0 |
//!
//! **Round**: a header of 64 bytes, its records one after the other, zeros up to the next block:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | `PJRD` |
//! | 4 | 4 | CRC-32C of bytes 0..4 and 8..64, seeded |
//! | 8 | 8 | epoch |
//! | 16 | 8 | LSN of the first record; the others count up from it |
//! | 24 | 8 | follows: the last LSN that was durable when this round was written |
//! | 32 | 8 | position of this round in its file |
//! | 40 | 4 | number of records |
//! | 44 | 4 | bytes of all records |
//! | 48 | 16 | 0 |
//!
//! **Record**: a header of 40 bytes, then the kind's fields, then (Append) the frames:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | CRC-32C of everything behind it, seeded |
//! | 4 | 4 | bytes behind the header |
//! | 8 | 8 | LSN |
//! | 16 | 8 | group |
//! | 24 | 8 | replica id |
//! | 32 | 1 | kind |
//! | 33 | 7 | 0 |
//!
//! "Seeded": the checksum starts from the CRC-32C of directory id, epoch and file number, so that what an earlier use of a
//! recycled file, or another directory, left there never matches (RULES.md J2). `tests/golden/journal-1.hex` shows a whole file.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use crc32c::{crc32c, crc32c_append};

use super::{Extent, JournalIdentity, Lsn, Op, Recovered, RecoveredOp, SegmentName};
use crate::types::{GroupId, LogId, ReplicaId, Vote, repr, vote};

/// Rounds begin at multiples of this.
pub(super) const BLOCK_BYTES: usize = 4096;
/// The format version that is written; no other is read.
pub(super) const FILE_VERSION: u32 = 1;
/// Size of a round's header in bytes.
pub(super) const ROUND_HEADER_BYTES: usize = 64;
/// Size of a record's header in bytes.
pub(super) const RECORD_HEADER_BYTES: usize = 40;
/// Most records in a round. LSNs jump by more than this at each opening, so that those of a torn round are never used again.
pub(super) const ROUND_RECORDS_MAX: usize = 1 << 16;
/// Longest name of a snapshot file.
pub(super) const SNAPSHOT_NAME_BYTES_MAX: usize = 1024;

const FILE_MAGIC: [u8; 8] = *b"PONTOONJ";
const FILE_HEADER_BYTES: usize = 96;
const ROUND_MAGIC: [u8; 4] = *b"PJRD";
/// Parts up to this size are copied together; larger ones are handed to the disk as they are.
const COPY_BYTES_MAX: usize = 2048;
const APPEND_FIELDS_BYTES: usize = 56;
const BYPASS_FIELDS_BYTES: usize = 68;

static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// What a file says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) cluster: u128,
    pub(super) directory: u128,
    pub(super) epoch: u64,
    pub(super) number: u64,
    pub(super) first: Lsn,
    pub(super) follows: Lsn,
    pub(super) file_bytes: u64,
}

/// Why a block is not a file header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoHeader {
    /// Never written, torn, or rotten.
    Unreadable,
    /// Sound, of a version this one does not know.
    Version(u32),
}

impl FileHeader {
    /// The header's whole block.
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(BLOCK_BYTES);
        out.put_slice(&FILE_MAGIC);
        out.put_u32_le(FILE_VERSION);
        out.put_u32_le(0);
        out.put_u128_le(self.cluster);
        out.put_u128_le(self.directory);
        out.put_u64_le(self.epoch);
        out.put_u64_le(self.number);
        out.put_u64_le(self.first.0);
        out.put_u64_le(self.follows.0);
        out.put_u64_le(self.file_bytes);
        out.resize(BLOCK_BYTES, 0);
        let crc = Self::checksum(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out.freeze()
    }

    pub(super) fn decode(block: &[u8]) -> Result<Self, NoHeader> {
        let bytes = block.get(..FILE_HEADER_BYTES).ok_or(NoHeader::Unreadable)?;
        if bytes[..8] != FILE_MAGIC || (&bytes[12..]).get_u32_le() != Self::checksum(bytes) {
            return Err(NoHeader::Unreadable);
        }
        let version = (&bytes[8..]).get_u32_le();
        if version != FILE_VERSION {
            return Err(NoHeader::Version(version));
        }
        let mut at = &bytes[16..];
        Ok(Self {
            cluster: at.get_u128_le(),
            directory: at.get_u128_le(),
            epoch: at.get_u64_le(),
            number: at.get_u64_le(),
            first: Lsn(at.get_u64_le()),
            follows: Lsn(at.get_u64_le()),
            file_bytes: at.get_u64_le(),
        })
    }

    fn checksum(bytes: &[u8]) -> u32 {
        crc32c_append(crc32c(&bytes[..12]), &bytes[16..FILE_HEADER_BYTES])
    }
}

/// What every checksum of one use of one file starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seed(u32);

impl Seed {
    pub(super) fn new(identity: &JournalIdentity, epoch: u64, number: u64) -> Self {
        Self::of(identity.directory, epoch, number)
    }

    pub(super) fn of(directory: u128, epoch: u64, number: u64) -> Self {
        let crc = crc32c(&directory.to_le_bytes());
        Self(crc32c_append(crc32c_append(crc, &epoch.to_le_bytes()), &number.to_le_bytes()))
    }
}

/// A round's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RoundHeader {
    pub(super) epoch: u64,
    pub(super) first: Lsn,
    pub(super) follows: Lsn,
    pub(super) position: u64,
    pub(super) records: u32,
    pub(super) body_bytes: u32,
}

impl RoundHeader {
    fn encode(&self, seed: Seed) -> Bytes {
        let mut out = BytesMut::with_capacity(ROUND_HEADER_BYTES);
        out.put_slice(&ROUND_MAGIC);
        out.put_u32_le(0);
        out.put_u64_le(self.epoch);
        out.put_u64_le(self.first.0);
        out.put_u64_le(self.follows.0);
        out.put_u64_le(self.position);
        out.put_u32_le(self.records);
        out.put_u32_le(self.body_bytes);
        out.put_bytes(0, 16);
        let crc = Self::checksum(&out, seed);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out.freeze()
    }

    /// The header at the front of `bytes`, if a sound one that belongs at this `position` is there.
    pub(super) fn decode(bytes: &[u8], seed: Seed, position: u64) -> Option<Self> {
        let bytes = bytes.get(..ROUND_HEADER_BYTES)?;
        if bytes[..4] != ROUND_MAGIC || (&bytes[4..]).get_u32_le() != Self::checksum(bytes, seed) {
            return None;
        }
        let mut at = &bytes[8..];
        let header = Self {
            epoch: at.get_u64_le(),
            first: Lsn(at.get_u64_le()),
            follows: Lsn(at.get_u64_le()),
            position: at.get_u64_le(),
            records: at.get_u32_le(),
            body_bytes: at.get_u32_le(),
        };
        (header.position == position && header.records as usize <= ROUND_RECORDS_MAX).then_some(header)
    }

    fn checksum(bytes: &[u8], seed: Seed) -> u32 {
        crc32c_append(crc32c_append(seed.0, &bytes[..4]), &bytes[8..ROUND_HEADER_BYTES])
    }

    /// Bytes of the whole round, up to the next block.
    pub(super) fn round_bytes(&self) -> u64 {
        round_bytes(self.body_bytes as usize)
    }

    /// LSN of the last record.
    pub(super) fn last(&self) -> Lsn {
        Lsn(self.first.0.saturating_add(u64::from(self.records)).saturating_sub(1))
    }
}

/// Bytes that a round with a body of so many takes in its file.
pub(super) fn round_bytes(body_bytes: usize) -> u64 {
    (ROUND_HEADER_BYTES + body_bytes).next_multiple_of(BLOCK_BYTES) as u64
}

/// A record's kind, as it stands in the file. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Create = 1,
    Append = 2,
    Bypass = 3,
    Truncate = 4,
    Vote = 5,
    Installed = 6,
    Purge = 7,
    Commit = 8,
    Delete = 9,
    Seal = 10,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        let all = [Create, Append, Bypass, Truncate, Vote, Installed, Purge, Commit, Delete, Seal];
        all.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// What a record says, before it is written.
pub(super) enum RecordBody {
    /// An operation, as it was submitted.
    Op(Op),
    /// An append whose frames stand in the segment already.
    Bypass { extent: Extent, crc: u32, first: LogId, last: LogId },
    /// The writer goes idle here (RULES.md J8).
    Seal,
}

impl RecordBody {
    /// Bytes of the whole record.
    pub(super) fn record_bytes(&self) -> usize {
        let fields = match self {
            Self::Op(Op::Append { extent, .. }) => APPEND_FIELDS_BYTES + extent.bytes as usize,
            Self::Op(Op::Truncate(_) | Op::Vote(_)) => 17,
            Self::Op(Op::Installed { snapshot, .. }) => 24 + snapshot.len(),
            Self::Op(Op::Purge(_) | Op::Commit(_)) => 16,
            Self::Op(Op::Create | Op::Delete) | Self::Seal => 0,
            Self::Bypass { .. } => BYPASS_FIELDS_BYTES,
        };
        RECORD_HEADER_BYTES + fields
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Op(Op::Create) => Kind::Create,
            Self::Op(Op::Append { .. }) => Kind::Append,
            Self::Op(Op::Truncate(_)) => Kind::Truncate,
            Self::Op(Op::Vote(_)) => Kind::Vote,
            Self::Op(Op::Installed { .. }) => Kind::Installed,
            Self::Op(Op::Purge(_)) => Kind::Purge,
            Self::Op(Op::Commit(_)) => Kind::Commit,
            Self::Op(Op::Delete) => Kind::Delete,
            Self::Bypass { .. } => Kind::Bypass,
            Self::Seal => Kind::Seal,
        }
    }

    /// The kind's fields, and the frames that follow them.
    fn fields(self, out: &mut BytesMut) -> Vec<Bytes> {
        match self {
            Self::Op(Op::Append { extent, parts, first, last, .. }) => {
                put_placed(out, extent, first, last);
                return parts;
            }
            Self::Bypass { extent, crc, first, last } => {
                put_placed(out, extent, first, last);
                out.put_u64_le(extent.bytes);
                out.put_u32_le(crc);
            }
            Self::Op(Op::Truncate(last)) => {
                out.put_u8(last.is_some().into());
                put_log_id(out, last.unwrap_or_else(|| crate::types::log_id(0, 0)));
            }
            Self::Op(Op::Vote(vote)) => {
                let repr::Vote(term, voted_for, committed) = vote.into();
                out.put_u64_le(term);
                out.put_u64_le(voted_for.0);
                out.put_u8(committed.into());
            }
            Self::Op(Op::Installed { boundary, next_offset, snapshot }) => {
                put_log_id(out, boundary);
                out.put_u64_le(next_offset);
                out.put_slice(snapshot.as_bytes());
            }
            Self::Op(Op::Purge(id) | Op::Commit(id)) => put_log_id(out, id),
            Self::Op(Op::Create | Op::Delete) | Self::Seal => {}
        }
        Vec::new()
    }
}

fn put_log_id(out: &mut BytesMut, id: LogId) {
    let repr::LogId(term, index) = id.into();
    out.put_u64_le(term);
    out.put_u64_le(index);
}

fn put_placed(out: &mut BytesMut, extent: Extent, first: LogId, last: LogId) {
    out.put_u64_le(extent.segment.first_index);
    out.put_u64_le(extent.segment.file_no);
    out.put_u64_le(extent.position);
    put_log_id(out, first);
    put_log_id(out, last);
}

/// Builds one round.
pub(super) struct RoundEncoder {
    seed: Seed,
    header: RoundHeader,
    /// What was copied together since the last part that was not.
    run: BytesMut,
    parts: Vec<Bytes>,
}

impl RoundEncoder {
    pub(super) fn new(seed: Seed, epoch: u64, position: u64, first: Lsn, follows: Lsn) -> Self {
        let header = RoundHeader { epoch, first, follows, position, records: 0, body_bytes: 0 };
        Self { seed, header, run: BytesMut::new(), parts: vec![Bytes::new()] }
    }

    /// Adds a record and returns its LSN.
    pub(super) fn push(&mut self, group: GroupId, replica: ReplicaId, body: RecordBody) -> Lsn {
        let lsn = Lsn(self.header.first.0 + u64::from(self.header.records));
        let record_bytes = body.record_bytes();
        let start = self.run.len();
        self.run.put_u32_le(0);
        self.run.put_u32_le((record_bytes - RECORD_HEADER_BYTES) as u32);
        self.run.put_u64_le(lsn.0);
        self.run.put_u64_le(group.0);
        self.run.put_u64_le(replica.0);
        self.run.put_u8(body.kind() as u8);
        self.run.put_bytes(0, 7);
        let frames = body.fields(&mut self.run);
        let crc = crc32c_append(self.seed.0, &self.run[start + 4..]);
        let crc = frames.iter().fold(crc, |crc, part| crc32c_append(crc, part));
        self.run[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        for part in frames {
            self.put(part);
        }
        self.header.records += 1;
        self.header.body_bytes += record_bytes as u32;
        lsn
    }

    fn put(&mut self, part: Bytes) {
        if part.len() <= COPY_BYTES_MAX {
            self.run.put_slice(&part);
            return;
        }
        self.parts.push(self.run.split().freeze());
        self.parts.push(part);
    }

    /// The round, whole, padded to blocks.
    pub(super) fn finish(mut self) -> Vec<Bytes> {
        let used = ROUND_HEADER_BYTES + self.header.body_bytes as usize;
        let padding = self.header.round_bytes() as usize - used;
        self.parts.push(self.run.freeze());
        self.parts.push(Bytes::from_static(&ZEROS[..padding]));
        self.parts[0] = self.header.encode(self.seed);
        self.parts
    }
}

/// Why a round's body cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BadBody {
    /// Torn, rotten, or not what the header says.
    Checksum,
    /// Sound, but this version does not understand it.
    Unknown(String),
}

/// The records of a round, Seals left out. `body` is exactly what the header says.
pub(super) fn decode_body(header: &RoundHeader, mut body: Bytes, seed: Seed) -> Result<Vec<Recovered>, BadBody> {
    if body.len() != header.body_bytes as usize {
        return Err(BadBody::Checksum);
    }
    let mut out = Vec::new();
    for number in 0..u64::from(header.records) {
        let expected = Lsn(header.first.0.checked_add(number).ok_or(BadBody::Checksum)?);
        out.extend(decode_record(&mut body, seed, expected)?);
    }
    if body.is_empty() { Ok(out) } else { Err(BadBody::Checksum) }
}

fn decode_record(body: &mut Bytes, seed: Seed, expected: Lsn) -> Result<Option<Recovered>, BadBody> {
    let header = body.get(..RECORD_HEADER_BYTES).ok_or(BadBody::Checksum)?;
    let crc = (&header[..4]).get_u32_le();
    let bytes = RECORD_HEADER_BYTES + (&header[4..8]).get_u32_le() as usize;
    if body.len() < bytes || crc32c_append(seed.0, &body[4..bytes]) != crc {
        return Err(BadBody::Checksum);
    }
    let mut record = body.split_to(bytes);
    record.advance(8);
    let lsn = Lsn(record.get_u64_le());
    let (group, replica) = (GroupId(record.get_u64_le()), ReplicaId(record.get_u64_le()));
    let kind = record.get_u8();
    record.advance(7);
    if lsn != expected {
        return Err(BadBody::Checksum);
    }
    let unknown = || BadBody::Unknown(format!("record {} of kind {kind} is not understood", lsn.0));
    let kind = Kind::from_byte(kind).ok_or_else(unknown)?;
    if kind == Kind::Seal {
        return Ok(None);
    }
    let op = decode_op(kind, record).ok_or_else(unknown)?;
    Ok(Some(Recovered { lsn, group, replica, op }))
}

fn decode_op(kind: Kind, mut at: Bytes) -> Option<RecoveredOp> {
    let op = match kind {
        Kind::Create => RecoveredOp::Create,
        Kind::Delete => RecoveredOp::Delete,
        Kind::Append => {
            let (mut extent, first, last) = get_placed(&mut at)?;
            extent.bytes = at.len() as u64;
            return Some(RecoveredOp::Append { extent, frames: at, first, last });
        }
        Kind::Bypass => {
            let (mut extent, first, last) = get_placed(&mut at)?;
            extent.bytes = at.try_get_u64_le().ok()?;
            RecoveredOp::Bypass { extent, crc: at.try_get_u32_le().ok()?, first, last }
        }
        Kind::Truncate => match (at.try_get_u8().ok()?, get_log_id(&mut at)?) {
            (0, _) => RecoveredOp::Truncate(None),
            (1, id) => RecoveredOp::Truncate(Some(id)),
            _ => return None,
        },
        Kind::Vote => RecoveredOp::Vote(get_vote(&mut at)?),
        Kind::Installed => {
            let boundary = get_log_id(&mut at)?;
            let next_offset = at.try_get_u64_le().ok()?;
            let snapshot = String::from_utf8(at.split_to(at.len()).into()).ok()?;
            RecoveredOp::Installed { boundary, next_offset, snapshot }
        }
        Kind::Purge => RecoveredOp::Purge(get_log_id(&mut at)?),
        Kind::Commit => RecoveredOp::Commit(get_log_id(&mut at)?),
        Kind::Seal => return None,
    };
    at.is_empty().then_some(op)
}

fn get_log_id(at: &mut Bytes) -> Option<LogId> {
    let (term, index) = (at.try_get_u64_le().ok()?, at.try_get_u64_le().ok()?);
    Some(repr::LogId(term, index).into())
}

fn get_vote(at: &mut Bytes) -> Option<Vote> {
    let (term, voted_for) = (at.try_get_u64_le().ok()?, at.try_get_u64_le().ok()?);
    match at.try_get_u8().ok()? {
        committed @ (0 | 1) => Some(vote(term, ReplicaId(voted_for), committed == 1)),
        _ => None,
    }
}

fn get_placed(at: &mut Bytes) -> Option<(Extent, LogId, LogId)> {
    let first_index = at.try_get_u64_le().ok()?;
    let file_no = at.try_get_u64_le().ok()?;
    let position = at.try_get_u64_le().ok()?;
    let extent = Extent { segment: SegmentName { first_index, file_no }, position, bytes: 0 };
    Some((extent, get_log_id(at)?, get_log_id(at)?))
}

/// The name of a journal file.
pub(super) fn file_name(epoch: u64, number: u64) -> String {
    format!("{epoch:010}-{number:010}.journal")
}

/// Epoch and number, from a name that [`file_name`] made.
pub(super) fn parse_file_name(name: &str) -> Option<(u64, u64)> {
    let (epoch, number) = name.strip_suffix(".journal")?.split_once('-')?;
    let (epoch, number) = (epoch.parse().ok()?, number.parse().ok()?);
    (file_name(epoch, number) == name).then_some((epoch, number))
}
