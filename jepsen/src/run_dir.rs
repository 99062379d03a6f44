//! The folder of a run, and where its parts lie.
//!
//! ```text
//! plan.json       how the run was drawn up               (written by running)
//! run.json        what judging must know of it
//! history.edn     every event of every client, one a line
//! timeline.jsonl  every fault, one event a line
//! registers.edn   what clients saw of consumer groups' offsets
//! n1.log …        what each broker said                  (written by running)
//! n1.ext4 …       the disks, of a run that is not valid  (written by running)
//! results.json    the verdict, for machines      (written by checking)
//! report.html     the verdict, for people        (written by checking)
//! ```
//!
//! Results are written aside and renamed, so that a reader never sees half of one.

use std::fs::{self, File};
use std::io::{self, BufReader, Read as _};
use std::path::{Path, PathBuf};

use crate::history::{History, codec};
use crate::registers::{self, Registers};
use crate::timeline::Timeline;
use crate::verdict::{Run, RunInfo};

/// What the run was meant to be.
pub const RUN_JSON: &str = "run.json";
/// How the run was drawn up.
pub const PLAN_JSON: &str = "plan.json";
/// What the clients saw.
pub const HISTORY_EDN: &str = "history.edn";
/// What the clients saw of registers.
pub const REGISTERS_EDN: &str = "registers.edn";
/// What was done to the brokers.
pub const TIMELINE_JSONL: &str = "timeline.jsonl";
/// The verdict for machines.
pub const RESULTS_JSON: &str = "results.json";
/// The verdict for people.
pub const REPORT_HTML: &str = "report.html";

/// The largest `run.json` that is read, in bytes.
const RUN_JSON_BYTES_MAX: u64 = 1 << 20;

/// A folder that holds no run, or that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what}")]
pub struct RunDirError {
    /// Which file or folder.
    pub path: PathBuf,
    /// In words.
    pub what: String,
}

fn fail(path: &Path, error: impl ToString) -> RunDirError {
    RunDirError { path: path.to_owned(), what: error.to_string() }
}

/// Reads a run. Only a folder that is no run at all (without a sound `run.json`) is an error; a history or timeline that cannot be
/// read is part of the answer, since the run then is unknown.
pub fn load(dir: &Path) -> Result<Run, RunDirError> {
    let path = dir.join(RUN_JSON);
    let mut text = String::new();
    let file = File::open(&path).map_err(|error| fail(&path, error))?;
    file.take(RUN_JSON_BYTES_MAX).read_to_string(&mut text).map_err(|error| fail(&path, error))?;
    let info: RunInfo = serde_json::from_str(&text).map_err(|error| fail(&path, error))?;
    let history = open(dir, HISTORY_EDN)
        .and_then(|file| codec::read(file).map_err(|error| error.to_string()))
        .and_then(|events| History::new(events).map_err(|error| format!("the history breaks its rules: {error}")));
    let timeline = open(dir, TIMELINE_JSONL).and_then(|file| Timeline::read(file).map_err(|error| error.to_string()));
    let registers = match open(dir, REGISTERS_EDN) {
        Ok(file) => registers::codec::read(file).and_then(Registers::new).map(Some),
        Err(_) if !dir.join(REGISTERS_EDN).exists() => Ok(None),
        Err(why) => Err(why),
    };
    Ok(Run { info, history, timeline, registers })
}

fn open(dir: &Path, name: &str) -> Result<BufReader<File>, String> {
    File::open(dir.join(name)).map(BufReader::new).map_err(|error| format!("{name}: {error}"))
}

/// Puts a file into the folder, replacing the old one whole.
pub fn replace(dir: &Path, name: &str, contents: &[u8]) -> Result<(), RunDirError> {
    let path = dir.join(name);
    let aside = dir.join(format!(".{name}.new"));
    let written = || -> io::Result<()> {
        fs::write(&aside, contents)?;
        fs::rename(&aside, &path)
    };
    written().map_err(|error| fail(&path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = r#"{"name":"t","workload":"single","seed":7,"nodes":3,"faults_planned":["kill"]}"#;

    #[test]
    fn a_folder_without_a_run_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap_err().to_string().contains("run.json: No such file"));
        fs::write(dir.path().join(RUN_JSON), INFO.replace("single", "sinle")).unwrap();
        assert!(load(dir.path()).unwrap_err().to_string().contains("unknown variant `sinle`"));
        fs::write(dir.path().join(RUN_JSON), INFO.replace("seed", "sead")).unwrap();
        assert!(load(dir.path()).unwrap_err().to_string().contains("unknown field `sead`"));
    }

    #[test]
    fn a_missing_or_broken_history_is_part_of_the_answer() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(RUN_JSON), INFO).unwrap();
        let run = load(dir.path()).unwrap();
        assert!(run.history.unwrap_err().starts_with("history.edn: No such file"));
        assert!(run.timeline.unwrap_err().starts_with("timeline.jsonl: No such file"));
        let torn = "{:index 0, :time 0, :type :invoke, :process 0, :f :crash, :value nil}\n{:index 1, :ti";
        fs::write(dir.path().join(HISTORY_EDN), torn).unwrap();
        assert!(load(dir.path()).unwrap().history.unwrap_err().starts_with("history line 2: "));
        fs::write(dir.path().join(HISTORY_EDN), torn.lines().next().unwrap().replace(":index 0", ":index 4")).unwrap();
        let broken = load(dir.path()).unwrap().history.unwrap_err();
        assert_eq!(broken, "the history breaks its rules: event 0: its :index is 4");
    }

    #[test]
    fn a_result_replaces_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        replace(dir.path(), RESULTS_JSON, b"old and long").unwrap();
        replace(dir.path(), RESULTS_JSON, b"new").unwrap();
        assert_eq!(fs::read(dir.path().join(RESULTS_JSON)).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
