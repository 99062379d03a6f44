//! One replica's log: segments, index, tail cache, and the append state that follows from them.
//!
//! Written by [`crate::log_store`] (openraft's side; the writing half is in `append` and `write`), read by replication, apply and fetch
//! through one reader (`read`). Positions are decided at append, in memory; the journal makes the frames durable; the
//! [`crate::segment_writer`] puts them into the segments behind all that. It never knows the network.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use crate::config::RaftConfig;
use crate::disk::{Disk, is_refused};
use crate::error::{ReadError, Stopped};
use crate::healed::Healed;
use crate::instruments::LogInstruments;
use crate::journal::{Journal, Lsn, Op};
use crate::payload::Application;
use crate::segment_writer::SegmentWriter;
use crate::stop::StopSignal;
use crate::types::{GroupId, LogId, Offset, ReplicaId, StoredMembership, Vote};

pub(crate) mod append;
mod aside;
pub mod base;
mod bases;
pub(crate) mod capture;
pub(crate) mod damage;
pub mod entry;
pub mod frame;
pub(crate) mod head;
pub mod index;
mod lag;
pub(crate) mod mend;
mod read;
mod retention;
pub(crate) mod segment;
mod sole_voter;
pub(crate) mod state;
pub(crate) mod tail;
#[cfg(test)]
mod tests;
pub(crate) mod write;

use damage::Damage;
pub use damage::Rot;
use frame::Frame;
pub use lag::Lag;
use state::{LogState, SnapshotRef};
use tail::TailBudget;

/// What all logs of a data directory share.
pub(crate) struct LogContext {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) config: RaftConfig,
    pub(crate) journal: Arc<Journal>,
    pub(crate) writer: Arc<SegmentWriter>,
    pub(crate) budget: Arc<TailBudget>,
    pub(crate) stop: StopSignal,
    pub(crate) instruments: LogInstruments,
    /// Bytes of frames appended since the last checkpoint began, and what the journal had written when it did: small appends take more
    /// there than they have, large ones less.
    pub(crate) journalled_bytes: AtomicU64,
    pub(crate) checkpointed_bytes: AtomicU64,
    /// Told when that is enough for the next one.
    pub(crate) checkpoint_due: Notify,
    /// Told when rot was found in some log.
    pub(crate) rot_found: Notify,
    /// What was rotten and is whole again.
    pub(crate) healed: Healed,
    /// Bytes of frames appended since the directory was opened. What free space was measured without is told by it.
    pub(crate) accepted_bytes: AtomicU64,
}

impl LogContext {
    fn count_journalled(&self, bytes: u64) {
        self.accepted_bytes.fetch_add(bytes, Ordering::Relaxed);
        let appended = self.journalled_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let written = self.journal.bytes_written().saturating_sub(self.checkpointed_bytes.load(Ordering::Relaxed));
        if appended.max(written) >= self.config.checkpoint_journal_bytes {
            self.checkpoint_due.notify_one();
        }
    }

    /// A checkpoint begins.
    pub(crate) fn count_afresh(&self) {
        self.journalled_bytes.store(0, Ordering::Relaxed);
        self.checkpointed_bytes.store(self.journal.bytes_written(), Ordering::Relaxed);
    }

    /// Stops the directory, unless what failed was only refused ([`is_refused`]).
    pub(crate) fn stop_unless_refused(&self, path: &Path, error: &io::Error) {
        match is_refused(error) {
            true => self.journal.refusals().note(error),
            false => self.stop.stop(&format!("{}: {error}", path.display())),
        }
    }
}

/// One segment, for retention and for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Raft index of its first entry.
    pub first_index: u64,
    /// Raft index of its last entry.
    pub last_index: u64,
    /// The partition's next offset before its first entry.
    pub base_offset: Offset,
    /// The partition's next offset after its last entry.
    pub next_offset: Offset,
    /// Bytes of its frames.
    pub bytes: u64,
    /// Largest record timestamp in it, ms since 1970; -1 if none.
    pub max_timestamp: i64,
    /// By when all of it had been appended, ms since 1970 by a leader's clock, if the log says so
    /// ([`crate::payload::AppendState::appended_by`]).
    pub appended_by: Option<i64>,
}

/// What is known of a replica's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Folder {
    /// It may not be there, or not durably.
    Unsure,
    /// It is there, durably.
    Durable,
    /// The replica is deleted.
    Gone,
}

/// A replica's log. Shared; its methods lock inside and never across an await.
pub struct Log {
    context: Arc<LogContext>,
    group: GroupId,
    replica: ReplicaId,
    dir: PathBuf,
    application: Arc<dyn Application>,
    state: Mutex<LogState>,
    high_watermark: watch::Sender<Offset>,
    /// A segment is closed at this size.
    segment_bytes_max: AtomicU64,
    /// Held while the folder is made, renamed, or something is put into it (segments apart).
    folder: tokio::sync::Mutex<Folder>,
    /// One writer at a time (append, truncate, purge, install); openraft's own order makes it uncontended.
    writing: tokio::sync::Mutex<()>,
    /// Held while the application is shown something, or asked for all it has: a core that has ended may not be done yet when the next one
    /// begins.
    applying: Mutex<()>,
    damage: Damage,
    /// Who waits for room does so no longer: the core is to end.
    abandoned: watch::Sender<bool>,
}

/// For reading outside the group's own tasks.
pub type SharedLog = Arc<Log>;

impl Log {
    pub(crate) fn new(
        context: Arc<LogContext>,
        (group, replica): (GroupId, ReplicaId),
        dir: PathBuf,
        application: Arc<dyn Application>,
        state: LogState,
    ) -> Arc<Self> {
        let high_watermark = state.log_start_offset;
        Arc::new(Self {
            segment_bytes_max: AtomicU64::new(context.config.segment_bytes_max),
            context,
            group,
            replica,
            dir,
            application,
            state: Mutex::new(state),
            high_watermark: watch::Sender::new(Offset(high_watermark)),
            folder: tokio::sync::Mutex::new(Folder::Unsure),
            writing: tokio::sync::Mutex::new(()),
            applying: Mutex::new(()),
            damage: Damage::default(),
            abandoned: watch::Sender::new(false),
        })
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The replica.
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// Oldest readable offset.
    pub fn log_start_offset(&self) -> Offset {
        Offset(self.state.lock().log_start_offset)
    }

    /// One past the last committed (known committed *and* applied) offset.
    pub fn high_watermark(&self) -> Offset {
        *self.high_watermark.borrow()
    }

    /// One past the last appended offset.
    pub fn log_end_offset(&self) -> Offset {
        Offset(self.state.lock().head.next_offset)
    }

    /// Follows the high watermark; it never goes back.
    pub fn watch_high_watermark(&self) -> watch::Receiver<Offset> {
        self.high_watermark.subscribe()
    }

    /// `Records` frames from the one that holds `from`, in order, up to but not including `limit` (usually the high
    /// watermark), until `bytes_max` is reached; at least one frame if `from < limit`. `from == limit` gives none. The
    /// first frame may begin before `from`.
    ///
    /// Errors: `OutOfRange` below the log start or above `limit`; `Corrupt` if the stored bytes are rotten.
    pub async fn read(&self, from: Offset, limit: Offset, bytes_max: usize) -> Result<Vec<Frame>, ReadError> {
        self.read_offsets(from.0, limit.0, bytes_max).await
    }

    /// From the frame that holds `from` (at least the log start) on, the base offset of the first frame below `limit` whose max
    /// timestamp is at or after `timestamp` (ms); `None` if there is none. (The exact record is found by the caller inside
    /// the batch.) By the time column of the sparse index: one stretch of a segment is read, and no other that cannot hold it.
    pub async fn offset_for_timestamp(
        &self,
        timestamp: i64,
        from: Offset,
        limit: Offset,
    ) -> Result<Option<Offset>, ReadError> {
        Ok(self.find_timestamp(timestamp, from.0, limit.0).await?.map(Offset))
    }

    /// Reads every frame of every segment and checks it. Returns the bytes read; `Corrupt` names the first bad place.
    /// For the background scrub (RULES.md J13).
    pub async fn verify(&self) -> Result<u64, ReadError> {
        self.verify_slowly(0).await
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.state.lock().bytes()
    }

    /// The last entry, flushed or not; the purge boundary if there is none.
    pub fn last_log_id(&self) -> Option<LogId> {
        self.state.lock().head.last
    }

    /// The last entry that is gone; `None` if nothing was purged.
    pub fn purged_log_id(&self) -> Option<LogId> {
        self.state.lock().purged
    }

    /// The vote as last saved.
    pub fn vote(&self) -> Option<Vote> {
        self.state.lock().vote
    }

    /// The last entry known here to be committed.
    pub fn committed_log_id(&self) -> Option<LogId> {
        self.state.lock().committed
    }

    /// The last entry known to be committed, if it is here: then every entry up to it is the committed one.
    pub(crate) fn committed_here(&self) -> Option<LogId> {
        let state = self.state.lock();
        state.committed.filter(|committed| state.log_id_at(committed.index) == Some(*committed))
    }

    /// The segments, oldest first; the last one may still grow. What retention decides by.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let state = self.state.lock();
        let info = |segment: &segment::Segment| SegmentInfo {
            first_index: segment.first_index(),
            last_index: segment.last.index,
            base_offset: Offset(segment.base_offset),
            next_offset: Offset(segment.next_offset),
            bytes: segment.bytes,
            max_timestamp: segment.max_timestamp,
            appended_by: state.head.append_state.appended_by(segment.next_offset),
        };
        state.segments.iter().map(info).collect()
    }

    /// What the append state says of the oldest that it remembers, as of the log's end: see
    /// [`AppendState::oldest_remembered`](crate::payload::AppendState::oldest_remembered).
    pub fn oldest_remembered(&self) -> Option<u64> {
        self.state.lock().head.append_state.oldest_remembered()
    }

    /// Where the next boundary snapshot is to be taken: `first_index` is the first index to keep, rounded down to a
    /// segment's start, never above what is applied. Follow it by openraft's `trigger().snapshot()`.
    pub fn set_snapshot_boundary(&self, first_index: u64) {
        self.state.lock().boundary = first_index;
    }

    /// The append state at the log's end, saved. For tests: it must be what a fold over the log gives.
    #[cfg(any(test, feature = "simulation"))]
    pub fn append_state(&self) -> bytes::Bytes {
        self.state.lock().head.append_state.save()
    }

    /// The frames of these indexes, whatever their kind, committed or not, until `bytes_max` is reached: what openraft would be
    /// given. For those who look at a log without a group: simulations, and recovery from one survivor.
    pub async fn frames(&self, from_index: u64, to_index: u64, bytes_max: usize) -> Result<Vec<Frame>, ReadError> {
        self.read_indexes(from_index, to_index, bytes_max).await
    }

    /// Appends that wait for room are refused from now on, and have appended nothing; and whatever else a core waits for is given up,
    /// because it may wait behind such an append. A core that starts waits again ([`Self::expect_room`]).
    pub(crate) fn abandon_appends(&self) {
        self.abandoned.send_replace(true);
    }

    /// Takes [`Self::abandon_appends`] back.
    pub(crate) fn expect_room(&self) {
        self.abandoned.send_replace(false);
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn context(&self) -> &Arc<LogContext> {
        &self.context
    }

    /// To be held by a state machine while it is at the application.
    pub(crate) fn applying(&self) -> &Mutex<()> {
        &self.applying
    }

    pub(crate) fn membership_at(&self, index: Option<u64>) -> StoredMembership {
        self.state.lock().membership_at(index)
    }

    pub(crate) fn snapshot(&self) -> Option<SnapshotRef> {
        self.state.lock().snapshot.clone()
    }

    /// The first index that can be read, or would be if there were one.
    pub(crate) fn first_index(&self) -> u64 {
        self.state.lock().first_index()
    }

    /// The last entry before the segment that holds the first entry to keep ([`Self::set_snapshot_boundary`]), never above
    /// `applied`.
    pub(crate) fn snapshot_boundary(&self, applied: LogId) -> Option<LogId> {
        #[cfg(any(test, feature = "simulation"))]
        if crate::sabotage::on(crate::sabotage::Sabotage::SnapshotsIgnoreTheBoundary) {
            return Some(applied);
        }
        let state = self.state.lock();
        let boundary = state.boundary;
        let starts = state.segments.iter().filter(|segment| segment.first_index() <= boundary);
        let previous = starts.map(|segment| segment.previous).filter(|previous| *previous <= Some(applied)).max();
        previous.flatten().max(state.purged)
    }

    pub(crate) fn contains(&self, id: LogId) -> bool {
        self.state.lock().log_id_at(id.index) == Some(id)
    }

    /// The log id of an entry, without reading it.
    pub(crate) fn log_id_at(&self, index: u64) -> Option<LogId> {
        self.state.lock().log_id_at(index)
    }

    pub(crate) fn key_log_ids(&self, from: u64, to: u64) -> Vec<LogId> {
        self.state.lock().key_log_ids(from, to)
    }

    /// The last entry that is applied, as the state machine has said.
    pub(crate) fn applied(&self) -> Option<LogId> {
        self.state.lock().applied
    }

    /// Everything up to `applied` is, and offsets below `high_watermark` can be read; to be called before anybody is told.
    pub(crate) fn set_applied(&self, applied: Option<LogId>, high_watermark: u64) {
        let mut state = self.state.lock();
        state.applied = state.applied.max(applied);
        if let Some(applied) = state.applied {
            let said = state.head.append_state.log_start(applied.index);
            state.log_start_offset = state.log_start_offset.max(said);
        }
        // With it: nobody may see the start above the high watermark meanwhile.
        self.raise_high_watermark(high_watermark);
    }

    /// Moves the high watermark up.
    fn raise_high_watermark(&self, to: u64) {
        self.high_watermark.send_if_modified(|now| {
            let raised = to > now.0;
            if raised {
                *now = Offset(to);
            }
            raised
        });
    }

    /// Remembers what is committed. Memory only: it reaches the disk with the next append or checkpoint (RULES.md J16).
    pub(crate) fn set_committed(&self, committed: Option<LogId>) {
        let mut state = self.state.lock();
        if state.committed < committed {
            state.committed = committed;
            state.committed_at = Instant::now();
        }
    }

    /// Hands an operation to the journal. Must be called with the state's lock held, so that the journal's order is the
    /// state's. `then` runs when it is durable, or will never be; it may lock the state only in the first case.
    fn submit(
        self: &Arc<Self>,
        state: &mut LogState,
        op: Op,
        then: impl FnOnce(&Arc<Log>, Result<Lsn, Stopped>) + Send + 'static,
    ) {
        state.submitted += 1;
        let number = state.submitted;
        let log = self.clone();
        let done = move |result: Result<Lsn, Stopped>| {
            let lsn = result.clone();
            // What it queues for the segment writer is there before anybody hears that the operation is durable.
            then(&log, result);
            match lsn {
                Ok(lsn) => log.completed(number, Some(lsn)),
                // Of a stopped directory nothing more is heard.
                Err(_) if log.context.stop.check().is_err() => {}
                Err(_) => log.completed(number, None),
            }
        };
        self.context.journal.submit(self.group, self.replica, op, Box::new(done));
    }

    /// An operation is durable; or, `None`, the journal has dropped it, because the replica is being deleted.
    fn completed(&self, number: u64, lsn: Option<Lsn>) {
        let mut state = self.state.lock();
        assert_eq!(
            state.durable + 1,
            number,
            "the journal completed an operation of group {} out of order",
            self.group
        );
        state.durable = number;
        state.durable_lsn = lsn.unwrap_or(state.durable_lsn);
        while let Some(at) = state.durable_waiters.iter().position(|(wanted, _)| *wanted <= number) {
            let (_, waiter) = state.durable_waiters.swap_remove(at);
            // Nobody waits any more if the waiter is gone; and he who waited for what was dropped hears nothing.
            let _ = lsn.map(|lsn| waiter.send(lsn));
        }
    }

    /// Told the LSN of the operation submitted last, once that is durable. Called with the state's lock held.
    fn last_submitted(state: &mut LogState) -> oneshot::Receiver<Lsn> {
        let (tell, told) = oneshot::channel();
        if state.durable == state.submitted {
            let _ = tell.send(state.durable_lsn);
        } else {
            state.durable_waiters.push((state.submitted, tell));
        }
        told
    }

    /// Vote, purge boundary and last entry, once all that they say is durable: what a starting core may rely on. (openraft takes
    /// for flushed what it finds; but when a core ended in the middle, the last round may still be on its way.)
    pub(crate) async fn durable_state(&self) -> io::Result<(Option<Vote>, Option<LogId>, Option<LogId>)> {
        let (found, told) = {
            let mut state = self.state.lock();
            ((state.vote, state.purged, state.head.last), Self::last_submitted(&mut state))
        };
        self.durable_for_core(told).await.map(|_| found)
    }

    /// Whether all that the journal has been given is durable within `wait`, and [`Self::durable_state`] is there at once. True if the
    /// directory stops: there is nothing to wait for.
    pub(crate) async fn becomes_durable(&self, wait: std::time::Duration) -> bool {
        let told = Self::last_submitted(&mut self.state.lock());
        tokio::time::timeout(wait, self.durable(told)).await.is_ok()
    }

    /// [`Self::durable`], for the group's own core: given up when that is to end ([`Self::abandon_appends`]). It may become durable yet.
    async fn durable_for_core(&self, told: oneshot::Receiver<Lsn>) -> io::Result<Lsn> {
        let mut abandoned = self.abandoned.subscribe();
        tokio::select! {
            biased;
            lsn = self.durable(told) => Ok(lsn?),
            _ = abandoned.wait_for(|abandoned| *abandoned) => Err(io::Error::other("the group is closing")),
        }
    }

    /// Waits for what [`Self::last_submitted`] gave.
    pub(crate) async fn durable(&self, told: oneshot::Receiver<Lsn>) -> Result<Lsn, Stopped> {
        tokio::select! {
            biased;
            // Nobody is left to tell: it was dropped.
            lsn = told => lsn.map_err(|_| self.context.stop.reason()),
            stopped = self.context.stop.stopped() => Err(stopped),
        }
    }
}
