//! Rot: noticed, or without consequence, never a wrong record.

use proptest::prelude::*;

use super::*;
use crate::journal::format::{
    BadBody, RECORD_HEADER_BYTES, ROUND_HEADER_BYTES, RoundEncoder, RoundHeader, Seed, decode_body, round_bytes,
};

fn a_vote(term: u64) -> Op {
    Op::Vote(vote(term, ReplicaId(1), false))
}

fn path(epoch: u64, number: u64) -> PathBuf {
    Path::new(DIR).join(format::file_name(epoch, number))
}

/// Two sessions of three rounds each, the first closed and so sealed.
async fn two_sessions() -> (SimDisk, Vec<Recovered>) {
    let disk = SimDisk::new(1);
    for epoch in 1..3 {
        let config = JournalConfig { seal_idle: Duration::from_secs(3600), ..small() };
        let (_, journal) = open_with(&disk, epoch, config).await;
        for number in 0..3 {
            let target = segment(&disk, 1);
            journal.submit(GroupId(2), ReplicaId(7), append(&target, number, number * 64, 40), Box::new(|_| {}));
            journal.write(GroupId(1), ReplicaId(1), a_vote(number)).await.unwrap();
        }
        if epoch == 1 {
            journal.close().await.unwrap();
        }
    }
    let disk = disk.kill();
    let (truth, _) = read(&disk, 3, Lsn(1)).await.unwrap();
    assert_eq!(truth.len(), 12);
    (disk, truth)
}

/// Bytes of a file that mean something: all but the padding.
async fn meaningful(disk: &SimDisk, path: &Path) -> Vec<u64> {
    let file = disk.open(path, OpenMode::Read).await.unwrap();
    let bytes = file.read_at(0, 64 << 10).await.unwrap();
    let mut places: Vec<u64> = (0..96).collect();
    for start in (BLOCK_BYTES..bytes.len()).step_by(BLOCK_BYTES) {
        if bytes[start] != 0 {
            let body = u32::from_le_bytes(bytes[start + 44..start + 48].try_into().unwrap()) as usize;
            places.extend((start..start + ROUND_HEADER_BYTES + body).map(|at| at as u64));
        }
    }
    places
}

/// Reads a damaged journal: an error, or the truth, whole or without its last round.
async fn judge(disk: &SimDisk, truth: &[Recovered], what: &str) -> usize {
    match read(disk, 3, Lsn(1)).await {
        Ok((found, _)) => {
            let missing = truth.len() - found.len();
            assert_eq!(found, truth[..found.len()], "{what}");
            assert!(missing == 0 || missing == 2, "{what}: {missing} missing");
            missing
        }
        Err(OpenError::Corrupt { .. } | OpenError::Version { .. } | OpenError::ForeignCluster { .. }) => 0,
        Err(error) => panic!("{what}: {error}"),
    }
}

#[tokio::test]
async fn every_flipped_bit_is_noticed_or_a_torn_tail_or_harmless() {
    let (disk, truth) = two_sessions().await;
    let (mut corrupt, mut torn) = (0, 0);
    for (epoch, number) in [(1, 0), (2, 0)] {
        let path = path(epoch, number);
        for position in meaningful(&disk, &path).await {
            for bit in 0..8 {
                disk.flip_bit(&path, position, bit);
                let what = format!("bit {bit} of byte {position} of {}", path.display());
                torn += usize::from(judge(&disk, &truth, &what).await == 2);
                corrupt += usize::from(read(&disk, 3, Lsn(1)).await.is_err());
                disk.flip_bit(&path, position, bit);
            }
        }
    }
    assert!(corrupt > 4000, "{corrupt}");
    // The last round of the second session, header and body, and nothing else.
    let last = ROUND_HEADER_BYTES + 2 * RECORD_HEADER_BYTES + (56 + 40) + 17;
    assert_eq!(torn, last * 8);
    judge(&disk, &truth, "mended").await;
}

#[tokio::test]
async fn a_sealed_round_that_rots_is_never_taken_for_a_torn_one() {
    let disk = SimDisk::new(1);
    let (_, journal) = open(&disk, 1).await;
    journal.write(GroupId(1), ReplicaId(1), a_vote(1)).await.unwrap();
    journal.close().await.unwrap();
    let disk = disk.kill();
    for position in (4096..4096 + 64 + 40 + 17).chain(8..96) {
        disk.flip_bit(&path(1, 0), position, 3);
        let found = read(&disk, 3, Lsn(1)).await;
        assert!(!matches!(found, Ok((found, _)) if found.is_empty()), "byte {position}");
        disk.flip_bit(&path(1, 0), position, 3);
    }
}

#[tokio::test]
async fn a_file_cut_anywhere_gives_no_wrong_record() {
    let (disk, truth) = two_sessions().await;
    for (epoch, lost_is_corruption) in [(1, true), (2, false)] {
        for bytes in (0..40_000).step_by(509) {
            let disk = disk.fork();
            disk.truncate(&path(epoch, 0), bytes);
            match read(&disk, 3, Lsn(1)).await {
                Ok((found, _)) => {
                    assert_eq!(found, truth[..found.len()], "{bytes}");
                    assert!(found.len() == 12 || !lost_is_corruption, "{bytes}");
                }
                Err(error) => assert!(matches!(error, OpenError::Corrupt { .. }), "{error}"),
            }
        }
    }
}

#[tokio::test]
async fn a_block_written_to_the_wrong_place_is_noticed() {
    let (disk, truth) = two_sessions().await;
    let mut places = Vec::new();
    for epoch in 1..3 {
        places.extend((0..5u64).map(|block| (epoch, block * 4096)));
    }
    for from in &places {
        for to in &places {
            let disk = disk.fork();
            let source = disk.open(&path(from.0, 0), OpenMode::Read).await.unwrap();
            let block = source.read_at(from.1, BLOCK_BYTES).await.unwrap();
            let target = disk.open(&path(to.0, 0), OpenMode::ReadWrite).await.unwrap();
            target.write_and_sync(to.1, vec![block]).await.unwrap();
            judge(&disk, &truth, &format!("{from:?} over {to:?}")).await;
        }
    }
}

#[tokio::test]
async fn rotten_bytes_that_a_checkpoint_has_are_not_missed() {
    let (disk, truth) = two_sessions().await;
    disk.flip_bit(&path(1, 0), 4096 + 70, 0);
    assert!(read(&disk, 3, Lsn(1)).await.is_err());
    assert!(read(&disk, 3, Lsn(2)).await.is_err());
    let (found, _) = read(&disk, 3, Lsn(3)).await.unwrap();
    assert_eq!(found, truth[2..]);
}

#[tokio::test]
async fn a_round_that_this_version_does_not_understand_is_refused_not_dropped() {
    let disk = SimDisk::new(1);
    let (_, journal) = open(&disk, 1).await;
    journal.write(GroupId(1), ReplicaId(1), a_vote(1)).await.unwrap();
    drop(journal);
    let disk = disk.kill();
    let file = disk.open(&path(1, 0), OpenMode::ReadWrite).await.unwrap();
    let mut round = file.read_at(4096, 4096).await.unwrap().to_vec();
    // The same record, of a kind to come.
    let end = 64 + RECORD_HEADER_BYTES + 17;
    round[64 + 32] = 77;
    let seed = crc32c::crc32c(&0xd1u128.to_le_bytes());
    let seed = crc32c::crc32c_append(crc32c::crc32c_append(seed, &1u64.to_le_bytes()), &0u64.to_le_bytes());
    let crc = crc32c::crc32c_append(seed, &round[68..end]);
    round[64..68].copy_from_slice(&crc.to_le_bytes());
    file.write_and_sync(4096, vec![round.into()]).await.unwrap();
    let found = read(&disk, 2, Lsn(1)).await;
    assert!(matches!(found, Err(OpenError::Corrupt { why, .. }) if why.contains("kind 77")));
}

fn arbitrary_op() -> impl Strategy<Value = RecoveredOp> {
    let id = || any::<(u64, u64)>().prop_map(|(term, index)| log_id(term, index));
    let extent = || {
        any::<(u64, u64, u64)>().prop_map(|(first_index, file_no, position)| Extent {
            segment: SegmentName { first_index, file_no },
            position,
            bytes: 0,
        })
    };
    prop_oneof![
        Just(RecoveredOp::Create),
        Just(RecoveredOp::Delete),
        (extent(), proptest::collection::vec(any::<u8>(), 0..6000), id(), id()).prop_map(
            |(mut extent, frames, first, last)| {
                extent.bytes = frames.len() as u64;
                RecoveredOp::Append { extent, frames: frames.into(), first, last }
            }
        ),
        (extent(), any::<(u64, u32)>(), id(), id()).prop_map(|(mut extent, (bytes, crc), first, last)| {
            extent.bytes = bytes;
            RecoveredOp::Bypass { extent, crc, first, last }
        }),
        proptest::option::of(id()).prop_map(RecoveredOp::Truncate),
        any::<(u64, u64, bool)>().prop_map(|(term, id, committed)| RecoveredOp::Vote(vote(
            term,
            ReplicaId(id),
            committed
        ))),
        (id(), any::<u64>(), ".{0,40}").prop_map(|(boundary, next_offset, snapshot)| RecoveredOp::Installed {
            boundary,
            next_offset,
            snapshot
        }),
        id().prop_map(RecoveredOp::Purge),
        id().prop_map(RecoveredOp::Commit),
    ]
}

struct Nowhere;

impl ExtentTarget for Nowhere {
    fn write_durably(&self, _: u64, _: Vec<Bytes>) -> BoxFuture<'_, std::io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

fn body(op: RecoveredOp) -> RecordBody {
    RecordBody::Op(match op {
        RecoveredOp::Create => Op::Create,
        RecoveredOp::Delete => Op::Delete,
        RecoveredOp::Append { extent, frames, first, last } => {
            let half = frames.len() / 3;
            let parts = vec![frames.slice(..half), frames.slice(half..)];
            Op::Append { extent, parts, first, last, target: Arc::new(Nowhere) }
        }
        RecoveredOp::Bypass { extent, crc, first, last } => return RecordBody::Bypass { extent, crc, first, last },
        RecoveredOp::Truncate(id) => Op::Truncate(id),
        RecoveredOp::Vote(vote) => Op::Vote(vote),
        RecoveredOp::Installed { boundary, next_offset, snapshot } => Op::Installed { boundary, next_offset, snapshot },
        RecoveredOp::Purge(id) => Op::Purge(id),
        RecoveredOp::Commit(id) => Op::Commit(id),
    })
}

proptest! {
    #[test]
    fn a_round_survives_the_round_trip(
        ops in proptest::collection::vec((any::<u64>(), any::<u64>(), arbitrary_op()), 1..12),
        (number, first, seal) in (any::<u64>(), 1..u64::MAX / 2, any::<bool>()),
    ) {
        let seed = Seed::new(&identity(1), 5, number);
        let mut round = RoundEncoder::new(seed, 5, 8192, Lsn(first), Lsn(first - 1));
        let (mut expected, mut bytes) = (Vec::new(), 0);
        for (group, replica, op) in ops {
            let (group, replica) = (GroupId(group), ReplicaId(replica));
            let body = body(op.clone());
            bytes += body.record_bytes();
            let lsn = round.push(group, replica, body);
            expected.push(Recovered { lsn, group, replica, op });
        }
        if seal {
            bytes += RecordBody::Seal.record_bytes();
            round.push(GroupId(0), ReplicaId(0), RecordBody::Seal);
        }
        let whole = Bytes::from(round.finish().concat());
        prop_assert_eq!(whole.len() as u64, round_bytes(bytes));
        prop_assert_eq!(RoundHeader::decode(&whole, seed, 4096), None);
        prop_assert_eq!(RoundHeader::decode(&whole, Seed::new(&identity(1), 6, number), 8192), None);
        prop_assert_eq!(RoundHeader::decode(&whole, Seed::new(&identity(1), 5, number ^ 1), 8192), None);
        let header = RoundHeader::decode(&whole, seed, 8192).unwrap();
        prop_assert_eq!(header.last(), Lsn(first + expected.len() as u64 - 1 + u64::from(seal)));
        let body = whole.slice(64..64 + header.body_bytes as usize);
        prop_assert_eq!(decode_body(&header, body.clone(), seed).unwrap(), expected);
        prop_assert_eq!(decode_body(&header, body.slice(1..), seed), Err(BadBody::Checksum));
    }

    #[test]
    fn any_bytes_at_all_are_read_without_harm(
        blocks in proptest::collection::vec((0u64..16, proptest::collection::vec(any::<u8>(), 1..200)), 0..6),
        with_magic: bool,
    ) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let disk = SimDisk::new(1);
            disk.create_dir_all(Path::new(DIR)).await.unwrap();
            let file = disk.open(&path(1, 0), OpenMode::CreateNew).await.unwrap();
            file.set_len(64 << 10).await.unwrap();
            for (block, mut bytes) in blocks {
                if with_magic && bytes.len() > 4 {
                    bytes[..4].copy_from_slice(b"PJRD");
                }
                file.write_at(block * 4096, vec![bytes.into()]).await.unwrap();
            }
            let (found, scan) = read(&disk, 2, Lsn(1)).await.unwrap();
            assert!(found.is_empty() && scan.last == Lsn(0));
        });
    }
}
