//! One survivor becomes the whole group, and the group grows back from it.

use std::collections::BTreeMap;

use super::*;
use crate::store::{Store, StoreOptions};
use crate::types::log_id;

/// A broker that leads, and whose two followers are gone with their disks; what it wrote last is on no other.
async fn alone() -> (Cluster, Vec<String>) {
    let mut cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    write_all(&group, &names(20)).await;
    for broker in [2, 3] {
        cluster.shows(broker, 1, &names(20)).await;
        drop(cluster.kill(broker).await);
    }
    let (tell, told) = oneshot::channel();
    let last = group.clone();
    tokio::spawn(async move { last.propose(Bytes::from_static(b"record 20"), Some(tell)).await });
    told.await.unwrap();
    (cluster, names(21))
}

#[tokio::test(start_paused = true)]
async fn a_group_goes_on_from_one_survivor_with_all_that_it_had_and_grows_again() {
    let (mut cluster, mut records) = alone().await;
    let before = cluster.group(1, 1).log().vote().unwrap().leader_id.term;
    let groups = cluster.brokers[&1].groups.clone();
    for _ in 0..2 {
        // The second time there is nothing to do.
        groups.become_only_voter(GroupId(1), ReplicaId(11)).await.unwrap();
        assert_eq!(cluster.leader(1, &[1]).await, 1);
    }
    assert!(groups.become_only_voter(GroupId(1), ReplicaId(12)).await.is_err());
    cluster.shows(1, 1, &records).await;
    let group = cluster.group(1, 1);
    let term = group.status().term;
    assert!((before + (1 << 16)..before + (2 << 16)).contains(&term), "{before} {term}");
    propose(&group, "record 21").await.unwrap();
    records.push("record 21".to_owned());

    // It is so also after a crash, and what comes is filled from it.
    cluster.restart(1).await;
    assert_eq!(cluster.leader(1, &[1]).await, 1);
    cluster.boot(2, SimDisk::new(22)).await;
    cluster.brokers[&2].groups.create(GroupId(1), ReplicaId(99), Former::Delete).await.unwrap();
    let group = cluster.group(1, 1);
    group.add_learner(ReplicaId(99), ReplicaHome { broker: BrokerId(2) }).await.unwrap();
    group.change_voters(vec![ReplicaId(11), ReplicaId(99)]).await.unwrap();
    cluster.shows(2, 1, &records).await;
    // Nobody who was given up is a member any more.
    assert_eq!(cluster.group(2, 1).log().voters().into_keys().collect::<Vec<_>>(), [ReplicaId(11), ReplicaId(99)]);
}

async fn opened(disk: &SimDisk) -> Arc<Store> {
    let options = StoreOptions {
        disk: Arc::new(disk.clone()),
        path: "/data".into(),
        broker: BrokerId(1),
        config: config(),
        applications: Arc::new(|_, _| Arc::new(cluster::Records)),
    };
    Store::open(options).await.unwrap()
}

/// Offline, with an entry behind it: what a crash leaves is all or nothing, and it can be begun again.
#[tokio::test(start_paused = true)]
async fn becoming_the_only_voter_is_all_or_nothing_in_a_crash() {
    let (mut cluster, records) = alone().await;
    let disk = cluster.kill(1).await;
    let mut done = 0;
    for op in 0.. {
        let disk = disk.fork();
        let store = opened(&disk).await;
        let found = store.survey().await.remove(0);
        let (last, end) = (found.last.unwrap(), found.log_end_offset.0);
        assert_eq!((end, found.voters.len(), found.committed_offset.is_some()), (21, 3, true));
        disk.crash_at_op(disk.ops() + op);
        let then = || Some(Bytes::from_static(b"record 21"));
        let whole = store.become_only_voter(GroupId(1), ReplicaId(11), BrokerId(1), then()).await.is_ok();
        drop(store);
        let disk = disk.crash();
        let store = opened(&disk).await;
        let after = store.survey().await.remove(0);
        let alone = BTreeMap::from([(ReplicaId(11), BrokerId(1))]);
        match after.last.unwrap().1 - last.1 {
            0 => assert!(!whole && after.voters.len() == 3 && after.log_end_offset.0 == 21),
            2 => assert!(after.voters == alone && after.log_end_offset.0 == 22),
            more => panic!("{more} entries of two"),
        }
        if after.voters.len() == 3 {
            store.become_only_voter(GroupId(1), ReplicaId(11), BrokerId(1), then()).await.unwrap();
        } else {
            done += 1;
        }
        drop(store);
        cluster.boot(1, disk.kill()).await;
        assert_eq!(cluster.leader(1, &[1]).await, 1);
        cluster.shows(1, 1, &[&records[..], &["record 21".to_owned()]].concat()).await;
        drop(cluster.kill(1).await);
        if whole {
            break;
        }
    }
    assert!(done > 0);
}

#[tokio::test(start_paused = true)]
async fn an_empty_replica_is_no_survivor() {
    let cluster = Cluster::start(1).await;
    let groups = &cluster.brokers[&1].groups;
    groups.create(GroupId(1), ReplicaId(11), Former::Delete).await.unwrap();
    let refused = groups.become_only_voter(GroupId(1), ReplicaId(11)).await.unwrap_err();
    assert!(refused.to_string().contains("empty"), "{refused}");
    // And it is none the worse for it.
    let home = ReplicaHome { broker: BrokerId(1) };
    cluster.group(1, 1).initialize(BTreeMap::from([(ReplicaId(11), home)])).await.unwrap();
    assert_eq!(cluster.leader(1, &[1]).await, 1);
    assert!(cluster.group(1, 1).log().last_log_id() < Some(log_id(1 << 16, 0)));
}
