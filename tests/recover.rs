//! `pontoon recover`: the majority is gone for good, and one survivor's directory becomes the cluster.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{Cluster, PATIENCE, read, run};

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn recover(cluster: &Cluster, broker: u32, more: &[&str]) -> Output {
    let dir = cluster.data_dir(broker).to_str().unwrap();
    run(&[&["recover", "--data-dir", dir], more].concat(), b"").await
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

fn values(records: &[Value]) -> Vec<String> {
    records.iter().map(|record| record["value"].as_str().unwrap().to_owned()).collect()
}

async fn until(cluster: &Cluster, id: u32, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, body) = cluster.get(id, path).await;
        if wanted(&body) {
            return body;
        }
        assert!(Instant::now() < deadline, "broker {id} still answers {path} with {body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn produce(cluster: &Cluster, id: u32, partition: u32, query: &str, value: &str) -> (StatusCode, Value) {
    let url = format!("{}/v1/topics/t/partitions/{partition}/records?{query}", cluster.url(id));
    read(cluster.http.post(url).header("content-type", "text/plain").body(value.to_owned()).send().await.unwrap()).await
}

/// Waits for the end of a broker that is to end by itself, and returns what it said.
async fn ends(cluster: &mut Cluster, id: u32) -> String {
    let ended = async {
        while cluster.broker_mut(id).ended().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.unwrap_or_else(|_| panic!("broker {id} goes on"));
    assert!(!cluster.broker_mut(id).ended().unwrap().success());
    cluster.forget_ended(id);
    cluster.log(id)
}

fn whole(topic: &Value) -> bool {
    let partitions = topic["partitions"].as_array().unwrap();
    partitions.iter().all(|partition| partition["in_sync"].as_array().is_some_and(|in_sync| in_sync.len() == 3))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_survivor_becomes_the_cluster_and_grows_back() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 3).await;
    let mut written: Vec<Vec<String>> = vec![Vec::new(); 3];
    for at in 0..90u32 {
        let value = format!("value {at}");
        cluster.produce_text(1, "t", at % 3, &value).await;
        written[at as usize % 3].push(value);
    }
    let (_, before) = cluster.get(1, "/v1/cluster").await;
    let former = before["cluster_id"].as_str().unwrap().to_owned();

    // Two are gone, and what the third takes then is acknowledged to nobody.
    for broker in [2, 3] {
        cluster.kill(broker);
        copy(cluster.data_dir(broker), &cluster.scratch().join(format!("old-{broker}")));
        fs::remove_dir_all(cluster.data_dir(broker)).unwrap();
    }
    let in_use = recover(&cluster, 1, &[]).await;
    assert!(in_use.status.code() == Some(1) && said(&in_use).contains("in use"), "{}", said(&in_use));
    cluster.kill(1);
    assert_eq!(run(&["recover", "--data-dir", "/nonsense"], b"").await.status.code(), Some(4));

    // Nothing happens unless it is confirmed, by name.
    let shown = recover(&cluster, 1, &[]).await;
    let text = said(&shown);
    assert_eq!(shown.status.code(), Some(0), "{text}");
    for part in
        ["given up: broker 2", "given up: broker 3", "t/2", "kept  0 to 30", "the cluster is unchanged", &former]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(recover(&cluster, 1, &["--confirm", "1234"]).await.status.code(), Some(2));
    let shown = recover(&cluster, 1, &["--json"]).await;
    let plan: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&plan["cluster_id"], &plan["partitions"][0]["fate"]), (&json!(former), &json!("kept")));
    assert_eq!(plan["partitions"][1]["here"]["log_end_offset"], 30);

    let done = recover(&cluster, 1, &["--confirm", &former]).await;
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    cluster.restart(1).await;
    let (_, after) = cluster.get(1, "/v1/cluster").await;
    assert_ne!(after["cluster_id"], before["cluster_id"]);
    assert_eq!(after["brokers"].as_array().unwrap().len(), 1, "{after}");
    for partition in 0..3u32 {
        assert_eq!(cluster.leader(1, "t", partition).await, 1);
        assert_eq!(values(&cluster.fetch_all(1, "t", partition).await), written[partition as usize]);
        cluster.produce_text(1, "t", partition, "alone").await;
        written[partition as usize].push("alone".to_owned());
    }
    let status = run(&["status", "--server", &cluster.url(1)], b"").await;
    assert!(said(&status).contains("2 more replicas"), "{}", said(&status));
    let later = json!({"name": "later", "partitions": 1, "replicas": 1});
    assert_eq!(cluster.post(1, "/v1/topics", later).await.0, StatusCode::CREATED);

    // Brokers that were given up come back: one at a time to a survivor that runs, and both together before it does.
    for broker in [2, 3] {
        copy(&cluster.scratch().join(format!("old-{broker}")), cluster.data_dir(broker));
    }
    cluster.spawn(2);
    assert!(ends(&mut cluster, 2).await.contains("was recovered from one survivor"), "{}", cluster.log(2));
    cluster.kill(1);
    cluster.restart_all(&[2, 3]).await;
    cluster.restart(1).await;
    for broker in [2, 3] {
        assert!(
            ends(&mut cluster, broker).await.contains("was recovered from one survivor"),
            "{}",
            cluster.log(broker)
        );
        fs::remove_dir_all(cluster.data_dir(broker)).unwrap();
    }

    // Empty ones are welcome.
    cluster.restart_all(&[2, 3]).await;
    until(&cluster, 1, "/v1/topics/t", whole).await;
    until(&cluster, 3, "/v1/cluster", |cluster| cluster["brokers"].as_array().unwrap().len() == 3).await;
    for partition in 0..3u32 {
        let (status, body) = produce(&cluster, 2, partition, "acks=every", "every").await;
        assert_eq!(status, StatusCode::OK, "{body}");
        written[partition as usize].push("every".to_owned());
    }
    let status = run(&["status", "--server", &cluster.url(1)], b"").await;
    assert!(!said(&status).contains("more replicas"), "{}", said(&status));

    // While the others live nobody is given up by mistake.
    assert!(cluster.stop(2).success());
    let now = after["cluster_id"].as_str().unwrap();
    let refused = recover(&cluster, 2, &["--confirm", now]).await;
    assert!(
        refused.status.code() == Some(1)
            && ["broker 1 at", "answers: as long as"].iter().all(|part| said(&refused).contains(part)),
        "{}",
        said(&refused)
    );
    cluster.restart(2).await;
    until(&cluster, 1, "/v1/topics/t", whole).await;

    // The survivor is needed no more.
    cluster.kill(1);
    let led_by_others = |topic: &Value| {
        topic["partitions"].as_array().unwrap().iter().all(|p| [2, 3].contains(&p["leader"].as_u64().unwrap_or(0)))
    };
    until(&cluster, 2, "/v1/topics/t", led_by_others).await;
    for partition in 0..3u32 {
        assert_eq!(values(&cluster.fetch_all(2, "t", partition).await), written[partition as usize]);
    }
}
