//! What a timeline says is old is old, whatever came when, and nothing old stays unsaid for long; and it goes through the log.

use proptest::prelude::*;

use super::*;
use crate::error::Code;
use crate::partition::Acks;
use crate::partition::fake_log::{FakeLog, batch};

const EXPIRATION: Duration = Duration::from_millis(2400);
const SPACING: Duration = Duration::from_millis(100);

#[test]
fn what_was_committed_before_the_oldest_note_of_that_age_has_expired() {
    let (begun, mut timeline) = (Instant::now(), Timeline::default());
    let mut look = |end, ms| timeline.look(end, begun + Duration::from_millis(ms), EXPIRATION);
    assert_eq!(look(10, 0), None);
    assert_eq!(look(20, 99), None, "too soon for another note");
    assert_eq!(look(30, 100), None);
    assert_eq!(look(30, 2399), None);
    assert_eq!(look(30, 2400), Some(10));
    // Nothing has come since the second note: it is as old as it was, and a look more makes it no younger.
    assert_eq!(look(30, 2499), Some(10));
    assert_eq!(look(30, 2500), Some(30));
    assert_eq!(look(31, 9000), Some(30));
    assert_eq!(look(31, 11_399), Some(30));
    assert_eq!(look(31, 11_400), Some(31));
}

proptest! {
    /// Steps of so many ms, in each of which so many entries are committed.
    #[test]
    fn whatever_comes_when_nothing_young_is_called_old_and_nothing_old_stays_unsaid(
        steps in prop::collection::vec((1..400u64, prop_oneof![Just(0), 0..5u64]), 1..300)
    ) {
        let (mut now, mut timeline) = (Instant::now(), Timeline::default());
        // When each entry was first seen committed, by its index.
        let (mut seen, mut said) = (Vec::new(), None);
        let mut longest = Duration::ZERO;
        for (ms, entries) in steps {
            now += Duration::from_millis(ms);
            longest = longest.max(Duration::from_millis(ms));
            seen.extend((0..entries).map(|_| now));
            let old = timeline.look(seen.len() as u64, now, EXPIRATION);
            prop_assert!(old >= said, "{old:?} after {said:?}");
            said = old;
            let below = old.unwrap_or(0) as usize;
            prop_assert!(seen[..below].iter().all(|at| now - *at >= EXPIRATION));
            prop_assert!(seen[below..].iter().all(|at| now - *at < EXPIRATION + SPACING + longest));
            prop_assert!(timeline.notes.len() <= NOTES_PER_EXPIRATION as usize + 2);
        }
    }
}

#[tokio::test]
async fn an_expired_producer_is_forgotten_by_its_entry_in_the_log() {
    let log = FakeLog::new();
    let partition = log.partition();
    let wait = Duration::from_secs(5);
    for id in [7, 8] {
        partition.produce(batch(&[5], Some((id, 0, 0))), Acks::All, None, wait).await.unwrap();
    }
    // Of the two batches, at 1 and 2, the first.
    partition.expire_producers(2, wait).await.unwrap();
    let refused = partition.produce(batch(&[6], Some((7, 0, 1))), Acks::All, None, wait).await.unwrap_err();
    assert_eq!(refused.code, Code::UnknownProducer);
    assert!(partition.produce(batch(&[5], Some((8, 0, 0))), Acks::All, None, wait).await.unwrap().duplicate);
    assert!(!partition.produce(batch(&[5], Some((7, 0, 0))), Acks::All, None, wait).await.unwrap().duplicate);
    log.set(|state| state.majority_dead = true);
    assert_eq!(partition.expire_producers(9, wait).await.unwrap_err().code, Code::NoLeader);
}
