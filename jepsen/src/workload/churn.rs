//! Topics come and go while everything else goes on: created, written, read, deleted, created again under the same name.
//!
//! It is no part of the history: its claims are few, and it holds the brokers to them itself. What was acknowledged to a topic that is
//! there is read back by every linearizable read; a topic that was created anew shows nothing of the one before; a name whose topic was deleted
//! is free. A name whose fate is unknown is never used again. It knows the HTTP of topics, and no fault.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use super::http::{Answer, ask};
use crate::random::Random;
use crate::recorder::Recorder;
use crate::timeline::Entry;

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Between two steps, on average.
const PAUSE: Duration = Duration::from_millis(400);
/// How many names are in use at once.
const NAMES: usize = 2;
/// How often the last look at a topic is tried, once a second.
const LAST_LOOKS: usize = 30;

/// A topic's name and what is known of it.
struct Name {
    name: String,
    /// Counts the topics of this name.
    incarnation: u64,
    /// It is there, with these records acknowledged.
    there: Option<BTreeSet<String>>,
}

#[derive(Deserialize)]
struct Fetched {
    high_watermark: u64,
    next_offset: u64,
    records: Vec<Record>,
}

#[derive(Deserialize)]
struct Record {
    value: Option<String>,
}

/// Makes topics come and go.
pub struct Churn {
    http: reqwest::Client,
    brokers: Vec<String>,
    recorder: Arc<Recorder>,
    random: Random,
    names: Vec<Name>,
    /// Makes names and records that never were.
    next: u64,
    /// Topics that came, and that went.
    counts: (u64, u64),
}

impl Churn {
    /// For brokers at these URLs.
    pub fn new(brokers: Vec<String>, recorder: Arc<Recorder>, random: Random) -> Self {
        let http = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build().unwrap_or_default();
        Self { http, brokers, recorder, random, names: Vec::new(), next: 0, counts: (0, 0) }
    }

    /// Goes on until told to stop. To be looked at afterwards by [`Churn::last_look`].
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> Self {
        while !*stop.borrow() {
            let pause = Duration::from_millis(self.random.between(0, 2 * PAUSE.as_millis() as u64));
            tokio::select! {
                biased;
                _ = stop.changed() => {}
                () = tokio::time::sleep(pause) => self.step().await,
            }
        }
        self
    }

    /// With everything healed: what is there must be there whole. Returns how many topics came and went.
    pub async fn last_look(mut self) -> (u64, u64) {
        for at in 0..self.names.len() {
            if self.names[at].there.is_none() {
                continue;
            }
            let mut looks = 0;
            while !self.read(at).await {
                looks += 1;
                if looks == LAST_LOOKS {
                    let name = self.names[at].name.clone();
                    self.accuse(format!("topic {name} was created, never deleted, and cannot be read"));
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        self.counts
    }

    fn accuse(&self, what: String) {
        self.recorder.tell(|time_ns| Entry::Accused { time_ns, broker: "topics".to_owned(), what });
    }

    async fn step(&mut self) {
        while self.names.len() < NAMES {
            self.next += 1;
            self.names.push(Name { name: format!("churn-{}", self.next), incarnation: 0, there: None });
        }
        let at = self.random.below(self.names.len());
        match (self.names[at].there.is_some(), self.random.below(100)) {
            (false, _) => self.create(at).await,
            (true, 0..20) => self.delete(at).await,
            (true, 20..60) => self.write(at).await,
            (true, _) => drop(self.read(at).await),
        }
    }

    async fn create(&mut self, at: usize) {
        let body = json!({ "name": self.names[at].name, "partitions": 1 }).to_string();
        let url = self.url("");
        let request = self.http.post(url).header("content-type", "application/json").body(body);
        let name = self.names[at].name.clone();
        match ask(request).await {
            Answer::Status(201, _) => {
                self.counts.0 += 1;
                self.names[at].incarnation += 1;
                self.names[at].there = Some(BTreeSet::new());
            }
            refused @ Answer::Status(409, _) if refused.had_no_effect() => {
                let told = refused.excerpt();
                self.accuse(format!("topic {name} was deleted, or never there, and yet exists: {told}"));
                self.forget(at);
            }
            refused if refused.had_no_effect() => {}
            _ => self.forget(at),
        }
    }

    async fn delete(&mut self, at: usize) {
        let url = self.url(&format!("/{}", self.names[at].name));
        let request = self.http.delete(url);
        match ask(request).await {
            Answer::Status(204, _) => {
                self.counts.1 += 1;
                self.names[at].there = None;
            }
            // A broker that has not heard of it yet; nothing has happened.
            Answer::Status(404, _) => {}
            refused if refused.had_no_effect() => {}
            _ => self.forget(at),
        }
    }

    async fn write(&mut self, at: usize) {
        self.next += 1;
        let (name, incarnation) = (self.names[at].name.clone(), self.names[at].incarnation);
        let record = format!("{incarnation}:{}", self.next);
        let url = self.url(&format!("/{name}/partitions/0/records?timeout_ms=4000"));
        let request = self.http.post(url);
        let answer = ask(request.header("content-type", "text/plain").body(record.clone())).await;
        if let (Answer::Status(200, _), Some(there)) = (answer, &mut self.names[at].there) {
            there.insert(record);
        }
    }

    /// Reads a topic whole. False if it does not answer.
    async fn read(&mut self, at: usize) -> bool {
        let (name, incarnation) = (self.names[at].name.clone(), self.names[at].incarnation);
        let (mut found, mut offset) = (BTreeSet::new(), "earliest".to_owned());
        loop {
            let url = self.url(&format!("/{name}/partitions/0/records?offset={offset}&consistency=linearizable"));
            let Answer::Status(200, body) = ask(self.http.get(url)).await else { return false };
            let Ok(answer) = serde_json::from_str::<Fetched>(&body) else { return false };
            found.extend(answer.records.into_iter().filter_map(|record| record.value));
            if answer.next_offset >= answer.high_watermark {
                break;
            }
            offset = answer.next_offset.to_string();
        }
        let of_this = format!("{incarnation}:");
        if let Some(old) = found.iter().find(|record| !record.starts_with(&of_this)) {
            self.accuse(format!("topic {name}, created {incarnation} times, shows {old} of an earlier one"));
        }
        let missing = self.names[at].there.iter().flatten().find(|record| !found.contains(*record)).cloned();
        if let Some(missing) = missing {
            self.accuse(format!("topic {name} has acknowledged {missing}, and a linearizable read does not show it"));
        }
        true
    }

    /// Nobody knows what became of it: its name is not used again.
    fn forget(&mut self, at: usize) {
        self.names.swap_remove(at);
    }

    /// A path below the topics, at any broker.
    fn url(&mut self, path: &str) -> String {
        let broker = self.random.below(self.brokers.len());
        format!("{}/v1/topics{path}", self.brokers[broker])
    }
}
