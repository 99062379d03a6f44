//! Many runs, one after another, over several sittings: what is gathered is counted in a tally.
//!
//! Each finished run is one line of `campaign.jsonl`, with what the tally needs of it; the next run's number is the number of lines. So
//! a campaign that was interrupted goes on where it was, and a run that did not finish is done again, in a folder of its own; so is one whose
//! line was cut short, because the machine stopped. Of valid runs the history and the logs are thrown away unless they are to be kept
//! (`--keep`); of all others everything stays.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkers::workloads::Workload;
use crate::client::any::ClientKind;
use crate::history::Kind;
use crate::nemesis::scenario::{self, RETRIES};
use crate::plan::Plan;
use crate::run_dir::HISTORY_EDN;
use crate::verdict::{Judgement, Run, Verdict};

/// The file with a line for each finished run.
pub const CAMPAIGN_JSONL: &str = "campaign.jsonl";
/// The most bytes of it that are read.
const BYTES_MAX: u64 = 1 << 30;
/// How many runs it takes until one of the same sort comes again.
const TURNS: u64 = 7;

/// A finished run, as far as the tally goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its number.
    pub number: u64,
    /// Its folder, below the campaign's.
    pub folder: String,
    /// What it was.
    pub name: String,
    /// Its seed.
    pub seed: u64,
    /// How many brokers.
    pub nodes: usize,
    /// How long it took.
    pub seconds: u64,
    /// What its clients did that had an end, by how it ended: ok, fail, info.
    pub operations: [u64; 3],
    /// How often each kind of fault was seen to happen.
    pub faults: BTreeMap<String, u64>,
    /// How many hosts lost their power.
    pub power_losses: u64,
    /// What it was worth.
    pub verdict: String,
    /// Why it was not valid, in a few words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
}

/// What runs a campaign goes through, again and again.
#[derive(Clone, Debug)]
pub struct Course {
    /// Added to each run's number to make its seed.
    pub seed: u64,
    /// How long faults go on in a run, in seconds.
    pub time_s: u64,
    /// As in [`Plan`].
    pub clients: usize,
    /// As in [`Plan`].
    pub rate: u64,
    /// Only runs with all faults, on so many brokers.
    pub nodes: Option<usize>,
    /// Only this scenario.
    pub scenario: Option<String>,
    /// As in [`Plan`].
    pub binary: PathBuf,
}

impl Course {
    /// The plan of a run. Unless it is limited: of seven runs two have all faults on five brokers and one on three, one has mixed operations, one
    /// reads by consumer groups, two are scenarios, each in its turn. From seven runs to the next seven (if limited: from each to the next)
    /// the clients change: HTTP, both, Kafka.
    pub fn plan(&self, number: u64) -> Plan {
        let (round, turn) = (number / TURNS, number % TURNS);
        let scenario_turn = match turn {
            2 => Some(2 * round),
            5 => Some(2 * round + 1),
            _ => None,
        };
        let of_turn = |turn: u64| scenario::sound().nth(turn as usize % scenario::sound().count());
        let scenario = match (&self.scenario, self.nodes) {
            (Some(name), _) => scenario::find(name),
            (None, Some(_)) => None,
            (None, None) => scenario_turn.and_then(of_turn),
        };
        let workload = match turn {
            3 => Workload::Mixed,
            6 => Workload::SingleSubscribe,
            _ => Workload::Single,
        };
        let nodes = self.nodes.unwrap_or(match turn {
            1 => 3,
            3 | 6 if !round.is_multiple_of(2) => 3,
            _ => 5,
        });
        let workload = scenario.map_or(workload, |scenario| scenario.workload);
        let limited = self.nodes.is_some() || self.scenario.is_some();
        let clients = if limited { number } else { round };
        let client = match [ClientKind::Http, ClientKind::Mixed, ClientKind::Kafka][(clients % 3) as usize] {
            ClientKind::Http if workload == Workload::SingleSubscribe => ClientKind::Mixed,
            ClientKind::Kafka if scenario.is_some_and(|scenario| scenario.name == RETRIES) => ClientKind::Mixed,
            client => client,
        };
        let nodes = scenario.map_or(nodes, |scenario| scenario.nodes);
        let what = scenario.map_or("all", |scenario| scenario.name);
        let operations = match workload {
            Workload::Mixed => ", mixed operations",
            Workload::SingleSubscribe => ", by consumer groups",
            _ => "",
        };
        Plan {
            name: format!("{what} on {nodes} brokers{operations}{}", client.of_name()),
            workload,
            client,
            seed: self.seed + number,
            nodes,
            time_s: if scenario.is_some() { (self.time_s / 2).max(1) } else { self.time_s },
            faults: vec!["all".to_owned()],
            scenario: scenario.map(|scenario| scenario.name.to_owned()),
            clients: self.clients,
            rate: self.rate,
            binary: self.binary.clone(),
        }
    }
}

/// Reads what is finished. A last line that is cut short (the machine stopped) does not count.
pub fn load(dir: &Path) -> io::Result<Vec<Entry>> {
    let mut file = match File::open(dir.join(CAMPAIGN_JSONL)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let mut entries = Vec::new();
    for line in whole_lines(&mut file)?.split_inclusive(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(entry) => entries.push(entry),
            Err(error) => return Err(io::Error::other(format!("line {}: {error}", entries.len() + 1))),
        }
    }
    Ok(entries)
}

/// All up to the last end of a line.
fn whole_lines(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes)?;
    bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
    Ok(bytes)
}

/// Adds a finished run, in place of a last line that is cut short.
pub fn add(dir: &Path, entry: &Entry) -> io::Result<()> {
    let path = dir.join(CAMPAIGN_JSONL);
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
    let length = whole_lines(&mut file)?.len() as u64;
    file.set_len(length)?;
    file.seek(SeekFrom::Start(length))?;
    writeln!(file, "{}", serde_json::to_string(entry)?)?;
    file.sync_all()
}

/// Puts all lines in place of those that are there.
pub fn replace(dir: &Path, entries: &[Entry]) -> io::Result<()> {
    let aside = dir.join(format!(".{CAMPAIGN_JSONL}.new"));
    let mut file = File::create(&aside)?;
    for entry in entries {
        writeln!(file, "{}", serde_json::to_string(entry)?)?;
    }
    file.sync_all()?;
    fs::rename(aside, dir.join(CAMPAIGN_JSONL))
}

/// A folder for a run that is not there yet.
pub fn folder(dir: &Path, number: u64) -> String {
    let name = |attempt: u32| match attempt {
        0 => format!("run-{number:05}"),
        _ => format!("run-{number:05}-{attempt}"),
    };
    (0..).map(name).find(|name| !dir.join(name).exists()).unwrap_or_default()
}

/// What the tally needs of a judged run.
pub fn entry(number: u64, folder: &str, plan: &Plan, run: &Run, judgement: &Judgement) -> Entry {
    let mut operations = [0; 3];
    let history = run.history.as_ref().ok();
    for operation in history.into_iter().flat_map(|history| history.operations()) {
        let place = match operation.outcome {
            Kind::Ok => 0,
            Kind::Fail => 1,
            Kind::Info | Kind::Invoke => 2,
        };
        operations[place] += 1;
    }
    let mut faults: BTreeMap<String, u64> = BTreeMap::new();
    let mut power_losses = 0;
    let timeline = run.timeline.as_ref().ok();
    for fault in timeline.into_iter().flat_map(|timeline| &timeline.faults).filter(|fault| fault.confirmed.is_some()) {
        *faults.entry(fault.kind.clone()).or_default() += 1;
        power_losses += if fault.kind.starts_with("power-") { fault.targets.len() as u64 } else { 0 };
    }
    let anomalies = judgement.outcomes.iter().filter(|outcome| !outcome.allowed && outcome.findings.count > 0);
    let anomalies = anomalies.map(|outcome| format!("{} × {}", outcome.findings.count, outcome.anomaly.name()));
    let others = judgement.accusations.iter().chain(&judgement.unknowns).chain(&judgement.rejections).cloned();
    let end_ns = timeline.and_then(|timeline| timeline.end_ns);
    Entry {
        number,
        folder: folder.to_owned(),
        name: plan.name.clone(),
        seed: plan.seed,
        nodes: plan.nodes,
        seconds: end_ns.or(history.map(|history| history.end_ns())).unwrap_or(0) / 1_000_000_000,
        operations,
        faults,
        power_losses,
        verdict: judgement.verdict.name().to_owned(),
        why: anomalies.chain(others).take(8).collect(),
    }
}

/// Throws away what nobody will want of a valid run, unless all is to be kept.
pub fn tidy(dir: &Path, verdict: Verdict, keep: bool) -> io::Result<()> {
    if verdict != Verdict::Valid || keep {
        return Ok(());
    }
    for file in fs::read_dir(dir)? {
        let path = file?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name == HISTORY_EDN || name.ends_with(".log") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// The tally, for people.
pub fn tally(entries: &[Entry]) -> String {
    let mut text = String::new();
    let sum = |of: &dyn Fn(&Entry) -> u64| entries.iter().map(of).sum::<u64>();
    let hours = |nodes: usize| sum(&|entry| if entry.nodes == nodes { entry.seconds } else { 0 }) as f64 / 3600.0;
    let mut verdicts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    for entry in entries {
        *verdicts.entry(&entry.verdict).or_default() += 1;
        entry.faults.iter().for_each(|(kind, count)| *faults.entry(kind).or_default() += count);
    }
    let counted = |counts: &BTreeMap<&str, u64>| {
        counts.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
    };
    text.push_str(&format!("runs         {} ({})\n", entries.len(), counted(&verdicts)));
    text.push_str(&format!("hours        {:.2} on five brokers, {:.2} on three\n", hours(5), hours(3)));
    let operations = [0, 1, 2].map(|place| sum(&|entry| entry.operations[place]));
    text.push_str(&format!("operations   {} ok, {} failed, {} unknown\n", operations[0], operations[1], operations[2]));
    text.push_str(&format!("faults       {} ({})\n", faults.values().sum::<u64>(), counted(&faults)));
    text.push_str(&format!("power losses {} hosts\n", sum(&|entry| entry.power_losses)));
    for entry in entries.iter().filter(|entry| entry.verdict != Verdict::Valid.name()) {
        text.push_str(&format!("{} {}, seed {}: {}: ", entry.folder, entry.name, entry.seed, entry.verdict));
        text.push_str(&format!("{}\n", entry.why.first().map_or("", String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course() -> Course {
        Course { seed: 1000, time_s: 60, clients: 4, rate: 50, nodes: None, scenario: None, binary: "pontoon".into() }
    }

    fn sample(number: u64, verdict: Verdict) -> Entry {
        Entry {
            number,
            folder: folder(Path::new("/nowhere"), number),
            name: "all on 5 brokers".into(),
            seed: number,
            nodes: 5,
            seconds: 1800,
            operations: [100, 10, 1],
            faults: BTreeMap::from([("power-all".to_owned(), 2), ("loss".to_owned(), 1)]),
            power_losses: 10,
            verdict: verdict.name().into(),
            why: if verdict == Verdict::Valid { vec![] } else { vec!["1 × lost-write".into()] },
        }
    }

    #[test]
    fn every_scenario_and_both_sizes_have_their_turn() {
        let plans: Vec<Plan> = (0..70).map(|number| course().plan(number)).collect();
        for scenario in scenario::sound() {
            assert!(plans.iter().any(|plan| plan.scenario.as_deref() == Some(scenario.name)), "{}", scenario.name);
        }
        for workload in [Workload::Single, Workload::Mixed, Workload::SingleSubscribe] {
            let of_workload = |nodes| {
                plans
                    .iter()
                    .filter(move |plan| plan.workload == workload && plan.nodes == nodes && plan.scenario.is_none())
            };
            for nodes in [3, 5] {
                assert!(of_workload(nodes).any(|plan| plan.client == ClientKind::Mixed), "{workload:?} on {nodes}");
                assert!(of_workload(nodes).any(|plan| plan.client == ClientKind::Kafka), "{workload:?} on {nodes}");
            }
            let over_http = of_workload(3).chain(of_workload(5)).any(|plan| plan.client == ClientKind::Http);
            assert_eq!(over_http, workload != Workload::SingleSubscribe, "only Kafka clients can be members");
        }
        for plan in &plans {
            let subscribes = plan.workload == Workload::SingleSubscribe;
            assert!(!subscribes || plan.client.can_subscribe(), "{}", plan.name);
        }
        assert_eq!((plans[3].seed, &plans[3]), (1003, &course().plan(3)));
    }

    #[test]
    fn a_course_can_be_kept_to_one_size_or_one_scenario() {
        let five = Course { nodes: Some(5), ..course() };
        assert!((0..12).map(|number| five.plan(number)).all(|plan| plan.nodes == 5 && plan.scenario.is_none()));
        let one = Course { scenario: Some("power-in-fsync".to_owned()), ..course() };
        let plans: Vec<Plan> = (0..3).map(|number| one.plan(number)).collect();
        assert!(plans.iter().all(|plan| plan.scenario == one.scenario && plan.nodes == 3), "{plans:?}");
        assert_eq!(plans.iter().filter(|plan| plan.client == ClientKind::Kafka).count(), 1);
        let retries = Course { scenario: Some(RETRIES.to_owned()), ..course() };
        assert!((0..3).all(|number| retries.plan(number).client.hears_of_duplicates()));
    }

    #[test]
    fn a_campaign_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), []);
        for (number, verdict) in [(0, Verdict::Valid), (1, Verdict::Anomalies)] {
            add(dir.path(), &sample(number, verdict)).unwrap();
        }
        let entries = load(dir.path()).unwrap();
        assert_eq!((entries.len(), entries[1].verdict.as_str()), (2, "anomalies"));
        fs::create_dir(dir.path().join(folder(dir.path(), 2))).unwrap();
        assert_eq!(folder(dir.path(), 2), "run-00002-1");
    }

    #[test]
    fn a_last_line_that_was_cut_short_is_passed_over_and_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CAMPAIGN_JSONL);
        let entries: Vec<Entry> = (0..3).map(|number| sample(number, Verdict::Valid)).collect();
        entries[..2].iter().for_each(|entry| add(dir.path(), entry).unwrap());
        let whole = fs::read(&path).unwrap();
        let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for cut in [second, second + 1, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(load(dir.path()).unwrap(), entries[..1]);
            add(dir.path(), &entries[2]).unwrap();
            assert_eq!(load(dir.path()).unwrap(), [entries[0].clone(), entries[2].clone()]);
        }
        // Lines before the last are not cut short by anything.
        fs::write(&path, [&whole[..second / 2], b"\n", &whole[second..]].concat()).unwrap();
        assert!(load(dir.path()).unwrap_err().to_string().starts_with("line 1: "));
    }

    #[test]
    fn lines_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [sample(0, Verdict::Valid), sample(1, Verdict::Unknown)];
        entries.iter().for_each(|entry| add(dir.path(), entry).unwrap());
        let judged_again = [sample(0, Verdict::Valid), sample(1, Verdict::Valid)];
        replace(dir.path(), &judged_again).unwrap();
        assert_eq!(load(dir.path()).unwrap(), judged_again);
    }

    #[test]
    fn the_tally_adds_up_and_names_what_was_wrong() {
        let text = tally(&[sample(0, Verdict::Valid), sample(1, Verdict::Anomalies)]);
        assert!(text.contains("runs         2 (1 anomalies, 1 valid)\n"), "{text}");
        assert!(text.contains("1.00 on five brokers, 0.00 on three"), "{text}");
        assert!(text.contains("200 ok, 20 failed, 2 unknown") && text.contains("20 hosts"), "{text}");
        assert!(text.contains("faults       6 (2 loss, 4 power-all)"), "{text}");
        assert!(text.contains("run-00001 all on 5 brokers, seed 1: anomalies: 1 × lost-write\n"), "{text}");
    }

    #[test]
    fn only_valid_runs_lose_their_histories() {
        let dir = tempfile::tempdir().unwrap();
        let left = || fs::read_dir(dir.path()).unwrap().count();
        for name in [HISTORY_EDN, "n1.log", "results.json"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        tidy(dir.path(), Verdict::Rejected, false).unwrap();
        tidy(dir.path(), Verdict::Valid, true).unwrap();
        assert_eq!(left(), 3);
        tidy(dir.path(), Verdict::Valid, false).unwrap();
        assert_eq!(left(), 1);
    }
}
