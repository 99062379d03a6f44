//! One journal file, read by itself, offline: every round and record that is sound, and where one is not.
//!
//! What [`super::reader`] decides over the whole journal is decided here over one file and the header of the next: a bad round is a
//! write that was interrupted, unless something readable builds on it. Records of an earlier use of the file never match.

use std::io;
use std::path::PathBuf;

use super::format::{
    BLOCK_BYTES, BadBody, FileHeader, NoHeader, ROUND_HEADER_BYTES, RoundHeader, Seed, decode_body, parse_file_name,
};
use super::{Extent, Lsn, Recovered, RecoveredOp};
use crate::data_dir::Identity;
use crate::disk::read_file;
use crate::inspect::{Item, Subject, Value};
use crate::types::repr;

/// How far the file was read.
struct Progress {
    seed: Seed,
    epoch: u64,
    /// The last LSN that was read, or that the file follows.
    last: Lsn,
    rounds: u64,
    records: u64,
    /// Where the first thing that cannot be read stands, since the last sound round; and what it is.
    bad: Option<(u64, String)>,
}

/// Inspects the file. Problems go to the report.
pub(crate) async fn inspect(subject: &mut Subject<'_>) -> io::Result<()> {
    let Some(mut progress) = begin(subject).await? else { return Ok(()) };
    let mut position = BLOCK_BYTES as u64;
    while position < subject.window.len() && subject.until.is_none_or(|until| progress.last < until) {
        match round_at(subject, &progress, position).await {
            Ok((header, records)) => {
                accept(subject, &mut progress, position, &header, records)?;
                position += header.round_bytes();
                if subject.report.problems.is_empty() && progress.bad.is_none() {
                    subject.report.sound_bytes = position;
                }
            }
            Err(bad) => {
                if let Some(why) = bad.why {
                    progress.bad.get_or_insert((position, why));
                }
                position += bad.bytes;
            }
        }
    }
    conclude(subject, progress).await;
    Ok(())
}

/// The file's header, or what stands in for it.
async fn begin(subject: &mut Subject<'_>) -> io::Result<Option<Progress>> {
    let block = subject.window.at(0, BLOCK_BYTES as u64).await.unwrap_or_default();
    let named = parse_file_name(subject.name());
    let (directory, epoch, number, follows) = match FileHeader::decode(&block) {
        Ok(header) => {
            show_header(subject, &header)?;
            if named.is_some_and(|named| named != (header.epoch, header.number)) {
                subject.report.note("its header is of an earlier use of the file: it was not written since");
            }
            subject.report.sound_bytes = BLOCK_BYTES as u64;
            (header.directory, header.epoch, header.number, header.follows)
        }
        Err(NoHeader::Version(found)) => {
            subject.report.problem(8, format!("its format version {found} is not known"));
            return Ok(None);
        }
        Err(NoHeader::Unreadable) if subject.window.next_nonzero(0).await.is_ok_and(|at| at.is_none()) => {
            subject.report.sound_bytes = subject.window.len();
            subject.report.summary = "prepared, never written".to_owned();
            return Ok(None);
        }
        Err(NoHeader::Unreadable) => {
            subject.report.problem(0, "its header cannot be read");
            // Every checksum starts from what the header says; the folder's identity and the file's name say it too.
            let Some(((epoch, number), directory)) = named.zip(directory(subject).await) else { return Ok(None) };
            (directory, epoch, number, Lsn(0))
        }
    };
    let seed = Seed::of(directory, epoch, number);
    Ok(Some(Progress { seed, epoch, last: follows, rounds: 0, records: 0, bad: None }))
}

async fn directory(subject: &Subject<'_>) -> Option<u128> {
    let path = subject.root(1)?.join("identity");
    let bytes = read_file(subject.disk, &path, 4096).await.ok()?;
    Identity::decode(&bytes, &path).ok().map(|identity| identity.directory.0)
}

fn show_header(subject: &mut Subject<'_>, header: &FileHeader) -> io::Result<()> {
    let fields = vec![
        ("cluster", format!("{:032x}", header.cluster).into()),
        ("directory", format!("{:032x}", header.directory).into()),
        ("epoch", header.epoch.into()),
        ("number", header.number.into()),
        ("first_lsn", header.first.0.into()),
        ("follows", header.follows.0.into()),
    ];
    subject.show(Item { what: "header", position: 0, bytes: BLOCK_BYTES as u64, fields, payload: None })
}

/// A place where no round can be read.
struct Bad {
    /// `None`: nothing of this use of the file was ever there.
    why: Option<String>,
    /// How far to the next place that may hold one.
    bytes: u64,
}

async fn round_at(
    subject: &mut Subject<'_>,
    progress: &Progress,
    position: u64,
) -> Result<(RoundHeader, Vec<Recovered>), Bad> {
    let block = BLOCK_BYTES as u64;
    let head = subject.window.at(position, ROUND_HEADER_BYTES as u64).await;
    let head = head.map_err(|error| Bad { why: Some(error.to_string()), bytes: block })?;
    let Some(header) = RoundHeader::decode(&head, progress.seed, position) else {
        // Zeros and the leavings of an earlier use are what an unwritten block holds; a rotten header looks the same.
        return Err(Bad { why: Some("no round begins here".to_owned()), bytes: block });
    };
    let bytes = header.round_bytes();
    if header.epoch != progress.epoch || header.first <= progress.last || header.records == 0 {
        let why = format!("a round that begins with LSN {} stands behind LSN {}", header.first.0, progress.last.0);
        return Err(Bad { why: Some(why), bytes: block });
    }
    let whole = subject.window.at(position, bytes).await;
    let whole = whole.map_err(|error| Bad { why: Some(error.to_string()), bytes })?;
    let end = ROUND_HEADER_BYTES + header.body_bytes as usize;
    let records = match whole.len() >= end {
        true => decode_body(&header, whole.slice(ROUND_HEADER_BYTES..end), progress.seed),
        false => Err(BadBody::Checksum),
    };
    let last = header.last().0;
    match records {
        Ok(records) => Ok((header, records)),
        Err(BadBody::Unknown(why)) => Err(Bad { why: Some(why), bytes }),
        Err(BadBody::Checksum) => {
            let why = format!("the round of LSN {} to {last} is not what its checksums say", header.first.0);
            Err(Bad { why: Some(why), bytes })
        }
    }
}

fn accept(
    subject: &mut Subject<'_>,
    progress: &mut Progress,
    position: u64,
    header: &RoundHeader,
    records: Vec<Recovered>,
) -> io::Result<()> {
    if header.follows > progress.last {
        // It was written when those before it were durable, so what is missing was durable.
        let (from, to) = (progress.last.0 + 1, header.follows.0);
        let (at, why) = progress.bad.take().unwrap_or((position, "nothing can be read".to_owned()));
        subject.report.problem(at, format!("LSN {from} to {to} were durable and cannot be read: {why}"));
    } else if let Some((at, why)) = progress.bad.take() {
        subject.report.note(format!("at {at} a write was interrupted; nothing builds on it ({why})"));
    }
    let bytes = header.round_bytes();
    let fields = vec![
        ("first_lsn", header.first.0.into()),
        ("last_lsn", header.last().0.into()),
        ("follows", header.follows.0.into()),
        ("records", header.records.into()),
        ("seals", (u64::from(header.records) - records.len() as u64).into()),
        ("body_bytes", header.body_bytes.into()),
    ];
    subject.show(Item { what: "round", position, bytes, fields, payload: None })?;
    progress.last = header.last();
    progress.rounds += 1;
    for record in records {
        progress.records += 1;
        let mut fields =
            vec![("lsn", record.lsn.0.into()), ("group", record.group.0.into()), ("replica", record.replica.0.into())];
        describe(&record.op, &mut fields);
        subject.show(Item { what: "record", position, bytes, fields, payload: None })?;
    }
    Ok(())
}

fn describe(op: &RecoveredOp, fields: &mut Vec<(&'static str, Value)>) {
    let mut kind = |kind: &str, more: Vec<(&'static str, Value)>| {
        fields.push(("kind", kind.into()));
        fields.extend(more);
    };
    let place = |extent: &Extent| format!("{}-{}", extent.segment.first_index, extent.segment.file_no);
    match op {
        RecoveredOp::Create => kind("create", vec![]),
        RecoveredOp::Delete => kind("delete", vec![]),
        RecoveredOp::Append { extent, first, last, .. } | RecoveredOp::Bypass { extent, crc: _, first, last } => kind(
            if matches!(op, RecoveredOp::Append { .. }) { "append" } else { "bypass" },
            vec![
                ("first", (*first).into()),
                ("last", (*last).into()),
                ("segment", place(extent).into()),
                ("segment_position", extent.position.into()),
                ("frame_bytes", extent.bytes.into()),
            ],
        ),
        RecoveredOp::Truncate(last) => kind("truncate", vec![("last", (*last).into())]),
        RecoveredOp::Vote(vote) => kind("vote", vec![("vote", repr::Vote::from(*vote).into())]),
        RecoveredOp::Installed { boundary, next_offset, snapshot } => kind(
            "installed",
            vec![
                ("boundary", (*boundary).into()),
                ("next_offset", (*next_offset).into()),
                ("snapshot", snapshot.clone().into()),
            ],
        ),
        RecoveredOp::Purge(upto) => kind("purge", vec![("upto", (*upto).into())]),
        RecoveredOp::Commit(committed) => kind("commit", vec![("committed", (*committed).into())]),
    }
}

async fn conclude(subject: &mut Subject<'_>, progress: Progress) {
    let summary = format!("{} rounds, {} records, up to LSN {}", progress.rounds, progress.records, progress.last.0);
    if let Some(until) = subject.until {
        if progress.last < until {
            let (at, why) = progress.bad.unwrap_or((subject.window.len(), "the file ends".to_owned()));
            let (from, to) = (progress.last.0 + 1, until.0);
            subject.report.problem(at, format!("LSN {from} to {to} were durable and cannot be read: {why}"));
        }
    } else if let Some((next, follows)) = next_file(subject).await.filter(|(_, follows)| *follows > progress.last) {
        let (at, why) = progress.bad.unwrap_or((subject.window.len(), "the file ends".to_owned()));
        let (from, to) = (progress.last.0 + 1, follows.0);
        subject.report.problem(at, format!("LSN {from} to {to} were durable before {next} and cannot be read: {why}"));
    } else if let Some((at, why)) = progress.bad.filter(|(_, why)| why.starts_with("the round")) {
        subject
            .report
            .note(format!("at {at} the last write was interrupted, or rotted before anything followed: {why}"));
    }
    subject.report.summary = summary;
}

/// The file that was begun after this one, and what it follows.
async fn next_file(subject: &Subject<'_>) -> Option<(String, Lsn)> {
    let own = parse_file_name(subject.name())?;
    let folder: PathBuf = subject.root(0)?;
    let names = subject.disk.read_dir(&folder).await.ok()?.into_iter().map(|entry| entry.name);
    let mut later: Vec<_> = names.filter_map(|name| Some((parse_file_name(&name)?, name))).collect();
    later.retain(|(key, _)| *key > own);
    later.sort();
    for (key, name) in later {
        let block = subject.disk.open(&folder.join(&name), crate::disk::OpenMode::Read).await.ok()?;
        let block = block.read_at(0, BLOCK_BYTES).await.ok()?;
        // One that was prepared and not begun tells nothing.
        if let Some(header) = FileHeader::decode(&block).ok().filter(|header| (header.epoch, header.number) == key) {
            return Some((name, header.follows));
        }
    }
    None
}
