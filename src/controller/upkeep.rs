//! The controller's own work, while its broker leads group 0: the cluster is formed, its membership kept, what is lost replaced.
//!
//! When and in which order; what is to be done is decided by [`super::repair`] and [`super::voters`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pontoon_raft::raft_group::RaftGroup;
use pontoon_raft::types::{BrokerId, ClusterId, GroupId, ReplicaHome};
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
/// How long a replica that was replaced is not replaced again on the same disk: at first, and at last, after twice as long each time. What
/// is replaced is kept in a folder, so a disk on which no replica lasts would be full of them.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_LAST: Duration = Duration::from_secs(600);
/// One that lasted for so long, and for twice its pause, is as good as one that was never replaced.
const LASTING: Duration = Duration::from_secs(60);

impl Controller {
    /// Keeps the cluster as it should be, until `stop` says so. A newly formed catalog is told its cluster's id first of all:
    /// this directory's, so nothing is done before that has one.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut changes = self.catalog.watch();
        let mut liveness = self.groups.transport().watch_liveness();
        let mut absences = Absences::default();
        let mut replaced = Replaced::default();
        loop {
            changes.mark_unchanged();
            let wait = match (self.leading_caught_up().await, self.groups.store().cluster()) {
                (Ok(group), Some(cluster)) => {
                    let state = self.catalog.state();
                    let absent = state.brokers().keys().copied().filter(|broker| !self.alive(*broker)).collect();
                    let away = absences.note(&absent, Instant::now());
                    self.look(&group, cluster, &away, &mut replaced).await
                }
                (Ok(_), None) => CATCH_UP_INTERVAL,
                _ => {
                    (absences, replaced) = Default::default();
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
    async fn look(
        &self,
        group: &RaftGroup,
        cluster: ClusterId,
        away: &BTreeSet<BrokerId>,
        replaced: &mut Replaced,
    ) -> Duration {
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
        self.repair(group, away, replaced).await;
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
    async fn repair(&self, group: &RaftGroup, away: &BTreeSet<BrokerId>, replaced: &mut Replaced) {
        let Ok(_turn) = self.turn().await else { return };
        let counts = |group, broker| self.is_here(broker) && (self.level)(group, broker);
        replaced.forget(Instant::now());
        let plan = |replaced: &Replaced| {
            let now = Instant::now();
            repair::plan(&self.catalog.state(), away, counts, |group, broker| replaced.is_due(group, broker, now))
        };
        let grow = || repair::grow(&self.catalog.state(), |broker| self.alive(broker));
        if plan(replaced).is_empty() && grow().is_none() {
            return;
        }
        let nothing = Command::Report(ReplicaReport::default());
        if let Err(error) = self.propose(group, &nothing).await {
            tracing::debug!(%error, "no repair: the catalog's newest state is not known");
            return;
        }
        let began = Instant::now();
        for command in plan(replaced) {
            if began.elapsed() > REPAIR_WITHIN {
                return;
            }
            let again = replacements(&command);
            match self.propose_repair(group, command, "replicas are replaced").await {
                Proposed::Refused => {}
                Proposed::Done => replaced.note(&again, Instant::now()),
                Proposed::Unknown => return replaced.note(&again, Instant::now()),
            }
        }
        if let Some(command) = grow() {
            self.propose_repair(group, command, "recovered partitions get replicas").await;
        }
    }

    async fn propose_repair(&self, group: &RaftGroup, command: Command, what: &str) -> Proposed {
        match self.propose(group, &command).await {
            Ok((Ok(_), _)) => {
                tracing::info!(?command, "{what}");
                Proposed::Done
            }
            // Stale or no longer the controller: the next look, here or elsewhere, computes it anew.
            Ok((Err(error), _)) => {
                tracing::debug!(%error, "a repair was stale");
                Proposed::Refused
            }
            Err(error) => {
                tracing::debug!(%error, "a repair was not proposed");
                Proposed::Unknown
            }
        }
    }
}

/// What became of a repair.
enum Proposed {
    Done,
    /// It has changed nothing.
    Refused,
    /// Nothing may follow it.
    Unknown,
}

/// The replicas that a command replaces.
fn replacements(command: &Command) -> Vec<(GroupId, BrokerId)> {
    match command {
        Command::ReplaceReplicas { replacements } => {
            replacements.iter().map(|replacement| (replacement.group, replacement.new.broker)).collect()
        }
        Command::RestartPartition { group, replicas } => {
            replicas.iter().map(|replica| (*group, replica.broker)).collect()
        }
        _ => Vec::new(),
    }
}

/// What was replaced lately.
#[derive(Default)]
struct Replaced(BTreeMap<(GroupId, BrokerId), Again>);

/// When a replica was replaced last, and for how long that is to do.
struct Again {
    at: Instant,
    pause: Duration,
}

impl Replaced {
    fn is_due(&self, group: GroupId, broker: BrokerId, now: Instant) -> bool {
        self.0.get(&(group, broker)).is_none_or(|again| now.duration_since(again.at) >= again.pause)
    }

    fn note(&mut self, replicas: &[(GroupId, BrokerId)], now: Instant) {
        for key in replicas {
            let pause = match self.0.get(key) {
                Some(Again { at, pause }) if now.duration_since(*at) < (*pause * 2).max(LASTING) => {
                    (*pause * 2).min(AGAIN_LAST)
                }
                _ => AGAIN_FIRST,
            };
            if pause > AGAIN_FIRST {
                let (group, broker) = key;
                tracing::warn!(%group, %broker, ?pause, "a replica did not last, and is not replaced again before this is over");
            }
            self.0.insert(*key, Again { at: now, pause });
        }
    }

    /// Drops what [`Self::note`] would not look at any more.
    fn forget(&mut self, now: Instant) {
        self.0.retain(|_, again| now.duration_since(again.at) < (again.pause * 2).max(LASTING));
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
    async fn a_replica_that_never_lasts_is_replaced_ever_more_seldom() {
        let (mut replaced, group, broker) = (Replaced::default(), GroupId(1), BrokerId(2));
        let (mut now, mut pauses) = (Instant::now(), Vec::new());
        for _ in 0..12 {
            assert!(replaced.is_due(group, broker, now));
            replaced.note(&[(group, broker)], now);
            assert!(replaced.is_due(group, BrokerId(3), now) && replaced.is_due(GroupId(2), broker, now));
            let begun = now;
            while !replaced.is_due(group, broker, now) {
                now += Duration::from_secs(1);
                replaced.forget(now);
            }
            pauses.push((now - begun).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
        replaced.forget(now + AGAIN_LAST);
        assert!(replaced.0.is_empty(), "it has lasted");
        replaced.note(&[(group, broker)], now);
        replaced.note(&[(group, broker)], now + LASTING);
        assert!(replaced.is_due(group, broker, now + LASTING + AGAIN_FIRST));
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_is_away_after_some_time_and_back_at_once() {
        let (mut absences, one, start) = (Absences::default(), BTreeSet::from([BrokerId(1)]), Instant::now());
        assert!(absences.note(&one, start).is_empty());
        assert_eq!(absences.note(&one, start + AWAY_AFTER), one);
        assert!(absences.note(&BTreeSet::new(), start + AWAY_AFTER).is_empty());
        assert!(absences.note(&one, start + AWAY_AFTER * 2).is_empty(), "it was there meanwhile");
    }
}
