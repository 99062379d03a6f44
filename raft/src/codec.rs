//! The one home of bincode: Pontoon's own control messages and catalog commands, never record data.
//!
//! Layout: one version byte, then bincode 2 (standard configuration: little endian, variable-length integers) of
//! the value. A message is bounded before memory is asked for: decoding may allocate at most [`DECODE_BYTES_MAX`]. What a checksum
//! vouches for is bounded by its own length ([`decode_stored`]).
//!
//! `encode(&7u16)` is `01 07`.

use serde::{Serialize, de::DeserializeOwned};

/// The version every message of today carries. A reader refuses what it does not know.
pub const VERSION: u8 = 1;

/// Upper bound on what decoding one message may allocate: 64 MiB.
pub const DECODE_BYTES_MAX: usize = 64 << 20;

/// The longest value that [`decode_stored`] takes: 512 MiB. Who stores a value that may come to more refuses to.
pub const STORED_BYTES_MAX: usize = 512 << 20;

/// What one encoded byte may come to, at the most: bincode counts a `u128` as its sixteen bytes, however few it took.
const GROWTH_MAX: usize = 16;

/// Why a message could not be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// No version byte.
    #[error("empty message")]
    Empty,
    /// Written by a version of Pontoon that this one does not know.
    #[error("message version {0} is not {VERSION}")]
    Version(u8),
    /// Malformed, too long, or followed by `trailing` bytes.
    #[error("malformed message: {0}")]
    Malformed(String),
}

/// Encodes a value. Panics only if `T`'s own serialisation fails, which is a programmer's mistake.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = vec![VERSION];
    match bincode::serde::encode_into_std_write(value, &mut out, bincode::config::standard()) {
        Ok(_) => out,
        Err(error) => panic!("a control message did not serialise: {error}"),
    }
}

/// Decodes what [`encode`] wrote, whole: trailing bytes are an error.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    decode_within::<T, DECODE_BYTES_MAX>(bytes)
}

/// [`decode`] of bytes that were compared with their checksum: whatever [`encode`] has made of a value, up to
/// [`STORED_BYTES_MAX`], is read back. Many small numbers come to several times their encoded length.
pub fn decode_stored<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > STORED_BYTES_MAX {
        return Err(DecodeError::Malformed(format!("{} bytes, more than {STORED_BYTES_MAX}", bytes.len())));
    }
    match bytes.len() * GROWTH_MAX <= DECODE_BYTES_MAX {
        true => decode_within::<T, DECODE_BYTES_MAX>(bytes),
        false => decode_within::<T, { STORED_BYTES_MAX * GROWTH_MAX }>(bytes),
    }
}

fn decode_within<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (version, body) = bytes.split_first().ok_or(DecodeError::Empty)?;
    if *version != VERSION {
        return Err(DecodeError::Version(*version));
    }
    let config = bincode::config::standard().with_limit::<LIMIT>();
    let (value, used) =
        bincode::serde::decode_from_slice(body, config).map_err(|e| DecodeError::Malformed(e.to_string()))?;
    if used != body.len() {
        return Err(DecodeError::Malformed(format!("{} trailing bytes", body.len() - used)));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_in_the_header_holds() {
        assert_eq!(encode(&7u16), [1, 7]);
        assert_eq!(decode::<u16>(&[1, 7]).unwrap(), 7);
    }

    #[test]
    fn bad_messages_are_refused() {
        assert!(matches!(decode::<u16>(&[]), Err(DecodeError::Empty)));
        assert!(matches!(decode::<u16>(&[9, 7]), Err(DecodeError::Version(9))));
        assert!(matches!(decode::<u16>(&[1, 7, 7]), Err(DecodeError::Malformed(_))));
        // A vector that claims 2^62 elements asks for no memory.
        let lie = [1, 253, 0, 0, 0, 0, 0, 0, 0, 64];
        assert!(matches!(decode::<Vec<u64>>(&lie), Err(DecodeError::Malformed(_))));
        assert!(matches!(decode_stored::<Vec<u64>>(&lie), Err(DecodeError::Malformed(_))));
        assert!(matches!(decode_stored::<String>(&lie), Err(DecodeError::Malformed(_))));
    }

    #[test]
    fn whatever_was_stored_is_read_back_however_small_its_numbers_are() {
        let value = vec![(1u128, 0u64); DECODE_BYTES_MAX / 24 + 1];
        let stored = encode(&value);
        assert!(stored.len() < DECODE_BYTES_MAX / 8 && decode::<Vec<(u128, u64)>>(&stored).is_err());
        assert!(decode_stored::<Vec<(u128, u64)>>(&stored).unwrap() == value);
    }
}
