//! A Raft group in memory: a log that is a `Vec`, and a mesh of direct calls with links that can be cut.
//!
//! For learning how openraft behaves and keeping that as tests; it shares nothing with the product's log and transport
//! but the types. Restarting a replica keeps its [`Memory`], as a disk would.

#![allow(unreachable_pub)] // one file of helpers for several test binaries

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::errors::{RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::storage::{EntryResponder, IOFlushed, RaftLogStorage, RaftStateMachine};
use openraft::{
    Config, EntryPayload, LogState, Raft, RaftLogReader, RaftNetworkFactory, RaftNetworkV2, RaftSnapshotBuilder,
    SnapshotPolicy,
};
use parking_lot::Mutex;
use pontoon_raft::elections::choice::Evidence;
use pontoon_raft::log::frame::{Frame, FrameHeader, FrameKind};
use pontoon_raft::types::{
    Appended, BrokerId, Entry, EntryData, GroupId, LogId, Membership, Offset, Outcome, Proposal, ReplicaHome,
    ReplicaId, StoredMembership, TypeConfig, Vote,
};

pub type MemoryRaft = Raft<TypeConfig, Machine>;

/// What a "disk" holds of one replica.
#[derive(Default)]
struct Disk {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, (LogId, Stored)>,
    next_offset: u64,
    /// Where the next snapshot is taken: everything up to this index.
    boundary: Option<u64>,
    snapshot: Option<(SnapshotMetaOf<TypeConfig>, Bytes)>,
    applied: Option<LogId>,
    membership: StoredMembership,
    memberships: BTreeMap<u64, StoredMembership>,
}

#[derive(Clone)]
enum Stored {
    Blank,
    Membership(Membership),
    Frame(Frame),
}

/// One replica's storage; survives a "restart".
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<Disk>>);

impl Memory {
    /// Payloads in the log, in order.
    pub fn records(&self) -> Vec<Bytes> {
        let frame = |(_, stored): &(LogId, Stored)| match stored {
            Stored::Frame(frame) => Some(frame.payload.clone()),
            _ => None,
        };
        self.0.lock().entries.values().filter_map(frame).collect()
    }

    pub fn purged_index(&self) -> Option<u64> {
        self.0.lock().purged.map(|id| id.index)
    }

    pub fn set_boundary(&self, index: u64) {
        self.0.lock().boundary = Some(index);
    }

    pub fn vote(&self) -> Option<Vote> {
        self.0.lock().vote
    }
}

fn stored(entry: &(LogId, Stored)) -> Entry {
    let payload = match &entry.1 {
        Stored::Blank => EntryPayload::Blank,
        Stored::Membership(membership) => EntryPayload::Membership(membership.clone()),
        Stored::Frame(frame) => EntryPayload::Normal(EntryData::Stored(frame.clone())),
    };
    Entry { log_id: entry.0, payload }
}

impl Disk {
    fn append(&mut self, entry: Entry) -> Option<tokio::sync::oneshot::Sender<Appended>> {
        let mut flushed = None;
        let stored = match entry.payload {
            EntryPayload::Blank => Stored::Blank,
            EntryPayload::Membership(membership) => {
                let stored = StoredMembership::new(Some(entry.log_id), membership.clone());
                self.memberships.insert(entry.log_id.index, stored);
                Stored::Membership(membership)
            }
            EntryPayload::Normal(EntryData::Stored(frame)) => {
                self.next_offset = frame.header.next_offset();
                Stored::Frame(frame)
            }
            EntryPayload::Normal(EntryData::Proposed(Proposal { payload, flushed: waiter, .. })) => {
                flushed = waiter;
                let header = FrameHeader {
                    offset_span: 1,
                    record_count: 1,
                    ..FrameHeader::bare(FrameKind::Records, entry.log_id, self.next_offset)
                };
                self.next_offset += 1;
                Stored::Frame(Frame::new(header, payload))
            }
        };
        self.entries.insert(entry.log_id.index, (entry.log_id, stored));
        flushed
    }
}

impl RaftLogReader<TypeConfig> for Memory {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<Entry>> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        if let (Bound::Included(a), Bound::Excluded(b)) = range
            && a >= b
        {
            return Ok(Vec::new());
        }
        Ok(self.0.lock().entries.range(range).map(|(_, entry)| stored(entry)).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.0.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for Memory {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let disk = self.0.lock();
        let last = disk.entries.values().next_back().map(|entry| entry.0).or(disk.purged);
        Ok(LogState { last_purged_log_id: disk.purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.0.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.0.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.0.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        {
            let mut disk = self.0.lock();
            for entry in entries {
                disk.append(entry);
            }
        }
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let mut disk = self.0.lock();
        let keep = last.map_or(0, |id| id.index + 1);
        let cut = disk.entries.split_off(&keep);
        disk.memberships.split_off(&keep);
        if let Some(offset) = cut.values().find_map(|(_, stored)| match stored {
            Stored::Frame(frame) => Some(frame.header.base_offset),
            _ => None,
        }) {
            disk.next_offset = offset;
        }
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.entries = disk.entries.split_off(&(upto.index + 1));
        disk.purged = Some(upto);
        Ok(())
    }
}

/// The state machine: it counts, and takes its snapshots at the boundary.
pub struct Machine(Memory);

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let disk = self.0.0.lock();
        Ok((disk.applied, disk.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let outcome = match &entry.payload {
                EntryPayload::Normal(EntryData::Stored(frame)) => Outcome::Records {
                    base_offset: Offset(frame.header.base_offset),
                    span: frame.header.offset_span,
                    response: Bytes::new(),
                },
                _ => Outcome::Internal,
            };
            let mut disk = self.0.0.lock();
            disk.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                disk.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            drop(disk);
            if let Some(responder) = responder {
                responder.send(Appended { index: entry.log_id.index, term: entry.log_id.leader_id.term, outcome });
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.0.clone())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<TypeConfig>, data: Bytes) -> io::Result<()> {
        let mut disk = self.0.0.lock();
        disk.applied = meta.last_log_id;
        disk.membership = meta.last_membership.clone();
        disk.next_offset = u64::from_le_bytes(data[..].try_into().map_err(io::Error::other)?);
        disk.snapshot = Some((meta.clone(), data));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, Bytes>>> {
        let disk = self.0.0.lock();
        Ok(disk.snapshot.clone().map(|(meta, snapshot)| SnapshotOf::<TypeConfig, Bytes> { meta, snapshot }))
    }
}

pub struct Builder(Memory);

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, Bytes>> {
        let mut disk = self.0.0.lock();
        let boundary = disk.boundary.ok_or_else(|| io::Error::other("no boundary"))?;
        let last_log_id = disk.entries.get(&boundary).map(|entry| entry.0);
        let membership = disk.memberships.range(..=boundary).next_back().map(|entry| entry.1.clone());
        let next = disk.entries.range(boundary + 1..).find_map(|(_, (_, stored))| match stored {
            Stored::Frame(frame) => Some(frame.header.base_offset),
            _ => None,
        });
        let next = next.unwrap_or(disk.next_offset);
        let meta = SnapshotMetaOf::<TypeConfig> { last_log_id, last_membership: membership.unwrap_or_default() };
        let snapshot = Bytes::copy_from_slice(&next.to_le_bytes());
        disk.snapshot = Some((meta.clone(), snapshot.clone()));
        Ok(SnapshotOf::<TypeConfig, Bytes> { meta, snapshot })
    }
}

/// Direct calls between replicas, over links that can be cut one way, and what each broker's detector says.
#[derive(Clone, Default)]
pub struct Mesh(Arc<Mutex<MeshState>>, Arc<AtomicU64>);

#[derive(Default)]
struct MeshState {
    rafts: BTreeMap<(GroupId, ReplicaId), (BrokerId, MemoryRaft)>,
    cut: BTreeSet<(BrokerId, BrokerId)>,
    cut_replies: BTreeSet<(BrokerId, BrokerId)>,
    dead: BTreeSet<(BrokerId, BrokerId)>,
    refuse_transfers: bool,
    released: BTreeMap<(GroupId, ReplicaId), u64>,
}

impl Mesh {
    /// Nothing goes from `from` to `to` any more.
    pub fn cut(&self, from: u32, to: u32) {
        self.0.lock().cut.insert((BrokerId(from), BrokerId(to)));
    }

    /// Requests from `from` reach `to`, their answers do not come back.
    pub fn cut_replies(&self, from: u32, to: u32) {
        self.0.lock().cut_replies.insert((BrokerId(from), BrokerId(to)));
    }

    pub fn heal(&self) {
        let mut state = self.0.lock();
        state.cut.clear();
        state.cut_replies.clear();
    }

    /// Cuts a broker off from everybody.
    pub fn isolate(&self, broker: u32, brokers: u32) {
        for other in (1..=brokers).filter(|other| *other != broker) {
            self.cut(broker, other);
            self.cut(other, broker);
        }
    }

    /// From now on `of` is dead to `observer`'s detector.
    pub fn declare_dead(&self, observer: u32, of: u32) {
        self.0.lock().dead.insert((BrokerId(observer), BrokerId(of)));
    }

    /// Transfer announcements get lost from now on.
    pub fn refuse_transfers(&self, refuse: bool) {
        self.0.lock().refuse_transfers = refuse;
    }

    /// Calls made so far.
    pub fn calls(&self) -> u64 {
        self.1.load(Ordering::Relaxed)
    }

    pub fn raft(&self, group: u64, replica: u64) -> MemoryRaft {
        self.0.lock().rafts[&(GroupId(group), ReplicaId(replica))].1.clone()
    }

    pub fn remove(&self, group: u64, replica: u64) -> MemoryRaft {
        self.0.lock().rafts.remove(&(GroupId(group), ReplicaId(replica))).unwrap().1
    }

    /// Starts a replica on this memory.
    pub async fn start(&self, group: u64, replica: u64, broker: u32, memory: &Memory, config: &Config) -> MemoryRaft {
        let config = Arc::new(config.clone().validate().unwrap());
        let client = Client {
            mesh: self.clone(),
            group: GroupId(group),
            from: BrokerId(broker),
            target: ReplicaId(0),
            to: BrokerId(0),
        };
        let raft =
            Raft::new(ReplicaId(replica), config, client, memory.clone(), Machine(memory.clone())).await.unwrap();
        self.0.lock().rafts.insert((GroupId(group), ReplicaId(replica)), (BrokerId(broker), raft.clone()));
        raft
    }

    fn target(&self, client: &Client) -> Result<MemoryRaft, Unreachable<TypeConfig>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        let state = self.0.lock();
        let unreachable = || Unreachable::from_string(format!("replica {} is unreachable", client.target));
        if state.cut.contains(&(client.from, client.to)) {
            return Err(unreachable());
        }
        state.rafts.get(&(client.group, client.target)).map(|entry| entry.1.clone()).ok_or_else(unreachable)
    }

    fn reply(&self, client: &Client) -> Result<(), Unreachable<TypeConfig>> {
        let state = self.0.lock();
        if state.cut.contains(&(client.to, client.from)) || state.cut_replies.contains(&(client.from, client.to)) {
            return Err(Unreachable::from_string(format!("the answer of replica {} is lost", client.target)));
        }
        Ok(())
    }

    /// The receiver's check of RULES.md R3.
    fn evidence(&self, client: &Client, raft: &MemoryRaft, candidate: ReplicaId) -> Evidence {
        let metrics = raft.metrics().borrow_watched().clone();
        let state = self.0.lock();
        let home = |id: ReplicaId| state.rafts.get(&(client.group, id)).map(|entry| entry.0);
        let leader = metrics.current_leader;
        let stored = metrics.membership_config.membership().clone();
        let broker = leader.and_then(|id| home(id).or(stored.get_node(&id).map(|home| home.broker)));
        Evidence {
            leaderless: leader.is_none(),
            candidate_leads: leader == Some(candidate),
            leader_dead: broker.is_some_and(|broker| state.dead.contains(&(client.to, broker))),
            released: state
                .released
                .get(&(client.group, client.target))
                .is_some_and(|term| *term >= metrics.vote.leader_id.term),
        }
    }
}

use openraft::async_runtime::watch::WatchReceiver;

/// One replica's way to another.
#[derive(Clone)]
pub struct Client {
    mesh: Mesh,
    group: GroupId,
    from: BrokerId,
    target: ReplicaId,
    to: BrokerId,
}

impl RaftNetworkFactory<TypeConfig> for Client {
    type Network = Self;

    async fn new_client(&mut self, target: ReplicaId, home: &ReplicaHome) -> Self {
        Self { target, to: home.broker, ..self.clone() }
    }
}

fn fatal<E: std::error::Error>(error: RaftError<TypeConfig, E>) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(error.to_string()))
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let raft = self.mesh.target(self)?;
        let answer = raft.append_entries(rpc).await.map_err(fatal)?;
        self.mesh.reply(self)?;
        Ok(answer)
    }

    async fn vote(
        &mut self,
        mut rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let raft = self.mesh.target(self)?;
        rpc.leadership_transfer &= self.mesh.evidence(self, &raft, rpc.vote.leader_id.voted_for).suffices();
        let answer = raft.vote(rpc).await.map_err(fatal)?;
        self.mesh.reply(self)?;
        Ok(answer)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let raft = self.mesh.target(self)?;
        let answer = raft.pre_vote(rpc).await.map_err(fatal)?;
        self.mesh.reply(self)?;
        Ok(answer)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, Bytes>,
        _cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let raft = self.mesh.target(self)?;
        let lost = |error: String| StreamingError::Unreachable(Unreachable::from_string(error));
        let answer = raft.install_full_snapshot(vote, snapshot).await.map_err(|e| lost(e.to_string()))?;
        self.mesh.reply(self)?;
        Ok(answer)
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let raft = self.mesh.target(self)?;
        if self.mesh.0.lock().refuse_transfers {
            return Err(Unreachable::from_string("announcement lost").into());
        }
        let term = request.from_leader().leader_id.term;
        self.mesh.0.lock().released.insert((self.group, self.target), term);
        raft.handle_transfer_leader(request).await.map_err(|e| Unreachable::from_string(e.to_string()).into())
    }
}

/// Slow ticks, as the product has them; elections come from outside.
pub fn config() -> Config {
    Config {
        heartbeat_interval: 200,
        election_timeout_min: 1500,
        election_timeout_max: 3000,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        enable_leader_restore: Some(false),
        enable_pre_vote: Some(true),
        quorum_loss_probe_interval: Some(6000),
        install_snapshot_timeout: 10_000,
        api_channel_size: Some(1024),
        notification_channel_size: Some(1024),
        state_machine_channel_size: Some(256),
        ..Config::default()
    }
}

/// A group of `n` replicas on brokers 1..=n, replica ids 1..=n, replica 1 leading.
pub async fn group(mesh: &Mesh, group: u64, n: u64, config: &Config) -> Vec<Memory> {
    let memories: Vec<Memory> = (0..n).map(|_| Memory::default()).collect();
    for (memory, id) in memories.iter().zip(1..) {
        mesh.start(group, id, id as u32, memory, config).await;
    }
    let members: BTreeMap<_, _> =
        (1..=n).map(|id| (ReplicaId(id), ReplicaHome { broker: BrokerId(id as u32) })).collect();
    mesh.raft(group, 1).initialize(members).await.unwrap();
    leader(mesh, group, &[1]).await;
    memories
}

/// Waits until one of these replicas leads (with its blank entry applied) and returns it.
pub async fn leader(mesh: &Mesh, group: u64, among: &[u64]) -> u64 {
    let mut wait = Vec::new();
    for id in among {
        let raft = mesh.raft(group, *id);
        let ready = move |metrics: &openraft::RaftMetrics<TypeConfig>| {
            metrics.state == openraft::ServerState::Leader
                && metrics.last_applied.is_some_and(|applied| applied.leader_id.term == metrics.current_term)
        };
        let id = *id;
        wait.push(Box::pin(async move {
            raft.wait(Some(Duration::from_secs(20))).metrics(ready, "leads").await.map(|_| id)
        }));
    }
    futures_util::future::select_ok(wait).await.expect("a leader").0
}

/// Proposes a payload and waits until it is committed.
pub async fn write(raft: &MemoryRaft, payload: &str) -> Result<u64, String> {
    let data = EntryData::Proposed(Proposal {
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        flushed: None,
        stages: None,
    });
    raft.client_write(data).await.map(|answer| answer.log_id.index).map_err(|error| error.to_string())
}
