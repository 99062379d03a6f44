//! Reading by index, by offset, by time; from the cache and from files.

use openraft::storage::{RaftLogReader, RaftLogStorage};

use super::*;
use crate::log_store::LogStore;

#[tokio::test(start_paused = true)]
async fn reads_are_bounded_but_never_empty() {
    let (disk, _store, log) = fresh(small()).await;
    fill(&log, 1, 20, 300).await;
    rest().await;
    let ends = |end: &mut usize, frame: &Frame| {
        *end += frame.header.frame_bytes() as usize;
        Some(*end)
    };
    for cold in [false, true] {
        disk.set_cold(cold);
        assert_eq!(log.read_indexes(3, 20, 1).await.unwrap().len(), 1);
        let ends: Vec<usize> = log.read_indexes(3, 20, usize::MAX).await.unwrap().iter().scan(0, ends).collect();
        for bytes_max in
            [ends[0], ends[1], ends[4], ends[11], ends[16]].into_iter().flat_map(|end| [end - 1, end, end + 1])
        {
            let fit = ends.iter().filter(|end| **end <= bytes_max).count().max(1);
            assert_eq!(log.read_indexes(3, 20, bytes_max).await.unwrap().len(), fit, "{bytes_max} bytes");
            let read = log.read(Offset(6), Offset(40), bytes_max).await.unwrap();
            assert_eq!((read.len(), read[0].header.index), (fit, 3), "{bytes_max} bytes");
        }
        assert_eq!(log.read_indexes(3, 7, usize::MAX).await.unwrap().len(), 4);
        assert_eq!(log.read(Offset(7), Offset(40), 1).await.unwrap()[0].header.index, 3);
        // Up to the limit, even if there is more.
        let frames = log.read(Offset(7), Offset(10), usize::MAX).await.unwrap();
        assert_eq!(frames.iter().map(|frame| frame.header.index).collect::<Vec<_>>(), [3, 4]);
        assert!(log.read(Offset(40), Offset(40), 100).await.unwrap().is_empty());
        let beyond = log.read(Offset(41), Offset(40), 100).await;
        assert!(matches!(beyond, Err(ReadError::OutOfRange { offset: 41, start: 0, end: 40 })));
    }
}

/// What a new leader reads to find out where its followers stand is thrown away: in a log of any length it must cost next to nothing.
#[tokio::test(start_paused = true)]
async fn who_looks_for_a_followers_place_reads_one_entry_at_a_time() {
    let (_, _store, log) = fresh(small()).await;
    fill(&log, 1, 20, 300).await;
    let mut store = LogStore::new(log);
    let mut reader = store.get_log_reader().await;
    let mut counts = Vec::new();
    for start in [10, 15, 17, 18, 12, 13] {
        let entries = reader.limited_get_log_entries(start, 20).await.unwrap();
        assert_eq!(entries[0].log_id, log_id(1, start));
        counts.push(entries.len());
    }
    assert_eq!(counts, [1, 1, 1, 2, 1, 7], "whoever goes on where it left off replicates");
    let mut other = store.get_log_reader().await;
    assert_eq!(other.limited_get_log_entries(19, 20).await.unwrap().len(), 1);
    assert_eq!(reader.limited_get_log_entries(0, 20).await.unwrap().len(), 1);
    assert_eq!(reader.limited_get_log_entries(1, 20).await.unwrap().len(), 19);
}

/// openraft reads, and then looks whether another leads. An error would end the core.
#[tokio::test(start_paused = true)]
async fn who_does_not_lead_any_more_finds_nothing_where_its_entries_were() {
    let (_, _store, log) = fresh(small()).await;
    fill(&log, 1, 101, 10).await;
    log.save_vote(vote(1, REPLICA, true)).await.unwrap();
    let mut reader = LogStore::new(log.clone()).get_log_reader().await;
    assert_eq!(reader.limited_get_log_entries(95, 101).await.unwrap().len(), 1);
    assert!(reader.limited_get_log_entries(101, 102).await.is_err(), "a leader's log has a hole");
    log.save_vote(vote(2, ReplicaId(41), false)).await.unwrap();
    log.truncate_after(Some(log_id(1, 90))).await.unwrap();
    assert!(reader.limited_get_log_entries(95, 101).await.unwrap().is_empty());
    assert!(reader.limited_get_log_entries(96, 101).await.unwrap().is_empty());
    assert_eq!(reader.limited_get_log_entries(90, 101).await.unwrap()[0].log_id, log_id(1, 90));
    // Elected again: what it is to send is there.
    log.save_vote(vote(3, REPLICA, true)).await.unwrap();
    assert!(reader.limited_get_log_entries(95, 101).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_written_to_its_segment_is_read_from_memory() {
    let (disk, _store, log) = fresh(RaftConfig { tail_cache_bytes: 0, tail_cache_bytes_total: 0, ..small() }).await;
    disk.record_trace();
    fill(&log, 1, 3, 300).await;
    let written =
        disk.take_trace().iter().filter(|op| op.kind == crate::disk::sim::OpKind::Write && in_segment(op)).count();
    assert_eq!(written, 0, "segment bytes were written before the writer gathered");
    assert_eq!(indexes(&log).await, [0, 1, 2]);
    rest().await;
    assert_eq!(log.state.lock().tail.first_index(), None, "a cache without room keeps only what is unwritten");
    assert_eq!(indexes(&log).await, [0, 1, 2]);
}

fn in_segment(op: &crate::disk::sim::TraceEntry) -> bool {
    op.path.extension().is_some_and(|extension| extension == "segment")
}

#[tokio::test(start_paused = true)]
async fn tail_caches_stay_within_their_bounds() {
    let (_, store, log) = fresh(small()).await;
    let mut logs = vec![log.clone()];
    for group in 10..15 {
        logs.push(store.create(GroupId(group), ReplicaId(group)).await.unwrap().log);
    }
    for log in &logs {
        fill(log, 1, 10, 300).await;
    }
    rest().await;
    assert!(log.context.budget.used() <= small().tail_cache_bytes_total, "{}", log.context.budget.used());
    for log in &logs {
        assert_eq!(indexes(log).await.len(), 10);
    }
}

/// A checkpoint closes the files and forgets the indexes that nobody needs. A segment that was closed a moment ago has bytes
/// that are not in its file yet.
#[tokio::test(start_paused = true)]
async fn the_index_of_a_segment_that_is_not_all_written_is_not_forgotten() {
    let (_, store, log) = fresh(small()).await;
    fill(&log, 1, 3, 400).await;
    rest().await;
    store.checkpoint().await.unwrap();
    // Faster than the segment writer gathers.
    fill(&log, 1, 3, 400).await;
    assert!(log.segments().len() > 1, "{:?}", log.segments());
    let unwritten = |state: &crate::log::state::LogState| state.appends - state.appends_written;
    assert!(unwritten(&log.state.lock()) > 0);
    log.rest();
    log.rest();
    let read = log.read(Offset(0), Offset(12), usize::MAX).await.unwrap();
    assert_eq!(read.len(), 6);
    assert_eq!(log.offset_for_timestamp(1005, Offset(0), Offset(12)).await.unwrap(), Some(Offset(6)));
    // Once they are, it is.
    rest().await;
    store.checkpoint().await.unwrap();
    log.rest();
    assert!(!log.state.lock().segments[0].index.is_complete());
    assert_eq!(log.offset_for_timestamp(1005, Offset(0), Offset(12)).await.unwrap(), Some(Offset(6)));
}

#[tokio::test(start_paused = true)]
async fn a_reader_sees_the_new_entries_after_a_truncation() {
    let (disk, _store, log) = fresh(RaftConfig { tail_cache_bytes: 0, ..small() }).await;
    disk.set_cold(true);
    fill(&log, 1, 12, 200).await;
    rest().await;
    log.truncate_after(Some(log_id(1, 5))).await.unwrap();
    fill(&log, 2, 3, 200).await;
    let terms = log.read_indexes(0, 100, usize::MAX).await.unwrap();
    let terms: Vec<u64> = terms.iter().map(|frame| frame.header.term).collect();
    assert_eq!(terms, [1, 1, 1, 1, 1, 1, 2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_time_is_found_by_the_frame_that_reaches_it() {
    let (disk, store, log) = fresh(small()).await;
    // Frame n begins at offset 2n and carries the time 1000 + 2n.
    fill(&log, 1, 30, 200).await;
    for _ in 0..2 {
        assert_eq!(log.offset_for_timestamp(0, Offset(0), Offset(60)).await.unwrap(), Some(Offset(0)));
        assert_eq!(log.offset_for_timestamp(1021, Offset(0), Offset(60)).await.unwrap(), Some(Offset(22)));
        assert_eq!(log.offset_for_timestamp(1058, Offset(0), Offset(60)).await.unwrap(), Some(Offset(58)));
        assert_eq!(log.offset_for_timestamp(1059, Offset(0), Offset(60)).await.unwrap(), None);
        // Not above the limit.
        assert_eq!(log.offset_for_timestamp(1021, Offset(0), Offset(20)).await.unwrap(), None);
        rest().await;
    }
    store.close().await.unwrap();
    drop(store);
    let store = open(&disk, small(), SnapshotAt::Boundary).await;
    let log = &store.replicas()[0].log;
    assert_eq!(log.offset_for_timestamp(1021, Offset(0), Offset(60)).await.unwrap(), Some(Offset(22)));
    assert_eq!(log.offset_for_timestamp(1021, Offset(31), Offset(60)).await.unwrap(), Some(Offset(30)));
    // Only one stretch of the one segment that holds it is read, however long the log is.
    disk.record_trace();
    assert_eq!(log.offset_for_timestamp(1050, Offset(0), Offset(60)).await.unwrap(), Some(Offset(50)));
    let read: Vec<_> = disk.take_trace().into_iter().filter(in_segment).map(|op| op.path).collect();
    assert!(read.iter().all(|path| *path == read[0]), "{read:?}");
}

#[tokio::test(start_paused = true)]
async fn the_high_watermark_is_followed_and_never_falls() {
    let (_, _store, log) = fresh(small()).await;
    let mut watched = log.watch_high_watermark();
    fill(&log, 1, 3, 10).await;
    log.set_applied(Some(log_id(1, 1)), 4);
    watched.changed().await.unwrap();
    assert_eq!(*watched.borrow_and_update(), Offset(4));
    log.set_applied(Some(log_id(1, 0)), 2);
    assert!(!watched.has_changed().unwrap());
    assert_eq!((log.high_watermark(), log.applied()), (Offset(4), Some(log_id(1, 1))));
}
