//! openraft's state machine over a [`Log`] and an [`Application`]: applied, high watermark, snapshots.
//!
//! For a partition the log is the data: apply moves the high watermark and answers proposers, a snapshot is the base at the
//! retention boundary, and a restart goes on from the recovered commit without applying anything again (RULES.md R10). For the
//! catalog the applied state is the data: its snapshots hold it, and a restart applies what the state does not reflect yet.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::EntryPayload;
use openraft::storage::{
    ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta,
};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};

use crate::disk::{is_refused, is_rot, read_file};
use crate::log::Log;
use crate::log::append::appended;
use crate::log::base::{BASE_BYTES_MAX, Base};
use crate::log::frame::FrameKind;
use crate::log::state::SnapshotRef;
use crate::payload::{Application, SnapshotAt};
use crate::store::Replica;
use crate::types::{Appended, Entry, EntryData, LogId, Outcome, StoredMembership, TypeConfig};

/// A snapshot on its way: the bytes of a snapshot file (small for partitions, up to tens of MB for the catalog).
pub type SnapshotData = Bytes;

/// Most entries that are applied before their proposers are answered.
const APPLY_BATCH: usize = 64;

/// openraft's way to one replica's applied state. One per group.
pub struct StateMachine {
    log: Arc<Log>,
    application: Arc<dyn Application>,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// The next offset after the last applied entry.
    next_offset: u64,
}

impl StateMachine {
    /// Over a recovered replica.
    pub fn new(replica: &Replica) -> Self {
        let (log, application) = (replica.log.clone(), replica.application.clone());
        let applied = match application.snapshot_at() {
            SnapshotAt::Boundary => log.applied(),
            SnapshotAt::Applied => application.applied(),
        };
        let membership = match applied {
            Some(applied) => log.membership_at(Some(applied.index)),
            None => StoredMembership::default(),
        };
        let next_offset = log.high_watermark().0;
        Self { log, application, applied, membership, next_offset }
    }

    /// Applies one entry; gives what its proposer is told. An error ends the core: of entries that were left out nobody would ever hear.
    fn apply_entry(&mut self, entry: Entry) -> io::Result<Appended> {
        let id = entry.log_id;
        // openraft's own tests apply entries that no log holds.
        let held = Some(id) <= self.log.last_log_id();
        if let Some(applied) = self.applied.filter(|applied| id.index != applied.index + 1 && held) {
            return Err(io::Error::other(format!("entry {id} is to be applied right after {applied}")));
        }
        let internal = Appended { index: id.index, term: id.leader_id.term, outcome: Outcome::Internal };
        let appended = match entry.payload {
            EntryPayload::Blank => internal,
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(id), membership);
                internal
            }
            EntryPayload::Normal(EntryData::Stored(frame)) => {
                self.next_offset = self.next_offset.max(frame.header.next_offset());
                match frame.header.kind {
                    FrameKind::Records => {
                        let _alone = self.log.applying().lock();
                        appended(&frame, self.application.apply(id, &frame))
                    }
                    _ => appended(&frame, Bytes::new()),
                }
            }
            EntryPayload::Normal(EntryData::Proposed(_)) => {
                return Err(io::Error::other(format!("entry {id} was read back undecided")));
            }
        };
        self.applied = Some(id);
        Ok(appended)
    }

    /// The first index that the next boundary snapshot keeps: the start of the segment that retention wants to keep the first
    /// entries of, as far as it is applied.
    fn boundary(&self) -> Option<LogId> {
        let applied = self.applied?;
        self.log.snapshot_boundary(applied)
    }

    /// What a snapshot taken now would hold; `None` if there is nothing to take one of.
    async fn prepare_snapshot(&self) -> Result<Option<Base>, io::Error> {
        match self.application.snapshot_at() {
            SnapshotAt::Boundary => {
                let Some(boundary) = self.boundary() else { return Ok(None) };
                let base = self.log.head_at(Some(boundary.index)).await.map_err(io::Error::other)?.0.base();
                if base.last != Some(boundary) {
                    return Err(io::Error::other(format!("the log stands at {:?} where {boundary} was", base.last)));
                }
                Ok(Some(base))
            }
            SnapshotAt::Applied => {
                let Some(applied) = self.applied else { return Ok(None) };
                // Taken here, between two applies.
                let application = {
                    let _alone = self.log.applying().lock();
                    if self.application.applied() > Some(applied) {
                        // A successor has applied more: what there is to take would not be what it is called.
                        return Ok(None);
                    }
                    self.application.snapshot()?
                };
                let base = self.base_at(applied).await?;
                Ok(Some(Base { last: Some(applied), membership: self.membership.clone(), application, ..base }))
            }
        }
    }

    /// Sets the application to what a snapshot holds, unless it has come as far: the task of a core that has ended may still have this to
    /// do when its successor has applied what comes behind, and nobody would apply that again.
    fn restore(&self, base: &Base) -> io::Result<()> {
        let _alone = self.log.applying().lock();
        if self.application.applied() >= base.last {
            return Ok(());
        }
        self.application.restore(base.last, &base.application)
    }

    /// Makes anew what a rotten snapshot held, or more: while the process runs, log and application still have it.
    async fn renew_snapshot(&self, rotten: &SnapshotRef, why: &str) -> Result<(Base, Bytes), io::Error> {
        let base = match self.application.snapshot_at() {
            SnapshotAt::Boundary => self.log.base_at_snapshot(rotten).await.map_err(io::Error::other)?,
            SnapshotAt::Applied => self.prepare_snapshot().await?.unwrap_or_default(),
        };
        let last = base.last.filter(|last| Some(*last) >= self.log.purged_log_id());
        let Some(last) = last else { return Err(io::Error::other("not all that was purged is applied")) };
        let bytes = base.encode();
        self.log.write_snapshot(last, bytes.clone()).await?;
        self.log.context().healed.note(&self.log.dir().join(&rotten.name), why, "made anew");
        Ok((base, bytes))
    }

    /// What the log's prefix up to the last applied entry tells.
    async fn base_at(&self, applied: LogId) -> Result<Base, io::Error> {
        let newest = self.log.snapshot().filter(|snapshot| snapshot.last == applied);
        if let Some(snapshot) = &newest
            && let Ok((base, _)) = read_snapshot(&self.log, &snapshot.name).await
        {
            return Ok(base);
        }
        if newest.is_none() && !self.log.contains(applied) {
            // Only in openraft's own tests, which apply entries that no log holds.
            return Ok(Base { next_offset: self.next_offset, ..Base::default() });
        }
        let (head, _) = self.log.head_at(Some(applied.index)).await.map_err(io::Error::other)?;
        Ok(head.base())
    }
}

/// Reads a snapshot's file and checks it.
pub(crate) async fn read_snapshot(log: &Log, name: &str) -> Result<(Base, Bytes), io::Error> {
    let path = log.dir().join(name);
    let bytes = read_file(&*log.context().disk, &path, BASE_BYTES_MAX).await?;
    let base = Base::decode(&bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display())))?;
    Ok((base, bytes))
}

fn meta(base: &Base) -> SnapshotMetaOf<TypeConfig> {
    SnapshotMeta { last_log_id: base.last, last_membership: base.membership.clone() }
}

/// Builds one snapshot. What goes into it was taken when the builder was made; this writes it.
pub struct SnapshotBuilder {
    log: Arc<Log>,
    prepared: Result<Option<Base>, io::Error>,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    /// Durable on return, so that a purge may rely on it (RULES.md J14).
    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotData>, io::Error> {
        // Nothing is applied yet: a snapshot of nothing, which openraft takes note of and needs no file.
        let base = std::mem::replace(&mut self.prepared, Ok(None))?.unwrap_or_default();
        let bytes = base.encode();
        if let Some(last) = base.last {
            // First what the purge behind it would write: that must not find no room then, for it would end the group, and is to make room.
            let written = async {
                self.log.prepare_purge(last).await?;
                self.log.write_snapshot(last, bytes.clone()).await
            };
            match written.await {
                // openraft would end the group. Nothing is purged for want of it, and whoever wanted it asks again.
                Err(error) if is_refused(&error) => {
                    let (group, replica) = (self.log.group(), self.log.replica());
                    tracing::warn!(%group, %replica, %last, %error, "no snapshot could be written");
                    let base = Base::default();
                    return Ok(Snapshot { meta: meta(&base), snapshot: base.encode() });
                }
                written => written?,
            };
        }
        Ok(Snapshot { meta: meta(&base), snapshot: bytes })
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let mut batches = entries.ready_chunks(APPLY_BATCH);
        while let Some(batch) = batches.next().await {
            let mut answers: Vec<(ApplyResponder<TypeConfig>, Appended)> = Vec::new();
            for item in batch {
                let (entry, responder) = item?;
                let appended = self.apply_entry(entry)?;
                answers.extend(responder.map(|responder| (responder, appended)));
            }
            // Before anybody is told: who has an answer must find the records below the high watermark.
            self.log.set_applied(self.applied, self.next_offset);
            for (responder, appended) in answers {
                responder.send(appended);
            }
        }
        Ok(())
    }

    /// `None` while there is nothing new to snapshot at the boundary (see [`Log::set_snapshot_boundary`]).
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        let prepared = self.prepare_snapshot().await;
        let newest = self.log.snapshot().map(|snapshot| snapshot.last);
        let is_new = match &prepared {
            Ok(Some(base)) => base.last > newest,
            Ok(None) => false,
            Err(_) => true,
        };
        (force || is_new).then(|| SnapshotBuilder { log: self.log.clone(), prepared })
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { log: self.log.clone(), prepared: self.prepare_snapshot().await }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let base = Base::decode(&snapshot).map_err(|error| invalid(format!("snapshot {meta}: {error}")))?;
        if base.last != meta.last_log_id || base.membership != meta.last_membership {
            return Err(invalid(format!("snapshot {meta} holds the log up to {:?}", base.last)));
        }
        self.log.install(&base, snapshot).await?;
        if self.application.snapshot_at() == SnapshotAt::Applied {
            self.restore(&base)?;
        }
        self.applied = base.last;
        self.membership = base.membership;
        self.next_offset = self.next_offset.max(base.next_offset);
        self.log.set_applied(self.applied, base.next_offset);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, SnapshotData>>, io::Error> {
        let Some(snapshot) = self.log.snapshot() else { return Ok(None) };
        let (base, bytes) = match read_snapshot(&self.log, &snapshot.name).await {
            // Without it the group would end here, at every start again.
            Err(error) if is_rot(&error) => self
                .renew_snapshot(&snapshot, &error.to_string())
                .await
                .map_err(|unable| io::Error::new(error.kind(), format!("{error}; it cannot be made anew: {unable}")))?,
            read => read?,
        };
        Ok(Some(Snapshot { meta: meta(&base), snapshot: bytes }))
    }
}
