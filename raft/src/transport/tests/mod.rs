//! The transport as a whole, over a network in memory with faults and tokio's paused time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use openraft::EntryPayload;
use openraft::network::{
    NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RaftNetworkFactory,
};
use openraft::storage::SnapshotMeta;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast;

use super::client::{AppendedStream, ReplicaNetwork};
use super::handshake::{HANDSHAKE_BYTES, Hello, PROTOCOL_VERSION, Turned, Welcome};
use super::testing::MemoryNetwork;
use super::wire::{HEADER_BYTES, Header};
use super::*;
use crate::log::frame::{Frame, FrameHeader, FrameKind};
use crate::types::{Entry, EntryData, ReplicaHome, ReplicaId, StoredMembership, Vote, log_id, vote};

mod calls;
mod liveness;
mod strangers;
mod streams;
mod unary;

const CLUSTER: ClusterId = ClusterId(7);
const SECOND: Duration = Duration::from_secs(1);

/// Answers with the caller's number and the body; `refuse` and `hang` do as they say.
struct Echo;

impl PeerService for Echo {
    fn call(&self, from: Caller, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        Box::pin(async move {
            match &body[..] {
                b"refuse" => Err("as you wish".to_owned()),
                b"hang" => std::future::pending().await,
                _ => Ok([from.broker.0.to_string().as_bytes(), b":", &body].concat().into()),
            }
        })
    }
}

/// Stands for `raft_groups`: takes everything in, remembers it, agrees. Group 13 hangs, group 404 is not here, group 14
/// takes requests in a task of its own, as openraft does, each when the gate is opened.
#[derive(Default)]
struct FakeGroups {
    gate: tokio::sync::Notify,
    appended: Mutex<BTreeMap<Target, Vec<u64>>>,
    payload_bytes: AtomicUsize,
    streams: AtomicUsize,
    votes: Mutex<Vec<(BrokerId, VoteRequest)>>,
    reports: Mutex<Vec<(BrokerId, Bytes)>>,
}

struct Groups(Arc<FakeGroups>);

impl RaftService for Groups {
    fn append_stream(
        &self,
        _from: BrokerId,
        to: Target,
        requests: BoxStream<'static, AppendEntriesRequest>,
    ) -> BoxStream<'static, Result<AppendResult, Refusal>> {
        let groups = self.0.clone();
        groups.streams.fetch_add(1, Ordering::Relaxed);
        match to.group.0 {
            13 => requests.then(|_| std::future::pending()).boxed(),
            // As openraft answers: a conflict at index 2 ends the stream.
            15 => requests
                .map(|request| match request.prev_log_id {
                    Some(prev) if prev.index == 1 => Ok(Err(openraft::raft::StreamAppendError::Conflict(prev))),
                    _ => Ok(Ok(request.entries.last().map(|e| e.log_id))),
                })
                .take(3)
                .boxed(),
            14 => {
                let (answers, mut answered) = tokio::sync::mpsc::unbounded_channel();
                let mut requests = requests;
                tokio::spawn(async move {
                    loop {
                        groups.gate.notified().await;
                        let Some(request) = requests.next().await else { return };
                        let last = request.entries.last().map(|entry| entry.log_id);
                        groups.appended.lock().entry(to).or_default().extend(last.map(|last| last.index));
                        let _ = answers.send(Ok(Ok(last.or(request.prev_log_id))));
                    }
                });
                futures_util::stream::poll_fn(move |cx| answered.poll_recv(cx)).boxed()
            }
            404 => futures_util::stream::iter([Err(Refusal::NotHere)]).boxed(),
            _ => requests
                .map(move |request| {
                    let mut appended = groups.appended.lock();
                    for entry in &request.entries {
                        appended.entry(to).or_default().push(entry.log_id.index);
                        if let EntryPayload::Normal(EntryData::Stored(frame)) = &entry.payload {
                            groups.payload_bytes.fetch_add(frame.payload.len(), Ordering::Relaxed);
                        }
                    }
                    Ok(Ok(request.entries.last().map(|e| e.log_id).or(request.prev_log_id)))
                })
                .boxed(),
        }
    }

    fn heartbeat(
        &self,
        _from: BrokerId,
        to: Target,
        _request: AppendEntriesRequest,
    ) -> BoxFuture<'static, Result<AppendEntriesResponse, Refusal>> {
        let here = to.group.0 != 404;
        Box::pin(async move { if here { Ok(AppendEntriesResponse::Success) } else { Err(Refusal::NotHere) } })
    }

    fn vote(
        &self,
        from: BrokerId,
        _to: Target,
        request: VoteRequest,
    ) -> BoxFuture<'static, Result<VoteResponse, Refusal>> {
        let answer = VoteResponse::new(request.vote, Some(log_id(1, 2)), true);
        self.0.votes.lock().push((from, request));
        Box::pin(async move { Ok(answer) })
    }

    fn pre_vote(
        &self,
        _from: BrokerId,
        _to: Target,
        request: VoteRequest,
    ) -> BoxFuture<'static, Result<VoteResponse, Refusal>> {
        Box::pin(async move { Ok(VoteResponse::new(request.vote, None, false)) })
    }

    fn install_snapshot(
        &self,
        _from: BrokerId,
        _to: Target,
        vote: Vote,
        snapshot: Snapshot,
    ) -> BoxFuture<'static, Result<SnapshotResponse, Refusal>> {
        self.0.payload_bytes.fetch_add(snapshot.snapshot.len(), Ordering::Relaxed);
        Box::pin(async move { Ok(SnapshotResponse::new(vote)) })
    }

    fn transfer_leader(
        &self,
        _from: BrokerId,
        _to: Target,
        request: TransferLeaderRequest,
    ) -> BoxFuture<'static, Result<TransferLeaderResponse, Refusal>> {
        let error = openraft::raft::TransferLeaderError::LogNotFlushed {
            expected: request.last_log_id().copied(),
            actual: None,
        };
        Box::pin(async move { Ok(Err(error)) })
    }

    fn may_lead(&self, _from: BrokerId, to: Target) -> BoxFuture<'static, Result<bool, Refusal>> {
        let answer = if to.replica == ReplicaId(404) { Err(Refusal::NotHere) } else { Ok(to.replica.0 % 2 == 1) };
        Box::pin(std::future::ready(answer))
    }

    fn frames(&self, _from: BrokerId, request: FramesRequest) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let held = Bytes::from(vec![request.group.0 as u8; FRAMES_BYTES_MAX]);
        Box::pin(std::future::ready(match request.from {
            404 => Err(Refusal::Unable("entry 404 is not here".into())),
            _ => Ok(held.slice(request.skip as usize..)),
        }))
    }

    fn report(&self, from: BrokerId, body: Bytes) -> BoxFuture<'static, Result<(), Refusal>> {
        self.0.reports.lock().push((from, body));
        Box::pin(async { Ok(()) })
    }
}

struct Broker {
    transport: Transport,
    groups: Arc<FakeGroups>,
}

fn name(broker: u32) -> String {
    format!("b{broker}")
}

fn address(broker: u32) -> String {
    format!("b{broker}:9000")
}

async fn start_in(network: &MemoryNetwork, broker: u32, cluster: Option<ClusterId>) -> Broker {
    let identity = TransportIdentity { broker: BrokerId(broker), cluster };
    let host = network.host(&name(broker));
    let transport =
        Transport::start(host, &address(broker), identity, RaftConfig::default(), Arc::new(Echo)).await.unwrap();
    let groups = Arc::new(FakeGroups::default());
    transport.set_raft_service(Arc::new(Groups(groups.clone())));
    Broker { transport, groups }
}

async fn start(network: &MemoryNetwork, broker: u32) -> Broker {
    start_in(network, broker, Some(CLUSTER)).await
}

/// Brokers 1 and 2 that know each other.
async fn two(network: &MemoryNetwork) -> (Broker, Broker) {
    let (a, b) = (start(network, 1).await, start(network, 2).await);
    a.transport.set_peer(BrokerId(2), address(2));
    b.transport.set_peer(BrokerId(1), address(1));
    until(&a, 2, Liveness::Alive).await;
    until(&b, 1, Liveness::Alive).await;
    (a, b)
}

async fn until(broker: &Broker, peer: u32, liveness: Liveness) {
    let reached = async {
        while broker.transport.liveness(BrokerId(peer)) != liveness {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(60 * SECOND, reached).await.expect("liveness as awaited");
}

fn frame(term: u64, index: u64, payload: Bytes) -> Entry {
    let header = FrameHeader {
        offset_span: 1,
        record_count: 1,
        max_timestamp: 5,
        ..FrameHeader::bare(FrameKind::Records, log_id(term, index), index)
    };
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(EntryData::Stored(Frame::new(header, payload))) }
}

/// One entry at `index` after its predecessor.
fn append(index: u64, payload: Bytes) -> AppendEntriesRequest {
    AppendEntriesRequest {
        vote: vote(1, ReplicaId(1), true),
        prev_log_id: index.checked_sub(1).map(|prev| log_id(1, prev)),
        leader_commit: None,
        entries: vec![frame(1, index, payload)],
    }
}

fn option() -> RPCOption {
    RPCOption::new(SECOND)
}

async fn to(broker: &Broker, group: u64, peer: u32) -> ReplicaNetwork {
    let home = ReplicaHome { broker: BrokerId(peer) };
    broker.transport.raft_network(GroupId(group)).new_client(ReplicaId(u64::from(peer)), &home).await
}

fn target(group: u64, peer: u32) -> Target {
    Target { group: GroupId(group), replica: ReplicaId(u64::from(peer)) }
}

async fn until_replicated(group: &mut ReplicaNetwork) {
    let replicated = async {
        loop {
            let requests = futures_util::stream::iter([append(0, Bytes::new())]);
            let answer = group.stream_append(requests, option()).await.unwrap().next().await.unwrap();
            if answer.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(60 * SECOND, replicated).await.expect("replication resumes");
}

async fn hello_with(network: &MemoryNetwork, change: impl FnOnce(&mut Hello)) -> (Box<dyn Stream>, Welcome) {
    let mut stream = network.host("evil").connect(&address(2)).await.unwrap();
    let mut hello = Hello {
        kind: ConnectionKind::Data,
        broker: BrokerId(1),
        target: Some(BrokerId(2)),
        cluster: Some(CLUSTER),
        incarnation: 1,
    };
    change(&mut hello);
    stream.write_all(&hello.encode()).await.unwrap();
    let mut welcome = [0; HANDSHAKE_BYTES];
    stream.read_exact(&mut welcome).await.unwrap();
    (stream, Welcome::decode(&welcome).unwrap())
}

/// A frame as a peer would write it.
fn raw(kind: Kind, lane: u64, body: Vec<Bytes>) -> Vec<u8> {
    let bytes = body.iter().map(Bytes::len).sum::<usize>() as u32;
    let header = Header::encode(kind, (true, true), lane, bytes, &body);
    [&header[..], &body.concat()].concat()
}
