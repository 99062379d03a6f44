//! What a log's prefix would tell, as a file: the `.base` beside a segment, and the snapshot.
//!
//! A segment's base says how the log stood before its first frame: last log id, next offset, append state, membership. So
//! the prefix may be purged, and a truncation need not start from the log's beginning. A snapshot is the same with the
//! applied state behind it (none for `SnapshotAt::Boundary`: there the log is the data).
//!
//! Layout, little endian:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `PNTNBASE` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | length m of the prefix's part |
//! | 16 | 8 | length a of the applied state |
//! | 24 | m | the prefix's part, in [`crate::codec`] |
//! | 24+m | a | the applied state, in the application's own encoding |
//! | 24+m+a | 4 | CRC-32C of all before |
//!
//! An empty prefix is `504e544e42415345 01000000 05000000 0000000000000000 0100000000 …`.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::types::{LogId, StoredMembership, repr};

/// The format version that is written; no other is read.
pub const BASE_VERSION: u32 = 1;
/// The longest base or snapshot that is read: 256 MiB.
pub const BASE_BYTES_MAX: u64 = 256 << 20;

const MAGIC: &[u8; 8] = b"PNTNBASE";
const HEADER_BYTES: usize = 24;

/// How a log stands after its entry `last`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Base {
    /// The prefix's last entry; `None` for the empty prefix.
    pub last: Option<LogId>,
    /// The partition's next offset after it.
    pub next_offset: u64,
    /// The append state after it ([`crate::payload::AppendState::save`]); `None`: empty.
    pub append_state: Option<Bytes>,
    /// The last membership in it.
    pub membership: StoredMembership,
    /// The applied state after it (snapshots of `SnapshotAt::Applied` only, empty otherwise).
    pub application: Bytes,
}

/// Why bytes are not a base.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BaseError {
    /// Not this kind of file.
    #[error("not a base file")]
    Magic,
    /// Written by a version this one does not know.
    #[error("base format version {0} is not {BASE_VERSION}")]
    Version(u32),
    /// Shorter or longer than its header says.
    #[error("base file has {have} bytes, its header says {need}")]
    Length {
        /// Bytes that are there.
        have: u64,
        /// Bytes that the header names.
        need: u64,
    },
    /// The checksum does not match.
    #[error("base file checksum mismatch")]
    Checksum,
    /// A sound checksum over a value that makes no sense.
    #[error("base file is malformed: {0}")]
    Malformed(String),
}

#[derive(Serialize, Deserialize)]
struct Prefix {
    last: Option<repr::LogId>,
    next_offset: u64,
    append_state: Option<Vec<u8>>,
    membership: Option<Membership>,
}

/// A stored membership, in the form that stands on disk. `None` stands for the default, unset one.
pub(crate) type Membership = (repr::LogId, repr::Membership);

/// To the form on disk.
pub(crate) fn membership_to_repr(membership: &StoredMembership) -> Option<Membership> {
    (*membership.log_id()).map(|id| (id.into(), membership.membership().into()))
}

/// From the form on disk.
pub(crate) fn membership_from_repr(membership: Option<Membership>) -> Result<StoredMembership, String> {
    match membership {
        None => Ok(StoredMembership::default()),
        Some((id, membership)) => Ok(StoredMembership::new(Some(id.into()), membership.try_into()?)),
    }
}

impl Base {
    /// The file's bytes.
    pub fn encode(&self) -> Bytes {
        let prefix = codec::encode(&Prefix {
            last: self.last.map(Into::into),
            next_offset: self.next_offset,
            append_state: self.append_state.as_ref().map(|state| state.to_vec()),
            membership: membership_to_repr(&self.membership),
        });
        let mut out = BytesMut::with_capacity(HEADER_BYTES + prefix.len() + self.application.len() + 4);
        out.put_slice(MAGIC);
        out.put_u32_le(BASE_VERSION);
        out.put_u32_le(prefix.len() as u32);
        out.put_u64_le(self.application.len() as u64);
        out.put_slice(&prefix);
        out.put_slice(&self.application);
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        out.freeze()
    }

    /// Reads what [`Self::encode`] wrote; the applied state shares `bytes`' memory.
    pub fn decode(bytes: &Bytes) -> Result<Self, BaseError> {
        let have = bytes.len() as u64;
        let mut header = bytes.get(..HEADER_BYTES).ok_or(BaseError::Length { have, need: HEADER_BYTES as u64 })?;
        if &header[..8] != MAGIC {
            return Err(BaseError::Magic);
        }
        header.advance(8);
        let version = header.get_u32_le();
        if version != BASE_VERSION {
            return Err(BaseError::Version(version));
        }
        let prefix_bytes = u64::from(header.get_u32_le());
        let application_bytes = header.get_u64_le();
        let need = (HEADER_BYTES as u64 + 4).saturating_add(prefix_bytes).saturating_add(application_bytes);
        if have != need {
            return Err(BaseError::Length { have, need });
        }
        let (body, mut crc) = bytes.split_at(bytes.len() - 4);
        if crc32c::crc32c(body) != crc.get_u32_le() {
            return Err(BaseError::Checksum);
        }
        let application_at = HEADER_BYTES + prefix_bytes as usize;
        let prefix: Prefix = codec::decode_stored(&body[HEADER_BYTES..application_at])
            .map_err(|error| BaseError::Malformed(error.to_string()))?;
        Ok(Self {
            last: prefix.last.map(Into::into),
            next_offset: prefix.next_offset,
            append_state: prefix.append_state.map(Bytes::from),
            membership: membership_from_repr(prefix.membership).map_err(BaseError::Malformed)?,
            application: bytes.slice(application_at..bytes.len() - 4),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::testing::hex;
    use crate::types::{BrokerId, Membership, ReplicaHome, ReplicaId, log_id};
    use proptest::prelude::*;

    fn example(application: &'static [u8]) -> Base {
        let nodes = BTreeMap::from([(ReplicaId(11), ReplicaHome { broker: BrokerId(1) })]);
        let membership = Membership::new(vec![BTreeSet::from([ReplicaId(11)])], nodes).unwrap();
        Base {
            last: Some(log_id(3, 41)),
            next_offset: 1000,
            append_state: Some(Bytes::from_static(b"producers")),
            membership: StoredMembership::new(Some(log_id(1, 0)), membership),
            application: Bytes::from_static(application),
        }
    }

    #[test]
    fn bytes_of_the_first_version_are_still_read_and_written() {
        let golden = include_str!("../../tests/golden/base-1.hex");
        let bases = [Base::default(), example(b""), example(b"catalog")];
        assert_eq!(bases.iter().map(|base| hex(&base.encode())).collect::<Vec<_>>().join("\n"), golden);
        for base in bases {
            assert_eq!(Base::decode(&base.encode()).unwrap(), base);
        }
    }

    #[test]
    fn the_example_in_the_header_holds() {
        let bytes = Base::default().encode();
        let words: Vec<String> =
            [0..8, 8..12, 12..16, 16..24, 24..29].map(|range| hex(&bytes[range]).trim().replace(' ', "")).into();
        assert!(include_str!("base.rs").contains(&format!("`{} …`", words.join(" "))), "{words:?}");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let good = example(b"catalog").encode();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Base::decode(&bytes.into()).is_err(), "bit {bit}");
        }
        for end in 0..good.len() {
            assert!(Base::decode(&good.slice(..end)).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = Base::default().encode().to_vec();
        bytes[8] = 2;
        assert_eq!(Base::decode(&bytes.into()), Err(BaseError::Version(2)));
    }

    proptest! {
        #[test]
        fn a_base_survives_the_round_trip(
            last in any::<Option<(u64, u64)>>(),
            next_offset: u64,
            append_state in any::<Option<Vec<u8>>>(),
            application: Vec<u8>,
        ) {
            let base = Base {
                last: last.map(|(term, index)| log_id(term, index)),
                next_offset,
                append_state: append_state.map(Bytes::from),
                application: application.into(),
                ..Base::default()
            };
            prop_assert_eq!(Base::decode(&base.encode()).unwrap(), base);
        }

        #[test]
        fn anything_at_all_is_survived(bytes: Vec<u8>) {
            let _ = Base::decode(&bytes.into());
        }
    }
}
