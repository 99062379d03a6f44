//! PATCH of a topic on the real binary: it takes effect on every broker, or not at all.

use std::time::Instant;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Cluster, PATIENCE, read};

async fn patch(cluster: &Cluster, id: u32, topic: &str, change: Value) -> (u16, Value) {
    let (status, body) = cluster.ask(id, Method::PATCH, &format!("/v1/topics/{topic}"), Some(change)).await;
    (status.as_u16(), body)
}

/// Produces one value through a broker; the status and the refusal's code.
async fn produce(cluster: &Cluster, id: u32, topic: &str, partition: u32, value: &str) -> (u16, String) {
    let url = format!("{}/v1/topics/{topic}/partitions/{partition}/records", cluster.url(id));
    let request = cluster.http.post(url).header("content-type", "text/plain").body(value.to_owned());
    let (status, body) = read(request.send().await.unwrap()).await;
    (status.as_u16(), body["error"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_patch_takes_effect_on_every_broker() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    cluster.produce_text(1, "t", 0, "longer than ten bytes").await;
    let change = json!({"partitions": 3, "config": {"max.message.bytes": "10", "retention.ms": "86400000"}});
    let (status, body) = patch(&cluster, 2, "t", change.clone()).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!((&body["config"], body["partitions"].as_array().unwrap().len()), (&change["config"], 3));
    // The same again changes nothing and is no error: a client may repeat it after a lost answer.
    assert_eq!(patch(&cluster, 3, "t", change.clone()).await.0, 200);
    for id in 1..=3 {
        let deadline = Instant::now() + PATIENCE;
        for partition in 0..3 {
            // The leader learns of it a moment after the broker that was asked.
            while produce(&cluster, id, "t", partition, "longer than ten bytes").await
                != (413, "RECORD_TOO_LARGE".into())
            {
                assert!(Instant::now() < deadline, "t/{partition} through broker {id} keeps the old limit");
            }
            assert_eq!(produce(&cluster, id, "t", partition, "short").await.0, 200);
        }
    }
    let reset = json!({"config": {"max.message.bytes": null, "retention.bytes": null}});
    let (status, body) = patch(&cluster, 1, "t", reset).await;
    assert_eq!((status, &body["config"]), (200, &json!({"retention.ms": "86400000"})), "{body}");
    let deadline = Instant::now() + PATIENCE;
    while produce(&cluster, 3, "t", 2, "longer than ten bytes").await.0 != 200 {
        assert!(Instant::now() < deadline, "the limit was reset and still holds");
    }
    // What was altered is as durable as what was created.
    for id in 1..=3 {
        cluster.kill(id);
    }
    for id in 1..=3 {
        cluster.spawn(id);
    }
    for id in 1..=3 {
        cluster.wait_ready(id).await;
    }
    let (_, body) = cluster.get(2, "/v1/topics/t").await;
    assert_eq!(
        (&body["config"], body["partitions"].as_array().unwrap().len()),
        (&json!({"retention.ms": "86400000"}), 3)
    );
    assert_eq!(cluster.fetch_all(1, "t", 0).await[0]["value"], "longer than ten bytes");
}

/// Whoever is answered can produce, and is not told that nobody is in sync.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_created_or_has_grown_is_led_by_who_is_in_sync() {
    let cluster = Cluster::start(3).await;
    let led = |topic: &Value, count: usize| {
        let partitions = topic["partitions"].as_array().unwrap();
        let in_sync = |of: &Value| of["in_sync"].as_array().unwrap().contains(&of["leader"]);
        assert!(partitions.len() == count && partitions.iter().all(in_sync), "{topic}");
    };
    led(&cluster.create_topic(1, "t", 6).await, 6);
    for (id, count) in [(2, 12), (3, 40)] {
        let (status, grown) = patch(&cluster, id, "t", json!({"partitions": count})).await;
        assert_eq!(status, 200, "{grown}");
        led(&grown, count);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_patch_that_cannot_be_changes_nothing() {
    let cluster = Cluster::start(1).await;
    let created = json!({"name": "t", "partitions": 2, "config": {"retention.ms": "5000"}});
    assert_eq!(cluster.post(1, "/v1/topics", created).await.0, StatusCode::CREATED);
    let before = cluster.get(1, "/v1/topics/t").await.1;
    let cases = [
        (json!({"partitions": 1}), 400, "INVALID_PARTITIONS", "1 would be fewer"),
        (json!({"partitions": 10_001}), 400, "INVALID_PARTITIONS", "10001"),
        (json!({"partitions": "3"}), 400, "INVALID_REQUEST", "string \"3\", expected u32"),
        (json!({"partitions": -1}), 400, "INVALID_REQUEST", "-1"),
        // Half of it is legal: none of it happens.
        (json!({"partitions": 3, "config": {"retention.ms": "soon"}}), 400, "INVALID_CONFIG", "\"soon\""),
        (json!({"partitions": 1, "config": {"retention.ms": "7"}}), 400, "INVALID_PARTITIONS", "1 would be fewer"),
        (json!({"config": {"retention.bytes": "7", "retention.sm": "7"}}), 400, "INVALID_CONFIG", "\"retention.ms\"?"),
        (json!({"config": {"retention.m": null}}), 400, "INVALID_CONFIG", "\"retention.ms\"?"),
        (json!({"config": {"retention.ms": 7}}), 400, "INVALID_CONFIG", "not a string or null"),
        (json!({"config": {"segment.bytes": "1"}}), 400, "INVALID_CONFIG", "from 1024"),
        (json!({"config": {"cleanup.policy": "compact"}}), 400, "INVALID_CONFIG", "delete"),
        (json!({"configs": {}}), 400, "INVALID_REQUEST", "`configs`"),
        (json!([]), 400, "INVALID_REQUEST", "not a JSON object"),
    ];
    for (change, status, code, words) in cases {
        let (found, body) = patch(&cluster, 1, "t", change.clone()).await;
        assert_eq!((found, body["error"].as_str(), &body["outcome"]), (status, Some(code), &json!("none")), "{change}");
        assert!(body["message"].as_str().unwrap().contains(words), "{change}: {body}");
    }
    assert_eq!(patch(&cluster, 1, "none", json!({"partitions": 3})).await.0, 404);
    let url = format!("{}/v1/topics/t", cluster.url(1));
    let plain = cluster.http.patch(url).header("content-type", "text/plain").body("{}").send().await.unwrap();
    assert_eq!(plain.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let after = cluster.get(1, "/v1/topics/t").await.1;
    assert_eq!((&after["config"], &after["partitions"][1]["partition"]), (&before["config"], &json!(1)));
    assert_eq!(after["partitions"].as_array().unwrap().len(), 2);
    assert_eq!(patch(&cluster, 1, "t", json!({})).await.1["config"], before["config"]);
}
