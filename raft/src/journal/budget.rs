//! How many bytes are durable in the journal but not yet in their segments (RULES.md J11).
//!
//! The log adds what a round made durable and subtracts what it has written to a segment; the journal takes no further
//! appends while too much is unwritten. Votes and the like go on.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// A shared count of unwritten bytes, with a limit that holds the journal's writer back.
#[derive(Debug)]
pub struct UnwrittenBytes {
    max: usize,
    now: AtomicUsize,
    room: Notify,
}

impl UnwrittenBytes {
    /// None yet; the writer is held back from `max` bytes on.
    pub fn new(max: usize) -> Self {
        Self { max: max.max(1), now: AtomicUsize::new(0), room: Notify::new() }
    }

    /// So many more are durable in the journal. Call it within the operation's [`super::Done`], so that the next round sees it.
    pub fn add(&self, bytes: usize) {
        self.now.fetch_add(bytes, Ordering::AcqRel);
    }

    /// So many have been written to their segments, or are not wanted any more. Never more than were added.
    pub fn sub(&self, bytes: usize) {
        let before = self.now.fetch_sub(bytes, Ordering::AcqRel);
        assert!(bytes <= before, "{bytes} bytes written to segments, but only {before} were unwritten");
        if before >= self.max && before - bytes < self.max {
            self.room.notify_one();
        }
    }

    /// Bytes now.
    pub fn bytes(&self) -> usize {
        self.now.load(Ordering::Acquire)
    }

    /// Whether the writer is held back.
    pub fn is_full(&self) -> bool {
        self.bytes() >= self.max
    }

    /// Resolves once there may be room again. One waiter: the writer.
    pub(super) async fn room(&self) {
        self.room.notified().await;
    }
}
