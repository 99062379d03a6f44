//! Committed offsets of consumer groups as registers, and who was assigned what: written down by every client, by one clock.
//!
//! A register is one key's offset in one group. Each commit has a word of its own that no other has; whoever reads the offset is told the
//! word. It judges nothing: [`crate::checkers::registers`] does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;

use crate::history::{Key, Offset};

/// How a commit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It certainly happened.
    Ok,
    /// It certainly did not.
    Failed,
    /// Nobody knows whether it did, or will yet.
    Unknown,
}

/// A commit or a look at what is committed. Times in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RegisterOp {
    /// The group.
    pub group: String,
    /// The key.
    pub key: u64,
    /// A commit; else a look.
    pub write: bool,
    /// What was committed, or seen: the offset and the commit's word. `None`: nothing was committed yet.
    pub value: Option<(u64, String)>,
    /// When it was asked.
    pub invoked_ns: u64,
    /// When it was answered, or given up.
    pub completed_ns: u64,
    /// How it ended; a look that did not work is not kept.
    pub outcome: Outcome,
}

/// A member was told its share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Assigned {
    /// The group.
    pub group: String,
    /// Its generation.
    pub generation: i32,
    /// Who leads the group.
    pub leader: String,
    /// Who was told.
    pub member: String,
    /// The keys.
    pub keys: Vec<u64>,
    /// When it asked to join.
    pub invoked_ns: u64,
    /// When it was told its share.
    pub completed_ns: u64,
}

/// A commit that is under way.
#[derive(Debug)]
pub struct Write {
    /// Its word.
    pub word: String,
    op: RegisterOp,
}

/// All that was committed, seen and assigned in a run.
pub struct Registers {
    began: Instant,
    next: AtomicU64,
    kept: Mutex<Kept>,
}

/// What is kept.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Commits and looks, in the order in which they ended.
    pub ops: Vec<RegisterOp>,
    /// Shares, in the order in which they were told.
    pub assigned: Vec<Assigned>,
}

impl Default for Registers {
    fn default() -> Self {
        Self { began: Instant::now(), next: AtomicU64::new(0), kept: Mutex::default() }
    }
}

impl Registers {
    /// Nanoseconds since it began.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A commit is about to be asked for.
    pub fn begin_write(&self, group: &str, key: Key, offset: Offset) -> Write {
        let word = format!("w{}", self.next.fetch_add(1, Ordering::Relaxed));
        let invoked_ns = self.now_ns();
        let op = RegisterOp {
            group: group.to_owned(),
            key: key.0,
            write: true,
            value: Some((offset.0, word.clone())),
            invoked_ns,
            completed_ns: invoked_ns,
            outcome: Outcome::Unknown,
        };
        Write { word, op }
    }

    /// It ended so.
    pub fn end_write(&self, write: Write, outcome: Outcome) {
        let completed_ns = self.now_ns();
        self.kept.lock().ops.push(RegisterOp { completed_ns, outcome, ..write.op });
    }

    /// What was found committed, by a look that began then.
    pub fn read(&self, group: &str, key: Key, found: Option<(Offset, String)>, invoked_ns: u64) {
        let op = RegisterOp {
            group: group.to_owned(),
            key: key.0,
            write: false,
            value: found.map(|(offset, word)| (offset.0, word)),
            invoked_ns,
            completed_ns: self.now_ns(),
            outcome: Outcome::Ok,
        };
        self.kept.lock().ops.push(op);
    }

    /// A member was told its share.
    pub fn assigned(&self, assigned: Assigned) {
        self.kept.lock().assigned.push(assigned);
    }

    /// All of it.
    pub fn kept(&self) -> Kept {
        self.kept.lock().clone()
    }
}
