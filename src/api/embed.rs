//! `value_format=json`: values that are JSON, put into an answer as JSON.
//!
//! Embedded is exactly what a produce keeps as its text: objects, lists, numbers, true and false. A JSON string and `null`
//! stay text, so that `"a"` differs from `a`, and `null` from a tombstone: what was fetched so can be produced so again.
//!
//! One value must not make a whole answer unreadable. What strict readers choke on (half a surrogate pair, a number out
//! of range, deep nesting) therefore stays text too.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::records::compact;

/// Deepest nesting that is embedded. Readers commonly take 128 levels, and the answer has some of its own.
const DEPTH_MAX: usize = 64;

/// The value as JSON without whitespace, which is on one line; `None` if it is to stay text.
pub(super) fn embeddable(text: &str) -> Option<Cow<'_, [u8]>> {
    let text = text.trim_matches([' ', '\t', '\n', '\r']);
    if !text.starts_with(['{', '[', '-', 't', 'f']) && !text.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let mut json = serde_json::Deserializer::from_str(text);
    Walk { levels: DEPTH_MAX }.deserialize(&mut json).and_then(|()| json.end()).ok()?;
    Some(compact(text))
}

/// Reads JSON through and keeps nothing.
struct Walk {
    levels: usize,
}

impl Walk {
    fn deeper<E: serde::de::Error>(&self) -> Result<usize, E> {
        self.levels.checked_sub(1).ok_or_else(|| E::custom("nested too deeply"))
    }
}

impl<'de> DeserializeSeed<'de> for Walk {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let levels = self.deeper::<A::Error>()?;
        while list.next_element_seed(Walk { levels })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let levels = self.deeper::<A::Error>()?;
        while map.next_key_seed(Walk { levels })?.is_some() {
            map.next_value_seed(Walk { levels })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedded(text: &str) -> Option<String> {
        embeddable(text).map(|json| String::from_utf8(json.into_owned()).unwrap())
    }

    #[test]
    fn objects_lists_numbers_and_truths_are_embedded_on_one_line() {
        for (text, wanted) in [
            ("{\"a\": [1, null, \"x y\"],\n \"b\":{}}", "{\"a\":[1,null,\"x y\"],\"b\":{}}"),
            ("[]", "[]"),
            (" 12 ", "12"),
            ("-1.50e3", "-1.50e3"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("true", "true"),
            ("false", "false"),
        ] {
            assert_eq!(embedded(text).as_deref(), Some(wanted), "{text}");
        }
    }

    #[test]
    fn strings_and_null_stay_text_and_so_does_what_is_no_json() {
        for text in
            ["\"a\"", "null", "", " ", "hello", "truth", "nul", "{", "[1,]", "{\"a\":1} x", "01", "1 2", "+1", "NaN"]
        {
            assert_eq!(embedded(text), None, "{text}");
        }
    }

    #[test]
    fn what_strict_readers_choke_on_stays_text() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(embedded(&deep(DEPTH_MAX)).is_some());
        for text in [&deep(DEPTH_MAX + 1), "[\"\\ud800\"]", "{\"\\udc00\":1}", "1e999", "[\"a\tb\"]"] {
            assert_eq!(embedded(text), None, "{text}");
        }
    }
}
