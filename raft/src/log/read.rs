//! Reading a log: one reader for replication, apply and fetch, from the tail cache or from segments.
//!
//! A plan is made under the lock, the file is read without it, and what was read counts only if nothing was taken away
//! from the log meanwhile. Every frame's checksums are verified before it is returned.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::Log;
use super::damage::{MEND_WAIT, Reader};
use super::frame::{Frame, FrameKind};
use super::index::{INDEX_BYTES_MAX, SparseIndex};
use super::segment::{self, FrameStream, SegmentFile};
use super::state::LogState;
use super::tail::Room;
use crate::disk::{is_rot, read_file};
use crate::error::ReadError;
use crate::journal::SegmentName;

/// Least and most bytes asked of a file at a time.
const CHUNK_BYTES: (usize, usize) = (16 << 10, 1 << 20);

/// Where the next frames are to be read from.
enum Plan {
    /// From the cache; here they are.
    Cached(Vec<Frame>),
    /// From a segment's file: from `position` on, up to the frame before `until`.
    File { file: Arc<SegmentFile>, position: u64, end: u64, until: u64, generation: u64 },
    /// Not before the segment is indexed.
    Index(SegmentName),
    /// There is nothing.
    Nothing,
}

impl Log {
    /// Frames by Raft index: from `from` up to `to` (exclusive), as many as `bytes_max` has room for, at least one if the log holds
    /// `from`. Empty if `from` is purged or beyond the end.
    pub(crate) async fn read_indexes(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<Frame>, ReadError> {
        let mut frames: Vec<Frame> = Vec::new();
        let mut bytes = 0;
        let mut next = from;
        while next < to && bytes < bytes_max {
            let room = Room { bytes: bytes_max - bytes, first: frames.is_empty() };
            let more = self.read_some(next, to, room, false).await?;
            let Some(last) = more.last() else { break };
            next = last.header.index + 1;
            bytes += more.iter().map(|frame| frame.header.frame_bytes() as usize).sum::<usize>();
            frames.extend(more);
        }
        // A truncation or a purge between two steps must not leave a hole or a mixture.
        let consecutive = frames
            .windows(2)
            .all(|pair| pair[0].header.index + 1 == pair[1].header.index && pair[0].header.term <= pair[1].header.term);
        if consecutive { Ok(frames) } else { Err(io::Error::other("the log was truncated while it was read").into()) }
    }

    /// [`Self::read_indexes`] for openraft and for clients: where the log is rotten, waits until it is mended, so that a group
    /// does not end because of it.
    pub(crate) async fn read_mended(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<Frame>, ReadError> {
        loop {
            match self.read_indexes(from, to, bytes_max).await {
                Err(error) => self.await_mended(error, Reader::Group).await?,
                read => return read,
            }
        }
    }

    /// The bytes of whole frames by Raft index, one behind the other, without the first `skip`, at most `bytes_max`. For a peer
    /// in which they are rotten: nothing waits here, or two replicas would wait for each other. If `from` is purged: the oldest
    /// entry that is not.
    pub(crate) async fn serve_frames(
        &self,
        from: u64,
        to: u64,
        skip: u64,
        bytes_max: usize,
    ) -> Result<Bytes, ReadError> {
        let mut frames = Vec::new();
        let mut next = from;
        let mut bytes = 0u64;
        while next < to && bytes < skip.saturating_add(bytes_max as u64) {
            // Also what is purged already and still stands in a segment.
            let more = match self.read_some(next, to, Room::any(bytes_max), true).await {
                Err(error) if frames.is_empty() => return Err(error),
                Err(_) => break,
                Ok(more) => more,
            };
            let Some(last) = more.last() else { break };
            next = last.header.index + 1;
            bytes += more.iter().map(|frame| frame.header.frame_bytes()).sum::<u64>();
            frames.extend(more);
        }
        let (first, last) = (self.first_index(), self.last_log_id());
        if frames.is_empty() && from < first && skip == 0 {
            // Purged: the oldest entry that is left says so.
            frames = self.read_some(first, first + 1, Room::any(bytes_max), false).await?;
        }
        if frames.is_empty() {
            return Err(io::Error::other(format!("entry {from} is not here: the log is {first} to {last:?}")).into());
        }
        let mut out = BytesMut::new();
        let mut skip = skip;
        for part in frames.iter().flat_map(Frame::encode) {
            let left_out = skip.min(part.len() as u64);
            skip -= left_out;
            let rest = &part[left_out as usize..];
            out.extend_from_slice(&rest[..rest.len().min(bytes_max - out.len())]);
        }
        Ok(out.freeze())
    }

    /// Waits until the rot that a read met is mended; the error if it was something else, or was not mended in time.
    pub(super) async fn await_mended(&self, error: ReadError, reader: Reader) -> Result<(), ReadError> {
        let rotten = match &error {
            ReadError::Corrupt { file, .. } => file.file_name().and_then(|name| segment::parse(name.to_str()?)),
            _ => None,
        };
        match rotten {
            Some((name, "segment")) if self.mended(name, reader, MEND_WAIT).await => Ok(()),
            _ => Err(error),
        }
    }

    /// [`Self::read_some`], waiting like [`Self::read_mended`].
    pub(super) async fn read_some_mended(
        &self,
        from: u64,
        to: u64,
        room: Room,
        purged: bool,
        reader: Reader,
    ) -> Result<Vec<Frame>, ReadError> {
        loop {
            match self.read_some(from, to, room, purged).await {
                Err(error) => self.await_mended(error, reader).await?,
                read => return read,
            }
        }
    }

    /// Like [`Self::read_indexes`], from one place only; `purged` entries that still stand in a segment can be read too.
    pub(super) async fn read_some(
        &self,
        from: u64,
        to: u64,
        room: Room,
        purged: bool,
    ) -> Result<Vec<Frame>, ReadError> {
        loop {
            let plan = self.plan(&self.state.lock(), from, to, room, purged);
            match plan {
                Plan::Nothing => return Ok(Vec::new()),
                Plan::Cached(frames) => {
                    self.context.instruments.tail_hits.increment(1);
                    return Ok(frames);
                }
                Plan::Index(name) => self.load_index(name).await?,
                Plan::File { file, position, end, until, generation } => {
                    let mut frames = Vec::new();
                    let read = read_file_frames(&file, position, end, (from, until), room, &mut frames).await;
                    if self.still_valid(from, generation, purged) {
                        let read = read.map_err(|error| self.judge_read(file.name(), error));
                        // What is good before the rot is good.
                        let read = if frames.is_empty() { read.map(|()| frames) } else { Ok(frames) };
                        self.note_miss(&read);
                        return read;
                    }
                }
            }
        }
    }

    fn note_miss(&self, read: &Result<Vec<Frame>, ReadError>) {
        let bytes = read.iter().flatten().map(|frame| frame.header.frame_bytes()).sum();
        self.context.instruments.tail_misses.increment(1);
        self.context.instruments.segment_read_bytes.increment(bytes);
    }

    fn plan(&self, state: &LogState, from: u64, to: u64, room: Room, purged: bool) -> Plan {
        let readable = if purged { state.segment_of(from).is_some() } else { state.contains(from) };
        if from >= to || !readable {
            return Plan::Nothing;
        }
        let cached_from = state.tail.first_index();
        if cached_from.is_some_and(|first| from >= first) {
            let mut frames = Vec::new();
            state.tail.read(from, to, room, &mut frames);
            return Plan::Cached(frames);
        }
        let Some(at) = state.segment_of(from) else { return Plan::Nothing };
        let segment = &state.segments[at];
        // What is in the cache may not be in the file yet.
        let until = to.min(segment.last.index + 1).min(cached_from.unwrap_or(u64::MAX));
        match segment.index.by_index(from) {
            Some(entry) => Plan::File {
                file: segment.file.clone(),
                position: entry.position,
                end: segment.bytes,
                until,
                generation: state.generation,
            },
            // Where a segment begins is known without its index, which cannot be made if it is rotten further on.
            None if from == segment.first_index() => Plan::File {
                file: segment.file.clone(),
                position: 0,
                end: segment.bytes,
                until,
                generation: state.generation,
            },
            None => Plan::Index(segment.name()),
        }
    }

    fn still_valid(&self, from: u64, generation: u64, purged: bool) -> bool {
        let state = self.state.lock();
        state.generation == generation && (purged || state.contains(from))
    }

    pub(super) async fn read_offsets(&self, from: u64, limit: u64, bytes_max: usize) -> Result<Vec<Frame>, ReadError> {
        let mut out = Vec::new();
        let mut bytes = 0;
        let mut next = loop {
            let found = self.locate_offset(&self.state.lock(), from, limit)?;
            match found {
                Located::Nothing => return Ok(out),
                Located::At(index) => break index,
                Located::Index(name) => self.load_index_mended(name).await?,
            }
        };
        loop {
            let room = Room { bytes: bytes_max - bytes, first: out.is_empty() };
            let frames = match self.read_some(next, u64::MAX, room, false).await {
                // What is good before the rot is served, without waiting.
                Err(_) if !out.is_empty() => break,
                Err(error) => {
                    match self.frame_of(from, next).await {
                        // What is rotten stands before: that is not this reader's concern.
                        Some(index) if index > next => next = index,
                        _ => self.await_mended(error, Reader::Client).await?,
                    }
                    continue;
                }
                Ok(frames) => frames,
            };
            let Some(last) = frames.last() else { break };
            next = last.header.index + 1;
            for frame in frames {
                if frame.header.base_offset >= limit {
                    return Ok(out);
                }
                if frame.header.kind == FrameKind::Records && frame.header.next_offset() > from {
                    bytes = bytes.saturating_add(frame.header.frame_bytes() as usize).min(bytes_max);
                    out.push(frame);
                }
            }
            if bytes >= bytes_max {
                break;
            }
        }
        // A purge may have overtaken us: say so rather than that there is nothing.
        self.locate_offset(&self.state.lock(), from, limit)?;
        Ok(out)
    }

    /// The Raft index of the frame that holds an offset, at `index` or behind it in the same segment, by the headers. `None` if they do not
    /// tell.
    async fn frame_of(&self, offset: u64, index: u64) -> Option<u64> {
        let plan = self.plan(&self.state.lock(), index, u64::MAX, Room::any(CHUNK_BYTES.0), false);
        let Plan::File { file, position, end, until, generation } = plan else { return None };
        let mut stream = FrameStream::open(&file, position, end, CHUNK_BYTES.0).await.ok()?;
        while let Some(header) = stream.next_header().await.ok()? {
            if header.index >= until {
                return None;
            }
            if header.index >= index && header.next_offset() > offset {
                return self.still_valid(header.index, generation, false).then_some(header.index);
            }
        }
        None
    }

    /// A Raft index at or before the frame that holds `from`, as near as is known.
    fn locate_offset(&self, state: &LogState, from: u64, limit: u64) -> Result<Located, ReadError> {
        let start = state.log_start_offset;
        if from < start || from > limit {
            return Err(ReadError::OutOfRange { offset: from, start, end: limit });
        }
        if from >= limit.min(state.head.next_offset) {
            return Ok(Located::Nothing);
        }
        if let Some(index) = state.tail.index_of_offset(from) {
            return Ok(Located::At(index));
        }
        let at = state.segments.partition_point(|segment| segment.base_offset <= from);
        let Some(segment) = at.checked_sub(1).map(|at| &state.segments[at]) else { return Ok(Located::Nothing) };
        let first = state.first_index();
        Ok(match segment.index.by_offset(from) {
            Some(entry) => Located::At(entry.index.max(first)),
            None => Located::Index(segment.name()),
        })
    }

    pub(super) async fn find_timestamp(
        &self,
        timestamp: i64,
        from_offset: u64,
        limit: u64,
    ) -> Result<Option<u64>, ReadError> {
        let mut from = self.state.lock().first_index();
        loop {
            // Retention may move it meanwhile.
            let start = from_offset.max(self.state.lock().log_start_offset);
            let found = self.locate_timestamp(&self.state.lock(), from, start, timestamp);
            let (first, until) = match found {
                Some(Ok(stretch)) => stretch,
                Some(Err(name)) => {
                    self.load_index_mended(name).await?;
                    continue;
                }
                None => return Ok(None),
            };
            from = first;
            while from < until {
                let frames =
                    self.read_some_mended(from, until, Room::any(CHUNK_BYTES.1), false, Reader::Client).await?;
                let Some(last) = frames.last() else { break };
                from = last.header.index + 1;
                for frame in &frames {
                    let header = &frame.header;
                    if header.base_offset >= limit {
                        return Ok(None);
                    }
                    let holds = header.kind == FrameKind::Records && header.offset_span > 0;
                    if holds && header.max_timestamp >= timestamp && header.next_offset() > start {
                        return Ok(Some(header.base_offset));
                    }
                }
            }
            from = until;
        }
    }

    /// From the Raft index `from` and the offset `start` on, the first stretch of indexes that may hold the timestamp; or the
    /// segment that must be indexed to know.
    fn locate_timestamp(
        &self,
        state: &LogState,
        from: u64,
        start: u64,
        timestamp: i64,
    ) -> Option<Result<(u64, u64), SegmentName>> {
        let from = from.max(state.first_index());
        let mut segments = state.segments.iter();
        segments.find_map(|segment| {
            if segment.last.index < from || segment.next_offset <= start || segment.max_timestamp < timestamp {
                return None;
            }
            if !segment.index.is_complete() {
                return Some(Err(segment.name()));
            }
            let (first, until) = segment.index.by_timestamp(from.max(segment.first_index()), timestamp)?;
            Some(Ok((first, until.unwrap_or(segment.last.index + 1))))
        })
    }

    async fn load_index_mended(&self, name: SegmentName) -> Result<(), ReadError> {
        loop {
            match self.load_index(name).await {
                Err(error) => self.await_mended(error, Reader::Client).await?,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Completes a segment's index: from its file if that is sound, from the segment's headers otherwise.
    pub(crate) async fn load_index(&self, name: SegmentName) -> Result<(), ReadError> {
        let Some((file, known_from, bytes)) = self.index_gap(name) else { return Ok(()) };
        let interval = self.context.config.index_interval_bytes;
        let path = segment::path(&self.dir, name, "index");
        // Whatever is wrong with it, it can be rebuilt.
        let stored = match read_file(&*self.context.disk, &path, INDEX_BYTES_MAX).await {
            Ok(stored) => SparseIndex::parse(&stored, interval).map_err(str::to_owned),
            Err(error) if error.kind() == io::ErrorKind::NotFound || !is_rot(&error) => {
                Ok((name, SparseIndex::new(0, interval)))
            }
            Err(error) => Err(error.to_string()),
        };
        // One that may grow was not synced: after a power cut it may be anything.
        if let Err(why) = &stored
            && !self.is_last(name)
        {
            self.context.healed.note(&path, why, "it is read from its segment, and made anew by the scrub");
        }
        let stored = stored.ok().filter(|(of, index)| *of == name && index.end() <= bytes);
        let stored = stored.map(|(_, index)| index).filter(|index| index.end() == bytes || index.end() <= known_from);
        let begun = stored.unwrap_or_else(|| SparseIndex::new(0, interval));
        let index = match extend_index(&file, begun, known_from).await {
            // Purged or truncated meanwhile.
            Err(_) if self.index_gap(name).is_none() => return Ok(()),
            extended => extended.map_err(|error| self.judge_read(name, error))?,
        };
        let mut state = self.state.lock();
        let Some(segment) = state.segments.iter_mut().find(|segment| segment.name() == name) else { return Ok(()) };
        if segment.index.is_complete() || segment.index.from() != known_from {
            return Ok(());
        }
        if index.end() == segment.bytes {
            segment.index = index;
        } else if index.end() == known_from {
            segment.index.prepend(index);
        }
        Ok(())
    }

    fn is_last(&self, name: SegmentName) -> bool {
        self.state.lock().segments.last().is_some_and(|segment| segment.name() == name)
    }

    fn index_gap(&self, name: SegmentName) -> Option<(Arc<SegmentFile>, u64, u64)> {
        let state = self.state.lock();
        let segment = state.segments.iter().find(|segment| segment.name() == name)?;
        (!segment.index.is_complete()).then(|| (segment.file.clone(), segment.index.from(), segment.bytes))
    }

    /// [`Log::verify`], reading no faster than so many bytes per second (0: as fast as it can). Every segment is looked at, also
    /// behind a rotten one; the error is the first.
    pub(crate) async fn verify_slowly(&self, bytes_per_second: u64) -> Result<u64, ReadError> {
        let names: Vec<SegmentName> = self.state.lock().segments.iter().map(segment::Segment::name).collect();
        let (mut bytes, mut first_error) = (0, None);
        for name in names {
            match self.check_segment(name, bytes_per_second).await {
                Ok(read) => {
                    bytes += read;
                    self.context.instruments.scrub_bytes.increment(read);
                }
                Err(error) => drop(first_error.get_or_insert(error)),
            }
        }
        first_error.map_or(Ok(bytes), Err)
    }
}

/// Where reading by offset begins.
enum Located {
    At(u64),
    Index(SegmentName),
    Nothing,
}

async fn read_file_frames(
    file: &SegmentFile,
    position: u64,
    end: u64,
    (from, until): (u64, u64),
    room: Room,
    frames: &mut Vec<Frame>,
) -> Result<(), ReadError> {
    // One entry alone, which openraft asks of every log at its start, is not worth a chunk.
    let chunk_max = if until == from + 1 { CHUNK_BYTES.0 } else { CHUNK_BYTES.1 };
    let mut stream = FrameStream::open(file, position, end, room.bytes.clamp(CHUNK_BYTES.0, chunk_max)).await?;
    let mut bytes = 0;
    let mut expected = None;
    while room.has(bytes, 1) {
        let at = stream.position();
        let header = stream.peek().await?;
        // What stands before is passed over by its headers: a rotten payload there is not this reader's concern.
        if header.is_some_and(|header| header.index < from) {
            stream.next_header().await?;
            continue;
        }
        if header.is_some_and(|header| !room.has(bytes, header.frame_bytes() as usize)) {
            break;
        }
        let Some(frame) = stream.next().await? else {
            let why = format!("it ends before entry {}, which it is to hold", expected.unwrap_or(from));
            return Err(ReadError::Corrupt { file: file.path().to_owned(), position: at, why });
        };
        let index = frame.header.index;
        if expected.map_or(index > from, |expected| expected != index) {
            let why = format!("entry {index} stands where entry {expected:?} belongs");
            return Err(ReadError::Corrupt { file: file.path().to_owned(), position: at, why });
        }
        expected = Some(index + 1);
        if index >= from {
            bytes += frame.header.frame_bytes() as usize;
            frames.push(frame);
        }
        if index + 1 >= until {
            break;
        }
    }
    Ok(())
}

/// Extends an index of a segment's beginning to its first `end` bytes, from the headers.
async fn extend_index(file: &SegmentFile, mut index: SparseIndex, end: u64) -> Result<SparseIndex, ReadError> {
    let mut position = index.end();
    let mut stream = FrameStream::open(file, position, end.max(position), CHUNK_BYTES.0).await?;
    while let Some(header) = stream.next_header().await? {
        index.note(&header, position);
        position = stream.position();
    }
    Ok(index)
}
