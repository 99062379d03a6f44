//! Walking a segment from its beginning, and putting back what is rotten in it (RULES.md R7).
//!
//! What Raft knows of a segment stands in memory, from checkpoint and journal: which entries it holds, in which terms, from which
//! offset to which, in how many bytes. A frame from a peer that has the term and index that belong here *is* the entry (a term's
//! leader makes one entry of an index); its bytes are the same on every replica, so it fits exactly where the rotten ones stand. So
//! nothing acknowledged is ever replaced by something else, and a repair that a crash interrupts is simply begun again.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::Log;
use super::base::Base;
use super::frame::{FRAME_HEADER_BYTES, Frame, FrameHeader};
use super::segment::{self, SegmentFile};
use super::state::SnapshotRef;
use super::tail::Room;
use crate::disk::{is_out_of_files, is_passing};
use crate::error::ReadError;
use crate::inspect::Window;
use crate::journal::SegmentName;
use crate::payload::SnapshotAt;

/// Frames that are held before they are written, when much is missing at a stretch.
const HOLE_BYTES_MAX: usize = 8 << 20;
/// Entries that nobody has, after which an attempt ends: each of them may have cost a wait for every peer.
const MISSING_MAX: usize = 8;
/// A walk that is paced pauses after so many bytes.
const PACE_BYTES: u64 = 256 << 10;

/// The entry that belongs at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) index: u64,
    pub(crate) term: u64,
    /// The partition's next offset before it.
    pub(crate) base_offset: u64,
    /// Bytes of its segment from there on: no frame is longer.
    pub(crate) room: u64,
    /// Entries up to this one (exclusive) will probably be wanted next.
    pub(crate) until: u64,
}

impl Wanted {
    /// Whether this frame is that entry, as far as Raft's knowledge goes. Its checksums were compared when it was decoded.
    pub(crate) fn fits(&self, header: &FrameHeader) -> bool {
        (header.index, header.term, header.base_offset) == (self.index, self.term, self.base_offset)
            && header.frame_bytes() <= self.room
    }
}

/// Why a frame is not to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoFrame {
    /// Nobody who was asked has it.
    Nowhere {
        /// Who was asked and what they said.
        why: String,
        /// Whether every other member was asked, and said that it has no such entry.
        everybody: bool,
        /// There is little hope for it, and little need of it: a peer has purged it, or has an entry of a later term in its place. (That one
        /// need not be committed, so this is no proof, Raft §5.4.2; but to replace the replica is as safe as to repair it, and only
        /// costs a copy.)
        needless: bool,
    },
    /// Another entry is committed in its place. So this one never was and never will be, nor any that stands behind it here: a log
    /// that holds a committed entry holds all the entries that were committed before it (Raft §5.3, §5.4.3).
    Superseded(String),
}

/// Where frames come from that are not here.
pub(crate) trait FrameSource: Send {
    /// A frame that [`Wanted::fits`].
    fn frame(&mut self, wanted: Wanted) -> BoxFuture<'_, Result<Frame, NoFrame>>;
}

/// What a repair has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mended {
    /// Frames that were put back.
    pub(crate) frames: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
}

/// Why a segment is not mended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MendError {
    /// Nobody that could be asked has this entry.
    #[error("entry {index} was not found: {why}")]
    NotFound {
        /// The entry.
        index: u64,
        /// Who was asked and what they said.
        why: String,
        /// Whether nobody is left to be asked.
        everybody: bool,
        /// See [`NoFrame::Nowhere`].
        needless: bool,
    },
    /// The log ends before this entry, by what is committed elsewhere.
    #[error("entry {index} was superseded: {why}")]
    Superseded {
        /// The entry.
        index: u64,
        /// By what.
        why: String,
    },
    /// The log changed under way; it is to be tried again.
    #[error("the log changed meanwhile")]
    Changed,
    /// What the peers have does not fit here, or the disk does not keep it.
    #[error("{0}")]
    Unfit(String),
    /// The operating system said no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What is known of a segment without reading it, as of one moment.
struct Facts {
    file: Arc<SegmentFile>,
    /// The entries that stand in the file: from the first up to this one, exclusive. Later ones are in the tail cache.
    first: u64,
    until: u64,
    /// Where the entry at `until` begins, and the next offset there.
    end: u64,
    end_offset: u64,
    base_offset: u64,
    terms: Vec<(u64, u64)>,
    generation: u64,
}

impl Facts {
    fn term_at(&self, index: u64) -> u64 {
        let at = self.terms.partition_point(|(_, first)| *first <= index);
        at.checked_sub(1).map_or(0, |at| self.terms[at].0)
    }

    fn wanted(&self, place: &Place) -> Wanted {
        Wanted {
            index: place.index,
            term: self.term_at(place.index),
            base_offset: place.offset,
            room: self.end - place.position,
            until: self.until,
        }
    }
}

/// How far a walk has come.
#[derive(Clone, Copy)]
struct Place {
    index: u64,
    position: u64,
    offset: u64,
}

impl Place {
    fn start(facts: &Facts) -> Self {
        Self { index: facts.first, position: 0, offset: facts.base_offset }
    }

    fn pass(&mut self, header: &FrameHeader) {
        self.index += 1;
        self.position += header.frame_bytes();
        self.offset = header.next_offset();
    }

    fn is_end(&self, facts: &Facts) -> bool {
        (self.index, self.position, self.offset) == (facts.until, facts.end, facts.end_offset)
    }
}

/// Frames that are to be written, one behind the other, from a position on.
#[derive(Default)]
struct Hole {
    position: u64,
    parts: Vec<Bytes>,
    frames: u64,
    bytes: usize,
}

impl Log {
    fn facts(&self, name: SegmentName) -> Option<Facts> {
        let state = self.state.lock();
        let segment = state.segments.iter().find(|segment| segment.name() == name)?;
        let mut cached = Vec::new();
        if let Some(from) = state.tail.first_index().filter(|from| *from <= segment.last.index) {
            state.tail.read(from.max(name.first_index), segment.last.index + 1, Room::any(usize::MAX), &mut cached);
        }
        let cached_bytes: u64 = cached.iter().map(|frame| frame.header.frame_bytes()).sum();
        let first_cached = cached.first().map(|frame| &frame.header);
        Some(Facts {
            file: segment.file.clone(),
            first: name.first_index,
            until: first_cached.map_or(segment.last.index + 1, |header| header.index),
            end: segment.bytes - cached_bytes,
            end_offset: first_cached.map_or(segment.next_offset, |header| header.base_offset),
            base_offset: segment.base_offset,
            terms: segment.terms.clone(),
            generation: state.generation,
        })
    }

    /// The files beside the segments, and the snapshot: an index that is not written yet is not among them.
    pub(crate) fn side_files(&self) -> Vec<PathBuf> {
        let state = self.state.lock();
        let closed = state.segments.len().saturating_sub(1);
        let indexes = state.segments.iter().take(closed).map(|one| segment::path(&self.dir, one.name(), "index"));
        let based = state.segments.iter().filter(|one| one.base.is_none());
        let bases = based.map(|one| segment::path(&self.dir, one.name(), "base"));
        let snapshot = state.snapshot.iter().map(|snapshot| self.dir.join(&snapshot.name));
        indexes.chain(bases).chain(snapshot).collect()
    }

    /// Writes a segment's index anew, from the segment.
    pub(crate) async fn rewrite_index(&self, name: SegmentName) -> Result<(), ReadError> {
        self.load_index(name).await?;
        let bytes = {
            let state = self.state.lock();
            let segment = state.segments.iter().find(|segment| segment.name() == name);
            segment.filter(|segment| segment.index.is_complete()).map(|segment| segment.index.encode(name))
        };
        let Some(bytes) = bytes else { return Ok(()) };
        let Some(_folder) = self.folder().await? else { return Ok(()) };
        Ok(self.put(&segment::path(&self.dir, name, "index"), bytes).await?)
    }

    /// Writes the newest snapshot anew, if it only tells how the log stood: one that holds applied state is made anew by its group,
    /// when it is asked for. Returns whether it was.
    pub(crate) async fn rewrite_snapshot(&self, name: &str) -> Result<bool, ReadError> {
        let newest = self.snapshot().filter(|newest| newest.name == name);
        let Some(newest) = newest.filter(|_| self.application.snapshot_at() == SnapshotAt::Boundary) else {
            return Ok(false);
        };
        let base = self.base_at_snapshot(&newest).await?;
        self.write_snapshot(newest.last, base.encode()).await?;
        Ok(true)
    }

    /// How the log stood where a snapshot was taken, from what else tells it.
    pub(crate) async fn base_at_snapshot(&self, snapshot: &SnapshotRef) -> Result<Base, ReadError> {
        let base = self.head_at(Some(snapshot.last.index)).await?.0.base();
        if base.last != Some(snapshot.last) {
            return Err(
                io::Error::other(format!("the log has {:?} where {} was taken", base.last, snapshot.name)).into()
            );
        }
        Ok(base)
    }

    /// Writes a segment's base anew, from an earlier one and the segments since. `Corrupt` if they do not tell it.
    pub(crate) async fn rewrite_base(&self, name: SegmentName) -> Result<(), ReadError> {
        let previous = {
            let state = self.state.lock();
            let segment = state.segments.iter().find(|segment| segment.name() == name);
            segment.map(|segment| (segment.previous, segment.base_offset))
        };
        let Some((previous, base_offset)) = previous else { return Ok(()) };
        let (head, _) = self.head_at(previous.map(|previous| previous.index)).await?;
        if (head.last, head.next_offset) != (previous, base_offset) {
            let why = format!("the log stands at {:?} and offset {}, before {name:?}", head.last, head.next_offset);
            return Err(ReadError::Corrupt { file: segment::path(&self.dir, name, "base"), position: 0, why });
        }
        Ok(self.persist_base(name, Some(Arc::new(head.base()))).await?)
    }

    /// Reads every frame that stands in a segment's file and compares it with what Raft knows. Returns the bytes read; rot is
    /// noted. No faster than so many bytes per second (0: as fast as it can).
    pub(crate) async fn check_segment(&self, name: SegmentName, bytes_per_second: u64) -> Result<u64, ReadError> {
        loop {
            let Some(facts) = self.facts(name) else { return Ok(0) };
            let (place, bad) = self.walk(&facts, bytes_per_second).await.map_err(ReadError::Io)?;
            let Some(why) = bad else { return Ok(place.position) };
            // What was cut or purged meanwhile is nobody's concern.
            match self.facts(name) {
                None => return Ok(place.position),
                Some(now) if now.generation != facts.generation => {}
                Some(_) => {
                    let (file, position) = (facts.file.path().to_owned(), place.position);
                    return Err(self.judge_read(name, ReadError::Corrupt { file, position, why }));
                }
            }
        }
    }

    /// Walks as far as the frames are what they should be; says what is wrong with the next one, if something is. An error says nothing
    /// of them ([`is_passing`]).
    async fn walk(&self, facts: &Facts, bytes_per_second: u64) -> io::Result<(Place, Option<String>)> {
        let mut place = Place::start(facts);
        let mut window = match Window::open(&*self.context.disk, facts.file.path()).await {
            Ok(window) => window,
            Err(error) if is_passing(&error) => return Err(error),
            Err(error) => return Ok((place, (facts.until > facts.first).then(|| error.to_string()))),
        };
        let mut paced = 0;
        while place.index < facts.until {
            match sound_frame(&mut window, &facts.wanted(&place), place.position).await {
                Ok(frame) => place.pass(&frame.header),
                Err(why) => return Ok((place, Some(why))),
            }
            if bytes_per_second > 0 && place.position - paced >= PACE_BYTES {
                let micros = (place.position - paced).saturating_mul(1_000_000) / bytes_per_second;
                tokio::time::sleep(Duration::from_micros(micros)).await;
                paced = place.position;
            }
        }
        let whole = place.is_end(facts);
        Ok((place, (!whole).then(|| "its frames do not end where the log does".to_owned())))
    }

    /// Puts back what is rotten in a segment, with frames of `source`. On return the segment is whole, durably.
    pub(crate) async fn mend_segment(
        &self,
        name: SegmentName,
        source: &mut dyn FrameSource,
    ) -> Result<Mended, MendError> {
        let Some(facts) = self.facts(name) else {
            self.note_mended(name);
            return Ok(Mended::default());
        };
        let mended = self.fill_holes(&facts, source).await?;
        // Whoever found the frames missing: an attempt before this one may have put them back, and gone no further.
        self.sync_mended(&facts.file).await?;
        match self.walk(&facts, 0).await.map_err(MendError::Io)? {
            (_, None) => {
                self.note_mended(name);
                Ok(mended)
            }
            (place, Some(why)) => {
                self.unchanged(name, &facts)?;
                Err(MendError::Unfit(format!("at {}, after it was put back: {why}", place.position)))
            }
        }
    }

    /// Ends the log before an entry that was superseded ([`NoFrame::Superseded`]), as the leader would have it once it spoke to
    /// this replica. Refused if the entry is known here to be committed. No core may run over the log.
    pub(crate) async fn end_before(self: &Arc<Self>, index: u64) -> io::Result<()> {
        let last = index.checked_sub(1).and_then(|before| self.log_id_at(before));
        if index > 0 && last.is_none() {
            return Err(io::Error::other(format!("entry {} is not in the log", index - 1)));
        }
        self.truncate_after(last).await
    }

    async fn fill_holes(&self, facts: &Facts, source: &mut dyn FrameSource) -> Result<Mended, MendError> {
        let mut window = match Window::open(&*self.context.disk, facts.file.path()).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other?),
        };
        let (mut place, mut hole, mut mended) = (Place::start(facts), Hole::default(), Mended::default());
        let mut missing = Vec::new();
        while place.index < facts.until {
            let wanted = facts.wanted(&place);
            let here = match &mut window {
                Some(window) => sound_frame(window, &wanted, place.position).await.ok(),
                None => None,
            };
            if let Some(frame) = here {
                // What was fetched fits exactly: it is what stood there.
                self.write_hole(facts, std::mem::take(&mut hole), &mut mended).await?;
                place.pass(&frame.header);
                continue;
            }
            let index = place.index;
            let frame = match source.frame(wanted).await {
                Ok(frame) => frame,
                Err(none) => {
                    // What comes before it is good, whatever becomes of it.
                    self.write_hole(facts, std::mem::take(&mut hole), &mut mended).await?;
                    let is_last = matches!(none, NoFrame::Superseded(_)) || missing.len() + 1 >= MISSING_MAX;
                    missing.push(MendError::at(index, none));
                    // Its own header vouches for its length, and so for where the next one stands. Nothing else does: an index is never
                    // trusted over its segment, and what looks like a header further on may be part of a payload.
                    match &mut window {
                        Some(window) if !is_last => match sound_header(window, &wanted, place.position).await {
                            Ok(header) => place.pass(&header),
                            Err(_) => break,
                        },
                        _ => break,
                    }
                    continue;
                }
            };
            if !wanted.fits(&frame.header) {
                return Err(MendError::Unfit(format!("entry {index} does not fit: {:?}", frame.header)));
            }
            if hole.bytes >= HOLE_BYTES_MAX {
                self.write_hole(facts, std::mem::take(&mut hole), &mut mended).await?;
            }
            hole.take(place.position, &frame);
            place.pass(&frame.header);
        }
        if !missing.is_empty() {
            self.write_hole(facts, hole, &mut mended).await?;
            if mended.frames > 0 {
                self.sync_mended(&facts.file).await?;
            }
            // What is to be done about the first one is to be done first.
            return Err(missing.swap_remove(0));
        }
        if !place.is_end(facts) {
            self.unchanged(facts.file.name(), facts)?;
            return Err(MendError::Unfit(format!(
                "the frames that were found end at {} and offset {}, the segment's at {} and offset {}",
                place.position, place.offset, facts.end, facts.end_offset
            )));
        }
        self.write_hole(facts, hole, &mut mended).await?;
        Ok(mended)
    }

    async fn write_hole(&self, facts: &Facts, hole: Hole, mended: &mut Mended) -> Result<(), MendError> {
        if hole.frames == 0 {
            return Ok(());
        }
        self.unchanged(facts.file.name(), facts)?;
        facts.file.write(hole.position, hole.parts).await?;
        mended.frames += hole.frames;
        mended.bytes += hole.bytes as u64;
        Ok(())
    }

    /// A failed sync stops the directory, as everywhere (RULES.md J15); but not one that was not begun, for want of open files. The
    /// file may have been made anew.
    async fn sync_mended(&self, file: &SegmentFile) -> Result<(), MendError> {
        let synced = async {
            file.sync().await?;
            match self.folder().await? {
                Some(_folder) => self.sync_dir(&self.dir).await.map(|()| true),
                None => Ok(false),
            }
        };
        match synced.await {
            Ok(true) => Ok(()),
            // The replica is deleted, and its folder with it.
            Ok(false) => Err(MendError::Changed),
            Err(error) if is_out_of_files(&error) => Err(MendError::Io(error)),
            Err(error) => {
                self.context.stop.stop(&format!("{}: {error}", file.path().display()));
                Err(MendError::Io(error))
            }
        }
    }

    /// Whether what was known of a segment when its repair began still holds.
    fn unchanged(&self, name: SegmentName, facts: &Facts) -> Result<(), MendError> {
        let state = self.state.lock();
        let known = state.segments.iter().any(|segment| segment.name() == name);
        if known && !state.closed && state.generation == facts.generation { Ok(()) } else { Err(MendError::Changed) }
    }
}

impl MendError {
    fn at(index: u64, none: NoFrame) -> Self {
        match none {
            NoFrame::Nowhere { why, everybody, needless } => Self::NotFound { index, why, everybody, needless },
            NoFrame::Superseded(why) => Self::Superseded { index, why },
        }
    }
}

impl Hole {
    fn take(&mut self, position: u64, frame: &Frame) {
        if self.frames == 0 {
            self.position = position;
        }
        self.parts.extend(frame.encode().into_iter().filter(|part| !part.is_empty()));
        self.frames += 1;
        self.bytes += frame.header.frame_bytes() as usize;
    }
}

/// The frame at a position, if it is sound and the one that belongs there.
async fn sound_frame(window: &mut Window, wanted: &Wanted, position: u64) -> Result<Frame, String> {
    let header = sound_header(window, wanted, position).await?;
    let mut bytes = window.at(position, header.frame_bytes()).await.map_err(|error| error.to_string())?;
    Frame::decode(&mut bytes).map_err(|error| error.to_string())
}

/// The same for its header alone.
async fn sound_header(window: &mut Window, wanted: &Wanted, position: u64) -> Result<FrameHeader, String> {
    let header = window.at(position, FRAME_HEADER_BYTES as u64).await.map_err(|error| error.to_string())?;
    let header = FrameHeader::decode(&header).map_err(|error| error.to_string())?;
    if !wanted.fits(&header) {
        return Err(format!(
            "entry {}.{} stands where {}.{} belongs",
            header.term, header.index, wanted.term, wanted.index
        ));
    }
    Ok(header)
}
