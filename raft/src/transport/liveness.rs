//! The failure detector: which brokers are alive, from the evidence that pings and connections give.
//!
//! Alive takes a *round trip*: an answer to our ping, or a ping that acknowledges our answer. So a cut in one direction
//! is silence at both ends, and both declare the other dead; a peer that we cannot dial but that still talks with us
//! over its own connection is alive for both. Death is a closed connection and a refused reconnect while no connection
//! of the peer's own is open either (a firewall can fake the refusal), or silence, or a new process behind the same
//! name. Silence is time in which this process was listening: its own pause counts for nothing.
//!
//! It sees no socket and keeps no clock: `peer` tells it what happened. What a death means is `raft_groups`' business,
//! and no promise rests on it (RULES.md R2, R3).

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::{Liveness, PeerStatus};
use crate::types::BrokerId;

/// Changes that a slow listener may be behind.
const EVENTS: usize = 1024;

/// What is known of every peer.
pub(crate) struct Detector {
    silence_max: Duration,
    state: Mutex<State>,
    events: broadcast::Sender<(BrokerId, Liveness)>,
}

#[derive(Default)]
struct State {
    peers: BTreeMap<BrokerId, Peer>,
    /// Control connections that each broker has open to us.
    accepted: BTreeMap<BrokerId, usize>,
}

struct Peer {
    status: PeerStatus,
    silence: Duration,
    /// The last attempt to connect was refused.
    refused: bool,
}

impl Detector {
    pub(crate) fn new(silence_max: Duration) -> Self {
        Self { silence_max, state: Mutex::default(), events: broadcast::Sender::new(EVENTS) }
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<(BrokerId, Liveness)> {
        self.events.subscribe()
    }

    pub(crate) fn status(&self, broker: BrokerId) -> Option<PeerStatus> {
        self.state.lock().peers.get(&broker).map(|peer| peer.status)
    }

    /// Begins to follow a peer; one that is followed already keeps its state.
    pub(crate) fn follow(&self, broker: BrokerId) {
        let status = PeerStatus {
            liveness: Liveness::Unknown,
            last_heard: None,
            incarnation: None,
            replacements: 0,
            deaths: 0,
            alive_since: None,
        };
        self.state.lock().peers.entry(broker).or_insert(Peer { status, silence: Duration::ZERO, refused: false });
    }

    /// Stops following a peer.
    pub(crate) fn forget(&self, broker: BrokerId) {
        self.state.lock().peers.remove(&broker);
    }

    /// A round trip with the peer has just been completed.
    pub(crate) fn heard(&self, broker: BrokerId) {
        let mut state = self.state.lock();
        let Some(peer) = state.peers.get_mut(&broker) else { return };
        peer.silence = Duration::ZERO;
        peer.status.last_heard = Some(Instant::now());
        if peer.status.liveness != Liveness::Alive {
            self.change(broker, peer, Liveness::Alive);
        }
    }

    /// A connection to the peer was made and it said which process it is.
    pub(crate) fn connected(&self, broker: BrokerId, incarnation: u64) {
        let mut state = self.state.lock();
        let Some(peer) = state.peers.get_mut(&broker) else { return };
        peer.refused = false;
        let replaced = peer.status.incarnation.is_some_and(|known| known != incarnation);
        peer.status.incarnation = Some(incarnation);
        peer.status.replacements += u64::from(replaced);
        if replaced && peer.status.liveness == Liveness::Alive {
            self.change(broker, peer, Liveness::Dead);
        }
    }

    /// Nobody listens where the peer should. Returns whether this is its death.
    pub(crate) fn refused(&self, broker: BrokerId) -> bool {
        let mut state = self.state.lock();
        if let Some(peer) = state.peers.get_mut(&broker) {
            peer.refused = true;
        }
        self.judge(&mut state, broker)
    }

    /// The peer opened a control connection of its own, and said which process it is. That is taken down only as long as nothing else
    /// is known of it: this connection may be older than ours to its successor. When that stands, it is seen to be another one.
    pub(crate) fn accepted(&self, broker: BrokerId, incarnation: u64) {
        let mut state = self.state.lock();
        *state.accepted.entry(broker).or_default() += 1;
        if let Some(peer) = state.peers.get_mut(&broker) {
            peer.status.incarnation.get_or_insert(incarnation);
        }
    }

    /// Such a connection was closed. Returns whether this is the peer's death.
    pub(crate) fn accepted_closed(&self, broker: BrokerId) -> bool {
        let mut state = self.state.lock();
        if let Some(count) = state.accepted.get_mut(&broker) {
            *count -= 1;
            if *count == 0 {
                state.accepted.remove(&broker);
            }
        }
        self.judge(&mut state, broker)
    }

    /// This much time passed in which we listened and heard nothing. Returns whether this is the peer's death.
    pub(crate) fn listened(&self, broker: BrokerId, time: Duration) -> bool {
        let mut state = self.state.lock();
        let Some(peer) = state.peers.get_mut(&broker) else { return false };
        peer.silence = peer.silence.saturating_add(time);
        if peer.silence < self.silence_max || peer.status.liveness == Liveness::Dead {
            return false;
        }
        self.change(broker, peer, Liveness::Dead);
        true
    }

    fn judge(&self, state: &mut State, broker: BrokerId) -> bool {
        let talks = state.accepted.contains_key(&broker);
        let Some(peer) = state.peers.get_mut(&broker) else { return false };
        if talks || !peer.refused || peer.status.liveness != Liveness::Alive {
            return false;
        }
        self.change(broker, peer, Liveness::Dead);
        true
    }

    /// Called under the lock, so that events have the order of the changes.
    fn change(&self, broker: BrokerId, peer: &mut Peer, liveness: Liveness) {
        tracing::info!(peer = %broker, from = ?peer.status.liveness, to = ?liveness, "liveness changed");
        peer.status.liveness = liveness;
        peer.status.alive_since = (liveness == Liveness::Alive).then(Instant::now);
        if liveness == Liveness::Dead {
            peer.status.deaths += 1;
        }
        // Nobody may be listening.
        let _ = self.events.send((broker, liveness));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: BrokerId = BrokerId(2);
    const MAX: Duration = Duration::from_secs(1);

    fn detector() -> (Detector, broadcast::Receiver<(BrokerId, Liveness)>) {
        let detector = Detector::new(MAX);
        detector.follow(B);
        let events = detector.events();
        (detector, events)
    }

    fn drain(events: &mut broadcast::Receiver<(BrokerId, Liveness)>) -> Vec<Liveness> {
        std::iter::from_fn(|| events.try_recv().ok()).map(|(_, liveness)| liveness).collect()
    }

    #[tokio::test]
    async fn silence_kills_and_a_round_trip_revives() {
        let (detector, mut events) = detector();
        detector.heard(B);
        assert!(!detector.listened(B, MAX - Duration::from_millis(1)));
        detector.heard(B);
        assert!(!detector.listened(B, MAX - Duration::from_millis(1)));
        assert!(detector.listened(B, Duration::from_millis(1)));
        assert!(!detector.listened(B, MAX));
        detector.heard(B);
        assert_eq!(drain(&mut events), [Liveness::Alive, Liveness::Dead, Liveness::Alive]);
        assert_eq!(detector.status(B).unwrap().deaths, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_came_back_has_been_alive_since_then() {
        let (detector, _events) = detector();
        let since = || detector.status(B).unwrap().alive_since;
        assert_eq!(since(), None);
        detector.heard(B);
        let first = Instant::now();
        tokio::time::advance(MAX).await;
        detector.heard(B);
        assert_eq!(since(), Some(first));
        assert!(detector.listened(B, MAX));
        assert_eq!(since(), None);
        tokio::time::advance(MAX).await;
        detector.heard(B);
        assert_eq!(since(), Some(first + MAX * 2));
    }

    #[tokio::test]
    async fn a_refusal_kills_only_when_the_peer_has_no_connection_of_its_own() {
        let (detector, mut events) = detector();
        detector.heard(B);
        detector.accepted(B, 7);
        assert!(!detector.refused(B));
        assert!(detector.accepted_closed(B));
        assert_eq!(drain(&mut events), [Liveness::Alive, Liveness::Dead]);
    }

    #[tokio::test]
    async fn a_peer_never_heard_of_is_given_time_to_start() {
        let (detector, mut events) = detector();
        assert!(!detector.refused(B));
        assert!(drain(&mut events).is_empty());
        assert!(detector.listened(B, MAX));
        assert_eq!(drain(&mut events), [Liveness::Dead]);
    }

    #[tokio::test]
    async fn a_process_that_only_dialled_us_is_known_when_its_successor_is_dialled() {
        let (detector, mut events) = detector();
        detector.accepted(B, 7);
        detector.heard(B);
        detector.connected(B, 8);
        detector.heard(B);
        assert_eq!(drain(&mut events), [Liveness::Alive, Liveness::Dead, Liveness::Alive]);
        // Late: it was opened by the former one.
        detector.accepted(B, 7);
        detector.connected(B, 8);
        let status = detector.status(B).unwrap();
        assert_eq!((status.incarnation, status.replacements, drain(&mut events)), (Some(8), 1, Vec::new()));
    }

    #[tokio::test]
    async fn a_replaced_process_is_a_death() {
        let (detector, mut events) = detector();
        detector.connected(B, 7);
        detector.heard(B);
        detector.connected(B, 7);
        detector.connected(B, 8);
        detector.heard(B);
        assert_eq!(drain(&mut events), [Liveness::Alive, Liveness::Dead, Liveness::Alive]);
        assert_eq!(detector.status(B).unwrap().replacements, 1);
    }
}
