//! What durability costs on this disk, and what the journal makes of it: the figures behind RULES.md J19 and the one-journal design.
//!
//! Prints a table of medians (`cargo test --release -p pontoon-raft --test fsync_cost -- --nocapture`). It asserts that the bytes are
//! there, never a time. `PONTOON_FSYNC_COST_MS` is how long each row is measured, in ms; default 60.

#![allow(clippy::unwrap_used)] // A test.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pontoon_raft::disk::real::RealDisk;
use pontoon_raft::disk::{Disk, OpenMode};
use pontoon_raft::journal::{
    Extent, ExtentTarget, Journal, JournalConfig, JournalIdentity, Lsn, Op, RecoveredOp, SegmentName, UnwrittenBytes,
    scan,
};
use pontoon_raft::types::{GroupId, ReplicaId, log_id};

const RECORD_BYTES: usize = 1024;
const GROUPS: u64 = 200;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Growing,
    Fallocated,
    PreWritten,
}

fn row_time() -> Duration {
    let ms = std::env::var("PONTOON_FSYNC_COST_MS").ok().and_then(|ms| ms.parse().ok());
    Duration::from_millis(ms.unwrap_or(60))
}

fn create(path: &Path, kind: Kind, bytes: u64) -> File {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
    match kind {
        Kind::Growing => {}
        Kind::Fallocated => {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, bytes).unwrap();
        }
        Kind::PreWritten => file.write_all_at(&vec![0; bytes as usize], 0).unwrap(),
    }
    file
}

/// Makes everything written so far durable, in one go, so that it is not measured.
fn settle(file: &File) {
    rustix::fs::syncfs(file).unwrap();
}

/// Runs `step` for a while, at least once, and gives the median of what it took.
fn median(mut step: impl FnMut(u64)) -> (Duration, u64) {
    let (end, mut took) = (Instant::now() + row_time(), Vec::new());
    while took.is_empty() || Instant::now() < end {
        let start = Instant::now();
        step(took.len() as u64);
        took.push(start.elapsed());
    }
    took.sort();
    (took[took.len() / 2], took.len() as u64)
}

fn show(what: &str, took: Duration, count: u64) {
    println!("{what:<58} {:>9.1} µs   ({count} times)", took.as_secs_f64() * 1e6);
}

/// Room for as many records as a row may write.
fn room() -> u64 {
    (row_time().as_millis() as u64 * 40 + 100) * RECORD_BYTES as u64
}

#[test]
fn raw_files() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let record = [7u8; RECORD_BYTES];
    println!("\n1 KiB append + fdatasync, one file");
    for kind in [Kind::Growing, Kind::Fallocated, Kind::PreWritten] {
        let path = dir.path().join(format!("one-{kind:?}"));
        let file = create(&path, kind, room());
        settle(&file);
        let (took, count) = median(|number| {
            file.write_all_at(&record, number * RECORD_BYTES as u64 % room()).unwrap();
            file.sync_data().unwrap();
        });
        show(&format!("  {kind:?}"), took, count);
        let mut back = [0; RECORD_BYTES];
        File::open(&path).unwrap().read_exact_at(&mut back, 0).unwrap();
        assert_eq!(back, record);
    }
    println!("1 KiB to each of {GROUPS} files, each synced");
    for kind in [Kind::Growing, Kind::Fallocated, Kind::PreWritten] {
        let path = |number: u64| dir.path().join(format!("{number}-{kind:?}"));
        let files: Vec<File> = (0..GROUPS).map(|number| create(&path(number), kind, 256 << 10)).collect();
        settle(&files[0]);
        let (took, count) = median(|number| {
            for file in &files {
                file.write_all_at(&record, number * RECORD_BYTES as u64 % (256 << 10)).unwrap();
            }
            for file in &files {
                file.sync_data().unwrap();
            }
        });
        show(&format!("  {kind:?}"), took, count);
        for file in &files {
            let mut back = [0; RECORD_BYTES];
            file.read_exact_at(&mut back, 0).unwrap();
            assert_eq!(back, record);
        }
    }
}

struct Never;

impl ExtentTarget for Never {
    fn write_durably(&self, _: u64, _: Vec<Bytes>) -> futures_util::future::BoxFuture<'_, std::io::Result<()>> {
        unreachable!("a record of 1 KiB is not large")
    }
}

fn append(target: &Arc<Never>, number: u64) -> Op {
    let parts = vec![Bytes::from_static(&[7; RECORD_BYTES])];
    // A gap between them: never a run that bypasses.
    let position = number * 2 * RECORD_BYTES as u64;
    let segment = SegmentName { first_index: 0, file_no: 0 };
    let extent = Extent { segment, position, bytes: RECORD_BYTES as u64 };
    let id = log_id(1, number);
    Op::Append { extent, parts, first: id, last: id, target: target.clone() }
}

#[test]
fn one_journal() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let disk = Arc::new(RealDisk::new().unwrap());
    println!("\nthrough the disk's threads and the journal");
    runtime.block_on(async {
        let path = dir.path().join("pre-written");
        settle(&create(&path, Kind::PreWritten, room()));
        let file = disk.open(&path, OpenMode::ReadWrite).await.unwrap();
        let record = Bytes::from_static(&[7; RECORD_BYTES]);
        let mut took = Vec::new();
        let end = Instant::now() + row_time();
        while took.len() < 3 || Instant::now() < end {
            let start = Instant::now();
            let position = took.len() as u64 * RECORD_BYTES as u64 % room();
            file.write_and_sync(position, vec![record.clone()]).await.unwrap();
            took.push(start.elapsed());
        }
        took.sort();
        show("  1 KiB write_and_sync, pre-written", took[took.len() / 2], took.len() as u64);
    });
    let identity =
        JournalIdentity { dir: dir.path().join("journal"), cluster: 1, directory: 2, epoch: 1, former: Vec::new() };
    let mut written = 0;
    runtime.block_on(async {
        let config = JournalConfig {
            round_bytes_max: 4 << 20,
            file_bytes: 16 << 20,
            bypass_bytes_min: 1 << 20,
            spare_files_max: 2,
            floor_bytes: 0,
            seal_idle: Duration::from_millis(50),
        };
        let found = scan(&*disk, &identity, Lsn(1), |_| Ok(())).await.unwrap();
        let unwritten = Arc::new(UnwrittenBytes::new(usize::MAX));
        let journal = Journal::start(disk.clone(), identity.clone(), found, config, unwritten).await.unwrap();
        let target = Arc::new(Never);
        for in_flight in [1, GROUPS] {
            let (end, mut took) = (Instant::now() + row_time(), Vec::new());
            while took.len() < 3 || Instant::now() < end {
                let start = Instant::now();
                let writes = (0..in_flight).map(|group| {
                    written += 1;
                    journal.write(GroupId(group), ReplicaId(1), append(&target, written))
                });
                for result in futures_util::future::join_all(writes).await {
                    result.unwrap();
                }
                took.push(start.elapsed());
            }
            took.sort();
            show(&format!("  1 KiB to each of {in_flight} groups"), took[took.len() / 2], took.len() as u64);
        }
        journal.close().await.unwrap();
    });
    let next = JournalIdentity { epoch: 2, ..identity };
    let mut read = 0;
    let start = Instant::now();
    let count = |record: pontoon_raft::journal::Recovered| {
        read += u64::from(matches!(record.op, RecoveredOp::Append { frames, .. } if frames == [7; RECORD_BYTES][..]));
        Ok(())
    };
    let found = runtime.block_on(scan(&*disk, &next, Lsn(1), count)).unwrap();
    assert_eq!(read, written);
    println!("  read back: {} records, {} MiB in {:?}", read, found.live_bytes() >> 20, start.elapsed());
}
