//! The machines of a simulation, their processes, disks and the wires between them: how each goes wrong, and how that ends. Shared by the
//! simulation of the raft crate and that of whole brokers; what strikes when, and whom, is theirs to draw (`faults`).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use pontoon_raft::disk::sim::{EIO, Fault, OpKind, SimDisk};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use turmoil::Sim;

use crate::disk::{draw_failed_call, failed};
use crate::trace::Trace;

/// Brokers, by number from 1.
pub(crate) const BROKERS: u32 = 3;
/// The client, among the hosts.
pub(crate) const CLIENT: u32 = BROKERS + 1;
/// How long a disk's syncs take, mostly, and when it stalls.
const SYNC: Duration = Duration::from_millis(1);
const STALL: Duration = Duration::from_millis(1300);
/// Longest that a message is on its way, mostly.
pub(crate) const LATENCY: Duration = Duration::from_millis(5);

pub(crate) fn host(broker: u32) -> String {
    if broker == CLIENT { "client".into() } else { format!("b{broker}") }
}

/// A disk with its usual pace.
pub(crate) fn new_disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.slow_syncs("", SYNC);
    disk
}

/// What a simulation knows of its brokers' processes.
pub(crate) trait Processes {
    fn trace(&self) -> &Trace;

    /// A broker's disk, as the process has it that is there now.
    fn disk(&self, broker: u32) -> SimDisk;

    /// The process is gone. The next is to begin on what this makes of its disk, once its machine has been up for so long.
    fn begin_anew(&self, broker: u32, end: fn(&SimDisk) -> SimDisk, after: Duration);

    /// The power went: what lies beside the log, and can be made anew from it, may be gone.
    fn forget(&self, _broker: u32, _rng: &mut SmallRng) {}
}

/// What is to happen later.
#[derive(Clone, Copy, Debug)]
enum Later {
    Repair(u32, u32),
    Release(u32, u32),
    /// A link is as quick as it was.
    Quicken(u32, u32),
    /// The power of several machines goes at once: of each for so many ms, 0: not of that one.
    Cut([u64; BROKERS as usize]),
    /// What is left of a killed process goes.
    Bury(u32),
    /// The next process starts.
    Boot(u32),
    /// The disk is itself again: quick, and with room.
    Mend(u32),
}

/// All of them, and what is to become of them.
pub(crate) struct Machines<P> {
    processes: P,
    pub(crate) rng: SmallRng,
    next_ms: u64,
    later: BTreeMap<(u64, u64), Later>,
    laters: u64,
    /// How many of each kind there were.
    pub(crate) struck: BTreeMap<&'static str, u64>,
}

impl<P: Processes> Machines<P> {
    pub(crate) fn new(processes: P, seed: u64) -> Self {
        let rng = SmallRng::seed_from_u64(seed ^ 0xfa17);
        Self { processes, rng, next_ms: 0, later: BTreeMap::new(), laters: 0, struck: BTreeMap::new() }
    }

    pub(crate) fn note(&mut self, kind: &'static str, what: impl Display) {
        *self.struck.entry(kind).or_default() += 1;
        self.processes.trace().note("fault", format_args!("{kind} {what}"));
    }

    pub(crate) fn ms(&mut self, from: u64, to: u64) -> u64 {
        self.rng.random_range(from..to)
    }

    fn plan(&mut self, after_ms: u64, later: Later) {
        self.laters += 1;
        self.later.insert((self.processes.trace().now_ms() + after_ms, self.laters), later);
    }

    /// Before each step: what is due ends.
    pub(crate) fn step(&mut self, sim: &mut Sim<'_>) {
        let now = self.processes.trace().now_ms();
        while let Some(due) = self.later.first_entry().filter(|due| due.key().0 <= now) {
            let later = due.remove();
            match self.off_until(later) {
                Some(back_ms) => self.plan(back_ms - now, later),
                None => self.end(sim, later),
            }
        }
        for broker in 1..=BROKERS {
            self.count_failed(broker);
        }
    }

    /// Whether it is time for something to go wrong.
    pub(crate) fn may_strike(&mut self) -> bool {
        let now = self.processes.trace().now_ms();
        let is_time = now >= self.next_ms;
        if is_time {
            self.next_ms = now + self.ms(100, 600);
        }
        is_time
    }

    /// Every fault ends within the next steps.
    pub(crate) fn heal(&mut self) {
        self.processes.trace().note("fault", "heal");
        for ((due_ms, _), later) in std::mem::take(&mut self.later) {
            let left = due_ms.saturating_sub(self.processes.trace().now_ms());
            match later {
                Later::Cut(..) => {}
                Later::Bury(_) => self.plan(left, later),
                _ => self.plan(5, later),
            }
        }
    }

    fn end(&mut self, sim: &mut Sim<'_>, later: Later) {
        self.processes.trace().note("fault", format_args!("{later:?}"));
        match later {
            Later::Repair(one, two) => sim.repair(host(one), host(two)),
            Later::Release(one, two) => sim.release(host(one), host(two)),
            Later::Quicken(one, two) => sim.set_link_max_message_latency(host(one), host(two), LATENCY),
            Later::Cut(off_ms) => self.cut(sim, off_ms),
            Later::Bury(broker) => sim.crash(host(broker)),
            Later::Boot(broker) => sim.bounce(host(broker)),
            Later::Mend(broker) => {
                self.disk(broker).slow_syncs("", SYNC);
                self.disk(broker).set_capacity(None);
            }
        }
    }

    /// Whether one process is gone and the next not started.
    pub(crate) fn is_between_lives(&self, broker: u32) -> bool {
        self.later.values().any(|later| matches!(later, Later::Bury(off) | Later::Boot(off) if *off == broker))
    }

    /// Whether something is wrong with its disk or its wires, or soon will be with its machine.
    pub(crate) fn is_busy(&self, broker: u32) -> bool {
        self.later.values().any(|later| match later {
            Later::Repair(one, two) | Later::Release(one, two) | Later::Quicken(one, two) => {
                [one, two].contains(&&broker)
            }
            Later::Cut(off_ms) => off_ms[broker as usize - 1] > 0,
            Later::Bury(off) | Later::Boot(off) | Later::Mend(off) => *off == broker,
        })
    }

    /// That broker, or the next that can be struck.
    pub(crate) fn in_turn(&self, wanted: u32, can_be: impl Fn(&Self, u32) -> bool) -> Option<u32> {
        (0..BROKERS).map(|number| (wanted - 1 + number) % BROKERS + 1).find(|broker| can_be(self, *broker))
    }

    pub(crate) fn any_but(&mut self, broker: u32) -> u32 {
        (broker + self.rng.random_range(0..BROKERS - 1)) % BROKERS + 1
    }

    /// A wire is not mended while the machine at one of its ends is off: when the last of them will be back.
    fn off_until(&self, later: Later) -> Option<u64> {
        let (Later::Repair(one, two) | Later::Release(one, two)) = later else { return None };
        let boots =
            self.later.iter().filter(|(_, later)| matches!(later, Later::Boot(off) if [one, two].contains(off)));
        boots.map(|((due_ms, _), _)| *due_ms).max().filter(|back_ms| *back_ms > self.processes.trace().now_ms())
    }
}

/// Machines and processes.
impl<P: Processes> Machines<P> {
    /// kill -9: the machine stays up, so that its connections close and new ones are refused until the process is back.
    pub(crate) fn kill(&mut self, broker: u32) {
        self.note("kill", broker);
        let after = Duration::from_millis(self.ms(10, 1500));
        self.processes.begin_anew(broker, SimDisk::kill, after);
        self.plan(1, Later::Bury(broker));
        self.plan(1, Later::Boot(broker));
    }

    /// Nothing that it did not sync survives for certain; its connections do not close, they fall silent.
    pub(crate) fn power_off(&mut self, sim: &mut Sim<'_>, broker: u32, off_ms: u64) {
        self.note("power off", broker);
        self.processes.begin_anew(broker, SimDisk::crash, Duration::ZERO);
        self.processes.forget(broker, &mut self.rng);
        self.plan(1, Later::Bury(broker));
        for other in (1..=CLIENT).filter(|other| *other != broker) {
            sim.partition(host(broker), host(other));
            self.plan(off_ms, Later::Repair(broker, other));
        }
        self.plan(off_ms, Later::Boot(broker));
    }

    /// The power of all machines at once.
    pub(crate) fn black_out(&mut self, sim: &mut Sim<'_>) {
        for broker in 1..=BROKERS {
            self.power_off(sim, broker, 5);
        }
    }

    /// Several machines lose their power at once, under load; sometimes out of slow disks.
    pub(crate) fn cut_power(&mut self, brokers: &[u32]) {
        let slow = self.rng.random_bool(0.5).then(|| Duration::from_millis(self.ms(20, 200)));
        self.cut_power_of(brokers, slow);
    }

    /// The same. Disks that have become slow before have more to lose: there is more time between a write and its sync. It counts once
    /// it comes: by then a machine may be off, or the faults over.
    pub(crate) fn cut_power_of(&mut self, brokers: &[u32], slow: Option<Duration>) {
        if brokers.iter().any(|broker| self.is_between_lives(*broker)) {
            return;
        }
        self.processes.trace().note("fault", format_args!("power cut of {brokers:?} to come, {slow:?} a sync"));
        let after = if slow.is_some() { self.ms(30, 400) } else { 0 };
        let mut off_ms = [0; BROKERS as usize];
        for broker in brokers {
            off_ms[*broker as usize - 1] = self.ms(5, 300);
            if let Some(pace) = slow {
                let mended = after + self.ms(300, 1500);
                self.slow_down(*broker, pace, mended);
            }
        }
        self.plan(after, Later::Cut(off_ms));
    }

    fn cut(&mut self, sim: &mut Sim<'_>, off_ms: [u64; BROKERS as usize]) {
        let off_ms = (1..=BROKERS).zip(off_ms).filter(|(broker, ms)| *ms > 0 && !self.is_between_lives(*broker));
        let off_ms: Vec<(u32, u64)> = off_ms.collect();
        match off_ms.len() {
            0 | 1 => {}
            2 => self.note("power cut of two", format_args!("{off_ms:?}")),
            _ => self.note("black-out", format_args!("{off_ms:?}")),
        }
        off_ms.into_iter().for_each(|(broker, ms)| self.power_off(sim, broker, ms));
    }
}

/// Wires.
impl<P: Processes> Machines<P> {
    pub(crate) fn strike_network(&mut self, sim: &mut Sim<'_>, broker: u32, other: u32) {
        match self.rng.random_range(0..5) {
            0 => {
                self.note("partition", format_args!("{broker} {other}"));
                self.partition(sim, &[(broker, other)]);
            }
            1 => self.isolate(sim, broker),
            2 => {
                self.note("one-way cut", format_args!("{broker} to {other}"));
                sim.partition_oneway(host(broker), host(other));
                let after = self.ms(1300, 2500);
                self.plan(after, Later::Repair(broker, other));
            }
            3 => {
                self.note("hold", format_args!("{broker} {other}"));
                sim.hold(host(broker), host(other));
                let after = self.ms(20, 1800);
                self.plan(after, Later::Release(broker, other));
            }
            _ => {
                let latency = Duration::from_millis(self.ms(20, 300));
                self.note("delay", format_args!("{broker} {other} up to {latency:?}"));
                sim.set_link_max_message_latency(host(broker), host(other), latency);
                let after = self.ms(500, 3000);
                self.plan(after, Later::Quicken(broker, other));
            }
        }
    }

    pub(crate) fn isolate(&mut self, sim: &mut Sim<'_>, broker: u32) {
        self.note("isolation", format_args!("{broker} from all"));
        let links: Vec<_> = (1..=BROKERS).filter(|other| *other != broker).map(|other| (broker, other)).collect();
        self.partition(sim, &links);
    }

    fn partition(&mut self, sim: &mut Sim<'_>, links: &[(u32, u32)]) {
        let after = self.ms(1300, 3000);
        for (one, other) in links {
            sim.partition(host(*one), host(*other));
            self.plan(after, Later::Repair(*one, *other));
        }
    }
}

/// Disks.
impl<P: Processes> Machines<P> {
    pub(crate) fn disk(&self, broker: u32) -> SimDisk {
        self.processes.disk(broker)
    }

    pub(crate) fn stall(&mut self, broker: u32) {
        self.note("stall", broker);
        let after = self.ms(500, 2500);
        self.slow_down(broker, STALL, after);
    }

    /// Its syncs take so long, for so long.
    pub(crate) fn slow_down(&mut self, broker: u32, pace: Duration, for_ms: u64) {
        self.disk(broker).slow_syncs("", pace);
        self.mend_after(broker, for_ms);
    }

    /// Its disk is itself again then.
    pub(crate) fn mend_after(&mut self, broker: u32, after_ms: u64) {
        self.plan(after_ms, Later::Mend(broker));
    }

    /// One of the next calls of this kind fails.
    pub(crate) fn fail_soon(&mut self, broker: u32, kind: OpKind, path_contains: &str) {
        let (skip, path_contains) = (self.ms(0, 4), path_contains.to_owned());
        self.fail(broker, Fault { kind, path_contains, skip, errno: EIO, loses_data: kind == OpKind::Sync });
    }

    /// A call of some kind fails.
    pub(crate) fn fail_a_call(&mut self, broker: u32) {
        let fault = draw_failed_call(&mut self.rng);
        self.fail(broker, fault);
    }

    /// It counts once it strikes.
    fn fail(&self, broker: u32, fault: Fault) {
        self.processes.trace().note("fault", format_args!("of {broker}'s disk to come: {fault:?}"));
        self.disk(broker).inject(fault);
    }

    /// Counts the calls that a disk has refused.
    pub(crate) fn count_failed(&mut self, broker: u32) {
        for (kind, path) in self.disk(broker).take_struck() {
            self.note(failed(kind), format_args!("{broker} {}", path.display()));
        }
    }
}

/// What is counted has happened.
mod tests {
    use parking_lot::Mutex;

    use super::*;

    /// Machines that nothing runs on.
    struct Idle {
        trace: Trace,
        disks: Mutex<BTreeMap<u32, SimDisk>>,
    }

    impl Processes for Idle {
        fn trace(&self) -> &Trace {
            &self.trace
        }

        fn disk(&self, broker: u32) -> SimDisk {
            self.disks.lock()[&broker].clone()
        }

        fn begin_anew(&self, broker: u32, end: fn(&SimDisk) -> SimDisk, _after: Duration) {
            let disk = end(&self.disk(broker));
            self.disks.lock().insert(broker, disk);
        }
    }

    /// The kinds of power cuts that are counted if these machines' power is to be cut, `meanwhile` comes first, and then a second goes by.
    fn counted(brokers: &[u32], meanwhile: fn(&mut Machines<Idle>)) -> Vec<(&'static str, u64)> {
        let trace = Trace::new(false);
        let disks = Mutex::new((1..=BROKERS).map(|broker| (broker, new_disk(0))).collect());
        let mut machines = Machines::new(Idle { trace: trace.clone(), disks }, 1);
        let mut sim = turmoil::Builder::new().build();
        (1..=CLIENT).for_each(|number| sim.host(host(number), std::future::pending));
        machines.cut_power_of(brokers, Some(SYNC));
        meanwhile(&mut machines);
        for now in 0..1000 {
            trace.set_now(now);
            machines.step(&mut sim);
        }
        machines.struck.into_iter().filter(|(kind, _)| *kind != "kill").collect()
    }

    #[test]
    fn a_power_cut_counts_as_what_it_comes_to() {
        assert_eq!(counted(&[1, 2, 3], |_| {}), [("black-out", 1), ("power off", 3)]);
        assert_eq!(counted(&[1, 3], |_| {}), [("power cut of two", 1), ("power off", 2)]);
        assert_eq!(counted(&[1, 2, 3], Machines::heal), []);
        let boot_is_due_late = |machines: &mut Machines<Idle>| machines.plan(990, Later::Boot(3));
        assert_eq!(counted(&[1, 2, 3], boot_is_due_late), [("power cut of two", 1), ("power off", 2)]);
        assert_eq!(counted(&[2, 3], boot_is_due_late), [("power off", 1)]);
    }
}
