//! What rots behind a log's beginning, and what is cut off under a broker that writes: snapshots and the journal.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use super::{cut, cut_to, files, flip, sound, status_says, told_healed, values};
use crate::support::{Cluster, PATIENCE};

const SCRUB: [&str; 2] = ["--set=raft.scrub_interval_ms=300", "--set=raft.scrub_bytes_per_second=1000000000"];
const NO_SCRUB: [&str; 1] = ["--set=raft.scrub_bytes_per_second=0"];
const TRIMMED: [&str; 2] = ["--set=retention.check_interval_ms=50", "--set=raft.checkpoint_interval_ms=200"];

/// Looks until it is so.
pub(super) async fn until(what: &str, cluster: &Cluster, broker: u32, mut so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so().await {
        assert!(Instant::now() < deadline, "{what}: {}", cluster.log(broker));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The snapshots of the partition's replica, not the catalog's.
fn snapshots(data: &Path) -> Vec<PathBuf> {
    let whole = |path: &PathBuf| path.extension().is_none() && !path.to_string_lossy().contains("/groups/0-");
    files(data, "/snapshot-").into_iter().filter(whole).collect()
}

/// A topic whose log begins behind a snapshot on every broker: what it still holds.
async fn trimmed(cluster: &Cluster) -> Vec<String> {
    let topic = json!({"name": "t", "config": {"segment.bytes": "4096"}});
    assert_eq!(cluster.post(1, "/v1/topics", topic).await.0, 201);
    for at in 0..150 {
        cluster.produce_text(1, "t", 0, &format!("value {at} {}", "x".repeat(100))).await;
    }
    let retain = async |bytes: Value| {
        let change = json!({"config": {"retention.bytes": bytes}});
        assert_eq!(cluster.ask(1, Method::PATCH, "/v1/topics/t", Some(change)).await.0, 200);
    };
    retain("12000".into()).await;
    for broker in 1..=3 {
        let begins_later = async || {
            let (_, offsets) = cluster.get(broker, "/v1/topics/t/partitions/0/offsets").await;
            offsets["log_start_offset"].as_u64().is_some_and(|start| start > 40)
                && snapshots(cluster.data_dir(broker)).len() == 1
                && files(cluster.data_dir(broker), "00000000000000000001-00000000.segment").len() < 2
        };
        until("no snapshot", cluster, broker, begins_later).await;
    }
    // It stays there: more may be let go once the last segment is closed.
    retain(Value::Null).await;
    let kept = values(&cluster.fetch_all(1, "t", 0).await);
    assert!(!kept.is_empty() && kept.len() < 110, "{} records are kept", kept.len());
    kept
}

/// Whether a broker that was emptied has its replica again, from a snapshot.
async fn filled(cluster: &Cluster, broker: u32) -> bool {
    let (_, topic) = cluster.get(1, "/v1/topics/t").await;
    topic["partitions"][0]["in_sync"].as_array().is_some_and(|in_sync| in_sync.len() == 3)
        && !snapshots(cluster.data_dir(broker)).is_empty()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_rots_under_a_running_broker_is_made_anew() {
    let cluster = Cluster::start_with(3, &[&SCRUB[..], &TRIMMED].concat()).await;
    let kept = trimmed(&cluster).await;
    let follower = cluster.leader(1, "t", 0).await % 3 + 1;
    for damage in [|path: &Path| flip(path, 40), cut as fn(&Path)] {
        let snapshot = snapshots(cluster.data_dir(follower)).remove(0);
        let mended = || cluster.log(follower).matches("made anew from its segments").count();
        let before = mended();
        damage(&snapshot);
        until("not mended", &cluster, follower, async || mended() > before && sound(&snapshot).await).await;
        let name = snapshot.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(cluster.log(follower).lines().any(|line| line.contains("made anew") && line.contains(&name)));
        told_healed(&cluster, follower, &name).await;
    }
    assert_eq!(values(&cluster.fetch_all(follower, "t", 0).await), kept);
}

/// Two of three have only a rotten one when they are started, the third has nothing: what it cannot get from entries it needs one for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_that_rot_while_their_brokers_are_stopped_or_run_cost_nothing() {
    let mut cluster = Cluster::start_with(3, &[&NO_SCRUB[..], &TRIMMED].concat()).await;
    let kept = trimmed(&cluster).await;
    for broker in 1..=3 {
        assert!(cluster.stop(broker).success());
    }
    let rotten = [1, 2].map(|broker| snapshots(cluster.data_dir(broker)).remove(0));
    flip(&rotten[0], 40);
    cut(&rotten[1]);
    fs::remove_dir_all(cluster.data_dir(3)).unwrap();
    cluster.restart_all(&[1, 2, 3]).await;
    for (broker, path) in (1..).zip(&rotten) {
        let name = path.file_name().unwrap().to_str().unwrap();
        told_healed(&cluster, broker, name).await;
    }
    until("broker 3 is not filled", &cluster, 3, async || filled(&cluster, 3).await).await;
    assert_eq!(values(&cluster.fetch_all(3, "t", 0).await), kept);

    // The same while they run: whoever leads finds its snapshot rotten when the third, empty again, needs it.
    cluster.kill(3);
    fs::remove_dir_all(cluster.data_dir(3)).unwrap();
    let rotten: Vec<PathBuf> = [1, 2].iter().flat_map(|broker| snapshots(cluster.data_dir(*broker))).collect();
    assert!(!rotten.is_empty());
    rotten.iter().for_each(|path| flip(path, 40));
    cluster.restart(3).await;
    until("broker 3 is not filled again", &cluster, 3, async || filled(&cluster, 3).await).await;
    let log = [cluster.log(1), cluster.log(2)].concat();
    assert!(log.lines().any(|line| line.contains("a file was rotten") && line.contains("made anew")), "{log}");
    for broker in [1, 2] {
        assert!(cluster.stop(broker).success());
        cluster.restart(broker).await;
    }
    assert_eq!(values(&cluster.fetch_all(3, "t", 0).await), kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_is_cut_under_a_running_broker_is_named_and_needless_before_a_crash() {
    let mut cluster = Cluster::start_with(3, &SCRUB).await;
    cluster.create_topic(1, "t", 1).await;
    let mut written = Vec::new();
    for at in 0..60 {
        written.push(format!("before {at}"));
        cluster.produce_text(1, "t", 0, written.last().unwrap()).await;
    }
    let follower = cluster.leader(1, "t", 0).await % 3 + 1;
    // The oldest: a later one may only have been prepared, and nothing stands in it.
    let journal = files(cluster.data_dir(follower), ".journal").remove(0);
    let whole = fs::metadata(&journal).unwrap().len();
    let name = journal.file_name().unwrap().to_str().unwrap().to_owned();
    let told = |cluster: &Cluster, what: &str| {
        cluster.log(follower).lines().filter(|line| line.contains(what) && line.contains(&name)).count()
    };
    // Nearly all of what stands in it; then only of the room for what will.
    for (times, left) in [(1, 4096 + 70), (2, whole - 4096)] {
        cut_to(&journal, left);
        // It goes on writing all the while.
        until("not found", &cluster, follower, async || {
            written.push(format!("while {}", written.len()));
            cluster.produce_text(follower, "t", 0, written.last().unwrap()).await;
            told(&cluster, "it has its length again") == times
        })
        .await;
        assert_eq!(fs::metadata(&journal).unwrap().len(), whole);
    }
    told_healed(&cluster, follower, &name).await;
    cluster.kill(follower);
    cluster.restart(follower).await;
    assert_eq!(values(&cluster.fetch_all(follower, "t", 0).await), written);
    assert!(!cluster.log(follower).contains("replica lost"), "{}", cluster.log(follower));
}

/// A read finds what rots under a running broker by itself. Nothing rotten is served, in no format, and all else is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_replica_serves_all_but_the_record_that_rots_under_it() {
    let cluster = Cluster::start_with(1, &[&NO_SCRUB[..], &["--set", "raft.tail_cache_bytes=1"]].concat()).await;
    cluster.create_topic(1, "t", 1).await;
    for at in 0..30 {
        cluster.produce_text(1, "t", 0, &format!("value {at:02}")).await;
    }
    let holds = |path: &PathBuf| fs::read(path).unwrap().windows(8).position(|bytes| bytes == b"value 10");
    let segments = files(cluster.data_dir(1), ".segment");
    // The newest may be on its way there.
    let mut found = None;
    until("not in its segment", &cluster, 1, async || {
        found = segments.iter().find_map(|path| Some((path.clone(), holds(path)?)));
        found.is_some()
    })
    .await;
    let (segment, position) = found.unwrap();
    assert_eq!(cluster.metric(1, "pontoon_log_rot_found_total").await, 0.0);
    flip(&segment, position as u64 + 3);
    for accept in ["application/json", "application/x-ndjson", "application/octet-stream"] {
        let ask = async |offset: u32| {
            let url = format!("{}/v1/topics/t/partitions/0/records?offset={offset}", cluster.url(1));
            cluster.http.get(url).header("accept", accept).send().await.unwrap()
        };
        for offset in [0, 9, 11, 12, 29] {
            let answer = ask(offset).await;
            assert_eq!(answer.status(), 200, "{accept} {offset}");
            let body = String::from_utf8_lossy(&answer.bytes().await.unwrap()).into_owned();
            assert!(body.contains(&format!("value {offset:02}")), "{accept} {offset}: {body}");
            assert!(!body.contains("value 10") && !body.contains("valqe 10"), "{accept} {offset}: {body}");
        }
        let refused = ask(10).await;
        assert_eq!(refused.status(), 500, "{accept}");
        let refused: Value = refused.json().await.unwrap();
        assert_eq!(refused["error"], "CORRUPT_LOG", "{accept}");
    }
    assert_eq!(cluster.metric(1, "pontoon_log_rot_found_total").await, 1.0);
    status_says(&cluster, 1, "!", "is rotten", true).await;
}
