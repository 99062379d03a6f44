//! The catalog's commands and their answers: what group 0's log holds.
//!
//! A proposal is an [`Envelope`]: the feature level that the command needs, then the command, both in
//! [`pontoon_raft::codec`]. Every broker reads the level before the command, so a broker that does not know a command
//! refuses it exactly as the others do: the level is raised (by [`Command::SetFeatureLevel`]) only when every
//! registered broker knows it, and commands above the catalog's level are refused at apply by all.
//!
//! Ids are chosen by the proposer (the controller) and *checked* at apply, the serial point: that is where "never
//! reused" is held.

use std::collections::BTreeMap;

use pontoon_raft::codec::{self, DecodeError};
use pontoon_raft::types::{BrokerId, ClusterId, DirectoryId, GroupId, ReplicaId};
use serde::{Deserialize, Serialize};

use super::state::TopicId;

/// The highest feature level this version knows.
pub const FEATURE_LEVEL: u32 = 5;

/// From this level on catalogs may hold recoveries. A recovery itself raises the level to it: its broker is alone then.
pub const RECOVERY_LEVEL: u32 = 2;

/// Brokers of this level understand it when a partition's log says that producers have expired. No command needs it: leaders look
/// at what the brokers have registered with.
pub const EXPIRY_LEVEL: u32 = 3;

/// Brokers of this level know `delete.retention.ms`, and every value of `compression.type`. What no version before does is refused at
/// apply until every broker has registered with it.
pub const COMPRESSION_LEVEL: u32 = 4;

/// Once every broker has registered with this level, a replica that was lost and runs again is taken for created when its broker says so.
pub const RETURN_LEVEL: u32 = 5;

/// How far a recovery moves every counter on, so that no id is drawn again that the brokers which were given up may have given
/// out after the survivor last heard of them.
pub const RECOVERY_GAP: u64 = 1 << 32;

/// Most partitions one topic may have.
pub const PARTITIONS_MAX: u32 = 10_000;

/// Most replicas one partition may have.
pub const REPLICAS_MAX: u32 = 15;

/// A replica as the controller places it: where, and under which id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The broker.
    pub broker: BrokerId,
    /// The broker's data directory (RULES.md R5).
    pub directory: DirectoryId,
    /// The replica's id, never used before.
    pub replica: ReplicaId,
}

/// A partition to be created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPartition {
    /// Its Raft group, never used before.
    pub group: GroupId,
    /// Its replicas; the first is the preferred leader, and the one that initialises the group.
    pub replicas: Vec<Placement>,
}

/// What a broker says of itself, at each start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerRegistration {
    /// Its number.
    pub broker: BrokerId,
    /// Its data directory.
    pub directory: DirectoryId,
    /// Random for each process: tells a restart from the process before.
    pub incarnation: u64,
    /// Where brokers reach it, `host:port`.
    pub peer_address: String,
    /// Where clients reach it over HTTP, `host:port`.
    pub http_address: String,
    /// Its replica of group 0, a random 63-bit id, never used before on another directory.
    pub catalog_replica: ReplicaId,
    /// The highest feature level it knows.
    pub feature_level: u32,
}

/// A replica that takes another's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replacement {
    /// The partition's group.
    pub group: GroupId,
    /// Who leaves.
    pub old: ReplicaId,
    /// Who comes, in the same place of the order.
    pub new: Placement,
}

/// One broker's directory becomes the cluster (`pontoon recover`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// The cluster's id from now on. Its former one is never let in again.
    pub cluster: ClusterId,
    /// The survivor.
    pub broker: BrokerId,
    /// Its directory.
    pub directory: DirectoryId,
    /// Replicas on it that hold nothing, or cannot be opened.
    pub unusable: Vec<ReplicaId>,
    /// Whether partitions of which the directory holds nothing begin anew, empty. Otherwise they stay as they are: lost.
    pub empty_lost: bool,
}

/// A replica more, for a partition that has fewer than it should have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addition {
    /// The partition's group.
    pub group: GroupId,
    /// Whether it becomes the preferred leader.
    pub first: bool,
    /// Who comes. The id after its own stands for the place that it takes, until it has taken it: neither may have been used.
    pub new: Placement,
}

/// What brokers report of their replicas. What no longer applies (another assignment since) is passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// Replicas that run: `new` ones that exist now, durably, and those that were reported lost and are not ([`RETURN_LEVEL`]).
    pub created: Vec<(GroupId, ReplicaId)>,
    /// Replicas whose files are missing or cannot be used, and why.
    pub lost: Vec<(GroupId, ReplicaId, String)>,
    /// Replicas that have left their group's membership.
    pub removed: Vec<(GroupId, ReplicaId)>,
    /// Groups that have a leader for the first time, and which replica that is.
    pub initialised: Vec<(GroupId, ReplicaId)>,
}

impl ReplicaReport {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.created.is_empty() && self.lost.is_empty() && self.removed.is_empty() && self.initialised.is_empty()
    }
}

/// A change of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first command of a cluster: its id. Again with the same id: nothing.
    FormCluster {
        /// The id.
        cluster: ClusterId,
    },
    /// A broker joins, or has started again.
    RegisterBroker(BrokerRegistration),
    /// A topic.
    CreateTopic {
        /// Its id, random.
        topic: TopicId,
        /// Its name.
        name: String,
        /// What is configured.
        config: BTreeMap<String, String>,
        /// Its partitions, in order.
        partitions: Vec<NewPartition>,
    },
    /// The end of a topic and its data.
    DeleteTopic {
        /// Which.
        topic: TopicId,
    },
    /// Another configuration, more partitions.
    AlterTopic {
        /// Which.
        topic: TopicId,
        /// What changes; `None` resets.
        config: BTreeMap<String, Option<String>>,
        /// How many partitions it has now: those that follow are appended to these.
        partitions_before: u32,
        /// The partitions to be added.
        partitions: Vec<NewPartition>,
    },
    /// New replicas in place of lost ones. All or none.
    ReplaceReplicas {
        /// Which.
        replacements: Vec<Replacement>,
    },
    /// New replicas for a group that was never initialised (and so has never acknowledged anything).
    RestartPartition {
        /// Which.
        group: GroupId,
        /// All of its replicas.
        replicas: Vec<Placement>,
    },
    /// What happened to replicas.
    Report(ReplicaReport),
    /// A block of producer ids.
    AllocateProducerIds {
        /// How many.
        count: u32,
    },
    /// Lets commands of this level in. Never goes back.
    SetFeatureLevel {
        /// The level.
        level: u32,
    },
    /// The majority is gone for good: what one directory holds is all there is. Every other broker and every replica elsewhere is
    /// given up. Appended to a stopped directory's log by `pontoon recover`, never proposed.
    Recover(Recovery),
    /// New replicas where a recovery left fewer than there were. All or none.
    AddReplicas {
        /// Which.
        additions: Vec<Addition>,
    },
}

impl Command {
    /// The feature level from which this command may be proposed.
    pub fn feature_level(&self) -> u32 {
        match self {
            Self::FormCluster { .. }
            | Self::RegisterBroker(_)
            | Self::CreateTopic { .. }
            | Self::DeleteTopic { .. }
            | Self::AlterTopic { .. }
            | Self::ReplaceReplicas { .. }
            | Self::RestartPartition { .. }
            | Self::Report(_)
            | Self::AllocateProducerIds { .. }
            | Self::SetFeatureLevel { .. }
            | Self::Recover(_) => 1,
            Self::AddReplicas { .. } => RECOVERY_LEVEL,
        }
    }

    /// The proposal's bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(&Envelope { feature_level: self.feature_level(), command: codec::encode(self) })
    }
}

/// A command and the level it needs, readable by every version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The level.
    pub feature_level: u32,
    /// The [`Command`], encoded.
    pub command: Vec<u8>,
}

impl Envelope {
    /// Reads a proposal's envelope.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(bytes)
    }
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// What it says.
    Changed,
    /// The catalog was so already.
    Unchanged,
    /// The producer ids `first .. first + count` are the proposer's.
    ProducerIds {
        /// The first.
        first: i64,
        /// How many.
        count: u32,
    },
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum CommandError {
    /// A topic of that name exists.
    #[error("topic {0:?} exists")]
    TopicExists(String),
    /// The names differ only in `.` and `_`.
    #[error("topic name {name:?} collides with topic {existing:?}: they differ only in . and _")]
    NameCollision {
        /// Asked for.
        name: String,
        /// There.
        existing: String,
    },
    /// Not a legal name.
    #[error("{0}")]
    InvalidName(String),
    /// Not a legal configuration.
    #[error("{0}")]
    InvalidConfig(String),
    /// Not a legal number of partitions or replicas.
    #[error("{0}")]
    InvalidPartitions(String),
    /// No such topic.
    #[error("there is no topic {0}")]
    UnknownTopic(TopicId),
    /// The proposer worked from an older state: look again and propose anew.
    #[error("the catalog has changed: {0}")]
    Stale(String),
    /// The registration is not acceptable.
    #[error("broker {broker} is refused: {why}")]
    BrokerRefused {
        /// Who.
        broker: BrokerId,
        /// Why.
        why: String,
    },
    /// The catalog belongs to another cluster.
    #[error("the catalog belongs to cluster {found:032x}, not {asked:032x}")]
    ForeignCluster {
        /// The catalog's.
        found: u128,
        /// The command's.
        asked: u128,
    },
    /// The command needs a feature level that has not been reached, or a level cannot be set.
    #[error("{0}")]
    FeatureLevel(String),
    /// The command's bytes are not one.
    #[error("malformed command: {0}")]
    Malformed(String),
}

/// A command's answer, as it travels in [`pontoon_raft::types::Outcome::Records`].
pub type CommandResult = Result<Done, CommandError>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_survives_its_envelope() {
        let command = Command::AllocateProducerIds { count: 1000 };
        let envelope = Envelope::decode(&command.encode()).unwrap();
        assert_eq!(envelope.feature_level, 1);
        assert_eq!(codec::decode::<Command>(&envelope.command).unwrap(), command);
    }

    #[test]
    fn the_bytes_of_a_command_stay_what_they_are() {
        // Version, level, length, [version, variant 8, count]. A later version must read this.
        assert_eq!(Command::AllocateProducerIds { count: 7 }.encode(), [1, 1, 3, 1, 8, 7]);
        let form = Command::FormCluster { cluster: ClusterId(5) }.encode();
        assert_eq!(form, [1, 1, 3, 1, 0, 5]);
        // Variant 4, topic, two keys (one set, one reset), one partition before, none added.
        let config = BTreeMap::from([("a".to_owned(), Some("1".to_owned())), ("b".to_owned(), None)]);
        let alter = Command::AlterTopic { topic: TopicId(9), config, partitions_before: 1, partitions: Vec::new() };
        assert_eq!(alter.encode(), [1, 1, 14, 1, 4, 9, 2, 1, b'a', 1, 1, b'1', 1, b'b', 0, 1, 0]);
        // Variants 10 and 11: cluster, broker, directory, one unusable replica, lost ones stay; group, preferred, placement.
        let (broker, directory) = (BrokerId(3), DirectoryId(4));
        let unusable = vec![ReplicaId(7)];
        let recovery = Recovery { cluster: ClusterId(5), broker, directory, unusable, empty_lost: false };
        assert_eq!(Command::Recover(recovery).encode(), [1, 1, 8, 1, 10, 5, 3, 4, 1, 7, 0]);
        let new = Placement { broker, directory, replica: ReplicaId(9) };
        let add = Command::AddReplicas { additions: vec![Addition { group: GroupId(6), first: true, new }] };
        assert_eq!(add.encode(), [1, 2, 8, 1, 11, 1, 6, 1, 3, 4, 9]);
    }
}
