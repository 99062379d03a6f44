//! Two logs that hold an entry of the same index and term hold the same entry, and the same before it (Raft §5.3), committed or not.
//!
//! "The same before it" is looked at one step at a time: the entry before must be of the same term, and so on down.

use std::collections::BTreeMap;

use super::Invariant;
use crate::event::{Event, Fact};

/// By group, index and term: the entry, and the term of the one before.
#[derive(Default)]
pub(super) struct LogMatching(BTreeMap<(u64, u64, u64), (Fact, Option<u64>)>);

impl Invariant for LogMatching {
    fn name(&self) -> &'static str {
        "log_matching"
    }

    fn see(&mut self, event: &Event<'_>) -> Result<(), String> {
        let Event::Stored { by, index, previous, fact } = *event else { return Ok(()) };
        let first = self.0.entry((by.group, index, fact.term)).or_insert((fact, previous));
        if first.0 != fact {
            return Err(format!("{by:?}: index {index} is {fact:?}, elsewhere {:?}", first.0));
        }
        match (first.1, previous) {
            (None, _) => first.1 = previous,
            (Some(first), Some(now)) if first != now => {
                return Err(format!("{by:?}: index {index} follows term {now}, elsewhere term {first}"));
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::samples::{attempt, frame, replica};

    #[test]
    fn other_contents_and_another_predecessor_are_seen() {
        let mut invariant = LogMatching::default();
        let fact = |number| Fact::of(&frame(4, 9, attempt(number, 1)));
        let stored =
            |broker, previous, number| Event::Stored { by: replica(broker), index: 4, previous, fact: fact(number) };
        invariant.see(&stored(1, None, 0)).unwrap();
        invariant.see(&stored(2, Some(1), 0)).unwrap();
        invariant.see(&stored(3, Some(0), 0)).unwrap_err();
        invariant.see(&stored(3, Some(1), 7)).unwrap_err();
    }
}
