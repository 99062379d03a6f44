//! How members come into a group: new ones, those who join again, and those who keep their place over a restart (KIP-345).

use bytes::Bytes;
use tokio::time::Instant;

use super::member::{Member, Stale, kept, new_member_id, said_bytes};
use super::{GROUP_BYTES_MAX, Group, Outbox, PROTOCOLS_MAX, Reply, THING_BYTES};
use crate::coordinator::{GroupError, GroupState, Join, Joined, JoinedMember, consumer_protocol};

impl Join {
    /// Bytes of what it says of itself.
    fn bytes(&self) -> usize {
        said_bytes(&self.client_id, &self.client_host, self.instance_id.as_deref(), &self.protocols)
    }
}

impl Group {
    /// A member wants to be part of the next generation.
    pub(in crate::coordinator) fn join(&mut self, join: Join, reply: Reply<Joined>, now: Instant, out: &mut Outbox) {
        if let Err(error) = self.check_join(&join) {
            return out.answer(reply, Err(error));
        }
        if let Some(instance) = join.instance_id.clone() {
            return self.join_static(&instance, join, reply, now, out);
        }
        if join.member_id.is_empty() {
            let id = new_member_id(&join.client_id);
            if join.id_required {
                self.promised.insert(id.clone(), now + join.session_timeout);
                return out.answer(reply, Err(GroupError::MemberIdRequired(id)));
            }
            return self.add(id, join, reply, now, out);
        }
        let id = join.member_id.clone();
        match self.promised.remove(&id) {
            Some(_) => self.add(id, join, reply, now, out),
            None => self.join_again(&id, join, reply, now, out),
        }
    }

    /// Whether it may join.
    pub(in crate::coordinator) fn check_join(&self, join: &Join) -> Result<(), GroupError> {
        if join.protocols.is_empty() || join.protocols.len() > PROTOCOLS_MAX || join.protocol_type.is_empty() {
            return Err(GroupError::InconsistentProtocol);
        }
        let others = || self.members.iter().filter(|(id, _)| **id != join.member_id).map(|(_, member)| member);
        let bytes: usize = others().map(Member::bytes).sum();
        if !self.has_place_for(join) || bytes + join.bytes() > GROUP_BYTES_MAX {
            return Err(GroupError::Full);
        }
        let common = |(name, _): &(String, Bytes)| others().all(|other| other.protocols.iter().any(|(n, _)| n == name));
        let alike = || join.protocol_type == self.protocol_type && join.protocols.iter().any(common);
        if !self.members.is_empty() && !alike() {
            return Err(GroupError::InconsistentProtocol);
        }
        self.check_identity(join)
    }

    /// Whether it is somebody new, or who it says.
    fn check_identity(&self, join: &Join) -> Result<(), GroupError> {
        let id = &join.member_id;
        match join.instance_id.as_deref().map(|instance| self.of_instance(instance)) {
            _ if id.is_empty() => Ok(()),
            Some(Some(known)) if known == id => Ok(()),
            Some(Some(_)) => Err(GroupError::FencedInstance),
            None if self.promised.contains_key(id) || self.members.contains_key(id) => Ok(()),
            _ => Err(GroupError::UnknownMember),
        }
    }

    /// Whether it is a member already.
    pub(in crate::coordinator) fn has(&self, join: &Join) -> bool {
        let instance = join.instance_id.as_deref();
        self.members.contains_key(&join.member_id)
            || instance.is_some_and(|instance| self.of_instance(instance).is_some())
    }

    /// By how many bytes a member makes the group larger, or may once it keeps what it is promised.
    pub(in crate::coordinator) fn growth_by_join(&self, join: &Join) -> usize {
        let instance = join.instance_id.as_deref().and_then(|instance| self.of_instance(instance));
        let known = self.members.get(instance.unwrap_or(&join.member_id));
        let has = match known {
            Some(member) => THING_BYTES + 2 * member.bytes(),
            None if self.promised.contains_key(&join.member_id) => THING_BYTES + join.member_id.len(),
            None => 0,
        };
        // The first says what kind of group it is.
        let kind = if self.members.is_empty() { join.protocol_type.len() } else { 0 };
        let kind = kind.saturating_sub(self.protocol_type.len());
        (THING_BYTES + 2 * (join.bytes() + kind)).saturating_sub(has)
    }

    /// Whether it is a member, or was promised to become one, or there is room for one more.
    fn has_place_for(&self, join: &Join) -> bool {
        self.members.len() + self.promised.len() < self.members_max
            || self.promised.contains_key(&join.member_id)
            || self.has(join)
    }

    /// A member that keeps its place over restarts (KIP-345).
    fn join_static(&mut self, instance: &str, join: Join, reply: Reply<Joined>, now: Instant, out: &mut Outbox) {
        let Some(known) = self.of_instance(instance).cloned() else {
            return self.add(new_member_id(instance), join, reply, now, out);
        };
        if join.member_id == known {
            return self.join_again(&known, join, reply, now, out);
        }
        // Its process was restarted: it gets a new id, and whoever still has the old one is fenced.
        let Some(mut member) = self.members.remove(&known) else { return };
        for stale in
            [member.joining.take().map(Stale::Join), member.syncing.take().map(Stale::Sync)].into_iter().flatten()
        {
            stale.fence(out);
        }
        let before = member.metadata(self.protocol.as_deref());
        let id = new_member_id(instance);
        let led = self.leader.as_ref() == Some(&known);
        if led {
            self.leader = Some(id.clone());
        }
        self.members.insert(id.clone(), member);
        self.take_over(&id, &join, now);
        // While an assignment is awaited everybody must join again: it will name the old id.
        if self.state != GroupState::Stable || !self.assigns_as_before(&id, &before) {
            self.store_renamed(&known, &id, out);
            return self.await_generation(&id, reply, now, out);
        }
        self.store(out);
        let mut joined = self.joined(&id);
        joined.skip_assignment = led && join.may_skip_assignment;
        if led && !join.may_skip_assignment {
            // It must not think that it leads: it would assign anew, and nobody would come for it.
            (joined.leader, joined.members) = (known, Vec::new());
        }
        out.answer(reply, Ok(joined));
    }

    /// Whether an assignment still holds though a member says other things of itself than before: the same protocol would be chosen,
    /// and of topics it wants the same. What else a consumer says (its generation, what it owned) differs after every restart.
    fn assigns_as_before(&self, id: &str, before: &[u8]) -> bool {
        let Some(now) = self.members.get(id).map(|member| member.metadata(self.protocol.as_deref())) else {
            return false;
        };
        let topics = |metadata: &[u8]| {
            let mut topics = consumer_protocol::subscribed_topics(metadata)?;
            topics.sort_unstable();
            Some(topics)
        };
        let alike = *before == now
            || self.protocol_type == consumer_protocol::CONSUMER
                && topics(before).is_some_and(|before| topics(&now) == Some(before));
        alike && self.choose_protocol() == self.protocol
    }

    fn add(&mut self, id: String, join: Join, reply: Reply<Joined>, now: Instant, out: &mut Outbox) {
        if self.members.is_empty() {
            self.protocol_type.clone_from(&join.protocol_type);
        }
        let member = Member {
            instance_id: join.instance_id,
            client_id: join.client_id,
            client_host: join.client_host,
            session_timeout: join.session_timeout,
            rebalance_timeout: join.rebalance_timeout,
            protocols: kept(&join.protocols),
            assignment: Bytes::new(),
            deadline: now + join.session_timeout,
            joining: None,
            syncing: None,
        };
        self.members.insert(id.clone(), member);
        self.await_generation(&id, reply, now, out);
    }

    /// Takes what a known member says of itself now.
    fn take_over(&mut self, id: &str, join: &Join, now: Instant) {
        if let Some(member) = self.members.get_mut(id) {
            member.client_id.clone_from(&join.client_id);
            member.client_host.clone_from(&join.client_host);
            member.session_timeout = join.session_timeout;
            member.rebalance_timeout = join.rebalance_timeout;
            member.protocols = kept(&join.protocols);
            member.heard(now);
        }
    }

    fn join_again(&mut self, id: &str, join: Join, reply: Reply<Joined>, now: Instant, out: &mut Outbox) {
        let unchanged = self.members.get(id).is_some_and(|member| member.protocols == join.protocols);
        let leads = self.leader.as_deref() == Some(id);
        let as_it_is = match self.state {
            // Its answer was lost on the way.
            GroupState::CompletingRebalance => unchanged,
            // A leader that joins again wants to assign anew.
            GroupState::Stable => unchanged && !leads,
            GroupState::Empty | GroupState::PreparingRebalance => false,
        };
        self.take_over(id, &join, now);
        if as_it_is {
            return out.answer(reply, Ok(self.joined(id)));
        }
        self.await_generation(id, reply, now, out);
    }

    /// A member waits for the next generation, which begins to be made if it is not being made.
    fn await_generation(&mut self, id: &str, reply: Reply<Joined>, now: Instant, out: &mut Outbox) {
        if let Some(member) = self.members.get_mut(id) {
            member.joining = Some(reply);
        }
        match self.state {
            GroupState::PreparingRebalance => self.complete_if_due(now, out),
            _ => self.rebalance(now, out),
        }
    }

    pub(super) fn joined(&self, id: &str) -> Joined {
        let leads = self.leader.as_deref() == Some(id);
        let member = |(id, member): (&String, &Member)| JoinedMember {
            id: id.clone(),
            instance_id: member.instance_id.clone(),
            metadata: member.metadata(self.protocol.as_deref()),
        };
        Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone().unwrap_or_default(),
            leader: self.leader.clone().unwrap_or_default(),
            member_id: id.to_owned(),
            members: if leads { self.members.iter().map(member).collect() } else { Vec::new() },
            skip_assignment: false,
        }
    }
}
