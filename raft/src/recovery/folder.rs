//! What stands in a replica's folder.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{Disk, is_rot, patiently, read_file};
use crate::error::{OpenError, ReadError};
use crate::journal::SegmentName;
use crate::log::base::{BASE_BYTES_MAX, Base};
use crate::log::segment;

/// Why a replica's log is not known.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Its files are not what was acknowledged: it is given up, for good.
    Corrupt(String),
    /// They could not be read just now.
    Unread(Unread),
}

/// A file that could not be read just now (too many open files, or no permission): the directory is not opened this time.
#[derive(Debug)]
pub(super) struct Unread {
    path: PathBuf,
    error: io::Error,
}

impl Trouble {
    /// Nothing is wrong with the files, for all that is known.
    pub(super) fn unread(path: &Path, error: io::Error) -> Self {
        Self::Unread(Unread { path: path.to_owned(), error })
    }

    pub(super) fn reading(path: &Path, error: ReadError) -> Self {
        match error {
            ReadError::Io(error) if !is_rot(&error) => Self::unread(path, error),
            ReadError::Io(error) => Self::Corrupt(format!("{}: {error}", path.display())),
            // It names the file.
            error => Self::Corrupt(error.to_string()),
        }
    }

    /// What is wrong with the files, if that is it.
    pub(super) fn corrupt(self) -> Result<String, Unread> {
        match self {
            Self::Corrupt(why) => Ok(why),
            Self::Unread(unread) => Err(unread),
        }
    }
}

impl From<Unread> for Trouble {
    fn from(unread: Unread) -> Self {
        Self::Unread(unread)
    }
}

impl From<Unread> for OpenError {
    fn from(Unread { path, error }: Unread) -> Self {
        Self::Io { path, error }
    }
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Corrupt(why)
    }
}

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
    pub(super) async fn base(&self, disk: &dyn Disk, name: &str) -> Result<Base, Trouble> {
        let path = self.dir.join(name);
        let read = patiently(|| read_file(disk, &path, BASE_BYTES_MAX)).await;
        let bytes = read.map_err(|error| Trouble::reading(&path, error.into()))?;
        Base::decode(&bytes).map_err(|error| Trouble::Corrupt(format!("{}: {error}", path.display())))
    }
}
