//! How long committed offsets of consumer groups are kept, on brokers that run: the shortest retention that can be set is a minute, and
//! this one test waits for it.

use std::time::{Duration, SystemTime};

use pontoon::kafka::messages::{
    OffsetCommitPartition, OffsetCommitRequest, OffsetCommitTopic, Request, Response, SyncGroupRequest,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::kafka_hostile::Client;
use crate::support::Cluster;
use crate::support::member::{join, leave};

const RETENTION: Duration = Duration::from_secs(60);
/// Longest that it is waited for, on a busy machine and over a failover.
const PATIENCE: Duration = Duration::from_secs(120);

fn one_offset() -> Value {
    json!({"offsets": [{"topic": "t", "partition": 0, "offset": 1, "metadata": ""}]})
}

async fn put(cluster: &Cluster, id: u32, group: &str) -> StatusCode {
    cluster.ask(id, Method::PUT, &format!("/v1/groups/{group}/offsets"), Some(one_offset())).await.0
}

/// What a group has committed; nothing while no broker can say.
async fn committed(cluster: &Cluster, id: u32, group: &str) -> Option<Value> {
    let (status, body) = cluster.get(id, &format!("/v1/groups/{group}/offsets")).await;
    Some(body).filter(|_| status == StatusCode::OK)
}

/// A member, alone in its group, that commits an offset and asks for it to be kept no longer than a millisecond: as in Kafka since
/// version 5 of that request, it is not for clients to say. Its id.
async fn join_and_commit(client: &mut Client, group: &str) -> String {
    let joined = join(client, group, "").await;
    let (member_id, generation_id) = (joined.member_id.clone(), joined.generation_id);
    let sync =
        SyncGroupRequest { group_id: group.into(), generation_id, member_id: member_id.clone(), ..Default::default() };
    let Response::SyncGroup(synced) = client.call(Request::SyncGroup(sync), 2).await else { panic!() };
    let partition = OffsetCommitPartition { partition: 0, offset: 1, metadata: Some("".into()), ..Default::default() };
    let commit = OffsetCommitRequest {
        group_id: group.into(),
        generation_id,
        member_id: member_id.clone(),
        retention_time_ms: 1,
        topics: vec![OffsetCommitTopic { name: "t".into(), partitions: vec![partition] }],
        ..Default::default()
    };
    let Response::OffsetCommit(done) = client.call(Request::OffsetCommit(commit), 4).await else { panic!() };
    let codes = (synced.error_code, done.topics[0].partitions[0].error_code);
    assert_eq!(codes, (0, 0), "{synced:?} {done:?}");
    member_id
}

/// By the clock that the brokers go by.
fn since(then: SystemTime) -> Duration {
    then.elapsed().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_go_a_minute_after_the_last_who_cared_for_them_whoever_coordinates() {
    let settings = [
        "--set=offsets.retention.minutes=1",
        "--set=offsets.retention.check.interval.ms=200",
        "--set=offsets.topic.num.partitions=1",
    ];
    let mut cluster = Cluster::start_with(3, &settings).await;
    cluster.create_topic(1, "t", 1).await;
    let put_at = SystemTime::now();
    assert_eq!(put(&cluster, 1, "from-outside").await, StatusCode::NO_CONTENT);
    let coordinator = cluster.leader(1, "__consumer_offsets", 0).await;
    let mut client = Client::connect_to(&cluster, coordinator).await;
    let member = join_and_commit(&mut client, "left").await;
    join_and_commit(&mut client, "with-a-member").await;
    let left_at = SystemTime::now();
    leave(&mut client, "left", member).await;
    // Whoever comes next goes by what is in the log.
    cluster.kill(coordinator);
    let other = coordinator % 3 + 1;
    cluster.restart(coordinator).await;

    // Until both are gone: when the one was put, when the last member left the other.
    let mut waiting = vec![("from-outside", put_at), ("left", left_at)];
    while !waiting.is_empty() {
        let renewed = put(&cluster, other, "renewed").await;
        assert!(renewed == StatusCode::NO_CONTENT || renewed.is_server_error(), "{renewed}");
        let mut left = Vec::new();
        for (group, last) in waiting {
            match committed(&cluster, other, group).await {
                Some(offsets) if offsets == json!({"offsets": []}) => {
                    assert!(since(last) >= RETENTION, "{group} is gone after {:?}", since(last));
                    let (status, body) = cluster.get(other, &format!("/v1/groups/{group}")).await;
                    assert_eq!((status.as_u16(), &body["error"]), (404, &json!("UNKNOWN_GROUP")), "{body}");
                }
                known => {
                    assert!(known.is_none_or(|offsets| offsets == one_offset()));
                    assert!(since(last) < PATIENCE, "{group} is still there after {:?}", since(last));
                    left.push((group, last));
                }
            }
        }
        waiting = left;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let kept = async |cluster: &Cluster, id: u32| {
        for group in ["renewed", "with-a-member"] {
            assert_eq!(committed(cluster, id, group).await, Some(one_offset()), "{group}");
        }
        let list = loop {
            let (_, list) = cluster.get(id, "/v1/groups").await;
            if list["unavailable"] == json!([]) {
                break list;
            }
            assert!(since(put_at) < 2 * PATIENCE, "{list}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let names: Vec<_> = list["groups"].as_array().unwrap().iter().map(|group| group["group"].clone()).collect();
        assert_eq!(names, ["renewed", "with-a-member"], "{list}");
    };
    kept(&cluster, other).await;
    // What is gone is gone for the next coordinator, too.
    let coordinator = cluster.leader(other, "__consumer_offsets", 0).await;
    cluster.kill(coordinator);
    cluster.restart(coordinator).await;
    kept(&cluster, coordinator).await;
}
