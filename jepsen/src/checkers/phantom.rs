//! **phantom** (c): a poll of any outcome read a value that nobody ever sent to that key.
//!
//! Made up, torn, decoded wrongly, or another key's. Bytes that are no value of a workload are recorded as negative values.

use super::analysis::Analysis;
use super::workloads::Workload;
use super::{Anomaly, Case, Checker, Findings};
use crate::history::{Key, Value};

/// See above.
pub const CHECKER: Checker =
    Checker { anomaly: Anomaly::Phantom, summary: "a value was read that nobody sent to that key", check };

fn check(analysis: &Analysis<'_>, _: Workload) -> Findings {
    let mut findings = Findings::default();
    for (key, log) in &analysis.keys {
        for facts in &log.values {
            analysis.meter.add(1);
            if facts.writer.is_some() {
                continue;
            }
            findings.push(|| {
                let message =
                    format!("{} was read from key {}, {}", facts.value.0, key.0, origin(analysis, facts.value));
                let readers = log.readers(facts).iter().take(4).map(|reader| analysis.evidence(*reader));
                Case::of(*key, message).values([facts.value]).offsets(log.offset_of(facts)).events(readers)
            });
        }
    }
    findings
}

fn origin(analysis: &Analysis<'_>, value: Value) -> String {
    let sent_to = |key: &Key| analysis.facts(*key, value).is_some_and(|(_, facts)| facts.writer.is_some());
    match analysis.keys.keys().find(|key| sent_to(key)) {
        Some(key) => format!("but was sent to key {}", key.0),
        None => "but nobody ever sent it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Story, found, plant, simple_log};

    #[test]
    fn a_value_that_nobody_sent_is_named_with_its_reader() {
        let clean = simple_log(17);
        assert_eq!(found(&clean, Anomaly::Phantom).count, 0);
        let (history, planted) = plant::phantom(&clean);
        let findings = found(&history, Anomaly::Phantom);
        assert_eq!(findings.count, 1);
        let case = &findings.cases[0];
        assert_eq!((case.key, &case.values, &case.events), (Some(planted.key), &planted.values, &planted.events));
    }

    #[test]
    fn a_value_of_another_key_is_a_phantom_and_says_so() {
        let history = Story::new().sent(0, &[(3, 0, 7)]).polled(1, &[(0, 0, 7)]).history();
        let findings = found(&history, Anomaly::Phantom);
        assert_eq!(findings.cases[0].message, "7 was read from key 0, but was sent to key 3");
    }

    #[test]
    fn a_failed_poll_of_a_phantom_counts() {
        let history = Story::new().failed_poll(1, &[(0, 0, 7)]).history();
        assert_eq!(
            found(&history, Anomaly::Phantom).cases[0].message,
            "7 was read from key 0, but nobody ever sent it"
        );
    }
}
