//! One run: a seed, from an empty cluster through everything that goes wrong to the verdict.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use pontoon_raft::runtime;
use pontoon_raft::sabotage;
use turmoil::Sim;

use crate::broken::Variant;
use crate::client;
use crate::cluster::{self, Phase, Start, World};
use crate::faults::Faults;
use crate::ledger::Broken;
use crate::machines::{BROKERS, CLIENT, LATENCY, host, new_disk};
use crate::trace::Trace;

/// Longest step of simulated time: all processes of a run take steps of so many ms, 1 to this many, as the seed says. Whatever comes
/// within one step comes in an order that the seed draws.
const STEP_MS_MAX: u64 = 5;
/// How long a healthy cluster may take until all is as it should be. Mostly seconds; a rotten replica that is not needed is set aside
/// and replaced after some attempts to repair it.
const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// Longest between an entry's being applied and its being shown; with room.
const SETTLE_MS: u64 = 200;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Whether its trace is wanted.
    pub(crate) traced: bool,
    pub(crate) variant: Option<Variant>,
    /// The invariant that ends the run; without one, any does.
    pub(crate) awaited: Option<&'static str>,
}

/// What a run came to.
pub(crate) struct Run {
    pub(crate) broken: Vec<Broken>,
    pub(crate) lines: Vec<String>,
    pub(crate) hash: u32,
    pub(crate) acknowledged: u64,
    pub(crate) terms: u64,
    /// Faults, what they did to logs, and what was looked at, by kind.
    pub(crate) struck: BTreeMap<&'static str, u64>,
    /// How long it took in simulated time, in ms.
    pub(crate) simulated_ms: u64,
}

/// A simulation under way.
struct Simulation<'a> {
    sim: Sim<'a>,
    world: World,
    faults: Faults,
    awaited: Option<&'static str>,
    step_ms: u64,
    now_ms: u64,
}

impl Plan {
    /// Runs on a thread of its own: what a thread remembers must not decide anything.
    pub(crate) fn spawn<T: Send + 'static>(self, then: fn(Run) -> T) -> thread::JoinHandle<T> {
        // A panic names the thread.
        let thread = thread::Builder::new().name(format!("PONTOON_SEED={}", self.seed));
        thread.spawn(move || then(Simulation::new(self).run())).expect("a thread")
    }
}

impl Simulation<'_> {
    fn new(plan: Plan) -> Self {
        // Every host of the simulation runs on this thread and draws from this generator.
        runtime::seed_thread(plan.seed);
        sabotage::make_on_this_thread(match plan.variant {
            Some(Variant::Sabotage(mistake)) => Some(mistake),
            _ => None,
        });
        let step_ms = 1 + plan.seed % STEP_MS_MAX;
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(plan.seed)
            .simulation_duration(Duration::from_secs(3600))
            .tick_duration(Duration::from_millis(step_ms))
            .min_message_latency(Duration::ZERO)
            .max_message_latency(LATENCY)
            .tcp_capacity(1024)
            .enable_random_order();
        let starts = (1..=BROKERS).map(|broker| {
            let disk = new_disk(plan.seed << 8 | u64::from(broker));
            (broker, Start::first(disk))
        });
        let world = World::new(Trace::new(plan.traced), starts.collect(), plan.variant);
        let mut sim = builder.build();
        for broker in 1..=BROKERS {
            let world = world.clone();
            sim.host(host(broker), move || cluster::run(world.clone(), broker));
        }
        let client = world.clone();
        sim.host(host(CLIENT), move || client::run(client.clone()));
        let faults = Faults::new(world.clone(), plan.seed);
        Self { sim, world, faults, awaited: plan.awaited, step_ms, now_ms: 0 }
    }

    /// Whether there is no sense in going on.
    fn is_over(&self) -> bool {
        let broken = self.world.ledger.all_broken();
        match self.awaited {
            None => !broken.is_empty(),
            Some(awaited) => broken.iter().any(|broken| broken.invariant == awaited) || broken.len() > 200,
        }
    }

    fn step(&mut self) {
        self.now_ms += self.step_ms;
        self.world.trace.set_now(self.now_ms);
        if let Err(error) = self.sim.step() {
            self.world.ledger.broken("harness", format!("a process ended: {error}"));
        }
    }

    /// Goes on until `done`, without new faults.
    fn until(&mut self, what: &str, done: impl Fn(&World) -> Result<(), String>) {
        let end = self.now_ms + RECOVERY_MAX.as_millis() as u64;
        while let Err(why) = done(&self.world) {
            if self.is_over() {
                return;
            }
            if self.now_ms >= end {
                let why = format!("{what}: not within {RECOVERY_MAX:?}: {why}");
                return self.world.ledger.broken("liveness", why);
            }
            self.faults.step(&mut self.sim);
            self.step();
        }
    }

    fn run(mut self) -> Run {
        self.until("the cluster starts", acknowledged);
        let end = self.now_ms + self.faults.chaos_ms;
        while self.now_ms < end && !self.is_over() {
            self.faults.step_and_strike(&mut self.sim);
            self.step();
        }
        self.faults.machines.heal();
        self.world.want(Phase::Finish);
        self.until("everything is writable again", |world| arrived(world, Phase::Finish));
        self.until("the brokers agree", agreed);
        if !self.is_over() {
            self.faults.machines.black_out(&mut self.sim);
        }
        self.until("the brokers agree after a black-out", agreed);
        self.world.want(Phase::ReadAll);
        self.until("all is read", |world| arrived(world, Phase::ReadAll));
        // What was read, the observers see a moment later.
        for _ in 0..SETTLE_MS / self.step_ms {
            self.step();
        }
        self.until("the brokers agree at the end", agreed);
        if !self.is_over() {
            self.world.ledger.judge();
        }
        let ledger = &self.world.ledger;
        let (broken, (acknowledged, terms)) = (ledger.all_broken(), ledger.counts());
        let (lines, hash) = self.world.trace.take();
        let (mut struck, simulated_ms) = (std::mem::take(&mut self.faults.machines.struck), self.now_ms);
        struck.extend(ledger.happened());
        Run { broken, lines, hash, acknowledged, terms, struck, simulated_ms }
    }
}

/// Something was acknowledged in every partition.
fn acknowledged(world: &World) -> Result<(), String> {
    let silent = (0..client::PARTITIONS).find(|partition| world.ledger.acknowledged_end(*partition) == 0);
    silent.map_or(Ok(()), |partition| Err(format!("nothing is acknowledged in partition {partition}")))
}

fn arrived(world: &World, phase: Phase) -> Result<(), String> {
    if world.has_arrived(phase) { Ok(()) } else { Err(format!("the client has not done {phase:?}")) }
}

/// Every broker is up and ready and shows the same.
fn agreed(world: &World) -> Result<(), String> {
    let lives = world.lives();
    let ready = world.ready.lock().clone();
    match lives.iter().find(|(broker, life)| !ready.contains(&(**broker, **life))) {
        Some((broker, life)) => Err(format!("broker {broker} is not ready in life {life}")),
        None => world.ledger.agreed(&lives),
    }
}
