//! Consumer groups, and the topic that holds them.

use super::*;
use crate::broker::Route;
use crate::coordinator::{CommittedOffset, Coordinator, GroupError, OFFSETS_TOPIC, Speaker};
use crate::kafka::dispatch::Handled;
use crate::kafka::group_offsets::{fetch, fetch_group};
use crate::kafka::topics::Time;
use crate::partition::{Acks, Partition};

/// One consumer, as far as the group is concerned.
struct Member<'a> {
    client: &'a mut Client,
    id: String,
    generation: i32,
}

impl Member<'_> {
    fn join_request(&self) -> Request {
        let protocols = vec![JoinGroupProtocol { name: "range".into(), metadata: Bytes::from_static(b"m") }];
        Request::JoinGroup(JoinGroupRequest {
            group_id: "g".into(),
            session_timeout_ms: 10_000,
            rebalance_timeout_ms: 30_000,
            member_id: self.id.clone(),
            protocol_type: "consumer".into(),
            protocols,
            ..Default::default()
        })
    }

    /// Joins, twice if an id is given first, and brings the assignment if it leads.
    async fn join(&mut self) {
        loop {
            let Response::JoinGroup(joined) = self.client.call(self.join_request(), 5).await else { panic!() };
            self.id.clone_from(&joined.member_id);
            if joined.error_code == 79 {
                continue;
            }
            assert_eq!(joined.error_code, 0);
            self.generation = joined.generation_id;
            let assignment = |member: &JoinGroupMember| SyncGroupAssignment {
                member_id: member.member_id.clone(),
                assignment: Bytes::from(format!("for {}", member.member_id)),
            };
            let sync = SyncGroupRequest {
                group_id: "g".into(),
                generation_id: self.generation,
                member_id: self.id.clone(),
                assignments: joined.members.iter().map(assignment).collect(),
                ..Default::default()
            };
            let Response::SyncGroup(synced) = self.client.call(Request::SyncGroup(sync), 3).await else { panic!() };
            assert_eq!((synced.error_code, synced.assignment), (0, Bytes::from(format!("for {}", self.id))));
            return;
        }
    }

    async fn heartbeat(&mut self) -> i16 {
        let (group_id, generation_id, member_id) = ("g".into(), self.generation, self.id.clone());
        let request = HeartbeatRequest { group_id, generation_id, member_id, ..Default::default() };
        let Response::Heartbeat(response) = self.client.call(Request::Heartbeat(request), 3).await else { panic!() };
        response.error_code
    }

    async fn commit(&mut self, topic: &str, offset: i64) -> i16 {
        self.commit_often(topic, offset, "mine", 1).await
    }

    /// Commits one partition so many times at once.
    async fn commit_often(&mut self, topic: &str, offset: i64, metadata: &str, times: usize) -> i16 {
        let partition = OffsetCommitPartition { offset, metadata: Some(metadata.into()), ..Default::default() };
        let request = OffsetCommitRequest {
            group_id: "g".into(),
            generation_id: self.generation,
            member_id: self.id.clone(),
            topics: vec![OffsetCommitTopic { name: topic.into(), partitions: vec![partition; times] }],
            ..Default::default()
        };
        let Response::OffsetCommit(response) = self.client.call(Request::OffsetCommit(request), 8).await else {
            panic!()
        };
        response.topics[0].partitions[0].error_code
    }
}

impl Client {
    async fn find_coordinator(&mut self, group: &str) {
        let request = FindCoordinatorRequest { keys: vec![group.to_owned()], ..Default::default() };
        let Response::FindCoordinator(found) = self.call(Request::FindCoordinator(request), 4).await else { panic!() };
        assert_eq!((found.coordinators[0].error_code, found.coordinators[0].node_id), (0, 1));
    }

    /// What is committed for every partition: topic, partition, offset.
    async fn committed(&mut self) -> Vec<(String, i32, i64)> {
        let group = OffsetFetchGroup { group_id: "g".into(), topics: None, ..Default::default() };
        let request = OffsetFetchRequest { groups: vec![group], ..Default::default() };
        let Response::OffsetFetch(mut found) = self.call(Request::OffsetFetch(request), 8).await else { panic!() };
        let group = found.groups.remove(0);
        assert_eq!(group.error_code, 0);
        let partitions = group.topics.into_iter().flat_map(|topic| {
            topic.partitions.into_iter().map(move |found| (topic.name.clone(), found.partition, found.offset))
        });
        partitions.collect()
    }
}

/// A partition of the groups' log, which is led here.
fn log_of_groups(house: &House, partition: u32) -> Arc<Partition> {
    let Route::Local(log) = house.broker.route(OFFSETS_TOPIC, partition).unwrap() else { panic!() };
    log
}

/// Writes what a coordinator would of a group that is deleted. The one that is here notices at its next write, and reads the log anew.
async fn write_beside_the_coordinator(house: &House, partition: u32) {
    let log = log_of_groups(house, partition);
    let mut builder = RecordBatchBuilder::new(*log.limits());
    let (key, value) = (Some("another".into()), Some(Bytes::from_static(b"\x01\x01")));
    builder.push(&NewRecord { key, value, ..Default::default() }).unwrap();
    log.produce(builder.build(None).unwrap(), Acks::All, None, PATIENCE).await.unwrap();
}

/// Commits an offset of topic `t` for a group without members.
async fn commit_from_outside(groups: &Coordinator, group: &str, offset: i64) -> Result<(), GroupError> {
    let (topic, metadata) = ("t".to_owned(), String::new());
    let (topic_id, partition, leader_epoch, time_ms) = (1, 0, -1, 0);
    let committed = CommittedOffset { topic, topic_id, partition, offset, leader_epoch, metadata, time_ms };
    groups.commit(group, Speaker { generation: -1, ..Default::default() }, vec![committed]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_gather_commit_and_are_there_after_the_coordinator_is_new() {
    let house = House::open_with(|config| config.kafka.offsets_partitions = 2).await;
    house.topic("t", 1).await;
    let (mut one, mut two) = (house.client().await, house.client().await);
    one.find_coordinator("g").await;
    let mut one = Member { client: &mut one, id: String::new(), generation: -1 };
    let mut two = Member { client: &mut two, id: String::new(), generation: -1 };
    tokio::join!(one.join(), two.join());
    assert_eq!((one.generation, one.heartbeat().await, two.heartbeat().await), (two.generation, 0, 0));
    assert_eq!((one.commit("t", 17).await, two.commit("missing", 1).await), (0, 3));
    assert_eq!(one.client.committed().await, [("t".to_owned(), 0, 17)]);
    let partition = house.broker.groups().partition_of("g").unwrap();
    write_beside_the_coordinator(&house, partition).await;
    assert_eq!(one.commit("t", 18).await, 16, "look for the coordinator again");
    assert_eq!(one.client.committed().await, [("t".to_owned(), 0, 17)]);
    assert_eq!((one.commit("t", 18).await, one.heartbeat().await, two.heartbeat().await), (0, 0, 0), "same generation");
    assert_eq!(one.client.committed().await, [("t".to_owned(), 0, 18)]);
    // A topic of the same name is another topic.
    house.broker.delete_topic("t", PATIENCE).await.unwrap();
    house.topic("t", 1).await;
    assert_eq!(one.client.committed().await, []);
    house.close().await;
}

/// Consumers end over COORDINATOR_LOAD_IN_PROGRESS in these two answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_coordinator_stops_looks_for_another() {
    let house = House::open_with(|config| config.kafka.offsets_partitions = 1).await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    client.find_coordinator("g").await;
    let mut member = Member { client: &mut client, id: String::new(), generation: -1 };
    member.join().await;
    house.broker.shutdown(Duration::from_secs(10)).await;
    assert_eq!(member.heartbeat().await, 16);
    let sync = SyncGroupRequest {
        group_id: "g".into(),
        generation_id: member.generation,
        member_id: member.id.clone(),
        ..Default::default()
    };
    let Response::SyncGroup(synced) = member.client.call(Request::SyncGroup(sync), 3).await else { panic!() };
    assert_eq!(synced.error_code, 16);
    let Response::JoinGroup(joined) = member.client.call(member.join_request(), 5).await else { panic!() };
    assert_eq!((joined.error_code, member.commit("t", 1).await), (16, 16));
    // That nothing is known must not look like "nothing is committed", wherever a client looks.
    let topics = || Some(vec![OffsetFetchTopic { name: "t".into(), partitions: vec![0] }]);
    let request = OffsetFetchRequest { group_id: "g".into(), topics: topics(), ..Default::default() };
    let Response::OffsetFetch(found) = client.call(Request::OffsetFetch(request), 3).await else { panic!() };
    assert_eq!((found.error_code, found.topics[0].partitions[0].error_code), (16, 16));
    let group = OffsetFetchGroup { group_id: "g".into(), topics: topics(), ..Default::default() };
    let request = OffsetFetchRequest { groups: vec![group], ..Default::default() };
    let Response::OffsetFetch(found) = client.call(Request::OffsetFetch(request), 8).await else { panic!() };
    let group = &found.groups[0];
    assert_eq!((group.error_code, group.topics[0].partitions[0].error_code), (16, 16));
    // What it knew of topics it knows to the end: a client that is told that there are none begins anew.
    let wanted = vec![MetadataTopicName { name: Some("t".into()), ..Default::default() }];
    let request = Request::Metadata(MetadataRequest { topics: Some(wanted), ..Default::default() });
    let Response::Metadata(metadata) = client.call(request, 12).await else { panic!() };
    assert_eq!((metadata.topics[0].error_code, metadata.topics[0].partitions.len()), (0, 1));
    house.server.close(Duration::from_secs(5)).await;
}

/// librdkafka gives up on a partition whose offset it was refused by NOT_COORDINATOR.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_what_is_committed_does_not_notice_that_the_log_is_read_anew() {
    let house = House::open_with(|config| config.kafka.offsets_partitions = 1).await;
    house.broker.ensure_offsets_topic(PATIENCE).await.unwrap();
    let groups = house.broker.groups();
    let commit = |offset| commit_from_outside(groups, "g", offset);
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = commit(7).await {
        assert!(Instant::now() < deadline, "{error}");
        sleep(Duration::from_millis(10)).await;
    }
    write_beside_the_coordinator(&house, 0).await;
    let (changed, told) = tokio::join!(commit(8), groups.committed("g", None));
    assert_eq!(changed, Err(GroupError::Lost));
    assert_eq!(told.unwrap()[0].offset, 7);
    house.close().await;
}

/// One that is cut off from the others, but not from its clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_without_a_majority_sends_its_members_away() {
    let (house, other, _dir) = House::one_of_two(|config| config.kafka.offsets_partitions = 2).await;
    house.broker.ensure_offsets_topic(PATIENCE).await.unwrap();
    let groups = house.broker.groups();
    let here = |name: &String| {
        let partition = groups.partition_of(name).unwrap();
        matches!(house.broker.route(OFFSETS_TOPIC, partition), Ok(Route::Local(_)))
    };
    let deadline = Instant::now() + PATIENCE;
    let group = loop {
        if let Some(group) = (0..100).map(|number| format!("group {number}")).find(here) {
            break group;
        }
        assert!(Instant::now() < deadline, "no group is coordinated here");
        sleep(Duration::from_millis(10)).await;
    };
    let mut client = house.client().await;
    let heartbeat = HeartbeatRequest { group_id: group.clone(), member_id: "m".into(), ..Default::default() };
    let find = FindCoordinatorRequest { keys: vec![group], ..Default::default() };
    for (expected, alone) in [((25, 0), false), ((16, 15), true)] {
        if alone {
            other.clone().crash().await;
        }
        loop {
            let Response::Heartbeat(beat) = client.call(Request::Heartbeat(heartbeat.clone()), 3).await else {
                panic!()
            };
            let found = client.call(Request::FindCoordinator(find.clone()), 4).await;
            let Response::FindCoordinator(found) = found else { panic!() };
            let codes = (beat.error_code, found.coordinators[0].error_code);
            if codes == expected {
                break;
            }
            assert!(Instant::now() < deadline, "{codes:?}, not {expected:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_groups_is_shortened_and_still_tells_everything() {
    let house = House::open_with(|config| config.kafka.offsets_partitions = 1).await;
    house.broker.ensure_offsets_topic(PATIENCE).await.unwrap();
    let groups = house.broker.groups();
    let commit = |group, offset| commit_from_outside(groups, group, offset);
    let told = async |group| groups.committed(group, None).await.unwrap()[0].offset;
    // A partition that has just been elected may not be able to confirm it yet: whoever asks is told to ask again.
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = commit("quiet", 7).await {
        let moved = matches!(error, GroupError::NotCoordinator | GroupError::Lost);
        assert!(moved && Instant::now() < deadline, "{error}");
        sleep(Duration::from_millis(10)).await;
    }
    for round in 0..22 {
        // All of them again if leadership moved under way: on a busy machine even the only replica may lose it for a moment.
        while let Err(error) = {
            let commits = (0..500).map(|number| commit("busy", round * 500 + number));
            let committed = futures_util::future::join_all(commits).await;
            committed.into_iter().collect::<Result<Vec<_>, _>>()
        } {
            let moved = matches!(error, GroupError::NotCoordinator | GroupError::Lost);
            assert!(moved && Instant::now() < deadline, "{error}");
        }
    }
    let log = log_of_groups(&house, 0);
    let start = log.log_start_offset();
    assert!(start.0 > 10_000, "the log starts at {start}");
    assert_eq!((told("quiet").await, told("busy").await), (7, 22 * 500 - 1));
    // What is left of the log tells the same to a new coordinator.
    write_beside_the_coordinator(&house, 0).await;
    assert_eq!(commit("busy", 0).await, Err(GroupError::Lost));
    assert_eq!((told("quiet").await, told("busy").await), (7, 22 * 500 - 1));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_described_listed_left_and_deleted() {
    let house = House::open_with(|config| config.kafka.offsets_partitions = 2).await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    client.find_coordinator("g").await;
    let mut member = Member { client: &mut client, id: String::new(), generation: -1 };
    member.join().await;
    assert_eq!(member.commit("t", 3).await, 0);
    let (id, generation) = (member.id.clone(), member.generation);
    let describe = |name: &str| {
        let groups = vec![name.to_owned()];
        Request::DescribeGroups(DescribeGroupsRequest { groups, ..Default::default() })
    };
    let Response::DescribeGroups(found) = client.call(describe("g"), 5).await else { panic!() };
    let group = &found.groups[0];
    assert_eq!((group.group_state.as_str(), group.members.len()), ("Stable", 1));
    assert_eq!((&group.members[0].client_id[..], &group.members[0].client_host[..]), ("test", "/127.0.0.1"));
    let Response::DescribeGroups(found) = client.call(describe("nobody"), 5).await else { panic!() };
    assert_eq!((found.groups[0].group_state.as_str(), found.groups[0].error_code), ("Dead", 0));
    for (filter, count) in [(vec![], 1), (vec!["Stable".to_owned()], 1), (vec!["Empty".to_owned()], 0)] {
        let request = ListGroupsRequest { states_filter: filter, ..Default::default() };
        let Response::ListGroups(found) = client.call(Request::ListGroups(request), 4).await else { panic!() };
        assert_eq!((found.error_code, found.groups.len()), (0, count));
    }
    let delete = Request::DeleteGroups(DeleteGroupsRequest { groups: vec!["g".into(), "nobody".into()] });
    let codes = |response: Response| {
        let Response::DeleteGroups(response) = response else { panic!() };
        response.results.iter().map(|result| result.error_code).collect::<Vec<_>>()
    };
    assert_eq!(codes(client.call(delete.clone(), 2).await), [68, 69]);
    let leaving = |id: &str| LeavingMember { member_id: id.to_owned(), ..Default::default() };
    let members = vec![leaving(&id), leaving("nobody")];
    let leave = Request::LeaveGroup(LeaveGroupRequest { group_id: "g".into(), members, ..Default::default() });
    let Response::LeaveGroup(left) = client.call(leave, 4).await else { panic!() };
    assert_eq!(left.members.iter().map(|member| member.error_code).collect::<Vec<_>>(), [0, 25]);
    let mut gone = Member { client: &mut client, id, generation };
    assert_eq!((gone.heartbeat().await, gone.commit("t", 4).await), (25, 25));
    let topics = vec![OffsetDeleteTopic { name: "t".into(), partitions: vec![OffsetDeletePartition { partition: 0 }] }];
    let request = Request::OffsetDelete(OffsetDeleteRequest { group_id: "g".into(), topics });
    let Response::OffsetDelete(deleted) = client.call(request, 0).await else { panic!() };
    assert_eq!((deleted.error_code, deleted.topics[0].partitions[0].error_code), (0, 0));
    assert_eq!(client.committed().await, []);
    assert_eq!(codes(client.call(delete, 2).await), [0, 69]);
    assert_eq!(client.produce(0, Bytes::new()).await.error_code, 87);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_holds_the_groups_is_not_for_clients_to_change() {
    use crate::coordinator::OFFSETS_TOPIC;
    const INVALID_TOPIC: i16 = 17;
    let house = House::open().await;
    house.broker.ensure_offsets_topic(PATIENCE).await.unwrap();
    let mut client = house.client().await;
    let mut request = produce_request(0, batch_of(&[("x", 1)], None), -1);
    if let Request::Produce(produce) = &mut request {
        produce.topics[0].name = OFFSETS_TOPIC.to_owned();
    }
    let Response::Produce(refused) = client.call(request, 9).await else { panic!() };
    assert_eq!(refused.topics[0].partitions[0].error_code, INVALID_TOPIC);
    let partitions = vec![DeleteRecordsPartition { partition: 0, offset: -1 }];
    let topics = vec![DeleteRecordsTopic { name: OFFSETS_TOPIC.into(), partitions }];
    let request = Request::DeleteRecords(DeleteRecordsRequest { topics, timeout_ms: 30_000 });
    let Response::DeleteRecords(refused) = client.call(request, 2).await else { panic!() };
    assert_eq!(refused.topics[0].partitions[0].error_code, INVALID_TOPIC);
    let topics = vec![MorePartitions { name: OFFSETS_TOPIC.into(), count: 100, assignments: None }];
    let request = CreatePartitionsRequest { topics, timeout_ms: 30_000, validate_only: false };
    let Response::CreatePartitions(refused) = client.call(Request::CreatePartitions(request), 3).await else {
        panic!()
    };
    assert_eq!(refused.results[0].error_code, INVALID_TOPIC);
    let configs = vec![ConfigChange { name: "retention.ms".into(), operation: 0, value: Some("1".into()) }];
    let resources = vec![IncrementalResource { resource_type: 2, resource_name: OFFSETS_TOPIC.into(), configs }];
    let request = IncrementalAlterConfigsRequest { resources, validate_only: false };
    let Response::IncrementalAlterConfigs(refused) = client.call(Request::IncrementalAlterConfigs(request), 1).await
    else {
        panic!()
    };
    assert_eq!(refused.responses[0].error_code, INVALID_TOPIC);
    let request =
        DeleteTopicsRequest { topic_names: vec![OFFSETS_TOPIC.into()], timeout_ms: 30_000, ..Default::default() };
    let Response::DeleteTopics(refused) = client.call(Request::DeleteTopics(request), 4).await else { panic!() };
    assert_eq!(refused.topics[0].error_code, INVALID_TOPIC);
    assert_eq!(house.broker.topic(OFFSETS_TOPIC).unwrap().config["retention.ms"], "-1");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_of_many_groups_are_told_in_the_order_they_were_asked_for() {
    let house = House::open_with(|config| config.kafka.offsets_partitions = 1).await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    client.find_coordinator("g").await;
    for number in 0..9 {
        let partition = OffsetCommitPartition { offset: number, ..Default::default() };
        let request = OffsetCommitRequest {
            group_id: format!("group-{number}"),
            generation_id: -1,
            topics: vec![OffsetCommitTopic { name: "t".into(), partitions: vec![partition] }],
            ..Default::default()
        };
        commit_once_elected(&mut client, request).await;
    }
    // More than are asked for at a time; most were never heard of, and one is named twice.
    let name = |number: i32| if number == 150 { "group-7".to_owned() } else { format!("group-{number}") };
    let group = |number| OffsetFetchGroup { group_id: name(number), topics: None, ..Default::default() };
    let request = OffsetFetchRequest { groups: (0..200).rev().map(group).collect(), ..Default::default() };
    let Response::OffsetFetch(found) = client.call(Request::OffsetFetch(request), 8).await else { panic!() };
    let told = found.groups.iter().map(|group| {
        let offset = group.topics.first().map(|topic| topic.partitions[0].offset);
        (group.group_id.clone(), group.error_code, offset)
    });
    let expected = (0..200).rev().map(|number| match number {
        150 => (name(150), 0, Some(7)),
        7 => (name(7), 42, None),
        committed if committed < 9 => (name(committed), 0, Some(i64::from(committed))),
        other => (name(other), 0, None),
    });
    assert_eq!(told.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    // Once the time is over no further one is asked for.
    let over = fetch_group(&house.door(), &group(0), &Time::of(Duration::ZERO), usize::MAX).await.unwrap();
    assert_eq!((over.error_code, over.topics.len()), (14, 0));
    house.close().await;
}

async fn commit_once_elected(client: &mut Client, request: OffsetCommitRequest) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = Request::OffsetCommit(request.clone());
        let Response::OffsetCommit(done) = client.call(request, 8).await else { panic!() };
        match done.topics[0].partitions[0].error_code {
            14 | 16 if Instant::now() < deadline => sleep(Duration::from_millis(10)).await,
            done => break assert_eq!(done, 0),
        }
    }
}

/// All that is told of several groups holds room together: who held some and waited for more could be waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_that_is_told_of_groups_waits_for_room_and_little_does_not() {
    const PARTITIONS: i32 = 40;
    let house = House::open().await;
    house.topic("t", PARTITIONS as u32).await;
    house.broker.ensure_offsets_topic(PATIENCE).await.unwrap();
    let mut client = house.client().await;
    for (group, partitions) in [("small", 1), ("large", PARTITIONS)] {
        let metadata = Some("m".repeat(4096));
        let partition =
            |partition| OffsetCommitPartition { partition, metadata: metadata.clone(), ..Default::default() };
        let topics = vec![OffsetCommitTopic { name: "t".into(), partitions: (0..partitions).map(partition).collect() }];
        let request = OffsetCommitRequest { group_id: group.into(), generation_id: -1, topics, ..Default::default() };
        commit_once_elected(&mut client, request).await;
    }
    let door = house.door();
    let request = |groups: &[&str]| {
        let group = |name: &&str| OffsetFetchGroup { group_id: (*name).into(), topics: None, ..Default::default() };
        OffsetFetchRequest { groups: groups.iter().map(group).collect(), ..Default::default() }
    };
    let lengths = |response: Response| {
        let Response::OffsetFetch(told) = response else { panic!() };
        let partitions = told.groups.into_iter().map(|group| group.topics.into_iter().next().unwrap().partitions);
        let metadata = |told: Vec<OffsetFetchedPartition>| {
            (told.len(), told.into_iter().map(|partition| partition.metadata.unwrap().len()).sum::<usize>())
        };
        partitions.map(metadata).collect::<Vec<_>>()
    };
    let all = door.answer_bytes.try_reserve(usize::MAX).unwrap();
    let Handled::Response(small) = fetch(&door, request(&["small"]), 8).await else { panic!("it holds room") };
    assert_eq!(lengths(small), [(1, 4096)]);
    let both = request(&["small", "large"]);
    let fetching = tokio::spawn({
        let door = Arc::clone(&door);
        async move { fetch(&door, both, 8).await }
    });
    let deadline = Instant::now() + PATIENCE;
    while !door.answer_bytes.short() {
        assert!(Instant::now() < deadline && !fetching.is_finished(), "it does not wait");
        sleep(Duration::from_millis(1)).await;
    }
    drop(all);
    let Handled::Holding(both, share) = fetching.await.unwrap() else { panic!("it holds no room") };
    assert_eq!(lengths(both), [(1, 4096), (PARTITIONS as usize, PARTITIONS as usize * 4096)]);
    assert!((41 * 4096..82 * 4096).contains(&share.num_permits()), "{}", share.num_permits());
    house.close().await;
}

/// Groups are made by whoever names one. They may take so many bytes together; who is there goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_grow_to_so_many_bytes_and_no_further() {
    const ROOM: usize = 1 << 16;
    let house = House::open_with(|config| {
        config.kafka.offsets_partitions = 1;
        config.limits.groups_bytes_max = ROOM;
    })
    .await;
    house.topic("t", 1).await;
    let (mut client, mut stranger) = (house.client().await, house.client().await);
    client.find_coordinator("g").await;
    let mut member = Member { client: &mut client, id: String::new(), generation: -1 };
    member.join().await;
    assert_eq!(member.commit("t", 1).await, 0);
    // Ever new names, each with an offset and a long word about it.
    let mut commit = async |number: usize| {
        let metadata = Some("x".repeat(1000));
        let partition = OffsetCommitPartition { offset: 1, metadata, ..Default::default() };
        let request = OffsetCommitRequest {
            group_id: format!("group-{number}"),
            generation_id: -1,
            topics: vec![OffsetCommitTopic { name: "t".into(), partitions: vec![partition] }],
            ..Default::default()
        };
        let Response::OffsetCommit(response) = stranger.call(Request::OffsetCommit(request), 8).await else { panic!() };
        response.topics[0].partitions[0].error_code
    };
    let mut taken = 0;
    let refused = loop {
        match commit(taken).await {
            0 => taken += 1,
            refused => break refused,
        }
        assert!(taken < ROOM / 1000, "{taken} groups of more than 1000 bytes");
    };
    assert!((refused, taken > 10) == (28, true), "error {refused} behind {taken} groups");
    // What is no larger than it was is taken, and who leaves makes room for others; not so who comes.
    assert_eq!((commit(0).await, member.commit("t", 2).await, member.heartbeat().await), (0, 0, 0));
    let join = JoinGroupRequest {
        group_id: "late".into(),
        session_timeout_ms: 10_000,
        protocol_type: "consumer".into(),
        protocols: vec![JoinGroupProtocol { name: "range".into(), metadata: vec![0; 2000].into() }],
        ..Default::default()
    };
    let Response::JoinGroup(late) = member.client.call(Request::JoinGroup(join), 5).await else { panic!() };
    assert_eq!(late.error_code, 81);
    what_is_wrong_is_said_before_that_there_is_no_room(&mut member).await;
    let names = || house.broker.groups().list();
    assert_eq!(names().await.unwrap().len(), taken + 1, "nothing is kept of those who were refused");
    // A coordinator that reads the log counts the same.
    write_beside_the_coordinator(&house, 0).await;
    assert_eq!(commit(0).await, 16, "it reads the log anew");
    assert_eq!((commit(0).await, commit(taken).await), (0, 28));
    for number in 0..3 {
        house.broker.groups().delete(&format!("group-{number}")).await.unwrap();
    }
    assert_eq!(commit(taken).await, 0);
    house.close().await;
}

/// A member of an old generation joins again by that. By the other it would stay where it is.
async fn what_is_wrong_is_said_before_that_there_is_no_room(member: &mut Member<'_>) {
    const LARGE: usize = 1 << 15;
    let (id, generation) = (member.id.clone(), member.generation);
    let long = "x".repeat(4000);
    let mut codes = Vec::new();
    for (id, generation) in [(&id[..], generation - 1), ("nobody", generation), ("", -1)] {
        (member.id, member.generation) = (id.to_owned(), generation);
        codes.push(member.commit_often("t", 3, &long, 8).await);
    }
    assert_eq!(codes, [22, 25, 25], "commits");
    codes.clear();
    for (id, generation) in [(&id[..], generation - 1), ("nobody", generation)] {
        let sync = SyncGroupRequest {
            group_id: "g".into(),
            generation_id: generation,
            member_id: id.to_owned(),
            assignments: vec![SyncGroupAssignment { member_id: id.to_owned(), assignment: vec![0; LARGE].into() }],
            ..Default::default()
        };
        let Response::SyncGroup(synced) = member.client.call(Request::SyncGroup(sync), 3).await else { panic!() };
        codes.push(synced.error_code);
    }
    assert_eq!(codes, [22, 25], "a leader's assignments");
    codes.clear();
    for (id, instance, name) in [("nobody", None, "range"), ("nobody", Some("i"), "range"), ("", None, "other")] {
        let protocols = vec![JoinGroupProtocol { name: name.into(), metadata: vec![0; LARGE].into() }];
        let join = JoinGroupRequest {
            group_id: "g".into(),
            group_instance_id: instance.map(str::to_owned),
            member_id: id.to_owned(),
            session_timeout_ms: 10_000,
            protocol_type: "consumer".into(),
            protocols,
            ..Default::default()
        };
        let Response::JoinGroup(joined) = member.client.call(Request::JoinGroup(join), 5).await else { panic!() };
        codes.push(joined.error_code);
    }
    assert_eq!(codes, [25, 25, 23], "who would join");
    (member.id, member.generation) = (id, generation);
    assert_eq!((member.commit_often("t", 3, &long, 8).await, member.heartbeat().await), (28, 0), "all else is right");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_has_as_many_members_as_it_may_and_no_more() {
    let house = House::open_with(|config| {
        config.kafka.offsets_partitions = 1;
        config.kafka.group_members_max = 1;
    })
    .await;
    let (mut one, mut two) = (house.client().await, house.client().await);
    one.find_coordinator("g").await;
    let mut one = Member { client: &mut one, id: String::new(), generation: -1 };
    let two = Member { client: &mut two, id: String::new(), generation: -1 };
    one.join().await;
    let Response::JoinGroup(refused) = two.client.call(two.join_request(), 5).await else { panic!() };
    assert_eq!((refused.error_code, one.heartbeat().await), (81, 0));
    house.close().await;
}

/// Whoever is not the leader would hold room for them until the leader has spoken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_assignments_than_a_group_can_have_members_are_refused() {
    let house = House::open().await;
    let assignments = vec![SyncGroupAssignment::default(); 10_001];
    let request = SyncGroupRequest { group_id: "g".into(), assignments, ..Default::default() };
    let Response::SyncGroup(refused) = house.client().await.call(Request::SyncGroup(request), 3).await else {
        panic!()
    };
    assert_eq!(refused.error_code, 42);
    house.close().await;
}
