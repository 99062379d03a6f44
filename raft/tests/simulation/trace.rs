//! What happened, line by line, with the simulated time: the thing that must come out the same when a seed is run again.

use std::fmt::Display;
use std::hash::Hasher;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// A trace under way. Clones share it.
#[derive(Clone)]
pub(crate) struct Trace {
    inner: Arc<Mutex<Inner>>,
    /// Nobody wants to read it: only the time is kept.
    silent: bool,
}

#[derive(Default)]
struct Inner {
    /// Milliseconds of simulated time. Set from outside, step by step: every clock of the simulation ticks in whole ones.
    now_ms: u64,
    lines: Vec<String>,
    hash: u32,
}

impl Trace {
    /// One that is kept, or not: a run does the same either way, and a seed whose trace is wanted can be run again.
    pub(crate) fn new(kept: bool) -> Self {
        Self { inner: Arc::default(), silent: !kept }
    }

    pub(crate) fn set_now(&self, now_ms: u64) {
        self.inner.lock().now_ms = now_ms;
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.inner.lock().now_ms
    }

    /// Adds a line: when, who, what.
    pub(crate) fn note(&self, who: impl Display, what: impl Display) {
        if self.silent {
            return;
        }
        let mut inner = self.inner.lock();
        let line = format!("{:>6} {who} {what}", inner.now_ms);
        inner.hash = crc32c::crc32c_append(inner.hash, line.as_bytes());
        inner.lines.push(line);
    }

    /// The lines so far and their hash.
    pub(crate) fn take(&self) -> (Vec<String>, u32) {
        let mut inner = self.inner.lock();
        (std::mem::take(&mut inner.lines), inner.hash)
    }
}

/// A short name for bytes. Not a CRC: that of anything that ends with its own CRC is always the same.
pub(crate) fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut hasher = std::hash::DefaultHasher::new(); // Without a key of its own.
    parts.into_iter().for_each(|part| hasher.write(part));
    hasher.finish() as u32
}

/// The same, worked out only when it is written down.
pub(crate) struct Digest<'a>(pub(crate) &'a [u8]);

impl Display for Digest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}", digest([self.0]))
    }
}

/// Where something is and what it is, for the trace; worked out only when it is written down.
pub(crate) struct Extent<'a>(pub(crate) u64, pub(crate) &'a [Bytes]);

impl Display for Extent<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes: usize = self.1.iter().map(Bytes::len).sum();
        write!(f, " {}+{bytes} {:08x}", self.0, digest(self.1.iter().map(|part| &part[..])))
    }
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
