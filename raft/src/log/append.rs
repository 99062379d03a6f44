//! Appending: the one serial point of a group, where proposals are decided and every frame gets its place (RULES.md O2).
//!
//! Everything in memory changes, and the journal's operation is queued, under one lock; the caller waits for room at most.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::oneshot;

use super::Log;
use super::base::Base;
use super::frame::{FRAME_HEADER_BYTES, Frame, FrameKind};
use super::head::{FrameRejected, Head};
use super::segment::{Segment, SegmentFile};
use super::state::LogState;
use super::write::{invalid, refuse_if_closed, seal};
use crate::journal::{Extent, Op, SegmentName};
use crate::payload::Application;
use crate::segment_writer::{Job, Permit, Seal, Write};
use crate::stages::Stages;
use crate::types::{Appended, LogId, Membership, Offset, Outcome, Proposal, log_id};

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

    /// Where it moves the log start to, if it does.
    fn moves_log_start(&self, application: &dyn Application) -> Option<u64> {
        match self {
            Self::Proposed(_, proposal) => application.moves_log_start(&proposal.payload),
            Self::Stored(_, frame) if frame.header.kind == FrameKind::Void => {
                application.moves_log_start(&frame.payload)
            }
            _ => None,
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
    stages: Vec<Arc<Stages>>,
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
        let permit = self.reserve(estimate).await?;
        let next_index = entries[0].id().index;
        let log_start = entries.iter().filter_map(|entry| entry.moves_log_start(&*self.application)).max();
        let file = self.make_room(next_index, estimate as u64, log_start).await;
        let mut state = self.state.lock();
        check_entries(&state, &entries)?;
        self.append_checked(&mut state, entries, file, (flushed, permit))
    }

    /// Nothing is appended until this is dropped.
    #[cfg(test)]
    pub(crate) async fn hold_appends(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.writing.lock().await
    }

    /// Waits until so many bytes more may be unwritten. On a full disk that may be long, and what makes room may be the end of
    /// this very group: then it is refused.
    async fn reserve(&self, bytes: usize) -> io::Result<Permit> {
        let mut abandoned = self.abandoned.subscribe();
        tokio::select! {
            biased;
            permit = self.context.writer.reserve(bytes) => Ok(permit?),
            _ = abandoned.wait_for(|abandoned| *abandoned) => Err(io::Error::other("the group is closing")),
        }
    }

    /// The file the next append goes to, with room for it. Room is a matter of the doors (RULES.md J18): if the disk is full
    /// all the same, the append goes on, because the journal has room of its own, and the segment writer waits for some.
    ///
    /// `log_start`: where one of the entries moves the log start to. If that is beyond all records of the last segment, the
    /// entry stands in a new one, so that the old one's room can be given back even if nothing else ever comes.
    async fn make_room(&self, next_index: u64, bytes: u64, log_start: Option<u64>) -> Arc<SegmentFile> {
        let segment_bytes_max = self.segment_bytes_max.load(Ordering::Relaxed);
        let (file, position) = {
            let mut state = self.state.lock();
            let fits = |segment: &Segment| {
                let over = segment.has_records() && log_start.is_some_and(|start| start >= segment.next_offset);
                segment.bytes + bytes <= segment_bytes_max && !over
            };
            match state.segments.last() {
                Some(segment) if !state.roll && !state.roll_due && fits(segment) => {
                    (segment.file.clone(), segment.bytes)
                }
                _ => (self.prepare(&mut state, next_index), 0),
            }
        };
        if let Err(error) = file.ensure_room(position, bytes).await {
            tracing::warn!(group = %self.group, %error, path = %file.path().display(), "no room for a segment");
        }
        file
    }

    /// The file for a segment that begins at `next_index`. File names never repeat (RULES.md J10).
    pub(super) fn prepare(&self, state: &mut LogState, next_index: u64) -> Arc<SegmentFile> {
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

    pub(super) fn drop_prepared(&self, state: &mut LogState) {
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
        self.context.instruments.append_bytes.increment(batch.bytes);
        #[cfg(any(test, feature = "simulation"))]
        let flushed = crate::sabotage::told_early(flushed);
        let (told, stages) = (batch.flushed, batch.stages);
        stages.iter().for_each(|stages| stages.note_appended());
        self.submit(state, op, move |log, result| {
            if result.is_ok() {
                stages.iter().for_each(|stages| stages.note_flushed());
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
            stages: Vec::new(),
        };
        for entry in entries {
            let id = entry.id();
            #[cfg(any(test, feature = "simulation"))]
            let stored = matches!(entry, NewEntry::Stored(..));
            let (frame, told) = match entry {
                NewEntry::Proposed(id, Proposal { payload, flushed, stages }) => {
                    batch.stages.extend(stages);
                    (state.head.decide(id, payload), flushed)
                }
                NewEntry::Stored(_, frame) => (frame, None),
                NewEntry::Blank(id) => (state.head.internal(id, None), None),
                NewEntry::Membership(id, membership) => (state.head.internal(id, Some(&membership)), None),
            };
            #[cfg(any(test, feature = "simulation"))]
            let (frame, table) = self.mistaken(state, id, frame, stored);
            state.head.observe(&frame)?;
            #[cfg(any(test, feature = "simulation"))]
            if let Some(table) = table {
                state.head.append_state = table;
            }
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
}

#[cfg(any(test, feature = "simulation"))]
impl Log {
    /// What a simulation's mistake makes of a frame that a follower stores, and the table that it goes on with.
    fn mistaken(
        &self,
        state: &LogState,
        id: LogId,
        frame: Frame,
        stored: bool,
    ) -> (Frame, Option<Box<dyn crate::payload::AppendState>>) {
        use crate::sabotage::{Sabotage, on};
        if stored && on(Sabotage::FollowersDecide) {
            return (state.head.decide(id, frame.payload), None);
        }
        if stored && on(Sabotage::FollowersForgetProducers) {
            let table = self.application.append_state(Some(&state.head.append_state.save()));
            return (frame, table.ok());
        }
        (frame, None)
    }
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
