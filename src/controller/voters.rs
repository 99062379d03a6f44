//! Who is a member of group 0, and who votes in it.
//!
//! A pure function of the registered brokers and the group's status. Every registered broker's replica learns; up to
//! [`VOTERS_MAX`] vote. A voter whose broker came back with another directory is replaced once a learner can take its
//! place; one whose broker is merely down stays.

use std::collections::{BTreeMap, BTreeSet};

use pontoon_raft::raft_group::GroupStatus;
use pontoon_raft::types::{BrokerId, ReplicaId};

/// Most voters of group 0.
pub const VOTERS_MAX: usize = 5;
/// A learner this many entries behind counts as caught up.
const LAG_MAX: u64 = 64;

/// The next thing to do about group 0's membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Settled,
    /// A learner is catching up: look again soon.
    Wait,
    /// Let this replica learn.
    AddLearner(ReplicaId, BrokerId),
    /// Make exactly these the voters. Drops learners, which are then added again.
    ChangeVoters(Vec<ReplicaId>),
}

/// What to do next, given each registered broker's replica of group 0.
pub fn next_step(
    replicas: &BTreeMap<BrokerId, ReplicaId>,
    status: &GroupStatus,
    alive: impl Fn(BrokerId) -> bool,
) -> Step {
    let current: BTreeSet<_> = replicas.values().copied().collect();
    let voters: BTreeSet<_> = status.members.iter().filter(|(_, m)| m.voter).map(|(id, _)| *id).collect();
    // Nobody is registered before the first voter is: until then there is nothing to compare with.
    if !voters.iter().any(|voter| current.contains(voter)) {
        return Step::Settled;
    }
    if status.joint {
        // Left behind by a leader that died half-way: finish it with those voters that are still current.
        return Step::ChangeVoters(voters.intersection(&current).copied().collect());
    }
    if let Some((broker, replica)) = replicas.iter().find(|(_, replica)| !status.members.contains_key(replica)) {
        return Step::AddLearner(*replica, *broker);
    }
    let mut target: BTreeSet<_> = voters.intersection(&current).copied().collect();
    let mut waiting = false;
    for (broker, replica) in replicas {
        if target.len() >= VOTERS_MAX || target.contains(replica) || !alive(*broker) {
            continue;
        }
        let matched = status.members.get(replica).and_then(|member| member.matched);
        let caught_up = matched.is_some_and(|matched| matched + LAG_MAX >= status.last_index.unwrap_or(0));
        if caught_up {
            target.insert(*replica);
        } else {
            waiting = true;
        }
    }
    let stale_members = status.members.keys().any(|member| !current.contains(member) && !voters.contains(member));
    let joined = !target.is_subset(&voters);
    let stale_voters = !voters.is_subset(&current);
    // A stale voter goes when another comes, or when nobody is left to come and the others are enough by themselves.
    let change = joined || stale_members || (stale_voters && !waiting);
    if change && majority_alive(&target, replicas, &alive) {
        return Step::ChangeVoters(target.into_iter().collect());
    }
    if waiting { Step::Wait } else { Step::Settled }
}

fn majority_alive(
    target: &BTreeSet<ReplicaId>,
    replicas: &BTreeMap<BrokerId, ReplicaId>,
    alive: &impl Fn(BrokerId) -> bool,
) -> bool {
    let up = replicas.iter().filter(|(broker, replica)| target.contains(replica) && alive(**broker)).count();
    up * 2 > target.len()
}

#[cfg(test)]
mod tests {
    use pontoon_raft::raft_group::Member;

    use super::*;

    fn status(members: &[(u64, u32, bool, u64)]) -> GroupStatus {
        let members = members.iter().map(|(replica, broker, voter, matched)| {
            (ReplicaId(*replica), Member { broker: BrokerId(*broker), voter: *voter, matched: Some(*matched) })
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

    fn replicas(pairs: &[(u32, u64)]) -> BTreeMap<BrokerId, ReplicaId> {
        pairs.iter().map(|(broker, replica)| (BrokerId(*broker), ReplicaId(*replica))).collect()
    }

    fn voters(step: Step) -> Vec<u64> {
        match step {
            Step::ChangeVoters(voters) => voters.into_iter().map(|voter| voter.0).collect(),
            step => panic!("{step:?}"),
        }
    }

    #[test]
    fn a_registered_broker_learns_then_votes() {
        let both = replicas(&[(1, 11), (2, 12)]);
        let step = next_step(&both, &status(&[(11, 1, true, 1000)]), |_| true);
        assert_eq!(step, Step::AddLearner(ReplicaId(12), BrokerId(2)));
        let behind = status(&[(11, 1, true, 1000), (12, 2, false, 10)]);
        assert_eq!(next_step(&both, &behind, |_| true), Step::Wait);
        let level = status(&[(11, 1, true, 1000), (12, 2, false, 990)]);
        assert_eq!(voters(next_step(&both, &level, |_| true)), [11, 12]);
        let dead = |broker| broker == BrokerId(1);
        assert_eq!(next_step(&both, &level, dead), Step::Settled, "a dead broker is not made a voter");
        let done = status(&[(11, 1, true, 1000), (12, 2, true, 990)]);
        assert_eq!(next_step(&both, &done, |_| true), Step::Settled);
    }

    #[test]
    fn five_vote_and_the_others_learn() {
        let all: Vec<_> = (1..=7).map(|broker| (broker, u64::from(broker) + 10)).collect();
        let members: Vec<_> = (1..=7).map(|b| (u64::from(b) + 10, b, b == 1, 1000)).collect();
        assert_eq!(voters(next_step(&replicas(&all), &status(&members), |_| true)), [11, 12, 13, 14, 15]);
        let members: Vec<_> = (1..=7).map(|b| (u64::from(b) + 10, b, b <= 5, 1000)).collect();
        assert_eq!(next_step(&replicas(&all), &status(&members), |_| true), Step::Settled);
    }

    #[test]
    fn a_wiped_voter_is_replaced_by_its_new_replica_once_that_has_caught_up() {
        let now = replicas(&[(1, 11), (2, 12), (3, 23)]);
        let three = [(11, 1, true, 1000), (12, 2, true, 1000), (13, 3, true, 5)];
        assert_eq!(next_step(&now, &status(&three), |_| true), Step::AddLearner(ReplicaId(23), BrokerId(3)));
        let behind = [&three[..], &[(23, 3, false, 0)]].concat();
        assert_eq!(next_step(&now, &status(&behind), |_| true), Step::Wait, "the old voter stays until then");
        let level = [&three[..], &[(23, 3, false, 1000)]].concat();
        assert_eq!(voters(next_step(&now, &status(&level), |_| true)), [11, 12, 23]);
    }

    #[test]
    fn a_broker_that_is_down_keeps_its_vote() {
        let now = replicas(&[(1, 11), (2, 12), (3, 13)]);
        let three = [(11, 1, true, 1000), (12, 2, true, 1000), (13, 3, true, 5)];
        assert_eq!(next_step(&now, &status(&three), |broker| broker != BrokerId(3)), Step::Settled);
    }

    #[test]
    fn a_change_left_half_done_is_finished() {
        let now = replicas(&[(1, 11), (2, 12), (3, 23)]);
        let mut joint = status(&[(11, 1, true, 1000), (12, 2, true, 1000), (13, 3, true, 5), (23, 3, true, 1000)]);
        joint.joint = true;
        assert_eq!(voters(next_step(&now, &joint, |_| true)), [11, 12, 23]);
    }

    #[test]
    fn nothing_is_dropped_before_anyone_is_registered() {
        let step = next_step(&replicas(&[(2, 12)]), &status(&[(11, 1, true, 1000)]), |_| true);
        assert_eq!(step, Step::Settled);
    }
}
