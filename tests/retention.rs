//! What is kept, and for how long: by time, by size, on every replica, and that the disk has its room back.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Cluster, PATIENCE, read};

mod offsets;

/// Looks often, so that tests are quick.
const QUICK: [&str; 4] = ["--set", "retention.check_interval_ms=50", "--set", "raft.checkpoint_interval_ms=200"];

async fn create(cluster: &Cluster, name: &str, partitions: u32, config: Value) {
    let topic = json!({"name": name, "partitions": partitions, "config": config});
    let (status, body) = cluster.post(1, "/v1/topics", topic).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
}

/// Produces records of these values at these times (ms; `None`: now) as one batch. Returns the first one's offset.
async fn produce(cluster: &Cluster, id: u32, topic: &str, partition: u32, records: &[(&str, Option<i64>)]) -> u64 {
    let records: Vec<Value> = records
        .iter()
        .map(|(value, timestamp)| match timestamp {
            Some(timestamp) => json!({"value": value, "timestamp": timestamp}),
            None => json!({"value": value}),
        })
        .collect();
    let path = format!("/v1/topics/{topic}/partitions/{partition}/records");
    let (status, body) = cluster.post(id, &path, json!({"records": records})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body["base_offset"].as_u64().unwrap()
}

/// `count` values of `bytes` bytes that say their number.
async fn fill(cluster: &Cluster, topic: &str, partition: u32, from: usize, count: usize, bytes: usize) {
    for number in from..from + count {
        let value = format!("{number:08} {}", "x".repeat(bytes));
        cluster.produce_text(1, topic, partition, &value).await;
    }
}

/// Log start and high watermark.
async fn offsets(cluster: &Cluster, id: u32, topic: &str, partition: u32) -> (u64, u64) {
    let (status, body) = cluster.get(id, &format!("/v1/topics/{topic}/partitions/{partition}/offsets")).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    (body["log_start_offset"].as_u64().unwrap(), body["high_watermark"].as_u64().unwrap())
}

async fn until_starts(cluster: &Cluster, id: u32, topic: &str, partition: u32, wanted: impl Fn(u64) -> bool) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (start, end) = offsets(cluster, id, topic, partition).await;
        if wanted(start) {
            return start;
        }
        assert!(Instant::now() < deadline, "{topic}/{partition} still starts at {start} of {end}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Bytes on the disk of every partition's files on a broker, reserved room included.
fn partition_bytes(data: &Path) -> u64 {
    let mut bytes = 0;
    for folder in fs::read_dir(data.join("groups")).unwrap().flatten() {
        if folder.file_name().to_string_lossy().starts_with("0-") {
            continue; // the catalog
        }
        let Ok(files) = fs::read_dir(folder.path()) else { continue };
        bytes += files.flatten().filter_map(|file| file.metadata().ok()).map(|file| file.blocks() * 512).sum::<u64>();
    }
    bytes
}

/// Files that a process holds open though they are unlinked: their room is not free.
fn unlinked_and_open(pid: u32) -> Vec<String> {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let targets = open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.map(|target| target.display().to_string()).filter(|target| target.ends_with("(deleted)")).collect()
}

/// Waits until every broker's partitions take at most so many bytes, and nothing unlinked is held open.
async fn until_small(cluster: &Cluster, bytes: u64) {
    let deadline = Instant::now() + PATIENCE;
    for id in 1..=cluster.len() {
        loop {
            let (taken, held) = (partition_bytes(cluster.data_dir(id)), unlinked_and_open(cluster.pid(id)));
            if taken <= bytes && held.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "broker {id} takes {taken} bytes and holds {held:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn numbers(records: &[Value]) -> Vec<usize> {
    records.iter().map(|record| record["value"].as_str().unwrap()[..8].parse().unwrap()).collect()
}

async fn until_in_sync(cluster: &Cluster, id: u32, topic: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, body) = cluster.get(id, &format!("/v1/topics/{topic}")).await;
        let partitions = body["partitions"].as_array().cloned().unwrap_or_default();
        if !partitions.is_empty()
            && partitions.iter().all(|one| one["in_sync"].as_array().is_some_and(|in_sync| in_sync.len() == 3))
        {
            return;
        }
        assert!(Instant::now() < deadline, "{body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What the configuration says for all topics holds for one that says nothing, and not for one that does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_says_nothing_has_the_brokers_retention() {
    let of_all = ["--set", "log.retention.bytes=300000", "--set", "log.segment.bytes=100000"];
    let cluster = Cluster::start_with(1, &[&QUICK[..], &of_all].concat()).await;
    create(&cluster, "silent", 1, json!({})).await;
    create(&cluster, "says", 1, json!({"retention.bytes": "-1"})).await;
    for topic in ["silent", "says"] {
        fill(&cluster, topic, 0, 0, 20, 50_000).await;
    }
    let start = until_starts(&cluster, 1, "silent", 0, |start| start > 0).await;
    assert!(start <= 16, "200 to 300 kB are kept, not {} records", 20 - start);
    let of_all = ["--set", "log.retention.ms=1000", "--set", "log.segment.ms=1000"];
    let aged = Cluster::start_with(1, &[&QUICK[..], &of_all].concat()).await;
    create(&aged, "silent", 1, json!({})).await;
    fill(&aged, "silent", 0, 0, 3, 10).await;
    until_starts(&aged, 1, "silent", 0, |start| start == 3).await;
    assert_eq!(offsets(&cluster, 1, "says", 0).await, (0, 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_old_goes_on_every_replica_and_the_disk_has_its_room_back() {
    let mut cluster = Cluster::start_with(3, &QUICK).await;
    create(&cluster, "t", 2, json!({"retention.ms": "-1", "segment.bytes": "65536"})).await;
    for partition in 0..2 {
        fill(&cluster, "t", partition, 0, 60, 30_000).await;
    }
    let begun = partition_bytes(cluster.data_dir(1));
    assert!(begun > 1 << 20, "{begun} bytes for 3.6 MB");
    let shorter = json!({"config": {"retention.ms": "1500"}});
    let (status, body) = cluster.ask(1, reqwest::Method::PATCH, "/v1/topics/t", Some(shorter)).await;
    assert_eq!(status.as_u16(), 200, "{body}");
    for partition in 0..2 {
        until_starts(&cluster, 2, "t", partition, |start| start == 60).await;
        assert_eq!(cluster.fetch_all(3, "t", partition).await, [] as [Value; 0]);
        let path = format!("/v1/topics/t/partitions/{partition}/records?offset=59");
        let (status, body) = cluster.get(1, &path).await;
        assert_eq!(
            (status.as_u16(), &body["log_start_offset"], &body["high_watermark"]),
            (416, &json!(60), &json!(60))
        );
    }
    // All of it, the segment that was being written too: what is left are a few small files and a chunk of reserved room.
    until_small(&cluster, 2 * (200 << 10)).await;
    // It goes on at the offset where it was, and that survives the end of every process.
    for id in 1..=3 {
        cluster.kill(id);
    }
    for id in 1..=3 {
        cluster.spawn(id);
    }
    for id in 1..=3 {
        cluster.wait_ready(id).await;
    }
    assert_eq!(offsets(&cluster, 1, "t", 1).await, (60, 60));
    let change = json!({"config": {"retention.ms": "3600000"}});
    let (status, body) = cluster.ask(1, Method::PATCH, "/v1/topics/t", Some(change)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    fill(&cluster, "t", 1, 60, 3, 10).await;
    assert_eq!(numbers(&cluster.fetch_all(2, "t", 1).await), [60, 61, 62]);
    // The topic's description says the same, once its leader's report has come.
    let epoch = cluster.produce_text(3, "t", 1, "63").await["leader_epoch"].clone();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, body) = cluster.get(1, "/v1/topics/t").await;
        let told = &body["partitions"][1];
        if (&told["log_start_offset"], &told["high_watermark"], &told["leader_epoch"])
            == (&json!(60), &json!(64), &epoch)
        {
            break;
        }
        assert!(Instant::now() < deadline, "epoch {epoch}: {body}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_past_the_boundary_holds_exactly_what_is_retained() {
    let mut cluster = Cluster::start_with(3, &QUICK).await;
    create(&cluster, "t", 3, json!({"segment.bytes": "16384"})).await;
    for partition in 0..3 {
        fill(&cluster, "t", partition, 0, 10, 2000).await;
    }
    // Each leads one: broker 3 will again, and then it is its own log that is read.
    let mut its_own = 0;
    while cluster.leader(1, "t", its_own).await != 3 {
        its_own += 1;
    }
    until_in_sync(&cluster, 1, "t").await;
    cluster.kill(3);
    for partition in 0..3 {
        fill(&cluster, "t", partition, 10, 200, 2000).await;
    }
    // The configuration is changed under way: it counts from then on.
    let change = json!({"config": {"retention.bytes": "100000"}});
    assert_eq!(cluster.ask(2, Method::PATCH, "/v1/topics/t", Some(change)).await.0, StatusCode::OK);
    let mut starts = Vec::new();
    for partition in 0..3 {
        starts.push(until_starts(&cluster, 1, "t", partition, |start| start > 140).await);
    }
    until_small_but(&cluster, 2, 3 * (100_000 + 200_000)).await;
    cluster.restart(3).await;
    until_in_sync(&cluster, 1, "t").await;
    let deadline = Instant::now() + PATIENCE;
    while cluster.leader(1, "t", its_own).await != 3 {
        assert!(Instant::now() < deadline, "broker 3 has not been given its leadership back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for partition in 0..3 {
        let (start, end) = offsets(&cluster, 3, "t", partition).await;
        assert!(start >= starts[partition as usize] && end == 210, "{start} to {end}, not from {starts:?}");
        let found = numbers(&cluster.fetch_all(3, "t", partition).await);
        // Its segments end elsewhere than those of the leader before: it may let a little more go meanwhile.
        let (later, _) = offsets(&cluster, 3, "t", partition).await;
        let first = *found.first().unwrap();
        assert!((start as usize..=later as usize).contains(&first), "from {first}, not from {start} to {later}");
        assert_eq!(found, (first..210).collect::<Vec<_>>());
        // What is kept is at least what was asked for, and not much more. In the log a record takes 60 bytes for its frame and 61
        // for its batch, too.
        let kept = found.len() * (2009 + 60 + 61);
        assert!((100_000..170_000).contains(&kept), "{kept} bytes");
    }
    until_small(&cluster, 3 * (100_000 + 200_000)).await;
}

async fn until_small_but(cluster: &Cluster, id: u32, bytes: u64) {
    let deadline = Instant::now() + PATIENCE;
    while partition_bytes(cluster.data_dir(id)) > bytes {
        let taken = partition_bytes(cluster.data_dir(id));
        assert!(Instant::now() < deadline, "broker {id} takes {taken} bytes, not {bytes}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// RULES.md O7: one record from the future must not pin a log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_from_the_future_go_like_any_others() {
    let cluster = Cluster::start_with(3, &QUICK).await;
    create(&cluster, "t", 1, json!({"retention.ms": "1000", "segment.bytes": "65536"})).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let year = 365 * 86_400_000;
    produce(&cluster, 1, "t", 0, &[("00000000", Some(now + 50 * year)), ("00000001", Some(0))]).await;
    produce(&cluster, 2, "t", 0, &[("00000002", Some(i64::MAX))]).await;
    fill(&cluster, "t", 0, 3, 20, 10).await;
    let start = until_starts(&cluster, 3, "t", 0, |start| start == 23).await;
    assert_eq!(offsets(&cluster, 3, "t", 0).await, (start, 23));
    // Where nothing else comes too: an idle partition's last segment.
    produce(&cluster, 1, "t", 0, &[("00000023", Some(now + 50 * year))]).await;
    until_starts(&cluster, 3, "t", 0, |start| start == 24).await;
    until_small(&cluster, 200 << 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_partition_closes_its_segment_by_age_and_lets_the_old_go_from_under_the_new() {
    let cluster = Cluster::start_with(1, &QUICK).await;
    create(&cluster, "t", 1, json!({"retention.ms": "2000", "segment.ms": "200"})).await;
    let deadline = Instant::now() + PATIENCE;
    let mut number = 0;
    // Something new all the while: the segment that is written is never old as a whole.
    loop {
        fill(&cluster, "t", 0, number, 1, 10).await;
        number += 1;
        let (start, end) = offsets(&cluster, 1, "t", 0).await;
        if start > 0 {
            assert!(start < end, "what was just written is gone");
            break;
        }
        assert!(Instant::now() < deadline, "{number} records, and none is old");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_topic_gives_its_room_back() {
    let mut cluster = Cluster::start_with(3, &QUICK).await;
    create(&cluster, "kept", 1, json!({})).await;
    create(&cluster, "gone", 4, json!({})).await;
    fill(&cluster, "kept", 0, 0, 5, 10).await;
    for partition in 0..4 {
        fill(&cluster, "gone", partition, 0, 10, 200_000).await;
    }
    // Held open by a reader, too.
    let path = "/v1/topics/gone/partitions/1/records?max_bytes=1000000";
    let (status, _) = read(cluster.send(2, Method::GET, path, None).await).await;
    assert_eq!(status, StatusCode::OK);
    for id in 1..=3 {
        let taken = partition_bytes(cluster.data_dir(id));
        assert!(taken > 7 << 20, "broker {id} takes {taken} bytes for 8 MB");
    }
    // Also where a broker does not hear of it before it is back.
    cluster.kill(3);
    let (status, _) = cluster.ask(2, Method::DELETE, "/v1/topics/gone", None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    cluster.restart(3).await;
    until_small(&cluster, 200 << 10).await;
    for id in 1..=3 {
        let folders = fs::read_dir(cluster.data_dir(id).join("groups")).unwrap().count();
        assert_eq!(folders, 2, "broker {id}: the catalog and one partition");
    }
    assert_eq!(cluster.fetch_all(3, "kept", 0).await.len(), 5);
}

/// What was produced to a partition, by offset: its timestamps.
struct Times(Vec<i64>);

impl Times {
    /// Asks a broker for times all over the place, and compares each answer with the list.
    async fn compare(&self, cluster: &Cluster, id: u32, seed: usize) {
        let (first, last) = (self.0.iter().min().unwrap(), self.0.iter().max().unwrap());
        let some = (0..25).map(|at| self.0[(seed + at * 7919) % self.0.len()] + [0, 1, -1][at % 3]);
        for time in some.chain([*first - 1, *first, *last, *last + 1]) {
            self.compare_one(cluster, id, time).await;
        }
    }

    async fn compare_one(&self, cluster: &Cluster, id: u32, time: i64) {
        loop {
            let (start, end) = offsets(cluster, id, "t", 0).await;
            assert_eq!(end as usize, self.0.len());
            let path = format!("/v1/topics/t/partitions/0/offsets?timestamp={time}");
            let (_, by_offsets) = cluster.get(id, &path).await;
            let path = format!("/v1/topics/t/partitions/0/records?offset=timestamp:{time}&max_records=1");
            let (_, by_fetch) = cluster.get(id, &path).await;
            if offsets(cluster, id, "t", 0).await.0 != start {
                continue; // Retention has moved on under way.
            }
            let mut kept = self.0.iter().enumerate().skip(start as usize);
            let expected = kept.find(|(_, at)| **at >= time).map_or(end, |(offset, _)| offset as u64);
            assert_eq!(by_offsets["offset"], json!(expected), "{time} of {start}..{end}: {by_offsets}");
            let found = by_fetch["records"].as_array().unwrap().first().map(|record| record["offset"].clone());
            assert_eq!(found, (expected < end).then(|| json!(expected)), "{time} of {start}..{end}: {by_fetch}");
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_are_found_to_the_record_after_restarts_retention_and_a_snapshot() {
    let mut cluster = Cluster::start_with(3, &QUICK).await;
    create(&cluster, "t", 1, json!({"segment.bytes": "8192", "retention.ms": "-1"})).await;
    let mut times = Times(Vec::new());
    let begin = 1_700_000_000_000_i64;
    let mut more = async |cluster: &Cluster, batches: usize| {
        for _ in 0..batches {
            let next = times.0.len() as i64;
            // Rising on the whole, not within a batch, and with one clock that is an hour ahead.
            let ahead = if next % 11 == 3 { 3_600_000 } else { 0 };
            let batch: Vec<i64> = [40, 10, 30, 0, 20].map(|off| begin + next * 1000 + off + ahead).into();
            let value = format!("{next:08} {}", "x".repeat(150));
            let records: Vec<_> = batch.iter().map(|time| (value.as_str(), Some(*time))).collect();
            assert_eq!(produce(cluster, 1, "t", 0, &records).await, next as u64);
            times.0.extend(batch);
        }
        Times(times.0.clone())
    };
    more(&cluster, 20).await.compare(&cluster, 1, 1).await;
    cluster.kill(3);
    let all = more(&cluster, 80).await;
    all.compare(&cluster, 2, 2).await;
    // Retention takes the front away, in the middle of a batch or not.
    let change = json!({"config": {"retention.bytes": "40000"}});
    assert_eq!(cluster.ask(2, Method::PATCH, "/v1/topics/t", Some(change)).await.0, StatusCode::OK);
    until_starts(&cluster, 1, "t", 0, |start| start > 100).await;
    all.compare(&cluster, 1, 3).await;
    // A follower that gets a snapshot and what follows, then everybody after kill -9: indexes are made anew.
    cluster.restart(3).await;
    until_in_sync(&cluster, 1, "t").await;
    let all = more(&cluster, 10).await;
    for id in 1..=3 {
        cluster.kill(id);
    }
    for folder in fs::read_dir(cluster.data_dir(2).join("groups")).unwrap().flatten() {
        for file in fs::read_dir(folder.path()).unwrap().flatten() {
            if file.path().extension().is_some_and(|extension| extension == "index") {
                fs::write(file.path(), b"rotten").unwrap();
            }
        }
    }
    for id in 1..=3 {
        cluster.spawn(id);
    }
    for id in 1..=3 {
        cluster.wait_ready(id).await;
    }
    until_in_sync(&cluster, 1, "t").await;
    // Whoever leads: each in turn, as the others are stopped and come back.
    let mut led = std::collections::BTreeSet::new();
    for round in 0..6 {
        let leader = cluster.leader(1 + round % 3, "t", 0).await;
        all.compare(&cluster, leader, 5 + round as usize).await;
        led.insert(leader);
        if led.len() == 3 {
            break;
        }
        cluster.stop(leader);
        let other = if leader == 1 { 2 } else { 1 };
        let next = cluster.leader(other, "t", 0).await;
        all.compare(&cluster, next, 40 + round as usize).await;
        led.insert(next);
        cluster.restart(leader).await;
        until_in_sync(&cluster, other, "t").await;
    }
    assert!(led.len() >= 2, "only {led:?} ever led");
}
