//! Kafka clients and a cluster of real brokers: what holds from one broker to the next, over a restart, and without a majority.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use pontoon::kafka::messages::*;
use tokio::net::TcpStream;

use crate::kafka_hostile::{Client, batch, produce_request};
use crate::support::member::{join, join_request};
use crate::support::{Cluster, PATIENCE};

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
    // A broker that is ready may have yet to be elected; whoever asks over HTTP waits for that.
    assert_eq!(cluster.get(1, "/v1/topics/t/partitions/0/offsets").await.0, reqwest::StatusCode::OK);
    let mut client = Client::connect_to(&cluster, 1).await;
    assert_eq!(client.produce(0, batch(b"after".to_vec())).await, (0, 3));
    let partitions = vec![LeaderEpochPartition { leader_epoch: 1, ..Default::default() }];
    let topics = vec![LeaderEpochTopic { topic: "t".into(), partitions }];
    let request = Request::OffsetForLeaderEpoch(OffsetForLeaderEpochRequest { topics, ..Default::default() });
    let Response::OffsetForLeaderEpoch(found) = client.call(request, 3).await else { panic!() };
    let found = &found.topics[0].partitions[0];
    assert_eq!((found.error_code, found.leader_epoch, found.end_offset), (0, 1, 3));
}

/// Since it was last heard of topics may have been made, and others have gone. Who asks is to ask another, or again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_with_an_old_catalog_and_no_controller_does_not_say_which_topics_there_are() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    cluster.stop(1);
    cluster.kill(2);
    cluster.kill(3);
    cluster.spawn(1);
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(cluster.kafka_address(1)).await.is_err() || !cluster.log(1).contains("started") {
        assert!(Instant::now() < deadline, "{}", cluster.log(1));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // By its old catalog it would be the only broker; who is told so asks nobody else.
    let metadata = |topics| Request::Metadata(MetadataRequest { topics, ..Default::default() });
    let named = metadata(Some(vec![MetadataTopicName { name: Some("t".into()), ..Default::default() }]));
    let all = metadata(None);
    for (request, version) in [(&named, 9), (&all, 1), (&all, 9), (&all, 12)] {
        let mut client = Client::connect_to(&cluster, 1).await;
        client.send(request, version).await;
        let told = client.receive(request.api(), version).await;
        assert!(told.is_none(), "{request:?}, version {version}, is answered with {told:?}");
    }
    assert!(cluster.log(1).contains("this broker does not know the cluster yet"), "{}", cluster.log(1));
}

/// Four requests that a leader has to ask its followers for, each of many partitions, also of several topics. They have frozen, and the
/// leader does not know it: it asks in vain for five seconds. One after the other they would take three minutes, topic by topic one; no
/// client waits for so long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_whose_followers_are_silent_are_waited_for_side_by_side() {
    const PARTITIONS: i32 = 3;
    const TOPICS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let cluster = Cluster::start_with(3, &["--set=raft.silence_max_ms=600000"]).await;
    let assignment = |partition_index| ReplicaAssignment { partition_index, broker_ids: vec![1, 2, 3] };
    let topic = |name: &str| CreatableTopic {
        name: name.into(),
        num_partitions: -1,
        replication_factor: -1,
        assignments: (0..PARTITIONS).map(assignment).collect(),
        ..Default::default()
    };
    let topics = TOPICS.into_iter().map(topic).collect();
    let create = CreateTopicsRequest { topics, timeout_ms: 30_000, validate_only: false };
    let mut client = Client::connect_to(&cluster, 1).await;
    let Response::CreateTopics(created) = client.call(Request::CreateTopics(create), 5).await else { panic!() };
    assert!(created.topics.iter().all(|topic| topic.error_code == 0), "{created:?}");
    for name in TOPICS {
        for partition in 0..PARTITIONS as u32 {
            // A disk that stalls for a moment has it lead by another for a while.
            let deadline = Instant::now() + PATIENCE;
            while cluster.leader(1, name, partition).await != 1 {
                assert!(Instant::now() < deadline, "{}", cluster.log(1));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            cluster.produce_text(1, name, partition, "x").await;
        }
    }
    cluster.pause(2);
    cluster.pause(3);
    let all = || 0..PARTITIONS;
    let latest = |partition| ListOffsetsPartition { partition, timestamp: -1, ..Default::default() };
    let epoch = |partition| LeaderEpochPartition { partition, leader_epoch: 1, ..Default::default() };
    let ahead = |partition| FetchPartition { partition, fetch_offset: 9, ..Default::default() };
    let delete = |partition| DeleteRecordsPartition { partition, offset: 1 };
    fn of_each<T>(topic: impl Fn(String) -> T) -> Vec<T> {
        TOPICS.iter().map(|name| topic((*name).to_owned())).collect()
    }
    let requests = [
        Request::ListOffsets(ListOffsetsRequest {
            topics: of_each(|name| ListOffsetsTopic { name, partitions: all().map(latest).collect() }),
            ..Default::default()
        }),
        Request::OffsetForLeaderEpoch(OffsetForLeaderEpochRequest {
            topics: of_each(|topic| LeaderEpochTopic { topic, partitions: all().map(epoch).collect() }),
            ..Default::default()
        }),
        Request::Fetch(FetchRequest {
            max_wait_ms: 100,
            max_bytes: 1 << 20,
            topics: of_each(|topic| {
                let partitions = all().map(ahead).collect();
                FetchTopic { topic, partitions, ..Default::default() }
            }),
            ..Default::default()
        }),
        Request::DeleteRecords(DeleteRecordsRequest {
            topics: of_each(|name| DeleteRecordsTopic { name, partitions: all().map(delete).collect() }),
            timeout_ms: 5000,
        }),
    ];
    let asked = requests.into_iter().zip([7, 3, 11, 2]).map(async |(request, version)| {
        let mut client = Client::connect_to(&cluster, 1).await;
        macro_rules! codes {
            ($told:ident) => {
                $told.topics.iter().flat_map(|topic| &topic.partitions).map(|one| one.error_code).collect()
            };
        }
        let codes: Vec<i16> = match client.call(request.clone(), version).await {
            Response::ListOffsets(told) => codes!(told),
            Response::OffsetForLeaderEpoch(told) => codes!(told),
            Response::Fetch(told) => codes!(told),
            Response::DeleteRecords(told) => codes!(told),
            other => panic!("{other:?}"),
        };
        (request.api().name, codes)
    });
    for (api, codes) in join_all(asked).await {
        assert!(codes.len() == PARTITIONS as usize * TOPICS.len() && !codes.contains(&0), "{api}: {codes:?}");
    }
}

/// Records that every replica must have are refused while one is away. Of how far a group has read that is not asked, whatever is said of
/// topics that say nothing themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_go_on_while_a_broker_is_away_though_records_need_every_replica() {
    let mut cluster = Cluster::start_with(3, &["--set=log.acks.floor=every"]).await;
    cluster.create_topic(1, "t", 1).await;
    let mut client = Client::connect_to(&cluster, 1).await;
    let deadline = Instant::now() + PATIENCE;
    let coordinator = loop {
        let request = FindCoordinatorRequest { key: "g".into(), ..Default::default() };
        let Response::FindCoordinator(found) = client.call(Request::FindCoordinator(request), 3).await else {
            panic!()
        };
        if found.error_code == 0 {
            break found.node_id as u32;
        }
        assert!(Instant::now() < deadline, "{found:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let mut client = Client::connect_to(&cluster, coordinator).await;
    let joined = join(&mut client, "g", "").await;
    let (group_id, member_id, generation_id) = (String::from("g"), joined.member_id, joined.generation_id);
    let sync = SyncGroupRequest {
        group_id: group_id.clone(),
        generation_id,
        member_id: member_id.clone(),
        ..Default::default()
    };
    let Response::SyncGroup(synced) = client.call(Request::SyncGroup(sync), 2).await else { panic!() };
    assert_eq!(synced.error_code, 0);
    cluster.kill(coordinator % 3 + 1);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let partition = OffsetCommitPartition { partition: 0, offset: 1, ..Default::default() };
        let topics = vec![OffsetCommitTopic { name: "t".into(), partitions: vec![partition] }];
        let (group_id, member_id) = (group_id.clone(), member_id.clone());
        let commit = OffsetCommitRequest { group_id, generation_id, member_id, topics, ..Default::default() };
        let Response::OffsetCommit(done) = client.call(Request::OffsetCommit(commit), 8).await else { panic!() };
        if done.topics[0].partitions[0].error_code == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{done:?} {}", cluster.log(coordinator));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asks the coordinator of group "g", whoever that is by now, of whom this broker hears; until one answers that knows the group.
async fn ask_coordinator(cluster: &Cluster, by: u32, dead: Option<u32>, request: Request) -> Response {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The one that is dead is named until another is elected.
        let coordinator = cluster.leader(by, "__consumer_offsets", 0).await;
        if Some(coordinator) != dead {
            let answer = Client::connect_to(cluster, coordinator).await.call(request.clone(), 3).await;
            let error = match &answer {
                Response::JoinGroup(joined) => joined.error_code,
                Response::SyncGroup(synced) => synced.error_code,
                Response::Heartbeat(beat) => beat.error_code,
                other => panic!("{other:?}"),
            };
            // It reads the log of groups, or leads no more.
            if ![14, 15, 16].contains(&error) {
                return answer;
            }
        }
        assert!(Instant::now() < deadline, "{}", cluster.log(by));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a member is asked for after a failover: it goes on where it was, without joining anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_outlives_its_coordinator() {
    const ILLEGAL_GENERATION: i16 = 22;
    const UNKNOWN_MEMBER_ID: i16 = 25;
    let mut cluster = Cluster::start_with(3, &["--set=offsets.topic.num.partitions=1"]).await;
    cluster.create_topic(1, "t", 1).await;
    let mut client = Client::connect_to(&cluster, 1).await;
    // Whoever asks for it makes the topic.
    let find = FindCoordinatorRequest { key: "g".into(), ..Default::default() };
    let deadline = Instant::now() + PATIENCE;
    while !matches!(client.call(Request::FindCoordinator(find.clone()), 3).await, Response::FindCoordinator(found) if found.error_code == 0)
    {
        assert!(Instant::now() < deadline, "{}", cluster.log(1));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let Response::JoinGroup(joined) = ask_coordinator(&cluster, 1, None, join_request("g", "")).await else { panic!() };
    let (id, generation) = (joined.member_id.as_str(), joined.generation_id);
    let sync = |assignments| {
        Request::SyncGroup(SyncGroupRequest {
            group_id: "g".into(),
            generation_id: generation,
            member_id: id.into(),
            assignments,
            ..Default::default()
        })
    };
    let given = SyncGroupAssignment { member_id: id.into(), assignment: "all of it".into() };
    let Response::SyncGroup(synced) = ask_coordinator(&cluster, 1, None, sync(vec![given])).await else { panic!() };
    assert_eq!((synced.error_code, &synced.assignment[..]), (0, &b"all of it"[..]));
    let dead = cluster.leader(1, "__consumer_offsets", 0).await;
    cluster.kill(dead);
    let ask = async |request| ask_coordinator(&cluster, dead % 3 + 1, Some(dead), request).await;
    let beat = async |member_id: &str, generation_id| {
        let member_id = member_id.to_owned();
        let heartbeat = HeartbeatRequest { group_id: "g".into(), generation_id, member_id, ..Default::default() };
        let Response::Heartbeat(beat) = ask(Request::Heartbeat(heartbeat)).await else { panic!() };
        beat.error_code
    };
    let beats = [beat(id, generation).await, beat(id, generation - 1).await, beat(id, generation + 1).await];
    assert_eq!(beats, [0, ILLEGAL_GENERATION, ILLEGAL_GENERATION]);
    assert_eq!(beat("nobody", generation).await, UNKNOWN_MEMBER_ID);
    let Response::SyncGroup(synced) = ask(sync(Vec::new())).await else { panic!() };
    assert_eq!((synced.error_code, &synced.assignment[..]), (0, &b"all of it"[..]));
}

/// KIP-951: who asks another broker is told at once who leads, and where that is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_a_follower_is_told_the_leader_and_its_address() {
    const NOT_LEADER_OR_FOLLOWER: i16 = 6;
    let cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let leader = cluster.leader(1, "t", 0).await;
        let mut client = Client::connect_to(&cluster, leader % 3 + 1).await;
        let port = |endpoints: Option<Vec<NodeEndpoint>>| {
            endpoints.map(|found| {
                found.iter().map(|at| (at.node_id, format!("{}:{}", at.host, at.port))).collect::<Vec<_>>()
            })
        };
        let mut told = Vec::new();
        for version in [9, 10, 12] {
            let request = produce_request(0, batch(b"x".to_vec()));
            let Response::Produce(mut answer) = client.call(request, version).await else { panic!() };
            let partition = answer.topics.remove(0).partitions.remove(0);
            told.push((partition.error_code, partition.current_leader, port(answer.node_endpoints)));
        }
        for version in [11, 12] {
            let partitions = vec![FetchPartition { partition_max_bytes: 1 << 20, ..Default::default() }];
            let topics = vec![FetchTopic { topic: "t".into(), partitions, ..Default::default() }];
            let request = Request::Fetch(FetchRequest { topics, ..Default::default() });
            let Response::Fetch(mut answer) = client.call(request, version).await else { panic!() };
            let partition = answer.topics.remove(0).partitions.remove(0);
            told.push((partition.error_code, partition.current_leader, port(answer.node_endpoints)));
        }
        // By the topic's id, there with the address too.
        let named = Some(vec![MetadataTopicName { name: Some("t".into()), ..Default::default() }]);
        let named = Request::Metadata(MetadataRequest { topics: named, ..Default::default() });
        let Response::Metadata(mut known) = client.call(named, 12).await else { panic!() };
        let partitions = vec![FetchPartition { partition_max_bytes: 1 << 20, ..Default::default() }];
        let topics = vec![FetchTopic { topic_id: known.topics.remove(0).topic_id, partitions, ..Default::default() }];
        let request = Request::Fetch(FetchRequest { topics, ..Default::default() });
        let Response::Fetch(mut answer) = client.call(request, 16).await else { panic!() };
        let partition = answer.topics.remove(0).partitions.remove(0);
        told.push((partition.error_code, partition.current_leader, port(answer.node_endpoints)));
        let epoch = told[1].1.as_ref().map_or(0, |leader| leader.leader_epoch);
        let leads = || Some(LeaderIdAndEpoch { leader_id: leader as i32, leader_epoch: epoch });
        let at = || Some(vec![(leader as i32, cluster.kafka_address(leader))]);
        let expected = [(None, None), (leads(), at()), (leads(), at()), (None, None), (leads(), None), (leads(), at())];
        let expected = expected.map(|(leader, at)| (NOT_LEADER_OR_FOLLOWER, leader, at));
        if told == expected && epoch > 0 {
            return;
        }
        // It may be led by another by now.
        assert!(Instant::now() < deadline, "{told:?} of {expected:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Without a controller every one of them takes all the time that it has; a client gives the request that much, not each. A tenth of a second
/// for each would be more than a client waits for an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_of_a_request_is_for_all_the_topics_that_it_names() {
    const TIMEOUT: Duration = Duration::from_secs(3);
    let mut cluster = Cluster::start_with(3, &["--set=auto.create.topics.enable=true"]).await;
    let names: Vec<String> = (0..500).map(|number| format!("t-{number}")).collect();
    // Of those that are there. The others it would have to ask for.
    let there = &names[..12];
    for name in there {
        cluster.create_topic(1, name, 1).await;
    }
    cluster.kill(2);
    cluster.kill(3);
    let deadline = Instant::now() + PATIENCE;
    while !cluster.get(1, "/v1/cluster").await.1["controller"].is_null() {
        assert!(Instant::now() < deadline, "{}", cluster.log(1));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut client = Client::connect_to(&cluster, 1).await;
    let timeout_ms = TIMEOUT.as_millis() as i32;
    let topic = |name: &String| CreatableTopic {
        name: format!("new-{name}"),
        num_partitions: 1,
        replication_factor: 1,
        ..Default::default()
    };
    let create = CreateTopicsRequest { topics: names.iter().map(topic).collect(), timeout_ms, validate_only: false };
    let delete = DeleteTopicsRequest { topic_names: names.clone(), timeout_ms, ..Default::default() };
    let more = |name: &String| MorePartitions { name: name.clone(), count: 2, assignments: None };
    let grow = CreatePartitionsRequest { topics: there.iter().map(more).collect(), timeout_ms, validate_only: false };
    let asked = |name: &String| MetadataTopicName { name: Some(format!("new-{name}")), ..Default::default() };
    let topics = Some(names.iter().map(asked).collect());
    let metadata = MetadataRequest { topics, allow_auto_topic_creation: true, ..Default::default() };
    for (request, version, count) in [
        (Request::CreateTopics(create), 5, names.len()),
        (Request::DeleteTopics(delete), 5, names.len()),
        (Request::CreatePartitions(grow), 1, there.len()),
        (Request::Metadata(metadata), 9, names.len()),
    ] {
        let codes: Vec<i16> = match client.call(request.clone(), version).await {
            Response::CreateTopics(told) => told.topics.iter().map(|one| one.error_code).collect(),
            Response::DeleteTopics(told) => told.topics.iter().map(|one| one.error_code).collect(),
            Response::CreatePartitions(told) => told.results.iter().map(|one| one.error_code).collect(),
            Response::Metadata(told) => told.topics.iter().map(|one| one.error_code).collect(),
            other => panic!("{other:?}"),
        };
        assert!(codes.len() == count && !codes.contains(&0), "{}: {codes:?}", request.api().name);
    }
}
