//! The files that are read whole: index, base and snapshot, checkpoint, identity. One checksum covers each, so a bad one says no
//! more than that; where in it the damage is cannot be told.

use std::io;

use bytes::Bytes;

use super::{FileKind, Item, Subject, membership_text, segment_name};
use crate::checkpoint::{CHECKPOINT_BYTES_MAX, Checkpoint, CheckpointEntry, CheckpointError, ReplicaState};
use crate::data_dir::Identity;
use crate::log::base::{BASE_BYTES_MAX, Base};
use crate::log::index::{INDEX_BYTES_MAX, SparseIndex};

/// The whole file; `None` if that is a problem, which is then noted.
async fn whole(subject: &mut Subject<'_>, bytes_max: u64) -> Option<Bytes> {
    let len = subject.window.len();
    if len > bytes_max {
        subject.report.problem(0, format!("its {len} bytes are more than the {bytes_max} that such a file may have"));
        return None;
    }
    match subject.window.at(0, len).await {
        Ok(bytes) if bytes.len() as u64 == len => Some(bytes),
        Ok(bytes) => {
            subject.report.problem(bytes.len() as u64, "it became shorter while it was read");
            None
        }
        Err(error) => {
            subject.report.problem(0, error);
            None
        }
    }
}

fn sound(subject: &mut Subject<'_>, summary: String) {
    subject.report.sound_bytes = subject.window.len();
    subject.report.summary = summary;
}

pub(super) async fn index(subject: &mut Subject<'_>) -> io::Result<()> {
    let Some(bytes) = whole(subject, INDEX_BYTES_MAX).await else { return Ok(()) };
    let (segment, index) = match SparseIndex::parse(&bytes, 1) {
        Ok(parsed) => parsed,
        Err(why) => {
            subject.report.problem(0, why);
            subject.report.note(
                "an index that is not sound is made anew from its segment; a power cut may leave the newest one so",
            );
            return Ok(());
        }
    };
    if let Some(name) = segment_name(subject.name()).filter(|name| *name != segment) {
        let why = format!(
            "it is the index of {}-{}, not of {}-{}",
            segment.first_index, segment.file_no, name.first_index, name.file_no
        );
        subject.report.problem(16, why);
    }
    for (at, entry) in index.entries().iter().enumerate() {
        let fields = vec![
            ("index", entry.index.into()),
            ("base_offset", entry.base_offset.into()),
            ("segment_position", entry.position.into()),
            ("max_timestamp", entry.max_timestamp.into()),
        ];
        subject.show(Item { what: "entry", position: 40 + 32 * at as u64, bytes: 32, fields, payload: None })?;
    }
    let summary = format!("{} entries over {} bytes of its segment", index.entries().len(), index.end());
    sound(subject, summary);
    Ok(())
}

pub(super) async fn base(subject: &mut Subject<'_>) -> io::Result<()> {
    let Some(bytes) = whole(subject, BASE_BYTES_MAX).await else { return Ok(()) };
    let base = match Base::decode(&bytes) {
        Ok(base) => base,
        Err(error) => {
            subject.report.problem(0, error);
            return Ok(());
        }
    };
    let next = base.last.map_or(0, |last| last.index + 1);
    match segment_name(subject.name()) {
        Some(name) if subject.report.kind == FileKind::Base && name.first_index != next => {
            let why = format!("it says how the log stood before entry {next}, not before {}", name.first_index);
            subject.report.problem(24, why);
        }
        _ => {}
    }
    let fields = vec![
        ("last", base.last.into()),
        ("next_offset", base.next_offset.into()),
        ("append_state_bytes", base.append_state.as_ref().map(Bytes::len).into()),
        ("membership_at", (*base.membership.log_id()).into()),
        ("membership", membership_text(&base.membership.membership().into()).into()),
        ("applied_state_bytes", base.application.len().into()),
    ];
    let payload = (!base.application.is_empty()).then(|| base.application.clone());
    subject.show(Item { what: "base", position: 0, bytes: bytes.len() as u64, fields, payload })?;
    let state = match base.application.len() {
        0 => String::new(),
        bytes => format!(", with {bytes} bytes of applied state"),
    };
    sound(subject, format!("how the log stood before entry {next}, at offset {}{state}", base.next_offset));
    Ok(())
}

pub(super) async fn checkpoint(subject: &mut Subject<'_>) -> io::Result<()> {
    let Some(bytes) = whole(subject, CHECKPOINT_BYTES_MAX).await else { return Ok(()) };
    let checkpoint = match Checkpoint::decode(&bytes) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            let at = if matches!(error, CheckpointError::Version(_)) { 8 } else { 0 };
            subject.report.problem(at, error);
            return Ok(());
        }
    };
    let mut position = 40;
    for entry in &checkpoint.replicas {
        let bytes = 28 + entry.state.len() as u64;
        match entry.decode_state() {
            Ok(state) => replica(subject, position, bytes, entry, &state)?,
            Err(error) => {
                subject.report.problem(position, format!("group {} replica {}: {error}", entry.group, entry.replica));
            }
        }
        position += bytes;
    }
    let (replicas, lsn) = (checkpoint.replicas.len(), checkpoint.lsn.0);
    sound(subject, format!("{replicas} replicas of directory {:032x} as of LSN {lsn}", checkpoint.directory.0));
    Ok(())
}

fn replica(
    subject: &mut Subject<'_>,
    position: u64,
    bytes: u64,
    entry: &CheckpointEntry,
    state: &ReplicaState,
) -> io::Result<()> {
    let fields = vec![
        ("group", entry.group.0.into()),
        ("replica", entry.replica.0.into()),
        ("lsn", entry.lsn.0.into()),
        ("vote", state.vote.into()),
        ("purged", state.purged.into()),
        ("committed", state.committed.into()),
        ("last", state.last.into()),
        ("log_start_offset", state.log_start_offset.into()),
        ("next_offset", state.next_offset.into()),
        ("segments", state.segments.len().into()),
        ("snapshot", state.snapshot.as_ref().map(|(name, _)| name.clone()).into()),
        ("corrupt", state.corrupt.clone().into()),
    ];
    subject.show(Item { what: "replica", position, bytes, fields, payload: None })?;
    for segment in &state.segments {
        let fields = vec![
            ("group", entry.group.0.into()),
            ("replica", entry.replica.0.into()),
            ("first_index", segment.name.first_index.into()),
            ("file_no", segment.name.file_no.into()),
            ("last", segment.last.into()),
            ("base_offset", segment.base_offset.into()),
            ("next_offset", segment.next_offset.into()),
            ("segment_bytes", segment.bytes.into()),
            ("max_timestamp", segment.max_timestamp.into()),
        ];
        subject.show(Item { what: "segment", position, bytes, fields, payload: None })?;
    }
    Ok(())
}

pub(super) async fn identity(subject: &mut Subject<'_>) -> io::Result<()> {
    let Some(bytes) = whole(subject, 4096).await else { return Ok(()) };
    let identity = match Identity::decode(&bytes, subject.path) {
        Ok(identity) => identity,
        Err(error) => {
            subject.report.problem(0, error);
            return Ok(());
        }
    };
    let mut fields = vec![
        ("broker", identity.broker.0.into()),
        ("cluster", format!("{:032x}", identity.cluster.0).into()),
        ("directory", format!("{:032x}", identity.directory.0).into()),
        ("epoch", identity.epoch.into()),
    ];
    fields.extend(identity.former.iter().map(|former| ("former_cluster", format!("{:032x}", former.0).into())));
    subject.show(Item { what: "identity", position: 0, bytes: bytes.len() as u64, fields, payload: None })?;
    sound(subject, format!("broker {}, epoch {}", identity.broker, identity.epoch));
    Ok(())
}
