//! How openraft behaves where Pontoon leans on it hardest, kept as tests (issue 2, part 1). On a log in memory and
//! direct calls (`memory`), so that what fails here is a misunderstanding of openraft, not of our own log.

#![allow(clippy::unwrap_used)] // a test that unwraps says what it expected by failing there

mod memory;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use memory::{Memory, Mesh, config, group, leader, write};
use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::{TransferLeaderRequest, VoteRequest};
use pontoon_raft::elections::choice::{Claim, choose};
use pontoon_raft::types::{BrokerId, GroupId, ReplicaHome, ReplicaId, TypeConfig, Vote, vote};
use tokio::time::{Instant, sleep, timeout};

async fn state_of(raft: &memory::MemoryRaft) -> (Vote, Option<pontoon_raft::types::LogId>) {
    raft.with_raft_state(|state| (*state.vote_ref(), state.log_ids.last().copied())).await.unwrap()
}

/// (a)
#[tokio::test(start_paused = true)]
async fn a_follower_behind_the_purge_point_ends_with_exactly_the_retained_records() {
    let mesh = Mesh::default();
    let memories = group(&mesh, 1, 3, &config()).await;
    let raft = mesh.raft(1, 1);
    mesh.isolate(3, 3);
    for n in 0..100 {
        write(&raft, &format!("record {n}")).await.unwrap();
    }
    // Index 0 is the membership, 1 the blank, so record n stands at index n + 2.
    let boundary = 51;
    for id in [1, 2] {
        memories[id - 1].set_boundary(boundary);
        mesh.raft(1, id as u64).trigger().snapshot().await.unwrap();
        let raft = mesh.raft(1, id as u64);
        raft.wait(Some(Duration::from_secs(5)))
            .metrics(|m| m.purged.is_some_and(|purged| purged.index == boundary), "purged")
            .await
            .unwrap();
    }
    assert_eq!(memories[0].records().len(), 50);
    mesh.heal();
    write(&raft, "record 100").await.unwrap();
    let follower = mesh.raft(1, 3);
    follower.wait(Some(Duration::from_secs(10))).applied_index(Some(102), "caught up").await.unwrap();
    assert_eq!(memories[2].records(), memories[0].records());
    assert_eq!(memories[2].purged_index(), Some(boundary));
    // The offsets go on where the snapshot said.
    let payloads: Vec<_> = (50..=100).map(|n| format!("record {n}").into_bytes()).collect();
    assert_eq!(memories[2].records(), payloads);
}

/// (b)
#[tokio::test(start_paused = true)]
async fn a_replica_is_replaced_under_a_fresh_id_and_the_old_id_cannot_vote() {
    let mesh = Mesh::default();
    let memories = group(&mesh, 1, 3, &config()).await;
    let raft = mesh.raft(1, 1);
    write(&raft, "before").await.unwrap();
    // Broker 3 loses its disk: replica 3 is gone, replica 4 comes in its place, empty.
    mesh.remove(1, 3).shutdown().await.unwrap();
    let fresh = Memory::default();
    mesh.start(1, 4, 3, &fresh, &config()).await;
    let home = ReplicaHome { broker: BrokerId(3) };
    raft.add_learner(ReplicaId(4), home, false).await.unwrap();
    let voters: BTreeSet<_> = [1, 2, 4].map(ReplicaId).into();
    raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), false).await.unwrap();
    mesh.raft(1, 4)
        .wait(Some(Duration::from_secs(5)))
        .metrics(|m| m.last_applied.is_some(), "catches up")
        .await
        .unwrap();
    assert_eq!(fresh.records(), memories[0].records());

    // The old incarnation wakes up with its disk and wants to vote, and be voted for: nobody counts it.
    mesh.start(1, 3, 3, &memories[2], &config()).await;
    mesh.raft(1, 1).shutdown().await.unwrap();
    mesh.remove(1, 1);
    mesh.declare_dead(2, 1);
    mesh.declare_dead(3, 1);
    let old = mesh.raft(1, 3);
    for _ in 0..3 {
        old.trigger().elect(false).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    }
    assert_ne!(old.metrics().borrow_watched().state, openraft::ServerState::Leader);
    // With replica 1 gone, 2 needs 4: if 3 counted, cutting 4 off would still elect it.
    mesh.remove(1, 4).shutdown().await.unwrap();
    let survivor = mesh.raft(1, 2);
    for _ in 0..3 {
        survivor.trigger().elect(false).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    }
    assert_ne!(survivor.metrics().borrow_watched().state, openraft::ServerState::Leader);
    mesh.start(1, 4, 3, &fresh, &config()).await;
    survivor.trigger().elect(false).await.unwrap();
    leader(&mesh, 1, &[2, 4]).await;
}

/// What the survivors' brokers do after a death: exchange claims, choose, call `handle_transfer_leader`.
async fn elect_best_survivor(mesh: &Mesh, groups: impl Iterator<Item = u64>, survivors: &[u64]) {
    let elections = groups.map(|id| async move {
        let mut claims = BTreeMap::new();
        let mut votes = BTreeMap::new();
        for replica in survivors {
            let (vote, last) = state_of(&mesh.raft(id, *replica)).await;
            let replica = ReplicaId(*replica);
            let claim =
                Claim { group: GroupId(id), replica, vote: vote.into(), last: last.map(Into::into), able: true };
            claims.insert(replica, claim);
            votes.insert(replica, vote);
        }
        let voters = vec![[1, 2, 3].map(ReplicaId).into()];
        let Some(winner) = choose(&claims, &voters, 0) else { return };
        for replica in survivors {
            let request = TransferLeaderRequest::new(votes[&ReplicaId(*replica)], winner, None);
            mesh.raft(id, *replica).handle_transfer_leader(request).await.unwrap().unwrap();
        }
    });
    futures_util::future::join_all(elections).await;
}

/// (c)
#[tokio::test(start_paused = true)]
async fn several_hundred_groups_elect_their_best_survivors_at_once() {
    const GROUPS: u64 = 300;
    let mesh = Mesh::default();
    let config = config();
    let starts: Vec<_> = (1..=GROUPS).map(|id| group(&mesh, id, 3, &config)).collect();
    let memories = futures_util::future::join_all(starts).await;
    // Replica 2 misses the last record of every even group.
    for id in (2..=GROUPS).step_by(2) {
        mesh.raft(id, 1).wait(None).applied_index_at_least(Some(1), "leads").await.unwrap();
    }
    mesh.cut(1, 2);
    let writes = (2..=GROUPS).step_by(2).map(|id| {
        let raft = mesh.raft(id, 1);
        async move { write(&raft, "missed by 2").await.unwrap() }
    });
    futures_util::future::join_all(writes).await;
    mesh.isolate(1, 3);
    mesh.declare_dead(2, 1);
    mesh.declare_dead(3, 1);
    let begin = Instant::now();
    elect_best_survivor(&mesh, 1..=GROUPS, &[2, 3]).await;
    let leaders = (1..=GROUPS).map(|id| leader(&mesh, id, &[2, 3]));
    let leaders = timeout(Duration::from_secs(20), futures_util::future::join_all(leaders)).await.unwrap();
    assert!(begin.elapsed() < Duration::from_millis(1500), "openraft's own timers did it");
    for (id, leader) in (1..).zip(leaders) {
        let expected = if id % 2 == 0 { 3 } else { 2 };
        assert_eq!(leader, expected, "group {id}");
        let acknowledged = usize::from(id % 2 == 0);
        assert_eq!(memories[id as usize - 1][leader as usize - 1].records().len(), acknowledged);
    }
}

/// (c) One broken link between two brokers: the one that holds the leader for dead finds no company, and even a rash
/// forced candidate is refused by those who still hear the leader.
#[tokio::test(start_paused = true)]
async fn a_broken_link_does_not_flap_leadership() {
    let mesh = Mesh::default();
    group(&mesh, 1, 3, &config()).await;
    mesh.cut(1, 2);
    mesh.declare_dead(2, 1);
    // Only 2 claims: nobody is chosen, no term is raised.
    for _ in 0..5 {
        elect_best_survivor(&mesh, 1..=1, &[2]).await;
    }
    let (before, _) = state_of(&mesh.raft(1, 3)).await;
    assert_eq!(before.leader_id.voted_for, ReplicaId(1));
    // openraft's own fallback at 2 asks first (pre-vote) and is refused by 3, who hears the leader.
    sleep(Duration::from_millis(4000)).await;
    for n in 0..5 {
        write(&mesh.raft(1, 1), &format!("{n}")).await.unwrap();
    }
    let (after, _) = state_of(&mesh.raft(1, 3)).await;
    assert_eq!(after, before, "leadership flapped");
    // A rash candidate that claims the right to skip the lease: 3 strips the flag, because its detector sees broker 1.
    let (own, _) = state_of(&mesh.raft(1, 2)).await;
    let request = TransferLeaderRequest::new(own, ReplicaId(2), None);
    mesh.raft(1, 2).handle_transfer_leader(request).await.unwrap().unwrap();
    sleep(Duration::from_millis(300)).await;
    let (after, _) = state_of(&mesh.raft(1, 3)).await;
    assert_eq!(after, before, "a candidate's word was enough to depose a leader");
}

/// Leads a replica out of a stuck leadership: a vote for the transferee one term up makes it step down (the vote is one
/// it would have granted anyway), then it runs with the right to skip its own lease.
async fn undo_transfer(raft: &memory::MemoryRaft, to: ReplicaId) {
    let (own, last) = state_of(raft).await;
    let up: Vote = vote(own.leader_id.term + 1, to, false);
    let request = VoteRequest::<TypeConfig> { vote: up, last_log_id: last, leadership_transfer: true };
    assert!(raft.vote(request).await.unwrap().vote_granted);
    let request = TransferLeaderRequest::new(up, *raft.node_id(), None);
    raft.handle_transfer_leader(request).await.unwrap().unwrap();
}

/// (d)
#[tokio::test(start_paused = true)]
async fn a_transfer_that_fails_is_undone() {
    let mesh = Mesh::default();
    group(&mesh, 1, 3, &config()).await;
    let raft = mesh.raft(1, 1);
    mesh.refuse_transfers(true);
    raft.trigger().transfer_leader(ReplicaId(2)).await.unwrap();
    // The leader refuses everything from now on. Nothing in openraft ends that: not asking it to run, ...
    let error = write(&raft, "refused").await.unwrap_err();
    assert!(error.contains("forward"), "{error}");
    raft.trigger().elect(false).await.unwrap();
    sleep(Duration::from_millis(300)).await;
    write(&raft, "refused").await.unwrap_err();
    // ... nor a second transfer that is given up. Stepping through a higher term does.
    undo_transfer(&raft, ReplicaId(2)).await;
    assert_eq!(leader(&mesh, 1, &[1]).await, 1);
    write(&raft, "accepted").await.unwrap();
    let (own, _) = state_of(&raft).await;
    assert_eq!(own.leader_id.term, 3, "two terms up: the stepping stone, and the new leadership");
}

#[tokio::test(start_paused = true)]
async fn a_transfer_that_succeeds_takes_milliseconds() {
    let mesh = Mesh::default();
    group(&mesh, 1, 3, &config()).await;
    for to in [2, 3, 1] {
        let from = leader(&mesh, 1, &[1, 2, 3]).await;
        mesh.raft(1, from).trigger().transfer_leader(ReplicaId(to)).await.unwrap();
        assert_eq!(leader(&mesh, 1, &[to]).await, to);
        write(&mesh.raft(1, to), "after").await.unwrap();
    }
}

/// (R1) A restarted leader would reuse (term, index) with other bytes if it led again without an election.
#[tokio::test(start_paused = true)]
async fn a_restarted_leader_does_not_lead_without_an_election() {
    let mesh = Mesh::default();
    let memories = group(&mesh, 1, 3, &config()).await;
    let (before, _) = state_of(&mesh.raft(1, 1)).await;
    assert!(memories[0].vote().unwrap().committed);
    mesh.isolate(1, 3);
    mesh.remove(1, 1).shutdown().await.unwrap();
    let raft = mesh.start(1, 1, 1, &memories[0], &config()).await;
    sleep(Duration::from_millis(500)).await;
    let metrics = raft.metrics().borrow_watched().clone();
    assert_ne!(metrics.state, openraft::ServerState::Leader);
    assert_eq!(metrics.current_leader, None, "its own vote of the last life must not make it a leader");
    write(&raft, "refused").await.unwrap_err();
    mesh.heal();
    // Its old vote cannot be transferred from (openraft holds it for changed): the way up is through a higher term.
    undo_transfer(&raft, ReplicaId(2)).await;
    assert_eq!(leader(&mesh, 1, &[1]).await, 1);
    assert!(state_of(&raft).await.0.leader_id.term > before.leader_id.term);
}

/// A leader whose answers are lost keeps its followers' leases alive; after its own lease it must fall silent, so that
/// they can elect (openraft #2080).
#[tokio::test(start_paused = true)]
async fn a_leader_that_hears_nobody_falls_silent() {
    let mesh = Mesh::default();
    let fast = openraft::Config {
        heartbeat_interval: 50,
        election_timeout_min: 300,
        election_timeout_max: 600,
        quorum_loss_probe_interval: Some(1200),
        ..config()
    };
    group(&mesh, 1, 3, &fast).await;
    mesh.cut_replies(1, 2);
    mesh.cut_replies(1, 3);
    let new = leader(&mesh, 1, &[2, 3]).await;
    write(&mesh.raft(1, new), "under the new leader").await.unwrap();
}

/// A dead peer must not make replication spin: openraft sleeps its back-off inside the input stream, so a network that
/// fails before polling it is called again at once. The sequential fallback polls it.
#[tokio::test(start_paused = true)]
async fn a_dead_peer_does_not_make_replication_spin() {
    let mesh = Mesh::default();
    group(&mesh, 1, 3, &config()).await;
    mesh.remove(1, 3).shutdown().await.unwrap();
    write(&mesh.raft(1, 1), "pending for 3").await.unwrap();
    sleep(Duration::from_millis(300)).await;
    let before = mesh.calls();
    sleep(Duration::from_millis(1000)).await;
    let calls = mesh.calls() - before;
    assert!(calls < 100, "{calls} calls in a second to two peers, one of them dead");
}

/// O8: what openraft refuses was never appended.
#[tokio::test(start_paused = true)]
async fn a_refused_write_was_never_appended() {
    let mesh = Mesh::default();
    let memories = group(&mesh, 1, 3, &config()).await;
    write(&mesh.raft(1, 2), "to a follower").await.unwrap_err();
    mesh.isolate(1, 3);
    // Within its lease an isolated leader takes the write: it stands in its log, unacknowledged. After the lease it
    // refuses, and the log does not grow.
    let raft = mesh.raft(1, 1);
    let pending = tokio::spawn(async move { write(&raft, "within the lease").await });
    sleep(Duration::from_millis(3500)).await;
    let error = write(&mesh.raft(1, 1), "after the lease").await.unwrap_err();
    assert!(error.contains("forward request to: None"), "{error}");
    assert!(!pending.is_finished());
    assert_eq!(memories[0].records().len(), 1);
    assert_eq!(memories[1].records().len(), 0);
}

/// openraft #1802: two of five voters are no majority, whatever was acknowledged before.
#[tokio::test(start_paused = true)]
async fn two_of_five_voters_commit_nothing() {
    let mesh = Mesh::default();
    group(&mesh, 1, 5, &config()).await;
    write(&mesh.raft(1, 1), "committed").await.unwrap();
    for gone in [3, 4, 5] {
        mesh.isolate(gone, 5);
    }
    let committed = |id| mesh.raft(1, id).metrics().borrow_watched().cluster_committed.map(|id| id.index);
    let before = committed(1);
    let raft = mesh.raft(1, 1);
    let pending = tokio::spawn(async move { write(&raft, "on two").await });
    mesh.raft(1, 2).wait(Some(Duration::from_secs(5))).log_index_at_least(Some(3), "on 2").await.unwrap();
    sleep(Duration::from_millis(500)).await;
    assert!(!pending.is_finished());
    assert_eq!(committed(1), before);
    mesh.heal();
    timeout(Duration::from_secs(10), pending).await.unwrap().unwrap().unwrap();
}

/// openraft #1828: a learner behind a log that is purged to its very end has nothing to be sent but the snapshot.
#[tokio::test(start_paused = true)]
async fn a_learner_behind_a_fully_purged_log_catches_up() {
    let mesh = Mesh::default();
    let memories = group(&mesh, 1, 1, &config()).await;
    let raft = mesh.raft(1, 1);
    let mut last = 0;
    for n in 0..10 {
        last = write(&raft, &format!("record {n}")).await.unwrap();
    }
    memories[0].set_boundary(last);
    raft.trigger().snapshot().await.unwrap();
    let purged = |m: &openraft::RaftMetrics<TypeConfig>| m.purged.is_some_and(|purged| purged.index == last);
    raft.wait(Some(Duration::from_secs(5))).metrics(purged, "purged").await.unwrap();
    let fresh = Memory::default();
    mesh.start(1, 2, 2, &fresh, &config()).await;
    raft.add_learner(ReplicaId(2), ReplicaHome { broker: BrokerId(2) }, false).await.unwrap();
    write(&raft, "after").await.unwrap();
    mesh.raft(1, 2).wait(Some(Duration::from_secs(10))).applied_index_at_least(Some(last + 2), "there").await.unwrap();
    assert_eq!(fresh.records(), memories[0].records());
    assert_eq!(fresh.records(), ["after"]);
}
