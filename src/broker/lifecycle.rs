//! Making this directory what the catalog says: replicas created, initialised, deleted, reported; members changed.
//!
//! One step per group at a time ([`Shared::step`]), taken when the catalog changes it, when its leader changes, or when a
//! step asks to be repeated. Groups that need nothing cost nothing. A step reads the catalog's newest state, does the next
//! thing, and may be repeated at will.
//!
//! Nothing is done before this process stands in the catalog's copy here: an older copy could say `new` of a replica that
//! was created long ago, and a replica whose files are missing must not start empty (RULES.md R5).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use pontoon_raft::log::frame::FRAME_PAYLOAD_BYTES_MAX;
use pontoon_raft::raft_group::{GroupStatus, RaftGroup};
use pontoon_raft::raft_groups::{Former, GroupEvent};
use pontoon_raft::transport::Liveness;
use pontoon_raft::types::{GroupId, ReplicaHome, ReplicaId};
use pontoon_raft::vital::vital;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::Instrument;

use super::membership::{self, Step};
use super::routing::Hosted;
use super::shared::{Progress, Shared};
use super::work::{CATCH_UP_WAIT, catch_up_wait};
use crate::catalog::state::{CatalogState, GroupHome, PartitionRecord, ReplicaState, TopicRecord};
use crate::catalog::topic_config::{AcksFloor, TopicConfig};
use crate::controller::CATALOG_GROUP;
use crate::coordinator::OFFSETS_TOPIC;
use crate::partition::{Acks, Partition, PartitionOptions, Settings};
use crate::record_batch::{BatchLimits, STORED_DECOMPRESSED_BYTES_MAX};

/// What a batch may have beside the contents of its only record: lengths and headers.
const BATCH_OVERHEAD_BYTES: usize = 1 << 20;
/// Steps under way at the same time.
const STEPS_MAX: usize = 32;
/// Before a step that failed is tried again.
const RETRY_WAIT: Duration = Duration::from_millis(500);
/// Before a new group that waits for replicas looks again whose brokers are away.
const FORMING_WAIT: Duration = Duration::from_secs(1);
/// Longest that a broker which is otherwise ready waits for its peers' first words.
const FIRST_WORDS_WAIT: Duration = Duration::from_secs(3);

/// When a group wants its next step.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// When something changes.
    Change,
    /// After this long.
    After(Duration),
}

/// Follows the catalog until `stop` says so.
pub(super) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut changes = shared.catalog.watch();
    let mut events = shared.groups.watch_events();
    let mut progress = shared.progress.subscribe();
    // One that is told to stop before it has joined does nothing by a catalog of another time.
    let known = |progress: &Progress| !matches!(progress, Progress::Joining(_) | Progress::Stopping { known: false });
    let registered = progress.wait_for(known);
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => return,
        _ = registered => {}
    }
    let mut followers = Followers::default();
    let mut seen = shared.follow_catalog(&Arc::default());
    let mut busy = BTreeSet::new();
    let mut steps: JoinSet<(GroupId, Next)> = JoinSet::new();
    let mut first_pass = true;
    let mut readiness = JoinSet::new();
    loop {
        while steps.len() < STEPS_MAX
            && let Some(group) = shared.work.take(&busy)
        {
            busy.insert(group);
            let shared = shared.clone();
            let step = async move {
                let step = std::panic::AssertUnwindSafe(shared.step(group)).catch_unwind().await;
                (group, step.unwrap_or(Next::After(RETRY_WAIT)))
            };
            steps.spawn(step.in_current_span());
        }
        let next = shared.work.next(&busy);
        if first_pass && steps.is_empty() && next.is_none_or(|at| at > Instant::now()) {
            first_pass = false;
            let (shared, failing) = (shared.clone(), shared.clone());
            let hear = async move {
                shared.hear_peers().await;
                shared.set_ready();
            };
            readiness.spawn(vital("readiness", move |why| failing.fail(why.to_owned()), hear));
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            Some(done) = steps.join_next() => {
                let Ok((group, next)) = done else { continue };
                busy.remove(&group);
                if let Next::After(wait) = next {
                    shared.work.add_at(group, Instant::now() + wait);
                }
                followers.follow(&shared, group);
            }
            changed = changes.changed() => match changed {
                Ok(()) => seen = shared.follow_catalog(&seen),
                Err(_) => break,
            },
            event = events.recv() => shared.take_event(event),
            () = shared.work.wake.notified() => {}
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() && steps.len() < STEPS_MAX => {}
        }
    }
    steps.shutdown().await;
}

/// A task per hosted group, asleep until its leader changes.
#[derive(Default)]
struct Followers {
    tasks: JoinSet<()>,
    following: BTreeMap<GroupId, ReplicaId>,
}

impl Followers {
    fn follow(&mut self, shared: &Arc<Shared>, group: GroupId) {
        while self.tasks.try_join_next().is_some() {}
        let Some(hosted) = shared.routing.hosted(group) else {
            self.following.remove(&group);
            return;
        };
        if self.following.insert(group, hosted.group.replica()) == Some(hosted.group.replica()) {
            return;
        }
        let (shared, mut leader) = (Arc::downgrade(shared), hosted.leader);
        leader.mark_changed();
        let failing = shared.clone();
        let following = async move {
            // Ends when the replica is deleted: its sender is dropped then.
            while leader.changed().await.is_ok() {
                let Some(shared) = shared.upgrade() else { return };
                shared.routing.touch();
                shared.leadership_changed.notify_one();
                shared.work.add(group);
            }
        };
        let fail = move |why: &str| failing.upgrade().iter().for_each(|shared| shared.fail(why.to_owned()));
        self.tasks.spawn(vital("leaders", fail, following));
    }
}

impl Shared {
    /// Waits until every peer that is not dead has said what it leads and where clients reach it, or for [`FIRST_WORDS_WAIT`].
    /// Until then this broker would describe the cluster as smaller than it is, and partitions as having no leader.
    async fn hear_peers(&self) {
        let (mut routes, mut liveness) = (self.routing.watch(), self.transport().watch_liveness());
        let silent = |peer| !self.routing.has_heard(peer) && self.transport().liveness(peer) != Liveness::Dead;
        let heard = async {
            while self.peers().into_iter().any(silent) {
                tokio::select! {
                    _ = routes.changed() => {}
                    change = liveness.recv() => if change == Err(RecvError::Closed) { return },
                }
            }
        };
        let _ = timeout(FIRST_WORDS_WAIT, heard).await;
    }

    fn set_ready(&self) {
        self.progress.send_if_modified(|progress| {
            let registered = *progress == Progress::Registered;
            registered.then(|| *progress = Progress::Ready);
            registered
        });
    }

    /// Notes what is different from `seen`: which groups want a step, where brokers are. Returns what has been seen.
    fn follow_catalog(&self, seen: &Arc<CatalogState>) -> Arc<CatalogState> {
        let state = self.catalog.state();
        if state.brokers() != seen.brokers() {
            for broker in state.brokers().values().filter(|broker| broker.broker != self.broker) {
                // Whatever was heard before it registered, this is where it is.
                if seen.brokers().get(&broker.broker) != Some(broker) {
                    self.transport().set_peer(broker.broker, broker.peer_address.clone());
                }
            }
        }
        self.transport().supersede(state.superseded().iter().copied());
        for (id, topic) in state.topics() {
            let before = seen.topics().get(id);
            if before.is_some_and(|before| Arc::ptr_eq(before, topic)) {
                continue;
            }
            self.note_topic(topic, before.map(|before| &**before));
        }
        let mut gone = false;
        for (_, topic) in seen.topics().iter().filter(|(id, _)| !state.topics().contains_key(id)) {
            topic.partitions.iter().for_each(|partition| self.work.add(partition.group));
            gone = true;
        }
        if seen.applied.is_none() {
            // The first look: what is here and in no topic wants a step too.
            let partitions =
                self.groups.present().into_iter().map(|(group, _)| group).filter(|id| *id != CATALOG_GROUP);
            partitions.for_each(|group| self.work.add(group));
        }
        if gone {
            self.routing.retain(|group| state.group(group).is_some());
        }
        if self.catalog.wants_snapshot(self.config.catalog_snapshot_entries) {
            self.work.add(CATALOG_GROUP);
        }
        self.routing.touch();
        state
    }

    /// Which of a changed topic's partitions want a step here.
    fn note_topic(&self, topic: &TopicRecord, before: Option<&TopicRecord>) {
        let config_changed = before.is_some_and(|before| before.config != topic.config);
        for (number, partition) in topic.partitions.iter().enumerate() {
            let old = before.and_then(|before| before.partitions.get(number));
            if old.is_some_and(|old| Arc::ptr_eq(old, partition)) && !config_changed {
                continue;
            }
            let mine = partition.replicas.iter().chain(&partition.leaving).any(|replica| replica.broker == self.broker);
            if mine || self.groups.get(partition.group).is_some() {
                self.work.add(partition.group);
            }
        }
    }

    fn take_event(&self, event: Result<GroupEvent, broadcast::error::RecvError>) {
        match event {
            Ok(GroupEvent::Restarted(group, why)) => {
                tracing::warn!(%group, why, "a group was restarted");
            }
            // The catalog's own replica is `bootstrap`'s to replace.
            Ok(GroupEvent::Lost(CATALOG_GROUP, ..)) => {}
            Ok(GroupEvent::Lost(group, ..)) => self.work.add(group),
            Err(_) => {
                let partitions =
                    self.groups.lost().into_iter().map(|(group, ..)| group).filter(|id| *id != CATALOG_GROUP);
                partitions.for_each(|group| self.work.add(group));
            }
        }
    }

    /// Does the next thing for one group.
    async fn step(self: &Arc<Self>, group: GroupId) -> Next {
        if group == CATALOG_GROUP {
            return self.cut_catalog_log().await;
        }
        let state = self.catalog.state();
        let (Some(home), Some(partition)) = (state.group(group), state.partition(group)) else {
            return self.drop_unassigned(&state, group).await;
        };
        if self.groups.is_opening(group) {
            // Its files are here, and are being repaired.
            return Next::After(RETRY_WAIT);
        }
        let Some(topic) = state.topics().get(&home.topic) else { return Next::Change };
        let mine = partition.on(self.broker).filter(|record| record.directory == self.directory());
        let local = self.local(group);
        match (mine.map(|record| (record.replica, record.state)), local) {
            (Some((replica, ReplicaState::New)), local)
                if local.as_ref().map(RaftGroup::replica) != Some(replica) && !self.is_lost(group, replica) =>
            {
                self.create(partition, replica).await
            }
            (Some((replica, _)), Some(local)) if local.replica() == replica => {
                if votes_with_the_given_up(&state, &local) {
                    return self.go_on_alone(&local).await;
                }
                self.host(topic, home, &local);
                self.tend(partition, replica, &local).await
            }
            // Also one that was new a moment ago: what has existed must not start empty again under its id.
            (Some((replica, ReplicaState::New | ReplicaState::Created)), _) => {
                self.reports.lost(group, replica, self.why_lost(group, replica));
                Next::Change
            }
            (Some(_), _) => Next::Change,
            (None, Some(local)) if partition.leaving.iter().any(|record| record.replica == local.replica()) => {
                self.host(topic, home, &local); // It serves until the group has let it go.
                self.tend(partition, local.replica(), &local).await
            }
            (None, _) => self.drop_unassigned(&state, group).await,
        }
    }

    /// The replica here, if it runs.
    fn local(&self, group: GroupId) -> Option<RaftGroup> {
        self.groups.get(group).filter(|local| !self.is_lost(group, local.replica()))
    }

    fn is_lost(&self, group: GroupId, replica: ReplicaId) -> bool {
        self.groups.lost().iter().any(|(lost, of, _)| (*lost, *of) == (group, replica))
    }

    fn why_lost(&self, group: GroupId, replica: ReplicaId) -> String {
        let lost = self.groups.lost().into_iter().find(|(lost, of, _)| (*lost, *of) == (group, replica));
        lost.map_or_else(|| "its files are missing".to_owned(), |(.., why)| why)
    }

    async fn create(&self, partition: &PartitionRecord, replica: ReplicaId) -> Next {
        let group = partition.group;
        self.routing.unhost(group);
        // What it replaces may have run to the last: until the newcomer has everything, it is one copy more.
        let former = if partition.initialised { Former::Keep } else { Former::Delete };
        match self.groups.create(group, replica, former).await {
            Ok(_) => {
                tracing::debug!(%group, %replica, "replica created");
                self.reports.created(group, replica);
                Next::After(Duration::ZERO)
            }
            Err(error) => {
                tracing::warn!(%group, %replica, %error, "replica not created");
                Next::After(RETRY_WAIT)
            }
        }
    }

    /// The replica here is what a recovery left of its partition: it becomes the whole group.
    async fn go_on_alone(&self, local: &RaftGroup) -> Next {
        let (group, replica) = (local.group(), local.replica());
        match self.groups.become_only_voter(group, replica).await {
            Ok(()) => tracing::warn!(%group, %replica, "recovered: the partition goes on from the replica here alone"),
            Err(error) => tracing::error!(%group, %replica, %error, "not recovered yet"),
        }
        Next::After(RETRY_WAIT)
    }

    /// Deletes a replica here that the catalog does not assign here (any more).
    async fn drop_unassigned(&self, state: &CatalogState, group: GroupId) -> Next {
        self.routing.unhost(group);
        self.log_ends.lock().forget(group);
        self.forming.lock().remove(&group);
        // Also one that does not run: what is given up must not stay for ever.
        let Some((_, replica)) = self.groups.present().into_iter().find(|(present, _)| *present == group) else {
            return Next::Change;
        };
        if replica >= state.next_replica() {
            // This catalog never gave the id out, so it cannot have taken it back. Somebody must look.
            tracing::error!(%group, %replica, "a replica that the catalog does not know is kept and not served");
            return Next::Change;
        }
        // What is rotten is kept for a person, unless its topic is deleted.
        let deleted = match state.group(group) {
            Some(_) => self.groups.delete(group, replica).await,
            None => self.groups.discard(group, replica).await,
        };
        match deleted {
            Ok(()) => {
                tracing::info!(%group, %replica, "replica deleted");
                Next::After(Duration::ZERO) // There may be another.
            }
            Err(error) => {
                tracing::warn!(%group, %replica, %error, "replica not deleted");
                Next::After(RETRY_WAIT)
            }
        }
    }

    /// Lets clients at a replica, under its topic's present configuration.
    fn host(self: &Arc<Self>, topic: &TopicRecord, home: GroupHome, local: &RaftGroup) {
        let segment_bytes = TopicConfig::resolve(&topic.config, &self.config.log).segment_bytes;
        local.log().set_segment_bytes_max(segment_bytes);
        let options = self.partition_options(topic, home);
        let settings = options.settings;
        let same = |known: &Hosted| known.group.replica() == local.replica() && known.settings == settings;
        if self.routing.hosted(local.group()).as_ref().is_some_and(same) {
            return;
        }
        let partition = Partition::new(local.clone(), options);
        let leader = local.watch_leader();
        self.routing.host(local.group(), Hosted { group: local.clone(), partition, leader, settings });
    }

    fn partition_options(self: &Arc<Self>, topic: &TopicRecord, home: GroupHome) -> PartitionOptions {
        let config = TopicConfig::resolve(&topic.config, &self.config.log);
        let (store, broker) = (Arc::downgrade(&self.store), Arc::downgrade(self));
        let reserve = self.config.raft.reserve_produce_bytes;
        PartitionOptions {
            name: format!("{}/{}", topic.name, home.partition),
            settings: Settings {
                limits: self.batch_limits(topic),
                acks_floor: match config.acks_floor {
                    // Groups ask for a majority, and that is it, also in a topic of before it was made with this: otherwise all of them
                    // would stop while one broker is away.
                    _ if topic.name == OFFSETS_TOPIC => Acks::All,
                    AcksFloor::None => Acks::None,
                    AcksFloor::Leader => Acks::Leader,
                    AcksFloor::All => Acks::All,
                    AcksFloor::Every => Acks::Every,
                },
                log_append_time: config.log_append_time,
                stored_as: config.stored_as,
            },
            storage_has_room: Arc::new(move || store.upgrade().is_some_and(|store| store.available_bytes() > reserve)),
            broker_alive: Arc::new(move |id| broker.upgrade().is_some_and(|broker| broker.alive(id))),
            instruments: self.instruments.partitions.clone(),
            now: crate::clock::now_ms,
            unacknowledged: self.unacknowledged.clone(),
        }
    }

    /// What a batch for a topic may have.
    pub(super) fn batch_limits(&self, topic: &TopicRecord) -> BatchLimits {
        let own = &self.config.limits;
        let set = topic.config.contains_key("max.message.bytes") || self.config.log.contains_key("max.message.bytes");
        let config = TopicConfig::resolve(&topic.config, &self.config.log);
        let record_bytes_max = if set { config.max_message_bytes as usize } else { own.record_bytes_max };
        // What a topic takes of one record must fit, whatever others are held to.
        let with_one = record_bytes_max + BATCH_OVERHEAD_BYTES;
        let batch_bytes_max = own.request_bytes_max.max(with_one).min(FRAME_PAYLOAD_BYTES_MAX as usize);
        let decompressed_bytes_max =
            with_one.clamp(BatchLimits::default().decompressed_bytes_max, STORED_DECOMPRESSED_BYTES_MAX);
        BatchLimits { record_bytes_max, batch_bytes_max, decompressed_bytes_max }
    }

    /// Looks after a replica that is here: says that it is, gives its group a start, and its members if it leads.
    async fn tend(&self, partition: &PartitionRecord, replica: ReplicaId, local: &RaftGroup) -> Next {
        let group = partition.group;
        let record = partition.replica(replica);
        // One that was lost and runs: whatever kept ending it is over, and it has all that it had.
        if record.is_some_and(|record| record.state != ReplicaState::Created) {
            self.reports.created(group, replica);
        }
        let status = local.status();
        let first = partition.replicas.first().is_some_and(|first| first.replica == replica);
        if first && !partition.initialised && status.last_index.is_none() {
            let waited = self.forming.lock().entry(group).or_insert_with(Instant::now).elapsed();
            if !membership::may_initialise(partition, waited, |broker| self.alive(broker)) {
                return Next::After(FORMING_WAIT);
            }
            let members = membership::first_members(partition);
            if let Err(error) = local.initialize(members).await {
                tracing::warn!(%group, %error, "a new group was not initialised");
                return Next::After(RETRY_WAIT);
            }
            return Next::After(CATCH_UP_WAIT); // The election pokes us earlier.
        }
        self.forming.lock().remove(&group);
        if status.leader.is_none_or(|leader| leader.replica != replica) {
            self.log_ends.lock().forget(group);
            return Next::Change;
        }
        if !status.leading {
            return Next::After(CATCH_UP_WAIT / 10); // Its first entry is on its way.
        }
        if !partition.initialised {
            self.reports.initialised(group, replica);
            return Next::Change;
        }
        self.tend_members(partition, local, &status).await
    }

    async fn tend_members(&self, partition: &PartitionRecord, local: &RaftGroup, status: &GroupStatus) -> Next {
        let group = partition.group;
        let last = status.last_index.unwrap_or(0);
        let needed = match membership::has_newcomers(partition, status) {
            true => self.log_ends.lock().note(group, last, Instant::now()),
            false => {
                self.log_ends.lock().forget(group);
                last
            }
        };
        let step = membership::next_step(partition, status, needed);
        let done = match &step {
            Step::Settled => return Next::Change,
            Step::Wait => return Next::After(catch_up_wait(self.log_ends.lock().groups())),
            Step::FinishChange => local.finish_change().await,
            Step::AddLearner(replica, broker) => local.add_learner(*replica, ReplicaHome { broker: *broker }).await,
            Step::ChangeVoters(voters) => local.change_voters(voters.clone()).await,
            Step::ReportRemoved(gone) => {
                gone.iter().for_each(|replica| self.reports.removed(group, *replica));
                return Next::Change;
            }
        };
        match done {
            Ok(()) => {
                tracing::info!(%group, ?step, "membership changed");
                Next::After(Duration::ZERO)
            }
            Err(error) => {
                tracing::debug!(%group, ?step, %error, "membership not changed");
                Next::After(RETRY_WAIT)
            }
        }
    }

    /// Takes a snapshot of the catalog and lets its log begin there.
    async fn cut_catalog_log(&self) -> Next {
        let Some(group) = self.groups.get(CATALOG_GROUP) else { return Next::Change };
        if let Err(error) = group.snapshot(0).await {
            tracing::warn!(%error, "no snapshot of the catalog was taken");
        }
        Next::Change
    }
}

/// Whether the group here is what a recovery is to go on from, and its log still counts on replicas that were given up. Whoever was
/// given up has an id below the recovery's; what joins later has not, so that this is so until it is done, and never again.
fn votes_with_the_given_up(state: &CatalogState, local: &RaftGroup) -> bool {
    let Some(recovery) = state.recovery(local.group()) else { return false };
    let given_up = |voter: &ReplicaId| *voter < recovery.below && *voter != recovery.survivor;
    recovery.survivor == local.replica() && local.log().voters().keys().any(given_up)
}
