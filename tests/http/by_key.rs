//! Produce by key: which partition, which result, and what is said when some of it was refused.

use std::collections::BTreeMap;

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::refusal;
use crate::support::{Cluster, read};

async fn produce(cluster: &Cluster, id: u32, query: &str, kind: &str, body: impl Into<String>) -> (StatusCode, Value) {
    let url = format!("{}/v1/topics/t/records{query}", cluster.url(id));
    let request = cluster.http.post(url).header("content-type", kind.to_owned());
    read(request.body(body.into()).send().await.unwrap()).await
}

fn ndjson(records: &[Value]) -> String {
    records.iter().map(|record| format!("{record}\n")).collect()
}

#[tokio::test]
async fn a_key_leads_where_kafkas_clients_lead_it_and_each_record_has_its_result() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 4).await;
    // `(Utils.murmur2(key) & 0x7fffffff) % 4` of Kafka's own client.
    let keys =
        [("21", 0), ("foobar", 2), ("a-little-bit-long-string", 0), ("a-little-bit-longer-string", 3), ("abc", 3)];
    let records: Vec<Value> = keys.iter().map(|(key, _)| json!({"key": key, "value": format!("of {key}")})).collect();
    let mut written = 0;
    for id in 1..=3 {
        for (kind, body) in
            [("application/json", json!({"records": records}).to_string()), ("application/x-ndjson", ndjson(&records))]
        {
            let (status, answer) = produce(&cluster, id, "", kind, body).await;
            assert_eq!(status, StatusCode::OK, "{answer}");
            let results = answer["results"].as_array().unwrap();
            assert_eq!(results.len(), keys.len());
            written += 1;
            for ((key, partition), result) in keys.iter().zip(results) {
                assert_eq!(result["partition"], *partition, "{key}: {answer}");
                assert!(result["leader_epoch"].as_u64().unwrap() > 0);
                let at = result["offset"].as_u64().unwrap();
                let path = format!("/v1/topics/t/partitions/{partition}/records?offset={at}&max_records=1");
                let (_, found) = cluster.get(id, &path).await;
                assert_eq!((&found["records"][0]["key"], &found["records"][0]["offset"]), (&json!(key), &json!(at)));
            }
        }
    }
    for partition in [0, 2, 3] {
        let stored = cluster.fetch_all(1, "t", partition).await;
        let mine: Vec<_> = keys.iter().filter(|(_, of)| *of == partition).map(|(key, _)| format!("of {key}")).collect();
        let values: Vec<_> = stored.iter().map(|record| record["value"].as_str().unwrap()).collect();
        assert_eq!(values, vec![mine; written].concat(), "each share keeps its order");
    }
    assert!(cluster.fetch_all(1, "t", 1).await.is_empty());
}

#[tokio::test]
async fn records_without_a_key_go_round_all_partitions() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 3).await;
    let mut counts = BTreeMap::<u64, u32>::new();
    for _ in 0..4 {
        let (_, answer) = produce(&cluster, 1, "", "text/plain", "one").await;
        *counts.entry(answer["results"][0]["partition"].as_u64().unwrap()).or_default() += 1;
    }
    let (_, answer) = produce(&cluster, 1, "", "application/x-ndjson", "{\"value\":1}\n".repeat(5)).await;
    for result in answer["results"].as_array().unwrap() {
        *counts.entry(result["partition"].as_u64().unwrap()).or_default() += 1;
    }
    assert_eq!(counts, BTreeMap::from([(0, 3), (1, 3), (2, 3)]));
    let answer = produce(&cluster, 1, "?acks=none", "text/plain", "unacknowledged").await;
    assert_eq!(answer, (StatusCode::ACCEPTED, json!({})));
}

#[tokio::test]
async fn a_bad_request_by_key_writes_nothing() {
    let cluster = Cluster::start_with(1, &["--set", "limits.record_bytes_max=1000"]).await;
    cluster.create_topic(1, "t", 2).await;
    let large = json!({"records": [{"value": "a"}, {"value": "b"}, {"value": "x".repeat(1001)}]}).to_string();
    for (kind, body, status, code, word) in [
        ("application/json", "{\"records\":[{},{},{\"v\":1}]}".to_owned(), 400, "INVALID_REQUEST", "record 2"),
        ("application/x-ndjson", "{}\n{}\n{}\nx\n".to_owned(), 400, "INVALID_REQUEST", "line 4"),
        ("application/json", large, 413, "RECORD_TOO_LARGE", "record 2"),
        ("application/octet-stream", "a batch".to_owned(), 415, "UNSUPPORTED_MEDIA_TYPE", "partition"),
        ("image/png", String::new(), 415, "UNSUPPORTED_MEDIA_TYPE", "image/png"),
    ] {
        let answer = produce(&cluster, 1, "", kind, body).await;
        assert!(answer.1["message"].as_str().unwrap().contains(word), "{}", answer.1);
        assert_eq!(answer.1["outcome"], "none");
        assert_eq!(refusal(answer), (status, code.into()));
    }
    for name in ["producer-id", "producer-epoch", "producer-sequence", "if-match-offset"] {
        let request = cluster.http.post(format!("{}/v1/topics/t/records", cluster.url(1))).header(name, "0");
        let answer = read(request.header("content-type", "text/plain").body("x").send().await.unwrap()).await;
        assert_eq!(refusal(answer), (400, "INVALID_REQUEST".into()), "{name}");
    }
    let url = format!("{}/v1/topics/none/records", cluster.url(1));
    let unknown = cluster.http.post(url).header("content-type", "text/plain").body("x").send().await.unwrap();
    assert_eq!(refusal(read(unknown).await), (404, "UNKNOWN_TOPIC".into()));
    for partition in 0..2 {
        assert!(cluster.fetch_all(1, "t", partition).await.is_empty());
    }
}

#[tokio::test]
async fn what_one_partition_refuses_is_told_apart_from_what_another_has_written() {
    let mut cluster = Cluster::start(3).await;
    let spec = json!({"name": "t", "partitions": 3, "replicas": 1});
    let (status, body) = cluster.post(1, "/v1/topics", spec).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    let home = |partition: usize| body["partitions"][partition]["replicas"][0].as_u64().unwrap() as u32;
    // Two of the three live: of the third partition nobody has a replica any more.
    let (lost, survivor) = (home(2), home(0));
    assert_ne!(lost, survivor, "replicas are spread: {body}");
    cluster.kill(lost);
    let records: Vec<Value> = (0..6).map(|at| json!({"value": at.to_string()})).collect();
    let (status, answer) =
        produce(&cluster, survivor, "?timeout_ms=1500", "application/x-ndjson", ndjson(&records)).await;
    assert_eq!(answer["outcome"], "partial", "{answer}");
    assert_eq!((status.as_u16(), answer["error"].as_str().unwrap()), (503, "NO_LEADER"));
    assert!(answer["message"].as_str().unwrap().contains("2 of 6"), "{answer}");
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 6);
    for (at, result) in results.iter().enumerate() {
        if result["partition"] == 2 {
            assert_eq!((&result["error"], &result["outcome"]), (&json!("NO_LEADER"), &json!("none")), "{result}");
            continue;
        }
        let (partition, offset) = (&result["partition"], &result["offset"]);
        let path = format!("/v1/topics/t/partitions/{partition}/records?offset={offset}&max_records=1");
        assert_eq!(cluster.get(survivor, &path).await.1["records"][0]["value"], at.to_string());
    }
    // Nothing but the lost partition: nothing happened, and it is said so.
    let key = (0..).map(|at: u32| at.to_string()).find(|key| pontoon_partition(key) == 2).unwrap();
    let one = json!({"records": [{"key": key, "value": "x"}]}).to_string();
    let answer = produce(&cluster, survivor, "?timeout_ms=500", "application/json", one).await;
    assert_eq!((&answer.1["outcome"], answer.1["results"].as_array().unwrap().len()), (&json!("none"), 1));
    assert_eq!(refusal(answer), (503, "NO_LEADER".into()));
}

/// Its share was sent, and is not sent again.
#[tokio::test]
async fn a_share_that_was_not_answered_is_unknown() {
    let cluster = Cluster::start_with(2, &["--set", "raft.silence_max_ms=60000"]).await;
    let (status, body) = cluster.post(1, "/v1/topics", json!({"name": "t", "replicas": 1})).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    let home = body["partitions"][0]["replicas"][0].as_u64().unwrap() as u32;
    let other = home % 2 + 1;
    let record = |value: &str| json!({"records": [{"value": value}]}).to_string();
    let first = produce(&cluster, other, "", "application/json", record("first")).await;
    assert_eq!(first.0, StatusCode::OK, "and the way is there: {}", first.1);
    cluster.pause(home);
    let answer = produce(&cluster, other, "?timeout_ms=500", "application/json", record("second")).await;
    cluster.resume(home);
    let result = &answer.1["results"][0];
    assert_eq!((&result["error"], &result["outcome"]), (&json!("OUTCOME_UNKNOWN"), &json!("unknown")), "{result}");
    assert_eq!(answer.1["outcome"], "unknown", "{}", answer.1);
    assert_eq!(refusal(answer), (504, "OUTCOME_UNKNOWN".into()));
    assert!(cluster.fetch_all(other, "t", 0).await.len() <= 2);
}

#[tokio::test]
async fn an_answer_says_where_the_time_went_whoever_leads() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 3).await;
    let records = serde_json::json!({"records": [{"value": "a"}, {"value": "b"}, {"value": "c"}]});
    let answer = cluster.send(2, reqwest::Method::POST, "/v1/topics/t/records", Some(records)).await;
    let timing = answer.headers()["server-timing"].to_str().unwrap();
    assert!(["queue;dur=", "journal;dur=", "replicate;dur="].iter().all(|stage| timing.contains(stage)), "{timing}");
    assert_eq!(timing.matches("dur=").count(), 3, "{timing}");
}

/// Kafka's partitioner for three partitions, written down a second time.
fn pontoon_partition(key: &str) -> u32 {
    let (m, data) = (0x5bd1_e995u32, key.as_bytes());
    let mut h = 0x9747_b28cu32 ^ data.len() as u32;
    let mut at = 0;
    while data.len() - at >= 4 {
        let mut k = u32::from_le_bytes(data[at..at + 4].try_into().unwrap()).wrapping_mul(m);
        k = (k ^ (k >> 24)).wrapping_mul(m);
        h = h.wrapping_mul(m) ^ k;
        at += 4;
    }
    for (shift, byte) in data[at..].iter().enumerate().rev() {
        h ^= u32::from(*byte) << (8 * shift);
        if shift == 0 {
            h = h.wrapping_mul(m);
        }
    }
    h = (h ^ (h >> 13)).wrapping_mul(m);
    ((h ^ (h >> 15)) & 0x7fff_ffff) % 3
}
