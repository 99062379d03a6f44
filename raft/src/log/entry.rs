//! Raft entries as frames, and back: the one place where openraft's entry meets the frame.
//!
//! A frame knows its base offset, openraft's blank and membership entries do not: whoever stores one gives it
//! (offsets are a function of the log prefix); between brokers it is 0 for those and the receiver gives its own.

use bytes::Bytes;
use openraft::EntryPayload;

use super::frame::{Frame, FrameHeader, FrameKind};
use crate::codec;
use crate::types::{Entry, EntryData, LogId, Membership, log_id, repr};

/// Why a frame is not an entry, or an entry not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The entry is a proposal: `append` has not decided about it yet.
    #[error("entry {0} is only proposed")]
    Proposed(u64),
    /// The membership does not decode.
    #[error("membership of entry {index}: {why}")]
    Membership {
        /// The entry's index.
        index: u64,
        /// What is wrong with it.
        why: String,
    },
}

/// The frame of a stored entry. `base_offset` is used for blank and membership entries, whose frames are made here.
pub fn to_frame(entry: &Entry, base_offset: u64) -> Result<Frame, EntryError> {
    match &entry.payload {
        EntryPayload::Normal(EntryData::Stored(frame)) => Ok(frame.clone()),
        EntryPayload::Normal(EntryData::Proposed(_)) => Err(EntryError::Proposed(entry.log_id.index)),
        EntryPayload::Blank => Ok(raft_frame(entry.log_id, base_offset, None)),
        EntryPayload::Membership(membership) => Ok(raft_frame(entry.log_id, base_offset, Some(membership))),
    }
}

/// The frame of one of Raft's own entries: a blank one, or a membership.
pub(crate) fn raft_frame(id: LogId, base_offset: u64, membership: Option<&Membership>) -> Frame {
    let Some(membership) = membership else {
        return Frame::new(FrameHeader::bare(FrameKind::Blank, id, base_offset), Bytes::new());
    };
    let payload = codec::encode(&repr::Membership::from(membership));
    Frame::new(FrameHeader::bare(FrameKind::Membership, id, base_offset), payload.into())
}

/// The entry of a frame.
pub fn from_frame(frame: Frame) -> Result<Entry, EntryError> {
    let id = log_id(frame.header.term, frame.header.index);
    let payload = match frame.header.kind {
        FrameKind::Records | FrameKind::Void => EntryPayload::Normal(EntryData::Stored(frame)),
        FrameKind::Blank => EntryPayload::Blank,
        FrameKind::Membership => EntryPayload::Membership(decode_membership(&frame)?),
    };
    Ok(Entry { log_id: id, payload })
}

/// The membership in a frame of that kind.
pub(crate) fn decode_membership(frame: &Frame) -> Result<Membership, EntryError> {
    let malformed = |why: String| EntryError::Membership { index: frame.header.index, why };
    let membership: repr::Membership = codec::decode(&frame.payload).map_err(|error| malformed(error.to_string()))?;
    membership.try_into().map_err(malformed)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::types::{Proposal, ReplicaHome, ReplicaId};

    fn entry(payload: EntryPayload<EntryData, ReplicaId, ReplicaHome>) -> Entry {
        Entry { log_id: log_id(3, 7), payload }
    }

    #[test]
    fn raft_s_own_entries_survive_the_round_trip() {
        let members = BTreeSet::from([ReplicaId(1), ReplicaId(9)]);
        let homes: BTreeMap<_, _> = members.iter().map(|id| (*id, ReplicaHome::default())).collect();
        let membership = Membership::new(vec![members], homes).unwrap();
        for payload in [EntryPayload::Blank, EntryPayload::Membership(membership)] {
            let frame = to_frame(&entry(payload), 40).unwrap();
            assert_eq!((frame.header.term, frame.header.index, frame.header.base_offset), (3, 7, 40));
            let back = from_frame(frame.clone()).unwrap();
            assert_eq!(back.log_id, log_id(3, 7));
            assert_eq!(to_frame(&back, 40).unwrap(), frame);
        }
    }

    #[test]
    fn a_stored_frame_is_shared_not_copied() {
        let bare = FrameHeader::bare(FrameKind::Records, log_id(3, 7), 5);
        let header = FrameHeader { offset_span: 1, record_count: 1, max_timestamp: 0, ..bare };
        let stored = Frame::new(header, Bytes::from(vec![1; 100]));
        let frame = to_frame(&from_frame(stored.clone()).unwrap(), 0).unwrap();
        assert_eq!(frame, stored);
        assert_eq!(frame.payload.as_ptr(), stored.payload.as_ptr());
    }

    #[test]
    fn a_proposal_and_a_broken_membership_are_refused() {
        let proposal = Proposal { payload: Bytes::new(), flushed: None, stages: None };
        let proposed = entry(EntryPayload::Normal(EntryData::Proposed(proposal)));
        assert_eq!(to_frame(&proposed, 0).unwrap_err(), EntryError::Proposed(7));
        let mut frame = to_frame(&entry(EntryPayload::Blank), 0).unwrap();
        frame.header.kind = FrameKind::Membership;
        assert!(matches!(from_frame(frame), Err(EntryError::Membership { index: 7, .. })));
    }
}
