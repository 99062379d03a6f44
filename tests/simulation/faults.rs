//! What the seed does to machines, processes, disks and wires, from outside.
//!
//! Bits rot, and whole disks are lost, on one broker of a run only (`victim`): what a majority has lost nobody can bring back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use pontoon_raft::disk::sim::{OpKind, SimDisk};
use pontoon_raft::disk::{DirEntry, Disk};
use rand::RngExt;
use rand::rngs::SmallRng;
use turmoil::Sim;

use crate::broken::{Focus, Variant};
use crate::cluster::{Start, World};
use crate::machines::{BROKERS, Machines, Processes, new_disk};
use crate::trace::Trace;

/// How long things go wrong.
const CHAOS_MS: std::ops::Range<u64> = 2000..7000;
/// How long a sync takes where power cuts are to have much to lose.
const SLOW: Duration = Duration::from_millis(60);

impl World {
    fn change(&self, broker: u32, change: impl FnOnce(&mut Start)) {
        change(self.starts.lock().get_mut(&broker).expect("a broker"));
        self.changed.notify_waiters();
    }
}

impl Processes for World {
    fn trace(&self) -> &Trace {
        &self.trace
    }

    fn disk(&self, broker: u32) -> SimDisk {
        self.start_of(broker).disk
    }

    fn begin_anew(&self, broker: u32, end: fn(&SimDisk) -> SimDisk, after: Duration) {
        self.change(broker, |start| {
            start.struck_before |= start.disk.has_struck();
            (start.disk, start.after) = (end(&start.disk), after);
            start.disk_fills = start.disk.capacity().is_some();
            start.life += 1;
            start.stop = false;
        });
    }

    fn forget(&self, broker: u32, rng: &mut SmallRng) {
        if rng.random_bool(0.5) {
            self.change(broker, |start| start.tables = Arc::default());
        }
    }
}

/// The one who does it.
pub(crate) struct Faults {
    world: World,
    pub(crate) machines: Machines<World>,
    /// Whose disk may rot.
    victim: u32,
    /// How long things go wrong.
    pub(crate) chaos_ms: u64,
}

impl Faults {
    pub(crate) fn new(world: World, seed: u64) -> Self {
        let mut machines = Machines::new(world.clone(), seed);
        let (victim, chaos_ms) = (machines.rng.random_range(1..=BROKERS), machines.rng.random_range(CHAOS_MS));
        Self { world, machines, victim, chaos_ms }
    }

    /// Before each step: what is due ends, and processes that ended are started again.
    pub(crate) fn step(&mut self, sim: &mut Sim<'_>) {
        self.machines.step(sim);
        let ended = std::mem::take(&mut *self.world.ended.lock());
        for ((broker, life), unreadable) in ended {
            if self.world.is_alive(broker, life) {
                match unreadable && self.world.start_of(broker).rots {
                    // A directory that cannot be opened: the operator gives the broker an empty one.
                    true => self.wipe(broker),
                    false => self.machines.kill(broker),
                }
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
        // Leaders have more to lose.
        let leads = self.world.ledger.leader_of(machines.rng.random_range(0..4));
        let any = machines.rng.random_range(1..=BROKERS);
        let wanted = leads.filter(|_| machines.rng.random_bool(0.5)).unwrap_or(any);
        let focus = self.world.variant.map_or(Focus::Nothing, Variant::focus);
        if focus != Focus::Nothing && !machines.is_busy(wanted) && machines.rng.random_bool(0.7) {
            return self.strike_with(focus, sim);
        }
        let kind = machines.rng.random_range(0..4);
        let struck = match kind {
            0 => machines.in_turn(wanted, |machines, broker| !machines.is_between_lives(broker)),
            // Two faults of a disk, or of a wire, would end each other.
            _ => machines.in_turn(wanted, |machines, broker| !machines.is_busy(broker)),
        };
        let Some(broker) = struck else { return };
        let other = machines.any_but(broker);
        match kind {
            0 => self.strike_machine(sim, broker, other),
            1 => machines.strike_network(sim, broker, other),
            _ => self.strike_disk(broker),
        }
    }

    fn strike_machine(&mut self, sim: &mut Sim<'_>, broker: u32, other: u32) {
        let machines = &mut self.machines;
        match machines.rng.random_range(0..12) {
            0 | 1 => machines.cut_power(&[1, 2, 3]),
            2 => machines.cut_power(&[broker, other]),
            3 | 4 => {
                let off_ms = machines.ms(20, 2000);
                machines.power_off(sim, broker, off_ms);
            }
            5..=8 => machines.kill(broker),
            _ => {
                machines.note("stop", broker);
                // It ends by itself, and is started again then.
                self.world.change(broker, |start| start.stop = true);
            }
        }
    }

    fn strike_disk(&mut self, broker: u32) {
        let machines = &mut self.machines;
        match machines.rng.random_range(0..13) {
            0 => machines.stall(broker),
            1 => machines.fail_soon(broker, OpKind::Sync, ""),
            2 => machines.fail_soon(broker, OpKind::Write, ".segment"),
            3 => machines.fail_soon(broker, OpKind::Read, ".segment"),
            4 => {
                let (disk, room) = (machines.disk(broker), machines.ms(0, 400 << 10));
                machines.note("full disk", format_args!("{broker}, {room} bytes left"));
                disk.set_capacity(Some(disk.used_bytes() + room));
                self.world.change(broker, |start| start.disk_fills = true);
                let after = machines.ms(500, 2500);
                machines.mend_after(broker, after);
            }
            5 | 6 => self.rot(),
            7 => {
                let (pace, after) = (Duration::from_millis(machines.ms(5, 80)), machines.ms(500, 2500));
                machines.note("slow disk", format_args!("{broker}, {pace:?} a sync"));
                machines.slow_down(broker, pace, after);
            }
            8..=10 => machines.fail_a_call(broker),
            11 => self.lose_folder(),
            _ => self.wipe(self.victim),
        }
    }

    /// What a broken variant needs most.
    fn strike_with(&mut self, focus: Focus, sim: &mut Sim<'_>) {
        match focus {
            Focus::Nothing => {}
            Focus::BlackOuts => self.machines.cut_power_of(&[1, 2, 3], Some(SLOW)),
            Focus::Isolation => {
                let leader = self.world.ledger.leader_of(self.machines.rng.random_range(1..4)).unwrap_or(1);
                self.machines.isolate(sim, leader);
            }
            Focus::Rot => self.rot(),
        }
    }

    /// Flips a bit of one of the victim's files, while a process has it or not, or takes a part of it away, while none has. Not of
    /// its journal: rot of the last round cannot be told from a write that a power cut has torn.
    fn rot(&mut self) {
        let (victim, machines) = (self.victim, &mut self.machines);
        if machines.is_between_lives(victim) {
            return;
        }
        let cut = machines.rng.random_bool(0.3);
        if cut || machines.rng.random_bool(0.5) {
            machines.kill(victim);
        }
        let disk = machines.disk(victim);
        let files = files_of_logs(&disk);
        if files.is_empty() {
            return;
        }
        self.world.change(victim, |start| start.rots = true);
        let (path, bytes) = files[machines.rng.random_range(0..files.len())].clone();
        let (position, bit) = (machines.rng.random_range(0..bytes), machines.rng.random_range(0..8));
        if cut {
            machines.note("cut file", format_args!("{victim} {} at {position}", path.display()));
            disk.truncate(&path, position);
        } else {
            machines.note("flipped bit", format_args!("{victim} {} at {position}", path.display()));
            disk.flip_bit(&path, position, bit);
        }
    }

    /// The folder of one of the victim's replicas is gone, while no process has it.
    fn lose_folder(&mut self) {
        let (victim, machines) = (self.victim, &mut self.machines);
        if machines.is_between_lives(victim) {
            return;
        }
        machines.kill(victim);
        let disk = machines.disk(victim);
        let folders = folders_of_logs(&disk);
        if folders.is_empty() {
            return;
        }
        let folder = &folders[machines.rng.random_range(0..folders.len())];
        machines.note("lost folder", format_args!("{victim} {}", folder.display()));
        disk.remove_tree(folder);
        self.world.change(victim, |start| start.rots = true);
    }

    /// The broker gets an empty disk in place of what it had.
    fn wipe(&mut self, broker: u32) {
        let machines = &mut self.machines;
        if machines.is_between_lives(broker) {
            return;
        }
        machines.kill(broker);
        machines.count_failed(broker);
        machines.note("lost disk", broker);
        let disk = new_disk(machines.rng.random_range(0..u64::MAX));
        self.world.change(broker, |start| {
            start.disk = disk;
            start.tables = Arc::default();
            start.rots = true;
        });
    }
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
