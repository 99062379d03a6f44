//! What is seen of a partition without waiting; and being told that a look at it is worth repeating: more is committed, or
//! another leads. For callers that wait on many partitions under one timer; a fetch of a single partition waits by itself
//! ([`super::Fetch::wait`]).

use pontoon_raft::raft_group::Leader;
use pontoon_raft::types::Offset;
use tokio::sync::watch;

use super::{Partition, ReplicatedLog};
use crate::error::Result;

/// See [`Partition::follow`].
#[derive(Debug)]
pub struct Follow {
    high_watermark: watch::Receiver<Offset>,
    leader: watch::Receiver<Option<Leader>>,
}

impl Follow {
    /// Resolves when something has changed since [`Partition::follow`] or since this resolved last; at once if the replica
    /// is gone. Cancel safe.
    pub async fn changed(&mut self) {
        tokio::select! {
            _ = self.high_watermark.changed() => {}
            _ = self.leader.changed() => {}
        }
    }
}

impl<L: ReplicatedLog> Partition<L> {
    /// The epoch in which this replica leads, able to take writes. `NOT_LEADER`, `NO_LEADER`, `NOT_READY` otherwise.
    pub fn leader_epoch(&self) -> Result<u64> {
        self.leading()
    }

    /// Whether this broker's disk has room for what is produced.
    pub fn storage_has_room(&self) -> bool {
        (self.options.storage_has_room)()
    }

    /// Oldest readable offset, as this replica knows it.
    pub fn log_start_offset(&self) -> Offset {
        self.log.log_start_offset()
    }

    /// One past the last committed offset, as this replica knows it.
    pub fn high_watermark(&self) -> Offset {
        *self.log.watch_high_watermark().borrow()
    }

    /// Follows the high watermark and the leader. Call it *before* the look that may have to be repeated: what changes after
    /// the call is not missed.
    pub fn follow(&self) -> Follow {
        let (mut high_watermark, mut leader) = (self.log.watch_high_watermark(), self.log.watch_leader());
        high_watermark.mark_unchanged();
        leader.mark_unchanged();
        Follow { high_watermark, leader }
    }
}
