//! Opening and closing a broker: which part needs which, and in which order they go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use pontoon_raft::disk::Disk;
use pontoon_raft::disk::real::RealDisk;
use pontoon_raft::payload::Application;
use pontoon_raft::raft_groups::RaftGroups;
use pontoon_raft::store::{ApplicationFactory, Store, StoreOptions};
use pontoon_raft::transport::net::TcpNetwork;
use pontoon_raft::transport::{Network, Transport, TransportIdentity};
use pontoon_raft::types::{BrokerId, ClusterId};
use pontoon_raft::vital::vital;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::Instrument;

use super::observe::BrokerInstruments;
use super::peer::{Hello, Peers};
use super::shared::{Progress, Shared};
use super::{Broker, StartError, bootstrap, control, coordination, leadership, lifecycle, retention, summary};
use crate::catalog::Catalog;
use crate::catalog::tables::Tables;
use crate::catalog::tables::sled_tables::SledTables;
use crate::config::Config;
use crate::controller::{CATALOG_GROUP, Controller, Level, Probe};
use crate::error::Result;
use crate::partition::{PartitionApplication, UnacknowledgedRoom};

/// How long peers may take to hear that this broker is stopping.
const FAREWELL: Duration = Duration::from_millis(500);

/// Where a broker's bytes and messages go: the real machine, or a simulated one.
#[derive(Clone)]
pub struct Seams {
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Connections between brokers.
    pub network: Arc<dyn Network>,
    /// The catalog's rows.
    pub tables: Arc<dyn Tables>,
}

impl Seams {
    /// The real ones. An error means that the operating system gives the disk no threads.
    pub fn real(config: &Config) -> std::io::Result<Self> {
        Ok(Self {
            disk: Arc::new(RealDisk::new()?),
            network: Arc::new(TcpNetwork),
            tables: Arc::new(SledTables::new(config.data_dir.join("catalog"))),
        })
    }
}

/// A broker's tasks.
pub(super) struct Tasks {
    stop: watch::Sender<bool>,
    running: Mutex<Option<JoinSet<()>>>,
}

impl Broker {
    /// [`Broker::start`] on other seams.
    pub async fn start_with(config: Config, http_address: String, seams: Seams) -> Result<Arc<Broker>, StartError> {
        // In one process there may be several: whatever is spawned from here on says whose it is.
        let span = tracing::info_span!(parent: None, "broker", broker = %config.broker_id);
        Self::start_here(config, http_address, seams).instrument(span).await
    }

    async fn start_here(config: Config, http_address: String, seams: Seams) -> Result<Arc<Broker>, StartError> {
        let catalog = Catalog::new(seams.tables);
        let store = Store::open(StoreOptions {
            disk: seams.disk,
            path: config.data_dir.clone(),
            broker: config.broker_id,
            config: config.raft.clone(),
            applications: applications(&catalog),
        })
        .await?;
        let peers = Arc::new(Peers::default());
        let identity = TransportIdentity { broker: config.broker_id, cluster: store.cluster() };
        let listen = &config.peer.listen;
        let transport = Transport::start(seams.network, listen, identity, config.raft.clone(), peers.clone()).await;
        let transport = transport.map_err(|error| StartError::Listen { address: listen.clone(), error })?;
        transport.supersede(store.former_clusters());
        tell_addresses(&transport, &config, &catalog);
        let groups = RaftGroups::start(store.clone(), transport.clone()).await?;
        let shared = share(config, http_address, store, groups, catalog);
        peers.open(&shared);
        let tasks = Tasks::start(&shared);
        let coordinator = coordination::coordinator(&shared);
        Ok(Arc::new(Broker { shared, coordinator, tasks }))
    }
}

/// Group 0 is the catalog, every other group a partition.
fn applications(catalog: &Arc<Catalog>) -> ApplicationFactory {
    let catalog = catalog.clone();
    Arc::new(move |group, replica| -> Arc<dyn Application> {
        match group {
            CATALOG_GROUP => catalog.application(replica),
            _ => Arc::new(PartitionApplication),
        }
    })
}

/// Where peers are, as far as is known before anyone has been asked: the catalog's copy of last time, but for the initial
/// brokers what the operator says.
fn tell_addresses(transport: &Transport, config: &Config, catalog: &Catalog) {
    let state = catalog.state();
    let known = state.brokers().values().map(|broker| (broker.broker, &broker.peer_address));
    let told = config.bootstrap.iter().map(|(broker, address)| (*broker, address));
    for (broker, address) in known.chain(told).filter(|(broker, _)| *broker != config.broker_id) {
        transport.set_peer(broker, address.clone());
    }
    transport.supersede(state.superseded().iter().copied());
}

fn share(
    config: Config,
    http_address: String,
    store: Arc<Store>,
    groups: RaftGroups,
    catalog: Arc<Catalog>,
) -> Arc<Shared> {
    let peer_address = config.peer.advertised.clone().unwrap_or_else(|| groups.transport().local_address());
    Arc::new_cyclic(|weak: &Weak<Shared>| Shared {
        broker: config.broker_id,
        incarnation: groups.transport().incarnation(),
        started: Instant::now(),
        instruments: BrokerInstruments::new(config.broker_id),
        unacknowledged: UnacknowledgedRoom::new(config.limits.inflight_bytes_max),
        http_address,
        peer_address,
        controller: Controller::new(
            config.broker_id,
            groups.clone(),
            catalog.clone(),
            probe(weak.clone()),
            level(weak.clone()),
        ),
        config,
        store,
        groups,
        catalog,
        routing: Default::default(),
        reports: Default::default(),
        work: Default::default(),
        forming: Default::default(),
        log_ends: Default::default(),
        producers: Default::default(),
        producers_turn: Semaphore::new(1),
        progress: watch::Sender::new(Progress::Joining("the broker is starting".to_owned())),
        fatal: watch::Sender::new(None),
        leadership_changed: Default::default(),
        stopping: AtomicBool::new(false),
        told_declined: Default::default(),
    })
}

/// How the controller asks who answers at an address.
fn probe(shared: Weak<Shared>) -> Probe {
    Arc::new(move |address| {
        let asking: Option<(Transport, Hello)> =
            shared.upgrade().map(|shared| (shared.transport().clone(), shared.hello()));
        Box::pin(async move {
            let (transport, hello) = asking?;
            Shared::probe(transport, address, hello).await
        })
    })
}

/// How the controller knows who has everything.
fn level(shared: Weak<Shared>) -> Level {
    Arc::new(move |group, broker| shared.upgrade().is_some_and(|shared| shared.is_level(group, broker)))
}

/// Resolves with the reason when the broker cannot go on.
async fn watch_for_the_end(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        stopped = shared.store.stopped() => shared.fail(stopped.to_string()),
        why = shared.catalog.incompatible() => shared.fail(why),
        why = shared.transport().panicked() => shared.fail(why),
        (by, cluster) = shared.transport().outdated() => shared.fail(outdated(&shared, by, cluster)),
    }
}

/// Why this directory must not be used any more, and what to do about it.
fn outdated(shared: &Shared, by: BrokerId, cluster: ClusterId) -> String {
    format!(
        "broker {by} says that the cluster of this data directory, {:032x}, was recovered from one survivor and is {:032x} now: what \
         this directory holds was given up. Move it away (it may hold records that the survivor did not have) and start with an \
         empty one",
        shared.store.cluster().map_or(0, |cluster| cluster.0),
        cluster.0
    )
}

impl Tasks {
    fn start(shared: &Arc<Shared>) -> Self {
        let stop = watch::Sender::new(false);
        let mut running = JoinSet::new();
        let mut spawn = |name, task: BoxFuture<'static, ()>| {
            let failing = shared.clone();
            running.spawn(vital(name, move |why| failing.fail(why.to_owned()), task));
        };
        spawn("bootstrap", Box::pin(bootstrap::run(shared.clone(), stop.subscribe())));
        spawn("controller", Box::pin(shared.controller.clone().run(stop.subscribe())));
        spawn("lifecycle", Box::pin(lifecycle::run(shared.clone(), stop.subscribe())));
        spawn("summary", Box::pin(summary::run(shared.clone(), stop.subscribe())));
        spawn("reports", Box::pin(control::report(shared.clone(), stop.subscribe())));
        spawn("leadership", Box::pin(leadership::run(shared.clone(), stop.subscribe())));
        spawn("retention", Box::pin(retention::run(shared.clone(), crate::clock::now_ms, stop.subscribe())));
        spawn("end", Box::pin(watch_for_the_end(shared.clone(), stop.subscribe())));
        Self { stop, running: Mutex::new(Some(running)) }
    }

    /// See [`Broker::shutdown`]. The second call does nothing.
    pub(super) async fn shutdown(&self, shared: &Arc<Shared>, limit: Duration) {
        let Some(mut running) = self.running.lock().take() else { return };
        let deadline = Instant::now() + limit;
        shared.stopping.store(true, Ordering::Release);
        shared.progress.send_modify(|progress| {
            *progress = Progress::Stopping { known: matches!(progress, Progress::Registered | Progress::Ready) };
        });
        shared.routing.touch();
        let _ = timeout(FAREWELL.min(limit / 4), say_farewell(shared)).await;
        shared.groups.hand_over_all(limit / 3).await;
        self.stop.send_replace(true);
        // Each of the rest is tried whatever became of the one before: a checkpoint spares the next start a replay.
        let _ = timeout_at(deadline, async { while running.join_next().await.is_some() {} }).await;
        drop(running);
        let _ = timeout_at(deadline, shared.groups.shutdown()).await;
        let _ = timeout_at(deadline, shared.transport().shutdown()).await;
        let _ = timeout_at(deadline, shared.catalog.close()).await;
        match timeout_at(deadline, shared.store.close()).await {
            Ok(Ok(())) => tracing::info!("closed"),
            Ok(Err(error)) => tracing::warn!(%error, "the data directory was not closed cleanly"),
            Err(_) => tracing::warn!("the data directory was not closed in time; the next start replays the journal"),
        }
    }
}

impl Broker {
    /// Ends like a process that is killed: peers see closed connections, nothing is handed over, flushed or closed. For tests and
    /// for trying things out.
    pub async fn crash(self: Arc<Self>) {
        self.tasks.stop.send_replace(true);
        let running = self.tasks.running.lock().take();
        drop(running);
        self.shared.transport().shutdown().await;
        self.shared.groups.shutdown().await;
        self.shared.catalog.close().await; // Only so that this process may open the folder again.
    }
}

/// Waits until every live peer knows that this broker is stopping, so that none gives it a leadership back.
async fn say_farewell(shared: &Arc<Shared>) {
    let mut told = shared.told_declined.subscribe();
    shared.leadership_changed.notify_one();
    let live: Vec<_> = shared.peers().into_iter().filter(|peer| shared.alive(*peer)).collect();
    let _ = told.wait_for(|told| live.iter().all(|peer| told.contains(peer))).await;
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.stop.send_replace(true); // The tasks themselves end with their set.
    }
}
