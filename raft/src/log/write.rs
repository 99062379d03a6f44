//! Writing a log: append, truncate, purge, install, vote. What openraft asks of it, without openraft's types.
//!
//! Each of them changes the state and queues its journal operation under one lock, so that the journal's order is the
//! state's. None waits for the disk unless it says so. What a change leaves behind (files) goes only once the journal
//! record that says so is durable (RULES.md J14).

use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::oneshot;

use super::Log;
use super::base::{BASE_BYTES_MAX, Base};
use super::frame::{FRAME_HEADER_BYTES, Frame, FrameKind};
use super::head::{FrameRejected, Head};
use super::segment::{self, Segment, SegmentFile};
use super::state::{LogState, SnapshotRef};
use crate::disk::{read_file, replace_file};
use crate::error::{ReadError, Stopped};
use crate::journal::{Extent, Op, SegmentName};
use crate::segment_writer::{Job, Permit, Seal, Write};
use crate::types::{Appended, LogId, Membership, Offset, Outcome, Proposal, Vote, log_id};

/// An entry to append.
pub(crate) enum NewEntry {
    /// The leader's own, to be decided about.
    Proposed(LogId, Proposal),
    /// From the leader, decided.
    Stored(LogId, Frame),
    /// Raft's blank.
    Blank(LogId),
    /// Raft's membership.
    Membership(LogId, Membership),
}

/// Called once when an append is durable, or will never be.
pub(crate) type Flushed = Box<dyn FnOnce(io::Result<()>) + Send>;

impl NewEntry {
    fn id(&self) -> LogId {
        match self {
            Self::Proposed(id, _) | Self::Stored(id, _) | Self::Blank(id) | Self::Membership(id, _) => *id,
        }
    }

    /// About how many bytes its frame takes.
    fn bytes(&self) -> usize {
        FRAME_HEADER_BYTES
            + match self {
                Self::Proposed(_, proposal) => proposal.payload.len(),
                Self::Stored(_, frame) => frame.payload.len(),
                Self::Blank(_) => 0,
                Self::Membership(..) => 256,
            }
    }
}

/// The frames of one append, on their way to the journal.
struct Batch {
    headers: BytesMut,
    payloads: Vec<Bytes>,
    bytes: u64,
    first: Option<LogId>,
    last: Option<LogId>,
    flushed: Vec<(oneshot::Sender<Appended>, Appended)>,
}

impl Batch {
    fn add(&mut self, id: LogId, frame: &Frame) {
        self.headers.put_slice(&frame.header.encode());
        self.payloads.push(frame.payload.clone());
        self.bytes += frame.header.frame_bytes();
        self.first.get_or_insert(id);
        self.last = Some(id);
    }

    /// Headers and payloads in turn; the headers share one allocation.
    fn parts(headers: BytesMut, payloads: Vec<Bytes>) -> Vec<Bytes> {
        let mut headers = headers.freeze();
        let mut parts = Vec::with_capacity(payloads.len() * 2);
        for payload in payloads {
            parts.push(headers.split_to(FRAME_HEADER_BYTES));
            if !payload.is_empty() {
                parts.push(payload);
            }
        }
        parts
    }
}

impl Log {
    /// Appends entries. On return they are readable; `flushed` is called when they are durable. All or nothing: on an error
    /// none was appended.
    pub(crate) async fn append(self: &Arc<Self>, entries: Vec<NewEntry>, flushed: Flushed) -> io::Result<()> {
        if entries.is_empty() {
            flushed(Ok(()));
            return Ok(());
        }
        let _writing = self.writing.lock().await;
        let estimate: usize = entries.iter().map(NewEntry::bytes).sum();
        let permit = self.context.writer.reserve(estimate).await?;
        let next_index = entries[0].id().index;
        let file = self.make_room(next_index, estimate as u64).await;
        let mut state = self.state.lock();
        check_entries(&state, &entries)?;
        self.append_checked(&mut state, entries, file, (flushed, permit))
    }

    /// The file the next append goes to, with room for it. Room is a matter of the doors (RULES.md J18): if the disk is full
    /// all the same, the append goes on, because the journal has room of its own, and the segment writer waits for some.
    async fn make_room(&self, next_index: u64, bytes: u64) -> Arc<SegmentFile> {
        let (file, position) = {
            let mut state = self.state.lock();
            let fits = |segment: &Segment| segment.bytes + bytes <= self.context.config.segment_bytes_max;
            match state.segments.last() {
                Some(segment) if !state.roll && fits(segment) => (segment.file.clone(), segment.bytes),
                _ => (self.prepare(&mut state, next_index), 0),
            }
        };
        if let Err(error) = file.ensure_room(position, bytes).await {
            tracing::warn!(group = %self.group, %error, path = %file.path().display(), "no room for a segment");
        }
        file
    }

    /// The file for a segment that begins at `next_index`. File names never repeat (RULES.md J10).
    fn prepare(&self, state: &mut LogState, next_index: u64) -> Arc<SegmentFile> {
        if let Some(file) = state.prepared.clone().filter(|file| file.name().first_index == next_index) {
            return file;
        }
        self.drop_prepared(state);
        let name = SegmentName { first_index: next_index, file_no: state.next_file_no };
        state.next_file_no += 1;
        let file = SegmentFile::new(self.context.disk.clone(), &self.dir, name);
        state.prepared = Some(file.clone());
        file
    }

    fn drop_prepared(&self, state: &mut LogState) {
        if let Some(file) = state.prepared.take() {
            file.retire();
            self.context.writer.push(Job::Remove { log_dir: self.dir.clone(), files: vec![file] });
        }
    }

    fn append_checked(
        self: &Arc<Self>,
        state: &mut LogState,
        entries: Vec<NewEntry>,
        file: Arc<SegmentFile>,
        (flushed, permit): (Flushed, Permit),
    ) -> io::Result<()> {
        self.journal_commit(state);
        let (new, seal) = self.begin_segment(state, &file);
        let position = if new.is_some() { 0 } else { state.segments.last().map_or(0, |segment| segment.bytes) };
        let append = state.appends + 1;
        let batch = self.fill(state, entries, new, append).inspect_err(|error| {
            // Cannot be: the entries were checked. Memory now differs from the disk, so nothing may be acknowledged any more.
            self.context.stop.stop(&format!("an append of group {} failed half way: {error}", self.group));
        })?;
        state.appends = append;
        let (Some(first), Some(last)) = (batch.first, batch.last) else { return Ok(()) };
        let parts = Batch::parts(batch.headers, batch.payloads);
        let bytes = batch.bytes;
        let extent = Extent { segment: file.name(), position, bytes };
        let op = Op::Append { extent, parts: parts.clone(), first, last, target: file.clone() };
        self.context.count_journalled(batch.bytes);
        let told = batch.flushed;
        self.submit(state, op, move |log, result| {
            if result.is_ok() {
                let parts = if file.take_direct(position, bytes) { Vec::new() } else { parts };
                if let Some(seal) = seal {
                    log.context.writer.push(Job::Seal { log: log.clone(), seal });
                }
                let write = Write { log: log.clone(), file, position, parts, append, _permit: permit };
                log.context.writer.push(Job::Write(write));
                for (tell, appended) in told {
                    // The proposer may have stopped waiting.
                    let _ = tell.send(appended);
                }
            }
            flushed(result.map(drop).map_err(Into::into));
        });
        Ok(())
    }

    /// Starts a segment over `file` if that is not the last one's, and closes the last one.
    #[allow(clippy::type_complexity)]
    fn begin_segment(
        &self,
        state: &mut LogState,
        file: &Arc<SegmentFile>,
    ) -> (Option<(Arc<SegmentFile>, Arc<Base>)>, Option<Seal>) {
        let last = state.segments.last();
        if last.is_some_and(|segment| segment.name() == file.name()) {
            return (None, None);
        }
        let seal = last.filter(|_| !state.roll).map(seal);
        state.prepared = None;
        (Some((file.clone(), Arc::new(state.head.base()))), seal)
    }

    /// Makes the frames, and everything in memory that follows from them.
    fn fill(
        &self,
        state: &mut LogState,
        entries: Vec<NewEntry>,
        mut new: Option<(Arc<SegmentFile>, Arc<Base>)>,
        append: u64,
    ) -> Result<Batch, FrameRejected> {
        let mut batch = Batch {
            headers: BytesMut::with_capacity(entries.len() * FRAME_HEADER_BYTES),
            payloads: Vec::with_capacity(entries.len()),
            bytes: 0,
            first: None,
            last: None,
            flushed: Vec::new(),
        };
        for entry in entries {
            let id = entry.id();
            let (frame, told) = match entry {
                NewEntry::Proposed(id, proposal) => (state.head.decide(id, proposal.payload), proposal.flushed),
                NewEntry::Stored(_, frame) => (frame, None),
                NewEntry::Blank(id) => (state.head.internal(id, None), None),
                NewEntry::Membership(id, membership) => (state.head.internal(id, Some(&membership)), None),
            };
            state.head.observe(&frame)?;
            state.place(&frame, new.take(), self.context.config.index_interval_bytes);
            batch.add(id, &frame);
            if let Some(tell) = told {
                batch.flushed.push((tell, appended(&frame, Bytes::new())));
            }
            state.tail.push(frame, append);
        }
        state.tail.evict(state.appends_written);
        Ok(batch)
    }

    /// Lets the commit ride along with the operation that comes next (RULES.md J16).
    fn journal_commit(self: &Arc<Self>, state: &mut LogState) {
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
        self.durable(told).await?;
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
        let (head, cut) = self.head_at(last.map(|last| last.index)).await.map_err(io::Error::other)?;
        self.persist_base_at_start(head.base()).await?;
        let mut state = self.state.lock();
        let dropped = cut_segments(&mut state, last, cut);
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
        self.persist_base_after(upto).await?;
        let mut state = self.state.lock();
        let dropped = self.purge_locked(&mut state, upto, log_start_offset);
        self.submit(&mut state, Op::Purge(upto), move |log, result| {
            if result.is_ok() {
                log.context.writer.push(Job::Remove { log_dir: log.dir.clone(), files: dropped });
            }
        });
        Ok(())
    }

    fn purge_locked(&self, state: &mut LogState, upto: LogId, log_start_offset: u64) -> Vec<Arc<SegmentFile>> {
        state.purged = Some(upto);
        state.log_start_offset = log_start_offset;
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
    pub(super) async fn offset_after(&self, upto: LogId) -> io::Result<u64> {
        let (inside, end, start) = {
            let state = self.state.lock();
            (state.contains(upto.index + 1), state.head.next_index(), state.log_start_offset)
        };
        if upto.index >= end || upto.index + 1 == end {
            return Ok(self.state.lock().head.next_offset);
        }
        if !inside {
            return Ok(start);
        }
        let frames = self.read_some(upto.index + 1, upto.index + 2, 1, false).await.map_err(io::Error::other)?;
        frames.first().map(|frame| frame.header.base_offset).ok_or_else(|| io::Error::other("the log has a hole"))
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
        replace_file(&*self.context.disk, &segment::path(&self.dir, name, "base"), vec![base.encode()]).await?;
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
            let op = Op::Installed { boundary, next_offset: base.next_offset, snapshot: snapshot.name };
            self.submit(&mut state, op, move |log, result| {
                if result.is_ok() {
                    log.context.writer.push(Job::Remove { log_dir: log.dir.clone(), files: dropped });
                }
            });
            Self::last_submitted(&mut state)
        };
        self.durable(told).await?;
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
        replace_file(&*self.context.disk, &self.dir.join(&name), vec![bytes]).await?;
        let snapshot = SnapshotRef { name, last };
        let mut state = self.state.lock();
        if state.snapshot.as_ref().is_none_or(|newest| newest.last <= last) {
            let older = state.snapshot.replace(snapshot.clone()).filter(|older| older.name != snapshot.name);
            state.obsolete_snapshots.extend(older.map(|older| older.name));
        }
        Ok(snapshot)
    }

    /// How the log stood after the entry at `index` (`None`: before the first): what a snapshot or a truncation there needs;
    /// and, if that entry is neither the log's nor its segment's last, the segment as it would be if it ended there.
    pub(crate) async fn head_at(&self, index: Option<u64>) -> Result<(Head, Option<Segment>), ReadError> {
        let (at, first) = {
            let state = self.state.lock();
            if index == state.head.last.map(|last| last.index) {
                return Ok((Head::from_base(&*self.application, &state.head.base())?, None));
            }
            let at = index.and_then(|index| state.segment_of(index));
            (at, at.map_or(0, |at| state.segments[at].first_index()))
        };
        if let Some(base) = self.base_after(index).await? {
            return Ok((Head::from_base(&*self.application, &base)?, None));
        }
        let mut head = Head::from_base(&*self.application, &self.nearest_base(at.unwrap_or(0)).await?)?;
        let mut cut: Option<Segment> = None;
        while head.last.map(|last| last.index) < index {
            let next = head.next_index().max(self.first_kept_index());
            let frames = self.read_some(next, index.map_or(0, |index| index + 1), 1 << 20, true).await?;
            if frames.is_empty() {
                return Err(io::Error::other(format!("the log does not hold entry {next}")).into());
            }
            for frame in &frames {
                if frame.header.index >= first && cut.is_none() {
                    cut = self.segment_cut(&head, first, frame);
                }
                head.observe(frame).map_err(io::Error::from)?;
                if let Some(cut) = &mut cut {
                    cut.push(&frame.header);
                }
            }
        }
        Ok((head, cut))
    }

    fn first_kept_index(&self) -> u64 {
        self.state.lock().segments.first().map_or(0, Segment::first_index)
    }

    /// A copy of the segment that begins at `first`, without frames, its index to be made anew.
    fn segment_cut(&self, head: &Head, first: u64, frame: &Frame) -> Option<Segment> {
        let interval = self.context.config.index_interval_bytes;
        let state = self.state.lock();
        let segment = state.segments.iter().find(|segment| segment.first_index() == first)?;
        let base = segment.base.clone();
        let begun = Segment::begin(segment.file.clone(), Arc::new(head.base()), &frame.header, interval);
        Some(Segment { base, previous: segment.previous, ..begun })
    }

    /// The base of the segment that begins right after `index`, if there is one and it is sound.
    async fn base_after(&self, index: Option<u64>) -> Result<Option<Base>, ReadError> {
        let begins = |segment: &Segment| segment.previous.map(|previous| previous.index) == index;
        let at = self.state.lock().segments.iter().position(begins);
        match at {
            Some(at) => self.base_of(at).await,
            None => Ok(None),
        }
    }

    /// The base of the segment at `at`, if it is sound.
    async fn base_of(&self, at: usize) -> Result<Option<Base>, ReadError> {
        let Some((name, previous, base_offset, base)) = self.base_in_memory(at) else { return Ok(None) };
        if let Some(base) = base {
            return Ok(Some((*base).clone()));
        }
        let stored = self.read_base(&segment::path(&self.dir, name, "base")).await?;
        let fits = |base: &Base| base.last == previous && base.next_offset == base_offset;
        let empty = || (previous.is_none() && base_offset == 0).then(Base::default);
        Ok(stored.filter(fits).or_else(empty))
    }

    /// What the prefix of the segment at `at` tells, or of one before it if its own base is lost.
    async fn nearest_base(&self, at: usize) -> Result<Base, ReadError> {
        for at in (0..=at).rev() {
            if let Some(base) = self.base_of(at).await? {
                return Ok(base);
            }
        }
        let (purged, snapshot) = {
            let state = self.state.lock();
            (state.purged, state.snapshot.clone())
        };
        if let Some(snapshot) = snapshot.filter(|snapshot| Some(snapshot.last) == purged)
            && let Some(base) = self.read_base(&self.dir.join(&snapshot.name)).await?
        {
            return Ok(base);
        }
        let why = "neither a base nor a snapshot tells what the purged prefix held".to_owned();
        Err(ReadError::Corrupt { file: self.dir.clone(), position: 0, why })
    }

    #[allow(clippy::type_complexity)]
    fn base_in_memory(&self, at: usize) -> Option<(SegmentName, Option<LogId>, u64, Option<Arc<Base>>)> {
        let state = self.state.lock();
        let segment = state.segments.get(at)?;
        Some((segment.name(), segment.previous, segment.base_offset, segment.base.clone()))
    }

    async fn read_base(&self, path: &std::path::Path) -> Result<Option<Base>, ReadError> {
        match read_file(&*self.context.disk, path, BASE_BYTES_MAX).await {
            Ok(bytes) => match Base::decode(&bytes) {
                Ok(base) => Ok(Some(base)),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "corrupt base; reading from an earlier one");
                    Ok(None)
                }
            },
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Ok(None),
            Err(error) => Err(error.into()),
        }
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

/// What a proposer is told about the entry in `frame`.
pub(crate) fn appended(frame: &Frame, response: Bytes) -> Appended {
    let header = &frame.header;
    let outcome = match header.kind {
        FrameKind::Records => {
            Outcome::Records { base_offset: Offset(header.base_offset), span: header.offset_span, response }
        }
        FrameKind::Void => Outcome::Void { verdict: frame.payload.clone() },
        FrameKind::Blank | FrameKind::Membership => Outcome::Internal,
    };
    Appended { index: header.index, term: header.term, outcome }
}

fn seal(segment: &Segment) -> Seal {
    Seal { file: segment.file.clone(), index: segment.index.clone(), release: Some(segment.bytes) }
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

fn refuse_if_closed(state: &LogState) -> io::Result<()> {
    if state.closed { Err(io::Error::other("the replica is deleted")) } else { Ok(()) }
}

/// Whether all entries may follow, before any of them changes something.
fn check_entries(state: &LogState, entries: &[NewEntry]) -> io::Result<()> {
    refuse_if_closed(state)?;
    let (mut last, mut next_offset) = (state.head.last, state.head.next_offset);
    let mut proposed = false;
    for entry in entries {
        let id = entry.id();
        if last.is_some_and(|last| id.index != last.index + 1 || id < last) {
            return Err(FrameRejected::NotNext { found: id, last }.into());
        }
        match entry {
            NewEntry::Stored(_, frame) => {
                let header = &frame.header;
                let payload = matches!(header.kind, FrameKind::Records | FrameKind::Void);
                if !payload || log_id(header.term, header.index) != id || proposed {
                    return Err(invalid(format!("entry {id} holds a frame that cannot be stored: {header:?}")));
                }
                Head::check(header, last, next_offset)?;
                next_offset = header.next_offset();
            }
            NewEntry::Proposed(..) => proposed = true,
            NewEntry::Blank(_) | NewEntry::Membership(..) => {}
        }
        last = Some(id);
    }
    Ok(())
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
