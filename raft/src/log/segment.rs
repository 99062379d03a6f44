//! A segment: an append-only file of frames, from position 0, one after the other.
//!
//! [`SegmentFile`] is the file, shared by whoever writes, syncs or reads it; [`Segment`] is what the log knows of it;
//! [`FrameStream`] reads it frame by frame and checks every byte. A segment's logical length is decided at append and
//! kept in the checkpoint and the journal: what stands behind it was never acknowledged and is never read.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::base::Base;
use super::frame::{FRAME_HEADER_BYTES, Frame, FrameError, FrameHeader, FrameKind};
use super::index::SparseIndex;
use crate::disk::{Disk, DiskFile, OpenMode, dir_sync_failed, is_refused, patiently, sync_failed};
use crate::error::ReadError;
use crate::journal::{ExtentTarget, SegmentName};
use crate::types::{LogId, log_id};

/// The name of a segment's file, without its extension. Sorted by name is sorted by first index.
pub(crate) fn stem(name: SegmentName) -> String {
    format!("{:020}-{:08}", name.first_index, name.file_no)
}

/// The path of one of a segment's files: `segment`, `index` or `base`.
pub(crate) fn path(dir: &Path, name: SegmentName, extension: &str) -> PathBuf {
    dir.join(format!("{}.{extension}", stem(name)))
}

/// The segment a file in a replica's folder belongs to, and its extension; `None` for other files.
pub(crate) fn parse(file_name: &str) -> Option<(SegmentName, &str)> {
    let (stem, extension) = file_name.split_once('.')?;
    let (first_index, file_no) = stem.split_once('-')?;
    Some((SegmentName { first_index: first_index.parse().ok()?, file_no: file_no.parse().ok()? }, extension))
}

/// A segment's file, opened (and created) when it is first needed.
pub(crate) struct SegmentFile {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    path: PathBuf,
    name: SegmentName,
    handle: Mutex<Option<Arc<dyn DiskFile>>>,
    opening: tokio::sync::Mutex<()>,
    /// Written since its last fdatasync began.
    dirty: AtomicBool,
    /// Held by an fdatasync. True once one has failed: what it was to make durable is gone, and the next would know nothing of it.
    syncing: tokio::sync::Mutex<bool>,
    /// How often this process has made its directory entry.
    made: AtomicU64,
    /// One more than that was when the entry was last made durable; 0: that is not known.
    entry_durable: AtomicU64,
    /// No longer part of the log: never written again, never created again.
    retired: AtomicBool,
    /// Something was written through this handle, or begun to be: before, a file that is not there has nothing that could be lost.
    written: AtomicBool,
    /// Its folder is moved aside: what is not found any more is missed by nobody.
    leaving: AtomicBool,
    /// Read since the last [`Self::rest`].
    touched: AtomicBool,
    /// Room on the disk is reserved up to here.
    allocated: AtomicU64,
    /// What the journal has written directly and nobody has asked about yet: begin and end.
    direct: Mutex<Vec<(u64, u64)>>,
}

impl SegmentFile {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: &Path, name: SegmentName) -> Arc<Self> {
        Arc::new(Self {
            disk,
            dir: dir.to_owned(),
            path: path(dir, name, "segment"),
            name,
            handle: Mutex::new(None),
            opening: tokio::sync::Mutex::new(()),
            dirty: AtomicBool::new(false),
            syncing: tokio::sync::Mutex::new(false),
            made: AtomicU64::new(0),
            entry_durable: AtomicU64::new(0),
            retired: AtomicBool::new(false),
            written: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            touched: AtomicBool::new(false),
            allocated: AtomicU64::new(0),
            direct: Mutex::new(Vec::new()),
        })
    }

    pub(crate) fn name(&self) -> SegmentName {
        self.name
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, to read from.
    pub(crate) async fn open(&self) -> io::Result<Arc<dyn DiskFile>> {
        self.touched.store(true, Ordering::Relaxed);
        self.handle(false).await
    }

    async fn handle(&self, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.handle.lock().clone() {
            return Ok(file);
        }
        let _one_at_a_time = self.opening.lock().await;
        if let Some(file) = self.handle.lock().clone() {
            return Ok(file);
        }
        let file = match self.disk.open(&self.path, OpenMode::ReadWrite).await {
            Err(error) if create && error.kind() == io::ErrorKind::NotFound && !self.is_retired() => {
                let made = self.disk.open(&self.path, OpenMode::CreateNew).await?;
                self.made.fetch_add(1, Ordering::AcqRel);
                made
            }
            other => other?,
        };
        if !self.is_retired() {
            *self.handle.lock() = Some(file.clone());
        }
        Ok(file)
    }

    /// Reserves room on the disk, in chunks that grow with the file, so that `position .. position + bytes` fits (J18).
    pub(crate) async fn ensure_room(&self, position: u64, bytes: u64) -> io::Result<()> {
        const CHUNK_BYTES_MIN: u64 = 64 << 10;
        const CHUNK_BYTES_MAX: u64 = 8 << 20;
        let allocated = self.allocated.load(Ordering::Acquire).max(position);
        let need = position + bytes;
        if need <= allocated {
            return Ok(());
        }
        let chunk = (need - allocated).max(position.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX));
        self.handle(true).await?.allocate(allocated, chunk).await?;
        self.allocated.store(allocated + chunk, Ordering::Release);
        Ok(())
    }

    /// Writes through the page cache. A retired file is left alone.
    pub(crate) async fn write(&self, position: u64, parts: Vec<Bytes>) -> io::Result<()> {
        if self.is_retired() {
            return Ok(());
        }
        // Marked before, so that the file is not closed meanwhile, and after, because a sync may have come between.
        self.dirty.store(true, Ordering::Release);
        let result = async {
            let handle = self.handle(true).await?;
            self.written.store(true, Ordering::Release);
            handle.write_at(position, parts).await
        };
        let result = result.await;
        self.dirty.store(true, Ordering::Release);
        self.judge(result)
    }

    /// Makes what was written durable, but not the file's directory entry ([`Self::entry_is_durable`]).
    pub(crate) async fn sync(&self) -> io::Result<()> {
        // One at a time: whoever comes second must not take the file for clean before the first has made it so.
        let mut failed = self.syncing.lock().await;
        if self.is_retired() || !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let mut still_dirty = StillDirty(Some(&self.dirty));
        let result = match self.handle(false).await {
            Ok(handle) => datasync(&mut failed, &*handle).await,
            // It was missing at the start, and could not be made.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.written.load(Ordering::Acquire) => Ok(()),
            Err(error) => Err(error),
        };
        if result.is_ok() {
            still_dirty.0 = None;
        }
        self.judge(result)
    }

    /// Cuts the file, or gives back the room behind its end.
    pub(crate) async fn set_len(&self, bytes: u64) -> io::Result<()> {
        if self.is_retired() {
            return Ok(());
        }
        self.allocated.store(bytes, Ordering::Release);
        self.dirty.store(true, Ordering::Release);
        let result = async {
            let handle = self.handle(false).await?;
            self.written.store(true, Ordering::Release);
            handle.set_len(bytes).await
        };
        let result = result.await;
        self.dirty.store(true, Ordering::Release);
        self.judge(result)
    }

    /// Whether something is not known to be durable, perhaps because a sync is under way.
    pub(crate) fn is_dirty(&self) -> bool {
        let dirty = || self.dirty.load(Ordering::Acquire);
        // Again, because that sync may have failed between the two looks.
        dirty() || self.syncing.try_lock().is_err() || dirty()
    }

    /// Whether its directory entry is known to be durable.
    pub(crate) fn entry_is_durable(&self) -> bool {
        self.entry_durable.load(Ordering::Acquire) > self.made()
    }

    /// How often its directory entry has been made. A file that a start finds missing is still to be made.
    pub(crate) fn made(&self) -> u64 {
        self.made.load(Ordering::Acquire)
    }

    /// To be called when the directory was synced; `made`: as of before that.
    pub(crate) fn set_entry_durable(&self, made: u64) {
        self.entry_durable.fetch_max(made + 1, Ordering::AcqRel);
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// To be called before the folder is moved aside, for good, and when it could not be.
    pub(crate) fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::Release);
    }

    fn has_left(&self, error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::NotFound && self.leaving.load(Ordering::Acquire)
    }

    /// What becomes of a file that is out of use, or has left with its folder, is no error.
    fn judge(&self, result: io::Result<()>) -> io::Result<()> {
        result.or_else(|error| if self.is_retired() || self.has_left(&error) { Ok(()) } else { Err(error) })
    }

    /// Whether the journal wrote these bytes directly, durably. To be asked once for each append, in order.
    pub(crate) fn take_direct(&self, position: u64, bytes: u64) -> bool {
        let mut direct = self.direct.lock();
        let end = position + bytes;
        let found = direct.iter().position(|written| written.0 <= position && end <= written.1);
        if let Some(at) = found.filter(|at| direct[*at].1 == end) {
            direct.swap_remove(at);
        }
        found.is_some()
    }

    /// Takes the file out of use: nothing writes or creates it from now on.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Closes a retired file once it is unlinked, so that its room becomes free. (Not before: RULES.md J15 does not care for the
    /// bytes of a file that is gone.)
    pub(crate) fn close_retired(&self) {
        if self.is_retired() {
            self.handle.lock().take();
        }
    }

    /// Closes the file if it is clean and nobody has read it since the last call. Returns whether it did.
    pub(crate) fn rest(&self) -> bool {
        if self.touched.swap(false, Ordering::Relaxed) {
            return false;
        }
        // Asked under the handle's lock: whoever writes marks it dirty before it takes the handle.
        let mut handle = self.handle.lock();
        let clean = !self.is_dirty();
        if clean {
            handle.take();
        }
        clean
    }
}

/// Syncs a file that nobody else syncs meanwhile ([`SegmentFile::syncing`]): Linux tells of an error once for each open file, and of two
/// that sync it one would hear of none. Nor does who comes after one that failed.
async fn datasync(failed: &mut bool, handle: &dyn DiskFile) -> io::Result<()> {
    if *failed {
        return Err(io::Error::other("an earlier sync of it has failed"));
    }
    handle.datasync().await.map_err(sync_failed).inspect_err(|_| *failed = true)
}

/// A sync that did not succeed, or was given up, has made nothing durable.
struct StillDirty<'a>(Option<&'a AtomicBool>);

impl Drop for StillDirty<'_> {
    fn drop(&mut self) {
        if let Some(dirty) = self.0 {
            dirty.store(true, Ordering::Release);
        }
    }
}

/// A large append, or a run of them, is written to the segment directly (RULES.md J6).
impl ExtentTarget for SegmentFile {
    fn write_durably(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let end = position + parts.iter().map(|part| part.len() as u64).sum::<u64>();
            let handle = self.handle(true).await?;
            handle.write_at(position, parts).await?;
            datasync(&mut *self.syncing.lock().await, &*handle).await?;
            if !self.entry_is_durable() {
                let made = self.made();
                self.disk.sync_dir(&self.dir).await.map_err(dir_sync_failed)?;
                if let Some(groups) = self.dir.parent() {
                    self.disk.sync_dir(groups).await.map_err(dir_sync_failed)?;
                }
                self.set_entry_durable(made);
            }
            self.direct.lock().push((position, end));
            Ok(())
        })
    }

    /// Only a deletion retires a file that an append is on its way to: all else that does so comes behind that append. The folder of a
    /// replica that is set aside leaves before. No other error is passed over: a sync that fails may be of a directory that others
    /// stand in, too (RULES.md J15).
    fn is_unwanted(&self, error: &io::Error) -> bool {
        let gone = (is_refused(error) || error.kind() == io::ErrorKind::NotFound) && self.is_retired();
        gone || self.has_left(error)
    }
}

/// What the log knows of a segment. It holds at least one frame.
pub(crate) struct Segment {
    pub(crate) file: Arc<SegmentFile>,
    /// The log's last entry before the first frame.
    pub(crate) previous: Option<LogId>,
    /// The next offset before the first frame.
    pub(crate) base_offset: u64,
    /// Logical length.
    pub(crate) bytes: u64,
    /// Last entry.
    pub(crate) last: LogId,
    /// The next offset after the last frame.
    pub(crate) next_offset: u64,
    /// Each term in it and the index it begins at here, rising.
    pub(crate) terms: Vec<(u64, u64)>,
    /// Largest record timestamp, ms; -1 if none.
    pub(crate) max_timestamp: i64,
    /// What it does not know is read from its file or rebuilt when somebody asks.
    pub(crate) index: SparseIndex,
    /// What the prefix tells, until it stands in its own file.
    pub(crate) base: Option<Arc<Base>>,
    /// Largest timestamp of its first records frame, ms; `None`: not known, or there is none.
    pub(crate) first_timestamp: Option<i64>,
    /// When this process began it, or found it.
    pub(crate) opened: Instant,
}

impl Segment {
    /// A segment whose first frame comes now; `base` is what the prefix tells.
    pub(crate) fn begin(file: Arc<SegmentFile>, base: Arc<Base>, first: &FrameHeader, interval: u64) -> Self {
        Self {
            file,
            previous: base.last,
            base_offset: base.next_offset,
            bytes: 0,
            last: log_id(first.term, first.index),
            next_offset: base.next_offset,
            terms: Vec::new(),
            max_timestamp: -1,
            index: SparseIndex::new(0, interval),
            base: Some(base),
            first_timestamp: None,
            opened: Instant::now(),
        }
    }

    pub(crate) fn name(&self) -> SegmentName {
        self.file.name()
    }

    pub(crate) fn first_index(&self) -> u64 {
        self.name().first_index
    }

    pub(crate) fn has_records(&self) -> bool {
        self.next_offset > self.base_offset
    }

    /// Gives the frame its place at the end.
    pub(crate) fn push(&mut self, header: &FrameHeader) {
        let position = self.bytes;
        if header.kind == FrameKind::Records && self.next_offset == self.base_offset {
            self.first_timestamp = Some(header.max_timestamp);
        }
        self.bytes += header.frame_bytes();
        self.last = log_id(header.term, header.index);
        self.next_offset = header.next_offset();
        self.max_timestamp = self.max_timestamp.max(header.max_timestamp);
        if self.terms.last().is_none_or(|(term, _)| *term != header.term) {
            self.terms.push((header.term, header.index));
        }
        self.index.note(header, position);
    }

    /// The term of the entry at `index`, which is in this segment.
    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        let at = self.terms.partition_point(|(_, first)| *first <= index);
        at.checked_sub(1).map(|at| self.terms[at].0)
    }
}

/// Reads a stretch of a segment, frame by frame.
pub(crate) struct FrameStream {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    position: u64,
    end: u64,
    chunk: usize,
    /// See [`Self::open_patiently`].
    patient: bool,
    buffer: Bytes,
}

impl FrameStream {
    /// Over `position .. end` of the file, reading about `chunk` bytes at a time.
    pub(crate) async fn open(segment: &SegmentFile, position: u64, end: u64, chunk: usize) -> Result<Self, ReadError> {
        let file = segment.open().await?;
        Ok(Self { file, path: segment.path().to_owned(), position, end, chunk, patient: false, buffer: Bytes::new() })
    }

    /// The same, but asks again where the disk refuses: nobody else can tell what stands there.
    pub(crate) async fn open_patiently(
        segment: &SegmentFile,
        position: u64,
        end: u64,
        chunk: usize,
    ) -> Result<Self, ReadError> {
        let file = patiently(|| segment.open()).await?;
        let path = segment.path().to_owned();
        Ok(Self { file, path, position, end, chunk, patient: true, buffer: Bytes::new() })
    }

    /// Position of the next frame.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next frame, checked; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, ReadError> {
        let Some(header) = self.peek().await? else { return Ok(None) };
        self.fill(header.frame_bytes()).await?;
        let frame = Frame::decode(&mut self.buffer).map_err(|error| self.corrupt(error))?;
        self.position += header.frame_bytes();
        Ok(Some(frame))
    }

    /// The next frame's header only; its payload is skipped unread and unchecked.
    pub(crate) async fn next_header(&mut self) -> Result<Option<FrameHeader>, ReadError> {
        let Some(header) = self.peek().await? else { return Ok(None) };
        if header.frame_bytes() > self.end - self.position {
            return Err(self.beyond_end(header.frame_bytes()));
        }
        self.buffer.advance((header.frame_bytes() as usize).min(self.buffer.len()));
        self.position += header.frame_bytes();
        Ok(Some(header))
    }

    /// The next frame's header, which is not passed.
    pub(crate) async fn peek(&mut self) -> Result<Option<FrameHeader>, ReadError> {
        if self.position >= self.end {
            return Ok(None);
        }
        self.fill(FRAME_HEADER_BYTES as u64).await?;
        FrameHeader::decode(&self.buffer).map(Some).map_err(|error| self.corrupt(error))
    }

    /// Makes sure that the buffer holds `need` bytes from `position` on.
    async fn fill(&mut self, need: u64) -> Result<(), ReadError> {
        if self.buffer.len() as u64 >= need {
            return Ok(());
        }
        let left = self.end - self.position;
        if need > left {
            return Err(self.beyond_end(need));
        }
        let wanted = need.max(self.chunk as u64).min(left) as usize;
        self.buffer = match self.file.try_read_at(self.position, wanted) {
            Ok(bytes) if bytes.len() as u64 >= need => bytes,
            _ if self.patient => patiently(|| self.file.read_at(self.position, wanted)).await?,
            _ => self.file.read_at(self.position, wanted).await?,
        };
        if (self.buffer.len() as u64) < need {
            let error = FrameError::Short { have: self.buffer.len(), need: need as usize };
            return Err(self.corrupt(error));
        }
        Ok(())
    }

    fn beyond_end(&self, need: u64) -> ReadError {
        self.corrupt(format!("a frame of {need} bytes reaches beyond the segment's end {}", self.end))
    }

    fn corrupt(&self, why: impl ToString) -> ReadError {
        ReadError::Corrupt { file: self.path.clone(), position: self.position, why: why.to_string() }
    }
}
