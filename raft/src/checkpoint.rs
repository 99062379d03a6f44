//! The checkpoint file: every replica of a data directory as of a place in the journal (RULES.md J7).
//!
//! Recovery takes a replica's state from here and replays only its journal records above the LSN that stands with it. The
//! file is replaced whole; before that, everything it says is on disk. Taking one is [`crate::store`]'s business.
//!
//! Layout, little endian:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `PNTNCKPT` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | number of replicas n |
//! | 16 | 16 | the data directory's id |
//! | 32 | 8 | LSN below which the journal holds nothing that is needed |
//! | 40 | … | n times: group (8), replica (8), LSN (8), length m (4), m bytes of state in [`crate::codec`] |
//! | end | 4 | CRC-32C of all before |
//!
//! An empty one of directory 1 is `504e544e434b5054 01000000 00000000 01000000000000000000000000000000 0000000000000000 …`.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError};
use crate::journal::{Lsn, SegmentName};
use crate::log::base::Membership;
use crate::types::{DirectoryId, GroupId, ReplicaId, repr};

/// The format version that is written; no other is read.
pub const CHECKPOINT_VERSION: u32 = 1;
/// The longest checkpoint that is read, and so the longest that is written: 4 GiB.
pub const CHECKPOINT_BYTES_MAX: u64 = 4 << 30;
/// Its name in the data directory.
pub const CHECKPOINT_FILE: &str = "checkpoint";

const MAGIC: &[u8; 8] = b"PNTNCKPT";
const HEADER_BYTES: usize = 40;
const ENTRY_HEADER_BYTES: usize = 28;

/// A whole checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The data directory it belongs to.
    pub directory: DirectoryId,
    /// Every journal record below it is reflected in every replica's state.
    pub lsn: Lsn,
    /// The replicas.
    pub replicas: Vec<CheckpointEntry>,
}

/// One replica in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointEntry {
    /// The group.
    pub group: GroupId,
    /// The incarnation.
    pub replica: ReplicaId,
    /// The replica's journal records up to and including this one are reflected in `state`.
    pub lsn: Lsn,
    /// A [`ReplicaState`], encoded: at most [`codec::STORED_BYTES_MAX`]. Kept so, because an unchanged one is written again as it is.
    pub state: Bytes,
}

impl CheckpointEntry {
    /// What it says of the replica.
    pub fn decode_state(&self) -> Result<ReplicaState, DecodeError> {
        codec::decode_stored(&self.state)
    }
}

/// What a checkpoint says of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaState {
    /// Raft's vote.
    pub vote: Option<repr::Vote>,
    /// Last entry that is known to be committed.
    pub committed: Option<repr::LogId>,
    /// Last entry that is gone.
    pub purged: Option<repr::LogId>,
    /// The next offset after it: the log start offset.
    pub log_start_offset: u64,
    /// Last entry: with the last segment's name and length, the watermark W below which bad bytes are corruption.
    pub last: Option<repr::LogId>,
    /// The next offset after it.
    pub next_offset: u64,
    /// The append state after it.
    pub append_state: Vec<u8>,
    /// The last two memberships.
    pub memberships: Vec<Membership>,
    /// The segments, oldest first.
    pub segments: Vec<SegmentState>,
    /// File numbers below this one have been used.
    pub next_file_no: u64,
    /// The next append opens a new file, because the last one ends before its bytes do (RULES.md J10).
    pub roll: bool,
    /// Name and last log id of the newest snapshot.
    pub snapshot: Option<(String, repr::LogId)>,
    /// What a recovery found wrong with it. Such a replica is not opened, only kept until it is deleted.
    pub corrupt: Option<String>,
}

/// What a checkpoint says of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentState {
    /// Its name.
    pub name: SegmentName,
    /// The log's last entry before it.
    pub previous: Option<repr::LogId>,
    /// The next offset before it.
    pub base_offset: u64,
    /// Its logical length.
    pub bytes: u64,
    /// Its last entry.
    pub last: repr::LogId,
    /// The next offset after it.
    pub next_offset: u64,
    /// Each term in it and the index it begins at here.
    pub terms: Vec<(u64, u64)>,
    /// Largest record timestamp in it, ms; -1 if none.
    pub max_timestamp: i64,
}

/// Why bytes are not a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Written by a version this one does not know.
    #[error("checkpoint format version {0} is not {CHECKPOINT_VERSION}")]
    Version(u32),
    /// Not a checkpoint, cut short, or not what was written.
    #[error("{0}")]
    Corrupt(String),
}

impl Checkpoint {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<Bytes> {
        let mut header = BytesMut::with_capacity(HEADER_BYTES);
        header.put_slice(MAGIC);
        header.put_u32_le(CHECKPOINT_VERSION);
        header.put_u32_le(self.replicas.len() as u32);
        header.put_u128_le(self.directory.0);
        header.put_u64_le(self.lsn.0);
        let mut parts = vec![header.freeze()];
        for entry in &self.replicas {
            let mut head = BytesMut::with_capacity(ENTRY_HEADER_BYTES);
            head.put_u64_le(entry.group.0);
            head.put_u64_le(entry.replica.0);
            head.put_u64_le(entry.lsn.0);
            head.put_u32_le(entry.state.len() as u32);
            parts.push(head.freeze());
            parts.push(entry.state.clone());
        }
        let crc = parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
        parts.push(Bytes::copy_from_slice(&crc.to_le_bytes()));
        parts
    }

    /// Reads what [`Self::encode`] wrote; the states share `bytes`' memory and are not looked into.
    pub fn decode(bytes: &Bytes) -> Result<Self, CheckpointError> {
        let corrupt = |why: &str| CheckpointError::Corrupt(format!("{why} in {} bytes", bytes.len()));
        if bytes.len() < HEADER_BYTES + 4 || &bytes[..8] != MAGIC {
            return Err(corrupt("no checkpoint header"));
        }
        let (body, mut crc) = bytes.split_at(bytes.len() - 4);
        let mut header = &body[8..HEADER_BYTES];
        let version = header.get_u32_le();
        if version != CHECKPOINT_VERSION {
            return Err(CheckpointError::Version(version));
        }
        if crc.get_u32_le() != crc32c::crc32c(body) {
            return Err(corrupt("checksum mismatch"));
        }
        let count = header.get_u32_le();
        let directory = DirectoryId(header.get_u128_le());
        let lsn = Lsn(header.get_u64_le());
        let mut rest = bytes.slice(HEADER_BYTES..bytes.len() - 4);
        let mut replicas = Vec::new();
        for _ in 0..count {
            replicas.push(Self::decode_entry(&mut rest).ok_or_else(|| corrupt("an entry is cut short"))?);
        }
        if !rest.is_empty() {
            return Err(corrupt("bytes behind the last entry"));
        }
        Ok(Self { directory, lsn, replicas })
    }

    fn decode_entry(rest: &mut Bytes) -> Option<CheckpointEntry> {
        if rest.len() < ENTRY_HEADER_BYTES {
            return None;
        }
        let (group, replica) = (GroupId(rest.get_u64_le()), ReplicaId(rest.get_u64_le()));
        let lsn = Lsn(rest.get_u64_le());
        let bytes = rest.get_u32_le() as usize;
        let state = (bytes <= rest.len()).then(|| rest.split_to(bytes))?;
        Some(CheckpointEntry { group, replica, lsn, state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::hex;
    use crate::types::{BrokerId, ReplicaHome};
    use proptest::prelude::*;

    fn state() -> ReplicaState {
        let membership = repr::Membership {
            configs: vec![[ReplicaId(11), ReplicaId(12)].into()],
            nodes: [11, 12].map(|id| (ReplicaId(id), ReplicaHome { broker: BrokerId(id as u32 - 10) })).into(),
        };
        ReplicaState {
            vote: Some(repr::Vote(3, ReplicaId(12), true)),
            committed: Some(repr::LogId(3, 90)),
            purged: Some(repr::LogId(1, 40)),
            log_start_offset: 70,
            last: Some(repr::LogId(3, 99)),
            next_offset: 200,
            append_state: b"producers".to_vec(),
            memberships: vec![(repr::LogId(1, 0), membership)],
            segments: vec![SegmentState {
                name: SegmentName { first_index: 41, file_no: 5 },
                previous: Some(repr::LogId(1, 40)),
                base_offset: 70,
                bytes: 4096,
                last: repr::LogId(3, 99),
                next_offset: 200,
                terms: vec![(1, 41), (3, 60)],
                max_timestamp: 1_700_000_000_000,
            }],
            next_file_no: 6,
            roll: true,
            snapshot: Some(("snapshot-00000000000000000040".to_owned(), repr::LogId(1, 40))),
            corrupt: None,
        }
    }

    fn example() -> Checkpoint {
        let entry = |group: u64, lsn, state: &ReplicaState| CheckpointEntry {
            group: GroupId(group),
            replica: ReplicaId(group + 10),
            lsn: Lsn(lsn),
            state: codec::encode(state).into(),
        };
        let corrupt = ReplicaState { corrupt: Some("rotten".to_owned()), ..ReplicaState::default() };
        Checkpoint {
            directory: DirectoryId(0xd1),
            lsn: Lsn(1234),
            replicas: vec![
                entry(1, 1240, &state()),
                entry(2, 1234, &ReplicaState::default()),
                entry(3, 1234, &corrupt),
            ],
        }
    }

    fn bytes(checkpoint: &Checkpoint) -> Bytes {
        checkpoint.encode().concat().into()
    }

    #[test]
    fn bytes_of_the_first_version_are_still_read_and_written() {
        let golden = include_str!("../tests/golden/checkpoint-1.hex");
        assert_eq!(hex(&bytes(&example())), golden);
        let read = Checkpoint::decode(&bytes(&example())).unwrap();
        assert_eq!(read, example());
        assert_eq!(read.replicas[0].decode_state().unwrap(), state());
    }

    #[test]
    fn a_replica_of_very_many_segments_is_read_back() {
        let mut state = ReplicaState::default();
        for index in 0..700_000 {
            state.segments.push(SegmentState {
                name: SegmentName { first_index: index, file_no: index },
                previous: index.checked_sub(1).map(|index| repr::LogId(3, index)),
                base_offset: index,
                bytes: 1024,
                last: repr::LogId(3, index),
                next_offset: index + 1,
                terms: vec![(3, index)],
                max_timestamp: 1_700_000_000_000,
            });
        }
        let state = (codec::encode(&state), state);
        let entry = CheckpointEntry { group: GroupId(1), replica: ReplicaId(1), lsn: Lsn(1), state: state.0.into() };
        assert!(entry.decode_state().unwrap() == state.1);
    }

    #[test]
    fn the_example_in_the_header_holds() {
        let empty = bytes(&Checkpoint { directory: DirectoryId(1), lsn: Lsn(0), replicas: Vec::new() });
        let words = [0..8, 8..12, 12..16, 16..32, 32..40].map(|range| hex(&empty[range]).trim().replace(' ', ""));
        assert!(include_str!("checkpoint.rs").contains(&format!("`{} …`", words.join(" "))), "{words:?}");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let good = bytes(&example());
        for bit in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Checkpoint::decode(&bad.into()).is_err(), "bit {bit}");
        }
        for end in 0..good.len() {
            assert!(Checkpoint::decode(&good.slice(..end)).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut newer = bytes(&example()).to_vec();
        newer[8] = 9;
        assert_eq!(Checkpoint::decode(&newer.into()), Err(CheckpointError::Version(9)));
    }

    proptest! {
        #[test]
        fn anything_at_all_is_survived(bytes: Vec<u8>) {
            let _ = Checkpoint::decode(&bytes.into());
        }
    }
}
