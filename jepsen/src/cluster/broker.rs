//! One broker as a process: started, signalled, waited for.
//!
//! Its standard error goes to the run's folder and is only ever appended to, over all its lives. It knows no HTTP.

use std::fs::{self, File};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

use super::isolation::PRIVATE;
use super::{Doing as _, Harness, HarnessError};

/// How long the kernel may take to end a process that was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);

/// A running broker, as far as is known.
pub struct Broker {
    child: Child,
    pid: Pid,
}

impl Broker {
    /// Starts it in a network namespace; `log` takes what it says.
    pub fn start(namespace: &str, words: &[String], environment: &[(String, String)], log: &Path) -> Harness<Self> {
        let log = File::options().create(true).append(true).open(log).doing(log.display())?;
        // Not `ip netns exec`: that makes a copy of all mounts, and a file system stays mounted as long as anybody's copy is.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={PRIVATE}/netns/{namespace}")).args(words);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0).kill_on_drop(true);
        let child = command.spawn().doing("starting a broker")?;
        let pid = child.id().and_then(|id| Pid::from_raw(id as i32));
        let pid = pid.ok_or_else(|| HarnessError("a broker without a process id".to_owned()))?;
        Ok(Self { child, pid })
    }

    /// Its process id, inside.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Harness<Option<ExitStatus>> {
        self.child.try_wait().doing("waiting for a broker")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Harness<()> {
        rustix::process::kill_process(self.pid, signal).doing("a signal to a broker")
    }

    /// Ends it at once, whatever it is doing. Returns how it ended; perhaps it had ended before.
    pub async fn kill(mut self) -> Harness<ExitStatus> {
        self.child
            .start_kill()
            .or_else(|error| if error.raw_os_error() == Some(3) { Ok(()) } else { Err(error) })
            .doing("kill -9")?;
        tokio::time::timeout(KILL_TIMEOUT, self.child.wait()).await.doing("kill -9")?.doing("kill -9")
    }

    /// Asks it to stop and waits so long. `Err(self)`: it did not.
    pub async fn stop(mut self, patience: Duration) -> Result<ExitStatus, Self> {
        if self.signal(Signal::TERM).is_err() {
            return Err(self);
        }
        match tokio::time::timeout(patience, self.child.wait()).await {
            Ok(Ok(status)) => Ok(status),
            _ => Err(self),
        }
    }

    /// Whether every one of its threads stands still.
    pub fn stands_still(&self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid())) else { return false };
        let stopped = |status: String| status.lines().any(|line| line.starts_with("State:") && line.contains('T'));
        let mut states = threads.flatten().map(|thread| fs::read_to_string(thread.path().join("status")));
        states.all(|status| status.is_ok_and(stopped))
    }
}
