//! The HTTP API's bodies: what requests say and what answers say, shared by the server, the client and the CLI.
//!
//! Requests are strict: an unknown field is an error that names it. Nothing here does I/O or knows of HTTP's mechanics.
//! How records become batches is in [`records`], how batches become records again in [`fetched`].

mod embed;
pub mod fetched;
pub mod groups;
pub mod records;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::broker::TopicSpec;
pub use crate::broker::{
    BrokerDescription, ClusterDescription, LagReason, LaggingReplica, PartitionDescription, TopicDescription,
};
use crate::error::{Code, Error, Result, WriteOutcome};

/// Header that marks a request which another broker has passed on: that broker's number.
pub const FORWARDED: &str = "pontoon-forwarded";
/// Header with the time that is left of a passed-on request's timeout, in ms.
pub const TIMEOUT_MS: &str = "pontoon-timeout-ms";
/// Header of a raw fetch: where the next one begins.
pub const NEXT_OFFSET: &str = "pontoon-next-offset";
/// Header of a raw fetch.
pub const HIGH_WATERMARK: &str = "pontoon-high-watermark";
/// Header of a raw fetch.
pub const LOG_START_OFFSET: &str = "pontoon-log-start-offset";
/// Header of a raw fetch.
pub const LEADER_EPOCH: &str = "pontoon-leader-epoch";
/// Header of a fetch, and of a tail: the id of the topic that was read, for who goes on where another answer ended.
pub const TOPIC_ID: &str = "pontoon-topic-id";
/// Header of a produce's answer: how long the batch took through each stage at its leader, in ms.
pub const SERVER_TIMING: &str = "server-timing";
/// Header of a produce: the producer's id.
pub const PRODUCER_ID: &str = "producer-id";
/// Header of a produce: the producer's epoch.
pub const PRODUCER_EPOCH: &str = "producer-epoch";
/// Header of a produce: the sequence of the batch's first record.
pub const PRODUCER_SEQUENCE: &str = "producer-sequence";
/// Header of a produce: write only if this is the log end.
pub const IF_MATCH_OFFSET: &str = "if-match-offset";

/// Default of `timeout_ms`.
pub const TIMEOUT_MS_DEFAULT: u64 = 30_000;
/// Largest `timeout_ms`: an hour.
pub const TIMEOUT_MS_MAX: u64 = 3_600_000;
/// Default of a fetch's `max_bytes`: 1 MiB.
pub const FETCH_BYTES_DEFAULT: usize = 1 << 20;
/// Largest `max_bytes`: 64 MiB.
pub const FETCH_BYTES_MAX: usize = 64 << 20;
/// Largest `max_wait_ms`: a minute.
pub const FETCH_WAIT_MS_MAX: u64 = 60_000;

/// The body of every refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The code's name.
    pub error: String,
    /// For people; names the value that was wrong.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retriable: bool,
    /// Whether the write may have happened.
    pub outcome: WriteOutcome,
    /// When a retry may help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// With `OFFSET_OUT_OF_RANGE`: the oldest readable offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_start_offset: Option<u64>,
    /// With `OFFSET_OUT_OF_RANGE`: one past the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_watermark: Option<u64>,
}

impl From<&Error> for ErrorBody {
    fn from(error: &Error) -> Self {
        Self {
            error: error.code.as_str().to_owned(),
            message: error.message.clone(),
            retriable: error.code.retriable(),
            outcome: error.outcome,
            retry_after_ms: error.retry_after_ms,
            log_start_offset: None,
            high_watermark: None,
        }
    }
}

/// `POST /v1/topics`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTopic {
    /// Its name.
    pub name: String,
    /// How many partitions. Default: 1.
    #[serde(default = "one")]
    pub partitions: u32,
    /// How many replicas each. Default: three, or as many as there are brokers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// Its configuration: strings, by Kafka's names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, Value>,
}

fn one() -> u32 {
    1
}

impl CreateTopic {
    /// The specification, once every configuration value is a string.
    pub fn into_spec(self) -> Result<TopicSpec> {
        let mut config = BTreeMap::new();
        for (key, value) in self.config {
            let Value::String(text) = value else { return Err(not_a_string(&key, &value, "a string")) };
            config.insert(key, text);
        }
        Ok(TopicSpec {
            name: self.name,
            partitions: self.partitions,
            replicas: self.replicas,
            assignment: None,
            config,
        })
    }
}

/// `PATCH /v1/topics/{t}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlterTopic {
    /// Grow to so many partitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
    /// Strings to set, null to reset.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, Value>,
}

impl AlterTopic {
    /// The configuration changes, once every value is a string or null.
    pub fn changes(self) -> Result<BTreeMap<String, Option<String>>> {
        let mut config = BTreeMap::new();
        for (key, value) in self.config {
            let change = match value {
                Value::String(text) => Some(text),
                Value::Null => None,
                other => return Err(not_a_string(&key, &other, "a string or null")),
            };
            config.insert(key, change);
        }
        Ok(config)
    }
}

fn not_a_string(key: &str, value: &Value, wanted: &str) -> Error {
    Error::new(Code::InvalidConfig, format!("config {key:?}: {value} is not {wanted}"))
}

/// `GET /v1/topics`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicList {
    /// All topics, by name.
    pub topics: Vec<TopicDescription>,
}

/// `GET /v1/brokers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerList {
    /// All brokers, by number.
    pub brokers: Vec<BrokerDescription>,
}

/// 200 of a produce.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProduceAnswer {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// Offset of the first record.
    pub base_offset: u64,
    /// Offset of the last record.
    pub last_offset: u64,
    /// The term in which the records stand.
    pub leader_epoch: u64,
    /// They had been written before (same producer and sequence).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

/// 200 of a produce by key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicProduceAnswer {
    /// Where each record is, in the order of the request.
    pub results: Vec<RecordResult>,
}

/// The body of a refused produce by key, once its records were divided: some of them may be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicErrorBody {
    /// Of the first record that is not acknowledged; the outcome is that of all together.
    #[serde(flatten)]
    pub error: ErrorBody,
    /// What became of each record, in the order of the request.
    pub results: Vec<RecordResult>,
}

/// What became of one record of a produce by key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RecordResult {
    /// It is not acknowledged. (First here, so that reading one tells them apart by `error`.)
    Refused {
        /// The partition it was meant for.
        partition: u32,
        /// The code's name.
        error: String,
        /// For people.
        message: String,
        /// Whether the same request may succeed later.
        retriable: bool,
        /// Whether the record may have been written all the same.
        outcome: WriteOutcome,
    },
    /// It is acknowledged.
    Written {
        /// The partition it went to.
        partition: u32,
        /// Its offset there; none with `acks=none`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
        /// The term in which it stands; none with `acks=none`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        leader_epoch: Option<u64>,
    },
}

/// `GET …/offsets`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetsAnswer {
    /// Oldest readable.
    pub log_start_offset: u64,
    /// One past the last committed.
    pub high_watermark: u64,
    /// One past the last appended.
    pub log_end_offset: u64,
    /// With `?timestamp=`: the first offset at or after it; the high watermark if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

/// `POST /v1/producers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerAnswer {
    /// Never given out before.
    pub producer_id: i64,
    /// Its epoch.
    pub producer_epoch: i16,
}

/// 200 or 503 of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyAnswer {
    /// Whether it makes sense to send requests here.
    pub ready: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Reads a JSON body strictly; the error names the field.
pub fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T> {
    // serde would take a list for the fields in order.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(Error::new(Code::InvalidRequest, "body: it is not a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| Error::new(Code::InvalidRequest, format!("body: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: for<'a> Deserialize<'a> + std::fmt::Debug>(body: &str) -> String {
        parse::<T>(body.as_bytes()).unwrap_err().message
    }

    #[test]
    fn creating_a_topic_has_defaults() {
        let spec = parse::<CreateTopic>(br#"{"name":"t"}"#).unwrap().into_spec().unwrap();
        assert_eq!(
            spec,
            TopicSpec { name: "t".into(), partitions: 1, replicas: None, assignment: None, config: BTreeMap::new() }
        );
    }

    #[test]
    fn unknown_fields_and_wrong_types_are_named() {
        assert!(refused::<CreateTopic>(r#"{"name":"t","partition":3}"#).contains("`partition`"));
        assert!(refused::<CreateTopic>(r#"{"name":"t","partitions":-3}"#).contains("-3"));
        assert!(refused::<CreateTopic>("{}").contains("`name`"));
        assert!(refused::<CreateTopic>("").contains("not a JSON object"));
        assert!(refused::<CreateTopic>(r#"["t"]"#).contains("not a JSON object"));
        assert!(refused::<AlterTopic>(r#"{"name":"x"}"#).contains("`name`"));
    }

    #[test]
    fn configuration_values_are_strings() {
        let create: CreateTopic = parse(br#"{"name":"t","config":{"retention.ms":1000}}"#).unwrap();
        let error = create.into_spec().unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig);
        assert!(error.message.contains("retention.ms") && error.message.contains("1000"), "{error}");
        let alter: AlterTopic = parse(br#"{"config":{"a":null,"b":"1"}}"#).unwrap();
        let changes = alter.changes().unwrap();
        assert_eq!(changes["a"], None);
        assert_eq!(changes["b"].as_deref(), Some("1"));
        let alter: AlterTopic = parse(br#"{"config":{"a":[]}}"#).unwrap();
        assert!(alter.changes().is_err());
    }

    #[test]
    fn an_error_body_leaves_out_what_does_not_apply() {
        let body = serde_json::to_value(ErrorBody::from(&Error::new(Code::UnknownTopic, "no topic \"x\""))).unwrap();
        let wanted = r#"{"error":"UNKNOWN_TOPIC","message":"no topic \"x\"","retriable":false,"outcome":"none"}"#;
        assert_eq!(body, serde_json::from_str::<Value>(wanted).unwrap());
    }
}
