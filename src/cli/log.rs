//! `pontoon log dump|verify FILE`: what any file of a data directory holds, and whether it is sound. Offline: no broker is asked, and
//! nothing is changed; of a running broker's files one sees what happens to be there.
//!
//! The bytes are read by `pontoon_raft::inspect`; what payloads mean is added here.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use pontoon_raft::codec;
use pontoon_raft::disk::Disk;
use pontoon_raft::disk::real::RealDisk;
use pontoon_raft::inspect::{FileKind, Item, Report, Value as Field, inspect};
use serde_json::{Map, Value, json};

use crate::catalog::command::{Command, Envelope};
use crate::catalog::snapshot;
use crate::cli::{Failure, output, progress};
use crate::partition::verdict::Verdict;
use crate::record_batch::{BatchHeader, RecordBatch, STORED_DECOMPRESSED_BYTES_MAX};

/// Folders below the one that was named.
const DEPTH_MAX: usize = 8;

/// What to do with files.
#[derive(Debug, Subcommand)]
pub(super) enum LogCommand {
    /// Show what a file of a data directory holds
    Dump(DumpArgs),
    /// Say whether files of a data directory are sound
    Verify(VerifyArgs),
}

/// Flags of `log dump`.
#[derive(Debug, Args)]
pub(super) struct DumpArgs {
    /// Any file of a data directory
    file: PathBuf,
    /// Show every record of every batch, too
    #[arg(long)]
    records: bool,
}

/// Flags of `log verify`.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Any files of a data directory, or folders, whose files are all looked at
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Of a folder, show every file, not only those that are not sound (--json always does)
    #[arg(long)]
    all: bool,
}

/// Runs the command.
pub(super) async fn run(command: LogCommand, as_json: bool) -> Result<(), Failure> {
    let disk = RealDisk::new()?;
    match command {
        LogCommand::Dump(args) => dump(&disk, &args, as_json).await,
        LogCommand::Verify(args) => verify(&disk, &args, as_json).await,
    }
}

async fn dump(disk: &dyn Disk, args: &DumpArgs, as_json: bool) -> Result<(), Failure> {
    let path = absolute(&args.file)?;
    let catalog = is_catalogs(&path);
    let mut show = |item: Item| {
        let shown =
            if as_json { json_item(&item, args.records, catalog) } else { text_item(&item, args.records, catalog) };
        output::print(&shown).map_err(|failure| match failure {
            Failure::BrokenPipe => io::Error::from(io::ErrorKind::BrokenPipe),
            other => io::Error::other(other.verdict().1.unwrap_or_default()),
        })
    };
    let report = inspect(disk, &path, &mut show).await.map_err(|error| unreadable(&args.file, error))?;
    if as_json {
        output::print_json(&json_report(&args.file, &report))?;
    } else {
        output::say(&text_report(&args.file, &report));
    }
    match report.is_sound() {
        Some(false) => Err(Failure::Failed(format!("{} is not sound", args.file.display()))),
        _ => Ok(()),
    }
}

async fn verify(disk: &dyn Disk, args: &VerifyArgs, as_json: bool) -> Result<(), Failure> {
    let (mut looked_at, mut unsound, mut unjudged) = (0, 0, 0);
    for named in &args.files {
        let all = args.all || !named.is_dir();
        let files = files(disk, named).await?;
        let sizes: Vec<u64> = files.iter().map(|file| file.metadata().map_or(0, |file| file.len())).collect();
        let shown = progress::line(Some(sizes.iter().sum()), "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}");
        let mut before = 0;
        for (file, size) in files.into_iter().zip(sizes) {
            let catalog = is_catalogs(&file);
            let mut payloads = Vec::new();
            let mut look = |item: Item| {
                shown.set_position(before + item.position);
                payloads.extend(bad_payload(&item, catalog));
                Ok(())
            };
            let report = match inspect(disk, &file, &mut look).await {
                // Of a running broker, files come and go.
                Err(error) if error.kind() == io::ErrorKind::NotFound && file != absolute(named)? => continue,
                other => other.map_err(|error| unreadable(&file, error))?,
            };
            let report = with_payloads(report, payloads);
            before += size;
            shown.set_position(before);
            looked_at += 1;
            unsound += u64::from(report.is_sound() == Some(false));
            unjudged += u64::from(report.is_sound().is_none());
            if as_json {
                shown.suspend(|| output::print_json(&json_report(&file, &report)))?;
            } else if all || report.is_sound() == Some(false) {
                shown.suspend(|| output::print(&text_report(&file, &report)))?;
            }
        }
    }
    if !as_json && args.files.iter().any(|named| named.is_dir()) {
        let sound = looked_at - unsound - unjudged;
        output::print(&format!("{looked_at} files: {sound} sound, {unsound} not sound, {unjudged} not judged"))?;
    }
    match unsound {
        0 => Ok(()),
        unsound => Err(Failure::Failed(format!("{unsound} of {looked_at} files are not sound"))),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
}

fn unreadable(path: &Path, error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound => Failure::NotFound(format!("{}: {error}", path.display())),
        io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
        _ => Failure::Failed(format!("{}: {error}", path.display())),
    }
}

/// The file itself, or every file below a folder, in order.
async fn files(disk: &dyn Disk, named: &Path) -> Result<Vec<PathBuf>, Failure> {
    let named = absolute(named)?;
    if !named.is_dir() {
        return Ok(vec![named]);
    }
    let (mut found, mut folders) = (Vec::new(), vec![(named, 0)]);
    while let Some((folder, depth)) = folders.pop() {
        let entries = match disk.read_dir(&folder).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound && depth > 0 => continue,
            other => other.map_err(|error| unreadable(&folder, error))?,
        };
        for entry in entries {
            let path = folder.join(&entry.name);
            match entry.is_dir {
                true if depth < DEPTH_MAX => folders.push((path, depth + 1)),
                true => {}
                false => found.push(path),
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Whether the file is of group 0, whose payloads are commands.
fn is_catalogs(path: &Path) -> bool {
    let folder = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    folder.is_some_and(|name| name.starts_with("0-"))
}

/// What a payload means, or what is wrong with it.
fn payload(item: &Item, catalog: bool) -> Option<Result<Value, String>> {
    let payload = item.payload.as_ref()?;
    let kind = item.fields.iter().find(|(name, _)| *name == "kind").map(|(_, value)| value.to_string());
    match kind.as_deref() {
        Some("records") if catalog => {
            let envelope = Envelope::decode(payload).and_then(|envelope| codec::decode::<Command>(&envelope.command));
            let command = envelope.map_err(|error| format!("catalog command: {error}"));
            Some(command.map(|command| json!({ "command": format!("{command:?}") })))
        }
        Some("records") => {
            Some(BatchHeader::read(payload).map_err(|error| error.to_string()).map(|header| batch(&header)))
        }
        Some("void") if !catalog => {
            let verdict = Verdict::decode(payload).ok_or_else(|| "a verdict that is not known".to_owned());
            Some(verdict.map(|verdict| json!({ "verdict": format!("{verdict:?}") })))
        }
        None if item.what == "base" && payload.starts_with(b"PNTNCTLG") => {
            let state = snapshot::decode(None, payload).map_err(|why| format!("catalog snapshot: {why}"));
            Some(state.map(|_| json!({ "applied_state": "a catalog" })))
        }
        _ => None,
    }
}

fn batch(header: &BatchHeader) -> Value {
    let compression = header.compression().map(|compression| format!("{compression:?}").to_ascii_lowercase());
    let mut batch = json!({
        "base_offset": header.base_offset,
        "last_offset": header.last_offset(),
        "leader_epoch": header.leader_epoch,
        "compression": compression.unwrap_or_else(|_| "unknown".to_owned()),
    });
    if let (Some(producer), Some(batch)) = (header.producer(), batch.as_object_mut()) {
        batch.insert("producer_id".into(), producer.producer_id.into());
        batch.insert("producer_epoch".into(), producer.epoch.into());
        batch.insert("producer_sequence".into(), header.base_sequence.into());
    }
    json!({ "batch": batch })
}

/// The payload's sound checksum is one thing, whether it means anything another.
fn bad_payload(item: &Item, catalog: bool) -> Option<(u64, String)> {
    payload(item, catalog)?.err().map(|why| (item.position, why))
}

fn with_payloads(mut report: Report, bad: Vec<(u64, String)>) -> Report {
    // A copy outside its folder does not tell whose payloads it holds.
    let files_own = matches!(report.kind, FileKind::Segment | FileKind::Snapshot | FileKind::Base);
    for (position, why) in bad.into_iter().filter(|_| files_own).take(100) {
        report.notes.push(format!("at {position} a payload whose checksum is right means nothing here: {why}"));
    }
    report
}

/// Every record of a batch, as JSON.
fn records(item: &Item) -> Vec<Value> {
    let Some(Ok(batch)) = item.payload.clone().map(RecordBatch::stored) else { return Vec::new() };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match batch.records(STORED_DECOMPRESSED_BYTES_MAX) {
        Err(error) => vec![json!({ "error": error.to_string() })],
        Ok(records) => records
            .map(|record| match record {
                Err(error) => json!({ "error": error.to_string() }),
                Ok(record) => {
                    let header = |header: crate::record_batch::Header| {
                        json!([text(&header.key), header.value.as_deref().map(text)])
                    };
                    json!({
                        "offset": record.offset,
                        "timestamp": record.timestamp,
                        "key": record.key.as_deref().map(text),
                        "value": record.value.as_deref().map(text),
                        "headers": record.headers.iter().map(header).collect::<Vec<_>>(),
                    })
                }
            })
            .collect(),
    }
}

fn wants_records(item: &Item, with_records: bool, catalog: bool) -> bool {
    let is_records = |(name, value): &(&str, Field)| *name == "kind" && *value == Field::from("records");
    with_records && !catalog && item.what == "frame" && item.fields.iter().any(is_records)
}

fn json_item(item: &Item, with_records: bool, catalog: bool) -> String {
    let mut line = Map::new();
    line.insert("what".into(), item.what.into());
    line.insert("position".into(), item.position.into());
    line.insert("bytes".into(), item.bytes.into());
    for (name, value) in &item.fields {
        line.insert((*name).into(), serde_json::to_value(value).unwrap_or_default());
    }
    match payload(item, catalog) {
        Some(Ok(Value::Object(meaning))) => line.extend(meaning),
        Some(Err(why)) => drop(line.insert("payload".into(), why.into())),
        _ => {}
    }
    if wants_records(item, with_records, catalog) {
        line.insert("batch_records".into(), records(item).into());
    }
    Value::Object(line).to_string()
}

fn text_item(item: &Item, with_records: bool, catalog: bool) -> String {
    let mut line = format!("{:>12}  {}", item.position, item.what);
    for (name, value) in &item.fields {
        // Writing to a String cannot fail.
        let _ = write!(line, "  {name}={value}");
    }
    match payload(item, catalog) {
        Some(Ok(Value::Object(meaning))) => {
            for (name, value) in meaning {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let _ = write!(line, "  {name}={value}");
            }
        }
        Some(Err(why)) => drop(write!(line, "  payload=({why})")),
        _ => {}
    }
    if wants_records(item, with_records, catalog) {
        for record in records(item) {
            let _ = write!(line, "\n              {record}");
        }
    }
    line
}

fn json_report(path: &Path, report: &Report) -> Value {
    let mut line = serde_json::to_value(report).unwrap_or_default();
    if let Some(line) = line.as_object_mut() {
        line.insert("what".into(), "report".into());
        line.insert("file".into(), path.display().to_string().into());
        line.insert("sound".into(), report.is_sound().into());
    }
    line
}

fn text_report(path: &Path, report: &Report) -> String {
    let verdict = match report.is_sound() {
        Some(true) => "sound".to_owned(),
        Some(false) => format!("NOT SOUND from byte {} on", report.sound_bytes),
        None => "not judged".to_owned(),
    };
    let mut text = format!("{}: {}, {} bytes: {verdict}", path.display(), report.kind.as_str(), report.file_bytes);
    if !report.summary.is_empty() {
        let _ = write!(text, "; {}", report.summary);
    }
    for problem in &report.problems {
        let _ = write!(text, "\n    at {}: {}", problem.position, problem.why);
    }
    if report.more_problems > 0 {
        let _ = write!(text, "\n    and {} more", report.more_problems);
    }
    for note in &report.notes {
        let _ = write!(text, "\n    note: {note}");
    }
    text
}
