//! Clients that set and read the offsets of consumer groups without members: registers, which must be linearizable.
//!
//! A few registers are in use at a time; each is given up for a new one after a while, and all are read once more at the end. It
//! knows the HTTP of groups, and no fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use super::http::{Answer, ask};
use crate::history::{Kind, Process};
use crate::random::Random;
use crate::recorder::Recorder;
use crate::registers::{Deed, Register};

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
}

impl RegisterClients {
    /// For brokers at these URLs.
    pub fn new(brokers: Vec<String>, subject: Subject, recorder: Arc<Recorder>) -> Self {
        let http = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build().unwrap_or_default();
        Self { http, brokers: Arc::new(brokers), subject, recorder, writes: Arc::default() }
    }

    /// All clients, until told to stop.
    pub async fn run(self, mut random: Random, stop: watch::Receiver<bool>) {
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(self.clone().client(random.split(), stop.clone()));
        }
        while clients.join_next().await.is_some() {}
    }

    /// Registers that were ever in use are `0..` this.
    fn begun(&self) -> u64 {
        self.writes.load(Ordering::Relaxed) / WRITES + IN_USE
    }

    async fn client(self, mut random: Random, mut stop: watch::Receiver<bool>) {
        let (mut process, mut broker) = (self.recorder.new_register_process(), random.below(self.brokers.len()));
        while !*stop.borrow() {
            // The newest few.
            let register = Register(self.begun() - 1 - random.below(IN_USE as usize) as u64);
            let kind = if random.percent(50) {
                self.write(process, register, broker).await
            } else {
                self.read(process, register, broker).await
            };
            if kind == Kind::Info {
                process = self.recorder.new_register_process();
            }
            if kind != Kind::Ok || random.percent(10) {
                broker = random.below(self.brokers.len());
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
            while self.read(process, register, tries % self.brokers.len()).await != Kind::Ok {
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
        format!("{}/v1/groups/register-{}/offsets", self.brokers[broker], register.0)
    }

    async fn write(&self, process: Process, register: Register, broker: usize) -> Kind {
        let value = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        let Subject { topic, partition } = &self.subject;
        let body = json!({ "offsets": [{ "topic": topic, "partition": partition, "offset": value, "metadata": "" }] });
        let url = format!("{}?timeout_ms={BROKER_TIMEOUT_MS}", self.url(register, broker));
        let request = self.http.put(url).header("content-type", "application/json").body(body.to_string());
        self.recorder.register(Kind::Invoke, process, register, Deed::Write(value), None);
        let answer = ask(request).await;
        let (kind, error) = match answer {
            Answer::Status(200..=299, _) => (Kind::Ok, None),
            refused if refused.had_no_effect() => (Kind::Fail, Some(refused.excerpt())),
            other => (Kind::Info, Some(other.excerpt())),
        };
        self.recorder.register(kind, process, register, Deed::Write(value), error);
        kind
    }

    async fn read(&self, process: Process, register: Register, broker: usize) -> Kind {
        let request = self.http.get(format!("{}?timeout_ms={BROKER_TIMEOUT_MS}", self.url(register, broker)));
        self.recorder.register(Kind::Invoke, process, register, Deed::Read(None), None);
        let answer = ask(request).await;
        let found = match &answer {
            Answer::Status(200, body) => serde_json::from_str::<Offsets>(body).ok(),
            _ => None,
        };
        let Some(found) = found else {
            self.recorder.register(Kind::Fail, process, register, Deed::Read(None), Some(answer.excerpt()));
            return Kind::Fail;
        };
        let ours = |found: &&Offset| found.topic == self.subject.topic && found.partition == self.subject.partition;
        let value = found.offsets.iter().find(ours).map(|found| found.offset);
        self.recorder.register(Kind::Ok, process, register, Deed::Read(value), None);
        Kind::Ok
    }
}
