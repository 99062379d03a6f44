//! The crate's errors, grouped by what the caller does about them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::is_full;
use crate::types::{BrokerId, GroupId, ReplicaId};

/// Why a data directory cannot be opened. The broker refuses to start and shows it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("data directory {0} is in use by another process")]
    InUse(PathBuf),
    /// It belongs to another cluster.
    #[error("data directory {path} belongs to cluster {found:032x}, not {expected:032x}")]
    ForeignCluster {
        /// The directory.
        path: PathBuf,
        /// What it says.
        found: u128,
        /// What was asked for.
        expected: u128,
    },
    /// It belongs to another broker.
    #[error("data directory {path} belongs to broker {found}, not {expected}")]
    ForeignBroker {
        /// The directory.
        path: PathBuf,
        /// What it says.
        found: BrokerId,
        /// What was asked for.
        expected: BrokerId,
    },
    /// It was written by a version this one does not know.
    #[error("{path} has format version {found}; this version reads {known}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// What was acknowledged cannot be read back. Nothing is deleted; see docs/OPERATIONS.md.
    #[error("{path} is corrupt: {why}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found, with positions.
        why: String,
    },
    /// The disk has not even room for what a start must write.
    #[error(
        "{path}: {error}: a start writes a few files of its own and what the journal holds of segments; \
         make room on this disk (the journal, the checkpoint and the groups' folders must stay as they are) and start again: \
         nothing is lost"
    )]
    Full {
        /// What has no room.
        path: PathBuf,
        /// The operating system's error.
        error: io::Error,
    },
    /// The operating system said no.
    #[error("{path}: {error}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Its error.
        error: io::Error,
    },
}

impl OpenError {
    /// Tells a full disk from other errors of the operating system.
    pub(crate) fn judged(self) -> Self {
        match self {
            Self::Io { path, error } if is_full(&error) => Self::Full { path, error },
            other => other,
        }
    }
}

/// The data directory has stopped (RULES.md J15): an fsync failed, or it was closed. Nothing more will be acknowledged
/// by this process; the operator must look.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the data directory has stopped: {0}")]
pub struct Stopped(pub Arc<str>);

impl From<Stopped> for io::Error {
    fn from(error: Stopped) -> Self {
        Self::other(error)
    }
}

/// Why a proposal has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This replica does not lead; nothing was appended (outcome `none`). Ask `leader`, if known.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as is known.
        leader: Option<(ReplicaId, BrokerId)>,
    },
    /// No answer within the time given, or leadership was lost under way: it may have happened (outcome `unknown`).
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// The group's core has stopped; nothing was appended. Its supervisor restarts it or reports it.
    #[error("group {group} has stopped: {why}")]
    Stopped {
        /// The group.
        group: GroupId,
        /// Why.
        why: String,
    },
}

/// Why records cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Below the log start or above the limit.
    #[error("offset {offset} is not in {start}..={end}")]
    OutOfRange {
        /// What was asked for.
        offset: u64,
        /// Log start offset.
        start: u64,
        /// The limit (high watermark).
        end: u64,
    },
    /// The stored bytes are not what was written. They are not served.
    #[error("corrupt frame in {file} at position {position}: {why}")]
    Corrupt {
        /// The segment file.
        file: PathBuf,
        /// Where in it.
        position: u64,
        /// What is wrong.
        why: String,
    },
    /// The operating system said no.
    #[error(transparent)]
    Io(#[from] io::Error),
}
