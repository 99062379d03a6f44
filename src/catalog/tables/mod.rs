//! The catalog's rows, materialised: a *cache* of what snapshot and log say, so that a start need not read them.
//!
//! Two implementations: sled's ([`sled_tables`], the only module that names it) and an in-memory twin for simulations. A
//! batch is written whole or not at all, and carries a [`Stamp`]: whose rows these are, as of which log id, how many, and
//! a checksum over all of them. What does not agree with its stamp is as good as missing. Deleting the folder costs a
//! rebuild and nothing else (RULES.md J16).

use std::collections::BTreeMap;
use std::io;

use parking_lot::Mutex;
use pontoon_raft::types::{ReplicaId, repr};
use serde::{Deserialize, Serialize};

pub mod sled_tables;

/// What a set of rows claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The replica whose log they follow from.
    pub replica: ReplicaId,
    /// The last log id they reflect.
    pub applied: repr::LogId,
    /// How many rows there are.
    pub rows: u64,
    /// The sum of all rows' [`row_checksum`]s.
    pub checksum: u64,
}

/// A change of the tables, all or nothing.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Drop every row there is first.
    pub replace: bool,
    /// What changes; `None` removes.
    pub rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// The stamp of the whole afterwards.
    pub stamp: Stamp,
}

/// Every row, by key.
pub type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// A home for the catalog's rows.
pub trait Tables: Send + Sync + 'static {
    /// All rows and their stamp. `None` if there are none; whether they agree with the stamp is the caller's to check.
    ///
    /// An error if what is there is rotten. It is as good as missing.
    fn load(&self) -> io::Result<Option<(Stamp, Rows)>>;

    /// Writes a batch, whole or not at all. Not durable on return, and need not be.
    fn write(&self, batch: Batch) -> io::Result<()>;

    /// Removes everything.
    fn clear(&self) -> io::Result<()>;

    /// Whether [`Self::write`] may block on a disk, and so wants a thread for blocking calls.
    fn blocks(&self) -> bool;

    /// Closes files, so that another process (or the same one) may open them. Nothing works afterwards.
    fn close(&self);
}

/// One row's part of [`Stamp::checksum`]: two CRC-32C, one of key and value, one of the value and the key.
pub fn row_checksum(key: &[u8], value: &[u8]) -> u64 {
    let forth = crc32c::crc32c_append(crc32c::crc32c(key), value);
    let back = crc32c::crc32c_append(crc32c::crc32c(value), key);
    u64::from(forth) << 32 | u64::from(back)
}

/// The checksum of a whole set of rows. Order does not matter, so it can be kept up row by row.
pub fn rows_checksum(rows: &Rows) -> u64 {
    rows.iter().fold(0, |sum: u64, (key, value)| sum.wrapping_add(row_checksum(key, value)))
}

/// The in-memory twin. Cloned handles of one `Arc` survive a simulated restart as a file would.
#[derive(Default)]
pub struct MemoryTables(Mutex<Option<(Stamp, Rows)>>);

impl Tables for MemoryTables {
    fn load(&self) -> io::Result<Option<(Stamp, Rows)>> {
        Ok(self.0.lock().clone())
    }

    fn write(&self, batch: Batch) -> io::Result<()> {
        let mut held = self.0.lock();
        let mut rows = match held.take() {
            Some((_, rows)) if !batch.replace => rows,
            _ => Rows::new(),
        };
        for (key, value) in batch.rows {
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
        *held = Some((batch.stamp, rows));
        Ok(())
    }

    fn clear(&self) -> io::Result<()> {
        *self.0.lock() = None;
        Ok(())
    }

    fn blocks(&self) -> bool {
        false
    }

    fn close(&self) {}
}
