//! When a write was last refused for want of room. A file system does not say that a quota is used up, nor what it keeps for others:
//! it has room, by its own word, and refuses. Whoever must know whether there is room asks here, too.

use std::io;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::is_full;

/// How long a refusal is taken for what holds still. Longer than the pause between two attempts of whatever waits for room (half a
/// second), so that while something waits there is none.
const HOLDS: Duration = Duration::from_secs(5);

/// The last refusal.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<Option<Instant>>);

impl Refusals {
    /// Takes note of an error, if it says that there is no room ([`is_full`]).
    pub(crate) fn note(&self, error: &io::Error) {
        if is_full(error) {
            *self.0.lock() = Some(Instant::now());
        }
    }

    /// Whether one was noted a moment ago.
    pub(crate) fn is_recent(&self) -> bool {
        self.0.lock().is_some_and(|last| last.elapsed() < HOLDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_holds_for_a_while_and_other_errors_are_none() {
        let refusals = Refusals::default();
        refusals.note(&io::ErrorKind::NotFound.into());
        assert!(!refusals.is_recent());
        for kind in [io::ErrorKind::QuotaExceeded, io::ErrorKind::StorageFull] {
            refusals.note(&kind.into());
            assert!(refusals.is_recent());
            tokio::time::advance(HOLDS).await;
            assert!(!refusals.is_recent());
        }
    }
}
