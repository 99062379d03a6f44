//! The background scrub (RULES.md J13): reads every segment of every log, slowly, so that rot is found while the other replicas
//! still have what it took. It repairs nothing and deletes nothing; it reports.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::ReadError;
use crate::log::Log;
use crate::recovery::ReplicaKey;
use crate::stop::StopSignal;
use crate::store::CorruptReplica;

/// Pause before the first round and between two.
const PAUSE: Duration = Duration::from_secs(3600);
/// How fast it reads.
const BYTES_PER_SECOND: u64 = 8 << 20;

/// What the scrub has found.
#[derive(Default)]
pub(crate) struct Findings(Mutex<BTreeMap<ReplicaKey, CorruptReplica>>);

impl Findings {
    /// By group.
    pub(crate) fn list(&self) -> Vec<CorruptReplica> {
        self.0.lock().values().cloned().collect()
    }

    fn note(&self, log: &Log, result: &Result<u64, ReadError>) {
        let key = (log.group(), log.replica());
        match result {
            Ok(_) => {
                self.0.lock().remove(&key);
            }
            Err(error) => {
                let why = error.to_string();
                tracing::error!(group = %key.0, replica = %key.1, why, "rotten segment");
                metrics::counter!("pontoon_scrub_errors_total").increment(1);
                self.0.lock().insert(key, CorruptReplica { group: key.0, replica: key.1, why });
            }
        }
    }
}

/// Goes round all logs, one at a time, until the directory stops.
pub(crate) async fn run<L>(logs: L, findings: Weak<Findings>, stop: StopSignal)
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
            let result = tokio::select! {
                biased;
                _ = stop.stopped() => return,
                result = log.verify_slowly(BYTES_PER_SECOND) => result,
            };
            let Some(findings) = findings.upgrade() else { return };
            findings.note(&log, &result);
        }
    }
}
