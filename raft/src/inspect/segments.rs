//! A segment, frame by frame. Behind something that is no frame the next sound one is looked for, so that all that is good is shown.

use std::io;

use super::{Item, Subject, membership_text, segment_name};
use crate::checkpoint::{CHECKPOINT_BYTES_MAX, CHECKPOINT_FILE, Checkpoint, SegmentState};
use crate::disk::read_file;
use crate::log::entry::decode_membership;
use crate::log::frame::{FRAME_HEADER_BYTES, FRAME_VERSION, Frame, FrameHeader, FrameKind};

/// What the frames read so far come to.
#[derive(Default)]
struct Progress {
    last: Option<FrameHeader>,
    first_index: Option<u64>,
    first_offset: u64,
    frames: u64,
    records: u64,
    /// Behind the last sound frame.
    end: u64,
}

/// What the checkpoint says about this segment.
enum Vouched {
    /// There is none, or it cannot be read, or the file does not stand where it was written.
    Unknown,
    /// The checkpoint does not name it: younger than it, or no longer part of the log.
    Unnamed,
    Known(SegmentState),
}

pub(super) async fn inspect(subject: &mut Subject<'_>) -> io::Result<()> {
    let vouched = vouched(subject).await;
    let mut progress = Progress::default();
    let mut position = 0;
    while position < subject.window.len() {
        match frame_at(subject, position).await {
            Ok(frame) => {
                if let Err(why) = follows(subject, &progress, &frame.header) {
                    subject.report.problem(position, why);
                }
                show(subject, position, &frame)?;
                progress.take(&frame.header);
                position += frame.header.frame_bytes();
                progress.end = position;
                if subject.report.problems.is_empty() {
                    subject.report.sound_bytes = position;
                }
            }
            Err(bad) => {
                let next = after_bad(subject, position, &bad).await;
                if !judge(subject, &vouched, position, next, &bad).await {
                    break;
                }
                position = next.unwrap_or(subject.window.len());
                // What is missing is said; what follows is judged by itself.
                progress.last = None;
            }
        }
    }
    conclude(subject, &vouched, &progress);
    Ok(())
}

struct Bad {
    why: String,
    /// A sound header says where the frame ends.
    next: Option<u64>,
}

async fn frame_at(subject: &mut Subject<'_>, position: u64) -> Result<Frame, Bad> {
    let bad = |why: String| Bad { why, next: None };
    let header = subject.window.at(position, FRAME_HEADER_BYTES as u64).await;
    let header = FrameHeader::decode(&header.map_err(|error| bad(error.to_string()))?);
    let header = header.map_err(|error| bad(error.to_string()))?;
    let bytes = subject.window.at(position, header.frame_bytes()).await;
    let next = Some(position + header.frame_bytes()).filter(|next| *next <= subject.window.len());
    let bad = |why: String| Bad { why, next };
    let frame = Frame::decode(&mut bytes.map_err(|error| bad(error.to_string()))?);
    frame.map_err(|error| bad(error.to_string()))
}

/// Whether a sound frame belongs behind those before it.
fn follows(subject: &Subject<'_>, progress: &Progress, header: &FrameHeader) -> Result<(), String> {
    let FrameHeader { index, term, base_offset, .. } = *header;
    let named = segment_name(subject.name()).map(|name| name.first_index);
    match (&progress.last, named) {
        (Some(last), _) if index != last.index.wrapping_add(1) || term < last.term => {
            Err(format!("entry {term}.{index} stands behind entry {}.{}", last.term, last.index))
        }
        (Some(last), _) if base_offset != last.next_offset() => {
            Err(format!("entry {index} has base offset {base_offset}, not {}", last.next_offset()))
        }
        (None, Some(named)) if progress.frames == 0 && index != named && subject.report.problems.is_empty() => {
            Err(format!("it begins with entry {index}, not {named}"))
        }
        _ => Ok(()),
    }
}

fn show(subject: &mut Subject<'_>, position: u64, frame: &Frame) -> io::Result<()> {
    let header = &frame.header;
    let mut fields = vec![
        ("kind", kind(header.kind).into()),
        ("term", header.term.into()),
        ("index", header.index.into()),
        ("base_offset", header.base_offset.into()),
        ("offset_span", header.offset_span.into()),
        ("records", header.record_count.into()),
        ("max_timestamp", header.max_timestamp.into()),
        ("payload_bytes", header.payload_bytes.into()),
    ];
    if header.kind == FrameKind::Membership {
        match decode_membership(frame) {
            Ok(membership) => fields.push(("membership", membership_text(&(&membership).into()).into())),
            Err(error) => subject.report.problem(position, error),
        }
    }
    let payload = matches!(header.kind, FrameKind::Records | FrameKind::Void).then(|| frame.payload.clone());
    subject.show(Item { what: "frame", position, bytes: header.frame_bytes(), fields, payload })
}

fn kind(kind: FrameKind) -> &'static str {
    match kind {
        FrameKind::Records => "records",
        FrameKind::Void => "void",
        FrameKind::Blank => "blank",
        FrameKind::Membership => "membership",
    }
}

impl Progress {
    fn take(&mut self, header: &FrameHeader) {
        if self.frames == 0 {
            (self.first_index, self.first_offset) = (Some(header.index), header.base_offset);
        }
        self.frames += 1;
        self.records += u64::from(header.record_count);
        self.last = Some(*header);
    }
}

/// Where the next sound frame begins behind a bad one.
async fn after_bad(subject: &mut Subject<'_>, position: u64, bad: &Bad) -> Option<u64> {
    if let Some(next) = bad.next {
        return Some(next).filter(|next| *next < subject.window.len());
    }
    let mut at = position + 1;
    loop {
        let chunk = subject.window.at(at, 1 << 20).await.ok()?;
        if chunk.len() < FRAME_HEADER_BYTES {
            return None;
        }
        let starts = chunk.windows(FRAME_HEADER_BYTES).position(|bytes| {
            // Cheap first: a checksum for every byte of a file is not.
            bytes[0] == FRAME_VERSION && bytes[2..4] == [0, 0] && FrameHeader::decode(bytes).is_ok()
        });
        if let Some(found) = starts {
            return Some(at + found as u64);
        }
        at += (chunk.len() - FRAME_HEADER_BYTES + 1) as u64;
    }
}

/// Says what a place without a frame means. Returns whether to go on behind it.
async fn judge(subject: &mut Subject<'_>, vouched: &Vouched, position: u64, next: Option<u64>, bad: &Bad) -> bool {
    let until = next.unwrap_or(subject.window.len());
    match vouched {
        Vouched::Known(known) if position >= known.bytes => {
            let behind = subject.window.next_nonzero(position).await;
            if !matches!(behind, Ok(None)) {
                subject.report.note(format!(
                    "from {position} on there is no sound frame; the checkpoint vouches for the first {} bytes only, \
                     and the journal for what came later",
                    known.bytes
                ));
            }
            return false;
        }
        _ => {}
    }
    let zeros = matches!(subject.window.next_nonzero(position).await, Ok(None));
    let reserved = zeros && !matches!(vouched, Vouched::Known(_));
    if reserved {
        let bytes = subject.window.len() - position;
        subject.report.note(format!("the last {bytes} bytes are zeros: room that was reserved and not used"));
        return false;
    }
    let why = if next.is_some() { format!("{}; the next sound frame is at {until}", bad.why) } else { bad.why.clone() };
    subject.report.problem(position, why);
    next.is_some()
}

fn conclude(subject: &mut Subject<'_>, vouched: &Vouched, progress: &Progress) {
    match vouched {
        Vouched::Known(known) => {
            if subject.window.len() < known.bytes {
                let why = format!("it has {} bytes, the checkpoint vouches for {}", subject.window.len(), known.bytes);
                subject.report.problem(subject.window.len(), why);
            } else if progress.end > known.bytes {
                subject.report.note(format!(
                    "the checkpoint vouches for the first {} bytes; what follows came later, or was taken away",
                    known.bytes
                ));
            }
        }
        Vouched::Unnamed => subject.report.note("the checkpoint does not name it: younger, or no longer in the log"),
        Vouched::Unknown => {}
    }
    let until = |to: Option<u64>| to.map_or("none".to_owned(), |to| to.to_string());
    subject.report.summary = match progress.first_index {
        None => "no frames".to_owned(),
        Some(first) => format!(
            "{} frames, entries {first} to {}, offsets {} up to {}, {} records",
            progress.frames,
            until(progress.last.map(|last| last.index)),
            progress.first_offset,
            until(progress.last.map(|last| last.next_offset())),
            progress.records
        ),
    };
}

async fn vouched(subject: &Subject<'_>) -> Vouched {
    let known = async {
        let (key, name) = (subject.replica()?, segment_name(subject.name())?);
        let path = subject.root(2)?.join(CHECKPOINT_FILE);
        let bytes = read_file(subject.disk, &path, CHECKPOINT_BYTES_MAX).await.ok()?;
        let checkpoint = Checkpoint::decode(&bytes).ok()?;
        let entry = checkpoint.replicas.into_iter().find(|entry| (entry.group, entry.replica) == key);
        let Some(entry) = entry else { return Some(Vouched::Unnamed) };
        let state = entry.decode_state().ok()?;
        let found = state.segments.into_iter().find(|segment| segment.name == name);
        Some(found.map_or(Vouched::Unnamed, Vouched::Known))
    };
    known.await.unwrap_or(Vouched::Unknown)
}
