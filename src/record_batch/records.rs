//! The records inside a batch: one parser, used to check a batch and to iterate it.
//!
//! A record is: length, attributes (one byte, unused), timestamp delta, offset delta, key, value, headers; all integers
//! zigzag variable-length, and a length of -1 stands for null.

use std::ops::Range;

use bytes::Bytes;

use super::{BatchError, BatchHeader, varint};

/// One record of a batch. Everything in it shares the batch's memory (or its decompressed copy).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its offset (meaningful once the batch is stamped).
    pub offset: u64,
    /// In ms since 1970; -1 if it has none.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Its headers.
    pub headers: Headers,
}

/// One header of a record. Keys may repeat within a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its key: UTF-8 by convention, not checked.
    pub key: Bytes,
    /// Its value.
    pub value: Option<Bytes>,
}

/// A record's headers, in order: checked, and decoded as they are asked for, so that a record of a million empty headers
/// takes no memory but its own.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Headers {
    count: usize,
    bytes: Bytes,
}

impl Headers {
    /// How many.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Each in turn.
    pub fn iter(&self) -> impl Iterator<Item = Header> + '_ {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            let key = take_field(&mut rest).ok()??;
            let value = take_field(&mut rest).ok()?;
            Some(Header { key: self.bytes.slice_ref(key), value: value.map(|value| self.bytes.slice_ref(value)) })
        })
    }
}

/// The records of one batch. Ends after the first error.
pub struct Records {
    base_offset: u64,
    base_timestamp: i64,
    /// The broker's time, which stands for every record's own, if the batch says so.
    append_time: Option<i64>,
    bytes: Bytes,
    at: usize,
    next: i32,
    count: i32,
}

impl Records {
    pub(super) fn new(header: &BatchHeader, bytes: Bytes) -> Self {
        Self {
            base_offset: header.base_offset,
            base_timestamp: header.base_timestamp,
            append_time: header.log_append_time().then_some(header.max_timestamp),
            bytes,
            at: 0,
            next: 0,
            count: header.record_count,
        }
    }

    fn take(&mut self) -> Result<Record, BatchError> {
        let parsed = parse(&self.bytes[self.at..], self.next)?;
        let body = self.bytes.slice(self.at + parsed.body.start..self.at + parsed.body.end);
        self.at += parsed.body.end;
        let timestamp = match self.append_time {
            Some(time) => time,
            None => timestamp(self.base_timestamp, parsed.timestamp_delta, self.next)?,
        };
        Ok(Record {
            offset: self.base_offset.saturating_add(parsed.offset_delta as u64),
            timestamp,
            key: parsed.key.map(|range| body.slice(range)),
            value: parsed.value.map(|range| body.slice(range)),
            headers: Headers { count: parsed.header_count, bytes: body.slice(parsed.headers) },
        })
    }
}

impl Iterator for Records {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.count {
            return None;
        }
        let record = self.take();
        self.next = if record.is_ok() { self.next + 1 } else { self.count };
        Some(record)
    }
}

/// Walks every record and checks it against the header. `bytes` are the plain records, all of them. Returns the largest of their
/// timestamps, -1 if none has one: producers are not of one mind about what the header says (librdkafka 0 of records without, sarama
/// before 1.46 always -1).
pub(super) fn check(header: &BatchHeader, bytes: &[u8], record_bytes_max: usize) -> Result<i64, BatchError> {
    let mut rest = bytes;
    let mut max_timestamp = -1;
    for number in 0..header.record_count {
        let parsed = parse(rest, number)?;
        if parsed.content_bytes > record_bytes_max {
            return Err(BatchError::RecordTooLarge { number, bytes: parsed.content_bytes, max: record_bytes_max });
        }
        if parsed.offset_delta != number {
            return Err(record_error(number, format!("offset delta {}, not {number}", parsed.offset_delta)));
        }
        max_timestamp = max_timestamp.max(timestamp(header.base_timestamp, parsed.timestamp_delta, number)?);
        rest = &rest[parsed.body.end..];
    }
    if !rest.is_empty() {
        return Err(BatchError::TrailingBytes { records: header.record_count, bytes: rest.len() });
    }
    Ok(max_timestamp)
}

/// Where a record's parts are: `body` in the bytes given, the other ranges within `body`.
struct Parsed {
    body: Range<usize>,
    timestamp_delta: i64,
    offset_delta: i32,
    key: Option<Range<usize>>,
    value: Option<Range<usize>>,
    header_count: usize,
    headers: Range<usize>,
    /// Key, value, header keys and header values together.
    content_bytes: usize,
}

/// Parses the record at the front of `bytes`; `number` is its place in the batch, for messages.
fn parse(bytes: &[u8], number: i32) -> Result<Parsed, BatchError> {
    let cut = |what: &str| record_error(number, format!("its {what} is cut short or malformed"));
    let mut rest = bytes;
    let length = varint::take_i32(&mut rest).ok_or_else(|| cut("length"))?;
    let start = bytes.len() - rest.len();
    let body = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let body =
        body.ok_or_else(|| record_error(number, format!("its length is {length} with {} bytes left", rest.len())))?;

    let mut rest = body;
    let (_attributes, after) = rest.split_first().ok_or_else(|| cut("attributes byte"))?;
    rest = after;
    let timestamp_delta = varint::take_i64(&mut rest).ok_or_else(|| cut("timestamp delta"))?;
    let offset_delta = varint::take_i32(&mut rest).ok_or_else(|| cut("offset delta"))?;
    if offset_delta < 0 {
        return Err(record_error(number, format!("its offset delta is {offset_delta}")));
    }
    let field = |what: &str, rest: &mut &[u8]| {
        let field = take_field(rest).map_err(|why| record_error(number, format!("its {what} {why}")))?;
        let end = body.len() - rest.len();
        Ok(field.map(|field| end - field.len()..end))
    };
    let key = field("key", &mut rest)?;
    let value = field("value", &mut rest)?;
    let header_count = varint::take_i32(&mut rest).ok_or_else(|| cut("header count"))?;
    let headers = body.len() - rest.len()..body.len();
    let header_count = usize::try_from(header_count)
        .map_err(|_| record_error(number, format!("its header count is {header_count}")))?;
    let mut content_bytes = key.as_ref().map_or(0, Range::len) + value.as_ref().map_or(0, Range::len);
    // A lying count ends with the bytes: every header takes two at least.
    for _ in 0..header_count {
        let key =
            field("header key", &mut rest)?.ok_or_else(|| record_error(number, "it has a null header key".into()))?;
        let value = field("header value", &mut rest)?;
        content_bytes += key.len() + value.map_or(0, |value| value.len());
    }
    if !rest.is_empty() {
        return Err(record_error(number, format!("{} bytes follow its {header_count} headers", rest.len())));
    }
    let body = start..start + body.len();
    Ok(Parsed { body, timestamp_delta, offset_delta, key, value, header_count, headers, content_bytes })
}

/// Takes a length and that many bytes; -1 is null.
fn take_field<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, String> {
    let Some(length) = varint::take_i32(rest) else {
        return Err("has a malformed length".to_owned());
    };
    if length == -1 {
        return Ok(None);
    }
    match usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length)) {
        Some((field, after)) => {
            *rest = after;
            Ok(Some(field))
        }
        None => Err(format!("has length {length} with {} bytes left", rest.len())),
    }
}

fn timestamp(base: i64, delta: i64, number: i32) -> Result<i64, BatchError> {
    match base.checked_add(delta) {
        Some(timestamp) if timestamp >= -1 => Ok(timestamp),
        _ => Err(BatchError::Timestamp { number, base, delta }),
    }
}

fn record_error(number: i32, why: String) -> BatchError {
    BatchError::Record { number, why }
}
