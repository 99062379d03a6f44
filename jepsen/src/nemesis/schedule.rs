//! Which faults happen together, and in which order: drawn from the seed before the run begins.
//!
//! A run is a row of periods. In a quarter of them nothing happens (as in Jepsen's own suites), as long as there is time for that; in the
//! others one to three faults of different classes. Kinds come from a shuffled deck, so that each chosen one happens before any happens
//! twice. A run that is too short for all of them is refused.

use std::cmp::Reverse;
use std::time::Duration;

use super::kind::{Class, Kind};
use crate::random::Random;

/// What a period takes on average, with the recovery after it.
const PERIOD: Duration = Duration::from_secs(12);

/// One period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Period {
    /// What happens in it, all of which go together; nothing in a quiet one.
    pub faults: Vec<Kind>,
    /// From the last injection to the first healing.
    pub hold: Duration,
    /// After the recovery.
    pub rest: Duration,
}

/// Draws the periods of a run of this length; each kind is in one of them at least. The error says that there is no time for that.
pub fn draw(kinds: &[Kind], time: Duration, random: &mut Random) -> Result<Vec<Period>, String> {
    if kinds.is_empty() {
        let rest = time;
        return Ok(vec![Period { faults: Vec::new(), hold: Duration::ZERO, rest }]);
    }
    let count = (time.as_secs() / PERIOD.as_secs()).max(1) as usize;
    let needed = periods_needed(kinds);
    if needed > count {
        let (kinds, time_s) = (kinds.len(), needed as u64 * PERIOD.as_secs());
        return Err(format!("{kinds} kinds of faults take {time_s} s at least: more --time, or fewer in --nemesis"));
    }
    let mut deck = kinds.to_vec();
    random.shuffle(&mut deck);
    let mut fresh = true;
    let mut periods = Vec::with_capacity(count);
    for left in (1..=count).rev() {
        if deck.is_empty() {
            fresh = false;
            deck = kinds.to_vec();
            random.shuffle(&mut deck);
        }
        // From here on each period must bring those that are left one step nearer to the end of the deck.
        let tight = fresh && periods_needed(&deck) == left;
        let faults = if tight {
            what_presses_first(&mut deck);
            take(&mut deck, 3)
        } else if random.percent(25) {
            Vec::new()
        } else {
            take(&mut deck, 1 + random.below(2))
        };
        let hold = Duration::from_millis(random.between(3_000, 7_000));
        let rest = Duration::from_millis(random.between(500, 3_000));
        periods.push(Period { faults, hold, rest });
    }
    Ok(periods)
}

/// How many of these are of a class, but for those that stand alone.
fn of_class(kinds: &[Kind], class: Class) -> usize {
    kinds.iter().filter(|kind| !kind.takes_all() && kind.class() == class).count()
}

/// In how many periods all of these can have their turn: at most one of each class at a time, and of those that contend one.
fn periods_needed(kinds: &[Kind]) -> usize {
    let longest = kinds.iter().map(|kind| of_class(kinds, kind.class())).max().unwrap_or(0);
    let contending = kinds.iter().filter(|kind| kind.contends()).count();
    longest.max(contending) + kinds.iter().filter(|kind| kind.takes_all()).count()
}

/// So that the first three that go together bring the deck one period nearer to its end: the longest class first, and one of those that
/// contend. Of hosts these come before others, of packets behind them: so a host that contends finds packets that do not, if there are any.
fn what_presses_first(deck: &mut [Kind]) {
    let all = deck.to_vec();
    let late = |kind: &Kind| if kind.class() == Class::Host { !kind.contends() } else { kind.contends() };
    deck.sort_by_key(|kind| (kind.takes_all(), Reverse(of_class(&all, kind.class())), late(kind)));
}

/// Takes so many kinds that go together from the deck, the first in any case.
fn take(deck: &mut Vec<Kind>, wanted: usize) -> Vec<Kind> {
    let mut taken: Vec<Kind> = Vec::new();
    let mut at = 0;
    while taken.len() < wanted && at < deck.len() {
        if taken.iter().all(|kind| kind.goes_with(deck[at])) {
            taken.push(deck.remove(at));
        } else {
            at += 1;
        }
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
    fn every_kind_has_its_turn_or_the_run_is_refused() {
        let shortest = periods_needed(&all()) as u64 * PERIOD.as_secs();
        assert!(shortest < 300, "{shortest}");
        for seed in 0..50 {
            for time_s in [shortest, 300, 480] {
                let periods = draw(&all(), Duration::from_secs(time_s), &mut Random::new(seed)).unwrap();
                assert_eq!(periods.len() as u64, time_s / PERIOD.as_secs());
                for kind in all() {
                    let turns = periods.iter().filter(|period| period.faults.contains(&kind)).count();
                    assert!(turns > 0, "seed {seed}, {time_s} s: {}", kind.name());
                }
            }
            let refused = draw(&all(), Duration::from_secs(shortest - 1), &mut Random::new(seed)).unwrap_err();
            assert!(refused.contains(&format!("take {shortest} s at least")), "{refused}");
        }
    }

    #[test]
    fn however_few_kinds_there_are_the_shortest_run_has_them_all() {
        for seed in 0..2_000 {
            let mut random = Random::new(seed);
            let mut kinds = all();
            // Those that contend more often than others.
            kinds.retain(|kind| random.percent(if kind.contends() { 60 } else { 20 }));
            let shortest = PERIOD * periods_needed(&kinds) as u32;
            let periods = draw(&kinds, shortest, &mut random).unwrap();
            let missing = kinds.iter().filter(|kind| !periods.iter().any(|period| period.faults.contains(kind)));
            assert_eq!(missing.collect::<Vec<_>>(), Vec::<&Kind>::new(), "seed {seed}: {kinds:?}");
        }
    }

    #[test]
    fn faults_of_a_period_go_together_and_some_periods_are_quiet() {
        let mut quiet = 0;
        for seed in 0..50 {
            for period in draw(&all(), Duration::from_secs(900), &mut Random::new(seed)).unwrap() {
                quiet += usize::from(period.faults.is_empty());
                for (at, kind) in period.faults.iter().enumerate() {
                    assert!(period.faults[..at].iter().all(|other| other.goes_with(*kind)), "{:?}", period.faults);
                }
            }
        }
        assert!(quiet > 50, "{quiet}");
    }

    #[test]
    fn a_seed_is_one_schedule() {
        let draw = |seed| draw(&all(), Duration::from_secs(300), &mut Random::new(seed)).unwrap();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn without_kinds_nothing_happens() {
        let periods = draw(&kind::parse("none").unwrap(), Duration::from_secs(9), &mut Random::new(1)).unwrap();
        assert_eq!((periods.len(), periods[0].faults.len(), periods[0].rest), (1, 0, Duration::from_secs(9)));
    }
}
