//! Too many open files: what cannot be opened is put off, nothing ends, and nothing that is to be synced is forgotten.

use std::path::Path;

use super::*;
use crate::disk::Disk;
use crate::disk::sim::{EMFILE, ENOSPC, Fault, OpKind};

fn too_many(kind: OpKind, path: &str, skip: u64) -> Fault {
    Fault { kind, path_contains: path.to_owned(), skip, errno: EMFILE, loses_data: false }
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_opened_is_put_off_and_nothing_is_forgotten() {
    for (kind, least) in [(OpKind::Open, 8), (OpKind::Create, 20), (OpKind::SyncDir, 10)] {
        for skip in 0.. {
            let (disk, store, log) = fresh(small()).await;
            let other = store.create(GroupId(8), ReplicaId(80)).await.unwrap().log;
            fill(&log, 1, 6, 300).await;
            disk.inject(too_many(kind, "/data", skip));
            fill(&log, 1, 6, 300).await;
            // Several files of the journal, and one append that goes past it.
            fill(&other, 1, 29, 900).await;
            fill(&other, 1, 1, 9000).await;
            // Once more where one file holds what another is still to get.
            for _ in 0..2 {
                let taken = store.checkpoint().await;
                taken.unwrap_or_else(|stopped| panic!("{kind:?}, {skip}: {stopped}"));
                rest().await;
                fill(&log, 1, 3, 300).await;
                for seed in 0..3 {
                    let crashed = disk.fork().crash_with(seed);
                    crashed.forgive();
                    let store = open(&crashed, small(), SnapshotAt::Boundary).await;
                    assert_eq!((store.corrupt(), store.rotten()), (Vec::new(), Vec::new()), "{kind:?}, {skip}");
                    let logs: Vec<Arc<Log>> = store.replicas().into_iter().map(|replica| replica.log).collect();
                    assert_eq!(indexes(&logs[0]).await.len() as u64, log.last_log_id().unwrap().index + 1);
                    assert_eq!(indexes(&logs[1]).await.len(), 30);
                }
            }
            // The last one was not put off.
            assert!(store.usage().journal_bytes < 100 << 10, "{kind:?}, {skip}: {:?}", store.usage());
            if disk.faults_left() > 0 {
                assert!(skip >= least, "{kind:?}: {skip}");
                break;
            }
        }
    }
}

/// Whatever number the operating system gives it: of what a failed sync was to make durable nobody knows where it is (RULES.md J15).
#[tokio::test(start_paused = true)]
async fn a_failed_sync_is_not_put_off() {
    for what in [".segment", ".base", "/data/checkpoint"] {
        let (disk, store, log) = fresh(small()).await;
        fill(&log, 1, 8, 300).await;
        rest().await;
        disk.inject(too_many(OpKind::Sync, what, 0));
        assert!(store.checkpoint().await.is_err(), "{what}");
        assert_eq!(disk.faults_left(), 0);
    }
}

/// It would take the last of the room with it, and nothing removes it before the next start.
#[tokio::test(start_paused = true)]
async fn a_file_that_finds_no_room_leaves_nothing_behind() {
    for kind in [OpKind::Write, OpKind::Rename] {
        let (disk, store, log) = fresh(small()).await;
        fill(&log, 1, 8, 300).await;
        rest().await;
        let path = Path::new("/data/some");
        let before = disk.used_bytes();
        disk.inject(Fault { errno: ENOSPC, ..too_many(kind, "/data/some", 0) });
        let replace = |bytes: usize| crate::disk::replace_file(&disk, path, vec![Bytes::from(vec![7; bytes])]);
        let refused = replace(3000).await;
        assert_eq!(refused.map_err(|error| error.raw_os_error()), Err(Some(ENOSPC)), "{kind:?}");
        // Which frees the room of what is unlinked.
        disk.sync_dir(Path::new("/data")).await.unwrap();
        let names: Vec<_> = disk.read_dir(Path::new("/data")).await.unwrap().into_iter().map(|e| e.name).collect();
        assert!(!names.iter().any(|name| name.starts_with("some")), "{kind:?}: {names:?}");
        assert_eq!((disk.used_bytes(), disk.faults_left(), disk.dirty_drops()), (before, 0, Vec::new()), "{kind:?}");
        replace(3000).await.unwrap();
        drop(store);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_may_open_nothing_is_finished_later() {
    for kind in [OpKind::SyncDir, OpKind::ReadDir] {
        for (aside, skip) in (0..).flat_map(|skip| [(false, skip), (true, skip)]) {
            let (disk, store, log) = fresh(small()).await;
            fill(&log, 1, 8, 300).await;
            rest().await;
            disk.inject(too_many(kind, "/data/groups", skip));
            match aside {
                true if store.set_aside(GROUP, REPLICA).await.is_ok() => {}
                true => store.set_aside(GROUP, REPLICA).await.unwrap(),
                false => store.delete(GROUP, REPLICA).await.unwrap(),
            }
            store.checkpoint().await.unwrap();
            let left = disk.fork();
            left.forgive();
            let left = left.read_dir(Path::new("/data/groups")).await.unwrap();
            assert_eq!(left.len(), usize::from(aside), "{kind:?}, {skip}: its room is free without a start");
            for seed in 0..5 {
                let disk = disk.fork().crash_with(seed);
                disk.forgive();
                let store = open(&disk, small(), SnapshotAt::Boundary).await;
                assert_eq!(
                    (store.replicas().len(), store.corrupt(), store.unknown_folders().len()),
                    (0, Vec::new(), 0)
                );
                assert_eq!(store.quarantined().len(), usize::from(aside), "{skip}");
                let left = disk.read_dir(Path::new("/data/groups")).await.unwrap();
                assert_eq!(left.len(), usize::from(aside), "{left:?}");
            }
            if !aside && disk.faults_left() > 0 {
                assert!(skip >= 1, "{kind:?}, {skip}");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_while_in_which_nothing_can_be_opened_costs_nothing() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 4, 300).await;
    rest().await;
    disk.set_out_of_files(true);
    // Segments and files of the journal, as far as the one that was ready goes.
    fill(&log, 1, 15, 300).await;
    rest().await;
    store.checkpoint().await.unwrap();
    let large = tokio::spawn({
        let log = log.clone();
        async move { fill(&log, 1, 1, 9000).await }
    });
    for _ in 0..20 {
        rest().await;
    }
    let mut waiting = Box::pin(append(&log, vec![NewEntry::Blank(log_id(1, 20))]));
    let early = tokio::time::timeout(Duration::from_secs(10), &mut waiting).await;
    assert!(early.is_err(), "{early:?}");
    disk.set_out_of_files(false);
    large.await.unwrap();
    waiting.await.unwrap();
    rest().await;
    store.checkpoint().await.unwrap();
    assert!(store.usage().journal_bytes < 64 << 10, "{:?}", store.usage());
    for seed in 0..5 {
        let store = open(&disk.fork().crash_with(seed), small(), SnapshotAt::Boundary).await;
        assert_eq!((store.corrupt(), store.rotten()), (Vec::new(), Vec::new()), "{seed}");
        assert_eq!(indexes(&store.replicas()[0].log).await, (0..21).collect::<Vec<_>>(), "{seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_opened_to_be_checked_is_not_rotten() {
    let (disk, _store, log) = fresh(small()).await;
    fill(&log, 1, 8, 300).await;
    rest().await;
    disk.inject(too_many(OpKind::Open, ".segment", 0));
    let checked = log.verify().await;
    assert!(matches!(&checked, Err(ReadError::Io(error)) if error.raw_os_error() == Some(EMFILE)), "{checked:?}");
    assert_eq!((disk.faults_left(), log.is_rotten()), (0, false));
    log.verify().await.unwrap();
}
