//! The fault timeline of a run: which fault began and ended when, whether it was seen to have happened, and when the cluster
//! was itself again.
//!
//! One JSON object a line, written as it happens beside the history, by the same clock:
//!
//! ```json
//! {"event":"start","time_ns":10000000000,"fault":0,"kind":"kill","targets":["n2"]}
//! {"event":"confirmed","time_ns":10000900000,"fault":0,"evidence":"n2 ended by signal 9"}
//! {"event":"stop","time_ns":15000000000,"fault":0}
//! {"event":"recovered","time_ns":15400000000,"fault":0,"evidence":"every partition took a produce"}
//! {"event":"phase","time_ns":60000000000,"name":"final reads"}
//! {"event":"note","time_ns":60500000000,"text":"12 topics came, 11 went"}
//! {"event":"harness-error","time_ns":61000000000,"message":"client 3 panicked"}
//! {"event":"untested","time_ns":61500000000,"what":"no topic came: nothing was tested"}
//! {"event":"accused","time_ns":62000000000,"broker":"n3","what":"it ended by itself: exit status: 1"}
//! {"event":"end","time_ns":70000000000}
//! ```
//!
//! Each event of a fault stands alone, so that a harness that dies in the middle leaves what it knew; without `end` the run
//! counts as unfinished. This module knows the order of these events and nothing of what a fault is. What a timeline must show is
//! judged in [`crate::checkers::faults`] and [`crate::checkers::harness`].

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read as _, Write};

use serde::{Deserialize, Serialize};

/// The phase in which everything is healed and read once more.
pub const FINAL_READS: &str = "final reads";
/// The longest line that is read, in bytes.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// The most lines that are read.
pub const LINES_MAX: usize = 1_000_000;

/// One line of the timeline. Times are nanoseconds since the run began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Entry {
    /// A fault is being injected.
    Start {
        /// When.
        time_ns: u64,
        /// Its number in this run.
        fault: u64,
        /// What kind: `kill`, `pause`, `partition-ring`, …
        kind: String,
        /// Which brokers or links.
        targets: Vec<String>,
    },
    /// It was seen to have happened.
    Confirmed {
        /// When.
        time_ns: u64,
        /// Its number.
        fault: u64,
        /// What was seen.
        evidence: String,
    },
    /// It was taken back.
    Stop {
        /// When.
        time_ns: u64,
        /// Its number.
        fault: u64,
    },
    /// The cluster was seen to work again.
    Recovered {
        /// When.
        time_ns: u64,
        /// The fault it recovered from.
        fault: u64,
        /// What was seen.
        evidence: String,
    },
    /// A part of the run begins.
    Phase {
        /// When.
        time_ns: u64,
        /// Its name, for the report.
        name: String,
    },
    /// Something was tested beside the history, and how much of it.
    Note {
        /// When.
        time_ns: u64,
        /// In words.
        text: String,
    },
    /// The harness itself failed at something.
    HarnessError {
        /// When.
        time_ns: u64,
        /// In words.
        message: String,
    },
    /// Something that every such run must test was not tested, though nothing failed.
    Untested {
        /// When it was noticed.
        time_ns: u64,
        /// In words.
        what: String,
    },
    /// A broker did what it never may, whatever clients saw: it ended without having been told to, it panicked, its files disagree
    /// with another's.
    Accused {
        /// When it was noticed.
        time_ns: u64,
        /// Which.
        broker: String,
        /// In words.
        what: String,
    },
    /// The run is over and everything is written.
    End {
        /// When.
        time_ns: u64,
    },
}

/// Why a timeline cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TimelineError {
    /// The file itself.
    #[error("cannot read the timeline: {0}")]
    Io(#[from] io::Error),
    /// A line, counted from 1.
    #[error("timeline line {line}: {what}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// In words.
        what: String,
    },
}

/// One fault, put together. Times in nanoseconds; what never happened is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Its number in this run.
    pub id: u64,
    /// What kind.
    pub kind: String,
    /// Which brokers or links.
    pub targets: Vec<String>,
    /// When it began.
    pub start_ns: u64,
    /// When it was seen to have happened, and what was seen.
    pub confirmed: Option<(u64, String)>,
    /// When it was taken back.
    pub stop_ns: Option<u64>,
    /// When the cluster was seen to work again, and what was seen.
    pub recovered: Option<(u64, String)>,
}

impl Fault {
    /// Nanoseconds from its end to the recovery.
    pub fn time_to_recover_ns(&self) -> Option<u64> {
        Some(self.recovered.as_ref()?.0.saturating_sub(self.stop_ns?))
    }
}

/// A whole timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// Every fault, by its number.
    pub faults: Vec<Fault>,
    /// The parts of the run: when each began, and its name.
    pub phases: Vec<(u64, String)>,
    /// What was tested beside the history.
    pub notes: Vec<(u64, String)>,
    /// What the harness failed at: when, and in words.
    pub harness_errors: Vec<(u64, String)>,
    /// What should have been tested and was not: when that was noticed, and in words.
    pub untested: Vec<(u64, String)>,
    /// What brokers did that they never may: when, and in words.
    pub accusations: Vec<(u64, String)>,
    /// When the run was over. `None`: it never was.
    pub end_ns: Option<u64>,
}

impl Timeline {
    /// Reads a timeline. The first line that is no entry, or that does not follow from the ones before it, ends it.
    pub fn read(mut input: impl BufRead) -> Result<Self, TimelineError> {
        let mut timeline = Self::default();
        let mut places = BTreeMap::new();
        let mut buffer = Vec::new();
        for line in 1.. {
            buffer.clear();
            let fail = |what: String| TimelineError::Line { line, what };
            if input.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut buffer)? == 0 {
                break;
            }
            if buffer.len() > LINE_BYTES_MAX || line > LINES_MAX {
                return Err(fail(format!("more than {LINE_BYTES_MAX} bytes, or more than {LINES_MAX} lines")));
            }
            let entry = serde_json::from_slice(&buffer).map_err(|error| fail(error.to_string()))?;
            timeline.take(entry, &mut places).map_err(fail)?;
        }
        Ok(timeline)
    }

    /// Adds one entry. `places` tells where each fault's number stands in `faults`.
    fn take(&mut self, entry: Entry, places: &mut BTreeMap<u64, usize>) -> Result<(), String> {
        if self.end_ns.is_some() {
            return Err("something follows the end".to_owned());
        }
        match entry {
            Entry::Start { time_ns, fault, kind, targets } => {
                if places.insert(fault, self.faults.len()).is_some() {
                    return Err(format!("fault {fault} starts twice"));
                }
                let (confirmed, stop_ns, recovered) = (None, None, None);
                self.faults.push(Fault { id: fault, kind, targets, start_ns: time_ns, confirmed, stop_ns, recovered });
            }
            Entry::Confirmed { time_ns, fault, evidence } => {
                let known = self.known(fault, time_ns, places)?;
                known.confirmed.get_or_insert((time_ns, evidence));
            }
            Entry::Stop { time_ns, fault } => {
                let known = self.known(fault, time_ns, places)?;
                if known.stop_ns.replace(time_ns).is_some() {
                    return Err(format!("fault {fault} stops twice"));
                }
            }
            Entry::Recovered { time_ns, fault, evidence } => {
                let known = self.known(fault, time_ns, places)?;
                match known.stop_ns {
                    Some(stop_ns) if stop_ns <= time_ns => known.recovered.get_or_insert((time_ns, evidence)),
                    _ => return Err(format!("the cluster recovers from fault {fault} before it stops")),
                };
            }
            Entry::Phase { time_ns, name } => self.phases.push((time_ns, name)),
            Entry::Note { time_ns, text } => self.notes.push((time_ns, text)),
            Entry::HarnessError { time_ns, message } => self.harness_errors.push((time_ns, message)),
            Entry::Untested { time_ns, what } => self.untested.push((time_ns, what)),
            Entry::Accused { time_ns, broker, what } => self.accusations.push((time_ns, format!("{broker}: {what}"))),
            Entry::End { time_ns } => self.end_ns = Some(time_ns),
        }
        Ok(())
    }

    fn known(&mut self, fault: u64, time_ns: u64, places: &BTreeMap<u64, usize>) -> Result<&mut Fault, String> {
        let at = *places.get(&fault).ok_or_else(|| format!("fault {fault} never started"))?;
        let known = &mut self.faults[at];
        if time_ns < known.start_ns {
            return Err(format!("something happens to fault {fault} before it starts"));
        }
        Ok(known)
    }
}

/// Writes one entry as a line. Does not flush.
pub fn write(mut output: impl Write, entry: &Entry) -> io::Result<()> {
    serde_json::to_writer(&mut output, entry)?;
    output.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story() -> Vec<Entry> {
        vec![
            Entry::Start { time_ns: 10, fault: 0, kind: "kill".into(), targets: vec!["n2".into()] },
            Entry::Start { time_ns: 11, fault: 1, kind: "pause".into(), targets: vec!["n1".into(), "n3".into()] },
            Entry::Confirmed { time_ns: 12, fault: 0, evidence: "signal 9".into() },
            Entry::Stop { time_ns: 20, fault: 0 },
            Entry::Recovered { time_ns: 26, fault: 0, evidence: "produced".into() },
            Entry::Phase { time_ns: 30, name: "final reads".into() },
            Entry::HarnessError { time_ns: 31, message: "client 3 panicked".into() },
            Entry::Untested { time_ns: 31, what: "no topic came".into() },
            Entry::Accused { time_ns: 32, broker: "n3".into(), what: "exit status: 1".into() },
            Entry::End { time_ns: 40 },
        ]
    }

    fn text(entries: &[Entry]) -> Vec<u8> {
        let mut text = Vec::new();
        entries.iter().for_each(|entry| write(&mut text, entry).unwrap());
        text
    }

    #[test]
    fn a_timeline_is_put_together_from_its_lines() {
        let timeline = Timeline::read(text(&story()).as_slice()).unwrap();
        let [kill, pause] = timeline.faults.as_slice() else { panic!("{timeline:?}") };
        assert_eq!(kill.confirmed, Some((12, "signal 9".to_owned())));
        assert_eq!(kill.time_to_recover_ns(), Some(6));
        assert_eq!((pause.id, pause.start_ns, pause.stop_ns, pause.time_to_recover_ns()), (1, 11, None, None));
        assert_eq!(timeline.phases, [(30, "final reads".to_owned())]);
        assert_eq!(timeline.harness_errors, [(31, "client 3 panicked".to_owned())]);
        assert_eq!(timeline.untested, [(31, "no topic came".to_owned())]);
        assert_eq!(timeline.accusations, [(32, "n3: exit status: 1".to_owned())]);
        assert_eq!(timeline.end_ns, Some(40));
    }

    #[test]
    fn the_lines_are_as_documented() {
        let text = String::from_utf8(text(&story())).unwrap();
        assert_eq!(
            text.lines().next().unwrap(),
            r#"{"event":"start","time_ns":10,"fault":0,"kind":"kill","targets":["n2"]}"#
        );
        assert_eq!(text.lines().last().unwrap(), r#"{"event":"end","time_ns":40}"#);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_line() {
        let refused = |entries: &[Entry]| Timeline::read(text(entries).as_slice()).unwrap_err().to_string();
        let story = story();
        let start = &story[..1];
        assert_eq!(refused(&[start, start].concat()), "timeline line 2: fault 0 starts twice");
        assert_eq!(refused(&story[3..4]), "timeline line 1: fault 0 never started");
        assert_eq!(
            refused(&[start, &story[4..5]].concat()),
            "timeline line 2: the cluster recovers from fault 0 before it stops"
        );
        assert_eq!(refused(&[&story[..4], &story[3..4]].concat()), "timeline line 5: fault 0 stops twice");
        assert_eq!(refused(&[&story[9..], start].concat()), "timeline line 2: something follows the end");
        let early = Entry::Stop { time_ns: 9, fault: 0 };
        assert_eq!(
            refused(&[start, &[early]].concat()),
            "timeline line 2: something happens to fault 0 before it starts"
        );
        let error = Timeline::read(&b"{\"event\":\"end\",\"time_ns\":1,\"x\":2}"[..]).unwrap_err().to_string();
        assert!(error.starts_with("timeline line 1: unknown field `x`"), "{error}");
    }
}
