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
//!
//! Here: what a group is, how it comes back from the log, living and leaving. [`member`]: one of its members; [`joining`]: how
//! they come in; [`rebalancing`]: from one generation to the next; [`offsets`]: how far the group has read.

mod joining;
mod member;
mod offsets;
mod rebalancing;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::entry::{CommittedOffset, Entry, GroupRecord, StoredGroup};
use super::{
    GroupDescription, GroupError, GroupListing, GroupProgress, GroupState, Leaving, MemberDescription, TOLD_BYTES,
};
use member::{Member, Stale};

/// Most bytes of what all members of a group say of themselves, and of what they are assigned: a generation stands in the log as one
/// entry, and one that the log does not take would end the other groups' coordinator too.
const GROUP_BYTES_MAX: usize = 8 << 20;
/// What each thing that is remembered takes besides what was told of it, in bytes, about.
const THING_BYTES: usize = 512;
/// Most protocols that a member may know. Clients know two or three.
const PROTOCOLS_MAX: usize = 32;
/// How long a group that was empty waits for more members before its first generation.
const FIRST_REBALANCE_DELAY: Duration = Duration::from_millis(500);

/// Longest that a generation waits for a member that does not join again, or does not sync. Clients may ask for 24 days (Kafka Streams
/// did, for years), and one that hangs would keep all the others from working for so long.
const REBALANCE_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

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

/// See the module's header.
pub(super) struct Group {
    name: String,
    /// Most members, promised ones among them.
    members_max: usize,
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
    /// Bytes of the offsets.
    offset_bytes: usize,
    /// Bytes of the group as its shard has counted them last.
    pub(super) counted_bytes: usize,
    /// When the group was last known to have members, in ms since 1970.
    active_ms: i64,
    /// Whether there is anything of it in the log.
    stored: bool,
    /// The last generation that is in the log, and its bytes: a copy of its own.
    last: Option<GroupRecord>,
    last_bytes: usize,
}

impl Group {
    pub(super) fn new(name: &str, members_max: usize) -> Self {
        Self {
            name: name.to_owned(),
            members_max,
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
            offset_bytes: 0,
            counted_bytes: 0,
            active_ms: 0,
            stored: false,
            last: None,
            last_bytes: 0,
        }
    }

    /// As the log tells it. Members have a whole session timeout from now to be heard of.
    pub(super) fn restore(name: &str, members_max: usize, stored: StoredGroup, now: Instant) -> Self {
        let mut group = Self { stored: true, ..Self::new(name, members_max) };
        group.take_offsets(stored.offsets.into_values());
        let Some(record) = stored.record else { return group };
        group.last = Some(record.clone());
        for member in record.members {
            group.members.insert(member.id.clone(), Member::restore(member, now));
        }
        group.state = if group.members.is_empty() { GroupState::Empty } else { GroupState::Stable };
        group.generation = record.generation;
        group.protocol_type = record.protocol_type;
        group.protocol = record.protocol;
        group.leader = record.leader;
        group.active_ms = record.time_ms;
        group.last_bytes = group.generation_bytes();
        group
    }

    fn record(&self, time_ms: i64) -> GroupRecord {
        GroupRecord {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            members: self.members.iter().map(|(id, member)| member.record(id)).collect(),
            time_ms,
        }
    }

    fn store(&mut self, out: &mut Outbox) {
        self.active_ms = crate::clock::now_ms();
        self.stored = true;
        self.last = Some(self.record(self.active_ms));
        self.last_bytes = self.generation_bytes();
        self.write_last(out);
    }

    /// A member of the last generation in the log has another id from now on. It is told of it, so a failover must know it.
    fn store_renamed(&mut self, known: &str, id: &str, out: &mut Outbox) {
        let Some(last) = &mut self.last else { return };
        let Some(member) = last.members.iter_mut().find(|member| member.id == known) else { return };
        id.clone_into(&mut member.id);
        if last.leader.as_deref() == Some(known) {
            last.leader = Some(id.to_owned());
        }
        self.write_last(out);
    }

    fn write_last(&self, out: &mut Outbox) {
        let Some(record) = self.last.clone() else { return };
        // It takes the place of those before it: one round may bring hundreds, each of which would be held to its end.
        out.entries.retain(|(name, entry)| *name != self.name || !matches!(entry, Entry::Group(_)));
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

    /// How many bytes it takes: what was told of it, and some for each thing.
    pub(super) fn bytes(&self) -> usize {
        let promised: usize = self.promised.keys().map(|id| THING_BYTES + id.len()).sum();
        let (things, now) = (THING_BYTES * self.members.len(), self.generation_bytes());
        // Twice: as it is, and as it stands in the log, or will.
        self.own_bytes() + promised + things + now + now.max(self.last_bytes) + self.offset_bytes
    }

    fn own_bytes(&self) -> usize {
        // The name stands in its shard's tables too.
        THING_BYTES + 4 * self.name.len()
    }

    /// Bytes of the present generation: its kind, and its members with what they were assigned.
    fn generation_bytes(&self) -> usize {
        self.protocol_type.len() + self.members.values().map(Member::all_bytes).sum::<usize>()
    }

    /// What a group takes that its shard has not counted yet, for it is new.
    pub(super) fn uncounted_bytes(&self) -> usize {
        if self.counted_bytes == 0 { self.own_bytes() } else { 0 }
    }

    /// How many things there are to remember of it.
    pub(super) fn weight(&self) -> u64 {
        1 + self.members.len() as u64 + self.offsets.len() as u64
    }

    // ---- living and leaving

    fn of_instance(&self, instance: &str) -> Option<&String> {
        self.members.iter().find(|(_, member)| member.instance_id.as_deref() == Some(instance)).map(|(id, _)| id)
    }

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

    /// Deletes it, offsets and all, if it has no members.
    pub(super) fn delete(&self, out: &mut Outbox) -> Result<(), GroupError> {
        if !self.members.is_empty() {
            return Err(GroupError::NonEmpty);
        }
        out.entries.push((self.name.clone(), Entry::GroupRemoved));
        Ok(())
    }

    /// How far it has read.
    pub(super) fn progress(&self) -> GroupProgress {
        let (name, members) = (self.name.clone(), self.members.len());
        GroupProgress { name, state: self.state, members, offsets: self.offsets.values().cloned().collect() }
    }

    /// For a list of all.
    pub(super) fn listing(&self) -> GroupListing {
        let (name, protocol_type) = (self.name.clone(), self.protocol_type.clone());
        GroupListing { name, state: self.state, protocol_type, members: self.members.len() }
    }

    /// For those who look.
    pub(super) fn describe(&self) -> GroupDescription {
        let member = |(id, member): (&String, &Member)| MemberDescription {
            id: id.clone(),
            instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            metadata: member.metadata(self.protocol.as_deref()),
            assignment: member.assignment.clone(),
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

    /// Bytes of [`Self::describe`], about.
    pub(super) fn description_bytes(&self) -> usize {
        let protocol = self.protocol.as_deref();
        let member = |(id, member): (&String, &Member)| {
            let names = id.len() + member.instance_id.as_ref().map_or(0, String::len);
            let said = member.client_id.len() + member.client_host.len() + member.metadata(protocol).len();
            TOLD_BYTES + names + said + member.assignment.len()
        };
        let own = self.name.len() + self.protocol_type.len() + protocol.map_or(0, str::len);
        TOLD_BYTES + own + self.members.iter().map(member).sum::<usize>()
    }

    /// Nothing of it is worth keeping: not in the log, nobody in it or about to be.
    pub(super) fn is_nothing(&self) -> bool {
        !self.stored && self.members.is_empty() && self.promised.is_empty()
    }
}

#[cfg(test)]
mod tests;
