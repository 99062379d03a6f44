//! What holds where a request says nothing.

use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{fetch, produce, records_url, refusal, values};
use crate::support::Cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_has_defaults_that_suit_the_cluster() {
    let cluster = Cluster::start(3).await;
    let (status, body) = cluster.post(2, "/v1/topics", json!({"name": "d"})).await;
    assert_eq!(status, StatusCode::CREATED);
    let partitions = body["partitions"].as_array().unwrap();
    assert_eq!((partitions.len(), &body["config"]), (1, &json!({})), "{body}");
    let mut replicas: Vec<_> =
        partitions[0]["replicas"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    replicas.sort_unstable();
    assert_eq!(replicas, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_brings_a_mebibyte_unless_it_says_how_much() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    for letter in ["a", "b", "c"] {
        let (status, body) = produce(&cluster, 1, "t", "text/plain", letter.repeat(400 << 10)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
    }
    // No record that there is no room left for, but for the first.
    for (query, brought) in
        [("max_bytes=262144", 1), ("max_bytes=524288", 1), ("", 2), ("max_bytes=1048576", 2), ("max_bytes=2097152", 3)]
    {
        let (_, answer) = fetch(&cluster, 1, "t", query).await;
        assert_eq!((values(&answer).len(), &answer["next_offset"]), (brought, &json!(brought)), "{query}");
        for accept in ["application/x-ndjson", "application/octet-stream"] {
            let request = cluster.http.get(format!("{}?{query}", records_url(&cluster, 1, "t")));
            let answer = request.header("accept", accept).send().await.unwrap();
            assert_eq!(answer.headers()["pontoon-next-offset"], brought.to_string(), "{accept} {query}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_has_a_mebibyte_and_a_request_sixteen_unless_the_configuration_says() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let text = async |bytes: usize| produce(&cluster, 1, "t", "text/plain", "x".repeat(bytes)).await;
    let (status, body) = text(1 << 20).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    // And a dozen bytes, as in Kafka.
    assert_eq!(refusal(text((1 << 20) + 13).await), (413, "RECORD_TOO_LARGE".into()));
    let records = vec![json!({"value": "x".repeat(1 << 20)}); 15];
    let body = json!({"records": records}).to_string();
    // The request counts, not only what is kept of it.
    let padded =
        |bytes: usize| produce(&cluster, 1, "t", "application/json", body.clone() + &" ".repeat(bytes - body.len()));
    let (status, answer) = padded(16 << 20).await;
    assert_eq!((status, &answer["last_offset"]), (StatusCode::OK, &json!(15)), "{answer}");
    assert_eq!(refusal(padded((16 << 20) + 1).await), (413, "REQUEST_TOO_LARGE".into()));
}

/// Answers the next request with these bytes of JSON, and says how long its sender waits for that.
async fn waits(listener: &TcpListener, answer: &str) -> u64 {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let kind = "content-type: application/json\r\nconnection: close";
    let answer = format!("HTTP/1.1 200 OK\r\n{kind}\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
    stream.write_all(answer.as_bytes()).await.unwrap();
    let left = head.lines().find_map(|line| line.strip_prefix("pontoon-timeout-ms: "));
    left.unwrap_or_else(|| panic!("{head}")).parse().unwrap()
}

/// What is passed on says what is left of its time: nobody waits half a minute here. Where the broker that leads is said to be, the
/// test listens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_waits_for_half_a_minute_and_a_read_for_ten_seconds_unless_it_says_how_long() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut cluster = Cluster::prepare(2, &[]);
    cluster.broker_mut(1).add_args(&["--http-advertised", &listener.local_addr().unwrap().to_string()]);
    cluster.restart_all(&[1, 2]).await;
    let topic = json!({"name": "t", "partitions": 8, "replicas": 1});
    let (status, body) = cluster.post(2, "/v1/topics", topic).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    let partitions = body["partitions"].as_array().unwrap();
    let of_1 = partitions.iter().position(|partition| partition["replicas"] == json!([1])).unwrap();
    let path = format!("/v1/topics/t/partitions/{of_1}");
    let record = json!({"records": [{"value": "x"}]});
    for (method, path, body, longest) in [
        (Method::POST, format!("{path}/records"), Some(record.clone()), 30_000),
        (Method::POST, format!("{path}/records?timeout_ms=50000"), Some(record), 50_000),
        (Method::GET, format!("{path}/records"), None, 10_000),
        (Method::GET, format!("{path}/offsets"), None, 10_000),
        (Method::GET, format!("{path}/offsets?timeout_ms=20000"), None, 20_000),
    ] {
        let (asked, left) = tokio::join!(cluster.ask(2, method.clone(), &path, body), waits(&listener, "{\"told\":1}"));
        assert_eq!(asked, (StatusCode::OK, json!({"told": 1})), "{method} {path}");
        // Some of it has gone by.
        assert!(left <= longest && left > longest * 3 / 4, "{method} {path}: {left} ms");
    }
}
