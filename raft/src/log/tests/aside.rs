//! A replica that is set aside: its folder is moved before its deletion is on record, and others go on meanwhile.

use std::path::Path;

use super::*;
use crate::disk::sim::{ENOSPC, Fault, OpKind};
use crate::disk::{Disk, read_file};
use crate::log::mend::{FrameSource, MendError, NoFrame, Wanted};
use futures_util::future::BoxFuture;

const ASIDE: &str = "/data/groups/quarantined-4-40";

/// On return the folder has moved, and that is durable some seconds later; until then the deletion is not on record.
async fn set_aside_slowly(
    disk: &SimDisk,
    store: &Arc<Store>,
) -> tokio::task::JoinHandle<Result<(), crate::error::Stopped>> {
    disk.slow_syncs("/data/groups", Duration::from_secs(20));
    // All but the folder of the groups itself.
    disk.slow_syncs("/data/groups/", Duration::ZERO);
    let store = store.clone();
    let aside = tokio::spawn(async move { store.set_aside(GROUP, REPLICA).await });
    while disk.read_dir(Path::new(ASIDE)).await.is_err() {
        assert!(!aside.is_finished());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!aside.is_finished());
    aside
}

#[tokio::test(start_paused = true)]
async fn a_large_append_whose_folder_is_moved_meanwhile_fails_alone() {
    for full in [true, false] {
        let (disk, store, log) = fresh(RaftConfig { segment_bytes_max: 1 << 20, ..small() }).await;
        let other = store.create(GroupId(8), ReplicaId(80)).await.unwrap().log;
        fill(&other, 1, 2, 300).await;
        rest().await;
        match full {
            // It waits for room.
            true => disk.set_capacity(Some(disk.used_bytes())),
            // Its sync lasts longer than anybody waits for it, and not as long as the move.
            false => disk.slow_syncs("4-40/", Duration::from_secs(20)),
        }
        let large = submit(&log, vec![proposal(0, 1, test_payload(1, 1, 0, &vec![1; 20_000]))]).await.unwrap();
        rest().await;
        let aside = set_aside_slowly(&disk, &store).await;
        disk.set_capacity(None);
        let told = tokio::time::timeout(Duration::from_secs(10), large).await.expect("it still waits");
        assert!(told.unwrap().is_err() && !aside.is_finished());
        // The others go on, and the deletion comes to its end.
        fill(&other, 1, 3, 300).await;
        aside.await.unwrap().unwrap();
        store.close().await.unwrap();
        let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
        assert_eq!((store.replicas().len(), store.corrupt()), (1, Vec::new()));
        assert_eq!(store.quarantined(), [Path::new(ASIDE)]);
        assert_eq!(indexes(&store.replicas()[0].log).await.len(), 5);
    }
}

/// Gives what another log has.
struct Twin(Arc<Log>);

impl FrameSource for Twin {
    fn frame(&mut self, wanted: Wanted) -> BoxFuture<'_, Result<Frame, NoFrame>> {
        Box::pin(async move { Ok(self.0.read_indexes(wanted.index, wanted.index + 1, 1).await.unwrap().remove(0)) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_repair_of_what_is_set_aside_meanwhile_comes_to_nothing() {
    let (_, _store, twin) = fresh(small()).await;
    let (disk, store, log) = fresh(small()).await;
    for log in [&log, &twin] {
        fill(log, 1, 20, 300).await;
    }
    rest().await;
    store.checkpoint().await.unwrap();
    let name = log.state.lock().segments[1].name();
    disk.flip_bit(&super::super::segment::path(log.dir(), name, "segment"), 70, 0);
    assert!(log.check_segment(name, 0).await.is_err());
    // Longer than anybody waits for it.
    disk.slow_syncs(".segment", Duration::from_secs(60));
    let mending = tokio::spawn({
        let log = log.clone();
        async move { log.mend_segment(name, &mut Twin(twin)).await }
    });
    rest().await;
    store.set_aside(GROUP, REPLICA).await.unwrap();
    assert!(!mending.is_finished());
    let mended = mending.await.unwrap();
    assert!(matches!(mended, Err(MendError::Changed)), "{mended:?}");
    store.create(GROUP, ReplicaId(41)).await.unwrap();
}

/// It goes on as if nobody had tried: what is checkpointed is there after a power cut, with its directory entries.
#[tokio::test(start_paused = true)]
async fn a_replica_whose_folder_could_not_be_moved_is_none_that_has_left() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 2, 300).await;
    rest().await;
    let path_contains = "quarantined".to_owned();
    disk.inject(Fault { kind: OpKind::Rename, path_contains, skip: 0, errno: ENOSPC, loses_data: false });
    assert!(store.set_aside(GROUP, REPLICA).await.is_err());
    fill(&log, 1, 40, 300).await;
    rest().await;
    store.checkpoint().await.unwrap();
    assert!(store.usage().journal_bytes < 64 << 10, "{:?}", store.usage());
    let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
    assert_eq!((store.corrupt(), store.rotten(), store.quarantined()), (Vec::new(), Vec::new(), Vec::new()));
    assert_eq!(indexes(&store.replicas()[0].log).await.len(), 42);
}

/// A person has looked at it.
#[tokio::test(start_paused = true)]
async fn what_was_kept_is_forgotten_once_its_folder_is_removed() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 2, 300).await;
    rest().await;
    store.set_aside(GROUP, REPLICA).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    rest().await;
    assert_eq!(store.quarantined(), [Path::new(ASIDE)]);
    disk.remove_dir_all(Path::new(ASIDE)).await.unwrap();
    while !store.quarantined().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "nobody looks");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The entries in the folder that is kept, as a person would find them there, and how many segments have a base.
async fn kept(disk: &SimDisk) -> (Vec<u64>, usize, usize) {
    let mut names: Vec<String> =
        disk.read_dir(Path::new(ASIDE)).await.unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort();
    let bases = names.iter().filter(|name| name.ends_with(".base")).count();
    names.retain(|name| name.ends_with(".segment"));
    let mut indexes = Vec::new();
    for name in &names {
        let mut bytes = read_file(disk, &Path::new(ASIDE).join(name), 1 << 20).await.unwrap();
        while let Ok(frame) = Frame::decode(&mut bytes) {
            indexes.push(frame.header.index);
        }
    }
    (indexes, names.len(), bases)
}

/// With its deletion the journal forgets it; the checkpoint that follows takes the journal's files away.
#[tokio::test(start_paused = true)]
async fn what_stands_only_in_the_journal_is_set_aside_too() {
    for written in [false, true] {
        let (disk, store, log) = fresh(small()).await;
        fill(&log, 1, 20, 300).await;
        if written {
            rest().await;
        }
        store.set_aside(GROUP, REPLICA).await.unwrap();
        drop(log);
        rest().await;
        store.checkpoint().await.unwrap();
        assert_eq!(disk.dirty_drops(), Vec::<std::path::PathBuf>::new(), "written: {written}");
        for seed in 0..20 {
            let (indexes, segments, bases) = kept(&disk.fork().crash_with(seed)).await;
            assert_eq!(indexes, (0..20).collect::<Vec<u64>>(), "written: {written}, seed {seed}");
            assert_eq!(segments, bases);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_saves_nothing_keeps_no_replica_from_being_set_aside() {
    for trouble in ["full", "slow", "folder lost"] {
        let (disk, store, log) = fresh(small()).await;
        fill(&log, 1, 20, 300).await;
        match trouble {
            "full" => disk.set_capacity(Some(disk.used_bytes())),
            "slow" => disk.slow_syncs(".segment", Duration::from_secs(3600)),
            _ => {
                rest().await;
                disk.remove_tree(log.dir());
            }
        }
        let aside = tokio::time::timeout(Duration::from_secs(60), store.set_aside(GROUP, REPLICA)).await;
        aside.unwrap_or_else(|_| panic!("{trouble}: it is waited for")).unwrap();
        assert!(store.replicas().is_empty());
        disk.set_capacity(None);
        let other = store.create(GroupId(8), ReplicaId(80)).await.unwrap().log;
        fill(&other, 1, 2, 300).await;
    }
    // A sync that fails is another matter (RULES.md J15).
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 20, 300).await;
    disk.fail_next_sync(".segment", true);
    assert!(store.set_aside(GROUP, REPLICA).await.is_err());
    store.stopped().await;
    let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
    assert_eq!(indexes(&store.replicas()[0].log).await.len(), 20);
}
