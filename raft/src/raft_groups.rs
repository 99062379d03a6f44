//! All Raft groups of a broker: opening, creating, deleting them; who leads what; elections after a death.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Stopped;
use crate::raft_group::RaftGroup;
use crate::store::Store;
use crate::transport::Transport;
use crate::types::{GroupId, ReplicaId};

/// What the supervision of groups tells the layer above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupEvent {
    /// A group's core ended and was started again.
    Restarted(GroupId, String),
    /// A group's core ended and cannot be started: its log is corrupt or its storage fails. The replica is lost; the
    /// controller should replace it.
    Lost(GroupId, ReplicaId, String),
}

/// All groups of a broker. Shared.
#[derive(Clone)]
pub struct RaftGroups {}

#[allow(unused_variables)]
impl RaftGroups {
    /// Starts Raft on every replica of the store and hooks into the transport.
    pub async fn start(store: Arc<Store>, transport: Transport) -> Result<RaftGroups, Stopped> {
        unimplemented!()
    }

    /// A group hosted here.
    pub fn get(&self, group: GroupId) -> Option<RaftGroup> {
        unimplemented!()
    }

    /// Every group hosted here.
    pub fn all(&self) -> Vec<RaftGroup> {
        unimplemented!()
    }

    /// Creates an empty replica and starts it. If this broker hosts another replica of the group, that one is shut down
    /// and deleted first.
    pub async fn create(&self, group: GroupId, replica: ReplicaId) -> Result<RaftGroup, Stopped> {
        unimplemented!()
    }

    /// Shuts a replica down and deletes its data.
    pub async fn delete(&self, group: GroupId, replica: ReplicaId) -> Result<(), Stopped> {
        unimplemented!()
    }

    /// What supervision sees.
    pub fn watch_events(&self) -> tokio::sync::broadcast::Receiver<GroupEvent> {
        unimplemented!()
    }

    /// Hands every leadership to another live voter, as far as possible within `timeout`. For a clean stop.
    pub async fn hand_over_all(&self, timeout: Duration) {
        unimplemented!()
    }

    /// The transport.
    pub fn transport(&self) -> &Transport {
        unimplemented!()
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        unimplemented!()
    }

    /// Shuts every group down. The store and the transport stay open.
    pub async fn shutdown(&self) {
        unimplemented!()
    }
}
