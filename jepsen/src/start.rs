//! The outer half of a run: sees that the machine can do it, finds the broker's binary, makes the run's folder, starts the inner half in its
//! namespaces and judges what it left.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cluster::isolation;
use crate::cluster::preflight::{self, Needs};
use crate::nemesis::kind::Kind;
use crate::plan::Plan;
use crate::run_dir::{self, RunDirError};

/// Why there was no run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The plan makes no sense.
    #[error("{0}")]
    Plan(String),
    /// The machine cannot do it.
    #[error("this machine cannot run it:\n  {}", .0.join("\n  "))]
    Machine(Vec<String>),
    /// There is no broker to run.
    #[error("no broker to run: {0}")]
    Binary(String),
    /// The run's folder.
    #[error(transparent)]
    Folder(#[from] RunDirError),
    /// Anything else.
    #[error("cannot start the run: {0}")]
    Io(#[from] io::Error),
}

/// Checks what a plan needs of this machine.
pub fn check_machine(plan: &Plan) -> Result<(), StartError> {
    check_machine_for(&plan.kinds().map_err(StartError::Plan)?)
}

/// Checks what these kinds of faults need of this machine.
pub fn check_machine_for(kinds: &[Kind]) -> Result<(), StartError> {
    let mut needs = Needs::default();
    for kind in kinds {
        let of_kind = kind.needs();
        needs.strace |= of_kind.strace;
        needs.faketime |= of_kind.faketime;
        needs.tun |= of_kind.tun;
    }
    match preflight::missing(needs) {
        missing if missing.is_empty() => Ok(()),
        missing => Err(StartError::Machine(missing)),
    }
}

/// The broker's binary: the one that is named, or the one of this checkout, made up to date with a release build.
pub fn binary(named: Option<&Path>, err: &mut impl Write) -> Result<PathBuf, StartError> {
    let fail = |what: String| StartError::Binary(what);
    if let Some(path) = named {
        return path.canonicalize().map_err(|error| fail(format!("{}: {error}", path.display())));
    }
    let _ = writeln!(err, "building the broker (cargo build --release); --bin names one that is there");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--package", "pontoon", "--bin", "pontoon", "--message-format=json"]);
    build.arg("--manifest-path").arg(manifest).stderr(Stdio::inherit());
    let output = build.output().map_err(|error| fail(format!("cargo: {error}")))?;
    if !output.status.success() {
        return Err(fail(format!("cargo build ended with {}", output.status)));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let built = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let executable = built.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next_back();
    executable.ok_or_else(|| fail("cargo build named no binary".to_owned()))
}

/// Runs a plan in a new folder. Returns whether it was interrupted; what happened lies in the folder.
pub fn run(plan: &Plan, dir: &Path) -> Result<bool, StartError> {
    let fail = |error: io::Error| RunDirError { path: dir.to_owned(), what: error.to_string() };
    if dir.join(run_dir::RUN_JSON).exists() {
        return Err(RunDirError { path: dir.to_owned(), what: "there is a run already".to_owned() }.into());
    }
    std::fs::create_dir_all(dir).map_err(fail)?;
    let dir = dir.canonicalize().map_err(fail)?;
    if dir.starts_with(isolation::PRIVATE) || plan.binary.starts_with(isolation::PRIVATE) {
        let what = format!("folders below {} cannot be used: the run has its own", isolation::PRIVATE);
        return Err(RunDirError { path: dir, what }.into());
    }
    plan.save(&dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(isolation::run_inside(&dir))?.interrupted)
}

/// The inner half: plays the plan in `dir`. Only to be called in namespaces of its own.
pub fn inside(dir: &Path) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let ran = runtime.block_on(crate::runner::run(dir));
    // Nothing is waited for: the kernel ends and removes what is left.
    runtime.shutdown_background();
    ran
}
