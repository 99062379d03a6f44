//! The broker: which partition, which leader, is it allowed. What `http` (and later `kafka`) call, and all they call.
//!
//! - `bootstrap`: becoming part of a cluster. `lifecycle`, `work`, `membership`: making this directory what the catalog says.
//! - `routing`, `summary`: who leads what. `leadership`: giving leaderships back. `topics`, `describe`: what clients ask for.
//! - [`recover`]: offline, from one survivor. `coordination`: consumer groups. `control`: asking the controller. `peer`: the calls between brokers. `start`: opening and closing all of it.
//!
//! It knows no HTTP, no segment and no openraft; what a record is it leaves to [`crate::partition`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pontoon_raft::error::OpenError;
use pontoon_raft::raft_groups::RaftGroups;
use pontoon_raft::types::BrokerId;

use crate::catalog::topic_config::TopicConfig;
use crate::config::Config;
use crate::coordinator::Coordinator;
use crate::error::Result;
use crate::partition::Partition;
use crate::record_batch::BatchLimits;

mod bootstrap;
mod control;
mod coordination;
mod describe;
mod group_lag;
mod leadership;
mod lifecycle;
mod membership;
pub mod observe;
mod peer;
pub mod recover;
mod retention;
mod routing;
mod shared;
mod start;
mod summary;
mod topics;
mod work;

pub use coordination::check_not_internal;
pub use describe::{
    BrokerDescription, ClusterDescription, LagReason, LaggingReplica, PartitionDescription, TopicDescription,
};
use shared::{Progress, Shared};
pub use start::Seams;
pub use topics::check_name;

/// A topic to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// How many partitions.
    pub partitions: u32,
    /// How many replicas each; `None`: three, or as many as there are brokers.
    pub replicas: Option<u32>,
    /// For each partition its brokers, the preferred leader first, if somebody wants to place them. `partitions` and
    /// `replicas` count for nothing then.
    pub assignment: Option<Vec<Vec<BrokerId>>>,
    /// Its configuration, by Kafka's names.
    pub config: BTreeMap<String, String>,
}

/// One key of a topic's effective configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigEntry {
    /// Its name, Kafka's.
    pub name: &'static str,
    /// What the topic says, if anything.
    pub topic: Option<String>,
    /// What this broker's `log.*` says, if anything.
    pub broker: Option<String>,
    /// What counts if neither does.
    pub built_in: &'static str,
}

/// What has to be known of a topic before records are divided between its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicShape {
    /// Its id: a topic created again under the name has another.
    pub topic_id: u128,
    /// How many partitions it has, as far as is known here; they only grow.
    pub partitions: u32,
    /// What a batch for any of them may have.
    pub limits: BatchLimits,
}

/// Where a partition is served.
#[derive(Clone)]
pub enum Route {
    /// Here.
    Local(Arc<Partition>),
    /// By this broker, over HTTP at this address.
    Remote {
        /// The leader's broker.
        broker: BrokerId,
        /// Its advertised HTTP address, `host:port`.
        http_address: String,
    },
}

/// A running broker. Shared. Dropping it stops its work without ceremony, as a crash would; [`Broker::shutdown`] is the
/// clean way.
pub struct Broker {
    shared: Arc<Shared>,
    coordinator: Coordinator,
    tasks: start::Tasks,
}

impl Broker {
    /// Opens the data directory, starts the transport, joins or forms the cluster in the background. HTTP is served by
    /// the caller ([`crate::http`]), from at once: `ready` says when it makes sense.
    /// `http_address` is where clients reach this broker (advertised), once its listener's port is known.
    pub async fn start(config: Config, http_address: String) -> Result<Arc<Broker>, StartError> {
        let seams = Seams::real(&config).map_err(|error| OpenError::Io { path: config.data_dir.clone(), error })?;
        Self::start_with(config, http_address, seams).await
    }

    /// This broker's number.
    pub fn id(&self) -> BrokerId {
        self.shared.broker
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Recovered, in the catalog, hosted groups are open, and every live peer has said what it leads; otherwise why not.
    pub fn ready(&self) -> Result<(), String> {
        if let Some(why) = &*self.shared.fatal.borrow() {
            return Err(why.clone());
        }
        match &*self.shared.progress.borrow() {
            Progress::Ready => Ok(()),
            Progress::Joining(why) => Err(why.clone()),
            Progress::Registered => {
                Err("replicas are being opened, or other brokers have yet to say what they lead".to_owned())
            }
            Progress::Stopping { .. } => Err("the broker is stopping".to_owned()),
        }
    }

    /// Why it is not part of the cluster yet. Until it is, what it shows of the catalog is nothing, or of before its start.
    pub fn joining(&self) -> Option<String> {
        match &*self.shared.progress.borrow() {
            Progress::Joining(why) => Some(why.clone()),
            Progress::Stopping { known: false } => Some("the broker is stopping".to_owned()),
            Progress::Registered | Progress::Ready | Progress::Stopping { known: true } => None,
        }
    }

    /// Waits until it is ready or is stopping, at most for `timeout`.
    pub async fn await_ready(&self, timeout: Duration) {
        let mut progress = self.shared.progress.subscribe();
        let settled = progress.wait_for(|progress| matches!(progress, Progress::Ready | Progress::Stopping { .. }));
        let _ = tokio::time::timeout(timeout, settled).await;
    }

    /// Waits until it is part of the cluster or is stopping, at most for `timeout`.
    pub async fn await_joined(&self, timeout: Duration) {
        let mut progress = self.shared.progress.subscribe();
        let joined = progress.wait_for(|progress| !matches!(progress, Progress::Joining(_)));
        let _ = tokio::time::timeout(timeout, joined).await;
    }

    /// Creates a topic and waits until every partition has a leader (or `timeout`; the topic exists all the same).
    /// `INTERNAL_TOPIC` here and below: see [`check_not_internal`].
    pub async fn create_topic(&self, spec: TopicSpec, timeout: Duration) -> Result<TopicDescription> {
        check_not_internal(&spec.name)?;
        self.shared.create_topic(spec, timeout).await
    }

    /// How many replicas a topic gets that does not say.
    pub fn default_replicas(&self) -> u32 {
        self.shared.default_replicas()
    }

    /// What [`Self::create_topic`] would refuse, as far as this broker can tell. Creates nothing.
    pub fn check_topic(&self, spec: &TopicSpec) -> Result<()> {
        check_not_internal(&spec.name)?;
        self.shared.check_topic(spec)
    }

    /// What [`Self::alter_topic`] would refuse of these changes. Changes nothing.
    pub fn check_topic_changes(&self, name: &str, config: &BTreeMap<String, Option<String>>) -> Result<()> {
        self.shared.topic(name)?;
        check_not_internal(name)?;
        topics::check_changes(config)
    }

    /// `NOT_READY` unless this broker's copy of the catalog is at least as new as its process: before that, what it lacks may be there.
    pub fn check_known(&self) -> Result<()> {
        self.shared.check_known()
    }

    /// All topics, by name, as far as they are known here: see [`Self::check_known`].
    pub fn topics(&self) -> Vec<TopicDescription> {
        self.shared.topics()
    }

    /// One topic.
    pub fn topic(&self, name: &str) -> Result<TopicDescription> {
        self.shared.topic(name)
    }

    /// The id of the topic that has this name, as far as is known here.
    pub fn topic_id(&self, name: &str) -> Option<u128> {
        self.shared.topic_id(name)
    }

    /// One partition of a topic, if that is still the topic of this id. The others are not looked at: a topic has thousands.
    pub fn partition(&self, topic: &str, topic_id: u128, partition: u32) -> Option<PartitionDescription> {
        self.shared.partition(topic, topic_id, partition)
    }

    /// A topic's effective configuration: its own values over this broker's `log.*` over the built-in ones. `UNKNOWN_TOPIC`.
    pub fn topic_config(&self, name: &str) -> Result<TopicConfig> {
        self.shared.topic_config(name)
    }

    /// The topic of this id (see [`TopicDescription::topic_id`]).
    pub fn topic_by_id(&self, topic_id: u128) -> Result<TopicDescription> {
        self.shared.topic_by_id(topic_id)
    }

    /// Its name alone, without a look at its partitions: of each Produce and Fetch that names topics by id. `UNKNOWN_TOPIC`.
    pub fn topic_name(&self, topic_id: u128) -> Result<String> {
        self.shared.topic_name(topic_id)
    }

    /// How many replicas the partition with the fewest has, or is to get back. `UNKNOWN_TOPIC`.
    pub fn fewest_replicas(&self, name: &str) -> Result<u32> {
        self.shared.fewest_replicas(name)
    }

    /// Every key of a topic's configuration, set or not. `UNKNOWN_TOPIC`.
    pub fn topic_config_entries(&self, name: &str) -> Result<Vec<ConfigEntry>> {
        self.shared.topic_config_entries(name)
    }

    /// [`Self::topic_config_entries`] of a topic that was created with this configuration.
    pub fn config_entries(&self, own: &BTreeMap<String, String>) -> Vec<ConfigEntry> {
        self.shared.config_entries(own)
    }

    /// Changes configuration (`None` resets a key) and grows the number of partitions.
    pub async fn alter_topic(
        &self,
        name: &str,
        partitions: Option<u32>,
        config: BTreeMap<String, Option<String>>,
        timeout: Duration,
    ) -> Result<TopicDescription> {
        check_not_internal(name)?;
        self.shared.alter_topic(name, partitions, config, timeout).await
    }

    /// Adds partitions, on these brokers, to the `before` that a topic has. `INVALID_ASSIGNMENT`, `INVALID_PARTITIONS`.
    pub async fn grow_topic(
        &self,
        name: &str,
        before: u32,
        assignment: Vec<Vec<BrokerId>>,
        timeout: Duration,
    ) -> Result<TopicDescription> {
        check_not_internal(name)?;
        self.shared.grow_topic(name, before, assignment, timeout).await
    }

    /// What growing a topic to so many partitions would be refused for. Changes nothing.
    pub fn check_growth(&self, name: &str, partitions: u32) -> Result<()> {
        let has = self.shared.topic(name)?.partitions.len();
        check_not_internal(name)?;
        topics::check_growth(name, has, partitions)
    }

    /// Whether replicas could be placed so now. `INVALID_ASSIGNMENT`. Changes nothing.
    pub fn check_assignment(&self, assignment: &[Vec<BrokerId>]) -> Result<()> {
        self.shared.check_assignment(assignment)
    }

    /// Deletes a topic and its data.
    pub async fn delete_topic(&self, name: &str, timeout: Duration) -> Result<()> {
        check_not_internal(name)?;
        self.shared.delete_topic(name, timeout).await
    }

    /// Deletes the topic of this id (see [`TopicDescription::topic_id`]), and its data. Returns its name. `UNKNOWN_TOPIC`.
    pub async fn delete_topic_by_id(&self, topic_id: u128, timeout: Duration) -> Result<String> {
        self.shared.delete_topic_by_id(topic_id, timeout).await
    }

    /// Where the partition is served now. `UNKNOWN_TOPIC`, `UNKNOWN_PARTITION`; `NO_LEADER` if there is none; `NOT_READY`
    /// while the broker is not part of the cluster, and while it is stopping and has not handed the partition over yet.
    pub fn route(&self, topic: &str, partition: u32) -> Result<Route> {
        self.shared.route(topic, partition)
    }

    /// [`Self::route`], waiting up to `timeout` for a leader. Before it says that there is no such topic or partition, it
    /// asks the controller for what this broker's copy of the catalog may not have yet.
    pub async fn route_wait(&self, topic: &str, partition: u32, timeout: Duration) -> Result<Route> {
        self.shared.route_wait(topic, partition, timeout).await
    }

    /// Brings this broker's copy of the catalog to where the controller's is now, by a majority's word: a topic that it does not show
    /// then is not there. `NOT_READY` if that cannot be had within `timeout`.
    pub async fn catch_up(&self, timeout: Duration) -> Result<()> {
        self.shared.catch_up(tokio::time::Instant::now() + timeout).await
    }

    /// Changes whenever [`Self::route`] may have another answer.
    pub fn watch_routes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.routing.watch()
    }

    /// What records for a topic have to be divided by. `UNKNOWN_TOPIC`, once the controller has been asked too.
    pub async fn topic_shape(&self, topic: &str, timeout: Duration) -> Result<TopicShape> {
        self.shared.topic_shape(topic, timeout).await
    }

    /// A new producer id and epoch, never given out before.
    pub async fn create_producer(&self, timeout: Duration) -> Result<(i64, i16)> {
        self.shared.create_producer(timeout).await
    }

    /// Where clients reach the brokers that live over Kafka's protocol, `host:port`.
    pub fn kafka_addresses(&self) -> Vec<(BrokerId, String)> {
        self.shared.kafka_addresses()
    }

    /// 32 hexadecimal digits; empty while there is none.
    pub fn cluster_id(&self) -> String {
        self.shared.cluster_id()
    }

    /// The broker that leads the catalog, as far as is known.
    pub fn controller(&self) -> Option<BrokerId> {
        self.shared.known_controller().map(|(broker, _)| broker)
    }

    /// A partition's leader and its epoch, as far as is known.
    pub fn leader(&self, topic: &str, partition: u32) -> Option<(BrokerId, u64)> {
        self.shared.leader_of(topic, partition)
    }

    /// Waits, for so long at most, until what is about to be led of these topics (or of all) is: partitions that were just created. On
    /// other brokers than the one that was asked to create them that is heard of a moment later.
    pub async fn await_leaders(&self, topics: Option<&[String]>, timeout: Duration) {
        self.shared.await_leaders(topics, timeout).await;
    }

    /// The cluster as this broker sees it. It looks at every partition.
    pub fn cluster(&self) -> ClusterDescription {
        self.shared.cluster()
    }

    /// Its Raft groups, for whoever looks at what runs underneath: the simulation. Clients are served without.
    pub fn raft_groups(&self) -> &RaftGroups {
        &self.shared.groups
    }

    /// Resolves if the broker cannot go on (its data directory has stopped): the process should exit with this reason.
    pub async fn failed(&self) -> String {
        let mut fatal = self.shared.fatal.subscribe();
        let reached = fatal.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match reached {
            Some(why) => why,
            None => std::future::pending().await,
        }
    }

    /// The broker cannot go on: a door of its has closed. See [`Self::failed`].
    pub(crate) fn fail(&self, why: &str) {
        self.shared.fail(why.to_owned());
    }

    /// Hands leaderships over, shuts groups down, checkpoints and closes. At most `timeout`.
    pub async fn shutdown(&self, timeout: Duration) {
        self.tasks.shutdown(&self.shared, timeout).await;
    }
}

/// Why a broker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Open(#[from] pontoon_raft::error::OpenError),
    /// The data directory stopped while it was being opened.
    #[error(transparent)]
    Stopped(#[from] pontoon_raft::error::Stopped),
    /// The peer listener.
    #[error("cannot listen for peers on {address}: {error}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        error: std::io::Error,
    },
}

#[cfg(test)]
mod tests;
