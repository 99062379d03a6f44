//! **Registers are linearizable**: there is an order of all operations on a register in which each takes effect between its
//! invocation and its completion, and each read returns the write before it.
//!
//! Since no value is written twice, it is known which write each read saw, and the search for that order needs no trying: the
//! operations of one value form a *cluster*, whose zone reaches from the earliest completion in it to the latest invocation
//! (forward: the register certainly had this value all that time), or the other way round (backward: at some moment in it it had).
//! The history is linearizable exactly if every read comes after its write began, no two forward zones overlap, and no backward zone
//! lies within a forward one (Gibbons and Korach, *Testing Shared Memories*, SIAM J. Comput. 26, 1997, §4). O(n log n). The tests
//! compare it with the exhaustive search of a checker crate. A write with an unknown outcome never completed: if nobody read
//! it, it may as well come last.

use std::collections::BTreeMap;

use super::{Deed, Register, RegisterOperation, Registers};

/// The most findings that are told.
const TOLD_MAX: usize = 8;

/// The operations of one value.
#[derive(Clone, Copy, Debug)]
struct Zone {
    /// `None`: what the register held before the first write.
    value: Option<u64>,
    /// Index of the earliest completion; beyond all events, if nothing completed.
    first_end: i64,
    /// Index of the latest invocation.
    last_begin: i64,
}

impl Zone {
    fn is_forward(&self) -> bool {
        self.first_end < self.last_begin
    }

    fn low(&self) -> i64 {
        self.first_end.min(self.last_begin)
    }

    fn high(&self) -> i64 {
        self.first_end.max(self.last_begin)
    }
}

/// What is wrong with each register, sentence by sentence; empty if all are linearizable.
pub fn findings(registers: &Registers) -> Vec<String> {
    let mut by_register: BTreeMap<Register, Vec<&RegisterOperation>> = BTreeMap::new();
    for operation in &registers.operations {
        by_register.entry(operation.register).or_default().push(operation);
    }
    let mut found: Vec<String> =
        by_register.iter().flat_map(|(register, operations)| of_register(*register, operations)).collect();
    let count = found.len();
    if count > TOLD_MAX {
        found.truncate(TOLD_MAX);
        found.push(format!("and {} more findings about registers", count - TOLD_MAX));
    }
    found
}

fn of_register(register: Register, operations: &[&RegisterOperation]) -> Vec<String> {
    let told = |what: String| format!("group offset {}: {what}", register.0);
    let mut zones: BTreeMap<Option<u64>, Zone> = BTreeMap::new();
    // It held nothing before anything began.
    zones.insert(None, Zone { value: None, first_end: -1, last_begin: -2 });
    let end = |operation: &RegisterOperation| operation.completed.map_or(i64::MAX, |at| at as i64);
    let mut began: BTreeMap<u64, i64> = BTreeMap::new();
    for operation in operations {
        if let Deed::Write(value) = operation.deed {
            let (begin, end) = (operation.invoked as i64, end(operation));
            began.insert(value, begin);
            zones.insert(Some(value), Zone { value: Some(value), first_end: end, last_begin: begin });
        }
    }
    let mut found = Vec::new();
    for operation in operations {
        let Deed::Read(value) = operation.deed else { continue };
        let (begin, end) = (operation.invoked as i64, end(operation));
        match (zones.get_mut(&value), value.and_then(|value| began.get(&value))) {
            (Some(zone), write) if write.is_none_or(|write| *write < end) => {
                zone.first_end = zone.first_end.min(end);
                zone.last_begin = zone.last_begin.max(begin);
            }
            (Some(_), _) => found.push(told(format!("event {end} reads {} before it was written", shown(value)))),
            (None, _) => found.push(told(format!("event {end} reads {}, which nobody wrote", shown(value)))),
        }
    }
    found.extend(disorder(zones.into_values().collect()).map(told));
    found
}

/// The first two values that cannot both have been there.
fn disorder(mut zones: Vec<Zone>) -> Option<String> {
    zones.sort_by_key(Zone::low);
    let mut forward: Option<Zone> = None;
    // Backward zones begin at their latest invocation: one that begins in a forward zone must end behind it.
    for zone in zones {
        if let Some(held) = forward
            && zone.low() < held.high()
            && (zone.is_forward() || zone.high() < held.high())
        {
            return Some(disagreement(&held, &zone));
        }
        if zone.is_forward() && forward.is_none_or(|held| held.high() < zone.high()) {
            forward = Some(zone);
        }
    }
    None
}

fn disagreement(held: &Zone, other: &Zone) -> String {
    let (held_value, other_value) = (shown(held.value), shown(other.value));
    let (low, high) = (held.low().max(0), held.high());
    if other.is_forward() {
        let (from, to) = (other.low().max(0), other.high());
        return format!(
            "it held {held_value} from event {low} (done) to {high} (asked for, and answered so), and {other_value} from {from} to {to}"
        );
    }
    format!(
        "it held {held_value} from event {low} (done) to {high} (asked for, and answered so), and yet {other_value} was set and \
         done with between, at events {} to {}",
        other.low(),
        other.high()
    )
}

fn shown(value: Option<u64>) -> String {
    value.map_or("nothing".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use todc_utils::linearizability::WGLChecker;
    use todc_utils::linearizability::history::{Action, History};
    use todc_utils::specifications::Specification;

    use super::*;
    use crate::history::{Kind, Process};
    use crate::registers::RegisterEvent;

    /// `(process, deed)`: even entries of a process invoke, odd ones complete.
    fn history(steps: &[(u64, Kind, Deed)]) -> Registers {
        let event = |(index, (process, kind, deed)): (usize, &(u64, Kind, Deed))| RegisterEvent {
            index,
            time_ns: index as u64,
            kind: *kind,
            process: Process(*process),
            register: Register(1),
            deed: *deed,
            error: None,
        };
        Registers::new(steps.iter().enumerate().map(event).collect()).unwrap()
    }

    fn told(steps: &[(u64, Kind, Deed)]) -> Vec<String> {
        findings(&history(steps))
    }

    use Deed::{Read, Write};
    use Kind::{Info, Invoke, Ok as Done};

    #[test]
    fn reads_that_follow_writes_are_fine() {
        let steps = [
            (0, Invoke, Read(None)),
            (0, Done, Read(None)),
            (0, Invoke, Write(1)),
            (1, Invoke, Read(None)),
            (1, Done, Read(Some(1))),
            (0, Done, Write(1)),
            (2, Invoke, Write(2)),
            (2, Info, Write(2)),
            (1, Invoke, Read(None)),
            (1, Done, Read(Some(1))),
            (1, Invoke, Read(None)),
            (1, Done, Read(Some(2))),
        ];
        assert_eq!(told(&steps), Vec::<String>::new());
    }

    #[test]
    fn a_stale_read_is_found() {
        let write = |value| [(0, Invoke, Write(value)), (0, Done, Write(value))];
        let read = |value| [(1, Invoke, Read(None)), (1, Done, Read(value))];
        let stale = [write(1), write(2), read(Some(1))].concat();
        assert!(told(&stale)[0].contains("it held 1 from event 1 (done) to 4"), "{:?}", told(&stale));
        let lost = [write(1), read(None)].concat();
        assert!(told(&lost)[0].contains("it held nothing from event 0"), "{:?}", told(&lost));
        let back = [write(1), write(2), read(Some(2)), read(Some(1))].concat();
        assert_eq!(told(&back).len(), 1);
    }

    #[test]
    fn a_write_that_happens_twice_is_found() {
        let steps = [
            (0, Invoke, Write(1)),
            (1, Invoke, Read(None)),
            (1, Done, Read(Some(1))),
            (2, Invoke, Write(2)),
            (2, Done, Write(2)),
            (1, Invoke, Read(None)),
            (1, Done, Read(Some(1))),
            (0, Done, Write(1)),
        ];
        assert_eq!(told(&steps).len(), 1, "{:?}", told(&steps));
    }

    #[test]
    fn phantoms_and_reads_from_the_future_are_found() {
        assert!(told(&[(1, Invoke, Read(None)), (1, Done, Read(Some(9)))])[0].contains("which nobody wrote"));
        let future = [(1, Invoke, Read(None)), (1, Done, Read(Some(9))), (0, Invoke, Write(9)), (0, Done, Write(9))];
        assert!(told(&future)[0].contains("before it was written"));
    }

    /// A register that holds nothing at first.
    struct Sequential;

    impl Specification for Sequential {
        type State = Option<u64>;
        type Operation = Deed;

        fn init() -> Self::State {
            None
        }

        fn apply(deed: &Deed, state: &Self::State) -> (bool, Self::State) {
            match deed {
                Read(value) => (value == state, *state),
                Write(value) => (true, Some(*value)),
            }
        }
    }

    /// The same by exhaustive search. What never completed comes last.
    fn searched(registers: &Registers) -> bool {
        let mut moments = Vec::new();
        for (process, operation) in registers.operations.iter().enumerate() {
            moments.push((operation.invoked, process, Action::Call(operation.deed)));
            moments.push((operation.completed.unwrap_or(usize::MAX), process, Action::Response(operation.deed)));
        }
        moments.sort_by_key(|(at, ..)| *at);
        if moments.is_empty() {
            return true;
        }
        let actions = moments.into_iter().map(|(_, process, action)| (process, action)).collect();
        WGLChecker::<Sequential>::is_linearizable(History::from_actions(actions))
    }

    /// A random history: processes take turns; what reads return is drawn from what was ever asked for, so that most are wrong
    /// and many are not.
    fn random_history(choices: &[(u8, u8)]) -> Registers {
        let mut open: BTreeMap<u64, Deed> = BTreeMap::new();
        let mut next_process: [u64; 3] = [0, 1, 2];
        let (mut steps, mut values) = (Vec::new(), 0);
        for (who, what) in choices {
            let place = usize::from(who % 3);
            let process = next_process[place];
            match open.remove(&process) {
                None => {
                    let deed = if what % 2 == 0 {
                        values += 1;
                        Write(values)
                    } else {
                        Read(None)
                    };
                    open.insert(process, deed);
                    steps.push((process, Invoke, deed));
                }
                Some(Write(value)) if what % 5 == 0 => {
                    next_process[place] += 3;
                    steps.push((process, Info, Write(value)));
                }
                Some(Write(value)) => steps.push((process, Done, Write(value))),
                Some(Read(_)) => {
                    // Near the newest, so that many histories are linearizable.
                    let value = values.saturating_sub(u64::from(what % 3));
                    steps.push((process, Done, Read((value > 0).then_some(value))));
                }
            }
        }
        history(&steps)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn it_says_what_an_exhaustive_search_says(choices in proptest::collection::vec((any::<u8>(), any::<u8>()), 1..24)) {
            let registers = random_history(&choices);
            prop_assert_eq!(findings(&registers).is_empty(), searched(&registers), "{:?}", findings(&registers));
        }
    }
}
