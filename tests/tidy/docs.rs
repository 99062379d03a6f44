//! What the documents say of the sources is so: the tests that they name, the metrics, Kafka's APIs, what is not run of others' suites.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use pontoon::kafka::messages::APIS;
use regex::Regex;

use super::{code_files, code_lines, offences};
use crate::support::{all_rust, root};

fn document(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// Names that look like a test's and are others'.
const OTHERS: &[&str] = &[
    "__consumer_offsets",
    "test_client_backoff_terminates",
    "test_base_producer_timeout",
    "test_invalid_max_poll_interval",
    "test_future_producer_send_full",
    "test_invalid_consumer_position",
    "test_base_producer_opaque_arc",
    "test_base_producer_queue_full",
];

#[test]
fn every_test_that_a_document_names_exists() {
    let (sources, name) = (all_rust(), Regex::new("`([a-z0-9_]+)`").unwrap());
    let mut found = Vec::new();
    for (file, least) in [("docs/RELIABILITY.md", 80), ("docs/COMPATIBILITY.md", 0)] {
        let text = document(file);
        let names: BTreeSet<&str> = name.captures_iter(&text).map(|name| name.get(1).unwrap().as_str()).collect();
        let tests = names.into_iter().filter(|name| name.matches('_').count() >= 3 && !OTHERS.contains(name));
        let tests: Vec<&str> = tests.collect();
        assert!(tests.len() >= least, "{file} names only {tests:?}");
        let missing = tests.into_iter().filter(|test| !sources.contains(&format!("fn {test}(")));
        found.extend(missing.map(|test| format!("{file} names `{test}`, which does not exist")));
    }
    offences(&found);
}

/// What is counted and shown nowhere is looked at by nobody.
#[test]
fn every_metric_is_on_the_dashboard_or_in_the_operators_page() {
    let literal = Regex::new("\"(pontoon_[a-z0-9_]+)\"").unwrap();
    let word = Regex::new("pontoon_[a-z0-9_]+").unwrap();
    let shown = document("docs/OPERATIONS.md") + &document("docs/grafana.json");
    let shown: BTreeSet<&str> = word.find_iter(&shown).map(|word| word.as_str()).collect();
    // A histogram is asked for by its parts.
    let parts = ["", "_bucket", "_sum", "_count"];
    let is_shown = |name: &str| parts.iter().any(|part| shown.contains(format!("{name}{part}").as_str()));
    let (mut found, mut metrics) = (Vec::new(), 0);
    for (file, text) in code_files().iter().filter(|(file, _)| !file.starts_with("jepsen")) {
        for (line, code) in code_lines(text) {
            for name in literal.captures_iter(code).map(|name| name[1].to_owned()).filter(|name| name != "pontoon_raft")
            {
                metrics += 1;
                if !is_shown(&name) {
                    found.push(format!("{file}:{line}: {name} is in neither docs/OPERATIONS.md nor docs/grafana.json"));
                }
            }
        }
    }
    assert!(metrics > 80, "only {metrics} metrics found");
    offences(&found);
}

#[test]
fn the_versions_of_kafkas_apis_are_those_that_are_served() {
    let text = document("docs/COMPATIBILITY.md");
    let rows = text.lines().skip_while(|line| !line.starts_with("| API | served |")).skip(2);
    let cells = rows.take_while(|line| line.starts_with('|')).map(|row| row.splitn(4, '|').map(str::trim));
    let told: Vec<(&str, &str)> = cells.map(|mut cells| (cells.nth(1).unwrap(), cells.next().unwrap())).collect();
    let served: Vec<_> = APIS.iter().map(|api| (api.name, format!("{}–{}", api.min, api.max))).collect();
    assert_eq!(told, served.iter().map(|(name, versions)| (*name, versions.as_str())).collect::<Vec<_>>());
}

#[test]
fn what_is_not_run_of_others_suites_is_told_and_counted() {
    let (text, toml) = (document("docs/COMPATIBILITY.md"), document("scripts/conformance.toml"));
    let reasons: BTreeMap<String, BTreeMap<String, String>> = toml::from_str(&toml).unwrap();
    let mut found = Vec::new();
    for (suite, tests) in &reasons {
        let row = text.lines().find(|line| line.starts_with(&format!("| {suite} "))).unwrap();
        let count = row.trim_end_matches(['|', ' ']).rsplit(' ').next().unwrap();
        if count != tests.len().to_string() {
            found.push(format!("{suite}: {} are not applicable, not {count}", tests.len()));
        }
        // Of a test whose number says what it is, the number; of one of its parts, the part.
        let short = |test: &str| match test.rsplit_once("::").or(test.split_once(':')) {
            Some((_, "test_transaction_abort" | "test_transaction_commit")) => "test_transactions".to_owned(),
            Some((_, part)) => part.to_owned(),
            None => test.split('_').next().unwrap().to_owned(),
        };
        let table = text.split_once("Not applicable, and why").unwrap().1;
        let missing = tests.keys().map(|test| short(test)).filter(|test| !table.contains(test.as_str()));
        found.extend(missing.map(|test| format!("{suite}: no reason is told for {test}")));
    }
    offences(&found);
}

#[test]
fn every_alarm_says_in_the_operators_page_what_it_means() {
    let (page, rules) = (document("docs/OPERATIONS.md"), document("docs/alerts.yml"));
    let rows = page.lines().skip_while(|line| !line.starts_with("| alarm | means | do |")).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|')).filter_map(|row| row.split('|').nth(1));
    let told: BTreeSet<&str> =
        rows.flat_map(|cell| cell.split('`')).filter(|word| word.starts_with("Pontoon")).collect();
    let rules: BTreeSet<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(rules.len() > 15, "{rules:?}");
    assert_eq!(told, rules);
}
