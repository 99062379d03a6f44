//! A data directory, open: its journal, its checkpoints, and the logs of every replica on it.
//!
//! [`Store::open`] locks the directory, checks whose it is, recovers every log (RULES.md J12) and makes the live tail
//! durable before anything can vote or acknowledge. It knows no network and runs no Raft.
//!
//! Rooms: `opening` (how that goes), `replicas` (they come and go), `space` (what is free), `kept` (what is left for a person).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::checkpoint::ReplicaState;
use crate::checkpointer::{CheckpointFailed, Checkpointer};
use crate::config::RaftConfig;
use crate::data_dir::DataDir;
use crate::disk::Disk;
use crate::error::{OpenError, Stopped};
use crate::healed::HealedFile;
use crate::log::{Log, LogContext, Rot};
use crate::payload::Application;
use crate::recovery::ReplicaKey;
use crate::scrub::{self, Scrubbed};
use crate::stop::StopSignal;
use crate::types::{BrokerId, ClusterId, DirectoryId, GroupId, ReplicaId};
use crate::vital::vital;

mod kept;
mod opening;
mod replicas;
mod space;

use space::{Measured, measurements};

/// How long a checkpoint is put off that found no room, or too many files open.
const REFUSED_RETRY: Duration = Duration::from_secs(5);

/// How long the last checkpoint may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the [`Application`] of a group when its log is opened or created. Called before any other use of the group.
pub type ApplicationFactory = Arc<dyn Fn(GroupId, ReplicaId) -> Arc<dyn Application> + Send + Sync>;

/// What to open.
#[derive(Clone)]
pub struct StoreOptions {
    /// Where the bytes are.
    pub disk: Arc<dyn Disk>,
    /// The data directory; created if it is not there.
    pub path: PathBuf,
    /// Whose it must be; an empty directory becomes this broker's.
    pub broker: BrokerId,
    /// Limits.
    pub config: RaftConfig,
    /// Makes each group's application.
    pub applications: ApplicationFactory,
}

/// A replica on this directory, open or not.
#[derive(Clone)]
pub struct Replica {
    /// The group.
    pub group: GroupId,
    /// The incarnation.
    pub replica: ReplicaId,
    /// Its log, recovered.
    pub log: Arc<Log>,
    /// Its payload's owner.
    pub application: Arc<dyn Application>,
}

/// A replica whose files are not what was acknowledged (RULES.md J9). Its files are kept as they are; it is not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorruptReplica {
    /// The group.
    pub group: GroupId,
    /// The incarnation.
    pub replica: ReplicaId,
    /// What was found, with file and position.
    pub why: String,
}

/// A replica that is open though some of its segments are not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RottenReplica {
    /// The group.
    pub group: GroupId,
    /// The incarnation.
    pub replica: ReplicaId,
    /// Its rotten segments, oldest first.
    pub rot: Vec<Rot>,
}

/// A data directory at one moment, for metrics. See [`Store::usage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreUsage {
    /// Free bytes, as last measured.
    pub available_bytes: u64,
    /// Bytes of journal files in use.
    pub journal_bytes: u64,
    /// Since the last checkpoint was begun. It grows while nothing is written, too.
    pub checkpoint_age: Duration,
    /// Bytes of frames in the tail caches.
    pub tail_cache_bytes: u64,
    /// Replicas that are open.
    pub replicas: usize,
    /// Replicas that are corrupt, or rotten in places.
    pub corrupt: usize,
}

/// Every replica of a directory.
#[derive(Default)]
struct Registry {
    open: Mutex<BTreeMap<ReplicaKey, Replica>>,
    corrupt: Mutex<BTreeMap<ReplicaKey, (CorruptReplica, ReplicaState)>>,
}

impl Registry {
    fn logs(&self) -> Vec<Arc<Log>> {
        self.open.lock().values().map(|replica| replica.log.clone()).collect()
    }

    fn corrupt_states(&self) -> Vec<(ReplicaKey, ReplicaState)> {
        self.corrupt.lock().iter().map(|(key, (_, state))| (*key, state.clone())).collect()
    }
}

/// An open data directory.
pub struct Store {
    data_dir: DataDir,
    context: Arc<LogContext>,
    applications: ApplicationFactory,
    registry: Arc<Registry>,
    checkpointer: Checkpointer,
    /// Replicas whose folders could not be removed yet.
    deleted: Mutex<Vec<replicas::Deleted>>,
    quarantined: Mutex<Vec<PathBuf>>,
    scrubbed: Scrubbed,
    unknown_folders: Vec<PathBuf>,
    measured: Measured,
    /// When the last checkpoint was begun.
    checkpointed: Mutex<Instant>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Store {
    /// Opens the directory and recovers everything in it. On return all logs are durable up to their ends. A replica that is
    /// corrupt does not prevent that ([`Self::corrupt`]); a corrupt journal, checkpoint or identity does.
    ///
    /// Must be called on the runtime that is to run the directory's tasks.
    ///
    /// On a full disk it opens if there is a little room for the directory's own files; what has no room in its segment yet waits in
    /// memory. Otherwise it says [`OpenError::Full`], and nothing is lost.
    pub async fn open(options: StoreOptions) -> Result<Arc<Store>, OpenError> {
        Self::open_with(options).await.map_err(OpenError::judged)
    }

    pub(crate) fn context(&self) -> Arc<LogContext> {
        self.context.clone()
    }

    /// The limits it was opened with.
    pub fn config(&self) -> &RaftConfig {
        &self.context.config
    }

    /// The directory's id, made at its first opening.
    pub fn directory(&self) -> DirectoryId {
        self.data_dir.identity().directory
    }

    /// The cluster it belongs to; `None` until [`Self::join_cluster`].
    pub fn cluster(&self) -> Option<ClusterId> {
        self.data_dir.cluster()
    }

    /// Writes the cluster's id into the directory's identity, durably, once. Another id than the one it has is an error.
    pub async fn join_cluster(&self, cluster: ClusterId) -> Result<(), OpenError> {
        self.data_dir.join_cluster(cluster).await
    }

    /// What the cluster was called before it was recovered from this directory, the oldest first.
    pub fn former_clusters(&self) -> Vec<ClusterId> {
        self.data_dir.identity().former
    }

    /// Gives the cluster another id, durably. The one it had becomes a former one ([`Self::former_clusters`]), and who knows it
    /// by that is not let in any more.
    pub async fn rename_cluster(&self, cluster: ClusterId) -> Result<(), OpenError> {
        self.data_dir.rename_cluster(cluster).await
    }

    /// Every replica here that is open, by group.
    pub fn replicas(&self) -> Vec<Replica> {
        self.registry.open.lock().values().cloned().collect()
    }

    /// The replicas of one group that are here, corrupt ones among them.
    pub(crate) fn replicas_of(&self, group: GroupId) -> Vec<ReplicaId> {
        let all = (group, ReplicaId(0))..=(group, ReplicaId(u64::MAX));
        let mut found: Vec<_> =
            self.registry.open.lock().range(all.clone()).map(|((_, replica), _)| *replica).collect();
        found.extend(self.registry.corrupt.lock().range(all).map(|((_, replica), _)| *replica));
        found
    }

    /// Replicas that recovery found corrupt, by group. [`Self::delete`] discards one.
    pub fn corrupt(&self) -> Vec<CorruptReplica> {
        self.registry.corrupt.lock().values().map(|(replica, _)| replica.clone()).collect()
    }

    /// Rot in replicas that are open, by group: found by a reader, the scrub or recovery, and not repaired yet (RULES.md R7, J13).
    pub fn rotten(&self) -> Vec<RottenReplica> {
        let open = self.registry.open.lock();
        let rotten = open.values().filter(|replica| replica.log.is_rotten());
        let show = |replica: &Replica| RottenReplica {
            group: replica.group,
            replica: replica.replica,
            rot: replica.log.rot(),
        };
        rotten.map(show).collect()
    }

    /// Other files than segments that the background scrub found rotten and that could not be made anew (RULES.md J13).
    pub fn scrub_findings(&self) -> Vec<(PathBuf, String)> {
        self.scrubbed.findings()
    }

    /// Files that were rotten since the directory was opened, and are whole again or not needed any more.
    pub fn healed(&self) -> Vec<HealedFile> {
        self.context.healed.files()
    }

    /// Rounds of the background scrub since the directory was opened.
    pub fn scrub_rounds(&self) -> u64 {
        self.scrubbed.rounds()
    }

    pub(crate) fn scrubbed(&self) -> &Scrubbed {
        &self.scrubbed
    }

    pub(crate) fn logs(&self) -> Vec<Arc<Log>> {
        self.registry.logs()
    }

    pub(crate) fn path(&self) -> &Path {
        self.data_dir.path()
    }

    /// Takes a checkpoint although nothing may have been written: the one on disk has rotted, or what it makes needless. Whether there
    /// is a new one now; it may have been put off.
    pub(crate) async fn checkpoint_anew(&self) -> bool {
        self.try_checkpoint().await.map_err(CheckpointFailed::put_off).is_ok()
    }

    /// Folders under `groups` that nothing on record explains (RULES.md J14): kept, never touched.
    pub fn unknown_folders(&self) -> Vec<PathBuf> {
        self.unknown_folders.clone()
    }

    /// Resolves when the directory has stopped (a failed fsync, RULES.md J15; or [`Self::close`]).
    pub async fn stopped(&self) -> Stopped {
        self.context.stop.stopped().await
    }

    /// How long the journal's round in flight has been under way (RULES.md J18: more than a second is too long).
    pub fn stalled_for(&self) -> Duration {
        self.context.journal.stalled_for()
    }

    /// Takes a checkpoint now. One is taken by itself after enough journal bytes, or after a while.
    pub async fn checkpoint(&self) -> Result<(), Stopped> {
        self.try_checkpoint().await.or_else(CheckpointFailed::put_off)
    }

    async fn try_checkpoint(&self) -> Result<(), CheckpointFailed> {
        self.remove_all_deleted().await;
        let began = Instant::now();
        self.checkpointer.take(|| self.registry.logs(), || self.registry.corrupt_states()).await?;
        self.context.instruments.checkpoints.increment(1);
        self.context.instruments.checkpoint_seconds.record(began.elapsed().as_secs_f64());
        *self.checkpointed.lock() = began;
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn limit_checkpoints(&self, bytes_max: u64, state_bytes_max: u64) {
        self.checkpointer.limit(bytes_max, state_bytes_max);
    }

    /// What the directory holds and how far behind its parts are, at this moment.
    pub fn usage(&self) -> StoreUsage {
        // Each lock is let go of before the next is taken: a guard in the expression below would live to its end.
        let replicas = self.registry.open.lock().len();
        let corrupt = self.registry.corrupt.lock().len();
        let rotten = self.rotten().len();
        StoreUsage {
            available_bytes: self.available_bytes(),
            journal_bytes: self.context.journal.live_bytes(),
            checkpoint_age: self.checkpointed.lock().elapsed(),
            tail_cache_bytes: self.context.budget.used() as u64,
            replicas,
            corrupt: corrupt + rotten,
        }
    }

    /// Checkpoints, seals the journal and closes. Groups must have been shut down. If the checkpoint takes too long (the disk
    /// may be full), the journal keeps what it would have said.
    pub async fn close(&self) -> Result<(), Stopped> {
        let checkpointed = tokio::time::timeout(CLOSE_TIMEOUT, self.try_checkpoint()).await;
        if let Ok(Ok(())) = checkpointed {
            // Not before: they must not tell of bytes that can still be lost.
            for log in self.registry.logs() {
                if let Err(error) = log.persist_index().await {
                    tracing::warn!(path = %log.dir().display(), %error, "the index is to be made anew");
                }
            }
        }
        let checkpointed = checkpointed.map_or(Ok(()), |taken| taken.or_else(CheckpointFailed::put_off));
        let closed = self.context.journal.close().await;
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            // They end with the journal.
            let _ = task.await;
        }
        checkpointed.and(closed)
    }

    fn start_writer(&self) {
        let registry = self.registry.clone();
        let writer = self.context.writer.clone();
        let run = writer.run(self.context.budget.clone(), move || registry.logs());
        self.spawn("segments", run);
    }

    fn start_tasks(self: &Arc<Self>) {
        self.spawn("checkpoints", checkpoints(Arc::downgrade(self), self.context.clone()));
        self.spawn("measurements", measurements(Arc::downgrade(self), self.context.stop.clone()));
        self.spawn("scrub", scrub::run(Arc::downgrade(self)));
    }

    /// Spawns a task without which the directory is of no use: its panic stops it.
    pub(crate) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let journal = Arc::downgrade(&self.context.journal);
        let stop =
            move |why: &str| journal.upgrade().into_iter().for_each(|journal| StopSignal::new(journal).stop(why));
        self.tasks.lock().push(tokio::spawn(vital(name, stop, task)));
    }

    /// Stops the directory: nothing is acknowledged any more. For whoever finds that this process must not go on.
    pub(crate) fn stop(&self, why: &str) {
        self.context.stop.stop(why);
    }
}

/// Dropping a store without closing it is what a crash would do: what is not durable is not made so.
impl Drop for Store {
    fn drop(&mut self) {
        if !self.context.journal.is_stopped() {
            self.context.journal.stop("the data directory was dropped without being closed");
        }
    }
}

/// Takes checkpoints while something is written.
async fn checkpoints(store: Weak<Store>, context: Arc<LogContext>) {
    let mut last = context.journal.last_lsn();
    let mut pause = context.config.checkpoint_interval;
    loop {
        tokio::select! {
            biased;
            _ = context.stop.stopped() => return,
            () = context.checkpoint_due.notified() => {}
            () = context.journal.short_of_room() => {}
            () = tokio::time::sleep(pause) => {}
        }
        let Some(store) = store.upgrade() else { return };
        pause = context.config.checkpoint_interval;
        let now = context.journal.last_lsn();
        if now == last {
            // Nothing to store; but files that nobody reads any more need not stay open.
            store.logs().iter().for_each(|log| log.rest());
            continue;
        }
        match store.try_checkpoint().await {
            Ok(()) => last = now,
            Err(failed) => {
                let refused = matches!(failed, CheckpointFailed::Refused(_));
                if failed.put_off().is_err() {
                    return;
                }
                pause = if refused { REFUSED_RETRY } else { context.config.checkpoint_interval };
            }
        }
    }
}
