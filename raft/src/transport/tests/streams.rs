//! Replication: pipelined, in order, across lost connections and slow groups.

use super::*;

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
        // What was sent again is the same from some index on, beside what was still on its way; nothing is left out.
        let mut next = 0;
        for index in indexes {
            assert!(*index <= next, "{index} came before {next}");
            next = next.max(index + 1);
        }
        assert_eq!(next, 300);
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

/// openraft takes an answer for one to every request that ends where it ends, and for as young as the youngest.
#[tokio::test(start_paused = true)]
async fn an_answer_waits_for_that_to_a_request_without_entries_behind_it() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    let mut group = to(&a, 14, 2).await;
    let (requests, mut input) = tokio::sync::mpsc::unbounded_channel();
    let input = futures_util::stream::poll_fn(move |cx| input.poll_recv(cx));
    let mut answers = group.stream_append(input, option()).await.unwrap();
    for index in 0..2 {
        requests.send(append(index, Bytes::new())).unwrap();
    }
    for _ in 0..2 {
        let committed = Some(log_id(1, 1));
        let notice = AppendEntriesRequest { prev_log_id: committed, entries: Vec::new(), ..append(2, Bytes::new()) };
        requests.send(AppendEntriesRequest { leader_commit: committed, ..notice }).unwrap();
    }
    let silent =
        async |answers: &mut AppendedStream<'_>| tokio::time::timeout(SECOND / 10, answers.next()).await.is_err();
    assert!(silent(&mut answers).await);
    b.groups.gate.notify_one();
    assert_eq!(answers.next().await.unwrap().unwrap().unwrap(), Some(log_id(1, 0)));
    // Of the second entry, and of the first of two that only say what is committed.
    for _ in 0..2 {
        b.groups.gate.notify_one();
        assert!(silent(&mut answers).await);
    }
    b.groups.gate.notify_one();
    assert_eq!(answers.next().await.unwrap().unwrap().unwrap(), Some(log_id(1, 1)));
    requests.send(append(2, Bytes::new())).unwrap();
    b.groups.gate.notify_one();
    assert_eq!(answers.next().await.unwrap().unwrap().unwrap(), Some(log_id(1, 2)));
    drop(requests);
    assert!(answers.next().await.is_none());
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

/// Each group tries by itself: with thousands of them, what is known to be dead is tried at leisure.
#[tokio::test(start_paused = true)]
async fn a_broker_that_is_dead_is_tried_seldom_and_any_other_soon() {
    let network = MemoryNetwork::new();
    let (a, _b) = two(&network).await;
    let mut waits = to(&a, 1, 2).await.backoff().unwrap();
    let mut next = || waits.next().unwrap();
    assert!([next(), next()].iter().all(|wait| *wait < Duration::from_millis(100)));
    network.crash("b2");
    until(&a, 2, Liveness::Dead).await;
    assert!([next(), next()].iter().all(|wait| *wait >= SECOND));
    let _b = start(&network, 2).await;
    until(&a, 2, Liveness::Alive).await;
    assert!((0..100).all(|_| next() < SECOND));
}

/// A log of entries of a MiB each, where everything is far behind the end.
struct Far;

impl super::catch_up::Backlog for Far {
    fn bytes_behind(&self, index: u64) -> u64 {
        (1 << 40) - (index << 20)
    }

    fn commits_wait(&self) -> bool {
        false
    }
}

/// A new leader looks for its followers' places with one small request a stream, and nothing is committed before it has found them.
#[tokio::test(start_paused = true)]
async fn who_looks_for_a_followers_place_waits_for_no_turn_to_catch_up() {
    let network = MemoryNetwork::new();
    let (a, _b) = two(&network).await;
    let mut groups = a.transport.raft_network(GroupId(1000)).paced_by(Arc::new(Far));
    let mut group = groups.new_client(ReplicaId(2), &ReplicaHome { broker: BrokerId(2) }).await;
    let search = async {
        for index in 0..100 {
            let probe = futures_util::stream::iter([append(index, vec![1; 10].into())]);
            assert_eq!(group.stream_append(probe, option()).await.unwrap().count().await, 1);
        }
    };
    tokio::time::timeout(SECOND, search).await.expect("they wait for turns");
}

/// The leader of very many groups whose followers are far behind holds in memory what is on its way, not a request of each.
#[tokio::test(start_paused = true)]
async fn streams_that_wait_for_their_turn_to_catch_up_have_taken_nothing() {
    let network = MemoryNetwork::new();
    let (a, _b) = two(&network).await;
    let taken = Arc::new(AtomicUsize::new(0));
    let streams = (0..200).map(|group| {
        let (a, taken) = (&a, taken.clone());
        async move {
            let mut groups = a.transport.raft_network(GroupId(1000 + group)).paced_by(Arc::new(Far));
            let mut group = groups.new_client(ReplicaId(2), &ReplicaHome { broker: BrokerId(2) }).await;
            let requests = (0..).map(move |index| {
                taken.fetch_add(usize::from(index > 1), Ordering::Relaxed);
                append(index, vec![1; if index <= 1 { 10 } else { 1 << 20 }].into())
            });
            group.stream_append(futures_util::stream::iter(requests), option()).await.unwrap().count().await
        }
    });
    let all = futures_util::future::join_all(streams);
    assert!(tokio::time::timeout(SECOND, all).await.is_err());
    let taken = taken.load(Ordering::Relaxed);
    let may = RaftConfig::default().catch_up_bytes_per_second as usize >> 20;
    assert!((may / 2..=may + 4).contains(&taken), "{taken} MiB were taken in a second, of {may} that may be sent");
}
