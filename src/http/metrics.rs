//! What the HTTP door counts and times, and the text of `/metrics`.
//!
//! Handles are found by route, method and status, all of which are the code's own words; no label is made per request, and
//! none grows with topics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use metrics::{Counter, Histogram, counter, histogram};
use parking_lot::RwLock;
use pontoon_raft::instruments;
use pontoon_raft::instruments::Instrument;
use pontoon_raft::types::BrokerId;

use crate::error::Code;
use crate::partition::PartitionInstruments;
use crate::telemetry::process;
use crate::telemetry::recorder::{Open, Recorder, recorder};

instruments! {
    /// The door's own.
    pub(super) struct DoorInstruments {
        /// 1 while /readyz says so.
        gauge ready = "pontoon_ready";
        /// Open connections.
        gauge connections = "pontoon_http_connections";
        /// Open tails (text/event-stream).
        gauge tails = "pontoon_http_tails";
        /// Bytes of requests being worked on.
        gauge request_bytes = "pontoon_http_request_bytes_in_flight";
        /// Requests passed on to a partition's leader.
        counter forwarded = "pontoon_http_forwarded_total";
    }
}

const REQUESTS: Instrument = Instrument {
    kind: "counter",
    name: "pontoon_http_requests_total",
    help: "Requests answered, by route, method and status.",
};
const SECONDS: Instrument = Instrument {
    kind: "histogram",
    name: "pontoon_http_request_duration_seconds",
    help: "From a request's head to its answer's head, by route and method.",
};
const REFUSALS: Instrument =
    Instrument { kind: "counter", name: "pontoon_refusals_total", help: "Refusals over HTTP, by code." };

/// Whatever the door shows of itself.
pub fn instruments() -> impl Iterator<Item = Instrument> {
    DoorInstruments::ALL.iter().copied().chain([REQUESTS, SECONDS, REFUSALS])
}

/// How a request was answered.
struct Answered {
    method: &'static str,
    status: u16,
    count: Counter,
    seconds: Histogram,
}

/// A counter by [`Code`], in the order of [`Code::ALL`].
#[derive(Clone, Default)]
pub(super) struct Refusals(Arc<[Counter]>);

impl Refusals {
    /// A request was refused.
    pub(super) fn count(&self, code: Code) {
        if let Some(counter) = self.0.get(code as usize) {
            counter.increment(1);
        }
    }
}

/// One server's handles.
pub(super) struct Metrics {
    pub(super) broker: BrokerId,
    recorder: &'static Recorder,
    pub(super) door: DoorInstruments,
    pub(super) partitions: PartitionInstruments,
    pub(super) refusals: Refusals,
    /// By route. As many as there are routes, methods and statuses.
    answered: RwLock<BTreeMap<String, Vec<Answered>>>,
}

impl Metrics {
    pub(super) fn new(broker: BrokerId) -> Self {
        let recorder = recorder();
        [REQUESTS, SECONDS, REFUSALS].iter().for_each(Instrument::describe);
        let refusal = |code: &Code| counter!(REFUSALS.name, "broker" => broker.to_string(), "code" => code.as_str());
        Self {
            broker,
            recorder,
            door: DoorInstruments::new(broker),
            partitions: PartitionInstruments::new(broker),
            refusals: Refusals(Code::ALL.iter().map(refusal).collect()),
            answered: RwLock::default(),
        }
    }

    /// A request was answered.
    pub(super) fn answered(&self, route: &str, method: &Method, status: u16, took: Duration) {
        let method = known(method);
        let note = |answered: &Answered| {
            answered.count.increment(1);
            answered.seconds.record(took.as_secs_f64());
        };
        let is = |answered: &&Answered| (answered.method, answered.status) == (method, status);
        if let Some(found) = self.answered.read().get(route).and_then(|all| all.iter().find(is)) {
            return note(found);
        }
        let mut all = self.answered.write();
        let all = all.entry(route.to_owned()).or_default();
        // Somebody may have been faster.
        if let Some(found) = all.iter().find(is) {
            return note(found);
        }
        let made = self.make(route, method, status);
        note(&made);
        all.push(made);
    }

    fn make(&self, route: &str, method: &'static str, status: u16) -> Answered {
        let broker = self.broker.to_string();
        let labels = [("broker", broker), ("route", route.to_owned()), ("method", method.to_owned())];
        let seconds = histogram!(SECONDS.name, &labels);
        let [broker, route, label] = labels;
        let count = counter!(REQUESTS.name, &[broker, route, label, ("status", status.to_string())]);
        Answered { method, status, count, seconds }
    }

    /// Counts a connection while what is returned is held.
    pub(super) fn open_connection(&self) -> Open {
        Open::new(&self.door.connections)
    }

    /// The text of `/metrics`.
    pub(super) fn render(&self, request_bytes_in_flight: usize) -> String {
        self.door.request_bytes.set(request_bytes_in_flight as f64);
        process::observe();
        self.recorder.render(Some(self.broker))
    }
}

/// Anybody can send any word as a method.
fn known(method: &Method) -> &'static str {
    const KNOWN: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    KNOWN.iter().find(|known| **known == method.as_str()).copied().unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_stand_in_the_order_of_their_table() {
        for (at, code) in Code::ALL.iter().enumerate() {
            assert_eq!(*code as usize, at, "{code}");
        }
    }

    #[test]
    fn requests_are_told_apart_by_words_of_the_code_only() {
        let metrics = Metrics::new(BrokerId(4_000_000));
        let propfind = Method::from_bytes(b"PROPFIND").unwrap();
        for (method, status) in [(&Method::GET, 200), (&Method::GET, 200), (&Method::GET, 404), (&propfind, 405)] {
            metrics.answered("/v1/topics/{topic}", method, status, Duration::from_millis(3));
        }
        metrics.refusals.count(Code::UnknownTopic);
        let open = metrics.open_connection();
        let text = metrics.render(7);
        drop(open);
        for line in [
            "pontoon_http_requests_total{broker=\"4000000\",route=\"/v1/topics/{topic}\",method=\"GET\",status=\"200\"} 2",
            "pontoon_http_requests_total{broker=\"4000000\",route=\"/v1/topics/{topic}\",method=\"other\",status=\"405\"} 1",
            "pontoon_http_request_duration_seconds_count{broker=\"4000000\",route=\"/v1/topics/{topic}\",method=\"GET\"} 3",
            "pontoon_refusals_total{broker=\"4000000\",code=\"UNKNOWN_TOPIC\"} 1",
            "pontoon_refusals_total{broker=\"4000000\",code=\"STORAGE_FULL\"} 0",
            "pontoon_http_connections{broker=\"4000000\"} 1",
            "pontoon_http_request_bytes_in_flight{broker=\"4000000\"} 7",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is missing: {text}");
        }
    }
}
