//! What partitions count and time, whichever door a request came through. One set of handles per broker.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, counter};
use pontoon_raft::instruments;
use pontoon_raft::instruments::Instrument;
use pontoon_raft::stages::StageTimes;
use pontoon_raft::types::BrokerId;

use crate::error::Code;

instruments! {
    /// Produce and fetch.
    struct Handles {
        /// Records acknowledged.
        counter produced_records = "pontoon_produce_records_total";
        /// Bytes of record batches acknowledged.
        counter produced_bytes = "pontoon_produce_bytes_total";
        /// Batches acknowledged.
        counter produced_batches = "pontoon_produce_batches_total";
        /// From a batch's proposal to its acknowledgement.
        histogram produce_seconds = "pontoon_produce_duration_seconds";
        /// Of that: until the batch had its place in the log.
        histogram queue_seconds = "pontoon_produce_queue_seconds";
        /// Of that: from then until it was durable on the leader.
        histogram journal_seconds = "pontoon_produce_journal_seconds";
        /// Of that: from then until enough others had it.
        histogram replicate_seconds = "pontoon_produce_replicate_seconds";
        /// Records in batches served to consumers.
        counter fetched_records = "pontoon_fetch_records_total";
        /// Bytes of record batches served to consumers.
        counter fetched_bytes = "pontoon_fetch_bytes_total";
        /// Reads for consumers, whether they found something or not.
        counter fetches = "pontoon_fetches_total";
        /// Reads for consumers that did not wait for records: how long they took.
        histogram fetch_seconds = "pontoon_fetch_duration_seconds";
    }
}

const PRODUCE_ERRORS: Instrument = Instrument {
    kind: "counter",
    name: "pontoon_produce_errors_total",
    help: "Batches refused, or of unknown outcome, by code.",
};

/// What a broker's partitions count and time with.
#[derive(Clone, Debug)]
pub struct PartitionInstruments {
    handles: Handles,
    /// By code, in the order of [`Code::ALL`].
    produce_errors: Arc<[Counter]>,
}

impl PartitionInstruments {
    /// What they are called.
    pub const ALL: &'static [Instrument] = &{
        let mut all = [PRODUCE_ERRORS; Handles::ALL.len() + 1];
        let mut at = 0;
        while at < Handles::ALL.len() {
            all[at] = Handles::ALL[at];
            at += 1;
        }
        all
    };

    /// The handles of one broker. Made again, they are the same.
    pub fn new(broker: BrokerId) -> Self {
        PRODUCE_ERRORS.describe();
        let error =
            |code: &Code| counter!(PRODUCE_ERRORS.name, "broker" => broker.to_string(), "code" => code.as_str());
        Self { handles: Handles::new(broker), produce_errors: Code::ALL.iter().map(error).collect() }
    }

    /// A batch was refused, or nobody knows what became of it.
    pub(super) fn not_produced(&self, code: Code) {
        if let Some(counter) = self.produce_errors.get(code as usize) {
            counter.increment(1);
        }
    }

    /// A batch was acknowledged.
    pub(super) fn produced(&self, records: u64, bytes: usize, took: Duration, stages: Option<StageTimes>) {
        self.handles.produced_batches.increment(1);
        self.handles.produced_records.increment(records);
        self.handles.produced_bytes.increment(bytes as u64);
        self.handles.produce_seconds.record(took.as_secs_f64());
        if let Some(StageTimes { queue, journal, replicate }) = stages {
            self.handles.queue_seconds.record(queue.as_secs_f64());
            self.handles.journal_seconds.record(journal.as_secs_f64());
            self.handles.replicate_seconds.record(replicate.as_secs_f64());
        }
    }

    /// A read found an end or records; `at_once` tells how long it took if it waited for nothing.
    pub(super) fn fetched(&self, at_once: Option<Duration>) {
        self.handles.fetches.increment(1);
        if let Some(took) = at_once {
            self.handles.fetch_seconds.record(took.as_secs_f64());
        }
    }

    /// Batches were served to a consumer. The doors say so: what they read is not always what they serve.
    pub fn served(&self, records: u64, bytes: usize) {
        self.handles.fetched_records.increment(records);
        self.handles.fetched_bytes.increment(bytes as u64);
    }
}
