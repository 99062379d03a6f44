//! The command line on the real binary: data on stdout, exit statuses, clean stops, and starts that are refused.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use pontoon::kafka::messages::{MetadataRequest, MetadataTopicName, Request, Response};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kafka_hostile::Client;
use crate::support::{Cluster, PATIENCE, free_ports, free_ports_in_a_row, pontoon, run};

mod bench;
mod contract;
mod following;
mod formats;
mod groups;
mod played;
mod servers;
mod settings;
mod terminal;

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{}: {}", output.status, stderr(output)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_go_in_and_come_out() {
    let cluster = Cluster::start(1).await;
    let servers = cluster.servers();
    let with = |args: &[&'static str]| [args, &["--server"]].concat();
    let cli = async |args: &[&'static str], stdin: &[u8]| {
        let mut args: Vec<&str> = with(args);
        args.push(&servers);
        run(&args, stdin).await
    };
    let created = cli(&["topic", "create", "t", "--partitions", "2", "--json"], b"").await;
    assert_eq!(status(&created), 0, "{}", stderr(&created));
    assert_eq!(serde_json::from_slice::<Value>(&created.stdout).unwrap()["name"], "t");
    assert_eq!(status(&cli(&["topic", "create", "t"], b"").await), 1);

    let lines: Vec<String> = (0..1000).map(|at| format!("line {at} \u{e9}")).collect();
    let produced = cli(&["produce", "t", "--partition", "1"], lines.join("\n").as_bytes()).await;
    assert_eq!(status(&produced), 0, "{}", stderr(&produced));
    assert!(produced.stdout.is_empty() && stderr(&produced).contains("1000 lines acknowledged"));
    let consumed = cli(&["consume", "t"], b"").await;
    assert_eq!(stdout(&consumed).lines().collect::<Vec<_>>(), lines);
    let some = cli(&["consume", "t", "--partition", "1", "--from", "998", "--json"], b"").await;
    let some: Vec<Value> = stdout(&some).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((some.len(), &some[0]["offset"], &some[0]["partition"]), (2, &998.into(), &1.into()));

    let keyed = cli(&["produce", "t", "--key-separator", ":"], b"k:v:w\n\xff:\xfe\nk:last").await;
    assert_eq!(status(&keyed), 0, "{}", stderr(&keyed));
    let consumed = cli(&["consume", "t", "--format", "key-value"], b"").await;
    let at = |needle: &[u8]| consumed.stdout.windows(needle.len()).position(|window| window == needle);
    assert!(at(b"\xff\t\xfe\n").is_some() && at(b"k\tv:w\n").unwrap() < at(b"k\tlast\n").unwrap());
    let no_key = cli(&["produce", "t", "--key-separator", ":"], b"none").await;
    assert!(status(&no_key) == 1 && stderr(&no_key).contains("line 1"), "{}", stderr(&no_key));

    let shown = cli(&["status"], b"").await;
    assert!(stdout(&shown).contains("all is well"), "{}", stdout(&shown));
    let listed = cli(&["topic", "list"], b"").await;
    assert!(stdout(&listed).lines().any(|line| line.starts_with("t ")), "{}", stdout(&listed));
    assert_eq!(status(&cli(&["topic", "alter", "t", "--config", "retention.ms=5000"], b"").await), 0);
    let described = cli(&["topic", "describe", "t"], b"").await;
    assert!(stdout(&described).contains("retention.ms=5000"), "{}", stdout(&described));
    let deleted = cli(&["topic", "delete", "t"], b"").await;
    assert!(status(&deleted) == 0 && deleted.stdout.is_empty(), "{}", stdout(&deleted));
    assert_eq!(stderr(&deleted), "topic t is deleted\n");
    for args in [&["consume", "t"][..], &["produce", "t"], &["topic", "describe", "t"], &["topic", "delete", "t"]] {
        let gone = cli(args, b"x\n").await;
        assert!(status(&gone) == 4 && stderr(&gone).contains("UNKNOWN_TOPIC"), "{args:?}: {}", stderr(&gone));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_and_absences_have_their_own_statuses() {
    let nobody = ["--server", "http://127.0.0.1:1", "--patience", "1"];
    let unreachable = run(&[&["status"], &nobody[..]].concat(), b"").await;
    assert!(status(&unreachable) == 3 && stderr(&unreachable).contains("127.0.0.1:1"), "{}", stderr(&unreachable));
    for args in [&["topic"][..], &["consume"], &["consume", "t", "--from", "somewhere"], &["nonsense"]] {
        assert_eq!(status(&run(args, b"").await), 2, "{args:?}");
    }
    let explained = run(&["explain", "NO_LEADER"], b"").await;
    assert!(status(&explained) == 0 && stdout(&explained).contains("503"));
    assert_eq!(status(&run(&["explain", "NO_LEADR"], b"").await), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_that_cannot_be_are_refused_with_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pontoon.toml");
    fs::write(&file, "broker_id = 1\nbootstrap = [\"1@127.0.0.1:7090\"]\nhttp.listn = \"127.0.0.1:1\"\n").unwrap();
    let cases: [(&[&str], &[&str]); 9] = [
        (&["--config", file.to_str().unwrap()], &["http.listn", "http.listen", "pontoon.toml"]),
        (&["--broker-id", "1"], &["bootstrap"]),
        (&["--bootstrap", "1@127.0.0.1:7090"], &["broker_id"]),
        (&["--broker-id", "1", "--bootstrap", "1@127.0.0.1"], &["bootstrap", "127.0.0.1"]),
        (&["--broker-id", "1", "--bootstrap", "1@127.0.0.1:7090", "--http-listen", "0.0.0.0:8090"], &["http.listen"]),
        (&["--broker-id", "1", "--bootstrap", "1@127.0.0.1:7090", "--kafka-listen", "0.0.0.0:9"], &["kafka.listen"]),
        (&["--broker-id", "1", "--bootstrap", "1@127.0.0.1:7090", "--peer-listen", "0.0.0.0:9"], &["peer.listen"]),
        (
            &["--broker-id", "1", "--bootstrap", "1@127.0.0.1:7090", "--set", "raft.heartbeat_ms=x"],
            &["heartbeat_ms", "\"x\""],
        ),
        (
            &["--broker-id", "1", "--bootstrap", "1@127.0.0.1:7090", "--set", "http.listn=127.0.0.1:1"],
            &["http.listn", "http.listen"],
        ),
    ];
    for (args, words) in cases {
        let output = run(&[&["serve"], args].concat(), b"").await;
        assert_eq!(status(&output), 2, "{args:?}: {}", stderr(&output));
        assert!(words.iter().all(|word| stderr(&output).contains(word)), "{args:?}: {}", stderr(&output));
    }
    let mut by_variable = pontoon();
    by_variable.args(["serve", "--broker-id", "1", "--bootstrap", "1@127.0.0.1:7090"]).env("PONTOON_HTTP_LISTN", "x");
    let output = tokio::task::block_in_place(|| by_variable.output()).unwrap();
    let said = stderr(&output);
    assert!(
        status(&output) == 2 && said.contains("PONTOON_HTTP_LISTN") && said.contains("PONTOON_HTTP_LISTEN"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_that_cannot_be_is_named_as_one() {
    let ports = free_ports(2);
    let (http, bootstrap) = (format!("127.0.0.1:{}", ports[0]), format!("1@127.0.0.1:{}", ports[1]));
    let args = ["serve", "--broker-id", "1", "--data-dir", "/proc/nonsense", "--bootstrap", &bootstrap];
    let output = run(&[&args[..], &["--http-listen", &http, "--kafka-listen", "off"]].concat(), b"").await;
    let said = stderr(&output);
    assert!(status(&output) == 1 && said.contains("cannot create data_dir /proc/nonsense: "), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_told() {
    let ports = free_ports(2);
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let bootstrap = format!("1@127.0.0.1:{}", ports[1]);
    for taken in [ports[0], ports[1]] {
        let _holder = TcpListener::bind(("127.0.0.1", taken)).unwrap();
        let http = format!("127.0.0.1:{}", ports[0]);
        let args = ["serve", "--broker-id", "1", "--data-dir", data.to_str().unwrap(), "--bootstrap", &bootstrap];
        let output = run(&[&args[..], &["--http-listen", &http, "--kafka-listen", "off"]].concat(), b"").await;
        let said = stderr(&output);
        assert!(status(&output) == 1 && said.contains(&taken.to_string()) && said.contains("in use"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_in_use_or_of_another_broker_is_refused() {
    let mut cluster = Cluster::start(1).await;
    let data = cluster.data_dir(1).to_str().unwrap().to_owned();
    let ports = free_ports(2);
    let second = async |id: &str| {
        let bootstrap = format!("{id}@127.0.0.1:{}", ports[0]);
        let http = format!("127.0.0.1:{}", ports[1]);
        let args = ["serve", "--broker-id", id, "--data-dir", &data, "--bootstrap", &bootstrap, "--http-listen", &http];
        run(&[&args[..], &["--kafka-listen", "off"]].concat(), b"").await
    };
    let in_use = second("1").await;
    assert!(status(&in_use) == 1 && stderr(&in_use).contains("in use"), "{}", stderr(&in_use));
    assert!(cluster.stop(1).success());
    let foreign = second("2").await;
    assert!(status(&foreign) == 1 && stderr(&foreign).contains("belongs to broker 1"), "{}", stderr(&foreign));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_cleanly_and_answers_who_waits() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 3).await;
    cluster.produce_text(1, "t", 0, "kept").await;
    // For records of each partition: of those that it leads, and of others, which it has passed on to their leaders by the time that
    // it is stopped. All are sent before it is asked whether it has.
    let mut waiting = Vec::new();
    for partition in 0..3 {
        let path = format!("/v1/topics/t/partitions/{partition}/records?offset=latest&max_wait_ms=60000");
        let mut stream = TcpStream::connect(cluster.address(2)).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    let elsewhere = async || {
        let mut count = 0.0;
        for partition in 0..3 {
            count += if cluster.leader(2, "t", partition).await == 2 { 0.0 } else { 1.0 };
        }
        count
    };
    let deadline = Instant::now() + PATIENCE;
    while cluster.metric(2, "pontoon_http_forwarded_total").await < elsewhere().await {
        assert!(Instant::now() < deadline, "they do not wait");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let began = Instant::now();
    let ended = tokio::task::block_in_place(|| cluster.stop(2));
    assert_eq!(ended.code(), Some(0), "{}", cluster.log(2));
    assert!(began.elapsed() < PATIENCE);
    for mut stream in waiting {
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        assert!([&b"HTTP/1.1 200"[..], b"HTTP/1.1 503"].contains(&&status[..]), "{}", status.escape_ascii());
    }
    // The others go on, and the one that left comes back with what it had.
    cluster.produce_text(3, "t", 0, "meanwhile").await;
    cluster.restart(2).await;
    assert_eq!(cluster.fetch_all(2, "t", 0).await.len(), 2);
}

/// Nobody takes its leaderships, and clients that neither send nor read hold on to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_the_last_of_three_whoever_hangs_on() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    cluster.produce_text(1, "t", 0, "kept").await;
    let records = "/v1/topics/t/partitions/0/records";
    let requests = [
        format!(
            "POST {records} HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\ncontent-length: 100\r\n\r\nhalf"
        ),
        format!(
            "POST {records}?timeout_ms=60000 HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\ncontent-length: 1\r\n\r\nx"
        ),
        format!("GET {records}?offset=earliest HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n"),
        "GET /v1/clus".to_owned(),
    ];
    for id in [1, 3] {
        cluster.kill(id);
    }
    let mut hanging = Vec::new();
    for request in requests {
        let mut stream = TcpStream::connect(cluster.address(2)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        hanging.push(stream);
    }
    let deadline = Instant::now() + PATIENCE;
    while cluster.metric(2, "pontoon_http_connections").await < 4.0 {
        assert!(Instant::now() < deadline, "they are not taken");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let ended = tokio::task::block_in_place(|| cluster.stop(2));
    assert_eq!(ended.code(), Some(0), "{}", cluster.log(2));
    drop(hanging);
    cluster.restart_all(&[1, 2, 3]).await;
    let kept = cluster.fetch_all(2, "t", 0).await;
    assert_eq!(kept[0]["value"], "kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn following_prints_what_comes_and_a_closed_pipe_is_quiet() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 2).await;
    let mut consumer = pontoon()
        .args(["consume", "t", "--follow", "--server", &cluster.servers()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(consumer.stdout.take().unwrap());
    let mut line = String::new();
    for partition in [1, 0] {
        cluster.produce_text(1, "t", partition, &format!("to {partition}")).await;
        line.clear();
        tokio::task::block_in_place(|| lines.read_line(&mut line)).unwrap();
        assert_eq!(line, format!("to {partition}\n"));
    }
    drop(lines);
    cluster.produce_text(1, "t", 0, "into the void").await;
    let output = tokio::task::block_in_place(|| consumer.wait_with_output()).unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_runs_three_brokers_and_says_how_to_use_them() {
    let mut dev = Dev::start().await;
    let args = dev.args();
    let taken = run(&args.iter().map(String::as_str).collect::<Vec<_>>(), b"").await;
    assert!(status(&taken) == 1 && stderr(&taken).contains(&dev.first.to_string()), "{}", stderr(&taken));
    // Nor beside it on other ports, with its data.
    let args = Dev::args_of(free_ports_in_a_row(9), &dev.dir);
    let taken = run(&args.iter().map(String::as_str).collect::<Vec<_>>(), b"").await;
    assert!(status(&taken) == 1 && stderr(&taken).contains("in use by another process"), "{}", stderr(&taken));
    let shown = run(&["status", "--json", "--server", &dev.server(3)], b"").await;
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["cluster"]["brokers"].as_array().unwrap().len(), 3);
    // Kafka's clients make topics by asking for them.
    let mut client = Client::connect_at(&format!("127.0.0.1:{}", dev.first + 3)).await;
    let topics = || Some(vec![MetadataTopicName { name: Some("made-by-asking".into()), ..Default::default() }]);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let asked = Request::Metadata(MetadataRequest { topics: topics(), ..Default::default() });
        let Response::Metadata(told) = client.call(asked, 12).await else { panic!() };
        if (told.topics[0].error_code, told.brokers.len()) == (0, 3) {
            break;
        }
        // It has yet to be led, or to hear of the others' addresses.
        assert!(Instant::now() < deadline, "{told:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(dev.interrupt().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_of_dev_is_killed_and_started_by_hand_and_nothing_is_lost() {
    let mut dev = Dev::start().await;
    let servers = [dev.server(1), dev.server(3)].join(",");
    let created = run(&["topic", "create", "t", "--partitions", "3", "--server", &servers], b"").await;
    assert_eq!(status(&created), 0, "{}", stderr(&created));
    let mut expected = Vec::new();
    for (what, answer) in [("kill 2", "broker 2 is gone"), ("start 2", "broker 2 is back"), ("kill 3", "3 is gone")] {
        dev.say(what, answer).await;
        let lines: Vec<String> = (0..500).map(|at| format!("{at} after {what}")).collect();
        let produced = run(&["produce", "t", "--server", &servers], lines.join("\n").as_bytes()).await;
        assert_eq!(status(&produced), 0, "{}", stderr(&produced));
        expected.extend(lines);
    }
    // Lines that come at once are obeyed at once: no more input need come for the second.
    dev.say("start 3\nkill 3", "broker 3 is back").await;
    dev.hear("broker 3 is gone").await;
    for (what, answer) in [("kill 3", "3 is not running"), ("kill 4", "no broker 4"), ("dance", "is no command")] {
        dev.say(what, answer).await;
    }
    // Broker 2 was away, and broker 3 is: what was acknowledged meanwhile has come to 2, or its majority is not one.
    let consumed = run(&["consume", "t", "--server", &dev.server(2)], b"").await;
    let mut lines: Vec<String> = stdout(&consumed).lines().map(str::to_owned).collect();
    lines.sort();
    expected.sort();
    assert_eq!(lines, expected);
    assert_eq!(dev.interrupt().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_ends_dev_also_while_a_broker_of_it_is_being_started() {
    let mut dev = Dev::start().await;
    dev.say("kill 2", "broker 2 is gone").await;
    // It cannot start as long as somebody else has its port, and tries again for a while.
    let holder = loop {
        match TcpListener::bind(("127.0.0.1", dev.first + 1)) {
            Ok(holder) => break holder,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    dev.say("start 2", "broker 2 is starting").await;
    assert_eq!(dev.interrupt().code(), Some(0));
    drop(holder);
    while let Some(line) = dev.said.recv().await {
        assert!(!line.contains("cannot listen"), "it tried to its end before it heard the signal: {line}");
    }
}

/// A running `pontoon dev`.
struct Dev {
    process: Killed,
    said: tokio::sync::mpsc::UnboundedReceiver<String>,
    first: u16,
    dir: tempfile::TempDir,
}

impl Dev {
    async fn start() -> Self {
        let (first, dir) = (free_ports_in_a_row(9), tempfile::tempdir().unwrap());
        let mut command = pontoon();
        command.args(Self::args_of(first, &dir)).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Killed(command.spawn().unwrap());
        let stderr = BufReader::new(process.0.stderr.take().unwrap());
        let (lines, said) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        let mut dev = Self { process, said, first, dir };
        dev.hear("three brokers are ready").await;
        // The commands that it shows are told where it is.
        dev.hear(&format!("pontoon status --server {}", dev.server(1))).await;
        dev
    }

    fn args_of(first: u16, dir: &tempfile::TempDir) -> Vec<String> {
        let mut args = vec!["dev".to_owned(), "--data".to_owned(), dir.path().join("dev").display().to_string()];
        for (flag, port) in [("--http-port", first), ("--kafka-port", first + 3), ("--peer-port", first + 6)] {
            args.extend([flag.to_owned(), port.to_string()]);
        }
        args
    }

    fn args(&self) -> Vec<String> {
        Self::args_of(self.first, &self.dir)
    }

    fn server(&self, broker: u16) -> String {
        format!("http://127.0.0.1:{}", self.first + broker - 1)
    }

    /// Types a line and waits for the answer.
    async fn say(&mut self, line: &str, answer: &str) {
        writeln!(self.process.0.stdin.as_mut().unwrap(), "{line}").unwrap();
        self.hear(answer).await;
    }

    async fn hear(&mut self, what: &str) {
        let heard = async {
            while let Some(line) = self.said.recv().await {
                if line.contains(what) {
                    return;
                }
            }
            panic!("it ended without saying {what:?}");
        };
        tokio::time::timeout(PATIENCE, heard).await.unwrap_or_else(|_| panic!("no {what:?}"));
    }

    fn interrupt(&mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_raw(self.process.0.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        tokio::task::block_in_place(|| self.process.0.wait()).unwrap()
    }
}

/// A process that does not outlive its test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
