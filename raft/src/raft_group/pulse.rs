//! A group's clock, driven from outside ([`crate::heartbeats`]) instead of by openraft's ticker.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use openraft::Instant as _;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;

use super::RaftGroup;
use crate::config::RaftConfig;
use crate::types::{BrokerId, LogId};

/// Term, last index and commit index.
type Seen = (u64, Option<u64>, Option<LogId>);

/// What was last seen of a group that is led here, and when its followers were last told that it is.
#[derive(Default)]
pub(super) struct Pulse {
    seen: Seen,
    beat: Option<Instant>,
}

impl Pulse {
    /// Whether a heartbeat is due: something has changed since the last look, which the followers have perhaps not heard of; or they
    /// have heard nothing for as long as an idle group may be silent; or no majority has answered the last one: from the last that
    /// was, so long ago (`acked`), the lease counts.
    fn is_due(&mut self, seen: Seen, acked: Option<Duration>, config: &RaftConfig) -> bool {
        let changed = std::mem::replace(&mut self.seen, seen) != seen;
        let idle = config.idle_heartbeat();
        let silent = self.beat.is_none_or(|beat| beat.elapsed() >= idle);
        changed || silent || acked.is_none_or(|acked| acked >= idle + config.heartbeat)
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
        if pulse.is_due(seen, acked, &self.inner.config) {
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
    async fn a_heartbeat_is_due_after_a_change_and_after_so_long_and_if_the_last_was_not_answered() {
        let config = RaftConfig::default();
        let (idle, soon) = (config.idle_heartbeat(), Some(Duration::from_millis(1)));
        let mut pulse = Pulse::default();
        assert!(pulse.is_due((1, Some(1), None), soon, &config));
        pulse.beat = Some(Instant::now());
        assert!(!pulse.is_due((1, Some(1), None), soon, &config));
        assert!(pulse.is_due((1, Some(2), None), soon, &config), "an entry");
        assert!(pulse.is_due((2, Some(2), None), soon, &config), "a term");
        assert!(!pulse.is_due((2, Some(2), None), soon, &config));
        assert!(pulse.is_due((2, Some(2), None), None, &config), "no majority has ever answered");
        let late = idle + config.heartbeat;
        assert!(
            !pulse.is_due((2, Some(2), None), Some(late - Duration::from_millis(1)), &config),
            "it may be on its way"
        );
        assert!(pulse.is_due((2, Some(2), None), Some(late), &config), "no majority has answered for long");
        tokio::time::advance(idle).await;
        assert!(pulse.is_due((2, Some(2), None), soon, &config));
        assert!(pulse.is_due((2, Some(2), None), soon, &config), "it could not be sent");
    }
}
