//! One timer for every request that waits.
//!
//! Thousands of clients wait for records at a time, and most are woken by a record long before their time is over. Here such
//! a wait costs an entry in a list of those that end at about the same time; one task sleeps until the first of these times.
//! A wait ends at most a thirty-second of itself late, never early.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// Waits that end within this are told together, however short they are.
const GRAIN_MIN_MS: u64 = 4;
/// A wait's end is rounded up to this part of it.
const GRAINS: u64 = 64;

/// Where waits are entered. The task behind it ends with this.
pub(super) struct Deadlines {
    ends: Arc<Ends>,
    task: JoinHandle<()>,
}

struct Ends {
    began: Instant,
    /// By the end, in ms after `began`. Dropping a sender tells all who wait for it. Bounded: a wait of any length is one of
    /// at most [`GRAINS`] + 1 entries of its power of two.
    waiting: Mutex<BTreeMap<u64, watch::Sender<()>>>,
    /// There is an earlier end than all there were.
    earlier: Notify,
}

impl Deadlines {
    /// Starts the task: to be called within a runtime.
    pub(super) fn start() -> Self {
        let ends = Arc::new(Ends { began: Instant::now(), waiting: Mutex::default(), earlier: Notify::new() });
        let task = tokio::spawn(Arc::clone(&ends).run());
        Self { ends, task }
    }

    /// Resolves after `wait`, counted from the call; a tick or two later, never earlier.
    pub(super) fn after(&self, wait: Duration) -> impl Future<Output = ()> + Send + use<> {
        let mut end = self.ends.enter(wait);
        // Nothing is ever sent: the only change is that the sender is gone.
        async move { while end.changed().await.is_ok() {} }
    }
}

impl Drop for Deadlines {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ends {
    fn enter(&self, wait: Duration) -> watch::Receiver<()> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let wait = millis(wait).saturating_add(1);
        let grain = (wait / GRAINS).checked_next_power_of_two().unwrap_or(1 << 63).max(GRAIN_MIN_MS);
        let end = millis(self.began.elapsed()).saturating_add(wait);
        let end = end.checked_next_multiple_of(grain).unwrap_or(u64::MAX);
        let mut waiting = self.waiting.lock();
        let earlier = waiting.first_key_value().is_none_or(|(first, _)| end < *first);
        let receiver = waiting.entry(end).or_insert_with(|| watch::Sender::new(())).subscribe();
        drop(waiting);
        if earlier {
            self.earlier.notify_one();
        }
        receiver
    }

    async fn run(self: Arc<Self>) {
        loop {
            let next = self.tell_ended();
            tokio::select! {
                biased;
                () = self.earlier.notified() => {}
                () = sleep(self.began, next) => {}
            }
        }
    }

    /// Tells those whose end has come. Returns the next end.
    fn tell_ended(&self) -> Option<u64> {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut waiting = self.waiting.lock();
        let later = waiting.split_off(&now.saturating_add(1));
        let ended = std::mem::replace(&mut *waiting, later);
        let next = waiting.first_key_value().map(|(end, _)| *end);
        drop(waiting);
        drop(ended);
        next
    }
}

/// Until an end, or for ever: a year away counts as never.
async fn sleep(began: Instant, end: Option<u64>) {
    match end.and_then(|end| began.checked_add(Duration::from_millis(end))) {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_a_little_after_its_time_and_never_before() {
        let deadlines = Deadlines::start();
        for ms in [0u64, 1, 5, 100, 999, 30_000, 3_600_000] {
            let began = Instant::now();
            let wait = Duration::from_millis(ms);
            deadlines.after(wait).await;
            let took = began.elapsed();
            assert!(
                took >= wait && took <= wait + wait / 32 + Duration::from_millis(GRAIN_MIN_MS + 2),
                "{ms}: {took:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_wait_does_not_hold_up_an_earlier_one() {
        let deadlines = Deadlines::start();
        let long = tokio::spawn(deadlines.after(Duration::from_secs(60)));
        tokio::time::sleep(Duration::from_millis(10)).await;
        let began = Instant::now();
        deadlines.after(Duration::from_secs(1)).await;
        assert!(began.elapsed() < Duration::from_secs(2) && !long.is_finished());
        long.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_waits_take_a_handful_of_entries() {
        let deadlines = Deadlines::start();
        let waits: Vec<_> = (0..10_000).map(|at| deadlines.after(Duration::from_millis(30_000 + at % 50))).collect();
        assert!(deadlines.ends.waiting.lock().len() <= 2, "{}", deadlines.ends.waiting.lock().len());
        join_all(waits).await;
        assert!(deadlines.ends.waiting.lock().is_empty());
        for ms in 1..100_000 {
            drop(deadlines.after(Duration::from_millis(ms)));
        }
        assert!(deadlines.ends.waiting.lock().len() <= 12 * (GRAINS as usize + 1));
    }
}
