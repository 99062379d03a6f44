//! `pontoon serve`: one broker and its HTTP server, from start to a clean stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use pontoon_raft::error::OpenError;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

use crate::broker::{Broker, StartError};
use crate::cli::Failure;
use crate::cli::signals::Signals;
use crate::config::{Config, load};
use crate::http::Server;
use crate::kafka;

/// Longest that the broker may take to hand over and close; with [`CLOSE_TIMEOUT`] it stays below 30 s.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(22);
/// Longest that HTTP requests may take to finish afterwards.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(4);
/// Fewest file descriptors to start with.
const FILES_MIN: u64 = 1024;

/// Flags of `serve`. Each is a configuration key; `--set` reaches those without a flag.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// A TOML file
    #[arg(long, env = "PONTOON_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// This broker's number
    #[arg(long, value_name = "N")]
    broker_id: Option<String>,
    /// Where its data is [default: pontoon-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// The initial brokers, id@host:port[,…]
    #[arg(long, value_name = "ID@HOST:PORT[,…]")]
    bootstrap: Option<String>,
    /// Where clients are served [default: 127.0.0.1:8090]
    #[arg(long, value_name = "HOST:PORT")]
    http_listen: Option<String>,
    /// The address that clients are told
    #[arg(long, value_name = "HOST:PORT")]
    http_advertised: Option<String>,
    /// Where Kafka clients are served, or off [default: 127.0.0.1:9092]
    #[arg(long, value_name = "HOST:PORT")]
    kafka_listen: Option<String>,
    /// The address that Kafka clients are told
    #[arg(long, value_name = "HOST:PORT")]
    kafka_advertised: Option<String>,
    /// Where brokers are served [default: as bootstrap says]
    #[arg(long, value_name = "HOST:PORT")]
    peer_listen: Option<String>,
    /// The address that brokers are told
    #[arg(long, value_name = "HOST:PORT")]
    peer_advertised: Option<String>,
    /// Listen on other addresses than loopback, without security
    #[arg(long)]
    allow_insecure: bool,
    /// Any configuration key
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("not KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

impl ServeArgs {
    /// As configuration, `--set` first: a flag of its own is more explicit.
    fn flags(&self) -> Vec<(String, String)> {
        let named = [
            ("broker_id", &self.broker_id),
            ("data_dir", &self.data_dir),
            ("bootstrap", &self.bootstrap),
            ("http.listen", &self.http_listen),
            ("http.advertised", &self.http_advertised),
            ("kafka.listen", &self.kafka_listen),
            ("kafka.advertised", &self.kafka_advertised),
            ("peer.listen", &self.peer_listen),
            ("peer.advertised", &self.peer_advertised),
        ];
        let mut flags = self.set.clone();
        flags.extend(named.into_iter().filter_map(|(key, text)| Some((key.to_owned(), text.clone()?))));
        if self.allow_insecure {
            flags.push(("allow_insecure".into(), "true".into()));
        }
        flags
    }
}

/// Runs until a signal or until the broker cannot go on.
pub(super) async fn run(args: ServeArgs) -> Result<(), Failure> {
    let (mut config, warnings) = load::load(args.config.as_deref(), environment()?, &args.flags())
        .map_err(|error| Failure::Usage(error.to_string()))?;
    for warning in warnings {
        warn!("{warning}");
    }
    raise_file_limit(&mut [&mut config])?;
    let mut signals = Signals::catch()?;
    let listeners = bind(&config).await?;
    let broker = tokio::select! {
        broker = start(config, &listeners) => broker?,
        name = signals.next() => {
            info!("{name} while the data directory was being opened");
            return Ok(());
        }
    };
    let running = Running { listeners, broker };
    let end = tokio::select! {
        why = running.broker.failed() => Err(Failure::Failed(why)),
        name = signals.next() => {
            info!("{name}: handing leaderships over and closing");
            Ok(())
        }
    };
    signals.impatient();
    running.stop().await;
    end
}

/// The process's variables; one that is not text cannot be configuration.
pub(super) fn environment() -> Result<impl Iterator<Item = (String, String)>, Failure> {
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => variables.push((name, value)),
            Err(value) if name.starts_with("PONTOON_") => {
                return Err(Failure::Usage(format!("{name}={value:?} in the environment is not text")));
            }
            Err(_) => {}
        }
    }
    Ok(variables.into_iter())
}

/// Where clients are served.
pub(super) struct Listeners {
    pub(super) http: Server,
    pub(super) kafka: Option<kafka::Server>,
}

/// Listens for HTTP and Kafka. A taken port is named, with the key that changes it.
pub(super) async fn bind(config: &Config) -> Result<Listeners, Failure> {
    let cannot = |what: &str, address: &str, key: &str, error: std::io::Error| {
        Failure::Failed(format!("cannot listen for {what} on {address} ({key}): {error}"))
    };
    let address = &config.http.listen;
    let http = Server::bind(config).await.map_err(|error| cannot("HTTP", address, "http.listen", error))?;
    let kafka = match config.kafka.enabled {
        true => {
            let address = &config.kafka.listener.listen;
            let bound = kafka::Server::bind(config).await;
            Some(bound.map_err(|error| cannot("Kafka clients", address, "kafka.listen", error))?)
        }
        false => None,
    };
    Ok(Listeners { http, kafka })
}

/// Opens the broker behind the listeners.
pub(super) async fn start(mut config: Config, listeners: &Listeners) -> Result<Arc<Broker>, Failure> {
    let (id, data_dir) = (config.broker_id, config.data_dir.clone());
    if let Some(kafka) = &listeners.kafka {
        config.kafka.listener.advertised = Some(kafka.advertised().to_owned());
    }
    let broker = Broker::start(config, listeners.http.advertised().to_owned()).await.map_err(|error| {
        let why = match &error {
            StartError::Listen { .. } => format!("{error} (peer.listen)"),
            StartError::Open(OpenError::Io { error, .. }) if !data_dir.is_dir() => {
                format!("cannot create data_dir {}: {error}", data_dir.display())
            }
            _ => error.to_string(),
        };
        Failure::Failed(format!("broker {id}: {why}"))
    })?;
    listeners.http.open(Arc::clone(&broker));
    let kafka = listeners.kafka.as_ref().map_or("off", kafka::Server::address);
    info!(broker = %id, http = listeners.http.address(), kafka, "started");
    if let Some(kafka) = &listeners.kafka {
        kafka.open(Arc::clone(&broker));
    }
    Ok(broker)
}

/// A broker and its listeners.
pub(super) struct Running {
    pub(super) listeners: Listeners,
    pub(super) broker: Arc<Broker>,
}

impl Running {
    /// Ends at once, like a process that is killed: connections break, nothing is handed over or finished.
    pub(super) async fn kill(self) {
        let kafka = async {
            if let Some(kafka) = &self.listeners.kafka {
                kafka.close(Duration::ZERO).await;
            }
        };
        tokio::join!(self.listeners.http.close(Duration::ZERO), kafka);
        self.broker.crash().await;
    }

    /// Hands over, closes, and lets requests finish meanwhile.
    pub(super) async fn stop(self) {
        self.listeners.http.stopping();
        if let Some(kafka) = &self.listeners.kafka {
            kafka.stopping();
        }
        // The broker bounds itself; this is for a broker that does not.
        let shutdown = self.broker.shutdown(SHUTDOWN_TIMEOUT);
        if tokio::time::timeout(SHUTDOWN_TIMEOUT + Duration::from_secs(2), shutdown).await.is_err() {
            warn!("the broker did not close in {SHUTDOWN_TIMEOUT:?}; what it acknowledged is safe all the same");
        }
        let kafka = async {
            if let Some(kafka) = &self.listeners.kafka {
                kafka.close(CLOSE_TIMEOUT).await;
            }
        };
        tokio::join!(self.listeners.http.close(CLOSE_TIMEOUT), kafka);
    }
}

/// Raises RLIMIT_NOFILE as far as it goes, checks that it is enough, and keeps connections from taking the files that segments need.
pub(super) fn raise_file_limit(configs: &mut [&mut Config]) -> Result<(), Failure> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        warn!(%error, "cannot raise RLIMIT_NOFILE");
    }
    let Some(files) = getrlimit(Resource::Nofile).current else { return Ok(()) };
    if files < FILES_MIN {
        return Err(Failure::Failed(format!("RLIMIT_NOFILE is {files}; at least {FILES_MIN} are needed (ulimit -n)")));
    }
    if let Some(why) = limit_connections(files, configs) {
        warn!("{why}");
    }
    Ok(())
}

/// Keeps every broker of this process within so many files. What an operator is to be told of it, once for all of them.
fn limit_connections(files: u64, configs: &mut [&mut Config]) -> Option<String> {
    let most = connections_max(files, configs.len());
    let wanted = configs.iter().map(|config| config.limits.connections_max).max().filter(|wanted| *wanted > most)?;
    for config in configs {
        config.limits.connections_max = config.limits.connections_max.min(most);
    }
    Some(format!(
        "RLIMIT_NOFILE is {files}: at most {most} connections to each listener, not limits.connections_max = {wanted} (ulimit -n)"
    ))
}

/// How many connections each listener of so many brokers may have, so that half of all files are left for segments: a directory that
/// cannot open a file puts off what it needs it for, at last its writes. A connection over HTTP may need another one, to the broker that leads.
fn connections_max(files: u64, brokers: usize) -> usize {
    let listeners = 3 * brokers as u64;
    usize::try_from(files / 2 / listeners.max(1)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: ServeArgs,
    }

    #[test]
    fn flags_are_keys_and_beat_set() {
        let line =
            ["x", "--set", "broker_id=1", "--broker-id", "2", "--allow-insecure", "--set", "raft.heartbeat_ms = 5"];
        let flags = Only::parse_from(line).args.flags();
        let wanted = [("broker_id", "1"), ("raft.heartbeat_ms", "5"), ("broker_id", "2"), ("allow_insecure", "true")];
        assert_eq!(flags, wanted.map(|(key, text)| (key.to_owned(), text.to_owned())));
    }

    #[test]
    fn connections_leave_half_of_all_files_to_segments() {
        assert_eq!(
            [connections_max(1024, 1), connections_max(20_000, 1), connections_max(20_000, 3)],
            [170, 3333, 1111]
        );
        assert!(connections_max(1 << 20, 1) > 100_000);
    }

    #[test]
    fn three_brokers_of_one_process_are_limited_alike_and_it_is_told_once() {
        let mut configs = [1, 2, 3].map(|id| Config::new(pontoon_raft::types::BrokerId(id), "unused".into()));
        let mut all: Vec<&mut Config> = configs.iter_mut().collect();
        let told = limit_connections(20_000, &mut all).unwrap();
        assert!(told.contains("at most 1111 connections to each listener"), "{told}");
        assert_eq!(limit_connections(20_000, &mut all), None);
        assert!(configs.iter().all(|config| config.limits.connections_max == 1111));
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = Config::new(pontoon_raft::types::BrokerId(1), "unused".into());
        config.http.listen = taken.local_addr().unwrap().to_string();
        let (status, why) = bind(&config).await.err().unwrap().verdict();
        let why = why.unwrap();
        assert!(status == 1 && why.contains(&config.http.listen) && why.contains("in use"), "{why}");
    }
}
