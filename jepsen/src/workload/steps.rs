//! One operation, from its invocation to its completion, as it goes into the history.
//!
//! A process is one life of a client: its id, its connection, what it has assigned and where it stands. Each operation says at its end
//! whether that life goes on: after an unknown outcome it does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::client::{CLIENTS, Client, Connector, Sent};
use crate::history::{Action, ClaimedRange, Key, Kind, MicroOp, Offset, Process, Records, Value};
use crate::recorder::Recorder;

/// How often a linearizable read goes on after a part before it gives up reaching the end.
const PARTS_MAX: usize = 200;

/// How an operation ended, for its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It worked.
    Ok,
    /// It did not; the process goes on.
    Failed,
    /// Nobody knows; the process must not go on.
    Unknown,
}

/// One life of a client.
pub struct Life<C: Connector> {
    /// Its name in the history.
    pub process: Process,
    /// Where it stands in each key it has assigned; `None` is the beginning.
    pub positions: BTreeMap<Key, Option<Offset>>,
    client: C::Client,
    recorder: Arc<Recorder>,
    /// It may no longer seek to the beginning.
    polled: bool,
}

impl<C: Connector> Life<C> {
    /// A new process, connected to a broker.
    pub fn new(recorder: &Arc<Recorder>, connector: &C, broker: usize, idempotent: bool) -> Self {
        let (process, client) = (recorder.new_process(), connector.connect(broker, idempotent));
        Self { process, positions: BTreeMap::new(), client, recorder: recorder.clone(), polled: false }
    }

    /// Talks to this broker from now on.
    pub fn use_broker(&mut self, broker: usize) {
        self.client.use_broker(broker);
    }

    /// Reads exactly these keys from now on, each from where it stood, or from where `remembered` says, or from its beginning. With
    /// `seek` all begin anew, if this life may still do that.
    pub fn assign(&mut self, keys: Vec<Key>, seek: bool, remembered: &BTreeMap<Key, Offset>) {
        let seek_to_beginning = seek && !self.polled;
        let position = |key: &Key| match self.positions.get(key) {
            _ if seek_to_beginning => None,
            Some(position) => *position,
            None => remembered.get(key).copied(),
        };
        self.positions = keys.iter().map(|key| (*key, position(key))).collect();
        let action = Action::Assign { keys, seek_to_beginning };
        self.recorder.invoke(self.process, action.clone(), false);
        self.recorder.complete(Kind::Ok, self.process, action, None);
    }

    /// Whether its sends can be told where the log must end.
    pub fn can_condition(&self) -> bool {
        self.client.can_condition()
    }

    /// Whether it can be a member of a consumer group.
    pub fn can_subscribe(&self) -> bool {
        self.client.can_subscribe()
    }

    /// Reads from now on what a consumer group gives it of these keys.
    pub fn subscribe(&mut self, group: String, keys: Vec<Key>) {
        self.positions.clear();
        self.client.subscribe(group, keys.clone());
        let action = Action::Subscribe { keys, seek_to_beginning: false };
        self.recorder.invoke(self.process, action.clone(), false);
        self.recorder.complete(Kind::Ok, self.process, action, None);
    }

    /// Reads what follows in the keys that the group gave it.
    pub async fn poll_group(&mut self) -> Ended {
        self.polled = true;
        self.recorder.invoke(self.process, Action::Poll(vec![MicroOp::Poll(None)]), false);
        let polled = self.client.poll_group().await;
        let error = (!polled.errors.is_empty()).then(|| polled.errors.join("; "));
        let (kind, ended, answer) = match polled.answered {
            true => (Kind::Ok, Ended::Ok, Some(polled.records)),
            false => (Kind::Fail, Ended::Failed, None),
        };
        let action = Action::Poll(vec![MicroOp::Poll(answer)]);
        self.recorder.complete_rebalanced(kind, self.process, action, error, polled.moved);
        ended
    }

    /// Gives its place in the group to others. It may subscribe again.
    pub async fn leave_group(&mut self) {
        self.client.leave_group().await;
    }

    /// The client is thrown away.
    pub fn crash(self) {
        self.recorder.invoke(self.process, Action::Crash, false);
        self.recorder.complete(Kind::Info, self.process, Action::Crash, None);
    }

    /// Sends values to a key, as one batch; with `at`, only if the log ends there.
    pub async fn send(&mut self, key: Key, values: &[Value], at: Option<Offset>) -> Ended {
        let action = |first: Option<Offset>| Action::Send(sent(key, values, first));
        self.recorder.invoke(self.process, action(None), false);
        let sent = self.client.send(key, values, at).await;
        if let (Sent::At(first), Some(wanted)) = (&sent, at)
            && *first != wanted
        {
            let what = format!("a send to key {} only at offset {} went to {}", key.0, wanted.0, first.0);
            self.recorder.accuse(CLIENTS, what);
        }
        let (kind, first, error, ended) = match sent {
            Sent::At(first) => (Kind::Ok, Some(first), None, Ended::Ok),
            Sent::Failed(why) => (Kind::Fail, None, Some(why), Ended::Failed),
            Sent::Unknown(why) => (Kind::Info, None, Some(why), Ended::Unknown),
        };
        self.recorder.complete(kind, self.process, action(first), error);
        ended
    }

    /// Reads what follows in each assigned key. A key that does not answer is left out; it fails only if none answers.
    pub async fn poll(&mut self) -> Ended {
        self.polled = true;
        self.recorder.invoke(self.process, Action::Poll(vec![MicroOp::Poll(None)]), false);
        let (answer, error) = self.fetch_all().await;
        let (kind, ended) = if answer.is_some() { (Kind::Ok, Ended::Ok) } else { (Kind::Fail, Ended::Failed) };
        self.recorder.complete(kind, self.process, Action::Poll(vec![MicroOp::Poll(answer)]), error);
        ended
    }

    /// Fetches every assigned key and moves on in those that answered; `None` if none did. With it: what went wrong.
    async fn fetch_all(&mut self) -> (Option<Vec<(Key, Records)>>, Option<String>) {
        let mut answer = Vec::new();
        let (mut answered, mut errors) = (false, Vec::new());
        for (key, position) in &mut self.positions {
            match self.client.fetch(*key, *position, false).await {
                Ok(fetched) => {
                    answered = true;
                    errors.extend(fetched.foreign);
                    *position = Some(fetched.next);
                    if !fetched.records.is_empty() {
                        answer.push((*key, fetched.records));
                    }
                }
                Err(why) => errors.push(format!("key {}: {why}", key.0)),
            }
        }
        let error = (!errors.is_empty()).then(|| errors.join("; "));
        (answered.then_some(answer), error)
    }

    /// Reads an assigned key to its end, so that nothing acknowledged before is missing.
    pub async fn read_to_the_end(&mut self, key: Key) -> Ended {
        self.polled = true;
        self.recorder.invoke(self.process, Action::Poll(vec![MicroOp::Poll(None)]), true);
        let from = self.positions.get(&key).copied().flatten();
        match self.fetch_to_the_end(key, from).await {
            Ok((records, end)) => {
                let from = from.or(records.first().map(|(offset, _)| *offset)).unwrap_or(end);
                self.positions.insert(key, Some(end));
                let answer = if records.is_empty() { Vec::new() } else { vec![(key, records)] };
                let action = Action::Poll(vec![MicroOp::Poll(Some(answer))]);
                self.recorder.complete_linearizable(self.process, action, vec![ClaimedRange { key, from, end }]);
                Ended::Ok
            }
            Err(why) => {
                self.recorder.fail_linearizable(self.process, Action::Poll(vec![MicroOp::Poll(None)]), why);
                Ended::Failed
            }
        }
    }

    async fn fetch_to_the_end(&mut self, key: Key, mut from: Option<Offset>) -> Result<(Records, Offset), String> {
        let mut records = Vec::new();
        for _ in 0..PARTS_MAX {
            let fetched = self.client.fetch(key, from, true).await?;
            if let Some(foreign) = fetched.foreign.first() {
                return Err(format!("foreign contents: {foreign}"));
            }
            records.extend(fetched.records);
            if fetched.next >= fetched.end {
                return Ok((records, fetched.next));
            }
            if Some(fetched.next) == from {
                return Err(format!("no record at offset {} though the end is {}", fetched.next.0, fetched.end.0));
            }
            from = Some(fetched.next);
        }
        Err(format!("the end was not reached in {PARTS_MAX} parts"))
    }

    /// Sends and polls, one step after the other. A step that fails ends it.
    pub async fn mixed(&mut self, steps: &[Step]) -> Ended {
        self.polled |= steps.iter().any(|step| matches!(step, Step::Poll));
        let asked: Vec<MicroOp> = steps.iter().map(Step::asked).collect();
        self.recorder.invoke(self.process, Action::Txn(asked.clone()), false);
        let mut told = asked;
        // Where it stood: what was read in an operation that failed was never read.
        let before = self.positions.clone();
        let (mut wrote, mut error, mut kind) = (false, None, Kind::Ok);
        for (step, told) in steps.iter().zip(&mut told) {
            let failed = match step {
                Step::Send(key, value) => match self.client.send(*key, &[*value], None).await {
                    Sent::At(offset) => {
                        wrote = true;
                        *told = MicroOp::Send { key: *key, offset: Some(offset), value: *value };
                        None
                    }
                    Sent::Failed(why) => Some((false, why)),
                    Sent::Unknown(why) => Some((true, why)),
                },
                Step::Poll => match self.fetch_all().await {
                    (None, why) => Some((false, why.unwrap_or_default())),
                    (answer, why) => {
                        *told = MicroOp::Poll(answer);
                        error = why.or(error);
                        None
                    }
                },
            };
            if let Some((unknown, why)) = failed {
                // What was written before stays written: only an operation that wrote nothing certainly did not happen.
                kind = if unknown || wrote { Kind::Info } else { Kind::Fail };
                error = Some(why);
                break;
            }
        }
        self.recorder.complete(kind, self.process, Action::Txn(told), error);
        match kind {
            Kind::Ok => Ended::Ok,
            Kind::Fail => {
                self.positions = before;
                Ended::Failed
            }
            _ => Ended::Unknown,
        }
    }
}

/// A step of a mixed operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Append a value to a key.
    Send(Key, Value),
    /// Read what follows in the assigned keys.
    Poll,
}

impl Step {
    fn asked(&self) -> MicroOp {
        match self {
            Self::Send(key, value) => MicroOp::Send { key: *key, offset: None, value: *value },
            Self::Poll => MicroOp::Poll(None),
        }
    }
}

/// The steps of a batch, the first at this offset.
fn sent(key: Key, values: &[Value], first: Option<Offset>) -> Vec<MicroOp> {
    let step = |(at, value): (u64, &Value)| MicroOp::Send {
        key,
        offset: first.map(|first| Offset(first.0 + at)),
        value: *value,
    };
    (0..).zip(values).map(step).collect()
}
