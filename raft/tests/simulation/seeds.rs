//! Which seeds a test runs, how many at a time, and what it tells of each: shared by the simulation of the raft crate and that of
//! whole brokers.
//!
//! `PONTOON_SEED=n` tries that seed, `PONTOON_SEEDS=n` so many from there on (from 1 without it), `PONTOON_JOBS=n` so many at a
//! time. A bad seed runs again, and leaves its trace; `PONTOON_TRACE=1` wants the traces of good ones too. `PONTOON_TALLY=FILE` adds
//! a line for each seed to that file, `PONTOON_TALLY_AS` before it: `scripts/simulate` asks for that. It runs many processes, and says
//! itself what has happened in none of their seeds.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use parking_lot::Mutex;

use crate::trace::first_difference;

/// Fewest writes that a seed must see acknowledged on average: else the faults leave nothing to lose.
const ACKNOWLEDGED_MIN: u64 = 50;

/// From so many seeds on, each kind of thing that is counted must have happened: what is never exercised cannot be caught.
const EXERCISED_FROM: u64 = 50;

/// Runs a seed on a thread of its own, with a trace or without.
pub(crate) type Spawn = fn(u64, bool) -> JoinHandle<Told>;

/// What a run came to.
pub(crate) struct Told {
    /// What does not hold; empty if the run is a good one.
    pub(crate) broken: Vec<String>,
    /// The trace, if it was wanted, and its hash.
    pub(crate) lines: Vec<String>,
    pub(crate) hash: u32,
    /// Writes that were acknowledged.
    pub(crate) acknowledged: u64,
    /// Terms that had a leader.
    pub(crate) terms: u64,
    /// How long it took in simulated time, in ms.
    pub(crate) simulated_ms: u64,
    /// Faults, and what they did, by kind.
    pub(crate) struck: BTreeMap<&'static str, u64>,
}

/// The number in an environment variable.
pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// The first seed to try, and how many.
fn wanted(default: u64) -> (u64, u64) {
    let (first, count) = (number("PONTOON_SEED"), number("PONTOON_SEEDS"));
    (first.unwrap_or(1), count.unwrap_or(if first.is_some() { 1 } else { default }))
}

/// Shows the brokers' logs: `PONTOON_LOG=pontoon=debug,pontoon_raft=debug,openraft=info`.
pub(crate) fn show_logs() {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("PONTOON_LOG") {
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).try_init();
    }
}

/// Keeps a trace for the reader of a failed test.
pub(crate) fn keep(seed: u64, name: &str, lines: &[String]) -> PathBuf {
    let which = env!("CARGO_PKG_NAME");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{which}-simulation-{seed}{name}.trace"));
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

/// Runs every wanted seed, `default` of them if nobody wants others. Panics at the end if one is bad, or if something did not happen
/// in any of them that should; `kinds` are all that are counted.
pub(crate) fn run_all(default: u64, kinds: &[&'static str], spawn: Spawn) {
    show_logs();
    // For whoever reads the tally, which has only what has happened.
    eprintln!("kinds: {}", kinds.join(", "));
    let (first, count) = wanted(default);
    let jobs = number("PONTOON_JOBS").unwrap_or_else(|| thread::available_parallelism().map_or(1, |n| n.get() as u64));
    let (next, acknowledged, bad) = (AtomicU64::new(first), AtomicU64::new(0), Mutex::new(Vec::new()));
    let happened: Mutex<BTreeMap<&str, u64>> = Mutex::new(kinds.iter().map(|kind| (*kind, 0)).collect());
    thread::scope(|scope| {
        for _ in 0..jobs.min(count) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    match try_seed(seed, spawn) {
                        Some(told) => {
                            acknowledged.fetch_add(told.acknowledged, Ordering::Relaxed);
                            let mut happened = happened.lock();
                            told.struck.iter().for_each(|(kind, count)| *happened.entry(kind).or_default() += count);
                        }
                        None => bad.lock().push(seed),
                    }
                }
            });
        }
    });
    let bad = bad.into_inner();
    assert!(bad.is_empty(), "bad seeds: {bad:?}; PONTOON_SEED={} replays the first", bad[0]);
    let acknowledged = acknowledged.into_inner();
    assert!(
        count < 4 || acknowledged >= count * ACKNOWLEDGED_MIN,
        "{acknowledged} acknowledged: nothing much happened"
    );
    let happened = happened.into_inner();
    let unlisted: Vec<_> = happened.keys().filter(|kind| !kinds.contains(kind)).collect();
    assert!(unlisted.is_empty(), "counted, but nobody sees to it that they happen: {unlisted:?}");
    let never: Vec<_> = happened.iter().filter(|(_, count)| **count == 0).map(|(kind, _)| kind).collect();
    let judged = count >= EXERCISED_FROM && std::env::var_os("PONTOON_TALLY").is_none();
    assert!(!judged || never.is_empty(), "never happened in {count} seeds: {never:?} of {happened:?}");
}

/// Runs one seed and tells of it. What it came to; `None`: it is a bad one.
fn try_seed(seed: u64, spawn: Spawn) -> Option<Told> {
    let began = Instant::now();
    let traced = number("PONTOON_TRACE").is_some();
    let told = spawn(seed, traced).join();
    let took = began.elapsed().as_millis();
    let good = told.as_ref().is_ok_and(|told| told.broken.is_empty());
    if traced && good {
        told.as_ref().inspect(|told| eprintln!("trace in {}", keep(seed, "", &told.lines).display())).ok();
    }
    if !good {
        explain(seed, spawn);
    }
    // What a panic said stands above.
    let Ok(told) = told else {
        tell(seed, "FAILED: it panicked");
        return None;
    };
    let struck: Vec<String> = told.struck.iter().map(|(kind, count)| format!("{kind}={count}")).collect();
    let (verdict, struck) = (if good { "ok" } else { "FAILED" }, struck.join(", "));
    let Told { acknowledged, terms, simulated_ms, .. } = &told;
    tell(
        seed,
        &format!("{verdict}: {acknowledged} acknowledged, {terms} terms, {simulated_ms} ms in {took} ms; {struck}"),
    );
    good.then_some(told)
}

/// Runs a bad seed again, for its trace.
fn explain(seed: u64, spawn: Spawn) {
    match spawn(seed, true).join() {
        Ok(told) if told.broken.is_empty() => eprintln!("PONTOON_SEED={seed}: it does not replay"),
        Ok(told) => {
            let path = keep(seed, "", &told.lines);
            eprintln!("PONTOON_SEED={seed} (trace in {}):\n  {}", path.display(), told.broken.join("\n  "));
        }
        Err(_) => eprintln!("PONTOON_SEED={seed} panics"),
    }
}

/// One line, for whoever watches and for the tally.
fn tell(seed: u64, what: &str) {
    eprintln!("seed {seed} {what}");
    let Ok(path) = std::env::var("PONTOON_TALLY") else { return };
    let line = format!("{} seed {seed} {what}\n", std::env::var("PONTOON_TALLY_AS").unwrap_or_default());
    let tally = File::options().append(true).create(true).open(&path);
    // In one piece, so that others may write there too.
    tally.and_then(|mut tally| tally.write_all(line.as_bytes())).unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// Runs each of so many seeds twice: both traces must be the same, line by line.
pub(crate) fn replay_all(default: u64, spawn: Spawn) {
    show_logs();
    let (first, count) = wanted(default);
    let mut hashes = BTreeMap::new();
    for seed in first..first + count {
        let [one, other] = [spawn(seed, true), spawn(seed, true)].map(|run| {
            run.join().unwrap_or_else(|panic| {
                eprintln!("PONTOON_SEED={seed} panicked");
                std::panic::resume_unwind(panic)
            })
        });
        if let Some(difference) = first_difference(&one.lines, &other.lines) {
            let paths = [keep(seed, "-1", &one.lines), keep(seed, "-2", &other.lines)];
            panic!("seed {seed} does not replay (traces in {paths:?}), {difference}");
        }
        assert_eq!(one.hash, other.hash);
        assert!(one.lines.len() > 1000, "seed {seed}: nothing much is in the trace");
        if let Some(twin) = hashes.insert(one.hash, seed) {
            panic!("seeds {seed} and {twin} give the same trace");
        }
    }
}
