//! Giving leaderships back: a partition's first replica is its preferred leader, and gets its share again some time after
//! it returned.
//!
//! Without hurry and without ping-pong: only to a broker that has been alive for a while, is not about to stop, and whose disk
//! has not stalled just now, only to a replica that is level, a bounded number at a time, and after a failure with a growing pause.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use pontoon_raft::raft_group::{GroupStatus, RaftGroup};
use pontoon_raft::transport::Liveness;
use pontoon_raft::types::{BrokerId, GroupId, ReplicaId};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::shared::Shared;
use super::summary::History;
use crate::catalog::state::{PartitionRecord, ReplicaState};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long a broker must have been alive before it is given anything.
const SETTLE: Duration = Duration::from_secs(3);
/// Most leaderships given back per look.
const BATCH: usize = 100;
/// How many at the same time.
const CONCURRENT: usize = 8;
/// A replica this many entries behind is level, however old they are.
const LAG_MAX: u64 = 64;
/// The pause after a first failure; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// Since when each peer has been alive without a break.
#[derive(Default)]
struct Alive(BTreeMap<BrokerId, (Instant, u64)>);

impl Alive {
    /// Notes what the detector says now: whether the peer is alive, and how often it has died so far.
    fn note(&mut self, peer: BrokerId, alive: bool, deaths: u64, now: Instant) {
        if !alive {
            self.0.remove(&peer);
            return;
        }
        let since = self.0.entry(peer).or_insert((now, deaths));
        if since.1 != deaths {
            *since = (now, deaths); // It was away between two looks.
        }
    }

    fn settled(&self, peer: BrokerId, now: Instant) -> bool {
        self.0.get(&peer).is_some_and(|(since, _)| now.duration_since(*since) >= SETTLE)
    }
}

/// Groups that are left alone for a while after a failed transfer.
#[derive(Default)]
struct Pauses(BTreeMap<GroupId, (Instant, Duration)>);

impl Pauses {
    fn blocks(&self, group: GroupId, now: Instant) -> bool {
        self.0.get(&group).is_some_and(|(until, _)| now < *until)
    }

    fn note(&mut self, group: GroupId, done: bool, now: Instant) {
        if done {
            self.0.remove(&group);
            return;
        }
        let pause = self.0.get(&group).map_or(PAUSE, |(_, last)| (*last * 2).min(PAUSE_MAX));
        self.0.insert(group, (now + pause, pause));
    }
}

/// The replica that should lead instead of this broker's, if it can be given leadership now. Who has `needed`, an index that the log
/// came to a while ago, is level: on a busy partition the newest entries are always on their way.
fn preferred(
    partition: &PartitionRecord,
    status: &GroupStatus,
    own: BrokerId,
    needed: u64,
    can_lead: impl Fn(BrokerId) -> bool,
) -> Option<ReplicaId> {
    let first = partition.replicas.first()?;
    if first.broker == own || first.state != ReplicaState::Created || !status.leading || status.joint {
        return None;
    }
    let member = status.members.get(&first.replica).filter(|member| member.voter)?;
    let matched = member.matched?;
    let level = matched >= needed || matched + LAG_MAX >= status.last_index?;
    (level && can_lead(first.broker)).then_some(first.replica)
}

/// Gives leaderships back until `stop` says so.
pub(super) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let (mut alive, mut pauses, mut ends) = (Alive::default(), Pauses::default(), History::default());
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = sleep(INTERVAL) => {}
        }
        let now = Instant::now();
        for peer in shared.peers() {
            let status = shared.transport().peer_status(peer);
            let lives = status.is_some_and(|status| status.liveness == Liveness::Alive);
            alive.note(peer, lives, status.map_or(0, |status| status.deaths), now);
        }
        if shared.stopping() {
            continue;
        }
        let can_lead = |broker| alive.settled(broker, now) && !shared.routing.declines(broker);
        let transfers = shared.transfers(can_lead, |group| !pauses.blocks(group, now), &mut ends);
        let done: Vec<_> = stream::iter(transfers)
            .map(|(group, to)| async move {
                let given = group.transfer_leader(to).await;
                if let Err(error) = &given {
                    tracing::info!(group = group.group().0, %to, %error, "leadership was not given back");
                }
                (group.group(), given.is_ok())
            })
            .buffer_unordered(CONCURRENT)
            .collect()
            .await;
        for (group, given) in done {
            pauses.note(group, given, Instant::now());
        }
    }
}

impl Shared {
    /// What is to be given back now, and to whom.
    fn transfers(
        &self,
        can_lead: impl Fn(BrokerId) -> bool,
        may: impl Fn(GroupId) -> bool,
        ends: &mut History,
    ) -> Vec<(RaftGroup, ReplicaId)> {
        let state = self.catalog.state();
        let (mut transfers, mut seen, now) = (Vec::new(), BTreeSet::new(), Instant::now());
        for (group, hosted) in self.routing.all_hosted() {
            if !hosted.leads() || !may(group) {
                continue;
            }
            let Some(partition) = state.partition(group) else { continue };
            // Nearly all, twice a second: they are led where they should be.
            if partition.replicas.first().is_none_or(|first| first.broker == self.broker) {
                continue;
            }
            let status = hosted.group.status();
            seen.insert(group);
            let needed = ends.note(group, status.last_index.unwrap_or(0), now);
            if let Some(to) = preferred(partition, &status, self.broker, needed, &can_lead) {
                transfers.push((hosted.group, to));
            }
            if transfers.len() >= BATCH {
                break;
            }
        }
        ends.retain(|group| seen.contains(&group));
        transfers
    }
}

#[cfg(test)]
mod tests {
    use pontoon_raft::raft_group::Member;
    use pontoon_raft::types::DirectoryId;

    use super::*;
    use crate::catalog::state::ReplicaRecord;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_was_away_for_a_moment_settles_anew() {
        let mut alive = Alive::default();
        let (peer, start) = (BrokerId(1), Instant::now());
        alive.note(peer, true, 0, start);
        assert!(!alive.settled(peer, start + SETTLE / 2) && alive.settled(peer, start + SETTLE));
        alive.note(peer, true, 1, start + SETTLE);
        assert!(!alive.settled(peer, start + SETTLE));
        alive.note(peer, false, 1, start + SETTLE * 3);
        assert!(!alive.settled(peer, start + SETTLE * 9));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_pause_longer_and_longer_and_success_forgets_them() {
        let (mut pauses, group, now) = (Pauses::default(), GroupId(1), Instant::now());
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            pauses.note(group, false, now);
            let end = now + Duration::from_secs(expected);
            assert!(pauses.blocks(group, end - Duration::from_millis(1)) && !pauses.blocks(group, end));
        }
        pauses.note(group, true, now);
        assert!(!pauses.blocks(group, now));
    }

    #[test]
    fn leadership_goes_only_to_a_preferred_replica_that_can_take_it() {
        let record = |replica, broker, state| ReplicaRecord {
            broker: BrokerId(broker),
            directory: DirectoryId(1),
            replica: ReplicaId(replica),
            state,
        };
        let mut partition = PartitionRecord {
            group: GroupId(1),
            replicas: vec![record(1, 1, ReplicaState::Created), record(2, 2, ReplicaState::Created)],
            leaving: Vec::new(),
            initialised: true,
        };
        let member = |broker: u32, matched| Member { broker: BrokerId(broker), voter: true, matched };
        let mut status = GroupStatus {
            leader: None,
            leading: true,
            term: 1,
            last_index: Some(1000),
            applied_index: None,
            members: BTreeMap::from([(ReplicaId(1), member(1, Some(990))), (ReplicaId(2), member(2, Some(1000)))]),
            joint: false,
            stopped: None,
        };
        let to = |partition: &_, status: &_, own| preferred(partition, status, BrokerId(own), 1000, |_| true);
        assert_eq!(to(&partition, &status, 2), Some(ReplicaId(1)));
        assert_eq!(to(&partition, &status, 1), None, "it leads already");
        assert_eq!(preferred(&partition, &status, BrokerId(2), 0, |_| false), None, "dead, new, stopping or stalled");
        status.members.insert(ReplicaId(1), member(1, Some(10)));
        assert_eq!(to(&partition, &status, 2), None, "behind");
        let busy = preferred(&partition, &status, BrokerId(2), 10, |_| true);
        assert_eq!(busy, Some(ReplicaId(1)), "it has what the leader had a while ago");
        status.members.insert(ReplicaId(1), Member { voter: false, ..member(1, Some(1000)) });
        assert_eq!(to(&partition, &status, 2), None, "does not vote");
        status.members.insert(ReplicaId(1), member(1, Some(1000)));
        partition.replicas[0].state = ReplicaState::Lost;
        assert_eq!(to(&partition, &status, 2), None, "lost");
    }
}
