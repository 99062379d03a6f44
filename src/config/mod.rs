//! A broker's configuration: what there is, its defaults, and what must hold between the values.
//!
//! Everything is checked once, at start, before a file or socket is touched; each message names the key and the value.
//! Where values come from (file, environment, flags) is in [`load`]; the names they go by are in [`keys`].

pub mod keys;
pub mod load;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use pontoon_raft::config::RaftConfig;
use pontoon_raft::log::frame::FRAME_PAYLOAD_BYTES_MAX;
use pontoon_raft::types::BrokerId;

/// Largest `limits.request_bytes_max`: a request may carry one batch, and a batch becomes one frame of the log.
const REQUEST_BYTES_CEILING: usize = FRAME_PAYLOAD_BYTES_MAX as usize;

/// Why a configuration is refused: names the key, the value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// An address to listen on and the one others are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenConfig {
    /// `host:port` to bind; port 0 lets the kernel choose.
    pub listen: String,
    /// `host:port` others are told. Default: `listen`, once its port is known.
    pub advertised: Option<String>,
}

/// Limits (API.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest record, key and value and headers together. Default: 1 MiB and 12 bytes, as Kafka's.
    pub record_bytes_max: usize,
    /// Largest request body. Default: 16 MiB.
    pub request_bytes_max: usize,
    /// Most request bytes being worked on at once, and most bytes of answers to fetches. Default: 256 MiB (each).
    pub inflight_bytes_max: usize,
    /// Most connections, over HTTP and over Kafka each; never more than a sixth of RLIMIT_NOFILE. Default: 10 000.
    pub connections_max: usize,
    /// Largest head of a request, path and headers together. Default: 32 KiB.
    pub header_bytes_max: usize,
    /// Longest wait for a request's head, also on an idle connection. Default: 60 s.
    pub header_timeout: Duration,
    /// Longest wait for a request's whole body. Default: 30 s.
    pub body_timeout: Duration,
    /// Longest that a client may leave an answer unread before its connection is closed. Default: 60 s.
    pub write_timeout: Duration,
    /// Most bytes of the consumer groups of one partition of their topic: what they were told, and some for each thing. Default: 64 MiB.
    pub groups_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            record_bytes_max: (1 << 20) + 12,
            request_bytes_max: 16 << 20,
            inflight_bytes_max: 256 << 20,
            connections_max: 10_000,
            header_bytes_max: 32 << 10,
            header_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            groups_bytes_max: 64 << 20,
        }
    }
}

/// The Kafka listener and what it does of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaConfig {
    /// Where. Default: 127.0.0.1:9092.
    pub listener: ListenConfig,
    /// Whether there is a Kafka listener at all (`kafka.listen = "off"`). Default: yes.
    pub enabled: bool,
    /// `auto.create.topics.enable`: a client that asks for a topic that does not exist creates it. Default: no (`dev`: yes).
    pub auto_create_topics: bool,
    /// `num.partitions`: of a topic whose creator names no number. Default: 1 (`dev`: 4).
    pub num_partitions: u32,
    /// `offsets.topic.num.partitions`: over how many partitions consumer groups are spread, fixed when the first group is made.
    /// Default: 16.
    pub offsets_partitions: u32,
    /// `offsets.retention.minutes`: how long committed offsets of a group without members are kept. Default: seven days.
    pub offsets_retention: Duration,
    /// `offsets.retention.check.interval.ms`: how often those that are older are looked for. Default: a minute.
    pub offsets_retention_check_interval: Duration,
    /// `group.max.size`: most members of a consumer group, those who are about to join among them. Default: 2000.
    pub group_members_max: usize,
    /// A connection on which nothing is asked for so long is closed. Default: 10 min.
    pub idle_timeout: Duration,
    /// Most requests of one connection being worked on or waiting to be. Default: 16.
    pub inflight_requests_max: usize,
    /// `socket.request.max.bytes`: the largest request, in bytes. Default: 100 MiB, Kafka's: clients send as much at once.
    pub request_bytes_max: usize,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            listener: ListenConfig { listen: "127.0.0.1:9092".into(), advertised: None },
            enabled: true,
            auto_create_topics: false,
            num_partitions: 1,
            offsets_partitions: 16,
            offsets_retention: Duration::from_secs(7 * 24 * 3600),
            offsets_retention_check_interval: Duration::from_secs(60),
            group_members_max: 2000,
            idle_timeout: Duration::from_secs(600),
            inflight_requests_max: 16,
            request_bytes_max: 100 << 20,
        }
    }
}

/// One broker's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This broker's number.
    pub broker_id: BrokerId,
    /// Where its data is.
    pub data_dir: PathBuf,
    /// The initial brokers and their peer addresses. A broker that is not among them joins them.
    pub bootstrap: BTreeMap<BrokerId, String>,
    /// HTTP.
    pub http: ListenConfig,
    /// Further names under which clients may address this broker (`Host`); its own addresses always count.
    pub http_hosts: Vec<String>,
    /// The Kafka protocol.
    pub kafka: KafkaConfig,
    /// Broker to broker.
    pub peer: ListenConfig,
    /// Listen on other addresses than loopback without security.
    pub allow_insecure: bool,
    /// `/metrics` shows each partition that this broker leads. Default: no; thousands of them are many series.
    pub metrics_partitions: bool,
    /// Most consumer groups that `/metrics` shows by name, and most of their partitions. Default: 500.
    pub metrics_groups_max: usize,
    /// Limits.
    pub limits: Limits,
    /// Defaults of topic configuration (`log.*`).
    pub log: BTreeMap<String, String>,
    /// How often each partition is looked at for records to let go. Default: 30 s.
    pub retention_check_interval: Duration,
    /// `producer.id.expiration.ms`: an idempotent producer of which a partition has taken nothing for so long is forgotten
    /// there. Default: a day.
    pub producer_id_expiration: Duration,
    /// `catalog.snapshot_entries`: the catalog's log is cut behind a snapshot every so many entries. Default: 10,000.
    pub catalog_snapshot_entries: u64,
    /// The replicated log's own limits.
    pub raft: RaftConfig,
}

impl Config {
    /// The defaults, for this broker on this directory; `bootstrap` is empty.
    pub fn new(broker_id: BrokerId, data_dir: PathBuf) -> Self {
        Self {
            broker_id,
            data_dir,
            bootstrap: BTreeMap::new(),
            http: ListenConfig { listen: "127.0.0.1:8090".into(), advertised: None },
            http_hosts: Vec::new(),
            kafka: KafkaConfig::default(),
            peer: ListenConfig { listen: "127.0.0.1:7090".into(), advertised: None },
            allow_insecure: false,
            metrics_partitions: false,
            metrics_groups_max: 500,
            limits: Limits::default(),
            log: BTreeMap::new(),
            retention_check_interval: Duration::from_secs(30),
            producer_id_expiration: Duration::from_secs(24 * 3600),
            catalog_snapshot_entries: 10_000,
            raft: RaftConfig::default(),
        }
    }

    /// Checks what must hold between the values. Returns warnings for the operator.
    pub fn validate(&self) -> Result<Vec<String>, ConfigError> {
        self.check_bootstrap()?;
        let mut warnings = Vec::new();
        for (name, listener) in [("http", &self.http), ("peer", &self.peer)] {
            warnings.extend(self.check_listener(name, listener)?);
        }
        if self.kafka.enabled {
            warnings.extend(self.check_listener("kafka", &self.kafka.listener)?);
        }
        self.check_limits()?;
        self.check_raft()?;
        Ok(warnings)
    }

    fn check_bootstrap(&self) -> Result<(), ConfigError> {
        if self.bootstrap.is_empty() {
            return refuse("bootstrap is empty: name the initial brokers, e.g. bootstrap = [\"1@127.0.0.1:7090\"]");
        }
        let mut addresses = BTreeSet::new();
        for (id, address) in &self.bootstrap {
            if !addresses.insert(address) {
                return refuse(format!("bootstrap names {address} twice, the second time for broker {id}"));
            }
            if port_of(address) == Some(0) {
                return refuse(format!("bootstrap: {id}@{address}: a port that others must find cannot be 0"));
            }
        }
        Ok(())
    }

    fn check_listener(&self, name: &str, listener: &ListenConfig) -> Result<Option<String>, ConfigError> {
        let host = host_of(&listener.listen);
        if listener.advertised.is_none() && unspecified(host) {
            return refuse(format!(
                "{name}.listen = {:?} is no address that others can reach: {name}.advertised must name one",
                listener.listen
            ));
        }
        if let Some(advertised) = &listener.advertised
            && (unspecified(host_of(advertised)) || port_of(advertised) == Some(0))
        {
            return refuse(format!("{name}.advertised = {advertised:?} is no address that others can reach"));
        }
        if loopback(host) {
            return Ok(None);
        }
        if !self.allow_insecure {
            return refuse(format!(
                "{name}.listen = {:?} is not a loopback address, and there is no security yet: \
                 set allow_insecure = true if everybody who can reach it may read and write everything",
                listener.listen
            ));
        }
        Ok(Some(format!("{name} listens on {} without authentication or encryption", listener.listen)))
    }

    fn check_limits(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        let ordered = [
            ("limits.record_bytes_max", limits.record_bytes_max, "limits.request_bytes_max", limits.request_bytes_max),
            (
                "limits.request_bytes_max",
                limits.request_bytes_max,
                "limits.inflight_bytes_max",
                limits.inflight_bytes_max,
            ),
            (
                "limits.record_bytes_max",
                limits.record_bytes_max,
                "socket.request.max.bytes",
                self.kafka.request_bytes_max,
            ),
        ];
        for (low_key, low, high_key, high) in ordered {
            if low > high {
                return refuse(format!("{low_key} = {low} is larger than {high_key} = {high}"));
            }
        }
        if limits.request_bytes_max > REQUEST_BYTES_CEILING {
            return refuse(format!(
                "limits.request_bytes_max = {} is larger than {REQUEST_BYTES_CEILING}, which a record batch can have",
                limits.request_bytes_max
            ));
        }
        if limits.header_bytes_max < 8 << 10 {
            return refuse(format!("limits.header_bytes_max = {} is less than 8192", limits.header_bytes_max));
        }
        Ok(())
    }

    fn check_raft(&self) -> Result<(), ConfigError> {
        let raft = &self.raft;
        if raft.election_timeout < raft.heartbeat * 2 {
            return refuse(format!(
                "raft.election_timeout_ms = {} is less than twice raft.heartbeat_ms = {}",
                raft.election_timeout.as_millis(),
                raft.heartbeat.as_millis()
            ));
        }
        if raft.silence_max < raft.ping_interval * 2 {
            return refuse(format!(
                "raft.silence_max_ms = {} is less than twice raft.ping_interval_ms = {}",
                raft.silence_max.as_millis(),
                raft.ping_interval.as_millis()
            ));
        }
        if raft.reserve_append_bytes > raft.reserve_produce_bytes {
            return refuse(format!(
                "raft.reserve_append_bytes = {} is larger than raft.reserve_produce_bytes = {}: \
                 followers must be able to take what leaders have accepted",
                raft.reserve_append_bytes, raft.reserve_produce_bytes
            ));
        }
        Ok(())
    }
}

fn refuse<T>(message: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(message.into()))
}

/// The host of `host:port`, without the brackets of an IPv6 address.
pub fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// The port of `host:port`.
pub fn port_of(address: &str) -> Option<u16> {
    address.rsplit_once(':').and_then(|(_, port)| port.parse().ok())
}

/// Whether only this machine can reach the host. A name other than `localhost` might resolve to anything.
pub fn loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn unspecified(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut config = Config::new(BrokerId(1), "data".into());
        config.bootstrap.insert(BrokerId(1), "127.0.0.1:7090".into());
        config
    }

    fn refused(change: impl FnOnce(&mut Config)) -> String {
        let mut config = config();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_with_one_broker_are_valid_and_warn_of_nothing() {
        assert_eq!(config().validate(), Ok(vec![]));
    }

    #[test]
    fn a_broker_outside_bootstrap_may_join() {
        let mut config = config();
        config.broker_id = BrokerId(4);
        assert_eq!(config.validate(), Ok(vec![]));
    }

    #[test]
    fn an_open_listener_needs_a_word_and_warns() {
        let message = refused(|config| config.http.listen = "192.168.1.5:8090".into());
        assert!(
            message.contains("http.listen = \"192.168.1.5:8090\"") && message.contains("allow_insecure"),
            "{message}"
        );
        let message = refused(|config| config.peer.listen = "broker-1.example:7090".into());
        assert!(message.contains("peer.listen"), "{message}");
        let mut open = config();
        open.http.listen = "192.168.1.5:8090".into();
        open.allow_insecure = true;
        let warnings = open.validate().unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains("192.168.1.5:8090"), "{warnings:?}");
    }

    #[test]
    fn loopback_in_all_its_forms_is_safe() {
        for listen in ["127.0.0.1:1", "127.8.9.1:1", "localhost:1", "[::1]:1"] {
            let mut config = config();
            config.http.listen = listen.into();
            assert_eq!(config.validate(), Ok(vec![]), "{listen}");
        }
    }

    #[test]
    fn a_wildcard_address_needs_an_advertised_one() {
        let message = refused(|config| {
            config.http.listen = "0.0.0.0:8090".into();
            config.allow_insecure = true;
        });
        assert!(message.contains("http.advertised"), "{message}");
        let message = refused(|config| config.http.advertised = Some("0.0.0.0:8090".into()));
        assert!(message.contains("0.0.0.0:8090"), "{message}");
    }

    type Contradiction = (fn(&mut Config), [&'static str; 2]);

    #[test]
    fn contradictions_name_both_values() {
        let cases: [Contradiction; 7] = [
            (|c| c.limits.record_bytes_max = 1 << 30, ["1073741824", "limits.request_bytes_max"]),
            (|c| c.limits.request_bytes_max = 1 << 40, ["1099511627776", "limits.inflight_bytes_max"]),
            (|c| c.kafka.request_bytes_max = 77, ["limits.record_bytes_max", "socket.request.max.bytes = 77"]),
            (
                |c| {
                    c.limits.request_bytes_max = 2 << 30;
                    c.limits.inflight_bytes_max = 2 << 30;
                },
                ["2147483648", "83886080"],
            ),
            (|c| c.raft.election_timeout = Duration::from_millis(7), ["= 7 ", "raft.heartbeat_ms = 1000"]),
            (|c| c.raft.silence_max = Duration::from_millis(9), ["= 9 ", "raft.ping_interval_ms = 50"]),
            (|c| c.raft.reserve_append_bytes = u64::MAX, ["18446744073709551615", "raft.reserve_produce_bytes"]),
        ];
        for (change, words) in cases {
            let message = refused(change);
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }

    #[test]
    fn bootstrap_must_name_each_address_once() {
        assert!(refused(|config| config.bootstrap.clear()).contains("bootstrap is empty"));
        let message = refused(|config| {
            config.bootstrap.insert(BrokerId(2), "127.0.0.1:7090".into());
        });
        assert!(message.contains("127.0.0.1:7090 twice"), "{message}");
        let message = refused(|config| {
            config.bootstrap.insert(BrokerId(2), "127.0.0.1:0".into());
        });
        assert!(message.contains("2@127.0.0.1:0"), "{message}");
    }
}
