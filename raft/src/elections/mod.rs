//! Elections after a death: the survivors choose at once, instead of waiting for timers (RULES.md R3, R4).
//!
//! openraft ticks slowly; that is the fallback. What normally happens:
//!
//! 1. Something says that a group has no leader: the detector (its broker died), the leader's own broker (it was
//!    restarted, or its core ended: it renounces), or openraft (a candidate failed, or nobody led when this process started).
//! 2. This broker sends a [`Claim`] for each such group to the brokers of the group's other voters, one report per broker.
//! 3. Once every live voter's claim is there, or [`CLAIMS_WAIT`] has passed, each computes the same winner ([`choose`])
//!    and tells its own core (`handle_transfer_leader`): that voids the lease of the dead leader, and the winner runs.
//!    For groups that are not in use a broker runs in no more than [`RUNNING_MAX`] at a time: a thousand at once would all
//!    end with the last one, and what is in use would wait for what is not.
//! 4. If no leader appears within [`OFFICE_WAIT`], all is repeated, with back-off, and with the next electable replica.
//!
//! Fewer claims than a majority of voters force nothing: whoever cannot see a leader that others see waits. And a receiver
//! of a forced candidate's call for votes goes by its own evidence (`raft_groups::door`).
//!
//! One task, woken by events; a group that has a leader costs nothing here. It never touches a log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};

use crate::codec;
use crate::config::RaftConfig;
use crate::raft_group::{Leader, RaftGroup, Standing};
use crate::raft_groups::Hosted;
use crate::runtime::random_u64;
use crate::transport::{CALL_BYTES_MAX, Liveness, Transport};
use crate::types::{BrokerId, GroupId, ReplicaId, repr};

pub mod choice;
mod orphan;

use choice::{Claim, choose};
use orphan::Orphan;

/// How long claims of live voters are waited for.
const CLAIMS_WAIT: Duration = Duration::from_millis(30);
/// How long a winner has to take office before all is repeated.
const OFFICE_WAIT: Duration = Duration::from_millis(300);
/// A group that waits longer for its turn here is looked at again.
const TURN_WAIT: Duration = Duration::from_secs(2);
/// How long each group that waits before it may hold up one whose turn is elsewhere.
const TURN_EACH: Duration = Duration::from_millis(1);
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
/// Elections of groups that are not in use in which this broker's replicas run at the same time.
const RUNNING_MAX: usize = 32;
/// Before more such groups are looked at, while that many wait to run.
const CROWD_WAIT: Duration = Duration::from_millis(10);
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
    /// Processes seen: a broker that comes back as another one leads nothing of what it led.
    incarnations: Mutex<BTreeMap<BrokerId, u64>>,
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
            incarnations: Mutex::default(),
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
            self.note_incarnation(peer);
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

    /// Who died, and who came back, is seen by what the detector says now.
    fn news_were_missed(&self) {
        self.suspect_all();
        let Some(groups) = self.inner.groups.upgrade() else { return };
        let alive = |peer: &BrokerId| self.inner.transport.liveness(*peer) == Liveness::Alive;
        for peer in self.inner.transport.peers().into_iter().filter(alive) {
            self.broker_came(&groups, peer);
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

    fn liveness_changed(&self, broker: BrokerId, change: Liveness) {
        tracing::debug!(broker = broker.0, ?change, "liveness");
        let Some(groups) = self.inner.groups.upgrade() else { return };
        match change {
            Liveness::Dead => self.broker_died(&groups, broker),
            Liveness::Alive => self.broker_came(&groups, broker),
            Liveness::Unknown => {}
        }
    }

    fn broker_died(&self, groups: &Hosted, broker: BrokerId) {
        let now = Instant::now();
        let mut orphans = self.inner.orphans.lock();
        for group in groups.all() {
            let Some(leader) = group.voted_leader() else { continue };
            if leader.broker == broker && leader.replica != group.replica() {
                group.set_orphaned(leader.term);
                orphans.entry(group.group()).or_insert_with(|| Orphan::new(now)).look_at(now);
            }
        }
    }

    fn broker_came(&self, groups: &Hosted, broker: BrokerId) {
        let replaced = self.note_incarnation(broker);
        let now = Instant::now();
        for group in groups.all() {
            let orphaned = group.orphaned_term();
            if let Some(leader) =
                group.voted_leader().filter(|leader| leader.broker == broker && leader.term == orphaned)
            {
                // Another process: what the former one led, nobody leads (RULES.md R1). The same one: it was a false alarm.
                if replaced {
                    group.release(leader.term);
                }
                group.set_orphaned(0);
            }
            let mut orphans = self.inner.orphans.lock();
            if let Some(orphan) = orphans.get_mut(&group.group()) {
                orphan.look_at(now);
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
        let reachable = |member: &crate::raft_group::Member| {
            member.broker == self.inner.transport.broker() || !self.is_dead(member.broker)
        };
        let voters: Vec<_> = members.values().filter(|member| member.voter).collect();
        let quorum = voters.iter().filter(|member| reachable(member)).count() * 2 > voters.len();
        if let (true, Some(standing)) = (quorum, group.standing().await)
            && standing.leads
        {
            group.step_through(&standing).await;
        }
    }

    /// Remembers which process a broker is; whether it is another than before.
    fn note_incarnation(&self, broker: BrokerId) -> bool {
        let Some(now) = self.inner.transport.peer_status(broker).and_then(|status| status.incarnation) else {
            return false;
        };
        self.inner.incarnations.lock().insert(broker, now).is_some_and(|before| before != now)
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

    fn is_crowded(&self) -> bool {
        self.inner.waiting.load(Ordering::Relaxed) > RUNNING_MAX
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
                self.inner.waiting.fetch_add(1, Ordering::Relaxed);
                // Closed is only what is over.
                let _ = candidacies.send(case);
            } else if !self.died(&case) {
                // The lease of a leader that lives must be given up in the core, too: what its broker said is not known there.
                // Apart from this task: a core that does not answer must not keep the others waiting.
                tokio::spawn(async move { case.group.elect(&case.standing, winner).await });
            }
        }
    }

    /// Runs for what this broker shall lead and nobody uses, first come first served, so many at a time.
    async fn run_in_turn(&self, mut candidacies: mpsc::UnboundedReceiver<Case>) {
        let running = Arc::new(Semaphore::new(RUNNING_MAX));
        while let Some(case) = candidacies.recv().await {
            let Ok(place) = running.clone().acquire_owned().await else { return };
            self.inner.waiting.fetch_sub(1, Ordering::Relaxed);
            if self.begins(&case) {
                tokio::spawn(run_for_leader(case, Some(place)));
            }
        }
    }

    /// Whether the leader of a case died with its broker: then the door lets its successor skip the lease.
    fn died(&self, case: &Case) -> bool {
        let leader = case.standing.vote.leader_id.voted_for;
        let home = case.standing.membership.get_node(&leader).map(|home| home.broker);
        home.is_some_and(|home| home != self.inner.transport.broker() && self.is_dead(home))
    }

    /// It is this group's turn, and its candidate's time begins; unless somebody leads it meanwhile.
    fn begins(&self, case: &Case) -> bool {
        let mut orphans = self.inner.orphans.lock();
        let Some(orphan) = orphans.get_mut(&case.group.group()) else { return false };
        let now = Instant::now();
        let judged = case.standing.vote;
        let led = |leader: &Leader| !judged.committed || leader.term > judged.leader_id.term;
        let led = case.group.watch_leader().borrow().as_ref().is_some_and(led);
        // What was judged may have been a false alarm.
        if led || !self.leaderless(&case.group, &case.standing, orphan) {
            orphan.look_at(now);
            self.inner.wake.notify_one();
            return false;
        }
        orphan.decided(now, true, jitter());
        drop(orphans);
        if let Some(groups) = self.inner.groups.upgrade() {
            groups.instruments.elections_forced.increment(1);
        }
        true
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
            Some(home) if home.broker != self.inner.transport.broker() => self.is_dead(home.broker),
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
        let waiting = orphans.len() as u32;
        let orphan = orphans.get_mut(&case.group.group())?;
        let claims = orphan.fresh_claims(now);
        let live_voters = other_voters(&case).filter(|(_, broker)| !self.is_dead(*broker));
        let complete = live_voters.map(|(replica, _)| replica).all(|replica| claims.contains_key(&replica));
        if !complete && now < orphan.wait_until {
            orphan.due = orphan.wait_until;
            return None;
        }
        let winner = choose(&claims, case.standing.membership.get_joint_config(), orphan.attempt);
        match winner {
            None => orphan.decided(now, false, jitter()),
            Some(winner) if winner == case.group.replica() => orphan.queued(now),
            // It has its turn there: as many wait before it there as here, at most.
            Some(_) => orphan.decided(now, true, jitter() + (TURN_EACH * waiting).min(TURN_WAIT)),
        }
        let winner = winner?;
        tracing::debug!(group = case.group.group().0, %winner, claims = claims.len(), "elects");
        Some((winner, case))
    }
}

/// One election that this replica shall win. Its place, if it needed one, is free again once it is won, or its time is over.
async fn run_for_leader(case: Case, place: Option<OwnedSemaphorePermit>) {
    case.group.elect(&case.standing, case.group.replica()).await;
    if place.is_some() {
        let mut roles = case.group.raft().server_metrics();
        let elected = roles.wait_until(|role| role.state == openraft::ServerState::Leader);
        let _ = timeout(OFFICE_WAIT, elected).await;
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
