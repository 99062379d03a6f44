//! Appending, truncating, purging, installing.

use std::collections::{BTreeMap, BTreeSet};

use openraft::storage::{RaftLogReader, RaftLogStorage};

use super::*;
use crate::disk::read_file;
use crate::journal::SegmentName;
use crate::log::index::SparseIndex;
use crate::log::segment;
use crate::log_store::LogStore;
use crate::types::{Membership, ReplicaHome};

fn stored(index: u64, base_offset: u64, payload: &[u8]) -> Frame {
    let header = FrameHeader {
        offset_span: 3,
        record_count: 3,
        max_timestamp: 5,
        ..FrameHeader::bare(FrameKind::Records, log_id(1, index), base_offset)
    };
    Frame::new(header, Bytes::copy_from_slice(payload))
}

#[tokio::test(start_paused = true)]
async fn a_leaders_entry_is_decided_and_stamped_at_append() {
    let (_, _store, log) = fresh(small()).await;
    let (tell, told) = oneshot::channel();
    let accepted = Proposal { payload: test_payload(3, 1, 0, b"abc"), flushed: Some(tell), stages: None };
    let (tell_void, told_void) = oneshot::channel();
    let repeated = Proposal { payload: test_payload(3, 1, 0, b"abc"), flushed: Some(tell_void), stages: None };
    let next = test_payload(1, 1, 1, b"d");
    let entries = vec![
        NewEntry::Blank(log_id(2, 0)),
        NewEntry::Proposed(log_id(2, 1), accepted),
        NewEntry::Proposed(log_id(2, 2), repeated),
        proposal(3, 2, next),
    ];
    append(&log, entries).await.unwrap();
    let frames = log.read_indexes(0, 10, usize::MAX).await.unwrap();
    let kinds: Vec<_> = frames.iter().map(|frame| (frame.header.kind, frame.header.base_offset)).collect();
    let expected = [(FrameKind::Blank, 0), (FrameKind::Records, 0), (FrameKind::Void, 3), (FrameKind::Records, 3)];
    assert_eq!(kinds, expected);
    assert_eq!(frames[3].payload[..8], 3u64.to_le_bytes());
    assert_eq!((log.log_end_offset(), log.high_watermark()), (Offset(4), Offset(0)));
    // `acks=leader`: told once it is durable here.
    let outcome = Outcome::Records { base_offset: Offset(0), span: 3, response: Bytes::new() };
    assert_eq!(told.await.unwrap(), Appended { index: 1, term: 2, outcome });
    let Outcome::Void { verdict } = told_void.await.unwrap().outcome else { panic!("a duplicate was accepted") };
    assert_eq!(verdict, "sequence 0, not 1");
}

#[tokio::test(start_paused = true)]
async fn a_follower_stores_what_it_is_given_and_never_decides() {
    let (_, _store, log) = fresh(small()).await;
    // A sequence that the append state would turn down: it is the leader's business.
    let payload = test_payload(3, 1, 77, b"x");
    append(&log, vec![NewEntry::Stored(log_id(1, 0), stored(0, 0, &payload))]).await.unwrap();
    let frames = log.read_indexes(0, 1, 1).await.unwrap();
    assert_eq!(frames[0], stored(0, 0, &payload));
    let producers: TestProducers = codec::decode(&log.append_state()).unwrap();
    assert_eq!(producers.next[&1], 78);
}

#[tokio::test(start_paused = true)]
async fn a_frame_with_another_base_offset_is_a_divergence_and_changes_nothing() {
    let (_, _store, log) = fresh(small()).await;
    append(&log, vec![NewEntry::Stored(log_id(1, 0), stored(0, 0, b"first"))]).await.unwrap();
    let before = log.append_state();
    let batch = vec![
        NewEntry::Stored(log_id(1, 1), stored(1, 3, b"fine")),
        NewEntry::Stored(log_id(1, 2), stored(2, 5, b"diverged")),
    ];
    let error = append(&log, batch).await.unwrap_err();
    assert!(error.to_string().contains("base offset 5, the log's next offset is 6"), "{error}");
    assert_eq!((log.last_log_id(), log.append_state()), (Some(log_id(1, 0)), before));
    // So it goes on as if nothing had been asked.
    append(&log, vec![NewEntry::Stored(log_id(1, 1), stored(1, 3, b"fine"))]).await.unwrap();
    assert_eq!(log.log_end_offset(), Offset(6));
}

/// openraft takes for flushed whatever the storage says it has at a start, and tells the leader so. A core that ends and is started
/// again finds a log whose last round may still be on its way.
#[tokio::test(start_paused = true)]
async fn a_core_that_is_started_again_hears_of_nothing_that_is_not_durable() {
    for voting in [false, true] {
        let (disk, _store, log) = fresh(small()).await;
        fill(&log, 1, 2, 10).await;
        disk.slow_syncs("journal", Duration::from_secs(10));
        let flushed = submit(&log, vec![NewEntry::Blank(log_id(1, 2))]).await.unwrap();
        let saving = tokio::spawn({
            let log = log.clone();
            async move { if voting { log.save_vote(vote(2, ReplicaId(7), false)).await } else { Ok(()) } }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut store = LogStore::new(log.clone());
        let found = match voting {
            true => (store.read_vote().await.unwrap(), None),
            false => (None, store.get_log_state().await.unwrap().last_log_id),
        };
        // The power goes as soon as that was said.
        let after = open(&disk.crash(), small(), SnapshotAt::Boundary).await.replicas()[0].log.clone();
        let expected = match voting {
            true => (Some(vote(2, ReplicaId(7), false)), None),
            false => (None, Some(log_id(1, 2))),
        };
        assert_eq!(found, expected);
        assert_eq!((after.vote(), after.last_log_id()), (found.0, Some(log_id(1, 2))), "voting: {voting}");
        drop((flushed, saving));
    }
}

#[tokio::test(start_paused = true)]
async fn entries_that_do_not_follow_are_refused() {
    let (_, _store, log) = fresh(small()).await;
    append(&log, vec![NewEntry::Blank(log_id(2, 0))]).await.unwrap();
    for wrong in [
        vec![NewEntry::Blank(log_id(2, 2))],
        vec![NewEntry::Blank(log_id(2, 0))],
        vec![NewEntry::Blank(log_id(1, 1))],
        vec![NewEntry::Blank(log_id(2, 1)), NewEntry::Blank(log_id(2, 3))],
        vec![NewEntry::Stored(log_id(2, 1), stored(1, 0, b"of term 1"))],
        vec![proposal(1, 2, Bytes::new()), NewEntry::Stored(log_id(2, 2), stored(2, 0, b"mixed"))],
    ] {
        assert!(append(&log, wrong).await.is_err());
    }
    assert_eq!(log.last_log_id(), Some(log_id(2, 0)));
}

#[tokio::test(start_paused = true)]
async fn operations_complete_in_the_order_they_were_asked_for() {
    let (_, _store, log) = fresh(small()).await;
    let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
    // Small ones, and large ones that are written to their segment directly.
    for (index, bytes) in [10, 9000, 20, 12_000, 30, 30].into_iter().enumerate() {
        let order = order.clone();
        let entry = proposal(index as u64, 1, test_payload(1, 1, index as u32, &vec![1; bytes]));
        let done = Box::new(move |result: std::io::Result<()>| {
            result.unwrap();
            order.lock().push(index);
        });
        log.append(vec![entry], done).await.unwrap();
    }
    log.save_vote(vote(1, REPLICA, true)).await.unwrap();
    // The vote is durable, so everything before it is (RULES.md J5).
    assert_eq!(*order.lock(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(indexes(&log).await, [0, 1, 2, 3, 4, 5]);
}

/// A base names the last membership before its segment only. If that one is not committed yet, the group may still go back to the one
/// before it: a replica that takes it for committed would vote by a membership that never was.
#[tokio::test(start_paused = true)]
async fn a_truncation_forgets_no_membership_that_may_yet_come_back() {
    let membership = |voters: &[u64]| {
        let voters: BTreeSet<ReplicaId> = voters.iter().copied().map(ReplicaId).collect();
        let nodes = voters.iter().map(|id| (*id, ReplicaHome { broker: BrokerId(1) })).collect::<BTreeMap<_, _>>();
        Membership::new(vec![voters], nodes).unwrap()
    };
    let voters = |log: &Log, index| log.membership_at(Some(index)).membership().voter_ids().count();
    for cut in [6, 7, 12, 18] {
        let (disk, store, log) = fresh(small()).await;
        append(&log, vec![NewEntry::Membership(log_id(1, 0), membership(&[40]))]).await.unwrap();
        fill(&log, 1, 5, 300).await;
        append(&log, vec![NewEntry::Membership(log_id(1, 6), membership(&[40, 41, 42]))]).await.unwrap();
        fill(&log, 1, 14, 300).await;
        rest().await;
        store.checkpoint().await.unwrap();
        assert!(log.segments().iter().filter(|segment| segment.first_index > 6).count() > 1);
        log.truncate_after(Some(log_id(1, cut))).await.unwrap();
        assert_eq!((voters(&log, 5), voters(&log, 6)), (1, 3), "truncated after {cut}");
        fill(&log, 2, 1, 300).await;
        let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
        let log = store.replicas()[0].log.clone();
        assert_eq!(log.last_log_id(), Some(log_id(2, cut + 1)));
        assert_eq!((voters(&log, 5), voters(&log, 6)), (1, 3), "truncated after {cut}, and opened again");
        log.truncate_after(Some(log_id(1, 5))).await.unwrap();
        assert_eq!((voters(&log, 5), voters(&log, 6)), (1, 1), "back before it, after {cut}");
    }
}

#[tokio::test(start_paused = true)]
async fn append_after_truncate_reuses_offsets_in_a_new_file() {
    let (disk, _store, log) = fresh(RaftConfig { segment_bytes_max: 1 << 20, ..small() }).await;
    fill(&log, 1, 8, 100).await;
    rest().await;
    log.truncate_after(Some(log_id(1, 4))).await.unwrap();
    assert_eq!((log.log_end_offset(), log.last_log_id()), (Offset(10), Some(log_id(1, 4))));
    fill(&log, 2, 2, 100).await;
    assert_eq!(indexes(&log).await, [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!((log.log_end_offset(), log.segments().len()), (Offset(14), 2));
    assert_eq!(log.key_log_ids(0, 6), [log_id(1, 4), log_id(2, 6)]);
    // The same after a restart.
    log.save_vote(vote(2, REPLICA, true)).await.unwrap();
    let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
    let again = &store.replicas()[0].log;
    assert_eq!(indexes(again).await, [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!((again.append_state(), again.log_end_offset()), (log.append_state(), Offset(14)));
}

#[tokio::test(start_paused = true)]
async fn committed_and_purged_entries_are_never_truncated() {
    let (_, _store, log) = fresh(small()).await;
    fill(&log, 1, 6, 100).await;
    log.set_committed(Some(log_id(1, 3)));
    assert!(log.truncate_after(Some(log_id(1, 2))).await.is_err());
    assert!(log.truncate_after(None).await.is_err());
    assert!(log.truncate_after(Some(log_id(2, 4))).await.is_err(), "the log does not hold that entry");
    log.truncate_after(Some(log_id(1, 3))).await.unwrap();
    // Beyond the end there is nothing to do.
    log.truncate_after(Some(log_id(1, 9))).await.unwrap();
    assert_eq!(indexes(&log).await, [0, 1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_purge_unlinks_whole_segments_and_hides_the_rest() {
    let (disk, _store, log) = fresh(small()).await;
    fill(&log, 1, 30, 200).await;
    rest().await;
    let segments = log.segments();
    assert!(segments.len() > 3);
    let inside = segments[2].first_index + 1;
    log.purge(log_id(1, inside)).await.unwrap();
    log.save_vote(vote(1, REPLICA, true)).await.unwrap();
    rest().await;
    assert_eq!((log.first_index(), log.log_start_offset()), (inside + 1, Offset(2 * (inside + 1))));
    assert_eq!(log.segments()[0].first_index, segments[2].first_index);
    let names = crate::disk::Disk::read_dir(&disk, log.dir()).await.unwrap();
    let kept = names.iter().filter(|entry| entry.name.ends_with(".segment")).count();
    assert_eq!(kept, log.segments().len(), "{names:?}");
    let range = log.read(Offset(0), log.log_end_offset(), 1000).await;
    assert!(matches!(range, Err(ReadError::OutOfRange { offset: 0, .. })));
    assert!(log.read_indexes(inside, inside + 1, 1).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_beyond_the_log_empties_it_and_one_within_keeps_the_tail() {
    let (_, store, log) = fresh(small()).await;
    fill(&log, 1, 20, 200).await;
    let (head, _) = log.head_at(Some(14)).await.unwrap();
    let base = head.base();
    let other = store.create(GroupId(5), ReplicaId(50)).await.unwrap().log;
    fill(&other, 1, 3, 10).await;
    other.install(&base, base.encode()).await.unwrap();
    assert_eq!((other.last_log_id(), other.purged_log_id()), (Some(log_id(1, 14)), Some(log_id(1, 14))));
    assert_eq!((other.log_start_offset(), other.log_end_offset()), (Offset(30), Offset(30)));
    assert_eq!(other.append_state(), base.append_state.clone().unwrap());
    assert!(indexes(&other).await.is_empty());
    log.install(&base, base.encode()).await.unwrap();
    assert_eq!(indexes(&log).await, [15, 16, 17, 18, 19]);
    // Both go on, with the offsets that follow.
    fill(&other, 2, 1, 10).await;
    fill(&log, 2, 1, 10).await;
    assert_eq!((other.log_end_offset(), log.log_end_offset()), (Offset(32), Offset(42)));
}

#[tokio::test(start_paused = true)]
async fn the_log_never_starts_above_its_high_watermark_while_a_snapshot_is_installed() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 20, 200).await;
    let base = log.head_at(Some(14)).await.unwrap().0.base();
    let other = store.create(GroupId(5), ReplicaId(50)).await.unwrap().log;
    disk.slow_syncs("journal", Duration::from_secs(1));
    let installing = tokio::spawn({
        let other = other.clone();
        async move { other.install(&base, base.encode()).await }
    });
    while other.log_start_offset() == Offset(0) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!installing.is_finished());
    assert_eq!((other.log_start_offset(), other.high_watermark()), (Offset(30), Offset(30)));
    installing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_commit_rides_along_and_never_outruns_the_log() {
    let (disk, _store, log) = fresh(small()).await;
    fill(&log, 1, 3, 10).await;
    // Ahead of what is here: a quorum has more.
    log.set_committed(Some(log_id(1, 9)));
    fill(&log, 1, 1, 10).await;
    let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
    let log = &store.replicas()[0].log;
    // Journalled with the append, as far as the log went before it.
    assert_eq!(log.committed_log_id(), Some(log_id(1, 2)));
    assert_eq!((log.high_watermark(), log.log_end_offset()), (Offset(6), Offset(8)));
}

#[tokio::test(start_paused = true)]
async fn a_vote_is_durable_when_it_is_saved() {
    let (disk, _store, log) = fresh(small()).await;
    let voted: Vote = vote(7, ReplicaId(99), false);
    log.save_vote(voted).await.unwrap();
    let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
    assert_eq!(store.replicas()[0].log.vote(), Some(voted));
}

#[tokio::test(start_paused = true)]
async fn key_log_ids_are_the_last_of_each_term() {
    let (_, _store, log) = fresh(small()).await;
    for (term, count) in [(1, 3), (4, 20), (5, 1), (9, 2)] {
        fill(&log, term, count, 300).await;
    }
    let all: Vec<LogId> = vec![log_id(1, 2), log_id(4, 22), log_id(5, 23), log_id(9, 25)];
    assert_eq!(log.key_log_ids(0, 25), all);
    assert_eq!(log.key_log_ids(10, 23), [log_id(4, 22), log_id(5, 23)]);
    assert_eq!(log.key_log_ids(3, 20), [log_id(4, 20)]);
}

/// The next start need not read a long segment only to know where its entries stand, however this process ends.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_stores_the_index_of_a_segment_that_has_grown() {
    let config = RaftConfig { segment_bytes_max: 1 << 20, ..small() };
    let (disk, store, log) = fresh(config.clone()).await;
    let name = SegmentName { first_index: 0, file_no: 0 };
    let path = segment::path(log.dir(), name, "index");
    let stored = async |disk: &SimDisk| {
        let bytes = read_file(disk, &path, 1 << 20).await.ok()?;
        let index = SparseIndex::decode(&bytes, name, u64::MAX, config.index_interval_bytes);
        Some(index.expect("an index that is whole").end())
    };
    fill(&log, 1, 20, 1000).await;
    store.checkpoint().await.unwrap();
    assert_eq!(stored(&disk).await, None, "a short one is read sooner than stored");
    fill(&log, 1, 20, 1000).await;
    store.checkpoint().await.unwrap();
    let first = stored(&disk).await.unwrap();
    assert_eq!(first, log.segments()[0].bytes);
    fill(&log, 1, 5, 1000).await;
    store.checkpoint().await.unwrap();
    assert_eq!(stored(&disk).await, Some(first), "not for every little");

    // After a kill it is known from there on, without the segment's beginning being read; and stored again in time.
    let disk = disk.kill();
    let store = open(&disk, config.clone(), SnapshotAt::Boundary).await;
    let log = store.replicas()[0].log.clone();
    store.checkpoint().await.unwrap();
    assert_eq!(stored(&disk).await, Some(first));
    fill(&log, 1, 40, 1000).await;
    for _ in 0..2 {
        store.checkpoint().await.unwrap();
    }
    assert_eq!(stored(&disk).await, Some(log.segments()[0].bytes));
    rest().await;
    let reads = async |log: &Log| {
        for index in [0, 30, 44, 45, 84] {
            assert_eq!(log.read_indexes(index, index + 1, 1).await.unwrap()[0].header.index, index);
        }
    };
    reads(&log).await;
    // It is not synced: a power cut may leave anything of it, and must leave all of the log.
    let disk = disk.crash();
    reads(&open(&disk, config.clone(), SnapshotAt::Boundary).await.replicas()[0].log).await;
}

/// A segment that is closed while a checkpoint is under way has its index written by the segment writer, at the same time.
#[tokio::test(start_paused = true)]
async fn a_segment_that_closes_during_a_checkpoint_does_not_stop_the_directory() {
    let config = RaftConfig { segment_bytes_max: 1 << 20, ..small() };
    let (disk, store, log) = fresh(config.clone()).await;
    fill(&log, 1, 40, 1000).await;
    rest().await;
    disk.slow_syncs("checkpoint", Duration::from_millis(500));
    disk.slow_syncs(".index", Duration::from_secs(2));
    let checkpoint = tokio::spawn({
        let store = store.clone();
        async move { store.checkpoint().await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    log.roll();
    fill(&log, 1, 1, 1000).await;
    checkpoint.await.unwrap().unwrap();
    rest().await;
    fill(&log, 1, 1, 1000).await;
}

/// Too many open files is no sign of rot, and of no other group's concern.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_cannot_be_opened_now_does_not_stop_the_directory() {
    use crate::disk::sim::{Fault, OpKind};
    use crate::state_machine::StateMachine;
    use openraft::storage::RaftStateMachine;
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 20, 300).await;
    rest().await;
    let last = log.last_log_id().unwrap();
    let (head, _) = log.head_at(Some(last.index)).await.unwrap();
    log.write_snapshot(last, head.base().encode()).await.unwrap();
    let mut machine = StateMachine::new(&store.replicas()[0]);
    for kind in [OpKind::Open, OpKind::Create] {
        let path_contains = "snapshot-".to_owned();
        disk.inject(Fault { kind, path_contains, skip: 0, errno: 24, loses_data: false });
    }
    let _ = machine.get_current_snapshot().await;
    fill(&log, 1, 1, 300).await;
}

/// A snapshot inside a segment tells how the log goes on behind it, and nothing of how the segment begins.
#[tokio::test(start_paused = true)]
async fn a_segment_whose_base_is_rotten_is_not_cut_by_a_snapshot_inside_it() {
    for inside in [3, 0] {
        let (disk, store, log) = fresh(small()).await;
        fill(&log, 1, 40, 100).await;
        rest().await;
        let name = log.state.lock().segments[1].name();
        let last = log.segments()[1].last_index;
        let purged = name.first_index + inside - 1;
        assert!(purged + 4 < last);
        let (head, _) = log.head_at(Some(purged)).await.unwrap();
        log.write_snapshot(log_id(1, purged), head.base().encode()).await.unwrap();
        log.purge(log_id(1, purged)).await.unwrap();
        rest().await;
        store.checkpoint().await.unwrap();
        let path = segment::path(log.dir(), name, "base");
        disk.flip_bit(&path, 30, 2);
        let rotten = read_file(&disk, &path, 1 << 20).await.unwrap();
        let upto = purged + 3;
        let truncated = log.truncate_after(Some(log_id(1, upto))).await;
        if inside == 0 {
            truncated.unwrap();
            assert_eq!(log.last_log_id(), Some(log_id(1, upto)));
        } else {
            assert!(truncated.is_err() && log.truncate_after(Some(log_id(1, purged))).await.is_err());
            assert_eq!(log.last_log_id(), Some(log_id(1, 39)));
            // It serves for what comes behind it.
            assert_eq!(log.head_at(Some(upto)).await.unwrap().0.last, Some(log_id(1, upto)));
            assert!(log.rewrite_base(name).await.is_err());
            assert!(read_file(&disk, &path, 1 << 20).await.unwrap() == rotten, "another place's base");
        }
        log.verify().await.unwrap();
        log.save_vote(vote(2, REPLICA, true)).await.unwrap();
        let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
        assert_eq!((store.corrupt(), store.rotten()), (Vec::new(), Vec::new()));
        let again = &store.replicas()[0].log;
        assert_eq!((again.last_log_id(), again.append_state()), (log.last_log_id(), log.append_state()));
        assert_eq!(again.verify().await.unwrap(), again.bytes());
    }
}

/// Whatever made the log believe that it holds more than its files do.
#[tokio::test(start_paused = true)]
async fn a_segment_that_ends_before_the_log_does_is_not_read_as_the_end() {
    let (_disk, _store, log) = fresh(small()).await;
    fill(&log, 1, 3, 100).await;
    rest().await;
    {
        let mut state = log.state.lock();
        state.tail.truncate_after(None);
        state.segments[0].last = log_id(1, 4);
        state.head.last = Some(log_id(1, 4));
    }
    let read = log.read_indexes(3, 5, usize::MAX).await;
    assert!(matches!(&read, Err(ReadError::Corrupt { .. })), "{read:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_applied_behind_a_gap() {
    use crate::state_machine::StateMachine;
    use crate::types::Entry;
    use openraft::EntryPayload;
    use openraft::storage::RaftStateMachine;
    let (_disk, store, log) = fresh(small()).await;
    fill(&log, 1, 5, 100).await;
    let mut machine = StateMachine::new(&store.replicas()[0]);
    let mut apply = async |index| {
        let entry = Entry { log_id: log_id(1, index), payload: EntryPayload::Blank };
        machine.apply(futures_util::stream::iter([Ok((entry, None))])).await
    };
    apply(0).await.unwrap();
    apply(1).await.unwrap();
    assert!(apply(3).await.is_err());
    apply(2).await.unwrap();
}

/// The state machine's task of a core that has ended may still have work before it, beside its successor's.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_installed_late_takes_nothing_back() {
    use crate::log::base::Base;
    use crate::log_store::entry;
    use crate::payload::Application;
    use crate::state_machine::StateMachine;
    use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine, SnapshotMeta};
    let disk = SimDisk::new(1);
    let store = open(&disk, small(), SnapshotAt::Applied).await;
    let replica = store.create(GROUP, REPLICA).await.unwrap();
    let (log, application) = (replica.log.clone(), replica.application.clone());
    let (mut late, mut successor) = (StateMachine::new(&replica), StateMachine::new(&replica));
    let state = crate::testing::TestApplication::new(SnapshotAt::Applied).snapshot().unwrap();
    let base = Base { last: Some(log_id(1, 120)), application: state, ..Base::default() };
    let meta = SnapshotMeta { last_log_id: base.last, last_membership: base.membership.clone() };
    successor.install_snapshot(&meta, base.encode()).await.unwrap();
    assert_eq!(application.applied(), Some(log_id(1, 120)));
    fill(&log, 1, 10, 100).await;
    let frames = log.read_indexes(121, 131, usize::MAX).await.unwrap();
    let entries: Vec<_> = frames.into_iter().map(|frame| Ok((entry(frame).unwrap(), None))).collect();
    successor.apply(futures_util::stream::iter(entries)).await.unwrap();
    let applied = (application.applied(), application.snapshot().unwrap());
    assert_eq!(applied.0, Some(log_id(1, 130)));
    late.install_snapshot(&meta, base.encode()).await.unwrap();
    assert_eq!((application.applied(), application.snapshot().unwrap()), applied);
    // Nor does it take a snapshot of what is not its own under the name of what is.
    let snapshot = late.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert_eq!(snapshot.meta.last_log_id, None);
    // One that has lost what was applied is given the same snapshot again, at its start.
    let store = open(&disk.crash(), small(), SnapshotAt::Applied).await;
    let replica = store.replicas().remove(0);
    assert_eq!(replica.application.applied(), None);
    let mut machine = StateMachine::new(&replica);
    machine.install_snapshot(&meta, base.encode()).await.unwrap();
    assert_eq!(replica.application.applied(), Some(log_id(1, 120)));
}

/// A snapshot looks for its base in a task of its own, and a purge may come between.
#[tokio::test(start_paused = true)]
async fn a_base_is_that_of_the_segment_that_was_found_whatever_is_purged_meanwhile() {
    let (_disk, store, log) = fresh(small()).await;
    fill(&log, 1, 60, 100).await;
    rest().await;
    for stored in [false, true] {
        if stored {
            store.checkpoint().await.unwrap();
        }
        let [purged, boundary] = [0, 1].map(|at| log.segments()[at].last_index);
        assert!(log.segments().len() > 3);
        let found = log.beginning_after(Some(boundary)).unwrap();
        let (head, _) = log.head_at(Some(purged)).await.unwrap();
        log.write_snapshot(log_id(1, purged), head.base().encode()).await.unwrap();
        log.purge(log_id(1, purged)).await.unwrap();
        let base = log.base_of(found).await.unwrap().unwrap();
        assert_eq!(base.last, Some(log_id(1, boundary)), "stored: {stored}");
    }
}
