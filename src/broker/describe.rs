//! Topics, partitions, brokers and the cluster, described: from the catalog's copy here and from what leaders claim.

use std::collections::BTreeMap;
use std::time::Duration;

use pontoon_raft::types::{BrokerId, Offset};
use serde::{Deserialize, Serialize};

use super::ConfigEntry;
use super::shared::Shared;
use super::summary::{Behind, DirectoryHealth, STALLED_AFTER};
use super::topics::unknown_topic;
use crate::catalog::command::BrokerRegistration;
use crate::catalog::state::{CatalogState, PartitionRecord, ReplicaState, TopicId, TopicRecord};
use crate::catalog::topic_config::{self, TopicConfig};
use crate::controller::CATALOG_GROUP;
use crate::controller::repair::is_lost;
use crate::error::{Code, Error, Result};

/// A topic, described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicDescription {
    /// Its name.
    pub name: String,
    /// Its id, 32 hexadecimal digits; another topic of the name later has another.
    pub topic_id: String,
    /// What was configured (not the defaults).
    pub config: BTreeMap<String, String>,
    /// Its partitions, in order.
    pub partitions: Vec<PartitionDescription>,
}

/// A partition, described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionDescription {
    /// Its number.
    pub partition: u32,
    /// The broker that leads it, as far as is known here.
    pub leader: Option<BrokerId>,
    /// The leader's term.
    pub leader_epoch: u64,
    /// The brokers that hold it; the first is the preferred leader.
    pub replicas: Vec<BrokerId>,
    /// How many replicas more there are to be: a recovery left fewer than there were, and they wait for brokers.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub replicas_missing: u32,
    /// The brokers whose replica is lost: its files are missing or unusable, or were on another disk. It votes no more; unless a majority
    /// of the others is left to give the broker a new one, it never will.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<BrokerId>,
    /// Whether it has a leader, and most of those who vote are alive: else nothing can be written.
    pub takes_writes: bool,
    /// The brokers whose replica is alive and not behind, the leader's always.
    pub in_sync: Vec<BrokerId>,
    /// The replicas that are behind, what they lack, and why, as last reported by the leader.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lagging: Vec<LaggingReplica>,
    /// Oldest readable offset, as last reported by the leader.
    pub log_start_offset: Offset,
    /// High watermark, as last reported by the leader.
    pub high_watermark: Offset,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// A replica that is behind its leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaggingReplica {
    /// Its broker.
    pub broker: BrokerId,
    /// Records that it lacks, about; `None`: its leader has not heard of it since it leads.
    pub records: Option<u64>,
    /// Bytes that it lacks, about.
    pub bytes: Option<u64>,
    /// Why.
    pub reason: LagReason,
}

/// Why a replica is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LagReason {
    /// Its broker is dead.
    Dead,
    /// Its files are lost; it waits for a replacement.
    Lost,
    /// It was placed there lately and is being filled.
    New,
    /// It takes records, and has not all of them yet.
    CatchingUp,
    /// Its broker lives and has taken nothing for some seconds: its disk may be full or slow.
    Stalled,
}

/// A broker, described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerDescription {
    /// Its number.
    pub broker_id: BrokerId,
    /// Where clients reach it over HTTP, `host:port`.
    pub http_address: String,
    /// Where Kafka clients reach it; `None` if they do not, or if it has not been heard of since the answering broker started.
    pub kafka_address: Option<String>,
    /// Where brokers reach it.
    pub peer_address: String,
    /// Whether the answering broker's detector holds it alive.
    pub alive: bool,
    /// How many partitions it leads.
    pub leads: u32,
    /// How many replicas it holds.
    pub replicas: u32,
    /// How many of its replicas are behind their leader.
    pub lagging: u32,
    /// What is rotten in its data directory, in words: being repaired, or in need of a person. Not shown if nothing is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damage: Vec<String>,
    /// Folders in its data directory that are kept of rotten or lost replicas that were replaced, until a person has looked at them and
    /// removes them. Not shown if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<String>,
    /// What was rotten in its data directory since it started and is whole again, in words: nothing is missing, but its disk may be
    /// failing. Not shown if nothing was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub healed: Vec<String>,
}

/// The cluster, described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterDescription {
    /// 32 hexadecimal digits.
    pub cluster_id: String,
    /// The broker that leads the catalog.
    pub controller: Option<BrokerId>,
    /// Every broker.
    pub brokers: Vec<BrokerDescription>,
}

/// Why a replica is behind. What the leader said last of one that has just come back may be of when it was dead: it has the time to take
/// something that every other has.
fn reason(alive_for: Option<Duration>, state: Option<ReplicaState>, moves: bool) -> LagReason {
    match (alive_for, state) {
        (None, _) => LagReason::Dead,
        (_, Some(ReplicaState::Lost)) => LagReason::Lost,
        (_, Some(ReplicaState::New)) => LagReason::New,
        (Some(alive_for), _) if moves || alive_for < STALLED_AFTER => LagReason::CatchingUp,
        _ => LagReason::Stalled,
    }
}

/// Those who are in sync, sorted, with the leader among them: it is by what it is, also before it has claimed anything.
fn with_leader(mut in_sync: Vec<BrokerId>, leader: Option<BrokerId>) -> Vec<BrokerId> {
    if let Some((leader, at)) = leader.and_then(|leader| Some((leader, in_sync.binary_search(&leader).err()?))) {
        in_sync.insert(at, leader);
    }
    in_sync
}

impl Shared {
    pub(super) fn topics(&self) -> Vec<TopicDescription> {
        let state = self.catalog.state();
        let mut topics: Vec<_> = state.topics().values().map(|topic| self.describe(topic)).collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        topics
    }

    pub(super) fn topic(&self, name: &str) -> Result<TopicDescription> {
        self.check_known()?;
        let state = self.catalog.state();
        state.topic(name).map(|topic| self.describe(topic)).ok_or_else(|| unknown_topic(name))
    }

    pub(super) fn topic_id(&self, name: &str) -> Option<u128> {
        self.catalog.state().topic(name).map(|topic| topic.id.0)
    }

    pub(super) fn partition(&self, name: &str, topic_id: u128, number: u32) -> Option<PartitionDescription> {
        self.check_known().ok()?;
        let state = self.catalog.state();
        let topic = state.topic(name).filter(|topic| topic.id == TopicId(topic_id))?;
        Some(self.describe_partition(number, topic.partitions.get(number as usize)?))
    }

    pub(super) fn topic_by_id(&self, topic_id: u128) -> Result<TopicDescription> {
        self.with_topic(topic_id, |topic| self.describe(topic))
    }

    pub(super) fn topic_name(&self, topic_id: u128) -> Result<String> {
        self.with_topic(topic_id, |topic| topic.name.clone())
    }

    fn with_topic<T>(&self, topic_id: u128, tell: impl FnOnce(&TopicRecord) -> T) -> Result<T> {
        self.check_known()?;
        let topic_id = TopicId(topic_id);
        let state = self.catalog.state();
        let unknown = || Error::new(Code::UnknownTopic, format!("there is no topic of id {topic_id}"));
        state.topics().get(&topic_id).map(|topic| tell(topic)).ok_or_else(unknown)
    }

    pub(super) fn topic_config_entries(&self, name: &str) -> Result<Vec<ConfigEntry>> {
        self.check_known()?;
        let state = self.catalog.state();
        let topic = state.topic(name).ok_or_else(|| unknown_topic(name))?;
        Ok(self.config_entries(&topic.config))
    }

    /// What a topic with this configuration of its own has in all.
    pub(super) fn config_entries(&self, own: &BTreeMap<String, String>) -> Vec<ConfigEntry> {
        let entry = |(key, built_in)| ConfigEntry {
            name: key,
            topic: own.get(key).cloned(),
            broker: self.config.log.get(key).cloned(),
            built_in,
        };
        topic_config::keys().map(entry).collect()
    }

    /// How many replicas the partition with the fewest has, or is to get back.
    pub(super) fn fewest_replicas(&self, name: &str) -> Result<u32> {
        self.check_known()?;
        let state = self.catalog.state();
        let topic = state.topic(name).ok_or_else(|| unknown_topic(name))?;
        let replicas = topic.partitions.iter().map(|record| state.replicas_wanted(record));
        Ok(replicas.min().unwrap_or(1))
    }

    pub(super) fn topic_config(&self, name: &str) -> Result<TopicConfig> {
        self.check_known()?;
        let state = self.catalog.state();
        let topic = state.topic(name).ok_or_else(|| unknown_topic(name))?;
        Ok(TopicConfig::resolve(&topic.config, &self.config.log))
    }

    pub(super) fn describe(&self, topic: &TopicRecord) -> TopicDescription {
        let partitions = (0..).zip(&topic.partitions).map(|(number, record)| self.describe_partition(number, record));
        TopicDescription {
            name: topic.name.clone(),
            topic_id: topic.id.to_string(),
            config: topic.config.clone(),
            partitions: partitions.collect(),
        }
    }

    fn describe_partition(&self, partition: u32, record: &PartitionRecord) -> PartitionDescription {
        let leader = self.leader(record);
        let claim = self.routing.claim(record.group);
        let (mut log_start_offset, mut high_watermark) =
            claim.as_ref().map_or((Offset(0), Offset(0)), |claim| (claim.log_start_offset, claim.high_watermark));
        if let Some(hosted) = self.routing.hosted(record.group) {
            // What is committed here is committed; the leader's claim may be a second old.
            let log = hosted.group.log();
            high_watermark = high_watermark.max(log.high_watermark());
            if leader.is_some_and(|(leader, _)| leader == self.broker) || claim.is_none() {
                log_start_offset = log.log_start_offset();
            }
        }
        let majority = match self.routing.hosted(record.group).filter(|hosted| hosted.leads()) {
            Some(hosted) => hosted.group.may_have_majority(),
            // One that was just elected may not have said anything of it yet.
            None => claim.as_ref().is_none_or(|claim| claim.majority),
        };
        let (in_sync, behind) = claim.map(|claim| (claim.in_sync, claim.behind)).unwrap_or_default();
        let (leader, leader_epoch) = leader.unzip();
        // Its predecessor may have claimed so of it.
        let behind = behind.into_iter().filter(|behind| Some(behind.broker) != leader);
        PartitionDescription {
            takes_writes: leader.is_some() && majority,
            partition,
            leader,
            leader_epoch: leader_epoch.unwrap_or(0),
            replicas: record.replicas.iter().map(|replica| replica.broker).collect(),
            replicas_missing: self.catalog.state().replicas_wanted(record).saturating_sub(record.replicas.len() as u32),
            lost: self.lost(&self.catalog.state(), record),
            in_sync: with_leader(in_sync.into_iter().filter(|broker| self.alive(*broker)).collect(), leader),
            lagging: behind.map(|behind| self.lagging(record, behind)).collect(),
            log_start_offset,
            high_watermark,
        }
    }

    /// The brokers whose replica of a partition is lost, by the catalog.
    pub(super) fn lost(&self, state: &CatalogState, partition: &PartitionRecord) -> Vec<BrokerId> {
        let lost = partition.replicas.iter().filter(|replica| is_lost(state, replica));
        lost.map(|replica| replica.broker).collect()
    }

    /// Why a replica is behind, as far as is known here.
    fn lagging(&self, partition: &PartitionRecord, behind: Behind) -> LaggingReplica {
        let record = partition.on(behind.broker);
        let reason = reason(self.alive_for(behind.broker), record.map(|record| record.state), behind.moves);
        let (records, bytes) = behind.lag.unzip();
        LaggingReplica { broker: behind.broker, records, bytes, reason }
    }

    fn kafka_address_of(&self, broker: BrokerId) -> Option<String> {
        match broker == self.broker {
            true => self.kafka_address(),
            false => self.routing.kafka_address(broker),
        }
    }

    /// Where Kafka's clients reach the brokers that live. If they are too few, all that were ever heard of: perhaps it is this broker that is
    /// cut off, and clients may reach the others. Most replace their list by the latest, and would be captive here.
    pub(super) fn kafka_addresses(&self) -> Vec<(BrokerId, String)> {
        let state = self.catalog.state();
        let few = !self.groups.get(CATALOG_GROUP).is_some_and(|group| group.may_have_majority());
        let listed = state.brokers().keys().filter(|broker| few || self.alive(**broker));
        listed.filter_map(|broker| Some((*broker, self.kafka_address_of(*broker)?))).collect()
    }

    pub(super) fn cluster_id(&self) -> String {
        self.store.cluster().map(|cluster| format!("{:032x}", cluster.0)).unwrap_or_default()
    }

    pub(super) fn leader_of(&self, topic: &str, partition: u32) -> Option<(BrokerId, u64)> {
        let state = self.catalog.state();
        self.leader(state.topic(topic)?.partitions.get(partition as usize)?)
    }

    pub(super) fn cluster(&self) -> ClusterDescription {
        let state = self.catalog.state();
        let leads = self.routing.claims_by_broker();
        let placed = || {
            let partitions = state.topics().values().flat_map(|topic| &topic.partitions);
            partitions.flat_map(|partition| partition.replicas.iter().map(|replica| (partition.group, replica.broker)))
        };
        let lagging = self.routing.lagging_by_broker(placed());
        let mut replicas = BTreeMap::<_, u32>::new();
        placed().for_each(|(_, broker)| *replicas.entry(broker).or_default() += 1);
        let count = |counts: &BTreeMap<BrokerId, u32>, broker| counts.get(&broker).copied().unwrap_or(0);
        let describe = |known: &BrokerRegistration| {
            let DirectoryHealth { damage, kept, healed } = match known.broker == self.broker {
                true => self.directory_health(),
                false => self.routing.directory_health(known.broker),
            };
            BrokerDescription {
                broker_id: known.broker,
                http_address: known.http_address.clone(),
                kafka_address: self.kafka_address_of(known.broker),
                peer_address: known.peer_address.clone(),
                alive: self.alive(known.broker),
                leads: count(&leads, known.broker),
                replicas: count(&replicas, known.broker),
                lagging: count(&lagging, known.broker),
                damage,
                kept,
                healed,
            }
        };
        let mut brokers: Vec<_> = state.brokers().values().map(describe).collect();
        brokers.extend(self.damaged_stranger(&state));
        ClusterDescription {
            cluster_id: self.cluster_id(),
            controller: self.known_controller().map(|(broker, _)| broker),
            brokers,
        }
    }

    /// This broker, if what the catalog's copy here knows does not have it, and there is damage to tell of: the catalog may be what is
    /// damaged.
    fn damaged_stranger(&self, state: &CatalogState) -> Option<BrokerDescription> {
        let health = self.directory_health();
        let (known, nothing) = (state.brokers().contains_key(&self.broker), health == DirectoryHealth::default());
        let DirectoryHealth { damage, kept, healed } = health;
        (!known && !nothing).then(|| BrokerDescription {
            broker_id: self.broker,
            http_address: self.http_address.clone(),
            kafka_address: self.kafka_address(),
            peer_address: self.peer_address.clone(),
            alive: true,
            leads: 0,
            replicas: 0,
            lagging: 0,
            damage,
            kept,
            healed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_is_in_sync_before_it_has_claimed_anything() {
        let ids = |ids: &[u32]| ids.iter().copied().map(BrokerId).collect::<Vec<_>>();
        assert_eq!(with_leader(ids(&[]), None), ids(&[]));
        assert_eq!(with_leader(ids(&[]), Some(BrokerId(2))), ids(&[2]));
        assert_eq!(with_leader(ids(&[1, 3]), Some(BrokerId(2))), ids(&[1, 2, 3]), "its predecessor's claim");
        assert_eq!(with_leader(ids(&[1, 2]), Some(BrokerId(2))), ids(&[1, 2]));
    }

    #[test]
    fn who_has_just_come_back_is_not_said_to_be_stalled() {
        let (created, moment) = (Some(ReplicaState::Created), Duration::from_millis(1));
        assert_eq!(reason(None, created, true), LagReason::Dead);
        assert_eq!(reason(Some(Duration::ZERO), created, false), LagReason::CatchingUp);
        assert_eq!(reason(Some(STALLED_AFTER - moment), created, false), LagReason::CatchingUp);
        assert_eq!(reason(Some(STALLED_AFTER), created, false), LagReason::Stalled);
        assert_eq!(reason(Some(STALLED_AFTER), created, true), LagReason::CatchingUp);
        assert_eq!(reason(Some(moment), Some(ReplicaState::Lost), false), LagReason::Lost);
        assert_eq!(reason(Some(moment), Some(ReplicaState::New), false), LagReason::New);
    }
}
