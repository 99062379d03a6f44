//! The repository's own files, for tests of what stands in them.

use std::fs;
use std::path::{Path, PathBuf};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of Rust below these folders, by its name from the repository's root, in order.
pub fn rust_files(folders: &[&str]) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// Every line of Rust here, tests first of all.
pub fn all_rust() -> String {
    rust_files(&["tests", "src", "raft", "jepsen"]).into_iter().map(|(_, text)| text).collect()
}

/// Lines of a contract, each with the tests that hold it.
pub type Contract = &'static [(&'static str, &'static [&'static str])];

/// Holds a contract's names of tests to the sources: each is a test, and no mere function, and not one that is left out.
pub fn every_line_has_tests(contract: Contract) {
    let sources: String = rust_files(&["tests"]).into_iter().map(|(_, text)| text).collect();
    let is_test = |name: &str| {
        let mut before = sources.lines().rev().skip_while(|line| !line.contains(&format!("fn {name}()"))).skip(1);
        let attributes: Vec<&str> = before.by_ref().take_while(|line| line.trim_start().starts_with("#[")).collect();
        attributes.iter().any(|line| line.contains("test")) && !attributes.iter().any(|line| line.contains("ignore"))
    };
    for (promise, tests) in contract {
        assert!(!tests.is_empty(), "{promise}: no test");
        for test in *tests {
            assert!(is_test(test), "{promise}: there is no test {test}");
        }
    }
}
