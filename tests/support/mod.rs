//! Clusters of the real binary for tests: start, kill -9, pause, restart, and ask over HTTP.
//!
//! Brokers run as child processes on loopback with their data in a temporary folder. Whatever happens they end with the
//! test; if the test fails, their data and logs are kept and the logs' ends are printed.
#![allow(dead_code)] // each theme uses some of it

use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Method, Response, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::http::openapi::check_refusal;

pub mod member;
mod metrics;
mod sources;

pub use metrics::metric;
pub use sources::{Contract, all_rust, every_line_has_tests, root, rust_files};

/// Longest that a broker may take to become ready, or to end after SIGTERM.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The binary under test.
pub fn pontoon() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pontoon"));
    // What the developer has set for themselves must not reach the brokers.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PONTOON_")) {
        command.env_remove(name);
    }
    command
}

/// The ports of one broker.
#[derive(Clone, Copy, Debug)]
struct Ports {
    http: u16,
    kafka: u16,
    peer: u16,
}

/// The first of `count` ports in a row that are free now and that no other test of this process is given.
pub fn free_ports_in_a_row(count: u16) -> u16 {
    for _ in 0..1000 {
        let ports = free_ports(usize::from(count));
        let first = ports[0];
        if ports.iter().enumerate().all(|(at, port)| *port == first + at as u16) {
            return first;
        }
    }
    panic!("no {count} free ports in a row");
}

/// Reserves `count` ports that are free now.
///
/// They lie *below* the range from which the kernel takes ports for outgoing connections: a broker that is down for a
/// while would otherwise lose its port to somebody's connection, or a connection to it would meet itself.
pub fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let below = range.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(32768u16);
    let (first, width) = if below > 20_000 { (10_000, below - 10_000) } else { (20_000, 10_000) };
    let seed = (std::process::id().wrapping_mul(7919) % u32::from(width)) as u16;
    let mut held = Vec::new();
    for _ in 0..width {
        let port =
            first + (seed as u32 + u32::from(NEXT.fetch_add(1, Ordering::Relaxed))).rem_euclid(width.into()) as u16;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            held.push((port, listener));
        }
        if held.len() == count {
            return held.into_iter().map(|(port, _)| port).collect();
        }
    }
    panic!("no {count} free ports in {first}..{}", first + width);
}

/// One broker: where it is, and its process while it runs.
pub struct BrokerProcess {
    /// Its number.
    pub id: u32,
    ports: Ports,
    args: Vec<String>,
    variables: Vec<(String, String)>,
    data: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl BrokerProcess {
    fn spawn(&mut self) {
        assert!(self.child.is_none(), "broker {} runs already", self.id);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let child = pontoon()
            .args(&self.args)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("broker {} does not run", self.id));
        kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
    }

    /// Further arguments for its next start.
    pub fn add_args(&mut self, args: &[&str]) {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
    }

    /// A variable of its environment from its next start on.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().unwrap())
    }

    fn wait_ended(&mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.ended() {
                self.child = None;
                return status;
            }
            assert!(Instant::now() < deadline, "broker {} still runs after {within:?}:\n{}", self.id, tail(&self.log));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A cluster of `pontoon serve` processes. Brokers are numbered from 1.
pub struct Cluster {
    dir: Option<tempfile::TempDir>,
    brokers: Vec<BrokerProcess>,
    /// For requests that the helpers below do not cover.
    pub http: reqwest::Client,
}

impl Cluster {
    /// Starts `count` brokers and waits until all are ready.
    pub async fn start(count: u32) -> Self {
        Self::start_with(count, &[]).await
    }

    /// The same, with further arguments to `pontoon serve` (`--set key=value`).
    pub async fn start_with(count: u32, args: &[&str]) -> Self {
        for attempt in 1.. {
            let mut cluster = Self::prepare(count, args);
            for id in 1..=count {
                cluster.spawn(id);
            }
            match cluster.all_ready().await {
                Ok(()) => return cluster,
                // Somebody took a port between reserving and binding it.
                Err(why) if attempt < 5 && why.contains("in use") => {}
                Err(why) => panic!("{why}"),
            }
        }
        unreachable!()
    }

    /// Lays the cluster out, ports and folders, without starting any broker: see [`Self::spawn`].
    pub fn prepare(count: u32, args: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("pontoon-test-").tempdir().unwrap();
        let ports = free_ports(3 * count as usize);
        let ports = ports.chunks(3).map(|three| Ports { http: three[0], kafka: three[1], peer: three[2] });
        let ports: Vec<Ports> = ports.collect();
        let bootstrap: Vec<String> =
            ports.iter().zip(1..).map(|(ports, id)| format!("{id}@127.0.0.1:{}", ports.peer)).collect();
        let bootstrap = bootstrap.join(",");
        let brokers =
            ports.iter().zip(1..).map(|(ports, id)| broker(dir.path(), id, *ports, &bootstrap, args)).collect();
        Self { dir: Some(dir), brokers, http: client() }
    }

    fn broker(&self, id: u32) -> &BrokerProcess {
        &self.brokers[id as usize - 1]
    }

    /// One broker.
    pub fn broker_mut(&mut self, id: u32) -> &mut BrokerProcess {
        &mut self.brokers[id as usize - 1]
    }

    /// How many brokers there are, running or not.
    pub fn len(&self) -> u32 {
        self.brokers.len() as u32
    }

    /// `http://127.0.0.1:PORT` of a broker.
    pub fn url(&self, id: u32) -> String {
        format!("http://{}", self.address(id))
    }

    /// `127.0.0.1:PORT` of a broker's HTTP listener.
    pub fn address(&self, id: u32) -> String {
        format!("127.0.0.1:{}", self.broker(id).ports.http)
    }

    /// A broker's Kafka listener, `host:port`.
    pub fn kafka_address(&self, id: u32) -> String {
        format!("127.0.0.1:{}", self.broker(id).ports.kafka)
    }

    /// A broker's listener for its peers, `host:port`.
    pub fn peer_address(&self, id: u32) -> String {
        format!("127.0.0.1:{}", self.broker(id).ports.peer)
    }

    /// All brokers' URLs, as `--server` takes them.
    pub fn servers(&self) -> String {
        (1..=self.len()).map(|id| self.url(id)).collect::<Vec<_>>().join(",")
    }

    /// A broker's data directory.
    pub fn data_dir(&self, id: u32) -> &Path {
        &self.broker(id).data
    }

    /// The process id of a broker that runs.
    pub fn pid(&self, id: u32) -> u32 {
        self.broker(id).child.as_ref().unwrap_or_else(|| panic!("broker {id} does not run")).id()
    }

    /// What a broker has said so far.
    pub fn log(&self, id: u32) -> String {
        fs::read_to_string(&self.broker(id).log).unwrap_or_default()
    }

    /// A folder for the test's own files, removed with the cluster.
    pub fn scratch(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    /// Starts a broker that does not run, and does not wait.
    pub fn spawn(&mut self, id: u32) {
        self.broker_mut(id).spawn();
    }

    /// Starts a broker that does not run and waits until it is ready.
    pub async fn restart(&mut self, id: u32) {
        self.spawn(id);
        self.wait_ready(id).await;
    }

    /// Starts brokers that do not run and that may need each other, and waits until all are ready.
    pub async fn restart_all(&mut self, ids: &[u32]) {
        ids.iter().for_each(|id| self.spawn(*id));
        for id in ids {
            self.wait_ready(*id).await;
        }
    }

    /// kill -9.
    pub fn kill(&mut self, id: u32) {
        self.broker(id).signal(Signal::KILL);
        self.broker_mut(id).wait_ended(PATIENCE);
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self, id: u32) -> ExitStatus {
        self.broker(id).signal(Signal::TERM);
        self.broker_mut(id).wait_ended(PATIENCE)
    }

    /// Ctrl-C, and waits for the end.
    pub fn interrupt(&mut self, id: u32) -> ExitStatus {
        self.broker(id).signal(Signal::INT);
        self.broker_mut(id).wait_ended(PATIENCE)
    }

    /// A broker that ended by itself may be started again.
    pub fn forget_ended(&mut self, id: u32) {
        self.broker_mut(id).wait_ended(PATIENCE);
    }

    /// SIGSTOP, and waits until every thread has stopped: on a busy machine they go on for a while.
    pub fn pause(&self, id: u32) {
        self.broker(id).signal(Signal::STOP);
        let deadline = Instant::now() + PATIENCE;
        let tasks = format!("/proc/{}/task", self.pid(id));
        let stopped = |task: fs::DirEntry| {
            // The state follows the name, which is in brackets and may contain anything.
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 'Z', 'X']))
        };
        while !fs::read_dir(&tasks).unwrap().flatten().all(stopped) {
            assert!(Instant::now() < deadline, "broker {id} does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// SIGCONT.
    pub fn resume(&self, id: u32) {
        self.broker(id).signal(Signal::CONT);
    }

    /// Waits until a broker answers 200 to `/readyz`.
    pub async fn wait_ready(&mut self, id: u32) {
        if let Err(why) = self.ready(id).await {
            panic!("{why}");
        }
    }

    async fn all_ready(&mut self) -> Result<(), String> {
        for id in 1..=self.len() {
            self.ready(id).await?;
        }
        Ok(())
    }

    async fn ready(&mut self, id: u32) -> Result<(), String> {
        let url = format!("{}/readyz", self.url(id));
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::from("never asked");
        while Instant::now() < deadline {
            if let Some(status) = self.broker_mut(id).ended() {
                return Err(format!("broker {id} ended with {status}:\n{}", tail(&self.broker(id).log)));
            }
            match self.http.get(&url).timeout(Duration::from_secs(2)).send().await {
                Ok(response) if response.status() == StatusCode::OK => return Ok(()),
                Ok(response) => last = response.text().await.unwrap_or_default(),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(format!("broker {id} is not ready after {PATIENCE:?}: {last}\n{}", tail(&self.broker(id).log)))
    }

    /// One request to a broker, its answer unread.
    pub async fn send(&self, id: u32, method: Method, path: &str, body: Option<Value>) -> Response {
        let mut request = self.http.request(method, format!("{}{path}", self.url(id)));
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.send().await.unwrap()
    }

    /// One request to a broker: status and JSON (null if the body is empty).
    pub async fn ask(&self, id: u32, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        read(self.send(id, method, path, body).await).await
    }

    /// GET.
    pub async fn get(&self, id: u32, path: &str) -> (StatusCode, Value) {
        self.ask(id, Method::GET, path, None).await
    }

    /// POST of a JSON body.
    pub async fn post(&self, id: u32, path: &str, body: Value) -> (StatusCode, Value) {
        self.ask(id, Method::POST, path, Some(body)).await
    }

    /// Creates a topic through broker `id` and returns its description.
    pub async fn create_topic(&self, id: u32, name: &str, partitions: u32) -> Value {
        let (status, body) = self.post(id, "/v1/topics", json!({"name": name, "partitions": partitions})).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body
    }

    /// Produces one text value through broker `id`; 200 or panic. Returns the answer.
    pub async fn produce_text(&self, id: u32, topic: &str, partition: u32, value: &str) -> Value {
        let url = format!("{}/v1/topics/{topic}/partitions/{partition}/records", self.url(id));
        let request = self.http.post(url).header("content-type", "text/plain").body(value.to_owned());
        let (status, body) = read(request.send().await.unwrap()).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    /// Every record of a partition as broker `id` serves it, up to an end that covers all that was acknowledged.
    pub async fn fetch_all(&self, id: u32, topic: &str, partition: u32) -> Vec<Value> {
        let path = format!("/v1/topics/{topic}/partitions/{partition}/records?consistency=linearizable");
        let mut records = Vec::new();
        let mut at = String::from("earliest");
        loop {
            let (status, body) = self.get(id, &format!("{path}&offset={at}")).await;
            assert_eq!(status, StatusCode::OK, "{body}");
            let found = body["records"].as_array().unwrap();
            if found.is_empty() && body["next_offset"] == body["high_watermark"] {
                return records;
            }
            records.extend(found.iter().cloned());
            at = body["next_offset"].to_string();
        }
    }

    /// The broker that leads a partition, as broker `id` knows it, waiting until there is one.
    pub async fn leader(&self, id: u32, topic: &str, partition: u32) -> u32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, body) = self.get(id, &format!("/v1/topics/{topic}")).await;
            if let Some(leader) = body["partitions"][partition as usize]["leader"].as_u64() {
                return leader as u32;
            }
            assert!(Instant::now() < deadline, "{topic}/{partition} has no leader: {body}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for broker in &mut self.brokers {
            if let Some(mut child) = broker.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        // A broker's task that panics is dropped in silence, and what is left of the broker may pass most tests.
        let panics: Vec<String> = self.brokers.iter().filter_map(|broker| panic_of(&broker.log)).collect();
        if (std::thread::panicking() || !panics.is_empty())
            && let Some(dir) = self.dir.take()
        {
            let kept = dir.keep();
            eprintln!("data and logs are kept in {}", kept.display());
            for broker in &self.brokers {
                eprintln!("--- broker {} ---\n{}", broker.id, tail(&broker.log));
            }
        }
        assert!(std::thread::panicking() || panics.is_empty(), "a broker panicked: {panics:?}");
    }
}

fn broker(dir: &Path, id: u32, ports: Ports, bootstrap: &str, extra: &[&str]) -> BrokerProcess {
    let data = dir.join(format!("data-{id}"));
    let mut args: Vec<String> = vec!["serve".into(), "--broker-id".into(), id.to_string()];
    args.extend(["--data-dir".into(), data.display().to_string(), "--bootstrap".into(), bootstrap.into()]);
    args.extend(["--http-listen".into(), format!("127.0.0.1:{}", ports.http)]);
    args.extend(["--kafka-listen".into(), format!("127.0.0.1:{}", ports.kafka)]);
    args.extend(["--peer-listen".into(), format!("127.0.0.1:{}", ports.peer)]);
    args.extend(extra.iter().map(|arg| (*arg).to_owned()));
    BrokerProcess {
        id,
        ports,
        args,
        variables: Vec::new(),
        data,
        log: dir.join(format!("broker-{id}.log")),
        child: None,
    }
}

/// A client that is patient enough for a failover and never follows a redirect.
pub fn client() -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60));
    // Shorter than the server's own: a request must not meet a connection that is just being closed.
    builder.pool_idle_timeout(Duration::from_secs(5)).redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

/// Status and JSON of an answer (null if the body is empty).
///
/// A refusal must be one that `/openapi.json` lists.
pub async fn read(response: Response) -> (StatusCode, Value) {
    let (status, path) = (response.status(), response.url().path().to_owned());
    let body = response.bytes().await.unwrap();
    let value = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&body)
            .unwrap_or_else(|error| panic!("{status}: {error}: {}", String::from_utf8_lossy(&body)))
    };
    check_refusal(&path, status.as_u16(), &value);
    (status, value)
}

/// The first panic that a log tells of.
fn panic_of(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).unwrap_or_default();
    // sled may panic on rot in its files, which is caught and costs nothing.
    let panics = |line: &str| line.contains(" panicked at ") && !line.contains("/sled-");
    let mut lines = text.lines().skip_while(|line| !panics(line));
    Some(format!("{}: {} {}", log.display(), lines.next()?, lines.next().unwrap_or_default()))
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Runs `pontoon` with these arguments and this standard input, and waits for its end.
pub async fn run(args: &[&str], stdin: &[u8]) -> std::process::Output {
    let input = tempfile::NamedTempFile::new().unwrap();
    fs::write(input.path(), stdin).unwrap();
    let mut command = tokio::process::Command::from(pontoon());
    command.args(args).stdin(File::open(input.path()).unwrap()).kill_on_drop(true);
    tokio::time::timeout(Duration::from_secs(120), command.output())
        .await
        .expect("pontoon did not end in 120 s")
        .unwrap()
}
