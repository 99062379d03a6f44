//! The producer table against a naive model, across retries and truncations.

use proptest::prelude::*;

use super::*;
use crate::record_batch::{BatchLimits, NewRecord, RecordBatch, RecordBatchBuilder};
use pontoon_raft::log::frame::Frame;
use pontoon_raft::types::log_id;

fn batch(records: u32, producer: Option<ProducerSequence>) -> RecordBatch {
    let mut builder = RecordBatchBuilder::new(BatchLimits::default());
    for number in 0..records {
        builder.push(&NewRecord { timestamp: number.into(), ..NewRecord::default() }).unwrap();
    }
    builder.build(producer).unwrap()
}

fn producer(producer_id: i64, epoch: i16, sequence: i32) -> Option<ProducerSequence> {
    Some(ProducerSequence { producer_id, epoch, sequence })
}

/// A log as the store keeps it: frames, and the table that follows from them.
#[derive(Default)]
struct TestLog {
    table: Producers,
    frames: Vec<Frame>,
    next_offset: u64,
}

impl TestLog {
    fn append(&mut self, batch: RecordBatch, if_match: Option<u64>, term: u64) -> Result<u64, Verdict> {
        self.propose(proposal::wrap(batch, if_match.map(Offset)), term)
    }

    /// Lets producers expire. Returns up to where, as it was written.
    fn expire(&mut self, below: u64, term: u64) -> u64 {
        match self.propose(Verdict::ExpireProducers { below }.encode(), term) {
            Err(Verdict::ExpireProducers { below }) => below,
            other => panic!("{other:?}"),
        }
    }

    fn propose(&mut self, payload: Bytes, term: u64) -> Result<u64, Verdict> {
        let at = AppendPosition { next_offset: self.next_offset, index: self.frames.len() as u64 + 1, term };
        let before = self.table.clone();
        let decision = self.table.decide(payload.clone(), at);
        assert_eq!(self.table.decide(payload, at), decision, "the same answer when asked again");
        assert_eq!(self.table, before, "decide only reads");
        let (kind, payload, span, max_timestamp, answer) = match decision {
            Decision::Accept { payload, offset_span, record_count, max_timestamp } => {
                assert_eq!(offset_span, record_count);
                (FrameKind::Records, payload, offset_span, max_timestamp, Ok(at.next_offset))
            }
            Decision::Void { verdict } => {
                let decoded = Verdict::decode(&verdict).unwrap();
                (FrameKind::Void, verdict, 0, -1, Err(decoded))
            }
        };
        let header = FrameHeader {
            offset_span: span,
            record_count: span,
            max_timestamp,
            ..FrameHeader::bare(kind, log_id(term, at.index), at.next_offset)
        };
        self.push(Frame::new(header, payload));
        answer
    }

    fn push(&mut self, frame: Frame) {
        let prefix = &frame.payload[..frame.payload.len().min(crate::record_batch::BATCH_HEADER_BYTES)];
        self.table.observe(&frame.header, prefix);
        self.next_offset = frame.header.next_offset();
        self.frames.push(frame);
    }
}

#[test]
fn sequences_follow_one_another_and_wrap_to_zero() {
    let mut log = TestLog::default();
    let mut table = Producers::default();
    table.note(
        ProducerSequence { producer_id: 7, epoch: 0, sequence: i32::MAX - 3 },
        Batch { sequence: i32::MAX - 3, records: 2, base_offset: 0, index: 0, term: 1 },
    );
    log.table = table;
    assert_eq!(
        log.append(batch(1, producer(7, 0, i32::MAX)), None, 1),
        Err(Verdict::OutOfOrder { expected: i32::MAX - 1 })
    );
    assert_eq!(log.append(batch(4, producer(7, 0, i32::MAX - 1)), None, 1), Ok(0));
    assert_eq!(log.append(batch(1, producer(7, 0, 1)), None, 1), Err(Verdict::OutOfOrder { expected: 2 }));
    assert_eq!(log.append(batch(1, producer(7, 0, 2)), None, 1), Ok(4));
    let original = Verdict::Duplicate { index: 2, term: 1, base_offset: 0, last_offset: 3 };
    assert_eq!(log.append(batch(4, producer(7, 0, i32::MAX - 1)), None, 2), Err(original));
    // Exactly at the edge: the last sequence is 2^31-1 itself.
    assert_eq!(Batch { sequence: i32::MAX, records: 1, base_offset: 0, index: 0, term: 0 }.next_sequence(), 0);
}

#[test]
fn a_duplicate_names_its_original_and_only_five_are_kept() {
    let mut log = TestLog::default();
    for number in 0..6 {
        assert_eq!(log.append(batch(2, producer(7, 0, number * 2)), None, 3), Ok(number as u64 * 2));
    }
    assert_eq!(log.append(batch(2, producer(7, 0, 0)), None, 4), Err(Verdict::OutOfOrder { expected: 12 }));
    for number in 1..6u64 {
        let original =
            Verdict::Duplicate { index: number + 1, term: 3, base_offset: number * 2, last_offset: number * 2 + 1 };
        assert_eq!(log.append(batch(2, producer(7, 0, number as i32 * 2)), None, 4), Err(original));
    }
    // The same first sequence with another count is no retry.
    assert_eq!(log.append(batch(1, producer(7, 0, 10)), None, 4), Err(Verdict::OutOfOrder { expected: 12 }));
}

#[test]
fn a_newer_epoch_fences_the_older_and_starts_at_zero() {
    let mut log = TestLog::default();
    log.append(batch(1, producer(7, 1, 0)), None, 1).unwrap();
    assert_eq!(log.append(batch(1, producer(7, 0, 1)), None, 1), Err(Verdict::Fenced { epoch: 1 }));
    assert_eq!(log.append(batch(1, producer(7, 2, 1)), None, 1), Err(Verdict::OutOfOrder { expected: 0 }));
    assert_eq!(log.append(batch(1, producer(7, 1, 1)), None, 1), Ok(1), "a refused epoch fences nothing");
    assert_eq!(log.append(batch(1, producer(7, 2, 0)), None, 1), Ok(2));
    assert_eq!(log.append(batch(1, producer(7, 1, 1)), None, 1), Err(Verdict::Fenced { epoch: 2 }));
    assert_eq!(log.append(batch(1, producer(8, 0, 1)), None, 1), Err(Verdict::UnknownProducer));
}

#[test]
fn a_condition_is_compared_with_the_next_offset_but_a_retry_is_a_duplicate_first() {
    let mut log = TestLog::default();
    assert_eq!(log.append(batch(3, None), Some(0), 1), Ok(0));
    assert_eq!(log.append(batch(3, None), Some(0), 1), Err(Verdict::OffsetMismatch { next_offset: 3 }));
    assert_eq!(log.append(batch(3, None), Some(4), 1), Err(Verdict::OffsetMismatch { next_offset: 3 }));
    assert_eq!(log.append(batch(2, producer(7, 0, 0)), Some(2), 1), Err(Verdict::OffsetMismatch { next_offset: 3 }));
    assert_eq!(log.append(batch(2, producer(7, 0, 0)), Some(3), 1), Ok(3), "a mismatch used up no sequence");
    let original = Verdict::Duplicate { index: 5, term: 1, base_offset: 3, last_offset: 4 };
    assert_eq!(log.append(batch(2, producer(7, 0, 0)), Some(3), 1), Err(original));
}

#[test]
fn the_longest_idle_producer_is_dropped_when_one_more_comes() {
    let mut log = TestLog::default();
    for id in 0..PRODUCERS_MAX as i64 {
        log.append(batch(1, producer(id, 0, 0)), None, 1).unwrap();
    }
    // Producer 0 speaks up, so that 1 is the idlest; a duplicate is no sign of life.
    log.append(batch(1, producer(0, 0, 1)), None, 1).unwrap();
    assert!(matches!(log.append(batch(1, producer(1, 0, 0)), None, 1), Err(Verdict::Duplicate { .. })));
    log.append(batch(1, producer(1 << 40, 0, 0)), None, 1).unwrap();
    assert_eq!(log.table.len(), PRODUCERS_MAX);
    assert_eq!(log.append(batch(1, producer(1, 0, 1)), None, 1), Err(Verdict::UnknownProducer));
    assert!(matches!(log.append(batch(1, producer(0, 0, 1)), None, 1), Err(Verdict::Duplicate { .. })));
    assert!(matches!(log.append(batch(1, producer(2, 0, 0)), None, 1), Err(Verdict::Duplicate { .. })));
    assert_eq!(Producers::load(&log.table.save()).unwrap(), log.table);
}

/// Its first batch, appended and never answered, comes again after the table has run over: it must not be written twice.
#[test]
fn a_dropped_producer_that_retries_its_first_batch_is_not_taken_for_a_new_one() {
    let (mut table, mut index) = (Producers::default(), 0);
    let mut put = |table: &mut Producers, producer_id, epoch, sequence| {
        let producer = ProducerSequence { producer_id, epoch, sequence };
        let verdict = table.judge_sequence(producer, 1);
        if verdict.is_none() {
            index += 1;
            table.note(producer, Batch { sequence, records: 1, base_offset: index, index, term: 1 });
        }
        verdict
    };
    assert_eq!(put(&mut table, 1, 0, 0), None);
    assert!((1000..).take(PRODUCERS_MAX).all(|id| put(&mut table, id, 0, 0).is_none()));
    assert_eq!(put(&mut table, 1, 0, 0), Some(Verdict::UnknownProducer));
    // It is so after a restart, too.
    table = Producers::load(&table.save()).unwrap();
    assert_eq!(put(&mut table, 1, 0, 0), Some(Verdict::UnknownProducer));
    // Under a newer epoch it begins anew; others that never wrote here are new, whatever their ids.
    assert_eq!(put(&mut table, 0, 0, 0), None);
    assert_eq!(put(&mut table, 1, 1, 0), None);
    assert_eq!(put(&mut table, 1, 0, 1), Some(Verdict::Fenced { epoch: 1 }));
    assert!((10_000..).take(PRODUCERS_MAX).all(|id| put(&mut table, id, 0, 0).is_none()));
    assert_eq!(put(&mut table, 1, 1, 0), Some(Verdict::UnknownProducer));
    assert_eq!(Producers::load(&table.save()).unwrap(), table);
}

#[test]
fn who_wrote_last_before_an_index_expires_there_and_nobody_else() {
    let mut log = TestLog::default();
    // Indexes 1 to 5.
    for (id, sequence) in [(7, 0), (8, 0), (9, 0), (7, 1), (8, 1)] {
        log.append(batch(1, producer(id, 0, sequence)), None, 1).unwrap();
    }
    assert_eq!(log.table.oldest_remembered(), Some(3));
    assert_eq!(log.expire(3, 1), 3);
    assert_eq!(log.table.len(), 3, "a batch at the index itself keeps its producer");
    assert_eq!(log.expire(5, 1), 5);
    assert_eq!((log.table.len(), log.table.oldest_remembered()), (1, Some(5)));
    assert!(matches!(log.append(batch(1, producer(8, 0, 0)), None, 1), Err(Verdict::Duplicate { index: 2, .. })));
    // Forgotten whole: what it wrote is nothing to go on from, nor its epoch; a retry of its first batch is a new producer's.
    assert_eq!(log.append(batch(1, producer(7, 0, 2)), None, 1), Err(Verdict::UnknownProducer));
    assert_eq!(log.append(batch(1, producer(7, 0, 1)), None, 1), Err(Verdict::UnknownProducer));
    assert_eq!(log.append(batch(1, producer(7, 0, 0)), None, 1), Ok(5));
    // Nobody expires by what is yet to come.
    assert_eq!(log.expire(u64::MAX, 1), log.frames.len() as u64);
    assert!(log.table.is_empty());
    assert_eq!(log.append(batch(1, producer(8, 0, 2)), None, 1), Err(Verdict::UnknownProducer));
}

#[test]
fn the_dropped_are_forgotten_with_the_first_that_expires_and_no_sooner() {
    let mut log = TestLog::default();
    for id in 0..PRODUCERS_MAX as i64 + 10 {
        log.append(batch(1, producer(id, 0, 0)), None, 1).unwrap();
    }
    let full = log.table.clone();
    assert_eq!(full.oldest_remembered(), Some(11), "the first ten were dropped");
    log.expire(11, 1);
    assert_eq!(log.table, full);
    assert_eq!(log.append(batch(1, producer(0, 0, 0)), None, 1), Err(Verdict::UnknownProducer));
    log.expire(12, 1);
    assert_eq!((log.table.len(), log.table.dropped.order.len()), (PRODUCERS_MAX - 1, 0));
    assert_eq!(log.table.save()[0], VERSION);
    assert_eq!(Producers::load(&log.table.save()).unwrap(), log.table);
    assert!(log.append(batch(1, producer(0, 0, 0)), None, 1).is_ok());
    assert!(matches!(log.append(batch(1, producer(11, 0, 0)), None, 1), Err(Verdict::Duplicate { index: 12, .. })));
}

#[test]
fn only_so_many_dropped_producers_are_remembered() {
    let mut dropped = Dropped::default();
    for id in 0..=DROPPED_MAX as i64 {
        dropped.note(id, 3);
    }
    assert!(!dropped.holds(0, 0) && dropped.holds(1, 3), "the longest ago is forgotten");
    dropped.note(1, 4);
    dropped.note(0, 3);
    assert_eq!((dropped.order.len(), dropped.epochs.len()), (DROPPED_MAX, DROPPED_MAX));
    assert!(dropped.holds(0, 3) && dropped.holds(0, 2) && !dropped.holds(0, 4));
    assert!(dropped.holds(1, 4), "dropped again, it is the newest but one");
    assert!(!dropped.holds(2, 0) && dropped.holds(3, 0));
}

#[test]
fn a_payload_that_is_no_proposal_is_void() {
    let at = AppendPosition { next_offset: 0, index: 1, term: 1 };
    for payload in [Bytes::new(), Bytes::from_static(b"x"), batch(1, None).into_bytes()] {
        let malformed = Decision::Void { verdict: Verdict::Malformed.encode() };
        assert_eq!(Producers::default().decide(payload, at), malformed);
    }
}

#[test]
fn the_saved_form_is_the_one_of_the_header_comment() {
    assert_eq!(Producers::default().save()[..], [1, 0, 0, 0, 0, 0x99, 0x19, 0x63, 0x7d]);
    let mut log = TestLog::default();
    log.append(batch(2, producer(0x0102, 3, 0)), None, 9).unwrap();
    let golden = [
        &[1, 1, 0, 0, 0][..],
        &[2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 1],
        &[0, 0, 0, 0, 2, 0, 0, 0],
        &[0; 8],
        &[1, 0, 0, 0, 0, 0, 0, 0],
        &[9, 0, 0, 0, 0, 0, 0, 0],
    ];
    let saved = log.table.save();
    assert_eq!(saved[..saved.len() - 4], golden.concat());
    log.table.dropped.note(0x0304, 5);
    let mut golden = golden.concat();
    golden[0] = 2;
    golden.extend([1, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0, 5, 0]);
    let saved = log.table.save();
    assert_eq!(saved[..saved.len() - 4], golden);
}

#[test]
fn a_saved_table_that_lies_is_refused() {
    let sealed = |body: &[u8]| [body, &crc32c::crc32c(body).to_le_bytes()].concat();
    let producer =
        |id: i64, index: u64| [&id.to_le_bytes()[..], &[0, 0, 1], &[0; 16], &index.to_le_bytes(), &[0; 8]].concat();
    let good = sealed(&[&[1, 1, 0, 0, 0][..], &producer(5, 1)].concat());
    assert_eq!(Producers::load(&good).unwrap().len(), 1);
    for (body, what) in [
        (vec![], "cut short"),
        (vec![3, 0, 0, 0, 0], "version 3"),
        (vec![2, 0, 0, 0, 0], "cut short"),
        (vec![2, 0, 0, 0, 0, 0, 0, 0, 0], "0 dropped"),
        (vec![2, 0, 0, 0, 0, 255, 255, 255, 255], "4294967295 dropped"),
        ([&[2, 0, 0, 0, 0, 2, 0, 0, 0][..], &[0; 20]].concat(), "dropped producer 0"),
        ([&[2, 0, 0, 0, 0, 1, 0, 0, 0][..], &[255; 10]].concat(), "dropped producer -1"),
        (vec![1, 255, 255, 255, 255], "4294967295 producers"),
        (vec![1, 1, 0, 0, 0], "1 producers in 0 bytes"),
        ([&[1, 1, 0, 0, 0][..], &producer(-1, 1)].concat(), "producer -1"),
        ([&[1, 2, 0, 0, 0][..], &producer(5, 1), &producer(5, 2)].concat(), "out of order"),
        ([&[1, 2, 0, 0, 0][..], &producer(5, 1), &producer(6, 1)].concat(), "two producers at index 1"),
        ([&[1, 1, 0, 0, 0][..], &producer(5, 1), &[0]].concat(), "trailing"),
    ] {
        let error = Producers::load(&sealed(&body)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains(what), "{error}: {what}");
    }
}

/// The rules again, told slowly: everything that was ever accepted, looked through from the start each time.
#[derive(Clone, Default)]
struct Model {
    /// Producer, first sequence, records, base offset, index, term.
    accepted: Vec<(Option<ProducerSequence>, u32, u64, u64, u64)>,
    next_offset: u64,
}

impl Model {
    fn append(
        &mut self,
        who: Option<ProducerSequence>,
        records: u32,
        if_match: Option<u64>,
        index: u64,
        term: u64,
    ) -> Result<u64, Verdict> {
        if let Some(who) = who {
            let own = || self.accepted.iter().filter(|a| a.0.is_some_and(|p| p.producer_id == who.producer_id));
            let newest = own().map(|a| a.0.unwrap().epoch).max();
            match newest {
                None if who.sequence != 0 => return Err(Verdict::UnknownProducer),
                Some(epoch) if epoch > who.epoch => return Err(Verdict::Fenced { epoch }),
                Some(epoch) if epoch < who.epoch && who.sequence != 0 => {
                    return Err(Verdict::OutOfOrder { expected: 0 });
                }
                Some(epoch) if epoch == who.epoch => {
                    let epoch: Vec<_> = own().filter(|a| a.0.unwrap().epoch == epoch).collect();
                    for original in epoch.iter().rev().take(5) {
                        if original.0.unwrap().sequence == who.sequence && original.1 == records {
                            let (_, records, base_offset, index, term) = **original;
                            let last_offset = base_offset + u64::from(records) - 1;
                            return Err(Verdict::Duplicate { index, term, base_offset, last_offset });
                        }
                    }
                    let expected: u64 = epoch.iter().map(|a| u64::from(a.1)).sum();
                    if who.sequence as u64 != expected {
                        return Err(Verdict::OutOfOrder { expected: expected as i32 });
                    }
                }
                _ => {}
            }
        }
        if if_match.is_some_and(|offset| offset != self.next_offset) {
            return Err(Verdict::OffsetMismatch { next_offset: self.next_offset });
        }
        let base_offset = self.next_offset;
        self.accepted.push((who, records, base_offset, index, term));
        self.next_offset += u64::from(records);
        Ok(base_offset)
    }

    fn expire(&mut self, below: u64) {
        let id = |of: Option<ProducerSequence>| of.map(|producer| producer.producer_id);
        let all = self.accepted.clone();
        let keeps = |of| all.iter().any(|a| id(a.0) == id(of) && a.3 >= below);
        self.accepted.retain(|a| a.0.is_none() || keeps(a.0));
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// One of a few producers, or none; its epoch; how far its sequence is off what follows (0: right; below: a retry); records;
    /// how far the condition is off, if there is one.
    Produce { id: Option<i64>, epoch: i16, off: i32, records: u32, condition: Option<i64> },
    /// An earlier produce again, as it was.
    Retry(prop::sample::Index),
    /// Lets producers expire whose last batch is below this entry, or the end.
    Expire(prop::sample::Index),
    /// Cuts the log, back to a saved table and the frames from there.
    Truncate(prop::sample::Index),
    /// Saves the table, as a segment's roll does.
    Save,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let produce = (
        proptest::option::weighted(0.9, 0..3i64),
        prop_oneof![4 => Just(0i16), 1 => 0..3i16],
        prop_oneof![6 => Just(0), 1 => -8..3i32],
        1..4u32,
        proptest::option::weighted(0.15, prop_oneof![3 => Just(0i64), 1 => -3..3i64]),
    )
        .prop_map(|(id, epoch, off, records, condition)| Step::Produce { id, epoch, off, records, condition });
    let step = prop_oneof![
        8 => produce,
        3 => any::<prop::sample::Index>().prop_map(Step::Retry),
        1 => any::<prop::sample::Index>().prop_map(Step::Expire),
        1 => any::<prop::sample::Index>().prop_map(Step::Truncate),
        1 => Just(Step::Save),
    ];
    proptest::collection::vec(step, 1..60)
}

/// One replica's log beside the model, and everything that truncation needs.
#[derive(Default)]
struct Run {
    log: TestLog,
    model: Model,
    /// (Frames before it, table) at each save; and the model before each frame.
    saves: Vec<(usize, Bytes)>,
    models: Vec<Model>,
    sent: Vec<(Option<ProducerSequence>, u32, Option<u64>)>,
    term: u64,
}

impl Run {
    fn produce(&mut self, who: Option<ProducerSequence>, records: u32, condition: Option<u64>) {
        self.models.push(self.model.clone());
        let index = self.log.frames.len() as u64 + 1;
        let expected = self.model.append(who, records, condition, index, self.term);
        assert_eq!(self.log.append(batch(records, who), condition, self.term), expected);
        assert_eq!(self.log.next_offset, self.model.next_offset);
        self.sent.push((who, records, condition));
    }

    fn expire(&mut self, below: u64) {
        self.models.push(self.model.clone());
        let index = self.log.frames.len() as u64 + 1;
        let written = self.log.expire(below, self.term);
        assert_eq!(written, below.min(index));
        self.model.expire(written);
    }

    fn truncate(&mut self, keep: usize) {
        self.saves.retain(|(frames, _)| *frames <= keep);
        let (from, saved) = self.saves.last().cloned().unwrap_or((0, Producers::default().save()));
        let kept: Vec<_> = self.log.frames.drain(..keep).collect();
        let mut log = TestLog { table: Producers::load(&saved).unwrap(), ..TestLog::default() };
        for (at, frame) in kept.into_iter().enumerate() {
            if at < from {
                log.next_offset = frame.header.next_offset();
                log.frames.push(frame);
            } else {
                log.push(frame);
            }
        }
        self.log = log;
        self.model = self.models.get(keep).cloned().unwrap_or_else(|| self.model.clone());
        self.models.truncate(keep);
        self.term += 1;
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Produce { id, epoch, off, records, condition } => {
                let sent: u32 = self
                    .model
                    .accepted
                    .iter()
                    .filter(|a| a.0.is_some_and(|p| Some(p.producer_id) == id && p.epoch == epoch))
                    .map(|a| a.1)
                    .sum();
                let sequence = (sent as i32 + off).max(0);
                let who = id.map(|producer_id| ProducerSequence { producer_id, epoch, sequence });
                let condition = condition.map(|off| self.model.next_offset.saturating_add_signed(off));
                self.produce(who, records, condition);
            }
            Step::Retry(which) if !self.sent.is_empty() => {
                let (who, records, condition) = self.sent[which.index(self.sent.len())];
                self.produce(who, records, condition);
            }
            Step::Retry(_) => {}
            Step::Expire(below) => self.expire(below.index(self.log.frames.len() + 4) as u64),
            Step::Truncate(keep) => self.truncate(keep.index(self.log.frames.len() + 1)),
            Step::Save => self.saves.push((self.log.frames.len(), self.log.table.save())),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_table_agrees_with_the_naive_model_across_retries_and_truncations(steps in steps()) {
        let mut run = Run { term: 1, ..Run::default() };
        for step in steps {
            run.step(step);
            // A follower that has only ever seen these frames, in one go.
            let mut follower = Producers::default();
            for frame in &run.log.frames {
                follower.observe(&frame.header, &frame.payload);
            }
            prop_assert_eq!(follower.save(), run.log.table.save());
            prop_assert_eq!(&follower, &run.log.table);
        }
    }

    #[test]
    fn a_flipped_bit_in_a_saved_table_is_seen(steps in steps(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut run = Run { term: 1, ..Run::default() };
        steps.into_iter().for_each(|step| run.step(step));
        let mut saved = run.log.table.save().to_vec();
        prop_assert_eq!(Producers::load(&saved).unwrap(), run.log.table);
        let at = at.index(saved.len());
        saved[at] ^= 1 << bit;
        prop_assert!(Producers::load(&saved).is_err());
    }

    #[test]
    fn random_bytes_are_never_a_table_nor_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let sealed = [&bytes[..], &crc32c::crc32c(&bytes).to_le_bytes()].concat();
        let _ = Producers::load(&sealed);
        let _ = Producers::load(&bytes);
    }
}
