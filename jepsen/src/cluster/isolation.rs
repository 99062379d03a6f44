//! Starts the harness anew inside mount, network and process namespaces of its own.
//!
//! Whatever a run makes – brokers, bridges, addresses, packet filters, mounts, loop devices – belongs to these namespaces, and the kernel
//! takes all of it away when the first process in there ends: after a clean end, Ctrl-C, a panic or a `kill -9` alike. Two runs side
//! by side do not see each other. What crosses the wall is the run's folder and one pipe: when its writing end closes, because the
//! outer process was asked to stop or is gone, the run ends itself.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::command::run;
use super::{Doing as _, Harness};

/// The hidden subcommand that the inner process is started with.
pub const INSIDE: &str = "inside";
/// Where the inner process keeps its mount points and namespaces' names; a file system of its own.
pub const PRIVATE: &str = "/run";

/// How the inner process ended.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// It was asked to stop.
    pub interrupted: bool,
}

/// Runs the run whose plan lies in `dir` inside. On Ctrl-C or SIGTERM it is asked to stop, at the second it is killed.
pub async fn run_inside(dir: &Path) -> io::Result<Ended> {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
        .arg(std::env::current_exe()?)
        .arg(INSIDE)
        .arg(dir)
        .stdin(Stdio::piped())
        .process_group(0) // Ctrl-C is for the outer process; it passes it on in its own way.
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    let mut pipe = child.stdin.take();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupted = false;
    loop {
        tokio::select! {
            biased;
            status = child.wait() => return Ok(Ended { status: status?, interrupted }),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if interrupted {
            child.start_kill()?;
        }
        interrupted = true;
        drop(pipe.take());
    }
}

/// Inside: true once the outer process wants an end, or is gone.
pub fn until_told_to_stop() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        let mut stdin = tokio::io::stdin();
        let mut buffer = [0; 64];
        while matches!(stdin.read(&mut buffer).await, Ok(1..)) {}
        let _ = sender.send(true);
        // Nobody may take the lack of a sender for an answer.
        std::future::pending::<()>().await;
    });
    receiver
}

/// Inside: makes what everything else stands on.
pub async fn prepare() -> Harness<()> {
    run(&format!("mount -t tmpfs none {PRIVATE}")).await?;
    std::fs::create_dir_all(Path::new(PRIVATE).join("netns")).doing("making /run/netns")?;
    run("ip link set lo up").await?;
    Ok(())
}
