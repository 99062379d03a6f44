//! A term of a group has at most one leader, whoever tells of it.

use std::collections::BTreeMap;

use super::Invariant;
use crate::event::Event;

/// Leaders by group and term.
#[derive(Default)]
pub(super) struct OneLeaderPerTerm(BTreeMap<(u64, u64), u64>);

impl Invariant for OneLeaderPerTerm {
    fn name(&self) -> &'static str {
        "one_leader_per_term"
    }

    fn see(&mut self, event: &Event<'_>) -> Result<(), String> {
        let (by, term, leader) = match *event {
            Event::Leader { by, term, leader } => (by, term, leader),
            // A vote that is committed is a leader's.
            Event::Vote { by, vote: (term, leader, true) } => (by, term, leader),
            _ => return Ok(()),
        };
        let first = *self.0.entry((by.group, term)).or_insert(leader);
        if first == leader { Ok(()) } else { Err(format!("{by:?}: term {term} is led by {leader} and by {first}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::samples::replica;

    #[test]
    fn two_leaders_of_one_term_are_seen() {
        let mut invariant = OneLeaderPerTerm::default();
        let leads = |broker, term, leader| Event::Leader { by: replica(broker), term, leader };
        invariant.see(&leads(1, 1, 11)).unwrap();
        invariant.see(&leads(2, 1, 11)).unwrap();
        invariant.see(&leads(2, 2, 12)).unwrap();
        invariant.see(&leads(3, 2, 13)).unwrap_err();
    }
}
