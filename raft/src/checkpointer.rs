//! Taking checkpoints: first everything a checkpoint says is made durable, then it is written, then the journal behind it is
//! given up (RULES.md J7). One at a time; when is decided by [`crate::store`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;

use crate::checkpoint::{CHECKPOINT_BYTES_MAX, CHECKPOINT_FILE, Checkpoint, CheckpointEntry, ReplicaState};
use crate::codec::{self, STORED_BYTES_MAX};
use crate::disk::{is_out_of_files, is_refused, replace_file};
use crate::error::Stopped;
use crate::journal::Lsn;
use crate::log::capture::{Captured, IndexDue, IndexStored, Version};
use crate::log::{Log, LogContext};
use crate::recovery::ReplicaKey;
use crate::segment_writer::FlushFailed;
use crate::types::DirectoryId;

/// How many files are synced at a time.
const CONCURRENT: usize = 4;

/// Why no checkpoint was taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointFailed {
    /// The directory has stopped.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// There is no room, or too many files are open. The last one still holds; the journal keeps what it keeps.
    #[error("no checkpoint could be written: {0}")]
    Refused(io::Error),
    /// It, or what it says of a replica, would be longer than what a start reads. The last one still holds, and the journal keeps what it
    /// keeps: it grows.
    #[error(
        "{what} takes {bytes} bytes of a checkpoint, more than the {max} that a start reads: there are too many {of} here"
    )]
    TooLong {
        /// What would.
        what: String,
        /// What makes it long.
        of: &'static str,
        /// Its length.
        bytes: u64,
        /// The longest that is read.
        max: u64,
    },
}

impl CheckpointFailed {
    /// What a failure after which the last checkpoint still holds means for whoever wanted one: nothing yet.
    pub(crate) fn put_off(self) -> Result<(), Stopped> {
        match self {
            Self::Stopped(stopped) => Err(stopped),
            Self::Refused(error) if is_out_of_files(&error) => {
                tracing::error!(%error, "the checkpoint is put off, and the journal grows: see how many files the broker may open");
                Ok(())
            }
            refused @ Self::Refused(_) => {
                tracing::warn!(%refused, "the checkpoint is put off");
                Ok(())
            }
            long @ Self::TooLong { .. } => {
                tracing::error!(%long, "no checkpoint is taken, and the journal grows");
                Ok(())
            }
        }
    }
}

impl From<CheckpointFailed> for io::Error {
    fn from(failed: CheckpointFailed) -> Self {
        match failed {
            CheckpointFailed::Stopped(stopped) => stopped.into(),
            CheckpointFailed::Refused(error) => error,
            long @ CheckpointFailed::TooLong { .. } => Self::other(long),
        }
    }
}

/// What several came to that ran beside each other. None is dropped half-way: a sync that fails must be heard of (RULES.md J15), whatever
/// another one came to.
fn worst(done: Vec<Result<(), CheckpointFailed>>) -> Result<(), CheckpointFailed> {
    let mut failed: Vec<CheckpointFailed> = done.into_iter().filter_map(Result::err).collect();
    let stopped = failed.iter().position(|failed| matches!(failed, CheckpointFailed::Stopped(_)));
    match failed.is_empty() {
        true => Ok(()),
        false => Err(failed.swap_remove(stopped.unwrap_or(0))),
    }
}

/// Stores an index that is due, and says what is stored now; `None`: it is to be looked at afresh. Nothing depends on it but how
/// long the next start takes.
async fn store_index(log: &Log, due: IndexDue) -> Option<IndexStored> {
    match due {
        IndexDue::Not(stored) => stored,
        // It is stored by the next checkpoint.
        IndexDue::Load(segment) => {
            let loaded = log.load_index(segment).await;
            loaded.is_ok().then_some(IndexStored { segment, bytes: 0 })
        }
        IndexDue::Store(stored, index) => match log.store_index(stored.segment, index).await {
            Ok(()) => Some(stored),
            Err(error) => {
                tracing::debug!(dir = %log.dir().display(), %error, "an index was not stored");
                None
            }
        },
    }
}

/// What is remembered from one checkpoint to the next.
#[derive(Default)]
struct Memory {
    /// Each replica's state as last written.
    states: BTreeMap<ReplicaKey, (Version, Bytes)>,
    /// What is stored of each replica's last index.
    indexes: BTreeMap<ReplicaKey, IndexStored>,
}

/// Keeps the journal from being given up while a deletion is under way.
#[derive(Default)]
pub(crate) struct Floors {
    next: u64,
    held: BTreeMap<u64, Lsn>,
}

/// The checkpoints of a data directory.
pub(crate) struct Checkpointer {
    root: PathBuf,
    directory: DirectoryId,
    context: Arc<LogContext>,
    memory: tokio::sync::Mutex<Memory>,
    floors: Mutex<Floors>,
    /// The longest checkpoint that is written, and the longest state of a replica in it.
    bytes_max: (AtomicU64, AtomicU64),
}

impl Checkpointer {
    pub(crate) fn new(root: &Path, directory: DirectoryId, context: Arc<LogContext>) -> Self {
        let (memory, floors) = (tokio::sync::Mutex::default(), Mutex::default());
        let bytes_max = (AtomicU64::new(CHECKPOINT_BYTES_MAX), AtomicU64::new(STORED_BYTES_MAX as u64));
        Self { root: root.to_owned(), directory, context, memory, floors, bytes_max }
    }

    /// Other limits than the format's: of all of it, and of a replica's state.
    #[cfg(test)]
    pub(crate) fn limit(&self, bytes_max: u64, state_bytes_max: u64) {
        self.bytes_max.0.store(bytes_max, Ordering::Relaxed);
        self.bytes_max.1.store(state_bytes_max, Ordering::Relaxed);
    }

    /// From now until [`Self::release_floor`] the journal keeps everything above what is durable now.
    pub(crate) fn hold_floor(&self) -> u64 {
        let mut floors = self.floors.lock();
        floors.next += 1;
        let (number, lsn) = (floors.next, self.context.journal.durable_lsn());
        floors.held.insert(number, lsn);
        number
    }

    /// See [`Self::hold_floor`].
    pub(crate) fn release_floor(&self, number: u64) {
        self.floors.lock().held.remove(&number);
    }

    /// Takes a checkpoint of `logs`, which it calls for once the journal's place is noted, and of the replicas that are not open.
    pub(crate) async fn take(
        &self,
        logs: impl FnOnce() -> Vec<Arc<Log>>,
        corrupt: impl FnOnce() -> Vec<(ReplicaKey, ReplicaState)>,
    ) -> Result<(), CheckpointFailed> {
        let mut memory = self.memory.lock().await;
        self.context.count_afresh();
        // Noted before anything is captured: what a replica does later stands above it, what it did before is captured. The floor after
        // it: a deletion between the two, durable by then, would be below the one and not held by the other.
        let lsn = self.context.journal.durable_lsn();
        let floor = self.floors.lock().held.values().min().copied();
        let logs = logs();
        let corrupt = corrupt();
        let capture = |log: Arc<Log>| {
            let key = (log.group(), log.replica());
            let seen = memory.states.get(&key).map(|(version, _)| version);
            let captured = log.capture(seen, memory.indexes.get(&key).copied());
            (log, captured)
        };
        let mut captured: Vec<(Arc<Log>, Captured)> = logs.into_iter().map(capture).collect();
        let result = self.write(&mut memory, &mut captured, corrupt, lsn, floor.unwrap_or(lsn).min(lsn)).await;
        if let Err(error) = result {
            for (log, captured) in captured {
                log.give_back(captured.obsolete_snapshots);
                // Too many open files may be why; those that nobody reads need not be open.
                log.rest();
            }
            return Err(error);
        }
        let dues = captured.iter_mut().map(|(log, captured)| (log.clone(), std::mem::take(&mut captured.index)));
        let stored = stream::iter(dues.collect::<Vec<_>>())
            .map(|(log, due)| async move { Some(((log.group(), log.replica()), store_index(&log, due).await?)) })
            .buffer_unordered(CONCURRENT);
        memory.indexes = stored.filter_map(std::future::ready).collect().await;
        for (log, captured) in &captured {
            self.remove_snapshots(log, &captured.obsolete_snapshots).await;
            log.rest();
        }
        Ok(())
    }

    async fn write(
        &self,
        memory: &mut Memory,
        captured: &mut [(Arc<Log>, Captured)],
        corrupt: Vec<(ReplicaKey, ReplicaState)>,
        lsn: Lsn,
        retire: Lsn,
    ) -> Result<(), CheckpointFailed> {
        let mut lsns = Vec::with_capacity(captured.len());
        for (log, captured) in captured.iter_mut() {
            let (_, never) = tokio::sync::oneshot::channel();
            let last = log.captured_durable(std::mem::replace(&mut captured.durable, never)).await?;
            captured.deleted |= last.is_none();
            lsns.push(last.unwrap_or(lsn).max(lsn));
        }
        self.context.writer.flush().await.map_err(|failed| match failed {
            FlushFailed::Stopped(stopped) => CheckpointFailed::Stopped(stopped),
            FlushFailed::Refused => {
                let why = "segments wait for room, or for files to be closed";
                CheckpointFailed::Refused(io::Error::new(io::ErrorKind::StorageFull, why))
            }
        })?;
        self.sync(captured).await?;
        for (log, captured) in captured.iter_mut().filter(|(_, captured)| !captured.deleted) {
            // Its files were out of use by then: what was to be written and synced may not be.
            captured.deleted = log.is_deleted().await?;
        }
        let mut replicas = Vec::with_capacity(captured.len() + corrupt.len());
        for ((log, captured), lsn) in captured.iter().zip(lsns) {
            if captured.deleted {
                continue;
            }
            let key = (log.group(), log.replica());
            if let Some(state) = &captured.state {
                memory.states.insert(key, (captured.version.clone(), codec::encode(state).into()));
            }
            let Some((_, state)) = memory.states.get(&key) else { continue };
            let state = state.clone();
            replicas.push(CheckpointEntry { group: key.0, replica: key.1, lsn, state });
        }
        // Not `lsn`: one that was deleted just before that is still here, and its Delete, which the floor keeps, must be heard.
        let lsn = retire;
        for ((group, replica), state) in corrupt {
            replicas.push(CheckpointEntry { group, replica, lsn, state: codec::encode(&state).into() });
        }
        let live: BTreeSet<ReplicaKey> = replicas.iter().map(|entry| (entry.group, entry.replica)).collect();
        memory.states.retain(|key, _| live.contains(key));
        let checkpoint = Checkpoint { directory: self.directory, lsn: retire, replicas };
        let path = self.root.join(CHECKPOINT_FILE);
        let parts = checkpoint.encode();
        // Whatever went wrong meanwhile, the last one still holds.
        self.context.stop.check()?;
        self.check_lengths(&checkpoint, &parts)?;
        let replaced = replace_file(&*self.context.disk, &path, parts).await;
        self.judge(replaced, &path)?;
        self.context.journal.retire_below(Lsn(retire.0 + 1)).await?;
        Ok(())
    }

    /// Refuses what no start would read: the journal behind it would be gone by then.
    fn check_lengths(&self, checkpoint: &Checkpoint, parts: &[Bytes]) -> Result<(), CheckpointFailed> {
        let max = self.bytes_max.1.load(Ordering::Relaxed);
        if let Some(long) = checkpoint.replicas.iter().find(|entry| entry.state.len() as u64 > max) {
            let what = format!("replica {} of group {}", long.replica, long.group);
            let bytes = long.state.len() as u64;
            return Err(CheckpointFailed::TooLong { what, of: "segments or producers", bytes, max });
        }
        let (bytes, max) = (parts.iter().map(|part| part.len() as u64).sum(), self.bytes_max.0.load(Ordering::Relaxed));
        if bytes > max {
            let what = "the whole directory".to_owned();
            return Err(CheckpointFailed::TooLong { what, of: "replicas, segments or producers", bytes, max });
        }
        Ok(())
    }

    /// Makes durable what the checkpoint will say: segments, bases, and the directories they stand in.
    async fn sync(&self, captured: &[(Arc<Log>, Captured)]) -> Result<(), CheckpointFailed> {
        let files = captured.iter().flat_map(|(_, captured)| captured.files.iter().cloned());
        let dirty: Vec<_> = files.filter(|file| file.is_dirty()).collect();
        let synced = stream::iter(dirty.into_iter().map(|file| async move {
            let result = file.sync().await;
            self.judge(result, file.path())
        }));
        worst(synced.buffer_unordered(CONCURRENT).collect().await)?;
        let living = captured.iter().filter(|(_, captured)| !captured.deleted);
        let own =
            |(log, captured): &(Arc<Log>, Captured)| (log.clone(), captured.bases.clone(), captured.files.clone());
        let entries = stream::iter(living.map(own).collect::<Vec<_>>()).map(|(log, bases, files)| async move {
            for (name, base) in bases {
                self.judge(log.persist_base(name, Some(base)).await, log.dir())?;
            }
            self.judge(log.sync_entries(&files).await, log.dir())
        });
        worst(entries.buffer_unordered(CONCURRENT).collect().await)
    }

    /// What was only refused is no disaster. Any other failure may be that of a sync: the directory stops (RULES.md J15).
    fn judge(&self, result: io::Result<()>, path: &Path) -> Result<(), CheckpointFailed> {
        let Err(error) = result else { return Ok(()) };
        self.context.stop_unless_refused(path, &error);
        match is_refused(&error) {
            true => Err(CheckpointFailed::Refused(error)),
            false => Err(CheckpointFailed::Stopped(self.context.stop.reason())),
        }
    }

    async fn remove_snapshots(&self, log: &Log, names: &[String]) {
        for name in names {
            let path = log.dir().join(name);
            if let Err(error) = self.context.disk.remove_file(&path).await {
                tracing::debug!(path = %path.display(), %error, "an old snapshot stays until the next start");
            }
        }
    }
}
