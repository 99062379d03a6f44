//! The command line: words to calls, verdicts to exit codes.
//!
//! Exit codes: 0 valid, 1 anomalies, 2 usage (also: DIR holds no run, or cannot be written), 3 unknown or rejected, 4 this machine
//! cannot run it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};

use crate::campaign::{self, Course};
use crate::checkers::CHECKERS;
use crate::checkers::workloads::{TABLE, Workload};
use crate::client::any::ClientKind;
use crate::nemesis::kind::{self, KINDS};
use crate::nemesis::scenario::{self, RETRIES, SCENARIOS, Scenario};
use crate::plan::Plan;
use crate::report::Report;
use crate::run_dir::{self, REPORT_HTML, RESULTS_JSON};
use crate::start::{self, StartError};
use crate::verdict::{Judgement, Run, Verdict, judge};

/// Exit code for a call that makes no sense.
const USAGE: u8 = 2;
/// How many clients a campaign's runs have.
const CAMPAIGN_CLIENTS: usize = 10;
/// Exit code for a machine that lacks something.
const MACHINE: u8 = 4;

/// Breaks Pontoon on purpose, and judges what its clients saw.
#[derive(Debug, Parser)]
#[command(name = "pontoon-jepsen", version, arg_required_else_help = true, args_conflicts_with_subcommands = true)]
#[command(
    after_help = "Exit codes: 0 valid, 1 anomalies, 2 usage, 3 unknown or rejected, 4 this machine cannot run it."
)]
pub struct Args {
    /// Judge the run in DIR again; rewrites its results.json and report.html
    #[arg(long, value_name = "DIR")]
    replay: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What a run is made of. Any of these begins one.
#[derive(Clone, Debug, clap::Args)]
struct RunArgs {
    /// How many brokers: 3 or 5 [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::builder::PossibleValuesParser::new(["3", "5"]))]
    nodes: Option<String>,
    /// How long faults go on, in seconds [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    time: Option<u64>,
    /// All choices are drawn from it [default: from the clock]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Which faults: names or families of `list`, `all`, `none` [default: all]
    #[arg(long, value_name = "LIST")]
    nemesis: Option<String>,
    /// A scenario of `list`, which decides about faults, brokers and clients
    #[arg(long, value_name = "NAME", conflicts_with_all = ["nemesis", "nodes", "workload"])]
    scenario: Option<String>,
    /// What the clients do: single, mixed or single-subscribe (of Kafka clients) [default: single]
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(["single", "mixed", "single-subscribe"]))]
    workload: Option<String>,
    /// Which protocol the clients speak: http, kafka or both, mixed [default: http]
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(ClientKind::NAMES))]
    client: Option<String>,
    /// How many clients at once
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=200))]
    clients: u64,
    /// How many operations a second they begin together, at most
    #[arg(long, value_name = "N", default_value_t = 150, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rate: u64,
    /// The broker's binary [default: that of this checkout, built for release]
    #[arg(long, value_name = "FILE", env = "PONTOON_BIN")]
    bin: Option<PathBuf>,
    /// The run's folder [default: a new one in ./jepsen-runs]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl RunArgs {
    fn asks_for_a_run(&self) -> bool {
        let words = [&self.nodes, &self.nemesis, &self.workload, &self.client, &self.scenario];
        words.iter().any(|word| word.is_some()) || self.time.is_some() || self.seed.is_some() || self.out.is_some()
    }

    fn plan(&self, binary: PathBuf) -> Plan {
        let scenario = self.scenario.as_deref().and_then(scenario::find);
        let (nodes, faults) = (self.nodes.as_deref().unwrap_or("5"), self.nemesis.as_deref().unwrap_or("all"));
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let nodes = scenario.map_or(if nodes == "3" { 3 } else { 5 }, |scenario| scenario.nodes);
        let workload = match self.workload.as_deref() {
            Some("mixed") => Workload::Mixed,
            Some("single-subscribe") => Workload::SingleSubscribe,
            _ => Workload::Single,
        };
        let client = self.client.as_deref().and_then(ClientKind::named).unwrap_or_default();
        Plan {
            name: format!("{} on {nodes} brokers{}", self.scenario.as_deref().unwrap_or(faults), client.of_name()),
            workload: scenario.map_or(workload, |scenario| scenario.workload),
            client,
            seed: self.seed.unwrap_or(clock),
            nodes,
            time_s: self.time.unwrap_or(300),
            faults: vec![faults.to_owned()],
            scenario: self.scenario.clone(),
            clients: self.clients as usize,
            rate: self.rate,
            binary,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What is checked, what each workload may show, which faults and scenarios there are
    List,
    /// Whether this machine can do it; says what is missing and what to install
    Check {
        /// Which faults: names or families of `list`, `all`
        #[arg(long, value_name = "LIST", default_value = "all")]
        nemesis: String,
    },
    /// Many runs one after another, with a tally; goes on where it was
    Campaign {
        /// The campaign's folder
        #[arg(long, value_name = "DIR", default_value = "jepsen-runs/campaign")]
        out: PathBuf,
        /// Stop after so many runs in this sitting
        #[arg(long, value_name = "N")]
        runs: Option<u64>,
        /// Begin no further run after so many minutes of this sitting
        #[arg(long, value_name = "MINUTES")]
        minutes: Option<u64>,
        /// How long faults go on in a run, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        time: u64,
        /// The first run's seed
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
        /// How many operations a second clients begin together, at most
        #[arg(long, value_name = "N", default_value_t = 150, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        rate: u64,
        /// Only runs with all faults, on 3 or 5 brokers
        #[arg(long, value_name = "N", value_parser = clap::builder::PossibleValuesParser::new(["3", "5"]))]
        nodes: Option<String>,
        /// Only runs of this scenario
        #[arg(long, value_name = "NAME", conflicts_with = "nodes")]
        scenario: Option<String>,
        /// The broker's binary [default: that of this checkout, built for release]
        #[arg(long, value_name = "FILE", env = "PONTOON_BIN")]
        bin: Option<PathBuf>,
        /// Keep histories and logs of valid runs, too
        #[arg(long)]
        keep: bool,
        /// Only say how it stands
        #[arg(long)]
        tally: bool,
        /// Only judge anew what was not valid: a checker or the harness was mended
        #[arg(long, conflicts_with = "tally")]
        again: bool,
    },
    /// The inner half of a run; only the outer half calls it
    #[command(hide = true)]
    Inside {
        /// The run's folder
        dir: PathBuf,
    },
}

/// Does what the arguments say. Returns the exit code; data goes to `out`, messages to `err`.
pub fn run(args: &Args, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let done = match (&args.replay, &args.command) {
        (Some(dir), None) => replay(dir, out),
        (None, Some(Command::List)) => list(out).map(|()| 0).map_err(Failure::Output),
        (None, Some(Command::Check { nemesis })) => check(nemesis, out),
        (None, Some(Command::Campaign { out: dir, tally: true, .. })) => campaign_tally(dir, out),
        (None, Some(Command::Campaign { out: dir, again: true, .. })) => campaign_again(dir, out),
        (
            None,
            Some(Command::Campaign { out: dir, runs, minutes, time, seed, rate, nodes, scenario, bin, keep, .. }),
        ) => {
            let course = |binary| Course {
                seed: *seed,
                time_s: *time,
                clients: CAMPAIGN_CLIENTS,
                rate: *rate,
                nodes: nodes.as_deref().and_then(|nodes| nodes.parse().ok()),
                scenario: scenario.clone(),
                binary,
            };
            if let Some(unknown) = scenario.as_deref().filter(|name| scenario::find(name).is_none()) {
                let _ = writeln!(err, "pontoon-jepsen: there is no scenario {unknown:?}; `list` tells what there is");
                return USAGE;
            }
            start::binary(bin.as_deref(), err).map_err(Failure::Start).and_then(|binary| {
                let until = minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
                let sitting = Sitting { runs: runs.unwrap_or(u64::MAX), until, keep: *keep };
                campaign(dir, &course(binary), &sitting, out, err)
            })
        }
        (None, Some(Command::Inside { dir })) => return inside(dir, err),
        (None, None) if args.run.asks_for_a_run() => one_run(&args.run, out, err),
        _ => Err(Failure::Usage("--replay DIR, list, or a run: --nodes, --time, --seed, --nemesis".to_owned())),
    };
    match done {
        Ok(code) => code,
        // Whoever read the output had enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(failure) => {
            let _ = writeln!(err, "pontoon-jepsen: {failure}");
            if matches!(failure, Failure::Start(StartError::Machine(_))) { MACHINE } else { USAGE }
        }
    }
}

fn check(faults: &str, out: &mut impl Write) -> Result<u8, Failure> {
    start::check_machine_for(&kind::parse(faults).map_err(Failure::Usage)?)?;
    writeln!(out, "this machine can run it").map_err(Failure::Output)?;
    Ok(0)
}

fn inside(dir: &Path, err: &mut impl Write) -> u8 {
    match start::inside(dir) {
        Ok(()) => 0,
        Err(why) => {
            let _ = writeln!(err, "pontoon-jepsen: the harness failed: {why}");
            3
        }
    }
}

fn one_run(args: &RunArgs, out: &mut impl Write, err: &mut impl Write) -> Result<u8, Failure> {
    let mut plan = args.plan(PathBuf::new());
    plan.schedule().map_err(Failure::Usage)?;
    if plan.workload == Workload::SingleSubscribe && !plan.client.can_subscribe() {
        return Err(Failure::Usage("only Kafka clients can subscribe: --client kafka or mixed".to_owned()));
    }
    if plan.scenario.as_deref() == Some(RETRIES) && !plan.client.hears_of_duplicates() {
        let why = "Kafka clients are not told that a send met its original: --client http or mixed";
        return Err(Failure::Usage(why.to_owned()));
    }
    start::check_machine(&plan)?;
    plan.binary = start::binary(args.bin.as_deref(), err)?;
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let words = plan.scenario.clone().unwrap_or_else(|| plan.faults.join("-").replace([',', ' '], "-"));
    let dir = args.out.clone().unwrap_or_else(|| {
        PathBuf::from("jepsen-runs").join(format!("{}n-{words}-seed{}-{clock}", plan.nodes, plan.seed))
    });
    let _ = writeln!(err, "{}, seed {}, about {} s, in {}", plan.name, plan.seed, plan.time_s, dir.display());
    start::run(&plan, &dir)?;
    replay(&dir, out)
}

fn campaign_tally(dir: &Path, out: &mut impl Write) -> Result<u8, Failure> {
    let entries = campaign::load(dir).map_err(|error| Failure::Campaign(dir.display().to_string(), error))?;
    write!(out, "{}", campaign::tally(&entries)).map_err(Failure::Output)?;
    let all_valid = entries.iter().all(|entry| entry.verdict == Verdict::Valid.name());
    Ok(if all_valid { 0 } else { 1 })
}

/// Judges anew what was not valid and still has its history.
fn campaign_again(dir: &Path, out: &mut impl Write) -> Result<u8, Failure> {
    let fail = |error: io::Error| Failure::Campaign(dir.display().to_string(), error);
    let mut entries = campaign::load(dir).map_err(fail)?;
    for entry in entries.iter_mut().filter(|entry| entry.verdict != Verdict::Valid.name()) {
        let run_dir = dir.join(&entry.folder);
        let plan = Plan::load(&run_dir)?;
        let run = run_dir::load(&run_dir)?;
        let judgement = tell(&run_dir, &run, out)?;
        *entry = campaign::entry(entry.number, &entry.folder, &plan, &run, &judgement);
    }
    campaign::replace(dir, &entries).map_err(fail)?;
    campaign_tally(dir, out)
}

/// One sitting of a campaign.
struct Sitting {
    /// So many runs at most.
    runs: u64,
    /// None begins later.
    until: Option<Instant>,
    /// Nothing is thrown away.
    keep: bool,
}

/// Runs until it was enough, or it is interrupted. The exit code is that of the tally.
fn campaign(
    dir: &Path,
    course: &Course,
    sitting: &Sitting,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Result<u8, Failure> {
    let fail = |error: io::Error| Failure::Campaign(dir.display().to_string(), error);
    std::fs::create_dir_all(dir).map_err(fail)?;
    let first = campaign::load(dir).map_err(fail)?.len() as u64;
    for number in first..first.saturating_add(sitting.runs) {
        if sitting.until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        let (plan, folder) = (course.plan(number), campaign::folder(dir, number));
        plan.schedule().map_err(Failure::Usage)?;
        start::check_machine(&plan)?;
        let run_dir = dir.join(&folder);
        let _ = writeln!(err, "== run {number}: {}, seed {}, in {}", plan.name, plan.seed, run_dir.display());
        if start::run(&plan, &run_dir)? {
            let _ = writeln!(err, "interrupted: run {number} will be done again");
            break;
        }
        let run = run_dir::load(&run_dir)?;
        let judgement = tell(&run_dir, &run, out)?;
        campaign::add(dir, &campaign::entry(number, &folder, &plan, &run, &judgement)).map_err(fail)?;
        campaign::tidy(&run_dir, judgement.verdict, sitting.keep).map_err(fail)?;
    }
    campaign_tally(dir, out)
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("cannot write: {0}")]
    Output(io::Error),
    #[error(transparent)]
    RunDir(#[from] run_dir::RunDirError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{0}: {1}")]
    Campaign(String, io::Error),
    #[error("cannot write results: {0}")]
    Results(#[from] serde_json::Error),
}

fn replay(dir: &Path, out: &mut impl Write) -> Result<u8, Failure> {
    tell(dir, &run_dir::load(dir)?, out).map(|judgement| judgement.verdict.exit_code())
}

/// Judges a run, writes its results and says the most important of it.
fn tell(dir: &Path, run: &Run, out: &mut impl Write) -> Result<Judgement, Failure> {
    let judgement = judge(run);
    let report = Report::new(run, &judgement)?;
    run_dir::replace(dir, RESULTS_JSON, report.results_json.as_bytes())?;
    run_dir::replace(dir, REPORT_HTML, report.html.as_bytes())?;
    let mut say = || -> io::Result<()> {
        writeln!(out, "{}: {}", run.info.name, judgement.verdict.name())?;
        for outcome in judgement.outcomes.iter().filter(|outcome| outcome.findings.count > 0) {
            let allowed = if outcome.allowed { " (allowed)" } else { "" };
            writeln!(out, "  {} × {}{allowed}", outcome.findings.count, outcome.anomaly.name())?;
            if let Some(case) = outcome.findings.cases.first().filter(|_| !outcome.allowed) {
                writeln!(out, "      {}", case.message)?;
            }
        }
        judgement.accusations.iter().try_for_each(|what| writeln!(out, "  accused: {what}"))?;
        judgement.unknowns.iter().try_for_each(|why| writeln!(out, "  unknown: {why}"))?;
        judgement.rejections.iter().try_for_each(|why| writeln!(out, "  rejected: {why}"))?;
        writeln!(out, "  {}", dir.join(REPORT_HTML).display())
    };
    // The verdict is in the exit code and on disk; a reader of the output that left early changes neither.
    match say() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        _ => Ok(judgement),
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
    writeln!(out, "\nfaults")?;
    KINDS.iter().try_for_each(|row| writeln!(out, "  {:<22} {}", row.name, row.summary))?;
    writeln!(out, "\nscenarios, and who had the bug")?;
    let line = |row: &Scenario| writeln!(out, "  {:<32} {}\n  {:<32} {}", row.name, row.summary, "", row.found_in);
    SCENARIOS.iter().try_for_each(line)
}
