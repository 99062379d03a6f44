//! The transport as a whole, over a network in memory with faults and tokio's paused time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;
use openraft::EntryPayload;
use openraft::network::{NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RaftNetworkFactory};
use openraft::storage::SnapshotMeta;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast;

use super::client::ReplicaNetwork;
use super::handshake::{HANDSHAKE_BYTES, Hello, PROTOCOL_VERSION, Turned, Welcome};
use super::testing::MemoryNetwork;
use super::wire::{HEADER_BYTES, Header};
use super::*;
use crate::log::frame::{Frame, FrameHeader, FrameKind};
use crate::types::{Entry, EntryData, ReplicaHome, StoredMembership, log_id, vote};

const CLUSTER: ClusterId = ClusterId(7);
const SECOND: Duration = Duration::from_secs(1);

/// Answers with the caller's number and the body; `refuse` and `hang` do as they say.
struct Echo;

impl PeerService for Echo {
    fn call(&self, from: BrokerId, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        Box::pin(async move {
            match &body[..] {
                b"refuse" => Err("as you wish".to_owned()),
                b"hang" => std::future::pending().await,
                _ => Ok([from.0.to_string().as_bytes(), b":", &body].concat().into()),
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
                        let last = request.entries[0].log_id;
                        groups.appended.lock().entry(to).or_default().push(last.index);
                        let _ = answers.send(Ok(Ok(Some(last))));
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

#[tokio::test(start_paused = true)]
async fn calls_are_answered_and_their_failures_told_apart() {
    let network = MemoryNetwork::new();
    let (a, _b) = two(&network).await;
    let call = |to, body: &'static [u8]| a.transport.call(BrokerId(to), body.into(), SECOND);
    assert_eq!(call(2, b"hello").await.unwrap(), &b"1:hello"[..]);
    assert!(matches!(call(9, b"hello").await, Err(CallError::Unreachable(BrokerId(9), _))));
    assert_eq!(call(2, b"refuse").await, Err(CallError::Refused(BrokerId(2), "as you wish".into())));
    assert!(matches!(call(2, b"hang").await, Err(CallError::NoAnswer(..))));
    let long = Bytes::from(vec![7; CALL_BYTES_MAX + 1]);
    assert!(matches!(a.transport.call(BrokerId(2), long, SECOND).await, Err(CallError::Refused(..))));
    network.crash("b2");
    until(&a, 2, Liveness::Dead).await;
    assert!(matches!(call(2, b"hello").await, Err(CallError::Unreachable(..))));
}

#[tokio::test(start_paused = true)]
async fn the_longest_calls_pass_at_once_and_pings_between_them() {
    let network = MemoryNetwork::new();
    let (a, _b) = two(&network).await;
    let body = Bytes::from(vec![7; CALL_BYTES_MAX - 16]);
    let calls = (0..8).map(|_| a.transport.call(BrokerId(2), body.clone(), 30 * SECOND));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.unwrap().len(), body.len() + 2);
    }
    assert_eq!(a.transport.peer_status(BrokerId(2)).unwrap().deaths, 0);
}

#[tokio::test(start_paused = true)]
async fn a_broker_without_a_cluster_may_call_but_not_replicate() {
    let network = MemoryNetwork::new();
    let a = start_in(&network, 1, None).await;
    let b = start(&network, 2).await;
    let answer = a.transport.call_address(&address(2), b"hello"[..].into(), SECOND).await;
    assert_eq!(answer.unwrap(), &b"1:hello"[..]);
    a.transport.set_peer(BrokerId(2), address(2));
    until(&a, 2, Liveness::Alive).await;
    assert!(a.transport.call(BrokerId(2), b"hello"[..].into(), SECOND).await.is_ok());
    assert!(matches!(a.transport.report(BrokerId(2), Bytes::new(), SECOND).await, Err(CallError::Refused(..))));
    let mut group = to(&a, 1, 2).await;
    let requests = futures_util::stream::iter([append(0, Bytes::new())]);
    assert!(group.stream_append(requests, option()).await.unwrap().next().await.unwrap().is_err());
    a.transport.set_cluster(CLUSTER);
    until_replicated(&mut group).await;
    assert_eq!(b.groups.appended.lock()[&target(1, 2)], [0]);
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

#[tokio::test(start_paused = true)]
async fn call_address_tells_failures_apart() {
    let network = MemoryNetwork::new();
    let a = start(&network, 1).await;
    let _foreign = start_in(&network, 2, Some(ClusterId(8))).await;
    let call = |to: u32, body: &'static [u8]| {
        let address = address(to);
        let transport = a.transport.clone();
        async move { transport.call_address(&address, body.into(), SECOND).await }
    };
    assert!(matches!(call(2, b"hello").await, Err(CallError::Refused(..))));
    assert!(matches!(call(3, b"hello").await, Err(CallError::Unreachable(..))));
    assert_eq!(call(1, b"me").await.unwrap(), &b"1:me"[..]);
    assert!(matches!(call(1, b"hang").await, Err(CallError::NoAnswer(..))));
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_pipelined_and_keeps_its_order() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    network.delay("b1", "b2", Duration::from_millis(20));
    let mut group = to(&a, 1, 2).await;
    let requests = futures_util::stream::iter((0..1000).map(|index| append(index, vec![1; 100].into())));
    let start = Instant::now();
    let answers: Vec<_> = group.stream_append(requests, option()).await.unwrap().collect().await;
    // One at a time it would take 20 s.
    assert!(start.elapsed() < 5 * SECOND, "{:?}", start.elapsed());
    let matched: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().unwrap().unwrap().index).collect();
    assert_eq!(matched, (0..1000).collect::<Vec<_>>());
    assert_eq!(b.groups.appended.lock()[&target(1, 2)], (0..1000).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn many_groups_share_the_connection_each_in_order() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    let streams = (0..200).map(|group| {
        let a = &a;
        async move {
            let mut group = to(a, 1000 + group, 2).await;
            let requests = futures_util::stream::iter((0..20).map(|index| append(index, vec![1; 5000].into())));
            group.stream_append(requests, option()).await.unwrap().map(|answer| answer.unwrap().unwrap()).count().await
        }
    });
    assert_eq!(futures_util::future::join_all(streams).await, [20; 200]);
    for indexes in b.groups.appended.lock().values() {
        assert_eq!(*indexes, (0..20).collect::<Vec<_>>());
    }
    assert_eq!(network.connect_attempts("b1", "b2"), 2);
}

/// The same on real sockets and threads, while connections are lost now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_over_tcp_keep_their_order_across_lost_connections() {
    let mut brokers = Vec::new();
    for broker in 1..=2 {
        let identity = TransportIdentity { broker: BrokerId(broker), cluster: Some(CLUSTER) };
        let network = Arc::new(super::net::TcpNetwork);
        let transport =
            Transport::start(network, "127.0.0.1:0", identity, RaftConfig::default(), Arc::new(Echo)).await.unwrap();
        let groups = Arc::new(FakeGroups::default());
        transport.set_raft_service(Arc::new(Groups(groups.clone())));
        brokers.push(Broker { transport, groups });
    }
    let (a, b) = (&brokers[0], &brokers[1]);
    a.transport.set_peer(BrokerId(2), b.transport.local_address());
    until(a, 2, Liveness::Alive).await;
    let streams = (0..20).map(|group| async move {
        let mut group = to(a, 1000 + group, 2).await;
        let mut next = 0;
        let mut lost = 0;
        while next < 300 {
            let requests = futures_util::stream::iter((next..300).map(|index| append(index, vec![1; 20_000].into())));
            let mut answers = group.stream_append(requests, option()).await.unwrap();
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(matching) => {
                        assert_eq!(matching.unwrap(), Some(log_id(1, next)));
                        next += 1;
                    }
                    Err(_) => {
                        lost += 1;
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            }
        }
        lost
    });
    let breaking = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(30)).await;
            a.transport.shared.peer(BrokerId(2)).unwrap().data.shut("test");
        }
        std::future::pending().await
    };
    let lost = tokio::select! {
        biased;
        lost = futures_util::future::join_all(streams) => lost,
        () = breaking => unreachable!(),
        () = tokio::time::sleep(60 * SECOND) => panic!("too slow"),
    };
    assert!(lost.iter().sum::<i32>() > 0);
    for indexes in b.groups.appended.lock().values() {
        // What was sent again is the same from some index on; nothing is left out.
        assert!(indexes.windows(2).all(|pair| pair[1] <= pair[0] + 1));
        assert_eq!(indexes.last(), Some(&299));
    }
    assert_eq!(a.transport.peer_status(BrokerId(2)).unwrap().deaths, 0);
}

#[tokio::test(start_paused = true)]
async fn the_longest_entry_passes_whole() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    let payload = Bytes::from((0..64usize << 20).map(|at| (at >> 8) as u8).collect::<Vec<_>>());
    let mut group = to(&a, 1, 2).await;
    let requests = futures_util::stream::iter([append(0, payload.clone()), append(1, payload)]);
    let answers: Vec<_> = group.stream_append(requests, option()).await.unwrap().collect().await;
    assert_eq!(answers.len(), 2);
    assert!(answers.iter().all(|answer| matches!(answer, Ok(Ok(_)))), "{answers:?}");
    assert_eq!(b.groups.payload_bytes.load(Ordering::Relaxed), 128 << 20);
    assert_eq!(a.transport.peer_status(BrokerId(2)).unwrap().deaths, 0);
}

#[tokio::test(start_paused = true)]
async fn a_group_that_hangs_holds_up_no_other() {
    let network = MemoryNetwork::new();
    let (a, _b) = two(&network).await;
    let (mut stuck, mut other) = (to(&a, 13, 2).await, to(&a, 1, 2).await);
    let endless = futures_util::stream::iter((0..).map(|index| append(index, vec![1; 100 << 10].into())));
    let mut stuck = stuck.stream_append(endless, option()).await.unwrap();
    let requests = futures_util::stream::iter((0..100).map(|index| append(index, vec![1; 100 << 10].into())));
    let passing = async {
        let answers: Vec<_> = other.stream_append(requests, option()).await.unwrap().collect().await;
        assert!(answers.len() == 100 && answers.iter().all(|answer| matches!(answer, Ok(Ok(_)))));
    };
    tokio::select! {
        biased;
        answer = stuck.next() => panic!("{answer:?}"),
        () = passing => {}
    }
    // It is given up in the end, with an error, and not before the broker had time for a slow disk.
    let start = Instant::now();
    assert!(stuck.next().await.unwrap().is_err());
    assert!(start.elapsed() > 5 * SECOND && start.elapsed() < 20 * SECOND, "{:?}", start.elapsed());
    assert!(stuck.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_not_here_is_an_error_to_back_off_from() {
    let network = MemoryNetwork::new();
    let (a, _b) = two(&network).await;
    let mut group = to(&a, 404, 2).await;
    for _ in 0..20 {
        let requests = futures_util::stream::iter((0..5).map(|index| append(index, Bytes::new())));
        let answers: Vec<_> = group.stream_append(requests, option()).await.unwrap().collect().await;
        assert!(matches!(answers[..], [Err(openraft::errors::RPCError::Unreachable(_))]), "{answers:?}");
    }
    assert_eq!(a.transport.peer_status(BrokerId(2)).unwrap().deaths, 0);
    assert_eq!(network.connect_attempts("b1", "b2"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_fails_the_stream_and_the_next_one_works() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    let mut group = to(&a, 13, 2).await;
    let (requests, input) = tokio::sync::mpsc::unbounded_channel();
    let mut input = input;
    let input = futures_util::stream::poll_fn(move |cx| input.poll_recv(cx));
    let mut answers = group.stream_append(input, option()).await.unwrap();
    requests.send(append(0, Bytes::new())).unwrap();
    let began = async {
        while b.groups.streams.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! { biased; answer = answers.next() => panic!("{answer:?}"), () = began => {} }
    network.close("b1", "b2");
    assert!(matches!(answers.next().await, Some(Err(openraft::errors::RPCError::Unreachable(_)))));
    assert!(answers.next().await.is_none());
    drop(answers);
    until_replicated(&mut to(&a, 1, 2).await).await;
    // The process at the other end is the same: nobody died.
    assert_eq!(a.transport.peer_status(BrokerId(2)).unwrap().deaths, 0);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_ends_the_stream_and_what_was_sent_behind_it() {
    let network = MemoryNetwork::new();
    let (a, _b) = two(&network).await;
    let mut group = to(&a, 15, 2).await;
    for _ in 0..3 {
        let requests = futures_util::stream::iter((0..20).map(|index| append(index, Bytes::new())));
        let answers: Vec<_> = group.stream_append(requests, option()).await.unwrap().collect().await;
        let conflict = openraft::raft::StreamAppendError::Conflict(log_id(1, 1));
        assert_eq!(answers, [Ok(Ok(Some(log_id(1, 0)))), Ok(Ok(Some(log_id(1, 1)))), Ok(Err(conflict))]);
    }
    assert_eq!(network.connect_attempts("b1", "b2"), 2);
}

/// What a given-up stream had sent must not mix with what the next one sends.
#[tokio::test(start_paused = true)]
async fn requests_of_a_stream_that_was_given_up_are_not_handed_out_any_more() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    let mut group = to(&a, 14, 2).await;
    let endless = futures_util::stream::iter((0..5).map(|index| append(index, Bytes::new())));
    let mut given_up = group.stream_append(endless, option()).await.unwrap();
    assert!(tokio::time::timeout(SECOND / 10, given_up.next()).await.is_err());
    drop(given_up);
    let again = futures_util::stream::iter([append(100, Bytes::new())]);
    let mut again = group.stream_append(again, option()).await.unwrap();
    let opened = async {
        loop {
            tokio::time::sleep(SECOND / 100).await;
            b.groups.gate.notify_waiters();
        }
    };
    let answer = tokio::select! { biased; answer = again.next() => answer, () = opened => None };
    assert_eq!(answer.unwrap().unwrap().unwrap(), Some(log_id(1, 100)));
    assert_eq!(b.groups.appended.lock()[&target(14, 2)], [100]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_stream_outlives_its_connection() {
    let network = MemoryNetwork::new();
    let (a, _b) = two(&network).await;
    let mut group = to(&a, 1, 2).await;
    let (requests, mut input) = tokio::sync::mpsc::unbounded_channel();
    let input = futures_util::stream::poll_fn(move |cx| input.poll_recv(cx));
    let mut answers = group.stream_append(input, option()).await.unwrap();
    for index in 0..5 {
        requests.send(append(index, Bytes::new())).unwrap();
        assert_eq!(answers.next().await.unwrap().unwrap().unwrap(), Some(log_id(1, index)));
        network.close("b1", "b2");
        tokio::time::sleep(SECOND).await;
    }
    drop(requests);
    assert!(answers.next().await.is_none());
}

/// openraft sleeps its back-off when the input is polled. Without a connection a session must therefore take its
/// request first, and dialling must not follow the sessions' pace.
#[tokio::test(start_paused = true)]
async fn replication_to_a_dead_broker_spins_neither_sessions_nor_connects() {
    let network = MemoryNetwork::new();
    let (a, _b) = two(&network).await;
    network.crash("b2");
    until(&a, 2, Liveness::Dead).await;
    let before = network.connect_attempts("b1", "b2");
    let sessions = (0..300).map(|group| {
        let a = &a;
        async move {
            let mut group = to(a, 1000 + group, 2).await;
            let end = Instant::now() + 10 * SECOND;
            let mut sessions = 0;
            while Instant::now() < end {
                let requests = futures_util::stream::once(Box::pin(async {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    append(0, Bytes::new())
                }));
                let answers: Vec<_> = group.stream_append(requests, option()).await.unwrap().collect().await;
                assert!(matches!(answers[..], [Err(openraft::errors::RPCError::Unreachable(_))]), "{answers:?}");
                sessions += 1;
            }
            sessions
        }
    });
    assert_eq!(futures_util::future::join_all(sessions).await, [20; 300]);
    let dialled = network.connect_attempts("b1", "b2") - before;
    assert!((20..=60).contains(&dialled), "{dialled} attempts in 10 s");
}

#[tokio::test(start_paused = true)]
async fn unary_messages_carry_all_they_should() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    let mut group = to(&a, 1, 2).await;
    let mut request = VoteRequest::new(vote(3, ReplicaId(1), false), Some(log_id(2, 9)));
    request.leadership_transfer = true;
    let answer = group.vote(request.clone(), option()).await.unwrap();
    assert_eq!(answer, VoteResponse::new(request.vote, Some(log_id(1, 2)), true));
    assert_eq!(*b.groups.votes.lock(), [(BrokerId(1), request.clone())]);
    assert!(!group.pre_vote(request, option()).await.unwrap().vote_granted);
    let transfer = TransferLeaderRequest::new(vote(3, ReplicaId(1), true), ReplicaId(2), Some(log_id(3, 4)));
    let expected = openraft::raft::TransferLeaderError::LogNotFlushed { expected: Some(log_id(3, 4)), actual: None };
    assert_eq!(group.transfer_leader(transfer, option()).await.unwrap(), Err(expected));
    a.transport.report(BrokerId(2), b"orphans"[..].into(), SECOND).await.unwrap();
    assert_eq!(*b.groups.reports.lock(), [(BrokerId(1), Bytes::from_static(b"orphans"))]);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_pass_while_data_is_stuck() {
    let network = MemoryNetwork::new();
    let (a, _b) = two(&network).await;
    let home = ReplicaHome { broker: BrokerId(2) };
    let mut factory = a.transport.raft_network(GroupId(1));
    let mut heartbeats = factory.new_heartbeat_client(ReplicaId(2), &home).await;
    let mut stuck = to(&a, 13, 2).await;
    let endless = futures_util::stream::iter((0..).map(|index| append(index, vec![1; 1 << 20].into())));
    let mut stuck = stuck.stream_append(endless, option()).await.unwrap();
    let beats = async {
        for _ in 0..10 {
            let mut beat = append(5, Bytes::new());
            beat.entries.clear();
            let requests = futures_util::stream::iter([beat]);
            let answers: Vec<_> = heartbeats.stream_append(requests, option()).await.unwrap().collect().await;
            assert!(matches!(answers[..], [Ok(Ok(Some(id)))] if id == log_id(1, 4)), "{answers:?}");
        }
    };
    tokio::select! { biased; answer = stuck.next() => panic!("{answer:?}"), () = beats => {} }
}

fn snapshot(bytes: usize) -> Snapshot {
    let meta = SnapshotMeta {
        last_log_id: Some(log_id(1, 4)),
        last_membership: StoredMembership::new(None, crate::types::Membership::default()),
    };
    Snapshot { meta, snapshot: vec![3; bytes].into() }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_passes_whole_or_is_cancelled() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    let mut group = to(&a, 1, 2).await;
    let leader = vote(1, ReplicaId(1), true);
    let answer = group.full_snapshot(leader, snapshot(20 << 20), std::future::pending(), option()).await.unwrap();
    assert_eq!(answer.vote, leader);
    assert_eq!(b.groups.payload_bytes.load(Ordering::Relaxed), 20 << 20);

    network.cut("b1", "b2");
    let cancel = async {
        tokio::time::sleep(SECOND / 10).await;
        openraft::errors::ReplicationClosed::new("enough")
    };
    let cancelled = group.full_snapshot(leader, snapshot(1 << 20), cancel, option()).await;
    assert!(matches!(cancelled, Err(openraft::errors::StreamingError::Closed(_))), "{cancelled:?}");
    network.heal_all();
    until_replicated(&mut group).await;
    assert_eq!(b.groups.payload_bytes.load(Ordering::Relaxed), 20 << 20);
}

#[tokio::test(start_paused = true)]
async fn before_groups_have_started_nothing_is_here() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    *b.transport.shared.raft.lock() = None;
    let mut group = to(&a, 1, 2).await;
    let request = VoteRequest::new(vote(3, ReplicaId(1), false), None);
    let refused =
        |error: &openraft::errors::RPCError<TypeConfig>| matches!(error, openraft::errors::RPCError::Unreachable(_));
    assert!(refused(&group.vote(request.clone(), option()).await.unwrap_err()));
    let requests = futures_util::stream::iter([append(0, Bytes::new())]);
    let answer = group.stream_append(requests, option()).await.unwrap().next().await.unwrap();
    assert!(refused(&answer.unwrap_err()));
    b.transport.set_raft_service(Arc::new(Groups(b.groups.clone())));
    assert!(group.vote(request, option()).await.is_ok());
    until_replicated(&mut group).await;
}

// The detector, with real connections under it.

fn drain(events: &mut broadcast::Receiver<(BrokerId, Liveness)>) -> Vec<(u32, Liveness)> {
    std::iter::from_fn(|| events.try_recv().ok()).map(|(broker, liveness)| (broker.0, liveness)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_killed_process_is_dead_at_once_and_alive_when_it_is_back() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    tokio::time::sleep(2 * SECOND).await;
    let mut events = a.transport.watch_liveness();
    network.crash("b2");
    b.transport.shutdown().await;
    let start = Instant::now();
    until(&a, 2, Liveness::Dead).await;
    assert!(start.elapsed() < SECOND / 10, "{:?}", start.elapsed());
    let _again = start_b2_again(&network).await;
    until(&a, 2, Liveness::Alive).await;
    assert!(start.elapsed() < 2 * SECOND, "{:?}", start.elapsed());
    assert_eq!(drain(&mut events), [(2, Liveness::Dead), (2, Liveness::Alive)]);
}

async fn start_b2_again(network: &MemoryNetwork) -> Broker {
    let b = start(network, 2).await;
    b.transport.set_peer(BrokerId(1), address(1));
    b
}

#[tokio::test(start_paused = true)]
async fn a_process_replaced_before_it_was_missed_has_died() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    tokio::time::sleep(2 * SECOND).await;
    let mut events = a.transport.watch_liveness();
    network.crash("b2");
    let _again = start_b2_again(&network).await;
    b.transport.shutdown().await;
    until(&a, 2, Liveness::Alive).await;
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(drain(&mut events), [(2, Liveness::Dead), (2, Liveness::Alive)]);
}

#[tokio::test(start_paused = true)]
async fn silence_is_death_and_an_answer_life() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    let (mut seen_by_a, mut seen_by_b) = (a.transport.watch_liveness(), b.transport.watch_liveness());
    network.partition("b1", "b2");
    let start = Instant::now();
    until(&a, 2, Liveness::Dead).await;
    until(&b, 1, Liveness::Dead).await;
    assert!(start.elapsed() >= SECOND - SECOND / 10 && start.elapsed() < 2 * SECOND, "{:?}", start.elapsed());
    tokio::time::sleep(60 * SECOND).await;
    network.heal_all();
    until(&a, 2, Liveness::Alive).await;
    until(&b, 1, Liveness::Alive).await;
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(drain(&mut seen_by_a), [(2, Liveness::Dead), (2, Liveness::Alive)]);
    assert_eq!(drain(&mut seen_by_b), [(1, Liveness::Dead), (1, Liveness::Alive)]);
}

/// RULES.md R3: under a cut in one direction both ends say the same, once.
#[tokio::test(start_paused = true)]
async fn a_one_way_cut_is_seen_alike_at_both_ends_and_does_not_flap() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    let (mut seen_by_a, mut seen_by_b) = (a.transport.watch_liveness(), b.transport.watch_liveness());
    network.cut("b1", "b2");
    until(&a, 2, Liveness::Dead).await;
    until(&b, 1, Liveness::Dead).await;
    tokio::time::sleep(120 * SECOND).await;
    assert_eq!(drain(&mut seen_by_a), [(2, Liveness::Dead)]);
    assert_eq!(drain(&mut seen_by_b), [(1, Liveness::Dead)]);
    network.heal("b1", "b2");
    until(&a, 2, Liveness::Alive).await;
    until(&b, 1, Liveness::Alive).await;
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(drain(&mut seen_by_a), [(2, Liveness::Alive)]);
    assert_eq!(drain(&mut seen_by_b), [(1, Liveness::Alive)]);
}

/// Hearing a peer is not enough: it must hear us too, and lately.
#[tokio::test(start_paused = true)]
async fn a_peer_is_alive_only_while_it_acknowledges_our_answers() {
    let network = MemoryNetwork::new();
    let b = start(&network, 2).await;
    let (mut stream, _) = hello_with(&network, |hello| {
        hello.kind = ConnectionKind::Control;
        hello.broker = BrokerId(66);
    })
    .await;
    b.transport.set_peer(BrokerId(66), "evil:1".into());
    let mut ping = async |number: u64, acknowledged: u64| {
        let body = [number.to_le_bytes(), acknowledged.to_le_bytes()].concat();
        stream.write_all(&raw(Kind::Ping, 0, vec![body.into()])).await.unwrap();
        let mut pong = [0; HEADER_BYTES + 8];
        stream.read_exact(&mut pong).await.unwrap();
        assert_eq!(pong[HEADER_BYTES..], number.to_le_bytes());
        b.transport.liveness(BrokerId(66))
    };
    assert_eq!(ping(5, 0).await, Liveness::Unknown);
    assert_eq!(ping(6, 5).await, Liveness::Alive);
    for number in 7..37 {
        // The same old answer again and again: it proves nothing about now.
        let body = [u64::to_le_bytes(number), u64::to_le_bytes(5)].concat();
        let _ = stream.write_all(&raw(Kind::Ping, 0, vec![body.into()])).await;
        tokio::time::sleep(SECOND / 10).await;
    }
    assert_eq!(b.transport.liveness(BrokerId(66)), Liveness::Dead);
}

/// A firewall fakes a refused connection, but the peer talks to us over its own: it is not dead (RULES.md R2).
#[tokio::test(start_paused = true)]
async fn a_refusal_alone_is_not_death() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    tokio::time::sleep(2 * SECOND).await;
    let (mut seen_by_a, mut seen_by_b) = (a.transport.watch_liveness(), b.transport.watch_liveness());
    network.refuse("b2");
    let dialled = a.transport.shared.peer(BrokerId(2)).unwrap();
    dialled.shut("cut by a firewall");
    tokio::time::sleep(60 * SECOND).await;
    assert!(network.connect_attempts("b1", "b2") > 10);
    assert_eq!(drain(&mut seen_by_a), []);
    assert_eq!(drain(&mut seen_by_b), []);
}

#[tokio::test]
async fn our_own_pause_is_not_others_silence() {
    // Real time: the whole runtime stands still, as under SIGSTOP.
    let network = MemoryNetwork::new();
    let (a, _b) = two(&network).await;
    let mut events = a.transport.watch_liveness();
    std::thread::sleep(Duration::from_millis(1500));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(drain(&mut events), []);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_answered_is_dead_after_a_while() {
    let network = MemoryNetwork::new();
    let a = start(&network, 1).await;
    assert_eq!(a.transport.liveness(BrokerId(2)), Liveness::Unknown);
    a.transport.set_peer(BrokerId(2), address(2));
    tokio::time::sleep(SECOND / 2).await;
    assert_eq!(a.transport.liveness(BrokerId(2)), Liveness::Unknown);
    tokio::time::sleep(SECOND).await;
    assert_eq!(a.transport.liveness(BrokerId(2)), Liveness::Dead);
}

#[tokio::test(start_paused = true)]
async fn a_peer_can_move_and_be_forgotten() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    let identity = TransportIdentity { broker: BrokerId(2), cluster: Some(CLUSTER) };
    let elsewhere =
        Transport::start(network.host("c"), "c:1", identity, RaftConfig::default(), Arc::new(Echo)).await.unwrap();
    b.transport.shutdown().await;
    a.transport.set_peer(BrokerId(2), elsewhere.local_address());
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(a.transport.liveness(BrokerId(2)), Liveness::Alive);
    assert!(a.transport.call(BrokerId(2), b"x"[..].into(), SECOND).await.is_ok());
    let dialled = network.connect_attempts("b1", "b2");
    a.transport.remove_peer(BrokerId(2));
    assert_eq!(a.transport.peers(), []);
    assert!(a.transport.call(BrokerId(2), b"x"[..].into(), SECOND).await.is_err());
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(network.connect_attempts("b1", "b2"), dialled);
}

#[tokio::test(start_paused = true)]
async fn after_shutdown_nobody_listens() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    b.transport.shutdown().await;
    until(&a, 2, Liveness::Dead).await;
    let called = a.transport.call_address(&address(2), Bytes::new(), SECOND).await;
    assert!(matches!(called, Err(CallError::Unreachable(..))), "{called:?}");
}

// Hostile and mistaken peers.

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

#[tokio::test(start_paused = true)]
async fn a_handshake_that_does_not_fit_is_refused_by_name() {
    let network = MemoryNetwork::new();
    let _b = start(&network, 2).await;
    let turned = async |change: fn(&mut Hello)| hello_with(&network, change).await.1.turned;
    assert_eq!(turned(|_| ()).await, None);
    assert_eq!(turned(|hello| hello.cluster = Some(ClusterId(8))).await, Some(Turned::ForeignCluster));
    assert_eq!(turned(|hello| hello.target = Some(BrokerId(3))).await, Some(Turned::WrongBroker));
    assert_eq!(turned(|hello| hello.broker = BrokerId(2)).await, Some(Turned::SameBroker));
    assert_eq!(turned(|hello| hello.cluster = None).await, Some(Turned::NoCluster));

    let mut bytes =
        Hello { kind: ConnectionKind::Data, broker: BrokerId(1), target: None, cluster: Some(CLUSTER), incarnation: 1 }
            .encode();
    bytes[8] = 99;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    let mut stream = network.host("evil").connect(&address(2)).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut welcome = [0; HANDSHAKE_BYTES];
    stream.read_exact(&mut welcome).await.unwrap();
    let welcome = Welcome::decode(&welcome).unwrap();
    assert_eq!((welcome.turned, welcome.version), (Some(Turned::Version), PROTOCOL_VERSION));
}

#[tokio::test(start_paused = true)]
async fn garbage_and_silence_instead_of_a_handshake_are_cut_off() {
    let network = MemoryNetwork::new();
    let _b = start(&network, 2).await;
    let mut garbage = network.host("evil").connect(&address(2)).await.unwrap();
    garbage.write_all(&[b'G'; HANDSHAKE_BYTES]).await.unwrap();
    assert!(garbage.read_u8().await.is_err());
    let start = Instant::now();
    let mut silent = network.host("evil").connect(&address(2)).await.unwrap();
    assert!(silent.read_u8().await.is_err());
    assert!(start.elapsed() < 5 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_dialler_refuses_a_stranger_that_welcomes_it() {
    let network = MemoryNetwork::new();
    let a = start(&network, 1).await;
    let listener = network.host("b2").listen(&address(2)).await.unwrap();
    a.transport.set_peer(BrokerId(2), address(2));
    let mut stream = listener.accept().await.unwrap();
    let mut hello = [0; HANDSHAKE_BYTES];
    stream.read_exact(&mut hello).await.unwrap();
    let welcome = Welcome {
        version: PROTOCOL_VERSION,
        turned: None,
        broker: BrokerId(3),
        cluster: Some(CLUSTER),
        incarnation: 5,
    };
    stream.write_all(&welcome.encode()).await.unwrap();
    assert!(stream.read_u8().await.is_err());
    let why = a.transport.call(BrokerId(2), Bytes::new(), SECOND).await.unwrap_err().to_string();
    assert!(why.contains("broker 3 answers there, not 2"), "{why}");
}

/// A frame as a peer would write it.
fn raw(kind: Kind, lane: u64, body: Vec<Bytes>) -> Vec<u8> {
    let bytes = body.iter().map(Bytes::len).sum::<usize>() as u32;
    let header = Header::encode(kind, (true, true), lane, bytes, &body);
    [&header[..], &body.concat()].concat()
}

/// Whether the broker closes the connection before it answers anything but `expected` bytes.
async fn is_cut_off(stream: &mut Box<dyn Stream>) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(5 * SECOND, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_exceeds_its_credit_is_disconnected() {
    let network = MemoryNetwork::new();
    let b = start(&network, 2).await;
    let (mut stream, _) = hello_with(&network, |_| ()).await;
    let stuck = target(13, 2);
    stream.write_all(&raw(Kind::Open, 1, vec![message::encode_open(stuck)])).await.unwrap();
    for index in 0..WINDOW_REQUESTS as u64 {
        let pieces = message::encode_append(&append(index, Bytes::from_static(b"x"))).unwrap();
        stream.write_all(&raw(Kind::Append, 1, pieces)).await.unwrap();
    }
    // Within its credit it is not.
    assert!(tokio::time::timeout(SECOND, stream.read_u8()).await.is_err());
    let pieces = message::encode_append(&append(64, Bytes::new())).unwrap();
    stream.write_all(&raw(Kind::Append, 1, pieces)).await.unwrap();
    assert!(is_cut_off(&mut stream).await);
    drop(b);
}

#[tokio::test(start_paused = true)]
async fn broken_frames_and_bodies_disconnect_only_who_sent_them() {
    let network = MemoryNetwork::new();
    let (a, _b) = two(&network).await;
    let mut flipped = raw(Kind::Open, 1, vec![message::encode_open(target(1, 2))]);
    flipped[HEADER_BYTES] ^= 1;
    let mut long = raw(Kind::Ping, 0, vec![vec![0; 16].into()]);
    long[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let bad_entry = {
        let mut pieces = message::encode_append(&append(0, Bytes::from_static(b"payload"))).unwrap();
        *pieces.last_mut().unwrap() = Bytes::from_static(b"tampere");
        [raw(Kind::Open, 1, vec![message::encode_open(target(1, 2))]), raw(Kind::Append, 1, pieces)].concat()
    };
    let gap = {
        let mut request = append(7, Bytes::new());
        request.prev_log_id = Some(log_id(1, 3));
        let pieces = message::encode_append(&request).unwrap();
        [raw(Kind::Open, 1, vec![message::encode_open(target(1, 2))]), raw(Kind::Append, 1, pieces)].concat()
    };
    let votes_on_data = raw(Kind::Vote, 1, vec![Bytes::from_static(&[1])]);
    for bytes in [flipped, long, bad_entry, gap, votes_on_data, vec![0xff; 100]] {
        // Under a broker id of its own, so that it does not take another's place.
        let (mut stream, _) = hello_with(&network, |hello| hello.broker = BrokerId(66)).await;
        stream.write_all(&bytes).await.unwrap();
        assert!(is_cut_off(&mut stream).await);
    }
    assert!(a.transport.call(BrokerId(2), b"x"[..].into(), SECOND).await.is_ok());
    assert_eq!(a.transport.peer_status(BrokerId(2)).unwrap().deaths, 0);
}

#[tokio::test(start_paused = true)]
async fn entries_are_asked_for_over_the_data_connection() {
    let network = MemoryNetwork::new();
    let (one, _two) = two(&network).await;
    let wait = Duration::from_secs(5);
    let request = |from, skip| FramesRequest { group: GroupId(7), from, to: 9, skip };
    let answer = one.transport.frames(BrokerId(2), request(3, 0), wait).await.unwrap();
    assert_eq!((answer.len(), answer[0]), (FRAMES_BYTES_MAX, 7));
    assert_eq!(one.transport.frames(BrokerId(2), request(3, 1 << 19), wait).await.unwrap().len(), FRAMES_BYTES_MAX / 2);
    let refused = one.transport.frames(BrokerId(2), request(404, 0), wait).await.unwrap_err();
    assert!(matches!(&refused, CallError::Refused(BrokerId(2), why) if why.contains("404")), "{refused}");
}
