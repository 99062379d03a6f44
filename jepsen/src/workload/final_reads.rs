//! The end of a run: everything that was acknowledged must be read from the beginning.
//!
//! Each reader is a new process that assigns every key, seeks to the beginning and polls until it stands past the furthest acknowledged
//! offset of each, and then to the end. What it cannot reach in time stays unread, and the checkers find it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::steps::{Ended, Life};
use crate::client::Connector;
use crate::history::{Key, Offset};
use crate::recorder::Recorder;

/// After a poll that brought nothing.
const PAUSE: Duration = Duration::from_millis(100);

/// Reads everything from one broker. Returns whether it got past everything acknowledged within `patience`.
pub async fn read_everything<C: Connector>(
    recorder: &Arc<Recorder>,
    connector: &C,
    broker: usize,
    keys: usize,
    patience: Duration,
) -> bool {
    let deadline = Instant::now() + patience;
    let keys: Vec<Key> = (0..keys as u64).map(Key).collect();
    let mut life = Life::new(recorder, connector, broker, false);
    life.assign(keys.clone(), true, &BTreeMap::new());
    let mut before = BTreeMap::new();
    loop {
        let ended = life.poll().await;
        let still = before == life.positions;
        let reached = keys.iter().all(|key| past(&life, *key, recorder.acknowledged(*key)));
        if ended == Ended::Ok && still && reached {
            break;
        }
        if Instant::now() >= deadline {
            life.crash();
            return false;
        }
        if still || ended != Ended::Ok {
            tokio::time::sleep(PAUSE).await;
        }
        before = life.positions.clone();
    }
    // And once more, claiming that nothing is missing.
    for key in keys {
        life.read_to_the_end(key).await;
    }
    life.crash();
    true
}

fn past<C: Connector>(life: &Life<C>, key: Key, acknowledged: Option<Offset>) -> bool {
    let Some(acknowledged) = acknowledged else { return true };
    life.positions.get(&key).copied().flatten().is_some_and(|position| position > acknowledged)
}
