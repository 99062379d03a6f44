//! Drives a store through its life and knows every state it may be found in.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::OneshotReceiverOf;
use pontoon_raft::codec;
use pontoon_raft::config::RaftConfig;
use pontoon_raft::disk::sim::SimDisk;
use pontoon_raft::error::{OpenError, Stopped};
use pontoon_raft::log::frame::FrameKind;
use pontoon_raft::log_store::LogStore;
use pontoon_raft::payload::{AppendState, SnapshotAt};
use pontoon_raft::state_machine::StateMachine;
use pontoon_raft::store::{ApplicationFactory, Replica, Store, StoreOptions};
use pontoon_raft::testing::{TestApplication, TestProducers, test_log_start, test_log_start_at, test_payload};
use pontoon_raft::types::{
    BrokerId, Entry, EntryData, GroupId, LogId, Membership, Proposal, ReplicaHome, ReplicaId, TypeConfig, Vote, log_id,
    vote,
};

/// Where the data directory is.
pub(crate) const ROOT: &str = "/data/pontoon";
/// The group whose snapshots hold applied state.
pub(crate) const APPLIED_GROUP: u64 = 9;

/// A replica, by group and incarnation.
pub(crate) type Key = (u64, u64);

/// The run was struck.
#[derive(Debug)]
pub(crate) struct Crashed(#[allow(dead_code)] pub String);

macro_rules! crashed_from {
    ($($error:ty),*) => {
        $(impl From<$error> for Crashed {
            fn from(error: $error) -> Self {
                Self(error.to_string())
            }
        })*
    };
}

crashed_from!(std::io::Error, OpenError, Stopped);

/// One entry, as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Internal(LogId),
    Frame { id: LogId, kind: FrameKind, base_offset: u64, payload: Bytes },
}

impl Read {
    fn id(&self) -> LogId {
        match self {
            Self::Internal(id) | Self::Frame { id, .. } => *id,
        }
    }
}

/// How a replica stands. `None`: it does not exist.
pub(crate) type State = Option<Found>;

/// What is there of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    vote: Option<Vote>,
    purged: Option<LogId>,
    last: Option<LogId>,
    entries: Vec<Read>,
    log_start: u64,
    log_end: u64,
    producers: TestProducers,
}

impl Found {
    /// Whether these entries, read again, are the ones that were there.
    pub(crate) fn holds(&self, entries: &[Entry]) -> bool {
        entries.iter().all(|entry| {
            self.entries.iter().any(|read| match (read, &entry.payload) {
                (Read::Frame { id, payload, .. }, openraft::EntryPayload::Normal(EntryData::Stored(frame))) => {
                    *id == entry.log_id && *payload == frame.payload
                }
                (Read::Internal(id), openraft::EntryPayload::Blank | openraft::EntryPayload::Membership(_)) => {
                    *id == entry.log_id
                }
                _ => false,
            })
        })
    }

    /// The accepted payloads, each with its index and first offset.
    pub(crate) fn records(&self) -> Vec<(u64, u64, Bytes)> {
        let records = self.entries.iter().filter_map(|read| match read {
            Read::Frame { id, kind: FrameKind::Records, base_offset, payload } => {
                Some((id.index, *base_offset, payload.clone()))
            }
            _ => None,
        });
        records.collect()
    }

    /// Index of the last entry; 0 if there is none.
    pub(crate) fn last_index(&self) -> u64 {
        self.last.map_or(0, |last| last.index)
    }

    /// The append state.
    pub(crate) fn producers(&self) -> &TestProducers {
        &self.producers
    }

    /// The append state that the log up to `index` gives.
    pub(crate) fn fold_to(&self, index: u64) -> TestProducers {
        let upto = self.entries.iter().filter(|read| read.id().index <= index).cloned().collect::<Vec<_>>();
        fold(&upto)
    }
}

/// Every state of each replica, by the number of operations issued to it.
pub(crate) type States = BTreeMap<Key, Vec<State>>;

/// Operations issued to, and known to be durable of, each replica.
pub(crate) type Progress = BTreeMap<Key, (usize, usize)>;

/// An append under way.
pub(crate) struct Pending {
    key: Key,
    operation: usize,
    flushed: OneshotReceiverOf<TypeConfig, Result<(), std::io::Error>>,
}

struct Group {
    replica: Replica,
    store: LogStore,
    machine: StateMachine,
    term: u64,
    sequences: BTreeMap<u8, u32>,
}

/// The one who acts.
pub(crate) struct Driver {
    disk: SimDisk,
    struck_at: Option<u64>,
    store: Option<Arc<Store>>,
    groups: BTreeMap<Key, Group>,
    states: States,
    progress: Progress,
    labels: Vec<(u64, &'static str)>,
}

/// Applications: everything a partition, but one group whose snapshots hold what it applied.
pub(crate) fn applications() -> ApplicationFactory {
    Arc::new(|group, _| {
        TestApplication::new(if group.0 == APPLIED_GROUP { SnapshotAt::Applied } else { SnapshotAt::Boundary })
    })
}

/// Small limits, so that everything happens soon.
pub(crate) fn config() -> RaftConfig {
    RaftConfig {
        journal_round_bytes_max: 16 << 10,
        journal_file_bytes: 64 << 10,
        bypass_bytes_min: 6 << 10,
        segment_bytes_max: 4 << 10,
        index_interval_bytes: 256,
        tail_cache_bytes: 2 << 10,
        tail_cache_bytes_total: 4 << 10,
        append_bytes_max: 1 << 10,
        reserve_append_bytes: 0,
        ..RaftConfig::default()
    }
}

/// Opens the directory on this disk.
pub(crate) async fn open(disk: &SimDisk) -> Result<Arc<Store>, OpenError> {
    open_with(disk, config()).await
}

pub(crate) async fn open_with(disk: &SimDisk, config: RaftConfig) -> Result<Arc<Store>, OpenError> {
    Store::open(StoreOptions {
        disk: Arc::new(disk.clone()),
        path: ROOT.into(),
        broker: BrokerId(1),
        config,
        applications: applications(),
    })
    .await
}

impl Driver {
    /// On this disk, to be struck at an operation, or to note every state.
    pub(crate) fn new(disk: SimDisk, struck_at: Option<u64>) -> Self {
        let (groups, states, progress) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { disk, struck_at, store: None, groups, states, progress, labels: Vec::new() }
    }

    /// What was noted.
    pub(crate) fn recorded(self) -> (States, Vec<(u64, &'static str)>) {
        (self.states, self.labels)
    }

    /// How far it came.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// What comes now.
    pub(crate) fn label(&mut self, label: &'static str) {
        self.labels.push((self.disk.ops(), label));
    }

    /// The open store.
    pub(crate) fn store(&self) -> Arc<Store> {
        self.store.clone().unwrap()
    }

    /// Opens the store; again after [`Self::close`].
    pub(crate) async fn open(&mut self) -> Result<(), Crashed> {
        let store = open(&self.disk).await?;
        assert_eq!((store.corrupt(), store.unknown_folders()), (Vec::new(), Vec::<PathBuf>::new()));
        for replica in store.replicas() {
            let key = (replica.group.0, replica.replica.0);
            let before = self.groups.remove(&key);
            let (term, sequences) = before.map_or((1, BTreeMap::new()), |group| (group.term, group.sequences));
            self.groups.insert(key, Group::new(replica, term, sequences));
        }
        self.store = Some(store);
        Ok(())
    }

    /// Closes the store.
    pub(crate) async fn close(&mut self) -> Result<(), Crashed> {
        Ok(self.store.take().unwrap().close().await?)
    }

    /// Lets background work go on.
    pub(crate) async fn rest(&self, seconds: u64) {
        tokio::time::sleep(std::time::Duration::from_secs(seconds)).await;
    }

    fn issue(&mut self, key: Key) -> usize {
        let progress = self.progress.entry(key).or_default();
        progress.0 += 1;
        progress.0
    }

    fn acknowledge(&mut self, key: Key, operation: usize) {
        let progress = self.progress.entry(key).or_default();
        progress.1 = progress.1.max(operation);
    }

    /// Notes how a replica stands after the operation that was issued last.
    async fn note(&mut self, key: Key) {
        if self.struck_at.is_some() {
            return;
        }
        let state = match self.groups.get(&key) {
            Some(group) => Some(look(&group.replica).await),
            None => None,
        };
        let states = self.states.entry(key).or_insert_with(|| vec![None]);
        states.push(state);
        assert_eq!(states.len(), self.progress[&key].0 + 1);
    }

    fn group(&mut self, key: Key) -> &mut Group {
        self.groups.get_mut(&key).unwrap()
    }

    /// Index of a replica's last entry.
    pub(crate) fn last(&self, key: Key) -> u64 {
        self.groups[&key].replica.log.last_log_id().unwrap().index
    }

    pub(crate) async fn create(&mut self, key: Key) -> Result<(), Crashed> {
        let operation = self.issue(key);
        let replica = self.store().create(GroupId(key.0), ReplicaId(key.1)).await?;
        self.acknowledge(key, operation);
        self.groups.insert(key, Group::new(replica, 1, BTreeMap::new()));
        self.note(key).await;
        Ok(())
    }

    pub(crate) async fn delete(&mut self, key: Key) -> Result<(), Crashed> {
        let operation = self.issue(key);
        self.groups.remove(&key);
        self.store().delete(GroupId(key.0), ReplicaId(key.1)).await?;
        self.acknowledge(key, operation);
        self.note(key).await;
        Ok(())
    }

    pub(crate) async fn vote(&mut self, key: Key, term: u64) -> Result<(), Crashed> {
        let operation = self.issue(key);
        let group = self.group(key);
        group.term = term;
        group.store.save_vote(&vote(term, ReplicaId(key.1), true)).await?;
        self.acknowledge(key, operation);
        self.note(key).await;
        Ok(())
    }

    /// Appends a membership, a blank, or proposals with bodies of these sizes; the sizes ending in 1 are void.
    pub(crate) async fn append(&mut self, key: Key, what: Append<'_>) -> Result<Pending, Crashed> {
        let operation = self.issue(key);
        let group = self.group(key);
        let entries = group.entries(what);
        let (tell, flushed) = TypeConfig::oneshot();
        group.store.append(entries, IOFlushed::signal(tell)).await?;
        self.note(key).await;
        Ok(Pending { key, operation, flushed })
    }

    /// Waits for appends.
    pub(crate) async fn wait(&mut self, pending: impl IntoIterator<Item = Pending>) -> Result<(), Crashed> {
        let mut result = Ok(());
        for Pending { key, operation, flushed } in pending {
            match flushed.await {
                Ok(Ok(())) => self.acknowledge(key, operation),
                other => result = Err(Crashed(format!("{other:?}"))),
            }
        }
        result
    }

    /// Appends and waits.
    pub(crate) async fn write(&mut self, key: Key, what: Append<'_>) -> Result<(), Crashed> {
        let pending = self.append(key, what).await?;
        self.wait([pending]).await
    }

    pub(crate) async fn truncate(&mut self, key: Key, index: u64) -> Result<(), Crashed> {
        let last = self.group(key).id_at(index).await?;
        self.issue(key);
        let group = self.group(key);
        group.store.truncate_after(Some(last)).await?;
        group.resume_sequences().await;
        self.note(key).await;
        Ok(())
    }

    /// Commits and applies up to this index.
    pub(crate) async fn apply(&mut self, key: Key, index: u64) -> Result<(), Crashed> {
        let group = self.group(key);
        let id = group.id_at(index).await?;
        let from = group.machine.applied_state().await?.0.map_or(0, |applied| applied.index + 1);
        group.store.save_committed(Some(id)).await?;
        let entries = group.store.try_get_log_entries(from..=index).await?;
        let entries: VecDeque<_> = entries.into_iter().map(|entry| Ok((entry, None))).collect();
        group.machine.apply(futures_util::stream::iter(entries)).await?;
        Ok(())
    }

    /// Takes a snapshot, at the segment of `boundary` or of what is applied, and purges up to it.
    pub(crate) async fn purge(&mut self, key: Key, boundary: u64) -> Result<(), Crashed> {
        let group = self.group(key);
        group.replica.log.set_snapshot_boundary(boundary);
        let mut builder = group.machine.try_create_snapshot_builder(true).await.unwrap();
        let snapshot = builder.build_snapshot().await?;
        let upto = snapshot.meta.last_log_id.expect("nothing to purge");
        self.issue(key);
        self.group(key).store.purge(upto).await?;
        self.note(key).await;
        Ok(())
    }

    /// Where a replica's log ends.
    pub(crate) fn log_end(&self, key: Key) -> u64 {
        self.groups[&key].replica.log.log_end_offset().0
    }

    /// Applies everything, and lets the segments below the log start go.
    pub(crate) async fn let_go(&mut self, key: Key) -> Result<(), Crashed> {
        let last = self.last(key);
        self.apply(key, last).await?;
        let log = self.group(key).replica.log.clone();
        let start = log.log_start_offset();
        let segments = log.segments();
        let stays = segments.iter().position(|segment| segment.next_offset > start).unwrap_or(segments.len() - 1);
        assert!(stays > 0, "nothing may go below {start}: {segments:?}");
        self.purge(key, segments[stays].first_index).await
    }

    /// Installs the newest snapshot of one replica on another, as openraft does: install, then purge.
    pub(crate) async fn install(&mut self, from: Key, to: Key) -> Result<(), Crashed> {
        let snapshot = self.group(from).machine.get_current_snapshot().await?.expect("no snapshot");
        let operation = self.issue(to);
        let group = self.group(to);
        group.machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await?;
        group.store.purge(snapshot.meta.last_log_id.unwrap()).await?;
        group.resume_sequences().await;
        self.acknowledge(to, operation);
        self.note(to).await;
        Ok(())
    }
}

/// What to append.
pub(crate) enum Append<'a> {
    Membership,
    Blank,
    /// Proposals of this producer with bodies of these sizes; sizes that end in 1 are turned down.
    Proposals(u8, &'a [usize]),
    /// Moves the log start.
    LogStart(u64),
}

impl Group {
    fn new(replica: Replica, term: u64, sequences: BTreeMap<u8, u32>) -> Self {
        let (store, machine) = (LogStore::new(replica.log.clone()), StateMachine::new(&replica));
        Self { replica, store, machine, term, sequences }
    }

    fn entries(&mut self, what: Append<'_>) -> Vec<Entry> {
        let last = self.replica.log.last_log_id();
        let next = last.map_or(0, |last| last.index + 1);
        let term = last.map_or(0, |last| last.leader_id.term).max(self.term);
        let id = |at: usize| log_id(term, next + at as u64);
        match what {
            Append::Blank => vec![Entry { log_id: id(0), payload: openraft::EntryPayload::Blank }],
            Append::Membership => {
                let nodes: BTreeMap<_, _> =
                    [(self.replica.replica, ReplicaHome { broker: BrokerId(next as u32) })].into();
                let membership = Membership::new(vec![[self.replica.replica].into()], nodes).unwrap();
                vec![Entry { log_id: id(0), payload: openraft::EntryPayload::Membership(membership) }]
            }
            Append::LogStart(offset) => {
                let proposal = Proposal { payload: test_log_start(offset), flushed: None, stages: None };
                vec![Entry { log_id: id(0), payload: openraft::EntryPayload::Normal(EntryData::Proposed(proposal)) }]
            }
            Append::Proposals(producer, sizes) => {
                let mut entries = Vec::new();
                for (at, size) in sizes.iter().enumerate() {
                    let sequence = self.sequences.entry(producer).or_default();
                    let refused = size % 10 == 1;
                    let payload = test_payload(
                        1 + (size % 3) as u8,
                        producer,
                        *sequence + u32::from(refused),
                        &vec![*sequence as u8; *size],
                    );
                    *sequence += u32::from(!refused);
                    let proposal = Proposal { payload, flushed: None, stages: None };
                    let payload = openraft::EntryPayload::Normal(EntryData::Proposed(proposal));
                    entries.push(Entry { log_id: id(at), payload });
                }
                entries
            }
        }
    }

    async fn id_at(&mut self, index: u64) -> Result<LogId, Crashed> {
        let entries = self.store.try_get_log_entries(index..=index).await?;
        Ok(entries.first().expect("no such entry").log_id)
    }

    /// After entries were taken away, producers go on where the log says.
    async fn resume_sequences(&mut self) {
        let producers: TestProducers = codec::decode(&self.replica.log.append_state()).unwrap();
        self.sequences = producers.next;
    }
}

/// How a replica stands, by what can be read of it.
pub(crate) async fn look(replica: &Replica) -> Found {
    let mut store = LogStore::new(replica.log.clone());
    let entries = store.try_get_log_entries(..).await.unwrap();
    let read = |entry: Entry| match entry.payload {
        openraft::EntryPayload::Normal(EntryData::Stored(frame)) => Read::Frame {
            id: entry.log_id,
            kind: frame.header.kind,
            base_offset: frame.header.base_offset,
            payload: frame.payload,
        },
        _ => Read::Internal(entry.log_id),
    };
    // Where the readable entries begin: what the log says of its start depends on what is known to be committed.
    let starts = entries.iter().find_map(|entry| match &entry.payload {
        openraft::EntryPayload::Normal(EntryData::Stored(frame)) => Some(frame.header.base_offset),
        _ => None,
    });
    let log_end = replica.log.log_end_offset().0;
    Found {
        vote: replica.log.vote(),
        purged: replica.log.purged_log_id(),
        last: replica.log.last_log_id(),
        entries: entries.into_iter().map(read).collect(),
        log_start: starts.unwrap_or(log_end),
        log_end,
        producers: codec::decode(&replica.log.append_state()).unwrap(),
    }
}

/// Whether what was recovered is what it may be, and is whole in itself.
pub(crate) async fn check(store: &Arc<Store>, states: &States, progress: &Progress, story: &str) {
    assert_eq!(store.corrupt(), Vec::new(), "{story}");
    assert_eq!(store.unknown_folders(), Vec::<PathBuf>::new(), "{story}");
    let replicas: BTreeMap<Key, Replica> =
        store.replicas().into_iter().map(|replica| ((replica.group.0, replica.replica.0), replica)).collect();
    for (key, (issued, acknowledged)) in progress {
        let found = match replicas.get(key) {
            Some(replica) => Some(look(replica).await),
            None => None,
        };
        let allowed = &states[key][*acknowledged..=*issued];
        if !allowed.contains(&found) {
            let summary =
                |state: &State| state.as_ref().map(|found| (found.vote, found.purged, found.last, found.log_end));
            let expected: Vec<_> = allowed.iter().map(summary).collect();
            panic!(
                "{story}: replica {key:?} is {:?}\n of {issued} issued, {acknowledged} acknowledged: {expected:?}\n{found:?}\n{allowed:?}",
                summary(&found)
            );
        }
        if let (Some(replica), Some(found)) = (replicas.get(key), found) {
            check_whole(replica, &found, story).await;
        }
    }
}

async fn check_whole(replica: &Replica, found: &Found, story: &str) {
    let log = &replica.log;
    // Offsets are dense, and reading by offset gives what reading by index gives.
    let mut next = found.log_start;
    let mut records = Vec::new();
    for entry in &found.entries {
        if let Read::Frame { kind, base_offset, payload, .. } = entry {
            assert_eq!(*base_offset, next, "{story}: {entry:?}");
            if *kind == FrameKind::Records {
                assert_eq!(payload[..8], next.to_le_bytes(), "{story}: stamped {entry:?}");
                next += u64::from(payload[8]);
                if next > log.log_start_offset().0 {
                    records.push(payload.clone());
                }
            }
        }
    }
    assert_eq!(next, found.log_end, "{story}");
    let read = log.read(log.log_start_offset(), log.log_end_offset(), usize::MAX).await.unwrap();
    assert!(read.iter().map(|frame| &frame.payload).eq(&records), "{story}");
    let ids: Vec<LogId> = found.entries.iter().map(Read::id).collect();
    assert!(ids.windows(2).all(|pair| pair[0].index + 1 == pair[1].index), "{story}: {ids:?}");
    // Commit and what follows from it.
    let committed = log.committed_log_id();
    let said = test_log_start_at(&found.producers.starts, committed.map_or(0, |committed| committed.index));
    assert_eq!(log.log_start_offset().0, found.log_start.max(said), "{story}: {committed:?}");
    assert!(committed <= found.last && found.purged <= committed, "{story}: {committed:?}");
    assert!(log.high_watermark() <= log.log_end_offset() && log.high_watermark() >= log.log_start_offset(), "{story}");
    let mut machine = StateMachine::new(replica);
    let snapshot = machine.get_current_snapshot().await.unwrap();
    if replica.group.0 == APPLIED_GROUP {
        assert!(snapshot.as_ref().and_then(|snapshot| snapshot.meta.last_log_id) >= found.purged, "{story}");
    }
    if found.purged.is_none() {
        assert_eq!(found.producers, fold(&found.entries), "{story}");
    }
    log.verify().await.unwrap();
}

/// The append state that a whole log gives.
fn fold(entries: &[Read]) -> TestProducers {
    let mut producers = TestProducers::default();
    for entry in entries {
        if let Read::Frame { id, kind, base_offset, payload } = entry {
            let header = pontoon_raft::log::frame::FrameHeader {
                payload_bytes: payload.len() as u32,
                ..pontoon_raft::log::frame::FrameHeader::bare(*kind, *id, *base_offset)
            };
            producers.observe(&header, payload);
        }
    }
    producers
}
