//! Giving every leadership away before a clean stop, spread over those who can take it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::timeout;

use super::Hosted;
use crate::raft_group::{GroupStatus, RaftGroup};
use crate::transport::Liveness;
use crate::types::{BrokerId, ReplicaId};

/// Transfers under way at the same time.
const CONCURRENT: usize = 64;

/// Hands over what can be handed over within `limit`. A transfer that fails is undone and tried once more, elsewhere if
/// there is an elsewhere.
pub(super) async fn all(hosted: &Hosted, limit: Duration) {
    let given = async {
        for _ in 0..2 {
            let led: Vec<RaftGroup> = hosted.all().into_iter().filter(|group| group.leading_term().is_some()).collect();
            if led.is_empty() {
                return;
            }
            let transfers = plan(hosted, led);
            stream::iter(transfers)
                .for_each_concurrent(CONCURRENT, |(group, to)| async move {
                    if let Err(error) = group.transfer_leader(to).await {
                        tracing::info!(group = group.group().0, %to, %error, "leadership not handed over");
                    }
                })
                .await;
        }
    };
    if timeout(limit, given).await.is_err() {
        tracing::info!("not every leadership was handed over in time");
    }
}

fn plan(hosted: &Hosted, led: Vec<RaftGroup>) -> Vec<(RaftGroup, ReplicaId)> {
    let own = hosted.transport.broker();
    let alive = |broker: BrokerId| broker != own && hosted.transport.liveness(broker) == Liveness::Alive;
    let mut load = BTreeMap::new();
    led.into_iter()
        .filter_map(|group| Some((choose(&group.status(), alive, &mut load)?, group)))
        .map(|(to, group)| (group, to))
        .collect()
}

/// Who should lead this group instead.
pub(super) fn heir(hosted: &Hosted, group: &RaftGroup) -> Option<ReplicaId> {
    let own = hosted.transport.broker();
    let alive = |broker: BrokerId| broker != own && hosted.transport.liveness(broker) == Liveness::Alive;
    choose(&group.status(), alive, &mut BTreeMap::new())
}

/// The live voter with the newest log; among equals the one whose broker was given the least so far.
fn choose(
    status: &GroupStatus,
    alive: impl Fn(BrokerId) -> bool,
    load: &mut BTreeMap<BrokerId, usize>,
) -> Option<ReplicaId> {
    let candidates = status.members.iter().filter(|(_, member)| member.voter && alive(member.broker));
    let given = |broker: &BrokerId| load.get(broker).copied().unwrap_or(0);
    let (to, member) =
        candidates.min_by_key(|(id, member)| (std::cmp::Reverse(member.matched), given(&member.broker), **id))?;
    *load.entry(member.broker).or_default() += 1;
    Some(*to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft_group::Member;

    fn status(members: &[(u64, u32, bool, u64)]) -> GroupStatus {
        let member = |&(id, broker, voter, matched): &(u64, u32, bool, u64)| {
            (ReplicaId(id), Member { broker: BrokerId(broker), voter, matched: Some(matched) })
        };
        GroupStatus {
            leader: None,
            leading: true,
            term: 1,
            last_index: Some(9),
            applied_index: Some(9),
            members: members.iter().map(member).collect(),
            joint: false,
            stopped: None,
        }
    }

    #[test]
    fn leaderships_are_spread_over_live_caught_up_voters() {
        let mut load = BTreeMap::new();
        let equal = status(&[(1, 1, true, 9), (2, 2, true, 9), (3, 3, true, 9), (4, 4, false, 9)]);
        let alive = |broker: BrokerId| broker != BrokerId(1);
        let chosen: Vec<_> = (0..4).map(|_| choose(&equal, alive, &mut load).unwrap().0).collect();
        assert_eq!(chosen, [2, 3, 2, 3]);
        let behind = status(&[(1, 1, true, 9), (2, 2, true, 4), (3, 3, true, 9)]);
        assert_eq!(choose(&behind, alive, &mut load), Some(ReplicaId(3)));
        assert_eq!(choose(&behind, |_| false, &mut load), None);
    }
}
