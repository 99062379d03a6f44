//! Clients that only commit offsets and look at them, for groups without members: registers under contention.
//!
//! What they were told is kept by the client ([`crate::client::registers`]) and judged by [`crate::checkers::registers`]; here is only
//! who does what when.

use std::time::Duration;

use tokio::sync::watch;

use crate::client::{Client as _, Connector};
use crate::history::{Key, Offset};
use crate::random::Random;

/// Between two steps, on average.
const PAUSE: Duration = Duration::from_millis(120);
/// Over so many groups, on so many keys each, the clients of a run contend.
const GROUPS: usize = 2;
const KEYS: usize = 2;
/// A client lives for so many steps, on average.
const STEPS: u64 = 200;

/// The last group's name; the first is 0.
fn group(number: usize) -> String {
    format!("register-{number}")
}

/// Goes on until told to stop.
pub async fn run<C: Connector>(connector: C, mut random: Random, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        let mut client = connector.connect(random.below(connector.brokers()), false);
        for _ in 0..random.between(1, 2 * STEPS) {
            let (group, key) = (group(random.below(GROUPS)), Key(random.below(KEYS) as u64));
            let done = match random.percent(50) {
                true => client.commit_offset(&group, key, Offset(random.next() >> 32)).await,
                false => client.committed_offset(&group, key).await.map(drop),
            };
            if done.is_err() {
                client.use_broker(random.below(connector.brokers()));
            }
            let pause = Duration::from_micros(random.between(0, 2 * PAUSE.as_micros() as u64));
            tokio::select! {
                biased;
                _ = stop.changed() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// With everything healed: every register is looked at once more, so that what was lost shows. False: one could not be looked at.
pub async fn last_look<C: Connector>(connector: &C, patience: Duration) -> bool {
    let deadline = std::time::Instant::now() + patience;
    let mut client = connector.connect(0, false);
    for (group, key) in (0..GROUPS).flat_map(|number| (0..KEYS as u64).map(move |key| (group(number), Key(key)))) {
        while client.committed_offset(&group, key).await.is_err() {
            if std::time::Instant::now() >= deadline {
                return false;
            }
            client.use_broker(key.0 as usize + 1);
            tokio::time::sleep(PAUSE).await;
        }
    }
    true
}
