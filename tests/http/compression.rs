//! `compression.type` over HTTP: whatever a body holds, and whichever broker takes it, the log holds batches of the topic's compression.

use std::time::Instant;

use bytes::Bytes;
use pontoon::record_batch::{BatchHeader, Compression};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{produce, records_url, refusal};
use crate::kafka_hostile::{batch, packed};
use crate::support::{Cluster, PATIENCE, read, run};

/// A partition's batches, as they are stored.
async fn raw(cluster: &Cluster, topic: &str) -> Vec<Bytes> {
    let url = format!("{}?consistency=linearizable", records_url(cluster, 1, topic));
    let answer = cluster.http.get(url).header("accept", "application/octet-stream").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let (mut rest, mut batches) = (answer.bytes().await.unwrap(), Vec::new());
    while !rest.is_empty() {
        let length = 12 + u32::from_be_bytes(rest[8..12].try_into().unwrap()) as usize;
        batches.push(rest.split_to(length));
    }
    batches
}

fn codec(batch: &Bytes) -> Compression {
    BatchHeader::read(batch).unwrap().compression().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_body_holds_is_stored_with_its_topics_compression() {
    let cluster = Cluster::start(3).await;
    let plain = batch(b"as a batch ".repeat(30));
    let zstd = packed(&plain, 4, zstd::stream::encode_all(&plain[61..], 3).unwrap());
    for (name, stored_as) in [("gzip", Compression::Gzip), ("uncompressed", Compression::None)] {
        let topic = json!({"name": name, "partitions": 1, "config": {"compression.type": name}});
        assert_eq!(cluster.post(1, "/v1/topics", topic).await.0, StatusCode::CREATED);
        cluster.leader(1, name, 0).await;
        let mut wanted = Vec::new();
        // Each to the leader and to two others, which pass it on.
        for id in 1..=3 {
            for (kind, body, value) in [
                ("text/plain", Bytes::from_static(b"as text"), "as text".to_owned()),
                ("application/json", Bytes::from_static(br#"{"records":[{"value":"as json"}]}"#), "as json".to_owned()),
                ("application/x-ndjson", Bytes::from_static(b"{\"value\":\"as a line\"}\n"), "as a line".to_owned()),
                ("application/octet-stream", plain.clone(), "as a batch ".repeat(30)),
                ("application/octet-stream", zstd.clone(), "as a batch ".repeat(30)),
            ] {
                let (status, answer) = produce(&cluster, id, name, kind, body).await;
                assert_eq!((status, &answer["base_offset"]), (StatusCode::OK, &json!(wanted.len())), "{answer}");
                wanted.push(value);
            }
            let records = json!({"records": [{"key": "k", "value": "by key"}]});
            let (status, answer) = cluster.post(id, &format!("/v1/topics/{name}/records"), records).await;
            assert_eq!(status, StatusCode::OK, "{answer}");
            wanted.push("by key".to_owned());
        }
        let batches = raw(&cluster, name).await;
        assert_eq!(batches.len(), wanted.len());
        assert!(batches.iter().all(|batch| codec(batch) == stored_as), "{name}");
        let values: Vec<_> = cluster.fetch_all(2, name, 0).await;
        let values: Vec<_> = values.iter().map(|record| record["value"].as_str().unwrap().to_owned()).collect();
        assert_eq!(values, wanted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_a_duplicate_and_what_becomes_too_large_or_is_none_is_refused() {
    let cluster = Cluster::start_with(1, &["--set", "limits.request_bytes_max=3145728"]).await;
    for (name, compression) in [("small", "lz4"), ("large", "uncompressed")] {
        let topic = json!({"name": name, "partitions": 1, "config": {"compression.type": compression}});
        assert_eq!(cluster.post(1, "/v1/topics", topic).await.0, StatusCode::CREATED);
        cluster.leader(1, name, 0).await;
    }
    for duplicate in [false, true] {
        let request = cluster.http.post(records_url(&cluster, 1, "small")).header("content-type", "application/json");
        let request = request.header("producer-id", "7").header("producer-epoch", "0").header("producer-sequence", "0");
        let (status, answer) = read(request.body(r#"{"records":[{"value":"once"}]}"#).send().await.unwrap()).await;
        assert_eq!((status, &answer["base_offset"]), (StatusCode::OK, &json!(0)));
        assert_eq!(answer["duplicate"] == true, duplicate, "{answer}");
    }
    let only = raw(&cluster, "small").await;
    assert_eq!(
        (only.len(), codec(&only[0]), BatchHeader::read(&only[0]).unwrap().producer_id),
        (1, Compression::Lz4, 7)
    );

    let zeros = batch(vec![0; 1 << 20]);
    // Records of a million bytes, as often as that.
    let many = |count: i32| {
        let mut builder = pontoon::record_batch::RecordBatchBuilder::new(pontoon::record_batch::BatchLimits {
            batch_bytes_max: 80 << 20,
            ..Default::default()
        });
        let value = Some(zeros.slice(100..1_000_100));
        let record = pontoon::record_batch::NewRecord { value, ..Default::default() };
        (0..count).for_each(|_| builder.push(&record).unwrap());
        let plain = builder.build(None).unwrap().into_bytes();
        packed(&plain, 4, zstd::stream::encode_all(&plain[61..], 3).unwrap())
    };
    for (topic, records, expected) in [("large", 2, 200), ("large", 4, 413), ("small", 4, 200), ("small", 70, 413)] {
        let body = many(records);
        let answer = produce(&cluster, 1, topic, "application/octet-stream", body).await;
        assert_eq!(answer.0.as_u16(), expected, "{topic}, {records} records: {}", answer.1);
        if expected != 200 {
            assert_eq!(refusal(answer).1, "REQUEST_TOO_LARGE");
        }
    }
    // Two megabytes of room were taken beside the body's; all of it is free again.
    let metrics = cluster.http.get(format!("{}/metrics", cluster.url(1))).send().await.unwrap().text().await.unwrap();
    let held = metrics.lines().find(|line| line.starts_with("pontoon_http_request_bytes_in_flight")).unwrap();
    assert!(held.ends_with(" 0"), "{held}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_compression_is_set_changed_and_reset_like_any_key() {
    let cluster = Cluster::start_with(1, &["--set", "log.compression.type=snappy"]).await;
    cluster.create_topic(1, "t", 1).await;
    let change = async |value: Value| {
        let body = json!({"config": {"compression.type": value}});
        cluster.ask(1, Method::PATCH, "/v1/topics/t", Some(body)).await
    };
    let refused = change(json!("brotli")).await;
    assert!(refused.1["message"].as_str().unwrap().contains("gzip or snappy or lz4 or zstd"), "{}", refused.1);
    assert_eq!(refusal(refused), (400, "INVALID_CONFIG".to_owned()));
    for (value, wanted) in [
        (None, Compression::Snappy),
        (Some(json!("zstd")), Compression::Zstd),
        (Some(json!("producer")), Compression::None),
        (Some(json!(null)), Compression::Snappy),
    ] {
        if let Some(value) = value {
            assert_eq!(change(value.clone()).await.0, StatusCode::OK);
            let described = cluster.get(1, "/v1/topics/t").await.1;
            assert_eq!(described["config"].get("compression.type").unwrap_or(&Value::Null), &value);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            cluster.produce_text(1, "t", 0, "x").await;
            if codec(raw(&cluster, "t").await.last().unwrap()) == wanted {
                break;
            }
            assert!(Instant::now() < deadline, "{wanted:?}");
        }
    }
    let servers = cluster.servers();
    let args = ["topic", "create", "cli", "--config", "compression.type=gzip", "--server", &servers];
    let made = run(&args, b"").await;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    cluster.produce_text(1, "cli", 0, "x").await;
    assert_eq!(codec(&raw(&cluster, "cli").await[0]), Compression::Gzip);
}
