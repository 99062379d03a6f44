//! What the seed does to machines, processes, disks and wires, from outside.

use std::time::Duration;

use pontoon_raft::disk::sim::{OpKind, SimDisk};
use rand::RngExt;
use turmoil::Sim;

use crate::broker::World;
use crate::machines::{BROKERS, Machines, Processes};
use crate::trace::Trace;

/// How long things go wrong.
const CHAOS_MS: std::ops::Range<u64> = 1500..6000;

impl Processes for World {
    fn trace(&self) -> &Trace {
        &self.trace
    }

    fn disk(&self, broker: u32) -> SimDisk {
        self.starts.lock()[&broker].disk.clone()
    }

    fn begin_anew(&self, broker: u32, end: fn(&SimDisk) -> SimDisk, after: Duration) {
        {
            let mut starts = self.starts.lock();
            let start = starts.get_mut(&broker).expect("a broker");
            (start.disk, start.after) = (end(&start.disk), after);
            start.life += 1;
        }
        self.changed.notify_waiters();
    }
}

/// The one who does it.
pub(crate) struct Faults {
    world: World,
    pub(crate) machines: Machines<World>,
    /// How long things go wrong.
    pub(crate) chaos_ms: u64,
}

impl Faults {
    pub(crate) fn new(world: World, seed: u64) -> Self {
        let mut machines = Machines::new(world.clone(), seed);
        let chaos_ms = machines.rng.random_range(CHAOS_MS);
        Self { world, machines, chaos_ms }
    }

    /// Before each step: what is due ends, and processes that ended are started again.
    pub(crate) fn step(&mut self, sim: &mut Sim<'_>) {
        self.machines.step(sim);
        let ended = std::mem::take(&mut *self.world.ended.lock());
        for (broker, life) in ended {
            if self.world.is_alive(broker, life) {
                self.machines.kill(broker);
            }
        }
    }

    /// Before a step in which something may go wrong.
    pub(crate) fn step_and_strike(&mut self, sim: &mut Sim<'_>) {
        self.step(sim);
        if self.machines.may_strike() {
            self.strike(sim);
        }
    }

    fn strike(&mut self, sim: &mut Sim<'_>) {
        let machines = &mut self.machines;
        let (wanted, kind) = (machines.rng.random_range(1..=BROKERS), machines.rng.random_range(0..11));
        let struck = match kind {
            0 | 1 => machines.in_turn(wanted, |machines, broker| !machines.is_between_lives(broker)),
            // Two faults of a disk, or of a wire, would end each other.
            _ => machines.in_turn(wanted, |machines, broker| !machines.is_busy(broker)),
        };
        let Some(broker) = struck else { return };
        let other = machines.any_but(broker);
        match kind {
            0 => match machines.rng.random_range(0..6) {
                0 | 1 => machines.cut_power(&[1, 2, 3]),
                2 => machines.cut_power(&[broker, other]),
                _ => {
                    let off_ms = machines.ms(20, 2000);
                    machines.power_off(sim, broker, off_ms);
                }
            },
            1 => machines.kill(broker),
            2..=5 => machines.strike_network(sim, broker, other),
            6 => machines.stall(broker),
            7 => machines.fail_soon(broker, OpKind::Sync, ""),
            _ => machines.fail_a_call(broker),
        }
    }
}
