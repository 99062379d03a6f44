//! The server before its broker is open: everything that is decided at the door.

use std::time::Duration;

use pontoon_raft::types::BrokerId;
use reqwest::{Client, Method, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::config::Config;

async fn server(change: impl FnOnce(&mut Config)) -> (Server, String) {
    let mut config = Config::new(BrokerId(1), "unused".into());
    config.http.listen = "127.0.0.1:0".into();
    change(&mut config);
    let server = Server::bind(&config).await.unwrap();
    let url = format!("http://{}", server.address());
    (server, url)
}

fn client() -> Client {
    Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap()
}

/// Every refusal has the error body; returns its status and code.
async fn refusal(request: reqwest::RequestBuilder) -> (u16, String) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json", "{status}");
    let body: Value = response.json().await.unwrap();
    for field in ["error", "message", "retriable", "outcome"] {
        assert!(!body[field].is_null(), "{field} is missing: {body}");
    }
    (status, body["error"].as_str().unwrap().to_owned())
}

/// Sends raw bytes and returns whatever comes back until the server closes.
async fn raw(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(Duration::from_secs(5), read).await.expect("the server did not close");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn it_lives_and_is_not_ready_until_the_broker_is_open() {
    let (_server, url) = server(|_| {}).await;
    let alive = client().get(format!("{url}/healthz")).send().await.unwrap();
    assert_eq!(alive.status(), StatusCode::OK);
    let ready = client().get(format!("{url}/readyz")).send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    let reason: Value = ready.json().await.unwrap();
    assert_eq!(reason["ready"], false);
    assert!(reason["reason"].as_str().unwrap().contains("opening"), "{reason}");
    let topics = client().get(format!("{url}/v1/topics")).send().await.unwrap();
    assert!(topics.headers().contains_key("retry-after"));
    assert_eq!(refusal(client().get(format!("{url}/v1/topics"))).await, (503, "NOT_READY".into()));
}

#[tokio::test]
async fn metrics_are_shown_from_the_start() {
    let (_server, url) = server(|_| {}).await;
    client().get(format!("{url}/healthz")).send().await.unwrap();
    let text = client().get(format!("{url}/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(text.contains(r#"pontoon_refusals_total{broker="1",code="NOT_READY"} "#), "{text}");
    assert!(text.contains("pontoon_ready{broker=\"1\"} 0\n"), "{text}");
    assert!(
        text.contains(r#"pontoon_http_requests_total{broker="1",route="/healthz",method="GET",status="200"}"#),
        "{text}"
    );
    assert!(text.contains("pontoon_http_request_duration_seconds_bucket"), "{text}");
}

#[tokio::test]
async fn paths_and_methods_that_are_none_get_the_error_body() {
    let (_server, url) = server(|_| {}).await;
    for path in ["/", "/v1", "/v2/topics", "/v1/topics/", "/v1/topics/t/partitions", "/healthz/x"] {
        assert_eq!(refusal(client().get(format!("{url}{path}"))).await, (404, "NOT_FOUND".into()), "{path}");
    }
    let wrong = client().request(Method::PUT, format!("{url}/v1/topics"));
    assert_eq!(refusal(wrong.try_clone().unwrap()).await, (405, "METHOD_NOT_ALLOWED".into()));
    let allowed = wrong.send().await.unwrap().headers()["allow"].to_str().unwrap().to_owned();
    assert!(allowed.contains("GET") && allowed.contains("POST"), "{allowed}");
}

#[tokio::test]
async fn foreign_pages_cannot_reach_it() {
    let (_server, url) = server(|config| config.http_hosts = vec!["broker.example".into()]).await;
    let produce =
        || client().post(format!("{url}/v1/topics/t/partitions/0/records")).header("content-type", "text/plain");
    let foreign = produce().header("origin", "http://evil.example").body("forged");
    assert_eq!(refusal(foreign).await, (403, "FOREIGN_ORIGIN".into()));
    let rebound = client().get(format!("{url}/healthz")).header("host", "evil.example");
    assert_eq!(refusal(rebound).await, (403, "FOREIGN_ORIGIN".into()));
    let named = client().get(format!("{url}/healthz")).header("host", "broker.example:8090").send().await.unwrap();
    assert_eq!(named.status(), StatusCode::OK);
}

#[tokio::test]
async fn malformed_requests_are_refused_with_what_is_wrong() {
    let (_server, url) = server(|_| {}).await;
    let records = format!("{url}/v1/topics/t/partitions/0/records");
    let post = |query: &str| client().post(format!("{records}{query}")).header("content-type", "text/plain");
    let cases = [
        (client().get(format!("{url}/v1/topics/a%2Fb")), 400),
        (client().get(format!("{url}/v1/topics/%ff")), 400),
        (client().get(format!("{url}/v1/topics/t/partitions/x/records")), 400),
        (client().get(format!("{url}/v1/topics/t/partitions/-1/offsets")), 400),
        (client().get(format!("{records}?ofset=1")), 400),
        (client().get(format!("{records}?max_bytes=67108865")), 400),
        (client().get(format!("{records}?max_wait_ms=60001")), 400),
        (client().get(format!("{records}?consistency=strong")), 400),
        (client().get(format!("{records}?max_records=1")).header("accept", "application/octet-stream"), 400),
        (client().get(&records).header("accept", "image/png"), 406),
        (client().get(&records).header("accept", "text/event-stream").header("last-event-id", "x"), 400),
        (client().get(format!("{records}?value_format=xml")), 400),
        (client().get(format!("{records}?value_format=json")).header("accept", "application/octet-stream"), 400),
        (client().post(format!("{url}/v1/topics/t/records")).header("content-type", "application/octet-stream"), 415),
        (client().post(&records), 415),
        (client().post(&records).header("content-type", "application/x-www-form-urlencoded"), 415),
        (post("").header("content-encoding", "gzip"), 415),
        (post("?acks=most"), 400),
        (post("?timeout_ms=0"), 400),
        (post("").header("producer-id", "1"), 400),
        (post("").header("if-match-offset", "latest"), 400),
        (client().post(format!("{url}/v1/topics")).body("{}"), 415),
    ];
    for (request, status) in cases {
        let shown = format!("{request:?}");
        assert_eq!(refusal(request).await.0, status, "{shown}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_is_sent() {
    let (_server, url) = server(|config| config.limits.request_bytes_max = 100).await;
    let post = client().post(format!("{url}/v1/topics")).header("content-type", "application/json");
    assert_eq!(refusal(post.body(vec![b' '; 101])).await, (413, "REQUEST_TOO_LARGE".into()));
}

#[tokio::test]
async fn a_body_that_stops_coming_times_out() {
    let (server, _) = server(|config| config.limits.body_timeout = Duration::from_millis(100)).await;
    let request = format!(
        "POST /v1/topics HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{{",
        server.address()
    );
    let answer = raw(server.address(), &request).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("REQUEST_TIMEOUT"), "{answer}");
}

#[tokio::test]
async fn a_head_that_does_not_come_or_is_too_large_ends_the_connection() {
    let (server, _) = server(|config| {
        config.limits.header_timeout = Duration::from_millis(100);
        config.limits.header_bytes_max = 8192;
    })
    .await;
    raw(server.address(), "GET /healthz HT").await;
    let large = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    let answer = raw(server.address(), &large).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let (server, _) = server(|config| config.limits.connections_max = 1).await;
    let mut held = TcpStream::connect(server.address()).await.unwrap();
    held.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    held.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let answer = raw(server.address(), "").await;
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains("TOO_MANY_REQUESTS"), "{answer}");
}

#[tokio::test]
async fn closing_lets_go_of_idle_connections_and_of_the_port() {
    let (server, url) = server(|_| {}).await;
    let address = server.address().to_owned();
    let keeps_alive = client();
    keeps_alive.get(format!("{url}/healthz")).send().await.unwrap();
    server.stopping();
    let ready: Value = keeps_alive.get(format!("{url}/readyz")).send().await.unwrap().json().await.unwrap();
    assert_eq!(ready["reason"], "stopping");
    tokio::time::timeout(Duration::from_secs(2), server.close(Duration::from_secs(10))).await.expect("close hung");
    tokio::net::TcpListener::bind(&address).await.unwrap();
}

/// A network that ends in the middle of it.
struct Collapsing(tokio::sync::Notify);

impl Listener for Collapsing {
    fn accept(&self) -> futures_util::future::BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async {
            self.0.notified().await;
            panic!("a test's network is no more");
        })
    }

    fn local_address(&self) -> String {
        "127.0.0.1:1".into()
    }
}

#[tokio::test]
async fn a_broker_whose_door_panics_ends() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::new(BrokerId(1), directory.path().to_owned());
    config.peer.listen = "127.0.0.1:0".into();
    let network = Collapsing(tokio::sync::Notify::new());
    network.0.notify_one();
    let broker = Broker::start(config.clone(), "127.0.0.1:1".into()).await.unwrap();
    let server = Server::serve_on(&config, Box::new(network)).unwrap();
    server.open(Arc::clone(&broker));
    let why = tokio::time::timeout(Duration::from_secs(60), broker.failed()).await.unwrap();
    assert!(why.contains("a test's network is no more"), "{why}");
    broker.shutdown(Duration::from_secs(10)).await;
}
