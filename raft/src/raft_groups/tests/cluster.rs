//! Three brokers in one process: real store, log, journal, transport and openraft, on a disk and a network in memory.
//! With paused time a test takes no time, and what it shows does not depend on the machine.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep, timeout};

use crate::codec;
use crate::config::RaftConfig;
use crate::disk::sim::SimDisk;
use crate::log::frame::{Frame, FrameHeader, FrameKind};
use crate::payload::{AppendPosition, AppendState, Application, Decision, SnapshotAt};
use crate::raft_group::{Leader, RaftGroup};
use crate::raft_groups::{Former, RaftGroups};
use crate::store::{ApplicationFactory, Store, StoreOptions};
use crate::testing::{test_log_start_at, test_moves_log_start};
use crate::transport::testing::MemoryNetwork;
use crate::transport::{Caller, PeerService, Transport, TransportIdentity};
use crate::types::{Appended, BrokerId, ClusterId, GroupId, LogId, Offset, Outcome, ReplicaHome, ReplicaId};

/// Takes every payload as one record; one that begins with `void` is turned down, one of `test_log_start` moves the log start.
pub(super) struct Records;

#[derive(Default)]
struct Counting {
    starts: Vec<(u64, u64)>,
}

impl AppendState for Counting {
    fn decide(&self, payload: Bytes, _at: AppendPosition) -> Decision {
        if payload.starts_with(b"void") {
            return Decision::Void { verdict: Bytes::from_static(b"turned down") };
        }
        if test_moves_log_start(&payload).is_some() {
            return Decision::Void { verdict: payload };
        }
        Decision::Accept { payload, offset_span: 1, record_count: 1, max_timestamp: -1 }
    }

    fn observe(&mut self, header: &FrameHeader, prefix: &[u8]) {
        if header.kind == FrameKind::Void
            && let Some(start) = test_moves_log_start(prefix)
        {
            self.starts.push((header.index, start));
        }
    }

    fn log_start(&self, upto: u64) -> u64 {
        test_log_start_at(&self.starts, upto)
    }

    fn save(&self) -> Bytes {
        codec::encode(&self.starts).into()
    }
}

impl Application for Records {
    fn append_state(&self, saved: Option<&[u8]>) -> io::Result<Box<dyn AppendState>> {
        let starts = saved.map_or_else(|| Ok(Vec::new()), codec::decode).map_err(io::Error::other)?;
        Ok(Box::new(Counting { starts }))
    }

    fn observe_prefix_bytes(&self) -> usize {
        13
    }

    fn moves_log_start(&self, payload: &[u8]) -> Option<u64> {
        test_moves_log_start(payload)
    }

    fn snapshot_at(&self) -> SnapshotAt {
        SnapshotAt::Boundary
    }

    fn applied(&self) -> Option<LogId> {
        None
    }

    fn discard(&self) -> io::Result<()> {
        Ok(())
    }

    fn apply(&self, _log_id: LogId, _frame: &Frame) -> Bytes {
        Bytes::new()
    }

    fn snapshot(&self) -> io::Result<Bytes> {
        Err(io::Error::other("the log is the data"))
    }

    fn restore(&self, _log_id: Option<LogId>, _snapshot: &[u8]) -> io::Result<()> {
        Err(io::Error::other("the log is the data"))
    }
}

struct NoCalls;

impl PeerService for NoCalls {
    fn call(&self, _from: Caller, _body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        Box::pin(async { Err("no calls here".to_owned()) })
    }
}

pub(super) struct Broker {
    pub(super) disk: SimDisk,
    pub(super) store: Arc<Store>,
    pub(super) transport: Transport,
    pub(super) groups: RaftGroups,
}

pub(super) struct Cluster {
    pub(super) network: MemoryNetwork,
    pub(super) config: RaftConfig,
    pub(super) brokers: BTreeMap<u32, Broker>,
    size: u32,
    applications: ApplicationFactory,
}

pub(super) fn host(broker: u32) -> String {
    format!("b{broker}")
}

fn address(broker: u32) -> String {
    format!("b{broker}:7000")
}

pub(super) fn config() -> RaftConfig {
    RaftConfig {
        journal_file_bytes: 1 << 20,
        segment_bytes_max: 4 << 10,
        reserve_append_bytes: 64 << 10,
        reserve_produce_bytes: 128 << 10,
        ..RaftConfig::default()
    }
}

impl Cluster {
    pub(super) async fn start(size: u32) -> Self {
        Self::start_with(size, config()).await
    }

    pub(super) async fn start_with(size: u32, config: RaftConfig) -> Self {
        Self::start_as(size, config, Arc::new(|_, _| Arc::new(Records))).await
    }

    pub(super) async fn start_as(size: u32, config: RaftConfig, applications: ApplicationFactory) -> Self {
        let mut cluster =
            Self { network: MemoryNetwork::new(), config, brokers: BTreeMap::new(), size: 0, applications };
        cluster.boot_all(size).await;
        cluster
    }

    /// Starts so many brokers, each on an empty disk.
    pub(super) async fn boot_all(&mut self, size: u32) {
        self.size = size;
        for broker in 1..=size {
            self.boot(broker, SimDisk::new(u64::from(broker))).await;
        }
    }

    /// Starts a broker on this disk.
    pub(super) async fn boot(&mut self, broker: u32, disk: SimDisk) {
        let store = Store::open(StoreOptions {
            disk: Arc::new(disk.clone()),
            path: PathBuf::from("/data"),
            broker: BrokerId(broker),
            config: self.config.clone(),
            applications: self.applications.clone(),
        });
        let store = store.await.unwrap();
        let identity = TransportIdentity { broker: BrokerId(broker), cluster: Some(ClusterId(7)) };
        let network = self.network.host(&host(broker));
        let transport = Transport::start(network, &address(broker), identity, self.config.clone(), Arc::new(NoCalls))
            .await
            .unwrap();
        for peer in (1..=self.size).filter(|peer| *peer != broker) {
            transport.set_peer(BrokerId(peer), address(peer));
        }
        let groups = RaftGroups::start(store.clone(), transport.clone()).await.unwrap();
        self.brokers.insert(broker, Broker { disk, store, transport, groups });
    }

    /// kill -9: returns the disk as the next process finds it.
    pub(super) async fn kill(&mut self, broker: u32) -> SimDisk {
        let dead = self.brokers.remove(&broker).unwrap();
        self.network.crash(&host(broker));
        let disk = dead.disk.kill();
        dead.transport.shutdown().await;
        dead.groups.shutdown().await;
        disk
    }

    pub(super) async fn restart(&mut self, broker: u32) {
        let disk = self.kill(broker).await;
        self.boot(broker, disk).await;
    }

    /// Cuts a broker off; its process goes on.
    pub(super) fn isolate(&self, broker: u32) {
        for other in (1..=self.size).filter(|other| *other != broker) {
            self.network.partition(&host(broker), &host(other));
        }
    }

    pub(super) fn cut(&self, from: u32, to: u32) {
        self.network.cut(&host(from), &host(to));
    }

    pub(super) fn partition(&self, one: u32, other: u32) {
        self.network.partition(&host(one), &host(other));
    }

    pub(super) fn group(&self, broker: u32, group: u64) -> RaftGroup {
        self.brokers[&broker].groups.get(GroupId(group)).unwrap()
    }

    /// A new group on every broker, replica ids 10 × group + broker, led by the first.
    pub(super) async fn create(&self, group: u64) -> RaftGroup {
        let replica = |broker: u32| ReplicaId(10 * group + u64::from(broker));
        for (broker, node) in &self.brokers {
            node.groups.create(GroupId(group), replica(*broker), Former::Delete).await.unwrap();
        }
        let members = self.brokers.keys().map(|broker| (replica(*broker), ReplicaHome { broker: BrokerId(*broker) }));
        let first = self.group(1, group);
        first.initialize(members.collect()).await.unwrap();
        self.leader(group, &[1]).await;
        first
    }

    /// Waits until one of these brokers leads the group and the others of them know it.
    pub(super) async fn leader(&self, group: u64, among: &[u32]) -> u32 {
        let agreed = async {
            loop {
                let leaders: Vec<Option<Leader>> =
                    among.iter().map(|broker| self.group(*broker, group).status().leader).collect();
                let first = leaders[0];
                let agree = leaders.iter().all(|leader| *leader == first);
                if let (true, Some(leader)) = (agree, first)
                    && among.contains(&leader.broker.0)
                    && self.group(leader.broker.0, group).status().leading
                {
                    return leader.broker.0;
                }
                sleep(Duration::from_millis(2)).await;
            }
        };
        match timeout(Duration::from_secs(60), agreed).await {
            Ok(leader) => leader,
            Err(_) => {
                let seen: Vec<_> = among.iter().map(|broker| self.group(*broker, group).status()).collect();
                panic!("no leader of group {group} among {among:?}: {seen:#?}");
            }
        }
    }

    /// Payloads readable on a broker, up to its high watermark.
    pub(super) async fn records(&self, broker: u32, group: u64) -> Vec<String> {
        let group = self.group(broker, group);
        let log = group.log();
        let (start, end) = (log.log_start_offset(), log.high_watermark());
        let mut records = Vec::new();
        let mut next = start;
        while next < end {
            let frames = log.read(next, end, 1 << 20).await.unwrap();
            for frame in &frames {
                assert_eq!(frame.header.base_offset, next.0, "offsets are dense");
                next = Offset(frame.header.next_offset());
                records.push(String::from_utf8(frame.payload.to_vec()).unwrap());
            }
        }
        records
    }

    /// Waits until a broker shows exactly these records.
    pub(super) async fn shows(&self, broker: u32, group: u64, expected: &[String]) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let records = self.records(broker, group).await;
            if records == expected {
                return;
            }
            assert!(Instant::now() < until, "broker {broker} shows {records:?}, not {expected:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

pub(super) async fn propose(group: &RaftGroup, payload: &str) -> Result<Appended, crate::error::ProposeError> {
    group.propose(Bytes::copy_from_slice(payload.as_bytes()), None).await
}

pub(super) fn offset(appended: &Appended) -> u64 {
    match &appended.outcome {
        Outcome::Records { base_offset, .. } => base_offset.0,
        other => panic!("no records: {other:?}"),
    }
}
