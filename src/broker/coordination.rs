//! The broker's side of consumer groups: where their topic is, and that it is there. What groups are is
//! [`crate::coordinator`]'s.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::shared::Shared;
use super::{Broker, Route, TopicDescription, TopicSpec};
use crate::coordinator::{Coordinator, GroupSettings, Home, OFFSETS_TOPIC};
use crate::error::{Code, Error, Result};
use crate::partition::Partition;

/// What the coordinator sees of its broker.
struct Groups(Weak<Shared>);

impl Home for Groups {
    fn led(&self, partition: u32) -> Result<Arc<Partition>> {
        let shared = self.0.upgrade().ok_or_else(|| Error::new(Code::NotReady, "the broker is closed"))?;
        match shared.route(OFFSETS_TOPIC, partition)? {
            Route::Local(partition) => Ok(partition),
            Route::Remote { broker, .. } => {
                Err(Error::new(Code::NotLeader, format!("broker {broker} leads {OFFSETS_TOPIC}/{partition}")))
            }
        }
    }

    fn stopping(&self) -> bool {
        self.0.upgrade().is_none_or(|shared| shared.stopping())
    }

    fn partitions(&self) -> u32 {
        let shared = self.0.upgrade();
        let count = |shared: Arc<Shared>| Some(shared.catalog.state().topic(OFFSETS_TOPIC)?.partitions.len() as u32);
        shared.and_then(count).unwrap_or(0)
    }
}

/// `INTERNAL_TOPIC` if the topic is Pontoon's own: a client's record in it would be taken for a group's, another number of
/// partitions would send groups elsewhere, and retention would forget them.
pub fn check_not_internal(topic: &str) -> Result<()> {
    if topic == OFFSETS_TOPIC {
        let why = format!("topic {topic:?} holds the consumer groups: only the brokers change it");
        return Err(Error::new(Code::InternalTopic, why));
    }
    Ok(())
}

/// A coordinator for a broker.
pub(super) fn coordinator(shared: &Arc<Shared>) -> Coordinator {
    let (kafka, limits) = (&shared.config.kafka, &shared.config.limits);
    let settings = GroupSettings {
        offsets_retention: kafka.offsets_retention,
        expiry_interval: kafka.offsets_retention_check_interval,
        members_max: kafka.group_members_max,
        bytes_max: limits.groups_bytes_max,
    };
    Coordinator::new(Arc::new(Groups(Arc::downgrade(shared))), settings)
}

impl Broker {
    /// The consumer groups that this broker coordinates.
    pub fn groups(&self) -> &Coordinator {
        &self.coordinator
    }

    /// The partition that coordinates a group; `None`: the topic that holds the groups was never created, by the controller's word. A
    /// broker that has not heard of it must not say that nobody ever committed anything.
    pub async fn group_partition(&self, group: &str, timeout: Duration) -> Result<Option<u32>> {
        if let Some(partition) = self.groups().partition_of(group) {
            return Ok(Some(partition));
        }
        match self.topic_shape(OFFSETS_TOPIC, timeout).await {
            Ok(_) => Ok(self.groups().partition_of(group)),
            Err(error) if error.code == Code::UnknownTopic => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The topic that holds the groups, created if it is not there yet.
    pub async fn ensure_offsets_topic(&self, timeout: Duration) -> Result<TopicDescription> {
        match self.topic(OFFSETS_TOPIC) {
            Err(error) if error.code == Code::UnknownTopic => {}
            known => return known,
        }
        let spec = TopicSpec {
            name: OFFSETS_TOPIC.to_owned(),
            partitions: self.config().kafka.offsets_partitions,
            replicas: None,
            assignment: None,
            // The coordinators shorten it themselves, by what is overwritten and not by age.
            // And what they write is theirs, whatever the broker says of topics.
            config: BTreeMap::from(
                [
                    ("compression.type", "producer"),
                    ("retention.ms", "-1"),
                    ("retention.bytes", "-1"),
                    ("segment.bytes", "16777216"),
                ]
                .map(|(key, value)| (key.to_owned(), value.to_owned())),
            ),
        };
        match self.shared.create_topic(spec, timeout).await {
            // Another broker was quicker; its creation may not show here yet.
            Err(error) if error.code == Code::TopicExists => {
                self.route_wait(OFFSETS_TOPIC, 0, timeout).await?;
                self.topic(OFFSETS_TOPIC)
            }
            created => created,
        }
    }
}
