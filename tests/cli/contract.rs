//! The contract of the command line and of a broker's configuration, line by line, and which test on the running binary holds it; and
//! those lines that no other theme has.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use reqwest::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{Killed, status, stderr, stdout};
use crate::support::{
    Cluster, Contract, PATIENCE, client, every_line_has_tests, free_ports, free_ports_in_a_row, pontoon, run,
};

/// What is promised, and the tests that show it.
const CONTRACT: Contract = &[
    // Every command.
    (
        "--server URL[,URL] or PONTOON_SERVER",
        &[
            "the_environment_names_the_servers_and_the_shape_of_logs",
            "a_server_that_cannot_be_one_is_a_mistake",
            "status_names_every_server_it_tried_and_says_that_it_tries",
            "of_several_servers_one_that_is_there_is_enough",
        ],
    ),
    (
        "data on stdout, progress and messages on stderr",
        &[
            "lines_go_in_and_come_out",
            "an_offset_counts_in_each_partition_and_those_without_it_are_named",
            "what_takes_long_shows_a_person_how_far_it_is_and_programs_nothing",
        ],
    ),
    ("--json, a line each for streams", &["every_command_has_a_line_of_json_for_programs", "lines_go_in_and_come_out"]),
    ("exit 0 and 1", &["lines_go_in_and_come_out", "what_cannot_be_measured_is_refused_with_its_status"]),
    ("exit 2 usage, 3 unreachable", &["mistakes_and_absences_have_their_own_statuses"]),
    ("exit 4 not found", &["lines_go_in_and_come_out", "what_ends_following_is_told_with_its_status"]),
    ("exit 5 partial or unknown", &["what_was_done_in_part_has_its_own_status"]),
    (
        "a broken pipe is quiet",
        &[
            "following_prints_what_comes_and_a_closed_pipe_is_quiet",
            "a_closed_pipe_is_quiet",
            "watching_goes_on_and_a_closed_pipe_is_quiet",
        ],
    ),
    (
        "whoever waits is told for whom",
        &["whoever_waits_for_servers_is_told_which_and_for_how_long", "a_server_that_hangs_is_told_of_and_waited_for"],
    ),
    // Each command.
    (
        "dev [--data DIR]",
        &[
            "dev_runs_three_brokers_and_says_how_to_use_them",
            "a_broker_of_dev_is_killed_and_started_by_hand_and_nothing_is_lost",
        ],
    ),
    ("dev: HTTP from 8090, Kafka from 9092, peers from 7090", &["dev_has_the_ports_that_are_documented"]),
    ("serve", &["sigterm_ends_cleanly_and_answers_who_waits"]),
    ("topic create, list, describe, alter, delete", &["lines_go_in_and_come_out"]),
    ("produce TOPIC [--key-separator C]", &["lines_go_in_and_come_out"]),
    (
        "consume TOPIC [--from earliest|latest|N] [--format F]",
        &["lines_go_in_and_come_out", "an_offset_counts_in_each_partition_and_those_without_it_are_named"],
    ),
    (
        "consume --follow",
        &[
            "following_prints_what_comes_and_a_closed_pipe_is_quiet",
            "partitions_that_are_added_are_followed_from_their_start",
        ],
    ),
    ("status says why", &["a_lagging_replica_is_told_with_its_lag_and_the_reason"]),
    (
        "status --watch",
        &[
            "who_watches_sees_brokers_go_and_come_back",
            "watching_goes_on_and_a_closed_pipe_is_quiet",
            "who_watches_at_a_terminal_sees_one_picture_after_the_other",
        ],
    ),
    ("bench produce, fetch, latency", &["every_form_measures_something"]),
    ("log dump and verify FILE, offline", &["any_file_is_shown_and_judged_offline"]),
    ("explain CODE", &["every_code_is_explained_to_people_and_to_programs"]),
    (
        "scripts/cluster start, stop, status; kill (-9), pause, resume, restart N; data and logs under DIR",
        &["the_script_runs_three_brokers_and_does_to_each_what_it_is_told"],
    ),
    // Configuration.
    (
        "TOML, environment, flags, in rising precedence",
        &[
            "flags_beat_the_environment_beats_the_file",
            "a_broker_may_be_told_everything_by_its_file_alone_or_its_environment",
        ],
    ),
    ("an unknown key names the nearest right one", &["starts_that_cannot_be_are_refused_with_the_key"]),
    ("broker_id, data_dir", &["a_directory_in_use_or_of_another_broker_is_refused"]),
    ("bootstrap", &["a_cluster_forms_only_when_every_seed_is_there"]),
    ("http.listen, http.advertised", &["a_redirect_names_the_advertised_address", "a_taken_port_is_told"]),
    ("kafka.listen, kafka.advertised", &["clients_are_told_the_address_that_is_advertised"]),
    ("peer.listen, peer.advertised", &["peers_find_each_other_where_it_is_advertised", "a_taken_port_is_told"]),
    (
        "limits",
        &["flags_beat_the_environment_beats_the_file", "one_connection_too_many_is_told_so_and_room_comes_back"],
    ),
    ("log.* defaults for topics", &["flags_beat_the_environment_beats_the_file"]),
    (
        "SIGTERM hands leaderships over, closes, exits 0 within 30 s; so does Ctrl-C",
        &[
            "sigterm_ends_cleanly_and_answers_who_waits",
            "sigterm_ends_the_last_of_three_whoever_hangs_on",
            "an_interrupt_hands_leaderships_over_before_it_ends",
        ],
    ),
    ("a second signal exits at once", &["a_second_signal_ends_at_once_with_130"]),
    ("logs go to stderr", &["a_broker_that_anybody_can_reach_warns_on_stderr"]),
    (
        "--log-format text|json",
        &[
            "the_environment_names_the_servers_and_the_shape_of_logs",
            "log_lines_of_dev_tell_brokers_groups_and_connections_apart",
        ],
    ),
    ("RLIMIT_NOFILE is raised and checked", &["too_few_file_descriptors_are_refused_and_few_are_complained_about"]),
];

#[test]
fn every_line_of_the_command_lines_contract_names_tests_that_exist() {
    every_line_has_tests(CONTRACT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_has_the_ports_that_are_documented() {
    let help = run(&["dev", "--help"], b"").await;
    let help = stdout(&help);
    for (flag, port) in [("--http-port", 8090), ("--kafka-port", 9092), ("--peer-port", 7090)] {
        let of_flag = help.split_once(flag).unwrap().1;
        let default = of_flag.split_once("[default: ").unwrap().1.split(']').next().unwrap();
        assert_eq!(default, port.to_string(), "{flag}: {help}");
    }
    assert!(
        stdout(&run(&["topic", "--help"], b"").await).contains(":8090"),
        "where commands look unless they are told"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_code_is_explained_to_people_and_to_programs() {
    for code in pontoon::error::Code::ALL {
        let text = stdout(&run(&["explain", code.as_str()], b"").await);
        let shown = run(&["explain", code.as_str(), "--json"], b"").await;
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        assert_eq!((&shown["code"], &shown["status"]), (&json!(code.as_str()), &json!(code.status())));
        let meaning = shown["meaning"].as_str().unwrap();
        let advice = shown["advice"].as_str().unwrap();
        assert!(meaning.len() > 10 && text.contains(meaning), "{code}: {text}");
        assert!(advice.len() > 10 && text.contains(advice), "{code}: {text}");
        assert!(text.starts_with(&format!("{code}: HTTP {}", code.status())), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_anybody_can_reach_warns_on_stderr() {
    let ports = free_ports(2);
    let dir = tempfile::tempdir().unwrap();
    let mut command = pontoon();
    command.args(["serve", "--broker-id", "1", "--data-dir"]).arg(dir.path().join("data"));
    command.args(["--bootstrap", &format!("1@127.0.0.1:{}", ports[1]), "--kafka-listen", "off"]);
    command.args(["--http-listen", &format!("0.0.0.0:{}", ports[0])]);
    command.args(["--http-advertised", &format!("127.0.0.1:{}", ports[0]), "--set", "allow_insecure=true"]);
    let mut broker = Killed(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut said = BufReader::new(broker.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    let warned = tokio::task::block_in_place(|| said.find(|line| line.contains("without authentication")));
    let warned = warned.expect("it said nothing of it");
    assert!(warned.contains("WARN") && warned.contains(&format!("0.0.0.0:{}", ports[0])), "{warned}");
    assert!(tokio::task::block_in_place(|| said.any(|line| line.contains("the cluster is formed"))), "it ended");
    let url = format!("http://127.0.0.1:{}/healthz", ports[0]);
    assert_eq!(client().get(url).send().await.unwrap().status(), StatusCode::OK);
    kill_process(Pid::from_raw(broker.0.id() as i32).unwrap(), Signal::TERM).unwrap();
    let mut printed = String::new();
    tokio::task::block_in_place(|| broker.0.stdout.take().unwrap().read_to_string(&mut printed)).unwrap();
    assert_eq!((broker.0.wait().unwrap().code(), printed.as_str()), (Some(0), ""), "logs are no data");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_find_each_other_where_it_is_advertised() {
    let mut cluster = Cluster::prepare(2, &[]);
    let advertised = |cluster: &Cluster, id| cluster.peer_address(id).replace("127.0.0.1", "localhost");
    for id in 1..=2 {
        let address = advertised(&cluster, id);
        cluster.broker_mut(id).add_args(&["--set", &format!("peer.advertised={address}")]);
    }
    cluster.restart_all(&[1, 2]).await;
    for id in 1..=2 {
        let (_, shown) = cluster.get(id, "/v1/brokers").await;
        let addresses: Vec<_> =
            shown["brokers"].as_array().unwrap().iter().map(|one| one["peer_address"].clone()).collect();
        assert_eq!(addresses, [json!(advertised(&cluster, 1)), json!(advertised(&cluster, 2))], "broker {id}");
    }
    cluster.create_topic(1, "t", 1).await;
    let path = "/v1/topics/t/partitions/0/records?acks=every";
    let (status, body) = cluster.post(1, path, json!({"records": [{"value": "to both"}]})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_hands_leaderships_over_before_it_ends() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 6).await;
    let mut led = Vec::new();
    for partition in 0..6 {
        cluster.produce_text(1, "t", partition, "kept").await;
        led.push(cluster.leader(1, "t", partition).await);
    }
    let goes = led[0];
    let stay = [goes % 3 + 1, (goes + 1) % 3 + 1];
    // Nobody is taken for dead, and nobody elected for that.
    let forced = async |cluster: &Cluster| {
        let mut all = 0.0;
        for id in stay {
            all += cluster.metric(id, "pontoon_raft_elections_forced_total").await;
        }
        all
    };
    let before = forced(&cluster).await;
    let began = Instant::now();
    let ended = tokio::task::block_in_place(|| cluster.interrupt(goes));
    assert!(ended.success() && began.elapsed() < PATIENCE, "{ended}: {}", cluster.log(goes));
    for partition in 0..6 {
        cluster.produce_text(stay[0], "t", partition, "after").await;
        assert!(stay.contains(&cluster.leader(stay[0], "t", partition).await));
    }
    assert_eq!(forced(&cluster).await, before, "leaderships were not handed over");
    cluster.restart(goes).await;
    for partition in 0..6 {
        assert_eq!(cluster.fetch_all(goes, "t", partition).await.len(), 2);
    }
}

/// `scripts/cluster` in a folder of its own, on ports of its own. Whatever it started ends with it.
struct Script {
    dir: tempfile::TempDir,
    first: u16,
}

impl Script {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), first: free_ports_in_a_row(9) }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("pontoon-cluster")
    }

    fn elsewhere(&self) -> PathBuf {
        self.dir.path().join("elsewhere")
    }

    fn run(&self, args: &[&str]) -> Output {
        let binary = pontoon();
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/cluster"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PONTOON_")) {
            command.env_remove(name);
        }
        command.env("PONTOON_BIN", binary.get_program()).current_dir(self.dir.path()).args(args);
        command.env("CLUSTER_PORTS", format!("{} {} {}", self.first, self.first + 3, self.first + 6));
        tokio::task::block_in_place(|| command.output()).unwrap()
    }

    /// What it says, if it does it.
    fn does(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(status(&output), 0, "{args:?}: {}", stderr(&output));
        stdout(&output)
    }

    fn servers(&self) -> String {
        (0..3).map(|at| format!("http://127.0.0.1:{}", self.first + at)).collect::<Vec<_>>().join(",")
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        for broker in ["1", "2", "3"] {
            self.run(&["kill", broker]);
            self.run(&["kill", broker, self.elsewhere().to_str().unwrap()]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_script_runs_three_brokers_and_does_to_each_what_it_is_told() {
    let script = Script::new();
    let states = |wanted: [&str; 3]| {
        let shown = script.does(&["status"]);
        let lines: Vec<&str> = shown.lines().collect();
        let is = |(at, (line, state)): (usize, (&&str, &str))| {
            line.starts_with(&format!("broker {}: {state}", at + 1)) && (state != "running" || line.ends_with("ready"))
        };
        assert!(lines.len() == 3 && lines.iter().zip(wanted).enumerate().all(is), "{wanted:?}: {shown}");
    };
    let (running, paused, gone) = ("running", "paused", "not running");
    states([gone, gone, gone]);
    let said = script.does(&["start"]);
    assert!(
        said.contains(&format!("http://127.0.0.1:{}", script.first)) && script.data().join("data-3").is_dir(),
        "{said}"
    );
    states([running; 3]);
    let servers = script.servers();
    let produce = async |line: &str| {
        let produced = run(&["produce", "t", "--server", &servers], line.as_bytes()).await;
        assert_eq!(status(&produced), 0, "{line}: {}", stderr(&produced));
    };
    assert_eq!(status(&run(&["topic", "create", "t", "--server", &servers], b"").await), 0);
    produce("all three").await;
    script.does(&["kill", "2"]);
    states([running, gone, running]);
    let log = std::fs::read_to_string(script.data().join("broker-2.log")).unwrap();
    assert!(!log.contains("closed"), "it had no time to say so: {log}");
    produce("without 2").await;
    script.does(&["restart", "2"]);
    script.does(&["pause", "3"]);
    states([running, running, paused]);
    produce("without 3").await;
    script.does(&["resume", "3"]);
    script.does(&["restart", "1"]);
    states([running; 3]);
    script.does(&["stop"]);
    states([gone, gone, gone]);
    // Where it is told to have its data.
    std::fs::rename(script.data(), script.elsewhere()).unwrap();
    let dir = script.elsewhere();
    let dir = dir.to_str().unwrap();
    assert!(script.does(&["start", dir]).contains(dir));
    let consumed = run(&["consume", "t", "--server", &servers], b"").await;
    assert_eq!(stdout(&consumed), "all three\nwithout 2\nwithout 3\n", "{}", stderr(&consumed));
    script.does(&["kill", "3", dir]);
    script.does(&["restart", "3", dir]);
    states([gone, gone, gone]);
    script.does(&["stop", dir]);
    assert!(!script.does(&["status", dir]).contains(": running") && !script.data().exists());

    let wrong = [(&["kill", "2"][..], 1), (&["kill", "4"], 1), (&["kill"], 2), (&["dance"], 2), (&[], 2)];
    for (args, code) in wrong.into_iter().chain([(&["stop", "here", "and there"][..], 2)]) {
        let refused = script.run(args);
        assert!(status(&refused) == code && !stderr(&refused).is_empty(), "{args:?}: {}", stderr(&refused));
    }
}
