//! Pontoon's HTTP behind [`Client`].
//!
//! Each client has its own connections. A refused connection certainly changed nothing; a broker's refusal says by `outcome` whether it
//! may have; anything else (a time-out, a connection that broke, an answer that makes no sense) is unknown.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::producer::{self, Batch, Producer, Produces, Sequence};
use super::retries::{Counted, Retries};
use super::{CLIENTS, Client, Connector, Fetched, Sent, payload};
use crate::history::{Key, Offset, Value};
use crate::recorder::Recorder;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long the broker may wait for a leader and a majority.
const BROKER_TIMEOUT: Duration = Duration::from_secs(4);
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(6);
/// Most records of one fetch.
const RECORDS_MAX: usize = 500;
/// How much of a text goes into an error.
const EXCERPT: usize = 160;

/// What a producer is told that is not known, or not as it should be. One that has sent everything in order, and each batch again until it
/// knew, is never told so: refusals are committed like records (rule O5), the table of producers survives whatever a majority of the
/// disks does, and no run has so many producers that one in use is dropped. Only disks that lie, all of them, explain it.
pub const PRODUCER_IS_LOST: [&str; 3] = ["UNKNOWN_PRODUCER", "OUT_OF_ORDER_SEQUENCE", "PRODUCER_FENCED"];

/// Where each key's partition is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its topic.
    pub topic: String,
    /// Its number in the topic.
    pub partition: u32,
}

/// Makes HTTP clients.
#[derive(Clone)]
pub struct HttpConnector {
    shared: Arc<Shared>,
}

struct Shared {
    /// `http://host:port` of each broker.
    brokers: Vec<String>,
    places: Vec<Place>,
    /// How large records are made, by their value.
    sizes: fn(Value) -> usize,
    /// Hears of what no broker may do.
    recorder: Arc<Recorder>,
    retries: Retries,
}

impl HttpConnector {
    /// For these brokers; `places` is indexed by key.
    pub fn new(brokers: Vec<String>, places: Vec<Place>, sizes: fn(Value) -> usize, recorder: Arc<Recorder>) -> Self {
        Self { shared: Arc::new(Shared { brokers, places, sizes, recorder, retries: Retries::default() }) }
    }

    /// How often idempotent clients were acknowledged, and sent again.
    pub fn retries(&self) -> Counted {
        self.shared.retries.counted()
    }
}

impl Connector for HttpConnector {
    type Client = HttpClient;

    fn connect(&self, broker: usize, idempotent: bool) -> HttpClient {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .no_proxy()
            .build()
            .unwrap_or_default();
        HttpClient {
            shared: self.shared.clone(),
            http,
            broker: broker % self.shared.brokers.len().max(1),
            idempotent: idempotent.then(Producer::default),
        }
    }

    fn brokers(&self) -> usize {
        self.shared.brokers.len()
    }
}

/// One client.
pub struct HttpClient {
    shared: Arc<Shared>,
    http: reqwest::Client,
    broker: usize,
    idempotent: Option<Producer>,
}

/// A refusal's body.
#[derive(Deserialize)]
struct Refusal {
    error: String,
    #[serde(default)]
    message: String,
    outcome: String,
}

#[derive(Deserialize)]
struct Produced {
    base_offset: u64,
    last_offset: u64,
    #[serde(default)]
    duplicate: bool,
}

#[derive(Deserialize)]
struct FetchAnswer {
    high_watermark: u64,
    next_offset: u64,
    records: Vec<FetchedRecord>,
}

#[derive(Deserialize)]
struct FetchedRecord {
    offset: u64,
    value: Option<String>,
    value_base64: Option<String>,
}

#[derive(Deserialize)]
struct NewProducer {
    producer_id: i64,
    producer_epoch: i16,
}

/// A request that did not work.
#[derive(Debug)]
struct Trouble {
    /// What became of it.
    outcome: Sent,
    /// The broker's word for it; empty if there is none.
    code: String,
}

impl HttpClient {
    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.shared.brokers[self.broker])
    }

    fn records_url(&self, key: Key) -> Result<String, String> {
        let place = self.shared.places.get(key.0 as usize).ok_or_else(|| format!("key {} has no partition", key.0))?;
        Ok(self.url(&format!("/v1/topics/{}/partitions/{}/records", place.topic, place.partition)))
    }

    /// Sends a request; the body's text if it worked.
    async fn ask(request: reqwest::RequestBuilder) -> Result<String, Trouble> {
        let trouble = |outcome| Trouble { outcome, code: String::new() };
        let unknown = |error: reqwest::Error| match error.is_connect() {
            true => trouble(Sent::Failed(format!("no connection: {error:?}"))),
            false => trouble(Sent::Unknown(format!("{error:?}"))),
        };
        let answer = request.send().await.map_err(unknown)?;
        let status = answer.status();
        let body = answer.text().await.map_err(|error| trouble(Sent::Unknown(format!("{status}: {error:?}"))))?;
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_str::<Refusal>(&body) {
            Ok(Refusal { error: code, message, outcome }) => {
                let text = format!("{status} {code} {}", excerpt(&message));
                let outcome = if outcome == "none" { Sent::Failed(text) } else { Sent::Unknown(text) };
                Err(Trouble { outcome, code })
            }
            Err(_) => Err(trouble(Sent::Unknown(format!("{status} {}", excerpt(&body))))),
        }
    }

    fn note_lost(&mut self, key: Key, trouble: &Trouble) {
        if PRODUCER_IS_LOST.contains(&trouble.code.as_str()) {
            producer::lose(self, key, &format!("{:?}", trouble.outcome));
        }
    }

    /// What an answer holds. Contents that are no value of ours accuse: nobody sent them.
    fn unpack(&self, key: Key, answer: FetchAnswer) -> Fetched {
        let mut foreign = Vec::new();
        let mut records = Vec::with_capacity(answer.records.len());
        for record in answer.records {
            let value = record.value.as_deref().and_then(payload::value).unwrap_or_else(|| {
                let found = record.value.or(record.value_base64).unwrap_or_else(|| "null".to_owned());
                foreign.push(format!("offset {} holds {}", record.offset, excerpt(&found)));
                // One that nobody sends, another at each offset.
                Value(-1 - i64::try_from(record.offset).unwrap_or(i64::MAX - 1))
            });
            records.push((Offset(record.offset), value));
        }
        for what in &foreign {
            self.shared.recorder.accuse(CLIENTS, format!("key {} is served with what nobody sent: {what}", key.0));
        }
        Fetched { records, next: Offset(answer.next_offset), end: Offset(answer.high_watermark), foreign }
    }
}

impl Produces for HttpClient {
    fn producer(&mut self) -> Option<&mut Producer> {
        self.idempotent.as_mut()
    }

    fn retries(&self) -> &Retries {
        &self.shared.retries
    }

    fn accuse(&self, what: String) {
        self.shared.recorder.accuse(CLIENTS, what);
    }

    async fn ask_for_id(&mut self) -> Result<(i64, i16), String> {
        let request = self.http.post(self.url("/v1/producers"));
        let body = Self::ask(request).await.map_err(|why| format!("{:?}", why.outcome))?;
        let new: NewProducer = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        Ok((new.producer_id, new.producer_epoch))
    }

    async fn attempt(&mut self, batch: &Batch<'_>, by: Option<Sequence>) -> Sent {
        let url = match self.records_url(batch.key) {
            Ok(url) => url,
            Err(why) => return Sent::Failed(why),
        };
        let record = |value: &Value| json!({ "value": payload::text(*value, (self.shared.sizes)(*value)) });
        let body = json!({ "records": batch.values.iter().map(record).collect::<Vec<_>>() }).to_string();
        let wait_ms = BROKER_TIMEOUT.as_millis();
        let mut request = self.http.post(format!("{url}?acks=all&timeout_ms={wait_ms}"));
        request = request.header("content-type", "application/json").body(body);
        if let Some(at) = batch.at {
            request = request.header("if-match-offset", at.0);
        }
        if let Some(by) = by {
            request = request
                .header("producer-id", by.producer_id)
                .header("producer-epoch", by.epoch)
                .header("producer-sequence", by.first);
        }
        let body = match Self::ask(request).await {
            Ok(body) => body,
            Err(trouble) => {
                self.note_lost(batch.key, &trouble);
                return trouble.outcome;
            }
        };
        match serde_json::from_str::<Produced>(&body) {
            Ok(at) if at.last_offset.checked_sub(at.base_offset) == Some(batch.values.len() as u64 - 1) => {
                if at.duplicate {
                    self.shared.retries.met();
                }
                Sent::At(Offset(at.base_offset))
            }
            _ => Sent::Unknown(format!("an answer that makes no sense: {}", excerpt(&body))),
        }
    }

    fn look_elsewhere(&mut self) {
        self.use_broker(self.broker + 1);
    }
}

impl Client for HttpClient {
    async fn send(&mut self, key: Key, values: &[Value], at: Option<Offset>) -> Sent {
        producer::send(self, &Batch { key, values, at }).await
    }

    async fn fetch(&mut self, key: Key, from: Option<Offset>, linearizable: bool) -> Result<Fetched, String> {
        let url = self.records_url(key)?;
        let from = from.map_or("earliest".to_owned(), |offset| offset.0.to_string());
        let consistency = if linearizable { "linearizable" } else { "committed" };
        let url = format!("{url}?offset={from}&max_records={RECORDS_MAX}&consistency={consistency}");
        let body = Self::ask(self.http.get(url)).await.map_err(|why| match why.outcome {
            Sent::Failed(why) | Sent::Unknown(why) => why,
            Sent::At(_) => "an append".to_owned(),
        })?;
        let answer: FetchAnswer =
            serde_json::from_str(&body).map_err(|error| format!("{error}: {}", excerpt(&body)))?;
        Ok(self.unpack(key, answer))
    }

    fn use_broker(&mut self, broker: usize) {
        self.broker = broker % self.shared.brokers.len().max(1);
    }
}

fn excerpt(text: &str) -> String {
    text.chars().take(EXCERPT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Accusations;

    fn client(accusations: &Accusations) -> HttpClient {
        let connector =
            HttpConnector::new(vec!["http://nowhere".to_owned()], Vec::new(), |_| 0, accusations.recorder());
        connector.connect(0, true)
    }

    #[test]
    fn contents_that_nobody_sent_accuse() {
        let accusations = Accusations::new();
        let client = client(&accusations);
        let unpack = |value: &str| {
            let body = json!({ "high_watermark": 8, "next_offset": 8, "records": [{ "offset": 7, "value": value }] });
            client.unpack(Key(3), serde_json::from_value(body).unwrap())
        };
        assert_eq!(unpack(&payload::text(Value(5), 9)).records, [(Offset(7), Value(5))]);
        assert_eq!(accusations.told(), Vec::<String>::new());
        assert_eq!(unpack("5:9:5.5.5.5.4").records, [(Offset(7), Value(-8))]);
        assert_eq!(
            accusations.told(),
            ["clients: key 3 is served with what nobody sent: offset 7 holds 5:9:5.5.5.5.4"]
        );
    }

    #[test]
    fn a_producer_that_did_all_as_it_should_and_is_unknown_accuses_once() {
        let accusations = Accusations::new();
        let mut client = client(&accusations);
        let told = |code: &str| Trouble { outcome: Sent::Failed("409".to_owned()), code: code.to_owned() };
        let known = || Some(Producer::new(17, 0));
        client.idempotent = known();
        client.note_lost(Key(1), &told("NO_LEADER"));
        assert_eq!(accusations.told(), Vec::<String>::new());
        for code in PRODUCER_IS_LOST {
            client.idempotent = known();
            client.note_lost(Key(1), &told(code));
            // It has no identity any more: what is still on its way says nothing new.
            client.note_lost(Key(1), &told(code));
        }
        let found = accusations.told();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("producer 17, whose next sequence of key 1 is 0, is told"), "{found:?}");
    }
}
