//! One place of a client: lives follow each other in it, each doing operations drawn from the seed until it crashes or loses track of
//! what it did.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Values;
use super::steps::{Ended, Life, Step};
use crate::checkers::workloads::Workload;
use crate::client::Connector;
use crate::history::{Key, Offset, Value};
use crate::random::Random;
use crate::recorder::Recorder;

/// A client lives so long on average before it crashes.
const LIFETIME: Duration = Duration::from_secs(30);
/// The most steps of one operation.
const STEPS_MAX: usize = 4;
/// After an operation that failed: as fast as it fails it need not be tried again.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);
/// How many keys a client reads at most.
const KEYS_MAX: usize = 3;
/// How many consumer groups there are.
const GROUPS: usize = 3;
/// Of a hundred lives that are members of a group, so many leave it before they end. Of the others the group hears no more.
const LEAVING: usize = 70;

/// One place of a client.
pub struct Worker<C: Connector> {
    /// What it does.
    pub workload: Workload,
    /// Its choices.
    pub random: Random,
    /// Writes it down.
    pub recorder: Arc<Recorder>,
    /// Makes clients.
    pub connector: C,
    /// Makes values.
    pub values: Values,
    /// From one operation's end to the next one's beginning, on average.
    pub pause: Duration,
}

impl<C: Connector> Worker<C> {
    /// Works until told to stop; the last life crashes.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut remembered = BTreeMap::new();
        while !*stop.borrow() {
            let life = self.live(&mut remembered, &mut stop).await;
            if let Some(mut life) = life {
                if self.random.percent(LEAVING) {
                    life.leave_group().await;
                }
                life.crash();
            }
        }
    }

    /// One life. Returns it, unless it ended with an unknown outcome. What it has read is remembered for the next.
    async fn live(
        &mut self,
        remembered: &mut BTreeMap<Key, Offset>,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<Life<C>> {
        let (broker, idempotent) = (self.random.below(self.connector.brokers()), self.random.percent(50));
        let mut life = Life::new(&self.recorder, &self.connector, broker, idempotent);
        let lifetime_ms = self.random.between(1, 2 * LIFETIME.as_millis() as u64);
        let ends = Instant::now() + Duration::from_millis(lifetime_ms);
        let seek = self.random.percent(10);
        let member = self.workload == Workload::SingleSubscribe && life.can_subscribe() && self.random.percent(75);
        if member {
            self.subscribe(&mut life)
        } else {
            life.assign(self.keys(), seek, remembered)
        }
        while !*stop.borrow() && Instant::now() < ends {
            let ended = match member {
                true => self.operation_of_member(&mut life).await,
                false => self.operation(&mut life, remembered).await,
            };
            remembered.extend(life.positions.iter().filter_map(|(key, position)| Some((*key, (*position)?))));
            let mut pause = Duration::from_micros(self.random.between(0, 2 * self.pause.as_micros() as u64));
            match ended {
                Ended::Ok => {}
                Ended::Unknown => return None,
                Ended::Failed => {
                    pause += FAILURE_PAUSE;
                    if self.random.percent(50) {
                        life.use_broker(self.random.below(self.connector.brokers()));
                    }
                }
            }
            tokio::select! {
                biased;
                _ = stop.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        Some(life)
    }

    /// Some keys, ascending, at least one.
    fn keys(&mut self) -> Vec<Key> {
        let mut keys: Vec<Key> = (0..self.values.keys() as u64).map(Key).collect();
        self.random.shuffle(&mut keys);
        keys.truncate(1 + self.random.below(KEYS_MAX));
        keys.sort_unstable();
        keys
    }

    fn key(&mut self) -> Key {
        Key(self.random.below(self.values.keys()) as u64)
    }

    async fn operation(&mut self, life: &mut Life<C>, remembered: &BTreeMap<Key, Offset>) -> Ended {
        match self.random.below(100) {
            0..3 => {
                let seek = self.random.percent(20);
                life.assign(self.keys(), seek, remembered);
                Ended::Ok
            }
            3..15 => {
                let keys: Vec<Key> = life.positions.keys().copied().collect();
                match self.random.pick(&keys) {
                    Some(key) => life.read_to_the_end(*key).await,
                    None => Ended::Ok,
                }
            }
            choice if self.workload == Workload::Mixed => {
                let steps = 1 + self.random.below(STEPS_MAX);
                let steps: Vec<Step> = (0..steps).map(|_| self.step(choice)).collect();
                life.mixed(&steps).await
            }
            15..42 => life.poll().await,
            42..48 if life.can_condition() => self.send_at_the_end(life).await,
            _ => self.send(life).await,
        }
    }

    async fn send(&mut self, life: &mut Life<C>) -> Ended {
        let key = self.key();
        let count = if self.random.percent(25) { 2 + self.random.below(STEPS_MAX - 1) } else { 1 };
        let values: Vec<Value> = (0..count).map(|_| self.values.next(key)).collect();
        life.send(key, &values, None).await
    }

    /// Reads every key, with the others of some group.
    fn subscribe(&mut self, life: &mut Life<C>) {
        let keys = (0..self.values.keys() as u64).map(Key).collect();
        life.subscribe(format!("group-{}", self.random.below(GROUPS)), keys);
    }

    async fn operation_of_member(&mut self, life: &mut Life<C>) -> Ended {
        match self.random.below(100) {
            0..2 => {
                life.leave_group().await;
                self.subscribe(life);
                Ended::Ok
            }
            2..55 => life.poll_group().await,
            _ => self.send(life).await,
        }
    }

    /// Reads a key to its end, and sends only if that is still the end: of several clients that do so at once, one may succeed.
    async fn send_at_the_end(&mut self, life: &mut Life<C>) -> Ended {
        let keys: Vec<Key> = life.positions.keys().copied().collect();
        let Some(key) = self.random.pick(&keys).copied() else { return Ended::Ok };
        let read = life.read_to_the_end(key).await;
        let end = life.positions.get(&key).copied().flatten();
        match (read, end) {
            (Ended::Ok, Some(end)) => life.send(key, &[self.values.next(key)], Some(end)).await,
            _ => read,
        }
    }

    fn step(&mut self, choice: usize) -> Step {
        if self.random.percent(if choice < 60 { 35 } else { 60 }) {
            return Step::Poll;
        }
        let key = self.key();
        Step::Send(key, self.values.next(key))
    }
}
