//! Building a batch from records: what the HTTP door does with JSON and text.

use bytes::{BufMut, Bytes, BytesMut};

use super::{BATCH_HEADER_BYTES, BatchError, BatchHeader, BatchLimits, Header, RecordBatch, varint};

/// A record to be put into a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewRecord {
    /// In ms since 1970, or -1 for none.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Its headers, in order; keys may repeat.
    pub headers: Vec<Header>,
}

/// Who produced a batch, and where it stands among its others. All three are at least 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerSequence {
    /// The producer's id.
    pub producer_id: i64,
    /// Its epoch; a newer one fences the older.
    pub epoch: i16,
    /// Number of the batch's first record in this partition. After 2^31-1 comes 0.
    pub sequence: i32,
}

/// Collects records and makes one uncompressed batch of them.
pub struct RecordBatchBuilder {
    limits: BatchLimits,
    out: BytesMut,
    count: i32,
    base_timestamp: i64,
    max_timestamp: i64,
}

impl RecordBatchBuilder {
    /// An empty one.
    pub fn new(limits: BatchLimits) -> Self {
        Self { limits, out: BytesMut::zeroed(BATCH_HEADER_BYTES), count: 0, base_timestamp: -1, max_timestamp: -1 }
    }

    /// How many records were pushed.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether none was pushed.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds one record. `RecordTooLarge`, `BatchTooLarge`, or `Record` for a timestamp below -1 (or 2^63 after the
    /// batch's first): nothing was added then.
    pub fn push(&mut self, record: &NewRecord) -> Result<(), BatchError> {
        let number = self.count;
        let content: usize = length(&record.key)
            + length(&record.value)
            + record.headers.iter().map(|header| header.key.len() + length(&header.value)).sum::<usize>();
        if content > self.limits.record_bytes_max {
            return Err(BatchError::RecordTooLarge { number, bytes: content, max: self.limits.record_bytes_max });
        }
        let base_timestamp = if number == 0 { record.timestamp } else { self.base_timestamp };
        let timestamp_delta = match record.timestamp.checked_sub(base_timestamp) {
            Some(delta) if record.timestamp >= -1 => delta,
            _ => return Err(BatchError::Record { number, why: format!("its timestamp is {}", record.timestamp) }),
        };
        let body = 1
            + varint::size(timestamp_delta)
            + varint::size(number.into())
            + field_size(&record.key)
            + field_size(&record.value)
            + varint::size(record.headers.len() as i64)
            + record
                .headers
                .iter()
                .map(|header| varint::size(header.key.len() as i64) + header.key.len() + field_size(&header.value))
                .sum::<usize>();
        let total = self.out.len() + varint::size(body as i64) + body;
        if total > self.limits.batch_bytes_max {
            return Err(BatchError::BatchTooLarge { bytes: total, max: self.limits.batch_bytes_max });
        }
        self.out.reserve(total - self.out.len());
        varint::put(&mut self.out, body as i64);
        self.out.put_u8(0);
        varint::put(&mut self.out, timestamp_delta);
        varint::put(&mut self.out, number.into());
        put_field(&mut self.out, &record.key);
        put_field(&mut self.out, &record.value);
        varint::put(&mut self.out, record.headers.len() as i64);
        for header in &record.headers {
            varint::put(&mut self.out, header.key.len() as i64);
            self.out.put_slice(&header.key);
            put_field(&mut self.out, &header.value);
        }
        debug_assert_eq!(self.out.len(), total);
        self.count += 1;
        self.base_timestamp = base_timestamp;
        self.max_timestamp = self.max_timestamp.max(record.timestamp);
        Ok(())
    }

    /// The batch, with base offset 0 and no leader epoch: the leader stamps them. `Empty` without records, `Producer` if a
    /// number of `producer` is negative.
    pub fn build(self, producer: Option<ProducerSequence>) -> Result<RecordBatch, BatchError> {
        if self.count == 0 {
            return Err(BatchError::Empty);
        }
        let none = ProducerSequence { producer_id: -1, epoch: -1, sequence: -1 };
        let ProducerSequence { producer_id, epoch, sequence } = producer.unwrap_or(none);
        if producer.is_some() && (producer_id < 0 || epoch < 0 || sequence < 0) {
            return Err(BatchError::Producer { producer_id, epoch, sequence });
        }
        let mut bytes = self.out;
        let header = BatchHeader {
            base_offset: 0,
            leader_epoch: -1,
            crc: 0,
            attributes: 0,
            last_offset_delta: self.count - 1,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id,
            producer_epoch: epoch,
            base_sequence: sequence,
            record_count: self.count,
        };
        let header = header.write(&mut bytes);
        Ok(RecordBatch { header, bytes: bytes.freeze() })
    }
}

fn length(field: &Option<Bytes>) -> usize {
    field.as_ref().map_or(0, Bytes::len)
}

fn field_size(field: &Option<Bytes>) -> usize {
    match field {
        Some(bytes) => varint::size(bytes.len() as i64) + bytes.len(),
        None => varint::size(-1),
    }
}

fn put_field(out: &mut BytesMut, field: &Option<Bytes>) {
    match field {
        Some(bytes) => {
            varint::put(out, bytes.len() as i64);
            out.put_slice(bytes);
        }
        None => varint::put(out, -1),
    }
}
