//! Replicas come and go: created, deleted, set aside, discarded. Each is on record before its folder is touched.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Replica, Store};
use crate::disk::{dir_sync_failed, is_refused};
use crate::error::Stopped;
use crate::journal::Op;
use crate::log::Log;
use crate::log::base::Base;
use crate::log::capture::move_folder;
use crate::log::head::Head;
use crate::log::state::LogState;
use crate::log::tail::Tail;
use crate::recovery::{self, ReplicaKey};
use crate::types::{GroupId, ReplicaId};

/// A replica whose deletion is on record, and whose folder is still there.
pub(super) struct Deleted {
    dir: PathBuf,
    aside: PathBuf,
    /// If it was open.
    log: Option<Arc<Log>>,
    /// What keeps the record in the journal ([`crate::checkpointer`]).
    floor: u64,
}

impl Store {
    /// Creates an empty replica, durably. An existing (group, replica) is returned as it is; one whose files are corrupt or
    /// unknown is refused (an id is never used again, RULES.md R9).
    pub async fn create(&self, group: GroupId, replica: ReplicaId) -> Result<Replica, Stopped> {
        let key = (group, replica);
        let dir = recovery::replica_dir(self.data_dir.path(), key);
        if self.registry.corrupt.lock().contains_key(&key) || self.unknown_folders.contains(&dir) {
            return Err(Stopped(format!("{} holds what is left of another replica", dir.display()).into()));
        }
        let failed = |error: io::Error| Stopped(format!("{}: {error}", dir.display()).into());
        let existing = self.registry.open.lock().get(&key).cloned();
        let created = match existing {
            Some(existing) => existing,
            None => {
                let created = self.empty_replica(key, dir.clone()).map_err(failed)?;
                let mut open = self.registry.open.lock();
                open.entry(key).or_insert(created).clone()
            }
        };
        // Whoever came first has queued the record; everybody waits for it.
        created.log.create().await?;
        // Not before the record: a folder that nothing explains would be in the way of the next attempt.
        self.context.disk.create_dir_all(&dir).await.map_err(failed)?;
        Ok(created)
    }

    fn empty_replica(&self, key: ReplicaKey, dir: PathBuf) -> io::Result<Replica> {
        let application = (self.applications)(key.0, key.1);
        let head = Head::from_base(&*application, &Base::default())?;
        let tail = Tail::new(self.context.config.tail_cache_bytes, self.context.budget.clone());
        let state = LogState::empty(head, tail);
        let log = Log::new(self.context.clone(), key, dir, application.clone(), state);
        Ok(Replica { group: key.0, replica: key.1, log, application })
    }

    /// Deletes a replica: record durable first, then its files (RULES.md J14). Its group must have been shut down. The files of
    /// one that is rotten are not removed but moved aside ([`Self::quarantined`]).
    pub async fn delete(&self, group: GroupId, replica: ReplicaId) -> Result<(), Stopped> {
        let key = (group, replica);
        if self.is_rotten(key) {
            self.quarantine(key).await?;
        }
        self.delete_record(key).await
    }

    /// [`Self::delete`], but the files are kept for a person whatever they are ([`Self::quarantined`]).
    pub async fn set_aside(&self, group: GroupId, replica: ReplicaId) -> Result<(), Stopped> {
        self.quarantine((group, replica)).await?;
        self.delete_record((group, replica)).await
    }

    /// [`Self::delete`], but nothing is kept, whatever the files are: nobody wants them any more.
    pub async fn discard(&self, group: GroupId, replica: ReplicaId) -> Result<(), Stopped> {
        self.delete_record((group, replica)).await
    }

    fn is_rotten(&self, key: ReplicaKey) -> bool {
        let open = self.registry.open.lock().get(&key).cloned();
        match open {
            Some(open) => open.log.is_rotten(),
            None => self.registry.corrupt.lock().contains_key(&key),
        }
    }

    async fn delete_record(&self, key: ReplicaKey) -> Result<(), Stopped> {
        let (group, replica) = key;
        let floor = self.checkpointer.hold_floor();
        let open = self.registry.open.lock().get(&key).cloned();
        match open {
            Some(ref open) => open.log.delete().await?,
            None if self.registry.corrupt.lock().contains_key(&key) => {
                self.context.journal.write(group, replica, Op::Delete).await?;
            }
            None => {
                self.checkpointer.release_floor(floor);
                return Ok(());
            }
        }
        let dir = recovery::replica_dir(self.data_dir.path(), key);
        let aside = dir.with_file_name(format!("{}{group}-{replica}", recovery::DELETED_PREFIX));
        let deleted = Deleted { dir, aside, log: open.map(|open| open.log), floor };
        self.remove_deleted(deleted, || {
            self.registry.open.lock().remove(&key);
            self.registry.corrupt.lock().remove(&key);
        })
        .await;
        Ok(())
    }

    /// Once its deletion is on record: removes a replica's folder, and lets go of that record. What cannot be done now is done before the
    /// next checkpoint: until then the journal keeps the record, and all that comes after it.
    async fn remove_deleted(&self, deleted: Deleted, moved: impl FnOnce()) {
        let Deleted { dir, aside, log, floor } = &deleted;
        let result = match log {
            Some(log) => log.move_folder(aside).await,
            None => move_folder(&self.context, dir, aside).await,
        };
        moved();
        if let Err(error) = result {
            tracing::error!(path = %dir.display(), %error, "a deleted replica's folder stays until the next attempt");
            return self.deleted.lock().push(deleted);
        }
        self.checkpointer.release_floor(*floor);
        match self.remove_aside(aside, log.clone()).await {
            // Too many open files: its record is not needed any more, but its room is.
            Err(error) if is_refused(&error) => self.deleted.lock().push(deleted),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %aside.display(), %error, "a deleted replica's files stay until the next start");
            }
            _ => {}
        }
    }

    /// Another attempt at the folders of deleted replicas that could not be moved aside.
    pub(super) async fn remove_all_deleted(&self) {
        let all = std::mem::take(&mut *self.deleted.lock());
        for deleted in all {
            self.remove_deleted(deleted, || {}).await;
        }
    }

    /// Moves a replica's folder aside, with what only the journal has of it. Before the record that deletes it: a crash between the two
    /// leaves a replica without files, which is lost and replaced like any other.
    async fn quarantine(&self, key: ReplicaKey) -> Result<(), Stopped> {
        let open = self.registry.open.lock().get(&key).cloned();
        if let Some(open) = &open {
            open.log.save_for_keeping().await;
            self.context.stop.check()?;
        }
        let dir = recovery::replica_dir(self.data_dir.path(), key);
        let taken = self.quarantined();
        let name = format!("{}{}-{}", recovery::QUARANTINED_PREFIX, key.0, key.1);
        let (mut aside, mut again) = (dir.with_file_name(&name), 0);
        while taken.contains(&aside) {
            again += 1;
            aside = dir.with_file_name(format!("{name}-{again}"));
        }
        let moved = match &open {
            Some(open) => open.log.move_folder(&aside).await,
            None => move_folder(&self.context, &dir, &aside).await,
        };
        moved.map_err(|error| Stopped(format!("{} cannot be moved aside: {error}", dir.display()).into()))?;
        tracing::warn!(path = %aside.display(), "what is left of a replica is kept for a person");
        self.quarantined.lock().push(aside);
        Ok(())
    }

    /// Removes a folder and sees to it that its room becomes free.
    pub(super) async fn remove_aside(&self, aside: &Path, log: Option<Arc<Log>>) -> io::Result<()> {
        self.context.disk.remove_dir_all(aside).await?;
        if let Some(log) = log {
            log.close_retired();
        }
        let groups = recovery::groups_dir(self.data_dir.path());
        let synced = self.context.disk.sync_dir(&groups).await.map_err(dir_sync_failed);
        synced.inspect_err(|error| self.context.stop_unless_refused(&groups, error))
    }
}
