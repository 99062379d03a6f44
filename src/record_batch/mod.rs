//! Kafka's RecordBatch v2, by our own hand: the unit that is produced, replicated, stored and fetched, byte for byte the
//! same from producer to consumer.
//!
//! [`RecordBatch::check`] is the trust boundary: bytes off a socket become a batch there or are refused with what is wrong
//! with them. [`RecordBatch::stored`] reads one back from the log, whose own checksum vouches for it. Nothing here knows
//! offsets to be assigned, producers' states, or JSON; see `partition` and `http`.
//!
//! Layout, big endian (<https://kafka.apache.org/documentation/#recordbatch>), 61 bytes of header, then the records, one
//! after the other or compressed as a whole:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | base offset: stamped by the leader |
//! | 8 | 4 | length of what follows this field |
//! | 12 | 4 | partition leader epoch: stamped by the leader |
//! | 16 | 1 | magic, 2 |
//! | 17 | 4 | CRC-32C of everything after this field |
//! | 21 | 2 | attributes: compression (bits 0–2), log append time (3), transactional (4), control (5), delete horizon (6) |
//! | 23 | 4 | last offset delta |
//! | 27 | 8 | base timestamp: the first record's, ms since 1970, -1 if none |
//! | 35 | 8 | max timestamp |
//! | 43 | 8 | producer id, -1 if none |
//! | 51 | 2 | producer epoch |
//! | 53 | 4 | base sequence |
//! | 57 | 4 | record count |
//!
//! The first two stamped fields stand outside the checksum, so that a leader can fill them in and leave the rest as it came: all but a
//! max timestamp that is not its records', which is put right, and the checksum with it. Unless the topic wants another compression:
//! then `recompress` writes a new batch of the same records.

mod builder;
mod compression;
mod recompress;
mod records;
mod varint;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use builder::{NewRecord, ProducerSequence, RecordBatchBuilder};
pub use compression::Compression;
#[cfg(test)]
pub(crate) use compression::DECOMPRESSED;
pub use records::{Header, Headers, Record, Records};

use crate::error::{Code, Error};

/// Size of a batch's header in bytes.
pub const BATCH_HEADER_BYTES: usize = 61;
/// Base offset and length field: what `length` does not count.
const LENGTH_END: usize = 12;
/// Where the checksummed part begins.
const CRC_END: usize = 21;

const COMPRESSION_BITS: i16 = 0b111;
const LOG_APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;

/// What a batch from a client may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Largest record: key, value, header keys and values together. Default: 1 MiB.
    pub record_bytes_max: usize,
    /// Largest batch as it comes. Default: 16 MiB.
    pub batch_bytes_max: usize,
    /// Most bytes its records may decompress to. They are held only while they are checked, by few batches at a time (see
    /// `partition::aside`). Default: 64 MiB.
    pub decompressed_bytes_max: usize,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { record_bytes_max: 1 << 20, batch_bytes_max: 16 << 20, decompressed_bytes_max: 64 << 20 }
    }
}

/// Most bytes that a batch which was once taken may decompress to: the largest record that a topic can allow is 64 MiB, and has lengths.
pub const STORED_DECOMPRESSED_BYTES_MAX: usize = 65 << 20;

/// What decompressing a batch costs however little comes out, in bytes: decoders have buffers.
const DECODER_BYTES: usize = 64 << 10;

/// What the batches of one request may still decompress to, together: each within its own limit, very many small ones could still keep
/// a processor busy for very long.
#[derive(Clone, Debug)]
pub struct Allowance {
    max: usize,
    left: usize,
}

impl Allowance {
    /// So many bytes.
    pub fn new(max: usize) -> Self {
        Self { max, left: max }
    }

    /// Bytes that were spent so far. Plain batches cost nothing; one that does not decompress costs what it might have come to.
    pub fn spent(&self) -> usize {
        self.max - self.left
    }

    fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes.max(DECODER_BYTES));
    }
}

/// Why bytes are not a batch that can be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Shorter than a header.
    #[error("record batch of {have} bytes is shorter than its {BATCH_HEADER_BYTES}-byte header")]
    Short {
        /// Bytes that are there.
        have: usize,
    },
    /// The length field disagrees with the bytes: cut short, or more than one batch.
    #[error("record batch says it has {claimed} bytes, {have} were sent (one request carries exactly one batch)")]
    Length {
        /// What the length field amounts to.
        claimed: i64,
        /// Bytes that are there.
        have: usize,
    },
    /// Another format.
    #[error("record batch has magic {0}; only 2 is supported")]
    Magic(i8),
    /// The checksum does not match.
    #[error("record batch checksum is {actual:#010x}, its header says {claimed:#010x}")]
    Checksum {
        /// What the header says.
        claimed: u32,
        /// What the bytes amount to.
        actual: u32,
    },
    /// Something that a producer may not ask for, or not yet.
    #[error("record batch attributes {attributes:#06x}: {what}")]
    Attributes {
        /// All of them.
        attributes: i16,
        /// What is wrong.
        what: &'static str,
    },
    /// A compression that does not exist.
    #[error("record batch has unknown compression {0}")]
    Compression(i16),
    /// No records.
    #[error("record batch has no records")]
    Empty,
    /// The two counts disagree.
    #[error("record batch has record count {record_count} but last offset delta {last_offset_delta}")]
    Counts {
        /// The one.
        record_count: i32,
        /// The other.
        last_offset_delta: i32,
    },
    /// Bytes are left after the last record.
    #[error("{bytes} bytes follow the record batch's {records} records")]
    TrailingBytes {
        /// The header's count.
        records: i32,
        /// How many bytes are left.
        bytes: usize,
    },
    /// One record is malformed.
    #[error("record {number} of the batch: {why}")]
    Record {
        /// Its place in the batch.
        number: i32,
        /// What is wrong with it.
        why: String,
    },
    /// A record's time is out of range.
    #[error("record {number} of the batch: its timestamp, {base} and {delta}, is below -1, or too large")]
    Timestamp {
        /// Its place in the batch.
        number: i32,
        /// The batch's first time.
        base: i64,
        /// And what the record adds to it.
        delta: i64,
    },
    /// A producer id without a sound epoch and sequence.
    #[error("producer id {producer_id} with epoch {epoch} and sequence {sequence}: none may be negative")]
    Producer {
        /// The id.
        producer_id: i64,
        /// The epoch.
        epoch: i16,
        /// The sequence.
        sequence: i32,
    },
    /// A record is over the limit.
    #[error("record {number} of the batch has {bytes} bytes; the limit is {max}")]
    RecordTooLarge {
        /// Its place in the batch.
        number: i32,
        /// Key, value and headers together.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The batch is over the limit.
    #[error("record batch has {bytes} bytes; the limit is {max}")]
    BatchTooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Its records decompress to more than the limit.
    #[error("record batch decompresses to more than {max} bytes")]
    DecompressedTooLarge {
        /// The limit.
        max: usize,
    },
    /// With those before it in its request it decompresses to more than the limit.
    #[error("record batches of one request decompress to more than {max} bytes together")]
    RequestDecompressedTooLarge {
        /// The limit.
        max: usize,
    },
    /// Its records do not decompress.
    #[error("record batch does not decompress as {codec}: {why}")]
    Decompress {
        /// Which compression.
        codec: &'static str,
        /// The decoder's words.
        why: String,
    },
    /// With the compression that its topic stores it is over the limit.
    #[error("record batch has more than {max} bytes, the limit, as its topic stores it: {stored_as}")]
    RecompressedTooLarge {
        /// Its topic's `compression.type`.
        stored_as: &'static str,
        /// The limit.
        max: usize,
    },
    /// Its records do not compress, which is none of its faults.
    #[error("record batch does not compress as {codec}: {why}")]
    Compress {
        /// Which compression.
        codec: &'static str,
        /// The encoder's words.
        why: String,
    },
}

impl From<BatchError> for Error {
    fn from(error: BatchError) -> Self {
        let code = match error {
            BatchError::RecordTooLarge { .. } => Code::RecordTooLarge,
            BatchError::BatchTooLarge { .. }
            | BatchError::DecompressedTooLarge { .. }
            | BatchError::RequestDecompressedTooLarge { .. }
            | BatchError::RecompressedTooLarge { .. } => Code::RequestTooLarge,
            BatchError::Compress { .. } => Code::Internal,
            BatchError::Attributes { .. } | BatchError::Magic(_) | BatchError::Empty | BatchError::Producer { .. } => {
                Code::InvalidRequest
            }
            BatchError::Short { .. }
            | BatchError::Length { .. }
            | BatchError::Checksum { .. }
            | BatchError::Compression(_)
            | BatchError::Counts { .. }
            | BatchError::TrailingBytes { .. }
            | BatchError::Record { .. }
            | BatchError::Timestamp { .. }
            | BatchError::Decompress { .. } => Code::CorruptBatch,
        };
        Error::new(code, error.to_string())
    }
}

/// A batch's header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record, once stamped.
    pub base_offset: u64,
    /// The term in which it was appended, once stamped.
    pub leader_epoch: i32,
    /// CRC-32C of what follows it.
    pub crc: u32,
    /// Compression and flags.
    pub attributes: i16,
    /// Offset of the last record less the base offset.
    pub last_offset_delta: i32,
    /// The first record's timestamp, ms since 1970.
    pub base_timestamp: i64,
    /// The largest of the records' timestamps.
    pub max_timestamp: i64,
    /// The producer's id; -1 if it has none. Then the next two mean nothing.
    pub producer_id: i64,
    /// The producer's epoch.
    pub producer_epoch: i16,
    /// The first record's sequence.
    pub base_sequence: i32,
    /// How many records.
    pub record_count: i32,
}

impl BatchHeader {
    /// Reads the header off the front of a batch. It checks the magic and nothing else: for bytes that were checked before.
    pub fn read(bytes: &[u8]) -> Result<Self, BatchError> {
        let Some(mut at) = bytes.get(..BATCH_HEADER_BYTES) else {
            return Err(BatchError::Short { have: bytes.len() });
        };
        let base_offset = at.get_u64();
        let _length = at.get_i32();
        let leader_epoch = at.get_i32();
        let magic = at.get_i8();
        if magic != 2 {
            return Err(BatchError::Magic(magic));
        }
        Ok(Self {
            base_offset,
            leader_epoch,
            crc: at.get_u32(),
            attributes: at.get_i16(),
            last_offset_delta: at.get_i32(),
            base_timestamp: at.get_i64(),
            max_timestamp: at.get_i64(),
            producer_id: at.get_i64(),
            producer_epoch: at.get_i16(),
            base_sequence: at.get_i32(),
            record_count: at.get_i32(),
        })
    }

    /// Writes the header over the front of a batch whose records follow, and the length and checksum that they need.
    /// Returns it with that checksum.
    fn write(mut self, batch: &mut [u8]) -> Self {
        let length = (batch.len() - LENGTH_END) as i32;
        let mut out = &mut batch[..BATCH_HEADER_BYTES];
        out.put_u64(self.base_offset);
        out.put_i32(length);
        out.put_i32(self.leader_epoch);
        out.put_i8(2);
        out.put_u32(0);
        out.put_i16(self.attributes);
        out.put_i32(self.last_offset_delta);
        out.put_i64(self.base_timestamp);
        out.put_i64(self.max_timestamp);
        out.put_i64(self.producer_id);
        out.put_i16(self.producer_epoch);
        out.put_i32(self.base_sequence);
        out.put_i32(self.record_count);
        self.crc = crc32c::crc32c(&batch[CRC_END..]);
        batch[17..CRC_END].copy_from_slice(&self.crc.to_be_bytes());
        self
    }

    /// How its records are compressed. An error for bits that name none.
    pub fn compression(&self) -> Result<Compression, BatchError> {
        Compression::from_attributes(self.attributes)
    }

    /// Who produced it, if the producer is idempotent.
    pub fn producer(&self) -> Option<ProducerSequence> {
        (self.producer_id >= 0).then_some(ProducerSequence {
            producer_id: self.producer_id,
            epoch: self.producer_epoch,
            sequence: self.base_sequence,
        })
    }

    /// Offset of the last record.
    pub fn last_offset(&self) -> u64 {
        self.base_offset.saturating_add(self.last_offset_delta.max(0) as u64)
    }

    /// Whether `max_timestamp` is the broker's time and stands for every record's own.
    pub fn log_append_time(&self) -> bool {
        self.attributes & LOG_APPEND_TIME != 0
    }

    /// The same with the max timestamp that its records have: Kafka's brokers write it over what the producer said, and retention and
    /// the time index go by it. 0 where no record has one is left as it came.
    fn with_max_timestamp(self, max_timestamp: i64) -> Self {
        if (self.max_timestamp, max_timestamp) == (0, -1) { self } else { Self { max_timestamp, ..self } }
    }

    fn check(&self) -> Result<(), BatchError> {
        let attributes = self.attributes;
        let refuse = |what| Err(BatchError::Attributes { attributes, what });
        if attributes & CONTROL != 0 {
            return refuse("control batches are the broker's own");
        }
        if attributes & TRANSACTIONAL != 0 {
            return refuse("transactions are not supported");
        }
        if attributes & LOG_APPEND_TIME != 0 {
            return refuse("a producer may not set the log append time");
        }
        if attributes & !COMPRESSION_BITS != 0 {
            return refuse("unknown bits are set");
        }
        self.compression()?;
        let (record_count, last_offset_delta) = (self.record_count, self.last_offset_delta);
        if record_count == 0 {
            return Err(BatchError::Empty);
        }
        // Offsets are dense at append: a batch takes as many as it has records.
        if record_count < 0 || last_offset_delta != record_count - 1 {
            return Err(BatchError::Counts { record_count, last_offset_delta });
        }
        // Without an id the other two mean nothing: sarama leaves a 0 there.
        let idempotent = self.producer_id >= 0;
        if self.producer_id < -1 || idempotent && (self.producer_epoch < 0 || self.base_sequence < 0) {
            return Err(BatchError::Producer {
                producer_id: self.producer_id,
                epoch: self.producer_epoch,
                sequence: self.base_sequence,
            });
        }
        Ok(())
    }
}

/// One batch that has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordBatch {
    header: BatchHeader,
    bytes: Bytes,
}

impl RecordBatch {
    /// Takes bytes off a socket: exactly one batch, whole, its checksum, counts, timestamps and every record's lengths
    /// sound, within the limits, compressed or not. The bytes are shared, not copied, unless the header's max timestamp is not
    /// that of its records: then it is put right. Base offset and leader epoch may be anything: the leader stamps them.
    pub fn check(bytes: Bytes, limits: &BatchLimits) -> Result<Self, BatchError> {
        Self::check_within(bytes, limits, None, &mut Allowance::new(limits.decompressed_bytes_max))
    }

    /// [`Self::check`] of one of a request's batches, which share the allowance. `stored_as`: what it is to be compressed with,
    /// whatever it came with (see [`Self::recompressed`]); `None`: as it came.
    pub fn check_within(
        bytes: Bytes,
        limits: &BatchLimits,
        stored_as: Option<Compression>,
        allowance: &mut Allowance,
    ) -> Result<Self, BatchError> {
        if bytes.len() < BATCH_HEADER_BYTES {
            return Err(BatchError::Short { have: bytes.len() });
        }
        // The magic stands at the same place in every version, and decides what the rest means.
        let header = BatchHeader::read(&bytes)?;
        let length = i32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        let claimed = i64::from(length) + LENGTH_END as i64;
        if claimed != bytes.len() as i64 {
            return Err(BatchError::Length { claimed, have: bytes.len() });
        }
        if bytes.len() > limits.batch_bytes_max {
            return Err(BatchError::BatchTooLarge { bytes: bytes.len(), max: limits.batch_bytes_max });
        }
        let actual = crc32c::crc32c(&bytes[CRC_END..]);
        if actual != header.crc {
            return Err(BatchError::Checksum { claimed: header.crc, actual });
        }
        header.check()?;
        let batch = Self { header, bytes };
        let plain = batch.plain_records_within(limits.decompressed_bytes_max, allowance)?;
        let header = header.with_max_timestamp(records::check(&header, &plain, limits.record_bytes_max)?);
        match stored_as.filter(|codec| header.compression() != Ok(*codec)) {
            Some(codec) => recompress::recompress(header, &plain, codec, limits),
            None if header == batch.header => Ok(batch),
            None => {
                let mut bytes = BytesMut::from(&batch.bytes[..]);
                let header = header.write(&mut bytes);
                Ok(Self { header, bytes: bytes.freeze() })
            }
        }
    }

    /// The same, all of whose records have the time at which they were appended, in ms since 1970. In place, if nobody else holds the
    /// bytes.
    pub fn with_append_time(self, now: i64) -> Self {
        let header =
            BatchHeader { attributes: self.header.attributes | LOG_APPEND_TIME, max_timestamp: now, ..self.header };
        let mut bytes = self.bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        let header = header.write(&mut bytes);
        Self { header, bytes: bytes.freeze() }
    }

    /// Takes bytes that come from the log: checked when they were produced, and vouched for by the log's own checksum.
    pub fn stored(bytes: Bytes) -> Result<Self, BatchError> {
        Ok(Self { header: BatchHeader::read(&bytes)?, bytes })
    }

    /// Its header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// Its bytes, header and all.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The same, taken.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Its records, decompressed to at most `decompressed_bytes_max` (see [`BatchLimits`]; an uncompressed batch's are
    /// shared). Records of a checked batch are all `Ok`.
    pub fn records(&self, decompressed_bytes_max: usize) -> Result<Records, BatchError> {
        Ok(Records::new(&self.header, self.plain_records(decompressed_bytes_max)?))
    }

    fn plain_records_within(&self, bytes_max: usize, allowance: &mut Allowance) -> Result<Bytes, BatchError> {
        if self.header.compression()? == Compression::None {
            return self.plain_records(bytes_max);
        }
        let together = BatchError::RequestDecompressedTooLarge { max: allowance.max };
        let most = bytes_max.min(allowance.left);
        if most == 0 {
            return Err(together);
        }
        let plain = self.plain_records(most);
        allowance.spend(plain.as_ref().map_or(most, Bytes::len));
        plain.map_err(|error| match error {
            BatchError::DecompressedTooLarge { .. } if most < bytes_max => together,
            other => other,
        })
    }

    fn plain_records(&self, bytes_max: usize) -> Result<Bytes, BatchError> {
        self.header.compression()?.decompress(&self.bytes.slice(BATCH_HEADER_BYTES..), bytes_max)
    }
}

/// Writes base offset and leader epoch into a batch, outside its checksum: what the leader does at append.
///
/// `batch` has been read by [`BatchHeader::read`]. An epoch past 2^31-1 is written as that.
pub fn stamp(batch: &mut BytesMut, base_offset: u64, leader_epoch: u64) {
    let leader_epoch = i32::try_from(leader_epoch).unwrap_or(i32::MAX);
    batch[..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[LENGTH_END..16].copy_from_slice(&leader_epoch.to_be_bytes());
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
