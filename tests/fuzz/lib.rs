//! The fuzz targets' bodies. They are the functions that ordinary tests replay the corpora with.
#![allow(dead_code, clippy::unwrap_used)]

#[path = "../../raft/tests/crash/damage.rs"]
mod damage;
#[path = "../../raft/tests/crash/driver.rs"]
mod driver;
#[path = "../hostile.rs"]
mod hostile;

use damage::Class;
pub use hostile::{batch_bodies, catalog_commands, kafka_batches, kafka_requests, peer_messages};

/// What `driver` and `damage` run on: tokio's paused time.
fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(test)
}

/// Damaged segments.
pub fn segment_recovery(data: &[u8]) {
    damage::damage(Class::Segment, data);
}

/// Damaged indexes.
pub fn index_recovery(data: &[u8]) {
    damage::damage(Class::Index, data);
}

/// A damaged journal.
pub fn journal_recovery(data: &[u8]) {
    damage::damage(Class::Journal, data);
}
