//! How long a partition is without acknowledgements when its leader is killed.
//!
//! Every partition that the victim leads has one prober: produce, wait for the acknowledgement, pause, again. The gap of a partition is the
//! longest time between two of its acknowledgements, the later of which came after the kill. A prober that is refused or cut off looks up the
//! leader through the survivors and tries again at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::FailoverArgs;
use super::load::{noise, send};
use super::report::{Report, histogram};
use super::target::{Led, Target};
use crate::cli::Failure;

/// What the probers share.
struct Shared {
    target: Target,
    topic: String,
    started: Instant,
    /// Microseconds after `started` at which the victim was killed; 0 before.
    killed_us: AtomicU64,
    /// The leaders as last looked up, and when.
    leaders: Mutex<(Instant, Arc<Vec<Led>>)>,
    looking: tokio::sync::Mutex<()>,
}

impl Shared {
    /// The partition's leader, looked up again if what is known is older than `since`.
    async fn leader(&self, partition: u32, since: Instant) -> Option<Led> {
        if self.leaders.lock().0 < since {
            let _one_at_a_time = self.looking.lock().await;
            if self.leaders.lock().0 < since {
                let asked = Instant::now();
                if let Ok(leaders) = self.target.leaders(&self.topic).await {
                    *self.leaders.lock() = (asked, Arc::new(leaders));
                }
            }
        }
        let leaders = self.leaders.lock().1.clone();
        leaders.iter().find(|led| led.partition == partition).cloned()
    }
}

pub(super) async fn run(args: FailoverArgs, target: &Target) -> Result<Report, Failure> {
    let topic = match &args.topic {
        Some(topic) => topic.clone(),
        None => target.create_topic(args.partitions, None).await?,
    };
    let leaders = target.all_leaders(&topic, args.partitions).await?;
    let victims: Vec<Led> = leaders.iter().filter(|led| led.broker == args.broker).cloned().collect();
    if victims.is_empty() {
        return Err(Failure::Failed(format!("broker {} leads no partition of {topic}", args.broker)));
    }
    let started = Instant::now();
    let shared = Arc::new(Shared {
        target: target.clone(),
        topic: topic.clone(),
        started,
        killed_us: AtomicU64::new(0),
        leaders: Mutex::new((started, Arc::new(leaders))),
        looking: tokio::sync::Mutex::new(()),
    });
    let kill_at = started + Duration::from_secs(args.seconds);
    let deadline = kill_at + Duration::from_secs(args.seconds);
    let pause = Duration::from_millis(args.interval_ms);
    let probers: Vec<_> =
        victims.iter().map(|led| tokio::spawn(probe(shared.clone(), led.clone(), pause, deadline))).collect();
    tokio::time::sleep_until(kill_at.into()).await;
    let pid = rustix::process::Pid::from_raw(args.pid)
        .ok_or_else(|| Failure::Failed(format!("{} is not a pid", args.pid)))?;
    shared.killed_us.store(shared.started.elapsed().as_micros() as u64, Ordering::SeqCst);
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)
        .map_err(|error| Failure::Failed(error.to_string()))?;
    let mut gaps = histogram();
    let mut silent = 0;
    let mut acknowledged = 0;
    for prober in probers {
        let (count, gap) = prober.await.map_err(|error| Failure::Failed(error.to_string()))?;
        acknowledged += count;
        match gap {
            Some(gap) => gaps.saturating_record(gap.as_micros() as u64),
            None => silent += 1,
        }
    }
    if args.topic.is_none() {
        target.delete_topic(&topic).await?;
    }
    if acknowledged == 0 {
        return Err(Failure::Failed("no probe was acknowledged, before the kill or after".into()));
    }
    let mut report = Report::new("failover");
    report.set("partitions", args.partitions);
    report.set("orphaned", victims.len());
    report.set("interval_ms", args.interval_ms);
    report.set("acknowledged", acknowledged);
    report.set("never_came_back", silent);
    for (name, quantile) in [("gap_p50_ms", 0.5), ("gap_p90_ms", 0.9), ("gap_p99_ms", 0.99), ("gap_max_ms", 1.0)] {
        report.set(name, gaps.value_at_quantile(quantile) as f64 / 1000.0);
    }
    Ok(report)
}

/// Probes one partition; the number of acknowledgements, and the gap that spans the kill.
async fn probe(shared: Arc<Shared>, first: Led, pause: Duration, deadline: Instant) -> (u64, Option<Duration>) {
    let value = noise(100);
    let mut led = Some(first);
    let mut last_ack: Option<Instant> = None;
    let (mut count, mut gap) = (0, None::<Duration>);
    while Instant::now() < deadline {
        let asked = Instant::now();
        let result = match &led {
            Some(led) => {
                let path = format!("/v1/topics/{}/partitions/{}/records?timeout_ms=1000", shared.topic, led.partition);
                send(&shared.target, &format!("{}{path}", led.base), value.clone()).await.map(|()| led.partition)
            }
            None => Err(String::from("no leader known")),
        };
        let partition = led.as_ref().map_or(0, |led| led.partition);
        match result {
            Ok(_) => {
                let now = Instant::now();
                count += 1;
                if let Some(last) = last_ack
                    && after_kill(&shared, now)
                {
                    gap = gap.max(Some(now - last));
                }
                last_ack = Some(now);
                tokio::time::sleep(pause).await;
            }
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
                led = shared.leader(partition, asked).await.or(led);
            }
        }
    }
    (count, gap)
}

/// An acknowledgement that had been under way when the victim died does not end the gap: every interval that ends after the
/// kill counts, and the longest is the gap.
fn after_kill(shared: &Shared, acknowledged: Instant) -> bool {
    let killed = shared.killed_us.load(Ordering::SeqCst);
    killed > 0 && (acknowledged - shared.started).as_micros() as u64 >= killed
}
