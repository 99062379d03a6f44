//! The catalog: the cluster's metadata, replicated by Raft group 0.
//!
//! - [`command`]: what stands in the log. [`apply`]: what each command does, the deterministic serial point.
//! - [`state`]: the state as a value; readers share an immutable copy ([`Catalog::state`]).
//! - [`snapshot`]: the state as bytes. [`tables`]: the state as rows, a cache that spares a start the replay.
//! - [`names`], [`topic_config`]: what a topic may be called and how it may be configured.
//!
//! This module decides nothing about the cluster: who proposes what, and when, is `controller`'s and `broker`'s. It does no
//! I/O but that of its tables.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use pontoon_raft::codec;
use pontoon_raft::log::frame::{Frame, FrameHeader};
use pontoon_raft::payload::{AppendPosition, AppendState, Application, Decision, SnapshotAt};
use pontoon_raft::types::{LogId, ReplicaId, repr};
use tokio::sync::watch;

pub mod apply;
pub mod command;
pub mod names;
pub mod snapshot;
pub mod state;
pub mod tables;
pub mod topic_config;
mod writer;

use command::FEATURE_LEVEL;
use state::{CatalogState, RowKey};
use tables::{Stamp, Tables, row_checksum, rows_checksum};
use writer::Writer;

/// The catalog as one broker knows it. Shared; outlives the replicas of group 0 that feed it.
pub struct Catalog {
    tables: Arc<dyn Tables>,
    published: watch::Sender<Arc<CatalogState>>,
    /// Why this version cannot follow the catalog any further.
    incompatible: watch::Sender<Option<String>>,
    writer: Mutex<Option<Arc<Writer>>>,
    /// Index of the last entry behind which the log was cut, or asked to be.
    cut: AtomicU64,
    /// What was wrong with the tables when they were last loaded, if they were rotten.
    rotten: Mutex<Option<String>>,
}

impl Catalog {
    /// A catalog whose rows are cached in `tables`.
    pub fn new(tables: Arc<dyn Tables>) -> Arc<Self> {
        let (published, incompatible) = (watch::Sender::default(), watch::Sender::default());
        let (writer, cut, rotten) = (Mutex::default(), AtomicU64::new(0), Mutex::default());
        Arc::new(Self { tables, published, incompatible, writer, cut, rotten })
    }

    /// The state now. A borrowed copy: it does not change under the caller.
    pub fn state(&self) -> Arc<CatalogState> {
        self.published.borrow().clone()
    }

    /// Follows the state. Its log id never goes back while the process lives.
    pub fn watch(&self) -> watch::Receiver<Arc<CatalogState>> {
        self.published.subscribe()
    }

    /// Whether `entries` have been applied since this last said so (or since the start): time for a snapshot, after which the
    /// log may begin there.
    pub fn wants_snapshot(&self, entries: u64) -> bool {
        let index = self.state().applied.map_or(0, |applied| applied.1);
        let wants = index >= self.cut.load(Ordering::Relaxed).saturating_add(entries);
        if wants {
            self.cut.store(index, Ordering::Relaxed);
        }
        wants
    }

    /// Resolves if the catalog has reached a feature level that this version does not know.
    pub async fn incompatible(&self) -> String {
        let mut why = self.incompatible.subscribe();
        let reached = why.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match reached {
            Some(why) => why,
            None => std::future::pending().await,
        }
    }

    /// The application of this broker's replica of group 0. Reads the tables: what is in them is used if it is that
    /// replica's and whole, and thrown away otherwise.
    pub fn application(self: &Arc<Self>, replica: ReplicaId) -> Arc<CatalogApplication> {
        let writer = Writer::start(self.tables.clone());
        if let Some(before) = self.writer.lock().replace(writer.clone()) {
            before.stop();
        }
        let state = self.load(replica);
        if let Some(state) = &state {
            self.publish(state, false);
        } else if let Err(error) = self.tables.clear() {
            tracing::warn!(%error, "the catalog's tables cannot be cleared");
        }
        let state = state.unwrap_or_default();
        let inner = Inner { checksum: checksum(&state), rows: state.row_keys().len() as u64, state };
        Arc::new(CatalogApplication { catalog: self.clone(), replica, writer, inner: Mutex::new(inner) })
    }

    /// The tables' state, if it is this replica's and agrees with its stamp.
    fn load(&self, replica: ReplicaId) -> Option<CatalogState> {
        let rotten = |why: String| {
            tracing::error!(why, "the catalog's tables are rotten; rebuilding them");
            *self.rotten.lock() = Some(why);
        };
        let (stamp, rows) = self.tables.load().map_err(|error| rotten(error.to_string())).ok()??;
        if stamp.rows != rows.len() as u64 || stamp.checksum != rows_checksum(&rows) {
            rotten("its rows are not those of its stamp".to_owned());
            return None;
        }
        if stamp.replica != replica {
            tracing::info!(%replica, of = %stamp.replica, "the catalog's tables are another replica's; rebuilding them");
            return None;
        }
        let pairs = rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
        CatalogState::from_rows(Some(stamp.applied), pairs).map_err(|why| rotten(why.to_string())).ok()
    }

    /// What was wrong with the tables since the process started, if they were rotten: they were made anew.
    pub fn rotten_tables(&self) -> Option<String> {
        self.rotten.lock().clone()
    }

    /// Shows readers a state. An older one than they have seen (a replica that is catching up) is kept from them, unless
    /// `back` says that what they saw was not so.
    fn publish(&self, state: &CatalogState, back: bool) {
        self.published.send_if_modified(|published| {
            let newer = state.applied.map(|id| id.1) >= published.applied.map(|id| id.1);
            if newer || back {
                *published = Arc::new(state.clone());
            }
            newer || back
        });
    }

    /// Writes out what the tables lack and closes them.
    pub async fn close(&self) {
        let writer = self.writer.lock().take();
        if let Some(writer) = writer {
            writer.finish().await;
        }
        self.tables.close();
    }
}

fn checksum(state: &CatalogState) -> u64 {
    let keys = state.row_keys();
    keys.into_iter().fold(0, |sum: u64, key| sum.wrapping_add(row_sum(state, key)))
}

fn row_sum(state: &CatalogState, key: RowKey) -> u64 {
    state.row(key).map_or(0, |row| row_checksum(&key.encode(), &row))
}

/// Group 0's payload.
pub struct CatalogApplication {
    catalog: Arc<Catalog>,
    replica: ReplicaId,
    writer: Arc<Writer>,
    inner: Mutex<Inner>,
}

struct Inner {
    state: CatalogState,
    /// Of the state's rows; kept up row by row.
    checksum: u64,
    rows: u64,
}

impl CatalogApplication {
    fn stamp(&self, inner: &Inner, applied: repr::LogId) -> Stamp {
        Stamp { replica: self.replica, applied, rows: inner.rows, checksum: inner.checksum }
    }

    /// Replaces the whole state.
    fn set(&self, inner: &mut Inner, state: CatalogState) {
        *inner = Inner { checksum: checksum(&state), rows: state.row_keys().len() as u64, state };
        if let Some(applied) = inner.state.applied {
            let row = |key: RowKey| (key.encode(), inner.state.row(key));
            let rows = inner.state.row_keys().into_iter().map(row).collect();
            self.writer.write(true, rows, self.stamp(inner, applied));
        }
    }

    fn stop(&self, level: u32) {
        let why = format!("the cluster has feature level {level}; this version knows {FEATURE_LEVEL}");
        self.catalog.incompatible.send_replace(Some(why));
    }
}

impl Application for CatalogApplication {
    fn append_state(&self, _saved: Option<&[u8]>) -> io::Result<Box<dyn AppendState>> {
        Ok(Box::new(NoAppendState))
    }

    fn observe_prefix_bytes(&self) -> usize {
        0
    }

    fn snapshot_at(&self) -> SnapshotAt {
        SnapshotAt::Applied
    }

    fn applied(&self) -> Option<LogId> {
        self.inner.lock().state.applied.map(LogId::from)
    }

    fn discard(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let state = CatalogState::default();
        *inner = Inner { checksum: checksum(&state), rows: state.row_keys().len() as u64, state };
        self.writer.forget();
        self.catalog.publish(&inner.state, true);
        self.catalog.tables.clear()
    }

    fn apply(&self, log_id: LogId, frame: &Frame) -> Bytes {
        let applied = repr::LogId::from(log_id);
        let mut inner = self.inner.lock();
        if inner.state.applied.is_some_and(|done| done.1 >= applied.1) {
            return Bytes::new(); // Shown again after a restart; it is in the state already.
        }
        let before = inner.state.clone();
        let (result, changed) = match apply::execute_bytes(&mut inner.state, &frame.payload) {
            Ok(done) => done,
            Err(level) => {
                self.stop(level);
                return Bytes::new();
            }
        };
        inner.state.applied = Some(applied);
        let mut rows = BTreeMap::new();
        for key in changed {
            let row = inner.state.row(key);
            inner.checksum = inner.checksum.wrapping_sub(row_sum(&before, key));
            inner.checksum =
                inner.checksum.wrapping_add(row.as_ref().map_or(0, |row| row_checksum(&key.encode(), row)));
            inner.rows = inner.rows + u64::from(row.is_some()) - u64::from(before.row(key).is_some());
            rows.insert(key.encode(), row);
        }
        // The first batch must hold the rows that no command has touched, and nothing that was there before.
        let first = before.applied.is_none();
        if first {
            let missing = inner.state.row_keys().into_iter().map(|key| (key.encode(), inner.state.row(key)));
            rows.extend(missing);
        }
        self.writer.write(first, rows, self.stamp(&inner, applied));
        self.catalog.publish(&inner.state, false);
        Bytes::from(codec::encode(&result))
    }

    fn snapshot(&self) -> io::Result<Bytes> {
        Ok(snapshot::encode(&self.inner.lock().state).into())
    }

    fn restore(&self, log_id: Option<LogId>, bytes: &[u8]) -> io::Result<()> {
        let state = snapshot::decode(log_id.map(repr::LogId::from), bytes);
        let state =
            state.map_err(|why| io::Error::new(io::ErrorKind::InvalidData, format!("catalog snapshot: {why}")))?;
        if state.feature_level() > FEATURE_LEVEL {
            self.stop(state.feature_level());
        }
        let mut inner = self.inner.lock();
        self.set(&mut inner, state);
        self.catalog.publish(&inner.state, false);
        Ok(())
    }
}

impl Drop for CatalogApplication {
    fn drop(&mut self) {
        self.writer.stop();
    }
}

/// Commands take no offsets and depend on nothing at append: they are decided at apply.
struct NoAppendState;

impl AppendState for NoAppendState {
    fn decide(&self, payload: Bytes, _at: AppendPosition) -> Decision {
        Decision::Accept { payload, offset_span: 0, record_count: 0, max_timestamp: -1 }
    }

    fn observe(&mut self, _header: &FrameHeader, _prefix: &[u8]) {}

    fn save(&self) -> Bytes {
        Bytes::new()
    }
}

#[cfg(test)]
mod tests;
