//! Giving every leadership away before a clean stop, spread over those who can take it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::timeout;

use super::Hosted;
use crate::raft_group::{GroupStatus, RaftGroup};
use crate::types::{BrokerId, ReplicaId};

/// Transfers under way at the same time.
const CONCURRENT: usize = 64;

/// Hands over what can be handed over within `limit`. A transfer that fails is undone and tried elsewhere, if
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
                .for_each_concurrent(CONCURRENT, |(group, heirs)| async move {
                    for to in heirs {
                        match group.transfer_leader(to).await {
                            Ok(()) => return,
                            Err(error) => {
                                tracing::info!(group = group.group().0, %to, %error, "leadership not handed over")
                            }
                        }
                    }
                })
                .await;
        }
    };
    if timeout(limit, given).await.is_err() {
        tracing::info!("not every leadership was handed over in time");
    }
}

fn plan(hosted: &Hosted, led: Vec<RaftGroup>) -> Vec<(RaftGroup, Vec<ReplicaId>)> {
    let mut load = BTreeMap::new();
    let mut heirs = |group: &RaftGroup| choose(&group.status(), |broker| hosted.is_live_peer(broker), &mut load);
    led.into_iter().map(|group| (group.clone(), heirs(&group))).collect()
}

/// Who should lead this group instead, the likeliest first; that one counts as given.
fn choose(
    status: &GroupStatus,
    alive: impl Fn(BrokerId) -> bool,
    load: &mut BTreeMap<BrokerId, usize>,
) -> Vec<ReplicaId> {
    let heirs = status.heirs(|_, broker| alive(broker), |broker| load.get(&broker).copied().unwrap_or(0));
    if let Some((_, broker)) = heirs.first() {
        *load.entry(*broker).or_default() += 1;
    }
    heirs.into_iter().map(|(replica, _)| replica).collect()
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
        let chosen: Vec<_> = (0..4).map(|_| choose(&equal, alive, &mut load)[0].0).collect();
        assert_eq!(chosen, [2, 3, 2, 3]);
        let behind = status(&[(1, 1, true, 9), (2, 2, true, 4), (3, 3, true, 9)]);
        assert_eq!(choose(&behind, alive, &mut load), [ReplicaId(3), ReplicaId(2)]);
        assert!(choose(&behind, |_| false, &mut load).is_empty());
    }
}
