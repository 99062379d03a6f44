//! Three brokers' real raft and log code in one process, on a simulated network, disk and clock, under one seed.
//!
//! A client (`client`) produces through whoever leads and reads confirmed ends, while machines lose power, processes are
//! killed, wires are cut, held or cut one way, disks stall and fail (`faults`). Every fact that anyone learns goes to `model`,
//! which says what must hold. At the end all machines lose their power once more, and what they find is looked at as a whole.
//!
//! Every operation on a disk, every piece on a wire, every change of leadership and every answer is a line of the trace
//! (`trace`). Each seed runs twice, on two threads; both traces must be the same, line by line. What that takes of the code is
//! in `owned` and, as far as a text search can see it, tested in `tests/tidy.rs` of the workspace.
//!
//! `PONTOON_SEEDS=n` tries n seeds instead of a few, from `PONTOON_SEED` on; `PONTOON_SEED` alone tries that one.
//! `PONTOON_TRACE=1` keeps the traces of good seeds too; those of bad ones are always kept.
#![allow(clippy::unwrap_used)]

mod broker;
mod client;
mod disk;
mod faults;
mod model;
mod net;
mod owned;
mod trace;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use broker::{BROKERS, CLIENT, GROUPS, Start, World, host};
use faults::Faults;
use model::Model;
use parking_lot::Mutex;
use pontoon_raft::disk::sim::SimDisk;
use pontoon_raft::runtime;
use trace::{Trace, first_difference};
use turmoil::Sim;

/// Seeds that are tried by default.
const SEEDS: u64 = 3;
/// How long things go wrong.
const CHAOS: Duration = Duration::from_secs(6);
/// How long a healthy cluster may take until all is as it should be.
const RECOVERY_MAX: Duration = Duration::from_secs(30);

/// What a run came to.
struct Run {
    broken: Vec<String>,
    lines: Vec<String>,
    hash: u32,
    acknowledgements: usize,
    elections: usize,
}

/// A simulation under way.
struct Simulation<'a> {
    sim: Sim<'a>,
    world: World,
    faults: Faults,
    steps: u64,
}

impl Simulation<'_> {
    fn new(seed: u64, lies: bool) -> Self {
        // Every host of the simulation runs on this thread and draws from this generator.
        runtime::seed_thread(seed);
        let trace = Trace::default();
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(seed)
            .simulation_duration(Duration::from_secs(3600))
            .tick_duration(Duration::from_millis(1))
            .min_message_latency(Duration::ZERO)
            .max_message_latency(Duration::from_millis(5))
            .tcp_capacity(1024)
            .enable_random_order();
        let starts = (1..=BROKERS).map(|broker| {
            let disk = SimDisk::new(seed << 8 | u64::from(broker));
            faults::usual_pace(&disk);
            (broker, Start { disk, after: Duration::ZERO, life: 1 })
        });
        let world = World {
            model: Model::new(trace.clone()),
            trace,
            starts: Arc::new(Mutex::new(starts.collect())),
            created: Arc::default(),
            ended: Arc::default(),
            finish: Arc::default(),
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
        Self { sim, world, faults, steps: 0 }
    }

    fn is_broken(&self) -> bool {
        !self.world.model.all_broken().is_empty()
    }

    fn step(&mut self) {
        self.steps += 1;
        self.world.trace.set_now(self.steps);
        if let Err(error) = self.sim.step() {
            self.world.model.broken(format!("a process ended: {error}"));
        }
    }

    /// Goes on until `done`, without new faults.
    fn until(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        let end = self.steps + RECOVERY_MAX.as_millis() as u64;
        while !done(&self.world) && !self.is_broken() {
            if self.steps == end {
                return self.world.model.broken(format!("{what}: not within {RECOVERY_MAX:?}"));
            }
            self.faults.step(&mut self.sim);
            self.step();
        }
    }

    fn run(mut self) -> Run {
        self.until("the cluster starts", |world| world.created.lock().len() as u32 == BROKERS && acknowledged(world));
        let end = self.steps + CHAOS.as_millis() as u64;
        while self.steps < end && !self.is_broken() {
            self.faults.step_and_strike(&mut self.sim);
            self.step();
        }
        self.faults.heal();
        self.world.finish.lock().0 = true;
        self.until("the client comes to its end", |world| world.finish.lock().1);
        self.until("the brokers agree", agreed);
        if !self.is_broken() {
            self.faults.black_out(&mut self.sim);
        }
        self.until("the brokers agree after a black-out", agreed);
        if !self.is_broken() {
            self.world.model.judge();
        }
        let model = &self.world.model;
        let (broken, elections) = (model.all_broken(), model.elections());
        let acknowledgements = model.acknowledgements();
        let trace = self.world.trace.clone();
        let (lines, hash) = trace.take();
        Run { broken, lines, hash, acknowledgements, elections }
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

/// Runs a seed on a thread of its own: what a thread remembers must not decide anything.
fn spawn(seed: u64, lies: bool) -> thread::JoinHandle<Run> {
    // For looking into a failure: `PONTOON_LOG=pontoon_raft=debug,openraft=info`.
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("PONTOON_LOG") {
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).try_init();
    }
    thread::spawn(move || Simulation::new(seed, lies).run())
}

fn finish(seed: u64, run: thread::JoinHandle<Run>) -> Run {
    match run.join() {
        Ok(run) => run,
        Err(panic) => {
            eprintln!("seed {seed} panicked");
            std::panic::resume_unwind(panic)
        }
    }
}

/// Keeps a trace for the reader of a failed test.
fn keep(seed: u64, name: &str, lines: &[String]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("simulation-{seed}{name}.trace"));
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn seeds() -> Vec<u64> {
    let number = |name| std::env::var(name).ok().map(|value: String| value.parse().unwrap());
    match (number("PONTOON_SEED"), number("PONTOON_SEEDS")) {
        (Some(seed), None) => vec![seed],
        (first, count) => {
            let first = first.unwrap_or(1);
            (first..first + count.unwrap_or(SEEDS)).collect()
        }
    }
}

#[test]
fn a_seed_replays_to_the_same_trace_and_nothing_acknowledged_is_lost() {
    let replays = owned::tokio_is_seeded();
    let mut hashes = BTreeMap::new();
    for seed in seeds() {
        let (one, other) = (spawn(seed, false), replays.then(|| spawn(seed, false)));
        let one = finish(seed, one);
        if let Some(other) = other.map(|other| finish(seed, other)) {
            if let Some(difference) = first_difference(&one.lines, &other.lines) {
                let paths = [keep(seed, "-1", &one.lines), keep(seed, "-2", &other.lines)];
                panic!("seed {seed} does not replay (traces in {paths:?}), {difference}");
            }
            assert_eq!(one.hash, other.hash);
        }
        if !one.broken.is_empty() {
            let path = keep(seed, "", &one.lines);
            panic!("PONTOON_SEED={seed} (trace in {}):\n{}", path.display(), one.broken.join("\n"));
        }
        let (acknowledgements, elections) = (one.acknowledgements, one.elections);
        eprintln!(
            "seed {seed}: {} lines, hash {:08x}, {acknowledgements} acknowledged, {elections} terms",
            one.lines.len(),
            one.hash
        );
        if std::env::var_os("PONTOON_TRACE").is_some() {
            eprintln!("trace in {}", keep(seed, "", &one.lines).display());
        }
        assert!(acknowledgements > 50 && elections > GROUPS as usize, "nothing much happened");
        if let Some(twin) = hashes.insert(one.hash, seed) {
            panic!("seeds {seed} and {twin} give the same trace");
        }
    }
}

/// A simulation in which nothing could be lost would show nothing: if the journal's rounds are not synced, it comes out, be it that
/// a recovery refuses what it finds or that the model misses something.
#[test]
fn disks_that_lie_about_the_journal_s_syncs_are_found_out() {
    let found: Vec<String> = (1..=2).flat_map(|seed| finish(seed, spawn(seed, true)).broken).collect();
    assert!(!found.is_empty(), "nobody noticed");
}
