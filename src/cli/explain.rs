//! `pontoon explain CODE`: the table of error codes, from the command line.

use clap::Args;
use serde_json::json;

use crate::cli::{Failure, output};
use crate::error::Code;
use crate::nearest::nearest;

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
            let hint = match nearest(&name, Code::ALL.iter().map(|code| code.as_str())) {
                Some(meant) => format!("did you mean {meant}?"),
                None => "`pontoon explain` shows all of them".to_owned(),
            };
            Err(Failure::NotFound(format!("no error code {wanted:?}; {hint}")))
        }
    }
}

/// What to do about it.
fn advice(code: Code) -> &'static str {
    match code {
        Code::InvalidRequest => "Correct the request as the message says.",
        Code::InvalidTopicName => "Choose another name.",
        Code::InvalidConfig => "Correct the key or the value; docs/CONFIGURATION.md lists both.",
        Code::InvalidReplicationFactor => "Ask for at most as many replicas as there are brokers, or add brokers.",
        Code::InvalidAssignment => "Name living brokers, each once for a partition, and as many for every partition.",
        Code::InvalidPartitions => "Ask for more partitions than the topic has; their number never shrinks.",
        Code::CorruptBatch => "Look at the client that made the batch, and at what stands between it and the broker.",
        Code::ForeignOrigin => {
            "Put the name by which the broker was addressed into `http.hosts`, or ask by its IP address."
        }
        Code::InternalTopic => "Write to a topic of your own; commit offsets as a consumer group.",
        Code::NotFound => "Look the path up in /openapi.json.",
        Code::UnknownTopic => "Check the name, or create the topic.",
        Code::UnknownPartition => "Ask for a partition that `pontoon topic describe` shows, or grow the topic.",
        Code::UnknownGroup => "Check the name: `pontoon status --groups` lists the groups.",
        Code::MethodNotAllowed => "Look the method up in /openapi.json.",
        Code::NotAcceptable => "Accept application/json, application/octet-stream or text/event-stream.",
        Code::RequestTimeout => {
            "Send again, over a better connection or in smaller pieces; `limits.body_timeout_ms` is how long a body may take."
        }
        Code::TopicExists => "Use the topic, or choose another name.",
        Code::TopicNameCollision => "Choose a name that differs in more than `.` and `_`.",
        Code::GroupNotEmpty => "Stop the group's members first.",
        Code::OutOfOrderSequence => "Stop the producer and look at what it failed to send; a new one takes a new id.",
        Code::ProducerFenced => "Stop this producer: another one has taken its place.",
        Code::UnknownProducer => "Take a new producer id, or begin with sequence 0.",
        Code::OffsetMismatch => "Read what was written meanwhile, and decide again.",
        Code::RecordTooLarge => "Send smaller records, or raise the topic's `max.message.bytes`.",
        Code::RequestTooLarge => "Send fewer records at once, or raise `limits.request_bytes_max`.",
        Code::UnsupportedMediaType => "Send one of these types.",
        Code::OffsetOutOfRange => "Go on from `log_start_offset` or `high_watermark`, both in the error body.",
        Code::TooManyRequests => {
            "Wait and send again; if it goes on, send less at once, delete unused groups, or raise the limit that the message names."
        }
        Code::HeadersTooLarge => "Send fewer or shorter headers, or raise `limits.header_bytes_max`.",
        Code::Internal => "Report it, with the broker's log.",
        Code::CorruptLog => {
            "Send again later; if it goes on, `pontoon status` says what is being repaired and what is missing."
        }
        Code::NoLeader => "Send again; if it goes on, `pontoon status` says which brokers are needed.",
        Code::NotLeader => "Send again.",
        Code::NotEnoughReplicas => {
            "Start the brokers that `pontoon status` names, or use `acks=all`, which needs a majority only."
        }
        Code::NotReady => "Send to another broker, or wait; /readyz says what it waits for.",
        Code::NotEnoughReplicasAfterAppend => {
            "Read the log to see whether the record is there, or retry as an idempotent producer."
        }
        Code::OutcomeUnknown => {
            "Retry as an idempotent producer; without sequences, read first: the record may stand there."
        }
        Code::StorageFull => "Make room: lower the retention, delete topics or add space; then send again.",
    }
}

fn show(code: Code, as_json: bool) -> Result<(), Failure> {
    let meaning = code.explanation().lines().map(str::trim).collect::<Vec<_>>().join(" ");
    if as_json {
        return output::print_json(&json!({
            "code": code.as_str(), "status": code.status(), "retriable": code.retriable(), "meaning": meaning.trim(),
            "advice": advice(code),
        }));
    }
    let retry = if code.retriable() { "a retry can help" } else { "a retry cannot help" };
    output::print(&format!("{code}: HTTP {}, {retry}\n    {}\n    {}", code.status(), meaning.trim(), advice(code)))
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
