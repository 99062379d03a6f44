//! Recovery from one survivor, offline: what a stopped directory holds of its cluster, and making that the cluster.
//!
//! [`Survey`] opens the directory as a start does, and looks. [`Survey::carry_out`] then takes three steps, each of which may be
//! repeated: the directory's cluster gets another id (from here on no broker of the former cluster is let in, or lets this one
//! in); replicas that the catalog here has never heard of are put aside; and group 0 becomes this broker's alone, with the command
//! [`Command::Recover`] behind that, in one write. That write is the recovery: before it nothing has happened that would matter,
//! after it everything follows by itself at the next start, when each partition's replica here becomes its whole group
//! (`lifecycle`), and new replicas are placed as brokers come ([`crate::controller::repair`]).
//!
//! What the others had and this directory lacks is lost. It cannot be known here, so it is not guessed; a person decides.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pontoon_raft::config::RaftConfig;
use pontoon_raft::data_dir::Identity;
use pontoon_raft::disk::real::RealDisk;
use pontoon_raft::error::{OpenError, Stopped};
use pontoon_raft::log::frame::FrameKind;
use pontoon_raft::payload::Application;
use pontoon_raft::runtime::random_u64;
use pontoon_raft::store::{ApplicationFactory, Replica, Store, StoreOptions};
use pontoon_raft::survivor::Survivor;
use pontoon_raft::transport::handshake::Turned;
use pontoon_raft::transport::net::TcpNetwork;
use pontoon_raft::transport::{CallError, Transport, TransportIdentity};
use pontoon_raft::types::{BrokerId, ClusterId, GroupId, Offset, ReplicaId, repr};
use serde::Serialize;

use super::peer::{self, Hello, PeerAnswer, PeerRequest, Peers};
use crate::catalog::command::{BrokerRegistration, Command, Recovery};
use crate::catalog::state::{CatalogState, PartitionRecord, ReplicaRecord};
use crate::catalog::tables::MemoryTables;
use crate::catalog::{Catalog, apply, snapshot};
use crate::controller::CATALOG_GROUP;
use crate::partition::PartitionApplication;

/// Bytes of the catalog's log that are read at a time.
const READ_BYTES: usize = 1 << 20;
/// How long a broker that should be gone may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Why there is no recovery from this directory.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// There is no data directory at this place.
    #[error("there is no data directory at {0}")]
    Missing(String),
    /// It does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It stopped under way. What had been done stays; to begin again is safe.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// It cannot be a survivor.
    #[error("{0}")]
    Refused(String),
}

fn refused(why: impl Into<String>) -> RecoverError {
    RecoverError::Refused(why.into())
}

/// A stopped data directory, opened to be looked at and perhaps recovered from.
pub struct Survey {
    store: Arc<Store>,
    identity: Identity,
    /// The catalog at the end of its log here.
    state: CatalogState,
    /// The replica of group 0.
    catalog: Survivor,
    replicas: BTreeMap<GroupId, Vec<Survivor>>,
}

/// What a recovery would do, and what it was found to mean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecoverPlan {
    /// The survivor.
    pub broker: BrokerId,
    /// The cluster as it is called until then, 32 hexadecimal digits.
    pub cluster_id: String,
    /// Whether an earlier recovery was begun and did not get to its end.
    pub interrupted: bool,
    /// Entries of the catalog's log that were not known here to be committed. They are kept.
    pub catalog_uncommitted: u64,
    /// Who is given up.
    pub brokers_given_up: Vec<GivenUp>,
    /// Every partition there is.
    pub partitions: Vec<PartitionPlan>,
    /// Replicas in the directory that the catalog here has never heard of. They are put aside, and kept for a person.
    pub unknown_replicas: Vec<String>,
    /// Nothing would change: there is nobody to give up.
    pub needless: bool,
}

/// A broker that is given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GivenUp {
    /// Its number.
    pub broker_id: BrokerId,
    /// Where brokers reached it.
    pub peer_address: String,
}

/// What becomes of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It goes on from the replica here.
    Kept,
    /// Nothing of it is here: it begins anew, empty.
    Emptied,
    /// Nothing of it is here: it stays without a leader until its topic is deleted.
    Lost,
}

/// A partition in a [`RecoverPlan`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartitionPlan {
    /// The topic's name.
    pub topic: String,
    /// The partition's number.
    pub partition: u32,
    /// What becomes of it.
    pub fate: Fate,
    /// The brokers that had a replica.
    pub replicas: Vec<BrokerId>,
    /// What the replica here has; `None` if there is none, or none that can be used.
    pub here: Option<Here>,
}

/// What the replica here has of its partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Here {
    /// Oldest readable offset.
    pub log_start_offset: Offset,
    /// One past the last record that was known here to be committed; the rest may never have been acknowledged. `None`: not known.
    pub committed_offset: Option<Offset>,
    /// One past the last record: whatever was acknowledged beyond is lost.
    pub log_end_offset: Offset,
    /// Term of the last entry. Of several survivors the one with the larger term, then index, has more.
    pub last_term: u64,
    /// Index of the last entry.
    pub last_index: u64,
    /// What is known to be rotten in it.
    pub rotten: Vec<String>,
    /// Whether it voted: one that did not was still being filled.
    pub voted: bool,
}

impl Survey {
    /// Opens the directory as a start of its broker would, and reads the catalog. `Refused` if its copy of the catalog cannot be
    /// read: another survivor must be chosen.
    pub async fn open(path: &Path) -> Result<Survey, RecoverError> {
        let disk = Arc::new(RealDisk::new().map_err(|error| OpenError::Io { path: path.to_owned(), error })?);
        let identity = match Identity::read(&*disk, path).await {
            Err(OpenError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RecoverError::Missing(path.display().to_string()));
            }
            read => read?,
        };
        let config = RaftConfig { scrub_bytes_per_second: 0, ..RaftConfig::default() };
        let (path, broker) = (path.to_owned(), identity.broker);
        let store = Store::open(StoreOptions { disk, path, broker, config, applications: applications() }).await?;
        match Self::look(&store, identity).await {
            Ok(survey) => Ok(survey),
            Err(error) => {
                store.close().await?;
                Err(error)
            }
        }
    }

    async fn look(store: &Arc<Store>, identity: Identity) -> Result<Survey, RecoverError> {
        let mut replicas: BTreeMap<GroupId, Vec<Survivor>> = BTreeMap::new();
        for survivor in store.survey().await {
            replicas.entry(survivor.group).or_default().push(survivor);
        }
        let unreadable = |why: String| refused(format!("the catalog in this directory cannot be read: {why}"));
        let catalog = match replicas.remove(&CATALOG_GROUP).as_deref() {
            Some([one]) => one.clone(),
            Some(several) => return Err(unreadable(format!("there are {} replicas of it", several.len()))),
            None => {
                let corrupt = store.corrupt().into_iter().find(|corrupt| corrupt.group == CATALOG_GROUP);
                return Err(unreadable(corrupt.map_or("it is not there".to_owned(), |corrupt| corrupt.why)));
            }
        };
        let found = store.replicas().into_iter().find(|replica| replica.group == CATALOG_GROUP);
        let found = found.ok_or_else(|| unreadable("it is not there".to_owned()))?;
        let state = catalog_at_its_end(&found).await.map_err(unreadable)?;
        Ok(Survey { store: store.clone(), identity, state, catalog, replicas })
    }

    /// What a recovery would do. With `empty_lost` partitions of which nothing is here begin anew; otherwise they stay lost.
    pub fn plan(&self, empty_lost: bool) -> Result<RecoverPlan, RecoverError> {
        let recovery = self.recovery(empty_lost)?;
        let mut after = self.state.clone();
        // The same as will be applied: what it refuses must not be ordered.
        apply::execute(&mut after, &Command::Recover(recovery)).0.map_err(|error| refused(error.to_string()))?;
        let mut partitions = Vec::new();
        for topic in self.state.topics().values() {
            for (number, partition) in (0u32..).zip(&topic.partitions) {
                let here = self.usable(partition);
                let anew = after.partition(partition.group).is_some_and(|partition| !partition.initialised);
                let fate = match (here, anew) {
                    (Some(_), _) => Fate::Kept,
                    (None, true) => Fate::Emptied,
                    (None, false) => Fate::Lost,
                };
                let replicas = partition.replicas.iter().map(|record| record.broker).collect();
                let (topic, here) = (topic.name.clone(), here.map(|(_, survivor)| Here::from(survivor)));
                partitions.push(PartitionPlan { topic, partition: number, fate, replicas, here });
            }
        }
        partitions.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        let given_up = |known: &&BrokerRegistration| known.broker != self.identity.broker;
        let brokers_given_up = self.state.brokers().values().filter(given_up);
        let brokers_given_up: Vec<_> = brokers_given_up
            .map(|known| GivenUp { broker_id: known.broker, peer_address: known.peer_address.clone() })
            .collect();
        let name = |(group, replica): (GroupId, ReplicaId)| format!("replica {replica} of group {group}");
        Ok(RecoverPlan {
            broker: self.identity.broker,
            cluster_id: format!("{:032x}", self.state.cluster().map_or(0, |cluster| cluster.0)),
            interrupted: self.state.cluster() != Some(self.identity.cluster),
            catalog_uncommitted: self
                .catalog
                .last
                .map_or(0, |(_, last)| last.saturating_sub(self.catalog.committed.unwrap_or(0))),
            needless: self.is_needless(&brokers_given_up, &partitions),
            brokers_given_up,
            partitions,
            unknown_replicas: self.unknown().into_iter().map(name).collect(),
        })
    }

    fn is_needless(&self, given_up: &[GivenUp], partitions: &[PartitionPlan]) -> bool {
        let alone = self.catalog.voters.keys().eq([&self.catalog.replica]);
        let kept = |partition: &PartitionPlan| match partition.fate {
            Fate::Kept => partition.replicas.len() == 1,
            Fate::Lost => true,
            Fate::Emptied => false,
        };
        alone && given_up.is_empty() && partitions.iter().all(kept)
    }

    /// The brokers that would be given up and still answer as brokers of this cluster, and what was found there. While one does,
    /// the cluster may be alive.
    pub async fn who_answers(&self) -> Result<Vec<String>, RecoverError> {
        let identity = TransportIdentity { broker: self.identity.broker, cluster: self.state.cluster() };
        let (network, service) = (Arc::new(TcpNetwork), Arc::new(Peers::default()));
        let transport = Transport::start(network, "127.0.0.1:0", identity, RaftConfig::default(), service).await;
        let transport = transport.map_err(|error| refused(format!("cannot ask the other brokers: {error}")))?;
        let mut found = Vec::new();
        for known in self.state.brokers().values().filter(|known| known.broker != self.identity.broker) {
            let request = PeerRequest::Hello(self.hello());
            let answer = peer::call_address(&transport, &known.peer_address, &request, ANSWER_WAIT).await;
            let place = format!("broker {} at {}", known.broker, known.peer_address);
            found.extend(may_live(&place, self.state.cluster(), &answer));
        }
        transport.shutdown().await;
        Ok(found)
    }

    fn hello(&self) -> Hello {
        Hello {
            broker: self.identity.broker,
            directory: self.identity.directory,
            cluster: self.state.cluster(),
            peer_address: String::new(),
            bootstrap: Vec::new(),
            controller: None,
        }
    }

    /// Makes this directory the cluster. Returns the cluster's new id. What was done when an error ends it does no harm, and is
    /// taken up when it is begun again.
    pub async fn carry_out(&self, empty_lost: bool) -> Result<ClusterId, RecoverError> {
        let recovery = self.recovery(empty_lost)?;
        let cluster = recovery.cluster;
        let command = Command::Recover(recovery);
        apply::execute(&mut self.state.clone(), &command).0.map_err(|error| refused(error.to_string()))?;
        self.store.rename_cluster(cluster).await?;
        for (group, replica) in self.unknown() {
            self.store.set_aside(group, replica).await?;
        }
        let then = Some(command.encode().into());
        self.store.become_only_voter(CATALOG_GROUP, self.catalog.replica, self.identity.broker, then).await?;
        Ok(cluster)
    }

    /// Closes the directory.
    pub async fn close(self) -> Result<(), RecoverError> {
        Ok(self.store.close().await?)
    }

    fn recovery(&self, empty_lost: bool) -> Result<Recovery, RecoverError> {
        let former = self.state.cluster().ok_or_else(|| refused("this directory was never part of a cluster"))?;
        let Identity { cluster, broker, directory, former: known, .. } = &self.identity;
        let (broker, directory) = (*broker, *directory);
        let cluster = if *cluster == former {
            ClusterId((u128::from(random_u64()) << 64 | u128::from(random_u64())).max(1))
        } else if known.last() == Some(&former) {
            *cluster // An earlier attempt came so far.
        } else {
            let why = format!("the directory is of cluster {:032x}, its catalog of {:032x}", cluster.0, former.0);
            return Err(refused(why));
        };
        let partitions = self.state.topics().values().flat_map(|topic| &topic.partitions);
        let mine = partitions.flat_map(|partition| partition.replicas.iter().map(move |record| (partition, record)));
        let mine = mine.filter(|(_, record)| (record.broker, record.directory) == (broker, directory));
        let unusable = mine.filter(|(partition, record)| self.has(partition.group, record.replica).is_none());
        let unusable = unusable.map(|(_, record)| record.replica).collect();
        Ok(Recovery { cluster, broker, directory, unusable, empty_lost })
    }

    /// A replica that is here and holds something.
    fn has(&self, group: GroupId, replica: ReplicaId) -> Option<&Survivor> {
        let found = self.replicas.get(&group)?.iter().find(|survivor| survivor.replica == replica);
        found.filter(|survivor| survivor.last.is_some())
    }

    fn usable(&self, partition: &PartitionRecord) -> Option<(ReplicaId, &Survivor)> {
        let place = (self.identity.broker, self.identity.directory);
        let mine = |record: &&ReplicaRecord| (record.broker, record.directory) == place;
        let record = partition.replicas.iter().find(mine)?;
        Some((record.replica, self.has(partition.group, record.replica)?))
    }

    /// Replicas here under ids that this catalog has not given out yet: the brokers that are gone had a newer one.
    fn unknown(&self) -> Vec<(GroupId, ReplicaId)> {
        let all = self.replicas.values().flatten().map(|survivor| (survivor.group, survivor.replica));
        all.filter(|(_, replica)| *replica >= self.state.next_replica()).collect()
    }
}

/// Whether this answer of what was a broker of the cluster means that it may live as one, and what was found then.
fn may_live(place: &str, cluster: Option<ClusterId>, answer: &Result<PeerAnswer, CallError>) -> Option<String> {
    let foreign = [Turned::ForeignCluster, Turned::Superseded].map(|turned| turned.to_string());
    match answer {
        Ok(PeerAnswer::Hello(hello)) if hello.cluster == cluster => Some(format!("{place} answers")),
        Ok(PeerAnswer::Hello(_)) | Err(CallError::Unreachable(..)) => None,
        Err(CallError::Refused(_, why)) if foreign.iter().any(|foreign| why.contains(foreign)) => None,
        // It lives, and is of this cluster, or it would have said that it is not: perhaps it is just starting.
        Ok(PeerAnswer::Control(_) | PeerAnswer::Taken) | Err(CallError::NoAnswer(..) | CallError::Refused(..)) => {
            Some(format!("{place} may live: something is there that does not say who it is"))
        }
    }
}

impl From<&Survivor> for Here {
    fn from(survivor: &Survivor) -> Self {
        let (last_term, last_index) = survivor.last.unwrap_or_default();
        let rot = |rot: &pontoon_raft::log::Rot| format!("{} at {}: {}", rot.file.display(), rot.position, rot.why);
        Self {
            log_start_offset: survivor.log_start_offset,
            committed_offset: survivor.committed_offset,
            log_end_offset: survivor.log_end_offset,
            last_term,
            last_index,
            rotten: survivor.rot.iter().map(rot).collect(),
            voted: survivor.voters.contains_key(&survivor.replica),
        }
    }
}

/// The directory's own tables are left alone: they are a cache, and this reads what they are made from.
fn applications() -> ApplicationFactory {
    let catalog = Catalog::new(Arc::new(MemoryTables::default()));
    Arc::new(move |group, replica| -> Arc<dyn Application> {
        match group {
            CATALOG_GROUP => catalog.application(replica),
            _ => Arc::new(PartitionApplication),
        }
    })
}

/// The catalog with everything that stands in its log here, committed or not.
async fn catalog_at_its_end(replica: &Replica) -> Result<CatalogState, String> {
    let snapshot = replica.applied_snapshot().await.map_err(|error| error.to_string())?;
    let mut state = match snapshot {
        Some((last, bytes)) => snapshot::decode(Some(repr::LogId::from(last)), &bytes)?,
        None => CatalogState::default(),
    };
    let end = replica.log.last_log_id().map_or(0, |last| last.index + 1);
    let mut next = state.applied.map_or(0, |applied| applied.1 + 1);
    while next < end {
        let frames = replica.log.frames(next, end, READ_BYTES).await.map_err(|error| error.to_string())?;
        if frames.is_empty() {
            return Err(format!("entry {next} is not in its log"));
        }
        for frame in frames {
            let header = &frame.header;
            if header.kind == FrameKind::Records {
                let unknown =
                    |level| format!("the cluster has feature level {level}, which this version does not know");
                let (result, _) = apply::execute_bytes(&mut state, &frame.payload).map_err(unknown)?;
                if let Err(error) = result {
                    tracing::debug!(%error, index = header.index, "a command that was refused");
                }
            }
            state.applied = Some(repr::LogId(header.term, header.index));
            next = header.index + 1;
        }
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use pontoon_raft::types::DirectoryId;

    use super::*;

    #[test]
    fn a_broker_that_is_just_starting_counts_as_one_that_may_live() {
        let (cluster, somebody) = (Some(ClusterId(7)), BrokerId(u32::MAX));
        let lives = |answer| may_live("broker 2 at h:7", cluster, &answer).is_some();
        let hello = |cluster| {
            Ok(PeerAnswer::Hello(Hello {
                broker: BrokerId(2),
                directory: DirectoryId(2),
                cluster,
                peer_address: String::new(),
                bootstrap: Vec::new(),
                controller: None,
            }))
        };
        let refused = |why: &str| Err(CallError::Refused(somebody, why.to_owned()));
        assert!(lives(hello(cluster)) && !lives(hello(Some(ClusterId(8)))) && !lives(hello(None)));
        assert!(lives(refused("the broker is starting or stopping")) && lives(refused("turned away: busy")));
        assert!(lives(Err(CallError::NoAnswer(somebody, "no answer".into()))));
        for turned in [Turned::ForeignCluster, Turned::Superseded] {
            assert!(!lives(refused(&format!("turned away: {turned}"))));
        }
        assert!(!lives(Err(CallError::Unreachable(somebody, "connection refused".into()))));
    }
}
