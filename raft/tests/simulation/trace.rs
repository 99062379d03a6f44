//! What happened, line by line, with the simulated time: the thing that must come out the same when a seed is run again.

use std::fmt::Display;
use std::hash::Hasher;
use std::sync::Arc;

use parking_lot::Mutex;

/// A trace under way. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Trace(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// Milliseconds of simulated time. Set from outside, step by step: every clock of the simulation ticks in whole ones.
    now_ms: u64,
    lines: Vec<String>,
    hash: u32,
}

impl Trace {
    pub(crate) fn set_now(&self, now_ms: u64) {
        self.0.lock().now_ms = now_ms;
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.0.lock().now_ms
    }

    /// Adds a line: when, who, what.
    pub(crate) fn note(&self, who: impl Display, what: impl Display) {
        let mut inner = self.0.lock();
        let line = format!("{:>6} {who} {what}", inner.now_ms);
        inner.hash = crc32c::crc32c_append(inner.hash, line.as_bytes());
        inner.lines.push(line);
    }

    /// The lines so far and their hash.
    pub(crate) fn take(&self) -> (Vec<String>, u32) {
        let mut inner = self.0.lock();
        (std::mem::take(&mut inner.lines), inner.hash)
    }
}

/// A short name for bytes. Not a CRC: that of anything that ends with its own CRC is always the same.
pub(crate) fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut hasher = std::hash::DefaultHasher::new(); // Without a key of its own.
    parts.into_iter().for_each(|part| hasher.write(part));
    hasher.finish() as u32
}

/// Where two traces part, with what led there; `None`: they are the same.
pub(crate) fn first_difference(one: &[String], other: &[String]) -> Option<String> {
    let at = one.iter().zip(other).take_while(|(one, other)| one == other).count();
    if at == one.len() && at == other.len() {
        return None;
    }
    let before = one[at.saturating_sub(8)..at].join("\n    ");
    let line = |lines: &[String]| lines.get(at).map_or("(the end)".to_owned(), Clone::clone);
    Some(format!("line {at}:\n    {before}\n  1 {}\n  2 {}", line(one), line(other)))
}
