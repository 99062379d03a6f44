//! Which anomalies a workload may show, and is valid nevertheless: the table.
//!
//! The workloads themselves (what the clients do) are not here; a history only says by name which one it was.

use super::Anomaly::{
    self, G0, G0Process, G0Realtime, G1c, G1cProcess, G1cRealtime, IntSendSkip, NonmonotonicPoll, PollSkip,
    PrecommittedRead,
};

/// What the clients of a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// One send or one poll an operation, partitions by assign.
    Single,
    /// One send or one poll an operation, partitions by a consumer group.
    SingleSubscribe,
    /// Lists of sends and polls, each step by itself, partitions by assign.
    Mixed,
    /// Transactions, partitions by assign.
    Txn,
    /// Transactions, partitions by a consumer group.
    TxnSubscribe,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The workload.
    pub workload: Workload,
    /// Its name in `run.json`.
    pub name: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// What it may show.
    pub allowed: &'static [Anomaly],
    /// Whether write-write edges count in the search for G1c. Kafka's transactions do not isolate writes, so with them every such
    /// history has cycles; without them none may have one.
    pub g1c_with_ww: bool,
}

/// Why each may be: a rebalance moves positions (poll-skip, nonmonotonic-poll). Steps of other operations come between the steps of
/// one (int-send-skip, every G0 and, where there are no transactions, every G1c); without transactions an operation may well read
/// what it has just sent (precommitted-read).
pub const TABLE: &[Row] = &[
    Row {
        workload: Workload::Single,
        name: "single",
        summary: "single sends and polls, partitions by assign",
        allowed: &[],
        g1c_with_ww: true,
    },
    Row {
        workload: Workload::SingleSubscribe,
        name: "single-subscribe",
        summary: "single sends and polls, partitions by a consumer group",
        allowed: &[PollSkip, NonmonotonicPoll],
        g1c_with_ww: true,
    },
    Row {
        workload: Workload::Mixed,
        name: "mixed",
        summary: "lists of sends and polls without transactions, partitions by assign",
        allowed: &[IntSendSkip, PrecommittedRead, G0, G0Process, G0Realtime, G1c, G1cProcess, G1cRealtime],
        g1c_with_ww: true,
    },
    Row {
        workload: Workload::Txn,
        name: "txn",
        summary: "transactions, partitions by assign",
        allowed: &[IntSendSkip, G0, G0Process, G0Realtime],
        g1c_with_ww: false,
    },
    Row {
        workload: Workload::TxnSubscribe,
        name: "txn-subscribe",
        summary: "transactions, partitions by a consumer group",
        allowed: &[IntSendSkip, G0, G0Process, G0Realtime, PollSkip, NonmonotonicPoll],
        g1c_with_ww: false,
    },
];

impl Workload {
    /// Its line of the table.
    pub fn row(self) -> &'static Row {
        match self {
            Self::Single => &TABLE[0],
            Self::SingleSubscribe => &TABLE[1],
            Self::Mixed => &TABLE[2],
            Self::Txn => &TABLE[3],
            Self::TxnSubscribe => &TABLE[4],
        }
    }

    /// Whether it may show an anomaly and be valid.
    pub fn allows(self, anomaly: Anomaly) -> bool {
        self.row().allowed.contains(&anomaly)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_finds_its_own_row_by_its_own_name() {
        for row in TABLE {
            assert_eq!(row.workload.row().name, row.name);
            assert_eq!(serde_json::to_string(&row.workload).unwrap(), format!("{:?}", row.name));
        }
    }

    #[test]
    fn no_workload_allows_loss_disagreement_or_disorder() {
        use Anomaly::*;
        let never = [LostWrite, Unseen, InconsistentOffsets, Duplicate, Phantom, G1a, StaleRead, RealtimeSendOrder];
        for row in TABLE {
            assert!(never.iter().all(|anomaly| !row.workload.allows(*anomaly)), "{}", row.name);
        }
        assert!(Workload::Single.row().allowed.is_empty());
    }
}
