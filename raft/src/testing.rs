//! A small application for tests: producers with sequence numbers, and a list as applied state. Not part of a release.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::log::frame::{Frame, FrameHeader, FrameKind};
use crate::payload::{AppendPosition, AppendState, Application, Decision, SnapshotAt};
use crate::store::ApplicationFactory;
use crate::types::{GroupId, LogId, ReplicaId, repr};

/// Bytes in front of a test payload: base offset (stamped at append), span, producer, sequence.
pub const TEST_HEADER_BYTES: usize = 8 + 1 + 1 + 4;

/// A payload that takes `span` offsets; `producer`'s `sequence` must be the next one, or it is void.
pub fn test_payload(span: u8, producer: u8, sequence: u32, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(TEST_HEADER_BYTES + body.len());
    out.put_u64_le(u64::MAX);
    out.put_u8(span);
    out.put_u8(producer);
    out.put_u32_le(sequence);
    out.put_slice(body);
    out.freeze()
}

/// What a test payload says of its producer: number and sequence.
pub fn test_producer(payload: &[u8]) -> Option<(u8, u32)> {
    let fields = payload.get(9..TEST_HEADER_BYTES)?;
    Some((fields[0], u32::from_le_bytes([fields[1], fields[2], fields[3], fields[4]])))
}

const LOG_START: &[u8] = b"start";

/// A payload that moves the log start.
pub fn test_log_start(offset: u64) -> Bytes {
    [LOG_START, &offset.to_le_bytes()].concat().into()
}

/// Where a payload moves the log start to.
pub fn test_moves_log_start(payload: &[u8]) -> Option<u64> {
    let offset = payload.strip_prefix(LOG_START)?;
    offset.try_into().ok().map(u64::from_le_bytes)
}

/// The last start that an entry at or below `upto` gave, of (index, start) pairs.
pub fn test_log_start_at(starts: &[(u64, u64)], upto: u64) -> u64 {
    starts.iter().rev().find(|(index, _)| *index <= upto).map_or(0, |(_, start)| *start)
}

/// The sequence each producer comes to next, and a count of everything ever observed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestProducers {
    /// Next sequence by producer.
    pub next: BTreeMap<u8, u32>,
    /// Frames observed, records and void alike.
    pub observed: u64,
    /// Entries that moved the log start, by index, and where to.
    pub starts: Vec<(u64, u64)>,
}

impl AppendState for TestProducers {
    fn decide(&self, payload: Bytes, at: AppendPosition) -> Decision {
        if test_moves_log_start(&payload).is_some() {
            return Decision::Void { verdict: payload };
        }
        let Some((producer, sequence)) = test_producer(&payload) else {
            return Decision::Void { verdict: Bytes::from_static(b"malformed") };
        };
        let expected = self.next.get(&producer).copied().unwrap_or(0);
        if sequence != expected {
            return Decision::Void { verdict: format!("sequence {sequence}, not {expected}").into() };
        }
        let span = u32::from(payload[8]);
        let mut stamped = BytesMut::from(&payload[..]);
        stamped[..8].copy_from_slice(&at.next_offset.to_le_bytes());
        Decision::Accept {
            payload: stamped.freeze(),
            offset_span: span,
            record_count: span,
            // Rising, but for producer 2, whose clock is bad.
            max_timestamp: 1000 + (at.next_offset ^ if producer == 2 { 0x2a } else { 0 }) as i64,
        }
    }

    fn observe(&mut self, header: &FrameHeader, prefix: &[u8]) {
        self.observed += 1;
        if header.kind == FrameKind::Records
            && let Some((producer, sequence)) = test_producer(prefix)
        {
            self.next.insert(producer, sequence + 1);
        }
        if header.kind == FrameKind::Void
            && let Some(start) = test_moves_log_start(prefix)
        {
            self.starts.push((header.index, start));
        }
    }

    fn log_start(&self, upto: u64) -> u64 {
        test_log_start_at(&self.starts, upto)
    }

    fn save(&self) -> Bytes {
        codec::encode(self).into()
    }
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Applied {
    last: Option<repr::LogId>,
    payloads: Vec<Vec<u8>>,
}

/// The application: keeps what it applied, if it is of the applied kind.
pub struct TestApplication {
    snapshot_at: SnapshotAt,
    applied: Mutex<Applied>,
}

impl TestApplication {
    /// Empty.
    pub fn new(snapshot_at: SnapshotAt) -> Arc<Self> {
        Arc::new(Self { snapshot_at, applied: Mutex::default() })
    }

    /// The payloads applied so far.
    pub fn payloads(&self) -> Vec<Vec<u8>> {
        self.applied.lock().payloads.clone()
    }
}

impl Application for TestApplication {
    fn append_state(&self, saved: Option<&[u8]>) -> io::Result<Box<dyn AppendState>> {
        let state: TestProducers = match saved {
            None => TestProducers::default(),
            Some(saved) => codec::decode(saved).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?,
        };
        Ok(Box::new(state))
    }

    fn observe_prefix_bytes(&self) -> usize {
        TEST_HEADER_BYTES
    }

    fn moves_log_start(&self, payload: &[u8]) -> Option<u64> {
        test_moves_log_start(payload)
    }

    fn snapshot_at(&self) -> SnapshotAt {
        self.snapshot_at
    }

    fn applied(&self) -> Option<LogId> {
        self.applied.lock().last.map(Into::into)
    }

    fn discard(&self) -> io::Result<()> {
        *self.applied.lock() = Applied::default();
        Ok(())
    }

    fn apply(&self, log_id: LogId, frame: &Frame) -> Bytes {
        if self.snapshot_at == SnapshotAt::Boundary {
            return Bytes::new();
        }
        let mut applied = self.applied.lock();
        applied.last = Some(log_id.into());
        applied.payloads.push(frame.payload.to_vec());
        format!("{}", applied.payloads.len()).into()
    }

    fn snapshot(&self) -> io::Result<Bytes> {
        Ok(codec::encode(&*self.applied.lock()).into())
    }

    fn restore(&self, log_id: Option<LogId>, snapshot: &[u8]) -> io::Result<()> {
        let mut restored: Applied =
            codec::decode(snapshot).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        restored.last = log_id.map(Into::into);
        *self.applied.lock() = restored;
        Ok(())
    }
}

/// A factory of fresh applications of this kind: nothing they applied survives a reopening.
pub fn test_applications(snapshot_at: SnapshotAt) -> ApplicationFactory {
    Arc::new(move |_: GroupId, _: ReplicaId| TestApplication::new(snapshot_at))
}

/// Bytes as golden files show them: sixteen a line.
pub fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ") + "\n";
    bytes.chunks(16).map(line).collect()
}
