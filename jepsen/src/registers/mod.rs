//! Registers: a committed offset of a consumer group, as clients that set and read it see it.
//!
//! They have a history of their own, `registers.edn`, in the form of Jepsen's independent registers: `:value [register value]`, one event a
//! line. Values of a register are never written twice, which makes the search for an order quick ([`check`]). A register that was
//! never written reads `nil`.
//!
//! ```edn
//! {:index 0, :time 1200, :type :invoke, :process 3, :f :write, :value [1 40]}
//! {:index 1, :time 5100, :type :ok, :process 3, :f :write, :value [1 40]}
//! {:index 2, :time 5200, :type :invoke, :process 4, :f :read, :value [1 nil]}
//! {:index 3, :time 9000, :type :ok, :process 4, :f :read, :value [1 40]}
//! ```
//!
//! It knows no HTTP and no fault; the clients are in [`crate::workload::registers`].

pub mod check;
pub mod codec;

use crate::history::{Kind, Process};

/// A register: one offset of one consumer group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Register(pub u64);

/// What is done to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Set it to this; no two writes of a register have the same.
    Write(u64),
    /// Read it. `None`: it was never written, or (in an invocation) nobody knows yet.
    Read(Option<u64>),
}

/// One line of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterEvent {
    /// Its place: 0, 1, 2, …
    pub index: usize,
    /// Nanoseconds since the run began, by a monotonic clock.
    pub time_ns: u64,
    /// Invocation, or how it ended.
    pub kind: Kind,
    /// Who.
    pub process: Process,
    /// To which.
    pub register: Register,
    /// What.
    pub deed: Deed,
    /// What the client was told when it did not work.
    pub error: Option<String>,
}

/// An operation, from its invocation to its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterOperation {
    /// To which.
    pub register: Register,
    /// What; with what came back.
    pub deed: Deed,
    /// Index of the event that began it.
    pub invoked: usize,
    /// Index of the event that ended it; `None`: it may still happen.
    pub completed: Option<usize>,
}

/// A whole history of registers, in pairs.
#[derive(Clone, Debug, Default)]
pub struct Registers {
    /// Every event, in order.
    pub events: Vec<RegisterEvent>,
    /// Operations that happened or may have: refused ones are left out, and so are reads that were not answered.
    pub operations: Vec<RegisterOperation>,
    /// How many operations ended how: ok, fail, info.
    pub ended: [u64; 3],
}

impl Registers {
    /// Takes events in order. The error names the first rule that is broken: such a history says nothing about the brokers.
    pub fn new(events: Vec<RegisterEvent>) -> Result<Self, String> {
        let mut open = std::collections::BTreeMap::new();
        let mut written = std::collections::BTreeSet::new();
        let (mut operations, mut ended, mut last_ns) = (Vec::new(), [0; 3], 0);
        for (at, event) in events.iter().enumerate() {
            let fail = |what: &str| Err(format!("event {at} of the registers: {what}"));
            if event.index != at || event.time_ns < last_ns {
                return fail("it is out of order");
            }
            last_ns = event.time_ns;
            if event.kind == Kind::Invoke {
                if let Deed::Write(value) = event.deed
                    && !written.insert((event.register, value))
                {
                    return fail("its value was written before");
                }
                if open.insert(event.process, at).is_some() {
                    return fail("its process has an operation open");
                }
                continue;
            }
            let Some(invoked) = open.remove(&event.process) else { return fail("nobody asked for it") };
            let asked: &RegisterEvent = &events[invoked];
            let same = match (asked.deed, event.deed) {
                (Deed::Write(asked), Deed::Write(told)) => asked == told,
                (Deed::Read(_), Deed::Read(_)) => true,
                _ => false,
            };
            if asked.register != event.register || !same {
                return fail("it was not asked for like that");
            }
            let (place, completed) = match event.kind {
                Kind::Ok => (0, Some(at)),
                Kind::Fail => (1, None),
                _ => (2, None),
            };
            ended[place] += 1;
            let unread = matches!(event.deed, Deed::Read(_)) && completed.is_none();
            if event.kind != Kind::Fail && !unread {
                operations.push(RegisterOperation { register: event.register, deed: event.deed, invoked, completed });
            }
        }
        for invoked in open.into_values() {
            ended[2] += 1;
            let RegisterEvent { register, deed, .. } = events[invoked];
            if matches!(deed, Deed::Write(_)) {
                operations.push(RegisterOperation { register, deed, invoked, completed: None });
            }
        }
        operations.sort_by_key(|operation| operation.invoked);
        Ok(Self { events, operations, ended })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(index: usize, kind: Kind, process: u64, deed: Deed) -> RegisterEvent {
        let (process, register) = (Process(process), Register(1));
        RegisterEvent { index, time_ns: index as u64, kind, process, register, deed, error: None }
    }

    #[test]
    fn what_was_refused_or_not_answered_is_no_operation() {
        let events = vec![
            event(0, Kind::Invoke, 0, Deed::Write(1)),
            event(1, Kind::Invoke, 1, Deed::Write(2)),
            event(2, Kind::Invoke, 2, Deed::Read(None)),
            event(3, Kind::Fail, 0, Deed::Write(1)),
            event(4, Kind::Info, 1, Deed::Write(2)),
            event(5, Kind::Fail, 2, Deed::Read(None)),
            event(6, Kind::Invoke, 3, Deed::Write(3)),
        ];
        let registers = Registers::new(events).unwrap();
        let deeds: Vec<Deed> = registers.operations.iter().map(|operation| operation.deed).collect();
        assert_eq!((deeds, registers.ended), (vec![Deed::Write(2), Deed::Write(3)], [0, 2, 2]));
    }

    #[test]
    fn a_history_that_breaks_its_rules_is_refused() {
        let twice = vec![event(0, Kind::Invoke, 0, Deed::Write(1)), event(1, Kind::Invoke, 1, Deed::Write(1))];
        assert!(Registers::new(twice).unwrap_err().contains("written before"));
        assert!(Registers::new(vec![event(0, Kind::Ok, 0, Deed::Write(1))]).unwrap_err().contains("nobody asked"));
        assert!(Registers::new(vec![event(1, Kind::Invoke, 0, Deed::Write(1))]).unwrap_err().contains("out of order"));
        let other = vec![event(0, Kind::Invoke, 0, Deed::Write(1)), event(1, Kind::Ok, 0, Deed::Write(2))];
        assert!(Registers::new(other).unwrap_err().contains("not asked for like that"));
    }
}
