//! Replicas begin, begin again and end: a core over each log, under supervision, one step of a group's at a time.
//!
//! One that cannot be started waits, or is lost. Why a replica should start or end is for others to say: the layer above,
//! [`crate::supervision`], [`crate::repair`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::timeout;
use tracing::Instrument;

use super::{Former, Hosted, LIFECYCLE_LOCKS, STARTS};
use crate::error::Stopped;
use crate::log_store::LogStore;
use crate::raft_group::{Raft, RaftGroup};
use crate::repair;
use crate::state_machine::StateMachine;
use crate::store::Replica;
use crate::supervision;
use crate::types::{GroupId, ReplicaId};
use crate::vital::insist;

/// How long a start tries to purge what its newest snapshot covers.
const PURGE_WAIT: Duration = Duration::from_secs(2);

/// How long a start waits at a time for what its log has given the journal.
const DURABLE_WAIT: Duration = Duration::from_secs(1);

/// What became of starting a core again.
pub(crate) enum Restart {
    /// It runs.
    Done,
    /// The group was closed meanwhile.
    Closed,
    /// What its last core appended is still on its way to the disk. No fault of the replica's; to be tried again.
    TooEarly,
    /// It could not be started, and why.
    Failed(String),
}

impl Hosted {
    /// A core over a replica's log and state.
    async fn start_core(&self, replica: &Replica) -> Result<Raft, String> {
        // Not for long: rot at its boundary would be waited for, with the group's lifecycle locked.
        match timeout(PURGE_WAIT, replica.log.purge_to_snapshot()).await {
            Ok(Ok(())) => {}
            other => {
                tracing::warn!(group = %replica.group, ?other, "what the newest snapshot covers is still in the log")
            }
        }
        let network = self.transport.raft_network(replica.group).paced_by(replica.log.clone());
        let log = LogStore::new(replica.log.clone());
        let machine = StateMachine::new(replica);
        let core = Raft::new(replica.replica, self.openraft.clone(), network, log, machine);
        // The core's task takes the span over that it is started in.
        core.instrument(self.span(replica)).await.map_err(|fatal| fatal.to_string())
    }

    /// What every log line of a group's own tasks says.
    fn span(&self, replica: &Replica) -> tracing::Span {
        tracing::info_span!(
            parent: None,
            "group",
            broker = self.transport.broker().0,
            group = replica.group.0,
            replica = replica.replica.0
        )
    }

    /// Whether the disk has no room now, or cannot say, or too many files are open.
    pub(crate) async fn is_short(&self) -> bool {
        let measured = self.store.measure().await;
        let full = self.store.was_refused() || self.store.available_bytes() < self.config.reserve_append_bytes;
        measured.is_err() || full || self.store.is_out_of_files().await
    }

    /// Starts a replica that had to wait for something first, unless it was dropped meanwhile. Until it runs, or is lost, it waits: who
    /// finds it neither here nor waiting takes its files for missing. `failed`: see [`Self::host`].
    pub(crate) async fn host_mended(self: Arc<Self>, replica: Replica, failed: usize) {
        let _alone = self.lifecycle_of(replica.group).lock().await;
        let waits = self.is_opening(replica.group, replica.replica);
        if waits && !self.is_closed() && self.clone().host(replica, failed).await.is_ok() {
            tracing::info!("a replica that had to wait is open");
        }
    }

    /// Starts a replica and its supervision. One that cannot be started waits, and is tried again: whatever it was may be over then. After
    /// some attempts it is lost, unless it is rotten or there was a shortage, which is no fault of the replica's. `failed`: attempts that
    /// have failed for nothing of the kind.
    pub(super) async fn host(self: Arc<Self>, replica: Replica, failed: usize) -> Result<RaftGroup, String> {
        let (id, incarnation) = (replica.group, replica.replica);
        let raft = match self.start_core(&replica).await {
            Ok(raft) => raft,
            Err(why) => {
                let excused = replica.log.is_rotten() || self.is_short().await;
                let failed = failed + usize::from(!excused);
                if failed > supervision::RESTARTS_MAX {
                    self.report_lost(id, incarnation, why.clone());
                    self.take_opening(id, incarnation);
                    return Err(why);
                }
                tracing::warn!(
                    group = id.0,
                    replica = incarnation.0,
                    why,
                    failed,
                    "the replica waits until it can be opened"
                );
                self.opening.lock().insert(id, incarnation);
                let hosted = Arc::downgrade(&self);
                let span = self.span(&replica);
                let mending = async move {
                    insist("mending", || repair::open_when_mended(hosted.clone(), replica.clone(), failed)).await;
                };
                tokio::spawn(mending.instrument(span));
                return Err(why);
            }
        };
        let span = self.span(&replica);
        replica.log.hold_readers();
        let group =
            RaftGroup::new(self.transport.clone(), replica, raft, self.config.clone(), self.instruments.clone());
        self.groups.write().insert(id, group.clone());
        self.take_opening(id, incarnation);
        let (hosted, supervised) = (Arc::downgrade(&self), group.clone());
        let supervision =
            async move { insist("supervision", || supervision::supervise(hosted.clone(), supervised.clone())).await };
        tokio::spawn(supervision.instrument(span));
        Ok(group)
    }

    /// Starts a group's core again.
    pub(crate) async fn restart(&self, group: &RaftGroup) -> Restart {
        if group.is_closing() {
            return Restart::Closed;
        }
        // Before the lock is taken, which other groups have, too: on a full disk one of them may have to go first.
        if !group.log().becomes_durable(DURABLE_WAIT).await {
            return Restart::TooEarly;
        }
        // Its files must not be deleted under the new core.
        let _alone = self.lifecycle_of(group.group()).lock().await;
        // First: who closes the group abandons what this start waits for afterwards.
        group.log().expect_room();
        if group.is_closing() {
            return Restart::Closed;
        }
        let raft = match self.start_core(group.hosted()).await {
            Ok(raft) => raft,
            Err(error) => return Restart::Failed(error),
        };
        if group.is_closing() {
            let _ = raft.shutdown().await;
            return Restart::Closed;
        }
        group.log().hold_readers();
        group.replace_raft(raft);
        Restart::Done
    }

    /// Held by whoever starts, restarts or ends a replica of this group.
    pub(crate) fn lifecycle_of(&self, group: GroupId) -> &tokio::sync::Mutex<()> {
        &self.lifecycle[group.0 as usize % LIFECYCLE_LOCKS]
    }

    /// Ends a replica and deletes it. Nobody knows what ailed one that is lost, and it may have what was acknowledged: it is kept, like one
    /// that is rotten. Until that is done it stays lost, or the next attempt would not know.
    pub(super) async fn drop_replica(&self, group: GroupId, replica: ReplicaId, former: Former) -> Result<(), Stopped> {
        self.end_replica(group, replica).await;
        let keep = former == Former::Keep || self.is_lost(group, replica);
        if keep && self.store.replicas_of(group).contains(&replica) {
            self.store.set_aside(group, replica).await?;
        } else {
            self.store.delete(group, replica).await?;
        }
        self.forget_lost(group, replica);
        Ok(())
    }

    /// A replica is to be deleted: whatever it waits for on a full disk, it does so no longer. Before its lifecycle's lock is taken, for a
    /// start that waits holds that.
    pub(super) fn give_up_waiting(&self, group: GroupId, replica: ReplicaId) {
        if let Some(running) = self.get(group).filter(|running| running.replica() == replica) {
            running.close();
            running.log().abandon_appends();
        }
    }

    /// Ends a replica that is on its way out.
    pub(super) async fn end_replica(&self, group: GroupId, replica: ReplicaId) {
        let running = {
            let mut groups = self.groups.write();
            match groups.get(&group) {
                Some(present) if present.replica() == replica => groups.remove(&group),
                _ => None,
            }
        };
        if let Some(running) = running {
            self.elections.forget(group);
            self.end(&[running], "the replica is deleted").await;
        }
        self.take_opening(group, replica);
    }

    pub(crate) async fn shutdown(&self, why: &str) {
        self.closed.store(true, Ordering::Release);
        self.end(&self.all(), why).await;
    }

    /// Ends a core whose replica cannot be used any more, and reports it lost.
    pub(crate) async fn end_lost(&self, group: &RaftGroup, why: &str) {
        self.elections.forget(group.group());
        self.end(std::slice::from_ref(group), why).await;
        self.report_lost(group.group(), group.replica(), why.to_owned());
    }

    /// Ends cores on purpose, and then says which leaderships ended with them, so that nobody waits for a time-out.
    async fn end(&self, groups: &[RaftGroup], why: &str) {
        let led: Vec<_> = groups.iter().filter_map(|group| Some((group.clone(), group.own_term()?))).collect();
        let end = |group: &RaftGroup| {
            let group = group.clone();
            async move {
                group.close();
                // Its core ends only once nothing of it waits: a reader for a repair, an append for room that the end of this very
                // group may make.
                group.log().release_readers();
                group.log().abandon_appends();
                let _ = group.raft().shutdown().await;
                group.set_stopped(why.to_owned());
            }
        };
        stream::iter(groups).for_each_concurrent(STARTS, end).await;
        self.elections.renounce(&led).await;
    }
}
