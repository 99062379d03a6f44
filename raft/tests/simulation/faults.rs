//! What the seed does to machines, processes, disks and wires, from outside.

use std::collections::BTreeMap;
use std::time::Duration;

use pontoon_raft::disk::sim::{EIO, Fault, OpKind};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use turmoil::Sim;

use crate::broker::{BROKERS, CLIENT, World, host};
use crate::disk::{draw_failed_call, failed};

/// How long things go wrong.
const CHAOS_MS: std::ops::Range<u64> = 1500..6000;
/// How long a journal's syncs take, mostly, and on a disk that stalls.
const SYNC: Duration = Duration::from_millis(1);
const STALL: Duration = Duration::from_millis(1300);

/// What is to happen later.
#[derive(Clone, Copy, Debug)]
enum Later {
    Repair(u32, u32),
    Release(u32, u32),
    /// The power of a machine goes, for so many ms.
    Cut(u32, u64),
    /// What is left of a killed process goes.
    Bury(u32),
    /// The next process starts.
    Boot(u32),
    /// The disk is itself again.
    Unstall(u32),
}

/// The one who does it.
pub(crate) struct Faults {
    world: World,
    rng: SmallRng,
    /// How long things go wrong.
    pub(crate) chaos_ms: u64,
    next_ms: u64,
    later: BTreeMap<(u64, u64), Later>,
    laters: u64,
    /// How many of each kind there were.
    pub(crate) struck: BTreeMap<&'static str, u64>,
}

impl Faults {
    pub(crate) fn new(world: World, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0xfa17);
        let chaos_ms = rng.random_range(CHAOS_MS);
        Self { world, rng, chaos_ms, next_ms: 0, later: BTreeMap::new(), laters: 0, struck: BTreeMap::new() }
    }

    fn note(&mut self, kind: &'static str, what: impl std::fmt::Display) {
        *self.struck.entry(kind).or_default() += 1;
        self.world.trace.note("fault", format_args!("{kind} {what}"));
    }

    fn ms(&mut self, from: u64, to: u64) -> u64 {
        self.rng.random_range(from..to)
    }

    fn plan(&mut self, after_ms: u64, later: Later) {
        self.laters += 1;
        self.later.insert((self.world.trace.now_ms() + after_ms, self.laters), later);
    }

    /// Before each step: what is due ends, and processes that ended are started again.
    pub(crate) fn step(&mut self, sim: &mut Sim<'_>) {
        let now = self.world.trace.now_ms();
        while let Some(due) = self.later.first_entry().filter(|due| due.key().0 <= now) {
            let later = due.remove();
            match self.off_until(later) {
                Some(back_ms) => self.plan(back_ms - now, later),
                None => self.end(sim, later),
            }
        }
        for broker in 1..=BROKERS {
            let struck = self.world.starts.lock()[&broker].disk.take_struck();
            for (kind, path) in struck {
                self.note(failed(kind), format_args!("{broker} {}", path.display()));
            }
        }
        let ended = std::mem::take(&mut *self.world.ended.lock());
        for (broker, life) in ended {
            if self.world.is_alive(broker, life) {
                self.kill(broker);
            }
        }
    }

    /// Before a step in which something may go wrong.
    pub(crate) fn step_and_strike(&mut self, sim: &mut Sim<'_>) {
        self.step(sim);
        let now = self.world.trace.now_ms();
        if now >= self.next_ms {
            self.strike(sim);
            self.next_ms = now + self.ms(100, 600);
        }
    }

    /// Every fault ends within the next steps.
    pub(crate) fn heal(&mut self) {
        self.world.trace.note("fault", "heal");
        for ((due_ms, _), later) in std::mem::take(&mut self.later) {
            let left = due_ms.saturating_sub(self.world.trace.now_ms());
            match later {
                Later::Cut(..) => {}
                Later::Bury(_) => self.plan(left, later),
                _ => self.plan(5, later),
            }
        }
    }

    /// The power of all machines at once.
    pub(crate) fn black_out(&mut self, sim: &mut Sim<'_>) {
        for broker in 1..=BROKERS {
            self.power_off(sim, broker, 5);
        }
    }

    fn strike(&mut self, sim: &mut Sim<'_>) {
        let wanted = self.rng.random_range(1..=BROKERS);
        // That one, or the next that can be struck.
        let in_turn = (0..BROKERS).map(|number| (wanted - 1 + number) % BROKERS + 1);
        let kind = self.rng.random_range(0..11);
        let struck = match kind {
            0 | 1 => in_turn.clone().find(|broker| !self.is_between_lives(*broker)),
            // Two faults of a disk, or of a wire, would end each other.
            _ => in_turn.clone().find(|broker| !self.is_busy(*broker)),
        };
        let Some(broker) = struck else { return };
        let other = (broker + self.rng.random_range(0..BROKERS - 1)) % BROKERS + 1;
        match kind {
            0 => match self.rng.random_range(0..6) {
                0 | 1 => self.cut_power(&[1, 2, 3]),
                2 => self.cut_power(&[broker, other]),
                _ => {
                    let off_ms = self.ms(20, 2000);
                    self.power_off(sim, broker, off_ms);
                }
            },
            1 => self.kill(broker),
            2 => {
                self.note("partition", format_args!("{broker} {other}"));
                sim.partition(host(broker), host(other));
                let after = self.ms(1300, 2500);
                self.plan(after, Later::Repair(broker, other));
            }
            3 => {
                self.note("isolation", format_args!("{broker} from all"));
                for other in (1..=BROKERS).filter(|other| *other != broker) {
                    sim.partition(host(broker), host(other));
                }
                let after = self.ms(1300, 3000);
                for other in (1..=BROKERS).filter(|other| *other != broker) {
                    self.plan(after, Later::Repair(broker, other));
                }
            }
            4 => {
                self.note("one-way cut", format_args!("{broker} to {other}"));
                sim.partition_oneway(host(broker), host(other));
                let after = self.ms(1300, 2500);
                self.plan(after, Later::Repair(broker, other));
            }
            5 => {
                self.note("hold", format_args!("{broker} {other}"));
                sim.hold(host(broker), host(other));
                let after = self.ms(20, 1800);
                self.plan(after, Later::Release(broker, other));
            }
            6 => {
                self.note("stall", broker);
                self.world.starts.lock()[&broker].disk.slow_syncs("", STALL);
                let after = self.ms(500, 2500);
                self.plan(after, Later::Unstall(broker));
            }
            7 => {
                let path_contains = String::new();
                self.fail(broker, Fault { kind: OpKind::Sync, path_contains, skip: 0, errno: EIO, loses_data: true });
            }
            _ => {
                let fault = draw_failed_call(&mut self.rng);
                self.fail(broker, fault);
            }
        }
    }

    /// It counts once it strikes.
    fn fail(&self, broker: u32, fault: Fault) {
        self.world.trace.note("fault", format_args!("of {broker}'s disk to come: {fault:?}"));
        self.world.starts.lock()[&broker].disk.inject(fault);
    }

    /// Several machines lose their power at once, under load; sometimes with disks that have become slow before, which have more to
    /// lose: there is more time between a write and its sync.
    fn cut_power(&mut self, brokers: &[u32]) {
        if brokers.iter().any(|broker| self.is_between_lives(*broker)) {
            return;
        }
        let slow = self.rng.random_bool(0.5).then(|| Duration::from_millis(self.ms(20, 200)));
        let kind = if brokers.len() == BROKERS as usize { "black-out" } else { "power cut of two" };
        self.note(kind, format_args!("{brokers:?}, {slow:?} a sync"));
        let after = if slow.is_some() { self.ms(30, 400) } else { 0 };
        for broker in brokers {
            let off_ms = self.ms(5, 300);
            self.plan(after, Later::Cut(*broker, off_ms));
            if let Some(pace) = slow {
                self.world.starts.lock()[broker].disk.slow_syncs("", pace);
                let mended = after + self.ms(300, 1500);
                self.plan(mended, Later::Unstall(*broker));
            }
        }
    }

    fn end(&mut self, sim: &mut Sim<'_>, later: Later) {
        self.world.trace.note("fault", format_args!("{later:?}"));
        match later {
            Later::Repair(one, two) => sim.repair(host(one), host(two)),
            Later::Release(one, two) => sim.release(host(one), host(two)),
            Later::Cut(broker, _) if self.is_between_lives(broker) => {}
            Later::Cut(broker, off_ms) => self.power_off(sim, broker, off_ms),
            Later::Bury(broker) => sim.crash(host(broker)),
            Later::Boot(broker) => sim.bounce(host(broker)),
            Later::Unstall(broker) => self.world.starts.lock()[&broker].disk.slow_syncs("", SYNC),
        }
    }

    /// kill -9: the machine stays up, so that its connections close and new ones are refused until the process is back.
    fn kill(&mut self, broker: u32) {
        self.note("kill", broker);
        let after = Duration::from_millis(self.ms(10, 1500));
        self.next_life(broker, |start| {
            start.disk = start.disk.kill();
            start.after = after;
        });
        self.plan(1, Later::Bury(broker));
        self.plan(1, Later::Boot(broker));
    }

    /// Nothing that it did not sync survives for certain; its connections do not close, they fall silent.
    fn power_off(&mut self, sim: &mut Sim<'_>, broker: u32, off_ms: u64) {
        self.note("power off", broker);
        self.next_life(broker, |start| {
            start.disk = start.disk.crash();
            start.after = Duration::ZERO;
        });
        self.plan(1, Later::Bury(broker));
        for other in (1..=CLIENT).filter(|other| *other != broker) {
            sim.partition(host(broker), host(other));
            self.plan(off_ms, Later::Repair(broker, other));
        }
        self.plan(off_ms, Later::Boot(broker));
    }

    /// Whether one process is gone and the next not started.
    fn is_between_lives(&self, broker: u32) -> bool {
        self.later.values().any(|later| matches!(later, Later::Bury(off) | Later::Boot(off) if *off == broker))
    }

    /// Whether something is wrong with its disk or its wires, or soon will be with its machine.
    fn is_busy(&self, broker: u32) -> bool {
        self.later.values().any(|later| match later {
            Later::Repair(one, two) | Later::Release(one, two) => [one, two].contains(&&broker),
            Later::Cut(off, _) | Later::Bury(off) | Later::Boot(off) | Later::Unstall(off) => *off == broker,
        })
    }

    /// A wire is not mended while the machine at one of its ends is off: when the last of them will be back.
    fn off_until(&self, later: Later) -> Option<u64> {
        let (Later::Repair(one, two) | Later::Release(one, two)) = later else { return None };
        let boots =
            self.later.iter().filter(|(_, later)| matches!(later, Later::Boot(off) if [one, two].contains(off)));
        boots.map(|((due_ms, _), _)| *due_ms).max().filter(|back_ms| *back_ms > self.world.trace.now_ms())
    }

    fn next_life(&self, broker: u32, change: impl FnOnce(&mut crate::broker::Start)) {
        let mut starts = self.world.starts.lock();
        let start = starts.get_mut(&broker).expect("a broker");
        start.life += 1;
        change(start);
        drop(starts);
        self.world.changed.notify_waiters();
    }
}

/// A disk's usual pace.
pub(crate) fn usual_pace(disk: &pontoon_raft::disk::sim::SimDisk) {
    disk.slow_syncs("", SYNC);
}
