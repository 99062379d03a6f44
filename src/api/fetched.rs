//! Fetched records as JSON: batches are decoded one by one into the answer's text, without a tree in between.
//!
//! Bytes that are UTF-8 are a string, others come as `…_base64`; with [`ValueFormat::Json`], values that are JSON are put in
//! as JSON. The same records go out as one JSON body, as lines of JSON, or as events of a stream ([`Framing`]). The answer is bounded by what the client asked for, also
//! where a small compressed batch holds large records; `next_offset` then says where to go on.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use pontoon_raft::types::Offset;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::embed::embeddable;
use crate::error::{Code, Error, Result};
use crate::partition::Fetched;
use crate::record_batch::{BatchError, Headers, Record, Records};

/// 200 of a fetch, as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchAnswer {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// Oldest readable.
    pub log_start_offset: u64,
    /// One past the last committed.
    pub high_watermark: u64,
    /// Where the next fetch begins: the only cursor.
    pub next_offset: u64,
    /// The answering leader's term.
    pub leader_epoch: u64,
    /// The records, in order.
    pub records: Vec<FetchedRecord>,
    /// The topic's id, which is in a header.
    #[serde(skip)]
    pub topic_id: Option<String>,
}

/// One record of a [`FetchAnswer`]. Written as the server writes it: a key and a value are in one form each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct FetchedRecord {
    /// Its offset.
    pub offset: u64,
    /// ms since 1970; -1 if it has none.
    pub timestamp: i64,
    /// Its key, if that is text.
    #[serde(default)]
    pub key: Option<String>,
    /// Its key, if that is not.
    #[serde(default)]
    pub key_base64: Option<String>,
    /// Its value, if that is text.
    #[serde(default)]
    pub value: Option<String>,
    /// Its value, if that is not.
    #[serde(default)]
    pub value_base64: Option<String>,
    /// Its headers: name, and a string, null or `{"base64"}`.
    #[serde(default)]
    pub headers: Vec<(String, Value)>,
}

impl Serialize for FetchedRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut record = serializer.serialize_struct("FetchedRecord", 5)?;
        record.serialize_field("offset", &self.offset)?;
        record.serialize_field("timestamp", &self.timestamp)?;
        match &self.key_base64 {
            Some(bytes) => record.serialize_field("key_base64", bytes)?,
            None => record.serialize_field("key", &self.key)?,
        }
        match &self.value_base64 {
            Some(bytes) => record.serialize_field("value_base64", bytes)?,
            None => record.serialize_field("value", &self.value)?,
        }
        record.serialize_field("headers", &self.headers)?;
        record.end()
    }
}

impl FetchedRecord {
    /// The key's bytes.
    pub fn key_bytes(&self) -> Option<Vec<u8>> {
        bytes_of(self.key.as_deref(), self.key_base64.as_deref())
    }

    /// The value's bytes; `None` is a tombstone.
    pub fn value_bytes(&self) -> Option<Vec<u8>> {
        bytes_of(self.value.as_deref(), self.value_base64.as_deref())
    }
}

fn bytes_of(text: Option<&str>, base64: Option<&str>) -> Option<Vec<u8>> {
    match (text, base64) {
        (Some(text), _) => Some(text.as_bytes().to_vec()),
        (None, Some(base64)) => STANDARD.decode(base64).ok(),
        (None, None) => None,
    }
}

/// How values are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ValueFormat {
    /// As strings (or base64).
    #[default]
    Text,
    /// Values that are JSON as JSON, the others as strings.
    Json,
}

/// What stands around the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// One JSON body, with the cursor in it.
    #[default]
    Body,
    /// A line of JSON each.
    Lines,
    /// An event each, as `text/event-stream` has them.
    Events,
}

/// What of a fetch is written, and how.
#[derive(Clone, Copy, Debug)]
pub struct RecordsForm {
    /// Most records.
    pub records_max: usize,
    /// Most bytes, unless the first record has more.
    pub bytes_max: usize,
    /// How values are written.
    pub values: ValueFormat,
    /// What stands around the records.
    pub framing: Framing,
}

/// Writes the records of a fetch.
pub struct RecordsJson {
    start: Offset,
    form: RecordsForm,
    out: Vec<u8>,
    count: usize,
    /// Behind the last record written.
    next: Option<u64>,
}

impl RecordsJson {
    /// For the records from `start` on.
    pub fn new(start: Offset, form: RecordsForm) -> Self {
        Self { start, form, out: Vec::new(), count: 0, next: None }
    }

    /// How many records were written.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Writes one batch's records. Returns false once a limit is reached: then the rest is left out.
    pub fn push(&mut self, records: std::result::Result<Records, BatchError>) -> Result<bool> {
        for record in records.map_err(unreadable)? {
            let record = record.map_err(unreadable)?;
            if record.offset < self.start.0 {
                continue;
            }
            if self.count >= self.form.records_max {
                return Ok(false);
            }
            let before = self.out.len();
            self.write(&record).map_err(|error| Error::new(Code::Internal, error.to_string()))?;
            if self.count > 0 && self.out.len() > self.form.bytes_max {
                self.out.truncate(before);
                return Ok(false);
            }
            self.count += 1;
            self.next = Some(record.offset + 1);
        }
        Ok(true)
    }

    fn write(&mut self, record: &Record) -> std::io::Result<()> {
        let values = self.form.values;
        match self.form.framing {
            Framing::Body => {
                if self.count > 0 {
                    self.out.push(b',');
                }
                write_record(&mut self.out, record, values)
            }
            Framing::Lines => {
                write_record(&mut self.out, record, values)?;
                self.out.write_all(b"\n")
            }
            Framing::Events => {
                write!(self.out, "id: {}\nevent: record\ndata: ", record.offset)?;
                write_record(&mut self.out, record, values)?;
                self.out.write_all(b"\n\n")
            }
        }
    }

    /// Where the next fetch begins. `end`: where it would if every batch was pushed and none was cut short; `None` if not.
    pub fn next_offset(&self, end: Option<Offset>) -> Offset {
        end.or(self.next.map(Offset)).unwrap_or(self.start)
    }

    /// What was written: lines or events.
    pub fn into_records(self) -> Bytes {
        self.out.into()
    }

    /// The whole [`Framing::Body`], in two parts. `complete`: every batch was pushed and none was cut short.
    pub fn finish(self, topic: &str, partition: u32, fetched: &Fetched, complete: bool) -> (Bytes, Bytes) {
        let next_offset = self.next_offset(complete.then_some(fetched.next_offset));
        let head = format!(
            "{{\"topic\":{},\"partition\":{partition},\"log_start_offset\":{},\"high_watermark\":{},\
             \"next_offset\":{next_offset},\"leader_epoch\":{},\"records\":[",
            Value::from(topic),
            fetched.log_start_offset,
            fetched.high_watermark,
            fetched.leader_epoch,
        );
        let mut records = self.out;
        records.extend_from_slice(b"]}");
        (head.into(), records.into())
    }
}

fn unreadable(error: BatchError) -> Error {
    Error::new(Code::CorruptLog, format!("a stored batch cannot be read: {error}"))
}

fn write_record(out: &mut Vec<u8>, record: &Record, values: ValueFormat) -> std::io::Result<()> {
    write!(out, "{{\"offset\":{},\"timestamp\":{}", record.offset, record.timestamp)?;
    write_field(out, "key", record.key.as_deref())?;
    write_value(out, record.value.as_deref(), values)?;
    write_headers(out, &record.headers)?;
    out.push(b'}');
    Ok(())
}

fn write_value(out: &mut Vec<u8>, value: Option<&[u8]>, values: ValueFormat) -> std::io::Result<()> {
    if values == ValueFormat::Json
        && let Some(json) = value.and_then(|value| std::str::from_utf8(value).ok()).and_then(embeddable)
    {
        out.extend_from_slice(b",\"value\":");
        out.extend_from_slice(&json);
        return Ok(());
    }
    write_field(out, "value", value)
}

fn write_field(out: &mut Vec<u8>, name: &str, bytes: Option<&[u8]>) -> std::io::Result<()> {
    match bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes)) {
        None => write!(out, ",\"{name}\":null"),
        Some(Ok(text)) => {
            write!(out, ",\"{name}\":")?;
            Ok(serde_json::to_writer(out, text)?)
        }
        Some(Err(bytes)) => write!(out, ",\"{name}_base64\":\"{}\"", STANDARD.encode(bytes)),
    }
}

fn write_headers(out: &mut Vec<u8>, headers: &Headers) -> std::io::Result<()> {
    out.extend_from_slice(b",\"headers\":[");
    for (at, header) in headers.iter().enumerate() {
        out.extend_from_slice(if at > 0 { b",[" } else { b"[" });
        serde_json::to_writer(&mut *out, &String::from_utf8_lossy(&header.key))?;
        out.push(b',');
        match header.value.as_deref().map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes)) {
            None => out.extend_from_slice(b"null"),
            Some(Ok(text)) => serde_json::to_writer(&mut *out, text)?,
            Some(Err(bytes)) => write!(out, "{{\"base64\":\"{}\"}}", STANDARD.encode(bytes))?,
        }
        out.push(b']');
    }
    out.push(b']');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record_batch::{BatchLimits, Header, NewRecord, RecordBatch, RecordBatchBuilder, stamp};

    fn batch(base: u64, values: &[&str]) -> Bytes {
        let mut builder = RecordBatchBuilder::new(BatchLimits::default());
        for value in values {
            let value = Some(Bytes::copy_from_slice(value.as_bytes()));
            builder.push(&NewRecord { timestamp: 7, value, ..NewRecord::default() }).unwrap();
        }
        stamped(base, builder)
    }

    fn records(batch: &Bytes) -> std::result::Result<Records, BatchError> {
        RecordBatch::stored(batch.clone()).and_then(|batch| batch.records(1 << 20))
    }

    fn stamped(base: u64, builder: RecordBatchBuilder) -> Bytes {
        let mut bytes = bytes::BytesMut::from(&builder.build(None).unwrap().into_bytes()[..]);
        stamp(&mut bytes, base, 3);
        bytes.freeze()
    }

    fn fetched(batches: Vec<Bytes>, next: u64) -> Fetched {
        Fetched {
            batches,
            start_offset: Offset(0),
            next_offset: Offset(next),
            log_start_offset: Offset(0),
            high_watermark: Offset(9),
            leader_epoch: 3,
        }
    }

    fn form(records_max: usize, bytes_max: usize) -> RecordsForm {
        RecordsForm { records_max, bytes_max, values: ValueFormat::Text, framing: Framing::Body }
    }

    fn answer(start: u64, records_max: usize, bytes_max: usize, fetched: &Fetched) -> FetchAnswer {
        let mut json = RecordsJson::new(Offset(start), form(records_max, bytes_max));
        let complete = fetched.batches.iter().all(|batch| json.push(records(batch)).unwrap());
        let (head, records) = json.finish("t", 1, fetched, complete);
        serde_json::from_slice(&[head, records].concat()).unwrap()
    }

    #[test]
    fn records_before_the_start_are_left_out_and_the_cursor_is_the_partitions() {
        let fetched = fetched(vec![batch(0, &["a", "b"]), batch(2, &["c"])], 5);
        let answer = answer(1, 100, 1 << 20, &fetched);
        let values: Vec<_> = answer.records.iter().map(|r| (r.offset, r.value.as_deref().unwrap())).collect();
        assert_eq!(values, [(1, "b"), (2, "c")]);
        assert_eq!((answer.next_offset, answer.high_watermark, answer.leader_epoch), (5, 9, 3));
    }

    #[test]
    fn with_a_limit_the_cursor_is_behind_the_last_record_returned() {
        let fetched = fetched(vec![batch(0, &["a", "b"]), batch(2, &["c"])], 5);
        assert_eq!(answer(0, 1, 1 << 20, &fetched).next_offset, 1);
        assert_eq!(answer(0, 2, 1 << 20, &fetched).next_offset, 2);
        assert_eq!(answer(0, 3, 1 << 20, &fetched).next_offset, 5);
        let tiny = answer(1, 100, 1, &fetched);
        assert_eq!((tiny.records.len(), tiny.next_offset), (1, 2), "one record whatever max_bytes says");
        // Each takes 62 bytes, and a comma stands between them.
        for (bytes_max, next_offset) in [(124, 1), (125, 2), (187, 2), (188, 5)] {
            assert_eq!(answer(0, 100, bytes_max, &fetched).next_offset, next_offset, "{bytes_max} bytes");
        }
    }

    #[test]
    fn bytes_that_are_no_text_come_as_base64_and_nulls_as_null() {
        let mut builder = RecordBatchBuilder::new(BatchLimits::default());
        let header = |key: &'static str, value: Option<&'static [u8]>| Header {
            key: Bytes::from_static(key.as_bytes()),
            value: value.map(Bytes::from_static),
        };
        let headers = vec![header("a", Some(b"x")), header("a", None), header("b", Some(b"\xff"))];
        let record = NewRecord { timestamp: 1, key: Some(Bytes::from_static(b"\xfe")), value: None, headers };
        builder.push(&record).unwrap();
        let answer = answer(0, 9, 1 << 20, &fetched(vec![stamped(0, builder)], 1));
        let wanted = r#"{"offset":0,"timestamp":1,"key_base64":"/g==","value":null,
            "headers":[["a","x"],["a",null],["b",{"base64":"/w=="}]]}"#;
        assert_eq!(serde_json::to_value(&answer.records[0]).unwrap(), serde_json::from_str::<Value>(wanted).unwrap());
        assert_eq!(answer.records[0].key_bytes().unwrap(), [0xfe]);
        assert_eq!(answer.records[0].value_bytes(), None);
    }

    #[test]
    fn text_survives_whatever_it_contains() {
        let text = "quotes \" and \\ and \n and \u{0} and \u{1f600}";
        let answer = answer(0, 9, 1 << 20, &fetched(vec![batch(0, &[text])], 1));
        assert_eq!(answer.records[0].value.as_deref(), Some(text));
    }

    #[test]
    fn a_stored_batch_that_cannot_be_read_is_not_served() {
        let mut json = RecordsJson::new(Offset(0), form(9, 9));
        assert_eq!(json.push(records(&Bytes::from_static(b"short"))).unwrap_err().code, Code::CorruptLog);
    }

    fn written(values: ValueFormat, framing: Framing, of: &[&str]) -> (String, Offset) {
        let mut json = RecordsJson::new(Offset(4), RecordsForm { values, framing, ..form(9, 1 << 20) });
        assert!(json.push(records(&batch(4, of))).unwrap());
        let next = json.next_offset(None);
        (String::from_utf8(json.into_records().to_vec()).unwrap(), next)
    }

    #[test]
    fn values_that_are_json_are_embedded_on_request() {
        let (lines, next) =
            written(ValueFormat::Json, Framing::Lines, &["{\"a\": 1.10,\n\"b\":[]}", "text", "null", "7"]);
        let lines: Vec<_> = lines.lines().collect();
        assert_eq!(lines[0], r#"{"offset":4,"timestamp":7,"key":null,"value":{"a":1.10,"b":[]},"headers":[]}"#);
        for (line, value) in lines[1..].iter().zip([r#""text""#, r#""null""#, "7"]) {
            assert!(line.contains(&format!("\"value\":{value},")), "{line}");
        }
        assert_eq!(next, Offset(8));
        let (plain, _) = written(ValueFormat::Text, Framing::Lines, &["7"]);
        assert!(plain.contains(r#""value":"7""#), "{plain}");
    }

    #[test]
    fn an_event_is_one_line_of_data_whatever_the_value_holds() {
        let (events, _) = written(ValueFormat::Json, Framing::Events, &["a\nb", "{\n}"]);
        let wanted = "id: 4\nevent: record\ndata: {\"offset\":4,\"timestamp\":7,\"key\":null,\"value\":\"a\\nb\",\"headers\":[]}\n\n\
                      id: 5\nevent: record\ndata: {\"offset\":5,\"timestamp\":7,\"key\":null,\"value\":{},\"headers\":[]}\n\n";
        assert_eq!(events, wanted);
    }
}
