//! Rot on the real binary: it is found, it is never served, and nothing acknowledged is lost while a good copy exists.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Cluster, run};

mod catalog;
mod running;

use running::until;

/// Files under a data directory whose path has this in it, sorted.
fn files(root: &Path, part: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().contains(part) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Flips one bit.
fn flip(path: &Path, position: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[position as usize] ^= 4;
    fs::write(path, bytes).unwrap();
}

fn cut_to(path: &Path, bytes: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

/// Cuts a file to half its length.
fn cut(path: &Path) {
    cut_to(path, fs::metadata(path).unwrap().len() / 2);
}

fn lines(stdout: &[u8]) -> Vec<Value> {
    stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

/// Waits until `status` says this of a broker (`!`: something is wrong; `note:`: all is well in spite of it), or nothing of the kind.
async fn status_says(cluster: &Cluster, id: u32, mark: &str, words: &str, says: bool) {
    let line = async || {
        let shown = run(&["status", "--server", &cluster.servers()], b"").await;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        shown.lines().any(|line| line.starts_with(&format!("{mark} broker {id}: ")) && line.contains(words))
    };
    until("status", cluster, id, async || line().await == says).await;
}

/// A file was rotten and is whole again, and whoever looks sees that: in `status`, in the log and in the metrics.
async fn told_healed(cluster: &Cluster, id: u32, name: &str) {
    let logged = |line: &str| line.contains("a file was rotten") && line.contains(name);
    until("log", cluster, id, async || cluster.log(id).lines().any(logged)).await;
    status_says(cluster, id, "note:", name, true).await;
    assert!(cluster.metric(id, "pontoon_rotten_files_healed").await > 0.0, "broker {id}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_file_is_shown_and_judged_offline() {
    let mut cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    for at in 0..20 {
        cluster.produce_text(1, "t", 0, &format!("value {at}")).await;
    }
    assert!(cluster.stop(1).success());
    let data = cluster.data_dir(1).to_owned();
    let dir = data.to_str().unwrap();

    let verified = run(&["log", "verify", dir, "--json"], b"").await;
    let reports = lines(&verified.stdout);
    assert_eq!(verified.status.code(), Some(0), "{reports:?}");
    for kind in ["segment", "base", "checkpoint", "identity", "journal", "cache", "lock"] {
        assert!(reports.iter().any(|report| report["kind"] == kind), "{kind}: {reports:?}");
    }

    // To people a folder's files that are not unsound are a number, unless they ask for all.
    let text = run(&["log", "verify", dir], b"").await;
    let summary = String::from_utf8_lossy(&text.stdout).into_owned();
    let (count, sound) = (reports.len(), reports.iter().filter(|report| report["sound"] == true).count());
    let wanted = format!("{count} files: {sound} sound, 0 not sound, {} not judged\n", count - sound);
    assert_eq!(summary, wanted);
    let all = run(&["log", "verify", dir, "--all"], b"").await;
    assert!(String::from_utf8_lossy(&all.stdout).lines().count() > count, "{count}");

    // The partition's segment, not the catalog's.
    let segment = files(&data, ".segment").into_iter().find(|path| !path.to_string_lossy().contains("/0-")).unwrap();
    let name = segment.to_str().unwrap();
    let dumped = run(&["log", "dump", name, "--json", "--records"], b"").await;
    let items = lines(&dumped.stdout);
    assert_eq!(dumped.status.code(), Some(0));
    let values = items.iter().flat_map(|item| item["batch_records"].as_array().cloned().unwrap_or_default());
    let values: Vec<String> = values.map(|record| record["value"].as_str().unwrap().to_owned()).collect();
    assert_eq!(values, (0..20).map(|at| format!("value {at}")).collect::<Vec<_>>());
    assert_eq!((&items.last().unwrap()["what"], &items.last().unwrap()["sound"]), (&"report".into(), &true.into()));
    let text = run(&["log", "dump", name], b"").await;
    assert!(String::from_utf8_lossy(&text.stdout).contains("kind=records"));
    assert!(String::from_utf8_lossy(&text.stderr).contains("sound"));
    let catalog =
        files(&data, "/groups/0-").into_iter().find(|path| path.to_string_lossy().ends_with(".segment")).unwrap();
    let text = run(&["log", "dump", catalog.to_str().unwrap()], b"").await;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("FormCluster"), "{text}");
    // Which folder of `groups` is which partition: docs/OPERATIONS.md tells operators to look here.
    let group = segment.parent().unwrap().file_name().unwrap().to_str().unwrap().split('-').next().unwrap();
    let created = text.lines().find(|line| line.contains("CreateTopic") && line.contains("name: \"t\"")).unwrap();
    assert!(created.contains(&format!("group: GroupId({group})")), "{created}");

    let middle = items.iter().find(|item| item["index"].as_u64().is_some_and(|index| index > 8)).unwrap();
    let position = middle["position"].as_u64().unwrap();
    flip(&segment, position + 70);
    let rotten = run(&["log", "verify", dir], b"").await;
    let (out, err) = (String::from_utf8_lossy(&rotten.stdout), String::from_utf8_lossy(&rotten.stderr));
    assert_eq!(rotten.status.code(), Some(1));
    assert!(out.contains(&format!("NOT SOUND from byte {position}")) && err.contains("1 of "), "{out}{err}");
    assert!(out.contains("1 not sound"), "{out}");
    let dumped = run(&["log", "dump", name, "--json"], b"").await;
    assert_eq!((dumped.status.code(), lines(&dumped.stdout).len()), (Some(1), items.len() - 1));

    assert_eq!(run(&["log", "dump", "/nonsense"], b"").await.status.code(), Some(4));
    assert_eq!(run(&["log", "verify"], b"").await.status.code(), Some(2));
    let foreign = cluster.scratch().join("foreign");
    fs::write(&foreign, b"nothing of ours").unwrap();
    assert_eq!(run(&["log", "verify", foreign.to_str().unwrap()], b"").await.status.code(), Some(1));
}

/// The partition's segment with the most bytes in a broker's directory.
fn partition_segment(data: &Path) -> PathBuf {
    let of_partitions = |path: &PathBuf| !path.to_string_lossy().contains("/groups/0-");
    let found = files(data, ".segment").into_iter().filter(of_partitions);
    found.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

/// Position of the frame that holds an entry.
async fn position(segment: &Path, index: u64) -> u64 {
    let dumped = run(&["log", "dump", segment.to_str().unwrap(), "--json"], b"").await;
    let items = lines(&dumped.stdout);
    items.iter().find(|item| item["index"] == index).unwrap()["position"].as_u64().unwrap()
}

async fn sound(path: &Path) -> bool {
    run(&["log", "verify", path.to_str().unwrap()], b"").await.status.success()
}

fn values(records: &[Value]) -> Vec<String> {
    records.iter().map(|record| record["value"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_that_rot_in_different_places_lose_nothing() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let mut written: Vec<String> = (0..60).map(|at| format!("value {at}")).collect();
    for value in &written {
        cluster.produce_text(1, "t", 0, value).await;
    }
    for broker in 1..=3 {
        assert!(cluster.stop(broker).success());
    }
    let segments = [1, 2].map(|broker| partition_segment(cluster.data_dir(broker)));
    for (number, segment) in segments.iter().enumerate() {
        for index in [10, 30] {
            flip(segment, position(segment, index + number as u64 * 5).await + 64);
        }
        if number == 1 {
            cut_to(segment, position(segment, 50).await + 20);
        }
        assert!(!sound(segment).await);
    }
    // The third is gone for good.
    fs::remove_dir_all(cluster.data_dir(3)).unwrap();
    for broker in [1, 2] {
        cluster.spawn(broker);
    }
    for broker in [1, 2] {
        cluster.wait_ready(broker).await;
    }
    // Each leads in turn and so reads everything.
    for turn in 0..2 {
        let leader = cluster.leader(1, "t", 0).await;
        assert_eq!(values(&cluster.fetch_all(leader, "t", 0).await), written, "broker {leader}");
        let value = format!("after {turn}");
        cluster.produce_text(leader, "t", 0, &value).await;
        written.push(value);
        cluster.stop(leader);
        cluster.restart(leader).await;
    }
    for broker in [1, 2] {
        assert!(!cluster.log(broker).contains("replica lost"), "{}", cluster.log(broker));
    }
    let repaired = (1..=2).filter(|broker| cluster.log(*broker).contains("rotten segment repaired")).count();
    assert!(repaired > 0, "the leader has read what was rotten");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_replica_serves_around_a_lost_segment_and_takes_nothing_more() {
    let mut cluster = Cluster::start_with(1, &["--set", "raft.segment_bytes_max=4096"]).await;
    cluster.create_topic(1, "t", 1).await;
    for at in 0..100 {
        cluster.produce_text(1, "t", 0, &format!("value {at}")).await;
    }
    assert!(cluster.stop(1).success());
    let segments = files(cluster.data_dir(1), ".segment");
    let segments: Vec<_> = segments.iter().filter(|path| !path.to_string_lossy().contains("/groups/0-")).collect();
    assert!(segments.len() > 3, "{segments:?}");
    fs::remove_file(segments[1]).unwrap();
    cluster.restart(1).await;
    let path = "/v1/topics/t/partitions/0/records";
    let (status, good) = cluster.get(1, &format!("{path}?offset=0&max_bytes=1000000")).await;
    assert_eq!(status, 200, "{good}");
    let before = good["records"].as_array().unwrap();
    assert!(!before.is_empty() && before.len() < 60);
    let (status, last) = cluster.get(1, &format!("{path}?offset=99")).await;
    assert_eq!((status.as_u16(), &last["records"][0]["value"]), (200, &"value 99".into()));
    let (status, refused) = cluster.post(1, path, serde_json::json!({"records": [{"value": "more"}]})).await;
    assert_eq!((status.as_u16(), &refused["error"], &refused["outcome"]), (500, &"CORRUPT_LOG".into(), &"none".into()));
    assert!(refused["message"].as_str().unwrap().contains("no other replica"), "{refused}");
    let status = run(&["status", "--server", &cluster.servers()], b"").await;
    let shown = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(shown.contains("! broker 1: t/0: ") && shown.contains("is rotten"), "{shown}");
    // The same over HTTP, as documented.
    let (_, described) = cluster.get(1, "/v1/cluster").await;
    let damage = described["brokers"][0]["damage"].as_array().unwrap();
    assert!(
        damage.iter().any(|damage| damage.as_str().is_some_and(|damage| damage.starts_with("t/0: "))),
        "{damage:?}"
    );
    let (_, openapi) = cluster.get(1, "/openapi.json").await;
    let broker = &openapi["components"]["schemas"]["Broker"];
    assert_eq!(broker["properties"]["damage"]["items"]["type"], "string");
    for key in described["brokers"][0].as_object().unwrap().keys() {
        assert!(broker["properties"][key].is_object(), "{key} is not documented");
    }
    // Nobody wants it any more: what is rotten goes with its topic, and leaves no trace.
    let (status, _) = cluster.ask(1, reqwest::Method::DELETE, "/v1/topics/t", None).await;
    assert_eq!(status.as_u16(), 204);
    gone(&cluster, 1).await;
}

/// Waits until nothing of a partition is in a broker's directory, and nothing is reported damaged.
async fn gone(cluster: &Cluster, broker: u32) {
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    loop {
        let groups = fs::read_dir(cluster.data_dir(broker).join("groups")).unwrap();
        let left: Vec<String> = groups.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let (_, described) = cluster.get(broker, "/v1/cluster").await;
        if left.iter().all(|name| name.starts_with("0-")) && described["brokers"][0].get("damage").is_none() {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{left:?} {described}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// A replica that cannot be opened at all: it is shown, and it goes with its topic, also if the broker was restarted since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_replica_that_was_given_up_goes_with_its_topic() {
    let mut cluster = Cluster::start(1).await;
    for topic in ["t", "u"] {
        cluster.create_topic(1, topic, 1).await;
        for at in 0..20 {
            cluster.produce_text(1, topic, 0, &format!("value {at}")).await;
        }
    }
    assert!(cluster.stop(1).success());
    for path in files(cluster.data_dir(1), ".segment") {
        if !path.to_string_lossy().contains("/groups/0-") {
            fs::remove_file(path).unwrap();
        }
    }
    cluster.restart(1).await;
    let (_, described) = cluster.get(1, "/v1/cluster").await;
    assert!(described["brokers"][0]["damage"].as_array().unwrap().len() >= 2, "{described}");
    for topic in ["t", "u"] {
        let (status, _) = cluster.ask(1, reqwest::Method::DELETE, &format!("/v1/topics/{topic}"), None).await;
        assert_eq!(status.as_u16(), 204);
        if topic == "t" {
            // The second is heard of by a start at the latest.
            cluster.kill(1);
            cluster.restart(1).await;
        }
    }
    gone(&cluster, 1).await;
}

/// What lies beside the segments follows from them: a start does without, and makes it anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stopped_broker_finds_rotten_beside_its_segments_is_made_anew() {
    let mut cluster = Cluster::start_with(1, &["--set", "raft.segment_bytes_max=4096"]).await;
    cluster.create_topic(1, "t", 1).await;
    let mut written = Vec::new();
    type Damage = fn(&Path);
    let flipped: Damage = |path| flip(path, fs::metadata(path).unwrap().len() / 2);
    for (round, damage) in [flipped, cut as Damage, |path| fs::remove_file(path).unwrap()].into_iter().enumerate() {
        for at in 0..60 {
            written.push(format!("value {round} {at}"));
            cluster.produce_text(1, "t", 0, written.last().unwrap()).await;
        }
        assert!(cluster.stop(1).success());
        let beside: Vec<PathBuf> =
            [".index", ".base"].iter().flat_map(|kind| files(cluster.data_dir(1), kind)).collect();
        assert!(beside.len() > 4, "{beside:?}");
        beside.iter().for_each(|path| damage(path));
        cluster.restart(1).await;
        assert_eq!(values(&cluster.fetch_all(1, "t", 0).await), written, "round {round}");
        let (status, found) = cluster.get(1, "/v1/topics/t/partitions/0/offsets?timestamp=1").await;
        assert_eq!(status.as_u16(), 200, "{found}");
        // One that is not there is nothing unusual after a crash.
        if round < 2 {
            told_healed(&cluster, 1, ".index").await;
        }
    }
}

/// sled is a cache, stopped or running, flipped or cut: what it held is made anew, and nothing that was acknowledged is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_sled_costs_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::start(1).await;
    let flipped = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        bytes.iter_mut().step_by(61).for_each(|byte| *byte ^= 16);
        fs::write(path, bytes).unwrap();
    };
    let mut topics = 0usize;
    for running in [false, true] {
        for damage in [&flipped as &dyn Fn(&Path), &cut] {
            cluster.create_topic(1, &format!("before-{topics}"), 1).await;
            cluster.produce_text(1, &format!("before-{topics}"), 0, "value").await;
            if !running {
                cluster.kill(1);
            }
            let held = files(cluster.data_dir(1), "/catalog/");
            assert!(!held.is_empty());
            held.iter().filter(|path| fs::metadata(path).unwrap().len() > 1).for_each(|path| damage(path));
            if running {
                cluster.create_topic(1, &format!("under-{topics}"), 1).await;
                cluster.kill(1);
            }
            cluster.restart(1).await;
            topics += 1;
            if !running && topics == 1 {
                status_says(&cluster, 1, "note:", "the catalog's tables were rotten", true).await;
                assert!(cluster.log(1).contains("the catalog's tables are rotten"), "{}", cluster.log(1));
                assert_eq!(cluster.metric(1, "pontoon_rotten_files_healed").await, 1.0);
            }
            let (_, listed) = cluster.get(1, "/v1/topics").await;
            let names: Vec<&str> =
                listed["topics"].as_array().unwrap().iter().map(|topic| topic["name"].as_str().unwrap()).collect();
            for at in 0..topics {
                assert!(names.contains(&format!("before-{at}").as_str()), "{names:?}");
                assert_eq!(values(&cluster.fetch_all(1, &format!("before-{at}"), 0).await), ["value"]);
            }
            assert_eq!(names.len(), topics + topics.saturating_sub(2), "{names:?}");
        }
    }
}

/// Everything but the records themselves: made anew on the running broker, from what is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scrub_of_a_running_broker_mends_what_rots_under_it() {
    let settings = ["--set", "raft.scrub_interval_ms=300", "--set", "raft.scrub_bytes_per_second=1000000000"];
    let settings = [&settings[..], &["--set", "raft.segment_bytes_max=4096"]].concat();
    let mut cluster = Cluster::start_with(3, &settings).await;
    cluster.create_topic(1, "t", 1).await;
    let written: Vec<String> = (0..150).map(|at| format!("value {at}")).collect();
    for value in &written {
        cluster.produce_text(1, "t", 0, value).await;
    }
    // Files in their places, and a checkpoint.
    for broker in 1..=3 {
        assert!(cluster.stop(broker).success());
    }
    for broker in 1..=3 {
        cluster.spawn(broker);
    }
    for broker in 1..=3 {
        cluster.wait_ready(broker).await;
    }
    let follower = cluster.leader(1, "t", 0).await % 3 + 1;
    let data = cluster.data_dir(follower).to_owned();
    let of = |part: &str| {
        let found = files(&data, part).into_iter().filter(|path| !path.to_string_lossy().contains("/groups/0-"));
        found.collect::<Vec<_>>()
    };
    let rotten = [of(".segment")[1].clone(), of(".index")[0].clone(), of(".base")[2].clone(), data.join("checkpoint")];
    for shorter in [false, true] {
        for path in &rotten {
            if shorter { cut(path) } else { flip(path, 70.min(fs::metadata(path).unwrap().len() - 1)) }
        }
        // Some may be mended already: the scrub is quick here.
        let deadline = std::time::Instant::now() + crate::support::PATIENCE;
        for path in &rotten {
            while !sound(path).await {
                assert!(std::time::Instant::now() < deadline, "{}: {}", path.display(), cluster.log(follower));
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            told_healed(&cluster, follower, &path.to_string_lossy()).await;
        }
    }
    let log = cluster.log(follower);
    assert!(log.contains("rotten segment repaired") && log.contains("made anew from its segment"), "{log}");
    for count in ["pontoon_log_repairs_total", "pontoon_scrub_rounds_total"] {
        assert!(cluster.metric(follower, count).await > 0.0, "{count}");
    }
    // What rots in the journal is still in memory: once it was found, a checkpoint has it, and a crash does not miss it.
    // The oldest: a later one may only have been prepared, and nothing stands in it.
    let journal = files(&data, ".journal").remove(0);
    flip(&journal, 4096 + 70);
    let name = journal.file_name().unwrap().to_string_lossy().into_owned();
    let named = |line: &str| line.contains("rotten file") && line.contains(&name);
    until("log", &cluster, follower, async || cluster.log(follower).lines().any(named)).await;
    // It stays where it is as long as it is written to.
    status_says(&cluster, follower, "!", &name, true).await;
    // And it comes back with all of it.
    cluster.kill(follower);
    cluster.restart(follower).await;
    assert_eq!(values(&cluster.fetch_all(follower, "t", 0).await), written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stopped_broker_cannot_do_without_it_refuses_to_start_on() {
    let mut cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    for at in 0..20 {
        cluster.produce_text(1, "t", 0, &format!("value {at}")).await;
    }
    // kill -9, so that the journal is needed.
    cluster.kill(1);
    let data = cluster.data_dir(1).to_owned();
    let journal = files(&data, ".journal").into_iter().next().unwrap();
    let unsound: [(PathBuf, u64); 3] =
        [(data.join("checkpoint"), 20), (data.join("identity"), 20), (journal, 4096 + 70)];
    for ((path, at), shorter) in unsound.iter().flat_map(|one| [(one, false), (one, true)]) {
        let sound = fs::read(path).unwrap();
        if shorter {
            cut_to(path, at + 30)
        } else {
            flip(path, *at)
        }
        cluster.spawn(1);
        let ended = async {
            while cluster.broker_mut(1).ended().is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(crate::support::PATIENCE, ended).await.unwrap();
        assert!(cluster.broker_mut(1).ended().is_some_and(|status| !status.success()));
        assert!(cluster.log(1).contains(path.file_name().unwrap().to_str().unwrap()), "{}", cluster.log(1));
        fs::write(path, sound).unwrap();
        cluster.forget_ended(1);
    }
    // sled is only a cache: whatever happens to it, it is made anew.
    for file in files(&data, "/catalog/") {
        fs::write(file, b"rot").unwrap();
    }
    cluster.restart(1).await;
    let written: Vec<String> = (0..20).map(|at| format!("value {at}")).collect();
    assert_eq!(values(&cluster.fetch_all(1, "t", 0).await), written);
}

/// It is replaced within a moment; what is left of it waits for a person, and nothing waits for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_of_a_lost_replica_is_told_until_it_is_removed_and_is_not_waited_for() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    for at in 0..20 {
        cluster.produce_text(1, "t", 0, &format!("value {at}")).await;
    }
    assert!(cluster.stop(2).success());
    fs::remove_file(partition_segment(cluster.data_dir(2))).unwrap();
    cluster.restart(2).await;
    let servers = cluster.servers();
    let kept = async |broker| {
        let (_, described) = cluster.get(broker, "/v1/cluster").await;
        described["brokers"][1]["kept"].as_array().map_or(Vec::new(), |kept| {
            kept.iter().map(|path| PathBuf::from(path.as_str().unwrap())).collect::<Vec<_>>()
        })
    };
    for broker in 1..=3 {
        running::until("nothing is told", &cluster, 2, async || kept(broker).await.len() == 1).await;
    }
    // It was over before anybody asked, and is seen all the same: in the log, too, and in the metrics.
    let log = cluster.log(2);
    assert!(log.contains("replica lost") && log.contains("what is left of a replica is kept for a person"), "{log}");
    let counted = async |name: &str| [cluster.metric(1, name).await, cluster.metric(2, name).await];
    assert_eq!(counted("pontoon_replicas_given_up_total").await, [0.0, 1.0]);
    assert_eq!(counted("pontoon_quarantined_folders").await, [0.0, 1.0]);
    let folder = kept(1).await.remove(0);
    assert!(folder.is_dir() && folder.starts_with(cluster.data_dir(2)), "{}", folder.display());
    let shown = run(&["status", "--wait", "60", "--server", &servers], b"").await;
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert_eq!(shown.status.code(), Some(0), "{text}");
    assert!(text.contains(&format!("all is well\nnote: broker 2: {}: kept of a", folder.display())), "{text}");
    let shown = run(&["status", "--json", "--server", &servers], b"").await;
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((shown["troubles"].as_array().unwrap().len(), shown["notes"].as_array().unwrap().len()), (0, 1));
    fs::remove_dir_all(&folder).unwrap();
    for broker in 1..=3 {
        running::until("still told", &cluster, 2, async || kept(broker).await.is_empty()).await;
    }
    assert_eq!(counted("pontoon_quarantined_folders").await, [0.0, 0.0]);
}
