//! A log in memory behind the [`Client`] trait, for tests: it refuses, loses answers and appends late, and is otherwise correct.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::client::{Client, Connector, Fetched, Sent};
use crate::history::{Key, Offset, Value};
use crate::random::Random;

/// Most records of a fetch.
const RECORDS_MAX: usize = 7;

/// Makes clients of one set of logs.
#[derive(Clone)]
pub(super) struct FakeConnector(Arc<Mutex<Logs>>);

struct Logs {
    keys: Vec<Vec<Value>>,
    random: Random,
    /// How many percent of requests do not work.
    trouble: usize,
    /// The first of these values that would be appended is acknowledged, and lost.
    lose: Option<Value>,
}

impl FakeConnector {
    pub(super) fn new(keys: usize, trouble: usize) -> Self {
        let logs = Logs { keys: vec![Vec::new(); keys], random: Random::new(7), trouble, lose: None };
        Self(Arc::new(Mutex::new(logs)))
    }

    /// Acknowledges a value of key 0 and does not keep it, though it keeps its place.
    pub(super) fn lose(&self, value: Value) {
        self.0.lock().lose = Some(value);
    }
}

pub(super) struct FakeClient(Arc<Mutex<Logs>>);

impl Connector for FakeConnector {
    type Client = FakeClient;

    fn connect(&self, _: usize, _: bool) -> FakeClient {
        FakeClient(self.0.clone())
    }

    fn brokers(&self) -> usize {
        3
    }
}

impl Client for FakeClient {
    async fn send(&mut self, key: Key, values: &[Value], at: Option<Offset>) -> Sent {
        tokio::task::yield_now().await;
        let mut logs = self.0.lock();
        let (trouble, done) = (logs.trouble, logs.random.percent(50));
        let unknown = logs.random.percent(trouble);
        if logs.random.percent(trouble) || at.is_some_and(|at| at.0 != logs.keys[key.0 as usize].len() as u64) {
            return Sent::Failed("refused".to_owned());
        }
        let lose = logs.lose.take_if(|lost| key == Key(0) && values.contains(lost));
        let log = &mut logs.keys[key.0 as usize];
        let first = Offset(log.len() as u64);
        if !unknown || done {
            // What is lost keeps its place: nobody sees another value there, nor this one.
            log.extend(values.iter().map(|value| if Some(*value) == lose { Value(-9) } else { *value }));
        }
        if unknown { Sent::Unknown("no answer".to_owned()) } else { Sent::At(first) }
    }

    async fn fetch(&mut self, key: Key, from: Option<Offset>, linearizable: bool) -> Result<Fetched, String> {
        tokio::task::yield_now().await;
        let mut logs = self.0.lock();
        let trouble = logs.trouble;
        if logs.random.percent(trouble) {
            return Err("no answer".to_owned());
        }
        let lag = if linearizable { 0 } else { logs.random.below(3) };
        let log = &logs.keys[key.0 as usize];
        let from = from.map_or(0, |offset| offset.0 as usize);
        let end = log.len().saturating_sub(lag).max(from);
        let until = end.min(from + RECORDS_MAX);
        let places = (from..until).filter(|at| log[*at] != Value(-9));
        let records = places.map(|at| (Offset(at as u64), log[at])).collect();
        Ok(Fetched { records, next: Offset(until as u64), end: Offset(end as u64), foreign: Vec::new() })
    }

    fn use_broker(&mut self, _: usize) {}
}
