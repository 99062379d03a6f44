//! The history of registers as text; see [`super`] for its form. Reading is strict and bounded, as that of the other history.

use std::io::{self, BufRead, Read as _};

use super::{Deed, Register, RegisterEvent};
use crate::history::edn::{self, Edn};
use crate::history::{Kind, Process};

/// The longest line that is read, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// The most events that are read.
const EVENTS_MAX: usize = 50_000_000;

/// One event as its line, without the line's end.
pub fn line(event: &RegisterEvent) -> String {
    let int = |number: u64| Edn::Int(i64::try_from(number).unwrap_or(i64::MAX));
    let word = |name: &str| Edn::Keyword(name.to_owned());
    let (name, value) = match event.deed {
        Deed::Write(value) => ("write", int(value)),
        Deed::Read(value) => ("read", value.map_or(Edn::Nil, int)),
    };
    let kind = match event.kind {
        Kind::Invoke => "invoke",
        Kind::Ok => "ok",
        Kind::Fail => "fail",
        Kind::Info => "info",
    };
    let mut fields = vec![
        (word("index"), int(event.index as u64)),
        (word("time"), int(event.time_ns)),
        (word("type"), word(kind)),
        (word("process"), int(event.process.0)),
        (word("f"), word(name)),
        (word("value"), Edn::Vector(vec![int(event.register.0), value])),
    ];
    fields.extend(event.error.iter().map(|error| (word("error"), Edn::Text(error.clone()))));
    Edn::Map(fields).to_string()
}

/// Reads events until the end of `input`. The error names the first bad line.
pub fn read(mut input: impl BufRead) -> Result<Vec<RegisterEvent>, String> {
    let (mut events, mut buffer) = (Vec::new(), Vec::new());
    let io = |error: io::Error| format!("cannot read the registers' history: {error}");
    for number in 1.. {
        buffer.clear();
        let fail = |what: String| format!("registers' history line {number}: {what}");
        if input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut buffer).map_err(io)? == 0 {
            break;
        }
        let text = std::str::from_utf8(&buffer).map_err(|error| fail(error.to_string()))?;
        if events.len() == EVENTS_MAX {
            return Err(fail(format!("more than {EVENTS_MAX} events")));
        }
        let value = edn::parse(text).map_err(|error| fail(error.to_string()))?;
        events.push(event(value).ok_or_else(|| fail("it is no event of a register".to_owned()))?);
    }
    Ok(events)
}

fn event(value: Edn) -> Option<RegisterEvent> {
    let Edn::Map(fields) = value else { return None };
    let field =
        |name: &str| fields.iter().find(|(key, _)| matches!(key, Edn::Keyword(word) if word == name)).map(|f| &f.1);
    let number = |value: &Edn| match value {
        Edn::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    };
    let word = |name: &str| match field(name) {
        Some(Edn::Keyword(word)) => Some(word.as_str()),
        _ => None,
    };
    let kind = match word("type")? {
        "invoke" => Kind::Invoke,
        "ok" => Kind::Ok,
        "fail" => Kind::Fail,
        "info" => Kind::Info,
        _ => return None,
    };
    let Some(Edn::Vector(pair)) = field("value") else { return None };
    let [register, value] = pair.as_slice() else { return None };
    let deed = match (word("f")?, value) {
        ("write", value) => Deed::Write(number(value)?),
        ("read", Edn::Nil) => Deed::Read(None),
        ("read", value) => Deed::Read(Some(number(value)?)),
        _ => return None,
    };
    let error = match field("error") {
        None => None,
        Some(Edn::Text(text)) => Some(text.clone()),
        Some(_) => return None,
    };
    Some(RegisterEvent {
        index: usize::try_from(number(field("index")?)?).ok()?,
        time_ns: number(field("time")?)?,
        kind,
        process: Process(number(field("process")?)?),
        register: Register(number(register)?),
        deed,
        error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_read_back() {
        let event = |index, kind, deed, error: Option<&str>| RegisterEvent {
            index,
            time_ns: 7,
            kind,
            process: Process(3),
            register: Register(1),
            deed,
            error: error.map(str::to_owned),
        };
        let events = vec![
            event(0, Kind::Invoke, Deed::Write(40), None),
            event(1, Kind::Info, Deed::Write(40), Some("no \"answer\"")),
            event(2, Kind::Ok, Deed::Read(None), None),
            event(3, Kind::Ok, Deed::Read(Some(40)), None),
        ];
        let text: String = events.iter().map(|event| line(event) + "\n").collect();
        assert!(text.contains("{:index 3, :time 7, :type :ok, :process 3, :f :read, :value [1 40]}"), "{text}");
        assert_eq!(read(text.as_bytes()).unwrap(), events);
    }

    #[test]
    fn what_is_no_event_is_named_with_its_line() {
        let good = "{:index 0, :time 1, :type :ok, :process 3, :f :read, :value [1 nil]}\n";
        for bad in [
            good.replace(":ok", ":yes"),
            good.replace("[1 nil]", "[1]"),
            good.replace(":read", ":write"),
            good.replace(":time 1", ":time -1"),
            "7\n".to_owned(),
        ] {
            assert!(read(format!("{good}{bad}").as_bytes()).unwrap_err().contains("line 2"), "{bad}");
        }
    }
}
