//! What there may be too little of: free space, measured now and then and counted in between (RULES.md J18), and files to be opened.
//! What the file system says of free space counts only as long as it refuses nothing ([`crate::disk::Refusals`]).

use std::io;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::Store;
use crate::disk::is_out_of_files;
use crate::stop::StopSignal;

/// How often it is measured.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

/// Free space as it was measured last, and how much had been accepted by then.
#[derive(Default)]
pub(super) struct Measured {
    available_bytes: AtomicU64,
    accepted_bytes: AtomicU64,
    /// Less is free than followers need to take records.
    short: AtomicBool,
}

impl Measured {
    fn note(&self, available_bytes: u64, accepted_bytes: u64) {
        self.available_bytes.store(available_bytes, Ordering::Release);
        self.accepted_bytes.store(accepted_bytes, Ordering::Release);
    }

    /// What is left after `accepted_bytes`: each byte since the measurement takes its place twice, in the journal and in a segment.
    fn left(&self, accepted_bytes: &AtomicU64) -> u64 {
        // In this order a measurement that comes in between makes it less at most.
        let counted = self.accepted_bytes.load(Ordering::Acquire);
        let available = self.available_bytes.load(Ordering::Acquire);
        let since = accepted_bytes.load(Ordering::Relaxed).saturating_sub(counted);
        available.saturating_sub(since.saturating_mul(2))
    }
}

impl Store {
    /// Free bytes as last measured, less what was accepted since. What the doors compare with their reserves (RULES.md J18):
    /// a reserve need not be larger than what is written between two measurements. None for some seconds after something was refused for
    /// want of room, whatever the file system says: it does not tell of a quota.
    pub fn available_bytes(&self) -> u64 {
        if self.was_refused() { 0 } else { self.measured.left(&self.context.accepted_bytes) }
    }

    /// Whether something was refused for want of room a moment ago.
    pub(crate) fn was_refused(&self) -> bool {
        self.context.journal.refusals().is_recent()
    }

    /// Whether too many files are open just now.
    pub(crate) async fn is_out_of_files(&self) -> bool {
        let listed = self.context.disk.read_dir(self.data_dir.path()).await;
        listed.is_err_and(|error| is_out_of_files(&error))
    }

    /// Measures free space now.
    pub(crate) async fn measure(&self) -> io::Result<()> {
        // Read first: what is accepted while it is measured may not be in it.
        let accepted = self.context.accepted_bytes.load(Ordering::Relaxed);
        let available = self.context.disk.available_bytes(self.data_dir.path()).await?;
        self.measured.note(available, accepted);
        let reserve = self.context.config.reserve_append_bytes;
        let available = if self.was_refused() { 0 } else { available };
        let short = available < reserve;
        if self.measured.short.swap(short, Ordering::Relaxed) != short {
            let path = self.data_dir.path().display();
            match short {
                true => tracing::warn!(%path, available, reserve, "the disk is full: replicas here take no records"),
                false => tracing::info!(%path, available, "the disk has room again"),
            }
        }
        Ok(())
    }
}

/// Measures free space, and looks whether a person has made some.
pub(super) async fn measurements(store: Weak<Store>, stop: StopSignal) {
    let mut next_kept = 0;
    loop {
        tokio::select! {
            biased;
            _ = stop.stopped() => return,
            () = tokio::time::sleep(MEASURE_INTERVAL) => {}
        }
        let Some(store) = store.upgrade() else { return };
        if let Err(error) = store.measure().await {
            tracing::warn!(%error, "free space was not measured");
        }
        next_kept = store.forget_removed(next_kept).await;
    }
}
