//! After a run, with every broker stopped: do the replicas of each partition have the same log on their disks, and is every file sound?
//!
//! Clients only see what leaders tell them; a follower that went astray shows here at once, and to clients perhaps weeks later (etcd 3.5 was
//! such a case). The broker's own binary says where frames lie (`pontoon log dump --json`); the bytes are compared here.
//!
//! Two properties are held, Raft's log matching: frames with the same index and term are the same, byte for byte, in every file of every
//! replica, also in what was cut off later; and two logs that have an entry in common, by index and term, have all entries before it in
//! common. What stands behind the last common entry may differ: brokers are stopped one after another, and a leader may leave entries
//! that were never committed.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::Hasher as _;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::cluster::command::run_with_input;
use crate::cluster::disk::files_below;
use crate::cluster::{Doing as _, Harness, HarnessError};

/// The most disagreements that are told of a partition.
const TOLD_MAX: usize = 4;

/// A line of `log dump --json`, as far as it is needed.
#[derive(Deserialize)]
struct Line {
    what: String,
    #[serde(default)]
    index: u64,
    #[serde(default)]
    term: u64,
    #[serde(default)]
    position: u64,
    #[serde(default)]
    bytes: u64,
}

/// A line of `log verify --json`.
#[derive(Deserialize)]
struct Verified {
    file: String,
    sound: Option<bool>,
    #[serde(default)]
    problems: Vec<serde_json::Value>,
}

/// A frame, as it can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    term: u64,
    content: u64,
}

/// The frames of one segment, in order.
type Segment = Vec<(u64, Frame)>;

/// A group's log on one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Log {
    /// As it stands; the newest file that has an index counts, and what an older file has behind its beginning was cut off.
    standing: BTreeMap<u64, Frame>,
    /// All that was ever there, by index and term: one content each, if all is well.
    seen: BTreeMap<(u64, u64), BTreeSet<u64>>,
}

impl Log {
    /// Adds the segments of a replica in the order of their file numbers.
    fn add(&mut self, first_index: u64, segment: &Segment) {
        self.standing.split_off(&first_index);
        for (index, frame) in segment {
            self.standing.insert(*index, *frame);
            self.seen.entry((*index, frame.term)).or_default().insert(frame.content);
        }
    }
}

/// Whether this broker can tell what is in its files.
pub async fn can_tell(binary: &Path) -> bool {
    let binary = binary.display().to_string();
    run_with_input(&[&binary, "log", "dump", "--help"], "").await.is_ok()
}

/// Where the logs of the hosts disagree, sentence by sentence, and how many entries were compared. `hosts` are names and data directories;
/// brokers must be stopped.
pub async fn disagreements(binary: &Path, hosts: &[(String, PathBuf)]) -> Harness<(Vec<String>, usize)> {
    let mut groups: BTreeMap<String, Vec<(String, Log)>> = BTreeMap::new();
    for (name, data) in hosts {
        for (group, log) in logs(binary, data).await? {
            groups.entry(group).or_default().push((name.clone(), log));
        }
    }
    let (mut found, mut entries) = (Vec::new(), 0);
    for (group, replicas) in &groups {
        let common = replicas.first().map_or(0, |(_, log)| {
            let others = &replicas[1..];
            log.standing
                .keys()
                .filter(|index| others.iter().any(|(_, other)| other.standing.contains_key(index)))
                .count()
        });
        entries += common;
        for (at, first) in replicas.iter().enumerate() {
            for second in &replicas[at + 1..] {
                found.extend(compare(group, first, second));
            }
        }
    }
    Ok((found, entries))
}

/// What is unsound on a disk, sentence by sentence.
pub async fn unsound(binary: &Path, name: &str, data: &Path) -> Harness<Vec<String>> {
    let files = files_below(data).doing(data.display())?;
    let lines = verified(&ask(binary, "verify", data).await?, &files)?;
    // A growing segment's index is not synced: a power cut may leave anything of it, and it is made anew.
    let unsound = lines.iter().filter(|line| line.sound == Some(false) && !line.file.ends_with(".index"));
    Ok(unsound.map(|line| format!("{name}: {} is not sound: {:?}", line.file, line.problems)).collect())
}

/// What the broker's binary says of a file or folder. It ends with status 1 if something is unsound, and says what all the same; any
/// other status means that it did not.
async fn ask(binary: &Path, what: &str, path: &Path) -> Harness<String> {
    let script = format!("'{}' --json log {what} '{}' || [ $? = 1 ]", binary.display(), path.display());
    run_with_input(&["sh", "-c", &script], "").await
}

/// The lines of `log verify`; each of these files must be in them.
fn verified(told: &str, files: &[PathBuf]) -> Harness<Vec<Verified>> {
    let parse = |line: &str| serde_json::from_str(line).map_err(|error| HarnessError::new(line, error));
    let lines: Vec<Verified> = told.lines().map(parse).collect::<Harness<_>>()?;
    match files.iter().find(|file| !lines.iter().any(|line| Path::new(&line.file) == **file)) {
        Some(file) => Err(HarnessError(format!("`log verify` says nothing of {}", file.display()))),
        None => Ok(lines),
    }
}

/// The log of each group on a disk. Of several replicas of a group (one was replaced) the newest counts.
async fn logs(binary: &Path, data: &Path) -> Harness<BTreeMap<String, Log>> {
    let mut folders = BTreeMap::new();
    for entry in fs::read_dir(data.join("groups")).doing("the groups of a disk")? {
        let path = entry.doing("the groups of a disk")?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some((group, replica)) = name.split_once('-') else { continue };
        let (Ok(_), Ok(replica)) = (group.parse::<u64>(), replica.parse::<u64>()) else { continue };
        // Group 0 has random ids: only one of its replicas can be told to be the newest, and it is not looked at if there are two.
        folders.entry(group.to_owned()).or_insert_with(BTreeMap::new).insert(replica, path);
    }
    let mut logs = BTreeMap::new();
    for (group, replicas) in folders {
        if group == "0" && replicas.len() > 1 {
            continue;
        }
        if let Some((_, path)) = replicas.last_key_value() {
            logs.insert(group, log(binary, path).await?);
        }
    }
    Ok(logs)
}

async fn log(binary: &Path, folder: &Path) -> Harness<Log> {
    let mut segments = BTreeMap::new();
    for entry in fs::read_dir(folder).doing(folder.display())? {
        let path = entry.doing(folder.display())?.path();
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let (Some("segment"), Some((first_index, file_no))) =
            (path.extension().and_then(|extension| extension.to_str()), stem.split_once('-'))
        else {
            continue;
        };
        if let (Ok(first_index), Ok(file_no)) = (first_index.parse::<u64>(), file_no.parse::<u64>()) {
            segments.insert(file_no, (first_index, path));
        }
    }
    let mut log = Log::default();
    for (first_index, path) in segments.into_values() {
        log.add(first_index, &segment(binary, &path).await?);
    }
    Ok(log)
}

async fn segment(binary: &Path, path: &Path) -> Harness<Segment> {
    let bytes = fs::read(path).doing(path.display())?;
    frames(&ask(binary, "dump", path).await?, &bytes).doing(path.display())
}

/// The frames of a dump, which ends with its report.
fn frames(told: &str, bytes: &[u8]) -> Harness<Segment> {
    let (mut frames, mut whole) = (Vec::new(), false);
    for line in told.lines() {
        let line: Line = serde_json::from_str(line).map_err(|error| HarnessError::new(line, error))?;
        whole = line.what == "report";
        if line.what == "frame" {
            let content = content(bytes, line.position, line.bytes).doing("a frame")?;
            frames.push((line.index, Frame { term: line.term, content }));
        }
    }
    if whole { Ok(frames) } else { Err(HarnessError("`log dump` ends early".to_owned())) }
}

/// A fingerprint of some bytes.
fn content(bytes: &[u8], position: u64, length: u64) -> io::Result<u64> {
    let beyond = || io::Error::other(format!("a frame of {length} bytes at {position} lies beyond the end"));
    let (start, length) = (usize::try_from(position), usize::try_from(length));
    let range = start.ok().zip(length.ok()).and_then(|(start, length)| Some(start..start.checked_add(length)?));
    let bytes = range.and_then(|range| bytes.get(range)).ok_or_else(beyond)?;
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    Ok(hasher.finish())
}

fn compare(group: &str, (first, a): &(String, Log), (second, b): &(String, Log)) -> Vec<String> {
    let mut found = Vec::new();
    for ((index, term), contents) in &a.seen {
        if b.seen.get(&(*index, *term)).is_some_and(|other| contents.union(other).count() > 1) {
            found.push(format!("group {group}: entry {index} of term {term} is not the same on {first} and {second}"));
        }
    }
    let same = |(index, frame): &(&u64, &Frame)| b.standing.get(index).is_some_and(|other| other.term == frame.term);
    let common = a.standing.iter().rev().find(same).map_or(0, |(index, _)| *index);
    for (index, frame) in a.standing.range(..common) {
        if let Some(other) = b.standing.get(index).filter(|other| other.term != frame.term) {
            let terms = format!("{} on {first} and {} on {second}", frame.term, other.term);
            found.push(format!("group {group}: entry {index} is of term {terms}"));
        }
    }
    let more = found.len().saturating_sub(TOLD_MAX);
    found.truncate(TOLD_MAX);
    if more > 0 {
        found.push(format!("group {group}: {first} and {second} disagree on {more} entries more"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment's first index, and its frames: index, term, content.
    type Told = (u64, &'static [(u64, u64, u64)]);

    fn log(segments: &[Told]) -> Log {
        let mut log = Log::default();
        for (first_index, frames) in segments {
            let frames: Segment = frames
                .iter()
                .map(|(index, term, content)| (*index, Frame { term: *term, content: *content }))
                .collect();
            log.add(*first_index, &frames);
        }
        log
    }

    fn disagreements(a: Log, b: Log) -> Vec<String> {
        compare("4", &("n1".to_owned(), a), &("n2".to_owned(), b))
    }

    const SOUND: &[Told] = &[(0, &[(0, 1, 70), (1, 1, 71), (2, 1, 72)])];

    #[test]
    fn replicas_that_agree_as_far_as_both_reach_are_sound() {
        assert_eq!(disagreements(log(SOUND), log(&[(0, &[(0, 1, 70), (1, 1, 71)])])), Vec::<String>::new());
        // What was cut off by a later file may be of another term.
        let cut = log(&[(0, &[(0, 1, 70), (1, 9, 99), (2, 9, 98)]), (1, &[(1, 1, 71), (2, 1, 72)])]);
        assert_eq!(disagreements(log(SOUND), cut), Vec::<String>::new());
    }

    #[test]
    fn what_a_leader_left_uncommitted_may_differ() {
        let left_alone = log(&[(0, &[(0, 1, 70), (1, 1, 71), (2, 4, 40)])]);
        let went_on = log(&[(0, &[(0, 1, 70), (1, 1, 71), (2, 5, 50), (3, 6, 60)])]);
        assert_eq!(disagreements(left_alone, went_on), Vec::<String>::new());
    }

    #[test]
    fn replicas_that_went_apart_are_named_with_the_entry() {
        let other_bytes = log(&[(0, &[(0, 1, 70), (1, 1, 99)])]);
        assert_eq!(disagreements(log(SOUND), other_bytes), ["group 4: entry 1 of term 1 is not the same on n1 and n2"]);
        let other_term = log(&[(0, &[(0, 1, 70), (1, 2, 71), (2, 1, 72)])]);
        assert_eq!(disagreements(log(SOUND), other_term), ["group 4: entry 1 is of term 1 on n1 and 2 on n2"]);
        // Two leaders of one term, though one's entries were cut off in time.
        let cut = log(&[(0, &[(0, 1, 70), (1, 1, 99)]), (1, &[(1, 1, 71)])]);
        assert_eq!(disagreements(log(SOUND), cut), ["group 4: entry 1 of term 1 is not the same on n1 and n2"]);
        let earlier = log(&[(0, &[(0, 1, 70), (1, 3, 50)]), (1, &[(1, 1, 71)])]);
        let other = log(&[(0, &[(0, 1, 70), (1, 3, 51)]), (1, &[(1, 1, 71)])]);
        assert_eq!(disagreements(earlier, other), ["group 4: entry 1 of term 3 is not the same on n1 and n2"]);
    }

    #[test]
    fn what_is_told_of_files_is_told_whole_or_not_at_all() {
        let files = [PathBuf::from("/d/checkpoint"), PathBuf::from("/d/identity")];
        let (first, second) = (r#"{"file":"/d/checkpoint","sound":true}"#, r#"{"file":"/d/identity","sound":null}"#);
        let told = |told: &str| verified(told, &files).map(|lines| lines.len()).map_err(|error| error.0);
        assert_eq!(told(&format!("{first}\n{second}\n")), Ok(2));
        assert_eq!(told(&format!("{first}\n")), Err("`log verify` says nothing of /d/identity".to_owned()));
        assert!(told(&format!("{first}\n{second}\nthread 'main' panicked\n")).is_err());

        let (frame, report) = (r#"{"what":"frame","index":3,"term":1,"position":0,"bytes":2}"#, r#"{"what":"report"}"#);
        assert_eq!(frames(&format!("{frame}\n{report}\n"), b"ab").unwrap().len(), 1);
        for cut in [frame.to_owned(), String::new(), format!("{frame}\n{{\"what\":\"rep")] {
            assert!(frames(&cut, b"ab").is_err(), "{cut}");
        }
    }

    #[test]
    fn a_frame_beyond_its_file_is_an_error() {
        assert_eq!(content(b"0123", 1, 2).unwrap(), content(b"x12", 1, 2).unwrap());
        assert!(content(b"0123", 3, 2).is_err());
        assert!(content(b"0123", u64::MAX, 2).is_err());
    }
}
