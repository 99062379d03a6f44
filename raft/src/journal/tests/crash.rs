//! Power cuts, kills and failed syncs at every step: what was told `Ok` is read back in order, the rest is whole or absent.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::disk::sim::{EIO, Fault, OpKind, SimCrash};

/// What was submitted to one group and is not below the checkpoint, in order: what it should be read back as, and its LSN once
/// it was told.
type Submissions = Vec<(String, Option<Lsn>)>;

/// What the test knows must be there.
#[derive(Clone, Default)]
struct Model {
    groups: BTreeMap<u64, Submissions>,
    positions: BTreeMap<u64, u64>,
    /// A checkpoint has everything below.
    from: Lsn,
    index: u64,
    epoch: u64,
}

/// One form for an append, whether it was bypassed or not.
fn appended(extent: Extent, crc: u32, first: LogId, last: LogId) -> String {
    format!("append {extent:?} crc {crc:08x} {first}..{last}")
}

fn described(op: &RecoveredOp) -> String {
    match op {
        RecoveredOp::Append { extent, frames, first, last } => appended(*extent, crc32c::crc32c(frames), *first, *last),
        RecoveredOp::Bypass { extent, crc, first, last } => appended(*extent, *crc, *first, *last),
        other => format!("{other:?}"),
    }
}

impl Model {
    /// Compares what was read with what must be there, and goes on from what was read.
    async fn check(&mut self, disk: &SimDisk, found: &[Recovered]) {
        let mut read: BTreeMap<u64, Submissions> = BTreeMap::new();
        let mut last = Lsn(0);
        for Recovered { lsn, group, op, .. } in found {
            assert!(*lsn > last && *lsn >= self.from, "{lsn:?} after {last:?}");
            last = *lsn;
            read.entry(group.0).or_default().push((described(op), Some(*lsn)));
            if let RecoveredOp::Bypass { extent, crc, .. } = op {
                let file = Segment::open(disk, &segment(disk, group.0).path).await.unwrap();
                let bytes = file.read_at(extent.position, extent.bytes as usize).await.unwrap();
                assert_eq!(crc32c::crc32c(&bytes), *crc, "bypassed frames are durable before their record");
            }
        }
        for group in 1..=GROUPS {
            let mut expected = self.groups.remove(&group).unwrap_or_default();
            expected.retain(|(_, lsn)| lsn.is_none_or(|lsn| lsn >= self.from));
            let read = read.entry(group).or_default();
            assert!(read.len() <= expected.len(), "group {group}: more was read than submitted");
            for (number, (text, lsn)) in expected.iter().enumerate() {
                match read.get(number) {
                    Some((read_text, read_lsn)) => {
                        assert_eq!(read_text, text, "group {group}");
                        assert!(lsn.is_none() || lsn == read_lsn, "group {group}: {lsn:?} became {read_lsn:?}");
                    }
                    None => assert_eq!(*lsn, None, "group {group}: acknowledged and lost: {text}"),
                }
            }
        }
        self.groups = read;
    }

    fn make_op(&mut self, disk: &SimDisk, group: u64, rng: &mut SmallRng) -> (String, Op) {
        self.index += 1;
        let id = log_id(1, self.index);
        let vote = vote(self.index, ReplicaId(1), false);
        match rng.random_range(0..10) {
            0 => (described(&RecoveredOp::Vote(vote)), Op::Vote(vote)),
            1 => (described(&RecoveredOp::Truncate(Some(id))), Op::Truncate(Some(id))),
            2 => (described(&RecoveredOp::Purge(id)), Op::Purge(id)),
            number => {
                let bytes = if number == 3 { 13_000 } else { rng.random_range(1..4000) };
                let position = self.positions.entry(group).or_default();
                let op = append(&segment(disk, group), self.index, *position, bytes);
                let Op::Append { extent, first, last, .. } = &op else { unreachable!() };
                *position += extent.bytes;
                (appended(*extent, crc32c::crc32c(&frame(self.index, bytes)), *first, *last), op)
            }
        }
    }
}

const GROUPS: u64 = 3;

/// Opens the journal, checks it, works on it, and closes it. Ends early when the disk fails.
async fn session(
    disk: &SimDisk,
    model: &Arc<Mutex<Model>>,
    rounds: u32,
    seed: u64,
    close: bool,
) -> Result<(), OpenError> {
    let (epoch, from) = {
        let mut model = model.lock();
        model.epoch += 1;
        (model.epoch, model.from)
    };
    disk.create_dir_all(Path::new("/data")).await.map_err(crashed)?;
    disk.sync_dir(Path::new("/")).await.map_err(crashed)?;
    let (found, scan) = read(disk, epoch, from).await?;
    let mut known = model.lock().clone();
    known.check(disk, &found).await;
    *model.lock() = known;
    let journal = Journal::start(Arc::new(disk.clone()), identity(epoch), scan, small(), unlimited()).await?;
    let mut rng = SmallRng::seed_from_u64(seed);
    for round in 0..rounds {
        for _ in 0..rng.random_range(1..5) {
            submit(disk, &journal, model, rng.random_range(1..=GROUPS), &mut rng);
        }
        let last = submit(disk, &journal, model, rng.random_range(1..=GROUPS), &mut rng);
        if last.await.is_err() {
            return Ok(());
        }
        if round % 3 == 1 {
            // Long enough for a Seal to go out, sometimes too short for it to be durable.
            tokio::time::sleep(Duration::from_millis(rng.random_range(4..12))).await;
        }
        if round % 12 == 11 {
            let lsn = Lsn(journal.durable_lsn().0 + 1);
            model.lock().from = lsn;
            if journal.retire_below(lsn).await.is_err() {
                return Ok(());
            }
        }
    }
    if close {
        let _ = journal.close().await;
    }
    Ok(())
}

fn crashed(error: std::io::Error) -> OpenError {
    OpenError::Io { path: "/data".into(), error }
}

/// Submits one operation of a group and keeps it in the model until it is told, and after.
fn submit(
    disk: &SimDisk,
    journal: &Journal,
    model: &Arc<Mutex<Model>>,
    group: u64,
    rng: &mut SmallRng,
) -> oneshot::Receiver<Lsn> {
    let (tell, told) = oneshot::channel();
    let mut known = model.lock();
    let (text, op) = known.make_op(disk, group, rng);
    let place = known.groups.entry(group).or_default();
    let number = place.len();
    place.push((text, None));
    let model = model.clone();
    // Under the model's lock, on purpose: the journal never calls back from `submit`.
    let done = move |result: Result<Lsn, Stopped>| {
        let Ok(lsn) = result else { return };
        let mut model = model.lock();
        let group = model.groups.get_mut(&group).unwrap();
        assert!(number == 0 || group[number - 1].1.is_some(), "told out of order");
        group[number].1 = Some(lsn);
        let _ = tell.send(lsn);
    };
    journal.submit(GroupId(group), ReplicaId(1), op, Box::new(done));
    told
}

/// Runs to the end on a runtime of its own, whose tasks end with it.
fn run<T>(body: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(body)
}

fn ends_by_crash(result: Result<(), OpenError>) {
    match result {
        Ok(()) => {}
        Err(OpenError::Io { error, .. }) if SimCrash::caused(&error) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Every later session finds what it must.
fn survives(disk: SimDisk, model: &Model, seed: u64) {
    let model = Arc::new(Mutex::new(model.clone()));
    run(session(&disk, &model, 3, seed, seed.is_multiple_of(2))).unwrap();
    let disk = disk.crash();
    let dropped = disk.dirty_drops().len();
    run(session(&disk, &model, 1, seed, true)).unwrap();
    let disk = disk.crash();
    run(session(&disk, &model, 0, seed, true)).unwrap();
    assert_eq!(disk.dirty_drops().len(), dropped, "a journal that is closed leaves nothing dirty");
}

/// Which step a traced operation is, for the list of what was covered.
fn step(kind: OpKind, path: &Path) -> String {
    let what = path.extension().map_or("dir".into(), |extension| extension.to_string_lossy().into_owned());
    format!("{kind:?} {what}")
}

fn slow(disk: &SimDisk) {
    // Syncs take time, so that rounds gather, and Seals are overtaken.
    disk.slow_syncs(".journal", Duration::from_millis(3));
    disk.slow_syncs(".segment", Duration::from_millis(5));
}

/// Crashes one session at each of its steps, after `first` sessions that were killed.
fn crash_everywhere(first: u32, rounds: u32, slow_syncs: bool, seeds: u64) -> BTreeSet<String> {
    let disk = SimDisk::new(first.into());
    if slow_syncs {
        slow(&disk);
    }
    let model = Arc::new(Mutex::new(Model::default()));
    let mut disk = disk;
    for number in 0..first {
        run(session(&disk, &model, 5, number.into(), false)).unwrap();
        disk = disk.kill();
    }
    let (mut covered, mut op) = (BTreeSet::new(), 0);
    loop {
        let (disk, model) = (disk.fork(), Arc::new(Mutex::new(model.lock().clone())));
        disk.record_trace();
        disk.crash_at_op(disk.ops() + op);
        ends_by_crash(run(session(&disk, &model, rounds, 100, true)));
        if !disk.has_crashed() {
            covered.extend(disk.take_trace().iter().map(|entry| step(entry.kind, &entry.path)));
            return covered;
        }
        for seed in 0..seeds {
            let model = model.lock().clone();
            survives(disk.fork().crash_with(op * 100 + seed), &model, seed);
        }
        survives(disk.fork().kill(), &model.lock(), op);
        op += 1;
    }
}

#[test]
fn a_crash_at_any_step_of_a_first_session_loses_nothing() {
    let covered = crash_everywhere(0, 30, false, 3);
    let expected = [
        "Allocate new",
        "Create new",
        "Create segment",
        "CreateDir dir",
        "Rename journal",
        "Rename spare",
        "Remove new",
        "Sync journal",
        "Sync new",
        "Sync segment",
        "SyncDir dir",
        "Write journal",
        "Write new",
        "Write segment",
    ];
    for step in expected {
        assert!(covered.contains(step), "{step} was not reached: {covered:?}");
    }
}

#[test]
fn a_crash_at_any_step_of_a_session_with_slow_syncs_loses_nothing() {
    crash_everywhere(0, 16, true, 3);
}

#[test]
fn a_crash_at_any_step_after_a_kill_loses_nothing() {
    let covered = crash_everywhere(2, 14, true, 3);
    assert!(covered.contains("Rename spare") || covered.contains("Remove journal"), "{covered:?}");
}

#[test]
fn a_failed_sync_at_any_round_stops_the_journal_and_loses_nothing() {
    let mut struck = 0;
    for skip in 0..60 {
        for loses_data in [false, true] {
            let disk = SimDisk::new(skip);
            slow(&disk);
            let model = Arc::new(Mutex::new(Model::default()));
            let path_contains = if skip % 2 == 0 { "0000.journal" } else { "" }.to_owned();
            disk.inject(Fault { kind: OpKind::Sync, path_contains, skip: skip / 2, errno: EIO, loses_data });
            let result = run(session(&disk, &model, 12, skip, true));
            if disk.faults_left() > 0 {
                continue;
            }
            struck += 1;
            assert!(matches!(result, Ok(()) | Err(OpenError::Io { .. })));
            // The process ends; later, the power, too: what only the page cache had must have been made durable in between.
            survives(disk.fork().kill(), &model.lock(), skip);
            survives(disk.crash(), &model.lock(), skip);
        }
    }
    assert!(struck > 60, "{struck}");
}

#[test]
fn one_seed_gives_one_history() {
    let history = || {
        let disk = SimDisk::new(3);
        slow(&disk);
        disk.record_trace();
        let model = Arc::new(Mutex::new(Model::default()));
        run(session(&disk, &model, 30, 3, true)).unwrap();
        (disk.take_trace(), format!("{:?}", model.lock().groups))
    };
    assert_eq!(history(), history());
}
