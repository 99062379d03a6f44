//! Which groups want a step of [`super::lifecycle`], and when. Who has been due longest comes first, so that many that come again and
//! again (newcomers that catch up) hold up nobody; and however many wait, taking one costs the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use pontoon_raft::types::GroupId;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Before a step that waits for a replica to catch up is taken again; and that for each group here that does, if it is more: where a
/// broker was replaced thousands do at once, and looking at them all the time would leave nothing for what they wait for.
pub(super) const CATCH_UP_WAIT: Duration = Duration::from_millis(100);
const CATCH_UP_WAIT_EACH: Duration = Duration::from_millis(1);

/// Before a group looks again at who catches up, if so many do.
pub(super) fn catch_up_wait(groups: usize) -> Duration {
    CATCH_UP_WAIT.max(CATCH_UP_WAIT_EACH * u32::try_from(groups).unwrap_or(u32::MAX))
}

/// Groups that want a step, each once.
#[derive(Default)]
pub(super) struct Work {
    due: Mutex<Due>,
    pub(super) wake: Notify,
}

/// The same in two orders.
#[derive(Default)]
struct Due {
    by_group: BTreeMap<GroupId, Instant>,
    by_time: BTreeSet<(Instant, GroupId)>,
}

impl Due {
    /// The earlier time counts.
    fn add(&mut self, group: GroupId, at: Instant) {
        match self.by_group.get(&group) {
            Some(before) if *before <= at => return,
            Some(before) => drop(self.by_time.remove(&(*before, group))),
            None => {}
        }
        self.by_group.insert(group, at);
        self.by_time.insert((at, group));
    }

    /// Who comes first of those that are not `busy`: so few that passing them over costs nothing.
    fn first(&self, busy: &BTreeSet<GroupId>) -> Option<(Instant, GroupId)> {
        self.by_time.iter().find(|(_, group)| !busy.contains(group)).copied()
    }

    fn remove(&mut self, (at, group): (Instant, GroupId)) {
        self.by_group.remove(&group);
        self.by_time.remove(&(at, group));
    }
}

impl Work {
    /// This group wants a step now.
    pub(super) fn add(&self, group: GroupId) {
        self.add_at(group, Instant::now());
    }

    pub(super) fn add_at(&self, group: GroupId, at: Instant) {
        self.due.lock().add(group, at);
        self.wake.notify_one();
    }

    /// The group whose time came first, if it has come, of those that are not among `busy`.
    pub(super) fn take(&self, busy: &BTreeSet<GroupId>) -> Option<GroupId> {
        let now = Instant::now();
        let mut due = self.due.lock();
        let first = due.first(busy).filter(|(at, _)| *at <= now)?;
        due.remove(first);
        Some(first.1)
    }

    /// When the next group's time comes.
    pub(super) fn next(&self, busy: &BTreeSet<GroupId>) -> Option<Instant> {
        self.due.lock().first(busy).map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_group_waits_its_turn_and_is_taken_once() {
        let work = Work::default();
        let busy = BTreeSet::from([GroupId(2)]);
        work.add(GroupId(1));
        work.add(GroupId(1));
        work.add(GroupId(2));
        work.add_at(GroupId(3), Instant::now() + Duration::from_secs(5));
        assert_eq!(work.take(&busy), Some(GroupId(1)));
        assert_eq!(work.take(&busy), None, "2 is busy, 3 is not due");
        assert_eq!(work.next(&busy), Some(Instant::now() + Duration::from_secs(5)));
        assert_eq!(work.take(&BTreeSet::new()), Some(GroupId(2)));
        work.add(GroupId(3));
        work.add_at(GroupId(3), Instant::now() + Duration::from_secs(9));
        assert_eq!(work.take(&busy), Some(GroupId(3)), "the earlier time counts");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_been_due_longest_is_taken_first_whatever_its_number() {
        let (work, nobody) = (Work::default(), BTreeSet::new());
        let tick = || tokio::time::advance(Duration::from_millis(1));
        (1..=3).for_each(|low| work.add(GroupId(low)));
        tick().await;
        work.add(GroupId(9000));
        let mut taken = Vec::new();
        for _ in 0..7 {
            tick().await;
            let group = work.take(&nobody).unwrap();
            taken.push(group.0);
            if group < GroupId(9000) {
                work.add(group); // It is still catching up.
            }
        }
        assert_eq!(taken, [1, 2, 3, 9000, 1, 2, 3]);
        // Asking for what is due already does not put it off.
        tick().await;
        work.add(GroupId(1));
        assert_eq!(work.take(&nobody), Some(GroupId(1)));
        let due = work.due.lock();
        assert_eq!(due.by_time.len(), due.by_group.len());
    }

    #[test]
    fn the_more_groups_have_newcomers_the_less_often_each_is_looked_at() {
        assert_eq!([0, 1, 100].map(catch_up_wait), [CATCH_UP_WAIT; 3]);
        assert_eq!(catch_up_wait(5000), Duration::from_secs(5));
    }
}
