//! Whole directories, golden files and damaged ones: what is in them, and where it stops being so.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::config::RaftConfig;
use crate::disk::OpenMode;
use crate::disk::sim::SimDisk;
use crate::log::append::NewEntry;
use crate::payload::SnapshotAt;
use crate::store::{Store, StoreOptions};
use crate::testing::{test_applications, test_payload};
use crate::types::{BrokerId, Membership, Proposal, ReplicaHome, log_id};

const KEY: (GroupId, ReplicaId) = (GroupId(4), ReplicaId(40));

async fn open(disk: &SimDisk) -> Arc<Store> {
    let config = RaftConfig {
        journal_file_bytes: 64 << 10,
        bypass_bytes_min: 8 << 10,
        segment_bytes_max: 2 << 10,
        index_interval_bytes: 256,
        ..RaftConfig::default()
    };
    let options = StoreOptions {
        disk: Arc::new(disk.clone()),
        path: "/data".into(),
        broker: BrokerId(1),
        config,
        applications: test_applications(SnapshotAt::Boundary),
    };
    Store::open(options).await.unwrap()
}

/// A closed directory of one replica with several segments.
async fn closed() -> SimDisk {
    let (disk, store) = filled().await;
    store.close().await.unwrap();
    disk
}

/// The same, still open.
async fn filled() -> (SimDisk, Arc<Store>) {
    let disk = SimDisk::new(1);
    let store = open(&disk).await;
    let log = store.create(KEY.0, KEY.1).await.unwrap().log;
    let homes = [(KEY.1, ReplicaHome { broker: BrokerId(1) })];
    let membership =
        Membership::new(vec![[KEY.1].into()], homes.into_iter().collect::<std::collections::BTreeMap<_, _>>());
    let mut entries = vec![NewEntry::Membership(log_id(0, 0), membership.unwrap())];
    for sequence in 0..14 {
        let payload = test_payload(2, 1, sequence, &[7; 300]);
        entries.push(NewEntry::Proposed(
            log_id(1, u64::from(sequence) + 1),
            Proposal { payload, flushed: None, stages: None },
        ));
    }
    for entry in entries {
        let (tell, told) = tokio::sync::oneshot::channel();
        log.append(vec![entry], Box::new(move |result| drop(tell.send(result)))).await.unwrap();
        told.await.unwrap().unwrap();
    }
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    drop(log);
    (disk, store)
}

async fn files(disk: &SimDisk) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/data")];
    while let Some(folder) = folders.pop() {
        for entry in disk.read_dir(&folder).await.unwrap() {
            let path = folder.join(&entry.name);
            if entry.is_dir { folders.push(path) } else { found.push((path, entry.bytes)) }
        }
    }
    found.sort();
    found
}

async fn look(disk: &SimDisk, path: &Path) -> (Vec<Item>, Report) {
    let mut items = Vec::new();
    let mut keep = |item| {
        items.push(item);
        Ok(())
    };
    let report = inspect(disk, path, &mut keep).await.unwrap();
    (items, report)
}

async fn put(disk: &SimDisk, path: &str, bytes: &[u8]) {
    let path = Path::new(path);
    disk.create_dir_all(path.parent().unwrap()).await.unwrap();
    let file = disk.open(path, OpenMode::CreateNew).await.unwrap();
    file.write_and_sync(0, vec![Bytes::copy_from_slice(bytes)]).await.unwrap();
}

fn line(item: &Item) -> String {
    let fields: Vec<String> = item.fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{} {}+{} {}\n", item.what, item.position, item.bytes, fields.join(" "))
}

fn unhex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

/// The golden journal's rows carry their positions, because most of them are zeros.
fn unhex_rows(text: &str) -> Vec<u8> {
    let mut out = vec![0; 64 << 10];
    for (position, row) in text.lines().filter_map(|line| line.split_once(": ").filter(|_| !line.starts_with('#'))) {
        let position = usize::from_str_radix(position, 16).unwrap();
        let row = unhex(row);
        out[position..position + row.len()].copy_from_slice(&row);
    }
    out
}

#[tokio::test(start_paused = true)]
async fn every_file_of_a_directory_is_recognised_and_sound() {
    let disk = closed().await;
    let mut kinds = Vec::new();
    for (path, _) in files(&disk).await {
        let (items, report) = look(&disk, &path).await;
        assert_ne!(report.is_sound(), Some(false), "{}: {report:?}", path.display());
        assert_eq!(report.items, items.len() as u64);
        if report.is_sound() == Some(true) && report.kind != FileKind::Journal {
            assert_eq!(report.sound_bytes, report.file_bytes, "{}: {report:?}", path.display());
        }
        kinds.push(report.kind);
    }
    for kind in [FileKind::Segment, FileKind::Index, FileKind::Base, FileKind::Checkpoint] {
        assert!(kinds.contains(&kind), "{kind:?} in {kinds:?}");
    }
    for kind in [FileKind::Identity, FileKind::Journal] {
        assert!(kinds.contains(&kind), "{kind:?} in {kinds:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn golden_files_are_shown_as_they_always_were() {
    let disk = SimDisk::new(1);
    let whole = |text: &'static str| unhex(text.split("\n\n").next().unwrap());
    put(&disk, "/d/identity", &unhex(include_str!("../../tests/golden/identity-1.hex"))).await;
    put(&disk, "/d/checkpoint", &whole(include_str!("../../tests/golden/checkpoint-1.hex"))).await;
    put(&disk, "/d/7-1.index", &whole(include_str!("../../tests/golden/index-1.hex"))).await;
    let second = include_str!("../../tests/golden/base-1.hex").split("\n\n").nth(1).unwrap();
    put(&disk, "/d/snapshot-41", &unhex(second)).await;
    let journal = unhex_rows(include_str!("../../tests/golden/journal-1.hex"));
    put(&disk, "/d/journal/0000000001-0000000000.journal", &journal).await;
    let mut shown = String::new();
    for name in ["identity", "checkpoint", "7-1.index", "snapshot-41", "journal/0000000001-0000000000.journal"] {
        let (items, report) = look(&disk, &Path::new("/d").join(name)).await;
        assert_eq!(report.is_sound(), Some(true), "{name}: {report:?}");
        shown += &format!("== {name}: {}: {}\n", report.kind.as_str(), report.summary);
        shown.extend(items.iter().map(line));
    }
    let golden = include_str!("../../tests/golden/inspect-1.txt");
    assert!(shown == golden, "what is shown has changed; if that is meant, so is the golden file:\n{shown}");
}

#[tokio::test(start_paused = true)]
async fn every_damage_to_a_segment_is_found_where_it_is_and_nothing_else_is_lost() {
    let disk = closed().await;
    let segments = files(&disk).await.into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "segment"));
    let (path, bytes) = segments.max_by_key(|(_, bytes)| *bytes).unwrap();
    let (whole, _) = look(&disk, &path).await;
    assert!(whole.len() >= 3);
    for position in 0..bytes {
        let disk = disk.fork().kill();
        disk.flip_bit(&path, position, (position % 8) as u8);
        let (items, report) = look(&disk, &path).await;
        let hit = whole.iter().find(|item| (item.position..item.position + item.bytes).contains(&position)).unwrap();
        assert_eq!(
            (report.problems.len(), report.problems[0].position),
            (1, hit.position),
            "byte {position}: {report:?}"
        );
        assert_eq!(report.sound_bytes, hit.position);
        let others: Vec<&Item> = whole.iter().filter(|item| *item != hit).collect();
        assert_eq!(items.iter().collect::<Vec<_>>(), others, "byte {position}");
    }
    for len in 0..bytes {
        let disk = disk.fork().kill();
        disk.truncate(&path, len);
        let (items, report) = look(&disk, &path).await;
        let left: Vec<&Item> = whole.iter().filter(|item| item.position + item.bytes <= len).collect();
        assert_eq!((report.is_sound(), items.iter().collect::<Vec<_>>()), (Some(false), left), "{len} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn every_flipped_bit_in_a_file_with_one_checksum_is_found() {
    let disk = closed().await;
    for (path, bytes) in files(&disk).await {
        let name = path.to_string_lossy().into_owned();
        if !["identity", "checkpoint", ".index", ".base"].iter().any(|end| name.ends_with(end)) {
            continue;
        }
        for position in 0..bytes {
            let disk = disk.fork().kill();
            disk.flip_bit(&path, position, (position % 8) as u8);
            let (_, report) = look(&disk, &path).await;
            assert_eq!(report.is_sound(), Some(false), "{name} byte {position}");
            disk.truncate(&path, position);
            assert_eq!(look(&disk, &path).await.1.is_sound(), Some(false), "{name} cut to {position}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotten_round_that_others_build_on_is_found_and_the_last_one_is_a_torn_write() {
    let (disk, _store) = filled().await;
    let journals = files(&disk).await.into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "journal"));
    let mut rounds = Vec::new();
    for (path, _) in journals {
        let items = look(&disk, &path).await.0.into_iter().filter(|item| item.what == "round");
        rounds.extend(items.map(|item| (path.clone(), item.position)));
    }
    assert!(rounds.len() > 10, "{}", rounds.len());
    let last = rounds.len() - 1;
    for (number, (path, position)) in rounds.iter().enumerate() {
        for at in [3, 9, 20, 41, 70, 100] {
            let disk = disk.fork().kill();
            disk.flip_bit(path, position + at, 2);
            let report = look(&disk, path).await.1;
            // Padding and reserved fields apart, only the last round's loss can be taken for a write that was interrupted.
            if number < last {
                assert_eq!(
                    report.problems.first().map(|problem| problem.position),
                    Some(*position),
                    "{at}: {report:?}"
                );
                assert!(report.problems[0].why.contains("were durable"), "{report:?}");
            } else {
                assert_eq!(report.problems, [], "{at}");
            }
        }
    }
    // The folder's identity stands in for a header that rotted.
    let disk = disk.fork().kill();
    disk.flip_bit(&rounds[0].0, 20, 1);
    let (items, report) = look(&disk, &rounds[0].0).await;
    assert_eq!((report.problems.len(), report.problems[0].position), (1, 0));
    assert!(items.iter().any(|item| item.what == "record"));
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_was_cut_below_what_the_checkpoint_vouches_for_is_not_sound() {
    let disk = closed().await;
    let (path, bytes) =
        files(&disk).await.into_iter().find(|(path, _)| path.extension().is_some_and(|e| e == "segment")).unwrap();
    let (items, _) = look(&disk, &path).await;
    let cut = items.last().unwrap().position;
    disk.truncate(&path, cut);
    let (left, report) = look(&disk, &path).await;
    assert_eq!((left.len(), report.problems.len()), (items.len() - 1, 1));
    assert!(report.problems[0].why.contains(&format!("vouches for {bytes}")), "{report:?}");
    // Without a checkpoint the file alone cannot tell.
    disk.remove_file(Path::new("/data/checkpoint")).await.unwrap();
    assert_eq!(look(&disk, &path).await.1.is_sound(), Some(true));
}

#[tokio::test(start_paused = true)]
async fn a_copy_under_another_name_is_still_recognised() {
    let disk = closed().await;
    for (path, _) in files(&disk).await {
        let kind = look(&disk, &path).await.1.kind;
        if matches!(kind, FileKind::Lock | FileKind::SpareJournal) {
            continue;
        }
        let bytes = crate::disk::read_file(&disk, &path, u64::MAX).await.unwrap();
        let fork = disk.fork();
        put(&fork, "/elsewhere/copy", &bytes).await;
        let (_, report) = look(&fork, Path::new("/elsewhere/copy")).await;
        // A base and a snapshot differ in their names only; a prepared journal has no magic yet.
        let same = report.kind == kind || kind == FileKind::Snapshot;
        let blank = bytes.iter().all(|byte| *byte == 0);
        assert!(blank || (same && report.is_sound() == Some(true)), "{}: {report:?}", path.display());
    }
}

fn run(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn anything_at_all_is_survived(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..9000),
        magic in prop::sample::select(vec![&b"PONTOONJ"[..], b"PNTNINDX", b"PNTNBASE", b"PNTNCKPT", &[1, 1, 0, 0]]),
    ) {
        let count = magic.len().min(bytes.len());
        bytes[..count].copy_from_slice(&magic[..count]);
        run(async {
            for name in ["identity", "checkpoint", "5-0.segment", "5-0.index", "5-0.base", "snapshot-4", "1-0.journal", "x"] {
                let disk = SimDisk::new(1);
                put(&disk, &format!("/d/{name}"), &bytes).await;
                let (_, report) = look(&disk, &Path::new("/d").join(name)).await;
                assert!(report.sound_bytes <= report.file_bytes);
            }
        });
    }
}
