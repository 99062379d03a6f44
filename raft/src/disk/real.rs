//! Real files: every blocking call runs on a thread of this module's own, never on the runtime's.
//!
//! There are three lanes. The *urgent* lane runs [`DiskFile::write_and_sync`] and nothing else, so that a journal round never
//! queues behind a slow segment sync; the *closing* lane closes files: of one that is unlinked that frees its room and what the page
//! cache has of it, tens of milliseconds for a full segment. Everything else takes the *general* lane. A lane's queue has no bound of its own: each
//! caller awaits its call, so it holds at most one job per waiting caller. Dropping a call's future does not cancel it.
//! This module knows nothing of what the files mean.

use std::collections::VecDeque;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::{Condvar, Mutex};
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::{Errno, ReadWriteFlags};
use tokio::sync::oneshot;

use super::{DirEntry, Disk, DiskFile, OpenMode, sync_failed};

/// Threads of the urgent lane: one journal round and, at worst, the Seal it has overtaken.
const URGENT_THREADS: usize = 2;
/// Threads of the general lane: how many syncs and reads may block at a time.
const GENERAL_THREADS: usize = 6;
/// Threads of the closing lane: one, so that a topic's deletion keeps one core busy at most, and no reads and syncs waiting.
const CLOSING_THREADS: usize = 1;
/// Most slices that one system call takes (`IOV_MAX`).
const SLICES_MAX: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

/// The operating system's files.
#[derive(Clone)]
pub struct RealDisk {
    threads: Arc<Threads>,
}

impl RealDisk {
    /// Starts the threads. They end when the disk and all its files are dropped.
    pub fn new() -> io::Result<Self> {
        let threads = Threads { urgent: Lane::default(), general: Lane::default(), closing: Lane::default() };
        threads.urgent.start("pontoon-disk-urgent", URGENT_THREADS)?;
        threads.general.start("pontoon-disk", GENERAL_THREADS)?;
        threads.closing.start("pontoon-disk-close", CLOSING_THREADS)?;
        Ok(Self { threads: Arc::new(threads) })
    }

    /// Runs `call` on the general lane.
    fn run<T, F>(&self, call: F) -> BoxFuture<'_, io::Result<T>>
    where
        T: Send + 'static,
        F: FnOnce() -> io::Result<T> + Send + 'static,
    {
        Box::pin(self.threads.general.run(call))
    }
}

struct Threads {
    urgent: Lane,
    general: Lane,
    closing: Lane,
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.urgent.close();
        self.general.close();
        self.closing.close();
    }
}

#[derive(Clone, Default)]
struct Lane {
    shared: Arc<LaneShared>,
}

#[derive(Default)]
struct LaneShared {
    queue: Mutex<LaneQueue>,
    ready: Condvar,
}

#[derive(Default)]
struct LaneQueue {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Lane {
    fn start(&self, name: &str, count: usize) -> io::Result<()> {
        for number in 0..count {
            let shared = self.shared.clone();
            std::thread::Builder::new().name(format!("{name}-{number}")).spawn(move || shared.work())?;
        }
        Ok(())
    }

    fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.ready.notify_all();
    }

    fn push(&self, job: Job) {
        self.shared.queue.lock().jobs.push_back(job);
        self.shared.ready.notify_one();
    }

    async fn run<T, F>(&self, call: F) -> io::Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> io::Result<T> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        let job = Box::new(move || {
            // The caller may be gone; the call was made all the same.
            let _ = tell.send(call());
        });
        self.push(job);
        told.await.unwrap_or_else(|_| Err(io::Error::other("a disk thread ended in the middle of a call")))
    }
}

impl LaneShared {
    fn work(&self) {
        loop {
            let job = {
                let mut queue = self.queue.lock();
                loop {
                    if let Some(job) = queue.jobs.pop_front() {
                        break job;
                    }
                    if queue.closed {
                        return;
                    }
                    self.ready.wait(&mut queue);
                }
            };
            job();
        }
    }
}

impl Disk for RealDisk {
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> BoxFuture<'a, io::Result<Arc<dyn DiskFile>>> {
        let path = path.to_owned();
        let threads = self.threads.clone();
        self.run(move || {
            let mut options = OpenOptions::new();
            options.read(true).mode(0o600);
            match mode {
                OpenMode::Read => &mut options,
                OpenMode::ReadWrite => options.write(true),
                OpenMode::CreateNew => options.write(true).create_new(true),
            };
            let file = options.open(path)?;
            // A directory opens for reading, too, and would fail later and oddly.
            if file.metadata()?.is_dir() {
                return Err(io::Error::from(io::ErrorKind::IsADirectory));
            }
            let handle = Arc::new(Handle { file: Some(file), threads });
            Ok(Arc::new(RealFile { handle }) as Arc<dyn DiskFile>)
        })
    }

    fn create_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        let path = path.to_owned();
        self.run(move || DirBuilder::new().recursive(true).mode(0o700).create(path))
    }

    fn read_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Vec<DirEntry>>> {
        let path = path.to_owned();
        self.run(move || read_dir(&path))
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.run(move || std::fs::rename(from, to))
    }

    fn remove_file<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        let path = path.to_owned();
        self.run(move || std::fs::remove_file(path))
    }

    fn remove_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        let path = path.to_owned();
        self.run(move || std::fs::remove_dir_all(path))
    }

    fn sync_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        let path = path.to_owned();
        self.run(move || File::open(path)?.sync_all().map_err(sync_failed))
    }

    fn available_bytes<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<u64>> {
        let path = path.to_owned();
        self.run(move || available_bytes(&path))
    }

    fn lock_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Box<dyn Send + Sync>>> {
        let path = path.join("lock");
        self.run(move || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            // flock belongs to the open file: closing it, or dying, lets go of it.
            Ok(Box::new(file) as Box<dyn Send + Sync>)
        })
    }
}

fn read_dir(path: &Path) -> io::Result<Vec<DirEntry>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            // Removed while we were listing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        // Nothing of ours has a name that is not UTF-8; a foreign file is listed under a name that opens nothing.
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_dir = metadata.is_dir();
        entries.push(DirEntry { name, is_dir, bytes: if is_dir { 0 } else { metadata.len() } });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn available_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// An open file, which is closed on the closing lane, whoever lets go of it last.
struct Handle {
    /// There until it is dropped.
    file: Option<File>,
    threads: Arc<Threads>,
}

impl Handle {
    fn file(&self) -> &File {
        self.file.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let file = self.file.take();
        self.threads.closing.push(Box::new(move || drop(file)));
    }
}

struct RealFile {
    handle: Arc<Handle>,
}

impl RealFile {
    fn run<T, F>(&self, call: F) -> BoxFuture<'_, io::Result<T>>
    where
        T: Send + 'static,
        F: FnOnce(&File) -> io::Result<T> + Send + 'static,
    {
        let handle = self.handle.clone();
        Box::pin(self.handle.threads.general.run(move || call(handle.file())))
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, position: u64, bytes: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        self.run(move |file| read_at(file, position, bytes))
    }

    fn try_read_at(&self, position: u64, bytes: usize) -> io::Result<Bytes> {
        let mut buffer = vec![0; clamp_to_file(self.handle.file(), position, bytes)?];
        let mut have = 0;
        while have < buffer.len() {
            let mut slices = [IoSliceMut::new(&mut buffer[have..])];
            match rustix::io::preadv2(self.handle.file(), &mut slices, position + have as u64, ReadWriteFlags::NOWAIT) {
                Ok(0) => break,
                Ok(read) => have += read,
                Err(Errno::INTR) => {}
                // A file system without RWF_NOWAIT: the caller takes the blocking way, always.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Err(io::ErrorKind::WouldBlock.into()),
                Err(error) => return Err(error.into()),
            }
        }
        buffer.truncate(have);
        Ok(buffer.into())
    }

    fn write_at(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        self.run(move |file| write_all_at(file, position, &parts))
    }

    fn write_and_sync(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        let handle = self.handle.clone();
        Box::pin(self.handle.threads.urgent.run(move || {
            write_all_at(handle.file(), position, &parts)?;
            handle.file().sync_data()
        }))
    }

    fn datasync(&self) -> BoxFuture<'_, io::Result<()>> {
        self.run(File::sync_data)
    }

    fn allocate(&self, position: u64, bytes: u64) -> BoxFuture<'_, io::Result<()>> {
        self.run(move |file| allocate(file, position, bytes))
    }

    fn set_len(&self, bytes: u64) -> BoxFuture<'_, io::Result<()>> {
        self.run(move |file| file.set_len(bytes))
    }

    fn len(&self) -> BoxFuture<'_, io::Result<u64>> {
        self.run(|file| Ok(file.metadata()?.len()))
    }
}

/// How many of `bytes` the file has from `position` on: memory is asked for what is there, not for what was claimed.
fn clamp_to_file(file: &File, position: u64, bytes: usize) -> io::Result<usize> {
    let rest = file.metadata()?.len().saturating_sub(position);
    Ok(usize::try_from(rest).unwrap_or(usize::MAX).min(bytes))
}

fn read_at(file: &File, position: u64, bytes: usize) -> io::Result<Bytes> {
    let mut buffer = vec![0; clamp_to_file(file, position, bytes)?];
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], position + have as u64) {
            Ok(0) => break,
            Ok(read) => have += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(have);
    Ok(buffer.into())
}

fn write_all_at(file: &File, mut position: u64, parts: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().filter(|p| !p.is_empty()).map(|p| IoSlice::new(p)).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let count = rest.len().min(SLICES_MAX);
        match rustix::io::pwritev(file, &rest[..count], position) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                position += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn allocate(file: &File, position: u64, bytes: u64) -> io::Result<()> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, position, bytes) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            // A file system that cannot reserve: the best that can be said is whether there is room now.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return room_now(file, bytes),
            Err(error) => return Err(error.into()),
        }
    }
}

fn room_now(file: &File, bytes: u64) -> io::Result<()> {
    let stat = rustix::fs::fstatvfs(file)?;
    match stat.f_bavail.saturating_mul(stat.f_frsize) {
        available if available < bytes => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    }
}

impl std::fmt::Debug for RealDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RealDisk")
    }
}

#[cfg(test)]
impl RealDisk {
    /// Occupies the closing thread until the sender is dropped.
    pub(super) fn block_closing_lane(&self, until_dropped: std::sync::mpsc::Receiver<()>) {
        self.threads.closing.push(Box::new(move || {
            let _ = until_dropped.recv();
        }));
    }

    /// Occupies a general thread until the sender is dropped.
    pub(super) fn block_general_lane(
        &self,
        until_dropped: Arc<Mutex<std::sync::mpsc::Receiver<()>>>,
    ) -> impl Future<Output = ()> + use<> {
        let disk = self.clone();
        async move {
            let wait = move || {
                let _ = until_dropped.lock().recv();
                Ok(())
            };
            disk.run(wait).await.unwrap();
        }
    }
}
