//! Waiting for records, without a timer: who waits for a limited time brings the limit.

use pontoon_raft::types::Offset;

use super::{Partition, ReplicatedLog};
use crate::error::{Code, Result};

impl<L: ReplicatedLog> Partition<L> {
    /// Resolves once there is a committed record at or after `offset`: with `Ok` if this replica leads then. Errors as a
    /// fetch's: `NOT_LEADER`, `NO_LEADER`, `NOT_READY` as soon as it cannot answer any more.
    pub async fn wait_for(&self, offset: Offset) -> Result<()> {
        let (mut high_watermark, mut leader) = (self.log.watch_high_watermark(), self.log.watch_leader());
        loop {
            // The watches first: what changes after the look wakes it.
            leader.mark_unchanged();
            let committed = *high_watermark.borrow_and_update();
            self.leading()?;
            if committed > offset {
                return Ok(());
            }
            let open = tokio::select! {
                biased;
                changed = high_watermark.changed() => changed.is_ok(),
                changed = leader.changed() => changed.is_ok(),
            };
            if !open {
                return Err(self.error(Code::NotReady, "its replica here is closing"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::partition::fake_log::{FakeLog, batch};

    #[tokio::test(start_paused = true)]
    async fn a_record_ends_the_wait_and_an_old_one_does_at_once() {
        let log = FakeLog::new();
        let partition = log.partition();
        let mut waiting = Box::pin(partition.wait_for(Offset(1)));
        assert!((&mut waiting).now_or_never().is_none());
        log.push(batch(&[1], None));
        assert!((&mut waiting).now_or_never().is_none(), "offset 0 is not offset 1");
        log.push(batch(&[1], None));
        waiting.await.unwrap();
        partition.wait_for(Offset(0)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_leads_no_more_does_not_keep_anybody_waiting() {
        for (end, code) in [(FakeLog::depose as fn(&FakeLog), Code::NotLeader), (FakeLog::close, Code::NotReady)] {
            let log = FakeLog::new();
            let partition = log.partition();
            let mut waiting = Box::pin(partition.wait_for(Offset(0)));
            assert!((&mut waiting).now_or_never().is_none());
            end(&log);
            assert_eq!(waiting.await.unwrap_err().code, code);
        }
    }
}
