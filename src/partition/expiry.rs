//! When producers expire: what a leader's own, monotonic clock has to say about it, and how that gets into the log (RULES.md O7).
//!
//! A replica notes now and then where the committed log ends ([`Timeline`]). What lies below a note that is older than
//! `producer.id.expiration.ms` was written before that; so a leader proposes that producers whose last batch lies there have expired
//! ([`Verdict::ExpireProducers`]), and every replica forgets them at that entry, by its index alone ([`super::producers`]).
//!
//! No machine's time of day is asked, and no client's. What is not committed is not noted: another leader may write other, younger
//! entries in its place. Every replica notes for itself, whoever leads, so that a new leader goes on where the old one was; a process
//! that starts begins anew, and so do the ages it knows. A clock that stands still (a suspended machine) lets producers live longer.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::verdict::Verdict;
use super::{Partition, ReplicatedLog};
use crate::error::{Code, Result};

/// A producer expires at most this part of the time later than it could.
const NOTES_PER_EXPIRATION: u32 = 24;

/// Where the committed log of a partition ended, and when.
#[derive(Debug, Default)]
pub struct Timeline {
    /// Oldest first. Below the index everything was committed, here, at that moment. Indexes rise.
    notes: VecDeque<(Instant, u64)>,
}

impl Timeline {
    /// By `now` everything below the index `committed_end` is committed. Returns below which index every entry is older than
    /// `expiration`, if that is known of any.
    pub fn look(&mut self, committed_end: u64, now: Instant, expiration: Duration) -> Option<u64> {
        let old = |(at, _): &(Instant, u64)| now.duration_since(*at) >= expiration;
        // Where nothing came since, the earlier note says more.
        let due = |(at, noted): &(Instant, u64)| {
            *noted < committed_end && now.duration_since(*at) >= expiration / NOTES_PER_EXPIRATION
        };
        if self.notes.back().is_none_or(due) {
            self.notes.push_back((now, committed_end));
        }
        while self.notes.get(1).is_some_and(old) {
            self.notes.pop_front();
        }
        self.notes.front().filter(|note| old(note)).map(|(_, end)| *end)
    }
}

impl<L: ReplicatedLog> Partition<L> {
    /// Lets the producers expire, on every replica, whose last batch has a smaller Raft index than `below`. Leader only. On return
    /// that is committed.
    ///
    /// Errors: as of a produce.
    pub async fn expire_producers(&self, below: u64, wait: Duration) -> Result<()> {
        match self
            .say(Verdict::ExpireProducers { below }, wait, "no producer was let expire within the timeout")
            .await?
        {
            Verdict::ExpireProducers { .. } => Ok(()),
            other => Err(self.error(Code::Internal, format_args!("the expiry of producers was answered {other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests;
