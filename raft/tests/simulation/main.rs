//! Three brokers' real raft and log code in one process, on a simulated network, disk and clock, under one seed.
//!
//! A client (`client`) produces through whoever leads and reads confirmed ends, while machines lose power, processes are
//! killed, wires are cut, held or cut one way, disks stall and fail (`faults`, `machines`). Every fact that anyone learns goes to `model`,
//! which says what must hold. At the end all machines lose their power once more, and what they find is looked at as a whole.
//!
//! Every operation on a disk, every piece on a wire, every change of leadership and every answer is a line of the trace
//! (`trace`). A seed that runs twice, on two threads, must leave the same trace, line by line. What that takes of the code is
//! in `owned` and, as far as a text search can see it, tested in `tests/tidy.rs` of the workspace.
//!
//! `scripts/simulate --which raft` runs many seeds. By hand: `PONTOON_SEED=n` tries that seed (`seeds` has the other variables).
#![allow(clippy::unwrap_used)]

mod broker;
mod client;
mod disk;
mod faults;
mod machines;
mod model;
mod net;
mod owned;
mod seeds;
mod trace;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use broker::{GROUPS, Start, World};
use faults::Faults;
use machines::{BROKERS, CLIENT, LATENCY, host, new_disk};
use model::Model;
use parking_lot::Mutex;
use pontoon_raft::runtime;
use pontoon_raft::sabotage::{self, Sabotage};
use seeds::{Told, replay_all, run_all};
use trace::Trace;
use turmoil::Sim;

/// The allocator that the binary has, too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Seeds that are tried by default.
const SEEDS: u64 = 100;
/// And how many of them are run twice.
const REPLAYED: u64 = 2;
/// All that is counted: faults, calls that a disk has refused, and what came of them.
const KINDS: &[&str] = &[
    "power off",
    "black-out",
    "power cut of two",
    "kill",
    "partition",
    "isolation",
    "one-way cut",
    "hold",
    "delay",
    "stall",
    "failed sync",
    "failed write",
    "failed sync of a folder",
    "failed rename",
    "failed creation",
    "failed allocation",
    "failed removal",
    "failed change of length",
    "snapshots",
    "snapshots installed",
    "truncations",
];
/// Longest step of simulated time: all processes of a run take steps of so many ms, 1 to this many, as the seed says. Whatever comes
/// within one step comes in an order that the seed draws.
const STEP_MS_MAX: u64 = 5;
/// How long a healthy cluster may take until all is as it should be.
const RECOVERY_MAX: Duration = Duration::from_secs(30);

/// A simulation under way.
struct Simulation<'a> {
    sim: Sim<'a>,
    world: World,
    faults: Faults,
    step_ms: u64,
    now_ms: u64,
}

impl Simulation<'_> {
    fn new(seed: u64, traced: bool, lies: bool) -> Self {
        // Every host of the simulation runs on this thread and draws from this generator.
        runtime::seed_thread(seed);
        let trace = Trace::new(traced);
        let step_ms = 1 + seed % STEP_MS_MAX;
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(seed)
            .simulation_duration(Duration::from_secs(3600))
            .tick_duration(Duration::from_millis(step_ms))
            .min_message_latency(Duration::ZERO)
            .max_message_latency(LATENCY)
            .tcp_capacity(1024)
            .enable_random_order();
        let starts = (1..=BROKERS).map(|broker| {
            let disk = new_disk(seed << 8 | u64::from(broker));
            (broker, Start { disk, after: Duration::ZERO, life: 1 })
        });
        let world = World {
            model: Model::new(trace.clone()),
            trace,
            starts: Arc::new(Mutex::new(starts.collect())),
            created: Arc::default(),
            ended: Arc::default(),
            finish: Arc::default(),
            changed: Arc::default(),
            lies,
        };
        let mut sim = builder.build();
        for broker in 1..=BROKERS {
            let world = world.clone();
            sim.host(host(broker), move || broker::run(world.clone(), broker));
        }
        let client = world.clone();
        sim.host(host(CLIENT), move || client::run(client.clone()));
        let faults = Faults::new(world.clone(), seed);
        Self { sim, world, faults, step_ms, now_ms: 0 }
    }

    fn is_broken(&self) -> bool {
        !self.world.model.all_broken().is_empty()
    }

    fn step(&mut self) {
        self.now_ms += self.step_ms;
        self.world.trace.set_now(self.now_ms);
        if let Err(error) = self.sim.step() {
            self.world.model.broken(format!("a process ended: {error}"));
        }
    }

    /// Goes on until `done`, without new faults.
    fn until(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        let end = self.now_ms + RECOVERY_MAX.as_millis() as u64;
        while !done(&self.world) && !self.is_broken() {
            if self.now_ms >= end {
                return self.world.model.broken(format!("{what}: not within {RECOVERY_MAX:?}"));
            }
            self.faults.step(&mut self.sim);
            self.step();
        }
    }

    fn run(mut self) -> Told {
        self.until("the cluster starts", |world| world.created.lock().len() as u32 == BROKERS && acknowledged(world));
        let end = self.now_ms + self.faults.chaos_ms;
        while self.now_ms < end && !self.is_broken() {
            self.faults.step_and_strike(&mut self.sim);
            self.step();
        }
        self.faults.machines.heal();
        self.world.finish.lock().0 = true;
        self.until("the client comes to its end", |world| world.finish.lock().1);
        self.until("the brokers agree", agreed);
        if !self.is_broken() {
            self.faults.machines.black_out(&mut self.sim);
        }
        self.until("the brokers agree after a black-out", agreed);
        if !self.is_broken() {
            self.world.model.judge();
        }
        let model = &self.world.model;
        let (broken, terms) = (model.all_broken(), model.elections());
        let acknowledged = model.acknowledgements();
        let (lines, hash) = self.world.trace.take();
        let mut struck = std::mem::take(&mut self.faults.machines.struck);
        struck.extend(model.happened());
        Told { broken, lines, hash, acknowledged, terms, simulated_ms: self.now_ms, struck }
    }
}

/// Something was acknowledged in every group.
fn acknowledged(world: &World) -> bool {
    (1..=GROUPS).all(|group| world.model.acknowledged_end(group) > 0)
}

fn agreed(world: &World) -> bool {
    let lives: BTreeMap<u32, u64> = world.starts.lock().iter().map(|(broker, start)| (*broker, start.life)).collect();
    world.model.agreed(&lives, GROUPS)
}

/// What is wrong on purpose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// The journal's rounds are written, but not synced as is said.
    SyncsAreSkipped,
    /// The code itself.
    Code(Sabotage),
}

/// Runs a seed on a thread of its own: what a thread remembers must not decide anything.
fn spawn(seed: u64, traced: bool, wrong: Wrong) -> thread::JoinHandle<Told> {
    // A panic names the thread.
    let thread = thread::Builder::new().name(format!("PONTOON_SEED={seed}"));
    let run = move || {
        sabotage::make_on_this_thread(match wrong {
            Wrong::Code(mistake) => Some(mistake),
            _ => None,
        });
        Simulation::new(seed, traced, wrong == Wrong::SyncsAreSkipped).run()
    };
    thread.spawn(run).expect("a thread")
}

/// What breaks in the first two seeds.
fn broken_by(wrong: Wrong) -> Vec<String> {
    (1..=2).flat_map(|seed| spawn(seed, false, wrong).join().expect("a run that comes to its end").broken).collect()
}

#[test]
fn nothing_acknowledged_is_lost() {
    run_all(SEEDS, KINDS, |seed, traced| spawn(seed, traced, Wrong::Nothing));
}

#[test]
fn a_seed_replays_to_the_same_trace() {
    owned::assert_tokio_is_seeded();
    replay_all(REPLAYED, |seed, traced| spawn(seed, traced, Wrong::Nothing));
}

/// A simulation in which nothing could be lost would show nothing: if the journal's rounds are not synced, it comes out, be it that
/// a recovery refuses what it finds or that the model misses something.
#[test]
fn disks_that_lie_about_the_journal_s_syncs_are_found_out() {
    assert!(!broken_by(Wrong::SyncsAreSkipped).is_empty(), "nobody noticed");
}

/// What is purged cannot be missed by who looks from the log's start on.
#[test]
fn snapshots_that_ignore_their_boundary_are_found_out() {
    let found = broken_by(Wrong::Code(Sabotage::SnapshotsIgnoreTheBoundary));
    assert!(found.iter().any(|why| why.contains("was to keep")), "{found:?}");
}
