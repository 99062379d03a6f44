//! The cluster under test: its servers, the topic of a run, and who leads which partition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::api::CreateTopic;
use crate::cli::{Failure, ServerArgs};
use crate::client::Client;

/// How much longer than the server may take its answer is waited for.
const GRACE: Duration = Duration::from_secs(2);

/// A cluster, by the addresses of some of its brokers.
#[derive(Clone)]
pub(super) struct Target {
    /// For what is not measured.
    client: Arc<Client>,
    /// For what is.
    pub(super) http: reqwest::Client,
}

/// A partition and where it is led.
#[derive(Clone, Debug)]
pub(super) struct Led {
    pub(super) partition: u32,
    pub(super) broker: u32,
    /// `http://host:port` of the leader.
    pub(super) base: String,
}

impl Target {
    pub(super) fn new(server: &ServerArgs) -> Result<Self, Failure> {
        let client = server.client()?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(1024)
            .tcp_nodelay(true)
            .timeout(client.patience() + GRACE)
            .build()
            .map_err(|error| Failure::Failed(error.to_string()))?;
        Ok(Self { client: Arc::new(client), http })
    }

    /// The servers that were named, `http://host:port`.
    pub(super) fn servers(&self) -> &[String] {
        self.client.servers()
    }

    /// How long the server may take over one request, as its parameter.
    pub(super) fn timeout_ms(&self) -> u128 {
        self.client.patience().as_millis()
    }

    /// Makes a topic for this run.
    pub(super) async fn create_topic(&self, partitions: u32, replicas: Option<u32>) -> Result<String, Failure> {
        let name = format!("bench-{:016x}", rand::random::<u64>());
        let topic = CreateTopic { name: name.clone(), partitions, replicas, config: BTreeMap::new() };
        self.client.create_topic(&topic).await?;
        Ok(name)
    }

    pub(super) async fn delete_topic(&self, topic: &str) -> Result<(), Failure> {
        Ok(self.client.delete_topic(topic).await?)
    }

    /// Who leads each partition now. Partitions without a leader are not in it.
    pub(super) async fn leaders(&self, topic: &str) -> Result<Vec<Led>, Failure> {
        let brokers = self.client.cluster().await?.brokers;
        let addresses: BTreeMap<_, _> =
            brokers.into_iter().map(|broker| (broker.broker_id, format!("http://{}", broker.http_address))).collect();
        let partitions = self.client.topic(topic).await?.partitions;
        let led = partitions.into_iter().filter_map(|partition| {
            let leader = partition.leader?;
            Some(Led { partition: partition.partition, broker: leader.0, base: addresses.get(&leader)?.clone() })
        });
        Ok(led.collect())
    }

    /// [`Self::leaders`] once every one of `count` partitions has one.
    pub(super) async fn all_leaders(&self, topic: &str, count: u32) -> Result<Vec<Led>, Failure> {
        let deadline = tokio::time::Instant::now() + self.client.patience();
        loop {
            let led = self.leaders(topic).await?;
            if led.len() as u32 >= count {
                return Ok(led);
            }
            if tokio::time::Instant::now() > deadline {
                return Err(Failure::Failed(format!(
                    "only {} of {count} partitions of {topic} have a leader",
                    led.len()
                )));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
