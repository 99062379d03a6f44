//! What an operator does with the real binary beyond the everyday: a second signal, too few file descriptors, a lagging
//! replica, log lines that tell brokers apart, completions; and a raw fetch that is passed on whole.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{Cluster, PATIENCE, client, free_ports, free_ports_in_a_row, pontoon, read, run};

/// A process that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
}

/// `pontoon serve` of a cluster of its own, in a shell that runs `before` first.
fn serve_after(before: &str, dir: &std::path::Path, ports: &[u16]) -> Command {
    let binary = pontoon();
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{before}; exec \"$0\" \"$@\"")).arg(binary.get_program());
    command.args(["serve", "--broker-id", "1", "--data-dir"]).arg(dir.join("data"));
    command.args(["--bootstrap", &format!("1@127.0.0.1:{}", ports[0])]);
    command.args(["--http-listen", &format!("127.0.0.1:{}", ports[1])]);
    // Whatever the developer has set, and whatever else listens by default.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PONTOON_")) {
        command.env_remove(name);
    }
    command.args(["--set", &format!("kafka.listen=127.0.0.1:{}", ports[2])]);
    command.stderr(Stdio::piped()).stdout(Stdio::null());
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_at_once_with_130() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Killed(serve_after("true", dir.path(), &free_ports(3)).spawn().unwrap());
    let mut lines = BufReader::new(broker.0.stderr.take().unwrap()).lines();
    let mut wait_for = |word: &str| {
        let found =
            tokio::task::block_in_place(|| lines.by_ref().map_while(Result::ok).find(|line| line.contains(word)));
        assert!(found.is_some(), "it never said {word:?}");
    };
    wait_for("the cluster is formed");
    // While the process is stopped both signals gather; it then sees the one and, while it closes, the other.
    send(&broker.0, Signal::STOP);
    send(&broker.0, Signal::TERM);
    send(&broker.0, Signal::INT);
    send(&broker.0, Signal::CONT);
    wait_for("again: ending at once");
    let ended = tokio::task::block_in_place(|| broker.0.wait()).unwrap();
    assert_eq!(ended.code(), Some(130));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_file_descriptors_are_refused_and_few_are_complained_about() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), free_ports(3));
    let refused = tokio::task::block_in_place(|| serve_after("ulimit -n 512", dir.path(), &ports).output()).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("RLIMIT_NOFILE is 512; at least 1024 are needed (ulimit -n)"), "{said}");

    let mut broker = Killed(serve_after("ulimit -Sn 300; ulimit -Hn 4096", dir.path(), &ports).spawn().unwrap());
    let mut lines = BufReader::new(broker.0.stderr.take().unwrap()).lines();
    let mut said = String::new();
    while !said.contains("the cluster is formed") {
        let line = tokio::task::block_in_place(|| lines.next()).expect("it ended").unwrap();
        said += &format!("{line}\n");
    }
    assert!(
        said.contains(
            "RLIMIT_NOFILE is 4096: at most 682 connections to each listener, not limits.connections_max = 10000"
        ),
        "{said}"
    );
    let metrics = format!("http://127.0.0.1:{}/metrics", ports[1]);
    let text = crate::support::client().get(metrics).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("pontoon_process_max_fds 4096\n"), "the soft limit was raised to the hard one: {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_raw_fetch_is_passed_on_whole() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let leader = cluster.leader(1, "t", 0).await;
    for at in 0..24u8 {
        cluster.produce_text(leader, "t", 0, &String::from_utf8(vec![b'a' + at; 1_000_000]).unwrap()).await;
    }
    let fetch = async |id: u32| {
        let path = "/v1/topics/t/partitions/0/records?offset=0&max_bytes=67108864&consistency=linearizable";
        let request =
            cluster.http.get(format!("{}{path}", cluster.url(id))).header("accept", "application/octet-stream");
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        let cursor = (header("pontoon-next-offset"), header("pontoon-high-watermark"), header("content-length"));
        (cursor, answer.bytes().await.unwrap())
    };
    let (cursor, own) = fetch(leader).await;
    assert!(own.len() > 24_000_000 && cursor.0 == "24" && cursor.2 == own.len().to_string(), "{cursor:?}");
    for id in (1..=3).filter(|id| *id != leader) {
        let (passed, bytes) = fetch(id).await;
        assert_eq!(passed, cursor);
        assert!(bytes == own, "broker {id} passed on other bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_replica_is_told_with_its_lag_and_the_reason() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let leader = cluster.leader(1, "t", 0).await;
    let dead = leader % 3 + 1;
    cluster.kill(dead);
    for at in 0..3 {
        cluster.produce_text(leader, "t", 0, &format!("{at}{}", "x".repeat(500_000))).await;
    }
    let servers = cluster.servers();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let shown = run(&["status", "--json", "--server", &servers], b"").await;
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        let lagging = &shown["topics"][0]["partitions"][0]["lagging"][0];
        let told = lagging["bytes"].as_u64().is_some_and(|bytes| (1_500_000..2_000_000).contains(&bytes));
        if told && lagging["reason"] == "dead" && lagging["broker"] == dead && lagging["records"] == 3 {
            break;
        }
        assert!(Instant::now() < deadline, "{shown}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let text = run(&["status", "--server", &servers], b"").await;
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains(&format!("! broker {dead} is dead: nothing answers at")), "{text}");
    let lags = format!("t/0 has 2 of 3 replicas in sync: broker {dead} lags 1.4");
    assert!(text.contains(&lags) && text.contains("it is dead"), "{text}");
    cluster.spawn(dead);
    // As long as its return is news, nobody is sent to look at its disk.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, shown) = cluster.get(leader, "/v1/topics/t").await;
        let partition = &shown["partitions"][0];
        assert_ne!(partition["lagging"][0]["reason"], "stalled", "{shown}");
        if partition["in_sync"].as_array().is_some_and(|in_sync| in_sync.len() == 3) {
            break;
        }
        assert!(Instant::now() < deadline, "{shown}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.wait_ready(dead).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = run(&["status", "--server", &servers], b"").await;
        if String::from_utf8_lossy(&text.stdout).contains("all is well") {
            break;
        }
        assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&text.stdout));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// As long as a replica catches up at the rate that it may, it is told how far it is behind, and that it moves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_catches_up_is_told_with_what_it_lacks_until_it_is_there() {
    let mut cluster = Cluster::start_with(3, &["--set", "raft.catch_up_bytes_per_second=3000000"]).await;
    cluster.create_topic(1, "t", 1).await;
    let leader = cluster.leader(1, "t", 0).await;
    let behind = leader % 3 + 1;
    cluster.kill(behind);
    // Who lacks little has it at once.
    for at in 0..20 {
        cluster.produce_text(leader, "t", 0, &format!("{at}{}", "x".repeat(1_000_000))).await;
    }
    // In sync is who has what the leader had two seconds ago.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let began = Instant::now();
    cluster.spawn(behind);
    let mut lags = Vec::new();
    loop {
        let (_, shown) = cluster.get(leader, "/v1/topics/t").await;
        let partition = &shown["partitions"][0];
        if partition["in_sync"].as_array().is_some_and(|in_sync| in_sync.len() == 3) {
            break;
        }
        let lagging = &partition["lagging"][0];
        if lagging["reason"] == "catching_up" {
            lags.push(lagging["bytes"].as_u64().unwrap());
            if lags.len() == 1 {
                status_tells(&cluster.servers(), "catching up").await;
            }
        }
        assert!(began.elapsed() < PATIENCE, "{shown}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lags.dedup();
    assert!(lags.len() > 1 && lags.windows(2).all(|pair| pair[0] > pair[1]), "{lags:?}");
    // It may not be there sooner.
    assert!(began.elapsed() > Duration::from_secs(2), "20 MB came in {:?}", began.elapsed());
    assert_eq!(cluster.fetch_all(behind, "t", 0).await.len(), 20);
}

/// Waits until `status` has these words in it.
async fn status_tells(servers: &str, words: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = run(&["status", "--server", servers], b"").await;
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        if text.contains(words) {
            return;
        }
        assert!(Instant::now() < deadline, "{words}: {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Its successor has never heard of it since it leads: that is no lag of everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leader_is_not_said_to_lack_the_whole_log() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let leader = cluster.leader(1, "t", 0).await;
    cluster.produce_text(leader, "t", 0, &"x".repeat(500_000)).await;
    cluster.kill(leader);
    let servers = cluster.servers();
    let words = format!("broker {leader} has not been heard of since the last election, it is dead");
    status_tells(&servers, &words).await;
    for id in (1..=3).filter(|id| *id != leader) {
        assert_eq!(cluster.metric(id, "pontoon_replica_lag_bytes_max").await, 0.0);
    }
}

/// The leader is left, and can commit nothing any more: it says so, at once, and appends nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_majority_refuses_and_is_told_of() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let (_, shown) = cluster.get(1, "/v1/cluster").await;
    let controller = shown["controller"].as_u64().unwrap() as u32;
    let created = cluster.create_topic(controller, "u", 6).await;
    let partitions = created["partitions"].as_array().unwrap();
    assert!(partitions.iter().all(|one| one["leader"].is_null() || one["takes_writes"] == true), "{created}");
    let leader = cluster.leader(1, "t", 0).await;
    cluster.produce_text(leader, "t", 0, "before").await;
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.kill(id);
    }
    // One that was on its way when they died waits its time.
    let url = format!("{}/v1/topics/t/partitions/0/records?timeout_ms=1000", cluster.url(leader));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = cluster.http.post(&url).header("content-type", "text/plain").body("x");
        let (status, answer) = read(request.send().await.unwrap()).await;
        if (status.as_u16(), &answer["error"], &answer["outcome"])
            == (503, &Value::from("NO_LEADER"), &Value::from("none"))
        {
            break;
        }
        assert!(Instant::now() < deadline, "{status} {answer}");
    }
    let (_, fetched) = cluster.get(leader, "/v1/topics/t/partitions/0/records?offset=0").await;
    assert_eq!(fetched["records"][0]["value"], "before", "what is committed is served on");
    let address = cluster.address(leader);
    status_tells(&address, "t/0 takes no writes: only 1 of 3 replicas live").await;
    status_tells(&address, "there is no controller").await;
    let deadline = Instant::now() + PATIENCE;
    while cluster.metric(leader, "pontoon_partitions_without_leader").await == 0.0
        || cluster.metric(leader, "pontoon_controller_known").await == 1.0
    {
        assert!(Instant::now() < deadline, "broker {leader}, of controller {controller}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.restart(leader % 3 + 1).await;
    cluster.produce_text(leader, "t", 0, "after").await;
}

/// What nobody can say is not said to be nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_that_nobody_can_tell_of_for_want_of_a_majority_are_not_said_to_be_none() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let offsets = json!({"offsets": [{"topic": "t", "partition": 0, "offset": 0}]});
    let put = cluster.ask(1, reqwest::Method::PUT, "/v1/groups/g/offsets", Some(offsets)).await;
    assert_eq!(put.0, StatusCode::NO_CONTENT);
    let coordinator = cluster.get(1, "/v1/groups/g").await.1["coordinator"].as_u64().unwrap() as u32;
    let until_unavailable = async |cluster: &Cluster, wanted: Value| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, list) = cluster.get(coordinator, "/v1/groups").await;
            if status == StatusCode::OK && list["unavailable"] == wanted {
                return list["groups"].as_array().unwrap().len();
            }
            assert!(Instant::now() < deadline, "{status} {list}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let status =
        async |cluster: &Cluster| run(&["status", "--groups", "--server", &cluster.url(coordinator)], b"").await;
    let [first, second] = [coordinator % 3 + 1, (coordinator + 1) % 3 + 1];
    // One that is dead coordinates nothing any more: all there is to tell is told.
    cluster.kill(first);
    let deadline = Instant::now() + PATIENCE;
    while cluster.metric(coordinator, "pontoon_partitions_without_leader").await > 0.0
        || cluster.get(coordinator, "/v1/cluster").await.1["brokers"][first as usize - 1]["alive"] == true
    {
        assert!(Instant::now() < deadline, "{}", cluster.log(coordinator));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(until_unavailable(&cluster, json!([])).await, 1);
    let told = status(&cluster).await;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.status.code() == Some(0) && text.lines().any(|line| line.starts_with("g ")), "{text}");

    cluster.kill(second);
    assert_eq!(until_unavailable(&cluster, json!([1, 2, 3])).await, 0);
    let told = status(&cluster).await;
    let (text, said) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert_eq!(told.status.code(), Some(5), "{text}{said}");
    assert!(!text.contains("no consumer groups") && text.contains("! brokers 1, 2, 3 did not say"), "{text}");
    assert!(said.contains("there may be more groups"), "{said}");
}

/// Whoever waits for an election that cannot succeed waits for ever: it is said what is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_can_elect_nobody_says_what_is_missing() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let alone = json!({"name": "alone", "partitions": 1, "replicas": 1});
    assert_eq!(cluster.post(1, "/v1/topics", alone).await.0, StatusCode::CREATED);
    let holder = cluster.leader(1, "alone", 0).await;
    cluster.produce_text(holder, "alone", 0, "the only copy").await;
    let other = holder % 3 + 1;
    cluster.kill(holder);
    let words = format!("alone/0 has no leader: its only replica is on broker {holder}, which is dead: start it");
    status_tells(&cluster.url(other), &words).await;
    // It comes back with an empty disk.
    std::fs::remove_dir_all(cluster.data_dir(holder)).unwrap();
    cluster.restart(holder).await;
    let words =
        format!("alone/0 has no leader: its only replica, on broker {holder}, is lost, and with it the records");
    status_tells(&cluster.servers(), &words).await;
    let (status, refused) = cluster.get(other, "/v1/topics/alone/partitions/0/offsets?timeout_ms=100").await;
    let why = refused["message"].as_str().unwrap();
    assert!(status == 503 && why.contains("none can be elected: 0 of 1 replicas can vote"), "{status} {refused}");
    let deadline = Instant::now() + PATIENCE;
    while cluster.get(other, "/v1/topics/t").await.1["partitions"][0]["in_sync"].as_array().unwrap().len() < 3 {
        assert!(Instant::now() < deadline, "the other topic's replica is not filled again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The leader dies, and another: who is left cannot elect itself.
    let leader = cluster.leader(other, "t", 0).await;
    let (next, left) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    cluster.kill(leader);
    cluster.kill(next);
    let (low, high) = (leader.min(next), leader.max(next));
    let words = format!("t/0 has no leader: only 1 of 3 replicas live; start brokers {low}, {high}");
    status_tells(&cluster.url(left), &words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_goes_on_and_a_closed_pipe_is_quiet() {
    let cluster = Cluster::start(1).await;
    let mut watching = Killed(
        pontoon()
            .args(["status", "--watch", "--json", "--server", &cluster.servers()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut lines = BufReader::new(watching.0.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line = tokio::task::block_in_place(|| lines.next()).unwrap().unwrap();
        let shown: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&shown["troubles"], &shown["cluster"]["controller"]),
            (&serde_json::json!([]), &serde_json::json!(1))
        );
    }
    drop(lines);
    let ended = tokio::task::block_in_place(|| watching.0.wait()).unwrap();
    assert_eq!(ended.code(), Some(0));
}

/// `dev` with this in `PONTOON_LOG`, what it says as JSON, and its first HTTP port.
fn told_by_dev(dir: &tempfile::TempDir, log: Option<&str>) -> (Killed, Lines<BufReader<ChildStderr>>, u16) {
    let first = free_ports_in_a_row(9);
    let (http, peer, kafka) = (first.to_string(), (first + 3).to_string(), (first + 6).to_string());
    let mut command = pontoon();
    command
        .args(["dev", "--log-format", "json", "--data", dir.path().join("dev").to_str().unwrap()])
        .args(["--http-port", &http, "--peer-port", &peer, "--kafka-port", &kafka])
        .envs(log.map(|log| ("PONTOON_LOG", log)))
        .stderr(Stdio::piped());
    let mut dev = Killed(command.spawn().unwrap());
    let lines = BufReader::new(dev.0.stderr.take().unwrap()).lines();
    (dev, lines, first)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_lines_of_dev_tell_brokers_groups_and_connections_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (_dev, mut lines, first) = told_by_dev(&dir, Some("error,pontoon=debug,pontoon_raft=debug"));
    // What is wanted: (span, a field of it, the broker).
    let mut wanted: Vec<(&str, &str, String)> = Vec::new();
    for broker in 1..=3 {
        wanted.push(("broker", "broker", broker.to_string()));
        wanted.push(("peer", "connection", broker.to_string()));
        wanted.push(("http", "peer", broker.to_string()));
        wanted.push(("kafka", "peer", broker.to_string()));
    }
    wanted.push(("group", "replica", "any".to_owned()));
    let client = crate::support::client();
    let asking = tokio::spawn(async move {
        loop {
            for at in 0..3 {
                let _ = client.get(format!("http://127.0.0.1:{}/healthz", first + at)).send().await;
                // No frame is so long: the connection is closed, and that is told.
                if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", first + 6 + at)).await {
                    let _ = stream.write_all(&[0xff; 4]).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    while !wanted.is_empty() {
        let line =
            tokio::task::block_in_place(|| lines.next()).unwrap_or_else(|| panic!("never seen: {wanted:?}")).unwrap();
        let Ok(line) = serde_json::from_str::<Value>(&line) else { continue };
        for span in line["spans"].as_array().into_iter().flatten() {
            let of = span["broker"]
                .as_u64()
                .map_or_else(|| span["broker"].as_str().unwrap_or("").to_owned(), |id| id.to_string());
            wanted.retain(|(name, field, broker)| {
                span["name"] != *name || span.get(field).is_none() || (broker != "any" && *broker != of)
            });
        }
    }
    asking.abort();
}

/// Three brokers write to one terminal: whatever one of them says, it is seen whose word it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_log_line_of_a_broker_in_dev_says_whose_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (_dev, mut lines, first) = told_by_dev(&dir, None);
    let client = client();
    let working = tokio::spawn(async move {
        let url = |path: &str| format!("http://127.0.0.1:{first}{path}");
        let offsets = json!({"offsets": [{"topic": "t", "partition": 0, "offset": 0}]});
        loop {
            let _ = client.post(url("/v1/topics")).json(&json!({"name": "t"})).send().await;
            let _ = client.put(url("/v1/groups/g/offsets")).json(&offsets).send().await;
            let _ = client.delete(url("/v1/topics/t")).send().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut wanted = vec!["recovered", "consumer groups are loaded", "replica deleted"];
    while !wanted.is_empty() {
        let line =
            tokio::task::block_in_place(|| lines.next()).unwrap_or_else(|| panic!("never seen: {wanted:?}")).unwrap();
        let Ok(told) = serde_json::from_str::<Value>(&line) else { continue };
        let of_a_broker = |target: &str| {
            let rooms = ["broker", "catalog", "controller", "coordinator", "partition"];
            target.starts_with("pontoon_raft")
                || rooms.iter().any(|room| target.starts_with(&format!("pontoon::{room}")))
        };
        let spans = told["spans"].as_array().into_iter().flatten();
        let says = spans.chain([&told["fields"]]).any(|span| span.get("broker").is_some());
        assert!(says || !of_a_broker(told["target"].as_str().unwrap()), "{line}");
        wanted.retain(|message| told["fields"]["message"] != *message);
    }
    working.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_are_printed_for_the_shells_there_are() {
    for shell in ["bash", "zsh", "fish"] {
        let printed = run(&["completions", shell], b"").await;
        assert_eq!(printed.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&printed.stdout).contains("consume"), "{shell}");
        if shell == "bash" {
            // What a shell would do when somebody presses the tabulator.
            let asked =
                "\nCOMP_WORDS=(pontoon cons) COMP_CWORD=1; _pontoon pontoon cons pontoon; echo ${COMPREPLY[@]}\n";
            let script = [&printed.stdout[..], asked.as_bytes()].concat();
            let done = Command::new("bash").arg("-c").arg(String::from_utf8(script).unwrap()).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&done.stdout), "consume\n", "{done:?}");
        }
    }
    assert_eq!(run(&["completions", "cmd"], b"").await.status.code(), Some(2));
}

/// A broker on a disk that is full from the first cannot join, and says why where people look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_named_where_a_broker_is_not_ready_for_it() {
    let full =
        ["--set=raft.reserve_append_bytes=1000000000000000", "--set=raft.reserve_produce_bytes=1000000000000001"];
    let mut cluster = Cluster::prepare(3, &full);
    (1..=3).for_each(|id| cluster.spawn(id));
    let deadline = Instant::now() + PATIENCE;
    let mut said = String::new();
    while !said.contains("raft.reserve_append_bytes") {
        assert!(Instant::now() < deadline, "{said}\n{}", cluster.log(2));
        tokio::time::sleep(Duration::from_millis(50)).await;
        let answer = client().get(format!("{}/readyz", cluster.url(2))).send().await;
        if let Ok(answer) = answer {
            said = answer.text().await.unwrap();
        }
    }
    assert!(cluster.log(2).contains("the disk is full"), "{}", cluster.log(2));
}
