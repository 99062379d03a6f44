//! Changing a log otherwise than by appending: vote, truncate, purge, install, delete.
//!
//! Each of them changes the state and queues its journal operation under one lock, so that the journal's order is the
//! state's. None waits for the disk unless it says so. What a change leaves behind (files) goes only once the journal
//! record that says so is durable (RULES.md J14).

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::Log;
use super::base::Base;
use super::damage::Reader;
use super::head::Head;
use super::segment::{self, Segment, SegmentFile};
use super::state::{LogState, SnapshotRef};
use super::tail::Room;
use crate::error::Stopped;
use crate::journal::{Op, SegmentName};
use crate::segment_writer::{Job, Seal};
use crate::types::{LogId, Vote};

impl Log {
    /// Lets the commit ride along with the operation that comes next (RULES.md J16).
    pub(super) fn journal_commit(self: &Arc<Self>, state: &mut LogState) {
        // Only what the journal holds before it: a commit may outrun the local log's end.
        let Some(committed) = state.committed.min(state.head.last) else { return };
        if state.committed_journalled < Some(committed) {
            state.committed_journalled = Some(committed);
            self.submit(state, Op::Commit(committed), |_, _| {});
        }
    }

    /// Saves the vote; durable on return.
    pub(crate) async fn save_vote(self: &Arc<Self>, vote: Vote) -> io::Result<()> {
        let _writing = self.writing.lock().await;
        let told = {
            let mut state = self.state.lock();
            refuse_if_closed(&state)?;
            state.vote = Some(vote);
            self.submit(&mut state, Op::Vote(vote), |_, _| {});
            Self::last_submitted(&mut state)
        };
        #[cfg(any(test, feature = "simulation"))]
        if crate::sabotage::on(crate::sabotage::Sabotage::AnswerBeforeSync) {
            return Ok(());
        }
        self.durable_for_core(told).await?;
        Ok(())
    }

    /// Ends the log after `last` (`None`: empties it). The next append opens a new file. Committed entries are never taken away.
    pub(crate) async fn truncate_after(self: &Arc<Self>, last: Option<LogId>) -> io::Result<()> {
        let _writing = self.writing.lock().await;
        {
            let state = self.state.lock();
            refuse_if_closed(&state)?;
            if last.map(|last| last.index) >= state.head.last.map(|last| last.index) {
                return Ok(());
            }
            let known = last.is_none_or(|last| state.log_id_at(last.index) == Some(last));
            if !known || last < state.purged || last < state.committed {
                let (purged, committed) = (state.purged, state.committed);
                let why = format!("truncation after {last:?}: purged {purged:?}, committed {committed:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        }
        let (mut head, cut) = self.head_at(last.map(|last| last.index)).await.map_err(io::Error::other)?;
        if cut.is_none() && last.is_some_and(|last| self.state.lock().is_inside(last.index)) {
            let why = format!("{}: no base tells how the segment that {last:?} is in begins", self.dir.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        self.persist_base_at_start(head.base()).await?;
        let mut state = self.state.lock();
        let dropped = cut_segments(&mut state, last, cut);
        #[cfg(any(test, feature = "simulation"))]
        if crate::sabotage::on(crate::sabotage::Sabotage::TruncationKeepsTheTable) {
            std::mem::swap(&mut head.append_state, &mut state.head.append_state);
        }
        tracing::debug!(group = %self.group, ?last, end = ?state.head.last, "truncated");
        head.recall(&state.head.memberships);
        state.head = head;
        state.roll = true;
        state.generation += 1;
        state.tail.truncate_after(last.map(|last| last.index));
        let seal = state.segments.last().map(|segment| Seal { release: None, ..seal(segment) });
        self.submit(&mut state, Op::Truncate(last), move |log, result| {
            if result.is_ok() {
                if let Some(seal) = seal {
                    log.context.writer.push(Job::Seal { log: log.clone(), seal });
                }
                log.context.writer.push(Job::Remove { log_dir: log.dir.clone(), files: dropped });
            }
        });
        Ok(())
    }

    /// Drops the entries up to and including `upto`, which a durable snapshot covers. Beyond the log's end it becomes the
    /// new end.
    pub(crate) async fn purge(self: &Arc<Self>, upto: LogId) -> io::Result<()> {
        let _writing = self.writing.lock().await;
        {
            let state = self.state.lock();
            refuse_if_closed(&state)?;
            if Some(upto) <= state.purged {
                return Ok(());
            }
        }
        let log_start_offset = self.offset_after(upto).await?;
        // By a task of its own: whoever waits for a purge may give up in the middle of a sync, and its failure must be heard (RULES.md J15).
        let log = self.clone();
        let persisted = tokio::spawn(async move { log.persist_base_after(upto).await });
        persisted.await.map_err(io::Error::other)??;
        let mut state = self.state.lock();
        let dropped = self.purge_locked(&mut state, upto, log_start_offset);
        #[cfg(any(test, feature = "simulation"))]
        if crate::sabotage::on(crate::sabotage::Sabotage::PurgeResetsTheWatermark) {
            self.high_watermark.send_replace(crate::types::Offset(log_start_offset));
        }
        self.submit(&mut state, Op::Purge(upto), move |log, result| {
            if result.is_ok() {
                log.context.writer.push(Job::Remove { log_dir: log.dir.clone(), files: dropped });
            }
        });
        Ok(())
    }

    /// Drops what the newest snapshot covers, as it should have been when that was taken. Before a core starts: where a crash came
    /// between, openraft would install the snapshot, and then look for entries that are gone with it.
    pub(crate) async fn purge_to_snapshot(self: &Arc<Self>) -> io::Result<()> {
        match self.snapshot().filter(|newest| self.log_id_at(newest.last.index) == Some(newest.last)) {
            Some(newest) => {
                self.purge(newest.last).await?;
                self.set_committed(Some(newest.last));
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn purge_locked(&self, state: &mut LogState, upto: LogId, log_start_offset: u64) -> Vec<Arc<SegmentFile>> {
        state.purged = Some(upto);
        // The log may have said before that less is to be read than is there.
        state.log_start_offset = state.log_start_offset.max(log_start_offset);
        if state.head.next_index() <= upto.index {
            // openraft does so only after a snapshot was installed, and then this is where the log stands already.
            tracing::error!(group = %self.group, %upto, end = ?state.head.last, "purged beyond the end");
            state.head.last = Some(upto);
            state.tail.truncate_after(None);
            state.generation += 1;
        }
        let written = state.appends_written;
        state.tail.purge(upto.index, written);
        let dropped = state.take_segments_below(upto.index);
        dropped.into_iter().map(|segment| segment.file).collect()
    }

    /// The next offset after `upto`.
    pub(crate) async fn offset_after(&self, upto: LogId) -> io::Result<u64> {
        let (inside, end, start) = {
            let state = self.state.lock();
            // At a segment's start nothing need be read.
            if let Some(next) = state.segments.iter().find(|segment| segment.previous == Some(upto)) {
                return Ok(next.base_offset);
            }
            (state.contains(upto.index + 1), state.head.next_index(), state.log_start_offset)
        };
        if upto.index >= end || upto.index + 1 == end {
            return Ok(self.state.lock().head.next_offset);
        }
        if !inside {
            return Ok(start);
        }
        let frames = self
            .read_some_mended(upto.index + 1, upto.index + 2, Room::any(1), false, Reader::Group)
            .await
            .map_err(io::Error::other)?;
        frames.first().map(|frame| frame.header.base_offset).ok_or_else(|| io::Error::other("the log has a hole"))
    }

    /// Writes what a purge up to there has to write before it may purge, unless something is being written to the log just now.
    pub(crate) async fn prepare_purge(self: &Arc<Self>, upto: LogId) -> io::Result<()> {
        let Ok(_writing) = self.writing.try_lock() else { return Ok(()) };
        if self.state.lock().purged >= Some(upto) {
            return Ok(());
        }
        let log = self.clone();
        tokio::spawn(async move { log.persist_base_after(upto).await }).await.map_err(io::Error::other)?
    }

    /// Makes durable what the prefix of the first segment that survives a purge tells: after it nothing else will.
    async fn persist_base_after(&self, upto: LogId) -> io::Result<()> {
        let (name, base) = {
            let mut state = self.state.lock();
            match state.segments.iter().find(|segment| segment.last.index > upto.index) {
                Some(segment) => (segment.name(), segment.base.clone()),
                // Nothing survives: it goes beside the segment that will come next.
                None if state.head.last == Some(upto) => {
                    let next_index = state.head.next_index();
                    (self.prepare(&mut state, next_index).name(), Some(Arc::new(state.head.base())))
                }
                None => return Ok(()),
            }
        };
        self.persist_base(name, base).await
    }

    /// Before every segment goes by a truncation to where the log begins: makes durable what the purged prefix tells, beside
    /// the segment that will come next. The base that said so goes with its segment.
    async fn persist_base_at_start(&self, base: Base) -> io::Result<()> {
        let next_index = base.last.map_or(0, |last| last.index + 1);
        let name = {
            let mut state = self.state.lock();
            self.drop_prepared(&mut state);
            let nothing_stays = state.segments.first().is_none_or(|segment| segment.first_index() >= next_index);
            if base.last.is_none() || !nothing_stays {
                return Ok(());
            }
            self.prepare(&mut state, next_index).name()
        };
        self.persist_base(name, Some(Arc::new(base))).await
    }

    /// Writes a segment's base beside it, durably, if that has not been done.
    pub(crate) async fn persist_base(&self, name: SegmentName, base: Option<Arc<Base>>) -> io::Result<()> {
        let Some(base) = base else { return Ok(()) };
        let Some(_folder) = self.folder().await? else { return Ok(()) };
        self.put(&segment::path(&self.dir, name, "base"), base.encode()).await?;
        let mut state = self.state.lock();
        if let Some(segment) = state.segments.iter_mut().find(|segment| segment.name() == name) {
            segment.base = None;
        }
        Ok(())
    }

    /// Makes a snapshot file durable and the log begin after it (RULES.md J17). A log that holds the snapshot's last entry
    /// keeps what follows; any other is emptied. Durable on return.
    pub(crate) async fn install(self: &Arc<Self>, base: &Base, bytes: Bytes) -> io::Result<()> {
        let _writing = self.writing.lock().await;
        let boundary = base.last.ok_or_else(|| invalid("a snapshot of nothing".into()))?;
        let (purged, held, end) = {
            let state = self.state.lock();
            refuse_if_closed(&state)?;
            (state.purged, state.log_id_at(boundary.index) == Some(boundary), state.head.next_index())
        };
        if Some(boundary) <= purged {
            // At a start, the snapshot that is there is installed again.
            if self.snapshot().is_none_or(|newest| newest.last < boundary) {
                self.write_snapshot(boundary, bytes).await?;
            }
            return Ok(());
        }
        if !held && boundary.index < end {
            return Err(invalid(format!("snapshot at {boundary} contradicts the log")));
        }
        // Built first: after the journal record nothing may fail any more.
        let head = Head::from_base(&*self.application, base)?;
        let snapshot = self.write_snapshot(boundary, bytes).await?;
        if held {
            self.persist_base_after(boundary).await?;
        }
        let told = {
            let mut state = self.state.lock();
            let dropped = self.purge_or_reset(&mut state, boundary, base.next_offset, (!held).then_some(head));
            state.committed = state.committed.max(Some(boundary));
            // With the log's start, not after the sync below: nobody may see the start above the high watermark meanwhile.
            self.raise_high_watermark(base.next_offset);
            let op = Op::Installed { boundary, next_offset: base.next_offset, snapshot: snapshot.name };
            self.submit(&mut state, op, move |log, result| {
                if result.is_ok() {
                    log.context.writer.push(Job::Remove { log_dir: log.dir.clone(), files: dropped });
                }
            });
            Self::last_submitted(&mut state)
        };
        self.durable_for_core(told).await?;
        Ok(())
    }

    fn purge_or_reset(
        &self,
        state: &mut LogState,
        boundary: LogId,
        next_offset: u64,
        reset: Option<Head>,
    ) -> Vec<Arc<SegmentFile>> {
        if let Some(head) = reset {
            state.head = head;
            state.tail.truncate_after(None);
            state.generation += 1;
            self.drop_prepared(state);
        }
        self.purge_locked(state, boundary, next_offset)
    }

    /// Writes a snapshot file, durably, and makes it the newest. Older ones go with the next checkpoint.
    pub(crate) async fn write_snapshot(&self, last: LogId, bytes: Bytes) -> io::Result<SnapshotRef> {
        let name = snapshot_name(last);
        let Some(_folder) = self.folder().await? else { return Err(invalid("the replica is deleted".into())) };
        self.put(&self.dir.join(&name), bytes).await?;
        let snapshot = SnapshotRef { name, last };
        let mut state = self.state.lock();
        if state.snapshot.as_ref().is_none_or(|newest| newest.last <= last) {
            let older = state.snapshot.replace(snapshot.clone()).filter(|older| older.name != snapshot.name);
            state.obsolete_snapshots.extend(older.map(|older| older.name));
        }
        Ok(snapshot)
    }

    /// Takes no more operations from now on, and journals that the replica is deleted. Durable on return.
    pub(crate) async fn delete(self: &Arc<Self>) -> Result<(), Stopped> {
        let _writing = self.writing.lock().await;
        let told = {
            let mut state = self.state.lock();
            state.closed = true;
            state.segments.iter().for_each(|segment| segment.file.retire());
            state.prepared.iter().for_each(|file| file.retire());
            self.submit(&mut state, Op::Delete, |_, _| {});
            Self::last_submitted(&mut state)
        };
        self.durable(told).await.map(drop)
    }

    /// Journals that the replica exists, unless that has been done. Durable on return.
    pub(crate) async fn create(self: &Arc<Self>) -> Result<(), Stopped> {
        let told = {
            let mut state = self.state.lock();
            if !std::mem::replace(&mut state.created, true) {
                self.submit(&mut state, Op::Create, |_, _| {});
            }
            Self::last_submitted(&mut state)
        };
        self.durable(told).await.map(drop)
    }
}

/// The name of a snapshot's file.
pub(crate) fn snapshot_name(last: LogId) -> String {
    format!("snapshot-{:020}", last.index)
}

/// What is left to do for a segment that is full.
pub(super) fn seal(segment: &Segment) -> Seal {
    Seal { file: segment.file.clone(), index: segment.index.clone(), release: Some(segment.bytes) }
}

pub(super) fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

pub(super) fn refuse_if_closed(state: &LogState) -> io::Result<()> {
    if state.closed { Err(io::Error::other("the replica is deleted")) } else { Ok(()) }
}

/// Ends the segments after `last`, whose segment becomes `cut`. Returns the files that fall out.
fn cut_segments(state: &mut LogState, last: Option<LogId>, cut: Option<Segment>) -> Vec<Arc<SegmentFile>> {
    let keep = state.segments.partition_point(|segment| Some(segment.first_index()) <= last.map(|last| last.index));
    let dropped = state.segments.split_off(keep);
    if let (Some(cut), Some(segment)) = (cut, state.segments.last_mut()) {
        *segment = cut;
    }
    // What is left of a segment may lie below the purge boundary as a whole. It stays: its base, and its frames, tell how the
    // log stands.
    dropped.into_iter().map(|segment| segment.file).collect()
}
