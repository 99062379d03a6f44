//! Who is alive, who is dead, and who only moved.

use super::*;

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
