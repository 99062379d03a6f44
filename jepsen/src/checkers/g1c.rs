//! **G1c** (circular information flow): T1 saw what T2 wrote, and T2 saw (or, where ww edges count, overwrote… followed) what T1 wrote. A
//! cycle of ww and wr edges with at least one wr.
//!
//! **G1c-process**: with process order in it, for instance a process that polled what it only sent afterwards. **G1c-realtime**: with
//! real-time order in it: a poll was over before the send of what it read began. Whether ww edges count is in the workload's row
//! ([`super::workloads`]). See [`super::graph`] for the edges.

use super::g0::{g1c_edges, search};
use super::graph::{PROCESS, REALTIME, WR};
use super::{Anomaly, Checker};

/// Writes and reads only.
pub const CHECKER: Checker = Checker {
    anomaly: Anomaly::G1c,
    summary: "information flows in a circle",
    check: |analysis, workload| search(analysis, g1c_edges(workload), WR),
};

/// With process order.
pub const PROCESS_CHECKER: Checker = Checker {
    anomaly: Anomaly::G1cProcess,
    summary: "information and a process's own order form a circle",
    check: |analysis, workload| search(analysis, g1c_edges(workload) | PROCESS, WR | PROCESS),
};

/// With real-time order.
pub const REALTIME_CHECKER: Checker = Checker {
    anomaly: Anomaly::G1cRealtime,
    summary: "information and real time form a circle",
    check: |analysis, workload| search(analysis, g1c_edges(workload) | PROCESS | REALTIME, WR | REALTIME),
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::workloads::Workload;
    use crate::testing::{Story, found, found_in, found_names, plant, simple_log, transactions};

    #[test]
    fn two_transactions_that_see_each_other_are_named() {
        let clean = transactions(23);
        assert_eq!(found_in(&clean, Anomaly::G1c, Workload::Txn).count, 0);
        let (history, planted) = plant::circle_of_information(&clean);
        let findings = found_in(&history, Anomaly::G1c, Workload::Txn);
        assert_eq!(findings.count, 1);
        assert_eq!(findings.cases[0].events, planted.events);
        assert_eq!(findings.cases[0].values, planted.values);
    }

    #[test]
    fn a_process_that_reads_what_it_sends_later_is_named() {
        let clean = simple_log(24);
        let families = [Anomaly::G1c, Anomaly::G1cProcess, Anomaly::G1cRealtime];
        assert!(families.iter().all(|anomaly| found(&clean, *anomaly).count == 0));
        let (history, planted) = plant::own_future_read(&clean);
        let findings = found(&history, Anomaly::G1cProcess);
        assert!(findings.count > 0 && found(&history, Anomaly::G1c).count == 0);
        assert!(
            planted.events.iter().all(|event| findings.cases[0].events.contains(event)),
            "{findings:?} {planted:?}"
        );
    }

    #[test]
    fn a_read_of_what_is_sent_later_is_a_circle_with_real_time() {
        let clean = simple_log(25);
        let (history, planted) = plant::future_read(&clean);
        let findings = found(&history, Anomaly::G1cRealtime);
        assert!(findings.count > 0 && found(&history, Anomaly::G1c).count == 0);
        assert_eq!(findings.cases[0].events, planted.events);
    }

    #[test]
    fn what_failed_is_no_part_of_a_circle() {
        let history = Story::new().polled(1, &[(0, 0, 7)]).failed_send(0, &[(0, 0, 7)]).history();
        assert_eq!(found_names(&history), ["G1a".to_owned()]);
    }

    #[test]
    fn write_order_counts_only_where_the_table_says() {
        // T1 sends 10 and reads 20; T2 sends 20 before 21, both after 10 in another log.
        let story =
            Story::new().transaction(0, &[(0, 0, 10), (1, 1, 21)], &[]).transaction(1, &[(1, 0, 20)], &[(0, 0, 10)]);
        let history = story.history();
        assert_eq!(found_in(&history, Anomaly::G1c, Workload::Mixed).count, 1);
        assert_eq!(found_in(&history, Anomaly::G1c, Workload::Txn).count, 0);
    }
}
