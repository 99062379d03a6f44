//! A log against a list: whatever is done to both, they say the same.

use proptest::prelude::*;

use super::*;
use crate::payload::{AppendPosition, AppendState, Decision};

#[derive(Clone, Debug)]
enum Step {
    /// Proposals of a producer: sizes, and whether the sequence is right.
    Append(u8, Vec<(usize, bool)>),
    Blank,
    NextTerm,
    /// Cuts this many entries off.
    Truncate(u64),
    /// Purges up to this many entries before the end.
    Purge(u64),
    Rest,
    Checkpoint,
    /// The process is killed, or the power fails, once everything is durable.
    Reopen(bool),
    /// The same, but at the n-th disk operation from now on.
    Strike(u64, bool),
    Close,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sizes = prop::collection::vec((0..900usize, prop::bool::weighted(0.9)), 1..5);
    let large = prop::collection::vec((3000..9000usize, Just(true)), 1..3);
    let step = prop_oneof![
        6 => (0..3u8, sizes).prop_map(|(producer, sizes)| Step::Append(producer, sizes)),
        1 => (0..3u8, large).prop_map(|(producer, sizes)| Step::Append(producer, sizes)),
        1 => Just(Step::Blank),
        1 => Just(Step::NextTerm),
        2 => (1..12u64).prop_map(Step::Truncate),
        1 => (0..15u64).prop_map(Step::Purge),
        1 => Just(Step::Rest),
        1 => Just(Step::Checkpoint),
        1 => any::<bool>().prop_map(Step::Reopen),
        1 => (0..25u64, any::<bool>()).prop_map(|(op, power)| Step::Strike(op, power)),
        1 => Just(Step::Close),
    ];
    prop::collection::vec(step, 1..40)
}

/// What the log must be.
#[derive(Clone, Default)]
struct Model {
    /// Every entry from index 0 on, purged ones too.
    frames: Vec<Frame>,
    purged: u64,
    term: u64,
}

impl Model {
    fn producers(&self) -> TestProducers {
        let mut producers = TestProducers::default();
        for frame in self.frames.iter().filter(|frame| frame.header.kind != FrameKind::Blank) {
            producers.observe(&frame.header, &frame.payload);
        }
        producers
    }

    fn next_offset(&self) -> u64 {
        self.frames.last().map_or(0, |frame| frame.header.next_offset())
    }

    fn last(&self) -> Option<LogId> {
        self.frames.last().map(|frame| log_id(frame.header.term, frame.header.index))
    }

    fn push(&mut self, payload: Option<Bytes>) {
        let at = AppendPosition { next_offset: self.next_offset(), index: self.frames.len() as u64, term: self.term };
        let mut header = FrameHeader::bare(FrameKind::Blank, log_id(self.term, at.index), at.next_offset);
        let payload = match payload.map(|payload| self.producers().decide(payload, at)) {
            None => Bytes::new(),
            Some(Decision::Void { verdict }) => {
                header.kind = FrameKind::Void;
                verdict
            }
            Some(Decision::Accept { payload, offset_span, record_count, max_timestamp }) => {
                header.kind = FrameKind::Records;
                (header.offset_span, header.record_count, header.max_timestamp) =
                    (offset_span, record_count, max_timestamp);
                payload
            }
        };
        self.frames.push(Frame::new(header, payload));
    }

    fn kept(&self) -> &[Frame] {
        &self.frames[self.purged as usize..]
    }
}

struct Pair {
    disk: SimDisk,
    store: Arc<Store>,
    log: Arc<Log>,
    model: Model,
    /// What it may be after a crash, because nobody was told that what followed is durable. The last one is `model`, or what
    /// it was on its way to.
    since_durable: Vec<Model>,
    /// How the process ends when the disk is struck.
    power: bool,
}

impl Pair {
    /// Takes a step; if the disk is struck within it, the next process goes on.
    async fn take(&mut self, step: Step) {
        match self.attempt(step).await {
            Ok(()) => {}
            Err(error) => {
                assert!(self.disk.has_crashed(), "{error}");
                self.crash(self.power).await;
            }
        }
    }

    async fn attempt(&mut self, step: Step) -> std::io::Result<()> {
        match step {
            Step::Append(producer, sizes) => self.propose(producer, sizes).await?,
            Step::Blank => {
                let entry = NewEntry::Blank(log_id(self.model.term, self.model.frames.len() as u64));
                self.model.push(None);
                self.append(vec![entry]).await?;
            }
            Step::NextTerm => self.model.term += 1,
            Step::Truncate(count) => {
                let keep = (self.model.frames.len() as u64).saturating_sub(count).max(self.model.purged);
                self.model.frames.truncate(keep as usize);
                // Entries are taken away on a new leader's word: no term writes an index twice.
                self.model.term += 1;
                self.since_durable.push(self.model.clone());
                self.log.truncate_after(self.model.last()).await?;
            }
            Step::Purge(back) => {
                let upto = (self.model.frames.len() as u64).saturating_sub(back);
                if upto > self.model.purged {
                    self.model.purged = upto;
                    self.since_durable.push(self.model.clone());
                    let last = self.model.frames[upto as usize - 1].header;
                    self.log.purge(log_id(last.term, last.index)).await?;
                }
            }
            Step::Rest => rest().await,
            Step::Checkpoint => self.store.checkpoint().await?,
            Step::Reopen(power) => {
                // Everything before a saved vote is durable.
                self.log.save_vote(vote(self.model.term, REPLICA, true)).await?;
                self.since_durable = vec![self.model.clone()];
                self.crash(power).await;
            }
            Step::Strike(op, power) => {
                self.power = power;
                self.disk.crash_at_op(self.disk.ops() + op);
            }
            Step::Close => {
                self.store.close().await?;
                self.since_durable = vec![self.model.clone()];
                self.crash(false).await;
            }
        }
        Ok(())
    }

    async fn append(&mut self, entries: Vec<NewEntry>) -> std::io::Result<()> {
        self.since_durable.push(self.model.clone());
        append(&self.log, entries).await?;
        self.since_durable = vec![self.model.clone()];
        Ok(())
    }

    /// The next process finds one of the states that it may.
    async fn crash(&mut self, power: bool) {
        self.disk = if power { self.disk.crash() } else { self.disk.kill() };
        self.store = open(&self.disk, small(), SnapshotAt::Boundary).await;
        assert_eq!(self.store.corrupt(), Vec::new());
        self.log = self.store.replicas()[0].log.clone();
        let frames = self.log.read_indexes(self.log.first_index(), u64::MAX, usize::MAX).await.unwrap();
        let (last, purged) = (self.log.last_log_id(), self.log.purged_log_id().map_or(0, |purged| purged.index + 1));
        let allowed = std::mem::take(&mut self.since_durable);
        let is = |model: &&Model| model.last() == last && model.purged == purged && model.kept() == frames;
        let Some(found) = allowed.iter().rev().find(is) else {
            let expected: Vec<_> = allowed.iter().map(|model| (model.last(), model.purged)).collect();
            panic!("found {last:?}, purged below {purged}; expected one of {expected:?}");
        };
        // The term goes on.
        self.model = Model { term: self.model.term, ..found.clone() };
        self.since_durable = vec![self.model.clone()];
    }

    async fn propose(&mut self, producer: u8, sizes: Vec<(usize, bool)>) -> std::io::Result<()> {
        let mut entries = Vec::new();
        for (size, right) in sizes {
            let sequence = self.model.producers().next.get(&producer).copied().unwrap_or(0);
            let payload = test_payload((size % 4) as u8, producer, sequence + u32::from(!right), &vec![9; size]);
            entries.push(proposal(self.model.frames.len() as u64, self.model.term, payload.clone()));
            self.model.push(Some(payload));
        }
        self.append(entries).await
    }

    /// An error is the disk's, that was struck: reading takes its operations, too.
    async fn compare(&self, seed: u64) -> Result<(), ReadError> {
        let (log, model) = (&self.log, &self.model);
        let kept = model.kept();
        let end = model.frames.len() as u64;
        assert_eq!(log.last_log_id(), model.last());
        let start = kept.first().map_or(model.next_offset(), |frame| frame.header.base_offset);
        assert_eq!((log.log_start_offset().0, log.log_end_offset().0), (start, model.next_offset()));
        assert_eq!(codec::decode::<TestProducers>(&log.append_state()).unwrap(), model.producers());
        // A stretch by index.
        let from = model.purged + seed % (kept.len() as u64 + 1);
        let frames = log.read_indexes(from, end, (seed % 5000) as usize + 1).await?;
        assert!(from == end || !frames.is_empty());
        assert_eq!(frames, model.frames[from as usize..from as usize + frames.len()]);
        // A stretch by offset.
        let offset = start + seed % (model.next_offset() - start + 1);
        let read = log.read(Offset(offset), log.log_end_offset(), usize::MAX).await?;
        let records = kept.iter().filter(|frame| {
            frame.header.kind == FrameKind::Records
                && frame.header.next_offset() > offset
                && frame.header.base_offset < model.next_offset()
        });
        // Up to where the disk was struck, if it was in the middle of this.
        let wanted = if self.disk.has_crashed() { read.len() } else { usize::MAX };
        assert!(read.iter().eq(records.take(wanted)), "from offset {offset}");
        // A time, from the beginning and from somewhere.
        for (time, from) in [(1000 + offset as i64, 0), (1000 + (seed % 97) as i64, offset)] {
            let found = log.offset_for_timestamp(time, Offset(from), log.log_end_offset()).await?;
            let reaches = |frame: &&Frame| {
                frame.header.kind == FrameKind::Records
                    && frame.header.offset_span > 0
                    && frame.header.max_timestamp >= time
                    && frame.header.next_offset() > from
            };
            let expected = kept.iter().find(reaches).map(|frame| frame.header.base_offset);
            assert_eq!(found.map(|found| found.0), expected, "{time} from {from}");
        }
        // Where terms end.
        let mut keys: Vec<LogId> = Vec::new();
        for frame in kept {
            keys.retain(|key| key.leader_id.term != frame.header.term);
            keys.push(log_id(frame.header.term, frame.header.index));
        }
        assert_eq!(log.key_log_ids(model.purged, end), keys);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn a_log_is_a_list(steps in steps(), seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (disk, store, log) = fresh(small()).await;
            disk.set_cold(seed % 2 == 0);
            let model = Model { term: 1, ..Model::default() };
            let since_durable = vec![model.clone()];
            let mut pair = Pair { disk, store, log, model, since_durable, power: false };
            for (at, step) in steps.into_iter().enumerate() {
                pair.take(step).await;
                if !pair.disk.has_crashed()
                    && let Err(error) = pair.compare(seed.rotate_left(at as u32)).await
                {
                    assert!(pair.disk.has_crashed(), "{error}");
                    pair.crash(pair.power).await;
                }
            }
            pair.take(Step::Close).await;
        });
    }
}
