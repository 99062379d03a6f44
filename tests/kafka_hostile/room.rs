//! Room: what is held for clients is bounded, and nobody keeps it from the others by sitting on it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use pontoon::kafka::messages::{
    Api, CreatableTopic, CreateTopicsRequest, CreatedTopic, DescribeGroupsRequest, FetchTopic, FindCoordinatorRequest,
    JoinGroupResponse, ListGroupsRequest, MetadataRequest, MetadataTopicName, OffsetCommitPartition,
    OffsetCommitRequest, OffsetCommitTopic, OffsetDeletePartition, OffsetDeleteRequest, OffsetDeleteTopic,
    OffsetFetchGroup, OffsetFetchRequest, OffsetFetchTopic, ProducePartition, ProduceRequest, ProduceTopic, Request,
    Response, SyncGroupAssignment, SyncGroupRequest,
};
use pontoon::kafka::wire::{RecordData, Uuid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::{Client, await_log, batch, fetch_request, forget_peak, frame, peak_bytes, produce_request};
use crate::support::member::join;
use crate::support::{Cluster, PATIENCE};

/// A broker with little room, so that it runs short soon. Whoever is closed is so because of what it does, not because time is over.
const SMALL: &[&str] = &[
    "--set=socket.request.max.bytes=4194304",
    "--set=limits.request_bytes_max=4194304",
    "--set=limits.inflight_bytes_max=8388608",
    "--set=limits.body_timeout_ms=3600000",
    "--set=limits.write_timeout_ms=3600000",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_many_elements_take_memory_that_is_counted() {
    let args = [
        "--set=limits.request_bytes_max=1048576",
        "--set=limits.inflight_bytes_max=1048576",
        "--set=limits.record_bytes_max=1000000",
    ];
    let cluster = Cluster::start_with(1, &args).await;
    cluster.create_topic(1, "t", 1).await;
    let before = forget_peak(&cluster);
    // As many elements as possible in as few bytes: empty names. 40 bytes in memory for each.
    let name = MetadataTopicName { name: Some(String::new()), ..Default::default() };
    let dense =
        |count| Request::Metadata(MetadataRequest { topics: Some(vec![name.clone(); count]), ..Default::default() });
    let attacks = (0..64).map(async |_| {
        let mut hostile = Client::connect(&cluster).await;
        hostile.send(&dense(190_000), 8).await;
        hostile.closed().await;
    });
    join_all(attacks).await;
    await_log(&cluster, "array elements in so short a message").await;
    // Those that are let in hold no more together than there is room for; the others wait for their turn.
    let waiting = (0..12).map(async |_| {
        let mut patient = Client::connect(&cluster).await;
        let request = fetch_request(5000, Duration::from_millis(100));
        patient.call(request, 4).await
    });
    for answer in join_all(waiting).await {
        let Response::Fetch(answer) = answer else { panic!() };
        assert!(answer.topics[0].partitions.iter().all(|partition| partition.error_code == 42), "named twice");
    }
    let grown = peak_bytes(&cluster).saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB", grown >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sits_on_room_that_others_need_loses_it() {
    let cluster = Cluster::start_with(1, SMALL).await;
    cluster.create_topic(1, "t", 1).await;
    let mut held = Vec::new();
    for _ in 0..24 {
        let mut hostile = Client::connect(&cluster).await;
        // Enough of a large frame for all of its room.
        let part = [&(4i32 << 20).to_be_bytes()[..], &[0; 100 << 10]].concat();
        hostile.stream.write_all(&part).await.unwrap();
        held.push(hostile);
    }
    for round in 0..3 {
        let mut honest = Client::connect(&cluster).await;
        assert_eq!(honest.produce(0, batch(vec![7; 1 << 19])).await, (0, round));
    }
    await_log(&cluster, "others wait for the room that it holds").await;
    await_log(&cluster, "of a frame's 4194304 bytes").await;
}

/// A broker with little room, and a client that has written 8 MiB.
async fn with_much_to_read() -> (Cluster, Client) {
    let cluster = Cluster::start_with(1, SMALL).await;
    cluster.create_topic(1, "t", 1).await;
    let mut honest = Client::connect(&cluster).await;
    for offset in 0..16 {
        assert_eq!(honest.produce(0, batch(vec![7; 1 << 19])).await, (0, offset));
    }
    (cluster, honest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_no_answers_loses_the_room_they_take() {
    let (cluster, mut honest) = with_much_to_read().await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut hostile = Client::connect_small(&cluster).await;
        let mut request = fetch_request(1, Duration::ZERO);
        if let Request::Fetch(fetch) = &mut request {
            fetch.min_bytes = 1;
        }
        // More than the kernel takes for a client that reads nothing.
        for _ in 0..4 {
            hostile.send(&request, 12).await;
        }
        held.push(hostile);
    }
    let Response::Fetch(answer) = honest.call(fetch_request(1, Duration::ZERO), 12).await else { panic!() };
    assert!(answer.topics[0].partitions[0].records.0.iter().flatten().map(Bytes::len).sum::<usize>() > 1 << 20);
    await_log(&cluster, "bytes of an answer, ").await;
}

/// Clients that wait for records for minutes, with as much room as their requests can take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_records_keeps_no_room_from_others() {
    const LONG: Duration = Duration::from_secs(300);
    let cluster = Cluster::start_with(1, SMALL).await;
    cluster.create_topic(1, "t", 1).await;
    let mut honest = Client::connect(&cluster).await;
    assert_eq!(honest.produce(0, batch(b"first".to_vec())).await, (0, 0));
    let fetch = |partitions| frame(&fetch_request(partitions, LONG), 4, 1);
    let mut many = fetch_request(1, LONG);
    if let Request::Fetch(many) = &mut many {
        let nowhere = FetchTopic { topic: "nowhere".into(), ..Default::default() };
        many.topics.extend(std::iter::repeat_n(nowhere, 60_000));
    }
    let mut padded = [&fetch(1)[..], &vec![0; 3 << 20]].concat();
    let length = (padded.len() - 4) as u32;
    padded[..4].copy_from_slice(&length.to_be_bytes());
    let mut held = Vec::new();
    let cases = [
        ("a partition, again and again", fetch(60_000)),
        ("topics without partitions", frame(&many, 4, 1)),
        ("bytes behind the request", padded.into()),
    ];
    for ((what, bytes), offset) in cases.into_iter().zip(1..) {
        for _ in 0..12 {
            let mut hostile = Client::connect(&cluster).await;
            // Who finds no room is not read: the honest one must not wait for that.
            let bytes = bytes.clone();
            held.push(tokio::spawn(async move {
                let _ = hostile.stream.write_all(&bytes).await;
                std::future::pending::<()>().await;
                drop(hostile);
            }));
        }
        // Large enough to need the room that large frames need, and behind those that are there by now.
        for step in 0..3 {
            let produced = honest.produce(0, batch(vec![7; 1 << 19])).await;
            assert_eq!(produced, (0, 3 * offset + step - 2), "{what}");
        }
    }
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Requests that stand behind answers that nobody reads hold room, too, and so do the answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_no_answers_loses_the_room_of_what_stands_behind_them() {
    let cluster = Cluster::start_with(1, SMALL).await;
    cluster.create_topic(1, "t", 1).await;
    let mut honest = Client::connect(&cluster).await;
    // Answered with the names.
    let named = |number| ProduceTopic {
        name: format!("{number}{}", "x".repeat(32_000)),
        partitions: vec![ProducePartition { index: 0, records: RecordData::some(vec![Bytes::new()]) }],
        ..Default::default()
    };
    let topics = (0..32).map(named).collect();
    let request = Request::Produce(ProduceRequest { acks: -1, timeout_ms: 1000, topics, ..Default::default() });
    let mut hostile = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (mut client, request) = (Client::connect_small(&cluster).await, frame(&request, 9, 1));
        hostile.spawn(async move { while client.stream.write_all(&request).await.is_ok() {} });
    }
    for offset in 0..5 {
        assert_eq!(honest.produce(0, batch(vec![7; 1 << 19])).await, (0, offset));
    }
    await_log(&cluster, "bytes of an answer, ").await;
    hostile.shutdown().await;
}

/// A client that reads a little now and then holds what it was given; others have to wait for the same room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_answers_by_the_drop_loses_the_room_they_take() {
    let (cluster, mut honest) = with_much_to_read().await;
    let mut slow = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let mut hostile = Client::connect_small(&cluster).await;
        for _ in 0..4 {
            hostile.send(&fetch_request(1, Duration::ZERO), 12).await;
        }
        slow.spawn(async move {
            let mut drop = [0; 1024];
            while matches!(hostile.stream.read(&mut drop).await, Ok(1..)) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    for _ in 0..3 {
        let Response::Fetch(answer) = honest.call(fetch_request(1, Duration::ZERO), 12).await else { panic!() };
        let answer = &answer.topics[0].partitions[0];
        assert!(!answer.records.0.iter().flatten().all(Bytes::is_empty), "{answer:?}");
    }
    await_log(&cluster, "bytes of an answer, ").await;
    slow.shutdown().await;
}

/// What Kafka's own limits allow: as much as one client may send at once to all partitions of a broker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_as_large_as_kafkas_is_served() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 20).await;
    let partition = |index| ProducePartition { index, records: RecordData::some(vec![batch(vec![7; 1_000_000])]) };
    let topics =
        vec![ProduceTopic { name: "t".into(), partitions: (0..20).map(partition).collect(), ..Default::default() }];
    let request = Request::Produce(ProduceRequest { acks: -1, timeout_ms: 30_000, topics, ..Default::default() });
    let Response::Produce(answer) = Client::connect(&cluster).await.call(request, 9).await else { panic!() };
    assert!(
        answer.topics[0].partitions.iter().all(|partition| (partition.error_code, partition.base_offset) == (0, 0))
    );
}

const GROUP: &str = "a-group-of-consumers";
/// Partitions of `t`, and of what the group has committed.
const PARTITIONS: u32 = 100;

async fn make_coordinator(client: &mut Client) {
    let keys = vec![GROUP.to_owned()];
    let found = client.call(Request::FindCoordinator(FindCoordinatorRequest { keys, ..Default::default() }), 4).await;
    let Response::FindCoordinator(found) = found else { panic!() };
    assert_eq!(found.coordinators[0].error_code, 0);
}

/// Makes a group of which there is something to tell: 100 offsets with 128 bytes of metadata each, and a member with 8 KiB. Told 20 000
/// times that would be more than 256 MiB. The member is assigned as many topics without a name and without partitions as it may be.
async fn make_group(client: &mut Client) {
    make_coordinator(client).await;
    let partition = |partition| OffsetCommitPartition {
        partition,
        offset: 7,
        metadata: Some("m".repeat(128)),
        ..Default::default()
    };
    let partitions = (0..PARTITIONS as i32).map(partition).collect();
    let topics = vec![OffsetCommitTopic { name: "t".into(), partitions }];
    let request = Request::OffsetCommit(OffsetCommitRequest { group_id: GROUP.into(), topics, ..Default::default() });
    let Response::OffsetCommit(committed) = client.call(request, 8).await else { panic!() };
    assert!(committed.topics[0].partitions.iter().all(|partition| partition.error_code == 0), "{committed:?}");
    let metadata = Bytes::from(vec![7; 8 << 10]);
    let joined = join(client, GROUP, metadata).await;
    let count = (8 << 20) / 6 - 1;
    let assignment = [&[0, 0][..], &i32::to_be_bytes(count), &vec![0; 6 * count as usize]].concat().into();
    assign(client, joined, assignment).await;
}

/// The leader of a group of one gives itself its assignment.
async fn assign(client: &mut Client, joined: JoinGroupResponse, assignment: Bytes) {
    let assignment = SyncGroupAssignment { member_id: joined.member_id.clone(), assignment };
    let sync = SyncGroupRequest {
        group_id: GROUP.into(),
        generation_id: joined.generation_id,
        member_id: joined.member_id,
        assignments: vec![assignment],
        ..Default::default()
    };
    let Response::SyncGroup(synced) = client.call(Request::SyncGroup(sync), 3).await else { panic!() };
    assert_eq!(synced.error_code, 0);
}

/// That an answer tells all of the group, and tells it once.
fn told_once(what: &str, answer: &Response) {
    match answer {
        Response::CreateTopics(answer) => {
            let told = |topic: &CreatedTopic| (topic.error_code, topic.configs.as_ref().map_or(0, Vec::len));
            assert!(answer.topics.iter().all(|topic| told(topic) == (44, 0)), "{what}: {:?}", answer.topics[0]);
        }
        Response::OffsetFetch(answer) if what.starts_with("all offsets") => {
            let told: Vec<usize> =
                answer.groups.iter().flat_map(|group| &group.topics).map(|topic| topic.partitions.len()).collect();
            let partition = &answer.groups[0].topics[0].partitions[0];
            assert_eq!((told, partition.offset), (vec![PARTITIONS as usize], 7), "{what}");
            assert_eq!(partition.metadata.as_ref().map(String::len), Some(128));
        }
        Response::ListGroups(answer) => {
            let groups: Vec<_> =
                answer.groups.iter().map(|group| (&group.group_id[..], &group.group_state[..])).collect();
            assert_eq!(groups, [(GROUP, "Stable")], "{what}");
        }
        Response::DescribeGroups(answer) => {
            let members: Vec<_> = answer.groups.iter().flat_map(|group| &group.members).collect();
            assert_eq!(
                (answer.groups.len(), members.len(), members[0].member_metadata.len()),
                (1, 1, 8 << 10),
                "{what}"
            );
        }
        _ => {}
    }
}

/// Requests that ask for very much in few bytes, each with its version.
fn greedy_requests() -> Vec<(&'static str, i16, Request)> {
    const MANY: usize = 190_000;
    let long = "x".repeat(32_000);
    let partitions = || (0..MANY as i32).collect::<Vec<_>>();
    let produced = |name: &str| {
        let partition = |index| ProducePartition { index, records: RecordData::some(Vec::new()) };
        let partitions = partitions().into_iter().map(partition).collect();
        vec![ProduceTopic { name: name.into(), partitions, ..Default::default() }]
    };
    let produce = |id: Option<&str>, name: &str, acks| {
        let transactional_id = id.map(Into::into);
        Request::Produce(ProduceRequest { transactional_id, acks, timeout_ms: 1, topics: produced(name) })
    };
    let offsets = |name: &str, partitions| OffsetFetchTopic { name: name.into(), partitions };
    let fetch_offsets = |topics| OffsetFetchGroup { group_id: GROUP.into(), topics, ..Default::default() };
    let forget = |name: &str| {
        let partitions = partitions().into_iter().map(|partition| OffsetDeletePartition { partition }).collect();
        OffsetDeleteRequest { group_id: "g".into(), topics: vec![OffsetDeleteTopic { name: name.into(), partitions }] }
    };
    let wanted = |number| CreatableTopic {
        name: format!("t{number}"),
        num_partitions: -1,
        replication_factor: -1,
        ..Default::default()
    };
    // Each with another id, which does not count beside a name.
    let described = |id: u128| MetadataTopicName { name: Some("t".into()), topic_id: Uuid(id) };
    vec![
        (
            "a group's offsets",
            8,
            Request::OffsetFetch(OffsetFetchRequest {
                groups: vec![fetch_offsets(Some(vec![offsets(&long, partitions())]))],
                ..Default::default()
            }),
        ),
        (
            "a group's offsets, as they were asked for before",
            5,
            Request::OffsetFetch(OffsetFetchRequest {
                group_id: "g".into(),
                topics: Some(vec![offsets(&long, partitions())]),
                ..Default::default()
            }),
        ),
        (
            "all offsets of a group, again and again",
            8,
            Request::OffsetFetch(OffsetFetchRequest {
                groups: vec![fetch_offsets(None); 20_000],
                ..Default::default()
            }),
        ),
        ("offsets to forget", 0, Request::OffsetDelete(forget(&long))),
        ("a transaction", 9, produce(Some(&long), "t", -1)),
        ("partitions of a topic that is not there", 9, produce(None, &long, -1)),
        ("partitions that are not there", 9, produce(None, "t", -1)),
        ("acks that are not there", 9, produce(None, "t", 7)),
        (
            "a topic, again and again",
            12,
            Request::Metadata(MetadataRequest {
                topics: Some((1..60_000).map(described).collect()),
                ..Default::default()
            }),
        ),
        (
            "topics that would be created",
            7,
            Request::CreateTopics(CreateTopicsRequest {
                topics: (0..MANY).map(wanted).collect(),
                timeout_ms: 30_000,
                validate_only: true,
            }),
        ),
        ("all groups", 4, Request::ListGroups(ListGroupsRequest::default())),
        (
            "a group, again and again",
            5,
            Request::DescribeGroups(DescribeGroupsRequest {
                groups: vec![GROUP.to_owned(); MANY / 4],
                ..Default::default()
            }),
        ),
    ]
}

/// A name is said once and meant for very many partitions; a group or a topic can be named again and again. What is held for an answer
/// must not be the one times the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_frame_that_names_very_much_takes_little_memory() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", PARTITIONS).await;
    let mut honest = Client::connect(&cluster).await;
    assert_eq!(honest.produce(0, batch(b"first".to_vec())).await, (0, 0));
    make_group(&mut honest).await;
    for (what, version, request) in greedy_requests() {
        let bytes = frame(&request, version, 0).len() as u64;
        let before = forget_peak(&cluster);
        let mut hostile = Client::connect(&cluster).await;
        hostile.send(&request, version).await;
        let answer = hostile.receive(request.api(), version).await;
        let answer = answer.unwrap_or_else(|| panic!("{what}: {}", cluster.log(1)));
        told_once(what, &answer);
        let grown = peak_bytes(&cluster).saturating_sub(before);
        assert!(grown < (96 << 20), "{what}: {} KiB for a frame of {} KiB", grown >> 10, bytes >> 10);
    }
    assert_eq!(honest.produce(0, batch(b"second".to_vec())).await, (0, 1));
}

/// A group whose only member has so much to say, and is assigned as much.
async fn make_large_group(client: &mut Client, bytes: usize) {
    make_coordinator(client).await;
    let joined = join(client, GROUP, vec![7; bytes]).await;
    assign(client, joined, vec![7; bytes].into()).await;
}

/// Who asks for much in a few bytes, and reads nothing, holds no more of it together than there is room for, and loses that to who waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_about_groups_that_nobody_reads_take_no_more_than_there_is_room_for() {
    let args = [
        "--set=socket.request.max.bytes=8388608",
        "--set=limits.inflight_bytes_max=33554432",
        "--set=limits.write_timeout_ms=3600000",
    ];
    let cluster = Cluster::start_with(1, &args).await;
    let mut honest = Client::connect(&cluster).await;
    make_large_group(&mut honest, 4 << 20).await;
    let describe =
        Request::DescribeGroups(DescribeGroupsRequest { groups: vec![GROUP.to_owned()], ..Default::default() });
    let before = forget_peak(&cluster);
    let mut held = Vec::new();
    for _ in 0..40 {
        let mut hostile = Client::connect_small(&cluster).await;
        hostile.send(&describe, 5).await;
        held.push(hostile);
    }
    let Response::DescribeGroups(answer) = honest.call(describe, 5).await else { panic!() };
    assert_eq!(answer.groups[0].members[0].member_metadata.len(), 4 << 20);
    await_log(&cluster, "bytes of an answer, ").await;
    // Each is written into a buffer that may be twice as large.
    let grown = peak_bytes(&cluster).saturating_sub(before);
    assert!(grown < 112 << 20, "{} MiB for 40 answers of 8 MiB", grown >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_arrive_together_all_get_through_however_little_room_there_is() {
    let args = [
        "--set=socket.request.max.bytes=1048576",
        "--set=limits.request_bytes_max=1048576",
        "--set=limits.record_bytes_max=1000000",
        "--set=limits.inflight_bytes_max=2097152",
        "--set=limits.body_timeout_ms=3600000",
    ];
    let cluster = Cluster::start_with(1, &args).await;
    cluster.create_topic(1, "t", 1).await;
    // Each has begun a large frame before any goes on: the beginnings alone take all the room.
    let large = frame(&produce_request(0, batch(vec![7; 900 << 10])), 9, 1);
    let deadline = Instant::now() + PATIENCE;
    let begun = join_all((0..40).map(async |_| {
        let mut client = Client { next: 1, ..Client::connect(&cluster).await };
        client.stream.write_all(&large[..70 << 10]).await.unwrap();
        client
    }));
    let through = begun.await.into_iter().map(async |mut client| {
        loop {
            let sent = client.stream.write_all(&large[70 << 10..]).await;
            if sent.is_ok() && client.receive(Api::of(0).unwrap(), 9).await.is_some() {
                return;
            }
            // It was too slow for those who waited (this machine may be busy): again, as clients do.
            assert!(Instant::now() < deadline, "no room for ever");
            client = Client { next: 1, ..Client::connect(&cluster).await };
            let _ = client.stream.write_all(&large[..70 << 10]).await;
        }
    });
    timeout(2 * PATIENCE, join_all(through)).await.expect("frames hold each other up");
}
