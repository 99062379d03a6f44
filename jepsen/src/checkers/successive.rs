//! Walks over values of a key that follow each other, within one operation or from one operation of a process to its next: what
//! all skip and order checkers share. It judges nothing.

use std::collections::BTreeMap;

use super::analysis::{Analysis, OperationId};
use super::{Case, Findings};
use crate::history::{Action, Key, Kind, Value};

/// How many skipped values a case names.
const SKIPPED_MAX: usize = 8;

/// What is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Values that were polled.
    Polls,
    /// Values that were sent.
    Sends,
}

/// Two values of a key, one right after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// In this key's log.
    pub key: Key,
    /// The first value.
    pub first: Value,
    /// The next one.
    pub second: Value,
    /// The operation of the first.
    pub from: OperationId,
    /// The operation of the second; the same within one operation.
    pub to: OperationId,
    /// δ: how many indices the second stands after the first; 1 if unknown.
    pub delta: i64,
}

impl Pair {
    /// The evidence of a skip, with what was skipped.
    pub fn skip(&self, analysis: &Analysis<'_>, what: &str) -> Case {
        let place = analysis.facts(self.key, self.first).and_then(|(log, facts)| Some((log, facts.indices?.1)));
        let skipped = place.map_or(Vec::new(), |(log, index)| {
            log.between(index, index.saturating_add_signed(self.delta as isize), SKIPPED_MAX)
        });
        let names = skipped.iter().map(|value| value.0.to_string()).collect::<Vec<_>>().join(", ");
        let more = if self.delta - 1 > skipped.len() as i64 { ", …" } else { "" };
        let message = format!(
            "{what} {} right after {} of key {}, though {} stood between them: {names}{more}",
            self.second.0,
            self.first.0,
            self.key.0,
            self.delta - 1
        );
        self.case(analysis, message).values(skipped)
    }

    /// The evidence of a step that did not go forward.
    pub fn back(&self, analysis: &Analysis<'_>, what: &str) -> Case {
        let how = match self.delta {
            0 => "which is the same place of the log".to_owned(),
            delta => format!("which stands {} before it in the log", -delta),
        };
        let message = format!("{what} {} after {} of key {}, {how}", self.second.0, self.first.0, self.key.0);
        self.case(analysis, message)
    }

    fn case(&self, analysis: &Analysis<'_>, message: String) -> Case {
        let mut events = vec![analysis.evidence(self.from), analysis.evidence(self.to)];
        events.dedup();
        Case::of(self.key, message).values([self.first, self.second]).events(events)
    }
}

/// The values of one operation on one side, in order.
fn values(analysis: &Analysis<'_>, side: Side, id: OperationId) -> Vec<(Key, Value)> {
    match side {
        Side::Polls => analysis.reads(id).map(|(key, _, value)| (key, value)).collect(),
        Side::Sends => analysis.sends(id).map(|sent| (sent.key, sent.value)).collect(),
    }
}

/// Every two successive values of a key within one operation, whatever its outcome. For polls, keys that a consumer group moved
/// meanwhile are left out.
pub fn within(analysis: &Analysis<'_>, side: Side, mut found: impl FnMut(Pair)) {
    for id in 0..analysis.history.operations().len() {
        let rebalanced: &[Key] = if side == Side::Polls { &analysis.event(id).rebalanced } else { &[] };
        let mut last: BTreeMap<Key, Value> = BTreeMap::new();
        for (key, second) in values(analysis, side, id) {
            if let Some(first) = last.insert(key, second)
                && rebalanced.binary_search(&key).is_err()
            {
                let delta = analysis.delta(key, first, second).unwrap_or(1);
                found(Pair { key, first, second, from: id, to: id, delta });
            }
        }
    }
}

/// For each process and key: the last value of one operation and the first of its next.
///
/// Polls: only an `:ok` operation moves the position (what failed or broke off is read again), and an assign or subscribe that may
/// have happened forgets the keys it does not name. Sends: operations that may have happened.
pub fn between(analysis: &Analysis<'_>, side: Side, mut found: impl FnMut(Pair)) {
    let mut process = None;
    let mut last: BTreeMap<Key, (Value, OperationId)> = BTreeMap::new();
    for &id in &analysis.by_process {
        let event = analysis.event(id);
        let outcome = analysis.operation(id).outcome;
        analysis.meter.add(1);
        if process.replace(event.process) != Some(event.process) {
            last.clear();
        }
        if let Action::Assign { keys, .. } | Action::Subscribe { keys, .. } = &event.action {
            if side == Side::Polls && outcome != Kind::Fail {
                last = keys.iter().filter_map(|key| Some((*key, *last.get(key)?))).collect();
            }
            continue;
        }
        if side == Side::Sends && outcome == Kind::Fail {
            continue;
        }
        let mut ends: BTreeMap<Key, (Value, Value)> = BTreeMap::new();
        for (key, value) in values(analysis, side, id) {
            ends.entry(key).and_modify(|(_, end)| *end = value).or_insert((value, value));
        }
        for (key, (second, end)) in ends {
            if let Some(&(first, from)) = last.get(&key) {
                let delta = analysis.delta(key, first, second).unwrap_or(1);
                found(Pair { key, first, second, from, to: id, delta });
            }
            if side == Side::Sends || outcome == Kind::Ok {
                last.insert(key, (end, id));
            }
        }
    }
}

/// Collects the pairs of a walk that `is_bad`, told by `case`.
pub fn collect(
    walk: impl FnOnce(&mut dyn FnMut(Pair)),
    is_bad: impl Fn(i64) -> bool,
    case: impl Fn(&Pair) -> Case,
) -> Findings {
    let mut findings = Findings::default();
    walk(&mut |pair| {
        if is_bad(pair.delta) {
            findings.push(|| case(&pair));
        }
    });
    findings
}
