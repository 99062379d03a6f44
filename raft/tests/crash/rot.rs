//! Rot: flipped bits, cut and missing files. It is noticed, it is never served, and it costs no other replica anything.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use openraft::storage::{RaftLogReader, RaftLogStorage, RaftStateMachine};
use pontoon_raft::config::RaftConfig;
use pontoon_raft::disk::sim::SimDisk;
use pontoon_raft::disk::{Disk, read_file};
use pontoon_raft::error::OpenError;
use pontoon_raft::log_store::LogStore;
use pontoon_raft::payload::SnapshotAt;
use pontoon_raft::state_machine::StateMachine;
use pontoon_raft::store::Replica;
use pontoon_raft::types::{GroupId, Offset, ReplicaId};

use super::driver::{APPLIED_GROUP, Append, Driver, Found, Key, ROOT, config, look, open, open_with};
use super::run;

const A: Key = (1, 11);
const B: Key = (2, 12);
const CATALOG: Key = (APPLIED_GROUP, 19);

/// A closed directory with several segments per replica, and how each replica stood.
fn closed() -> (SimDisk, Vec<(Key, Found)>) {
    closed_with(&[])
}

/// The same; of these replicas the first segments have gone.
fn closed_with(purged: &[Key]) -> (SimDisk, Vec<(Key, Found)>) {
    let disk = SimDisk::new(3);
    let founds = run(async {
        let mut driver = Driver::new(disk.clone(), None);
        driver.open().await.unwrap();
        for key in [A, B, CATALOG] {
            driver.create(key).await.unwrap();
            driver.vote(key, 1).await.unwrap();
            driver.write(key, Append::Membership).await.unwrap();
            for _ in 0..6 {
                driver.write(key, Append::Proposals(1, &[900, 700, 41])).await.unwrap();
                driver.write(key, Append::Proposals(2, &[100])).await.unwrap();
            }
        }
        let last = driver.last(CATALOG);
        driver.apply(CATALOG, last - 3).await.unwrap();
        driver.purge(CATALOG, 0).await.unwrap();
        for key in purged {
            let last = driver.last(*key);
            driver.apply(*key, last).await.unwrap();
            driver.purge(*key, last - 2).await.unwrap();
        }
        driver.rest(1).await;
        let mut founds = Vec::new();
        for replica in driver.store().replicas() {
            founds.push(((replica.group.0, replica.replica.0), look(&replica).await));
        }
        driver.close().await.unwrap();
        founds
    });
    (disk, founds)
}

fn folder(key: Key) -> PathBuf {
    Path::new(ROOT).join(format!("groups/{}-{}", key.0, key.1))
}

/// Files of a replica with this in their name, and their lengths.
async fn files(disk: &SimDisk, key: Key, part: &str) -> Vec<(PathBuf, u64)> {
    let entries = disk.read_dir(&folder(key)).await.unwrap();
    let found = entries.into_iter().filter(|entry| entry.name.contains(part));
    found.map(|entry| (folder(key).join(entry.name), entry.bytes)).collect()
}

async fn replica(store: &pontoon_raft::store::Store, key: Key) -> Option<Replica> {
    store.replicas().into_iter().find(|replica| (replica.group.0, replica.replica.0) == key)
}

/// Reads entry by entry: what can be read is as it was. Returns how many cannot.
async fn unreadable(replica: &Replica, before: &Found) -> usize {
    let mut store = LogStore::new(replica.log.clone());
    let state = store.get_log_state().await.unwrap();
    let first = state.last_purged_log_id.map_or(0, |purged| purged.index + 1);
    let mut bad = 0;
    for index in first..=state.last_log_id.unwrap().index {
        match store.try_get_log_entries(index..=index).await {
            Ok(entries) => assert!(before.holds(&entries), "entry {index} is not what was written"),
            Err(_) => bad += 1,
        }
    }
    bad
}

#[test]
fn a_flipped_bit_in_a_segment_is_noticed_and_never_served() {
    let (disk, founds) = closed();
    let before = &founds.iter().find(|(key, _)| *key == A).unwrap().1;
    let written = before.records();
    run(async {
        let segments = files(&disk.fork(), A, ".segment").await;
        assert!(segments.len() >= 3, "{segments:?}");
        for (path, bytes) in segments {
            for position in [0, 5, 58, 61, bytes / 2, bytes - 1] {
                let disk = disk.fork().kill();
                disk.flip_bit(&path, position, (position % 8) as u8);
                let store = open(&disk).await.unwrap();
                let replica = replica(&store, A).await.unwrap();
                assert!(unreadable(&replica, before).await > 0, "{} at {position}", path.display());
                let error = replica.log.verify().await.unwrap_err().to_string();
                assert!(error.contains("corrupt") && error.contains("segment"), "{error}");
                // What is good before the rot is served; then there is no way on, unless what is rotten holds no record. No reader is
                // led over one.
                let (mut next, end) = (replica.log.log_start_offset(), replica.log.log_end_offset());
                while next < end {
                    let Ok(frames) = replica.log.read(next, end, usize::MAX).await else { break };
                    for frame in frames {
                        let read = (frame.header.index, frame.header.base_offset, frame.payload.clone());
                        assert!(written.contains(&read), "{} at {position}: {next}", path.display());
                        assert!(frame.header.base_offset <= next.0, "{} at {position}: {next}", path.display());
                        next = Offset(frame.header.next_offset());
                    }
                }
            }
        }
    });
}

/// Where the high watermark was is looked up in the log at each start. Rot there costs that replica, not the directory.
#[test]
fn rot_at_the_commit_does_not_keep_the_directory_from_opening() {
    for behind in 0..4 {
        let disk = SimDisk::new(3);
        run(async {
            let mut driver = Driver::new(disk.clone(), None);
            driver.open().await.unwrap();
            for key in [A, B] {
                driver.create(key).await.unwrap();
                driver.vote(key, 1).await.unwrap();
                driver.write(key, Append::Membership).await.unwrap();
                for _ in 0..6 {
                    driver.write(key, Append::Proposals(1, &[900, 700, 41])).await.unwrap();
                }
                let last = driver.last(key);
                driver.apply(key, last - behind).await.unwrap();
            }
            driver.rest(1).await;
            driver.close().await.unwrap();
            let committed = replica(&open(&disk.fork().kill()).await.unwrap(), A).await.unwrap().log.high_watermark();
            for (path, bytes) in files(&disk.fork(), A, ".segment").await {
                for position in [5, bytes / 2, bytes - 1] {
                    let disk = disk.fork().kill();
                    disk.flip_bit(&path, position, (position % 8) as u8);
                    let store = open(&disk).await.unwrap_or_else(|error| panic!("{behind}: {error}"));
                    assert_eq!(store.corrupt(), Vec::new());
                    let log = replica(&store, A).await.unwrap().log;
                    // What it says is committed is; it may say less.
                    assert!(log.high_watermark() <= committed);
                    assert_eq!(replica(&store, B).await.unwrap().log.high_watermark(), committed);
                }
            }
        });
    }
}

#[test]
fn a_rotten_index_is_made_anew() {
    let (disk, founds) = closed();
    let before = &founds.iter().find(|(key, _)| *key == A).unwrap().1;
    run(async {
        let indexes = files(&disk.fork(), A, ".index").await;
        assert!(indexes.len() >= 3, "{indexes:?}");
        for (path, bytes) in indexes {
            for position in [0, 9, 20, 33, 41, bytes - 1] {
                let disk = disk.fork().kill();
                disk.flip_bit(&path, position, 3);
                let store = open(&disk).await.unwrap();
                assert_eq!(&look(&replica(&store, A).await.unwrap()).await, before, "{} {position}", path.display());
            }
            let disk = disk.fork().kill();
            disk.remove_file(&path).await.unwrap();
            let store = open(&disk).await.unwrap();
            assert_eq!(&look(&replica(&store, A).await.unwrap()).await, before);
        }
    });
}

#[test]
fn a_rotten_base_is_made_up_for_by_an_earlier_one() {
    let (disk, founds) = closed();
    let before = &founds.iter().find(|(key, _)| *key == A).unwrap().1;
    run(async {
        let bases = files(&disk.fork(), A, ".base").await;
        assert!(bases.len() >= 2, "{bases:?}");
        for (path, bytes) in bases {
            let disk = disk.fork().kill();
            disk.flip_bit(&path, bytes / 2, 1);
            let store = open(&disk).await.unwrap();
            let replica = replica(&store, A).await.unwrap();
            assert_eq!(&look(&replica).await, before);
            // A truncation just behind that segment's start folds from further back, to the same state.
            let segment = replica.log.segments().into_iter().rev().find(|segment| {
                path.file_name().unwrap().to_string_lossy().starts_with(&format!("{:020}", segment.first_index))
            });
            let mut store = LogStore::new(replica.log.clone());
            let cut = segment.unwrap().first_index;
            let last = store.try_get_log_entries(cut..=cut).await.unwrap()[0].log_id;
            store.truncate_after(Some(last)).await.unwrap();
            assert_eq!(look(&replica).await.producers(), &before.fold_to(cut));
        }
    });
}

#[test]
fn a_rotten_checkpoint_refuses_to_open() {
    let (disk, _) = closed();
    let path = Path::new(ROOT).join("checkpoint");
    run(async {
        let whole = disk.fork();
        let bytes = whole.read_dir(Path::new(ROOT)).await.unwrap();
        let bytes = bytes.into_iter().find(|entry| entry.name == "checkpoint").unwrap().bytes;
        for position in (0..bytes).step_by(37).chain([8, bytes - 1]) {
            let disk = disk.fork().kill();
            disk.flip_bit(&path, position, (position % 8) as u8);
            let error = open(&disk).await.err().unwrap_or_else(|| panic!("bit in byte {position} was not noticed"));
            let expected = matches!(&error, OpenError::Corrupt { path: at, .. } | OpenError::Version { path: at, .. } if *at == path);
            assert!(expected, "{error}");
        }
        let disk = disk.fork().kill();
        disk.remove_file(&path).await.unwrap();
        assert!(matches!(open(&disk).await, Err(OpenError::Corrupt { .. })), "a missing checkpoint was not noticed");
    });
}

#[test]
fn a_lost_segment_costs_its_replica_only_and_stays_known_until_it_is_deleted() {
    let (disk, founds) = closed();
    run(async {
        for cut in [true, false] {
            let disk = disk.fork().kill();
            let (path, bytes) = files(&disk, A, ".segment").await.remove(1);
            if cut {
                disk.truncate(&path, bytes - 1)
            } else {
                disk.remove_file(&path).await.unwrap()
            }
            for _ in 0..2 {
                let store = open(&disk).await.unwrap();
                let rotten = store.rotten();
                assert_eq!((rotten.len(), rotten[0].group, rotten[0].replica), (1, GroupId(A.0), ReplicaId(A.1)));
                assert_eq!((rotten[0].rot.len(), &rotten[0].rot[0].file), (1, &path));
                assert_eq!(store.corrupt(), []);
                for (key, before) in founds.iter().filter(|(key, _)| *key != A) {
                    assert_eq!(&look(&replica(&store, *key).await.unwrap()).await, before);
                }
                // The others of its segments are as they were; it knows what it has lost.
                let lame = replica(&store, A).await.unwrap();
                let before = &founds.iter().find(|(key, _)| *key == A).unwrap().1;
                assert!(unreadable(&lame, before).await > 0);
                store.close().await.unwrap();
            }
            // What is left of it outlives even its deletion.
            let left = files(&disk, A, ".segment").await.len();
            let store = open(&disk).await.unwrap();
            store.delete(GroupId(A.0), ReplicaId(A.1)).await.unwrap();
            store.close().await.unwrap();
            drop(store);
            let store = open(&disk).await.unwrap();
            assert_eq!((store.rotten().len(), store.unknown_folders(), store.replicas().len()), (0, vec![], 2));
            let kept = store.quarantined();
            assert_eq!(kept.len(), 1);
            let kept = disk.read_dir(&kept[0]).await.unwrap();
            assert_eq!(kept.iter().filter(|entry| entry.name.ends_with(".segment")).count(), left);
        }
    });
}

#[test]
fn a_rotten_snapshot_that_the_log_relies_on_is_noticed() {
    let (disk, _) = closed();
    run(async {
        let (path, bytes) = files(&disk.fork(), CATALOG, "snapshot-").await.remove(0);
        for position in [0, 9, 30, bytes / 2, bytes - 1] {
            let disk = disk.fork().kill();
            disk.flip_bit(&path, position, 5);
            let store = open(&disk).await.unwrap();
            let corrupt = store.corrupt();
            assert_eq!((corrupt.len(), corrupt[0].group.0), (1, APPLIED_GROUP), "byte {position}");
            assert!(corrupt[0].why.contains("snapshot"), "{}", corrupt[0].why);
        }
        // Untouched, it restores the applied state.
        let store = open(&disk.fork().kill()).await.unwrap();
        let replica = replica(&store, CATALOG).await.unwrap();
        let snapshot = StateMachine::new(&replica).get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(snapshot.meta.last_log_id, replica.log.purged_log_id());
    });
}

/// While the process runs, log and application still have what a snapshot held. A leader that cannot give it to a follower would end.
#[test]
fn a_snapshot_that_rots_under_a_running_replica_is_made_anew() {
    let (disk, _) = closed_with(&[B]);
    run(async {
        let mut kinds = BTreeSet::new();
        for (shorter, scrubbed) in [(false, false), (true, false), (false, true)] {
            let disk = disk.fork().kill();
            let config = RaftConfig { scrub_interval: Duration::from_secs(10), ..config() };
            let store = open_with(&disk, config).await.unwrap();
            for replica in store.replicas() {
                let Some(purged) = replica.log.purged_log_id() else { continue };
                let key = (replica.group.0, replica.replica.0);
                let kind = replica.application.snapshot_at();
                let (path, bytes) = files(&disk, key, "snapshot-").await.remove(0);
                let mut machine = StateMachine::new(&replica);
                let before = machine.get_current_snapshot().await.unwrap().unwrap();
                assert!(before.meta.last_log_id >= Some(purged));
                if kind == SnapshotAt::Applied {
                    // As openraft does at a start.
                    machine.install_snapshot(&before.meta, before.snapshot.clone()).await.unwrap();
                }
                match shorter {
                    true => disk.truncate(&path, bytes / 2),
                    false => disk.flip_bit(&path, bytes / 2, 5),
                }
                if scrubbed {
                    let rounds = store.scrub_rounds();
                    while store.scrub_rounds() < rounds + 2 {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    let found = store.scrub_findings().iter().any(|(found, _)| *found == path);
                    assert_eq!(found, kind == SnapshotAt::Applied, "{path:?}: {:?}", store.scrub_findings());
                }
                let after = machine.get_current_snapshot().await.unwrap().unwrap();
                assert!(after.meta.last_log_id >= before.meta.last_log_id);
                assert_eq!(after.meta.last_membership, before.meta.last_membership);
                if kind == SnapshotAt::Boundary {
                    assert_eq!(after.snapshot, before.snapshot);
                }
                let newest = files(&disk, key, "snapshot-").await.pop().unwrap().0;
                assert_eq!(read_file(&disk, &newest, 1 << 20).await.unwrap(), after.snapshot);
                kinds.insert(format!("{kind:?}"));
            }
        }
        assert_eq!(kinds.len(), 2, "{kinds:?}");
    });
}

#[test]
fn a_folder_that_nothing_explains_is_kept_and_reported() {
    let (disk, _) = closed();
    run(async {
        let disk = disk.kill();
        for name in ["77-78", "what is this"] {
            let stray = Path::new(ROOT).join("groups").join(name);
            disk.create_dir_all(&stray).await.unwrap();
        }
        for _ in 0..2 {
            let store = open(&disk).await.unwrap();
            assert_eq!(store.unknown_folders().len(), 2, "{:?}", store.unknown_folders());
            assert!(store.create(GroupId(77), ReplicaId(78)).await.is_err());
            store.close().await.unwrap();
        }
    });
}
