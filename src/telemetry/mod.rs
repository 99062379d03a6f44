//! What an operator sees of a process: its metrics ([`recorder`], [`process`]) and its logs.
//!
//! Logs go to stderr, as text or one JSON object a line. Which ones is `PONTOON_LOG`'s choice, by tracing's own rules.

pub mod process;
pub mod recorder;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// The shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// What is logged if `PONTOON_LOG` does not say. openraft calls every core that was shut down an error; which of them is one, `supervision` knows. What libraries warn of is our supervisors' business, mostly, and they say it.
const DEFAULT_FILTER: &str = "error,openraft=off,pontoon=info,pontoon_raft=info";

/// Starts logging for the rest of the process. The error names a filter that cannot be read.
pub fn start(format: LogFormat) -> Result<(), String> {
    let text = std::env::var("PONTOON_LOG").unwrap_or_else(|_| DEFAULT_FILTER.to_owned());
    let filter = EnvFilter::try_new(&text).map_err(|error| format!("PONTOON_LOG={text:?}: {error}"))?;
    let colours = std::io::stderr().is_terminal();
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    let result = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    result.map_err(|error| format!("cannot start logging: {error}"))
}
