//! What a group is asked, and what it answers; and why not.

use std::time::Duration;

use bytes::Bytes;

use super::entry::CommittedOffset;
use super::{COMMIT_BYTES_MAX, METADATA_BYTES_MAX, NAME_BYTES_MAX, consumer_protocol};

/// Why a group did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// Another broker coordinates the group, or none at the moment. Nothing was done; find the coordinator again.
    #[error("this broker does not coordinate the group")]
    NotCoordinator,
    /// It did when it was asked, and has lost it since: what was asked for may have been done. Find the coordinator again.
    #[error("this broker has ceased to coordinate the group under way")]
    Lost,
    /// The log is being read. Come again.
    #[error("the group is being loaded")]
    Loading,
    /// An empty name, or one that is too long.
    #[error("a group's name has 1 to {NAME_BYTES_MAX} bytes")]
    InvalidGroup,
    /// No member of this id, or it was dropped: join anew.
    #[error("the group has no such member")]
    UnknownMember,
    /// Another generation than the present one: join again.
    #[error("that is not the group's generation")]
    IllegalGeneration,
    /// Join again.
    #[error("the group is rebalancing")]
    RebalanceInProgress,
    /// No protocol that all members know, or another kind of group.
    #[error("the members' protocols have nothing in common")]
    InconsistentProtocol,
    /// Join again, with this id.
    #[error("join again as {0:?}")]
    MemberIdRequired(String),
    /// Another process has the place of this static member.
    #[error("another process has this group instance id")]
    FencedInstance,
    /// Too many members, or too many bytes of what they say of themselves.
    #[error("the group is full")]
    Full,
    /// The groups that share its shard take all the bytes that they may.
    #[error("the coordinator has no room for more: its groups take the bytes that they may (limits.groups_bytes_max)")]
    NoRoom,
    /// What would be written has no room on the coordinator's disk. Nothing was done.
    #[error("the coordinator's disk is full")]
    DiskFull,
    /// Out of bounds.
    #[error("a session timeout is between 1 s and 30 min")]
    InvalidSessionTimeout,
    /// A group that has members is not deleted.
    #[error("the group has members")]
    NonEmpty,
    /// No such group.
    #[error("there is no such group")]
    NotFound,
    /// A committed offset's metadata is too long.
    #[error("the metadata of an offset has at most {METADATA_BYTES_MAX} bytes, that of a commit {COMMIT_BYTES_MAX}")]
    MetadataTooLarge,
    /// Members subscribe to the topic.
    #[error("members of the group subscribe to the topic")]
    Subscribed,
}

/// Where a group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// It has no members; it may have offsets.
    Empty,
    /// Members are joining.
    PreparingRebalance,
    /// They wait for the leader's assignment.
    CompletingRebalance,
    /// Everybody has an assignment.
    Stable,
}

impl GroupState {
    /// Kafka's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Stable => "Stable",
        }
    }
}

/// A member wants to join.
#[derive(Clone, Debug, Default)]
pub struct Join {
    /// Its id; empty for a new one.
    pub member_id: String,
    /// The name under which it keeps its place over restarts.
    pub instance_id: Option<String>,
    /// What it calls itself.
    pub client_id: String,
    /// Where it is.
    pub client_host: String,
    /// It is gone if nothing is heard of it for so long.
    pub session_timeout: Duration,
    /// How long it may take to join again.
    pub rebalance_timeout: Duration,
    /// Which kind of group it takes this for.
    pub protocol_type: String,
    /// The protocols it knows, the best first, each with its metadata.
    pub protocols: Vec<(String, Bytes)>,
    /// A new member is given its id first (KIP-394).
    pub id_required: bool,
    /// It understands [`Joined::skip_assignment`] (KIP-814).
    pub may_skip_assignment: bool,
}

/// It has joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The generation it is part of.
    pub generation: i32,
    /// The kind of group.
    pub protocol_type: String,
    /// The protocol that was chosen.
    pub protocol: String,
    /// Who assigns.
    pub leader: String,
    /// Its own id.
    pub member_id: String,
    /// Everybody, told to the leader only.
    pub members: Vec<JoinedMember>,
    /// It leads, but what was assigned before still holds.
    pub skip_assignment: bool,
}

/// A member, as the leader is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedMember {
    /// Its id.
    pub id: String,
    /// Its instance id.
    pub instance_id: Option<String>,
    /// Its metadata under the chosen protocol.
    pub metadata: Bytes,
}

/// A member wants its assignment.
#[derive(Clone, Debug, Default)]
pub struct Sync {
    /// Its id.
    pub member_id: String,
    /// Its instance id.
    pub instance_id: Option<String>,
    /// The generation it believes in.
    pub generation: i32,
    /// The kind of group it believes in.
    pub protocol_type: Option<String>,
    /// The protocol it believes in.
    pub protocol: Option<String>,
    /// The leader's: to whom what.
    pub assignments: Vec<(String, Bytes)>,
}

/// Its assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    /// The kind of group.
    pub protocol_type: String,
    /// The protocol that was chosen.
    pub protocol: String,
    /// What is the member's to do.
    pub assignment: Bytes,
}

/// A member that goes: by id, or by instance id.
#[derive(Clone, Debug, Default)]
pub struct Leaving {
    /// Its id; may be empty beside an instance id.
    pub member_id: String,
    /// Its instance id.
    pub instance_id: Option<String>,
}

/// Who says something: a member of a generation.
#[derive(Clone, Debug, Default)]
pub struct Speaker {
    /// Its id.
    pub member_id: String,
    /// Its instance id.
    pub instance_id: Option<String>,
    /// The generation it believes in; -1 for somebody from outside.
    pub generation: i32,
}

/// What was asked for, if there is room for it.
pub type Within<T> = Result<T, Larger>;

/// What was asked for comes to so many bytes, more than there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Larger(pub usize);

/// What each thing that is told of a group takes besides its texts, in bytes, about.
pub const TOLD_BYTES: usize = 128;

/// A group, as it is listed: there may be very many, and each may have megabytes to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupListing {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: GroupState,
    /// Its kind.
    pub protocol_type: String,
    /// How many members.
    pub members: usize,
}

/// A group, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: GroupState,
    /// Its generation.
    pub generation: i32,
    /// Its kind.
    pub protocol_type: String,
    /// The protocol that was chosen, if any.
    pub protocol: String,
    /// Its members.
    pub members: Vec<MemberDescription>,
}

/// A member, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDescription {
    /// Its id.
    pub id: String,
    /// Its instance id.
    pub instance_id: Option<String>,
    /// What it calls itself.
    pub client_id: String,
    /// Where it is.
    pub client_host: String,
    /// Its metadata under the chosen protocol.
    pub metadata: Bytes,
    /// What was assigned to it.
    pub assignment: Bytes,
}

impl MemberDescription {
    /// The topics and partitions of its assignment, in a group of this kind: nothing if that is not consumers'. They take several times as
    /// much memory as the assignment.
    pub fn assigned(&self, protocol_type: &str) -> Vec<(String, Vec<u32>)> {
        let assigned = consumer_protocol::assigned_partitions(&self.assignment);
        assigned.filter(|_| protocol_type == consumer_protocol::CONSUMER).unwrap_or_default()
    }
}

/// How far a group has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupProgress {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: GroupState,
    /// How many members.
    pub members: usize,
    /// What is committed.
    pub offsets: Vec<CommittedOffset>,
}

/// What the groups of one partition of `__consumer_offsets` come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Each of them, by name.
    pub groups: Vec<GroupProgress>,
    /// Bytes that count against `limits.groups_bytes_max`; of several partitions, those of the fullest.
    pub bytes: usize,
}

/// Numbers of partitions by topic.
pub type Partitions = Vec<(String, Vec<u32>)>;
