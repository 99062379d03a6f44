//! The catalog after a disaster: what one directory holds becomes the cluster, and grows again ([`Command::Recover`]).
//!
//! Nothing that the brokers which were given up may do later can reach what comes after: the cluster has another id, they are not
//! registered, and every id that they could know of is below every id that is drawn from now on (RULES.md R5, R9).
//!
//! [`Command::Recover`]: super::Command::Recover

use std::sync::Arc;

use pontoon_raft::types::{GroupId, ReplicaId};

use super::{
    Addition, CommandError, CommandResult, Done, PartitionRecord, ReplicaRecord, ReplicaState, RowKey, TopicId, Work,
};
use crate::catalog::command::{Placement, RECOVERY_GAP, RECOVERY_LEVEL, Recovery};
use crate::catalog::state::RecoveryRecord;

fn stale(why: impl Into<String>) -> CommandError {
    CommandError::Stale(why.into())
}

impl Work {
    pub(super) fn recover(&mut self, recovery: &Recovery) -> CommandResult {
        let former = self.state.meta.cluster.ok_or_else(|| stale("there is no cluster yet"))?;
        if former == recovery.cluster {
            return Ok(Done::Unchanged);
        }
        if self.state.superseded.contains(&recovery.cluster) {
            return Err(stale(format!("{:032x} was this cluster's id before", recovery.cluster.0)));
        }
        let survivor = self.state.brokers.get(&recovery.broker);
        if survivor.is_none_or(|survivor| survivor.directory != recovery.directory) {
            let (broker, directory) = (recovery.broker, recovery.directory.0);
            return Err(stale(format!("broker {broker} is not registered with directory {directory:032x}")));
        }
        self.move_counters()?;
        self.state.meta.cluster = Some(recovery.cluster);
        Arc::make_mut(&mut self.state.superseded).push(former);
        self.changed.extend([RowKey::Meta, RowKey::Superseded]);
        let others: Vec<_> = self.state.brokers.keys().copied().filter(|broker| *broker != recovery.broker).collect();
        for other in others {
            Arc::make_mut(&mut self.state.brokers).remove(&other);
            self.changed.insert(RowKey::Broker(other));
        }
        let below = ReplicaId(self.state.meta.next_replica);
        let groups: Vec<(TopicId, u32, GroupId)> = self.state.topics.values().flat_map(partitions).collect();
        for (topic, number, group) in groups {
            self.changed.insert(RowKey::Partition(topic, number));
            self.recover_partition(group, below, recovery)?;
        }
        Ok(Done::Changed)
    }

    fn move_counters(&mut self) -> Result<(), CommandError> {
        let meta = &mut self.state.meta;
        let none_left = || stale("there are no ids left");
        meta.feature_level = meta.feature_level.max(RECOVERY_LEVEL);
        meta.next_group = meta.next_group.checked_add(RECOVERY_GAP).ok_or_else(none_left)?;
        meta.next_replica = meta.next_replica.checked_add(RECOVERY_GAP).ok_or_else(none_left)?;
        meta.next_producer = meta.next_producer.checked_add_unsigned(RECOVERY_GAP).ok_or_else(none_left)?;
        Ok(())
    }

    /// A partition goes on from the survivor's replica; if that holds nothing, it stays lost or begins anew.
    fn recover_partition(&mut self, group: GroupId, below: ReplicaId, recovery: &Recovery) -> Result<(), CommandError> {
        let partition = self.state.partition(group).ok_or_else(|| stale(format!("there is no group {group}")))?.clone();
        let replicas = self.state.replicas_wanted(&partition);
        let here = |record: &&ReplicaRecord| {
            (record.broker, record.directory) == (recovery.broker, recovery.directory)
                && !recovery.unusable.contains(&record.replica)
        };
        let survivor = match partition.replicas.iter().find(here) {
            Some(kept) => {
                let kept = ReplicaRecord { state: ReplicaState::Created, ..*kept };
                // It holds something, so the group has had a leader, whether or not that was heard of here.
                self.replace_partition(group, vec![kept], true);
                kept.replica
            }
            None if recovery.empty_lost || !partition.initialised => {
                let replica = ReplicaId(self.state.meta.next_replica);
                let placement = Placement { broker: recovery.broker, directory: recovery.directory, replica };
                let new = self.new_replica(placement)?;
                self.replace_partition(group, vec![new], false);
                replica
            }
            None => {
                self.replace_partition(group, partition.replicas.clone(), true);
                return Ok(());
            }
        };
        let record = RecoveryRecord { survivor, below, replicas };
        Arc::make_mut(&mut self.state.recoveries).insert(group, record);
        self.changed.insert(RowKey::Recovery(group));
        Ok(())
    }

    fn replace_partition(&mut self, group: GroupId, replicas: Vec<ReplicaRecord>, initialised: bool) {
        self.change_partition(group, |partition| {
            *partition = PartitionRecord { group, replicas, leaving: Vec::new(), initialised };
        });
    }

    pub(super) fn add_replicas(&mut self, additions: &[Addition]) -> CommandResult {
        for Addition { group, first, new } in additions {
            let record = self.new_replica(*new)?;
            // A newcomer holds nothing yet. Like one that takes another's place it counts for nothing until who was there before
            // it has left; here that is nobody, under an id of its own.
            let nobody = ReplicaId(self.state.meta.next_replica);
            self.state.meta.next_replica =
                nobody.0.checked_add(1).ok_or_else(|| stale("there are no replica ids left"))?;
            let stale = |why: String| stale(format!("group {group}: {why}"));
            let partition = self.state.partition(*group).ok_or_else(|| stale("there is no such partition".into()))?;
            if !partition.initialised || partition.replicas.len() as u32 >= self.state.replicas_wanted(partition) {
                return Err(stale("no replica is missing".into()));
            }
            if partition.on(new.broker).is_some() {
                return Err(stale(format!("broker {} has another replica", new.broker)));
            }
            self.change_partition(*group, |partition| {
                let place = if *first { 0 } else { partition.replicas.len() };
                partition.replicas.insert(place, record);
                partition.leaving.push(ReplicaRecord { replica: nobody, state: ReplicaState::Lost, ..record });
            });
        }
        Ok(if additions.is_empty() { Done::Unchanged } else { Done::Changed })
    }
}

fn partitions(topic: &Arc<super::TopicRecord>) -> impl Iterator<Item = (TopicId, u32, GroupId)> + use<> {
    let topic = topic.clone();
    let count = topic.partitions.len();
    (0..count).map(move |number| (topic.id, number as u32, topic.partitions[number].group))
}
