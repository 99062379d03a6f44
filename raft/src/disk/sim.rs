//! Simulated files, in memory, with an explicit model of what survives a power cut (see [`model`]).
//!
//! [`SimDisk::crash`] cuts the power: what was not synced is kept, lost or torn, piece by piece, as the seed says.
//! [`SimDisk::kill`] ends the process only: the page cache survives. Both return the disk as the next process finds it and make
//! every handle of the old one fail. Faults are injected by the n-th operation or by path; every operation that changes
//! something is counted, so that a test can crash at each. One seed gives one behaviour under one thread.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rand::SeedableRng;
use rand::rngs::SmallRng;

mod files;
mod model;
#[cfg(test)]
mod tests;

use model::{DirState, FileState, Loss, Node, NodeId, ROOT, Tree};

/// The operating system's number for an input/output error.
pub const EIO: i32 = 5;
/// The operating system's number for too many open files.
pub const EMFILE: i32 = 24;
/// The operating system's number for a file system's checksum that is wrong.
pub const EBADMSG: i32 = 74;
/// The operating system's number for a file system's structure that is wrong.
pub const EUCLEAN: i32 = 117;
/// The operating system's number for a full disk.
pub const ENOSPC: i32 = 28;
/// The operating system's number for a quota that is used up.
pub const EDQUOT: i32 = 122;

/// The kinds of operations, for faults and traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // They are Disk's and DiskFile's methods.
pub enum OpKind {
    Open,
    Create,
    CreateDir,
    ReadDir,
    Rename,
    Remove,
    SyncDir,
    Lock,
    Read,
    Write,
    Sync,
    Allocate,
    SetLen,
}

impl OpKind {
    /// Whether it can change what a crash leaves. Only these are counted.
    fn changes_state(self) -> bool {
        !matches!(self, Self::Open | Self::ReadDir | Self::Lock | Self::Read)
    }

    /// Whether it takes a file descriptor of its own.
    fn opens(self) -> bool {
        matches!(self, Self::Open | Self::Create | Self::ReadDir | Self::SyncDir | Self::Lock)
    }
}

/// One operation that changed something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceEntry {
    /// Its number, from 0.
    pub op: u64,
    /// What it was.
    pub kind: OpKind,
    /// The file or directory.
    pub path: PathBuf,
}

/// The error of every operation at and after a simulated crash, inside an [`io::Error`] of kind `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the simulated machine has crashed")]
pub struct SimCrash;

impl SimCrash {
    /// Whether an error is this one.
    pub fn caused(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }

    fn error() -> io::Error {
        io::Error::other(Self)
    }
}

/// A fault to inject.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What fails.
    pub kind: OpKind,
    /// Only on paths that contain this.
    pub path_contains: String,
    /// How many matching operations succeed first.
    pub skip: u64,
    /// The operating system's error number.
    pub errno: i32,
    /// For [`OpKind::Sync`]: the data that it should have made durable is silently gone, and the next sync succeeds.
    pub loses_data: bool,
}

#[derive(Clone)]
struct Hardware {
    tree: Tree,
    rng: SmallRng,
    /// Rises at each crash or kill; handles of older generations fail.
    generation: u64,
    ops: u64,
    crash_at: Option<u64>,
    crashed: bool,
    faults: Vec<Fault>,
    struck: Vec<(OpKind, PathBuf)>,
    /// A fault has struck this process.
    has_struck: bool,
    slow_syncs: Vec<(String, Duration)>,
    capacity: Option<u64>,
    /// The capacity is a quota's.
    quota: bool,
    out_of_files: bool,
    /// Open handles per file of this generation.
    open: BTreeMap<NodeId, u64>,
    locks: BTreeSet<PathBuf>,
    trace: Option<VecDeque<TraceEntry>>,
    dirty_drops: Vec<PathBuf>,
    cold: bool,
}

/// A simulated disk, as one process sees it. Clones are the same disk and the same process.
#[derive(Clone)]
pub struct SimDisk {
    hardware: Arc<Mutex<Hardware>>,
    generation: u64,
}

impl SimDisk {
    /// An empty disk. `seed` decides what crashes leave.
    pub fn new(seed: u64) -> Self {
        let hardware = Hardware {
            tree: Tree::new(),
            rng: SmallRng::seed_from_u64(seed),
            generation: 0,
            ops: 0,
            crash_at: None,
            crashed: false,
            faults: Vec::new(),
            struck: Vec::new(),
            has_struck: false,
            slow_syncs: Vec::new(),
            capacity: None,
            quota: false,
            out_of_files: false,
            open: BTreeMap::new(),
            locks: BTreeSet::new(),
            trace: None,
            dirty_drops: Vec::new(),
            cold: false,
        };
        Self { hardware: Arc::new(Mutex::new(hardware)), generation: 0 }
    }

    /// Cuts the power. Returns the disk as the next process finds it; all older handles fail from now on.
    pub fn crash(&self) -> Self {
        let seed = model::draw_seed(&mut self.hardware.lock().rng);
        self.crash_with(seed)
    }

    /// [`Self::crash`], with a seed of its own for what is kept, lost and torn.
    pub fn crash_with(&self, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let loss = Loss::draw(&mut rng);
        self.hardware.lock().tree.crash(loss, &mut rng);
        self.restart()
    }

    /// Ends the process; what it wrote stays in the page cache, unsynced as it was.
    pub fn kill(&self) -> Self {
        self.restart()
    }

    fn restart(&self) -> Self {
        let mut hardware = self.hardware.lock();
        hardware.generation += 1;
        hardware.crashed = false;
        hardware.crash_at = None;
        hardware.has_struck = false;
        hardware.open.clear();
        hardware.locks.clear();
        hardware.tree.collect(&BTreeSet::new());
        Self { hardware: self.hardware.clone(), generation: hardware.generation }
    }

    /// A second disk in the same state, independent from now on: to try several crashes after one run.
    pub fn fork(&self) -> Self {
        let hardware = self.hardware.lock().clone();
        Self { hardware: Arc::new(Mutex::new(hardware)), generation: self.generation }
    }

    /// From operation number `op` on (counted from 0, see [`Self::ops`]) every operation fails with [`SimCrash`], until
    /// [`Self::crash`] or [`Self::kill`].
    pub fn crash_at_op(&self, op: u64) {
        self.hardware.lock().crash_at = Some(op);
    }

    /// Whether the operation named by [`Self::crash_at_op`] was reached.
    pub fn has_crashed(&self) -> bool {
        self.hardware.lock().crashed
    }

    /// How many operations changed something so far.
    pub fn ops(&self) -> u64 {
        self.hardware.lock().ops
    }

    /// Records every operation that changes something, from now on, until [`Self::take_trace`].
    pub fn record_trace(&self) {
        self.hardware.lock().trace = Some(VecDeque::new());
    }

    /// What was recorded. Ends the recording.
    pub fn take_trace(&self) -> Vec<TraceEntry> {
        self.hardware.lock().trace.take().unwrap_or_default().into()
    }

    /// Injects a fault, once.
    pub fn inject(&self, fault: Fault) {
        self.hardware.lock().faults.push(fault);
    }

    /// The next sync of a path that contains this fails with EIO.
    pub fn fail_next_sync(&self, path_contains: &str, loses_data: bool) {
        let path_contains = path_contains.to_owned();
        self.inject(Fault { kind: OpKind::Sync, path_contains, skip: 0, errno: EIO, loses_data });
    }

    /// Takes back all faults that have not struck yet.
    pub fn forgive(&self) {
        self.hardware.lock().faults.clear();
    }

    /// Faults that have not struck yet.
    pub fn faults_left(&self) -> usize {
        self.hardware.lock().faults.len()
    }

    /// Which operations failed by a fault, on what, since this was last asked.
    pub fn take_struck(&self) -> Vec<(OpKind, PathBuf)> {
        std::mem::take(&mut self.hardware.lock().struck)
    }

    /// Whether an operation has failed by a fault since the last crash or kill. One that is still to come is none.
    pub fn has_struck(&self) -> bool {
        self.hardware.lock().has_struck
    }

    /// How many bytes all files may take together; `None`: any number. Writes and allocations beyond are ENOSPC.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.hardware.lock().capacity = bytes;
    }

    /// The bound that [`Self::set_capacity`] has set.
    pub fn capacity(&self) -> Option<u64> {
        self.hardware.lock().capacity
    }

    /// While true, [`Self::set_capacity`] is a quota: EDQUOT, and the file system says that it has room.
    pub fn set_quota(&self, quota: bool) {
        self.hardware.lock().quota = quota;
    }

    /// While true, nothing can be opened: EMFILE. What is open stays open.
    pub fn set_out_of_files(&self, out: bool) {
        self.hardware.lock().out_of_files = out;
    }

    /// Bytes that all files take.
    pub fn used_bytes(&self) -> u64 {
        self.hardware.lock().tree.room()
    }

    /// Every sync of a path (a file's or a directory's) that contains this takes so long (tokio's time). The last rule that matches holds.
    pub fn slow_syncs(&self, path_contains: &str, delay: Duration) {
        self.hardware.lock().slow_syncs.push((path_contains.to_owned(), delay));
    }

    /// While true, [`DiskFile::try_read_at`] always answers `WouldBlock`, and other reads take a while (tokio's time).
    pub fn set_cold(&self, cold: bool) {
        self.hardware.lock().cold = cold;
    }

    /// Flips a bit on the platter. Panics if there is no such file.
    pub fn flip_bit(&self, path: &Path, position: u64, bit: u8) {
        self.with_file(path, |file| file.flip_bit(position, bit));
    }

    /// Cuts a file on the platter. Panics if there is no such file.
    pub fn truncate(&self, path: &Path, bytes: u64) {
        self.with_file(path, |file| {
            file.set_len(bytes);
            file.sync(u64::MAX, false);
        });
    }

    /// Takes a folder off the platter, with all that is in it. Panics if there is none.
    pub fn remove_tree(&self, path: &Path) {
        let mut hardware = self.hardware.lock();
        let place = hardware.place(path).ok().filter(|place| hardware.entry(place).is_some());
        let (dir, name) = place.unwrap_or_else(|| panic!("{} is not there", path.display()));
        hardware.tree.lose(dir, &name);
        hardware.collect();
    }

    fn with_file(&self, path: &Path, change: impl FnOnce(&mut FileState)) {
        let mut hardware = self.hardware.lock();
        let id = hardware.lookup(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        match hardware.tree.file(id) {
            Some(file) => change(file),
            None => panic!("{} is a directory", path.display()),
        }
    }

    /// Files whose last handle was dropped while they had unsynced writes, against RULES.md J15. Killed processes do not count.
    pub fn dirty_drops(&self) -> Vec<PathBuf> {
        self.hardware.lock().dirty_drops.clone()
    }

    /// Begins an operation: the process lives, the machine has not crashed, no fault strikes.
    fn begin(&self, kind: OpKind, path: &Path) -> io::Result<MutexGuard<'_, Hardware>> {
        let mut hardware = self.hardware.lock();
        hardware.begin(self.generation, kind, path).map_err(|struck| struck.error)?;
        Ok(hardware)
    }

    async fn sync_file(&self, id: NodeId, path: &Path) -> io::Result<()> {
        let (until, delay, struck) = {
            let mut hardware = self.hardware.lock();
            let struck = hardware.begin(self.generation, OpKind::Sync, path).err();
            let until = hardware.tree.file(id).map_or(0, |file| file.writes());
            (until, hardware.sync_delay(path), struck)
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut hardware = self.hardware.lock();
        let lost = match struck {
            Some(Struck { error, loses_data: false }) => return Err(error),
            Some(Struck { error, loses_data: true }) => Some(error),
            None => None,
        };
        hardware.alive(self.generation)?;
        if let Some(file) = hardware.tree.file(id) {
            file.sync(until, lost.is_some());
        }
        lost.map_or(Ok(()), Err)
    }
}

/// A fault that struck.
struct Struck {
    error: io::Error,
    loses_data: bool,
}

impl From<io::Error> for Struck {
    fn from(error: io::Error) -> Self {
        Self { error, loses_data: false }
    }
}

impl Hardware {
    fn alive(&self, generation: u64) -> io::Result<()> {
        if self.crashed || self.generation != generation { Err(SimCrash::error()) } else { Ok(()) }
    }

    fn begin(&mut self, generation: u64, kind: OpKind, path: &Path) -> Result<(), Struck> {
        self.alive(generation)?;
        if kind.changes_state() {
            if self.crash_at.is_some_and(|at| self.ops >= at) {
                self.crashed = true;
                return Err(SimCrash::error().into());
            }
            if let Some(trace) = &mut self.trace {
                trace.push_back(TraceEntry { op: self.ops, kind, path: path.to_owned() });
            }
            self.ops += 1;
        }
        if self.out_of_files && kind.opens() {
            return Err(io::Error::from_raw_os_error(EMFILE).into());
        }
        self.strike(kind, path)
    }

    fn strike(&mut self, kind: OpKind, path: &Path) -> Result<(), Struck> {
        let name = path.to_string_lossy();
        let mut struck = None;
        self.faults.retain_mut(|fault| {
            if fault.kind != kind || !name.contains(&fault.path_contains) {
                return true;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                return true;
            }
            let error = io::Error::from_raw_os_error(fault.errno);
            struck = Some(Struck { error, loses_data: fault.loses_data });
            false
        });
        let Some(struck) = struck else { return Ok(()) };
        self.struck.push((kind, path.to_owned()));
        self.has_struck = true;
        Err(struck)
    }

    fn sync_delay(&self, path: &Path) -> Duration {
        let path = path.to_string_lossy();
        let rule = self.slow_syncs.iter().rev().find(|(pattern, _)| path.contains(pattern));
        rule.map_or(Duration::ZERO, |(_, delay)| *delay)
    }

    /// Refuses if `bytes` more do not fit.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        match self.capacity {
            Some(capacity) if self.tree.room().saturating_add(bytes) > capacity => {
                Err(io::Error::from_raw_os_error(if self.quota { EDQUOT } else { ENOSPC }))
            }
            _ => Ok(()),
        }
    }

    fn lookup(&self, path: &Path) -> io::Result<NodeId> {
        let mut at = ROOT;
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            let Some(dir) = self.tree.dir(at) else { return Err(io::ErrorKind::NotADirectory.into()) };
            at = *dir.entries.get(&*name.to_string_lossy()).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    /// The directory that holds `path`, and the name in it.
    fn place(&self, path: &Path) -> io::Result<(NodeId, String)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
        let dir = self.lookup(path.parent().unwrap_or(Path::new("/")))?;
        match self.tree.dir(dir) {
            Some(_) => Ok((dir, name)),
            None => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn entry(&self, place: &(NodeId, String)) -> Option<NodeId> {
        self.tree.dir(place.0)?.entries.get(&place.1).copied()
    }

    fn collect(&mut self) {
        let open = self.open.keys().copied().collect();
        self.tree.collect(&open);
    }

    fn unlink_file(&mut self, path: &Path) -> io::Result<()> {
        let place = self.place(path)?;
        match self.entry(&place).and_then(|id| self.tree.node(id)) {
            None => Err(io::ErrorKind::NotFound.into()),
            Some(Node::Dir(_)) => Err(io::ErrorKind::IsADirectory.into()),
            Some(Node::File(_)) => {
                self.tree.unlink(place.0, &place.1);
                Ok(())
            }
        }
    }

    fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.place(path)?;
        self.tree.create(dir, &name, Node::Dir(DirState::default()));
        Ok(())
    }
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimDisk(generation {})", self.generation)
    }
}
