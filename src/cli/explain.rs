//! `pontoon explain CODE`: the table of error codes, from the command line.

use clap::Args;
use serde_json::json;

use crate::cli::{Failure, output};
use crate::error::Code;

/// Flags of `explain`.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// The code, e.g. NO_LEADER; without one, all of them
    code: Option<String>,
}

/// Prints one code or all.
pub(super) fn run(args: &ExplainArgs, as_json: bool) -> Result<(), Failure> {
    let Some(wanted) = &args.code else {
        return Code::ALL.iter().try_for_each(|code| show(*code, as_json));
    };
    let name = wanted.to_ascii_uppercase().replace('-', "_");
    match Code::ALL.iter().find(|code| code.as_str() == name) {
        Some(code) => show(*code, as_json),
        None => {
            let near = Code::ALL.iter().min_by_key(|code| strsim::damerau_levenshtein(code.as_str(), &name));
            let hint = near.map_or("", |code| code.as_str());
            Err(Failure::NotFound(format!("no error code {wanted:?}; did you mean {hint}?")))
        }
    }
}

fn show(code: Code, as_json: bool) -> Result<(), Failure> {
    let meaning = code.explanation().lines().map(str::trim).collect::<Vec<_>>().join(" ");
    if as_json {
        return output::print_json(&json!({
            "code": code.as_str(), "status": code.status(), "retriable": code.retriable(), "meaning": meaning.trim(),
        }));
    }
    let retry = if code.retriable() { "a retry can help" } else { "a retry cannot help" };
    output::print(&format!("{code}: HTTP {}, {retry}\n    {}", code.status(), meaning.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With `UPDATE_DOCS=1` the table is written instead.
    #[test]
    fn the_documented_codes_are_those_of_the_code() {
        const HEAD: &str = "| code | HTTP | retry | meaning |\n|---|---|---|---|\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/OPERATIONS.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (before, rest) = text.split_once(HEAD).expect("the table's head");
        let end = rest.lines().take_while(|line| line.starts_with('|')).map(|line| line.len() + 1).sum();
        let row = |code: &Code| {
            let retry = if code.retriable() { "yes" } else { "no" };
            let meaning = code.explanation().lines().map(str::trim).collect::<Vec<_>>().join(" ");
            format!("| `{code}` | {} | {retry} | {} |\n", code.status(), meaning.trim())
        };
        let wanted: String = Code::ALL.iter().map(row).collect();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            return std::fs::write(path, format!("{before}{HEAD}{wanted}{}", &rest[end..])).unwrap();
        }
        assert_eq!(&rest[..end], wanted, "the table of docs/OPERATIONS.md is not what the code says");
    }

    #[test]
    fn every_code_can_be_explained() {
        for code in Code::ALL {
            run(&ExplainArgs { code: Some(code.to_string()) }, true).unwrap();
            assert!(code.explanation().trim().len() > 10, "{code}");
        }
    }

    #[test]
    fn codes_are_found_in_any_case_and_slips_are_named() {
        run(&ExplainArgs { code: Some("no-leader".into()) }, false).unwrap();
        let failure = run(&ExplainArgs { code: Some("NO_LEDER".into()) }, false).unwrap_err();
        assert!(matches!(&failure, Failure::NotFound(why) if why.contains("NO_LEADER")), "{failure:?}");
    }
}
