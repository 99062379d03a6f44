//! Which client a run has: HTTP, Kafka, or for each life of a client one or the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::http::{HttpClient, HttpConnector};
use super::kafka::{KafkaClient, KafkaConnector};
use super::retries::Counted;
use super::{Client, Connector, Fetched, FromGroup, Sent};
use crate::history::{Key, Offset, Value};

/// The clients of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientKind {
    /// Pontoon's HTTP.
    #[default]
    Http,
    /// Kafka's protocol.
    Kafka,
    /// Both, in turn.
    Mixed,
}

impl ClientKind {
    /// All, by the names of the command line.
    pub const NAMES: [&'static str; 3] = ["http", "kafka", "mixed"];

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Http, Self::Kafka, Self::Mixed];
        Self::NAMES.iter().position(|known| *known == name).map(|at| all[at])
    }

    /// For the end of a run's name; HTTP goes without saying.
    pub fn of_name(self) -> &'static str {
        match self {
            Self::Http => "",
            Self::Kafka => ", clients: kafka",
            Self::Mixed => ", clients: mixed",
        }
    }

    /// Whether some of its clients are told that a send met its original: HTTP has a word for it, Kafka none.
    pub fn hears_of_duplicates(self) -> bool {
        self != Self::Kafka
    }

    /// Whether some of its clients can be members of consumer groups.
    pub fn can_subscribe(self) -> bool {
        self != Self::Http
    }
}

/// Makes clients of either kind.
#[derive(Clone)]
pub struct AnyConnector {
    kind: ClientKind,
    http: HttpConnector,
    kafka: KafkaConnector,
    made: Arc<AtomicU64>,
}

impl AnyConnector {
    /// Makes those of this kind.
    pub fn new(kind: ClientKind, http: HttpConnector, kafka: KafkaConnector) -> Self {
        Self { kind, http, kafka, made: Arc::default() }
    }

    /// How often idempotent clients were acknowledged, and sent again: those of HTTP, and those of Kafka's protocol.
    pub fn retries(&self) -> (Counted, Counted) {
        (self.http.retries(), self.kafka.retries())
    }

    /// The one that makes Kafka clients.
    pub fn kafka(&self) -> &KafkaConnector {
        &self.kafka
    }
}

impl Connector for AnyConnector {
    type Client = AnyClient;

    fn connect(&self, broker: usize, idempotent: bool) -> AnyClient {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        match self.kind {
            ClientKind::Http => AnyClient::Http(Box::new(self.http.connect(broker, idempotent))),
            ClientKind::Mixed if number.is_multiple_of(2) => {
                AnyClient::Http(Box::new(self.http.connect(broker, idempotent)))
            }
            ClientKind::Kafka | ClientKind::Mixed => AnyClient::Kafka(Box::new(self.kafka.connect(broker, idempotent))),
        }
    }

    fn brokers(&self) -> usize {
        self.http.brokers()
    }
}

/// A client of either kind.
pub enum AnyClient {
    /// Of HTTP.
    Http(Box<HttpClient>),
    /// Of Kafka's protocol.
    Kafka(Box<KafkaClient>),
}

/// The same call to whichever it is.
macro_rules! either {
    ($client:expr, $inner:ident => $call:expr) => {
        match $client {
            AnyClient::Http($inner) => $call,
            AnyClient::Kafka($inner) => $call,
        }
    };
}

impl Client for AnyClient {
    async fn send(&mut self, key: Key, values: &[Value], at: Option<Offset>) -> Sent {
        either!(self, client => client.send(key, values, at).await)
    }

    async fn fetch(&mut self, key: Key, from: Option<Offset>, linearizable: bool) -> Result<Fetched, String> {
        either!(self, client => client.fetch(key, from, linearizable).await)
    }

    fn use_broker(&mut self, broker: usize) {
        either!(self, client => client.use_broker(broker))
    }

    fn can_condition(&self) -> bool {
        either!(self, client => client.can_condition())
    }

    fn can_subscribe(&self) -> bool {
        either!(self, client => client.can_subscribe())
    }

    fn subscribe(&mut self, group: String, keys: Vec<Key>) {
        either!(self, client => client.subscribe(group, keys))
    }

    async fn poll_group(&mut self) -> FromGroup {
        either!(self, client => client.poll_group().await)
    }

    async fn leave_group(&mut self) {
        either!(self, client => client.leave_group().await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_name() {
        for name in ClientKind::NAMES {
            let kind = ClientKind::named(name).unwrap();
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("{name:?}"));
        }
        assert_eq!(ClientKind::named("telnet"), None);
    }

    #[test]
    fn mixed_clients_are_of_both_kinds() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Arc::new(crate::recorder::Recorder::begin(dir.path()).unwrap());
        let http = HttpConnector::new(Vec::new(), Vec::new(), |_| 0, recorder.clone());
        let kafka = KafkaConnector::new(Vec::new(), Vec::new(), |_| 0, recorder);
        for (kind, expected) in [(ClientKind::Http, 0), (ClientKind::Kafka, 10), (ClientKind::Mixed, 5)] {
            let connector = AnyConnector::new(kind, http.clone(), kafka.clone());
            let made = (0..10).map(|at| connector.connect(at, false));
            assert_eq!(made.filter(Client::can_subscribe).count(), expected, "{kind:?}");
        }
    }
}
