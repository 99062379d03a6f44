//! What the log's prefix tells: from a base, and a fold from there on.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::Log;
use super::base::{BASE_BYTES_MAX, Base};
use super::damage::Reader;
use super::frame::Frame;
use super::head::Head;
use super::segment::{self, Segment};
use super::state::SnapshotRef;
use super::tail::Room;
use crate::disk::read_file;
use crate::error::ReadError;
use crate::journal::SegmentName;
use crate::types::LogId;

/// What becomes of a base that is rotten.
const READ_ELSEWHERE: &str =
    "what it told is read from an earlier base and the segments, and it is made anew by the scrub";

/// Where a segment begins, as of one moment: it may be purged in the next, and another stand in its place.
pub(super) struct Beginning {
    name: SegmentName,
    previous: Option<LogId>,
    base_offset: u64,
    base: Option<Arc<Base>>,
}

impl Beginning {
    fn of(segment: &Segment) -> Self {
        let Segment { previous, base_offset, base, .. } = segment;
        Self { name: segment.name(), previous: *previous, base_offset: *base_offset, base: base.clone() }
    }
}

impl Log {
    /// How the log stood after the entry at `index` (`None`: before the first): what a snapshot or a truncation there needs;
    /// and, if that entry is neither the log's nor its segment's last, the segment as it would be if it ended there. Not that one if its
    /// own base is lost and the snapshot that stands in for it was taken inside the segment.
    ///
    /// `Corrupt` if neither a base nor a snapshot tells enough.
    pub(crate) async fn head_at(&self, index: Option<u64>) -> Result<(Head, Option<Segment>), ReadError> {
        let first = {
            let state = self.state.lock();
            if index == state.head.last.map(|last| last.index) {
                return Ok((Head::from_base(&*self.application, &state.head.base())?, None));
            }
            let at = index.and_then(|index| state.segment_of(index));
            at.map_or(0, |at| state.segments[at].first_index())
        };
        if let Some(base) = self.base_after(index).await? {
            return Ok((Head::from_base(&*self.application, &base)?, None));
        }
        let mut head = Head::from_base(&*self.application, &self.nearest_base(first, index).await?)?;
        let mut cut: Option<Segment> = None;
        while head.last.map(|last| last.index) < index {
            let next = head.next_index().max(self.first_kept_index());
            let frames = self
                .read_some_mended(next, index.map_or(0, |index| index + 1), Room::any(1 << 20), true, Reader::Group)
                .await?;
            if frames.is_empty() {
                return Err(io::Error::other(format!("the log does not hold entry {next}")).into());
            }
            for frame in &frames {
                if frame.header.index == first {
                    cut = self.segment_cut(&head, first, frame);
                }
                head.observe(frame).map_err(io::Error::from)?;
                if let Some(cut) = &mut cut {
                    cut.push(&frame.header);
                }
            }
        }
        match head.last.map(|last| last.index) == index {
            true => Ok((head, cut)),
            false => Err(self.untold(format!("the log stands at {:?} where entry {index:?} was asked for", head.last))),
        }
    }

    fn untold(&self, why: String) -> ReadError {
        ReadError::Corrupt { file: self.dir.clone(), position: 0, why }
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
        match self.beginning_after(index) {
            Some(beginning) => self.base_of(beginning).await,
            None => Ok(None),
        }
    }

    pub(super) fn beginning_after(&self, index: Option<u64>) -> Option<Beginning> {
        let begins = |segment: &&Segment| segment.previous.map(|previous| previous.index) == index;
        self.state.lock().segments.iter().find(begins).map(Beginning::of)
    }

    /// The base of a segment, if it is sound.
    pub(super) async fn base_of(&self, beginning: Beginning) -> Result<Option<Base>, ReadError> {
        let Beginning { name, previous, base_offset, base } = beginning;
        if let Some(base) = base {
            return Ok(Some((*base).clone()));
        }
        let stored = self.read_base(&segment::path(&self.dir, name, "base")).await?;
        let fits = |base: &Base| base.last == previous && base.next_offset == base_offset;
        let empty = || (previous.is_none() && base_offset == 0).then(Base::default);
        Ok(stored.filter(fits).or_else(empty))
    }

    /// What the prefix of the segment that begins at `first` tells, or of one before it if its own base is lost; or else the snapshot at the
    /// purge boundary, which may lie inside the first segment, but not behind `index`.
    async fn nearest_base(&self, first: u64, index: Option<u64>) -> Result<Base, ReadError> {
        let mut next = Some(first);
        while let Some(first) = next {
            // One after the other, each as it stands by then: some may be purged meanwhile.
            let (beginning, before) = {
                let state = self.state.lock();
                let at = state.segments.iter().rposition(|segment| segment.first_index() <= first);
                let before = at.and_then(|at| at.checked_sub(1)).map(|before| state.segments[before].first_index());
                (at.map(|at| Beginning::of(&state.segments[at])), before)
            };
            if let Some(beginning) = beginning
                && let Some(base) = self.base_of(beginning).await?
            {
                return Ok(base);
            }
            next = before;
        }
        let (purged, snapshot) = {
            let state = self.state.lock();
            (state.purged, state.snapshot.clone())
        };
        let serves = |snapshot: &SnapshotRef| Some(snapshot.last) == purged && Some(snapshot.last.index) <= index;
        if let Some(snapshot) = snapshot.filter(serves)
            && let Some(base) = self.read_base(&self.dir.join(&snapshot.name)).await?.filter(|base| base.last == purged)
        {
            return Ok(base);
        }
        Err(self.untold("neither a base nor a snapshot tells what the purged prefix held".to_owned()))
    }

    async fn read_base(&self, path: &Path) -> Result<Option<Base>, ReadError> {
        match read_file(&*self.context.disk, path, BASE_BYTES_MAX).await {
            Ok(bytes) => match Base::decode(&bytes) {
                Ok(base) => Ok(Some(base)),
                Err(error) => {
                    self.context.healed.note(path, &error.to_string(), READ_ELSEWHERE);
                    Ok(None)
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.context.healed.note(path, &error.to_string(), READ_ELSEWHERE);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}
