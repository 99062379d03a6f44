//! Consumer groups as JSON.

use pontoon_raft::types::BrokerId;
use serde::{Deserialize, Serialize};

/// `GET /v1/groups`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupList {
    /// Every group, by name.
    pub groups: Vec<GroupSummary>,
    /// Brokers that did not say which groups they coordinate, or cannot for want of a majority: the list may lack some.
    pub unavailable: Vec<BrokerId>,
}

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSummary {
    /// Its name.
    pub group: String,
    /// Empty, PreparingRebalance, CompletingRebalance or Stable.
    pub state: String,
    /// Its kind: `consumer`, `connect`, or empty for one that only has offsets.
    pub protocol_type: String,
    /// How many members.
    pub members: u32,
    /// The broker that coordinates it.
    pub coordinator: BrokerId,
}

/// `GET /v1/groups/{g}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupDescription {
    /// Its name.
    pub group: String,
    /// Empty, PreparingRebalance, CompletingRebalance or Stable.
    pub state: String,
    /// Counts its rebalances.
    pub generation: i32,
    /// Its kind.
    pub protocol_type: String,
    /// How partitions were assigned.
    pub protocol: String,
    /// The broker that coordinates it.
    pub coordinator: BrokerId,
    /// Its members.
    pub members: Vec<GroupMember>,
    /// How far it has read.
    pub offsets: Vec<GroupLag>,
    /// Records it has not read, of all partitions with an offset.
    pub lag: u64,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMember {
    /// Its id.
    pub member_id: String,
    /// The name under which it keeps its place over restarts.
    pub group_instance_id: Option<String>,
    /// What it calls itself.
    pub client_id: String,
    /// Where it is.
    pub client_host: String,
    /// What was assigned to it, if it is a consumer.
    pub assignment: Vec<AssignedTopic>,
}

/// Partitions that were assigned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedTopic {
    /// Their topic.
    pub topic: String,
    /// Their numbers.
    pub partitions: Vec<u32>,
}

/// How far a group has read a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLag {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The next offset it reads.
    pub offset: i64,
    /// The client's own words.
    pub metadata: String,
    /// One past the last committed, as last reported by the leader.
    pub high_watermark: u64,
    /// What lies between.
    pub lag: u64,
}

/// `GET` and `PUT /v1/groups/{g}/offsets`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupOffsets {
    /// One of each partition.
    pub offsets: Vec<GroupOffset>,
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupOffset {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The next offset to be read.
    pub offset: u64,
    /// The client's own words. Default: none.
    #[serde(default)]
    pub metadata: String,
}
