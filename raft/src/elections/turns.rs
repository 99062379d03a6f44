//! Who runs, and when: what is in use at once, of everything else so many at a time. A thousand at once would all end with the last
//! one, and what is in use would wait for what is not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout};

use super::{Case, Elections, OFFICE_WAIT, jitter};
use crate::raft_group::Leader;

/// Elections of groups that are not in use in which this broker's replicas run at the same time.
pub(super) const RUNNING_MAX: usize = 32;
/// A group that waits longer for its turn here is looked at again.
pub(super) const TURN_WAIT: Duration = Duration::from_secs(2);
/// How long each group that waits before it may hold up one whose turn is elsewhere.
const TURN_EACH: Duration = Duration::from_millis(1);
/// Before more such groups are looked at, while that many wait to run.
pub(super) const CROWD_WAIT: Duration = Duration::from_millis(10);

impl Elections {
    /// So many wait for their turn that more would only take time from those that run.
    pub(super) fn is_crowded(&self) -> bool {
        self.inner.waiting.load(Ordering::Relaxed) > RUNNING_MAX
    }

    /// This broker shall lead the case's group: it waits for its turn.
    pub(super) fn queue(&self, case: Case, candidacies: &mpsc::UnboundedSender<Case>) {
        self.inner.waiting.fetch_add(1, Ordering::Relaxed);
        // Closed is only what is over.
        let _ = candidacies.send(case);
    }

    /// Runs for what this broker shall lead and nobody uses, first come first served, so many at a time.
    pub(super) async fn run_in_turn(&self, mut candidacies: mpsc::UnboundedReceiver<Case>) {
        let running = Arc::new(Semaphore::new(RUNNING_MAX));
        while let Some(case) = candidacies.recv().await {
            let Ok(place) = running.clone().acquire_owned().await else { return };
            self.inner.waiting.fetch_sub(1, Ordering::Relaxed);
            if self.begins(&case) {
                tokio::spawn(run_for_leader(case, Some(place)));
            }
        }
    }

    /// It is this group's turn, and its candidate's time begins; unless somebody leads it meanwhile.
    pub(super) fn begins(&self, case: &Case) -> bool {
        let mut orphans = self.inner.orphans.lock();
        let Some(orphan) = orphans.get_mut(&case.group.group()) else { return false };
        let now = Instant::now();
        let judged = case.standing.vote;
        let led = |leader: &Leader| !judged.committed || leader.term > judged.leader_id.term;
        let led = case.group.watch_leader().borrow().as_ref().is_some_and(led);
        // What was judged may have been a false alarm.
        if led || !self.leaderless(&case.group, &case.standing, orphan) {
            orphan.look_at(now);
            self.inner.wake.notify_one();
            return false;
        }
        orphan.begun(now, jitter());
        drop(orphans);
        if let Some(groups) = self.inner.groups.upgrade() {
            groups.instruments.elections_forced.increment(1);
        }
        true
    }
}

/// How much longer a winner elsewhere may need than its time in office: its turn comes there after as many as wait here, at most.
pub(super) fn turn_elsewhere(waiting: usize) -> Duration {
    (TURN_EACH * waiting as u32).min(TURN_WAIT)
}

/// One election that this replica shall win. Its place, if it needed one, is free again once it is won, or its time is over.
pub(super) async fn run_for_leader(case: Case, place: Option<OwnedSemaphorePermit>) {
    case.group.elect(&case.standing, case.group.replica()).await;
    if place.is_some() {
        let mut roles = case.group.raft().server_metrics();
        let elected = roles.wait_until(|role| role.state == openraft::ServerState::Leader);
        let _ = timeout(OFFICE_WAIT, elected).await;
    }
}
