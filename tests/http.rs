//! HTTP on the real binary: the formats, the cursor, the refusals, and any broker taking any request.

use std::time::{Duration, Instant};

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::{Cluster, PATIENCE, read};

mod batches;
mod by_key;
mod compression;
mod contract;
mod defaults;
mod forms;
mod limits;
pub mod openapi;
mod refusals;
mod requests;
mod room;
mod schema;
mod tails;

fn records_url(cluster: &Cluster, id: u32, topic: &str) -> String {
    format!("{}/v1/topics/{topic}/partitions/0/records", cluster.url(id))
}

async fn produce(
    cluster: &Cluster,
    id: u32,
    topic: &str,
    kind: &str,
    body: impl Into<reqwest::Body>,
) -> (StatusCode, Value) {
    let request = cluster.http.post(records_url(cluster, id, topic)).header("content-type", kind.to_owned());
    read(request.body(body).send().await.unwrap()).await
}

async fn fetch(cluster: &Cluster, id: u32, topic: &str, query: &str) -> (StatusCode, Value) {
    cluster.get(id, &format!("/v1/topics/{topic}/partitions/0/records?{query}")).await
}

fn values(answer: &Value) -> Vec<&str> {
    answer["records"].as_array().unwrap().iter().map(|record| record["value"].as_str().unwrap()).collect()
}

/// Status and code of a refusal, whose body must be whole.
fn refusal((status, body): (StatusCode, Value)) -> (u16, String) {
    for field in ["error", "message", "retriable", "outcome"] {
        assert!(!body[field].is_null(), "{status} without {field}: {body}");
    }
    (status.as_u16(), body["error"].as_str().unwrap().to_owned())
}

/// Reads a refusal that says when a retry may help: the header in whole seconds, the body to the millisecond.
async fn refused_for_a_while(response: Response) -> (StatusCode, Value) {
    let header = response.headers().get("retry-after").map(|seconds| seconds.to_str().unwrap().to_owned());
    let answer = read(response).await;
    let ms = answer.1["retry_after_ms"].as_u64();
    assert_eq!(header, ms.map(|ms| ms.div_ceil(1000).max(1).to_string()), "{}", answer.1);
    assert!(ms.is_some(), "{}", answer.1);
    answer
}

#[tokio::test]
async fn topics_live_from_creation_to_deletion() {
    let cluster = Cluster::start(1).await;
    let config = json!({"retention.ms": "1000000"});
    let (status, body) = cluster.post(1, "/v1/topics", json!({"name": "t", "partitions": 2, "config": config})).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    assert_eq!(
        (&body["name"], &body["config"], body["partitions"].as_array().unwrap().len()),
        (&json!("t"), &config, 2)
    );
    let first_id = body["topic_id"].clone();
    for partition in 0..2 {
        let found = &body["partitions"][partition];
        assert_eq!((&found["partition"], &found["replicas"]), (&json!(partition), &json!([1])));
    }
    let (_, list) = cluster.get(1, "/v1/topics").await;
    assert_eq!(list["topics"][0]["name"], "t");

    let change = json!({"partitions": 3, "config": {"retention.ms": null, "retention.bytes": "5000000"}});
    let (status, body) = cluster.ask(1, Method::PATCH, "/v1/topics/t", Some(change)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["config"], json!({"retention.bytes": "5000000"}));
    assert_eq!(body["partitions"].as_array().unwrap().len(), 3);

    cluster.produce_text(1, "t", 0, "old").await;
    assert_eq!(cluster.ask(1, Method::DELETE, "/v1/topics/t", None).await, (StatusCode::NO_CONTENT, Value::Null));
    assert_eq!(refusal(cluster.get(1, "/v1/topics/t").await), (404, "UNKNOWN_TOPIC".into()));
    assert_eq!(refusal(fetch(&cluster, 1, "t", "").await), (404, "UNKNOWN_TOPIC".into()));
    let again = cluster.create_topic(1, "t", 1).await;
    assert_ne!(again["topic_id"], first_id);
    assert!(cluster.fetch_all(1, "t", 0).await.is_empty(), "a topic created again shows no old data");
}

/// Also by a broker that has slept while it was created.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_created_elsewhere_is_described_at_once() {
    let cluster = Cluster::start_with(3, &["--set", "raft.silence_max_ms=600000"]).await;
    let mut asked = 1;
    for at in 0..3 {
        let name = format!("t{at}");
        // It may have moved meanwhile, on a busy machine.
        let controller = cluster.get(asked, "/v1/cluster").await.1["controller"].as_u64().unwrap() as u32;
        asked = controller % 3 + 1;
        cluster.pause(asked);
        let (status, body) =
            cluster.post(controller, "/v1/topics?timeout_ms=2000", json!({"name": name, "replicas": 1})).await;
        cluster.resume(asked);
        assert_eq!(status, StatusCode::CREATED, "{body}");
        let (status, described) = cluster.get(asked, &format!("/v1/topics/{name}")).await;
        assert_eq!((status, &described["topic_id"]), (StatusCode::OK, &body["topic_id"]), "{described}");
    }
    assert_eq!(refusal(cluster.get(asked, "/v1/topics/none").await), (404, "UNKNOWN_TOPIC".into()));
}

#[tokio::test]
async fn topics_that_cannot_be_are_refused_by_name() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "a.b", 1).await;
    let cases = [
        (json!({"name": "a.b"}), 409, "TOPIC_EXISTS", "a.b"),
        (json!({"name": "a_b"}), 409, "TOPIC_NAME_COLLISION", "a_b"),
        (json!({"name": ""}), 400, "INVALID_TOPIC_NAME", ""),
        (json!({"name": ".."}), 400, "INVALID_TOPIC_NAME", ".."),
        (json!({"name": "a b"}), 400, "INVALID_TOPIC_NAME", "a b"),
        (json!({"name": "x".repeat(250)}), 400, "INVALID_TOPIC_NAME", "250"),
        (json!({"name": "t", "partitions": 0}), 400, "INVALID_PARTITIONS", "0"),
        (json!({"name": "t", "replicas": 2}), 400, "INVALID_REPLICATION_FACTOR", "2"),
        (json!({"name": "t", "config": {"retention.sm": "1"}}), 400, "INVALID_CONFIG", "retention.sm"),
        (json!({"name": "t", "config": {"retention.ms": "soon"}}), 400, "INVALID_CONFIG", "soon"),
        (json!({"name": "t", "config": {"retention.ms": 5}}), 400, "INVALID_CONFIG", "retention.ms"),
        (json!({"name": "t", "partition": 5}), 400, "INVALID_REQUEST", "partition"),
        (json!({}), 400, "INVALID_REQUEST", "name"),
    ];
    for (body, status, code, word) in cases {
        let answer = cluster.post(1, "/v1/topics", body.clone()).await;
        assert!(answer.1["message"].as_str().unwrap().contains(word), "{body}: {}", answer.1);
        assert_eq!(refusal(answer), (status, code.into()), "{body}");
    }
    for (change, code) in [
        (json!({"partitions": 0}), "INVALID_PARTITIONS"),
        (json!({"config": {"x": "1"}}), "INVALID_CONFIG"),
        (json!({"name": "c"}), "INVALID_REQUEST"),
    ] {
        let answer = cluster.ask(1, Method::PATCH, "/v1/topics/a.b", Some(change)).await;
        assert_eq!(refusal(answer), (400, code.into()));
    }
    assert_eq!(refusal(cluster.ask(1, Method::DELETE, "/v1/topics/none", None).await).0, 404);
    let (_, list) = cluster.get(1, "/v1/topics").await;
    assert_eq!(list["topics"].as_array().unwrap().len(), 1, "none of the refused was created: {list}");
}

#[tokio::test]
async fn every_body_format_comes_back_as_it_went_in() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let body = r#"{"records":[
        {"key":"k","value":{"n": 1.10, "s": "a b"},"headers":[["h","v"],["h",null],["b",{"base64":"/w=="}]],"timestamp":5},
        {"key_base64":"/w==","value_base64":"/g=="},
        {"value":null},{}]}"#;
    let (status, answer) = produce(&cluster, 1, "t", "application/json", body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!((&answer["base_offset"], &answer["last_offset"]), (&json!(0), &json!(3)));
    assert!(answer["leader_epoch"].as_u64().unwrap() > 0 && answer.get("duplicate").is_none(), "{answer}");
    let (_, answer) = produce(&cluster, 1, "t", "text/plain", "text\n").await;
    assert_eq!(answer["base_offset"], 4);
    let (_, answer) = produce(&cluster, 1, "t", "application/x-ndjson", "{\"value\":\"x\"}\n{\"value\":\"y\"}\n").await;
    assert_eq!((&answer["base_offset"], &answer["last_offset"]), (&json!(5), &json!(6)));

    let (_, answer) = fetch(&cluster, 1, "t", "").await;
    let records = answer["records"].as_array().unwrap();
    let wanted = json!({"offset":0,"timestamp":5,"key":"k","value":"{\"n\":1.10,\"s\":\"a b\"}",
        "headers":[["h","v"],["h",null],["b",{"base64":"/w=="}]]});
    assert_eq!(records[0], wanted);
    assert_eq!((&records[1]["key_base64"], &records[1]["value_base64"]), (&json!("/w=="), &json!("/g==")));
    // A value that is not there is none, as one that is null.
    for tombstone in &records[2..4] {
        assert_eq!((tombstone.get("key"), tombstone.get("value")), (Some(&Value::Null), Some(&Value::Null)));
    }
    assert_eq!(records[4]["value"], "text\n");
    assert_eq!(records[6]["value"], "y");

    // Raw batches go out as they are and come in as they are.
    let raw = cluster.http.get(records_url(&cluster, 1, "t")).header("accept", "application/octet-stream");
    let raw = raw.send().await.unwrap();
    for (name, value) in [("next-offset", "7"), ("high-watermark", "7"), ("log-start-offset", "0")] {
        assert_eq!(raw.headers()[format!("pontoon-{name}")], value);
    }
    assert!(raw.headers().contains_key("pontoon-leader-epoch"));
    let batches = raw.bytes().await.unwrap();
    let first = &batches[..12 + u32::from_be_bytes(batches[8..12].try_into().unwrap()) as usize];
    cluster.create_topic(1, "copy", 1).await;
    let (status, answer) = produce(&cluster, 1, "copy", "application/octet-stream", first.to_vec()).await;
    assert_eq!((status, &answer["last_offset"]), (StatusCode::OK, &json!(3)), "{answer}");
    assert_eq!(cluster.fetch_all(1, "copy", 0).await[..], records[..4]);
}

#[tokio::test]
async fn bad_records_are_refused_whole_with_what_is_wrong() {
    let cluster =
        Cluster::start_with(1, &["--set", "limits.record_bytes_max=1000", "--set", "limits.request_bytes_max=5000"])
            .await;
    cluster.create_topic(1, "t", 1).await;
    let large = json!({"records": [{"value": "a"}, {"value": "x".repeat(1001)}]}).to_string();
    let cases: Vec<(&str, Vec<u8>, u16, &str, &str)> = vec![
        ("application/json", br#"{"records":[{},{"valeu":1}]}"#.to_vec(), 400, "INVALID_REQUEST", "record 1"),
        ("application/json", b"{\"records\":[]}".to_vec(), 400, "INVALID_REQUEST", "empty"),
        ("application/json", large.into_bytes(), 413, "RECORD_TOO_LARGE", "record 1"),
        ("application/x-ndjson", b"{}\n{\"value\":1}\n[]\n".to_vec(), 400, "INVALID_REQUEST", "line 3"),
        ("text/plain", vec![b'x'; 1001], 413, "RECORD_TOO_LARGE", "1001"),
        ("text/plain", vec![b'x'; 5001], 413, "REQUEST_TOO_LARGE", "5001"),
        ("application/octet-stream", b"not a batch".to_vec(), 400, "CORRUPT_BATCH", "11"),
        ("image/png", vec![], 415, "UNSUPPORTED_MEDIA_TYPE", "image/png"),
    ];
    for (kind, body, status, code, word) in cases {
        let answer = produce(&cluster, 1, "t", kind, body).await;
        assert!(answer.1["message"].as_str().is_some_and(|message| message.contains(word)), "{kind}: {answer:?}");
        assert_eq!(answer.1["outcome"], "none");
        assert_eq!(refusal(answer), (status, code.into()));
    }
    let url = format!("{}/v1/topics/t/partitions/7/records", cluster.url(1));
    let answer =
        read(cluster.http.post(url).header("content-type", "text/plain").body("x").send().await.unwrap()).await;
    assert_eq!(refusal(answer), (404, "UNKNOWN_PARTITION".into()));
    assert_eq!(refusal(produce(&cluster, 1, "none", "text/plain", "x").await), (404, "UNKNOWN_TOPIC".into()));
    assert!(cluster.fetch_all(1, "t", 0).await.is_empty(), "nothing that was refused appears");
}

#[tokio::test]
async fn a_raw_batch_that_lies_is_refused() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    produce(&cluster, 1, "t", "application/json", r#"{"records":[{"value":"a"},{"value":"b"}]}"#).await;
    let raw = cluster.http.get(records_url(&cluster, 1, "t")).header("accept", "application/octet-stream");
    let good = raw.send().await.unwrap().bytes().await.unwrap().to_vec();
    let broken = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let truncated = good[..good.len() - 1].to_vec();
    let twice = [&good[..], &good[..]].concat();
    // A bit of the payload, of the record count, of the checksum; cut short; two at once.
    for bytes in [broken(70), broken(60), broken(17), truncated, twice] {
        let answer = produce(&cluster, 1, "t", "application/octet-stream", bytes).await;
        assert_eq!(refusal(answer), (400, "CORRUPT_BATCH".into()));
    }
    let request = cluster.http.post(records_url(&cluster, 1, "t")).header("content-type", "application/octet-stream");
    let stamped = request.header("producer-id", "1").header("producer-epoch", "0").header("producer-sequence", "0");
    assert_eq!(refusal(read(stamped.body(good).send().await.unwrap()).await), (400, "INVALID_REQUEST".into()));
    assert_eq!(cluster.fetch_all(1, "t", 0).await.len(), 2);
}

#[tokio::test]
async fn the_cursor_leads_through_everything_once() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    for batch in 0..5 {
        let records: Vec<Value> =
            (0..10).map(|at| json!({"value": format!("{batch}-{at}"), "timestamp": batch * 10 + at})).collect();
        produce(&cluster, 1, "t", "application/json", json!({"records": records}).to_string()).await;
    }
    let mut seen = Vec::new();
    let mut at = 0;
    while at < 50 {
        let (_, answer) = fetch(&cluster, 1, "t", &format!("offset={at}&max_records=7")).await;
        seen.extend(values(&answer).into_iter().map(str::to_owned));
        at = answer["next_offset"].as_u64().unwrap();
    }
    let wanted: Vec<String> = (0..5).flat_map(|batch| (0..10).map(move |at| format!("{batch}-{at}"))).collect();
    assert_eq!(seen, wanted);

    let (_, tiny) = fetch(&cluster, 1, "t", "offset=13&max_bytes=1").await;
    assert_eq!((values(&tiny)[0], &tiny["records"][0]["offset"]), ("1-3", &json!(13)));
    let (status, end) = fetch(&cluster, 1, "t", "offset=50").await;
    assert_eq!((status, values(&end).len(), &end["next_offset"]), (StatusCode::OK, 0, &json!(50)));
    let (_, latest) = fetch(&cluster, 1, "t", "offset=latest&consistency=linearizable").await;
    assert_eq!(latest["next_offset"], 50);
    let (_, by_time) = fetch(&cluster, 1, "t", "offset=timestamp:25").await;
    assert_eq!(values(&by_time)[0], "2-5");
    let (_, too_late) = fetch(&cluster, 1, "t", "offset=timestamp:1000").await;
    assert_eq!(too_late["next_offset"], 50);

    let past = fetch(&cluster, 1, "t", "offset=51").await;
    assert_eq!((&past.1["log_start_offset"], &past.1["high_watermark"]), (&json!(0), &json!(50)));
    assert_eq!(refusal(past), (416, "OFFSET_OUT_OF_RANGE".into()));
    let (_, offsets) = cluster.get(1, "/v1/topics/t/partitions/0/offsets?timestamp=25").await;
    assert_eq!(offsets, json!({"log_start_offset":0,"high_watermark":50,"log_end_offset":50,"offset":25}));
}

#[tokio::test]
async fn a_waiting_fetch_is_woken_by_a_record_or_by_its_time() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let (_, empty) = fetch(&cluster, 1, "t", "max_wait_ms=50").await;
    assert_eq!((values(&empty).len(), &empty["next_offset"]), (0, &json!(0)));
    let waiting = fetch(&cluster, 1, "t", "max_wait_ms=60000");
    let producing = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cluster.produce_text(1, "t", 0, "at last").await;
    };
    let ((_, answer), ()) = tokio::join!(waiting, producing);
    assert_eq!(values(&answer), ["at last"]);
}

#[tokio::test]
async fn sequences_and_expected_offsets_are_held_to() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 2).await;
    let (status, producer) = cluster.ask(1, Method::POST, "/v1/producers", None).await;
    assert_eq!(status, StatusCode::CREATED);
    let (_, other) = cluster.ask(1, Method::POST, "/v1/producers", None).await;
    assert_ne!(producer["producer_id"], other["producer_id"]);
    let send = async |sequence: i32, epoch: i64, value: &'static str| {
        let request = cluster.http.post(records_url(&cluster, 1, "t")).header("content-type", "text/plain");
        let request = request.header("producer-id", producer["producer_id"].to_string());
        let request =
            request.header("producer-epoch", epoch.to_string()).header("producer-sequence", sequence.to_string());
        read(request.body(value).send().await.unwrap()).await
    };
    let epoch = producer["producer_epoch"].as_i64().unwrap();
    let first = send(0, epoch, "a").await.1;
    assert_eq!(send(1, epoch, "b").await.0, StatusCode::OK);
    let again = send(0, epoch, "a").await;
    assert_eq!(
        (again.0, &again.1["duplicate"], &again.1["base_offset"]),
        (StatusCode::OK, &json!(true), &first["base_offset"])
    );
    assert_eq!(refusal(send(5, epoch, "gap").await), (409, "OUT_OF_ORDER_SEQUENCE".into()));
    assert_eq!(send(0, epoch + 1, "newer").await.0, StatusCode::OK);
    assert_eq!(refusal(send(2, epoch, "older").await), (409, "PRODUCER_FENCED".into()));
    // Each partition counts for itself.
    let url = format!("{}/v1/topics/t/partitions/1/records", cluster.url(1));
    let request = cluster.http.post(url).header("content-type", "text/plain").header("producer-sequence", "0");
    let request = request.header("producer-id", producer["producer_id"].to_string());
    let request = request.header("producer-epoch", epoch.to_string()).body("elsewhere");
    let (status, first) = read(request.send().await.unwrap()).await;
    assert_eq!((status, &first["base_offset"], first.get("duplicate")), (StatusCode::OK, &json!(0), None), "{first}");

    let at = async |offset: u64| {
        let request = cluster.http.post(records_url(&cluster, 1, "t")).header("content-type", "text/plain");
        read(request.header("if-match-offset", offset.to_string()).body("c").send().await.unwrap()).await
    };
    let mismatch = at(7).await;
    assert!(mismatch.1["message"].as_str().unwrap().contains('7'), "{}", mismatch.1);
    assert_eq!(refusal(mismatch), (412, "OFFSET_MISMATCH".into()));
    assert_eq!(at(3).await.1["base_offset"], 3);
    let answer = cluster.fetch_all(1, "t", 0).await;
    let stored: Vec<_> = answer.iter().map(|record| record["value"].as_str().unwrap()).collect();
    assert_eq!(stored, ["a", "b", "newer", "c"]);
}

#[tokio::test]
async fn every_ack_level_answers_as_documented() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    for (acks, status) in [("all", 200), ("every", 200), ("leader", 200), ("none", 202)] {
        for id in 1..=3 {
            let url = format!("{}?acks={acks}", records_url(&cluster, id, "t"));
            let request = cluster.http.post(url).header("content-type", "text/plain").body("x");
            let (found, body) = read(request.send().await.unwrap()).await;
            assert_eq!(found.as_u16(), status, "{acks} through {id}: {body}");
            assert_eq!(body == json!({}), acks == "none", "{body}");
        }
    }
    assert!(cluster.fetch_all(1, "t", 0).await.len() >= 9);
}

/// What each level waits for is seen where it cannot come: both followers stand still.
#[tokio::test]
async fn an_ack_level_waits_for_what_it_says_and_for_all_unless_told() {
    let cluster = Cluster::start_with(3, &["--set", "raft.silence_max_ms=600000"]).await;
    cluster.create_topic(1, "t", 1).await;
    cluster.produce_text(1, "t", 0, "before").await;
    let leader = cluster.leader(1, "t", 0).await;
    let followers = [leader % 3 + 1, (leader + 1) % 3 + 1];
    followers.iter().for_each(|id| cluster.pause(*id));
    let produce = |acks: &'static str| {
        let url = format!("{}?timeout_ms=700{acks}", records_url(&cluster, leader, "t"));
        let request = cluster.http.post(url).header("content-type", "text/plain").body(acks);
        async move { read(request.send().await.unwrap()).await }
    };
    // At once: a leader that hears of nobody for long enough takes nothing more.
    let (none, own, unsaid, all, every) = tokio::join!(
        produce("&acks=none"),
        produce("&acks=leader"),
        produce(""),
        produce("&acks=all"),
        produce("&acks=every")
    );
    followers.iter().for_each(|id| cluster.resume(*id));
    assert_eq!((none.0.as_u16(), own.0.as_u16()), (202, 200), "{} {}", none.1, own.1);
    for answer in [unsaid, all, every] {
        assert_eq!(answer.1["outcome"], "unknown", "{}", answer.1);
        assert_eq!(refusal(answer), (504, "OUTCOME_UNKNOWN".into()));
    }
    cluster.produce_text(leader, "t", 0, "after").await;
}

#[tokio::test]
async fn any_broker_takes_any_request_and_passes_it_on_once() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic(2, "t", 3).await;
    for (at, id) in [1, 2, 3, 1, 2, 3].into_iter().enumerate() {
        let answer = cluster.produce_text(id, "t", 0, &format!("{at}")).await;
        assert_eq!(answer["base_offset"], at);
    }
    for id in 1..=3 {
        let answer = cluster.fetch_all(id, "t", 0).await;
        let stored: Vec<_> = answer.iter().map(|record| record["value"].as_str().unwrap()).collect();
        assert_eq!(stored, ["0", "1", "2", "3", "4", "5"], "through broker {id}");
        let (_, offsets) = cluster.get(id, "/v1/topics/t/partitions/0/offsets?consistency=linearizable").await;
        assert_eq!(offsets["high_watermark"], 6);
        let past = fetch(&cluster, id, "t", "offset=99").await;
        assert_eq!(past.1["high_watermark"], 6, "through broker {id}: {}", past.1);
        assert_eq!(refusal(past), (416, "OFFSET_OUT_OF_RANGE".into()));
    }

    let leader = cluster.leader(1, "t", 0).await;
    let follower = leader % 3 + 1;
    let path = "/v1/topics/t/partitions/0/records?offset=3&max_bytes=9";
    let ask = |id: u32, name: &'static str, value: &'static str| {
        cluster.http.get(format!("{}{path}", cluster.url(id))).header(name, value).send()
    };
    let redirected: Response = ask(follower, "prefer", "redirect").await.unwrap();
    assert_eq!(redirected.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(redirected.headers()["location"], format!("{}{path}", cluster.url(leader)));
    assert_eq!(ask(leader, "prefer", "redirect").await.unwrap().status(), StatusCode::OK);
    // Passed on already: it is not passed on again.
    let refused = read(ask(follower, "pontoon-forwarded", "9").await.unwrap()).await;
    assert_eq!(refused.1["outcome"], "none");
    assert_eq!(refusal(refused), (503, "NOT_LEADER".into()));
}

#[tokio::test]
async fn cluster_and_brokers_are_described() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 3).await;
    let (_, body) = cluster.get(3, "/v1/cluster").await;
    assert_eq!(body["cluster_id"].as_str().unwrap().len(), 32);
    assert!(body["controller"].is_u64(), "{body}");
    let brokers = body["brokers"].as_array().unwrap();
    for (broker, id) in brokers.iter().zip(1..) {
        assert_eq!((&broker["broker_id"], &broker["alive"]), (&json!(id), &json!(true)));
        assert_eq!(broker["http_address"], cluster.address(id));
        assert_eq!(broker["kafka_address"], cluster.kafka_address(id));
    }
    assert_eq!(brokers.iter().map(|broker| broker["replicas"].as_u64().unwrap()).sum::<u64>(), 9, "{body}");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, body) = cluster.get(2, "/v1/brokers").await;
        let leads: Vec<u64> = (0..3).map(|at| body["brokers"][at]["leads"].as_u64().unwrap()).collect();
        let (_, topic) = cluster.get(2, "/v1/topics/t").await;
        let partitions = topic["partitions"].as_array().unwrap();
        let led = |id| partitions.iter().filter(|partition| partition["leader"] == json!(id)).count() as u64;
        if leads.iter().sum::<u64>() == 3 && leads == [led(1), led(2), led(3)] {
            break;
        }
        assert!(Instant::now() < deadline, "{body} and {topic}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.kill(2);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, body) = cluster.get(1, "/v1/brokers").await;
        if body["brokers"][1]["alive"] == json!(false) {
            break;
        }
        assert!(Instant::now() < deadline, "broker 2 is not seen to be dead: {body}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(cluster.metric(1, "pontoon_ready").await, 1.0);
    assert_eq!(cluster.metric(1, "pontoon_broker_replicas").await, 3.0);
}

#[tokio::test]
async fn a_killed_leader_is_replaced_under_a_waiting_client() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    cluster.produce_text(1, "t", 0, "before").await;
    let leader = cluster.leader(1, "t", 0).await;
    let other = leader % 3 + 1;
    cluster.kill(leader);
    // Nothing was sent to the dead one, so the broker may look for the new leader by itself.
    cluster.produce_text(other, "t", 0, "after").await;
    let answer = cluster.fetch_all(other, "t", 0).await;
    assert_eq!(answer.iter().map(|record| record["value"].as_str().unwrap()).collect::<Vec<_>>(), ["before", "after"]);
}

#[tokio::test]
async fn a_paused_leader_leaves_a_plain_produce_unknown_and_an_idempotent_one_done() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let (_, producer) = cluster.ask(1, Method::POST, "/v1/producers", None).await;
    let leader = cluster.leader(1, "t", 0).await;
    let other = leader % 3 + 1;
    // So that the pooled connection is there and the request is sent into it.
    cluster.produce_text(other, "t", 0, "first").await;
    cluster.pause(leader);
    let began = Instant::now();
    let plain = produce(&cluster, other, "t", "text/plain", "plain");
    let request = cluster.http.post(records_url(&cluster, other, "t")).header("content-type", "text/plain");
    let request = request.header("producer-id", producer["producer_id"].to_string());
    let request =
        request.header("producer-epoch", producer["producer_epoch"].to_string()).header("producer-sequence", "0");
    let (plain, idempotent) = tokio::join!(plain, request.body("idempotent").send());
    let idempotent = read(idempotent.unwrap()).await;
    assert_eq!(idempotent.0, StatusCode::OK, "{}", idempotent.1);
    assert_eq!(plain.1["outcome"], "unknown", "{}", plain.1);
    assert_eq!(refusal(plain), (504, "OUTCOME_UNKNOWN".into()));
    assert!(began.elapsed() < Duration::from_secs(20), "both waited for their timeout: {:?}", began.elapsed());
    cluster.resume(leader);
    let stored = cluster.fetch_all(other, "t", 0).await;
    let count = stored.iter().filter(|record| record["value"] == "idempotent").count();
    assert_eq!(count, 1, "{stored:?}");
}

#[tokio::test]
async fn without_a_majority_requests_wait_their_time_and_say_so() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let leader = cluster.leader(1, "t", 0).await;
    let survivor = leader % 3 + 1;
    for id in (1..=3).filter(|id| *id != survivor) {
        cluster.kill(id);
    }
    let url = format!("{}?timeout_ms=700", records_url(&cluster, survivor, "t"));
    let request = cluster.http.post(url).header("content-type", "text/plain").body("x");
    let response = request.send().await.unwrap();
    let answer = refused_for_a_while(response).await;
    assert_eq!(answer.1["outcome"], "none", "{}", answer.1);
    assert_eq!((answer.1["retriable"].clone(), refusal(answer)), (json!(true), (503, "NO_LEADER".into())));
    let url = format!("{}/v1/topics/t/records?timeout_ms=300", cluster.url(survivor));
    let by_key = cluster.http.post(url).header("content-type", "text/plain").body("x").send().await.unwrap();
    assert_eq!(refusal(refused_for_a_while(by_key).await), (503, "NO_LEADER".into()));
    assert_eq!(cluster.get(survivor, "/readyz").await, (StatusCode::OK, json!({"ready": true})), "that is no reason");
    cluster.restart(leader).await;
    cluster.produce_text(survivor, "t", 0, "again").await;
}
