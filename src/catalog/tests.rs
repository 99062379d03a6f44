//! The catalog as a whole: the same commands give the same state whatever keeps the rows, and snapshots and caches are
//! never more than a shortcut to it.

use std::collections::BTreeSet;

use pontoon_raft::log::frame::FrameKind;
use pontoon_raft::types::{BrokerId, DirectoryId, GroupId, log_id};
use proptest::prelude::*;

use super::command::*;
use super::state::{ReplicaState, TopicId};
use super::tables::MemoryTables;
use super::tables::sled_tables::SledTables;
use super::*;

fn frame(index: u64, payload: Vec<u8>) -> Frame {
    let header = FrameHeader {
        payload_bytes: payload.len() as u32,
        ..FrameHeader::bare(FrameKind::Records, log_id(1, index), 0)
    };
    Frame::new(header, payload.into())
}

fn apply(application: &CatalogApplication, index: u64, command: &Command) -> CommandResult {
    let answer = application.apply(log_id(1, index), &frame(index, command.encode()));
    codec::decode::<CommandResult>(&answer).unwrap()
}

fn registration(broker: u32, directory: u128, incarnation: u64) -> BrokerRegistration {
    BrokerRegistration {
        broker: BrokerId(broker),
        directory: DirectoryId(directory),
        incarnation,
        peer_address: format!("127.0.0.1:{}", 7000 + broker),
        http_address: format!("127.0.0.1:{}", 8000 + broker),
        catalog_replica: ReplicaId(directory as u64 + 1000),
        feature_level: 1,
    }
}

fn place(broker: u32, replica: u64) -> Placement {
    Placement { broker: BrokerId(broker), directory: DirectoryId(u128::from(broker)), replica: ReplicaId(replica) }
}

fn partition(group: u64, brokers: &[u32], first_replica: u64) -> NewPartition {
    let replicas = brokers.iter().zip(first_replica..).map(|(broker, replica)| place(*broker, replica)).collect();
    NewPartition { group: GroupId(group), replicas }
}

fn create(topic: u128, name: &str, partitions: Vec<NewPartition>) -> Command {
    Command::CreateTopic { topic: TopicId(topic), name: name.to_owned(), config: BTreeMap::new(), partitions }
}

fn execute(state: &mut CatalogState, command: Command) -> CommandResult {
    apply::execute(state, &command).0
}

/// A state with brokers 1..=4 on directories of the same numbers.
fn with_brokers() -> CatalogState {
    let mut state = CatalogState::default();
    for broker in 1..=4 {
        execute(&mut state, Command::RegisterBroker(registration(broker, u128::from(broker), 1))).unwrap();
    }
    state
}

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
    // Once lost, never created again: files that are missing must not start empty under this id (RULES.md R5).
    assert_eq!(execute(&mut state, Command::Report(created)), Ok(Done::Unchanged));
    assert_eq!(state_of(&state, old), Some(ReplicaState::Lost));
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
    let future = Envelope { feature_level: 2, command: vec![1, 250, 9, 9, 9] };
    let (result, changed) = apply::execute_bytes(&mut state, &codec::encode(&future)).unwrap();
    assert!(matches!(result, Err(CommandError::FeatureLevel(_))) && changed.is_empty());
    assert!(execute(&mut state, Command::SetFeatureLevel { level: 2 }).unwrap_err().to_string().contains("broker 1"));
    let mut newer = BTreeMap::clone(&state.brokers);
    newer.values_mut().for_each(|broker| broker.feature_level = 2);
    state.brokers = Arc::new(newer);
    execute(&mut state, Command::SetFeatureLevel { level: 2 }).unwrap();
    assert!(apply::execute_bytes(&mut state, &codec::encode(&future)).is_err(), "this version must stop");
    assert!(execute(&mut state, Command::RegisterBroker(registration(1, 1, 9))).is_err(), "and may not come back");
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

/// Something to do to the catalog; names and ids collide often.
fn arbitrary_command() -> impl Strategy<Value = Command> {
    let small = 0..6u64;
    prop_oneof![
        (1..5u32, 1..3u128, 0..3u64)
            .prop_map(|(b, d, i)| { Command::RegisterBroker(registration(b, u128::from(b) + d * 4 - 4, i)) }),
        (0..9u128, "[ab][._][ab]", 1..60u64, 1..90u64, 1..3usize).prop_map(|(id, name, group, replica, count)| {
            let partitions = (0..count as u64).map(|n| partition(group + n, &[1, 2, 3], replica + 3 * n)).collect();
            create(id, &name, partitions)
        }),
        (0..9u128).prop_map(|id| Command::DeleteTopic { topic: TopicId(id) }),
        (0..9u128, small.clone(), 1..60u64, 1..90u64).prop_map(|(id, before, group, replica)| Command::AlterTopic {
            topic: TopicId(id),
            config: BTreeMap::from([("retention.ms".to_owned(), (before > 2).then(|| "1".to_owned()))]),
            partitions_before: before as u32,
            partitions: if before < 4 { vec![partition(group, &[1, 2], replica)] } else { vec![] },
        }),
        (1..60u64, 1..90u64, 1..120u64, 1..5u32).prop_map(|(group, old, new, broker)| Command::ReplaceReplicas {
            replacements: vec![Replacement { group: GroupId(group), old: ReplicaId(old), new: place(broker, new) }],
        }),
        (1..60u64, 1..90u64).prop_map(|(group, replica)| Command::RestartPartition {
            group: GroupId(group),
            replicas: partition(group, &[1, 4], replica).replicas,
        }),
        (prop::collection::vec((1..20u64, 1..60u64), 0..20), 0..4u8).prop_map(|(pairs, what)| {
            let pairs: Vec<_> = pairs.into_iter().map(|(g, r)| (GroupId(g), ReplicaId(r))).collect();
            Command::Report(match what {
                0 => ReplicaReport { created: pairs, ..Default::default() },
                1 => {
                    let lost = pairs.into_iter().map(|(g, r)| (g, r, String::new())).collect();
                    ReplicaReport { lost, ..Default::default() }
                }
                2 => ReplicaReport { removed: pairs, ..Default::default() },
                _ => ReplicaReport { initialised: pairs, ..Default::default() },
            })
        }),
        (1..5u32).prop_map(|count| Command::AllocateProducerIds { count }),
    ]
}

/// Topics are created with ids that are mostly free, so that there is something to change.
fn history() -> impl Strategy<Value = Vec<Command>> {
    prop::collection::vec(arbitrary_command(), 1..60).prop_map(|commands| {
        let brokers = (1..5).map(|b| Command::RegisterBroker(registration(b, u128::from(b), 0)));
        let first = create(100, "first", vec![partition(1, &[1, 2, 3], 1), partition(2, &[2, 3, 4], 4)]);
        brokers.chain([first]).chain(commands).collect()
    })
}

fn check_invariants(state: &CatalogState) {
    let mut replicas = BTreeSet::new();
    for topic in state.topics().values() {
        assert_eq!(state.topic(&topic.name).unwrap().id, topic.id);
        for (number, partition) in topic.partitions.iter().enumerate() {
            let home = state.group(partition.group).unwrap();
            assert_eq!((home.topic, home.partition as usize), (topic.id, number));
            assert!(partition.group < state.next_group());
            for record in partition.replicas.iter().chain(&partition.leaving) {
                assert!(replicas.insert(record.replica), "replica {} twice", record.replica);
                assert!(record.replica < state.next_replica());
            }
        }
    }
    assert_eq!(state.names.len(), state.topics.len());
    let partitions: usize = state.topics.values().map(|topic| topic.partitions.len()).sum();
    assert_eq!(state.groups.len(), partitions);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever keeps the rows, and wherever a restart, a snapshot or a lost folder falls: the same commands give the
    /// same answers and the same state.
    #[test]
    fn the_same_commands_give_the_same_state(history in history(), cut in any::<prop::sample::Index>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("catalog");
            let cut = cut.index(history.len());
            let replica = ReplicaId(5);
            let memory = Catalog::new(Arc::new(MemoryTables::default()));
            let one = memory.application(replica);
            let mut sled = Catalog::new(Arc::new(SledTables::new(&path)));
            let mut two = sled.application(replica);
            let mut copy: Option<Arc<CatalogApplication>> = None;
            for (index, command) in history.iter().enumerate() {
                let answer = apply(&one, index as u64, command);
                prop_assert_eq!(&apply(&two, index as u64, command), &answer);
                if let Some(copy) = &copy {
                    prop_assert_eq!(&apply(copy, index as u64, command), &answer);
                }
                check_invariants(&memory.state());
                if index == cut {
                    // One restarts over its rows, one begins with a snapshot.
                    drop(two);
                    sled.close().await;
                    sled = Catalog::new(Arc::new(SledTables::new(&path)));
                    two = sled.application(replica);
                    prop_assert_eq!(two.applied(), one.applied());
                    let restored = Catalog::new(Arc::new(MemoryTables::default())).application(ReplicaId(6));
                    restored.restore(one.applied(), &one.snapshot().unwrap()).unwrap();
                    copy = Some(restored);
                }
            }
            prop_assert_eq!(&*memory.state(), &*sled.state());
            let copy = copy.unwrap();
            prop_assert_eq!(&*memory.state(), &copy.inner.lock().state);
            prop_assert_eq!(copy.snapshot().unwrap(), one.snapshot().unwrap());
            sled.close().await;
            Ok(())
        })?;
    }
}

fn some_history() -> Vec<Command> {
    let mut commands: Vec<_> = (1..5).map(|b| Command::RegisterBroker(registration(b, u128::from(b), 0))).collect();
    commands.push(create(1, "t", vec![partition(1, &[1, 2, 3], 1)]));
    commands.push(Command::AllocateProducerIds { count: 3 });
    commands
}

fn replay(application: &CatalogApplication) {
    for (index, command) in some_history().iter().enumerate() {
        let _ = application.apply(log_id(1, index as u64), &frame(index as u64, command.encode()));
    }
}

#[tokio::test]
async fn deleting_the_folder_costs_a_rebuild_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog");
    let open = || Catalog::new(Arc::new(SledTables::new(&path)));
    let catalog = open();
    replay(&catalog.application(ReplicaId(1)));
    let state = catalog.state();
    catalog.close().await;
    let catalog = open();
    assert_eq!(catalog.application(ReplicaId(1)).applied(), Some(log_id(1, 5)));
    assert_eq!(catalog.state(), state, "shown before anything is applied");
    catalog.close().await;
    std::fs::remove_dir_all(&path).unwrap();
    let catalog = open();
    let application = catalog.application(ReplicaId(1));
    assert_eq!(application.applied(), None);
    replay(&application);
    assert_eq!(catalog.state(), state);
    catalog.close().await;
}

#[tokio::test]
async fn another_replicas_rows_are_not_used() {
    let tables: Arc<dyn Tables> = Arc::new(MemoryTables::default());
    let catalog = Catalog::new(tables.clone());
    replay(&catalog.application(ReplicaId(1)));
    catalog.close().await;
    assert_eq!(Catalog::new(tables.clone()).application(ReplicaId(2)).applied(), None);
    assert!(tables.load().is_none(), "they are thrown away");
}

#[tokio::test]
async fn rotten_or_missing_rows_are_not_used() {
    for damage in 0..3 {
        let tables = Arc::new(MemoryTables::default());
        let catalog = Catalog::new(tables.clone());
        replay(&catalog.application(ReplicaId(1)));
        catalog.close().await;
        let (stamp, mut rows) = tables.load().unwrap();
        let first = rows.keys().next().unwrap().clone();
        match damage {
            0 => drop(rows.remove(&first)),
            1 => *rows.get_mut(&first).unwrap().last_mut().unwrap() ^= 1,
            _ => {}
        }
        let rows = rows.into_iter().map(|(key, value)| (key, Some(value))).collect();
        tables.write(tables::Batch { replace: true, rows, stamp }).unwrap();
        let applied = Catalog::new(tables).application(ReplicaId(1)).applied();
        assert_eq!(applied.is_some(), damage == 2, "damage {damage}");
    }
}

#[tokio::test]
async fn rows_ahead_of_the_log_are_discarded_and_readers_go_back() {
    let tables: Arc<dyn Tables> = Arc::new(MemoryTables::default());
    let catalog = Catalog::new(tables.clone());
    let application = catalog.application(ReplicaId(1));
    replay(&application);
    application.discard().unwrap();
    assert_eq!((application.applied(), catalog.state().brokers().len()), (None, 0));
    replay(&application);
    assert_eq!(catalog.state().brokers().len(), 4);
    catalog.close().await;
    assert_eq!(Catalog::new(tables).application(ReplicaId(1)).applied(), Some(log_id(1, 5)));
}

#[tokio::test]
async fn readers_never_see_a_new_replica_catching_up() {
    let catalog = Catalog::new(Arc::new(MemoryTables::default()));
    replay(&catalog.application(ReplicaId(1)));
    let state = catalog.state();
    let fresh = catalog.application(ReplicaId(2));
    let first = &some_history()[0];
    let _ = fresh.apply(log_id(1, 0), &frame(0, first.encode()));
    assert_eq!(catalog.state(), state);
    replay(&fresh);
    let _ = fresh.apply(log_id(1, 9), &frame(9, Command::DeleteTopic { topic: TopicId(1) }.encode()));
    assert!(catalog.state().topics().is_empty());
}

#[tokio::test]
async fn a_snapshot_of_rubbish_is_refused_and_leaves_the_state() {
    let catalog = Catalog::new(Arc::new(MemoryTables::default()));
    let application = catalog.application(ReplicaId(1));
    replay(&application);
    let state = catalog.state();
    assert!(application.restore(Some(log_id(2, 50)), b"rubbish").is_err());
    assert_eq!((catalog.state(), application.applied()), (state, Some(log_id(1, 5))));
}
