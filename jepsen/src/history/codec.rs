//! The history as text: Jepsen's EDN, one event a line, so that Jepsen's own checker can audit a run.
//!
//! ```edn
//! {:index 0, :time 1200, :type :invoke, :process 3, :f :send, :value [[:send 1 40]]}
//! {:index 1, :time 5100, :type :ok, :process 3, :f :send, :value [[:send 1 [7 40]]]}
//! {:index 2, :time 5200, :type :invoke, :process 4, :f :poll, :value [[:poll]], :linearizable? true}
//! {:index 3, :time 9000, :type :ok, :process 4, :f :poll, :value [[:poll {1 [[7 40]]}]], :linearizable? true, :ranges {1 [7 8]}}
//! ```
//!
//! `:error` (any value), `:rebalance-log`, `:seek-to-beginning?`, `:linearizable?` and `:ranges` (see
//! [`ClaimedRange`]) stand only where they say something; the last two are ours, and Jepsen's checker passes over them. Reading
//! is strict: a key that is not listed here, a missing one or a value of another shape is an error that names its line. It is
//! bounded by [`LINE_BYTES_MAX`] and [`EVENTS_MAX`]. Whether the events make sense together is [`super::wellformed`]'s affair.

use std::io::{self, BufRead, Read as _, Write};

use super::edn::{self, Edn};
use super::{Action, ClaimedRange, Event, Key, Kind, MicroOp, Offset, Process, Value};

/// The longest line that is read: 16 MiB. A poll of 100,000 records takes two.
pub const LINE_BYTES_MAX: usize = 16 << 20;
/// The most events that are read.
pub const EVENTS_MAX: usize = 50_000_000;

/// Why a history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file itself.
    #[error("cannot read the history: {0}")]
    Io(#[from] io::Error),
    /// A line, counted from 1.
    #[error("history line {line}: {what}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// In words.
        what: String,
    },
}

/// Reads events until the end of `input`. Empty lines are passed over. The first bad line ends it.
pub fn read(mut input: impl BufRead) -> Result<Vec<Event>, ReadError> {
    let mut events = Vec::new();
    let mut buffer = Vec::new();
    for line in 1.. {
        buffer.clear();
        let fail = |what: String| ReadError::Line { line, what };
        if input.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut buffer)? == 0 {
            break;
        }
        if buffer.len() > LINE_BYTES_MAX {
            return Err(fail(format!("longer than {LINE_BYTES_MAX} bytes")));
        }
        let text = std::str::from_utf8(&buffer).map_err(|error| fail(format!("not UTF-8: {error}")))?.trim();
        if text.is_empty() {
            continue;
        }
        if events.len() == EVENTS_MAX {
            return Err(fail(format!("more than {EVENTS_MAX} events")));
        }
        let value = edn::parse(text).map_err(|error| fail(error.to_string()))?;
        events.push(event_from(value).map_err(fail)?);
    }
    Ok(events)
}

/// Writes events, one a line. Does not flush.
pub fn write(mut output: impl Write, events: &[Event]) -> io::Result<()> {
    events.iter().try_for_each(|event| writeln!(output, "{}", line(event)))
}

/// One event as its line, without the line's end.
pub fn line(event: &Event) -> String {
    let mut fields: Vec<(&str, Edn)> = vec![
        ("index", int(event.index)),
        ("time", int(event.time_ns)),
        ("type", keyword(kind_name(event.kind))),
        ("process", int(event.process.0)),
        ("f", keyword(event.action.name())),
        ("value", action_value(event)),
    ];
    if let Action::Assign { seek_to_beginning: true, .. } | Action::Subscribe { seek_to_beginning: true, .. } =
        event.action
    {
        fields.push(("seek-to-beginning?", Edn::Bool(true)));
    }
    if event.linearizable {
        fields.push(("linearizable?", Edn::Bool(true)));
    }
    if !event.ranges.is_empty() {
        let range = |range: &ClaimedRange| (int(range.key.0), Edn::Vector(vec![int(range.from.0), int(range.end.0)]));
        fields.push(("ranges", Edn::Map(event.ranges.iter().map(range).collect())));
    }
    if !event.rebalanced.is_empty() {
        let keys = Edn::Map(vec![(keyword("keys"), keys_value(&event.rebalanced))]);
        fields.push(("rebalance-log", Edn::Vector(vec![keys])));
    }
    if let Some(error) = &event.error {
        fields.push(("error", Edn::Text(error.clone())));
    }
    Edn::Map(fields.into_iter().map(|(name, value)| (keyword(name), value)).collect()).to_string()
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Invoke => "invoke",
        Kind::Ok => "ok",
        Kind::Fail => "fail",
        Kind::Info => "info",
    }
}

fn keyword(name: &str) -> Edn {
    Edn::Keyword(name.to_owned())
}

/// Numbers above 2^63 do not occur: [`number`] refuses them on the way in, and nobody counts that far on the way out.
fn int(number: impl TryInto<i64>) -> Edn {
    Edn::Int(number.try_into().unwrap_or(i64::MAX))
}

fn keys_value(keys: &[Key]) -> Edn {
    Edn::Vector(keys.iter().map(|key| int(key.0)).collect())
}

fn action_value(event: &Event) -> Edn {
    match &event.action {
        Action::Assign { keys, .. } | Action::Subscribe { keys, .. } => keys_value(keys),
        Action::Send(steps) | Action::Poll(steps) | Action::Txn(steps) => {
            Edn::Vector(steps.iter().map(|step| micro_op_value(step, event.kind)).collect())
        }
        Action::Crash => Edn::Nil,
    }
}

fn micro_op_value(step: &MicroOp, kind: Kind) -> Edn {
    match step {
        MicroOp::Send { key, offset, value } => {
            let value = match offset {
                Some(offset) => Edn::Vector(vec![int(offset.0), Edn::Int(value.0)]),
                None if kind == Kind::Ok => Edn::Vector(vec![Edn::Nil, Edn::Int(value.0)]),
                None => Edn::Int(value.0),
            };
            Edn::Vector(vec![keyword("send"), int(key.0), value])
        }
        MicroOp::Poll(None) => Edn::Vector(vec![keyword("poll")]),
        MicroOp::Poll(Some(reads)) => {
            let pair = |(offset, value): &(Offset, Value)| Edn::Vector(vec![int(offset.0), Edn::Int(value.0)]);
            let of_key = |(key, pairs): &(Key, Vec<_>)| (int(key.0), Edn::Vector(pairs.iter().map(pair).collect()));
            Edn::Vector(vec![keyword("poll"), Edn::Map(reads.iter().map(of_key).collect())])
        }
    }
}

/// The fields of a map that were not taken yet.
struct Fields(Vec<(String, Edn)>);

impl Fields {
    fn of(value: Edn) -> Result<Self, String> {
        let Edn::Map(entries) = value else { return Err(format!("a map was expected, not {value}")) };
        let name = |(key, value)| match key {
            Edn::Keyword(name) => Ok((name, value)),
            other => Err(format!("the key {other} is no keyword")),
        };
        entries.into_iter().map(name).collect::<Result<_, _>>().map(Self)
    }

    fn take(&mut self, name: &str) -> Option<Edn> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1)
    }

    fn need(&mut self, name: &str) -> Result<Edn, String> {
        self.take(name).ok_or_else(|| format!(":{name} is missing"))
    }

    fn flag(&mut self, name: &str) -> Result<bool, String> {
        match self.take(name) {
            None | Some(Edn::Nil) => Ok(false),
            Some(Edn::Bool(value)) => Ok(value),
            Some(other) => Err(format!(":{name} is {other}, neither true nor false")),
        }
    }

    fn finish(self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(format!(":{name} is unknown here")),
        }
    }
}

fn event_from(value: Edn) -> Result<Event, String> {
    let mut fields = Fields::of(value)?;
    let index = number(fields.need("index")?, ":index")? as usize;
    let time_ns = number(fields.need("time")?, ":time")?;
    let kind = match word(fields.need("type")?, ":type")?.as_str() {
        "invoke" => Kind::Invoke,
        "ok" => Kind::Ok,
        "fail" => Kind::Fail,
        "info" => Kind::Info,
        other => return Err(format!(":type is :{other}, none of :invoke :ok :fail :info")),
    };
    let process = Process(number(fields.need("process")?, ":process")?);
    let action = action_from(&mut fields)?;
    let mut event = Event::new(index, time_ns, kind, process, action);
    event.error = fields.take("error").and_then(|error| match error {
        Edn::Nil => None,
        Edn::Text(text) => Some(text),
        other => Some(other.to_string()),
    });
    event.linearizable = fields.flag("linearizable?")?;
    event.ranges = fields.take("ranges").map_or(Ok(Vec::new()), ranges_from)?;
    event.rebalanced = fields.take("rebalance-log").map_or(Ok(Vec::new()), rebalanced_from)?;
    fields.finish()?;
    Ok(event)
}

fn action_from(fields: &mut Fields) -> Result<Action, String> {
    let name = word(fields.need("f")?, ":f")?;
    let value = fields.need("value")?;
    let steps = |value: Edn| sequence(value, ":value")?.into_iter().map(micro_op_from).collect::<Result<Vec<_>, _>>();
    Ok(match name.as_str() {
        "assign" => {
            Action::Assign { keys: keys_from(value, ":value")?, seek_to_beginning: fields.flag("seek-to-beginning?")? }
        }
        "subscribe" => Action::Subscribe {
            keys: keys_from(value, ":value")?,
            seek_to_beginning: fields.flag("seek-to-beginning?")?,
        },
        "send" => Action::Send(steps(value)?),
        "poll" => Action::Poll(steps(value)?),
        "txn" => Action::Txn(steps(value)?),
        "crash" if value == Edn::Nil => Action::Crash,
        "crash" => return Err(format!(":value of a crash is {value}, not nil")),
        other => return Err(format!(":f is :{other}, none of :assign :subscribe :send :poll :txn :crash")),
    })
}

fn micro_op_from(value: Edn) -> Result<MicroOp, String> {
    let shown = value.to_string();
    let shape =
        || format!("{shown} is neither [:send k v], [:send k [offset v]], [:poll] nor [:poll {{k [[offset v]…]}}]");
    let mut parts = sequence(value, "a micro-op").map_err(|_| shape())?.into_iter();
    let name = parts.next().ok_or_else(shape)?;
    let (first, second) = (parts.next(), parts.next());
    if parts.next().is_some() {
        return Err(shape());
    }
    match (name, first, second) {
        (Edn::Keyword(name), Some(key), Some(value)) if name == "send" => {
            let key = Key(number(key, "the key of a send")?);
            let (offset, value) = match value {
                Edn::Vector(pair) => match <[Edn; 2]>::try_from(pair) {
                    Ok([Edn::Nil, value]) => (None, value),
                    Ok([offset, value]) => (Some(Offset(number(offset, "the offset of a send")?)), value),
                    Err(_) => return Err(shape()),
                },
                value => (None, value),
            };
            Ok(MicroOp::Send { key, offset, value: value_from(value)? })
        }
        (Edn::Keyword(name), None, None) if name == "poll" => Ok(MicroOp::Poll(None)),
        (Edn::Keyword(name), Some(Edn::Map(entries)), None) if name == "poll" => {
            let mut reads = entries.into_iter().map(reads_of_key).collect::<Result<Vec<_>, _>>()?;
            reads.sort_by_key(|(key, _)| *key);
            Ok(MicroOp::Poll(Some(reads)))
        }
        _ => Err(shape()),
    }
}

fn reads_of_key((key, pairs): (Edn, Edn)) -> Result<(Key, Vec<(Offset, Value)>), String> {
    let key = Key(number(key, "a key of a poll")?);
    let pair = |pair: Edn| match pair {
        Edn::Vector(pair) => match <[Edn; 2]>::try_from(pair) {
            Ok([offset, value]) => Ok((Offset(number(offset, "an offset of a poll")?), value_from(value)?)),
            Err(pair) => Err(format!("{} is no [offset value]", Edn::Vector(pair))),
        },
        other => Err(format!("{other} is no [offset value]")),
    };
    let pairs = sequence(pairs, "what a poll read")?.into_iter().map(pair).collect::<Result<_, _>>()?;
    Ok((key, pairs))
}

fn ranges_from(value: Edn) -> Result<Vec<ClaimedRange>, String> {
    let Edn::Map(entries) = value else { return Err(format!(":ranges is {value}, not {{k [from end]}}")) };
    let range = |(key, range): (Edn, Edn)| {
        let key = Key(number(key, "a key of :ranges")?);
        let [from, end] =
            <[Edn; 2]>::try_from(sequence(range, "a range")?).map_err(|_| "a range is [from end]".to_owned())?;
        let (from, end) = (number(from, "the start of a range")?, number(end, "the end of a range")?);
        if end < from {
            return Err(format!("the range [{from} {end}] ends before it starts"));
        }
        Ok(ClaimedRange { key, from: Offset(from), end: Offset(end) })
    };
    let mut ranges = entries.into_iter().map(range).collect::<Result<Vec<_>, String>>()?;
    ranges.sort_by_key(|range| range.key);
    Ok(ranges)
}

fn rebalanced_from(value: Edn) -> Result<Vec<Key>, String> {
    let mut keys = Vec::new();
    for entry in sequence(value, ":rebalance-log")? {
        let mut fields = Fields::of(entry)?;
        keys.extend(keys_from(fields.need("keys")?, ":keys")?);
        fields.finish()?;
    }
    keys.sort_unstable();
    keys.dedup();
    Ok(keys)
}

fn keys_from(value: Edn, what: &str) -> Result<Vec<Key>, String> {
    sequence(value, what)?.into_iter().map(|key| number(key, "a key").map(Key)).collect()
}

fn value_from(value: Edn) -> Result<Value, String> {
    match value {
        Edn::Int(value) => Ok(Value(value)),
        other => Err(format!("the value {other} is no integer")),
    }
}

fn sequence(value: Edn, what: &str) -> Result<Vec<Edn>, String> {
    match value {
        Edn::Vector(values) => Ok(values),
        other => Err(format!("{what} is {other}, not a vector")),
    }
}

fn number(value: Edn, what: &str) -> Result<u64, String> {
    match value {
        Edn::Int(number) => number.try_into().map_err(|_| format!("{what} is {number}, below 0")),
        other => Err(format!("{what} is {other}, not an integer")),
    }
}

fn word(value: Edn, what: &str) -> Result<String, String> {
    match value {
        Edn::Keyword(name) => Ok(name),
        other => Err(format!("{what} is {other}, not a keyword")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Key> {
        (0..5u64).prop_map(Key)
    }

    fn by_key<T: std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<(Key, T)>> {
        prop::collection::btree_map(key(), of, 0..3).prop_map(|map| map.into_iter().collect())
    }

    fn micro_op() -> impl Strategy<Value = MicroOp> {
        let number = 0..=i64::MAX as u64;
        let pairs = prop::collection::vec((number.clone().prop_map(Offset), any::<i64>().prop_map(Value)), 0..4);
        prop_oneof![
            (key(), prop::option::of(number.prop_map(Offset)), any::<i64>().prop_map(Value))
                .prop_map(|(key, offset, value)| MicroOp::Send { key, offset, value }),
            Just(MicroOp::Poll(None)),
            by_key(pairs).prop_map(|reads| MicroOp::Poll(Some(reads))),
        ]
    }

    fn action() -> impl Strategy<Value = Action> {
        let keys = || prop::collection::vec(key(), 0..4);
        let steps = || prop::collection::vec(micro_op(), 0..4);
        prop_oneof![
            (keys(), any::<bool>()).prop_map(|(keys, seek_to_beginning)| Action::Assign { keys, seek_to_beginning }),
            (keys(), any::<bool>()).prop_map(|(keys, seek_to_beginning)| Action::Subscribe { keys, seek_to_beginning }),
            steps().prop_map(Action::Send),
            steps().prop_map(Action::Poll),
            steps().prop_map(Action::Txn),
            Just(Action::Crash),
        ]
    }

    fn event() -> impl Strategy<Value = Event> {
        let kind = prop_oneof![Just(Kind::Invoke), Just(Kind::Ok), Just(Kind::Fail), Just(Kind::Info)];
        let plain = (0..1000usize, any::<u32>(), kind, 0..100u64, action());
        let extra =
            (prop::option::of(any::<String>()), prop::collection::btree_set(key(), 0..3), by_key((0..9u64, 0..9u64)));
        (plain, extra).prop_map(|((index, time, kind, process, action), (error, rebalanced, ranges))| {
            let mut event = Event::new(index, time.into(), kind, Process(process), action);
            event.error = error;
            event.rebalanced = rebalanced.into_iter().collect();
            event.linearizable = !ranges.is_empty();
            let claim = |(key, (from, length))| ClaimedRange { key, from: Offset(from), end: Offset(from + length) };
            event.ranges = ranges.into_iter().map(claim).collect();
            event
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(events in prop::collection::vec(event(), 0..6)) {
            let mut text = Vec::new();
            write(&mut text, &events).unwrap();
            prop_assert_eq!(read(text.as_slice()).unwrap(), events);
        }

        #[test]
        fn no_line_makes_the_reader_panic(event in event(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut text = line(&event).into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            let _ = read(text.as_slice());
        }
    }

    #[test]
    fn the_lines_are_jepsens() {
        let send = |offset| Action::Send(vec![MicroOp::Send { key: Key(1), offset, value: Value(40) }]);
        let event = |kind, offset| line(&Event::new(3, 1200, kind, Process(7), send(offset)));
        let begin = "{:index 3, :time 1200, :type ";
        let end = ":process 7, :f :send, :value [[:send 1 ";
        assert_eq!(event(Kind::Invoke, None), format!("{begin}:invoke, {end}40]]}}"));
        assert_eq!(event(Kind::Ok, Some(Offset(7))), format!("{begin}:ok, {end}[7 40]]]}}"));
        assert_eq!(event(Kind::Ok, None), format!("{begin}:ok, {end}[nil 40]]]}}"));
        assert_eq!(event(Kind::Info, None), format!("{begin}:info, {end}40]]}}"));

        let seek = Action::Assign { keys: vec![Key(0), Key(2)], seek_to_beginning: true };
        assert_eq!(
            line(&Event::new(0, 0, Kind::Ok, Process(0), seek)),
            "{:index 0, :time 0, :type :ok, :process 0, :f :assign, :value [0 2], :seek-to-beginning? true}"
        );
        let reads = vec![(Key(0), vec![(Offset(3), Value(9)), (Offset(4), Value(8))]), (Key(1), vec![])];
        let mut poll = Event::new(0, 0, Kind::Ok, Process(0), Action::Poll(vec![MicroOp::Poll(Some(reads))]));
        poll.linearizable = true;
        poll.ranges = vec![ClaimedRange { key: Key(0), from: Offset(3), end: Offset(5) }];
        poll.rebalanced = vec![Key(1)];
        poll.error = Some("timed \"out\"".to_owned());
        assert_eq!(
            line(&poll),
            "{:index 0, :time 0, :type :ok, :process 0, :f :poll, :value [[:poll {0 [[3 9] [4 8]], 1 []}]], \
             :linearizable? true, :ranges {0 [3 5]}, :rebalance-log [{:keys [1]}], :error \"timed \\\"out\\\"\"}"
        );
    }

    #[test]
    fn jepsens_spellings_are_read() {
        let line = "{:process 23, :type :ok, :f :poll, :value ([:poll {5 [[272 140]]}]), :index 7, :time 13, :error [:net :down]}";
        let event = &read(line.as_bytes()).unwrap()[0];
        assert_eq!(event.error.as_deref(), Some("[:net :down]"));
        let reads = vec![(Key(5), vec![(Offset(272), Value(140))])];
        assert_eq!(event.action, Action::Poll(vec![MicroOp::Poll(Some(reads))]));
    }

    #[test]
    fn errors_name_the_line() {
        let good = "{:index 0, :time 0, :type :invoke, :process 0, :f :crash, :value nil}";
        let cases = [
            ("{:index 0", "history line 2: column 10: '}' is missing"),
            ("[]", "history line 2: a map was expected, not []"),
            ("{:index 0}", "history line 2: :time is missing"),
            ("{:index -1}", "history line 2: :index is -1, below 0"),
            (
                &good.replace(":crash", ":fly"),
                "history line 2: :f is :fly, none of :assign :subscribe :send :poll :txn :crash",
            ),
            (&good.replace(":invoke", ":okay"), "history line 2: :type is :okay, none of :invoke :ok :fail :info"),
            (&good.replace("nil", "nil, :colour 3"), "history line 2: :colour is unknown here"),
            (&good.replace(":crash, :value nil", ":send, :value 5"), "history line 2: :value is 5, not a vector"),
            (
                &good.replace(":crash, :value nil", ":send, :value [[:send 1]]"),
                "history line 2: [:send 1] is neither [:send k v], [:send k [offset v]], [:poll] nor [:poll {k [[offset v]…]}]",
            ),
            (&good.replace("nil", "nil, :ranges {0 [3 2]}"), "history line 2: the range [3 2] ends before it starts"),
            (
                "\u{1}",
                "history line 2: column 1: \"\\u{1}\" is neither nil, true, false, an integer, a string nor a keyword",
            ),
        ];
        for (bad, error) in cases {
            assert_eq!(read(format!("{good}\n{bad}\n").as_bytes()).unwrap_err().to_string(), error);
        }
        let error = read([good.as_bytes(), b"\n\xff\n"].concat().as_slice()).unwrap_err().to_string();
        assert!(error.starts_with("history line 2: not UTF-8"), "{error}");
    }

    #[test]
    fn an_endless_line_is_refused_before_it_is_held() {
        let endless = io::BufReader::new(io::repeat(b'['));
        let error = read(endless).unwrap_err().to_string();
        assert_eq!(error, format!("history line 1: longer than {LINE_BYTES_MAX} bytes"));
    }
}
