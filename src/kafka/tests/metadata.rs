//! Metadata and DescribeCluster, and what is found by what they tell.

use super::*;
use crate::kafka::metadata::{TopicNames, topic_uuid};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_found_by_id() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    client.produce(0, batch_of(&[("a", 1)], None)).await;
    let wanted = vec![MetadataTopicName { name: Some("t".into()), ..Default::default() }];
    let request = Request::Metadata(MetadataRequest { topics: Some(wanted), ..Default::default() });
    let Response::Metadata(metadata) = client.call(request, 12).await else { panic!() };
    let topic_id = metadata.topics[0].topic_id;
    assert_ne!(topic_id.0, 0);
    assert_eq!(metadata.brokers[0].port, i32::from(crate::config::port_of(house.server.address()).unwrap()));
    for (id, expected) in [(topic_id, 0), (wire::Uuid(5), 100)] {
        let mut request = fetch_request(1, 0, Duration::ZERO);
        request.topics[0].topic_id = id;
        let Response::Fetch(response) = client.call(Request::Fetch(request), 17).await else { panic!() };
        assert_eq!((response.topics[0].topic_id, response.topics[0].partitions[0].error_code), (id, expected));
        let mut request = produce_request(0, batch_of(&[("b", 1)], None), -1);
        if let Request::Produce(produce) = &mut request {
            produce.topics[0].topic_id = id;
        }
        let Response::Produce(response) = client.call(request, 13).await else { panic!() };
        assert_eq!(response.topics[0].partitions[0].error_code, expected);
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_created_by_asking_only_where_that_is_switched_on() {
    for (on, code) in [(false, 3), (true, 0)] {
        let house = House::open_with(|config| {
            config.kafka.auto_create_topics = on;
            config.kafka.num_partitions = 4;
        })
        .await;
        let mut client = house.client().await;
        let wanted = |name: &str| Some(vec![MetadataTopicName { name: Some(name.into()), ..Default::default() }]);
        for (name, may, code) in [("new", false, 3), ("new", true, code), ("a/b", true, 17), ("a/b", false, 17)] {
            let topics = wanted(name);
            let request = MetadataRequest { topics, allow_auto_topic_creation: may, ..Default::default() };
            let Response::Metadata(metadata) = client.call(Request::Metadata(request), 12).await else { panic!() };
            let topic = &metadata.topics[0];
            assert_eq!(topic.error_code, code, "{name}, on: {on}, asked for: {may}");
            assert_eq!(topic.partitions.len(), if code == 0 { 4 } else { 0 });
        }
        for (version, topics, count) in [(0, Some(vec![]), on as usize), (1, Some(vec![]), 0), (1, None, on as usize)] {
            let request = Request::Metadata(MetadataRequest { topics, ..Default::default() });
            let Response::Metadata(metadata) = client.call(request, version).await else { panic!() };
            assert_eq!(metadata.topics.len(), count, "version {version}");
        }
        house.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_what_it_may_do_is_told_everything() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    for (asked, cluster, topic) in [(false, i32::MIN, i32::MIN), (true, 0x1fa0 & !(1 << 6), 0xdf8)] {
        let request = Request::Metadata(MetadataRequest {
            topics: Some(vec![MetadataTopicName { name: Some("t".into()), ..Default::default() }]),
            include_cluster_authorized_operations: asked,
            include_topic_authorized_operations: asked,
            ..Default::default()
        });
        let Response::Metadata(response) = client.call(request, 10).await else { panic!() };
        assert_eq!(response.cluster_authorized_operations, cluster);
        assert_eq!(response.topics[0].topic_authorized_operations, topic);
        let request = DescribeClusterRequest {
            include_cluster_authorized_operations: asked,
            endpoint_type: 1,
            ..Default::default()
        };
        let Response::DescribeCluster(response) = client.call(Request::DescribeCluster(request), 2).await else {
            panic!()
        };
        assert_eq!(response.cluster_authorized_operations, cluster);
    }
    house.close().await;
}

/// Each of these, sent in this version, is answered by the end of its connection.
async fn assert_closed_on(house: &House, asked: impl IntoIterator<Item = (Request, i16)>) {
    // Each waits for a while.
    let closed = asked.into_iter().map(async |(request, version)| {
        let mut client = house.client().await;
        client.call(Request::ApiVersions(ApiVersionsRequest::default()), 0).await;
        client.send(&request, version).await;
        assert!(client.closed().await, "{request:?}, version {version}");
    });
    futures_util::future::join_all(closed).await;
}

/// Of a cluster of two the other is not there yet. An empty list would say that there are no topics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_does_not_know_the_cluster_yet_says_nothing_of_it() {
    let other = || (BrokerId(2), "127.0.0.1:1".to_owned());
    let house = House::start_with(|config| config.bootstrap.extend([other()])).await;
    let named = || MetadataTopicName { name: Some("t".into()), ..Default::default() };
    let metadata = |topics| Request::Metadata(MetadataRequest { topics, ..Default::default() });
    let describe = DescribeClusterRequest { endpoint_type: 1, ..Default::default() };
    let asked = [
        (metadata(Some(Vec::new())), 0),
        (metadata(None), 1),
        (metadata(None), 13),
        (metadata(Some(Vec::new())), 12),
        (metadata(Some(vec![named()])), 12),
        (Request::DescribeCluster(describe), 1),
    ];
    assert_closed_on(&house, asked).await;
    house.close().await;
}

/// Its catalog is of before, and knows nobody else to be alive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_came_back_alone_does_not_tell_of_a_cluster_of_one() {
    let (house, other, _dir) = House::one_of_two(|_| {}).await;
    house.topic("t", 1).await;
    other.crash().await;
    let house = house.started_again().await;
    let named = MetadataTopicName { name: Some("t".into()), ..Default::default() };
    let metadata = Request::Metadata(MetadataRequest { topics: Some(vec![named]), ..Default::default() });
    let describe = DescribeClusterRequest { endpoint_type: 1, ..Default::default() };
    assert_closed_on(&house, [(metadata, 12), (Request::DescribeCluster(describe), 1)]).await;
    house.close().await;
}

/// Clients replace the brokers that they know by those they are told of, and may still reach those that this one does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_cut_off_sends_its_clients_away() {
    let (house, other, _dir) = House::one_of_two(|_| {}).await;
    let assignment = Some(vec![vec![BrokerId(1), BrokerId(2)]]);
    let spec = TopicSpec { name: "t".into(), partitions: 1, replicas: None, assignment, config: BTreeMap::new() };
    house.broker.create_topic(spec, PATIENCE).await.unwrap();
    let mut client = house.client().await;
    let deadline = Instant::now() + PATIENCE;
    while client.produce(0, batch_of(&[("a", 1)], None)).await.error_code != 0 {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(10)).await;
    }
    other.crash().await;
    let fetch = async |client: &mut Client, offset| {
        let mut response = client.fetch(fetch_request(1, offset, Duration::from_millis(20))).await;
        response.topics.remove(0).partitions.remove(0)
    };
    loop {
        let found = fetch(&mut client, 1).await;
        assert!(records_of(&found).is_empty());
        match found.error_code {
            6 => break,
            code => assert!(code == 0 && Instant::now() < deadline, "{code}"),
        }
    }
    let found = fetch(&mut client, 0).await;
    assert_eq!((found.error_code, records_of(&found).is_empty()), (0, false), "what is committed is served on");
    let request = Request::Metadata(MetadataRequest { topics: None, ..Default::default() });
    let Response::Metadata(metadata) = client.call(request, 12).await else { panic!() };
    assert_eq!(metadata.brokers.iter().map(|broker| broker.node_id).collect::<Vec<_>>(), [1, 2]);
    house.close().await;
}

/// A request may name an id 100,000 times, and finding its topic looks at all of that topic's partitions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topics_id_is_looked_up_once_in_a_request() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let door = house.door();
    let id = topic_uuid(&house.broker.topic("t").unwrap());
    let mut names = TopicNames::new(&door, true);
    let mut found = || names.resolve(String::new(), id).name;
    assert_eq!(found(), "t");
    house.broker.delete_topic("t", PATIENCE).await.unwrap();
    assert_eq!(found(), "t", "it was looked up again");
    let mut names = TopicNames::new(&door, true);
    assert_eq!(names.resolve(String::new(), id).error, Some(ErrorCode::UnknownTopicId));
    house.close().await;
}
