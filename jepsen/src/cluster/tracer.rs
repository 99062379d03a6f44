//! Faults in single system calls of a running broker, by `strace`: its fsyncs take long, or fail.
//!
//! What strace did stands in its output, and that is the evidence. A broker that is traced is slower in everything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

use super::isolation::PRIVATE;
use super::{Doing as _, Harness, HarnessError};

/// The calls that make bytes durable.
const SYNCS: &str = "fsync,fdatasync,sync_file_range,msync";
/// How long strace may take to get hold of a broker, and to let go of it.
const PATIENCE: Duration = Duration::from_secs(15);

/// What happens to fsyncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncFault {
    /// Each takes so much longer.
    Slow(Duration),
    /// The next one of each thread fails with EIO.
    Fails,
    /// They do nothing and say that they did. No disk may do that; it is how the harness is shown to bite.
    Lies,
}

/// A broker that is being traced.
pub struct Tracer {
    child: Child,
    output: PathBuf,
    mark: &'static str,
}

impl Tracer {
    /// Gets hold of a broker. On return the fault is on.
    pub async fn attach(pid: i32, host: &str, fault: SyncFault) -> Harness<Self> {
        let output = Path::new(PRIVATE).join(format!("{host}.strace"));
        let said = Path::new(PRIVATE).join(format!("{host}.strace-said"));
        let (inject, mark) = match fault {
            SyncFault::Slow(by) => (format!("inject={SYNCS}:delay_enter={}", by.as_micros()), "(DELAYED)"),
            SyncFault::Lies => (format!("inject={SYNCS}:retval=0"), "(INJECTED)"),
            SyncFault::Fails => ("inject=fsync,fdatasync:error=EIO:when=1".to_owned(), "(INJECTED)"),
        };
        let mut command = Command::new("strace");
        command
            .args(["-f", "-y", "-p", &pid.to_string(), "-e", &format!("trace={SYNCS}"), "-e", &inject, "-o"])
            .arg(&output);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&said).doing(said.display())?).process_group(0).kill_on_drop(true);
        let child = command.spawn().doing("strace")?;
        let tracer = Self { child, output, mark };
        let began = Instant::now();
        // It says "Process N attached" once it has all threads.
        while !std::fs::read_to_string(&said).is_ok_and(|text| text.contains("attached")) {
            if began.elapsed() > PATIENCE {
                let text = std::fs::read_to_string(&said).unwrap_or_default();
                return Err(HarnessError::new("strace does not attach", text));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(tracer)
    }

    fn told(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// How many calls were hit.
    pub fn hits(&self) -> usize {
        self.told().matches(self.mark).count()
    }

    /// The files and folders of which a sync was hit.
    pub fn paths_hit(&self) -> BTreeSet<PathBuf> {
        paths(&self.told(), self.mark)
    }

    /// Lets go of the broker.
    pub async fn detach(mut self) -> Harness<()> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id as i32));
        if let Some(pid) = pid {
            // Perhaps it ended with its broker.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .doing("strace does not let go")?
            .doing("strace")
            .map(|_| ())
    }
}

/// What strace tells of descriptors, in calls with this mark: `12 fsync(7</a/file>) = …`. A call during which another thread has something
/// to tell is told in two lines, of which the first has the descriptor and the second the mark: `12 fsync(7</a/file> <unfinished ...>` and
/// `12 <... fsync resumed>) = …`.
fn paths(told: &str, mark: &str) -> BTreeSet<PathBuf> {
    let (mut found, mut unfinished) = (BTreeSet::new(), BTreeMap::new());
    for line in told.lines() {
        let Some((thread, call)) = line.trim_start().split_once(' ') else { continue };
        let call = call.trim_start();
        let path = if call.starts_with("<... ") {
            unfinished.remove(thread)
        } else {
            call.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(path, _)| PathBuf::from(path))
        };
        let Some(path) = path else { continue };
        if call.ends_with("<unfinished ...>") {
            unfinished.insert(thread, path);
        } else if call.contains(mark) {
            found.insert(path);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_calls_that_were_hit_are_known() {
        let told = "71 fdatasync(9</d/journal/1-1.journal>) = -1 EIO (Input/output error) (INJECTED)\n\
                    72 fsync(4</d/checkpoint.new>) = 0\n\
                    72 fsync(11</d/groups>) = -1 EIO (Input/output error) (INJECTED)\n\
                    71 fdatasync(9</d/journal/1-1.journal>) = -1 EIO (Input/output error) (INJECTED)\n";
        let found: Vec<PathBuf> = paths(told, "(INJECTED)").into_iter().collect();
        assert_eq!(found, [Path::new("/d/groups"), Path::new("/d/journal/1-1.journal")]);
    }

    #[test]
    fn the_files_of_calls_that_are_told_in_two_lines_are_known() {
        let told = "71    fdatasync(9</d/journal/1-1.journal> <unfinished ...>\n\
                    72    fsync(4</d/catalog/db> <unfinished ...>\n\
                    73    fsync(5</d/checkpoint.new>) = -1 EIO (Input/output error) (INJECTED)\n\
                    71    <... fdatasync resumed>) = -1 EIO (Input/output error) (INJECTED)\n\
                    72    <... fsync resumed>) = 0\n\
                    71    fdatasync(9</d/journal/1-2.journal> <unfinished ...>\n\
                    74    <... fsync resumed>) = -1 EIO (Input/output error) (INJECTED)\n\
                    71    +++ exited with 1 +++\n";
        let found: Vec<PathBuf> = paths(told, "(INJECTED)").into_iter().collect();
        assert_eq!(found, [Path::new("/d/checkpoint.new"), Path::new("/d/journal/1-1.journal")]);
    }
}
