//! How long until every partition takes a record.
//!
//! Started beside brokers that are just starting: first until one of the servers answers at all, then until the first partition takes a record,
//! then one prober for each of the others; a prober produces one small record with `acks=all` through one of the servers, again until it is
//! acknowledged. (Were all of them to knock from the beginning, they would take the starting brokers' cores.) All is counted from this process's
//! start, so whoever measures a restart starts this first.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::AnswersArgs;
use super::load::send;
use super::report::{Report, histogram, round};
use super::target::Target;
use crate::cli::Failure;

/// Between two looks, and between two tries of a prober.
const PAUSE: Duration = Duration::from_millis(10);

pub(super) async fn run(args: AnswersArgs, target: &Target) -> Result<Report, Failure> {
    let started = Instant::now();
    let deadline = started + Duration::from_secs(args.seconds);
    let served = wait_for_server(target, deadline).await?;
    let http_ms = started.elapsed();
    let mut first = histogram();
    first.saturating_record(probe(target, &served, &args.topic, 0, started, deadline).await?.as_micros() as u64);
    let probers: Vec<_> = (1..args.partitions)
        .map(|partition| {
            let (target, topic, served) = (target.clone(), args.topic.clone(), served.clone());
            tokio::spawn(async move { probe(&target, &served, &topic, partition, started, deadline).await })
        })
        .collect();
    for prober in probers {
        let took = prober.await.map_err(|error| Failure::Failed(error.to_string()))??;
        first.saturating_record(took.as_micros() as u64);
    }
    let mut report = Report::new("answers");
    report.set("partitions", args.partitions);
    report.set("http_ms", round(http_ms.as_secs_f64() * 1000.0));
    for (name, quantile) in [("first_ms", 0.0), ("p50_ms", 0.5), ("all_ms", 1.0)] {
        report.set(name, round(first.value_at_quantile(quantile) as f64 / 1000.0));
    }
    Ok(report)
}

/// The first server that answers anything.
async fn wait_for_server(target: &Target, deadline: Instant) -> Result<String, Failure> {
    loop {
        for server in target.servers() {
            if target.http.get(format!("{server}/healthz")).send().await.is_ok() {
                return Ok(server.clone());
            }
        }
        if Instant::now() > deadline {
            return Err(Failure::Unreachable("no server answers".into()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// When a partition took its first record. It goes on to the next server when one refuses or goes away.
async fn probe(
    target: &Target,
    served: &str,
    topic: &str,
    partition: u32,
    started: Instant,
    deadline: Instant,
) -> Result<Duration, Failure> {
    let others = target.servers().iter().filter(|server| server.as_str() != served);
    let servers: Vec<&str> = std::iter::once(served).chain(others.map(String::as_str)).collect();
    for server in servers.iter().cycle() {
        // It waits for a leader there, so a prober costs little while there is none.
        let url = format!("{server}/v1/topics/{topic}/partitions/{partition}/records?timeout_ms=5000");
        match send(target, &url, Bytes::from_static(b"probe")).await {
            Ok(()) => return Ok(started.elapsed()),
            Err(error) if Instant::now() > deadline => {
                return Err(Failure::Failed(format!("{topic}/{partition} does not answer: {error}")));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    Err(Failure::Unreachable("no server was named".into()))
}
