//! Where a broker and the commands take their settings from, seen in what they do.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::{Killed, status, stderr, stdout};
use crate::support::{Cluster, PATIENCE, free_ports, pontoon};

/// How many bytes a record may have, of those that are tried.
async fn largest_record(cluster: &Cluster) -> usize {
    let url = format!("{}/v1/topics/t/partitions/0/records", cluster.url(1));
    let mut largest = 0;
    for bytes in [50, 150, 250, 350] {
        let request = cluster.http.post(&url).header("content-type", "text/plain").body(vec![b'x'; bytes]);
        match request.send().await.unwrap().status() {
            StatusCode::OK => largest = bytes,
            status => assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE),
        }
    }
    largest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flags_beat_the_environment_beats_the_file() {
    let mut cluster = Cluster::prepare(1, &[]);
    let file = cluster.scratch().join("broker.toml");
    // Its id and its listeners are told by flags, too; were they taken from here, it would not start.
    let text = "broker_id = 7\n[http]\nlisten = \"192.0.2.1:1\"\n[log]\nmax.message.bytes = 100\n[limits]\nrecord_bytes_max = 400\n";
    fs::write(&file, text).unwrap();
    cluster.broker_mut(1).set_variable("PONTOON_CONFIG", file.to_str().unwrap());
    cluster.restart(1).await;
    cluster.create_topic(1, "t", 1).await;
    assert_eq!(largest_record(&cluster).await, 50, "the file's default for topics");
    let config = serde_json::json!({"config": {"max.message.bytes": "200"}});
    let (altered, body) = cluster.ask(1, Method::PATCH, "/v1/topics/t", Some(config)).await;
    assert_eq!(altered, StatusCode::OK, "{body}");
    assert_eq!(largest_record(&cluster).await, 150, "the topic's own");
    let reset = serde_json::json!({"config": {"max.message.bytes": null}});
    assert_eq!(cluster.ask(1, Method::PATCH, "/v1/topics/t", Some(reset)).await.0, StatusCode::OK);

    assert!(cluster.stop(1).success());
    cluster.broker_mut(1).set_variable("PONTOON_LOG_MAX_MESSAGE_BYTES", "200");
    cluster.restart(1).await;
    assert_eq!(largest_record(&cluster).await, 150, "the environment");

    assert!(cluster.stop(1).success());
    cluster.broker_mut(1).add_args(&["--set", "log.max.message.bytes=300"]);
    cluster.restart(1).await;
    assert_eq!(largest_record(&cluster).await, 250, "the flag");
}

/// Starts a broker that was told these, and sees that it took each.
async fn takes(mut serve: Command, ports: &[u16], data_dir: &Path) {
    let serve = serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _broker = Killed(serve.spawn().unwrap());
    let [http, kafka, peer] = [0, 1, 2].map(|at| format!("127.0.0.1:{}", ports[at]));
    let client = reqwest::Client::new();
    let deadline = Instant::now() + PATIENCE;
    while !matches!(client.get(format!("http://{http}/readyz")).send().await, Ok(answer) if answer.status().is_success())
    {
        assert!(Instant::now() < deadline, "nobody serves at {http}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let described = client.get(format!("http://{http}/v1/brokers")).send().await.unwrap();
    let body: Value = described.json().await.unwrap();
    let broker = &body["brokers"][0];
    assert_eq!(
        (&broker["broker_id"], &broker["http_address"]),
        (&Value::from(7), &Value::from(http.clone())),
        "{body}"
    );
    assert_eq!(broker["kafka_address"], kafka);
    for address in [&kafka, &peer] {
        tokio::net::TcpStream::connect(address)
            .await
            .unwrap_or_else(|error| panic!("nobody listens at {address}: {error}"));
    }
    let large = client.post(format!("http://{http}/v1/topics/t/records")).header("content-type", "text/plain");
    let large = large.body(vec![b'x'; 1001]).send().await.unwrap();
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE, "{}", large.text().await.unwrap());
    assert!(fs::read_dir(data_dir).unwrap().next().is_some(), "nothing is in {}", data_dir.display());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_may_be_told_everything_by_its_file_alone_or_its_environment() {
    let dir = tempfile::tempdir().unwrap();
    let settings = |ports: &[u16], data: &Path| {
        [
            ("broker_id", "7".to_owned()),
            ("bootstrap", format!("7@127.0.0.1:{}", ports[2])),
            ("data_dir", data.to_str().unwrap().to_owned()),
            ("http.listen", format!("127.0.0.1:{}", ports[0])),
            ("kafka.listen", format!("127.0.0.1:{}", ports[1])),
            ("limits.request_bytes_max", "1000".to_owned()),
            ("limits.record_bytes_max", "1000".to_owned()),
        ]
    };
    let (ports, data) = (free_ports(3), dir.path().join("by-file"));
    let lines = settings(&ports, &data).map(|(key, value)| match value.parse::<u64>() {
        Ok(number) => format!("{key} = {number}\n"),
        Err(_) if key == "bootstrap" => format!("{key} = [\"{value}\"]\n"),
        Err(_) => format!("{key} = \"{value}\"\n"),
    });
    let file = dir.path().join("pontoon.toml");
    fs::write(&file, lines.concat()).unwrap();
    let mut by_file = pontoon();
    by_file.args(["serve", "--config", file.to_str().unwrap()]);
    takes(by_file, &ports, &data).await;

    let (ports, data) = (free_ports(3), dir.path().join("by-environment"));
    let mut by_environment = pontoon();
    by_environment.arg("serve");
    for (key, value) in settings(&ports, &data) {
        by_environment.env(format!("PONTOON_{}", key.to_uppercase().replace('.', "_")), value);
    }
    takes(by_environment, &ports, &data).await;
}

/// Only what this machine has not is told otherwise: the addresses, the directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_example_starts_and_is_asked_by_its_name() {
    let operations = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/OPERATIONS.md")).unwrap();
    let example = operations.split_once("```toml\n").unwrap().1.split_once("```").unwrap().0;
    let mut cluster = Cluster::prepare(1, &[]);
    let file = cluster.scratch().join("broker-1.toml");
    fs::write(&file, example).unwrap();
    cluster.broker_mut(1).add_args(&["--config", file.to_str().unwrap(), "--kafka-advertised", "127.0.0.1:9"]);
    cluster.restart(1).await;
    let ask = async |host: &str| {
        let request = cluster.http.get(format!("{}/v1/cluster", cluster.url(1))).header("host", host);
        request.send().await.unwrap()
    };
    assert_eq!(ask("broker-1.example:8090").await.status(), StatusCode::OK);
    assert_eq!(ask("broker-2.example:8090").await.status(), StatusCode::FORBIDDEN);
    let shown: Value = ask("10.0.0.1").await.json().await.unwrap();
    assert_eq!(shown["brokers"][0]["http_address"], "10.0.0.1:8090", "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_names_the_servers_and_the_shape_of_logs() {
    let mut cluster = Cluster::prepare(1, &[]);
    cluster.broker_mut(1).set_variable("PONTOON_LOG_FORMAT", "json");
    cluster.restart(1).await;
    cluster.create_topic(1, "t", 1).await;
    let list = async |server: Option<&str>| {
        let mut command = pontoon();
        command.env("PONTOON_SERVER", cluster.url(1)).args(["topic", "list", "--patience", "1"]);
        command.args(server.into_iter().flat_map(|server| ["--server", server]));
        tokio::process::Command::from(command).output().await.unwrap()
    };
    let listed = list(None).await;
    assert!(status(&listed) == 0 && stdout(&listed).contains("t "), "{}", stderr(&listed));
    assert_eq!(status(&list(Some("127.0.0.1:1")).await), 3, "the flag beats the environment");
    // One that is set to nothing names no server: the commands look where they look without it.
    let mut command = pontoon();
    let help = command.env("PONTOON_SERVER", "").args(["topic", "list", "--help"]).output().unwrap();
    assert!(stdout(&help).contains("[default: http://127.0.0.1:8090,"), "{}", stdout(&help));
    let log = cluster.log(1);
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["level"] == "INFO"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_names_the_advertised_address() {
    let mut cluster = Cluster::prepare(3, &[]);
    let advertised = |address: &str| address.replace("127.0.0.1", "localhost");
    for id in 1..=3 {
        let address = advertised(&cluster.address(id));
        cluster.broker_mut(id).add_args(&["--http-advertised", &address]);
    }
    cluster.restart_all(&[1, 2, 3]).await;
    cluster.create_topic(1, "t", 1).await;
    let leader = cluster.leader(1, "t", 0).await;
    let other = (1..=3).find(|id| *id != leader).unwrap();
    let path = "/v1/topics/t/partitions/0/records?offset=earliest";
    let request = cluster.http.get(format!("{}{path}", cluster.url(other))).header("prefer", "redirect");
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
    let wanted = format!("http://{}{path}", advertised(&cluster.address(leader)));
    assert_eq!(answer.headers()["location"].to_str().unwrap(), wanted);
    assert_eq!(cluster.http.get(wanted).send().await.unwrap().status(), StatusCode::OK);
}
