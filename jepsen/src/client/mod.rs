//! What a workload needs of a client: to append, to fetch, and to know what became of it.
//!
//! The trait is all that the workloads know; HTTP is behind it in [`http`], and another protocol can be put there. A client never
//! decides what goes into the history: it says what it was told, and how sure that is.

pub mod http;
pub mod payload;

use std::future::Future;

use crate::history::{Key, Offset, Value};

/// What became of a request that changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// All values were appended, one after the other, the first at this offset.
    At(Offset),
    /// Nothing was appended, and nothing ever will be.
    Failed(String),
    /// Nobody knows.
    Unknown(String),
}

/// A part of a partition, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// What was read.
    pub records: Vec<(Offset, Value)>,
    /// Where to read on.
    pub next: Offset,
    /// One past the last record there is, by the broker's word.
    pub end: Offset,
    /// Contents that are no value of ours, in words.
    pub foreign: Vec<String>,
}

/// One client of one broker (which passes requests on to leaders as it must).
pub trait Client: Send {
    /// Appends values to a partition as one atomic batch; with `at`, only if the log ends there. Returns after the acknowledgement, or after
    /// it gave up.
    fn send(&mut self, key: Key, values: &[Value], at: Option<Offset>) -> impl Future<Output = Sent> + Send;

    /// Reads from an offset on; `None` is the first there is. A linearizable read sees all that was acknowledged before it began.
    fn fetch(
        &mut self,
        key: Key,
        from: Option<Offset>,
        linearizable: bool,
    ) -> impl Future<Output = Result<Fetched, String>> + Send;

    /// Talks to this broker from now on.
    fn use_broker(&mut self, broker: usize);
}

/// Makes clients.
pub trait Connector: Clone + Send + Sync + 'static {
    /// What it makes.
    type Client: Client;

    /// A client that has no past: as of a new process. `idempotent`: its sends are tried again until their fate is known, or time is up,
    /// and appended once.
    fn connect(&self, broker: usize, idempotent: bool) -> Self::Client;

    /// How many brokers there are; they are counted from 0.
    fn brokers(&self) -> usize;
}
