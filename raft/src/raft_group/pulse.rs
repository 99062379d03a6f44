//! A group's clock, driven from outside ([`crate::heartbeats`]) instead of by openraft's ticker.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use openraft::Instant as _;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;

use super::RaftGroup;
use crate::types::{BrokerId, LogId};

/// What was last seen of a group that is led here, and when its followers were last told that it is.
#[derive(Default)]
pub(super) struct Pulse {
    seen: (u64, Option<u64>, Option<LogId>),
    beat: Option<Instant>,
}

impl Pulse {
    /// Whether a heartbeat is due: something has changed since the last look, which the followers have perhaps not heard of, or they
    /// have heard nothing for `idle`.
    fn is_due(&mut self, seen: (u64, Option<u64>, Option<LogId>), idle: Duration) -> bool {
        let changed = std::mem::replace(&mut self.seen, seen) != seen;
        changed || self.beat.is_none_or(|beat| beat.elapsed() >= idle)
    }
}

impl RaftGroup {
    /// One beat of the broker's clock. Where this replica leads, the followers are told so if that is due. Where it follows a leader
    /// that speaks, and whose broker is `alive`, nothing is needed. Anywhere else openraft's ticker runs, and its timers may elect.
    pub(crate) fn beat(&self, alive: impl Fn(BrokerId) -> bool) {
        let raft = self.raft();
        let metrics = raft.metrics();
        let (leads, seen, leader, acked) = {
            let now = metrics.borrow_watched();
            if now.running_state.is_err() {
                return;
            }
            let seen = (now.current_term, now.last_log_index, now.local_committed);
            let acked = now.last_quorum_acked.map(|acked| acked.elapsed());
            (now.state == ServerState::Leader, seen, self.voted_in(&now), acked)
        };
        let follows = leader.is_some_and(|leader| alive(leader.broker)) && self.hears_leader();
        raft.runtime_config().tick(!leads && !follows);
        if !leads {
            return;
        }
        #[cfg(any(test, feature = "simulation"))]
        if crate::sabotage::on(crate::sabotage::Sabotage::LeadersFallSilent) {
            return;
        }
        let mut pulse = self.inner.pulse.lock();
        // Once more, too, if the last one was not answered by a majority: the lease counts from there.
        let unanswered =
            acked.is_none_or(|acked| acked >= self.inner.config.idle_heartbeat() + self.inner.config.heartbeat);
        if pulse.is_due(seen, self.inner.config.idle_heartbeat()) || unanswered {
            // Not waited for: a core whose mailbox is full is at work, or stuck, and the others must not be kept waiting for it.
            match tokio::task::unconstrained(raft.trigger().heartbeat()).now_or_never() {
                Some(_) => pulse.beat = Some(Instant::now()),
                // openraft's own clock has a way of its own into the core.
                None => raft.runtime_config().tick(true),
            }
        }
    }

    /// The group's leader spoke, and this replica took it for that.
    pub(crate) fn note_heard(&self) {
        self.inner.heard_ms.store(self.age_ms().max(1), Ordering::Relaxed);
    }

    /// Whether the leader spoke so recently that openraft's own timers are far from an election.
    fn hears_leader(&self) -> bool {
        let heard = self.inner.heard_ms.load(Ordering::Relaxed);
        heard > 0 && Duration::from_millis(self.age_ms().saturating_sub(heard)) < self.inner.config.heard_max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_is_due_after_a_change_and_after_so_long() {
        let idle = Duration::from_secs(2);
        let mut pulse = Pulse::default();
        assert!(pulse.is_due((1, Some(1), None), idle));
        pulse.beat = Some(Instant::now());
        assert!(!pulse.is_due((1, Some(1), None), idle));
        assert!(pulse.is_due((1, Some(2), None), idle), "an entry");
        assert!(pulse.is_due((2, Some(2), None), idle), "a term");
        assert!(!pulse.is_due((2, Some(2), None), idle));
        tokio::time::advance(idle).await;
        assert!(pulse.is_due((2, Some(2), None), idle));
        assert!(pulse.is_due((2, Some(2), None), idle), "it could not be sent");
    }
}
