//! What a person can type into a running `pontoon dev`: `kill 2` and `start 2`.
//!
//! Reads lines, knows no broker. Input that ends (`dev < /dev/null`, a service manager) is no input: `dev` goes on.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::str::FromStr;
use std::time::Duration;

use pontoon_raft::types::BrokerId;
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::mpsc;

/// Longest line that is looked at.
const LINE_BYTES_MAX: u64 = 256;
/// How often a job in the background looks whether it has been brought back.
const FOREGROUND_CHECK: Duration = Duration::from_millis(200);

/// One line's wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// End a broker as SIGKILL would.
    Kill(BrokerId),
    /// Start it again.
    Start(BrokerId),
}

impl FromStr for Command {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let wrong = || format!("{line:?} is no command; there are `kill N` and `start N`, N being a broker's number");
        let words: Vec<&str> = line.split_whitespace().collect();
        let [verb, number] = words[..] else { return Err(wrong()) };
        let broker = BrokerId(number.parse().map_err(|_| wrong())?);
        match verb {
            "kill" => Ok(Self::Kill(broker)),
            "start" => Ok(Self::Start(broker)),
            _ => Err(wrong()),
        }
    }
}

/// The lines of standard input.
pub(super) struct Console(mpsc::Receiver<String>);

impl Console {
    /// From now on lines are read, by a thread of their own: a read of a terminal cannot be broken off.
    pub(super) fn open() -> Self {
        let (lines, receiver) = mpsc::channel(1);
        std::thread::spawn(move || {
            // Not `io::stdin()`: its buffer does not tell whether lines are waiting in it.
            let Ok(stdin) = rustix::io::dup(io::stdin()) else { return };
            let mut input = BufReader::new(File::from(stdin));
            while let Ok(Some(line)) = next_line(&mut input) {
                if lines.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        Self(receiver)
    }

    /// The next line that is not empty; never, once the input has ended.
    pub(super) async fn next(&mut self) -> Result<Command, String> {
        match self.0.recv().await {
            Some(line) => line.parse(),
            None => std::future::pending().await,
        }
    }
}

fn next_line(input: &mut BufReader<File>) -> io::Result<Option<String>> {
    loop {
        // Lines that came together are read together: no more input need come for the second.
        if input.buffer().is_empty() {
            await_foreground(input.get_ref())?;
        }
        let mut line = Vec::new();
        if input.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&line).trim().to_owned();
        if !line.is_empty() {
            return Ok(Some(line));
        }
    }
}

/// Waits for input that may be read: a job in the background that reads its terminal would be stopped, brokers and all.
fn await_foreground(stdin: &File) -> io::Result<()> {
    loop {
        poll(&mut [PollFd::new(stdin, PollFlags::IN)], None)?;
        match rustix::termios::tcgetpgrp(stdin) {
            Ok(foreground) if foreground != rustix::process::getpgrp() => std::thread::sleep(FOREGROUND_CHECK),
            _ => return Ok(()), // In the foreground, or no terminal.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_are_answered() {
        assert_eq!("kill 2".parse(), Ok(Command::Kill(BrokerId(2))));
        assert_eq!("  start   3 ".parse(), Ok(Command::Start(BrokerId(3))));
        for wrong in ["kill", "kill two", "stop 1", "kill 1 2", "kill -1"] {
            let why = wrong.parse::<Command>().unwrap_err();
            assert!(why.contains(wrong) && why.contains("kill N"), "{why}");
        }
    }
}
