//! Joining a group in every version, how long a session may be, and what is said of things that are not there.

use super::*;

fn join_request(group: &str, member_id: String) -> JoinGroupRequest {
    JoinGroupRequest {
        group_id: group.to_owned(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 30_000,
        member_id,
        protocol_type: "consumer".into(),
        protocols: vec![JoinGroupProtocol { name: "range".into(), metadata: Bytes::from_static(b"m") }],
        ..Default::default()
    }
}

/// Asks until this broker coordinates a group, which may just have been given its leader.
async fn coordinated(client: &mut Client, group: &str) {
    let deadline = Instant::now() + PATIENCE;
    let request = FindCoordinatorRequest { keys: vec![group.to_owned()], ..Default::default() };
    loop {
        let found = client.call(Request::FindCoordinator(request.clone()), 4).await;
        let Response::FindCoordinator(found) = found else { panic!() };
        if found.coordinators[0].error_code == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_joined_in_every_version() {
    let house = House::open_with(|config| config.kafka.offsets_partitions = 1).await;
    let mut client = house.client().await;
    for version in 0..=9 {
        let group = format!("group-{version}");
        coordinated(&mut client, &group).await;
        let mut join = async |id: &str| {
            let request = Request::JoinGroup(join_request(&group, id.to_owned()));
            let Response::JoinGroup(joined) = client.call(request, version).await else { panic!() };
            joined
        };
        let mut joined = join("").await;
        // From version 4 on who comes anew is given an id first, and comes with it.
        if version >= 4 {
            assert_eq!((joined.error_code, joined.generation_id, joined.members.len()), (79, -1, 0));
            assert!(joined.member_id.starts_with("test-"), "{}", joined.member_id);
            joined = join(&joined.member_id).await;
        }
        let told = (joined.error_code, joined.generation_id, joined.protocol_name.as_deref(), joined.members.len());
        assert_eq!(told, (0, 1, Some("range"), 1), "version {version}");
        assert_eq!((&joined.leader, &joined.members[0].member_id), (&joined.member_id, &joined.member_id));
        let kind = joined.protocol_type.as_deref();
        assert_eq!((kind, joined.skip_assignment), (Some("consumer").filter(|_| version >= 7), false));
        let sync = SyncGroupRequest {
            group_id: group.clone(),
            generation_id: 1,
            member_id: joined.member_id.clone(),
            assignments: vec![SyncGroupAssignment { member_id: joined.member_id, assignment: "all".into() }],
            ..Default::default()
        };
        let Response::SyncGroup(synced) = client.call(Request::SyncGroup(sync), version.min(5)).await else { panic!() };
        assert_eq!((synced.error_code, &synced.assignment[..]), (0, &b"all"[..]), "version {version}");
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_a_second_to_half_an_hour() {
    let house = House::open_with(|config| config.kafka.offsets_partitions = 1).await;
    let mut client = house.client().await;
    coordinated(&mut client, "g").await;
    for (session_timeout_ms, code) in
        [(i32::MIN, 26), (-1, 26), (0, 26), (999, 26), (1000, 79), (1_800_000, 79), (1_800_001, 26), (i32::MAX, 26)]
    {
        let request = JoinGroupRequest { session_timeout_ms, ..join_request("g", String::new()) };
        let Response::JoinGroup(joined) = client.call(Request::JoinGroup(request), 5).await else { panic!() };
        assert_eq!(joined.error_code, code, "{session_timeout_ms} ms");
    }
    house.close().await;
}

/// Transactions, the newer groups and controllers apart from brokers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_there_is_not_is_refused_and_not_pretended() {
    const INVALID_REQUEST: i16 = 42;
    let house = House::open_with(|config| config.kafka.offsets_partitions = 1).await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    coordinated(&mut client, "g").await;
    let transactional_id = Some("transaction".to_owned());
    for version in 0..=5 {
        let request = InitProducerIdRequest { transactional_id: transactional_id.clone(), ..Default::default() };
        let answer = client.call(Request::InitProducerId(request), version).await;
        let Response::InitProducerId(answer) = answer else { panic!() };
        assert_eq!((answer.error_code, answer.producer_id, answer.producer_epoch), (INVALID_REQUEST, -1, -1));
    }
    for version in 1..=6 {
        let (key, keys) = ("transaction".to_owned(), vec!["transaction".to_owned()]);
        let request = FindCoordinatorRequest { key, keys, key_type: 1 };
        let answer = client.call(Request::FindCoordinator(request), version).await;
        let Response::FindCoordinator(answer) = answer else { panic!() };
        let code = answer.coordinators.first().map_or(answer.error_code, |found| found.error_code);
        assert_eq!(code, INVALID_REQUEST, "version {version}");
    }
    let mut request = produce_request(0, batch_of(&[("a", 1)], None), -1);
    if let Request::Produce(produce) = &mut request {
        produce.transactional_id = transactional_id;
    }
    let Response::Produce(answer) = client.call(request, 9).await else { panic!() };
    assert_eq!((answer.topics[0].partitions[0].error_code, client.list(-1).await.0), (INVALID_REQUEST, 0));
    let request = Request::JoinGroup(join_request("g", String::new()));
    let Response::JoinGroup(joined) = client.call(request, 3).await else { panic!() };
    assert_eq!(joined.error_code, 0);
    for (kind, count) in [("classic", 1), ("consumer", 0), ("share", 0)] {
        let request = ListGroupsRequest { types_filter: vec![kind.to_owned()], ..Default::default() };
        let Response::ListGroups(listed) = client.call(Request::ListGroups(request), 5).await else { panic!() };
        assert_eq!((listed.error_code, listed.groups.len()), (0, count), "{kind}");
        assert!(listed.groups.iter().all(|group| group.group_type == "classic"));
    }
    for (endpoint_type, code) in [(1, 0), (2, INVALID_REQUEST), (0, INVALID_REQUEST)] {
        let request = DescribeClusterRequest { endpoint_type, ..Default::default() };
        let answer = client.call(Request::DescribeCluster(request), 1).await;
        let Response::DescribeCluster(answer) = answer else { panic!() };
        assert_eq!((answer.error_code, answer.brokers.len()), (code, usize::from(code == 0)), "{endpoint_type}");
    }
    house.close().await;
}
