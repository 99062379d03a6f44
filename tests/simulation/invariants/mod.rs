//! What must hold, whatever happens: one file each. All see every event; some look at the whole at the end.
//!
//! Each has been shown able to fail twice: by its own unit test, which plants the breach, and by a broken variant of Pontoon
//! (`broken`) that it must find.

use crate::event::Event;

mod acknowledged_is_readable;
mod committed_never_changes;
mod dense_offsets;
mod exact_dedup;
mod high_watermark;
mod kept_entries_stay;
mod log_matching;
mod no_vote_from_quarantine;
mod one_leader_per_term;
mod table_of_the_log;

/// Something that must hold.
pub(crate) trait Invariant: Send {
    /// Its name, as `broken` and reports use it.
    fn name(&self) -> &'static str;

    /// Takes note of an event. `Err`: it cannot be.
    fn see(&mut self, event: &Event<'_>) -> Result<(), String>;

    /// How often it has compared something that only it can count, and what that is called.
    fn looked_at(&self) -> Option<(&'static str, u64)> {
        None
    }

    /// Looks at the whole, once every broker has shown and a client has read all there is. What cannot be.
    fn judge(&mut self) -> Vec<String> {
        Vec::new()
    }
}

/// One of each.
pub(crate) fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::<one_leader_per_term::OneLeaderPerTerm>::default(),
        Box::<log_matching::LogMatching>::default(),
        Box::<committed_never_changes::CommittedNeverChanges>::default(),
        Box::<dense_offsets::DenseOffsets>::default(),
        Box::<acknowledged_is_readable::AcknowledgedIsReadable>::default(),
        Box::<kept_entries_stay::KeptEntriesStay>::default(),
        Box::<no_vote_from_quarantine::NoVoteFromQuarantine>::default(),
        Box::<high_watermark::HighWatermark>::default(),
        Box::<exact_dedup::ExactDedup>::default(),
        Box::<table_of_the_log::TableOfTheLog>::default(),
    ]
}

/// Samples for the invariants' own tests.
pub(crate) mod samples {
    use pontoon::record_batch::{BatchLimits, NewRecord, ProducerSequence, RecordBatchBuilder};
    use pontoon_raft::log::frame::{Frame, FrameHeader, FrameKind};
    use pontoon_raft::types::log_id;

    use crate::event::{Attempt, Event, Fact, Replica};
    use crate::invariants::Invariant;

    pub(crate) fn attempt(batch: u32, attempt: u32) -> Attempt {
        Attempt { partition: 0, producer: 0, batch, attempt }
    }

    pub(crate) fn replica(broker: u32) -> Replica {
        Replica { broker, life: 1, group: 1, id: u64::from(10 + broker) }
    }

    /// A frame of one record at this index and offset, in term 1.
    pub(crate) fn frame(index: u64, base_offset: u64, of: Attempt) -> Frame {
        frame_by(index, base_offset, of, None)
    }

    /// The first frame of a producer with sequences.
    pub(crate) fn sequenced() -> Frame {
        frame_by(0, 0, attempt(0, 1), Some(ProducerSequence { producer_id: 7, epoch: 0, sequence: 0 }))
    }

    fn frame_by(index: u64, base_offset: u64, of: Attempt, by: Option<ProducerSequence>) -> Frame {
        let mut builder = RecordBatchBuilder::new(BatchLimits::default());
        builder.push(&NewRecord { value: Some(of.value(0, 0).into()), ..NewRecord::default() }).unwrap();
        let mut bytes = bytes::BytesMut::from(&builder.build(by).unwrap().into_bytes()[..]);
        pontoon::record_batch::stamp(&mut bytes, base_offset, 1);
        let header = FrameHeader {
            offset_span: 1,
            record_count: 1,
            max_timestamp: 0,
            ..FrameHeader::bare(FrameKind::Records, log_id(1, index), base_offset)
        };
        Frame::new(header, bytes.freeze())
    }

    /// Shows `invariant` that a frame is committed.
    pub(crate) fn commit(invariant: &mut impl Invariant, frame: &Frame) -> Result<(), String> {
        invariant.see(&Event::Committed { group: 1, index: frame.header.index, fact: Fact::of(frame), frame })
    }
}
