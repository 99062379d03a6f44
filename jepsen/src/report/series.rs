//! Numbers over time: how much was done, how long it took, how much was still unread, how far readers lagged.
//!
//! Made from a history alone, for looking at; no verdict rests on it. Everything is gathered into a few hundred spans of equal
//! length, so that a long run draws as quickly as a short one.

use std::collections::BTreeMap;

use crate::history::{Action, Event, History, Key, Kind, MicroOp, Offset, Process, Value};

/// About how many spans a run is cut into.
const SPANS: u64 = 240;
/// How many single operations are drawn at most, of each outcome.
const POINTS_MAX: usize = 700;

/// What an operation did, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Only sends.
    Send,
    /// Only polls.
    Poll,
    /// A mixed list or a transaction.
    Txn,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Send, Self::Poll, Self::Txn];

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Poll => "poll",
            Self::Txn => "txn",
        }
    }

    fn of(action: &Action) -> Option<Self> {
        match action {
            Action::Send(_) => Some(Self::Send),
            Action::Poll(_) => Some(Self::Poll),
            Action::Txn(_) => Some(Self::Txn),
            Action::Assign { .. } | Action::Subscribe { .. } | Action::Crash => None,
        }
    }
}

/// One span of time.
#[derive(Clone, Debug, Default)]
pub struct Span {
    /// How many operations ended in it, by class (in the order of [`Class::ALL`]) and by outcome: ok, info, fail.
    pub ended: [[u32; 3]; 3],
    /// Median and 99th percentile of the latencies of `:ok` operations that ended in it, in nanoseconds, by class.
    pub latency_ns: [Option<(u64, u64)>; 3],
    /// Acknowledged values that nobody had read yet at its end, by key.
    pub unseen: Vec<u32>,
    /// The largest lag of a poll that ended in it, in nanoseconds.
    pub lag_ns: Option<u64>,
}

/// One operation, to be drawn by itself.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// When it ended.
    pub time_ns: u64,
    /// How long it took.
    pub latency_ns: u64,
    /// How it ended.
    pub kind: Kind,
}

/// Latencies of the `:ok` operations of one class, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// Half took at most this.
    pub p50_ns: u64,
    /// 99 of 100 took at most this.
    pub p99_ns: u64,
    /// None took longer.
    pub max_ns: u64,
}

/// A run in numbers.
#[derive(Debug, Default)]
pub struct Series {
    /// How long a span is, in nanoseconds; never 0.
    pub span_ns: u64,
    /// The spans, from 0.
    pub spans: Vec<Span>,
    /// The keys, in the order of [`Span::unseen`].
    pub keys: Vec<Key>,
    /// Some operations: the slowest, and of the others every so manieth.
    pub points: Vec<Point>,
    /// How many operations ended, by class and by outcome: ok, info, fail.
    pub ended: [[u64; 3]; 3],
    /// By class.
    pub latency: [Option<Latency>; 3],
    /// Values of `:ok` operations: sent, and read (each time that it was read).
    pub records: (u64, u64),
    /// Linearizable reads that were answered.
    pub linearizable_reads: u64,
    /// How many processes there were.
    pub processes: usize,
}

impl Series {
    /// Counts and measures a history.
    pub fn new(history: &History) -> Self {
        let span_ns = nice_span(history.end_ns());
        let count = (history.end_ns() / span_ns + 1) as usize;
        let mut series = Self { span_ns, spans: vec![Span::default(); count], ..Self::default() };
        series.count_and_time(history);
        series.find_unseen(history);
        series.find_lag(history);
        series
    }

    /// Acknowledged values that nobody had read at the end, and the most that there were at the end of any span.
    pub fn unseen(&self) -> (u64, u64) {
        let total = |span: &Span| span.unseen.iter().map(|count| u64::from(*count)).sum::<u64>();
        (self.spans.last().map_or(0, total), self.spans.iter().map(total).max().unwrap_or(0))
    }

    fn span_of(&mut self, time_ns: u64) -> &mut Span {
        let at = ((time_ns / self.span_ns) as usize).min(self.spans.len() - 1);
        &mut self.spans[at]
    }

    fn count_and_time(&mut self, history: &History) {
        let mut all: [Vec<(usize, u64)>; 3] = Default::default();
        let mut points: [Vec<Point>; 3] = Default::default();
        for event in completions(history) {
            let (Some(class), Some(outcome)) = (Class::of(&event.action), outcome(event.kind)) else { continue };
            let invoked = history.operations()[history.operation_of(event.index)].invoked;
            let latency_ns = event.time_ns - history.events()[invoked].time_ns;
            self.ended[class as usize][outcome] += 1;
            self.span_of(event.time_ns).ended[class as usize][outcome] += 1;
            points[outcome].push(Point { time_ns: event.time_ns, latency_ns, kind: event.kind });
            if event.kind == Kind::Ok {
                all[class as usize].push(((event.time_ns / self.span_ns) as usize, latency_ns));
                self.linearizable_reads += u64::from(event.linearizable);
                let (sent, read) = records(event);
                self.records = (self.records.0 + sent, self.records.1 + read);
            }
        }
        self.points = points.into_iter().flat_map(thin).collect();
        self.points.sort_by_key(|point| point.time_ns);
        for (class, mut latencies) in all.into_iter().enumerate() {
            latencies.sort_unstable();
            for of_span in latencies.chunk_by(|a, b| a.0 == b.0) {
                let sorted: Vec<u64> = of_span.iter().map(|(_, latency_ns)| *latency_ns).collect();
                let at = of_span[0].0.min(self.spans.len() - 1);
                self.spans[at].latency_ns[class] = Some((percentile(&sorted, 50), percentile(&sorted, 99)));
            }
            let mut sorted: Vec<u64> = latencies.into_iter().map(|(_, latency_ns)| latency_ns).collect();
            sorted.sort_unstable();
            if let Some(&max_ns) = sorted.last() {
                let (p50_ns, p99_ns) = (percentile(&sorted, 50), percentile(&sorted, 99));
                self.latency[class] = Some(Latency { p50_ns, p99_ns, max_ns });
            }
        }
        let mut processes: Vec<Process> = history.events().iter().map(|event| event.process).collect();
        processes.sort_unstable();
        processes.dedup();
        self.processes = processes.len();
    }

    fn find_unseen(&mut self, history: &History) {
        // (acknowledged, read)
        let mut states: BTreeMap<(Key, Value), (bool, bool)> = BTreeMap::new();
        let mut unseen: BTreeMap<Key, u32> = BTreeMap::new();
        let mut snapshots: Vec<(usize, BTreeMap<Key, u32>)> = Vec::new();
        for event in completions(history).filter(|event| event.kind == Kind::Ok) {
            let at = (event.time_ns / self.span_ns) as usize;
            for_each_record(event, |key, value, sent| {
                let (acknowledged, read) = states.entry((key, value)).or_default();
                let before = *acknowledged && !*read;
                *acknowledged |= sent;
                *read |= !sent;
                let of_key = unseen.entry(key).or_default();
                match (before, *acknowledged && !*read) {
                    (false, true) => *of_key += 1,
                    (true, false) => *of_key -= 1,
                    _ => {}
                }
            });
            match snapshots.last_mut() {
                Some((span, counts)) if *span == at => counts.clone_from(&unseen),
                _ => snapshots.push((at, unseen.clone())),
            }
        }
        self.keys = unseen.into_keys().collect();
        let mut snapshots = snapshots.into_iter().peekable();
        let mut counts = BTreeMap::new();
        for (at, span) in self.spans.iter_mut().enumerate() {
            while let Some((_, next)) = snapshots.next_if(|(of, _)| *of <= at) {
                counts = next;
            }
            span.unseen = self.keys.iter().map(|key| counts.get(key).copied().unwrap_or(0)).collect();
        }
    }

    /// The lag of a poll in a key: how long ago, when it was invoked, the last record that its process had read of that key surely was
    /// not the last of the log any more. A lower bound, as Jepsen's. Counted from when the process has once caught up: one that begins
    /// with an old log lags by the log's age.
    fn find_lag(&mut self, history: &History) {
        let expiries = Expiries::new(history);
        let mut positions: BTreeMap<Process, BTreeMap<Key, Reader>> = BTreeMap::new();
        for event in completions(history).filter(|event| event.kind == Kind::Ok) {
            let of_process = positions.entry(event.process).or_default();
            match &event.action {
                Action::Assign { keys, .. } => {
                    let old = std::mem::take(of_process);
                    *of_process = keys.iter().map(|key| (*key, old.get(key).copied().unwrap_or_default())).collect();
                }
                Action::Subscribe { .. } => of_process.clear(),
                _ => {}
            }
            if !matches!(event.action, Action::Poll(_) | Action::Txn(_)) {
                continue;
            }
            for step in event.action.micro_ops() {
                let MicroOp::Poll(Some(reads)) = step else { continue };
                for (key, pairs) in reads {
                    let position = &mut of_process.entry(*key).or_default().position;
                    *position = (*position).max(pairs.iter().map(|(offset, _)| *offset).max());
                }
            }
            let invoked = history.operations()[history.operation_of(event.index)].invoked;
            let asked_ns = history.events()[invoked].time_ns;
            let mut worst_ns = None;
            for (key, reader) in of_process {
                let expired_ns = expiries.of(*key, reader.position).unwrap_or(u64::MAX);
                let lag_ns = asked_ns.saturating_sub(expired_ns);
                reader.caught_up |= lag_ns == 0;
                worst_ns = worst_ns.max(reader.caught_up.then_some(lag_ns));
            }
            let span = self.span_of(event.time_ns);
            span.lag_ns = span.lag_ns.max(worst_ns);
        }
    }
}

/// A process's place in one key.
#[derive(Clone, Copy, Default)]
struct Reader {
    position: Option<Offset>,
    caught_up: bool,
}

/// For each key: from when on something at or past an offset was known to exist.
struct Expiries(BTreeMap<Key, Vec<(Offset, u64)>>);

impl Expiries {
    fn new(history: &History) -> Self {
        let mut known: BTreeMap<Key, Vec<(Offset, u64)>> = BTreeMap::new();
        for event in completions(history).filter(|event| event.kind == Kind::Ok) {
            for step in event.action.micro_ops() {
                match step {
                    MicroOp::Send { key, offset: Some(offset), .. } => {
                        known.entry(*key).or_default().push((*offset, event.time_ns));
                    }
                    MicroOp::Poll(Some(reads)) => {
                        for (key, pairs) in reads {
                            let seen = pairs.iter().map(|(offset, _)| (*offset, event.time_ns));
                            known.entry(*key).or_default().extend(seen);
                        }
                    }
                    _ => {}
                }
            }
        }
        for of_key in known.values_mut() {
            of_key.sort_unstable();
            let mut earliest_ns = u64::MAX;
            for (_, time_ns) in of_key.iter_mut().rev() {
                earliest_ns = earliest_ns.min(*time_ns);
                *time_ns = earliest_ns;
            }
        }
        Self(known)
    }

    /// Since when something past `position` exists.
    fn of(&self, key: Key, position: Option<Offset>) -> Option<u64> {
        let of_key = self.0.get(&key)?;
        let at = of_key.partition_point(|(offset, _)| Some(*offset) <= position);
        of_key.get(at).map(|(_, time_ns)| *time_ns)
    }
}

fn completions(history: &History) -> impl Iterator<Item = &Event> {
    history.events().iter().filter(|event| event.kind != Kind::Invoke)
}

fn outcome(kind: Kind) -> Option<usize> {
    match kind {
        Kind::Ok => Some(0),
        Kind::Info => Some(1),
        Kind::Fail => Some(2),
        Kind::Invoke => None,
    }
}

/// Visits every value of an event: key, value, and whether it was sent (else it was read).
fn for_each_record(event: &Event, mut visit: impl FnMut(Key, Value, bool)) {
    for step in event.action.micro_ops() {
        match step {
            MicroOp::Send { key, value, .. } => visit(*key, *value, true),
            MicroOp::Poll(reads) => {
                for (key, pairs) in reads.iter().flatten() {
                    pairs.iter().for_each(|(_, value)| visit(*key, *value, false));
                }
            }
        }
    }
}

fn records(event: &Event) -> (u64, u64) {
    let (mut sent, mut read) = (0, 0);
    for_each_record(event, |_, _, is_send| if is_send { sent += 1 } else { read += 1 });
    (sent, read)
}

/// Keeps the slowest operations of one outcome, and of the others every so manieth.
fn thin(mut points: Vec<Point>) -> Vec<Point> {
    if points.len() <= POINTS_MAX {
        return points;
    }
    points.sort_by_key(|point| std::cmp::Reverse(point.latency_ns));
    let mut rest = points.split_off(POINTS_MAX / 4);
    rest.sort_by_key(|point| point.time_ns);
    let every = rest.len().div_ceil(POINTS_MAX - points.len());
    points.extend(rest.into_iter().step_by(every));
    points
}

/// Of sorted numbers, at least one.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    sorted[(sorted.len() * percent).div_ceil(100).clamp(1, sorted.len()) - 1]
}

/// 1, 2 or 5 times a power of ten nanoseconds, so that the run has at most [`SPANS`] spans.
fn nice_span(end_ns: u64) -> u64 {
    let least = end_ns / SPANS + 1;
    let mut power: u64 = 1;
    loop {
        if let Some(span) = [1, 2, 5].map(|factor| factor * power).into_iter().find(|span| *span >= least) {
            return span;
        }
        power = power.saturating_mul(10).min(u64::MAX / 5);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Story, simple_log};

    #[test]
    fn spans_are_round_and_few() {
        assert_eq!(nice_span(0), 1);
        assert_eq!(nice_span(300_000_000_000), 2_000_000_000);
        for end_ns in [1, 239, 240, 1_000, 123_456_789_012, u64::MAX] {
            assert!(end_ns / nice_span(end_ns) <= SPANS, "{end_ns}");
        }
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!([0, 1, 50, 99, 100].map(|percent| percentile(&hundred, percent)), [1, 1, 50, 99, 100]);
        assert_eq!([50, 99].map(|percent| percentile(&[7], percent)), [7, 7]);
    }

    #[test]
    fn everything_is_counted_once() {
        let history = simple_log(3);
        let series = Series::new(&history);
        let per_span: u64 = series.spans.iter().flat_map(|span| span.ended).flatten().map(u64::from).sum();
        assert_eq!(per_span, series.ended.iter().flatten().sum::<u64>());
        let expected = completions(&history).filter(|event| !event.action.micro_ops().is_empty()).count();
        assert_eq!(per_span, expected as u64);
        assert_eq!(series.unseen().0, 0, "a clean history ends with everything read");
        assert!(series.unseen().1 > 0);
    }

    #[test]
    fn unseen_rises_with_acknowledgements_and_falls_with_reads() {
        let history = Story::new().sent(0, &[(0, 0, 1), (1, 0, 2)]).polled(1, &[(0, 0, 1)]).history();
        let series = Series::new(&history);
        assert_eq!(series.keys, [Key(0), Key(1)]);
        let over_time: Vec<_> = series.spans.iter().map(|span| span.unseen.clone()).collect();
        assert_eq!(over_time, [[0, 0], [1, 1], [1, 1], [0, 1]]);
        assert_eq!(series.unseen(), (1, 2));
    }

    #[test]
    fn lag_counts_from_when_what_was_read_was_no_longer_the_last() {
        // Times are the indices of the events: offset 0 exists since 5, offset 1 since 7.
        let story = Story::new().seek(1, &[0]).polled(1, &[]).sent(0, &[(0, 0, 1)]).sent(0, &[(0, 1, 2)]);
        let history = story.polled(1, &[(0, 0, 1)]).polled(1, &[]).polled(1, &[(0, 1, 2)]).history();
        let lags: Vec<_> = Series::new(&history).spans.iter().map(|span| span.lag_ns).collect();
        assert_eq!([lags[3], lags[9], lags[11], lags[13]], [Some(0), Some(8 - 7), Some(10 - 7), Some(0)]);
    }

    #[test]
    fn a_reader_that_begins_late_has_no_lag_before_it_has_caught_up() {
        let story = Story::new().sent(0, &[(0, 0, 1)]).sent(0, &[(0, 1, 2)]).seek(1, &[0]);
        let history = story.polled(1, &[(0, 0, 1)]).polled(1, &[(0, 1, 2)]).history();
        let lags: Vec<_> = Series::new(&history).spans.iter().map(|span| span.lag_ns).collect();
        assert_eq!((lags[7], lags[9]), (None, Some(0)));
    }

    #[test]
    fn many_points_are_thinned_but_the_slowest_stay() {
        let point = |at: u64| Point { time_ns: at, latency_ns: at % 97, kind: Kind::Ok };
        let mut points: Vec<Point> = (0..100_000).map(point).collect();
        points[500].latency_ns = 1_000;
        let thinned = thin(points);
        assert!(thinned.len() <= POINTS_MAX);
        assert!(thinned.iter().any(|point| point.latency_ns == 1_000));
    }
}
