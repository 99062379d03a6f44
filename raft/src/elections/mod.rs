//! Elections after a death: the survivors choose at once, instead of waiting for timers (RULES.md R3, R4).
//!
//! openraft's own timers are the fallback behind this ([`crate::heartbeats`]). What normally happens:
//!
//! 1. Something says that a group has no leader: the detector (its broker died), the leader's own broker (it was
//!    restarted, or its core ended: it renounces), or openraft (a candidate failed, or nobody led when this process started).
//! 2. This broker sends a [`Claim`] for each such group to the brokers of the group's other voters, one report per broker.
//! 3. Once every live voter's claim is there, or [`CLAIMS_WAIT`] has passed, each computes the same winner ([`choose`]), and
//!    the winner's broker tells its core to run (`handle_transfer_leader`): at once if the group is in use, else when it is its
//!    [`turn`](turns). The others go by what the detector says when they are asked for their votes (`raft_groups::door`); only
//!    where the leader's broker lives, and the leader itself gave up, their cores are told as well: it voids that lease.
//! 4. If no leader appears within [`OFFICE_WAIT`], all is repeated, with back-off, and with the next electable replica.
//!
//! Fewer claims than a majority of voters force nothing: whoever cannot see a leader that others see waits. And a receiver
//! of a forced candidate's call for votes goes by its own evidence (`raft_groups::door`).
//!
//! One task, woken by events; a group that has a leader costs nothing here. It never touches a log.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use crate::codec;
use crate::config::RaftConfig;
use crate::raft_group::{RaftGroup, Standing};
use crate::raft_groups::Hosted;
use crate::runtime::random_u64;
use crate::transport::{CALL_BYTES_MAX, Liveness, Transport};
use crate::types::{BrokerId, GroupId, ReplicaId, repr};

pub mod choice;
mod news;
mod orphan;
mod turns;

use choice::{Claim, choose};
use orphan::{Chosen, Orphan};
use turns::{CROWD_WAIT, run_for_leader, turn_elsewhere};

/// How long claims of live voters are waited for.
const CLAIMS_WAIT: Duration = Duration::from_millis(30);
/// How long a winner has to take office before all is repeated.
const OFFICE_WAIT: Duration = Duration::from_millis(300);
/// Longest back-off between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How long a group may be without a leader before it is looked at, when no death was reported: an ordinary election is
/// probably under way.
const SUSPICION_WAIT: Duration = Duration::from_millis(200);
/// A claim older than this says nothing any more.
const CLAIM_AGE_MAX: Duration = Duration::from_secs(1);
/// Nobody is sent the same claim again sooner.
const ECHO_WAIT: Duration = Duration::from_millis(150);
/// A step that has taken so long does not ask further cores.
const STEP_MAX: Duration = Duration::from_millis(50);
/// Groups whose cores are asked at the same time.
const CONCURRENT: usize = 256;
/// Claims in one report; some 32 bytes each.
const CLAIMS_MAX: usize = 8192;
/// How long a peer may take to take a report in.
const REPORT_WAIT: Duration = Duration::from_millis(500);

const _: () = assert!(CLAIMS_MAX * 64 < CALL_BYTES_MAX);

/// The elections of one broker's groups. Shared.
#[derive(Clone)]
pub(crate) struct Elections {
    inner: Arc<Inner>,
}

struct Inner {
    groups: Weak<Hosted>,
    transport: Transport,
    config: Arc<RaftConfig>,
    started: Instant,
    orphans: Mutex<BTreeMap<GroupId, Orphan>>,
    /// How often each broker had come back as another process: that one leads nothing of what the former led.
    replacements: Mutex<BTreeMap<BrokerId, u64>>,
    wake: Notify,
    /// How many wait for their turn to run.
    waiting: AtomicUsize,
}

/// A due group, looked at.
struct Case {
    group: RaftGroup,
    standing: Standing,
}

impl Elections {
    pub(crate) fn new(groups: Weak<Hosted>, transport: Transport, config: Arc<RaftConfig>) -> Self {
        let inner = Inner {
            groups,
            transport,
            config,
            started: Instant::now(),
            orphans: Mutex::default(),
            replacements: Mutex::default(),
            wake: Notify::new(),
            waiting: AtomicUsize::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Runs until the groups are gone.
    pub(crate) async fn run(self) {
        let (candidacies, to_run) = mpsc::unbounded_channel();
        tokio::join!(self.decide_all(candidacies), self.run_in_turn(to_run));
    }

    async fn decide_all(&self, candidacies: mpsc::UnboundedSender<Case>) {
        let mut liveness = self.inner.transport.watch_liveness();
        for peer in self.inner.transport.peers() {
            self.is_replaced(peer);
        }
        let unheard_at = self.inner.started + self.inner.config.silence_max;
        let mut unheard_judged = false;
        while self.inner.groups.upgrade().is_some_and(|groups| !groups.is_closed()) {
            let next = self.inner.orphans.lock().values().map(|orphan| orphan.due).min();
            let now = Instant::now();
            let wake_at = match next {
                _ if self.is_crowded() => now + CROWD_WAIT,
                next => next.unwrap_or(now + BACKOFF_MAX),
            };
            tokio::select! {
                biased;
                event = liveness.recv() => match event {
                    Ok((broker, change)) => self.liveness_changed(broker, change),
                    Err(RecvError::Lagged(_)) => self.news_were_missed(),
                    Err(RecvError::Closed) => return,
                },
                () = sleep_until(unheard_at), if !unheard_judged => {
                    // Brokers that nobody has heard of since this process started count as dead from now on.
                    unheard_judged = true;
                    self.suspect_all();
                }
                () = self.inner.wake.notified() => {}
                () = sleep_until(wake_at) => {}
            }
            // All that is known already, before anything is judged.
            loop {
                match liveness.try_recv() {
                    Ok((broker, change)) => self.liveness_changed(broker, change),
                    Err(TryRecvError::Lagged(_)) => self.news_were_missed(),
                    Err(_) => break,
                }
            }
            self.step(&candidacies).await;
        }
    }

    /// This broker's detector holds that one dead: it said so, or was never heard of for as long as silence may last.
    pub(crate) fn is_dead(&self, broker: BrokerId) -> bool {
        match self.inner.transport.liveness(broker) {
            Liveness::Alive => false,
            Liveness::Dead => true,
            Liveness::Unknown => self.inner.started.elapsed() > self.inner.config.silence_max,
        }
    }

    /// This group seems to have no leader. Looked at after [`SUSPICION_WAIT`], unless that resolves itself.
    pub(crate) fn suspect(&self, group: GroupId) {
        let due = Instant::now() + SUSPICION_WAIT;
        self.inner.orphans.lock().entry(group).or_insert_with(|| Orphan::new(due));
        self.inner.wake.notify_one();
    }

    fn suspect_all(&self) {
        let Some(groups) = self.inner.groups.upgrade() else { return };
        let now = Instant::now();
        let mut orphans = self.inner.orphans.lock();
        for group in groups.all() {
            orphans.entry(group.group()).or_insert_with(|| Orphan::new(now));
        }
    }

    /// The group is hosted here no more.
    pub(crate) fn forget(&self, group: GroupId) {
        self.inner.orphans.lock().remove(&group);
    }

    /// Takes in what a peer claims. `Err` if it is no report.
    pub(crate) fn take_report(&self, from: BrokerId, body: &Bytes) -> Result<(), String> {
        let claims: Vec<Claim> = codec::decode(body).map_err(|error| error.to_string())?;
        let Some(groups) = self.inner.groups.upgrade() else { return Ok(()) };
        let now = Instant::now();
        for claim in claims {
            let Some(group) = groups.get(claim.group) else { continue };
            // A broker speaks for its own replicas only.
            if group.home_of(claim.replica) != Some(from) {
                continue;
            }
            let mut orphans = self.inner.orphans.lock();
            let orphan = orphans.entry(claim.group).or_insert_with(|| Orphan::new(now));
            orphan.hear(claim, now);
        }
        self.inner.wake.notify_one();
        Ok(())
    }

    /// Looks at every group that is due: reports, decides, acts.
    async fn step(&self, candidacies: &mpsc::UnboundedSender<Case>) {
        // So many at a time: with thousands of groups, or cores that do not answer, the claims on the first would be stale by the time
        // the last has been asked. What is left when it takes long is due still, after the news that came meanwhile.
        // And of those that are not in use so many as can run soon: more would take the time from those that run.
        let began = Instant::now();
        let crowded = self.is_crowded();
        for some in self.due_groups(crowded).chunks(CONCURRENT) {
            self.step_some(some, candidacies).await;
            if began.elapsed() > STEP_MAX || self.is_crowded() != crowded {
                return;
            }
        }
    }

    async fn step_some(&self, due: &[(GroupId, Option<RaftGroup>)], candidacies: &mpsc::UnboundedSender<Case>) {
        let cases = self.cases(due).await;
        self.report(&cases);
        for case in cases {
            let Some((winner, case)) = self.decide(case) else { continue };
            if winner == case.group.replica() && case.group.is_in_use() {
                if self.begins(&case) {
                    tokio::spawn(run_for_leader(case, None));
                }
            } else if winner == case.group.replica() {
                self.queue(case, candidacies);
            } else if !self.died(&case) {
                // The lease of a leader that lives must be given up in the core, too: what its broker said is not known there.
                // Apart from this task: a core that does not answer must not keep the others waiting.
                tokio::spawn(async move { case.group.elect(&case.standing, winner).await });
            }
        }
    }

    /// Whether the leader of a case died with its broker: then the door lets its successor skip the lease.
    fn died(&self, case: &Case) -> bool {
        let leader = case.standing.vote.leader_id.voted_for;
        let home = case.standing.membership.get_node(&leader).map(|home| home.broker);
        home.is_some_and(|home| home != self.inner.transport.broker() && self.is_dead(home))
    }

    /// The groups that are due, the most urgent first, in the reports and in the elections; those whose cores did not answer last.
    /// `in_use`: no others.
    fn due_groups(&self, in_use: bool) -> Vec<(GroupId, Option<RaftGroup>)> {
        let Some(groups) = self.inner.groups.upgrade() else { return Vec::new() };
        let now = Instant::now();
        let mut due: Vec<_> = {
            let orphans = self.inner.orphans.lock();
            let due = orphans.iter().filter(|(_, orphan)| orphan.due <= now);
            due.map(|(group, orphan)| (orphan.silent, (*group, groups.get(*group)))).collect()
        };
        due.retain(|(_, (_, group))| !in_use || group.as_ref().is_none_or(RaftGroup::is_in_use));
        most_urgent_first(&mut due, |(silent, (_, group))| (!silent, group.as_ref().map(RaftGroup::urgency)));
        due.into_iter().map(|(_, due)| due).collect()
    }

    /// In which order all groups would be looked at, were they due and these silent.
    #[cfg(test)]
    pub(crate) fn order_of_all(&self, silent: &[GroupId]) -> Vec<GroupId> {
        self.suspect_all();
        for (group, orphan) in self.inner.orphans.lock().iter_mut() {
            (orphan.due, orphan.silent) = (Instant::now(), silent.contains(group));
        }
        self.due_groups(false).into_iter().map(|(group, _)| group).collect()
    }

    /// Whether this broker would run for a group now that it was told to run for a while ago.
    #[cfg(test)]
    pub(crate) async fn would_run(&self, group: &RaftGroup) -> bool {
        let case = Case { group: group.clone(), standing: group.standing().await.unwrap() };
        self.suspect(group.group());
        let chosen = Chosen { ended: Some(case.standing.vote.leader_id.term), home: self.inner.transport.broker() };
        self.inner.orphans.lock().get_mut(&group.group()).unwrap().choose(chosen);
        self.begins(&case)
    }

    /// Hears of a broker; whether a group is looked at at once for that.
    #[cfg(test)]
    pub(crate) fn looks_at_news(&self, broker: BrokerId, change: Liveness, group: GroupId) -> bool {
        self.liveness_changed(broker, change);
        self.inner.orphans.lock().get(&group).is_some_and(|orphan| orphan.due <= Instant::now())
    }

    /// Those of them that have no leader, each with its own claim noted. The others are dismissed.
    async fn cases(&self, due: &[(GroupId, Option<RaftGroup>)]) -> Vec<Case> {
        let look = |(id, group): (GroupId, Option<RaftGroup>)| async move {
            let standing = match &group {
                Some(group) => group.standing().await,
                None => None,
            };
            (id, group, standing)
        };
        let seen: Vec<_> = stream::iter(due.to_vec()).map(look).buffered(CONCURRENT).collect().await;
        seen.into_iter().filter_map(|(id, group, standing)| self.judge(id, group, standing)).collect()
    }

    fn judge(&self, id: GroupId, group: Option<RaftGroup>, standing: Option<Standing>) -> Option<Case> {
        let mut orphans = self.inner.orphans.lock();
        let Some(group) = group else {
            orphans.remove(&id);
            return None;
        };
        let now = Instant::now();
        let orphan = orphans.get_mut(&id)?;
        let Some(standing) = standing else {
            // Its core is busy, stuck on a disk, or being started again. What peers claim is kept.
            orphan.due = now + BACKOFF_MAX;
            orphan.silent = true;
            return None;
        };
        orphan.silent = false;
        let voter = standing.membership.voter_ids().any(|replica| replica == group.replica());
        if standing.leads || !voter || !self.leaderless(&group, &standing, orphan) {
            // Claims of others may be ahead of this broker's detector: they are kept until they are stale.
            match orphan.fresh_until(now) {
                Some(stale_at) if voter && !standing.leads => orphan.rest_until(stale_at),
                _ => drop(orphans.remove(&id)),
            }
            drop(orphans);
            if group.orphaned_term() != 0 {
                group.set_orphaned(0);
            }
            return None;
        }
        let last = standing.last.map(repr::LogId::from);
        orphan.opened(Claim { group: id, replica: group.replica(), vote: standing.vote.into(), last, able: true }, now);
        drop(orphans);
        if standing.vote.committed {
            group.set_orphaned(standing.vote.leader_id.term);
        }
        Some(Case { group, standing })
    }

    fn leaderless(&self, group: &RaftGroup, standing: &Standing, orphan: &Orphan) -> bool {
        let leader = standing.vote.leader_id;
        if !standing.vote.committed {
            return true;
        }
        if group.released_term() >= leader.term || orphan.renounced(leader.voted_for, leader.term, Instant::now()) {
            return true;
        }
        match standing.membership.get_node(&leader.voted_for) {
            // Back already as another process, which this task has not heard yet: what the former one led, nobody leads.
            Some(home) if home.broker != self.inner.transport.broker() => {
                self.is_dead(home.broker)
                    || (group.orphaned_term() >= leader.term && self.is_replaced_unnoticed(home.broker))
            }
            // Our own former replica, or a leader that is no member any more: openraft's timers decide.
            _ => false,
        }
    }

    /// Sends this broker's claims to the other voters' brokers, one message per broker.
    fn report(&self, cases: &[Case]) {
        let mut outgoing: BTreeMap<BrokerId, Vec<Claim>> = BTreeMap::new();
        let now = Instant::now();
        let mut orphans = self.inner.orphans.lock();
        for case in cases {
            let Some(orphan) = orphans.get_mut(&case.group.group()) else { continue };
            let Some(claim) = orphan.claim_of(case.group.replica()) else { continue };
            for (_, broker) in other_voters(case) {
                if !self.is_dead(broker) && orphan.owes_report(broker, now) {
                    outgoing.entry(broker).or_default().push(claim);
                }
            }
        }
        drop(orphans);
        for (broker, claims) in outgoing {
            tokio::spawn(send(self.inner.transport.clone(), broker, claims));
        }
    }

    /// Tells the other members' brokers that what these groups' cores led here nobody leads now: they have ended. Waits
    /// until it was said, or cannot be.
    pub(crate) async fn renounce(&self, led: &[(RaftGroup, u64)]) {
        let mut outgoing: BTreeMap<BrokerId, Vec<Claim>> = BTreeMap::new();
        for (group, term) in led {
            let vote = repr::Vote(*term, group.replica(), true);
            let claim = Claim { group: group.group(), replica: group.replica(), vote, last: None, able: false };
            for member in group.status().members.values().filter(|member| member.voter) {
                if member.broker != self.inner.transport.broker() && !self.is_dead(member.broker) {
                    outgoing.entry(member.broker).or_default().push(claim);
                }
            }
        }
        let sent = outgoing.into_iter().map(|(broker, claims)| send(self.inner.transport.clone(), broker, claims));
        futures_util::future::join_all(sent).await;
    }

    /// What this broker does about a group without a leader now: whom it elects, if anybody.
    fn decide(&self, case: Case) -> Option<(ReplicaId, Case)> {
        let now = Instant::now();
        let mut orphans = self.inner.orphans.lock();
        let waiting = orphans.len();
        let orphan = orphans.get_mut(&case.group.group())?;
        let claims = orphan.fresh_claims(now);
        let live_voters = other_voters(&case).filter(|(_, broker)| !self.is_dead(*broker));
        let complete = live_voters.map(|(replica, _)| replica).all(|replica| claims.contains_key(&replica));
        if !complete && now < orphan.wait_until {
            orphan.due = orphan.wait_until;
            return None;
        }
        let Some(winner) = choose(&claims, case.standing.membership.get_joint_config(), orphan.attempt) else {
            orphan.undecided(now, jitter());
            return None;
        };
        let vote = &case.standing.vote;
        let home = case.standing.membership.get_node(&winner).map(|home| home.broker)?;
        orphan.choose(Chosen { ended: vote.committed.then_some(vote.leader_id.term), home });
        match winner == case.group.replica() {
            true => orphan.queued(now),
            false => orphan.decided(now, jitter() + turn_elsewhere(waiting)),
        }
        tracing::debug!(group = case.group.group().0, %winner, claims = claims.len(), "elects");
        Some((winner, case))
    }
}

/// So that those who decide the same do not do so again at the same moment.
fn jitter() -> Duration {
    Duration::from_millis(random_u64() % 50)
}

/// Each one's urgency is asked once: it changes with time and with every use, and a sort that compares what changes panics.
fn most_urgent_first<T, U: Ord>(cases: &mut [T], urgency: impl Fn(&T) -> U) {
    cases.sort_by_cached_key(|case| std::cmp::Reverse(urgency(case)));
}

async fn send(transport: Transport, broker: BrokerId, claims: Vec<Claim>) {
    for part in claims.chunks(CLAIMS_MAX) {
        let body = Bytes::from(codec::encode(&part));
        if let Err(error) = transport.report(broker, body, REPORT_WAIT).await {
            tracing::debug!(broker = broker.0, %error, "report not delivered");
            return;
        }
    }
}

fn other_voters(case: &Case) -> impl Iterator<Item = (ReplicaId, BrokerId)> {
    let membership = &case.standing.membership;
    let own = case.group.replica();
    membership
        .voter_ids()
        .filter(move |id| *id != own)
        .filter_map(|id| membership.get_node(&id).map(|home| (id, home.broker)))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::most_urgent_first;

    #[test]
    fn urgencies_may_change_while_the_cases_are_sorted() {
        let state = Cell::new(1_u64);
        let another = |_: &u64| {
            state.set(state.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
            state.get() >> 33
        };
        for count in 0..400 {
            let mut cases: Vec<u64> = (0..count).collect();
            most_urgent_first(&mut cases, another);
            cases.sort();
            assert_eq!(cases, (0..count).collect::<Vec<_>>());
        }
        let mut cases = [3, 9, 1];
        most_urgent_first(&mut cases, |case| *case);
        assert_eq!(cases, [9, 3, 1]);
    }
}
