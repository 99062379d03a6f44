//! A batch on its way to `append`, and what the produce asked for besides.
//!
//! The envelope takes no room of its own: until the leader stamps a batch, its base offset and leader epoch mean nothing, so
//! the proposal carries its condition in them. Stamping writes over it, and the batch is never copied.
//!
//! | at | bytes | in a proposal (big endian) |
//! |---|---|---|
//! | 0 | 8 | the offset that must be the log end (`If-Match-Offset`), or -1 |
//! | 12 | 4 | version of this envelope, 1 |

use bytes::{Bytes, BytesMut};
use pontoon_raft::types::Offset;

use crate::record_batch::{self, BatchHeader, RecordBatch};

const VERSION: i32 = 1;
const NO_CONDITION: u64 = u64::MAX;

/// Makes a proposal's payload. Takes the batch's memory over if nobody else holds it, and copies it otherwise, so that the
/// stamp under the log's lock need not.
pub(super) fn wrap(batch: RecordBatch, if_match: Option<Offset>) -> Bytes {
    let mut bytes = into_owned(batch.into_bytes());
    // No log ends at either of the two largest offsets: both conditions fail alike.
    let condition = if_match.map_or(NO_CONDITION, |offset| offset.0.min(NO_CONDITION - 1));
    record_batch::stamp(&mut bytes, condition, VERSION as u64);
    bytes.freeze()
}

/// What [`wrap`] was given: the batch's header (its stamped fields mean nothing yet) and the condition. `None` if these
/// bytes are no proposal.
pub(super) fn read(payload: &[u8]) -> Option<(BatchHeader, Option<Offset>)> {
    let header = BatchHeader::read(payload).ok()?;
    let condition = (header.base_offset != NO_CONDITION).then_some(Offset(header.base_offset));
    (header.leader_epoch == VERSION).then_some((header, condition))
}

/// Turns a proposal into the batch as it is stored.
pub(super) fn stamp(payload: Bytes, base_offset: u64, term: u64) -> Bytes {
    let mut bytes = into_owned(payload);
    record_batch::stamp(&mut bytes, base_offset, term);
    bytes.freeze()
}

fn into_owned(bytes: Bytes) -> BytesMut {
    bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record_batch::{BatchLimits, NewRecord, RecordBatchBuilder};

    fn batch() -> RecordBatch {
        let mut builder = RecordBatchBuilder::new(BatchLimits::default());
        builder.push(&NewRecord { value: Some(vec![7; 5000].into()), ..NewRecord::default() }).unwrap();
        builder.build(None).unwrap()
    }

    #[test]
    fn a_batch_that_nobody_else_holds_is_stamped_in_place() {
        let batch = batch();
        let at = batch.bytes().as_ptr();
        let stored = stamp(wrap(batch, None), 17, 3);
        assert_eq!(stored.as_ptr(), at);
        let header = *RecordBatch::check(stored, &BatchLimits::default()).unwrap().header();
        assert_eq!((header.base_offset, header.leader_epoch), (17, 3));
    }

    #[test]
    fn a_batch_in_shared_memory_is_copied_and_the_other_holder_sees_nothing() {
        let batch = batch();
        let other = batch.bytes().clone();
        let before = other.to_vec();
        let proposal = wrap(batch, Some(Offset(5)));
        assert_ne!(proposal.as_ptr(), other.as_ptr());
        stamp(proposal, 17, 3);
        assert_eq!(other, before);
    }

    #[test]
    fn the_condition_comes_back_and_other_bytes_are_no_proposal() {
        for condition in [None, Some(Offset(0)), Some(Offset(u64::MAX >> 1))] {
            let proposal = wrap(batch(), condition);
            assert_eq!(read(&proposal).unwrap().1, condition);
        }
        let impossible = wrap(batch(), Some(Offset(u64::MAX)));
        assert!(read(&impossible).unwrap().1.is_some(), "a condition that cannot hold is not none");
        assert!(read(batch().bytes()).is_none(), "a batch without an envelope");
        assert!(read(b"short").is_none());
        assert!(read(&stamp(wrap(batch(), None), 1, 2)).is_none(), "a stored batch");
    }
}
