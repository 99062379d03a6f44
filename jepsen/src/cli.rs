//! The command line: words to calls, verdicts to exit codes.
//!
//! Exit codes: 0 valid, 1 anomalies, 2 usage (also: DIR holds no run, or cannot be written), 3 unknown or rejected.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use crate::checkers::CHECKERS;
use crate::checkers::workloads::TABLE;
use crate::report::Report;
use crate::run_dir::{self, REPORT_HTML, RESULTS_JSON};
use crate::verdict::judge;

/// Exit code for a call that makes no sense.
const USAGE: u8 = 2;

/// Breaks Pontoon on purpose, and judges what its clients saw.
#[derive(Debug, Parser)]
#[command(name = "pontoon-jepsen", version, arg_required_else_help = true, args_conflicts_with_subcommands = true)]
#[command(after_help = "Exit codes: 0 valid, 1 anomalies, 2 usage, 3 unknown or rejected.")]
pub struct Args {
    /// Judge the run in DIR again; rewrites its results.json and report.html
    #[arg(long, value_name = "DIR")]
    replay: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What is checked, and what each workload may show
    List,
}

/// Does what the arguments say. Returns the exit code; data goes to `out`, messages to `err`.
pub fn run(args: &Args, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let done = match (&args.replay, &args.command) {
        (Some(dir), None) => replay(dir, out),
        (None, Some(Command::List)) => list(out).map(|()| 0).map_err(Failure::Output),
        _ => Err(Failure::Usage("either --replay DIR or list".to_owned())),
    };
    match done {
        Ok(code) => code,
        // Whoever read the output had enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(failure) => {
            let _ = writeln!(err, "pontoon-jepsen: {failure}");
            USAGE
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("cannot write: {0}")]
    Output(io::Error),
    #[error(transparent)]
    RunDir(#[from] run_dir::RunDirError),
    #[error("cannot write results: {0}")]
    Results(#[from] serde_json::Error),
}

fn replay(dir: &Path, out: &mut impl Write) -> Result<u8, Failure> {
    let run = run_dir::load(dir)?;
    let judgement = judge(&run);
    let report = Report::new(&run, &judgement)?;
    run_dir::replace(dir, RESULTS_JSON, report.results_json.as_bytes())?;
    run_dir::replace(dir, REPORT_HTML, report.html.as_bytes())?;
    let code = judgement.verdict.exit_code();
    let mut tell = || -> io::Result<()> {
        writeln!(out, "{}: {}", run.info.name, judgement.verdict.name())?;
        for outcome in judgement.outcomes.iter().filter(|outcome| outcome.findings.count > 0) {
            let allowed = if outcome.allowed { " (allowed)" } else { "" };
            writeln!(out, "  {} × {}{allowed}", outcome.findings.count, outcome.anomaly.name())?;
            if let Some(case) = outcome.findings.cases.first().filter(|_| !outcome.allowed) {
                writeln!(out, "      {}", case.message)?;
            }
        }
        judgement.unknowns.iter().try_for_each(|why| writeln!(out, "  unknown: {why}"))?;
        judgement.rejections.iter().try_for_each(|why| writeln!(out, "  rejected: {why}"))?;
        writeln!(out, "  {}", dir.join(REPORT_HTML).display())
    };
    // The verdict is in the exit code and on disk; a reader of the output that left early changes neither.
    match tell() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        _ => Ok(code),
    }
}

fn list(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "checkers")?;
    for checker in CHECKERS {
        writeln!(out, "  {:<22} {}", checker.anomaly.name(), checker.summary)?;
    }
    writeln!(out, "\nworkloads, and what each may show")?;
    for row in TABLE {
        let allowed: Vec<&str> = row.allowed.iter().map(|anomaly| anomaly.name()).collect();
        let allowed = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
        writeln!(out, "  {:<22} {}\n  {:<22} may show: {allowed}", row.name, row.summary, "")?;
    }
    writeln!(out, "\nscenarios\n  none: histories are judged here, brokers are not run")
}
