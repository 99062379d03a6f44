//! What goes beside replication: votes, heartbeats, snapshots.

use super::*;

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
    for (replica, may) in [(7, Some(true)), (8, Some(false)), (404, None)] {
        let to = Target { group: GroupId(1), replica: ReplicaId(replica) };
        assert_eq!(a.transport.may_lead(BrokerId(2), to, SECOND).await.ok(), may);
    }
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
