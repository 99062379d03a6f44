//! One anomaly each, planted in a correct history.

use super::Story;
use crate::checkers::analysis::Analysis;
use crate::history::{Action, Event, History, Key, Kind, MicroOp, Offset, Value};

/// What was planted: what a checker must name.
#[derive(Debug)]
pub(crate) struct Planted {
    pub(crate) key: Key,
    pub(crate) values: Vec<Value>,
    pub(crate) offsets: Vec<Offset>,
    pub(crate) events: Vec<usize>,
}

type Plant = (History, Planted);

/// A process that no history uses.
const NEW: u64 = 1_000_000;
/// A value that no history sends.
const NEW_VALUE: i64 = 1_000_000;

fn planted(key: u64, values: &[i64], offsets: &[u64], events: &[usize]) -> Planted {
    Planted {
        key: Key(key),
        values: values.iter().copied().map(Value).collect(),
        offsets: offsets.iter().copied().map(Offset).collect(),
        events: events.to_vec(),
    }
}

/// The known records of a key, in the order of its log.
pub(crate) fn log(history: &History, key: u64) -> Vec<(u64, i64)> {
    let analysis = Analysis::new(history);
    analysis.keys[&Key(key)].slots.iter().map(|slot| (slot.offset.0, slot.sightings[0].value.0)).collect()
}

/// The first offset that a key has not.
pub(crate) fn end(history: &History, key: u64) -> u64 {
    log(history, key).last().map_or(0, |(offset, _)| offset + 1)
}

fn events_of(history: &History) -> Vec<Event> {
    history.events().to_vec()
}

fn history(events: Vec<Event>) -> History {
    History::new(events).expect("a planted history keeps the rules of the harness")
}

/// Visits all that was polled, of every outcome.
fn each_answer(events: &mut [Event], mut visit: impl FnMut(usize, Key, &mut Vec<(Offset, Value)>)) {
    for event in events {
        let (Action::Poll(steps) | Action::Txn(steps)) = &mut event.action else { continue };
        for step in steps {
            let MicroOp::Poll(Some(reads)) = step else { continue };
            reads.iter_mut().for_each(|(key, pairs)| visit(event.index, *key, pairs));
        }
    }
}

/// A single send that was acknowledged with an offset and has at least `after` known records behind it in its log.
fn acknowledged_send(history: &History, after: usize) -> (usize, u64, u64, i64) {
    let analysis = Analysis::new(history);
    let candidates = history.events().iter().filter(|event| event.kind == Kind::Ok).filter_map(|event| {
        let Action::Send(steps) = &event.action else { return None };
        let [MicroOp::Send { key, offset: Some(offset), value }] = steps.as_slice() else { return None };
        let slots = &analysis.keys[key].slots;
        let behind = slots.len() - slots.partition_point(|slot| slot.offset <= *offset);
        (behind >= after).then_some((event.index, key.0, offset.0, value.0))
    });
    let all: Vec<_> = candidates.collect();
    all[all.len() / 2]
}

pub(crate) fn other_value_at_an_offset(clean: &History) -> Plant {
    let log = log(clean, 0);
    let (offset, value) = log[log.len() / 2];
    let story = Story::after(clean).sent(NEW, &[(0, offset, NEW_VALUE)]);
    let last = story.len() - 1;
    (story.history(), planted(0, &[value, NEW_VALUE], &[offset], &[last]))
}

pub(crate) fn value_again_at_the_end(clean: &History) -> Plant {
    let (log, end) = (log(clean, 0), end(clean, 0));
    let (offset, value) = log[log.len() / 2];
    let story = Story::after(clean).polled(NEW, &[(0, end, value)]);
    let last = story.len() - 1;
    (story.history(), planted(0, &[value], &[offset, end], &[last]))
}

pub(crate) fn loss(clean: &History) -> Plant {
    let (writer, key, offset, value) = acknowledged_send(clean, 3);
    let mut events = events_of(clean);
    each_answer(&mut events, |_, of, pairs| pairs.retain(|(_, read)| of != Key(key) || *read != Value(value)));
    (history(events), planted(key, &[value], &[offset], &[writer]))
}

pub(crate) fn lost_tail(clean: &History) -> Plant {
    let end = end(clean, 0);
    let story = Story::after(clean).sent(NEW, &[(0, end, NEW_VALUE)]);
    let last = story.len() - 1;
    (story.history(), planted(0, &[NEW_VALUE], &[end], &[last]))
}

pub(crate) fn refused_send_that_is_read(clean: &History) -> Plant {
    let (writer, key, offset, value) = acknowledged_send(clean, 0);
    let mut events = events_of(clean);
    events[writer].kind = Kind::Fail;
    events[writer].error = Some("NOT_LEADER, outcome none".to_owned());
    (history(events), planted(key, &[value], &[offset], &[writer]))
}

pub(crate) fn own_value_read(clean: &History) -> Plant {
    let mut events = events_of(clean);
    for event in events.iter_mut().filter(|event| event.kind == Kind::Ok) {
        let Action::Txn(steps) = &mut event.action else { continue };
        let send = steps.iter().find_map(|step| match step {
            MicroOp::Send { key, offset: Some(offset), value } => Some((*key, *offset, *value)),
            _ => None,
        });
        let answer = steps.iter_mut().find_map(|step| match step {
            MicroOp::Poll(Some(reads)) => Some(reads),
            _ => None,
        });
        let (Some((key, offset, value)), Some(reads)) = (send, answer) else { continue };
        reads.retain(|(other, _)| *other != key);
        reads.push((key, vec![(offset, value)]));
        reads.sort_by_key(|(key, _)| *key);
        let index = event.index;
        return (history(events), planted(key.0, &[value.0], &[offset.0], &[index]));
    }
    panic!("no transaction sends and polls");
}

pub(crate) fn phantom(clean: &History) -> Plant {
    let end = end(clean, 0);
    let story = Story::after(clean).polled(NEW, &[(0, end, -77)]);
    let last = story.len() - 1;
    (story.history(), planted(0, &[-77], &[end], &[last]))
}

pub(crate) fn offsets_against_real_time(clean: &History) -> Plant {
    let end = end(clean, 0);
    let story = Story::after(clean).sent(NEW, &[(0, end + 1, NEW_VALUE)]).sent(NEW + 1, &[(0, end, NEW_VALUE + 1)]);
    let last = story.len() - 1;
    (story.history(), planted(0, &[NEW_VALUE, NEW_VALUE + 1], &[end + 1, end], &[last - 2, last - 1, last]))
}

pub(crate) fn stale_answer(clean: &History) -> Plant {
    let end = end(clean, 0);
    let story = Story::after(clean).sent(NEW, &[(0, end, NEW_VALUE)]).linearizable(NEW + 1, &[], (0, end, end));
    let last = story.len() - 1;
    (story.history(), planted(0, &[NEW_VALUE], &[end, end], &[last - 2, last]))
}

pub(crate) fn circle_of_writes(clean: &History) -> Plant {
    let (first, second) = (end(clean, 0), end(clean, 1));
    let story = Story::after(clean).overlapping_sends(&[
        (NEW, &[(0, first, NEW_VALUE), (1, second + 1, NEW_VALUE)]),
        (NEW + 1, &[(0, first + 1, NEW_VALUE + 1), (1, second, NEW_VALUE + 1)]),
    ]);
    let last = story.len() - 1;
    (story.history(), planted(0, &[NEW_VALUE, NEW_VALUE + 1], &[], &[last - 1, last]))
}

pub(crate) fn own_sends_swapped(clean: &History) -> Plant {
    let end = end(clean, 0);
    let story = Story::after(clean).sent(NEW, &[(0, end + 1, NEW_VALUE)]).sent(NEW, &[(0, end, NEW_VALUE + 1)]);
    let last = story.len() - 1;
    (story.history(), planted(0, &[NEW_VALUE, NEW_VALUE + 1], &[], &[last - 2, last]))
}

pub(crate) fn circle_of_information(clean: &History) -> Plant {
    let (mine, yours) = ((0, end(clean, 0), NEW_VALUE), (1, end(clean, 1), NEW_VALUE + 1));
    let story = Story::after(clean).begin(NEW, &[mine]).begin(NEW + 1, &[yours]);
    let story = story.commit(NEW, &[mine], &[yours]).commit(NEW + 1, &[yours], &[mine]);
    let last = story.len() - 1;
    (story.history(), planted(0, &[NEW_VALUE, NEW_VALUE + 1], &[], &[last - 1, last]))
}

pub(crate) fn own_future_read(clean: &History) -> Plant {
    let record = (0, end(clean, 0), NEW_VALUE);
    let story = Story::after(clean).polled(NEW, &[record]).sent(NEW, &[record]);
    let last = story.len() - 1;
    (story.history(), planted(0, &[NEW_VALUE], &[], &[last - 2, last]))
}

pub(crate) fn future_read(clean: &History) -> Plant {
    let record = (0, end(clean, 0), NEW_VALUE);
    let story = Story::after(clean).polled(NEW, &[record]).sent(NEW + 1, &[record]);
    let last = story.len() - 1;
    (story.history(), planted(0, &[NEW_VALUE], &[], &[last - 2, last]))
}

/// Takes one value out of the middle of a poll.
pub(crate) fn hole_in_a_poll(clean: &History) -> Plant {
    let mut events = events_of(clean);
    let mut found = None;
    let answered: Vec<bool> = clean.events().iter().map(|event| event.kind == Kind::Ok).collect();
    each_answer(&mut events, |index, key, pairs| {
        if found.is_none() && pairs.len() >= 3 && answered[index] {
            let (_, skipped) = pairs.remove(1);
            found = Some(planted(key.0, &[pairs[0].1.0, pairs[1].1.0, skipped.0], &[], &[index]));
        }
    });
    (history(events), found.expect("a poll of three records of a key"))
}

/// Turns two records of a poll around.
pub(crate) fn poll_turned_around(clean: &History) -> Plant {
    let mut events = events_of(clean);
    let mut found = None;
    let answered: Vec<bool> = clean.events().iter().map(|event| event.kind == Kind::Ok).collect();
    each_answer(&mut events, |index, key, pairs| {
        if found.is_none() && pairs.len() >= 2 && answered[index] {
            pairs.swap(0, 1);
            found = Some(planted(key.0, &[pairs[0].1.0, pairs[1].1.0], &[], &[index]));
        }
    });
    (history(events), found.expect("a poll of two records of a key"))
}

/// Sends of one operation with another's between them.
pub(crate) fn sends_apart(clean: &History) -> Plant {
    let end = end(clean, 0);
    let story = Story::after(clean).overlapping_sends(&[
        (NEW, &[(0, end, NEW_VALUE), (0, end + 2, NEW_VALUE + 2)]),
        (NEW + 1, &[(0, end + 1, NEW_VALUE + 1)]),
    ]);
    let last = story.len() - 1;
    (story.history(), planted(0, &[NEW_VALUE, NEW_VALUE + 2, NEW_VALUE + 1], &[], &[last - 1]))
}

/// Sends of one operation the wrong way round.
pub(crate) fn sends_turned_around(clean: &History) -> Plant {
    let end = end(clean, 0);
    let story = Story::after(clean).sent(NEW, &[(0, end + 1, NEW_VALUE), (0, end, NEW_VALUE + 1)]);
    let last = story.len() - 1;
    (story.history(), planted(0, &[NEW_VALUE, NEW_VALUE + 1], &[], &[last]))
}

/// A process that polls the first record of a log, then the third.
pub(crate) fn polls_apart(clean: &History) -> Plant {
    let log = log(clean, 0);
    let record = |at: usize| (0, log[at].0, log[at].1);
    let story = Story::after(clean).seek(NEW, &[0]).polled(NEW, &[record(0)]).polled(NEW, &[record(2)]);
    let last = story.len() - 1;
    (story.history(), planted(0, &[log[0].1, log[2].1, log[1].1], &[], &[last - 2, last]))
}

/// A process that polls the first two records of a log, then the second again.
pub(crate) fn polls_back(clean: &History) -> Plant {
    let log = log(clean, 0);
    let record = |at: usize| (0, log[at].0, log[at].1);
    let story = Story::after(clean).seek(NEW, &[0]).polled(NEW, &[record(0), record(1)]).polled(NEW, &[record(1)]);
    let last = story.len() - 1;
    (story.history(), planted(0, &[log[1].1, log[1].1], &[], &[last - 2, last]))
}
