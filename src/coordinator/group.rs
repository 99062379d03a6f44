//! One consumer group: the classic protocol's state machine. Pure: time comes in, answers and log entries go out.
//!
//! ```text
//! Empty ─join─► PreparingRebalance ─all joined, or time is up─► CompletingRebalance ─leader's sync─► Stable
//!   ▲               │  ▲   ▲                                          │                                │
//!   └─ nobody left ─┘  │   └──────────── join, leave, expiry ─────────┘                                │
//!                      └────────────────────────── join, leave, expiry ────────────────────────────────┘
//! ```
//!
//! What is done here is told to nobody before its entries are in the log: answers wait in the [`Outbox`]. A rebalance under
//! way is not in the log: after a failover the group is what its last generation was, and who was joining joins again.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use pontoon_raft::runtime::random_u64;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::consumer_protocol;
use super::entry::{CommittedOffset, Entry, GroupRecord, MemberRecord, StoredGroup};
use super::{
    GroupDescription, GroupError, GroupProgress, GroupState, Join, Joined, JoinedMember, Leaving, MemberDescription,
    Sync, Synced,
};

/// Most members of a group.
const MEMBERS_MAX: usize = 2000;
/// How long a group that was empty waits for more members before its first generation.
const FIRST_REBALANCE_DELAY: Duration = Duration::from_millis(500);

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, GroupError>>;

/// What is to be said once the entries are in the log.
#[derive(Default)]
pub(super) struct Outbox {
    pub(super) entries: Vec<(String, Entry)>,
    answers: Vec<Box<dyn FnOnce() + Send>>,
}

impl Outbox {
    /// An answer. Who asked may be gone.
    pub(super) fn answer<T: Send + 'static>(&mut self, reply: oneshot::Sender<T>, answer: T) {
        self.answers.push(Box::new(move || drop(reply.send(answer))));
    }

    /// Says everything.
    pub(super) fn send(&mut self) {
        self.answers.drain(..).for_each(|answer| answer());
    }
}

struct Member {
    instance_id: Option<String>,
    client_id: String,
    client_host: String,
    session_timeout: Duration,
    rebalance_timeout: Duration,
    protocols: Vec<(String, Bytes)>,
    assignment: Bytes,
    /// Gone if nothing is heard until then.
    deadline: Instant,
    joining: Option<Reply<Joined>>,
    syncing: Option<Reply<Synced>>,
}

impl Member {
    fn heard(&mut self, now: Instant) {
        self.deadline = now + self.session_timeout;
    }

    /// Somebody waits for our answer: we are late, not the member.
    fn waits(&self) -> bool {
        self.joining.as_ref().is_some_and(|reply| !reply.is_closed())
            || self.syncing.as_ref().is_some_and(|reply| !reply.is_closed())
    }

    fn metadata(&self, protocol: Option<&str>) -> Bytes {
        let found = self.protocols.iter().find(|(name, _)| Some(name.as_str()) == protocol);
        found.map(|(_, metadata)| metadata.clone()).unwrap_or_default()
    }
}

/// See the module's header.
pub(super) struct Group {
    name: String,
    state: GroupState,
    generation: i32,
    protocol_type: String,
    protocol: Option<String>,
    leader: Option<String>,
    members: BTreeMap<String, Member>,
    /// Ids that were given out to members who have not joined with them yet.
    promised: BTreeMap<String, Instant>,
    /// The rebalance under way: not before, not after. While completing: when who has not synced is dropped.
    not_before: Option<Instant>,
    phase_deadline: Option<Instant>,
    offsets: BTreeMap<(String, u32), CommittedOffset>,
    /// When the group was last known to have members, in ms since 1970.
    active_ms: i64,
    /// Whether there is anything of it in the log.
    stored: bool,
    /// The last generation that is in the log.
    last: Option<GroupRecord>,
}

impl Group {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: GroupState::Empty,
            generation: 0,
            protocol_type: String::new(),
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            promised: BTreeMap::new(),
            not_before: None,
            phase_deadline: None,
            offsets: BTreeMap::new(),
            active_ms: 0,
            stored: false,
            last: None,
        }
    }

    /// As the log tells it. Members have a whole session timeout from now to be heard of.
    pub(super) fn restore(name: &str, stored: StoredGroup, now: Instant) -> Self {
        let mut group = Self { offsets: stored.offsets, stored: true, ..Self::new(name) };
        let Some(record) = stored.record else { return group };
        group.last = Some(record.clone());
        for member in record.members {
            let session_timeout = Duration::from_millis(member.session_timeout_ms.into());
            let restored = Member {
                instance_id: member.instance_id,
                client_id: member.client_id,
                client_host: member.client_host,
                session_timeout,
                rebalance_timeout: Duration::from_millis(member.rebalance_timeout_ms.into()),
                protocols: member.protocols.into_iter().map(|(name, bytes)| (name, bytes.into())).collect(),
                assignment: member.assignment.into(),
                deadline: now + session_timeout,
                joining: None,
                syncing: None,
            };
            group.members.insert(member.id, restored);
        }
        group.state = if group.members.is_empty() { GroupState::Empty } else { GroupState::Stable };
        group.generation = record.generation;
        group.protocol_type = record.protocol_type;
        group.protocol = record.protocol;
        group.leader = record.leader;
        group.active_ms = record.time_ms;
        group
    }

    fn record(&self, time_ms: i64) -> GroupRecord {
        let member = |(id, member): (&String, &Member)| MemberRecord {
            id: id.clone(),
            instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            session_timeout_ms: member.session_timeout.as_millis() as u32,
            rebalance_timeout_ms: member.rebalance_timeout.as_millis() as u32,
            protocols: member.protocols.iter().map(|(name, bytes)| (name.clone(), bytes.to_vec())).collect(),
            assignment: member.assignment.to_vec(),
        };
        GroupRecord {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            members: self.members.iter().map(member).collect(),
            time_ms,
        }
    }

    fn store(&mut self, out: &mut Outbox) {
        self.active_ms = super::now_ms();
        self.stored = true;
        let record = self.record(self.active_ms);
        self.last = Some(record.clone());
        out.entries.push((self.name.clone(), Entry::Group(record)));
    }

    /// What it takes to write the whole group once more, as it stands in the log: a generation that is just being made is not
    /// in it yet.
    pub(super) fn rewrite(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.last.iter().cloned().map(Entry::Group).collect();
        if !self.offsets.is_empty() {
            entries.push(Entry::Committed(self.offsets.values().cloned().collect()));
        }
        entries
    }

    /// How many things there are to remember of it.
    pub(super) fn weight(&self) -> u64 {
        1 + self.members.len() as u64 + self.offsets.len() as u64
    }

    // ---- joining

    /// A member wants to be part of the next generation.
    pub(super) fn join(&mut self, join: Join, reply: Reply<Joined>, now: Instant, out: &mut Outbox) {
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
        if self.promised.remove(&id).is_some() {
            self.add(id, join, reply, now, out);
        } else if self.members.contains_key(&id) {
            self.join_again(&id, join, reply, now, out);
        } else {
            out.answer(reply, Err(GroupError::UnknownMember));
        }
    }

    fn check_join(&self, join: &Join) -> Result<(), GroupError> {
        if join.protocols.is_empty() || join.protocol_type.is_empty() {
            return Err(GroupError::InconsistentProtocol);
        }
        if self.members.is_empty() {
            return Ok(());
        }
        let others = || self.members.iter().filter(|(id, _)| **id != join.member_id).map(|(_, member)| member);
        let common = |(name, _): &(String, Bytes)| others().all(|other| other.protocols.iter().any(|(n, _)| n == name));
        if join.protocol_type != self.protocol_type || !join.protocols.iter().any(common) {
            return Err(GroupError::InconsistentProtocol);
        }
        if self.members.len() + self.promised.len() >= MEMBERS_MAX && !self.members.contains_key(&join.member_id) {
            return Err(GroupError::Full);
        }
        Ok(())
    }

    /// A member that keeps its place over restarts (KIP-345).
    fn join_static(&mut self, instance: &str, join: Join, reply: Reply<Joined>, now: Instant, out: &mut Outbox) {
        let Some(known) = self.of_instance(instance).cloned() else {
            if join.member_id.is_empty() {
                return self.add(new_member_id(instance), join, reply, now, out);
            }
            return out.answer(reply, Err(GroupError::UnknownMember));
        };
        if join.member_id == known {
            return self.join_again(&known, join, reply, now, out);
        }
        if !join.member_id.is_empty() {
            return out.answer(reply, Err(GroupError::FencedInstance));
        }
        // Its process was restarted: it gets a new id, and whoever still has the old one is fenced.
        let Some(mut member) = self.members.remove(&known) else { return };
        for stale in
            [member.joining.take().map(Stale::Join), member.syncing.take().map(Stale::Sync)].into_iter().flatten()
        {
            stale.fence(out);
        }
        let unchanged = self.protocol.as_deref().is_some_and(|protocol| {
            let new = join.protocols.iter().find(|(name, _)| name == protocol).map(|(_, bytes)| bytes);
            new == Some(&member.metadata(Some(protocol)))
        });
        let id = new_member_id(instance);
        let led = self.leader.as_ref() == Some(&known);
        if led {
            self.leader = Some(id.clone());
        }
        member.heard(now);
        self.members.insert(id.clone(), member);
        if self.state == GroupState::Stable && unchanged {
            self.take_over(&id, &join, now);
            self.store(out);
            let mut joined = self.joined(&id);
            joined.skip_assignment = led && join.may_skip_assignment;
            if led && !join.may_skip_assignment {
                // It must not think that it leads: it would assign anew, and nobody would come for it.
                (joined.leader, joined.members) = (known, Vec::new());
            }
            return out.answer(reply, Ok(joined));
        }
        self.join_again(&id, join, reply, now, out);
    }

    fn of_instance(&self, instance: &str) -> Option<&String> {
        self.members.iter().find(|(_, member)| member.instance_id.as_deref() == Some(instance)).map(|(id, _)| id)
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
            protocols: join.protocols,
            assignment: Bytes::new(),
            deadline: now + join.session_timeout,
            joining: Some(reply),
            syncing: None,
        };
        self.members.insert(id, member);
        match self.state {
            GroupState::PreparingRebalance => self.complete_if_due(now, out),
            _ => self.rebalance(now, out),
        }
    }

    /// Takes what a known member says of itself now.
    fn take_over(&mut self, id: &str, join: &Join, now: Instant) {
        if let Some(member) = self.members.get_mut(id) {
            member.client_id.clone_from(&join.client_id);
            member.client_host.clone_from(&join.client_host);
            member.session_timeout = join.session_timeout;
            member.rebalance_timeout = join.rebalance_timeout;
            member.protocols.clone_from(&join.protocols);
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
        if let Some(member) = self.members.get_mut(id) {
            member.joining = Some(reply);
        }
        match self.state {
            GroupState::PreparingRebalance => self.complete_if_due(now, out),
            _ => self.rebalance(now, out),
        }
    }

    fn joined(&self, id: &str) -> Joined {
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

    // ---- rebalancing

    fn rebalance(&mut self, now: Instant, out: &mut Outbox) {
        let first = self.state == GroupState::Empty;
        self.answer_syncing(out, || Err(GroupError::RebalanceInProgress));
        self.state = GroupState::PreparingRebalance;
        self.not_before = first.then_some(now + FIRST_REBALANCE_DELAY);
        // Not before `not_before`: nothing could be done then.
        self.phase_deadline = Some((now + self.rebalance_timeout()).max(self.not_before.unwrap_or(now)));
        self.complete_if_due(now, out);
    }

    fn rebalance_timeout(&self) -> Duration {
        self.members.values().map(|member| member.rebalance_timeout).max().unwrap_or_default()
    }

    fn answer_syncing(&mut self, out: &mut Outbox, answer: impl Fn() -> Result<Synced, GroupError>) {
        for member in self.members.values_mut() {
            if let Some(reply) = member.syncing.take() {
                out.answer(reply, answer());
            }
        }
    }

    /// Begins the next generation if everybody has joined or the time for it is over.
    fn complete_if_due(&mut self, now: Instant, out: &mut Outbox) {
        if self.state != GroupState::PreparingRebalance || self.not_before.is_some_and(|at| now < at) {
            return;
        }
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
            self.phase_deadline = Some(now + self.rebalance_timeout());
            return;
        };
        if !self.leader.as_ref().is_some_and(|leader| joined.contains(leader)) {
            self.leader = Some(first.clone());
        }
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.protocol = self.choose_protocol();
        self.state = GroupState::CompletingRebalance;
        self.not_before = None;
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
    fn choose_protocol(&self) -> Option<String> {
        let known_to_all =
            |name: &str| self.members.values().all(|m| m.protocols.iter().any(|(known, _)| known == name));
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some((name, _)) = member.protocols.iter().find(|(name, _)| known_to_all(name)) {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.values().max().copied()?;
        votes.into_iter().find(|(_, count)| *count == most).map(|(name, _)| name.to_owned())
    }

    /// A member wants its assignment; the leader brings everybody's.
    pub(super) fn sync(&mut self, sync: Sync, reply: Reply<Synced>, now: Instant, out: &mut Outbox) {
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
            member.assignment = assignments.remove(id).unwrap_or_default();
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

    fn check_sync(&self, sync: &Sync) -> Result<(), GroupError> {
        self.check_member(&sync.member_id, sync.instance_id.as_deref())?;
        if sync.generation != self.generation {
            return Err(GroupError::IllegalGeneration);
        }
        let other_type = sync.protocol_type.as_ref().is_some_and(|protocol_type| *protocol_type != self.protocol_type);
        if other_type || sync.protocol.is_some() && sync.protocol != self.protocol {
            return Err(GroupError::InconsistentProtocol);
        }
        match self.state {
            GroupState::Empty => Err(GroupError::UnknownMember),
            GroupState::PreparingRebalance => Err(GroupError::RebalanceInProgress),
            GroupState::CompletingRebalance | GroupState::Stable => Ok(()),
        }
    }

    fn synced(&self, id: &str) -> Synced {
        Synced {
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone().unwrap_or_default(),
            assignment: self.members.get(id).map(|member| member.assignment.clone()).unwrap_or_default(),
        }
    }

    // ---- living and leaving

    fn check_member(&self, id: &str, instance: Option<&str>) -> Result<(), GroupError> {
        if let Some(instance) = instance {
            match self.of_instance(instance) {
                Some(known) if known == id => {}
                Some(_) => return Err(GroupError::FencedInstance),
                None => return Err(GroupError::UnknownMember),
            }
        }
        if self.members.contains_key(id) { Ok(()) } else { Err(GroupError::UnknownMember) }
    }

    /// A member says that it is alive, and is told if it must join again.
    pub(super) fn heartbeat(
        &mut self,
        id: &str,
        instance: Option<&str>,
        generation: i32,
        now: Instant,
    ) -> Result<(), GroupError> {
        self.check_member(id, instance)?;
        if generation != self.generation {
            return Err(GroupError::IllegalGeneration);
        }
        if let Some(member) = self.members.get_mut(id) {
            member.heard(now);
        }
        match self.state {
            GroupState::PreparingRebalance => Err(GroupError::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    /// A member goes.
    pub(super) fn leave(&mut self, leaving: &Leaving, now: Instant, out: &mut Outbox) -> Result<(), GroupError> {
        let id = match &leaving.instance_id {
            Some(instance) => {
                let known = self.of_instance(instance).cloned().ok_or(GroupError::UnknownMember)?;
                if !leaving.member_id.is_empty() && leaving.member_id != known {
                    return Err(GroupError::FencedInstance);
                }
                known
            }
            None => leaving.member_id.clone(),
        };
        if self.promised.remove(&id).is_some() {
            self.complete_if_due(now, out);
            return Ok(());
        }
        if !self.members.contains_key(&id) {
            return Err(GroupError::UnknownMember);
        }
        self.remove(&id, now, out);
        Ok(())
    }

    fn remove(&mut self, id: &str, now: Instant, out: &mut Outbox) {
        let Some(mut member) = self.members.remove(id) else { return };
        for stale in
            [member.joining.take().map(Stale::Join), member.syncing.take().map(Stale::Sync)].into_iter().flatten()
        {
            stale.forget(out);
        }
        match self.state {
            GroupState::Empty => {}
            GroupState::PreparingRebalance => self.complete_if_due(now, out),
            GroupState::CompletingRebalance | GroupState::Stable => self.rebalance(now, out),
        }
    }

    /// Does what the time asks for: members that were not heard of go, phases end.
    pub(super) fn tick(&mut self, now: Instant, out: &mut Outbox) {
        self.promised.retain(|_, deadline| *deadline > now);
        let mut gone = Vec::new();
        for (id, member) in self.members.iter_mut().filter(|(_, member)| member.deadline <= now) {
            if member.waits() {
                member.heard(now);
            } else {
                gone.push(id.clone());
            }
        }
        for id in gone {
            tracing::info!(group = self.name, member = id, "a member was not heard of within its session timeout");
            self.remove(&id, now, out);
        }
        if self.state == GroupState::CompletingRebalance && self.phase_deadline.is_some_and(|at| at <= now) {
            let late: Vec<String> =
                self.members.iter().filter(|(_, member)| member.syncing.is_none()).map(|(id, _)| id.clone()).collect();
            late.iter().for_each(|id| self.remove(id, now, out));
            if self.state == GroupState::CompletingRebalance {
                self.rebalance(now, out);
            }
        }
        self.complete_if_due(now, out);
    }

    /// When [`Self::tick`] is due.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let members = self.members.values().map(|member| member.deadline);
        let others = self.promised.values().copied().chain(self.not_before).chain(self.phase_deadline);
        members.chain(others).min()
    }

    // ---- offsets

    /// Commits offsets: as a member of the present generation, or from outside (`generation` -1) while there are no members.
    pub(super) fn commit(
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
        self.active_ms = super::now_ms();
        self.stored = true;
        out.entries.push((self.name.clone(), Entry::Committed(offsets.clone())));
        self.offsets.extend(offsets.into_iter().map(|offset| ((offset.topic.clone(), offset.partition), offset)));
        Ok(())
    }

    /// What is committed: of these partitions, or all there is.
    pub(super) fn committed(&self, wanted: Option<&[(String, u32)]>) -> Vec<CommittedOffset> {
        match wanted {
            Some(wanted) => wanted.iter().filter_map(|partition| self.offsets.get(partition).cloned()).collect(),
            None => self.offsets.values().cloned().collect(),
        }
    }

    /// Forgets committed offsets; not those of topics that its members subscribe to.
    pub(super) fn remove_offsets(
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
    pub(super) fn expire(&mut self, before_ms: i64, out: &mut Outbox) -> bool {
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

    /// Deletes it, offsets and all, if it has no members.
    pub(super) fn delete(&self, out: &mut Outbox) -> Result<(), GroupError> {
        if !self.members.is_empty() {
            return Err(GroupError::NonEmpty);
        }
        out.entries.push((self.name.clone(), Entry::GroupRemoved));
        Ok(())
    }

    /// For those who look.
    /// How far it has read.
    pub(super) fn progress(&self) -> GroupProgress {
        let (name, members) = (self.name.clone(), self.members.len());
        GroupProgress { name, state: self.state, members, offsets: self.offsets.values().cloned().collect() }
    }

    pub(super) fn describe(&self) -> GroupDescription {
        let member = |(id, member): (&String, &Member)| {
            let assigned = consumer_protocol::assigned_partitions(&member.assignment);
            MemberDescription {
                id: id.clone(),
                instance_id: member.instance_id.clone(),
                client_id: member.client_id.clone(),
                client_host: member.client_host.clone(),
                metadata: member.metadata(self.protocol.as_deref()),
                assigned: assigned.filter(|_| self.protocol_type == consumer_protocol::CONSUMER).unwrap_or_default(),
                assignment: member.assignment.clone(),
            }
        };
        GroupDescription {
            name: self.name.clone(),
            state: self.state,
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone().unwrap_or_default(),
            members: self.members.iter().map(member).collect(),
        }
    }

    /// Nothing of it is worth keeping: not in the log, nobody in it or about to be.
    pub(super) fn is_nothing(&self) -> bool {
        !self.stored && self.members.is_empty() && self.promised.is_empty()
    }
}

/// An answer that somebody waits for who is not a member any more.
enum Stale {
    Join(Reply<Joined>),
    Sync(Reply<Synced>),
}

impl Stale {
    fn fence(self, out: &mut Outbox) {
        self.refuse(GroupError::FencedInstance, out);
    }

    fn forget(self, out: &mut Outbox) {
        self.refuse(GroupError::UnknownMember, out);
    }

    fn refuse(self, error: GroupError, out: &mut Outbox) {
        match self {
            Self::Join(reply) => out.answer(reply, Err(error)),
            Self::Sync(reply) => out.answer(reply, Err(error)),
        }
    }
}

fn new_member_id(of: &str) -> String {
    format!("{of}-{:016x}{:016x}", random_u64(), random_u64())
}

#[cfg(test)]
mod tests;
