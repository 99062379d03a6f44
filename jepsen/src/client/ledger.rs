//! What members of consumer groups commit, find committed and are assigned, as it goes into the history of registers and into a ledger.
//!
//! A group's offset in a key is a register ([`crate::registers`]). Offsets are committed more than once, registers' values are not: so each
//! commit has a word of its own, which travels as the offset's metadata, and the word is the value. That the offset told beside a word is
//! the one committed with it is seen to here. Who was assigned what is kept for [`crate::checkers::generations`].

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::CLIENTS;
use crate::history::{Key, Kind, Offset, Process};
use crate::recorder::Recorder;
use crate::registers::{Deed, Register};

/// Members' registers have numbers from here on; those of clients that only set and read registers have smaller ones.
const FIRST_REGISTER: u64 = 1 << 32;

/// A member was told its share.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// When it asked to join, in nanoseconds.
    pub invoked_ns: u64,
    /// When it was told its share.
    pub completed_ns: u64,
}

/// A commit or a look that is under way.
#[derive(Debug)]
pub struct Open {
    process: Process,
    register: Register,
    group: String,
    /// A commit's own word.
    pub word: u64,
}

/// All of it, of one run.
pub struct Ledger {
    recorder: Arc<Recorder>,
    kept: Mutex<Kept>,
}

/// What is kept.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Shares, in the order in which they were told.
    pub assigned: Vec<Assigned>,
    /// When something was first committed for a group, in nanoseconds.
    pub first_commits: BTreeMap<String, u64>,
    /// The register of each key of a group.
    pub(crate) registers: BTreeMap<(String, Key), Register>,
    /// The offset of each word; the next word is how many there are.
    pub(crate) words: Vec<Offset>,
}

impl Ledger {
    /// Empty.
    pub fn new(recorder: Arc<Recorder>) -> Self {
        Self { recorder, kept: Mutex::default() }
    }

    /// A client was told what no broker may tell.
    pub fn accuse(&self, what: String) {
        self.recorder.accuse(CLIENTS, what);
    }

    /// Nanoseconds since the run began.
    pub fn now_ns(&self) -> u64 {
        self.recorder.now_ns()
    }

    fn open(&self, group: &str, key: Key, word: u64) -> Open {
        let mut kept = self.kept.lock();
        let next = Register(FIRST_REGISTER + kept.registers.len() as u64);
        let register = *kept.registers.entry((group.to_owned(), key)).or_insert(next);
        Open { process: self.recorder.new_register_process(), register, group: group.to_owned(), word }
    }

    /// A commit is about to be asked for.
    pub fn begin_commit(&self, group: &str, key: Key, offset: Offset) -> Open {
        let word = {
            let mut kept = self.kept.lock();
            kept.words.push(offset);
            kept.words.len() as u64 - 1
        };
        let open = self.open(group, key, word);
        self.recorder.register(Kind::Invoke, open.process, open.register, Deed::Write(word), None);
        open
    }

    /// It ended so.
    pub fn end_commit(&self, open: Open, kind: Kind, error: Option<String>) {
        self.recorder.register(kind, open.process, open.register, Deed::Write(open.word), error);
        if kind == Kind::Ok {
            let now = self.now_ns();
            self.kept.lock().first_commits.entry(open.group).or_insert(now);
        }
    }

    /// Somebody is about to look at what is committed.
    pub fn begin_look(&self, group: &str, key: Key) -> Open {
        let open = self.open(group, key, 0);
        self.recorder.register(Kind::Invoke, open.process, open.register, Deed::Read(None), None);
        open
    }

    /// It found this offset with this metadata; `None`: nothing is committed.
    pub fn end_look(&self, open: Open, found: Option<(Offset, &str)>) {
        let Some((offset, metadata)) = found else {
            return self.recorder.register(Kind::Ok, open.process, open.register, Deed::Read(None), None);
        };
        let word = metadata.parse::<u64>().ok();
        let committed = word.and_then(|word| self.kept.lock().words.get(word as usize).copied());
        match word.filter(|_| committed == Some(offset)) {
            Some(word) => {
                self.recorder.register(Kind::Ok, open.process, open.register, Deed::Read(Some(word)), None);
            }
            None => {
                let what = format!(
                    "group {}: offset {} is told with {metadata:?}, committed with {committed:?}",
                    open.group, offset.0
                );
                self.fail_look(open, what.clone());
                self.recorder.accuse("groups", what);
            }
        }
    }

    /// It was not answered.
    pub fn fail_look(&self, open: Open, error: String) {
        self.recorder.register(Kind::Fail, open.process, open.register, Deed::Read(None), Some(error));
    }

    /// A member was told its share.
    pub fn assigned(&self, assigned: Assigned) {
        self.kept.lock().assigned.push(assigned);
    }

    /// All that is kept.
    pub fn kept(&self) -> Kept {
        self.kept.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::{REGISTERS_EDN, TIMELINE_JSONL};

    #[test]
    fn commits_and_looks_are_registers_and_an_offset_that_is_not_its_words_accuses() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Arc::new(Recorder::begin(dir.path()).unwrap());
        let ledger = Ledger::new(recorder.clone());
        let look = |found| ledger.end_look(ledger.begin_look("g", Key(1)), found);
        look(None);
        let commit = ledger.begin_commit("g", Key(1), Offset(7));
        let word = commit.word.to_string();
        ledger.end_commit(commit, Kind::Ok, None);
        look(Some((Offset(7), &word)));
        assert!(ledger.kept().first_commits.contains_key("g"));
        let accused = || std::fs::read_to_string(dir.path().join(TIMELINE_JSONL)).unwrap().contains("accused");
        assert!(!accused());
        look(Some((Offset(8), &word)));
        assert!(accused());
        recorder.end().unwrap();
        let history = std::fs::read_to_string(dir.path().join(REGISTERS_EDN)).unwrap();
        assert!(history.contains(":f :write, :value [4294967296 0]"), "{history}");
        assert_eq!(history.lines().filter(|line| line.contains(":type :ok")).count(), 3, "{history}");
    }
}
