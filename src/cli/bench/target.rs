//! The cluster under test: its servers, the topic of a run, and who leads which partition.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::Failure;

/// A cluster, by the addresses of some of its brokers.
#[derive(Clone)]
pub(super) struct Target {
    servers: Vec<String>,
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
    pub(super) fn new(servers: &[String]) -> Result<Self, Failure> {
        let http = reqwest::Client::builder()
            .pool_max_idle_per_host(1024)
            .tcp_nodelay(true)
            .timeout(Duration::from_secs(30))
            .build()
            .map_err(|error| Failure::Local(error.to_string()))?;
        let with_scheme = |server: &String| match server.contains("://") {
            true => server.trim_end_matches('/').to_owned(),
            false => format!("http://{}", server.trim_end_matches('/')),
        };
        Ok(Self { servers: servers.iter().map(with_scheme).collect(), http })
    }

    /// The servers that were named, `http://host:port`.
    pub(super) fn servers(&self) -> &[String] {
        &self.servers
    }

    /// Asks the first server that answers.
    pub(super) async fn ask(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Result<Value, Failure> {
        let mut unreachable = String::from("no server was named");
        for server in &self.servers {
            let mut request = self.http.request(method.clone(), format!("{server}{path}"));
            if let Some(body) = &body {
                request = request.json(body);
            }
            match request.send().await {
                Ok(answer) => {
                    let status = answer.status();
                    let text = answer.text().await.map_err(|error| Failure::Unreachable(error.to_string()))?;
                    if !status.is_success() {
                        return Err(Failure::Refused(format!("{method} {path}: {status}: {text}")));
                    }
                    return serde_json::from_str(if text.is_empty() { "null" } else { &text })
                        .map_err(|error| Failure::Refused(format!("{method} {path}: {error}")));
                }
                Err(error) => unreachable = format!("{server}: {error}"),
            }
        }
        Err(Failure::Unreachable(unreachable))
    }

    /// Makes a topic for this run.
    pub(super) async fn create_topic(&self, partitions: u32, replicas: Option<u32>) -> Result<String, Failure> {
        let name = format!("bench-{:016x}", rand::random::<u64>());
        let mut body = json!({"name": name, "partitions": partitions});
        if let Some(replicas) = replicas {
            body["replicas"] = replicas.into();
        }
        self.ask(reqwest::Method::POST, "/v1/topics", Some(body)).await?;
        Ok(name)
    }

    pub(super) async fn delete_topic(&self, topic: &str) -> Result<(), Failure> {
        self.ask(reqwest::Method::DELETE, &format!("/v1/topics/{topic}"), None).await.map(drop)
    }

    /// Who leads each partition now. Partitions without a leader are not in it.
    pub(super) async fn leaders(&self, topic: &str) -> Result<Vec<Led>, Failure> {
        let cluster = self.ask(reqwest::Method::GET, "/v1/cluster", None).await?;
        let mut addresses = BTreeMap::new();
        for broker in cluster["brokers"].as_array().into_iter().flatten() {
            let address = broker["http_address"].as_str().unwrap_or_default();
            addresses.insert(broker["broker_id"].as_u64().unwrap_or_default(), format!("http://{address}"));
        }
        let topic = self.ask(reqwest::Method::GET, &format!("/v1/topics/{topic}"), None).await?;
        let partitions = topic["partitions"].as_array().into_iter().flatten();
        let led = partitions.filter_map(|partition| {
            let broker = partition["leader"].as_u64()?;
            let number = partition["partition"].as_u64()? as u32;
            Some(Led { partition: number, broker: broker as u32, base: addresses.get(&broker)?.clone() })
        });
        Ok(led.collect())
    }

    /// [`Self::leaders`] once every one of `count` partitions has one.
    pub(super) async fn all_leaders(&self, topic: &str, count: u32) -> Result<Vec<Led>, Failure> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let led = self.leaders(topic).await?;
            if led.len() as u32 >= count {
                return Ok(led);
            }
            if tokio::time::Instant::now() > deadline {
                return Err(Failure::Refused(format!(
                    "only {} of {count} partitions of {topic} have a leader",
                    led.len()
                )));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
