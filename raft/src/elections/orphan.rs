//! What this broker knows of one group that (it thinks) nobody leads. Times come in; nothing here waits.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::choice::Claim;
use super::turns::TURN_WAIT;
use super::{BACKOFF_MAX, CLAIM_AGE_MAX, CLAIMS_WAIT, ECHO_WAIT, OFFICE_WAIT};
use crate::types::{BrokerId, ReplicaId, repr};

/// A winner that was chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chosen {
    /// The term whose leader's end was judged; `None`: nobody was known to have been elected in it.
    pub(super) ended: Option<u64>,
    /// Where the winner lives.
    pub(super) home: BrokerId,
}

/// One group's case.
pub(super) struct Orphan {
    /// When it is looked at next.
    pub(super) due: Instant,
    /// Until when missing claims of live voters are waited for.
    pub(super) wait_until: Instant,
    /// Its core did not answer when it was asked.
    pub(super) silent: bool,
    /// How many winners were told to run.
    pub(super) attempt: u32,
    /// How often nobody could be elected.
    fruitless: u32,
    claims: BTreeMap<ReplicaId, (Claim, Instant)>,
    sent: BTreeMap<BrokerId, Instant>,
    /// Until when a winner that was told to run may take office.
    in_office_by: Option<Instant>,
    /// Who was chosen last.
    chosen: Option<Chosen>,
    /// Whether it has been found without a leader; from then on claims are waited for.
    open: bool,
}

impl Orphan {
    pub(super) fn new(due: Instant) -> Self {
        Self {
            due,
            wait_until: due + CLAIMS_WAIT,
            silent: false,
            attempt: 0,
            fruitless: 0,
            claims: BTreeMap::new(),
            sent: BTreeMap::new(),
            in_office_by: None,
            chosen: None,
            open: false,
        }
    }

    /// Something happened that may decide the case: a death, or a broker that is back.
    pub(super) fn look_at(&mut self, now: Instant) {
        self.due = now;
        self.open = false;
        self.fruitless = 0;
        self.in_office_by = None;
    }

    /// Takes note of a peer's claim. One that says something new is a reason to look at the case.
    pub(super) fn hear(&mut self, claim: Claim, now: Instant) {
        let before = self.claims.insert(claim.replica, (claim, now));
        let known = before.is_some_and(|(before, heard)| before == claim && now.duration_since(heard) < CLAIM_AGE_MAX);
        if !known && !self.is_decided(now) {
            self.due = now;
        }
    }

    /// A winner was told to run, or is to run when it is its turn, and is given its time.
    pub(super) fn is_decided(&self, now: Instant) -> bool {
        self.in_office_by.is_some_and(|by| now < by)
    }

    /// A winner was chosen: it is told to run, or waits for its turn.
    pub(super) fn choose(&mut self, chosen: Chosen) {
        self.chosen = Some(chosen);
    }

    /// Whether a winner that lives on this broker is on its way.
    pub(super) fn is_decided_for(&self, broker: BrokerId, now: Instant) -> bool {
        self.is_decided(now) && self.chosen.is_some_and(|chosen| chosen.home == broker)
    }

    /// Whether a winner that lives elsewhere is on its way because this broker's leadership of this term is over.
    pub(super) fn is_succeeded(&self, term: u64, broker: BrokerId, now: Instant) -> bool {
        let over = |chosen: Chosen| chosen.ended >= Some(term) && chosen.home != broker;
        self.is_decided(now) && self.chosen.is_some_and(over)
    }

    /// It is without a leader, and this is our own claim.
    pub(super) fn opened(&mut self, own: Claim, now: Instant) {
        self.claims.insert(own.replica, (own, now));
        if !self.open {
            self.open = true;
            self.wait_until = now + CLAIMS_WAIT;
        }
    }

    /// It has a leader; what peers claim is kept until then.
    pub(super) fn rest_until(&mut self, until: Instant) {
        self.due = until;
        self.open = false;
        self.in_office_by = None;
    }

    /// When the newest claim goes stale, if any is fresh.
    pub(super) fn fresh_until(&self, now: Instant) -> Option<Instant> {
        let stale = self.claims.values().map(|(_, heard)| *heard + CLAIM_AGE_MAX).max()?;
        (stale > now).then_some(stale)
    }

    pub(super) fn claim_of(&self, replica: ReplicaId) -> Option<Claim> {
        self.claims.get(&replica).map(|(claim, _)| *claim)
    }

    pub(super) fn fresh_claims(&self, now: Instant) -> BTreeMap<ReplicaId, Claim> {
        let fresh = self.claims.iter().filter(|(_, (_, heard))| now.duration_since(*heard) < CLAIM_AGE_MAX);
        fresh.map(|(replica, (claim, _))| (*replica, *claim)).collect()
    }

    /// `leader` itself said that it does not lead in this term (any more): it has seen a later one, or it says so now. What it said
    /// as a candidate of this very term, before it was elected, looks the same as what it says after a restart; but a candidate
    /// that won does not say it again, so that it counts only while it is fresh.
    pub(super) fn renounced(&self, leader: ReplicaId, term: u64, now: Instant) -> bool {
        let Some((claim, heard)) = self.claims.get(&leader) else { return false };
        let repr::Vote(claimed, _, elected) = claim.vote;
        let fresh = now.duration_since(*heard) < CLAIM_AGE_MAX;
        claimed > term || (claimed == term && (elected || fresh))
    }

    /// Whether a broker is to be told (again) what we claim; if so it counts as told.
    pub(super) fn owes_report(&mut self, broker: BrokerId, now: Instant) -> bool {
        let told = self.sent.get(&broker).is_some_and(|at| now.duration_since(*at) < ECHO_WAIT);
        if !told {
            self.sent.insert(broker, now);
        }
        !told
    }

    /// A winner was chosen, and waits for its turn here. In case that never comes, it is looked at again. It counts as an attempt from now
    /// on, as it does where the winner is told to run at once: whoever looks again chooses the next one, and all the same one.
    pub(super) fn queued(&mut self, now: Instant) {
        self.due = now + TURN_WAIT;
        self.in_office_by = Some(self.due);
        self.attempt += 1;
    }

    /// Its turn has come: it has its time to take office.
    pub(super) fn begun(&mut self, now: Instant, jitter: Duration) {
        let rounds = self.attempt.clamp(1, 4);
        self.due = now + (OFFICE_WAIT * rounds).min(BACKOFF_MAX) + jitter;
        self.in_office_by = Some(self.due);
        self.fruitless = 0;
        self.wait_until = self.due + CLAIMS_WAIT;
    }

    /// A winner elsewhere was told to run, and has its time to take office.
    pub(super) fn decided(&mut self, now: Instant, jitter: Duration) {
        self.attempt += 1;
        self.begun(now, jitter);
    }

    /// Nobody could be elected: the back-off grows.
    pub(super) fn undecided(&mut self, now: Instant, jitter: Duration) {
        self.due = now + (CLAIMS_WAIT * (2 << self.fruitless.min(5))).min(BACKOFF_MAX) + jitter;
        self.in_office_by = None;
        self.fruitless += 1;
        self.wait_until = self.due + CLAIMS_WAIT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::GroupId;

    fn claim(replica: u64, term: u64) -> Claim {
        let replica = ReplicaId(replica);
        Claim { group: GroupId(1), replica, vote: repr::Vote(term, ReplicaId(1), true), last: None, able: true }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_new_claim_is_a_reason_to_look_and_a_known_one_is_not() {
        let now = Instant::now();
        let mut orphan = Orphan::new(now + ms(200));
        orphan.hear(claim(2, 1), now);
        assert_eq!(orphan.due, now);
        orphan.rest_until(now + ms(900));
        orphan.hear(claim(2, 1), now + ms(10));
        assert_eq!(orphan.due, now + ms(900));
        orphan.hear(claim(2, 2), now + ms(20));
        assert_eq!(orphan.due, now + ms(20));
    }

    #[test]
    fn a_winner_is_given_its_time_and_then_the_next_one_gets_longer() {
        let now = Instant::now();
        let mut orphan = Orphan::new(now);
        orphan.opened(claim(1, 1), now);
        orphan.decided(now, ms(0));
        assert_eq!((orphan.due, orphan.attempt), (now + OFFICE_WAIT, 1));
        orphan.hear(claim(2, 7), now + ms(10));
        assert_eq!(orphan.due, now + OFFICE_WAIT, "claims do not cut the winner's time short");
        let later = now + OFFICE_WAIT;
        orphan.decided(later, ms(0));
        assert_eq!(orphan.due, later + OFFICE_WAIT * 2);
        // A death changes everything.
        orphan.look_at(later + ms(1));
        assert_eq!(orphan.due, later + ms(1));
    }

    #[test]
    fn who_waits_for_a_turn_counts_as_an_attempt_once() {
        let now = Instant::now();
        let (mut here, mut elsewhere) = (Orphan::new(now), Orphan::new(now));
        for attempt in 1..6 {
            here.queued(now);
            elsewhere.decided(now, ms(0));
            assert_eq!((here.attempt, elsewhere.attempt), (attempt, attempt));
            here.begun(now, ms(0));
            assert_eq!((here.attempt, here.due), (elsewhere.attempt, elsewhere.due));
        }
    }

    #[test]
    fn a_decision_stands_for_the_end_that_it_was_taken_for_and_while_its_winner_lives() {
        let now = Instant::now();
        let mut orphan = Orphan::new(now);
        let (one, two) = (BrokerId(1), BrokerId(2));
        assert!(!orphan.is_succeeded(4, one, now));
        orphan.choose(Chosen { ended: Some(4), home: two });
        orphan.decided(now, ms(0));
        assert!(orphan.is_succeeded(4, one, now) && orphan.is_succeeded(3, one, now));
        assert!(!orphan.is_succeeded(5, one, now), "of that it knew nothing");
        assert!(!orphan.is_succeeded(4, two, now), "nobody comes from there");
        assert!(orphan.is_decided_for(two, now) && !orphan.is_decided_for(one, now));
        let over = orphan.due;
        assert!(!orphan.is_succeeded(4, one, over) && !orphan.is_decided_for(two, over));
        orphan.choose(Chosen { ended: None, home: two });
        orphan.decided(now, ms(0));
        assert!(!orphan.is_succeeded(0, one, now), "nobody knew who led");
    }

    #[test]
    fn without_a_quorum_of_claims_the_back_off_grows_to_its_limit() {
        let mut now = Instant::now();
        let mut orphan = Orphan::new(now);
        let mut waits = Vec::new();
        for _ in 0..8 {
            orphan.undecided(now, ms(0));
            waits.push(orphan.due - now);
            now = orphan.due;
        }
        assert!(waits.is_sorted());
        assert_eq!(waits.last(), Some(&BACKOFF_MAX));
        assert_eq!(orphan.attempt, 0);
    }

    #[test]
    fn claims_grow_stale_and_reports_are_not_echoed() {
        let now = Instant::now();
        let mut orphan = Orphan::new(now);
        orphan.hear(claim(2, 1), now);
        assert_eq!(orphan.fresh_claims(now + ms(999)).len(), 1);
        assert_eq!(orphan.fresh_claims(now + CLAIM_AGE_MAX).len(), 0);
        assert_eq!(orphan.fresh_until(now + CLAIM_AGE_MAX), None);
        assert!(orphan.owes_report(BrokerId(2), now));
        assert!(!orphan.owes_report(BrokerId(2), now + ms(1)));
        assert!(orphan.owes_report(BrokerId(3), now + ms(1)));
        assert!(orphan.owes_report(BrokerId(2), now + ECHO_WAIT));
    }

    #[test]
    fn a_leaders_own_claim_ends_its_leadership_up_to_that_term() {
        let now = Instant::now();
        let mut orphan = Orphan::new(now);
        orphan.hear(claim(1, 4), now);
        assert!(orphan.renounced(ReplicaId(1), 4, now));
        assert!(!orphan.renounced(ReplicaId(1), 5, now), "it was elected since");
        assert!(!orphan.renounced(ReplicaId(2), 4, now), "another one's claim says nothing about it");
    }

    #[test]
    fn what_a_candidate_said_before_it_was_elected_does_not_end_its_leadership_for_long() {
        let now = Instant::now();
        let mut orphan = Orphan::new(now);
        let vote = repr::Vote(4, ReplicaId(1), false);
        orphan.hear(Claim { vote, ..claim(1, 4) }, now);
        assert!(orphan.renounced(ReplicaId(1), 4, now), "as a leader says that was restarted");
        assert!(!orphan.renounced(ReplicaId(1), 4, now + CLAIM_AGE_MAX), "it does not say it again: it won");
        assert!(orphan.renounced(ReplicaId(1), 3, now + CLAIM_AGE_MAX), "what it led before, it left");
    }
}
