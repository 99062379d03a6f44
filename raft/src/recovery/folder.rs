//! What stands in a replica's folder.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use crate::disk::{Disk, read_file};
use crate::error::OpenError;
use crate::journal::SegmentName;
use crate::log::base::{BASE_BYTES_MAX, Base};
use crate::log::segment;

/// A replica's folder, listed once.
pub(super) struct Folder {
    pub(super) dir: PathBuf,
    /// Lengths of the segment files, by first index and file number.
    segments: BTreeMap<(u64, u64), u64>,
    /// Every file.
    pub(super) names: Vec<String>,
}

impl Folder {
    /// Lists a folder. One that a crash has kept from lasting is made anew.
    pub(super) async fn list(disk: &dyn Disk, dir: PathBuf) -> Result<Self, OpenError> {
        let entries = match disk.read_dir(&dir).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                disk.create_dir_all(&dir).await.map(|()| Vec::new())
            }
            other => other,
        };
        let entries = entries.map_err(|error| OpenError::Io { path: dir.clone(), error })?;
        let mut folder = Self { dir, segments: BTreeMap::new(), names: Vec::new() };
        for entry in entries {
            if let Some((name, "segment")) = segment::parse(&entry.name) {
                folder.segments.insert((name.first_index, name.file_no), entry.bytes);
            }
            folder.names.push(entry.name);
        }
        Ok(folder)
    }

    /// Length of a segment's file; `None` if it is not there.
    pub(super) fn segment_bytes(&self, name: SegmentName) -> Option<u64> {
        self.segments.get(&(name.first_index, name.file_no)).copied()
    }

    /// File numbers below this one have been used.
    pub(super) fn next_file_no(&self) -> u64 {
        let numbers = self.names.iter().filter_map(|name| segment::parse(name)).map(|(name, _)| name.file_no + 1);
        numbers.max().unwrap_or(0)
    }

    /// Snapshot files, newest first.
    pub(super) fn snapshots(&self) -> impl Iterator<Item = &String> {
        // Their names sort by index, and so did the listing.
        self.names.iter().rev().filter(|name| name.starts_with("snapshot-") && !name.ends_with(".tmp"))
    }

    /// Bases beside segments that begin at this index, whether or not those are there.
    pub(super) fn bases_at(&self, first_index: u64) -> impl Iterator<Item = &String> {
        self.names.iter().filter(move |name| {
            segment::parse(name).is_some_and(|(name, kind)| name.first_index == first_index && kind == "base")
        })
    }

    /// Reads a base or a snapshot. The error says why it cannot be used.
    pub(super) async fn base(&self, disk: &dyn Disk, name: &str) -> Result<Base, String> {
        let path = self.dir.join(name);
        let read = read_file(disk, &path, BASE_BYTES_MAX).await;
        let bytes = read.map_err(|error| format!("{}: {error}", path.display()))?;
        Base::decode(&bytes).map_err(|error| format!("{}: {error}", path.display()))
    }
}
