//! Clusters come to be once, whatever the order and whoever is missing (RULES.md R6).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use pontoon_raft::transport::{Caller, Liveness};
use pontoon_raft::types::BrokerId;
use tokio::time::timeout;

use super::cluster::{Cluster, PATIENCE, eventually};
use crate::broker::peer::Hello;
use crate::broker::{Broker, TopicSpec};
use crate::catalog::command::{BrokerRegistration, Command};
use crate::controller::requests::ControlRequest;
use crate::controller::{CATALOG_GROUP, Controller, Process};
use crate::error::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_brokers_form_one_cluster_in_any_order_and_wait_for_the_missing_one() {
    for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
        let mut cluster = Cluster::of(&[1, 2, 3]);
        let missing = order[2];
        for id in &order[..2] {
            cluster.start(*id).await;
        }
        // Whoever waits, waits for the one that is missing or for the one that must form it.
        for id in &order[..2] {
            let broker = cluster.broker(*id);
            let reason = if *id == 1 { format!("broker {missing}") } else { "broker 1".to_owned() };
            eventually("the reason for waiting", || match broker.ready() {
                Err(why) if why.contains(&reason) => Ok(()),
                other => Err(format!("{other:?} lacks {reason:?}")),
            })
            .await;
            assert!(broker.shared.store.cluster().is_none());
        }
        cluster.start(missing).await;
        cluster.await_ready().await;
        cluster.await_catalog_voters(&[1, 2, 3]).await;
        let ids: BTreeSet<_> = cluster.brokers.values().map(|broker| broker.cluster().cluster_id).collect();
        assert_eq!(ids.len(), 1);
        assert_eq!(cluster.broker(3).cluster().brokers.len(), 3);
        // Which survives a restart of all at once.
        for id in [1, 2, 3] {
            cluster.stop(id).await;
        }
        for id in order {
            cluster.start(id).await;
        }
        cluster.await_ready().await;
        assert_eq!(BTreeSet::from([cluster.broker(2).cluster().cluster_id]), ids);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_broker_comes_back_into_the_same_cluster_under_new_ids() {
    let mut cluster = Cluster::started().await;
    cluster.await_catalog_voters(&[1, 2, 3]).await;
    cluster.create(1, "orders", 4, 3).await;
    for n in 0..20 {
        cluster.produce(2, ("orders", n % 4), &format!("{n}")).await.unwrap();
    }
    let id = cluster.broker(2).cluster().cluster_id;
    let replicas = |cluster: &Cluster| -> BTreeSet<u64> {
        let state = cluster.broker(2).shared.catalog.state();
        let topic = state.topic("orders").unwrap();
        topic.partitions.iter().filter_map(|p| p.on(BrokerId(1))).map(|replica| replica.replica.0).collect()
    };
    let before = replicas(&cluster);
    let catalog_replica = |c: &Cluster| c.broker(2).shared.catalog.state().brokers()[&BrokerId(1)].catalog_replica;
    let old = catalog_replica(&cluster);
    // The lowest of all: the one that may form clusters.
    cluster.crash(1).await;
    cluster.wipe(1);
    cluster.start(1).await;
    cluster.await_ready().await;
    cluster.await_catalog_voters(&[1, 2, 3]).await;
    cluster.await_in_sync("orders", 3).await;
    assert_eq!(cluster.broker(1).cluster().cluster_id, id);
    assert_ne!(catalog_replica(&cluster), old);
    assert!(replicas(&cluster).is_disjoint(&before) && replicas(&cluster).len() == 4);
    cluster
        .await_catalog("the old replicas to be gone", |state| {
            state.topic("orders").unwrap().partitions.iter().all(|partition| partition.leaving.is_empty())
        })
        .await;
    // It holds everything: the two others may lose one more.
    cluster.crash(3).await;
    let mut all = BTreeSet::new();
    for partition in 0..4 {
        all.extend(cluster.read(1, ("orders", partition)).await);
    }
    assert_eq!(all.len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_another_cluster_is_refused_and_changes_nothing() {
    let mut cluster = Cluster::started().await;
    let mut other = Cluster::started().await;
    let (ours, theirs) = (cluster.broker(1).cluster().cluster_id, other.broker(1).cluster().cluster_id);
    assert_ne!(ours, theirs);
    cluster.stop(3).await;
    other.stop(3).await;
    std::mem::swap(cluster.directories.get_mut(&3).unwrap(), other.directories.get_mut(&3).unwrap());
    cluster.start(3).await;
    let why = timeout(PATIENCE, cluster.broker(3).failed()).await.unwrap();
    assert!(why.contains(&theirs), "{why}");
    assert_eq!(cluster.broker(3).ready(), Err(why));
    cluster.stop(3).await;
    // Its own cluster takes it back as it was.
    std::mem::swap(cluster.directories.get_mut(&3).unwrap(), other.directories.get_mut(&3).unwrap());
    cluster.start(3).await;
    cluster.await_ready().await;
    assert_eq!(cluster.broker(3).cluster().cluster_id, ours);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_another_broker_is_refused_by_its_number() {
    let mut cluster = Cluster::started().await;
    cluster.stop(2).await;
    cluster.stop(3).await;
    let third = cluster.directories.remove(&3).unwrap();
    cluster.directories.insert(2, third);
    let error = cluster.try_start(2).await.unwrap_err().to_string();
    assert!(error.contains("broker 3") && error.contains('2'), "{error}");
}

/// Three, and one that has joined them and does not vote in the catalog.
async fn three_and_a_fourth() -> Cluster {
    let mut cluster = Cluster::started().await;
    cluster.add(4);
    cluster.start(4).await;
    cluster.await_ready().await;
    cluster.await_catalog_voters(&[1, 2, 3]).await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fourth_broker_joins_by_asking_the_initial_ones() {
    let mut cluster = three_and_a_fourth().await;
    let described = cluster.create(4, "wide", 2, 4).await;
    assert!(described.partitions.iter().all(|partition| partition.replicas.len() == 4));
    cluster.await_in_sync("wide", 4).await;
    cluster.produce(4, ("wide", 1), "x").await.unwrap();
    assert_eq!(cluster.read(1, ("wide", 1)).await, ["x"]);
    // Three of the four vote in the catalog: without the fourth and one of them it goes on.
    cluster.crash(4).await;
    cluster.crash(3).await;
    for id in [1, 2] {
        let alive = || cluster.broker(id).cluster().brokers.iter().filter(|broker| broker.alive).count();
        eventually("two deaths", || if alive() == 2 { Ok(()) } else { Err(format!("{} live", alive())) }).await;
    }
    assert!(cluster.create(1, "narrow", 1, 2).await.partitions[0].leader.is_some());
}

/// The fourth has a copy of the catalog and no vote; it goes on hearing of its leader, which has nobody left to agree with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_without_a_majority_is_none() {
    let mut cluster = three_and_a_fourth().await;
    let controller = cluster.controller().await;
    let known = |cluster: &Cluster, id| cluster.broker(id).controller().map(|broker| broker.0);
    for id in 1..=4 {
        let knows =
            || (known(&cluster, id) == Some(controller)).then_some(()).ok_or(format!("{:?}", known(&cluster, id)));
        eventually("the controller to be known", knows).await;
    }
    for id in (1..=3).filter(|id| *id != controller) {
        cluster.crash(id).await;
    }
    for id in [controller, 4] {
        let knows_none = || known(&cluster, id).map_or(Ok(()), |known| Err(format!("{id} says {known}")));
        eventually("nobody to be the controller", knows_none).await;
    }
    let remembered = cluster.broker(4).shared.remembered_controller();
    assert!(remembered.is_none_or(|(leader, _)| leader.0 == controller));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_with_a_running_brokers_number_is_refused() {
    let mut cluster = Cluster::started().await;
    let mut config = cluster.config(2);
    let elsewhere = tempfile::tempdir().unwrap();
    config.data_dir = elsewhere.path().to_owned();
    config.peer.listen = "127.0.0.1:0".to_owned();
    let impostor = Broker::start(config, "127.0.0.1:1".to_owned()).await.unwrap();
    eventually("the refusal", || match impostor.ready() {
        Err(why) if why.contains("broker 2 is running") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    impostor.shutdown(Duration::from_secs(5)).await;
    cluster.await_ready().await;
    cluster.stop(2).await;
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// Three brokers with a topic; the controller, and one that is not.
async fn with_orders() -> (Cluster, u32, u32) {
    let cluster = Cluster::started().await;
    cluster.await_catalog_voters(&[1, 2, 3]).await;
    cluster.create(1, "orders", 2, 3).await;
    let controller = cluster.controller().await;
    let id = (1..=3).find(|id| *id != controller).unwrap();
    (cluster, controller, id)
}

/// How the others see a broker: which process it is, and how often they have held it dead.
fn seen(cluster: &Cluster, id: u32) -> Vec<(Option<u64>, u64)> {
    let others = cluster.brokers.values().filter(|broker| broker.id().0 != id);
    let status = |broker: &Arc<Broker>| broker.shared.transport().peer_status(BrokerId(id)).unwrap();
    others.map(status).map(|status| (status.incarnation, status.deaths)).collect()
}

/// Two voters under one id would each vote and acknowledge without what the other knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_running_brokers_directory_is_refused() {
    let (mut cluster, _, id) = with_orders().await;
    cluster.stop(id).await;
    let copied = tempfile::tempdir().unwrap();
    copy_folder(cluster.directories[&id].path(), copied.path());
    cluster.start(id).await;
    cluster.await_ready().await;
    cluster.await_in_sync("orders", 3).await;
    let before = seen(&cluster, id);
    let mut config = cluster.config(id);
    config.data_dir = copied.path().to_owned();
    config.peer.listen = "127.0.0.1:0".to_owned();
    let copy = Broker::start(config, "127.0.0.1:1".to_owned()).await.unwrap();
    let why = timeout(PATIENCE, copy.failed()).await.unwrap();
    assert!(why.contains(&format!("broker {id} is running")) && why.contains("is a copy"), "{why}");
    copy.shutdown(Duration::from_secs(5)).await;
    // Nobody has taken it for the broker meanwhile.
    assert_eq!(seen(&cluster, id), before);
    cluster.produce(1, ("orders", 0), "x").await.unwrap();
    cluster.await_in_sync("orders", 3).await;
}

/// Its machine was taken for gone, and comes back: it is not let in, and takes nobody's place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_former_process_of_a_replaced_broker_takes_nothing_from_its_successor() {
    let (mut cluster, controller, id) = with_orders().await;
    let former = cluster.config(id);
    cluster.crash(id).await;
    let _kept = cluster.directories.remove(&id).unwrap();
    cluster.add(id);
    cluster.start(id).await;
    cluster.await_ready().await;
    cluster.await_in_sync("orders", 3).await;
    let before = seen(&cluster, id);
    let former = Broker::start(former, "127.0.0.1:1".to_owned()).await.unwrap();
    eventually("the refusal", || match former.ready() {
        Err(why) if why.contains(&format!("broker {id} is running")) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    for n in 0..20 {
        cluster.produce(controller, ("orders", n % 2), &format!("{n}")).await.unwrap();
    }
    assert_eq!(seen(&cluster, id), before, "while it is there");
    former.shutdown(Duration::from_secs(5)).await;
    cluster.await_in_sync("orders", 3).await;
    assert_eq!(seen(&cluster, id), before, "after it");
}

/// `pontoon recover` says Hello for a stopped broker, and is nowhere; so may who has been turned away since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_reached_where_it_has_registered_whatever_was_heard_of_it_before() {
    let (mut cluster, _, id) = with_orders().await;
    let (hello, process) = (cluster.broker(id).shared.hello(), Caller { broker: BrokerId(id), incarnation: 7 });
    cluster.stop(id).await;
    for other in cluster.brokers.values() {
        let alive = || other.shared.transport().liveness(BrokerId(id)) == Liveness::Alive;
        eventually("its end to be noticed", || if alive() { Err("it is alive") } else { Ok(()) }).await;
        for elsewhere in ["127.0.0.1:1", ""] {
            let hello = Hello { peer_address: elsewhere.to_owned(), ..hello.clone() };
            other.shared.take_hello(process, &hello);
        }
    }
    cluster.start(id).await;
    cluster.await_ready().await;
    cluster.await_in_sync("orders", 3).await;
}

/// As when it was cut off, and taken for dead, while the other one came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_ends_when_another_process_has_registered_in_its_place() {
    let (mut cluster, controller, id) = with_orders().await;
    let mut other = cluster.broker(id).shared.catalog.state().brokers()[&BrokerId(id)].clone();
    other.incarnation += 1;
    let group = cluster.broker(controller).shared.groups.get(CATALOG_GROUP).unwrap();
    group.propose(Command::RegisterBroker(other).encode().into(), None).await.unwrap();
    let why = timeout(PATIENCE, cluster.broker(id).failed()).await.unwrap();
    assert!(why.contains(&format!("has registered as broker {id}")), "{why}");
    cluster.crash(id).await;
    cluster.start(id).await;
    cluster.await_ready().await;
}

/// Its request was long on its way, and while it is looked into, its successor comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_has_gone_does_not_register_in_its_successors_place() {
    let (cluster, controller, id) = with_orders().await;
    let shared = cluster.broker(controller).shared.clone();
    let known = |incarnation: u64| {
        let known = shared.catalog.state().brokers()[&BrokerId(id)].clone();
        BrokerRegistration { incarnation: known.incarnation.wrapping_add(incarnation), ..known }
    };
    let (gone, successor) = (known(1), known(2));
    let group = shared.groups.get(CATALOG_GROUP).unwrap();
    let comes = Command::RegisterBroker(successor.clone()).encode();
    let probe = move |_| -> BoxFuture<'static, Option<Process>> {
        let (group, comes) = (group.clone(), comes.clone());
        Box::pin(async move {
            group.propose(comes.into(), None).await.unwrap();
            None
        })
    };
    let (groups, catalog) = (shared.groups.clone(), shared.catalog.clone());
    let other = Controller::new(BrokerId(controller), groups, catalog, Arc::new(probe), Arc::new(|_, _| true));
    let refused = other.handle(ControlRequest::Register(gone)).await.unwrap_err();
    assert!(refused.to_string().contains("has registered as broker"), "{refused}");
    assert_eq!(shared.catalog.state().brokers()[&BrokerId(id)], successor);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_tables_a_broker_rebuilds_them_and_nothing_else() {
    let mut cluster = Cluster::started().await;
    cluster.create(1, "kept", 2, 3).await;
    cluster.produce(1, ("kept", 0), "x").await.unwrap();
    let (id, _) = cluster.broker(2).create_producer(PATIENCE).await.unwrap();
    for broker in [1, 2, 3] {
        cluster.stop(broker).await;
        let tables = cluster.directories[&broker].path().join("catalog");
        assert!(tables.is_dir());
        std::fs::remove_dir_all(tables).unwrap();
    }
    for broker in [1, 2, 3] {
        cluster.start(broker).await;
    }
    cluster.await_ready().await;
    assert_eq!(cluster.read(3, ("kept", 0)).await, ["x"]);
    let (next, _) = cluster.broker(2).create_producer(PATIENCE).await.unwrap();
    assert_ne!(id, next, "a producer id is never given out twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_created_early_waits_for_the_brokers_it_was_promised() {
    let mut cluster = Cluster::of(&[1]);
    cluster.start(1).await;
    cluster.await_ready().await;
    cluster.stop(1).await;
    cluster.promise(2);
    cluster.start(1).await;
    cluster.await_ready().await;
    let spec = |replicas| TopicSpec {
        name: "early".to_owned(),
        partitions: 1,
        replicas,
        assignment: None,
        config: BTreeMap::new(),
    };
    let error = cluster.broker(1).create_topic(spec(Some(2)), Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(error.code, Code::NotEnoughReplicas, "{error}");
    assert!(error.message.contains("1 of 2"), "{error}");
    let first = cluster.broker(1).clone();
    let created = tokio::spawn(async move { first.create_topic(spec(None), PATIENCE).await });
    cluster.start(2).await;
    let described = created.await.unwrap().unwrap();
    assert_eq!(described.partitions[0].replicas.len(), 2, "{described:?}");
}
