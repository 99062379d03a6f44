//! Makes the committed sample of `tests/data`, and a long run to look at. Run by hand:
//! `cargo test -p pontoon-jepsen -- --ignored write_the_sample`, or `write_a_long_run` (into the folder `JEPSEN_OUT`).

use std::fs;
use std::path::Path;

use super::{Generator, a_register, plant};
use crate::checkers::workloads::Workload;
use crate::history::{Event, History, Kind, codec};
use crate::registers;
use crate::timeline::{self, Entry};
use crate::verdict::RunInfo;

fn save(dir: &Path, info: &RunInfo, history: &History, timeline: &[Entry]) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("run.json"), serde_json::to_string_pretty(info).unwrap() + "\n").unwrap();
    let mut text = Vec::new();
    codec::write(&mut text, history.events()).unwrap();
    fs::write(dir.join("history.edn"), text).unwrap();
    let mut text = Vec::new();
    timeline.iter().for_each(|entry| timeline::write(&mut text, entry).unwrap());
    fs::write(dir.join("timeline.jsonl"), text).unwrap();
    // While the first fault lasts.
    let Some(Entry::Start { time_ns, .. }) = timeline.first() else { panic!("no fault") };
    let registers: String =
        a_register(*time_ns).events.iter().map(|event| registers::codec::line(event) + "\n").collect();
    fs::write(dir.join("registers.edn"), registers).unwrap();
}

fn fault(fault: u64, kind: &str, targets: &[&str], times_ms: [u64; 4], evidence: &str) -> Vec<Entry> {
    let [start, confirmed, stop, recovered] = times_ms.map(|ms| ms * 1_000_000);
    vec![
        Entry::Start {
            time_ns: start,
            fault,
            kind: kind.to_owned(),
            targets: targets.iter().map(|target| (*target).to_owned()).collect(),
        },
        Entry::Confirmed { time_ns: confirmed, fault, evidence: evidence.to_owned() },
        Entry::Stop { time_ns: stop, fault },
        Entry::Recovered { time_ns: recovered, fault, evidence: "every partition took a produce".to_owned() },
    ]
}

#[test]
#[ignore = "writes tests/data"]
fn write_the_sample() {
    let mut generator = Generator::new(Workload::Single, 3);
    (generator.operations, generator.clients, generator.keys) = (60, 3, 2);
    let (history, _) = plant::loss(&generator.history());
    let info = RunInfo {
        name: "sample: one acknowledged value lost".to_owned(),
        workload: Workload::Single,
        seed: 3,
        nodes: 3,
        faults_planned: vec!["kill".to_owned()],
    };
    let end_ms = history.end_ns() / 1_000_000;
    let mut timeline = fault(0, "kill", &["n2"], [20, 21, 40, 120], "n2 ended by signal 9");
    timeline.push(Entry::Phase { time_ns: (end_ms - 20) * 1_000_000, name: "final reads".to_owned() });
    timeline.push(Entry::End { time_ns: history.end_ns() });
    save(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/lost-write"), &info, &history, &timeline);
}

/// Latencies and outcomes as under faults: what runs during one is slower.
fn stretch(mut events: Vec<Event>, faults: &[(u64, u64)]) -> Vec<Event> {
    let mut shift = 0;
    for event in &mut events {
        event.time_ns += shift;
        let during = faults.iter().any(|(from, to)| (*from..*to).contains(&(event.time_ns / 1_000_000)));
        if during && event.kind != Kind::Invoke && event.index % 3 == 0 {
            shift += 40_000_000 + (event.index as u64 * 7919 % 97) * 1_500_000;
        }
    }
    events
}

#[test]
#[ignore = "writes to JEPSEN_OUT"]
fn write_a_long_run() {
    let out = std::env::var("JEPSEN_OUT").unwrap();
    let clean = std::env::var("JEPSEN_CLEAN").is_ok();
    let mut generator = Generator::new(Workload::Single, 9);
    (generator.operations, generator.clients, generator.keys, generator.pace_ns) = (9000, 10, 4, 3_000_000);
    let faults = [
        ("kill", &["n2"][..], [8_000, 8_002, 12_000, 12_400], "n2 ended by signal 9"),
        ("pause", &["n1", "n4"], [16_000, 16_100, 21_000, 21_050], "n1, n4 answered no ping for 4.9 s"),
        ("partition-ring", &["n1", "n2", "n3", "n4", "n5"], [26_000, 26_010, 33_000, 35_100], "10 links drop packets"),
        ("kill", &["n1", "n3", "n5"], [38_000, 38_003, 41_000, 42_200], "3 ended by signal 9"),
        ("power-loss", &["n4"], [44_000, 44_050, 49_000, 50_900], "mount n4 was shut down; 17 files lost bytes"),
        ("disk-slow-fsync", &["n2"], [52_000, 52_300, 57_000, 57_060], "fdatasync p50 301 ms"),
        ("clock-jump", &["n3"], [59_000, 59_010, 61_000, 61_020], "clock of n3 off by 187 s"),
    ];
    let spans: Vec<(u64, u64)> = faults.iter().map(|fault| (fault.2[0], fault.2[3])).collect();
    let mut history = History::new(stretch(generator.events(), &spans)).unwrap();
    if !clean {
        for plant in [plant::loss, plant::circle_of_writes] {
            history = plant(&history).0;
        }
    }
    let mut timeline = Vec::new();
    for (id, (kind, targets, times_ms, evidence)) in faults.iter().enumerate() {
        timeline.extend(fault(id as u64, kind, targets, *times_ms, evidence));
    }
    let reads = history.end_ns() / 100 * 94;
    timeline.push(Entry::Phase { time_ns: reads, name: "final reads".to_owned() });
    timeline.push(Entry::End { time_ns: history.end_ns() });
    let info = RunInfo {
        name: if clean { "all faults, 5 brokers" } else { "all faults, 5 brokers, planted anomalies" }.to_owned(),
        workload: Workload::Single,
        seed: 9,
        nodes: 5,
        faults_planned: vec!["kill".to_owned(), "power-loss".to_owned()],
    };
    save(Path::new(&out), &info, &history, &timeline);
}
