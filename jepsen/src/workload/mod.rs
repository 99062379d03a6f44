//! What the clients of a run do: send, poll, read linearizably, crash, and at the end read everything.
//!
//! [`worker`] is one client after another in one place, [`steps`] one operation from invocation to completion as it goes into the history,
//! [`final_reads`] the end. Beside them, each with claims of its own: [`churn`] makes topics come and go, [`retained`] fills a topic whose
//! oldest records go, [`registers`] sets and reads the offsets of consumer groups. They know the [`crate::client`] trait and nothing of the brokers or of what is done to them.

pub mod churn;
#[cfg(test)]
mod fake;
pub mod final_reads;
mod http;
pub mod registers;
pub mod retained;
pub mod steps;
pub mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::history::{Key, Value};

/// Makes values that no key was ever sent before.
#[derive(Clone)]
pub struct Values(Arc<Vec<AtomicI64>>);

impl Values {
    /// For keys `0..keys`.
    pub fn new(keys: usize) -> Self {
        Self(Arc::new((0..keys).map(|_| AtomicI64::new(0)).collect()))
    }

    /// How many keys there are.
    pub fn keys(&self) -> usize {
        self.0.len()
    }

    /// The next value of a key.
    pub fn next(&self, key: Key) -> Value {
        Value(self.0[key.0 as usize].fetch_add(1, Ordering::Relaxed))
    }
}

/// How large the record of a value is made, in bytes: most are small, some as large as makes the brokers do other things (a large
/// append does not go through the journal).
pub fn record_bytes(value: Value) -> usize {
    match value.0 % 97 {
        13 => 20_000,
        41 => 3_000,
        other => (other % 7) as usize * 20,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::watch;
    use tokio::task::JoinSet;

    use super::fake::FakeConnector;
    use super::worker::Worker;
    use super::*;
    use crate::checkers::Anomaly;
    use crate::checkers::workloads::Workload;
    use crate::history::Kind;
    use crate::random::Random;
    use crate::recorder::Recorder;
    use crate::registers::{Deed, Register};
    use crate::run_dir;
    use crate::verdict::{Judgement, RunInfo, Verdict, judge};

    /// Several workers against logs in memory until so many operations worked, then the final reads; judged from the files.
    async fn ran(workload: Workload, logs: FakeConnector) -> (Judgement, String) {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Arc::new(Recorder::begin(dir.path()).unwrap());
        let (values, mut random) = (Values::new(3), Random::new(11));
        let (halt, halted) = watch::channel(false);
        let mut workers = JoinSet::new();
        for _ in 0..5 {
            let worker = Worker {
                workload,
                random: random.split(),
                recorder: recorder.clone(),
                connector: logs.clone(),
                values: values.clone(),
                pause: Duration::from_micros(20),
            };
            workers.spawn(worker.run(halted.clone()));
        }
        while recorder.tally().ok < 600 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let process = recorder.new_register_process();
        for deed in [Deed::Write(1), Deed::Read(Some(1))] {
            recorder.register(Kind::Invoke, process, Register(0), deed, None);
            recorder.register(Kind::Ok, process, Register(0), deed, None);
        }
        halt.send(true).unwrap();
        while workers.join_next().await.is_some() {}
        final_reads::read_everything(&recorder, &logs, 0, 3, Duration::from_secs(60)).await;
        recorder.end().unwrap();
        let (name, faults_planned) = ("test".to_owned(), Vec::new());
        let info = RunInfo { name, workload, seed: 1, nodes: 3, faults_planned };
        std::fs::write(dir.path().join(run_dir::RUN_JSON), serde_json::to_string(&info).unwrap()).unwrap();
        let history = std::fs::read_to_string(dir.path().join(run_dir::HISTORY_EDN)).unwrap();
        (judge(&run_dir::load(dir.path()).unwrap()), history)
    }

    #[tokio::test]
    async fn against_correct_logs_every_history_is_well_formed_and_valid() {
        for workload in [Workload::Single, Workload::Mixed] {
            for trouble in [0, 6] {
                let (judged, history) = ran(workload, FakeConnector::new(3, trouble)).await;
                assert_eq!(judged.verdict, Verdict::Valid, "{judged:?}");
                assert!(history.contains(":linearizable? true") && history.contains(":f :crash"));
            }
        }
    }

    #[tokio::test]
    async fn a_value_that_is_acknowledged_and_lost_is_found() {
        let logs = FakeConnector::new(3, 0);
        logs.lose(Value(3));
        let (judged, _) = ran(Workload::Single, logs).await;
        assert_eq!(judged.verdict, Verdict::Anomalies);
        let found: Vec<Anomaly> = judged
            .outcomes
            .iter()
            .filter(|outcome| outcome.findings.count > 0)
            .map(|outcome| outcome.anomaly)
            .collect();
        assert!(found.contains(&Anomaly::Unseen) && found.contains(&Anomaly::LostWrite), "{found:?}");
    }

    #[test]
    fn no_key_gets_a_value_twice() {
        let values = Values::new(2);
        let other = values.clone();
        assert_eq!([values.next(Key(0)), other.next(Key(0)), values.next(Key(1))], [Value(0), Value(1), Value(0)]);
    }
}
