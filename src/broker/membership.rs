//! What the leader of a partition's group does so that its members become what the catalog assigns.
//!
//! A pure function of the assignment and the group's status. Each step is safe by itself and may be repeated; the one
//! that changes voters waits until those that come have caught up (RULES.md R5, R9).

use std::collections::{BTreeMap, BTreeSet};

use pontoon_raft::raft_group::GroupStatus;
use pontoon_raft::types::{BrokerId, ReplicaHome, ReplicaId};

use crate::catalog::state::{PartitionRecord, ReplicaRecord, ReplicaState};

/// A learner this many entries behind counts as caught up.
pub(super) const LAG_MAX: u64 = 256;

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing until the catalog changes.
    Settled,
    /// Someone is catching up: look again soon.
    Wait,
    /// A change of voters was left half-way: finish it.
    FinishChange,
    /// Let this replica learn.
    AddLearner(ReplicaId, BrokerId),
    /// Make exactly these the voters.
    ChangeVoters(Vec<ReplicaId>),
    /// Tell the catalog that these have left.
    ReportRemoved(Vec<ReplicaId>),
}

/// The members a new group starts with.
pub(super) fn first_members(partition: &PartitionRecord) -> BTreeMap<ReplicaId, ReplicaHome> {
    partition.replicas.iter().map(|record| (record.replica, ReplicaHome { broker: record.broker })).collect()
}

/// Whether the group may be initialised now: never before, and every replica is there, or a majority while the brokers of
/// the others are away. Those are members all the same: they have no vote to forget before they are created (RULES.md R5).
pub(super) fn may_initialise(partition: &PartitionRecord, alive: impl Fn(BrokerId) -> bool) -> bool {
    let ready = |record: &ReplicaRecord| match record.state {
        ReplicaState::Created => true,
        ReplicaState::New => !alive(record.broker),
        ReplicaState::Lost => false,
    };
    let created = partition.replicas.iter().filter(|record| record.state == ReplicaState::Created).count();
    !partition.initialised && partition.replicas.iter().all(ready) && created * 2 > partition.replicas.len()
}

/// What the leader does next.
pub(super) fn next_step(partition: &PartitionRecord, status: &GroupStatus) -> Step {
    if status.joint {
        return Step::FinishChange;
    }
    // A replica that is still to be created will report itself; until then nothing is taken away either.
    if partition.replicas.iter().any(|record| record.state == ReplicaState::New) {
        return Step::Settled;
    }
    let created = || partition.replicas.iter().filter(|record| record.state == ReplicaState::Created);
    if let Some(missing) = created().find(|record| !status.members.contains_key(&record.replica)) {
        return Step::AddLearner(missing.replica, missing.broker);
    }
    let voters: BTreeSet<_> = status.members.iter().filter(|(_, m)| m.voter).map(|(id, _)| *id).collect();
    let behind = |replica: &ReplicaId| {
        let matched = status.members.get(replica).and_then(|member| member.matched);
        matched.is_none_or(|matched| matched + LAG_MAX < status.last_index.unwrap_or(0))
    };
    if created().any(|record| !voters.contains(&record.replica) && behind(&record.replica)) {
        return Step::Wait;
    }
    // A lost voter keeps its vote until its replacement can take it: the quorum must not shrink.
    let stays = |record: &&_| match record {
        ReplicaRecord { state: ReplicaState::Created, .. } => true,
        record => voters.contains(&record.replica),
    };
    let target: BTreeSet<_> = partition.replicas.iter().filter(stays).map(|record| record.replica).collect();
    if target != voters || status.members.keys().any(|member| !target.contains(member)) {
        return match target.is_empty() {
            true => Step::Settled,
            false => Step::ChangeVoters(target.into_iter().collect()),
        };
    }
    let gone = partition.leaving.iter().filter(|record| !status.members.contains_key(&record.replica));
    let gone: Vec<_> = gone.map(|record| record.replica).collect();
    if gone.is_empty() { Step::Settled } else { Step::ReportRemoved(gone) }
}

#[cfg(test)]
mod tests {
    use pontoon_raft::raft_group::Member;
    use pontoon_raft::types::{DirectoryId, GroupId};

    use super::*;

    fn record(replica: u64, broker: u32, state: ReplicaState) -> ReplicaRecord {
        ReplicaRecord { broker: BrokerId(broker), directory: DirectoryId(1), replica: ReplicaId(replica), state }
    }

    fn partition(replicas: &[ReplicaRecord], leaving: &[ReplicaRecord]) -> PartitionRecord {
        PartitionRecord { group: GroupId(1), replicas: replicas.to_vec(), leaving: leaving.to_vec(), initialised: true }
    }

    fn status(members: &[(u64, bool, u64)]) -> GroupStatus {
        let members = members.iter().map(|(replica, voter, matched)| {
            (ReplicaId(*replica), Member { broker: BrokerId(0), voter: *voter, matched: Some(*matched) })
        });
        GroupStatus {
            leader: None,
            leading: true,
            term: 1,
            last_index: Some(1000),
            applied_index: Some(1000),
            members: members.collect(),
            joint: false,
            stopped: None,
        }
    }

    use ReplicaState::{Created, Lost, New};

    #[test]
    fn a_replacement_goes_through_every_step_in_order() {
        let old = record(2, 2, Lost);
        let mut now = partition(&[record(1, 1, Created), record(4, 2, New), record(3, 3, Created)], &[old]);
        let before = [(1, true, 1000), (2, true, 3), (3, true, 1000)];
        assert_eq!(next_step(&now, &status(&before)), Step::Settled, "not before it is created");
        now.replicas[1].state = Created;
        assert_eq!(next_step(&now, &status(&before)), Step::AddLearner(ReplicaId(4), BrokerId(2)));
        let with = |matched| [&before[..], &[(4, false, matched)]].concat();
        assert_eq!(next_step(&now, &status(&with(100))), Step::Wait);
        let voters = vec![ReplicaId(1), ReplicaId(3), ReplicaId(4)];
        assert_eq!(next_step(&now, &status(&with(900))), Step::ChangeVoters(voters));
        let after = status(&[(1, true, 1000), (3, true, 1000), (4, true, 1000)]);
        assert_eq!(next_step(&now, &after), Step::ReportRemoved(vec![ReplicaId(2)]));
        now.leaving.clear();
        assert_eq!(next_step(&now, &after), Step::Settled);
    }

    #[test]
    fn a_lost_replica_keeps_its_vote_until_it_is_replaced() {
        let now = partition(&[record(1, 1, Created), record(2, 2, Lost), record(3, 3, Created)], &[]);
        let members = [(1, true, 1000), (2, true, 3), (3, true, 1000)];
        assert_eq!(next_step(&now, &status(&members)), Step::Settled);
    }

    #[test]
    fn two_that_are_replaced_change_in_one_step() {
        let replicas = [1, 2, 3, 6, 7].map(|replica| record(replica, replica as u32, Created));
        let now = partition(&replicas, &[record(4, 6, Lost), record(5, 7, Lost)]);
        let members = [1, 2, 3, 4, 5].map(|replica| (replica, true, 1000));
        let learning = [&members[..], &[(6, false, 1000), (7, false, 1000)]].concat();
        let voters = [1, 2, 3, 6, 7].map(ReplicaId).to_vec();
        assert_eq!(next_step(&now, &status(&learning)), Step::ChangeVoters(voters));
    }

    #[test]
    fn a_learner_whose_progress_is_unknown_waits() {
        let now = partition(&[record(1, 1, Created), record(4, 2, Created)], &[record(2, 2, Lost)]);
        let mut members = status(&[(1, true, 1000), (2, true, 1), (4, false, 1000)]);
        members.members.get_mut(&ReplicaId(4)).unwrap().matched = None;
        assert_eq!(next_step(&now, &members), Step::Wait);
    }

    #[test]
    fn a_change_left_half_way_is_finished() {
        let now = partition(&[record(1, 1, Created)], &[]);
        let joint = GroupStatus { joint: true, ..status(&[(1, true, 1000), (2, true, 1000)]) };
        assert_eq!(next_step(&now, &joint), Step::FinishChange);
    }

    #[test]
    fn a_group_is_initialised_once_and_only_when_all_are_there_or_most_and_the_others_away() {
        let mut now = partition(&[record(1, 1, Created), record(2, 2, Created), record(3, 3, New)], &[]);
        now.initialised = false;
        let all = |_| true;
        let without = |broker| move |other| other != BrokerId(broker);
        assert!(!may_initialise(&now, all), "3 is about to be created");
        assert!(may_initialise(&now, without(3)) && !may_initialise(&now, without(2)));
        now.replicas[1].state = New;
        assert!(!may_initialise(&now, |broker| broker == BrokerId(1)), "1 of 3 elects nobody");
        now.replicas.iter_mut().for_each(|record| record.state = Created);
        assert!(may_initialise(&now, all));
        now.replicas[2].state = Lost;
        assert!(!may_initialise(&now, all) && !may_initialise(&now, without(3)));
        now.replicas[2].state = Created;
        now.initialised = true;
        assert!(!may_initialise(&now, all));
    }
}
