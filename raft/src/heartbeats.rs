//! The clock of all groups: one task per broker, instead of openraft's ticker in each group.
//!
//! A ticker wakes its core five times per heartbeat, on leaders and followers alike, for ever; with thousands of groups that keeps a
//! core half busy with nothing. A timer has something to do only where a leader must say that it is there, and where nobody says so:
//!
//! - **Led here:** heartbeats are triggered from here, every [`RaftConfig::heartbeat`] while something happens, else every
//!   [`RaftConfig::idle_heartbeat`], a quarter of openraft's lease: an idle group is as ready to be written to as a busy one.
//! - **Followed here**, with a leader that was heard within [`RaftConfig::heard_max`] and a broker that is alive: nothing.
//! - **Otherwise** the group's ticker runs, and openraft's timers are the fallback behind [`crate::elections`], as ever: they count
//!   from when the leader was last heard, so that nothing is lost by switching them on late.
//!
//! [`RaftConfig::heartbeat`]: crate::config::RaftConfig::heartbeat
//! [`RaftConfig::idle_heartbeat`]: crate::config::RaftConfig::idle_heartbeat
//! [`RaftConfig::heard_max`]: crate::config::RaftConfig::heard_max

use std::sync::{Arc, Weak};

use tokio::time::sleep;

use crate::raft_groups::Hosted;
use crate::transport::Liveness;
use crate::types::BrokerId;

/// A heartbeat's interval is cut into so many, and each group has its own: thousands must not beat at once.
const PHASES: u32 = 8;

/// Beats until the groups are gone.
pub(crate) async fn run(hosted: Weak<Hosted>) {
    let open = || hosted.upgrade().filter(|hosted| !hosted.is_closed());
    for phase in (0..PHASES).cycle() {
        let Some(pause) = open().map(|hosted| hosted.config.heartbeat / PHASES) else { return };
        sleep(pause).await;
        let Some(hosted) = open() else { return };
        beat(&hosted, phase);
    }
}

fn beat(hosted: &Arc<Hosted>, phase: u32) {
    let own = hosted.transport.broker();
    let alive = |broker: BrokerId| broker == own || hosted.transport.liveness(broker) == Liveness::Alive;
    for group in hosted.all() {
        if group.group().0 % u64::from(PHASES) == u64::from(phase) {
            group.beat(alive);
        }
    }
}
