//! One Raft group's replica on this broker: openraft over a [`Log`], seen from the layer above.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use crate::error::ProposeError;
use crate::log::Log;
use crate::payload::Application;
use crate::types::{Appended, BrokerId, GroupId, ReplicaHome, ReplicaId};

/// Who leads, as this replica knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The leading replica.
    pub replica: ReplicaId,
    /// Its broker.
    pub broker: BrokerId,
    /// Its term: the leader epoch.
    pub term: u64,
}

/// A member of the group, as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its broker.
    pub broker: BrokerId,
    /// Votes, or only learns.
    pub voter: bool,
    /// Highest index known to be durable there (leader only; `None`: not known).
    pub matched: Option<u64>,
}

/// A group's state, as this replica knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// Who leads.
    pub leader: Option<Leader>,
    /// Whether this replica leads *and* has committed an entry of its own term.
    pub leading: bool,
    /// Current term.
    pub term: u64,
    /// Index of the last entry here.
    pub last_index: Option<u64>,
    /// Index of the last applied entry here.
    pub applied_index: Option<u64>,
    /// Members by replica id, from the effective membership.
    pub members: BTreeMap<ReplicaId, Member>,
    /// Whether a membership change is under way.
    pub joint: bool,
    /// Why the core has stopped, if it has.
    pub stopped: Option<String>,
}

/// A group's replica. Shared; every method may be called from anywhere.
#[derive(Clone)]
pub struct RaftGroup {}

#[allow(unused_variables)]
impl RaftGroup {
    /// The group.
    pub fn group(&self) -> GroupId {
        unimplemented!()
    }

    /// This replica.
    pub fn replica(&self) -> ReplicaId {
        unimplemented!()
    }

    /// Its log, for reading.
    pub fn log(&self) -> &Arc<Log> {
        unimplemented!()
    }

    /// Its payload's owner.
    pub fn application(&self) -> &Arc<dyn Application> {
        unimplemented!()
    }

    /// The state now.
    pub fn status(&self) -> GroupStatus {
        unimplemented!()
    }

    /// Follows leadership: the current leader, or `None` while there is none.
    pub fn watch_leader(&self) -> watch::Receiver<Option<Leader>> {
        unimplemented!()
    }

    /// Proposes a payload and waits until it is committed and applied here: durable on a majority (`acks=all`).
    ///
    /// `flushed`, if given, is told as soon as the entry is durable on this leader (`acks=leader`).
    /// Errors: `NotLeader` and `Stopped` mean that nothing was appended; `Unknown` that it may have been. Dropping the
    /// future does not withdraw the proposal.
    pub async fn propose(
        &self,
        payload: Bytes,
        flushed: Option<oneshot::Sender<Appended>>,
    ) -> Result<Appended, ProposeError> {
        unimplemented!()
    }

    /// Waits until `index`, appended in `term`, is durable on every voter of the present membership and on this leader
    /// (`acks=every`, RULES.md O9). `Unknown` at the timeout or if leadership is lost.
    pub async fn await_every(&self, index: u64, term: u64, timeout: Duration) -> Result<(), ProposeError> {
        unimplemented!()
    }

    /// Confirms that this replica still leads, after this call began, and that everything committed before the call is
    /// applied here: one batched ReadIndex (RULES.md R2). `NotLeader` if it does not.
    pub async fn read_index(&self) -> Result<(), ProposeError> {
        unimplemented!()
    }

    /// Starts a new group with these voters. Only one replica of a new group may do so, once.
    pub async fn initialize(&self, members: BTreeMap<ReplicaId, ReplicaHome>) -> Result<(), ProposeError> {
        unimplemented!()
    }

    /// Adds a learner; returns once the membership entry is committed (not when it has caught up). Leader only.
    pub async fn add_learner(&self, replica: ReplicaId, home: ReplicaHome) -> Result<(), ProposeError> {
        unimplemented!()
    }

    /// Makes exactly these replicas the voters and drops every other member. All must be members already. Leader only;
    /// serialised per group (RULES.md R9).
    pub async fn change_voters(&self, voters: Vec<ReplicaId>) -> Result<(), ProposeError> {
        unimplemented!()
    }

    /// Hands leadership to this voter. Returns once another leader is known here, or after the transfer was undone
    /// (RULES.md R4): then an error.
    pub async fn transfer_leader(&self, to: ReplicaId) -> Result<(), ProposeError> {
        unimplemented!()
    }

    /// Takes a snapshot as of the application's boundary and purges the log below it.
    /// For `SnapshotAt::Boundary` `boundary` is the first index to keep (rounded down to a segment's start);
    /// for `SnapshotAt::Applied` it is ignored.
    pub async fn snapshot(&self, boundary: u64) -> Result<(), ProposeError> {
        unimplemented!()
    }
}
