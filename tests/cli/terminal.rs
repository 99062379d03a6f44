//! What a person at a terminal sees, and nobody else.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::{Killed, status, stderr, stdout};
use crate::support::{Cluster, PATIENCE, pontoon, run};

/// A terminal, and all that was ever written to it.
struct Terminal {
    side: PathBuf,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    fn open() -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        tcsetwinsize(&controller, Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let side = PathBuf::from(ptsname(&controller, Vec::new()).unwrap().into_string().unwrap());
        let shown = Arc::<Mutex<String>>::default();
        let (mut controller, seen) = (File::from(controller), Arc::clone(&shown));
        // To the end of the last process that has it open.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = controller.read(&mut bytes) {
                seen.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { side, shown }
    }

    /// For a process to write to.
    fn side(&self) -> Stdio {
        OwnedFd::from(File::options().read(true).write(true).open(&self.side).unwrap()).into()
    }

    async fn await_shown(&self, what: &str, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.shown.lock().unwrap().matches(what).count() < times {
            assert!(Instant::now() < deadline, "no {what:?} in {:?}", self.shown.lock().unwrap());
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_long_shows_a_person_how_far_it_is_and_programs_nothing() {
    let mut cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let (servers, folder) = (cluster.servers(), cluster.data_dir(1).display().to_string());
    let input = cluster.scratch().join("lines");
    std::fs::write(&input, "line\n".repeat(300_000)).unwrap();
    let cases: [(&[&str], &[&str]); 3] = [
        (
            &["bench", "latency", "--seconds", "1", "--server", &servers],
            &["one at a time or a few, for 1 s, ", "s so far"],
        ),
        (&["produce", "t", "--server", &servers], &["lines acknowledged, "]),
        (&["log", "verify", &folder], &["B/s"]),
    ];
    for (args, shows) in cases {
        // It reads the files as they are: nobody may write them.
        if args[0] == "log" {
            tokio::task::block_in_place(|| cluster.stop(1));
        }
        let terminal = Terminal::open();
        let mut command = pontoon();
        command.args(args).env("TERM", "xterm").stdin(File::open(&input).unwrap());
        let process = command.stdout(Stdio::piped()).stderr(terminal.side()).spawn().unwrap();
        let output = tokio::task::block_in_place(|| process.wait_with_output()).unwrap();
        drop(command);
        assert_eq!(status(&output), 0, "{args:?}: {:?}", terminal.shown.lock().unwrap());
        for part in shows {
            terminal.await_shown(part, 1).await;
        }
        assert!(!stdout(&output).contains(shows[0]), "{args:?}: {}", stdout(&output));
        // What is left of it for a log, or a pipe: of produce the sum.
        let output = run(args, b"line\n").await;
        let told = stderr(&output);
        assert!(told.lines().count() <= usize::from(args[0] == "produce"), "{args:?}: {told}");
        assert!(!told.contains(shows[0]) && !told.contains('\x1b'), "{args:?}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_at_a_terminal_sees_one_picture_after_the_other() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "orders", 1).await;
    let terminal = Terminal::open();
    let mut command = pontoon();
    command.args(["status", "--watch", "--server", &cluster.servers()]).env("TERM", "xterm");
    command.stdin(Stdio::null()).stdout(terminal.side()).stderr(terminal.side());
    let watching = Killed(command.spawn().unwrap());
    drop(command);
    // Each begins where the one before did.
    terminal.await_shown("\x1b[H\x1b[2J", 3).await;
    terminal.await_shown("1 topic, 1 partition", 2).await;
    // Not by Ctrl-C: where the tests run in a shell's background, that is nobody's.
    drop(watching);
    // Not to a file or a pipe.
    let once = run(&["status", "--server", &cluster.servers()], b"").await;
    assert!(!stdout(&once).contains('\x1b'), "{}", stdout(&once));
}
