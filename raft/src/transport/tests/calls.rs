//! Single calls: answers, failures, and what is not here.

use super::*;

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
    assert_eq!(answer.unwrap(), (b.transport.incarnation(), (&b"1:hello"[..]).into()));
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
    assert_eq!(call(1, b"me").await.unwrap().1, &b"1:me"[..]);
    assert!(matches!(call(1, b"hang").await, Err(CallError::NoAnswer(..))));
}
