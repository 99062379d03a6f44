//! What a file of a data directory holds, and whether it is sound: offline, read only, whatever the bytes are.
//!
//! [`inspect`] recognises any file by its magic, or by its name where that is rotten or there is none, shows every thing in it to a
//! visitor and says where it stops being what was written. It judges one file; only for what the file itself cannot tell it
//! looks into a neighbour (the checkpoint for a segment's length, the identity and the next file for a journal's). It
//! repairs nothing and never looks into payloads: those are handed on.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Serialize, Serializer};

use crate::disk::Disk;
use crate::journal::Lsn;
use crate::log::segment;
use crate::types::{GroupId, LogId, ReplicaId, repr};

mod segments;
mod small;
mod window;

pub(crate) use window::Window;

/// Problems that are listed; further ones are only counted.
const PROBLEMS_MAX: usize = 100;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Frames.
    Segment,
    /// The sparse index of a segment.
    Index,
    /// What the log's prefix tells, beside a segment.
    Base,
    /// The same with the applied state, installed or taken at the retention boundary.
    Snapshot,
    /// Every replica as of a place in the journal.
    Checkpoint,
    /// Whose the directory is.
    Identity,
    /// Rounds of records.
    Journal,
    /// A journal file that waits to be used (again), whatever it holds.
    SpareJournal,
    /// What an interrupted replacement of a file left.
    Temporary,
    /// Held while a process has the directory.
    Lock,
    /// A file of sled's: a cache that is made anew when it is missing.
    Cache,
    /// Nothing of Pontoon's.
    Unknown,
}

impl FileKind {
    /// Its name in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Segment => "segment",
            Self::Index => "index",
            Self::Base => "base",
            Self::Snapshot => "snapshot",
            Self::Checkpoint => "checkpoint",
            Self::Identity => "identity",
            Self::Journal => "journal",
            Self::SpareJournal => "spare journal file",
            Self::Temporary => "temporary file",
            Self::Lock => "lock",
            Self::Cache => "cache of the catalog's tables",
            Self::Unknown => "unknown file",
        }
    }
}

/// A field's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A count, an index, an offset, bytes.
    Number(u64),
    /// A time in ms, or -1.
    Signed(i64),
    /// Yes or no.
    Flag(bool),
    /// Anything else.
    Text(String),
    /// Not there.
    Nothing,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Signed(number) => number.fmt(f),
            Self::Flag(flag) => flag.fmt(f),
            Self::Text(text) => text.fmt(f),
            Self::Nothing => f.write_str("-"),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => serializer.serialize_u64(*number),
            Self::Signed(number) => serializer.serialize_i64(*number),
            Self::Flag(flag) => serializer.serialize_bool(*flag),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Nothing => serializer.serialize_none(),
        }
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(number as u64)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Signed(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<repr::LogId> for Value {
    fn from(repr::LogId(term, index): repr::LogId) -> Self {
        Self::Text(format!("{term}.{index}"))
    }
}

impl From<LogId> for Value {
    fn from(id: LogId) -> Self {
        repr::LogId::from(id).into()
    }
}

impl From<repr::Vote> for Value {
    fn from(repr::Vote(term, voted_for, committed): repr::Vote) -> Self {
        Self::Text(format!("term {term} for {voted_for}{}", if committed { ", elected" } else { "" }))
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Nothing, Into::into)
    }
}

/// One thing in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is: `frame`, `round`, `record`, `entry`, `replica`, ….
    pub what: &'static str,
    /// Where it begins.
    pub position: u64,
    /// Bytes that it takes there.
    pub bytes: u64,
    /// What it says.
    pub fields: Vec<(&'static str, Value)>,
    /// What it carries without knowing what that means: a frame's payload, a snapshot's applied state.
    pub payload: Option<Bytes>,
}

/// Something that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where.
    pub position: u64,
    /// What is wrong.
    pub why: String,
}

/// What was found in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What it is.
    pub kind: FileKind,
    /// Its length.
    pub file_bytes: u64,
    /// Things in it that are sound.
    pub items: u64,
    /// Up to here it is sound, from its beginning.
    pub sound_bytes: u64,
    /// What is wrong, in order of position. Empty: nothing is.
    pub problems: Vec<Problem>,
    /// Further problems that are not listed.
    pub more_problems: u64,
    /// What is worth knowing and no problem.
    pub notes: Vec<String>,
    /// In a word, what it holds.
    pub summary: String,
}

impl Report {
    fn new(kind: FileKind, file_bytes: u64) -> Self {
        let (problems, notes, summary) = (Vec::new(), Vec::new(), String::new());
        Self { kind, file_bytes, items: 0, sound_bytes: 0, problems, more_problems: 0, notes, summary }
    }

    /// Whether the file is what was written, as far as it can be judged; `None`: there is nothing to judge it by.
    pub fn is_sound(&self) -> Option<bool> {
        match self.kind {
            FileKind::Cache | FileKind::SpareJournal | FileKind::Temporary | FileKind::Lock => None,
            _ => Some(self.problems.is_empty()),
        }
    }

    pub(crate) fn problem(&mut self, position: u64, why: impl ToString) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { position, why: why.to_string() });
        } else {
            self.more_problems += 1;
        }
    }

    pub(crate) fn note(&mut self, why: impl ToString) {
        self.notes.push(why.to_string());
    }
}

/// Takes what is found, thing by thing; an error ends the inspection.
pub type Visitor<'a> = &'a mut (dyn FnMut(Item) -> io::Result<()> + Send + Sync);

/// A file under inspection.
pub(crate) struct Subject<'a> {
    pub(crate) disk: &'a dyn Disk,
    pub(crate) path: &'a Path,
    pub(crate) window: Window,
    /// Of a journal file that may be written to meanwhile: it holds everything up to here, durably, and nothing behind that is looked
    /// at. A read beside a write gives some of what is written, and none of what comes behind it.
    pub(crate) until: Option<Lsn>,
    pub(crate) report: Report,
    pub(crate) visitor: Visitor<'a>,
}

impl Subject<'_> {
    pub(crate) fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Shows a sound thing.
    pub(crate) fn show(&mut self, item: Item) -> io::Result<()> {
        self.report.items += 1;
        (self.visitor)(item)
    }

    /// The data directory, if the file stands where it was written: `levels` folders above the file's own.
    pub(crate) fn root(&self, levels: usize) -> Option<PathBuf> {
        self.path.ancestors().nth(levels + 1).map(Path::to_owned).filter(|root| !root.as_os_str().is_empty())
    }

    /// The replica, if the file stands in its folder.
    pub(crate) fn replica(&self) -> Option<(GroupId, ReplicaId)> {
        crate::recovery::parse_folder(self.path.parent()?.file_name()?.to_str()?)
    }
}

/// Reads a file, shows what is in it, and says whether it is sound. Errors are the visitor's, or the disk's when the file cannot be
/// opened; bytes that the disk does not give are a problem of the report.
pub async fn inspect(disk: &dyn Disk, path: &Path, visitor: Visitor<'_>) -> io::Result<Report> {
    inspect_slowly(disk, path, 0, None, visitor).await
}

/// [`inspect`], reading no faster than so many bytes per second (0: as fast as it can). `until`: see [`Subject::until`].
pub(crate) async fn inspect_slowly(
    disk: &dyn Disk,
    path: &Path,
    bytes_per_second: u64,
    until: Option<Lsn>,
    visitor: Visitor<'_>,
) -> io::Result<Report> {
    let mut window = Window::open(disk, path).await?;
    window.pace(bytes_per_second);
    let kind = recognise(path, &window.at(0, 8).await.unwrap_or_default());
    let report = Report::new(kind, window.len());
    let mut subject = Subject { disk, path, window, until, report, visitor };
    match kind {
        FileKind::Segment => segments::inspect(&mut subject).await?,
        FileKind::Journal => crate::journal::inspect(&mut subject).await?,
        FileKind::Index => small::index(&mut subject).await?,
        FileKind::Base | FileKind::Snapshot => small::base(&mut subject).await?,
        FileKind::Checkpoint => small::checkpoint(&mut subject).await?,
        FileKind::Identity => small::identity(&mut subject).await?,
        FileKind::Cache => subject.report.note(
            "sled's own file, which only sled can read; the folder may be deleted while the broker is stopped, \
             and is then made anew from snapshot and log",
        ),
        FileKind::SpareJournal => subject.report.note("it waits to be used; what it holds means nothing"),
        FileKind::Temporary => subject.report.note("left by a replacement that was interrupted; it means nothing"),
        FileKind::Lock => subject.report.note("it holds nothing; a running broker has it locked"),
        FileKind::Unknown => subject.report.problem(0, "neither its name nor its first bytes are Pontoon's"),
    }
    let mut report = subject.report;
    report.problems.sort_by_key(|problem| problem.position);
    if let Some(first) = report.problems.first() {
        report.sound_bytes = report.sound_bytes.min(first.position);
    }
    Ok(report)
}

/// By name where the name says it, so that a rotten magic does not make a file unknown; by magic for a copy under another name.
fn recognise(path: &Path, magic: &[u8]) -> FileKind {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let in_catalog = path.ancestors().skip(1).any(|above| above.file_name().is_some_and(|name| name == "catalog"));
    match name.rsplit_once('.') {
        Some((_, "segment")) => return FileKind::Segment,
        Some((_, "index")) => return FileKind::Index,
        Some((_, "base")) => return FileKind::Base,
        Some((_, "journal")) => return FileKind::Journal,
        Some((_, "spare" | "new")) => return FileKind::SpareJournal,
        Some((_, "tmp")) => return FileKind::Temporary,
        _ => {}
    }
    match (name, magic) {
        ("identity", _) | (_, b"PONTOONI") => FileKind::Identity,
        ("checkpoint", _) | (_, b"PNTNCKPT") => FileKind::Checkpoint,
        ("lock", _) => FileKind::Lock,
        (name, _) if name.starts_with("snapshot-") => FileKind::Snapshot,
        (_, b"PONTOONJ") => FileKind::Journal,
        (_, b"PNTNINDX") => FileKind::Index,
        (_, b"PNTNBASE") => FileKind::Base,
        _ if in_catalog => FileKind::Cache,
        // A frame of version 1.
        (_, [1, 1..=4, 0, 0, ..]) => FileKind::Segment,
        _ => FileKind::Unknown,
    }
}

/// A membership in words: the voters of each set, then who only learns, each with its broker.
pub(crate) fn membership_text(membership: &repr::Membership) -> String {
    let member = |id: &ReplicaId| match membership.nodes.get(id) {
        Some(home) => format!("{id} on broker {}", home.broker),
        None => id.to_string(),
    };
    let list = |ids: Vec<String>| ids.join(", ");
    let sets = membership.configs.iter().map(|set| format!("voters {}", list(set.iter().map(member).collect())));
    let votes = |id: &&ReplicaId| membership.configs.iter().any(|set| set.contains(id));
    let learners: Vec<String> = membership.nodes.keys().filter(|id| !votes(id)).map(member).collect();
    let learners = (!learners.is_empty()).then(|| format!("learners {}", list(learners)));
    let parts: Vec<String> = sets.chain(learners).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join("; ") }
}

/// The segment that a file of a replica's folder belongs to, if its name says so.
pub(crate) fn segment_name(name: &str) -> Option<crate::journal::SegmentName> {
    segment::parse(name).map(|(name, _)| name)
}

#[cfg(test)]
mod tests;
