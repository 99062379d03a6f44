//! What each command does to the catalog's state: the deterministic serial point.
//!
//! [`execute`] is a pure function of state and command. It reads no clock, no configuration of a broker and draws no
//! random number, so that every broker comes to the same state. A refused command changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pontoon_raft::codec;
use pontoon_raft::types::{ClusterId, GroupId, ReplicaId};

use super::command::{
    Addition, BrokerRegistration, Command, CommandError, CommandResult, Done, Envelope, FEATURE_LEVEL, NewPartition,
    PARTITIONS_MAX, Placement, REPLICAS_MAX, RETURN_LEVEL, Replacement, ReplicaReport,
};
use super::names::{check_topic_name, collision_key};
use super::state::{
    CatalogState, GroupHome, PartitionRecord, ReplicaRecord, ReplicaState, RowKey, TopicId, TopicRecord,
};
use super::topic_config;

mod recovery;

/// Longest address and longest reason of a lost replica, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// Rows that a command changed.
pub type Changed = BTreeSet<RowKey>;

/// Executes one proposal's bytes. `Err(level)`: this version does not know the level the cluster has reached, and must stop.
pub fn execute_bytes(state: &mut CatalogState, bytes: &[u8]) -> Result<(CommandResult, Changed), u32> {
    let envelope = match Envelope::decode(bytes) {
        Ok(envelope) => envelope,
        Err(error) => return Ok((Err(CommandError::Malformed(error.to_string())), Changed::new())),
    };
    let (needs, has) = (envelope.feature_level, state.meta.feature_level);
    if has > FEATURE_LEVEL {
        return Err(has);
    }
    if needs > has {
        let why = format!("the command needs feature level {needs}; the cluster has {has}");
        return Ok((Err(CommandError::FeatureLevel(why)), Changed::new()));
    }
    match codec::decode::<Command>(&envelope.command) {
        Ok(command) => Ok(execute(state, &command)),
        Err(error) => Ok((Err(CommandError::Malformed(error.to_string())), Changed::new())),
    }
}

/// Executes one command: changes `state` and says which rows, or changes nothing and says why.
pub fn execute(state: &mut CatalogState, command: &Command) -> (CommandResult, Changed) {
    let mut work = Work { state: state.clone(), changed: Changed::new() };
    let result = work.execute(command);
    if result.is_err() {
        return (result, Changed::new());
    }
    *state = work.state;
    (result, work.changed)
}

/// A copy of the state that a command works on; thrown away if it fails half-way.
struct Work {
    state: CatalogState,
    changed: Changed,
}

impl Work {
    fn execute(&mut self, command: &Command) -> CommandResult {
        match command {
            Command::FormCluster { cluster } => self.form_cluster(*cluster),
            Command::RegisterBroker(registration) => self.register_broker(registration),
            Command::CreateTopic { topic, name, config, partitions } => {
                self.create_topic(*topic, name, config, partitions)
            }
            Command::DeleteTopic { topic } => self.delete_topic(*topic),
            Command::AlterTopic { topic, config, partitions_before, partitions } => {
                self.alter_topic(*topic, config, *partitions_before, partitions)
            }
            Command::ReplaceReplicas { replacements } => self.replace_replicas(replacements),
            Command::RestartPartition { group, replicas } => self.restart_partition(*group, replicas),
            Command::Report(report) => Ok(self.report(report)),
            Command::AllocateProducerIds { count } => self.allocate_producer_ids(*count),
            Command::SetFeatureLevel { level } => self.set_feature_level(*level),
            Command::Recover(recovery) => self.recover(recovery),
            Command::AddReplicas { additions } => self.add_replicas(additions),
        }
    }

    fn form_cluster(&mut self, cluster: ClusterId) -> CommandResult {
        match self.state.meta.cluster {
            None => {
                self.state.meta.cluster = Some(cluster);
                self.changed.insert(RowKey::Meta);
                Ok(Done::Changed)
            }
            Some(found) if found == cluster => Ok(Done::Unchanged),
            Some(found) => Err(CommandError::ForeignCluster { found: found.0, asked: cluster.0 }),
        }
    }

    fn register_broker(&mut self, new: &BrokerRegistration) -> CommandResult {
        let refuse = |why: String| Err(CommandError::BrokerRefused { broker: new.broker, why });
        let level = self.state.meta.feature_level;
        if new.feature_level < level {
            return refuse(format!("it knows feature level {}, the cluster has {level}", new.feature_level));
        }
        if new.peer_address.len() > TEXT_BYTES_MAX || new.http_address.len() > TEXT_BYTES_MAX {
            return refuse(format!("an address is longer than {TEXT_BYTES_MAX} bytes"));
        }
        for known in self.state.brokers.values() {
            let same_place = known.broker == new.broker && known.directory == new.directory;
            if known.catalog_replica == new.catalog_replica && !same_place {
                return refuse(format!("catalog replica {} is broker {}'s", new.catalog_replica, known.broker));
            }
            if known.directory == new.directory && known.broker != new.broker {
                return refuse(format!("data directory {:032x} is broker {}'s", new.directory.0, known.broker));
            }
        }
        if self.state.brokers.get(&new.broker) == Some(new) {
            return Ok(Done::Unchanged);
        }
        Arc::make_mut(&mut self.state.brokers).insert(new.broker, new.clone());
        self.changed.insert(RowKey::Broker(new.broker));
        Ok(Done::Changed)
    }

    fn create_topic(
        &mut self,
        id: TopicId,
        name: &str,
        config: &BTreeMap<String, String>,
        partitions: &[NewPartition],
    ) -> CommandResult {
        check_topic_name(name).map_err(CommandError::InvalidName)?;
        if let Some(existing) = self.state.colliding_topic(name) {
            return Err(match &existing.name {
                same if same == name => CommandError::TopicExists(name.to_owned()),
                other => CommandError::NameCollision { name: name.to_owned(), existing: other.clone() },
            });
        }
        if self.state.topics.contains_key(&id) {
            return Err(CommandError::Stale(format!("topic id {id} is taken")));
        }
        let level = self.state.level_of_all();
        for (key, value) in config {
            topic_config::check_at(level, key, Some(value)).map_err(CommandError::InvalidConfig)?;
        }
        if partitions.is_empty() {
            return Err(CommandError::InvalidPartitions("a topic has at least one partition".to_owned()));
        }
        let partitions = self.new_partitions(id, 0, partitions)?;
        let topic = TopicRecord { id, name: name.to_owned(), config: config.clone(), partitions };
        Arc::make_mut(&mut self.state.topics).insert(id, Arc::new(topic));
        Arc::make_mut(&mut self.state.names).insert(collision_key(name), id);
        self.changed.insert(RowKey::Topic(id));
        Ok(Done::Changed)
    }

    fn delete_topic(&mut self, id: TopicId) -> CommandResult {
        let Some(topic) = Arc::make_mut(&mut self.state.topics).remove(&id) else {
            return Err(CommandError::UnknownTopic(id));
        };
        Arc::make_mut(&mut self.state.names).remove(&collision_key(&topic.name));
        let groups = Arc::make_mut(&mut self.state.groups);
        for (number, partition) in topic.partitions.iter().enumerate() {
            groups.remove(&partition.group);
            self.changed.insert(RowKey::Partition(id, number as u32));
            if self.state.recoveries.contains_key(&partition.group) {
                Arc::make_mut(&mut self.state.recoveries).remove(&partition.group);
                self.changed.insert(RowKey::Recovery(partition.group));
            }
        }
        self.changed.insert(RowKey::Topic(id));
        Ok(Done::Changed)
    }

    fn alter_topic(
        &mut self,
        id: TopicId,
        config: &BTreeMap<String, Option<String>>,
        partitions_before: u32,
        partitions: &[NewPartition],
    ) -> CommandResult {
        let topic = self.state.topics.get(&id).ok_or(CommandError::UnknownTopic(id))?;
        let mut topic = TopicRecord::clone(topic);
        let level = self.state.level_of_all();
        for (key, value) in config {
            topic_config::check_at(level, key, value.as_deref()).map_err(CommandError::InvalidConfig)?;
            match value {
                Some(value) => topic.config.insert(key.clone(), value.clone()),
                None => topic.config.remove(key),
            };
        }
        let count = topic.partitions.len() as u32;
        if !partitions.is_empty() && count != partitions_before {
            let why = format!("topic {:?} has {count} partitions, not {partitions_before}", topic.name);
            return Err(CommandError::Stale(why));
        }
        topic.partitions.extend(self.new_partitions(id, count, partitions)?);
        if **self.state.topics.get(&id).ok_or(CommandError::UnknownTopic(id))? == topic {
            return Ok(Done::Unchanged);
        }
        Arc::make_mut(&mut self.state.topics).insert(id, Arc::new(topic));
        self.changed.insert(RowKey::Topic(id));
        Ok(Done::Changed)
    }

    /// Checks partitions that a topic gets and takes their ids.
    fn new_partitions(
        &mut self,
        topic: TopicId,
        first: u32,
        partitions: &[NewPartition],
    ) -> Result<Vec<Arc<PartitionRecord>>, CommandError> {
        let total = partitions.len().saturating_add(first as usize);
        if total > PARTITIONS_MAX as usize {
            let why = format!("a topic has at most {PARTITIONS_MAX} partitions, not {total}");
            return Err(CommandError::InvalidPartitions(why));
        }
        let mut records = Vec::with_capacity(partitions.len());
        for (number, partition) in (first..).zip(partitions) {
            self.take_group(partition.group)?;
            let replicas = self.new_replicas(&partition.replicas)?;
            Arc::make_mut(&mut self.state.groups).insert(partition.group, GroupHome { topic, partition: number });
            self.changed.insert(RowKey::Partition(topic, number));
            let record = PartitionRecord { group: partition.group, replicas, leaving: Vec::new(), initialised: false };
            records.push(Arc::new(record));
        }
        Ok(records)
    }

    /// Checks a partition's replicas, one per broker, and takes their ids.
    fn new_replicas(&mut self, placements: &[Placement]) -> Result<Vec<ReplicaRecord>, CommandError> {
        if placements.is_empty() || placements.len() > REPLICAS_MAX as usize {
            let why = format!("a partition has 1 to {REPLICAS_MAX} replicas, not {}", placements.len());
            return Err(CommandError::InvalidPartitions(why));
        }
        let brokers: BTreeSet<_> = placements.iter().map(|placement| placement.broker).collect();
        if brokers.len() != placements.len() {
            return Err(CommandError::InvalidPartitions("two replicas of a partition on one broker".to_owned()));
        }
        placements.iter().map(|placement| self.new_replica(*placement)).collect()
    }

    fn new_replica(&mut self, placement: Placement) -> Result<ReplicaRecord, CommandError> {
        let record = ReplicaRecord::from(placement);
        if !self.state.on_current_directory(&record) {
            let (broker, directory) = (placement.broker, placement.directory.0);
            return Err(CommandError::Stale(format!("broker {broker} is not on directory {directory:032x}")));
        }
        let next = &mut self.state.meta.next_replica;
        if placement.replica.0 < *next || placement.replica.0 == u64::MAX {
            return Err(CommandError::Stale(format!("replica id {} may have been used", placement.replica)));
        }
        *next = placement.replica.0 + 1;
        self.changed.insert(RowKey::Meta);
        Ok(record)
    }

    /// Takes a group id: at or above the next free one, so that none is ever used twice.
    fn take_group(&mut self, group: GroupId) -> Result<(), CommandError> {
        let next = &mut self.state.meta.next_group;
        if group.0 < *next || group.0 == u64::MAX {
            return Err(CommandError::Stale(format!("group id {group} may have been used")));
        }
        *next = group.0 + 1;
        self.changed.insert(RowKey::Meta);
        Ok(())
    }

    fn replace_replicas(&mut self, replacements: &[Replacement]) -> CommandResult {
        for Replacement { group, old, new } in replacements {
            let record = self.new_replica(*new)?;
            let stale = |why: String| CommandError::Stale(format!("group {group}: {why}"));
            let done = self.change_partition(*group, |partition| {
                if !partition.initialised {
                    return Err(stale("not initialised".to_owned()));
                }
                let at = partition.replicas.iter().position(|replica| replica.replica == *old);
                let at = at.ok_or_else(|| stale(format!("replica {old} is not assigned")))?;
                let taken = |(other, replica): (usize, &ReplicaRecord)| other != at && replica.broker == new.broker;
                if partition.replicas.iter().enumerate().any(taken) {
                    return Err(stale(format!("broker {} has another replica", new.broker)));
                }
                partition.leaving.push(std::mem::replace(&mut partition.replicas[at], record));
                Ok(())
            });
            done.ok_or_else(|| stale("there is no such partition".to_owned()))??;
        }
        Ok(Done::Changed)
    }

    fn restart_partition(&mut self, group: GroupId, placements: &[Placement]) -> CommandResult {
        let replicas = self.new_replicas(placements)?;
        let stale = |why: &str| CommandError::Stale(format!("group {group}: {why}"));
        let done = self.change_partition(group, |partition| {
            if partition.initialised {
                return Err(stale("it has been initialised, and may hold records"));
            }
            partition.replicas = replicas;
            Ok(Done::Changed)
        });
        done.ok_or_else(|| stale("there is no such partition"))?
    }

    fn report(&mut self, report: &ReplicaReport) -> Done {
        let before = self.changed.len();
        let returns = self.state.level_of_all() >= RETURN_LEVEL;
        for (group, replica) in &report.created {
            self.move_replica(*group, *replica, ReplicaState::New, ReplicaState::Created);
            if returns {
                self.move_replica(*group, *replica, ReplicaState::Lost, ReplicaState::Created);
            }
        }
        for (group, replica, _) in &report.lost {
            self.move_replica(*group, *replica, ReplicaState::New, ReplicaState::Lost);
            self.move_replica(*group, *replica, ReplicaState::Created, ReplicaState::Lost);
        }
        for (group, replica) in &report.removed {
            let leaves = |partition: &PartitionRecord| partition.leaving.iter().any(|old| old.replica == *replica);
            if self.state.partition(*group).is_some_and(|partition| leaves(partition)) {
                self.change_partition(*group, |partition| partition.leaving.retain(|old| old.replica != *replica));
            }
        }
        for (group, leader) in &report.initialised {
            // A leader of replicas that have been replaced as a whole since says nothing about those of now.
            let applies = |p: &PartitionRecord| !p.initialised && p.replica(*leader).is_some();
            if self.state.partition(*group).is_some_and(|partition| applies(partition)) {
                self.change_partition(*group, |partition| partition.initialised = true);
            }
        }
        if self.changed.len() > before { Done::Changed } else { Done::Unchanged }
    }

    fn move_replica(&mut self, group: GroupId, replica: ReplicaId, from: ReplicaState, to: ReplicaState) {
        let applies = |partition: &Arc<PartitionRecord>| partition.replica(replica).is_some_and(|r| r.state == from);
        if !self.state.partition(group).is_some_and(applies) {
            return;
        }
        self.change_partition(group, |partition| {
            for record in partition.replicas.iter_mut().filter(|record| record.replica == replica) {
                record.state = to;
            }
        });
    }

    /// Lets `change` at a partition; `None` if there is none of this group.
    fn change_partition<T>(&mut self, group: GroupId, change: impl FnOnce(&mut PartitionRecord) -> T) -> Option<T> {
        let home = self.state.group(group)?;
        let topic = Arc::make_mut(&mut self.state.topics).get_mut(&home.topic)?;
        let partition = Arc::make_mut(topic).partitions.get_mut(home.partition as usize)?;
        self.changed.insert(RowKey::Partition(home.topic, home.partition));
        Some(change(Arc::make_mut(partition)))
    }

    fn allocate_producer_ids(&mut self, count: u32) -> CommandResult {
        let first = self.state.meta.next_producer;
        let next = first.checked_add(i64::from(count));
        self.state.meta.next_producer =
            next.ok_or_else(|| CommandError::Stale("there are no producer ids left".to_owned()))?;
        self.changed.insert(RowKey::Meta);
        Ok(Done::ProducerIds { first, count })
    }

    fn set_feature_level(&mut self, level: u32) -> CommandResult {
        let has = self.state.meta.feature_level;
        if level <= has {
            return Ok(Done::Unchanged);
        }
        if let Some(behind) = self.state.brokers.values().find(|broker| broker.feature_level < level) {
            let (broker, knows) = (behind.broker, behind.feature_level);
            return Err(CommandError::FeatureLevel(format!("broker {broker} knows level {knows}, not {level}")));
        }
        self.state.meta.feature_level = level;
        self.changed.insert(RowKey::Meta);
        Ok(Done::Changed)
    }
}
