//! What an operator sees, on the real binary: every metric that is promised is served, it moves when it should, and the
//! dashboard and the alerts in docs/ ask for nothing that is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use pontoon_raft::instruments::Instrument;
use promql_parser::parser::parse as parse_query;
use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{Cluster, PATIENCE, metric};

/// The metrics that stand in the text, by kind.
fn served(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
}

fn promised() -> Vec<Instrument> {
    let all = pontoon::broker::observe::instruments().chain(pontoon::http::metrics::instruments());
    all.chain(pontoon::telemetry::process::instruments()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_promised_metric_is_served_and_moves() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 3).await;
    for partition in 0..3 {
        cluster.produce_text(1, "t", partition, "counted").await;
        cluster.fetch_all(2, "t", partition).await;
    }
    // Larger than what goes through the journal.
    let large: Vec<Value> = (0..3).map(|_| json!({"value": "x".repeat(900_000)})).collect();
    let (status, body) = cluster.post(1, "/v1/topics/t/partitions/0/records", json!({"records": large})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let missing = format!("{}/v1/topics/none", cluster.url(1));
    assert_eq!(cluster.http.get(missing).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    let refused = "pontoon_refusals_total{broker=\"1\",code=\"UNKNOWN_TOPIC\"} 1\n";
    assert!(cluster.metrics(1).await.contains(refused), "{}", cluster.metrics(1).await);
    let mut total: BTreeMap<&str, f64> = BTreeMap::new();
    for id in 1..=3 {
        let text = cluster.metrics(id).await;
        let served = served(&text);
        for Instrument { kind, name, help } in promised() {
            assert_eq!(served.get(name), Some(&kind), "broker {id}: {name}");
            assert!(text.contains(&format!("# HELP {name} {}\n", help.trim())), "broker {id}: {name} has no help");
            *total.entry(name).or_default() += metric(&text, name);
        }
        let bare: Vec<_> = served.keys().filter(|name| !text.contains(&format!("# HELP {name} "))).collect();
        assert!(bare.is_empty(), "broker {id} serves what nobody explains: {bare:?}");
        let foreign =
            text.lines().filter(|line| line.contains("broker=\"") && !line.contains(&format!("broker=\"{id}\"")));
        assert_eq!(foreign.collect::<Vec<_>>(), Vec::<&str>::new(), "broker {id}");
    }
    for (name, least) in [
        ("pontoon_produce_records_total", 3.0),
        ("pontoon_produce_batches_total", 3.0),
        ("pontoon_produce_duration_seconds", 3.0),
        ("pontoon_produce_queue_seconds", 3.0),
        ("pontoon_produce_journal_seconds", 3.0),
        ("pontoon_produce_replicate_seconds", 3.0),
        ("pontoon_fetch_records_total", 3.0),
        ("pontoon_fetch_duration_seconds", 3.0),
        ("pontoon_replication_requests_total", 3.0),
        ("pontoon_replication_duration_seconds", 3.0),
        ("pontoon_replication_bytes_total", 100.0),
        ("pontoon_journal_rounds_total", 3.0),
        ("pontoon_journal_sync_seconds", 3.0),
        ("pontoon_journal_bypasses_total", 1.0),
        ("pontoon_journal_bypass_bytes_total", 2_700_000.0),
        ("pontoon_log_append_bytes_total", 100.0),
        ("pontoon_raft_elections_won_total", 4.0),
        ("pontoon_checkpoints_total", 3.0),
        ("pontoon_tail_cache_hits_total", 3.0),
        ("pontoon_refusals_total", 1.0),
        ("pontoon_http_requests_total", 10.0),
        ("pontoon_http_forwarded_total", 1.0),
        ("pontoon_disk_available_bytes", 1.0),
        ("pontoon_process_open_fds", 10.0),
    ] {
        assert!(total[name] >= least, "{name} is {} on all brokers together", total[name]);
    }
    assert_eq!((total["pontoon_ready"], total["pontoon_controller"], total["pontoon_broker_leads"]), (3.0, 1.0, 3.0));
    // A death shows, and what it costs; and so does the way back.
    cluster.kill(3);
    for partition in 0..3 {
        cluster.produce_text(1, "t", partition, "without the third").await;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let texts = [cluster.metrics(1).await, cluster.metrics(2).await];
        let sum = |name| texts.iter().map(|text| metric(text, name)).sum::<f64>();
        let alive = texts.iter().all(|text| text.contains("peer=\"3\"} 0\n"));
        let lags = sum("pontoon_replica_lag_records_max") > 0.0 && sum("pontoon_replica_lag_bytes_max") > 0.0;
        if alive && lags && sum("pontoon_broker_leads") == 3.0 && sum("pontoon_partitions_under_replicated") == 3.0 {
            break;
        }
        assert!(Instant::now() < deadline, "{}", texts[0]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.restart(3).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let texts = [cluster.metrics(1).await, cluster.metrics(2).await];
        let sum = |name| texts.iter().map(|text| metric(text, name)).sum::<f64>();
        if sum("pontoon_raft_transfers_total") > 0.0 && sum("pontoon_replica_lag_records_max") == 0.0 {
            break;
        }
        assert!(Instant::now() < deadline, "{}", texts[0]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_shown_only_if_asked_for() {
    let cluster = Cluster::start_with(1, &["--set", "metrics.partitions=true"]).await;
    cluster.create_topic(1, "some.topic", 2).await;
    cluster.produce_text(1, "some.topic", 1, "one").await;
    let text = cluster.metrics(1).await;
    let wanted = "pontoon_partition_high_watermark{broker=\"1\",topic=\"some.topic\",partition=\"1\"} 1\n";
    assert!(text.contains(wanted), "{text}");
    assert_eq!(served(&text).get("pontoon_partition_in_sync"), Some(&"gauge"));
    let quiet = Cluster::start(1).await;
    quiet.create_topic(1, "some.topic", 2).await;
    assert!(!quiet.metrics(1).await.contains("some.topic"), "no label grows with topics");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_produce_says_where_its_time_went() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    for id in 1..=3 {
        // Through a follower too: the leader's word is passed on.
        let url = format!("{}/v1/topics/t/partitions/0/records", cluster.url(id));
        let request = cluster.http.post(&url).header("content-type", "text/plain").body("timed");
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let timing = answer.headers()["server-timing"].to_str().unwrap().to_owned();
        let stages: Vec<(&str, f64)> = timing
            .split(", ")
            .map(|stage| stage.split_once(";dur=").map(|(name, ms)| (name, ms.parse().unwrap())).unwrap())
            .collect();
        assert_eq!(
            stages.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            ["queue", "journal", "replicate"],
            "{timing}"
        );
        assert!(stages.iter().all(|(_, ms)| *ms >= 0.0) && stages[1].1 > 0.0, "{timing}");
    }
}

fn doc(name: &str) -> String {
    fs::read_to_string(format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Every `pontoon_…` word of a text.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("pontoon_")).collect()
}

/// What a query may ask for: metrics, and a histogram's parts.
fn queryable() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for Instrument { kind, name, .. } in promised().into_iter().chain(pontoon::kafka::metrics::instruments()) {
        match kind {
            "histogram" => names.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}"))),
            _ => drop(names.insert(name.to_owned())),
        }
    }
    names
}

#[test]
fn the_dashboard_and_the_alerts_ask_for_what_is_served() {
    let known = queryable();
    for file in ["grafana.json", "alerts.yml"] {
        let text = doc(file);
        let named = named(&text);
        assert!(named.len() > 8, "{file} asks for next to nothing");
        let unknown: Vec<_> = named.iter().filter(|name| !known.contains(**name)).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: Value = serde_json::from_str(&doc("grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut ids, mut shown) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is another's");
        if panel["type"] == "row" {
            continue;
        }
        assert!(!panel["description"].as_str().unwrap_or_default().is_empty(), "{title} says not what it shows");
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            // Grafana fills its own variables in before it asks.
            let filled = query.replace("$__rate_interval", "1m");
            parse_query(&filled).unwrap_or_else(|why| panic!("{title}: {query}: {why}"));
            assert!(query.contains("broker=~\"$broker\"") || query.contains("pontoon_process_"), "{title}: {query}");
            shown.extend(named(query).into_iter().map(str::to_owned));
        }
    }
    let variables: Vec<_> = dashboard["templating"]["list"].as_array().unwrap().iter().map(|v| &v["name"]).collect();
    assert_eq!(variables, ["datasource", "broker"]);
    // Nothing that is measured is left out of sight.
    let unseen: Vec<_> = promised()
        .into_iter()
        .chain(pontoon::kafka::metrics::instruments())
        .map(|instrument| instrument.name)
        .filter(|name| {
            !shown
                .iter()
                .any(|shown| shown == name || shown.strip_prefix(name).is_some_and(|rest| rest.starts_with('_')))
        })
        .collect();
    assert!(unseen.is_empty(), "no panel shows {unseen:?}");
}

/// A rule file, as Prometheus takes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    groups: Vec<RuleGroup>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleGroup {
    #[serde(rename = "name")]
    _name: String,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: String,
    expr: String,
    #[serde(rename = "for")]
    lasts: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[test]
fn every_alert_is_one_that_prometheus_loads_and_says_what_it_means() {
    let file: RuleFile = serde_saphyr::from_str(&doc("alerts.yml")).unwrap();
    let rules: Vec<_> = file.groups.into_iter().flat_map(|group| group.rules).collect();
    assert!(rules.len() >= 10);
    let mut names = BTreeSet::new();
    for Rule { alert, expr, lasts, labels, annotations } in rules {
        assert!(names.insert(alert.clone()), "{alert} stands twice");
        parse_query(&expr).unwrap_or_else(|why| panic!("{alert}: {expr}: {why}"));
        promql_parser::util::parse_duration(&lasts).unwrap_or_else(|why| panic!("{alert}: for {lasts}: {why}"));
        assert!(["warning", "critical"].contains(&labels["severity"].as_str()), "{alert}: {labels:?}");
        assert!(annotations.contains_key("summary") && annotations.contains_key("description"), "{alert}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lag_of_groups_is_told_by_status_and_by_the_metrics_of_their_coordinator() {
    let cluster = Cluster::start_with(3, &["--set=metrics.partitions=true", "--set=metrics.groups_max=2"]).await;
    cluster.create_topic(1, "orders", 2).await;
    for _ in 0..5 {
        cluster.produce_text(1, "orders", 1, "x").await;
    }
    for (group, offset) in [("slow", 1), ("quick", 5), ("middling", 3)] {
        let offsets = serde_json::json!([{"topic": "orders", "partition": 1, "offset": offset}]);
        let path = format!("/v1/groups/{group}/offsets");
        let body = Some(serde_json::json!({ "offsets": offsets }));
        let (status, body) = cluster.ask(2, reqwest::Method::PUT, &path, body).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{body}");
    }
    // High watermarks are told between brokers now and then.
    let deadline = Instant::now() + PATIENCE;
    let told = loop {
        let output = crate::support::run(&["--server", &cluster.servers(), "--json", "status", "--groups"], b"").await;
        // 5: one of them is still looking.
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 5)), "{said}");
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let lags: Vec<_> = told["groups"].as_array().unwrap().iter().map(|group| group["lag"].as_u64()).collect();
        if lags == [Some(2), Some(0), Some(4)] && output.status.success() {
            break told;
        }
        assert!(Instant::now() < deadline, "{told}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(told["unavailable"], serde_json::json!([]));
    let output = crate::support::run(&["--server", &cluster.url(3), "status", "--groups"], b"").await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line.split_whitespace().eq(["slow", "orders/1", "1", "5", "4", "-"])), "{text}");
    let mut by_group = BTreeMap::new();
    for group in told["groups"].as_array().unwrap() {
        let (name, coordinator) = (group["group"].as_str().unwrap(), group["coordinator"].as_u64().unwrap() as u32);
        let lag = group["lag"].as_u64().unwrap();
        by_group.entry(coordinator).or_insert_with(Vec::new).push((name, lag));
    }
    for id in 1..=3 {
        let text = cluster.metrics(id).await;
        let of_broker = by_group.remove(&id).unwrap_or_default();
        assert_eq!(metric(&text, "pontoon_groups"), of_broker.len() as f64, "broker {id}");
        let shown = text.lines().filter(|line| line.starts_with("pontoon_group_lag_records{")).count();
        assert_eq!(shown, of_broker.len().min(2), "broker {id}: no more than metrics.groups_max");
        let worst = of_broker.iter().map(|(_, lag)| *lag).max().unwrap_or(0);
        assert_eq!(metric(&text, "pontoon_group_lag_records_max"), worst as f64, "broker {id}");
        for (name, lag) in of_broker.iter().filter(|(_, lag)| *lag == worst) {
            let of_group = format!("broker=\"{id}\",group=\"{name}\"");
            for line in [
                format!("pontoon_group_lag_records{{{of_group}}} {lag}\n"),
                format!("pontoon_group_partition_lag_records{{{of_group},topic=\"orders\",partition=\"1\"}} {lag}\n"),
            ] {
                assert!(text.contains(&line), "broker {id}: {line} is missing: {text}");
            }
        }
    }
}
