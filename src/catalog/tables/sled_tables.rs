//! The tables in sled. The only module that names it.
//!
//! sled 0.34 "flushes" with `sync_file_range`, which a power cut can undo; that is why nothing but a cache is kept here.
//! A folder that cannot be opened or read is set aside by removing it: the rows come back from snapshot and log.

use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use pontoon_raft::codec;

use super::{Batch, Rows, Stamp, Tables};

/// How often, and how far apart, a held lock is tried.
const LOCK_ATTEMPTS: u32 = 200;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// Key of the stamp; no row's key begins with 0.
const STAMP_KEY: &[u8] = b"\0stamp";
/// sled's page cache, in bytes: the rows are read once, at the start.
const CACHE_BYTES: u64 = 8 << 20;
/// How often sled writes out what it buffers, in ms.
const FLUSH_MS: u64 = 1000;

/// The tables in a sled folder.
pub struct SledTables {
    path: PathBuf,
    /// `None` before the first use, after [`Tables::close`], and if the folder cannot be opened at all.
    db: Mutex<Slot>,
    /// Why the folder was removed when it was opened.
    rotten: Mutex<Option<io::Error>>,
}

enum Slot {
    Unopened,
    Open(sled::Db),
    Closed,
}

impl SledTables {
    /// Tables in this folder, opened at the first use: the data directory is locked by then.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), db: Mutex::new(Slot::Unopened), rotten: Mutex::default() }
    }

    fn db(&self) -> io::Result<sled::Db> {
        let mut slot = self.db.lock();
        if let Slot::Open(db) = &*slot {
            return Ok(db.clone());
        }
        if let Slot::Closed = *slot {
            return Err(io::Error::other("the catalog's tables are closed"));
        }
        let db = match open(&self.path) {
            Ok(db) => db,
            // Somebody else's, not broken.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the catalog's tables cannot be opened; rebuilding them");
                remove(&self.path)?;
                let db = open(&self.path)?;
                *self.rotten.lock() = Some(error);
                db
            }
        };
        *slot = Slot::Open(db.clone());
        Ok(db)
    }
}

fn open(path: &Path) -> io::Result<sled::Db> {
    // A damaged folder can make sled panic; that too only means that the rows are rebuilt.
    let opening = || sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(Some(FLUSH_MS)).open();
    // A closed sled lets go of its lock only when its own threads have ended: in use is not broken.
    for _ in 0..LOCK_ATTEMPTS {
        match std::panic::catch_unwind(opening) {
            Ok(Err(sled::Error::Io(error))) if error.to_string().contains("could not acquire lock") => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Ok(result) => return result.map_err(other),
            Err(_) => return Err(io::Error::other("sled panicked")),
        }
    }
    Err(io::Error::new(io::ErrorKind::WouldBlock, "its lock is held"))
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn other(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        error => io::Error::other(error.to_string()),
    }
}

impl Tables for SledTables {
    fn load(&self) -> io::Result<Option<(Stamp, Rows)>> {
        match guarded(|| self.load_all()).flatten() {
            // Not opened at all: it holds no rows now, and nobody knows what it held.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::StorageFull) => Ok(None),
            loaded => loaded,
        }
    }

    fn write(&self, batch: Batch) -> io::Result<()> {
        guarded(|| self.write_all(batch))?
    }

    fn clear(&self) -> io::Result<()> {
        guarded(|| self.db()?.clear().map_err(other))?
    }

    fn blocks(&self) -> bool {
        true
    }

    fn close(&self) {
        if let Slot::Open(db) = std::mem::replace(&mut *self.db.lock(), Slot::Closed) {
            if let Err(error) = guarded(|| db.flush()).and_then(|flushed| flushed.map_err(other)) {
                tracing::warn!(path = %self.path.display(), %error, "the catalog's tables were not flushed");
            }
            drop_guarded(db, &self.path);
        }
    }
}

/// sled may panic on rot in what it reads. That costs the rows, which are made anew, and must not cost the broker.
fn guarded<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    done.map_err(|_| io::Error::other("sled panicked"))
}

impl SledTables {
    fn load_all(&self) -> io::Result<Option<(Stamp, Rows)>> {
        let mut rows = Rows::new();
        let mut stamp = None;
        let db = self.db()?;
        if let Some(rotten) = self.rotten.lock().take() {
            return Err(rotten);
        }
        for item in db.iter() {
            let (key, value) = item.map_err(other)?;
            match &*key {
                STAMP_KEY => stamp = Some(codec::decode(&value).map_err(io::Error::other)?),
                _ => {
                    rows.insert(key.to_vec(), value.to_vec());
                }
            }
        }
        match stamp {
            Some(stamp) => Ok(Some((stamp, rows))),
            None if rows.is_empty() => Ok(None),
            None => Err(io::Error::other("rows without a stamp")),
        }
    }

    fn write_all(&self, batch: Batch) -> io::Result<()> {
        let db = self.db()?;
        let mut changes = sled::Batch::default();
        if batch.replace {
            // Within the same batch: rows that come again are inserted after they are removed.
            for key in db.iter().keys() {
                changes.remove(key.map_err(other)?);
            }
        }
        for (key, value) in batch.rows {
            match value {
                Some(value) => changes.insert(key, value),
                None => changes.remove(key),
            }
        }
        changes.insert(STAMP_KEY, codec::encode(&batch.stamp));
        db.apply_batch(changes).map_err(other)
    }
}

impl Drop for SledTables {
    fn drop(&mut self) {
        if let Slot::Open(db) = std::mem::replace(self.db.get_mut(), Slot::Closed) {
            drop_guarded(db, &self.path);
        }
    }
}

/// sled panics while it is dropped if its last write fails, which must not take the place of the broker's own report of a
/// failed disk. What it could not write is rebuilt.
fn drop_guarded<T>(held: T, path: &Path) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(held))).is_err() {
        tracing::warn!(path = %path.display(), "the catalog's tables could not be closed");
    }
}

#[cfg(test)]
mod tests {
    use pontoon_raft::types::{ReplicaId, repr};

    use super::*;

    fn batch(replace: bool, index: u64, rows: &[(&str, Option<&str>)]) -> Batch {
        let rows = rows.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.map(|v| v.as_bytes().to_vec()))).collect();
        let stamp = Stamp { replica: ReplicaId(1), applied: repr::LogId(1, index), rows: 0, checksum: 0 };
        Batch { replace, rows, stamp }
    }

    #[test]
    fn a_panic_while_closing_goes_no_further() {
        struct Panics;
        impl Drop for Panics {
            fn drop(&mut self) {
                panic!("the last write failed");
            }
        }
        drop_guarded(Panics, Path::new("catalog"));
    }

    #[test]
    fn rows_come_back_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let tables = SledTables::new(dir.path().join("catalog"));
        assert!(tables.load().unwrap().is_none());
        tables.write(batch(false, 1, &[("a", Some("1")), ("b", Some("2"))])).unwrap();
        tables.write(batch(false, 2, &[("a", None), ("c", Some("3"))])).unwrap();
        tables.close();
        assert!(tables.write(batch(false, 3, &[])).is_err());
        let (stamp, rows) = SledTables::new(dir.path().join("catalog")).load().unwrap().unwrap();
        assert_eq!(stamp.applied, repr::LogId(1, 2));
        assert_eq!(rows.keys().map(Vec::as_slice).collect::<Vec<_>>(), [b"b", b"c"]);
    }

    #[test]
    fn a_replacing_batch_leaves_only_its_own_rows() {
        let dir = tempfile::tempdir().unwrap();
        let tables = SledTables::new(dir.path().join("catalog"));
        tables.write(batch(false, 1, &[("a", Some("1")), ("b", Some("2"))])).unwrap();
        tables.write(batch(true, 2, &[("b", Some("3"))])).unwrap();
        let (_, rows) = tables.load().unwrap().unwrap();
        assert_eq!(rows, Rows::from([(b"b".to_vec(), b"3".to_vec())]));
    }

    /// Whatever rot does to sled, the rows are gone at worst; they come back from snapshot and log.
    #[test]
    fn rot_in_the_folder_costs_the_rows_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let sound = dir.path().join("sound");
        let rows: Vec<_> = (0..300).map(|number| (format!("{number:03}"), "x".repeat(number))).collect();
        let tables = SledTables::new(&sound);
        for (index, rows) in rows.chunks(20).enumerate() {
            let rows: Vec<_> = rows.iter().map(|(key, value)| (key.as_str(), Some(value.as_str()))).collect();
            tables.write(batch(false, index as u64, &rows)).unwrap();
        }
        tables.close();
        let files = ["conf", "db"];
        let mut told = 0;
        for number in 0..40u64 {
            let path = dir.path().join(format!("rotten-{number}"));
            std::fs::create_dir_all(path.join("blobs")).unwrap();
            for name in files {
                let mut bytes = std::fs::read(sound.join(name)).unwrap();
                let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
                if name == files[usize::from(number % 5 > 0)] {
                    for flip in 0..=number % 4 {
                        let at = (number * 7919 + flip * 104_729) as usize % used;
                        bytes[at] ^= 1 << (number % 8);
                    }
                    if number % 3 == 0 {
                        bytes.truncate((number as usize * 7919) % used);
                    }
                }
                std::fs::write(path.join(name), bytes).unwrap();
            }
            let tables = SledTables::new(&path);
            // Nothing, or something; whether it is sound is for the stamp to say.
            told += u32::from(tables.load().is_err());
            let _ = tables.clear();
            tables.write(batch(true, 99, &[("a", Some("1"))])).unwrap();
            assert_eq!(tables.load().unwrap().unwrap().1.len(), 1, "{number}");
            tables.close();
        }
        assert!(told > 0, "sled notices some of it, and it is told of");
    }

    #[test]
    fn a_folder_that_is_not_sleds_is_rebuilt() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("conf"), b"rubbish").unwrap();
        std::fs::write(path.join("db"), vec![0xa5; 10_000]).unwrap();
        let tables = SledTables::new(&path);
        // What sled takes for an empty folder it says nothing of.
        assert!(tables.load().ok().flatten().is_none());
        assert!(tables.load().unwrap().is_none(), "it is told of once");
        tables.write(batch(false, 1, &[("a", Some("1"))])).unwrap();
        assert_eq!(tables.load().unwrap().unwrap().1.len(), 1);
    }
}
