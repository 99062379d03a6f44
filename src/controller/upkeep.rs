//! The controller's own work, while its broker leads group 0: the cluster is formed, its membership kept, what is lost replaced.
//!
//! When and in which order; what is to be done is decided by [`super::repair`] and [`super::voters`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pontoon_raft::raft_group::RaftGroup;
use pontoon_raft::types::{BrokerId, ClusterId, ReplicaHome};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Controller, repair, voters};
use crate::catalog::command::{Command, ReplicaReport};

/// How often the controller looks even if nothing seems to have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How often it looks while a learner of group 0 catches up.
const CATCH_UP_INTERVAL: Duration = Duration::from_millis(50);
/// How long a repair keeps the others waiting; the next look goes on with it.
const REPAIR_WITHIN: Duration = Duration::from_secs(1);
/// A broker that has not been alive for so long is away for longer.
const AWAY_AFTER: Duration = Duration::from_secs(5);

impl Controller {
    /// Keeps the cluster as it should be, until `stop` says so. A newly formed catalog is told its cluster's id first of all:
    /// this directory's, so nothing is done before that has one.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut changes = self.catalog.watch();
        let mut liveness = self.groups.transport().watch_liveness();
        let mut absences = Absences::default();
        loop {
            changes.mark_unchanged();
            let wait = match (self.leading_caught_up().await, self.groups.store().cluster()) {
                (Ok(group), Some(cluster)) => {
                    let state = self.catalog.state();
                    let absent = state.brokers().keys().copied().filter(|broker| !self.alive(*broker)).collect();
                    let away = absences.note(&absent, Instant::now());
                    self.look(&group, cluster, &away).await
                }
                (Ok(_), None) => CATCH_UP_INTERVAL,
                _ => {
                    absences = Absences::default();
                    LOOK_INTERVAL / 4
                }
            };
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                _ = tokio::time::sleep(wait) => {}
                changed = changes.changed() => if changed.is_err() { return },
                _ = liveness.recv() => {}
            }
        }
    }

    /// One look at everything. Returns how long nothing need be looked at, if nothing changes.
    async fn look(&self, group: &RaftGroup, cluster: ClusterId, away: &BTreeSet<BrokerId>) -> Duration {
        if self.catalog.state().cluster() != Some(cluster) {
            match self.propose(group, &Command::FormCluster { cluster }).await {
                Ok((Ok(_), _)) => tracing::info!(cluster = format!("{:032x}", cluster.0), "the cluster is formed"),
                Ok((Err(error), _)) => {
                    tracing::error!(%error, "the catalog does not take its cluster's id");
                    return LOOK_INTERVAL;
                }
                Err(error) => {
                    tracing::debug!(%error, "the cluster's id was not proposed");
                    return CATCH_UP_INTERVAL;
                }
            }
        }
        let wait = self.keep_voters(group).await;
        self.repair(group, away).await;
        wait
    }

    async fn keep_voters(&self, group: &RaftGroup) -> Duration {
        let state = self.catalog.state();
        let replicas = state.brokers().values().map(|broker| (broker.broker, broker.catalog_replica)).collect();
        let step = voters::next_step(&replicas, &group.status(), |broker| self.alive(broker));
        let done = match &step {
            voters::Step::Settled => return LOOK_INTERVAL,
            voters::Step::Wait => return CATCH_UP_INTERVAL,
            voters::Step::AddLearner(replica, broker) => {
                group.add_learner(*replica, ReplicaHome { broker: *broker }).await
            }
            voters::Step::ChangeVoters(voters) => group.change_voters(voters.clone()).await,
        };
        match done {
            Ok(()) => tracing::info!(?step, "the catalog's membership has changed"),
            Err(error) => {
                tracing::warn!(?step, %error, "the catalog's membership could not be changed");
                return CATCH_UP_INTERVAL * 4;
            }
        }
        CATCH_UP_INTERVAL
    }

    /// A plan of replacements holds for the state that it was made of, and is applied without asking again: older versions did not ask,
    /// and every version must make the same catalog of the same log. So whoever reports of replicas waits for the same turn, and what was
    /// appended before, by whom ever and whether or not anybody still waits for it, is applied before the plan is made.
    async fn repair(&self, group: &RaftGroup, away: &BTreeSet<BrokerId>) {
        let Ok(_turn) = self.turn().await else { return };
        let counts = |group, broker| self.is_here(broker) && (self.level)(group, broker);
        let plan = || repair::plan(&self.catalog.state(), away, counts);
        let grow = || repair::grow(&self.catalog.state(), |broker| self.alive(broker));
        if plan().is_empty() && grow().is_none() {
            return;
        }
        let nothing = Command::Report(ReplicaReport::default());
        if let Err(error) = self.propose(group, &nothing).await {
            tracing::debug!(%error, "no repair: the catalog's newest state is not known");
            return;
        }
        let began = Instant::now();
        for command in plan() {
            if began.elapsed() > REPAIR_WITHIN || !self.propose_repair(group, command, "replicas are replaced").await {
                return;
            }
        }
        if let Some(command) = grow() {
            self.propose_repair(group, command, "recovered partitions get replicas").await;
        }
    }

    /// Whether more may follow: what became of this is known.
    async fn propose_repair(&self, group: &RaftGroup, command: Command, what: &str) -> bool {
        match self.propose(group, &command).await {
            Ok((Ok(_), _)) => tracing::info!(?command, "{what}"),
            // Stale or no longer the controller: the next look, here or elsewhere, computes it anew.
            Ok((Err(error), _)) => tracing::debug!(%error, "a repair was stale"),
            Err(error) => {
                tracing::debug!(%error, "a repair was not proposed");
                return false;
            }
        }
        true
    }
}

/// Since when brokers have not been alive at any look.
#[derive(Default)]
struct Absences(BTreeMap<BrokerId, Instant>);

impl Absences {
    /// Notes who is not alive now; returns who has not been for [`AWAY_AFTER`].
    fn note(&mut self, absent: &BTreeSet<BrokerId>, now: Instant) -> BTreeSet<BrokerId> {
        self.0.retain(|broker, _| absent.contains(broker));
        for broker in absent {
            self.0.entry(*broker).or_insert(now);
        }
        let long = |since: &Instant| now.duration_since(*since) >= AWAY_AFTER;
        self.0.iter().filter(|(_, since)| long(since)).map(|(broker, _)| *broker).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_broker_is_away_after_some_time_and_back_at_once() {
        let (mut absences, one, start) = (Absences::default(), BTreeSet::from([BrokerId(1)]), Instant::now());
        assert!(absences.note(&one, start).is_empty());
        assert_eq!(absences.note(&one, start + AWAY_AFTER), one);
        assert!(absences.note(&BTreeSet::new(), start + AWAY_AFTER).is_empty());
        assert!(absences.note(&one, start + AWAY_AFTER * 2).is_empty(), "it was there meanwhile");
    }
}
