//! The simulated disk, with every operation in the trace; and one that lies about the journal's syncs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use pontoon_raft::disk::sim::SimDisk;
use pontoon_raft::disk::{DirEntry, Disk, DiskFile, OpenMode};

use crate::trace::{Trace, digest};

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
    fn note<T>(&self, op: &str, path: &Path, more: &str, result: io::Result<T>) -> io::Result<T> {
        let failed = result.as_ref().err().map(|error| format!(" !{error}")).unwrap_or_default();
        self.trace.note(&self.who, format_args!("disk {op} {}{more}{failed}", path.display()));
        result
    }
}

impl Disk for TracedDisk {
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> BoxFuture<'a, io::Result<Arc<dyn DiskFile>>> {
        Box::pin(async move {
            let opened = self.disk.open(path, mode).await;
            let file = self.note("open", path, &format!(" {mode:?}"), opened)?;
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
            let more = format!(" to {}", to.display());
            self.note("rename", from, &more, self.disk.rename(from, to).await)
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
    fn note<T>(&self, op: &str, more: &str, result: io::Result<T>) -> io::Result<T> {
        self.disk.note(op, &self.path, more, result)
    }
}

fn extent(position: u64, parts: &[Bytes]) -> String {
    let bytes: usize = parts.iter().map(Bytes::len).sum();
    let digest = digest(parts.iter().map(|part| &part[..]));
    format!(" {position}+{bytes} {digest:08x}")
}

impl DiskFile for TracedFile {
    fn read_at(&self, position: u64, bytes: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            let read = self.file.read_at(position, bytes).await;
            let more = read.as_ref().map(|read| extent(position, std::slice::from_ref(read))).unwrap_or_default();
            self.note("read", &more, read)
        })
    }

    fn try_read_at(&self, position: u64, bytes: usize) -> io::Result<Bytes> {
        let read = self.file.try_read_at(position, bytes);
        let more = read.as_ref().map(|read| extent(position, std::slice::from_ref(read))).unwrap_or_default();
        self.note("try_read", &more, read)
    }

    fn write_at(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let more = extent(position, &parts);
            self.note("write", &more, self.file.write_at(position, parts).await)
        })
    }

    fn write_and_sync(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            if self.disk.lies {
                return self.write_at(position, parts).await;
            }
            let more = extent(position, &parts);
            self.disk.trace.note(&self.disk.who, format_args!("disk begin {}{more}", self.path.display()));
            self.note("write_and_sync", &more, self.file.write_and_sync(position, parts).await)
        })
    }

    fn datasync(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.note("sync", "", self.file.datasync().await) })
    }

    fn allocate(&self, position: u64, bytes: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.note("allocate", &format!(" {position}+{bytes}"), self.file.allocate(position, bytes).await)
        })
    }

    fn set_len(&self, bytes: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.note("set_len", &format!(" {bytes}"), self.file.set_len(bytes).await) })
    }

    fn len(&self) -> BoxFuture<'_, io::Result<u64>> {
        self.file.len()
    }
}
