//! Watching over the cores: leadership is published as it changes, and a core that ends is started again from its log,
//! a bounded number of times, or its replica is reported lost. Not for want of room on the disk or because of too many open files,
//! however often.
//!
//! One task per group, asleep until openraft's metrics say that its role changed. A data directory that has stopped
//! (RULES.md J15) ends every group and starts none.

use std::collections::VecDeque;
use std::sync::Weak;
use std::time::Duration;

use futures_util::FutureExt;
use openraft::async_runtime::WatchReceiver;
use openraft::metrics::{RaftMetrics, RaftServerMetrics};
use openraft::type_config::alias::WatchReceiverOf;
use tokio::time::{Instant, sleep, timeout};

use crate::raft_group::RaftGroup;
use crate::raft_groups::{GroupEvent, Hosted, Restart};
use crate::types::TypeConfig;

/// Starts within [`RESTART_WINDOW`] after which a replica is lost; and attempts at the first start, whenever.
pub(crate) const RESTARTS_MAX: usize = 3;
/// See [`RESTARTS_MAX`].
const RESTART_WINDOW: Duration = Duration::from_secs(300);
/// Before the first restart; each further one waits four times as long.
const RESTART_WAIT: Duration = Duration::from_millis(100);
/// The pause before each start while the disk has no room, or no file can be opened. Those are not counted.
const ROOM_WAIT: Duration = Duration::from_secs(1);
/// A journal round that lasts longer gives this broker's leaderships away (RULES.md J18).
const ROUND_MAX: Duration = Duration::from_secs(1);
/// How often the round under way is looked at.
const ROUND_POLL: Duration = Duration::from_millis(250);
/// How long the leaderships may take to be given away, and the pause before they are given away again.
const AWAY_WAIT: Duration = Duration::from_secs(10);

/// Watches one group until it is closed or lost.
pub(crate) async fn supervise(hosted: Weak<Hosted>, group: RaftGroup) {
    let mut restarts: VecDeque<Instant> = VecDeque::new();
    loop {
        let mut why = watch_core(&hosted, &group).await;
        if group.is_closing() {
            return;
        }
        bury(&hosted, &group, &why).await;
        loop {
            restarts.retain(|at| at.elapsed() < RESTART_WINDOW);
            let short = match hosted.upgrade() {
                Some(hosted) => hosted.is_short().await,
                None => return,
            };
            if short {
                // No fault of the replica's: it is whole, and perhaps the last that is.
                sleep(ROOM_WAIT).await;
            } else if restarts.len() >= RESTARTS_MAX {
                return lose(&hosted, &group, why);
            } else {
                sleep(RESTART_WAIT * 4u32.pow(restarts.len() as u32)).await;
                restarts.push_back(Instant::now());
            }
            let Some(hosted) = hosted.upgrade().filter(|hosted| !hosted.is_closed()) else { return };
            // A stopped directory is no accident of one group: `stop_with_the_store` speaks for all.
            if hosted.store.stopped().now_or_never().is_some() {
                return;
            }
            match hosted.restart(&group).await {
                Restart::Closed => return,
                Restart::Done => {
                    hosted.instruments.restarts.increment(1);
                    hosted.tell(GroupEvent::Restarted(group.group(), why));
                    break;
                }
                // On a full disk, or a stalled one.
                Restart::TooEarly if short => {}
                Restart::TooEarly => {
                    restarts.pop_back();
                }
                Restart::Failed(error) => why = error,
            }
        }
    }
}

/// What is to be done when a core has ended: callers are refused, the rest of it is joined, and if it led, that is said.
async fn bury(hosted: &Weak<Hosted>, group: &RaftGroup, why: &str) {
    if group.is_stopped() {
        tracing::info!(why, "the group's core was ended, to be started again");
    } else {
        tracing::error!(why, "the group's core ended");
    }
    group.set_stopped(why.to_owned());
    group.log().release_readers();
    let _ = group.raft().shutdown().await;
    if let (Some(term), Some(hosted)) = (group.own_term(), hosted.upgrade()) {
        hosted.elections.renounce(&[(group.clone(), term)]).await;
    }
}

fn lose(hosted: &Weak<Hosted>, group: &RaftGroup, why: String) {
    if let Some(hosted) = hosted.upgrade() {
        hosted.report_lost(group.group(), group.replica(), why);
    }
}

/// Follows the core's role until the core ends; says why it did.
async fn watch_core(hosted: &Weak<Hosted>, group: &RaftGroup) -> String {
    let raft = group.raft();
    let mut roles = raft.server_metrics();
    let mut all = raft.metrics();
    let mut led_term = 0;
    loop {
        // The role says nothing about the first commit of a term, and openraft shows it a moment before the metrics that
        // are read here: until both have come, every change is looked at. Asked before publishing, or what comes in between
        // would be missed.
        let unsettled = group.is_settling() || lags(&roles, &all);
        group.publish();
        if let Some(term) = group.leading_term().filter(|term| *term != led_term) {
            led_term = term;
            tracing::debug!(term, "leads");
            if let Some(hosted) = hosted.upgrade() {
                hosted.instruments.elections_won.increment(1);
            }
            let group = group.clone();
            tokio::spawn(async move { group.repair_membership().await });
        }
        if group.is_without_leader()
            && let Some(hosted) = hosted.upgrade()
        {
            hosted.elections.suspect(group.group());
        }
        let ended = tokio::select! {
            biased;
            changed = roles.changed() => changed.is_err(),
            changed = all.changed(), if unsettled => changed.is_err(),
        };
        if ended || all.borrow_watched().running_state.is_err() {
            let metrics = all.borrow_watched();
            return metrics.running_state.as_ref().err().map_or_else(|| "panicked".to_owned(), ToString::to_string);
        }
    }
}

/// Whether openraft has shown a role that its full metrics do not show yet: it sends them one after the other.
fn lags(
    roles: &WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
    all: &WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
) -> bool {
    let (role, full) = (roles.borrow_watched(), all.borrow_watched());
    (role.vote, role.state, role.current_leader) != (full.vote, full.state, full.current_leader)
        || role.membership_config != full.membership_config
}

/// Ends every group when the data directory has stopped.
pub(crate) async fn stop_with_the_store(hosted: Weak<Hosted>) {
    // Held only for a moment at a time: a directory that is dropped without being closed must let go of its lock.
    let stopped = loop {
        let Some(store) = hosted.upgrade().filter(|hosted| !hosted.is_closed()).map(|hosted| hosted.store.clone())
        else {
            return;
        };
        if let Ok(stopped) = timeout(ROUND_POLL, store.stopped()).await {
            break stopped;
        }
    };
    if let Some(hosted) = hosted.upgrade() {
        hosted.shutdown(&stopped.to_string()).await;
    }
}

/// Gives every leadership away while a round of the journal does not end: the disk is stalled, and what is led here waits
/// for it. The followers' disks are others.
pub(crate) async fn hand_over_when_stalled(hosted: Weak<Hosted>) {
    loop {
        sleep(ROUND_POLL).await;
        let Some(hosted) = hosted.upgrade().filter(|hosted| !hosted.is_closed()) else { return };
        let lasts = hosted.store.stalled_for();
        if lasts > ROUND_MAX {
            tracing::warn!(seconds = lasts.as_secs_f64(), "a journal round is stalled: leaderships are handed over");
            hosted.instruments.stalled_hand_overs.increment(1);
            hosted.hand_over_all(AWAY_WAIT).await;
            sleep(AWAY_WAIT).await;
        }
    }
}
