//! Retention on this broker: now and then each partition here is looked at, and what its topic's configuration asks for is done.
//!
//! On every replica: segments are closed at their size and age, and those below the log start go. On leaders besides: where the
//! log starts is decided ([`crate::partition::retention`]), and which producers have expired ([`crate::partition::expiry`]); both go
//! through the log, so that all replicas agree (RULES.md O7). The configuration is read from the catalog's newest copy each time; a change of it is a reason to look at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use pontoon_raft::types::GroupId;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::routing::Hosted;
use super::shared::Shared;
use crate::catalog::command::EXPIRY_LEVEL;
use crate::catalog::state::{CatalogState, TopicId, TopicRecord};
use crate::catalog::topic_config::TopicConfig;
use crate::partition::expiry::Timeline;
use crate::partition::retention::{RetentionPolicy, is_old, plan};

/// Most partitions that are looked at at a time: each may write a snapshot and wait for the disk.
const CONCURRENT: usize = 8;
/// After one look the next comes no sooner than this, whatever changes.
const GATHER: Duration = Duration::from_secs(1);
/// How long a leader waits until its decision is committed. If it never is, the next look decides again.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// A time is noted at most so often within `retention.ms`: a segment is kept this much longer than asked for.
const NOTES_PER_RETENTION: u64 = 16;

/// What is remembered of a partition from one look to the next.
#[derive(Default)]
struct Memory {
    /// When the time was last written down in its log.
    noted: Option<Instant>,
    /// How old its entries are.
    timeline: Timeline,
}

/// What time it is, in ms since 1970. Only for ages of records: no promise rests on it.
pub(super) type Clock = fn() -> i64;

/// Looks after every partition here until `stop` says so.
pub(super) async fn run(shared: Arc<Shared>, clock: Clock, mut stop: watch::Receiver<bool>) {
    let interval = shared.config.retention_check_interval;
    let mut changes = shared.catalog.watch();
    let mut seen = shared.catalog.state();
    let mut memories = BTreeMap::new();
    let mut last = Instant::now();
    let mut due = last + interval;
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = sleep_until(due) => {}
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                let state = shared.catalog.state();
                if configuration_changed(&seen, &state) {
                    due = due.min(last + GATHER);
                }
                seen = state;
                continue;
            }
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = shared.retain_all(&mut memories, clock()) => {}
        }
        last = Instant::now();
        due = last + interval;
    }
}

/// Whether a topic that was there has another configuration now.
fn configuration_changed(seen: &CatalogState, now: &CatalogState) -> bool {
    let changed = |(id, topic): (&TopicId, &Arc<TopicRecord>)| {
        let before = seen.topics().get(id);
        before.is_some_and(|before| !Arc::ptr_eq(before, topic) && before.config != topic.config)
    };
    now.topics().iter().any(changed)
}

/// Whether every broker understands that producers expire: one that does not would go on remembering them, and judge by that if it
/// came to lead.
fn all_know_of_expiry(state: &CatalogState) -> bool {
    state.brokers().values().all(|broker| broker.feature_level >= EXPIRY_LEVEL)
}

impl Shared {
    async fn retain_all(&self, memories: &mut BTreeMap<GroupId, Memory>, now: i64) {
        let state = self.catalog.state();
        let expire = all_know_of_expiry(&state);
        let mut configs = BTreeMap::new();
        let mut looks = Vec::new();
        memories.retain(|group, _| state.group(*group).is_some());
        for (group, hosted) in self.routing.all_hosted() {
            let Some(home) = state.group(group) else { continue };
            let Some(topic) = state.topics().get(&home.topic) else { continue };
            let resolve = || Arc::new(TopicConfig::resolve(&topic.config, &self.config.log));
            let config = configs.entry(home.topic).or_insert_with(resolve).clone();
            let mut memory = memories.remove(&group).unwrap_or_default();
            looks.push(async move {
                retain(&hosted, &config, &mut memory, now).await;
                let expired = self.expired_below(&hosted, &mut memory).filter(|_| expire);
                if let Some(below) = expired {
                    expire_producers(&hosted, below).await;
                }
                (group, memory)
            });
        }
        let looked_at: Vec<_> = stream::iter(looks).buffer_unordered(CONCURRENT).collect().await;
        memories.extend(looked_at);
    }

    /// Below which index producers of a partition that is led here have expired, if there are any.
    fn expired_below(&self, hosted: &Hosted, memory: &mut Memory) -> Option<u64> {
        let committed_end = hosted.group.status().applied_index.map_or(0, |index| index + 1);
        let below = memory.timeline.look(committed_end, Instant::now(), self.config.producer_id_expiration)?;
        let idlest = hosted.leads().then(|| hosted.group.log().oldest_remembered())??;
        (idlest < below).then_some(below)
    }
}

async fn expire_producers(hosted: &Hosted, below: u64) {
    let group = hosted.group.group();
    match hosted.partition.expire_producers(below, PROPOSE_TIMEOUT).await {
        Ok(()) => tracing::debug!(%group, below, "producers have expired"),
        Err(error) => tracing::debug!(%group, %error, "no producer was let expire"),
    }
}

/// Looks after one partition's segments.
async fn retain(hosted: &Hosted, config: &TopicConfig, memory: &mut Memory, now: i64) {
    let (group, log) = (&hosted.group, hosted.group.log());
    log.set_segment_bytes_max(config.segment_bytes);
    match log.segment_age().await {
        Ok(Some(age)) if is_old(age.first_timestamp, age.open_for, config.segment_ms, now) => log.roll(),
        Ok(_) => {}
        // Whoever reads these records says so too.
        Err(error) => tracing::debug!(group = %group.group(), %error, "a segment's age is not known"),
    }
    if hosted.leads() {
        let policy = RetentionPolicy { retention_ms: config.retention_ms, retention_bytes: config.retention_bytes };
        let log_start = log.log_start_offset();
        let plan = plan(&log.segments(), log_start, log.high_watermark(), &policy, now);
        let spacing = Duration::from_millis(config.retention_ms.unwrap_or(0) / NOTES_PER_RETENTION);
        let may_note = memory.noted.is_none_or(|at| at.elapsed() >= spacing);
        if plan.log_start.is_some() || (plan.note_time && may_note) {
            let start = plan.log_start.map_or(log_start, Into::into);
            match hosted.partition.start_log_at(start, now, PROPOSE_TIMEOUT).await {
                Ok(start) => {
                    tracing::debug!(group = %group.group(), %start, "the log starts");
                    memory.noted = Some(Instant::now());
                }
                Err(error) => tracing::debug!(group = %group.group(), %error, "the log start was not moved"),
            }
        }
    }
    if let Err(error) = group.trim().await {
        tracing::debug!(group = %group.group(), %error, "segments below the log start stay until the next look");
    }
}

#[cfg(test)]
mod tests {
    use pontoon_raft::types::{BrokerId, DirectoryId, ReplicaId};

    use super::*;
    use crate::catalog::apply::execute;
    use crate::catalog::command::{BrokerRegistration, Command};

    #[test]
    fn producers_expire_once_every_broker_knows_what_that_is() {
        let mut state = CatalogState::default();
        let mut register = |broker: u32, feature_level| {
            let registration = BrokerRegistration {
                broker: BrokerId(broker),
                directory: DirectoryId(broker.into()),
                incarnation: 1,
                peer_address: String::new(),
                http_address: String::new(),
                catalog_replica: ReplicaId(broker.into()),
                feature_level,
            };
            execute(&mut state, &Command::RegisterBroker(registration)).0.unwrap();
            all_know_of_expiry(&state)
        };
        assert!(register(1, EXPIRY_LEVEL));
        assert!(!register(2, EXPIRY_LEVEL - 1));
        assert!(!register(1, EXPIRY_LEVEL + 1));
        assert!(register(2, EXPIRY_LEVEL));
    }
}
