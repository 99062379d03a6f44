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

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::{DirEntry, Disk, DiskFile, OpenMode};

mod model;
#[cfg(test)]
mod tests;

use model::{DirState, FileState, Loss, Node, NodeId, ROOT, Tree};

/// The operating system's number for an input/output error.
pub const EIO: i32 = 5;
/// The operating system's number for a full disk.
pub const ENOSPC: i32 = 28;

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
    slow_syncs: Vec<(String, Duration)>,
    capacity: Option<u64>,
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
            slow_syncs: Vec::new(),
            capacity: None,
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

    /// Faults that have not struck yet.
    pub fn faults_left(&self) -> usize {
        self.hardware.lock().faults.len()
    }

    /// How many bytes all files may take together; `None`: any number. Writes and allocations beyond are ENOSPC.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.hardware.lock().capacity = bytes;
    }

    /// Bytes that all files take.
    pub fn used_bytes(&self) -> u64 {
        self.hardware.lock().tree.room()
    }

    /// Every sync of a path that contains this takes so long (tokio's time). The last rule that matches holds.
    pub fn slow_syncs(&self, path_contains: &str, delay: Duration) {
        self.hardware.lock().slow_syncs.push((path_contains.to_owned(), delay));
    }

    /// While true, [`DiskFile::try_read_at`] always answers `WouldBlock`.
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
        self.strike(kind, path)
    }

    fn strike(&mut self, kind: OpKind, path: &Path) -> Result<(), Struck> {
        let path = path.to_string_lossy();
        let mut struck = None;
        self.faults.retain_mut(|fault| {
            if fault.kind != kind || !path.contains(&fault.path_contains) {
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
        struck.map_or(Ok(()), Err)
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
                Err(io::Error::from_raw_os_error(ENOSPC))
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

impl Disk for SimDisk {
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> BoxFuture<'a, io::Result<Arc<dyn DiskFile>>> {
        Box::pin(async move {
            let kind = if mode == OpenMode::CreateNew { OpKind::Create } else { OpKind::Open };
            let mut hardware = self.begin(kind, path)?;
            let place = hardware.place(path)?;
            let id = match (hardware.entry(&place), mode) {
                (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
                (Some(id), _) => id,
                (None, OpenMode::CreateNew) => {
                    hardware.tree.create(place.0, &place.1, Node::File(FileState::default()))
                }
                (None, _) => return Err(io::ErrorKind::NotFound.into()),
            };
            if matches!(hardware.tree.node(id), Some(Node::Dir(_))) {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            *hardware.open.entry(id).or_default() += 1;
            let writable = mode != OpenMode::Read;
            Ok(Arc::new(SimFile { disk: self.clone(), id, path: path.to_owned(), writable }) as Arc<dyn DiskFile>)
        })
    }

    fn create_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let mut above: Vec<&Path> = path.ancestors().filter(|p| p.file_name().is_some()).collect();
            above.reverse();
            for dir in above {
                let found = self.hardware.lock().lookup(dir);
                match found {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        self.begin(OpKind::CreateDir, dir)?.create_dir(dir)?;
                    }
                    Err(error) => return Err(error),
                    Ok(_) => {}
                }
            }
            let hardware = self.hardware.lock();
            hardware.alive(self.generation)?;
            let id = hardware.lookup(path)?;
            hardware.tree.dir(id).map(|_| ()).ok_or_else(|| io::ErrorKind::AlreadyExists.into())
        })
    }

    fn read_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Vec<DirEntry>>> {
        Box::pin(async move {
            let hardware = self.begin(OpKind::ReadDir, path)?;
            let id = hardware.lookup(path)?;
            let dir = hardware.tree.dir(id).ok_or(io::ErrorKind::NotADirectory)?;
            let describe = |(name, id): (&String, &NodeId)| match hardware.tree.node(*id) {
                Some(Node::File(file)) => DirEntry { name: name.clone(), is_dir: false, bytes: file.len() },
                _ => DirEntry { name: name.clone(), is_dir: true, bytes: 0 },
            };
            Ok(dir.entries.iter().map(describe).collect())
        })
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let mut hardware = self.begin(OpKind::Rename, to)?;
            let (from, to) = (hardware.place(from)?, hardware.place(to)?);
            let node = hardware.entry(&from).ok_or(io::ErrorKind::NotFound)?;
            let is_dir = hardware.tree.dir(node).is_some();
            match hardware.entry(&to) {
                Some(target) if target == node => return Ok(()),
                Some(target) => match (is_dir, hardware.tree.dir(target)) {
                    (false, None) => {}
                    (true, Some(target)) if target.entries.is_empty() => {}
                    (true, Some(_)) => return Err(io::ErrorKind::DirectoryNotEmpty.into()),
                    (true, None) => return Err(io::ErrorKind::NotADirectory.into()),
                    (false, Some(_)) => return Err(io::ErrorKind::IsADirectory.into()),
                },
                None => {}
            }
            hardware.tree.rename(from, to, node);
            Ok(())
        })
    }

    fn remove_file<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move { self.begin(OpKind::Remove, path)?.unlink_file(path) })
    }

    fn remove_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            for entry in self.read_dir(path).await? {
                let inner = path.join(&entry.name);
                // Each removal is an operation of its own: a crash may come in between.
                match entry.is_dir {
                    true => self.remove_dir_all(&inner).await?,
                    false => self.remove_file(&inner).await?,
                }
            }
            let mut hardware = self.begin(OpKind::Remove, path)?;
            let (dir, name) = hardware.place(path)?;
            hardware.tree.unlink(dir, &name);
            Ok(())
        })
    }

    fn sync_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let mut hardware = self.begin(OpKind::SyncDir, path)?;
            let id = hardware.lookup(path)?;
            if hardware.tree.dir(id).is_none() {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            hardware.tree.sync_dir(id);
            hardware.collect();
            Ok(())
        })
    }

    fn available_bytes<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<u64>> {
        Box::pin(async move {
            let hardware = self.hardware.lock();
            hardware.alive(self.generation)?;
            hardware.lookup(path)?;
            // Without a capacity: more than anyone asks for, and safe to add to.
            Ok(hardware.capacity.map_or(1 << 50, |capacity| capacity.saturating_sub(hardware.tree.room())))
        })
    }

    fn lock_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Box<dyn Send + Sync>>> {
        Box::pin(async move {
            let mut hardware = self.begin(OpKind::Lock, path)?;
            let (dir, name) = hardware.place(&path.join("lock"))?;
            if !hardware.locks.insert(path.to_owned()) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            if hardware.entry(&(dir, name.clone())).is_none() {
                hardware.tree.create(dir, &name, Node::File(FileState::default()));
            }
            Ok(Box::new(SimLock { disk: self.clone(), path: path.to_owned() }) as Box<dyn Send + Sync>)
        })
    }
}

struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut hardware = self.disk.hardware.lock();
        if hardware.generation == self.disk.generation {
            hardware.locks.remove(&self.path);
        }
    }
}

struct SimFile {
    disk: SimDisk,
    id: NodeId,
    path: PathBuf,
    writable: bool,
}

impl SimFile {
    fn change<T>(&self, kind: OpKind, call: impl FnOnce(&mut Hardware) -> io::Result<T>) -> io::Result<T> {
        let mut hardware = self.disk.begin(kind, &self.path)?;
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        call(&mut hardware)
    }

    fn read(&self, position: u64, bytes: usize) -> io::Result<Bytes> {
        let mut hardware = self.disk.begin(OpKind::Read, &self.path)?;
        Ok(file(&mut hardware, self.id)?.read(position, bytes).into())
    }

    fn write(&self, position: u64, parts: &[Bytes]) -> io::Result<()> {
        self.change(OpKind::Write, |hardware| {
            let end = position + parts.iter().map(|p| p.len() as u64).sum::<u64>();
            let more = end.saturating_sub(file(hardware, self.id)?.room());
            if more > 0 {
                hardware.make_room(more)?;
            }
            file(hardware, self.id)?.write(position, parts);
            Ok(())
        })
    }
}

/// The file behind an open handle: open files are never collected.
fn file(hardware: &mut Hardware, id: NodeId) -> io::Result<&mut FileState> {
    hardware.tree.file(id).ok_or_else(SimCrash::error)
}

impl DiskFile for SimFile {
    fn read_at(&self, position: u64, bytes: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move { self.read(position, bytes) })
    }

    fn try_read_at(&self, position: u64, bytes: usize) -> io::Result<Bytes> {
        if self.disk.hardware.lock().cold {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.read(position, bytes)
    }

    fn write_at(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.write(position, &parts) })
    }

    fn write_and_sync(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.write(position, &parts)?;
            self.disk.sync_file(self.id, &self.path).await
        })
    }

    fn datasync(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(self.disk.sync_file(self.id, &self.path))
    }

    fn allocate(&self, position: u64, bytes: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.change(OpKind::Allocate, |hardware| {
                let end = position.saturating_add(bytes);
                let more = end.saturating_sub(file(hardware, self.id)?.room());
                hardware.make_room(more)?;
                file(hardware, self.id)?.reserve(end);
                Ok(())
            })
        })
    }

    fn set_len(&self, bytes: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.change(OpKind::SetLen, |hardware| {
                file(hardware, self.id)?.set_len(bytes);
                Ok(())
            })
        })
    }

    fn len(&self) -> BoxFuture<'_, io::Result<u64>> {
        Box::pin(async move {
            let mut hardware = self.disk.begin(OpKind::Read, &self.path)?;
            Ok(file(&mut hardware, self.id)?.len())
        })
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut hardware = self.disk.hardware.lock();
        if hardware.alive(self.disk.generation).is_err() {
            return;
        }
        let Some(count) = hardware.open.get_mut(&self.id) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        hardware.open.remove(&self.id);
        let linked = hardware.lookup(&self.path).is_ok_and(|id| id == self.id);
        let dirty = hardware.tree.file(self.id).is_some_and(|file| file.is_dirty());
        if linked && dirty {
            hardware.dirty_drops.push(self.path.clone());
        }
    }
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimDisk(generation {})", self.generation)
    }
}
