//! What rots of the catalog itself: the snapshot behind which its log was cut. Beside it stand the same things in memory, in sled, and at
//! the other brokers.

use std::fs;
use std::path::{Path, PathBuf};

use super::running::until;
use super::{cut, files, flip, sound, status_says, told_healed, values};
use crate::support::Cluster;

/// A snapshot soon, and found soon.
const SETTINGS: [&str; 4] = [
    "--set=catalog.snapshot_entries=20",
    "--set=raft.checkpoint_interval_ms=200",
    "--set=raft.scrub_interval_ms=300",
    "--set=raft.scrub_bytes_per_second=1000000000",
];
/// Topics that are made at a time: more than enough entries for a snapshot.
const TOPICS: usize = 12;

/// The newest snapshot of a broker's replica of the catalog.
fn snapshot(data: &Path) -> Option<PathBuf> {
    let of_catalog = |path: &PathBuf| path.extension().is_none() && path.to_string_lossy().contains("/groups/0-");
    files(data, "/snapshot-").into_iter().rfind(of_catalog)
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// More topics, each with a record.
async fn create_topics(cluster: &Cluster, id: u32, topics: &mut Vec<String>) {
    for _ in 0..TOPICS {
        let topic = format!("t{}", topics.len());
        cluster.create_topic(id, &topic, 1).await;
        cluster.produce_text(id, &topic, 0, &topic).await;
        topics.push(topic);
    }
}

/// Brokers whose catalogs begin behind a snapshot, and nothing older lies about.
async fn cut_catalogs(count: u32) -> (Cluster, Vec<String>) {
    let cluster = Cluster::start_with(count, &SETTINGS).await;
    let mut topics = Vec::new();
    create_topics(&cluster, 1, &mut topics).await;
    for id in 1..=count {
        let begins_later = async || {
            let of_catalog = |path: &&PathBuf| path.to_string_lossy().contains("/groups/0-");
            files(cluster.data_dir(id), "/snapshot-").iter().filter(of_catalog).count() == 1
        };
        until("no snapshot", &cluster, id, begins_later).await;
    }
    (cluster, topics)
}

/// Every topic is there, and what was written to it.
async fn all_there(cluster: &Cluster, id: u32, topics: &[String]) {
    let (_, list) = cluster.get(id, "/v1/topics").await;
    assert_eq!(list["topics"].as_array().unwrap().len(), topics.len(), "{list}");
    for topic in topics {
        assert_eq!(values(&cluster.fetch_all(id, topic, 0).await), [topic.as_str()], "broker {id}");
    }
}

async fn controller(cluster: &Cluster, id: u32) -> u32 {
    cluster.get(id, "/v1/cluster").await.1["controller"].as_u64().unwrap() as u32
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_catalogs_snapshot_that_rots_under_running_brokers_is_named_and_made_anew() {
    let (mut cluster, mut topics) = cut_catalogs(3).await;
    let leads = controller(&cluster, 1).await;
    let (follows, third) = (leads % 3 + 1, (leads + 1) % 3 + 1);
    for (id, damage) in [(follows, cut as fn(&Path)), (leads, |path| flip(path, 40))] {
        let rotten = snapshot(cluster.data_dir(id)).unwrap();
        damage(&rotten);
        let named = |log: String| log.lines().any(|line| line.contains("rotten file") && line.contains(name(&rotten)));
        until("not found", &cluster, id, async || named(cluster.log(id))).await;
        status_says(&cluster, id, "!", name(&rotten), true).await;
        assert_eq!(cluster.metric(id, "pontoon_rotten_files").await, 1.0, "broker {id}");
    }
    all_there(&cluster, follows, &topics).await;

    // The third has nothing any more, and needs the one that is rotten.
    cluster.kill(third);
    fs::remove_dir_all(cluster.data_dir(third)).unwrap();
    cluster.restart(third).await;
    let log = [cluster.log(leads), cluster.log(follows)].concat();
    let anew = |line: &str| line.contains("a file was rotten") && line.contains("snapshot-");
    assert!(log.lines().any(anew), "{log}");
    all_there(&cluster, third, &topics).await;

    // The next ones take the places of both.
    create_topics(&cluster, follows, &mut topics).await;
    for id in [leads, follows] {
        let whole = async || match snapshot(cluster.data_dir(id)) {
            Some(newest) => sound(&newest).await,
            None => false,
        };
        until("no sound one", &cluster, id, whole).await;
        status_says(&cluster, id, "!", "snapshot-", false).await;
        assert_eq!(cluster.metric(id, "pontoon_rotten_files").await, 0.0, "broker {id}");
    }
    // And they hold all of it, for who has nothing but them.
    for id in 1..=3 {
        assert!(cluster.stop(id).success());
        fs::remove_dir_all(cluster.data_dir(id).join("catalog")).unwrap();
    }
    cluster.restart_all(&[1, 2, 3]).await;
    for id in 1..=3 {
        all_there(&cluster, id, &topics).await;
        assert!(!cluster.log(id).contains("replica lost"), "{}", cluster.log(id));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_catalogs_snapshot_that_rots_while_its_broker_is_stopped_costs_nothing() {
    let (mut cluster, topics) = cut_catalogs(3).await;
    let id = controller(&cluster, 1).await;
    for damage in [|path: &Path| flip(path, 40), cut as fn(&Path)] {
        assert!(cluster.stop(id).success());
        let rotten = snapshot(cluster.data_dir(id)).unwrap();
        damage(&rotten);
        cluster.restart(id).await;
        told_healed(&cluster, id, name(&rotten)).await;
        // Made anew from sled, at once.
        assert!(sound(&snapshot(cluster.data_dir(id)).unwrap()).await);
        all_there(&cluster, id, &topics).await;
        assert!(!cluster.log(id).contains("replica lost"), "{}", cluster.log(id));
    }
    // With sled: the others have it, and what is rotten is kept for a person.
    assert!(cluster.stop(id).success());
    flip(&snapshot(cluster.data_dir(id)).unwrap(), 40);
    files(cluster.data_dir(id), "/catalog/").iter().for_each(|file| fs::write(file, b"rot").unwrap());
    cluster.restart(id).await;
    all_there(&cluster, id, &topics).await;
    assert!(cluster.log(id).contains("no snapshot covers the purged entries"), "{}", cluster.log(id));
    status_says(&cluster, id, "note:", "kept of a rotten or lost replica, to be looked at", true).await;
}

/// What it has yet to apply is rotten: its replica keeps its vote and its id, and is repaired from the others (RULES.md R7).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalogs_replica_that_has_to_be_repaired_before_it_starts_is_not_replaced() {
    let mut cluster = Cluster::start(3).await;
    let mut topics = Vec::new();
    create_topics(&cluster, 1, &mut topics).await;
    let folders = |cluster: &Cluster| {
        let groups = fs::read_dir(cluster.data_dir(3).join("groups")).unwrap();
        let names = groups.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.contains("0-") && !name.starts_with(|first: char| ('1'..='9').contains(&first)))
            .collect::<Vec<_>>()
    };
    all_there(&cluster, 3, &topics).await;
    assert!(cluster.stop(3).success());
    let before = folders(&cluster);
    let [folder] = &before[..] else { panic!("{before:?}") };
    let segments = files(cluster.data_dir(3), ".segment");
    let log = segments.iter().rfind(|path| path.to_string_lossy().contains(&format!("/{folder}/"))).unwrap();
    flip(log, fs::metadata(log).unwrap().len() / 2);
    // Without the cache all of the log is to be applied again.
    fs::remove_dir_all(cluster.data_dir(3).join("catalog")).unwrap();
    cluster.restart(3).await;
    all_there(&cluster, 3, &topics).await;
    assert_eq!(folders(&cluster), before);
    assert!(cluster.log(3).contains("rotten segment repaired"), "{}", cluster.log(3));
}

/// Nobody else has it: nothing is begun anew in its place, and nothing is thrown away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_catalog_that_rots_with_its_cache_is_waited_for() {
    let (mut cluster, _) = cut_catalogs(1).await;
    assert!(cluster.stop(1).success());
    let rotten = snapshot(cluster.data_dir(1)).unwrap();
    flip(&rotten, 40);
    files(cluster.data_dir(1), "/catalog/").iter().for_each(|file| fs::write(file, b"rot").unwrap());
    cluster.spawn(1);
    let says_why = async || {
        let Ok(answer) = cluster.http.get(format!("{}/readyz", cluster.url(1))).send().await else { return false };
        let ready = answer.status() == 200;
        let body = answer.text().await.unwrap();
        assert!(!ready, "{body}");
        body.contains("this directory's copy of the catalog is lost")
    };
    until("it does not say why", &cluster, 1, says_why).await;
    assert!(cluster.log(1).lines().any(|line| line.contains("replica lost") && line.contains(name(&rotten))));
    let (status, refused) = cluster.get(1, "/v1/topics/t0").await;
    assert_eq!((status.as_u16(), &refused["error"]), (503, &"NOT_READY".into()), "{refused}");
    status_says(&cluster, 1, "!", name(&rotten), true).await;
    for metric in ["pontoon_replicas_lost", "pontoon_replicas_corrupt"] {
        assert_eq!(cluster.metric(1, metric).await, 1.0, "{metric}");
    }
    let held = files(cluster.data_dir(1), "/groups/");
    assert!(cluster.stop(1).success());
    assert!(files(cluster.data_dir(1), "/groups/") == held && held.contains(&rotten), "{held:?}");
}
