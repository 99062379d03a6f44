//! Recovery from one survivor: what a directory holds when the majority of its groups is gone for good, and how one of its
//! replicas is made the whole group.
//!
//! What is lost with that cannot be known here: the others may have committed entries that this replica never got. So a person
//! decides ([`Store::survey`] tells what there is), and whoever makes a replica the only voter must see to it that the others never
//! come back under their ids. How this is ordered, and what becomes of the cluster's metadata, is the layer above's business.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;

use crate::error::Stopped;
use crate::log::{Log, Rot};
use crate::state_machine::read_snapshot;
use crate::store::{Replica, Store};
use crate::types::{BrokerId, GroupId, LogId, Offset, ReplicaId};

/// What one replica of a directory has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// Its last entry, term and index: of two replicas of a group the one with the larger has more. `None`: it is empty.
    pub last: Option<(u64, u64)>,
    /// Index of the last entry that it knew to be committed.
    pub committed: Option<u64>,
    /// Oldest readable offset.
    pub log_start_offset: Offset,
    /// One past the last record that it knew to be committed; `None` if the log is rotten there.
    pub committed_offset: Option<Offset>,
    /// One past its last record.
    pub log_end_offset: Offset,
    /// Who voted, by the last membership it knew, and on which broker.
    pub voters: BTreeMap<ReplicaId, BrokerId>,
    /// What is known to be rotten in it. Opening a directory does not read everything.
    pub rot: Vec<Rot>,
}

impl Store {
    /// What every replica here that can be opened has, by group. Changes nothing. No group may run over the directory.
    pub async fn survey(&self) -> Vec<Survivor> {
        let mut found = Vec::new();
        for replica in self.replicas() {
            // Nobody would mend what it meets.
            replica.log.release_readers();
            found.push(look_at(&replica).await);
        }
        found
    }

    /// Makes a replica its group's only voter, on this directory's broker, and appends `then` behind that, both or neither
    /// ([`crate::raft_groups::RaftGroups::become_only_voter`] is the same on a running broker). Durable on return. No group may run
    /// over the directory.
    pub async fn become_only_voter(
        &self,
        group: GroupId,
        replica: ReplicaId,
        broker: BrokerId,
        then: Option<Bytes>,
    ) -> Result<(), Stopped> {
        let failed = |why: String| Stopped(format!("replica {replica} of group {group}: {why}").into());
        let found = self.replicas().into_iter().find(|found| (found.group, found.replica) == (group, replica));
        let found = found.ok_or_else(|| failed("it is not here".into()))?;
        found.log.become_only_voter(broker, then).await.map_err(|error| failed(error.to_string()))
    }
}

impl Replica {
    /// The applied state in the newest snapshot and the last entry it reflects, if there is one. For applications whose state is
    /// snapshotted; frames above it stand in the log.
    pub async fn applied_snapshot(&self) -> io::Result<Option<(LogId, Bytes)>> {
        let Some(snapshot) = self.log.snapshot() else { return Ok(None) };
        let (base, _) = read_snapshot(&self.log, &snapshot.name).await?;
        Ok(Some((snapshot.last, base.application)))
    }
}

async fn look_at(replica: &Replica) -> Survivor {
    let log = &replica.log;
    let committed = log.committed_log_id();
    Survivor {
        group: replica.group,
        replica: replica.replica,
        last: log.last_log_id().map(|last| (last.leader_id.term, last.index)),
        committed: committed.map(|committed| committed.index),
        log_start_offset: log.log_start_offset(),
        committed_offset: committed_offset(log, committed).await,
        log_end_offset: log.log_end_offset(),
        voters: log.voters(),
        rot: log.rot(),
    }
}

async fn committed_offset(log: &Log, committed: Option<LogId>) -> Option<Offset> {
    let start = log.log_start_offset();
    let Some(committed) = committed else { return Some(start) };
    let next = log.offset_after(committed).await.ok()?;
    Some(Offset(next).max(start))
}
