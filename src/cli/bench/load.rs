//! Closed loops of produce and fetch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use reqwest::Method;

use super::report::{Report, histogram};
use super::target::{Led, Target};
use super::{FetchArgs, LoadArgs};
use crate::cli::Failure;
use crate::client;

/// What one worker, or all together, saw.
struct Seen {
    latencies: Histogram<u64>,
    errors: u64,
    first_error: Option<String>,
}

impl Seen {
    fn new() -> Self {
        Self { latencies: histogram(), errors: 0, first_error: None }
    }

    fn merge(&mut self, other: Seen) {
        // Both have the same bounds, so adding cannot fail.
        let _ = self.latencies.add(&other.latencies);
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

/// A value of printable noise: it neither compresses nor repeats.
pub(super) fn noise(bytes: usize) -> Bytes {
    (0..bytes).map(|_| b'a' + rand::random::<u8>() % 26).collect::<Vec<u8>>().into()
}

pub(super) async fn produce(name: &str, args: LoadArgs, target: &Target) -> Result<Report, Failure> {
    let topic = match &args.topic {
        Some(topic) => topic.clone(),
        None => target.create_topic(args.partitions, args.replicas).await?,
    };
    let leaders = Arc::new(Leaders::new(target.all_leaders(&topic, args.partitions).await?));
    let started = Instant::now();
    let deadline = started + Duration::from_secs(args.seconds);
    let value = noise(args.bytes);
    // How many requests are left of those that were asked for.
    let left =
        Arc::new(AtomicU64::new(args.mib.map_or(u64::MAX, |mib| (mib << 20).div_ceil(args.bytes.max(1) as u64))));
    let workers: Vec<_> = (0..args.inflight.max(1))
        .map(|worker| {
            let (target, leaders, topic, acks) = (target.clone(), leaders.clone(), topic.clone(), args.acks.clone());
            let (value, left) = (value.clone(), left.clone());
            let bounds = Bounds { deadline, left };
            tokio::spawn(async move { produce_loop(worker, &target, &leaders, &topic, &acks, value, bounds).await })
        })
        .collect();
    let mut seen = Seen::new();
    for worker in workers {
        seen.merge(worker.await.map_err(|error| Failure::Failed(error.to_string()))?);
    }
    let elapsed = started.elapsed();
    if args.topic.is_none() {
        target.delete_topic(&topic).await?;
    }
    if seen.latencies.is_empty() {
        let why = seen.first_error.unwrap_or_else(|| "there was no time for one".into());
        return Err(Failure::Failed(format!("no request succeeded, {} failed: {why}", seen.errors)));
    }
    let mut report = Report::new(name);
    report.set("acks", args.acks);
    report.set("bytes", args.bytes);
    report.set("inflight", args.inflight);
    report.set("partitions", leaders.count());
    report.rate(seen.latencies.len(), seen.latencies.len() * args.bytes as u64, elapsed);
    report.latencies(&seen.latencies);
    report.set("errors", seen.errors);
    if let Some(error) = seen.first_error {
        report.set("first_error", error);
    }
    Ok(report)
}

/// When a load ends.
struct Bounds {
    deadline: Instant,
    left: Arc<AtomicU64>,
}

impl Bounds {
    /// Whether one more request may be sent.
    fn take(&self) -> bool {
        let take = |left: u64| left.checked_sub(1);
        Instant::now() < self.deadline && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// Where the partitions are led. Asked again when a request failed, as a client does that finds its leader gone.
struct Leaders {
    led: Mutex<Vec<Led>>,
    asked: tokio::sync::Mutex<Instant>,
}

/// How often it is asked, at most.
const ASK_EVERY: Duration = Duration::from_millis(100);

impl Leaders {
    fn new(led: Vec<Led>) -> Self {
        Self { led: Mutex::new(led), asked: tokio::sync::Mutex::new(Instant::now()) }
    }

    fn count(&self) -> usize {
        self.led.lock().len()
    }

    /// The partition whose turn it is.
    fn at(&self, turn: usize) -> Led {
        let led = self.led.lock();
        led[turn % led.len()].clone()
    }

    /// Only one asks at a time. What is not told now stays as it was.
    async fn ask_again(&self, target: &Target, topic: &str) {
        let Ok(mut asked) = self.asked.try_lock() else { return };
        if asked.elapsed() < ASK_EVERY {
            return;
        }
        let now = target.leaders(topic).await.unwrap_or_default();
        for known in self.led.lock().iter_mut() {
            if let Some(led) = now.iter().find(|led| led.partition == known.partition) {
                known.clone_from(led);
            }
        }
        *asked = Instant::now();
    }
}

async fn produce_loop(
    worker: usize,
    target: &Target,
    leaders: &Leaders,
    topic: &str,
    acks: &str,
    value: Bytes,
    bounds: Bounds,
) -> Seen {
    let mut seen = Seen::new();
    let mut at = worker;
    while bounds.take() {
        let led = leaders.at(at);
        // Workers stride through the partitions, so that any number of them covers any number of partitions.
        at += 7;
        let (base, partition, timeout) = (&led.base, led.partition, target.timeout_ms());
        let url = format!("{base}/v1/topics/{topic}/partitions/{partition}/records?acks={acks}&timeout_ms={timeout}");
        let begun = Instant::now();
        match send(target, &url, value.clone()).await {
            Ok(()) => seen.latencies.saturating_record(begun.elapsed().as_micros() as u64),
            Err(error) => {
                seen.errors += 1;
                seen.first_error.get_or_insert(error);
                tokio::time::sleep(Duration::from_millis(10)).await;
                leaders.ask_again(target, topic).await;
            }
        }
    }
    seen
}

/// One produce; the answer's body is read whole, so that the connection is used again.
pub(super) async fn send(target: &Target, url: &str, value: Bytes) -> Result<(), String> {
    let request = target.http.post(url).header("content-type", "text/plain").body(value);
    let answer = request.send().await.map_err(|error| client::chain(&error))?;
    let status = answer.status();
    let body = answer.bytes().await.map_err(|error| client::chain(&error))?;
    if status.is_success() { Ok(()) } else { Err(client::refused(status, &body, url).to_string()) }
}

pub(super) async fn fetch(args: FetchArgs, target: &Target) -> Result<Report, Failure> {
    let leaders = target.all_leaders(&args.topic, 1).await?;
    let started = Instant::now();
    let deadline = started + Duration::from_secs(args.seconds);
    let args = Arc::new(args);
    let next = Arc::new(AtomicU64::new(0));
    let partitions = leaders.len();
    let leaders = Arc::new(leaders);
    let readers: Vec<_> = (0..args.parallel.clamp(1, partitions))
        .map(|_| {
            let (target, leaders, args, next) = (target.clone(), leaders.clone(), args.clone(), next.clone());
            tokio::spawn(async move {
                let mut read = Read { latencies: histogram(), bytes: 0 };
                while let Some(led) = leaders.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    fetch_partition(&args, &target, led, deadline, &mut read).await?;
                }
                Ok::<_, Failure>(read)
            })
        })
        .collect();
    let mut read = Read { latencies: histogram(), bytes: 0 };
    for reader in readers {
        let more = reader.await.map_err(|error| Failure::Failed(error.to_string()))??;
        // Both have the same bounds, so adding cannot fail.
        let _ = read.latencies.add(&more.latencies);
        read.bytes += more.bytes;
    }
    let mut report = Report::new("fetch");
    report.set("partitions", partitions);
    report.set("parallel", args.parallel);
    report.rate(read.latencies.len(), read.bytes, started.elapsed());
    report.set("bytes", read.bytes);
    report.latencies(&read.latencies);
    Ok(report)
}

/// What was fetched.
struct Read {
    latencies: Histogram<u64>,
    bytes: u64,
}

/// A partition from its start to its end. Its bytes are counted and let go, piece by piece.
async fn fetch_partition(
    args: &FetchArgs,
    target: &Target,
    led: &Led,
    deadline: Instant,
    read: &mut Read,
) -> Result<(), Failure> {
    let mut offset = String::from("earliest");
    while Instant::now() < deadline {
        let path = format!("/v1/topics/{}/partitions/{}/records", args.topic, led.partition);
        let url = format!("{}{path}?offset={offset}&max_bytes={}", led.base, args.max_bytes);
        let begun = Instant::now();
        let request = target.http.request(Method::GET, &url).header("accept", "application/octet-stream");
        let mut answer = request.send().await.map_err(|error| Failure::Unreachable(error.to_string()))?;
        let status = answer.status();
        if !status.is_success() {
            let body = answer.bytes().await.unwrap_or_default();
            return Err(client::refused(status, &body, &url).into());
        }
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
        let (next, end) = (header("pontoon-next-offset"), header("pontoon-high-watermark"));
        let mut bytes = 0;
        while let Some(piece) = answer.chunk().await.map_err(|error| Failure::Unreachable(error.to_string()))? {
            bytes += piece.len() as u64;
        }
        read.latencies.saturating_record(begun.elapsed().as_micros() as u64);
        read.bytes += bytes;
        if bytes == 0 || next == end {
            break;
        }
        offset = next;
    }
    Ok(())
}
