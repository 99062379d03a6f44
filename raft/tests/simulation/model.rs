//! What must hold, whatever happens: every fact that a broker or the client learns is told here, and compared with all others.
//!
//! - A committed entry never changes: whoever shows an index shows the same entry, in whatever life of whichever broker.
//! - What was acknowledged is there exactly where it was acknowledged; what is unknown is there once or not; what was refused is not.
//! - What a log was asked to keep is there. Offsets are dense; a term has one leader; the high watermark never goes back within a life.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::EntryPayload;
use parking_lot::Mutex;
use pontoon_raft::log::frame::FrameKind;
use pontoon_raft::testing::{TEST_HEADER_BYTES, test_producer};
use pontoon_raft::types::{Entry, EntryData};

use crate::trace::Trace;

/// One attempt at appending one payload: producer, sequence, number of the attempt.
pub(crate) type Attempt = (u8, u32, u32);

/// An entry of Raft's log, as a broker showed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fact {
    term: u64,
    /// First offset, offsets taken, checksum of the payload, who sent it; `None`: Raft's own.
    frame: Option<(u64, u32, u32, Option<Attempt>)>,
}

/// Where the client was told that its payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) offset: u64,
    pub(crate) span: u32,
}

#[derive(Default)]
struct Group {
    committed: BTreeMap<u64, Fact>,
    leaders: BTreeMap<u64, u64>,
    acknowledged: BTreeMap<Attempt, Acknowledged>,
    /// Payloads that the log said it holds already.
    duplicates: BTreeSet<(u8, u32)>,
    refused: BTreeSet<Attempt>,
    /// The last index that any broker was asked to keep the entries from.
    kept: u64,
}

/// How far one broker has shown its log of one group: its first index, the next, high watermark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) life: u64,
    pub(crate) first: u64,
    pub(crate) next: u64,
    pub(crate) high_watermark: u64,
}

#[derive(Default)]
struct Inner {
    groups: BTreeMap<u64, Group>,
    shown: BTreeMap<(u32, u64), Shown>,
    broken: Vec<String>,
    /// What happened to logs, by kind.
    happened: BTreeMap<&'static str, u64>,
}

/// All that is known. Clones share it.
#[derive(Clone)]
pub(crate) struct Model {
    inner: Arc<Mutex<Inner>>,
    trace: Trace,
}

fn fact(entry: &Entry) -> Result<Fact, String> {
    let term = entry.log_id.leader_id.term;
    let EntryPayload::Normal(data) = &entry.payload else { return Ok(Fact { term, frame: None }) };
    let EntryData::Stored(frame) = data else { return Err(format!("{data} is not as it stands in the log")) };
    let (header, payload) = (&frame.header, &frame.payload);
    let attempt = match header.kind {
        FrameKind::Records => {
            let stamp = payload.get(..8).and_then(|stamp| stamp.try_into().ok()).map(u64::from_le_bytes);
            if stamp != Some(header.base_offset) || u32::from(payload[8]) != header.offset_span {
                return Err(format!("index {}: the stamp is not the header's: {header:?}", header.index));
            }
            let number =
                payload.get(TEST_HEADER_BYTES..TEST_HEADER_BYTES + 4).and_then(|number| number.try_into().ok());
            let (producer, sequence) = test_producer(payload).ok_or("no producer")?;
            Some((producer, sequence, u32::from_le_bytes(number.ok_or("no attempt")?)))
        }
        _ => None,
    };
    Ok(Fact { term, frame: Some((header.base_offset, header.offset_span, crc32c::crc32c(payload), attempt)) })
}

impl Model {
    pub(crate) fn new(trace: Trace) -> Self {
        Self { inner: Arc::default(), trace }
    }

    /// Something must hold and does not.
    pub(crate) fn broken(&self, what: String) {
        self.trace.note("model", format_args!("BROKEN {what}"));
        self.inner.lock().broken.push(what);
    }

    pub(crate) fn all_broken(&self) -> Vec<String> {
        self.inner.lock().broken.clone()
    }

    /// Counts something that happened to a log.
    pub(crate) fn count(&self, what: &'static str) {
        *self.inner.lock().happened.entry(what).or_default() += 1;
    }

    /// What happened to logs, by kind.
    pub(crate) fn happened(&self) -> BTreeMap<&'static str, u64> {
        self.inner.lock().happened.clone()
    }

    /// A broker shows an applied entry of its log.
    pub(crate) fn committed(&self, broker: u32, group: u64, entry: &Entry) {
        let index = entry.log_id.index;
        let result = fact(entry).and_then(|fact| {
            let mut inner = self.inner.lock();
            let known = inner.groups.entry(group).or_default().committed.entry(index).or_insert(fact);
            if *known == fact { Ok(()) } else { Err(format!("index {index} was {known:?}, is {fact:?}")) }
        });
        if let Err(why) = result {
            self.broken(format!("broker {broker}, group {group}: {why}"));
        }
    }

    /// A broker knows a leader.
    pub(crate) fn leader(&self, broker: u32, group: u64, term: u64, replica: u64) {
        let first = *self.inner.lock().groups.entry(group).or_default().leaders.entry(term).or_insert(replica);
        if first != replica {
            self.broken(format!("broker {broker}, group {group}: term {term} is led by {first} and by {replica}"));
        }
    }

    /// A broker is asked to keep all entries from this index on; those before may go.
    pub(crate) fn boundary(&self, group: u64, index: u64) {
        let mut inner = self.inner.lock();
        let kept = &mut inner.groups.entry(group).or_default().kept;
        *kept = index.max(*kept);
    }

    /// How far a broker has come.
    pub(crate) fn shown(&self, broker: u32, group: u64, now: Shown) {
        let (before, kept) = {
            let mut inner = self.inner.lock();
            let kept = inner.groups.get(&group).map_or(0, |group| group.kept);
            (inner.shown.insert((broker, group), now).unwrap_or_default(), kept)
        };
        if now.first > kept {
            let first = now.first;
            self.broken(format!("broker {broker}, group {group}: begins at {first}, was to keep all from {kept} on"));
        }
        if before.life == now.life && before.high_watermark > now.high_watermark {
            self.broken(format!("broker {broker}, group {group}: the high watermark went from {before:?} to {now:?}"));
        }
    }

    pub(crate) fn acknowledged(&self, group: u64, attempt: Attempt, at: Acknowledged) {
        self.trace.note("client", format_args!("ack {group} {attempt:?} {at:?}"));
        self.inner.lock().groups.entry(group).or_default().acknowledged.insert(attempt, at);
    }

    pub(crate) fn duplicate(&self, group: u64, producer: u8, sequence: u32) {
        self.trace.note("client", format_args!("duplicate {group} {producer} {sequence}"));
        self.inner.lock().groups.entry(group).or_default().duplicates.insert((producer, sequence));
    }

    pub(crate) fn refused(&self, group: u64, attempt: Attempt) {
        self.trace.note("client", format_args!("refused {group} {attempt:?}"));
        self.inner.lock().groups.entry(group).or_default().refused.insert(attempt);
    }

    /// The end of all that is acknowledged so far.
    pub(crate) fn acknowledged_end(&self, group: u64) -> u64 {
        let inner = self.inner.lock();
        let all = inner.groups.get(&group).into_iter().flat_map(|group| group.acknowledged.values());
        all.map(|at| at.offset + u64::from(at.span)).max().unwrap_or(0)
    }

    /// How many payloads were acknowledged.
    pub(crate) fn acknowledgements(&self) -> u64 {
        self.inner.lock().groups.values().map(|group| group.acknowledged.len() as u64).sum()
    }

    /// How many terms had a leader.
    pub(crate) fn elections(&self) -> u64 {
        self.inner.lock().groups.values().map(|group| group.leaders.len() as u64).sum()
    }

    /// The index up to which every committed entry was shown by somebody.
    pub(crate) fn known(&self, group: u64) -> u64 {
        let inner = self.inner.lock();
        inner.groups.get(&group).and_then(|group| Some(*group.committed.last_key_value()?.0)).unwrap_or(0)
    }

    /// Whether every broker, in the life it is in, has shown all there is of every group.
    pub(crate) fn agreed(&self, lives: &BTreeMap<u32, u64>, groups: u64) -> bool {
        let inner = self.inner.lock();
        (1..=groups).all(|id| {
            let last = inner.groups.get(&id).and_then(|group| Some(*group.committed.last_key_value()?.0));
            let shown = |broker: &u32, life: &u64| {
                let shown = inner.shown.get(&(*broker, id));
                shown.is_some_and(|shown| shown.life == *life && Some(shown.next) == last.map(|last| last + 1))
            };
            lives.iter().all(|(broker, life)| shown(broker, life))
        })
    }

    /// Looks at the whole, once all brokers have shown all.
    pub(crate) fn judge(&self) {
        let broken: Vec<String> = {
            let inner = self.inner.lock();
            let judged = inner.groups.iter().flat_map(|(id, group)| {
                let shown = inner.shown.iter().filter(|((_, of), _)| of == id).map(|(_, shown)| *shown);
                group.judge(shown.collect()).into_iter().map(move |why| format!("group {id}: {why}"))
            });
            judged.collect()
        };
        broken.into_iter().for_each(|why| self.broken(why));
    }
}

impl Group {
    fn judge(&self, shown: Vec<Shown>) -> Vec<String> {
        let mut broken = Vec::new();
        let (mut end, mut term) = (0, 0);
        let mut sequences: BTreeMap<u8, u32> = BTreeMap::new();
        for (expected, (index, fact)) in (0..).zip(&self.committed) {
            if expected != *index || fact.term < term {
                broken.push(format!("index {index}, {fact:?} follows index {expected} - 1, term {term}"));
                break;
            }
            term = fact.term;
            let Some((offset, span, _, attempt)) = fact.frame else { continue };
            if offset != end {
                broken.push(format!("index {index}: offset {offset} follows an end at {end}"));
            }
            end = offset + u64::from(span);
            let Some(attempt) = attempt else { continue };
            let next = sequences.entry(attempt.0).or_default();
            if attempt.1 != *next {
                broken.push(format!("index {index}: {attempt:?} where sequence {next} was due"));
            }
            *next = attempt.1 + 1;
            if self.refused.contains(&attempt) {
                broken.push(format!("index {index}: {attempt:?} was refused"));
            }
        }
        for (attempt, at) in &self.acknowledged {
            let there = self.committed.get(&at.index).is_some_and(|fact| {
                fact.term == at.term
                    && matches!(fact.frame, Some((offset, span, _, Some(found)))
                        if (offset, span, found) == (at.offset, at.span, *attempt))
            });
            if !there {
                let found = self.committed.get(&at.index);
                broken.push(format!("{attempt:?}, acknowledged {at:?}, is not there but {found:?}"));
            }
        }
        for (producer, sequence) in &self.duplicates {
            if sequences.get(producer).is_none_or(|next| next <= sequence) {
                broken.push(format!("producer {producer}'s {sequence}, said to be a duplicate, is not there"));
            }
        }
        for shown in shown.iter().filter(|shown| shown.high_watermark != end) {
            broken.push(format!("a broker shows {shown:?}, not the end {end}"));
        }
        broken
    }
}

/// The model itself: it must see each kind of breach.
mod tests {
    use openraft::entry::RaftEntry;
    use pontoon_raft::log::frame::{Frame, FrameHeader};
    use pontoon_raft::testing::test_payload;
    use pontoon_raft::types::log_id;

    use super::*;

    /// Producer 0's `sequence` at this index, in term 1, one offset each.
    fn entry(index: u64, sequence: u32, offset: u64) -> Entry {
        let mut payload = test_payload(1, 0, sequence, &1u32.to_le_bytes()).to_vec();
        payload[..8].copy_from_slice(&offset.to_le_bytes());
        let header = FrameHeader {
            offset_span: 1,
            record_count: 1,
            ..FrameHeader::bare(FrameKind::Records, log_id(1, index), offset)
        };
        let stored = EntryData::Stored(Frame::new(header, payload.into()));
        Entry::new(log_id(1, index), EntryPayload::Normal(stored))
    }

    fn acknowledged(index: u64, offset: u64) -> Acknowledged {
        Acknowledged { index, term: 1, offset, span: 1 }
    }

    /// Two records, acknowledged, shown by a broker; what is broken after this.
    fn after(what: impl FnOnce(&Model)) -> Vec<String> {
        let model = Model::new(Trace::new(false));
        for number in 0..2 {
            model.committed(1, 1, &entry(number, number as u32, number));
            model.acknowledged(1, (0, number as u32, 1), acknowledged(number, number));
        }
        model.leader(1, 1, 1, 11);
        model.boundary(1, 1);
        model.shown(1, 1, Shown { life: 1, first: 1, next: 2, high_watermark: 2 });
        what(&model);
        model.judge();
        model.all_broken()
    }

    #[test]
    fn a_sound_history_is_sound() {
        assert_eq!(after(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn each_breach_is_seen() {
        type Breach = (&'static str, fn(&Model));
        let breaches: [Breach; 10] = [
            ("index 1 was", |model| model.committed(2, 1, &entry(1, 7, 1))),
            ("led by 11 and by 12", |model| model.leader(2, 1, 1, 12)),
            ("went from", |model| model.shown(1, 1, Shown { life: 1, first: 0, next: 2, high_watermark: 1 })),
            ("was to keep", |model| model.shown(1, 1, Shown { life: 1, first: 2, next: 2, high_watermark: 2 })),
            ("not the end 2", |model| model.shown(2, 1, Shown { life: 1, first: 0, next: 2, high_watermark: 1 })),
            ("is not there", |model| model.acknowledged(1, (0, 2, 1), acknowledged(2, 2))),
            ("was refused", |model| model.refused(1, (0, 1, 1))),
            ("said to be a duplicate", |model| model.duplicate(1, 0, 2)),
            ("follows an end", |model| model.committed(1, 1, &entry(2, 2, 3))),
            ("sequence 2 was due", |model| model.committed(1, 1, &entry(2, 1, 2))),
        ];
        for (expected, breach) in breaches {
            let broken = after(breach);
            assert!(broken.iter().any(|why| why.contains(expected)), "{expected}: {broken:?}");
        }
    }
}
