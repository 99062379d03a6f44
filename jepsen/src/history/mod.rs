//! The history of a run: what every client asked for, when, and what it was told.
//!
//! This is the operations model of Jepsen's kafka workload: one event per invocation and one per completion, in the order
//! in which they happened. It knows no broker and no checker. The text form is in [`codec`], the rules that make a history
//! trustworthy are in [`wellformed`], the judging is in [`crate::checkers`].

pub mod codec;
pub mod edn;
pub mod wellformed;

pub use wellformed::Malformed;

/// A key names one partition of one topic, for the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u64);

/// A value, unique per key. The workloads send values ≥ 0; a client that is given bytes that are no value of ours records
/// a negative one and keeps the bytes in [`Event::error`], so that they are found as a phantom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub i64);

/// A record's place in its partition, as the broker gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

/// One life of a client. After an unknown outcome the client goes on under a new id, with a new position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process(pub u64);

/// What an event says about its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The client asks.
    Invoke,
    /// It certainly happened.
    Ok,
    /// It certainly did not happen.
    Fail,
    /// Nobody knows whether it happened, or will happen yet.
    Info,
}

/// What was read of one key, in the order in which it came.
pub type Records = Vec<(Offset, Value)>;

/// One step of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MicroOp {
    /// Append `value` to `key`. The offset is known only if the broker said it.
    Send {
        /// Where to.
        key: Key,
        /// Where it was appended, if the client was told.
        offset: Option<Offset>,
        /// What.
        value: Value,
    },
    /// Fetch what follows the client's positions. `None` until it is answered; then what was read, by key, ascending.
    Poll(Option<Vec<(Key, Records)>>),
}

/// What an operation does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read exactly these keys from now on. Positions of keys that stay are kept.
    Assign {
        /// The keys.
        keys: Vec<Key>,
        /// Begin each at its first record.
        seek_to_beginning: bool,
    },
    /// Let the broker choose which of these keys to read.
    Subscribe {
        /// The keys whose topics are subscribed to.
        keys: Vec<Key>,
        /// Begin each at its first record.
        seek_to_beginning: bool,
    },
    /// Only sends.
    Send(Vec<MicroOp>),
    /// Only polls.
    Poll(Vec<MicroOp>),
    /// Both, mixed.
    Txn(Vec<MicroOp>),
    /// The client is thrown away. Always ends as [`Kind::Info`].
    Crash,
}

impl Action {
    /// The name in `:f`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Assign { .. } => "assign",
            Self::Subscribe { .. } => "subscribe",
            Self::Send(_) => "send",
            Self::Poll(_) => "poll",
            Self::Txn(_) => "txn",
            Self::Crash => "crash",
        }
    }

    /// The steps of a send, poll or transaction; empty for the others.
    pub fn micro_ops(&self) -> &[MicroOp] {
        match self {
            Self::Send(steps) | Self::Poll(steps) | Self::Txn(steps) => steps,
            Self::Assign { .. } | Self::Subscribe { .. } | Self::Crash => &[],
        }
    }
}

/// The offsets that a linearizable read vouches for: *every* record in `from..end` is in the answer, and when it was asked
/// nothing acknowledged lay at or past `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimedRange {
    /// Which partition.
    pub key: Key,
    /// The offset read from.
    pub from: Offset,
    /// One past the last offset that existed, by the broker's word.
    pub end: Offset,
}

/// One line of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place: 0, 1, 2, …
    pub index: usize,
    /// Nanoseconds since the run began, by a monotonic clock.
    pub time_ns: u64,
    /// Invocation, or how it ended.
    pub kind: Kind,
    /// Who.
    pub process: Process,
    /// What; in a completion with what came back.
    pub action: Action,
    /// What the client was told when it did not work.
    pub error: Option<String>,
    /// Keys that a consumer group took or gave while this operation ran: their positions may have moved.
    pub rebalanced: Vec<Key>,
    /// The read was asked to be linearizable. An `Ok` completion then has [`Event::ranges`].
    pub linearizable: bool,
    /// What an answered linearizable read vouches for, by key, ascending.
    pub ranges: Vec<ClaimedRange>,
}

impl Event {
    /// An event with nothing but the necessary.
    pub fn new(index: usize, time_ns: u64, kind: Kind, process: Process, action: Action) -> Self {
        Self {
            index,
            time_ns,
            kind,
            process,
            action,
            error: None,
            rebalanced: Vec::new(),
            linearizable: false,
            ranges: Vec::new(),
        }
    }
}

/// An operation: an invocation with its completion, if it ever came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Index of the event that began it.
    pub invoked: usize,
    /// Index of the event that ended it.
    pub completed: Option<usize>,
    /// How it ended. An operation that never completed is [`Kind::Info`]; never [`Kind::Invoke`].
    pub outcome: Kind,
}

/// A whole, well-formed history.
///
/// Invariants: events are numbered 0, 1, 2, …; times never go back; a process has at most one operation open and none after
/// an unknown outcome; no key is sent the same value twice. [`wellformed`] has the full list.
#[derive(Clone, Debug)]
pub struct History {
    events: Vec<Event>,
    operations: Vec<Operation>,
    operation_of: Vec<usize>,
}

impl History {
    /// Takes events in order. Returns [`Malformed`] with the first rule that is broken: such a history says something about
    /// the harness and nothing about the brokers.
    pub fn new(events: Vec<Event>) -> Result<Self, Malformed> {
        let (operations, operation_of) = wellformed::pair(&events)?;
        Ok(Self { events, operations, operation_of })
    }

    /// Every event, in order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Every operation, in the order of invocation.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The operation (its place in [`History::operations`]) that the event at `index` begins or ends.
    pub fn operation_of(&self, index: usize) -> usize {
        self.operation_of[index]
    }

    /// The event that says most about operation `id`: its completion, or its invocation if it never completed.
    pub fn outcome_event(&self, id: usize) -> &Event {
        let operation = &self.operations[id];
        &self.events[operation.completed.unwrap_or(operation.invoked)]
    }

    /// The time of the last event in nanoseconds, 0 if there is none.
    pub fn end_ns(&self) -> u64 {
        self.events.last().map_or(0, |event| event.time_ns)
    }
}
