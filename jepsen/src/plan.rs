//! What a run is meant to be, drawn up before it begins: `plan.json` in its folder.
//!
//! Together with the binary it is all that the run depends on. `run.json` is the part of it that judging needs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::checkers::workloads::Workload;
use crate::client::any::ClientKind;
use crate::client::http::Place;
use crate::nemesis::kind::{self, Kind};
use crate::nemesis::scenario::{self, SELF_TEST, Scenario};
use crate::nemesis::schedule::{self, Period};
use crate::random::Random;
use crate::run_dir::{self, PLAN_JSON, RUN_JSON, RunDirError};
use crate::verdict::RunInfo;

/// Bytes of each host's disk.
const DISK_BYTES: u64 = 384 << 20;

/// A run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// In a few words.
    pub name: String,
    /// What the clients do.
    pub workload: Workload,
    /// Which protocol the clients speak.
    #[serde(default)]
    pub client: ClientKind,
    /// All choices are drawn from it.
    pub seed: u64,
    /// How many brokers.
    pub nodes: usize,
    /// How long the faults go on, about.
    pub time_s: u64,
    /// The names of the kinds of faults.
    pub faults: Vec<String>,
    /// A scenario, which then decides about faults, nodes and workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario: Option<String>,
    /// How many clients at once.
    pub clients: usize,
    /// How many operations a second they begin together, at most.
    pub rate: u64,
    /// The broker's binary.
    pub binary: PathBuf,
}

impl Plan {
    /// The scenario, if it is one.
    pub fn scenario(&self) -> Result<Option<&'static Scenario>, String> {
        let Some(name) = &self.scenario else { return Ok(None) };
        scenario::find(name)
            .map(Some)
            .ok_or_else(|| format!("there is no scenario {name:?}; `list` tells what there is"))
    }

    /// The kinds of faults.
    pub fn kinds(&self) -> Result<Vec<Kind>, String> {
        if let Some(scenario) = self.scenario()? {
            return Ok(scenario.kinds.to_vec());
        }
        kind::parse(&self.faults.join(","))
    }

    /// Whether brokers' clocks must be able to lie.
    pub fn clocks(&self) -> bool {
        self.kinds().is_ok_and(|kinds| kinds.iter().any(|kind| kind.needs().faketime))
    }

    /// The choices of one part of the run.
    pub fn random(&self, part: u64) -> Random {
        Random::new(self.seed ^ part.wrapping_mul(0xA076_1D64_78BD_642F))
    }

    /// What happens when; nothing is drawn for a scenario, which is played. The error says why there can be no such run.
    pub fn schedule(&self) -> Result<Vec<Period>, String> {
        if self.scenario()?.is_some() {
            return Ok(Vec::new());
        }
        schedule::draw(&self.kinds()?, Duration::from_secs(self.time_s), &mut self.random(1))
    }

    /// Topics with their partitions and replicas: on five hosts one that lies on all of them and one on three.
    pub fn topics(&self) -> Vec<(String, u32, usize)> {
        match self.nodes {
            5 => vec![("wide".to_owned(), 2, 5), ("narrow".to_owned(), 3, 3)],
            nodes => vec![("wide".to_owned(), 4, nodes.min(3))],
        }
    }

    /// Where each key's partition is.
    pub fn places(&self) -> Vec<Place> {
        let of_topic = |(topic, partitions, _): (String, u32, usize)| {
            (0..partitions).map(move |partition| Place { topic: topic.clone(), partition })
        };
        self.topics().into_iter().flat_map(of_topic).collect()
    }

    /// Bytes of each host's disk.
    pub fn disk_bytes(&self) -> u64 {
        DISK_BYTES
    }

    /// How brokers are set up: with limits so small that files fill, checkpoints come and large appends leave the journal all the
    /// time, or (one run in three) about as an operator would have them, on a small disk.
    pub fn settings(&self) -> Vec<String> {
        let reserves = [
            "raft.reserve_produce_bytes=50331648",
            "raft.reserve_append_bytes=25165824",
            "retention.check_interval_ms=1000",
            "offsets.topic.num.partitions=4",
        ];
        let usual = ["raft.journal_file_bytes=16777216", "raft.checkpoint_journal_bytes=16777216"];
        let small = [
            "raft.journal_file_bytes=2097152",
            "raft.journal_round_bytes_max=524288",
            "raft.checkpoint_journal_bytes=1048576",
            "raft.checkpoint_interval_ms=3000",
            "raft.segment_bytes_max=262144",
            "raft.bypass_bytes_min=16384",
            "raft.tail_cache_bytes=131072",
            "raft.append_bytes_max=131072",
        ];
        let usual_run = self.seed.is_multiple_of(3) || self.scenario.as_deref() == Some(SELF_TEST);
        let of_run: &[&str] = if usual_run { &usual } else { &small };
        reserves.iter().chain(of_run).map(|setting| (*setting).to_owned()).collect()
    }

    /// What judging must know: of the faults all that were chosen, whether the schedule found a place for them or not.
    pub fn info(&self) -> Result<RunInfo, String> {
        let mut planned: Vec<&str> = self.kinds()?.iter().map(|kind| kind.name()).collect();
        planned.sort_unstable();
        planned.dedup();
        Ok(RunInfo {
            name: self.name.clone(),
            workload: self.workload,
            seed: self.seed,
            nodes: self.nodes as u32,
            faults_planned: planned.into_iter().map(str::to_owned).collect(),
        })
    }

    /// Writes `plan.json` and `run.json`.
    pub fn save(&self, dir: &Path) -> Result<(), RunDirError> {
        let fail = |what: String| RunDirError { path: dir.join(PLAN_JSON), what };
        let json = |value: serde_json::Result<String>| value.map_err(|error| fail(error.to_string()));
        let (plan, info) = (json(serde_json::to_string_pretty(self))?, self.info().map_err(fail)?);
        run_dir::replace(dir, PLAN_JSON, (plan + "\n").as_bytes())?;
        run_dir::replace(dir, RUN_JSON, (json(serde_json::to_string_pretty(&info))? + "\n").as_bytes())
    }

    /// Reads `plan.json`.
    pub fn load(dir: &Path) -> Result<Self, RunDirError> {
        let path = dir.join(PLAN_JSON);
        let fail = |what: String| RunDirError { path: path.clone(), what };
        let text = std::fs::read_to_string(&path).map_err(|error| fail(error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| fail(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nemesis::kind::KINDS;

    fn plan(nodes: usize, faults: &str) -> Plan {
        Plan {
            name: "a run".into(),
            workload: Workload::Single,
            client: ClientKind::Mixed,
            seed: 7,
            nodes,
            time_s: 300,
            faults: vec![faults.to_owned()],
            scenario: None,
            clients: 8,
            rate: 100,
            binary: "pontoon".into(),
        }
    }

    #[test]
    fn a_plan_reads_back_and_judging_knows_its_faults() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(5, "all");
        plan.save(dir.path()).unwrap();
        assert_eq!(Plan::load(dir.path()).unwrap(), plan);
        let info = plan.info().unwrap();
        assert_eq!(info.faults_planned.len(), KINDS.len());
        let saved: RunInfo = serde_json::from_slice(&std::fs::read(dir.path().join(RUN_JSON)).unwrap()).unwrap();
        assert_eq!(saved, info);
    }

    #[test]
    fn a_run_of_all_faults_takes_five_minutes_and_one_of_a_minute_is_refused() {
        let plan = plan(5, "all");
        let scheduled = plan.schedule().unwrap();
        assert!(KINDS.iter().all(|row| scheduled.iter().any(|period| period.faults.contains(&row.kind))));
        assert!(Plan { time_s: 60, ..plan.clone() }.schedule().is_err());
        let scenario = Plan { time_s: 1, scenario: Some("crash-apply".to_owned()), ..plan };
        assert_eq!(scenario.schedule().unwrap(), []);
        assert_eq!(scenario.info().unwrap().faults_planned.len(), scenario.kinds().unwrap().len());
    }

    #[test]
    fn every_key_has_a_place_of_its_own() {
        for nodes in [3, 5] {
            let mut places: Vec<String> =
                plan(nodes, "none").places().iter().map(|place| format!("{place:?}")).collect();
            let count = places.len();
            places.sort();
            places.dedup();
            assert_eq!(places.len(), count);
        }
    }
}
