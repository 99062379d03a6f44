//! Producers that idle are forgotten by every replica, and stay forgotten; those that write are not.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::cluster::{Cluster, PATIENCE, batch_by, eventually};
use crate::controller::CATALOG_GROUP;
use crate::error::{Code, Result};
use crate::partition::{PartitionState, Produced};
use crate::record_batch::ProducerSequence;

/// So long that on a busy machine, too, whoever is at work does not idle for so long.
const EXPIRATION: Duration = Duration::from_secs(5);
const IDLE: i64 = 7;
const AT_WORK: i64 = 8;

async fn send(cluster: &Cluster, producer_id: i64, sequence: i32) -> Result<Produced> {
    let producer = Some(ProducerSequence { producer_id, epoch: 0, sequence });
    cluster.send(1, ("t", 0), || batch_by("x", producer)).await
}

/// Whom each replica remembers.
fn remembered(cluster: &Cluster) -> Vec<Vec<i64>> {
    let groups = cluster.brokers.values().flat_map(|broker| broker.raft_groups().all());
    let partitions = groups.filter(|group| group.group() != CATALOG_GROUP);
    partitions.map(|group| PartitionState::load(&group.log().append_state()).unwrap().producer_ids()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_idles_is_forgotten_by_every_replica_for_good_and_who_writes_is_not() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    cluster.producer_id_expiration = Some(EXPIRATION);
    let mut cluster = cluster.all_started().await;
    cluster.create(1, "t", 1, 3).await;
    for sequence in 0..5 {
        send(&cluster, IDLE, sequence).await.unwrap();
    }
    assert!(send(&cluster, IDLE, 4).await.unwrap().duplicate);
    let (deadline, mut sequence) = (Instant::now() + PATIENCE, 0);
    loop {
        let first = send(&cluster, AT_WORK, sequence).await.unwrap();
        let again = send(&cluster, AT_WORK, sequence).await.unwrap();
        assert!(!first.duplicate && again.duplicate && again.base_offset == first.base_offset, "{first:?}, {again:?}");
        sequence += 1;
        let remembered = remembered(&cluster);
        if remembered == [[AT_WORK], [AT_WORK], [AT_WORK]] {
            break;
        }
        assert!(Instant::now() < deadline, "{remembered:?}");
        sleep(Duration::from_millis(50)).await;
    }
    for id in [1, 2, 3] {
        cluster.crash(id).await;
    }
    for id in [1, 2, 3] {
        cluster.start(id).await;
    }
    cluster.await_ready().await;
    cluster.await_in_sync("t", 3).await;
    eventually("nobody to remember who idled", || match remembered(&cluster) {
        all if all.len() == 3 && all.iter().all(|ids| !ids.contains(&IDLE)) => Ok(()),
        all => Err(format!("{all:?}")),
    })
    .await;
    assert_eq!(send(&cluster, IDLE, 5).await.unwrap_err().code, Code::UnknownProducer);
    assert!(!send(&cluster, IDLE, 0).await.unwrap().duplicate);
}
