//! Which lost replicas are replaced, and by what.
//!
//! Pure functions of the catalog's state. A replica is lost when its broker reported so, or when its broker has come back
//! with another data directory. A broker that is merely down has lost nothing: no data moves because of it. Only a group that
//! has never had a leader, and whose first replica, which is to give it one, is away, starts anew in another order.
//!
//! A replica is replaced only while the rest is a majority that has its files: with less, what is there may be the last
//! copy of acknowledged records, and a person must decide (`pontoon recover`). A partition with one replica is therefore
//! never replaced (RULES.md R7). One whose disk is still there waits, moreover, until the brokers of such a majority are alive,
//! have said in this life which disk they have, and have all of the group by what its leader says: of those that are away nobody
//! knows what they have, and what one that was away is still to get may be on one disk beside the lost one's. What a person has so recovered from one survivor gets its replicas back here ([`grow`]).

use std::collections::BTreeSet;

use pontoon_raft::types::{BrokerId, GroupId, ReplicaId};

use super::placement;
use crate::catalog::command::{Addition, Command, Placement, Replacement};
use crate::catalog::state::{CatalogState, PartitionRecord, ReplicaRecord, ReplicaState};

/// Most replacements in one command, so that no command outgrows what a peer accepts.
const REPLACEMENTS_MAX: usize = 1000;

/// Whether a replica's files are gone.
pub fn is_lost(state: &CatalogState, replica: &ReplicaRecord) -> bool {
    replica.state == ReplicaState::Lost || !state.on_current_directory(replica)
}

/// Whether most of the partition's replicas have their files, of those on brokers that `count`. A replacement is created empty: it
/// has nothing to count on until the one it replaces has left the group, which happens when it votes itself.
fn has_healthy_majority(state: &CatalogState, partition: &PartitionRecord, count: impl Fn(BrokerId) -> bool) -> bool {
    let arriving = |replica: &ReplicaRecord| partition.leaving.iter().any(|left| left.broker == replica.broker);
    let healthy = |replica: &&ReplicaRecord| {
        let sound = replica.state == ReplicaState::Created && !is_lost(state, replica);
        sound && !arriving(replica) && count(replica.broker)
    };
    partition.replicas.iter().filter(healthy).count() * 2 > partition.replicas.len()
}

/// The replicas that are to be replaced now. Those on a directory that is gone take nothing with them; of the others something may be
/// left, and is given up only where a majority that is here has its files.
fn replaceable<'a>(
    state: &'a CatalogState,
    partition: &'a PartitionRecord,
    counts: &impl Fn(GroupId, BrokerId) -> bool,
    due: &'a impl Fn(GroupId, BrokerId) -> bool,
) -> impl Iterator<Item = &'a ReplicaRecord> {
    let sound = has_healthy_majority(state, partition, |_| true);
    let answers = has_healthy_majority(state, partition, |broker| counts(partition.group, broker));
    let lost = partition.replicas.iter().filter(move |replica| sound && is_lost(state, replica));
    lost.filter(move |replica| !state.on_current_directory(replica) || answers && due(partition.group, replica.broker))
}

/// Whether the replica that is to initialise the group is away, while a majority is not.
fn waits_for_its_first(partition: &PartitionRecord, away: &BTreeSet<BrokerId>) -> bool {
    let is_away = |replica: &&ReplicaRecord| away.contains(&replica.broker);
    let missing = partition.replicas.iter().filter(is_away).count();
    partition.replicas.first().is_some_and(|first| is_away(&first)) && missing * 2 < partition.replicas.len()
}

/// The commands that repair what can be repaired now, while these brokers are away for longer. `counts`: whether a broker's replica of a group can
/// be counted on, for it is there and has everything. `due`: whether a broker's replica of a group may be replaced again, if it is lost and its
/// disk is there; where a disk lets every new one down at once, too, that is not at every look.
///
/// Ids follow the state's; propose the commands before anything else changes it, or they are refused as stale and computed anew. But whether the
/// other replicas are still sound is not asked again where a replacement is applied: nothing may come between.
pub fn plan(
    state: &CatalogState,
    away: &BTreeSet<BrokerId>,
    counts: impl Fn(GroupId, BrokerId) -> bool,
    due: impl Fn(GroupId, BrokerId) -> bool,
) -> Vec<Command> {
    let mut ids = Ids { next: state.next_replica().0 };
    let lossy = |partition: &&&PartitionRecord| partition.replicas.iter().any(|replica| is_lost(state, replica));
    let partitions: Vec<&PartitionRecord> =
        state.topics().values().flat_map(|topic| topic.partitions.iter().map(|partition| &**partition)).collect();
    let mut commands = Vec::new();
    let waits = |partition: &PartitionRecord, replica: &ReplicaRecord| {
        is_lost(state, replica) && state.on_current_directory(replica) && !due(partition.group, replica.broker)
    };
    let stuck = |partition: &&&PartitionRecord| {
        let soon = partition.replicas.iter().any(|replica| waits(partition, replica));
        !soon && lossy(partition) || waits_for_its_first(partition, away)
    };
    for partition in partitions.iter().filter(|partition| !partition.initialised).filter(stuck) {
        // It never acknowledged anything: all of it starts anew, so that whoever initialises it finds only empty logs. On the same
        // brokers: each drops what it had before it creates another, so that of those before no majority is left.
        let mut order: Vec<&ReplicaRecord> = partition.replicas.iter().collect();
        order.sort_by_key(|replica| away.contains(&replica.broker));
        let replicas = order.into_iter().filter_map(|old| ids.placement(state, old)).collect();
        commands.push(Command::RestartPartition { group: partition.group, replicas });
    }
    let mut replacements = Vec::new();
    for partition in partitions.iter().filter(lossy).filter(|partition| partition.initialised) {
        if replacements.len() >= REPLACEMENTS_MAX {
            break;
        }
        for old in replaceable(state, partition, &counts, &due) {
            if let Some(new) = ids.placement(state, old) {
                replacements.push(Replacement { group: partition.group, old: old.replica, new });
            }
        }
    }
    if !replacements.is_empty() {
        commands.push(Command::ReplaceReplicas { replacements });
    }
    commands
}

/// New replicas where a recovery left fewer than there were, as far as there are brokers that live and hold none. Like a
/// replacement they need a majority that has its files; so a partition whose newcomers have not taken their places yet gets no more.
pub fn grow(state: &CatalogState, alive: impl Fn(BrokerId) -> bool) -> Option<Command> {
    let brokers: Vec<BrokerId> = state.brokers().keys().copied().filter(|broker| alive(*broker)).collect();
    let mut loads = placement::loads(state, brokers.iter().copied());
    let mut next = state.next_replica().0;
    let mut additions: Vec<Addition> = Vec::new();
    let partitions = state.recoveries().keys().filter_map(|group| state.partition(*group));
    for partition in
        partitions.filter(|partition| partition.initialised && has_healthy_majority(state, partition, |_| true))
    {
        let missing = (state.replicas_wanted(partition) as usize).saturating_sub(partition.replicas.len());
        let mut free: Vec<BrokerId> = brokers.iter().copied().filter(|id| partition.on(*id).is_none()).collect();
        free.sort_by_key(|broker| (loads.get(broker).map_or(0, |load| load.replicas), *broker));
        let mut leader = partition.replicas.first().map(|first| first.broker);
        for broker in free.into_iter().take(missing) {
            if additions.len() >= REPLACEMENTS_MAX {
                return Some(Command::AddReplicas { additions });
            }
            let Some(known) = state.brokers().get(&broker) else { continue };
            let leads = |id: Option<BrokerId>| id.and_then(|id| loads.get(&id)).map_or(0, |load| load.leads);
            let first = leads(Some(broker)) + 1 < leads(leader);
            if let Some(load) = leader.filter(|_| first).and_then(|leader| loads.get_mut(&leader)) {
                load.leads -= 1;
            }
            let load = loads.entry(broker).or_default();
            load.replicas += 1;
            load.leads += u32::from(first);
            leader = if first { Some(broker) } else { leader };
            let new = Placement { broker, directory: known.directory, replica: ReplicaId(next) };
            next += 2; // Its own, and the one that stands for its place.
            additions.push(Addition { group: partition.group, first, new });
        }
    }
    (!additions.is_empty()).then_some(Command::AddReplicas { additions })
}

struct Ids {
    next: u64,
}

impl Ids {
    /// A new replica in place of `old`: on the same broker, on the directory it has now.
    fn placement(&mut self, state: &CatalogState, old: &ReplicaRecord) -> Option<Placement> {
        let broker = state.brokers().get(&old.broker)?;
        let replica = ReplicaId(self.next);
        self.next += 1;
        Some(Placement { broker: old.broker, directory: broker.directory, replica })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use pontoon_raft::types::{ClusterId, DirectoryId};

    use super::*;
    use crate::catalog::apply::execute;
    use crate::catalog::command::{BrokerRegistration, FEATURE_LEVEL, NewPartition, Recovery, ReplicaReport};
    use crate::catalog::state::TopicId;

    /// The plan while nobody is away.
    fn planned(state: &CatalogState) -> Vec<Command> {
        plan(state, &BTreeSet::new(), |_, _| true, |_, _| true)
    }

    fn register(state: &mut CatalogState, broker: u32, directory: u128) {
        let registration = BrokerRegistration {
            broker: BrokerId(broker),
            directory: DirectoryId(directory),
            incarnation: 1,
            peer_address: String::new(),
            http_address: String::new(),
            catalog_replica: ReplicaId(directory as u64),
            feature_level: 1,
        };
        execute(state, &Command::RegisterBroker(registration)).0.unwrap();
    }

    /// On the directory that has the broker's number.
    fn placement(broker: u32, replica: u64) -> Placement {
        Placement { broker: BrokerId(broker), directory: DirectoryId(u128::from(broker)), replica: ReplicaId(replica) }
    }

    /// The topic, which has a group less than `group`, gets that one, with these replicas on brokers 1, 2, 3 and so on.
    fn add_group(state: &mut CatalogState, group: u64, replicas: std::ops::RangeInclusive<u64>) {
        let replicas = (1..).zip(replicas).map(|(broker, replica)| placement(broker, replica)).collect();
        let more = Command::AlterTopic {
            topic: TopicId(1),
            config: BTreeMap::new(),
            partitions_before: group as u32 - 1,
            partitions: vec![NewPartition { group: GroupId(group), replicas }],
        };
        execute(state, &more).0.unwrap();
    }

    /// Brokers 1, 2, 3 on directories of the same numbers; groups of these sizes, replica ids counting up.
    fn state(sizes: &[u32], initialised: bool) -> CatalogState {
        let mut state = CatalogState::default();
        (1..=3).for_each(|broker| register(&mut state, broker, u128::from(broker)));
        let mut replica = 0;
        let mut next = |broker| {
            replica += 1;
            placement(broker, replica)
        };
        let partitions: Vec<_> = (1..)
            .zip(sizes)
            .map(|(group, size)| NewPartition { group: GroupId(group), replicas: (1..=*size).map(&mut next).collect() })
            .collect();
        let created = partitions.iter().flat_map(|p| p.replicas.iter().map(|r| (p.group, r.replica))).collect();
        let groups = partitions.iter().map(|partition| (partition.group, partition.replicas[0].replica)).collect();
        let (name, config) = ("t".to_owned(), BTreeMap::new());
        execute(&mut state, &Command::CreateTopic { topic: TopicId(1), name, config, partitions }).0.unwrap();
        let report =
            ReplicaReport { created, initialised: if initialised { groups } else { Vec::new() }, ..Default::default() };
        execute(&mut state, &Command::Report(report)).0.unwrap();
        state
    }

    fn lose(state: &mut CatalogState, group: u64, replica: u64) {
        let lost = vec![(GroupId(group), ReplicaId(replica), "rotten".to_owned())];
        execute(state, &Command::Report(ReplicaReport { lost, ..Default::default() })).0.unwrap();
    }

    /// Executes the plan and returns how many commands it had.
    fn repair(state: &mut CatalogState) -> usize {
        let commands = planned(state);
        for command in &commands {
            execute(state, command).0.unwrap();
        }
        assert_eq!(planned(state), [], "one round repairs all that can be repaired");
        commands.len()
    }

    #[test]
    fn a_sound_cluster_needs_no_repair() {
        assert_eq!(planned(&state(&[3, 2, 1], true)), []);
    }

    #[test]
    fn a_lost_replica_is_replaced_on_its_broker_in_its_place() {
        let mut state = state(&[3], true);
        lose(&mut state, 1, 1);
        assert_eq!(repair(&mut state), 1);
        let partition = state.partition(GroupId(1)).unwrap();
        assert_eq!(partition.replicas[0].broker, BrokerId(1));
        assert_eq!((partition.replicas[0].replica, partition.replicas[0].state), (ReplicaId(4), ReplicaState::New));
        assert_eq!(partition.leaving[0].replica, ReplicaId(1));
    }

    #[test]
    fn everything_of_a_wiped_broker_is_replaced_on_its_new_directory() {
        let mut state = state(&[3, 3, 3], true);
        register(&mut state, 2, 22);
        repair(&mut state);
        for group in 1..=3 {
            let partition = state.partition(GroupId(group)).unwrap();
            assert_eq!(partition.on(BrokerId(2)).unwrap().directory, DirectoryId(22));
        }
        // And wiped once more before the first replacement has caught up.
        register(&mut state, 2, 222);
        repair(&mut state);
        assert_eq!(state.partition(GroupId(1)).unwrap().leaving.len(), 2);
    }

    #[test]
    fn without_a_majority_that_has_its_files_nothing_is_thrown_away() {
        let mut one = state(&[1, 2, 3], true);
        lose(&mut one, 1, 1);
        lose(&mut one, 2, 3);
        lose(&mut one, 3, 4);
        lose(&mut one, 3, 5);
        assert_eq!(planned(&one), [], "1 of 1, 1 of 2 and 2 of 3 are gone");
    }

    /// A replacement is reported created while it is still empty. What it does not have yet must not be thrown away elsewhere.
    #[test]
    fn a_replacement_that_has_not_taken_its_place_yet_has_no_files_to_count_on() {
        let mut state = state(&[3], true);
        lose(&mut state, 1, 3);
        repair(&mut state);
        let created = vec![(GroupId(1), ReplicaId(4))];
        execute(&mut state, &Command::Report(ReplicaReport { created, ..Default::default() })).0.unwrap();
        lose(&mut state, 1, 2);
        assert_eq!(planned(&state), [], "1 of 3 has its files, and the replacement is empty");
        // It votes, and the one before it is let go: now two have them.
        let removed = vec![(GroupId(1), ReplicaId(3))];
        execute(&mut state, &Command::Report(ReplicaReport { removed, ..Default::default() })).0.unwrap();
        assert_eq!(repair(&mut state), 1);
    }

    /// Broker 3 has been down for a while and lacks what the others have acknowledged since: the replica that does not run may be one
    /// of the only two that have it.
    #[test]
    fn a_lost_replica_whose_disk_is_there_is_not_thrown_away_while_another_broker_is_away() {
        let mut state = state(&[3], true);
        lose(&mut state, 1, 1);
        let without =
            |state: &_, broker| plan(state, &BTreeSet::new(), |_, other| other != BrokerId(broker), |_, _| true);
        assert_eq!(without(&state, 3), [], "2 alone has what was acknowledged, for all that is known");
        assert_eq!(without(&state, 1), planned(&state), "its own broker need not be there");
        assert_eq!(planned(&state).len(), 1);
        // Of a wiped disk nothing can be thrown away.
        register(&mut state, 1, 11);
        assert_eq!(without(&state, 3), planned(&state));
        assert_eq!(planned(&state).len(), 1);
    }

    #[test]
    fn one_that_is_lost_again_waits_until_it_is_due_unless_its_disk_is_another() {
        let put_off =
            |state: &_, broker| plan(state, &BTreeSet::new(), |_, _| true, |_, other| other != BrokerId(broker));
        for initialised in [true, false] {
            let mut state = state(&[3], initialised);
            lose(&mut state, 1, 2);
            assert_eq!(put_off(&state, 2), [], "initialised: {initialised}");
            assert_eq!(put_off(&state, 1), planned(&state));
            assert_eq!(planned(&state).len(), 1);
            register(&mut state, 2, 22);
            assert_eq!(put_off(&state, 2), planned(&state));
            assert_eq!(planned(&state).len(), 1);
        }
    }

    #[test]
    fn of_two_lost_replicas_the_wiped_one_is_replaced_while_another_broker_is_away() {
        let mut state = state(&[3], true);
        (4..=5).for_each(|broker| register(&mut state, broker, u128::from(broker)));
        add_group(&mut state, 2, 4..=8);
        let created = (4..=8).map(|replica| (GroupId(2), ReplicaId(replica))).collect();
        let initialised = vec![(GroupId(2), ReplicaId(4))];
        execute(&mut state, &Command::Report(ReplicaReport { created, initialised, ..Default::default() })).0.unwrap();
        lose(&mut state, 2, 4);
        register(&mut state, 5, 55);
        let commands = plan(&state, &BTreeSet::new(), |_, broker| broker != BrokerId(2), |_, _| true);
        let [Command::ReplaceReplicas { replacements }] = &commands[..] else { panic!("{commands:?}") };
        let replaced: Vec<_> = replacements.iter().map(|replacement| replacement.old).collect();
        assert_eq!(replaced, [ReplicaId(8)]);
    }

    #[test]
    fn a_partition_that_was_never_initialised_starts_anew_as_a_whole() {
        let mut state = state(&[3], false);
        register(&mut state, 1, 11);
        assert_eq!(repair(&mut state), 1);
        let partition = state.partition(GroupId(1)).unwrap();
        assert!(partition.leaving.is_empty());
        assert_eq!(partition.replicas.iter().map(|r| r.replica.0).collect::<Vec<_>>(), [4, 5, 6]);
        assert!(partition.replicas.iter().all(|replica| replica.state == ReplicaState::New));
    }

    #[test]
    fn a_new_group_whose_first_replica_is_away_starts_anew_with_another_first() {
        let without = |state: &_, brokers: &[u32]| {
            let away: BTreeSet<_> = brokers.iter().copied().map(BrokerId).collect();
            plan(state, &away, |_, broker| !away.contains(&broker), |_, _| true)
        };
        assert_eq!(without(&state(&[3, 2, 1], true), &[1]), [], "it has had a leader: nothing moves");
        let mut new = state(&[3, 2, 1], false);
        for brokers in [&[2, 3][..], &[1, 2], &[1, 3]] {
            assert_eq!(without(&new, brokers), [], "{brokers:?}: the first is there, or no majority is");
        }
        let commands = without(&new, &[1]);
        assert_eq!(commands.len(), 1, "of 2 and of 1 a majority is away");
        execute(&mut new, &commands[0]).0.unwrap();
        let partition = new.partition(GroupId(1)).unwrap();
        let order: Vec<_> = partition.replicas.iter().map(|r| (r.broker.0, r.replica.0, r.state)).collect();
        assert_eq!(order, [(2, 7, ReplicaState::New), (3, 8, ReplicaState::New), (1, 9, ReplicaState::New)]);
        assert_eq!(without(&new, &[1]), [], "once is enough");
        // A leader was elected just before, and its word came first.
        let mut led = state(&[3], false);
        let stale = without(&led, &[1]);
        let initialised = vec![(GroupId(1), ReplicaId(2))];
        execute(&mut led, &Command::Report(ReplicaReport { initialised, ..Default::default() })).0.unwrap();
        assert!(execute(&mut led, &stale[0]).0.is_err(), "it may hold records");
    }

    #[test]
    fn a_mixed_plan_draws_ids_in_the_order_of_application() {
        let mut state = state(&[3, 3], true);
        add_group(&mut state, 3, 7..=9);
        register(&mut state, 3, 33);
        assert_eq!(repair(&mut state), 2);
    }

    fn recovered(state: &mut CatalogState) {
        execute(state, &Command::FormCluster { cluster: ClusterId(1) }).0.unwrap();
        let recovery = Recovery {
            cluster: ClusterId(9),
            broker: BrokerId(1),
            directory: DirectoryId(1),
            unusable: Vec::new(),
            empty_lost: false,
        };
        execute(state, &Command::Recover(recovery)).0.unwrap();
    }

    fn comes(state: &mut CatalogState, broker: u32) {
        let known = state.brokers().values().next().unwrap();
        let directory = 100 + u128::from(broker);
        let new = BrokerRegistration {
            broker: BrokerId(broker),
            directory: DirectoryId(directory),
            catalog_replica: ReplicaId(directory as u64),
            feature_level: FEATURE_LEVEL,
            ..known.clone()
        };
        execute(state, &Command::RegisterBroker(new)).0.unwrap();
    }

    fn grown(state: &mut CatalogState) -> usize {
        let Some(command) = grow(state, |_| true) else { return 0 };
        execute(state, &command).0.unwrap();
        let Command::AddReplicas { additions } = command else { panic!("{command:?}") };
        additions.len()
    }

    /// Every replica is created, votes, and who stood in its place is gone.
    fn settle(state: &mut CatalogState) {
        let partitions: Vec<_> = state.topics().values().flat_map(|topic| topic.partitions.clone()).collect();
        let all = |of: fn(&PartitionRecord) -> &[ReplicaRecord]| {
            let each = |partition: &Arc<PartitionRecord>| {
                of(partition).iter().map(|record| (partition.group, record.replica)).collect::<Vec<_>>()
            };
            partitions.iter().flat_map(each).collect::<Vec<_>>()
        };
        let (created, removed) = (all(|partition| &partition.replicas), all(|partition| &partition.leaving));
        execute(state, &Command::Report(ReplicaReport { created, removed, ..Default::default() })).0.unwrap();
    }

    #[test]
    fn recovered_partitions_grow_as_brokers_come_and_share_the_leaderships() {
        let mut state = state(&[3; 9], true);
        recovered(&mut state);
        assert_eq!((planned(&state), grow(&state, |_| true)), (Vec::new(), None), "nobody is there");
        comes(&mut state, 7);
        assert!(grow(&state, |broker| broker != BrokerId(7)).is_none(), "not on one that does not live");
        assert_eq!(grown(&mut state), 9);
        comes(&mut state, 8);
        assert_eq!(grown(&mut state), 0, "not before the first have taken their places");
        settle(&mut state);
        assert_eq!(grown(&mut state), 9);
        settle(&mut state);
        comes(&mut state, 9);
        assert_eq!((grown(&mut state), planned(&state)), (0, Vec::new()));
        let loads = placement::loads(&state, state.brokers().keys().copied());
        let leads: Vec<u32> = loads.values().map(|load| load.leads).collect();
        assert!(leads.iter().max().unwrap() - leads[..3].iter().min().unwrap() <= 3, "{loads:?}");
        assert_eq!(loads.values().map(|load| load.replicas).collect::<Vec<_>>(), [9, 9, 9, 0]);
    }

    /// The survivor's files are all there is until a newcomer votes.
    #[test]
    fn a_survivor_that_is_lost_before_the_newcomers_vote_is_not_replaced() {
        let mut state = state(&[3], true);
        recovered(&mut state);
        comes(&mut state, 2);
        comes(&mut state, 3);
        assert_eq!(grown(&mut state), 2);
        let partition = state.partition(GroupId(1)).unwrap().clone();
        let created = partition.replicas.iter().map(|record| (GroupId(1), record.replica)).collect();
        execute(&mut state, &Command::Report(ReplicaReport { created, ..Default::default() })).0.unwrap();
        let survivor = state.recovery(GroupId(1)).unwrap().survivor.0;
        lose(&mut state, 1, survivor);
        assert_eq!(planned(&state), []);
    }
}
