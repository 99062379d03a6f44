//! From one generation to the next: everybody joins again, one of them assigns, everybody gets their part.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{FIRST_REBALANCE_DELAY, GROUP_BYTES_MAX, Group, Outbox, REBALANCE_TIMEOUT_MAX, Reply};
use crate::coordinator::{GroupError, GroupState, Sync, Synced};

/// How long static members of whom none has joined are waited for at least, however little they asked for.
const NOBODY_WAIT: Duration = Duration::from_secs(1);

impl Group {
    pub(super) fn rebalance(&mut self, now: Instant, out: &mut Outbox) {
        let first = self.state == GroupState::Empty;
        self.answer_syncing(out, || Err(GroupError::RebalanceInProgress));
        self.state = GroupState::PreparingRebalance;
        self.not_before = first.then_some(now + FIRST_REBALANCE_DELAY);
        // Not before `not_before`: nothing could be done then.
        self.phase_deadline = Some((now + self.rebalance_timeout()).max(self.not_before.unwrap_or(now)));
        self.complete_if_due(now, out);
    }

    /// How long everybody waits for who has not come: as long as the most patient member asks for, up to a bound.
    fn rebalance_timeout(&self) -> Duration {
        let asked = self.members.values().map(|member| member.rebalance_timeout).max();
        asked.unwrap_or_default().min(REBALANCE_TIMEOUT_MAX)
    }

    fn answer_syncing(&mut self, out: &mut Outbox, answer: impl Fn() -> Result<Synced, GroupError>) {
        for member in self.members.values_mut() {
            if let Some(reply) = member.syncing.take() {
                out.answer(reply, answer());
            }
        }
    }

    /// Begins the next generation if everybody has joined or the time for it is over.
    pub(super) fn complete_if_due(&mut self, now: Instant, out: &mut Outbox) {
        if self.state != GroupState::PreparingRebalance || self.not_before.is_some_and(|at| now < at) {
            return;
        }
        // It has passed: nobody is to be woken for it again.
        self.not_before = None;
        let all = self.promised.is_empty() && self.members.values().all(|member| member.joining.is_some());
        if !all && self.phase_deadline.is_some_and(|at| now < at) {
            return;
        }
        // Static members stay until their session ends.
        self.members.retain(|_, member| member.joining.is_some() || member.instance_id.is_some());
        let joined: Vec<String> =
            self.members.iter().filter(|(_, member)| member.joining.is_some()).map(|(id, _)| id.clone()).collect();
        let Some(first) = joined.first() else {
            if self.members.is_empty() {
                return self.become_empty(out);
            }
            self.phase_deadline = Some(now + self.rebalance_timeout().max(NOBODY_WAIT));
            return;
        };
        if !self.leader.as_ref().is_some_and(|leader| joined.contains(leader)) {
            self.leader = Some(first.clone());
        }
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.protocol = self.choose_protocol();
        self.state = GroupState::CompletingRebalance;
        self.phase_deadline = Some(now + self.rebalance_timeout());
        for id in &joined {
            let answer = self.joined(id);
            if let Some(member) = self.members.get_mut(id) {
                member.heard(now);
                if let Some(reply) = member.joining.take() {
                    out.answer(reply, Ok(answer));
                }
            }
        }
    }

    fn become_empty(&mut self, out: &mut Outbox) {
        self.state = GroupState::Empty;
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        (self.protocol, self.leader, self.not_before, self.phase_deadline) = (None, None, None, None);
        // A group that nobody ever completed a generation of leaves no trace.
        if self.stored {
            self.store(out);
        }
    }

    /// Of the protocols that all members know, the one that most of them like best; of equals the first by name.
    pub(super) fn choose_protocol(&self) -> Option<String> {
        let known_to_all =
            |name: &str| self.members.values().all(|m| m.protocols.iter().any(|(known, _)| known == name));
        let first = self.members.values().next()?;
        let common: Vec<&str> =
            first.protocols.iter().map(|(name, _)| &**name).filter(|name| known_to_all(name)).collect();
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some((name, _)) = member.protocols.iter().find(|(name, _)| common.contains(&&**name)) {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.values().max().copied()?;
        votes.into_iter().find(|(_, count)| *count == most).map(|(name, _)| name.to_owned())
    }

    /// A member wants its assignment; the leader brings everybody's.
    pub(in crate::coordinator) fn sync(&mut self, sync: Sync, reply: Reply<Synced>, now: Instant, out: &mut Outbox) {
        if let Err(error) = self.check_sync(&sync) {
            return out.answer(reply, Err(error));
        }
        let id = sync.member_id;
        let Some(member) = self.members.get_mut(&id) else { return };
        member.heard(now);
        if self.state == GroupState::Stable {
            let synced = self.synced(&id);
            return out.answer(reply, Ok(synced));
        }
        member.syncing = Some(reply);
        if self.leader.as_ref() != Some(&id) {
            return;
        }
        let mut assignments: BTreeMap<String, Bytes> = sync.assignments.into_iter().collect();
        for (id, member) in &mut self.members {
            // What came may share the memory of a frame that is far larger.
            member.assignment = assignments.remove(id).map_or_else(Bytes::new, |given| Bytes::copy_from_slice(&given));
        }
        self.state = GroupState::Stable;
        self.phase_deadline = None;
        self.store(out);
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let synced = self.synced(&id);
            if let Some(member) = self.members.get_mut(&id)
                && let Some(reply) = member.syncing.take()
            {
                member.heard(now);
                out.answer(reply, Ok(synced));
            }
        }
    }

    /// Whether it brings everybody's assignments, which are written.
    pub(in crate::coordinator) fn is_written_by(&self, sync: &Sync) -> bool {
        self.state != GroupState::Stable && self.leader.as_ref() == Some(&sync.member_id)
    }

    /// Whether it may have its assignment, or bring everybody's.
    pub(in crate::coordinator) fn check_sync(&self, sync: &Sync) -> Result<(), GroupError> {
        self.check_member(&sync.member_id, sync.instance_id.as_deref())?;
        if sync.generation != self.generation {
            return Err(GroupError::IllegalGeneration);
        }
        let other_type = sync.protocol_type.as_ref().is_some_and(|protocol_type| *protocol_type != self.protocol_type);
        if other_type || sync.protocol.is_some() && sync.protocol != self.protocol {
            return Err(GroupError::InconsistentProtocol);
        }
        if sync.assignments.iter().map(|(_, assignment)| assignment.len()).sum::<usize>() > GROUP_BYTES_MAX {
            return Err(GroupError::Full);
        }
        match self.state {
            GroupState::Empty => Err(GroupError::UnknownMember),
            GroupState::PreparingRebalance => Err(GroupError::RebalanceInProgress),
            GroupState::CompletingRebalance | GroupState::Stable => Ok(()),
        }
    }

    /// By how many bytes assignments make the group larger: those that are awaited.
    pub(in crate::coordinator) fn growth_by_sync(&self, sync: &Sync) -> usize {
        if self.state != GroupState::CompletingRebalance || self.leader.as_ref() != Some(&sync.member_id) {
            return 0;
        }
        let assigned: usize = sync.assignments.iter().map(|(_, assignment)| assignment.len()).sum();
        2 * assigned.saturating_sub(self.members.values().map(|member| member.assignment.len()).sum())
    }

    fn synced(&self, id: &str) -> Synced {
        Synced {
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone().unwrap_or_default(),
            assignment: self.members.get(id).map(|member| member.assignment.clone()).unwrap_or_default(),
        }
    }
}
