//! What the detector says of brokers, and what follows for the groups that they lead.

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;

use super::{Elections, Orphan};
use crate::raft_group::{Member, RaftGroup};
use crate::raft_groups::Hosted;
use crate::transport::Liveness;
use crate::types::BrokerId;

impl Elections {
    pub(super) fn liveness_changed(&self, broker: BrokerId, change: Liveness) {
        tracing::debug!(broker = broker.0, ?change, "liveness");
        let Some(groups) = self.inner.groups.upgrade() else { return };
        match change {
            Liveness::Dead => self.broker_died(&groups, broker),
            Liveness::Alive => self.broker_came(&groups, broker),
            Liveness::Unknown => {}
        }
    }

    /// Who died, and who came back, is seen by what the detector says now.
    pub(super) fn news_were_missed(&self) {
        self.suspect_all();
        let Some(groups) = self.inner.groups.upgrade() else { return };
        let alive = |peer: &BrokerId| self.inner.transport.liveness(*peer) == Liveness::Alive;
        for peer in self.inner.transport.peers().into_iter().filter(alive) {
            self.broker_came(&groups, peer);
        }
    }

    fn broker_died(&self, groups: &Hosted, broker: BrokerId) {
        let now = Instant::now();
        let mut orphans = self.inner.orphans.lock();
        // Who was to lead will not.
        for orphan in orphans.values_mut().filter(|orphan| orphan.is_decided_for(broker, now)) {
            orphan.look_at(now);
        }
        for group in groups.all() {
            let Some(leader) = group.voted_leader() else { continue };
            if leader.broker == broker && leader.replica != group.replica() {
                group.set_orphaned(leader.term);
                let orphan = orphans.entry(group.group()).or_insert_with(|| Orphan::new(now));
                // What the detector knew already, and a peer's report was quicker with than this news: another choice would run
                // against the first.
                if !orphan.is_succeeded(leader.term, broker, now) {
                    orphan.look_at(now);
                }
            }
        }
    }

    fn broker_came(&self, groups: &Hosted, broker: BrokerId) {
        let replaced = self.is_replaced(broker);
        let now = Instant::now();
        for group in groups.all() {
            let orphaned = group.orphaned_term();
            let led = group.voted_leader().filter(|leader| leader.broker == broker && leader.term == orphaned);
            if let Some(leader) = led {
                // Another process: what the former one led, nobody leads (RULES.md R1). The same one: it was a false alarm.
                if replaced {
                    group.release(leader.term);
                }
                group.set_orphaned(0);
            }
            let mut orphans = self.inner.orphans.lock();
            if let Some(orphan) = orphans.get_mut(&group.group()) {
                // Who was chosen without this broker needs none of its votes; another choice would run against the first. But it may have
                // led, or been chosen, and be another process; and after a false alarm nobody is to be chosen.
                let stands = led.is_none() && !replaced && orphan.is_decided(now);
                if !stands {
                    orphan.look_at(now);
                }
            } else if group.is_without_leader() {
                orphans.insert(group.group(), Orphan::new(now));
            }
            drop(orphans);
            if group.status().leader.is_some_and(|leader| leader.replica == group.replica()) || group.is_settling() {
                tokio::spawn(self.clone().resume_leading(group, broker));
            }
        }
    }

    /// A broker came back to a group led here: wake its replication at once, and refresh the lease. A leader that lost its
    /// quorum for longer than its lease is silent for a while by design (openraft #2080); with the quorum back it need not
    /// wait that out, and leads on in a higher term.
    async fn resume_leading(self, group: RaftGroup, broker: BrokerId) {
        let raft = group.raft();
        let members = group.status().members;
        // Two, while a lost one is being replaced there.
        let there: Vec<_> = members.iter().filter(|(_, member)| member.broker == broker).map(|(id, _)| *id).collect();
        if there.is_empty() {
            return;
        }
        let _ = raft.trigger().reset_backoff(there).await;
        let lease = self.inner.config.election_timeout * 2;
        let expired = {
            let metrics = raft.metrics();
            let acked = metrics.borrow_watched().last_quorum_acked;
            acked.is_none_or(|acked| acked.elapsed() > lease)
        };
        if !expired {
            let _ = raft.trigger().heartbeat().await;
            return;
        }
        let reachable =
            |member: &Member| member.broker == self.inner.transport.broker() || !self.is_dead(member.broker);
        let voters: Vec<_> = members.values().filter(|member| member.voter).collect();
        let quorum = voters.iter().filter(|member| reachable(member)).count() * 2 > voters.len();
        if let (true, Some(standing)) = (quorum, group.standing().await)
            && standing.leads
        {
            group.step_through(&standing).await;
        }
    }

    /// Whether a broker is another process than when this was asked last.
    ///
    /// Counted where it is noticed, which may be a while after it is heard of again.
    pub(super) fn is_replaced(&self, broker: BrokerId) -> bool {
        let replacements = self.inner.transport.peer_status(broker).map_or(0, |status| status.replacements);
        self.inner.replacements.lock().insert(broker, replacements).unwrap_or(0) != replacements
    }

    /// Whether it is, and the news of that are still on their way to this task.
    pub(super) fn is_replaced_unnoticed(&self, broker: BrokerId) -> bool {
        let replacements = self.inner.transport.peer_status(broker).map_or(0, |status| status.replacements);
        self.inner.replacements.lock().get(&broker).copied().unwrap_or(0) != replacements
    }
}
