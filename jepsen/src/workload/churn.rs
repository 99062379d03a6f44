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
        self.recorder.accuse("topics", what);
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::testing::Accusations;

    /// A broker that gives one answer, to whatever it is asked.
    async fn broker(status: u16, body: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let length = body.len();
                let head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
                let _ = stream.write_all((head + body).as_bytes()).await;
            }
        });
        url
    }

    /// A topic that was created twice, with records 2:7 and 2:8 acknowledged; or one that is not there.
    async fn churn(accusations: &Accusations, there: bool, status: u16, body: &'static str) -> Churn {
        let mut churn = Churn::new(vec![broker(status, body).await], accusations.recorder(), Random::new(1));
        let records = ["2:7", "2:8"].map(str::to_owned);
        let there = there.then(|| BTreeSet::from(records));
        churn.names.push(Name { name: "churn-1".to_owned(), incarnation: 2, there });
        churn
    }

    #[tokio::test]
    async fn a_topic_that_shows_what_it_must_accuses_nobody() {
        let accusations = Accusations::new();
        let body =
            r#"{"high_watermark":3,"next_offset":3,"records":[{"value":"2:7"},{"value":"2:8"},{"value":"2:9"}]}"#;
        assert!(churn(&accusations, true, 200, body).await.read(0).await);
        let refused = r#"{"error":"NO_LEADER","outcome":"none"}"#;
        assert!(!churn(&accusations, true, 503, refused).await.read(0).await);
        churn(&accusations, false, 503, refused).await.create(0).await;
        let mut created = churn(&accusations, false, 201, "{}").await;
        created.create(0).await;
        assert_eq!((created.names[0].incarnation, created.counts), (3, (1, 0)));
        assert_eq!(accusations.told(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_record_that_is_gone_and_one_of_an_earlier_topic_accuse() {
        let accusations = Accusations::new();
        let lost = r#"{"high_watermark":1,"next_offset":1,"records":[{"value":"2:8"}]}"#;
        assert!(churn(&accusations, true, 200, lost).await.read(0).await);
        let old = r#"{"high_watermark":3,"next_offset":3,"records":[{"value":"2:7"},{"value":"2:8"},{"value":"1:4"}]}"#;
        assert!(churn(&accusations, true, 200, old).await.read(0).await);
        let told = accusations.told();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told[0].contains("has acknowledged 2:7") && told[1].contains("shows 1:4 of an earlier one"),
            "{told:?}"
        );
    }

    #[tokio::test]
    async fn a_name_that_should_be_free_and_is_not_accuses() {
        let accusations = Accusations::new();
        let exists = r#"{"error":"TOPIC_EXISTS","outcome":"none"}"#;
        let mut taken = churn(&accusations, false, 409, exists).await;
        taken.create(0).await;
        let told = accusations.told();
        assert!(told.len() == 1 && told[0].contains("and yet exists"), "{told:?}");
        assert!(taken.names.is_empty(), "it is used again");
    }
}
