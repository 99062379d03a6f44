//! What the seed does to machines, processes, disks and wires, from outside.
//!
//! Bits rot, and whole disks are lost, on one broker of a run only (`victim`): what a majority has lost nobody can bring back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use pontoon_raft::disk::sim::{EIO, Fault, OpKind, SimDisk};
use pontoon_raft::disk::{DirEntry, Disk};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use turmoil::Sim;

use crate::broken::{Focus, Variant};
use crate::cluster::{BROKERS, CLIENT, Start, World, host};
use crate::disk::{draw_failed_call, failed};

/// How long things go wrong.
const CHAOS_MS: std::ops::Range<u64> = 2000..7000;
/// How long a journal's syncs take, mostly, and on a disk that stalls.
const SYNC: Duration = Duration::from_millis(1);
const SLOW: Duration = Duration::from_millis(60);
const STALL: Duration = Duration::from_millis(1300);
/// Longest that a message is on its way, mostly.
pub(crate) const LATENCY: Duration = Duration::from_millis(5);

/// What is to happen later.
#[derive(Clone, Copy, Debug)]
enum Later {
    Repair(u32, u32),
    Release(u32, u32),
    /// A link is as quick as it was.
    Quicken(u32, u32),
    /// The power of a machine goes, for so many ms.
    Cut(u32, u64),
    /// What is left of a killed process goes.
    Bury(u32),
    /// The next process starts.
    Boot(u32),
    /// The disk is itself again: quick, and with room.
    Mend(u32),
}

/// The one who does it.
pub(crate) struct Faults {
    world: World,
    rng: SmallRng,
    /// Whose disk may rot.
    victim: u32,
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
        let (victim, chaos_ms) = (rng.random_range(1..=BROKERS), rng.random_range(CHAOS_MS));
        Self { world, rng, victim, chaos_ms, next_ms: 0, later: BTreeMap::new(), laters: 0, struck: BTreeMap::new() }
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
            self.count_failed(broker);
        }
        let ended = std::mem::take(&mut *self.world.ended.lock());
        for ((broker, life), unreadable) in ended {
            if self.world.is_alive(broker, life) {
                match unreadable && self.world.start_of(broker).rots {
                    // A directory that cannot be opened: the operator gives the broker an empty one.
                    true => self.wipe(broker),
                    false => self.kill(broker),
                }
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
        // Leaders have more to lose.
        let leads = self.world.ledger.leader_of(self.rng.random_range(0..4));
        let any = self.rng.random_range(1..=BROKERS);
        let wanted = leads.filter(|_| self.rng.random_bool(0.5)).unwrap_or(any);
        let focus = self.world.variant.map_or(Focus::Nothing, Variant::focus);
        if focus != Focus::Nothing && !self.is_busy(wanted) && self.rng.random_bool(0.7) {
            return self.strike_with(focus, sim);
        }
        // That one, or the next that can be struck.
        let in_turn = (0..BROKERS).map(|number| (wanted - 1 + number) % BROKERS + 1);
        let kind = self.rng.random_range(0..4);
        let struck = match kind {
            0 => in_turn.clone().find(|broker| !self.is_between_lives(*broker)),
            // Two faults of a disk, or of a wire, would end each other.
            _ => in_turn.clone().find(|broker| !self.is_busy(*broker)),
        };
        let Some(broker) = struck else { return };
        let other = (broker + self.rng.random_range(0..BROKERS - 1)) % BROKERS + 1;
        match kind {
            0 => self.strike_machine(sim, broker),
            1 => self.strike_network(sim, broker, other),
            _ => self.strike_disk(broker),
        }
    }

    fn strike_machine(&mut self, sim: &mut Sim<'_>, broker: u32) {
        match self.rng.random_range(0..12) {
            0 | 1 => self.cut_power(&[1, 2, 3]),
            2 => self.cut_power(&[broker, broker % BROKERS + 1]),
            3 | 4 => {
                let off_ms = self.ms(20, 2000);
                self.power_off(sim, broker, off_ms);
            }
            5..=8 => self.kill(broker),
            _ => {
                self.note("stop", broker);
                // It ends by itself, and is started again then.
                self.change(broker, |start| start.stop = true);
            }
        }
    }

    /// Several machines lose their power at once, under load.
    fn cut_power(&mut self, brokers: &[u32]) {
        let slow = self.rng.random_bool(0.5).then(|| Duration::from_millis(self.ms(20, 200)));
        self.cut_power_of(brokers, slow);
    }

    /// The same. Disks that have become slow before have more to lose: there is more time between a write and its sync.
    fn cut_power_of(&mut self, brokers: &[u32], slow: Option<Duration>) {
        if brokers.iter().any(|broker| self.is_between_lives(*broker)) {
            return;
        }
        let kind = if brokers.len() == BROKERS as usize { "black-out" } else { "power cut of two" };
        self.note(kind, format_args!("{brokers:?}, {slow:?} a sync"));
        let after = if slow.is_some() { self.ms(30, 400) } else { 0 };
        for broker in brokers {
            let off_ms = self.ms(5, 300);
            self.plan(after, Later::Cut(*broker, off_ms));
            if let Some(pace) = slow {
                self.disk(*broker).slow_syncs("", pace);
                let mended = after + self.ms(300, 1500);
                self.plan(mended, Later::Mend(*broker));
            }
        }
    }

    fn strike_network(&mut self, sim: &mut Sim<'_>, broker: u32, other: u32) {
        match self.rng.random_range(0..5) {
            0 => self.partition(sim, &[(broker, other)]),
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

    fn strike_disk(&mut self, broker: u32) {
        match self.rng.random_range(0..13) {
            8..=10 => {
                let fault = draw_failed_call(&mut self.rng);
                self.fail(broker, fault);
            }
            7 => {
                let pace = Duration::from_millis(self.ms(5, 80));
                self.note("slow disk", format_args!("{broker}, {pace:?} a sync"));
                self.disk(broker).slow_syncs("", pace);
                let after = self.ms(500, 2500);
                self.plan(after, Later::Mend(broker));
            }
            0 => {
                self.note("stall", broker);
                self.disk(broker).slow_syncs("", STALL);
                let after = self.ms(500, 2500);
                self.plan(after, Later::Mend(broker));
            }
            1 => self.fail_soon(broker, OpKind::Sync, ""),
            2 => self.fail_soon(broker, OpKind::Write, ".segment"),
            3 => self.fail_soon(broker, OpKind::Read, ".segment"),
            4 => {
                let (disk, room) = (self.disk(broker), self.ms(0, 400 << 10));
                self.note("full disk", format_args!("{broker}, {room} bytes left"));
                disk.set_capacity(Some(disk.used_bytes() + room));
                self.change(broker, |start| start.disk_fills = true);
                let after = self.ms(500, 2500);
                self.plan(after, Later::Mend(broker));
            }
            5 | 6 => self.rot(),
            11 => self.lose_folder(),
            _ => self.wipe(self.victim),
        }
    }

    /// What a broken variant needs most.
    fn strike_with(&mut self, focus: Focus, sim: &mut Sim<'_>) {
        match focus {
            Focus::Nothing => {}
            Focus::BlackOuts => self.cut_power_of(&[1, 2, 3], Some(SLOW)),
            Focus::Isolation => {
                let leader = self.world.ledger.leader_of(self.rng.random_range(1..4)).unwrap_or(1);
                self.isolate(sim, leader);
            }
            Focus::Rot => self.rot(),
        }
    }

    fn isolate(&mut self, sim: &mut Sim<'_>, broker: u32) {
        let links: Vec<_> = (1..=BROKERS).filter(|other| *other != broker).map(|other| (broker, other)).collect();
        self.partition(sim, &links);
    }

    fn partition(&mut self, sim: &mut Sim<'_>, links: &[(u32, u32)]) {
        self.note("partition", format_args!("{links:?}"));
        let after = self.ms(1300, 3000);
        for (one, other) in links {
            sim.partition(host(*one), host(*other));
            self.plan(after, Later::Repair(*one, *other));
        }
    }

    fn fail_soon(&mut self, broker: u32, kind: OpKind, path_contains: &str) {
        let (skip, path_contains) = (self.ms(0, 4), path_contains.to_owned());
        self.fail(broker, Fault { kind, path_contains, skip, errno: EIO, loses_data: kind == OpKind::Sync });
    }

    /// It counts once it strikes.
    fn fail(&mut self, broker: u32, fault: Fault) {
        self.world.trace.note("fault", format_args!("of {broker}'s disk to come: {fault:?}"));
        self.disk(broker).inject(fault);
    }

    /// Counts the calls that a disk has refused.
    fn count_failed(&mut self, broker: u32) {
        for (kind, path) in self.disk(broker).take_struck() {
            self.note(failed(kind), format_args!("{broker} {}", path.display()));
        }
    }

    /// Flips a bit of one of the victim's files, while a process has it or not, or takes a part of it away, while none has. Not of
    /// its journal: rot of the last round cannot be told from a write that a power cut has torn.
    fn rot(&mut self) {
        let victim = self.victim;
        if self.is_between_lives(victim) {
            return;
        }
        let cut = self.rng.random_bool(0.3);
        if cut || self.rng.random_bool(0.5) {
            self.kill(victim);
        }
        let disk = self.disk(victim);
        let files = files_of_logs(&disk);
        if files.is_empty() {
            return;
        }
        self.change(victim, |start| start.rots = true);
        let (path, bytes) = files[self.rng.random_range(0..files.len())].clone();
        let (position, bit) = (self.rng.random_range(0..bytes), self.rng.random_range(0..8));
        if cut {
            self.note("cut file", format_args!("{victim} {} at {position}", path.display()));
            disk.truncate(&path, position);
        } else {
            self.note("flipped bit", format_args!("{victim} {} at {position}", path.display()));
            disk.flip_bit(&path, position, bit);
        }
    }

    /// The folder of one of the victim's replicas is gone, while no process has it.
    fn lose_folder(&mut self) {
        let victim = self.victim;
        if self.is_between_lives(victim) {
            return;
        }
        self.kill(victim);
        let disk = self.disk(victim);
        let folders = folders_of_logs(&disk);
        if folders.is_empty() {
            return;
        }
        let folder = &folders[self.rng.random_range(0..folders.len())];
        self.note("lost folder", format_args!("{victim} {}", folder.display()));
        disk.remove_tree(folder);
        self.change(victim, |start| start.rots = true);
    }

    /// The broker gets an empty disk in place of what it had.
    fn wipe(&mut self, broker: u32) {
        if self.is_between_lives(broker) {
            return;
        }
        self.kill(broker);
        self.count_failed(broker);
        self.note("lost disk", broker);
        let disk = new_disk(self.rng.random_range(0..u64::MAX));
        self.change(broker, |start| {
            start.disk = disk;
            start.tables = Arc::default();
            start.rots = true;
        });
    }

    fn end(&mut self, sim: &mut Sim<'_>, later: Later) {
        self.world.trace.note("fault", format_args!("{later:?}"));
        match later {
            Later::Repair(one, two) => sim.repair(host(one), host(two)),
            Later::Release(one, two) => sim.release(host(one), host(two)),
            Later::Quicken(one, two) => sim.set_link_max_message_latency(host(one), host(two), LATENCY),
            Later::Cut(broker, _) if self.is_between_lives(broker) => {}
            Later::Cut(broker, off_ms) => self.power_off(sim, broker, off_ms),
            Later::Bury(broker) => sim.crash(host(broker)),
            Later::Boot(broker) => sim.bounce(host(broker)),
            Later::Mend(broker) => {
                self.disk(broker).slow_syncs("", SYNC);
                self.disk(broker).set_capacity(None);
            }
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
        let tables_go = self.rng.random_bool(0.5);
        self.next_life(broker, |start| {
            start.disk = start.disk.crash();
            start.after = Duration::ZERO;
            if tables_go {
                start.tables = Arc::default();
            }
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
            Later::Repair(one, two) | Later::Release(one, two) | Later::Quicken(one, two) => {
                [one, two].contains(&&broker)
            }
            Later::Cut(off, _) | Later::Bury(off) | Later::Boot(off) | Later::Mend(off) => *off == broker,
        })
    }

    /// A wire is not mended while the machine at one of its ends is off: when the last of them will be back.
    fn off_until(&self, later: Later) -> Option<u64> {
        let (Later::Repair(one, two) | Later::Release(one, two)) = later else { return None };
        let boots =
            self.later.iter().filter(|(_, later)| matches!(later, Later::Boot(off) if [one, two].contains(off)));
        boots.map(|((due_ms, _), _)| *due_ms).max().filter(|back_ms| *back_ms > self.world.trace.now_ms())
    }

    fn disk(&self, broker: u32) -> SimDisk {
        self.world.start_of(broker).disk
    }

    fn change(&self, broker: u32, change: impl FnOnce(&mut Start)) {
        change(self.world.starts.lock().get_mut(&broker).expect("a broker"));
        self.world.changed.notify_waiters();
    }

    fn next_life(&self, broker: u32, change: impl FnOnce(&mut Start)) {
        let mended = !self.later.values().any(|later| matches!(later, Later::Mend(of) if *of == broker));
        self.change(broker, |start| {
            start.disk_fills &= !mended;
            start.life += 1;
            start.stop = false;
            change(start);
        });
    }
}

/// A disk with its usual pace.
pub(crate) fn new_disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.slow_syncs("", SYNC);
    disk
}

/// What stands in a folder. The simulated disk answers at once.
fn list(disk: &SimDisk, path: &Path) -> Vec<DirEntry> {
    disk.read_dir(path).now_or_never().and_then(Result::ok).unwrap_or_default()
}

/// Every replica's folder. Not what is left of one that was deleted or set aside: nobody would miss it.
fn folders_of_logs(disk: &SimDisk) -> Vec<PathBuf> {
    let groups = Path::new("/data/groups");
    let is_replica = |folder: &DirEntry| folder.name.starts_with(|first: char| first.is_ascii_digit());
    list(disk, groups).into_iter().filter(is_replica).map(|folder| groups.join(folder.name)).collect()
}

/// Every segment, index, base and snapshot that holds something.
fn files_of_logs(disk: &SimDisk) -> Vec<(PathBuf, u64)> {
    let files_of = |folder: PathBuf| {
        list(disk, &folder).into_iter().map(move |file| (folder.join(&file.name), file.bytes)).collect::<Vec<_>>()
    };
    let files = folders_of_logs(disk).into_iter().flat_map(files_of);
    files.filter(|(path, bytes)| *bytes > 0 && path.extension().is_none_or(|kind| kind != "tmp")).collect()
}

#[cfg(test)]
mod tests {
    use pontoon_raft::disk::OpenMode;

    use super::*;

    #[test]
    fn what_is_deleted_or_set_aside_does_not_rot() {
        let disk = SimDisk::new(0);
        for folder in ["1-7", "deleted-1-5", "quarantined-1-3"] {
            let folder = Path::new("/data/groups").join(folder);
            disk.create_dir_all(&folder).now_or_never().unwrap().unwrap();
            let file = disk.open(&folder.join("snapshot-1"), OpenMode::CreateNew).now_or_never().unwrap().unwrap();
            file.write_at(0, vec!["something".into()]).now_or_never().unwrap().unwrap();
        }
        assert_eq!(folders_of_logs(&disk), [Path::new("/data/groups/1-7")]);
        assert_eq!(files_of_logs(&disk), [("/data/groups/1-7/snapshot-1".into(), 9)]);
    }
}
