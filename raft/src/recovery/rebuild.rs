//! The second pass: the frames of one replica's final log, folded in order into its state, and written where they belong.
//!
//! Where the fold begins is `beginning`'s; here the journal's records follow, and the end: the log as it was acknowledged, or a replica
//! that is given up, with all that is known of it kept.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::folder::{Folder, Trouble};
use super::plan::{Plan, SegmentPlan};
use super::{RecoveredReplica, Recovery, ReplicaKey, Unwritten};
use crate::checkpoint::ReplicaState;
use crate::disk::{Disk, dir_sync_failed, is_full};
use crate::error::OpenError;
use crate::journal::{Extent, Lsn, RecoveredOp, SegmentName};
use crate::log::frame::Frame;
use crate::log::head::Head;
use crate::log::segment::{FrameStream, Segment, SegmentFile, stem};
use crate::log::state::{LogState, SnapshotRef};
use crate::log::tail::{Room, Tail};
use crate::payload::{Application, SnapshotAt};

mod beginning;

const CHUNK_BYTES: usize = 256 << 10;

/// One replica on its way back.
pub(super) struct Rebuild {
    key: ReplicaKey,
    disk: Arc<dyn Disk>,
    application: Arc<dyn Application>,
    plan: Plan,
    folder: Folder,
    interval: u64,
    tail: Option<Tail>,
    /// The fold so far; `None` once the replica is given up.
    head: Option<Head>,
    segments: Vec<Segment>,
    snapshot: Option<SnapshotRef>,
    /// Appends that found no room in their segments, and all that came behind them.
    unwritten: Vec<Unwritten>,
    /// Bytes of all replicas' unwritten appends, and how many there may be.
    held: (Arc<AtomicUsize>, usize),
    /// Segments that are there in part at most, and that the fold could do without.
    rotten: Vec<(SegmentName, String)>,
    /// Bases and snapshots that are rotten, and what is wrong: if the fold can do without them, nothing is missing.
    rotten_beside: BTreeMap<PathBuf, String>,
    /// Why it is given up.
    corrupt: Option<String>,
    /// Files that take what the journal holds of it then.
    kept: BTreeMap<SegmentName, Arc<SegmentFile>>,
}

impl Rebuild {
    /// Finds where to begin the fold, and folds what the checkpoint knows of the segments from there on. An error that
    /// will pass is one here.
    pub(super) async fn begin(
        recovery: &Recovery<'_>,
        key: ReplicaKey,
        plan: Plan,
        folder: Folder,
    ) -> Result<Self, OpenError> {
        let mut rebuild = Self {
            key,
            disk: recovery.disk.clone(),
            application: (recovery.applications)(key.0, key.1),
            plan,
            folder,
            interval: recovery.config.index_interval_bytes,
            tail: Some(Tail::new(recovery.config.tail_cache_bytes, recovery.budget.clone())),
            head: None,
            segments: Vec::new(),
            snapshot: None,
            unwritten: Vec::new(),
            held: (recovery.held.clone(), recovery.config.unwritten_bytes_max),
            rotten: Vec::new(),
            rotten_beside: BTreeMap::new(),
            corrupt: None,
            kept: BTreeMap::new(),
        };
        if let Err(trouble) = rebuild.prepare().await {
            rebuild.give_up(trouble.corrupt()?);
        }
        Ok(rebuild)
    }

    fn file(&self, name: SegmentName) -> Arc<SegmentFile> {
        SegmentFile::new(self.disk.clone(), &self.folder.dir, name)
    }

    /// Takes the next record of this replica. Only an error that will pass, or one of writing, is one here. `short`: files must not grow,
    /// for want of room.
    pub(super) async fn take(&mut self, lsn: Lsn, op: RecoveredOp, short: bool) -> Result<(), OpenError> {
        let (RecoveredOp::Append { extent, .. } | RecoveredOp::Bypass { extent, .. }) = op else { return Ok(()) };
        if self.corrupt.is_some() {
            return match op {
                RecoveredOp::Append { frames, .. } if self.plan.may_hold(extent.segment, lsn) => {
                    let file = self.kept_file(extent.segment);
                    Self::keep_copy(&file, extent.position, frames).await
                }
                _ => Ok(()),
            };
        }
        let Some(to) = self.plan.kept_of(extent.segment, lsn) else { return Ok(()) };
        let file = match self.segments.last() {
            Some(segment) if segment.name() == extent.segment => segment.file.clone(),
            _ => self.file(extent.segment),
        };
        let result = match op {
            RecoveredOp::Append { frames, .. } => {
                let (kept, result) = self.fold_run(&file, &frames, to);
                match result {
                    Ok(()) => self.put(&file, extent.position, frames.slice(..kept), short).await?,
                    Err(_) => {
                        self.kept.insert(extent.segment, file.clone());
                        Self::keep_copy(&file, extent.position, frames).await?;
                    }
                }
                result.map_err(Trouble::Corrupt)
            }
            _ => {
                let result = self.fold_extent(&file, extent, to).await;
                if result.is_ok() && !self.unwritten.is_empty() {
                    self.keep(Unwritten { file: file.clone(), position: extent.position, frames: Bytes::new() })?;
                }
                result
            }
        };
        if let Err(trouble) = result {
            let why = trouble.corrupt()?;
            self.write_held().await?;
            self.give_up(format!("journal record {}: {why}", lsn.0));
        }
        Ok(())
    }

    /// The file of a replica that is given up. Not closed before its sync: see [`Self::sync_kept`].
    fn kept_file(&mut self, name: SegmentName) -> Arc<SegmentFile> {
        let known = self.segments.iter().find(|segment| segment.name() == name).map(|segment| segment.file.clone());
        let new = || known.unwrap_or_else(|| SegmentFile::new(self.disk.clone(), &self.folder.dir, name));
        self.kept.entry(name).or_insert_with(new).clone()
    }

    /// Writes what the journal holds of a replica that is given up where it belongs: what was acknowledged must not go with the journal.
    /// Without room the start is refused, and the journal keeps it: there is no log that could hold it in memory.
    async fn keep_copy(file: &SegmentFile, position: u64, frames: Bytes) -> Result<(), OpenError> {
        let written = file.write(position, vec![frames]).await;
        written.map_err(|error| OpenError::Io { path: file.path().to_owned(), error })
    }

    /// Writes journalled frames where they belong. What finds no room stays in memory until there is some, as it would have if the process
    /// had not ended; and so does all that comes behind it, for a log is read from its segments up to some entry, and from memory
    /// from there on.
    async fn put(
        &mut self,
        file: &Arc<SegmentFile>,
        position: u64,
        frames: Bytes,
        short: bool,
    ) -> Result<(), OpenError> {
        let end = position + frames.len() as u64;
        let grows = self.folder.segment_bytes(file.name()).is_none_or(|bytes| bytes < end);
        if self.unwritten.is_empty() && !(short && grows) {
            match file.write(position, vec![frames.clone()]).await {
                Err(error) if is_full(&error) => {
                    tracing::warn!(path = %file.path().display(), "disk full: a segment waits to be written");
                }
                written => return written.map_err(|error| OpenError::Io { path: file.path().to_owned(), error }),
            }
        }
        // Not the chunk that it was read with.
        let frames = Bytes::copy_from_slice(&frames);
        let mut rest = frames.clone();
        while let Ok(frame) = Frame::decode(&mut rest) {
            self.hold(&frame);
        }
        self.keep(Unwritten { file: file.clone(), position, frames })
    }

    /// Puts a frame of the append that [`Self::keep`] is given next where it is read from.
    fn hold(&mut self, frame: &Frame) {
        let append = self.unwritten.len() as u64 + 1;
        if let Some(tail) = &mut self.tail {
            tail.push(frame.clone(), append);
        }
    }

    /// Keeps an append for the segment writer, within its budget.
    fn keep(&mut self, unwritten: Unwritten) -> Result<(), OpenError> {
        let (held, max) = &self.held;
        // Each takes a share of it, also one of which nothing is to be written.
        let share = unwritten.frames.len().max(1);
        if held.fetch_add(share, Ordering::Relaxed) + share > *max {
            let error = io::ErrorKind::StorageFull.into();
            return Err(OpenError::Io { path: unwritten.file.path().to_owned(), error });
        }
        self.unwritten.push(unwritten);
        Ok(())
    }

    /// Writes what a replica that is given up has in memory only: there is no log that would keep it.
    async fn write_held(&mut self) -> Result<(), OpenError> {
        for Unwritten { file, position, frames } in std::mem::take(&mut self.unwritten) {
            Self::keep_copy(&file, position, frames).await?;
        }
        Ok(())
    }

    /// Folds the frames of a journal record up to `to`. Returns how many of its bytes those are.
    fn fold_run(&mut self, file: &Arc<SegmentFile>, frames: &Bytes, to: u64) -> (usize, Result<(), String>) {
        let mut rest = frames.clone();
        while !rest.is_empty() {
            let before = rest.len();
            let frame = match Frame::decode(&mut rest) {
                Ok(frame) => frame,
                Err(error) => return (frames.len() - before, Err(error.to_string())),
            };
            if frame.header.index > to {
                return (frames.len() - before, Ok(()));
            }
            if let Err(why) = self.fold(file, &frame) {
                return (frames.len() - before, Err(why));
            }
        }
        (frames.len(), Ok(()))
    }

    /// Folds the frames of an append that stands in its segment already. It was synced before its record was written, so
    /// anything wrong with it is corruption.
    async fn fold_extent(&mut self, file: &Arc<SegmentFile>, extent: Extent, to: u64) -> Result<(), Trouble> {
        let end = extent.position + extent.bytes;
        let unread = |error| Trouble::reading(file.path(), error);
        let mut stream = FrameStream::open_patiently(file, extent.position, end, CHUNK_BYTES).await.map_err(unread)?;
        while let Some(frame) = stream.next().await.map_err(unread)? {
            if frame.header.index > to {
                break;
            }
            self.fold(file, &frame)?;
            if !self.unwritten.is_empty() {
                self.hold(&frame);
            }
        }
        Ok(())
    }

    fn fold(&mut self, file: &Arc<SegmentFile>, frame: &Frame) -> Result<(), String> {
        let head = self.head.as_mut().ok_or("the replica was given up")?;
        if self.segments.last().is_none_or(|segment| segment.name() != file.name()) {
            let base = Arc::new(head.base());
            self.segments.push(Segment::begin(file.clone(), base, &frame.header, self.interval));
        }
        head.observe(frame).map_err(|error| error.to_string())?;
        if let Some(segment) = self.segments.last_mut() {
            segment.push(&frame.header);
        }
        Ok(())
    }

    fn give_up(&mut self, why: String) {
        self.corrupt.get_or_insert(why);
        self.head = None;
    }

    /// The log, as it was acknowledged; or what a checkpoint is to say of a replica that is given up.
    pub(super) async fn finish(mut self, lsn: Lsn) -> Result<Result<RecoveredReplica, Box<ReplicaState>>, OpenError> {
        let result = match self.head.take() {
            Some(head) => self.assemble(head, lsn).await,
            None => Err(Trouble::Corrupt(self.corrupt.clone().unwrap_or_default())),
        };
        Ok(match result {
            Ok(state) => {
                let (leftovers, cuts) = (self.leftovers(&state), self.cuts(&state));
                let Self { key, application, folder, mut rotten, rotten_beside, unwritten, .. } = self;
                rotten.retain(|(name, _)| state.segments.iter().any(|segment| segment.name() == *name));
                Ok(RecoveredReplica {
                    key,
                    dir: folder.dir,
                    application,
                    state,
                    unwritten,
                    rotten,
                    needless: rotten_beside.into_iter().collect(),
                    leftovers,
                    cuts,
                })
            }
            Err(trouble) => {
                let why = trouble.corrupt()?;
                let (group, replica) = self.key;
                tracing::error!(%group, %replica, why, "the replica is not opened");
                self.write_held().await?;
                self.sync_kept().await?;
                Err(Box::new(self.plan.give_up(why)))
            }
        })
    }

    /// Before files of a replica that is given up are closed, what was written to them is synced; and so are their names.
    async fn sync_kept(&mut self) -> Result<(), OpenError> {
        for file in self.segments.iter().map(|segment| &segment.file).chain(self.kept.values()) {
            file.sync().await.map_err(|error| OpenError::Io { path: file.path().to_owned(), error })?;
        }
        for dir in [Some(self.folder.dir.as_path()), self.folder.dir.parent()].into_iter().flatten() {
            let synced = self.disk.sync_dir(dir).await.map_err(dir_sync_failed);
            synced.map_err(|error| OpenError::Io { path: dir.to_owned(), error })?;
        }
        Ok(())
    }

    async fn assemble(&mut self, head: Head, lsn: Lsn) -> Result<LogState, Trouble> {
        // Also if it comes to nothing after its segments are taken: what was written to them is still to be synced.
        for segment in &self.segments {
            self.kept.entry(segment.name()).or_insert_with(|| segment.file.clone());
        }
        if head.last != self.plan.last {
            return Err(format!("the log ends at {:?}, the journal says {:?}", head.last, self.plan.last).into());
        }
        let last = head.last;
        let log_start_offset = self.log_start_offset(head.next_offset).await?;
        let Some(tail) = self.tail.take() else { return Err("finished twice".to_owned().into()) };
        let mut state = LogState::empty(head, tail);
        state.created = true;
        state.appends = self.unwritten.len() as u64;
        state.vote = self.plan.vote;
        state.committed = self.plan.committed.max(self.plan.purged).min(last);
        state.committed_journalled = state.committed;
        state.purged = self.plan.purged;
        state.segments = std::mem::take(&mut self.segments);
        state.next_file_no = self.plan.next_file_no.max(self.folder.next_file_no());
        state.snapshot = self.snapshot.clone();
        state.durable_lsn = lsn;
        state.roll = self.must_roll(&state);
        state.log_start_offset = log_start_offset;
        state.check()?;
        self.check_application(&state)?;
        Ok(state)
    }

    /// A file that holds more than its logical length is not appended to (RULES.md J10); nor is one that is not there, or not all of it.
    fn must_roll(&self, state: &LogState) -> bool {
        let Some(last) = state.segments.last() else { return true };
        if self.rotten.iter().any(|(name, _)| *name == last.name()) {
            return true;
        }
        let plan = self.plan.segments.iter().find(|plan| plan.name == last.name());
        let untouched = plan.is_some_and(|plan| plan.records.is_empty() && plan.known_to.is_none());
        let rolled_before = untouched && self.plan.state.as_ref().is_some_and(|state| state.roll);
        let longer = self.folder.segment_bytes(last.name()).is_some_and(|bytes| bytes > last.bytes);
        rolled_before || longer || plan.is_some_and(SegmentPlan::is_cut)
    }

    async fn log_start_offset(&mut self, next_offset: u64) -> Result<u64, Trouble> {
        let Some(purged) = self.plan.purged else { return Ok(0) };
        let before = self.plan.state.as_ref().map(|state| (state.purged.map(Into::into), state.log_start_offset));
        if let Some((_, offset)) = before.filter(|(before, _)| *before == Some(purged)) {
            return Ok(offset);
        }
        if let Some((_, offset)) = self.plan.installed.filter(|(boundary, _)| *boundary == purged) {
            return Ok(offset);
        }
        let reaches = |segment: &&Segment| segment.last.index > purged.index;
        let Some(first) = self.segments.iter().find(reaches) else { return Ok(next_offset) };
        if first.first_index() > purged.index {
            return Ok(first.base_offset);
        }
        let mut held = Vec::new();
        if let Some(tail) = &self.tail {
            tail.read(purged.index + 1, purged.index + 2, Room::any(1), &mut held);
        }
        if let Some(frame) = held.first() {
            return Ok(frame.header.base_offset);
        }
        let (file, bytes) = (first.file.clone(), first.bytes);
        let unread = |error| Trouble::reading(file.path(), error);
        let mut stream = FrameStream::open_patiently(&file, 0, bytes, CHUNK_BYTES).await.map_err(unread)?;
        while let Some(header) = stream.next_header().await.map_err(unread)? {
            if header.index > purged.index {
                return Ok(header.base_offset);
            }
        }
        Err(format!("segment {} ends before entry {}", stem(file.name()), purged.index + 1).into())
    }

    /// Materialised state that is ahead of the log, or beside it, is thrown away and built again (RULES.md J16).
    fn check_application(&self, state: &LogState) -> Result<(), Trouble> {
        let Some(applied) = self.application.applied() else { return Ok(()) };
        let below = state.purged.is_some_and(|purged| applied.index < purged.index);
        if below || state.log_id_at(applied.index) == Some(applied) {
            return Ok(());
        }
        let (group, replica) = self.key;
        tracing::warn!(%group, %replica, %applied, end = ?state.head.last, "applied state is not the log's; rebuilding it");
        // What is beside the log can be made anew from it.
        self.application.discard().map_err(|error| Trouble::unread(&self.folder.dir, error))?;
        match (self.application.snapshot_at(), state.purged) {
            (SnapshotAt::Applied, Some(purged))
                if state.snapshot.as_ref().is_none_or(|snapshot| snapshot.last < purged) =>
            {
                Err("the applied state is not the log's, and no snapshot covers what was purged".to_owned().into())
            }
            _ => Ok(()),
        }
    }

    /// Files that hold more than their segment: what a truncation left, or bytes that nobody was told of.
    fn cuts(&self, state: &LogState) -> Vec<(Arc<SegmentFile>, u64)> {
        let longer = |segment: &&Segment| self.folder.segment_bytes(segment.name()) > Some(segment.bytes);
        state.segments.iter().filter(longer).map(|segment| (segment.file.clone(), segment.bytes)).collect()
    }

    /// Files in the folder that are no part of the log: left by a purge, a truncation, or an append that nobody was told of.
    fn leftovers(&self, state: &LogState) -> Vec<PathBuf> {
        let stems: Vec<String> = state.segments.iter().map(|segment| stem(segment.name())).collect();
        // What a purge of everything left beside the segment that comes next.
        let next = state.head.next_index();
        let keep = |name: &String| {
            let own =
                name.split_once('.').is_some_and(|(stem, kind)| kind != "tmp" && stems.iter().any(|own| own == stem));
            let snapshot = state.snapshot.as_ref().is_some_and(|snapshot| snapshot.name == *name);
            let base = state.segments.is_empty() && self.folder.bases_at(next).any(|base| base == name);
            (own && !name.ends_with(".tmp")) || snapshot || base
        };
        self.folder.names.iter().filter(|name| !keep(name)).map(|name| self.folder.dir.join(name)).collect()
    }
}
