//! Groups of three brokers under failures, on a disk and a network in memory (`cluster`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use openraft::ChangeMembers;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, unconstrained};
use tokio::time::{Instant, sleep, timeout};

use crate::config::RaftConfig;
use crate::disk::Disk;
use crate::disk::sim::{ENOSPC, Fault, OpKind, SimDisk};
use crate::error::ProposeError;
use crate::raft_group::RaftGroup;
use crate::raft_groups::door::Door;
use crate::raft_groups::{Former, GroupEvent, LIFECYCLE_LOCKS, openraft_config};
use crate::transport::{PeerStatus, RaftService, Target, TransferLeaderRequest, VoteRequest};
use crate::types::{Appended, BrokerId, GroupId, Outcome, ReplicaHome, ReplicaId, vote};

mod catch_up;
mod cluster;
mod elections;
mod retention;
mod rot;
mod survivor;

use cluster::{Cluster, config, host, offset, propose};

/// Shorter than openraft's own fallback (4 s): what happened within this was not left to its timers.
const PROMPT: Duration = Duration::from_secs(3);

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("record {n}")).collect()
}

/// Of which some hundred fill several segments of 4 KiB.
fn long_names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("record {n} {}", "x".repeat(50))).collect()
}

async fn write_all(group: &RaftGroup, payloads: &[String]) {
    for payload in payloads {
        propose(group, payload).await.unwrap();
    }
}

/// Until a replica has given back the segments that its newest snapshot covers.
async fn purged(group: &RaftGroup) {
    let purged = async {
        while group.log().log_start_offset().0 == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), purged).await.unwrap();
}

/// Writes so much that brokers 1 and 2 no longer have the beginning of it: who has not, needs a snapshot.
async fn write_and_purge(cluster: &Cluster, group: &RaftGroup) -> Vec<String> {
    let all = long_names(300);
    write_all(group, &all).await;
    for broker in [1, 2] {
        let group = cluster.group(broker, 1);
        group.snapshot(200).await.unwrap();
        purged(&group).await;
    }
    all
}

#[tokio::test(start_paused = true)]
async fn a_proposal_is_committed_applied_and_replicated() {
    let cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    for n in 0..20 {
        assert_eq!(offset(&propose(&group, &format!("record {n}")).await.unwrap()), n);
    }
    let void = propose(&group, "void").await.unwrap();
    assert_eq!(void.outcome, Outcome::Void { verdict: Bytes::from_static(b"turned down") });
    for broker in 1..=3 {
        cluster.shows(broker, 1, &names(20)).await;
    }
    let status = group.status();
    assert!(status.leading && !status.joint);
    assert_eq!(status.members.len(), 3);
    assert_eq!(status.leader.unwrap().broker, BrokerId(1));
}

/// Room is there for whoever asks, also for who comes after one that waited for it and has not yet been on a processor again.
#[tokio::test(start_paused = true)]
async fn a_proposal_that_waits_for_room_in_the_mailbox_is_not_overtaken() {
    let cluster = Cluster::start(1).await;
    let group = cluster.create(1).await;
    let call = |name: &str| Box::pin(unconstrained(group.propose(Bytes::copy_from_slice(name.as_bytes()), None)));
    let room = openraft_config(&config()).unwrap().api_channel_size.unwrap();
    // The core does not run in between: they fill its mailbox.
    let mut full: Vec<_> = (0..room).map(|n| call(&format!("record {n}"))).collect();
    assert!(full.iter_mut().all(|call| call.now_or_never().is_none()));
    let [mut first, mut given_up, mut second] = ["first", "given up", "second"].map(call);
    assert!([&mut first, &mut given_up, &mut second].into_iter().all(|call| call.now_or_never().is_none()));
    drop(given_up);
    for (n, call) in full.into_iter().enumerate() {
        assert_eq!(offset(&call.await.unwrap()), n as u64);
    }
    let mut third = call("third");
    assert!((&mut third).now_or_never().is_none());
    let calls = [first, second, third].map(|call| async { offset(&call.await.unwrap()) });
    assert_eq!(join_all(calls).await, [room, room + 1, room + 2]);
}

#[tokio::test(start_paused = true)]
async fn a_follower_refuses_and_names_the_leader() {
    let cluster = Cluster::start(3).await;
    cluster.create(1).await;
    cluster.leader(1, &[1, 2, 3]).await;
    let leader = Some((ReplicaId(11), BrokerId(1)));
    assert_eq!(propose(&cluster.group(2, 1), "no").await, Err(ProposeError::NotLeader { leader }));
    assert_eq!(cluster.group(2, 1).read_index().await, Err(ProposeError::NotLeader { leader }));
    assert_eq!(cluster.group(2, 1).transfer_leader(ReplicaId(12)).await, Err(ProposeError::NotLeader { leader }));
}

#[tokio::test(start_paused = true)]
async fn many_readers_share_a_read_index_and_see_what_was_written_before() {
    let cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    propose(&group, "record 0").await.unwrap();
    let reads = (0..200).map(|_| group.read_index());
    for read in futures_util::future::join_all(reads).await {
        read.unwrap();
    }
    assert_eq!(cluster.records(1, 1).await, names(1));
}

/// R2: a round that is under way may have begun before what a reader must see.
#[tokio::test(start_paused = true)]
async fn who_comes_while_a_read_index_is_under_way_waits_for_the_next_one() {
    let cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    propose(&group, "record 0").await.unwrap();
    cluster.isolate(1);
    let first = group.join_round();
    assert!(group.join_round().same_channel(&first), "it has not begun");
    sleep(Duration::from_millis(50)).await;
    let second = group.join_round();
    assert!(first.borrow().is_none(), "it is over");
    assert!(!second.same_channel(&first));
}

/// R2, of a leader that was frozen while others elected the next: answers to what it had sent before the read began are all it gets, and
/// requests it has not even sent yet must not make them look younger.
#[tokio::test(start_paused = true)]
async fn answers_from_before_a_read_index_do_not_confirm_it() {
    for (first, last) in [(2, 3), (3, 2)] {
        let cluster = Cluster::start(3).await;
        let group = cluster.create(1).await;
        propose(&group, "record 0").await.unwrap();
        sleep(Duration::from_millis(50)).await;
        for follower in [first, last] {
            cluster.network.cut(&host(follower), &host(1));
        }
        let written = tokio::spawn({
            let group = group.clone();
            async move { propose(&group, "record 1").await }
        });
        sleep(Duration::from_millis(20)).await;
        for follower in [first, last] {
            cluster.network.cut(&host(1), &host(follower));
        }
        let mut read = Box::pin(group.read_index());
        assert!(timeout(Duration::from_millis(20), &mut read).await.is_err());
        // One that has it already commits it, and both are to be told so.
        cluster.network.heal(&host(first), &host(1));
        written.await.unwrap().unwrap();
        assert!(timeout(Duration::from_millis(20), &mut read).await.is_err());
        cluster.network.heal(&host(last), &host(1));
        let confirmed = timeout(Duration::from_millis(200), &mut read).await;
        assert!(!matches!(confirmed, Ok(Ok(()))), "nobody has heard of this leader since the read began");
        cluster.network.heal_all();
    }
}

#[tokio::test(start_paused = true)]
async fn leadership_is_transferred_and_traffic_goes_on() {
    let cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    propose(&group, "record 0").await.unwrap();
    group.transfer_leader(ReplicaId(12)).await.unwrap();
    assert_eq!(cluster.leader(1, &[1, 2, 3]).await, 2);
    propose(&cluster.group(2, 1), "record 1").await.unwrap();
    // To a replica that was restarted and has nothing to append.
    cluster.group(2, 1).transfer_leader(ReplicaId(13)).await.unwrap();
    assert_eq!(cluster.leader(1, &[1, 2, 3]).await, 3);
    cluster.shows(1, 1, &names(2)).await;
}

#[tokio::test(start_paused = true)]
async fn leadership_is_transferred_to_a_replica_that_was_just_restarted() {
    let mut cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    write_all(&group, &names(2)).await;
    cluster.restart(2).await;
    cluster.leader(1, &[1, 2, 3]).await;
    sleep(Duration::from_secs(2)).await;
    let begin = Instant::now();
    cluster.group(1, 1).transfer_leader(ReplicaId(12)).await.unwrap();
    assert_eq!(cluster.leader(1, &[1, 2, 3]).await, 2);
    assert!(begin.elapsed() < Duration::from_millis(500));
}

/// R4: the announcement does not arrive; the leader would refuse everything for ever.
#[tokio::test(start_paused = true)]
async fn a_transfer_that_fails_is_undone_and_the_leader_serves_again() {
    let cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    propose(&group, "record 0").await.unwrap();
    cluster.partition(1, 2);
    let refused = group.transfer_leader(ReplicaId(12)).await;
    assert!(matches!(refused, Err(ProposeError::Unknown(_))), "{refused:?}");
    cluster.leader(1, &[1, 3]).await;
    propose(&group, "record 1").await.unwrap();
    cluster.network.heal_all();
    cluster.shows(2, 1, &names(2)).await;
}

/// The core waits for its disk, and has the transfer still before it when time is up.
#[tokio::test(start_paused = true)]
async fn a_transfer_that_a_busy_core_comes_to_late_is_undone_too() {
    let cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    propose(&group, "record 0").await.unwrap();
    let term = group.status().term;
    let held = group.log().hold_appends().await;
    let waits = tokio::spawn({
        let group = group.clone();
        async move { propose(&group, "record 1").await }
    });
    sleep(Duration::from_millis(10)).await;
    let transfer = tokio::spawn({
        let group = group.clone();
        async move { group.transfer_leader(ReplicaId(12)).await }
    });
    sleep(Duration::from_millis(10)).await;
    cluster.partition(1, 2);
    sleep(Duration::from_secs(3)).await;
    assert!(!transfer.is_finished(), "it may yet happen");
    drop(held);
    let begin = Instant::now();
    assert!(transfer.await.unwrap().is_err());
    let leader = cluster.leader(1, &[1, 3]).await;
    propose(&cluster.group(leader, 1), "record 2").await.unwrap();
    let config = config();
    assert!(begin.elapsed() < config.election_timeout, "the followers' timers were waited for");
    assert!(cluster.group(leader, 1).status().term > term);
    drop(waits);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_runs_by_force_ends_the_leadership_and_no_core() {
    let cluster = Cluster::start(3).await;
    cluster.create(1).await;
    for round in 0..4 {
        let leader = cluster.leader(1, &[1, 2, 3]).await;
        for other in (1..=3).filter(|broker| *broker != leader) {
            let group = cluster.group(other, 1);
            let standing = group.standing().await.unwrap();
            group.step_through(&standing).await;
        }
        let leader = cluster.leader(1, &[1, 2, 3]).await;
        propose(&cluster.group(leader, 1), &format!("{round}")).await.unwrap();
        for broker in 1..=3 {
            assert_eq!(cluster.group(broker, 1).status().stopped, None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clean_stop_spreads_its_leaderships() {
    let mut cluster = Cluster::start(3).await;
    for id in 1..=30 {
        cluster.create(id).await;
    }
    cluster.brokers[&1].groups.hand_over_all(Duration::from_secs(10)).await;
    let mut led = [0; 4];
    for id in 1..=30 {
        led[cluster.leader(id, &[2, 3]).await as usize] += 1;
    }
    assert_eq!(led[2] + led[3], 30);
    assert!(led[2] >= 10 && led[3] >= 10, "{led:?}");
    cluster.kill(1).await;
}

/// A leader that is cut off refuses, at the latest after its lease; what it acknowledged before is kept by its successor.
#[tokio::test(start_paused = true)]
async fn an_isolated_leader_refuses_and_nothing_acknowledged_is_lost() {
    let cluster = Cluster::start(3).await;
    let old = cluster.create(1).await;
    write_all(&old, &names(3)).await;
    cluster.isolate(1);
    // Within its lease it takes one more: never acknowledged.
    let limbo = tokio::spawn({
        let old = old.clone();
        async move { propose(&old, "limbo").await }
    });
    // A read that would claim an end is not confirmed.
    let read = old.read_index().await;
    assert!(matches!(read, Err(ProposeError::NotLeader { .. })), "{read:?}");
    let new = cluster.leader(1, &[2, 3]).await;
    propose(&cluster.group(new, 1), "record 3").await.unwrap();
    sleep(Duration::from_secs(20)).await;
    let late = propose(&old, "late").await;
    assert!(matches!(late, Err(ProposeError::NotLeader { .. })), "{late:?}");
    cluster.network.heal_all();
    let verdict = timeout(Duration::from_secs(30), limbo).await.unwrap().unwrap();
    assert!(matches!(verdict, Err(ProposeError::Unknown(_))), "{verdict:?}");
    for broker in 1..=3 {
        cluster.shows(broker, 1, &names(4)).await;
    }
}

/// A leader whose quorum was gone for longer than its lease is silent by design (openraft #2080); when the quorum is back
/// it does not wait that out.
#[tokio::test(start_paused = true)]
async fn a_leader_serves_again_promptly_when_its_quorum_is_back() {
    let mut cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    propose(&group, "record 0").await.unwrap();
    let disks = [cluster.kill(2).await, cluster.kill(3).await];
    sleep(Duration::from_secs(30)).await;
    let refused = propose(&group, "no").await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
    let begin = Instant::now();
    for (broker, disk) in (2..).zip(disks) {
        cluster.boot(broker, disk).await;
    }
    let written = async {
        loop {
            let leader = cluster.leader(1, &[1, 2, 3]).await;
            if propose(&cluster.group(leader, 1), "record 1").await.is_ok() {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PROMPT, written).await.unwrap();
    assert!(begin.elapsed() < PROMPT, "it took {:?}", begin.elapsed());
    cluster.shows(2, 1, &names(2)).await;
}

/// The winner dies as well, before or after it took office.
#[tokio::test(start_paused = true)]
async fn a_second_death_during_an_election_is_survived() {
    let mut cluster = Cluster::start(5).await;
    for id in 1..=10 {
        let group = cluster.create(id).await;
        write_all(&group, &names(2)).await;
    }
    cluster.kill(1).await;
    sleep(Duration::from_millis(15)).await;
    cluster.kill(2).await;
    let begin = Instant::now();
    for id in 1..=10 {
        let leader = cluster.leader(id, &[3, 4, 5]).await;
        propose(&cluster.group(leader, id), "record 2").await.unwrap();
        cluster.shows(leader, id, &names(3)).await;
    }
    assert!(begin.elapsed() < PROMPT, "it took {:?}", begin.elapsed());
}

/// Producers that retry what was refused, while brokers are killed and restarted in turn: everything acknowledged is
/// there once and in order, on every broker.
#[tokio::test(start_paused = true)]
async fn nothing_acknowledged_is_lost_while_brokers_die_in_turn() {
    let mut cluster = Cluster::start(3).await;
    for id in 1..=3 {
        cluster.create(id).await;
    }
    let mut acknowledged = vec![Vec::new(); 4];
    let mut unknown = Vec::new();
    for round in 0..12u32 {
        let victim = 1 + round % 3;
        for n in 0..10 {
            for id in 1..=3u64 {
                let payload = format!("{round}.{n}");
                let leader = cluster.leader(id, &[1, 2, 3]).await;
                let group = cluster.group(leader, id);
                if n == 9 && leader == victim {
                    // In flight while its leader dies.
                    unknown.push(tokio::spawn(async move { (id, payload.clone(), propose(&group, &payload).await) }));
                } else if propose(&group, &payload).await.is_ok() {
                    acknowledged[id as usize].push(payload);
                }
            }
        }
        let disk = cluster.kill(victim).await;
        for in_flight in unknown.drain(..) {
            let (id, payload, answer) = in_flight.await.unwrap();
            if answer.is_ok() {
                acknowledged[id as usize].push(payload);
            }
        }
        cluster.boot(victim, disk).await;
    }
    for id in 1..=3 {
        let leader = cluster.leader(id, &[1, 2, 3]).await;
        propose(&cluster.group(leader, id), "end").await.unwrap();
        let all = cluster.records(leader, id).await;
        let mut rest = all.iter();
        for payload in &acknowledged[id as usize] {
            assert!(rest.any(|there| there == payload), "group {id}: {payload} is lost or out of order: {all:?}");
        }
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len(), "something is there twice");
        for broker in 1..=3 {
            cluster.shows(broker, id, &all).await;
        }
    }
}

/// R3, at the receiver: a candidate's word alone does not skip the lease of a leader that this broker sees.
#[tokio::test(start_paused = true)]
async fn a_lease_is_skipped_only_on_the_receivers_own_evidence() {
    let mut cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    propose(&group, "record 0").await.unwrap();
    cluster.leader(1, &[1, 2, 3]).await;
    let receiver = cluster.group(3, 1);
    let standing = receiver.standing().await.unwrap();
    let door = Door::new(Arc::downgrade(&cluster.brokers[&3].groups.hosted));
    let to = Target { group: GroupId(1), replica: ReplicaId(13) };
    let request = |term: u64| VoteRequest {
        vote: vote(term, ReplicaId(12), false),
        last_log_id: standing.last,
        leadership_transfer: true,
    };
    let term = standing.vote.leader_id.term;
    let refused = door.vote(BrokerId(2), to, request(term + 1)).await.unwrap();
    assert!(!refused.vote_granted);
    assert_eq!(receiver.standing().await.unwrap().vote, standing.vote, "it follows whom it followed");
    // An announcement from another broker than the leader's is none.
    let announcement = TransferLeaderRequest::new(standing.vote, ReplicaId(12), standing.last);
    assert!(door.transfer_leader(BrokerId(2), to, announcement.clone()).await.is_err());
    assert!(!door.vote(BrokerId(2), to, request(term + 1)).await.unwrap().vote_granted);
    // The leader's own is, and so is its death.
    door.transfer_leader(BrokerId(1), to, announcement).await.unwrap().unwrap();
    assert!(door.vote(BrokerId(2), to, request(term + 1)).await.unwrap().vote_granted);
    let leader = cluster.leader(1, &[1, 2, 3]).await;
    let (witness, other) = if leader == 3 { (2, 1) } else { (3, if leader == 1 { 2 } else { 1 }) };
    cluster.kill(leader).await;
    let receiver = cluster.group(witness, 1);
    let standing = receiver.standing().await.unwrap();
    let door = Door::new(Arc::downgrade(&cluster.brokers[&witness].groups.hosted));
    let request = VoteRequest {
        vote: vote(standing.vote.leader_id.term + 5, ReplicaId(10 + u64::from(other)), false),
        last_log_id: standing.last,
        leadership_transfer: true,
    };
    let to = Target { group: GroupId(1), replica: ReplicaId(10 + u64::from(witness)) };
    assert!(door.vote(BrokerId(other), to, request).await.unwrap().vote_granted);
}

/// J18: a leader whose disk does not come back with a round gives its leadership to one whose disk does.
#[tokio::test(start_paused = true)]
async fn a_stalled_disk_gives_leadership_away() {
    let cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    propose(&group, "record 0").await.unwrap();
    cluster.brokers[&1].disk.slow_syncs("journal", Duration::from_secs(20));
    propose(&group, "record 1").await.unwrap();
    let leader = timeout(Duration::from_secs(10), cluster.leader(1, &[2, 3])).await.unwrap();
    let begin = Instant::now();
    propose(&cluster.group(leader, 1), "record 2").await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1), "the stalled disk is not waited for");
}

/// R3: 2 does not hear 1, but 3 does. 2 holds 1 dead, and must not depose it for the others.
#[tokio::test(start_paused = true)]
async fn a_one_way_cut_does_not_flap_leadership() {
    let cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    propose(&group, "record 0").await.unwrap();
    let term = group.status().term;
    cluster.cut(1, 2);
    for n in 1..30 {
        sleep(Duration::from_secs(1)).await;
        propose(&group, &format!("record {n}")).await.unwrap();
    }
    assert_eq!(group.status().term, term, "leadership flapped");
    cluster.network.heal_all();
    sleep(Duration::from_secs(15)).await;
    cluster.shows(2, 1, &names(30)).await;
    assert_eq!(group.status().term, term, "leadership flapped when the link came back");
}

#[tokio::test(start_paused = true)]
async fn every_waits_for_every_voter() {
    let mut cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    let appended = propose(&group, "record 0").await.unwrap();
    group.await_every(appended.index, appended.term, Duration::from_secs(5)).await.unwrap();
    for broker in 1..=3 {
        assert!(cluster.group(broker, 1).status().last_index >= Some(appended.index));
    }
    let disk = cluster.kill(3).await;
    let appended = propose(&group, "record 1").await.unwrap();
    let short = group.await_every(appended.index, appended.term, Duration::from_secs(2)).await;
    assert!(matches!(&short, Err(ProposeError::Unknown(why)) if why.contains("13")), "{short:?}");
    let waiting = tokio::spawn({
        let (group, appended) = (group.clone(), appended.clone());
        async move { group.await_every(appended.index, appended.term, Duration::from_secs(60)).await }
    });
    cluster.boot(3, disk).await;
    waiting.await.unwrap().unwrap();
    let foreign = group.await_every(appended.index, appended.term + 1, Duration::from_secs(1)).await;
    assert!(matches!(foreign, Err(ProposeError::Unknown(_))));
}

/// O9: a commit does not imply the leader's own fsync.
#[tokio::test(start_paused = true)]
async fn every_waits_for_the_leaders_own_disk_too() {
    let cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    propose(&group, "record 0").await.unwrap();
    // Less than what gives leadership away.
    cluster.brokers[&1].disk.slow_syncs("journal", Duration::from_millis(800));
    let Appended { index, term, .. } = propose(&group, "record 1").await.unwrap();
    let early = group.await_every(index, term, Duration::from_millis(100)).await;
    assert!(matches!(&early, Err(ProposeError::Unknown(why)) if why.contains("11")), "{early:?}");
    group.await_every(index, term, Duration::from_secs(10)).await.unwrap();
}

/// R9: the old incarnation's id never comes back; the new one starts empty and catches up.
#[tokio::test(start_paused = true)]
async fn a_lost_replica_is_replaced_under_a_new_id() {
    let mut cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    write_all(&group, &names(10)).await;
    cluster.kill(3).await;
    cluster.boot(3, SimDisk::new(99)).await;
    let fresh = cluster.brokers[&3].groups.create(GroupId(1), ReplicaId(14), Former::Delete).await.unwrap();
    group.add_learner(ReplicaId(14), ReplicaHome { broker: BrokerId(3) }).await.unwrap();
    // Repeating it changes nothing.
    group.add_learner(ReplicaId(14), ReplicaHome { broker: BrokerId(3) }).await.unwrap();
    group.change_voters(vec![ReplicaId(11), ReplicaId(12), ReplicaId(14)]).await.unwrap();
    let status = group.status();
    assert!(!status.joint);
    assert_eq!(status.members.keys().map(|id| id.0).collect::<Vec<_>>(), [11, 12, 14]);
    cluster.shows(3, 1, &names(10)).await;
    assert_eq!(fresh.replica(), ReplicaId(14));
    // It counts: with 2 gone, 1 and the new one commit.
    cluster.kill(2).await;
    propose(&group, "record 10").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_to_go_hands_over_first() {
    let cluster = Cluster::start(4).await;
    let group = cluster.create(1).await;
    let stay = vec![ReplicaId(12), ReplicaId(13), ReplicaId(14)];
    let Err(ProposeError::NotLeader { leader: Some((to, broker)) }) = group.change_voters(stay.clone()).await else {
        panic!("a leader removed itself");
    };
    assert!(stay.contains(&to));
    cluster.leader(1, &[2, 3, 4]).await;
    cluster.group(broker.0, 1).change_voters(stay.clone()).await.unwrap();
    let members: Vec<_> = cluster.group(broker.0, 1).status().members.into_keys().collect();
    assert_eq!(members, stay);
}

/// A change whose second step failed, under a leader that stays: no new one comes to finish it.
#[tokio::test(start_paused = true)]
async fn a_change_left_half_way_is_finished_by_the_leader_that_left_it() {
    let cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    group.change_voters(vec![ReplicaId(11)]).await.unwrap();
    group.add_learner(ReplicaId(12), ReplicaHome { broker: BrokerId(2) }).await.unwrap();
    // The first step waits for 12, and whoever would take the second is gone when it comes.
    cluster.partition(1, 2);
    let raft = group.raft();
    let voters = ChangeMembers::ReplaceAllVoters([ReplicaId(11), ReplicaId(12)].into());
    let change = tokio::spawn(async move { raft.change_membership(voters, false).await });
    while !group.status().joint {
        sleep(Duration::from_millis(1)).await;
    }
    change.abort();
    cluster.network.heal_all();
    propose(&group, "record 0").await.unwrap();
    assert!(group.status().joint, "nobody has taken the second step");
    group.finish_change().await.unwrap();
    let status = group.status();
    assert!(!status.joint && status.members.values().all(|member| member.voter), "{status:?}");
    assert_eq!(status.members.into_keys().collect::<Vec<_>>(), [11, 12].map(ReplicaId));
    group.finish_change().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn of_membership_changes_asked_for_at_once_one_is_done_at_a_time() {
    let cluster = Cluster::start(5).await;
    let group = cluster.create(1).await;
    let sets: [Vec<_>; 3] = [[11, 12, 13], [11, 12, 14], [11, 13, 15]].map(|set| set.map(ReplicaId).to_vec());
    // While one is under way the others are told so; one that begins later may find its voters gone. Refused then, not joint.
    let changes = sets.clone().map(|voters| {
        let group = group.clone();
        async move { group.change_voters(voters).await }
    });
    let results = futures_util::future::join_all(changes).await;
    let done: Vec<_> = sets.iter().zip(&results).filter(|(_, result)| result.is_ok()).map(|(set, _)| set).collect();
    let status = group.status();
    assert!(!status.joint);
    let members: Vec<_> = status.members.into_keys().collect();
    assert!(done.contains(&&members), "{members:?} after {results:?}");
}

#[tokio::test(start_paused = true)]
async fn a_follower_behind_the_retention_boundary_catches_up_by_a_snapshot() {
    let cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    cluster.isolate(3);
    let all = write_and_purge(&cluster, &group).await;
    let start = group.log().log_start_offset().0 as usize;
    assert!(start > 0 && start <= 200, "{start}");
    cluster.network.heal_all();
    cluster.shows(3, 1, &all[start..]).await;
    assert_eq!(cluster.group(3, 1).log().log_start_offset().0 as usize, start);
    propose(&group, "after").await.unwrap();
}

/// `acks=leader` is told when the leader's own disk has it, and may lose that with the leader, but nothing else.
#[tokio::test(start_paused = true)]
async fn acks_leader_may_lose_only_what_no_majority_had() {
    let mut cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    write_all(&group, &names(3)).await;
    cluster.isolate(1);
    let (told, flushed) = oneshot::channel();
    let pending = tokio::spawn({
        let group = group.clone();
        async move { group.propose(Bytes::from_static(b"only here"), Some(told)).await }
    });
    let appended = timeout(Duration::from_secs(5), flushed).await.unwrap().unwrap();
    assert_eq!(offset(&appended), 3);
    assert!(!pending.is_finished(), "no majority has it");
    let new = cluster.leader(1, &[2, 3]).await;
    propose(&cluster.group(new, 1), "record 3").await.unwrap();
    let disk = cluster.kill(1).await;
    assert!(matches!(pending.await.unwrap(), Err(ProposeError::Unknown(_) | ProposeError::Stopped { .. })));
    cluster.network.heal_all();
    cluster.boot(1, disk).await;
    cluster.shows(1, 1, &names(4)).await;
}

/// J15: a directory that stopped takes its groups along. Its broker still answers pings, but says that it leads nothing:
/// the survivors lead on at once.
#[tokio::test(start_paused = true)]
async fn a_failed_fsync_stops_every_group_of_the_directory() {
    let cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    let other = cluster.create(2).await;
    propose(&group, "record 0").await.unwrap();
    cluster.brokers[&1].disk.fail_next_sync("journal", true);
    // The followers may have acknowledged it: a majority, each behind its own fsync.
    let acknowledged = timeout(Duration::from_secs(30), propose(&group, "record 1")).await.unwrap().is_ok();
    timeout(Duration::from_secs(10), cluster.brokers[&1].store.stopped()).await.unwrap();
    let begin = Instant::now();
    for id in [1, 2] {
        cluster.leader(id, &[2, 3]).await;
    }
    assert!(begin.elapsed() < PROMPT, "it took {:?}", begin.elapsed());
    assert!(group.status().stopped.is_some() && other.status().stopped.is_some());
    assert!(matches!(propose(&other, "no").await, Err(ProposeError::Stopped { .. })));
    let there = cluster.records(cluster.leader(1, &[2, 3]).await, 1).await;
    assert!(there == names(2) || (!acknowledged && there == names(1)), "{there:?}");
}

/// Segments and a tail cache so small that a follower that was away is served from files.
fn from_files() -> RaftConfig {
    RaftConfig { tail_cache_bytes: 1 << 10, tail_cache_bytes_total: 4 << 10, ..config() }
}

/// The next so many reads of group 1's files fail.
fn fail_reads(disk: &SimDisk, count: u64) {
    for skip in 0..count {
        let path_contains = "groups/1-11".to_owned();
        // Too many open files: unlike EIO, no sign of rot.
        disk.inject(Fault { kind: OpKind::Read, path_contains, skip, errno: 24, loses_data: false });
    }
}

/// Broker 2 falls behind: it cannot win, and 1 must read its files for it, time and again. Its disk, and what nobody commits meanwhile.
async fn left_behind(
    cluster: &mut Cluster,
    group: &RaftGroup,
) -> (SimDisk, Vec<JoinHandle<Result<Appended, ProposeError>>>) {
    let disk = cluster.kill(2).await;
    let propose = |payload: String| {
        let group = group.clone();
        tokio::spawn(async move { propose(&group, &payload).await })
    };
    let stuck = names(100).into_iter().map(propose).collect();
    sleep(Duration::from_secs(1)).await;
    (disk, stuck)
}

#[tokio::test(start_paused = true)]
async fn a_core_that_ended_is_started_again_from_its_log() {
    let mut cluster = Cluster::start_with(3, from_files()).await;
    let group = cluster.create(1).await;
    let mut events = cluster.brokers[&1].groups.watch_events();
    let disk = cluster.kill(3).await;
    write_all(&group, &names(300)).await;
    // Both ways of reading: from the page cache, and waiting for the disk. The leader reads for broker 3 time and again.
    fail_reads(&cluster.brokers[&1].disk, 2);
    let event = timeout(Duration::from_secs(60), events.recv()).await.unwrap().unwrap();
    assert!(matches!(event, GroupEvent::Restarted(GroupId(1), _)), "{event:?}");
    cluster.boot(3, disk).await;
    let leader = cluster.leader(1, &[1, 2, 3]).await;
    propose(&cluster.group(leader, 1), "record 300").await.unwrap();
    for broker in 1..=3 {
        cluster.shows(broker, 1, &names(301)).await;
    }
    assert_eq!(group.status().stopped, None, "the handle serves on");
}

#[tokio::test(start_paused = true)]
async fn a_core_that_keeps_ending_is_reported_lost_and_the_others_serve() {
    let mut cluster = Cluster::start_with(2, from_files()).await;
    let other = cluster.create(2).await;
    let group = cluster.create(1).await;
    let mut events = cluster.brokers[&1].groups.watch_events();
    propose(&group, "first").await.unwrap();
    let (disk, stuck) = left_behind(&mut cluster, &group).await;
    fail_reads(&cluster.brokers[&1].disk, 1000);
    cluster.boot(2, disk).await;
    let lost = async {
        loop {
            match events.recv().await.unwrap() {
                GroupEvent::Restarted(group, _) => assert_eq!(group, GroupId(1)),
                GroupEvent::Lost(group, replica, _) => return (group, replica),
            }
        }
    };
    assert_eq!(timeout(Duration::from_secs(120), lost).await.unwrap(), (GroupId(1), ReplicaId(11)));
    assert_eq!(cluster.brokers[&1].groups.lost().len(), 1);
    assert!(matches!(propose(&group, "no").await, Err(ProposeError::Stopped { .. })));
    for answer in stuck {
        assert!(answer.await.unwrap().is_err(), "acknowledged by one of two");
    }
    let leader = cluster.leader(2, &[1, 2]).await;
    propose(&cluster.group(leader, 2), "record 0").await.unwrap();
    drop(other);
}

/// Nobody knows what ailed it, and it may hold what was acknowledged.
#[tokio::test(start_paused = true)]
async fn a_lost_replica_is_moved_aside_and_kept() {
    let mut cluster = Cluster::start_with(2, from_files()).await;
    let group = cluster.create(1).await;
    propose(&group, "first").await.unwrap();
    let (disk, _) = left_behind(&mut cluster, &group).await;
    fail_reads(&cluster.brokers[&1].disk, 1000);
    cluster.boot(2, disk).await;
    let broker = &cluster.brokers[&1];
    let lost = async {
        while broker.groups.lost().is_empty() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(120), lost).await.unwrap();
    assert!(!group.log().is_rotten());
    broker.disk.forgive();
    // The first attempt fails, and does not make the second one forget what it is.
    let path_contains = "quarantined".to_owned();
    broker.disk.inject(Fault { kind: OpKind::Rename, path_contains, skip: 0, errno: 24, loses_data: false });
    assert!(broker.groups.create(GroupId(1), ReplicaId(99), Former::Delete).await.is_err());
    broker.groups.create(GroupId(1), ReplicaId(99), Former::Delete).await.unwrap();
    assert!(broker.groups.lost().is_empty());
    let kept = broker.store.quarantined();
    assert_eq!(kept, [std::path::PathBuf::from("/data/groups/quarantined-1-11")]);
    let files = broker.disk.read_dir(&kept[0]).await.unwrap();
    assert!(files.iter().any(|file| file.name.ends_with(".segment") && file.bytes > 0), "{files:?}");
}

/// A broker that stops its groups without handing over says so, and is not waited for.
#[tokio::test(start_paused = true)]
async fn a_leader_that_is_shut_down_renounces() {
    let cluster = Cluster::start(3).await;
    for id in 1..=5 {
        cluster.create(id).await;
    }
    let begin = Instant::now();
    cluster.brokers[&1].groups.shutdown().await;
    for id in 1..=5 {
        cluster.leader(id, &[2, 3]).await;
    }
    assert!(begin.elapsed() < PROMPT, "it took {:?}", begin.elapsed());
}

/// J18: a follower without room refuses entries; the leader backs off, and goes on when there is room.
#[tokio::test(start_paused = true)]
async fn a_follower_without_room_refuses_entries_and_catches_up_later() {
    let mut tight = config();
    tight.reserve_append_bytes = 1 << 20;
    let cluster = Cluster::start_with(3, tight).await;
    let group = cluster.create(1).await;
    propose(&group, "record 0").await.unwrap();
    cluster.shows(3, 1, &names(1)).await;
    let disk = &cluster.brokers[&3].disk;
    disk.set_capacity(Some(disk.used_bytes() + (512 << 10)));
    let full = async {
        while cluster.brokers[&3].store.available_bytes() >= 1 << 20 {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(120), full).await.unwrap();
    propose(&group, "record 1").await.unwrap();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(cluster.records(3, 1).await, names(1));
    assert_eq!(group.status().leader.unwrap().broker, BrokerId(1), "its heartbeats still count");
    disk.set_capacity(None);
    cluster.shows(3, 1, &names(2)).await;
}

/// Three brokers, and a group with 300 records on each of them.
async fn with_enough_for_a_snapshot() -> (Cluster, RaftGroup) {
    let cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    let all = long_names(300);
    write_all(&group, &all).await;
    cluster.shows(3, 1, &all).await;
    (cluster, group)
}

/// A full disk is no reason to give a replica up: it has everything it ever acknowledged, and may be the last that has.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_finds_no_room_ends_no_group() {
    let (cluster, group) = with_enough_for_a_snapshot().await;
    let (disk, third) = (&cluster.brokers[&3].disk, cluster.group(3, 1));
    let mut events = cluster.brokers[&3].groups.watch_events();
    disk.set_capacity(Some(disk.used_bytes()));
    for _ in 0..6 {
        third.snapshot(200).await.unwrap();
        sleep(Duration::from_secs(1)).await;
    }
    assert!(events.try_recv().is_err(), "its core has ended");
    assert_eq!(third.log().log_start_offset().0, 0);
    disk.set_capacity(None);
    third.snapshot(200).await.unwrap();
    purged(&third).await;
    propose(&group, "after").await.unwrap();
}

/// Nor is it one to end the group: the purge behind a snapshot would make room.
#[tokio::test(start_paused = true)]
async fn a_purge_that_finds_no_room_for_its_base_ends_no_group() {
    let (cluster, group) = with_enough_for_a_snapshot().await;
    let (disk, third) = (&cluster.brokers[&3].disk, cluster.group(3, 1));
    let mut events = cluster.brokers[&3].groups.watch_events();
    for skip in 0..4 {
        let path_contains = ".base".to_owned();
        disk.inject(Fault { kind: OpKind::Create, path_contains, skip, errno: ENOSPC, loses_data: false });
    }
    for _ in 0..4 {
        third.snapshot(200).await.unwrap();
        sleep(Duration::from_secs(1)).await;
    }
    assert!(disk.has_struck(), "the test wants a base to be refused");
    assert!(events.try_recv().is_err(), "its core has ended");
    disk.forgive();
    third.snapshot(200).await.unwrap();
    purged(&third).await;
    propose(&group, "after").await.unwrap();
}

/// The directory takes no more records, or only so many bytes of a quota, and some of what was accepted is still to be written.
async fn run_out_of_room(cluster: &Cluster, group: &RaftGroup, quota: bool) {
    let broker = &cluster.brokers[&1];
    broker.disk.set_quota(quota);
    broker.disk.set_capacity(Some(broker.disk.used_bytes()));
    let refused = async {
        while broker.store.available_bytes() > 0 {
            let group = group.clone();
            tokio::spawn(async move { propose(&group, &"x".repeat(500)).await });
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), refused).await.expect("there is room after all");
}

#[tokio::test(start_paused = true)]
async fn a_core_that_keeps_ending_for_want_of_room_is_never_lost() {
    for quota in [false, true] {
        let mut cluster = Cluster::start_with(2, from_files()).await;
        let group = cluster.create(1).await;
        let mut events = cluster.brokers[&1].groups.watch_events();
        propose(&group, "first").await.unwrap();
        // As in the test of the one that is lost; but the disk is full.
        let (disk, _) = left_behind(&mut cluster, &group).await;
        run_out_of_room(&cluster, &group, quota).await;
        let own = &cluster.brokers[&1].disk;
        fail_reads(own, 20);
        cluster.boot(2, disk).await;
        let own = &cluster.brokers[&1].disk;
        let worn_out = async {
            while own.faults_left() > 0 {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(Duration::from_secs(300), worn_out).await.unwrap();
        own.set_capacity(None);
        let leader = cluster.leader(1, &[1, 2]).await;
        propose(&cluster.group(leader, 1), "after").await.unwrap();
        let mut restarts = 0;
        while let Ok(event) = events.try_recv() {
            assert!(matches!(event, GroupEvent::Restarted(GroupId(1), _)), "{quota}: {event:?}");
            restarts += 1;
        }
        assert!(restarts > 0, "{quota}");
    }
}

/// What refuses is a quota, of which the file system says nothing: only the refusals tell.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_finds_its_quota_used_up_costs_no_replica() {
    let mut cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    let disk = cluster.kill(3).await;
    let all = write_and_purge(&cluster, &group).await;
    cluster.boot(3, disk).await;
    let third = &cluster.brokers[&3];
    let mut events = third.groups.watch_events();
    third.disk.set_quota(true);
    third.disk.set_capacity(Some(third.disk.used_bytes()));
    sleep(Duration::from_secs(200)).await;
    while let Ok(event) = events.try_recv() {
        assert!(matches!(event, GroupEvent::Restarted(GroupId(1), _)), "{event:?}");
    }
    assert_eq!(third.groups.lost(), []);
    third.disk.set_capacity(None);
    let start = group.log().log_start_offset().0 as usize;
    cluster.shows(3, 1, &all[start..]).await;
}

/// That passes, and its replica is whole.
#[tokio::test(start_paused = true)]
async fn a_core_that_keeps_ending_because_no_file_can_be_opened_is_never_lost() {
    let mut cluster = Cluster::start_with(2, from_files()).await;
    let group = cluster.create(1).await;
    let mut events = cluster.brokers[&1].groups.watch_events();
    propose(&group, "first").await.unwrap();
    let (disk, _) = left_behind(&mut cluster, &group).await;
    let own = cluster.brokers[&1].disk.clone();
    own.set_out_of_files(true);
    fail_reads(&own, 1000);
    cluster.boot(2, disk).await;
    sleep(Duration::from_secs(120)).await;
    assert!(group.is_stopped(), "it goes on all the same");
    own.forgive();
    own.set_out_of_files(false);
    let leader = cluster.leader(1, &[1, 2]).await;
    propose(&cluster.group(leader, 1), "after").await.unwrap();
    while let Ok(event) = events.try_recv() {
        assert!(matches!(event, GroupEvent::Restarted(GroupId(1), _)), "{event:?}");
    }
}

/// What makes room must not wait for what waits for it, also where both belong to groups that share a lock.
#[tokio::test(start_paused = true)]
async fn a_deletion_does_not_wait_for_another_groups_core_that_waits_for_room() {
    let cluster = Cluster::start_with(1, RaftConfig { bypass_bytes_min: 8 << 10, ..config() }).await;
    let (group, other) = (cluster.create(1).await, cluster.create(1 + LIFECYCLE_LOCKS as u64).await);
    propose(&group, "first").await.unwrap();
    let broker = &cluster.brokers[&1];
    let mut events = broker.groups.watch_events();
    // A quota, of which the doors do not know before something is refused.
    broker.disk.set_quota(true);
    broker.disk.set_capacity(Some(broker.disk.used_bytes()));
    let last = group.log().last_log_id();
    let waiting = tokio::spawn({
        let group = group.clone();
        async move { propose(&group, &"x".repeat(100 << 10)).await }
    });
    while group.log().last_log_id() == last {
        sleep(Duration::from_millis(1)).await;
    }
    let _ = group.raft().shutdown().await;
    // However often it is tried meanwhile.
    for _ in 0..100 {
        sleep(Duration::from_millis(170)).await;
        let alone = broker.groups.hosted.lifecycle_of(other.group()).try_lock();
        assert!(alone.is_ok(), "a core that waits for room holds the lock");
    }
    let discarded = broker.groups.discard(other.group(), other.replica());
    timeout(Duration::from_secs(10), discarded).await.expect("it waits").unwrap();
    assert!(group.is_stopped() && broker.groups.lost().is_empty());
    broker.disk.set_capacity(None);
    let restarted = async { while !matches!(events.recv().await.unwrap(), GroupEvent::Restarted(GroupId(1), _)) {} };
    timeout(Duration::from_secs(60), restarted).await.expect("it still waits");
    cluster.leader(1, &[1]).await;
    propose(&group, "after").await.unwrap();
    let _ = waiting.await.unwrap();
}

/// The same of one that cannot even be started, as when the broker starts.
#[tokio::test(start_paused = true)]
async fn a_replica_that_cannot_be_started_for_want_of_room_waits() {
    for quota in [false, true] {
        let mut cluster = Cluster::start_with(2, from_files()).await;
        let group = cluster.create(1).await;
        propose(&group, "first").await.unwrap();
        let (disk, _) = left_behind(&mut cluster, &group).await;
        let (groups, own) = (cluster.brokers[&1].groups.clone(), cluster.brokers[&1].disk.clone());
        run_out_of_room(&cluster, &group, quota).await;
        let replica = cluster.brokers[&1].store.replicas().remove(0);
        // Whatever waits of it for room waits on.
        groups.hosted.end_replica(GroupId(1), replica.replica).await;
        fail_reads(&own, 1000);
        own.set_cold(true);
        assert!(groups.hosted.clone().host(replica, 0).await.is_err());
        // It waits at every moment, also while it is tried: who finds it neither here nor waiting takes its files for missing.
        for _ in 0..10_000 {
            tokio::time::advance(Duration::from_micros(500)).await;
            for _ in 0..5 {
                assert!(groups.is_opening(GroupId(1)));
                tokio::task::yield_now().await;
            }
        }
        assert!(groups.lost().is_empty());
        // Who insists on it does not get an empty one in its place.
        assert!(groups.create(GroupId(1), ReplicaId(11), Former::Delete).await.is_err());
        own.forgive();
        own.set_capacity(None);
        let opened = async {
            while groups.get(GroupId(1)).is_none() {
                assert!(groups.is_opening(GroupId(1)));
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(10), opened).await.expect("it still waits");
        cluster.boot(2, disk).await;
        let leader = cluster.leader(1, &[1, 2]).await;
        propose(&cluster.group(leader, 1), "after").await.unwrap();
        assert_eq!(cluster.group(1, 1).replica(), ReplicaId(11));
    }
}

/// Whatever it was, it may be over the next time; and a replica that is lost is replaced.
#[tokio::test(start_paused = true)]
async fn a_replica_that_cannot_be_started_is_tried_again_before_it_is_lost() {
    for faults in [2, 1000] {
        let mut cluster = Cluster::start_with(2, from_files()).await;
        let group = cluster.create(1).await;
        propose(&group, "first").await.unwrap();
        left_behind(&mut cluster, &group).await;
        let (groups, own) = (cluster.brokers[&1].groups.clone(), cluster.brokers[&1].disk.clone());
        let replica = cluster.brokers[&1].store.replicas().remove(0);
        groups.hosted.end_replica(GroupId(1), replica.replica).await;
        fail_reads(&own, faults);
        assert!(groups.hosted.clone().host(replica, 0).await.is_err());
        assert!(groups.lost().is_empty() && groups.is_opening(GroupId(1)));
        let settled = async {
            while groups.is_opening(GroupId(1)) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(60), settled).await.expect("it is neither open nor lost");
        assert_eq!(
            (groups.get(GroupId(1)).is_some(), groups.lost().len()),
            if faults == 2 { (true, 0) } else { (false, 1) }
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_group_is_gone_and_a_new_replica_of_it_starts_empty() {
    let cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    propose(&group, "record 0").await.unwrap();
    let groups = &cluster.brokers[&1].groups;
    groups.delete(GroupId(1), ReplicaId(11)).await.unwrap();
    assert!(groups.get(GroupId(1)).is_none());
    assert!(matches!(propose(&group, "no").await, Err(ProposeError::Stopped { .. })));
    groups.delete(GroupId(1), ReplicaId(11)).await.unwrap();
    let again = groups.create(GroupId(1), ReplicaId(15), Former::Delete).await.unwrap();
    assert_eq!(again.status().last_index, None);
    assert_eq!(groups.all().len(), 1);
}
