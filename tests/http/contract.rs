//! The contract of the HTTP door, line by line, and which test on the running binary holds it; and those lines that no other
//! theme has.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::tails::Tail;
use super::{fetch, produce, records_url, refusal, refused_for_a_while, values};
use crate::support::{Cluster, Contract, PATIENCE, every_line_has_tests, read, run};

/// What is promised, and the tests that show it. What the command line promises is in `tests/cli/contract.rs`.
const CONTRACT: Contract = &[
    // Topics.
    ("POST /v1/topics: 201 with the description", &["topics_live_from_creation_to_deletion"]),
    ("defaults: one partition, min(3, brokers) replicas, no config", &["a_topic_has_defaults_that_suit_the_cluster"]),
    ("config values are strings, by Kafka's names", &["topics_that_cannot_be_are_refused_by_name"]),
    ("409 exists; names that differ in . and _ collide", &["topics_that_cannot_be_are_refused_by_name"]),
    (
        "GET /v1/topics, GET /v1/topics/{t}",
        &["topics_live_from_creation_to_deletion", "every_answer_is_one_that_the_document_lists"],
    ),
    (
        "PATCH: null resets, partitions only grow",
        &["a_patch_takes_effect_on_every_broker", "a_patch_that_cannot_be_changes_nothing"],
    ),
    (
        "DELETE: 204; created again, no old data",
        &["topics_live_from_creation_to_deletion", "a_deleted_topic_gives_its_room_back"],
    ),
    // Produce.
    (
        "one request is one batch, atomic",
        &["bad_records_are_refused_whole_with_what_is_wrong", "a_body_that_breaks_off_writes_nothing"],
    ),
    (
        "by key: murmur2, as Kafka's clients",
        &["a_key_leads_where_kafkas_clients_lead_it_and_each_record_has_its_result"],
    ),
    ("by key: without a key round robin", &["records_without_a_key_go_round_all_partitions"]),
    ("by key: results in input order", &["a_key_leads_where_kafkas_clients_lead_it_and_each_record_has_its_result"]),
    (
        "by key: the first failure's status and body, results, outcome none, unknown or partial",
        &[
            "what_one_partition_refuses_is_told_apart_from_what_another_has_written",
            "a_share_that_was_not_answered_is_unknown",
        ],
    ),
    (
        "acks=all|every|leader|none; none: 202 {}; all unless it is said",
        &["every_ack_level_answers_as_documented", "an_ack_level_waits_for_what_it_says_and_for_all_unless_told"],
    ),
    (
        "acks=every: every replica, or a refusal that says what happened",
        &["every_replica_has_it_or_the_refusal_says_what_happened"],
    ),
    (
        "timeout_ms; with no leader the broker waits up to it",
        &[
            "without_a_majority_requests_wait_their_time_and_say_so",
            "a_killed_leader_is_replaced_under_a_waiting_client",
        ],
    ),
    (
        "timeout_ms: default 30000",
        &["a_request_waits_for_half_a_minute_and_a_read_for_ten_seconds_unless_it_says_how_long"],
    ),
    (
        "JSON: strings, other JSON as its text, null, base64, headers, timestamp",
        &["every_body_format_comes_back_as_it_went_in"],
    ),
    (
        "JSON: both forms at once, unknown fields: 400",
        &["both_forms_of_a_field_at_once_are_refused", "bad_records_are_refused_whole_with_what_is_wrong"],
    ),
    ("text/plain: the final newline is kept", &["every_body_format_comes_back_as_it_went_in"]),
    (
        "x-ndjson: one bad line fails all and is named",
        &["bad_records_are_refused_whole_with_what_is_wrong", "a_bad_request_by_key_writes_nothing"],
    ),
    (
        "octet-stream: one RecordBatch, stored as it came",
        &[
            "a_batch_is_read_as_it_was_sent_but_for_its_offset_and_its_leaders_epoch",
            "a_raw_batch_that_lies_is_refused",
        ],
    ),
    (
        "anything else: 415",
        &["bad_records_are_refused_whole_with_what_is_wrong", "every_answer_is_one_that_the_document_lists"],
    ),
    (
        "Producer-*: a duplicate answers 200 with the original's offsets",
        &[
            "sequences_and_expected_offsets_are_held_to",
            "every_line_once_and_in_order_while_brokers_are_killed_in_turn",
        ],
    ),
    (
        "Producer-Sequence is int32, wraps, and counts for a partition",
        &[
            "sequences_and_expected_offsets_are_held_to",
            "after_the_last_sequence_comes_0_and_a_duplicate_of_either_is_one",
            "a_batch_from_the_last_sequence_to_0_is_followed_by_1",
        ],
    ),
    (
        "Producer-*: 400 by key and with a RecordBatch",
        &["a_bad_request_by_key_writes_nothing", "a_raw_batch_that_lies_is_refused"],
    ),
    (
        "If-Match-Offset: only at the log end, else 412; not by key",
        &["sequences_and_expected_offsets_are_held_to", "a_bad_request_by_key_writes_nothing"],
    ),
    ("POST /v1/producers: 201, never given out before", &["sequences_and_expected_offsets_are_held_to"]),
    // Fetch.
    ("offset=N|earliest|latest|timestamp:MS, default earliest", &["the_cursor_leads_through_everything_once"]),
    (
        "max_bytes, max_records, at least one record",
        &["the_cursor_leads_through_everything_once", "parameters_out_of_range_are_refused"],
    ),
    ("max_bytes: default 1 MiB", &["a_fetch_brings_a_mebibyte_unless_it_says_how_much"]),
    (
        "max_wait_ms",
        &[
            "a_waiting_fetch_is_woken_by_a_record_or_by_its_time",
            "hundreds_wait_and_outlive_their_leader",
            "all_who_wait_for_a_record_get_it_however_many_are_woken_at_once",
        ],
    ),
    (
        "consistency=committed|linearizable",
        &["the_cursor_leads_through_everything_once", "an_isolated_leader_claims_no_end"],
    ),
    ("value_format=json", &["values_that_are_json_are_embedded_when_asked_for"]),
    ("at the high watermark: 200 with no records", &["the_cursor_leads_through_everything_once"]),
    (
        "past it: 416 with both in the body",
        &["the_cursor_leads_through_everything_once", "any_broker_takes_any_request_and_passes_it_on_once"],
    ),
    (
        "below the log start: 416 with both in the body",
        &["what_retention_took_is_416_for_a_fetch_and_a_last_word_for_a_tail"],
    ),
    ("bytes that are not UTF-8 come as base64", &["every_body_format_comes_back_as_it_went_in"]),
    ("next_offset is the only cursor", &["the_cursor_leads_through_everything_once"]),
    ("octet-stream: raw batches, the cursor in headers", &["every_body_format_comes_back_as_it_went_in"]),
    (
        "octet-stream: the first may begin before offset",
        &["raw_batches_are_whole_and_the_first_may_begin_before_the_offset"],
    ),
    ("x-ndjson: a record a line, the cursor in headers", &["records_come_as_lines_and_the_cursor_is_in_the_headers"]),
    ("unacceptable Accept: 406", &["a_method_or_a_format_that_is_not_there_is_refused_by_its_code"]),
    ("offsets; timestamp adds the first offset at or after it", &["the_cursor_leads_through_everything_once"]),
    // Tails.
    ("id, event: record, data on one line", &["a_tail_begins_where_it_is_asked_to_and_goes_on_with_what_comes"]),
    ("a comment every 15 s", &["a_quiet_tail_has_a_comment_now_and_then_and_a_redirect_if_it_asks"]),
    (
        "Last-Event-ID resumes and beats offset; with neither, latest",
        &["a_tail_begins_where_it_is_asked_to_and_goes_on_with_what_comes"],
    ),
    (
        "a retention gap sends event: error and ends",
        &["what_retention_took_is_416_for_a_fetch_and_a_last_word_for_a_tail"],
    ),
    ("it survives a change of leader", &["a_tail_survives_any_change_of_leader_and_misses_and_repeats_nothing"]),
    // Leader.
    ("any broker takes any request and passes it on, one hop", &["any_broker_takes_any_request_and_passes_it_on_once"]),
    (
        "Prefer: redirect: 307 to the leader's advertised address, query kept",
        &[
            "any_broker_takes_any_request_and_passes_it_on_once",
            "what_passes_through_another_broker_is_listed_too",
            "a_redirect_names_the_advertised_address",
            "a_redirect_is_answered_where_the_document_lists_one_and_nowhere_else",
        ],
    ),
    // Errors.
    (
        "always error, message, retriable, outcome; never a 200",
        &["every_answer_is_one_that_the_document_lists", "nothing_is_served_that_is_not_in_the_document"],
    ),
    ("400 of what is no request", &["what_is_no_request_gets_the_error_body_too"]),
    ("403: a topic of Pontoon's own is read, not changed", &["what_holds_the_groups_is_not_for_clients_to_change"]),
    (
        "404, 405 with Allow",
        &[
            "nothing_is_served_that_is_not_in_the_document",
            "a_method_or_a_format_that_is_not_there_is_refused_by_its_code",
        ],
    ),
    ("408", &["a_body_that_breaks_off_writes_nothing"]),
    (
        "409 fenced, sequence, unknown producer, exists",
        &[
            "sequences_and_expected_offsets_are_held_to",
            "a_producer_that_is_not_known_is_told_so_unless_it_begins",
            "topics_that_cannot_be_are_refused_by_name",
        ],
    ),
    ("404 no such group, 409 group in use", &["a_group_that_is_not_there_or_in_use_is_refused_by_its_code"]),
    (
        "413",
        &[
            "a_body_over_the_limit_is_refused_and_the_client_can_read_so",
            "bad_records_are_refused_whole_with_what_is_wrong",
        ],
    ),
    (
        "429",
        &[
            "half_bodies_hold_up_nobody",
            "one_connection_too_many_is_told_so_and_room_comes_back",
            "a_group_that_there_is_no_room_for_is_refused_until_others_go",
        ],
    ),
    ("431", &["what_is_no_request_gets_the_error_body_too"]),
    (
        "retry_after_ms beside Retry-After, of a 429 or a 503",
        &[
            "without_a_majority_requests_wait_their_time_and_say_so",
            "every_replica_has_it_or_the_refusal_says_what_happened",
            "readiness_says_why_not_and_health_only_that_it_lives",
            "one_connection_too_many_is_told_so_and_room_comes_back",
        ],
    ),
    (
        "503 with Retry-After: no leader, not enough replicas, not ready",
        &[
            "without_a_majority_requests_wait_their_time_and_say_so",
            "every_replica_has_it_or_the_refusal_says_what_happened",
            "readiness_says_why_not_and_health_only_that_it_lives",
        ],
    ),
    (
        "504: the outcome is unknown",
        &[
            "a_paused_leader_leaves_a_plain_produce_unknown_and_an_idempotent_one_done",
            "every_replica_has_it_or_the_refusal_says_what_happened",
        ],
    ),
    ("507 STORAGE_FULL", &["a_full_disk_refuses_produce_and_nothing_else_until_there_is_room"]),
    ("one table in docs lists every code", &["every_error_code_is_in_the_operators_table"]),
    // Limits.
    ("record 1 MiB, request 16 MiB", &["a_record_has_a_mebibyte_and_a_request_sixteen_unless_the_configuration_says"]),
    (
        "record, request: configurable",
        &[
            "bad_records_are_refused_whole_with_what_is_wrong",
            "a_body_over_the_limit_is_refused_and_the_client_can_read_so",
        ],
    ),
    (
        "headers, connections",
        &["what_is_no_request_gets_the_error_body_too", "one_connection_too_many_is_told_so_and_room_comes_back"],
    ),
    (
        "bytes in flight",
        &[
            "half_bodies_hold_up_nobody",
            "clients_that_never_read_hold_up_nobody",
            "a_tail_that_is_not_read_is_closed_and_others_go_on",
        ],
    ),
    ("path segments are decoded once; %2F is refused", &["a_name_in_the_path_is_decoded_once"]),
    // Safe by default.
    (
        "another address than loopback needs allow_insecure, and warns",
        &["starts_that_cannot_be_are_refused_with_the_key", "a_broker_that_anybody_can_reach_warns_on_stderr"],
    ),
    ("a foreign Origin or Host is refused", &["a_foreign_page_or_name_is_refused_on_every_path_and_writes_nothing"]),
    // The cluster and its health.
    ("GET /v1/cluster, /v1/brokers: addresses, liveness, what each leads", &["cluster_and_brokers_are_described"]),
    ("what lags", &["who_lags_is_seen"]),
    ("GET /healthz: 200 while the process lives", &["readiness_says_why_not_and_health_only_that_it_lives"]),
    ("GET /readyz: 200, or 503 with the reason", &["readiness_says_why_not_and_health_only_that_it_lives"]),
    ("GET /readyz: a group without a leader is no reason", &["without_a_majority_requests_wait_their_time_and_say_so"]),
    (
        "GET /metrics: prefix pontoon_, base units, no label that grows with topics",
        &["metrics_have_one_prefix_and_no_label_that_grows_with_topics"],
    ),
    ("GET /metrics: partitions where that is switched on", &["partitions_are_shown_only_if_asked_for"]),
    (
        "GET /openapi.json: true to the above, answers",
        &["every_answer_is_one_that_the_document_lists", "nothing_is_served_that_is_not_in_the_document"],
    ),
    (
        "GET /openapi.json: true to the above, requests",
        &[
            "every_parameter_takes_what_the_document_allows_and_nothing_else",
            "every_body_may_be_what_the_document_allows_and_nothing_else",
            "every_parameter_and_every_field_that_is_read_is_in_the_document",
            "every_header_that_is_read_is_in_the_document",
        ],
    ),
    // Groups.
    (
        "GET /v1/groups, GET and PUT /v1/groups/{g}/offsets",
        &[
            "the_lag_of_groups_is_told_by_status_and_by_the_metrics_of_their_coordinator",
            "a_group_that_is_not_there_or_in_use_is_refused_by_its_code",
            "offsets_go_a_minute_after_the_last_who_cared_for_them_whoever_coordinates",
        ],
    ),
    // Peers.
    (
        "the peer handshake checks cluster id and protocol version",
        &["who_speaks_another_version_or_is_of_another_cluster_is_turned_away_and_the_log_says_why"],
    ),
];

#[test]
fn every_line_of_the_http_contract_names_tests_that_exist() {
    every_line_has_tests(CONTRACT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_holds_the_groups_is_not_for_clients_to_change() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let offsets = json!({"offsets": [{"topic": "t", "partition": 0, "offset": 1, "metadata": "m"}]});
    let (status, body) = cluster.ask(1, Method::PUT, "/v1/groups/g/offsets", Some(offsets.clone())).await;
    assert!(status.is_success(), "{body}");
    let records = json!({"records": [{"key": "g", "value": "forged"}]});
    let topic = "/v1/topics/__consumer_offsets";
    for (method, path, body) in [
        (Method::POST, "/v1/topics", Some(json!({"name": "__consumer_offsets"}))),
        (Method::POST, &*format!("{topic}/partitions/0/records"), Some(records.clone())),
        (Method::POST, &format!("{topic}/records"), Some(records)),
        (Method::PATCH, topic, Some(json!({"partitions": 400}))),
        (Method::PATCH, topic, Some(json!({"config": {"retention.ms": "1"}}))),
        (Method::DELETE, topic, None),
    ] {
        let (status, answer) = cluster.ask(1, method.clone(), path, body).await;
        assert_eq!((status.as_u16(), &answer["error"]), (403, &json!("INTERNAL_TOPIC")), "{method} {path}: {answer}");
        assert_eq!((&answer["retriable"], &answer["outcome"]), (&json!(false), &json!("none")), "{answer}");
    }
    let (status, described) = cluster.get(1, topic).await;
    assert_eq!((status, &described["config"]["retention.ms"]), (StatusCode::OK, &json!("-1")), "{described}");
    let (status, kept) = cluster.get(1, "/v1/groups/g/offsets").await;
    assert_eq!((status, kept), (StatusCode::OK, offsets));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_in_the_path_is_decoded_once() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "a-b", 1).await;
    let (status, body) = cluster.get(1, "/v1/topics/a%2Db").await;
    assert_eq!((status, &body["name"]), (StatusCode::OK, &json!("a-b")));
    let (status, _) = cluster.get(1, "/v1/topics/%61-b/partitions/0/offsets").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        refusal(cluster.get(1, "/v1/topics/a%252Db").await),
        (404, "UNKNOWN_TOPIC".into()),
        "decoded once, not twice"
    );
    for path in ["/v1/topics/a%2Fb", "/v1/topics/a%2fb/partitions/0/records", "/v1/topics/%ff"] {
        assert_eq!(refusal(cluster.get(1, path).await), (400, "INVALID_REQUEST".into()), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_says_why_not_and_health_only_that_it_lives() {
    let mut cluster = Cluster::prepare(3, &[]);
    cluster.spawn(1);
    let deadline = Instant::now() + PATIENCE;
    let url = format!("{}/healthz", cluster.url(1));
    while !cluster.http.get(&url).send().await.is_ok_and(|answer| answer.status() == StatusCode::OK) {
        assert!(Instant::now() < deadline, "broker 1 does not live");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (status, body) = cluster.get(1, "/readyz").await;
    assert_eq!((status, &body["ready"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(false)));
    assert!(!body["reason"].as_str().unwrap().is_empty(), "{body}");
    // What it does not know yet may be there.
    for path in ["/v1/topics/t", "/v1/topics"] {
        let response = cluster.send(1, Method::GET, path, None).await;
        assert_eq!(refusal(refused_for_a_while(response).await), (503, "NOT_READY".into()), "{path}");
    }
    let shown = run(&["status", "--server", &cluster.url(1), "--patience", "1"], b"").await;
    let (status, text) = (shown.status.code(), String::from_utf8(shown.stdout).unwrap());
    assert!(
        status == Some(0) && text.contains("! which topics there are is not known: NOT_READY"),
        "{status:?}: {text}"
    );
    assert!(!text.contains("0 topics") && !text.contains("all is well"), "{text}");
    cluster.spawn(2);
    cluster.spawn(3);
    for id in 1..=3 {
        cluster.wait_ready(id).await;
        assert_eq!(cluster.get(id, "/readyz").await, (StatusCode::OK, json!({"ready": true})));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_have_one_prefix_and_no_label_that_grows_with_topics() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "a-name-to-look-for", 3).await;
    cluster.produce_text(1, "a-name-to-look-for", 2, "x").await;
    cluster.fetch_all(1, "a-name-to-look-for", 2).await;
    let response = cluster.send(1, Method::GET, "/metrics", None).await;
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = response.text().await.unwrap();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let name = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
        assert!(name.starts_with("pontoon_"), "{line}");
        assert!(!line.contains("a-name-to-look-for") && !line.contains("partition=\""), "{line}");
        let of_time_or_size = name.split(['{', ' ']).next().unwrap().split('_').rfind(|word| *word != "total").unwrap();
        assert!(
            !["ms", "us", "ns", "millis", "minutes", "kb", "mb", "kib", "percent"].contains(&of_time_or_size),
            "{line}"
        );
    }
    for name in ["pontoon_produce_records_total", "pontoon_fetch_records_total", "pontoon_ready"] {
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{broker=\"1\""))).unwrap_or_default();
        assert!(line.ends_with(" 1"), "{name}: {line:?} in {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_replica_has_it_or_the_refusal_says_what_happened() {
    // A paused broker counts as alive for long: what is asked of it is written, and then missing.
    let mut cluster = Cluster::start_with(3, &["--set", "raft.silence_max_ms=60000"]).await;
    cluster.create_topic(1, "t", 1).await;
    let leader = cluster.leader(1, "t", 0).await;
    let (follower, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let every = async |timeout: u32| {
        let url = format!("{}?acks=every&timeout_ms={timeout}", records_url(&cluster, leader, "t"));
        let request = cluster.http.post(url).header("content-type", "text/plain").body("x");
        request.send().await.unwrap()
    };
    assert_eq!(every(30_000).await.status(), StatusCode::OK);
    cluster.pause(follower);
    let after = read(every(700).await).await;
    assert_eq!(after.1["outcome"], "unknown", "{}", after.1);
    assert_eq!(refusal(after), (504, "NOT_ENOUGH_REPLICAS_AFTER_APPEND".into()));
    cluster.resume(follower);
    assert_eq!(every(30_000).await.status(), StatusCode::OK);
    tokio::task::block_in_place(|| cluster.kill(other));
    let url = format!("{}?acks=every&timeout_ms=700", records_url(&cluster, leader, "t"));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = cluster.http.post(&url).header("content-type", "text/plain").body("x");
        let answer = request.send().await.unwrap();
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            let answer = refused_for_a_while(answer).await;
            assert_eq!(answer.1["outcome"], "none", "{}", answer.1);
            assert_eq!(refusal(answer), (503, "NOT_ENOUGH_REPLICAS".into()));
            break;
        }
        assert!(Instant::now() < deadline, "{:?}", read(answer).await);
    }
    assert_eq!(produce(&cluster, leader, "t", "text/plain", "a majority").await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_forms_of_a_field_at_once_are_refused() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    for (record, word) in [
        (r#"{"value":"a","value_base64":"YQ=="}"#, "value and value_base64"),
        (r#"{"key":"a","key_base64":"YQ=="}"#, "key and key_base64"),
        (r#"{"value_base64":"?"}"#, "value_base64"),
        (r#"{"headers":[["a",{"base64":"YQ==","text":"a"}]]}"#, "headers[0][1]"),
        (r#"{"valeu":"a"}"#, "`valeu`"),
        (r#"{"timestamp":-1}"#, "timestamp"),
    ] {
        let answer = produce(&cluster, 1, "t", "application/json", format!("{{\"records\":[{{}},{record}]}}")).await;
        let message = answer.1["message"].as_str().unwrap();
        assert!(message.contains("record 1") && message.contains(word), "{record}: {message}");
        assert_eq!(refusal(answer), (400, "INVALID_REQUEST".into()));
    }
    assert!(cluster.fetch_all(1, "t", 0).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_out_of_range_are_refused() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    for query in [
        "max_bytes=0",
        "max_bytes=67108865",
        "max_records=0",
        "max_wait_ms=60001",
        "max_wait_ms=-1",
        "timeout_ms=0",
        "timeout_ms=3600001",
        "offset=-1",
        "offset=",
        "offset=timestamp:x",
        "consistency=eventual",
        "max_byte=5",
        "offset=1&offset=2",
    ] {
        let answer = fetch(&cluster, 1, "t", query).await;
        let named = query.split('&').next().unwrap().split('=').next().unwrap();
        assert!(answer.1["message"].as_str().unwrap().contains(named), "{query}: {}", answer.1);
        assert_eq!(refusal(answer), (400, "INVALID_REQUEST".into()), "{query}");
    }
    for query in ["max_bytes=67108864", "max_bytes=1", "max_wait_ms=0", "timeout_ms=1", "offset=timestamp:0"] {
        assert_eq!(fetch(&cluster, 1, "t", query).await.0, StatusCode::OK, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_wait_and_outlive_their_leader() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let leader = cluster.leader(1, "t", 0).await;
    let others: Vec<u32> = (1..=3).filter(|id| *id != leader).collect();
    let waiting: Vec<_> = (0..200)
        .map(|at| {
            let url = format!("{}?max_wait_ms=60000", records_url(&cluster, others[at % 2], "t"));
            tokio::spawn(cluster.http.get(url).send())
        })
        .collect();
    // All of them are passed on to the leader, which has nothing for them.
    let deadline = Instant::now() + PATIENCE;
    let passed_on = async |id: u32| cluster.metric(id, "pontoon_http_forwarded_total").await;
    while passed_on(others[0]).await + passed_on(others[1]).await < 200.0 {
        assert!(Instant::now() < deadline, "not all wait at the leader");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    tokio::task::block_in_place(|| cluster.kill(leader));
    cluster.produce_text(others[0], "t", 0, "from the next").await;
    for answer in join_all(waiting).await {
        let (status, body) = read(answer.unwrap().unwrap()).await;
        assert_eq!((status, values(&body)), (StatusCode::OK, vec!["from the next"]), "{body}");
    }
}

/// What is passed on says what is left of its time, and of the wait that comes on top.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_may_be_passed_on_with_all_the_time_there_is() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let leader = cluster.leader(1, "t", 0).await;
    for id in 1..=3 {
        let (status, body) = fetch(&cluster, id, "t", "timeout_ms=3600000&max_wait_ms=1000").await;
        assert_eq!((status, values(&body)), (StatusCode::OK, vec![]), "broker {id}, of {leader}: {body}");
    }
}

/// The answers are small, and there is room for sixteen of the largest that each of them might have had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_who_wait_for_a_record_get_it_however_many_are_woken_at_once() {
    let cluster = Cluster::start_with(1, &["--set", "limits.inflight_bytes_max=16777216"]).await;
    cluster.create_topic(1, "t", 1).await;
    let url = format!("{}?max_wait_ms=60000", records_url(&cluster, 1, "t"));
    let waiting: Vec<_> = (0..200).map(|_| tokio::spawn(cluster.http.get(&url).send())).collect();
    let deadline = Instant::now() + PATIENCE;
    while cluster.metric(1, "pontoon_http_connections").await < 200.0 {
        assert!(Instant::now() < deadline, "not all wait");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.produce_text(1, "t", 0, "for all").await;
    for answer in join_all(waiting).await {
        let (status, body) = read(answer.unwrap().unwrap()).await;
        assert_eq!((status, values(&body)), (StatusCode::OK, vec!["for all"]), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_isolated_leader_claims_no_end() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    cluster.produce_text(1, "t", 0, "there").await;
    let leader = cluster.leader(1, "t", 0).await;
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.pause(id);
    }
    // What is committed is, and is served; where it ends nobody here can know.
    let (status, answer) = fetch(&cluster, leader, "t", "max_bytes=1").await;
    assert_eq!((status, values(&answer)), (StatusCode::OK, vec!["there"]));
    let answer = fetch(&cluster, leader, "t", "offset=latest&consistency=linearizable&timeout_ms=300").await;
    assert_eq!(refusal(answer), (503, "NO_LEADER".into()));
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.resume(id);
    }
    assert_eq!(cluster.fetch_all(leader, "t", 0).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_retention_took_is_416_for_a_fetch_and_a_last_word_for_a_tail() {
    let cluster = Cluster::start_with(3, &["--set", "retention.check_interval_ms=50"]).await;
    let config = json!({"retention.bytes": "20000", "segment.bytes": "10000"});
    let (status, body) = cluster.post(1, "/v1/topics", json!({"name": "t", "config": config})).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    let deadline = Instant::now() + PATIENCE;
    let start = loop {
        cluster.produce_text(1, "t", 0, &"x".repeat(2000)).await;
        let (_, offsets) = cluster.get(1, "/v1/topics/t/partitions/0/offsets").await;
        match offsets["log_start_offset"].as_u64().unwrap() {
            0 => assert!(Instant::now() < deadline, "nothing is taken: {offsets}"),
            start => break start,
        }
    };
    for id in 1..=3 {
        let (_, body) = fetch(&cluster, id, "t", "offset=0").await;
        assert!(body["log_start_offset"].as_u64().unwrap() >= start && body["high_watermark"].is_u64(), "{body}");
        assert_eq!(refusal((StatusCode::RANGE_NOT_SATISFIABLE, body)), (416, "OFFSET_OUT_OF_RANGE".into()));
        // Whether it asks for what is gone or comes back for it: a browser can read an event, and no status.
        for (query, last) in [("offset=0", None), ("", Some(0))] {
            let mut tail = Tail::open(&cluster, id, query, last).await;
            let event = tail.next().await.unwrap();
            assert_eq!((event.name.as_str(), event.id), ("error", None), "{event:?}");
            assert_eq!((&event.data["error"], &event.data["outcome"]), (&json!("OFFSET_OUT_OF_RANGE"), &json!("none")));
            assert!(event.data["log_start_offset"].as_u64().unwrap() >= start, "{event:?}");
            assert_eq!(tail.next().await, None);
        }
        let mut earliest = Tail::open(&cluster, id, "offset=earliest", None).await;
        assert!(earliest.record().await.0 >= start);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lags_is_seen() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 2).await;
    tokio::task::block_in_place(|| cluster.kill(3));
    cluster.produce_text(1, "t", 0, "without the third").await;
    let lags = async |wanted: fn(&Value) -> bool| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, body) = cluster.get(1, "/v1/cluster").await;
            if wanted(&body["brokers"][2]) {
                return;
            }
            assert!(Instant::now() < deadline, "{body}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    lags(|third| third["lagging"] == 2 && third["leads"] == 0 && third["alive"] == false).await;
    cluster.restart(3).await;
    let deadline = Instant::now() + PATIENCE;
    while cluster.get(1, "/v1/cluster").await.1["brokers"][2]["lagging"] != 0 {
        assert!(Instant::now() < deadline, "broker 3 lags for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn parameters_that_are_not_known_are_refused_but_not_a_probes() {
    let cluster = Cluster::start(1).await;
    for (path, status) in
        [("/v1/cluster", 400), ("/v1/topics", 400), ("/healthz", 200), ("/readyz", 200), ("/metrics", 200)]
    {
        let answer = cluster.http.get(format!("{}{path}?probe=7", cluster.url(1))).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
    }
}
