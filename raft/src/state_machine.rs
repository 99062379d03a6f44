//! openraft's state machine over a [`Log`] and an [`Application`]: applied, high watermark, snapshots.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};

use crate::log::Log;
use crate::payload::Application;
use crate::store::Replica;
use crate::types::{LogId, StoredMembership, TypeConfig};

/// A snapshot on its way: the bytes of a snapshot file (small for partitions, up to tens of MB for the catalog).
pub type SnapshotData = Bytes;

/// openraft's way to one replica's applied state. One per group.
#[allow(dead_code)]
pub struct StateMachine {
    log: Arc<Log>,
    application: Arc<dyn Application>,
}

impl StateMachine {
    /// Over a recovered replica.
    pub fn new(replica: &Replica) -> Self {
        Self { log: replica.log.clone(), application: replica.application.clone() }
    }
}

/// Builds one snapshot.
pub struct SnapshotBuilder {}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotData>, io::Error> {
        unimplemented!()
    }
}

#[allow(unused_variables)]
impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        unimplemented!()
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        unimplemented!()
    }

    /// `None` while there is nothing new to snapshot at the boundary (see [`Log::set_snapshot_boundary`]).
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        unimplemented!()
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        unimplemented!()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        unimplemented!()
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, SnapshotData>>, io::Error> {
        unimplemented!()
    }
}
