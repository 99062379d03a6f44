//! A cluster in one process for tests: started, crashed, wiped, restarted, produced to and read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use pontoon_raft::error::OpenError;
use pontoon_raft::transport::testing::MemoryNetwork;
use pontoon_raft::types::{BrokerId, Offset};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::broker::start::Seams;
use crate::broker::{Broker, Route, StartError, TopicDescription, TopicSpec};
use crate::catalog::state::CatalogState;
use crate::config::Config;
use crate::controller::CATALOG_GROUP;
use crate::error::{Code, Error, Result};
use crate::partition::{Acks, Consistency, Fetch, FetchFrom, Produced};
use crate::record_batch::{BatchLimits, NewRecord, ProducerSequence, RecordBatch, RecordBatchBuilder};

/// Longest that anything may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A port that is free now, below those that the kernel gives to outgoing connections.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let seed = (std::process::id() as u16).wrapping_mul(97);
    loop {
        let port = 21_000 + seed.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Brokers, their directories and ports.
pub(super) struct Cluster {
    initial: Vec<u32>,
    pub(super) directories: BTreeMap<u32, TempDir>,
    ports: BTreeMap<u32, u16>,
    pub(super) brokers: BTreeMap<u32, Arc<Broker>>,
    /// `producer.id.expiration.ms`, where it is to come about soon.
    pub(super) producer_id_expiration: Option<Duration>,
    /// In place of the loopback, with hosts of the brokers' numbers.
    wires: Option<MemoryNetwork>,
}

impl Cluster {
    /// Directories and ports for these initial brokers; none runs yet.
    pub(super) fn of(initial: &[u32]) -> Self {
        // For looking into a failure: `PONTOON_LOG=pontoon=debug,pontoon_raft=debug`.
        let filter = tracing_subscriber::EnvFilter::try_from_env("PONTOON_LOG");
        if let Ok(filter) = filter {
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        }
        let mut cluster = Self {
            initial: initial.to_vec(),
            directories: BTreeMap::new(),
            ports: BTreeMap::new(),
            brokers: BTreeMap::new(),
            producer_id_expiration: None,
            wires: None,
        };
        initial.iter().for_each(|id| cluster.add(*id));
        cluster
    }

    /// One more that every broker started from now on finds in its `bootstrap`.
    pub(super) fn promise(&mut self, id: u32) {
        self.initial.push(id);
        self.add(id);
    }

    /// A directory and a port for a broker.
    pub(super) fn add(&mut self, id: u32) {
        self.directories.insert(id, tempfile::tempdir().unwrap());
        self.ports.insert(id, free_port());
    }

    /// Three running brokers that are ready.
    pub(super) async fn started() -> Self {
        Self::of(&[1, 2, 3]).all_started().await
    }

    /// Three running brokers that are ready, on wires that a test can cut. Nobody is held dead for a silence that a test makes.
    pub(super) async fn wired() -> (Self, MemoryNetwork) {
        let mut cluster = Self::of(&[1, 2, 3]);
        let wires = cluster.wires.insert(MemoryNetwork::new()).clone();
        (cluster.all_started().await, wires)
    }

    pub(super) async fn all_started(mut self) -> Self {
        let cluster = &mut self;
        for id in [1, 2, 3] {
            cluster.start(id).await;
        }
        cluster.await_ready().await;
        self
    }

    /// Who leads the catalog, as broker 1 knows.
    pub(super) async fn controller(&self) -> u32 {
        let mut known = None;
        eventually("a controller", || {
            known = self.broker(1).shared.known_controller();
            known.as_ref().map(|_| ()).ok_or("nobody leads the catalog")
        })
        .await;
        known.unwrap().0.0
    }

    pub(super) fn config(&self, id: u32) -> Config {
        let address = |id: &u32| format!("127.0.0.1:{}", self.ports[id]);
        let mut config = Config::new(BrokerId(id), self.directories[&id].path().to_owned());
        config.bootstrap = self.initial.iter().map(|id| (BrokerId(*id), address(id))).collect();
        config.peer.listen = address(&id);
        config.raft.journal_file_bytes = 1 << 20;
        config.raft.segment_bytes_max = 1 << 20;
        config.raft.reserve_produce_bytes = 0;
        config.raft.reserve_append_bytes = 0;
        if self.wires.is_some() {
            config.raft.silence_max = PATIENCE;
        }
        if let Some(expiration) = self.producer_id_expiration {
            config.producer_id_expiration = expiration;
            config.retention_check_interval = Duration::from_millis(50);
        }
        // Records of tests are of 1970.
        config.log.insert("retention.ms".into(), "-1".into());
        config
    }

    pub(super) async fn try_start(&mut self, id: u32) -> Result<(), StartError> {
        let http = format!("127.0.0.1:{}", 40_000 + id);
        let config = self.config(id);
        let mut seams = Seams::real(&config).unwrap();
        if let Some(wires) = &self.wires {
            seams.network = wires.host(&id.to_string());
        }
        let broker = Broker::start_with(config, http, seams).await?;
        self.brokers.insert(id, broker);
        Ok(())
    }

    /// Starts a broker; one that crashed a moment ago may hold its directory for another.
    pub(super) async fn start(&mut self, id: u32) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.try_start(id).await {
                Ok(()) => return,
                Err(StartError::Open(OpenError::InUse(_)) | StartError::Listen { .. }) if Instant::now() < deadline => {
                    sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("broker {id}: {error}"),
            }
        }
    }

    /// Ends a broker as kill -9 would: connections close, nothing is handed over or closed.
    pub(super) async fn crash(&mut self, id: u32) {
        self.brokers.remove(&id).unwrap().crash().await;
    }

    /// Ends a broker cleanly.
    pub(super) async fn stop(&mut self, id: u32) {
        self.brokers.remove(&id).unwrap().shutdown(Duration::from_secs(10)).await;
    }

    /// Replaces a stopped broker's directory by an empty one.
    pub(super) fn wipe(&mut self, id: u32) {
        assert!(!self.brokers.contains_key(&id));
        self.directories.insert(id, tempfile::tempdir().unwrap());
    }

    pub(super) fn broker(&self, id: u32) -> &Arc<Broker> {
        &self.brokers[&id]
    }

    /// Waits until every running broker is ready.
    pub(super) async fn await_ready(&self) {
        for (id, broker) in &self.brokers {
            let what = format!("broker {id} to be ready");
            eventually(&what, || broker.ready().map_err(|why| why.to_string())).await;
        }
    }

    /// Waits until every running broker's catalog shows what is expected.
    pub(super) async fn await_catalog(&self, what: &str, mut check: impl FnMut(&CatalogState) -> bool) {
        for broker in self.brokers.values() {
            eventually(what, || {
                let state = broker.shared.catalog.state();
                if check(&state) { Ok(()) } else { Err(format!("broker {}: {state:?}", broker.id())) }
            })
            .await;
        }
    }

    /// Waits until group 0 has exactly these voters and no other member, by brokers, all of them on their present replicas.
    pub(super) async fn await_catalog_voters(&self, expected: &[u32]) {
        let expected: BTreeSet<_> = expected.iter().copied().map(BrokerId).collect();
        for broker in self.brokers.values() {
            eventually("the catalog's voters", || {
                let group = broker.shared.groups.get(CATALOG_GROUP).ok_or("no catalog")?;
                let status = group.status();
                let state = broker.shared.catalog.state();
                let current = |replica| state.brokers().values().any(|known| known.catalog_replica == replica);
                let voters: BTreeSet<_> = status.members.values().filter(|m| m.voter).map(|m| m.broker).collect();
                let sound = status.members.keys().all(|replica| current(*replica)) && !status.joint;
                if voters == expected && sound { Ok(()) } else { Err(format!("{status:?}")) }
            })
            .await;
        }
    }

    pub(super) async fn create(&self, at: u32, name: &str, partitions: u32, replicas: u32) -> TopicDescription {
        let spec = TopicSpec {
            name: name.to_owned(),
            partitions,
            replicas: Some(replicas),
            assignment: None,
            config: BTreeMap::new(),
        };
        self.broker(at).create_topic(spec, PATIENCE).await.unwrap()
    }

    /// Waits until all brokers describe every partition of a topic with a leader and this many replicas in sync.
    pub(super) async fn await_in_sync(&self, topic: &str, replicas: usize) {
        for broker in self.brokers.values() {
            eventually("replicas in sync", || {
                let described = broker.topic(topic).map_err(|error| error.to_string())?;
                let sound = |p: &super::super::PartitionDescription| p.leader.is_some() && p.in_sync.len() == replicas;
                let all = described.partitions.iter().all(sound);
                if all { Ok(()) } else { Err(format!("at {}: {described:?}", broker.id())) }
            })
            .await;
        }
    }

    /// Waits until every partition is led by its first replica.
    pub(super) async fn await_preferred_leaders(&self, topic: &str) {
        for broker in self.brokers.values() {
            eventually("preferred leaders", || {
                let described = broker.topic(topic).map_err(|error| error.to_string())?;
                let all = described.partitions.iter().all(|p| p.leader == p.replicas.first().copied());
                if all { Ok(()) } else { Err(format!("at {}: {described:?}", broker.id())) }
            })
            .await;
        }
    }

    /// Does something at the leader of a partition, asked of broker `at`, again if the leader has just changed.
    async fn at_leader<T>(
        &self,
        at: u32,
        (topic, partition): (&str, u32),
        mut work: impl AsyncFnMut(Arc<crate::partition::Partition>) -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let here = self.broker(at).route_wait(topic, partition, PATIENCE).await?;
            let local = match here {
                Route::Local(partition) => Ok(partition),
                Route::Remote { broker, .. } => match self.brokers.get(&broker.0).map(|b| b.route(topic, partition)) {
                    Some(Ok(Route::Local(partition))) => Ok(partition),
                    _ => Err(Error::new(Code::NotLeader, "moved")),
                },
            };
            let done = match local {
                Ok(partition) => work(partition).await,
                Err(error) => Err(error),
            };
            match done {
                Err(error) if error.code.status() == 503 && Instant::now() < deadline => {
                    sleep(Duration::from_millis(10)).await;
                }
                done => return done,
            }
        }
    }

    /// Produces one record, acknowledged by a majority; returns its offset.
    pub(super) async fn produce(&self, at: u32, place: (&str, u32), value: &str) -> Result<Offset> {
        let produced = self.send(at, place, || batch(value)).await?;
        Ok(produced.base_offset)
    }

    /// Produces a batch, made anew for each attempt, acknowledged by a majority.
    pub(super) async fn send(&self, at: u32, place: (&str, u32), batch: impl Fn() -> RecordBatch) -> Result<Produced> {
        self.at_leader(at, place, async |partition| partition.produce(batch(), Acks::All, None, PATIENCE).await).await
    }

    /// Everything in a partition, by its leader, up to an end that is certain.
    pub(super) async fn read(&self, at: u32, place: (&str, u32)) -> Vec<String> {
        let mut values = Vec::new();
        let mut next = Offset(0);
        loop {
            let fetch = Fetch {
                from: FetchFrom::Offset(next),
                bytes_max: 1 << 20,
                wait: Duration::ZERO,
                consistency: Consistency::Linearizable,
            };
            let fetched = self.at_leader(at, place, async |partition| partition.fetch(fetch).await).await.unwrap();
            for batch in fetched.batches {
                for record in RecordBatch::stored(batch).unwrap().records(1 << 20).unwrap() {
                    values.push(String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap());
                }
            }
            next = fetched.next_offset;
            if next >= fetched.high_watermark {
                return values;
            }
        }
    }
}

/// A batch of one record.
pub(super) fn batch(value: &str) -> RecordBatch {
    batch_by(value, None)
}

/// A batch of one record, by a producer.
pub(super) fn batch_by(value: &str, producer: Option<ProducerSequence>) -> RecordBatch {
    let mut builder = RecordBatchBuilder::new(BatchLimits::default());
    let record = NewRecord { value: Some(value.to_owned().into()), ..Default::default() };
    builder.push(&record).unwrap();
    builder.build(producer).unwrap()
}

/// Waits until `check` is content; panics with its last complaint.
pub(super) async fn eventually<E: std::fmt::Display>(what: &str, mut check: impl FnMut() -> Result<(), E>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match check() {
            Ok(()) => return,
            Err(why) if Instant::now() > deadline => panic!("waited in vain for {what}: {why}"),
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}
