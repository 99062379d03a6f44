//! Replicas that are lost: when they are replaced, and when they are not.

use std::collections::BTreeSet;

use pontoon_raft::types::{BrokerId, GroupId};

use super::cluster::{Cluster, eventually};
use crate::catalog::command::{BrokerRegistration, Command, Placement, Replacement, ReplicaReport};
use crate::catalog::state::{CatalogState, ReplicaRecord, ReplicaState};
use crate::controller::requests::ControlRequest;
use crate::controller::{CATALOG_GROUP, repair};

impl Cluster {
    /// Three brokers, and a partition of "t" with a replica on each; the controller, and one that is not.
    async fn with_topic() -> (Self, u32, u32) {
        let cluster = Self::started().await;
        cluster.await_catalog_voters(&[1, 2, 3]).await;
        cluster.create(1, "t", 1, 3).await;
        cluster.await_in_sync("t", 3).await;
        let created = |state: &CatalogState| (1..=3).all(|id| replica(state, id).state == ReplicaState::Created);
        cluster.await_catalog("its replicas", created).await;
        let controller = cluster.controller().await;
        let id = (1..=3).find(|id| *id != controller).unwrap();
        (cluster, controller, id)
    }
}

/// The partition's replica on a broker.
fn replica(state: &CatalogState, id: u32) -> ReplicaRecord {
    *state.topic("t").unwrap().partitions[0].on(BrokerId(id)).unwrap()
}

/// What is told of a replica that cannot be used.
fn lost(cluster: &Cluster, id: u32) -> ControlRequest {
    let other = cluster.brokers.values().next().unwrap();
    let state = other.shared.catalog.state();
    let group = state.topic("t").unwrap().partitions[0].group;
    let lost = vec![(group, replica(&state, id).replica, "rotten".to_owned())];
    ControlRequest::Report(ReplicaReport { lost, ..Default::default() })
}

/// A plan holds for the state that it was made of: that a replica is lost must not come between it and the replacement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_became_of_replicas_is_told_before_replacements_are_planned_or_after_they_are_made() {
    let (mut cluster, controller, id) = Cluster::with_topic().await;
    let shared = cluster.broker(controller).shared.clone();
    let before = replica(&shared.catalog.state(), id);
    // It cannot say that it runs.
    cluster.crash(id).await;
    let report = lost(&cluster, id);
    let turn = shared.controller.turn().await.unwrap();
    let controller = shared.controller.clone();
    let told = tokio::spawn(async move { controller.handle(report).await });
    // Meanwhile what nobody plans with is done.
    for _ in 0..3 {
        shared.controller.handle(ControlRequest::ProducerIds { count: 1 }).await.unwrap();
    }
    assert!(!told.is_finished());
    assert_eq!(replica(&shared.catalog.state(), id), before);
    drop(turn);
    told.await.unwrap().unwrap();
    cluster.await_catalog("its replacement", |state| replica(state, id).replica != before.replica).await;
}

/// A broker that came back a moment ago may have lost its disk, and with it the copy that was counted on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_given_up_for_a_process_that_has_not_said_which_disk_it_has() {
    let (mut cluster, controller, id) = Cluster::with_topic().await;
    let shared = cluster.broker(controller).shared.clone();
    let other = BrokerId((1..=3).find(|other| ![controller, id].contains(other)).unwrap());
    let (before, known) = (replica(&shared.catalog.state(), id), shared.catalog.state().brokers()[&other].clone());
    let is_here = |broker| shared.controller.is_here(broker);
    assert!((1..=3).map(BrokerId).all(is_here));
    cluster.crash(id).await;
    // Past the controller, which would ask that broker, and find it there.
    let registered = BrokerRegistration { incarnation: known.incarnation ^ 1, ..known.clone() };
    let group = shared.groups.get(CATALOG_GROUP).unwrap();
    group.propose(Command::RegisterBroker(registered).encode().into(), None).await.unwrap();
    assert!(!is_here(other) && is_here(BrokerId(controller)));
    shared.controller.handle(lost(&cluster, id)).await.unwrap();
    let state = shared.catalog.state();
    assert_eq!((replica(&state, id).state, replica(&state, id).replica), (ReplicaState::Lost, before.replica));
    assert_eq!(repair::plan(&state, &BTreeSet::new(), |_, broker| is_here(broker), |_, _| true), []);
    shared.controller.handle(ControlRequest::Register(known)).await.unwrap();
    cluster.await_catalog("its replacement", |state| replica(state, id).replica != before.replica).await;
}

/// Its core kept ending, say, and its broker was started again: it votes and acknowledges, and the others' copies may lack what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_lost_and_runs_again_is_counted_on_again() {
    let (cluster, controller, id) = Cluster::with_topic().await;
    let shared = cluster.broker(controller).shared.clone();
    let before = replica(&shared.catalog.state(), id);
    // Nobody replaces it meanwhile.
    let turn = shared.controller.turn().await.unwrap();
    let group = shared.groups.get(CATALOG_GROUP).unwrap();
    let ControlRequest::Report(report) = lost(&cluster, id) else { panic!() };
    group.propose(Command::Report(report).encode().into(), None).await.unwrap();
    cluster.await_catalog("its loss", |state| replica(state, id).state == ReplicaState::Lost).await;
    let told = replica(&shared.catalog.state(), id);
    assert_eq!((told.replica, told.state), (before.replica, ReplicaState::Lost));
    drop(turn);
    let settled = |state: &CatalogState| replica(state, id).state == ReplicaState::Created;
    cluster.await_catalog("its return", settled).await;
    assert_eq!(cluster.broker(controller).topic("t").unwrap().partitions[0].lost, []);
}

/// It ran to the end, whatever the catalog says: until the newcomer has everything it is one copy more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_ran_until_it_was_replaced_is_kept() {
    let (cluster, controller, id) = Cluster::with_topic().await;
    cluster.produce(controller, ("t", 0), "x").await.unwrap();
    let shared = cluster.broker(controller).shared.clone();
    let state = shared.catalog.state();
    let (old, group) = (replica(&state, id), state.topic("t").unwrap().partitions[0].group);
    let new = Placement { broker: old.broker, directory: old.directory, replica: state.next_replica() };
    let replacements = vec![Replacement { group, old: old.replica, new }];
    let catalog = shared.groups.get(CATALOG_GROUP).unwrap();
    catalog.propose(Command::ReplaceReplicas { replacements }.encode().into(), None).await.unwrap();
    cluster.await_in_sync("t", 3).await;
    cluster.await_catalog("the newcomer", |state| replica(state, id).state == ReplicaState::Created).await;
    let kept = cluster.broker(id).shared.store.quarantined();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(cluster.read(id, ("t", 0)).await, ["x"]);
}

/// What one of them is still to get may be on a single disk beside the lost one's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_away_is_not_counted_on_before_it_has_everything_again() {
    let (mut cluster, controller, id) = Cluster::with_topic().await;
    let shared = cluster.broker(controller).shared.clone();
    let group = shared.catalog.state().topic("t").unwrap().partitions[0].group;
    let level = |broker: u32, expected: bool| {
        let shared = &shared;
        move || match shared.is_level(group, BrokerId(broker)) == expected {
            true => Ok(()),
            false => Err(format!("broker {broker} is level: {}", !expected)),
        }
    };
    eventually("all to be level", level(id, true)).await;
    cluster.crash(id).await;
    eventually("the one that is away not to be", level(id, false)).await;
    for value in ["a", "b"] {
        cluster.produce(controller, ("t", 0), value).await.unwrap();
    }
    // Perhaps by what another leader says.
    eventually("the controller's to be", level(controller, true)).await;
    assert!(!shared.is_level(group, BrokerId(id)));
    assert!(!shared.is_level(GroupId(999), BrokerId(controller)), "of what nobody leads nothing is known");
    cluster.start(id).await;
    eventually("it to be level again", level(id, true)).await;
}
