//! A log in memory that is correct by construction, and clients that run against it concurrently, time out, are refused, crash, and
//! come back; what they write down is a history without anomalies (but for those that the workload allows).
//!
//! Every send is appended in one step somewhere between its invocation and its completion, or, if nobody knows what became of it, at
//! any time later, or never. Polls may lag. Transactions are visible once committed and hold back what follows them.

use std::collections::BTreeMap;

use crate::checkers::workloads::Workload;
use crate::history::{Action, ClaimedRange, Event, History, Key, Kind, MicroOp, Offset, Process, Value};
use crate::random::Random;

#[derive(Clone, Copy, PartialEq)]
enum State {
    Open,
    Committed,
    Aborted,
}

struct Entry {
    offset: u64,
    value: i64,
    state: State,
    /// The open operation it belongs to, by the index of its invocation.
    owner: usize,
}

#[derive(Default)]
struct Log {
    entries: Vec<Entry>,
    next_offset: u64,
}

impl Log {
    /// One past the last entry that may be read: nothing open lies before it.
    fn stable_end(&self) -> usize {
        self.entries.iter().position(|entry| entry.state == State::Open).unwrap_or(self.entries.len())
    }
}

/// What will become of an operation.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Ok,
    Fail,
    /// Unknown, after everything was done.
    InfoDone,
    /// Unknown, and the sends take effect later.
    InfoLate,
    /// Unknown, and the rest is never done.
    InfoNever,
}

struct Open {
    invoked: usize,
    asked: Action,
    steps: Vec<MicroOp>,
    fate: Fate,
    /// Where the client stood before.
    before: BTreeMap<Key, usize>,
    linearizable: bool,
    ranges: Vec<ClaimedRange>,
    rebalanced: Vec<Key>,
    /// A step's outcome is unknown: the client does not go on to the next.
    broken_off: bool,
}

#[derive(Default)]
struct Client {
    process: u64,
    positions: BTreeMap<Key, usize>,
    assigned: bool,
    open: Option<Open>,
}

/// Makes a history.
pub(crate) struct Generator {
    workload: Workload,
    random: Random,
    pub(crate) clients: usize,
    pub(crate) keys: u64,
    /// How many operations before the final reads.
    pub(crate) operations: usize,
    /// In nanoseconds, between two events, on average.
    pub(crate) pace_ns: u64,
    logs: BTreeMap<Key, Log>,
    next_value: i64,
    next_process: u64,
    events: Vec<Event>,
    time_ns: u64,
    /// Sends that take effect after their clients gave up.
    late: Vec<(Key, i64)>,
    /// Transactions that are decided after their clients gave up.
    undecided: Vec<usize>,
    final_reads: bool,
}

impl Generator {
    pub(crate) fn new(workload: Workload, seed: u64) -> Self {
        Self {
            workload,
            random: Random::new(seed),
            clients: 5,
            keys: 3,
            operations: 150,
            pace_ns: 1_000_000,
            logs: BTreeMap::new(),
            next_value: 0,
            next_process: 0,
            events: Vec::new(),
            time_ns: 0,
            late: Vec::new(),
            undecided: Vec::new(),
            final_reads: false,
        }
    }

    pub(crate) fn history(self) -> History {
        History::new(self.events()).expect("the generator keeps the rules of the harness")
    }

    pub(crate) fn events(mut self) -> Vec<Event> {
        let mut clients: Vec<Client> = (0..self.clients).map(|_| self.fresh_client()).collect();
        for key in 0..self.keys {
            self.logs.insert(Key(key), Log::default());
        }
        let mut begun = 0;
        while begun < self.operations || clients.iter().any(|client| client.open.is_some()) {
            let at = self.random.below(clients.len());
            self.settle_something_late(10);
            let client = &mut clients[at];
            if client.open.is_some() {
                self.advance(client);
            } else if begun < self.operations {
                begun += 1;
                self.begin(client);
            }
        }
        while !self.late.is_empty() || !self.undecided.is_empty() {
            self.settle_something_late(100);
        }
        self.final_reads = true;
        for client in clients {
            self.read_everything(client);
        }
        self.events
    }

    fn fresh_client(&mut self) -> Client {
        self.next_process += 1;
        Client { process: self.next_process - 1, ..Client::default() }
    }

    fn transactional(&self) -> bool {
        matches!(self.workload, Workload::Txn | Workload::TxnSubscribe)
    }

    fn subscribes(&self) -> bool {
        matches!(self.workload, Workload::SingleSubscribe | Workload::TxnSubscribe)
    }

    fn push(&mut self, kind: Kind, process: u64, action: Action) -> &mut Event {
        self.time_ns += self.random.below(2 * self.pace_ns as usize) as u64;
        self.events.push(Event::new(self.events.len(), self.time_ns, kind, Process(process), action));
        self.events.last_mut().expect("just pushed")
    }

    fn settle_something_late(&mut self, chance: usize) {
        if !self.late.is_empty() && self.random.percent(chance) {
            let at = self.random.below(self.late.len());
            let (key, value) = self.late.swap_remove(at);
            self.append(key, value, State::Committed, 0);
        }
        if !self.undecided.is_empty() && self.random.percent(chance) {
            let at = self.random.below(self.undecided.len());
            let owner = self.undecided.swap_remove(at);
            let state = if self.random.percent(50) { State::Committed } else { State::Aborted };
            self.decide(owner, state);
        }
    }

    fn append(&mut self, key: Key, value: i64, state: State, owner: usize) -> u64 {
        let gap = if self.random.percent(5) { 1 } else { 0 };
        let log = self.logs.get_mut(&key).expect("every key has a log");
        let offset = log.next_offset + gap;
        log.entries.push(Entry { offset, value, state, owner });
        log.next_offset = offset + 1;
        offset
    }

    fn decide(&mut self, owner: usize, state: State) {
        for log in self.logs.values_mut() {
            let mine = log.entries.iter_mut().filter(|entry| entry.state == State::Open && entry.owner == owner);
            let touched = mine.map(|entry| entry.state = state).count();
            // The marker takes an offset.
            log.next_offset += u64::from(touched > 0);
        }
    }

    fn some_keys(&mut self) -> Vec<Key> {
        let keys: Vec<Key> = (0..self.keys).map(Key).filter(|_| self.random.percent(60)).collect();
        if keys.is_empty() { vec![Key(self.random.below(self.keys as usize) as u64)] } else { keys }
    }

    fn begin(&mut self, client: &mut Client) {
        if self.random.percent(2) {
            self.push(Kind::Invoke, client.process, Action::Crash);
            self.push(Kind::Info, client.process, Action::Crash);
            *client = self.fresh_client();
            return;
        }
        if !client.assigned || self.random.percent(6) {
            let seek = !client.assigned && self.random.percent(50);
            return self.assign(client, seek);
        }
        let asked = self.steps();
        let linearizable = matches!(asked, Action::Poll(_)) && !self.subscribes() && self.random.percent(30);
        let fate = match self.random.below(100) {
            0..80 => Fate::Ok,
            80..86 => Fate::Fail,
            86..91 => Fate::InfoDone,
            91..96 => Fate::InfoLate,
            _ => Fate::InfoNever,
        };
        let event = self.push(Kind::Invoke, client.process, asked.clone());
        event.linearizable = linearizable;
        let invoked = event.index;
        let before = client.positions.clone();
        let (ranges, rebalanced) = (Vec::new(), Vec::new());
        let broken_off = false;
        client.open = Some(Open {
            invoked,
            asked,
            steps: Vec::new(),
            fate,
            before,
            linearizable,
            ranges,
            rebalanced,
            broken_off,
        });
    }

    fn steps(&mut self) -> Action {
        let many = !matches!(self.workload, Workload::Single | Workload::SingleSubscribe);
        let count = if many { 1 + self.random.below(4) } else { 1 };
        let steps: Vec<MicroOp> = (0..count)
            .map(|_| {
                if self.random.percent(50) {
                    self.next_value += 1;
                    let key = Key(self.random.below(self.keys as usize) as u64);
                    MicroOp::Send { key, offset: None, value: Value(self.next_value) }
                } else {
                    MicroOp::Poll(None)
                }
            })
            .collect();
        let sends = steps.iter().filter(|step| matches!(step, MicroOp::Send { .. })).count();
        match sends {
            _ if self.transactional() => Action::Txn(steps),
            0 => Action::Poll(steps),
            sends if sends == steps.len() => Action::Send(steps),
            _ => Action::Txn(steps),
        }
    }

    fn assign(&mut self, client: &mut Client, seek_to_beginning: bool) {
        let keys = self.some_keys();
        let action = match self.subscribes() {
            true => Action::Subscribe { keys: keys.clone(), seek_to_beginning },
            false => Action::Assign { keys: keys.clone(), seek_to_beginning },
        };
        self.push(Kind::Invoke, client.process, action.clone());
        let kind = [Kind::Ok, Kind::Ok, Kind::Ok, Kind::Ok, Kind::Fail, Kind::Info][self.random.below(6)];
        self.push(kind, client.process, action);
        match kind {
            Kind::Ok => {
                let old = std::mem::take(&mut client.positions);
                for key in keys {
                    let anywhere = self.random.below(self.logs[&key].entries.len() + 1);
                    let new = if seek_to_beginning { 0 } else { anywhere };
                    client.positions.insert(key, old.get(&key).copied().unwrap_or(new));
                }
                client.assigned = true;
            }
            Kind::Info => *client = self.fresh_client(),
            _ => {}
        }
    }

    /// Does the next step of a client's operation, or ends it.
    fn advance(&mut self, client: &mut Client) {
        let Some(mut open) = client.open.take() else { return };
        let asked = open.asked.micro_ops();
        open.broken_off |= open.fate == Fate::InfoNever && self.random.percent(50);
        if open.steps.len() < asked.len() && !open.broken_off {
            let step = asked[open.steps.len()].clone();
            let done = self.step(client, &mut open, step);
            open.steps.push(done);
            client.open = Some(open);
            return;
        }
        // What was not reached is told as it was asked.
        let rest = asked[open.steps.len()..].to_vec();
        open.steps.extend(rest);
        self.complete(client, open);
    }

    fn step(&mut self, client: &mut Client, open: &mut Open, step: MicroOp) -> MicroOp {
        match step {
            MicroOp::Send { key, value, .. } => {
                let state = if self.transactional() { State::Open } else { State::Committed };
                let offset = match open.fate {
                    // A refused plain send did not happen at all; a refused transaction wrote, and aborts.
                    Fate::Fail | Fate::InfoNever if state == State::Committed => None,
                    Fate::InfoLate if state == State::Committed => {
                        self.late.push((key, value.0));
                        open.broken_off = true;
                        None
                    }
                    _ => Some(Offset(self.append(key, value.0, state, open.invoked))),
                };
                MicroOp::Send { key, offset, value }
            }
            MicroOp::Poll(_) => MicroOp::Poll(Some(self.poll(client, open))),
        }
    }

    fn poll(&mut self, client: &mut Client, open: &mut Open) -> Vec<(Key, Vec<(Offset, Value)>)> {
        let mut answer = Vec::new();
        let rebalances = self.subscribes() && !self.final_reads;
        for (key, position) in &mut client.positions {
            let log = &self.logs[key];
            if rebalances && self.random.percent(10) {
                *position = self.random.below(log.entries.len() + 1);
                open.rebalanced.push(*key);
            }
            let stable = log.stable_end().max(*position);
            let lag = if open.linearizable || self.random.percent(70) { 0 } else { self.random.below(6) };
            let limit = if open.linearizable { usize::MAX } else { self.random.below(6) };
            let end = stable.saturating_sub(lag).max(*position).min(position.saturating_add(limit));
            let offset = |at: usize| Offset(log.entries.get(at).map_or(log.next_offset, |entry| entry.offset));
            if open.linearizable {
                open.ranges.push(ClaimedRange { key: *key, from: offset(*position), end: offset(end) });
            }
            let visible = log.entries[*position..end].iter().filter(|entry| entry.state == State::Committed);
            let pairs: Vec<_> = visible.map(|entry| (Offset(entry.offset), Value(entry.value))).collect();
            if !pairs.is_empty() || self.random.percent(20) {
                answer.push((*key, pairs));
            }
            *position = end;
        }
        // A poll of several steps claims from where the first began to where the last ended.
        open.ranges.sort_by_key(|range| (range.key, range.from));
        open.ranges.dedup_by(|later, first| {
            let same = later.key == first.key;
            if same {
                first.end = first.end.max(later.end);
            }
            same
        });
        answer
    }

    fn complete(&mut self, client: &mut Client, mut open: Open) {
        if self.transactional() {
            match open.fate {
                Fate::Ok | Fate::InfoDone => self.decide(open.invoked, State::Committed),
                Fate::Fail | Fate::InfoNever => self.decide(open.invoked, State::Aborted),
                Fate::InfoLate => self.undecided.push(open.invoked),
            }
        }
        let kind = match open.fate {
            Fate::Ok => Kind::Ok,
            Fate::Fail => Kind::Fail,
            _ => Kind::Info,
        };
        if kind != Kind::Ok {
            open.ranges.clear();
            // The client forgets some offsets; and from some step on, no answer came.
            let answered = self.random.below(open.steps.len() + 1);
            for (at, step) in open.steps.iter_mut().enumerate() {
                match step {
                    MicroOp::Send { offset, .. } if self.random.percent(50) => *offset = None,
                    MicroOp::Poll(answer) if at >= answered => *answer = None,
                    _ => {}
                }
            }
        }
        let action = match open.asked {
            Action::Send(_) => Action::Send(open.steps),
            Action::Poll(_) => Action::Poll(open.steps),
            _ => Action::Txn(open.steps),
        };
        let event = self.push(kind, client.process, action);
        (event.linearizable, event.ranges) = (open.linearizable, open.ranges);
        open.rebalanced.sort_unstable();
        open.rebalanced.dedup();
        event.rebalanced = open.rebalanced;
        match kind {
            Kind::Fail => {
                event.error = Some("REFUSED, outcome none".to_owned());
                client.positions = open.before;
            }
            Kind::Info => {
                event.error = Some("TIMED_OUT, outcome unknown".to_owned());
                *client = self.fresh_client();
            }
            _ => {}
        }
    }

    /// The end of every client: crash, come back, read all from the beginning.
    fn read_everything(&mut self, client: Client) {
        self.push(Kind::Invoke, client.process, Action::Crash);
        self.push(Kind::Info, client.process, Action::Crash);
        let mut client = self.fresh_client();
        let keys: Vec<Key> = self.logs.keys().copied().collect();
        let assign = Action::Assign { keys: keys.clone(), seek_to_beginning: true };
        self.push(Kind::Invoke, client.process, assign.clone());
        self.push(Kind::Ok, client.process, assign);
        client.positions = keys.iter().map(|key| (*key, 0)).collect();
        while client.positions.iter().any(|(key, position)| *position < self.logs[key].entries.len()) {
            let asked = Action::Poll(vec![MicroOp::Poll(None)]);
            let invoked = self.push(Kind::Invoke, client.process, asked.clone()).index;
            let mut open = Open {
                invoked,
                asked,
                steps: Vec::new(),
                fate: Fate::Ok,
                before: BTreeMap::new(),
                linearizable: false,
                ranges: Vec::new(),
                rebalanced: Vec::new(),
                broken_off: false,
            };
            let step = self.step(&mut client, &mut open, MicroOp::Poll(None));
            open.steps.push(step);
            self.complete(&mut client, open);
        }
    }
}
