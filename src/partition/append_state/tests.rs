//! What a partition keeps beside its records is a function of its log, and is saved and read back in each of its versions.

use super::*;
use crate::partition::fake_log::batch;
use crate::partition::proposal;
use pontoon_raft::types::log_id;

/// Appends what the state decides. Returns the verdict, if there is one.
fn append(state: &mut PartitionState, index: u64, next_offset: u64, payload: Bytes) -> Option<Verdict> {
    let decision = state.decide(payload, AppendPosition { next_offset, index, term: 3 });
    let (kind, payload, span) = match decision {
        Decision::Accept { payload, offset_span, .. } => (FrameKind::Records, payload, offset_span),
        Decision::Void { verdict } => (FrameKind::Void, verdict, 0),
    };
    let header = FrameHeader {
        payload_bytes: payload.len() as u32,
        offset_span: span,
        record_count: span,
        ..FrameHeader::bare(kind, log_id(3, index), next_offset)
    };
    let prefix = &payload[..payload.len().min(crate::record_batch::BATCH_HEADER_BYTES)];
    state.observe(&header, prefix);
    (kind == FrameKind::Void).then(|| Verdict::decode(&payload).unwrap())
}

fn retention(log_start: u64, time_ms: i64) -> Verdict {
    Verdict::Retention { log_start, time_ms }
}

#[test]
fn the_log_start_is_held_between_where_it_was_and_the_log_end() {
    let mut state = PartitionState::default();
    for index in 0..10 {
        assert_eq!(append(&mut state, index, index, proposal::wrap(batch(&[5], None), None)), None);
    }
    assert_eq!(append(&mut state, 10, 10, retention(4, 77).encode()), Some(retention(4, 77)));
    assert_eq!(append(&mut state, 11, 10, retention(2, 78).encode()), Some(retention(4, 78)));
    assert_eq!(append(&mut state, 12, 10, retention(99, 79).encode()), Some(retention(10, 79)));
    assert_eq!([9, 10, 11, 12].map(|upto| state.log_start(upto)), [0, 4, 4, 10]);
    assert_eq!(append(&mut state, 13, 10, Verdict::UnknownProducer.encode()), Some(Verdict::Malformed));
}

#[test]
fn the_idlest_producer_is_known_until_the_log_says_that_it_has_expired() {
    let mut state = PartitionState::default();
    let expire = |below| Verdict::ExpireProducers { below };
    append(&mut state, 0, 0, proposal::wrap(batch(&[5], Some((7, 0, 0))), None));
    append(&mut state, 1, 1, proposal::wrap(batch(&[5], None), None));
    append(&mut state, 2, 2, proposal::wrap(batch(&[5], Some((8, 0, 0))), None));
    assert_eq!(state.oldest_remembered(), Some(0));
    assert_eq!(append(&mut state, 3, 3, expire(2).encode()), Some(expire(2)));
    assert_eq!(state.oldest_remembered(), Some(2));
    assert_eq!(append(&mut state, 4, 3, expire(99).encode()), Some(expire(4)));
    assert_eq!((state.oldest_remembered(), state), (None, PartitionState::default()));
}

#[test]
fn producers_and_retention_come_back_together_and_from_no_other_bytes() {
    let mut state = PartitionState::default();
    append(&mut state, 0, 0, proposal::wrap(batch(&[5, 6], Some((7, 0, 0))), None));
    append(&mut state, 1, 2, retention(1, 1000).encode());
    assert_eq!(state.appended_by(2), Some(1000));
    let saved = state.save();
    assert_eq!(PartitionState::load(&saved).unwrap(), state);
    for bit in 0..saved.len() * 8 {
        let mut rotten = saved.to_vec();
        rotten[bit / 8] ^= 1 << (bit % 8);
        assert!(PartitionState::load(&rotten).is_err(), "bit {bit}");
    }
    for cut in 0..saved.len() {
        assert!(PartitionState::load(&saved[..cut]).is_err(), "{cut} bytes");
    }
}

#[test]
fn the_first_versions_bytes_are_still_read() {
    let mut producers = Producers::default();
    let payload = proposal::stamp(proposal::wrap(batch(&[5], Some((7, 0, 0))), None), 0, 3);
    let header = FrameHeader {
        payload_bytes: payload.len() as u32,
        offset_span: 1,
        record_count: 1,
        max_timestamp: 5,
        ..FrameHeader::bare(FrameKind::Records, log_id(3, 1), 0)
    };
    producers.observe(&header, &payload);
    let state = PartitionState::load(&producers.save()).unwrap();
    assert_eq!(state, PartitionState { producers, retained: Retained::default() });
}

#[test]
fn the_example_in_the_header_holds() {
    let saved = PartitionState::default().save();
    assert_eq!(saved[..5], [2, 9, 0, 0, 0]);
    assert_eq!(saved[5..14], Producers::default().save());
    assert_eq!((saved[14..16].to_vec(), saved.len()), (vec![0, 0], 20));
}
