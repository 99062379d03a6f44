//! What a broker's replicated log counts and times, for whoever shows it (`/metrics`).
//!
//! Every handle is made once, when its owner is made, and carries its broker as a label, so that several brokers of one
//! process do not mix; on the hot path only atomics move. Names and their meaning stand here and nowhere else. Nothing is
//! decided by these numbers.

use crate::types::BrokerId;

/// One metric: how it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instrument {
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
}

/// Declares a struct of metric handles, one per field, and the list of what they are called.
///
/// `instruments! { /// Doc. pub struct Name { /// Help. counter field = "name_total"; … } }` gives `Name::new(broker)` and
/// `Name::ALL`.
#[macro_export]
macro_rules! instruments {
    (@type counter) => { ::metrics::Counter };
    (@type gauge) => { ::metrics::Gauge };
    (@type histogram) => { ::metrics::Histogram };
    (@make counter $name:literal $help:literal $broker:ident) => {{
        ::metrics::describe_counter!($name, $help.trim());
        ::metrics::counter!($name, "broker" => $broker.clone())
    }};
    (@make gauge $name:literal $help:literal $broker:ident) => {{
        ::metrics::describe_gauge!($name, $help.trim());
        ::metrics::gauge!($name, "broker" => $broker.clone())
    }};
    (@make histogram $name:literal $help:literal $broker:ident) => {{
        ::metrics::describe_histogram!($name, $help.trim());
        ::metrics::histogram!($name, "broker" => $broker.clone())
    }};
    ($(#[$doc:meta])* $vis:vis struct $type:ident {
        $(#[doc = $help:literal] $kind:ident $field:ident = $name:literal;)+
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        $vis struct $type {
            $(#[doc = $help] $vis $field: $crate::instruments!(@type $kind),)+
        }

        #[allow(dead_code)]
        impl $type {
            /// What they are called.
            $vis const ALL: &'static [$crate::instruments::Instrument] = &[$(
                $crate::instruments::Instrument { kind: stringify!($kind), name: $name, help: $help },
            )+];

            /// The handles of one broker. Made again, they are the same.
            $vis fn new(broker: $crate::types::BrokerId) -> Self {
                let broker = broker.to_string();
                Self { $($field: $crate::instruments!(@make $kind $name $help broker),)+ }
            }
        }
    };
}

instruments! {
    /// The journal's and the checkpoints'.
    pub struct JournalInstruments {
        /// Rounds of the journal: one write and one fdatasync each.
        counter rounds = "pontoon_journal_rounds_total";
        /// Operations that went out with rounds: appends, votes, truncations.
        counter records = "pontoon_journal_records_total";
        /// Bytes of rounds.
        counter bytes = "pontoon_journal_bytes_total";
        /// From a round's beginning to its end.
        histogram round_seconds = "pontoon_journal_round_seconds";
        /// Write and fdatasync of a round, as the disk took them.
        histogram sync_seconds = "pontoon_journal_sync_seconds";
        /// Large appends that went to their segments directly.
        counter bypasses = "pontoon_journal_bypasses_total";
        /// Bytes of such appends.
        counter bypass_bytes = "pontoon_journal_bypass_bytes_total";
    }
}

instruments! {
    /// The logs' and the data directory's.
    pub struct LogInstruments {
        /// Checkpoints taken.
        counter checkpoints = "pontoon_checkpoints_total";
        /// How long a checkpoint took.
        histogram checkpoint_seconds = "pontoon_checkpoint_duration_seconds";
        /// Reads (of replication, apply and consumers) that the tail cache answered.
        counter tail_hits = "pontoon_tail_cache_hits_total";
        /// Reads that went to a segment's file.
        counter tail_misses = "pontoon_tail_cache_misses_total";
        /// Bytes of frames read from segments' files.
        counter segment_read_bytes = "pontoon_segment_read_bytes_total";
        /// Bytes of frames appended to logs, led or followed.
        counter append_bytes = "pontoon_log_append_bytes_total";
        /// Rotten segments found, by readers, by the scrub, or at a start.
        counter rot_found = "pontoon_log_rot_found_total";
        /// Replicas with rot that is not repaired yet.
        gauge rotten_replicas = "pontoon_log_rotten_replicas";
        /// Rotten segments repaired from a peer.
        counter repairs = "pontoon_log_repairs_total";
        /// Bytes of records that came from peers for that.
        counter repaired_bytes = "pontoon_log_repaired_bytes_total";
        /// Attempts at that which failed; they are repeated.
        counter repair_failures = "pontoon_log_repair_failures_total";
        /// Rounds of the background scrub.
        counter scrub_rounds = "pontoon_scrub_rounds_total";
        /// Bytes of segments that the scrub has read.
        counter scrub_bytes = "pontoon_scrub_bytes_total";
    }
}

instruments! {
    /// Leadership's.
    pub struct GroupInstruments {
        /// Leaderships that this broker's replicas gained.
        counter elections_won = "pontoon_raft_elections_won_total";
        /// Elections after a death in which this broker's claim was the best.
        counter elections_forced = "pontoon_raft_elections_forced_total";
        /// Hand-overs of leadership begun.
        counter transfers = "pontoon_raft_transfers_total";
        /// Hand-overs that brought no new leader in time and were undone.
        counter transfers_undone = "pontoon_raft_transfers_undone_total";
        /// Groups' cores that ended and were started again.
        counter restarts = "pontoon_raft_core_restarts_total";
        /// Replicas on this broker that were given up: their files could not be used, or their cores kept ending.
        counter given_up = "pontoon_replicas_given_up_total";
        /// Times that every leadership was given away because a round of the journal did not end.
        counter stalled_hand_overs = "pontoon_raft_stalled_hand_overs_total";
    }
}

instruments! {
    /// Replication's, as leaders see it.
    pub struct ReplicationInstruments {
        /// Requests with entries sent to followers.
        counter requests = "pontoon_replication_requests_total";
        /// Bytes of such requests.
        counter bytes = "pontoon_replication_bytes_total";
        /// From a request's way out to the follower's word that it is durable there.
        histogram seconds = "pontoon_replication_duration_seconds";
        /// Replication streams that ended by an error and are begun anew.
        counter errors = "pontoon_replication_errors_total";
    }
}

/// Whatever one broker's replicated log counts.
pub fn all() -> impl Iterator<Item = Instrument> {
    let lists =
        [OF_PEERS, JournalInstruments::ALL, LogInstruments::ALL, GroupInstruments::ALL, ReplicationInstruments::ALL];
    lists.into_iter().flatten().copied()
}

/// Metrics of one series per peer (and connection and direction): made when the peer is, not with the rest.
pub const OF_PEERS: &[Instrument] = &[
    Instrument {
        kind: "gauge",
        name: "pontoon_peer_alive",
        help: "1 while this broker's detector holds the peer alive.",
    },
    Instrument { kind: "counter", name: "pontoon_peer_bytes_total", help: "Bytes exchanged with the peer." },
    Instrument { kind: "counter", name: "pontoon_peer_frames_total", help: "Frames exchanged with the peer." },
    Instrument { kind: "counter", name: "pontoon_peer_connects_total", help: "Connections made to the peer." },
    Instrument { kind: "histogram", name: "pontoon_peer_ping_seconds", help: "Round trips of pings to the peer." },
];

impl Instrument {
    /// Gives the recorder its help.
    pub fn describe(&self) {
        match self.kind {
            "counter" => metrics::describe_counter!(self.name, self.help),
            "gauge" => metrics::describe_gauge!(self.name, self.help),
            _ => metrics::describe_histogram!(self.name, self.help),
        }
    }
}

/// How a broker and one of its peers are named in metrics.
pub(crate) fn peer_labels(own: BrokerId, peer: BrokerId) -> [(&'static str, String); 2] {
    [("broker", own.to_string()), ("peer", peer.to_string())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_their_kind_and_unit_and_stand_for_one_thing() {
        let mut seen = std::collections::BTreeSet::new();
        for Instrument { kind, name, help } in all() {
            assert!(seen.insert(name), "{name} twice");
            assert!(name.starts_with("pontoon_") && !help.trim().is_empty(), "{name}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            assert!(kind != "histogram" || name.ends_with("_seconds") || name.ends_with("_bytes"), "{name}");
        }
    }
}
