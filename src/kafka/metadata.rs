//! Metadata and DescribeCluster: brokers, topics, who leads what; and the names and hints other handlers need of that.
//!
//! Brokers are listed with the address they advertise to Kafka's clients, if they are alive. Authorised operations are not
//! computed: there is no security yet.
//!
//! A broker that is not part of the cluster yet cannot say which topics there are. On an empty disk it knows no broker, not even itself; on
//! an old one it may know only itself to be alive, and clients keep to whom they are told of. Neither answer has an error for that. An empty
//! list of brokers some clients take for an answer nevertheless (Java's admin client, librdkafka if a topic was named), and an empty list of
//! topics is one. So the connection is closed, which all take for "ask another, or again".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pontoon_raft::types::BrokerId;
use tracing::info;

use super::dispatch::Handled;
use super::messages::{
    DescribeClusterRequest, DescribeClusterResponse, DescribedBroker, LeaderIdAndEpoch, MetadataBroker,
    MetadataPartition, MetadataRequest, MetadataResponse, MetadataTopic, MetadataTopicName, NodeEndpoint, Response,
};
use super::topics::Time;
use super::wire::Uuid;
use super::{Door, ErrorCode};
use crate::broker::{TopicDescription, TopicSpec, check_name};
use crate::config::{host_of, port_of};
use crate::coordinator::OFFSETS_TOPIC;
use crate::error::{Code, Error};

/// Longest that a client waits for the topics that its asking for creates.
const AUTO_CREATE_TIMEOUT: Duration = Duration::from_secs(5);
/// The first version of Metadata in which a topic may have no name: of one that was asked for by an id that nobody knows.
const NAMELESS_VERSION: i16 = 12;
/// Longest that a client waits for the leaders of a topic that was just created. In Kafka it has them from the first; some clients
/// (rskafka) keep an answer without for ever.
const LEADERS_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest that a client waits for a broker that has just been started to know who else there is, and what. Kafka takes no connections
/// until then; here one that cannot be had for long does not hold up clients that have others to ask.
pub(super) const READY_TIMEOUT: Duration = Duration::from_secs(5);

/// A topic as a request names it: by name, or by id from some version on.
#[derive(Clone, Debug)]
pub(super) struct TopicName {
    pub(super) name: String,
    pub(super) id: Uuid,
    pub(super) error: Option<ErrorCode>,
}

/// Finds the names of the topics of a request. An id is looked up once, however often it is named: that looks at all of a topic's
/// partitions.
pub(super) struct TopicNames<'a> {
    door: &'a Door,
    by_id: bool,
    known: BTreeMap<u128, Result<String, ErrorCode>>,
}

impl<'a> TopicNames<'a> {
    /// Of a request that has ids, or names.
    pub(super) fn new(door: &'a Door, by_id: bool) -> Self {
        Self { door, by_id, known: BTreeMap::new() }
    }

    /// One of them.
    pub(super) fn resolve(&mut self, name: String, id: Uuid) -> TopicName {
        if !self.by_id {
            return TopicName { name, id, error: None };
        }
        let find = || match self.door.broker.topic_name(id.0) {
            Ok(name) => Ok(name),
            Err(error) if error.code == Code::UnknownTopic => Err(ErrorCode::UnknownTopicId),
            Err(error) => Err(ErrorCode::from(&error)),
        };
        match self.known.entry(id.0).or_insert_with(find) {
            Ok(name) => TopicName { name: name.clone(), id, error: None },
            Err(code) => TopicName { name: String::new(), id, error: Some(*code) },
        }
    }
}

/// A topic's id on the wire.
pub(super) fn topic_uuid(topic: &TopicDescription) -> Uuid {
    Uuid(u128::from_str_radix(&topic.topic_id, 16).unwrap_or_default())
}

/// Who leads the partitions that a request has asked the wrong broker for (KIP-951).
pub(super) struct Leaders<'a> {
    door: &'a Door,
    named: Vec<i32>,
}

impl<'a> Leaders<'a> {
    pub(super) fn new(door: &'a Door) -> Self {
        Self { door, named: Vec::new() }
    }

    /// The leader, if it is known.
    pub(super) fn of(&mut self, topic: &str, partition: i32) -> Option<LeaderIdAndEpoch> {
        let (leader, term) = self.door.broker.leader(topic, u32::try_from(partition).ok()?)?;
        let leader_id = leader.0 as i32;
        if !self.named.contains(&leader_id) {
            self.named.push(leader_id);
        }
        Some(LeaderIdAndEpoch { leader_id, leader_epoch: epoch(term) })
    }

    /// Where those that were named are.
    pub(super) fn endpoints(&self) -> Option<Vec<NodeEndpoint>> {
        if self.named.is_empty() {
            return None;
        }
        let brokers = brokers(self.door);
        let named = brokers.into_iter().filter(|broker| self.named.contains(&broker.node_id));
        let endpoint = |broker: MetadataBroker| NodeEndpoint {
            node_id: broker.node_id,
            host: broker.host,
            port: broker.port,
            rack: None,
        };
        Some(named.map(endpoint).collect())
    }
}

/// What a client may do, as a set of bits by Kafka's numbers of operations: everything that there is to do with such a resource,
/// for there are no ACLs. Kafka itself answers so without an authorizer.
#[derive(Clone, Copy)]
pub(super) enum Allowed {
    Cluster,
    Topic,
    Group,
}

impl Allowed {
    /// The bits, if they were asked for.
    pub(super) fn bits(self, asked: bool) -> i32 {
        const READ: i32 = 1 << 3;
        const WRITE: i32 = 1 << 4;
        const CREATE: i32 = 1 << 5;
        const DELETE: i32 = 1 << 6;
        const ALTER: i32 = 1 << 7;
        const DESCRIBE: i32 = 1 << 8;
        const CLUSTER_ACTION: i32 = 1 << 9;
        const DESCRIBE_CONFIGS: i32 = 1 << 10;
        const ALTER_CONFIGS: i32 = 1 << 11;
        const IDEMPOTENT_WRITE: i32 = 1 << 12;
        const CONFIGS: i32 = DESCRIBE_CONFIGS | ALTER_CONFIGS;
        match self {
            _ if !asked => i32::MIN,
            Self::Cluster => CREATE | ALTER | DESCRIBE | CLUSTER_ACTION | CONFIGS | IDEMPOTENT_WRITE,
            Self::Topic => READ | WRITE | CREATE | DELETE | ALTER | DESCRIBE | CONFIGS,
            Self::Group => READ | DELETE | DESCRIBE,
        }
    }
}

/// A term as Kafka's 32-bit leader epoch, as batches are stamped with it.
pub(super) fn epoch(term: u64) -> i32 {
    i32::try_from(term).unwrap_or(i32::MAX)
}

/// The brokers that clients can be sent to.
pub(super) fn brokers(door: &Door) -> Vec<MetadataBroker> {
    let listed = |(broker, address): (BrokerId, String)| {
        Some(MetadataBroker {
            node_id: broker.0 as i32,
            host: host_of(&address).to_owned(),
            port: i32::from(port_of(&address)?),
            rack: None,
        })
    };
    door.broker.kafka_addresses().into_iter().filter_map(listed).collect()
}

fn controller_id(door: &Door) -> i32 {
    door.broker.controller().map_or(-1, |controller| controller.0 as i32)
}

/// Metadata.
pub(super) async fn metadata(door: &Arc<Door>, request: MetadataRequest, version: i16) -> Handled {
    door.broker.await_ready(READY_TIMEOUT).await;
    if let Some(why) = door.broker.joining() {
        return nothing_to_tell(&why);
    }
    let wanted = match request.topics {
        // In version 0 an empty list means all.
        Some(topics) if version > 0 || !topics.is_empty() => Some(topics),
        _ => None,
    };
    let (ask_cluster, ask_topics) =
        (request.include_cluster_authorized_operations, request.include_topic_authorized_operations);
    let names: Option<Vec<String>> =
        wanted.as_ref().map(|wanted| wanted.iter().filter_map(|topic| topic.name.clone()).collect());
    door.broker.await_leaders(names.as_deref(), LEADERS_TIMEOUT).await;
    let mut topics = Vec::new();
    match wanted {
        Some(wanted) => {
            // Named twice, described once: a topic may have very many partitions.
            let mut seen = BTreeSet::new();
            // A name counts for more than an id.
            let known_by = |topic: &MetadataTopicName| topic.name.clone().ok_or(topic.topic_id);
            let time = Time::of(AUTO_CREATE_TIMEOUT);
            let may_create = request.allow_auto_topic_creation && door.config.auto_create_topics;
            for topic in wanted.into_iter().filter(|topic| seen.insert(known_by(topic))) {
                topics.push(wanted_topic(door, topic, may_create.then_some(&time)).await);
            }
        }
        None => topics.extend(door.broker.topics().into_iter().map(Ok)),
    }
    let brokers = brokers(door);
    if brokers.is_empty() {
        return nothing_to_tell("it knows no broker");
    }
    let reachable = |id: i32| brokers.iter().any(|broker| broker.node_id == id);
    let topics = topics.into_iter().map(|topic| match topic {
        Ok(topic) => MetadataTopic {
            topic_authorized_operations: Allowed::Topic.bits(ask_topics),
            ..describe(&topic, reachable)
        },
        Err(missing) => missing,
    });
    let mut topics: Vec<MetadataTopic> = topics.collect();
    if version < NAMELESS_VERSION {
        for topic in &mut topics {
            topic.name.get_or_insert_default();
        }
    }
    let controller_id = controller_id(door);
    Response::Metadata(MetadataResponse {
        topics,
        // Clients send the controller's requests there; any broker takes them, so one that can be reached will do.
        controller_id: Some(controller_id).filter(|id| reachable(*id)).unwrap_or(door.broker.id().0 as i32),
        brokers,
        cluster_id: Some(door.broker.cluster_id()),
        cluster_authorized_operations: Allowed::Cluster.bits(ask_cluster),
        ..Default::default()
    })
    .into()
}

fn nothing_to_tell(why: &str) -> Handled {
    Handled::Close(format!("this broker does not know the cluster yet: {why}"))
}

/// One topic that was asked for, created in this time if it may be; `Err` is what to say if it is not there.
async fn wanted_topic(
    door: &Arc<Door>,
    wanted: MetadataTopicName,
    creation: Option<&Time>,
) -> Result<TopicDescription, MetadataTopic> {
    let missing = |code: ErrorCode, name: Option<String>| MetadataTopic {
        error_code: code.number(),
        name,
        topic_id: wanted.topic_id,
        ..Default::default()
    };
    let Some(name) = wanted.name else {
        return door.broker.topic_by_id(wanted.topic_id.0).map_err(|error| match error.code {
            Code::UnknownTopic => missing(ErrorCode::UnknownTopicId, None),
            _ => missing(ErrorCode::LeaderNotAvailable, None),
        });
    };
    let found = match door.broker.topic(&name) {
        Err(error) if error.code == Code::UnknownTopic => match (check_name(&name), creation) {
            // Producers wait for a topic that is not there, and are told at once of one that never will be.
            (Err(illegal), _) => Err(illegal),
            (Ok(()), Some(time)) => match time.left() {
                Ok(left) => auto_create(door, &name, left).await,
                Err(over) => Err(over),
            },
            (Ok(()), None) => Err(error),
        },
        found => found,
    };
    found.map_err(|error| match error.code {
        // Not now: the client asks again.
        Code::NotReady | Code::NoLeader | Code::OutcomeUnknown | Code::NotEnoughReplicas => {
            missing(ErrorCode::LeaderNotAvailable, Some(name))
        }
        _ => missing(ErrorCode::from(&error), Some(name)),
    })
}

async fn auto_create(door: &Arc<Door>, name: &str, timeout: Duration) -> Result<TopicDescription, Error> {
    if name == OFFSETS_TOPIC {
        return door.broker.ensure_offsets_topic(timeout).await;
    }
    let spec = TopicSpec {
        name: name.to_owned(),
        partitions: door.config.num_partitions,
        replicas: None,
        assignment: None,
        config: BTreeMap::new(),
    };
    match door.broker.create_topic(spec, timeout).await {
        // Somebody else was quicker.
        Err(error) if error.code == Code::TopicExists => door.broker.topic(name),
        created => {
            if created.is_ok() {
                info!(topic = name, "a client's asking for a topic has created it");
            }
            created
        }
    }
}

fn describe(topic: &TopicDescription, reachable: impl Fn(i32) -> bool) -> MetadataTopic {
    let ids = |brokers: &[pontoon_raft::types::BrokerId]| brokers.iter().map(|broker| broker.0 as i32).collect();
    let partitions = topic.partitions.iter().map(|partition| {
        let leader = partition.leader.map(|leader| leader.0 as i32).filter(|leader| reachable(*leader));
        let replicas: Vec<i32> = ids(&partition.replicas);
        MetadataPartition {
            error_code: if leader.is_some() { ErrorCode::None } else { ErrorCode::LeaderNotAvailable }.number(),
            partition_index: partition.partition as i32,
            leader_id: leader.unwrap_or(-1),
            leader_epoch: leader.map_or(-1, |_| epoch(partition.leader_epoch)),
            isr_nodes: ids(&partition.in_sync),
            offline_replicas: replicas.iter().copied().filter(|replica| !reachable(*replica)).collect(),
            replica_nodes: replicas,
        }
    });
    MetadataTopic {
        name: Some(topic.name.clone()),
        topic_id: topic_uuid(topic),
        is_internal: topic.name == OFFSETS_TOPIC,
        partitions: partitions.collect(),
        ..Default::default()
    }
}

/// DescribeCluster.
pub(super) async fn describe_cluster(door: &Door, request: DescribeClusterRequest) -> Handled {
    const BROKERS: i8 = 1;
    if request.endpoint_type != BROKERS {
        return Response::DescribeCluster(DescribeClusterResponse {
            error_code: ErrorCode::InvalidRequest.number(),
            error_message: Some("there are no controllers apart from brokers".to_owned()),
            endpoint_type: request.endpoint_type,
            ..Default::default()
        })
        .into();
    }
    door.broker.await_ready(READY_TIMEOUT).await;
    if let Some(why) = door.broker.joining() {
        return nothing_to_tell(&why);
    }
    let brokers = brokers(door);
    if brokers.is_empty() {
        return nothing_to_tell("it knows no broker");
    }
    let broker = |broker: MetadataBroker| DescribedBroker {
        broker_id: broker.node_id,
        host: broker.host,
        port: broker.port,
        rack: None,
        is_fenced: false,
    };
    Response::DescribeCluster(DescribeClusterResponse {
        cluster_id: door.broker.cluster_id(),
        controller_id: controller_id(door),
        brokers: brokers.into_iter().map(broker).collect(),
        cluster_authorized_operations: Allowed::Cluster.bits(request.include_cluster_authorized_operations),
        ..Default::default()
    })
    .into()
}
