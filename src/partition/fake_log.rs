//! A Raft group of one for tests: decides as the log does, and commits, flushes and fails when it is told to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pontoon_raft::error::{ProposeError, ReadError};
use pontoon_raft::log::frame::{Frame, FrameHeader, FrameKind};
use pontoon_raft::payload::{AppendPosition, AppendState, Decision};
use pontoon_raft::raft_group::{GroupStatus, Leader, Member};
use pontoon_raft::types::{Appended, BrokerId, Offset, Outcome, ReplicaId, log_id};
use tokio::sync::{oneshot, watch};

use super::producers::Producers;
use super::{Acks, Partition, PartitionInstruments, PartitionOptions, ReplicatedLog, Settings, UnacknowledgedRoom};
use crate::record_batch::{BatchLimits, NewRecord, ProducerSequence, RecordBatch, RecordBatchBuilder};

/// One batch of records with these timestamps; the value of each is its number.
pub(super) fn batch(timestamps: &[i64], producer: Option<(i64, i16, i32)>) -> RecordBatch {
    let mut builder = RecordBatchBuilder::new(BatchLimits::default());
    for (number, timestamp) in timestamps.iter().enumerate() {
        let value = Some(Bytes::from(number.to_string()));
        builder.push(&NewRecord { timestamp: *timestamp, value, ..NewRecord::default() }).unwrap();
    }
    let producer = producer.map(|(producer_id, epoch, sequence)| ProducerSequence { producer_id, epoch, sequence });
    builder.build(producer).unwrap()
}

pub(super) const THIS: ReplicaId = ReplicaId(11);

#[derive(Clone)]
pub(super) struct FakeLog(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    high_watermark: Mutex<Option<watch::Sender<Offset>>>,
    high_watermark_seen: watch::Receiver<Offset>,
    leader: watch::Sender<Option<Leader>>,
    /// Index of the last committed entry, or that nobody will ever know.
    committed: watch::Sender<Option<u64>>,
    read_indexes: AtomicUsize,
}

type Hook = Box<dyn FnOnce(&FakeLog) + Send>;

pub(super) struct State {
    table: Producers,
    frames: Vec<Frame>,
    next_offset: u64,
    pub log_start: u64,
    pub status: GroupStatus,
    /// Proposals are flushed, committed and applied as they come.
    pub commits: bool,
    pub flushes: bool,
    unflushed: Vec<(oneshot::Sender<Appended>, Appended)>,
    pub propose_error: Option<ProposeError>,
    pub majority_dead: bool,
    /// What `await_every` answers; `None`: nothing, ever.
    pub every: Option<Result<(), ProposeError>>,
    pub every_asked: Vec<(u64, u64)>,
    /// What `read_index` answers; `None`: nothing, ever.
    pub read_index: Option<Result<(), ProposeError>>,
    /// Runs within the next `read_index`.
    pub on_read_index: Option<Hook>,
    /// Runs before the next read.
    pub on_read: Option<Hook>,
    pub corrupt: bool,
}

impl FakeLog {
    /// A leader of term 3 with voters on brokers 1, 2, 3 and a learner on 4; this is broker 1.
    pub(super) fn new() -> Self {
        let leader = Leader { replica: THIS, broker: BrokerId(1), term: 3 };
        let member = |broker: u32| {
            let member = Member { broker: BrokerId(broker), voter: broker < 4, matched: None };
            (ReplicaId(10 + u64::from(broker)), member)
        };
        let status = GroupStatus {
            leader: Some(leader),
            leading: true,
            term: 3,
            last_index: None,
            applied_index: None,
            members: (1..=4).map(member).collect::<BTreeMap<_, _>>(),
            joint: false,
            stopped: None,
        };
        let state = State {
            table: Producers::default(),
            frames: Vec::new(),
            next_offset: 0,
            log_start: 0,
            status,
            commits: true,
            flushes: true,
            unflushed: Vec::new(),
            propose_error: None,
            majority_dead: false,
            every: Some(Ok(())),
            every_asked: Vec::new(),
            read_index: Some(Ok(())),
            on_read_index: None,
            on_read: None,
            corrupt: false,
        };
        let (high_watermark, high_watermark_seen) = watch::channel(Offset(0));
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            high_watermark: Mutex::new(Some(high_watermark)),
            high_watermark_seen,
            leader: watch::Sender::new(Some(leader)),
            committed: watch::Sender::new(Some(0)),
            read_indexes: AtomicUsize::new(0),
        }))
    }

    pub(super) fn partition(&self) -> Arc<Partition<Self>> {
        self.partition_with(|| true, |_| true)
    }

    pub(super) fn partition_with(
        &self,
        storage_has_room: impl Fn() -> bool + Send + Sync + 'static,
        broker_alive: impl Fn(BrokerId) -> bool + Send + Sync + 'static,
    ) -> Arc<Partition<Self>> {
        Partition::new(self.clone(), self.options(storage_has_room, broker_alive))
    }

    pub(super) fn options(
        &self,
        storage_has_room: impl Fn() -> bool + Send + Sync + 'static,
        broker_alive: impl Fn(BrokerId) -> bool + Send + Sync + 'static,
    ) -> PartitionOptions {
        PartitionOptions {
            name: "orders/3".to_owned(),
            settings: Settings {
                limits: BatchLimits::default(),
                acks_floor: Acks::None,
                log_append_time: false,
                stored_as: None,
            },
            storage_has_room: Arc::new(storage_has_room),
            broker_alive: Arc::new(broker_alive),
            instruments: Arc::new(PartitionInstruments::new(BrokerId(1))),
            now: || 1_700_000_000_000,
            unacknowledged: UnacknowledgedRoom::new(1 << 30),
        }
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.state.lock());
    }

    pub(super) fn get<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.0.state.lock())
    }

    /// How many frames were appended.
    pub(super) fn appended(&self) -> usize {
        self.0.state.lock().frames.len()
    }

    pub(super) fn frame(&self, at: usize) -> Frame {
        self.0.state.lock().frames[at].clone()
    }

    pub(super) fn read_indexes(&self) -> usize {
        self.0.read_indexes.load(Ordering::SeqCst)
    }

    /// Appends what never was a proposal here, as a follower does, and commits it.
    pub(super) fn push(&self, batch: RecordBatch) {
        self.append(super::proposal::wrap(batch, None));
        self.commit();
    }

    /// Commits and applies everything.
    pub(super) fn commit(&self) {
        let (index, next_offset) = {
            let state = self.0.state.lock();
            (state.frames.len() as u64, state.next_offset)
        };
        if let Some(high_watermark) = &*self.0.high_watermark.lock() {
            high_watermark.send_replace(Offset(next_offset));
        }
        self.0.committed.send_replace(Some(index));
    }

    /// Tells every waiting proposer that its entry is durable here.
    pub(super) fn flush(&self) {
        for (sender, appended) in std::mem::take(&mut self.0.state.lock().unflushed) {
            let _ = sender.send(appended);
        }
    }

    /// Another broker leads from now on; what was not committed may or may not survive.
    pub(super) fn depose(&self) {
        let leader = Leader { replica: ReplicaId(12), broker: BrokerId(2), term: 4 };
        self.set(|state| {
            state.status = GroupStatus { leader: Some(leader), leading: false, term: 4, ..state.status.clone() };
            state.unflushed.clear();
        });
        self.0.leader.send_replace(Some(leader));
        self.0.committed.send_replace(None);
    }

    /// The next term begins, and this replica leads again.
    pub(super) fn elect(&self) {
        let mut state = self.0.state.lock();
        state.status.term += 1;
        let leader = Leader { replica: THIS, broker: BrokerId(1), term: state.status.term };
        state.status = GroupStatus { leader: Some(leader), leading: true, ..state.status.clone() };
        self.0.leader.send_replace(Some(leader));
    }

    pub(super) fn close(&self) {
        self.0.high_watermark.lock().take();
    }

    fn append(&self, payload: Bytes) -> Appended {
        let mut state = self.0.state.lock();
        let (index, term) = (state.frames.len() as u64 + 1, state.status.term);
        let at = AppendPosition { next_offset: state.next_offset, index, term };
        let (kind, payload, span, max_timestamp, outcome) = match state.table.decide(payload, at) {
            Decision::Accept { payload, offset_span, max_timestamp, .. } => {
                let base_offset = Offset(at.next_offset);
                let outcome = Outcome::Records { base_offset, span: offset_span, response: Bytes::new() };
                (FrameKind::Records, payload, offset_span, max_timestamp, outcome)
            }
            Decision::Void { verdict } => (FrameKind::Void, verdict.clone(), 0, -1, Outcome::Void { verdict }),
        };
        let header = FrameHeader {
            offset_span: span,
            record_count: span,
            max_timestamp,
            ..FrameHeader::bare(kind, log_id(term, index), at.next_offset)
        };
        let frame = Frame::new(header, payload);
        state.table.observe(&frame.header, &frame.payload);
        state.next_offset = frame.header.next_offset();
        state.frames.push(frame);
        Appended { index, term, outcome }
    }
}

impl ReplicatedLog for FakeLog {
    fn replica(&self) -> ReplicaId {
        THIS
    }

    fn status(&self) -> GroupStatus {
        self.0.state.lock().status.clone()
    }

    fn watch_leader(&self) -> watch::Receiver<Option<Leader>> {
        self.0.leader.subscribe()
    }

    fn may_have_majority(&self) -> bool {
        !self.get(|state| state.majority_dead)
    }

    async fn propose(
        &self,
        payload: Bytes,
        flushed: Option<oneshot::Sender<Appended>>,
    ) -> Result<Appended, ProposeError> {
        let mut committed = self.0.committed.subscribe();
        if let Some(error) = self.get(|state| state.propose_error.clone()) {
            return Err(error);
        }
        let appended = self.append(payload);
        if let Some(sender) = flushed {
            self.set(|state| state.unflushed.push((sender, appended.clone())));
        }
        if self.get(|state| state.flushes) {
            self.flush();
        }
        if self.get(|state| state.commits) {
            self.commit();
        }
        let known = committed.wait_for(|committed| committed.is_none_or(|index| index >= appended.index)).await;
        match known.unwrap().is_some() {
            true => Ok(appended),
            false => Err(ProposeError::Unknown("leadership was lost".to_owned())),
        }
    }

    async fn await_every(&self, index: u64, term: u64, _timeout: Duration) -> Result<(), ProposeError> {
        self.set(|state| state.every_asked.push((index, term)));
        match self.get(|state| state.every.clone()) {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    async fn read_index(&self) -> Result<(), ProposeError> {
        self.0.read_indexes.fetch_add(1, Ordering::SeqCst);
        let hook = self.0.state.lock().on_read_index.take();
        if let Some(hook) = hook {
            hook(self);
        }
        match self.get(|state| state.read_index.clone()) {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    fn log_start_offset(&self) -> Offset {
        Offset(self.get(|state| state.log_start))
    }

    fn log_end_offset(&self) -> Offset {
        Offset(self.get(|state| state.next_offset))
    }

    fn watch_high_watermark(&self) -> watch::Receiver<Offset> {
        self.0.high_watermark_seen.clone()
    }

    async fn read(&self, from: Offset, limit: Offset, bytes_max: usize) -> Result<Vec<Frame>, ReadError> {
        let hook = self.0.state.lock().on_read.take();
        if let Some(hook) = hook {
            hook(self);
        }
        let state = self.0.state.lock();
        if state.corrupt {
            let why = "checksum mismatch".to_owned();
            return Err(ReadError::Corrupt { file: PathBuf::from("0-1.segment"), position: 60, why });
        }
        if from.0 < state.log_start || from > limit {
            return Err(ReadError::OutOfRange { offset: from.0, start: state.log_start, end: limit.0 });
        }
        let mut bytes = 0;
        let frames = state.frames.iter().filter(|frame| frame.header.kind == FrameKind::Records);
        let wanted = frames.filter(|f| f.header.next_offset() > from.0 && f.header.base_offset < limit.0);
        let within = wanted.take_while(|frame| {
            let first = bytes == 0;
            bytes += frame.payload.len();
            first || bytes <= bytes_max
        });
        Ok(within.cloned().collect())
    }

    async fn offset_for_timestamp(
        &self,
        timestamp: i64,
        from: Offset,
        limit: Offset,
    ) -> Result<Option<Offset>, ReadError> {
        let state = self.0.state.lock();
        let found = state.frames.iter().find(|frame| {
            let header = &frame.header;
            header.kind == FrameKind::Records
                && header.next_offset() > state.log_start.max(from.0)
                && header.base_offset < limit.0
                && header.max_timestamp >= timestamp
        });
        Ok(found.map(|frame| Offset(frame.header.base_offset)))
    }
}
