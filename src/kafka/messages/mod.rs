//! Kafka's messages, field by field and version by version, as its protocol guide names them, some shorter
//! (<https://kafka.apache.org/protocol>), and the table of the APIs that are served.
//!
//! Only tables: how a field is read is [`super::wire`]'s business, what a request means the handlers'. Fields that only
//! brokers send each other, and versions below the first of [`Api`], are left out.
#![allow(missing_docs)] // The names are Kafka's own; its guide says what each is.

mod cluster;
mod groups;
mod records;
mod topics;

pub use cluster::*;
pub use groups::*;
pub use records::*;
pub use topics::*;

use bytes::Bytes;

use super::wire::{Field, Malformed, Reader, Writer};
#[cfg(test)]
use super::wire::{Sample, Samples};

/// An API that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Api {
    /// Its number.
    pub key: i16,
    /// Its name.
    pub name: &'static str,
    /// The lowest version that clients are told. It may be lower than what is served: see `Produce`.
    pub advertised_min: i16,
    /// The lowest version that is served.
    pub min: i16,
    /// The highest.
    pub max: i16,
    /// The first flexible version.
    pub flexible: i16,
}

impl Api {
    /// Whether a version is flexible.
    pub fn is_flexible(&self, version: i16) -> bool {
        version >= self.flexible
    }

    /// Whether a version is served.
    pub fn serves(&self, version: i16) -> bool {
        (self.min..=self.max).contains(&version)
    }

    /// The API of this number.
    pub fn of(key: i16) -> Option<&'static Api> {
        APIS.iter().find(|api| api.key == key)
    }
}

macro_rules! apis {
    ($($name:ident = $key:literal, $request:ident => $response:ident,
       $min:literal..=$max:literal, flexible $flexible:literal $(, advertised from $advertised:literal)?;)+) => {
        /// Every API that is served, in the order of the numbers.
        pub const APIS: &[Api] = &[$(Api {
            key: $key,
            name: stringify!($name),
            advertised_min: apis!(@first $($advertised,)? $min),
            min: $min,
            max: $max,
            flexible: $flexible,
        },)+];

        /// A request's body.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Request { $($name($request),)+ }

        /// A response's body.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Response { $($name($response),)+ }

        impl Request {
            /// Reads the body of a request, of a version that is served. Bytes behind it are passed over, as Kafka does:
            /// librdkafka leaves three there when it asks for all topics (Metadata from version 9 on).
            pub fn read(api: &Api, version: i16, body: Bytes) -> Result<Self, Malformed> {
                Self::read_measured(api, version, body).map(|(request, _)| request)
            }

            /// The same, and how many bytes of memory it takes, but for its record batches: see [`Reader::memory_used`].
            pub fn read_measured(api: &Api, version: i16, body: Bytes) -> Result<(Self, usize), Malformed> {
                let mut reader = Reader::new(body, version, api.is_flexible(version));
                let request = match api.key {
                    $($key => Field::read(&mut reader).map(Self::$name),)+
                    other => Err(Malformed(format!("API {other} is not served"))),
                }?;
                Ok((request, reader.memory_used()))
            }

            /// Writes it: what a client does.
            pub fn write(&self, writer: &mut Writer) {
                match self { $(Self::$name(body) => body.write(writer),)+ }
            }

            /// Its API.
            pub fn api(&self) -> &'static Api {
                let key = match self { $(Self::$name(_) => $key,)+ };
                APIS.iter().find(|api| api.key == key).unwrap_or(&APIS[0])
            }

            /// One without content, of each API: for tests.
            pub fn all_empty() -> Vec<Self> {
                vec![$(Self::$name(Default::default()),)+]
            }

            #[cfg(test)]
            fn sample(api: &Api, samples: &mut Samples) -> Self {
                match api.key {
                    $($key => Self::$name(Sample::sample(samples)),)+
                    other => panic!("API {other} is not served"),
                }
            }
        }

        impl Response {
            /// Writes the body.
            pub fn write(&self, writer: &mut Writer) {
                match self { $(Self::$name(body) => body.write(writer),)+ }
            }

            /// Reads the body of a response, whole: what a client does.
            pub fn read(api: &Api, version: i16, body: Bytes) -> Result<Self, Malformed> {
                let mut reader = Reader::new(body, version, api.is_flexible(version));
                let response = match api.key {
                    $($key => Self::$name(Field::read(&mut reader)?),)+
                    other => return Err(Malformed(format!("API {other} is not served"))),
                };
                reader.finish().map(|()| response)
            }

            #[cfg(test)]
            fn sample(api: &Api, samples: &mut Samples) -> Self {
                match api.key {
                    $($key => Self::$name(Sample::sample(samples)),)+
                    other => panic!("API {other} is not served"),
                }
            }
        }
    };
    (@first $first:literal, $second:literal) => { $first };
    (@first $only:literal) => { $only };
}

// Produce is advertised from 0 although 0 to 2 (older message formats) are refused: librdkafka up to 2.x takes a broker whose
// Produce does not begin at 0 for one without compression (KAFKA-18659).
apis! {
    Produce = 0, ProduceRequest => ProduceResponse, 3..=13, flexible 9, advertised from 0;
    Fetch = 1, FetchRequest => FetchResponse, 4..=17, flexible 12;
    ListOffsets = 2, ListOffsetsRequest => ListOffsetsResponse, 1..=10, flexible 6;
    Metadata = 3, MetadataRequest => MetadataResponse, 0..=13, flexible 9;
    OffsetCommit = 8, OffsetCommitRequest => OffsetCommitResponse, 2..=9, flexible 8;
    OffsetFetch = 9, OffsetFetchRequest => OffsetFetchResponse, 1..=9, flexible 6;
    FindCoordinator = 10, FindCoordinatorRequest => FindCoordinatorResponse, 0..=6, flexible 3;
    JoinGroup = 11, JoinGroupRequest => JoinGroupResponse, 0..=9, flexible 6;
    Heartbeat = 12, HeartbeatRequest => HeartbeatResponse, 0..=4, flexible 4;
    LeaveGroup = 13, LeaveGroupRequest => LeaveGroupResponse, 0..=5, flexible 4;
    SyncGroup = 14, SyncGroupRequest => SyncGroupResponse, 0..=5, flexible 4;
    DescribeGroups = 15, DescribeGroupsRequest => DescribeGroupsResponse, 0..=5, flexible 5;
    ListGroups = 16, ListGroupsRequest => ListGroupsResponse, 0..=5, flexible 3;
    ApiVersions = 18, ApiVersionsRequest => ApiVersionsResponse, 0..=4, flexible 3;
    CreateTopics = 19, CreateTopicsRequest => CreateTopicsResponse, 2..=7, flexible 5;
    DeleteTopics = 20, DeleteTopicsRequest => DeleteTopicsResponse, 1..=6, flexible 4;
    DeleteRecords = 21, DeleteRecordsRequest => DeleteRecordsResponse, 0..=2, flexible 2;
    InitProducerId = 22, InitProducerIdRequest => InitProducerIdResponse, 0..=5, flexible 2;
    OffsetForLeaderEpoch = 23, OffsetForLeaderEpochRequest => OffsetForLeaderEpochResponse, 2..=4, flexible 4;
    DescribeConfigs = 32, DescribeConfigsRequest => DescribeConfigsResponse, 1..=4, flexible 4;
    AlterConfigs = 33, AlterConfigsRequest => AlterConfigsResponse, 0..=2, flexible 2;
    CreatePartitions = 37, CreatePartitionsRequest => CreatePartitionsResponse, 0..=3, flexible 2;
    DeleteGroups = 42, DeleteGroupsRequest => DeleteGroupsResponse, 0..=2, flexible 2;
    IncrementalAlterConfigs = 44, IncrementalAlterConfigsRequest => IncrementalAlterConfigsResponse, 0..=1, flexible 1;
    OffsetDelete = 47, OffsetDeleteRequest => OffsetDeleteResponse, 0..=0, flexible 99;
    DescribeCluster = 60, DescribeClusterRequest => DescribeClusterResponse, 0..=2, flexible 0;
}

#[cfg(test)]
mod tests;
