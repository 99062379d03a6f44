//! Who leads which partition, and what its offsets are, as this broker knows it.
//!
//! For a partition whose replica is here, its Raft group says who leads, at once. For the others it is what their leaders
//! last claimed ([`super::summary`]): the highest epoch wins. Decides nothing and asks nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::RwLock;
use pontoon_raft::raft_group::{Leader, RaftGroup};
use pontoon_raft::types::{BrokerId, GroupId, Offset};
use tokio::sync::watch;

use super::summary::{Behind, DirectoryHealth, Led, Summary};
use crate::partition::{Partition, Settings};

/// A partition's group that is hosted here.
#[derive(Clone)]
pub(super) struct Hosted {
    /// The group.
    pub(super) group: RaftGroup,
    /// What clients are given.
    pub(super) partition: Arc<Partition>,
    /// Who leads it.
    pub(super) leader: watch::Receiver<Option<Leader>>,
    /// What `partition` was made with.
    pub(super) settings: Settings,
}

impl Hosted {
    /// Whether the replica here leads.
    pub(super) fn leads(&self) -> bool {
        self.leader.borrow().is_some_and(|leader| leader.replica == self.group.replica())
    }
}

/// What a leader claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// Who.
    pub(super) broker: BrokerId,
    /// Its term.
    pub(super) epoch: u64,
    /// Oldest readable offset.
    pub(super) log_start_offset: Offset,
    /// High watermark.
    pub(super) high_watermark: Offset,
    /// Whether most of its voters may be alive.
    pub(super) majority: bool,
    /// Brokers whose replica is alive and not behind.
    pub(super) in_sync: Vec<BrokerId>,
    /// The others, and what they lack.
    pub(super) behind: Vec<Behind>,
}

/// What a broker last said of itself.
#[derive(Clone, Debug, Default)]
struct Speaker {
    incarnation: u64,
    sequence: u64,
    declines: bool,
    kafka_address: Option<String>,
    health: DirectoryHealth,
    claims: BTreeSet<GroupId>,
}

/// The table.
pub(super) struct Routing {
    hosted: RwLock<BTreeMap<GroupId, Hosted>>,
    claims: RwLock<Claims>,
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct Claims {
    by_group: BTreeMap<GroupId, Claim>,
    by_broker: BTreeMap<BrokerId, Speaker>,
}

impl Default for Routing {
    fn default() -> Self {
        Self { hosted: RwLock::default(), claims: RwLock::default(), version: watch::Sender::new(0) }
    }
}

impl Routing {
    /// Something has changed that a waiting request may want to look at again.
    pub(super) fn touch(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// Changes with every [`Self::touch`].
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// A group is hosted here from now on (or under another configuration).
    pub(super) fn host(&self, group: GroupId, hosted: Hosted) {
        self.hosted.write().insert(group, hosted);
        self.touch();
    }

    /// A group is not hosted here any more.
    pub(super) fn unhost(&self, group: GroupId) {
        self.hosted.write().remove(&group);
        self.touch();
    }

    /// A group, if it is hosted here.
    pub(super) fn hosted(&self, group: GroupId) -> Option<Hosted> {
        self.hosted.read().get(&group).cloned()
    }

    /// Every partition's group hosted here.
    pub(super) fn all_hosted(&self) -> Vec<(GroupId, Hosted)> {
        self.hosted.read().iter().map(|(group, hosted)| (*group, hosted.clone())).collect()
    }

    /// What is claimed of a group.
    pub(super) fn claim(&self, group: GroupId) -> Option<Claim> {
        self.claims.read().by_group.get(&group).cloned()
    }

    /// Of these replicas of groups, how many each broker has that are not in sync, by what the leaders claim.
    pub(super) fn lagging_by_broker(
        &self,
        replicas: impl Iterator<Item = (GroupId, BrokerId)>,
    ) -> BTreeMap<BrokerId, u32> {
        let mut counts = BTreeMap::new();
        let claims = self.claims.read();
        for (group, broker) in replicas {
            if claims.by_group.get(&group).is_none_or(|claim| !claim.in_sync.contains(&broker)) {
                *counts.entry(broker).or_default() += 1;
            }
        }
        counts
    }

    /// How many partitions each broker claims to lead.
    pub(super) fn claims_by_broker(&self) -> BTreeMap<BrokerId, u32> {
        let mut counts = BTreeMap::new();
        for claim in self.claims.read().by_group.values() {
            *counts.entry(claim.broker).or_default() += 1;
        }
        counts
    }

    /// Whether a broker said last that it is to be given nothing to lead.
    pub(super) fn declines(&self, broker: BrokerId) -> bool {
        self.claims.read().by_broker.get(&broker).is_some_and(|speaker| speaker.declines)
    }

    /// Where a broker last said that Kafka clients reach it.
    pub(super) fn kafka_address(&self, broker: BrokerId) -> Option<String> {
        self.claims.read().by_broker.get(&broker)?.kafka_address.clone()
    }

    /// Whether a broker has said anything to this process.
    pub(super) fn has_heard(&self, broker: BrokerId) -> bool {
        self.claims.read().by_broker.contains_key(&broker)
    }

    /// Whether this very process of a broker has said anything to this one.
    pub(super) fn has_heard_process(&self, broker: BrokerId, incarnation: u64) -> bool {
        self.claims.read().by_broker.get(&broker).is_some_and(|speaker| speaker.incarnation == incarnation)
    }

    /// What a broker last said of its data directory.
    pub(super) fn directory_health(&self, broker: BrokerId) -> DirectoryHealth {
        self.claims.read().by_broker.get(&broker).map(|speaker| speaker.health.clone()).unwrap_or_default()
    }

    /// Takes in what a broker leads: all of it. An older message than the last is passed over.
    pub(super) fn take_summary(&self, from: BrokerId, summary: Summary) {
        let mut claims = self.claims.write();
        let claims = &mut *claims;
        let speaker = claims.by_broker.entry(from).or_default();
        if speaker.incarnation == summary.incarnation && summary.sequence <= speaker.sequence {
            return;
        }
        // Somebody may wait for its first word.
        let mut moved = speaker.incarnation != summary.incarnation;
        let now: BTreeSet<_> = summary.led.iter().map(|led| led.group).collect();
        for group in speaker.claims.difference(&now) {
            // Unless another has claimed it since.
            if claims.by_group.get(group).is_some_and(|claim| claim.broker == from) {
                claims.by_group.remove(group);
            }
        }
        *speaker = Speaker {
            incarnation: summary.incarnation,
            sequence: summary.sequence,
            declines: summary.declines,
            kafka_address: summary.kafka_address,
            health: summary.health,
            claims: now,
        };
        for Led { group, epoch, log_start_offset, high_watermark, majority, in_sync, behind } in summary.led {
            let known = claims.by_group.get(&group);
            if known.is_some_and(|claim| claim.epoch > epoch) {
                continue;
            }
            moved |= known.is_none_or(|claim| (claim.broker, claim.epoch) != (from, epoch));
            claims.by_group.insert(
                group,
                Claim { broker: from, epoch, log_start_offset, high_watermark, majority, in_sync, behind },
            );
        }
        if moved {
            self.touch();
        }
    }

    /// Forgets groups that are no more.
    pub(super) fn retain(&self, exists: impl Fn(GroupId) -> bool) {
        self.claims.write().by_group.retain(|group, _| exists(*group));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn led(group: u64, epoch: u64) -> Led {
        Led {
            group: GroupId(group),
            epoch,
            log_start_offset: Offset(0),
            high_watermark: Offset(9),
            in_sync: vec![BrokerId(1)],
            majority: true,
            behind: Vec::new(),
        }
    }

    fn say(routing: &Routing, broker: u32, incarnation: u64, sequence: u64, led: Vec<Led>) {
        let health = DirectoryHealth::default();
        let summary = Summary { incarnation, sequence, declines: false, kafka_address: None, health, led };
        routing.take_summary(BrokerId(broker), summary);
    }

    fn leader(routing: &Routing, group: u64) -> Option<(u32, u64)> {
        routing.claim(GroupId(group)).map(|claim| (claim.broker.0, claim.epoch))
    }

    #[test]
    fn the_highest_epoch_wins_whatever_the_order_of_messages() {
        let routing = Routing::default();
        say(&routing, 1, 7, 1, vec![led(5, 1), led(6, 1)]);
        say(&routing, 2, 8, 1, vec![led(5, 2)]);
        say(&routing, 1, 7, 2, vec![led(5, 1), led(6, 1)]);
        assert_eq!((leader(&routing, 5), leader(&routing, 6)), (Some((2, 2)), Some((1, 1))));
    }

    #[test]
    fn who_declines_is_given_nothing_to_lead_until_it_says_otherwise() {
        let routing = Routing::default();
        for (sequence, declines) in [(1, false), (2, true), (3, false)] {
            let (led, health) = (Vec::new(), DirectoryHealth::default());
            let summary = Summary { incarnation: 7, sequence, declines, kafka_address: None, health, led };
            routing.take_summary(BrokerId(1), summary);
            assert_eq!(routing.declines(BrokerId(1)), declines);
        }
        assert!(!routing.declines(BrokerId(2)), "it has said nothing yet");
    }

    #[test]
    fn what_a_broker_no_longer_says_is_no_longer_so() {
        let routing = Routing::default();
        say(&routing, 1, 7, 1, vec![led(5, 1), led(6, 1)]);
        say(&routing, 2, 8, 1, vec![led(6, 2)]);
        say(&routing, 1, 7, 2, vec![]);
        assert_eq!((leader(&routing, 5), leader(&routing, 6)), (None, Some((2, 2))));
    }

    #[test]
    fn an_overtaken_message_is_passed_over_and_a_new_process_is_not() {
        let routing = Routing::default();
        say(&routing, 1, 7, 5, vec![led(5, 3)]);
        say(&routing, 1, 7, 4, vec![]);
        assert_eq!(leader(&routing, 5), Some((1, 3)));
        say(&routing, 1, 9, 1, vec![]);
        assert_eq!(leader(&routing, 5), None);
    }

    #[test]
    fn waiters_are_woken_by_a_new_leader_and_not_by_every_message() {
        let routing = Routing::default();
        let mut version = routing.watch();
        say(&routing, 1, 7, 1, vec![led(5, 1)]);
        assert!(version.has_changed().unwrap());
        version.mark_unchanged();
        say(&routing, 1, 7, 2, vec![led(5, 1)]);
        assert!(!version.has_changed().unwrap());
        say(&routing, 2, 7, 2, vec![led(5, 2)]);
        assert!(version.has_changed().unwrap());
    }
}
