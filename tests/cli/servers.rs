//! Servers that are wrong, away, or without a majority: what is said of each, with which status.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

use super::{Killed, status, stderr, stdout};
use crate::support::{Cluster, PATIENCE, free_ports, pontoon, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_be_one_is_a_mistake() {
    for wrong in ["ftp://x", ":notaport", "https://localhost:8090", "http://localhost:8090/v1", ","] {
        for command in [&["status"][..], &["topic", "list"], &["bench", "latency"]] {
            let refused = run(&[command, &["--server", wrong]].concat(), b"").await;
            let said = stderr(&refused);
            assert!(status(&refused) == 2 && said.contains("server"), "{command:?} {wrong}: {said}");
        }
    }
    let tls = run(&["status", "--server", "https://localhost:8090"], b"").await;
    assert!(stderr(&tls).contains("TLS"), "{}", stderr(&tls));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_names_every_server_it_tried_and_says_that_it_tries() {
    let ports = free_ports(3);
    let servers: Vec<String> = ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
    let away = run(&["status", "--server", &servers.join(","), "--patience", "2"], b"").await;
    let said = stderr(&away);
    assert_eq!(status(&away), 3, "{said}");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("trying for 2 s"), "{said}");
    assert!(lines.iter().all(|line| servers.iter().all(|server| line.contains(server))), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_sees_brokers_go_and_come_back() {
    let mut cluster = Cluster::start(1).await;
    let mut command = pontoon();
    command.args(["status", "--watch", "--json", "--patience", "1", "--server", &cluster.servers()]);
    let mut watching = Killed(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut shown = BufReader::new(watching.0.stdout.take().unwrap()).lines();
    let mut said = BufReader::new(watching.0.stderr.take().unwrap()).lines();
    tokio::task::block_in_place(|| shown.next()).unwrap().unwrap();
    cluster.kill(1);
    let told = tokio::task::block_in_place(|| {
        said.by_ref().map_while(Result::ok).find(|line| line.contains("watching goes on"))
    });
    assert!(told.unwrap().contains(&cluster.address(1)));
    cluster.restart(1).await;
    cluster.create_topic(1, "after", 1).await;
    // Lines from before the kill may still be there; none of them has the topic.
    let back = tokio::task::block_in_place(|| shown.map_while(Result::ok).find(|line| line.contains("\"after\"")));
    assert!(back.is_some(), "it ended");
}

/// One of three brokers is up: it answers, and it is what it says that counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_the_servers_word_is_told() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    cluster.produce_text(1, "t", 0, "kept").await;
    cluster.kill(2);
    cluster.kill(3);
    let (one, all) = (cluster.url(1), cluster.servers());
    for servers in [&one, &all] {
        let produced = run(&["produce", "t", "--server", servers, "--patience", "4"], b"x\n").await;
        let said = stderr(&produced);
        assert!(status(&produced) == 1 && !said.contains("unknown"), "{}: {said}", status(&produced));
        assert!(said.contains("(503)"), "{said}");
        let consumed = run(&["consume", "t", "--server", servers, "--patience", "4"], b"").await;
        let said = stderr(&consumed);
        assert!(status(&consumed) == 1 && said.contains("NO_LEADER (503)"), "{}: {said}", status(&consumed));
    }
    let measured =
        run(&["bench", "produce", "--seconds", "1", "--topic", "t", "--server", &one, "--patience", "2"], b"").await;
    assert!(status(&measured) == 1, "{}: {}", status(&measured), stderr(&measured));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let shown = run(&["status", "--server", &all], b"").await;
        assert_eq!(status(&shown), 0, "{}", stderr(&shown));
        if stdout(&shown).contains("only 1 of 3 replicas live") {
            break;
        }
        assert!(Instant::now() < deadline, "{}", stdout(&shown));
    }
}
