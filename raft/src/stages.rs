//! How long a proposal took through each stage on its leader: for `Server-Timing` and histograms, never for a decision.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// A proposal's way: proposed, appended, durable on the leader. Shared by the proposer and the log.
#[derive(Debug)]
pub struct Stages {
    proposed: Instant,
    /// Nanoseconds since `proposed`; 0: not yet.
    appended: AtomicU64,
    flushed: AtomicU64,
}

/// How long each stage took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// From the proposal to its place in the log.
    pub queue: Duration,
    /// From there until it was durable on the leader, or until it was answered if that came first.
    pub journal: Duration,
    /// From there until it was answered.
    pub replicate: Duration,
}

impl Stages {
    /// Of a proposal that is about to be made.
    pub fn start() -> Arc<Self> {
        Arc::new(Self { proposed: Instant::now(), appended: AtomicU64::new(0), flushed: AtomicU64::new(0) })
    }

    pub(crate) fn note_appended(&self) {
        self.note(&self.appended);
    }

    pub(crate) fn note_flushed(&self) {
        self.note(&self.flushed);
    }

    fn note(&self, stage: &AtomicU64) {
        let nanos = u64::try_from(self.proposed.elapsed().as_nanos()).unwrap_or(u64::MAX);
        stage.store(nanos.max(1), Ordering::Relaxed);
    }

    /// The times, of a proposal that is answered now. `None` if it was never appended here.
    pub fn answered(&self) -> Option<StageTimes> {
        let answered = self.proposed.elapsed();
        let passed = |stage: &AtomicU64| match stage.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        };
        let appended = passed(&self.appended)?;
        let flushed = passed(&self.flushed).unwrap_or(answered).min(answered);
        Some(StageTimes {
            queue: appended,
            journal: flushed.saturating_sub(appended),
            replicate: answered.saturating_sub(flushed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stages_add_up_to_the_whole_whatever_comes_first() {
        let step = || tokio::time::advance(Duration::from_millis(3));
        let stages = Stages::start();
        assert_eq!(stages.answered(), None, "refused before it was appended");
        step().await;
        stages.note_appended();
        step().await;
        let ms = Duration::from_millis;
        let times = |queue, journal, replicate| {
            Some(StageTimes { queue: ms(queue), journal: ms(journal), replicate: ms(replicate) })
        };
        assert_eq!(stages.answered(), times(3, 3, 0), "a majority of others was faster than this disk");
        stages.note_flushed();
        step().await;
        assert_eq!(stages.answered(), times(3, 3, 3));
    }
}
