//! The raft crate's configuration: one struct, units in the names, a default for everything.

use std::time::Duration;

/// Limits and intervals of the replicated log. [`Default`] is what a broker runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftConfig {
    /// Most bytes one journal round may hold. Default: 4 MiB.
    pub journal_round_bytes_max: usize,
    /// Size of one journal file, pre-written with zeros (RULES.md J19). Default: 64 MiB.
    pub journal_file_bytes: u64,
    /// An append of at least this many bytes goes to its segment directly (RULES.md J6). Default: 1 MiB; see docs/BENCHMARKS.md.
    pub bypass_bytes_min: usize,
    /// How many bytes may be durable in the journal but not yet written to segments. Default: 64 MiB.
    pub unwritten_bytes_max: usize,
    /// Bytes appended, or written to the journal, after which a checkpoint is taken. Default: 64 MiB.
    pub checkpoint_journal_bytes: u64,
    /// Longest time between checkpoints while something was written. Default: 60 s.
    pub checkpoint_interval: Duration,
    /// A segment is closed at this size. Default: 256 MiB.
    pub segment_bytes_max: u64,
    /// One index entry every so many bytes of segment. Default: 16 KiB.
    pub index_interval_bytes: u64,
    /// Bytes of recent frames each log keeps in memory. Default: 8 MiB.
    pub tail_cache_bytes: usize,
    /// Bytes of recent frames all logs of a broker keep together. Default: 256 MiB.
    pub tail_cache_bytes_total: usize,
    /// Most bytes one replication request carries. Default: 1 MiB.
    pub append_bytes_max: usize,
    /// At most so many bytes per second go to replicas that fell behind, all groups that this broker leads together; 0: no
    /// limit. What production adds meanwhile does not count. Gives way while commits wait for them. Default: 16 MiB; see docs/BENCHMARKS.md.
    pub catch_up_bytes_per_second: u64,
    /// Raft's heartbeat interval, while something happens in a group. Default: 1 s. (Death of a broker is seen by the failure
    /// detector, not by this.)
    pub heartbeat: Duration,
    /// Raft's own election timeout, the fallback: drawn between this and twice this. Default: 4 s.
    pub election_timeout: Duration,
    /// Interval of the broker-to-broker liveness pings. Default: 50 ms.
    pub ping_interval: Duration,
    /// Silence after which a broker is declared dead. Default: 1 s.
    pub silence_max: Duration,
    /// A transfer of leadership that brought no new leader within this is undone (RULES.md R4). Default: 500 ms.
    pub transfer_timeout: Duration,
    /// Pause before the first round of the background scrub and between two (RULES.md J13). Default: 1 h.
    pub scrub_interval: Duration,
    /// How fast the scrub reads; 0: there is none. Default: 8 MiB per second.
    pub scrub_bytes_per_second: u64,
    /// Free disk bytes below which produce is refused. Default: 512 MiB.
    pub reserve_produce_bytes: u64,
    /// Free disk bytes below which followers refuse AppendEntries. Default: 256 MiB.
    pub reserve_append_bytes: u64,
}

impl RaftConfig {
    /// Interval of a leader's heartbeats while nothing happens: a quarter of its lease, which is twice the election timeout.
    pub fn idle_heartbeat(&self) -> Duration {
        (self.election_timeout / 2).max(self.heartbeat)
    }

    /// A follower that has heard its leader within this needs no timer: it could not elect before twice the election timeout has
    /// passed, and two idle heartbeats had to be lost.
    pub(crate) fn heard_max(&self) -> Duration {
        self.idle_heartbeat() * 2 + self.heartbeat
    }
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            journal_round_bytes_max: 4 << 20,
            journal_file_bytes: 64 << 20,
            bypass_bytes_min: 1 << 20,
            unwritten_bytes_max: 64 << 20,
            checkpoint_journal_bytes: 64 << 20,
            checkpoint_interval: Duration::from_secs(60),
            segment_bytes_max: 256 << 20,
            index_interval_bytes: 16 << 10,
            tail_cache_bytes: 8 << 20,
            tail_cache_bytes_total: 256 << 20,
            append_bytes_max: 1 << 20,
            catch_up_bytes_per_second: 16 << 20,
            heartbeat: Duration::from_secs(1),
            election_timeout: Duration::from_secs(4),
            ping_interval: Duration::from_millis(50),
            silence_max: Duration::from_secs(1),
            transfer_timeout: Duration::from_millis(500),
            scrub_interval: Duration::from_secs(3600),
            scrub_bytes_per_second: 8 << 20,
            reserve_produce_bytes: 512 << 20,
            reserve_append_bytes: 256 << 20,
        }
    }
}
