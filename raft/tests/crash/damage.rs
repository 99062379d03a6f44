//! Hostile files: bytes of a data directory changed as a fuzzer likes, and what a recovery may make of it.
//!
//! It never panics, never serves an entry that was not written, never touches another replica, and never loses an entry
//! that was whole and synced: it has it, or it refuses to open what it cannot vouch for and keeps the files. Only rounds at
//! the very end of the journal may be missing, and only if each of them was damaged: nobody can tell them from torn writes.
//! Of a segment, the entries before the first changed byte are read as they were, and so is every other segment.
//! The fuzz targets (`tests/fuzz`) and the tests below call the same functions.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use openraft::storage::{RaftLogReader, RaftLogStorage};
use pontoon_raft::disk::sim::SimDisk;
use pontoon_raft::disk::{Disk, OpenMode};
use pontoon_raft::log::frame::Frame;
use pontoon_raft::log_store::LogStore;
use pontoon_raft::store::{Replica, Store};
use pontoon_raft::types::Offset;

use super::driver::{APPLIED_GROUP, Append, Driver, Found, Key, ROOT, look, open};
use super::run;

const A: Key = (1, 11);
const B: Key = (2, 12);
const CATALOG: Key = (APPLIED_GROUP, 19);
/// Rounds and headers of the journal begin on such a boundary.
const BLOCK_BYTES: usize = 4096;
const ROUND_MAGIC: &[u8] = b"PJRD";

/// Which files are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Segments of replica A.
    Segment,
    /// Indexes of replica A.
    Index,
    /// The journal, with entries that stand nowhere else.
    Journal,
}

/// A directory as it was, killed, and every state each replica has been in, the last one last.
struct Prepared {
    disk: SimDisk,
    states: Vec<(Key, Vec<Found>)>,
}

/// Several segments each, everything in them checkpointed.
fn closed() -> &'static Prepared {
    static CLOSED: OnceLock<Prepared> = OnceLock::new();
    CLOSED.get_or_init(|| prepare(true))
}

/// Not closed: what came after the last checkpoint stands in the journal.
fn killed() -> &'static Prepared {
    static KILLED: OnceLock<Prepared> = OnceLock::new();
    KILLED.get_or_init(|| prepare(false))
}

fn prepare(close: bool) -> Prepared {
    let disk = SimDisk::new(3);
    let states = run(async {
        let mut driver = Driver::new(disk.clone(), None);
        driver.open().await.unwrap();
        for key in [A, B, CATALOG] {
            driver.create(key).await.unwrap();
            driver.vote(key, 1).await.unwrap();
            driver.write(key, Append::Membership).await.unwrap();
            for _ in 0..4 {
                driver.write(key, Append::Proposals(1, &[900, 700, 41])).await.unwrap();
            }
        }
        driver.rest(1).await;
        driver.store().checkpoint().await.unwrap();
        for key in [A, B, CATALOG, A, B, A] {
            driver.write(key, Append::Proposals(2, &[100])).await.unwrap();
        }
        if close {
            driver.close().await.unwrap();
        }
        driver.recorded().0
    });
    let states = states.into_iter().map(|(key, states)| (key, states.into_iter().flatten().collect())).collect();
    Prepared { disk: disk.kill(), states }
}

/// One change of a file.
#[derive(Clone, Debug)]
enum Change {
    Flip { position: u64, bit: u8 },
    Write { position: u64, bytes: Vec<u8> },
    Truncate { bytes: u64 },
}

/// Reads changes off a fuzzer's bytes: a kind, three bytes of position, a length, and what is written.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn next(&mut self, file_bytes: u64) -> Option<Change> {
        let kind = self.byte()?;
        let place = [self.byte()?, self.byte()?, self.byte()?, 0];
        let position = u64::from(u32::from_le_bytes(place)) % (file_bytes + 1);
        let extra = self.byte()?;
        Some(match kind % 4 {
            0 => Change::Flip { position: position.min(file_bytes.saturating_sub(1)), bit: extra % 8 },
            1 => Change::Truncate { bytes: position },
            2 => Change::Write { position, bytes: vec![0; usize::from(extra) * 16] },
            _ => {
                let (bytes, rest) = self.0.split_at(self.0.len().min(usize::from(extra)));
                self.0 = rest;
                Change::Write { position, bytes: bytes.to_vec() }
            }
        })
    }
}

async fn files(disk: &SimDisk, class: Class) -> Vec<(PathBuf, u64)> {
    let (folder, part) = match class {
        Class::Segment => (Path::new(ROOT).join(format!("groups/{}-{}", A.0, A.1)), ".segment"),
        Class::Index => (Path::new(ROOT).join(format!("groups/{}-{}", A.0, A.1)), ".index"),
        Class::Journal => (Path::new(ROOT).join("journal"), ""),
    };
    let entries = disk.read_dir(&folder).await.unwrap();
    let found = entries.into_iter().filter(|entry| !entry.is_dir && entry.name.contains(part) && entry.bytes > 0);
    found.map(|entry| (folder.join(entry.name), entry.bytes)).collect()
}

async fn contents(disk: &SimDisk, path: &Path) -> Bytes {
    let file = disk.open(path, OpenMode::Read).await.unwrap();
    let bytes = file.len().await.unwrap() as usize;
    file.read_at(0, bytes).await.unwrap()
}

async fn apply(disk: &SimDisk, path: &Path, change: Change) {
    let bytes = contents(disk, path).await.len() as u64;
    match change {
        Change::Flip { position, bit } if position < bytes => disk.flip_bit(path, position, bit),
        Change::Truncate { bytes: to } if to < bytes => disk.truncate(path, to),
        Change::Write { position, bytes: new } if position <= bytes && !new.is_empty() => {
            let file = disk.open(path, OpenMode::ReadWrite).await.unwrap();
            file.write_at(position, vec![new.into()]).await.unwrap();
            file.datasync().await.unwrap();
        }
        _ => {}
    }
}

/// A round of the journal.
struct Round {
    first_lsn: u64,
    path: PathBuf,
    start: usize,
    end: usize,
}

/// The rounds that stand in the journal, in order.
async fn rounds(disk: &SimDisk) -> Vec<Round> {
    let mut rounds = Vec::new();
    for (path, _) in files(disk, Class::Journal).await {
        let bytes = contents(disk, &path).await;
        for (block, chunk) in bytes.chunks(BLOCK_BYTES).enumerate() {
            if chunk.starts_with(ROUND_MAGIC) {
                // Behind magic and checksum: epoch, first LSN, the LSN it follows, position, records, bytes of the body.
                let first_lsn = u64::from_le_bytes(chunk[16..24].try_into().unwrap());
                let body = u32::from_le_bytes(chunk[44..48].try_into().unwrap()) as usize;
                let start = block * BLOCK_BYTES;
                rounds.push(Round { first_lsn, path: path.clone(), start, end: start + 64 + body });
            }
        }
    }
    rounds.sort_by_key(|round| round.first_lsn);
    rounds
}

/// How many rounds at the end of the journal are damaged, with no sound one among or behind them.
async fn damaged_at_the_end(before: &SimDisk, after: &SimDisk) -> usize {
    let mut trailing = 0;
    for round in rounds(before).await {
        let (old, new) = (contents(before, &round.path).await, contents(after, &round.path).await);
        let damaged = new.get(round.start..round.end) != Some(&old[round.start..round.end]);
        trailing = if damaged { trailing + 1 } else { 0 };
    }
    trailing
}

/// The entries that a damaged segment may have lost: from the first one that a changed byte is in or before, up to the next segment.
async fn at_risk(before: &SimDisk, after: &SimDisk, path: &Path) -> Range<u64> {
    let (old, new) = (contents(before, path).await, contents(after, path).await);
    let same = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    let mut rest = old.clone();
    let mut from = None;
    while let Ok(frame) = Frame::decode(&mut rest) {
        if old.len() - rest.len() > same {
            from = Some(frame.header.index);
            break;
        }
    }
    let Some(from) = from else { return 0..0 };
    let firsts = files(before, Class::Segment).await.into_iter().map(|(path, _)| first_index(&path));
    from..firsts.filter(|first| *first > from).min().unwrap_or(u64::MAX)
}

/// The first index of a segment, as its file's name says.
fn first_index(path: &Path) -> u64 {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.split_once('-').unwrap().0.parse().unwrap()
}

/// Damages files of a class as `data` says, recovers, and checks what is there.
pub(crate) fn damage(class: Class, data: &[u8]) {
    let prepared = if class == Class::Journal { killed() } else { closed() };
    run(async {
        let disk = prepared.disk.fork().kill();
        let files = files(&disk, class).await;
        let mut script = Script(data);
        let Some(which) = script.byte() else { return };
        let (path, bytes) = &files[usize::from(which) % files.len()];
        for _ in 0..16 {
            let Some(change) = script.next(*bytes) else { break };
            apply(&disk, path, change).await;
        }
        let whole = contents(&disk, path).await == contents(&prepared.disk, path).await;
        let rotten = match class {
            Class::Segment => at_risk(&prepared.disk, &disk, path).await,
            _ => 0..0,
        };
        let missing_max = damaged_at_the_end(&prepared.disk, &disk).await;
        let store = match open(&disk).await {
            Ok(store) => store,
            Err(error) => {
                assert!(!whole && class == Class::Journal, "{class:?}, {}: {error}", path.display());
                return;
            }
        };
        let mut missing = 0;
        for (key, states) in &prepared.states {
            missing += missing_states(&store, *key, states, class, &rotten).await;
        }
        assert!(missing <= missing_max, "{missing} writes are missing, {missing_max} damaged rounds at the end");
        store.close().await.unwrap();
    });
}

/// How many of a replica's last states were forgotten. No replica is given up: a checkpoint knows how each of them stands, so that
/// rot in a segment of A's costs entries of that segment only, those that are `rotten`.
async fn missing_states(store: &Arc<Store>, key: Key, states: &[Found], class: Class, rotten: &Range<u64>) -> usize {
    let before = states.last().unwrap();
    let of_key = |group: u64, replica: u64| (group, replica) == key;
    let Some(replica) = store.replicas().into_iter().find(|found| of_key(found.group.0, found.replica.0)) else {
        panic!("{class:?}: replica {key:?} was given up: {:?}", store.corrupt());
    };
    if key == A && !rotten.is_empty() {
        check_rotten(&replica, before, rotten).await;
        return 0;
    }
    let found = look(&replica).await;
    let back = states.iter().rev().position(|state| *state == found);
    back.unwrap_or_else(|| panic!("{class:?}: replica {key:?} is {found:?}\nand was {before:?}"))
}

/// A log with a rotten segment: what can be read is what was written, by index and by offset; all can be read that is not rotten;
/// and nothing is forgotten.
async fn check_rotten(replica: &Replica, before: &Found, rotten: &Range<u64>) {
    let mut log = LogStore::new(replica.log.clone());
    let state = log.get_log_state().await.unwrap();
    let last = state.last_log_id.unwrap().index;
    assert_eq!(last, before.last_index(), "entries are forgotten");
    for index in 0..=last {
        match log.try_get_log_entries(index..=index).await {
            Ok(entries) => {
                assert!(entries.len() == 1 && before.holds(&entries), "entry {index} is not what was written")
            }
            Err(error) => assert!(rotten.contains(&index), "entry {index}, of {rotten:?} rotten, is not read: {error}"),
        }
    }
    let (records, end) = (before.records(), replica.log.log_end_offset());
    for (at, (index, offset, _)) in records.iter().enumerate() {
        for bytes_max in [1, usize::MAX] {
            match replica.log.read(Offset(*offset), end, bytes_max).await {
                Ok(frames) => {
                    let read =
                        frames.iter().map(|frame| (frame.header.index, frame.header.base_offset, &frame.payload));
                    let written = records[at..].iter().map(|(index, offset, payload)| (*index, *offset, payload));
                    assert!(!frames.is_empty(), "offset {offset} is read as nothing");
                    assert!(
                        read.eq(written.take(frames.len())),
                        "what is read from {offset} on is not what was written"
                    );
                }
                Err(error) => assert!(rotten.contains(index), "offset {offset}, entry {index}, is not read: {error}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every input of a fuzz target's corpus.
    fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(target);
        let mut found: Vec<_> = std::fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .collect();
        found.sort();
        assert!(!found.is_empty(), "{} is empty", folder.display());
        found
    }

    fn replay(target: &str, class: Class) {
        for (path, data) in corpus(target) {
            println!("{}", path.display());
            damage(class, &data);
        }
    }

    #[test]
    fn the_fuzzers_segments_are_survived() {
        replay("segment_recovery", Class::Segment);
    }

    #[test]
    fn the_fuzzers_indexes_are_survived() {
        replay("index_recovery", Class::Index);
    }

    #[test]
    fn the_fuzzers_journals_are_survived() {
        replay("journal_recovery", Class::Journal);
    }

    /// A's second segment with a changed byte in the middle; what may be lost of it.
    async fn rotten_in_the_middle(before: &SimDisk) -> (Arc<Store>, Range<u64>) {
        let disk = before.fork().kill();
        let (path, bytes) = files(&disk, Class::Segment).await.swap_remove(1);
        disk.flip_bit(&path, bytes / 2, 0);
        let rotten = at_risk(before, &disk, &path).await;
        assert!(first_index(&path) < rotten.start && !rotten.is_empty(), "{rotten:?}");
        (open(&disk).await.unwrap(), rotten)
    }

    fn all_of_a<'a>(prepared: &'a Prepared, store: &Arc<Store>) -> (Replica, &'a Found) {
        let (_, states) = prepared.states.iter().find(|(key, _)| *key == A).unwrap();
        let replica = store.replicas().into_iter().find(|found| (found.group.0, found.replica.0) == A).unwrap();
        (replica, states.last().unwrap())
    }

    #[test]
    fn rot_costs_what_follows_it_in_its_segment_at_most() {
        let prepared = closed();
        run(async {
            let (store, rotten) = rotten_in_the_middle(&prepared.disk).await;
            let (replica, before) = all_of_a(prepared, &store);
            check_rotten(&replica, before, &rotten).await;
            let offset = before.records().into_iter().find(|(index, ..)| *index >= rotten.start).unwrap().1;
            replica.log.read(Offset(offset), replica.log.log_end_offset(), 1).await.unwrap_err();
        });
    }

    #[test]
    #[should_panic(expected = "is not read")]
    fn an_entry_that_is_lost_beside_the_rot_is_noticed_here() {
        let prepared = closed();
        run(async {
            let (store, rotten) = rotten_in_the_middle(&prepared.disk).await;
            let (replica, before) = all_of_a(prepared, &store);
            check_rotten(&replica, before, &(rotten.start + 1..rotten.end)).await;
        });
    }

    #[test]
    fn the_loss_of_the_last_round_is_noticed_here() {
        let prepared = killed();
        run(async {
            let disk = prepared.disk.fork().kill();
            let last = rounds(&disk).await.pop().unwrap();
            disk.flip_bit(&last.path, last.start as u64 + 70, 0);
            let store = open(&disk).await.unwrap();
            let mut missing = 0;
            for (key, states) in &prepared.states {
                missing += missing_states(&store, *key, states, Class::Journal, &(0..0)).await;
            }
            assert_eq!(missing, 1);
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        #[test]
        fn damage_of_any_kind_is_survived(
            class in prop::sample::select(vec![Class::Segment, Class::Index, Class::Journal]),
            data in prop::collection::vec(any::<u8>(), 1..64),
        ) {
            damage(class, &data);
        }
    }
}
