//! The model keeps its promises: synced is kept, unsynced is anyone's guess, and the same seed guesses the same.

use std::collections::BTreeSet;

use super::*;
use crate::disk::{Disk, DiskFile, OpenMode, read_file, replace_file};

async fn create(disk: &SimDisk, path: &str, contents: &str) -> Arc<dyn DiskFile> {
    let file = disk.open(Path::new(path), OpenMode::CreateNew).await.unwrap();
    file.write_and_sync(0, vec![contents.to_owned().into()]).await.unwrap();
    disk.sync_dir(Path::new(path).parent().unwrap()).await.unwrap();
    file
}

async fn contents(disk: &SimDisk, path: &str) -> io::Result<String> {
    read_file(disk, Path::new(path), 1 << 20).await.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn is_crash<T>(result: io::Result<T>) -> bool {
    result.err().is_some_and(|error| SimCrash::caused(&error))
}

#[tokio::test]
async fn synced_contents_survive_every_crash() {
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        create(&disk, "/a", "kept").await;
        assert_eq!(contents(&disk.crash(), "/a").await.unwrap(), "kept");
    }
}

#[tokio::test]
async fn unsynced_sectors_are_kept_lost_or_torn_each_by_itself() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let file = create(&disk, "/a", &"o".repeat(1024)).await;
        file.write_at(0, vec!["n".repeat(1024).into()]).await.unwrap();
        let after = contents(&disk.crash(), "/a").await.unwrap();
        assert_eq!(after.len(), 1024);
        let fate = |sector: &str| match (sector.contains('o'), sector.contains('n')) {
            (true, false) => "lost",
            (false, true) => "kept",
            _ => "torn",
        };
        seen.insert((fate(&after[..512]), fate(&after[512..])));
    }
    assert_eq!(seen.len(), 9, "{seen:?}");
}

#[tokio::test]
async fn unsynced_lengths_and_entries_are_anyones_guess() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        let file = create(&disk, "/a", "1").await;
        file.write_at(1, vec!["2".into()]).await.unwrap();
        let new = disk.open(Path::new("/b"), OpenMode::CreateNew).await.unwrap();
        new.write_and_sync(0, vec!["b".into()]).await.unwrap();
        let disk = disk.crash();
        seen.insert((contents(&disk, "/a").await.unwrap().len(), contents(&disk, "/b").await.is_ok()));
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[tokio::test]
async fn a_replaced_file_is_the_old_one_or_the_new_one_at_every_step() {
    let mut seen = BTreeSet::new();
    // 0 removes a left-over, 1 creates, 2 writes, 3 syncs, 4 renames, 5 syncs the directory.
    for op in 0..6 {
        for seed in 0..20 {
            let disk = SimDisk::new(seed);
            create(&disk, "/state", "old").await;
            disk.crash_at_op(disk.ops() + op);
            let result = replace_file(&disk, Path::new("/state"), vec!["new".into()]).await;
            let after = contents(&disk.crash(), "/state").await.unwrap();
            assert!(is_crash(result));
            assert!(after == "old" || after == "new", "{after}");
            seen.insert((op, after));
        }
    }
    // Only between the rename and the sync of the directory may either be found.
    let both = [(0, "old"), (1, "old"), (2, "old"), (3, "old"), (4, "old"), (5, "new"), (5, "old")];
    let expected: BTreeSet<(u64, String)> = both.map(|(op, text)| (op, text.to_owned())).into();
    assert_eq!(seen, expected);
    let disk = SimDisk::new(3);
    create(&disk, "/state", "old").await;
    replace_file(&disk, Path::new("/state"), vec!["new".into()]).await.unwrap();
    assert_eq!(contents(&disk.crash(), "/state").await.unwrap(), "new");
}

#[tokio::test]
async fn entries_that_build_on_a_lost_one_are_lost() {
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        create(&disk, "/a", "a").await;
        create(&disk, "/b", "b").await;
        disk.rename(Path::new("/a"), Path::new("/b")).await.unwrap();
        disk.rename(Path::new("/b"), Path::new("/c")).await.unwrap();
        let disk = disk.crash();
        let mut found = Vec::new();
        for path in ["/a", "/b", "/c"] {
            found.extend(contents(&disk, path).await.ok().map(|text| format!("{path}={text}")));
        }
        let possible = [vec!["/a=a", "/b=b"], vec!["/b=a"], vec!["/c=a"]];
        assert!(possible.iter().any(|p| *p == found), "{found:?}");
    }
}

#[tokio::test]
async fn a_lost_directory_takes_its_files_along() {
    let disk = SimDisk::new(0);
    let mut lost = 0;
    for seed in 0..50 {
        let disk = disk.fork();
        disk.create_dir_all(Path::new("/d")).await.unwrap();
        create(&disk, "/d/a", "1").await;
        let disk = disk.crash_with(seed);
        match disk.read_dir(Path::new("/d")).await {
            Ok(entries) => assert_eq!(entries.len(), 1),
            Err(_) => lost += 1,
        }
    }
    assert!(lost > 5 && lost < 45, "{lost}");
}

#[tokio::test]
async fn a_killed_process_leaves_its_unsynced_writes_in_the_cache() {
    let disk = SimDisk::new(0);
    let file = create(&disk, "/a", "old").await;
    file.write_at(0, vec!["new".into()]).await.unwrap();
    let next = disk.kill();
    assert!(is_crash(file.datasync().await));
    assert!(is_crash(disk.open(Path::new("/a"), OpenMode::Read).await));
    assert!(is_crash(disk.sync_dir(Path::new("/")).await));
    assert_eq!(contents(&next, "/a").await.unwrap(), "new");
    let both = (0..20).map(|seed| next.fork().crash_with(seed));
    let mut seen = BTreeSet::new();
    for disk in both {
        seen.insert(contents(&disk, "/a").await.unwrap() == "new");
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn locks_end_with_the_process() {
    let disk = SimDisk::new(0);
    let old = disk.lock_dir(Path::new("/")).await.unwrap();
    let next = disk.kill();
    let new = next.lock_dir(Path::new("/")).await.unwrap();
    drop(old);
    assert!(next.lock_dir(Path::new("/")).await.is_err());
    drop(new);
    assert!(next.lock_dir(Path::new("/")).await.is_ok());
}

#[tokio::test]
async fn a_failed_sync_may_lose_what_the_next_one_then_promises() {
    for loses_data in [false, true] {
        let disk = SimDisk::new(0);
        let file = create(&disk, "/a", "old").await;
        file.write_at(0, vec!["new".into()]).await.unwrap();
        disk.fail_next_sync("/a", loses_data);
        assert_eq!(file.datasync().await.unwrap_err().raw_os_error(), Some(EIO));
        file.datasync().await.unwrap();
        // The cache shows it in any case.
        assert_eq!(file.read_at(0, 9).await.unwrap(), "new");
        let expected = if loses_data { "old" } else { "new" };
        assert_eq!(contents(&disk.crash(), "/a").await.unwrap(), expected);
        assert_eq!(disk.faults_left(), 0);
    }
}

#[tokio::test]
async fn what_is_written_again_after_a_failed_sync_is_durable_with_its_length() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let file = create(&disk, "/a", "old").await;
        file.write_at(3, vec!["new".into()]).await.unwrap();
        disk.fail_next_sync("/a", true);
        file.datasync().await.unwrap_err();
        file.write_at(3, vec!["new".into()]).await.unwrap();
        file.datasync().await.unwrap();
        assert_eq!(contents(&disk.crash(), "/a").await.unwrap(), "oldnew");
    }
}

#[tokio::test]
async fn the_nth_matching_operation_fails_and_no_other() {
    let disk = SimDisk::new(0);
    let (a, b) = (create(&disk, "/a", "").await, create(&disk, "/b", "").await);
    let path_contains = "a".to_owned();
    disk.inject(Fault { kind: OpKind::Write, path_contains, skip: 1, errno: ENOSPC, loses_data: false });
    a.write_at(0, vec!["1".into()]).await.unwrap();
    b.write_at(0, vec!["1".into()]).await.unwrap();
    assert_eq!(a.write_at(0, vec!["2".into()]).await.unwrap_err().kind(), io::ErrorKind::StorageFull);
    a.write_at(1, vec!["3".into()]).await.unwrap();
    assert_eq!(a.read_at(0, 9).await.unwrap(), "13");
}

#[tokio::test]
async fn a_fault_has_struck_once_it_does_and_in_that_life_only() {
    let disk = SimDisk::new(0);
    let fault =
        |path: &str| Fault { kind: OpKind::Create, path_contains: path.into(), skip: 0, errno: EIO, loses_data: false };
    disk.inject(fault("/a"));
    disk.inject(fault("/b"));
    assert!(!disk.has_struck());
    disk.open(Path::new("/a"), OpenMode::CreateNew).await.err().unwrap();
    assert!(disk.has_struck());
    for (next, left) in [(disk.kill(), 1), (disk.crash(), 1)] {
        assert_eq!((next.has_struck(), next.faults_left()), (false, left));
    }
}

#[tokio::test]
async fn a_full_disk_refuses_what_does_not_fit() {
    let disk = SimDisk::new(0);
    let file = create(&disk, "/a", "12345").await;
    disk.set_capacity(Some(10));
    assert_eq!(disk.available_bytes(Path::new("/")).await.unwrap(), 5);
    file.allocate(0, 8).await.unwrap();
    assert_eq!(file.write_at(3, vec!["12345678".into()]).await.unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(file.allocate(0, 11).await.unwrap_err().kind(), io::ErrorKind::StorageFull);
    file.write_at(3, vec!["45678".into()]).await.unwrap();
    drop(file);
    disk.remove_file(Path::new("/a")).await.unwrap();
    disk.sync_dir(Path::new("/")).await.unwrap();
    assert_eq!(disk.used_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_sync_covers_only_what_was_written_before_it() {
    let disk = SimDisk::new(0);
    let file = create(&disk, "/a", "0").await;
    disk.slow_syncs("/a", Duration::from_secs(3));
    file.write_at(0, vec!["1".into()]).await.unwrap();
    let start = tokio::time::Instant::now();
    let (synced, ()) = tokio::join!(file.datasync(), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        file.write_at(0, vec!["2".into()]).await.unwrap();
    });
    synced.unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    let mut seen = BTreeSet::new();
    for seed in 0..20 {
        seen.insert(contents(&disk.fork().crash_with(seed), "/a").await.unwrap());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["1", "2"]);
}

#[tokio::test]
async fn rot_is_seen_at_once_and_after_a_crash() {
    let disk = SimDisk::new(0);
    create(&disk, "/a", "abc").await;
    disk.flip_bit(Path::new("/a"), 1, 0);
    assert_eq!(contents(&disk, "/a").await.unwrap(), "acc");
    disk.truncate(Path::new("/a"), 2);
    assert_eq!(contents(&disk.crash(), "/a").await.unwrap(), "ac");
}

#[tokio::test]
async fn a_folder_that_is_lost_stays_lost_and_takes_no_fault_with_it() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let (kept, lost) = (Path::new("/kept"), Path::new("/lost"));
        disk.create_dir_all(lost).await.unwrap();
        create(&disk, "/lost/a", "a").await;
        if seed % 2 == 0 {
            disk.sync_dir(Path::new("/")).await.unwrap();
        }
        disk.create_dir_all(kept).await.unwrap();
        let (kind, path_contains) = (OpKind::Remove, String::new());
        disk.inject(Fault { kind, path_contains, skip: 0, errno: EIO, loses_data: false });
        disk.remove_tree(lost);
        assert_eq!((disk.faults_left(), disk.used_bytes()), (1, 0));
        assert!(disk.read_dir(kept).await.unwrap().is_empty());
        assert_eq!(disk.read_dir(lost).await.err().map(|error| error.kind()), Some(io::ErrorKind::NotFound));
        let disk = disk.crash();
        assert_eq!(disk.read_dir(lost).await.err().map(|error| error.kind()), Some(io::ErrorKind::NotFound));
    }
}

#[tokio::test]
async fn from_the_named_operation_on_everything_fails() {
    let disk = SimDisk::new(0);
    disk.record_trace();
    let file = create(&disk, "/a", "1").await;
    let steps: Vec<OpKind> = disk.take_trace().into_iter().map(|entry| entry.kind).collect();
    assert_eq!(steps, [OpKind::Create, OpKind::Write, OpKind::Sync, OpKind::SyncDir]);
    disk.crash_at_op(disk.ops() + 1);
    file.write_at(0, vec!["2".into()]).await.unwrap();
    assert!(is_crash(file.datasync().await));
    assert!(disk.has_crashed());
    assert!(is_crash(file.read_at(0, 1).await));
    assert!(is_crash(disk.read_dir(Path::new("/")).await));
    assert!(contents(&disk.crash(), "/a").await.is_ok());
}

#[tokio::test]
async fn one_seed_gives_one_disk() {
    let mut pictures = Vec::new();
    for _ in 0..2 {
        let disk = SimDisk::new(42);
        let file = create(&disk, "/a", &"o".repeat(5000)).await;
        for step in 0..10u64 {
            file.write_at(step * 400, vec![step.to_string().repeat(700).into()]).await.unwrap();
        }
        pictures.push(contents(&disk.crash(), "/a").await.unwrap());
    }
    assert_eq!(pictures[0], pictures[1]);
}

#[tokio::test]
async fn a_dirty_file_that_is_dropped_is_told_of() {
    let disk = SimDisk::new(0);
    let file = create(&disk, "/a", "1").await;
    file.write_at(0, vec!["2".into()]).await.unwrap();
    drop(file);
    drop(create(&disk, "/b", "1").await);
    assert_eq!(disk.dirty_drops(), [Path::new("/a")]);
}
