//! Rot on the real binary: it is found, it is never served, and nothing acknowledged is lost while a good copy exists.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Cluster, run};

/// Files under a data directory whose path has this in it, sorted.
fn files(root: &Path, part: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().contains(part) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Flips one bit.
fn flip(path: &Path, position: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[position as usize] ^= 4;
    fs::write(path, bytes).unwrap();
}

fn lines(stdout: &[u8]) -> Vec<Value> {
    stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_file_is_shown_and_judged_offline() {
    let mut cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    for at in 0..20 {
        cluster.produce_text(1, "t", 0, &format!("value {at}")).await;
    }
    assert!(cluster.stop(1).success());
    let data = cluster.data_dir(1).to_owned();
    let dir = data.to_str().unwrap();

    let verified = run(&["log", "verify", dir, "--json"], b"").await;
    let reports = lines(&verified.stdout);
    assert_eq!(verified.status.code(), Some(0), "{reports:?}");
    for kind in ["segment", "base", "checkpoint", "identity", "journal", "cache", "lock"] {
        assert!(reports.iter().any(|report| report["kind"] == kind), "{kind}: {reports:?}");
    }

    // The partition's segment, not the catalog's.
    let segment = files(&data, ".segment").into_iter().find(|path| !path.to_string_lossy().contains("/0-")).unwrap();
    let name = segment.to_str().unwrap();
    let dumped = run(&["log", "dump", name, "--json", "--records"], b"").await;
    let items = lines(&dumped.stdout);
    assert_eq!(dumped.status.code(), Some(0));
    let values = items.iter().flat_map(|item| item["batch_records"].as_array().cloned().unwrap_or_default());
    let values: Vec<String> = values.map(|record| record["value"].as_str().unwrap().to_owned()).collect();
    assert_eq!(values, (0..20).map(|at| format!("value {at}")).collect::<Vec<_>>());
    assert_eq!((&items.last().unwrap()["what"], &items.last().unwrap()["sound"]), (&"report".into(), &true.into()));
    let text = run(&["log", "dump", name], b"").await;
    assert!(String::from_utf8_lossy(&text.stdout).contains("kind=records"));
    assert!(String::from_utf8_lossy(&text.stderr).contains("sound"));
    let catalog =
        files(&data, "/groups/0-").into_iter().find(|path| path.to_string_lossy().ends_with(".segment")).unwrap();
    let text = run(&["log", "dump", catalog.to_str().unwrap()], b"").await;
    assert!(String::from_utf8_lossy(&text.stdout).contains("FormCluster"));

    let middle = items.iter().find(|item| item["index"].as_u64().is_some_and(|index| index > 8)).unwrap();
    let position = middle["position"].as_u64().unwrap();
    flip(&segment, position + 70);
    let rotten = run(&["log", "verify", dir], b"").await;
    let (out, err) = (String::from_utf8_lossy(&rotten.stdout), String::from_utf8_lossy(&rotten.stderr));
    assert_eq!(rotten.status.code(), Some(1));
    assert!(out.contains(&format!("NOT SOUND from byte {position}")) && err.contains("1 of "), "{out}{err}");
    let dumped = run(&["log", "dump", name, "--json"], b"").await;
    assert_eq!((dumped.status.code(), lines(&dumped.stdout).len()), (Some(1), items.len() - 1));

    assert_eq!(run(&["log", "dump", "/nonsense"], b"").await.status.code(), Some(4));
    assert_eq!(run(&["log", "verify"], b"").await.status.code(), Some(2));
    let foreign = cluster.scratch().join("foreign");
    fs::write(&foreign, b"nothing of ours").unwrap();
    assert_eq!(run(&["log", "verify", foreign.to_str().unwrap()], b"").await.status.code(), Some(1));
}
