//! What checkpoints and the segment writer ask of a log.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{MutexGuard, oneshot};

use super::base::Base;
use super::index::SparseIndex;
use super::segment::{self, SegmentFile};
use super::state::LogState;
use super::{Folder, Log, LogContext};
use crate::checkpoint::ReplicaState;
use crate::config::RaftConfig;
use crate::disk::{dir_sync_failed, replace_file, replace_file_unsynced};
use crate::error::Stopped;
use crate::journal::{Lsn, SegmentName};
use crate::payload::SnapshotAt;
use crate::types::LogId;

/// Tells whether a log has changed since a checkpoint in a way that the next one must show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    submitted: u64,
    committed: Option<u64>,
    snapshot: Option<String>,
}

/// A log at one moment, and what must be on disk before a checkpoint may say so.
pub(crate) struct Captured {
    /// The replica is being deleted: a checkpoint does not name it any more.
    pub(crate) deleted: bool,
    /// `None`: as it was seen before.
    pub(crate) state: Option<ReplicaState>,
    pub(crate) version: Version,
    /// Told the LSN of the last operation in it.
    pub(crate) durable: oneshot::Receiver<Lsn>,
    /// Every segment's file.
    pub(crate) files: Vec<Arc<SegmentFile>>,
    /// Bases that do not stand in their files yet.
    pub(crate) bases: Vec<(SegmentName, Arc<Base>)>,
    /// Snapshots that a newer one has replaced: they may go once the checkpoint is written.
    pub(crate) obsolete_snapshots: Vec<String>,
    /// What is to be done about the last segment's index once the checkpoint is written. Not before: an index must not tell of
    /// bytes that a crash can take away, for others may stand there afterwards.
    pub(crate) index: IndexDue,
}

/// How much of a segment its stored index tells of, as far as this process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexStored {
    pub(crate) segment: SegmentName,
    pub(crate) bytes: u64,
}

/// Whether the stored index of a log's last segment has fallen so far behind that the next start would read much to catch up.
#[derive(Debug)]
pub(crate) enum IndexDue {
    /// It has not; what is known of it.
    Not(Option<IndexStored>),
    /// It has, but is not known itself.
    Load(SegmentName),
    /// It has, and this is what to store.
    Store(IndexStored, Bytes),
}

impl Default for IndexDue {
    fn default() -> Self {
        Self::Not(None)
    }
}

/// A segment's index is stored when it has so many entries more, or an eighth.
const INDEX_STRIDE: u64 = 128;

/// See [`IndexDue`]. `stored`: as was known, or stored, at the last checkpoint; `None` at the first.
fn index_due(state: &LogState, stored: Option<IndexStored>, config: &RaftConfig) -> IndexDue {
    let Some(last) = state.segments.last() else { return IndexDue::Not(stored) };
    let now = IndexStored { segment: last.name(), bytes: last.bytes };
    let before = match stored {
        Some(stored) if stored.segment == now.segment => stored.bytes,
        // Found at the start: what is stored of it is taken for good enough, for a start is not the time to look.
        None if !last.index.is_complete() => now.bytes,
        _ => 0,
    };
    let stride = (INDEX_STRIDE * config.index_interval_bytes).min(config.segment_bytes_max / 4);
    if now.bytes.saturating_sub(before) < stride.max(before / 8) {
        return IndexDue::Not(Some(IndexStored { bytes: before, ..now }));
    }
    match last.index.is_complete() {
        true => IndexDue::Store(now, last.index.encode(now.segment)),
        false => IndexDue::Load(now.segment),
    }
}

impl Log {
    /// The log as it is now. `seen`: as of which version its state is known already, and need not be encoded again; `indexed`:
    /// see [`IndexDue`].
    pub(crate) fn capture(&self, seen: Option<&Version>, indexed: Option<IndexStored>) -> Captured {
        let mut state = self.state.lock();
        let version = Version {
            submitted: state.submitted,
            committed: state.committed.map(|committed| committed.index),
            snapshot: state.snapshot.as_ref().map(|snapshot| snapshot.name.clone()),
        };
        let base = |segment: &segment::Segment| segment.base.clone().map(|base| (segment.name(), base));
        Captured {
            deleted: state.closed,
            state: (seen != Some(&version)).then(|| state.capture()),
            version,
            files: state.segments.iter().map(|segment| segment.file.clone()).collect(),
            bases: state.segments.iter().filter_map(base).collect(),
            obsolete_snapshots: std::mem::take(&mut state.obsolete_snapshots),
            index: index_due(&state, indexed, &self.context.config),
            durable: Self::last_submitted(&mut state),
        }
    }

    /// The LSN that [`Captured::durable`] is told; `None`: what was captured is not the log's any more, for the replica has been deleted,
    /// durably.
    pub(crate) async fn captured_durable(&self, told: oneshot::Receiver<Lsn>) -> Result<Option<Lsn>, Stopped> {
        let captured = tokio::select! {
            biased;
            lsn = told => lsn,
            stopped = self.context.stop.stopped() => return Err(stopped),
        };
        match captured {
            Ok(lsn) => Ok(Some(lsn)),
            Err(_) => {
                let deletion = Self::last_submitted(&mut self.state.lock());
                self.durable(deletion).await.map(|_| None)
            }
        }
    }

    /// Whether the replica is deleted; durably so on return.
    pub(crate) async fn is_deleted(&self) -> Result<bool, Stopped> {
        let deletion = {
            let mut state = self.state.lock();
            if !state.closed {
                return Ok(false);
            }
            Self::last_submitted(&mut state)
        };
        self.durable(deletion).await.map(|_| true)
    }

    /// Makes the replica's folder, durably, and keeps it where it is while the guard is held. `None`: the replica is deleted.
    pub(super) async fn folder(&self) -> io::Result<Option<MutexGuard<'_, Folder>>> {
        let mut folder = self.folder.lock().await;
        if *folder == Folder::Unsure {
            let made = self.context.disk.create_dir_all(&self.dir).await;
            made.inspect_err(|error| self.context.journal.refusals().note(error))?;
            if let Some(groups) = self.dir.parent() {
                self.sync_dir(groups).await?;
            }
            *folder = Folder::Durable;
        }
        Ok((*folder == Folder::Durable).then_some(folder))
    }

    /// Makes the directory entries of these files durable, and of the folder itself.
    pub(crate) async fn sync_entries(&self, files: &[Arc<SegmentFile>]) -> io::Result<()> {
        let Some(_folder) = self.folder().await? else { return Ok(()) };
        if files.iter().any(|file| !file.entry_is_durable()) {
            let made: Vec<u64> = files.iter().map(|file| file.made()).collect();
            self.sync_dir(&self.dir).await?;
            files.iter().zip(made).for_each(|(file, made)| file.set_entry_durable(made));
        }
        Ok(())
    }

    /// Puts a file into the folder, in place of one of that name, durably. The folder must be there ([`Self::folder`]).
    ///
    /// Errors: no room, or too many open files, and then it may be tried again ([`replace_file`]); after any other the directory has
    /// stopped.
    pub(super) async fn put(&self, path: &Path, bytes: Bytes) -> io::Result<()> {
        let put = replace_file(&*self.context.disk, path, vec![bytes]).await;
        put.inspect_err(|error| self.context.stop_unless_refused(path, error))
    }

    /// Syncs the folder or the one it is in. Every file's entry there depends on it: an error stops the directory (RULES.md J15), unless
    /// too many files are open and it was not begun.
    pub(super) async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let synced = self.context.disk.sync_dir(dir).await.map_err(dir_sync_failed);
        synced.inspect_err(|error| self.context.stop_unless_refused(dir, error))
    }

    /// Moves the folder of a replica aside that is deleted, or will be. A missing one is fine. Durable on return. What is on its way
    /// to its segments comes to nothing; but where the folder could not be moved, all is as it was.
    pub(crate) async fn move_folder(&self, aside: &Path) -> io::Result<()> {
        let mut folder = self.folder.lock().await;
        let before = std::mem::replace(&mut *folder, Folder::Gone);
        self.set_leaving(true);
        if let Err(error) = rename_folder(&self.context, &self.dir, aside).await {
            *folder = before;
            self.set_leaving(false);
            return Err(error);
        }
        sync_parent(&self.context, &self.dir).await
    }

    fn set_leaving(&self, leaving: bool) {
        let state = self.state.lock();
        state.segments.iter().for_each(|segment| segment.file.set_leaving(leaving));
        state.prepared.iter().for_each(|file| file.set_leaving(leaving));
    }

    /// Closes the files of a deleted replica, once they are unlinked.
    pub(crate) fn close_retired(&self) {
        let state = self.state.lock();
        state.segments.iter().for_each(|segment| segment.file.close_retired());
        state.prepared.iter().for_each(|file| file.close_retired());
    }

    /// Writes the index of the last segment, so that the next process need not make it anew. For a clean end.
    pub(crate) async fn persist_index(&self) -> io::Result<()> {
        let index = {
            let state = self.state.lock();
            let last = state.segments.last().filter(|segment| segment.index.is_complete());
            last.map(|segment| (segment.name(), segment.index.encode(segment.name())))
        };
        match index {
            Some((name, index)) => self.store_closed_index(name, index).await,
            None => Ok(()),
        }
    }

    /// Writes the last segment's index, if it still is the last. It is not synced: 600 syncs per checkpoint of 300 replicas are more
    /// than what they save, which is that the next process need not make some of them anew after a power cut.
    pub(crate) async fn store_index(&self, name: SegmentName, index: Bytes) -> io::Result<()> {
        let Some(_folder) = self.folder().await? else { return Ok(()) };
        // One that has been closed meanwhile gets its whole index from the segment writer.
        if self.state.lock().segments.last().is_none_or(|segment| segment.name() != name) {
            return Ok(());
        }
        replace_file_unsynced(&*self.context.disk, &segment::path(&self.dir, name, "index"), vec![index]).await
    }

    /// Writes the index of a segment that is closed, or that nothing more is appended to by this process, durably. Errors are the
    /// caller's to judge.
    pub(crate) async fn store_closed_index(&self, name: SegmentName, index: Bytes) -> io::Result<()> {
        let Some(_folder) = self.folder().await? else { return Ok(()) };
        replace_file(&*self.context.disk, &segment::path(&self.dir, name, "index"), vec![index]).await
    }

    /// After a recovery: what is applied, and the high watermark, follow from the recovered commit, or from the applied state
    /// where that survives. Where the log cannot be read there (rot), from the beginning of that segment: what follows is applied
    /// again when the group starts, which is the place to find out whether it can be.
    pub(crate) async fn restore_applied(&self) {
        let applied = match self.application.snapshot_at() {
            SnapshotAt::Boundary => self.committed_log_id(),
            SnapshotAt::Applied => self.application.applied(),
        };
        let (purged, start) = {
            let state = self.state.lock();
            (state.purged, state.log_start_offset)
        };
        let Some(last) = applied.filter(|applied| Some(*applied) > purged) else {
            return self.set_applied(applied, start);
        };
        match self.offset_after(last).await {
            Ok(offset) => self.set_applied(applied, offset),
            Err(error) => {
                tracing::error!(group = %self.group, replica = %self.replica, %error, "the high watermark cannot be read");
                let (previous, offset) = self.before_segment_of(last.index + 1);
                let is_boundary = self.application.snapshot_at() == SnapshotAt::Boundary;
                self.set_applied(if is_boundary { previous.max(purged) } else { applied }, offset.max(start));
            }
        }
    }

    /// The log's last entry, and the next offset, before the segment that holds this index.
    fn before_segment_of(&self, index: u64) -> (Option<LogId>, u64) {
        let state = self.state.lock();
        state.segment_of(index).map_or((None, 0), |at| (state.segments[at].previous, state.segments[at].base_offset))
    }

    /// Gives back what a checkpoint that failed has taken.
    pub(crate) fn give_back(&self, obsolete_snapshots: Vec<String>) {
        self.state.lock().obsolete_snapshots.extend(obsolete_snapshots);
    }

    /// The segment writer reports: everything up to this append is in its segment.
    pub(crate) fn became_written(&self, append: u64) {
        let mut state = self.state.lock();
        state.appends_written = state.appends_written.max(append);
        state.tail.evict(append);
    }

    /// Frees about `bytes` of the tail cache. Returns how many it freed.
    pub(crate) fn shed(&self, bytes: usize) -> usize {
        let mut state = self.state.lock();
        let written = state.appends_written;
        state.tail.shed(bytes, written)
    }

    /// Closes files and forgets indexes of closed segments that nobody has read since the last call. Not of one whose last bytes
    /// are not in its file yet: its index could not be made anew.
    pub(crate) fn rest(&self) {
        let interval = self.context.config.index_interval_bytes;
        let mut state = self.state.lock();
        let unwritten = state.tail.first_unwritten(state.appends_written).unwrap_or(u64::MAX);
        let closed = state.segments.len().saturating_sub(1);
        for segment in state.segments.iter_mut().take(closed) {
            if segment.last.index < unwritten && segment.file.rest() && segment.base.is_none() {
                segment.index = SparseIndex::new(segment.bytes, interval);
            }
        }
    }
}

/// Renames a folder durably; a missing one is fine. After a failed sync the directory has stopped.
pub(crate) async fn move_folder(context: &LogContext, dir: &Path, aside: &Path) -> io::Result<()> {
    rename_folder(context, dir, aside).await?;
    sync_parent(context, dir).await
}

async fn rename_folder(context: &LogContext, dir: &Path, aside: &Path) -> io::Result<()> {
    match context.disk.rename(dir, aside).await {
        // Perhaps it was renamed before, and too many files were open for the sync.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

async fn sync_parent(context: &LogContext, dir: &Path) -> io::Result<()> {
    let Some(groups) = dir.parent() else { return Ok(()) };
    let synced = context.disk.sync_dir(groups).await.map_err(dir_sync_failed);
    synced.inspect_err(|error| context.stop_unless_refused(groups, error))
}
