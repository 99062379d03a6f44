//! `pontoon dev`: a three-broker cluster in one process, with nothing to configure.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use futures_util::future::{join_all, select_all, try_join_all};
use pontoon_raft::types::BrokerId;
use tokio::time::Instant;
use tracing::info;

use self::console::{Command, Console};
use crate::cli::serve::{Running, bind, raise_file_limit, start};
use crate::cli::signals::Signals;
use crate::cli::{Failure, output};
use crate::config::Config;

mod console;

/// How many brokers.
const BROKERS: u16 = 3;
/// The first HTTP port unless another is named: where [`super::DEFAULT_SERVERS`] are.
const HTTP_PORT: u16 = 8090;
/// How often readiness is looked at while the cluster forms.
const READY_CHECK: Duration = Duration::from_millis(20);
/// How long a killed broker's ports and directory may take to be free again.
const RESTART_TIMEOUT: Duration = Duration::from_secs(10);

/// Flags of `dev`.
#[derive(Debug, Args)]
pub(super) struct DevArgs {
    /// Where the brokers' data is, and stays
    #[arg(long, value_name = "DIR", default_value = "./pontoon-data")]
    data: PathBuf,
    /// The first of three HTTP ports
    #[arg(long, value_name = "PORT", default_value_t = HTTP_PORT, value_parser = clap::value_parser!(u16).range(1..=65533))]
    http_port: u16,
    /// The first of three ports for Kafka clients
    #[arg(long, value_name = "PORT", default_value_t = 9092, value_parser = clap::value_parser!(u16).range(1..=65533))]
    kafka_port: u16,
    /// The first of three ports that the brokers use among themselves
    #[arg(long, value_name = "PORT", default_value_t = 7090, value_parser = clap::value_parser!(u16).range(1..=65533))]
    peer_port: u16,
}

impl DevArgs {
    /// Each flag takes as many ports in a row as there are brokers: none may be another's.
    fn check_ports(&self) -> Result<(), Failure> {
        let flags =
            [("--http-port", self.http_port), ("--kafka-port", self.kafka_port), ("--peer-port", self.peer_port)];
        for (at, (flag, port)) in flags.iter().enumerate() {
            if let Some((other, others)) = flags[..at].iter().find(|(_, others)| others.abs_diff(*port) < BROKERS) {
                return Err(Failure::Usage(format!(
                    "{other} {others} and {flag} {port} overlap: each takes {BROKERS} ports in a row"
                )));
            }
        }
        Ok(())
    }

    fn configs(&self) -> Vec<Config> {
        let peer = |at: u16| format!("127.0.0.1:{}", self.peer_port + at);
        let bootstrap: BTreeMap<BrokerId, String> =
            (0..BROKERS).map(|at| (BrokerId(u32::from(at) + 1), peer(at))).collect();
        let config = |at: u16| {
            let mut config = Config::new(BrokerId(u32::from(at) + 1), self.data.join(format!("broker-{}", at + 1)));
            config.bootstrap = bootstrap.clone();
            config.http.listen = format!("127.0.0.1:{}", self.http_port + at);
            config.kafka.listener.listen = format!("127.0.0.1:{}", self.kafka_port + at);
            config.kafka.auto_create_topics = true;
            config.kafka.num_partitions = 4;
            config.peer.listen = peer(at);
            config
        };
        (0..BROKERS).map(config).collect()
    }
}

/// Runs until a signal or until a broker cannot go on.
pub(super) async fn run(args: DevArgs) -> Result<(), Failure> {
    let mut configs = args.configs();
    for config in &configs {
        config.validate().map_err(|error| Failure::Usage(error.to_string()))?;
    }
    args.check_ports()?;
    raise_file_limit(&mut configs.iter_mut().collect::<Vec<_>>())?;
    let mut signals = Signals::catch()?;
    let mut servers = Vec::new();
    for config in &configs {
        servers.push(bind(config).await.map_err(with_port_hint)?);
    }
    let starting = try_join_all(configs.iter().zip(&servers).map(|(config, server)| start(config.clone(), server)));
    let brokers = tokio::select! {
        brokers = starting => brokers.map_err(with_port_hint)?,
        name = signals.next() => {
            info!("{name} while the brokers were starting");
            return Ok(());
        }
    };
    let members = configs.into_iter().zip(servers).zip(brokers);
    let mut members: Vec<Member> = members
        .map(|((config, listeners), broker)| Member { config, running: Some(Running { listeners, broker }) })
        .collect();
    let mut console = Console::open();
    let mut welcomed = false;
    let end = loop {
        tokio::select! {
            why = one_failed(&members) => break Err(Failure::Failed(why)),
            () = welcome(&members, &args), if !welcomed => welcomed = true,
            command = console.next() => match command {
                Ok(command) => tokio::select! {
                    () = obey(command, &mut members) => {}
                    name = signals.next() => {
                        info!("{name}: closing");
                        break Ok(());
                    }
                },
                Err(why) => output::say(&why),
            },
            name = signals.next() => {
                info!("{name}: closing");
                break Ok(());
            }
        }
    };
    signals.impatient();
    join_all(members.into_iter().filter_map(|member| member.running).map(Running::stop)).await;
    end
}

/// One of the three, and what it is started with.
struct Member {
    config: Config,
    /// `None`: killed.
    running: Option<Running>,
}

/// Does what a line asked for, and says what came of it.
async fn obey(command: Command, members: &mut [Member]) {
    let (Command::Kill(id) | Command::Start(id)) = command;
    let Some(member) = members.iter_mut().find(|member| member.config.broker_id == id) else {
        return output::say(&format!("there is no broker {id}; there are 1 to {BROKERS}"));
    };
    match (command, member.running.take()) {
        (Command::Kill(_), Some(running)) => {
            running.kill().await;
            output::say(&format!("broker {id} is gone, as by kill -9; `start {id}` brings it back"));
        }
        (Command::Kill(_), None) => output::say(&format!("broker {id} is not running")),
        (Command::Start(_), None) => {
            output::say(&format!("broker {id} is starting"));
            match restart(&member.config).await {
                Ok(running) => {
                    member.running = Some(running);
                    output::say(&format!("broker {id} is back"));
                }
                Err(failure) => output::say(&failure.verdict().1.unwrap_or_default()),
            }
        }
        (Command::Start(_), running) => {
            member.running = running;
            output::say(&format!("broker {id} is running"));
        }
    }
}

/// Tries for a while: what the broker before it held (ports, the directory) is let go in the background.
async fn restart(config: &Config) -> Result<Running, Failure> {
    let deadline = Instant::now() + RESTART_TIMEOUT;
    loop {
        let tried = async {
            let listeners = bind(config).await?;
            let broker = start(config.clone(), &listeners).await?;
            Ok(Running { listeners, broker })
        };
        match tried.await {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(READY_CHECK).await,
            result => return result,
        }
    }
}

fn with_port_hint(failure: Failure) -> Failure {
    match failure {
        Failure::Failed(why) if why.contains("in use") && why.contains("listen") => Failure::Failed(format!(
            "{why}; is another pontoon running? --http-port, --kafka-port and --peer-port choose others"
        )),
        other => other,
    }
}

async fn one_failed(members: &[Member]) -> String {
    let running = members.iter().filter_map(|member| member.running.as_ref());
    let failures: Vec<_> =
        running.map(|one| Box::pin(async { (one.broker.id(), one.broker.failed().await) })).collect();
    if failures.is_empty() {
        return std::future::pending().await; // All were killed: they may be started again.
    }
    let ((id, why), ..) = select_all(failures).await;
    format!("broker {id}: {why}")
}

/// Tells how to use the cluster once all three are ready.
async fn welcome(members: &[Member], args: &DevArgs) {
    let running: Vec<&Running> = members.iter().filter_map(|member| member.running.as_ref()).collect();
    for one in &running {
        while one.broker.ready().is_err() {
            tokio::time::sleep(READY_CHECK).await;
        }
    }
    let addresses: Vec<&str> = running.iter().map(|one| one.listeners.http.address()).collect();
    let kafka: Vec<&str> = running.iter().filter_map(|one| Some(one.listeners.kafka.as_ref()?.address())).collect();
    let [first, second, third] = addresses[..] else { return std::future::pending().await };
    // The commands look where `dev` is unless it was put elsewhere.
    let server = if args.http_port == HTTP_PORT { String::new() } else { format!(" --server http://{first}") };
    output::say(&format!(
        "three brokers are ready: http://{first} http://{second} http://{third}, Kafka clients at {}\n\
         data is in {} and stays there; Ctrl-C stops, `kill 2` and Enter kills broker 2, `start 2` starts it again\n\
         \n  curl -X POST http://{first}/v1/topics -H 'content-type: application/json' -d '{{\"name\":\"greetings\"}}'\
         \n  curl -X POST http://{second}/v1/topics/greetings/partitions/0/records -H 'content-type: text/plain' -d 'hello'\
         \n  curl http://{third}/v1/topics/greetings/partitions/0/records\n\
         \n  pontoon produce greetings{server} < file\
         \n  pontoon consume greetings{server}\
         \n  pontoon status{server}",
        kafka.join(","),
        args.data.display()
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_are_valid_and_on_the_documented_ports() {
        let args = DevArgs { data: "d".into(), http_port: 8090, kafka_port: 9092, peer_port: 7090 };
        let configs = args.configs();
        let listen: Vec<_> = configs.iter().map(|c| (c.http.listen.as_str(), c.peer.listen.as_str())).collect();
        assert_eq!(
            listen,
            [
                ("127.0.0.1:8090", "127.0.0.1:7090"),
                ("127.0.0.1:8091", "127.0.0.1:7091"),
                ("127.0.0.1:8092", "127.0.0.1:7092")
            ]
        );
        for config in &configs {
            assert_eq!(config.validate(), Ok(vec![]));
            assert_eq!(config.bootstrap[&config.broker_id], config.peer.listen);
        }
    }
    #[test]
    fn ports_that_overlap_are_named_with_their_flags() {
        let args = |http_port, kafka_port, peer_port| DevArgs { data: "d".into(), http_port, kafka_port, peer_port };
        args(8090, 8093, 8087).check_ports().unwrap();
        for (overlapping, words) in [
            (args(38090, 38091, 7090), "--http-port 38090 and --kafka-port 38091 overlap"),
            (args(8090, 9092, 9090), "--kafka-port 9092 and --peer-port 9090 overlap"),
        ] {
            let (status, why) = overlapping.check_ports().unwrap_err().verdict();
            assert!(status == 2 && why.as_ref().unwrap().contains(words), "{why:?}");
        }
    }
}
