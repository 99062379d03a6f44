//! What every checker looks things up in: who wrote a value, who read it, and where in the log it stands.
//!
//! **Version order.** For each key the log is the set of values seen at each offset: by polls of any outcome (a broker must never
//! hand out an unsafe record), by `:ok` sends, and by `:info` sends of which some value was read by an `:ok` poll (so it did
//! happen). A value's *index* is the dense rank of its offset: gaps take none.
//!
//! Everything here is built once, by sorting: O(n log n) in the number of records sent and read. Every element visited and every
//! comparison made is counted in [`Meter`], so that a test can hold the checkers to that.

use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;
use std::ops::Range;

use super::graph::Graph;
use crate::history::{Event, History, Key, Kind, MicroOp, Offset, Operation, Value};

/// The place of an operation in [`History::operations`].
pub type OperationId = usize;

/// Counts the steps of the checkers.
#[derive(Debug, Default)]
pub struct Meter(Cell<u64>);

impl Meter {
    /// Counts `steps` more.
    pub fn add(&self, steps: usize) {
        self.0.set(self.0.get() + steps as u64);
    }

    /// All steps so far.
    pub fn steps(&self) -> u64 {
        self.0.get()
    }

    /// Sorts, counting comparisons.
    fn sort<T: Ord>(&self, items: &mut [T]) {
        items.sort_unstable_by(|a, b| {
            self.add(1);
            a.cmp(b)
        });
    }

    /// Finds by bisection, counting comparisons.
    fn partition_point<T>(&self, items: &[T], before: impl Fn(&T) -> bool) -> usize {
        items.partition_point(|item| {
            self.add(1);
            before(item)
        })
    }
}

/// One value seen at an offset, and the first operation that saw it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// What.
    pub value: Value,
    /// By whom, as reader or as writer.
    pub seen_by: OperationId,
}

/// One offset of a key's log at which something was seen.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Where.
    pub offset: Offset,
    /// What, ascending. More than one: the brokers disagree.
    pub sightings: Vec<Sighting>,
}

/// All that is known of one value of a key.
#[derive(Clone, Debug)]
pub struct ValueFacts {
    /// Which.
    pub value: Value,
    /// Who sent it. `None`: nobody.
    pub writer: Option<OperationId>,
    /// The first and last index at which it stands; `None` if no offset of it is known.
    pub indices: Option<(usize, usize)>,
    /// Some `:ok` operation polled it.
    pub read_ok: bool,
    readers: Range<usize>,
}

/// One key's log.
#[derive(Debug, Default)]
pub struct KeyLog {
    /// Every offset at which something was seen, ascending. Places are indices.
    pub slots: Vec<Slot>,
    /// Every value that was sent or seen, ascending.
    pub values: Vec<ValueFacts>,
    /// The readers of every value, value by value.
    readers: Vec<OperationId>,
}

impl KeyLog {
    /// Who polled a value, with any outcome, in the order of invocation.
    pub fn readers(&self, facts: &ValueFacts) -> &[OperationId] {
        &self.readers[facts.readers.clone()]
    }

    /// The values at the indices strictly between two, at most `limit` of them, one for each index.
    pub fn between(&self, after: usize, before: usize, limit: usize) -> Vec<Value> {
        let slots = self.slots.get(after + 1..before).unwrap_or_default();
        slots.iter().take(limit).filter_map(|slot| slot.sightings.first()).map(|sighting| sighting.value).collect()
    }

    /// Where a value stands: the offset of its first index.
    pub fn offset_of(&self, facts: &ValueFacts) -> Option<Offset> {
        facts.indices.map(|(first, _)| self.slots[first].offset)
    }
}

/// A send of an operation, with all that is known of where it went.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Where to.
    pub key: Key,
    /// What.
    pub value: Value,
    /// Where the client was told that it went, or else the first place where a poll saw it.
    pub offset: Option<Offset>,
}

/// The history with its indexes.
pub struct Analysis<'h> {
    /// The history itself.
    pub history: &'h History,
    /// Each key's log.
    pub keys: BTreeMap<Key, KeyLog>,
    /// Operations by process, and for each process in the order of invocation.
    pub by_process: Vec<OperationId>,
    /// How much work was done on it.
    pub meter: Meter,
    happened: Vec<bool>,
    graph: OnceCell<Graph>,
}

/// What is gathered of a key before it is sorted.
#[derive(Default)]
struct Gathered {
    writes: Vec<(Value, OperationId)>,
    reads: Vec<(Value, OperationId, bool)>,
    seen: Vec<(Offset, Value, OperationId)>,
}

impl<'h> Analysis<'h> {
    /// Builds the indexes.
    pub fn new(history: &'h History) -> Self {
        let meter = Meter::default();
        let mut gathered: BTreeMap<Key, Gathered> = BTreeMap::new();
        for id in 0..history.operations().len() {
            let event = history.outcome_event(id);
            let ok = event.kind == Kind::Ok;
            for step in event.action.micro_ops() {
                meter.add(1);
                match step {
                    MicroOp::Send { key, value, .. } => gathered.entry(*key).or_default().writes.push((*value, id)),
                    MicroOp::Poll(reads) => {
                        for (key, pairs) in reads.iter().flatten() {
                            meter.add(pairs.len());
                            let of_key = gathered.entry(*key).or_default();
                            of_key.reads.extend(pairs.iter().map(|(_, value)| (*value, id, ok)));
                            of_key.seen.extend(pairs.iter().map(|(offset, value)| (*offset, *value, id)));
                        }
                    }
                }
            }
        }
        let keys = gathered.iter_mut().map(|(key, of_key)| (*key, value_table(of_key, &meter))).collect();
        let mut by_process: Vec<OperationId> = (0..history.operations().len()).collect();
        let process = |id: &OperationId| history.events()[history.operations()[*id].invoked].process;
        by_process.sort_by_cached_key(process);
        meter.add(by_process.len());
        let mut analysis = Self { history, keys, by_process, meter, happened: Vec::new(), graph: OnceCell::new() };
        analysis.happened = (0..history.operations().len()).map(|id| analysis.certainly_happened(id)).collect();
        analysis.gather_sends(&mut gathered);
        let Self { keys, meter, .. } = &mut analysis;
        for (key, of_key) in gathered {
            if let Some(log) = keys.get_mut(&key) {
                order(log, of_key.seen, meter);
            }
        }
        analysis
    }

    /// Adds the offsets that writers were told, of writes that certainly happened.
    fn gather_sends(&self, gathered: &mut BTreeMap<Key, Gathered>) {
        for id in 0..self.history.operations().len() {
            let event = self.history.outcome_event(id);
            if !self.happened(id) {
                continue;
            }
            for step in event.action.micro_ops() {
                self.meter.add(1);
                if let MicroOp::Send { key, offset: Some(offset), value } = step {
                    gathered.entry(*key).or_default().seen.push((*offset, *value, id));
                }
            }
        }
    }

    /// An operation by its id.
    pub fn operation(&self, id: OperationId) -> &'h Operation {
        &self.history.operations()[id]
    }

    /// The event that says most about an operation.
    pub fn event(&self, id: OperationId) -> &'h Event {
        self.history.outcome_event(id)
    }

    /// What is known of a value.
    pub fn facts(&self, key: Key, value: Value) -> Option<(&KeyLog, &ValueFacts)> {
        let log = self.keys.get(&key)?;
        let at = self.meter.partition_point(&log.values, |facts| facts.value < value);
        let facts = log.values.get(at).filter(|facts| facts.value == value)?;
        Some((log, facts))
    }

    /// Whether an operation's sends certainly happened: it was `:ok`, or it was `:info` and some value of it was read by an
    /// `:ok` poll.
    pub fn happened(&self, id: OperationId) -> bool {
        self.happened[id]
    }

    fn certainly_happened(&self, id: OperationId) -> bool {
        match self.operation(id).outcome {
            Kind::Ok => true,
            Kind::Info => self.event(id).action.micro_ops().iter().any(|step| match step {
                MicroOp::Send { key, value, .. } => self.facts(*key, *value).is_some_and(|(_, facts)| facts.read_ok),
                MicroOp::Poll(_) => false,
            }),
            Kind::Fail | Kind::Invoke => false,
        }
    }

    /// δ of two values of a key: how many indices the second stands after the first; `None` if either place is unknown, which
    /// counts as 1. A value that stands at several indices counts at its last, as with Jepsen.
    pub fn delta(&self, key: Key, first: Value, second: Value) -> Option<i64> {
        let index = |value| self.facts(key, value).and_then(|(_, facts)| facts.indices).map(|(_, last)| last as i64);
        Some(index(second)? - index(first)?)
    }

    /// What an operation sent, in order.
    pub fn sends(&self, id: OperationId) -> impl Iterator<Item = Sent> {
        self.event(id).action.micro_ops().iter().filter_map(move |step| match step {
            MicroOp::Send { key, offset, value } => {
                self.meter.add(1);
                let seen = || self.facts(*key, *value).and_then(|(log, facts)| log.offset_of(facts));
                Some(Sent { key: *key, value: *value, offset: offset.or_else(seen) })
            }
            MicroOp::Poll(_) => None,
        })
    }

    /// What an operation polled, in order.
    pub fn reads(&self, id: OperationId) -> impl Iterator<Item = (Key, Offset, Value)> {
        let steps = self.event(id).action.micro_ops().iter();
        let answers = steps.filter_map(|step| match step {
            MicroOp::Poll(Some(reads)) => Some(reads),
            _ => None,
        });
        answers
            .flatten()
            .flat_map(|(key, pairs)| pairs.iter().map(|(offset, value)| (*key, *offset, *value)))
            .inspect(|_| self.meter.add(1))
    }

    /// The event that stands for an operation as evidence: its completion if there is one.
    pub fn evidence(&self, id: OperationId) -> usize {
        self.event(id).index
    }

    /// The dependency graph, built at first use.
    pub fn graph(&self) -> &Graph {
        self.graph.get_or_init(|| Graph::new(self))
    }
}

/// Sorts what was written and read into the table of values. Places in the log come later.
fn value_table(gathered: &mut Gathered, meter: &Meter) -> KeyLog {
    meter.sort(&mut gathered.writes);
    meter.sort(&mut gathered.reads);
    let mut log = KeyLog { readers: Vec::with_capacity(gathered.reads.len()), ..KeyLog::default() };
    let mut writes = gathered.writes.iter().peekable();
    let mut reads = gathered.reads.iter().peekable();
    loop {
        meter.add(1);
        let next = [writes.peek().map(|write| write.0), reads.peek().map(|read| read.0)];
        let Some(value) = next.into_iter().flatten().min() else { break };
        let writer = writes.next_if(|write| write.0 == value).map(|write| write.1);
        let start = log.readers.len();
        let mut read_ok = false;
        while let Some((_, reader, ok)) = reads.next_if(|read| read.0 == value) {
            meter.add(1);
            read_ok |= ok;
            if log.readers[start..].last() != Some(reader) {
                log.readers.push(*reader);
            }
        }
        let readers = start..log.readers.len();
        log.values.push(ValueFacts { value, writer, indices: None, read_ok, readers });
    }
    log
}

/// Sorts what was seen into slots, and gives every value its indices.
fn order(log: &mut KeyLog, mut seen: Vec<(Offset, Value, OperationId)>, meter: &Meter) {
    meter.sort(&mut seen);
    seen.dedup_by_key(|(offset, value, _)| (*offset, *value));
    for (offset, value, seen_by) in seen {
        meter.add(1);
        if log.slots.last().is_none_or(|slot| slot.offset != offset) {
            log.slots.push(Slot { offset, sightings: Vec::new() });
        }
        let index = log.slots.len() - 1;
        log.slots[index].sightings.push(Sighting { value, seen_by });
        let at = meter.partition_point(&log.values, |facts| facts.value < value);
        let indices = &mut log.values[at].indices;
        *indices = Some((indices.map_or(index, |(first, _)| first), index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Story;

    #[test]
    fn indices_are_dense_ranks_of_offsets() {
        let history =
            Story::new().sent(0, &[(0, 3, 10)]).sent(1, &[(0, 7, 11)]).polled(2, &[(0, 7, 11), (0, 9, 12)]).history();
        let analysis = Analysis::new(&history);
        let offsets: Vec<u64> = analysis.keys[&Key(0)].slots.iter().map(|slot| slot.offset.0).collect();
        assert_eq!(offsets, [3, 7, 9]);
        assert_eq!(analysis.delta(Key(0), Value(10), Value(12)), Some(2));
        assert_eq!(analysis.delta(Key(0), Value(12), Value(11)), Some(-1));
        assert_eq!(analysis.delta(Key(0), Value(12), Value(99)), None);
    }

    #[test]
    fn an_unknown_send_counts_only_once_some_value_of_it_was_read() {
        let unread = Story::new().sent_unknown(0, &[(0, Some(4), 10), (1, None, 20)]);
        let history = unread.clone().history();
        assert!(Analysis::new(&history).keys[&Key(0)].slots.is_empty());
        let history = unread.polled(1, &[(1, 0, 20)]).history();
        assert_eq!(Analysis::new(&history).keys[&Key(0)].slots[0].offset, Offset(4));
    }

    #[test]
    fn failed_polls_tell_of_the_log_and_failed_sends_do_not() {
        let history = Story::new().failed_send(0, &[(0, 5, 10)]).failed_poll(1, &[(0, 6, 11)]).history();
        let analysis = Analysis::new(&history);
        let log = &analysis.keys[&Key(0)];
        assert_eq!(log.slots.len(), 1);
        assert_eq!(log.slots[0].offset, Offset(6));
        let (_, facts) = analysis.facts(Key(0), Value(11)).unwrap();
        assert!(!facts.read_ok);
        assert_eq!((facts.writer, log.readers(facts)), (None, &[1][..]));
    }

    #[test]
    fn a_value_at_two_offsets_has_a_first_and_a_last_index() {
        let history = Story::new().sent(0, &[(0, 1, 10), (0, 2, 11)]).polled(1, &[(0, 3, 10)]).history();
        let analysis = Analysis::new(&history);
        assert_eq!(analysis.facts(Key(0), Value(10)).unwrap().1.indices, Some((0, 2)));
    }
}
