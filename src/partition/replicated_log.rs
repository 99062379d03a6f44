//! What a partition asks of the Raft group and log below it: one small trait, so that every failure can be played to it in
//! a test. [`RaftGroup`] is the one that runs; nothing is decided here.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pontoon_raft::error::{ProposeError, ReadError};
use pontoon_raft::log::frame::Frame;
use pontoon_raft::raft_group::{GroupStatus, Leader, RaftGroup};
use pontoon_raft::stages::Stages;
use pontoon_raft::types::{Appended, Offset, ReplicaId};
use tokio::sync::{oneshot, watch};

/// A Raft group's replica and its log; see [`RaftGroup`] and [`pontoon_raft::log::Log`] for what each owes.
pub trait ReplicatedLog: Clone + Send + Sync + 'static {
    /// This replica.
    fn replica(&self) -> ReplicaId;

    /// See [`RaftGroup::status`].
    fn status(&self) -> GroupStatus;

    /// See [`RaftGroup::watch_leader`].
    fn watch_leader(&self) -> watch::Receiver<Option<Leader>>;

    /// See [`RaftGroup::propose`].
    fn propose(
        &self,
        payload: Bytes,
        flushed: Option<oneshot::Sender<Appended>>,
    ) -> impl Future<Output = Result<Appended, ProposeError>> + Send;

    /// See [`RaftGroup::propose_staged`]. Whoever has no stages to note makes a plain proposal.
    fn propose_staged(
        &self,
        payload: Bytes,
        flushed: Option<oneshot::Sender<Appended>>,
        _stages: Arc<Stages>,
    ) -> impl Future<Output = Result<Appended, ProposeError>> + Send {
        self.propose(payload, flushed)
    }

    /// See [`RaftGroup::await_every`].
    fn await_every(
        &self,
        index: u64,
        term: u64,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), ProposeError>> + Send;

    /// See [`RaftGroup::read_index`].
    fn read_index(&self) -> impl Future<Output = Result<(), ProposeError>> + Send;

    /// Why nothing may be appended though this replica leads: its log is rotten and there is no other replica to repair it
    /// from (RULES.md R7).
    fn beyond_repair(&self) -> Option<String> {
        None
    }

    /// See [`RaftGroup::may_have_majority`].
    fn may_have_majority(&self) -> bool {
        true
    }

    /// Oldest readable offset.
    fn log_start_offset(&self) -> Offset;

    /// One past the last appended offset.
    fn log_end_offset(&self) -> Offset;

    /// See [`pontoon_raft::log::Log::watch_high_watermark`].
    fn watch_high_watermark(&self) -> watch::Receiver<Offset>;

    /// See [`pontoon_raft::log::Log::read`].
    fn read(
        &self,
        from: Offset,
        limit: Offset,
        bytes_max: usize,
    ) -> impl Future<Output = Result<Vec<Frame>, ReadError>> + Send;

    /// See [`pontoon_raft::log::Log::offset_for_timestamp`].
    fn offset_for_timestamp(
        &self,
        timestamp: i64,
        from: Offset,
        limit: Offset,
    ) -> impl Future<Output = Result<Option<Offset>, ReadError>> + Send;
}

impl ReplicatedLog for RaftGroup {
    fn replica(&self) -> ReplicaId {
        self.replica()
    }

    fn status(&self) -> GroupStatus {
        self.status()
    }

    fn watch_leader(&self) -> watch::Receiver<Option<Leader>> {
        self.watch_leader()
    }

    async fn propose(
        &self,
        payload: Bytes,
        flushed: Option<oneshot::Sender<Appended>>,
    ) -> Result<Appended, ProposeError> {
        self.propose(payload, flushed).await
    }

    async fn propose_staged(
        &self,
        payload: Bytes,
        flushed: Option<oneshot::Sender<Appended>>,
        stages: Arc<Stages>,
    ) -> Result<Appended, ProposeError> {
        self.propose_staged(payload, flushed, Some(stages)).await
    }

    async fn await_every(&self, index: u64, term: u64, timeout: Duration) -> Result<(), ProposeError> {
        self.await_every(index, term, timeout).await
    }

    async fn read_index(&self) -> Result<(), ProposeError> {
        self.read_index().await
    }

    fn beyond_repair(&self) -> Option<String> {
        self.beyond_repair()
    }

    fn may_have_majority(&self) -> bool {
        self.may_have_majority()
    }

    fn log_start_offset(&self) -> Offset {
        self.log().log_start_offset()
    }

    fn log_end_offset(&self) -> Offset {
        self.log().log_end_offset()
    }

    fn watch_high_watermark(&self) -> watch::Receiver<Offset> {
        self.log().watch_high_watermark()
    }

    async fn read(&self, from: Offset, limit: Offset, bytes_max: usize) -> Result<Vec<Frame>, ReadError> {
        self.log().read(from, limit, bytes_max).await
    }

    async fn offset_for_timestamp(
        &self,
        timestamp: i64,
        from: Offset,
        limit: Offset,
    ) -> Result<Option<Offset>, ReadError> {
        self.log().offset_for_timestamp(timestamp, from, limit).await
    }
}
