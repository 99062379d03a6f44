//! A log whose group has lost its majority for good becomes the whole group's ([`crate::survivor`]).
//!
//! Raft knows no such step: it is what a leader of a far later term would have written, had the others agreed to leave. It is
//! sound exactly if none of them ever speaks to this replica, or to a client, again. Seeing to that is the caller's business.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Log;
use super::append::NewEntry;
use super::write::invalid;
use crate::types::{BrokerId, Membership, Proposal, ReplicaHome, ReplicaId, log_id, vote};

/// How far the term jumps. The others may have gone through some terms that this replica has not heard of: the leader epochs
/// that clients know from those must not come again (KIP-320), nor look newer than the ones that come now.
const TERM_GAP: u64 = 1 << 16;

impl Log {
    /// Who votes by the last membership in the log, committed or not, and on which broker.
    pub fn voters(&self) -> BTreeMap<ReplicaId, BrokerId> {
        let stored = self.membership_at(Some(u64::MAX));
        let membership = stored.membership();
        let broker = |id: ReplicaId| membership.get_node(&id).map_or(BrokerId(0), |home| home.broker);
        membership.voter_ids().map(|id| (id, broker(id))).collect()
    }

    /// Appends a membership of this replica alone in a term far above all it has heard of, and `then` behind it, if given, as one
    /// write: after a crash both are there or neither is. Durable on return. No core may run over the log.
    ///
    /// Nothing is taken away: entries above the commit index stay, and are committed with the rest once the replica leads. Some
    /// of them may have been acknowledged, by a leader that this replica did not hear from again.
    ///
    /// An empty log is refused: its group has never had a leader that this replica knew of.
    pub(crate) async fn become_only_voter(self: &Arc<Self>, broker: BrokerId, then: Option<Bytes>) -> io::Result<()> {
        self.expect_room();
        let (voted, last) = {
            let state = self.state.lock();
            (state.vote.map_or(0, |vote| vote.leader_id.term), state.head.last)
        };
        let last = last.ok_or_else(|| invalid("its log is empty".into()))?;
        let term = voted.max(last.leader_id.term).checked_add(TERM_GAP);
        let term = term.ok_or_else(|| invalid("there are no terms left".into()))?;
        // Before its entries, as by any leader.
        self.save_vote(vote(term, self.replica, true)).await?;
        let home = BTreeMap::from([(self.replica, ReplicaHome { broker })]);
        let alone = Membership::new(vec![BTreeSet::from([self.replica])], home).map_err(io::Error::other)?;
        let mut entries = vec![NewEntry::Membership(log_id(term, last.index + 1), alone)];
        let proposal = then.map(|payload| Proposal { payload, flushed: None, stages: None });
        entries.extend(proposal.map(|proposal| NewEntry::Proposed(log_id(term, last.index + 2), proposal)));
        let (tell, told) = oneshot::channel();
        let flushed = move |result| {
            // Only if this future was dropped does nobody listen.
            let _ = tell.send(result);
        };
        self.append(entries, Box::new(flushed)).await?;
        told.await.map_err(io::Error::other)??;
        tracing::warn!(group = %self.group, replica = %self.replica, term, "the replica is its group's only voter now");
        Ok(())
    }
}
