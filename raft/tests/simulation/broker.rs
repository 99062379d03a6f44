//! A broker of the simulation: the real store, transport and groups, a door for the client, and an observer of each group.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use openraft::storage::RaftLogReader;
use parking_lot::Mutex;
use pontoon_raft::codec;
use pontoon_raft::config::RaftConfig;
use pontoon_raft::disk::sim::SimDisk;
use pontoon_raft::error::{OpenError, ProposeError, Stopped};
use pontoon_raft::log_store::LogStore;
use pontoon_raft::payload::SnapshotAt;
use pontoon_raft::raft_group::RaftGroup;
use pontoon_raft::raft_groups::{Former, RaftGroups};
use pontoon_raft::runtime::random_u64;
use pontoon_raft::store::{Store, StoreOptions};
use pontoon_raft::testing::test_applications;
use pontoon_raft::transport::{Caller, PeerService, Transport, TransportIdentity};
use pontoon_raft::types::{BrokerId, ClusterId, GroupId, Outcome, ReplicaHome, ReplicaId};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::disk::TracedDisk;
use crate::machines::{BROKERS, host};
use crate::model::{Model, Shown};
use crate::net::TracedNetwork;
use crate::trace::Trace;

/// Groups, by number from 1.
pub(crate) const GROUPS: u64 = 4;
/// Entries that a snapshot leaves in the log, at least.
const KEPT: u64 = 8;

/// What the client asks of a broker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    Propose {
        group: u64,
        payload: Vec<u8>,
    },
    /// The end of the log, confirmed.
    End {
        group: u64,
    },
}

/// What a broker answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Appended {
        index: u64,
        term: u64,
        offset: u64,
        span: u32,
    },
    Void {
        verdict: String,
    },
    /// Nothing was done; this broker may know more.
    Refused {
        leader: Option<u32>,
    },
    Unknown,
    End(u64),
}

/// How a broker is to start.
#[derive(Clone)]
pub(crate) struct Start {
    pub(crate) disk: SimDisk,
    /// How long the machine is up before the process is.
    pub(crate) after: Duration,
    /// Which life of the broker it is, from 1.
    pub(crate) life: u64,
}

/// What all of a simulation share.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) trace: Trace,
    pub(crate) model: Model,
    pub(crate) starts: Arc<Mutex<BTreeMap<u32, Start>>>,
    /// Brokers that have created their groups.
    pub(crate) created: Arc<Mutex<BTreeMap<u32, u64>>>,
    /// Lives of brokers that ended by themselves.
    pub(crate) ended: Arc<Mutex<BTreeSet<(u32, u64)>>>,
    /// The client shall come to an end, and has.
    pub(crate) finish: Arc<Mutex<(bool, bool)>>,
    /// Told whenever `starts` changes.
    pub(crate) changed: Arc<Notify>,
    pub(crate) lies: bool,
}

impl World {
    /// Whether this is the life that a broker is in.
    pub(crate) fn is_alive(&self, broker: u32, life: u64) -> bool {
        self.starts.lock()[&broker].life == life
    }
}

pub(crate) fn replica(group: u64, broker: u32) -> ReplicaId {
    ReplicaId(10 * group + u64::from(broker))
}

/// Small limits, so that everything happens soon.
pub(crate) fn config() -> RaftConfig {
    RaftConfig {
        journal_round_bytes_max: 32 << 10,
        journal_file_bytes: 128 << 10,
        bypass_bytes_min: 8 << 10,
        checkpoint_journal_bytes: 128 << 10,
        checkpoint_interval: Duration::from_secs(2),
        segment_bytes_max: 4 << 10,
        index_interval_bytes: 1 << 10,
        tail_cache_bytes: 8 << 10,
        tail_cache_bytes_total: 24 << 10,
        append_bytes_max: 8 << 10,
        ..RaftConfig::default()
    }
}

/// The broker's machine. A process that ends is noted, and stays until somebody takes it away.
pub(crate) async fn run(world: World, broker: u32) -> turmoil::Result {
    let start = world.starts.lock()[&broker].clone();
    let (life, after, machine) = (start.life, start.after, start.disk.clone());
    sleep(after).await;
    let who: Arc<str> = format!("{}.{life}", host(broker)).into();
    world.trace.note(&who, "starts");
    let network = TracedNetwork::new(world.trace.clone(), who.clone());
    tokio::spawn(die(world.clone(), broker, life, network.clone()));
    let Err(error) = serve(&world, broker, start, who.clone(), network.clone()).await;
    world.trace.note(&who, format_args!("ends: {error}"));
    // A disk that has failed ends a process, one that is yet to fail does not; nor does anything else, while it lives.
    let says_so =
        error.is::<Stopped>() || matches!(error.downcast_ref(), Some(OpenError::Io { .. } | OpenError::Full { .. }));
    if !(says_so && machine.has_struck()) && world.is_alive(broker, life) {
        world.model.broken(format!("{who} ended: {error}"));
    }
    network.sever();
    world.ended.lock().insert((broker, life));
    std::future::pending().await
}

/// The broker's process, from its start to its end.
async fn serve(
    world: &World,
    broker: u32,
    Start { disk, life, .. }: Start,
    who: Arc<str>,
    network: TracedNetwork,
) -> Result<Infallible, Box<dyn Error>> {
    let (trace, model) = (world.trace.clone(), world.model.clone());
    let disk = TracedDisk { disk, trace: trace.clone(), who: who.clone(), lies: world.lies };
    let applications = test_applications(SnapshotAt::Boundary);
    let options = StoreOptions {
        disk: Arc::new(disk),
        path: "/data".into(),
        broker: BrokerId(broker),
        config: config(),
        applications,
    };
    let store = Store::open(options).await?;
    let door = Arc::new(Door { groups: Mutex::default() });
    let identity = TransportIdentity { broker: BrokerId(broker), cluster: Some(ClusterId(7)) };
    let transport = Transport::start(Arc::new(network), "0.0.0.0:7000", identity, config(), door.clone()).await?;
    for peer in (1..=BROKERS).filter(|peer| *peer != broker) {
        transport.set_peer(BrokerId(peer), format!("{}:7000", host(peer)));
    }
    let groups = RaftGroups::start(store.clone(), transport.clone()).await?;
    *door.groups.lock() = Some(groups.clone());
    if !world.created.lock().contains_key(&broker) {
        create(&groups, broker).await?;
        world.created.lock().insert(broker, life);
    }
    let there = groups.all().len() as u64;
    let whole = there == GROUPS && groups.lost().is_empty() && store.corrupt().is_empty();
    if !whole && world.is_alive(broker, life) && store.stopped().now_or_never().is_none() {
        model.broken(format!("{who} found {there} groups; lost {:?}, corrupt {:?}", groups.lost(), store.corrupt()));
    }
    for group in groups.all() {
        tokio::spawn(observe(world.clone(), broker, life, who.clone(), group.clone()));
        tokio::spawn(announce(world.clone(), broker, who.clone(), group));
    }
    tokio::spawn(snapshots(model, groups.clone()));
    Err(store.stopped().await.into())
}

/// Ends the process's connections in order, once its life is over (see `net`). Nobody minds what it does after that.
async fn die(world: World, broker: u32, life: u64, network: TracedNetwork) {
    loop {
        let changed = world.changed.notified();
        if !world.is_alive(broker, life) {
            break;
        }
        changed.await;
    }
    network.sever();
}

async fn create(groups: &RaftGroups, broker: u32) -> Result<(), Box<dyn Error>> {
    for id in 1..=GROUPS {
        let group = groups.create(GroupId(id), replica(id, broker), Former::Delete).await?;
        if id % u64::from(BROKERS) + 1 == u64::from(broker) {
            let members = (1..=BROKERS).map(|broker| (replica(id, broker), ReplicaHome { broker: BrokerId(broker) }));
            group.initialize(members.collect()).await?;
        }
    }
    Ok(())
}

/// Answers the client.
struct Door {
    groups: Mutex<Option<RaftGroups>>,
}

impl PeerService for Door {
    fn call(&self, _from: Caller, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        let groups = self.groups.lock().clone();
        Box::pin(async move {
            let groups = groups.ok_or("not yet")?;
            let ask: Ask = codec::decode(&body).map_err(|error| error.to_string())?;
            let id = match &ask {
                Ask::Propose { group, .. } | Ask::End { group } => GroupId(*group),
            };
            let group = groups.get(id).ok_or("no such group")?;
            Ok(codec::encode(&answer(&group, ask).await).into())
        })
    }
}

async fn answer(group: &RaftGroup, ask: Ask) -> Answer {
    let result = match ask {
        Ask::Propose { payload, .. } => group.propose(payload.into(), None).await.map(|appended| {
            let (index, term) = (appended.index, appended.term);
            match appended.outcome {
                Outcome::Records { base_offset, span, .. } => {
                    Answer::Appended { index, term, offset: base_offset.0, span }
                }
                Outcome::Void { verdict } => Answer::Void { verdict: String::from_utf8_lossy(&verdict).into_owned() },
                Outcome::Internal => Answer::Unknown,
            }
        }),
        Ask::End { .. } => group.read_index().await.map(|()| Answer::End(group.log().high_watermark().0)),
    };
    result.unwrap_or_else(|error| match error {
        ProposeError::NotLeader { leader } => Answer::Refused { leader: leader.map(|(_, broker)| broker.0) },
        ProposeError::Stopped { .. } => Answer::Refused { leader: None },
        ProposeError::Unknown(_) => Answer::Unknown,
    })
}

/// Shows every applied entry, from the log's start, and the watermarks.
async fn observe(world: World, broker: u32, life: u64, who: Arc<str>, group: RaftGroup) {
    let id = group.group().0;
    let log = group.log().clone();
    let mut reader = LogStore::new(log.clone());
    let mut watermark = log.watch_high_watermark();
    let (mut next, mut last) = (0, None);
    while world.is_alive(broker, life) {
        let first = log.purged_log_id().map_or(0, |purged| purged.index + 1);
        if next > 0 && next < first {
            world.model.count("snapshots installed");
        }
        next = next.max(first);
        let was = std::mem::replace(&mut last, log.last_log_id());
        if was > last || was.zip(last).is_some_and(|(was, is)| was.index >= is.index && was != is) {
            world.model.count("truncations");
        }
        let high_watermark = log.high_watermark().0;
        let to = group.status().applied_index.map_or(0, |applied| applied + 1);
        if next < to {
            match reader.try_get_log_entries(next..to).await {
                Ok(entries) => {
                    let shown = entries.iter().zip(next..).take_while(|(entry, index)| entry.log_id.index == *index);
                    let shown: Vec<_> = shown.map(|(entry, _)| entry).collect();
                    shown.iter().for_each(|entry| world.model.committed(broker, id, entry));
                    next += shown.len() as u64;
                }
                // Purged while it was read: once more.
                Err(_) if log.purged_log_id().is_some_and(|purged| purged.index >= next) => continue,
                Err(error) => {
                    if group.status().stopped.is_none() && world.is_alive(broker, life) {
                        world.model.broken(format!("{who}: group {id} cannot be read from {next} to {to}: {error}"));
                    }
                    return;
                }
            }
        }
        let (start, end) = (log.log_start_offset().0, log.log_end_offset().0);
        if start > high_watermark || high_watermark > end {
            world.model.broken(format!("{who}: group {id}: offsets {start}, {high_watermark}, {end} are out of order"));
        }
        world.model.shown(broker, id, Shown { life, first, next, high_watermark });
        tokio::select! {
            biased;
            _ = watermark.changed() => {}
            () = sleep(Duration::from_millis(100)) => {}
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Tells every change of leadership.
async fn announce(world: World, broker: u32, who: Arc<str>, group: RaftGroup) {
    let mut leaders = group.watch_leader();
    loop {
        let leader = *leaders.borrow_and_update();
        let id = group.group();
        world.trace.note(&who, format_args!("group {id} leader {leader:?}"));
        if let Some(leader) = leader {
            world.model.leader(broker, id.0, leader.term, leader.replica.0);
        }
        if leaders.changed().await.is_err() {
            return;
        }
    }
}

/// Takes snapshots now and then, so that logs are purged and brokers fall behind the purge point.
async fn snapshots(model: Model, groups: RaftGroups) {
    loop {
        sleep(Duration::from_millis(300 + random_u64() % 1500)).await;
        let all = groups.all();
        let group = &all[random_u64() as usize % all.len()];
        let applied = group.status().applied_index.unwrap_or(0).min(model.known(group.group().0));
        // What nobody has shown yet must not go.
        let boundary = applied.saturating_sub(KEPT);
        model.boundary(group.group().0, boundary);
        if group.snapshot(boundary).await.is_ok() {
            model.count("snapshots");
        }
    }
}
