//! Limits, and clients that are slow or broken: what each is told, and that nobody else notices.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::tails::Tail;
use super::{fetch, produce, records_url, refusal};
use crate::support::{Cluster, PATIENCE, read};

/// A connection whose kernel takes little of what it is sent.
pub(super) async fn connect(cluster: &Cluster) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(cluster.address(1).parse().unwrap()).await.unwrap()
}

/// Sends raw bytes and reads until the broker closes.
async fn raw(cluster: &Cluster, request: &[u8]) -> String {
    let mut stream = connect(cluster).await;
    // The broker may have its say, and close, before all of it is sent.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    reading.expect("the broker did not close").unwrap();
    String::from_utf8(answer).unwrap()
}

/// The status and the error body of an answer.
fn parts(answer: &str) -> (StatusCode, Value) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    assert!(head.to_ascii_lowercase().contains("content-type: application/json"), "{head}");
    assert!(head.to_ascii_lowercase().contains("connection: close"), "{head}");
    let status: u16 = head[9..12].parse().unwrap();
    (StatusCode::from_u16(status).unwrap(), serde_json::from_str(body).unwrap())
}

fn post(length: usize, body: &[u8]) -> Vec<u8> {
    let head = "POST /v1/topics/t/partitions/0/records HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n";
    [format!("{head}content-length: {length}\r\n\r\n").as_bytes(), body].concat()
}

/// Produces as a client does that is told to wait and try again.
async fn produce_patiently(cluster: &Cluster, value: Vec<u8>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, body) = produce(cluster, 1, "t", "text/plain", value.clone()).await;
        match status.as_u16() {
            200 => return,
            429 => assert!(body["retry_after_ms"].is_u64(), "{body}"),
            _ => panic!("{status}: {body}"),
        }
        assert!(Instant::now() < deadline, "no room: {body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn what_is_no_request_gets_the_error_body_too() {
    let cluster = Cluster::start_with(1, &["--set", "limits.header_bytes_max=8192"]).await;
    let head = |rest: &str| format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\n{rest}\r\n\r\n");
    let many = (0..200).map(|at| format!("x-{at}: y\r\n")).collect::<String>();
    for (request, status, code) in [
        ("hello\r\n\r\n".to_owned(), 400, "INVALID_REQUEST"),
        ("GET /healthz HTTP/9.9\r\n\r\n".to_owned(), 400, "INVALID_REQUEST"),
        ("GET /a b HTTP/1.1\r\n\r\n".to_owned(), 400, "INVALID_REQUEST"),
        (head("a header without a colon"), 400, "INVALID_REQUEST"),
        (head("content-length: x"), 400, "INVALID_REQUEST"),
        (head(&format!("x: {}", "y".repeat(8192))), 431, "HEADERS_TOO_LARGE"),
        (head(&format!("x: {}", "y".repeat(2_000_000))), 431, "HEADERS_TOO_LARGE"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(20_000)), 431, "HEADERS_TOO_LARGE"),
        (head(&many), 431, "HEADERS_TOO_LARGE"),
        // After a good request on the same connection, too.
        (format!("{}what now?\r\n\r\n", head("x: y")), 400, "INVALID_REQUEST"),
    ] {
        let answer = raw(&cluster, request.as_bytes()).await;
        let answer =
            answer.strip_prefix("HTTP/1.1 200").map_or(answer.as_str(), |rest| &rest[rest.find("HTTP/").unwrap()..]);
        assert_eq!(refusal(parts(answer)), (status, code.into()), "{:?}", &request[..request.len().min(60)]);
    }
    let answer = cluster.http.get(format!("{}/healthz", cluster.url(1))).header("x", "y".repeat(7000)).send().await;
    assert_eq!(answer.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_the_client_can_read_so() {
    let cluster = Cluster::start_with(
        1,
        &["--set", "limits.request_bytes_max=1048576", "--set", "limits.record_bytes_max=1000000"],
    )
    .await;
    cluster.create_topic(1, "t", 1).await;
    // Announced, and unannounced in chunks; both go on sending long after they are refused.
    let large = vec![b'x'; 8 << 20];
    assert_eq!(refusal(parts(&raw(&cluster, &post(large.len(), &large)).await)), (413, "REQUEST_TOO_LARGE".into()));
    let pieces = (0..64).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 128 << 10]));
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let answer = produce(&cluster, 1, "t", "text/plain", body).await;
    assert_eq!(refusal(answer), (413, "REQUEST_TOO_LARGE".into()));
    // Exactly the limit is not over it.
    let padded = format!("{{\"records\":[{{\"value\":\"{}\"}}]}}", "y".repeat(500_000));
    let exact = format!("{padded}{}", " ".repeat((1 << 20) - padded.len()));
    let (status, body) = produce(&cluster, 1, "t", "application/json", exact.clone()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let answer = produce(&cluster, 1, "t", "application/json", format!("{exact} ")).await;
    assert_eq!(refusal(answer), (413, "REQUEST_TOO_LARGE".into()));
    assert_eq!(cluster.fetch_all(1, "t", 0).await.len(), 1);
}

#[tokio::test]
async fn half_bodies_hold_up_nobody() {
    let limits =
        ["limits.inflight_bytes_max=8388608", "limits.request_bytes_max=4194304", "limits.body_timeout_ms=600000"];
    let cluster = Cluster::start_with(1, &["--set", limits[0], "--set", limits[1], "--set", limits[2]]).await;
    cluster.create_topic(1, "t", 1).await;
    // Many that announce much and send little: altogether a hundred times what there is room for.
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut stream = connect(&cluster).await;
        stream.write_all(&post(4 << 20, b"half")).await.unwrap();
        held.push(stream);
    }
    assert_eq!(produce(&cluster, 1, "t", "text/plain", "at once").await.0, StatusCode::OK);
    // A few that send all but the last byte, together more than there is room for: they have ten minutes, others have not.
    let most = vec![b'x'; (4 << 20) - 1];
    for _ in 0..4 {
        let mut stream = connect(&cluster).await;
        let _ = stream.write_all(&post(4 << 20, &most)).await;
        held.push(stream);
    }
    produce_patiently(&cluster, vec![b'y'; 1 << 20]).await;
    drop(held);
    let deadline = Instant::now() + PATIENCE;
    while cluster.metric(1, "pontoon_http_request_bytes_in_flight").await > 0.0 {
        assert!(Instant::now() < deadline, "room is not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(cluster.fetch_all(1, "t", 0).await.len(), 2, "no half body became a record");
}

#[tokio::test]
async fn a_head_that_does_not_come_is_waited_for_only_so_long() {
    let cluster = Cluster::start_with(1, &["--set", "limits.header_timeout_ms=300"]).await;
    cluster.create_topic(1, "t", 1).await;
    // Nothing at all, half a head, and one that has asked before.
    assert_eq!(raw(&cluster, b"").await, "");
    assert_eq!(raw(&cluster, b"POST /v1/topics/t/partitions/0/records HTTP/1.1\r\nhost: loc").await, "");
    let answered = raw(&cluster, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(answered.starts_with("HTTP/1.1 200 OK\r\n"), "{answered}");
    assert_eq!(produce(&cluster, 1, "t", "text/plain", "x").await.0, StatusCode::OK);
}

#[tokio::test]
async fn clients_that_never_read_hold_up_nobody() {
    let limits =
        ["limits.inflight_bytes_max=8388608", "limits.request_bytes_max=4194304", "limits.write_timeout_ms=600000"];
    let cluster = Cluster::start_with(1, &["--set", limits[0], "--set", limits[1], "--set", limits[2]]).await;
    cluster.create_topic(1, "t", 1).await;
    for _ in 0..12 {
        produce_patiently(&cluster, vec![b'z'; 1 << 20]).await;
    }
    let mut held = Vec::new();
    let get = "GET /v1/topics/t/partitions/0/records?max_bytes=4194304 HTTP/1.1\r\nhost: localhost\r\n";
    for accept in ["application/json", "text/event-stream"] {
        for _ in 0..20 {
            let mut stream = connect(&cluster).await;
            let request = format!("{}accept: {accept}\r\n\r\n", get.replace("?max_bytes=4194304", query(accept)));
            // Several in a row: the kernel's buffers swallow the first.
            stream.write_all(request.repeat(4).as_bytes()).await.unwrap();
            held.push(stream);
        }
    }
    // Who reads gets everything, whether by fetch or by tail; and producers never notice.
    let mut tail = Tail::open(&cluster, 1, "offset=earliest", None).await;
    for at in 0..12 {
        assert_eq!(tail.record().await.0, at);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        match fetch(&cluster, 1, "t", "max_bytes=4194304&offset=8").await {
            (StatusCode::OK, answer) => {
                assert_eq!(answer["records"][0]["offset"], 8);
                break;
            }
            answer => assert_eq!(refusal(answer), (429, "TOO_MANY_REQUESTS".into())),
        }
        assert!(Instant::now() < deadline, "no room for who reads");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(produce(&cluster, 1, "t", "text/plain", "after all").await.0, StatusCode::OK);
    assert_eq!(tail.record().await, (12, "after all".to_owned()));
    drop((held, tail));
}

fn query(accept: &str) -> &'static str {
    if accept == "text/event-stream" { "?offset=earliest" } else { "?max_bytes=4194304" }
}

#[tokio::test]
async fn a_tail_that_is_not_read_is_closed_and_others_go_on() {
    let cluster = Cluster::start_with(1, &["--set", "limits.write_timeout_ms=500"]).await;
    cluster.create_topic(1, "t", 1).await;
    for _ in 0..20 {
        produce_patiently(&cluster, vec![b'z'; 1_000_000]).await;
    }
    let mut stuck = Vec::new();
    for _ in 0..10 {
        let mut stream = connect(&cluster).await;
        let get = "GET /v1/topics/t/partitions/0/records?offset=earliest HTTP/1.1\r\nhost: localhost\r\n";
        stream.write_all(format!("{get}accept: text/event-stream\r\n\r\n").as_bytes()).await.unwrap();
        stuck.push(stream);
    }
    let mut tail = Tail::open(&cluster, 1, "", None).await;
    let deadline = Instant::now() + PATIENCE;
    while cluster.metric(1, "pontoon_http_tails").await > 1.0 {
        assert!(Instant::now() < deadline, "tails that nobody reads stay open");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    produce_patiently(&cluster, b"live".to_vec()).await;
    assert_eq!(tail.record().await, (20, "live".to_owned()));
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_room_comes_back() {
    let cluster = Cluster::start_with(1, &["--set", "limits.connections_max=4"]).await;
    // The test's own client may hold some; these take the rest.
    let mut held: Vec<TcpStream> = Vec::new();
    let answer = loop {
        let mut stream = connect(&cluster).await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        if &head == b"HTTP/1.1 200" {
            held.push(stream);
            assert!(held.len() <= 4, "the limit is not held to");
            continue;
        }
        let mut answer = head.to_vec();
        stream.read_to_end(&mut answer).await.unwrap();
        break String::from_utf8(answer).unwrap();
    };
    assert!(answer.contains("retry-after: 1"), "{answer}");
    assert!(parts(&answer).1["retry_after_ms"].is_u64(), "{answer}");
    assert_eq!(refusal(parts(&answer)), (429, "TOO_MANY_REQUESTS".into()));
    drop(held);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = cluster.http.get(format!("{}/healthz", cluster.url(1))).send().await;
        if answer.is_ok_and(|answer| answer.status() == StatusCode::OK) {
            break;
        }
        assert!(Instant::now() < deadline, "room does not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_writes_nothing() {
    let cluster = Cluster::start_with(1, &["--set", "limits.body_timeout_ms=300"]).await;
    cluster.create_topic(1, "t", 1).await;
    let answer = raw(&cluster, &post(100, b"ten bytes.")).await;
    assert_eq!(refusal(parts(&answer)), (408, "REQUEST_TIMEOUT".into()));
    for cut in [0, 10, 99] {
        let mut stream = connect(&cluster).await;
        stream.write_all(&post(100, &vec![b'x'; cut])).await.unwrap();
        drop(stream);
    }
    let url = records_url(&cluster, 1, "t");
    let chunked = "POST /v1/topics/t/partitions/0/records HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n\
                   transfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n";
    let answer = raw(&cluster, chunked.as_bytes()).await;
    assert_eq!(refusal(parts(&answer)), (400, "INVALID_REQUEST".into()));
    let plain = cluster.http.post(&url).header("content-type", "text/plain").body("whole").send().await.unwrap();
    assert_eq!(read(plain).await.1["base_offset"], json!(0), "nothing was written before it");
}

#[tokio::test]
async fn no_fetch_asks_for_more_room_than_there_can_be() {
    let limits = ["limits.inflight_bytes_max=2097152", "limits.request_bytes_max=2097152"];
    let cluster = Cluster::start_with(1, &["--set", limits[0], "--set", limits[1]]).await;
    cluster.create_topic(1, "t", 1).await;
    for _ in 0..4 {
        produce_patiently(&cluster, vec![b'z'; 600_000]).await;
    }
    let mut at = 0;
    while at < 4 {
        let (status, answer) = fetch(&cluster, 1, "t", &format!("max_bytes=67108864&offset={at}")).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        at = answer["next_offset"].as_u64().unwrap();
    }
}
