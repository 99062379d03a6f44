//! What other brokers may ask of this one, and who answers: [`RaftService`] for its groups, [`PeerService`] for the layer above.
//! The transport brings the questions and carries the answers back.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use super::{
    AppendEntriesRequest, AppendEntriesResponse, AppendResult, Snapshot, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use crate::types::{BrokerId, GroupId, ReplicaId, Vote};

/// Longest body of a call or its answer: 16 MiB.
pub const CALL_BYTES_MAX: usize = 16 << 20;
/// Requests of one replication stream that may be unanswered.
pub const WINDOW_REQUESTS: usize = 64;
/// Bytes of one replication stream that may be unanswered when the next request is sent: 4 MiB.
pub const WINDOW_BYTES: usize = 4 << 20;
/// Longest answer to a [`FramesRequest`]: 1 MiB.
pub const FRAMES_BYTES_MAX: usize = 1 << 20;

/// Who calls, by its own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its number.
    pub broker: BrokerId,
    /// Which process ([`super::PeerStatus::incarnation`]).
    pub incarnation: u64,
}

/// Answers the layer above's calls from other brokers.
pub trait PeerService: Send + Sync + 'static {
    /// Answers one call. `body` is at most [`CALL_BYTES_MAX`]; its meaning is the caller's. `Err` says that nothing
    /// was done and why.
    fn call(&self, from: Caller, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>>;
}

/// For which replica a Raft message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The group.
    pub group: GroupId,
    /// The incarnation it is meant for. A receiver that hosts another one of the group answers [`Refusal::NotHere`].
    pub replica: ReplicaId,
}

/// Which entries are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FramesRequest {
    /// The group.
    pub group: GroupId,
    /// The first entry's index.
    pub from: u64,
    /// The index behind the last.
    pub to: u64,
    /// Bytes of the first frame that are left out: a frame longer than an answer is asked for in pieces.
    pub skip: u64,
    /// Only entries that the answering replica knows to be committed.
    pub committed: bool,
}

/// Why a Raft message was not handed to its group. The sender backs off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// This replica does not run here (or not yet).
    #[error("replica is not here")]
    NotHere,
    /// It is here, but cannot take part now: its core has stopped, or the disk is too full for entries.
    #[error("replica refuses: {0}")]
    Unable(String),
}

/// Takes the Raft messages that other brokers send to the groups of this one. Implemented by `raft_groups`.
///
/// Calls come from the tasks of connections: they return at once; waiting is done in what they return.
pub trait RaftService: Send + Sync + 'static {
    /// One replication stream of one leader. `requests` gives them in the order sent and ends when the leader ends it
    /// or its connection is gone; answers must be in the same order, one each, and may end early (after an error).
    /// The transport drops the answers when the leader is gone, and ends a stream after a [`Refusal`]. At most [`WINDOW_REQUESTS`] requests wait unanswered.
    fn append_stream(
        &self,
        from: BrokerId,
        to: Target,
        requests: BoxStream<'static, AppendEntriesRequest>,
    ) -> BoxStream<'static, Result<AppendResult, Refusal>>;

    /// A single AppendEntries without entries: a heartbeat or a ReadIndex confirmation, not ordered with the streams.
    fn heartbeat(
        &self,
        from: BrokerId,
        to: Target,
        request: AppendEntriesRequest,
    ) -> BoxFuture<'static, Result<AppendEntriesResponse, Refusal>>;

    /// A vote. RULES.md R3: `request.leadership_transfer` is as the sender set it; the implementer checks it.
    fn vote(
        &self,
        from: BrokerId,
        to: Target,
        request: VoteRequest,
    ) -> BoxFuture<'static, Result<VoteResponse, Refusal>>;

    /// A pre-vote.
    fn pre_vote(
        &self,
        from: BrokerId,
        to: Target,
        request: VoteRequest,
    ) -> BoxFuture<'static, Result<VoteResponse, Refusal>>;

    /// A whole snapshot, to be installed durably before the answer.
    fn install_snapshot(
        &self,
        from: BrokerId,
        to: Target,
        vote: Vote,
        snapshot: Snapshot,
    ) -> BoxFuture<'static, Result<SnapshotResponse, Refusal>>;

    /// A leader hands over to this replica, or tells it that it does so to another.
    fn transfer_leader(
        &self,
        from: BrokerId,
        to: Target,
        request: TransferLeaderRequest,
    ) -> BoxFuture<'static, Result<TransferLeaderResponse, Refusal>>;

    /// Whether this replica may lead: its log is whole. It need not be level. [`Refusal::NotHere`]: it does not run.
    fn may_lead(&self, from: BrokerId, to: Target) -> BoxFuture<'static, Result<bool, Refusal>>;

    /// Entries of a group as they stand in the log here, for a replica elsewhere in which they are rotten (RULES.md R7): the
    /// frames of [`FramesRequest`], one behind the other, each verified, at most [`FRAMES_BYTES_MAX`] bytes. Whatever replica of
    /// the group is here may answer; the asker verifies that the entries are its own. Nothing is the answer of one whose log ends
    /// before the first of them.
    fn frames(&self, from: BrokerId, request: FramesRequest) -> BoxFuture<'static, Result<Bytes, Refusal>>;

    /// A message between the `raft_groups` of two brokers ([`super::Transport::report`]): what a survivor knows about orphaned
    /// groups. Opaque here, at most [`CALL_BYTES_MAX`]. Resolves when it has been taken in.
    fn report(&self, from: BrokerId, body: Bytes) -> BoxFuture<'static, Result<(), Refusal>>;
}
