//! What the leader of a partition's group does so that its members become what the catalog assigns.
//!
//! A pure function of the assignment and the group's status. Each step is safe by itself and may be repeated; the one
//! that changes voters takes in those of the newcomers that have caught up, and lets those go in whose places they come
//! (RULES.md R5, R9).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pontoon_raft::raft_group::GroupStatus;
use pontoon_raft::types::{BrokerId, ReplicaHome, ReplicaId};

use crate::catalog::state::{PartitionRecord, ReplicaRecord, ReplicaState};

/// A learner this many entries behind counts as caught up, however old they are.
const LAG_MAX: u64 = 256;

/// How long a new group waits for a broker that lives to create its replica.
const CREATED_WITHIN: Duration = Duration::from_secs(5);

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

/// Whether the group may be initialised now, after it has `waited` so long: never before, and every replica is there, or a majority while
/// the brokers of the others are away or do not come to it (a full disk, one that stalls). Those are members all the same: they have
/// no vote to forget before they are created (RULES.md R5).
pub(super) fn may_initialise(partition: &PartitionRecord, waited: Duration, alive: impl Fn(BrokerId) -> bool) -> bool {
    let ready = |record: &ReplicaRecord| match record.state {
        ReplicaState::Created => true,
        ReplicaState::New => waited >= CREATED_WITHIN || !alive(record.broker),
        ReplicaState::Lost => false,
    };
    let created = partition.replicas.iter().filter(|record| record.state == ReplicaState::Created).count();
    !partition.initialised && partition.replicas.iter().all(ready) && created * 2 > partition.replicas.len()
}

/// Replicas that are there and do not vote yet.
fn newcomers<'a>(
    partition: &'a PartitionRecord,
    status: &'a GroupStatus,
) -> impl Iterator<Item = &'a ReplicaRecord> + use<'a> {
    let votes = |replica: &ReplicaId| status.members.get(replica).is_some_and(|member| member.voter);
    partition.replicas.iter().filter(move |record| record.state == ReplicaState::Created && !votes(&record.replica))
}

/// Whether there is anybody who must catch up.
pub(super) fn has_newcomers(partition: &PartitionRecord, status: &GroupStatus) -> bool {
    newcomers(partition, status).next().is_some()
}

/// What the leader does next. Who has `needed`, an index that the log came to a while ago, has caught up: on a busy partition the
/// newest entries are always on their way.
pub(super) fn next_step(partition: &PartitionRecord, status: &GroupStatus, needed: u64) -> Step {
    if status.joint {
        return Step::FinishChange;
    }
    if let Some(missing) = newcomers(partition, status).find(|record| !status.members.contains_key(&record.replica)) {
        return Step::AddLearner(missing.replica, missing.broker);
    }
    let level = |record: &&ReplicaRecord| {
        let matched = status.members.get(&record.replica).and_then(|member| member.matched);
        matched.is_some_and(|matched| matched >= needed || matched + LAG_MAX >= status.last_index.unwrap_or(0))
    };
    let voters: BTreeSet<_> = status.members.iter().filter(|(_, m)| m.voter).map(|(id, _)| *id).collect();
    let mut target: BTreeSet<_> = newcomers(partition, status).filter(level).map(|record| record.replica).collect();
    // A voter that is lost or replaced keeps its vote until the one in its place takes it: the quorum must not shrink.
    let joined = |record: &ReplicaRecord| voters.contains(&record.replica) || target.contains(&record.replica);
    let all_joined = partition.replicas.iter().all(joined);
    let replaced = |voter: &ReplicaId| match in_place_of(partition, *voter) {
        Some(successor) => joined(successor),
        None => all_joined,
    };
    let stays = |voter: &&ReplicaId| partition.replica(**voter).is_some() || !replaced(voter);
    let staying: Vec<_> = voters.iter().filter(stays).copied().collect();
    target.extend(staying);
    let wanted =
        |member: &ReplicaId| target.contains(member) || newcomers(partition, status).any(|n| n.replica == *member);
    if target != voters || !status.members.keys().all(wanted) {
        return match target.is_empty() {
            true => Step::Settled,
            false => Step::ChangeVoters(target.into_iter().collect()),
        };
    }
    // Until its successor votes, that one has nothing to count on, and who leaves says so in the catalog.
    let gone = partition.leaving.iter().filter(|old| {
        let votes = |successor: &ReplicaRecord| voters.contains(&successor.replica);
        !status.members.contains_key(&old.replica) && partition.on(old.broker).is_none_or(votes)
    });
    let gone: Vec<_> = gone.map(|record| record.replica).collect();
    match gone.is_empty() {
        false => Step::ReportRemoved(gone),
        true if has_newcomers(partition, status) => Step::Wait,
        true => Step::Settled,
    }
}

/// Who came in a leaving replica's place: replacements are made on the same broker.
fn in_place_of(partition: &PartitionRecord, old: ReplicaId) -> Option<&ReplicaRecord> {
    partition.on(partition.leaving.iter().find(|record| record.replica == old)?.broker)
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

    /// Nobody has been seen for long: only who has nearly all has caught up.
    fn next(partition: &PartitionRecord, status: &GroupStatus) -> Step {
        next_step(partition, status, 1000)
    }

    #[test]
    fn a_replacement_goes_through_every_step_in_order() {
        let old = record(2, 2, Lost);
        let mut now = partition(&[record(1, 1, Created), record(4, 2, New), record(3, 3, Created)], &[old]);
        let before = [(1, true, 1000), (2, true, 3), (3, true, 1000)];
        assert_eq!(next(&now, &status(&before)), Step::Settled, "not before it is created");
        now.replicas[1].state = Created;
        assert_eq!(next(&now, &status(&before)), Step::AddLearner(ReplicaId(4), BrokerId(2)));
        let with = |matched| [&before[..], &[(4, false, matched)]].concat();
        assert_eq!(next(&now, &status(&with(100))), Step::Wait);
        let voters = vec![ReplicaId(1), ReplicaId(3), ReplicaId(4)];
        assert_eq!(next(&now, &status(&with(900))), Step::ChangeVoters(voters));
        let after = status(&[(1, true, 1000), (3, true, 1000), (4, true, 1000)]);
        assert_eq!(next(&now, &after), Step::ReportRemoved(vec![ReplicaId(2)]));
        now.leaving.clear();
        assert_eq!(next(&now, &after), Step::Settled);
    }

    #[test]
    fn a_lost_replica_keeps_its_vote_until_it_is_replaced() {
        let now = partition(&[record(1, 1, Created), record(2, 2, Lost), record(3, 3, Created)], &[]);
        let members = [(1, true, 1000), (2, true, 3), (3, true, 1000)];
        assert_eq!(next(&now, &status(&members)), Step::Settled);
    }

    #[test]
    fn two_that_are_replaced_change_in_one_step() {
        let replicas = [1, 2, 3, 6, 7].map(|replica| record(replica, replica as u32, Created));
        let now = partition(&replicas, &[record(4, 6, Lost), record(5, 7, Lost)]);
        let members = [1, 2, 3, 4, 5].map(|replica| (replica, true, 1000));
        let learning = [&members[..], &[(6, false, 1000), (7, false, 1000)]].concat();
        let voters = [1, 2, 3, 6, 7].map(ReplicaId).to_vec();
        assert_eq!(next(&now, &status(&learning)), Step::ChangeVoters(voters));
    }

    #[test]
    fn a_learner_whose_progress_is_unknown_waits() {
        let now = partition(&[record(1, 1, Created), record(4, 2, Created)], &[record(2, 2, Lost)]);
        let mut members = status(&[(1, true, 1000), (2, true, 1), (4, false, 1000)]);
        members.members.get_mut(&ReplicaId(4)).unwrap().matched = None;
        assert_eq!(next(&now, &members), Step::Wait);
    }

    #[test]
    fn one_newcomer_that_is_away_keeps_no_other_from_voting() {
        for (state, member) in [(New, None), (Created, Some((3, false, 100)))] {
            let away = record(5, 3, Lost);
            let now = partition(
                &[record(1, 1, Created), record(2, 2, Created), record(3, 3, state)],
                &[record(4, 2, Lost), away],
            );
            let alone = [&[(1, true, 1000), (2, false, 1000)][..], member.as_slice()].concat();
            assert_eq!(next(&now, &status(&alone)), Step::ChangeVoters(vec![ReplicaId(1), ReplicaId(2)]), "{state:?}");
            // It goes on catching up, and until it votes its own place is not said to be taken.
            let joined = [&[(1, true, 1000), (2, true, 1000)][..], member.as_slice()].concat();
            assert_eq!(next(&now, &status(&joined)), Step::ReportRemoved(vec![ReplicaId(4)]), "{state:?}");
            let told = partition(&now.replicas, &[away]);
            let waits = if state == New { Step::Settled } else { Step::Wait };
            assert_eq!(next(&told, &status(&joined)), waits, "{state:?}");
        }
    }

    #[test]
    fn a_replaced_voter_goes_when_its_own_successor_comes() {
        let now = partition(
            &[record(1, 1, Created), record(4, 2, Created), record(5, 3, New)],
            &[record(2, 2, Lost), record(3, 3, Lost)],
        );
        let members = [(1, true, 1000), (2, true, 3), (3, true, 3), (4, false, 1000)];
        assert_eq!(next(&now, &status(&members)), Step::ChangeVoters([1, 3, 4].map(ReplicaId).to_vec()));
    }

    /// More entries are on their way to it than any number would allow.
    #[test]
    fn who_has_what_the_leader_had_a_while_ago_has_caught_up() {
        let now = partition(&[record(1, 1, Created), record(4, 2, Created)], &[record(2, 2, Lost)]);
        let mut busy = status(&[(1, true, 5000), (2, true, 1), (4, false, 4000)]);
        busy.last_index = Some(5000);
        assert_eq!(next_step(&now, &busy, 4001), Step::Wait);
        assert_eq!(next_step(&now, &busy, 4000), Step::ChangeVoters(vec![ReplicaId(1), ReplicaId(4)]));
    }

    #[test]
    fn a_change_left_half_way_is_finished() {
        let now = partition(&[record(1, 1, Created)], &[]);
        let joint = GroupStatus { joint: true, ..status(&[(1, true, 1000), (2, true, 1000)]) };
        assert_eq!(next(&now, &joint), Step::FinishChange);
    }

    #[test]
    fn a_group_is_initialised_once_and_only_when_all_are_there_or_most_and_the_others_away() {
        let mut now = partition(&[record(1, 1, Created), record(2, 2, Created), record(3, 3, New)], &[]);
        now.initialised = false;
        let may_initialise = |now: &_, alive: &dyn Fn(_) -> bool| may_initialise(now, Duration::ZERO, alive);
        let all = &|_| true;
        let (without_2, without_3) = (&|other| other != BrokerId(2), &|other| other != BrokerId(3));
        assert!(!may_initialise(&now, all), "3 is about to be created");
        assert!(may_initialise(&now, without_3) && !may_initialise(&now, without_2));
        now.replicas[1].state = New;
        assert!(!may_initialise(&now, &|broker| broker == BrokerId(1)), "1 of 3 elects nobody");
        now.replicas.iter_mut().for_each(|record| record.state = Created);
        assert!(may_initialise(&now, all));
        now.replicas[2].state = Lost;
        assert!(!may_initialise(&now, all) && !may_initialise(&now, without_3));
        now.replicas[2].state = Created;
        now.initialised = true;
        assert!(!may_initialise(&now, all));
    }

    /// Its disk is full, or stalls.
    #[test]
    fn a_group_does_not_wait_for_ever_for_a_live_broker_that_cannot_create_its_replica() {
        let mut now = partition(&[record(1, 1, Created), record(2, 2, Created), record(3, 3, New)], &[]);
        now.initialised = false;
        assert!(!may_initialise(&now, CREATED_WITHIN - Duration::from_millis(1), |_| true));
        assert!(may_initialise(&now, CREATED_WITHIN, |_| true));
        now.replicas[1].state = New;
        assert!(!may_initialise(&now, CREATED_WITHIN, |_| true), "1 of 3 elects nobody");
        now.replicas[1].state = Lost;
        assert!(!may_initialise(&now, CREATED_WITHIN, |_| true), "it starts anew");
    }

    #[test]
    fn a_member_that_is_away_since_before_it_was_created_stays_one() {
        let now = partition(&[record(1, 1, Created), record(2, 2, Created), record(3, 3, New)], &[]);
        let members = [(1, true, 1000), (2, true, 1000), (3, true, 0)];
        assert_eq!(next(&now, &status(&members)), Step::Settled);
    }
}
