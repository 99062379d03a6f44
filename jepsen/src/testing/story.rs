//! A history told by hand, operation by operation.

use crate::history::{Action, ClaimedRange, Event, History, Key, Kind, MicroOp, Offset, Process, Value};

/// (key, offset, value)
pub(crate) type Record = (u64, u64, i64);

/// Each call adds an operation: its invocation and, right after it, its completion. Times count events.
#[derive(Clone, Default)]
pub(crate) struct Story {
    events: Vec<Event>,
}

impl Story {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Goes on after a history.
    pub(crate) fn after(history: &History) -> Self {
        Self { events: history.events().to_vec() }
    }

    pub(crate) fn history(self) -> History {
        History::new(self.events).expect("a story keeps the rules")
    }

    /// How many events there are.
    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    fn push(&mut self, kind: Kind, process: u64, action: Action) -> &mut Event {
        let time_ns = self.events.last().map_or(0, |event| event.time_ns + 1);
        self.events.push(Event::new(self.events.len(), time_ns, kind, Process(process), action));
        self.events.last_mut().expect("just pushed")
    }

    fn operation(mut self, kind: Kind, process: u64, asked: Action, told: Action) -> Self {
        self.push(Kind::Invoke, process, asked);
        self.push(kind, process, told);
        self
    }

    pub(crate) fn sent(self, process: u64, records: &[Record]) -> Self {
        self.operation(Kind::Ok, process, Action::Send(asked(records)), Action::Send(told(records)))
    }

    pub(crate) fn sent_unknown(self, process: u64, records: &[(u64, Option<u64>, i64)]) -> Self {
        let send = |(key, offset, value): &(u64, Option<u64>, i64)| MicroOp::Send {
            key: Key(*key),
            offset: offset.map(Offset),
            value: Value(*value),
        };
        let asked: Vec<Record> = records.iter().map(|(key, _, value)| (*key, 0, *value)).collect();
        let told = Action::Send(records.iter().map(send).collect());
        self.operation(Kind::Info, process, Action::Send(self::asked(&asked)), told)
    }

    pub(crate) fn failed_send(self, process: u64, records: &[Record]) -> Self {
        self.operation(Kind::Fail, process, Action::Send(asked(records)), Action::Send(told(records)))
    }

    pub(crate) fn polled(self, process: u64, records: &[Record]) -> Self {
        self.operation(Kind::Ok, process, poll(), Action::Poll(vec![answer(records)]))
    }

    pub(crate) fn failed_poll(self, process: u64, records: &[Record]) -> Self {
        self.operation(Kind::Fail, process, poll(), Action::Poll(vec![answer(records)]))
    }

    /// A transaction of sends, then one poll.
    pub(crate) fn transaction(mut self, process: u64, sends: &[Record], reads: &[Record]) -> Self {
        self = self.begin(process, sends);
        self.commit(process, sends, reads)
    }

    /// Only the invocation of a transaction.
    pub(crate) fn begin(mut self, process: u64, sends: &[Record]) -> Self {
        let steps = asked(sends).into_iter().chain([MicroOp::Poll(None)]).collect();
        self.push(Kind::Invoke, process, Action::Txn(steps));
        self
    }

    /// Its completion.
    pub(crate) fn commit(mut self, process: u64, sends: &[Record], reads: &[Record]) -> Self {
        let steps = told(sends).into_iter().chain([answer(reads)]).collect();
        self.push(Kind::Ok, process, Action::Txn(steps));
        self
    }

    /// Sends that are all invoked before the first completes.
    pub(crate) fn overlapping_sends(mut self, sends: &[(u64, &[Record])]) -> Self {
        for (process, records) in sends {
            self.push(Kind::Invoke, *process, Action::Send(asked(records)));
        }
        for (process, records) in sends {
            self.push(Kind::Ok, *process, Action::Send(told(records)));
        }
        self
    }

    /// A linearizable poll that claims (key, from, end).
    pub(crate) fn linearizable(mut self, process: u64, reads: &[Record], claim: (u64, u64, u64)) -> Self {
        self.push(Kind::Invoke, process, poll()).linearizable = true;
        self.answer_linearizable(process, reads, claim)
    }

    /// The same, with a send that begins and completes meanwhile.
    pub(crate) fn linearizable_during_send(
        mut self,
        process: u64,
        reads: &[Record],
        claim: (u64, u64, u64),
        sender: u64,
        sent: Record,
    ) -> Self {
        self.push(Kind::Invoke, process, poll()).linearizable = true;
        self.sent(sender, &[sent]).answer_linearizable(process, reads, claim)
    }

    fn answer_linearizable(mut self, process: u64, reads: &[Record], (key, from, end): (u64, u64, u64)) -> Self {
        let event = self.push(Kind::Ok, process, Action::Poll(vec![answer(reads)]));
        event.linearizable = true;
        event.ranges = vec![ClaimedRange { key: Key(key), from: Offset(from), end: Offset(end) }];
        self
    }

    /// Assigns keys from their beginning.
    pub(crate) fn seek(self, process: u64, keys: &[u64]) -> Self {
        self.assigned(process, keys, true)
    }

    pub(crate) fn assigned(self, process: u64, keys: &[u64], seek_to_beginning: bool) -> Self {
        let assign = Action::Assign { keys: keys.iter().copied().map(Key).collect(), seek_to_beginning };
        self.operation(Kind::Ok, process, assign.clone(), assign)
    }
}

fn poll() -> Action {
    Action::Poll(vec![MicroOp::Poll(None)])
}

fn asked(records: &[Record]) -> Vec<MicroOp> {
    let send = |(key, _, value): &Record| MicroOp::Send { key: Key(*key), offset: None, value: Value(*value) };
    records.iter().map(send).collect()
}

fn told(records: &[Record]) -> Vec<MicroOp> {
    let send = |(key, offset, value): &Record| MicroOp::Send {
        key: Key(*key),
        offset: Some(Offset(*offset)),
        value: Value(*value),
    };
    records.iter().map(send).collect()
}

fn answer(records: &[Record]) -> MicroOp {
    let mut reads: Vec<(Key, Vec<(Offset, Value)>)> = Vec::new();
    for (key, offset, value) in records {
        let at = reads.binary_search_by_key(&Key(*key), |(key, _)| *key).unwrap_or_else(|at| {
            reads.insert(at, (Key(*key), Vec::new()));
            at
        });
        reads[at].1.push((Offset(*offset), Value(*value)));
    }
    MicroOp::Poll(Some(reads))
}
