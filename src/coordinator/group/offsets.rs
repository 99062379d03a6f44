//! How far a group has read: committed offsets, by whom they may be set, and when they go.

use tokio::time::Instant;

use super::{Group, Outbox};
use crate::coordinator::entry::{CommittedOffset, Entry};
use crate::coordinator::{GroupError, GroupState, consumer_protocol, now_ms};

impl Group {
    /// Commits offsets: as a member of the present generation, or from outside (`generation` -1) while there are no members.
    pub(in crate::coordinator) fn commit(
        &mut self,
        (id, instance, generation): (&str, Option<&str>, i32),
        offsets: Vec<CommittedOffset>,
        now: Instant,
        out: &mut Outbox,
    ) -> Result<(), GroupError> {
        if generation >= 0 || !id.is_empty() || instance.is_some() {
            self.check_member(id, instance)?;
            if generation != self.generation {
                return Err(GroupError::IllegalGeneration);
            }
            if self.state == GroupState::CompletingRebalance {
                return Err(GroupError::RebalanceInProgress);
            }
            if let Some(member) = self.members.get_mut(id) {
                member.heard(now);
            }
        } else if !self.members.is_empty() {
            return Err(GroupError::UnknownMember);
        }
        self.active_ms = now_ms();
        self.stored = true;
        out.entries.push((self.name.clone(), Entry::Committed(offsets.clone())));
        self.offsets.extend(offsets.into_iter().map(|offset| ((offset.topic.clone(), offset.partition), offset)));
        Ok(())
    }

    /// What is committed: of these partitions, or all there is.
    pub(in crate::coordinator) fn committed(&self, wanted: Option<&[(String, u32)]>) -> Vec<CommittedOffset> {
        match wanted {
            Some(wanted) => wanted.iter().filter_map(|partition| self.offsets.get(partition).cloned()).collect(),
            None => self.offsets.values().cloned().collect(),
        }
    }

    /// Forgets committed offsets; not those of topics that its members subscribe to.
    pub(in crate::coordinator) fn remove_offsets(
        &mut self,
        partitions: &[(String, u32)],
        out: &mut Outbox,
    ) -> Vec<Result<(), GroupError>> {
        let subscribed = |topic: &str| {
            self.members.values().any(|member| {
                let topics = consumer_protocol::subscribed_topics(&member.metadata(self.protocol.as_deref()));
                // Members of another kind than consumers, or who cannot be read, might want any.
                self.protocol_type != consumer_protocol::CONSUMER || topics.is_none_or(|t| t.iter().any(|t| t == topic))
            })
        };
        let results: Vec<_> = partitions
            .iter()
            .map(|(topic, _)| if subscribed(topic) { Err(GroupError::Subscribed) } else { Ok(()) })
            .collect();
        let removed: Vec<_> = partitions
            .iter()
            .zip(&results)
            .filter(|(partition, result)| result.is_ok() && self.offsets.contains_key(partition))
            .map(|(partition, _)| partition.clone())
            .collect();
        self.drop_offsets(removed, out);
        results
    }

    fn drop_offsets(&mut self, partitions: Vec<(String, u32)>, out: &mut Outbox) {
        if !partitions.is_empty() {
            partitions.iter().for_each(|partition| drop(self.offsets.remove(partition)));
            out.entries.push((self.name.clone(), Entry::OffsetsRemoved(partitions)));
        }
    }

    /// Drops offsets that nobody has cared for since `before_ms`. Returns whether the group can be forgotten altogether.
    pub(in crate::coordinator) fn expire(&mut self, before_ms: i64, out: &mut Outbox) -> bool {
        if self.state != GroupState::Empty || !self.promised.is_empty() {
            return false;
        }
        if self.active_ms < before_ms {
            let old = |offset: &&CommittedOffset| offset.time_ms < before_ms;
            let old = self.offsets.values().filter(old).map(|offset| (offset.topic.clone(), offset.partition));
            self.drop_offsets(old.collect(), out);
        }
        if !self.offsets.is_empty() || self.stored && self.active_ms >= before_ms {
            return false;
        }
        if self.stored {
            out.entries.push((self.name.clone(), Entry::GroupRemoved));
        }
        true
    }
}
