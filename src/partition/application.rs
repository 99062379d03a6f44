//! What the raft crate sees of a partition: producers and log start at append, and nothing to apply. The log is the data.

use std::io;

use bytes::Bytes;
use pontoon_raft::log::frame::Frame;
use pontoon_raft::payload::{AppendState, Application, SnapshotAt};
use pontoon_raft::types::LogId;

use super::append_state::PartitionState;
use super::verdict::Verdict;
use crate::record_batch::BATCH_HEADER_BYTES;

/// A partition's side of [`Application`]. Has no state: one may serve every partition.
#[derive(Clone, Copy, Debug, Default)]
pub struct PartitionApplication;

impl Application for PartitionApplication {
    fn append_state(&self, saved: Option<&[u8]>) -> io::Result<Box<dyn AppendState>> {
        Ok(Box::new(saved.map_or_else(|| Ok(PartitionState::default()), PartitionState::load)?))
    }

    fn observe_prefix_bytes(&self) -> usize {
        BATCH_HEADER_BYTES
    }

    fn moves_log_start(&self, payload: &[u8]) -> Option<u64> {
        match Verdict::decode(payload) {
            Some(Verdict::Retention { log_start, .. }) => Some(log_start),
            _ => None,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_append_state_comes_back_from_its_own_bytes_and_from_no_others() {
        let empty = PartitionApplication.append_state(None).unwrap().save();
        assert_eq!(PartitionApplication.append_state(Some(&empty)).unwrap().save(), empty);
        let error = PartitionApplication.append_state(Some(b"rotten")).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn snapshots_are_the_logs_business() {
        assert_eq!(PartitionApplication.snapshot_at(), SnapshotAt::Boundary);
        assert!(PartitionApplication.snapshot().is_err() && PartitionApplication.restore(None, b"").is_err());
    }
}
