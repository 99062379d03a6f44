//! Room for the bytes that are held on behalf of clients, and what happens when it runs short.
//!
//! Who finds no room is refused: a queue would only hide that there is too much. Room is held by what has arrived or is
//! there to be sent, never by what was merely announced. And while somebody was refused a moment ago, those who hold room
//! and make no progress (half a body, an answer that nobody reads) lose it long before their time is over: see [`Budget::short`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::Instant;

use crate::error::Code;
use crate::http::refusal::Refusal;

/// How long one refusal makes a shortage.
const SHORT: Duration = Duration::from_secs(3);

/// A number of bytes that may be held at once.
pub(super) struct Budget {
    bytes: usize,
    room: Arc<Semaphore>,
    /// Who waits in [`Budget::wait`].
    waiting: AtomicUsize,
    began: Instant,
    /// When somebody was last refused, in ms after `began`, plus 1; 0: never.
    refused: AtomicU64,
}

impl Budget {
    /// All of it free.
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        let bytes = bytes.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        Arc::new(Self {
            bytes,
            room: Arc::new(Semaphore::new(bytes)),
            waiting: AtomicUsize::new(0),
            began: Instant::now(),
            refused: AtomicU64::new(0),
        })
    }

    /// Takes a share, or refuses. The share is given back when it is dropped.
    pub(super) fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let share = u32::try_from(bytes).unwrap_or(u32::MAX);
        Arc::clone(&self.room).try_acquire_many_owned(share).map_err(|error| match error {
            TryAcquireError::NoPermits => {
                self.refused.store(self.now(), Ordering::Relaxed);
                (Code::TooManyRequests, format!("no room for {bytes} more bytes in flight; wait and try again")).into()
            }
            TryAcquireError::Closed => closed(),
        })
    }

    /// Takes a share that can be done without.
    pub(super) fn try_reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }

    /// Takes a share once there is room, in the order of the calls. More than there can ever be is cut to that.
    pub(super) async fn wait(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let share = u32::try_from(bytes.min(self.bytes)).unwrap_or(u32::MAX);
        let waiting = Waiting::enter(&self.waiting);
        let share = Arc::clone(&self.room).acquire_many_owned(share).await.map_err(|_| closed());
        drop(waiting);
        share
    }

    /// Somebody waits, or was refused a moment ago: who makes no progress should make room.
    pub(super) fn short(&self) -> bool {
        let refused = self.refused.load(Ordering::Relaxed);
        let lately = refused > 0 && self.now().saturating_sub(refused) < SHORT.as_millis() as u64;
        // Who waits may just be about to be served: only one who finds nothing left is short of room.
        lately || (self.waiting.load(Ordering::Relaxed) > 0 && self.room.available_permits() == 0)
    }

    /// All that there is.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that are held.
    pub(super) fn held(&self) -> usize {
        self.bytes.saturating_sub(self.room.available_permits())
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

fn closed() -> Refusal {
    (Code::NotReady, "the broker is stopping".to_owned()).into()
}

/// Counts one who waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_makes_a_shortage_for_a_moment() {
        let budget = Budget::new(10);
        let held = budget.reserve(7).unwrap();
        assert_eq!((budget.held(), budget.short()), (7, false));
        let refusal = budget.reserve(4).unwrap_err();
        assert_eq!(refusal.error.code, Code::TooManyRequests);
        assert!(refusal.error.message.contains('4') && refusal.error.retry_after_ms.is_some());
        assert!(budget.short());
        drop(held);
        assert_eq!(budget.held(), 0);
        tokio::time::sleep(SHORT).await;
        assert!(!budget.short());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_served_in_turn_and_never_asks_for_more_than_there_is() {
        let budget = Budget::new(10);
        let held = budget.reserve(10).unwrap();
        let mut all = Box::pin(budget.wait(1_000_000));
        assert!((&mut all).now_or_never().is_none());
        assert!(budget.short());
        drop(held);
        let all = all.await.unwrap();
        assert_eq!((all.num_permits(), budget.short()), (10, false));
    }
}
