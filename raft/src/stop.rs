//! The stop signal of a data directory (RULES.md J15): raised once, never taken back, seen by everybody. It is the journal's:
//! once that has stopped nothing is acknowledged any more, and whatever else fails stops it.

use std::sync::Arc;

use futures_util::FutureExt;

use crate::error::Stopped;
use crate::journal::Journal;

/// Raised when nothing more may be acknowledged. Clones share it.
#[derive(Clone)]
pub(crate) struct StopSignal(Arc<Journal>);

impl StopSignal {
    pub(crate) fn new(journal: Arc<Journal>) -> Self {
        Self(journal)
    }

    /// Stops; the first reason stays.
    pub(crate) fn stop(&self, why: &str) {
        if !self.0.is_stopped() {
            tracing::error!(why, "the data directory stops");
        }
        self.0.stop(why);
    }

    /// An error once it has stopped.
    pub(crate) fn check(&self) -> Result<(), Stopped> {
        if self.0.is_stopped() { Err(self.reason()) } else { Ok(()) }
    }

    /// Why it has stopped.
    pub(crate) fn reason(&self) -> Stopped {
        self.stopped().now_or_never().unwrap_or_else(|| Stopped("it is closing".into()))
    }

    /// Resolves when it has stopped.
    pub(crate) async fn stopped(&self) -> Stopped {
        self.0.stopped().await
    }
}
