//! The binary on the committed sample: a small history in which one acknowledged value was taken out of every poll.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn sample() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/lost-write");
    for file in fs::read_dir(data).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    dir
}

fn binary(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pontoon-jepsen")).args(args).output().unwrap()
}

fn replay(dir: &Path) -> (i32, String) {
    let output = binary(&["--replay", dir.to_str().unwrap()]);
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

fn edit(dir: &Path, file: &str, change: impl Fn(String) -> String) {
    let path = dir.join(file);
    fs::write(&path, change(fs::read_to_string(&path).unwrap())).unwrap();
}

fn results(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("results.json")).unwrap()).unwrap()
}

/// The value that was lost, by the results.
fn lost(dir: &Path) -> (i64, String) {
    let case = &results(dir)["anomalies"]["lost-write"]["cases"][0];
    (case["values"][0].as_i64().unwrap(), case["operations"][0].as_str().unwrap().to_owned())
}

#[test]
fn the_lost_write_is_found_and_told_to_machines_and_people() {
    let dir = sample();
    let (code, told) = replay(dir.path());
    assert_eq!(code, 1, "{told}");
    assert!(told.contains("1 × lost-write"), "{told}");
    let results = results(dir.path());
    assert_eq!((&results["verdict"], &results["valid"]), (&Value::from("anomalies"), &Value::from(false)));
    assert_eq!(results["anomalies"]["lost-write"]["count"], 1);
    assert_eq!(results["anomalies"]["lost-write"]["allowed"], false);
    assert_eq!(results["faults"][0]["time_to_recover_ms"], 80.0);
    let (value, writer) = lost(dir.path());
    assert!(writer.contains(":type :ok") && writer.contains(&format!(" {value}]]]")), "{writer}");
    let page = fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains(&format!("{value} at offset")));
}

#[test]
fn a_replay_writes_the_same_again() {
    let dir = sample();
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    replay(dir.path());
    let (first_results, first_page) = (read("results.json"), read("report.html"));
    replay(dir.path());
    assert!(first_results == read("results.json") && first_page == read("report.html"));
}

/// The same run without the send whose value vanished: valid.
fn mended() -> tempfile::TempDir {
    let dir = sample();
    replay(dir.path());
    let (value, _) = lost(dir.path());
    // It certainly did not happen: nothing is lost.
    edit(dir.path(), "history.edn", |text| {
        let is_ok = |line: &str| {
            line.contains(":type :ok") && line.contains(":f :send") && line.contains(&format!(" {value}]]]"))
        };
        let mend = |line: &str| if is_ok(line) { line.replace(":type :ok", ":type :fail") } else { line.to_owned() };
        text.lines().map(mend).collect::<Vec<_>>().join("\n")
    });
    dir
}

#[test]
fn a_run_with_nothing_wrong_exits_with_0() {
    let dir = mended();
    let (code, told) = replay(dir.path());
    assert_eq!(code, 0, "{told}");
    assert_eq!(results(dir.path())["valid"], true);
}

#[test]
fn a_run_that_proves_nothing_exits_with_3() {
    let dir = mended();
    edit(dir.path(), "run.json", |text| text.replace("\"kill\"", "\"kill\", \"pause\""));
    assert_eq!(replay(dir.path()).0, 3);
    assert_eq!(results(dir.path())["rejections"][0], "pause was planned and never injected");

    let dir = mended();
    edit(dir.path(), "timeline.jsonl", |text| {
        text.lines().filter(|line| !line.contains("\"end\"")).collect::<Vec<_>>().join("\n")
    });
    let (code, told) = replay(dir.path());
    assert_eq!((code, told.contains("unknown: the run never ended")), (3, true), "{told}");

    let dir = mended();
    edit(dir.path(), "history.edn", |text| text[..text.len() / 2].to_owned());
    let (code, told) = replay(dir.path());
    assert_eq!((code, told.contains("unknown: history line")), (3, true), "{told}");
    assert_eq!(results(dir.path())["valid"], "unknown");
}

#[test]
fn usage_errors_exit_with_2() {
    let nowhere: PathBuf = tempfile::tempdir().unwrap().path().join("nowhere");
    let nowhere = nowhere.to_str().unwrap();
    let cases: [&[&str]; 7] = [
        &[],
        &["--replay"],
        &["--fly"],
        &["--replay", "x", "list"],
        &["--replay", nowhere],
        // Nobody would be told that a send met its original.
        &["--scenario", "retries", "--client", "kafka", "--out", nowhere, "--bin", nowhere],
        // No time for each fault to happen.
        &["--nodes", "3", "--time", "60", "--seed", "1", "--nemesis", "all", "--out", nowhere],
    ];
    for args in cases {
        let output = binary(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn what_exists_is_listed() {
    let output = binary(&["list"]);
    let listed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for name in ["lost-write", "G1c-realtime", "stale-read", "txn-subscribe"] {
        assert!(listed.contains(name), "{name}");
    }
}
