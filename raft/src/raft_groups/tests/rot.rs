//! Rot in a cluster (RULES.md R7): repaired in place from whoever has a good copy, never served, nothing acknowledged lost.

use std::path::{Path, PathBuf};

use super::*;
use crate::disk::sim::ENOSPC;
use crate::disk::{Disk, read_file};
use crate::log::frame::Frame;
use crate::types::{LogId, Offset};

fn folder(broker: u32) -> PathBuf {
    Path::new("/data/groups").join(format!("1-{}", 10 + broker))
}

/// The segment files of group 1 on a disk, oldest first, with their contents.
async fn segments(disk: &SimDisk, broker: u32) -> Vec<(PathBuf, Bytes)> {
    let mut found = Vec::new();
    for entry in disk.read_dir(&folder(broker)).await.unwrap() {
        if entry.name.ends_with(".segment") {
            let path = folder(broker).join(&entry.name);
            let bytes = read_file(disk, &path, u64::MAX).await.unwrap();
            found.push((path, bytes));
        }
    }
    found
}

/// Three brokers that have written `count` records and brought them into their files; the tail cache holds next to nothing.
async fn written(count: usize) -> Cluster {
    let cluster = Cluster::start_with(3, from_files()).await;
    let group = cluster.create(1).await;
    write_all(&group, &names(count)).await;
    for broker in 1..=3 {
        cluster.shows(broker, 1, &names(count)).await;
    }
    sleep(Duration::from_secs(2)).await;
    for broker in cluster.brokers.values() {
        broker.store.checkpoint().await.unwrap();
    }
    cluster
}

/// Waits until a broker knows of no rot in group 1.
async fn repaired(cluster: &Cluster, broker: u32) {
    let whole = async {
        while cluster.group(broker, 1).log().is_rotten() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let limit = timeout(Duration::from_secs(60), whole).await;
    assert!(limit.is_ok(), "broker {broker}: {:?}", cluster.group(broker, 1).log().rot());
}

/// Looks at everything, as the scrub does, until all is repaired and sound.
async fn scrubbed(cluster: &Cluster, broker: u32) {
    let _ = cluster.group(broker, 1).log().verify().await;
    repaired(cluster, broker).await;
    cluster.group(broker, 1).log().verify().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_rotten_replica_is_repaired_in_place_and_keeps_its_id_and_its_vote() {
    let cluster = written(300).await;
    for broker in [1, 3] {
        let disk = cluster.brokers[&broker].disk.clone();
        let before = segments(&disk, broker).await;
        assert!(before.len() > 4, "{}", before.len());
        let vote = cluster.group(broker, 1).log().vote();
        for (number, (path, bytes)) in before.iter().enumerate().take(before.len() - 1) {
            // A header, a payload, the first byte, the last one.
            let at = [70, 110, 0, bytes.len() as u64 - 1][number % 4];
            disk.flip_bit(path, at, 3);
        }
        scrubbed(&cluster, broker).await;
        assert!(segments(&disk, broker).await == before, "the very bytes are back");
        let group = cluster.group(broker, 1);
        assert_eq!((group.replica(), group.log().vote()), (ReplicaId(10 + u64::from(broker)), vote));
        assert_eq!(cluster.records(broker, 1).await, names(300));
        assert!(cluster.brokers[&broker].groups.lost().is_empty());
    }
    assert_eq!(cluster.leader(1, &[1, 2, 3]).await, 1, "a repair that succeeds at once costs no leadership");
}

#[tokio::test(start_paused = true)]
async fn a_reader_waits_for_the_repair_and_never_sees_what_is_rotten() {
    let cluster = written(300).await;
    let disk = &cluster.brokers[&1].disk;
    for (path, bytes) in segments(disk, 1).await {
        disk.flip_bit(&path, bytes.len() as u64 / 2, 1);
    }
    // A client on the leader; then a follower that was away, for which the leader reads.
    assert_eq!(cluster.records(1, 1).await, names(300));
    repaired(&cluster, 1).await;
}

#[tokio::test(start_paused = true)]
async fn lost_and_shortened_segments_are_fetched_again_after_a_restart() {
    let mut cluster = written(300).await;
    let before = segments(&cluster.brokers[&3].disk, 3).await;
    let disk = cluster.kill(3).await;
    // Not the last one: what stands above the commit index is another story.
    for (number, (path, bytes)) in before.iter().enumerate().take(before.len() - 1) {
        match number % 3 {
            0 => disk.remove_file(path).await.unwrap(),
            1 => disk.truncate(path, bytes.len() as u64 / 2),
            _ => {}
        }
    }
    cluster.boot(3, disk).await;
    assert!(!cluster.brokers[&3].store.rotten().is_empty() && cluster.brokers[&3].store.corrupt().is_empty());
    write_all(&cluster.group(1, 1), &["record 300".to_owned()]).await;
    scrubbed(&cluster, 3).await;
    cluster.shows(3, 1, &names(301)).await;
    let after = segments(&cluster.brokers[&3].disk, 3).await;
    for ((path, bytes), (_, now)) in before.iter().zip(&after) {
        assert!(
            now.starts_with(&bytes[..bytes.len().min(now.len())]) && now.len() >= bytes.len(),
            "{}",
            path.display()
        );
    }
    // It is a follower like any other.
    let disk = cluster.kill(2).await;
    propose(&cluster.group(1, 1), "record 301").await.unwrap();
    cluster.boot(2, disk).await;
}

/// The scenario of RULES.md R7: each of two replicas lacks something, the third is gone for good, and still nothing is lost.
#[tokio::test(start_paused = true)]
async fn two_replicas_that_are_rotten_in_different_places_make_each_other_whole() {
    let mut cluster = written(300).await;
    drop(cluster.kill(3).await);
    let disks = [cluster.kill(1).await, cluster.kill(2).await];
    for (broker, disk) in [1u32, 2].into_iter().zip(&disks) {
        for (number, (path, bytes)) in segments(disk, broker).await.into_iter().enumerate() {
            match (number % 2 == broker as usize % 2, number % 4 < 2) {
                (true, true) => disk.flip_bit(&path, bytes.len() as u64 / 2, 5),
                (true, false) => disk.remove_file(&path).await.unwrap(),
                _ => {}
            }
        }
    }
    for (broker, disk) in [1, 2].into_iter().zip(disks) {
        cluster.boot(broker, disk).await;
    }
    for broker in [1, 2] {
        scrubbed(&cluster, broker).await;
    }
    let leader = cluster.leader(1, &[1, 2]).await;
    propose(&cluster.group(leader, 1), "record 300").await.unwrap();
    for broker in [1, 2] {
        cluster.shows(broker, 1, &names(301)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_rotten_on_two_is_kept_until_the_third_returns_with_it() {
    let mut cluster = written(300).await;
    let away = cluster.kill(3).await;
    for broker in [1, 2] {
        let disk = &cluster.brokers[&broker].disk;
        let (path, _) = segments(disk, broker).await.remove(1);
        disk.flip_bit(&path, 100, 2);
        assert!(cluster.group(broker, 1).log().verify().await.is_err());
    }
    sleep(Duration::from_secs(30)).await;
    for broker in [1, 2] {
        let rot = cluster.group(broker, 1).log().rot();
        assert_eq!(rot.len(), 1);
        assert!(rot[0].outlook.as_ref().is_some_and(|why| why.contains("was not found")), "{rot:?}");
        let log = cluster.group(broker, 1).log().clone();
        let read = log.read(log.log_start_offset(), log.high_watermark(), usize::MAX).await.unwrap();
        assert!(read.len() < 300 && !read.is_empty(), "what is good before the rot is served");
    }
    cluster.boot(3, away).await;
    for broker in [1, 2] {
        repaired(&cluster, broker).await;
        cluster.shows(broker, 1, &names(300)).await;
    }
    let leader = cluster.leader(1, &[1, 2, 3]).await;
    propose(&cluster.group(leader, 1), "record 300").await.unwrap();
}

/// The next so many writes to this file find a full disk.
fn fail_writes(disk: &SimDisk, path: &Path, count: u64) {
    for skip in 0..count {
        let path_contains = path.to_string_lossy().into_owned();
        disk.inject(Fault { kind: OpKind::Write, path_contains, skip, errno: ENOSPC, loses_data: false });
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotten_replica_votes_but_does_not_lead() {
    let mut cluster = written(300).await;
    let disk = cluster.brokers[&1].disk.clone();
    let (path, _) = segments(&disk, 1).await.remove(1);
    fail_writes(&disk, &path, 20);
    disk.flip_bit(&path, 100, 2);
    assert!(cluster.group(1, 1).log().verify().await.is_err());
    // It led, and hands over, since it could not be repaired at once.
    let leader = cluster.leader(1, &[2, 3]).await;
    assert!(cluster.group(1, 1).log().is_rotten());
    let before = cluster.group(leader, 1).status();
    let refused = cluster.group(leader, 1).transfer_leader(ReplicaId(11)).await.unwrap_err();
    assert!(refused.to_string().contains("its log is rotten"), "{refused}");
    let after = cluster.group(leader, 1).status();
    assert_eq!((after.leading, after.term), (true, before.term), "it asked first: nobody was disturbed");
    let next = leader;
    let dead = cluster.kill(next).await;
    // Two are left, and the rotten one's vote is needed.
    let other = 5 - next;
    assert_eq!(cluster.leader(1, &[1, other]).await, other);
    propose(&cluster.group(other, 1), "record 300").await.unwrap();
    cluster.boot(next, dead).await;
    let room = async {
        while cluster.brokers[&1].disk.faults_left() > 0 {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(600), room).await.unwrap();
    repaired(&cluster, 1).await;
    cluster.shows(1, 1, &names(301)).await;
    cluster.group(other, 1).transfer_leader(ReplicaId(11)).await.unwrap();
    assert_eq!(cluster.leader(1, &[1, 2, 3]).await, 1);
}

/// Writes to a group whose only replica is broker 1's, which comes back without one of its segments, and leads.
async fn lose_a_segment(cluster: &mut Cluster, group: &RaftGroup) {
    write_all(group, &names(300)).await;
    sleep(Duration::from_secs(2)).await;
    cluster.brokers[&1].store.checkpoint().await.unwrap();
    let (path, _) = segments(&cluster.brokers[&1].disk, 1).await.remove(1);
    let disk = cluster.kill(1).await;
    disk.remove_file(&path).await.unwrap();
    cluster.boot(1, disk).await;
    assert_eq!(cluster.leader(1, &[1]).await, 1);
}

#[tokio::test(start_paused = true)]
async fn the_only_replica_serves_around_the_rot() {
    let mut cluster = Cluster::start_with(1, from_files()).await;
    let group = cluster.create(1).await;
    lose_a_segment(&mut cluster, &group).await;
    sleep(Duration::from_secs(5)).await;
    let log = cluster.group(1, 1).log().clone();
    let rot = log.rot();
    assert!(rot[0].outlook.as_ref().unwrap().contains("no other replica"), "{rot:?}");
    let segments = log.segments();
    let (lost, next) = (segments[1], segments[2]);
    // Whoever asks for the hole is told so, and need not wait for a repair that nobody can make.
    let hole = timeout(Duration::from_secs(1), log.read(lost.base_offset, log.high_watermark(), 1)).await;
    assert!(hole.expect("an answer at once").is_err());
    let behind = log.read(next.base_offset, log.high_watermark(), usize::MAX).await.unwrap();
    assert_eq!(behind.last().unwrap().payload, Bytes::from_static(b"record 299"));
    let before = log.read(log.log_start_offset(), lost.base_offset, usize::MAX).await.unwrap();
    assert_eq!(before.len() as u64, lost.base_offset.0);
}

#[tokio::test(start_paused = true)]
async fn a_rotten_replica_that_is_replaced_is_moved_aside_and_kept() {
    let mut cluster = written(300).await;
    let disk = cluster.brokers[&3].disk.clone();
    let (path, _) = segments(&disk, 3).await.remove(1);
    disk.flip_bit(&path, 100, 2);
    let groups = cluster.brokers[&3].groups.clone();
    let log = cluster.group(3, 1).log().clone();
    fail_writes(&disk, &path, 1000);
    // Its core ends, its files stay, and it is reported.
    assert!(log.verify().await.is_err());
    assert!(groups.hosted.set_aside(&log, "for a test").await);
    assert_eq!(groups.lost().len(), 1);
    groups.create(GroupId(1), ReplicaId(99), Former::Delete).await.unwrap();
    for _ in 0..2 {
        let kept = cluster.brokers[&3].store.quarantined();
        assert_eq!(kept, [PathBuf::from("/data/groups/quarantined-1-13")]);
        assert!(cluster.brokers[&3].disk.read_dir(&kept[0]).await.unwrap().len() > 4);
        assert!(cluster.brokers[&3].store.unknown_folders().is_empty());
        cluster.restart(3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_could_not_be_moved_aside_is_not_forgotten() {
    let mut cluster = written(300).await;
    let disk = cluster.brokers[&3].disk.clone();
    let (path, _) = segments(&disk, 3).await.remove(1);
    disk.flip_bit(&path, 100, 2);
    let log = cluster.group(3, 1).log().clone();
    fail_writes(&disk, &path, 1000);
    assert!(log.verify().await.is_err());
    let path_contains = "quarantined".to_owned();
    disk.inject(Fault { kind: OpKind::Rename, path_contains, skip: 0, errno: ENOSPC, loses_data: false });
    let groups = cluster.brokers[&3].groups.clone();
    assert!(groups.create(GroupId(1), ReplicaId(99), Former::Delete).await.is_err());
    groups.create(GroupId(1), ReplicaId(99), Former::Delete).await.unwrap();
    assert_eq!(groups.present(), [(GroupId(1), ReplicaId(99))]);
    assert_eq!(cluster.brokers[&3].store.quarantined(), [PathBuf::from("/data/groups/quarantined-1-13")]);
    cluster.restart(3).await;
    assert_eq!(cluster.brokers[&3].groups.present(), [(GroupId(1), ReplicaId(99))]);
}

/// Rotten or not, it votes: without it nothing could be committed, not even the membership that does without it.
#[tokio::test(start_paused = true)]
async fn a_rotten_replica_that_the_majority_needs_is_not_set_aside() {
    let mut cluster = written(10).await;
    let away = cluster.kill(2).await;
    let leader = cluster.leader(1, &[1, 3]).await;
    let rotten = 4 - leader;
    let groups = cluster.brokers[&rotten].groups.clone();
    let log = cluster.group(rotten, 1).log().clone();
    assert!(!groups.hosted.set_aside(&log, "for a test").await);
    propose(&cluster.group(leader, 1), "record 10").await.unwrap();
    cluster.boot(2, away).await;
    cluster.shows(2, 1, &names(11)).await;
    assert!(groups.hosted.set_aside(&log, "for a test").await);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_lives_without_its_replica_does_not_count_for_a_majority() {
    let cluster = written(10).await;
    let leader = cluster.leader(1, &[1, 2, 3]).await;
    let (ended, rotten) = if leader == 3 { (1, 2) } else { (3, 3 - leader) };
    let gone = cluster.group(ended, 1);
    cluster.brokers[&ended].groups.hosted.end_lost(&gone, "for a test").await;
    let log = cluster.group(rotten, 1).log().clone();
    assert!(!cluster.brokers[&rotten].groups.hosted.set_aside(&log, "for a test").await);
    propose(&cluster.group(leader, 1), "record 10").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_cannot_start_because_of_rot_is_repaired_first() {
    let mut cluster = written(300).await;
    for broker in [1, 2] {
        let disk = cluster.kill(broker).await;
        // The last segment's first header: what stands behind it, up to the log's end, cannot be found.
        let (path, _) = segments(&disk, broker).await.pop().unwrap();
        disk.flip_bit(&path, if broker == 1 { 3 } else { 500 }, 1);
        disk.flip_bit(&path, 58, 1);
        cluster.boot(broker, disk).await;
    }
    let open = async {
        while (1..=2).any(|broker| cluster.brokers[&broker].groups.get(GroupId(1)).is_none()) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), open).await.unwrap();
    let leader = cluster.leader(1, &[1, 2, 3]).await;
    propose(&cluster.group(leader, 1), "record 300").await.unwrap();
    for broker in 1..=3 {
        cluster.shows(broker, 1, &names(301)).await;
        assert_eq!(cluster.group(broker, 1).replica(), ReplicaId(10 + u64::from(broker)));
    }
}

/// Flips a bit in the header of the last segment's first entry, and one in the last entry: a replica that cannot start before both are
/// mended.
async fn rot_at_the_end(disk: &SimDisk, broker: u32) {
    let (path, bytes) = segments(disk, broker).await.pop().unwrap();
    disk.flip_bit(&path, 3, 1);
    disk.flip_bit(&path, 58, 1);
    let frames: Vec<u64> = frame_starts(&bytes);
    assert!(frames.len() > 1, "the last entry has a segment to itself");
    disk.flip_bit(&path, *frames.last().unwrap() + 20, 1);
}

fn frame_starts(bytes: &Bytes) -> Vec<u64> {
    let (mut rest, mut starts) = (bytes.clone(), Vec::new());
    loop {
        let at = (bytes.len() - rest.len()) as u64;
        if Frame::decode(&mut rest).is_err() {
            return starts;
        }
        starts.push(at);
    }
}

/// Writes an entry that only broker 1, the leader, has, and brings it into its segment.
async fn write_alone(cluster: &mut Cluster) -> [SimDisk; 2] {
    let away = [cluster.kill(2).await, cluster.kill(3).await];
    let group = cluster.group(1, 1);
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move { group.propose(Bytes::from_static(b"of nobody"), Some(tell)).await });
    told.await.unwrap();
    sleep(Duration::from_secs(2)).await;
    cluster.brokers[&1].store.checkpoint().await.unwrap();
    away
}

/// Broker 1 is down: what is rotten at the end of its log nobody else has, and one of the others leads. With its disk and the leader.
async fn rotten_and_superseded() -> (Cluster, SimDisk, u32) {
    let mut cluster = written(300).await;
    let away = write_alone(&mut cluster).await;
    let disk = cluster.kill(1).await;
    rot_at_the_end(&disk, 1).await;
    for (broker, disk) in [2, 3].into_iter().zip(away) {
        cluster.boot(broker, disk).await;
    }
    let leader = cluster.leader(1, &[2, 3]).await;
    (cluster, disk, leader)
}

/// A leader's last entry, which nobody else has, is rotten when it is to be sent to the others, as at seed 3056943.
#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_send_the_end_of_its_log_makes_way() {
    let mut cluster = written(300).await;
    let away = write_alone(&mut cluster).await;
    // The last one of all is in memory.
    let group = cluster.group(1, 1);
    tokio::spawn(async move { propose(&group, &"of nobody either".repeat(1000)).await });
    sleep(Duration::from_secs(2)).await;
    let disk = cluster.brokers[&1].disk.clone();
    let (path, bytes) = segments(&disk, 1).await.pop().unwrap();
    let of_nobody = bytes.windows(9).position(|bytes| bytes == b"of nobody").unwrap();
    disk.flip_bit(&path, of_nobody as u64, 1);
    for (broker, disk) in [2, 3].into_iter().zip(away) {
        cluster.boot(broker, disk).await;
    }
    let written = async {
        loop {
            for broker in [2, 3] {
                let group = cluster.group(broker, 1);
                let proposed = timeout(Duration::from_secs(1), propose(&group, "record 300"));
                if proposed.await.is_ok_and(|proposed| proposed.is_ok()) {
                    return;
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(timeout(Duration::from_secs(30), written).await.is_ok(), "{:?}", cluster.brokers[&1].store.rotten());
    // What came in its place supersedes it.
    let settled = async {
        while cluster.brokers[&1].groups.lost().is_empty() && cluster.group(1, 1).log().is_rotten() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(timeout(Duration::from_secs(120), settled).await.is_ok(), "{:?}", cluster.brokers[&1].store.rotten());
}

async fn opens_within(cluster: &Cluster, broker: u32, limit: Duration) {
    let open = async {
        while cluster.brokers[&broker].groups.get(GroupId(1)).is_none() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let lost = || cluster.brokers[&broker].groups.lost();
    assert!(timeout(limit, open).await.is_ok(), "not open: {:?} {:?}", lost(), cluster.brokers[&broker].store.rotten());
}

/// What is rotten was never committed, and something else was in its place: there is nothing to repair, and nothing to wait for.
#[tokio::test(start_paused = true)]
async fn rotten_entries_that_were_superseded_are_dropped_at_once_and_the_replica_keeps_its_id() {
    let (mut cluster, disk, leader) = rotten_and_superseded().await;
    propose(&cluster.group(leader, 1), "record 300").await.unwrap();
    cluster.boot(1, disk).await;
    assert!(cluster.brokers[&1].groups.is_opening(GroupId(1)), "the test wants a replica that cannot start");
    opens_within(&cluster, 1, Duration::from_secs(10)).await;
    cluster.shows(1, 1, &names(301)).await;
    let group = cluster.group(1, 1);
    assert_eq!((group.replica(), group.log().is_rotten()), (ReplicaId(11), false));
    // It counts: with one other dead, it makes the majority.
    drop(cluster.kill(5 - leader).await);
    let leader = cluster.leader(1, &[1, leader]).await;
    propose(&cluster.group(leader, 1), "record 301").await.unwrap();
}

/// Whoever starts, restarts or deletes a replica does so alone: its log is not cut under a core that reads it.
#[tokio::test(start_paused = true)]
async fn superseded_entries_are_not_dropped_while_a_core_may_be_starting() {
    let (mut cluster, disk, leader) = rotten_and_superseded().await;
    propose(&cluster.group(leader, 1), "record 300").await.unwrap();
    cluster.boot(1, disk).await;
    let broker = &cluster.brokers[&1];
    let (groups, log) = (broker.groups.clone(), broker.store.replicas().remove(0).log);
    let last = log.last_log_id();
    let alone = groups.hosted.lifecycle_of(GroupId(1)).lock().await;
    sleep(Duration::from_secs(20)).await;
    assert!(groups.is_opening(GroupId(1)) && log.is_rotten());
    assert_eq!(log.last_log_id(), last);
    drop(alone);
    opens_within(&cluster, 1, Duration::from_secs(20)).await;
    cluster.shows(1, 1, &names(301)).await;
}

/// Nobody has it, and everybody has said so: the replica is given up in seconds, not minutes. While somebody has not, it waits.
#[tokio::test(start_paused = true)]
async fn a_replica_with_rot_that_nobody_can_mend_waits_only_for_those_who_have_not_answered() {
    let mut cluster = written(300).await;
    let away = write_alone(&mut cluster).await;
    let disk = cluster.kill(1).await;
    rot_at_the_end(&disk, 1).await;
    cluster.boot(1, disk).await;
    sleep(Duration::from_secs(30)).await;
    assert!(cluster.brokers[&1].groups.is_opening(GroupId(1)) && cluster.brokers[&1].groups.lost().is_empty());
    // Both come, and neither elects a leader: they cannot see each other.
    cluster.partition(2, 3);
    for (broker, disk) in [2, 3].into_iter().zip(away) {
        cluster.boot(broker, disk).await;
    }
    let given_up = async {
        while cluster.brokers[&1].groups.lost().is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(40), given_up).await.unwrap();
}

/// An entry above the commit index, too, is the entry of its term and index: whoever has it has the same bytes, and putting them back
/// gives the group a copy that it may need (it may have been committed without this replica's having heard of it).
#[tokio::test(start_paused = true)]
async fn what_is_rotten_above_the_commit_index_is_put_back_from_whoever_has_it() {
    let mut cluster = written(300).await;
    let away = cluster.kill(3).await;
    // It comes to 2, and 1 does not hear so.
    cluster.cut(2, 1);
    let group = cluster.group(1, 1);
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move { group.propose(Bytes::from_static(b"record 300"), Some(tell)).await });
    told.await.unwrap();
    let entry = everything_is_at_two(&cluster).await;
    let mut disks = Vec::new();
    for broker in [1, 2] {
        cluster.brokers[&broker].store.checkpoint().await.unwrap();
        disks.push(cluster.kill(broker).await);
    }
    cluster.network.heal_all();
    let (second, first) = (disks.remove(1), disks.remove(0));
    rot_at_the_end(&first, 1).await;
    cluster.boot(2, second).await;
    cluster.boot(1, first).await;
    let log = cluster.brokers[&1].store.replicas().remove(0).log;
    assert!(log.last_log_id() == Some(entry) && log.committed_log_id().is_some_and(|committed| committed < entry));
    opens_within(&cluster, 1, Duration::from_secs(10)).await;
    assert_eq!(cluster.group(1, 1).replica(), ReplicaId(11));
    // It is one of two copies that make the entry committed; and then the one from which the third gets it.
    cluster.leader(1, &[1, 2]).await;
    cluster.shows(1, 1, &names(301)).await;
    drop(cluster.kill(2).await);
    cluster.boot(3, away).await;
    assert_eq!(cluster.leader(1, &[1, 3]).await, 1);
    cluster.shows(3, 1, &names(301)).await;
}

/// A replica that cannot run before it is repaired, and what it lacks has been purged by everyone else: nobody will ever give it.
#[tokio::test(start_paused = true)]
async fn a_replica_that_is_rotten_where_the_others_have_purged_is_given_up() {
    let (mut cluster, disk, leader) = rotten_and_superseded().await;
    write_all(&cluster.group(leader, 1), &names(300)).await;
    for broker in [2, 3] {
        let group = cluster.group(broker, 1);
        cluster.brokers[&broker].store.checkpoint().await.unwrap();
        group.snapshot(560).await.unwrap();
        let purged = async {
            while group.log().log_start_offset().0 < 400 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(30), purged).await.unwrap();
    }
    cluster.boot(1, disk).await;
    given_up(&cluster, 1).await;
}

/// A replica that runs and holds all that the others have kept, but cannot apply it: before that stands a rotten entry, which they have
/// purged.
#[tokio::test(start_paused = true)]
async fn a_replica_that_cannot_apply_what_the_others_have_purged_is_given_up() {
    let mut cluster = written(300).await;
    let away = cluster.kill(3).await;
    // Ninety come to 2, and 1, who leads, does not hear so. In two lots, of which the second begins a segment; and quickly, before 2 is
    // missed, which answers nothing that 1 hears.
    cluster.cut(2, 1);
    let group = cluster.group(1, 1);
    for lot in names(390)[300..].chunks(45) {
        let flushed = lot.iter().cloned().map(|name| {
            let (group, (tell, told)) = (group.clone(), oneshot::channel());
            tokio::spawn(async move { group.propose(Bytes::from(name), Some(tell)).await });
            told
        });
        futures_util::future::try_join_all(flushed.collect::<Vec<_>>()).await.unwrap();
    }
    let last = everything_is_at_two(&cluster).await;
    let committed = group.log().committed_log_id().unwrap().index;
    assert!(last.index >= committed + 90, "none of them is known to be committed");
    drop(group);
    let disk = cluster.kill(1).await;
    cluster.network.heal_all();
    cluster.boot(3, away).await;
    let leader = cluster.leader(1, &[2, 3]).await;
    for broker in [2, 3] {
        cluster.shows(broker, 1, &names(390)).await;
        cluster.brokers[&broker].store.checkpoint().await.unwrap();
        cluster.group(broker, 1).snapshot(380).await.unwrap();
    }
    for broker in [2, 3] {
        let group = cluster.group(broker, 1);
        let purged = async {
            while group.log().first_index() <= committed {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(30), purged).await.unwrap();
    }
    // It comes back with them in memory, and has brought them into their files before it hears that they are committed.
    cluster.isolate(1);
    cluster.boot(1, disk).await;
    sleep(Duration::from_secs(3)).await;
    cluster.brokers[&1].store.checkpoint().await.unwrap();
    let disk = &cluster.brokers[&1].disk;
    let first_index =
        |path: &Path| crate::log::segment::parse(path.file_name().unwrap().to_str().unwrap()).unwrap().0.first_index;
    let (path, bytes) = segments(disk, 1).await.into_iter().rfind(|(path, _)| first_index(path) < committed).unwrap();
    disk.flip_bit(&path, frame_starts(&bytes)[(committed + 2 - first_index(&path)) as usize] + 3, 1);
    cluster.network.heal_all();
    let groups = &cluster.brokers[&1].groups;
    assert!(groups.get(GroupId(1)).is_some(), "it runs: {:?}", cluster.brokers[&1].store.rotten());
    let lost = async {
        while groups.lost().is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(timeout(Duration::from_secs(30), lost).await.is_ok(), "{:?}", cluster.brokers[&1].store.rotten());
    assert_eq!(cluster.leader(1, &[2, 3]).await, leader);
}

/// A replica that runs and lacks nothing, but cannot be read: in a segment that it keeps an entry is rotten that the others, whose
/// segments end elsewhere, have purged. Nobody will ever mend it.
#[tokio::test(start_paused = true)]
async fn a_replica_that_is_rotten_for_good_where_it_is_read_is_given_up() {
    let cluster = written(300).await;
    for broker in [2, 3] {
        let group = cluster.group(broker, 1);
        group.snapshot(200).await.unwrap();
        let purged = async {
            while group.log().first_index() < 100 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(30), purged).await.unwrap();
    }
    let (path, _) = segments(&cluster.brokers[&1].disk, 1).await.into_iter().min().unwrap();
    cluster.brokers[&1].disk.flip_bit(&path, 44, 1);
    let log = cluster.group(1, 1).log().clone();
    let read = timeout(Duration::from_secs(1), log.read(Offset(0), Offset(300), 1 << 20)).await;
    assert!(!matches!(read, Ok(Ok(_))) && log.is_rotten());
    let lost = async {
        while cluster.brokers[&1].groups.lost().is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(timeout(Duration::from_secs(60), lost).await.is_ok(), "{:?}", cluster.brokers[&1].store.rotten());
    // It led, and handed over before.
    let leader = cluster.leader(1, &[2, 3]).await;
    propose(&cluster.group(leader, 1), "record 300").await.unwrap();
}

/// Waits until broker 2 holds the last entry of group 1 that broker 1 has: returns it.
async fn everything_is_at_two(cluster: &Cluster) -> LogId {
    let last = |broker| cluster.group(broker, 1).log().last_log_id().unwrap();
    let arrives = async {
        while last(2) != last(1) {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(5), arrives).await.unwrap();
    last(1)
}

/// Waits until a broker has given up its replica of group 1: long before it would without its peers' proof.
async fn given_up(cluster: &Cluster, broker: u32) {
    let groups = &cluster.brokers[&broker].groups;
    assert!(groups.is_opening(GroupId(1)), "it waits to be repaired: {:?}", cluster.brokers[&broker].store.rotten());
    let lost = async {
        while groups.lost().is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(30), lost).await.unwrap();
    assert!(cluster.brokers[&broker].disk.read_dir(&folder(broker)).await.is_ok(), "its files stay");
}

/// Whoever joins the only replica reads up to the hole; that must not end the replica that serves around it.
#[tokio::test(start_paused = true)]
async fn a_hole_does_not_end_the_only_replica_when_another_joins() {
    let mut cluster = Cluster::start_with(3, from_files()).await;
    cluster.brokers[&1].groups.create(GroupId(1), ReplicaId(11), Former::Delete).await.unwrap();
    let group = cluster.group(1, 1);
    let home = ReplicaHome { broker: BrokerId(1) };
    group.initialize(std::collections::BTreeMap::from([(ReplicaId(11), home)])).await.unwrap();
    assert_eq!(cluster.leader(1, &[1]).await, 1);
    lose_a_segment(&mut cluster, &group).await;
    cluster.brokers[&2].groups.create(GroupId(1), ReplicaId(99), Former::Delete).await.unwrap();
    let group = cluster.group(1, 1);
    let joins = group.clone();
    tokio::spawn(async move { joins.add_learner(ReplicaId(99), ReplicaHome { broker: BrokerId(2) }).await });
    sleep(Duration::from_secs(40)).await;
    assert!(cluster.brokers[&1].groups.lost().is_empty(), "{:?}", cluster.brokers[&1].groups.lost());
}
