//! Changes of the catalog while brokers are away: what is said of them, and what becomes of them.

use std::time::Duration;

use super::cluster::Cluster;
use crate::broker::TopicSpec;
use crate::catalog::command::ReplicaReport;
use crate::catalog::state::CatalogState;
use crate::controller::requests::ControlRequest;
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

/// A plan holds for the state that it was made of: that a replica is lost must not come between it and the replacement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_became_of_replicas_is_told_before_replacements_are_planned_or_after_they_are_made() {
    let cluster = Cluster::started().await;
    cluster.create(1, "t", 1, 3).await;
    let shared = cluster.broker(cluster.controller().await).shared.clone();
    let replica = |state: &CatalogState| state.topic("t").unwrap().partitions[0].replicas[2];
    let partition = shared.catalog.state().topic("t").unwrap().partitions[0].clone();
    let lost = vec![(partition.group, partition.replicas[2].replica, "rotten".to_owned())];
    let report = ControlRequest::Report(ReplicaReport { lost, ..Default::default() });
    let turn = shared.controller.turn().await.unwrap();
    let controller = shared.controller.clone();
    let told = tokio::spawn(async move { controller.handle(report).await });
    // Meanwhile what nobody plans with is done.
    for _ in 0..3 {
        shared.controller.handle(ControlRequest::ProducerIds { count: 1 }).await.unwrap();
    }
    assert!(!told.is_finished());
    assert_eq!(replica(&shared.catalog.state()), partition.replicas[2]);
    drop(turn);
    told.await.unwrap().unwrap();
    cluster.await_catalog("its replacement", |state| replica(state).replica != partition.replicas[2].replica).await;
}
