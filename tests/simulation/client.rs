//! The client: producers with and without sequences, those who write once and are gone, readers, and readers of the confirmed end, all over HTTP.
//!
//! It comes to its end in three steps (`Phase`): when the faults are over it lets everyone finish and writes to each partition once
//! more, durable on every replica; after the last black-out it reads everything.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join_all, join3};
use pontoon::api::{ErrorBody, ProduceAnswer, ProducerAnswer};
use pontoon::error::WriteOutcome;
use pontoon::record_batch::{BatchLimits, NewRecord, ProducerSequence, RecordBatch, RecordBatchBuilder};
use pontoon_raft::runtime::random_u64;
use tokio::time::sleep;

use crate::broken::Variant;
use crate::cluster::{Phase, World, http_address};
use crate::event::{Attempt, Event, Place};
use crate::http::{Answer, Ask, Failed, ask};
use crate::machines::BROKERS;
use crate::net::TracedNetwork;

/// The topic, and its partitions.
pub(crate) const TOPIC: &str = "t";
pub(crate) const PARTITIONS: u32 = 3;
/// Producers of each partition: so many with sequences, and one without.
const SEQUENCED: u32 = 2;
/// The number of the one that writes once more when the faults are over.
const PROBER: u32 = SEQUENCED + 1;
/// The number of those who write one batch under an id of their own, and do not come back: their ids expire.
const PASSER_BY: u32 = PROBER + 1;
/// How long the broker may take, and how long the client waits for it.
const TIMEOUT_MS: u64 = 1500;
const PATIENCE: Duration = Duration::from_millis(2000);
const OCTETS: &str = "application/octet-stream";

/// Whether the client's producer of this number has sequences.
pub(crate) fn has_sequences(producer: u32) -> bool {
    producer < SEQUENCED
}

/// The client's producers that have sequences.
pub(crate) fn sequenced() -> impl Iterator<Item = u32> {
    0..SEQUENCED
}

/// Whether the client's producer of this number is many, who pass by. Their sequence 0 is a new producer's again once they have
/// expired, also where a broker that passes a request on repeats it.
pub(crate) fn passes_by(producer: u32) -> bool {
    producer == PASSER_BY
}

/// A client that remembers whom to ask.
#[derive(Clone)]
struct Client {
    world: World,
    network: TracedNetwork,
    broker: u32,
}

/// What came of a produce.
enum Produced {
    At(Place),
    /// It has not happened and will not.
    Refused,
    Unknown,
    /// An answer that a sound broker would not give.
    Wrong(String),
}

/// The client's process.
pub(crate) async fn run(world: World) -> turmoil::Result {
    let network = TracedNetwork::new(world.trace.clone(), "client".into()).quiet();
    let client = Client { world: world.clone(), network, broker: 1 };
    client.clone().create_topic().await;
    let producers = (0..PARTITIONS)
        .flat_map(|partition| (0..=SEQUENCED).chain([PASSER_BY]).map(move |producer| (partition, producer)));
    let producers = producers.map(|(partition, producer)| client.clone().produce(partition, producer));
    let readers = (0..PARTITIONS).map(|partition| client.clone().read(partition));
    let tails = (0..PARTITIONS).map(|partition| client.clone().tail(partition));
    let probe = async {
        join3(join_all(producers), join_all(readers), join_all(tails)).await;
        join_all((0..PARTITIONS).map(|partition| client.clone().probe(partition))).await;
        world.arrived(Phase::Finish);
        world.until(|world| world.phase() >= Phase::ReadAll).await;
        join_all((0..PARTITIONS).map(|partition| client.clone().read_all(partition))).await;
        world.arrived(Phase::ReadAll);
    };
    probe.await;
    // The process stays: a host that ends would be another event.
    std::future::pending().await
}

fn milliseconds(from: u64, to: u64) -> Duration {
    Duration::from_millis(from + random_u64() % (to - from))
}

fn records_path(partition: u32, query: String) -> String {
    format!("/v1/topics/{TOPIC}/partitions/{partition}/records?{query}")
}

impl Client {
    fn note(&self, what: impl std::fmt::Display) {
        self.world.trace.note("client", what);
    }

    fn next_broker(&mut self) {
        self.broker = self.broker % BROKERS + 1;
    }

    /// Asks the broker that it thinks best; follows one redirection a time.
    async fn ask(&mut self, question: Ask<'_>) -> Result<Answer, Failed> {
        let answer = ask(&self.network, &http_address(self.broker), question, PATIENCE).await;
        match &answer {
            Ok(Answer { status: 307, location, .. }) => {
                let named = (1..=BROKERS)
                    .find(|broker| location.as_ref().is_some_and(|location| location.contains(&http_address(*broker))));
                self.broker = named.unwrap_or(self.broker);
            }
            Ok(Answer { status: 200..300, .. }) => {}
            _ => self.next_broker(),
        }
        answer
    }

    async fn create_topic(mut self) {
        // Retention by time goes by the wall's clock, which no seed owns.
        let config = r#"{"retention.ms":"-1"}"#;
        let body = format!(r#"{{"name":"{TOPIC}","partitions":{PARTITIONS},"replicas":{BROKERS},"config":{config}}}"#);
        loop {
            let kind = Some(("content-type", "application/json"));
            let path = "/v1/topics".to_owned();
            let answer = self.ask(Ask { method: "POST", path, kind, body: body.clone().into() }).await;
            if answer.is_ok_and(|answer| answer.status == 201 || answer.status == 409) {
                return self.note("created the topic");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn producer_id(&mut self) -> i64 {
        loop {
            let path = "/v1/producers".to_owned();
            let answer = self.ask(Ask { method: "POST", path, kind: None, body: Bytes::new() }).await;
            let answer = answer.ok().filter(|answer| answer.status == 201);
            if let Some(answer) = answer.and_then(|answer| serde_json::from_slice::<ProducerAnswer>(&answer.body).ok())
            {
                return answer.producer_id;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn produce(mut self, partition: u32, producer: u32) {
        self.broker = partition % BROKERS + 1;
        let id = if has_sequences(producer) { Some(self.producer_id().await) } else { None };
        let own_id = || passes_by(producer).then(|| (1 << 40) + (random_u64() >> 24) as i64);
        let mut sequence = 0;
        for batch in 0.. {
            if self.world.phase() >= Phase::Finish {
                return;
            }
            let records = 1 + batch % 3;
            let of = Attempt { partition, producer, batch, attempt: 0 };
            let first = own_id().map(|producer_id| ProducerSequence { producer_id, epoch: 0, sequence: 0 });
            let by = id.map(|producer_id| ProducerSequence { producer_id, epoch: 0, sequence }).or(first);
            if !self.deliver(of, by, records).await {
                return;
            }
            sequence += records as i32;
            sleep(milliseconds(20, 160)).await;
        }
    }

    /// Tries until it knows. A producer without sequences, or who passes by, gives up once it does not. `false`: no sense in going on.
    async fn deliver(&mut self, of: Attempt, by: Option<ProducerSequence>, records: u32) -> bool {
        let filler = if random_u64().is_multiple_of(24) { 9000 } else { (random_u64() % 300) as usize };
        for number in 1.. {
            let attempt = Attempt { attempt: number, ..of };
            let answer = self.attempt(attempt, by, records, filler).await;
            match answer {
                Produced::At(at) => {
                    self.note(format_args!("ack {attempt:?} {at:?}"));
                    self.world.ledger.tell(Event::Acknowledged { attempt, at });
                    return true;
                }
                Produced::Refused => self.world.ledger.tell(Event::Refused { attempt }),
                Produced::Unknown => {
                    self.note(format_args!("unknown {attempt:?}"));
                    if !has_sequences(of.producer) {
                        return true;
                    }
                }
                Produced::Wrong(why) => {
                    self.world.ledger.broken("exact_dedup", format!("{attempt:?} was answered {why}"));
                    return false;
                }
            }
            sleep(milliseconds(10, 60)).await;
        }
        true
    }

    async fn attempt(
        &mut self,
        attempt: Attempt,
        by: Option<ProducerSequence>,
        records: u32,
        filler: usize,
    ) -> Produced {
        let body = batch_of(attempt, by, records, filler, self.world.trace.now_ms() as i64);
        let early = self.world.variant == Some(Variant::AnswerBeforeCommit);
        let acks = if early {
            "leader"
        } else if attempt.batch % 8 == 7 {
            "every"
        } else {
            "all"
        };
        self.send(attempt.partition, acks, body, by.is_some()).await
    }

    async fn send(&mut self, partition: u32, acks: &str, body: Bytes, sequenced: bool) -> Produced {
        let path = records_path(partition, format!("acks={acks}&timeout_ms={TIMEOUT_MS}"));
        match self.ask(Ask { method: "POST", path, kind: Some(("content-type", OCTETS)), body }).await {
            Ok(Answer { status: 200, body, .. }) => match serde_json::from_slice::<ProduceAnswer>(&body) {
                Ok(ProduceAnswer { base_offset, last_offset, leader_epoch: epoch, duplicate, .. }) => {
                    Produced::At(Place { base_offset, last_offset, epoch, duplicate })
                }
                Err(error) => Produced::Wrong(format!("200 without an answer: {error}")),
            },
            // A broker that led, tried, and then learned of another leader says so only where a repetition does no harm.
            Ok(Answer { status: 307, .. }) if sequenced => Produced::Unknown,
            Ok(Answer { status: 307, .. }) => Produced::Refused,
            Ok(answer) => refusal(&answer),
            Err(Failed::NotSent) => Produced::Refused,
            Err(Failed::Lost) => Produced::Unknown,
        }
    }

    /// Reads what is committed, from the beginning and on.
    async fn read(mut self, partition: u32) {
        let mut next = 0;
        while self.world.phase() < Phase::Finish {
            sleep(milliseconds(100, 400)).await;
            if let Some((read, start, _)) = self.fetch(partition, next, "committed").await {
                next = read.max(start);
            }
        }
    }

    /// What a confirmed end shows is never older than what was acknowledged before it was asked for.
    async fn tail(mut self, partition: u32) {
        while self.world.phase() < Phase::Finish {
            sleep(milliseconds(80, 400)).await;
            let known = self.world.ledger.acknowledged_end(partition);
            let path = records_path(partition, "offset=latest&consistency=linearizable&timeout_ms=1000".into());
            let asked = Ask { method: "GET", path, kind: Some(("accept", OCTETS)), body: Bytes::new() };
            if let Ok(Answer { status: 200, high_watermark: end, .. }) = self.ask(asked).await {
                self.note(format_args!("end of {partition}: {end}, known {known}"));
                self.world.ledger.tell(Event::Tail { partition, end, known });
            }
        }
    }

    /// Writes once more, durable on every replica.
    async fn probe(mut self, partition: u32) {
        for batch in 0.. {
            let attempt = Attempt { partition, producer: PROBER, batch, attempt: 1 };
            let body = batch_of(attempt, None, 1, 0, 0);
            if let Produced::At(at) = self.send(partition, "every", body, false).await {
                self.world.ledger.tell(Event::Acknowledged { attempt, at });
                return self.note(format_args!("partition {partition} is writable"));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Reads from the oldest readable offset to the confirmed end.
    async fn read_all(mut self, partition: u32) {
        let (mut next, mut log_start) = (0, None);
        self.world.ledger.tell(Event::ReadingAll { partition });
        loop {
            match self.fetch(partition, next, "linearizable").await {
                Some((read, start, end)) => {
                    // The next leader's log may begin later; what was to be kept is demanded of it all the same.
                    let log_start = match log_start {
                        Some(known) if start <= next => known,
                        _ => *log_start.insert(start),
                    };
                    next = read.max(start);
                    if next >= end {
                        self.note(format_args!("read {partition}: {log_start} to {end}"));
                        return self.world.ledger.tell(Event::ReadAll { partition, log_start, end });
                    }
                }
                None => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// One fetch: the next offset, the log start, the high watermark.
    async fn fetch(&mut self, partition: u32, from: u64, consistency: &str) -> Option<(u64, u64, u64)> {
        let path = records_path(partition, format!("offset={from}&consistency={consistency}&timeout_ms=1000"));
        let asked = Ask { method: "GET", path, kind: Some(("accept", OCTETS)), body: Bytes::new() };
        let answer = self.ask(asked).await.ok()?;
        if answer.status == 416 {
            let body: ErrorBody = serde_json::from_slice(&answer.body).ok()?;
            let (start, end) = (body.log_start_offset?, body.high_watermark?);
            return (from < start).then_some((start, start, end));
        }
        if answer.status != 200 {
            return None;
        }
        let offsets = self.take(partition, from, answer.body);
        let next = offsets.last().map_or(from, |last| last + 1);
        self.world.ledger.tell(Event::Answered { partition, from, log_start: answer.log_start, offsets: &offsets });
        Some((next, answer.log_start, answer.high_watermark))
    }

    /// Tells of every record that was read; their offsets.
    fn take(&self, partition: u32, from: u64, mut body: Bytes) -> Vec<u64> {
        let mut offsets = Vec::new();
        let wrong = |offsets: &[u64], why: String| {
            let why = format!("partition {partition}, read from {from}, after {:?}: {why}", offsets.last());
            self.world.ledger.broken("acknowledged_is_readable", why);
        };
        while body.len() >= 12 {
            let bytes = 12 + u32::from_be_bytes([body[8], body[9], body[10], body[11]]) as usize;
            let batch = RecordBatch::check(body.split_to(bytes.min(body.len())), &BatchLimits::default());
            let records = batch
                .as_ref()
                .map_err(ToString::to_string)
                .and_then(|batch| batch.records(1 << 20).map_err(|error| error.to_string()));
            let records = match records {
                Ok(records) => records,
                Err(why) => {
                    wrong(&offsets, format!("what is no batch: {why}"));
                    return offsets;
                }
            };
            for record in records {
                let named = record.map_err(|error| error.to_string()).and_then(|record| {
                    let named = record.value.as_deref().and_then(Attempt::of_value);
                    named.map(|named| (record.offset, named)).ok_or("nobody wrote that".to_owned())
                });
                match named {
                    // The first batch may begin below what was asked for.
                    Ok((offset, _)) if offset < from => {}
                    Ok((offset, (attempt, record))) => {
                        self.world.ledger.tell(Event::Read { partition, offset, attempt, record });
                        offsets.push(offset);
                    }
                    Err(why) => {
                        wrong(&offsets, format!("what is no record: {why}"));
                        return offsets;
                    }
                }
            }
        }
        offsets
    }
}

fn batch_of(attempt: Attempt, by: Option<ProducerSequence>, records: u32, filler: usize, timestamp: i64) -> Bytes {
    let mut builder = RecordBatchBuilder::new(BatchLimits::default());
    for record in 0..records {
        let value = Some(attempt.value(record, filler / records as usize).into());
        builder.push(&NewRecord { timestamp, value, ..NewRecord::default() }).expect("a small record");
    }
    builder.build(by).expect("a batch").into_bytes()
}

fn refusal(answer: &Answer) -> Produced {
    let Ok(body) = serde_json::from_slice::<ErrorBody>(&answer.body) else {
        return Produced::Wrong(format!("{} without an error", answer.status));
    };
    match (body.outcome, body.retriable) {
        (WriteOutcome::None, true) => Produced::Refused,
        (WriteOutcome::None, false) => Produced::Wrong(format!("{}: {}", body.error, body.message)),
        _ => Produced::Unknown,
    }
}
