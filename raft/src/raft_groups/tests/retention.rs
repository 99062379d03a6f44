//! The log start goes through the log (RULES.md O7): every replica has it, and gives back what lies below.

use super::*;
use crate::payload::SnapshotAt;
use crate::testing::{test_applications, test_log_start, test_payload};

/// Lets a replica give its room back, as its broker does now and then.
async fn trim_all(group: &RaftGroup) {
    let gone = async {
        while group.trim().await.unwrap() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), gone).await.expect("segments below the log start stay");
}

async fn starts_at(cluster: &Cluster, broker: u32, start: u64) {
    let starts = async {
        while cluster.group(broker, 1).log().log_start_offset().0 != start {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), starts).await.unwrap_or_else(|_| {
        panic!("broker {broker} starts at {}, not {start}", cluster.group(broker, 1).log().log_start_offset())
    });
}

#[tokio::test(start_paused = true)]
async fn every_replica_starts_where_the_log_says_and_a_follower_that_was_away_holds_exactly_that() {
    let mut cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    let all = long_names(400);
    write_all(&group, &all[..10]).await;
    cluster.shows(3, 1, &all[..10]).await;
    let away = cluster.kill(3).await;
    write_all(&group, &all[10..300]).await;
    group.propose(test_log_start(251), None).await.unwrap();
    write_all(&group, &all[300..350]).await;
    for broker in [1, 2] {
        starts_at(&cluster, broker, 251).await;
        let group = cluster.group(broker, 1);
        let before = group.log().bytes();
        trim_all(&group).await;
        assert!(group.log().bytes() < before / 2, "{} of {before} bytes are left", group.log().bytes());
        cluster.shows(broker, 1, &all[251..350]).await;
    }
    let boundary = group.log().purged_log_id().expect("it purged");
    cluster.boot(3, away).await;
    assert!(cluster.group(3, 1).log().last_log_id() < Some(boundary), "the follower was not behind the boundary");
    cluster.shows(3, 1, &all[251..350]).await;
    // And as a leader: after everything was restarted.
    write_all(&group, &all[350..]).await;
    for broker in 1..=3 {
        cluster.restart(broker).await;
        cluster.leader(1, &[1, 2, 3]).await;
    }
    for broker in 1..=3 {
        cluster.shows(broker, 1, &all[251..]).await;
        starts_at(&cluster, broker, 251).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_lets_everything_go_gives_all_its_room_back_and_goes_on() {
    let mut cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    let all = long_names(120);
    write_all(&group, &all[..100]).await;
    let away = cluster.kill(2).await;
    group.propose(test_log_start(100), None).await.unwrap();
    for broker in [1, 3] {
        starts_at(&cluster, broker, 100).await;
        trim_all(&cluster.group(broker, 1)).await;
        let bytes = cluster.group(broker, 1).log().bytes();
        assert!(bytes < 1000, "broker {broker} keeps {bytes} bytes of nothing");
    }
    cluster.boot(2, away).await;
    starts_at(&cluster, 2, 100).await;
    for broker in 1..=3 {
        cluster.restart(broker).await;
        cluster.leader(1, &[1, 2, 3]).await;
    }
    let leader = cluster.leader(1, &[1, 2, 3]).await;
    write_all(&cluster.group(leader, 1), &all[100..]).await;
    for broker in 1..=3 {
        cluster.shows(broker, 1, &all[100..]).await;
    }
}

/// A snapshot is durable before what it covers is purged; a crash may come between, and leave nothing else of what was applied.
#[tokio::test(start_paused = true)]
async fn a_group_starts_from_a_snapshot_that_no_purge_has_followed() {
    let applications = test_applications(SnapshotAt::Applied);
    let mut cluster = Cluster::start_as(1, config(), applications).await;
    let group = cluster.create(1).await;
    let write = async |group: &RaftGroup, sequences: std::ops::Range<u32>| {
        for sequence in sequences {
            let written = group.propose(test_payload(1, 1, sequence, b"any"), None).await.unwrap();
            assert!(matches!(written.outcome, Outcome::Records { .. }), "{written:?}");
        }
    };
    write(&group, 0..20).await;
    sleep(Duration::from_secs(1)).await;
    let disk = cluster.brokers[&1].disk.clone();
    disk.slow_syncs("journal", Duration::from_secs(5));
    group.snapshot(0).await.unwrap();
    let taken = async {
        while group.log().snapshot().is_none() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(1), taken).await.unwrap();
    for seed in 0..5 {
        let disk = disk.fork().crash_with(seed);
        drop(cluster.kill(1).await);
        cluster.boot(1, disk).await;
        let lost = cluster.brokers[&1].groups.lost();
        assert!(lost.is_empty(), "seed {seed}: {lost:?}");
        assert_eq!(cluster.leader(1, &[1]).await, 1);
        write(&cluster.group(1, 1), 20..22).await;
    }
}
