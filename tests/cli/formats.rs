//! What the commands print for programs, and how they end when only some of it was done or is there.

use serde_json::Value;

use serde_json::json;

use super::{status, stderr, stdout};
use crate::support::{Cluster, run};

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_has_a_line_of_json_for_programs() {
    let cluster = Cluster::start(1).await;
    let servers = cluster.servers();
    let json = async |args: &[&str], stdin: &[u8]| {
        let output = run(&[args, &["--json", "--server", &servers]].concat(), stdin).await;
        assert_eq!(status(&output), 0, "{args:?}: {}", stderr(&output));
        lines(&stdout(&output))
    };
    for name in ["a", "b"] {
        cluster.create_topic(1, name, 2).await;
    }
    let listed = json(&["topic", "list"], b"").await;
    let names: Vec<_> = listed.iter().map(|topic| topic["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b"]);
    let produced = json(&["produce", "a"], b"one\ntwo\n").await;
    assert!(produced.len() == 1 && produced[0]["acknowledged"] == 2 && produced[0]["seconds"].is_f64(), "{produced:?}");
    let described = json(&["topic", "describe", "a"], b"").await;
    assert_eq!(described[0]["partitions"].as_array().unwrap().len(), 2, "{described:?}");
    let altered = json(&["topic", "alter", "a", "--partitions", "3", "--config", "retention.ms=7"], b"").await;
    assert_eq!(
        (altered[0]["partitions"].as_array().unwrap().len(), &altered[0]["config"]["retention.ms"]),
        (3, &"7".into())
    );
    let reset = json(&["topic", "alter", "a", "--reset", "retention.ms"], b"").await;
    assert!(reset[0]["config"].get("retention.ms").is_none(), "{reset:?}");
    assert_eq!(json(&["topic", "delete", "a"], b"").await, [serde_json::json!({"deleted": "a"})]);
    let explained = json(&["explain", "NO_LEADER"], b"").await;
    assert_eq!((&explained[0]["code"], &explained[0]["status"]), (&"NO_LEADER".into(), &503.into()));
    assert!(json(&["explain"], b"").await.len() > 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_named_twice_is_a_mistake() {
    let twice = [
        &["topic", "create", "t", "--config", "retention.ms=1", "--config", "retention.ms=2"][..],
        &["topic", "alter", "t", "--config", "retention.ms=1", "--reset", "retention.ms"],
    ];
    for args in twice {
        let refused = run(args, b"").await;
        let said = stderr(&refused);
        assert!(status(&refused) == 2 && said.contains("retention.ms is named twice"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_in_part_has_its_own_status() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let servers = cluster.servers();
    let produced = run(&["produce", "t", "--key-separator", ":", "--server", &servers], b"k:v\nnone\nk:w\n").await;
    let said = stderr(&produced);
    assert!(status(&produced) == 5 && said.contains("line 2") && said.contains("1 lines were acknowledged"), "{said}");
    assert_eq!(cluster.fetch_all(1, "t", 0).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_counts_in_each_partition_and_those_without_it_are_named() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 3).await;
    for (partition, count) in [(0, 1), (1, 4), (2, 3)] {
        for at in 0..count {
            cluster.produce_text(1, "t", partition, &format!("{partition}-{at}")).await;
        }
    }
    let servers = cluster.servers();
    let consume = async |args: &[&str]| run(&[&["consume", "t", "--server", &servers], args].concat(), b"").await;
    let some = consume(&["--from", "2"]).await;
    assert_eq!((status(&some), stdout(&some).as_str()), (0, "1-2\n1-3\n2-2\n"), "{}", stderr(&some));
    assert_eq!(stderr(&some), "t/0 ends at 1: it has nothing from 2 on\n");
    let none = consume(&["--from", "9"]).await;
    assert!(status(&none) == 1 && stderr(&none).contains("no partition of t reaches offset 9"), "{}", stderr(&none));
    let one = consume(&["--from", "2", "--partition", "0"]).await;
    assert!(status(&one) == 1 && stderr(&one).contains("OFFSET_OUT_OF_RANGE"), "{}", stderr(&one));
    let latest = consume(&["--from", "latest"]).await;
    assert_eq!((status(&latest), stdout(&latest).as_str(), stderr(&latest).as_str()), (0, "", ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consume_begins_where_a_time_is_reached() {
    let cluster = Cluster::start(1).await;
    let topic = json!({"name": "t", "config": {"retention.ms": "-1"}});
    assert_eq!(cluster.post(1, "/v1/topics", topic).await.0.as_u16(), 201);
    let records: Vec<_> = [1000, 2000, 3000].map(|at| json!({"value": format!("at {at}"), "timestamp": at})).into();
    let path = "/v1/topics/t/partitions/0/records";
    for record in records {
        assert_eq!(cluster.post(1, path, json!({"records": [record]})).await.0.as_u16(), 200);
    }
    let servers = cluster.servers();
    let consume = async |from: &str| run(&["consume", "t", "--server", &servers, "--from", from], b"").await;
    let some = consume("timestamp:1500").await;
    assert_eq!((status(&some), stdout(&some).as_str()), (0, "at 2000\nat 3000\n"), "{}", stderr(&some));
    let none = consume("timestamp:4000").await;
    assert_eq!((status(&none), stdout(&none).as_str()), (0, ""), "{}", stderr(&none));
}
