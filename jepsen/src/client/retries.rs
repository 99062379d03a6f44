//! How often idempotent producers got anywhere, counted over all clients of a run: that the table of producers was asked at all.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts.
#[derive(Debug, Default)]
pub struct Retries {
    acknowledged: AtomicU64,
    again: AtomicU64,
    met: AtomicU64,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Sends that were acknowledged.
    pub acknowledged: u64,
    /// Of these so many were sent again, because nobody knew what had become of them.
    pub again: u64,
    /// Of those so many met their original, by the broker's word. Kafka's protocol has none for it: perhaps the first attempt never arrived.
    pub met: u64,
}

impl Retries {
    /// A send was acknowledged. It was sent `again` under its sequence, or once.
    pub fn acknowledged(&self, again: bool) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.again.fetch_add(u64::from(again), Ordering::Relaxed);
    }

    /// A send was answered as one that stands already.
    pub fn met(&self) {
        self.met.fetch_add(1, Ordering::Relaxed);
    }

    /// So far.
    pub fn counted(&self) -> Counted {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counted { acknowledged: of(&self.acknowledged), again: of(&self.again), met: of(&self.met) }
    }
}

impl Counted {
    /// What was not tested, of a run that `retries` on purpose or not: `http` is of clients that are told what a send met, `kafka` of
    /// those that are not, and prove nothing by it.
    pub fn untested(http: Self, kafka: Self, retries: bool) -> Option<&'static str> {
        if http.acknowledged + kafka.acknowledged == 0 {
            return Some("no send of an idempotent producer was ever acknowledged");
        }
        (retries && http.met == 0).then_some("no send that was sent again met its original")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn producers_that_got_nowhere_or_never_sent_again_are_told_of() {
        let (http, kafka) = (Retries::default(), Retries::default());
        let untested = |retries| Counted::untested(http.counted(), kafka.counted(), retries);
        assert!(untested(false).is_some_and(|why| why.contains("idempotent")));
        http.acknowledged(true);
        assert_eq!(untested(false), None);
        assert!(
            untested(true).is_some_and(|why| why.contains("met its original")),
            "nobody says that it met its original"
        );
        kafka.acknowledged(true);
        assert!(untested(true).is_some(), "the first attempt may never have arrived");
        assert_eq!(kafka.counted(), Counted { acknowledged: 1, again: 1, met: 0 });
        http.met();
        assert_eq!(Counted::untested(http.counted(), Counted::default(), true), None);
    }
}
