//! The simulated disk, with every operation in the trace; and one that lies about the journal's syncs.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use pontoon_raft::disk::sim::{EIO, ENOSPC, Fault, OpKind, SimDisk};
use pontoon_raft::disk::{DirEntry, Disk, DiskFile, OpenMode};
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::trace::{Extent, Trace};

/// Calls of a disk that may be refused besides reads, writes of segments and syncs of files; and on what paths.
const CALLS: [(OpKind, &[&str]); 7] = [
    (OpKind::SyncDir, &["", "/journal", "/groups", "/groups/"]),
    (OpKind::Rename, &["", "/journal/", "/checkpoint", "/groups/"]),
    (OpKind::Create, &["", "/journal/", "/checkpoint", ".segment", ".index", ".base"]),
    (OpKind::Write, &["", "/journal/", "/checkpoint", "/groups/", ".index", ".base"]),
    (OpKind::Allocate, &["", "/journal/", ".segment"]),
    (OpKind::Remove, &["", "/groups/"]),
    (OpKind::SetLen, &[""]),
];

/// Draws a call that is to fail once.
pub(crate) fn draw_failed_call(rng: &mut SmallRng) -> Fault {
    let (kind, paths) = CALLS[rng.random_range(0..CALLS.len())];
    let path_contains = paths[rng.random_range(0..paths.len())].to_owned();
    let skip = if rng.random_bool(0.5) { 0 } else { rng.random_range(0..4) };
    let errno = if rng.random_bool(0.7) { EIO } else { ENOSPC };
    Fault { kind, path_contains, skip, errno, loses_data: false }
}

/// What a call that failed is called.
pub(crate) fn failed(kind: OpKind) -> &'static str {
    match kind {
        OpKind::Open => "failed open",
        OpKind::Create => "failed creation",
        OpKind::CreateDir => "failed creation of a folder",
        OpKind::ReadDir => "failed listing",
        OpKind::Rename => "failed rename",
        OpKind::Remove => "failed removal",
        OpKind::SyncDir => "failed sync of a folder",
        OpKind::Lock => "failed lock",
        OpKind::Read => "failed read",
        OpKind::Write => "failed write",
        OpKind::Sync => "failed sync",
        OpKind::Allocate => "failed allocation",
        OpKind::SetLen => "failed change of length",
    }
}

/// A process's view of its disk.
#[derive(Clone)]
pub(crate) struct TracedDisk {
    pub(crate) disk: SimDisk,
    pub(crate) trace: Trace,
    pub(crate) who: Arc<str>,
    /// The journal's rounds are written, but not synced as is said.
    pub(crate) lies: bool,
}

impl TracedDisk {
    fn note<T>(&self, op: &str, path: &Path, more: impl Display, result: io::Result<T>) -> io::Result<T> {
        match &result {
            Ok(_) => self.trace.note(&self.who, format_args!("disk {op} {}{more}", path.display())),
            Err(error) => self.trace.note(&self.who, format_args!("disk {op} {}{more} !{error}", path.display())),
        }
        result
    }
}

impl Disk for TracedDisk {
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> BoxFuture<'a, io::Result<Arc<dyn DiskFile>>> {
        Box::pin(async move {
            let opened = self.disk.open(path, mode).await;
            let file = self.note("open", path, format_args!(" {mode:?}"), opened)?;
            Ok(Arc::new(TracedFile { disk: self.clone(), path: path.to_owned(), file }) as Arc<dyn DiskFile>)
        })
    }

    fn create_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move { self.note("create_dir", path, "", self.disk.create_dir_all(path).await) })
    }

    fn read_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Vec<DirEntry>>> {
        Box::pin(async move { self.note("read_dir", path, "", self.disk.read_dir(path).await) })
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let renamed = self.disk.rename(from, to).await;
            self.note("rename", from, format_args!(" to {}", to.display()), renamed)
        })
    }

    fn remove_file<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move { self.note("remove_file", path, "", self.disk.remove_file(path).await) })
    }

    fn remove_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move { self.note("remove_dir", path, "", self.disk.remove_dir_all(path).await) })
    }

    fn sync_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move { self.note("sync_dir", path, "", self.disk.sync_dir(path).await) })
    }

    fn available_bytes<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<u64>> {
        self.disk.available_bytes(path)
    }

    fn lock_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Box<dyn Send + Sync>>> {
        Box::pin(async move { self.note("lock", path, "", self.disk.lock_dir(path).await) })
    }
}

struct TracedFile {
    disk: TracedDisk,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
}

impl TracedFile {
    fn note<T>(&self, op: &str, more: impl Display, result: io::Result<T>) -> io::Result<T> {
        self.disk.note(op, &self.path, more, result)
    }

    fn note_read(&self, op: &str, position: u64, read: io::Result<Bytes>) -> io::Result<Bytes> {
        match &read {
            Ok(bytes) => {
                let bytes = [bytes.clone()];
                self.note(op, Extent(position, &bytes), read)
            }
            Err(_) => self.note(op, "", read),
        }
    }
}

impl DiskFile for TracedFile {
    fn read_at(&self, position: u64, bytes: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            let read = self.file.read_at(position, bytes).await;
            self.note_read("read", position, read)
        })
    }

    fn try_read_at(&self, position: u64, bytes: usize) -> io::Result<Bytes> {
        self.note_read("try_read", position, self.file.try_read_at(position, bytes))
    }

    fn write_at(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let written = self.file.write_at(position, parts.clone()).await;
            self.note("write", Extent(position, &parts), written)
        })
    }

    fn write_and_sync(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            if self.disk.lies {
                return self.write_at(position, parts).await;
            }
            let _ = self.note("begin", Extent(position, &parts), Ok(()));
            let written = self.file.write_and_sync(position, parts.clone()).await;
            self.note("write_and_sync", Extent(position, &parts), written)
        })
    }

    fn datasync(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.note("sync", "", self.file.datasync().await) })
    }

    fn allocate(&self, position: u64, bytes: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let allocated = self.file.allocate(position, bytes).await;
            self.note("allocate", format_args!(" {position}+{bytes}"), allocated)
        })
    }

    fn set_len(&self, bytes: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let cut = self.file.set_len(bytes).await;
            self.note("set_len", format_args!(" {bytes}"), cut)
        })
    }

    fn len(&self) -> BoxFuture<'_, io::Result<u64>> {
        self.file.len()
    }
}
