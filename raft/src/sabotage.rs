//! Mistakes made on purpose, so that a simulation can show that it would notice them. Not part of a release: the module and every
//! place that asks it exist only in tests and under the feature `simulation`.
//!
//! A mistake is switched on for one thread, which is one whole simulation.

use std::cell::Cell;

thread_local! {
    static MADE: Cell<Option<Sabotage>> = const { Cell::new(None) };
}

/// What can be done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Every call for votes is granted, whatever was granted before.
    GrantEveryVote,
    /// Votes and appends are said to be durable before they are.
    AnswerBeforeSync,
    /// Followers decide about what the leader has decided already (against RULES.md O3).
    FollowersDecide,
    /// Raft's own blank entries take an offset.
    BlanksTakeOffsets,
    /// A replica whose files are corrupt starts again, empty, under its old id (against RULES.md R5).
    ReuseReplicaIds,
    /// A purge begins the high watermark anew at the log's start.
    PurgeResetsTheWatermark,
    /// A snapshot is taken where the log is applied, wherever its boundary is to be: the purge that follows takes what was to be kept.
    SnapshotsIgnoreTheBoundary,
    /// Followers do not note producers (against RULES.md O3).
    FollowersForgetProducers,
    /// A truncation takes the entries back, but not what they taught the table (against RULES.md O6).
    TruncationKeepsTheTable,
    /// Leaders send no heartbeats.
    LeadersFallSilent,
}

/// From now on this mistake, or none, is made on this thread.
pub fn make_on_this_thread(mistake: Option<Sabotage>) {
    MADE.set(mistake);
}

/// Under [`Sabotage::AnswerBeforeSync`]: tells at once that an append is durable, and nobody later.
pub(crate) fn told_early(flushed: crate::log::append::Flushed) -> crate::log::append::Flushed {
    if !on(Sabotage::AnswerBeforeSync) {
        return flushed;
    }
    flushed(Ok(()));
    Box::new(|_| {})
}

/// Under [`Sabotage::GrantEveryVote`]: the answer to a call for votes that nobody has looked at.
pub(crate) fn granted(request: &crate::transport::VoteRequest) -> Option<crate::transport::VoteResponse> {
    on(Sabotage::GrantEveryVote).then(|| crate::transport::VoteResponse::new(request.vote, request.last_log_id, true))
}

/// Whether this mistake is to be made.
pub(crate) fn on(mistake: Sabotage) -> bool {
    MADE.get() == Some(mistake)
}
