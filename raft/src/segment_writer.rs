//! The segment writer: one task per data directory that writes what the journal has made durable into the segments.
//!
//! It gathers for a moment, then writes each log's frames in large, consecutive writes through the page cache (RULES.md
//! J11); checkpoints sync them later. Bytes that are appended but not yet in their segment are bounded by a budget, taken at
//! append: when the writer falls behind, appends wait. Each log's jobs run in the order they were given.
//! It never looks into a frame.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::disk::{Disk, is_full, is_out_of_files, is_refused};
use crate::error::Stopped;
use crate::log::Log;
use crate::log::index::SparseIndex;
use crate::log::segment::{self, SegmentFile};
use crate::log::tail::TailBudget;
use crate::stop::StopSignal;

/// How long it gathers, unless there is much to write or somebody waits.
const GATHER: Duration = Duration::from_millis(50);
/// How long a write that was refused waits before it is tried again.
const REFUSED_RETRY: Duration = Duration::from_millis(500);
/// How many logs are written at a time.
const CONCURRENT: usize = 4;
/// Most bytes, and most parts, of one write.
const WRITE_BYTES_MAX: usize = 4 << 20;
/// Most files that a round removes before it writes.
const REMOVALS_MAX: usize = 128;
const WRITE_PARTS_MAX: usize = 512;

/// A share of the budget, given back when dropped.
pub(crate) type Permit = OwnedSemaphorePermit;

/// What is left to do when a segment is closed.
pub(crate) struct Seal {
    pub(crate) file: Arc<SegmentFile>,
    pub(crate) index: SparseIndex,
    /// Give back the room behind this length.
    pub(crate) release: Option<u64>,
}

/// The frames of one append.
pub(crate) struct Write {
    pub(crate) log: Arc<Log>,
    pub(crate) file: Arc<SegmentFile>,
    pub(crate) position: u64,
    /// Empty if they stand in the file already.
    pub(crate) parts: Vec<Bytes>,
    /// The append, counted per log.
    pub(crate) append: u64,
    /// Its share of the budget.
    pub(crate) _permit: Permit,
}

impl Write {
    fn bytes(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }
}

/// One thing to do.
pub(crate) enum Job {
    /// Write frames.
    Write(Write),
    /// Finish a closed segment.
    Seal { log: Arc<Log>, seal: Seal },
    /// Unlink files of a replica's folder that are no longer part of its log, oldest first.
    Remove { log_dir: PathBuf, files: Vec<Arc<SegmentFile>> },
}

impl Job {
    /// Jobs with one key run in order.
    fn key(&self) -> PathBuf {
        match self {
            Self::Write(Write { log, .. }) | Self::Seal { log, .. } => log.dir().to_owned(),
            Self::Remove { log_dir, .. } => log_dir.clone(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Write(write) => write.bytes(),
            _ => 0,
        }
    }
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    bytes: usize,
    /// Jobs given to it and finished by it, ever.
    given: u64,
    finished: u64,
    /// The last round left jobs behind, because the disk is full, or too many files are open.
    refused: bool,
    /// Nobody runs jobs any more.
    closed: bool,
}

/// Why what was queued is not all done.
#[derive(Debug)]
pub(crate) enum FlushFailed {
    /// The directory has stopped.
    Stopped(Stopped),
    /// There is no room, or too many files are open; it goes on when that is over.
    Refused,
}

/// The task's handle. The queue is bounded by the budget: each write holds a permit.
pub(crate) struct SegmentWriter {
    disk: Arc<dyn Disk>,
    queue: Mutex<Queue>,
    /// Something is there.
    given: Notify,
    /// Do not gather any longer.
    urgent: Notify,
    /// A round of jobs is finished.
    finished: Notify,
    budget: Arc<Semaphore>,
    budget_bytes: usize,
    stop: StopSignal,
}

impl SegmentWriter {
    pub(crate) fn new(disk: Arc<dyn Disk>, unwritten_bytes_max: usize, stop: StopSignal) -> Arc<Self> {
        let budget_bytes = unwritten_bytes_max.clamp(1, u32::MAX as usize);
        Arc::new(Self {
            disk,
            queue: Mutex::new(Queue::default()),
            given: Notify::new(),
            urgent: Notify::new(),
            finished: Notify::new(),
            budget: Arc::new(Semaphore::new(budget_bytes)),
            budget_bytes,
            stop,
        })
    }

    /// Waits until `bytes` more may be appended. An append larger than the whole budget waits for all of it.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<Permit, Stopped> {
        self.stop.check()?;
        let share = bytes.clamp(1, self.budget_bytes) as u32;
        tokio::select! {
            biased;
            permit = self.budget.clone().acquire_many_owned(share) => permit.map_err(|_| self.stop.reason()),
            stopped = self.stop.stopped() => Err(stopped),
        }
    }

    /// Queues a job. Never waits; may be called with a log's lock held. Once the directory has stopped, jobs are dropped: the
    /// journal has what they would have written.
    pub(crate) fn push(&self, job: Job) {
        let mut queue = self.queue.lock();
        if queue.closed {
            return;
        }
        queue.given += 1;
        queue.bytes += job.bytes();
        queue.jobs.push(job);
        let much = queue.bytes >= self.budget_bytes / 8;
        drop(queue);
        self.given.notify_one();
        if much {
            self.urgent.notify_one();
        }
    }

    /// Waits until everything queued so far is done.
    pub(crate) async fn flush(&self) -> Result<(), FlushFailed> {
        let wanted = self.queue.lock().given;
        loop {
            let finished = self.finished.notified();
            tokio::pin!(finished);
            finished.as_mut().enable();
            {
                let queue = self.queue.lock();
                // First: what was given later and is finished would count for what was left behind.
                if queue.refused {
                    return Err(FlushFailed::Refused);
                }
                if queue.finished >= wanted {
                    // A job that failed is finished too: it has stopped the directory before it was counted.
                    return self.stop.check().map_err(FlushFailed::Stopped);
                }
            }
            self.urgent.notify_one();
            tokio::select! {
                biased;
                () = finished => {}
                stopped = self.stop.stopped() => return Err(FlushFailed::Stopped(stopped)),
            }
        }
    }

    /// Runs until the directory stops. `logs` are those whose tail caches share `tails`.
    pub(crate) async fn run(self: Arc<Self>, tails: Arc<TailBudget>, logs: impl Fn() -> Vec<Arc<Log>> + Send) {
        let _closing = Closing(&self);
        loop {
            let refused = self.queue.lock().refused;
            tokio::select! {
                biased;
                _ = self.stop.stopped() => return,
                () = self.given.notified() => {}
                () = tokio::time::sleep(REFUSED_RETRY), if refused => {}
            }
            tokio::select! {
                biased;
                _ = self.stop.stopped() => return,
                () = self.urgent.notified() => {}
                () = tokio::time::sleep(GATHER) => {}
            }
            self.round().await;
            shed(&tails, logs());
        }
    }

    async fn round(&self) {
        let mut jobs = {
            let mut queue = self.queue.lock();
            queue.bytes = 0;
            std::mem::take(&mut queue.jobs)
        };
        let removals: Vec<Job> = jobs.extract_if(.., |job| matches!(job, Job::Remove { .. })).collect();
        let (removed, put_off) = self.remove_some(removals).await;
        let count = jobs.len() + removed;
        let mut by_log: BTreeMap<PathBuf, VecDeque<Job>> = BTreeMap::new();
        for job in jobs {
            by_log.entry(job.key()).or_default().push_back(job);
        }
        let left = Mutex::new(Vec::new());
        let run = |jobs| async {
            let undone = self.run_jobs(jobs).await;
            left.lock().extend(undone);
        };
        stream::iter(by_log.into_values()).for_each_concurrent(CONCURRENT, run).await;
        self.settle(count, left.into_inner());
        if !put_off.is_empty() {
            self.queue.lock().jobs.splice(0..0, put_off);
            self.given.notify_one();
            self.urgent.notify_one();
        }
    }

    /// Removes files: first of all, because it makes room. But not more at a time than [`REMOVALS_MAX`], for appends wait until a round
    /// has written theirs. Returns how many jobs that were, and what is left of the others. Nothing is written to any of the files any
    /// more.
    async fn remove_some(&self, jobs: Vec<Job>) -> (usize, Vec<Job>) {
        let (mut removed, mut files_left, mut put_off) = (0, REMOVALS_MAX, Vec::new());
        for job in jobs {
            let Job::Remove { log_dir, mut files } = job else { continue };
            files.iter().for_each(|file| file.retire());
            let later = files.split_off(files.len().min(files_left));
            files_left -= files.len();
            if !files.is_empty() {
                self.remove(&log_dir, &files).await;
            }
            match later.is_empty() {
                true => removed += 1,
                false => put_off.push(Job::Remove { log_dir, files: later }),
            }
        }
        (removed, put_off)
    }

    /// Takes note of what a round has done, and puts back what it could not do, in front.
    fn settle(&self, count: usize, mut left: Vec<Job>) {
        let mut queue = self.queue.lock();
        queue.finished += (count - left.len()) as u64;
        queue.refused = !left.is_empty();
        left.append(&mut queue.jobs);
        queue.jobs = left;
        drop(queue);
        self.finished.notify_waiters();
    }

    /// Runs one log's jobs, in order. Returns those that were refused.
    async fn run_jobs(&self, mut jobs: VecDeque<Job>) -> VecDeque<Job> {
        while let Some(job) = jobs.pop_front() {
            match job {
                Job::Write(first) => {
                    let mut run = vec![first];
                    while let Some(Job::Write(next)) = jobs.front()
                        && follows(&run, next)
                        && let Some(Job::Write(next)) = jobs.pop_front()
                    {
                        run.push(next);
                    }
                    if !self.write(&run).await {
                        run.into_iter().rev().for_each(|write| jobs.push_front(Job::Write(write)));
                        return jobs;
                    }
                }
                Job::Seal { log, seal } => self.seal(&log, seal).await,
                // Done before.
                Job::Remove { .. } => {}
            }
        }
        jobs
    }

    /// Writes one run, all of it or, if that is refused, none (false). Until it has succeeded its frames stay in the tail
    /// cache and the journal. Any other failure means that the directory cannot be trusted any more.
    async fn write(&self, run: &[Write]) -> bool {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return true };
        let parts: Vec<Bytes> = run.iter().flat_map(|write| write.parts.iter().cloned()).collect();
        let path = first.file.path();
        if self.stop.check().is_err() {
            return true;
        }
        let written = if parts.is_empty() { Ok(()) } else { first.file.write(first.position, parts).await };
        match written {
            Ok(()) => last.log.became_written(last.append),
            Err(error) if is_full(&error) => {
                last.log.context().journal.refusals().note(&error);
                tracing::warn!(path = %path.display(), "disk full: a segment waits to be written");
                return false;
            }
            Err(error) if is_out_of_files(&error) => {
                tracing::error!(path = %path.display(), %error, "a segment waits to be written");
                return false;
            }
            Err(error) => self.stop.stop(&format!("writing {}: {error}", path.display())),
        }
        true
    }

    async fn seal(&self, log: &Log, seal: Seal) {
        let released = match seal.release {
            Some(bytes) => seal.file.set_len(bytes).await,
            None => Ok(()),
        };
        let name = seal.file.name();
        let result = match released {
            Ok(()) if seal.index.is_complete() => log.store_closed_index(name, seal.index.encode(name)).await,
            other => other,
        };
        match result {
            Ok(()) => {}
            // The folder is gone, or it was refused: the index can be rebuilt, and the next start gives the room back.
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_refused(&error) => {
                tracing::warn!(path = %seal.file.path().display(), %error, "the index was not written");
            }
            Err(error) => self.stop.stop(&format!("closing {}: {error}", seal.file.path().display())),
        }
    }

    async fn remove(&self, dir: &Path, files: &[Arc<SegmentFile>]) {
        for file in files {
            file.retire();
            for extension in ["segment", "index", "base"] {
                let path = segment::path(dir, file.name(), extension);
                match self.disk.remove_file(&path).await {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        // Recovery removes it at the next start.
                        tracing::warn!(path = %path.display(), %error, "a file that is no longer needed stays");
                    }
                    _ => {}
                }
            }
            file.close_retired();
        }
        // So that the room becomes free now, not when the file system gets round to it.
        match self.disk.sync_dir(dir).await {
            Err(error) if is_out_of_files(&error) => {
                tracing::error!(dir = %dir.display(), %error, "the room of removed files may be free a little later");
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.stop.stop(&format!("{}: {error}", dir.display()));
            }
            _ => {}
        }
    }
}

/// However the task ends, jobs do not outlive it: each holds its log, and so everything.
struct Closing<'a>(&'a SegmentWriter);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let jobs = {
            let mut queue = self.0.queue.lock();
            queue.closed = true;
            std::mem::take(&mut queue.jobs)
        };
        drop(jobs);
    }
}

/// Whether `next` stands right behind a run, and they are not too much for one write.
fn follows(run: &[Write], next: &Write) -> bool {
    let Some(first) = run.first() else { return true };
    let bytes: usize = run.iter().map(Write::bytes).sum();
    let parts: usize = run.iter().map(|write| write.parts.len()).sum();
    first.file.name() == next.file.name()
        && first.position + bytes as u64 == next.position
        && bytes < WRITE_BYTES_MAX
        && parts + next.parts.len() <= WRITE_PARTS_MAX
        && parts > 0
        && !next.parts.is_empty()
}

/// Brings the tail caches back under their common bound, each in proportion to what it holds.
fn shed(tails: &TailBudget, logs: Vec<Arc<Log>>) {
    let mut excess = tails.excess();
    if excess == 0 {
        return;
    }
    // A little more than needed, so that this is not done after every round.
    excess += tails.used() / 8;
    let share = excess / logs.len().max(1) + 1;
    for _ in 0..3 {
        for log in &logs {
            if excess == 0 {
                return;
            }
            excess = excess.saturating_sub(log.shed(share.max(excess / logs.len().max(1))));
        }
    }
}
