//! All Raft groups of a broker: opening, creating, deleting them; who leads what; elections after a death.
//!
//! A replica is started on every log of the store (`hosting`), with openraft configured in one place ([`openraft_config`]).
//! Messages of other brokers come in through `door`, elections are [`crate::elections`]', and what happens when a core ends
//! is [`crate::supervision`]'s. Nothing here knows what a group is for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use parking_lot::{Mutex, RwLock};
use tokio::sync::broadcast;

use crate::config::RaftConfig;
use crate::elections::Elections;
use crate::error::Stopped;
use crate::heartbeats;
use crate::instruments::GroupInstruments;
use crate::raft_group::RaftGroup;
use crate::repair;
use crate::store::Store;
use crate::supervision;
use crate::transport::{Liveness, Transport};
use crate::types::{BrokerId, GroupId, ReplicaId};
use crate::vital::vital;

mod backlog;
mod door;
mod hand_over;
mod hosting;

pub(crate) use hosting::Restart;

/// Replicas that are started at the same time.
const STARTS: usize = 32;
/// Events kept for a slow reader.
const EVENTS: usize = 1024;
/// Locks that order what happens to one group's hosting; groups share them by number.
const LIFECYCLE_LOCKS: usize = 64;

/// What becomes of a replica here when another of its group takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Former {
    /// Moved aside and kept ([`Store::quarantined`]).
    Keep,
    /// Deleted, unless it is lost or rotten.
    Delete,
}

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
pub struct RaftGroups {
    hosted: Arc<Hosted>,
}

/// What is hosted here, for the crate's own rooms.
pub(crate) struct Hosted {
    pub(crate) store: Arc<Store>,
    pub(crate) transport: Transport,
    pub(crate) config: Arc<RaftConfig>,
    openraft: Arc<openraft::Config>,
    groups: RwLock<BTreeMap<GroupId, RaftGroup>>,
    lost: Mutex<BTreeMap<GroupId, (ReplicaId, String)>>,
    /// Replicas that could not be started: once they are repaired, or at the next attempt, they may be.
    opening: Mutex<BTreeMap<GroupId, ReplicaId>>,
    events: broadcast::Sender<GroupEvent>,
    pub(crate) elections: Elections,
    lifecycle: Vec<tokio::sync::Mutex<()>>,
    pub(crate) instruments: Arc<GroupInstruments>,
    closed: AtomicBool,
    /// About to stop: nobody should give it anything to lead.
    leaving: AtomicBool,
}

impl RaftGroups {
    /// Starts Raft on every replica of the store and hooks into the transport. A replica that cannot be started is
    /// [`Self::lost`]; the others serve.
    pub async fn start(store: Arc<Store>, transport: Transport) -> Result<RaftGroups, Stopped> {
        let config = Arc::new(store.config().clone());
        let openraft = openraft_config(&config).map_err(|error| Stopped(error.to_string().into()))?;
        let hosted = Arc::new_cyclic(|weak: &Weak<Hosted>| Hosted {
            elections: Elections::new(weak.clone(), transport.clone(), config.clone()),
            instruments: Arc::new(GroupInstruments::new(transport.broker())),
            store,
            transport,
            config,
            openraft: Arc::new(openraft),
            groups: RwLock::default(),
            lost: Mutex::default(),
            opening: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            lifecycle: (0..LIFECYCLE_LOCKS).map(|_| tokio::sync::Mutex::default()).collect(),
            leaving: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        for corrupt in hosted.store.corrupt() {
            hosted.report_lost(corrupt.group, corrupt.replica, corrupt.why);
            #[cfg(any(test, feature = "simulation"))]
            if crate::sabotage::on(crate::sabotage::Sabotage::ReuseReplicaIds) {
                hosted.store.delete(corrupt.group, corrupt.replica).await?;
                hosted.store.create(corrupt.group, corrupt.replica).await?;
            }
        }
        let starts = stream::iter(hosted.store.replicas()).map(|replica| hosted.clone().host(replica, 0));
        starts.buffer_unordered(STARTS).collect::<Vec<_>>().await;
        hosted.transport.set_raft_service(Arc::new(door::Door::new(Arc::downgrade(&hosted))));
        hosted.spawn("elections", hosted.elections.clone().run());
        hosted.spawn("stop with the store", supervision::stop_with_the_store(Arc::downgrade(&hosted)));
        hosted.spawn("heartbeats", heartbeats::run(Arc::downgrade(&hosted)));
        hosted.spawn("stalls", supervision::hand_over_when_stalled(Arc::downgrade(&hosted)));
        hosted.spawn("repair", repair::run(Arc::downgrade(&hosted)));
        Ok(RaftGroups { hosted })
    }

    /// A group hosted here.
    pub fn get(&self, group: GroupId) -> Option<RaftGroup> {
        self.hosted.get(group)
    }

    /// Every group hosted here, by number.
    pub fn all(&self) -> Vec<RaftGroup> {
        self.hosted.all()
    }

    /// Replicas on this directory that do not run and will not: corrupt, or their cores kept ending. With the reason.
    pub fn lost(&self) -> Vec<(GroupId, ReplicaId, String)> {
        let lost = self.hosted.lost.lock();
        lost.iter().map(|(group, (replica, why))| (*group, *replica, why.clone())).collect()
    }

    /// Whether a replica of this group is here that could not be started, and will run once it is repaired (RULES.md R7), or there is room,
    /// or at the next attempt.
    pub fn is_opening(&self, group: GroupId) -> bool {
        self.hosted.opening.lock().contains_key(&group)
    }

    /// Creates an empty replica and starts it. If this broker hosts another replica of the group, that one is shut down
    /// first, and it is with its files as `former` says. One that is hosted already is returned as it is.
    pub async fn create(&self, group: GroupId, replica: ReplicaId, former: Former) -> Result<RaftGroup, Stopped> {
        let hosted = &self.hosted;
        if let Some(present) = hosted.get(group).filter(|present| present.replica() != replica) {
            hosted.give_up_waiting(group, present.replica());
        }
        let _alone = hosted.lifecycle_of(group).lock().await;
        if let Some(present) = hosted.get(group) {
            if present.replica() == replica {
                return Ok(present);
            }
            hosted.drop_replica(group, present.replica(), former).await?;
        }
        let lost = hosted.lost.lock().get(&group).map(|(lost, _)| *lost);
        if let Some(lost) = lost {
            hosted.drop_replica(group, lost, former).await?;
        }
        let opening = hosted.opening.lock().get(&group).copied();
        if opening == Some(replica) {
            return Err(Stopped(format!("replica {replica} of group {group} waits until it can be opened").into()));
        }
        if let Some(opening) = opening {
            hosted.drop_replica(group, opening, former).await?;
        }
        // One that was to be dropped before, and could not be moved aside, is known to nobody else any more.
        for other in hosted.store.replicas_of(group).into_iter().filter(|other| *other != replica) {
            hosted.drop_replica(group, other, former).await?;
        }
        let created = hosted.store.create(group, replica).await?;
        match hosted.clone().host(created, 0).await {
            Ok(started) => Ok(started),
            Err(why) => Err(Stopped(why.into())),
        }
    }

    /// Shuts a replica down and deletes its data; that of one that is lost or rotten is moved aside and kept ([`Store::quarantined`]). One
    /// that is not here is no error.
    pub async fn delete(&self, group: GroupId, replica: ReplicaId) -> Result<(), Stopped> {
        self.hosted.give_up_waiting(group, replica);
        let _alone = self.hosted.lifecycle_of(group).lock().await;
        self.hosted.drop_replica(group, replica, Former::Delete).await
    }

    /// Makes the replica here its group's only voter, whoever voted before: they are gone for good, and somebody has ordered that
    /// the group goes on without them ([`crate::survivor`]). Everything in its log is kept and will be committed. The group is
    /// closed for that moment, and its supervision opens it again. Nothing if it is the only voter already.
    pub async fn become_only_voter(&self, group: GroupId, replica: ReplicaId) -> Result<(), Stopped> {
        let hosted = &self.hosted;
        let _alone = hosted.lifecycle_of(group).lock().await;
        let running = hosted.get(group).filter(|running| running.replica() == replica && !running.is_closing());
        let running =
            running.ok_or_else(|| Stopped(format!("replica {replica} of group {group} is not here").into()))?;
        if running.log().voters().into_keys().eq([replica]) {
            return Ok(());
        }
        if running.log().last_log_id().is_none() {
            return Err(Stopped(format!("replica {replica} of group {group}: its log is empty").into()));
        }
        running.set_stopped("it becomes its group's only voter".to_owned());
        // Its core ends only once nothing of it waits.
        running.log().release_readers();
        running.log().abandon_appends();
        let _ = running.raft().shutdown().await;
        let done = running.log().become_only_voter(hosted.transport.broker(), None).await;
        done.map_err(|error| Stopped(format!("replica {replica} of group {group}: {error}").into()))
    }

    /// [`Self::delete`], but nothing of it is kept, whatever ails it: nobody wants its group any more.
    pub async fn discard(&self, group: GroupId, replica: ReplicaId) -> Result<(), Stopped> {
        self.hosted.give_up_waiting(group, replica);
        let _alone = self.hosted.lifecycle_of(group).lock().await;
        self.hosted.end_replica(group, replica).await;
        self.hosted.store.discard(group, replica).await?;
        self.hosted.forget_lost(group, replica);
        Ok(())
    }

    /// Every replica on this directory, whether it runs or not, by group.
    pub fn present(&self) -> Vec<(GroupId, ReplicaId)> {
        let open = self.hosted.store.replicas().into_iter().map(|replica| (replica.group, replica.replica));
        let corrupt = self.hosted.store.corrupt().into_iter().map(|replica| (replica.group, replica.replica));
        open.chain(corrupt).collect()
    }

    /// What supervision sees from now on; what was lost before is in [`Self::lost`].
    pub fn watch_events(&self) -> broadcast::Receiver<GroupEvent> {
        self.hosted.events.subscribe()
    }

    /// Hands every leadership to another live voter, as far as possible within `timeout`. For a clean stop.
    pub async fn hand_over_all(&self, timeout: Duration) {
        self.hosted.leaving.store(true, Ordering::Release);
        self.hosted.hand_over_all(timeout).await;
    }

    /// The transport.
    pub fn transport(&self) -> &Transport {
        &self.hosted.transport
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.hosted.store
    }

    /// Shuts every group down. The store and the transport stay open.
    pub async fn shutdown(&self) {
        self.hosted.shutdown("the broker is shutting down").await;
    }
}

impl Hosted {
    pub(crate) fn get(&self, group: GroupId) -> Option<RaftGroup> {
        self.groups.read().get(&group).cloned()
    }

    pub(crate) fn all(&self) -> Vec<RaftGroup> {
        self.groups.read().values().cloned().collect()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn tell(&self, event: GroupEvent) {
        // Nobody listens: nobody needs to know.
        let _ = self.events.send(event);
    }

    /// This replica does not run and will not by itself.
    pub(crate) fn report_lost(&self, group: GroupId, replica: ReplicaId, why: String) {
        tracing::error!(group = group.0, replica = replica.0, why, "replica lost");
        let before = self.lost.lock().insert(group, (replica, why.clone()));
        if before.is_none_or(|(before, _)| before != replica) {
            self.instruments.given_up.increment(1);
        }
        self.tell(GroupEvent::Lost(group, replica, why));
    }

    /// The replica does not wait any more. Returns whether it did.
    pub(crate) fn take_opening(&self, group: GroupId, replica: ReplicaId) -> bool {
        let mut opening = self.opening.lock();
        opening.get(&group) == Some(&replica) && opening.remove(&group).is_some()
    }

    /// Whether this replica waits until it can be started.
    pub(crate) fn is_opening(&self, group: GroupId, replica: ReplicaId) -> bool {
        self.opening.lock().get(&group) == Some(&replica)
    }

    /// Spawns a task without which the broker is of no use: its panic stops the directory. The store is not kept by it.
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let store = Arc::downgrade(&self.store);
        let stop = move |why: &str| store.upgrade().iter().for_each(|store| store.stop(why));
        tokio::spawn(vital(name, stop, task));
    }

    pub(crate) async fn hand_over_all(&self, timeout: Duration) {
        hand_over::all(self, timeout).await;
    }

    fn is_lost(&self, group: GroupId, replica: ReplicaId) -> bool {
        self.lost.lock().get(&group).is_some_and(|(lost, _)| *lost == replica)
    }

    fn forget_lost(&self, group: GroupId, replica: ReplicaId) {
        self.lost.lock().retain(|lost_group, (lost, _)| (*lost_group, *lost) != (group, replica));
    }

    /// Whether this is another broker, and alive.
    pub(crate) fn is_live_peer(&self, broker: BrokerId) -> bool {
        broker != self.transport.broker() && self.transport.liveness(broker) == Liveness::Alive
    }
}

/// openraft's configuration. Its own timers are only the fallback behind [`crate::elections`].
pub fn openraft_config(config: &RaftConfig) -> Result<openraft::Config, openraft::ConfigError> {
    let heartbeat = config.heartbeat.as_millis() as u64;
    let election = config.election_timeout.as_millis() as u64;
    let settings = openraft::Config {
        cluster_name: "pontoon".to_owned(),
        heartbeat_interval: heartbeat,
        // A follower that acknowledged entries within a heartbeat needs none. Not where the timers are too close.
        heartbeat_min_interval: (election > heartbeat * 3).then_some(heartbeat),
        election_timeout_min: election,
        election_timeout_max: election * 2,
        // The lease is election_timeout_max; a leader that lost its quorum for longer falls silent, so that its
        // heartbeats do not keep the others from electing (openraft #2080).
        quorum_loss_probe_interval: Some(election * 4),
        enable_pre_vote: Some(true),
        // A restored leader would reuse (term, index) with other bytes (RULES.md R1).
        enable_leader_restore: Some(false),
        allow_log_reversion: Some(false),
        // The log is the data: snapshots are taken at the retention boundary, when asked for, and purge at once.
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        install_snapshot_timeout: 60_000,
        max_payload_entries: 300,
        // A mailbox's memory comes in blocks as it fills, so its bound costs nothing while it is empty. The API's bound
        // is back-pressure for proposers. The core sends notifications to *itself*, and waits for the state machine,
        // which sends it notifications too: were that queue to fill, both would wait for ever, so it is left wide.
        api_channel_size: Some(1024),
        notification_channel_size: Some(65_536),
        state_machine_channel_size: Some(1024),
        backoff: "20ms 50ms 100ms 200ms ...500ms".to_owned(),
        ..openraft::Config::default()
    };
    settings.validate()
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod config_tests {
    use super::*;

    #[test]
    fn the_default_configuration_is_valid_and_never_restores_leaders() {
        let settings = openraft_config(&RaftConfig::default()).unwrap();
        assert_eq!(settings.enable_leader_restore, Some(false));
        assert_eq!(settings.enable_pre_vote, Some(true));
        assert_eq!(settings.quorum_loss_probe_interval, Some(2 * settings.election_timeout_max));
    }

    #[test]
    fn timers_that_cannot_work_are_refused() {
        let config = RaftConfig { heartbeat: Duration::from_secs(9), ..RaftConfig::default() };
        assert!(openraft_config(&config).is_err());
    }
}
