//! The segment writer: one task per data directory that writes what the journal has made durable into the segments.
//!
//! It gathers for a moment, then writes each log's frames in large, consecutive writes through the page cache (RULES.md
//! J11); checkpoints sync them later. Bytes that are appended but not yet in their segment are bounded by a budget, taken at
//! append: when the writer falls behind, appends wait. Each log's jobs run in the order they were given.
//! It never looks into a frame.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::disk::{Disk, replace_file};
use crate::error::Stopped;
use crate::log::Log;
use crate::log::index::SparseIndex;
use crate::log::segment::{self, FULL_RETRY, SegmentFile};
use crate::log::tail::TailBudget;
use crate::stop::StopSignal;

/// How long it gathers, unless there is much to write or somebody waits.
const GATHER: Duration = Duration::from_millis(50);
/// How many logs are written at a time.
const CONCURRENT: usize = 4;
/// Most bytes, and most parts, of one write.
const WRITE_BYTES_MAX: u64 = 4 << 20;
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

/// One thing to do.
pub(crate) enum Job {
    /// Write frames; `parts` is empty if they stand in the file already.
    Write { log: Arc<Log>, file: Arc<SegmentFile>, position: u64, parts: Vec<Bytes>, append: u64, permit: Permit },
    /// Finish a closed segment.
    Seal { log: Arc<Log>, seal: Seal },
    /// Unlink files of a replica's folder that are no longer part of its log, oldest first.
    Remove { log_dir: PathBuf, files: Vec<Arc<SegmentFile>> },
}

impl Job {
    /// Jobs with one key run in order.
    fn key(&self) -> PathBuf {
        match self {
            Self::Write { log, .. } | Self::Seal { log, .. } => log.dir().to_owned(),
            Self::Remove { log_dir, .. } => log_dir.clone(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Write { parts, .. } => parts.iter().map(Bytes::len).sum(),
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

    /// Queues a job. Never waits; may be called with a log's lock held.
    pub(crate) fn push(&self, job: Job) {
        let mut queue = self.queue.lock();
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
    pub(crate) async fn flush(&self) -> Result<(), Stopped> {
        let wanted = self.queue.lock().given;
        loop {
            let finished = self.finished.notified();
            tokio::pin!(finished);
            finished.as_mut().enable();
            if self.queue.lock().finished >= wanted {
                return Ok(());
            }
            self.urgent.notify_one();
            tokio::select! {
                () = finished => {}
                stopped = self.stop.stopped() => return Err(stopped),
            }
        }
    }

    /// Runs until the directory stops. `logs` are those whose tail caches share `tails`.
    pub(crate) async fn run(self: Arc<Self>, tails: Arc<TailBudget>, logs: impl Fn() -> Vec<Arc<Log>> + Send) {
        loop {
            tokio::select! {
                () = self.given.notified() => {}
                _ = self.stop.stopped() => return,
            }
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = self.urgent.notified() => {}
                _ = self.stop.stopped() => return,
            }
            self.round().await;
            shed(&tails, logs());
        }
    }

    async fn round(&self) {
        let jobs = {
            let mut queue = self.queue.lock();
            queue.bytes = 0;
            std::mem::take(&mut queue.jobs)
        };
        let count = jobs.len() as u64;
        let mut by_log: BTreeMap<PathBuf, Vec<Job>> = BTreeMap::new();
        for job in jobs {
            by_log.entry(job.key()).or_default().push(job);
        }
        stream::iter(by_log.into_values()).for_each_concurrent(CONCURRENT, |jobs| self.run_jobs(jobs)).await;
        self.queue.lock().finished += count;
        self.finished.notify_waiters();
    }

    async fn run_jobs(&self, jobs: Vec<Job>) {
        let mut run = Run::default();
        for job in jobs {
            match job {
                Job::Write { log, file, position, parts, append, permit } => {
                    if !run.takes(&file, position, &parts) {
                        self.write(std::mem::take(&mut run)).await;
                    }
                    run.add(log, file, position, parts, append, permit);
                }
                Job::Seal { log, seal } => {
                    self.write(std::mem::take(&mut run)).await;
                    self.seal(&log, seal).await;
                }
                Job::Remove { log_dir, files } => {
                    self.write(std::mem::take(&mut run)).await;
                    self.remove(log_dir, files).await;
                }
            }
        }
        self.write(run).await;
    }

    /// Writes one run. Until it has succeeded its frames stay in the tail cache and the journal, so a full disk is waited for;
    /// any other failure means that the directory cannot be trusted any more.
    async fn write(&self, run: Run) {
        let Some((log, file, position)) = run.at else { return };
        while !run.parts.is_empty() && self.stop.check().is_ok() {
            match file.write(position, run.parts.clone()).await {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    tracing::warn!(path = %file.path().display(), "disk full: a segment waits to be written");
                    tokio::select! {
                        () = tokio::time::sleep(FULL_RETRY) => {}
                        _ = self.stop.stopped() => return,
                    }
                }
                Err(error) => return self.stop.stop(&format!("writing {}: {error}", file.path().display())),
            }
        }
        if self.stop.check().is_ok() {
            log.became_written(run.append);
        }
    }

    async fn seal(&self, log: &Log, seal: Seal) {
        let released = match seal.release {
            Some(bytes) => seal.file.set_len(bytes).await,
            None => Ok(()),
        };
        let name = seal.file.name();
        let result = match released {
            Ok(()) if seal.index.is_complete() => {
                let path = segment::path(log.dir(), name, "index");
                replace_file(&*self.disk, &path, vec![seal.index.encode(name)]).await
            }
            other => other,
        };
        match result {
            Ok(()) => {}
            // The folder is gone, or there is no room: the index can be rebuilt.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::StorageFull) => {
                tracing::warn!(path = %seal.file.path().display(), %error, "the index was not written");
            }
            Err(error) => self.stop.stop(&format!("closing {}: {error}", seal.file.path().display())),
        }
    }

    async fn remove(&self, dir: PathBuf, files: Vec<Arc<SegmentFile>>) {
        for file in files {
            file.retire();
            for extension in ["segment", "index", "base"] {
                let path = segment::path(&dir, file.name(), extension);
                match self.disk.remove_file(&path).await {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        // Recovery removes it at the next start.
                        tracing::warn!(path = %path.display(), %error, "a file that is no longer needed stays");
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Consecutive writes to one file, gathered into one.
#[derive(Default)]
struct Run {
    at: Option<(Arc<Log>, Arc<SegmentFile>, u64)>,
    parts: Vec<Bytes>,
    bytes: u64,
    append: u64,
    permits: Vec<Permit>,
}

impl Run {
    fn takes(&self, file: &SegmentFile, position: u64, parts: &[Bytes]) -> bool {
        match &self.at {
            None => true,
            Some((_, own, start)) => {
                own.name() == file.name()
                    && start + self.bytes == position
                    && self.bytes < WRITE_BYTES_MAX
                    && self.parts.len() + parts.len() <= WRITE_PARTS_MAX
                    && !parts.is_empty()
                    && !self.parts.is_empty()
            }
        }
    }

    fn add(
        &mut self,
        log: Arc<Log>,
        file: Arc<SegmentFile>,
        position: u64,
        parts: Vec<Bytes>,
        append: u64,
        permit: Permit,
    ) {
        self.at.get_or_insert((log, file, position));
        self.bytes += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        self.parts.extend(parts);
        self.append = append;
        self.permits.push(permit);
    }
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
