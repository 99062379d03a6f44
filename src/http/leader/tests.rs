//! Passing on, against leaders that are played: what is sent again, what is not, and what the client is told.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::places::PLACES;
use super::*;

/// What a played leader does with one connection.
#[derive(Clone, Copy)]
enum Act {
    Answer(u16, &'static str),
    /// Reads the request and closes.
    Close,
    /// Reads the request and says nothing.
    Hang,
    /// Answers the head and half of the body, and no more.
    Half,
}

struct Leader {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn leader(acts: &[Act]) -> Leader {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let requests = Arc::new(Mutex::new(Vec::new()));
    let (seen, acts) = (Arc::clone(&requests), acts.to_vec());
    let task = tokio::spawn(async move {
        let mut hanging = Vec::new();
        for act in acts {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 1 << 16];
            let read = stream.read(&mut buffer).await.unwrap();
            seen.lock().push(String::from_utf8_lossy(&buffer[..read]).into_owned());
            match act {
                Act::Answer(status, body) => {
                    let length = body.len();
                    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
                }
                Act::Close => {}
                Act::Hang => hanging.push(stream),
                Act::Half => {
                    stream.write_all(b"HTTP/1.1 200 X\r\ncontent-length: 8\r\n\r\nhalf").await.unwrap();
                    hanging.push(stream);
                }
            }
        }
        std::future::pending::<()>().await;
    });
    Leader { address, requests, task }
}

/// Tells the leaders in turn; the last stays. A look without waiting does not move on.
struct Told {
    leaders: Vec<(u32, String)>,
    at: AtomicUsize,
    /// After so many looks without waiting, the next in turn leads.
    deposed_after: Option<usize>,
    looks: AtomicUsize,
    /// After so many times of waiting for a leader, the broker is closed.
    closed_after: Option<usize>,
    /// Changes with each look.
    version: watch::Sender<u64>,
}

impl Told {
    fn new(leaders: &[(u32, &str)]) -> Self {
        let leaders = leaders.iter().map(|(id, address)| (*id, (*address).to_owned())).collect();
        Self {
            leaders,
            at: AtomicUsize::new(0),
            deposed_after: None,
            looks: AtomicUsize::new(0),
            closed_after: None,
            version: watch::Sender::new(0),
        }
    }

    fn route_at(&self, at: usize) -> Result<Route, Error> {
        match self.leaders.get(at.min(self.leaders.len().saturating_sub(1))) {
            Some((id, address)) => Ok(Route::Remote { broker: BrokerId(*id), http_address: address.clone() }),
            None => Err(Error::new(Code::NoLeader, "no leader")),
        }
    }
}

impl Routes for Told {
    fn id(&self) -> BrokerId {
        BrokerId(9)
    }

    fn route(&self, _: &Target) -> Result<Route, Error> {
        let looks = self.looks.fetch_add(1, Ordering::Relaxed);
        self.version.send_modify(|version| *version += 1);
        let deposed = self.deposed_after.is_some_and(|after| looks >= after);
        self.route_at(self.at.load(Ordering::Relaxed).saturating_sub(1) + usize::from(deposed))
    }

    async fn route_wait(&self, _: &Target, _: Duration) -> Result<Route, Error> {
        self.route_at(self.at.fetch_add(1, Ordering::Relaxed))
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn closed(&self) -> bool {
        self.closed_after.is_some_and(|after| self.at.load(Ordering::Relaxed) >= after)
    }
}

/// Never called: no route is local here.
struct NoWork;

impl AtLeader for NoWork {
    async fn run(&self, _: &Partition, _: Duration) -> Result<Response, Refusal> {
        panic!("no route is local")
    }
}

fn passable(repeat: Repeat, headers: &[(&str, &str)]) -> Passable {
    let method = if repeat == Repeat::Read { "GET" } else { "POST" };
    let mut builder = axum::http::Request::builder().method(method).uri("/v1/topics/t/partitions/0/records?acks=all");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let (parts, ()) = builder.body(()).unwrap().into_parts();
    Passable::new(&parts, Bytes::from_static(b"body"), Duration::from_secs(5), repeat)
}

async fn pass(told: &Told, passable: &Passable) -> Result<(u16, String), Error> {
    let peers = reqwest::Client::builder().no_proxy().build().unwrap();
    let target = Target { topic: "t".into(), partition: 0 };
    let (deadlines, places) = (&Deadlines::start(), &Places::default());
    let way = Way { routes: told, peers: &peers, deadlines, target: &target, places };
    let response = passable.find(&way, &NoWork).await.map_err(|refusal| refusal.error)?;
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    Ok((status, String::from_utf8(body.to_vec()).unwrap()))
}

const NOT_LEADER: &str = r#"{"error":"NOT_LEADER","message":"m","retriable":true,"outcome":"none"}"#;
const UNKNOWN: &str = r#"{"error":"OUTCOME_UNKNOWN","message":"m","retriable":true,"outcome":"unknown"}"#;
const FULL: &str = r#"{"error":"STORAGE_FULL","message":"disk of 2","retriable":true,"outcome":"none"}"#;
const NOBODY: (u32, &str) = (7, "127.0.0.1:1");

#[tokio::test]
async fn a_request_goes_to_the_leader_with_its_headers_its_time_and_a_mark() {
    let two = leader(&[Act::Answer(200, "done")]).await;
    let headers = [("content-type", "text/plain"), ("producer-id", "5"), ("origin", "x"), ("cookie", "c")];
    let answer = pass(&Told::new(&[(2, &two.address)]), &passable(Repeat::Harmful, &headers)).await.unwrap();
    assert_eq!(answer, (200, "done".into()));
    let request = two.requests.lock()[0].clone();
    assert!(request.starts_with("POST /v1/topics/t/partitions/0/records?acks=all HTTP/1.1"), "{request}");
    for wanted in ["content-type: text/plain", "producer-id: 5", "pontoon-forwarded: 9", "\r\n\r\nbody"] {
        assert!(request.contains(wanted), "{request}");
    }
    assert!(request.contains("pontoon-timeout-ms: 49") || request.contains("pontoon-timeout-ms: 5000"), "{request}");
    assert!(!request.contains("origin") && !request.contains("cookie"), "{request}");
}

#[tokio::test]
async fn what_certainly_had_no_effect_is_tried_at_the_next_leader() {
    let old = leader(&[Act::Answer(503, NOT_LEADER)]).await;
    let new = leader(&[Act::Answer(200, "done")]).await;
    let told = Told::new(&[NOBODY, (2, &old.address), (3, &new.address)]);
    assert_eq!(pass(&told, &passable(Repeat::Harmful, &[])).await.unwrap().1, "done");
}

#[tokio::test]
async fn a_write_that_may_have_happened_is_not_sent_again() {
    for act in [Act::Close, Act::Answer(504, UNKNOWN)] {
        let old = leader(&[act]).await;
        let new = leader(&[Act::Answer(200, "done")]).await;
        let told = Told::new(&[(2, &old.address), (3, &new.address)]);
        let error = pass(&told, &passable(Repeat::Harmful, &[])).await.unwrap_err();
        assert_eq!((error.code, error.outcome), (Code::OutcomeUnknown, WriteOutcome::Unknown));
        assert!(new.requests.lock().is_empty());
    }
}

#[tokio::test]
async fn a_read_and_an_idempotent_write_are() {
    for repeat in [Repeat::Read, Repeat::Idempotent] {
        let old = leader(&[Act::Close]).await;
        let new = leader(&[Act::Answer(200, "done")]).await;
        let told = Told::new(&[(2, &old.address), (3, &new.address)]);
        assert_eq!(pass(&told, &passable(repeat, &[])).await.unwrap().1, "done", "{repeat:?}");
    }
}

#[tokio::test]
async fn a_leader_that_hangs_is_left_once_another_leads() {
    let cases = [Act::Hang, Act::Half].map(|act| [(act, Repeat::Idempotent), (act, Repeat::Harmful)]);
    for (act, repeat) in cases.concat() {
        let old = leader(&[act]).await;
        let new = leader(&[Act::Answer(200, "done")]).await;
        let told = Told { deposed_after: Some(2), ..Told::new(&[(2, &old.address), (3, &new.address)]) };
        let began = Instant::now();
        let answer = pass(&told, &passable(repeat, &[])).await;
        assert!(began.elapsed() < Duration::from_secs(4), "waited for the timeout");
        match repeat {
            Repeat::Idempotent => assert_eq!(answer.unwrap().1, "done"),
            _ => assert_eq!(answer.unwrap_err().outcome, WriteOutcome::Unknown),
        }
    }
}

/// Neither the client nor who reads on its behalf waits for ever, though nobody else leads.
#[tokio::test]
async fn an_answer_that_stops_in_the_middle_breaks_off() {
    let paused = leader(&[Act::Half]).await;
    let peers = reqwest::Client::builder().no_proxy().build().unwrap();
    let target = Target { topic: "t".into(), partition: 0 };
    let told = Told::new(&[(2, &paused.address)]);
    let (deadlines, places) = (&Deadlines::start(), &Places::default());
    let way = Way { routes: &told, peers: &peers, deadlines, target: &target, places };
    let response = passable(Repeat::Read, &[]).find(&way, &NoWork).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let body = tokio::time::timeout(BODY_PATIENCE * 4, axum::body::to_bytes(response.into_body(), 100)).await;
    let error = body.expect("it waits for the other half").unwrap_err();
    assert!(chain(&error).contains("nothing more of its answer"), "{}", chain(&error));
}

#[tokio::test]
async fn once_it_may_have_happened_no_later_refusal_denies_it() {
    let old = leader(&[Act::Close]).await;
    let new = leader(&[Act::Answer(507, FULL)]).await;
    let told = Told::new(&[(2, &old.address), (3, &new.address)]);
    let error = pass(&told, &passable(Repeat::Idempotent, &[])).await.unwrap_err();
    assert_eq!((error.code, error.outcome), (Code::StorageFull, WriteOutcome::Unknown));
    assert_eq!(error.message, "disk of 2");
}

#[tokio::test]
async fn a_refusal_by_the_leader_is_the_answer() {
    let two = leader(&[Act::Answer(507, FULL)]).await;
    let error = pass(&Told::new(&[(2, &two.address)]), &passable(Repeat::Harmful, &[])).await.unwrap_err();
    assert_eq!((error.code, error.outcome), (Code::StorageFull, WriteOutcome::None));
    // A newer version's code goes through as it is.
    let two = leader(&[Act::Answer(418, r#"{"error":"TEAPOT"}"#)]).await;
    let answer = pass(&Told::new(&[(2, &two.address)]), &passable(Repeat::Harmful, &[])).await.unwrap();
    assert_eq!(answer, (418, r#"{"error":"TEAPOT"}"#.into()));
}

#[tokio::test]
async fn without_a_leader_in_time_the_last_reason_is_told() {
    let mut short = passable(Repeat::Harmful, &[]);
    short.deadline = Instant::now() + Duration::from_millis(50);
    let error = pass(&Told::new(&[NOBODY]), &short).await.unwrap_err();
    assert_eq!((error.code, error.outcome), (Code::NoLeader, WriteOutcome::None));
    assert!(error.message.contains("127.0.0.1:1"), "{error}");
    short.deadline = Instant::now() + Duration::from_millis(50);
    assert_eq!(pass(&Told::new(&[]), &short).await.unwrap_err().code, Code::NoLeader);
}

#[tokio::test]
async fn a_broker_that_is_closed_looks_no_further_and_says_what_is_known() {
    let mut patient = passable(Repeat::Idempotent, &[]);
    patient.deadline = Instant::now() + Duration::from_secs(3600);
    let lost = leader(&[Act::Close]).await;
    for (first, outcome) in [(NOBODY, WriteOutcome::None), ((2, lost.address.as_str()), WriteOutcome::Unknown)] {
        let told = Told { closed_after: Some(3), ..Told::new(&[first, NOBODY]) };
        let answer = tokio::time::timeout(Duration::from_secs(60), pass(&told, &patient)).await;
        assert_eq!(answer.expect("it looks on").unwrap_err().outcome, outcome);
    }
}

#[tokio::test]
async fn who_asked_only_one_broker_hears_of_the_partition_and_not_of_that_broker() {
    let stale = leader(&[Act::Answer(503, NOT_LEADER); 100]).await;
    let mut short = passable(Repeat::Harmful, &[]);
    short.deadline = Instant::now() + Duration::from_millis(100);
    let error = pass(&Told::new(&[(2, &stale.address)]), &short).await.unwrap_err();
    assert_eq!((error.code, error.outcome), (Code::NoLeader, WriteOutcome::None));
}

#[tokio::test]
async fn a_request_that_was_passed_on_is_not_passed_on_again() {
    let other = leader(&[Act::Answer(200, "done")]).await;
    let marked = passable(Repeat::Read, &[("pontoon-forwarded", "4")]);
    let error = pass(&Told::new(&[(2, &other.address)]), &marked).await.unwrap_err();
    assert_eq!((error.code, error.outcome), (Code::NotLeader, WriteOutcome::None));
    assert!(other.requests.lock().is_empty());
}

#[tokio::test]
async fn who_prefers_a_redirect_is_told_where_to_go() {
    let asked = passable(Repeat::Harmful, &[("prefer", "wait=5, redirect")]);
    let peers = reqwest::Client::new();
    let target = Target { topic: "t".into(), partition: 0 };
    let told = Told::new(&[NOBODY]);
    let (deadlines, places) = (&Deadlines::start(), &Places::default());
    let way = Way { routes: &told, peers: &peers, deadlines, target: &target, places };
    let response = asked.find(&way, &NoWork).await.unwrap();
    assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(response.headers()["location"], "http://127.0.0.1:1/v1/topics/t/partitions/0/records?acks=all");
}

/// A leader that answers nobody until no more come. Its address, and the most that it has had at the same time.
async fn crowded_leader() -> (String, Arc<AtomicUsize>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (now, most, gate) = (Arc::new(AtomicUsize::new(0)), Arc::default(), Arc::new(Semaphore::new(0)));
    let seen: Arc<AtomicUsize> = Arc::clone(&most);
    let task = tokio::spawn(async move {
        loop {
            let Ok(accepted) = tokio::time::timeout(Duration::from_millis(300), listener.accept()).await else {
                gate.add_permits(PLACES);
                continue;
            };
            let (mut stream, _) = accepted.unwrap();
            seen.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            let (now, gate) = (Arc::clone(&now), Arc::clone(&gate));
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                gate.acquire().await.unwrap().forget();
                now.fetch_sub(1, Ordering::Relaxed);
                let _ = stream.write_all(b"HTTP/1.1 200 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            });
        }
    });
    (address, most, task)
}

#[tokio::test]
async fn the_parts_of_a_request_go_to_a_leader_only_so_many_at_a_time() {
    let (address, most, task) = crowded_leader().await;
    let told = Told::new(&[(2, &address)]);
    let (peers, target) =
        (reqwest::Client::builder().no_proxy().build().unwrap(), Target { topic: "t".into(), partition: 0 });
    let (deadlines, places) = (&Deadlines::start(), &Places::default());
    let way = Way { routes: &told, peers: &peers, deadlines, target: &target, places };
    let parts: Vec<Passable> = (0..3 * PLACES)
        .map(|_| Passable {
            deadline: Instant::now() + Duration::from_secs(60),
            ..passable(Repeat::Harmful, &[]).part()
        })
        .collect();
    let sent = futures_util::future::join_all(parts.iter().map(|part| part.find(&way, &NoWork))).await;
    assert!(sent.iter().all(|answer| answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::OK)));
    let most = most.load(Ordering::Relaxed);
    assert!(most <= PLACES, "{most} at the same time");
    task.abort();
}

#[tokio::test]
async fn a_part_that_waits_for_its_place_goes_to_who_leads_next() {
    let new = leader(&[Act::Answer(200, "done")]).await;
    let told = Told { deposed_after: Some(2), ..Told::new(&[NOBODY, (3, &new.address)]) };
    let (peers, target) =
        (reqwest::Client::builder().no_proxy().build().unwrap(), Target { topic: "t".into(), partition: 0 });
    let (deadlines, places) = (&Deadlines::start(), &Places::default());
    let way = Way { routes: &told, peers: &peers, deadlines, target: &target, places };
    let all = u32::try_from(PLACES).unwrap();
    let held = places.to(BrokerId(NOBODY.0)).acquire_many_owned(all).await.unwrap();
    let answer = passable(Repeat::Harmful, &[]).part().find(&way, &NoWork).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    // With no other leader it is told that there are too many, and that nothing was sent.
    let short =
        Passable { deadline: Instant::now() + Duration::from_millis(50), ..passable(Repeat::Harmful, &[]).part() };
    let way = Way { routes: &Told::new(&[NOBODY]), ..way };
    let error = short.find(&way, &NoWork).await.unwrap_err().error;
    assert_eq!((error.code, error.outcome), (Code::TooManyRequests, WriteOutcome::None));
    drop(held);
}
