//! Who should lead a group that nobody leads, and whose call for votes may skip the leader's lease. Pure functions:
//! no clock, no network, no openraft.
//!
//! All survivors of a group exchange [`Claim`]s and evaluate [`choose`] over them. It depends on nothing else, so those
//! who hold the same claims choose the same replica.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::types::{GroupId, ReplicaId, repr};

/// What one replica says about a group that *it* holds to be without a leader: its vote and the end of its log.
///
/// It is also a renunciation: the replica says that it does not lead in any term up to its vote's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The group.
    pub group: GroupId,
    /// Who speaks.
    pub replica: ReplicaId,
    /// Its vote.
    pub vote: repr::Vote,
    /// Its last log id; `None` if its log is empty.
    pub last: Option<repr::LogId>,
    /// Whether it can vote and be voted for. Not if its core has ended: then this is a renunciation only.
    pub able: bool,
}

/// The replica that these claims elect: a voter whose log is at least as new as those of a majority (of each voter set,
/// while joint), preferring the newest log, then the order of the voters.
///
/// `None` while the claims are too few. That restraint matters as much as the choice: forcing an election that cannot
/// be won would only raise a term and depose a leader whom one broker cannot see (RULES.md R3).
///
/// `attempt` rotates through the electable, so that a best survivor that never takes office is passed over.
pub fn choose(
    claims: &BTreeMap<ReplicaId, Claim>,
    voter_sets: &[BTreeSet<ReplicaId>],
    attempt: u32,
) -> Option<ReplicaId> {
    let mut electable: Vec<&Claim> = claims.values().filter(|claim| is_electable(claim, claims, voter_sets)).collect();
    electable.sort_by(|a, b| b.last.cmp(&a.last).then(a.replica.cmp(&b.replica)));
    match electable.len() {
        0 => None,
        count => electable.get(attempt as usize % count).map(|claim| claim.replica),
    }
}

fn is_electable(candidate: &Claim, claims: &BTreeMap<ReplicaId, Claim>, voter_sets: &[BTreeSet<ReplicaId>]) -> bool {
    let grants = |voter: &&ReplicaId| claims.get(voter).is_some_and(|claim| claim.able && claim.last <= candidate.last);
    candidate.able
        && !voter_sets.is_empty()
        && voter_sets.iter().any(|set| set.contains(&candidate.replica))
        && voter_sets.iter().all(|set| set.iter().filter(grants).count() > set.len() / 2)
}

/// What a receiver knows when a call for votes asks it to skip the lease of the leader it follows (RULES.md R3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The receiver follows nobody: there is no lease to protect.
    pub leaderless: bool,
    /// The candidate is the very leader the receiver follows: it re-elects itself in a higher term.
    pub candidate_leads: bool,
    /// The receiver's own detector holds the leader's broker dead.
    pub leader_dead: bool,
    /// The leader's own broker said that it gives this leadership up: a hand-over, or a restart.
    pub released: bool,
}

impl Evidence {
    /// Whether the lease may be skipped. A candidate's word alone never is enough, else one broken link between two
    /// brokers would flap leadership for ever.
    pub fn suffices(self) -> bool {
        self.leaderless || self.candidate_leads || self.leader_dead || self.released
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(lasts: &[(u64, u64, u64)]) -> BTreeMap<ReplicaId, Claim> {
        let claim = |&(replica, term, index): &(u64, u64, u64)| {
            let replica = ReplicaId(replica);
            let vote = repr::Vote(term, ReplicaId(1), true);
            (replica, Claim { group: GroupId(7), replica, vote, last: Some(repr::LogId(term, index)), able: true })
        };
        lasts.iter().map(claim).collect()
    }

    fn voters(sets: &[&[u64]]) -> Vec<BTreeSet<ReplicaId>> {
        sets.iter().map(|set| set.iter().map(|id| ReplicaId(*id)).collect()).collect()
    }

    #[test]
    fn the_newest_log_wins_then_the_order_of_the_voters() {
        let sets = voters(&[&[1, 2, 3]]);
        assert_eq!(choose(&claims(&[(2, 1, 5), (3, 1, 6)]), &sets, 0), Some(ReplicaId(3)));
        assert_eq!(choose(&claims(&[(2, 2, 5), (3, 1, 6)]), &sets, 0), Some(ReplicaId(2)));
        assert_eq!(choose(&claims(&[(2, 1, 5), (3, 1, 5)]), &sets, 0), Some(ReplicaId(2)));
    }

    #[test]
    fn too_few_claims_elect_nobody() {
        assert_eq!(choose(&claims(&[(2, 1, 5)]), &voters(&[&[1, 2, 3]]), 0), None);
        assert_eq!(choose(&claims(&[(2, 1, 5), (3, 1, 5)]), &voters(&[&[1, 2, 3, 4, 5]]), 0), None);
        assert_eq!(choose(&claims(&[]), &voters(&[]), 0), None);
    }

    #[test]
    fn a_learner_is_never_chosen_and_does_not_count() {
        let sets = voters(&[&[1, 2, 3]]);
        assert_eq!(choose(&claims(&[(2, 1, 5), (9, 1, 9)]), &sets, 0), None);
        assert_eq!(choose(&claims(&[(2, 1, 5), (3, 1, 4), (9, 1, 9)]), &sets, 0), Some(ReplicaId(2)));
    }

    #[test]
    fn who_only_renounces_is_not_chosen_and_does_not_count() {
        let sets = voters(&[&[1, 2, 3]]);
        let mut three = claims(&[(1, 1, 9), (2, 1, 5)]);
        three.get_mut(&ReplicaId(1)).unwrap().able = false;
        assert_eq!(choose(&three, &sets, 0), None);
        three.extend(claims(&[(3, 1, 4)]));
        assert_eq!(choose(&three, &sets, 0), Some(ReplicaId(2)));
    }

    #[test]
    fn a_joint_membership_needs_both_majorities() {
        let sets = voters(&[&[1, 2, 3], &[3, 4, 5]]);
        assert_eq!(choose(&claims(&[(2, 1, 5), (3, 1, 5)]), &sets, 0), None);
        assert_eq!(choose(&claims(&[(2, 1, 5), (3, 1, 5), (4, 1, 5)]), &sets, 0), Some(ReplicaId(2)));
    }

    #[test]
    fn later_attempts_pass_over_a_winner_that_does_not_run_but_never_to_a_log_too_short() {
        let sets = voters(&[&[1, 2, 3]]);
        let three = claims(&[(1, 1, 5), (2, 1, 5), (3, 1, 4)]);
        let chosen: Vec<_> = (0..4).map(|attempt| choose(&three, &sets, attempt).unwrap().0).collect();
        assert_eq!(chosen, [1, 2, 1, 2]);
    }

    #[test]
    fn a_candidates_word_alone_does_not_skip_the_lease() {
        let none = Evidence { leaderless: false, candidate_leads: false, leader_dead: false, released: false };
        assert!(!none.suffices());
        assert!(Evidence { leader_dead: true, ..none }.suffices());
        assert!(Evidence { released: true, ..none }.suffices());
        assert!(Evidence { candidate_leads: true, ..none }.suffices());
        assert!(Evidence { leaderless: true, ..none }.suffices());
    }
}
