//! What the Kafka door counts and times. Base units, no label that grows with topics or clients, none made per request.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::{Counter, Histogram, counter, histogram};
use parking_lot::RwLock;
use pontoon_raft::instruments;
use pontoon_raft::instruments::Instrument;
use pontoon_raft::types::BrokerId;

use crate::partition::PartitionInstruments;
use crate::telemetry::recorder::Open;

instruments! {
    /// The door's own.
    pub(super) struct DoorInstruments {
        /// Open Kafka connections.
        gauge connections = "pontoon_kafka_connections";
        /// Kafka requests that were not understood; each closes its connection.
        counter malformed = "pontoon_kafka_malformed_total";
    }
}

const REQUESTS: Instrument =
    Instrument { kind: "counter", name: "pontoon_kafka_requests_total", help: "Kafka requests answered, by API." };
const SECONDS: Instrument = Instrument {
    kind: "histogram",
    name: "pontoon_kafka_request_duration_seconds",
    help: "From a request's last byte to its answer, waits included, by API.",
};

/// Whatever the door shows; what it shows by API comes with each API's first request.
pub fn instruments() -> impl Iterator<Item = Instrument> {
    DoorInstruments::ALL.iter().copied().chain([REQUESTS, SECONDS])
}

/// One door's handles.
pub(super) struct Metrics {
    broker: BrokerId,
    pub(super) door: DoorInstruments,
    /// What is served is counted with HTTP's.
    pub(super) partitions: PartitionInstruments,
    /// By API; there are as many as this broker knows.
    answered: RwLock<BTreeMap<&'static str, (Counter, Histogram)>>,
}

impl Metrics {
    pub(super) fn new(broker: BrokerId) -> Self {
        [REQUESTS, SECONDS].iter().for_each(Instrument::describe);
        Self {
            broker,
            door: DoorInstruments::new(broker),
            partitions: PartitionInstruments::new(broker),
            answered: RwLock::default(),
        }
    }

    /// A request was answered.
    pub(super) fn answered(&self, api: &'static str, took: Duration) {
        let note = |(count, seconds): &(Counter, Histogram)| {
            count.increment(1);
            seconds.record(took.as_secs_f64());
        };
        if let Some(known) = self.answered.read().get(api) {
            return note(known);
        }
        let labels = [("broker", self.broker.to_string()), ("api", api.to_owned())];
        let made = || (counter!(REQUESTS.name, &labels), histogram!(SECONDS.name, &labels));
        note(self.answered.write().entry(api).or_insert_with(made));
    }

    /// Counts a connection while what is returned is held.
    pub(super) fn open_connection(&self) -> Open {
        Open::new(&self.door.connections)
    }
}
