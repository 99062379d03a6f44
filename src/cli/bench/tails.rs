//! How long a record takes to every tail of its partition.
//!
//! One process sends the records and holds all tails, so one clock times both ends: a record's value begins with the microsecond at which it
//! was sent. Records are sent at a steady rate, each when it is due, whether or not those before were acknowledged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::TailsArgs;
use super::load::{noise, send};
use super::report::{Report, histogram};
use super::target::Target;
use crate::cli::Failure;
use crate::client;

/// How long the tails may take to get what is still under way when the last record was sent.
const DRAIN: Duration = Duration::from_secs(5);
/// Digits of the microsecond in front of a value.
const STAMP_DIGITS: usize = 12;

/// What one tail got.
struct Tail {
    latencies: Histogram<u64>,
    failed: Option<String>,
}

pub(super) async fn run(args: TailsArgs, target: &Target) -> Result<Report, Failure> {
    let topic = target.create_topic(1, None).await?;
    let leaders = target.all_leaders(&topic, 1).await?;
    let url = format!("{}/v1/topics/{topic}/partitions/0/records", leaders[0].base);
    let started = Instant::now();
    let wanted = u64::from(args.rate) * args.seconds;
    let end = Duration::from_secs(args.seconds) + DRAIN;
    let mut tails = JoinSet::new();
    for _ in 0..args.tails.max(1) {
        // One that cannot begin is a failure of the run, not of a tail.
        let answer = open(target, &url, end + DRAIN).await?;
        tails.spawn(follow(answer, started, wanted));
    }
    let acknowledged = send_steadily(&args, target, &url, started).await;
    let mut arrived = histogram();
    let mut failed: Option<String> = None;
    let deadline = tokio::time::Instant::now() + DRAIN;
    while let Ok(Some(tail)) = tokio::time::timeout_at(deadline, tails.join_next()).await {
        let tail = tail.map_err(|error| Failure::Failed(error.to_string()))?;
        // All have the same bounds, so adding cannot fail.
        let _ = arrived.add(&tail.latencies);
        failed = failed.or(tail.failed);
    }
    let unfinished = tails.len();
    drop(tails);
    target.delete_topic(&topic).await?;
    let (acks, errors) = acknowledged?;
    if arrived.is_empty() {
        let why = failed.unwrap_or_else(|| format!("{errors} of {wanted} sends failed"));
        return Err(Failure::Failed(format!("no record arrived at any tail: {why}")));
    }
    let mut report = Report::new("tails");
    report.set("tails", args.tails);
    report.set("rate", args.rate);
    report.set("bytes", args.bytes);
    report.set("sent", wanted);
    report.set("received", arrived.len());
    report.set("unfinished", unfinished);
    report.set("errors", errors);
    report.latencies(&arrived);
    report.set("ack_p50_us", acks.value_at_quantile(0.5));
    report.set("ack_p99_us", acks.value_at_quantile(0.99));
    if let Some(why) = failed {
        report.set("first_error", why);
    }
    Ok(report)
}

/// Opens a tail at the partition's start. It has its own bound, as long as the run.
async fn open(target: &Target, url: &str, timeout: Duration) -> Result<reqwest::Response, Failure> {
    let request = target.http.get(format!("{url}?offset=earliest")).header("accept", "text/event-stream");
    let answer = request.timeout(timeout).send().await.map_err(|error| Failure::Unreachable(error.to_string()))?;
    match answer.status() {
        status if status.is_success() => Ok(answer),
        status => Err(client::refused(status, &answer.bytes().await.unwrap_or_default(), url).into()),
    }
}

/// Sends each record when it is due. The times of their acknowledgements, and how many failed.
async fn send_steadily(
    args: &TailsArgs,
    target: &Target,
    url: &str,
    started: Instant,
) -> Result<(Histogram<u64>, u64), Failure> {
    let seen = Arc::new(Mutex::new((histogram(), 0)));
    let rest = noise(args.bytes.saturating_sub(STAMP_DIGITS));
    let pause = Duration::from_secs(1) / args.rate.max(1);
    let mut due = tokio::time::interval(pause);
    let mut sending = JoinSet::new();
    for _ in 0..u64::from(args.rate) * args.seconds {
        due.tick().await;
        let (target, url, seen, rest) = (target.clone(), url.to_owned(), seen.clone(), rest.clone());
        sending.spawn(async move {
            let sent = started.elapsed();
            let value = [format!("{:0STAMP_DIGITS$}", sent.as_micros()).as_bytes(), &rest].concat();
            let result = send(&target, &url, value.into()).await;
            let mut seen = seen.lock();
            match result {
                Ok(()) => seen.0.saturating_record((started.elapsed() - sent).as_micros() as u64),
                Err(_) => seen.1 += 1,
            }
        });
        while sending.try_join_next().is_some() {}
    }
    sending.join_all().await;
    let seen = seen.lock();
    Ok((seen.0.clone(), seen.1))
}

/// Reads events until all wanted records came, or the stream ends.
async fn follow(mut answer: reqwest::Response, started: Instant, wanted: u64) -> Tail {
    let mut tail = Tail { latencies: histogram(), failed: None };
    let mut rest = Vec::new();
    while tail.latencies.len() < wanted {
        let piece = match answer.chunk().await {
            Ok(Some(piece)) => piece,
            Ok(None) => {
                tail.failed = Some("a tail ended".into());
                break;
            }
            Err(error) => {
                tail.failed = Some(error.to_string());
                break;
            }
        };
        let now_us = started.elapsed().as_micros() as u64;
        rest.extend_from_slice(&piece);
        let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
        for sent_us in rest[..end].split(|byte| *byte == b'\n').filter_map(sent_us) {
            tail.latencies.saturating_record(now_us.saturating_sub(sent_us).max(1));
        }
        rest.drain(..=end);
    }
    tail
}

/// When the record in this line was sent; `None` if there is none in it.
fn sent_us(line: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(line).ok()?.strip_prefix("data:")?;
    let (_, value) = line.split_once("\"value\":\"")?;
    value.get(..STAMP_DIGITS)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_when_its_record_was_sent() {
        let line = br#"data: {"offset":3,"timestamp":1,"key":null,"value":"000000001234abc","headers":[]}"#;
        assert_eq!(sent_us(line), Some(1234));
        for other in
            ["id: 3", "event: record", ": still here", "", r#"data: {"value":"12"}"#, r#"data: {"value":null}"#]
        {
            assert_eq!(sent_us(other.as_bytes()), None, "{other}");
        }
    }
}
