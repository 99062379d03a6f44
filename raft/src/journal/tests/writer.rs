//! Rounds: what gathers, who waits for whom, and how it ends.

use super::*;
use crate::disk::sim::{EIO, ENOSPC, Fault, OpKind};

const SYNC: Duration = Duration::from_millis(10);

/// A journal whose rounds take [`SYNC`] each.
async fn slow_journal(config: JournalConfig, unwritten: Arc<UnwrittenBytes>) -> (SimDisk, Arc<Journal>) {
    let disk = SimDisk::new(1);
    disk.create_dir_all(Path::new("/data")).await.unwrap();
    let (_, scan) = read(&disk, 1, Lsn(1)).await.unwrap();
    let journal = Journal::start(Arc::new(disk.clone()), identity(1), scan, config, unwritten).await.unwrap();
    // Only now, and only rounds: the keeper's next file is a `.new`.
    settle().await;
    disk.slow_syncs(".journal", SYNC);
    (disk, Arc::new(journal))
}

fn never_sealed() -> JournalConfig {
    JournalConfig { seal_idle: Duration::from_secs(1 << 30), ..small() }
}

async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// What was told, in the order of telling: a name, and the LSN if it was `Ok`.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<OneTold>>>);

type OneTold = (&'static str, Option<u64>);

impl Told {
    fn done(&self, name: &'static str) -> Done {
        let told = self.0.clone();
        Box::new(move |result| told.lock().push((name, result.ok().map(|lsn| lsn.0))))
    }

    fn names(&self) -> Vec<&'static str> {
        self.0.lock().iter().map(|(name, _)| *name).collect()
    }

    fn lsns(&self) -> Vec<Option<u64>> {
        self.0.lock().iter().map(|(_, lsn)| *lsn).collect()
    }
}

fn a_vote(term: u64) -> Op {
    Op::Vote(vote(term, ReplicaId(1), false))
}

fn rounds_written(disk: &SimDisk) -> usize {
    disk.take_trace().iter().filter(|entry| entry.kind == OpKind::Sync && entry.path.ends_with(FIRST)).count()
}

const FIRST: &str = "0000000001-0000000000.journal";

#[tokio::test(start_paused = true)]
async fn what_comes_while_a_round_is_in_flight_goes_into_the_next_one() {
    let (disk, journal) = slow_journal(never_sealed(), unlimited()).await;
    disk.record_trace();
    let told = Told::default();
    let start = Instant::now();
    journal.submit(GroupId(1), ReplicaId(1), a_vote(1), told.done("first"));
    settle().await;
    for group in 2..30 {
        journal.submit(GroupId(group), ReplicaId(1), a_vote(1), told.done("second"));
    }
    journal.write(GroupId(1), ReplicaId(1), a_vote(2)).await.unwrap();
    assert_eq!(start.elapsed(), SYNC * 2);
    assert_eq!(rounds_written(&disk), 2);
    assert_eq!(told.lsns(), (1..30).map(Some).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn no_round_waits_for_company() {
    let (_disk, journal) = slow_journal(never_sealed(), unlimited()).await;
    for term in 1..4 {
        let start = Instant::now();
        journal.write(GroupId(1), ReplicaId(1), a_vote(term)).await.unwrap();
        assert_eq!(start.elapsed(), SYNC);
        tokio::time::sleep(SYNC / 3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_one_group_does_not_hold_up_another() {
    let config = JournalConfig { file_bytes: 4 << 20, round_bytes_max: 128 << 10, ..never_sealed() };
    let (disk, journal) = slow_journal(config, unlimited()).await;
    let told = Told::default();
    let target = segment(&disk, 1);
    for index in 0..300 {
        // Gaps between them: not a run that could bypass.
        journal.submit(GroupId(1), ReplicaId(1), append(&target, index, index * 5000, 4096), told.done("flood"));
    }
    for group in 2..5 {
        journal.submit(GroupId(group), ReplicaId(1), a_vote(1), told.done("vote"));
    }
    journal.write(GroupId(9), ReplicaId(1), a_vote(1)).await.unwrap();
    let names = told.names();
    assert_eq!(names.iter().filter(|name| **name == "vote").count(), 3);
    // One round: a quantum of the flood, then the others, then more of it.
    assert!(names.len() <= 128 / 4 + 3, "{}", names.len());
    assert!(names[..20].contains(&"vote"), "{names:?}");
}

#[tokio::test(start_paused = true)]
async fn a_bypassed_append_holds_back_its_own_group_only() {
    let (disk, journal) = slow_journal(never_sealed(), unlimited()).await;
    disk.slow_syncs(".segment", SYNC * 10);
    let (told, target) = (Told::default(), segment(&disk, 1));
    journal.submit(GroupId(1), ReplicaId(1), a_vote(1), told.done("before"));
    journal.submit(GroupId(1), ReplicaId(1), append(&target, 1, 0, 13_000), told.done("large"));
    journal.submit(GroupId(1), ReplicaId(1), a_vote(2), told.done("behind"));
    let start = Instant::now();
    for term in 1..4 {
        journal.write(GroupId(2), ReplicaId(1), a_vote(term)).await.unwrap();
    }
    assert_eq!(start.elapsed(), SYNC * 3);
    assert_eq!(told.names(), ["before"]);
    journal.write(GroupId(1), ReplicaId(1), a_vote(3)).await.unwrap();
    assert_eq!(start.elapsed(), SYNC * 11, "beside the others' rounds, then one of its own");
    assert_eq!(told.names(), ["before", "large", "behind"]);
    assert!(told.lsns().is_sorted());
}

#[tokio::test(start_paused = true)]
async fn a_run_of_adjoining_appends_that_is_large_together_is_written_directly() {
    let (disk, journal) = slow_journal(never_sealed(), unlimited()).await;
    let (told, target) = (Told::default(), segment(&disk, 1));
    journal.submit(GroupId(2), ReplicaId(1), a_vote(1), told.done("other"));
    settle().await;
    disk.record_trace();
    for index in 0..10 {
        journal.submit(GroupId(1), ReplicaId(1), append(&target, index, index * 3000, 3000), told.done("run"));
    }
    journal.write(GroupId(1), ReplicaId(1), a_vote(1)).await.unwrap();
    let direct = disk.take_trace();
    let direct = direct.iter().filter(|entry| entry.kind == OpKind::Write && entry.path == target.path).count();
    assert_eq!((direct, told.names().len()), (1, 11));
    let (found, _) = read(&disk.kill(), 2, Lsn(1)).await.unwrap();
    let bypassed = |r: &&Recovered| matches!(r.op, RecoveredOp::Bypass { extent, .. } if extent.bytes == 3000);
    assert_eq!(found.iter().filter(bypassed).count(), 10);
}

#[tokio::test(start_paused = true)]
async fn an_idle_journal_is_sealed_once_and_then_left_alone() {
    let (disk, journal) = slow_journal(small(), unlimited()).await;
    disk.record_trace();
    journal.write(GroupId(1), ReplicaId(1), a_vote(1)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(rounds_written(&disk), 2, "a vote and a Seal");
    assert_eq!(journal.durable_lsn(), Lsn(2));
}

#[tokio::test(start_paused = true)]
async fn a_write_never_waits_for_a_seal() {
    let (disk, journal) = slow_journal(small(), unlimited()).await;
    let mut overtaken = 0;
    for (number, pause) in (0..15).map(|ms| (ms, Duration::from_millis(ms))) {
        journal.write(GroupId(1), ReplicaId(1), a_vote(1)).await.unwrap();
        tokio::time::sleep(pause).await;
        disk.record_trace();
        let start = Instant::now();
        journal.write(GroupId(1), ReplicaId(1), a_vote(2)).await.unwrap();
        assert!(start.elapsed() <= SYNC, "{:?} after {pause:?}", start.elapsed());
        overtaken += u64::from(number >= 5);
    }
    assert!(overtaken > 5);
}

#[tokio::test(start_paused = true)]
async fn a_seal_that_was_overtaken_and_torn_is_not_missed() {
    let mut seen = std::collections::BTreeSet::new();
    let (disk, journal) = slow_journal(small(), unlimited()).await;
    journal.write(GroupId(1), ReplicaId(1), a_vote(1)).await.unwrap();
    // The Seal goes out after 5 ms and takes 10.
    tokio::time::sleep(Duration::from_millis(8)).await;
    let told = Told::default();
    journal.submit(GroupId(1), ReplicaId(1), a_vote(2), told.done("beside the Seal"));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(journal.last_lsn(), Lsn(3));
    for seed in 0..100 {
        let disk = disk.fork().crash_with(seed);
        let (found, scan) = read(&disk, 2, Lsn(1)).await.unwrap();
        seen.insert((found.len(), scan.last.0));
    }
    // Nothing; the Seal; the vote without the Seal, or with it.
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(1, 1), (1, 2), (2, 3)]);
    assert!(told.names().is_empty());
}

#[tokio::test(start_paused = true)]
async fn commits_ride_along_and_ask_for_no_round() {
    let (disk, journal) = slow_journal(never_sealed(), unlimited()).await;
    disk.record_trace();
    let told = Told::default();
    for index in 1..4 {
        journal.submit(GroupId(1), ReplicaId(1), Op::Commit(log_id(1, index)), told.done("commit"));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(told.names().is_empty());
    journal.submit(GroupId(2), ReplicaId(1), a_vote(1), told.done("vote"));
    journal.write(GroupId(3), ReplicaId(1), a_vote(1)).await.unwrap();
    assert_eq!(rounds_written(&disk), 1);
    assert_eq!(told.0.lock()[..], [("commit", Some(1)), ("commit", Some(1)), ("commit", Some(1)), ("vote", Some(2))]);
    let (found, _) = read(&disk.kill(), 2, Lsn(1)).await.unwrap();
    assert_eq!(found[0].op, RecoveredOp::Commit(log_id(1, 3)), "one record for three");
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_nothing_follows_goes_with_a_seal() {
    let (disk, journal) = slow_journal(small(), unlimited()).await;
    let told = Told::default();
    journal.write(GroupId(1), ReplicaId(1), a_vote(1)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    journal.submit(GroupId(1), ReplicaId(1), Op::Commit(log_id(1, 9)), told.done("commit"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(told.lsns(), [Some(3)]);
    assert_eq!(journal.durable_lsn(), Lsn(4));
    let (found, _) = read(&disk.crash(), 2, Lsn(1)).await.unwrap();
    assert_eq!(found[1].op, RecoveredOp::Commit(log_id(1, 9)));
}

#[tokio::test(start_paused = true)]
async fn too_many_unwritten_bytes_hold_appends_back_but_no_votes() {
    let unwritten = Arc::new(UnwrittenBytes::new(5000));
    let (disk, journal) = slow_journal(never_sealed(), unwritten.clone()).await;
    let (told, target) = (Told::default(), segment(&disk, 1));
    for (index, name) in (0..3).zip(["a", "b", "c"]) {
        let (unwritten, done) = (unwritten.clone(), told.done(name));
        let done = Box::new(move |result: Result<Lsn, Stopped>| {
            unwritten.add(3000);
            done(result);
        });
        // A round each, so that the second is the one too many.
        journal.submit(GroupId(1), ReplicaId(1), append(&target, index, index * 4000, 3000), done);
        tokio::time::sleep(SYNC * 2).await;
    }
    assert_eq!(told.names(), ["a", "b"]);
    journal.write(GroupId(2), ReplicaId(1), a_vote(1)).await.unwrap();
    journal.submit(GroupId(1), ReplicaId(1), a_vote(1), told.done("behind c"));
    tokio::time::sleep(SYNC * 10).await;
    assert_eq!((told.names(), unwritten.is_full()), (vec!["a", "b"], true));
    unwritten.sub(3000);
    journal.write(GroupId(1), ReplicaId(1), a_vote(1)).await.unwrap();
    assert_eq!(told.names(), ["a", "b", "c", "behind c"]);
}

/// Injects a fault, submits one operation that meets it and some that wait, and expects all to be refused, then and later.
async fn stops(kind: OpKind, path: &str, errno: i32, first: impl FnOnce(&SimDisk) -> Op) {
    let (disk, journal) = slow_journal(never_sealed(), unlimited()).await;
    journal.write(GroupId(1), ReplicaId(1), a_vote(1)).await.unwrap();
    disk.inject(Fault { kind, path_contains: path.into(), skip: 0, errno, loses_data: true });
    let told = Told::default();
    let (weak, stopped_when_told) = (Arc::downgrade(&journal), Arc::new(Mutex::new(None)));
    let seen = stopped_when_told.clone();
    let done = told.done("hit");
    let done = Box::new(move |result| {
        *seen.lock() = Some(weak.upgrade().unwrap().is_stopped());
        done(result);
    });
    journal.submit(GroupId(1), ReplicaId(1), first(&disk), done);
    settle().await;
    journal.submit(GroupId(1), ReplicaId(1), a_vote(3), told.done("waiting"));
    journal.submit(GroupId(2), ReplicaId(1), Op::Commit(log_id(1, 1)), told.done("commit"));
    let stopped = journal.stopped().await;
    settle().await;
    assert_eq!(told.lsns(), [None, None, None]);
    assert_eq!(*stopped_when_told.lock(), Some(true));
    assert!(journal.is_stopped() && !stopped.0.is_empty());
    // The fault is gone; the journal stays ended.
    assert!(journal.write(GroupId(5), ReplicaId(1), a_vote(1)).await.is_err());
    assert!(journal.retire_below(Lsn(9)).await.is_ok_and(|count| count == 0));
    assert!(journal.close().await.is_err());
    assert_eq!(disk.faults_left(), 0);
    let (found, _) = read(&disk.crash(), 2, Lsn(1)).await.unwrap();
    assert!(!found.is_empty(), "what was told Ok is there");
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_ends_the_journal() {
    stops(OpKind::Sync, ".journal", EIO, |_| a_vote(2)).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_ends_the_journal() {
    stops(OpKind::Write, ".journal", EIO, |_| a_vote(2)).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_in_a_pre_written_file_ends_the_journal() {
    stops(OpKind::Write, ".journal", ENOSPC, |_| a_vote(2)).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_direct_write_ends_the_journal() {
    stops(OpKind::Sync, ".segment", EIO, |disk| append(&segment(disk, 1), 1, 0, 13_000)).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_of_a_seal_ends_the_journal_also_for_the_round_beside_it() {
    let (disk, journal) = slow_journal(small(), unlimited()).await;
    journal.write(GroupId(1), ReplicaId(1), a_vote(1)).await.unwrap();
    disk.fail_next_sync(".journal", true);
    tokio::time::sleep(Duration::from_millis(8)).await;
    assert!(journal.write(GroupId(1), ReplicaId(1), a_vote(2)).await.is_err());
    assert!(journal.is_stopped());
}

#[tokio::test(start_paused = true)]
async fn the_log_can_end_the_journal_and_nothing_in_flight_is_told_ok() {
    let (_disk, journal) = slow_journal(never_sealed(), unlimited()).await;
    let told = Told::default();
    journal.submit(GroupId(1), ReplicaId(1), a_vote(1), told.done("in flight"));
    settle().await;
    journal.stop("a segment's sync failed");
    tokio::time::sleep(SYNC * 2).await;
    assert_eq!(told.lsns(), [None]);
    assert_eq!(&*journal.stopped().await.0, "a segment's sync failed");
}

#[tokio::test(start_paused = true)]
async fn closing_writes_what_waits_and_refuses_what_comes_later() {
    let (disk, journal) = slow_journal(small(), unlimited()).await;
    let (told, target) = (Told::default(), segment(&disk, 1));
    journal.submit(GroupId(1), ReplicaId(1), append(&target, 1, 0, 13_000), told.done("large"));
    journal.submit(GroupId(1), ReplicaId(1), Op::Commit(log_id(1, 1)), told.done("commit"));
    let closing = journal.clone();
    let closing = tokio::spawn(async move { closing.close().await });
    settle().await;
    journal.submit(GroupId(1), ReplicaId(1), a_vote(1), told.done("late"));
    closing.await.unwrap().unwrap();
    assert!(journal.write(GroupId(1), ReplicaId(1), a_vote(1)).await.is_err());
    let mut all = told.0.lock().clone();
    all.sort();
    assert_eq!(all, [("commit", Some(2)), ("large", Some(1)), ("late", None)]);
    journal.close().await.unwrap();
    let (found, scan) = read(&disk.crash(), 2, Lsn(1)).await.unwrap();
    assert_eq!((found.len(), scan.last), (2, Lsn(3)));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_journal_tells_everyone_who_waits() {
    let (disk, journal) = slow_journal(never_sealed(), unlimited()).await;
    let (told, target) = (Told::default(), segment(&disk, 1));
    disk.slow_syncs(".segment", SYNC * 10);
    journal.submit(GroupId(1), ReplicaId(1), a_vote(1), told.done("in flight"));
    journal.submit(GroupId(3), ReplicaId(1), append(&target, 1, 0, 13_000), told.done("bypassing"));
    settle().await;
    journal.submit(GroupId(2), ReplicaId(1), a_vote(1), told.done("waiting"));
    drop(Arc::into_inner(journal).unwrap());
    tokio::time::sleep(SYNC * 3).await;
    let names = told.names();
    assert!(names.contains(&"waiting") && names.contains(&"in flight") && names.contains(&"bypassing"), "{names:?}");
}

#[tokio::test(start_paused = true)]
async fn a_round_that_takes_long_can_be_seen() {
    let (_disk, journal) = slow_journal(never_sealed(), unlimited()).await;
    assert_eq!(journal.stalled_for(), Duration::ZERO);
    journal.submit(GroupId(1), ReplicaId(1), a_vote(1), Box::new(|_| {}));
    tokio::time::sleep(SYNC / 2).await;
    assert_eq!(journal.stalled_for(), SYNC / 2);
    tokio::time::sleep(SYNC).await;
    assert_eq!(journal.stalled_for(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_lsns_of_a_torn_round_are_not_used_again() {
    let (disk, journal) = slow_journal(never_sealed(), unlimited()).await;
    journal.write(GroupId(1), ReplicaId(1), a_vote(1)).await.unwrap();
    for group in 0..40 {
        journal.submit(GroupId(group), ReplicaId(1), a_vote(2), Box::new(|_| {}));
    }
    settle().await;
    let torn = journal.last_lsn();
    assert_eq!((torn, journal.durable_lsn()), (Lsn(41), Lsn(1)));
    // As it is now: in what follows time passes, and the round would become durable.
    let disk = disk.fork();
    let mut lost = 0;
    for seed in 0..20 {
        let (found, journal) = open(&disk.fork().crash_with(seed), 2).await;
        lost += usize::from(found.len() == 1);
        let lsn = journal.write(GroupId(1), ReplicaId(1), a_vote(3)).await.unwrap();
        assert!(lsn > torn, "{lsn:?}");
    }
    assert!((1..20).contains(&lost), "{lost} of 20 lost the round");
}

#[tokio::test]
#[should_panic(expected = "an append of 10 bytes")]
async fn an_append_that_lies_about_its_length_is_a_mistake() {
    let (disk, journal) = slow_journal(small(), unlimited()).await;
    let Op::Append { mut extent, parts, first, last, target } = append(&segment(&disk, 1), 1, 0, 10) else { return };
    extent.bytes = 11;
    journal.submit(GroupId(1), ReplicaId(1), Op::Append { extent, parts, first, last, target }, Box::new(|_| {}));
}
