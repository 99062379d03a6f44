//! A broker's configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pontoon_raft::types::BrokerId;

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
    /// Largest record, key and value and headers together. Default: 1 MiB.
    pub record_bytes_max: usize,
    /// Largest request body. Default: 16 MiB.
    pub request_bytes_max: usize,
    /// Most request bytes being worked on at once. Default: 256 MiB.
    pub inflight_bytes_max: usize,
    /// Most HTTP connections. Default: 10 000.
    pub connections_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            record_bytes_max: 1 << 20,
            request_bytes_max: 16 << 20,
            inflight_bytes_max: 256 << 20,
            connections_max: 10_000,
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
    /// The initial brokers and their peer addresses.
    pub bootstrap: BTreeMap<BrokerId, String>,
    /// HTTP.
    pub http: ListenConfig,
    /// Broker to broker.
    pub peer: ListenConfig,
    /// Listen on other addresses than loopback without security.
    pub allow_insecure: bool,
    /// Limits.
    pub limits: Limits,
    /// Defaults of topic configuration (`log.*`).
    pub log: BTreeMap<String, String>,
    /// The replicated log's own limits.
    pub raft: pontoon_raft::config::RaftConfig,
}
