//! Exactly once: a producer with sequences has each batch in the log once, in order and without a hole; one without has none twice;
//! what was refused is never there. Not so of those whose ids expire.

use std::collections::{BTreeMap, BTreeSet};

use super::Invariant;
use crate::client::{has_sequences, passes_by};
use crate::event::{Attempt, Event};

/// By partition and producer: the next batch; and every attempt that was refused or committed.
#[derive(Default)]
pub(super) struct ExactDedup {
    next: BTreeMap<(u32, u32), u32>,
    refused: BTreeSet<Attempt>,
    committed: BTreeSet<Attempt>,
}

impl ExactDedup {
    fn commit(&mut self, attempt: Attempt) -> Result<(), String> {
        self.committed.insert(attempt);
        if passes_by(attempt.producer) {
            return Ok(());
        }
        let next = self.next.entry((attempt.partition, attempt.producer)).or_default();
        let due = *next;
        *next = attempt.batch + 1;
        if attempt.batch < due {
            return Err(format!("{attempt:?} is in the log, where batch {due} was due: it is there twice"));
        }
        if attempt.batch > due && has_sequences(attempt.producer) {
            return Err(format!("{attempt:?} is in the log, where batch {due} was due: one is missing"));
        }
        Ok(())
    }
}

impl Invariant for ExactDedup {
    fn name(&self) -> &'static str {
        "exact_dedup"
    }

    fn see(&mut self, event: &Event<'_>) -> Result<(), String> {
        match *event {
            Event::Refused { attempt } => drop(self.refused.insert(attempt)),
            Event::Committed { fact, .. } => {
                if let Some(attempt) = fact.attempt {
                    return self.commit(attempt);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn judge(&mut self) -> Vec<String> {
        let there = self.refused.intersection(&self.committed);
        there.map(|attempt| format!("{attempt:?} was refused and is in the log")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::samples::{attempt, commit, frame};

    #[test]
    fn a_batch_that_is_there_twice_or_missing_is_seen() {
        for wrong in [0, 2] {
            let mut invariant = ExactDedup::default();
            commit(&mut invariant, &frame(0, 0, attempt(0, 1))).unwrap();
            commit(&mut invariant, &frame(1, 1, attempt(wrong, 2))).unwrap_err();
        }
    }

    #[test]
    fn whose_id_may_have_expired_may_be_there_twice() {
        let mut invariant = ExactDedup::default();
        let passer_by = (0..).find(|producer| passes_by(*producer)).unwrap();
        for index in [0, 1] {
            let of = Attempt { producer: passer_by, ..attempt(0, 1) };
            commit(&mut invariant, &frame(index, index, of)).unwrap();
        }
    }

    #[test]
    fn a_refused_attempt_that_is_there_is_seen() {
        let mut invariant = ExactDedup::default();
        invariant.see(&Event::Refused { attempt: attempt(0, 1) }).unwrap();
        commit(&mut invariant, &frame(0, 0, attempt(0, 2))).unwrap();
        assert_eq!(invariant.judge(), Vec::<String>::new());
        invariant.see(&Event::Refused { attempt: attempt(0, 2) }).unwrap();
        assert_eq!(invariant.judge().len(), 1);
    }
}
