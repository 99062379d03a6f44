//! Batched ReadIndex (RULES.md R2): one round is in flight, those who come meanwhile share the next.

use std::sync::Arc;

use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;

use super::RaftGroup;
use crate::error::ProposeError;

type Verdict = Option<Result<(), ProposeError>>;

/// The rounds of one group.
#[derive(Default)]
pub(super) struct Rounds {
    /// The round that has not begun yet: whoever joins it arrived before it begins.
    gathering: Mutex<Option<watch::Receiver<Verdict>>>,
    /// Held while a round is in flight.
    in_flight: Arc<tokio::sync::Mutex<()>>,
}

impl RaftGroup {
    /// Confirms that this replica still leads, after this call began, and that everything committed before the call is
    /// applied here: one batched ReadIndex (RULES.md R2). `NotLeader` if it does not.
    pub async fn read_index(&self) -> Result<(), ProposeError> {
        self.touch();
        let mut verdict = self.join_round();
        match verdict.wait_for(Option::is_some).await {
            Ok(verdict) => verdict.clone().unwrap_or(Ok(())),
            Err(_) => Err(self.not_leader_or_stopped()),
        }
    }

    /// Joins the round that has not begun yet, and sees to it that one will.
    pub(crate) fn join_round(&self) -> watch::Receiver<Verdict> {
        let mut gathering = self.inner.reads.gathering.lock();
        if let Some(round) = gathering.as_ref() {
            return round.clone();
        }
        let (done, verdict) = watch::channel(None);
        *gathering = Some(verdict.clone());
        drop(gathering);
        // A task of its own: a caller that gives up must not take the others' round with it.
        let group = self.clone();
        tokio::spawn(async move {
            let _in_flight = group.inner.reads.in_flight.clone().lock_owned().await;
            group.inner.reads.gathering.lock().take();
            let result = group.confirm_leadership().await;
            done.send_replace(Some(result));
        });
        verdict
    }

    async fn confirm_leadership(&self) -> Result<(), ProposeError> {
        let raft = self.raft();
        let confirmed = raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match timeout(self.inner.config.election_timeout, confirmed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => Err(self.forward(forward)),
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) | Err(_) => {
                Err(ProposeError::NotLeader { leader: None })
            }
            Ok(Err(RaftError::Fatal(fatal))) => Err(self.stopped_error(fatal)),
        }
    }
}
