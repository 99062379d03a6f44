//! Records as requests carry them: JSON objects, one by one, handed on without a second copy of the whole.
//!
//! A JSON string is UTF-8 text; any other JSON is kept as its own text without whitespace, numbers unread; null or
//! nothing is a tombstone (no key); `…_base64` carries bytes. Every refusal names the record's number and the field.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::{Code, Error, Result};

/// Most headers a JSON record may have.
pub const HEADERS_MAX: usize = 1024;

/// One record of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its key, if it has one.
    pub key: Option<Cow<'a, [u8]>>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Cow<'a, [u8]>>,
    /// Its headers, in order.
    pub headers: Vec<Header<'a>>,
    /// ms since 1970; `None`: the time of arrival.
    pub timestamp: Option<i64>,
}

/// A header: name and bytes, or no bytes.
pub type Header<'a> = (Cow<'a, str>, Option<Cow<'a, [u8]>>);

/// Reads `{"records":[…]}` and gives each record to `take`, in order. Returns how many there were, at least one. Records
/// are numbered from 0, as in the array and in the batch; a refusal by `take` is passed on as it is.
pub fn parse_json<'a>(body: &'a [u8], take: &mut dyn FnMut(Record<'a>) -> Result<()>) -> Result<usize> {
    let mut sink = Sink { take, count: 0, refused: None };
    let mut json = serde_json::Deserializer::from_slice(body);
    let result = Body { sink: &mut sink }.deserialize(&mut json).and_then(|()| json.end());
    if let Some(refused) = sink.refused {
        return Err(refused);
    }
    result.map_err(|error| invalid(format!("body: {error}")))?;
    if sink.count == 0 {
        return Err(invalid("records is empty".into()));
    }
    Ok(sink.count)
}

/// Reads one record object a line; a last line may end without a newline. The error names the line, from 1.
pub fn parse_ndjson<'a>(body: &'a [u8], take: &mut dyn FnMut(Record<'a>) -> Result<()>) -> Result<usize> {
    let body = body.strip_suffix(b"\n").unwrap_or(body);
    if body.is_empty() {
        return Err(invalid("the body has no line".into()));
    }
    let mut count = 0;
    for (at, line) in body.split(|byte| *byte == b'\n').enumerate() {
        let named = |why: String| invalid(format!("line {}: {why}", at + 1));
        let text = std::str::from_utf8(line).map_err(|error| named(error.to_string()))?;
        take(parse_record(text).map_err(named)?).map_err(|error| at_line(error, at + 1))?;
        count += 1;
    }
    Ok(count)
}

/// Reads one record object.
fn parse_record(text: &str) -> Result<Record<'_>, String> {
    // serde would take a list for the fields in order.
    if !text.trim_start().starts_with('{') {
        return Err(format!("{} is not a record object", shorten(text)));
    }
    let raw: RawRecord<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(Record {
        key: bytes_of("key", raw.key, raw.key_base64)?,
        value: bytes_of("value", raw.value, raw.value_base64)?,
        headers: raw.headers.map_or(Ok(Vec::new()), headers_of)?,
        timestamp: raw.timestamp.map(timestamp_of).transpose()?,
    })
}

/// The fields as they stand, so that what is wrong with one can be told with its name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a record object")]
struct RawRecord<'a> {
    #[serde(borrow, default, deserialize_with = "given")]
    key: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "given")]
    key_base64: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "given")]
    value: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "given")]
    value_base64: Option<&'a RawValue>,
    #[serde(borrow, default)]
    headers: Option<&'a RawValue>,
    #[serde(borrow, default)]
    timestamp: Option<&'a RawValue>,
}

/// A field that stands there, be it null.
fn given<'de: 'a, 'a, D: Deserializer<'de>>(field: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&'a RawValue>::deserialize(field).map(Some)
}

fn bytes_of<'a>(
    field: &str,
    plain: Option<&'a RawValue>,
    base64: Option<&'a RawValue>,
) -> Result<Option<Cow<'a, [u8]>>, String> {
    match (plain, base64) {
        (Some(_), Some(_)) => Err(format!("{field} and {field}_base64 are both given")),
        (Some(raw), None) if raw.get() == "null" => Ok(None),
        (Some(raw), None) => text_of(field, raw.get()).map(Some),
        (None, Some(raw)) => base64_of(&format!("{field}_base64"), raw.get()).map(|bytes| Some(Cow::Owned(bytes))),
        (None, None) => Ok(None),
    }
}

/// A string's text, or any other JSON's own text without whitespace.
fn text_of<'a>(field: &str, json: &'a str) -> Result<Cow<'a, [u8]>, String> {
    if !json.starts_with('"') {
        return Ok(compact(json));
    }
    Ok(match string_of(field, json)? {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    })
}

fn string_of<'a>(field: &str, json: &'a str) -> Result<Cow<'a, str>, String> {
    // A plain `Cow<str>` always copies; this one borrows what has no escapes.
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text<'_>>(json).map(|text| text.0).map_err(|error| format!("{field}: {error}"))
}

fn base64_of(field: &str, json: &str) -> Result<Vec<u8>, String> {
    let text = string_of(field, json)?;
    STANDARD.decode(text.as_bytes()).map_err(|error| format!("{field}: not base64: {error}"))
}

fn timestamp_of(raw: &RawValue) -> Result<i64, String> {
    match serde_json::from_str(raw.get()) {
        Ok(ms @ 0..) => Ok(ms),
        _ => Err(format!("timestamp: {} is not a number of milliseconds since 1970", shorten(raw.get()))),
    }
}

fn headers_of(raw: &RawValue) -> Result<Vec<Header<'_>>, String> {
    let pairs: Vec<(&RawValue, &RawValue)> = serde_json::from_str(raw.get())
        .map_err(|error| format!("headers: not a list of [name, value] pairs: {error}"))?;
    if pairs.len() > HEADERS_MAX {
        return Err(format!("headers: {} are more than {HEADERS_MAX}", pairs.len()));
    }
    let mut headers = Vec::with_capacity(pairs.len());
    for (at, (name, value)) in pairs.into_iter().enumerate() {
        let name = string_of(&format!("headers[{at}][0]"), name.get())?;
        headers.push((name, header_value(&format!("headers[{at}][1]"), value)?));
    }
    Ok(headers)
}

/// A string, null, or `{"base64": "…"}`.
fn header_value<'a>(field: &str, raw: &'a RawValue) -> Result<Option<Cow<'a, [u8]>>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Bytes<'a> {
        #[serde(borrow)]
        base64: &'a RawValue,
    }
    let json = raw.get();
    match json.as_bytes().first() {
        Some(b'"') => text_of(field, json).map(Some),
        Some(b'n') => Ok(None),
        Some(b'{') => {
            let bytes: Bytes<'_> = serde_json::from_str(json).map_err(|error| format!("{field}: {error}"))?;
            base64_of(&format!("{field}.base64"), bytes.base64.get()).map(|bytes| Some(Cow::Owned(bytes)))
        }
        _ => Err(format!("{field}: {} is neither a string nor null nor {{\"base64\"}}", shorten(json))),
    }
}

/// The JSON text without the whitespace between its tokens. It is valid JSON already.
pub(super) fn compact(json: &str) -> Cow<'_, [u8]> {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let bytes = json.as_bytes();
    if !bytes.iter().any(blank) {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let (mut inside, mut escaped) = (false, false);
    for byte in bytes {
        if !inside && blank(byte) {
            continue;
        }
        out.push(*byte);
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => inside = !inside,
            _ => {}
        }
    }
    Cow::Owned(out)
}

/// Enough of a value to recognise it by.
fn shorten(json: &str) -> Cow<'_, str> {
    match json.char_indices().nth(60) {
        Some((at, _)) => Cow::Owned(format!("{}…", &json[..at])),
        None => Cow::Borrowed(json),
    }
}

fn invalid(message: String) -> Error {
    Error::new(Code::InvalidRequest, message)
}

fn at_line(mut error: Error, line: usize) -> Error {
    error.message = format!("line {line}: {}", error.message);
    error
}

/// Where parsed records go, and the refusal that ended it: serde's own errors cannot carry ours.
struct Sink<'a, 't> {
    take: &'t mut dyn FnMut(Record<'a>) -> Result<()>,
    count: usize,
    refused: Option<Error>,
}

impl<'a> Sink<'a, '_> {
    fn push(&mut self, raw: &'a RawValue) -> Result<()> {
        let record = parse_record(raw.get()).map_err(|why| invalid(format!("record {}: {why}", self.count)))?;
        (self.take)(record)?;
        self.count += 1;
        Ok(())
    }
}

struct Body<'s, 'a, 't> {
    sink: &'s mut Sink<'a, 't>,
}

impl<'a> DeserializeSeed<'a> for Body<'_, 'a, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Body<'_, 'a, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object {\"records\": [...]}")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = false;
        while let Some(field) = map.next_key::<Cow<'a, str>>()? {
            if field != "records" {
                return Err(A::Error::unknown_field(&field, &["records"]));
            }
            if std::mem::replace(&mut seen, true) {
                return Err(A::Error::duplicate_field("records"));
            }
            map.next_value_seed(Records { sink: &mut *self.sink })?;
        }
        if seen { Ok(()) } else { Err(A::Error::missing_field("records")) }
    }
}

struct Records<'s, 'a, 't> {
    sink: &'s mut Sink<'a, 't>,
}

impl<'a> DeserializeSeed<'a> for Records<'_, 'a, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'a> Visitor<'a> for Records<'_, 'a, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of records")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut records: A) -> Result<(), A::Error> {
        while let Some(raw) = records.next_element::<&'a RawValue>()? {
            if let Err(refused) = self.sink.push(raw) {
                self.sink.refused = Some(refused);
                // Ends the parse; `refused` is what the caller sees.
                return Err(A::Error::custom("refused"));
            }
        }
        while records.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<Vec<Record<'_>>, String> {
        let mut records = Vec::new();
        let mut take = |record| {
            records.push(record);
            Ok(())
        };
        parse_json(body.as_bytes(), &mut take).map_err(|error| {
            assert_eq!(error.code, Code::InvalidRequest);
            error.message
        })?;
        Ok(records)
    }

    fn one(record: &str) -> Record<'static> {
        let body: &'static str = format!(r#"{{"records":[{record}]}}"#).leak();
        parse(body).unwrap().remove(0)
    }

    fn refused(record: &str) -> String {
        parse(format!(r#"{{"records":[{{}},{record}]}}"#).leak()).unwrap_err()
    }

    fn text(bytes: &Option<Cow<'_, [u8]>>) -> String {
        String::from_utf8(bytes.as_deref().unwrap().to_vec()).unwrap()
    }

    #[test]
    fn a_string_is_its_text() {
        let record = one(r#"{"key":"k","value":"a \"b\"\n\u00e9\ud83d\ude00"}"#);
        assert_eq!(text(&record.key), "k");
        assert_eq!(text(&record.value), "a \"b\"\n\u{e9}\u{1f600}");
        assert!(matches!(one(r#"{"value":"plain"}"#).value, Some(Cow::Borrowed(_))), "no copy without escapes");
    }

    #[test]
    fn other_json_keeps_its_own_text_without_whitespace() {
        let cases = [
            (r#"{ "a" : [ 1 , 2 ] , "b c" : " x \" y \\" }"#, r#"{"a":[1,2],"b c":" x \" y \\"}"#),
            ("1.000000000000000000000000001", "1.000000000000000000000000001"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("1E400", "1E400"),
            ("true", "true"),
            ("[\n]", "[]"),
            (r#"{"a":1,"a":2}"#, r#"{"a":1,"a":2}"#),
        ];
        for (json, kept) in cases {
            assert_eq!(text(&one(&format!(r#"{{"value": {json} }}"#)).value), kept);
        }
    }

    #[test]
    fn null_and_nothing_are_tombstones_and_an_empty_string_is_not() {
        assert_eq!(one("{}"), Record::default());
        assert_eq!(one(r#"{"key":null,"value":null,"headers":null,"timestamp":null}"#), Record::default());
        assert_eq!(one(r#"{"value":""}"#).value.as_deref(), Some(&b""[..]));
    }

    #[test]
    fn base64_carries_bytes() {
        let record = one(r#"{"key_base64":"/w==","value_base64":""}"#);
        assert_eq!(record.key.as_deref(), Some(&[0xff][..]));
        assert_eq!(record.value.as_deref(), Some(&b""[..]));
    }

    #[test]
    fn headers_are_pairs_in_order_and_may_repeat() {
        let record = one(r#"{"headers":[["a","1"],["a",null],["b",{"base64":"/w=="}]],"timestamp":5}"#);
        let wanted: Vec<Header<'_>> = vec![
            ("a".into(), Some(Cow::Borrowed(b"1"))),
            ("a".into(), None),
            ("b".into(), Some(Cow::Borrowed(&[0xff]))),
        ];
        assert_eq!(record.headers, wanted);
        assert_eq!(record.timestamp, Some(5));
    }

    #[test]
    fn each_refusal_names_record_and_field() {
        let cases = [
            (r#"{"valeu":1}"#, "`valeu`"),
            (r#"{"value":1,"value":2}"#, "`value`"),
            (r#"{"value":"a","value_base64":"YQ=="}"#, "value and value_base64"),
            (r#"{"value":null,"value_base64":"YQ=="}"#, "value and value_base64"),
            (r#"{"key_base64":"YQ==","key":null}"#, "key and key_base64"),
            (r#"{"key":"a","key_base64":"YQ=="}"#, "key and key_base64"),
            (r#"{"key":"a","key_base64":null}"#, "key and key_base64"),
            (r#"{"value_base64":null}"#, "value_base64"),
            (r#"{"key_base64":"?"}"#, "key_base64"),
            (r#"{"value_base64":7}"#, "value_base64"),
            (r#"{"value":"\ud800"}"#, "value"),
            (r#"{"timestamp":"now"}"#, "timestamp: \"now\""),
            (r#"{"timestamp":-1}"#, "timestamp: -1"),
            (r#"{"timestamp":1.5}"#, "timestamp: 1.5"),
            (r#"{"headers":{"a":"b"}}"#, "headers"),
            (r#"{"headers":[["a"]]}"#, "headers"),
            (r#"{"headers":[["a","b","c"]]}"#, "headers"),
            (r#"{"headers":[["a","b"],[1,"b"]]}"#, "headers[1][0]"),
            (r#"{"headers":[["a",5]]}"#, "headers[0][1]: 5"),
            (r#"{"headers":[["a",{"base64":"?"}]]}"#, "headers[0][1].base64"),
            (r#"{"headers":[["a",{"b64":"?"}]]}"#, "`b64`"),
            ("7", "a record object"),
            ("null", "a record object"),
        ];
        for (record, word) in cases {
            let message = refused(record);
            assert!(message.starts_with("record 1: ") && message.contains(word), "{record}: {message}");
        }
        let many = format!(r#"{{"headers":[{}["a","b"]]}}"#, r#"["a","b"],"#.repeat(HEADERS_MAX));
        assert!(refused(&many).contains("1025 are more than 1024"));
    }

    #[test]
    fn the_body_itself_is_strict() {
        let cases = [
            ("", "EOF"),
            ("{}", "`records`"),
            (r#"{"records":[]}"#, "records is empty"),
            (r#"{"records":[{}],"acks":"all"}"#, "`acks`"),
            (r#"{"records":[{}],"records":[{}]}"#, "duplicate"),
            (r#"{"records":{}}"#, "a list of records"),
            (r#"[{}]"#, "an object"),
            (r#"{"records":[{}]} x"#, "trailing"),
            (r#"{"records":[{}"#, "EOF"),
            (r#"{"records":[{"value":[}]}"#, "expected"),
        ];
        for (body, word) in cases {
            let message = parse(body).unwrap_err();
            assert!(message.contains(word), "{body}: {message}");
        }
        let mut take = |_| Ok(());
        assert!(parse_json(b"{\"records\":[{\"value\":\"\xff\"}]}", &mut take).is_err());
    }

    #[test]
    fn deep_nesting_is_text_like_any_other() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(text(&one(&format!(r#"{{"value":{deep}}}"#)).value), deep);
    }

    #[test]
    fn lines_are_records_and_a_bad_one_is_named() {
        let mut count = 0;
        let mut take = |_| {
            count += 1;
            Ok(())
        };
        assert_eq!(parse_ndjson(b"{\"value\":1}\r\n{\"value\":2}", &mut take).unwrap(), 2);
        assert_eq!(parse_ndjson(b"{\"value\":1}\n", &mut take).unwrap(), 1);
        for (body, word) in
            [(&b"{}\n\n{}"[..], "line 2"), (b"{}\n{}\n{\"v\":1}", "line 3"), (b"\xff", "line 1"), (b"", "no line")]
        {
            let message = parse_ndjson(body, &mut take).unwrap_err().message;
            assert!(message.contains(word), "{message}");
        }
        assert!(count > 3);
    }

    #[test]
    fn a_refusal_of_the_taker_ends_it_and_keeps_its_code() {
        let mut seen = 0;
        let mut take = |_| {
            seen += 1;
            if seen == 2 { Err(Error::new(Code::RecordTooLarge, "too large")) } else { Ok(()) }
        };
        let error = parse_json(br#"{"records":[{},{},{}]}"#, &mut take).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (Code::RecordTooLarge, "too large"));
        assert_eq!(seen, 2);
    }
}
