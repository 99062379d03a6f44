//! `bench` in each of its forms, small, and what it refuses: a figure that means nothing is none.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::{status, stderr, stdout};
use crate::support::{Cluster, pontoon, run};

async fn figures(cluster: &Cluster, args: &[&str]) -> Value {
    let servers = cluster.servers();
    let output = run(&[&["bench", "--json", "--server", &servers], args].concat(), b"").await;
    assert_eq!(status(&output), 0, "{args:?}: {}", stderr(&output));
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(figures["bench"], args[0], "{figures}");
    figures
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_form_measures_something() {
    let mut cluster = Cluster::start(3).await;
    let latency = figures(&cluster, &["latency", "--seconds", "1", "--acks", "leader"]).await;
    assert!(latency["count"].as_u64().unwrap() > 0 && latency["errors"] == 0, "{latency}");
    cluster.create_topic(1, "t", 2).await;
    let named = ["produce", "--seconds", "30", "--mib", "1", "--inflight", "4", "--topic", "t", "--partitions", "2"];
    let produced = figures(&cluster, &named).await;
    assert_eq!((&produced["count"], &produced["partitions"]), (&1024.into(), &2.into()), "{produced}");
    let fetched = figures(&cluster, &["fetch", "--topic", "t", "--parallel", "2"]).await;
    assert!(fetched["bytes"].as_u64().unwrap() > 1 << 20, "{fetched}");
    let tails = figures(&cluster, &["tails", "--tails", "3", "--rate", "10", "--seconds", "1"]).await;
    assert!(tails["received"].as_u64().unwrap() > 0, "{tails}");
    let answers = figures(&cluster, &["answers", "--topic", "t", "--partitions", "2"]).await;
    assert_eq!(answers["partitions"], 2, "{answers}");
    let scratch = cluster.scratch().to_str().unwrap().to_owned();
    let raw = figures(&cluster, &["raw", "--seconds", "1", "--prewritten-mib", "1", "--dir", &scratch]).await;
    assert!(raw["count"].as_u64().unwrap() > 0, "{raw}");

    let url = cluster.url(2);
    let table = run(&["bench", "latency", "--seconds", "1", "--server", &url], b"").await;
    assert!(stdout(&table).lines().any(|line| line.starts_with("p99_us ")), "{}", stderr(&table));

    let victim = cluster.leader(1, "t", 0).await;
    let (pid, broker) = (cluster.pid(victim).to_string(), victim.to_string());
    let kill = ["failover", "--pid", &pid, "--broker", &broker, "--topic", "t", "--partitions", "2", "--seconds", "4"];
    let failover = figures(&cluster, &kill).await;
    assert!(failover["acknowledged"].as_u64().unwrap() > 0, "{failover}");
    cluster.forget_ended(victim);
}

/// As a client does; without it, all of a partition's requests fail until the load ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_goes_on_with_the_next_leader() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let victim = cluster.leader(1, "t", 0).await;
    let other = 1 + victim % 3;
    let servers = cluster.servers();
    let load = ["bench", "produce", "--json", "--topic", "t", "--inflight", "1", "--bytes", "1024", "--mib", "2"];
    let load =
        tokio::spawn(async move { run(&[&load[..], &["--seconds", "60", "--server", &servers]].concat(), b"").await });
    let watermark = async |cluster: &Cluster| {
        let (_, offsets) = cluster.get(other, "/v1/topics/t/partitions/0/offsets").await;
        offsets["high_watermark"].as_u64().unwrap_or(0)
    };
    while watermark(&cluster).await == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let before = watermark(&cluster).await;
    cluster.kill(victim);
    let output = load.await.unwrap();
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (count, errors) = (figures["count"].as_u64().unwrap(), figures["errors"].as_u64().unwrap());
    assert!(errors > 0 && count + errors == 2048, "{figures}");
    assert!(count > before + 200, "{before} when its leader was killed: {figures}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_measured_is_refused_with_its_status() {
    let cluster = Cluster::start(1).await;
    let servers = cluster.servers();
    let bench = async |args: &[&str]| run(&[&["bench", "--server", &servers], args].concat(), b"").await;
    let bogus = bench(&["latency", "--acks", "bogus"]).await;
    assert!(status(&bogus) == 2 && stderr(&bogus).contains("bogus"), "{}", stderr(&bogus));
    for args in [&["fetch", "--topic", "nope"][..], &["produce", "--topic", "nope"]] {
        let gone = bench(args).await;
        let said = stderr(&gone);
        assert!(status(&gone) == 4 && said.contains("UNKNOWN_TOPIC") && !said.contains('{'), "{args:?}: {said}");
        assert!(gone.stdout.is_empty());
    }
    // Every request fails: its one record is larger than the topic takes.
    let failing = bench(&["latency", "--seconds", "1", "--bytes", "2000000"]).await;
    let said = stderr(&failing);
    assert!(status(&failing) == 1 && said.contains("RECORD_TOO_LARGE") && failing.stdout.is_empty(), "{said}");
    let nobody = ["bench", "produce", "--server", "127.0.0.1:1", "--patience", "1"];
    let unreachable = run(&nobody, b"").await;
    assert!(status(&unreachable) == 3 && stderr(&unreachable).contains("127.0.0.1:1"), "{}", stderr(&unreachable));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_pipe_is_quiet() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = pontoon();
    command.args(["bench", "raw", "--seconds", "1", "--prewritten-mib", "1", "--dir"]).arg(dir.path());
    let mut bench = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(bench.stdout.take());
    let (mut said, ended) = (String::new(), tokio::task::block_in_place(|| bench.wait()).unwrap());
    bench.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((ended.code(), said.as_str()), (Some(0), ""));
}
