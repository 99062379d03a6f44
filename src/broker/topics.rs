//! Topics and producers as clients ask for them: created, changed, deleted, found. What they look like is `describe`'s.

use std::collections::BTreeMap;
use std::time::Duration;

use pontoon_raft::types::BrokerId;
use tokio::time::{Instant, timeout_at};

use super::routing::Hosted;
use super::shared::{Progress, Shared};
use super::{Route, TopicDescription, TopicShape, TopicSpec};
use crate::catalog::command::PARTITIONS_MAX;
use crate::catalog::names::{TOPIC_NAME_CHARS_MAX, check_topic_name};
use crate::catalog::state::{CatalogState, PartitionRecord, ReplicaRecord, TopicId, TopicRecord};
use crate::catalog::topic_config;
use crate::controller::requests::{ControlAnswer, ControlRequest};
use crate::controller::{Controller, placement};
use crate::error::{Code, Error, Result, WriteOutcome};

/// Producer ids that a broker takes at a time.
const PRODUCER_IDS: u32 = 1000;
/// Between two looks at the leaders of very many partitions.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// How long a new topic waits for brokers that are not heard of, and how often it asks.
const ALIVE_PATIENCE: Duration = Duration::from_secs(3);
const ALIVE_CHECK: Duration = Duration::from_millis(100);
/// Replicas of a topic that asks for no number.
const REPLICAS_DEFAULT: usize = 3;

/// The producer ids this broker may still give out.
#[derive(Debug, Default)]
pub(super) struct ProducerIds {
    next: i64,
    left: u32,
}

impl ProducerIds {
    fn take(&mut self) -> Option<i64> {
        self.left = self.left.checked_sub(1)?;
        let id = self.next;
        self.next += 1;
        Some(id)
    }
}

impl Shared {
    /// `NOT_READY` unless the catalog's copy here is at least as new as this process: an older one does not know what
    /// there is.
    pub(super) fn check_registered(&self) -> Result<()> {
        match &*self.progress.borrow() {
            Progress::Registered | Progress::Ready => Ok(()),
            Progress::Stopping { .. } => Err(Error::new(Code::NotReady, "the broker is stopping")),
            Progress::Joining(why) => Err(Error::new(Code::NotReady, why.clone())),
        }
    }

    /// As [`Self::check_registered`], for those who only look: a broker that is stopping knows what it knew, and clients come to it until
    /// its door is closed.
    pub(super) fn check_known(&self) -> Result<()> {
        match &*self.progress.borrow() {
            Progress::Stopping { known: true } => Ok(()),
            _ => self.check_registered(),
        }
    }

    pub(super) async fn create_topic(&self, spec: TopicSpec, timeout: Duration) -> Result<TopicDescription> {
        let deadline = Instant::now() + timeout;
        self.check_registered()?;
        check_names(&spec)?;
        let topic = Controller::random_topic_id();
        let (name, config) = (spec.name.clone(), spec.config);
        let request = match spec.assignment {
            Some(assignment) => ControlRequest::CreateTopicOn { topic, name, assignment, config },
            None => {
                let replicas = spec.replicas.unwrap_or_else(|| self.default_replicas());
                self.await_promised_brokers(replicas, deadline).await?;
                ControlRequest::CreateTopic { topic, name, partitions: spec.partitions, replicas, config }
            }
        };
        self.create_when_alive(request, deadline).await?;
        self.describe_led(topic, &spec.name, 0, deadline).await
    }

    /// Describes a topic that was created or changed, once its partitions from this one on have leaders, or the time is over.
    async fn describe_led(&self, topic: TopicId, name: &str, from: u32, deadline: Instant) -> Result<TopicDescription> {
        let mut version = self.routing.watch();
        loop {
            version.mark_unchanged();
            let state = self.catalog.state();
            let Some(record) = state.topics().get(&topic) else {
                // Deleted by somebody else meanwhile. What was asked for was done all the same.
                return Err(unknown_topic(name).with_outcome(WriteOutcome::Unknown));
            };
            let led = (from..record.partitions.len() as u32).all(|number| self.route(name, number).is_ok());
            if led || timeout_at(deadline, version.changed()).await.is_err() {
                return Ok(self.describe(record));
            }
        }
    }

    pub(super) fn check_topic(&self, spec: &TopicSpec) -> Result<()> {
        self.check_registered()?;
        check_names(spec)?;
        let state = self.catalog.state();
        if let Some(existing) = state.colliding_topic(&spec.name) {
            let code = if existing.name == spec.name { Code::TopicExists } else { Code::TopicNameCollision };
            return Err(Error::new(code, format!("topic {:?} exists", existing.name)));
        }
        if let Some(assignment) = &spec.assignment {
            return self.check_assignment(assignment);
        }
        let brokers = state.brokers().len();
        if spec.replicas.is_some_and(|replicas| replicas == 0 || replicas as usize > brokers) {
            let why = format!("{} replicas asked for; there are {brokers} brokers", spec.replicas.unwrap_or_default());
            return Err(Error::new(Code::InvalidReplicationFactor, why));
        }
        if !(1..=PARTITIONS_MAX).contains(&spec.partitions) {
            let why = format!("a topic has 1 to {PARTITIONS_MAX} partitions, not {}", spec.partitions);
            return Err(Error::new(Code::InvalidPartitions, why));
        }
        Ok(())
    }

    /// As many as there are brokers, but at most [`REPLICAS_DEFAULT`]. Brokers that the configuration promises count even
    /// before they have joined: a topic must not be weaker because it was created early.
    pub(super) fn default_replicas(&self) -> u32 {
        let brokers = self.catalog.state().brokers().len().max(self.config.bootstrap.len());
        brokers.clamp(1, REPLICAS_DEFAULT) as u32
    }

    /// Waits for brokers that the configuration promises and that a topic with this many replicas needs: in a cluster's first
    /// second not all of them have joined. What nobody promised is for the controller to refuse.
    async fn await_promised_brokers(&self, replicas: u32, deadline: Instant) -> Result<()> {
        let promised = self.config.bootstrap.len();
        if replicas as usize > promised {
            return Ok(());
        }
        let mut catalog = self.catalog.watch();
        let joined = catalog.wait_for(|state| state.brokers().len() >= replicas as usize);
        match timeout_at(deadline, joined).await {
            Ok(_) => Ok(()),
            Err(_) => {
                let joined = self.catalog.state().brokers().len();
                let why = format!(
                    "{replicas} replicas need {replicas} brokers; {joined} of {promised} in `bootstrap` have joined"
                );
                Err(Error::new(Code::NotEnoughReplicas, why))
            }
        }
    }

    /// The controller may not have heard of a broker that has only just joined: it is asked again for a moment. Nothing was done
    /// when it says so.
    async fn create_when_alive(&self, request: ControlRequest, deadline: Instant) -> Result<()> {
        let patience = deadline.min(Instant::now() + ALIVE_PATIENCE);
        loop {
            match self.change(request.clone(), deadline).await {
                Err(error) if error.code == Code::NotEnoughReplicas && Instant::now() < patience => {
                    tokio::time::sleep(ALIVE_CHECK).await;
                }
                Err(error) => return Err(error),
                Ok(index) => return self.await_shown(index, deadline).await,
            }
        }
    }

    pub(super) async fn alter_topic(
        &self,
        name: &str,
        partitions: Option<u32>,
        config: BTreeMap<String, Option<String>>,
        timeout: Duration,
    ) -> Result<TopicDescription> {
        let deadline = Instant::now() + timeout;
        let topic = self.find_topic_of_now(name, deadline).await?;
        check_changes(&config)?;
        let before = self.catalog.state().topics().get(&topic).map_or(0, |record| record.partitions.len() as u32);
        let index = self.change(ControlRequest::AlterTopic { topic, partitions, config }, deadline).await?;
        self.await_shown(index, deadline).await?;
        self.describe_led(topic, name, before, deadline).await
    }

    pub(super) async fn grow_topic(
        &self,
        name: &str,
        partitions_before: u32,
        assignment: Vec<Vec<BrokerId>>,
        timeout: Duration,
    ) -> Result<TopicDescription> {
        let deadline = Instant::now() + timeout;
        let topic = self.find_topic_of_now(name, deadline).await?;
        let grow = ControlRequest::GrowTopicOn { topic, partitions_before, assignment };
        let index = self.change(grow, deadline).await?;
        self.await_shown(index, deadline).await?;
        self.describe_led(topic, name, partitions_before, deadline).await
    }

    pub(super) fn check_assignment(&self, assignment: &[Vec<BrokerId>]) -> Result<()> {
        let state = self.catalog.state();
        let alive: Vec<_> = state.brokers().keys().copied().filter(|broker| self.alive(*broker)).collect();
        placement::check(assignment, &alive).map_err(|why| Error::new(Code::InvalidAssignment, why))?;
        match assignment.len() {
            1.. if assignment.len() <= PARTITIONS_MAX as usize => Ok(()),
            many => {
                let why = format!("a topic has 1 to {PARTITIONS_MAX} partitions, not {many}");
                Err(Error::new(Code::InvalidPartitions, why))
            }
        }
    }

    pub(super) async fn delete_topic(&self, name: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let topic = self.find_topic_of_now(name, deadline).await?;
        self.delete_found(topic, deadline).await
    }

    /// Deletes a topic that was there a moment ago.
    async fn delete_found(&self, topic: TopicId, deadline: Instant) -> Result<()> {
        match self.change(ControlRequest::DeleteTopic { topic }, deadline).await {
            Ok(index) => {
                // It is gone whether this broker's copy shows that in time or not.
                self.await_catalog(index, deadline).await;
                Ok(())
            }
            // An earlier attempt did it, or somebody else: this topic is gone.
            Err(error) if error.code == Code::UnknownTopic => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// [`Self::delete_topic`], of this topic and of no other that may have its name by now. Returns the name.
    pub(super) async fn delete_topic_by_id(&self, topic_id: u128, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        let name = match self.topic_name(topic_id) {
            Err(error) if error.code == Code::UnknownTopic => {
                self.catch_up(deadline).await?;
                self.topic_name(topic_id)?
            }
            other => other?,
        };
        super::check_not_internal(&name)?;
        self.delete_found(TopicId(topic_id), deadline).await?;
        Ok(name)
    }

    /// The topic of this name, asking the controller how far the catalog is before saying that there is none.
    async fn find_topic(&self, name: &str, deadline: Instant) -> Result<TopicId> {
        self.check_known()?;
        if self.catalog.state().topic(name).is_none() {
            self.catch_up(deadline).await?;
        }
        self.catalog.state().topic(name).map(|topic| topic.id).ok_or_else(|| unknown_topic(name))
    }

    /// The topic that has this name now, for whoever changes it: the one that had it when the copy here was made may have been deleted, and
    /// another created, by somebody who has been told so.
    async fn find_topic_of_now(&self, name: &str, deadline: Instant) -> Result<TopicId> {
        self.check_registered()?;
        self.catch_up(deadline).await?;
        self.catalog.state().topic(name).map(|topic| topic.id).ok_or_else(|| unknown_topic(name))
    }

    /// Brings the catalog's copy here to where the controller's is now.
    pub(super) async fn catch_up(&self, deadline: Instant) -> Result<()> {
        let limit = deadline.saturating_duration_since(Instant::now());
        if let ControlAnswer::Done { index } = self.control(ControlRequest::Sync, limit).await?
            && !self.await_catalog(index, deadline).await
        {
            // What is not in it may yet be there.
            return Err(Error::new(Code::NotReady, "this broker's copy of the catalog is behind"));
        }
        Ok(())
    }

    /// Has the controller change something. Returns where that stands in the catalog's log: see [`Self::await_shown`].
    async fn change(&self, request: ControlRequest, deadline: Instant) -> Result<u64> {
        let limit = deadline.saturating_duration_since(Instant::now());
        match self.control(request, limit).await? {
            ControlAnswer::Done { index } => Ok(index),
            other => {
                Err(Error::new(Code::OutcomeUnknown, format!("the controller answered another question: {other:?}")))
            }
        }
    }

    /// Waits until a change shows here. `OUTCOME_UNKNOWN` if it does not in time: without it this broker cannot say what became of the
    /// change, which others may have changed again.
    pub(super) async fn await_shown(&self, index: u64, deadline: Instant) -> Result<()> {
        match self.await_catalog(index, deadline).await {
            true => Ok(()),
            false => {
                let why = "it is done, and this broker's copy of the catalog is behind and does not show it yet";
                Err(Error::new(Code::OutcomeUnknown, why))
            }
        }
    }

    /// See [`super::Broker::route`]. A broker that is stopping knows who leads what it has handed over; what it leads yet is to be
    /// asked for elsewhere in a moment, and written to by nobody while it is handed over.
    pub(super) fn route(&self, topic: &str, partition: u32) -> Result<Route> {
        self.check_known()?;
        let state = self.catalog.state();
        let record = state.topic(topic).ok_or_else(|| unknown_topic(topic))?;
        let Some(found) = record.partitions.get(partition as usize) else {
            let why = format!(
                "topic {topic:?} has {} partitions; there is no partition {partition}",
                record.partitions.len()
            );
            return Err(Error::new(Code::UnknownPartition, why));
        };
        let no_leader = || self.no_leader(&state, topic, partition, found);
        // Before the catalog knows that the group was initialised it may still be made anew, records and all.
        if !found.initialised {
            return Err(no_leader());
        }
        // Nor does a replica from before that lead it, which may be here a moment longer.
        let current = |hosted: &Hosted| hosted.leads() && found.knows(hosted.group.replica());
        if let Some(hosted) = self.routing.hosted(found.group).filter(current) {
            self.check_registered()?;
            return Ok(Route::Local(hosted.partition));
        }
        let (leader, _) = self.leader(found).filter(|(leader, _)| *leader != self.broker).ok_or_else(no_leader)?;
        let http_address = state.brokers().get(&leader).map(|broker| broker.http_address.clone());
        Ok(Route::Remote { broker: leader, http_address: http_address.ok_or_else(no_leader)? })
    }

    /// Whether one will be elected at once, or what is missing for that.
    fn no_leader(&self, state: &CatalogState, topic: &str, number: u32, partition: &PartitionRecord) -> Error {
        let (all, lost) = (partition.replicas.len(), self.lost(state, partition));
        let votes = |replica: &&ReplicaRecord| self.alive(replica.broker) && !lost.contains(&replica.broker);
        let able = partition.replicas.iter().filter(votes).count();
        let why = match able * 2 > all {
            true => "at the moment".to_owned(),
            false => format!("and none can be elected: {able} of {all} replicas can vote (`pontoon status` says why)"),
        };
        Error::new(Code::NoLeader, format!("{topic}/{number} has no leader {why}"))
    }

    /// Who leads a partition, and in which term: what its group here says, else what was claimed last. Nobody, if that
    /// broker is dead.
    pub(super) fn leader(&self, partition: &PartitionRecord) -> Option<(BrokerId, u64)> {
        let here = self.routing.hosted(partition.group).and_then(|hosted| *hosted.leader.borrow());
        let here = here.map(|leader| (leader.broker, leader.term));
        let claimed = self.routing.claim(partition.group).map(|claim| (claim.broker, claim.epoch));
        let newest = [here, claimed].into_iter().flatten().max_by_key(|(_, epoch)| *epoch);
        newest.filter(|(leader, _)| self.alive(*leader))
    }

    /// Waits until each partition of these topics (or of all) that somebody is about to lead is led: where no leader was heard of yet,
    /// though there are replicas to elect one (it was just created, or handed over). Or until the time is over.
    pub(super) async fn await_leaders(&self, topics: Option<&[String]>, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut version = self.routing.watch();
        loop {
            version.mark_unchanged();
            let state = self.catalog.state();
            let waits = match topics {
                Some(names) => names.iter().filter_map(|name| state.topic(name)).any(|topic| self.lacks_leaders(topic)),
                None => state.topics().values().any(|topic| self.lacks_leaders(topic)),
            };
            if !waits || timeout_at(deadline, version.changed()).await.is_err() {
                return;
            }
            // While thousands are elected the news come one by one, and each look is at all of them.
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Whether somebody is about to lead a partition of the topic.
    fn lacks_leaders(&self, topic: &TopicRecord) -> bool {
        topic.partitions.iter().any(|partition| {
            let unheard_of = self.leader(partition).is_none() && self.routing.claim(partition.group).is_none();
            let alive = partition.replicas.iter().filter(|replica| self.alive(replica.broker)).count();
            unheard_of && alive * 2 > partition.replicas.len()
        })
    }

    pub(super) async fn route_wait(&self, topic: &str, partition: u32, timeout: Duration) -> Result<Route> {
        let deadline = Instant::now() + timeout;
        let (mut version, mut progress) = (self.routing.watch(), self.progress.subscribe());
        let mut caught_up = false;
        loop {
            version.mark_unchanged();
            progress.mark_unchanged();
            let error = match self.route(topic, partition) {
                Ok(route) => return Ok(route),
                Err(error) => error,
            };
            match error.code {
                // This copy of the catalog may be a moment behind the one that created it.
                Code::UnknownTopic | Code::UnknownPartition if !caught_up => {
                    self.catch_up(deadline).await?;
                    caught_up = true;
                    continue;
                }
                Code::NoLeader | Code::NotReady if !self.stopping() => {}
                _ => return Err(error),
            }
            let changed = async {
                tokio::select! {
                    _ = version.changed() => {}
                    _ = progress.changed() => {}
                }
            };
            if timeout_at(deadline, changed).await.is_err() {
                return Err(error);
            }
        }
    }

    pub(super) async fn topic_shape(&self, name: &str, timeout: Duration) -> Result<TopicShape> {
        let topic = self.find_topic(name, Instant::now() + timeout).await?;
        let state = self.catalog.state();
        let record = state.topics().get(&topic).ok_or_else(|| unknown_topic(name))?;
        let partitions = record.partitions.len() as u32;
        Ok(TopicShape { topic_id: topic.0, partitions, limits: self.batch_limits(record) })
    }

    pub(super) async fn create_producer(&self, timeout: Duration) -> Result<(i64, i16)> {
        let deadline = Instant::now() + timeout;
        self.check_registered()?;
        loop {
            if let Some(id) = self.producers.lock().take() {
                return Ok((id, 0));
            }
            let time_out = || Error::new(Code::NotReady, "no producer ids within the time given");
            let turn = timeout_at(deadline, self.producers_turn.acquire()).await;
            let Ok(Ok(_turn)) = turn else { return Err(time_out()) };
            if self.producers.lock().left > 0 {
                continue; // Somebody else has fetched some meanwhile.
            }
            let limit = deadline.saturating_duration_since(Instant::now());
            match self.control(ControlRequest::ProducerIds { count: PRODUCER_IDS }, limit).await {
                Ok(ControlAnswer::ProducerIds { first, count }) => {
                    *self.producers.lock() = ProducerIds { next: first, left: count };
                }
                Ok(_) => return Err(time_out()),
                Err(error) => {
                    // Ids that were drawn for nothing are lost, not used twice: nothing has happened to a record.
                    return Err(Error::new(Code::NotReady, Error::from(error).message));
                }
            }
        }
    }
}

/// Checks keys and values of a change; `None` resets a key.
pub(super) fn check_changes(config: &BTreeMap<String, Option<String>>) -> Result<()> {
    for (key, value) in config {
        let check =
            value.as_ref().map_or_else(|| topic_config::check_key(key), |value| topic_config::check(key, value));
        check.map_err(|why| Error::new(Code::InvalidConfig, why))?;
    }
    Ok(())
}

/// Whether a topic of so many partitions can be grown to that many.
pub(super) fn check_growth(name: &str, has: usize, partitions: u32) -> Result<()> {
    if partitions as usize > has && partitions <= PARTITIONS_MAX {
        return Ok(());
    }
    let why = format!("topic {name:?} has {has} partitions and can have {PARTITIONS_MAX}, not {partitions}");
    Err(Error::new(Code::InvalidPartitions, why))
}

fn check_names(spec: &TopicSpec) -> Result<()> {
    check_name(&spec.name)?;
    for (key, value) in &spec.config {
        topic_config::check(key, value).map_err(|why| Error::new(Code::InvalidConfig, why))?;
    }
    Ok(())
}

/// `INVALID_TOPIC_NAME` if no topic can have this name.
pub fn check_name(name: &str) -> Result<()> {
    check_topic_name(name).map_err(|why| Error::new(Code::InvalidTopicName, why))
}

/// Of a name that is longer than any, the beginning.
pub(super) fn unknown_topic(name: &str) -> Error {
    let shown: String = name.chars().take(TOPIC_NAME_CHARS_MAX).collect();
    Error::new(Code::UnknownTopic, format!("there is no topic {shown:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Broker;
    use crate::config::Config;

    /// As if somebody had been faster than this broker, which describes what it has just created.
    #[tokio::test]
    async fn of_a_topic_that_is_deleted_before_it_is_described_nobody_says_that_nothing_was_done() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::new(BrokerId(1), directory.path().to_owned());
        config.peer.listen = "127.0.0.1:0".into();
        let broker = Broker::start(config, "127.0.0.1:1".into()).await.unwrap();
        let error = broker.shared.describe_led(TopicId(7), "t", 0, Instant::now()).await.unwrap_err();
        assert_eq!((error.code, error.outcome), (Code::UnknownTopic, WriteOutcome::Unknown));
        broker.shutdown(Duration::from_secs(10)).await;
    }

    #[test]
    fn a_block_of_producer_ids_gives_each_out_once() {
        let mut ids = ProducerIds { next: 7, left: 2 };
        assert_eq!([ids.take(), ids.take(), ids.take(), ids.take()], [Some(7), Some(8), None, None]);
    }
}
