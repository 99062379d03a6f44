//! Deliberately broken variants of Pontoon: what must not be, one each for every invariant, so that each is shown able to fail.
//!
//! Two are in the simulation's own hands (a disk that lies, a client that believes too soon); the others are switches of the raft
//! crate (`pontoon_raft::sabotage`), which a release does not contain.

use pontoon_raft::sabotage::Sabotage;

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// The journal's rounds are written, but not synced as is said.
    SkipJournalSyncs,
    /// What the leader has on its own disk counts as committed.
    AnswerBeforeCommit,
    /// The code itself does wrong.
    Sabotage(Sabotage),
}

/// What goes wrong more often than usual, so that a mistake has its occasion soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Focus {
    /// Everything alike.
    Nothing,
    /// All machines lose their power at once.
    BlackOuts,
    /// A leader is cut off.
    Isolation,
    /// Files rot.
    Rot,
}

impl Variant {
    /// What shows it best.
    pub(crate) fn focus(self) -> Focus {
        match self {
            Self::Sabotage(Sabotage::AnswerBeforeSync | Sabotage::GrantEveryVote) => Focus::BlackOuts,
            Self::Sabotage(Sabotage::TruncationKeepsTheTable) => Focus::Isolation,
            Self::Sabotage(Sabotage::ReuseReplicaIds) => Focus::Rot,
            _ => Focus::Nothing,
        }
    }
}

/// Each variant, the invariant that must notice it, and within how many seeds: so many that another draw of the faults makes no test fail.
pub(crate) const VARIANTS: &[(Variant, &str, u64)] = &[
    (Variant::Sabotage(Sabotage::GrantEveryVote), "one_leader_per_term", 30),
    (Variant::Sabotage(Sabotage::FollowersDecide), "log_matching", 3),
    (Variant::Sabotage(Sabotage::AnswerBeforeSync), "committed_never_changes", 10),
    (Variant::Sabotage(Sabotage::AnswerBeforeSync), "acknowledged_is_readable", 10),
    (Variant::Sabotage(Sabotage::BlanksTakeOffsets), "dense_offsets", 3),
    // The recovery itself refuses what it finds: a broker does not come back.
    (Variant::SkipJournalSyncs, "liveness", 3),
    (Variant::AnswerBeforeCommit, "acknowledged_is_readable", 20),
    (Variant::Sabotage(Sabotage::ReuseReplicaIds), "no_vote_from_quarantine", 60),
    (Variant::Sabotage(Sabotage::PurgeResetsTheWatermark), "high_watermark", 20),
    (Variant::Sabotage(Sabotage::SnapshotsIgnoreTheBoundary), "kept_entries_stay", 3),
    (Variant::Sabotage(Sabotage::SnapshotsIgnoreTheBoundary), "acknowledged_is_readable", 10),
    (Variant::Sabotage(Sabotage::FollowersForgetProducers), "exact_dedup", 20),
    (Variant::Sabotage(Sabotage::TruncationKeepsTheTable), "table_of_the_log", 20),
];
