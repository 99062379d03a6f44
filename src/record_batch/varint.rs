//! Zigzag variable-length integers, as inside Kafka's records: seven bits a byte, least significant first.
//!
//! `put(-1)` is `01`, `put(150)` is `ac 02`.

use bytes::BufMut;

/// How many bytes [`put`] writes for `value`.
pub(super) fn size(value: i64) -> usize {
    let bits = 64 - zigzag(value).leading_zeros() as usize;
    bits.div_ceil(7).max(1)
}

/// Writes a value.
pub(super) fn put(out: &mut impl BufMut, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// Takes a 64-bit value off the front. `None`: cut short, or longer than ten bytes, or past 64 bits.
pub(super) fn take_i64(bytes: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for (at, byte) in bytes.iter().take(10).enumerate() {
        if at == 9 && *byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            *bytes = &bytes[at + 1..];
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

/// The same for a 32-bit value.
pub(super) fn take_i32(bytes: &mut &[u8]) -> Option<i32> {
    let mut rest = *bytes;
    let value = i32::try_from(take_i64(&mut rest)?).ok()?;
    *bytes = rest;
    Some(value)
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_in_the_header_hold() {
        for (value, bytes) in [(-1, &[0x01][..]), (150, &[0xac, 0x02]), (0, &[0]), (i64::MIN, &[255; 10])] {
            let mut out = Vec::new();
            put(&mut out, value);
            if value == i64::MIN {
                assert_eq!(out, [255, 255, 255, 255, 255, 255, 255, 255, 255, 1]);
            } else {
                assert_eq!(out, bytes);
            }
        }
    }

    #[test]
    fn overlong_and_cut_values_are_refused() {
        assert_eq!(take_i64(&mut &[0x80; 11][..]), None);
        assert_eq!(take_i64(&mut &[255, 255, 255, 255, 255, 255, 255, 255, 255, 2][..]), None);
        assert_eq!(take_i64(&mut &[0x80][..]), None);
        assert_eq!(take_i64(&mut &[][..]), None);
        let mut out = Vec::new();
        put(&mut out, i64::from(i32::MAX) + 1);
        assert_eq!(take_i32(&mut &out[..]), None);
    }

    proptest! {
        #[test]
        fn a_value_survives_the_round_trip(value in prop_oneof![any::<i64>(), -200..200i64, any::<i32>().prop_map(i64::from)]) {
            let mut out = Vec::new();
            put(&mut out, value);
            prop_assert_eq!(out.len(), size(value));
            let mut rest = &out[..];
            prop_assert_eq!(take_i64(&mut rest), Some(value));
            prop_assert!(rest.is_empty());
        }
    }
}
