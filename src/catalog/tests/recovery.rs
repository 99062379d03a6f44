//! A recovery from one survivor: what it leaves, and how the partitions get their replicas back.

use super::*;

/// Brokers 1..=4 of cluster 1; groups 1 and 2 on the first three, 3 on the last three and 4 on the first three, never initialised.
fn formed() -> CatalogState {
    let mut state = with_brokers();
    execute(&mut state, Command::FormCluster { cluster: ClusterId(1) }).unwrap();
    let partitions = [(1, [1, 2, 3], 1), (2, [3, 1, 2], 4), (3, [2, 3, 4], 7), (4, [1, 2, 3], 10)];
    let partitions = partitions.map(|(group, brokers, replica)| partition(group, &brokers, replica)).to_vec();
    execute(&mut state, create(1, "t", partitions)).unwrap();
    let created = (1..=12).map(|replica: u64| (GroupId(1 + (replica - 1) / 3), ReplicaId(replica))).collect();
    let initialised = [(1, 1), (2, 4), (3, 7)].map(|(group, replica)| (GroupId(group), ReplicaId(replica))).to_vec();
    execute(&mut state, Command::Report(ReplicaReport { created, initialised, ..Default::default() })).unwrap();
    state
}

fn replicas_of(state: &CatalogState, group: u64) -> Vec<(u32, u64, ReplicaState)> {
    let partition = state.partition(GroupId(group)).unwrap();
    partition.replicas.iter().map(|record| (record.broker.0, record.replica.0, record.state)).collect()
}

#[test]
fn a_recovery_leaves_the_survivor_alone_with_what_it_has() {
    let mut state = formed();
    let producers = execute(&mut state, Command::AllocateProducerIds { count: 5 });
    assert_eq!(producers, Ok(Done::ProducerIds { first: 1, count: 5 }));
    let before = state.clone();
    execute(&mut state, recovery(9, 1, &[10], false)).unwrap();
    assert_eq!((state.cluster(), state.superseded()), (Some(ClusterId(9)), &[ClusterId(1)][..]));
    assert_eq!(state.brokers().keys().copied().collect::<Vec<_>>(), [BrokerId(1)]);
    assert_eq!(replicas_of(&state, 1), [(1, 1, ReplicaState::Created)]);
    assert_eq!(replicas_of(&state, 2), [(1, 5, ReplicaState::Created)]);
    // Nothing of it is here: it stays as lost as it is.
    assert_eq!(replicas_of(&state, 3), replicas_of(&before, 3));
    assert_eq!(state.recovery(GroupId(3)), None);
    // It never held anything: it begins anew.
    let (below, anew) = (13 + RECOVERY_GAP, state.partition(GroupId(4)).unwrap());
    assert_eq!((replicas_of(&state, 4), anew.initialised), (vec![(1, below, ReplicaState::New)], false));
    let record = state.recovery(GroupId(1)).unwrap();
    assert_eq!((record.survivor, record.below, record.replicas), (ReplicaId(1), ReplicaId(below), 3));
    assert_eq!(state.replicas_wanted(state.partition(GroupId(1)).unwrap()), 3);
    // Nothing that the others may have given out comes again.
    assert_eq!(state.next_group(), GroupId(before.next_group().0 + RECOVERY_GAP));
    assert_eq!(state.next_replica(), ReplicaId(below + 1));
    let producers = execute(&mut state, Command::AllocateProducerIds { count: 1 });
    assert_eq!(producers, Ok(Done::ProducerIds { first: 6 + RECOVERY_GAP as i64, count: 1 }));
    // Again it is nothing, the former id is not taken back, and a version that does not know of recoveries is not let in.
    assert_eq!(execute(&mut state, recovery(9, 1, &[], false)), Ok(Done::Unchanged));
    assert!(execute(&mut state, recovery(1, 1, &[], false)).is_err());
    assert!(execute(&mut state, Command::RegisterBroker(registration(2, 2, 1))).is_err());
}

#[test]
fn what_is_lost_begins_anew_only_if_that_was_ordered() {
    let mut state = formed();
    execute(&mut state, recovery(9, 1, &[1, 10], true)).unwrap();
    for group in [1, 3, 4] {
        let partition = state.partition(GroupId(group)).unwrap();
        let new = partition.replicas[0];
        assert_eq!((partition.replicas.len(), new.broker, new.state), (1, BrokerId(1), ReplicaState::New), "{group}");
        assert!(!partition.initialised && new.replica >= state.recovery(GroupId(group)).unwrap().below);
        assert_eq!(state.replicas_wanted(partition), 3);
    }
    assert_eq!(replicas_of(&state, 2), [(1, 5, ReplicaState::Created)]);
}

#[test]
fn a_directory_that_the_catalog_does_not_know_is_no_survivor() {
    let mut state = formed();
    execute(&mut state, Command::RegisterBroker(registration(1, 77, 2))).unwrap();
    let before = state.clone();
    assert!(matches!(execute(&mut state, recovery(9, 1, &[], false)), Err(CommandError::Stale(_))));
    assert!(matches!(execute(&mut state, recovery(9, 7, &[], false)), Err(CommandError::Stale(_))));
    assert_eq!(state, before);
}

#[test]
fn a_recovered_partition_gets_its_replicas_back_one_place_each() {
    let mut state = formed();
    execute(&mut state, recovery(9, 1, &[], false)).unwrap();
    for broker in [2, 3, 4] {
        let directory = u128::from(broker) + 100;
        let back = BrokerRegistration { feature_level: FEATURE_LEVEL, ..registration(broker, directory, 1) };
        execute(&mut state, Command::RegisterBroker(back)).unwrap();
    }
    let add = |state: &CatalogState, group: u64, broker: u32, first| {
        let directory = DirectoryId(u128::from(broker) + 100);
        let new = Placement { broker: BrokerId(broker), directory, replica: state.next_replica() };
        Command::AddReplicas { additions: vec![Addition { group: GroupId(group), first, new }] }
    };
    let next = state.next_replica().0;
    let command = add(&state, 1, 2, true);
    execute(&mut state, command).unwrap();
    assert_eq!(replicas_of(&state, 1), [(2, next, ReplicaState::New), (1, 1, ReplicaState::Created)]);
    // Until it votes, somebody whom nobody has ever heard of is on the way out.
    let leaving = &state.partition(GroupId(1)).unwrap().leaving;
    assert_eq!((leaving.len(), leaving[0].broker, leaving[0].replica), (1, BrokerId(2), ReplicaId(next + 1)));
    for (group, broker, why) in [(1, 2, "has another"), (3, 3, "no replica is missing"), (99, 3, "no such")] {
        let command = add(&state, group, broker, false);
        let refused = execute(&mut state, command).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    let command = add(&state, 1, 3, false);
    execute(&mut state, command).unwrap();
    let command = add(&state, 1, 4, false);
    assert!(execute(&mut state, command).unwrap_err().to_string().contains("no replica is missing"));
    execute(&mut state, Command::DeleteTopic { topic: TopicId(1) }).unwrap();
    assert!(state.recoveries().is_empty() && state.superseded() == [ClusterId(1)]);
}
