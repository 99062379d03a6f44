//! How far a group has read: committed offsets, by whom they may be set, and when they go.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::{Group, Outbox, THING_BYTES};
use crate::clock::now_ms;
use crate::coordinator::entry::{CommittedOffset, Entry};
use crate::coordinator::{GroupError, GroupState, TOLD_BYTES, consumer_protocol};

/// Bytes of a committed offset.
fn bytes(offset: &CommittedOffset) -> usize {
    // Its topic stands in its key too.
    THING_BYTES + 2 * offset.topic.len() + offset.metadata.len()
}

impl Group {
    /// Takes offsets in.
    pub(super) fn take_offsets(&mut self, offsets: impl IntoIterator<Item = CommittedOffset>) {
        for offset in offsets {
            self.offset_bytes += bytes(&offset);
            if let Some(old) = self.offsets.insert((offset.topic.clone(), offset.partition), offset) {
                self.offset_bytes -= bytes(&old);
            }
        }
    }

    /// By how many bytes a commit makes the group larger.
    pub(in crate::coordinator) fn growth_by_commit(&self, offsets: &[CommittedOffset]) -> usize {
        // A partition may be named twice: what is there goes once.
        let named: BTreeSet<_> = offsets.iter().map(|offset| (offset.topic.clone(), offset.partition)).collect();
        let old: usize = named.iter().filter_map(|partition| self.offsets.get(partition)).map(bytes).sum();
        offsets.iter().map(bytes).sum::<usize>().saturating_sub(old)
    }

    /// Whether somebody may commit: as a member of the present generation, or from outside (`generation` -1) while there are no members.
    /// Who reads by assignment comes from outside, whatever it calls itself: it may have an instance id without ever having joined.
    pub(in crate::coordinator) fn check_commit(
        &self,
        (id, instance, generation): (&str, Option<&str>, i32),
    ) -> Result<(), GroupError> {
        if generation < 0 && self.state == GroupState::Empty {
            // Nobody is there whom it could disturb.
            return Ok(());
        }
        if generation < 0 && id.is_empty() && instance.is_none() {
            return Err(GroupError::UnknownMember);
        }
        self.check_member(id, instance)?;
        if generation != self.generation {
            return Err(GroupError::IllegalGeneration);
        }
        match self.state {
            GroupState::CompletingRebalance => Err(GroupError::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    /// Commits offsets, if who does may.
    pub(in crate::coordinator) fn commit(
        &mut self,
        by: (&str, Option<&str>, i32),
        offsets: Vec<CommittedOffset>,
        now: Instant,
        out: &mut Outbox,
    ) -> Result<(), GroupError> {
        self.check_commit(by)?;
        if let Some(member) = self.members.get_mut(by.0) {
            member.heard(now);
        }
        if offsets.is_empty() {
            // Nothing to remember, nor a group that was not there.
            return Ok(());
        }
        if self.state != GroupState::Empty {
            self.active_ms = now_ms();
        }
        self.stored = true;
        out.entries.push((self.name.clone(), Entry::Committed(offsets.clone())));
        self.take_offsets(offsets);
        Ok(())
    }

    /// What is committed: of these partitions, or all there is.
    pub(in crate::coordinator) fn committed(&self, wanted: Option<&[(String, Vec<u32>)]>) -> Vec<CommittedOffset> {
        match wanted {
            Some(wanted) => self.of_partitions(wanted).cloned().collect(),
            None => self.offsets.values().cloned().collect(),
        }
    }

    /// Bytes of [`Self::committed`], about.
    pub(in crate::coordinator) fn committed_bytes(&self, wanted: Option<&[(String, Vec<u32>)]>) -> usize {
        let bytes = |offset: &CommittedOffset| TOLD_BYTES + offset.topic.len() + offset.metadata.len();
        match wanted {
            Some(wanted) => self.of_partitions(wanted).map(bytes).sum(),
            None => self.offsets.values().map(bytes).sum(),
        }
    }

    /// Those of these partitions that have one. A request names a topic once for many partitions: so does this.
    fn of_partitions<'a>(
        &'a self,
        wanted: &'a [(String, Vec<u32>)],
    ) -> impl Iterator<Item = &'a CommittedOffset> + use<'a> {
        wanted.iter().flat_map(move |(topic, partitions)| {
            let mut place = (topic.clone(), 0);
            partitions.iter().filter_map(move |partition| {
                place.1 = *partition;
                self.offsets.get(&place)
            })
        })
    }

    /// Forgets committed offsets; not those of topics that its members subscribe to. One result for each topic.
    pub(in crate::coordinator) fn remove_offsets(
        &mut self,
        partitions: &[(String, Vec<u32>)],
        out: &mut Outbox,
    ) -> Result<Vec<Result<(), GroupError>>, GroupError> {
        // What members of another kind subscribe to nobody knows.
        if !self.members.is_empty() && self.protocol_type != consumer_protocol::CONSUMER {
            return Err(GroupError::NonEmpty);
        }
        let subscribed = self.subscribed();
        let is_subscribed = |topic: &str| match &subscribed {
            Some(topics) => topics.contains(topic),
            None => true,
        };
        let refuse = |topic: &str| if is_subscribed(topic) { Err(GroupError::Subscribed) } else { Ok(()) };
        let results: Vec<_> = partitions.iter().map(|(topic, _)| refuse(topic)).collect();
        let removed: BTreeSet<_> = self
            .of_partitions(partitions)
            .filter(|offset| !is_subscribed(&offset.topic))
            .map(|offset| (offset.topic.clone(), offset.partition))
            .collect();
        self.drop_offsets(removed.into_iter().collect(), out);
        Ok(results)
    }

    /// The topics that its members want. `None`: of members who cannot be read nobody knows.
    fn subscribed(&self) -> Option<BTreeSet<String>> {
        let subscriptions = self
            .members
            .values()
            .map(|member| consumer_protocol::subscribed_topics(&member.metadata(self.protocol.as_deref())));
        subscriptions.collect::<Option<Vec<_>>>().map(|topics| topics.into_iter().flatten().collect())
    }

    fn drop_offsets(&mut self, partitions: Vec<(String, u32)>, out: &mut Outbox) {
        if !partitions.is_empty() {
            for partition in &partitions {
                self.offset_bytes -= self.offsets.remove(partition).map_or(0, |old| bytes(&old));
            }
            out.entries.push((self.name.clone(), Entry::OffsetsRemoved(partitions)));
        }
    }

    /// Drops offsets that nobody has cared for since `before_ms`: of a group that has had no members since, and of topics that no member
    /// wants (KIP-211; most are of topics that were deleted). Where there never were members each goes by its own last commit. Returns
    /// whether the group can be forgotten altogether: it has no offsets, and has had no members since `empty_before_ms`.
    pub(in crate::coordinator) fn expire(&mut self, before_ms: i64, empty_before_ms: i64, out: &mut Outbox) -> bool {
        let some_are_old = self.offsets.values().any(|offset| offset.time_ms < before_ms);
        let wanted = match self.state {
            _ if !some_are_old => None,
            GroupState::Empty if self.promised.is_empty() && self.active_ms < before_ms => Some(BTreeSet::new()),
            GroupState::Stable => self.subscribed(),
            _ => None,
        };
        if let Some(wanted) = wanted {
            let old = |offset: &&CommittedOffset| offset.time_ms < before_ms && !wanted.contains(&offset.topic);
            let old = self.offsets.values().filter(old).map(|offset| (offset.topic.clone(), offset.partition));
            self.drop_offsets(old.collect(), out);
        }
        let nobody = self.state == GroupState::Empty && self.promised.is_empty() && self.offsets.is_empty();
        let gone = nobody && self.active_ms < before_ms.max(empty_before_ms);
        if gone && self.stored {
            out.entries.push((self.name.clone(), Entry::GroupRemoved));
        }
        gone
    }
}
