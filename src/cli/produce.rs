//! `pontoon produce`: lines of standard input become records, each exactly once and in order within its partition.
//!
//! Every partition has one sender with its own sequence, and one batch in flight: a batch is repeated with the same sequence
//! until it is acknowledged, so a broker that is killed neither loses nor doubles a line.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use futures_util::future::join_all;
use indicatif::ProgressBar;
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::api::ProducerAnswer;
use crate::cli::{Failure, output, progress};
use crate::client::{Client, ClientError, Stamp};
use crate::error::WriteOutcome;

/// A batch is sent at this size, or when no more input is there.
const BATCH_BYTES: usize = 256 << 10;
/// Most lines in a batch.
const BATCH_LINES: usize = 10_000;
/// Batches that may wait behind the one in flight, per partition.
const QUEUE: usize = 2;
/// Lines read ahead.
const LINES_AHEAD: usize = 4096;
/// A longer line is no line.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// Flags of `produce`.
#[derive(Debug, Args)]
pub(super) struct ProduceArgs {
    /// The topic; it must exist
    topic: String,
    /// A line is key, this, value [default: no keys]
    #[arg(long, value_name = "C")]
    key_separator: Option<String>,
    /// Send everything to this partition [default: by key; without keys, one batch after the other round robin]
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
}

/// Reads, sends, and says how many lines were acknowledged.
pub(super) async fn run(args: ProduceArgs, client: &Client, as_json: bool) -> Result<(), Failure> {
    if args.key_separator.as_deref() == Some("") {
        return Err(Failure::Usage("--key-separator is empty".into()));
    }
    let partitions = client.topic(&args.topic).await?.partitions.len() as u32;
    if let Some(partition) = args.partition.filter(|partition| *partition >= partitions) {
        return Err(Failure::NotFound(format!("{} has {partitions} partitions, no {partition}", args.topic)));
    }
    let producer = client.create_producer().await?;
    let began = Instant::now();
    let acknowledged = Arc::new(AtomicU64::new(0));
    let progress = progress::line(None, "{spinner} {human_pos} lines acknowledged, {rate}");
    let result = {
        let sending = send_all(&args, client, producer, partitions, &acknowledged);
        let ticking = tick(&progress, &acknowledged);
        tokio::select! { result = sending => result, never = ticking => match never {} }
    };
    progress.finish_and_clear();
    let count = acknowledged.load(Ordering::Relaxed);
    let seconds = began.elapsed().as_secs_f64();
    match result {
        Ok(()) => {
            if as_json {
                output::print_json(&json!({"acknowledged": count, "seconds": seconds}))?;
            } else {
                output::say(&format!("{count} lines acknowledged in {seconds:.1} s"));
            }
            Ok(())
        }
        Err(stop) => Err(stop.into_failure(count)),
    }
}

async fn tick(progress: &ProgressBar, acknowledged: &AtomicU64) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        progress.set_position(acknowledged.load(Ordering::Relaxed));
    }
}

/// Why it ended early.
enum Stop {
    Input(String),
    Server(ClientError),
}

impl Stop {
    /// With what is known of the lines before.
    fn into_failure(self, acknowledged: u64) -> Failure {
        let so_far = format!("{acknowledged} lines were acknowledged before");
        match self {
            Self::Input(why) if acknowledged == 0 => Failure::Failed(why),
            Self::Input(why) => Failure::Unsure(format!("{why}; {so_far}")),
            Self::Server(error) if error.outcome() != WriteOutcome::None => {
                Failure::Unsure(format!("{error}; {so_far}, the next ones may have been written"))
            }
            Self::Server(error) if acknowledged > 0 => Failure::Unsure(format!("{error}; {so_far}")),
            Self::Server(error) => error.into(),
        }
    }
}

/// Lines on their way to one partition, as the JSON body they will be.
#[derive(Default)]
struct Batch {
    body: String,
    lines: u32,
}

impl Batch {
    fn push(&mut self, key: Option<&[u8]>, value: &[u8]) {
        self.body.push_str(if self.lines == 0 { "{\"records\":[{" } else { ",{" });
        if let Some(key) = key {
            push_field(&mut self.body, "key", key);
            self.body.push(',');
        }
        push_field(&mut self.body, "value", value);
        self.body.push('}');
        self.lines += 1;
    }

    fn full(&self) -> bool {
        self.body.len() >= BATCH_BYTES || self.lines as usize >= BATCH_LINES
    }

    fn into_body(mut self) -> Bytes {
        self.body.push_str("]}");
        self.body.into()
    }
}

fn push_field(body: &mut String, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => *body += &format!("\"{name}\":{}", serde_json::Value::from(text)),
        Err(_) => *body += &format!("\"{name}_base64\":\"{}\"", STANDARD.encode(bytes)),
    }
}

async fn send_all(
    args: &ProduceArgs,
    client: &Client,
    producer: ProducerAnswer,
    partitions: u32,
    acknowledged: &Arc<AtomicU64>,
) -> Result<(), Stop> {
    // One sender's failure stops the reader and, through their closed queues, the other senders.
    let stopped = watch::Sender::new(false);
    let (queues, senders): (Vec<_>, Vec<_>) = (0..partitions)
        .map(|partition| {
            let (queue, batches) = mpsc::channel(QUEUE);
            let sender = Sender { topic: &args.topic, partition, client, producer, acknowledged };
            (queue, sender.run(batches, &stopped))
        })
        .unzip();
    let (lines, reading) = read_lines(tokio::io::stdin());
    let spreading = async {
        let mut stop = stopped.subscribe();
        let spread = Spread { args, queues, waiting: BTreeMap::new(), turn: 0 };
        tokio::select! {
            result = spread.run(lines) => result,
            _ = stop.wait_for(|stopped| *stopped) => Ok(()),
        }
    };
    let (spread, sent) = tokio::join!(spreading, join_all(senders));
    reading.abort();
    match worst(sent) {
        Some(error) => Err(Stop::Server(error)),
        None => spread,
    }
}

/// Of several failures the one to be told: that something may have been written counts for more than that something was not.
fn worst(sent: Vec<Result<(), ClientError>>) -> Option<ClientError> {
    let mut failures: Vec<ClientError> = sent.into_iter().filter_map(Result::err).collect();
    let unsure = failures.iter().position(|error| error.outcome() != WriteOutcome::None);
    (!failures.is_empty()).then(|| failures.swap_remove(unsure.unwrap_or(0)))
}

/// Reads lines in a task of its own, so that waiting for input does not hold back what is there.
fn read_lines(
    input: impl tokio::io::AsyncRead + Send + Unpin + 'static,
) -> (mpsc::Receiver<Result<Vec<u8>, String>>, tokio::task::JoinHandle<()>) {
    let (tx, rx) = mpsc::channel(LINES_AHEAD);
    let task = tokio::spawn(async move {
        let mut input = BufReader::with_capacity(256 << 10, input);
        for number in 1u64.. {
            let line = match read_line(&mut input, number).await {
                Ok(Some(line)) => Ok(line),
                Ok(None) => return,
                Err(why) => Err(why),
            };
            let last = line.is_err();
            if tx.send(line).await.is_err() || last {
                return;
            }
        }
    });
    (rx, task)
}

/// One line without its newline; the last one may end without.
async fn read_line(input: &mut (impl AsyncBufRead + Unpin), number: u64) -> Result<Option<Vec<u8>>, String> {
    let mut line = Vec::new();
    let mut limited = input.take(LINE_BYTES_MAX);
    let read = limited.read_until(b'\n', &mut line).await.map_err(|error| format!("line {number}: {error}"))?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if read as u64 == LINE_BYTES_MAX {
        return Err(format!("line {number} is longer than {LINE_BYTES_MAX} bytes"));
    }
    Ok(Some(line))
}

/// Puts lines into batches and batches into their partitions' queues.
struct Spread<'a> {
    args: &'a ProduceArgs,
    queues: Vec<mpsc::Sender<Batch>>,
    waiting: BTreeMap<u32, Batch>,
    /// Whose turn it is among the partitions, without keys.
    turn: u32,
}

impl Spread<'_> {
    async fn run(mut self, mut lines: mpsc::Receiver<Result<Vec<u8>, String>>) -> Result<(), Stop> {
        let mut number = 0u64;
        loop {
            let line = match lines.try_recv() {
                Ok(line) => line,
                Err(_) => {
                    // Nothing more is there at the moment: what waits goes out.
                    self.flush().await;
                    match lines.recv().await {
                        Some(line) => line,
                        None => return Ok(()),
                    }
                }
            };
            number += 1;
            let added = match line {
                Ok(line) => self.add(&line, number).await,
                Err(why) => Err(why),
            };
            if let Err(why) = added {
                self.flush().await;
                return Err(Stop::Input(why));
            }
        }
    }

    async fn add(&mut self, line: &[u8], number: u64) -> Result<(), String> {
        let (key, value) = match &self.args.key_separator {
            None => (None, line),
            Some(separator) => {
                let (key, value) = split_once(line, separator.as_bytes())
                    .ok_or_else(|| format!("line {number} has no key separator {separator:?}"))?;
                (Some(key), value)
            }
        };
        let count = self.queues.len() as u32;
        let partition = match (self.args.partition, key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_of(key, count),
            (None, None) => self.turn,
        };
        let batch = self.waiting.entry(partition).or_default();
        batch.push(key, value);
        if batch.full() {
            self.send(partition).await;
        }
        Ok(())
    }

    async fn flush(&mut self) {
        while let Some(partition) = self.waiting.keys().next().copied() {
            self.send(partition).await;
        }
    }

    async fn send(&mut self, partition: u32) {
        if let Some(batch) = self.waiting.remove(&partition) {
            // A queue is closed only by its sender's failure, which ends everything.
            let _ = self.queues[partition as usize].send(batch).await;
            self.turn = (self.turn + 1) % self.queues.len() as u32;
        }
    }
}

fn split_once<'a>(line: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = line.windows(separator.len()).position(|window| window == separator)?;
    Some((&line[..at], &line[at + separator.len()..]))
}

/// The partition that Kafka's own clients give a key.
fn partition_of(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions
}

/// MurmurHash2, 32 bits, seed 0x9747b28c, as in Kafka's `Utils.murmur2`.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        for (at, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// Sends one partition's batches, one after the other.
struct Sender<'a> {
    topic: &'a str,
    partition: u32,
    client: &'a Client,
    producer: ProducerAnswer,
    acknowledged: &'a AtomicU64,
}

impl Sender<'_> {
    async fn run(self, mut batches: mpsc::Receiver<Batch>, stopped: &watch::Sender<bool>) -> Result<(), ClientError> {
        let mut stop = stopped.subscribe();
        let mut sequence = 0;
        loop {
            let batch = tokio::select! {
                batch = batches.recv() => batch,
                // What is in flight elsewhere is still awaited; nothing new is begun.
                _ = stop.wait_for(|stopped| *stopped) => None,
            };
            let Some(batch) = batch else { return Ok(()) };
            let lines = batch.lines;
            let stamp = Some(Stamp { producer: self.producer, sequence });
            let body = batch.into_body();
            let sent = self.client.produce(self.topic, self.partition, "application/json", body, stamp).await;
            if let Err(error) = sent {
                stopped.send_replace(true);
                return Err(error);
            }
            self.acknowledged.fetch_add(u64::from(lines), Ordering::Relaxed);
            sequence = Stamp::next_sequence(sequence, lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ErrorBody;
    use crate::error::{Code, Error};

    #[test]
    fn keys_go_where_kafkas_clients_send_them() {
        // From Kafka's UtilsTest.testMurmur2.
        let known: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ];
        for (key, hash) in known {
            assert_eq!(murmur2(key) as i32, hash, "{}", String::from_utf8_lossy(key));
        }
        assert_eq!(partition_of(b"21", 1), 0);
    }

    #[test]
    fn a_batch_is_a_json_body_whatever_the_bytes() {
        let mut batch = Batch::default();
        batch.push(None, b"say \"hi\"\t\\");
        batch.push(Some(b"k"), b"\xff");
        assert_eq!(batch.lines, 2);
        let mut seen = Vec::new();
        let body = batch.into_body();
        let mut take = |record: crate::api::records::Record<'_>| {
            seen.push((record.key.map(|key| key.into_owned()), record.value.unwrap().into_owned()));
            Ok(())
        };
        crate::api::records::parse_json(&body, &mut take).unwrap();
        assert_eq!(seen, [(None, b"say \"hi\"\t\\".to_vec()), (Some(b"k".to_vec()), vec![0xff])]);
    }

    #[tokio::test]
    async fn lines_are_what_stands_between_newlines() {
        let (mut lines, _) = read_lines(&b"one\n\ntwo\r\nlast"[..]);
        let mut seen = Vec::new();
        while let Some(line) = lines.recv().await {
            seen.push(String::from_utf8(line.unwrap()).unwrap());
        }
        assert_eq!(seen, ["one", "", "two\r", "last"]);
    }

    #[tokio::test]
    async fn lines_without_keys_fill_one_partition_after_the_other() {
        let args = ProduceArgs { topic: "t".into(), key_separator: None, partition: None };
        let (queues, mut batches): (Vec<_>, Vec<_>) = (0..2).map(|_| mpsc::channel(9)).unzip();
        let (tx, rx) = mpsc::channel(9);
        let spread = Spread { args: &args, queues, waiting: BTreeMap::new(), turn: 0 };
        let feed = async move {
            for line in ["a", "b", "c"] {
                tx.send(Ok(line.as_bytes().to_vec())).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (result, ()) = tokio::join!(spread.run(rx), feed);
        assert!(result.is_ok());
        let mut total = 0;
        for queue in &mut batches {
            let mut count = 0;
            while let Some(batch) = queue.recv().await {
                count += batch.lines;
            }
            assert!(count > 0);
            total += count;
        }
        assert_eq!(total, 3);
    }

    #[tokio::test]
    async fn a_line_without_its_key_is_named() {
        let args = ProduceArgs { topic: "t".into(), key_separator: Some("::".into()), partition: None };
        let (queue, mut batches) = mpsc::channel(9);
        let mut spread = Spread { args: &args, queues: vec![queue], waiting: BTreeMap::new(), turn: 0 };
        spread.add(b"k::v::w", 1).await.unwrap();
        assert!(spread.add(b"kv", 2).await.unwrap_err().contains("line 2"));
        spread.flush().await;
        assert!(batches.recv().await.unwrap().body.contains(r#""key":"k","value":"v::w""#));
    }

    #[test]
    fn an_end_halfway_says_how_far_it_came() {
        let refused = |code| ClientError::Refused { status: 503, body: ErrorBody::from(&Error::new(code, "m")) };
        let verdict = |stop: Stop, count| stop.into_failure(count).verdict();
        assert_eq!(verdict(Stop::Server(refused(Code::NoLeader)), 0).0, 1);
        let (status, why) = verdict(Stop::Server(refused(Code::NoLeader)), 7);
        assert!(status == 5 && why.unwrap().contains("7 lines were acknowledged"));
        assert_eq!(verdict(Stop::Server(refused(Code::OutcomeUnknown)), 0).0, 5);
        assert_eq!(verdict(Stop::Server(ClientError::Unreachable(String::new())), 0).0, 3);
        assert_eq!(verdict(Stop::Input("x".into()), 0).0, 1);
        assert_eq!(verdict(Stop::Input("x".into()), 1).0, 5);
    }
}
