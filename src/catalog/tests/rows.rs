//! Rows and snapshots: never more than a shortcut to the state that the commands give.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::catalog::tables::MemoryTables;
use crate::catalog::tables::sled_tables::SledTables;

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
        (2..5u128, 1..5u32, 1..20u64, any::<bool>()).prop_map(|(cluster, broker, replica, empty)| recovery(
            cluster,
            broker,
            &[replica],
            empty
        )),
        (1..20u64, 1..5u32, 0..40u64, any::<bool>()).prop_map(|(group, broker, replica, first)| Command::AddReplicas {
            additions: vec![Addition { group: GroupId(group), first, new: place(broker, RECOVERY_GAP + replica) }],
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
        let level = |b| BrokerRegistration { feature_level: FEATURE_LEVEL, ..registration(b, u128::from(b), 0) };
        let form = Command::FormCluster { cluster: ClusterId(1) };
        let brokers = [form].into_iter().chain((1..5).map(|b| Command::RegisterBroker(level(b))));
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
    for (group, record) in state.recoveries() {
        let partition = state.partition(*group).unwrap();
        assert!(
            record.below <= state.next_replica() && partition.replicas.len() as u32 <= state.replicas_wanted(partition)
        );
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
    assert!(tables.load().unwrap().is_none(), "they are thrown away");
}

#[tokio::test]
async fn rotten_or_missing_rows_are_not_used() {
    for damage in 0..3 {
        let tables = Arc::new(MemoryTables::default());
        let catalog = Catalog::new(tables.clone());
        replay(&catalog.application(ReplicaId(1)));
        catalog.close().await;
        let (stamp, mut rows) = tables.load().unwrap().unwrap();
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
