//! The checkers: what a history must not show, one anomaly (or one family of cycles) a file, with its definition in the header.
//!
//! Each takes the [`Analysis`] and names what it finds with the operations that prove it. They know no broker and no file. All
//! are O(n log n) in the records sent and read; a test counts. What may be found in which workload is the table in [`workloads`];
//! what makes a run worthless rather than wrong is in [`faults`] and [`harness`]; that nothing stands still without need in [`availability`]; consumer groups, which are no part of the history, are
//! judged in [`generations`]; the sum of it all is [`crate::verdict`].

pub mod analysis;
pub mod availability;
pub mod duplicate;
pub mod faults;
pub mod g0;
pub mod g1a;
pub mod g1c;
pub mod generations;
pub mod graph;
pub mod harness;
pub mod inconsistent_offsets;
pub mod int_nonmonotonic_poll;
pub mod int_nonmonotonic_send;
pub mod int_poll_skip;
pub mod int_send_skip;
pub mod lost_write;
pub mod nonmonotonic_poll;
pub mod nonmonotonic_send;
pub mod phantom;
pub mod poll_skip;
pub mod precommitted_read;
pub mod realtime_send_order;
pub mod sends;
pub mod stale_read;
pub mod successive;
pub mod under_faults;
pub mod unseen;
pub mod workloads;

use analysis::Analysis;
use workloads::Workload;

use crate::history::{Key, Offset, Value};

/// How many cases of one anomaly are kept with their evidence. All are counted.
pub const CASES_MAX: usize = 32;

/// What a history can show that a correct log never does, by its name in results and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is defined in the header of its checker")]
pub enum Anomaly {
    InconsistentOffsets,
    Duplicate,
    LostWrite,
    Unseen,
    G1a,
    PrecommittedRead,
    IntPollSkip,
    IntNonmonotonicPoll,
    IntSendSkip,
    IntNonmonotonicSend,
    PollSkip,
    NonmonotonicPoll,
    NonmonotonicSend,
    G0,
    G0Process,
    G0Realtime,
    G1c,
    G1cProcess,
    G1cRealtime,
    RealtimeSendOrder,
    StaleRead,
    Phantom,
}

impl Anomaly {
    /// The name: Jepsen's where Jepsen has one.
    pub fn name(self) -> &'static str {
        match self {
            Self::InconsistentOffsets => "inconsistent-offsets",
            Self::Duplicate => "duplicate",
            Self::LostWrite => "lost-write",
            Self::Unseen => "unseen",
            Self::G1a => "G1a",
            Self::PrecommittedRead => "precommitted-read",
            Self::IntPollSkip => "int-poll-skip",
            Self::IntNonmonotonicPoll => "int-nonmonotonic-poll",
            Self::IntSendSkip => "int-send-skip",
            Self::IntNonmonotonicSend => "int-nonmonotonic-send",
            Self::PollSkip => "poll-skip",
            Self::NonmonotonicPoll => "nonmonotonic-poll",
            Self::NonmonotonicSend => "nonmonotonic-send",
            Self::G0 => "G0",
            Self::G0Process => "G0-process",
            Self::G0Realtime => "G0-realtime",
            Self::G1c => "G1c",
            Self::G1cProcess => "G1c-process",
            Self::G1cRealtime => "G1c-realtime",
            Self::RealtimeSendOrder => "realtime-send-order",
            Self::StaleRead => "stale-read",
            Self::Phantom => "phantom",
        }
    }
}

/// One anomaly, with the evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// What is wrong, in a sentence a person can follow.
    pub message: String,
    /// The partition, if it is about one.
    pub key: Option<Key>,
    /// The values it is about, in the order of the message.
    pub values: Vec<Value>,
    /// The offsets it is about, in the order of the message.
    pub offsets: Vec<Offset>,
    /// The events that prove it, by index in the history, in the order in which they tell the story.
    pub events: Vec<usize>,
}

impl Case {
    /// A case of one partition.
    pub fn of(key: Key, message: String) -> Self {
        Self { message, key: Some(key), values: Vec::new(), offsets: Vec::new(), events: Vec::new() }
    }

    /// With these values.
    pub fn values(mut self, values: impl IntoIterator<Item = Value>) -> Self {
        self.values.extend(values);
        self
    }

    /// With these offsets.
    pub fn offsets(mut self, offsets: impl IntoIterator<Item = Offset>) -> Self {
        self.offsets.extend(offsets);
        self
    }

    /// With these events.
    pub fn events(mut self, events: impl IntoIterator<Item = usize>) -> Self {
        self.events.extend(events);
        self
    }
}

/// All that one checker found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// How often.
    pub count: usize,
    /// The first [`CASES_MAX`] of them.
    pub cases: Vec<Case>,
}

impl Findings {
    /// Counts one more. Its evidence is gathered only while there is room for it.
    pub fn push(&mut self, case: impl FnOnce() -> Case) {
        self.count += 1;
        if self.cases.len() < CASES_MAX {
            self.cases.push(case());
        }
    }
}

/// One checker.
#[derive(Clone, Copy)]
pub struct Checker {
    /// What it finds.
    pub anomaly: Anomaly,
    /// The definition in a line.
    pub summary: &'static str,
    /// Finds it.
    pub check: fn(&Analysis<'_>, Workload) -> Findings,
}

/// Every checker, in the order in which results are shown: the worst first.
pub const CHECKERS: &[Checker] = &[
    lost_write::CHECKER,
    unseen::CHECKER,
    inconsistent_offsets::CHECKER,
    duplicate::CHECKER,
    phantom::CHECKER,
    g1a::CHECKER,
    stale_read::CHECKER,
    realtime_send_order::CHECKER,
    poll_skip::CHECKER,
    nonmonotonic_poll::CHECKER,
    nonmonotonic_send::CHECKER,
    int_poll_skip::CHECKER,
    int_nonmonotonic_poll::CHECKER,
    int_send_skip::CHECKER,
    int_nonmonotonic_send::CHECKER,
    precommitted_read::CHECKER,
    g0::CHECKER,
    g0::PROCESS_CHECKER,
    g0::REALTIME_CHECKER,
    g1c::CHECKER,
    g1c::PROCESS_CHECKER,
    g1c::REALTIME_CHECKER,
];

/// What one checker found, and whether the workload allows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Which anomaly.
    pub anomaly: Anomaly,
    /// The workload may show it.
    pub allowed: bool,
    /// What was found; often nothing.
    pub findings: Findings,
}

/// Runs every checker.
pub fn run(analysis: &Analysis<'_>, workload: Workload) -> Vec<Outcome> {
    let outcome = |checker: &Checker| Outcome {
        anomaly: checker.anomaly,
        allowed: workload.allows(checker.anomaly),
        findings: (checker.check)(analysis, workload),
    };
    CHECKERS.iter().map(outcome).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checkers::workloads::TABLE;
    use crate::history::{Action, Event, History, MicroOp};
    use crate::testing::{Generator, Story, found_names, plant, simple_log, transactions};
    use crate::timeline::Timeline;

    #[test]
    fn every_anomaly_has_one_checker_and_one_name() {
        let mut names: Vec<&str> = CHECKERS.iter().map(|checker| checker.anomaly.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CHECKERS.len());
        assert_eq!(CHECKERS.len(), Anomaly::Phantom as usize + 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

        #[test]
        fn correct_histories_never_give_a_false_alarm(
            seed in any::<u64>(), row in 0..TABLE.len(), clients in 1..8usize, keys in 1..5u64, operations in 1..300usize,
        ) {
            let row = &TABLE[row];
            let mut generator = Generator::new(row.workload, seed);
            (generator.clients, generator.keys, generator.operations) = (clients, keys, operations);
            let history = generator.history();
            let analysis = Analysis::new(&history);
            for outcome in run(&analysis, row.workload) {
                let alarm = !outcome.allowed && outcome.findings.count > 0;
                prop_assert!(!alarm, "{} in {}: {:?}", outcome.anomaly.name(), row.name, outcome.findings.cases[0]);
            }
            let timeline = Timeline { end_ns: Some(history.end_ns()), ..Timeline::default() };
            let under = under_faults::UnderFaults::of(&timeline, 3);
            let unknown = harness::unknowns(&timeline, &analysis, &under);
            prop_assert!(unknown.iter().all(|why| why.contains("nothing was tested")), "{unknown:?}");
        }
    }

    type Plants = &'static [(Anomaly, fn(&History) -> (History, plant::Planted))];

    const PLANTS: Plants = &[
        (Anomaly::InconsistentOffsets, plant::other_value_at_an_offset),
        (Anomaly::Duplicate, plant::value_again_at_the_end),
        (Anomaly::LostWrite, plant::loss),
        (Anomaly::Unseen, plant::lost_tail),
        (Anomaly::G1a, plant::refused_send_that_is_read),
        (Anomaly::Phantom, plant::phantom),
        (Anomaly::StaleRead, plant::stale_answer),
        (Anomaly::RealtimeSendOrder, plant::offsets_against_real_time),
        (Anomaly::IntPollSkip, plant::hole_in_a_poll),
        (Anomaly::IntNonmonotonicPoll, plant::poll_turned_around),
        (Anomaly::IntSendSkip, plant::sends_apart),
        (Anomaly::IntNonmonotonicSend, plant::sends_turned_around),
        (Anomaly::PollSkip, plant::polls_apart),
        (Anomaly::NonmonotonicPoll, plant::polls_back),
        (Anomaly::NonmonotonicSend, plant::own_sends_swapped),
        (Anomaly::G0, plant::circle_of_writes),
        (Anomaly::G0Process, plant::own_sends_swapped),
        (Anomaly::G0Realtime, plant::offsets_against_real_time),
        (Anomaly::G1cProcess, plant::own_future_read),
        (Anomaly::G1cRealtime, plant::future_read),
    ];

    #[test]
    fn whatever_is_planted_is_found_on_every_seed() {
        for seed in 0..12 {
            let clean = simple_log(seed);
            assert_eq!(found_names(&clean), Vec::<String>::new(), "seed {seed}");
            for (anomaly, plant) in PLANTS {
                let (history, planted) = plant(&clean);
                let names = found_names(&history);
                assert!(names.contains(&anomaly.name().to_owned()), "seed {seed}: {} among {names:?}", anomaly.name());
                let findings = crate::testing::found(&history, *anomaly);
                let named =
                    findings.cases.iter().any(|case| planted.values.iter().all(|value| case.values.contains(value)));
                assert!(named, "seed {seed}: {}: {planted:?} among {:?}", anomaly.name(), findings.cases);
            }
            let clean = transactions(seed);
            for (anomaly, plant) in [
                (Anomaly::G1c, plant::circle_of_information as fn(&History) -> _),
                (Anomaly::PrecommittedRead, plant::own_value_read),
            ] {
                let (history, _) = plant(&clean);
                assert!(
                    crate::testing::found_in(&history, anomaly, Workload::Txn).count > 0,
                    "seed {seed}: {}",
                    anomaly.name()
                );
            }
        }
    }

    /// How many records are sent and read, and how many steps all checkers take over them.
    fn work(events: Vec<Event>, workload: Workload) -> (f64, f64) {
        let records = |step: &MicroOp| match step {
            MicroOp::Poll(Some(reads)) => reads.iter().map(|(_, pairs)| pairs.len()).sum(),
            _ => 1,
        };
        let size: usize =
            events.iter().map(|event| 1 + event.action.micro_ops().iter().map(records).sum::<usize>()).sum();
        let history = History::new(events).expect("well-formed");
        let analysis = Analysis::new(&history);
        run(&analysis, workload);
        (size as f64, analysis.meter.steps() as f64)
    }

    /// Steps per n log n, of a history and one many times as long. The mix of records and operations is not quite the same in
    /// both, so the figure may grow a little; over 50 times the length, a quadratic step would make it grow thirtyfold.
    fn holds_to_n_log_n(name: &str, workload: Workload, events: impl Fn(usize) -> Vec<Event>) {
        let per_n_log_n = |(size, steps): (f64, f64)| steps / (size * size.log2());
        let small = work(events(400), workload);
        let large = work(events(6400), workload);
        assert!(large.0 > 10.0 * small.0, "{name}: {} is not much more than {}", large.0, small.0);
        assert!(per_n_log_n(large) < 2.0 * per_n_log_n(small), "{name}: {small:?} then {large:?}");
        assert!(per_n_log_n(large) < 10.0, "{name}: {large:?}");
    }

    fn generated(workload: Workload, operations: usize) -> Vec<Event> {
        let mut generator = Generator::new(workload, 5);
        // One key, so that one log holds everything.
        (generator.operations, generator.keys) = (operations, 1);
        generator.events()
    }

    /// `n` values, each sent once, and read by one process, ten at a time; but for those that `lost` picks.
    fn sent_and_read_once(n: usize, lost: impl Fn(i64) -> bool) -> Vec<Event> {
        let record = |at: usize| (0, at as u64, at as i64);
        let story = (0..n).fold(Story::new(), |story, at| story.sent(at as u64 % 7, &[record(at)]));
        let all: Vec<_> = (0..n).map(record).filter(|record| !lost(record.2)).collect();
        let story = all.chunks(10).fold(story.seek(8, &[0]), |story, chunk| story.polled(8, chunk));
        story.history().events().to_vec()
    }

    fn polls(events: &mut [Event]) -> impl Iterator<Item = &mut Vec<(Offset, Value)>> {
        let steps = events.iter_mut().flat_map(|event| match &mut event.action {
            Action::Poll(steps) | Action::Txn(steps) => steps.as_mut_slice(),
            _ => &mut [],
        });
        let answers = steps.filter_map(|step| match step {
            MicroOp::Poll(Some(reads)) => Some(reads),
            _ => None,
        });
        answers.flatten().map(|(_, pairs)| pairs)
    }

    #[test]
    fn checkers_take_n_log_n_steps_over_correct_histories() {
        holds_to_n_log_n("single", Workload::Single, |n| generated(Workload::Single, n));
        holds_to_n_log_n("transactions", Workload::Txn, |n| generated(Workload::Txn, n));
        holds_to_n_log_n("many values", Workload::Single, |n| sent_and_read_once(4 * n, |_| false));
    }

    #[test]
    fn checkers_take_n_log_n_steps_over_the_worst_histories() {
        holds_to_n_log_n("every other value lost", Workload::Single, |n| {
            let mut events = generated(Workload::Single, n);
            polls(&mut events).for_each(|pairs| pairs.retain(|(_, value)| value.0 % 2 == 0));
            events
        });
        holds_to_n_log_n("many values, most of them lost", Workload::Single, |n| {
            sent_and_read_once(4 * n, |value| value % 3 > 0 || value == 0)
        });
        holds_to_n_log_n("every linearizable read claims everything and has nothing", Workload::Single, |n| {
            let mut events = generated(Workload::Single, n);
            for event in events.iter_mut().filter(|event| event.linearizable) {
                event.ranges.iter_mut().for_each(|range| range.from = Offset(0));
                polls(std::slice::from_mut(event)).for_each(Vec::clear);
            }
            events
        });
        holds_to_n_log_n("every poll backwards", Workload::Single, |n| {
            let mut events = generated(Workload::Single, n);
            polls(&mut events).for_each(|pairs| pairs.reverse());
            events
        });
        holds_to_n_log_n("two values at every offset", Workload::Single, |n| {
            let mut events = generated(Workload::Single, n);
            polls(&mut events).flatten().for_each(|(offset, _)| offset.0 /= 2);
            events
        });
        // The first read sees the last send: all that lies between is one component.
        holds_to_n_log_n("one great circle", Workload::Single, |n| {
            let mut events = generated(Workload::Single, n);
            let last = polls(&mut events).flatten().map(|(_, value)| *value).max().expect("something is read");
            let mut first = polls(&mut events).filter(|pairs| !pairs.is_empty());
            first.next().expect("something is read")[0].1 = last;
            drop(first);
            events
        });
    }
}
