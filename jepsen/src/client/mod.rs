//! What a workload needs of a client: to append, to fetch, and to know what became of it.
//!
//! The trait is all that the workloads know; HTTP is behind it in [`http`], Kafka's protocol in [`kafka`], and [`any`] is either. A client
//! never decides what goes into the history: it says what it was told, and how sure that is. What no broker may tell anybody (bytes that
//! nobody sent, a wrong checksum, that a producer is unknown that did all as it should) it tells the timeline at once: in the history that
//! would be one more operation that did not work. [`producer`] is what idempotent producers of either protocol have in
//! common, [`retries`] how often they sent again; [`ledger`] keeps what members of consumer groups were told, beside the history.

pub mod any;
pub mod http;
pub mod kafka;
pub mod ledger;
pub mod payload;
mod producer;
pub mod retries;

use std::future::Future;

use crate::history::{Key, Offset, Records, Value};

/// Whom clients accuse when they cannot tell which broker it was.
pub const CLIENTS: &str = "clients";

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

/// What a poll of a member of a consumer group brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FromGroup {
    /// By key, ascending.
    pub records: Vec<(Key, Records)>,
    /// Keys whose positions may have moved, because members came or went; ascending.
    pub moved: Vec<Key>,
    /// What did not work.
    pub errors: Vec<String>,
    /// At least one key was read, or the group gave it none.
    pub answered: bool,
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

    /// Whether [`Self::send`] can be told where the log must end.
    fn can_condition(&self) -> bool {
        true
    }

    /// Whether it can be a member of a consumer group. If not, what follows does nothing.
    fn can_subscribe(&self) -> bool {
        false
    }

    /// Becomes a member of a group that reads these keys, at its next poll.
    fn subscribe(&mut self, _group: String, _keys: Vec<Key>) {}

    /// Reads what follows in the keys that the group gave it.
    fn poll_group(&mut self) -> impl Future<Output = FromGroup> + Send {
        std::future::ready(FromGroup::default())
    }

    /// Commits where it stands, and gives its keys to the others.
    fn leave_group(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
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
