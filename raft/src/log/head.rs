//! How a log stands after its last entry: what a fold over its frames from the first one on gives.
//!
//! Everything here is a pure function of the log prefix (RULES.md O1), so that leader, followers and recovery agree.

use std::io;

use bytes::Bytes;

use super::base::Base;
use super::entry::{self, EntryError};
use super::frame::{Frame, FrameHeader, FrameKind};
use crate::payload::{AppendPosition, AppendState, Application, Decision};
use crate::types::{LogId, Membership, StoredMembership, log_id};

/// Why a frame cannot follow the ones before it. The log has diverged from the leader's, or a file is not what it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameRejected {
    #[error("entry {found} does not follow entry {last:?}")]
    NotNext { found: LogId, last: Option<LogId> },
    #[error("entry {index} has base offset {found}, the log's next offset is {expected}")]
    Diverged { index: u64, found: u64, expected: u64 },
    #[error(transparent)]
    Entry(#[from] EntryError),
}

impl From<FrameRejected> for io::Error {
    fn from(error: FrameRejected) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// The log's last entry and what the prefix up to it tells.
pub(crate) struct Head {
    pub(crate) last: Option<LogId>,
    pub(crate) next_offset: u64,
    pub(crate) append_state: Box<dyn AppendState>,
    /// The last two memberships. At most one is uncommitted at any time, so the first of two is committed.
    pub(crate) memberships: Vec<StoredMembership>,
}

impl Head {
    /// As the prefix that `base` speaks of left it.
    pub(crate) fn from_base(application: &dyn Application, base: &Base) -> io::Result<Self> {
        let append_state = application.append_state(base.append_state.as_deref())?;
        let memberships = if base.membership.log_id().is_some() { vec![base.membership.clone()] } else { Vec::new() };
        Ok(Self { last: base.last, next_offset: base.next_offset, append_state, memberships })
    }

    /// A base names one membership, which may not be committed. `known` are the last two of a log that this is a prefix of, or was:
    /// if they tell which one came before the base's, that is remembered too. Else a restart would take the base's for
    /// committed, and could never go back to the one before it.
    pub(crate) fn recall(&mut self, known: &[StoredMembership]) {
        if let ([own], [_, newer]) = (self.memberships.as_slice(), known)
            && own == newer
        {
            self.memberships = known.to_vec();
        }
    }

    /// What a base or a snapshot taken here holds.
    pub(crate) fn base(&self) -> Base {
        Base {
            last: self.last,
            next_offset: self.next_offset,
            append_state: Some(self.append_state.save()),
            membership: self.memberships.last().cloned().unwrap_or_default(),
            application: Bytes::new(),
        }
    }

    /// The index the next entry will have.
    pub(crate) fn next_index(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }

    /// Whether a frame may follow, `next_offset` being where offsets stand.
    pub(crate) fn check(header: &FrameHeader, last: Option<LogId>, next_offset: u64) -> Result<(), FrameRejected> {
        let found = log_id(header.term, header.index);
        if last.is_some_and(|last| header.index != last.index + 1 || header.term < last.leader_id.term) {
            return Err(FrameRejected::NotNext { found, last });
        }
        if header.base_offset != next_offset {
            return Err(FrameRejected::Diverged {
                index: header.index,
                found: header.base_offset,
                expected: next_offset,
            });
        }
        Ok(())
    }

    /// Decides about a proposal, and makes the frame that will hold it. Changes nothing.
    pub(crate) fn decide(&self, id: LogId, payload: Bytes) -> Frame {
        let at = AppendPosition { next_offset: self.next_offset, index: id.index, term: id.leader_id.term };
        let mut header = FrameHeader::bare(FrameKind::Void, id, self.next_offset);
        match self.append_state.decide(payload, at) {
            Decision::Accept { payload, offset_span, record_count, max_timestamp } => {
                header.kind = FrameKind::Records;
                header.offset_span = offset_span;
                header.record_count = record_count;
                header.max_timestamp = max_timestamp;
                Frame::new(header, payload)
            }
            Decision::Void { verdict } => Frame::new(header, verdict),
        }
    }

    /// The frame of one of Raft's own entries.
    pub(crate) fn internal(&self, id: LogId, membership: Option<&Membership>) -> Frame {
        let frame = entry::raft_frame(id, self.next_offset, membership);
        #[cfg(any(test, feature = "simulation"))]
        if membership.is_none() && crate::sabotage::on(crate::sabotage::Sabotage::BlanksTakeOffsets) {
            return Frame::new(FrameHeader { offset_span: 1, ..frame.header }, Bytes::new());
        }
        frame
    }

    /// Takes note of the next frame. On an error nothing has changed.
    pub(crate) fn observe(&mut self, frame: &Frame) -> Result<(), FrameRejected> {
        let header = &frame.header;
        Self::check(header, self.last, self.next_offset)?;
        match header.kind {
            FrameKind::Records | FrameKind::Void => self.append_state.observe(header, &frame.payload),
            FrameKind::Blank => {}
            FrameKind::Membership => {
                let membership = entry::decode_membership(frame)?;
                if self.memberships.len() == 2 {
                    self.memberships.remove(0);
                }
                let id = log_id(header.term, header.index);
                self.memberships.push(StoredMembership::new(Some(id), membership));
            }
        }
        self.last = Some(log_id(header.term, header.index));
        self.next_offset = header.next_offset();
        Ok(())
    }
}
