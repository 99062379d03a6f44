//! The journal over a simulated disk: what is told `Ok` is read back, in order, whatever happens in between.

use std::path::Path;

use super::*;
use crate::disk::DiskFile;
use crate::disk::sim::SimDisk;
use crate::types::{log_id, vote};

mod corruption;
mod crash;
mod files;
mod golden;
mod writer;

const DIR: &str = "/data/journal";

/// Small files and rounds, so that little work rolls and bypasses.
fn small() -> JournalConfig {
    JournalConfig {
        round_bytes_max: 16 << 10,
        file_bytes: 64 << 10,
        bypass_bytes_min: 12 << 10,
        spare_files_max: 1,
        floor_bytes: 0,
        seal_idle: Duration::from_millis(5),
    }
}

fn identity(epoch: u64) -> JournalIdentity {
    JournalIdentity { dir: DIR.into(), cluster: 7, directory: 0xd1, epoch, former: Vec::new() }
}

fn unlimited() -> Arc<UnwrittenBytes> {
    Arc::new(UnwrittenBytes::new(usize::MAX))
}

async fn read(disk: &SimDisk, epoch: u64, from: Lsn) -> Result<(Vec<Recovered>, Scan), OpenError> {
    let mut found = Vec::new();
    let identity = identity(epoch);
    let mut visit = |recovered| {
        found.push(recovered);
        Ok(())
    };
    let scan = scan(disk, &identity, from, &mut visit).await?;
    Ok((found, scan))
}

async fn open_with(disk: &SimDisk, epoch: u64, config: JournalConfig) -> (Vec<Recovered>, Journal) {
    let (found, scan) = read(disk, epoch, Lsn(1)).await.unwrap();
    let journal = Journal::start(Arc::new(disk.clone()), identity(epoch), scan, config, unlimited()).await.unwrap();
    (found, journal)
}

async fn open(disk: &SimDisk, epoch: u64) -> (Vec<Recovered>, Journal) {
    open_with(disk, epoch, small()).await
}

/// A segment, for appends that bypass.
#[derive(Clone)]
struct Segment {
    disk: SimDisk,
    path: PathBuf,
}

impl Segment {
    async fn open(disk: &SimDisk, path: &Path) -> std::io::Result<Arc<dyn DiskFile>> {
        match disk.open(path, OpenMode::ReadWrite).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => disk.open(path, OpenMode::CreateNew).await,
            other => other,
        }
    }
}

impl ExtentTarget for Segment {
    fn write_durably(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<'_, std::io::Result<()>> {
        Box::pin(async move {
            let file = Self::open(&self.disk, &self.path).await?;
            file.write_at(position, parts).await?;
            file.datasync().await?;
            self.disk.sync_dir(Path::new("/data")).await
        })
    }
}

fn segment(disk: &SimDisk, group: u64) -> Arc<Segment> {
    Arc::new(Segment { disk: disk.clone(), path: format!("/data/{group}.segment").into() })
}

/// An append of one frame of `bytes` bytes at `position`, recognisable by `index`.
fn append(target: &Arc<Segment>, index: u64, position: u64, bytes: usize) -> Op {
    let frame = frame(index, bytes);
    let extent = Extent { segment: SegmentName { first_index: 0, file_no: 0 }, position, bytes: frame.len() as u64 };
    let half = frame.len() / 2;
    let parts = vec![frame.slice(..half), frame.slice(half..)];
    Op::Append { extent, parts, first: log_id(1, index), last: log_id(1, index), target: target.clone() }
}

fn frame(index: u64, bytes: usize) -> Bytes {
    let pattern = (index as u8).wrapping_mul(31).wrapping_add(bytes as u8) | 1;
    vec![pattern; bytes].into()
}

#[tokio::test]
async fn every_kind_of_operation_is_read_back() {
    let disk = SimDisk::new(1);
    let (found, journal) = open(&disk, 1).await;
    assert!(found.is_empty());
    let target = segment(&disk, 5);
    let big = 20 << 10;
    let (group, replica) = (GroupId(5), ReplicaId(9));
    let ops = || {
        vec![
            Op::Create,
            append(&target, 1, 0, 10),
            append(&target, 2, 10, big),
            Op::Truncate(Some(log_id(1, 1))),
            Op::Truncate(None),
            Op::Vote(vote(3, ReplicaId(4), true)),
            Op::Installed { boundary: log_id(2, 8), next_offset: 77, snapshot: "snapshot-8".into() },
            Op::Purge(log_id(1, 4)),
            Op::Commit(log_id(2, 9)),
            Op::Delete,
        ]
    };
    for (number, op) in ops().into_iter().enumerate() {
        if number == 8 {
            // Nobody waits for a commit.
            journal.submit(group, replica, op, Box::new(|_| {}));
            continue;
        }
        assert_eq!(journal.write(group, replica, op).await.unwrap(), Lsn(number as u64 + 1));
    }
    assert_eq!(journal.last_lsn(), Lsn(10));
    journal.close().await.unwrap();
    assert_eq!(journal.durable_lsn(), Lsn(11), "a clean end is sealed");
    drop(journal);
    let (found, _) = read(&disk.crash(), 2, Lsn(1)).await.unwrap();
    assert_eq!(found.iter().map(|r| r.lsn.0).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
    let crc = crc32c::crc32c(&frame(2, big));
    let extent = |position, bytes| Extent { segment: SegmentName { first_index: 0, file_no: 0 }, position, bytes };
    let expected = [
        RecoveredOp::Create,
        RecoveredOp::Append { extent: extent(0, 10), frames: frame(1, 10), first: log_id(1, 1), last: log_id(1, 1) },
        RecoveredOp::Bypass { extent: extent(10, big as u64), crc, first: log_id(1, 2), last: log_id(1, 2) },
        RecoveredOp::Truncate(Some(log_id(1, 1))),
        RecoveredOp::Truncate(None),
        RecoveredOp::Vote(vote(3, ReplicaId(4), true)),
        RecoveredOp::Installed { boundary: log_id(2, 8), next_offset: 77, snapshot: "snapshot-8".into() },
        RecoveredOp::Purge(log_id(1, 4)),
        RecoveredOp::Commit(log_id(2, 9)),
        RecoveredOp::Delete,
    ];
    for (found, expected) in found.into_iter().zip(expected) {
        assert_eq!((found.group, found.replica, found.op), (group, replica, expected));
    }
}

#[tokio::test]
async fn lsns_rise_over_reopenings_and_are_never_used_twice() {
    let disk = SimDisk::new(1);
    let mut last = Lsn(0);
    for epoch in 1..6 {
        let (found, journal) = open(&disk, epoch).await;
        assert_eq!(found.len() as u64, (epoch - 1) * 2);
        for _ in 0..2 {
            let lsn =
                journal.write(GroupId(1), ReplicaId(1), Op::Vote(vote(epoch, ReplicaId(1), false))).await.unwrap();
            assert!(lsn > last);
            last = lsn;
        }
        match epoch % 2 {
            0 => journal.close().await.unwrap(),
            _ => drop(journal),
        }
    }
}
