//! The command line. Brokers are run in this process by `dev` and `serve`; `log` and `recover` work on a stopped broker's files;
//! everything else talks HTTP to a cluster.
//!
//! Data goes to stdout, messages and progress to stderr. A broken pipe ends quietly: `consume | head` is no failure.

mod bench;
mod completions;
mod consume;
mod dev;
mod explain;
mod log;
mod output;
mod produce;
mod progress;
mod recover;
mod serve;
mod signals;
mod status;
mod topic;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::client::{Client, ClientError};
use crate::config::load::broker_variables;
use crate::error::WriteOutcome;
use crate::telemetry::{self, LogFormat};

/// A Raft-replicated log broker
#[derive(Debug, Parser)]
#[command(name = "pontoon", version, about, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    server: ServerArgs,
    /// One line of JSON instead of text, where there is a choice
    #[arg(long, global = true, help_heading = GLOBAL)]
    json: bool,
    /// The shape of log lines, which go to stderr
    #[arg(long, global = true, help_heading = GLOBAL, value_enum, default_value_t, env = "PONTOON_LOG_FORMAT", hide_env_values = true)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

/// Which cluster.
#[derive(Clone, Debug, Args)]
struct ServerArgs {
    /// Brokers to talk to, http://host:port[,…] [env: PONTOON_SERVER]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "URL[,URL]", default_value_t = default_servers())]
    server: String,
    /// Give up on a request after so many seconds [default: 60; for status 5]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    patience: Option<u64>,
}

/// Under which `--help` shows what every command takes.
const GLOBAL: &str = "Global options";

/// How long a request is tried unless `--patience` says.
const PATIENCE: Duration = Duration::from_secs(60);

/// The HTTP addresses of `pontoon dev`.
const DEFAULT_SERVERS: &str = "http://127.0.0.1:8090,http://127.0.0.1:8091,http://127.0.0.1:8092";

/// What the environment names; a variable that is set to nothing names nobody.
fn default_servers() -> String {
    std::env::var("PONTOON_SERVER").ok().filter(|servers| !servers.is_empty()).unwrap_or(DEFAULT_SERVERS.to_owned())
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run three brokers in this process, to try things out
    Dev(dev::DevArgs),
    /// Run one broker
    Serve(serve::ServeArgs),
    /// Create, list, describe, alter and delete topics
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    /// Send the lines of standard input, each exactly once
    Produce(produce::ProduceArgs),
    /// Print records
    Consume(consume::ConsumeArgs),
    /// Show brokers and partitions, and why something is not right
    Status(status::StatusArgs),
    /// Measure a cluster, or the disk alone
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Read files of a data directory, offline
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Make one survivor's data directory the cluster, when the majority is gone for good
    Recover(recover::RecoverArgs),
    /// Say what an error code means and what to do
    Explain(explain::ExplainArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
}

/// How a command ended, if not well.
#[derive(Debug)]
enum Failure {
    /// 1.
    Failed(String),
    /// 2: what was asked for makes no sense.
    Usage(String),
    /// 3.
    Unreachable(String),
    /// 4.
    NotFound(String),
    /// 5: some of it happened, or may have.
    Unsure(String),
    /// Nobody reads any more: no failure.
    BrokenPipe,
}

impl Failure {
    /// Its exit status and message.
    fn verdict(self) -> (u8, Option<String>) {
        match self {
            Self::Failed(why) => (1, Some(why)),
            Self::Usage(why) => (2, Some(why)),
            Self::Unreachable(why) => (3, Some(why)),
            Self::NotFound(why) => (4, Some(why)),
            Self::Unsure(why) => (5, Some(why)),
            Self::BrokenPipe => (0, None),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let text = error.to_string();
        match &error {
            ClientError::Address(_) => Self::Usage(text),
            ClientError::Unreachable(_) => Self::Unreachable(text),
            ClientError::Refused { .. } if error.outcome() != WriteOutcome::None => Self::Unsure(text),
            ClientError::Refused { status: 404, .. } => Self::NotFound(text),
            ClientError::Unknown(_) => Self::Unsure(text),
            ClientError::Refused { .. } | ClientError::Protocol(_) => Self::Failed(text),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl ServerArgs {
    /// For a command that waits for an answer, and says so if that takes a while.
    fn client(&self) -> Result<Client, Failure> {
        Ok(self.client_patient(PATIENCE)?.telling(output::say))
    }

    /// A client for a command whose patience is another unless one is named.
    fn client_patient(&self, default: Duration) -> Result<Client, Failure> {
        Ok(Client::new(&self.server, self.patience.map_or(default, Duration::from_secs))?)
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(why) = telemetry::start(cli.log_format) {
        return end(Failure::Usage(why));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return end(Failure::Failed(format!("cannot start threads: {error}"))),
    };
    let result = runtime.block_on(run(cli));
    // A thread may still wait in a read of standard input, which nobody can cancel.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => end(failure),
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { server, json, .. } = cli;
    check_environment(&cli.command)?;
    match cli.command {
        Command::Dev(args) => dev::run(args).await,
        Command::Serve(args) => serve::run(args).await,
        Command::Topic(command) => topic::run(command, &server.client()?, json).await,
        Command::Produce(args) => produce::run(args, &server.client()?, json).await,
        Command::Consume(args) => consume::run(args, server.client()?, json).await,
        Command::Status(args) => status::run(args, &server.client_patient(status::PATIENCE)?, json).await,
        Command::Bench(bench) => bench::run(bench, &server, json).await,
        Command::Log(command) => log::run(command, json).await,
        Command::Recover(args) => recover::run(args, json).await,
        Command::Explain(args) => explain::run(&args, json),
        Command::Completions(args) => completions::run(&args),
    }
}

/// A misspelt variable must not send a command to another cluster. A broker's own may be set where a client runs, too; but whoever sets
/// one for `dev` takes it for something that it is not. (`serve` reads them, and checks all of them.)
fn check_environment(command: &Command) -> Result<(), Failure> {
    if matches!(command, Command::Serve(_)) {
        return Ok(());
    }
    let unused = broker_variables(serve::environment()?).map_err(|error| Failure::Usage(error.to_string()))?;
    if let (Command::Dev(_), false) = (command, unused.is_empty()) {
        output::say(&format!("pontoon: dev has its own configuration and does not use {}", unused.join(", ")));
    }
    Ok(())
}

fn end(failure: Failure) -> ExitCode {
    let (status, why) = failure.verdict();
    if let Some(why) = why {
        output::say(&format!("pontoon: {why}"));
    }
    ExitCode::from(status)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::api::ErrorBody;
    use crate::error::{Code, Error};

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exit_statuses_tell_the_cases_apart() {
        let refused = |code: Code| {
            let body = ErrorBody::from(&Error::new(code, "m"));
            Failure::from(ClientError::Refused { status: code.status(), body }).verdict().0
        };
        assert_eq!(refused(Code::TopicExists), 1);
        assert_eq!(refused(Code::UnknownTopic), 4);
        assert_eq!(refused(Code::OutcomeUnknown), 5);
        assert_eq!(Failure::from(ClientError::Unreachable(String::new())).verdict().0, 3);
        assert_eq!(Failure::from(ClientError::Unknown(String::new())).verdict().0, 5);
        let pipe = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(Failure::from(pipe).verdict(), (0, None));
    }

    #[test]
    fn help_keeps_global_flags_apart_from_a_commands_own() {
        let mut command = Cli::command();
        command.build();
        let consume = command.find_subcommand_mut("consume").unwrap().render_long_help().to_string();
        let (own, global) = consume.split_once("Global options:").unwrap();
        assert!(own.contains("--follow") && !own.contains("--server") && !own.contains("--json"), "{consume}");
        for flag in ["--server", "--patience", "--json", "--log-format"] {
            assert!(global.contains(flag), "{consume}");
        }
    }

    #[test]
    fn global_flags_may_stand_anywhere() {
        let cli = Cli::parse_from(["pontoon", "topic", "list", "--json", "--server", "http://a:1"]);
        assert!(cli.json);
        assert_eq!(cli.server.server, "http://a:1");
    }
}
