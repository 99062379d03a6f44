//! Looks at every replica of one broker all the time, and tells what it shows: entries, watermarks, votes, leaders, tables.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pontoon::broker::Broker;
use pontoon_raft::log::Log;
use pontoon_raft::log::frame::Frame;
use pontoon_raft::raft_group::RaftGroup;
use pontoon_raft::sabotage::Sabotage;
use pontoon_raft::types::LogId;
use tokio::time::sleep;

use crate::broken::Variant;
use crate::cluster::World;
use crate::event::{Event, Fact, Replica};
use crate::trace::digest;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// Most that is read at once.
const READ_BYTES: usize = 64 << 10;

/// What was seen of a replica.
#[derive(Default)]
struct Seen {
    /// The next index to be shown as applied.
    next: u64,
    last: Option<LogId>,
    state: State,
}

/// What a replica shows without being read. What has not changed is not told again.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct State {
    /// Where the log begins: index and offset.
    start: (u64, u64),
    high_watermark: u64,
    /// Term, for whom, and whether that one leads.
    vote: Option<(u64, u64, bool)>,
    /// Term and replica.
    leader: Option<(u64, u64)>,
    /// Last entry, and digest of the table as of it.
    table: Option<(LogId, u32)>,
}

/// One broker's observer, for one life.
struct Observer {
    world: World,
    broker: u32,
    life: u64,
    who: Arc<str>,
    seen: BTreeMap<(u64, u64), Seen>,
    quarantined: BTreeMap<(u64, u64), ()>,
}

/// Looks until the life is over.
pub(crate) async fn observe(world: World, id: u32, life: u64, who: Arc<str>, broker: Arc<Broker>) {
    let (seen, quarantined) = (BTreeMap::new(), BTreeMap::new());
    let mut observer = Observer { world, broker: id, life, who, seen, quarantined };
    while observer.world.is_alive(id, life) {
        observer.look(&broker).await;
        sleep(PAUSE).await;
    }
}

impl Observer {
    async fn look(&mut self, broker: &Broker) {
        let groups = broker.raft_groups();
        let mut corrupt: Vec<_> = groups
            .store()
            .corrupt()
            .into_iter()
            .map(|corrupt| (corrupt.group.0, corrupt.replica.0, corrupt.why))
            .collect();
        if self.world.variant == Some(Variant::Sabotage(Sabotage::ReuseReplicaIds)) {
            // It no longer says so where the id is used again.
            corrupt.extend(groups.lost().into_iter().map(|(group, replica, why)| (group.0, replica.0, why)));
        }
        // A disk that fails within a recovery costs a replica, too, and the next life may be the first that tells.
        let excused = self.world.excuses_losses_of(self.broker);
        for (group, id, why) in corrupt {
            let by = self.replica(group, id);
            if self.quarantined.insert((by.group, by.id), ()).is_none() {
                self.world.trace.note(&self.who, format_args!("quarantined {by:?}: {why}"));
                self.world.ledger.tell(Event::Quarantined { by });
                if self.world.given_up.lock().insert((by.broker, by.group, by.id)) && !excused {
                    let why = format!("{by:?} is corrupt, and nobody has touched its files: {why}");
                    self.world.ledger.broken("acknowledged_is_readable", why);
                }
            }
        }
        for group in groups.all() {
            if !self.world.is_alive(self.broker, self.life) {
                return;
            }
            if let Err(why) = self.look_at(&group).await {
                self.complain(&group, &why);
            }
        }
    }

    fn replica(&self, group: u64, id: u64) -> Replica {
        Replica { broker: self.broker, life: self.life, group, id }
    }

    async fn look_at(&mut self, group: &RaftGroup) -> Result<(), String> {
        let by = self.replica(group.group().0, group.replica().0);
        self.show_state(group, by);
        let log = group.log();
        let applied = group.status().applied_index.map_or(0, |index| index + 1);
        let last = log.last_log_id();
        let first = first_index(log);
        let seen = self.seen.entry((by.group, by.id)).or_default();
        if seen.next > 0 && seen.next < first {
            self.world.ledger.count("snapshots installed");
        }
        seen.next = seen.next.max(first);
        if seen.next < applied {
            let frames = read(group, seen.next, applied).await?;
            seen.next += frames.len() as u64;
            self.show_stored(by, &frames);
            for frame in frames {
                self.world.ledger.applied(by, frame);
            }
        }
        let seen = self.seen.entry((by.group, by.id)).or_default();
        // What is not applied yet may still be another's tomorrow; but it matches all others of its term.
        if seen.last > last || seen.last.zip(last).is_some_and(|(was, is)| was.index >= is.index && was != is) {
            self.world.ledger.count("truncations");
        }
        if last != seen.last && seen.next == applied {
            seen.last = last;
            let end = last.map_or(0, |last| last.index + 1);
            if applied < end {
                let frames = read(group, applied.saturating_sub(1).max(first), end).await?;
                self.show_stored(by, &frames);
            }
        }
        let next = self.seen[&(by.group, by.id)].next;
        self.world.ledger.shown(by, next);
        Ok(())
    }

    /// What can be had without reading.
    fn show_state(&mut self, group: &RaftGroup, by: Replica) {
        let (ledger, log) = (&self.world.ledger, group.log());
        let first = first_index(log);
        let (start, high_watermark, end) = (log.log_start_offset().0, log.high_watermark().0, log.log_end_offset().0);
        if start > high_watermark || high_watermark > end {
            ledger.broken("high_watermark", format!("{by:?}: {start}, {high_watermark}, {end} are out of order"));
        }
        let seen = self.seen.entry((by.group, by.id)).or_default();
        let table = match (log.last_log_id(), seen.state.table) {
            (Some(last), Some(table)) if table.0 == last => Some(table),
            (last, _) => last.map(|last| (last, digest([&log.append_state()[..]]))),
        };
        let vote = log.vote().map(|vote| (vote.leader_id.term, vote.leader_id.voted_for.0, vote.committed));
        let leader = group.watch_leader().borrow().map(|leader| (leader.term, leader.replica.0));
        let now = State { start: (first, start), high_watermark, vote, leader, table };
        let was = std::mem::replace(&mut seen.state, now);
        if was.start != now.start {
            ledger.tell(Event::Start { by, first, log_start: start });
        }
        if was.high_watermark != high_watermark {
            ledger.tell(Event::Watermark { by, high_watermark });
        }
        if let Some(vote) = vote.filter(|_| was.vote != vote) {
            ledger.tell(Event::Vote { by, vote });
        }
        if let Some((term, leader)) = leader.filter(|_| was.leader != leader) {
            ledger.tell(Event::Leader { by, term, leader });
        }
        if let Some((last, digest)) = table.filter(|_| was.table != table) {
            ledger.tell(Event::Table { by, index: last.index, term: last.leader_id.term, digest });
        }
    }

    fn show_stored(&self, by: Replica, frames: &[Frame]) {
        let mut previous = None;
        for frame in frames {
            let (index, fact) = (frame.header.index, Fact::of(frame));
            self.world.ledger.tell(Event::Stored { by, index, previous, fact });
            previous = Some(fact.term);
        }
    }

    /// A replica that could not be read: that is wrong unless its disk has failed, or it is going.
    fn complain(&self, group: &RaftGroup, why: &str) {
        let start = self.world.start_of(self.broker);
        let excused = start.life != self.life || start.is_excused() || start.stop;
        if !excused && group.status().stopped.is_none() {
            let why = format!("{}: group {} cannot be read: {why}", self.who, group.group());
            self.world.ledger.broken("acknowledged_is_readable", why);
        }
    }
}

/// The first index that is not purged.
fn first_index(log: &Log) -> u64 {
    log.purged_log_id().map_or(0, |purged| purged.index + 1)
}

/// Reads entries; none if they are purged or truncated meanwhile.
async fn read(group: &RaftGroup, from: u64, to: u64) -> Result<Vec<Frame>, String> {
    let log = group.log();
    match log.frames(from, to, READ_BYTES).await {
        Ok(frames) => Ok(frames),
        Err(_) if log.purged_log_id().is_some_and(|purged| purged.index >= from) => Ok(Vec::new()),
        Err(_) if log.last_log_id().is_none_or(|last| last.index + 1 < to) => Ok(Vec::new()),
        Err(error) => Err(error.to_string()),
    }
}
