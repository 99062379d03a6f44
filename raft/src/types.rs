//! The words of the replicated log: identifiers, and the types openraft is configured with.
//!
//! Nothing here does I/O. openraft's own types are named here and in the modules that implement its
//! traits (`log_store`, `state_machine`, `transport`, `raft_group`), nowhere else.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::log::frame::Frame;
use crate::stages::Stages;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

id!(
    /// Names a Raft group in the cluster. 0 is the catalog; a partition gets its own at creation. Never reused.
    GroupId(u64)
);
id!(
    /// Names one *incarnation* of a replica on one data directory. Never reused (RULES.md R9); openraft's node id.
    ReplicaId(u64)
);
id!(
    /// A broker's number, chosen by the operator.
    BrokerId(u32)
);
id!(
    /// A record's place in its partition, dense from 0. Raft's own entries take none.
    Offset(u64)
);
id!(
    /// Identifies a data directory for as long as it lives.
    DirectoryId(u128)
);
id!(
    /// Identifies a cluster. 0 means: not part of one yet.
    ClusterId(u128)
);

impl Offset {
    /// The offset `count` records further on.
    pub fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

/// Where a replica lives: what openraft stores beside a member's id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaHome {
    /// The broker that hosts it; its address is the transport's business.
    pub broker: BrokerId,
}

impl fmt::Display for ReplicaHome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "broker {}", self.broker)
    }
}

/// What a normal Raft entry carries.
#[derive(Debug)]
pub enum EntryData {
    /// The leader's own entry, before `append` has decided about it (RULES.md O2).
    Proposed(Proposal),
    /// An entry as it stands in the log: decided, stamped, with its checksum. What followers receive
    /// and what every read returns.
    Stored(Frame),
}

impl fmt::Display for EntryData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proposed(p) => write!(f, "proposed {} bytes", p.payload.len()),
            Self::Stored(frame) => write!(f, "{:?} {} bytes", frame.header.kind, frame.payload.len()),
        }
    }
}

/// A payload on its way to `append`.
#[derive(Debug)]
pub struct Proposal {
    /// What is proposed; its meaning is the [`crate::payload::Application`]'s.
    pub payload: Bytes,
    /// Told once the entry is durable *on this leader* (`acks=leader`), with where it was put.
    pub flushed: Option<oneshot::Sender<Appended>>,
    /// Noted as the entry passes them, if anybody wants to know.
    pub stages: Option<Arc<Stages>>,
}

/// Where `append` put an entry and what it decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Raft's index of the entry.
    pub index: u64,
    /// The term it was appended in: the leader epoch.
    pub term: u64,
    /// What was decided.
    pub outcome: Outcome,
}

/// What became of a proposal, decided at `append`, known once the entry is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The records took the offsets `base_offset .. base_offset + span`. `response` is what the application's
    /// `apply` returned (empty for partitions).
    Records {
        /// Offset of the first record.
        base_offset: Offset,
        /// How many offsets it took; 0 for catalog commands.
        span: u32,
        /// The application's answer.
        response: Bytes,
    },
    /// The proposal took no offsets; the verdict says why, in the application's own encoding.
    Void {
        /// The application's verdict.
        verdict: Bytes,
    },
    /// An entry of Raft's own (blank, membership).
    Internal,
}

openraft::declare_raft_types!(
    /// openraft's types, as Pontoon uses them. A term has one leader (`leader_id_std`), so the term is the leader epoch.
    pub TypeConfig:
        D = EntryData,
        R = Appended,
        NodeId = ReplicaId,
        Node = ReplicaHome,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, ReplicaId>,
        AsyncRuntime = crate::runtime::Runtime,
);

/// A position in a Raft log: term and index.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A vote, as Raft persists it.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// One entry of a Raft log.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// A group's membership.
pub type Membership = openraft::Membership<ReplicaId, ReplicaHome>;
/// A membership and the log id that set it.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;

/// Makes a [`LogId`] from its parts.
pub fn log_id(term: u64, index: u64) -> LogId {
    openraft::LogId::new(openraft::vote::leader_id_std::CommittedLeaderId::new(term), index)
}

/// Makes a [`Vote`] from its parts.
pub fn vote(term: u64, voted_for: ReplicaId, committed: bool) -> Vote {
    Vote { leader_id: openraft::impls::leader_id_std::LeaderId { term, voted_for }, committed }
}

/// The form in which Raft's own types stand on disk and on the wire: ours, so that openraft's may change.
///
/// Use with `#[serde(with = "repr::log_id")]` or by the `From` conversions.
pub mod repr {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::{Deserialize, Serialize};

    use super::{ReplicaHome, ReplicaId};

    /// A [`super::LogId`]: term, index.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    pub struct LogId(pub u64, pub u64);

    impl From<super::LogId> for LogId {
        fn from(id: super::LogId) -> Self {
            Self(id.leader_id.term, id.index)
        }
    }

    impl From<LogId> for super::LogId {
        fn from(id: LogId) -> Self {
            super::log_id(id.0, id.1)
        }
    }

    /// A [`super::Vote`]: term, whom for, whether a quorum granted it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Vote(pub u64, pub ReplicaId, pub bool);

    impl From<super::Vote> for Vote {
        fn from(vote: super::Vote) -> Self {
            Self(vote.leader_id.term, vote.leader_id.voted_for, vote.committed)
        }
    }

    impl From<Vote> for super::Vote {
        fn from(vote: Vote) -> Self {
            super::vote(vote.0, vote.1, vote.2)
        }
    }

    /// A [`super::Membership`]: the voter sets (two while joint), and every member's home.
    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Membership {
        /// Voter sets.
        pub configs: Vec<BTreeSet<ReplicaId>>,
        /// Voters and learners.
        pub nodes: BTreeMap<ReplicaId, ReplicaHome>,
    }

    impl From<&super::Membership> for Membership {
        fn from(membership: &super::Membership) -> Self {
            Self {
                configs: membership.get_joint_config().clone(),
                nodes: membership.nodes().map(|(id, home)| (*id, *home)).collect(),
            }
        }
    }

    impl TryFrom<Membership> for super::Membership {
        type Error = String;

        fn try_from(membership: Membership) -> Result<Self, String> {
            super::Membership::new(membership.configs, membership.nodes).map_err(|error| error.to_string())
        }
    }
}
