//! Where the log starts, and which segments that lets go.

use super::*;
use crate::disk::Disk;
use crate::disk::sim::OpKind;
use crate::testing::test_log_start;

/// Appends an entry that moves the log start. Returns its log id.
async fn move_start(log: &Arc<Log>, term: u64, to: u64) -> LogId {
    let index = log.last_log_id().map_or(0, |last| last.index + 1);
    append(log, vec![proposal(index, term, test_log_start(to))]).await.unwrap();
    log_id(term, index)
}

fn segment_offsets(log: &Log) -> Vec<(u64, u64)> {
    log.segments().iter().map(|segment| (segment.base_offset.0, segment.next_offset.0)).collect()
}

#[tokio::test(start_paused = true)]
async fn the_log_start_moves_once_its_entry_is_applied_and_holds_after_a_restart() {
    // By the journal alone, and by a checkpoint.
    for checkpointed in [false, true] {
        let (disk, store, log) = fresh(small()).await;
        fill(&log, 1, 10, 100).await;
        let moved = move_start(&log, 1, 7).await;
        log.set_committed(Some(log_id(1, moved.index - 1)));
        log.set_applied(Some(log_id(1, moved.index - 1)), 20);
        assert_eq!(log.log_start_offset(), Offset(0), "nobody has committed it");
        log.set_committed(Some(moved));
        log.set_applied(Some(moved), 20);
        assert_eq!(log.log_start_offset(), Offset(7));
        let error = log.read(Offset(6), Offset(20), 1 << 20).await.unwrap_err();
        assert!(matches!(error, ReadError::OutOfRange { start: 7, .. }), "{error}");
        // In the middle of a batch: that batch is given whole, as ever.
        assert_eq!(log.read(Offset(7), Offset(20), 1).await.unwrap()[0].header.base_offset, 6);
        fill(&log, 1, 1, 10).await;
        rest().await;
        if checkpointed {
            store.checkpoint().await.unwrap();
        }
        let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
        let log = store.replicas()[0].log.clone();
        assert_eq!(log.log_start_offset(), Offset(7), "checkpointed: {checkpointed}");
        assert_eq!(log.read(Offset(7), log.high_watermark(), 1).await.unwrap()[0].header.base_offset, 6);
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_start_that_is_truncated_away_never_held() {
    let (disk, store, log) = fresh(small()).await;
    fill(&log, 1, 5, 100).await;
    log.set_committed(Some(log_id(1, 4)));
    log.set_applied(Some(log_id(1, 4)), 10);
    move_start(&log, 1, 9).await;
    log.truncate_after(Some(log_id(1, 4))).await.unwrap();
    fill(&log, 2, 3, 100).await;
    log.set_committed(Some(log_id(2, 7)));
    log.set_applied(Some(log_id(2, 7)), 16);
    assert_eq!(log.log_start_offset(), Offset(0));
    rest().await;
    store.close().await.unwrap();
    let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
    assert_eq!(store.replicas()[0].log.log_start_offset(), Offset(0));
}

#[tokio::test(start_paused = true)]
async fn segments_below_the_log_start_may_go_and_the_last_one_never() {
    let (_, _store, log) = fresh(small()).await;
    fill(&log, 1, 20, 500).await;
    let segments = log.segments();
    assert!(segments.len() > 4, "{segments:?}");
    let last = log.last_log_id();
    assert_eq!(log.first_index_to_keep(), None);
    // The start lies within the third segment: two may go, once it is applied that they were.
    let moved = move_start(&log, 1, segments[2].base_offset.0 + 1).await;
    assert_eq!(log.first_index_to_keep(), None, "not applied yet");
    log.set_committed(Some(moved));
    log.set_applied(Some(moved), log.log_end_offset().0);
    assert_eq!(log.first_index_to_keep(), Some(segments[2].first_index));
    log.purge(log_id(1, segments[2].first_index - 1)).await.unwrap();
    assert_eq!(log.first_index_to_keep(), None);
    assert_eq!(log.log_start_offset().0, segments[2].base_offset.0 + 1, "a purge does not move it");
    assert!(log.last_log_id() > last);
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_lets_everything_go_stands_in_a_segment_of_its_own() {
    let large = RaftConfig { segment_bytes_max: 1 << 20, ..small() };
    for stored in [false, true] {
        let (_, _store, log) = fresh(large.clone()).await;
        fill(&log, 1, 5, 100).await;
        let index = log.last_log_id().unwrap().index + 1;
        // On the leader and on followers alike.
        let entry = match stored {
            false => proposal(index, 1, test_log_start(10)),
            true => NewEntry::Stored(log_id(1, index), void(index, 10, test_log_start(10))),
        };
        append(&log, vec![entry]).await.unwrap();
        assert_eq!(segment_offsets(&log), [(0, 10), (10, 10)]);
        // Nothing is left to let go: the next one stays where it is.
        move_start(&log, 1, 10).await;
        assert_eq!(segment_offsets(&log), [(0, 10), (10, 10)]);
        log.set_committed(Some(log_id(1, index)));
        log.set_applied(Some(log_id(1, index)), 10);
        assert_eq!(log.first_index_to_keep(), Some(index));
    }
}

fn void(index: u64, base_offset: u64, payload: Bytes) -> Frame {
    let header = FrameHeader::bare(FrameKind::Void, log_id(1, index), base_offset);
    Frame::new(header, payload)
}

#[tokio::test(start_paused = true)]
async fn a_segment_is_closed_at_its_topics_size_and_when_it_is_told_to() {
    let (disk, store, log) = fresh(RaftConfig { segment_bytes_max: 1 << 20, ..small() }).await;
    fill(&log, 1, 4, 100).await;
    assert_eq!(log.segments().len(), 1);
    log.roll();
    assert_eq!(log.segments().len(), 1, "not before something comes");
    fill(&log, 1, 2, 100).await;
    assert_eq!(segment_offsets(&log), [(0, 8), (8, 12)]);
    log.set_segment_bytes_max(300);
    fill(&log, 1, 4, 100).await;
    assert!(log.segments().len() > 3, "{:?}", log.segments());
    rest().await;
    store.checkpoint().await.unwrap();
    let closed = log.segments().len();
    let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
    assert_eq!(store.replicas()[0].log.segments().len(), closed);
}

#[tokio::test(start_paused = true)]
async fn the_age_of_the_last_segment_is_known_after_a_restart_too() {
    let (disk, store, log) = fresh(RaftConfig { segment_bytes_max: 1 << 20, ..small() }).await;
    append(&log, vec![NewEntry::Blank(log_id(1, 0))]).await.unwrap();
    assert_eq!(log.segment_age().await.unwrap(), None, "it holds no records");
    fill(&log, 1, 30, 500).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let age = log.segment_age().await.unwrap().unwrap();
    assert_eq!(age.first_timestamp, 1000);
    assert!(age.open_for >= Duration::from_secs(5));
    store.close().await.unwrap();
    let store = open(&disk.crash(), small(), SnapshotAt::Boundary).await;
    let log = store.replicas()[0].log.clone();
    assert_eq!(log.segment_age().await.unwrap().unwrap().first_timestamp, 1000);
    log.roll();
    assert_eq!(log.segment_age().await.unwrap(), None, "it is closed already");
}

/// Removing many files takes long, and appends wait for the round that writes theirs: it is done in parts.
#[tokio::test(start_paused = true)]
async fn what_is_written_does_not_wait_until_very_many_files_are_removed() {
    let config = RaftConfig { segment_bytes_max: 1 << 10, ..small() };
    let (disk, store, log) = fresh(config).await;
    fill(&log, 1, 400, 900).await;
    rest().await;
    store.checkpoint().await.unwrap();
    let files = async || disk.read_dir(log.dir()).await.unwrap().len();
    let before = files().await;
    assert!(log.segments().len() > 300);
    let kept = log.segments()[390].first_index;
    disk.record_trace();
    log.purge(log_id(1, kept - 1)).await.unwrap();
    fill(&log, 1, 1, 900).await;
    rest().await;
    let trace = disk.take_trace();
    let is = |kind: OpKind, what: &str| {
        trace.iter().position(|entry| entry.kind == kind && entry.path.display().to_string().ends_with(what))
    };
    let written = is(OpKind::Write, ".segment").unwrap();
    let removed = trace[written..].iter().filter(|entry| entry.kind == OpKind::Remove).count();
    assert!(removed > 300, "only {removed} files were removed after the write");
    assert!(files().await < before / 10, "of {before} files {} are left", files().await);
}
