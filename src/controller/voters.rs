//! Who is a member of group 0, and who votes in it.
//!
//! A pure function of the registered brokers and the group's status. Every registered broker's replica learns; up to
//! [`VOTERS_MAX`] vote, and never four if it can be helped: four stand the loss of one, as three do, and with two of them gone the
//! catalog stops though each partition of three replicas may go on. Of two brokers both vote, for the sake of the second copy. A voter
//! whose broker came back with another directory is replaced once a learner can take its place; one whose broker is merely down stays.

use std::collections::{BTreeMap, BTreeSet};

use pontoon_raft::raft_group::GroupStatus;
use pontoon_raft::types::{BrokerId, ReplicaId};

/// Most voters of group 0.
pub const VOTERS_MAX: usize = 5;
/// A learner this many entries behind counts as caught up.
const LAG_MAX: u64 = 64;

/// How many vote where so many brokers are registered.
fn wanted(brokers: usize) -> usize {
    match brokers {
        4 => 3,
        others => others.min(VOTERS_MAX),
    }
}

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
    let (mut newcomer, mut waiting) = (None, false);
    for (broker, replica) in replicas {
        if target.len() >= wanted(replicas.len()) || target.contains(replica) || !alive(*broker) {
            continue;
        }
        if caught_up(status, *replica) {
            target.insert(*replica);
            newcomer = Some(*replica);
        } else {
            waiting = true;
        }
    }
    if let Some(newcomer) = newcomer.filter(|_| target.len() == 4 && voters.len() < 4) {
        target.remove(&newcomer); // It votes when the fifth does.
    }
    if let Some(superfluous) = superfluous(replicas, &voters, status, &alive) {
        return Step::ChangeVoters(voters.into_iter().filter(|voter| *voter != superfluous).collect());
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

fn caught_up(status: &GroupStatus, replica: ReplicaId) -> bool {
    let leads = status.leader.is_some_and(|leader| leader.replica == replica);
    let matched = status.members.get(&replica).and_then(|member| member.matched);
    leads || matched.is_some_and(|matched| matched + LAG_MAX >= status.last_index.unwrap_or(0))
}

/// Of four that vote where there are no more brokers (older versions made them so), the one that is to learn instead: rather one that is
/// down, and never the leader. Nobody, unless the three others are alive, level and on the directories that their brokers have now.
fn superfluous(
    replicas: &BTreeMap<BrokerId, ReplicaId>,
    voters: &BTreeSet<ReplicaId>,
    status: &GroupStatus,
    alive: &impl Fn(BrokerId) -> bool,
) -> Option<ReplicaId> {
    if replicas.len() != 4 || replicas.values().copied().collect::<BTreeSet<_>>() != *voters {
        return None;
    }
    let leads = |replica: ReplicaId| status.leader.is_some_and(|leader| leader.replica == replica);
    let followers = replicas.iter().filter(|(_, replica)| !leads(**replica));
    let (goes, _) = followers.max_by_key(|(broker, _)| (!alive(**broker), **broker))?;
    let mut stay = replicas.iter().filter(|(broker, _)| *broker != goes);
    let fit = stay.all(|(broker, replica)| alive(*broker) && caught_up(status, *replica));
    fit.then(|| replicas.get(goes).copied()).flatten()
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
    use pontoon_raft::raft_group::{Leader, Member};

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

    /// All of brokers 1 to `count`, of which those on `voting` vote; all are level.
    fn cluster(count: u32, voting: &[u32]) -> (BTreeMap<BrokerId, ReplicaId>, GroupStatus) {
        let all: Vec<_> = (1..=count).map(|broker| (broker, u64::from(broker) + 10)).collect();
        let members: Vec<_> = all.iter().map(|(b, replica)| (*replica, *b, voting.contains(b), 1000)).collect();
        (replicas(&all), status(&members))
    }

    #[test]
    fn of_four_brokers_three_vote() {
        let (four, grown) = cluster(4, &[1]);
        assert_eq!(voters(next_step(&four, &grown, |_| true)), [11, 12, 13]);
        let (four, settled) = cluster(4, &[1, 2, 3]);
        for down in 0..=4 {
            assert_eq!(next_step(&four, &settled, |broker| broker != BrokerId(down)), Step::Settled, "{down} is down");
        }
        // The fourth takes the place of one that was wiped.
        let wiped = replicas(&[(1, 11), (2, 22), (3, 13), (4, 14)]);
        let behind =
            [(11, 1, true, 1000), (12, 2, true, 5), (13, 3, true, 1000), (14, 4, false, 1000), (22, 2, false, 0)];
        assert_eq!(voters(next_step(&wiped, &status(&behind), |_| true)), [11, 13, 14]);
    }

    #[test]
    fn three_become_five_at_once() {
        let (five, three) = cluster(5, &[1, 2, 3]);
        assert_eq!(voters(next_step(&five, &three, |_| true)), [11, 12, 13, 14, 15]);
        assert_eq!(next_step(&five, &three, |broker| broker != BrokerId(4)), Step::Settled, "one alone does not vote");
        let mut behind = three;
        behind.members.insert(ReplicaId(15), Member { broker: BrokerId(5), voter: false, matched: Some(0) });
        assert_eq!(next_step(&five, &behind, |_| true), Step::Wait);
        // One that is empty: nobody else votes before there are three.
        let (five, one) = cluster(5, &[1]);
        assert_eq!(voters(next_step(&five, &one, |broker| broker.0 < 5)), [11, 12, 13]);
    }

    #[test]
    fn four_that_vote_become_three_when_the_three_are_well_and_five_when_a_fifth_comes() {
        let (brokers, mut four) = cluster(4, &[1, 2, 3, 4]);
        let without = |down: u32| move |broker| broker != BrokerId(down);
        assert_eq!(voters(next_step(&brokers, &four, |_| true)), [11, 12, 13]);
        assert_eq!(voters(next_step(&brokers, &four, without(2))), [11, 13, 14], "rather one that is down");
        assert_eq!(next_step(&brokers, &four, |broker| broker.0 < 3), Step::Settled, "two are down");
        four.leader = Some(Leader { replica: ReplicaId(14), broker: BrokerId(4), term: 1 });
        assert_eq!(voters(next_step(&brokers, &four, |_| true)), [11, 12, 14], "not the leader");
        four.members.insert(ReplicaId(12), Member { broker: BrokerId(2), voter: true, matched: Some(5) });
        assert_eq!(next_step(&brokers, &four, |_| true), Step::Settled, "2 has yet to catch up");
        let (brokers, four) = cluster(5, &[1, 2, 3, 4]);
        assert_eq!(voters(next_step(&brokers, &four, |_| true)), [11, 12, 13, 14, 15]);
        assert_eq!(next_step(&brokers, &four, without(5)), Step::Settled);
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
