//! Full disks, failing syncs, and what a directory keeps.

use std::path::{Path, PathBuf};

use futures_util::FutureExt;

use super::*;
use crate::disk::Disk;
use crate::disk::sim::{EBADMSG, EIO, ENOSPC, EUCLEAN, Fault, OpKind, TraceEntry};
use crate::error::OpenError;
use crate::log::base::Base;
use crate::payload::Application;
use crate::store::ApplicationFactory;
use crate::testing::TestApplication;

#[tokio::test(start_paused = true)]
async fn a_failed_sync_of_the_journal_stops_the_directory() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 2, 10).await;
    disk.fail_next_sync("journal", true);
    assert!(append(&log, vec![NewEntry::Blank(log_id(1, 2))]).await.is_err());
    let stopped = store.stopped().await;
    assert!(stopped.to_string().contains("journal"), "{stopped}");
    assert!(append(&log, vec![NewEntry::Blank(log_id(1, 3))]).await.is_err());
    assert!(log.save_vote(vote(1, REPLICA, true)).await.is_err());
    assert!(store.close().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_of_a_segment_stops_the_directory_and_loses_nothing() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 5, 300).await;
    rest().await;
    disk.fail_next_sync(".segment", true);
    assert!(store.checkpoint().await.is_err());
    assert!(store.stopped().await.to_string().contains("segment"));
    assert!(append(&log, vec![NewEntry::Blank(log_id(1, 5))]).await.is_err());
    // The journal was not given up.
    let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
    assert_eq!(indexes(&store.replicas()[0].log).await, [0, 1, 2, 3, 4]);
}

/// A thin volume or a network file system takes more than it has room for, and says so at the sync. What it was to make durable
/// is gone from the page cache then, and the next sync knows nothing of it.
#[tokio::test(start_paused = true)]
async fn a_sync_that_fails_for_want_of_room_stops_the_directory_and_loses_nothing() {
    for (kind, path) in [(OpKind::Sync, ".segment"), (OpKind::SyncDir, "groups/4-40")] {
        let (disk, store, log) = fresh(small()).await;
        fill(&log, 1, 5, 300).await;
        rest().await;
        let path_contains = path.to_owned();
        disk.inject(Fault { kind, path_contains, skip: 0, errno: ENOSPC, loses_data: kind == OpKind::Sync });
        assert!(store.checkpoint().await.is_err(), "{kind:?}: taken for a full disk");
        assert!(store.stopped().await.to_string().contains("4-40"));
        let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
        assert_eq!(indexes(&store.replicas()[0].log).await, [0, 1, 2, 3, 4]);
    }
}

/// A folder's sync speaks for every file in it: its failure must not be swallowed by whoever happened to ask.
#[tokio::test(start_paused = true)]
async fn a_failed_sync_of_whatever_is_put_into_a_folder_stops_the_directory() {
    for kind in [OpKind::Sync, OpKind::SyncDir] {
        for what in ["snapshot", "truncate", "purge", "install", "index", "delete"] {
            let (disk, store, log) = fresh(small()).await;
            fill(&log, 1, 40, 300).await;
            rest().await;
            let first = log.state.lock().segments[0].name();
            // In the folder, or in the one that holds it; the journal's own syncs go on.
            let path_contains = "/data/groups".to_owned();
            disk.inject(Fault { kind, path_contains, skip: 0, errno: EIO, loses_data: false });
            let result = match what {
                "snapshot" => log.write_snapshot(log_id(1, 3), Bytes::from_static(b"any")).await.map(drop),
                "truncate" => log.truncate_after(Some(log_id(1, 30))).await,
                "purge" => log.purge(log_id(1, 30)).await,
                "index" => log.rewrite_index(first).await.map_err(std::io::Error::other),
                "install" => {
                    let base = Base { last: Some(log_id(1, 99)), next_offset: 7, ..Base::default() };
                    let bytes = base.encode();
                    log.install(&base, bytes).await
                }
                _ => store.delete(GROUP, REPLICA).await.map_err(std::io::Error::other),
            };
            if disk.faults_left() > 0 {
                continue; // It syncs nothing of this kind there.
            }
            rest().await;
            assert!(store.checkpoint().await.is_err(), "{what}, {kind:?}: {result:?}, and the directory goes on");
        }
    }
}

/// Two who sync the same file, a repair and a checkpoint: neither may take it for clean before it is.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_vouches_for_nothing_that_another_is_still_making_durable() {
    let (disk, store, log) = fresh(RaftConfig { tail_cache_bytes: 0, ..small() }).await;
    fill(&log, 1, 3, 100).await;
    rest().await;
    store.checkpoint().await.unwrap();
    fill(&log, 1, 2, 100).await;
    rest().await;
    let file = log.state.lock().segments.last().unwrap().file.clone();
    assert!(file.is_dirty());
    disk.slow_syncs(".segment", Duration::from_secs(10));
    let syncing = tokio::spawn({
        let file = file.clone();
        async move { file.sync().await }
    });
    rest().await;
    assert!(file.is_dirty() && !syncing.is_finished());
    store.checkpoint().await.unwrap();
    assert!(syncing.is_finished(), "the checkpoint has waited");
    for seed in 0..20 {
        let store = open(&disk.fork().crash_with(seed), small(), SnapshotAt::Boundary).await;
        assert!(store.corrupt().is_empty() && !store.replicas()[0].log.is_rotten(), "seed {seed}");
        assert_eq!(indexes(&store.replicas()[0].log).await.len(), 5);
    }
    // One that was given up has done nothing, and of one that failed nobody knows what it has (RULES.md J15).
    fill(&log, 1, 1, 100).await;
    rest().await;
    assert!(tokio::time::timeout(Duration::from_secs(1), file.sync()).await.is_err());
    assert!(file.is_dirty());
    disk.fail_next_sync(".segment", true);
    for _ in 0..2 {
        assert!(file.sync().await.is_err() && file.is_dirty());
    }
    assert!(store.checkpoint().await.is_err());
}

/// Linux tells of a write-back error once for each open file: of two who sync it at a time, one would hear nothing.
#[tokio::test(start_paused = true)]
async fn a_large_append_is_not_vouched_for_beside_a_sync_that_fails() {
    let config = RaftConfig { segment_bytes_max: 1 << 20, ..small() };
    let large = |log: &Log| proposal(log.last_log_id().unwrap().index + 1, 1, test_payload(1, 2, 0, &[1; 20_000]));
    let (disk, store, log) = fresh(config.clone()).await;
    fill(&log, 1, 2, 100).await;
    rest().await;
    let file = log.state.lock().segments.last().unwrap().file.clone();
    disk.slow_syncs(".segment", Duration::from_secs(10));
    disk.fail_next_sync(".segment", true);
    let syncing = tokio::spawn({
        let file = file.clone();
        async move { file.sync().await }
    });
    rest().await;
    assert!(append(&log, vec![large(&log)]).await.is_err(), "acknowledged, and perhaps lost");
    assert!(syncing.await.unwrap().is_err() && file.is_dirty());
    store.stopped().await;
    // Nor the other way round.
    let (disk, store, log) = fresh(config).await;
    fill(&log, 1, 2, 100).await;
    rest().await;
    let file = log.state.lock().segments.last().unwrap().file.clone();
    disk.slow_syncs(".segment", Duration::from_secs(10));
    disk.fail_next_sync(".segment", true);
    let told = submit(&log, vec![large(&log)]).await.unwrap();
    rest().await;
    assert!(file.sync().await.is_err() && file.is_dirty());
    assert!(told.await.unwrap().is_err());
    store.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_loses_nothing_and_writes_resume_when_there_is_room() {
    for quota in [false, true] {
        let (disk, store, log) = fresh(small()).await;
        disk.set_quota(quota);
        fill(&log, 1, 5, 300).await;
        rest().await;
        // No room for a segment, while the journal has its own.
        disk.set_capacity(Some(disk.used_bytes()));
        fill(&log, 1, 20, 300).await;
        rest().await;
        // The file system knows of no quota: the refusal tells.
        assert_eq!((store.available_bytes(), store.usage().available_bytes), (0, 0), "{quota}");
        assert!(log.state.lock().appends_written < 25, "the segment was written on a full disk");
        assert_eq!(indexes(&log).await.len(), 25);
        assert!(store.checkpoint().await.is_ok(), "a checkpoint that finds no room is put off");
        // More than the journal has room for, some of it past the journal.
        let more = tokio::spawn({
            let log = log.clone();
            async move {
                fill(&log, 1, 60, 2000).await;
                fill(&log, 1, 1, 9000).await;
            }
        });
        rest().await;
        assert!(!more.is_finished(), "there is room after all");
        let again = disk.fork().kill();
        again.set_capacity(Some(again.used_bytes()));
        let refused = Store::open(options(&again, small(), SnapshotAt::Boundary)).await.err();
        assert!(refused.is_some_and(|why| why.to_string().contains("make room")));
        disk.set_capacity(None);
        more.await.unwrap();
        rest().await;
        rest().await;
        assert_eq!(log.state.lock().appends_written, 86);
        store.checkpoint().await.unwrap();
        let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
        assert_eq!(indexes(&store.replicas()[0].log).await.len(), 86);
    }
}

/// What had no room in its segments before the end of the process has none at the next start either.
#[tokio::test(start_paused = true)]
async fn a_start_on_a_full_disk_serves_what_has_no_room_in_its_segments_yet() {
    for killed in [true, false] {
        let (disk, store, log) = fresh(small()).await;
        let other = store.create(GroupId(8), ReplicaId(80)).await.unwrap().log;
        fill(&other, 1, 2, 300).await;
        fill(&log, 1, 5, 300).await;
        log.purge(log_id(1, 2)).await.unwrap();
        rest().await;
        disk.set_capacity(Some(disk.used_bytes()));
        fill(&log, 1, 12, 300).await;
        rest().await;
        assert!(log.state.lock().appends_written < 17, "there is room after all");
        let state = |log: &Log| (log.log_start_offset(), log.log_end_offset(), log.append_state(), log.vote());
        let mut before = state(&log);
        let mut disk = disk;
        // Twice, for nothing of it depends on the process.
        for term in 2..4 {
            disk = if killed { disk.kill() } else { disk.crash() };
            // Room for a file of the journal, and not for all the segments.
            disk.set_capacity(Some(disk.used_bytes() + (66 << 10)));
            let store = open(&disk, small(), SnapshotAt::Boundary).await;
            assert_eq!((store.corrupt(), store.rotten()), (Vec::new(), Vec::new()));
            let log = store.replicas()[0].log.clone();
            assert_eq!(state(&log), before, "killed: {killed}");
            assert_eq!(indexes(&log).await, (3..17).collect::<Vec<_>>(), "killed: {killed}");
            let (written, appends) = {
                let state = log.state.lock();
                (state.appends_written, state.appends)
            };
            assert!(written < appends, "there is room after all");
            // It votes, and lets go of others.
            log.save_vote(vote(term, REPLICA, false)).await.unwrap();
            before.3 = log.vote();
            store.delete(GroupId(8), ReplicaId(80)).await.unwrap();
        }
        disk = disk.kill();
        disk.set_capacity(None);
        let store = open(&disk, small(), SnapshotAt::Boundary).await;
        let log = store.replicas()[0].log.clone();
        assert_eq!(state(&log), before);
        fill(&log, 3, 3, 300).await;
        store.checkpoint().await.unwrap();
        let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
        assert_eq!((store.corrupt(), store.replicas().len()), (Vec::new(), 1));
        let log = store.replicas()[0].log.clone();
        assert_eq!(indexes(&log).await, (3..20).collect::<Vec<_>>());
        assert_eq!(log.verify().await.unwrap(), log.bytes());
    }
}

/// It has its bound, and a directory its own files.
#[tokio::test(start_paused = true)]
async fn a_start_for_which_there_is_no_room_says_what_to_do_and_loses_nothing() {
    for (room, what) in [(66 << 10, ".segment"), (8 << 10, "journal"), (0, "identity")] {
        let (disk, _store, log) = fresh(small()).await;
        disk.set_capacity(Some(disk.used_bytes()));
        // So many that no file of the journal is left unused, either.
        fill(&log, 1, 20, 300).await;
        let disk = disk.kill();
        disk.set_capacity(Some(disk.used_bytes() + room));
        let options = |disk: &SimDisk, unwritten_bytes_max| StoreOptions {
            disk: Arc::new(disk.clone()),
            path: "/data".into(),
            broker: BrokerId(1),
            config: RaftConfig { unwritten_bytes_max, ..small() },
            applications: test_applications(SnapshotAt::Boundary),
        };
        let bound = if what == ".segment" { 2 << 10 } else { 1 << 20 };
        let refused = Store::open(options(&disk, bound)).await.err().expect("there is room after all").to_string();
        assert!(refused.contains(what) && refused.contains("make room"), "{refused}");
        let disk = disk.kill();
        disk.set_capacity(None);
        let store = Store::open(options(&disk, bound)).await.unwrap();
        assert_eq!(store.corrupt(), []);
        assert_eq!(indexes(&store.replicas()[0].log).await, (0..20).collect::<Vec<_>>());
    }
}

/// What a recovery found needless is needless only once a checkpoint says so: until then the next recovery begins where this one did.
#[tokio::test(start_paused = true)]
async fn a_start_on_a_full_disk_throws_nothing_away_that_the_next_start_needs() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 3, 300).await;
    store.checkpoint().await.unwrap();
    // A snapshot from the leader, entries behind it, and then one of its own at a later boundary.
    let base = Base { last: Some(log_id(1, 99)), next_offset: 7, ..Base::default() };
    log.install(&base, base.encode()).await.unwrap();
    fill(&log, 1, 20, 300).await;
    let boundary = log.state.lock().segments[1].previous.unwrap();
    let (head, _) = log.head_at(Some(boundary.index)).await.unwrap();
    log.write_snapshot(boundary, head.base().encode()).await.unwrap();
    // The next start finds no room for what a checkpoint needs; the one after that has room.
    let disk = disk.crash();
    disk.inject(Fault {
        kind: OpKind::Write,
        path_contains: ".base".to_owned(),
        skip: 0,
        errno: ENOSPC,
        loses_data: false,
    });
    let store = open(&disk, small(), SnapshotAt::Boundary).await;
    assert_eq!((store.corrupt(), disk.faults_left()), (Vec::new(), 0));
    let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
    assert_eq!(store.corrupt(), Vec::new());
    assert_eq!(indexes(&store.replicas()[0].log).await, (100..120).collect::<Vec<_>>());
}

/// A segment whose file could be made only after its base had been: nothing but the checkpoint syncs its entry.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_makes_the_entries_of_the_files_it_names_durable() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 8, 300).await;
    log.truncate_after(Some(log_id(1, 6))).await.unwrap();
    let (kind, path_contains) = (OpKind::Create, ".segment".to_owned());
    disk.inject(Fault { kind, path_contains, skip: 0, errno: ENOSPC, loses_data: false });
    fill(&log, 1, 1, 300).await;
    log.purge(log_id(1, 6)).await.unwrap();
    assert_eq!((disk.faults_left(), log.segments().len()), (0, 1));
    rest().await;
    store.checkpoint().await.unwrap();
    for seed in 0..10 {
        let store = open(&disk.fork().crash_with(seed), small(), SnapshotAt::Boundary).await;
        assert_eq!((seed, store.corrupt()), (seed, Vec::new()));
        assert_eq!(indexes(&store.replicas()[0].log).await, [7]);
    }
}

/// What is appended while a checkpoint waits for what it has captured is not in it, and the journal must be heard about it.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_claims_no_more_than_it_has_captured() {
    let (disk, store, log) = fresh(small()).await;
    let later = store.create(GroupId(8), ReplicaId(80)).await.unwrap().log;
    fill(&log, 1, 1, 10).await;
    fill(&later, 1, 1, 10).await;
    disk.slow_syncs("journal", Duration::from_millis(10));
    // One round is under way, another waits for it; the checkpoint begins, and then the other replica takes part in the second.
    let first = submit(&log, vec![NewEntry::Blank(log_id(1, 1))]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let second = submit(&log, vec![NewEntry::Blank(log_id(1, 2))]).await.unwrap();
    let checkpoint = tokio::spawn({
        let store = store.clone();
        async move { store.checkpoint().await }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let beside = submit(&later, vec![NewEntry::Blank(log_id(1, 1))]).await.unwrap();
    for told in [first, second, beside] {
        told.await.unwrap().unwrap();
    }
    checkpoint.await.unwrap().unwrap();
    let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
    let lasts: Vec<_> = store.replicas().iter().map(|replica| replica.log.last_log_id()).collect();
    assert_eq!(lasts, [Some(log_id(1, 2)), Some(log_id(1, 1))]);
}

/// The deletion of a replica whose files are gone, a checkpoint in the middle of it, and the end of the process.
#[tokio::test(start_paused = true)]
async fn a_corrupt_replica_that_was_deleted_does_not_come_back() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 5, 300).await;
    store.close().await.unwrap();
    let disk = disk.crash();
    let folder = Path::new("/data/groups/4-40");
    for entry in disk.read_dir(folder).await.unwrap() {
        disk.remove_file(&folder.join(entry.name)).await.unwrap();
    }
    let store = open(&disk, small(), SnapshotAt::Boundary).await;
    assert_eq!(store.corrupt().len(), 1);
    disk.slow_syncs("/data/groups", Duration::from_secs(10));
    let deleting = tokio::spawn({
        let store = store.clone();
        async move { store.delete(GROUP, REPLICA).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    store.checkpoint().await.unwrap();
    // It is being moved aside, and its deletion not on record yet.
    let half = open(&disk.fork().crash(), small(), SnapshotAt::Boundary).await;
    assert_eq!((half.corrupt().len(), half.replicas().len(), half.unknown_folders().len()), (1, 0, 0));
    tokio::time::sleep(Duration::from_secs(60)).await;
    store.checkpoint().await.unwrap();
    let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
    assert_eq!((store.corrupt(), store.replicas().len(), store.unknown_folders().len()), (Vec::new(), 0, 0));
    assert_eq!(store.quarantined(), [Path::new("/data/groups/quarantined-4-40")]);
    drop(deleting);
}

#[tokio::test(start_paused = true)]
async fn what_was_accepted_since_the_last_measurement_counts_as_gone_twice() {
    let (disk, store, log) = fresh(RaftConfig { segment_bytes_max: 1 << 20, ..small() }).await;
    disk.set_capacity(Some(disk.used_bytes() + (1 << 20)));
    rest().await;
    let (before, began) = (store.available_bytes(), tokio::time::Instant::now());
    fill(&log, 1, 20, 5000).await;
    assert!(began.elapsed() < Duration::from_millis(500), "free space was measured meanwhile");
    assert!(store.available_bytes() <= before - 200_000, "{} of {before} are left", store.available_bytes());
    // Measured again, what was accepted is where it is.
    rest().await;
    rest().await;
    let measured = disk.available_bytes(Path::new("/data")).await.unwrap();
    assert_eq!(store.available_bytes(), measured);
}

#[tokio::test(start_paused = true)]
async fn large_appends_wait_for_room_too_and_a_purge_makes_it() {
    let (disk, store, log) = fresh(RaftConfig { segment_bytes_max: 1 << 20, ..small() }).await;
    let other = store.create(GroupId(8), ReplicaId(80)).await.unwrap().log;
    fill(&other, 1, 40, 9000).await;
    rest().await;
    // A little is left: a purge writes down what the purged prefix told.
    disk.set_capacity(Some(disk.used_bytes() + 1000));
    let large = submit(&log, vec![proposal(0, 1, test_payload(1, 1, 0, &vec![1; 20_000]))]).await.unwrap();
    rest().await;
    other.purge(log_id(1, 39)).await.unwrap();
    let large = tokio::time::timeout(Duration::from_secs(60), large).await.expect("no room was found");
    large.unwrap().unwrap();
    assert_eq!(indexes(&log).await, [0]);
    store.close().await.unwrap();
}

/// Nobody was told that it is there; whoever closes the directory has a process to end.
#[tokio::test(start_paused = true)]
async fn a_directory_is_closed_beside_large_appends_that_wait_for_room() {
    let (disk, store, log) = fresh(RaftConfig { segment_bytes_max: 1 << 20, ..small() }).await;
    let mut waiting = Vec::new();
    for number in 10..16 {
        let log = store.create(GroupId(number), ReplicaId(number)).await.unwrap().log;
        fill(&log, 1, 3, 300).await;
        waiting.push(log);
    }
    rest().await;
    disk.set_capacity(Some(disk.used_bytes()));
    let mut told = Vec::new();
    for log in &waiting {
        let large = test_payload(1, 2, 0, &vec![1; 70_000]);
        told.push(submit(log, vec![proposal(3, 1, large)]).await.unwrap());
        told.push(submit(log, vec![NewEntry::Blank(log_id(1, 4))]).await.unwrap());
    }
    fill(&log, 1, 3, 300).await;
    rest().await;
    let closed = tokio::time::timeout(Duration::from_secs(30), store.close()).await;
    closed.expect("it waits for room").unwrap();
    for told in told {
        assert!(told.await.unwrap().is_err(), "it was told to be durable");
    }
    let disk = disk.crash();
    disk.set_capacity(None);
    let store = open(&disk, small(), SnapshotAt::Boundary).await;
    assert_eq!((store.replicas().len(), store.corrupt()), (7, Vec::new()));
    for replica in store.replicas() {
        assert_eq!(indexes(&replica.log).await, [0, 1, 2]);
    }
}

#[tokio::test(start_paused = true)]
async fn unwritten_bytes_hold_appends_back() {
    let config = RaftConfig { unwritten_bytes_max: 4 << 10, ..small() };
    let (disk, _store, log) = fresh(config).await;
    disk.set_capacity(Some(disk.used_bytes()));
    let mut taken = 0;
    for index in 0..20 {
        let entry = proposal(index, 1, test_payload(1, 1, index as u32, &[1; 1000]));
        let taking = tokio::time::timeout(Duration::from_secs(5), append(&log, vec![entry]));
        match taking.await {
            Ok(result) => result.unwrap(),
            Err(_) => break,
        }
        taken += 1;
    }
    assert!((3..=4).contains(&taken), "{taken} KiB were taken");
    disk.set_capacity(None);
    rest().await;
    fill(&log, 1, 5, 1000).await;
}

#[tokio::test(start_paused = true)]
async fn checkpoints_come_by_themselves_and_give_the_journal_up() {
    let config = RaftConfig { checkpoint_journal_bytes: 64 << 10, ..small() };
    let (disk, _store, log) = fresh(config.clone()).await;
    for _ in 0..20 {
        fill(&log, 1, 10, 2000).await;
        rest().await;
    }
    // 400 KiB went through it.
    assert!(log.context.journal.live_bytes() < 200 << 10, "{}", log.context.journal.live_bytes());
    let store = open(&disk.crash(), config, SnapshotAt::Boundary).await;
    assert_eq!(indexes(&store.replicas()[0].log).await.len(), 200);
}

/// What is small takes a block of the journal all the same.
#[tokio::test(start_paused = true)]
async fn small_appends_are_checkpointed_by_what_they_take_in_the_journal() {
    let config =
        RaftConfig { checkpoint_journal_bytes: 64 << 10, checkpoint_interval: Duration::from_secs(86_400), ..small() };
    let (_disk, _store, log) = fresh(config).await;
    for _ in 0..100 {
        fill(&log, 1, 1, 10).await;
    }
    rest().await;
    assert!(log.context.journal.bytes_written() >= 400 << 10);
    assert!(log.context.journal.live_bytes() < 200 << 10, "{}", log.context.journal.live_bytes());
}

/// A file that cannot be read now may be readable the next time. A replica that is given up is so for good.
#[tokio::test(start_paused = true)]
async fn a_start_that_cannot_read_a_file_is_refused_and_gives_nothing_up() {
    const EMFILE: i32 = 24;
    const EACCES: i32 = 13;
    for (what, errno) in [(".segment", EMFILE), (".base", EMFILE), (".segment", EACCES), (".base", EACCES)] {
        let (disk, store, log) = fresh(small()).await;
        fill(&log, 1, 20, 300).await;
        rest().await;
        store.checkpoint().await.unwrap();
        // Back before the checkpoint, so that the fold begins at a base.
        fill(&log, 1, 1, 10_000).await;
        fill(&log, 1, 3, 300).await;
        log.truncate_after(Some(log_id(1, 15))).await.unwrap();
        rest().await;
        let disk = disk.kill();
        let path_contains = what.to_owned();
        disk.inject(Fault { kind: OpKind::Open, path_contains, skip: 0, errno, loses_data: false });
        let options = StoreOptions {
            disk: Arc::new(disk.clone()),
            path: "/data".into(),
            broker: BrokerId(1),
            config: small(),
            applications: test_applications(SnapshotAt::Boundary),
        };
        let refused = Store::open(options).await.err();
        assert_eq!(disk.faults_left(), 0, "the test wants to have it opened");
        assert!(refused.is_some_and(|why| why.to_string().contains(what)), "{what}");
        let disk = disk.kill();
        let store = open(&disk, small(), SnapshotAt::Boundary).await;
        assert_eq!(store.corrupt(), [], "{what}");
        assert_eq!(indexes(&store.replicas()[0].log).await.len(), 16);
    }
}

/// What keeps its deletion on record keeps all that comes after it, too.
#[tokio::test(start_paused = true)]
async fn a_deleted_replicas_folder_that_could_not_be_moved_does_not_keep_the_journal_for_ever() {
    let config = RaftConfig { checkpoint_journal_bytes: 64 << 10, ..small() };
    let (disk, store, _) = fresh(config.clone()).await;
    let other = store.create(GROUP, ReplicaId(41)).await.unwrap().log;
    let path_contains = "4-40".to_owned();
    disk.inject(Fault { kind: OpKind::Rename, path_contains, skip: 0, errno: ENOSPC, loses_data: false });
    store.delete(GROUP, REPLICA).await.unwrap();
    assert_eq!(disk.faults_left(), 0);
    for _ in 0..20 {
        fill(&other, 1, 10, 2000).await;
        rest().await;
    }
    assert!(other.context.journal.live_bytes() < 200 << 10, "{}", other.context.journal.live_bytes());
    let groups = disk.read_dir(Path::new("/data/groups")).await.unwrap();
    assert_eq!(groups.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["4-41"]);
    assert_eq!(open(&disk.crash(), config, SnapshotAt::Boundary).await.replicas().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_replica_leaves_nothing_and_its_id_is_free_for_nobody_else() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 5, 100).await;
    store.delete(GROUP, REPLICA).await.unwrap();
    store.delete(GROUP, REPLICA).await.unwrap();
    assert!(append(&log, vec![NewEntry::Blank(log_id(1, 5))]).await.is_err());
    let next = store.create(GROUP, ReplicaId(41)).await.unwrap().log;
    assert_eq!(next.last_log_id(), None);
    fill(&next, 1, 1, 100).await;
    let groups = disk.read_dir(Path::new("/data/groups")).await.unwrap();
    assert_eq!(groups.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["4-41"]);
    let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
    let replicas: Vec<_> = store.replicas().iter().map(|replica| replica.replica).collect();
    assert_eq!((replicas, store.unknown_folders().len()), (vec![ReplicaId(41)], 0));
}

#[tokio::test(start_paused = true)]
async fn creating_again_gives_the_same_replica() {
    let (_, store, log) = fresh(small()).await;
    fill(&log, 1, 1, 10).await;
    let again = store.create(GROUP, REPLICA).await.unwrap();
    assert!(Arc::ptr_eq(&again.log, &log));
}

#[tokio::test(start_paused = true)]
async fn segments_are_given_room_in_chunks_and_give_it_back_when_closed() {
    let (disk, _store, log) = fresh(RaftConfig { segment_bytes_max: 8 << 10, ..small() }).await;
    disk.record_trace();
    fill(&log, 1, 30, 700).await;
    rest().await;
    let trace = disk.take_trace();
    let count = |kind| trace.iter().filter(|op| op.kind == kind && op.path.starts_with("/data/groups")).count();
    let segments = log.segments().len();
    assert!(segments > 2);
    assert_eq!((count(OpKind::Allocate), count(OpKind::SetLen)), (segments, segments - 1));
    // In large writes: far fewer than there are frames.
    let writes =
        trace.iter().filter(|op| op.kind == OpKind::Write && op.path.extension().is_some_and(|e| e == "segment"));
    assert!(writes.count() <= segments * 2);
}

/// What a segment did not take is still in the journal: no checkpoint may say otherwise, or the next start looks for it in vain.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_does_not_vouch_for_what_could_not_be_written() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 2, 300).await;
    rest().await;
    store.checkpoint().await.unwrap();
    disk.inject(Fault {
        kind: OpKind::Write,
        path_contains: ".segment".into(),
        skip: 0,
        errno: EIO,
        loses_data: false,
    });
    fill(&log, 1, 1, 300).await;
    assert!(store.checkpoint().await.is_err(), "a checkpoint after a write that failed");
    let store = open(&disk.kill(), small(), SnapshotAt::Boundary).await;
    assert_eq!((store.corrupt(), store.rotten()), (Vec::new(), Vec::new()));
    assert_eq!(indexes(&store.replicas()[0].log).await, [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn the_scrub_finds_rot_that_nobody_reads() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 30, 300).await;
    rest().await;
    store.checkpoint().await.unwrap();
    let segment = super::super::segment::path(log.dir(), log.state.lock().segments[1].name(), "segment");
    disk.flip_bit(&segment, 700, 2);
    assert_eq!(store.rotten(), Vec::new());
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    let rotten = store.rotten();
    assert_eq!((rotten.len(), rotten[0].group), (1, GROUP));
    assert!(rotten[0].rot[0].file == segment, "{:?}", rotten[0].rot);
    assert_eq!(store.corrupt(), Vec::new());
}

#[tokio::test(start_paused = true)]
async fn the_scrub_makes_anew_what_follows_from_the_rest_and_reports_what_does_not() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 30, 300).await;
    rest().await;
    store.checkpoint().await.unwrap();
    let names: Vec<_> = log.segments().iter().map(|segment| segment.first_index).collect();
    let state_names: Vec<_> = log.state.lock().segments.iter().map(super::super::segment::Segment::name).collect();
    assert!(names.len() > 4);
    let beside = |at: usize, kind| super::super::segment::path(log.dir(), state_names[at], kind);
    let files = disk.read_dir(Path::new("/data/journal")).await.unwrap();
    let journal = files.into_iter().find(|entry| entry.name.ends_with(".journal")).unwrap();
    let journal = Path::new("/data/journal").join(journal.name);
    let mended = [beside(1, "index"), beside(2, "base"), Path::new("/data/checkpoint").to_owned()];
    let before = crate::disk::read_file(&disk, &mended[1], 1 << 20).await.unwrap();
    for path in &mended {
        disk.flip_bit(path, 30, 2);
    }
    disk.flip_bit(&journal, 4096 + 70, 2);
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    assert!(store.scrub_rounds() > 0);
    for path in &mended {
        let report = crate::inspect::inspect(&disk, path, &mut |_| Ok(())).await.unwrap();
        assert_eq!(report.is_sound(), Some(true), "{}: {report:?}", path.display());
    }
    assert!(crate::disk::read_file(&disk, &mended[1], 1 << 20).await.unwrap() == before, "it is what it was");
    // The file that is still written to goes when it is full; the checkpoint has what was in it.
    let findings: Vec<_> = store.scrub_findings().into_iter().map(|(path, _)| path).collect();
    assert_eq!(findings, [journal]);
    // And then nobody is to look at it any more.
    fill(&log, 1, 40, 2000).await;
    rest().await;
    store.checkpoint().await.unwrap();
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    assert_eq!(store.scrub_findings(), []);
    let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
    assert_eq!(indexes(&store.replicas()[0].log).await.len(), 70);
}

/// A stretch of the journal that was read before a write lacks what the stretch behind it, read later, builds on.
#[tokio::test(start_paused = true)]
async fn the_scrub_does_not_take_what_is_written_beside_it_for_rot() {
    let config = RaftConfig {
        journal_file_bytes: 4 << 20,
        scrub_interval: Duration::from_secs(10),
        scrub_bytes_per_second: 1 << 20,
        // None that nobody asks for.
        checkpoint_interval: Duration::from_secs(3600),
        ..small()
    };
    let (disk, store, log) = fresh(config).await;
    let mut term = 0;
    for _ in 0..200 {
        term += 1;
        log.save_vote(vote(term, REPLICA, false)).await.unwrap();
    }
    // Until it begins, with the first stretch not quite full.
    tokio::time::sleep(Duration::from_millis(9_990)).await;
    disk.record_trace();
    while store.scrub_rounds() == 0 {
        term += 1;
        log.save_vote(vote(term, REPLICA, false)).await.unwrap();
        // More than the scrub reads in that time.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let anew = |entry: &&TraceEntry| entry.kind == OpKind::Rename && entry.path == Path::new("/data/checkpoint");
    let checkpoints = disk.take_trace().iter().filter(anew).count();
    assert_eq!((checkpoints, store.scrub_findings()), (0, Vec::new()));
}

/// After a crash nobody can say whether the last round was durable. While the journal is open, it can.
#[tokio::test(start_paused = true)]
async fn the_scrub_finds_rot_in_the_last_round_of_the_journal() {
    let (disk, store, log) = fresh(small()).await;
    log.save_vote(vote(1, REPLICA, false)).await.unwrap();
    rest().await;
    let files = disk.read_dir(Path::new("/data/journal")).await.unwrap();
    let journal = files.into_iter().find(|entry| entry.name.ends_with(".journal")).unwrap();
    let journal = Path::new("/data/journal").join(journal.name);
    disk.flip_bit(&journal, log.context.journal.live_bytes() - 4096 + 70, 2);
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    let findings: Vec<_> = store.scrub_findings().into_iter().map(|(path, _)| path).collect();
    assert_eq!(findings, [journal]);
}

/// Where nothing stands nothing is missed, but the next start refuses a file that is shorter than it was.
#[tokio::test(start_paused = true)]
async fn the_scrub_finds_journal_files_that_were_cut_where_nothing_stands() {
    for kept in [false, true] {
        let config = RaftConfig { checkpoint_interval: Duration::from_secs(24 * 3600), ..small() };
        let (disk, store, log) = fresh(config.clone()).await;
        for term in 1..20 {
            log.save_vote(vote(term, REPLICA, false)).await.unwrap();
        }
        if kept {
            // A deletion that is under way keeps the journal, for what comes after it.
            let other = store.create(GroupId(8), ReplicaId(80)).await.unwrap().log;
            for skip in 0..20 {
                let path_contains = "8-80".to_owned();
                disk.inject(Fault { kind: OpKind::Rename, path_contains, skip, errno: ENOSPC, loses_data: false });
            }
            store.delete(other.group(), other.replica()).await.unwrap();
        }
        for term in 20..50 {
            log.save_vote(vote(term, REPLICA, false)).await.unwrap();
        }
        // One that the writer is done with. A Seal would have had room behind its last round.
        let files: Vec<_> = log.context.journal.durable_files().into_iter().map(|(name, _)| name).collect();
        assert!(files.len() >= 4, "{files:?}");
        let path = Path::new("/data/journal").join(&files[2]);
        disk.truncate(&path, (64 << 10) - 100);
        tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
        let there = disk.read_dir(Path::new("/data/journal")).await.unwrap();
        assert_eq!(there.iter().any(|entry| entry.name == files[2]), kept);
        let store = open(&disk.crash(), config, SnapshotAt::Boundary).await;
        assert_eq!(store.replicas()[0].log.vote(), Some(vote(49, REPLICA, false)));
    }
}

/// What was cut off stands nowhere else before a checkpoint has it: a file that is whole again would pass for one that ends there.
#[tokio::test(start_paused = true)]
async fn a_cut_journal_file_is_not_made_whole_before_there_is_a_checkpoint() {
    let config = RaftConfig { checkpoint_interval: Duration::from_secs(24 * 3600), ..small() };
    let (disk, store, log) = fresh(config.clone()).await;
    for term in 1..4 {
        log.save_vote(vote(term, REPLICA, false)).await.unwrap();
    }
    let name = log.context.journal.durable_files().pop().unwrap().0;
    let bytes = async || {
        let there = disk.read_dir(Path::new("/data/journal")).await.unwrap();
        there.into_iter().find(|entry| entry.name == name).map(|entry| entry.bytes)
    };
    let whole = bytes().await.unwrap();
    disk.truncate(&Path::new("/data/journal").join(&name), 4096);
    for skip in 0..10_000 {
        let path_contains = "checkpoint".to_owned();
        disk.inject(Fault { kind: OpKind::Create, path_contains, skip, errno: ENOSPC, loses_data: false });
    }
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    assert!(bytes().await.unwrap() < whole, "there was no room for a checkpoint");
    disk.forgive();
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    let then = bytes().await;
    assert!(then.is_none_or(|bytes| bytes == whole), "{then:?} of {whole}");
    drop((store, log));
    let store = open(&disk.crash(), config, SnapshotAt::Boundary).await;
    assert_eq!(store.replicas()[0].log.vote(), Some(vote(3, REPLICA, false)));
}

#[tokio::test(start_paused = true)]
async fn neither_a_closed_nor_a_stopped_directory_leaves_anything_behind() {
    let (_, store, log) = fresh(small()).await;
    fill(&log, 1, 5, 300).await;
    store.close().await.unwrap();
    let closed = Arc::downgrade(&log);
    drop((store, log));
    rest().await;
    assert_eq!(closed.strong_count(), 0);
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 5, 300).await;
    disk.fail_next_sync("journal", true);
    assert!(append(&log, vec![NewEntry::Blank(log_id(1, 5))]).await.is_err());
    let stopped = Arc::downgrade(&log);
    drop((store, log));
    rest().await;
    assert_eq!(stopped.strong_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_append_that_waits_for_room_gives_up_when_its_group_ends() {
    let config = RaftConfig { unwritten_bytes_max: 4 << 10, ..small() };
    let (disk, store, log) = fresh(config).await;
    fill(&log, 1, 1, 1000).await;
    disk.set_capacity(Some(disk.used_bytes()));
    let waiting = {
        let log = log.clone();
        tokio::spawn(async move {
            for index in 1..20 {
                append(&log, vec![proposal(index, 1, test_payload(1, 2, index as u32 - 1, &[1; 1000]))]).await?;
            }
            Ok::<(), std::io::Error>(())
        })
    };
    rest().await;
    assert!(!waiting.is_finished(), "there is room after all");
    // As the end of its group does; and its deletion is what makes room.
    log.abandon_appends();
    assert!(waiting.await.unwrap().is_err());
    tokio::time::timeout(Duration::from_secs(5), store.delete(GROUP, REPLICA)).await.unwrap().unwrap();
    disk.set_capacity(None);
    assert!(store.replicas().is_empty());
}

/// What the journal waits for is a file that a checkpoint makes free; and a checkpoint waits for what the journal has been given.
#[tokio::test(start_paused = true)]
async fn a_journal_without_room_for_a_file_and_a_checkpoint_do_not_wait_for_each_other() {
    let config = RaftConfig { reserve_append_bytes: 400 << 10, ..small() };
    let (disk, store, log) = fresh(config.clone()).await;
    fill(&log, 1, 3, 300).await;
    rest().await;
    // Less than a file above what is to stay free.
    disk.set_capacity(Some(disk.used_bytes() + (130 << 10)));
    for term in 2..400 {
        let saving = log.save_vote(vote(term, REPLICA, false));
        tokio::time::timeout(Duration::from_secs(5), saving).await.expect("the journal waits for room").unwrap();
    }
    assert!(disk.available_bytes(Path::new("/data")).await.unwrap() > 25 << 10);
    store.close().await.unwrap();
    let store = open(&disk.crash(), config, SnapshotAt::Boundary).await;
    assert_eq!(store.replicas()[0].log.vote(), Some(vote(399, REPLICA, false)));
}

/// What a deletion makes needless is the append, not the sync of a directory in which others stand, too.
#[tokio::test(start_paused = true)]
async fn a_failed_sync_beside_a_deletion_stops_the_directory() {
    let (disk, store, log) = fresh(RaftConfig { segment_bytes_max: 1 << 20, ..small() }).await;
    disk.slow_syncs(".segment", Duration::from_secs(2));
    let large = submit(&log, vec![proposal(0, 1, test_payload(1, 1, 0, &vec![1; 20_000]))]).await.unwrap();
    rest().await;
    let path_contains = "/data/groups".to_owned();
    disk.inject(Fault { kind: OpKind::SyncDir, path_contains, skip: 0, errno: ENOSPC, loses_data: false });
    assert!(store.delete(GROUP, REPLICA).await.is_err());
    assert!(large.await.unwrap().is_err() && store.stopped().now_or_never().is_some());
    assert_eq!(disk.faults_left(), 0);
}

/// A deletion takes the files out of use before it is on record. What a checkpoint was to have written there by then is not written.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_does_not_vouch_for_files_that_a_deletion_has_taken_out_of_use() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 3, 300).await;
    disk.slow_syncs("journal", Duration::from_secs(10));
    let checkpoint = tokio::spawn({
        let store = store.clone();
        async move { store.checkpoint().await }
    });
    // The one captures the log, and has its frames written to the segments; the other comes before they are.
    let deletion = tokio::spawn({
        let store = store.clone();
        async move { store.delete(GROUP, REPLICA).await }
    });
    assert!(log.state.lock().appends_written < 3);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!deletion.is_finished());
    let mut kept = 0;
    let crashed: Vec<SimDisk> = (0..8).map(|seed| disk.fork().crash_with(seed)).collect();
    for disk in crashed {
        let store = open(&disk, small(), SnapshotAt::Boundary).await;
        assert_eq!((store.corrupt(), store.rotten(), store.quarantined()), (Vec::new(), Vec::new(), Vec::new()));
        for replica in store.replicas() {
            assert_eq!(indexes(&replica.log).await, [0, 1, 2]);
            kept += 1;
        }
    }
    assert!(kept > 0);
    deletion.await.unwrap().unwrap();
    checkpoint.await.unwrap().unwrap();
    let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
    assert_eq!((store.replicas().len(), store.corrupt(), store.unknown_folders().len()), (0, Vec::new(), 0));
}

/// A large append waits for room in its own group's way. Its replica's deletion is what makes room.
#[tokio::test(start_paused = true)]
async fn a_deletion_waits_for_no_append_that_waits_for_room() {
    let (disk, store, other) = fresh(RaftConfig { segment_bytes_max: 1 << 20, ..small() }).await;
    let mut waiting = Vec::new();
    for number in 10..16 {
        let log = store.create(GroupId(number), ReplicaId(number)).await.unwrap().log;
        fill(&log, 1, 3, 300).await;
        waiting.push((log, Vec::new()));
    }
    rest().await;
    disk.set_capacity(Some(disk.used_bytes()));
    for (log, told) in &mut waiting {
        let large = test_payload(1, 2, 0, &vec![1; 70_000]);
        told.push(submit(log, vec![proposal(3, 1, large)]).await.unwrap());
        told.push(submit(log, vec![NewEntry::Blank(log_id(1, 4))]).await.unwrap());
    }
    rest().await;
    let checkpoint = tokio::spawn({
        let store = store.clone();
        async move { store.checkpoint().await }
    });
    // The last ones first: they have not even been tried yet.
    for (log, told) in waiting.into_iter().rev() {
        let voting = tokio::spawn({
            let log = log.clone();
            async move { log.save_vote(vote(2, ReplicaId(7), false)).await }
        });
        rest().await;
        assert!(!voting.is_finished(), "a vote says that all before it is durable");
        // As the end of its group does.
        log.abandon_appends();
        assert!(voting.await.unwrap().is_err());
        let deletion = store.delete(log.group(), log.replica());
        tokio::time::timeout(Duration::from_secs(5), deletion).await.expect("it waits for room").unwrap();
        for told in told {
            assert!(told.await.unwrap().is_err(), "it was told to be durable");
        }
    }
    checkpoint.await.unwrap().unwrap();
    disk.set_capacity(None);
    fill(&other, 1, 3, 300).await;
    store.checkpoint().await.unwrap();
    let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
    let replicas: Vec<_> = store.replicas().iter().map(|replica| replica.replica).collect();
    assert_eq!((replicas, store.corrupt(), store.unknown_folders()), (vec![REPLICA], Vec::new(), Vec::new()));
    assert_eq!(indexes(&store.replicas()[0].log).await, [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_no_start_would_read_is_not_written_and_nothing_is_lost() {
    for (bytes_max, state_bytes_max) in [(100, u64::MAX), (u64::MAX, 100)] {
        let (disk, store, log) = fresh(small()).await;
        fill(&log, 1, 5, 300).await;
        store.checkpoint().await.unwrap();
        store.limit_checkpoints(bytes_max, state_bytes_max);
        fill(&log, 1, 200, 300).await;
        rest().await;
        let journal_bytes = store.usage().journal_bytes;
        store.checkpoint().await.unwrap();
        assert!(store.usage().journal_bytes >= journal_bytes, "what the last one does not say stays in the journal");
        let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
        assert_eq!(indexes(&store.replicas()[0].log).await.len(), 205);
    }
}

/// A broker without one of its lasting tasks would go on answering, and (say) never take a checkpoint again.
#[tokio::test(start_paused = true)]
async fn a_task_that_panics_stops_the_directory() {
    let (_, store, log) = fresh(small()).await;
    fill(&log, 1, 1, 100).await;
    store.spawn("checkpoints", async { panic!("out of luck") });
    assert_eq!(&*store.stopped().await.0, "the task \"checkpoints\" panicked: out of luck");
    assert!(store.checkpoint().await.is_err());
}

/// The log's segments as they stand on disk: where, and what is in them.
async fn segment_files(disk: &SimDisk, log: &Log) -> Vec<(PathBuf, Bytes)> {
    let names: Vec<_> = log.state.lock().segments.iter().map(super::super::segment::Segment::name).collect();
    let mut files = Vec::new();
    for name in names {
        let path = super::super::segment::path(log.dir(), name, "segment");
        let bytes = crate::disk::read_file(disk, &path, 1 << 20).await.unwrap();
        files.push((path, bytes));
    }
    files
}

/// Whatever a crash takes with it, these files are whole.
async fn assert_last(disk: &SimDisk, files: &[(PathBuf, Bytes)]) {
    for (path, whole) in files {
        for seed in 0..8 {
            let disk = disk.fork().crash_with(seed);
            let found = crate::disk::read_file(&disk, path, 1 << 20).await.unwrap();
            assert!(found == *whole, "{}, {seed}", path.display());
        }
    }
}

/// Why it was given up is known long before all that the journal holds of it is written down for whoever looks at it.
#[tokio::test(start_paused = true)]
async fn what_is_kept_of_a_replica_that_is_given_up_is_whole_and_lasts() {
    for full in [false, true] {
        let (disk, store, log) = fresh(small()).await;
        fill(&log, 1, 3, 300).await;
        rest().await;
        store.checkpoint().await.unwrap();
        fill(&log, 1, 500, 20).await;
        rest().await;
        let disk = disk.kill();
        let files = segment_files(&disk, &log).await;
        for (path, _) in &files {
            disk.remove_file(path).await.unwrap();
        }
        disk.sync_dir(log.dir()).await.unwrap();
        if full {
            let path_contains = ".segment".to_owned();
            disk.inject(Fault { kind: OpKind::Write, path_contains, skip: 3, errno: ENOSPC, loses_data: false });
        }
        // Without room for it the start is refused, and the next one has it still.
        let disk = match full {
            true => {
                let refused = Store::open(options(&disk, small(), SnapshotAt::Boundary)).await.err();
                let refused = refused.expect("there is room after all").to_string();
                assert!(refused.contains(".segment") && refused.contains("make room"), "{refused}");
                disk.crash()
            }
            false => disk,
        };
        disk.record_trace();
        let store = open(&disk, small(), SnapshotAt::Boundary).await;
        assert_eq!((store.corrupt().len(), store.replicas().len(), disk.faults_left()), (1, 0, 0));
        let of = |op: &&TraceEntry| op.kind == OpKind::Sync && op.path.extension().is_some_and(|e| e == "segment");
        let syncs = disk.take_trace().iter().filter(of).count();
        assert!(syncs <= files.len(), "{syncs} of {} files", files.len());
        // The first one holds what the checkpoint had, too.
        assert_last(&disk, &files[1..]).await;
    }
}

/// Or the next start finds a folder in which there is something, and opens what peers have been told is lost.
#[tokio::test(start_paused = true)]
async fn a_start_that_gives_a_replica_up_is_refused_until_that_is_on_record() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 3, 300).await;
    rest().await;
    store.checkpoint().await.unwrap();
    fill(&log, 1, 100, 20).await;
    rest().await;
    let disk = disk.kill();
    for entry in disk.read_dir(log.dir()).await.unwrap() {
        disk.remove_file(&log.dir().join(entry.name)).await.unwrap();
    }
    disk.sync_dir(log.dir()).await.unwrap();
    for kind in [OpKind::Create, OpKind::Write, OpKind::Rename] {
        let disk = disk.fork();
        disk.inject(Fault { kind, path_contains: "checkpoint".to_owned(), skip: 0, errno: ENOSPC, loses_data: false });
        let refused = Store::open(options(&disk, small(), SnapshotAt::Boundary)).await.err();
        assert!(matches!(refused, Some(OpenError::Full { .. })), "{kind:?}: {refused:?}");
        assert_eq!(disk.faults_left(), 0);
        // There is room: now it is one or the other, and stays that.
        let found = |store: Arc<Store>| (store.corrupt().len(), store.replicas().len());
        let disk = disk.crash();
        let first = found(open(&disk, small(), SnapshotAt::Boundary).await);
        assert_eq!(found(open(&disk.crash(), small(), SnapshotAt::Boundary).await), first);
    }
    let store = open(&disk, small(), SnapshotAt::Boundary).await;
    assert_eq!((store.corrupt().len(), store.replicas().len()), (1, 0));
}

/// Also where that is found only when all of it has been read, and written.
#[tokio::test(start_paused = true)]
async fn what_is_written_of_a_replica_that_is_given_up_in_the_end_lasts() {
    let disk = SimDisk::new(1);
    let store = open(&disk, small(), SnapshotAt::Applied).await;
    let log = store.create(GROUP, REPLICA).await.unwrap().log;
    fill(&log, 1, 20, 300).await;
    rest().await;
    let snapshot = log.write_snapshot(log_id(1, 9), Bytes::from_static(b"any")).await.unwrap();
    log.purge(log_id(1, 9)).await.unwrap();
    store.checkpoint().await.unwrap();
    fill(&log, 1, 30, 100).await;
    rest().await;
    let disk = disk.kill();
    let files = segment_files(&disk, &log).await;
    // What is applied is not the log's, and nothing covers what was purged.
    disk.remove_file(&log.dir().join(&snapshot.name)).await.unwrap();
    disk.sync_dir(log.dir()).await.unwrap();
    let applications: ApplicationFactory = Arc::new(|_, _| {
        let other = TestApplication::new(SnapshotAt::Applied);
        other.restore(Some(log_id(9, 15)), &other.snapshot().unwrap()).unwrap();
        other
    });
    let store =
        Store::open(StoreOptions { applications, ..options(&disk, small(), SnapshotAt::Applied) }).await.unwrap();
    assert_eq!((store.corrupt().len(), store.replicas().len()), (1, 0));
    assert_last(&disk, &files).await;
}

/// A starting core does not wait for a purge for long.
#[tokio::test(start_paused = true)]
async fn a_failed_sync_in_a_purge_that_nobody_waits_for_stops_the_directory() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 40, 300).await;
    rest().await;
    disk.slow_syncs(".base", Duration::from_secs(2));
    disk.fail_next_sync(".base", true);
    let purged = tokio::time::timeout(Duration::from_secs(1), log.purge(log_id(1, 20))).await;
    assert!(purged.is_err() && disk.faults_left() == 0);
    let stopped = tokio::time::timeout(Duration::from_secs(5), store.stopped()).await;
    stopped.expect("nobody has heard of it");
}

/// A checkpoint syncs several folders at a time. One that has no room for its base must not keep it from hearing that another's sync
/// has failed: the next checkpoint would sync that again, be told that all is well, and vouch for it (RULES.md J15).
#[tokio::test(start_paused = true)]
async fn a_failed_sync_is_heard_of_beside_one_that_has_no_room() {
    let (disk, store, log) = fresh(small()).await;
    let other = store.create(GroupId(2), ReplicaId(2)).await.unwrap().log;
    for log in [&log, &other] {
        fill(log, 1, 10, 400).await;
    }
    rest().await;
    let folder = |log: &Log| log.dir().display().to_string();
    let full = Fault { kind: OpKind::Write, path_contains: ".base".into(), skip: 0, errno: ENOSPC, loses_data: false };
    disk.inject(Fault { path_contains: format!("{}/", folder(&log)), ..full });
    disk.slow_syncs(&folder(&other), Duration::from_secs(1));
    let ill = Fault { kind: OpKind::SyncDir, path_contains: folder(&other), skip: 0, errno: EIO, loses_data: false };
    disk.inject(ill);
    assert!(store.checkpoint().await.is_err(), "taken for a full disk");
    assert_eq!(disk.faults_left(), 0);
    assert!(store.stopped().now_or_never().is_some());
}

/// A write that found no room is left for later. What others finish meanwhile must not make up for it in the count by which a checkpoint
/// knows that everything it speaks of is written.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_does_not_take_the_writes_of_others_for_one_that_found_no_room() {
    let (disk, store, log) = fresh(small()).await;
    let full = store.create(GroupId(2), ReplicaId(2)).await.unwrap().log;
    fill(&full, 1, 1, 100).await;
    rest().await;
    // A round that lasts: it closes a segment.
    disk.slow_syncs(".index", Duration::from_secs(2));
    fill(&log, 1, 3, 900).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let path_contains = full.dir().display().to_string();
    disk.inject(Fault { kind: OpKind::Write, path_contains, skip: 0, errno: ENOSPC, loses_data: false });
    fill(&full, 1, 1, 100).await;
    let checkpoint = tokio::spawn({
        let store = store.clone();
        async move { store.checkpoint().await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    fill(&log, 1, 3, 100).await;
    let until_left = async {
        while disk.faults_left() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), until_left).await.unwrap();
    // Before it is tried again.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let crashed = disk.crash();
    drop(checkpoint);
    let store = open(&crashed, small(), SnapshotAt::Boundary).await;
    assert_eq!(store.corrupt().len(), 0);
    let full = store.replicas().into_iter().find(|replica| replica.group == GroupId(2)).unwrap().log;
    assert_eq!((indexes(&full).await, full.is_rotten()), (vec![0, 1], false));
}

/// What stands in a segment alone (it bypassed the journal) costs the replica if it cannot be read; EIO may be over the next time.
#[tokio::test(start_paused = true)]
async fn a_read_that_the_disk_refuses_at_a_start_is_repeated_before_a_replica_is_given_up() {
    let (disk, _store, log) = fresh(small()).await;
    fill(&log, 1, 3, 10 << 10).await;
    rest().await;
    let disk = disk.kill();
    for (kind, errno, refused, lost) in [
        (OpKind::Read, EIO, 1, 0),
        (OpKind::Read, EIO, 2, 0),
        (OpKind::Read, EIO, 3, 0),
        (OpKind::Read, EIO, 12, 1),
        (OpKind::Read, EUCLEAN, 12, 1),
        (OpKind::Read, EBADMSG, 12, 1),
        (OpKind::Open, EIO, 1, 0),
        (OpKind::Open, EIO, 2, 0),
        (OpKind::Open, EIO, 12, 1),
    ] {
        let disk = disk.fork();
        for skip in 0..refused {
            let path_contains = ".segment".to_owned();
            disk.inject(Fault { kind, path_contains, skip, errno, loses_data: false });
        }
        let store = open(&disk, small(), SnapshotAt::Boundary).await;
        assert_eq!(store.corrupt().len(), lost, "{kind:?} {errno} {refused}: {:?}", store.corrupt());
        assert!(lost > 0 || disk.faults_left() == 0);
    }
}

/// The older one goes only with a checkpoint. Behind it the log has a hole, and whoever is given it asks for it again without end.
#[tokio::test(start_paused = true)]
async fn an_older_snapshot_does_not_stand_in_for_the_one_at_the_purge_boundary() {
    let (disk, _store, log) = fresh(small()).await;
    fill(&log, 1, 40, 100).await;
    rest().await;
    let mut newest = None;
    for upto in [10, 20] {
        let (head, _) = log.head_at(Some(upto)).await.unwrap();
        newest = Some(log.write_snapshot(log_id(1, upto), head.base().encode()).await.unwrap());
        log.purge(log_id(1, upto)).await.unwrap();
        rest().await;
    }
    let disk = disk.kill();
    for rotten in [false, true] {
        let disk = disk.fork();
        if rotten {
            disk.flip_bit(&log.dir().join(&newest.as_ref().unwrap().name), 30, 2);
        }
        let store = open(&disk, small(), SnapshotAt::Boundary).await;
        assert_eq!(store.corrupt(), []);
        let opened = store.replicas()[0].log.clone();
        assert_eq!(opened.purged_log_id(), Some(log_id(1, 20)));
        assert_eq!(opened.snapshot().map(|snapshot| snapshot.last), (!rotten).then_some(log_id(1, 20)));
        assert_eq!(indexes(&opened).await, (21..40).collect::<Vec<_>>());
        // And it can be made anew.
        assert_eq!(opened.head_at(Some(20)).await.unwrap().0.last, Some(log_id(1, 20)));
    }
}
