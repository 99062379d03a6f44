//! Faults in single system calls of a running broker, by `strace`: its fsyncs take long, or fail.
//!
//! What strace did stands in its output, and that is the evidence. A broker that is traced is slower in everything.

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
        command.args(["-f", "-p", &pid.to_string(), "-e", &format!("trace={SYNCS}"), "-e", &inject, "-o"]).arg(&output);
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

    /// How many calls were hit.
    pub fn hits(&self) -> usize {
        let text = std::fs::read(&self.output).unwrap_or_default();
        String::from_utf8_lossy(&text).matches(self.mark).count()
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
