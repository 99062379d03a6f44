//! The promise as a whole: a real text goes in while brokers are killed with SIGKILL and restarted in turn, and every line comes
//! out of another broker exactly once and in order.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::Cluster;

const LINES: usize = 100_000;
const BATCH_LINES: usize = 100;
const KILLS: usize = 12;
const TOPIC: &str = "text";

/// A real text: the sources of the libraries that Pontoon is built from, in the order of their names.
fn real_text() -> Vec<String> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"))).unwrap();
    let mut lines = Vec::new();
    collect(&home.join("registry/src"), &mut lines);
    assert!(lines.len() >= LINES, "only {} lines under {}", lines.len(), home.display());
    lines
}

fn collect(folder: &Path, lines: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if lines.len() >= LINES {
            return;
        }
        if path.is_dir() {
            collect(&path, lines);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && let Ok(text) = fs::read_to_string(&path)
        {
            lines.extend(text.lines().map(str::to_owned));
            lines.truncate(LINES);
        }
    }
}

/// An idempotent producer that repeats a batch, under the same sequence, until it is answered with success.
struct Producer {
    http: reqwest::Client,
    servers: Vec<String>,
    id: i64,
    epoch: i64,
    retries: u64,
    duplicates: u64,
}

impl Producer {
    async fn new(cluster: &Cluster) -> Self {
        let (status, body) = cluster.ask(1, Method::POST, "/v1/producers", None).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        Self {
            http: cluster.http.clone(),
            servers: (1..=cluster.len()).map(|id| cluster.url(id)).collect(),
            id: body["producer_id"].as_i64().unwrap(),
            epoch: body["producer_epoch"].as_i64().unwrap(),
            retries: 0,
            duplicates: 0,
        }
    }

    async fn send(&mut self, sequence: usize, lines: &[String]) {
        let records: Vec<Value> = lines.iter().map(|line| json!({"value": line})).collect();
        let body = json!({"records": records}).to_string();
        for attempt in 0.. {
            assert!(attempt < 2000, "batch {sequence} was refused {attempt} times");
            let server = &self.servers[(sequence / BATCH_LINES + attempt) % self.servers.len()];
            let request = self
                .http
                .post(format!("{server}/v1/topics/{TOPIC}/partitions/0/records?timeout_ms=5000"))
                .timeout(Duration::from_secs(8))
                .header("content-type", "application/json")
                .header("producer-id", self.id)
                .header("producer-epoch", self.epoch)
                .header("producer-sequence", sequence)
                .body(body.clone());
            if let Ok(answer) = request.send().await {
                let status = answer.status();
                let Ok(text) = answer.text().await else { continue };
                let answer: Value = serde_json::from_str(&text).unwrap_or_default();
                if status == StatusCode::OK {
                    assert_eq!(answer["base_offset"].as_u64(), Some(sequence as u64), "{text}");
                    self.duplicates += u64::from(answer["duplicate"] == true);
                    return;
                }
                // Whatever else is said, the batch must be one that may be sent again.
                assert_eq!(answer["retriable"], true, "batch {sequence}: {status}: {text}");
            }
            self.retries += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_once_and_in_order_while_brokers_are_killed_in_turn() {
    let text = Arc::new(real_text());
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, TOPIC, 1).await;

    // The killer lets the producer go so far and no further, so that each kill and each restart meets it at work.
    let (allow, mut allowed) = watch::channel(0usize);
    let (done, mut produced) = watch::channel(0usize);
    let mut producer = Producer::new(&cluster).await;
    let lines = text.clone();
    let producing = tokio::spawn(async move {
        for (batch, chunk) in lines.chunks(BATCH_LINES).enumerate() {
            allowed.wait_for(|allowed| *allowed > batch * BATCH_LINES).await.unwrap();
            producer.send(batch * BATCH_LINES, chunk).await;
            done.send_replace(batch * BATCH_LINES + chunk.len());
        }
        producer
    });

    let part = LINES / (KILLS + 1);
    for kill in 0..KILLS {
        let victim = (kill % 3) as u32 + 1;
        allow.send_replace((kill + 1) * part);
        produced.wait_for(|produced| *produced >= kill * part + part / 3).await.unwrap();
        cluster.kill(victim);
        produced.wait_for(|produced| *produced >= kill * part + 2 * part / 3).await.unwrap();
        cluster.restart(victim).await;
    }
    allow.send_replace(usize::MAX);
    let producer = producing.await.unwrap();
    assert!(producer.retries > 0, "the producer never noticed {KILLS} kills");

    let leader = cluster.leader(1, TOPIC, 0).await;
    let other = leader % 3 + 1;
    let records = cluster.fetch_all(other, TOPIC, 0).await;
    assert_eq!(records.len(), text.len());
    for (at, (record, line)) in records.iter().zip(text.iter()).enumerate() {
        assert_eq!(record["offset"].as_u64(), Some(at as u64));
        assert_eq!(record["value"].as_str(), Some(line.as_str()), "line {at}");
    }
    println!("{} retries, {} answered as duplicates", producer.retries, producer.duplicates);
}
