//! The tail cache: the newest frames of a log, refcounted, in memory.
//!
//! It serves replication, apply and caught-up consumers without touching a file. A frame leaves it only after its write
//! to the segment has returned (RULES.md J11): until then the cache is where the frame is read from. So its bounds are
//! for what may leave; what may not is bounded by the segment writer's budget.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::frame::{FRAME_HEADER_BYTES, Frame};

/// What one cached frame costs besides its payload.
const OVERHEAD_BYTES: usize = FRAME_HEADER_BYTES + 40;

/// How much a reader takes at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Most bytes of frames.
    pub(crate) bytes: usize,
    /// The first frame is taken however long it is.
    pub(crate) first: bool,
}

impl Room {
    /// So many bytes, but one frame at least.
    pub(crate) const fn any(bytes: usize) -> Self {
        Self { bytes, first: true }
    }

    /// Whether there is room for so many bytes more.
    pub(super) fn has(self, taken: usize, more: usize) -> bool {
        taken.saturating_add(more) <= self.bytes || taken == 0 && self.first
    }
}

/// Bytes that all tails of a broker hold together.
#[derive(Debug, Default)]
pub(crate) struct TailBudget {
    used: AtomicUsize,
    max: usize,
}

impl TailBudget {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max })
    }

    /// Bytes above the bound, 0 if none.
    pub(crate) fn excess(&self) -> usize {
        self.used.load(Ordering::Relaxed).saturating_sub(self.max)
    }

    /// Bytes held now.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

struct Cached {
    frame: Frame,
    /// The append it came with, counted per log.
    append: u64,
}

/// One log's newest frames, without gaps, up to the log's end.
pub(crate) struct Tail {
    frames: VecDeque<Cached>,
    bytes: usize,
    bytes_max: usize,
    budget: Arc<TailBudget>,
}

impl Tail {
    pub(crate) fn new(bytes_max: usize, budget: Arc<TailBudget>) -> Self {
        Self { frames: VecDeque::new(), bytes: 0, bytes_max, budget }
    }

    /// Raft index of the oldest frame; `None` if it is empty.
    pub(crate) fn first_index(&self) -> Option<u64> {
        self.frames.front().map(|cached| cached.frame.header.index)
    }

    /// Adds the log's newest frame.
    pub(crate) fn push(&mut self, frame: Frame, append: u64) {
        let bytes = cost(&frame);
        self.bytes += bytes;
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.frames.push_back(Cached { frame, append });
    }

    /// Drops the oldest frames while the log holds more than its share, as far as they came with an append up to
    /// `written`: those are in their segments.
    pub(crate) fn evict(&mut self, written: u64) {
        while self.bytes > self.bytes_max && self.front_is_written(written) {
            self.pop_front();
        }
    }

    /// Drops the oldest written frames until about `bytes` are freed. Returns how many were.
    pub(crate) fn shed(&mut self, bytes: usize, written: u64) -> usize {
        let before = self.bytes;
        while before - self.bytes < bytes && self.front_is_written(written) {
            self.pop_front();
        }
        before - self.bytes
    }

    /// Drops the frames above this index.
    pub(crate) fn truncate_after(&mut self, index: Option<u64>) {
        while self.frames.back().is_some_and(|cached| Some(cached.frame.header.index) > index) {
            let dropped = self.frames.pop_back();
            self.release(dropped);
        }
    }

    /// Drops the frames up to and including this index, as far as they are written: a segment that is purged in part is still
    /// read from its beginning.
    pub(crate) fn purge(&mut self, index: u64, written: u64) {
        while self.first_index().is_some_and(|first| first <= index) && self.front_is_written(written) {
            self.pop_front();
        }
    }

    /// The frames from `from` up to `to` (exclusive), at least one if there is one, until `bytes_max` is reached.
    pub(crate) fn read(&self, from: u64, to: u64, room: Room, out: &mut Vec<Frame>) {
        let Some(skip) = self.first_index().and_then(|first| from.checked_sub(first)) else { return };
        let mut bytes = 0;
        for cached in self.frames.range((skip as usize).min(self.frames.len())..) {
            let more = cached.frame.header.frame_bytes() as usize;
            if cached.frame.header.index >= to || !room.has(bytes, more) {
                break;
            }
            bytes += more;
            out.push(cached.frame.clone());
        }
    }

    /// Raft index of the first frame whose offsets reach beyond `offset`, if the frame that holds it is here.
    pub(crate) fn index_of_offset(&self, offset: u64) -> Option<u64> {
        if self.frames.front().is_none_or(|first| first.frame.header.base_offset > offset) {
            return None;
        }
        let at = self.frames.partition_point(|cached| cached.frame.header.next_offset() <= offset);
        self.frames.get(at).map(|cached| cached.frame.header.index)
    }

    /// Raft index of the first frame that came with an append above `written`: it and all behind it may not be in their segments.
    pub(crate) fn first_unwritten(&self, written: u64) -> Option<u64> {
        let at = self.frames.partition_point(|cached| cached.append <= written);
        self.frames.get(at).map(|cached| cached.frame.header.index)
    }

    fn front_is_written(&self, written: u64) -> bool {
        self.frames.front().is_some_and(|cached| cached.append <= written)
    }

    fn pop_front(&mut self) {
        let dropped = self.frames.pop_front();
        self.release(dropped);
    }

    fn release(&mut self, dropped: Option<Cached>) {
        if let Some(cached) = dropped {
            let bytes = cost(&cached.frame);
            self.bytes -= bytes;
            self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn cost(frame: &Frame) -> usize {
    frame.payload.len() + OVERHEAD_BYTES
}
