//! Recovery: from a checkpoint, a journal and segments to the logs as they were acknowledged (RULES.md J8–J16).
//!
//! Two passes over the journal above the checkpoint. The first (`plan`) reads what every operation says, without frames, and
//! so learns each replica's final log and which record each of its entries comes from. The second (`rebuild`) writes the
//! journalled frames that survive to their positions, checks the bypassed ones in place, and folds both into the append state.
//! Nothing it does depends on how far an earlier recovery came; nothing is deleted before a checkpoint says it may be
//! ([`crate::store`] takes one and then cleans up). It runs before anything else uses the directory.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::checkpoint::{
    CHECKPOINT_BYTES_MAX, CHECKPOINT_FILE, CHECKPOINT_VERSION, Checkpoint, CheckpointError, ReplicaState,
};
use crate::config::RaftConfig;
use crate::disk::{Disk, read_file};
use crate::error::OpenError;
use crate::journal::{JournalIdentity, Lsn, Recovered, RecoveredOp, SegmentName};
use crate::journal::{Scan, Scanner};
use crate::log::segment::SegmentFile;
use crate::log::state::LogState;
use crate::log::tail::TailBudget;
use crate::payload::Application;
use crate::store::{ApplicationFactory, CorruptReplica};
use crate::types::{DirectoryId, GroupId, ReplicaId};

mod folder;
mod plan;
mod rebuild;

use folder::Folder;
use plan::Plan;
use rebuild::Rebuild;

/// How many bytes of frames are gathered before they are written, and to how many replicas' segments at a time.
const BATCH_BYTES: usize = 4 << 20;
const CONCURRENT: usize = 16;
/// What is left free for what a start writes of its own, the first file of the journal above all. Segments wait for room.
const START_BYTES: u64 = 1 << 20;

/// Records by replica, each one's in the order of the journal.
type Batch = BTreeMap<ReplicaKey, Vec<(Lsn, RecoveredOp)>>;

/// A replica, by group and incarnation.
pub(crate) type ReplicaKey = (GroupId, ReplicaId);

/// What to recover, and with what.
pub(crate) struct Recovery<'a> {
    pub(crate) disk: &'a Arc<dyn Disk>,
    /// The data directory.
    pub(crate) root: &'a Path,
    pub(crate) directory: DirectoryId,
    pub(crate) identity: &'a JournalIdentity,
    pub(crate) config: &'a RaftConfig,
    pub(crate) applications: &'a ApplicationFactory,
    pub(crate) budget: &'a Arc<TailBudget>,
    /// Bytes of [`Unwritten`] so far: none.
    pub(crate) held: Arc<AtomicUsize>,
}

/// Frames of a log that found no room in their segment. They are in the tail cache, and in the journal, which is not given up before
/// they are written.
pub(crate) struct Unwritten {
    pub(crate) file: Arc<SegmentFile>,
    pub(crate) position: u64,
    /// Empty if they stand in the file already.
    pub(crate) frames: Bytes,
}

/// A replica whose log is whole again.
pub(crate) struct RecoveredReplica {
    pub(crate) key: ReplicaKey,
    pub(crate) dir: PathBuf,
    pub(crate) application: Arc<dyn Application>,
    pub(crate) state: LogState,
    /// What is left to be written, in order: its appends number 1 and up.
    pub(crate) unwritten: Vec<Unwritten>,
    /// Segments that do not have the bytes that the checkpoint vouches for, and what is wrong. They can be repaired (RULES.md R7).
    pub(crate) rotten: Vec<(SegmentName, String)>,
    /// Bases and snapshots that are rotten and could be done without, and what is wrong.
    pub(crate) needless: Vec<(PathBuf, String)>,
    /// Files in its folder that are not part of the log, to be removed after the next checkpoint.
    pub(crate) leftovers: Vec<PathBuf>,
    /// Files that are longer than their segment, to be cut to this length after the next checkpoint.
    pub(crate) cuts: Vec<(Arc<SegmentFile>, u64)>,
}

/// What was found.
pub(crate) struct Found {
    pub(crate) scan: Scan,
    pub(crate) replicas: Vec<RecoveredReplica>,
    /// Replicas that cannot be opened, and what a checkpoint is to say of them.
    pub(crate) corrupt: Vec<(CorruptReplica, ReplicaState)>,
    /// Whether one of them is on no record as such yet.
    pub(crate) gives_up: bool,
    /// Folders of deleted replicas.
    pub(crate) dead_folders: Vec<PathBuf>,
    /// What is kept of replicas that were given up.
    pub(crate) quarantined_folders: Vec<PathBuf>,
    /// Folders that nothing on record explains.
    pub(crate) unknown_folders: Vec<PathBuf>,
}

/// The folder of a replica.
pub(crate) fn replica_dir(root: &Path, (group, replica): ReplicaKey) -> PathBuf {
    groups_dir(root).join(format!("{group}-{replica}"))
}

/// The folder of all replicas' folders.
pub(crate) fn groups_dir(root: &Path) -> PathBuf {
    root.join("groups")
}

/// The prefix of a folder that is on its way out.
pub(crate) const DELETED_PREFIX: &str = "deleted-";

/// The prefix of a folder that is kept though its replica is deleted: it was rotten, and might hold what is nowhere else (RULES.md
/// R7). Only a person removes it.
pub(crate) const QUARANTINED_PREFIX: &str = "quarantined-";

/// Folders under `groups` that are no open replica's.
struct OtherFolders {
    dead: Vec<PathBuf>,
    quarantined: Vec<PathBuf>,
    unknown: Vec<PathBuf>,
}

impl Recovery<'_> {
    /// Runs both passes. On return every surviving frame is written to its segment (synced by the checkpoint that follows), or, for want
    /// of room, in memory: no more than the segment writer's budget. `StorageFull` beyond that.
    pub(crate) async fn run(self) -> Result<Found, OpenError> {
        let checkpoint = self.read_checkpoint().await?;
        // Both come after the journal's first file, which is durable by then: see `Store::open`.
        let later = match &checkpoint {
            Some(_) => Some("there is a checkpoint"),
            None => (self.identity.cluster != 0).then_some("it has joined a cluster"),
        };
        // Before the first one the journal holds everything.
        let none = || Checkpoint { directory: self.directory, lsn: Lsn(0), replicas: Vec::new() };
        let checkpoint = checkpoint.unwrap_or_else(none);
        let from = Lsn(checkpoint.lsn.0 + 1);
        let mut plans = self.first_pass(checkpoint, from, later).await?;
        let deleted: BTreeSet<ReplicaKey> = plans.iter().filter(|(_, plan)| plan.dead).map(|(key, _)| *key).collect();
        plans.retain(|_, plan| !plan.dead);
        let OtherFolders { dead, quarantined, unknown } = self.other_folders(&plans, &deleted).await?;
        let mut corrupt = Vec::new();
        let mut sound = Vec::new();
        for (key, plan) in plans {
            match plan.known_corrupt() {
                Some(state) => corrupt.push(report(key, state)),
                None => sound.push((key, plan)),
            }
        }
        let begun = stream::iter(sound).map(|(key, plan)| self.begin(key, plan)).buffered(CONCURRENT);
        let mut rebuilds: BTreeMap<ReplicaKey, Rebuild> = begun.try_collect().await?;
        let scan = self.second_pass(&mut rebuilds, from).await?;
        let known = corrupt.len();
        let mut replicas = Vec::new();
        for (key, rebuild) in rebuilds {
            match rebuild.finish(scan.last).await? {
                Ok(replica) => replicas.push(replica),
                Err(state) => corrupt.push(report(key, *state)),
            }
        }
        let (dead_folders, quarantined_folders, unknown_folders) = (dead, quarantined, unknown);
        let gives_up = corrupt.len() > known;
        Ok(Found { scan, replicas, corrupt, gives_up, dead_folders, quarantined_folders, unknown_folders })
    }

    async fn begin(&self, key: ReplicaKey, plan: Plan) -> Result<(ReplicaKey, Rebuild), OpenError> {
        let folder = Folder::list(&**self.disk, replica_dir(self.root, key)).await?;
        Ok((key, Rebuild::begin(self, key, plan, folder).await?))
    }

    async fn read_checkpoint(&self) -> Result<Option<Checkpoint>, OpenError> {
        let path = self.root.join(CHECKPOINT_FILE);
        let corrupt = |why: String| OpenError::Corrupt { path: path.clone(), why };
        let bytes = match read_file(&**self.disk, &path, CHECKPOINT_BYTES_MAX).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(corrupt(error.to_string())),
            Err(error) => return Err(OpenError::Io { path, error }),
        };
        let checkpoint = Checkpoint::decode(&bytes).map_err(|error| match error {
            CheckpointError::Version(found) => {
                OpenError::Version { path: path.clone(), found, known: CHECKPOINT_VERSION }
            }
            CheckpointError::Corrupt(why) => corrupt(why),
        })?;
        if checkpoint.directory != self.directory {
            return Err(corrupt(format!("it belongs to data directory {:032x}", checkpoint.directory.0)));
        }
        Ok(Some(checkpoint))
    }

    /// `later`: what says that the journal has been begun, if something does.
    async fn first_pass(
        &self,
        checkpoint: Checkpoint,
        from: Lsn,
        later: Option<&str>,
    ) -> Result<BTreeMap<ReplicaKey, Plan>, OpenError> {
        let mut plans = BTreeMap::new();
        for entry in checkpoint.replicas {
            let state = entry.decode_state().map_err(|error| OpenError::Corrupt {
                path: self.root.join(CHECKPOINT_FILE),
                why: format!("group {} replica {}: {error}", entry.group, entry.replica),
            })?;
            plans.insert((entry.group, entry.replica), Plan::from_checkpoint(state, entry.lsn));
        }
        let mut scanner = Scanner::open(&**self.disk, self.identity, from).await?;
        while let Some(recovered) = scanner.next().await? {
            let key = (recovered.group, recovered.replica);
            match plans.get_mut(&key) {
                Some(plan) => plan.take(&recovered),
                None if recovered.op == RecoveredOp::Create => {
                    plans.insert(key, Plan::created());
                }
                None if recovered.op == RecoveredOp::Delete => {
                    plans.insert(key, Plan::deleted());
                }
                // Of an incarnation that is dead and forgotten (RULES.md J12).
                None => {}
            }
        }
        match later.filter(|_| !scanner.finish().is_begun()) {
            // Even with nothing in it a file stays: the last one goes only when the next has been begun.
            Some(later) => {
                let why = format!("none of its files is there, or none that was begun, but {later}");
                Err(OpenError::Corrupt { path: self.identity.dir.clone(), why })
            }
            None => Ok(plans),
        }
    }

    async fn second_pass(&self, rebuilds: &mut BTreeMap<ReplicaKey, Rebuild>, from: Lsn) -> Result<Scan, OpenError> {
        let mut scanner = Scanner::open(&**self.disk, self.identity, from).await?;
        let (mut batch, mut bytes) = (Batch::new(), 0);
        while let Some(Recovered { lsn, group, replica, op }) = scanner.next().await? {
            if let RecoveredOp::Append { frames, .. } = &op {
                bytes += frames.len();
            }
            batch.entry((group, replica)).or_default().push((lsn, op));
            if bytes >= BATCH_BYTES {
                let short = self.is_short(bytes).await?;
                bytes = 0;
                take(rebuilds, std::mem::take(&mut batch), short).await?;
            }
        }
        take(rebuilds, batch, self.is_short(bytes).await?).await?;
        Ok(scanner.finish())
    }

    /// Whether these bytes may find no room, or take what a start needs of its own.
    async fn is_short(&self, bytes: usize) -> Result<bool, OpenError> {
        let available = self.disk.available_bytes(self.root).await;
        let available = available.map_err(|error| OpenError::Io { path: self.root.to_owned(), error })?;
        Ok(available < bytes as u64 + START_BYTES)
    }

    /// Folders under `groups` of replicas that are gone, those that are kept for a person, and those that nothing explains.
    async fn other_folders(
        &self,
        plans: &BTreeMap<ReplicaKey, Plan>,
        deleted: &BTreeSet<ReplicaKey>,
    ) -> Result<OtherFolders, OpenError> {
        let groups = groups_dir(self.root);
        let entries = match self.disk.read_dir(&groups).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(|error| OpenError::Io { path: groups.clone(), error })?,
        };
        let (mut dead, mut quarantined, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        for entry in entries {
            let path = groups.join(&entry.name);
            match parse_folder(&entry.name) {
                Some(key) if plans.contains_key(&key) => {}
                Some(key) if deleted.contains(&key) => dead.push(path),
                _ if entry.name.starts_with(DELETED_PREFIX) => dead.push(path),
                _ if entry.name.starts_with(QUARANTINED_PREFIX) => quarantined.push(path),
                _ => unknown.push(path),
            }
        }
        Ok(OtherFolders { dead, quarantined, unknown })
    }
}

/// Hands a batch to its replicas: each one's records in their order, several replicas at a time.
async fn take(rebuilds: &mut BTreeMap<ReplicaKey, Rebuild>, mut batch: Batch, short: bool) -> Result<(), OpenError> {
    let work = rebuilds.iter_mut().filter_map(|(key, rebuild)| Some(Ok((rebuild, batch.remove(key)?))));
    let work: Vec<Result<(&mut Rebuild, Vec<_>), OpenError>> = work.collect();
    stream::iter(work)
        .try_for_each_concurrent(CONCURRENT, |(rebuild, records)| async move {
            for (lsn, op) in records {
                rebuild.take(lsn, op, short).await?;
            }
            Ok(())
        })
        .await
}

/// The replica whose folder has this name.
pub(crate) fn parse_folder(name: &str) -> Option<ReplicaKey> {
    let (group, replica) = name.split_once('-')?;
    Some((GroupId(group.parse().ok()?), ReplicaId(replica.parse().ok()?)))
}

fn report((group, replica): ReplicaKey, state: ReplicaState) -> (CorruptReplica, ReplicaState) {
    let why = state.corrupt.clone().unwrap_or_default();
    (CorruptReplica { group, replica, why }, state)
}
