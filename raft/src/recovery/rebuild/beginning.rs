//! Where the fold of a replica's log begins: at the checkpoint's own head if that still holds, else at the base nearest below all
//! that has to be folded. And what the checkpoint vouches for, held to the files.

use bytes::Bytes;

use super::{CHUNK_BYTES, Rebuild};
use crate::checkpoint::{ReplicaState, SegmentState};
use crate::log::base::{Base, membership_from_repr};
use crate::log::head::Head;
use crate::log::segment::{FrameStream, stem};
use crate::log::state::{SnapshotRef, restore_segment};
use crate::payload::SnapshotAt;
use crate::recovery::folder::Trouble;
use crate::recovery::plan::SegmentPlan;
use crate::types::{LogId, StoredMembership};

impl Rebuild {
    pub(super) async fn prepare(&mut self) -> Result<(), Trouble> {
        if let Some((_, why)) = &self.plan.broken {
            return Err(why.clone().into());
        }
        self.check_lengths()?;
        self.snapshot = self.newest_snapshot().await?;
        if let Some(head) = self.head_of_checkpoint()? {
            self.head = Some(head);
            let known = self.plan.segments.iter().filter_map(|segment| segment.known.as_ref());
            self.segments = known.map(|known| restore_segment(known, self.interval, |name| self.file(name))).collect();
            return Ok(());
        }
        let (at, base) = self.base_to_begin_with().await?;
        let before = self.plan.segments[..at].iter().filter_map(|segment| segment.known.as_ref());
        self.segments = before.map(|known| restore_segment(known, self.interval, |name| self.file(name))).collect();
        let mut head = Head::from_base(&*self.application, &base).map_err(|error| format!("append state: {error}"))?;
        head.recall(&self.memberships_of_checkpoint()?);
        self.head = Some(head);
        for at in at..self.plan.segments.len() {
            self.fold_known(at).await?;
        }
        Ok(())
    }

    /// Segments that the checkpoint vouches for must have their bytes (RULES.md J9). Without some of them the log is still known,
    /// and what is missing is fetched from a peer (R7), unless the fold needs it; without any of them the replica is lost (R5).
    fn check_lengths(&mut self) -> Result<(), String> {
        let known = self.plan.segments.iter().filter(|segment| segment.known_to.is_none());
        let known: Vec<&SegmentState> = known.filter_map(|segment| segment.known.as_ref()).collect();
        for known in &known {
            let have = self.folder.segment_bytes(known.name);
            if have.is_none_or(|have| have < known.bytes) {
                let have = have.map_or("is missing".to_owned(), |have| format!("has {have} bytes"));
                self.rotten.push((known.name, format!("it {have}, the checkpoint vouches for {}", known.bytes)));
            }
        }
        let there = known.iter().any(|known| self.folder.segment_bytes(known.name).is_some());
        if known.is_empty() || there { Ok(()) } else { Err("none of its segments is there".to_owned()) }
    }

    /// The newest sound snapshot of what the log holds or has purged. One that the log relies on must be there.
    async fn newest_snapshot(&mut self) -> Result<Option<SnapshotRef>, Trouble> {
        let mut problems = Vec::new();
        let (mut found, mut older) = (None, false);
        for name in self.folder.snapshots() {
            match self.folder.base(&*self.disk, name).await {
                // Behind it the log would have a hole, and whoever is given it would ask for it again without end. It is made anew.
                Ok(base) if base.last < self.plan.purged => older = true,
                // One beyond the log's end was never acknowledged: its installation is not on record.
                Ok(base) if base.last <= self.plan.last => {
                    found = base.last.map(|last| SnapshotRef { name: name.clone(), last });
                    break;
                }
                Ok(_) => {}
                Err(trouble) => {
                    let why = trouble.corrupt()?;
                    // It goes with what is left over, also if an older one or the segments' bases do as well.
                    self.rotten_beside.insert(self.folder.dir.join(name), why.clone());
                    problems.push(why);
                }
            }
        }
        let needed = match self.application.snapshot_at() {
            // The segments' own bases tell as much.
            SnapshotAt::Boundary => None,
            SnapshotAt::Applied => self.plan.purged.filter(|purged| self.application.applied() < Some(*purged)),
        };
        let named = self.plan.snapshot.is_some() && self.plan.purged.is_some();
        if needed.is_some_and(|needed| found.as_ref().is_none_or(|snapshot| snapshot.last < needed)) {
            return Err(format!("no snapshot covers the purged entries: {problems:?}").into());
        }
        if named && found.is_none() && !older {
            return Err(format!("the installed snapshot {:?} is not there: {problems:?}", self.plan.snapshot).into());
        }
        Ok(found)
    }

    /// The checkpoint's own head, if nothing below it was cut and nothing above it that the fold needs was purged.
    fn head_of_checkpoint(&self) -> Result<Option<Head>, String> {
        let default = ReplicaState::default();
        let state = self.plan.state.as_ref().unwrap_or(&default);
        let last: Option<LogId> = state.last.map(Into::into);
        let next = last.map_or(0, |last| last.index + 1);
        let cut = self.plan.cut_from.is_some_and(|cut| cut < next) || self.plan.installed.is_some();
        let reaches = match self.plan.segments.first() {
            Some(first) => last >= first.previous,
            None => last == self.plan.last,
        };
        if cut || !reaches {
            return Ok(None);
        }
        let saved = self.plan.state.as_ref().map(|state| state.append_state.as_slice());
        let append_state = self.application.append_state(saved).map_err(|error| format!("append state: {error}"))?;
        let memberships = self.memberships_of_checkpoint()?;
        Ok(Some(Head { last, next_offset: state.next_offset, append_state, memberships }))
    }

    fn memberships_of_checkpoint(&self) -> Result<Vec<StoredMembership>, String> {
        let known = self.plan.state.iter().flat_map(|state| state.memberships.iter().cloned());
        let memberships = known.map(Some).map(membership_from_repr);
        memberships.collect::<Result<_, _>>().map_err(|why| format!("membership: {why}"))
    }

    /// The base nearest below everything that has to be folded, and the segment it stands before.
    async fn base_to_begin_with(&mut self) -> Result<(usize, Base), Trouble> {
        let known_end = self.plan.state.as_ref().and_then(|state| state.last).map_or(0, |last| last.1 + 1);
        let from = self.plan.cut_from.unwrap_or(u64::MAX).min(known_end);
        // The segment that holds the last entry below: those before it are as the checkpoint knows them, whole.
        let begins = |segment: &SegmentPlan| segment.name.first_index < from;
        let latest = self.plan.segments.iter().rposition(begins).unwrap_or(0);
        let mut problems = Vec::new();
        for at in (0..=latest).rev() {
            let segment = self.plan.segments.get(at);
            let previous = segment.map_or(self.plan.last, |segment| segment.previous);
            let own = segment.map(|segment| format!("{}.base", stem(segment.name)));
            match self.base_after(previous, own).await {
                Ok(base) => return Ok((at, base)),
                Err(trouble) => problems.push(trouble.corrupt()?),
            }
        }
        Err(format!("nothing tells how the log stood before it begins: {problems:?}").into())
    }

    /// How the log stood after `last`, from a file that says so: best of all from the segment's own base.
    async fn base_after(&mut self, last: Option<LogId>, own: Option<String>) -> Result<Base, Trouble> {
        let Some(last) = last else { return Ok(Base::default()) };
        let mut problems = Vec::new();
        let own = own.filter(|own| self.folder.names.contains(own));
        for name in own.iter().chain(self.folder.bases_at(last.index + 1)).chain(self.folder.snapshots()) {
            match self.folder.base(&*self.disk, name).await {
                Ok(base) if base.last == Some(last) => return Ok(Base { application: Bytes::new(), ..base }),
                Ok(_) => {}
                Err(trouble) => {
                    let why = trouble.corrupt()?;
                    self.rotten_beside.insert(self.folder.dir.join(name), why.clone());
                    problems.push(why);
                }
            }
        }
        Err(format!("no base or snapshot after {last}: {problems:?}").into())
    }

    /// Folds the part of a segment that the checkpoint knows, as far as it is kept.
    async fn fold_known(&mut self, at: usize) -> Result<(), Trouble> {
        let segment = &self.plan.segments[at];
        let Some(known) = segment.known.clone() else { return Ok(()) };
        let to = segment.known_to.unwrap_or(known.last.1);
        let end = known.bytes;
        let file = self.file(known.name);
        let unread = |error| Trouble::reading(file.path(), error);
        let mut stream = FrameStream::open_patiently(&file, 0, end, CHUNK_BYTES).await.map_err(unread)?;
        loop {
            let Some(frame) = stream.next().await.map_err(unread)? else {
                return Err(format!("segment {} ends before entry {to}", stem(known.name)).into());
            };
            let index = frame.header.index;
            self.fold(&file, &frame)?;
            if index >= to {
                return Ok(());
            }
        }
    }
}
