//! What `/metrics` shows of the Kafka door. Base units, no label that grows with topics or clients.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

/// Says what each is.
pub(super) fn describe() {
    describe_counter!("pontoon_kafka_requests_total", "Kafka requests answered, by API.");
    describe_histogram!(
        "pontoon_kafka_request_duration_seconds",
        "From a request's last byte to its answer, waits included."
    );
    describe_gauge!("pontoon_kafka_connections", "Open Kafka connections.");
    describe_counter!(
        "pontoon_kafka_malformed_total",
        "Kafka requests that were not understood; each closes its connection."
    );
}

/// A request was answered.
pub(super) fn answered(api: &'static str, took: Duration) {
    counter!("pontoon_kafka_requests_total", "api" => api).increment(1);
    histogram!("pontoon_kafka_request_duration_seconds", "api" => api).record(took.as_secs_f64());
}

/// A request was not understood.
pub(super) fn malformed() {
    counter!("pontoon_kafka_malformed_total").increment(1);
}

/// A batch was acknowledged; the same counters as HTTP's.
pub(super) fn produced(records: u64, bytes: usize, took: Duration) {
    counter!("pontoon_produce_records_total").increment(records);
    counter!("pontoon_produce_bytes_total").increment(bytes as u64);
    histogram!("pontoon_produce_duration_seconds").record(took.as_secs_f64());
}

/// Records were served; the same counters as HTTP's.
pub(super) fn fetched(records: u64, bytes: usize) {
    counter!("pontoon_fetch_records_total").increment(records);
    counter!("pontoon_fetch_bytes_total").increment(bytes as u64);
}

/// Counts a connection while it is held.
pub(super) struct OpenConnection(());

impl OpenConnection {
    pub(super) fn new() -> Self {
        gauge!("pontoon_kafka_connections").increment(1.0);
        Self(())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        gauge!("pontoon_kafka_connections").decrement(1.0);
    }
}
