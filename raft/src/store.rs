//! A data directory, open: its journal, its checkpoints, and the logs of every replica on it.
//!
//! [`Store::open`] locks the directory, checks whose it is, recovers every log (RULES.md J12) and makes the live tail
//! durable before anything can vote or acknowledge. It knows no network and runs no Raft.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::RaftConfig;
use crate::disk::Disk;
use crate::error::{OpenError, Stopped};
use crate::log::Log;
use crate::payload::Application;
use crate::types::{BrokerId, ClusterId, DirectoryId, GroupId, ReplicaId};

/// Makes the [`Application`] of a group when its log is opened or created. Called before any other use of the group.
pub type ApplicationFactory = Arc<dyn Fn(GroupId, ReplicaId) -> Arc<dyn Application> + Send + Sync>;

/// What to open.
#[derive(Clone)]
pub struct StoreOptions {
    /// Where the bytes are.
    pub disk: Arc<dyn Disk>,
    /// The data directory; created if it is not there.
    pub path: PathBuf,
    /// Whose it must be; an empty directory becomes this broker's.
    pub broker: BrokerId,
    /// Limits.
    pub config: RaftConfig,
    /// Makes each group's application.
    pub applications: ApplicationFactory,
}

/// A replica on this directory, open or not.
#[derive(Clone)]
pub struct Replica {
    /// The group.
    pub group: GroupId,
    /// The incarnation.
    pub replica: ReplicaId,
    /// Its log, recovered.
    pub log: Arc<Log>,
    /// Its payload's owner.
    pub application: Arc<dyn Application>,
}

/// A replica whose files are not what was acknowledged (RULES.md J9). Its files are kept as they are; it is not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorruptReplica {
    /// The group.
    pub group: GroupId,
    /// The incarnation.
    pub replica: ReplicaId,
    /// What was found, with file and position.
    pub why: String,
}

/// An open data directory.
pub struct Store {}

#[allow(unused_variables)]
impl Store {
    /// Opens the directory and recovers everything in it. On return all logs are durable up to their ends.
    pub async fn open(options: StoreOptions) -> Result<Arc<Store>, OpenError> {
        unimplemented!()
    }

    /// The directory's id, made at its first opening.
    pub fn directory(&self) -> DirectoryId {
        unimplemented!()
    }

    /// The cluster it belongs to; `None` until [`Self::join_cluster`].
    pub fn cluster(&self) -> Option<ClusterId> {
        unimplemented!()
    }

    /// Writes the cluster's id into the directory's identity, durably, once. Another id than the one it has is an error.
    pub async fn join_cluster(&self, cluster: ClusterId) -> Result<(), OpenError> {
        unimplemented!()
    }

    /// Every replica here, by group.
    pub fn replicas(&self) -> Vec<Replica> {
        unimplemented!()
    }

    /// Replicas that recovery found corrupt, by group. [`Self::delete`] discards one.
    pub fn corrupt(&self) -> Vec<CorruptReplica> {
        unimplemented!()
    }

    /// Folders under `groups` that nothing on record explains (RULES.md J14): kept, never touched.
    pub fn unknown_folders(&self) -> Vec<PathBuf> {
        unimplemented!()
    }

    /// Creates an empty replica, durably. An existing (group, replica) is returned as it is.
    pub async fn create(&self, group: GroupId, replica: ReplicaId) -> Result<Replica, Stopped> {
        unimplemented!()
    }

    /// Deletes a replica: record durable first, then its files (RULES.md J14). Its group must have been shut down.
    pub async fn delete(&self, group: GroupId, replica: ReplicaId) -> Result<(), Stopped> {
        unimplemented!()
    }

    /// Resolves when the directory has stopped (a failed fsync, RULES.md J15).
    pub async fn stopped(&self) -> Stopped {
        unimplemented!()
    }

    /// Free bytes, as last measured.
    pub fn available_bytes(&self) -> u64 {
        unimplemented!()
    }

    /// Checkpoints, seals the journal and closes. Groups must have been shut down.
    pub async fn close(&self) -> Result<(), Stopped> {
        unimplemented!()
    }
}
