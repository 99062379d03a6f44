//! Room for the bytes that are held for clients, and how it is kept from those who only sit on it.
//!
//! Who finds no room waits, in order. While somebody does, a client that holds room and makes no progress (half a frame, an answer that
//! nobody reads) loses its connection after [`PATIENCE`], long before its time is over: see [`Budget::short`]. Who only waits for something
//! else does so with little, or gives up: see [`Budget::wanted`]. `http` has the like.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// How long a client may make no progress while others wait for room.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// A number of bytes that may be held at once.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: usize,
    room: Arc<Semaphore>,
    /// How many wait in [`Budget::reserve`].
    waiting: watch::Sender<usize>,
}

/// Counts one who waits, also if its future is dropped.
struct Waiting<'b>(&'b watch::Sender<usize>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

impl Budget {
    /// All of it free.
    pub(super) fn new(bytes: usize) -> Self {
        let bytes = bytes.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        Self { bytes, room: Arc::new(Semaphore::new(bytes)), waiting: watch::Sender::new(0) }
    }

    /// So many, or all there ever are.
    pub(super) fn at_most(&self, bytes: usize) -> usize {
        bytes.min(self.bytes)
    }

    /// Takes a share once there is room, in the order of the calls. More than there can ever be is cut to that. Who holds a share of a
    /// budget and waits for more of it must have another way out: all might.
    pub(super) async fn reserve(&self, bytes: usize) -> OwnedSemaphorePermit {
        if let Some(share) = self.try_reserve(bytes) {
            return share;
        }
        let share = u32::try_from(self.at_most(bytes)).unwrap_or(u32::MAX);
        self.waiting.send_modify(|waiting| *waiting += 1);
        let _waiting = Waiting(&self.waiting);
        match Arc::clone(&self.room).acquire_many_owned(share).await {
            Ok(permit) => permit,
            // It is never closed.
            Err(_) => std::future::pending().await,
        }
    }

    /// Takes a share, if there is room and nobody was here before.
    pub(super) fn try_reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let share = u32::try_from(self.at_most(bytes)).unwrap_or(u32::MAX);
        Arc::clone(&self.room).try_acquire_many_owned(share).ok()
    }

    /// The same, if half of all there is is left to others.
    pub(super) fn try_reserve_spare(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let left = self.room.available_permits().checked_sub(bytes)?;
        (left >= self.bytes / 2).then(|| self.try_reserve(bytes)).flatten()
    }

    /// Somebody waits, and there is nothing left: who makes no progress should make room.
    pub(super) fn short(&self) -> bool {
        *self.waiting.borrow() > 0 && self.room.available_permits() == 0
    }

    /// Resolves once somebody waits.
    pub(super) async fn wanted(&self) {
        let _ = self.waiting.subscribe().wait_for(|waiting| *waiting > 0).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn room_is_short_while_somebody_waits_for_it() {
        let budget = Budget::new(10);
        let held = budget.reserve(7).await;
        assert!(!budget.short());
        let mut waiting = Box::pin(budget.reserve(4));
        assert!((&mut waiting).now_or_never().is_none());
        assert!(budget.short() && budget.try_reserve(1).is_none(), "who came before is served before");
        assert!(budget.wanted().now_or_never().is_some());
        drop(waiting);
        assert!(!budget.short() && budget.wanted().now_or_never().is_none());
        drop(held);
        assert!(budget.try_reserve(10).is_some());
    }

    #[tokio::test]
    async fn what_can_be_done_without_leaves_half_to_others() {
        let budget = Budget::new(10);
        let held = budget.try_reserve_spare(5).unwrap();
        assert!(budget.try_reserve_spare(1).is_none() && budget.try_reserve_spare(11).is_none());
        drop(held);
        assert!(budget.try_reserve_spare(6).is_none() && budget.try_reserve(6).is_some());
    }

    #[tokio::test]
    async fn more_than_there_is_is_cut_to_all_of_it() {
        let budget = Budget::new(10);
        let all = budget.reserve(1000).await;
        assert_eq!(all.num_permits(), 10);
        drop(all);
        assert_eq!(budget.try_reserve(11).map(|share| share.num_permits()), Some(10));
    }
}
