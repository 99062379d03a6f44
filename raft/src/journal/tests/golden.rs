//! A whole journal file, byte for byte: what a later version must still read.

use super::*;

const GOLDEN: &str = include_str!("../../../tests/golden/journal-1.hex");

/// The rows that are not all zeros, 16 bytes each, with their position.
fn hex(bytes: &[u8]) -> String {
    let mut out = String::new();
    for (number, row) in bytes.chunks(16).enumerate().filter(|(_, row)| row.iter().any(|b| *b != 0)) {
        let row: Vec<String> = row.iter().map(|b| format!("{b:02x}")).collect();
        out += &format!("{:06x}: {}\n", number * 16, row.join(" "));
    }
    out
}

fn unhex(text: &str) -> Vec<u8> {
    let mut out = vec![0; 64 << 10];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (position, row) = line.split_once(": ").unwrap();
        let position = usize::from_str_radix(position, 16).unwrap();
        for (number, byte) in row.split(' ').enumerate() {
            out[position + number] = u8::from_str_radix(byte, 16).unwrap();
        }
    }
    out
}

/// In words of our own: openraft's ways of showing its types may change.
fn described(found: &[Recovered]) -> String {
    let line = |r: &Recovered| format!("# {} group {} replica {}: {}\n", r.lsn.0, r.group, r.replica, op(&r.op));
    found.iter().map(line).collect()
}

fn op(op: &RecoveredOp) -> String {
    let id = |id: &LogId| {
        let crate::types::repr::LogId(term, index) = (*id).into();
        format!("{term}.{index}")
    };
    let place = |extent: &Extent, first: &LogId, last: &LogId| {
        let Extent { segment: SegmentName { first_index, file_no }, position, bytes } = extent;
        format!("{}..{} at {first_index}-{file_no} position {position} bytes {bytes}", id(first), id(last))
    };
    match op {
        RecoveredOp::Create => "create".into(),
        RecoveredOp::Append { extent, frames, first, last } => {
            format!("append {} {frames:?}", place(extent, first, last))
        }
        RecoveredOp::Bypass { extent, crc, first, last } => {
            format!("bypass {} crc {crc:08x}", place(extent, first, last))
        }
        RecoveredOp::Truncate(last) => format!("truncate {}", last.as_ref().map_or("all".into(), id)),
        RecoveredOp::Vote(vote) => {
            let crate::types::repr::Vote(term, voted_for, committed) = (*vote).into();
            format!("vote {term} for {voted_for} committed {committed}")
        }
        RecoveredOp::Installed { boundary, next_offset, snapshot } => {
            format!("installed {} next offset {next_offset} {snapshot}", id(boundary))
        }
        RecoveredOp::Purge(last) => format!("purge {}", id(last)),
        RecoveredOp::Commit(last) => format!("commit {}", id(last)),
        RecoveredOp::Delete => "delete".into(),
    }
}

async fn example(disk: &SimDisk) -> Vec<Recovered> {
    let (_, journal) = open(disk, 1).await;
    let target = segment(disk, 5);
    let (group, replica) = (GroupId(5), ReplicaId(9));
    let ops = [
        Op::Create,
        append(&target, 1, 0, 24),
        append(&target, 2, 24, 12 << 10),
        Op::Truncate(Some(log_id(1, 1))),
        Op::Truncate(None),
        Op::Vote(vote(3, ReplicaId(4), true)),
        Op::Installed { boundary: log_id(2, 8), next_offset: 77, snapshot: "snapshot-8".into() },
        Op::Purge(log_id(1, 4)),
        Op::Delete,
    ];
    journal.submit(GroupId(0), ReplicaId(2), Op::Commit(log_id(2, 9)), Box::new(|_| {}));
    for op in ops {
        journal.write(group, replica, op).await.unwrap();
    }
    journal.close().await.unwrap();
    read(disk, 2, Lsn(1)).await.unwrap().0
}

#[tokio::test(start_paused = true)]
async fn the_bytes_are_those_of_format_version_1() {
    let disk = SimDisk::new(1);
    let found = example(&disk).await;
    let path = Path::new(DIR).join("0000000001-0000000000.journal");
    let bytes = disk.open(&path, OpenMode::Read).await.unwrap().read_at(0, 1 << 20).await.unwrap();
    let shown = described(&found) + &hex(&bytes);
    assert!(shown == GOLDEN, "the format has changed: a new version, and a new golden file beside this one?\n{shown}");
}

/// The golden file on a disk, with `bytes` bytes in all.
async fn golden_of(bytes: usize) -> SimDisk {
    let disk = SimDisk::new(1);
    disk.create_dir_all(Path::new(DIR)).await.unwrap();
    let path = Path::new(DIR).join("0000000001-0000000000.journal");
    let file = disk.open(&path, OpenMode::CreateNew).await.unwrap();
    let mut whole = unhex(GOLDEN);
    whole.resize(bytes, 0);
    file.write_and_sync(0, vec![whole.into()]).await.unwrap();
    disk
}

#[tokio::test(start_paused = true)]
async fn a_file_of_format_version_1_is_read() {
    let (found, scan) = read(&golden_of(64 << 10).await, 2, Lsn(1)).await.unwrap();
    let records: String = GOLDEN.lines().filter(|line| line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    assert_eq!(described(&found), records);
    assert_eq!(scan.last, Lsn(11));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_cut_short_is_not_taken_for_one_that_ends() {
    for bytes in [0, 1, 4095, 4096, 8192, 20480, (64 << 10) - 1] {
        let error = read(&golden_of(bytes).await, 2, Lsn(1)).await.unwrap_err();
        assert!(error.to_string().contains("cut short"), "{bytes}: {error}");
    }
}
