//! The background scrub (RULES.md J13): reads every segment of every log, slowly, so that rot is found while the other replicas
//! still have what it took. It repairs nothing and deletes nothing; it reports.

use std::sync::Arc;
use std::time::Duration;

use crate::log::Log;
use crate::stop::StopSignal;

/// Pause before the first round and between two.
const PAUSE: Duration = Duration::from_secs(3600);
/// How fast it reads.
const BYTES_PER_SECOND: u64 = 8 << 20;

/// Goes round all logs, one at a time, until the directory stops.
pub(crate) async fn run<L>(logs: L, stop: StopSignal)
where
    L: Fn() -> Vec<Arc<Log>> + Send,
{
    loop {
        tokio::select! {
            biased;
            _ = stop.stopped() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
        for log in logs() {
            // What it finds it has noted.
            tokio::select! {
                biased;
                _ = stop.stopped() => return,
                _ = log.verify_slowly(BYTES_PER_SECOND) => {}
            }
        }
    }
}
