//! Replicas that fell behind catch up at a limited rate, and arrive whatever else goes on.

use openraft::EntryPayload;
use openraft::storage::SnapshotMeta;

use super::*;
use crate::transport::{AppendEntriesRequest, Snapshot};
use crate::types::{Entry, log_id};

const LIMIT: u64 = 16 << 10;

/// Small requests and a low rate: what takes minutes is over in no time, because the time is simulated.
fn slow() -> RaftConfig {
    RaftConfig {
        catch_up_bytes_per_second: LIMIT,
        append_bytes_max: 4 << 10,
        segment_bytes_max: 64 << 10,
        tail_cache_bytes: 32 << 10,
        ..config()
    }
}

fn record(number: u64) -> String {
    format!("record {number} {}", "x".repeat(1000))
}

/// A cluster whose broker 3 comes back half a megabyte behind; its leader's group.
async fn with_one_behind() -> (Cluster, RaftGroup) {
    let mut cluster = Cluster::start_with(3, slow()).await;
    let group = cluster.create(1).await;
    propose(&group, &record(0)).await.unwrap();
    let away = cluster.kill(3).await;
    for number in 1..500 {
        propose(&group, &record(number)).await.unwrap();
    }
    cluster.boot(3, away).await;
    (cluster, group)
}

fn last(cluster: &Cluster, broker: u32) -> u64 {
    cluster.group(broker, 1).status().last_index.unwrap_or(0)
}

async fn arrives(cluster: &Cluster, within: Duration) {
    let arrived = async {
        while last(cluster, 3) + 5 < last(cluster, 1) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let behind = || format!("broker 3 has {} of {}", last(cluster, 3), last(cluster, 1));
    timeout(within, arrived).await.unwrap_or_else(|_| panic!("{}", behind()));
}

#[tokio::test(start_paused = true)]
async fn catching_up_keeps_to_its_rate_and_ends() {
    let (cluster, group) = with_one_behind().await;
    sleep(Duration::from_secs(8)).await;
    let after = last(&cluster, 3);
    assert!(after > 30, "broker 3 has only {after} entries");
    assert!(after < 300, "broker 3 has {after} entries after 8 s at {LIMIT} bytes per second");
    assert_eq!(group.status().leader.unwrap().broker, BrokerId(1));
    arrives(&cluster, Duration::from_secs(120)).await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_production_outruns_arrives_all_the_same() {
    let (cluster, group) = with_one_behind().await;
    let producing = tokio::spawn(async move {
        // Four times what catching up may take.
        for number in 500.. {
            propose(&group, &record(number)).await.unwrap();
            sleep(Duration::from_millis(16)).await;
        }
    });
    arrives(&cluster, Duration::from_secs(300)).await;
    assert!(!producing.is_finished(), "production has ended");
    producing.abort();
}

/// The replica that is behind may be the one that a majority needs.
#[tokio::test(start_paused = true)]
async fn nothing_is_held_back_when_commits_wait_for_it() {
    let (mut cluster, group) = with_one_behind().await;
    sleep(Duration::from_secs(2)).await;
    assert!(last(&cluster, 3) < 200);
    cluster.kill(2).await;
    // At its rate it would take half a minute.
    timeout(Duration::from_secs(10), propose(&group, "needs broker 3")).await.expect("it waits").unwrap();
    assert!(last(&cluster, 3) >= 500);
}

/// A new leader does not know yet that its followers have everything, however much that is.
#[tokio::test(start_paused = true)]
async fn a_new_leader_of_a_long_log_commits_at_once() {
    let mut cluster = Cluster::start_with(3, slow()).await;
    let group = cluster.create(1).await;
    for number in 0..500 {
        propose(&group, &record(number)).await.unwrap();
    }
    for broker in [2, 3] {
        while last(&cluster, broker) < last(&cluster, 1) {
            sleep(Duration::from_millis(10)).await;
        }
    }
    cluster.kill(1).await;
    let died = Instant::now();
    let elected = async {
        loop {
            let leads = |broker: &u32| cluster.group(*broker, 1).leading_term().is_some();
            match [2, 3].iter().find(|broker| leads(broker)) {
                Some(broker) => return cluster.group(*broker, 1),
                None => sleep(Duration::from_millis(1)).await,
            }
        }
    };
    let led = timeout(Duration::from_secs(10), elected).await.expect("nobody leads");
    propose(&led, "after the death").await.unwrap();
    assert!(died.elapsed() < Duration::from_millis(400), "after {:?}", died.elapsed());
}

/// The leader may know less of it: the answers were lost with a stream. openraft panics on such a snapshot (in debug builds) where
/// nothing of the log is known to be committed.
#[tokio::test(start_paused = true)]
async fn a_snapshot_of_what_the_log_holds_is_taken_for_installed() {
    let cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    propose(&group, "record 0").await.unwrap();
    cluster.shows(2, 1, &names(1)).await;
    cluster.isolate(2);
    let follower = cluster.group(2, 1);
    let standing = follower.standing().await.unwrap();
    let door = Door::new(Arc::downgrade(&cluster.brokers[&2].groups.hosted));
    let to = Target { group: GroupId(1), replica: ReplicaId(12) };
    // More entries of the leader's, of which it has not said that they are committed.
    let last = standing.last.unwrap();
    let blank = |n| Entry { log_id: log_id(last.leader_id.term, last.index + n), payload: EntryPayload::Blank };
    let request = AppendEntriesRequest {
        vote: standing.vote,
        prev_log_id: Some(last),
        entries: (1..=5).map(blank).collect(),
        leader_commit: None,
    };
    assert!(door.heartbeat(BrokerId(1), to, request).await.unwrap().is_success());
    let snapshot = |n| Snapshot {
        meta: SnapshotMeta { last_log_id: Some(blank(n).log_id), last_membership: Default::default() },
        snapshot: Bytes::from_static(b"not looked at"),
    };
    let answer = door.install_snapshot(BrokerId(1), to, standing.vote, snapshot(2)).await.unwrap();
    assert_eq!(answer.vote, standing.vote);
    assert_eq!(follower.log().last_log_id(), Some(blank(5).log_id));
    assert_eq!(follower.log().purged_log_id(), None);
    // One that brings something is looked at.
    assert!(door.install_snapshot(BrokerId(1), to, standing.vote, snapshot(9)).await.is_err());
}
