//! The journal's files: prepared before they are needed, recycled after (RULES.md J19).
//!
//! The keeper is a background task. It always has one file ready for the writer: a recycled one, or a new one, pre-written with
//! zeros so that a round's fdatasync has no metadata to write. It never fills the disk: without room for a whole file it makes a smaller
//! one, and asks for a checkpoint, which retires others. Without room for that either it waits, and the writer with it, until a file is
//! retired or room is made. It never touches a file that the writer writes.
//!
//! Names: `{epoch}-{number}.journal` in use or ready, `{number}.spare` to be used again, `{number}.new` half prepared.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::format::{BLOCK_BYTES, file_name};
use super::{JournalConfig, JournalIdentity, Lsn, Shared};
use crate::disk::{Disk, DiskFile, OpenMode, is_full, is_out_of_files};
use crate::error::Stopped;

/// Size of the first file that is made after an opening, unless a round may be larger; each new one is twice the last, up to the
/// configured size. So a broker starts quickly: an opening waits for its first file.
const FIRST_FILE_BYTES: u64 = 4 << 20;
/// What a file holds beside its rounds: its header, the round's own, a Seal.
const FRAMING_BYTES: u64 = 4 * BLOCK_BYTES as u64;
/// Zeros are written so many at a time, and synced so often that a round never waits behind a long flush.
const CHUNK_BYTES: u64 = 1 << 20;
/// The smallest file that an opening goes on in, if there is no room for a larger one.
const LEAST_FILE_BYTES: u64 = 64 << 10;
/// How often room is looked for on a full disk, and whether a file may be opened again.
pub(super) const RETRY: Duration = Duration::from_millis(500);

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A file that is ready to be written.
pub(super) struct Prepared {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) name: String,
    pub(super) number: u64,
    /// Its length; every byte has its place on the disk.
    pub(super) bytes: u64,
}

/// A file the writer is done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LiveFile {
    pub(super) name: String,
    /// No record in it has a larger LSN.
    pub(super) last: Lsn,
    /// Bytes that a recovery reads of it.
    pub(super) bytes: u64,
    /// Its length.
    pub(super) file_bytes: u64,
}

/// The file that the writer writes.
#[derive(Clone, Debug)]
pub(super) struct OpenFile {
    pub(super) name: String,
    /// No record in it has a smaller LSN.
    pub(super) first: Lsn,
    /// Its length: it has had it since before its name.
    pub(super) file_bytes: u64,
    /// Its header goes out with its first round.
    pub(super) bare: bool,
}

/// Asks the keeper to take files, oldest first, out of the journal.
pub(super) struct Retire {
    pub(super) files: Vec<LiveFile>,
    pub(super) done: oneshot::Sender<()>,
}

/// A failure, with the file it happened to.
#[derive(Debug)]
pub(super) struct FileError {
    pub(super) path: PathBuf,
    pub(super) error: io::Error,
}

/// Names the file in an I/O error.
pub(super) trait At<T> {
    fn at(self, path: &Path) -> Result<T, FileError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, FileError> {
        self.map_err(|error| FileError { path: path.to_owned(), error })
    }
}

enum Wanted {
    File,
    Retire(Retire),
}

/// The keeper's state.
pub(super) struct Keeper {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    epoch: u64,
    file_bytes: u64,
    spare_files_max: usize,
    floor_bytes: u64,
    spares: VecDeque<String>,
    next_number: u64,
    next_spare: u64,
    new_bytes: u64,
    /// Size of a file where there is no room for `new_bytes`. Any round fits.
    small_bytes: u64,
    /// The last attempt found no room for a whole file.
    short: bool,
    /// Once the journal runs.
    running: Option<Arc<Shared>>,
}

impl Keeper {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        identity: &JournalIdentity,
        config: &JournalConfig,
        found_spares: &[(String, u64)],
    ) -> Self {
        let numbers = found_spares.iter().filter_map(|(name, _)| parse_spare_name(name));
        let next_spare = numbers.max().map_or(0, |number| number.saturating_add(1));
        // Twice a round, at the latest in the next file, so that every round fits there.
        let new_bytes = FIRST_FILE_BYTES.max(config.round_bytes_max as u64).next_multiple_of(BLOCK_BYTES as u64);
        let round_bytes = config.round_bytes_max.max(config.bypass_bytes_min).next_multiple_of(BLOCK_BYTES) as u64;
        let small_bytes = round_bytes * 2 + FRAMING_BYTES;
        Self {
            disk,
            dir: identity.dir.clone(),
            epoch: identity.epoch,
            file_bytes: config.file_bytes,
            spare_files_max: config.spare_files_max,
            floor_bytes: config.floor_bytes,
            spares: VecDeque::new(),
            next_number: 0,
            next_spare,
            new_bytes: new_bytes.min(config.file_bytes),
            small_bytes: small_bytes.min(config.file_bytes),
            short: false,
            running: None,
        }
    }

    /// The first file of an opening. It may take the last of the room: a broker on a full disk must still open. `None`: there is none.
    pub(super) async fn prepare_first(&mut self) -> Result<Option<Prepared>, FileError> {
        self.prepare(0, LEAST_FILE_BYTES).await
    }

    /// Makes a file ready, of at least `least_bytes`. `None`: there is no room that would leave `floor_bytes` free.
    async fn prepare(&mut self, floor_bytes: u64, least_bytes: u64) -> Result<Option<Prepared>, FileError> {
        self.short = false;
        let (from, bytes) = match self.whole_spare().await? {
            Some(spare) => (spare, self.file_bytes),
            None => {
                let path = self.dir.join(format!("{:010}.new", self.next_number));
                let Some(bytes) = self.write_new(&path, floor_bytes, least_bytes).await? else {
                    return Ok(None);
                };
                (path, bytes)
            }
        };
        let number = self.next_number;
        self.next_number += 1;
        let name = file_name(self.epoch, number);
        let path = self.dir.join(&name);
        self.disk.rename(&from, &path).await.at(&path)?;
        self.sync_dir().await?;
        let file = self.open(&path, OpenMode::ReadWrite).await?;
        Ok(Some(Prepared { file, name, number, bytes }))
    }

    /// The next spare file. One that was cut short under the broker is removed: a recovery would refuse it.
    async fn whole_spare(&mut self) -> Result<Option<PathBuf>, FileError> {
        while let Some(spare) = self.spares.pop_front() {
            let path = self.dir.join(spare);
            let bytes = self.open(&path, OpenMode::Read).await?.len().await.at(&path)?;
            if bytes == self.file_bytes {
                return Ok(Some(path));
            }
            tracing::error!(path = %path.display(), bytes, "a file that was kept to be used again was cut short; it is removed");
            self.disk.remove_file(&path).await.at(&path)?;
        }
        Ok(None)
    }

    async fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>, FileError> {
        self.patiently(path, || self.disk.open(path, mode)).await
    }

    async fn sync_dir(&self) -> Result<(), FileError> {
        self.patiently(&self.dir, || self.disk.sync_dir(&self.dir)).await
    }

    /// Waits while too many files are open: nothing has come of the call then, and the journal goes on in the file that it has. At a
    /// start, which may be refused, it does not wait.
    async fn patiently<'a, T>(
        &self,
        path: &Path,
        call: impl Fn() -> BoxFuture<'a, io::Result<T>>,
    ) -> Result<T, FileError> {
        loop {
            let result = call().await;
            let (Err(error), Some(shared)) = (&result, &self.running) else { return result.at(path) };
            if !is_out_of_files(error) {
                return result.at(path);
            }
            tracing::error!(path = %path.display(), %error, "the journal's next file waits");
            tokio::select! {
                biased;
                _ = shared.until_stopped() => return result.at(path),
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// Writes a file of zeros, durably; returns its length. `None`: there is no room; nothing is left behind.
    async fn write_new(&mut self, path: &Path, floor_bytes: u64, least_bytes: u64) -> Result<Option<u64>, FileError> {
        let available = self.disk.available_bytes(&self.dir).await.at(&self.dir)?;
        let room = available.saturating_sub(floor_bytes);
        self.short = room < self.new_bytes;
        let bytes = match self.short {
            false => self.new_bytes,
            // Not all of it: others look for room, too.
            true => (room / 2).min(self.small_bytes).max(least_bytes).next_multiple_of(BLOCK_BYTES as u64),
        };
        if bytes > room {
            return Ok(None);
        }
        if self.try_zeros(path, bytes).await? {
            if !self.short {
                self.new_bytes = (bytes * 2).min(self.file_bytes);
            }
            return Ok(Some(bytes));
        }
        // Someone else was quicker; or it is a quota, of whose room only the attempt tells. What may be left of it is what the floor keeps
        // elsewhere: not for a file that nobody waits for.
        self.short = true;
        let least = least_bytes.next_multiple_of(BLOCK_BYTES as u64);
        let waited_for = floor_bytes < self.floor_bytes || floor_bytes == 0;
        let made = waited_for && least < bytes && self.try_zeros(path, least).await?;
        Ok(made.then_some(least))
    }

    /// Writes a file of zeros, durably. Returns whether there was room; if not, nothing is left behind.
    async fn try_zeros(&self, path: &Path, bytes: u64) -> Result<bool, FileError> {
        match self.write_zeros(path, bytes).await {
            Ok(()) => Ok(true),
            Err(FileError { error, .. }) if is_full(&error) => {
                self.running.iter().for_each(|shared| shared.refusals.note(&error));
                // The file is not the journal's yet, so its loss is nobody's.
                match self.disk.remove_file(path).await {
                    // It could not even be created.
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at(path),
                    _ => Ok(false),
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn write_zeros(&self, path: &Path, bytes: u64) -> Result<(), FileError> {
        match self.disk.remove_file(path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).at(path),
            _ => {}
        }
        let file = self.open(path, OpenMode::CreateNew).await?;
        // One reservation first: the file is in one piece, and a full disk says so before anything is written.
        file.allocate(0, bytes).await.at(path)?;
        let mut position = 0;
        while position < bytes {
            let chunk = CHUNK_BYTES.min(bytes - position);
            file.write_at(position, zeros(chunk)).await.at(path)?;
            file.datasync().await.at(path)?;
            position += chunk;
        }
        Ok(())
    }

    /// Serves the writer until the journal stops or is dropped.
    pub(super) async fn run(
        mut self,
        shared: Arc<Shared>,
        ready: mpsc::Sender<Prepared>,
        mut retire: mpsc::Receiver<Retire>,
    ) {
        self.running = Some(shared.clone());
        loop {
            let wanted = tokio::select! {
                biased;
                _ = shared.until_stopped() => return,
                command = retire.recv() => match command {
                    Some(command) => Wanted::Retire(command),
                    None => return,
                },
                permit = ready.reserve() => match permit {
                    Ok(_) => Wanted::File,
                    Err(_) => return,
                },
            };
            let result = match wanted {
                Wanted::File => self.make_ready(&ready, &mut retire, &shared).await,
                Wanted::Retire(command) => self.retire(&shared, command).await,
            };
            if let Err(FileError { path, error }) = result {
                shared.stop(&format!("{}: {error}", path.display()));
                return;
            }
        }
    }

    async fn make_ready(
        &mut self,
        ready: &mpsc::Sender<Prepared>,
        retire: &mut mpsc::Receiver<Retire>,
        shared: &Shared,
    ) -> Result<(), FileError> {
        let was_short = self.short;
        let mut prepared = self.prepare(self.floor_bytes, self.small_bytes).await?;
        let wanted = shared.wanted_bytes.load(Ordering::Acquire);
        if prepared.is_none() && wanted > 0 {
            // Nothing goes on without it, no deletion and no checkpoint, and these make room: what is kept free is kept for this.
            prepared = self.prepare(self.floor_bytes / 4, wanted).await?;
        }
        if self.short && (prepared.is_some() || !was_short) {
            shared.short.notify_one();
        }
        if let Some(prepared) = prepared {
            // There is room for it: this task is the only sender. If the writer is gone, so is the journal.
            let _ = ready.try_send(prepared);
            return Ok(());
        }
        tracing::warn!(dir = %self.dir.display(), "no room to prepare a journal file; waiting for room");
        // A file that is retired meanwhile is the room we wait for.
        if let Ok(Some(command)) = tokio::time::timeout(RETRY, retire.recv()).await {
            self.retire(shared, command).await?;
        }
        Ok(())
    }

    async fn retire(&mut self, shared: &Shared, command: Retire) -> Result<(), FileError> {
        for file in &command.files {
            self.give_up(&file.name, file.file_bytes).await?;
        }
        self.sync_dir().await?;
        shared.live.lock().retain(|live| !command.files.contains(live));
        // The caller may have stopped waiting.
        let _ = command.done.send(());
        Ok(())
    }

    /// Makes a file a spare, or removes it if it has an odd size or there are spares enough. Durable with the directory's next sync.
    pub(super) async fn give_up(&mut self, name: &str, file_bytes: u64) -> Result<(), FileError> {
        let path = self.dir.join(name);
        if file_bytes != self.file_bytes || self.spares.len() >= self.spare_files_max {
            return self.disk.remove_file(&path).await.at(&path);
        }
        let spare = format!("{:010}.spare", self.next_spare);
        self.disk.rename(&path, &self.dir.join(&spare)).await.at(&path)?;
        self.next_spare += 1;
        self.spares.push_back(spare);
        Ok(())
    }
}

fn zeros(bytes: u64) -> Vec<Bytes> {
    let mut pieces = vec![Bytes::from_static(&ZEROS); (bytes / ZEROS.len() as u64) as usize];
    pieces.push(Bytes::from_static(&ZEROS[..(bytes % ZEROS.len() as u64) as usize]));
    pieces
}

/// The number of a spare file.
pub(super) fn parse_spare_name(name: &str) -> Option<u64> {
    name.strip_suffix(".spare")?.parse().ok()
}

/// The file that rounds go to.
pub(super) struct Current {
    pub(super) prepared: Prepared,
    /// Where the next round goes; 0 while the file has no header.
    pub(super) position: u64,
}

impl Current {
    pub(super) fn new(prepared: Prepared) -> Self {
        Self { prepared, position: 0 }
    }

    /// Whether a round of so many bytes fits, with the file's header and, unless it is one, a Seal behind it.
    pub(super) fn fits(&self, round_bytes: u64, is_seal: bool) -> bool {
        let block = BLOCK_BYTES as u64;
        let position = self.position.max(block);
        position + round_bytes + if is_seal { 0 } else { block } <= self.prepared.bytes
    }

    /// The length of a file that a round of so many bytes fits into.
    pub(super) fn least_bytes(round_bytes: u64) -> u64 {
        round_bytes + 2 * BLOCK_BYTES as u64
    }
}

impl From<FileError> for Stopped {
    fn from(FileError { path, error }: FileError) -> Self {
        Self(format!("{}: {error}", path.display()).into())
    }
}
