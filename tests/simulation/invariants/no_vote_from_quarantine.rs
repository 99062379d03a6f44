//! A replica whose files were found corrupt never votes and never leads again under that id: it may have forgotten what it promised
//! (RULES.md R5, R7).

use std::collections::BTreeMap;

use super::Invariant;
use crate::event::Event;

/// Votes by group and replica, and the replicas that are quarantined, with the newest term of their group at that time: of a leader who
/// was elected and killed at once others may learn later, from what they have on disk. (To win after its quarantine it would have to
/// change its own vote, which is seen whatever the term.)
#[derive(Default)]
pub(super) struct NoVoteFromQuarantine {
    votes: BTreeMap<(u64, u64), (u64, u64, bool)>,
    terms: BTreeMap<u64, u64>,
    quarantined: BTreeMap<(u64, u64), u64>,
}

impl Invariant for NoVoteFromQuarantine {
    fn name(&self) -> &'static str {
        "no_vote_from_quarantine"
    }

    fn see(&mut self, event: &Event<'_>) -> Result<(), String> {
        match *event {
            Event::Quarantined { by } => {
                let of_group = self.votes.iter().filter(|((group, _), _)| *group == by.group);
                let voted = of_group.map(|(_, (term, ..))| *term).max().unwrap_or_default();
                let led = self.terms.get(&by.group).copied().unwrap_or_default();
                self.quarantined.entry((by.group, by.id)).or_insert(voted.max(led));
            }
            Event::Vote { by, vote } => {
                let before = self.votes.insert((by.group, by.id), vote);
                if self.quarantined.contains_key(&(by.group, by.id)) && before != Some(vote) {
                    return Err(format!("{by:?} is quarantined and votes {vote:?}, before {before:?}"));
                }
            }
            Event::Leader { by, term, leader } => {
                let newest = self.terms.entry(by.group).or_default();
                let since = self.quarantined.get(&(by.group, leader));
                if term > *newest && since.is_some_and(|since| term > *since) {
                    return Err(format!("{by:?}: term {term} is led by {leader}, which is quarantined"));
                }
                *newest = (*newest).max(term);
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::samples::replica;

    #[test]
    fn a_vote_and_a_leadership_after_the_quarantine_are_seen() {
        let mut invariant = NoVoteFromQuarantine::default();
        let vote = |term| Event::Vote { by: replica(1), vote: (term, 12, false) };
        let leads = |term| Event::Leader { by: replica(2), term, leader: replica(1).id };
        invariant.see(&vote(1)).unwrap();
        invariant.see(&leads(2)).unwrap();
        invariant.see(&Event::Quarantined { by: replica(1) }).unwrap();
        invariant.see(&vote(1)).unwrap();
        invariant.see(&leads(2)).unwrap();
        invariant.see(&vote(2)).unwrap_err();
        invariant.see(&leads(3)).unwrap_err();
    }

    #[test]
    fn a_leader_of_before_may_be_heard_of_later() {
        let mut invariant = NoVoteFromQuarantine::default();
        let leads = |term| Event::Leader { by: replica(2), term, leader: replica(1).id };
        invariant.see(&Event::Vote { by: replica(3), vote: (2, replica(1).id, true) }).unwrap();
        invariant.see(&Event::Quarantined { by: replica(1) }).unwrap();
        invariant.see(&leads(2)).unwrap();
        invariant.see(&leads(3)).unwrap_err();
    }
}
