//! Changes of the catalog while brokers are away: what is said of them, and what becomes of them.

use std::time::Duration;

use pontoon_raft::types::{BrokerId, DirectoryId, GroupId, ReplicaId};

use super::cluster::{Cluster, PATIENCE, eventually};
use crate::broker::TopicSpec;
use crate::catalog::command::{Command, NewPartition, Placement};
use crate::catalog::state::ReplicaState;
use crate::controller::{CATALOG_GROUP, Controller};
use crate::error::{Code, WriteOutcome};

fn spec(name: &str) -> TopicSpec {
    TopicSpec { name: name.to_owned(), partitions: 1, replicas: Some(1), assignment: None, config: Default::default() }
}

/// It stands in the controller's log, and when the others hear of it again it may be carried out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_may_yet_be_created_is_not_said_not_to_be() {
    let (cluster, wires) = Cluster::wired().await;
    cluster.await_catalog_voters(&[1, 2, 3]).await;
    let controller = cluster.controller().await;
    let others: Vec<u32> = (1..=3).filter(|id| *id != controller).collect();
    others.iter().for_each(|other| wires.cut(&controller.to_string(), &other.to_string()));
    let limit = Duration::from_millis(300);
    let error = cluster.broker(controller).create_topic(spec("perhaps"), limit).await.unwrap_err();
    assert_eq!((error.code, error.outcome), (Code::OutcomeUnknown, WriteOutcome::Unknown), "{error}");
    // Whoever only asks has changed nothing.
    let error = cluster.broker(others[0]).catch_up(limit).await.unwrap_err();
    assert_eq!((error.code, error.outcome), (Code::NotReady, WriteOutcome::None), "{error}");
    wires.heal_all();
}

/// Nor is it said not to be there, by a broker whose copy of the catalog does not reach the change in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_and_does_not_show_here_is_not_denied() {
    let cluster = Cluster::started().await;
    cluster.create(1, "t", 1, 3).await;
    let shared = &cluster.broker(1).shared;
    let applied = shared.catalog.state().applied.unwrap().1;
    let soon = || tokio::time::Instant::now() + Duration::from_millis(100);
    shared.await_shown(applied, soon()).await.unwrap();
    let error = shared.await_shown(u64::MAX, soon()).await.unwrap_err();
    assert_eq!((error.code, error.outcome), (Code::OutcomeUnknown, WriteOutcome::Unknown), "{error}");
    assert!(error.message.contains("it is done"), "{error}");
}

/// A broker whose copy of the catalog is behind knows another topic by that name, which is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_is_deleted_or_changed_by_the_name_that_it_has_now() {
    let (cluster, wires) = Cluster::wired().await;
    cluster.await_catalog_voters(&[1, 2, 3]).await;
    let controller = cluster.controller().await;
    let here = || TopicSpec { assignment: Some(vec![vec![BrokerId(controller)]]), replicas: None, ..spec("t") };
    let behind = (1..=3).find(|id| *id != controller).unwrap();
    let alter = || [("retention.ms".to_owned(), Some("1000".to_owned()))].into();
    cluster.broker(controller).create_topic(here(), PATIENCE).await.unwrap();
    eventually("a copy of it", || cluster.broker(behind).topic("t").map(drop)).await;
    for delete in [false, true] {
        (1..=3)
            .filter(|other| *other != behind)
            .for_each(|other| wires.partition(&behind.to_string(), &other.to_string()));
        cluster.broker(controller).delete_topic("t", PATIENCE).await.unwrap();
        cluster.broker(controller).create_topic(here(), PATIENCE).await.unwrap();
        let broker = cluster.broker(behind);
        let mut changing = Box::pin(async move {
            match delete {
                true => broker.delete_topic("t", PATIENCE).await,
                false => broker.alter_topic("t", None, alter(), PATIENCE).await.map(drop),
            }
        });
        // What it finds at once is what it has heard of before.
        assert!(futures_util::poll!(&mut changing).is_pending());
        wires.heal_all();
        changing.await.unwrap();
        let shared = &cluster.broker(controller).shared;
        let changed = shared.catalog.state().topic("t").map(|topic| topic.config.len());
        assert_eq!(changed, if delete { None } else { Some(1) });
    }
}

/// Two that delete one topic by its id at the same time: it is gone, for both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_deletes_a_topic_that_is_just_being_deleted_has_done_so() {
    let cluster = Cluster::started().await;
    cluster.create(1, "t", 1, 3).await;
    let shared = cluster.broker(cluster.controller().await).shared.clone();
    let topic_id = shared.catalog.state().topic("t").unwrap().id.0;
    // Both have found it before either is heard.
    let delete = || shared.delete_topic_by_id(topic_id, PATIENCE);
    let (one, other) = tokio::join!(delete(), delete());
    assert_eq!((one.unwrap(), other.unwrap()), ("t".to_owned(), "t".to_owned()));
}

/// Creates a topic that the controller would not place so: a replica of it is on a broker that has just gone.
async fn create_on(cluster: &Cluster, name: &str, brokers: [u32; 3]) {
    let shared = &cluster.broker(cluster.controller().await).shared;
    let group = shared.groups.get(CATALOG_GROUP).unwrap();
    eventually_created(cluster, name, async || {
        let state = shared.catalog.state();
        let place = |(broker, replica): (u32, u64)| {
            let broker = BrokerId(broker);
            let directory = state.brokers().get(&broker).map_or(DirectoryId(0), |known| known.directory);
            Placement { broker, directory, replica: ReplicaId(replica) }
        };
        let replicas = brokers.into_iter().zip(state.next_replica().0..).map(place).collect();
        let partitions = vec![NewPartition { group: GroupId(state.next_group().0), replicas }];
        let (topic, name) = (Controller::random_topic_id(), name.to_owned());
        let command = Command::CreateTopic { topic, name, config: Default::default(), partitions };
        let _ = group.propose(command.encode().into(), None).await;
    })
    .await;
}

async fn eventually_created(cluster: &Cluster, name: &str, propose: impl AsyncFn()) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while cluster.brokers.values().any(|broker| broker.topic(name).is_err()) {
        assert!(tokio::time::Instant::now() < deadline, "{name} is not created");
        propose().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whichever of the three is away before the group has begun: a majority is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_partition_is_led_though_one_of_its_brokers_went_before_it_began() {
    let mut cluster = Cluster::started().await;
    cluster.await_catalog_voters(&[1, 2, 3]).await;
    cluster.crash(3).await;
    for (name, brokers) in [("last", [1, 2, 3]), ("first", [3, 1, 2])] {
        create_on(&cluster, name, brokers).await;
        cluster.produce(1, (name, 0), "x").await.unwrap();
    }
    // It takes its places when it comes back.
    cluster.start(3).await;
    cluster.await_ready().await;
    for name in ["last", "first"] {
        cluster.await_in_sync(name, 3).await;
        assert_eq!(cluster.read(3, (name, 0)).await, ["x"]);
        eventually("all replicas to be created", || {
            let state = cluster.broker(1).shared.catalog.state();
            let replicas = &state.topic(name).unwrap().partitions[0].replicas;
            let all = replicas.len() == 3 && replicas.iter().all(|replica| replica.state == ReplicaState::Created);
            if all { Ok(()) } else { Err(format!("{replicas:?}")) }
        })
        .await;
    }
}
