//! What makes a history trustworthy: the rules of the harness, checked before any broker is judged by it.
//!
//! 1. Events are numbered 0, 1, 2, …, and their times never go back.
//! 2. A process does one thing at a time; a completion completes what was invoked: the same `:f`, the same steps, the same
//!    keys and values.
//! 3. After an unknown outcome (`:info`) a process id is never used again. A crash always ends so.
//! 4. A process seeks to the beginning only before it has polled anything: otherwise its positions would seem to go back.
//! 5. A value is sent to a key once in the whole run.
//! 6. A `:send` only sends, a `:poll` only polls. An `:ok` poll has an answer; in what failed or broke off, no answer follows a poll
//!    without one (its records would seem skipped). An `:ok` linearizable read says its ranges.
//!
//! A history that breaks one proves a bug of the harness. It is *unknown*, never valid, and never evidence against a broker.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Event, Key, Kind, MicroOp, Operation, Process, Value};

/// The first rule that a history breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {index}: {what}")]
pub struct Malformed {
    /// Which event, counted from 0.
    pub index: usize,
    /// In words.
    pub what: String,
}

/// One process, so far.
#[derive(Default)]
struct Life {
    open: Option<usize>,
    ended: bool,
    polled: bool,
}

/// Matches every completion with its invocation. Returns the operations in the order of invocation, and for each event the
/// operation it belongs to.
pub(super) fn pair(events: &[Event]) -> Result<(Vec<Operation>, Vec<usize>), Malformed> {
    let mut operations: Vec<Operation> = Vec::with_capacity(events.len() / 2);
    let mut operation_of = Vec::with_capacity(events.len());
    let mut lives: BTreeMap<Process, Life> = BTreeMap::new();
    let mut sent: BTreeSet<(Key, Value)> = BTreeSet::new();
    let mut time_ns = 0;
    for (index, event) in events.iter().enumerate() {
        let fail = |what: String| Malformed { index, what };
        if event.index != index {
            return Err(fail(format!("its :index is {}", event.index)));
        }
        if event.time_ns < time_ns {
            return Err(fail(format!("its time {} is before the last one's, {time_ns}", event.time_ns)));
        }
        time_ns = event.time_ns;
        steps_fit(event).map_err(fail)?;
        let life = lives.entry(event.process).or_default();
        if event.kind == Kind::Invoke {
            may_invoke(event, life).map_err(fail)?;
            values_are_new(event, &mut sent).map_err(fail)?;
            life.open = Some(operations.len());
            operation_of.push(operations.len());
            operations.push(Operation { invoked: index, completed: None, outcome: Kind::Info });
        } else {
            let Some(id) = life.open.take() else {
                return Err(fail(format!("process {} completes what it never invoked", event.process.0)));
            };
            completes(event, &events[operations[id].invoked]).map_err(fail)?;
            operations[id].completed = Some(index);
            operations[id].outcome = event.kind;
            life.ended = event.kind == Kind::Info;
            operation_of.push(id);
        }
    }
    Ok((operations, operation_of))
}

fn may_invoke(event: &Event, life: &mut Life) -> Result<(), String> {
    let process = event.process.0;
    if life.ended {
        return Err(format!("process {process} goes on after an unknown outcome"));
    }
    if life.open.is_some() {
        return Err(format!("process {process} begins an operation before its last one ended"));
    }
    match &event.action {
        Action::Assign { seek_to_beginning: true, .. } | Action::Subscribe { seek_to_beginning: true, .. }
            if life.polled =>
        {
            Err(format!("process {process} seeks to the beginning after it has polled"))
        }
        action => {
            life.polled |= action.micro_ops().iter().any(|step| matches!(step, MicroOp::Poll(_)));
            Ok(())
        }
    }
}

fn values_are_new(event: &Event, sent: &mut BTreeSet<(Key, Value)>) -> Result<(), String> {
    for step in event.action.micro_ops() {
        if let MicroOp::Send { key, value, .. } = step
            && !sent.insert((*key, *value))
        {
            return Err(format!("{} was sent to key {} before", value.0, key.0));
        }
    }
    Ok(())
}

/// Whether one event by itself has the steps that its `:f` and type allow.
fn steps_fit(event: &Event) -> Result<(), String> {
    let (sends, polls) = match event.action {
        Action::Send(_) => (true, false),
        Action::Poll(_) => (false, true),
        _ => (true, true),
    };
    if let Action::Send(steps) | Action::Poll(steps) | Action::Txn(steps) = &event.action
        && steps.is_empty()
    {
        return Err("it has no steps".to_owned());
    }
    let mut unanswered = false;
    for step in event.action.micro_ops() {
        match (step, event.kind) {
            (MicroOp::Send { .. }, _) if !sends => return Err("a :poll sends".to_owned()),
            (MicroOp::Poll(_), _) if !polls => return Err("a :send polls".to_owned()),
            (MicroOp::Send { offset: Some(_), .. }, Kind::Invoke) => {
                return Err("an invocation knows an offset already".to_owned());
            }
            (MicroOp::Poll(Some(_)), Kind::Invoke) => return Err("an invocation has an answer already".to_owned()),
            (MicroOp::Poll(None), Kind::Ok) => return Err("an :ok poll has no answer".to_owned()),
            (MicroOp::Poll(None), _) => unanswered = true,
            (MicroOp::Poll(Some(_)), _) if unanswered => {
                return Err("a poll without an answer comes before one with an answer".to_owned());
            }
            _ => {}
        }
    }
    let answered = event.kind == Kind::Ok && event.linearizable;
    match (answered, event.ranges.is_empty()) {
        (true, true) => Err("an :ok linearizable read does not say its :ranges".to_owned()),
        (false, false) => Err(":ranges belong to an :ok linearizable read only".to_owned()),
        _ => Ok(()),
    }
}

fn completes(completion: &Event, invocation: &Event) -> Result<(), String> {
    let asked = invocation.index;
    if completion.linearizable != invocation.linearizable {
        return Err(format!("only one of it and its invocation, event {asked}, is linearizable"));
    }
    let fits = match (&invocation.action, &completion.action) {
        (Action::Send(a), Action::Send(b)) | (Action::Poll(a), Action::Poll(b)) | (Action::Txn(a), Action::Txn(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| answers(a, b))
        }
        (Action::Crash, Action::Crash) if completion.kind != Kind::Info => {
            return Err("a crash must end as :info".to_owned());
        }
        (asked, told) => asked == told,
    };
    if fits { Ok(()) } else { Err(format!("it does not complete what event {asked} began")) }
}

fn answers(asked: &MicroOp, told: &MicroOp) -> bool {
    match (asked, told) {
        (MicroOp::Send { key, value, .. }, MicroOp::Send { key: told_key, value: told_value, .. }) => {
            key == told_key && value == told_value
        }
        (MicroOp::Poll(_), MicroOp::Poll(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec;
    use super::*;
    use crate::history::History;

    /// Lines without `:index` and `:time`, which are counted.
    fn history(lines: &[&str]) -> Result<History, Malformed> {
        let number =
            |(index, line): (usize, &&str)| line.replacen('{', &format!("{{:index {index}, :time {index}, "), 1);
        let text = lines.iter().enumerate().map(number).collect::<Vec<_>>().join("\n");
        History::new(codec::read(text.as_bytes()).unwrap())
    }

    fn broken(lines: &[&str]) -> String {
        history(lines).unwrap_err().to_string()
    }

    const SEND: &str = "{:type :invoke, :process 0, :f :send, :value [[:send 0 1]]}";
    const SENT: &str = "{:type :ok, :process 0, :f :send, :value [[:send 0 [0 1]]]}";
    const POLL: &str = "{:type :invoke, :process 0, :f :poll, :value [[:poll]]}";
    const POLLED: &str = "{:type :ok, :process 0, :f :poll, :value [[:poll {}]]}";

    #[test]
    fn operations_pair_invocations_with_completions() {
        let other = POLL.replace(":process 0", ":process 1");
        let history = history(&[SEND, &other, SENT, POLL]).unwrap();
        let operation = |invoked, completed, outcome| Operation { invoked, completed, outcome };
        let expected =
            [operation(0, Some(2), Kind::Ok), operation(1, None, Kind::Info), operation(3, None, Kind::Info)];
        assert_eq!(history.operations(), expected);
        assert_eq!((0..4).map(|index| history.operation_of(index)).collect::<Vec<_>>(), [0, 1, 0, 2]);
        assert_eq!(history.outcome_event(0).index, 2);
        assert_eq!(history.outcome_event(1).index, 1);
    }

    #[test]
    fn every_rule_is_checked() {
        assert_eq!(broken(&[SENT]), "event 0: process 0 completes what it never invoked");
        assert_eq!(broken(&[SEND, SENT, SENT]), "event 2: process 0 completes what it never invoked");
        assert_eq!(broken(&[SEND, POLL]), "event 1: process 0 begins an operation before its last one ended");
        assert_eq!(broken(&[SEND, POLLED]), "event 1: it does not complete what event 0 began");
        assert_eq!(
            broken(&[SEND, &SENT.replace("[0 1]", "[0 2]")]),
            "event 1: it does not complete what event 0 began"
        );
        assert_eq!(broken(&[SEND, SENT, SEND]), "event 2: 1 was sent to key 0 before");
        let info = SENT.replace(":ok", ":info");
        assert_eq!(broken(&[SEND, &info, POLL]), "event 2: process 0 goes on after an unknown outcome");
        assert_eq!(broken(&[POLL, &POLLED.replace(" {}", "")]), "event 1: an :ok poll has no answer");
        let late =
            broken(&[&POLL.replace("]]", "] [:poll]]"), &POLLED.replace("[[", "[[:poll] [").replace(":ok", ":fail")]);
        assert_eq!(late, "event 1: a poll without an answer comes before one with an answer");
        assert_eq!(broken(&[&POLL.replace("[:poll]", "[:send 0 1]")]), "event 0: a :poll sends");
        assert_eq!(broken(&[&SEND.replace("[:send 0 1]", "[:poll]")]), "event 0: a :send polls");
        assert_eq!(broken(&[&SEND.replace("[:send 0 1]", "")]), "event 0: it has no steps");
        assert_eq!(broken(&[&SENT.replace(":ok", ":invoke")]), "event 0: an invocation knows an offset already");
        assert_eq!(broken(&[&POLLED.replace(":ok", ":invoke")]), "event 0: an invocation has an answer already");
        let crash = "{:type :invoke, :process 0, :f :crash, :value nil}";
        assert_eq!(broken(&[crash, &crash.replace(":invoke", ":ok")]), "event 1: a crash must end as :info");
        let seek = "{:type :invoke, :process 0, :f :assign, :value [0], :seek-to-beginning? true}";
        assert_eq!(broken(&[POLL, POLLED, seek]), "event 2: process 0 seeks to the beginning after it has polled");
        assert!(history(&[seek, &seek.replace(":invoke", ":ok"), POLL, POLLED]).is_ok());
        // A list of steps that only sends moves no position.
        let [send, sent] = [SEND, SENT].map(|line| line.replace(":f :send", ":f :txn"));
        assert!(history(&[&send, &sent, seek, &seek.replace(":invoke", ":ok")]).is_ok());
    }

    #[test]
    fn a_linearizable_read_says_what_it_covers() {
        let ask = POLL.replace("]]}", "]], :linearizable? true}");
        let told = |rest: &str| POLLED.replace("]]}", &format!("]]{rest}}}"));
        assert!(history(&[&ask, &told(", :linearizable? true, :ranges {0 [0 0]}")]).is_ok());
        assert!(history(&[&ask, &told(", :linearizable? true").replace(":ok", ":fail")]).is_ok());
        let no_ranges = "event 1: an :ok linearizable read does not say its :ranges";
        assert_eq!(broken(&[&ask, &told(", :linearizable? true")]), no_ranges);
        let stray = "event 1: :ranges belong to an :ok linearizable read only";
        assert_eq!(broken(&[POLL, &told(", :ranges {0 [0 0]}")]), stray);
        let one = "event 1: only one of it and its invocation, event 0, is linearizable";
        assert_eq!(broken(&[&ask, POLLED]), one);
    }

    #[test]
    fn numbers_and_times_go_on() {
        let event = |index, time| Event::new(index, time, Kind::Invoke, Process(index as u64), Action::Crash);
        assert_eq!(History::new(vec![event(1, 0)]).unwrap_err().to_string(), "event 0: its :index is 1");
        let back = History::new(vec![event(0, 5), event(1, 4)]).unwrap_err().to_string();
        assert_eq!(back, "event 1: its time 4 is before the last one's, 5");
    }
}
