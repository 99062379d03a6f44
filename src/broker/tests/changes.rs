//! Changes of the catalog while brokers are away: what is said of them, and what becomes of them.

use std::time::Duration;

use super::cluster::Cluster;
use crate::broker::TopicSpec;
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
