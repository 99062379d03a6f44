//! Three real brokers, HTTP door and all, and their client in one process, on a simulated network, disk and clock, under one seed.
//!
//! The client (`client`) produces, reads and asks for confirmed ends over HTTP, while machines lose power, processes are killed and
//! stopped, wires are cut, held, slowed and cut one way, disks stall, fail, fill up, rot and get lost (`faults`, `machines`). Observers
//! (`observer`) look at every replica all the time. Every fact goes through the ledger (`ledger`) to every invariant (`invariants`).
//! Once the faults are over, everything must become writable again within a bound; then all machines lose their power once more,
//! the brokers must agree on everything, and the client reads all there is.
//!
//! One seed is one run: the trace of all operations on disks and peers' wires, and of all answers, comes out the same, line by line
//! (`owned` says what that takes). `broken` are the variants of Pontoon that the invariants must notice.
//!
//! `scripts/simulate` runs many seeds. By hand: `PONTOON_SEED=n` tries that seed (`seeds` has the other variables);
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
#[path = "../../raft/tests/simulation/machines.rs"]
mod machines;
#[path = "../../raft/tests/simulation/net.rs"]
mod net;
mod observer;
#[path = "../../raft/tests/simulation/owned.rs"]
mod owned;
mod run;
#[path = "../../raft/tests/simulation/seeds.rs"]
mod seeds;
#[path = "../../raft/tests/simulation/trace.rs"]
mod trace;

use broken::{VARIANTS, Variant};
use run::Plan;
use seeds::{Told, keep, number, replay_all, run_all, show_logs};

/// The allocator that the binary has, too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Seeds that are tried by default, and how many are run twice.
const SEEDS: u64 = 100;
const REPLAYED: u64 = 1;

/// All that is counted: faults, calls that a disk has refused, what came of them, and what was looked at.
const KINDS: &[&str] = &[
    "power off",
    "black-out",
    "power cut of two",
    "kill",
    "stop",
    "partition",
    "isolation",
    "one-way cut",
    "hold",
    "delay",
    "slow disk",
    "stall",
    "full disk",
    "flipped bit",
    "cut file",
    "lost folder",
    "lost disk",
    "failed sync",
    "failed write",
    "failed read",
    "failed sync of a folder",
    "failed rename",
    "failed creation",
    "failed allocation",
    "failed removal",
    "failed change of length",
    "leadership handed over",
    "snapshots",
    "snapshots installed",
    "truncations",
    "quarantines",
    "refusals",
    "duplicates answered",
    "reads answered",
    "ends confirmed",
    "tables compared",
    "producers expired",
];

fn sound(seed: u64, traced: bool) -> std::thread::JoinHandle<Told> {
    Plan { seed, traced, variant: None, awaited: None }.spawn(|run| {
        let broken = run.broken.iter().map(|broken| format!("{}: {}", broken.invariant, broken.why)).collect();
        let (lines, hash, acknowledged, terms) = (run.lines, run.hash, run.acknowledged, run.terms);
        Told { broken, lines, hash, acknowledged, terms, simulated_ms: run.simulated_ms, struck: run.struck }
    })
}

#[test]
fn nothing_breaks_whatever_goes_wrong() {
    run_all(SEEDS, KINDS, sound);
}

#[test]
fn a_seed_replays_to_the_same_trace() {
    owned::assert_tokio_is_seeded();
    replay_all(REPLAYED, sound);
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
    let plan = Plan { seed, traced: true, variant: Some(variant), awaited: Some(awaited) };
    let run = plan.spawn(|run| run).join().expect("a run that comes to its end");
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
    snapshots_that_ignore_their_boundary_are_noticed => Variant::Sabotage(Sabotage::SnapshotsIgnoreTheBoundary);
    followers_that_forget_producers_are_noticed => Variant::Sabotage(Sabotage::FollowersForgetProducers);
    a_table_that_survives_a_truncation_is_noticed => Variant::Sabotage(Sabotage::TruncationKeepsTheTable);
}
