//! Leadership as this replica sees it, derived from openraft's metrics when they change: nothing polls.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use openraft::async_runtime::WatchReceiver;
use openraft::{RaftMetrics, ServerState};
use tokio::sync::watch;

use super::{GroupStatus, Leader, Member, RaftGroup};
use crate::elections::choice::Evidence;
use crate::transport::Liveness;
use crate::types::{BrokerId, Membership, ReplicaId, TypeConfig};

type Metrics = RaftMetrics<TypeConfig>;

impl RaftGroup {
    /// The state now.
    pub fn status(&self) -> GroupStatus {
        let raft = self.raft();
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        let membership = now.membership_config.membership();
        let voters: Vec<ReplicaId> = membership.voter_ids().collect();
        let matched = |id: &ReplicaId| now.replication.as_ref()?.get(id)?.map(|log_id| log_id.index);
        let member = |(id, home): (&ReplicaId, &crate::types::ReplicaHome)| {
            (*id, Member { broker: home.broker, voter: voters.contains(id), matched: matched(id) })
        };
        let stopped = self.inner.stopped.lock().clone();
        GroupStatus {
            leader: self.leader_in(&now),
            leading: self.leads_in(&now),
            term: now.current_term,
            last_index: now.last_log_index,
            applied_index: now.last_applied.map(|log_id| log_id.index),
            members: membership.nodes().map(member).collect(),
            joint: membership.get_joint_config().len() > 1,
            stopped: stopped.or_else(|| now.running_state.as_ref().err().map(ToString::to_string)),
        }
    }

    /// Follows leadership: the current leader, or `None` while there is none. This replica appears as leader once an
    /// entry of its term is committed; another is taken away again when its broker is held for dead.
    pub fn watch_leader(&self) -> watch::Receiver<Option<Leader>> {
        self.inner.leader.subscribe()
    }

    /// The term in which this replica leads with an entry of that term committed.
    pub(crate) fn leading_term(&self) -> Option<u64> {
        let raft = self.raft();
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        self.leads_in(&now).then_some(now.current_term)
    }

    /// Brings what [`Self::watch_leader`] shows up to date.
    pub(crate) fn publish(&self) {
        let raft = self.raft();
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        let leader = if self.inner.stopped.lock().is_some() { None } else { self.leader_in(&now) };
        self.inner.leader.send_if_modified(|shown| std::mem::replace(shown, leader) != leader);
    }

    /// Elected, but without a committed entry of its term yet.
    pub(crate) fn is_settling(&self) -> bool {
        let raft = self.raft();
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        now.state == ServerState::Leader && !self.leads_in(&now)
    }

    /// Nobody is known to lead here, and there is a membership to elect from.
    pub(crate) fn is_without_leader(&self) -> bool {
        let raft = self.raft();
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        let voter = now.membership_config.membership().voter_ids().any(|id| id == self.replica());
        voter && now.state != ServerState::Leader && self.leader_in(&now).is_none()
    }

    /// The leader (it may be dead) and its broker, as the vote names it, with the term.
    pub(crate) fn voted_leader(&self) -> Option<Leader> {
        let raft = self.raft();
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        self.voted_in(&now)
    }

    /// The term in which this replica is the leader by its own vote, settled or not, running or not.
    pub(crate) fn own_term(&self) -> Option<u64> {
        self.voted_leader().filter(|leader| leader.replica == self.replica()).map(|leader| leader.term)
    }

    /// Where a member lives.
    pub(crate) fn home_of(&self, replica: ReplicaId) -> Option<BrokerId> {
        let raft = self.raft();
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        now.membership_config.membership().get_node(&replica).map(|home| home.broker)
    }

    /// What speaks for skipping the present leader's lease in favour of `candidate` (RULES.md R3); `dead` asks the
    /// detector.
    pub(crate) fn evidence(&self, candidate: ReplicaId, dead: impl Fn(BrokerId) -> bool) -> Evidence {
        let Some(leader) = self.voted_leader() else {
            return Evidence { leaderless: true, candidate_leads: false, leader_dead: false, released: false };
        };
        let handing_over = *self.inner.transferring.lock() == Some((candidate, leader.term));
        Evidence {
            leaderless: false,
            candidate_leads: leader.replica == candidate,
            leader_dead: leader.broker != self.inner.transport.broker() && dead(leader.broker),
            released: self.released_term() >= leader.term || handing_over,
        }
    }

    /// Whether this replica may stand for leadership: not while its log is rotten, unless there is no other voter (RULES.md R7).
    pub(crate) fn may_lead(&self) -> bool {
        !self.log().is_rotten() || self.is_only_voter()
    }

    /// Why nothing may be appended here: the log is rotten, and there is no other replica to repair it from. What is good is
    /// served; more must not be entrusted to this disk before a person has looked (RULES.md R7).
    pub fn beyond_repair(&self) -> Option<String> {
        let rot = self.log().is_rotten().then(|| self.log().rot().into_iter().next()).flatten()?;
        let why = || {
            let (file, position) = (rot.file.display(), rot.position);
            format!(
                "{file} is rotten at {position}, and there is no other replica to repair it from: somebody must look"
            )
        };
        self.is_only_voter().then(why)
    }

    /// Whether a majority of the voters may be alive, by what the detector says: nothing can be committed without.
    pub fn may_have_majority(&self) -> bool {
        let transport = &self.inner.transport;
        let lives = |replica: &ReplicaId, membership: &Membership| {
            let home = membership.get_node(replica).map(|home| home.broker);
            home.is_some_and(|home| home == transport.broker() || transport.liveness(home) != Liveness::Dead)
        };
        let raft = self.raft();
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        let membership = now.membership_config.membership();
        let majority = |voters: &BTreeSet<ReplicaId>| {
            voters.iter().filter(|replica| lives(replica, membership)).count() * 2 > voters.len()
        };
        membership.get_joint_config().iter().all(majority)
    }

    /// Whether no other replica votes.
    pub fn is_only_voter(&self) -> bool {
        let raft = self.raft();
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        now.membership_config.membership().voter_ids().all(|id| id == self.replica())
    }

    /// The leader's own broker gave its leadership up in terms up to this one.
    pub(crate) fn release(&self, term: u64) {
        self.inner.released.fetch_max(term, Ordering::AcqRel);
        self.publish();
    }

    /// The leader of this term speaks: whatever was said about its end is not true any more.
    pub(crate) fn heard_leader(&self, term: u64) {
        self.note_heard();
        let released = self.inner.released.load(Ordering::Acquire);
        if released >= term
            && self.inner.released.compare_exchange(released, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
        {
            self.publish();
        }
    }

    pub(crate) fn released_term(&self) -> u64 {
        self.inner.released.load(Ordering::Acquire)
    }

    /// Marks the leader of `term` as dead in the eyes of this broker (0: nobody) and returns the former mark.
    pub(crate) fn set_orphaned(&self, term: u64) -> u64 {
        let former = self.inner.orphaned.swap(term, Ordering::AcqRel);
        if former != term {
            self.publish();
        }
        former
    }

    pub(crate) fn orphaned_term(&self) -> u64 {
        self.inner.orphaned.load(Ordering::Acquire)
    }

    fn leads_in(&self, now: &Metrics) -> bool {
        now.running_state.is_ok()
            && now.state == ServerState::Leader
            && now.current_leader == Some(self.replica())
            && now.local_committed.is_some_and(|committed| committed.leader_id.term == now.current_term)
    }

    pub(super) fn voted_in(&self, now: &Metrics) -> Option<Leader> {
        let replica = now.current_leader?;
        let broker = now.membership_config.membership().get_node(&replica)?.broker;
        Some(Leader { replica, broker, term: now.current_term })
    }

    fn leader_in(&self, now: &Metrics) -> Option<Leader> {
        if now.running_state.is_err() {
            return None;
        }
        let leader = self.voted_in(now)?;
        if leader.replica == self.replica() {
            return self.leads_in(now).then_some(leader);
        }
        (leader.term > self.released_term() && leader.term != self.orphaned_term()).then_some(leader)
    }
}
