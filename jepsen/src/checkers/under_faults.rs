//! When something was broken: what must have worked under faults must have been asked for in such a time.
//!
//! A fault lasts from its injection until it is taken back. One that leaves no majority lasts until the cluster has recovered from it:
//! before that there is hardly anybody who could answer. Of a run in which nothing is broken all counts that comes before the final reads.

use crate::timeline::{FINAL_READS, Fault, Timeline};

/// What is done to brokers so that they answer nothing; its targets are brokers.
const SILENCING: [&str; 3] = ["kill", "pause", "power"];

/// The times in which something was broken.
pub struct UnderFaults(Vec<(u64, u64)>);

impl UnderFaults {
    /// Those of a run with so many brokers.
    pub fn of(timeline: &Timeline, nodes: u32) -> Self {
        if timeline.faults.is_empty() {
            let healed = timeline.phases.iter().find(|(_, name)| name == FINAL_READS);
            return Self(vec![(0, healed.map_or(u64::MAX, |(time_ns, _)| time_ns.saturating_sub(1)))]);
        }
        let recovered = |fault: &Fault| fault.recovered.as_ref().map(|(time_ns, _)| *time_ns);
        let end = |fault: &Fault| if leaves_a_majority(fault, nodes) { fault.stop_ns } else { recovered(fault) };
        let times =
            timeline.faults.iter().map(|fault| (fault.start_ns, end(fault).or(fault.stop_ns).unwrap_or(u64::MAX)));
        Self(times.collect())
    }

    /// Something was broken then.
    pub fn covers(&self, time_ns: u64) -> bool {
        self.0.iter().any(|(from_ns, to_ns)| (*from_ns..=*to_ns).contains(&time_ns))
    }
}

fn leaves_a_majority(fault: &Fault, nodes: u32) -> bool {
    let silences = fault.kind.split('-').next().is_some_and(|family| SILENCING.contains(&family));
    !silences || fault.targets.len() * 2 < nodes as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::a_fault;

    fn covered(fault: Fault, times_ns: std::ops::Range<u64>) -> Vec<u64> {
        let timeline =
            Timeline { faults: vec![fault], phases: vec![(90, FINAL_READS.to_owned())], ..Timeline::default() };
        let under = UnderFaults::of(&timeline, 3);
        times_ns.filter(|time_ns| under.covers(*time_ns)).collect()
    }

    fn fault(kind: &str, targets: &[&str]) -> Fault {
        let targets = targets.iter().map(|target| (*target).to_owned()).collect();
        Fault { targets, start_ns: 4, stop_ns: Some(6), recovered: Some((8, "seen".to_owned())), ..a_fault(kind) }
    }

    #[test]
    fn a_fault_lasts_until_it_is_taken_back() {
        assert_eq!(covered(fault("kill-one", &["n1"]), 0..20), [4, 5, 6]);
        assert_eq!(covered(fault("partition-leader", &["n1->n2", "n2->n1"]), 0..20), [4, 5, 6]);
        let endless = Fault { stop_ns: None, recovered: None, ..fault("loss", &["n1->n2"]) };
        assert_eq!(covered(endless, 0..7), [4, 5, 6]);
    }

    #[test]
    fn one_that_leaves_no_majority_lasts_until_the_recovery() {
        assert_eq!(covered(fault("kill-majority", &["n1", "n2"]), 0..20), [4, 5, 6, 7, 8]);
        let lost = Fault { recovered: None, ..fault("power-all", &["n1", "n2", "n3"]) };
        assert_eq!(covered(lost, 0..20), [4, 5, 6]);
    }

    #[test]
    fn where_nothing_is_broken_all_counts_before_the_final_reads() {
        let timeline = Timeline { phases: vec![(9, FINAL_READS.to_owned())], ..Timeline::default() };
        let under = UnderFaults::of(&timeline, 3);
        assert_eq!([0, 8, 9, 10].map(|time_ns| under.covers(time_ns)), [true, true, false, false]);
    }
}
