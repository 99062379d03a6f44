//! Refusals whose code a client acts upon: each is asked for by what earns it, and called by its name; and nothing was changed.

use std::time::Instant;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{fetch, records_url, refusal};
use crate::kafka_hostile::Client;
use crate::support::member::{join, leave};
use crate::support::{Cluster, PATIENCE, read};

/// A refusal's code, of something that was not done and that the same request will never do.
fn for_good((status, body): (StatusCode, Value)) -> (u16, String) {
    assert_eq!((&body["retriable"], &body["outcome"]), (&json!(false), &json!("none")), "{body}");
    refusal((status, body))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_page_or_name_is_refused_on_every_path_and_writes_nothing() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let port = cluster.address(1).rsplit_once(':').unwrap().1.to_owned();
    let produce = async |name: &str, value: &str| {
        let request = cluster.http.post(records_url(&cluster, 1, "t")).header("content-type", "text/plain");
        read(request.header(name, value).body("forged").send().await.unwrap()).await
    };
    let foreign = [
        ("origin", "http://evil.example".to_owned()),
        // A sandboxed page; another server on this machine.
        ("origin", "null".to_owned()),
        ("origin", "http://127.0.0.1:1".to_owned()),
        // A name that a page's own name server lets point here.
        ("host", "evil.example".to_owned()),
        ("host", format!("evil.example:{port}")),
    ];
    for (name, value) in &foreign {
        let answer = produce(name, value).await;
        assert!(answer.1["message"].as_str().unwrap().contains(value), "{}", answer.1);
        assert_eq!(for_good(answer), (403, "FOREIGN_ORIGIN".into()), "{name}: {value}");
        for (method, path) in [
            (Method::GET, "/v1/topics/t/partitions/0/records"),
            (Method::DELETE, "/v1/topics/t"),
            (Method::GET, "/metrics"),
            (Method::GET, "/nowhere"),
        ] {
            let request = cluster.http.request(method.clone(), format!("{}{path}", cluster.url(1)));
            let answer = read(request.header(*name, value).send().await.unwrap()).await;
            assert_eq!(for_good(answer), (403, "FOREIGN_ORIGIN".into()), "{method} {path} {name}: {value}");
        }
    }
    assert!(cluster.fetch_all(1, "t", 0).await.is_empty(), "something forged was written");
    for (name, value) in [("origin", cluster.url(1)), ("host", format!("localhost:{port}"))] {
        assert_eq!(produce(name, &value).await.0, StatusCode::OK, "{name}: {value}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_or_a_format_that_is_not_there_is_refused_by_its_code() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    for (method, path) in [
        (Method::PUT, "/v1/topics"),
        (Method::POST, "/v1/topics/t"),
        (Method::DELETE, "/v1/topics/t/partitions/0/records"),
        (Method::GET, "/v1/producers"),
        (Method::POST, "/healthz"),
    ] {
        let answer = cluster.ask(1, method.clone(), path, None).await;
        assert_eq!(for_good(answer), (405, "METHOD_NOT_ALLOWED".into()), "{method} {path}");
    }
    let accepting = async |accept: &'static str| {
        let request = cluster.http.get(records_url(&cluster, 1, "t")).header("accept", accept);
        request.send().await.unwrap()
    };
    for accept in ["image/png", "text/html, application/xml;q=0.9", "application/json;q=0", "*/*;q=0"] {
        let answer = read(accepting(accept).await).await;
        assert_eq!(for_good(answer), (406, "NOT_ACCEPTABLE".into()), "{accept}");
    }
    for accept in ["*/*", "text/html, */*;q=0.1", "application/*"] {
        assert_eq!(accepting(accept).await.status(), StatusCode::OK, "{accept}");
    }
}

/// A partition knows its producers by what they have written, and by nothing else: an id is new if it begins at 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_that_is_not_known_is_told_so_unless_it_begins() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let send = async |sequence: u32| {
        let request = cluster.http.post(records_url(&cluster, 1, "t")).header("content-type", "text/plain");
        let request = request.header("producer-id", "123456789").header("producer-epoch", "0");
        read(request.header("producer-sequence", sequence).body("x").send().await.unwrap()).await
    };
    let answer = send(5).await;
    let message = answer.1["message"].as_str().unwrap();
    assert!(message.contains("123456789") && message.contains("5"), "{message}");
    assert_eq!(for_good(answer), (409, "UNKNOWN_PRODUCER".into()));
    let (_, end) = fetch(&cluster, 1, "t", "").await;
    assert_eq!(end["next_offset"], 0, "what was refused takes no offset: {end}");
    assert_eq!(send(0).await.0, StatusCode::OK);
    assert_eq!(for_good(send(5).await), (409, "OUT_OF_ORDER_SEQUENCE".into()), "now it is known");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_is_not_there_or_in_use_is_refused_by_its_code() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    // Before there has been any group, and beside one.
    assert_eq!(for_good(cluster.get(1, "/v1/groups/g").await), (404, "UNKNOWN_GROUP".into()));
    let offsets = |offset: u32| {
        let offset = json!({"topic": "t", "partition": 0, "offset": offset, "metadata": ""});
        json!({"offsets": [offset]})
    };
    let put = async |offset| cluster.ask(1, Method::PUT, "/v1/groups/g/offsets", Some(offsets(offset))).await;
    assert_eq!(put(1).await, (StatusCode::NO_CONTENT, Value::Null));
    assert_eq!(cluster.get(1, "/v1/groups/g").await.1["state"], "Empty");
    assert_eq!(for_good(cluster.get(1, "/v1/groups/other").await), (404, "UNKNOWN_GROUP".into()));
    assert_eq!(cluster.get(1, "/v1/groups/other/offsets").await, (StatusCode::OK, json!({"offsets": []})));

    let mut client = Client::connect_to(&cluster, 1).await;
    let joined = join(&mut client, "g", "").await;
    let answer = put(2).await;
    assert!(answer.1["message"].as_str().unwrap().contains("\"g\""), "{}", answer.1);
    assert_eq!(for_good(answer), (409, "GROUP_NOT_EMPTY".into()));
    assert_eq!(cluster.get(1, "/v1/groups/g/offsets").await.1, offsets(1), "the members' offsets are as they were");
    leave(&mut client, "g", joined.member_id).await;
    assert_eq!(put(2).await, (StatusCode::NO_CONTENT, Value::Null));
    assert_eq!(cluster.get(1, "/v1/groups/g/offsets").await.1, offsets(2));
}

/// One that waits for a majority says nothing of its own groups, and does not keep whoever asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_cannot_tell_its_groups_says_so_in_time() {
    let cluster = Cluster::start_with(3, &["--set", "raft.silence_max_ms=600000"]).await;
    cluster.create_topic(1, "t", 1).await;
    let offsets = json!({"offsets": [{"topic": "t", "partition": 0, "offset": 0}]});
    let path = "/v1/groups/g/offsets";
    assert_eq!(cluster.ask(1, Method::PUT, path, Some(offsets.clone())).await.0, StatusCode::NO_CONTENT);
    let coordinator = cluster.get(1, "/v1/groups/g").await.1["coordinator"].as_u64().unwrap() as u32;
    let others: Vec<u32> = (1..=3).filter(|id| *id != coordinator).collect();
    others.iter().for_each(|id| cluster.pause(*id));
    // It waits for the others to hear of this, and so does whoever asks for anything else.
    let url = format!("{}{path}", cluster.url(coordinator));
    let waiting = tokio::spawn(cluster.http.put(url).json(&offsets).send());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, list) = cluster.get(coordinator, "/v1/groups").await;
        assert_eq!(status, StatusCode::OK, "{list}");
        if list["unavailable"] == json!([1, 2, 3]) {
            break;
        }
        assert!(Instant::now() < deadline, "{list}");
    }
    others.iter().for_each(|id| cluster.resume(*id));
    waiting.await.unwrap().unwrap();
}

/// Whoever leads waits for others then, and the request for nobody any longer than it has time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_majority_could_answer_ends_with_the_requests_own_time() {
    let args = ["--set=raft.silence_max_ms=600000", "--set=offsets.topic.num.partitions=50"];
    let cluster = Cluster::start_with(3, &args).await;
    cluster.create_topic(1, "t", 1).await;
    let offsets = json!({"offsets": [{"topic": "t", "partition": 0, "offset": 0}]});
    assert_eq!(
        cluster.ask(1, Method::PUT, "/v1/groups/a/offsets", Some(offsets.clone())).await.0,
        StatusCode::NO_CONTENT
    );
    // A group of one letter is of the partition with the letter's number. Nothing was asked of this one's yet.
    let leader = cluster.leader(1, "t", 0).await;
    let mut group = 'b';
    while cluster.leader(1, "__consumer_offsets", group as u32 % 50).await != leader {
        group = (group as u8 + 1) as char;
        assert!(group <= 'z', "broker {leader} coordinates no group of one letter");
    }
    let others: Vec<u32> = (1..=3).filter(|id| *id != leader).collect();
    others.iter().for_each(|id| cluster.pause(*id));
    let fetch = "/v1/topics/t/partitions/0/records?consistency=linearizable&";
    let (describe, commit) = (format!("/v1/groups/{group}?"), format!("/v1/groups/{group}/offsets?"));
    let ask = async |method: Method, path: &str, body: Option<Value>| {
        let (status, answer) = cluster.ask(leader, method, &format!("{path}timeout_ms=200"), body).await;
        assert!(answer["message"].as_str().unwrap().contains("within the timeout"), "{path}: {answer}");
        let outcome = answer["outcome"].as_str().unwrap().to_owned();
        (refusal((status, answer)), outcome)
    };
    // At once, for in a moment it does not lead any more.
    let (fetched, described, committed) = tokio::join!(
        ask(Method::GET, fetch, None),
        ask(Method::GET, &describe, None),
        ask(Method::PUT, &commit, Some(offsets))
    );
    let not_read = ((503, "NO_LEADER".to_owned()), "none".to_owned());
    assert_eq!((fetched, described), (not_read.clone(), not_read));
    assert_eq!(committed, ((504, "OUTCOME_UNKNOWN".to_owned()), "unknown".to_owned()));
    others.iter().for_each(|id| cluster.resume(*id));
}

/// Each is looked up in its topic, which was described whole for it: ten million partitions here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_of_a_large_topic_are_looked_up_in_no_time_and_not_too_many_at_once() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 100).await;
    let offset = |partition: usize| json!({"topic": "t", "partition": partition, "offset": 0});
    let put = async |offsets: Vec<Value>| {
        cluster.ask(1, Method::PUT, "/v1/groups/g/offsets", Some(json!({"offsets": offsets}))).await
    };
    let mut offsets: Vec<Value> = (0..100_000).map(|at| offset(at % 100)).collect();
    offsets[99_999] = offset(100);
    assert_eq!(for_good(put(offsets.clone()).await), (404, "UNKNOWN_PARTITION".into()));
    offsets.push(offset(0));
    assert_eq!(for_good(put(offsets).await), (413, "REQUEST_TOO_LARGE".into()));
    assert_eq!(put((0..100).map(offset).collect()).await.0, StatusCode::NO_CONTENT);
    let (_, group) = cluster.get(1, "/v1/groups/g").await;
    let found = group["offsets"].as_array().unwrap().iter().map(|offset| offset["partition"].as_u64().unwrap());
    assert_eq!(found.collect::<Vec<_>>(), (0..100).collect::<Vec<_>>(), "{group}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_there_is_no_room_for_is_refused_until_others_go() {
    let args = ["--set=limits.groups_bytes_max=65536", "--set=offsets.topic.num.partitions=1"];
    let cluster = Cluster::start_with(1, &args).await;
    cluster.create_topic(1, "t", 1).await;
    let put = async |group: &str| {
        let offset = json!({"topic": "t", "partition": 0, "offset": 1, "metadata": "m".repeat(4000)});
        let path = format!("/v1/groups/{group}/offsets");
        cluster.ask(1, Method::PUT, &path, Some(json!({"offsets": [offset]}))).await
    };
    assert_eq!(put("first").await.0, StatusCode::NO_CONTENT);
    join(&mut Client::connect_to(&cluster, 1).await, "members", "").await;
    let mut groups = 0;
    let (status, refused) = loop {
        let (status, body) = put(&format!("group-{groups}")).await;
        if status != StatusCode::NO_CONTENT {
            break (status, body);
        }
        groups += 1;
        assert!(groups < 16, "{groups} groups of more than 4000 bytes");
    };
    assert_eq!(refusal((status, refused.clone())), (429, "TOO_MANY_REQUESTS".into()));
    assert_eq!((&refused["retriable"], &refused["outcome"]), (&json!(true), &json!("none")), "{refused}");
    assert!(refused["retry_after_ms"].is_u64(), "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("limits.groups_bytes_max"), "{refused}");
    assert_eq!(put("first").await.0, StatusCode::NO_CONTENT, "it is there already");
    assert_eq!(cluster.metric(1, "pontoon_groups_bytes_limit").await, 65536.0);
    let full = cluster.metric(1, "pontoon_groups_bytes").await;
    assert!((61_000.0..=65_536.0).contains(&full), "{full} bytes, and no room for 4000 more");
    // To come again would not help.
    assert_eq!(for_good(put("members").await), (409, "GROUP_NOT_EMPTY".into()));
}
