//! What each command does, and when it is refused.

use std::collections::BTreeSet;

use super::*;

#[test]
fn a_name_is_taken_once_and_free_again_after_deletion() {
    let mut state = with_brokers();
    assert_eq!(execute(&mut state, create(1, "a.b", vec![partition(1, &[1, 2], 1)])), Ok(Done::Changed));
    let again = execute(&mut state, create(2, "a.b", vec![partition(2, &[1], 3)]));
    assert_eq!(again, Err(CommandError::TopicExists("a.b".to_owned())));
    let collides = execute(&mut state, create(2, "a_b", vec![partition(2, &[1], 3)])).unwrap_err();
    assert!(collides.to_string().contains("a_b") && collides.to_string().contains("a.b"));
    assert!(state.topic("a_b").is_none() && state.topic("a.b").is_some());
    execute(&mut state, Command::DeleteTopic { topic: TopicId(1) }).unwrap();
    assert_eq!(execute(&mut state, create(3, "a_b", vec![partition(2, &[1], 3)])), Ok(Done::Changed));
}

#[test]
fn ids_are_never_used_twice_not_even_after_deletion() {
    let mut state = with_brokers();
    execute(&mut state, create(1, "t", vec![partition(5, &[1, 2], 7)])).unwrap();
    execute(&mut state, Command::DeleteTopic { topic: TopicId(1) }).unwrap();
    for (group, replica) in [(5, 20), (4, 20), (6, 8), (6, 1)] {
        let refused = execute(&mut state, create(2, "u", vec![partition(group, &[1, 2], replica)]));
        assert!(matches!(refused, Err(CommandError::Stale(_))), "{group} {replica} {refused:?}");
    }
    // Within one command too.
    let twice = vec![partition(6, &[1, 2], 9), partition(6, &[1, 2], 11)];
    assert!(execute(&mut state, create(2, "u", twice)).is_err());
    assert_eq!((state.next_group(), state.next_replica()), (GroupId(6), ReplicaId(9)), "a refusal takes no ids");
    execute(&mut state, create(2, "u", vec![partition(6, &[1, 2], 9)])).unwrap();
}

#[test]
fn a_replica_is_placed_only_on_a_directory_its_broker_has() {
    let mut state = with_brokers();
    let elsewhere = Placement { directory: DirectoryId(99), ..place(1, 1) };
    let partitions = vec![NewPartition { group: GroupId(1), replicas: vec![elsewhere] }];
    assert!(matches!(execute(&mut state, create(1, "t", partitions)), Err(CommandError::Stale(_))));
    assert!(matches!(execute(&mut state, create(1, "t", vec![partition(1, &[9], 1)])), Err(CommandError::Stale(_))));
    let two_on_one = execute(&mut state, create(1, "t", vec![partition(1, &[1, 1], 1)]));
    assert!(matches!(two_on_one, Err(CommandError::InvalidPartitions(_))));
}

#[test]
fn bad_names_configs_and_counts_are_refused_at_apply() {
    let mut state = with_brokers();
    let one = || vec![partition(1, &[1], 1)];
    assert!(matches!(execute(&mut state, create(1, "a/b", one())), Err(CommandError::InvalidName(_))));
    assert!(matches!(execute(&mut state, create(1, "t", vec![])), Err(CommandError::InvalidPartitions(_))));
    let config = BTreeMap::from([("retention.m".to_owned(), "1".to_owned())]);
    let command = Command::CreateTopic { topic: TopicId(1), name: "t".to_owned(), config, partitions: one() };
    assert!(execute(&mut state, command).unwrap_err().to_string().contains("retention.ms"));
    assert_eq!(state, with_brokers());
}

#[test]
fn altering_adds_partitions_once_and_resets_keys() {
    let mut state = with_brokers();
    execute(&mut state, create(1, "t", vec![partition(1, &[1], 1)])).unwrap();
    let alter = |config: &[(&str, Option<&str>)], before, partitions| Command::AlterTopic {
        topic: TopicId(1),
        config: config.iter().map(|(k, v)| ((*k).to_owned(), v.map(str::to_owned))).collect(),
        partitions_before: before,
        partitions,
    };
    execute(&mut state, alter(&[("retention.ms", Some("5"))], 1, vec![partition(2, &[2], 2)])).unwrap();
    assert_eq!(state.topic("t").unwrap().partitions.len(), 2);
    assert_eq!(state.group(GroupId(2)).unwrap().partition, 1);
    let defaults =
        BTreeMap::from([("retention.ms", "7"), ("segment.ms", "9")].map(|(k, v)| (k.to_owned(), v.to_owned())));
    let effective = |state: &CatalogState, group| state.topic_config_of(GroupId(group), &defaults);
    let config = effective(&state, 2).unwrap();
    assert_eq!((config.retention_ms, config.segment_ms), (Some(5), 9), "the topic's value beats the broker's");
    assert_eq!(effective(&state, 3), None, "no such partition");
    let again = execute(&mut state, alter(&[], 1, vec![partition(3, &[2], 3)]));
    assert!(matches!(again, Err(CommandError::Stale(_))));
    assert!(execute(&mut state, alter(&[("retention.x", None)], 2, vec![])).is_err());
    execute(&mut state, alter(&[("retention.ms", None)], 2, vec![])).unwrap();
    assert!(state.topic("t").unwrap().config.is_empty());
    assert_eq!(effective(&state, 1).unwrap().retention_ms, Some(7), "what was reset is the broker's again");
    assert_eq!(execute(&mut state, alter(&[("retention.ms", None)], 2, vec![])), Ok(Done::Unchanged));
}

#[test]
fn a_replica_is_new_then_created_then_lost_then_replaced_then_gone() {
    let mut state = with_brokers();
    execute(&mut state, create(1, "t", vec![partition(1, &[1, 2, 3], 1)])).unwrap();
    let (group, old) = (GroupId(1), ReplicaId(2));
    let state_of = |state: &CatalogState, replica| state.partition(group).unwrap().replica(replica).map(|r| r.state);
    let created = ReplicaReport { created: vec![(group, old)], ..Default::default() };
    let lost = ReplicaReport { lost: vec![(group, old, "rotten".to_owned())], ..Default::default() };
    execute(&mut state, Command::Report(created.clone())).unwrap();
    assert_eq!(state_of(&state, old), Some(ReplicaState::Created));
    execute(&mut state, Command::Report(lost)).unwrap();
    assert_eq!(state_of(&state, old), Some(ReplicaState::Lost));
    // Unless it runs again; brokers of before would not see it so.
    assert_eq!(execute(&mut state, Command::Report(created.clone())), Ok(Done::Unchanged));
    assert_eq!(state_of(&state, old), Some(ReplicaState::Lost));
    let mut upgraded = state.clone();
    for broker in 1..=4 {
        assert_eq!(execute(&mut upgraded, Command::Report(created.clone())), Ok(Done::Unchanged));
        let known = BrokerRegistration { feature_level: RETURN_LEVEL, ..upgraded.brokers[&BrokerId(broker)].clone() };
        execute(&mut upgraded, Command::RegisterBroker(known)).unwrap();
    }
    assert_eq!(execute(&mut upgraded, Command::Report(created)), Ok(Done::Changed));
    assert_eq!(state_of(&upgraded, old), Some(ReplicaState::Created));
    let replace = |new| Command::ReplaceReplicas { replacements: vec![Replacement { group, old, new }] };
    assert!(execute(&mut state, replace(place(2, 4))).is_err(), "not initialised");
    execute(
        &mut state,
        Command::Report(ReplicaReport { initialised: vec![(group, ReplicaId(1))], ..Default::default() }),
    )
    .unwrap();
    assert!(execute(&mut state, replace(place(1, 4))).is_err(), "broker 1 has another replica");
    assert!(execute(&mut state, replace(place(2, 3))).is_err(), "id 3 is used");
    execute(&mut state, replace(place(2, 4))).unwrap();
    let record = state.partition(group).unwrap();
    assert_eq!(record.replicas.iter().map(|r| r.replica.0).collect::<Vec<_>>(), [1, 4, 3]);
    assert_eq!((record.replicas[1].state, record.leaving[0].replica), (ReplicaState::New, old));
    let restart = Command::RestartPartition { group, replicas: vec![place(1, 9)] };
    assert!(matches!(execute(&mut state, restart), Err(CommandError::Stale(_))), "it may hold records");
    execute(&mut state, Command::Report(ReplicaReport { removed: vec![(group, old)], ..Default::default() })).unwrap();
    assert!(state.partition(group).unwrap().leaving.is_empty());
}

#[test]
fn a_leader_that_has_been_replaced_does_not_make_its_successors_initialised() {
    let mut state = with_brokers();
    execute(&mut state, create(1, "t", vec![partition(1, &[1, 2, 3], 1)])).unwrap();
    let replicas = vec![place(1, 4), place(2, 5), place(3, 6)];
    execute(&mut state, Command::RestartPartition { group: GroupId(1), replicas }).unwrap();
    let report = |replica| ReplicaReport { initialised: vec![(GroupId(1), ReplicaId(replica))], ..Default::default() };
    assert_eq!(execute(&mut state, Command::Report(report(1))), Ok(Done::Unchanged));
    assert!(!state.partition(GroupId(1)).unwrap().initialised);
    execute(&mut state, Command::Report(report(4))).unwrap();
    assert!(state.partition(GroupId(1)).unwrap().initialised);
}

#[test]
fn a_broker_is_refused_with_anothers_directory_or_catalog_replica() {
    let mut state = with_brokers();
    let stolen = BrokerRegistration { catalog_replica: ReplicaId(1002), ..registration(1, 77, 2) };
    assert!(execute(&mut state, Command::RegisterBroker(stolen)).is_err());
    assert!(execute(&mut state, Command::RegisterBroker(registration(9, 1, 2))).is_err());
    // A wiped broker that would keep its old catalog replica's id.
    let reused = BrokerRegistration { catalog_replica: ReplicaId(1001), ..registration(1, 78, 2) };
    assert!(execute(&mut state, Command::RegisterBroker(reused)).is_err());
    execute(&mut state, Command::RegisterBroker(registration(1, 78, 2))).unwrap();
}

#[test]
fn a_command_above_the_feature_level_is_refused_without_being_read() {
    let mut state = with_brokers();
    let level = FEATURE_LEVEL + 1;
    let future = Envelope { feature_level: level, command: vec![1, 250, 9, 9, 9] };
    let (result, changed) = apply::execute_bytes(&mut state, &codec::encode(&future)).unwrap();
    assert!(matches!(result, Err(CommandError::FeatureLevel(_))) && changed.is_empty());
    assert!(execute(&mut state, Command::SetFeatureLevel { level }).unwrap_err().to_string().contains("broker 1"));
    let mut newer = BTreeMap::clone(&state.brokers);
    newer.values_mut().for_each(|broker| broker.feature_level = level);
    state.brokers = Arc::new(newer);
    execute(&mut state, Command::SetFeatureLevel { level }).unwrap();
    assert!(apply::execute_bytes(&mut state, &codec::encode(&future)).is_err(), "this version must stop");
    assert!(execute(&mut state, Command::RegisterBroker(registration(1, 1, 9))).is_err(), "and may not come back");
}

/// An older one would refuse what this one takes, and be of another mind from then on.
#[test]
fn what_an_older_broker_does_not_know_is_refused_until_it_has_been_upgraded() {
    let mut state = with_brokers();
    let config = BTreeMap::from([("delete.retention.ms".to_owned(), "1".to_owned())]);
    let partitions = vec![partition(1, &[1], 1)];
    let create = Command::CreateTopic { topic: TopicId(7), name: "orders".to_owned(), config, partitions };
    let why = execute(&mut state, create.clone()).unwrap_err().to_string();
    assert!(why.contains("delete.retention.ms=1 is taken once every broker"), "{why}");
    assert_eq!(state, with_brokers());
    for broker in state.brokers.keys().copied().collect::<Vec<_>>() {
        let known = BrokerRegistration { feature_level: FEATURE_LEVEL, ..state.brokers[&broker].clone() };
        assert!(execute(&mut state.clone(), create.clone()).is_err());
        execute(&mut state, Command::RegisterBroker(known)).unwrap();
    }
    execute(&mut state, create).unwrap();
    let alter = |value: Option<&str>| Command::AlterTopic {
        topic: TopicId(7),
        config: BTreeMap::from([("delete.retention.ms".to_owned(), value.map(str::to_owned))]),
        partitions_before: 1,
        partitions: Vec::new(),
    };
    execute(&mut state, alter(Some("2"))).unwrap();
    execute(&mut state, alter(None)).unwrap();
}

#[test]
fn rubbish_in_the_log_is_answered_and_changes_nothing() {
    let mut state = with_brokers();
    for bytes in [&b""[..], b"\x01", b"\x01\x01\x02\x01\xff", b"\x09\x09"] {
        let (result, changed) = apply::execute_bytes(&mut state, bytes).unwrap();
        assert!(matches!(result, Err(CommandError::Malformed(_))) && changed.is_empty());
    }
    assert_eq!(state, with_brokers());
}

#[test]
fn producer_ids_are_given_out_once() {
    let mut state = CatalogState::default();
    let mut seen = BTreeSet::new();
    for _ in 0..10 {
        let Ok(Done::ProducerIds { first, count }) = execute(&mut state, Command::AllocateProducerIds { count: 7 })
        else {
            panic!("no ids");
        };
        for id in first..first + i64::from(count) {
            assert!(id >= 0 && seen.insert(id));
        }
    }
}
