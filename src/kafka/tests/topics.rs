//! Topics and their configurations: created, changed, shortened and deleted.

use super::*;
use crate::controller::CATALOG_GROUP;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_created_changed_and_deleted_with_kafkas_codes() {
    let house = House::open_with(|config| config.kafka.num_partitions = 3).await;
    let mut client = house.client().await;
    let topic = |name: &str, num_partitions, replication_factor| CreatableTopic {
        name: name.into(),
        num_partitions,
        replication_factor,
        ..Default::default()
    };
    let with = |mut topic: CreatableTopic, key: &str, value: Option<&str>| {
        topic.configs.push(ConfigValue { name: key.into(), value: value.map(Into::into) });
        topic
    };
    let placed = |mut topic: CreatableTopic, on: &[(i32, i32)]| {
        let assignment = |(partition_index, broker)| ReplicaAssignment { partition_index, broker_ids: vec![broker] };
        topic.assignments.extend(on.iter().copied().map(assignment));
        topic
    };
    let topics = vec![
        topic("good", -1, -1),
        with(with(topic("configured", 1, 1), "retention.ms", Some("1000")), "min.insync.replicas", Some("1")),
        topic("a/b", 1, 1),
        topic("..", 1, 1),
        topic("nul\0", 1, 1),
        topic(&"x".repeat(300), 1, 1),
        topic("none", 0, 1),
        topic("many", 1, 2),
        with(topic("odd", 1, 1), "no.such.key", Some("1")),
        with(topic("null", 1, 1), "retention.ms", None),
        placed(topic("placed", -1, -1), &[(1, 1), (0, 1)]),
        placed(topic("placed-nowhere", -1, -1), &[(0, 9)]),
        placed(topic("placed-with-a-gap", -1, -1), &[(0, 1), (2, 1)]),
        placed(topic("placed-both-ways", 1, -1), &[(0, 1)]),
        topic("twice", 1, 1),
        topic("twice", 1, 1),
    ];
    let codes = [0, 0, 17, 17, 17, 17, 37, 38, 40, 40, 0, 39, 39, 42, 42];
    let request = CreateTopicsRequest { topics, timeout_ms: 30_000, validate_only: true };
    for validate_only in [true, false] {
        let request = Request::CreateTopics(CreateTopicsRequest { validate_only, ..request.clone() });
        let Response::CreateTopics(response) = client.call(request, 7).await else { panic!() };
        let found: Vec<_> = response.topics.iter().map(|topic| topic.error_code).collect();
        assert_eq!(found, codes, "validate only: {validate_only}");
        let good = &response.topics[0];
        assert_eq!((good.num_partitions, good.replication_factor, good.topic_id.0 == 0), (3, 1, validate_only));
        let set = |at: usize| {
            let configs = response.topics[at].configs.iter().flatten();
            configs.filter(|config| config.config_source == 1).map(|config| &config.name[..]).collect::<Vec<_>>()
        };
        assert!(good.configs.as_ref().is_some_and(|configs| configs.len() > 5), "Java's admin client reads them");
        assert_eq!((set(0), set(1)), (vec![], vec!["retention.ms"]));
    }
    let again = CreateTopicsRequest { topics: vec![topic("good", 1, 1)], timeout_ms: 1000, validate_only: false };
    let Response::CreateTopics(response) = client.call(Request::CreateTopics(again), 2).await else { panic!() };
    assert_eq!(response.topics[0].error_code, 36);
    assert_eq!(house.broker.topic("placed").unwrap().partitions.len(), 2);
    let more = |name: &str, count| MorePartitions { name: name.into(), count, assignments: None };
    let on = |broker: i32, count: usize| MorePartitions {
        assignments: Some(vec![PartitionAssignment { broker_ids: vec![broker] }; count]),
        ..more("placed", 4)
    };
    for (wanted, code) in [(on(9, 2), 39), (on(-1, 2), 39), (on(1, 1), 39), (on(1, 2), 0), (on(1, 2), 37)] {
        let request = CreatePartitionsRequest { topics: vec![wanted], timeout_ms: 30_000, validate_only: false };
        let response = client.call(Request::CreatePartitions(request), 3).await;
        let Response::CreatePartitions(response) = response else { panic!() };
        assert_eq!(response.results[0].error_code, code, "{response:?}");
    }
    assert_eq!(house.broker.topic("placed").unwrap().partitions.len(), 4);
    let topics = vec![more("good", 5), more("configured", 1), more("missing", 2)];
    let request = CreatePartitionsRequest { topics, timeout_ms: 30_000, validate_only: false };
    let Response::CreatePartitions(response) = client.call(Request::CreatePartitions(request), 3).await else {
        panic!()
    };
    assert_eq!(response.results.iter().map(|result| result.error_code).collect::<Vec<_>>(), [0, 37, 3]);
    assert_eq!(house.broker.topic("good").unwrap().partitions.len(), 5);
    let resource = |resource_type, name: &str| DescribeConfigsResource {
        resource_type,
        resource_name: name.into(),
        configuration_keys: Some(vec!["retention.ms".into(), "num.partitions".into(), "min.insync.replicas".into()]),
    };
    let resources = vec![resource(2, "configured"), resource(2, "missing"), resource(4, "1"), resource(4, "9")];
    let request = DescribeConfigsRequest { resources, include_synonyms: true, include_documentation: false };
    let Response::DescribeConfigs(response) = client.call(Request::DescribeConfigs(request), 4).await else { panic!() };
    assert_eq!(response.results.iter().map(|result| result.error_code).collect::<Vec<_>>(), [0, 3, 0, 42]);
    let retention = &response.results[0].configs[0];
    assert_eq!((retention.value.as_deref(), retention.config_source, retention.synonyms.len()), (Some("1000"), 1, 2));
    let promised = &response.results[0].configs[1];
    assert_eq!(
        (promised.name.as_str(), promised.value.as_deref(), promised.read_only),
        ("min.insync.replicas", Some("1"), true)
    );
    assert_eq!(response.results[2].configs[0].value.as_deref(), Some("3"));
    let topic_names = vec!["good".into(), "missing".into()];
    let request = DeleteTopicsRequest { topic_names, timeout_ms: 30_000, ..Default::default() };
    let Response::DeleteTopics(response) = client.call(Request::DeleteTopics(request), 4).await else { panic!() };
    assert_eq!(response.topics.iter().map(|topic| topic.error_code).collect::<Vec<_>>(), [0, 3]);
    assert!(house.broker.topic("good").is_err());
    house.close().await;
}

/// An admin client sends each request to whichever broker it likes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_changed_through_another_broker_is_described_at_once() {
    let (house, other, _dir) = House::one_of_two(|_| {}).await;
    house.topic("t", 1).await;
    let catalog = || other.raft_groups().get(CATALOG_GROUP).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while catalog().watch_leader().borrow().is_none_or(|leader| leader.replica != catalog().replica()) {
        assert!(Instant::now() < deadline, "the other does not lead the catalog");
        let _ = house.broker.raft_groups().get(CATALOG_GROUP).unwrap().transfer_leader(catalog().replica()).await;
    }
    let mut client = house.client().await;
    for value in 1000..1050 {
        let config = [("retention.ms".to_owned(), Some(value.to_string()))].into();
        other.alter_topic("t", None, config, PATIENCE).await.unwrap();
        let configuration_keys = Some(vec!["retention.ms".into()]);
        let resource = DescribeConfigsResource { resource_type: 2, resource_name: "t".into(), configuration_keys };
        let resources = vec![resource];
        let request = DescribeConfigsRequest { resources, include_synonyms: false, include_documentation: false };
        let Response::DescribeConfigs(response) = client.call(Request::DescribeConfigs(request), 4).await else {
            panic!()
        };
        assert_eq!(response.results[0].configs[0].value, Some(value.to_string()));
    }
    other.shutdown(PATIENCE).await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configurations_change_and_records_are_deleted() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    let change = |name: &str, operation, value: Option<&str>| ConfigChange {
        name: name.into(),
        operation,
        value: value.map(Into::into),
    };
    let incremental = |resource_type, configs, validate_only| {
        let resources = vec![IncrementalResource { resource_type, resource_name: "t".into(), configs }];
        Request::IncrementalAlterConfigs(IncrementalAlterConfigsRequest { resources, validate_only })
    };
    let mut alter = async |request| {
        let Response::IncrementalAlterConfigs(response) = client.call(request, 1).await else { panic!() };
        response.responses[0].error_code
    };
    let retention = || vec![change("retention.ms", 0, Some("5000"))];
    let set = || house.broker.topic("t").unwrap().config;
    assert_eq!((alter(incremental(2, retention(), true)).await, set().len()), (0, 0));
    assert_eq!((alter(incremental(2, retention(), false)).await, set()["retention.ms"].as_str()), (0, "5000"));
    for (wrong, code) in [
        (change("no.such", 0, Some("1")), 40),
        (change("retention.ms", 0, None), 42),
        (change("retention.ms", 2, Some("1")), 40),
    ] {
        assert_eq!(alter(incremental(2, vec![wrong], false)).await, code);
    }
    assert_eq!(alter(incremental(4, retention(), false)).await, 42);
    // What holds anyway is taken and not stored: one replica's majority is one.
    let unclean = "unclean.leader.election.enable";
    for (key, value, code) in [
        ("min.insync.replicas", "1", 0),
        ("min.insync.replicas", "2", 40),
        (unclean, "false", 0),
        (unclean, "true", 40),
    ] {
        let found = alter(incremental(2, vec![change(key, 0, Some(value))], false)).await;
        assert_eq!((found, set().len()), (code, 1), "{key}={value}");
    }
    // A list takes in and lets go; what it cannot hold is refused by its value.
    for (operation, value, code) in
        [(2, "delete", 0), (2, "compact", 40), (3, "compact", 0), (3, "delete", 40), (9, "x", 40)]
    {
        let change = vec![change("cleanup.policy", operation, Some(value))];
        assert_eq!(alter(incremental(2, change, false)).await, code, "{operation} {value}");
    }
    assert_eq!(set()["cleanup.policy"], "delete");
    alter(incremental(2, vec![change("cleanup.policy", 1, None)], false)).await;
    assert_eq!((alter(incremental(2, vec![change("retention.ms", 1, None)], false)).await, set().len()), (0, 0));
    alter(incremental(2, retention(), false)).await;
    let configs = vec![ConfigValue { name: "segment.ms".into(), value: Some("7".into()) }];
    let resources = vec![AlterConfigsResource { resource_type: 2, resource_name: "t".into(), configs }];
    let request = Request::AlterConfigs(AlterConfigsRequest { resources, validate_only: false });
    let Response::AlterConfigs(response) = client.call(request, 2).await else { panic!() };
    assert_eq!((response.responses[0].error_code, set().len()), (0, 1), "the others went back to their defaults");
    for _ in 0..5 {
        client.produce(0, batch_of(&[("a", 1)], None)).await;
    }
    for (offset, found) in [(2, (0, 2)), (99, (1, -1)), (-1, (0, 5)), (-7, (1, -1))] {
        let partitions = vec![DeleteRecordsPartition { partition: 0, offset }];
        let topics = vec![DeleteRecordsTopic { name: "t".into(), partitions }];
        let request = Request::DeleteRecords(DeleteRecordsRequest { topics, timeout_ms: 30_000 });
        let Response::DeleteRecords(response) = client.call(request, 2).await else { panic!() };
        let deleted = &response.topics[0].partitions[0];
        assert_eq!((deleted.error_code, deleted.low_watermark), found, "{offset}");
    }
    assert_eq!(client.list(-2).await.0, 5);
    // Who gives it no time is told what came of it all the same.
    client.produce(0, batch_of(&[("a", 1)], None)).await;
    let partitions = vec![DeleteRecordsPartition { partition: 0, offset: 6 }];
    let topics = vec![DeleteRecordsTopic { name: "t".into(), partitions }];
    let request = Request::DeleteRecords(DeleteRecordsRequest { topics, timeout_ms: 0 });
    let Response::DeleteRecords(response) = client.call(request, 2).await else { panic!() };
    assert_eq!((response.topics[0].partitions[0].error_code, response.topics[0].partitions[0].low_watermark), (0, 6));
    house.close().await;
}

/// A request may name so many partitions, and its time is for all of them, also if it only asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_request_may_ask_for_is_bounded_in_number_and_time() {
    let house = House::open_with(|config| config.kafka.num_partitions = 3).await;
    let mut client = house.client().await;
    let topic = |number: usize, num_partitions| CreatableTopic {
        name: format!("t{number}"),
        num_partitions,
        replication_factor: -1,
        ..Default::default()
    };
    let mut codes = async |topics, validate_only, timeout_ms| {
        let request = Request::CreateTopics(CreateTopicsRequest { topics, timeout_ms, validate_only });
        let Response::CreateTopics(response) = client.call(request, 7).await else { panic!() };
        response.topics.iter().map(|topic| topic.error_code).collect::<Vec<_>>()
    };
    for validate_only in [true, false] {
        let most = vec![topic(0, 10_000), topic(1, 1)];
        assert_eq!(codes(most, validate_only, 30_000).await, [44, 44], "validate only: {validate_only}");
        let default = (0..3334).map(|number| topic(number, -1)).collect();
        assert_eq!(codes(default, validate_only, 30_000).await, [44; 3334]);
        let nonsense = (0..10_001).map(|number| topic(number, -7)).collect();
        assert_eq!(codes(nonsense, validate_only, 30_000).await, [44; 10_001]);
    }
    let all = (0..3333).map(|number| topic(number, -1)).collect();
    assert_eq!(codes(all, true, 120_000).await, [0; 3333]);
    // No machine says so much in a millisecond.
    let all = (0..10_000).map(|number| topic(number, 1)).collect();
    assert_eq!(codes(all, true, 1).await.last(), Some(&7));
    assert!(house.broker.topics().is_empty(), "nothing was created");
    house.close().await;
}

/// Admin clients take a broker that they know, and do not ask again when it says that it is not ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_a_broker_that_was_just_started_waits_for_it_to_know_the_catalog() {
    let house = House::open().await;
    for name in ["t", "more", "gone"] {
        house.topic(name, 1).await;
    }
    let house = house.started_again().await;
    let created = CreatableTopic { name: "new".into(), num_partitions: 1, replication_factor: 1, ..Default::default() };
    let more = MorePartitions { name: "more".into(), count: 2, assignments: None };
    let change = ConfigChange { name: "retention.ms".into(), operation: 0, value: Some("1000".into()) };
    let incremental = IncrementalResource { resource_type: 2, resource_name: "t".into(), configs: vec![change] };
    let altered = AlterConfigsResource { resource_type: 2, resource_name: "more".into(), configs: Vec::new() };
    let described = DescribeConfigsResource { resource_type: 2, resource_name: "t".into(), configuration_keys: None };
    let timeout_ms = 30_000;
    let requests = [
        Request::CreateTopics(CreateTopicsRequest { topics: vec![created], timeout_ms, validate_only: false }),
        Request::CreatePartitions(CreatePartitionsRequest { topics: vec![more], timeout_ms, validate_only: false }),
        Request::DeleteTopics(DeleteTopicsRequest {
            topic_names: vec!["gone".into()],
            timeout_ms,
            ..Default::default()
        }),
        Request::IncrementalAlterConfigs(IncrementalAlterConfigsRequest {
            resources: vec![incremental],
            validate_only: false,
        }),
        Request::AlterConfigs(AlterConfigsRequest { resources: vec![altered], validate_only: false }),
        Request::DescribeConfigs(DescribeConfigsRequest { resources: vec![described], ..Default::default() }),
    ];
    let mut asked = Vec::new();
    for request in requests {
        let (mut client, version) = (house.client().await, request.api().min.max(1));
        client.send(&request, version).await;
        asked.push((client, request, version));
    }
    for (mut client, request, version) in asked {
        let (_, response) = client.receive(request.api(), version).await;
        let code = match &response {
            Response::CreateTopics(answer) => answer.topics[0].error_code,
            Response::CreatePartitions(answer) => answer.results[0].error_code,
            Response::DeleteTopics(answer) => answer.topics[0].error_code,
            Response::IncrementalAlterConfigs(answer) => answer.responses[0].error_code,
            Response::AlterConfigs(answer) => answer.responses[0].error_code,
            Response::DescribeConfigs(answer) => answer.results[0].error_code,
            other => panic!("{other:?}"),
        };
        assert_eq!(code, 0, "{response:?}");
    }
    house.close().await;
}
