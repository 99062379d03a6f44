//! What brokers ask of the controller, and its answers: messages between brokers, in [`pontoon_raft::codec`].
//!
//! Every request may be sent again without doing its work twice: topics are created under an id that the asker chose.

use std::collections::BTreeMap;
use std::time::Duration;

use pontoon_raft::types::{BrokerId, ClusterId, DirectoryId};
use serde::{Deserialize, Serialize};

use crate::catalog::command::{BrokerRegistration, ReplicaReport};
use crate::catalog::state::TopicId;
use crate::error::{Code, Error};

/// Within so long the controller answers, and whoever asks waits for it: its work is a commit or two. What is not committed
/// by then goes on behind.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A request to the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// May this broker join with this directory? Changes nothing.
    Admit {
        /// Who asks.
        broker: BrokerId,
        /// Its directory.
        directory: DirectoryId,
    },
    /// A broker has started.
    Register(BrokerRegistration),
    /// A new topic.
    CreateTopic {
        /// Its id, chosen by the asker at random.
        topic: TopicId,
        /// Its name.
        name: String,
        /// How many partitions.
        partitions: u32,
        /// How many replicas each.
        replicas: u32,
        /// Its configuration.
        config: BTreeMap<String, String>,
    },
    /// Another configuration, more partitions.
    AlterTopic {
        /// Which.
        topic: TopicId,
        /// How many partitions it shall have.
        partitions: Option<u32>,
        /// What changes; `None` resets.
        config: BTreeMap<String, Option<String>>,
    },
    /// The end of a topic.
    DeleteTopic {
        /// Which.
        topic: TopicId,
    },
    /// What happened to replicas.
    Report(ReplicaReport),
    /// A block of producer ids.
    ProducerIds {
        /// How many.
        count: u32,
    },
    /// How far the catalog is, confirmed by a majority.
    Sync,
    /// A new topic, whose replicas the asker has placed.
    CreateTopicOn {
        /// Its id, chosen by the asker at random.
        topic: TopicId,
        /// Its name.
        name: String,
        /// For each partition its brokers, the preferred leader first.
        assignment: Vec<Vec<BrokerId>>,
        /// Its configuration.
        config: BTreeMap<String, String>,
    },
    /// More partitions, whose replicas the asker has placed.
    GrowTopicOn {
        /// Which.
        topic: TopicId,
        /// How many partitions it has, by what the asker knows.
        partitions_before: u32,
        /// For each new partition its brokers, the preferred leader first.
        assignment: Vec<Vec<BrokerId>>,
    },
}

impl ControlRequest {
    /// Whether it may leave the catalog other than it was; else it is a question.
    pub fn changes_the_catalog(&self) -> bool {
        !matches!(self, Self::Admit { .. } | Self::Sync)
    }
}

/// The controller's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlAnswer {
    /// Admitted to this cluster.
    Admitted(ClusterId),
    /// Done; the catalog shows it from this log index on.
    Done {
        /// Raft index in group 0.
        index: u64,
    },
    /// The producer ids `first .. first + count`.
    ProducerIds {
        /// The first.
        first: i64,
        /// How many.
        count: u32,
    },
}

/// Why the controller did not do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ControlError {
    /// Ask this broker, if any; nothing was done.
    #[error("not the controller")]
    NotController {
        /// Who leads the catalog, and where it is.
        controller: Option<(BrokerId, String)>,
    },
    /// No, by the name of a [`Code`] and its message; nothing was done.
    #[error("{code}: {message}")]
    Refused {
        /// The code's name.
        code: String,
        /// Why.
        message: String,
    },
    /// It may have been done. Ask again.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// The asker's data directory is the copy of one that another process uses. Nothing was done.
    #[error("{0}")]
    CopiedDirectory(String),
}

impl ControlError {
    /// A refusal.
    pub fn refused(code: Code, message: impl Into<String>) -> Self {
        Self::Refused { code: code.as_str().to_owned(), message: message.into() }
    }
}

impl From<ControlError> for Error {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::NotController { .. } => {
                Error::new(Code::NotReady, "the cluster has no controller at the moment")
            }
            ControlError::Refused { code, message } => {
                // A code of a newer version is shown as what it certainly is.
                let known = Code::ALL.iter().copied().find(|known| known.as_str() == code);
                Error::new(known.unwrap_or(Code::InvalidRequest), message)
            }
            ControlError::Unknown(why) => Error::new(Code::OutcomeUnknown, why),
            ControlError::CopiedDirectory(why) => Error::new(Code::InvalidRequest, why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_code_across_the_wire() {
        for code in Code::ALL {
            let error = Error::from(ControlError::refused(*code, "why"));
            assert_eq!((error.code, error.message.as_str()), (*code, "why"));
        }
    }
}
