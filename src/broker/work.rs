//! Which groups want a step of [`super::lifecycle`], and when.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use pontoon_raft::types::GroupId;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Groups that want a step, each once.
#[derive(Default)]
pub(super) struct Work {
    due: Mutex<BTreeMap<GroupId, Instant>>,
    pub(super) wake: Notify,
}

impl Work {
    /// This group wants a step now.
    pub(super) fn add(&self, group: GroupId) {
        self.add_at(group, Instant::now());
    }

    pub(super) fn add_at(&self, group: GroupId, at: Instant) {
        let mut due = self.due.lock();
        let entry = due.entry(group).or_insert(at);
        *entry = at.min(*entry);
        drop(due);
        self.wake.notify_one();
    }

    /// A group whose time has come and that is not among `busy`.
    pub(super) fn take(&self, busy: &BTreeSet<GroupId>) -> Option<GroupId> {
        let now = Instant::now();
        let mut due = self.due.lock();
        let group = due.iter().find(|(group, at)| **at <= now && !busy.contains(group)).map(|(group, _)| *group)?;
        due.remove(&group);
        Some(group)
    }

    /// When the next group's time comes.
    pub(super) fn next(&self, busy: &BTreeSet<GroupId>) -> Option<Instant> {
        self.due.lock().iter().filter(|(group, _)| !busy.contains(group)).map(|(_, at)| *at).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
}
