//! Handing leadership over, and taking it back when the hand-over fails (RULES.md R4).
//!
//! openraft never clears a leader's `transfer_to`: a transfer that brings no new leader leaves one that refuses every
//! write, read and heartbeat for ever, and `trigger().elect()` does nothing on a leader. What ends it is a higher term:
//! the leader takes in a vote for nobody one term up, and so steps down; then it runs itself, one term further, with the right to
//! skip the lease that the voters still hold for it. For nobody, and not for some voter: that one may lead in an earlier term just
//! then, would hear of its "own" candidacy, and openraft would go on leading with a vote that is not the leader's.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::raft::{TransferLeaderRequest, VoteRequest};
use tokio::time::{sleep, timeout};

use super::{GroupStatus, RaftGroup};
use crate::error::ProposeError;
use crate::transport::{CallError, Target};
use crate::types::{BrokerId, LogId, Membership, ReplicaId, TypeConfig, Vote, vote};

/// How long a call into the group's own core may take before it is given up: the caller retries.
const CORE_WAIT: Duration = Duration::from_millis(500);

/// Between two questions to a core that does not answer.
const CORE_POLL: Duration = Duration::from_millis(50);

/// Entries that a voter may be behind and still take over: it must have them all before it runs, and until then nobody
/// accepts anything.
const LAG_MAX: u64 = 10_000;

/// A replica id that no replica ever has, for a vote that only ends a term.
const NOBODY: ReplicaId = ReplicaId(u64::MAX);

/// A replica's own Raft state, exact as of one moment.
#[derive(Clone)]
pub(crate) struct Standing {
    pub(crate) vote: Vote,
    pub(crate) last: Option<LogId>,
    pub(crate) leads: bool,
    pub(crate) membership: Membership,
}

impl GroupStatus {
    /// Who of these could take leadership over: the voter with the newest log first, among equals the one whose broker was
    /// given the least.
    pub(crate) fn heirs(
        &self,
        fits: impl Fn(ReplicaId, BrokerId) -> bool,
        given: impl Fn(BrokerId) -> usize,
    ) -> Vec<(ReplicaId, BrokerId)> {
        let voters = self.members.iter().filter(|(id, member)| member.voter && fits(**id, member.broker));
        let mut voters: Vec<_> = voters.collect();
        voters.sort_by_key(|(id, member)| (std::cmp::Reverse(member.matched), given(member.broker), **id));
        voters.into_iter().map(|(id, member)| (*id, member.broker)).collect()
    }
}

/// Forgets the transfer under way, also when its task is cancelled.
struct Announced<'a>(&'a RaftGroup);

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        *self.0.inner.transferring.lock() = None;
    }
}

impl RaftGroup {
    /// Hands leadership to this voter. Returns once another leader is known here, or after the transfer was undone
    /// (RULES.md R4): then an error. Goes on if the future is dropped.
    pub async fn transfer_leader(&self, to: ReplicaId) -> Result<(), ProposeError> {
        let group = self.clone();
        let done = tokio::spawn(async move { group.supervised_transfer(to).await });
        done.await.unwrap_or_else(|_| Err(ProposeError::Unknown("the transfer was abandoned".into())))
    }

    async fn supervised_transfer(&self, to: ReplicaId) -> Result<(), ProposeError> {
        let Some(term) = self.leading_term() else { return Err(self.not_leader_or_stopped()) };
        if to == self.replica() {
            return Ok(());
        }
        self.ready_to_lead(to).await?;
        // Another transfer may have failed meanwhile, and been undone: then this replica leads in another term.
        if self.leading_term() != Some(term) {
            return Err(self.not_leader_or_stopped());
        }
        {
            let mut transferring = self.inner.transferring.lock();
            if let Some((other, _)) = *transferring {
                return Err(ProposeError::Unknown(format!("leadership is being handed to replica {other}")));
            }
            *transferring = Some((to, term));
        }
        let _announced = Announced(self);
        self.inner.instruments.transfers.increment(1);
        self.raft().trigger().transfer_leader(to).await.map_err(|fatal| self.stopped_error(fatal))?;
        let another = |leader: ReplicaId| leader != self.replica();
        if self.later_leader_within(term, another, self.inner.config.transfer_timeout).await {
            return Ok(());
        }
        self.undo_transfer(to, term).await;
        Err(ProposeError::Unknown(format!("replica {to} did not take leadership over; the transfer was undone")))
    }

    /// Refuses a hand-over that could not succeed before it disturbs anybody.
    async fn ready_to_lead(&self, to: ReplicaId) -> Result<(), ProposeError> {
        let status = self.status();
        let refuse = |why: String| Err(ProposeError::Unknown(format!("replica {to} of group {}: {why}", self.group())));
        let Some(member) = status.members.get(&to).filter(|member| member.voter) else {
            return refuse("it is no voter".into());
        };
        let lag = status.last_index.map_or(0, |last| last.saturating_sub(member.matched.unwrap_or(0)));
        if lag > LAG_MAX {
            return refuse(format!("it lags {lag} entries"));
        }
        match self.may_lead_at(to, member.broker).await {
            Ok(true) => Ok(()),
            Ok(false) => refuse("its log is rotten".into()),
            Err(error) => refuse(error.to_string()),
        }
    }

    /// Whether another member runs and may lead; an error if it does not run, or does not say.
    pub(crate) async fn may_lead_at(&self, replica: ReplicaId, broker: BrokerId) -> Result<bool, CallError> {
        self.inner.transport.may_lead(broker, Target { group: self.group(), replica }, CORE_WAIT).await
    }

    /// Whether a leader of a later term, one of these, shows up in time.
    async fn later_leader_within(&self, term: u64, wanted: impl Fn(ReplicaId) -> bool, wait: Duration) -> bool {
        let mut metrics = self.raft().metrics();
        let appears = async {
            loop {
                let later = {
                    let now = metrics.borrow_watched();
                    now.current_term > term && now.current_leader.is_some_and(&wanted)
                };
                if later {
                    return true;
                }
                if metrics.changed().await.is_err() {
                    return false;
                }
            }
        };
        timeout(wait, appears).await.unwrap_or(false)
    }

    async fn undo_transfer(&self, to: ReplicaId, term: u64) {
        for _ in 0..3 {
            // A core that is busy (with a full disk, a stalled one) has the transfer still before it.
            let standing = loop {
                match self.standing().await {
                    Some(standing) => break standing,
                    None if self.is_closing() || self.is_stopped() => return,
                    None => sleep(CORE_POLL).await,
                }
            };
            // Only a leader of that same term is stuck. Otherwise elections go their own way.
            if !standing.leads || standing.vote.leader_id.term != term {
                return;
            }
            tracing::warn!(group = self.group().0, %to, term, "leadership transfer undone");
            self.inner.instruments.transfers_undone.increment(1);
            self.step_through(&standing).await;
            if self.later_leader_within(term, |_| true, self.inner.config.transfer_timeout).await {
                return;
            }
        }
    }

    /// This replica's Raft state, from its core. `None` if the core does not answer.
    pub(crate) async fn standing(&self) -> Option<Standing> {
        let raft = self.raft();
        let read = raft.with_raft_state(|state| Standing {
            vote: *state.vote_ref(),
            last: state.log_ids.last().copied(),
            leads: state.server_state == openraft::ServerState::Leader,
            membership: state.membership_state.effective().membership().clone(),
        });
        timeout(CORE_WAIT, read).await.ok()?.ok()
    }

    /// Tells the core that the leader it follows is no more and who shall lead. If that is this replica it runs, now.
    pub(crate) async fn elect(&self, standing: &Standing, winner: ReplicaId) {
        // It votes, and is passed over (RULES.md R7).
        if winner == self.replica() && !self.may_lead() {
            tracing::info!(group = self.group().0, "the log is rotten here: does not run for leadership");
            return;
        }
        // Without the last log id: the caller has compared the logs, and after a restart openraft's flush progress knows
        // none, so that it would wait for one in vain. The voters check the log again.
        let request = TransferLeaderRequest::new(standing.vote, winner, None);
        let raft = self.raft();
        let taken = timeout(CORE_WAIT, raft.handle_transfer_leader(request)).await;
        if winner != self.replica() || matches!(taken, Ok(Ok(Ok(())))) {
            return;
        }
        // A leader that was restarted: openraft holds its vote demoted in memory, committed on disk, and refuses.
        match standing.membership.voter_ids().any(|id| id != self.replica()) {
            true => self.step_through(standing).await,
            false => drop(timeout(CORE_WAIT, raft.trigger().elect(false)).await),
        }
    }

    /// Steps down through a vote for nobody one term up, then runs one term further.
    pub(crate) async fn step_through(&self, standing: &Standing) {
        let up = vote(standing.vote.leader_id.term + 1, NOBODY, false);
        let request = VoteRequest::<TypeConfig> { vote: up, last_log_id: standing.last, leadership_transfer: true };
        let raft = self.raft();
        match timeout(CORE_WAIT, raft.vote(request)).await {
            Ok(Ok(answer)) if answer.vote_granted => {
                let request = TransferLeaderRequest::new(up, self.replica(), None);
                let _ = timeout(CORE_WAIT, raft.handle_transfer_leader(request)).await;
            }
            // The state moved on under way; whoever asked looks again.
            other => tracing::debug!(group = self.group().0, ?other, "no way through a higher term"),
        }
    }
}
