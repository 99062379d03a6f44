//! What the raft crate sees of a partition: the producer table at append, and nothing to apply. The log is the data.

use std::io;

use bytes::Bytes;
use pontoon_raft::log::frame::Frame;
use pontoon_raft::payload::{AppendState, Application, SnapshotAt};
use pontoon_raft::types::LogId;

use super::producers::Producers;
use crate::record_batch::BATCH_HEADER_BYTES;

/// A partition's side of [`Application`]. Has no state: one may serve every partition.
#[derive(Clone, Copy, Debug, Default)]
pub struct PartitionApplication;

impl Application for PartitionApplication {
    fn append_state(&self, saved: Option<&[u8]>) -> io::Result<Box<dyn AppendState>> {
        Ok(Box::new(saved.map_or_else(|| Ok(Producers::default()), Producers::load)?))
    }

    fn observe_prefix_bytes(&self) -> usize {
        BATCH_HEADER_BYTES
    }

    fn snapshot_at(&self) -> SnapshotAt {
        SnapshotAt::Boundary
    }

    fn applied(&self) -> Option<LogId> {
        None
    }

    fn discard(&self) -> io::Result<()> {
        Ok(())
    }

    fn apply(&self, _log_id: LogId, _frame: &Frame) -> Bytes {
        Bytes::new()
    }

    fn snapshot(&self) -> io::Result<Bytes> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a partition's snapshots are taken at the retention boundary"))
    }

    fn restore(&self, _log_id: Option<LogId>, _snapshot: &[u8]) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a partition has no applied state to restore"))
    }
}
