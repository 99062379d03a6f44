//! The cluster is itself again: every broker is ready, every partition takes a produce, every replica is in sync.
//!
//! The produces are operations like any other and stand in the history, so that the claim can be audited.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Nemesis;
use crate::client::Connector;
use crate::cluster::{Harness, HarnessError};
use crate::history::Key;
use crate::recorder::Recorder;
use crate::timeline::Entry;
use crate::workload::final_reads::read_everything;
use crate::workload::steps::{Ended, Life};
use crate::workload::{Values, retained};

/// How long the cluster may take, and each of its brokers.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);
/// How long it may take to read everything.
const READ_PATIENCE: Duration = Duration::from_secs(30);
/// After a probe that did not work.
const PAUSE: Duration = Duration::from_millis(50);

/// Sends to every partition until all of them took it.
pub struct Probe<C: Connector> {
    recorder: Arc<Recorder>,
    connector: C,
    values: Values,
    broker: usize,
}

impl<C: Connector> Probe<C> {
    /// Sends values of its own.
    pub fn new(recorder: Arc<Recorder>, connector: C, values: Values) -> Self {
        Self { recorder, connector, values, broker: 0 }
    }

    /// Returns the keys that took nothing in time.
    pub async fn every_key(&mut self, deadline: Instant) -> Vec<Key> {
        let mut life = Life::new(&self.recorder, &self.connector, self.broker, false);
        life.assign(Vec::new(), false, &BTreeMap::new());
        let mut missing = Vec::new();
        for key in (0..self.values.keys() as u64).map(Key) {
            loop {
                match life.send(key, &[self.values.next(key)], None).await {
                    Ended::Ok => break,
                    _ if Instant::now() >= deadline => {
                        missing.push(key);
                        break;
                    }
                    Ended::Failed => {}
                    Ended::Unknown => life = Life::new(&self.recorder, &self.connector, self.broker, false),
                }
                self.broker += 1;
                life.use_broker(self.broker);
                tokio::time::sleep(PAUSE).await;
            }
        }
        missing
    }
}

impl<C: Connector> Nemesis<C> {
    /// Reads every key from its beginning, at this broker.
    pub async fn read_from(&mut self, broker: usize) {
        let (recorder, connector) = (self.recorder.clone(), self.probe.connector.clone());
        let reached = read_everything(&recorder, &connector, broker, self.places.len(), READ_PATIENCE).await;
        self.say(if reached { "  everything is read" } else { "  NOT EVERYTHING COULD BE READ" });
    }

    /// Waits until the cluster has recovered from these faults, and says so. If it does not in time, the run makes no sense any more: the
    /// error says what was missing.
    pub async fn recover(&mut self, faults: &[u64]) -> Harness<()> {
        let began = Instant::now();
        match self.await_recovery(began + PATIENCE).await? {
            Ok(()) => {
                let ms = began.elapsed().as_millis();
                self.say(&format!("  recovered in {ms} ms"));
                let evidence = "every broker is ready, every partition took a produce, every replica is in sync";
                for fault in faults {
                    let (fault, evidence) = (*fault, evidence.to_owned());
                    self.recorder.tell(|time_ns| Entry::Recovered { time_ns, fault, evidence });
                }
            }
            Err(why) => {
                let what = format!("the cluster did not recover within {} s", PATIENCE.as_secs());
                return Err(HarnessError::new(what, why));
            }
        }
        self.note_ends()?;
        self.fragile.clear();
        Ok(())
    }

    async fn await_recovery(&mut self, deadline: Instant) -> Harness<Result<(), String>> {
        let left = || deadline.saturating_duration_since(Instant::now());
        for host in 0..self.hosts() {
            loop {
                self.note_ends()?;
                self.cluster.start(host)?;
                match self.cluster.await_ready(host, Duration::from_secs(1)).await {
                    Ok(()) => break,
                    Err(why) if left().is_zero() => return Ok(Err(format!("broker {} is not ready: {why}", host + 1))),
                    Err(_) => {}
                }
            }
        }
        let missing = self.probe.every_key(deadline).await;
        if !missing.is_empty() {
            let keys: Vec<u64> = missing.iter().map(|key| key.0).collect();
            return Ok(Err(format!("no produce worked on keys {keys:?}")));
        }
        let mut topics: Vec<String> = self.places.iter().map(|place| place.topic.clone()).collect();
        topics.dedup();
        topics.push(retained::TOPIC.to_owned());
        Ok(self.cluster.await_in_sync(&topics, left()).await)
    }
}
