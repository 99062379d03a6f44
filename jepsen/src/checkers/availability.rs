//! One broker away, and nothing else wrong: the others go on.
//!
//! While a single broker is killed (`kill-one`, for as short or long as that lasts) and when it comes back and catches up, every key must
//! take writes, but for the first seconds, which an election may need. What is held against the brokers: somebody sent to a key, several
//! sends were tried from then on, and for [`SILENCE_NS`] none of them was acknowledged. (Redpanda #9718: a node was back after ten minutes, and
//! throughput fell to zero while it caught up.) What never recovers is held against them until the harness gives up. A fault that overlaps
//! with another one shows nothing.

use super::sends::{self, Sends};
use crate::history::History;
use crate::timeline::{Fault, Timeline};

/// The fault that the others must bear.
const KIND: &str = "kill-one";
/// So long after it began all may stand still.
const GRACE_NS: u64 = 5_000_000_000;
/// So long nothing may be acknowledged for a key.
const SILENCE_NS: u64 = 10_000_000_000;
/// With fewer sends than this in such a time nothing is said: some are refused for good reasons.
const TRIES_MIN: usize = 5;

/// What brokers did not do while one of them was away, sentence by sentence.
pub fn accusations(timeline: &Timeline, history: &History) -> Vec<String> {
    let keys = sends::by_key(history);
    let errors_ns = timeline.harness_errors.iter().map(|(time_ns, _)| *time_ns);
    let given_up_ns = errors_ns.chain([history.end_ns()]).min().unwrap_or(0);
    let mut found = Vec::new();
    for fault in timeline.faults.iter().filter(|fault| fault.kind == KIND && is_alone(fault, &timeline.faults)) {
        let until_ns = fault.recovered.as_ref().map_or(given_up_ns, |(recovered_ns, _)| *recovered_ns);
        for (key, sends) in &keys {
            if let Some(from_ns) = silence(sends, fault.start_ns + GRACE_NS, until_ns) {
                found.push(format!(
                    "only {} was away (fault {}), and from {:.3} s on no send to key {} was acknowledged for {} s",
                    fault.targets.join(", "),
                    fault.id,
                    from_ns as f64 / 1e9,
                    key.0,
                    SILENCE_NS / 1_000_000_000
                ));
            }
        }
    }
    found
}

/// From its beginning to its recovery there was no other.
fn is_alone(fault: &Fault, all: &[Fault]) -> bool {
    let end_ns = |fault: &Fault| fault.recovered.as_ref().map_or(u64::MAX, |(recovered_ns, _)| *recovered_ns);
    let overlaps = |other: &&Fault| other.start_ns < end_ns(fault) && fault.start_ns < end_ns(other);
    !all.iter().filter(|other| other.id != fault.id).any(|other| overlaps(&other))
}

/// When a send was asked for, between the two, after which too long none was acknowledged.
fn silence(sends: &Sends, from_ns: u64, to_ns: u64) -> Option<u64> {
    let in_time = |at_ns: u64| (from_ns..=to_ns.saturating_sub(SILENCE_NS)).contains(&at_ns);
    let tries = |at_ns: u64| {
        let end = sends.invoked_ns.partition_point(|time_ns| *time_ns <= at_ns + SILENCE_NS);
        end - sends.invoked_ns.partition_point(|time_ns| *time_ns < at_ns)
    };
    let silent = |at_ns: u64| {
        let next = sends.acknowledged_ns.partition_point(|(time_ns, _)| *time_ns < at_ns);
        sends.acknowledged_ns.get(next).is_none_or(|(time_ns, _)| *time_ns > at_ns + SILENCE_NS)
    };
    let mut asked = sends.invoked_ns.iter().copied().filter(|at_ns| in_time(*at_ns));
    asked.find(|at_ns| silent(*at_ns) && tries(*at_ns) >= TRIES_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Action, Event, Key, Kind, MicroOp, Offset, Process, Value};
    use crate::testing::a_fault;

    /// A send to key 0 every second; those from one second on to another are refused.
    fn history(refused: std::ops::Range<u64>) -> History {
        let mut events = Vec::new();
        for second in 0..60 {
            let ok = !refused.contains(&second);
            let send = |offset| Action::Send(vec![MicroOp::Send { key: Key(0), offset, value: Value(second as i64) }]);
            let time_ns = second * 1_000_000_000;
            events.push(Event::new(events.len(), time_ns, Kind::Invoke, Process(0), send(None)));
            let (kind, offset) = if ok { (Kind::Ok, Some(Offset(second))) } else { (Kind::Fail, None) };
            events.push(Event::new(events.len(), time_ns + 1_000_000, kind, Process(0), send(offset)));
        }
        History::new(events).unwrap()
    }

    fn fault(id: u64, kind: &str, from_s: u64, to_s: u64) -> Fault {
        let [start_ns, end_ns] = [from_s, to_s].map(|second| second * 1_000_000_000);
        let recovered = Some((end_ns, "seen".to_owned()));
        Fault { id, start_ns, stop_ns: Some(end_ns - 1), recovered, ..a_fault(kind) }
    }

    fn accused(refused: std::ops::Range<u64>, faults: Vec<Fault>) -> Vec<String> {
        accusations(&Timeline { faults, ..Timeline::default() }, &history(refused))
    }

    #[test]
    fn a_key_that_takes_nothing_while_one_broker_is_away_accuses() {
        let away = || vec![fault(0, KIND, 10, 50)];
        assert_eq!(
            accused(20..32, away()),
            ["only n1 was away (fault 0), and from 20.000 s on no send to key 0 was acknowledged for 10 s"]
        );
        // Catching up is part of it.
        assert_eq!(accused(38..50, away()).len(), 1);
    }

    #[test]
    fn an_election_a_short_silence_and_what_else_is_broken_accuse_nobody() {
        let away = || vec![fault(0, KIND, 10, 50)];
        assert!(accused(60..60, away()).is_empty());
        assert!(accused(10..24, away()).is_empty(), "the first seconds");
        assert!(accused(20..29, away()).is_empty(), "not so long");
        assert!(accused(49..60, away()).is_empty(), "after it");
        assert!(accused(20..40, vec![fault(0, "kill-majority", 10, 50)]).is_empty());
        assert!(accused(20..40, vec![fault(0, KIND, 10, 50), fault(1, "loss", 49, 55)]).is_empty());
        assert_eq!(accused(20..40, vec![fault(0, KIND, 10, 50), fault(1, "loss", 50, 55)]).len(), 1);
    }

    #[test]
    fn what_never_recovers_accuses_until_the_harness_gives_up() {
        let lost = || Fault { recovered: None, ..fault(0, KIND, 10, 15) };
        let found = accused(20..60, vec![lost()]);
        assert!(found.len() == 1 && found[0].contains("from 20.000 s on no send to key 0"), "{found:?}");
        assert!(accused(60..60, vec![lost()]).is_empty(), "it takes writes all the while");
        let given_up = |second: u64| {
            let harness_errors = vec![(second * 1_000_000_000, "the cluster did not recover".to_owned())];
            accusations(&Timeline { faults: vec![lost()], harness_errors, ..Timeline::default() }, &history(20..60))
        };
        assert_eq!((given_up(29).len(), given_up(30).len()), (0, 1));
        assert!(accused(20..60, vec![lost(), fault(1, "loss", 11, 12)]).is_empty(), "something else is broken");
    }

    #[test]
    fn a_few_refusals_where_hardly_anybody_sends_say_nothing() {
        let second = |s: u64| s * 1_000_000_000;
        let sends = Sends { invoked_ns: (20..24).map(second).collect(), acknowledged_ns: Vec::new() };
        assert_eq!(silence(&sends, second(10), second(50)), None);
        let sends = Sends { invoked_ns: (20..25).map(second).collect(), acknowledged_ns: Vec::new() };
        assert_eq!(silence(&sends, second(10), second(50)), Some(second(20)));
    }
}
