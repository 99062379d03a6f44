//! Which records a partition keeps: the policy, the leader's decision, and what the log itself says about it (RULES.md O7).
//!
//! The leader looks at its segments now and then ([`plan`]) and proposes what it found ([`Verdict::Retention`]): where the
//! log starts from now on, and what time it is. That stands in the log; every replica takes it from there ([`Retained`], part of
//! the append state) and lets its own segments below go. No replica decides by itself, and none decides twice.
//!
//! **How timestamps are bounded.** A batch's timestamps are its producer's word. Further above the leader's clock than clocks differ
//! ([`AHEAD_MAX_MS`], or `retention.ms` where that is less) they are not believed: a segment that holds such a record (or records
//! without any time) is as old as the first entry behind it in which a leader wrote down what time it was. So a record from the
//! future keeps its segment for twice `retention.ms` from when it was written at most, whoever leads and however often they are
//! restarted. Where a timestamp is believed it counts alone: what a leader wrote down whose clock had fallen back takes nothing
//! away. Lookups by time still see the producer's word.
//!
//! Saved, little endian: number of log starts (u8), each Raft index and offset (u64 each); number of times (u8), each offset
//! (u64) and ms (i64). Empty: `00 00`.

use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use pontoon_raft::log::SegmentInfo;
use pontoon_raft::types::{Offset, Outcome};
use tokio::time::timeout;

use super::verdict::Verdict;
use super::{MAJORITY_DEAD, Partition, ReplicatedLog};
use crate::error::{Code, Result};

/// How many log starts are remembered: the one that holds, and those whose entries may not be committed yet.
const STARTS_KEPT: usize = 4;
/// How far the clocks of producers and brokers may differ.
const AHEAD_MAX_MS: u64 = 3_600_000;
/// How many times are remembered. Part of the format: replicas must forget the same ones.
const TIMES_KEPT: usize = 32;

/// What is retained of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// Records older than this may go, in ms. `None`: however old.
    pub retention_ms: Option<u64>,
    /// The oldest segments go while the rest is at least this many bytes. `None`: however many.
    pub retention_bytes: Option<u64>,
}

/// What a leader finds is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Where the log should start, if not where it does.
    pub log_start: Option<u64>,
    /// The time must be written down: without it a segment would never grow old.
    pub note_time: bool,
}

/// What is to be done about these segments, oldest first, the last one still growing, under `policy` at `now` (ms since
/// 1970). Nothing at or above `high_watermark` goes.
pub fn plan(
    segments: &[SegmentInfo],
    log_start: Offset,
    high_watermark: Offset,
    policy: &RetentionPolicy,
    now: i64,
) -> Plan {
    let mut plan = Plan::default();
    let by_time = policy.retention_ms.map_or(0, |keep_ms| {
        let age = |segment: &SegmentInfo| age_ms(segment, now, keep_ms.min(AHEAD_MAX_MS));
        let expired = |segment: &&SegmentInfo| match age(segment) {
            Age::Is(ms) => ms > keep_ms,
            Age::Empty => true,
            Age::Unknown => false,
        };
        plan.note_time = segments.iter().any(|segment| matches!(age(segment), Age::Unknown));
        segments.iter().take_while(expired).count()
    });
    let by_size = policy.retention_bytes.map_or(0, |keep_bytes| {
        let mut left: u64 = segments.iter().map(|segment| segment.bytes).sum();
        let closed = segments.split_last().map_or(&[][..], |(_, closed)| closed);
        let goes = |segment: &&SegmentInfo| {
            left -= segment.bytes;
            left >= keep_bytes
        };
        closed.iter().take_while(goes).count()
    });
    let gone = &segments[..by_time.max(by_size)];
    let start = gone.iter().rev().map(|segment| segment.next_offset).find(|next| *next <= high_watermark);
    plan.log_start = start.filter(|start| *start > log_start).map(|start| start.0);
    plan
}

enum Age {
    /// In ms.
    Is(u64),
    /// It holds no records.
    Empty,
    /// Nothing to be believed says so.
    Unknown,
}

/// `ahead_ms`: timestamps are believed up to so far above `now`.
fn age_ms(segment: &SegmentInfo, now: i64, ahead_ms: u64) -> Age {
    if segment.next_offset == segment.base_offset {
        return Age::Empty;
    }
    let believed = 0..=now.saturating_add_unsigned(ahead_ms);
    let said = believed.contains(&segment.max_timestamp).then_some(segment.max_timestamp);
    match said.or(segment.appended_by) {
        Some(time) => Age::Is(u64::try_from(now.saturating_sub(time)).unwrap_or(0)),
        None => Age::Unknown,
    }
}

/// Whether a segment that has been appended to since its records of `first_timestamp`, and been open here for `open_for`, is
/// older than `segment_ms`.
pub fn is_old(first_timestamp: i64, open_for: Duration, segment_ms: u64, now: i64) -> bool {
    let age = match u64::try_from(now.saturating_sub(first_timestamp)) {
        Ok(age) if first_timestamp >= 0 => age,
        _ => open_for.as_millis() as u64,
    };
    age > segment_ms
}

/// What the log's prefix says about retention. A pure function of it, like the producer table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    /// Raft index of an entry that moved the log start, and where to; both rise.
    starts: Vec<(u64, u64)>,
    /// Everything below the offset had been appended by this time, ms; offsets rise.
    times: Vec<(u64, i64)>,
}

impl Retained {
    /// Where the log starts, as far as entries up to and including `upto` say.
    pub fn log_start(&self, upto: u64) -> u64 {
        self.starts.iter().rev().find(|(index, _)| *index <= upto).map_or(0, |(_, start)| *start)
    }

    /// Where the log will start once everything in it is committed.
    pub fn last_start(&self) -> u64 {
        self.log_start(u64::MAX)
    }

    /// By when everything below `offset` had been appended.
    pub fn appended_by(&self, offset: u64) -> Option<i64> {
        let from = self.times.partition_point(|(below, _)| *below < offset);
        self.times[from..].iter().map(|(_, time)| *time).min()
    }

    /// Takes note of an entry at `index`, before which offsets stood at `next_offset`.
    pub fn note(&mut self, index: u64, next_offset: u64, log_start: u64, time: i64) {
        if log_start > self.last_start() {
            self.starts.push((index, log_start));
            if self.starts.len() > STARTS_KEPT {
                self.starts.remove(0);
            }
        }
        let start = self.last_start();
        self.times.retain(|(below, _)| *below > start);
        // The first time that was noted for an offset tells most.
        if next_offset > start && self.times.last().is_none_or(|(below, _)| *below < next_offset) {
            self.times.push((next_offset, time));
        }
        if self.times.len() > TIMES_KEPT {
            // Every other one: what it said is said by the next, a little later.
            let mut at = 0;
            self.times.retain(|_| {
                at += 1;
                at % 2 == 0
            });
        }
    }

    /// Appends it to `out`.
    pub fn save(&self, out: &mut BytesMut) {
        out.put_u8(self.starts.len() as u8);
        for (index, start) in &self.starts {
            out.put_u64_le(*index);
            out.put_u64_le(*start);
        }
        out.put_u8(self.times.len() as u8);
        for (below, time) in &self.times {
            out.put_u64_le(*below);
            out.put_i64_le(*time);
        }
    }

    /// Reads back what [`Self::save`] wrote, all of it.
    pub fn load(mut saved: &[u8]) -> Result<Self, String> {
        let cut = |_| "cut short".to_owned();
        let mut retained = Self::default();
        let starts = usize::from(saved.try_get_u8().map_err(cut)?);
        for _ in 0..starts {
            let start = (saved.try_get_u64_le().map_err(cut)?, saved.try_get_u64_le().map_err(cut)?);
            retained.starts.push(start);
        }
        let times = usize::from(saved.try_get_u8().map_err(cut)?);
        for _ in 0..times {
            let time = (saved.try_get_u64_le().map_err(cut)?, saved.try_get_i64_le().map_err(cut)?);
            retained.times.push(time);
        }
        let starts_rise = retained.starts.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1);
        let times_rise = retained.times.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let fits = starts <= STARTS_KEPT && times <= TIMES_KEPT && saved.is_empty();
        if starts_rise && times_rise && fits {
            Ok(retained)
        } else {
            Err(format!("{retained:?}, {} more", saved.len()))
        }
    }
}

impl<L: ReplicatedLog> Partition<L> {
    /// Lets the log start at `offset` from now on, on every replica, and writes down what time it is. Leader only. Returns where
    /// it starts: never before where it did. On return that is committed and applied here; the room is given back behind.
    ///
    /// Errors: `OFFSET_OUT_OF_RANGE` above the high watermark, as of a produce otherwise.
    pub async fn start_log_at(&self, offset: Offset, now_ms: i64, wait: Duration) -> Result<Offset> {
        let high_watermark = *self.log.watch_high_watermark().borrow();
        if offset > high_watermark {
            let what = format!("the log cannot start at {offset}, beyond the high watermark {high_watermark}");
            return Err(self.error(Code::OffsetOutOfRange, what));
        }
        let verdict = Verdict::Retention { log_start: offset.0, time_ms: now_ms };
        match self.say(verdict, wait, "the log start was not moved within the timeout").await? {
            Verdict::Retention { log_start, .. } => Ok(Offset(log_start)),
            other => Err(self.error(Code::Internal, format_args!("moving the log start was answered {other:?}"))),
        }
    }

    /// Proposes what a leader has to say of the log itself, and returns what was written of it once that is committed and applied
    /// here. `late`: what did not happen within `wait`, perhaps.
    pub(super) async fn say(&self, verdict: Verdict, wait: Duration, late: &str) -> Result<Verdict> {
        if !self.log.may_have_majority() {
            return Err(self.error(Code::NoLeader, MAJORITY_DEAD));
        }
        let answered = timeout(wait, self.log.propose(verdict.encode(), None)).await;
        let appended =
            answered.map_err(|_| self.error(Code::OutcomeUnknown, late))?.map_err(|error| self.propose_error(error))?;
        let written = match &appended.outcome {
            Outcome::Void { verdict } => Verdict::decode(verdict),
            _ => None,
        };
        written
            .ok_or_else(|| self.error(Code::Internal, format_args!("{verdict:?} was answered {:?}", appended.outcome)))
    }
}

#[cfg(test)]
mod tests;
