//! Crashes at every step of a scripted life of a data directory, and what is there afterwards (RULES.md J).
//!
//! The script (`script`) runs once undisturbed, and every state each replica goes through is noted. Then it runs again and again,
//! with the machine losing power, or the process being killed, at one disk operation after the other. What a recovery finds must
//! be one of the noted states, no older than what had been acknowledged. A second crash strikes within the recovery itself.
//!
//! By default every so many operations are tried, so that the test takes seconds; `PONTOON_CRASH_ALL=1` tries all.
#![allow(clippy::unwrap_used)]

mod damage;
mod driver;
mod rot;
mod script;

use std::collections::BTreeMap;
use std::time::Duration;

use driver::{Driver, Progress, States, check, open};
use pontoon_raft::disk::sim::SimDisk;

/// How the process ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The page cache is lost, torn as the seed says.
    PowerLoss(u64),
    /// The page cache survives.
    Kill,
}

impl End {
    fn strike(self, disk: &SimDisk) -> SimDisk {
        match self {
            Self::PowerLoss(seed) => disk.crash_with(seed),
            Self::Kill => disk.kill(),
        }
    }
}

fn stride(default: u64) -> u64 {
    if std::env::var_os("PONTOON_CRASH_ALL").is_some() { 1 } else { default }
}

/// Runs a test in tokio's paused time; one that hangs fails.
fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let done = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(3600), test).await });
    done.expect("the test hangs")
}

/// The undisturbed run: every state, how many operations it takes, and which belong to which part of the script.
fn rehearse() -> (States, u64, Vec<(u64, &'static str)>) {
    let disk = SimDisk::new(7);
    let driver = run(async {
        let mut driver = Driver::new(disk.clone(), None);
        script::run(&mut driver).await.expect("the undisturbed run fails");
        driver
    });
    let mut dropped = disk.dirty_drops();
    // A growing segment's index may be lost, or garbled: it is made anew. Nothing else may.
    dropped.retain(|path| !path.to_string_lossy().trim_end_matches(".tmp").ends_with(".index"));
    assert_eq!(dropped, Vec::<std::path::PathBuf>::new(), "closed before their sync");
    let (states, labels) = driver.recorded();
    (states, disk.ops(), labels)
}

/// The script, struck at the operation `at`. What had been issued and acknowledged, and the disk as it is then.
fn disturbed(at: u64, end: End) -> (Progress, SimDisk, bool) {
    let disk = SimDisk::new(7);
    disk.crash_at_op(at);
    let (progress, result) = run(async {
        let mut driver = Driver::new(disk.clone(), Some(at));
        let result = script::run(&mut driver).await;
        (driver.progress(), result)
    });
    let crashed = disk.has_crashed();
    assert!(crashed || result.is_ok(), "operation {at} was not reached, but {result:?}");
    (progress, end.strike(&disk), crashed)
}

fn ends(at: u64) -> [End; 3] {
    [End::PowerLoss(at), End::PowerLoss(at ^ 0x5eed), End::Kill]
}

#[test]
fn what_was_acknowledged_survives_a_crash_at_any_step() {
    let (states, ops, labels) = rehearse();
    let mut struck: BTreeMap<&str, u64> = BTreeMap::new();
    let step = stride(4);
    for at in (0..ops).step_by(step as usize) {
        let label = labels.iter().rev().find(|(from, _)| *from <= at).map_or("", |(_, label)| label);
        *struck.entry(label).or_default() += 1;
        let all = ends(at);
        let some = if step == 1 { &all[..] } else { &all[(at / step) as usize % 3..][..1] };
        for end in some {
            let (progress, disk, crashed) = disturbed(at, *end);
            // The undisturbed run looks at every state; that lets background work run a few steps further before the end.
            assert!(crashed || at + 16 >= ops, "operation {at} ({label}) was not reached");
            run(async {
                let store = open(&disk).await.unwrap_or_else(|error| panic!("{label}, {at}, {end:?}: {error}"));
                check(&store, &states, &progress, &format!("{label}, operation {at}, {end:?}")).await;
                store.close().await.unwrap();
            });
        }
    }
    for part in [
        "open",
        "create",
        "journal write",
        "bypass",
        "roll",
        "vote",
        "checkpoint",
        "truncate",
        "purge",
        "log start",
        "install",
        "delete",
    ] {
        assert!(struck.get(part).is_some_and(|count| *count > 0), "nothing struck in {part}: {struck:?}");
    }
    println!("crashed at {} of {ops} operations: {struck:?}", struck.values().sum::<u64>());
}

#[test]
fn what_was_acknowledged_survives_crashes_within_recovery() {
    let (states, ops, labels) = rehearse();
    let mut recoveries = 0;
    let step = stride(23);
    for at in (0..ops).step_by(step as usize) {
        let label = labels.iter().rev().find(|(from, _)| *from <= at).map_or("", |(_, label)| label);
        let (progress, disk, _) = disturbed(at, ends(at)[(at / step) as usize % 3]);
        // How long the recovery is that is to be disturbed.
        let whole = disk.fork();
        let recovery_ops = run(async {
            let before = whole.ops();
            let store = open(&whole).await.unwrap();
            let ops = whole.ops() - before;
            drop(store);
            ops
        });
        let again = stride(5);
        for second in ((at % again)..recovery_ops).step_by(again as usize) {
            let disk = disk.fork();
            disk.crash_at_op(disk.ops() + second);
            let story = format!("{label}, operation {at}, then operation {second} of {recovery_ops} of the recovery");
            run(async {
                let opened = open(&disk).await;
                assert!(opened.is_err() || disk.has_crashed(), "{story}: not disturbed");
            });
            let disk = ends(second)[(second / again) as usize % 3].strike(&disk);
            run(async {
                let store = open(&disk).await.unwrap_or_else(|error| panic!("{story}: {error}"));
                check(&store, &states, &progress, &story).await;
                store.close().await.unwrap();
            });
            recoveries += 1;
        }
    }
    assert!(recoveries > 50, "{recoveries}");
    println!("{recoveries} recoveries were struck");
}
