//! Writes down a run as it happens: every event of every client, and what was done to the brokers, by one monotonic clock.
//!
//! The histories and the timeline go to their files line by line, so that a harness that dies leaves what it knew. The clock is read
//! under the lock that orders the lines: times never go back, and an operation's invocation is always written before its request is
//! sent. What cannot be written is remembered and makes the run unknown. It judges nothing.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::time::Instant;

use parking_lot::Mutex;

use crate::history::{Action, ClaimedRange, Event, Key, Kind, MicroOp, Offset, Process, codec};
use crate::registers::{self, Deed, Register, RegisterEvent};
use crate::run_dir::{HISTORY_EDN, REGISTERS_EDN, TIMELINE_JSONL};
use crate::timeline::{self, Entry};

/// How many operations ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Certainly done.
    pub ok: u64,
    /// Certainly not done.
    pub fail: u64,
    /// Nobody knows.
    pub info: u64,
}

/// The run's files.
pub struct Recorder {
    began: Instant,
    files: Mutex<Files>,
}

struct Files {
    history: BufWriter<File>,
    timeline: BufWriter<File>,
    registers: BufWriter<File>,
    next_index: usize,
    next_process: u64,
    next_register_index: usize,
    next_register_process: u64,
    next_fault: u64,
    tally: Tally,
    /// The furthest acknowledged offset of each key.
    acknowledged: std::collections::BTreeMap<Key, Offset>,
    failed: Option<String>,
}

impl Recorder {
    /// Begins the files in `dir`; the run's clock starts.
    pub fn begin(dir: &Path) -> io::Result<Self> {
        let files = Files {
            history: BufWriter::new(File::create(dir.join(HISTORY_EDN))?),
            timeline: BufWriter::new(File::create(dir.join(TIMELINE_JSONL))?),
            registers: BufWriter::new(File::create(dir.join(REGISTERS_EDN))?),
            next_index: 0,
            next_process: 0,
            next_register_index: 0,
            next_register_process: 0,
            next_fault: 0,
            tally: Tally::default(),
            acknowledged: std::collections::BTreeMap::new(),
            failed: None,
        };
        Ok(Self { began: Instant::now(), files: Mutex::new(files) })
    }

    /// Nanoseconds since the run began.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A process id that was never used.
    pub fn new_process(&self) -> Process {
        let mut files = self.files.lock();
        files.next_process += 1;
        Process(files.next_process - 1)
    }

    /// A client asks. To be called before its request is sent.
    pub fn invoke(&self, process: Process, action: Action, linearizable: bool) {
        self.event(Kind::Invoke, process, action, |event| event.linearizable = linearizable);
    }

    /// A client was told, or gave up. To be called after the last answer came.
    pub fn complete(&self, kind: Kind, process: Process, action: Action, error: Option<String>) {
        self.event(kind, process, action, |event| event.error = error);
    }

    /// A poll of a member of a consumer group ended; the positions of these keys may have moved meanwhile.
    pub fn complete_rebalanced(
        &self,
        kind: Kind,
        process: Process,
        action: Action,
        error: Option<String>,
        rebalanced: Vec<Key>,
    ) {
        self.event(kind, process, action, |event| {
            event.error = error;
            event.rebalanced = rebalanced;
        });
    }

    /// A linearizable read was answered.
    pub fn complete_linearizable(&self, process: Process, action: Action, ranges: Vec<ClaimedRange>) {
        self.event(Kind::Ok, process, action, |event| {
            event.linearizable = true;
            event.ranges = ranges;
        });
    }

    /// A linearizable read was not answered.
    pub fn fail_linearizable(&self, process: Process, action: Action, error: String) {
        self.event(Kind::Fail, process, action, |event| {
            event.linearizable = true;
            event.error = Some(error);
        });
    }

    fn event(&self, kind: Kind, process: Process, action: Action, more: impl FnOnce(&mut Event)) {
        let mut files = self.files.lock();
        let mut event = Event::new(files.next_index, self.now_ns(), kind, process, action);
        more(&mut event);
        files.next_index += 1;
        files.count(&event);
        let line = codec::line(&event);
        let written = writeln!(files.history, "{line}");
        files.note("the history", written);
    }

    /// A process id that was never used in the history of registers.
    pub fn new_register_process(&self) -> Process {
        let mut files = self.files.lock();
        files.next_register_process += 1;
        Process(files.next_register_process - 1)
    }

    /// An event of a register. Invocations are to be told before their request is sent, completions after the answer came.
    pub fn register(&self, kind: Kind, process: Process, register: Register, deed: Deed, error: Option<String>) {
        let mut files = self.files.lock();
        let (index, time_ns) = (files.next_register_index, self.now_ns());
        files.next_register_index += 1;
        let line = registers::codec::line(&RegisterEvent { index, time_ns, kind, process, register, deed, error });
        let written = writeln!(files.registers, "{line}");
        files.note("the history of registers", written);
    }

    /// The number of a fault about to be injected, and its first line.
    pub fn start_fault(&self, kind: &str, targets: Vec<String>) -> u64 {
        let fault = {
            let mut files = self.files.lock();
            files.next_fault += 1;
            files.next_fault - 1
        };
        let kind = kind.to_owned();
        self.tell(|time_ns| Entry::Start { time_ns, fault, kind, targets });
        fault
    }

    /// One line of the timeline, made with the time now. It is on disk when this returns, as far as the kernel goes.
    pub fn tell(&self, entry: impl FnOnce(u64) -> Entry) {
        let mut files = self.files.lock();
        let entry = entry(self.now_ns());
        let written = timeline::write(&mut files.timeline, &entry).and_then(|()| files.timeline.flush());
        files.note("the timeline", written);
    }

    /// A broker, or all of them together, did what it never may.
    pub fn accuse(&self, broker: &str, what: String) {
        self.tell(|time_ns| Entry::Accused { time_ns, broker: broker.to_owned(), what });
    }

    /// Something that every such run must test was not.
    pub fn untested(&self, what: &str) {
        self.tell(|time_ns| Entry::Untested { time_ns, what: format!("{what}: nothing was tested") });
    }

    /// How operations ended so far.
    pub fn tally(&self) -> Tally {
        self.files.lock().tally
    }

    /// The furthest acknowledged offset of a key.
    pub fn acknowledged(&self, key: Key) -> Option<Offset> {
        self.files.lock().acknowledged.get(&key).copied()
    }

    /// Writes out what is still in memory.
    pub fn flush(&self) {
        let mut files = self.files.lock();
        let written = files.history.flush().and_then(|()| files.registers.flush());
        files.note("the history", written);
    }

    /// Ends the files. Returns why they cannot be trusted, if so; then the timeline has no end.
    pub fn end(&self) -> Result<(), String> {
        self.flush();
        if let Some(failed) = self.files.lock().failed.clone() {
            return Err(failed);
        }
        self.tell(|time_ns| Entry::End { time_ns });
        self.files.lock().failed.clone().map_or(Ok(()), Err)
    }
}

impl Files {
    fn note(&mut self, what: &str, written: io::Result<()>) {
        if let Err(error) = written {
            self.failed.get_or_insert(format!("{what} cannot be written: {error}"));
        }
    }

    fn count(&mut self, event: &Event) {
        match event.kind {
            Kind::Invoke => return,
            Kind::Ok => self.tally.ok += 1,
            Kind::Fail => self.tally.fail += 1,
            Kind::Info => self.tally.info += 1,
        }
        if event.kind != Kind::Ok {
            return;
        }
        for step in event.action.micro_ops() {
            if let MicroOp::Send { key, offset: Some(offset), .. } = step {
                let furthest = self.acknowledged.entry(*key).or_insert(*offset);
                *furthest = (*furthest).max(*offset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{History, Value};
    use crate::timeline::Timeline;

    fn send(offset: Option<u64>) -> Action {
        Action::Send(vec![MicroOp::Send { key: Key(1), offset: offset.map(Offset), value: Value(7) }])
    }

    #[test]
    fn what_is_recorded_reads_back_as_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Recorder::begin(dir.path()).unwrap();
        let (first, second) = (recorder.new_process(), recorder.new_process());
        assert_ne!(first, second);
        recorder.invoke(first, send(None), false);
        let fault = recorder.start_fault("kill-one", vec!["n1".to_owned()]);
        recorder.complete(Kind::Ok, first, send(Some(4)), None);
        recorder.tell(|time_ns| Entry::Stop { time_ns, fault });
        recorder.invoke(second, Action::Poll(vec![MicroOp::Poll(None)]), true);
        let range = ClaimedRange { key: Key(1), from: Offset(0), end: Offset(5) };
        let answer = vec![(Key(1), vec![(Offset(4), Value(7))])];
        recorder.complete_linearizable(second, Action::Poll(vec![MicroOp::Poll(Some(answer))]), vec![range]);
        assert_eq!(recorder.acknowledged(Key(1)), Some(Offset(4)));
        assert_eq!(recorder.tally(), Tally { ok: 2, fail: 0, info: 0 });
        recorder.end().unwrap();

        let open = |name: &str| io::BufReader::new(File::open(dir.path().join(name)).unwrap());
        let history = History::new(codec::read(open(HISTORY_EDN)).unwrap()).unwrap();
        assert_eq!((history.events().len(), history.operations().len()), (4, 2));
        assert_eq!(history.events()[3].ranges, [range]);
        let timeline = Timeline::read(open(TIMELINE_JSONL)).unwrap();
        assert_eq!(timeline.faults[0].kind, "kill-one");
        assert!(timeline.end_ns.is_some());
    }

    #[test]
    fn a_history_that_cannot_be_written_has_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Recorder::begin(dir.path()).unwrap();
        recorder.files.lock().history = BufWriter::new(File::create("/dev/full").unwrap());
        recorder.invoke(recorder.new_process(), Action::Crash, false);
        assert!(recorder.end().unwrap_err().contains("the history cannot be written"));
        let timeline = std::fs::read_to_string(dir.path().join(TIMELINE_JSONL)).unwrap();
        assert_eq!(timeline, "");
    }
}
