//! `consume --follow`: what comes is printed, what ends it is told, and partitions that are added are followed too.

use std::io::{BufRead, BufReader, Read};
use std::process::{ChildStdout, Command, Stdio};
use std::time::Instant;

use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Killed;
use crate::support::{Cluster, PATIENCE, pontoon};

/// A running `consume --follow`.
struct Follower {
    process: Killed,
    lines: BufReader<ChildStdout>,
}

impl Follower {
    fn start(cluster: &Cluster, args: &[&str]) -> Self {
        Self::start_at(&cluster.servers(), args)
    }

    fn start_at(servers: &str, args: &[&str]) -> Self {
        let mut command: Command = pontoon();
        command.args(["consume", "--follow", "--server", servers]).args(args);
        let mut process = Killed(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let lines = BufReader::new(process.0.stdout.take().unwrap());
        Self { process, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        tokio::task::block_in_place(|| self.lines.read_line(&mut line)).unwrap();
        line.trim_end().to_owned()
    }

    /// Its exit status and what it said, once it has ended.
    async fn ended(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.process.0.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it goes on");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        let mut said = String::new();
        self.process.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.code(), said)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_following_is_told_with_its_status() {
    let mut cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    cluster.produce_text(1, "t", 0, "first").await;

    let (status, said) = Follower::start(&cluster, &["t", "--from", "7"]).ended().await;
    assert!(status == Some(1) && said.contains("OFFSET_OUT_OF_RANGE"), "{status:?}: {said}");

    let mut deleted = Follower::start(&cluster, &["t"]);
    assert_eq!(deleted.line(), "first");
    cluster.create_topic(1, "other", 2).await;
    let mut dead = Follower::start(&cluster, &["other", "--patience", "1"]);
    cluster.produce_text(1, "other", 1, "second").await;
    assert_eq!(dead.line(), "second");
    let (gone, _) = cluster.ask(1, Method::DELETE, "/v1/topics/t", None).await;
    assert_eq!(gone, StatusCode::NO_CONTENT);
    let (status, said) = deleted.ended().await;
    assert!(status == Some(4) && said.contains("UNKNOWN_TOPIC"), "{status:?}: {said}");

    cluster.kill(1);
    let (status, said) = dead.ended().await;
    assert!(status == Some(3) && said.contains(&cluster.address(1)), "{status:?}: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_are_added_are_followed_from_their_start() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    cluster.produce_text(1, "t", 0, "before").await;
    // One that begins at the end misses nothing of a partition that did not exist then.
    let mut all = Follower::start(&cluster, &["t"]);
    let mut later = Follower::start(&cluster, &["t", "--from", "latest"]);
    assert_eq!(all.line(), "before");
    // Whoever begins at the end has begun only when it prints: it is sent records until it does.
    let begun = async {
        for at in 0.. {
            cluster.produce_text(1, "t", 0, &format!("after {at}")).await;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let printed = tokio::task::spawn_blocking(move || (later.line(), later));
    let mut later = tokio::select! { _ = begun => unreachable!(), printed = printed => printed.unwrap().1 };
    let (status, body) = cluster.ask(1, Method::PATCH, "/v1/topics/t", Some(json!({"partitions": 3}))).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    for partition in [2, 1] {
        cluster.produce_text(1, "t", partition, &format!("to {partition}")).await;
    }
    for follower in [&mut all, &mut later] {
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let line = follower.line();
            assert!(!line.is_empty(), "it ended");
            seen.extend(line.starts_with("to ").then_some(line));
        }
        seen.sort();
        assert_eq!(seen, ["to 1", "to 2"]);
    }
}

/// Stands between a follower and its broker, and keeps the first request for offset 1 until it is told to go on.
struct Relay {
    address: String,
    kept: oneshot::Receiver<()>,
    go_on: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    async fn to(url: String, http: reqwest::Client) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let ((tell, kept), (go_on, told)) = (oneshot::channel(), oneshot::channel());
        let mut keep = Some((tell, told));
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let path = String::from_utf8(head).unwrap().split(' ').nth(1).unwrap().to_owned();
                if let Some((tell, told)) = keep.take_if(|_| path.contains("offset=1&")) {
                    tell.send(()).unwrap();
                    told.await.unwrap();
                }
                let answer = http.get(format!("{url}{path}")).send().await.unwrap();
                let mut text = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", answer.status().as_u16());
                let ours = answer.headers().iter().filter(|(name, _)| name.as_str().starts_with("pontoon-"));
                ours.for_each(|(name, value)| text += &format!("{name}: {}\r\n", value.to_str().unwrap()));
                let body = answer.text().await.unwrap();
                text += &format!("content-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(text.as_bytes()).await.unwrap();
            }
        });
        Self { address, kept, go_on, task }
    }
}

/// Its offsets mean nothing there, though it has records at them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn following_does_not_go_over_to_another_topic_of_the_name() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    cluster.produce_text(1, "t", 0, "old").await;
    let mut relay = Relay::to(cluster.url(1), cluster.http.clone()).await;
    let mut follower = Follower::start_at(&relay.address, &["t"]);
    assert_eq!(follower.line(), "old");
    (&mut relay.kept).await.unwrap();
    let (gone, _) = cluster.ask(1, Method::DELETE, "/v1/topics/t", None).await;
    assert_eq!(gone, StatusCode::NO_CONTENT);
    cluster.create_topic(1, "t", 1).await;
    for value in ["first", "second", "third"] {
        cluster.produce_text(1, "t", 0, value).await;
    }
    let (go_on, _) = oneshot::channel();
    std::mem::replace(&mut relay.go_on, go_on).send(()).unwrap();
    assert_eq!(follower.line(), "", "a record of the other topic");
    let (status, said) = follower.ended().await;
    assert!(status == Some(1) && said.contains("created again"), "{status:?}: {said}");
}
