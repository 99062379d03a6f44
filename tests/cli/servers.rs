//! Servers that are wrong, away, or without a majority: what is said of each, with which status.

use std::io::{BufRead, BufReader, Read};
use std::process::{ChildStderr, Stdio};
use std::time::{Duration, Instant};

use super::{Killed, status, stderr, stdout};
use crate::support::{Cluster, PATIENCE, free_ports, metric, pontoon, run};

/// Not another cluster is asked because of a slip of the pen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variable_that_nobody_reads_is_a_mistake() {
    let cluster = Cluster::start(1).await;
    let list = |name: &str, value: &str| {
        let mut command = pontoon();
        command.args(["topic", "list", "--server", &cluster.url(1)]).env(name, value);
        tokio::task::block_in_place(|| command.output()).unwrap()
    };
    let refused = list("PONTOON_SERVERS", "http://127.0.0.1:1");
    let said = stderr(&refused);
    assert!(status(&refused) == 2 && said.contains("PONTOON_SERVERS") && said.contains("\"PONTOON_SERVER\""), "{said}");
    for (name, value) in [("PONTOON_HTTP_LISTEN", "127.0.0.1:1"), ("PONTOON_SERVICE_HOST", "x")] {
        let done = list(name, value);
        assert_eq!(status(&done), 0, "{}", stderr(&done));
    }
}

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
    assert!(lines[1].contains(&format!("{}: connection refused", servers[0])), "{said}");
    assert!(!lines[1].contains("error sending request"), "{said}");
    assert!(lines.iter().all(|line| servers.iter().all(|server| line.contains(server))), "{said}");
}

/// Whichever place in the list has the one that is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_servers_one_that_is_there_is_enough() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let (dead, live) = (format!("http://127.0.0.1:{}", free_ports(1)[0]), cluster.url(1));
    for servers in [format!("{dead},{live}"), format!("{live},{dead}")] {
        let by_flag = run(&["produce", "t", "--server", &servers], b"a\n").await;
        assert_eq!(status(&by_flag), 0, "{servers}: {}", stderr(&by_flag));
        let mut by_variable = pontoon();
        by_variable.args(["topic", "list"]).env("PONTOON_SERVER", &servers);
        let listed = tokio::task::block_in_place(|| by_variable.output()).unwrap();
        assert!(status(&listed) == 0 && stdout(&listed).contains('t'), "{servers}: {}", stderr(&listed));
    }
    assert_eq!(cluster.fetch_all(1, "t", 0).await.len(), 2);
}

/// A command that was started, and what it has said on stderr so far.
struct Started {
    process: Killed,
    said: std::io::Lines<BufReader<ChildStderr>>,
}

impl Started {
    fn new(args: &[&str], servers: &str) -> Self {
        let mut command = pontoon();
        command.args(args).args(["--server", servers]).stdin(Stdio::null());
        let mut process = Killed(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let said = BufReader::new(process.0.stderr.take().unwrap()).lines();
        Self { process, said }
    }

    /// The next line; empty at the end.
    fn line(&mut self) -> String {
        tokio::task::block_in_place(|| self.said.next()).map(Result::unwrap).unwrap_or_default()
    }

    /// Its status and what it has printed.
    fn end(mut self) -> (Option<i32>, String) {
        let mut shown = String::new();
        tokio::task::block_in_place(|| self.process.0.stdout.take().unwrap().read_to_string(&mut shown)).unwrap();
        (self.process.0.wait().unwrap().code(), shown)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_servers_is_told_which_and_for_how_long() {
    let ports = free_ports(2);
    let servers: Vec<String> = ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
    let commands = [&["topic", "list"][..], &["topic", "create", "t"], &["consume", "t"], &["produce", "t"]];
    // It is told long before patience is over, and told once.
    let patient = commands.map(|args| Started::new(&[args, &["--patience", "600"]].concat(), &servers.join(",")));
    let began = Instant::now();
    for (mut started, args) in patient.into_iter().zip(commands) {
        let line = started.line();
        assert!(began.elapsed() < PATIENCE, "{args:?}: {line}");
        assert!(line.contains("trying for 600 s") && servers.iter().all(|server| line.contains(server)), "{line}");
    }
    let hasty = commands.map(|args| Started::new(&[args, &["--patience", "6"]].concat(), &servers.join(",")));
    for (mut started, args) in hasty.into_iter().zip(commands) {
        let said: Vec<String> = (0..3).map(|_| started.line()).collect();
        assert!(said[0].contains("trying for 6 s") && said[1].starts_with("pontoon: no server"), "{args:?}: {said:?}");
        assert!(said[2].is_empty() && servers.iter().all(|server| said[1].contains(server)), "{args:?}: {said:?}");
        assert_eq!(started.end(), (Some(3), String::new()), "{args:?}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_is_told_of_and_waited_for() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    cluster.pause(1);
    let mut listing = Started::new(&["topic", "list"], &cluster.servers());
    let line = listing.line();
    assert!(line.contains("trying for 60 s") && line.contains(&cluster.url(1)), "{line}");
    cluster.resume(1);
    let rest = listing.line();
    let (status, shown) = listing.end();
    assert!(status == Some(0) && shown.contains("t ") && rest.is_empty(), "{status:?}: {shown} {rest}");
}

/// How many fetches a broker has answered.
async fn answered_fetches(cluster: &Cluster) -> f64 {
    let text = cluster.metrics(1).await;
    let of_fetches = |line: &&str| line.starts_with('#') || line.contains("/records\",method=\"GET");
    metric(&text.lines().filter(of_fetches).collect::<Vec<_>>().join("\n"), "pontoon_http_requests_total")
}

/// Waiting for records is no silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_follows_a_quiet_topic_is_told_nothing_until_its_server_is_gone() {
    let mut cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let mut following = Started::new(&["consume", "t", "--follow", "--patience", "600"], &cluster.servers());
    let mut printed = BufReader::new(following.process.0.stdout.take().unwrap()).lines();
    // Each of these waits for longer than a request is tried without a word.
    let deadline = Instant::now() + PATIENCE;
    while answered_fetches(&cluster).await < 2.0 {
        assert!(Instant::now() < deadline, "it does not ask");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.produce_text(1, "t", 0, "at last").await;
    let line = tokio::task::block_in_place(|| printed.next()).unwrap().unwrap();
    assert_eq!(line, "at last");
    cluster.kill(1);
    let said = following.line();
    assert!(said.contains("refused") && said.contains("trying for 600 s"), "{said}");
    cluster.restart(1).await;
    cluster.produce_text(1, "t", 0, "again").await;
    let line = tokio::task::block_in_place(|| printed.next()).unwrap().unwrap();
    assert_eq!(line, "again");
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

/// What is committed is printed where its leader is left, though nobody can say whether it is all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_what_is_committed_is_printed() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 3).await;
    let mut led = None;
    for partition in 0..3 {
        if cluster.leader(1, "t", partition).await == 1 {
            led = Some(partition);
        }
    }
    let partition = led.expect("leaderships are spread");
    for value in ["one", "two"] {
        cluster.produce_text(1, "t", partition, value).await;
    }
    cluster.kill(2);
    cluster.kill(3);
    let (server, partition) = (cluster.url(1), partition.to_string());
    let consume = ["consume", "t", "--partition", &partition, "--server", &server, "--patience", "4"];
    let enough = run(&[&consume[..], &["--max-records", "2"]].concat(), b"").await;
    assert_eq!((status(&enough), stdout(&enough).as_str()), (0, "one\ntwo\n"), "{}", stderr(&enough));
    let all = run(&consume, b"").await;
    assert_eq!((status(&all), stdout(&all).as_str()), (1, "one\ntwo\n"), "{}", stderr(&all));
    assert!(stderr(&all).contains("NO_LEADER (503)"), "{}", stderr(&all));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_waits_until_all_is_well_and_says_what_is_not() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let servers = cluster.servers();
    let wait = async |seconds: &str| run(&["status", "--wait", seconds, "--server", &servers], b"").await;
    let well = wait("60").await;
    assert!(status(&well) == 0 && stdout(&well).ends_with("all is well\n"), "{}{}", stdout(&well), stderr(&well));

    cluster.kill(3);
    let deadline = Instant::now() + PATIENCE;
    while !stdout(&run(&["status", "--server", &servers], b"").await).contains("broker 3 is dead") {
        assert!(Instant::now() < deadline, "nobody misses it");
    }
    let not_well = wait("1").await;
    let said = stderr(&not_well);
    assert!(status(&not_well) == 1 && said.contains("not all is well after 1 s"), "{said}");
    assert!(stdout(&not_well).contains("! broker 3 is dead"), "{}", stdout(&not_well));

    let waiting = Started::new(&["status", "--wait", "60"], &servers);
    cluster.restart(3).await;
    let (status, shown) = tokio::task::block_in_place(|| waiting.end());
    assert!(status == Some(0) && shown.ends_with("all is well\n"), "{status:?}: {shown}");
    assert_eq!(shown.matches("cluster ").count(), 1, "it is shown once: {shown}");
    assert_eq!(run(&["status", "--wait", "1", "--watch"], b"").await.status.code(), Some(2));
}
