//! How far behind a follower is, in what an operator counts: records and bytes.

use super::Log;
use super::state::LogState;

/// What a replica lacks of this log. About: up to one index interval too much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Records.
    pub records: u64,
    /// Bytes of frames.
    pub bytes: u64,
}

impl Log {
    /// What a replica lacks that has everything up to the Raft index `matched` (`None`: nothing).
    pub fn lag_of(&self, matched: Option<u64>) -> Lag {
        lag(&self.state.lock(), matched)
    }
}

fn lag(state: &LogState, matched: Option<u64>) -> Lag {
    let next = matched.map_or(0, |matched| matched + 1);
    if next >= state.head.next_index() {
        return Lag::default();
    }
    let end = state.head.next_offset;
    let Some(at) = state.segment_of(next.max(state.first_index())) else {
        return Lag { records: end.saturating_sub(state.log_start_offset), bytes: state.bytes() };
    };
    let segment = &state.segments[at];
    // Without an index of its beginning a segment counts whole.
    let (position, offset) =
        segment.index.by_index(next).map_or((0, segment.base_offset), |entry| (entry.position, entry.base_offset));
    let later: u64 = state.segments[at + 1..].iter().map(|segment| segment.bytes).sum();
    Lag {
        records: end.saturating_sub(offset.max(state.log_start_offset)),
        bytes: later + segment.bytes.saturating_sub(position),
    }
}
