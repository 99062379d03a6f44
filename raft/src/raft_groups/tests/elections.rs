//! Elections in a cluster: after a death, after a restart, with more groups than are looked at at a time.

use super::*;
use crate::transport::Liveness;

/// The core of the matter: one death, a hundred groups, all with new leaders long before any timer of openraft's.
#[tokio::test(start_paused = true)]
async fn a_dead_brokers_groups_are_led_by_survivors_at_once() {
    const GROUPS: u64 = 100;
    let mut cluster = Cluster::start(3).await;
    for id in 1..=GROUPS {
        let group = cluster.create(id).await;
        propose(&group, "record 0").await.unwrap();
    }
    cluster.kill(1).await;
    let begin = Instant::now();
    for id in 1..=GROUPS {
        let leader = cluster.leader(id, &[2, 3]).await;
        propose(&cluster.group(leader, id), "record 1").await.unwrap();
        cluster.shows(2, id, &names(2)).await;
    }
    assert!(begin.elapsed() < PROMPT, "it took {:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_survivor_with_the_newest_log_is_elected() {
    let mut cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    cluster.partition(1, 2);
    cluster.partition(3, 2);
    write_all(&group, &names(5)).await;
    cluster.kill(1).await;
    cluster.network.heal_all();
    assert_eq!(cluster.leader(1, &[2, 3]).await, 3);
    cluster.shows(2, 1, &names(5)).await;
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_of_everything_leaders_are_elected_promptly() {
    let mut cluster = Cluster::start(3).await;
    for id in 1..=20 {
        let group = cluster.create(id).await;
        write_all(&group, &names(3)).await;
    }
    let mut disks = Vec::new();
    for broker in 1..=3 {
        disks.push(cluster.kill(broker).await);
    }
    let begin = Instant::now();
    for (broker, disk) in (1..).zip(disks) {
        cluster.boot(broker, disk).await;
    }
    for id in 1..=20 {
        let leader = cluster.leader(id, &[1, 2, 3]).await;
        propose(&cluster.group(leader, id), "record 3").await.unwrap();
        cluster.shows(leader, id, &names(4)).await;
    }
    assert!(begin.elapsed() < PROMPT, "it took {:?}", begin.elapsed());
    // And they stay: no term rises any more.
    let terms: Vec<u64> = (1..=20).map(|id| cluster.group(1, id).status().term).collect();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(terms, (1..=20).map(|id| cluster.group(1, id).status().term).collect::<Vec<_>>());
}

/// R1: between its restart and an election nobody leads, and its old term is over.
#[tokio::test(start_paused = true)]
async fn a_restarted_leader_leads_only_after_an_election() {
    let mut cluster = Cluster::start(3).await;
    let group = cluster.create(1).await;
    write_all(&group, &names(3)).await;
    let term = group.status().term;
    cluster.restart(1).await;
    assert!(!cluster.group(1, 1).status().leading);
    let begin = Instant::now();
    let leader = cluster.leader(1, &[1, 2, 3]).await;
    assert!(begin.elapsed() < PROMPT, "it took {:?}", begin.elapsed());
    assert!(cluster.group(leader, 1).status().term > term);
    cluster.shows(leader, 1, &names(3)).await;
}

/// Its successor knows nothing of what it led, and does not say that it leads no more. It is heard of before it can be
/// dialled.
#[tokio::test(start_paused = true)]
async fn what_a_broker_led_that_comes_back_on_an_empty_disk_is_led_by_others_at_once() {
    let mut cluster = Cluster::start(0).await;
    cluster.network.refuse("b1");
    cluster.boot_all(3).await;
    others_see(&cluster, |status| status.last_heard.is_some()).await;
    cluster.network.accept("b1");
    // The others' own connections stand then.
    sleep(Duration::from_secs(5)).await;
    others_see(&cluster, |status| status.deaths == 0).await;
    let group = cluster.create(1).await;
    write_all(&group, &names(3)).await;
    // It is back before anybody misses it.
    cluster.isolate(1);
    cluster.kill(1).await;
    cluster.boot(1, SimDisk::new(9)).await;
    cluster.network.heal_all();
    let begin = Instant::now();
    let leader = cluster.leader(1, &[2, 3]).await;
    assert!(begin.elapsed() < PROMPT, "it took {:?}", begin.elapsed());
    cluster.shows(leader, 1, &names(3)).await;
}

/// Waits until the first broker is seen so by the others.
async fn others_see(cluster: &Cluster, so: impl Fn(PeerStatus) -> bool) {
    for broker in [2, 3] {
        let status = || cluster.brokers[&broker].transport.peer_status(BrokerId(1)).unwrap();
        let seen = async {
            while !so(status()) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(60), seen).await.unwrap_or_else(|_| panic!("{:?}", status()));
    }
}

/// More groups than are asked at a time.
#[tokio::test(start_paused = true)]
async fn more_groups_than_one_look_takes_are_all_led_at_once() {
    kill_the_leader_of(600, 0).await;
}

/// More than run at a time, nearly all of which nobody uses.
#[tokio::test(start_paused = true)]
async fn groups_that_nobody_uses_are_led_in_their_turn_and_those_in_use_at_once() {
    kill_the_leader_of(600, 11).await;
}

/// So many groups, ten of which were written to since `idle` seconds: all of them have another leader soon.
async fn kill_the_leader_of(groups: u64, idle: u64) {
    let mut cluster = Cluster::start(3).await;
    for id in 0..groups {
        cluster.create(id).await;
    }
    sleep(Duration::from_secs(idle)).await;
    let used: Vec<u64> = (groups - 10..groups).collect();
    for id in &used {
        propose(&cluster.group(1, *id), "record 0").await.unwrap();
    }
    cluster.kill(1).await;
    let begin = Instant::now();
    for id in used {
        let leader = cluster.leader(id, &[2, 3]).await;
        propose(&cluster.group(leader, id), "record 1").await.unwrap();
        cluster.shows(2, id, &names(2)).await;
    }
    assert!(begin.elapsed() < PROMPT, "it took {:?}", begin.elapsed());
    for id in 0..groups {
        cluster.leader(id, &[2, 3]).await;
    }
    assert!(begin.elapsed() < 2 * PROMPT, "it took {:?}", begin.elapsed());
}

/// A candidate that waited for its turn runs for what still has no leader.
#[tokio::test(start_paused = true)]
async fn whoever_waited_for_its_turn_does_not_run_against_a_leader_that_lives() {
    let mut cluster = Cluster::start(3).await;
    cluster.create(1).await;
    let (group, elections) = (cluster.group(2, 1), cluster.brokers[&2].groups.hosted.elections.clone());
    assert!(!elections.would_run(&group).await, "it was a false alarm");
    // So that nobody elects meanwhile: alone it may not.
    cluster.partition(2, 3);
    cluster.kill(1).await;
    let dead = async {
        while !elections.is_dead(BrokerId(1)) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(5), dead).await.unwrap();
    // Who comes may decide it, and who died, but not again once it is decided: the first choice would have to run against the second.
    let news = [(3, Liveness::Alive), (1, Liveness::Dead)];
    let looks = |(broker, change)| elections.looks_at_news(BrokerId(broker), change, GroupId(1));
    assert_eq!(news.map(looks), [true, true]);
    assert!(elections.would_run(&group).await);
    assert_eq!(news.map(looks), [false, false]);
    // Unless the leader is back, and nobody is to be elected; or its successor dies.
    assert!(looks((1, Liveness::Alive)));
    assert!(elections.would_run(&group).await);
    assert_eq!([looks((1, Liveness::Dead)), looks((2, Liveness::Dead))], [false, true]);
}

#[tokio::test(start_paused = true)]
async fn the_catalog_is_elected_first_then_what_is_in_use_and_silent_cores_last() {
    let cluster = Cluster::start(3).await;
    for id in [3, 1, 0, 2] {
        cluster.create(id).await;
    }
    sleep(Duration::from_secs(1)).await;
    propose(&cluster.group(1, 2), "record 0").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    propose(&cluster.group(1, 1), "record 0").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let elections = &cluster.brokers[&1].groups.hosted.elections;
    let ids = |ids: &[u64]| ids.iter().copied().map(GroupId).collect::<Vec<_>>();
    assert_eq!(elections.order_of_all(&[]), ids(&[0, 1, 2, 3]));
    assert_eq!(elections.order_of_all(&ids(&[0, 1])), ids(&[2, 3, 0, 1]));
}

/// A change that finds no quorum keeps nobody waiting, is not begun twice, and is done once there is a quorum.
#[tokio::test(start_paused = true)]
async fn a_membership_change_without_a_quorum_is_waited_for_only_so_long() {
    let mut cluster = Cluster::start(4).await;
    for broker in 1..=4 {
        cluster.brokers[&broker]
            .groups
            .create(GroupId(1), ReplicaId(10 + u64::from(broker)), Former::Delete)
            .await
            .unwrap();
    }
    let group = cluster.group(1, 1);
    let home = |broker: u32| ReplicaHome { broker: BrokerId(broker) };
    let members = (1..=3).map(|broker| (ReplicaId(10 + u64::from(broker)), home(broker)));
    group.initialize(members.collect()).await.unwrap();
    cluster.leader(1, &[1, 2, 3]).await;
    let away = [cluster.kill(2).await, cluster.kill(3).await];
    let begin = Instant::now();
    for _ in 0..2 {
        let refused = group.add_learner(ReplicaId(14), home(4)).await;
        assert!(matches!(refused, Err(ProposeError::Unknown(_))), "{refused:?}");
    }
    assert!(begin.elapsed() < Duration::from_secs(8), "it took {:?}", begin.elapsed());
    for (broker, disk) in [2, 3].into_iter().zip(away) {
        cluster.boot(broker, disk).await;
    }
    let joined = async {
        loop {
            let leader = cluster.leader(1, &[1, 2, 3]).await;
            let group = cluster.group(leader, 1);
            if group.add_learner(ReplicaId(14), home(4)).await.is_ok() {
                return group;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let group = timeout(Duration::from_secs(60), joined).await.unwrap();
    assert!(group.status().members.contains_key(&ReplicaId(14)));
}

/// A leader that says nothing any more, while its broker lives, is what openraft's own timers are there for; and where all is well
/// they are not needed, however long nothing happens.
#[tokio::test(start_paused = true)]
async fn a_leader_that_falls_silent_is_replaced_and_an_idle_one_is_not() {
    let cluster = Cluster::start(3).await;
    for id in 1..=20 {
        cluster.create(id).await;
    }
    let terms = || (1..=20).map(|id| cluster.group(2, id).status().term).collect::<Vec<_>>();
    let before = terms();
    sleep(Duration::from_secs(600)).await;
    assert_eq!(terms(), before);
    let begin = Instant::now();
    propose(&cluster.group(1, 1), "record 0").await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1), "it took {:?}", begin.elapsed());

    crate::sabotage::make_on_this_thread(Some(crate::sabotage::Sabotage::LeadersFallSilent));
    let replaced = async {
        while terms().iter().zip(&before).any(|(term, before)| term == before) {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let replaced = timeout(Duration::from_secs(60), replaced).await;
    crate::sabotage::make_on_this_thread(None);
    assert!(replaced.is_ok(), "{:?} {before:?}", terms());
    sleep(Duration::from_secs(30)).await;
    let settled = terms();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(terms(), settled);
}
