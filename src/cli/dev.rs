//! `pontoon dev`: a three-broker cluster in one process, with nothing to configure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use futures_util::future::{join_all, select_all, try_join_all};
use pontoon_raft::types::BrokerId;
use tracing::info;

use crate::cli::serve::{Running, bind, raise_file_limit, start};
use crate::cli::signals::Signals;
use crate::cli::{Failure, output};
use crate::config::Config;

/// How many brokers.
const BROKERS: u16 = 3;
/// How often readiness is looked at while the cluster forms.
const READY_CHECK: Duration = Duration::from_millis(20);

/// Flags of `dev`.
#[derive(Debug, Args)]
pub(super) struct DevArgs {
    /// Where the brokers' data is, and stays
    #[arg(long, value_name = "DIR", default_value = "./pontoon-data")]
    data: PathBuf,
    /// The first of three HTTP ports
    #[arg(long, value_name = "PORT", default_value_t = 8090, value_parser = clap::value_parser!(u16).range(1..=65533))]
    http_port: u16,
    /// The first of three ports for Kafka clients
    #[arg(long, value_name = "PORT", default_value_t = 9092, value_parser = clap::value_parser!(u16).range(1..=65533))]
    kafka_port: u16,
    /// The first of three ports that the brokers use among themselves
    #[arg(long, value_name = "PORT", default_value_t = 7090, value_parser = clap::value_parser!(u16).range(1..=65533))]
    peer_port: u16,
}

impl DevArgs {
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
    let configs = args.configs();
    for config in &configs {
        config.validate().map_err(|error| Failure::Usage(error.to_string()))?;
    }
    raise_file_limit(&configs.iter().collect::<Vec<_>>())?;
    let mut signals = Signals::catch()?;
    let mut servers = Vec::new();
    for config in &configs {
        servers.push(bind(config).await.map_err(with_port_hint)?);
    }
    let starting = try_join_all(configs.into_iter().zip(&servers).map(|(config, server)| start(config, server)));
    let brokers = tokio::select! {
        brokers = starting => brokers.map_err(with_port_hint)?,
        name = signals.next() => {
            info!("{name} while the brokers were starting");
            return Ok(());
        }
    };
    let running: Vec<Running> =
        servers.into_iter().zip(brokers).map(|(server, broker)| Running { listeners: server, broker }).collect();
    let end = tokio::select! {
        why = one_failed(&running) => Err(Failure::Failed(why)),
        never = welcome(&running, &args.data) => match never {},
        name = signals.next() => {
            info!("{name}: closing");
            Ok(())
        }
    };
    signals.impatient();
    join_all(running.into_iter().map(Running::stop)).await;
    end
}

fn with_port_hint(failure: Failure) -> Failure {
    match failure {
        Failure::Failed(why) if why.contains("in use") && why.contains("listen") => Failure::Failed(format!(
            "{why}; is another pontoon running? --http-port, --kafka-port and --peer-port choose others"
        )),
        other => other,
    }
}

async fn one_failed(running: &[Running]) -> String {
    let failures = running.iter().map(|one| Box::pin(async { (one.broker.id(), one.broker.failed().await) }));
    let ((id, why), ..) = select_all(failures).await;
    format!("broker {id}: {why}")
}

/// Tells how to use the cluster once it is ready, and then waits for ever.
async fn welcome(running: &[Running], data: &Path) -> std::convert::Infallible {
    for one in running {
        while one.broker.ready().is_err() {
            tokio::time::sleep(READY_CHECK).await;
        }
    }
    let addresses: Vec<&str> = running.iter().map(|one| one.listeners.http.address()).collect();
    let kafka: Vec<&str> = running.iter().filter_map(|one| Some(one.listeners.kafka.as_ref()?.address())).collect();
    let [first, second, third] = addresses[..] else { return std::future::pending().await };
    output::say(&format!(
        "three brokers are ready: http://{first} http://{second} http://{third}, Kafka clients at {}\n\
         data is in {} and stays there; Ctrl-C stops\n\
         \n  curl -X POST http://{first}/v1/topics -H 'content-type: application/json' -d '{{\"name\":\"greetings\"}}'\
         \n  curl -X POST http://{second}/v1/topics/greetings/partitions/0/records -H 'content-type: text/plain' -d 'hello'\
         \n  curl http://{third}/v1/topics/greetings/partitions/0/records\n\
         \n  pontoon produce greetings < file      pontoon consume greetings      pontoon status",
        kafka.join(","),
        data.display()
    ));
    std::future::pending().await
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
}
