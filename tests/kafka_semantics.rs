//! What Kafka's brokers say in the corners that clients rely on: offsets of who is no member, what is named twice, what is only to be
//! checked, topics by id, and partitions that cannot answer beside some that can.

use std::time::Duration;

use bytes::Bytes;
use pontoon::kafka::messages::*;
use pontoon::record_batch::{BatchLimits, Header, NewRecord, ProducerSequence, RecordBatchBuilder};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::kafka_hostile::{Client, batch, packed, produce_request};
use crate::support::{Cluster, read};

/// Kafka's numbers of what is said here.
const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const OFFSET_METADATA_TOO_LARGE: i16 = 12;
const ILLEGAL_GENERATION: i16 = 22;
const INVALID_PARTITIONS: i16 = 37;
const INVALID_REQUEST: i16 = 42;
const UNKNOWN_TOPIC_ID: i16 = 100;
const TOPIC: i8 = 2;

macro_rules! answer {
    ($client:expr, $version:expr, $kind:ident($request:expr)) => {{
        let Response::$kind(answer) = $client.call(Request::$kind($request), $version).await else { panic!() };
        answer
    }};
}

/// Asks until a broker coordinates groups.
async fn coordinated(client: &mut Client) {
    loop {
        let request = FindCoordinatorRequest { key: "g".into(), ..Default::default() };
        if answer!(client, 3, FindCoordinator(request)).error_code == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The address that clients reach a broker under need not be the one that it listens on: behind a name, or another port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_told_the_address_that_is_advertised() {
    let mut cluster = Cluster::prepare(2, &[]);
    for id in 1..=2 {
        cluster.broker_mut(id).add_args(&["--kafka-advertised", &format!("broker-{id}.example:{}", 19000 + id)]);
    }
    cluster.restart_all(&[1, 2]).await;
    let expected = [1, 2].map(|id| (id, format!("broker-{id}.example"), 19000 + id));
    for id in 1..=2 {
        let mut client = Client::connect_to(&cluster, id).await;
        coordinated(&mut client).await;
        for version in [0, 9, 12] {
            let topics = Some(Vec::new()).filter(|_| version > 0);
            let metadata = answer!(client, version, Metadata(MetadataRequest { topics, ..Default::default() }));
            let mut told: Vec<_> =
                metadata.brokers.iter().map(|broker| (broker.node_id, broker.host.clone(), broker.port)).collect();
            told.sort();
            assert_eq!(told, expected, "broker {id}, version {version}");
        }
        for (version, group) in [(0, "g"), (3, "g"), (3, "another"), (3, "a third")] {
            let request = FindCoordinatorRequest { key: group.into(), ..Default::default() };
            let found = answer!(client, version, FindCoordinator(request));
            let told = (found.node_id, found.host, found.port);
            assert!(found.error_code == 0 && expected.contains(&told), "broker {id}, {group}: {told:?}");
        }
        let request = FindCoordinatorRequest { keys: vec!["g".into()], ..Default::default() };
        let found = answer!(client, 4, FindCoordinator(request)).coordinators.remove(0);
        assert!(expected.contains(&(found.node_id, found.host.clone(), found.port)), "broker {id}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_of_readers_by_assignment_are_taken_whatever_they_call_themselves() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 2).await;
    let mut client = Client::connect_to(&cluster, 1).await;
    coordinated(&mut client).await;
    let of = |partition, metadata: &str| OffsetCommitPartition {
        partition,
        offset: 7,
        metadata: Some(metadata.into()),
        ..Default::default()
    };
    let commit = |instance: Option<&str>, generation, partitions| OffsetCommitRequest {
        group_id: "g".into(),
        generation_id: generation,
        group_instance_id: instance.map(str::to_owned),
        topics: vec![OffsetCommitTopic { name: "t".into(), partitions }],
        ..Default::default()
    };
    let mut codes = Vec::new();
    for request in [
        commit(None, 3, vec![of(0, "")]),
        commit(Some("me"), -1, vec![of(0, "")]),
        commit(None, -1, vec![of(0, "kept"), of(1, &"m".repeat(5000))]),
    ] {
        // The groups' partition may just be loaded.
        let answered = loop {
            let answered = answer!(client, 7, OffsetCommit(request.clone()));
            match answered.topics[0].partitions[0].error_code {
                14 | 16 => tokio::time::sleep(Duration::from_millis(50)).await,
                _ => break answered,
            }
        };
        codes.push(answered.topics[0].partitions.iter().map(|partition| partition.error_code).collect::<Vec<_>>());
    }
    assert_eq!(codes, [vec![ILLEGAL_GENERATION], vec![0], vec![0, OFFSET_METADATA_TOO_LARGE]]);
    let topics = Some(vec![OffsetFetchTopic { name: "t".into(), partitions: vec![0, 1] }]);
    let request = OffsetFetchRequest { group_id: "g".into(), topics, ..Default::default() };
    let fetched = answer!(client, 7, OffsetFetch(request));
    let fetched: Vec<_> =
        fetched.topics[0].partitions.iter().map(|found| (found.offset, found.metadata.as_deref())).collect();
    assert_eq!(fetched, [(7, Some("kept")), (-1, Some(""))]);
    let gone = |topic: &str, partition| {
        let partitions = vec![OffsetDeletePartition { partition }];
        OffsetDeleteRequest { group_id: "g".into(), topics: vec![OffsetDeleteTopic { name: topic.into(), partitions }] }
    };
    for (topic, partition, expected) in
        [("t", 0, 0), ("t", 2, 3), ("t", -1, 3), ("nowhere", 0, UNKNOWN_TOPIC_OR_PARTITION)]
    {
        let deleted = answer!(client, 0, OffsetDelete(gone(topic, partition)));
        assert_eq!(deleted.topics[0].partitions[0].error_code, expected, "{topic} {partition}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_names_twice_is_not_done() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let mut client = Client::connect_to(&cluster, 1).await;
    assert_eq!(client.produce(0, batch(b"x".to_vec())).await, (0, 0));
    let by_time = |timestamp| ListOffsetsPartition { timestamp, ..Default::default() };
    let list = |partitions| ListOffsetsRequest {
        topics: vec![ListOffsetsTopic { name: "t".into(), partitions }],
        ..Default::default()
    };
    let listed = answer!(client, 7, ListOffsets(list(vec![by_time(-1)])));
    assert_eq!(listed.topics[0].partitions[0].offset, 1);
    let listed = answer!(client, 7, ListOffsets(list(vec![by_time(0), by_time(-3)])));
    assert!(listed.topics[0].partitions.iter().all(|found| found.error_code == INVALID_REQUEST), "{listed:?}");

    let more = |name: &str, count| MorePartitions { name: name.into(), count, assignments: None };
    let grow = |topics| CreatePartitionsRequest { topics, timeout_ms: 30_000, validate_only: true };
    for (topics, expected) in [
        (vec![more("t", 2)], 0),
        (vec![more("t", 1)], INVALID_PARTITIONS),
        (vec![more("t", 1_000_000)], INVALID_PARTITIONS),
        (vec![more("t", -1)], INVALID_PARTITIONS),
        (vec![more("t", 2), more("t", 3)], INVALID_REQUEST),
        (vec![more("nowhere", 2)], UNKNOWN_TOPIC_OR_PARTITION),
    ] {
        let grown = answer!(client, 1, CreatePartitions(grow(topics.clone())));
        assert!(grown.results.iter().all(|result| result.error_code == expected), "{topics:?}: {grown:?}");
    }

    let change = |value: Option<&str>| ConfigChange {
        name: "retention.ms".into(),
        operation: 0,
        value: value.map(str::to_owned),
    };
    let of = |configs| IncrementalResource { resource_type: TOPIC, resource_name: "t".into(), configs };
    for resources in [
        vec![of(vec![change(Some("1000")), change(Some("2000"))])],
        vec![of(vec![change(Some("1000"))]), of(vec![change(Some("2000"))])],
        vec![of(vec![change(None)])],
    ] {
        let request = IncrementalAlterConfigsRequest { resources: resources.clone(), validate_only: false };
        let altered = answer!(client, 1, IncrementalAlterConfigs(request));
        assert!(altered.responses.iter().all(|one| one.error_code == INVALID_REQUEST), "{resources:?}: {altered:?}");
    }
    let describe = |configuration_keys| DescribeConfigsRequest {
        resources: vec![DescribeConfigsResource {
            resource_type: TOPIC,
            resource_name: "t".into(),
            configuration_keys,
        }],
        ..Default::default()
    };
    let all = answer!(client, 4, DescribeConfigs(describe(None))).results.remove(0).configs;
    assert!(all.iter().any(|config| config.name == "retention.ms" && config.value.as_deref() != Some("1000")));
    assert_eq!(answer!(client, 4, DescribeConfigs(describe(Some(Vec::new())))).results.remove(0).configs, all);
    let one = answer!(client, 4, DescribeConfigs(describe(Some(vec!["retention.ms".into()]))));
    assert_eq!(one.results[0].configs.len(), 1);
}

async fn produce(client: &mut Client, batch: Bytes) -> ProducedPartition {
    let Response::Produce(mut answer) = client.call(produce_request(0, batch), 9).await else { panic!() };
    answer.topics.remove(0).partitions.remove(0)
}

/// What has no value, no key or a header without a value is told from what is empty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kafka_clients_leave_out_is_null_over_http() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let mut client = Client::connect_to(&cluster, 1).await;
    let mut builder = RecordBatchBuilder::new(BatchLimits::default());
    let header = |value: Option<&'static [u8]>| Header { key: "h".into(), value: value.map(Bytes::from_static) };
    for (key, value) in [(Some("k"), None), (None, Some("v")), (Some(""), Some("")), (None, None)] {
        let (key, value) = (key.map(Bytes::from), value.map(Bytes::from));
        builder.push(&NewRecord { timestamp: 7, key, value, headers: vec![header(None), header(Some(b""))] }).unwrap();
    }
    assert_eq!(client.produce(0, builder.build(None).unwrap().into_bytes()).await, (0, 0));
    let records = cluster.fetch_all(1, "t", 0).await;
    let record = |offset: u64, key: Value, value: Value| json!({"offset": offset, "timestamp": 7, "key": key, "value": value, "headers": [["h", null], ["h", ""]]});
    let null = || Value::Null;
    let expected = [
        record(0, json!("k"), null()),
        record(1, null(), json!("v")),
        record(2, json!(""), json!("")),
        record(3, null(), null()),
    ];
    assert_eq!(records, expected);
}

/// A producer's records are counted once, by whichever door it comes in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_known_whichever_way_it_comes() {
    const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let mut client = Client::connect_to(&cluster, 1).await;
    let (_, made) = cluster.ask(1, Method::POST, "/v1/producers", None).await;
    let by_kafka = answer!(client, 4, InitProducerId(InitProducerIdRequest::default()));
    let ids = [
        (made["producer_id"].as_i64().unwrap(), made["producer_epoch"].as_i64().unwrap() as i16),
        (by_kafka.producer_id, by_kafka.producer_epoch),
    ];
    assert_ne!(ids[0].0, ids[1].0);
    for ((producer_id, epoch), start) in ids.into_iter().zip([0, 3]) {
        let over_http = async |sequence: i32, count: usize| {
            let body = json!({"records": vec![json!({"value": "x"}); count]});
            let url = format!("{}/v1/topics/t/partitions/0/records", cluster.url(1));
            let request = cluster.http.post(url).json(&body).header("producer-id", producer_id);
            let request = request.header("producer-epoch", epoch).header("producer-sequence", sequence);
            let (status, body) = read(request.send().await.unwrap()).await;
            (status.as_u16(), body["base_offset"].as_i64(), body["duplicate"] == true)
        };
        let batch = |sequence, count: usize| {
            let mut builder = RecordBatchBuilder::new(BatchLimits::default());
            (0..count)
                .for_each(|_| builder.push(&NewRecord { value: Some("x".into()), ..Default::default() }).unwrap());
            builder.build(Some(ProducerSequence { producer_id, epoch, sequence })).unwrap().into_bytes()
        };
        assert_eq!(over_http(0, 2).await, (200, Some(start), false));
        assert_eq!(client.produce(0, batch(0, 2)).await, (0, start), "over Kafka once more");
        assert_eq!(client.produce(0, batch(2, 1)).await, (0, start + 2));
        assert_eq!(over_http(2, 1).await, (200, Some(start + 2), true), "over HTTP once more");
        assert_eq!(over_http(7, 1).await, (409, None, false));
        assert_eq!(client.produce(0, batch(7, 1)).await.0, OUT_OF_ORDER_SEQUENCE_NUMBER);
    }
    assert_eq!(cluster.fetch_all(1, "t", 0).await.len(), 6);
}

/// The timestamps of a partition's records, as HTTP tells them.
async fn timestamps(cluster: &Cluster) -> Vec<i64> {
    let records = cluster.fetch_all(1, "t", 0).await;
    records.iter().map(|record| record["timestamp"].as_i64().unwrap()).collect()
}

/// `LogAppendTime`: whatever a producer says and however its batch is compressed, records have the time of their append; the producer
/// is told, and so is whoever reads or seeks. Until the topic is altered, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_get_the_time_of_their_append_where_the_topic_says_so() {
    let cluster = Cluster::start(1).await;
    let config = json!({"message.timestamp.type": "LogAppendTime"});
    let topic = json!({"name": "t", "partitions": 1, "config": config});
    assert_eq!(cluster.post(1, "/v1/topics", topic).await.0, 201);
    cluster.leader(1, "t", 0).await;
    let mut client = Client::connect_to(&cluster, 1).await;

    let plain = batch(vec![7; 1000]);
    let zstd = packed(&plain, 4, zstd::stream::encode_all(&plain[61..], 3).unwrap());
    let mut told = Vec::new();
    for (offset, batch) in [plain, zstd.clone()].into_iter().enumerate() {
        let answer = produce(&mut client, batch).await;
        assert_eq!((answer.error_code, answer.base_offset), (0, offset as i64));
        told.push(answer.log_append_time_ms);
    }
    let records = json!({"records": [{"value": "x", "timestamp": 5}, {"value": "y"}]});
    assert_eq!(cluster.post(1, "/v1/topics/t/partitions/0/records", records).await.0, 200);
    let seen = timestamps(&cluster).await;
    assert_eq!(seen[..2], told, "the producer is told what others read");
    assert!(seen.len() == 4 && seen.iter().all(|time| *time > 5), "not the producers': {seen:?}");
    assert_eq!(seen[2], seen[3], "a batch is appended at one time");
    let values: Vec<_> =
        cluster.fetch_all(1, "t", 0).await.iter().map(|r| r["value"].as_str().unwrap().len()).collect();
    assert_eq!(values, [1000, 1000, 1, 1]);
    let (status, found) =
        cluster.get(1, &format!("/v1/topics/t/partitions/0/records?offset=timestamp:{}", told[0])).await;
    assert_eq!((status.as_u16(), &found["records"][0]["offset"]), (200, &json!(0)));

    let change = json!({"config": {"message.timestamp.type": "CreateTime"}});
    assert_eq!(cluster.ask(1, Method::PATCH, "/v1/topics/t", Some(change)).await.0, 200);
    let create_time = async {
        loop {
            let answer = produce(&mut client, zstd.clone()).await;
            assert_eq!(answer.error_code, 0);
            if answer.log_append_time_ms == -1 {
                return answer.base_offset as usize;
            }
        }
    };
    let offset = timeout(Duration::from_secs(20), create_time).await.expect("the topic was altered");
    assert_eq!(timestamps(&cluster).await[offset], 0, "its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_deleted_and_asked_for_by_id() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let mut client = Client::connect_to(&cluster, 1).await;
    let by_name = MetadataTopicName { name: Some("t".into()), ..Default::default() };
    let named = MetadataRequest { topics: Some(vec![by_name]), ..Default::default() };
    let topic_id = answer!(client, 12, Metadata(named)).topics.remove(0).topic_id;
    let delete = || DeleteTopicsRequest {
        topics: vec![DeletableTopic { name: None, topic_id }],
        timeout_ms: 30_000,
        ..Default::default()
    };
    let deleted = answer!(client, 6, DeleteTopics(delete())).topics.remove(0);
    assert_eq!((deleted.error_code, deleted.name.as_deref()), (0, Some("t")));
    // Another topic under that name is none of its business.
    cluster.create_topic(1, "t", 1).await;
    let again = answer!(client, 6, DeleteTopics(delete())).topics.remove(0);
    assert_eq!((again.error_code, again.topic_id), (UNKNOWN_TOPIC_ID, topic_id));
    assert_eq!(cluster.get(1, "/v1/topics/t").await.0, 200);
    // Before version 12 a topic always has a name.
    for (version, name) in [(10, Some("")), (12, None)] {
        let topics = Some(vec![MetadataTopicName { name: None, topic_id }]);
        let request = MetadataRequest { topics, ..Default::default() };
        let found = answer!(client, version, Metadata(request)).topics.remove(0);
        assert_eq!((found.error_code, found.name.as_deref()), (UNKNOWN_TOPIC_ID, name), "version {version}");
    }
}

/// A leader that has lost its majority may take seconds to say so of a partition. Of many it must not take minutes: clients wait half of
/// one. (Two things see to that: the detector is asked first, and partitions are asked side by side.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_partitions_without_a_majority_are_told_of_before_clients_give_up() {
    const PARTITIONS: i32 = 24;
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 3 * PARTITIONS as u32).await;
    let mut led = Vec::new();
    for partition in 0..3 * PARTITIONS {
        if cluster.leader(1, "t", partition as u32).await == 1 {
            led.push(partition);
        }
    }
    cluster.kill(2);
    cluster.kill(3);
    let mut client = Client::connect_to(&cluster, 1).await;
    let of = |partition| LeaderEpochPartition { partition, leader_epoch: 1, ..Default::default() };
    let topics = vec![LeaderEpochTopic { topic: "t".into(), partitions: led.iter().copied().map(of).collect() }];
    let epochs = Request::OffsetForLeaderEpoch(OffsetForLeaderEpochRequest { topics, ..Default::default() });
    let ahead = |partition| FetchPartition { partition, fetch_offset: 9, ..Default::default() };
    let topics = vec![FetchTopic {
        topic: "t".into(),
        partitions: led.iter().copied().map(ahead).collect(),
        ..Default::default()
    }];
    let fetch = Request::Fetch(FetchRequest {
        max_wait_ms: 500,
        min_bytes: 1,
        max_bytes: 1 << 20,
        topics,
        ..Default::default()
    });
    let delete = |partition| DeleteRecordsPartition { partition, offset: 0 };
    let topics = vec![DeleteRecordsTopic { name: "t".into(), partitions: led.iter().copied().map(delete).collect() }];
    let delete = Request::DeleteRecords(DeleteRecordsRequest { topics, timeout_ms: 5000 });
    for (request, version) in [(epochs, 3), (fetch, 11), (delete, 2)] {
        let answered = timeout(Duration::from_secs(30), client.call(request.clone(), version)).await;
        let codes: Vec<i16> = match answered.expect("an answer before clients give up") {
            Response::OffsetForLeaderEpoch(found) => {
                found.topics[0].partitions.iter().map(|one| one.error_code).collect()
            }
            Response::Fetch(found) => found.topics[0].partitions.iter().map(|one| one.error_code).collect(),
            Response::DeleteRecords(found) => found.topics[0].partitions.iter().map(|one| one.error_code).collect(),
            other => panic!("{other:?}"),
        };
        assert_eq!(codes.len(), led.len());
        assert!(codes.iter().all(|code| *code != 0), "{request:?}: {codes:?}");
    }
}
