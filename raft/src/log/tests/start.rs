//! A directory's first starts: what is refused because something is missing, and what never is.

use std::error::Error;
use std::path::Path;

use super::*;
use crate::disk::Disk;
use crate::disk::sim::{ENOSPC, Fault, OpKind};
use crate::error::OpenError;
use crate::types::ClusterId;

const JOURNAL: &str = "/data/journal";

async fn refusal(disk: &SimDisk) -> OpenError {
    Store::open(options(disk, small(), SnapshotAt::Boundary)).await.err().expect("it starts")
}

async fn journal_files(disk: &SimDisk) -> Vec<String> {
    let entries = disk.read_dir(Path::new(JOURNAL)).await.unwrap();
    entries.into_iter().map(|entry| entry.name).filter(|name| name.ends_with(".journal")).collect()
}

/// Nothing that was acknowledged stands in the first checkpoint, which every opening takes: the journal has it all.
#[tokio::test(start_paused = true)]
async fn a_young_directory_whose_journal_is_gone_is_refused() {
    for joined in [false, true] {
        let disk = SimDisk::new(1);
        if joined {
            // On a full disk there may be none; then it is the cluster that tells.
            let path_contains = "checkpoint".to_owned();
            disk.inject(Fault { kind: OpKind::Create, path_contains, skip: 0, errno: ENOSPC, loses_data: false });
        }
        let store = open(&disk, small(), SnapshotAt::Boundary).await;
        if joined {
            store.join_cluster(ClusterId(7)).await.unwrap();
        }
        let log = store.create(GROUP, REPLICA).await.unwrap().log;
        fill(&log, 1, 3, 10).await;
        rest().await;
        let disk = disk.kill();
        let root = disk.read_dir(Path::new("/data")).await.unwrap();
        assert_eq!(root.iter().any(|entry| entry.name == "checkpoint"), !joined);
        let files = journal_files(&disk).await;
        assert_eq!(files.len(), 2, "one is only prepared: {files:?}");
        for lost in [&files[..], &files[..1], &[]] {
            let disk = disk.fork();
            for name in lost {
                disk.remove_file(&Path::new(JOURNAL).join(name)).await.unwrap();
            }
            if lost.is_empty() {
                disk.remove_dir_all(Path::new(JOURNAL)).await.unwrap();
            }
            let refused = refusal(&disk).await;
            assert!(matches!(&refused, OpenError::Corrupt { path, .. } if path == Path::new(JOURNAL)), "{refused}");
            // Nothing has changed that would let the next one start.
            assert_eq!(refusal(&disk.kill()).await.to_string(), refused.to_string());
        }
        let store = open(&disk, small(), SnapshotAt::Boundary).await;
        assert_eq!(indexes(&store.replicas()[0].log).await, [0, 1, 2]);
    }
}

/// What a broker does first. Says how far it came.
async fn first_steps(disk: &SimDisk, term: u64, saved: &mut u64) -> Result<(), Box<dyn Error>> {
    let store = Store::open(options(disk, small(), SnapshotAt::Boundary)).await?;
    store.join_cluster(ClusterId(7)).await?;
    let log = store.create(GROUP, REPLICA).await?.log;
    log.save_vote(vote(term, REPLICA, false)).await?;
    *saved = term;
    store.close().await?;
    Ok(())
}

/// The first checkpoint, and the cluster's name, are durable only after the journal's first file is; and so in each later start.
#[tokio::test(start_paused = true)]
async fn a_crash_at_any_step_of_the_first_starts_refuses_nothing() {
    for before in 0..3 {
        for step in 0.. {
            let disk = SimDisk::new(step);
            let mut saved = 0;
            for term in 1..=before {
                first_steps(&disk, term, &mut saved).await.unwrap();
            }
            disk.crash_at_op(disk.ops() + step);
            let ended = first_steps(&disk, before + 1, &mut saved).await;
            assert!(ended.is_ok() || disk.has_crashed(), "{ended:?}");
            let crashes = (0..6).map(|seed| disk.fork().crash_with(seed));
            for (seed, disk) in crashes.chain([disk.fork().kill()]).enumerate() {
                let opened = Store::open(options(&disk, small(), SnapshotAt::Boundary)).await;
                let store = opened.unwrap_or_else(|why| panic!("start {before}, step {step}, seed {seed}: {why}"));
                assert_eq!((store.corrupt(), store.unknown_folders().len()), (Vec::new(), 0));
                let vote = store.replicas().first().and_then(|replica| replica.log.vote());
                assert!(
                    vote.map_or(0, |vote| vote.leader_id.term) >= saved,
                    "start {before}, step {step}, seed {seed}"
                );
            }
            if !disk.has_crashed() {
                assert!(step > 25, "only {step} steps");
                break;
            }
        }
    }
}
