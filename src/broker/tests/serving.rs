//! Topics are served through failures: created, produced to, failed over, given back, repaired, deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pontoon_raft::types::{BrokerId, Offset};

use super::cluster::{Cluster, PATIENCE, eventually};
use crate::broker::shared::Progress;
use crate::broker::summary::{DirectoryHealth, Summary};
use crate::broker::{Route, TopicSpec};
use crate::error::Code;

/// It is alive from its first connection on, and what its replicas had they will have again: but they may not run yet, and whoever is
/// restarting one broker after the other would take away the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_has_come_back_is_in_sync_once_it_speaks() {
    let mut cluster = Cluster::started().await;
    cluster.create(1, "t", 3, 3).await;
    cluster.await_in_sync("t", 3).await;
    for id in [1, 2] {
        let shared = &cluster.broker(id).shared;
        let (health, led) = (DirectoryHealth::default(), Vec::new());
        let of_another = Summary { incarnation: 7, sequence: 1, declines: false, kafka_address: None, health, led };
        shared.routing.take_summary(BrokerId(3), of_another);
        assert!(shared.alive(BrokerId(3)) && !shared.serves(BrokerId(3)) && shared.serves(BrokerId(id)));
    }
    let led_by_others = || {
        let described = cluster.broker(1).topic("t").unwrap().partitions;
        let others = described.into_iter().filter(|partition| partition.leader.is_some_and(|leader| leader.0 != 3));
        others.map(|partition| partition.in_sync).collect::<Vec<_>>()
    };
    eventually("what has not spoken not to be in sync", || match led_by_others() {
        led if !led.is_empty() && led.iter().all(|brokers| *brokers == [BrokerId(1), BrokerId(2)]) => Ok(()),
        led => Err(format!("{led:?}")),
    })
    .await;
    cluster.stop(3).await;
    cluster.start(3).await;
    cluster.await_in_sync("t", 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_survives_a_crash_fails_over_and_gets_its_leaders_back() {
    let mut cluster = Cluster::started().await;
    let described = cluster.create(2, "orders", 6, 3).await;
    assert!(described.partitions.iter().all(|p| p.leader.is_some() && p.replicas.len() == 3), "{described:?}");
    let preferred = |broker| described.partitions.iter().filter(|p| p.replicas[0] == BrokerId(broker)).count();
    assert_eq!([preferred(1), preferred(2), preferred(3)], [2, 2, 2], "leaders are spread");
    cluster.await_in_sync("orders", 3).await;
    let mut expected: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for n in 0..30 {
        let value = format!("before {n}");
        let offset = cluster.produce(1 + n % 3, ("orders", n % 6), &value).await.unwrap();
        let values = expected.entry(n % 6).or_default();
        assert_eq!(offset, Offset(values.len() as u64), "offsets are dense");
        values.push(value);
    }
    cluster.crash(1).await;
    for n in 0..30 {
        let value = format!("after {n}");
        let offset = cluster.produce(2 + n % 2, ("orders", n % 6), &value).await.unwrap();
        let values = expected.entry(n % 6).or_default();
        assert_eq!(offset, Offset(values.len() as u64), "nothing acknowledged was lost");
        values.push(value);
    }
    for (partition, values) in &expected {
        assert_eq!(&cluster.read(3, ("orders", *partition)).await, values);
    }
    cluster.await_in_sync("orders", 2).await;
    cluster.start(1).await;
    cluster.await_ready().await;
    cluster.await_in_sync("orders", 3).await;
    cluster.await_preferred_leaders("orders").await;
    for (partition, values) in &expected {
        assert_eq!(&cluster.read(1, ("orders", *partition)).await, values);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_has_not_heard_of_the_groups_does_not_say_that_there_are_none() {
    let cluster = Cluster::started().await;
    assert_eq!(cluster.broker(3).group_partition("g", PATIENCE).await.unwrap(), None);
    cluster.broker(1).ensure_offsets_topic(PATIENCE).await.unwrap();
    assert!(cluster.broker(2).group_partition("g", PATIENCE).await.unwrap().is_some());

    let mut cut_off = Cluster::started().await;
    cut_off.crash(1).await;
    cut_off.crash(2).await;
    // The others may have made groups meanwhile, for all it knows.
    let answer = cut_off.broker(3).group_partition("g", Duration::from_millis(300)).await;
    assert!(answer.is_err(), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_stop_hands_over_and_all_may_stop_and_start() {
    let mut cluster = Cluster::started().await;
    cluster.create(1, "calm", 6, 3).await;
    cluster.await_in_sync("calm", 3).await;
    cluster.produce(1, ("calm", 0), "kept").await.unwrap();
    cluster.stop(2).await;
    // Whoever led there had handed over before it closed: nobody has to find out.
    for partition in 0..6 {
        let route = cluster.broker(1).route_wait("calm", partition, Duration::from_secs(2)).await.unwrap();
        assert!(!matches!(route, Route::Remote { broker: BrokerId(2), .. }), "partition {partition}");
    }
    cluster.stop(1).await;
    cluster.stop(3).await;
    for id in [1, 2, 3] {
        cluster.start(id).await;
    }
    cluster.await_ready().await;
    assert_eq!(cluster.read(2, ("calm", 0)).await, ["kept"]);
    cluster.await_preferred_leaders("calm").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_created_again_under_its_name_is_empty_and_old_replicas_are_gone() {
    let cluster = Cluster::started().await;
    let first = cluster.create(1, "again", 2, 3).await;
    cluster.produce(1, ("again", 0), "old").await.unwrap();
    cluster.broker(2).delete_topic("again", PATIENCE).await.unwrap();
    assert_eq!(cluster.broker(2).topic("again").unwrap_err().code, Code::UnknownTopic);
    let second = cluster.create(3, "again", 2, 3).await;
    assert_ne!(first.topic_id, second.topic_id);
    assert_eq!(cluster.produce(2, ("again", 0), "new").await.unwrap(), Offset(0));
    assert_eq!(cluster.read(1, ("again", 0)).await, ["new"]);
    for broker in cluster.brokers.values() {
        // The catalog and the two partitions of now.
        eventually("the old replicas to be deleted", || match broker.shared.groups.all().len() {
            3 => Ok(()),
            other => Err(format!("{other} groups at {}", broker.id())),
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused_with_its_value() {
    let mut cluster = Cluster::started().await;
    cluster.create(1, "a.b", 1, 1).await;
    let spec = |name: &str, partitions, replicas, config: &[(&str, &str)]| TopicSpec {
        name: name.to_owned(),
        partitions,
        replicas,
        assignment: None,
        config: config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    };
    let refused = [
        (spec("a.b", 1, None, &[]), Code::TopicExists, "a.b"),
        (spec("a_b", 1, None, &[]), Code::TopicNameCollision, "a_b"),
        (spec("a/b", 1, None, &[]), Code::InvalidTopicName, "a/b"),
        (spec("t", 0, None, &[]), Code::InvalidPartitions, "0"),
        (spec("t", 10_001, None, &[]), Code::InvalidPartitions, "10001"),
        (spec("t", 1, Some(4), &[]), Code::InvalidReplicationFactor, "4 replicas"),
        (spec("t", 1, Some(0), &[]), Code::InvalidReplicationFactor, "0 replicas"),
        (spec("t", 1, None, &[("retention", "1")]), Code::InvalidConfig, "retention.ms"),
        (spec("t", 1, None, &[("segment.bytes", "x")]), Code::InvalidConfig, "\"x\""),
    ];
    for broker in [1, 3] {
        for (spec, code, names) in &refused {
            let error = cluster.broker(broker).create_topic(spec.clone(), PATIENCE).await.unwrap_err();
            assert_eq!(error.code, *code, "{error}");
            assert!(error.message.contains(names), "{error} does not name {names:?}");
        }
        let broker = cluster.broker(broker);
        let wait = Duration::from_secs(5);
        assert_eq!(broker.route_wait("nobody", 0, wait).await.err().unwrap().code, Code::UnknownTopic);
        assert_eq!(broker.route_wait("a.b", 1, wait).await.err().unwrap().code, Code::UnknownPartition);
        assert_eq!(broker.delete_topic("nobody", wait).await.unwrap_err().code, Code::UnknownTopic);
        let fewer = broker.alter_topic("a.b", Some(0), BTreeMap::new(), wait).await.unwrap_err();
        assert_eq!(fewer.code, Code::InvalidPartitions);
    }
    cluster.crash(2).await;
    eventually("the death to be seen", || {
        let seen = cluster.brokers.values().all(|b| !b.cluster().brokers[1].alive);
        if seen { Ok(()) } else { Err("not yet") }
    })
    .await;
    // Three are configured: a topic made in the meantime must not be weaker for it.
    let error = cluster.broker(1).create_topic(spec("t", 1, None, &[]), Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(error.code, Code::NotEnoughReplicas, "{error}");
    assert!(error.message.contains("2 of 3"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn altering_adds_partitions_everywhere_and_limits_take_effect() {
    let cluster = Cluster::started().await;
    cluster.create(1, "grows", 1, 3).await;
    let config = BTreeMap::from([("max.message.bytes".to_owned(), Some("10".to_owned()))]);
    let described = cluster.broker(2).alter_topic("grows", Some(3), config, PATIENCE).await.unwrap();
    assert_eq!((described.partitions.len(), described.config.len()), (3, 1));
    assert_eq!(cluster.broker(2).topic_config("grows").unwrap().max_message_bytes, 10);
    cluster.produce(3, ("grows", 2), "small").await.unwrap();
    cluster.await_catalog("the new partitions", |state| state.topic("grows").unwrap().partitions.len() == 3).await;
    // What was produced before stays; what comes must fit.
    for broker in cluster.brokers.values() {
        for (_, hosted) in broker.shared.routing.all_hosted() {
            eventually("the new limit", || match hosted.settings.limits.record_bytes_max {
                10 => Ok(()),
                _ => match broker.shared.routing.hosted(hosted.group.group()) {
                    Some(now) if now.settings.limits.record_bytes_max == 10 => Ok(()),
                    _ => Err("the old one"),
                },
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_files_vanish_is_replaced_under_a_new_id() {
    let mut cluster = Cluster::started().await;
    cluster.create(1, "safe", 3, 3).await;
    for n in 0..9 {
        cluster.produce(1, ("safe", n % 3), &n.to_string()).await.unwrap();
    }
    cluster.await_in_sync("safe", 3).await;
    let groups = |cluster: &Cluster| -> Vec<(u64, u64)> {
        let state = cluster.broker(1).shared.catalog.state();
        let topic = state.topic("safe").unwrap();
        topic.partitions.iter().map(|p| (p.group.0, p.on(BrokerId(2)).unwrap().replica.0)).collect()
    };
    let before = groups(&cluster);
    cluster.stop(2).await;
    for (group, replica) in &before {
        let folder = cluster.directories[&2].path().join("groups").join(format!("{group}-{replica}"));
        std::fs::remove_dir_all(folder).unwrap();
    }
    cluster.start(2).await;
    cluster.await_ready().await;
    cluster
        .await_catalog("every replica to be replaced", |state| {
            let topic = state.topic("safe").unwrap();
            let replaced = |p: &crate::catalog::state::PartitionRecord| {
                !before.contains(&(p.group.0, p.on(BrokerId(2)).unwrap().replica.0)) && p.leaving.is_empty()
            };
            topic.partitions.iter().all(|partition| replaced(partition))
        })
        .await;
    cluster.await_in_sync("safe", 3).await;
    cluster.crash(3).await;
    let mut all = BTreeSet::new();
    for partition in 0..3 {
        all.extend(cluster.read(2, ("safe", partition)).await);
    }
    assert_eq!(all.len(), 9);
}

/// Whoever asks a broker that was just started must not be told of a cluster of one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_says_it_is_ready_knows_the_others() {
    let mut cluster = Cluster::started().await;
    for round in 0..5 {
        cluster.crash(2).await;
        // The others have noticed, and try to reach it now and then.
        for other in [1, 3] {
            let seen = || cluster.broker(other).cluster().brokers;
            let dead = || match seen().iter().any(|known| known.broker_id.0 == 2 && known.alive) {
                true => Err("it is alive"),
                false => Ok(()),
            };
            eventually("broker 2's death", dead).await;
        }
        cluster.start(2).await;
        let broker = cluster.broker(2);
        let mut progress = broker.shared.progress.subscribe();
        tokio::time::timeout(PATIENCE, progress.wait_for(|progress| *progress == Progress::Ready))
            .await
            .unwrap()
            .unwrap();
        let known = broker.cluster().brokers.into_iter().filter(|known| known.alive && known.kafka_address.is_some());
        assert_eq!(known.map(|known| known.broker_id.0).collect::<Vec<_>>(), [1, 2, 3], "round {round}");
    }
}

/// A consumer that is told of a committed offset for no topic begins anew: a broker must not say so out of an old catalog.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_without_a_controller_does_not_take_its_catalog_for_complete() {
    let mut cluster = Cluster::started().await;
    // Until the others vote, broker 1 is a majority.
    cluster.await_catalog_voters(&[1, 2, 3]).await;
    cluster.broker(1).catch_up(PATIENCE).await.unwrap();
    cluster.crash(2).await;
    cluster.crash(3).await;
    let error = cluster.broker(1).catch_up(Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error.code, Code::NotReady | Code::OutcomeUnknown), "{error}");
    cluster.start(2).await;
    cluster.broker(1).catch_up(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_replica_is_never_replaced_by_an_empty_one() {
    let mut cluster = Cluster::started().await;
    cluster.create(1, "single", 1, 1).await;
    cluster.produce(1, ("single", 0), "precious").await.unwrap();
    let state = cluster.broker(1).shared.catalog.state();
    let record = state.topic("single").unwrap().partitions[0].replicas[0];
    let home = record.broker.0;
    cluster.stop(home).await;
    cluster.wipe(home);
    cluster.start(home).await;
    cluster.await_ready().await;
    let asked = cluster.broker(home).route_wait("single", 0, Duration::from_secs(3)).await;
    assert_eq!(asked.err().unwrap().code, Code::NoLeader);
    let state = cluster.broker(home).shared.catalog.state();
    assert_eq!(state.topic("single").unwrap().partitions[0].replicas[0].replica, record.replica);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producer_ids_are_never_given_out_twice() {
    let mut cluster = Cluster::started().await;
    let mut seen = BTreeSet::new();
    for round in 0..3 {
        for broker in [1, 2, 3] {
            for _ in 0..1100 {
                let (id, epoch) = cluster.broker(broker).create_producer(PATIENCE).await.unwrap();
                assert!(id >= 0 && epoch == 0 && seen.insert(id), "{id}");
            }
        }
        cluster.crash(1 + round).await;
        cluster.start(1 + round).await;
        cluster.await_ready().await;
    }
}
