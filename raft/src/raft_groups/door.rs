//! Where other brokers' Raft messages come in: each is handed to its group's core, and checked where openraft leaves the
//! check to us: who may skip a lease (RULES.md R3), and whether there is room for entries (RULES.md J18).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use openraft::raft::TransferLeaderRequest as TransferLeader;
use tokio::time::{Instant, sleep};

use super::Hosted;
use crate::raft_group::RaftGroup;
use crate::transport::{
    AppendEntriesRequest, AppendEntriesResponse, AppendResult, FRAMES_BYTES_MAX, FramesRequest, RaftService, Refusal,
    Snapshot, SnapshotResponse, Target, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use crate::types::{BrokerId, LogId, Vote};

/// How long a call for votes that wants to skip a lease waits for this broker's own evidence: the candidate may have
/// noticed the leader's death a moment sooner, and the announcement of a hand-over may be behind it.
const EVIDENCE_WAIT: Duration = Duration::from_millis(250);
/// Between two looks for it.
const EVIDENCE_POLL: Duration = Duration::from_millis(5);

/// The transport's way in. It does not keep the groups alive.
pub(super) struct Door {
    hosted: Weak<Hosted>,
}

impl Door {
    pub(super) fn new(hosted: Weak<Hosted>) -> Self {
        Self { hosted }
    }

    fn enter(&self, to: Target) -> Result<(Arc<Hosted>, RaftGroup), Refusal> {
        let hosted = self.hosted.upgrade().filter(|hosted| !hosted.is_closed()).ok_or(Refusal::NotHere)?;
        let group = hosted.get(to.group).filter(|group| group.replica() == to.replica).ok_or(Refusal::NotHere)?;
        Ok((hosted, group))
    }

    fn answer<T, F>(
        &self,
        to: Target,
        act: impl FnOnce(Arc<Hosted>, RaftGroup) -> F + Send + 'static,
    ) -> BoxFuture<'static, Result<T, Refusal>>
    where
        F: Future<Output = Result<T, Refusal>> + Send + 'static,
        T: Send + 'static,
    {
        match self.enter(to) {
            Ok((hosted, group)) => Box::pin(act(hosted, group)),
            Err(refusal) => Box::pin(async move { Err(refusal) }),
        }
    }
}

fn unable(error: impl std::fmt::Display) -> Refusal {
    Refusal::Unable(error.to_string())
}

/// Followers keep the larger reserve, so that a leader's disk fills first and its producers hear of it.
fn no_room(hosted: &Hosted) -> Option<Refusal> {
    let (available, reserve) = (hosted.store.available_bytes(), hosted.config.reserve_append_bytes);
    let refusal = || Refusal::Unable(format!("{available} bytes free, the reserve for appends is {reserve}"));
    (available < reserve).then(refusal)
}

impl RaftService for Door {
    fn append_stream(
        &self,
        _from: BrokerId,
        to: Target,
        requests: BoxStream<'static, AppendEntriesRequest>,
    ) -> BoxStream<'static, Result<AppendResult, Refusal>> {
        let (hosted, group) = match self.enter(to) {
            Ok(entered) => entered,
            Err(refusal) => return stream::iter([Err(refusal)]).boxed(),
        };
        let full = Arc::new(AtomicBool::new(false));
        let admitted = {
            let (full, group, hosted) = (full.clone(), group.clone(), hosted.clone());
            requests.take_while(move |request| {
                group.touch();
                // Entries already on their way are answered first; the refusal then ends the stream, and openraft backs off.
                let refused = !request.entries.is_empty() && no_room(&hosted).is_some();
                full.fetch_or(refused, Ordering::AcqRel);
                std::future::ready(!refused)
            })
        };
        let follower = group.clone();
        let answers = group.raft().stream_append(admitted).map(move |answer| {
            if matches!(answer, Ok(Ok(_))) {
                follower.note_heard();
            }
            answer.map_err(unable)
        });
        let refusal = stream::once(async move { full.load(Ordering::Acquire).then(|| no_room(&hosted)).flatten() });
        answers.chain(refusal.filter_map(|refusal| std::future::ready(refusal.map(Err)))).boxed()
    }

    fn heartbeat(
        &self,
        _from: BrokerId,
        to: Target,
        request: AppendEntriesRequest,
    ) -> BoxFuture<'static, Result<AppendEntriesResponse, Refusal>> {
        self.answer(to, |_, group| async move {
            let term = request.vote.leader_id.term;
            let answer = group.raft().append_entries(request).await.map_err(unable)?;
            if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
                group.heard_leader(term);
            }
            Ok(answer)
        })
    }

    fn vote(
        &self,
        _from: BrokerId,
        to: Target,
        mut request: VoteRequest,
    ) -> BoxFuture<'static, Result<VoteResponse, Refusal>> {
        self.answer(to, |hosted, group| async move {
            if request.leadership_transfer {
                request.leadership_transfer = may_skip_lease(&hosted, &group, &request.vote).await;
            }
            #[cfg(any(test, feature = "simulation"))]
            if let Some(granted) = crate::sabotage::granted(&request) {
                return Ok(granted);
            }
            group.raft().vote(request).await.map_err(unable)
        })
    }

    fn pre_vote(
        &self,
        _from: BrokerId,
        to: Target,
        request: VoteRequest,
    ) -> BoxFuture<'static, Result<VoteResponse, Refusal>> {
        self.answer(to, |_, group| async move {
            #[cfg(any(test, feature = "simulation"))]
            if let Some(granted) = crate::sabotage::granted(&request) {
                return Ok(granted);
            }
            group.raft().pre_vote(request).await.map_err(unable)
        })
    }

    fn install_snapshot(
        &self,
        _from: BrokerId,
        to: Target,
        vote: Vote,
        snapshot: Snapshot,
    ) -> BoxFuture<'static, Result<SnapshotResponse, Refusal>> {
        self.answer(to, move |hosted, group| async move {
            if let Some(refusal) = no_room(&hosted) {
                return Err(refusal);
            }
            match snapshot.meta.last_log_id {
                Some(last) if has_all_of(&group, &vote, last).await? => Ok(SnapshotResponse::new(vote)),
                _ => group.raft().install_full_snapshot(vote, snapshot).await.map_err(unable),
            }
        })
    }

    fn transfer_leader(
        &self,
        from: BrokerId,
        to: Target,
        request: TransferLeaderRequest,
    ) -> BoxFuture<'static, Result<TransferLeaderResponse, Refusal>> {
        self.answer(to, move |_, group| async move {
            let leader = request.from_leader().leader_id;
            // Only the leader's own broker can announce that it goes.
            if group.home_of(leader.voted_for) != Some(from) {
                return Err(Refusal::Unable(format!("broker {from} does not host replica {}", leader.voted_for)));
            }
            if *request.to_node_id() == group.replica() && !group.may_lead() {
                return Err(unable("the log is rotten here and must be repaired first"));
            }
            let standing = group.standing().await.ok_or_else(|| unable("the core does not answer"))?;
            if standing.vote == *request.from_leader() {
                group.release(leader.term);
            }
            // After a restart openraft's flush progress knows no log id and would wait for one that is long there.
            let there = standing.last.as_ref() >= request.last_log_id();
            let last = request.last_log_id().copied().filter(|_| !there);
            let request = TransferLeader::new(*request.from_leader(), *request.to_node_id(), last);
            group.raft().handle_transfer_leader(request).await.map_err(unable)
        })
    }

    fn may_lead(&self, _from: BrokerId, to: Target) -> BoxFuture<'static, Result<bool, Refusal>> {
        let may = self.enter(to).and_then(|(hosted, group)| {
            if hosted.leaving.load(Ordering::Acquire) {
                return Err(unable("the broker is stopping"));
            }
            if group.is_stopped() || group.is_leaving() { Err(Refusal::NotHere) } else { Ok(group.may_lead()) }
        });
        Box::pin(std::future::ready(may))
    }

    fn frames(&self, _from: BrokerId, request: FramesRequest) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let hosted = self.hosted.upgrade().filter(|hosted| !hosted.is_closed());
        Box::pin(async move {
            let hosted = hosted.ok_or(Refusal::NotHere)?;
            // From the store, not from the group: a replica whose core has ended may hold the last good copy.
            let replica = hosted.store.replicas().into_iter().find(|replica| replica.group == request.group);
            let log = replica.ok_or(Refusal::NotHere)?.log;
            if log.last_log_id().is_none_or(|last| last.index < request.from) {
                return Ok(Bytes::new());
            }
            let known = log.committed_here().map_or(0, |committed| committed.index + 1);
            if request.committed && request.from >= known {
                return Err(unable(format!("entry {} is not known to be committed here", request.from)));
            }
            let to = if request.committed { request.to.min(known) } else { request.to };
            log.serve_frames(request.from, to, request.skip, FRAMES_BYTES_MAX).await.map_err(unable)
        })
    }

    fn report(&self, from: BrokerId, body: Bytes) -> BoxFuture<'static, Result<(), Refusal>> {
        let taken = match self.hosted.upgrade() {
            Some(hosted) => hosted.elections.take_report(from, &body).map_err(Refusal::Unable),
            None => Err(Refusal::NotHere),
        };
        Box::pin(std::future::ready(taken))
    }
}

/// Whether a snapshot from the leader that the replica follows would bring nothing new: the log holds its last entry, so all before it,
/// soundly and durably. A leader sends one as soon as it may purge, to whom it knows less of, however far that one is (one stream was
/// lost, say, with the answers to all that it took); and openraft (0.10.0-alpha.37) then takes the longer log to end with the snapshot,
/// as long as nothing of it is committed here: a debug build does not survive that.
async fn has_all_of(group: &RaftGroup, vote: &Vote, last: LogId) -> Result<bool, Refusal> {
    let log = group.log();
    let standing = group.standing().await.ok_or_else(|| unable("the core does not answer"))?;
    if standing.vote != *vote || !log.contains(last) || log.is_rotten() {
        return Ok(false);
    }
    log.durable_state().await.map_err(unable)?;
    // It is committed: nobody has cut it off meanwhile.
    Ok(log.contains(last))
}

/// The receiver's check of RULES.md R3, by this broker's own evidence.
async fn may_skip_lease(hosted: &Hosted, group: &RaftGroup, vote: &Vote) -> bool {
    let candidate = vote.leader_id.voted_for;
    let until = Instant::now() + EVIDENCE_WAIT;
    loop {
        if group.evidence(candidate, |broker| hosted.elections.is_dead(broker)).suffices() {
            return true;
        }
        if Instant::now() >= until {
            tracing::debug!(group = group.group().0, %candidate, "no evidence for skipping the leader's lease");
            return false;
        }
        sleep(EVIDENCE_POLL).await;
    }
}
