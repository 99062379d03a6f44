//! The journal: one append-only stream for all groups of a data directory, one fdatasync per round (RULES.md J).
//!
//! [`Journal::submit`] queues an operation; the writer task takes whatever gathered while the last sync ran, writes it
//! as one round, syncs once, and completes every waiter in LSN order. No timer, no linger.
//! The journal knows no openraft and never looks into a frame; what the operations mean is the log's business.
//!
//! Opening is two steps: [`scan`] (or [`Scanner`]) reads back what is there, then [`Journal::start`] makes its tail durable and goes
//! on in a new file under a new epoch. The bytes are in [`mod@format`], the order of things in [`writer`], the files in [`files`].
//!
//! What holds, always:
//!
//! - an operation that was told `Ok` is read back by every later scan, whole, until its file is retired;
//! - within a group, LSNs rise in the order of the submissions, and operations are told in the order of their LSNs; what comes to nothing
//!   is told so in that order, too;
//! - at most one round is not yet durable (and, beside it, one Seal);
//! - after one failed write or sync nothing is ever told `Ok` again.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::RaftConfig;
use crate::disk::{Disk, OpenMode, Refusals, create_dir_durably};
use crate::error::{OpenError, Stopped};
use crate::instruments::JournalInstruments;
use crate::types::{GroupId, LogId, ReplicaId, Vote};
use crate::vital::vital;

mod budget;
mod files;
mod format;
mod inspect;
mod queue;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

pub use budget::UnwrittenBytes;
pub(crate) use inspect::inspect;
pub use reader::{Scan, Scanner, scan};

use files::{At, Current, FileError, Keeper, LiveFile, OpenFile, Prepared, Retire};
use format::{BLOCK_BYTES, FileHeader, RecordBody, SNAPSHOT_NAME_BYTES_MAX, parse_file_name};
use queue::{Entry, Limits, Queue};
use writer::{Bypasses, CLOSED, Writer};

/// A place in the journal's stream; rises by one per operation, never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

/// Names a segment file of a replica; never reused (RULES.md J10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct SegmentName {
    /// Raft index of its first frame.
    pub first_index: u64,
    /// Rises by one with each file of the replica.
    pub file_no: u64,
}

/// Where frames stand in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Extent {
    /// The file.
    pub segment: SegmentName,
    /// Position of the first byte.
    pub position: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// What a large append is written to directly (RULES.md J6).
pub trait ExtentTarget: Send + Sync + 'static {
    /// Writes `parts` at `position` and makes them, the file and its directory entry durable. Several appends that stand one behind
    /// the other in one segment may come as one call, to the first one's target. An error stops the data directory, but no room and too many
    /// open files ([`crate::disk::is_refused`]) are waited out, by calling again.
    /// Runs on the journal's task: whatever blocks belongs to the disk (`write_at`, then `datasync`; the urgent
    /// `write_and_sync` is the journal's own).
    fn write_durably(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<'_, std::io::Result<()>>;

    /// Asked when that has failed: whether nobody minds, because the replica is being deleted. Then this append comes to nothing, with
    /// all that its replica has submitted before its [`Op::Delete`], which need not wait for any of it.
    fn is_unwanted(&self, _error: &std::io::Error) -> bool {
        false
    }
}

/// One operation of one group replica.
pub enum Op {
    /// The replica comes into being.
    Create,
    /// Frames, in index order, that will stand at `extent`.
    Append {
        /// Where they stand.
        extent: Extent,
        /// The frames' bytes: headers and payloads, in order.
        parts: Vec<Bytes>,
        /// Log id of the first frame.
        first: LogId,
        /// Log id of the last frame.
        last: LogId,
        /// Written to directly if the append is large.
        target: Arc<dyn ExtentTarget>,
    },
    /// The log ends after this entry (`None`: it is empty).
    Truncate(Option<LogId>),
    /// Raft's vote.
    Vote(Vote),
    /// A snapshot was installed: everything up to `boundary` is replaced by the snapshot file of that name.
    Installed {
        /// Last log id that the snapshot covers.
        boundary: LogId,
        /// Next offset at the boundary.
        next_offset: u64,
        /// File name within the replica's folder; already durable.
        snapshot: String,
    },
    /// Entries up to and including this one are gone.
    Purge(LogId),
    /// Known to be committed. Rides along with the next round, needs no sync of its own (RULES.md J16).
    Commit(LogId),
    /// The replica is deleted.
    Delete,
}

/// An operation read back from the journal, in LSN order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Its place.
    pub lsn: Lsn,
    /// Its group.
    pub group: GroupId,
    /// Its replica.
    pub replica: ReplicaId,
    /// What it says.
    pub op: RecoveredOp,
}

/// [`Op`], read back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are Op's.
pub enum RecoveredOp {
    Create,
    Append {
        extent: Extent,
        frames: Bytes,
        first: LogId,
        last: LogId,
    },
    /// The frames stand in the segment already, synced before this record was written; `crc` is their CRC-32C.
    Bypass {
        extent: Extent,
        crc: u32,
        first: LogId,
        last: LogId,
    },
    Truncate(Option<LogId>),
    Vote(Vote),
    Installed {
        boundary: LogId,
        next_offset: u64,
        snapshot: String,
    },
    Purge(LogId),
    Commit(LogId),
    Delete,
}

/// Called once, from the journal's own task, when the operation is durable (with its LSN) or will never be: the journal has stopped, or
/// the replica is being deleted ([`ExtentTarget::is_unwanted`]). It may submit, and take
/// the lock that was held at the submission; it must not block. Dropped unheard only if the runtime itself goes away.
pub type Done = Box<dyn FnOnce(Result<Lsn, Stopped>) + Send>;

/// Where a journal lives and who it belongs to.
#[derive(Clone, Debug)]
pub struct JournalIdentity {
    /// The `journal` folder of the data directory.
    pub dir: PathBuf,
    /// The data directory's cluster (0: none yet), stamped into file headers.
    pub cluster: u128,
    /// The data directory's id, stamped into file headers.
    pub directory: u128,
    /// Rises at every opening of the directory (RULES.md J1).
    pub epoch: u64,
    /// What the cluster was called before it was recovered from this directory: older files may bear these.
    pub former: Vec<u128>,
}

/// The journal's limits; see [`RaftConfig`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalConfig {
    /// Most bytes one round may hold; a single larger operation is a round of its own.
    pub round_bytes_max: usize,
    /// Size of a journal file, a multiple of 4096, from 64 KiB to 1 GiB.
    pub file_bytes: u64,
    /// Appends of at least so many bytes, or a run of adjoining appends of one group that waits and is as large, are written to
    /// their segment directly (RULES.md J6). At most a quarter of `file_bytes`.
    pub bypass_bytes_min: usize,
    /// How many retired files are kept to be used again, beside the one that is ready.
    pub spare_files_max: usize,
    /// New files are made only while so many bytes stay free (RULES.md J19).
    pub floor_bytes: u64,
    /// How long nothing comes until a Seal is written. No write ever waits for it.
    pub seal_idle: Duration,
}

impl From<&RaftConfig> for JournalConfig {
    fn from(config: &RaftConfig) -> Self {
        Self {
            round_bytes_max: config.journal_round_bytes_max,
            file_bytes: config.journal_file_bytes,
            bypass_bytes_min: config.bypass_bytes_min,
            spare_files_max: 2,
            floor_bytes: config.reserve_append_bytes / 4,
            seal_idle: Duration::from_millis(50),
        }
    }
}

impl JournalConfig {
    /// The nearest configuration that works: a round, whatever is in it, fits twice into a file.
    fn checked(mut self) -> Self {
        self.file_bytes = self.file_bytes.clamp(64 << 10, 1 << 30).next_multiple_of(BLOCK_BYTES as u64);
        let quarter = (self.file_bytes / 4) as usize;
        self.round_bytes_max = self.round_bytes_max.clamp(1, quarter);
        self.bypass_bytes_min = self.bypass_bytes_min.clamp(1, quarter);
        self
    }
}

/// What the journal's handle and its tasks share.
struct Shared {
    limits: Limits,
    queue: Mutex<Queue>,
    /// Wakes the writer.
    work: Notify,
    stopped: watch::Sender<Option<Stopped>>,
    dropped: AtomicBool,
    durable: AtomicU64,
    last: AtomicU64,
    bytes_written: AtomicU64,
    /// The files the writer is done with, oldest first.
    live: Mutex<Vec<LiveFile>>,
    /// The one it is not done with. Changed under the lock of `live`.
    here: Mutex<OpenFile>,
    /// Bytes used of the file the writer writes.
    live_bytes_here: AtomicU64,
    /// Length of the file that the writer waits for; 0: it waits for none.
    wanted_bytes: AtomicU64,
    /// See [`Journal::short_of_room`].
    short: Notify,
    /// See [`Journal::refusals`].
    refusals: Refusals,
    /// When the round in flight was begun.
    round_since: Mutex<Option<Instant>>,
    /// See [`Journal::observe`].
    instruments: OnceLock<JournalInstruments>,
}

impl Shared {
    fn stop(&self, why: &str) {
        let first = self.stopped.send_if_modified(|stopped| {
            let first = stopped.is_none();
            if first {
                *stopped = Some(Stopped(why.into()));
            }
            first
        });
        if first {
            self.work.notify_one();
        }
    }

    fn stop_reason(&self) -> Option<Stopped> {
        self.stopped.borrow().clone()
    }

    async fn until_stopped(&self) -> Stopped {
        let mut stopped = self.stopped.subscribe();
        match stopped.wait_for(Option::is_some).await.ok().and_then(|stopped| stopped.clone()) {
            Some(stopped) => stopped,
            // The sender is in `self`.
            None => Stopped("gone".into()),
        }
    }

    fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }
}

/// An open journal. Dropping it without [`Self::close`] is what a crash would do: what is not durable is not made so.
pub struct Journal {
    shared: Arc<Shared>,
    retire: mpsc::Sender<Retire>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Journal {
    /// Goes on behind what `scan` found: makes its last round durable, then begins a new file under `identity.epoch`. `unwritten` holds
    /// appends back while it is full. Call it on the runtime that is to run the journal's two tasks.
    ///
    /// Errors: `Io`; a full disk only if not even the first file fits.
    pub async fn start(
        disk: Arc<dyn Disk>,
        identity: JournalIdentity,
        scan: Scan,
        config: JournalConfig,
        unwritten: Arc<UnwrittenBytes>,
    ) -> Result<Journal, OpenError> {
        let config = config.checked();
        let (keeper, current) = begin(disk, &identity, &scan, &config).await.map_err(OpenError::from)?;
        let limits = Limits { round_bytes_max: config.round_bytes_max, bypass_bytes_min: config.bypass_bytes_min };
        let shared = Arc::new(Shared {
            limits,
            queue: Mutex::default(),
            work: Notify::new(),
            stopped: watch::Sender::new(None),
            dropped: AtomicBool::new(false),
            durable: AtomicU64::new(scan.last.0),
            last: AtomicU64::new(scan.last.0),
            bytes_written: AtomicU64::new(0),
            live: Mutex::new(scan.live),
            here: Mutex::new(OpenFile {
                name: current.prepared.name.clone(),
                first: scan.next,
                file_bytes: current.prepared.bytes,
                bare: false,
            }),
            live_bytes_here: AtomicU64::new(current.position),
            wanted_bytes: AtomicU64::new(0),
            short: Notify::new(),
            refusals: Refusals::default(),
            round_since: Mutex::new(None),
            instruments: OnceLock::new(),
        });
        let (ready_in, ready) = mpsc::channel(1);
        let (retire, retire_out) = mpsc::channel(1);
        let stop = |shared: Arc<Shared>| {
            move |why: &str| {
                // The writer's end has stopped the journal by now, without a reason.
                tracing::error!(why, "the journal stops");
                shared.stop(why);
            }
        };
        let keeping = keeper.run(shared.clone(), ready_in, retire_out);
        let keeper = tokio::spawn(vital("journal files", stop(shared.clone()), keeping));
        let writer = Writer {
            shared: shared.clone(),
            identity,
            unwritten,
            seal_idle: config.seal_idle,
            current,
            ready,
            next: scan.next,
            durable: scan.last,
            bypasses: Bypasses::default(),
            sealed: true,
        };
        tokio::spawn(vital("journal", stop(shared.clone()), writer.run()));
        Ok(Self { shared, retire, keeper: Mutex::new(Some(keeper)) })
    }

    /// Counts and times with these from now on. Once.
    pub fn observe(&self, instruments: JournalInstruments) {
        let _ = self.shared.instruments.set(instruments);
    }

    /// Queues an operation; `done` is told how it ended. Never blocks and never calls `done` itself, so it may be called under a
    /// lock. Within a group, order of calls is order of LSNs. A [`Op::Commit`] asks for no round of its own: it rides along with
    /// the next, at the latest with the Seal.
    ///
    /// The queue has no bound of its own: callers bound what they have outstanding (openraft's flow control, and the log's
    /// unwritten bytes).
    ///
    /// Panics if an append's `extent.bytes` is not the length of its parts, or a snapshot's name is longer than 1024 bytes.
    pub fn submit(&self, group: GroupId, replica: ReplicaId, op: Op, done: Done) {
        match &op {
            Op::Append { extent, parts, .. } => {
                let bytes: usize = parts.iter().map(Bytes::len).sum();
                assert_eq!(bytes as u64, extent.bytes, "group {group}: an append of {bytes} bytes for {extent:?}");
            }
            Op::Installed { snapshot, .. } => {
                assert!(snapshot.len() <= SNAPSHOT_NAME_BYTES_MAX, "snapshot name {snapshot}")
            }
            _ => {}
        }
        let entry = Entry { replica, body: RecordBody::Op(op), done };
        let wake = self.shared.queue.lock().push(&self.shared.limits, group, entry);
        if wake {
            self.shared.work.notify_one();
        }
    }

    /// [`Self::submit`], awaited: on return the operation is durable.
    pub async fn write(&self, group: GroupId, replica: ReplicaId, op: Op) -> Result<Lsn, Stopped> {
        let (tell, told) = oneshot::channel();
        // The caller may have stopped waiting.
        self.submit(group, replica, op, Box::new(move |result| drop(tell.send(result))));
        told.await.unwrap_or_else(|_| Err(self.reason()))
    }

    /// Every operation up to this LSN is durable and has been told so.
    pub fn durable_lsn(&self) -> Lsn {
        Lsn(self.shared.durable.load(Ordering::Acquire))
    }

    /// The last LSN given to an operation, durable or not.
    pub fn last_lsn(&self) -> Lsn {
        Lsn(self.shared.last.load(Ordering::Acquire))
    }

    /// Bytes of rounds made durable since the start, padding included. Only rises.
    pub fn bytes_written(&self) -> u64 {
        self.shared.bytes_written.load(Ordering::Acquire)
    }

    /// Bytes that a recovery would read now: what a checkpoint and [`Self::retire_below`] would save.
    pub fn live_bytes(&self) -> u64 {
        let done: u64 = self.shared.live.lock().iter().map(|file| file.bytes).sum();
        done + self.shared.live_bytes_here.load(Ordering::Acquire)
    }

    /// Resolves when there is no room for another whole file: a checkpoint makes some ([`Self::retire_below`]). One waiter.
    pub(crate) async fn short_of_room(&self) {
        self.shared.short.notified().await;
    }

    /// What was refused for want of room, here or by whoever else writes to the data directory and notes it.
    pub(crate) fn refusals(&self) -> &Refusals {
        &self.shared.refusals
    }

    /// The files that a recovery would read, oldest first. With each the LSN up to which everything in it is durable and will not change;
    /// `None`: nothing in it will, it is of an earlier opening.
    pub(crate) fn durable_files(&self) -> Vec<(String, Option<Lsn>)> {
        let durable = self.durable_lsn();
        let live = self.shared.live.lock();
        let here = self.shared.here.lock().clone();
        let epoch = |name: &str| parse_file_name(name).map(|(epoch, _)| epoch);
        let own = epoch(&here.name);
        let until = |file: &LiveFile| (epoch(&file.name) == own).then(|| file.last.min(durable));
        let mut files: Vec<_> = live.iter().map(|file| (file.name.clone(), until(file))).collect();
        if here.first <= durable {
            files.push((here.name, Some(durable)));
        }
        files
    }

    /// The length of a file that a recovery would read, or may have to; `None`: it is none of these. A recovery refuses one that is
    /// shorter: it cannot know what was cut off.
    pub(crate) fn file_bytes(&self, name: &str) -> Option<u64> {
        let live = self.shared.live.lock();
        let here = self.shared.here.lock();
        let found = live.iter().find(|file| file.name == name).map(|file| file.file_bytes);
        found.or_else(|| (here.name == name).then_some(here.file_bytes))
    }

    /// How long the round in flight has been under way; zero if none is. More than a second is reason to hand leadership away
    /// (RULES.md J18).
    pub fn stalled_for(&self) -> Duration {
        self.shared.round_since.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Recycles the files that hold nothing at or above `lsn`. A checkpoint that says so must be durable (RULES.md J7). On return the
    /// change is durable. Returns how many files went.
    pub async fn retire_below(&self, lsn: Lsn) -> Result<usize, Stopped> {
        let files = self.below(lsn);
        let count = files.len();
        if count == 0 {
            return Ok(0);
        }
        let (done, told) = oneshot::channel();
        self.retire.send(Retire { files, done }).await.map_err(|_| self.reason())?;
        told.await.map_err(|_| self.reason())?;
        Ok(count)
    }

    /// The files that may be retired. Not the last one before the next has its header, durably: nothing else would say then how far the
    /// journal was durable, and a recovery would miss all of it.
    fn below(&self, lsn: Lsn) -> Vec<LiveFile> {
        let live = self.shared.live.lock();
        let here = self.shared.here.lock();
        // A file that was too small for anything has none either.
        let empty = live.iter().rev().take_while(|file| file.bytes == 0).count();
        let needed = if here.bare && here.first > self.durable_lsn() { 1 + empty } else { 0 };
        let below = live.iter().take_while(|file| file.last < lsn).count();
        live[..below.min(live.len().saturating_sub(needed))].to_vec()
    }

    /// Ends the journal, and with it the data directory (RULES.md J15): for a failed sync of a segment, a checkpoint, a snapshot.
    /// Nothing is told `Ok` from now on.
    pub fn stop(&self, why: &str) {
        self.shared.stop(why);
    }

    /// Whether it has ended.
    pub fn is_stopped(&self) -> bool {
        self.shared.stopped.borrow().is_some()
    }

    /// Resolves when it has ended, with the reason.
    pub async fn stopped(&self) -> Stopped {
        self.shared.until_stopped().await
    }

    /// Writes what was submitted, then a Seal, and ends. Later submissions are told `Stopped`, and so are large appends for which there is no
    /// room, with what their groups have submitted behind them. On return nothing of the journal runs.
    /// An error: it had ended before, for another reason.
    pub async fn close(&self) -> Result<(), Stopped> {
        self.shared.queue.lock().close();
        self.shared.work.notify_one();
        let stopped = self.stopped().await;
        let keeper = self.keeper.lock().take();
        if let Some(keeper) = keeper {
            // It ends with the journal, after the step it is at.
            let _ = keeper.await;
        }
        if &*stopped.0 == CLOSED { Ok(()) } else { Err(stopped) }
    }

    fn reason(&self) -> Stopped {
        self.shared.stop_reason().unwrap_or_else(|| Stopped("the journal's tasks have ended".into()))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.dropped.store(true, Ordering::Release);
        self.shared.work.notify_one();
    }
}

/// What [`Journal::start`] does on the disk.
async fn begin(
    disk: Arc<dyn Disk>,
    identity: &JournalIdentity,
    scan: &Scan,
    config: &JournalConfig,
) -> Result<(Keeper, Current), FileError> {
    let dir = &identity.dir;
    create_dir_durably(&*disk, dir).await.at(dir)?;
    if let Some(tail) = &scan.tail {
        // After kill -9 it may be in the page cache only; after a failed sync the page cache may even call it clean. Only writing it
        // again makes sure. Everything before it was durable before it was written.
        let file = disk.open(&tail.path, OpenMode::ReadWrite).await.at(&tail.path)?;
        file.write_and_sync(tail.position, tail.parts.clone()).await.at(&tail.path)?;
    }
    for name in &scan.half_prepared {
        let path = dir.join(name);
        disk.remove_file(&path).await.at(&path)?;
    }
    let mut keeper = Keeper::new(disk, identity, config, &scan.spares);
    for (name, bytes) in scan.spares.iter().chain(&scan.unused) {
        keeper.give_up(name, *bytes).await?;
    }
    let Some(prepared) = keeper.prepare_first().await? else {
        return Err(std::io::Error::from(std::io::ErrorKind::StorageFull)).at(dir);
    };
    let mut current = Current::new(prepared);
    let header = FileHeader {
        cluster: identity.cluster,
        directory: identity.directory,
        epoch: identity.epoch,
        number: current.prepared.number,
        first: scan.next,
        follows: scan.last,
        file_bytes: current.prepared.bytes,
    };
    let Prepared { file, name, .. } = &current.prepared;
    file.write_and_sync(0, vec![header.encode()]).await.at(&dir.join(name))?;
    current.position = BLOCK_BYTES as u64;
    Ok((keeper, current))
}

impl From<FileError> for OpenError {
    fn from(FileError { path, error }: FileError) -> Self {
        Self::Io { path, error }
    }
}
