//! What `/metrics` shows of the HTTP door. Base units, no label that grows with topics.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::error::Code;

/// Upper bounds of the latency buckets, in seconds: from a fast fsync to a timeout.
const LATENCY_BUCKETS: &[f64] =
    &[0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

/// The process's recorder, installed at the first call.
pub(super) fn handle() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let buckets = Matcher::Suffix("_seconds".into());
        let builder = PrometheusBuilder::new().set_buckets_for_metric(buckets, LATENCY_BUCKETS);
        // It fails only for an empty list of buckets.
        let builder = builder.unwrap_or_else(|_| PrometheusBuilder::new());
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        // Somebody else's recorder (a test's) may be there already: ours then shows nothing, and nothing breaks.
        let _ = metrics::set_global_recorder(recorder);
        describe();
        handle
    })
}

fn describe() {
    describe_counter!("pontoon_http_requests_total", "Requests answered, by route, method and status.");
    describe_histogram!("pontoon_http_request_duration_seconds", "From a request's head to its answer's head.");
    describe_gauge!("pontoon_http_connections", "Open connections.");
    describe_gauge!("pontoon_http_tails", "Open tails (text/event-stream).");
    describe_gauge!("pontoon_http_request_bytes_in_flight", "Bytes of requests being worked on.");
    describe_counter!("pontoon_http_forwarded_total", "Requests passed on to a partition's leader.");
    describe_counter!("pontoon_refusals_total", "Refusals, by code.");
    describe_counter!("pontoon_produce_records_total", "Records acknowledged.");
    describe_counter!("pontoon_produce_bytes_total", "Bytes of record batches acknowledged.");
    describe_histogram!("pontoon_produce_duration_seconds", "From a batch's proposal to its acknowledgement.");
    describe_counter!("pontoon_fetch_records_total", "Records served.");
    describe_counter!("pontoon_fetch_bytes_total", "Bytes of record batches served.");
    describe_gauge!("pontoon_ready", "1 while /readyz says so.");
    describe_gauge!("pontoon_broker_leads", "Partitions that this broker leads.");
    describe_gauge!("pontoon_broker_replicas", "Replicas on this broker.");
    describe_gauge!("pontoon_broker_lagging_replicas", "Replicas on this broker that are behind their leader.");
}

/// A request was answered.
pub(super) fn answered(route: &str, method: &str, status: u16, took: Duration) {
    let labels = [("route", route.to_owned()), ("method", method.to_owned())];
    histogram!("pontoon_http_request_duration_seconds", &labels).record(took.as_secs_f64());
    let labels = [("route", route.to_owned()), ("method", method.to_owned()), ("status", status.to_string())];
    counter!("pontoon_http_requests_total", &labels).increment(1);
}

/// A request was refused.
pub(super) fn refused(code: Code) {
    counter!("pontoon_refusals_total", "code" => code.as_str()).increment(1);
}

/// A batch was acknowledged.
pub(super) fn produced(records: u64, bytes: usize, took: Duration) {
    counter!("pontoon_produce_records_total").increment(records);
    counter!("pontoon_produce_bytes_total").increment(bytes as u64);
    histogram!("pontoon_produce_duration_seconds").record(took.as_secs_f64());
}

/// Records were served.
pub(super) fn fetched(records: u64, bytes: usize) {
    counter!("pontoon_fetch_records_total").increment(records);
    counter!("pontoon_fetch_bytes_total").increment(bytes as u64);
}

/// A request was passed on.
pub(super) fn forwarded() {
    counter!("pontoon_http_forwarded_total").increment(1);
}

/// Counts a connection while it is held.
pub(super) struct OpenConnection(());

impl OpenConnection {
    pub(super) fn new() -> Self {
        gauge!("pontoon_http_connections").increment(1.0);
        Self(())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        gauge!("pontoon_http_connections").decrement(1.0);
    }
}

/// Counts a tail while it is held.
pub(super) struct OpenTail(());

impl OpenTail {
    pub(super) fn new() -> Self {
        gauge!("pontoon_http_tails").increment(1.0);
        Self(())
    }
}

impl Drop for OpenTail {
    fn drop(&mut self) {
        gauge!("pontoon_http_tails").decrement(1.0);
    }
}

/// What is only known at the moment of asking.
pub(super) struct Moment {
    pub(super) ready: bool,
    pub(super) request_bytes_in_flight: usize,
    pub(super) leads: u32,
    pub(super) replicas: u32,
    pub(super) lagging: u32,
}

/// The text of `/metrics`.
pub(super) fn render(now: &Moment) -> String {
    gauge!("pontoon_ready").set(if now.ready { 1.0 } else { 0.0 });
    gauge!("pontoon_http_request_bytes_in_flight").set(now.request_bytes_in_flight as f64);
    gauge!("pontoon_broker_leads").set(f64::from(now.leads));
    gauge!("pontoon_broker_replicas").set(f64::from(now.replicas));
    gauge!("pontoon_broker_lagging_replicas").set(f64::from(now.lagging));
    handle().run_upkeep();
    handle().render()
}
