//! What partitions count and time, whichever door a request came through. One set of handles per broker.

use std::time::Duration;

use pontoon_raft::instruments;
use pontoon_raft::stages::StageTimes;

instruments! {
    /// Produce and fetch.
    pub struct PartitionInstruments {
        /// Records acknowledged.
        counter produced_records = "pontoon_produce_records_total";
        /// Bytes of record batches acknowledged.
        counter produced_bytes = "pontoon_produce_bytes_total";
        /// Batches acknowledged.
        counter produced_batches = "pontoon_produce_batches_total";
        /// Batches refused, or of unknown outcome.
        counter produce_errors = "pontoon_produce_errors_total";
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

impl PartitionInstruments {
    /// A batch was acknowledged.
    pub(super) fn produced(&self, records: u64, bytes: usize, took: Duration, stages: Option<StageTimes>) {
        self.produced_batches.increment(1);
        self.produced_records.increment(records);
        self.produced_bytes.increment(bytes as u64);
        self.produce_seconds.record(took.as_secs_f64());
        if let Some(StageTimes { queue, journal, replicate }) = stages {
            self.queue_seconds.record(queue.as_secs_f64());
            self.journal_seconds.record(journal.as_secs_f64());
            self.replicate_seconds.record(replicate.as_secs_f64());
        }
    }

    /// A read found an end or records; `at_once` tells how long it took if it waited for nothing.
    pub(super) fn fetched(&self, at_once: Option<Duration>) {
        self.fetches.increment(1);
        if let Some(took) = at_once {
            self.fetch_seconds.record(took.as_secs_f64());
        }
    }

    /// Batches were served to a consumer. The doors say so: what they read is not always what they serve.
    pub fn served(&self, records: u64, bytes: usize) {
        self.fetched_records.increment(records);
        self.fetched_bytes.increment(bytes as u64);
    }
}
