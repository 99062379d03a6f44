//! `pontoon bench`: figures an operator can reproduce, from outside, over HTTP.
//!
//! Closed loops: a fixed number of requests is in flight, each sent to the leader of its partition. Every run is bounded in time
//! and stops by itself. `raw` measures the disk alone, to put beside the rest. It never starts or configures a cluster
//! (that is `scripts/bench`), and only `failover` does anything to one: it sends SIGKILL to the process it is told.

mod answers;
mod failover;
mod load;
mod raw;
mod report;
mod tails;
mod target;

use clap::{Args, Subcommand};

use target::Target;

use crate::cli::{Failure, ServerArgs, output, progress};

/// What to measure.
#[derive(Debug, Subcommand)]
pub(super) enum Bench {
    /// Latency of one produce at a time (or a few).
    Latency(LoadArgs),
    /// Throughput of produce with many requests in flight.
    Produce(LoadArgs),
    /// Throughput of fetching raw batches from a topic's start to its end.
    Fetch(FetchArgs),
    /// From the send of a record to its arrival at each of many tails (server-sent events) of one partition.
    Tails(TailsArgs),
    /// How long until every partition of a topic takes a record, from now on: start it, then the brokers.
    Answers(AnswersArgs),
    /// Longest gap between acknowledgements per partition when a broker is killed with SIGKILL.
    Failover(FailoverArgs),
    /// The disk alone: appends of a fixed size, each made durable with fdatasync.
    Raw(RawArgs),
}

/// A produce load.
#[derive(Debug, Args)]
pub(super) struct LoadArgs {
    /// How long, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Bytes of each batch's value
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
    /// Requests in flight
    #[arg(long, default_value_t = 1)]
    inflight: usize,
    /// Partitions of the topic made for the run; of a named one, how many must have a leader before it begins
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
    /// Replicas of the topic made for the run [default: 3, or as many as there are brokers]
    #[arg(long)]
    replicas: Option<u32>,
    /// all, every, leader or none
    #[arg(long, default_value = "all", value_parser = ["all", "every", "leader", "none"], hide_possible_values = true)]
    acks: String,
    /// Use this topic, and keep it, instead of making one and deleting it
    #[arg(long)]
    topic: Option<String>,
    /// Stop after so many MiB of values, too
    #[arg(long)]
    mib: Option<u64>,
}

/// A fetch load.
#[derive(Debug, Args)]
pub(super) struct FetchArgs {
    /// The topic to read
    #[arg(long)]
    topic: String,
    /// Bytes asked for at a time
    #[arg(long, default_value_t = 4 << 20)]
    max_bytes: usize,
    /// Stop after so many seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Partitions read at a time
    #[arg(long, default_value_t = 1)]
    parallel: usize,
}

/// Tails of one partition.
#[derive(Debug, Args)]
pub(super) struct TailsArgs {
    /// Tails
    #[arg(long, default_value_t = 100)]
    tails: usize,
    /// Records produced per second
    #[arg(long, default_value_t = 50)]
    rate: u32,
    /// Bytes of each record's value
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
    /// How long, in seconds
    #[arg(long, default_value_t = 15)]
    seconds: u64,
}

/// Waiting for a topic.
#[derive(Debug, Args)]
pub(super) struct AnswersArgs {
    /// The topic; it is there, or comes up with its brokers
    #[arg(long)]
    topic: String,
    /// Its partitions
    #[arg(long)]
    partitions: u32,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 120)]
    seconds: u64,
}

/// A broker's death.
#[derive(Debug, Args)]
pub(super) struct FailoverArgs {
    /// The process to kill
    #[arg(long)]
    pid: i32,
    /// The broker that process is
    #[arg(long)]
    broker: u32,
    /// Partitions of the topic made for the run; of a named one, how many must have a leader before it begins
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
    /// Use this topic, and keep it, instead of making one and deleting it
    #[arg(long)]
    topic: Option<String>,
    /// Time between an answer and the next probe of a partition, in ms
    #[arg(long, default_value_t = 10)]
    interval_ms: u64,
    /// Seconds of probing before the kill, and after it
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

/// A disk load.
#[derive(Debug, Args)]
pub(super) struct RawArgs {
    /// Directory for the file, which is removed at the end
    #[arg(long, default_value = ".")]
    dir: std::path::PathBuf,
    /// Bytes of each append
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
    /// How long, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Size of the file, written with zeros beforehand and used as a ring, in MiB; 0 lets the file grow
    #[arg(long, default_value_t = 64)]
    prewritten_mib: u64,
}

impl Bench {
    /// What is measured, and how long that takes.
    fn what(&self) -> String {
        match self {
            Self::Latency(args) => format!("produce, one at a time or a few, for {} s", args.seconds),
            Self::Produce(args) => format!("produce, for {} s", args.seconds),
            Self::Fetch(args) => format!("fetch of {}, for {} s at most", args.topic, args.seconds),
            Self::Tails(args) => format!("{} tails, for {} s", args.tails, args.seconds),
            Self::Answers(args) => {
                format!("waiting for {} partitions of {}, for {} s at most", args.partitions, args.topic, args.seconds)
            }
            Self::Failover(args) => {
                format!("probes of {} partitions, for {} s before the kill and after it", args.partitions, args.seconds)
            }
            Self::Raw(args) => format!("the disk alone, for {} s", args.seconds),
        }
    }
}

/// Runs one measurement and prints it: a table for people, or one line of JSON.
pub(super) async fn run(bench: Bench, server: &ServerArgs, json: bool) -> Result<(), Failure> {
    let target = || Target::new(server);
    let shown = progress::working(bench.what());
    let report = match bench {
        Bench::Latency(args) => load::produce("latency", args, &target()?).await?,
        Bench::Produce(args) => load::produce("produce", args, &target()?).await?,
        Bench::Fetch(args) => load::fetch(args, &target()?).await?,
        Bench::Tails(args) => tails::run(args, &target()?).await?,
        Bench::Answers(args) => answers::run(args, &target()?).await?,
        Bench::Failover(args) => failover::run(args, &target()?).await?,
        Bench::Raw(args) => raw::run(&args)?,
    };
    drop(shown);
    output::print(&if json { report.to_json() } else { report.to_table() })
}
