//! What becomes of a cluster when brokers come late, lose their directory, bring a foreign one, or fill their disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use pontoon::kafka::messages::{
    HeartbeatRequest, JoinGroupProtocol, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, Request, Response,
    SyncGroupRequest,
};
use reqwest::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kafka_hostile::Client;
use crate::support::member::join;
use crate::support::{Cluster, PATIENCE, client, read};

/// Asks until `wanted` holds, and panics with the last answer if it does not in time.
async fn until(cluster: &Cluster, id: u32, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, body) = cluster.get(id, path).await;
        if wanted(&body) {
            return body;
        }
        assert!(Instant::now() < deadline, "broker {id} still answers {path} with {body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn produce(cluster: &Cluster, id: u32, topic: &str, query: &str, value: String) -> (StatusCode, Value) {
    let url = format!("{}/v1/topics/{topic}/partitions/0/records?{query}", cluster.url(id));
    read(cluster.http.post(url).header("content-type", "text/plain").body(value).send().await.unwrap()).await
}

fn in_sync(topic: &Value) -> usize {
    topic["partitions"][0]["in_sync"].as_array().map_or(0, Vec::len)
}

#[tokio::test]
async fn a_cluster_forms_only_when_every_seed_is_there() {
    let mut cluster = Cluster::prepare(3, &[]);
    cluster.spawn(3);
    cluster.spawn(1);
    // Both wait for the third and say so; the lowest must not go ahead without it (RULES.md R6).
    let deadline = Instant::now() + Duration::from_secs(3);
    while Instant::now() < deadline {
        for id in [1, 3] {
            if let Ok(answer) = client().get(format!("{}/readyz", cluster.url(id))).send().await {
                assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "broker {id} is ready without broker 2");
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.spawn(2);
    for id in 1..=3 {
        cluster.wait_ready(id).await;
    }
    let ids: Vec<Value> = futures_util::future::join_all((1..=3).map(|id| cluster.get(id, "/v1/cluster")))
        .await
        .into_iter()
        .map(|(_, body)| body["cluster_id"].clone())
        .collect();
    assert!(ids[0].is_string() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test]
async fn a_wiped_broker_comes_back_and_is_filled_again() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    for at in 0..50 {
        cluster.produce_text(1, "t", 0, &format!("before {at}")).await;
    }
    let (_, before) = cluster.get(1, "/v1/cluster").await;
    cluster.kill(3);
    fs::remove_dir_all(cluster.data_dir(3)).unwrap();
    cluster.restart(3).await;
    let (_, after) = cluster.get(3, "/v1/cluster").await;
    assert_eq!(after["cluster_id"], before["cluster_id"], "an empty directory formed a second cluster");
    // The lost replica is replaced under a new id, with nobody's help, and is part of every acknowledgement again.
    until(&cluster, 1, "/v1/topics/t", |topic| in_sync(topic) == 3).await;
    let (status, body) = produce(&cluster, 2, "t", "acks=every", "after".into()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    // What it holds is what was acknowledged: it serves alone with one other, both of the rest having been down in turn.
    for down in [1, 2] {
        cluster.kill(down);
        let records = cluster.fetch_all(3, "t", 0).await;
        assert_eq!(records.len(), 51);
        assert_eq!(records[50]["value"], "after");
        cluster.restart(down).await;
        until(&cluster, 3, "/v1/topics/t", |topic| in_sync(topic) == 3).await;
    }
}

/// A produce to t/0 that a broker has begun to serve, and that lacks its body.
struct Begun(TcpStream);

impl Begun {
    async fn at(cluster: &Cluster, id: u32) -> Self {
        let mut stream = TcpStream::connect(cluster.address(id)).await.unwrap();
        let head = "POST /v1/topics/t/partitions/0/records HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n\
                    content-length: 5\r\nexpect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut begun = Self(stream);
        let head = begun.head().await;
        assert!(head.starts_with("HTTP/1.1 100 "), "{head}");
        begun
    }

    async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = self.0.read_u8().await;
            head.push(
                byte.unwrap_or_else(|error| panic!("cut off after {:?}: {error}", String::from_utf8_lossy(&head))),
            );
        }
        String::from_utf8(head).unwrap()
    }

    /// Sends the body. The whole answer must come.
    async fn finish(mut self) -> (u16, Value) {
        self.0.write_all(b"value").await.unwrap();
        let head = self.head().await;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut body).await.unwrap();
        (head[9..12].parse().unwrap(), serde_json::from_slice(&body).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_to_a_broker_that_stops_is_passed_on_or_refused_and_never_cut_off() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let stopping = cluster.leader(1, "t", 0).await;
    let (at_once, later) = (Begun::at(&cluster, stopping).await, Begun::at(&cluster, stopping).await);
    kill_process(Pid::from_raw(cluster.pid(stopping) as i32).unwrap(), Signal::TERM).unwrap();
    let readyz = format!("{}/readyz", cluster.url(stopping));
    let stops = async || !cluster.http.get(&readyz).send().await.is_ok_and(|answer| answer.status() == StatusCode::OK);
    let deadline = Instant::now() + PATIENCE;
    while !stops().await {
        assert!(Instant::now() < deadline, "it goes on");
    }
    // The one while it leads yet, perhaps, the other when another does.
    let at_once = tokio::spawn(at_once.finish());
    let moved =
        |topic: &Value| topic["partitions"][0]["leader"].as_u64().is_some_and(|leader| leader != u64::from(stopping));
    until(&cluster, stopping % 3 + 1, "/v1/topics/t", moved).await;
    let mut written = 0;
    for (status, answer) in [at_once.await.unwrap(), later.finish().await] {
        match status {
            200 => written += 1,
            _ => assert_eq!((status, &answer["outcome"]), (503, &json!("none")), "{answer}"),
        }
    }
    cluster.forget_ended(stopping);
    assert_eq!(cluster.fetch_all(stopping % 3 + 1, "t", 0).await.len(), written);
}

/// Every broker then judges all groups at once: the sort that puts the urgent ones first has panicked there.
#[tokio::test]
async fn many_partitions_are_led_again_after_all_brokers_were_killed() {
    let mut cluster = Cluster::start(3).await;
    let partitions = 200;
    cluster.create_topic(1, "many", partitions).await;
    // With sequences: so many elections at once on a busy machine, and one may be held anew while its partition is written to.
    let (status, producer) = cluster.ask(1, Method::POST, "/v1/producers", None).await;
    assert_eq!(status, StatusCode::CREATED, "{producer}");
    let produce = async |cluster: &Cluster, round: u32, partition: u32| {
        let url = format!("{}/v1/topics/many/partitions/{partition}/records", cluster.url(1 + partition % 3));
        let request = cluster.http.post(url).header("content-type", "text/plain").body(format!("round {round}"));
        let numbers =
            [("id", &producer["producer_id"]), ("epoch", &producer["producer_epoch"]), ("sequence", &json!(round))];
        let request = numbers
            .into_iter()
            .fold(request, |request, (name, number)| request.header(format!("producer-{name}"), number.to_string()));
        let (status, body) = read(request.send().await.unwrap()).await;
        assert_eq!(status, StatusCode::OK, "{body}");
    };
    for round in 0..2 {
        for partition in 0..partitions {
            produce(&cluster, round, partition).await;
        }
        (1..=3).for_each(|id| cluster.kill(id));
        cluster.restart_all(&[1, 2, 3]).await;
    }
    for partition in 0..partitions {
        let records = cluster.fetch_all(1 + partition % 3, "many", partition).await;
        let values: Vec<&str> = records.iter().filter_map(|record| record["value"].as_str()).collect();
        assert_eq!(values, ["round 0", "round 1"], "partition {partition}");
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn the_directory_of_another_cluster_is_refused() {
    let mut ours = Cluster::start(3).await;
    let mut theirs = Cluster::start(3).await;
    ours.create_topic(1, "ours", 1).await;
    theirs.stop(3);
    ours.kill(3);
    fs::rename(ours.data_dir(3), ours.scratch().join("kept")).unwrap();
    copy_dir(theirs.data_dir(3), ours.data_dir(3));
    ours.spawn(3);
    let deadline = Instant::now() + PATIENCE;
    // It ends, or stays unready and says why; it never serves the other cluster's topics among ours.
    loop {
        let ended = ours.broker_mut(3).ended();
        let log = ours.log(3);
        if log.contains("another cluster") || log.contains("belongs to cluster") || log.contains("foreign cluster") {
            if let Some(status) = ended {
                assert_eq!(status.code(), Some(1));
            }
            break;
        }
        assert!(ended.is_none(), "broker 3 ended without saying why:\n{log}");
        assert!(Instant::now() < deadline, "broker 3 does not notice whose directory it has:\n{log}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (_, cluster) = ours.get(1, "/v1/cluster").await;
    assert_eq!(cluster["brokers"].as_array().unwrap().len(), 3);
    ours.produce_text(1, "ours", 0, "goes on").await;
}

/// A small file system over a broker's data directory, unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where mounting is not allowed.
    fn mount(over: &Path, mebibytes: u32) -> Option<Self> {
        fs::create_dir_all(over).unwrap();
        let size = format!("size={mebibytes}m,mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "pontoon-test"]).arg(over).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(over.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Commits an offset for the group `g` over HTTP.
async fn commit(cluster: &Cluster, offset: u64) -> (StatusCode, Value) {
    let offsets = json!({"offsets": [{"topic": "t", "partition": 0, "offset": offset, "metadata": ""}]});
    cluster.ask(1, Method::PUT, "/v1/groups/g/offsets", Some(offsets)).await
}

/// On a full disk a group stays as it is: its member is heard, and whoever would change something is refused.
async fn whoever_is_a_member_goes_on(client: &mut Client, member: JoinGroupResponse) {
    let (group_id, generation_id, member_id) = ("members".to_owned(), member.generation_id, member.member_id);
    let heartbeat = HeartbeatRequest {
        group_id: group_id.clone(),
        generation_id,
        member_id: member_id.clone(),
        ..Default::default()
    };
    let sync = SyncGroupRequest {
        group_id: group_id.clone(),
        generation_id,
        member_id: member_id.clone(),
        ..Default::default()
    };
    let join = JoinGroupRequest {
        group_id: "others".into(),
        session_timeout_ms: 300_000,
        protocol_type: "consumer".into(),
        protocols: vec![JoinGroupProtocol { name: "range".into(), metadata: "".into() }],
        ..Default::default()
    };
    let leave = LeaveGroupRequest { group_id, member_id, ..Default::default() };
    for _ in 0..3 {
        let Response::Heartbeat(heard) = client.call(Request::Heartbeat(heartbeat.clone()), 3).await else { panic!() };
        assert_eq!(heard.error_code, 0);
        let Response::SyncGroup(synced) = client.call(Request::SyncGroup(sync.clone()), 3).await else { panic!() };
        let Response::JoinGroup(joined) = client.call(Request::JoinGroup(join.clone()), 3).await else { panic!() };
        let Response::LeaveGroup(left) = client.call(Request::LeaveGroup(leave.clone()), 1).await else { panic!() };
        assert_eq!((synced.error_code, joined.error_code, left.error_code), (16, 16, 16), "NOT_COORDINATOR");
    }
}

#[tokio::test]
async fn a_full_disk_refuses_produce_and_nothing_else_until_there_is_room() {
    let mib = 1 << 20;
    let produce_reserve = format!("raft.reserve_produce_bytes={}", 48 * mib);
    let append_reserve = format!("raft.reserve_append_bytes={}", 32 * mib);
    let journal = format!("raft.journal_file_bytes={}", 4 * mib);
    let groups = "offsets.topic.num.partitions=1";
    let args = ["--set", &produce_reserve, "--set", &append_reserve, "--set", &journal, "--set", groups];
    let mut cluster = Cluster::prepare(1, &args);
    let Some(disk) = SmallDisk::mount(cluster.data_dir(1), 160) else {
        println!("skipped: mounting a small file system needs root");
        return;
    };
    cluster.spawn(1);
    cluster.wait_ready(1).await;
    let (status, body) = cluster.post(1, "/v1/topics", json!({"name": "t"})).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    let (status, body) = commit(&cluster, 1).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{body}");
    let mut client = Client::connect_to(&cluster, 1).await;
    let member = join(&mut client, "members", "").await;

    let value = "x".repeat(500_000);
    let mut acknowledged = 0;
    let refused = loop {
        let (status, body) = produce(&cluster, 1, "t", "", value.clone()).await;
        if status != StatusCode::OK {
            break (status, body);
        }
        acknowledged += 1;
        assert!(acknowledged < 1000, "160 MiB took 500 MB");
    };
    assert_eq!(refused.0, StatusCode::INSUFFICIENT_STORAGE, "{}", refused.1);
    assert_eq!((&refused.1["error"], &refused.1["outcome"]), (&json!("STORAGE_FULL"), &json!("none")));
    assert!(acknowledged > 20, "only {acknowledged} were taken");
    let (status, body) = commit(&cluster, 2).await;
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE, "{body}");
    assert_eq!((&body["error"], &body["outcome"]), (&json!("STORAGE_FULL"), &json!("none")));
    let (status, body) = cluster.get(1, "/v1/groups/g/offsets").await;
    assert_eq!((status, &body["offsets"][0]["offset"]), (StatusCode::OK, &json!(1)), "{body}");
    whoever_is_a_member_goes_on(&mut client, member).await;
    let loaded = cluster.log(1).matches("consumer groups are loaded").count();
    assert_eq!(loaded, 1, "the coordinator began anew: {}", cluster.log(1));

    // Somebody else takes the rest: not a byte is free, and reads go on.
    let filler = disk.0.join("filler");
    let _ = fs::write(&filler, vec![0; 160 * mib]);
    assert_eq!(cluster.fetch_all(1, "t", 0).await.len(), acknowledged);
    let (status, body) = produce(&cluster, 1, "t", "", "small".into()).await;
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE, "{body}");

    // Nothing is lost by a crash at this point either.
    cluster.kill(1);
    fs::remove_file(&filler).unwrap();
    let grown = Command::new("mount").args(["-o", "remount,size=600m"]).arg(&disk.0).status().unwrap();
    assert!(grown.success());
    cluster.restart(1).await;
    assert_eq!(cluster.fetch_all(1, "t", 0).await.len(), acknowledged);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, body) = produce(&cluster, 1, "t", "", "again".into()).await;
        if status == StatusCode::OK {
            break;
        }
        assert!(Instant::now() < deadline, "writes do not resume: {body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(cluster.fetch_all(1, "t", 0).await.len(), acknowledged + 1);
    let (status, body) = commit(&cluster, 2).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{body}");
    cluster.stop(1);
    drop(disk);
}
