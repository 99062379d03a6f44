//! openraft's log storage over a [`Log`]: a thin translation, entries in, frames out.

use std::fmt::Debug;
use std::io;
use std::ops::{RangeBounds, RangeInclusive};
use std::sync::Arc;

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};

use crate::log::Log;
use crate::types::{Entry, LogId, TypeConfig, Vote};

/// openraft's way to one replica's log. One per group; clones read.
#[derive(Clone)]
pub struct LogStore {
    #[allow(dead_code)]
    log: Arc<Log>,
}

impl LogStore {
    /// Over a recovered log ([`crate::store::Replica::log`]).
    pub fn new(log: Arc<Log>) -> Self {
        Self { log }
    }
}

#[allow(unused_variables)]
impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        unimplemented!()
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        unimplemented!()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        unimplemented!()
    }

    async fn get_key_log_ids(&mut self, range: RangeInclusive<LogId>) -> Result<Vec<LogId>, io::Error> {
        unimplemented!()
    }
}

#[allow(unused_variables)]
impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        unimplemented!()
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        unimplemented!()
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        unimplemented!()
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        unimplemented!()
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        unimplemented!()
    }
}
