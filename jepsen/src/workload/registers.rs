//! Clients that set and read the offsets of consumer groups without members: registers, which must be linearizable.
//!
//! A few registers are in use at a time; each is given up for a new one after a while, and all are read once more at the end. It
//! knows the HTTP of groups; where there are Kafka clients, half of the clients here are such, on the same registers. It knows no fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use super::http::{Answer, ask};
use crate::client::kafka::{KafkaClient, KafkaConnector};
use crate::client::{Client as _, Connector as _, Sent};
use crate::history::{self, Key, Kind, Process};
use crate::random::Random;
use crate::recorder::Recorder;
use crate::registers::{Deed, Register};

/// The key of what the offsets are of.
const KEY: Key = Key(0);
/// How many clients there are.
const CLIENTS: usize = 4;
/// How many registers are in use at once.
const IN_USE: u64 = 2;
/// A register is given up for a new one after so many writes.
const WRITES: u64 = 120;
/// Between two operations of a client, on average.
const PAUSE: Duration = Duration::from_millis(250);
/// How long the broker may wait for a coordinator and a majority.
const BROKER_TIMEOUT_MS: u64 = 4000;
/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(6);
/// How often the last read of a register is tried, twice a second.
const LAST_READS: usize = 60;

/// What the offsets are of; the topic and its partition must exist.
#[derive(Clone, Debug)]
pub struct Subject {
    /// A topic.
    pub topic: String,
    /// One of its partitions.
    pub partition: u32,
}

#[derive(Deserialize)]
struct Offsets {
    offsets: Vec<Offset>,
}

#[derive(Deserialize)]
struct Offset {
    topic: String,
    partition: u32,
    offset: u64,
}

/// Sets and reads registers.
#[derive(Clone)]
pub struct RegisterClients {
    http: reqwest::Client,
    brokers: Arc<Vec<String>>,
    subject: Subject,
    recorder: Arc<Recorder>,
    /// Counts the writes of all: names registers, and is what is written.
    writes: Arc<AtomicU64>,
    /// Every other client speaks Kafka's protocol.
    kafka: Option<KafkaConnector>,
}

impl RegisterClients {
    /// For brokers at these URLs.
    pub fn new(brokers: Vec<String>, subject: Subject, recorder: Arc<Recorder>) -> Self {
        let http = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build().unwrap_or_default();
        Self { http, brokers: Arc::new(brokers), subject, recorder, writes: Arc::default(), kafka: None }
    }

    /// Every other client speaks Kafka's protocol. The subject must be key 0.
    pub fn with_kafka(self, kafka: KafkaConnector) -> Self {
        Self { kafka: Some(kafka), ..self }
    }

    /// All clients, until told to stop.
    pub async fn run(self, mut random: Random, stop: watch::Receiver<bool>) {
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..CLIENTS {
            let kafka = self.kafka.as_ref().filter(|_| number % 2 == 1).map(|kafka| kafka.connect(number, false));
            clients.spawn(self.clone().client(kafka, random.split(), stop.clone()));
        }
        while clients.join_next().await.is_some() {}
    }

    /// Registers that were ever in use are `0..` this.
    fn begun(&self) -> u64 {
        self.writes.load(Ordering::Relaxed) / WRITES + IN_USE
    }

    async fn client(self, mut kafka: Option<KafkaClient>, mut random: Random, mut stop: watch::Receiver<bool>) {
        let (mut process, mut broker) = (self.recorder.new_register_process(), random.below(self.brokers.len()));
        while !*stop.borrow() {
            // The newest few.
            let register = Register(self.begun() - 1 - random.below(IN_USE as usize) as u64);
            let kind = if random.percent(50) {
                self.write(&mut kafka, process, register, broker).await
            } else {
                self.read(&mut kafka, process, register, broker).await
            };
            if kind == Kind::Info {
                process = self.recorder.new_register_process();
            }
            if kind != Kind::Ok || random.percent(10) {
                broker = random.below(self.brokers.len());
                kafka.iter_mut().for_each(|kafka| kafka.use_broker(broker));
            }
            let pause = Duration::from_millis(random.between(0, 2 * PAUSE.as_millis() as u64));
            tokio::select! {
                biased;
                _ = stop.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// With everything healed: every register that was ever in use is read once more. Returns how many there were, and whether
    /// each answered.
    pub async fn last_reads(self) -> (u64, bool) {
        let (count, mut all) = (self.begun(), true);
        for register in (0..count).map(Register) {
            let process = self.recorder.new_register_process();
            let mut tries = 0;
            while self.read(&mut None, process, register, tries % self.brokers.len()).await != Kind::Ok {
                tries += 1;
                if tries == LAST_READS {
                    all = false;
                    break;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
        (count, all)
    }

    fn url(&self, register: Register, broker: usize) -> String {
        format!("{}/v1/groups/{}/offsets", self.brokers[broker], group(register))
    }

    async fn write(
        &self,
        kafka: &mut Option<KafkaClient>,
        process: Process,
        register: Register,
        broker: usize,
    ) -> Kind {
        let value = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        self.recorder.register(Kind::Invoke, process, register, Deed::Write(value), None);
        let (kind, error) = match kafka {
            Some(kafka) => match kafka.commit_offset(&group(register), KEY, history::Offset(value)).await {
                Sent::At(_) => (Kind::Ok, None),
                Sent::Failed(why) => (Kind::Fail, Some(why)),
                Sent::Unknown(why) => (Kind::Info, Some(why)),
            },
            None => self.put(register, broker, value).await,
        };
        self.recorder.register(kind, process, register, Deed::Write(value), error);
        kind
    }

    async fn put(&self, register: Register, broker: usize, value: u64) -> (Kind, Option<String>) {
        let Subject { topic, partition } = &self.subject;
        let body = json!({ "offsets": [{ "topic": topic, "partition": partition, "offset": value, "metadata": "" }] });
        let url = format!("{}?timeout_ms={BROKER_TIMEOUT_MS}", self.url(register, broker));
        let request = self.http.put(url).header("content-type", "application/json").body(body.to_string());
        match ask(request).await {
            Answer::Status(200..=299, _) => (Kind::Ok, None),
            refused if refused.had_no_effect() => (Kind::Fail, Some(refused.excerpt())),
            other => (Kind::Info, Some(other.excerpt())),
        }
    }

    async fn read(&self, kafka: &mut Option<KafkaClient>, process: Process, register: Register, broker: usize) -> Kind {
        self.recorder.register(Kind::Invoke, process, register, Deed::Read(None), None);
        let found = match kafka {
            Some(kafka) => {
                kafka.committed_offset(&group(register), KEY).await.map(|found| found.map(|offset| offset.0))
            }
            None => self.get(register, broker).await,
        };
        let (kind, value, error) = match found {
            Ok(value) => (Kind::Ok, value, None),
            Err(why) => (Kind::Fail, None, Some(why)),
        };
        self.recorder.register(kind, process, register, Deed::Read(value), error);
        kind
    }

    async fn get(&self, register: Register, broker: usize) -> Result<Option<u64>, String> {
        let request = self.http.get(format!("{}?timeout_ms={BROKER_TIMEOUT_MS}", self.url(register, broker)));
        let answer = ask(request).await;
        let found = match &answer {
            Answer::Status(200, body) => serde_json::from_str::<Offsets>(body).ok(),
            _ => None,
        };
        let found = found.ok_or_else(|| answer.excerpt())?;
        let ours = |found: &&Offset| found.topic == self.subject.topic && found.partition == self.subject.partition;
        Ok(found.offsets.iter().find(ours).map(|found| found.offset))
    }
}

/// The group whose offset a register is.
fn group(register: Register) -> String {
    format!("register-{}", register.0)
}
