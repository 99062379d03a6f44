//! The catalog's snapshot: all rows of a state, versioned and checksummed.
//!
//! Layout, little endian:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `PNTNCTLG` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | number of rows |
//! | 16 | … | each row: key length (u32), value length (u32), key, value; ordered by key |
//! | end-4 | 4 | CRC-32C of everything before |
//!
//! A state without topics and brokers is one row, its single values:
//! `504e544e43544c47 01000000 01000000 01000000 06000000 6d 010001010102 + crc`.

use bytes::{Buf, BufMut};
use pontoon_raft::types::repr;

use super::state::CatalogState;

const MAGIC: &[u8; 8] = b"PNTNCTLG";
/// The format version that is written; no other is read.
pub const SNAPSHOT_VERSION: u32 = 1;

/// A state's snapshot.
pub fn encode(state: &CatalogState) -> Vec<u8> {
    let rows: Vec<_> = state.row_keys().into_iter().filter_map(|key| Some((key.encode(), state.row(key)?))).collect();
    let mut out = Vec::new();
    out.put_slice(MAGIC);
    out.put_u32_le(SNAPSHOT_VERSION);
    out.put_u32_le(rows.len() as u32);
    for (key, value) in rows {
        out.put_u32_le(key.len() as u32);
        out.put_u32_le(value.len() as u32);
        out.put_slice(&key);
        out.put_slice(&value);
    }
    out.put_u32_le(crc32c::crc32c(&out));
    out
}

/// The state of a snapshot, as of `applied`. The error says what is wrong with the bytes.
pub fn decode(applied: Option<repr::LogId>, bytes: &[u8]) -> Result<CatalogState, String> {
    let (body, mut crc) = bytes.split_at_checked(bytes.len().saturating_sub(4)).ok_or("too short")?;
    if crc.len() < 4 || crc32c::crc32c(body) != crc.get_u32_le() {
        return Err("checksum mismatch".to_owned());
    }
    let mut rest = body.strip_prefix(MAGIC).ok_or("not a catalog snapshot: wrong magic")?;
    let version = rest.try_get_u32_le().map_err(|_| "cut short")?;
    if version != SNAPSHOT_VERSION {
        return Err(format!("format version {version}; this version reads {SNAPSHOT_VERSION}"));
    }
    let count = rest.try_get_u32_le().map_err(|_| "cut short")?;
    let mut rows = Vec::new();
    while rest.has_remaining() {
        rows.push(row(&mut rest).ok_or_else(|| format!("row {} is cut short", rows.len()))?);
    }
    if rows.len() != count as usize {
        return Err(format!("{} rows, not {count}", rows.len()));
    }
    CatalogState::from_rows(applied, rows.into_iter())
}

/// Takes one row off the front; `None` if it is longer than what is there.
fn row<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let key = rest.try_get_u32_le().ok()? as usize;
    let value = rest.try_get_u32_le().ok()? as usize;
    let (key, after) = rest.split_at_checked(key)?;
    let (value, after) = after.split_at_checked(value)?;
    *rest = after;
    Some((key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Vec<u8> {
        encode(&CatalogState::default())
    }

    #[test]
    fn the_example_in_the_header_holds() {
        let bytes = example();
        let expected = b"PNTNCTLG\x01\0\0\0\x01\0\0\0\x01\0\0\0\x06\0\0\0m\x01\0\x01\x01\x01\x02";
        assert_eq!(&bytes[..bytes.len() - 4], expected);
        assert_eq!(decode(None, &bytes).unwrap(), CatalogState::default());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let bytes = example();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(None, &bad).is_err(), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(decode(None, &bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_lying_row_length_is_refused() {
        let mut bytes = example();
        bytes[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        let end = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..end]).to_le_bytes();
        bytes[end..].copy_from_slice(&crc);
        assert!(decode(None, &bytes).unwrap_err().contains("cut short"));
    }
}
