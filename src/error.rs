//! The errors that users see: one code each, with what the caller can do about it.
//!
//! [`Code`] is the one table; `http` maps it to a status, `kafka` to Kafka's error codes. A message names the value that was
//! wrong.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether the write that was refused may have happened all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WriteOutcome {
    /// It certainly did not happen, and never will.
    None,
    /// It may have happened, or may happen yet.
    Unknown,
    /// Some of it happened.
    Partial,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $status:literal, $retriable:literal;)+) => {
        /// What went wrong. Stable names; clients may match on them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[doc = $doc])+ $name,)+ }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &[Code] = &[$(Code::$name,)+];

            /// The name on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)+ }
            }

            /// The HTTP status.
            pub fn status(self) -> u16 {
                match self { $(Code::$name => $status,)+ }
            }

            /// Whether the same request may succeed later.
            pub fn retriable(self) -> bool {
                match self { $(Code::$name => $retriable,)+ }
            }

            /// What it means and what to do, for `pontoon explain` and the docs.
            pub fn explanation(self) -> &'static str {
                match self { $(Code::$name => concat!($($doc, "\n",)+),)+ }
            }
        }
    };
}

codes! {
    #[doc = " The request is malformed; the message names the field and its value."]
    InvalidRequest = "INVALID_REQUEST", 400, false;
    #[doc = " A topic name is empty, longer than 249 characters, `.`, `..`, or has characters other than a-z A-Z 0-9 . _ -."]
    InvalidTopicName = "INVALID_TOPIC_NAME", 400, false;
    #[doc = " A topic configuration has an unknown key or a value out of its range."]
    InvalidConfig = "INVALID_CONFIG", 400, false;
    #[doc = " More replicas were asked for than there are brokers, or fewer than one."]
    InvalidReplicationFactor = "INVALID_REPLICATION_FACTOR", 400, false;
    #[doc = " Replicas were placed by name, and not so many for each partition, on brokers that do not exist or are not alive, or twice on one."]
    InvalidAssignment = "INVALID_ASSIGNMENT", 400, false;
    #[doc = " The number of partitions is out of range, or smaller than it is now."]
    InvalidPartitions = "INVALID_PARTITIONS", 400, false;
    #[doc = " A record batch's checksum, counts or lengths do not agree with its bytes."]
    CorruptBatch = "CORRUPT_BATCH", 400, false;
    #[doc = " The request came from a web page of another origin, or names another host: refused so that no page can forge a produce."]
    ForeignOrigin = "FOREIGN_ORIGIN", 403, false;
    #[doc = " The topic is Pontoon's own. It can be read and described; its records and its settings are the brokers' to change."]
    InternalTopic = "INTERNAL_TOPIC", 403, false;
    #[doc = " No such path."]
    NotFound = "NOT_FOUND", 404, false;
    #[doc = " No such topic."]
    UnknownTopic = "UNKNOWN_TOPIC", 404, false;
    #[doc = " The topic has no such partition."]
    UnknownPartition = "UNKNOWN_PARTITION", 404, false;
    #[doc = " No such consumer group: it has neither members nor committed offsets."]
    UnknownGroup = "UNKNOWN_GROUP", 404, false;
    #[doc = " The path exists, the method does not."]
    MethodNotAllowed = "METHOD_NOT_ALLOWED", 405, false;
    #[doc = " None of the formats in Accept can be produced."]
    NotAcceptable = "NOT_ACCEPTABLE", 406, false;
    #[doc = " The request's body did not arrive in time."]
    RequestTimeout = "REQUEST_TIMEOUT", 408, true;
    #[doc = " A topic of that name exists."]
    TopicExists = "TOPIC_EXISTS", 409, false;
    #[doc = " The name collides with an existing topic's: they differ only in `.` and `_`."]
    TopicNameCollision = "TOPIC_NAME_COLLISION", 409, false;
    #[doc = " The consumer group has members: its offsets are theirs to commit."]
    GroupNotEmpty = "GROUP_NOT_EMPTY", 409, false;
    #[doc = " The producer's sequence does not follow its last one. Records are missing; the producer must stop or take a new id."]
    OutOfOrderSequence = "OUT_OF_ORDER_SEQUENCE", 409, false;
    #[doc = " A newer instance of this producer exists (higher epoch)."]
    ProducerFenced = "PRODUCER_FENCED", 409, false;
    #[doc = " The partition does not remember the producer, and the sequence is not 0: it has written nothing for `producer.id.expiration.ms`, thousands of others wrote since, or it never wrote here."]
    UnknownProducer = "UNKNOWN_PRODUCER", 409, false;
    #[doc = " `If-Match-Offset` is not the log end; the message names both. Nothing was written."]
    OffsetMismatch = "OFFSET_MISMATCH", 412, false;
    #[doc = " A record is larger than its topic's `max.message.bytes`; unless that is set, `limits.record_bytes_max` of the broker holds."]
    RecordTooLarge = "RECORD_TOO_LARGE", 413, false;
    #[doc = " The request's body is larger than the limit."]
    RequestTooLarge = "REQUEST_TOO_LARGE", 413, false;
    #[doc = " The Content-Type is not one of application/json, text/plain, application/x-ndjson, application/octet-stream."]
    UnsupportedMediaType = "UNSUPPORTED_MEDIA_TYPE", 415, false;
    #[doc = " The offset is below the log start or past the high watermark; the message names both."]
    OffsetOutOfRange = "OFFSET_OUT_OF_RANGE", 416, false;
    #[doc = " Too many requests or bytes in flight, or no room for more of consumer groups (`limits.groups_bytes_max`); wait for `retry_after_ms`."]
    TooManyRequests = "TOO_MANY_REQUESTS", 429, true;
    #[doc = " The request's head (first line and headers) is larger than the limit, or has too many headers."]
    HeadersTooLarge = "HEADERS_TOO_LARGE", 431, false;
    #[doc = " A defect of Pontoon. The log has the details."]
    Internal = "INTERNAL", 500, false;
    #[doc = " The records are corrupt on this replica. They are not served; repair from a peer is under way or needed."]
    CorruptLog = "CORRUPT_LOG", 500, true;
    #[doc = " The partition has no leader at the moment: an election is under way, or a majority of its replicas is away."]
    NoLeader = "NO_LEADER", 503, true;
    #[doc = " This broker does not lead the partition and the request had been passed on already."]
    NotLeader = "NOT_LEADER", 503, true;
    #[doc = " Fewer replicas are alive than the ack level needs. Nothing was written."]
    NotEnoughReplicas = "NOT_ENOUGH_REPLICAS", 503, true;
    #[doc = " The broker is starting, stopping, or not part of a cluster yet."]
    NotReady = "NOT_READY", 503, true;
    #[doc = " The record was written, but too few replicas had it in time for the ack level. It may stay or go."]
    NotEnoughReplicasAfterAppend = "NOT_ENOUGH_REPLICAS_AFTER_APPEND", 504, true;
    #[doc = " No answer in time, or the leader changed under way: the write may have happened. An idempotent producer may retry safely."]
    OutcomeUnknown = "OUTCOME_UNKNOWN", 504, true;
    #[doc = " The disk is full. Reads go on; writes resume when there is room."]
    StorageFull = "STORAGE_FULL", 507, true;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error as users see it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Error {
    /// Which.
    pub code: Code,
    /// For people; names the value that was wrong.
    pub message: String,
    /// Whether the write may have happened. `None` for reads.
    pub outcome: WriteOutcome,
    /// When a retry may help, in ms.
    pub retry_after_ms: Option<u64>,
}

impl Error {
    /// An error after which nothing was written.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let outcome = match code {
            Code::OutcomeUnknown | Code::NotEnoughReplicasAfterAppend => WriteOutcome::Unknown,
            _ => WriteOutcome::None,
        };
        let retry_after_ms = (code.status() == 503 || code.status() == 429).then_some(200);
        Self { code, message: message.into(), outcome, retry_after_ms }
    }

    /// The same with another outcome.
    pub fn with_outcome(mut self, outcome: WriteOutcome) -> Self {
        self.outcome = outcome;
        self
    }
}

/// The result of everything a user can ask for.
pub type Result<T, E = Error> = std::result::Result<T, E>;
