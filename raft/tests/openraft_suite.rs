//! openraft's own storage suite over `LogStore` and `StateMachine`, on simulated and on real files.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use pontoon_raft::config::RaftConfig;
use pontoon_raft::disk::Disk;
use pontoon_raft::disk::real::RealDisk;
use pontoon_raft::disk::sim::SimDisk;
use pontoon_raft::log_store::LogStore;
use pontoon_raft::payload::SnapshotAt;
use pontoon_raft::state_machine::StateMachine;
use pontoon_raft::store::{Store, StoreOptions};
use pontoon_raft::testing::test_applications;
use pontoon_raft::types::{BrokerId, GroupId, ReplicaId, TypeConfig};

/// Opens a store of its own for each test of the suite.
struct Builder {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    next: AtomicU64,
    segment_bytes_max: u64,
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, Arc<Store>> for Builder {
    async fn build(&self) -> Result<(Arc<Store>, LogStore, StateMachine), StorageError<TypeConfig>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let store = Store::open(StoreOptions {
            disk: self.disk.clone(),
            path: self.root.join(number.to_string()),
            broker: BrokerId(1),
            config: RaftConfig {
                segment_bytes_max: self.segment_bytes_max,
                journal_file_bytes: 1 << 20,
                tail_cache_bytes: 512,
                append_bytes_max: 256,
                index_interval_bytes: 128,
                ..RaftConfig::default()
            },
            applications: test_applications(SnapshotAt::Applied),
        });
        let store = store.await.unwrap();
        let replica = store.create(GroupId(7), ReplicaId(0)).await.unwrap();
        Ok((store, LogStore::new(replica.log.clone()), StateMachine::new(&replica)))
    }
}

#[tokio::test(start_paused = true)]
async fn the_suite_passes_on_simulated_files() {
    for segment_bytes_max in [256, 1 << 20] {
        let disk = Arc::new(SimDisk::new(1));
        disk.set_cold(true);
        let builder = Builder { disk, root: "/data".into(), next: AtomicU64::new(0), segment_bytes_max };
        Suite::test_all(builder).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes_on_real_files() {
    let root = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::new().unwrap());
    let builder = Builder { disk, root: root.path().to_owned(), next: AtomicU64::new(0), segment_bytes_max: 512 };
    Suite::test_all(builder).await.unwrap();
}
