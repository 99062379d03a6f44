//! What this broker leads, told to every other broker: about once a second, and at once when it changes.
//!
//! One message per peer holds all of it; if a peer is slow only the newest is sent. So any broker can route to and
//! describe any partition without asking. Whether a replica is *in sync* is judged here, by the leader.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use pontoon_raft::raft_group::GroupStatus;
use pontoon_raft::transport::Liveness;
use pontoon_raft::types::{BrokerId, GroupId, Offset};
use pontoon_raft::vital::vital;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::peer::{self, PeerRequest};
use super::routing::Hosted;
use super::shared::Shared;

/// How often a summary is made if nothing happens.
const INTERVAL: Duration = Duration::from_secs(1);
/// And how soon another one is, while a follower that moves has not been heard of by its new leader: it is a matter of a round trip.
const FRESH: Duration = Duration::from_millis(100);
/// Changes of leadership within this go into one summary.
const GATHER: Duration = Duration::from_millis(5);
/// And within so many times as long as the last one took to make: after a death thousands change, one after the other, and each summary
/// holds all that is led. Those who host a replica know its leader without.
const GATHER_FACTOR: u32 = 4;
/// How long a peer may take to take a summary.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// A replica is in sync if it has by now what its leader had so long ago.
const IN_SYNC_WITHIN: Duration = Duration::from_secs(2);

/// A round of the journal that lasts longer is a stall (RULES.md J18).
const STALL: Duration = Duration::from_secs(1);
/// So long after a stall a broker is given nothing to lead: it would most likely hand it over again.
const STALL_PAUSE: Duration = Duration::from_secs(10);
/// A follower that has taken nothing for so long is stalled.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(5);

/// All that a broker leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Summary {
    /// The process that says it.
    pub(super) incarnation: u64,
    /// Counts up within a process.
    pub(super) sequence: u64,
    /// Give it nothing to lead: it is about to stop, or its disk stalls.
    pub(super) declines: bool,
    /// Where Kafka clients reach it, `host:port`, if they do.
    pub(super) kafka_address: Option<String>,
    /// What there is to tell of its data directory.
    pub(super) health: DirectoryHealth,
    /// Every partition it leads.
    pub(super) led: Vec<Led>,
}

/// What there is to tell of a data directory, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DirectoryHealth {
    /// What is rotten there, in words (RULES.md R7).
    pub(super) damage: Vec<String>,
    /// Folders that are kept there: nothing waits for them.
    pub(super) kept: Vec<String>,
    /// What was rotten there since the broker started and is whole again, in words.
    pub(super) healed: Vec<String>,
}

/// A partition that a broker leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Led {
    /// Its group.
    pub(super) group: GroupId,
    /// The leader's term.
    pub(super) epoch: u64,
    /// Oldest readable offset.
    pub(super) log_start_offset: Offset,
    /// High watermark.
    pub(super) high_watermark: Offset,
    /// Whether most of its voters may be alive: without nothing is written.
    pub(super) majority: bool,
    /// Brokers whose replica is alive and not behind.
    pub(super) in_sync: Vec<BrokerId>,
    /// The other members, and what they lack.
    pub(super) behind: Vec<Behind>,
}

/// A replica that is not in sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Behind {
    /// Its broker.
    pub(super) broker: BrokerId,
    /// Records and bytes that it lacks, about; `None`: the leader has not heard of it since it leads.
    pub(super) lag: Option<(u64, u64)>,
    /// It has taken something within the last few seconds.
    pub(super) moves: bool,
}

/// How far each follower was when it last moved.
#[derive(Default)]
pub(super) struct Followers(BTreeMap<(GroupId, BrokerId), (Option<u64>, Instant)>);

impl Followers {
    /// Notes how far a follower is; returns whether it has moved lately (a new one is given the time to).
    fn moves(&mut self, key: (GroupId, BrokerId), matched: Option<u64>, now: Instant) -> bool {
        let seen = self.0.entry(key).or_insert((matched, now));
        if seen.0 != matched {
            *seen = (matched, now);
        }
        now.duration_since(seen.1) < STALLED_AFTER
    }
}

/// When the disk here last stalled.
#[derive(Default)]
struct Stalls(Option<Instant>);

impl Stalls {
    /// Notes how long a round of the journal has lasted by now; returns whether the disk stalls or has just done so. A stalled broker
    /// hands over what it leads, which has a summary made at once: before anybody thinks of giving it back.
    fn note(&mut self, lasts: Duration, now: Instant) -> bool {
        if lasts > STALL {
            self.0 = Some(now);
        }
        self.0.is_some_and(|last| now.duration_since(last) < STALL_PAUSE)
    }
}

/// Where each led group's log ended lately: what a follower must have to count as in sync.
#[derive(Default)]
pub(super) struct History(BTreeMap<GroupId, VecDeque<(Instant, u64)>>);

impl History {
    /// Notes where the log ends now; returns where it ended [`IN_SYNC_WITHIN`] ago (or when first seen).
    pub(super) fn note(&mut self, group: GroupId, last_index: u64, now: Instant) -> u64 {
        let ends = self.0.entry(group).or_default();
        while ends.len() > 1 && ends.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= IN_SYNC_WITHIN) {
            ends.pop_front();
        }
        // Leadership changes may ask often; a few points a second are enough.
        if ends.back().is_none_or(|(at, _)| now.duration_since(*at) >= INTERVAL / 4) {
            ends.push_back((now, last_index));
        }
        ends.front().map_or(0, |(_, index)| *index)
    }

    /// How many groups are noted.
    pub(super) fn groups(&self) -> usize {
        self.0.len()
    }

    /// Forgets every other group.
    pub(super) fn retain(&mut self, keep: impl Fn(GroupId) -> bool) {
        self.0.retain(|group, _| keep(*group));
    }

    /// Forgets a group: what is noted of it next is its first.
    pub(super) fn forget(&mut self, group: GroupId) {
        self.0.remove(&group);
    }
}

/// The brokers that are in sync, given what they must have: voters only, the leader always.
fn in_sync(status: &GroupStatus, own: BrokerId, needed: u64, alive: impl Fn(BrokerId) -> bool) -> Vec<BrokerId> {
    let voters = status.members.values().filter(|member| member.voter);
    let level = voters.filter(|member| {
        member.broker == own || (alive(member.broker) && member.matched.is_some_and(|matched| matched >= needed))
    });
    let mut brokers: Vec<_> = level.map(|member| member.broker).collect();
    brokers.sort_unstable();
    brokers
}

/// The members that are not in sync, learners among them, and what they lack.
fn behind(
    hosted: &Hosted,
    status: &GroupStatus,
    in_sync: &[BrokerId],
    alive: impl Fn(BrokerId) -> bool,
    followers: &mut Followers,
    now: Instant,
) -> Vec<Behind> {
    let late = status.members.values().filter(|member| !in_sync.contains(&member.broker));
    let late = late.map(|member| {
        let lag = member.matched.map(|matched| hosted.group.log().lag_of(Some(matched)));
        let key = (hosted.group.group(), member.broker);
        let moves = alive(member.broker) && followers.moves(key, member.matched, now);
        if !alive(member.broker) {
            // Once it is back it has the time that a new one has.
            followers.0.remove(&key);
        }
        Behind { broker: member.broker, lag: lag.map(|lag| (lag.records, lag.bytes)), moves }
    });
    late.collect()
}

/// Most lines of each kind that are told of one broker's data directory.
const LINES_MAX: usize = 100;

impl Shared {
    /// What there is to tell of the data directory here.
    pub(super) fn directory_health(&self) -> DirectoryHealth {
        let kept = self.store.quarantined().iter().take(LINES_MAX).map(|path| path.display().to_string()).collect();
        let mut healed = self.healed();
        healed.truncate(LINES_MAX);
        DirectoryHealth { damage: self.damage(), kept, healed }
    }

    /// What was rotten here since this process started, and is whole again.
    pub(super) fn healed(&self) -> Vec<String> {
        let tables = self.catalog.rotten_tables().map(|why| {
            format!("the catalog's tables were rotten ({why}), of which a power cut may be the cause; made anew")
        });
        tables.into_iter().chain(self.store.healed().iter().map(ToString::to_string)).collect()
    }

    fn damage(&self) -> Vec<String> {
        let state = self.catalog.state();
        let name = |group: GroupId| match state.group(group) {
            Some(home) => {
                let topic = state.topics().get(&home.topic).map_or("?", |topic| topic.name.as_str());
                format!("{topic}/{}", home.partition)
            }
            None => format!("group {group}"),
        };
        let mut damage = Vec::new();
        for replica in self.store.rotten() {
            for rot in replica.rot {
                let outlook = rot.outlook.unwrap_or_else(|| "being repaired".to_owned());
                let (file, position) = (rot.file.display(), rot.position);
                damage.push(format!("{}: {file} is rotten at {position}: {}; {outlook}", name(replica.group), rot.why));
            }
        }
        for corrupt in self.store.corrupt() {
            damage.push(format!(
                "{}: replica {} cannot be opened: {}",
                name(corrupt.group),
                corrupt.replica,
                corrupt.why
            ));
        }
        damage.extend(self.store.scrub_findings().iter().map(|(path, why)| format!("{}: {why}", path.display())));
        damage.truncate(LINES_MAX);
        damage
    }

    /// Everything this broker leads now.
    pub(super) fn led(&self, history: &mut History, followers: &mut Followers) -> Vec<Led> {
        let now = Instant::now();
        // What a replica had when its broker went it has again, but nobody should take the next one away before it runs.
        let serves = |broker| self.serves(broker);
        let mut led = Vec::new();
        let mut seen = BTreeMap::new();
        for (group, hosted) in self.routing.all_hosted() {
            let leader = *hosted.leader.borrow();
            let Some(leader) = leader.filter(|leader| leader.replica == hosted.group.replica()) else { continue };
            let status = hosted.group.status();
            let needed = history.note(group, status.last_index.unwrap_or(0), now);
            if let Some(ends) = history.0.remove(&group) {
                seen.insert(group, ends);
            }
            let in_sync = in_sync(&status, self.broker, needed, serves);
            let behind = behind(&hosted, &status, &in_sync, |broker| self.alive(broker), followers, now);
            led.push(Led {
                group,
                epoch: leader.term,
                log_start_offset: hosted.group.log().log_start_offset(),
                high_watermark: hosted.group.log().high_watermark(),
                majority: hosted.group.may_have_majority(),
                in_sync,
                behind,
            });
        }
        // Who has caught up, or is led by others now, is forgotten.
        let lags = |(group, broker): &(GroupId, BrokerId)| {
            led.binary_search_by_key(group, |led| led.group)
                .is_ok_and(|at| led[at].behind.iter().any(|behind| behind.broker == *broker))
        };
        followers.0.retain(|key, _| lags(key));
        history.0 = seen; // What is no longer led is forgotten.
        led
    }
}

/// Makes summaries and sends them to every peer, until `stop` says so; the last one says that the broker is stopping.
pub(super) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let newest = watch::Sender::new(Arc::new(Summary {
        incarnation: shared.incarnation,
        sequence: 0,
        declines: false,
        kafka_address: shared.kafka_address(),
        health: DirectoryHealth::default(),
        led: Vec::new(),
    }));
    let (mut history, mut followers, mut stalls) = (History::default(), Followers::default(), Stalls::default());
    let mut senders: BTreeMap<BrokerId, tokio::task::AbortHandle> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let began = Instant::now();
        let led = shared.led(&mut history, &mut followers);
        let fresh = led.iter().flat_map(|led| &led.behind).any(|behind| behind.moves && behind.lag.is_none());
        let declines = stalls.note(shared.store.stalled_for(), began) || shared.stopping();
        let health = shared.directory_health();
        newest.send_if_modified(|summary| {
            let changed = (&summary.led, summary.declines, &summary.health) != (&led, declines, &health);
            if changed {
                let sequence = summary.sequence + 1;
                let kafka_address = summary.kafka_address.clone();
                let (incarnation, led, health) = (shared.incarnation, led.clone(), health.clone());
                *summary = Arc::new(Summary { incarnation, sequence, declines, kafka_address, health, led });
                // Its own claims stand in the table like everybody's.
                shared.routing.take_summary(shared.broker, (**summary).clone());
            }
            changed
        });
        let peers = shared.peers();
        senders.retain(|peer, sender| {
            peers.contains(peer) || {
                sender.abort();
                false
            }
        });
        for peer in peers {
            let start = || {
                let (sending, failing) = (send(shared.clone(), peer, newest.subscribe()), shared.clone());
                tasks.spawn(vital("summaries", move |why| failing.fail(why.to_owned()), sending))
            };
            senders.entry(peer).or_insert_with(start);
        }
        let took = began.elapsed();
        let next = match fresh {
            true => (took * GATHER_FACTOR).clamp(FRESH, INTERVAL),
            false => INTERVAL,
        };
        let woken = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = shared.leadership_changed.notified() => true,
            () = sleep(next) => false,
        };
        if woken {
            let gathered = sleep((took * GATHER_FACTOR).clamp(GATHER, INTERVAL));
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = gathered => {}
            }
        }
    }
}

/// Sends one peer the newest summary, whenever there is a newer one or the peer has not taken the last.
async fn send(shared: Arc<Shared>, peer: BrokerId, mut newest: watch::Receiver<Arc<Summary>>) {
    let mut liveness = shared.groups.transport().watch_liveness();
    loop {
        let summary = newest.borrow_and_update().clone();
        let request = PeerRequest::Summary((*summary).clone());
        if peer::call(shared.groups.transport(), peer, &request, CALL_TIMEOUT).await.is_err() {
            // It may be away for long: try again when it is back, when there is news, or after a while.
            let reason = async {
                tokio::select! {
                    _ = newest.changed() => {}
                    () = alive_again(&mut liveness, peer) => {}
                }
            };
            let _ = timeout(INTERVAL, reason).await;
            continue;
        }
        shared.summary_taken(peer, summary.declines);
        tokio::select! {
            changed = newest.changed() => if changed.is_err() { return },
            // A peer that was restarted knows nothing any more.
            () = alive_again(&mut liveness, peer) => {}
        }
    }
}

/// Resolves when a peer comes to life; never, once nobody watches peers any more.
async fn alive_again(liveness: &mut broadcast::Receiver<(BrokerId, Liveness)>, peer: BrokerId) {
    loop {
        match liveness.recv().await {
            Ok((broker, Liveness::Alive)) if broker == peer => return,
            Err(RecvError::Closed) => std::future::pending().await,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use pontoon_raft::raft_group::Member;
    use pontoon_raft::types::ReplicaId;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_follower_needs_what_the_leader_had_a_while_ago() {
        let mut history = History::default();
        let group = GroupId(1);
        assert_eq!(history.note(group, 10, Instant::now()), 10);
        for second in 1..10u64 {
            tokio::time::advance(Duration::from_secs(1)).await;
            let needed = history.note(group, 10 + second * 100, Instant::now());
            assert_eq!(needed, if second < 3 { 10 } else { 10 + (second - 2) * 100 }, "second {second}");
        }
        for _ in 0..100 {
            history.note(group, 5000, Instant::now());
        }
        assert!(history.0[&group].len() < 8, "asking often costs nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_declines_to_lead_while_its_disk_stalls_and_for_a_while_after() {
        let (mut stalls, start) = (Stalls::default(), Instant::now());
        assert!(!stalls.note(STALL, start), "slow");
        assert!(stalls.note(STALL * 2, start));
        assert!(stalls.note(STALL * 9, start + STALL * 7));
        let over = start + STALL * 7 + STALL_PAUSE;
        assert!(stalls.note(Duration::ZERO, over - Duration::from_millis(1)));
        assert!(!stalls.note(Duration::ZERO, over));
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_that_takes_nothing_for_a_while_is_stalled() {
        let mut followers = Followers::default();
        let mut moves = |matched| followers.moves((GroupId(1), BrokerId(2)), matched, Instant::now());
        assert!(moves(None), "it has just been seen");
        tokio::time::advance(STALLED_AFTER).await;
        assert!(!moves(None) && moves(Some(7)));
        tokio::time::advance(STALLED_AFTER - Duration::from_millis(1)).await;
        assert!(moves(Some(7)));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!moves(Some(7)));
    }

    #[test]
    fn in_sync_are_the_leader_and_those_alive_and_level() {
        let member = |broker: u32, voter, matched| Member { broker: BrokerId(broker), voter, matched };
        let members = [
            member(3, true, None),
            member(1, true, Some(100)),
            member(2, true, Some(99)),
            member(4, true, Some(200)),
            member(5, false, Some(200)),
        ];
        let status = GroupStatus {
            leader: None,
            leading: true,
            term: 1,
            last_index: Some(200),
            applied_index: None,
            members: (1..).map(ReplicaId).zip(members).collect(),
            joint: false,
            stopped: None,
        };
        let found = in_sync(&status, BrokerId(3), 100, |broker| broker != BrokerId(4));
        assert_eq!(found, [BrokerId(1), BrokerId(3)], "2 is behind, 4 is dead, 5 does not vote");
    }
}
