//! Which faults happen together, and in which order: drawn from the seed before the run begins.
//!
//! A run is a row of periods. In a quarter of them nothing happens (as in Jepsen's own suites); in the others one to three faults of
//! different classes. Kinds come from a shuffled deck, so that each chosen one happens before any happens twice.

use std::time::Duration;

use super::kind::{Class, Kind};
use crate::random::Random;

/// What a period takes on average, with the recovery after it.
const PERIOD: Duration = Duration::from_secs(12);

/// One period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Period {
    /// What happens in it, at most one of each class; nothing in a quiet one.
    pub faults: Vec<Kind>,
    /// From the last injection to the first healing.
    pub hold: Duration,
    /// After the recovery.
    pub rest: Duration,
}

/// Draws the periods of a run of this length. Kinds that do not fit in are not in any of them.
pub fn draw(kinds: &[Kind], time: Duration, random: &mut Random) -> Vec<Period> {
    if kinds.is_empty() {
        let rest = time;
        return vec![Period { faults: Vec::new(), hold: Duration::ZERO, rest }];
    }
    let count = (time.as_secs() / PERIOD.as_secs()).max(1) as usize;
    let mut deck: Vec<Kind> = Vec::new();
    let mut fresh = kinds.len();
    let mut periods = Vec::with_capacity(count);
    for left in (1..=count).rev() {
        if deck.is_empty() {
            deck = kinds.to_vec();
            random.shuffle(&mut deck);
        }
        // As many as it takes for each kind to have its turn.
        let needed = fresh.div_ceil(left);
        let quiet = fresh < left && random.percent(25);
        let wanted = if quiet { 0 } else { needed.max(1 + random.below(2)).min(3) };
        let faults = take(&mut deck, wanted);
        fresh = fresh.saturating_sub(faults.len());
        let hold = Duration::from_millis(random.between(3_000, 7_000));
        let rest = Duration::from_millis(random.between(500, 3_000));
        periods.push(Period { faults, hold, rest });
    }
    periods
}

/// Takes so many kinds that go together from the deck, the first in any case.
fn take(deck: &mut Vec<Kind>, wanted: usize) -> Vec<Kind> {
    let mut taken: Vec<Kind> = Vec::new();
    let mut at = 0;
    while taken.len() < wanted && at < deck.len() {
        let kind = deck[at];
        let alone = kind.takes_all() && !taken.is_empty();
        let classes: Vec<Class> = taken.iter().map(|kind| kind.class()).collect();
        if alone || taken.iter().any(|kind| kind.takes_all()) || classes.contains(&kind.class()) {
            at += 1;
            continue;
        }
        taken.push(deck.remove(at));
    }
    // Hosts choose first.
    taken.sort_by_key(|kind| kind.class());
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nemesis::kind::{self, KINDS};

    fn all() -> Vec<Kind> {
        KINDS.iter().map(|row| row.kind).collect()
    }

    #[test]
    fn in_time_every_kind_has_its_turn() {
        for seed in 0..50 {
            let periods = draw(&all(), Duration::from_secs(480), &mut Random::new(seed));
            for kind in all() {
                assert!(periods.iter().any(|period| period.faults.contains(&kind)), "seed {seed}: {}", kind.name());
            }
        }
    }

    #[test]
    fn faults_of_a_period_go_together_and_some_periods_are_quiet() {
        let mut quiet = 0;
        for seed in 0..50 {
            for period in draw(&all(), Duration::from_secs(900), &mut Random::new(seed)) {
                quiet += usize::from(period.faults.is_empty());
                let mut classes: Vec<Class> = period.faults.iter().map(|kind| kind.class()).collect();
                classes.dedup();
                assert_eq!(classes.len(), period.faults.len(), "{:?}", period.faults);
                assert!(period.faults.len() == 1 || !period.faults.iter().any(|kind| kind.takes_all()));
            }
        }
        assert!(quiet > 50, "{quiet}");
    }

    #[test]
    fn a_seed_is_one_schedule() {
        let draw = |seed| draw(&all(), Duration::from_secs(300), &mut Random::new(seed));
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn without_kinds_nothing_happens() {
        let periods = draw(&kind::parse("none").unwrap(), Duration::from_secs(9), &mut Random::new(1));
        assert_eq!((periods.len(), periods[0].faults.len(), periods[0].rest), (1, 0, Duration::from_secs(9)));
    }
}
