//! The forms in which a fetch gives records: embedded JSON, lines of JSON.

use std::time::Instant;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{fetch, produce, records_url, refusal};
use crate::support::{Cluster, PATIENCE, read};

#[tokio::test]
async fn values_that_are_json_are_embedded_when_asked_for() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    for value in ["{\"a\":\n[1.10, true]}", "hello", "null", "\"quoted\"", "17", "[broken", "{\"half\":\"\\ud800\"}"] {
        produce(&cluster, 1, "t", "text/plain", value).await;
    }
    produce(&cluster, 1, "t", "application/json", r#"{"records":[{"value":null},{"value_base64":"/w=="}]}"#).await;
    let raw = cluster.http.get(format!("{}?value_format=json", records_url(&cluster, 1, "t"))).send().await.unwrap();
    let text = raw.text().await.unwrap();
    assert!(text.contains(r#""value":{"a":[1.10,true]}"#), "numbers are not read: {text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    let found: Vec<_> = answer["records"].as_array().unwrap().iter().map(|record| record["value"].clone()).collect();
    let wanted = [
        json!({"a": [1.1, true]}),
        json!("hello"),
        json!("null"),
        json!("\"quoted\""),
        json!(17),
        json!("[broken"),
        json!("{\"half\":\"\\ud800\"}"),
        Value::Null,
        Value::Null,
    ];
    assert_eq!(found, wanted);
    assert_eq!(answer["records"][8]["value_base64"], "/w==");
    let (_, plain) = fetch(&cluster, 1, "t", "value_format=text&offset=4&max_records=1").await;
    assert_eq!(plain["records"][0]["value"], "17");
    assert_eq!(refusal(fetch(&cluster, 1, "t", "value_format=xml").await), (400, "INVALID_REQUEST".into()));
}

#[tokio::test]
async fn records_come_as_lines_and_the_cursor_is_in_the_headers() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let body = "{\"key\":\"k\",\"value\":{\"a\":1},\"timestamp\":5}\n{\"value\":\"two\\nlines\",\"timestamp\":6}\n";
    produce(&cluster, 1, "t", "application/x-ndjson", body).await;
    for id in 1..=3 {
        let url = format!("{}?max_records=1", records_url(&cluster, id, "t"));
        let answer = cluster.http.get(url).header("accept", "application/x-ndjson").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
        assert_eq!(answer.headers()["pontoon-next-offset"], "1");
        assert_eq!(answer.headers()["pontoon-high-watermark"], "2");
        let line = answer.text().await.unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        let record: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(record, json!({"offset":0,"timestamp":5,"key":"k","value":"{\"a\":1}","headers":[]}));
    }
    let all = cluster.http.get(records_url(&cluster, 1, "t")).header("accept", "application/x-ndjson").send().await;
    let lines = all.unwrap().text().await.unwrap();
    assert_eq!(lines.lines().count(), 2);
    let past = format!("{}?offset=9", records_url(&cluster, 2, "t"));
    let past = cluster.http.get(past).header("accept", "application/x-ndjson").send().await.unwrap();
    assert_eq!(refusal(read(past).await), (416, "OFFSET_OUT_OF_RANGE".into()));
}

#[tokio::test]
async fn a_fetch_says_which_topic_it_read_whoever_is_asked_and_in_whatever_form() {
    let cluster = Cluster::start(3).await;
    for _ in 0..2 {
        let topic = cluster.create_topic(1, "t", 1).await;
        let forms = ["application/json", "application/x-ndjson", "application/octet-stream", "text/event-stream"];
        for (id, form) in [1, 2, 3, 1].into_iter().zip(forms) {
            // It may not have heard of this one yet.
            let deadline = Instant::now() + PATIENCE;
            while cluster.get(id, "/v1/topics/t").await.1["topic_id"] != topic["topic_id"] {
                assert!(Instant::now() < deadline, "broker {id} does not hear of it");
            }
            let path = "/v1/topics/t/partitions/0/records?offset=earliest";
            let request = cluster.http.get(format!("{}{path}", cluster.url(id))).header("accept", form);
            let answer = request.send().await.unwrap();
            assert_eq!(answer.headers()["pontoon-topic-id"].to_str().unwrap(), topic["topic_id"], "{form}");
        }
        let (gone, _) = cluster.ask(1, Method::DELETE, "/v1/topics/t", None).await;
        assert_eq!(gone, StatusCode::NO_CONTENT);
    }
}
