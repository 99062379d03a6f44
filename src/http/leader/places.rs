//! Places on the way to each leader, for the parts of requests that were divided: over HTTP/1 each part takes a connection, and a
//! request by key has as many parts as its topic has partitions.
//!
//! A place is taken for the way alone, once it is known who leads: a partition without a leader has none, and holds up no other.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pontoon_raft::types::BrokerId;
use tokio::sync::Semaphore;

/// Parts that may be on their way to one leader, of all requests together.
pub(super) const PLACES: usize = 128;

/// The places of all leaders.
#[derive(Default)]
pub(in crate::http) struct Places(Mutex<BTreeMap<BrokerId, Arc<Semaphore>>>);

impl Places {
    /// Those on the way to this one.
    pub(super) fn to(&self, leader: BrokerId) -> Arc<Semaphore> {
        let new = || Arc::new(Semaphore::new(PLACES));
        Arc::clone(self.0.lock().entry(leader).or_insert_with(new))
    }
}
