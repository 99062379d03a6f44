//! A broker of the simulation: the real broker and HTTP server on a simulated disk and network; and what all of a run share.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pontoon::broker::{Broker, Seams, StartError};
use pontoon::catalog::tables::MemoryTables;
use pontoon::config::Config;
use pontoon::http::Server;
use pontoon::partition::verdict::Verdict;
use pontoon_raft::config::RaftConfig;
use pontoon_raft::disk::sim::SimDisk;
use pontoon_raft::error::OpenError;
use pontoon_raft::runtime::random_u64;
use pontoon_raft::transport::Network;
use pontoon_raft::types::BrokerId;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::broken::Variant;
use crate::disk::TracedDisk;
use crate::event::Event;
use crate::ledger::Ledger;
use crate::machines::{BROKERS, host};
use crate::net::TracedNetwork;
use crate::observer::observe;
use crate::trace::Trace;

/// Entries that a snapshot leaves in the log, at least.
const KEPT: u64 = 8;
/// How long a clean stop may take.
const STOP_MAX: Duration = Duration::from_secs(8);

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Things go wrong.
    Chaos,
    /// Everyone finishes, and writes once more.
    Finish,
    /// The client reads all there is.
    ReadAll,
}

/// How a broker is to start.
#[derive(Clone)]
pub(crate) struct Start {
    pub(crate) disk: SimDisk,
    pub(crate) tables: Arc<MemoryTables>,
    /// How long the machine is up before the process is.
    pub(crate) after: Duration,
    /// Which life of the broker it is, from 1.
    pub(crate) life: u64,
    /// It has been asked to stop cleanly.
    pub(crate) stop: bool,
    /// Its disk has been given a bound, which may leave no room for what a start must write.
    pub(crate) disk_fills: bool,
    /// Bits of it were flipped, or all of it taken: its replicas may be lost.
    pub(crate) rots: bool,
    /// A call of its disk failed in an earlier life, and nobody has looked since at which replicas that has cost.
    pub(crate) struck_before: bool,
}

impl Start {
    /// The first start on a disk.
    pub(crate) fn first(disk: SimDisk) -> Self {
        let (tables, after) = (Arc::default(), Duration::ZERO);
        let (stop, disk_fills, rots, struck_before) = (false, false, false, false);
        Self { disk, tables, after, life: 1, stop, disk_fills, rots, struck_before }
    }

    /// Whether its end in this life surprises nobody, nor that it cannot read: a call of its disk has failed, or its files are not
    /// what they were. A fault that is still to come excuses nothing.
    pub(crate) fn is_excused(&self) -> bool {
        self.disk.has_struck() || self.rots
    }
}

/// How far the client is and shall come.
#[derive(Clone, Copy)]
struct Progress {
    wanted: Phase,
    arrived: Option<Phase>,
}

/// What all of a simulation share.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) trace: Trace,
    pub(crate) ledger: Ledger,
    pub(crate) starts: Arc<Mutex<BTreeMap<u32, Start>>>,
    /// Lives of brokers that ended by themselves, and whether their directory cannot be opened any more.
    pub(crate) ended: Arc<Mutex<BTreeMap<(u32, u64), bool>>>,
    progress: Arc<Mutex<Progress>>,
    /// Told whenever `starts` changes.
    pub(crate) changed: Arc<Notify>,
    pub(crate) ready: Arc<Mutex<BTreeSet<(u32, u64)>>>,
    /// Replicas that are given up: broker, group and id. That is on record, and holds in all lives that follow.
    pub(crate) given_up: Arc<Mutex<BTreeSet<(u32, u64, u64)>>>,
    pub(crate) variant: Option<Variant>,
}

impl World {
    pub(crate) fn new(trace: Trace, starts: BTreeMap<u32, Start>, variant: Option<Variant>) -> Self {
        Self {
            ledger: Ledger::new(trace.clone()),
            trace,
            starts: Arc::new(Mutex::new(starts)),
            ended: Arc::default(),
            progress: Arc::new(Mutex::new(Progress { wanted: Phase::Chaos, arrived: None })),
            changed: Arc::default(),
            ready: Arc::default(),
            given_up: Arc::default(),
            variant,
        }
    }

    /// Whether this is the life that a broker is in.
    pub(crate) fn is_alive(&self, broker: u32, life: u64) -> bool {
        self.starts.lock()[&broker].life == life
    }

    pub(crate) fn lives(&self) -> BTreeMap<u32, u64> {
        self.starts.lock().iter().map(|(broker, start)| (*broker, start.life)).collect()
    }

    pub(crate) fn start_of(&self, broker: u32) -> Start {
        self.starts.lock()[&broker].clone()
    }

    /// Somebody looks at which replicas of a broker are given up; whether those that were not before surprise nobody.
    pub(crate) fn excuses_losses_of(&self, broker: u32) -> bool {
        let mut starts = self.starts.lock();
        let start = starts.get_mut(&broker).expect("a broker");
        std::mem::take(&mut start.struck_before) || start.is_excused()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.progress.lock().wanted
    }

    pub(crate) fn want(&self, phase: Phase) {
        self.progress.lock().wanted = phase;
        self.changed.notify_waiters();
    }

    /// Waits until something is so, which follows from `starts` and the phase that is wanted.
    pub(crate) async fn until(&self, so: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            if so(self) {
                return;
            }
            changed.await;
        }
    }

    /// The client has done all of a phase.
    pub(crate) fn arrived(&self, phase: Phase) {
        self.progress.lock().arrived = Some(phase);
    }

    pub(crate) fn has_arrived(&self, phase: Phase) -> bool {
        self.progress.lock().arrived >= Some(phase)
    }
}

pub(crate) fn http_address(broker: u32) -> String {
    format!("b{broker}:8090")
}

/// Small limits, so that everything happens soon.
fn config(broker: u32) -> Config {
    let peer = |broker: u32| format!("b{broker}:7000");
    let mut config = Config::new(BrokerId(broker), "/data".into());
    config.bootstrap = (1..=BROKERS).map(|broker| (BrokerId(broker), peer(broker))).collect();
    config.peer.listen = "0.0.0.0:7000".into();
    config.peer.advertised = Some(peer(broker));
    config.http.listen = "0.0.0.0:8090".into();
    config.http.advertised = Some(http_address(broker));
    config.raft = RaftConfig {
        journal_round_bytes_max: 32 << 10,
        journal_file_bytes: 128 << 10,
        bypass_bytes_min: 8 << 10,
        checkpoint_journal_bytes: 128 << 10,
        checkpoint_interval: Duration::from_secs(2),
        segment_bytes_max: 4 << 10,
        index_interval_bytes: 1 << 10,
        tail_cache_bytes: 8 << 10,
        tail_cache_bytes_total: 32 << 10,
        append_bytes_max: 8 << 10,
        reserve_produce_bytes: 256 << 10,
        reserve_append_bytes: 128 << 10,
        ..RaftConfig::default()
    };
    config
}

/// The broker's machine. A process that ends is noted, and stays until somebody takes it away.
pub(crate) async fn run(world: World, broker: u32) -> turmoil::Result {
    let start = world.start_of(broker);
    let life = start.life;
    sleep(start.after).await;
    let who: Arc<str> = format!("{}.{life}", host(broker)).into();
    world.trace.note(&who, "starts");
    let network = TracedNetwork::new(world.trace.clone(), who.clone());
    let http = TracedNetwork::new(world.trace.clone(), who.clone()).quiet();
    tokio::spawn(die(world.clone(), broker, life, [network.clone(), http.clone()]));
    let ended = serve(&world, broker, start, who.clone(), [&network, &http]).await;
    let why = ended.as_ref().err().map_or("as it was asked to".to_owned(), ToString::to_string);
    world.trace.note(&who, format_args!("ends: {why}"));
    let start = world.start_of(broker);
    let no_room = start.disk_fills && ended.as_ref().is_err_and(|error| is_for_want_of_room(&**error));
    if start.life == life && ended.is_err() && !start.is_excused() && !no_room {
        world.ledger.broken("liveness", format!("{who} ended: {why}"));
    }
    [network, http].iter().for_each(TracedNetwork::sever);
    let unreadable = ended.is_err_and(|error| {
        matches!(error.downcast_ref(), Some(StartError::Open(OpenError::Corrupt { .. } | OpenError::Version { .. })))
    });
    world.ended.lock().insert((broker, life), unreadable);
    std::future::pending().await
}

/// Whether a start was refused because the disk has no room for it: the operator makes some, and starts it again.
fn is_for_want_of_room(error: &(dyn Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(StartError::Open(OpenError::Full { .. })))
}

/// The broker's process, from its start to its end.
async fn serve(
    world: &World,
    id: u32,
    start: Start,
    who: Arc<str>,
    [network, http]: [&TracedNetwork; 2],
) -> Result<(), Box<dyn Error>> {
    let lies = world.variant == Some(Variant::SkipJournalSyncs);
    let disk = TracedDisk { disk: start.disk, trace: world.trace.clone(), who: who.clone(), lies };
    let config = config(id);
    let server = Server::serve_on(&config, http.listen(&config.http.listen).await?)?;
    let seams = Seams { disk: Arc::new(disk), network: Arc::new(network.clone()), tables: start.tables };
    let broker = Broker::start_with(config, server.advertised().to_owned(), seams).await?;
    server.open(broker.clone());
    tokio::spawn(observe(world.clone(), id, start.life, who.clone(), broker.clone()));
    tokio::spawn(housekeeping(world.clone(), broker.clone()));
    tokio::spawn(expiry(world.clone(), broker.clone()));
    tokio::spawn(tell_ready(world.clone(), id, start.life, broker.clone()));
    tokio::select! {
        biased;
        why = broker.failed() => Err(why.into()),
        () = asked_to_stop(world, id, start.life) => {
            server.stopping();
            broker.shutdown(STOP_MAX).await;
            server.close(Duration::from_millis(100)).await;
            Ok(())
        }
    }
}

async fn asked_to_stop(world: &World, broker: u32, life: u64) {
    world.until(|world| !world.is_alive(broker, life) || world.start_of(broker).stop).await;
    if !world.is_alive(broker, life) {
        std::future::pending().await
    }
}

async fn tell_ready(world: World, id: u32, life: u64, broker: Arc<Broker>) {
    while broker.ready().is_err() {
        sleep(Duration::from_millis(10)).await;
    }
    world.ready.lock().insert((id, life));
}

/// Ends the process's connections in order, once its life is over (see `net`). Nobody minds what it does after that.
async fn die(world: World, broker: u32, life: u64, networks: [TracedNetwork; 2]) {
    world.until(|world| !world.is_alive(broker, life)).await;
    networks.iter().for_each(TracedNetwork::sever);
}

/// While things go wrong: takes snapshots now and then, so that logs are purged and brokers fall behind the purge point, and hands
/// leaderships over.
async fn housekeeping(world: World, broker: Arc<Broker>) {
    loop {
        sleep(Duration::from_millis(300 + random_u64() % 1500)).await;
        if world.phase() != Phase::Chaos {
            return;
        }
        let all: Vec<_> = broker.raft_groups().all().into_iter().filter(|group| group.group().0 != 0).collect();
        if all.is_empty() {
            continue;
        }
        let group = all[random_u64() as usize % all.len()].clone();
        if random_u64().is_multiple_of(4) {
            let voters: Vec<_> = group.status().members.into_keys().collect();
            if !voters.is_empty() {
                let to = voters[random_u64() as usize % voters.len()];
                // It may not lead, or the voter may be away: then nothing happens.
                if group.transfer_leader(to).await.is_ok() {
                    world.ledger.count("leadership handed over");
                }
            }
        } else {
            // What nobody has shown yet must not go.
            let (id, shown) = (group.group().0, world.ledger.known(group.group().0));
            let boundary = shown.saturating_sub(KEPT);
            world.ledger.tell(Event::Boundary { group: id, index: boundary });
            if group.snapshot(boundary).await.is_ok() {
                world.ledger.count("snapshots");
            }
        }
    }
}

/// While things go wrong: says in the logs that are led here that all producers have expired but those who would be missed.
async fn expiry(world: World, broker: Arc<Broker>) {
    while world.phase() == Phase::Chaos {
        sleep(Duration::from_millis(100 + random_u64() % 400)).await;
        for group in broker.raft_groups().all().into_iter().filter(|group| group.group().0 != 0) {
            let below = world.ledger.idle_below(group.group().0);
            let leads = group.watch_leader().borrow().is_some_and(|leader| leader.replica == group.replica());
            if leads && group.log().oldest_remembered().is_some_and(|oldest| oldest < below) {
                let said = group.propose(Verdict::ExpireProducers { below }.encode(), None);
                if timeout(Duration::from_secs(1), said).await.is_ok_and(|said| said.is_ok()) {
                    world.ledger.count("producers expired");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use pontoon_raft::disk::Disk;
    use pontoon_raft::disk::sim::{EIO, Fault, OpKind};

    use super::*;
    use crate::machines::Processes;

    #[test]
    fn only_a_fault_that_has_struck_in_this_life_is_an_excuse() {
        let mut start = Start::first(SimDisk::new(0));
        let path_contains = String::new();
        start.disk.inject(Fault { kind: OpKind::CreateDir, path_contains, skip: 0, errno: EIO, loses_data: false });
        assert!(!start.is_excused());
        assert!(start.disk.create_dir_all("/data".as_ref()).now_or_never().unwrap().is_err());
        assert!(start.is_excused());
        start.disk = start.disk.kill();
        assert!(!start.is_excused());
        start.rots = true;
        assert!(start.is_excused());
    }

    #[test]
    fn what_a_life_has_cost_is_excused_in_the_one_that_is_the_first_to_tell() {
        let world = World::new(Trace::new(false), BTreeMap::from([(1, Start::first(SimDisk::new(0)))]), None);
        let disk = world.disk(1);
        let path_contains = String::new();
        disk.inject(Fault { kind: OpKind::CreateDir, path_contains, skip: 0, errno: EIO, loses_data: false });
        assert!(disk.create_dir_all("/data".as_ref()).now_or_never().unwrap().is_err());
        // Two lives in which nobody gets to look.
        world.begin_anew(1, SimDisk::kill, Duration::ZERO);
        world.begin_anew(1, SimDisk::crash, Duration::ZERO);
        assert!(!world.start_of(1).is_excused() && world.excuses_losses_of(1));
        assert!(!world.excuses_losses_of(1));
    }
}
