//! Tails (`text/event-stream`): where they begin and resume, what ends them, and that no change of leader does.

use std::time::Duration;

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{produce, records_url, refusal};
use crate::kafka_hostile::batch;
use crate::support::{Cluster, PATIENCE, read};

/// One event of a stream, or a comment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Event {
    pub(super) id: Option<u64>,
    pub(super) name: String,
    pub(super) data: Value,
    pub(super) comment: bool,
}

/// A stream, read event by event.
pub(super) struct Tail {
    response: Response,
    text: String,
}

impl Tail {
    pub(super) async fn open(cluster: &Cluster, id: u32, query: &str, last: Option<u64>) -> Self {
        let response = ask(cluster, id, query, last).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self { response, text: String::new() }
    }

    /// The next event or comment; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let found = parse(event);
                self.text = rest.to_owned();
                return Some(found);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("the stream is stuck");
            match chunk.unwrap() {
                Some(chunk) => self.text.push_str(std::str::from_utf8(&chunk).unwrap()),
                None => {
                    assert_eq!(self.text, "", "the stream ended within an event");
                    return None;
                }
            }
        }
    }

    /// The next record's offset and value.
    pub(super) async fn record(&mut self) -> (u64, String) {
        loop {
            let event = self.next().await.expect("the stream ended");
            if event.comment {
                continue;
            }
            assert_eq!(event.name, "record", "{event:?}");
            assert_eq!(event.data["offset"], event.id.unwrap());
            return (event.id.unwrap(), event.data["value"].as_str().unwrap().to_owned());
        }
    }
}

/// What the test answers for a leader: the kind of everything.
const KIND: &str = "content-type: application/octet-stream\r\nconnection: close\r\npontoon-next-offset: 0";

/// Two brokers, of which the first is said to be where the test listens. A topic's id, and a partition of it that is led there.
async fn led_by(listener: &TcpListener) -> (Cluster, String, usize) {
    let mut cluster = Cluster::prepare(2, &[]);
    cluster.broker_mut(1).add_args(&["--http-advertised", &listener.local_addr().unwrap().to_string()]);
    cluster.restart_all(&[1, 2]).await;
    let (_, body) = cluster.post(2, "/v1/topics", json!({"name": "t", "partitions": 8, "replicas": 1})).await;
    let partitions = body["partitions"].as_array().unwrap();
    let of_1 = partitions.iter().position(|partition| partition["replicas"] == json!([1])).unwrap();
    (cluster, body["topic_id"].as_str().unwrap().to_owned(), of_1)
}

/// A request that the leader is asked.
async fn asked(listener: &TcpListener) -> (TcpStream, String) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    (stream, String::from_utf8(head).unwrap())
}

/// A tail of that partition at the second broker.
async fn tail_of(cluster: &Cluster, partition: usize, query: &str) -> Tail {
    let url = format!("{}/v1/topics/t/partitions/{partition}/records?{query}", cluster.url(2));
    let response = cluster.http.get(url).header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    Tail { response, text: String::new() }
}

/// A leader that is paused, by all that can be seen of it: it answers nothing, then half of something, then nothing more.
async fn paused_leader(listener: TcpListener) -> Vec<TcpStream> {
    let mut held = Vec::new();
    let nothing = format!("HTTP/1.1 200 OK\r\n{KIND}\r\ncontent-length: 0\r\n\r\n");
    let half = format!("HTTP/1.1 200 OK\r\n{KIND}\r\ncontent-length: 100\r\n\r\nhalf a batch");
    for answer in [&*nothing, &half, ""] {
        let (mut stream, head) = asked(&listener).await;
        assert!(head.contains("/records?offset=0&"));
        stream.write_all(answer.as_bytes()).await.unwrap();
        held.push(stream);
    }
    held
}

/// It looks again, and says meanwhile that it lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_in_the_middle_of_an_answer_does_not_stop_a_tail() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (cluster, _, of_1) = led_by(&listener).await;
    let asking = tokio::spawn(paused_leader(listener));
    let mut tail = tail_of(&cluster, of_1, "offset=0").await;
    let held = tokio::time::timeout(PATIENCE, asking).await.expect("it waits for the other half").unwrap();
    assert!(tail.next().await.unwrap().comment);
    drop(held);
}

/// What one question takes is not there for the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_begins_within_one_timeout_however_many_questions_that_takes() {
    const TAKES: Duration = Duration::from_millis(100);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (cluster, _, of_1) = led_by(&listener).await;
    let asking = tokio::spawn(async move {
        let mut given = Vec::new();
        let offsets = r#"{"log_start_offset":0,"high_watermark":0,"log_end_offset":0}"#;
        for body in [offsets, ""] {
            let (mut stream, head) = asked(&listener).await;
            let ms = head.lines().find_map(|line| line.strip_prefix("pontoon-timeout-ms: ")).unwrap();
            given.push(ms.parse::<u64>().unwrap());
            tokio::time::sleep(TAKES).await;
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\n{KIND}\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.write_all(head.as_bytes()).await.unwrap();
        }
        (given, listener)
    });
    let tail = tail_of(&cluster, of_1, "offset=latest&timeout_ms=20000").await;
    let (given, _listener) = asking.await.unwrap();
    assert!(given[0] <= 20_000 && given[1] + TAKES.as_millis() as u64 <= given[0], "{given:?}");
    drop(tail);
}

/// The leader has heard of a deletion and of a creation, and the broker of the tail not yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_does_not_take_records_that_its_leader_read_from_another_topic() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (cluster, id, of_1) = led_by(&listener).await;
    let asking = tokio::spawn(async move {
        let record = batch(b"of another topic".to_vec());
        for (id, body) in [(id, &[][..]), (format!("{:032x}", 7), &record)] {
            let (mut stream, _) = asked(&listener).await;
            let head = format!("HTTP/1.1 200 OK\r\n{KIND}\r\npontoon-topic-id: {id}");
            let head = format!("{head}\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
        }
        listener
    });
    let mut tail = tail_of(&cluster, of_1, "offset=0").await;
    let event = tail.next().await.unwrap();
    assert_eq!((event.name.as_str(), &event.data["error"]), ("error", &json!("UNKNOWN_TOPIC")), "{event:?}");
    assert_eq!(tail.next().await, None);
    asking.await.unwrap();
}

async fn ask(cluster: &Cluster, id: u32, query: &str, last: Option<u64>) -> Response {
    let request = cluster.http.get(format!("{}?{query}", records_url(cluster, id, "t")));
    let request = request.header("accept", "text/event-stream");
    let request = last.iter().fold(request, |request, last| request.header("last-event-id", last.to_string()));
    request.send().await.unwrap()
}

fn parse(text: &str) -> Event {
    let mut event = Event::default();
    for line in text.lines() {
        match line.split_once(':').unwrap_or_else(|| panic!("no field: {line:?}")) {
            ("", _) => event.comment = true,
            ("id", id) => event.id = Some(id.trim().parse().unwrap()),
            ("event", name) => event.name = name.trim().to_owned(),
            ("data", data) => event.data = serde_json::from_str(data).unwrap(),
            (field, _) => panic!("unknown field {field:?} in {text:?}"),
        }
    }
    event
}

#[tokio::test]
async fn a_tail_begins_where_it_is_asked_to_and_goes_on_with_what_comes() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    for at in 0..5 {
        cluster.produce_text(1, "t", 0, &format!("{at}\n{at}")).await;
    }
    for id in 1..=3 {
        let mut earliest = Tail::open(&cluster, id, "offset=earliest", None).await;
        let mut third = Tail::open(&cluster, id, "offset=3", None).await;
        let mut resumed = Tail::open(&cluster, id, "offset=0", Some(1)).await;
        let mut latest = Tail::open(&cluster, id, "", None).await;
        for at in 0..5 {
            assert_eq!(earliest.record().await, (at, format!("{at}\n{at}")));
        }
        assert_eq!(third.record().await.0, 3);
        assert_eq!(resumed.record().await.0, 2, "Last-Event-ID beats offset");
        let answer = cluster.produce_text(id, "t", 0, "live").await;
        let live = (answer["base_offset"].as_u64().unwrap(), "live".to_owned());
        assert_eq!(latest.record().await, live);
        while earliest.record().await != live {}
    }
    let mut timed = Tail::open(&cluster, 1, "offset=timestamp:1&value_format=json", None).await;
    assert_eq!(timed.next().await.unwrap().data["offset"], 0);
    produce(&cluster, 2, "t", "application/json", r#"{"records":[{"key":"k","value":{"a":[1]}}]}"#).await;
    let last = loop {
        let event = timed.next().await.unwrap();
        if event.data["key"] == "k" {
            break event;
        }
    };
    assert_eq!((&last.data["value"], last.name.as_str()), (&json!({"a": [1]}), "record"));
}

#[tokio::test]
async fn what_cannot_be_tailed_is_refused_with_its_status() {
    let cluster = Cluster::start(1).await;
    let status = async |query: &str, last| refusal(read(ask(&cluster, 1, query, last).await).await);
    assert_eq!(status("", None).await, (404, "UNKNOWN_TOPIC".into()));
    cluster.create_topic(1, "t", 1).await;
    assert_eq!(status("offset=1", None).await, (416, "OFFSET_OUT_OF_RANGE".into()));
    assert_eq!(status("", Some(0)).await, (416, "OFFSET_OUT_OF_RANGE".into()));
    for query in ["max_records=1", "max_bytes=5", "max_wait_ms=5", "offset=newest", "value_format=x", "consistency=x"] {
        assert_eq!(status(query, None).await, (400, "INVALID_REQUEST".into()), "{query}");
    }
}

#[tokio::test]
async fn a_tail_survives_any_change_of_leader_and_misses_and_repeats_nothing() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    cluster.produce_text(1, "t", 0, "0").await;
    let first = cluster.leader(1, "t", 0).await;
    // One at the leader, which will be told to stop; one at each of the others.
    let others: Vec<u32> = (1..=3).filter(|id| *id != first).collect();
    let mut tails = Vec::new();
    for id in &others {
        tails.push(Tail::open(&cluster, *id, "offset=earliest", None).await);
    }
    let mut at_leader = Tail::open(&cluster, first, "offset=earliest", None).await;
    assert_eq!(at_leader.record().await.0, 0);
    cluster.kill(first);
    for at in 1..4 {
        cluster.produce_text(others[0], "t", 0, &at.to_string()).await;
    }
    cluster.restart(first).await;
    // And back again, in peace: a broker that stops hands its leaderships over and ends its own tails.
    let second = cluster.leader(others[0], "t", 0).await;
    let survivor = *others.iter().find(|id| **id != second).unwrap_or(&others[0]);
    if second != survivor {
        assert!(cluster.stop(second).success());
    }
    for at in 4..7 {
        cluster.produce_text(survivor, "t", 0, &at.to_string()).await;
    }
    for (id, mut tail) in others.into_iter().zip(tails) {
        let mut seen = Vec::new();
        while seen.len() < 7 {
            let next = tail.next().await;
            match next {
                Some(event) if event.comment => {}
                Some(event) => seen.push(event.id.unwrap()),
                None => {
                    assert_eq!(id, second, "only the broker that stopped ends its tails");
                    let last = seen.last().copied();
                    tail = Tail::open(&cluster, survivor, "offset=earliest", last).await;
                }
            }
        }
        assert_eq!(seen, (0..7).collect::<Vec<_>>(), "at broker {id}");
    }
}

#[tokio::test]
async fn a_deleted_topic_ends_its_tails_with_a_word() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let mut tail = Tail::open(&cluster, 1, "", None).await;
    cluster.ask(1, Method::DELETE, "/v1/topics/t", None).await;
    let event = tail.next().await.unwrap();
    assert_eq!((event.name.as_str(), &event.data["error"]), ("error", &json!("UNKNOWN_TOPIC")), "{event:?}");
    assert_eq!(tail.next().await, None);
}

/// While nobody reads the tail, its topic is replaced by one that has records where it was to go on.
#[tokio::test]
async fn a_tail_does_not_run_over_into_another_topic_of_the_name() {
    let cluster = Cluster::start(1).await;
    let fill = async |what: &str, count: usize| {
        cluster.create_topic(1, "t", 1).await;
        for _ in 0..count {
            let (status, body) = produce(&cluster, 1, "t", "text/plain", what.repeat(250_000)).await;
            assert_eq!(status, StatusCode::OK, "{body}");
        }
    };
    fill("old ", 20).await;
    let mut tail = Tail::open(&cluster, 1, "offset=earliest", None).await;
    assert_eq!(tail.record().await.0, 0);
    cluster.ask(1, Method::DELETE, "/v1/topics/t", None).await;
    fill("new ", 25).await;
    let last = loop {
        let event = tail.next().await.expect("it ended without a word");
        match event.name.as_str() {
            "record" => {
                assert!(event.data["value"].as_str().unwrap().starts_with("old"), "{:?} is another's", event.id)
            }
            _ if event.comment => {}
            _ => break event,
        }
    };
    assert_eq!((last.name.as_str(), &last.data["error"]), ("error", &json!("UNKNOWN_TOPIC")), "{last:?}");
    assert_eq!(tail.next().await, None);
}

#[tokio::test]
async fn a_quiet_tail_has_a_comment_now_and_then_and_a_redirect_if_it_asks() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let leader = cluster.leader(1, "t", 0).await;
    let follower = leader % 3 + 1;
    let request = cluster.http.get(records_url(&cluster, follower, "t")).header("accept", "text/event-stream");
    let redirected = request.header("prefer", "redirect").send().await.unwrap();
    assert_eq!(redirected.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(redirected.headers()["location"], records_url(&cluster, leader, "t"));
    let mut tails = [Tail::open(&cluster, leader, "", None).await, Tail::open(&cluster, follower, "", None).await];
    for tail in &mut tails {
        assert!(tail.next().await.unwrap().comment);
    }
}
