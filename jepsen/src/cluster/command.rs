//! Runs the system's tools: `ip`, `nft`, `mount` and the like. Each is waited for; what they say when they fail goes into the error.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::{Doing as _, Harness, HarnessError};

/// The longest that a tool may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a tool; its words are split at spaces. Returns what it wrote.
pub async fn run(words: &str) -> Harness<String> {
    let words: Vec<&str> = words.split_whitespace().collect();
    run_with_input(&words, "").await
}

/// Runs a tool that reads `input`.
pub async fn run_with_input(words: &[&str], input: &str) -> Harness<String> {
    let line = words.join(" ");
    let (program, arguments) = words.split_first().ok_or_else(|| HarnessError("no command".to_owned()))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().doing(&line)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that does not read its input says so by its exit.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = tokio::time::timeout(TIMEOUT, child.wait_with_output()).await.doing(&line)?.doing(&line)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(HarnessError::new(line, format!("{}, {}", output.status, said.trim())))
}
