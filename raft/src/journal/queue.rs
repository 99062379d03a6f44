//! What waits for the journal's writer: a queue per group, and what the next round takes from them.
//!
//! Within a group, order of submission is order of LSNs, always. Between groups, rounds are fair: each group in turn gives a
//! quantum. A group whose next appends are large is taken out of turn until they have been written to their segment directly
//! (RULES.md J6); only that group waits. Pure state: the writer does the waiting and the I/O.

use std::collections::{BTreeMap, VecDeque};

use super::format::{ROUND_RECORDS_MAX, RecordBody};
use super::{Done, Extent, Op};
use crate::types::{GroupId, ReplicaId};

/// Bytes a group gives to a round before the next group's turn.
const QUANTUM_BYTES: usize = 64 << 10;
/// Most bytes that one bypass writes at a time (but at least one append).
const BYPASS_BYTES_MAX: usize = 16 << 20;
/// How many groups bypass at a time.
const BYPASSES_MAX: usize = 4;

/// One operation that waits.
pub(super) struct Entry {
    pub(super) replica: ReplicaId,
    pub(super) body: RecordBody,
    pub(super) done: Done,
}

impl Entry {
    fn is_commit(&self) -> bool {
        matches!(self.body, RecordBody::Op(Op::Commit(_)))
    }

    fn is_delete(&self) -> bool {
        matches!(self.body, RecordBody::Op(Op::Delete))
    }

    /// Where a journalled append's frames go.
    fn extent(&self) -> Option<Extent> {
        match self.body {
            RecordBody::Op(Op::Append { extent, .. }) => Some(extent),
            _ => None,
        }
    }
}

/// Bounds of a round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Most bytes of records (but at least one record).
    pub(super) round_bytes_max: usize,
    /// From so many bytes on, appends bypass the journal.
    pub(super) bypass_bytes_min: usize,
}

#[derive(Default)]
struct GroupQueue {
    entries: VecDeque<Entry>,
    /// Bytes of the queued appends that are not bypassed yet.
    append_bytes: usize,
    in_ring: bool,
    /// Its first appends are, or soon will be, under way to their segment.
    bypassing: bool,
}

impl GroupQueue {
    /// The appends at the front that stand one behind the other in one segment: how many, and their bytes. Counts no further than
    /// `enough` bytes.
    fn front_run(&self, enough: usize) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        let mut before: Option<(ReplicaId, Extent)> = None;
        for entry in &self.entries {
            let Some(extent) = entry.extent() else { break };
            let follows = before.is_none_or(|(replica, previous)| {
                replica == entry.replica
                    && previous.segment == extent.segment
                    && previous.position + previous.bytes == extent.position
            });
            if bytes >= enough || !follows {
                break;
            }
            before = Some((entry.replica, extent));
            bytes += extent.bytes as usize;
            count += 1;
        }
        (count, bytes)
    }
}

/// Everything that waits.
#[derive(Default)]
pub(super) struct Queue {
    groups: BTreeMap<GroupId, GroupQueue>,
    /// Groups with something to take, in turn.
    ring: VecDeque<GroupId>,
    /// Groups that wait for their turn to bypass.
    bypass_wanted: VecDeque<GroupId>,
    bypasses: usize,
    /// Queued operations that ask for a round: all but commits.
    urgent: usize,
    commits: usize,
    /// Submitted after the end; to be told so.
    refused: Vec<Done>,
    /// Of replicas that are being deleted, in order; to be told so before the next round is taken.
    dropped: Vec<Done>,
    closed: bool,
}

impl Queue {
    /// Queues an operation. True if the writer should be woken.
    pub(super) fn push(&mut self, limits: &Limits, group: GroupId, entry: Entry) -> bool {
        if self.closed {
            self.refused.push(entry.done);
            return true;
        }
        let queue = self.groups.entry(group).or_default();
        let is_commit = entry.is_commit();
        if is_commit {
            // An older commit of the same replica, right in front of it, says nothing more: one record for both.
            if let Some(last) = queue.entries.back_mut()
                && last.is_commit()
                && last.replica == entry.replica
            {
                let older = std::mem::replace(last, entry);
                let newer = std::mem::replace(&mut last.done, Box::new(|_| {}));
                last.done = Box::new(move |result| {
                    (older.done)(result.clone());
                    newer(result);
                });
                return false;
            }
            self.commits += 1;
        } else {
            self.urgent += 1;
        }
        queue.append_bytes += entry.extent().map_or(0, |extent| extent.bytes as usize);
        let deleted = entry.is_delete().then_some(entry.replica);
        queue.entries.push_back(entry);
        // Large appends that wait for their turn may wait long: those before them wait for room on the disk, perhaps.
        let waiting = self.bypass_wanted.iter().position(|wanted| *wanted == group);
        if let (Some(at), Some(replica)) = (waiting, deleted) {
            self.bypass_wanted.remove(at);
            self.drop_replica(group, replica, Vec::new());
        }
        self.settle(limits, group);
        // The first commit starts the clock of the Seal that will carry it, should nothing else come.
        !is_commit || self.commits == 1
    }

    /// Puts a group where it belongs after its queue changed: into the ring, among those that want to bypass, or away.
    fn settle(&mut self, limits: &Limits, group: GroupId) {
        let Some(queue) = self.groups.get_mut(&group) else { return };
        if queue.bypassing {
            return;
        }
        if queue.entries.is_empty() {
            // It may still be in the ring, where its turn will find nothing.
            if !queue.in_ring {
                self.groups.remove(&group);
            }
            return;
        }
        let enough = limits.bypass_bytes_min;
        if queue.append_bytes >= enough && queue.front_run(enough).1 >= enough {
            queue.bypassing = true;
            self.bypass_wanted.push_back(group);
        } else if !queue.in_ring {
            queue.in_ring = true;
            self.ring.push_back(group);
        }
    }

    /// The next group whose appends are to be written directly, with them, in order. Hand them back to [`Self::bypassed`].
    pub(super) fn take_bypass(&mut self) -> Option<(GroupId, Vec<Entry>)> {
        if self.bypasses >= BYPASSES_MAX {
            return None;
        }
        let group = self.bypass_wanted.pop_front()?;
        let queue = self.groups.get_mut(&group)?;
        let (count, bytes) = queue.front_run(BYPASS_BYTES_MAX);
        queue.append_bytes -= bytes;
        self.bypasses += 1;
        Some((group, queue.entries.drain(..count).collect()))
    }

    /// The segment has them: their Bypass records, in order, are the group's next.
    pub(super) fn bypassed(&mut self, limits: &Limits, group: GroupId, entries: Vec<Entry>) {
        self.bypasses -= 1;
        let queue = self.groups.entry(group).or_default();
        queue.bypassing = false;
        for entry in entries.into_iter().rev() {
            queue.entries.push_front(entry);
        }
        self.settle(limits, group);
    }

    /// The segment will not have them: their replica is being deleted.
    pub(super) fn drop_bypassed(&mut self, limits: &Limits, group: GroupId, entries: Vec<Entry>) {
        self.bypasses -= 1;
        if let Some(replica) = entries.first().map(|entry| entry.replica) {
            self.drop_replica(group, replica, entries);
        }
        self.settle(limits, group);
    }

    /// Drops `entries`, the first of a replica, and all that waits of it but its Delete: behind a hole nothing of it may be on record.
    fn drop_replica(&mut self, group: GroupId, replica: ReplicaId, entries: Vec<Entry>) {
        let queue = self.groups.entry(group).or_default();
        queue.bypassing = false;
        let unwanted = |entry: &Entry| entry.replica == replica && !entry.is_delete();
        let waiting = std::mem::take(&mut queue.entries);
        let (dropped, kept): (Vec<Entry>, Vec<Entry>) = waiting.into_iter().partition(unwanted);
        queue.append_bytes = kept.iter().filter_map(Entry::extent).map(|extent| extent.bytes as usize).sum();
        queue.entries = kept.into();
        for entry in entries.into_iter().chain(dropped) {
            match entry.is_commit() {
                true => self.commits -= 1,
                false => self.urgent -= 1,
            }
            self.dropped.push(entry.done);
        }
    }

    /// What the next round holds, in LSN order; nothing if nothing asks for a round, or somebody is to be told first that he was dropped.
    /// Appends stay where they are while `hold_appends`.
    pub(super) fn take_round(&mut self, limits: &Limits, hold_appends: bool) -> Vec<(GroupId, Entry)> {
        if self.urgent == 0 || !self.dropped.is_empty() {
            return Vec::new();
        }
        let taken = self.take(limits, hold_appends);
        let in_nobodys_way = |(group, entry): &(GroupId, Entry)| entry.is_commit() && !self.groups.contains_key(group);
        if taken.iter().all(in_nobodys_way) {
            // Whatever is urgent stands in other groups, and cannot go yet.
            self.put_back(limits, taken);
            return Vec::new();
        }
        taken
    }

    /// What a Seal takes along: commits that stand first in their queues.
    pub(super) fn take_commits(&mut self, limits: &Limits) -> Vec<(GroupId, Entry)> {
        if self.urgent == 0 { self.take(limits, true) } else { Vec::new() }
    }

    fn take(&mut self, limits: &Limits, hold_appends: bool) -> Vec<(GroupId, Entry)> {
        let mut round = Round { taken: Vec::new(), bytes: 0, full: false };
        let mut turns_for_nothing = 0;
        while !round.full && turns_for_nothing < self.ring.len() {
            let Some(group) = self.ring.pop_front() else { break };
            let before = round.taken.len();
            self.take_turn(limits, hold_appends, group, &mut round);
            self.settle(limits, group);
            turns_for_nothing = if round.taken.len() == before { turns_for_nothing + 1 } else { 0 };
        }
        round.taken
    }

    fn take_turn(&mut self, limits: &Limits, hold_appends: bool, group: GroupId, round: &mut Round) {
        let Some(queue) = self.groups.get_mut(&group) else { return };
        queue.in_ring = false;
        let quantum_end = round.bytes + QUANTUM_BYTES;
        while !queue.bypassing && round.bytes < quantum_end {
            let Some(front) = queue.entries.front() else { return };
            let append_bytes = front.extent().map_or(0, |extent| extent.bytes as usize);
            if append_bytes > 0 {
                let large = queue.append_bytes >= limits.bypass_bytes_min
                    && queue.front_run(limits.bypass_bytes_min).1 >= limits.bypass_bytes_min;
                if hold_appends || large {
                    return;
                }
            }
            let bytes = front.body.record_bytes();
            let fits = round.bytes + bytes <= limits.round_bytes_max && round.taken.len() < ROUND_RECORDS_MAX - 1;
            if !fits && !round.taken.is_empty() {
                round.full = true;
                return;
            }
            let Some(entry) = queue.entries.pop_front() else { return };
            queue.append_bytes -= append_bytes;
            match entry.is_commit() {
                true => self.commits -= 1,
                false => self.urgent -= 1,
            }
            round.bytes += bytes;
            round.taken.push((group, entry));
        }
    }

    fn put_back(&mut self, limits: &Limits, taken: Vec<(GroupId, Entry)>) {
        for (group, entry) in taken.into_iter().rev() {
            self.commits += 1;
            self.groups.entry(group).or_default().entries.push_front(entry);
            self.settle(limits, group);
        }
    }

    /// Whether nothing asks for a round, now or after a bypass.
    pub(super) fn is_quiet(&self) -> bool {
        self.urgent == 0
    }

    /// Whether commits wait for a round to ride along with.
    pub(super) fn has_commits(&self) -> bool {
        self.commits > 0
    }

    /// Takes no operations any more; what waits is still written.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Whether it takes no operations any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// What was submitted after the end.
    pub(super) fn take_refused(&mut self) -> Vec<Done> {
        std::mem::take(&mut self.refused)
    }

    /// What was dropped.
    pub(super) fn take_dropped(&mut self) -> Vec<Done> {
        std::mem::take(&mut self.dropped)
    }

    /// Closes it and takes everything that waits, to be told that it never will be written.
    pub(super) fn take_all(&mut self) -> Vec<Done> {
        let all = std::mem::replace(self, Self { closed: true, ..Self::default() });
        let waiting = all.groups.into_values().flat_map(|queue| queue.entries).map(|entry| entry.done);
        all.dropped.into_iter().chain(waiting).chain(all.refused).collect()
    }
}

struct Round {
    taken: Vec<(GroupId, Entry)>,
    bytes: usize,
    full: bool,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use futures_util::future::BoxFuture;
    use proptest::prelude::*;

    use super::*;
    use crate::journal::{ExtentTarget, SegmentName};
    use crate::types::{log_id, vote};

    struct Nowhere;

    impl ExtentTarget for Nowhere {
        fn write_durably(&self, _: u64, _: Vec<Bytes>) -> BoxFuture<'_, std::io::Result<()>> {
            Box::pin(async { Ok(()) })
        }
    }

    const LIMITS: Limits = Limits { round_bytes_max: 3000, bypass_bytes_min: 2000 };

    fn entry(op: Op) -> Entry {
        Entry { replica: ReplicaId(1), body: RecordBody::Op(op), done: Box::new(|_| {}) }
    }

    fn append(number: u64, position: u64, bytes: u64) -> Op {
        let extent = Extent { segment: SegmentName { first_index: 0, file_no: 0 }, position, bytes };
        let id = log_id(1, number);
        let parts = vec![vec![0; bytes as usize].into()];
        Op::Append { extent, parts, first: id, last: id, target: Arc::new(Nowhere) }
    }

    /// The number that was given to an operation, and whether it is a commit.
    fn number(entry: &Entry) -> (u64, bool) {
        match &entry.body {
            RecordBody::Op(Op::Append { first, .. }) => (first.index, false),
            RecordBody::Op(Op::Vote(vote)) => (vote.leader_id.term, false),
            RecordBody::Op(Op::Commit(id)) => (id.index, true),
            _ => unreachable!(),
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Vote(u64),
        Commit(u64),
        /// Group, bytes, whether it adjoins the one before.
        Append(u64, u64, bool),
        Round(bool),
        StartBypass,
        EndBypass,
        Seal,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4u64).prop_map(Step::Vote),
            (0..4u64).prop_map(Step::Commit),
            (0..4u64, 1..2500u64, any::<bool>())
                .prop_map(|(group, bytes, adjoins)| Step::Append(group, bytes, adjoins)),
            (0..4u64, 1..2500u64, any::<bool>())
                .prop_map(|(group, bytes, adjoins)| Step::Append(group, bytes, adjoins)),
            any::<bool>().prop_map(Step::Round),
            Just(Step::StartBypass),
            Just(Step::EndBypass),
            Just(Step::Seal),
        ]
    }

    /// What came out of the queue, per group.
    #[derive(Default)]
    struct Taken(BTreeMap<GroupId, Vec<(u64, bool)>>);

    impl Taken {
        fn take(&mut self, round: Vec<(GroupId, Entry)>, only_commits: bool) {
            let bytes: usize = round.iter().map(|(_, entry)| entry.body.record_bytes()).sum();
            assert!(bytes <= LIMITS.round_bytes_max || round.len() == 1, "{bytes} bytes in one round");
            assert!(!only_commits || round.iter().all(|(_, entry)| entry.is_commit()));
            for (group, entry) in round {
                if let Some(extent) = entry.extent() {
                    assert!(extent.bytes < 2000, "a large append is never journalled");
                }
                self.0.entry(group).or_default().push(number(&entry));
            }
        }
    }

    proptest! {
        #[test]
        fn each_group_keeps_its_order_and_nothing_is_lost(steps in proptest::collection::vec(step(), 0..120)) {
            let (mut queue, mut taken) = (Queue::default(), Taken::default());
            let mut submitted: BTreeMap<GroupId, Vec<(u64, bool)>> = BTreeMap::new();
            let mut bypassing: VecDeque<(GroupId, Vec<Entry>)> = VecDeque::new();
            let mut positions: BTreeMap<u64, u64> = BTreeMap::new();
            let end = (0..200).flat_map(|_| [Step::StartBypass, Step::EndBypass, Step::Round(false)]).chain([Step::Seal]);
            for (count, step) in steps.into_iter().chain(end).enumerate() {
                let count = count as u64;
                let submit = match step {
                    Step::Vote(group) => Some((group, Op::Vote(vote(count, ReplicaId(1), false)))),
                    Step::Commit(group) => Some((group, Op::Commit(log_id(1, count)))),
                    Step::Append(group, bytes, adjoins) => {
                        let position = positions.entry(group).or_default();
                        let op = append(count, *position + u64::from(!adjoins), bytes);
                        *position += bytes + u64::from(!adjoins);
                        Some((group, op))
                    }
                    Step::Round(hold_appends) => {
                        taken.take(queue.take_round(&LIMITS, hold_appends), false);
                        None
                    }
                    Step::Seal => {
                        taken.take(queue.take_commits(&LIMITS), true);
                        None
                    }
                    Step::StartBypass => {
                        bypassing.extend(queue.take_bypass());
                        assert!(bypassing.len() <= BYPASSES_MAX);
                        None
                    }
                    Step::EndBypass => {
                        if let Some((group, mut entries)) = bypassing.pop_front() {
                            for entry in &mut entries {
                                // As a Bypass record it is an operation that is not an append.
                                entry.body = RecordBody::Op(Op::Vote(vote(number(entry).0, ReplicaId(1), false)));
                            }
                            queue.bypassed(&LIMITS, group, entries);
                        }
                        None
                    }
                };
                if let Some((group, op)) = submit {
                    let entry = entry(op);
                    let all = submitted.entry(GroupId(group)).or_default();
                    all.push(number(&entry));
                    queue.push(&LIMITS, GroupId(group), entry);
                }
            }
            prop_assert!(queue.is_quiet() && !queue.has_commits());
            prop_assert!(queue.ring.is_empty() && queue.groups.is_empty(), "nothing is remembered of a quiet group");
            for (group, mut all) in submitted {
                // A commit right in front of another one is merged into it.
                let merged: Vec<_> = (0..all.len()).filter(|at| all[*at].1 && all.get(at + 1).is_some_and(|next| next.1)).collect();
                let mut out = taken.0.remove(&group).unwrap_or_default();
                out.retain(|entry| !merged.iter().any(|at| all[*at] == *entry));
                let mut at = 0;
                all.retain(|_| { at += 1; !merged.contains(&(at - 1)) });
                prop_assert_eq!(out, all);
            }
        }
    }
}
