//! The disk: every file operation of the crate goes through [`Disk`] and [`DiskFile`], so that a simulation can own them.
//!
//! [`real::RealDisk`] does real I/O on threads of its own (nothing else in the crate owns a thread);
//! `sim::SimDisk` keeps files in memory, loses what was not synced at a crash, and injects faults.
//! This module knows nothing of journals, segments or Raft.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub mod real;
mod refusals;
#[cfg(any(test, feature = "simulation"))]
pub mod sim;

pub(crate) use refusals::Refusals;

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// It must exist; read only.
    Read,
    /// It must exist; read and write.
    ReadWrite,
    /// It must not exist; it is created empty. The *directory entry* is durable only after [`Disk::sync_dir`].
    CreateNew,
}

/// What a directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Name within the directory.
    pub name: String,
    /// Whether it is itself a directory.
    pub is_dir: bool,
    /// Length in bytes (0 for directories).
    pub bytes: u64,
}

/// A file system. Paths are absolute. A call begins when its future is first polled and, once begun, is not cancelled by
/// dropping the future. Results are the operating system's errors, kind kept
/// (`StorageFull`, `QuotaExceeded`, `NotFound`, `AlreadyExists` are told apart by callers).
pub trait Disk: Send + Sync + 'static {
    /// Opens a file.
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> BoxFuture<'a, io::Result<Arc<dyn DiskFile>>>;
    /// Creates a directory and those above it, mode 0700. Existing ones are fine.
    fn create_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>>;
    /// Lists a directory, sorted by name.
    fn read_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Vec<DirEntry>>>;
    /// Renames a file or directory, replacing a file at `to`. Durable after [`Self::sync_dir`] of the directory.
    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>>;
    /// Unlinks a file.
    fn remove_file<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>>;
    /// Removes a directory and everything in it.
    fn remove_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>>;
    /// Makes the entries of a directory durable (creations, renames, removals). "Too many open files" means that it was not even begun.
    fn sync_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>>;
    /// Bytes that can still be written to the file system that holds `path`.
    fn available_bytes<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<u64>>;
    /// Takes the exclusive lock of a directory (a file `lock` in it), held until the guard is dropped.
    /// `WouldBlock` if another process holds it.
    fn lock_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Box<dyn Send + Sync>>>;
}

/// An open file. Positions are explicit; there is no cursor. A dropped file is *not* synced:
/// never drop a dirty file before its [`Self::datasync`] (RULES.md J15).
#[allow(clippy::len_without_is_empty)] // A length costs a trip to the disk; nobody asks whether a file is empty.
pub trait DiskFile: Send + Sync + 'static {
    /// Reads up to `bytes` bytes at `position`; shorter only at the end of the file.
    fn read_at(&self, position: u64, bytes: usize) -> BoxFuture<'_, io::Result<Bytes>>;
    /// Like [`Self::read_at`] if no blocking is needed (page cache); `WouldBlock` otherwise.
    fn try_read_at(&self, position: u64, bytes: usize) -> io::Result<Bytes>;
    /// Writes all of `parts`, one after the other, at `position`. Readable on return, durable after [`Self::datasync`].
    fn write_at(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>>;
    /// [`Self::write_at`] followed by [`Self::datasync`], in one trip to the disk's threads, on their urgent lane: for the
    /// journal, whose rounds must not queue behind anything. Everyone else takes the two calls.
    fn write_and_sync(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>>;
    /// Makes the contents and the length durable (fdatasync).
    fn datasync(&self) -> BoxFuture<'_, io::Result<()>>;
    /// Reserves room on the disk for `position .. position + bytes` without changing the length. `StorageFull` if there is none.
    fn allocate(&self, position: u64, bytes: u64) -> BoxFuture<'_, io::Result<()>>;
    /// Cuts or extends (with zeros) the file.
    fn set_len(&self, bytes: u64) -> BoxFuture<'_, io::Result<()>>;
    /// Current length in bytes.
    fn len(&self) -> BoxFuture<'_, io::Result<u64>>;
}

/// Replaces `path` by a file with these contents, atomically and durably: temporary file, fdatasync, rename, fsync of
/// the directory. After a crash the old contents or the new ones are there, whole.
///
/// Errors: `StorageFull` or `QuotaExceeded` if it cannot be written (not: synced), or too many open files; nothing is lost then, and it may be tried again.
/// (The new contents may be there by then, whole, and not be durable yet.)
pub async fn replace_file(disk: &dyn Disk, path: &Path, parts: Vec<Bytes>) -> io::Result<()> {
    let (temporary, file) = write_temporary(disk, path, parts).await?;
    file.datasync().await.map_err(sync_failed)?;
    drop(file);
    rename_temporary(disk, &temporary, path).await?;
    match path.parent() {
        Some(parent) => disk.sync_dir(parent).await.map_err(dir_sync_failed),
        None => Ok(()),
    }
}

/// Like [`replace_file`] without its syncs: after a power cut the old contents, the new ones, or rubbish is there. For what its
/// reader checks, and can make anew.
pub async fn replace_file_unsynced(disk: &dyn Disk, path: &Path, parts: Vec<Bytes>) -> io::Result<()> {
    let (temporary, _) = write_temporary(disk, path, parts).await?;
    rename_temporary(disk, &temporary, path).await
}

async fn write_temporary(disk: &dyn Disk, path: &Path, parts: Vec<Bytes>) -> io::Result<(PathBuf, Arc<dyn DiskFile>)> {
    let temporary = temporary_path(path);
    match disk.remove_file(&temporary).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.open(&temporary, OpenMode::CreateNew).await?;
    match file.write_at(0, parts).await {
        Ok(()) => Ok((temporary, file)),
        Err(error) => {
            // First, or its room would not be free.
            drop(file);
            remove_temporary(disk, &temporary).await;
            Err(error)
        }
    }
}

async fn rename_temporary(disk: &dyn Disk, temporary: &Path, path: &Path) -> io::Result<()> {
    let renamed = disk.rename(temporary, path).await;
    if renamed.is_err() {
        remove_temporary(disk, temporary).await;
    }
    renamed
}

/// Whatever was written of it may be the last of the room. If it cannot be removed, the next attempt does, or the next start.
async fn remove_temporary(disk: &dyn Disk, temporary: &Path) {
    if let Err(error) = disk.remove_file(temporary).await {
        tracing::debug!(path = %temporary.display(), %error, "a temporary file stays");
    }
}

/// How often [`patiently`] asks, and how long it waits in between.
const PATIENT_READS: u32 = 3;
const PATIENT_PAUSE: Duration = Duration::from_millis(100);

/// Opens or reads what cannot be done without, and costs a replica if it is not there. EIO need not be for ever: a path to a disk, or a
/// network under it, may have failed for a moment.
pub(crate) async fn patiently<T, F: Future<Output = io::Result<T>>>(mut read: impl FnMut() -> F) -> io::Result<T> {
    let refused = |error: &io::Error| error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    for _ in 1..PATIENT_READS {
        match read().await {
            Err(error) if refused(&error) => tokio::time::sleep(PATIENT_PAUSE).await,
            other => return other,
        }
    }
    read().await
}

/// Whether a read failed because of what is on the disk, or is not: anything else (too many open files, say) may be over the next time.
pub(crate) fn is_rot(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let kinds = [io::ErrorKind::NotFound, io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof];
    // A bad sector; and, by the names that file systems give them, structures of theirs (EUCLEAN) or a checksum (EBADMSG).
    let numbers = [Errno::IO, Errno::UCLEAN, Errno::BADMSG].map(Errno::raw_os_error);
    kinds.contains(&error.kind()) || error.raw_os_error().is_some_and(|number| numbers.contains(&number))
}

/// Whether a read failed for want of something that others hold just now: it may succeed the next time, whatever is on the disk.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::INTR, Errno::AGAIN];
    error.raw_os_error().is_some_and(|errno| passing.iter().any(|known| known.raw_os_error() == errno))
}

/// Whether too many files are open: nothing was opened then, so nothing was written, and no sync was begun.
pub(crate) fn is_out_of_files(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|known| error.raw_os_error() == Some(known.raw_os_error()))
}

/// Whether there is no room, on the disk or within a quota.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether something that writes was refused, no room or too many open files: what was there still is, and it may be tried again.
pub(crate) fn is_refused(error: &io::Error) -> bool {
    is_full(error) || is_out_of_files(error)
}

/// Makes of a sync's error one that nobody takes for a refusal. A write that finds no room has changed nothing and may be tried
/// again; a sync that finds none (a thin volume, a network file system) has dropped what it was to make durable, and the next one
/// knows nothing of it (RULES.md J15).
pub(crate) fn sync_failed(error: io::Error) -> io::Error {
    match is_refused(&error) {
        true => io::Error::other(format!("its sync failed: {error}")),
        false => error,
    }
}

/// [`sync_failed`] of a directory, which had to be opened for it: that may have been refused.
pub(crate) fn dir_sync_failed(error: io::Error) -> io::Error {
    if is_out_of_files(&error) { error } else { sync_failed(error) }
}

/// Creates a directory, with those above it, so that it survives a power cut: each entry on the way is synced, also those
/// that were there already (an earlier process may have died between creating and syncing them).
pub async fn create_dir_durably(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    disk.create_dir_all(path).await?;
    for (distance, above) in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()).enumerate() {
        match disk.sync_dir(above).await {
            // Far above, directories are not ours to read, and were not ours to create.
            Err(error) if distance > 0 && error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

fn temporary_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}

/// Reads a whole file of at most `bytes_max` bytes; longer ones are `InvalidData`.
pub async fn read_file(disk: &dyn Disk, path: &Path, bytes_max: u64) -> io::Result<Bytes> {
    let file = disk.open(path, OpenMode::Read).await?;
    let bytes = file.len().await?;
    if bytes > bytes_max {
        let message = format!("{} is {bytes} bytes, more than {bytes_max}", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    file.read_at(0, bytes as usize).await
}

#[cfg(test)]
mod conformance;
