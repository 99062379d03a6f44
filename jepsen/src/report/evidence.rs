//! What a person needs to see of an anomaly: the operations that prove it, each cut down to the records that matter, and the
//! neighbourhood in the log with who wrote and who read what.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::checkers::analysis::{Analysis, OperationId};
use crate::checkers::{Anomaly, Case};
use crate::history::{Action, Event, Key, Kind, MicroOp, Offset, Value, codec};

/// Records kept on either side of one that matters.
const AROUND: usize = 3;
/// The longest line that is shown of an event, in characters.
const LINE_MAX: usize = 600;
/// Offsets in a neighbourhood.
const COLUMNS_MAX: usize = 14;
/// Operations in a neighbourhood.
const ROWS_MAX: usize = 12;
/// Operations that are looked at for it.
const CANDIDATES_MAX: usize = 100;

/// An event as its line of the history; of what it polled, only the records near those that the case is about.
pub fn brief(event: &Event, case: &Case) -> String {
    let mut event = event.clone();
    let mut cut = 0;
    if let Action::Poll(steps) | Action::Txn(steps) = &mut event.action {
        for step in steps {
            if let MicroOp::Poll(Some(reads)) = step {
                reads.iter_mut().for_each(|(key, pairs)| cut += cut_down(*key, pairs, case));
            }
        }
    }
    let mut line = codec::line(&event);
    if let Some((end, _)) = line.char_indices().nth(LINE_MAX) {
        line.truncate(end);
        line.push('…');
    }
    if cut > 0 {
        line.push_str(&format!("  ; and {cut} more records"));
    }
    line
}

/// Keeps what is near; if nothing is, the first and the last. Returns how many went.
fn cut_down(key: Key, pairs: &mut Vec<(Offset, Value)>, case: &Case) -> usize {
    let before = pairs.len();
    if before <= 2 * AROUND + 1 {
        return 0;
    }
    let is_key = case.key.is_none_or(|of| of == key);
    let near = |offset: &Offset| case.offsets.iter().any(|about| about.0.abs_diff(offset.0) <= AROUND as u64);
    let mut keep = vec![false; before];
    for (at, (offset, value)) in pairs.iter().enumerate().filter(|_| is_key) {
        if case.values.contains(value) {
            keep[at.saturating_sub(AROUND)..(at + AROUND + 1).min(before)].fill(true);
        }
        keep[at] |= near(offset);
    }
    if !keep.contains(&true) {
        (keep[0], keep[before - 1]) = (true, true);
    }
    let mut keep = keep.into_iter();
    pairs.retain(|_| keep.next() == Some(true));
    before - pairs.len()
}

/// A small window of one key's log, and what some operations saw of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Neighbourhood {
    /// Which log.
    pub key: Key,
    /// The offsets, ascending, and whether the case is about each.
    pub columns: Vec<(Offset, bool)>,
    /// The operations, in the order in which they ended.
    pub rows: Vec<Row>,
}

/// One operation's view of the window.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// The event that ended it.
    pub event: usize,
    /// The case names it.
    pub named: bool,
    /// For each column the values that it saw there, and whether it wrote them.
    pub cells: Vec<Vec<(Value, bool)>>,
}

/// The window around a case; `None` if no offset that it is about is known, or there is nothing in it to be compared.
pub fn neighbourhood(analysis: &Analysis<'_>, anomaly: Anomaly, case: &Case) -> Option<Neighbourhood> {
    let key = case.key?;
    let log = analysis.keys.get(&key)?;
    let place = |value: &Value| analysis.facts(key, *value).and_then(|(log, facts)| log.offset_of(facts));
    let mut about: BTreeSet<Offset> = case.offsets.iter().copied().collect();
    about.extend(case.values.iter().filter_map(place));
    // A phantom has no place of its own that anyone could know of but its reader.
    let (first, last) = (*about.first()?, *about.last()?);
    let start = log.slots.partition_point(|slot| slot.offset < first).saturating_sub(AROUND);
    let end = (log.slots.partition_point(|slot| slot.offset <= last) + AROUND).min(log.slots.len());
    let slots = &log.slots[start..end.min(start + COLUMNS_MAX)];
    let columns: Vec<(Offset, bool)> = slots.iter().map(|slot| (slot.offset, about.contains(&slot.offset))).collect();

    let named: BTreeSet<OperationId> = case.events.iter().map(|event| analysis.history.operation_of(*event)).collect();
    let writer = |value: &Value| analysis.facts(key, *value).and_then(|(_, facts)| facts.writer);
    let writers: BTreeSet<OperationId> = case.values.iter().filter_map(writer).collect();
    let mut others: BTreeSet<OperationId> = BTreeSet::new();
    for sighting in slots.iter().flat_map(|slot| &slot.sightings) {
        let Some((log, facts)) = analysis.facts(key, sighting.value) else { continue };
        others.extend(facts.writer);
        others.extend(log.readers(facts).iter().take(ROWS_MAX));
    }
    let row = |id: &OperationId| {
        let cells = columns.iter().map(|(offset, _)| seen_at(analysis.event(*id), key, *offset)).collect();
        Row { event: analysis.evidence(*id), named: named.contains(id), cells }
    };
    let filled = |row: &Row| row.cells.iter().filter(|cell| !cell.is_empty()).count();
    let first: BTreeSet<OperationId> = named.union(&writers).copied().collect();
    let rest = others.difference(&first).take(CANDIDATES_MAX).map(row);
    let mut rows: Vec<Row> = rest.filter(|row| filled(row) > 0).collect();
    // Those that saw most of the window tell most; but what the case names, and who wrote its values, comes first.
    rows.sort_by_key(|row| (Reverse(filled(row)), row.event));
    let mut first: Vec<Row> = first.iter().map(row).collect();
    first.retain(|row| filled(row) > 0 || row.named && anomaly == Anomaly::StaleRead);
    first.append(&mut rows);
    let mut rows = first;
    rows.truncate(ROWS_MAX);
    rows.sort_by_key(|row| row.event);
    (rows.len() > 1).then_some(Neighbourhood { key, columns, rows })
}

fn seen_at(event: &Event, key: Key, offset: Offset) -> Vec<(Value, bool)> {
    let mut seen = Vec::new();
    for step in event.action.micro_ops() {
        match step {
            MicroOp::Send { key: of, offset: Some(at), value } if *of == key && *at == offset => {
                seen.push((*value, true));
            }
            MicroOp::Poll(Some(reads)) => {
                for (_, pairs) in reads.iter().filter(|(of, _)| *of == key) {
                    seen.extend(pairs.iter().filter(|(at, _)| *at == offset).map(|(_, value)| (*value, false)));
                }
            }
            _ => {}
        }
    }
    seen.dedup();
    seen
}

/// An event in a few words: `ok poll`.
pub fn words(event: &Event) -> String {
    let kind = match event.kind {
        Kind::Invoke => "invoke",
        Kind::Ok => "ok",
        Kind::Fail => "fail",
        Kind::Info => "info",
    };
    format!("{kind} {}", event.action.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Story, found};

    #[test]
    fn long_polls_are_cut_down_to_what_matters() {
        let sends: Vec<_> = (0..40).map(|at| (0, at, 100 + at as i64)).collect();
        let history = Story::new().sent(0, &sends).polled(1, &sends).history();
        let case = Case::of(Key(0), String::new()).offsets([Offset(20)]);
        let line = brief(&history.events()[3], &case);
        assert!(line.contains("[[17 117] [18 118] [19 119] [20 120] [21 121] [22 122] [23 123]]"), "{line}");
        assert!(line.ends_with("; and 33 more records"), "{line}");
        let elsewhere = Case::of(Key(5), String::new()).offsets([Offset(20)]);
        assert!(brief(&history.events()[3], &elsewhere).contains("[[0 100] [39 139]]"));
    }

    #[test]
    fn the_neighbourhood_of_a_lost_write_shows_who_wrote_it_and_who_read_past_it() {
        let sends: Vec<_> = (0..9).map(|at| (0, at, 100 + at as i64)).collect();
        let read: Vec<_> = sends.iter().filter(|send| send.1 != 4).copied().collect();
        let story = sends.iter().fold(Story::new(), |story, send| story.sent(0, &[*send]));
        let history = story.polled(1, &read).history();
        let findings = found(&history, Anomaly::LostWrite);
        let analysis = Analysis::new(&history);
        let window = neighbourhood(&analysis, Anomaly::LostWrite, &findings.cases[0]).unwrap();
        let offsets: Vec<_> = window.columns.iter().map(|(offset, about)| (offset.0, *about)).collect();
        assert_eq!(offsets, [(1, false), (2, false), (3, false), (4, true), (5, false), (6, false), (7, false)]);
        let writer = window.rows.iter().find(|row| row.event == findings.cases[0].events[0]).unwrap();
        assert_eq!((writer.named, &writer.cells[3]), (true, &vec![(Value(104), true)]));
        let reader = window.rows.last().unwrap();
        assert_eq!((reader.cells[2].as_slice(), reader.cells[3].len()), (&[(Value(103), false)][..], 0));
    }

    #[test]
    fn a_line_is_never_endless() {
        let sends: Vec<_> = (0..200).map(|at| (0, at, at as i64)).collect();
        let history = Story::new().sent(0, &sends).history();
        let line = brief(&history.events()[1], &Case::of(Key(0), String::new()));
        assert_eq!(line.chars().count(), LINE_MAX + 1);
    }
}
