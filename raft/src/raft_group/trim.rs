//! Giving room back: the segments below the log start go, behind a snapshot at the first one that stays.
//!
//! Each replica does so for itself, with its own segments; where the log starts stands in the log (RULES.md O7) and is the
//! same for all.

use super::RaftGroup;
use crate::error::ProposeError;

impl RaftGroup {
    /// Lets the segments below [`crate::log::Log::log_start_offset`] go, if there are any. On return that is queued; it
    /// happens behind, as soon as no replication reads them. May be repeated at will. Returns whether there was any.
    pub async fn trim(&self) -> Result<bool, ProposeError> {
        let Some(first) = self.log().first_index_to_keep() else { return Ok(false) };
        let covered = self.log().snapshot().is_some_and(|snapshot| snapshot.last.index + 1 >= first);
        if covered {
            // The snapshot is there, the purge is not: the process ended in between.
            let purged = self.raft().trigger().purge_log(first.saturating_sub(1)).await;
            purged.map_err(|fatal| self.stopped_error(fatal))?;
        } else {
            self.snapshot(first).await?;
        }
        Ok(true)
    }
}
