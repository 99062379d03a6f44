//! The brokers as one client sees them: its connections, and who leads which partition by the last word it had.
//!
//! It begins with one broker, learns the others' addresses from it, and forgets a leader that says it is none. It tries nothing twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{MetadataRequest, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::Shared;
use super::connection::{Call, Connection, NoAnswer};
use crate::history::Key;

/// How long the list of leaders may take.
const METADATA_TIMEOUT: Duration = Duration::from_secs(3);

/// A topic's name, as messages have it.
pub(super) fn topic_name(name: &str) -> TopicName {
    TopicName(text(name))
}

/// A text, as messages have it.
pub(super) fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// One client's brokers.
pub(super) struct Brokers {
    shared: Arc<Shared>,
    /// The one that is asked what any broker knows.
    first: usize,
    /// By address. At most as many as there are brokers.
    connections: BTreeMap<String, Connection>,
    /// Each key's leader's address.
    leaders: BTreeMap<Key, String>,
}

impl Brokers {
    pub(super) fn new(shared: Arc<Shared>, first: usize) -> Self {
        Self { shared, first, connections: BTreeMap::new(), leaders: BTreeMap::new() }
    }

    /// Asks this broker from now on what any knows.
    pub(super) fn begin_with(&mut self, broker: usize) {
        self.first = broker;
    }

    /// Asks another one from now on.
    pub(super) fn look_elsewhere(&mut self) {
        self.first = self.first.wrapping_add(1);
    }

    /// The address of the broker that is asked what any knows.
    pub(super) fn any(&self) -> String {
        let brokers = &self.shared.brokers;
        brokers.get(self.first % brokers.len().max(1)).cloned().unwrap_or_default()
    }

    /// Asks a broker.
    pub(super) async fn ask<C: Call>(
        &mut self,
        address: &str,
        request: &C,
        patience: Duration,
    ) -> Result<C::Answer, NoAnswer> {
        // Taken out: one that does not answer, or whose caller does not wait, is not used again.
        let mut connection = match self.connections.remove(address) {
            Some(connection) => connection,
            None => Connection::open(address).await?,
        };
        let answer = connection.call(request, patience).await?;
        self.connections.insert(address.to_owned(), connection);
        Ok(answer)
    }

    /// The address of a key's leader.
    pub(super) async fn leader(&mut self, key: Key) -> Result<String, String> {
        if let Some(leader) = self.leaders.get(&key) {
            return Ok(leader.clone());
        }
        self.learn().await?;
        self.leaders.get(&key).cloned().ok_or_else(|| format!("key {} has no leader", key.0))
    }

    /// It does not lead.
    pub(super) fn forget(&mut self, key: Key) {
        self.leaders.remove(&key);
    }

    async fn learn(&mut self) -> Result<(), String> {
        let mut names: Vec<&str> = self.shared.places.iter().map(|place| place.topic.as_str()).collect();
        names.dedup();
        let topic = |name: &str| MetadataRequestTopic::default().with_name(Some(topic_name(name)));
        let topics = Some(names.into_iter().map(topic).collect());
        let request = MetadataRequest::default().with_topics(topics).with_allow_auto_topic_creation(false);
        let any = self.any();
        let told = self.ask(&any, &request, METADATA_TIMEOUT).await.map_err(NoAnswer::why)?;
        let address_of = |node| {
            let broker = told.brokers.iter().find(|broker| broker.node_id == node)?;
            Some(format!("{}:{}", broker.host, broker.port))
        };
        self.leaders.clear();
        for topic in &told.topics {
            let Some(name) = &topic.name else { continue };
            for partition in &topic.partitions {
                let Some(key) = self.shared.key_of(&name.0, partition.partition_index) else { continue };
                if let Some(address) = address_of(partition.leader_id) {
                    self.leaders.insert(key, address);
                }
            }
        }
        Ok(())
    }
}
