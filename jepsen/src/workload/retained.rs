//! A topic whose oldest records go all the time, while everything else goes on: what retention, snapshots and the producers' table
//! must keep true under faults.
//!
//! It is no part of the history, whose checkers expect to find everything; it has claims of its own, and holds the brokers to them:
//!
//! - a linearizable read from the beginning shows every record from the log's start to its end, without a hole, each with what was
//!   acknowledged at its offset, and the same as whoever read it before;
//! - neither the log's start nor its end goes back;
//! - retention takes no more than it was told to;
//! - a batch that is sent again is appended once, however long ago its segment went, and however often the leader changed: the
//!   table of producers outlives the records it was made from (Redpanda PR 5356); nor is a producer ever forgotten that went on.
//!
//! It knows the HTTP of records, and no fault.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use super::http::{Answer, ask};
use crate::client::http::PRODUCER_IS_LOST;
use crate::random::Random;
use crate::recorder::Recorder;

/// The topic's name.
pub const TOPIC: &str = "retained";
/// A partition that is larger loses its oldest segments.
const RETENTION_BYTES: u64 = 64 << 10;
/// A segment is closed at this size.
const SEGMENT_BYTES: u64 = 16 << 10;
/// Bytes of a record's value, about.
const RECORD_BYTES: usize = 900;
/// Records that must be left, whatever stands between them: blank entries and the like share the bytes.
const RECORDS_LEFT_MIN: u64 = RETENTION_BYTES / 3000;
/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(6);
/// How long an unknown outcome is asked after.
const RETRY_FOR: Duration = Duration::from_secs(30);
/// Between two steps, on average.
const PAUSE: Duration = Duration::from_millis(150);
/// After an attempt that did not work.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Producers that rest until their last batch is gone.
const RESTING_MAX: usize = 6;
/// How often the last look is tried, once a second.
const LAST_LOOKS: usize = 60;

/// The topic's configuration.
pub fn config() -> BTreeMap<String, String> {
    let of = |name: &str, value: u64| (name.to_owned(), value.to_string());
    BTreeMap::from([of("retention.bytes", RETENTION_BYTES), of("segment.bytes", SEGMENT_BYTES)])
}

/// A batch that was sent: its records, by their numbers.
#[derive(Clone, Debug)]
struct Batch {
    sequence: u64,
    records: Vec<u64>,
    /// Where it was acknowledged.
    base: u64,
}

/// A producer that goes on as long as it knows what became of its batches.
#[derive(Clone, Debug)]
struct Producer {
    id: i64,
    epoch: i64,
    /// The sequence of its next record.
    next: u64,
    last: Option<Batch>,
}

/// What is known of the topic for certain.
#[derive(Default)]
struct Known {
    /// What stands at each offset: acknowledged, or read.
    at: BTreeMap<u64, u64>,
    /// How many of the acknowledged there were when each came; those that are older than a read must be in it.
    acknowledged: BTreeMap<u64, u64>,
    acknowledgements: u64,
    /// By an answered linearizable read.
    start: u64,
    end: u64,
    /// Batches sent again after their records were gone, and answered as they must be.
    remembered: u64,
}

#[derive(Deserialize)]
struct Produced {
    base_offset: u64,
    last_offset: u64,
}

#[derive(Deserialize)]
struct NewProducer {
    producer_id: i64,
    producer_epoch: i64,
}

#[derive(Deserialize)]
struct Fetched {
    log_start_offset: u64,
    high_watermark: u64,
    next_offset: u64,
    records: Vec<Record>,
}

#[derive(Deserialize)]
struct Record {
    offset: u64,
    value: Option<String>,
}

/// What became of a batch.
enum Sent {
    At(u64),
    /// Nothing was appended.
    Refused,
    Unknown,
}

/// Fills the topic and reads it.
#[derive(Clone)]
pub struct Retained {
    http: reqwest::Client,
    brokers: Arc<Vec<String>>,
    recorder: Arc<Recorder>,
    known: Arc<Mutex<Known>>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Where the log starts: so many records went.
    pub start: u64,
    /// One past the last record.
    pub end: u64,
    /// Batches that were sent again after they were gone, and known.
    pub remembered: u64,
    /// It could be read.
    pub read: bool,
}

impl Retained {
    /// For brokers at these URLs; the topic must be there, with one partition.
    pub fn new(brokers: Vec<String>, recorder: Arc<Recorder>) -> Self {
        let http = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build().unwrap_or_default();
        Self { http, brokers: Arc::new(brokers), recorder, known: Arc::default() }
    }

    /// Writes and reads until told to stop.
    pub async fn run(self, mut random: Random, stop: watch::Receiver<bool>) {
        let reading = self.clone().read_on(random.split(), stop.clone());
        let writing = Writer { client: self, random, producer: None, resting: Vec::new(), next_record: 0, broker: 0 };
        tokio::join!(writing.run(stop), reading);
    }

    /// Where the log starts, as last read: the nemesis may wait for it to move.
    pub fn start(&self) -> u64 {
        self.known.lock().start
    }

    /// With everything healed: what must be there is there.
    pub async fn last_look(self) -> Summary {
        let mut read = false;
        for look in 0..LAST_LOOKS {
            read = self.look(look).await;
            if read {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let known = self.known.lock();
        Summary { start: known.start, end: known.end, remembered: known.remembered, read }
    }

    fn accuse(&self, what: String) {
        self.recorder.accuse("retention", what);
    }

    fn url(&self, broker: usize) -> String {
        format!("{}/v1/topics/{TOPIC}/partitions/0/records", self.brokers[broker % self.brokers.len()])
    }

    async fn read_on(self, mut random: Random, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let pause = Duration::from_millis(random.between(0, 4 * PAUSE.as_millis() as u64));
            tokio::select! {
                biased;
                _ = stop.changed() => {}
                () = tokio::time::sleep(pause) => drop(self.look(random.below(self.brokers.len())).await),
            }
        }
    }

    /// Reads all there is, linearizably. False if it was not answered, or the log's start went by on the way.
    async fn look(&self, broker: usize) -> bool {
        let (acknowledged, start_before, end_before) = {
            let known = self.known.lock();
            (known.acknowledgements, known.start, known.end)
        };
        let mut records: BTreeMap<u64, u64> = BTreeMap::new();
        let (mut offset, mut start) = ("earliest".to_owned(), None);
        let end = loop {
            let url = format!("{}?offset={offset}&consistency=linearizable", self.url(broker));
            let Answer::Status(200, body) = ask(self.http.get(url)).await else { return false };
            let Ok(answer) = serde_json::from_str::<Fetched>(&body) else { return false };
            start.get_or_insert(answer.log_start_offset);
            for record in answer.records {
                let Some(number) = record.value.as_deref().and_then(number_of) else {
                    self.accuse(format!("offset {} holds what nobody sent: {:?}", record.offset, record.value));
                    return true;
                };
                records.insert(record.offset, number);
            }
            if answer.next_offset >= answer.high_watermark {
                break answer.high_watermark;
            }
            offset = answer.next_offset.to_string();
        };
        let start = start.unwrap_or(0);
        let mut known = self.known.lock();
        let found = known.judge(&records, (start, end), acknowledged, (start_before, end_before));
        known.take(&records, start, end);
        drop(known);
        found.into_iter().for_each(|what| self.accuse(what));
        true
    }
}

impl Known {
    /// What is wrong with a read of everything: from `start` to `end` it found `records`. Before it began so many were acknowledged, and
    /// the log had been seen to begin and end there.
    fn judge(
        &self,
        records: &BTreeMap<u64, u64>,
        (start, end): (u64, u64),
        acknowledged: u64,
        (start_before, end_before): (u64, u64),
    ) -> Vec<String> {
        let mut found = Vec::new();
        if start < start_before {
            found.push(format!("the log started at {start_before} and now at {start}"));
        }
        if end < end_before {
            found.push(format!("the log ended at {end_before} and now at {end}"));
        }
        if start > 0 && end.saturating_sub(start) < RECORDS_LEFT_MIN {
            found.push(format!("retention left {start}..{end}, less than {RETENTION_BYTES} bytes"));
        }
        if let Some(hole) = (start..end).find(|offset| !records.contains_key(offset)) {
            found.push(format!("offset {hole} is missing in a read of {start}..{end}"));
        }
        let lost = self.acknowledged.range(start..).find(|(offset, order)| **order < acknowledged && **offset >= end);
        if let Some((offset, _)) = lost {
            found.push(format!("offset {offset} was acknowledged, and a linearizable read ends at {end}"));
        }
        let other = records.iter().find(|(offset, record)| self.at.get(offset).is_some_and(|known| known != *record));
        if let Some((offset, record)) = other {
            found.push(format!("offset {offset} held {:?} and now {record}", self.at.get(offset)));
        }
        let mut places = BTreeMap::new();
        let twice = records.iter().find_map(|(offset, record)| Some((places.insert(*record, *offset)?, *offset)));
        if let Some((first, second)) = twice {
            found.push(format!("offsets {first} and {second} hold the same record"));
        }
        found
    }

    fn take(&mut self, records: &BTreeMap<u64, u64>, start: u64, end: u64) {
        self.at.extend(records.iter().map(|(offset, record)| (*offset, *record)));
        self.start = self.start.max(start);
        self.end = self.end.max(end);
        // Below the start nobody can look again.
        self.at = self.at.split_off(&self.start);
        self.acknowledged = self.acknowledged.split_off(&self.start);
    }

    /// A batch was acknowledged there. Returns what is wrong with that.
    fn acknowledge(&mut self, base: u64, records: &[u64]) -> Option<String> {
        let mut wrong = None;
        for (offset, record) in (base..).zip(records) {
            if let Some(known) = self.at.insert(offset, *record).filter(|known| known != record) {
                wrong = Some(format!("offset {offset} was acknowledged for {record} and held {known}"));
            }
            self.acknowledged.entry(offset).or_insert(self.acknowledgements);
        }
        self.acknowledgements += 1;
        wrong
    }
}

struct Writer {
    client: Retained,
    random: Random,
    producer: Option<Producer>,
    resting: Vec<Producer>,
    next_record: u64,
    broker: usize,
}

impl Writer {
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let pause = Duration::from_millis(self.random.between(0, 2 * PAUSE.as_millis() as u64));
            tokio::select! {
                biased;
                _ = stop.changed() => {}
                () = tokio::time::sleep(pause) => self.step(&stop).await,
            }
        }
    }

    async fn step(&mut self, stop: &watch::Receiver<bool>) {
        let start = self.client.start();
        let gone = |producer: &Producer| producer.last.as_ref().is_some_and(|batch| batch.base < start);
        if let Some(at) = self.resting.iter().position(gone)
            && self.random.percent(30)
        {
            let producer = self.resting.swap_remove(at);
            return self.wake(producer, stop).await;
        }
        if self.producer.is_none() {
            self.producer = self.new_producer().await;
        }
        let Some(mut producer) = self.producer.take() else { return };
        if !self.send_next(&mut producer, stop).await {
            return;
        }
        if self.resting.len() < RESTING_MAX && self.random.percent(10) {
            self.resting.push(producer);
        } else {
            self.producer = Some(producer);
        }
    }

    /// A producer whose last batch is gone sends it again, and goes on.
    async fn wake(&mut self, mut producer: Producer, stop: &watch::Receiver<bool>) {
        let Some(batch) = producer.last.clone() else { return };
        match self.send(&producer, batch.sequence, &batch.records, stop).await {
            Sent::At(base) if base == batch.base => self.client.known.lock().remembered += 1,
            Sent::At(base) => self.client.accuse(format!(
                "a batch that stood at {} was sent again after that was gone, and stands at {base}, too",
                batch.base
            )),
            // Told by `send`.
            Sent::Refused | Sent::Unknown => return,
        }
        if self.send_next(&mut producer, stop).await && self.producer.is_none() {
            self.producer = Some(producer);
        }
    }

    /// Sends the producer's next batch. False: its fate is unknown, and the producer not to be used any more.
    async fn send_next(&mut self, producer: &mut Producer, stop: &watch::Receiver<bool>) -> bool {
        let count = self.random.between(1, 4);
        let records: Vec<u64> = (self.next_record..self.next_record + count).collect();
        self.next_record += count;
        let sequence = producer.next;
        match self.send(producer, sequence, &records, stop).await {
            Sent::At(base) => {
                let wrong = self.client.known.lock().acknowledge(base, &records);
                wrong.into_iter().for_each(|what| self.client.accuse(what));
                producer.next += count;
                producer.last = Some(Batch { sequence, records, base });
                true
            }
            // The sequence is still free.
            Sent::Refused => true,
            Sent::Unknown => false,
        }
    }

    /// Sends a batch until its fate is known, or for a while.
    async fn send(
        &mut self,
        producer: &Producer,
        sequence: u64,
        records: &[u64],
        stop: &watch::Receiver<bool>,
    ) -> Sent {
        let values: Vec<_> = records.iter().map(|record| json!({ "value": text_of(*record) })).collect();
        let body = json!({ "records": values }).to_string();
        let deadline = Instant::now() + RETRY_FOR;
        let mut unknown = false;
        loop {
            let url = format!("{}?acks=all&timeout_ms=4000", self.client.url(self.broker));
            let request = self.client.http.post(url).header("content-type", "application/json").body(body.clone());
            let request = request
                .header("producer-id", producer.id.to_string())
                .header("producer-epoch", producer.epoch.to_string())
                .header("producer-sequence", sequence.to_string());
            let answer = ask(request).await;
            if let Answer::Status(200, body) = &answer
                && let Ok(told) = serde_json::from_str::<Produced>(body)
            {
                if told.last_offset + 1 != told.base_offset + records.len() as u64 {
                    self.client.accuse(format!("{} records were acknowledged as {body}", records.len()));
                }
                return Sent::At(told.base_offset);
            }
            if PRODUCER_IS_LOST.contains(&answer.code().as_str()) {
                self.client.accuse(format!(
                    "producer {} sends what follows, or again what it sent last (sequence {sequence}), and is told {}",
                    producer.id,
                    answer.excerpt()
                ));
                return Sent::Refused;
            }
            if answer.had_no_effect() && !unknown {
                self.broker += 1;
                return Sent::Refused;
            }
            unknown |= !answer.had_no_effect();
            if Instant::now() >= deadline || *stop.borrow() {
                return Sent::Unknown;
            }
            self.broker += 1;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn new_producer(&mut self) -> Option<Producer> {
        self.broker += 1;
        let broker = self.broker % self.client.brokers.len();
        let request = self.client.http.post(format!("{}/v1/producers", self.client.brokers[broker]));
        let Answer::Status(200..=299, body) = ask(request).await else { return None };
        let new: NewProducer = serde_json::from_str(&body).ok()?;
        Some(Producer { id: new.producer_id, epoch: new.producer_epoch, next: 0, last: None })
    }
}

fn text_of(record: u64) -> String {
    let digits = format!("{record}.");
    digits.chars().cycle().take(RECORD_BYTES + digits.len()).collect()
}

/// The record of a text; `None` if it was not made by [`text_of`].
fn number_of(text: &str) -> Option<u64> {
    let (digits, _) = text.split_once('.')?;
    let record = digits.parse().ok()?;
    (text_of(record) == text).then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets 100..130 hold records 0..30; all of them acknowledged.
    fn known() -> Known {
        let mut known = Known { start: 100, end: 130, ..Known::default() };
        let records: Vec<u64> = (0..30).collect();
        assert_eq!(known.acknowledge(100, &records), None);
        known
    }

    fn whole() -> BTreeMap<u64, u64> {
        (100..130).zip(0..30).collect()
    }

    fn judged(known: &Known, records: &BTreeMap<u64, u64>, start: u64, end: u64) -> Vec<String> {
        known.judge(records, (start, end), 1, (100, 130))
    }

    #[test]
    fn what_is_whole_is_fine() {
        let known = known();
        assert_eq!(judged(&known, &whole(), 100, 130), Vec::<String>::new());
        let mut later = whole().split_off(&104);
        later.extend((130..140).zip(30..40));
        assert_eq!(judged(&known, &later, 104, 140), Vec::<String>::new());
    }

    #[test]
    fn every_breach_is_found() {
        let known = known();
        let found = |records: &BTreeMap<u64, u64>, start, end| judged(&known, records, start, end).join("; ");
        let mut older = whole();
        older.insert(99, 99);
        assert!(found(&older, 99, 130).contains("started at 100 and now at 99"));
        let mut short = whole();
        short.remove(&129);
        let told = found(&short, 100, 129);
        assert!(told.contains("ended at 130 and now at 129") && told.contains("129 was acknowledged"), "{told}");
        let mut hole = whole();
        hole.remove(&110);
        assert!(found(&hole, 100, 130).contains("offset 110 is missing"));
        let mut changed = whole();
        changed.insert(110, 77);
        assert!(found(&changed, 100, 130).contains("offset 110 held Some(10) and now 77"));
        let mut twice = whole();
        twice.insert(130, 5);
        assert!(found(&twice, 100, 131).contains("offsets 105 and 130 hold the same record"));
        assert!(found(&whole().split_off(&120), 120, 130).contains("retention left 120..130"));
    }

    #[test]
    fn an_acknowledgement_for_a_place_that_is_taken_is_found() {
        let mut known = known();
        assert!(known.acknowledge(129, &[50]).is_some_and(|what| what.contains("offset 129")));
    }

    #[test]
    fn what_came_after_a_read_began_need_not_be_in_it() {
        let mut known = known();
        known.acknowledge(130, &[30]);
        assert_eq!(judged(&known, &whole(), 100, 130), Vec::<String>::new());
    }

    #[test]
    fn records_read_back() {
        assert_eq!(number_of(&text_of(17)), Some(17));
        assert_eq!(number_of(&text_of(17).replace('7', "8")), None.or(number_of(&text_of(18))));
        assert_eq!(number_of("17.1"), None);
    }
}
