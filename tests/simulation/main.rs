//! Three real brokers, HTTP door and all, and their client in one process, on a simulated network, disk and clock, under one seed.
//!
//! The client (`client`) produces, reads and asks for confirmed ends over HTTP, while machines lose power, processes are killed and
//! stopped, wires are cut, held, slowed and cut one way, disks stall, fail, fill up, rot and get lost (`faults`). Observers
//! (`observer`) look at every replica all the time. Every fact goes through the ledger (`ledger`) to every invariant (`invariants`).
//! Once the faults are over, everything must become writable again within a bound; then all machines lose their power once more,
//! the brokers must agree on everything, and the client reads all there is.
//!
//! One seed is one run: the trace of all operations on disks and peers' wires, and of all answers, comes out the same, line by line
//! (`owned` says what that takes). `broken` are the variants of Pontoon that the invariants must notice.
//!
//! `scripts/simulate` runs many seeds. By hand: `PONTOON_SEED=n` tries that seed, `PONTOON_SEEDS=n` so many from there on;
//! `PONTOON_TRACE=1` keeps the traces of good seeds too (those of bad ones are always kept);
//! `PONTOON_LOG=pontoon=debug,pontoon_raft=debug` shows the brokers' logs.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod broken;
mod client;
mod cluster;
#[path = "../../raft/tests/simulation/disk.rs"]
mod disk;
mod event;
mod faults;
mod http;
mod invariants;
mod ledger;
#[path = "../../raft/tests/simulation/net.rs"]
mod net;
mod observer;
#[path = "../../raft/tests/simulation/owned.rs"]
mod owned;
mod run;
#[path = "../../raft/tests/simulation/trace.rs"]
mod trace;

use std::path::{Path, PathBuf};

use broken::{VARIANTS, Variant};
use run::{Plan, Run};
use trace::first_difference;

/// Seeds that are tried by default, and how many are run twice.
const SEEDS: u64 = 4;
const REPLAYED: u64 = 1;

/// Runs, and ends the test with the panic if there was one.
fn finish(seed: u64, run: std::thread::JoinHandle<Run>) -> Run {
    run.join().unwrap_or_else(|panic| {
        eprintln!("PONTOON_SEED={seed} panicked");
        std::panic::resume_unwind(panic)
    })
}

/// Keeps a trace for the reader of a failed test.
fn keep(seed: u64, name: &str, lines: &[String]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("simulation-{seed}{name}.trace"));
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

fn show_logs() {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("PONTOON_LOG") {
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).try_init();
    }
}

/// One line for the tally: `scripts/simulate` reads it.
fn report(seed: u64, run: &Run) {
    let struck: Vec<String> = run.struck.iter().map(|(kind, count)| format!("{kind}={count}")).collect();
    let (hash, acknowledged, terms, ms) = (run.hash, run.acknowledged, run.terms, run.simulated_ms);
    let lines = run.lines.len();
    eprintln!(
        "seed {seed}: {lines} lines, hash {hash:08x}, {acknowledged} acknowledged, {terms} terms, {ms} ms; {}",
        struck.join(", ")
    );
}

#[test]
fn nothing_breaks_whatever_goes_wrong() {
    show_logs();
    let first = number("PONTOON_SEED").unwrap_or(1);
    let count = number("PONTOON_SEEDS").unwrap_or(if number("PONTOON_SEED").is_some() { 1 } else { SEEDS });
    let mut bad = Vec::new();
    // Two at a time.
    for pair in (first..first + count).collect::<Vec<_>>().chunks(2) {
        let runs: Vec<_> = pair.iter().map(|seed| (*seed, Plan::sound(*seed).spawn())).collect();
        for (seed, run) in runs {
            let run = finish(seed, run);
            report(seed, &run);
            if !run.broken.is_empty() {
                let path = keep(seed, "", &run.lines);
                let why: Vec<String> =
                    run.broken.iter().map(|broken| format!("  {}: {}", broken.invariant, broken.why)).collect();
                let why = why.join("\n");
                eprintln!("PONTOON_SEED={seed} (trace in {}):\n{why}", path.display());
                bad.push(seed);
            } else if number("PONTOON_TRACE").is_some() {
                eprintln!("trace in {}", keep(seed, "", &run.lines).display());
            }
            assert!(!run.broken.is_empty() || run.acknowledged > 50, "seed {seed}: nothing much happened");
        }
    }
    assert!(bad.is_empty(), "seeds {bad:?}: replay with PONTOON_SEED={} cargo test --test simulation", bad[0]);
}

#[test]
fn a_seed_replays_to_the_same_trace() {
    if !owned::tokio_is_seeded() {
        return;
    }
    let first = number("PONTOON_SEED").unwrap_or(1);
    for seed in first..first + REPLAYED {
        let [one, other] = [Plan::sound(seed).spawn(), Plan::sound(seed).spawn()].map(|run| finish(seed, run));
        if let Some(difference) = first_difference(&one.lines, &other.lines) {
            let paths = [keep(seed, "-1", &one.lines), keep(seed, "-2", &other.lines)];
            panic!("seed {seed} does not replay (traces in {paths:?}), {difference}");
        }
        assert_eq!(one.hash, other.hash);
        assert!(one.lines.len() > 1000, "seed {seed}: nothing much is in the trace");
    }
}

/// What a broken variant's process says when its invariant has noticed.
const NOTICED: &str = "the invariant has noticed";

/// Runs a broken variant in a process of its own: openraft's assertions may fail too, and where they do the process aborts.
fn notices(number: usize, seed: u64) -> bool {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "one_run_of_a_broken_variant", "--ignored", "--nocapture"]);
    child.env("PONTOON_VARIANT", number.to_string()).env("PONTOON_SEED", seed.to_string());
    let output = child.output().unwrap();
    String::from_utf8_lossy(&output.stderr).contains(NOTICED)
}

/// `PONTOON_VARIANT=n PONTOON_SEED=n`: one run of the n-th broken variant.
#[test]
#[ignore = "run by the tests of the variants, each in a process of its own"]
fn one_run_of_a_broken_variant() {
    show_logs();
    let (number, seed) = (number("PONTOON_VARIANT").unwrap_or(0) as usize, number("PONTOON_SEED").unwrap_or(1));
    let (variant, awaited, _) = VARIANTS[number];
    let run = finish(seed, Plan { seed, variant: Some(variant), awaited: Some(awaited) }.spawn());
    report(seed, &run);
    let mut noticed = run.broken.iter().filter(|broken| broken.invariant == awaited);
    match noticed.next() {
        Some(broken) => eprintln!("{NOTICED}: {variant:?}: {awaited}: {}", broken.why),
        None => eprintln!(
            "{variant:?}: {:?}, trace in {}",
            run.broken.first(),
            keep(seed, "-variant", &run.lines).display()
        ),
    }
}

/// Runs a broken variant until the invariant that must notice it does.
fn is_noticed(wanted: Variant) {
    for (number, (variant, awaited, seeds_max)) in VARIANTS.iter().enumerate() {
        if *variant == wanted {
            let noticed = (1..=*seeds_max).find(|seed| notices(number, *seed));
            let Some(seed) = noticed else { panic!("{variant:?}: {awaited} did not notice within {seeds_max} seeds") };
            eprintln!("{variant:?}: {awaited} noticed at seed {seed}");
        }
    }
}

macro_rules! variants {
    ($($name:ident => $variant:expr;)+) => {
        $(
            #[test]
            fn $name() {
                is_noticed($variant);
            }
        )+

        #[test]
        fn every_variant_has_its_test_and_every_invariant_its_variant() {
            let tested = [$($variant),+];
            assert!(VARIANTS.iter().all(|(variant, ..)| tested.contains(variant)));
            for invariant in invariants::all() {
                assert!(VARIANTS.iter().any(|(_, name, _)| *name == invariant.name()), "{}", invariant.name());
            }
        }
    };
}

use pontoon_raft::sabotage::Sabotage;

variants! {
    journal_syncs_that_are_skipped_are_noticed => Variant::SkipJournalSyncs;
    answers_before_the_commit_are_noticed => Variant::AnswerBeforeCommit;
    votes_that_are_granted_twice_are_noticed => Variant::Sabotage(Sabotage::GrantEveryVote);
    answers_before_the_sync_are_noticed => Variant::Sabotage(Sabotage::AnswerBeforeSync);
    followers_that_decide_are_noticed => Variant::Sabotage(Sabotage::FollowersDecide);
    offsets_for_blanks_are_noticed => Variant::Sabotage(Sabotage::BlanksTakeOffsets);
    replica_ids_that_are_used_again_are_noticed => Variant::Sabotage(Sabotage::ReuseReplicaIds);
    a_watermark_that_a_purge_resets_is_noticed => Variant::Sabotage(Sabotage::PurgeResetsTheWatermark);
    followers_that_forget_producers_are_noticed => Variant::Sabotage(Sabotage::FollowersForgetProducers);
    a_table_that_survives_a_truncation_is_noticed => Variant::Sabotage(Sabotage::TruncationKeepsTheTable);
}
