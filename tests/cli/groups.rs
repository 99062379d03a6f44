//! Consumer groups as they are shown, whatever their names are.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{status, stderr, stdout};
use crate::kafka_hostile::Client;
use crate::support::member::join;
use crate::support::{Cluster, PATIENCE, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_cannot_be_described_keeps_no_other_from_being_shown() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let offsets = json!({"offsets": [{"topic": "t", "partition": 0, "offset": 0}]});
    let (done, body) = cluster.ask(1, Method::PUT, "/v1/groups/g/offsets", Some(offsets)).await;
    assert_eq!(done, StatusCode::NO_CONTENT, "{body}");
    // All that coordinate groups have read what there is.
    let deadline = Instant::now() + PATIENCE;
    while cluster.get(1, "/v1/groups").await.1["unavailable"] != json!([]) {
        assert!(Instant::now() < deadline, "{}", cluster.log(1));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for name in ["a/b", ".."] {
        join(&mut Client::connect_to(&cluster, 1).await, name, "").await;
    }
    let shown = run(&["status", "--groups", "--server", &cluster.url(1)], b"").await;
    let (text, said) = (stdout(&shown), stderr(&shown));
    let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows: Vec<_> = rows.filter(|row| row.len() == 5).collect();
    let head = ["GROUP", "STATE", "MEMBERS", "COORDINATOR", "LAG"];
    let (dots, slash) = (["..", "?"], ["a/b", "?"]);
    let ends: Vec<_> = rows.iter().map(|row| [row[0], row[4]]).collect();
    assert_eq!((rows[0].as_slice(), ends.as_slice()), (&head[..], &[["GROUP", "LAG"], dots, slash, ["g", "0"]][..]));
    assert!(text.contains("! group \"a/b\" is not described: "), "{text}");
    assert!(status(&shown) == 5 && said.contains("not all groups are described"), "{said}");
    let shown = run(&["--json", "status", "--groups", "--server", &cluster.url(1)], b"").await;
    let told: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(
        (&told["groups"][0]["group"], told["undescribed"].as_array().unwrap().len()),
        (&json!("g"), 2),
        "{told}"
    );
    assert_eq!(told["undescribed"][1]["group"], "a/b");
}
