//! The log as its writers and readers see it, on a simulated disk.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Log;
use super::append::NewEntry;
use super::frame::{Frame, FrameHeader, FrameKind};
use crate::codec;
use crate::config::RaftConfig;
use crate::disk::sim::SimDisk;
use crate::error::ReadError;
use crate::payload::SnapshotAt;
use crate::store::{Store, StoreOptions};
use crate::testing::{TestProducers, test_applications, test_payload};
use crate::types::{Appended, BrokerId, GroupId, LogId, Offset, Outcome, Proposal, ReplicaId, Vote, log_id, vote};

mod aside;
mod disk;
mod mending;
mod model;
mod reading;
mod retention;
mod shortage;
mod start;
mod writing;

const GROUP: GroupId = GroupId(4);
const REPLICA: ReplicaId = ReplicaId(40);

/// Small limits, so that little work rolls, evicts and bypasses.
fn small() -> RaftConfig {
    RaftConfig {
        journal_round_bytes_max: 16 << 10,
        journal_file_bytes: 64 << 10,
        bypass_bytes_min: 8 << 10,
        segment_bytes_max: 2 << 10,
        index_interval_bytes: 256,
        tail_cache_bytes: 1 << 10,
        tail_cache_bytes_total: 2 << 10,
        reserve_append_bytes: 0,
        ..RaftConfig::default()
    }
}

fn options(disk: &SimDisk, config: RaftConfig, snapshot_at: SnapshotAt) -> StoreOptions {
    StoreOptions {
        disk: Arc::new(disk.clone()),
        path: "/data".into(),
        broker: BrokerId(1),
        config,
        applications: test_applications(snapshot_at),
    }
}

async fn open(disk: &SimDisk, config: RaftConfig, snapshot_at: SnapshotAt) -> Arc<Store> {
    Store::open(options(disk, config, snapshot_at)).await.unwrap()
}

/// A store with one empty replica.
async fn fresh(config: RaftConfig) -> (SimDisk, Arc<Store>, Arc<Log>) {
    let disk = SimDisk::new(1);
    let store = open(&disk, config, SnapshotAt::Boundary).await;
    let log = store.create(GROUP, REPLICA).await.unwrap().log;
    (disk, store, log)
}

fn proposal(index: u64, term: u64, payload: Bytes) -> NewEntry {
    NewEntry::Proposed(log_id(term, index), Proposal { payload, flushed: None, stages: None })
}

/// Appends without waiting.
async fn submit(log: &Arc<Log>, entries: Vec<NewEntry>) -> std::io::Result<oneshot::Receiver<std::io::Result<()>>> {
    let (tell, told) = oneshot::channel();
    log.append(entries, Box::new(move |result| drop(tell.send(result)))).await?;
    Ok(told)
}

/// Appends and waits until it is durable.
async fn append(log: &Arc<Log>, entries: Vec<NewEntry>) -> std::io::Result<()> {
    submit(log, entries).await?.await.unwrap()
}

/// Appends `count` accepted batches of two records each, of `bytes` bytes, one after the other.
async fn fill(log: &Arc<Log>, term: u64, count: u32, bytes: usize) {
    for _ in 0..count {
        let index = log.last_log_id().map_or(0, |last| last.index + 1);
        let producers: TestProducers = codec::decode(&log.append_state()).unwrap();
        let sequence = producers.next.get(&1).copied().unwrap_or(0);
        append(log, vec![proposal(index, term, test_payload(2, 1, sequence, &vec![7; bytes]))]).await.unwrap();
    }
}

async fn indexes(log: &Log) -> Vec<u64> {
    let frames = log.read_indexes(log.first_index(), u64::MAX, usize::MAX).await.unwrap();
    frames.iter().map(|frame| frame.header.index).collect()
}

/// Lets the segment writer catch up.
async fn rest() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}
