//! What a seed owns, and what it cannot: the conditions under which one seed gives one run.
//!
//! - tokio draws random numbers of its own: for a `select!` that is not `biased`, and for the order in which the receivers of a
//!   `watch` channel wake (`sync/watch.rs`, `big_notify`). turmoil seeds them, with `--cfg tokio_unstable` only. Without it two
//!   runs part within milliseconds.
//! - openraft draws from `runtime::ThreadRng`, selects in order and keeps its maps sorted: it replays as it is.
//! - The standard library's hash maps are ordered at random, and the system's clocks and threads go their own ways: none of them
//!   are in this crate, but in the real disk's.
//! - When a host ends, tokio drops its tasks in an order that follows from a counter of the whole process. `net` closes the
//!   connections before, in the order of their making; nothing else of a dying process can be seen from outside.

use std::path::{Path, PathBuf};

/// Fails if tokio's own random numbers are not the seed's.
pub(crate) fn assert_tokio_is_seeded() {
    #[allow(unexpected_cfgs)] // It is a flag, not a feature of ours.
    let seeded = cfg!(tokio_unstable);
    assert!(seeded, "not built with --cfg tokio_unstable: do RUSTFLAGS hide .cargo/config.toml?");
}

/// Words that must not be there, and the files that may have them all the same.
const FORBIDDEN: [(&str, &str); 9] = [
    ("HashMap", ""),
    ("HashSet", ""),
    ("RandomState", ""),
    ("SystemTime", ""),
    ("std::time::Instant", ""),
    ("futures_util::select", ""),
    ("spawn_blocking", ""),
    ("rand::rng()", "runtime.rs"),
    ("std::thread", "disk/real.rs"),
];

/// Files with their lines, without comments.
fn sources(folder: &Path, into: &mut Vec<(PathBuf, Vec<String>)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("tests") || path.ends_with("tests.rs") {
            continue;
        } else if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.lines().map(|line| line.split("//").next().unwrap_or("").trim().to_owned());
            into.push((path, code.collect()));
        }
    }
}

/// Whether a `select!` begins on the line `at` and does not say at once that it is biased.
fn selects_at_random(code: &[String], at: usize) -> bool {
    let Some((_, first)) = code[at].split_once("select! {") else { return false };
    let first = std::iter::once(first.trim()).chain(code[at + 1..].iter().map(String::as_str));
    first.into_iter().find(|line| !line.is_empty()).is_none_or(|line| !line.starts_with("biased;"))
}

#[test]
fn the_crate_does_nothing_at_random_that_a_seed_cannot_own() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    assert!(files.len() > 30, "only {} files: is this the right place?", files.len());
    let mut found = Vec::new();
    for (path, code) in &files {
        for (at, line) in code.iter().enumerate() {
            let forbidden = FORBIDDEN.iter().find(|(word, home)| line.contains(word) && !path.ends_with(home));
            let what = forbidden.map(|(word, _)| *word).or(selects_at_random(code, at).then_some("not biased"));
            found.extend(what.map(|what| format!("{}:{}: {what}", path.display(), at + 1)));
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn a_select_at_random_is_seen() {
    let code = |text: &str| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>();
    assert!(selects_at_random(&code("tokio::select! {\n\n () = a => {}\n}"), 0));
    assert!(selects_at_random(&code("tokio::select! { () = a => {} }"), 0));
    assert!(!selects_at_random(&code("tokio::select! {\n biased;\n () = a => {}\n}"), 0));
    assert!(!selects_at_random(&code("tokio::select! { biased; () = a => {} }"), 0));
}

#[test]
fn tokio_s_randomness_is_the_seed_s() {
    assert_tokio_is_seeded();
}
