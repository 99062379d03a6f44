//! Kafka clients and a cluster of real brokers: what holds from one broker to the next, and over a restart.

use pontoon::kafka::messages::{
    CreatableTopic, CreateTopicsRequest, DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsTopic,
    LeaderEpochPartition, LeaderEpochTopic, MetadataRequest, MetadataTopicName, OffsetForLeaderEpochRequest, Request,
    Response,
};

use crate::kafka_hostile::{Client, batch};
use crate::support::Cluster;

/// Of a topic that one broker says it has created the others know the leaders, too, whenever they are asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_created_is_led_whichever_broker_is_asked() {
    let cluster = Cluster::start(3).await;
    let mut clients = Vec::new();
    for broker in 1..=3 {
        clients.push(Client::connect_to(&cluster, broker).await);
    }
    for number in 0..30 {
        let name = format!("topic-{number}");
        let topic =
            CreatableTopic { name: name.clone(), num_partitions: 1, replication_factor: 1, ..Default::default() };
        let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 30_000, validate_only: false };
        let Response::CreateTopics(created) = clients[number % 3].call(Request::CreateTopics(request), 5).await else {
            panic!()
        };
        assert_eq!(created.topics[0].error_code, 0, "{created:?}");
        for client in &mut clients {
            // By name, or with all others.
            let named = Some(vec![MetadataTopicName { name: Some(name.clone()), ..Default::default() }]);
            let topics = named.filter(|_| number % 2 == 0);
            let request = Request::Metadata(MetadataRequest { topics, ..Default::default() });
            let Response::Metadata(metadata) = client.call(request, 9).await else { panic!() };
            let topic = metadata.topics.iter().find(|topic| topic.name.as_ref() == Some(&name)).unwrap();
            assert_eq!((topic.error_code, topic.partitions[0].error_code), (0, 0), "{metadata:?}");
        }
    }
}

/// A consumer that has read everything, and comes back after the rest was deleted, new records were written and the leader has changed:
/// it must not be told that the log was truncated, for then it begins at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_of_which_no_record_is_left_ends_where_the_log_begins() {
    let mut cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let mut client = Client::connect_to(&cluster, 1).await;
    for offset in 0..3 {
        assert_eq!(client.produce(0, batch(b"before".to_vec())).await, (0, offset));
    }
    let partitions = vec![DeleteRecordsPartition { partition: 0, offset: -1 }];
    let topics = vec![DeleteRecordsTopic { name: "t".into(), partitions }];
    let delete = Request::DeleteRecords(DeleteRecordsRequest { topics, timeout_ms: 30_000 });
    let Response::DeleteRecords(deleted) = client.call(delete, 2).await else { panic!() };
    assert_eq!(deleted.topics[0].partitions[0].low_watermark, 3);
    cluster.kill(1);
    cluster.restart(1).await;
    let mut client = Client::connect_to(&cluster, 1).await;
    assert_eq!(client.produce(0, batch(b"after".to_vec())).await, (0, 3));
    let partitions = vec![LeaderEpochPartition { leader_epoch: 1, ..Default::default() }];
    let topics = vec![LeaderEpochTopic { topic: "t".into(), partitions }];
    let request = Request::OffsetForLeaderEpoch(OffsetForLeaderEpochRequest { topics, ..Default::default() });
    let Response::OffsetForLeaderEpoch(found) = client.call(request, 3).await else { panic!() };
    let found = &found.topics[0].partitions[0];
    assert_eq!((found.error_code, found.leader_epoch, found.end_offset), (0, 1, 3));
}
