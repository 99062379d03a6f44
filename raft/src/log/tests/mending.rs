//! Putting back what is rotten in a segment: with frames of another log that holds the same entries.

use std::path::PathBuf;

use futures_util::future::BoxFuture;

use super::*;
use crate::disk::sim::{EMFILE, ENOSPC, Fault, OpKind};
use crate::disk::{Disk, read_file};
use crate::error::ReadError;
use crate::journal::SegmentName;
use crate::log::mend::{FrameSource, MendError, Mended, NoFrame, Wanted};
use crate::log::segment;

/// Entries of a log, given out one by one, except those that are withheld; `change` is done to each.
struct Source<F> {
    log: Arc<Log>,
    withheld: Option<u64>,
    asked: Vec<u64>,
    change: F,
}

impl<F: Fn(Frame) -> Frame + Send> FrameSource for Source<F> {
    fn frame(&mut self, wanted: Wanted) -> BoxFuture<'_, Result<Frame, NoFrame>> {
        self.asked.push(wanted.index);
        Box::pin(async move {
            if self.withheld == Some(wanted.index) {
                return Err(NoFrame::Nowhere { why: "nobody has it".to_owned(), everybody: true, needless: false });
            }
            let frames = self.log.read_indexes(wanted.index, wanted.index + 1, 1).await.unwrap();
            Ok((self.change)(frames[0].clone()))
        })
    }
}

fn source(log: &Arc<Log>) -> Source<impl Fn(Frame) -> Frame + Send + use<>> {
    Source { log: log.clone(), withheld: None, asked: Vec::new(), change: |frame| frame }
}

/// Two logs on two disks with the same entries, in files.
async fn twins() -> (SimDisk, Arc<Store>, Arc<Log>, Arc<Log>) {
    let (_, other_store, other) = fresh(small()).await;
    let (disk, store, log) = fresh(small()).await;
    for log in [&log, &other] {
        fill(log, 1, 20, 300).await;
        fill(log, 3, 10, 50).await;
    }
    rest().await;
    store.checkpoint().await.unwrap();
    drop(other_store);
    (disk, store, log, other)
}

fn path(log: &Log, name: SegmentName) -> PathBuf {
    segment::path(log.dir(), name, "segment")
}

fn names(log: &Log) -> Vec<SegmentName> {
    log.state.lock().segments.iter().map(segment::Segment::name).collect()
}

async fn bytes(disk: &SimDisk, log: &Log, name: SegmentName) -> Bytes {
    read_file(disk, &path(log, name), u64::MAX).await.unwrap()
}

/// The disk of a process that was killed, and whose segment's file is gone.
async fn without_file(disk: SimDisk, name: SegmentName) -> SimDisk {
    let disk = disk.kill();
    let file = segment::path(std::path::Path::new("/data/groups/4-40"), name, "segment");
    disk.remove_file(&file).await.unwrap();
    disk.sync_dir(file.parent().unwrap()).await.unwrap();
    disk
}

/// A log that was opened without the file of its second segment, and another that has the same entries.
struct Gone {
    disk: SimDisk,
    store: Arc<Store>,
    log: Arc<Log>,
    other: Arc<Log>,
    name: SegmentName,
    whole: Bytes,
}

async fn gone() -> Gone {
    let (disk, store, log, other) = twins().await;
    let name = names(&log)[1];
    let whole = bytes(&disk, &log, name).await;
    drop((store, log));
    rest().await;
    let disk = without_file(disk, name).await;
    let store = open(&disk, small(), SnapshotAt::Boundary).await;
    let log = store.replicas()[0].log.clone();
    Gone { disk, store, log, other, name, whole }
}

#[tokio::test(start_paused = true)]
async fn a_segment_is_the_same_again_whatever_happened_to_it() {
    let (disk, _store, log, other) = twins().await;
    // The last one is still written to, and in part in the cache.
    let all = names(&log);
    for name in all.iter().copied() {
        let whole = bytes(&disk, &log, name).await;
        let file = path(&log, name);
        for at in (0..whole.len() as u64).step_by(29) {
            disk.flip_bit(&file, at, 4);
            let found = log.check_segment(name, 0).await;
            let known = log.rot().iter().any(|rot| rot.segment == name);
            assert!(found.is_err() == known, "{found:?}");
            let mended = log.mend_segment(name, &mut source(&other)).await.unwrap();
            // Nothing is rotten only where the cache has what the file may not.
            assert_eq!(mended.frames, u64::from(known), "{file:?} byte {at}");
            if !known {
                disk.flip_bit(&file, at, 4);
            }
            assert!(bytes(&disk, &log, name).await == whole, "{file:?} byte {at}");
            assert!(!log.is_rotten());
        }
    }
    let name = all[1];
    let whole = bytes(&disk, &log, name).await;
    for keep in [0, 1, 61, whole.len() as u64 - 1] {
        disk.truncate(&path(&log, name), keep);
        assert!(log.check_segment(name, 0).await.is_err());
        assert!(log.mend_segment(name, &mut source(&other)).await.unwrap().frames > 0);
        assert!(bytes(&disk, &log, name).await == whole, "cut to {keep}");
    }
    // Two holes, and a good frame between them.
    disk.flip_bit(&path(&log, name), 3, 0);
    disk.flip_bit(&path(&log, name), whole.len() as u64 - 1, 0);
    let mut peer = source(&other);
    assert_eq!(log.mend_segment(name, &mut peer).await.unwrap().frames, 2);
    assert_eq!(peer.asked.len(), 2, "what is good is not asked for");
    assert!(bytes(&disk, &log, name).await == whole);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_gone_is_made_anew_and_lasts() {
    let Gone { disk, store: _store, log, other, name, whole } = gone().await;
    assert_eq!(log.rot().iter().map(|rot| rot.segment).collect::<Vec<_>>(), [name]);
    assert!(log.mend_segment(name, &mut source(&other)).await.unwrap().frames > 2);
    // A power cut at once loses nothing of it.
    let disk = disk.crash();
    let store = open(&disk, small(), SnapshotAt::Boundary).await;
    assert!(store.rotten().is_empty() && bytes(&disk, &log, name).await == whole);
    store.replicas()[0].log.verify().await.unwrap();
}

/// What is appended goes into a file of its own; and what makes the missing one anew makes its name anew, which is not durable by that.
#[tokio::test(start_paused = true)]
async fn what_is_appended_where_the_last_file_is_gone_lasts() {
    let (disk, store, log, other) = twins().await;
    let name = *names(&log).last().unwrap();
    let whole = bytes(&disk, &log, name).await;
    store.close().await.unwrap();
    drop((store, log));
    let disk = without_file(disk, name).await;
    // So large that both stood in the last file, if they could.
    let store = open(&disk, RaftConfig { segment_bytes_max: 1 << 20, ..small() }, SnapshotAt::Boundary).await;
    assert_eq!((store.rotten().len(), store.corrupt().len()), (1, 0));
    let log = store.replicas()[0].log.clone();
    fill(&log, 3, 1, 50).await;
    fill(&log, 3, 1, 9000).await;
    for checkpointed in [false, true] {
        for seed in 0..8 {
            let store = open(&disk.fork().crash_with(seed), small(), SnapshotAt::Boundary).await;
            assert_eq!(store.corrupt(), [], "{checkpointed}, {seed}");
            let frames = store.replicas()[0].log.read_indexes(30, 40, usize::MAX).await.unwrap();
            assert_eq!(frames.len(), 2, "{checkpointed}, {seed}");
        }
        store.checkpoint().await.unwrap();
    }
    assert!(log.mend_segment(name, &mut source(&other)).await.unwrap().frames > 0);
    let disk = disk.crash();
    let store = open(&disk, small(), SnapshotAt::Boundary).await;
    assert!(store.rotten().is_empty() && bytes(&disk, &log, name).await == whole);
    assert_eq!(indexes(&store.replicas()[0].log).await, (0..32).collect::<Vec<_>>());
    let missing = segment::SegmentFile::new(Arc::new(disk), log.dir(), SegmentName { first_index: 99, file_no: 99 });
    missing.set_entry_durable(missing.made());
    assert!(missing.entry_is_durable());
    missing.write(0, vec![whole]).await.unwrap();
    assert!(!missing.entry_is_durable());
}

/// Too many open files: its file is there, but not its name, and the next attempt finds nothing missing.
#[tokio::test(start_paused = true)]
async fn a_repair_whose_sync_could_not_begin_is_made_durable_by_the_next() {
    let Gone { disk, store: _store, log, other, name, whole } = gone().await;
    let path_contains = "4-40".to_owned();
    disk.inject(Fault { kind: OpKind::SyncDir, path_contains, skip: 0, errno: EMFILE, loses_data: false });
    let first = log.mend_segment(name, &mut source(&other)).await;
    assert!(matches!(&first, Err(MendError::Io(error)) if error.raw_os_error() == Some(EMFILE)), "{first:?}");
    assert!(log.is_rotten() && disk.faults_left() == 0);
    assert_eq!(log.mend_segment(name, &mut source(&other)).await.unwrap().frames, 0);
    assert!(!log.is_rotten());
    fill(&log, 3, 1, 50).await;
    let disk = disk.crash();
    let store = open(&disk, small(), SnapshotAt::Boundary).await;
    assert!(store.rotten().is_empty() && bytes(&disk, &log, name).await == whole);
}

/// Nothing was written, so nothing can be made durable: the other groups have nothing to do with it.
#[tokio::test(start_paused = true)]
async fn a_repair_that_could_not_make_its_file_stops_no_directory() {
    let Gone { disk, store, log, other, name, whole } = gone().await;
    let path_contains = ".segment".to_owned();
    disk.inject(Fault { kind: OpKind::Create, path_contains, skip: 0, errno: ENOSPC, loses_data: false });
    let first = log.mend_segment(name, &mut source(&other)).await;
    assert!(matches!(&first, Err(MendError::Io(error)) if error.raw_os_error() == Some(ENOSPC)), "{first:?}");
    assert!(log.is_rotten() && disk.faults_left() == 0);
    fill(&log, 3, 1, 50).await;
    store.checkpoint().await.unwrap();
    log.mend_segment(name, &mut source(&other)).await.unwrap();
    assert!(!log.is_rotten());
    store.checkpoint().await.unwrap();
    let disk = disk.crash();
    let store = open(&disk, small(), SnapshotAt::Boundary).await;
    assert!(store.rotten().is_empty() && bytes(&disk, &log, name).await == whole);
}

#[tokio::test(start_paused = true)]
async fn only_the_very_entries_are_put_back() {
    let (disk, _store, log, other) = twins().await;
    let name = names(&log)[1];
    let first = name.first_index;
    let whole = bytes(&disk, &log, name).await;
    disk.flip_bit(&path(&log, name), 70, 0);
    assert!(log.check_segment(name, 0).await.is_err());
    let rotten = bytes(&disk, &log, name).await;
    let refused: [fn(Frame) -> Frame; 4] = [
        |frame| Frame { header: FrameHeader { term: frame.header.term + 1, ..frame.header }, ..frame },
        |frame| Frame { header: FrameHeader { index: frame.header.index + 1, ..frame.header }, ..frame },
        |frame| Frame { header: FrameHeader { base_offset: 0, ..frame.header }, ..frame },
        // The right entry by its name, but of another length: it cannot be what stood here.
        |frame| Frame::new(frame.header, frame.payload.slice(1..)),
    ];
    for change in refused {
        let mut lying = Source { log: other.clone(), withheld: None, asked: Vec::new(), change };
        let error = log.mend_segment(name, &mut lying).await.unwrap_err();
        assert!(matches!(error, MendError::Unfit(_) | MendError::NotFound { .. }), "{error}");
        assert!(bytes(&disk, &log, name).await == rotten && log.is_rotten());
    }
    let mut poor = Source { withheld: Some(first), ..source(&other) };
    let error = log.mend_segment(name, &mut poor).await.unwrap_err();
    assert!(matches!(&error, MendError::NotFound { index, .. } if *index == first), "{error}");
    assert!(bytes(&disk, &log, name).await == rotten && log.is_rotten());
    assert!(log.mend_segment(name, &mut source(&other)).await.is_ok());
    assert!(bytes(&disk, &log, name).await == whole);
}

/// What a peer may lack for long, or for good, is no reason to leave rotten what it has.
#[tokio::test(start_paused = true)]
async fn holes_behind_one_that_nobody_can_fill_are_filled() {
    let (disk, _store, log, other) = twins().await;
    let name = names(&log)[1];
    let whole = bytes(&disk, &log, name).await;
    let file = path(&log, name);
    let mut starts = vec![0];
    let mut left = whole.clone();
    while let Ok(frame) = Frame::decode(&mut left) {
        starts.push(starts.last().unwrap() + frame.header.frame_bytes());
    }
    let frames = starts.len() - 1;
    assert!(frames >= 4, "{starts:?}");
    for lost in [0, 1, frames - 1] {
        // The payload of each.
        for start in &starts[..frames] {
            disk.flip_bit(&file, start + 70, 0);
        }
        let index = name.first_index + lost as u64;
        let mut poor = Source { withheld: Some(index), ..source(&other) };
        let error = log.mend_segment(name, &mut poor).await.unwrap_err();
        assert!(matches!(&error, MendError::NotFound { index: first, .. } if *first == index), "{error}");
        assert_eq!(poor.asked.len(), frames);
        // All the others are there, and last.
        let crashed = disk.fork().crash();
        let found = read_file(&crashed, &file, u64::MAX).await.unwrap();
        let differ = |at: &u64| found[*at as usize] != whole[*at as usize];
        let different: Vec<u64> = (0..whole.len() as u64).filter(differ).collect();
        assert_eq!(different, [starts[lost] + 70], "entry {index} of {frames}");
        assert_eq!(log.mend_segment(name, &mut source(&other)).await.unwrap().frames, 1);
        assert!(bytes(&disk, &log, name).await == whole);
    }
    // Where its length is not known either, nobody knows where the next one stands.
    for start in [starts[1] + 3, starts[2] + 70, starts[3] + 70] {
        disk.flip_bit(&file, start, 0);
    }
    let mut poor = Source { withheld: Some(name.first_index + 1), ..source(&other) };
    assert!(log.mend_segment(name, &mut poor).await.is_err());
    assert_eq!(poor.asked.len(), 1);
    assert_eq!(log.mend_segment(name, &mut source(&other)).await.unwrap().frames, 3);
    assert!(bytes(&disk, &log, name).await == whole);
}

#[tokio::test(start_paused = true)]
async fn readers_wait_for_the_repair_unless_they_are_released() {
    let (disk, _store, log, other) = twins().await;
    let name = names(&log)[1];
    let corrupt = |read: Result<Vec<Frame>, ReadError>| matches!(read, Err(ReadError::Corrupt { .. }));
    disk.flip_bit(&path(&log, name), 70, 0);
    assert!(corrupt(log.read_mended(name.first_index, name.first_index + 1, 1).await), "nobody repairs yet");
    log.hold_readers();
    let reader = {
        let log = log.clone();
        tokio::spawn(async move { log.read_mended(name.first_index, name.first_index + 1, 1).await })
    };
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!reader.is_finished());
    log.mend_segment(name, &mut source(&other)).await.unwrap();
    assert_eq!(reader.await.unwrap().unwrap()[0].header.index, name.first_index);
    disk.flip_bit(&path(&log, name), 70, 0);
    let reader = {
        let log = log.clone();
        tokio::spawn(async move { log.read_mended(name.first_index, name.first_index + 1, 1).await })
    };
    tokio::time::sleep(Duration::from_secs(5)).await;
    log.release_readers();
    assert!(corrupt(reader.await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn rot_in_what_is_cut_or_purged_is_forgotten() {
    let (disk, _store, log, other) = twins().await;
    let all = names(&log);
    let last = *all.last().unwrap();
    disk.flip_bit(&path(&log, all[0]), 70, 0);
    disk.flip_bit(&path(&log, all[1]), 70, 0);
    assert!(log.verify().await.is_err());
    let purged = log.state.lock().log_id_at(all[1].first_index - 1).unwrap();
    log.purge(purged).await.unwrap();
    rest().await;
    assert_eq!(log.mend_segment(all[0], &mut source(&other)).await.unwrap(), Mended::default());
    assert_eq!(log.rot().iter().map(|rot| rot.segment).collect::<Vec<_>>(), [all[1]]);
    // A truncation folds over what stands before the cut, and waits for it.
    log.hold_readers();
    let cut = log.state.lock().log_id_at(last.first_index).unwrap();
    let mended = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        log.mend_segment(all[1], &mut source(&other)).await
    };
    let (truncated, mended) = tokio::join!(log.truncate_after(Some(cut)), mended);
    truncated.unwrap();
    assert_eq!(mended.unwrap().frames, 1);
    assert!(!log.is_rotten());
    log.verify().await.unwrap();
}
