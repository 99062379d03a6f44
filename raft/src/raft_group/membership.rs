//! Membership changes, one at a time (RULES.md R9). A joint configuration that was left behind is finished by whoever
//! leads next, before anything else changes.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use tokio::time::{Instant, sleep, timeout};

use super::RaftGroup;
use crate::error::ProposeError;
use crate::types::{Membership, ReplicaHome, ReplicaId, TypeConfig};

/// How long a caller waits for a change. Without a quorum it lasts until there is one.
const CHANGE_WAIT: Duration = Duration::from_secs(5);
/// How long a change waits for an earlier one, of a former leader, to be committed.
const EARLIER_CHANGE_WAIT: Duration = Duration::from_secs(5);
/// Between two looks at it.
const EARLIER_CHANGE_POLL: Duration = Duration::from_millis(20);

type Changes = ChangeMembers<ReplicaId, ReplicaHome>;

impl RaftGroup {
    /// Adds a learner; returns once the membership entry is committed (not when it has caught up), or `Unknown` after five
    /// seconds, while it goes on. Leader only. A member is left as it is.
    pub async fn add_learner(&self, replica: ReplicaId, home: ReplicaHome) -> Result<(), ProposeError> {
        self.detached(move |group| async move {
            let _one = group.only_change()?;
            group.finish_joint().await?;
            if group.membership().get_node(&replica) == Some(&home) {
                return Ok(());
            }
            group.change(ChangeMembers::AddNodes([(replica, home)].into()), true).await
        })
        .await
    }

    /// Makes exactly these replicas the voters and drops every other member. All must be members already. Leader only;
    /// serialised per group (RULES.md R9). Goes on if the future is dropped, or after five seconds, when this returns `Unknown`.
    ///
    /// A leader that is to go hands over to a voter that stays and answers `NotLeader`: ask that one.
    pub async fn change_voters(&self, voters: Vec<ReplicaId>) -> Result<(), ProposeError> {
        let voters: BTreeSet<ReplicaId> = voters.into_iter().collect();
        self.detached(move |group| async move {
            let _one = group.only_change()?;
            group.finish_joint().await?;
            if !voters.contains(&group.replica()) {
                return group.leave_to(&voters).await;
            }
            let membership = group.membership();
            if membership.get_joint_config() != &vec![voters.clone()] {
                group.change(ChangeMembers::ReplaceAllVoters(voters.clone()), false).await?;
            }
            let rest: BTreeSet<_> =
                group.membership().nodes().map(|(id, _)| *id).filter(|id| !voters.contains(id)).collect();
            if rest.is_empty() { Ok(()) } else { group.change(ChangeMembers::RemoveNodes(rest), false).await }
        })
        .await
    }

    /// Finishes a joint configuration that a change of this leader's own has left behind, if there is one. Leader only; serialised and
    /// waited for as [`Self::change_voters`].
    pub async fn finish_change(&self) -> Result<(), ProposeError> {
        self.detached(|group| async move {
            let _one = group.only_change()?;
            group.finish_joint().await
        })
        .await
    }

    /// Refused while another change is under way: whoever gave up waiting asks again, while what it asked for goes on.
    fn only_change(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, ProposeError> {
        let free = self.inner.changes.try_lock();
        free.map_err(|_| ProposeError::Unknown("an earlier change is under way".into()))
    }

    /// Finishes a joint configuration, if there is one, as a new leader does.
    pub(crate) async fn repair_membership(&self) {
        let _one = self.inner.changes.lock().await;
        if let Err(error) = self.finish_joint().await {
            tracing::info!(group = self.group().0, %error, "a joint membership is not finished yet");
        }
    }

    async fn finish_joint(&self) -> Result<(), ProposeError> {
        if self.leading_term().is_none() {
            return Err(self.not_leader_or_stopped());
        }
        if self.membership().get_joint_config().len() < 2 {
            return Ok(());
        }
        self.change(ChangeMembers::AddVoterIds(BTreeSet::new()), false).await
    }

    /// Hands leadership to the most caught-up of these that takes it.
    async fn leave_to(&self, voters: &BTreeSet<ReplicaId>) -> Result<(), ProposeError> {
        let status = self.status();
        let mut refused = ProposeError::Unknown("no voter of the present membership would stay".into());
        for (to, broker) in status.heirs(|id, _| voters.contains(&id), |_| 0) {
            match self.transfer_leader(to).await {
                Ok(()) => return Err(ProposeError::NotLeader { leader: Some((to, broker)) }),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn membership(&self) -> Membership {
        let raft = self.raft();
        let metrics = raft.metrics();
        metrics.borrow_watched().membership_config.membership().clone()
    }

    /// One change, all its steps. Waits while an earlier one is not committed yet: nothing was appended then.
    async fn change(&self, changes: Changes, retain: bool) -> Result<(), ProposeError> {
        let give_up = Instant::now() + EARLIER_CHANGE_WAIT;
        loop {
            let error = match self.raft().change_membership(changes.clone(), retain).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            match error {
                RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)))
                    if Instant::now() < give_up =>
                {
                    sleep(EARLIER_CHANGE_POLL).await;
                }
                RaftError::APIError(error) => return Err(self.change_refused(error)),
                // The core may have taken it in before it ended.
                RaftError::Fatal(fatal) => return Err(ProposeError::Unknown(fatal.to_string())),
            }
        }
    }

    fn change_refused(&self, error: ClientWriteError<TypeConfig>) -> ProposeError {
        match error {
            // Of the two steps of a change only the first is known not to have happened: when a leader is lost between
            // them the group is joint, and its next leader finishes that.
            ClientWriteError::ForwardToLeader(forward) => self.forward(forward),
            other => ProposeError::Unknown(other.to_string()),
        }
    }

    /// Runs to its end even if the caller goes away or has waited long enough: half a membership change is worse than a whole one.
    async fn detached<F>(&self, change: impl FnOnce(RaftGroup) -> F) -> Result<(), ProposeError>
    where
        F: Future<Output = Result<(), ProposeError>> + Send + 'static,
    {
        match timeout(CHANGE_WAIT, tokio::spawn(change(self.clone()))).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(ProposeError::Unknown("the membership change was abandoned".into())),
            Err(_) => Err(ProposeError::Unknown("the membership change is not committed yet".into())),
        }
    }
}
