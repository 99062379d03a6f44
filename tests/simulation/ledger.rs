//! The ledger: every event goes through it to every invariant, and it keeps what all of them need, the committed log of each group.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pontoon_raft::log::frame::Frame;

use crate::client;
use crate::event::{Event, Fact, Replica};
use crate::invariants::{self, Invariant};
use crate::trace::Trace;

/// What does not hold, and what showed it.
#[derive(Clone, Debug)]
pub(crate) struct Broken {
    /// Which invariant; or `liveness`, `harness`.
    pub(crate) invariant: &'static str,
    pub(crate) why: String,
}

/// A group's committed log, by index.
#[derive(Default)]
struct Committed {
    /// Without holes, from index 0.
    facts: Vec<Fact>,
    /// Shown already, while an earlier one is not.
    ahead: BTreeMap<u64, (Fact, Frame)>,
}

/// How far a broker has shown its log of a group: its life, the next index.
pub(crate) type Shown = (u64, u64);

#[derive(Default)]
struct Inner {
    invariants: Vec<Box<dyn Invariant>>,
    groups: BTreeMap<u64, Committed>,
    shown: BTreeMap<(u32, u64), Shown>,
    broken: Vec<Broken>,
    acknowledged: u64,
    acknowledged_end: BTreeMap<u32, u64>,
    leaders: u64,
    leading: BTreeMap<(u64, u64), u64>,
    /// By group: the newest term whose leader said so itself, and its broker.
    leaders_by_group: BTreeMap<u64, (u64, u32)>,
    /// What happened to logs, by kind.
    happened: BTreeMap<&'static str, u64>,
}

/// All that is known. Clones share it.
#[derive(Clone)]
pub(crate) struct Ledger {
    inner: Arc<Mutex<Inner>>,
    trace: Trace,
}

impl Ledger {
    pub(crate) fn new(trace: Trace) -> Self {
        let inner = Inner { invariants: invariants::all(), ..Inner::default() };
        Self { inner: Arc::new(Mutex::new(inner)), trace }
    }

    /// Something must hold and does not.
    pub(crate) fn broken(&self, invariant: &'static str, why: String) {
        self.trace.note("BROKEN", format_args!("{invariant}: {why}"));
        self.inner.lock().broken.push(Broken { invariant, why });
    }

    pub(crate) fn all_broken(&self) -> Vec<Broken> {
        self.inner.lock().broken.clone()
    }

    /// Shows an event to every invariant.
    pub(crate) fn tell(&self, event: Event<'_>) {
        let broken = self.inner.lock().tell(&event);
        broken.into_iter().for_each(|broken| self.broken(broken.invariant, broken.why));
    }

    /// A replica shows an applied entry.
    pub(crate) fn applied(&self, by: Replica, frame: Frame) {
        let (index, fact) = (frame.header.index, Fact::of(&frame));
        self.tell(Event::Applied { by, index, fact });
        let mut inner = self.inner.lock();
        let group = inner.groups.entry(by.group).or_default();
        if index >= group.facts.len() as u64 {
            group.ahead.entry(index).or_insert((fact, frame));
        }
        let mut broken = Vec::new();
        while let Some((index, fact, frame)) = inner.next_committed(by.group) {
            broken.extend(inner.tell(&Event::Committed { group: by.group, index, fact, frame: &frame }));
        }
        drop(inner);
        broken.into_iter().for_each(|broken| self.broken(broken.invariant, broken.why));
    }

    /// How far a broker has come with a group.
    pub(crate) fn shown(&self, by: Replica, next: u64) {
        self.inner.lock().shown.insert((by.broker, by.group), (by.life, next));
    }

    /// The index below which every committed entry was shown by somebody.
    pub(crate) fn known(&self, group: u64) -> u64 {
        self.inner.lock().groups.get(&group).map_or(0, |group| group.facts.len() as u64)
    }

    /// Raft index below which none of the client's producers with sequences has its last batch, as far as anybody has shown: all others
    /// who wrote there may expire.
    pub(crate) fn idle_below(&self, group: u64) -> u64 {
        let inner = self.inner.lock();
        let facts = inner.groups.get(&group).map_or(&[][..], |group| &group.facts);
        let last = |producer| facts.iter().rposition(|fact| fact.attempt.is_some_and(|of| of.producer == producer));
        client::sequenced().map(|producer| last(producer).unwrap_or(0) as u64).min().unwrap_or(0)
    }

    /// The end of all that is acknowledged so far.
    pub(crate) fn acknowledged_end(&self, partition: u32) -> u64 {
        self.inner.lock().acknowledged_end.get(&partition).copied().unwrap_or(0)
    }

    /// How many batches were acknowledged, and how many terms had a leader.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.acknowledged, inner.leaders)
    }

    /// The broker that last said that it leads this group.
    pub(crate) fn leader_of(&self, group: u64) -> Option<u32> {
        self.inner.lock().leaders_by_group.get(&group).map(|(_, broker)| *broker).filter(|broker| *broker != 0)
    }

    /// Counts something that happened to a log.
    pub(crate) fn count(&self, what: &'static str) {
        *self.inner.lock().happened.entry(what).or_default() += 1;
    }

    /// What happened to logs, and what was looked at, by kind.
    pub(crate) fn happened(&self) -> BTreeMap<&'static str, u64> {
        let inner = self.inner.lock();
        let looked_at = inner.invariants.iter().filter_map(|invariant| invariant.looked_at());
        inner.happened.clone().into_iter().chain(looked_at).collect()
    }

    /// Whether every broker, in the life it is in, has shown all there is of every group. If not: who lags.
    pub(crate) fn agreed(&self, lives: &BTreeMap<u32, u64>) -> Result<(), String> {
        let inner = self.inner.lock();
        for (id, group) in &inner.groups {
            let all = group.facts.len() as u64;
            if let Some((index, _)) = group.ahead.first_key_value() {
                return Err(format!("group {id}: nobody has shown {all}, but {index} was"));
            }
            for (broker, life) in lives {
                let shown = inner.shown.get(&(*broker, *id));
                if shown != Some(&(*life, all)) {
                    return Err(format!("group {id}: broker {broker} (life {life}) has shown {shown:?} of {all}"));
                }
            }
        }
        Ok(())
    }

    /// Asks every invariant about the whole, once all has been shown and read.
    pub(crate) fn judge(&self) {
        let broken: Vec<Broken> = {
            let mut inner = self.inner.lock();
            let judged = inner.invariants.iter_mut().flat_map(|invariant| {
                let name = invariant.name();
                invariant.judge().into_iter().map(move |why| Broken { invariant: name, why })
            });
            judged.collect()
        };
        broken.into_iter().for_each(|broken| self.broken(broken.invariant, broken.why));
    }
}

impl Inner {
    fn tell(&mut self, event: &Event<'_>) -> Vec<Broken> {
        match event {
            Event::Acknowledged { attempt, at } => {
                self.acknowledged += 1;
                let end = self.acknowledged_end.entry(attempt.partition).or_default();
                *end = (*end).max(at.last_offset + 1);
            }
            Event::Leader { by, term, leader } => {
                self.leaders += u64::from(self.leading.insert((by.group, *term), *leader).is_none());
                let newest = self.leaders_by_group.entry(by.group).or_default();
                if by.id == *leader && *term > newest.0 {
                    *newest = (*term, by.broker);
                }
            }
            _ => {}
        }
        let kind = match event {
            Event::Acknowledged { at, .. } if at.duplicate => Some("duplicates answered"),
            Event::Refused { .. } => Some("refusals"),
            Event::Answered { .. } => Some("reads answered"),
            Event::Tail { .. } => Some("ends confirmed"),
            Event::Quarantined { .. } => Some("quarantines"),
            _ => None,
        };
        if let Some(kind) = kind {
            *self.happened.entry(kind).or_default() += 1;
        }
        let mut broken = Vec::new();
        for invariant in &mut self.invariants {
            if let Err(why) = invariant.see(event) {
                broken.push(Broken { invariant: invariant.name(), why });
            }
        }
        broken
    }

    fn next_committed(&mut self, group: u64) -> Option<(u64, Fact, Frame)> {
        let group = self.groups.get_mut(&group)?;
        let next = group.facts.len() as u64;
        let (fact, frame) = group.ahead.remove(&next)?;
        group.facts.push(fact);
        Some((next, fact, frame))
    }
}
