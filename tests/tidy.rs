//! Style made executable: who may import whom, one home for each dependency, a header on every module (STYLE, ARCHITECTURE.md).

use std::fs;

use crate::support::{all_rust, root, rust_files};

mod docs;

/// What may be named only in its home. Files are matched by prefix of their path from the repository's root.
const HOMES: &[(&str, &[&str])] = &[
    (
        "openraft",
        &[
            "raft/src/types.rs",
            "raft/src/runtime.rs",
            "raft/src/log_store.rs",
            "raft/src/state_machine.rs",
            "raft/src/transport",
            "raft/src/raft_group",
            "raft/src/elections",
            "raft/src/supervision.rs",
            "raft/src/log/entry.rs",
            "raft/src/testing",
            "src/telemetry",                  // the name of its log lines
            "jepsen/src/nemesis/scenario.rs", // the names of its issues
        ],
    ),
    ("sled::", &["src/catalog/tables"]),
    ("axum::", &["src/http"]),
    ("bincode::", &["raft/src/codec.rs"]),
    ("std::fs", &["raft/src/disk", "src/config", "src/cli", "src/telemetry", "src/catalog/tables", "jepsen/src"]),
    ("tokio::fs", &["raft/src/disk", "src/cli"]),
    ("rustix::fs", &["raft/src/disk", "jepsen/src"]),
    ("std::thread", &["raft/src/disk", "src/catalog/tables", "src/cli/dev", "jepsen/src"]),
    ("spawn_blocking", &["raft/src/disk", "src/catalog", "src/cli"]),
    ("SystemTime", &["src/clock.rs", "jepsen/src"]),
    ("std::time::Instant", &["src", "raft/src/disk", "jepsen/src"]),
];

/// Which rooms may not name which others.
const WALLS: &[(&str, &[&str])] = &[
    ("raft/src", &["pontoon::"]),
    ("src/http", &["crate::cli", "crate::kafka", "crate::catalog", "crate::controller", "pontoon_raft::log"]),
    (
        "src/coordinator",
        &[
            "crate::http",
            "crate::kafka",
            "crate::catalog",
            "crate::controller",
            "crate::broker",
            "crate::cli",
            "crate::api",
            "pontoon_raft::log",
            "pontoon_raft::raft_group",
        ],
    ),
    (
        "src/kafka",
        &[
            "crate::http",
            "crate::cli",
            "crate::client",
            "crate::catalog",
            "crate::controller",
            "pontoon_raft::log",
            "axum",
        ],
    ),
    (
        "src/partition",
        &[
            "crate::http",
            "crate::catalog",
            "crate::controller",
            "crate::broker",
            "crate::cli",
            "crate::api",
            "crate::clock",
        ],
    ),
    ("src/record_batch", &["crate::http", "crate::partition", "crate::broker", "crate::catalog", "tokio::"]),
    ("src/catalog", &["crate::http", "crate::partition", "crate::broker", "crate::cli", "crate::api"]),
    ("src/broker", &["crate::http", "crate::cli", "crate::client"]),
    ("src/controller", &["crate::http", "crate::cli", "crate::client", "crate::partition"]),
    ("src/api", &["crate::http", "crate::catalog", "crate::controller", "crate::cli", "crate::client"]),
    ("src/client", &["crate::http", "crate::broker", "crate::catalog", "crate::partition", "crate::cli"]),
    ("raft/src/journal", &["crate::log::", "crate::transport", "crate::store"]),
    ("raft/src/log/", &["crate::transport", "crate::raft_group"]),
    ("raft/src/disk", &["crate::journal", "crate::log", "crate::transport"]),
    ("raft/src/transport", &["crate::store", "crate::journal", "crate::raft_group"]),
];

/// The code. Tests beside it may do what they need.
fn code_files() -> Vec<(String, String)> {
    let is_test = |name: &str| name.split('/').any(|part| part == "tests" || part == "tests.rs");
    let files: Vec<_> =
        rust_files(&["src", "raft/src", "jepsen/src"]).into_iter().filter(|(name, _)| !is_test(name)).collect();
    assert!(files.len() > 30, "only {} files found: is the test looking in the right place?", files.len());
    files
}

/// The file without its tests and comments, line by line, numbered from 1.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
    lines.take_while(|(_, line)| *line != "#[cfg(test)]").filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn offences(found: &[String]) {
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn every_module_says_what_it_is_for() {
    let bare = code_files().into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(name, _)| name);
    offences(&bare.map(|name| format!("{name}: no //! header")).collect::<Vec<_>>());
}

#[test]
fn each_dependency_has_one_home() {
    let mut found = Vec::new();
    for (name, text) in code_files() {
        for (line, code) in code_lines(&text) {
            for (word, homes) in HOMES {
                if code.contains(word) && !homes.iter().any(|home| name.starts_with(home)) {
                    found.push(format!("{name}:{line}: `{word}` lives in {homes:?}"));
                }
            }
        }
    }
    offences(&found);
}

#[test]
fn no_room_reaches_through_a_wall() {
    let mut found = Vec::new();
    for (name, text) in code_files() {
        for (room, forbidden) in WALLS.iter().filter(|(room, _)| name.starts_with(room)) {
            for (line, code) in code_lines(&text) {
                for word in forbidden.iter().filter(|word| code.contains(**word)) {
                    found.push(format!("{name}:{line}: {room} must not name `{word}`"));
                }
            }
        }
    }
    offences(&found);
}

#[test]
fn nothing_is_left_unfinished() {
    let mut found = Vec::new();
    for (name, text) in code_files() {
        for (line, code) in code_lines(&text) {
            for word in ["todo!(", "unimplemented!(", "dbg!(", "for now"] {
                if code.contains(word) {
                    found.push(format!("{name}:{line}: {word}"));
                }
            }
        }
    }
    offences(&found);
}

/// What a seed cannot own, and so what is not in `raft/src` (see `raft/tests/simulation/owned.rs`). A line that ends with
/// `// order: …` says why the order in which a hash map is gone through does not matter there.
const UNSEEDED: &[(&str, &str)] = &[
    ("HashMap", "its order is random; a BTreeMap's is not"),
    ("HashSet", "its order is random; a BTreeSet's is not"),
    ("RandomState", "it is random"),
    ("futures_util::select", "it selects at random"),
    ("rand::rng()", "take pontoon_raft::runtime::ThreadRng"),
];

/// Whether a `select!` begins on the line `at` and does not say at once that it is biased.
fn selects_at_random(code: &[(usize, &str)], at: usize) -> bool {
    let Some((_, first)) = code[at].1.split_once("select! {") else { return false };
    let first = std::iter::once(first.trim()).chain(code[at + 1..].iter().map(|(_, line)| line.trim()));
    first.into_iter().find(|line| !line.is_empty()).is_none_or(|line| !line.starts_with("biased;"))
}

#[test]
fn the_raft_crate_does_nothing_at_random_that_a_seed_cannot_own() {
    let mut found = Vec::new();
    for (name, text) in code_files().iter().filter(|(name, _)| name.starts_with("raft/src")) {
        let code: Vec<_> = code_lines(text).collect();
        for (at, (line, text)) in code.iter().enumerate() {
            let home = name == "raft/src/runtime.rs" || text.contains("// order: ");
            let unseeded = UNSEEDED.iter().find(|(word, _)| !home && text.contains(word));
            found.extend(unseeded.map(|(word, why)| format!("{name}:{line}: `{word}`: {why}")));
            if selects_at_random(&code, at) {
                found.push(format!("{name}:{line}: a select! that is not biased"));
            }
        }
    }
    offences(&found);
}

#[test]
fn a_select_at_random_is_seen() {
    let random = |text: &str| selects_at_random(&code_lines(text).collect::<Vec<_>>(), 0);
    assert!(random("tokio::select! {\n\n () = a => {}\n}"));
    assert!(random("tokio::select! { () = a => {} }"));
    assert!(!random("tokio::select! {\n biased;\n () = a => {}\n}"));
    assert!(!random("tokio::select! { biased; () = a => {} }"));
}

#[test]
fn every_rule_names_its_test() {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut wanted = Vec::new();
    wanted.extend((1..=20).map(|rule| format!("J{rule}")));
    wanted.extend((1..=10).map(|rule| format!("O{rule}")));
    wanted.extend((1..=10).map(|rule| format!("R{rule}")));
    let sources = all_rust();
    let mut found = Vec::new();
    for rule in wanted {
        let Some(row) = architecture.lines().find(|line| line.starts_with(&format!("| {rule} |"))) else {
            found.push(format!("ARCHITECTURE.md has no row for rule {rule}"));
            continue;
        };
        let tests: Vec<&str> = row.split('`').skip(1).step_by(2).filter(|word| word.contains('_')).collect();
        if tests.is_empty() {
            found.push(format!("rule {rule} names no test"));
        }
        for test in tests {
            let name = test.rsplit("::").next().unwrap_or(test);
            if !sources.contains(&format!("fn {name}(")) {
                found.push(format!("rule {rule} names `{test}`, which does not exist"));
            }
        }
    }
    offences(&found);
}

#[test]
fn every_error_code_is_in_the_operators_table() {
    let docs = fs::read_to_string(root().join("docs/OPERATIONS.md")).unwrap();
    let row = |code: &pontoon::error::Code| {
        let retry = if code.retriable() { "yes" } else { "no" };
        format!("| `{code}` | {} | {retry} | {} |", code.status(), code.explanation().trim())
    };
    let missing = pontoon::error::Code::ALL.iter().map(row).filter(|row| !docs.contains(row));
    offences(&missing.map(|row| format!("docs/OPERATIONS.md: {row}")).collect::<Vec<_>>());
}
