//! One Raft group's replica on this broker: openraft over a [`Log`], seen from the layer above.
//!
//! It turns openraft's answers into three that a caller can act on (RULES.md O8), batches what can be batched, and
//! keeps the leadership transfers and membership changes of its group in order. It decides nothing about elections
//! ([`crate::elections`]) and does not start itself again when its core ends ([`crate::supervision`]).
//!
//! # When was an entry never appended?
//!
//! Read in openraft 0.10.0-alpha.37 (`core/raft_core.rs`):
//!
//! - `write_entries` checks leadership, a transfer under way and the leader's lease *before* it hands anything to
//!   `leader_append_entries`, and answers each refused proposal with `ForwardToLeader` (reasons `NotLeader`,
//!   `LeadershipTransfer`, `LeaseExpired`; the latter is its check-quorum). No other place answers a write with it:
//!   `ForwardToLeader` means *never appended*.
//! - An error from `client_write_ff` itself means that the core's mailbox is closed: never appended.
//! - `LogEntryDiscarded` (the entry was truncated, or covered by an installed snapshot) and a responder dropped with the
//!   core: it *was* taken in, and may have been committed: unknown.
//!
//! Rooms: `read_index`, `membership`, `transfer`, `trim`, `pulse` (its clock), `observe` (leadership, as seen in openraft's metrics).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardToLeader, InitializeError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use crate::config::RaftConfig;
use crate::error::ProposeError;
use crate::instruments::GroupInstruments;
use crate::log::Log;
use crate::payload::Application;
use crate::stages::Stages;
use crate::state_machine::StateMachine;
use crate::store::Replica;
use crate::transport::Transport;
use crate::types::{Appended, BrokerId, EntryData, GroupId, Proposal, ReplicaHome, ReplicaId, TypeConfig};

mod membership;
mod observe;
mod pulse;
mod read_index;
mod transfer;
mod trim;

pub(crate) use transfer::Standing;

/// openraft, as a group runs it.
pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// A group is in use for so long after its last traffic.
const IN_USE: Duration = Duration::from_secs(10);
/// How long a new leader's proposals wait, from when they come, for the first entry of its term to be committed.
const SETTLE_WAIT: Duration = Duration::from_secs(1);

/// Who leads, as this replica knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The leading replica.
    pub replica: ReplicaId,
    /// Its broker.
    pub broker: BrokerId,
    /// Its term: the leader epoch.
    pub term: u64,
}

/// A member of the group, as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its broker.
    pub broker: BrokerId,
    /// Votes, or only learns.
    pub voter: bool,
    /// Highest index known to be durable there (leader only; `None`: not known).
    pub matched: Option<u64>,
}

/// A group's state, as this replica knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// Who leads.
    pub leader: Option<Leader>,
    /// Whether this replica leads *and* has committed an entry of its own term.
    pub leading: bool,
    /// Current term.
    pub term: u64,
    /// Index of the last entry here.
    pub last_index: Option<u64>,
    /// Index of the last applied entry here.
    pub applied_index: Option<u64>,
    /// Members by replica id, from the effective membership.
    pub members: BTreeMap<ReplicaId, Member>,
    /// Whether a membership change is under way.
    pub joint: bool,
    /// Why the core has stopped, if it has.
    pub stopped: Option<String>,
}

/// A group's replica. Shared; every method may be called from anywhere.
#[derive(Clone)]
pub struct RaftGroup {
    inner: Arc<Inner>,
}

struct Inner {
    transport: Transport,
    replica: Replica,
    config: Arc<RaftConfig>,
    instruments: Arc<GroupInstruments>,
    /// Replaced when the core is started again.
    raft: RwLock<Raft>,
    /// Held here, so that `watch_leader` outlives a restart of the core.
    leader: watch::Sender<Option<Leader>>,
    stopped: Mutex<Option<String>>,
    /// Being shut down on purpose.
    closing: AtomicBool,
    /// It may be set aside in a moment.
    leaving: AtomicBool,
    /// Leadership in terms up to this one was given up by the leader's own broker (a hand-over, or it was restarted).
    /// Terms of leaders begin at 1: 0 means none.
    released: AtomicU64,
    /// The term whose leader's broker this one holds dead; 0: none.
    orphaned: AtomicU64,
    /// Whom leadership is being handed to, and from which term.
    transferring: Mutex<Option<(ReplicaId, u64)>>,
    /// Serialises membership changes (RULES.md R9).
    changes: tokio::sync::Mutex<()>,
    /// Held by a proposal until it is in the core's mailbox. Who waits has it in the order of the calls, and is not overtaken once it is
    /// theirs; of room in a mailbox that could not be said.
    proposing: tokio::sync::Mutex<()>,
    reads: read_index::Rounds,
    created: Instant,
    /// Milliseconds from `created` to the last proposal, read or replicated entry; 0: there was none.
    active_ms: AtomicU64,
    /// Milliseconds from `created` to when this replica last heard its leader; 0: never.
    heard_ms: AtomicU64,
    pulse: Mutex<pulse::Pulse>,
}

impl RaftGroup {
    pub(crate) fn new(
        transport: Transport,
        replica: Replica,
        raft: Raft,
        config: Arc<RaftConfig>,
        instruments: Arc<GroupInstruments>,
    ) -> Self {
        let inner = Inner {
            transport,
            replica,
            config,
            instruments,
            raft: RwLock::new(raft),
            leader: watch::Sender::new(None),
            stopped: Mutex::new(None),
            closing: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            released: AtomicU64::new(0),
            orphaned: AtomicU64::new(0),
            transferring: Mutex::new(None),
            changes: tokio::sync::Mutex::new(()),
            proposing: tokio::sync::Mutex::new(()),
            reads: read_index::Rounds::default(),
            created: Instant::now(),
            active_ms: AtomicU64::new(0),
            heard_ms: AtomicU64::new(0),
            pulse: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        self.inner.replica.group
    }

    /// This replica.
    pub fn replica(&self) -> ReplicaId {
        self.inner.replica.replica
    }

    /// Its log, for reading.
    pub fn log(&self) -> &Arc<Log> {
        &self.inner.replica.log
    }

    /// Its payload's owner.
    pub fn application(&self) -> &Arc<dyn Application> {
        &self.inner.replica.application
    }

    /// Proposes a payload and waits until it is committed and applied here: durable on a majority (`acks=all`).
    ///
    /// Proposals are appended in the order in which they were polled first, as long as none is dropped (and tokio's budget, which may put
    /// off a first poll, does not count: `unconstrained`).
    /// `flushed`, if given, is told as soon as the entry is durable on this leader (`acks=leader`).
    /// Errors: `NotLeader` and `Stopped` mean that nothing was appended; `Unknown` that it may have been. Dropping the
    /// future does not withdraw the proposal. It has no time-out of its own while this replica leads; once it does not,
    /// it waits at most an election time-out for the new leader's verdict on the entry.
    pub async fn propose(
        &self,
        payload: Bytes,
        flushed: Option<oneshot::Sender<Appended>>,
    ) -> Result<Appended, ProposeError> {
        self.propose_staged(payload, flushed, None).await
    }

    /// [`Self::propose`], noting when the entry passes each stage here.
    pub async fn propose_staged(
        &self,
        payload: Bytes,
        flushed: Option<oneshot::Sender<Appended>>,
        stages: Option<Arc<Stages>>,
    ) -> Result<Appended, ProposeError> {
        self.touch();
        let settled_by = Instant::now() + SETTLE_WAIT;
        let place = self.inner.proposing.lock().await;
        let term = self.settled(settled_by).await?;
        let mut leader = self.watch_leader();
        let (responder, mut answer) = ProgressResponder::<TypeConfig, ClientWriteResult<TypeConfig>>::complete_only();
        let data = EntryData::Proposed(Proposal { payload, flushed, stages });
        // A closed mailbox: nothing was appended.
        self.raft().client_write_ff(data, Some(responder)).await.map_err(|fatal| self.stopped_error(fatal))?;
        drop(place);
        let answered = tokio::select! {
            biased;
            answered = &mut answer => answered,
            () = lost(&mut leader, self.replica(), term) => {
                let verdict_by = Instant::now() + self.inner.config.election_timeout;
                let Ok(answered) = timeout_at(verdict_by, &mut answer).await else {
                    return Err(ProposeError::Unknown(format!("leadership in term {term} was lost")));
                };
                answered
            }
        };
        match answered {
            Ok(Ok(written)) => Ok(written.data),
            Ok(Err(error)) => Err(self.refused(error)),
            Err(_) => Err(ProposeError::Unknown("the group's core ended under way".into())),
        }
    }

    /// Waits until `index`, appended in `term`, is durable on every voter of the present membership and on this leader
    /// (`acks=every`, RULES.md O9). `Unknown` at the timeout or if leadership is lost.
    pub async fn await_every(&self, index: u64, term: u64, timeout: Duration) -> Result<(), ProposeError> {
        let deadline = Instant::now() + timeout;
        let mut metrics = self.raft().metrics();
        loop {
            let (leads, everywhere, missing) = {
                let now = metrics.borrow_watched();
                let leads =
                    now.running_state.is_ok() && now.state == openraft::ServerState::Leader && now.current_term == term;
                let matched = |id: &ReplicaId| {
                    let matched = now.replication.as_ref().and_then(|all| all.get(id)).copied().flatten();
                    matched.is_some_and(|log_id| log_id.index >= index)
                };
                // A commit does not imply the leader's own fsync: its own entry in `replication` follows its flushes.
                let voters = now.membership_config.membership().voter_ids();
                let missing: Vec<ReplicaId> = voters.chain([self.replica()]).filter(|id| !matched(id)).collect();
                (leads, missing.is_empty(), missing)
            };
            if !leads {
                return Err(ProposeError::Unknown(format!("leadership in term {term} was lost")));
            }
            if everywhere {
                return Ok(());
            }
            match timeout_at(deadline, metrics.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(ProposeError::Unknown("the group's core ended under way".into())),
                Err(_) => {
                    let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
                    let missing = missing.join(", ");
                    return Err(ProposeError::Unknown(format!("index {index} is not yet on replicas {missing}")));
                }
            }
        }
    }

    /// Starts a new group with these voters. Only one replica of a new group may do so, once. A group that has these
    /// members already is left as it is.
    pub async fn initialize(&self, members: BTreeMap<ReplicaId, ReplicaHome>) -> Result<(), ProposeError> {
        match self.raft().initialize(members.clone()).await {
            Ok(()) => Ok(()),
            Err(RaftError::Fatal(fatal)) => Err(self.stopped_error(fatal)),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {
                let raft = self.raft();
                let metrics = raft.metrics();
                let now = metrics.borrow_watched();
                let present = now.membership_config.membership().nodes().map(|(id, home)| (*id, *home));
                if present.collect::<BTreeMap<_, _>>() == members {
                    return Ok(());
                }
                Err(ProposeError::NotLeader { leader: self.leader_hint() })
            }
            Err(RaftError::APIError(InitializeError::NotInMembers(_))) => {
                Err(ProposeError::NotLeader { leader: members.first_key_value().map(|(id, home)| (*id, home.broker)) })
            }
        }
    }

    /// Takes a snapshot as of the application's boundary and purges the log below it. On return that is queued; it
    /// happens behind. For `SnapshotAt::Boundary` `boundary` is the first index to keep (rounded down to a segment's
    /// start); for `SnapshotAt::Applied` it is ignored.
    pub async fn snapshot(&self, boundary: u64) -> Result<(), ProposeError> {
        self.log().set_snapshot_boundary(boundary);
        self.raft().trigger().snapshot().await.map_err(|fatal| self.stopped_error(fatal))
    }

    /// Waits until this replica leads with an entry of its own term committed, if it has just been elected, at the latest until `deadline`;
    /// returns the term. Before that openraft holds no lease and would refuse.
    async fn settled(&self, deadline: Instant) -> Result<u64, ProposeError> {
        if let Some(term) = self.leading_term() {
            return Ok(term);
        }
        let mut metrics = self.raft().metrics();
        loop {
            if let Some(term) = self.leading_term() {
                return Ok(term);
            }
            let elected = metrics.borrow_watched().state == openraft::ServerState::Leader;
            if !elected || !matches!(timeout_at(deadline, metrics.changed()).await, Ok(Ok(()))) {
                return Err(self.not_leader_or_stopped());
            }
        }
    }

    fn not_leader_or_stopped(&self) -> ProposeError {
        match self.inner.stopped.lock().clone() {
            Some(why) => ProposeError::Stopped { group: self.group(), why },
            None => ProposeError::NotLeader { leader: self.leader_hint() },
        }
    }

    fn leader_hint(&self) -> Option<(ReplicaId, BrokerId)> {
        let leader = (*self.inner.leader.borrow())?;
        (leader.replica != self.replica()).then_some((leader.replica, leader.broker))
    }

    /// What a write's error means (see the module's header).
    fn refused(&self, error: ClientWriteError<TypeConfig>) -> ProposeError {
        match error {
            ClientWriteError::ForwardToLeader(forward) => self.forward(forward),
            discarded @ ClientWriteError::LogEntryDiscarded(_) => ProposeError::Unknown(discarded.to_string()),
            // Only membership changes are answered so, before anything is appended; but they have their own callers.
            other => ProposeError::Unknown(other.to_string()),
        }
    }

    fn forward(&self, forward: ForwardToLeader<TypeConfig>) -> ProposeError {
        let named = forward.leader_id.zip(forward.leader_node).map(|(id, home)| (id, home.broker));
        let named = named.filter(|(id, _)| *id != self.replica());
        ProposeError::NotLeader { leader: named.or_else(|| self.leader_hint()) }
    }

    fn stopped_error(&self, fatal: impl std::fmt::Display) -> ProposeError {
        ProposeError::Stopped { group: self.group(), why: fatal.to_string() }
    }

    pub(crate) fn raft(&self) -> Raft {
        self.inner.raft.read().clone()
    }

    /// Supervision has started a new core.
    pub(crate) fn replace_raft(&self, raft: Raft) {
        *self.inner.raft.write() = raft;
        *self.inner.stopped.lock() = None;
    }

    pub(crate) fn hosted(&self) -> &Replica {
        &self.inner.replica
    }

    pub(crate) fn set_stopped(&self, why: String) {
        *self.inner.stopped.lock() = Some(why);
        self.publish();
    }

    /// Whether its core has ended, or is being ended by somebody who has said why.
    pub(crate) fn is_stopped(&self) -> bool {
        self.inner.stopped.lock().is_some()
    }

    /// From now on an ending core is no accident. Returns whether this call was the first.
    pub(crate) fn close(&self) -> bool {
        !self.inner.closing.swap(true, Ordering::AcqRel)
    }

    /// Others must not count on this replica from now on, or may again.
    pub(crate) fn set_leaving(&self, leaving: bool) {
        self.inner.leaving.store(leaving, Ordering::Release);
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.inner.leaving.load(Ordering::Acquire)
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.inner.closing.load(Ordering::Acquire)
    }

    /// Notes traffic, so that elections take the busy groups first.
    pub(crate) fn touch(&self) {
        self.inner.active_ms.store(self.age_ms().max(1), Ordering::Relaxed);
    }

    fn age_ms(&self) -> u64 {
        self.inner.created.elapsed().as_millis() as u64
    }

    /// How urgently a leader is wanted: larger is more urgent. Group 0 first, which holds the catalog: until it is led the broker
    /// serves nobody. Then by recency of use.
    pub(crate) fn urgency(&self) -> (bool, u64) {
        (self.group() == GroupId(0), u64::MAX - self.idle_ms())
    }

    /// Whether somebody is likely to wait for a leader: there was traffic lately, or it is the catalog's.
    pub(crate) fn is_in_use(&self) -> bool {
        let used = self.inner.active_ms.load(Ordering::Relaxed) > 0;
        self.group() == GroupId(0) || (used && Duration::from_millis(self.idle_ms()) < IN_USE)
    }

    fn idle_ms(&self) -> u64 {
        self.age_ms().saturating_sub(self.inner.active_ms.load(Ordering::Relaxed))
    }
}

/// Resolves when `replica` no longer leads in `term`, as `leader` shows it.
async fn lost(leader: &mut watch::Receiver<Option<Leader>>, replica: ReplicaId, term: u64) {
    let still = |now: &Option<Leader>| now.is_some_and(|now| now.replica == replica && now.term == term);
    // First seen leading (the publication may lag behind the metrics), then not.
    if !still(&leader.borrow_and_update()) {
        let appeared = leader.wait_for(|now| still(now) || now.is_some_and(|now| now.term > term)).await;
        if !appeared.is_ok_and(|now| still(&now)) {
            return;
        }
    }
    let _ = leader.wait_for(|now| !still(now)).await;
}
