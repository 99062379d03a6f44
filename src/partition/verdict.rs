//! What a void frame of a partition holds: why `append` turned a proposal down, or what a leader says of the
//! log itself: where it starts, which producers have expired.
//!
//! Layout, little endian: version (1), kind, then the kind's numbers in the order of its fields. `OffsetMismatch` of next
//! offset 7 is `01 05 0700000000000000`.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// What was decided instead of `accepted` (RULES.md O4), or about the log itself (O7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same producer's same sequences stand in the log already.
    Duplicate {
        /// Raft index of the original.
        index: u64,
        /// The term it was appended in.
        term: u64,
        /// Offset of its first record.
        base_offset: u64,
        /// Offset of its last record.
        last_offset: u64,
    },
    /// The sequence does not follow the producer's last one.
    OutOfOrder {
        /// The one that would.
        expected: i32,
    },
    /// The producer's epoch is older than one that was seen.
    Fenced {
        /// The newest one seen.
        epoch: i16,
    },
    /// The producer has no state here, and its sequence is not 0; or it was dropped, and may have begun before.
    UnknownProducer,
    /// `If-Match-Offset` is not the log end.
    OffsetMismatch {
        /// The log end.
        next_offset: u64,
    },
    /// The payload is no proposal of this version. A defect, or a newer broker's.
    Malformed,
    /// No batch: a leader says where the log starts, and what time it is. Its proposal has these bytes already.
    Retention {
        /// Offsets below are not to be read any more.
        log_start: u64,
        /// By the leader's clock, ms since 1970.
        time_ms: i64,
    },
    /// No batch: a leader says that producers have expired. Its proposal has these bytes already.
    ExpireProducers {
        /// Those whose last accepted batch has a smaller Raft index.
        below: u64,
    },
}

const VERSION: u8 = 1;

impl Verdict {
    /// As bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(34);
        out.put_u8(VERSION);
        match *self {
            Self::Duplicate { index, term, base_offset, last_offset } => {
                out.put_u8(1);
                out.put_u64_le(index);
                out.put_u64_le(term);
                out.put_u64_le(base_offset);
                out.put_u64_le(last_offset);
            }
            Self::OutOfOrder { expected } => {
                out.put_u8(2);
                out.put_i32_le(expected);
            }
            Self::Fenced { epoch } => {
                out.put_u8(3);
                out.put_i16_le(epoch);
            }
            Self::UnknownProducer => out.put_u8(4),
            Self::OffsetMismatch { next_offset } => {
                out.put_u8(5);
                out.put_u64_le(next_offset);
            }
            Self::Malformed => out.put_u8(6),
            Self::Retention { log_start, time_ms } => {
                out.put_u8(7);
                out.put_u64_le(log_start);
                out.put_i64_le(time_ms);
            }
            Self::ExpireProducers { below } => {
                out.put_u8(8);
                out.put_u64_le(below);
            }
        }
        out.freeze()
    }

    /// From bytes, whole. `None`: another version's, or no verdict.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        if bytes.try_get_u8().ok()? != VERSION {
            return None;
        }
        let verdict = match bytes.try_get_u8().ok()? {
            1 => Self::Duplicate {
                index: bytes.try_get_u64_le().ok()?,
                term: bytes.try_get_u64_le().ok()?,
                base_offset: bytes.try_get_u64_le().ok()?,
                last_offset: bytes.try_get_u64_le().ok()?,
            },
            2 => Self::OutOfOrder { expected: bytes.try_get_i32_le().ok()? },
            3 => Self::Fenced { epoch: bytes.try_get_i16_le().ok()? },
            4 => Self::UnknownProducer,
            5 => Self::OffsetMismatch { next_offset: bytes.try_get_u64_le().ok()? },
            6 => Self::Malformed,
            7 => Self::Retention { log_start: bytes.try_get_u64_le().ok()?, time_ms: bytes.try_get_i64_le().ok()? },
            8 => Self::ExpireProducers { below: bytes.try_get_u64_le().ok()? },
            _ => return None,
        };
        bytes.is_empty().then_some(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn arbitrary() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            any::<[u64; 4]>().prop_map(|[index, term, base_offset, last_offset]| Verdict::Duplicate {
                index,
                term,
                base_offset,
                last_offset
            }),
            any::<i32>().prop_map(|expected| Verdict::OutOfOrder { expected }),
            any::<i16>().prop_map(|epoch| Verdict::Fenced { epoch }),
            Just(Verdict::UnknownProducer),
            any::<u64>().prop_map(|next_offset| Verdict::OffsetMismatch { next_offset }),
            Just(Verdict::Malformed),
            any::<(u64, i64)>().prop_map(|(log_start, time_ms)| Verdict::Retention { log_start, time_ms }),
            any::<u64>().prop_map(|below| Verdict::ExpireProducers { below }),
        ]
    }

    #[test]
    fn the_example_in_the_header_holds() {
        assert_eq!(Verdict::OffsetMismatch { next_offset: 7 }.encode()[..], [1, 5, 7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Verdict::ExpireProducers { below: 7 }.encode()[..], [1, 8, 7, 0, 0, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn a_verdict_survives_the_round_trip_and_no_cut_or_longer_one_is_read(verdict in arbitrary()) {
            let bytes = verdict.encode();
            prop_assert_eq!(Verdict::decode(&bytes), Some(verdict));
            for cut in 0..bytes.len() {
                prop_assert_eq!(Verdict::decode(&bytes[..cut]), None);
            }
            prop_assert_eq!(Verdict::decode(&[&bytes[..], &[0]].concat()), None);
            prop_assert_eq!(Verdict::decode(&[&[2], &bytes[1..]].concat()), None);
        }
    }
}
