//! A value as the bytes of a record, and back.
//!
//! `value:length:padding`. The padding repeats the value's digits, so that a byte that changed on its way is noticed: what does not read
//! back whole is no value of ours.

use crate::history::Value;

/// The text of a value, at least `bytes` long.
pub fn text(value: Value, bytes: usize) -> String {
    let digits = format!("{}.", value.0);
    let padding: String = digits.chars().cycle().take(bytes).collect();
    format!("{}:{}:{padding}", value.0, padding.len())
}

/// The value of a text; `None` if it was not made by [`text`].
pub fn value(found: &str) -> Option<Value> {
    let (digits, rest) = found.split_once(':')?;
    let (length, padding) = rest.split_once(':')?;
    let value = Value(digits.parse().ok().filter(|value| *value >= 0)?);
    let length: usize = length.parse().ok()?;
    (length == padding.len() && text(value, length) == found).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_reads_back_at_any_size() {
        for bytes in [0, 1, 7, 1000] {
            assert_eq!(value(&text(Value(42), bytes)), Some(Value(42)));
        }
        assert_eq!(text(Value(42), 5), "42:5:42.42");
    }

    #[test]
    fn changed_bytes_are_no_value() {
        for wrong in ["", "42", "42:5", "42:5:42.43", "42:5:42.4", "43:5:42.42", "-1:3:-1.", "042:4:42.4", "42:x:42.42"]
        {
            assert_eq!(value(wrong), None, "{wrong}");
        }
    }
}
