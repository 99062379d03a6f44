//! Bytes that change on a broker's disk, or are missing: chosen by kind of file, so that small kinds are hit as often as large ones.
//!
//! A bit is flipped where there is something: files are pre-written with zeros, and a flipped bit behind a file's end of use is no rot
//! that anybody could notice. It knows the names in a data directory and no format.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::cluster::disk::files_below;
use crate::random::Random;

/// The most bytes of a file that are looked at.
const LOOK_BYTES_MAX: u64 = 64 << 20;

/// What to do to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rot {
    /// Flip a bit or two.
    Flip,
    /// Cut its end off.
    Truncate,
}

/// The kinds of files: a name and how to know one by its path below the data directory.
type Class = (&'static str, fn(&str) -> bool);

const CLASSES: &[Class] = &[
    ("segment", |path| path.ends_with(".segment")),
    ("journal", |path| path.ends_with(".journal")),
    ("index", |path| path.ends_with(".index")),
    ("base", |path| path.ends_with(".base")),
    ("snapshot", |path| path.contains("snapshot")),
    ("checkpoint", |path| path == "checkpoint"),
    ("catalog", |path| path.starts_with("catalog/")),
];

/// The kinds that hold records.
pub const LOG: &[&str] = &["segment", "journal"];
/// The kinds that say what was before the records that are left.
pub const BEFORE: &[&str] = &["snapshot", "base"];

/// The kinds without which a broker may refuse to start: its votes are in there, and what was acknowledged last. All others it can do
/// without, make anew or fetch.
const INDISPENSABLE: &[&str] = &["journal", "checkpoint"];

/// What a folder is called whose replica is gone: kept for a person, or on its way out. Nobody reads in it any more, and what rots there
/// is no fault.
const DEAD: [&str; 2] = ["quarantined-", "deleted-"];

fn is_dead(path: &Path) -> bool {
    path.iter().any(|name| DEAD.iter().any(|dead| name.to_string_lossy().starts_with(dead)))
}

/// Whether a broker may refuse to start on a directory in which a file of this kind rotted.
pub fn may_cost_the_directory(kind: &str) -> bool {
    INDISPENSABLE.contains(&kind)
}

/// What was done to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotten {
    /// Of which kind it is.
    pub kind: &'static str,
    /// Its path below the data directory.
    pub path: PathBuf,
    /// What was done, seen by reading it back.
    pub done: String,
}

impl fmt::Display for Rotten {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}: {}", self.kind, self.path.display(), self.done)
    }
}

/// Does it to one file below `data`, of one of these kinds (any, if none are named).
pub fn rot(data: &Path, rot: Rot, kinds: &[&str], random: &mut Random) -> io::Result<Rotten> {
    let files = files_below(data)?;
    let of_class = |class: &Class| -> Vec<&PathBuf> {
        let fits = |path: &&PathBuf| {
            path.strip_prefix(data).is_ok_and(|path| !is_dead(path) && (class.1)(&path.to_string_lossy()))
        };
        files.iter().filter(fits).collect()
    };
    let mut classes: Vec<&Class> =
        CLASSES.iter().filter(|class| kinds.is_empty() || kinds.contains(&class.0)).collect();
    random.shuffle(&mut classes);
    for class in classes {
        let mut of_class = of_class(class);
        random.shuffle(&mut of_class);
        for path in of_class {
            let done = match rot_file(path, rot, random) {
                // Of a broker that runs, files come and go.
                Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::UnexpectedEof].contains(&error.kind()) => {
                    continue;
                }
                done => done?,
            };
            if let Some(done) = done {
                return Ok(Rotten { kind: class.0, path: path.strip_prefix(data).unwrap_or(path).to_owned(), done });
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "there is no file with anything in it"))
}

/// `None`: nothing is in it.
fn rot_file(path: &Path, rot: Rot, random: &mut Random) -> io::Result<Option<String>> {
    let file = File::options().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let mut bytes = vec![0; usize::try_from(length.min(LOOK_BYTES_MAX)).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    let used: Vec<usize> = bytes.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at).collect();
    let Some(at) = random.pick(&used).copied() else { return Ok(None) };
    match rot {
        Rot::Truncate => {
            file.set_len(at as u64)?;
            file.sync_all()?;
            let now = file.metadata()?.len();
            Ok(Some(format!("cut from {length} to {now} bytes")))
        }
        Rot::Flip => {
            let mut done = Vec::new();
            for at in
                [Some(at), random.percent(50).then(|| random.pick(&used).copied()).flatten()].into_iter().flatten()
            {
                let (before, mut after) = (bytes[at], [0]);
                bytes[at] ^= 1 << random.below(8);
                file.write_all_at(&bytes[at..=at], at as u64)?;
                file.sync_all()?;
                file.read_exact_at(&mut after, at as u64)?;
                done.push(format!("byte {at} of {length} was {before:#04x} and is {:#04x}", after[0]));
            }
            Ok(Some(done.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn data() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("groups/1-2")).unwrap();
        fs::create_dir_all(dir.path().join("journal")).unwrap();
        let mut segment = vec![7; 100];
        segment.resize(4096, 0);
        fs::write(dir.path().join("groups/1-2/0-1.segment"), segment).unwrap();
        fs::write(dir.path().join("journal/1-1.journal"), vec![0; 4096]).unwrap();
        fs::write(dir.path().join("checkpoint"), b"checkpoint").unwrap();
        dir
    }

    #[test]
    fn a_flipped_bit_lies_where_there_is_something() {
        let dir = data();
        let path = dir.path().join("groups/1-2/0-1.segment");
        let before = fs::read(&path).unwrap();
        let done = rot(dir.path(), Rot::Flip, LOG, &mut Random::new(1)).unwrap().to_string();
        assert!(done.starts_with("segment groups/1-2/0-1.segment: byte "), "{done}");
        let after = fs::read(&path).unwrap();
        let changed: Vec<usize> = (0..4096).filter(|at| before[*at] != after[*at]).collect();
        assert!((1..=2).contains(&changed.len()) && changed.iter().all(|at| *at < 100), "{changed:?}");
    }

    #[test]
    fn a_cut_takes_something_away() {
        let dir = data();
        let done = rot(dir.path(), Rot::Truncate, &["checkpoint"], &mut Random::new(2)).unwrap();
        assert!(fs::metadata(dir.path().join("checkpoint")).unwrap().len() < 10, "{done}");
    }

    #[test]
    fn every_kind_of_file_is_hit_in_time() {
        let mut hit: Vec<&str> = Vec::new();
        for seed in 0..20 {
            let done = rot(data().path(), Rot::Flip, &[], &mut Random::new(seed)).unwrap();
            hit.push(done.kind);
        }
        assert!(hit.contains(&"segment") && hit.contains(&"checkpoint"), "{hit:?}");
        assert!(rot(data().path(), Rot::Flip, &["journal"], &mut Random::new(1)).is_err());
    }

    #[test]
    fn what_rots_in_files_of_replicas_that_are_gone_is_no_fault() {
        let dir = data();
        let groups = dir.path().join("groups");
        fs::remove_dir_all(groups.join("1-2")).unwrap();
        for dead in ["quarantined-1-2", "quarantined-1-2-1", "deleted-3-4"] {
            fs::create_dir(groups.join(dead)).unwrap();
            fs::write(groups.join(dead).join("0-1.segment"), [7; 100]).unwrap();
        }
        for seed in 0..20 {
            let nothing = rot(dir.path(), Rot::Flip, &["segment"], &mut Random::new(seed));
            assert!(nothing.is_err(), "{nothing:?}");
        }
        fs::create_dir(groups.join("5-6")).unwrap();
        fs::write(groups.join("5-6/0-1.segment"), [7; 100]).unwrap();
        for seed in 0..20 {
            let done = rot(dir.path(), Rot::Flip, &["segment"], &mut Random::new(seed)).unwrap();
            assert_eq!(done.path, Path::new("groups/5-6/0-1.segment"));
        }
    }

    #[test]
    fn only_the_journal_and_the_checkpoint_may_cost_a_directory() {
        let may: Vec<&str> = CLASSES.iter().map(|class| class.0).filter(|kind| may_cost_the_directory(kind)).collect();
        assert_eq!(may, ["journal", "checkpoint"]);
    }
}
