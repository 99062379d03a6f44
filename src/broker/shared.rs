//! What all rooms of a running broker share, and the small questions about it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pontoon_raft::raft_group::RaftGroup;
use pontoon_raft::raft_groups::RaftGroups;
use pontoon_raft::store::Store;
use pontoon_raft::transport::{Caller, Liveness, Transport};
use pontoon_raft::types::{BrokerId, DirectoryId, GroupId};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

use super::control::Reports;
use super::observe::BrokerInstruments;
use super::peer::Hello;
use super::routing::Routing;
use super::summary::History;
use super::topics::ProducerIds;
use super::work::Work;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::controller::{CATALOG_GROUP, Controller};
use crate::partition::UnacknowledgedRoom;

/// How far the broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not part of the cluster yet, and why not.
    Joining(String),
    /// Its catalog shows this process: what it shows now is at least as new as this process.
    Registered,
    /// Every replica that the catalog has here has been looked at once, and the peers that live have said what they lead.
    Ready,
    /// It has handed over or is about to. `known`: it was part of the cluster before, and what its catalog shows is as new as then.
    Stopping { known: bool },
}

/// A broker's insides.
pub(super) struct Shared {
    pub(super) broker: BrokerId,
    /// Random for each process.
    pub(super) incarnation: u64,
    /// When this process came to be a broker.
    pub(super) started: Instant,
    pub(super) config: Config,
    pub(super) instruments: BrokerInstruments,
    /// For the `acks=none` batches of all partitions here together.
    pub(super) unacknowledged: UnacknowledgedRoom,
    pub(super) http_address: String,
    pub(super) peer_address: String,
    pub(super) store: Arc<Store>,
    pub(super) groups: RaftGroups,
    pub(super) catalog: Arc<Catalog>,
    pub(super) controller: Arc<Controller>,
    pub(super) routing: Routing,
    pub(super) reports: Reports,
    pub(super) work: Work,
    /// Since when new groups, to which a replica here is to give a start, wait for the others to be created.
    pub(super) forming: Mutex<BTreeMap<GroupId, Instant>>,
    /// Where the logs ended lately of the groups led here that have newcomers.
    pub(super) log_ends: Mutex<History>,
    pub(super) producers: Mutex<ProducerIds>,
    /// One broker asks for producer ids at a time.
    pub(super) producers_turn: Semaphore,
    pub(super) progress: watch::Sender<Progress>,
    /// Why the broker cannot go on.
    pub(super) fatal: watch::Sender<Option<String>>,
    /// Some group here has another leader: a summary is due.
    pub(super) leadership_changed: Notify,
    pub(super) stopping: AtomicBool,
    /// Peers that were told last to give this broker nothing to lead.
    pub(super) told_declined: watch::Sender<BTreeSet<BrokerId>>,
}

impl Shared {
    pub(super) fn transport(&self) -> &Transport {
        self.groups.transport()
    }

    pub(super) fn directory(&self) -> DirectoryId {
        self.store.directory()
    }

    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Whether a broker is alive, as far as this one knows.
    pub(super) fn alive(&self, broker: BrokerId) -> bool {
        broker == self.broker || self.transport().liveness(broker) == Liveness::Alive
    }

    /// Whether a broker is alive and its replicas run: it speaks once they have been started.
    pub(super) fn serves(&self, broker: BrokerId) -> bool {
        let process = self.transport().peer_status(broker).and_then(|peer| peer.incarnation);
        let speaks = || process.is_some_and(|process| self.routing.has_heard_process(broker, process));
        broker == self.broker || (self.alive(broker) && speaks())
    }

    /// Whether a broker's replica of a group is not behind, by what a leader that lives said last.
    pub(super) fn is_level(&self, group: GroupId, broker: BrokerId) -> bool {
        let claim = self.routing.claim(group).filter(|claim| self.alive(claim.broker));
        claim.is_some_and(|claim| claim.broker == broker || claim.in_sync.contains(&broker))
    }

    /// For how long a broker has been alive without a break, as far as this one knows; `None`: it is not.
    pub(super) fn alive_for(&self, broker: BrokerId) -> Option<Duration> {
        let since = match broker == self.broker {
            true => Some(self.started),
            false => self.transport().peer_status(broker).and_then(|status| status.alive_since),
        };
        since.map(|since| since.elapsed())
    }

    /// Where Kafka clients reach this broker, if they do. The listener is bound, and its port known, before the broker starts.
    pub(super) fn kafka_address(&self) -> Option<String> {
        let kafka = &self.config.kafka;
        let address = || kafka.listener.advertised.clone().unwrap_or_else(|| kafka.listener.listen.clone());
        kafka.enabled.then(address)
    }

    /// Every other broker in the catalog.
    pub(super) fn peers(&self) -> Vec<BrokerId> {
        self.catalog.state().brokers().keys().copied().filter(|broker| *broker != self.broker).collect()
    }

    /// The broker cannot go on.
    pub(super) fn fail(&self, why: String) {
        tracing::error!(why, "the broker cannot go on");
        self.fatal.send_if_modified(|fatal| fatal.is_none() && fatal.replace(why).is_none());
    }

    /// A peer has taken this broker's summary.
    pub(super) fn summary_taken(&self, peer: BrokerId, declines: bool) {
        self.told_declined.send_if_modified(|told| match declines {
            true => told.insert(peer),
            false => told.remove(&peer),
        });
    }

    /// This broker, introduced.
    pub(super) fn hello(&self) -> Hello {
        Hello {
            broker: self.broker,
            directory: self.directory(),
            cluster: self.store.cluster(),
            peer_address: self.peer_address.clone(),
            bootstrap: self.config.bootstrap.keys().copied().collect(),
            controller: self.remembered_controller(),
        }
    }

    /// Who leads the catalog and where, if by the detector here it is alive, and so are most of those who vote: else it decides nothing.
    pub(super) fn known_controller(&self) -> Option<(BrokerId, String)> {
        let decides = |group: RaftGroup| group.may_have_majority();
        let known = self.remembered_controller().filter(|(leader, _)| self.alive(*leader));
        known.filter(|_| self.groups.get(CATALOG_GROUP).is_some_and(decides))
    }

    /// Who led the catalog and where, when this broker's replica of it last heard of that: whom to ask first.
    pub(super) fn remembered_controller(&self) -> Option<(BrokerId, String)> {
        let group = self.groups.get(CATALOG_GROUP)?;
        let leader = (*group.watch_leader().borrow())?.broker;
        if leader == self.broker && !group.may_have_majority() {
            return None; // It could decide nothing.
        }
        if leader == self.broker {
            return Some((leader, self.peer_address.clone()));
        }
        if self.transport().liveness(leader) == Liveness::Dead {
            return None;
        }
        let state = self.catalog.state();
        Some((leader, state.brokers().get(&leader)?.peer_address.clone()))
    }

    /// A peer of the same cluster has said where it is: that may be newer than the catalog's copy here. With another disk than the
    /// catalog knows of it, or beside a process of its number that is alive, it is not believed before it has registered.
    pub(super) fn take_hello(&self, from: Caller, hello: &Hello) {
        let same = hello.cluster.is_some() && hello.cluster == self.store.cluster();
        let state = self.catalog.state();
        let known = state.brokers().get(&from.broker);
        let its_disk = known.is_none_or(|known| known.directory == hello.directory);
        // `pontoon recover` asks, too, and is nowhere to be reached.
        let reachable = !hello.peer_address.is_empty();
        let other = from.broker != self.broker && from.broker == hello.broker;
        if same && other && its_disk && reachable && !self.transport().is_taken(from) {
            self.transport().set_peer(from.broker, hello.peer_address.clone());
        }
    }
}
