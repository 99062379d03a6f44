//! The controller: what the leader of the catalog does for the cluster.
//!
//! It answers the brokers' requests ([`requests`]) by proposing commands, places new replicas ([`placement`]), has lost
//! ones replaced ([`repair`]) and keeps group 0's membership ([`voters`]); [`upkeep`] is when. Every broker has one; it acts only while its
//! broker leads group 0, and since each command is checked where it is applied, two that both believe to lead do no harm.
//!
//! It never touches a replica: brokers do what the catalog says ([`crate::broker`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use pontoon_raft::codec;
use pontoon_raft::error::ProposeError;
use pontoon_raft::raft_group::RaftGroup;
use pontoon_raft::raft_groups::RaftGroups;
use pontoon_raft::runtime::random_u64;
use pontoon_raft::transport::Liveness;
use pontoon_raft::types::{BrokerId, DirectoryId, GroupId, Outcome, ReplicaId};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::catalog::Catalog;
use crate::catalog::command::{
    BrokerRegistration, Command, CommandError, CommandResult, Done, NewPartition, Placement,
};
use crate::catalog::names::check_topic_name;
use crate::catalog::state::{CatalogState, PartitionRecord, TopicId};
use crate::catalog::{command, topic_config};
use crate::error::Code;

pub mod placement;
pub mod repair;
pub mod requests;
mod upkeep;
pub mod voters;

use requests::{ANSWER_WITHIN, ControlAnswer, ControlError, ControlRequest};

/// The catalog's group.
pub const CATALOG_GROUP: GroupId = GroupId(0);
/// How often a command that was stale is computed anew before the asker is told to come again.
const STALE_RETRIES: u32 = 10;
/// How long a request waits for its turn: less than its asker waits for the answer, so that nothing is begun for nobody.
const TURN_WITHIN: Duration = Duration::from_secs(4);

/// A process that answers somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub broker: BrokerId,
    /// Its data directory.
    pub directory: DirectoryId,
    /// Which process.
    pub incarnation: u64,
}

/// Asks whoever listens at a peer address which process it is.
pub type Probe = Arc<dyn Fn(String) -> BoxFuture<'static, Option<Process>> + Send + Sync>;

/// Whether a broker's replica of a group has all of it, by what the group's leader said last.
pub type Level = Arc<dyn Fn(GroupId, BrokerId) -> bool + Send + Sync>;

/// This broker's controller.
pub struct Controller {
    broker: BrokerId,
    groups: RaftGroups,
    catalog: Arc<Catalog>,
    probe: Probe,
    level: Level,
    /// The term in which the catalog's copy here was last seen to hold all that was decided before it.
    caught_up_in: AtomicU64,
    /// One command at a time that draws ids, others would only be stale, or that says what became of replicas: a repair must know.
    serial: Semaphore,
}

type Answer = Result<ControlAnswer, ControlError>;

/// Where new partitions go.
#[derive(Clone, Copy)]
enum Placing<'a> {
    /// Wherever there is least.
    Anywhere { partitions: u32, replicas: u32 },
    /// On these brokers, the preferred leader first.
    On(&'a [Vec<BrokerId>]),
}

impl Placing<'_> {
    fn partitions(self) -> u32 {
        match self {
            Self::Anywhere { partitions, .. } => partitions,
            Self::On(assignment) => u32::try_from(assignment.len()).unwrap_or(u32::MAX),
        }
    }
}

/// New partitions on these brokers, under ids that nobody has had.
fn numbered(state: &CatalogState, chosen: Vec<Vec<BrokerId>>) -> Vec<NewPartition> {
    let brokers = state.brokers();
    let (mut group, mut replica) = (state.next_group().0, state.next_replica().0);
    let mut placed = Vec::with_capacity(chosen.len());
    for on in chosen {
        let mut replicas = Vec::with_capacity(on.len());
        for broker in on {
            let directory = brokers.get(&broker).map(|known| known.directory).unwrap_or_default();
            replicas.push(Placement { broker, directory, replica: ReplicaId(replica) });
            replica += 1;
        }
        placed.push(NewPartition { group: GroupId(group), replicas });
        group += 1;
    }
    placed
}

impl Controller {
    /// A controller over this broker's replica of group 0, whichever that is at a time.
    pub fn new(broker: BrokerId, groups: RaftGroups, catalog: Arc<Catalog>, probe: Probe, level: Level) -> Arc<Self> {
        Arc::new(Self {
            broker,
            groups,
            catalog,
            probe,
            level,
            caught_up_in: AtomicU64::new(0),
            serial: Semaphore::new(1),
        })
    }

    /// Answers one request, if this broker leads the catalog.
    pub async fn handle(&self, request: ControlRequest) -> Answer {
        let group = self.leading_caught_up().await?;
        match request {
            ControlRequest::Admit { broker, directory } => self.admit(&group, broker, directory).await,
            ControlRequest::Register(registration) => self.register(&group, registration).await,
            ControlRequest::CreateTopic { topic, name, partitions, replicas, config } => {
                self.create_topic(&group, topic, name, Placing::Anywhere { partitions, replicas }, config).await
            }
            ControlRequest::CreateTopicOn { topic, name, assignment, config } => {
                self.create_topic(&group, topic, name, Placing::On(&assignment), config).await
            }
            ControlRequest::GrowTopicOn { topic, partitions_before, assignment } => {
                self.grow_topic(&group, topic, partitions_before, &assignment).await
            }
            ControlRequest::AlterTopic { topic, partitions, config } => {
                self.alter_topic(&group, topic, partitions, config).await
            }
            ControlRequest::DeleteTopic { topic } => self.execute(&group, &Command::DeleteTopic { topic }).await,
            ControlRequest::Report(report) => self.execute_in_turn(&group, &Command::Report(report)).await,
            ControlRequest::ProducerIds { count } => {
                let count = count.clamp(1, 1_000_000);
                self.execute(&group, &Command::AllocateProducerIds { count }).await
            }
            ControlRequest::Sync => self.sync(&group).await,
        }
    }

    /// Group 0, if this broker leads it.
    fn leading(&self) -> Result<RaftGroup, ControlError> {
        let group = self.groups.get(CATALOG_GROUP).ok_or(ControlError::NotController { controller: None })?;
        let status = group.status();
        if status.leading && status.stopped.is_none() {
            return Ok(group);
        }
        Err(self.not_controller(status.leader.map(|leader| leader.broker)))
    }

    /// The same, once what its predecessors did is applied here: it leads as soon as that is committed, and would decide by what was before.
    async fn leading_caught_up(&self) -> Result<RaftGroup, ControlError> {
        let group = self.leading()?;
        let term = group.status().term;
        if self.caught_up_in.load(Ordering::Acquire) != term {
            group.read_index().await.map_err(|_| self.not_controller(None))?;
            self.caught_up_in.store(term, Ordering::Release);
        }
        Ok(group)
    }

    fn not_controller(&self, leader: Option<BrokerId>) -> ControlError {
        let state = self.catalog.state();
        let known = leader.filter(|leader| *leader != self.broker).and_then(|leader| state.brokers().get(&leader));
        ControlError::NotController { controller: known.map(|known| (known.broker, known.peer_address.clone())) }
    }

    async fn admit(&self, group: &RaftGroup, broker: BrokerId, directory: DirectoryId) -> Answer {
        group.read_index().await.map_err(|error| self.propose_error(error))?;
        self.refuse_impostor(broker, directory).await?;
        match self.catalog.state().cluster() {
            Some(cluster) => Ok(ControlAnswer::Admitted(cluster)),
            None => Err(ControlError::NotController { controller: None }),
        }
    }

    async fn register(&self, group: &RaftGroup, new: BrokerRegistration) -> Answer {
        let known = |state: &CatalogState| state.brokers().get(&new.broker).cloned();
        let before = known(&self.catalog.state());
        self.refuse_impostor(new.broker, new.directory).await?;
        self.refuse_copy(&new).await?;
        self.execute_fresh(group, |state| {
            let now = known(state);
            // Whoever asks here may have gone since, and its request been long on its way: it must not take the place of who came then.
            if now != before && now.as_ref() != Some(&new) {
                let message = format!("another process has registered as broker {} meanwhile", new.broker);
                return Err(ControlError::refused(Code::NotReady, message));
            }
            Ok(Some(Command::RegisterBroker(new.clone())))
        })
        .await
    }

    /// Refuses a broker that comes with another directory while the one it had is still running: two processes were
    /// given one number, and each would take the other's replicas for lost.
    async fn refuse_impostor(&self, broker: BrokerId, directory: DirectoryId) -> Result<(), ControlError> {
        let state = self.catalog.state();
        let Some(known) = state.brokers().get(&broker).filter(|known| known.directory != directory) else {
            return Ok(());
        };
        let answers = (self.probe)(known.peer_address.clone()).await;
        if answers.is_none_or(|process| (process.broker, process.directory) != (broker, known.directory)) {
            return Ok(());
        }
        let message = format!(
            "broker {broker} is running at {} with data directory {:032x}; another process must not use its number",
            known.peer_address, known.directory.0
        );
        Err(ControlError::refused(Code::InvalidRequest, message))
    }

    /// Refuses a process whose directory is the copy of one that another process uses: the two would vote and acknowledge as one
    /// replica, each without what the other knows.
    async fn refuse_copy(&self, by: &BrokerRegistration) -> Result<(), ControlError> {
        let (broker, directory) = (by.broker, by.directory);
        let state = self.catalog.state();
        let it = |known: &&BrokerRegistration| known.directory == directory && known.incarnation != by.incarnation;
        let Some(known) = state.brokers().get(&broker).filter(it) else { return Ok(()) };
        let other = match broker == self.broker {
            true => self.groups.transport().incarnation() != by.incarnation,
            false => {
                let answers = (self.probe)(known.peer_address.clone()).await;
                let same = |process: &Process| (process.broker, process.directory) == (broker, directory);
                answers.filter(same).is_some_and(|process| process.incarnation != by.incarnation)
            }
        };
        if !other {
            return Ok(());
        }
        Err(ControlError::CopiedDirectory(format!(
            "broker {broker} is running at {} with data directory {:032x}: this one is a copy of it, and must not be used",
            known.peer_address, directory.0
        )))
    }

    async fn sync(&self, group: &RaftGroup) -> Answer {
        group.read_index().await.map_err(|error| self.propose_error(error))?;
        Ok(ControlAnswer::Done { index: self.applied_index() })
    }

    fn applied_index(&self) -> u64 {
        self.catalog.state().applied.map_or(0, |applied| applied.1)
    }

    async fn create_topic(
        &self,
        group: &RaftGroup,
        topic: TopicId,
        name: String,
        placing: Placing<'_>,
        config: BTreeMap<String, String>,
    ) -> Answer {
        check_topic_name(&name).map_err(|why| ControlError::refused(Code::InvalidTopicName, why))?;
        for (key, value) in &config {
            topic_config::check(key, value).map_err(|why| ControlError::refused(Code::InvalidConfig, why))?;
        }
        check_partitions(placing.partitions())?;
        let build = |state: &CatalogState| {
            let partitions = self.new_partitions(state, placing)?;
            Ok(Some(Command::CreateTopic { topic, name: name.clone(), config: config.clone(), partitions }))
        };
        match self.execute_fresh(group, build).await {
            // Asked again after an answer that was lost on the way.
            Err(error) if self.catalog.state().topics().contains_key(&topic) => {
                tracing::debug!(%error, name, "the topic was created by an earlier request");
                Ok(ControlAnswer::Done { index: self.applied_index() })
            }
            answer => answer,
        }
    }

    async fn alter_topic(
        &self,
        group: &RaftGroup,
        topic: TopicId,
        partitions: Option<u32>,
        config: BTreeMap<String, Option<String>>,
    ) -> Answer {
        let build = |state: &CatalogState| {
            let unknown = || ControlError::refused(Code::UnknownTopic, format!("there is no topic {topic}"));
            let record = state.topics().get(&topic).ok_or_else(unknown)?;
            let before = record.partitions.len() as u32;
            let wanted = partitions.unwrap_or(before);
            if wanted < before {
                let why = format!("topic {:?} has {before} partitions; {wanted} would be fewer", record.name);
                return Err(ControlError::refused(Code::InvalidPartitions, why));
            }
            check_partitions(wanted)?;
            let replicas = record.partitions.first().map_or(1, |first| state.replicas_wanted(first));
            let partitions = match wanted - before {
                0 => Vec::new(),
                more => self.new_partitions(state, Placing::Anywhere { partitions: more, replicas })?,
            };
            Ok(Some(Command::AlterTopic { topic, config: config.clone(), partitions_before: before, partitions }))
        };
        self.execute_fresh(group, build).await
    }

    async fn grow_topic(
        &self,
        group: &RaftGroup,
        topic: TopicId,
        partitions_before: u32,
        assignment: &[Vec<BrokerId>],
    ) -> Answer {
        check_partitions(partitions_before.saturating_add(Placing::On(assignment).partitions()))?;
        let build = |state: &CatalogState| {
            let unknown = || ControlError::refused(Code::UnknownTopic, format!("there is no topic {topic}"));
            let record = state.topics().get(&topic).ok_or_else(unknown)?;
            let now = record.partitions.len() as u32;
            let added = record.partitions.get(partitions_before as usize..).unwrap_or_default();
            let on = |partition: &PartitionRecord| {
                partition.replicas.iter().map(|replica| replica.broker).collect::<Vec<_>>()
            };
            if !added.is_empty() && added.iter().map(|added| on(added)).eq(assignment.iter().cloned()) {
                return Ok(None); // By an earlier request, whose answer was lost on the way.
            }
            if now != partitions_before {
                let why = format!("topic {:?} has {now} partitions, not {partitions_before}", record.name);
                return Err(ControlError::refused(Code::InvalidPartitions, why));
            }
            let replicas = record.partitions.first().map_or(1, |first| first.replicas.len());
            if let Some(other) = assignment.iter().find(|brokers| brokers.len() != replicas) {
                let why =
                    format!("topic {:?} has {replicas} replicas of each partition, not {}", record.name, other.len());
                return Err(ControlError::refused(Code::InvalidAssignment, why));
            }
            let partitions = self.new_partitions(state, Placing::On(assignment))?;
            Ok(Some(Command::AlterTopic { topic, config: BTreeMap::new(), partitions_before, partitions }))
        };
        self.execute_fresh(group, build).await
    }

    /// Places new partitions on brokers that are alive, under fresh ids.
    fn new_partitions(&self, state: &CatalogState, placing: Placing<'_>) -> Result<Vec<NewPartition>, ControlError> {
        let brokers = state.brokers();
        let alive: Vec<_> = brokers.keys().copied().filter(|broker| self.alive(*broker)).collect();
        match placing {
            Placing::Anywhere { partitions, replicas } => {
                Self::check_replicas(replicas, brokers.len() as u32, alive.len() as u32)?;
                let loads = placement::loads(state, alive.into_iter());
                Ok(numbered(state, placement::place(loads, partitions, replicas, state.next_group().0)))
            }
            Placing::On(assignment) => {
                placement::check(assignment, &alive)
                    .map_err(|why| ControlError::refused(Code::InvalidAssignment, why))?;
                Ok(numbered(state, assignment.to_vec()))
            }
        }
    }

    fn check_replicas(replicas: u32, brokers: u32, alive: u32) -> Result<(), ControlError> {
        let (most, max) = (brokers, command::REPLICAS_MAX);
        if replicas == 0 || replicas > max || replicas > most {
            let why =
                format!("{replicas} replicas asked for; the cluster has {most} brokers (1 to {max} are possible)");
            return Err(ControlError::refused(Code::InvalidReplicationFactor, why));
        }
        if alive < replicas {
            let why = format!("{replicas} replicas asked for; {alive} of {most} brokers are alive");
            return Err(ControlError::refused(Code::NotEnoughReplicas, why));
        }
        Ok(())
    }

    fn alive(&self, broker: BrokerId) -> bool {
        broker == self.broker || self.groups.transport().liveness(broker) == Liveness::Alive
    }

    /// Whether the process that is alive is the one that the catalog knows: another one may have another disk.
    pub(crate) fn is_here(&self, broker: BrokerId) -> bool {
        let registered = self.catalog.state().brokers().get(&broker).map(|known| known.incarnation);
        let heard = self.groups.transport().peer_status(broker).and_then(|peer| peer.incarnation);
        self.alive(broker) && (broker == self.broker || registered.is_some_and(|known| heard == Some(known)))
    }

    /// Waits for its turn. Nothing was done if that does not come in time.
    pub(crate) async fn turn(&self) -> Result<SemaphorePermit<'_>, ControlError> {
        match timeout(TURN_WITHIN, self.serial.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(ControlError::NotController { controller: None }),
        }
    }

    /// Executes a command that draws ids, computed from the newest state, again if that has changed under way.
    async fn execute_fresh(
        &self,
        group: &RaftGroup,
        build: impl Fn(&CatalogState) -> Result<Option<Command>, ControlError>,
    ) -> Answer {
        let _turn = self.turn().await?;
        for _ in 0..STALE_RETRIES {
            let Some(command) = build(&self.catalog.state())? else {
                return Ok(ControlAnswer::Done { index: self.applied_index() });
            };
            match self.propose(group, &command).await? {
                (Err(CommandError::Stale(why)), _) => tracing::debug!(why, "a command was stale"),
                (result, index) => return answer(result, index),
            }
        }
        Err(ControlError::Unknown("the catalog keeps changing".to_owned()))
    }

    async fn execute(&self, group: &RaftGroup, command: &Command) -> Answer {
        let (result, index) = self.propose(group, command).await?;
        answer(result, index)
    }

    async fn execute_in_turn(&self, group: &RaftGroup, command: &Command) -> Answer {
        let _turn = self.turn().await?;
        self.execute(group, command).await
    }

    /// Proposes a command and waits until it is applied here, but not for ever: a leader without a majority leads on for a while,
    /// and others wait for their turn.
    async fn propose(&self, group: &RaftGroup, command: &Command) -> Result<(CommandResult, u64), ControlError> {
        let proposed = timeout(ANSWER_WITHIN, group.propose(command.encode().into(), None)).await;
        let proposed = proposed.map_err(|_| ControlError::Unknown("the change is not committed yet".to_owned()))?;
        let appended = proposed.map_err(|error| self.propose_error(error))?;
        let Outcome::Records { response, .. } = appended.outcome else {
            return Err(ControlError::Unknown("the command has no answer".to_owned()));
        };
        match codec::decode::<CommandResult>(&response) {
            Ok(result) => Ok((result, appended.index)),
            Err(error) => Err(ControlError::Unknown(format!("the command's answer: {error}"))),
        }
    }

    fn propose_error(&self, error: ProposeError) -> ControlError {
        match error {
            ProposeError::NotLeader { leader } => self.not_controller(leader.map(|(_, broker)| broker)),
            ProposeError::Stopped { .. } => ControlError::NotController { controller: None },
            ProposeError::Unknown(why) => ControlError::Unknown(why),
        }
    }
}

fn check_partitions(partitions: u32) -> Result<(), ControlError> {
    let max = command::PARTITIONS_MAX;
    match partitions {
        0 => Err(ControlError::refused(Code::InvalidPartitions, "a topic has at least one partition, not 0")),
        many if many > max => Err(ControlError::refused(
            Code::InvalidPartitions,
            format!("a topic has at most {max} partitions, not {many}"),
        )),
        _ => Ok(()),
    }
}

/// A command's result as the asker sees it.
fn answer(result: CommandResult, index: u64) -> Answer {
    let error = match result {
        Ok(Done::ProducerIds { first, count }) => return Ok(ControlAnswer::ProducerIds { first, count }),
        Ok(Done::Changed | Done::Unchanged) => return Ok(ControlAnswer::Done { index }),
        Err(error) => error,
    };
    let code = match &error {
        CommandError::TopicExists(_) => Code::TopicExists,
        CommandError::NameCollision { .. } => Code::TopicNameCollision,
        CommandError::InvalidName(_) => Code::InvalidTopicName,
        CommandError::InvalidConfig(_) => Code::InvalidConfig,
        CommandError::InvalidPartitions(_) => Code::InvalidPartitions,
        CommandError::UnknownTopic(_) => Code::UnknownTopic,
        CommandError::BrokerRefused { .. } | CommandError::ForeignCluster { .. } | CommandError::FeatureLevel(_) => {
            Code::InvalidRequest
        }
        CommandError::Stale(_) => return Err(ControlError::Unknown(error.to_string())),
        CommandError::Malformed(_) => Code::Internal,
    };
    Err(ControlError::refused(code, error.to_string()))
}

impl Controller {
    /// A seed for choices that need not be the same everywhere.
    pub fn random_topic_id() -> TopicId {
        TopicId(u128::from(random_u64()) << 64 | u128::from(random_u64()))
    }
}
