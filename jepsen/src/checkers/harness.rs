//! **(e) a harness error is *unknown*, never a pass.**
//!
//! Unknown is a run
//!
//! 1. that never ended, by its timeline, or whose harness reported an error;
//! 2. in which no send or no poll ever worked, or no linearizable read that was asked for under a fault: nothing was shown;
//! 3. whose harness says that something was not tested that must be: clients of topics, of producers, of groups that never got
//!    anywhere, disks that nobody could compare;
//! 4. without its final read: for each key with an acknowledged send, some process must have sought to the beginning after the last
//!    acknowledgement and polled up to the largest acknowledged offset. (If acknowledged values are missing at the tail, this
//!    cannot be met, and they are unseen, too: an anomaly weighs more than unknown.)
//!
//! A history that cannot be read or breaks the rules of [`crate::history::wellformed`] is unknown as well; [`crate::verdict`] adds that.

use std::collections::BTreeMap;

use super::analysis::Analysis;
use super::under_faults::UnderFaults;
use crate::history::{Action, Key, Kind, Offset, Process};
use crate::timeline::Timeline;

/// Why a run is unknown, sentence by sentence; empty if it is not. `under`: the times in which something was broken.
pub fn unknowns(timeline: &Timeline, analysis: &Analysis<'_>, under: &UnderFaults) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    if timeline.end_ns.is_none() {
        found.push("the run never ended: its timeline has no end".to_owned());
    }
    for (time_ns, message) in &timeline.harness_errors {
        found.push(format!("the harness failed at {:.3} s: {message}", *time_ns as f64 / 1e9));
    }
    found.extend(timeline.untested.iter().map(|(_, what)| what.clone()));
    found.extend(nothing_worked(analysis));
    found.extend(no_linearizable_read(analysis, under));
    found.extend(no_final_read(analysis));
    found
}

fn nothing_worked(analysis: &Analysis<'_>) -> Vec<String> {
    let worked = |is: fn(&Action) -> bool| {
        (0..analysis.history.operations().len())
            .any(|id| analysis.operation(id).outcome == Kind::Ok && is(&analysis.event(id).action))
    };
    let mut found = Vec::new();
    if !worked(|action| matches!(action, Action::Send(_) | Action::Txn(_))) {
        found.push("no send ever worked: nothing was tested".to_owned());
    }
    if !worked(|action| matches!(action, Action::Poll(_) | Action::Txn(_))) {
        found.push("no poll ever worked: nothing was tested".to_owned());
    }
    found
}

/// Others are linearizable, too, but nothing is broken yet, or any more, when they are asked for.
fn no_linearizable_read(analysis: &Analysis<'_>, under: &UnderFaults) -> Option<String> {
    let worked = (0..analysis.history.operations().len()).any(|id| {
        let operation = analysis.operation(id);
        operation.outcome == Kind::Ok
            && analysis.event(id).linearizable
            && under.covers(analysis.history.events()[operation.invoked].time_ns)
    });
    (!worked).then(|| "no linearizable read ever worked under faults: nothing was tested of them".to_owned())
}

/// What was acknowledged of a key: when last, and how far.
struct Acknowledged {
    last_event: usize,
    furthest: Option<Offset>,
}

fn no_final_read(analysis: &Analysis<'_>) -> Vec<String> {
    let mut acknowledged: BTreeMap<Key, Acknowledged> = BTreeMap::new();
    let mut sought: BTreeMap<(Process, Key), usize> = BTreeMap::new();
    let mut polled: BTreeMap<(Process, Key), Offset> = BTreeMap::new();
    for id in 0..analysis.history.operations().len() {
        let (operation, event) = (analysis.operation(id), analysis.event(id));
        if operation.outcome != Kind::Ok {
            continue;
        }
        if let Action::Assign { keys, seek_to_beginning: true } | Action::Subscribe { keys, seek_to_beginning: true } =
            &event.action
        {
            sought.extend(keys.iter().map(|key| ((event.process, *key), operation.invoked)));
        }
        for sent in analysis.sends(id) {
            let of_key = acknowledged.entry(sent.key).or_insert(Acknowledged { last_event: 0, furthest: None });
            of_key.last_event = of_key.last_event.max(event.index);
            of_key.furthest = of_key.furthest.max(sent.offset);
        }
        for (key, offset, _) in analysis.reads(id) {
            let furthest = polled.entry((event.process, key)).or_insert(offset);
            *furthest = (*furthest).max(offset);
        }
    }
    let mut best: BTreeMap<Key, (bool, Option<Offset>)> = BTreeMap::new();
    for ((process, key), at) in sought {
        let Some(needed) = acknowledged.get(&key) else { continue };
        if at < needed.last_event {
            continue;
        }
        let reached = polled.get(&(process, key)).copied();
        let of_key = best.entry(key).or_default();
        *of_key = (true, of_key.1.max(reached));
    }
    let report = |(key, needed): (&Key, &Acknowledged)| match (best.get(key), needed.furthest) {
        (None, _) => Some(format!("key {} was never read from its beginning after the last acknowledged send", key.0)),
        (Some((_, reached)), Some(furthest)) if reached.is_none_or(|reached| reached < furthest) => {
            let reached = reached.map_or("nothing".to_owned(), |reached| format!("offset {}", reached.0));
            Some(format!("the final read of key {} reached {reached}, not offset {}", key.0, furthest.0))
        }
        _ => None,
    };
    acknowledged.iter().filter_map(report).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::History;
    use crate::testing::{Story, a_fault};
    use crate::timeline::{FINAL_READS, Fault};

    fn unknown(history: &History, timeline: &Timeline) -> Vec<String> {
        unknowns(timeline, &Analysis::new(history), &UnderFaults::of(timeline, 3))
    }

    fn ended() -> Timeline {
        Timeline { end_ns: Some(9), ..Timeline::default() }
    }

    fn whole() -> Story {
        told(Story::new().sent(0, &[(0, 0, 1), (0, 1, 2)])).seek(1, &[0]).polled(1, &[(0, 0, 1), (0, 1, 2)])
    }

    /// With a linearizable read, of nothing.
    fn told(story: Story) -> Story {
        story.linearizable(9, &[], (7, 0, 0))
    }

    #[test]
    fn a_run_that_ended_and_read_everything_is_known() {
        assert!(unknown(&whole().history(), &ended()).is_empty());
    }

    #[test]
    fn a_harness_that_failed_or_stopped_is_unknown() {
        let mut timeline = ended();
        timeline.harness_errors.push((1_500_000_000, "client 3 panicked".into()));
        assert_eq!(unknown(&whole().history(), &timeline), ["the harness failed at 1.500 s: client 3 panicked"]);
        assert_eq!(unknown(&whole().history(), &Timeline::default()), ["the run never ended: its timeline has no end"]);
    }

    #[test]
    fn a_run_in_which_nothing_worked_is_unknown() {
        let history = Story::new().failed_send(0, &[(0, 0, 1)]).failed_poll(1, &[]).history();
        let nothing = [
            "no send ever worked: nothing was tested",
            "no poll ever worked: nothing was tested",
            "no linearizable read ever worked under faults: nothing was tested of them",
        ];
        assert_eq!(unknown(&history, &ended()), nothing);
    }

    #[test]
    fn linearizable_reads_after_everything_was_healed_are_not_enough() {
        let history = whole().history();
        let phases = |time_ns| Timeline { phases: vec![(time_ns, FINAL_READS.to_owned())], ..ended() };
        assert!(unknown(&history, &phases(3)).is_empty());
        let late = ["no linearizable read ever worked under faults: nothing was tested of them"];
        assert_eq!(unknown(&history, &phases(2)), late);
    }

    #[test]
    fn linearizable_reads_before_the_first_fault_or_after_the_last_are_not_enough() {
        // The read is asked for at 2 ns.
        let history = whole().history();
        let fault = |start_ns, stop_ns| Fault { start_ns, stop_ns: Some(stop_ns), ..a_fault("kill-one") };
        let under = |faults: &[Fault]| Timeline { faults: faults.to_vec(), ..ended() };
        let untested = ["no linearizable read ever worked under faults: nothing was tested of them"];
        assert_eq!(unknown(&history, &under(&[fault(3, 7)])), untested, "it was calm");
        assert_eq!(unknown(&history, &under(&[fault(0, 1), fault(4, 7)])), untested, "it was calm again");
        assert!(unknown(&history, &under(&[fault(4, 7), fault(1, 3)])).is_empty());
    }

    #[test]
    fn what_was_not_tested_is_told() {
        let untested = Timeline { untested: vec![(1, "no topic came: nothing was tested".to_owned())], ..ended() };
        assert_eq!(unknown(&whole().history(), &untested), ["no topic came: nothing was tested"]);
    }

    #[test]
    fn a_run_without_its_final_read_is_unknown() {
        let sent = |story: Story| told(story).sent(0, &[(0, 0, 1)]).sent(0, &[(0, 1, 2)]);
        let never = sent(Story::new().seek(1, &[0])).polled(1, &[(0, 0, 1), (0, 1, 2)]).history();
        assert_eq!(
            unknown(&never, &ended()),
            ["key 0 was never read from its beginning after the last acknowledged send"]
        );
        let short = sent(Story::new()).seek(1, &[0]).polled(1, &[(0, 0, 1)]).history();
        assert_eq!(unknown(&short, &ended()), ["the final read of key 0 reached offset 0, not offset 1"]);
        let empty = sent(Story::new()).seek(1, &[0]).polled(1, &[]).history();
        assert_eq!(unknown(&empty, &ended()), ["the final read of key 0 reached nothing, not offset 1"]);
    }
}
