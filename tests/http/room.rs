//! Room for answers about groups: who asks for much and reads nothing takes no more of it than there is.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::limits::connect;
use super::refusal;
use crate::kafka_hostile::{forget_peak, peak_bytes};
use crate::support::{Cluster, PATIENCE};

const PARTITIONS: u32 = 200;
/// A character that JSON writes as six.
const METADATA: &str = "\u{1}";
const METADATA_BYTES: usize = 4096;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_about_groups_that_nobody_reads_take_no_more_than_there_is_room_for() {
    let args = [
        "--set=limits.request_bytes_max=8388608",
        "--set=limits.inflight_bytes_max=16777216",
        "--set=limits.write_timeout_ms=3600000",
    ];
    let cluster = Cluster::start_with(1, &args).await;
    cluster.create_topic(1, "t", PARTITIONS).await;
    let metadata = METADATA.repeat(METADATA_BYTES);
    let offset = |partition| json!({"topic": "t", "partition": partition, "offset": 0, "metadata": metadata});
    let offsets = json!({"offsets": (0..PARTITIONS).map(offset).collect::<Vec<_>>()});
    let (status, body) = cluster.ask(1, Method::PUT, "/v1/groups/g/offsets", Some(offsets.clone())).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{body}");
    let before = forget_peak(&cluster);
    let mut held = Vec::new();
    for path in ["/v1/groups/g", "/v1/groups/g/offsets"] {
        for _ in 0..30 {
            let mut hostile = connect(&cluster).await;
            let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
            hostile.write_all(request.as_bytes()).await.unwrap();
            held.push(hostile);
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while answered(&cluster).await < 60.0 {
        assert!(Instant::now() < deadline, "some are not answered");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Who reads gets all of it, once those who do not have lost their room.
    loop {
        match cluster.get(1, "/v1/groups/g/offsets").await {
            (StatusCode::OK, told) => break assert!(told == offsets, "it tells something else"),
            answer => assert_eq!(refusal(answer), (429, "TOO_MANY_REQUESTS".into())),
        }
        assert!(Instant::now() < deadline, "no room for who reads");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (status, described) = cluster.get(1, "/v1/groups").await;
    assert_eq!((status, &described["groups"][0]["group"]), (StatusCode::OK, &json!("g")), "little needs no room");
    let grown = peak_bytes(&cluster).saturating_sub(before);
    assert!(grown < 80 << 20, "{} MiB for 60 answers of 4.8 MiB", grown >> 20);
}

/// Whatever is where another broker is said to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_brokers_list_of_groups_is_read_only_as_far_as_there_is_room() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let limits = ["--set=limits.request_bytes_max=4194304", "--set=limits.inflight_bytes_max=8388608"];
    let mut cluster = Cluster::prepare(2, &limits);
    cluster.broker_mut(1).add_args(&["--http-advertised", &listener.local_addr().unwrap().to_string()]);
    cluster.restart_all(&[1, 2]).await;
    let endless = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1099511627776\r\n\r\n").await.unwrap();
        while stream.write_all(&[b' '; 65536]).await.is_ok() {}
    });
    assert_eq!(refusal(cluster.get(2, "/v1/groups").await), (429, "TOO_MANY_REQUESTS".into()));
    tokio::time::timeout(PATIENCE, endless).await.expect("it reads on").unwrap();
}

/// How many requests about the group were answered, whatever with.
async fn answered(cluster: &Cluster) -> f64 {
    let text = cluster.metrics(1).await;
    let of = |line: &&str| line.starts_with("pontoon_http_requests_total{") && line.contains("/v1/groups/{group}");
    let gets = text.lines().filter(of).filter(|line| line.contains(r#"method="GET""#));
    gets.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}
