//! The catalog's state: brokers, topics, placements, producer ids. A value; [`super::apply`] changes it.
//!
//! Copies are cheap: the maps are shared until changed, so a snapshot for readers costs a few counters. As *rows*
//! ([`CatalogState::row`]) the same state stands in the tables and in snapshots. Does no I/O.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use pontoon_raft::codec;
use pontoon_raft::types::{BrokerId, ClusterId, DirectoryId, GroupId, ReplicaId, repr};
use serde::{Deserialize, Serialize};

use super::command::{BrokerRegistration, Placement};
use super::names::collision_key;
use super::topic_config::TopicConfig;

/// Names one creation of a topic; another topic of the name later has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TopicId(pub u128);

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Where a replica stands in its life (RULES.md R5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaState {
    /// Assigned. Only now may it start empty.
    New,
    /// Reported created: from now on missing files mean lost.
    Created,
    /// Its files are missing or unusable, or its core kept ending. Waits for a replacement under a new id, or runs again.
    Lost,
}

/// A replica of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// The broker.
    pub broker: BrokerId,
    /// Its data directory.
    pub directory: DirectoryId,
    /// The id.
    pub replica: ReplicaId,
    /// Where it stands.
    pub state: ReplicaState,
}

impl From<Placement> for ReplicaRecord {
    fn from(placement: Placement) -> Self {
        let Placement { broker, directory, replica } = placement;
        Self { broker, directory, replica, state: ReplicaState::New }
    }
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionRecord {
    /// Its Raft group.
    pub group: GroupId,
    /// Its replicas, the preferred leader first.
    pub replicas: Vec<ReplicaRecord>,
    /// Replicas that have been replaced and may still be members of the group.
    pub leaving: Vec<ReplicaRecord>,
    /// Whether the group has had a leader. Until then it acknowledges nothing: no broker routes to it.
    pub initialised: bool,
}

impl PartitionRecord {
    /// The replica of this id, if it is assigned (not leaving).
    pub fn replica(&self, replica: ReplicaId) -> Option<&ReplicaRecord> {
        self.replicas.iter().find(|record| record.replica == replica)
    }

    /// Whether this replica is assigned, or may still be a member.
    pub fn knows(&self, replica: ReplicaId) -> bool {
        self.replicas.iter().chain(&self.leaving).any(|record| record.replica == replica)
    }

    /// The replica on this broker, if one is assigned.
    pub fn on(&self, broker: BrokerId) -> Option<&ReplicaRecord> {
        self.replicas.iter().find(|record| record.broker == broker)
    }
}

/// What a recovery made of a partition. Stands as long as the partition does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryRecord {
    /// The replica that the partition goes on from.
    pub survivor: ReplicaId,
    /// Every id that was given out before the recovery is below this one: whoever has one of these, the survivor apart, is given
    /// up, and no member of the group any more, whatever the survivor's log says.
    pub below: ReplicaId,
    /// How many replicas the partition had, and is to have again.
    pub replicas: u32,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicRecord {
    /// Its id.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// What was configured.
    pub config: BTreeMap<String, String>,
    /// Its partitions, in order.
    pub partitions: Vec<Arc<PartitionRecord>>,
}

/// Where a group belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupHome {
    /// The topic.
    pub topic: TopicId,
    /// The partition's number.
    pub partition: u32,
}

/// The catalog, as of a log id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatalogState {
    /// The last log id it reflects. Not a row: the stamp of tables and snapshots.
    pub applied: Option<repr::LogId>,
    pub(super) meta: Meta,
    pub(super) brokers: Arc<BTreeMap<BrokerId, BrokerRegistration>>,
    pub(super) topics: Arc<BTreeMap<TopicId, Arc<TopicRecord>>>,
    /// By [`collision_key`].
    pub(super) names: Arc<BTreeMap<String, TopicId>>,
    pub(super) groups: Arc<BTreeMap<GroupId, GroupHome>>,
    pub(super) recoveries: Arc<BTreeMap<GroupId, RecoveryRecord>>,
    /// What the cluster was called before each recovery, the oldest first.
    pub(super) superseded: Arc<Vec<ClusterId>>,
}

/// The single values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) cluster: Option<ClusterId>,
    pub(super) feature_level: u32,
    pub(super) next_group: u64,
    pub(super) next_replica: u64,
    pub(super) next_producer: i64,
}

impl Default for Meta {
    /// Group 0 is the catalog's own; everything else counts from 1.
    fn default() -> Self {
        Self { cluster: None, feature_level: 1, next_group: 1, next_replica: 1, next_producer: 1 }
    }
}

impl CatalogState {
    /// The cluster, once formed.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.meta.cluster
    }

    /// The level up to which commands are let in.
    pub fn feature_level(&self) -> u32 {
        self.meta.feature_level
    }

    /// The lowest group id never used.
    pub fn next_group(&self) -> GroupId {
        GroupId(self.meta.next_group)
    }

    /// The lowest replica id never used (group 0 apart, whose ids are random).
    pub fn next_replica(&self) -> ReplicaId {
        ReplicaId(self.meta.next_replica)
    }

    /// Every broker.
    pub fn brokers(&self) -> &BTreeMap<BrokerId, BrokerRegistration> {
        &self.brokers
    }

    /// The feature level that every registered broker knows.
    pub(super) fn level_of_all(&self) -> u32 {
        self.brokers.values().map(|broker| broker.feature_level).min().unwrap_or(0)
    }

    /// Every topic, by id.
    pub fn topics(&self) -> &BTreeMap<TopicId, Arc<TopicRecord>> {
        &self.topics
    }

    /// The topic of exactly this name.
    pub fn topic(&self, name: &str) -> Option<&Arc<TopicRecord>> {
        self.colliding_topic(name).filter(|topic| topic.name == name)
    }

    /// The effective configuration of a group's topic as of this state: the topic's own values over `defaults` (a broker's
    /// `log.*`) over the built-in ones. `None` if the group is no partition's (any more).
    pub fn topic_config_of(&self, group: GroupId, defaults: &BTreeMap<String, String>) -> Option<TopicConfig> {
        let topic = self.topics.get(&self.group(group)?.topic)?;
        Some(TopicConfig::resolve(&topic.config, defaults))
    }

    /// The topic that has this name or collides with it.
    pub fn colliding_topic(&self, name: &str) -> Option<&Arc<TopicRecord>> {
        self.topics.get(self.names.get(&collision_key(name))?)
    }

    /// Where a group belongs.
    pub fn group(&self, group: GroupId) -> Option<GroupHome> {
        self.groups.get(&group).copied()
    }

    /// A group's partition.
    pub fn partition(&self, group: GroupId) -> Option<&Arc<PartitionRecord>> {
        let home = self.groups.get(&group)?;
        self.topics.get(&home.topic)?.partitions.get(home.partition as usize)
    }

    /// What a recovery made of a group's partition, if one did.
    pub fn recovery(&self, group: GroupId) -> Option<&RecoveryRecord> {
        self.recoveries.get(&group)
    }

    /// Every partition that a recovery has made something of.
    pub fn recoveries(&self) -> &BTreeMap<GroupId, RecoveryRecord> {
        &self.recoveries
    }

    /// How many replicas a partition is to have: as many as it has, unless a recovery left fewer.
    pub fn replicas_wanted(&self, partition: &PartitionRecord) -> u32 {
        let had = self.recoveries.get(&partition.group).map_or(0, |recovery| recovery.replicas);
        had.max(partition.replicas.len() as u32)
    }

    /// The ids this cluster had before it was recovered. A broker that still has one holds what was given up.
    pub fn superseded(&self) -> &[ClusterId] {
        &self.superseded
    }

    /// Whether a replica lives on the directory that its broker has today. If not, the broker has come back with another
    /// disk, and the replica is gone.
    pub fn on_current_directory(&self, replica: &ReplicaRecord) -> bool {
        self.brokers.get(&replica.broker).is_some_and(|broker| broker.directory == replica.directory)
    }
}

/// One row of the tables and snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowKey {
    /// The single values.
    Meta,
    /// A broker.
    Broker(BrokerId),
    /// A topic: name, configuration, number of partitions.
    Topic(TopicId),
    /// A partition.
    Partition(TopicId, u32),
    /// What a recovery made of a partition.
    Recovery(GroupId),
    /// The cluster's former ids, if it has any.
    Superseded,
}

impl RowKey {
    /// The key's bytes; their order is the order of rows.
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::Meta => vec![b'm'],
            Self::Broker(broker) => [&b"b"[..], &broker.0.to_be_bytes()].concat(),
            Self::Topic(topic) => [&b"t"[..], &topic.0.to_be_bytes()].concat(),
            Self::Partition(topic, partition) => [&b"u"[..], &topic.0.to_be_bytes(), &partition.to_be_bytes()].concat(),
            Self::Recovery(group) => [&b"v"[..], &group.0.to_be_bytes()].concat(),
            Self::Superseded => vec![b'w'],
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first()?;
        Some(match (tag, rest.len()) {
            (b'm', 0) => Self::Meta,
            (b'b', 4) => Self::Broker(BrokerId(u32::from_be_bytes(rest.try_into().ok()?))),
            (b't', 16) => Self::Topic(TopicId(u128::from_be_bytes(rest.try_into().ok()?))),
            (b'u', 20) => {
                let topic = u128::from_be_bytes(rest[..16].try_into().ok()?);
                Self::Partition(TopicId(topic), u32::from_be_bytes(rest[16..].try_into().ok()?))
            }
            (b'v', 8) => Self::Recovery(GroupId(u64::from_be_bytes(rest.try_into().ok()?))),
            (b'w', 0) => Self::Superseded,
            _ => return None,
        })
    }
}

/// A topic's own row.
#[derive(Serialize, Deserialize)]
struct TopicRow {
    name: String,
    config: BTreeMap<String, String>,
    partitions: u32,
}

impl CatalogState {
    /// Every row there is, in order.
    pub fn row_keys(&self) -> Vec<RowKey> {
        let brokers = self.brokers.keys().map(|broker| RowKey::Broker(*broker));
        let topics = self.topics.keys().map(|topic| RowKey::Topic(*topic));
        let partitions = self.topics.values().flat_map(|topic| {
            (0..topic.partitions.len() as u32).map(|partition| RowKey::Partition(topic.id, partition))
        });
        let recoveries = self.recoveries.keys().map(|group| RowKey::Recovery(*group));
        let superseded = (!self.superseded.is_empty()).then_some(RowKey::Superseded);
        let single = std::iter::once(RowKey::Meta);
        single.chain(brokers).chain(topics).chain(partitions).chain(recoveries).chain(superseded).collect()
    }

    /// One row's bytes, if the row exists.
    pub fn row(&self, key: RowKey) -> Option<Vec<u8>> {
        Some(match key {
            RowKey::Meta => codec::encode(&self.meta),
            RowKey::Broker(broker) => codec::encode(self.brokers.get(&broker)?),
            RowKey::Topic(topic) => {
                let TopicRecord { name, config, partitions, .. } = &**self.topics.get(&topic)?;
                let partitions = partitions.len() as u32;
                codec::encode(&TopicRow { name: name.clone(), config: config.clone(), partitions })
            }
            RowKey::Partition(topic, partition) => {
                codec::encode(&**self.topics.get(&topic)?.partitions.get(partition as usize)?)
            }
            RowKey::Recovery(group) => codec::encode(self.recoveries.get(&group)?),
            RowKey::Superseded if self.superseded.is_empty() => return None,
            RowKey::Superseded => codec::encode(&*self.superseded),
        })
    }

    /// The state whose rows these are, in the order of their keys. The error says which row is not one.
    pub fn from_rows<'a>(
        applied: Option<repr::LogId>,
        rows: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Self, String> {
        let mut builder = Builder::default();
        for (key, value) in rows {
            let bad = |error: codec::DecodeError| format!("row {key:02x?}: {error}");
            match RowKey::decode(key).ok_or_else(|| format!("row key {key:02x?} is not known"))? {
                RowKey::Meta => builder.meta = Some(codec::decode(value).map_err(bad)?),
                RowKey::Broker(broker) => {
                    builder.brokers.insert(broker, codec::decode(value).map_err(bad)?);
                }
                RowKey::Topic(topic) => {
                    builder.topics.insert(topic, codec::decode(value).map_err(bad)?);
                }
                RowKey::Partition(topic, partition) => {
                    builder.partitions.insert((topic, partition), Arc::new(codec::decode(value).map_err(bad)?));
                }
                RowKey::Recovery(group) => {
                    builder.recoveries.insert(group, codec::decode(value).map_err(bad)?);
                }
                RowKey::Superseded => builder.superseded = codec::decode(value).map_err(bad)?,
            }
        }
        builder.finish(applied)
    }
}

/// Rows on their way to a state.
#[derive(Default)]
struct Builder {
    meta: Option<Meta>,
    brokers: BTreeMap<BrokerId, BrokerRegistration>,
    topics: BTreeMap<TopicId, TopicRow>,
    partitions: BTreeMap<(TopicId, u32), Arc<PartitionRecord>>,
    recoveries: BTreeMap<GroupId, RecoveryRecord>,
    superseded: Vec<ClusterId>,
}

impl Builder {
    fn finish(mut self, applied: Option<repr::LogId>) -> Result<CatalogState, String> {
        let meta = self.meta.ok_or("the row of single values is missing")?;
        let (mut topics, mut names, mut groups) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (id, row) in self.topics {
            let mut partitions = Vec::new();
            for partition in 0..row.partitions {
                let record = self.partitions.remove(&(id, partition));
                let record = record.ok_or_else(|| format!("partition {partition} of topic {id} is missing"))?;
                groups.insert(record.group, GroupHome { topic: id, partition });
                partitions.push(record);
            }
            names.insert(collision_key(&row.name), id);
            topics.insert(id, Arc::new(TopicRecord { id, name: row.name, config: row.config, partitions }));
        }
        if let Some(((topic, partition), _)) = self.partitions.first_key_value() {
            return Err(format!("partition {partition} belongs to no topic {topic}"));
        }
        if let Some(group) = self.recoveries.keys().find(|group| !groups.contains_key(group)) {
            return Err(format!("recovery of group {group}, which no partition has"));
        }
        Ok(CatalogState {
            applied,
            meta,
            brokers: Arc::new(self.brokers),
            topics: Arc::new(topics),
            names: Arc::new(names),
            groups: Arc::new(groups),
            recoveries: Arc::new(self.recoveries),
            superseded: Arc::new(self.superseded),
        })
    }
}
