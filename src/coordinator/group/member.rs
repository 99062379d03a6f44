//! One member of a consumer group: what it said of itself, what it waits for, and how it stands in the log.

use std::time::Duration;

use bytes::Bytes;
use pontoon_raft::runtime::random_u64;
use tokio::time::Instant;

use super::{Outbox, Reply};
use crate::coordinator::entry::MemberRecord;
use crate::coordinator::{GroupError, Joined, Synced};

/// What a protocol takes besides its name and what is said under it, in bytes.
const PROTOCOL_BYTES: usize = 64;

/// Somebody in a group.
pub(super) struct Member {
    pub(super) instance_id: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) session_timeout: Duration,
    pub(super) rebalance_timeout: Duration,
    pub(super) protocols: Vec<(String, Bytes)>,
    pub(super) assignment: Bytes,
    /// Gone if nothing is heard until then.
    pub(super) deadline: Instant,
    pub(super) joining: Option<Reply<Joined>>,
    pub(super) syncing: Option<Reply<Synced>>,
}

impl Member {
    /// As the log tells it. It has a whole session timeout from now to be heard of.
    pub(super) fn restore(record: MemberRecord, now: Instant) -> Self {
        let session_timeout = Duration::from_millis(record.session_timeout_ms.into());
        Self {
            instance_id: record.instance_id,
            client_id: record.client_id,
            client_host: record.client_host,
            session_timeout,
            rebalance_timeout: Duration::from_millis(record.rebalance_timeout_ms.into()),
            protocols: record.protocols.into_iter().map(|(name, bytes)| (name, bytes.into())).collect(),
            assignment: record.assignment.into(),
            deadline: now + session_timeout,
            joining: None,
            syncing: None,
        }
    }

    /// For the log.
    pub(super) fn record(&self, id: &str) -> MemberRecord {
        MemberRecord {
            id: id.to_owned(),
            instance_id: self.instance_id.clone(),
            client_id: self.client_id.clone(),
            client_host: self.client_host.clone(),
            session_timeout_ms: self.session_timeout.as_millis() as u32,
            rebalance_timeout_ms: self.rebalance_timeout.as_millis() as u32,
            protocols: self.protocols.iter().map(|(name, bytes)| (name.clone(), bytes.to_vec())).collect(),
            assignment: self.assignment.to_vec(),
        }
    }

    /// Bytes of what it says of itself.
    pub(super) fn bytes(&self) -> usize {
        said_bytes(&self.client_id, &self.client_host, self.instance_id.as_deref(), &self.protocols)
    }

    /// The same, and of what it was assigned.
    pub(super) fn all_bytes(&self) -> usize {
        self.bytes() + self.assignment.len()
    }

    /// Something was heard of it.
    pub(super) fn heard(&mut self, now: Instant) {
        self.deadline = now + self.session_timeout;
    }

    /// Somebody waits for our answer: we are late, not the member.
    pub(super) fn waits(&self) -> bool {
        self.joining.as_ref().is_some_and(|reply| !reply.is_closed())
            || self.syncing.as_ref().is_some_and(|reply| !reply.is_closed())
    }

    pub(super) fn metadata(&self, protocol: Option<&str>) -> Bytes {
        let found = self.protocols.iter().find(|(name, _)| Some(name.as_str()) == protocol);
        found.map(|(_, metadata)| metadata.clone()).unwrap_or_default()
    }
}

/// An answer that somebody waits for who is not a member any more.
pub(super) enum Stale {
    Join(Reply<Joined>),
    Sync(Reply<Synced>),
}

impl Stale {
    pub(super) fn fence(self, out: &mut Outbox) {
        self.refuse(GroupError::FencedInstance, out);
    }

    pub(super) fn forget(self, out: &mut Outbox) {
        self.refuse(GroupError::UnknownMember, out);
    }

    fn refuse(self, error: GroupError, out: &mut Outbox) {
        match self {
            Self::Join(reply) => out.answer(reply, Err(error)),
            Self::Sync(reply) => out.answer(reply, Err(error)),
        }
    }
}

/// Bytes of what somebody says of themselves. One of the two names stands in the member's id too, which may be the leader's; that of a
/// protocol may be the chosen one's.
pub(super) fn said_bytes(
    client_id: &str,
    client_host: &str,
    instance_id: Option<&str>,
    protocols: &[(String, Bytes)],
) -> usize {
    let names = client_id.len() + instance_id.map_or(0, str::len);
    let protocols = protocols.iter().map(|(name, metadata)| PROTOCOL_BYTES + 2 * name.len() + metadata.len());
    3 * names + client_host.len() + protocols.sum::<usize>()
}

/// Protocols as they are kept: what came may share the memory of a frame that is far larger.
pub(super) fn kept(protocols: &[(String, Bytes)]) -> Vec<(String, Bytes)> {
    protocols.iter().map(|(name, metadata)| (name.clone(), Bytes::copy_from_slice(metadata))).collect()
}

/// An id that nobody has had before.
pub(super) fn new_member_id(of: &str) -> String {
    format!("{of}-{:016x}{:016x}", random_u64(), random_u64())
}
