//! Commands against a broker that the test plays: answers that a real one gives once in a long while.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::{Killed, status, stderr, stdout};
use crate::support::{PATIENCE, pontoon, run};

/// What comes of a request.
enum Reply {
    Is(u16, Value),
    /// 200 of a fetch, from the topic with this id.
    Of(u32, Value),
    /// Not a broker's.
    Text(u16, &'static str),
    /// The connection is closed without one.
    Close,
    /// None, for as long as the client waits.
    Never,
}

/// One that listens, and what it was asked: method and path.
struct Played {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Played {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Played {
    /// `reply` says what comes of a request, and of how many like it there were before.
    async fn start(reply: impl Fn(&str, usize) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut never = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let Some(request) = request(&mut stream).await else { continue };
                let before = seen.lock().unwrap().iter().filter(|earlier| **earlier == request).count();
                seen.lock().unwrap().push(request.clone());
                let mut more = String::new();
                let (status, body) = match reply(&request, before) {
                    Reply::Is(status, body) => (status, body.to_string()),
                    Reply::Of(id, body) => {
                        more = format!("pontoon-topic-id: {id:032x}\r\n");
                        (200, body.to_string())
                    }
                    Reply::Text(status, text) => (status, text.to_owned()),
                    Reply::Close => continue,
                    Reply::Never => {
                        never.push(stream);
                        continue;
                    }
                };
                let head =
                    format!("HTTP/1.1 {status} X\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            }
        });
        Self { address, asked, task }
    }

    /// The requests with this in them.
    fn asked(&self, part: &str) -> Vec<String> {
        self.asked.lock().unwrap().iter().filter(|request| request.contains(part)).cloned().collect()
    }
}

/// A request's method and path, once all of it has come.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    stream.read_exact(&mut vec![0; length]).await.ok()?;
    let mut words = head.split(' ');
    Some(format!("{} {}", words.next()?, words.next()?))
}

fn topic(id: u32, partitions: u32) -> Reply {
    let partition = |at| {
        json!({"partition": at, "leader": 1, "leader_epoch": 1, "replicas": [1], "takes_writes": true, "in_sync": [1],
            "log_start_offset": 0, "high_watermark": 0})
    };
    let partitions: Vec<Value> = (0..partitions).map(partition).collect();
    Reply::Is(200, json!({"name": "t", "topic_id": format!("{id:032x}"), "config": {}, "partitions": partitions}))
}

fn end(offset: u64) -> Reply {
    Reply::Is(200, json!({"log_start_offset": 0, "high_watermark": offset, "log_end_offset": offset}))
}

/// The record at this offset, or what there is before the first, of the topic with the id 1.
fn records(at: Option<u64>) -> Reply {
    records_of(1, at)
}

fn records_of(id: u32, at: Option<u64>) -> Reply {
    let records: Vec<Value> = at.iter().map(|at| json!({"offset": at, "timestamp": 1, "value": "late"})).collect();
    let next = at.map_or(0, |at| at + 1);
    let body = json!({"topic": "t", "partition": 0, "log_start_offset": 0, "high_watermark": next, "next_offset": next,
        "leader_epoch": 1, "records": records});
    Reply::Of(id, body)
}

fn refused(status: u16, code: &str, outcome: &str) -> Reply {
    Reply::Is(status, json!({"error": code, "message": "m", "retriable": true, "outcome": outcome}))
}

/// What is acknowledged after it began, and before its first question is answered, is after the end at which it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_from_the_end_asks_once_where_that_is() {
    let played = Played::start(|request, before| match request {
        _ if request.ends_with("/topics/t") => topic(1, 1),
        _ if request.contains("/offsets") => end(5),
        _ if request.contains("offset=5&") && before == 0 => Reply::Close,
        _ if request.contains("offset=5&") => records(Some(5)),
        _ => Reply::Never,
    })
    .await;
    let mut command = pontoon();
    command.args(["consume", "t", "--follow", "--from", "latest", "--server", &played.address]);
    let mut following = Killed(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut printed = following.0.stdout.take().unwrap();
    let line = tokio::task::spawn_blocking(move || {
        let mut line = [0; 5];
        std::io::Read::read_exact(&mut printed, &mut line).map(|()| line)
    });
    let line = tokio::time::timeout(PATIENCE, line).await.expect("the record is missed").unwrap().unwrap();
    assert_eq!(&line, b"late\n");
    assert_eq!((played.asked("/offsets?").len(), played.asked("offset=latest").len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_further_partition_is_asked_once_enough_is_printed() {
    let played = Played::start(|request, _| match request {
        _ if request.ends_with("/topics/t") => topic(1, 2),
        _ if request.contains("/offsets") => end(1),
        _ => records(Some(0)),
    })
    .await;
    let consumed = run(&["consume", "t", "--max-records", "1", "--server", &played.address], b"").await;
    assert_eq!((status(&consumed), stdout(&consumed).as_str()), (0, "late\n"), "{}", stderr(&consumed));
    assert_eq!(played.asked("/partitions/1/"), [""; 0]);
}

/// A new leader may not know yet how far its records are committed. It says so when it does: nobody asks again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_does_not_show_yet_is_waited_for() {
    let played = Played::start(|request, _| match request {
        _ if request.ends_with("/topics/t") => topic(1, 1),
        _ if request.contains("/offsets") => end(1),
        _ if request.contains("max_wait_ms=500") => records(Some(0)),
        _ => records(None),
    })
    .await;
    let consumed = run(&["consume", "t", "--from", "0", "--server", &played.address], b"").await;
    assert_eq!((status(&consumed), stdout(&consumed).as_str()), (0, "late\n"), "{}", stderr(&consumed));
    assert_eq!(played.asked("/records?").len(), 2);

    // The end of a topic that is gone never shows.
    let played = Played::start(|request, before| match request {
        _ if request.ends_with("/topics/t") => topic(1, 1),
        _ if request.contains("/offsets") => end(1),
        _ => records_of(if before == 0 { 1 } else { 2 }, None),
    })
    .await;
    let consumed = run(&["consume", "t", "--from", "0", "--server", &played.address], b"").await;
    assert!(status(&consumed) == 1 && stderr(&consumed).contains("created again"), "{}", stderr(&consumed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_been_written_counts_for_more_than_what_was_not() {
    let played = Played::start(|request, _| match request {
        _ if request.ends_with("/topics/t") => topic(1, 2),
        _ if request.contains("/producers") => Reply::Is(201, json!({"producer_id": 1, "producer_epoch": 0})),
        _ if request.contains("/partitions/0/") => refused(503, "NO_LEADER", "none"),
        _ => refused(504, "OUTCOME_UNKNOWN", "unknown"),
    })
    .await;
    let args = ["produce", "t", "--key-separator", ":", "--patience", "1", "--server", &played.address];
    let produced = run(&args, b"21:a\nabc:b\n").await;
    assert!(!played.asked("/partitions/0/").is_empty() && !played.asked("/partitions/1/").is_empty());
    assert!(status(&produced) == 5 && stderr(&produced).contains("OUTCOME_UNKNOWN"), "{}", stderr(&produced));
}

/// Something between the client and the broker has its own word. What became of the request it does not say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_not_a_brokers_leaves_a_change_unknown_and_a_question_unanswered() {
    let played = Played::start(|_, _| Reply::Text(502, "<html>bad gateway</html>")).await;
    let began = Instant::now();
    for (args, wanted) in [(&["topic", "create", "t"][..], 5), (&["topic", "delete", "t"], 5), (&["topic", "list"], 1)]
    {
        let args = [args, &["--patience", "600", "--server", &played.address]].concat();
        let ended = run(&args, b"").await;
        assert!(status(&ended) == wanted && stderr(&ended).contains("502"), "{args:?}: {}", stderr(&ended));
    }
    assert!(began.elapsed() < Duration::from_secs(300), "it is not asked again and again");
}
