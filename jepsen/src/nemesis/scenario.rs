//! Runs with a name: the ways in which other systems lost data, told again to this one.
//!
//! Each is a little play of faults, repeated until the time is over. Numbers in `found_in` are those of the bug reports; what each was is
//! in the table that docs/RELIABILITY.md keeps.

use std::time::{Duration, Instant};

use super::faults::{Hit, Open};
use super::kind::{Kind, Pick, Shape};
use super::{Nemesis, SEEN_PATIENCE, rot, targets};
use crate::checkers::workloads::Workload;
use crate::client::Connector;
use crate::cluster::{Harness, HarnessError};

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// Who had the bug.
    pub found_in: &'static str,
    /// What happens.
    pub summary: &'static str,
    /// How many brokers it wants.
    pub nodes: usize,
    /// What the clients do.
    pub workload: Workload,
    /// What happens in it, at least once each.
    pub kinds: &'static [Kind],
    play: Play,
}

/// What repeats.
#[derive(Clone, Copy, Debug)]
enum Play {
    /// Faults of its kinds, one after the other, each for so many milliseconds at most.
    Turns(u64),
    PowerInFsync,
    PauseAndSwap,
    LeaderCutThenMajorityKilled,
    RotInLog,
    CrashApply,
    KillAgain,
    LongAbsence,
    RotInSnapshot,
    CrashInRetention(&'static [Kind]),
    ReplaceUnderPartition,
    SelfTest,
}

/// How long the oldest records may stay.
const RETENTION_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at them.
const LOOK: Duration = Duration::from_millis(50);

/// The scenario in which some sends must have been sent again.
pub const RETRIES: &str = "retries";
/// The scenario that must *not* be valid.
pub const SELF_TEST: &str = "self-test";

const KILL_ONE: Kind = Kind::Kill(Pick::One);
const KILL_ALL: Kind = Kind::Kill(Pick::All);
const KILL_MAJORITY: Kind = Kind::Kill(Pick::Majority);
const KILL_LEADERS: Kind = Kind::Kill(Pick::Leaders);
const PAUSE_MINORITY: Kind = Kind::Pause(Pick::Minority);
const PAUSE_LEADERS: Kind = Kind::Pause(Pick::Leaders);
const POWER_ONE: Kind = Kind::Power(Pick::One);
const POWER_MINORITY: Kind = Kind::Power(Pick::Minority);
const POWER_ALL: Kind = Kind::Power(Pick::All);
const LEADER_CUT: Kind = Kind::Partition(Shape::Leader);

const fn scenario(
    name: &'static str,
    found_in: &'static str,
    summary: &'static str,
    nodes: usize,
    kinds: &'static [Kind],
    play: Play,
) -> Scenario {
    Scenario { name, found_in, summary, nodes, workload: Workload::Single, kinds, play }
}

/// Every scenario.
pub const SCENARIOS: &[Scenario] = &[
    scenario(
        RETRIES,
        "Redpanda #3039, #3003",
        "idempotent producers retry while brokers are killed and paused: no value twice",
        5,
        &[KILL_ONE, KILL_LEADERS, PAUSE_LEADERS, PAUSE_MINORITY],
        Play::Turns(5_000),
    ),
    scenario(
        "leader-cut-then-majority-killed",
        "nats #7545",
        "the leader is cut off, then three of five are killed: nothing acknowledged is lost",
        5,
        &[LEADER_CUT, KILL_MAJORITY],
        Play::LeaderCutThenMajorityKilled,
    ),
    scenario(
        "power-in-fsync",
        "nats #7564",
        "the power is cut while fsyncs are under way, of one, a minority, all",
        3,
        &[POWER_ONE, POWER_MINORITY, POWER_ALL, Kind::SlowFsync],
        Play::PowerInFsync,
    ),
    scenario(
        "pause-and-swap",
        "nats #7567",
        "a minority is paused, one of the others loses its power and returns, then the paused swap places with the rest",
        5,
        &[PAUSE_MINORITY, POWER_ONE],
        Play::PauseAndSwap,
    ),
    scenario(
        "rot-in-log",
        "nats #7549",
        "bits flip in a segment or journal of one broker, running and stopped",
        3,
        &[Kind::RotRunning, Kind::RotStopped],
        Play::RotInLog,
    ),
    scenario(
        "kill-again",
        "nats #6888",
        "brokers are killed again before they have come up",
        3,
        &[KILL_ONE, KILL_ALL],
        Play::KillAgain,
    ),
    scenario(
        "new-leader-reads",
        "redisraft #18",
        "leaders are killed, paused and cut off, while linearizable reads go on",
        5,
        &[KILL_LEADERS, PAUSE_LEADERS, LEADER_CUT],
        Play::Turns(3_000),
    ),
    scenario(
        "crash-apply",
        "etcd 3.5",
        "everything is killed, or loses its power, in the middle of applying; then each broker must tell the same log and topics",
        3,
        &[KILL_ALL, POWER_ALL, KILL_ONE],
        Play::CrashApply,
    ),
    scenario(
        "lone-quorum",
        "openraft #1802",
        "links fail so that nobody sees a clear majority: ring, one way, leader",
        5,
        &[Kind::Partition(Shape::Ring), Kind::Partition(Shape::OneWay), LEADER_CUT],
        Play::Turns(6_000),
    ),
    scenario(
        "long-absence",
        "Redpanda #9718",
        "a broker is away for half of the run and catches up while everything goes on",
        3,
        &[KILL_ONE],
        Play::LongAbsence,
    ),
    scenario(
        "rot-in-snapshot",
        "nats #7556",
        "bits flip in what stands for the records that are gone: snapshots and bases, stopped and running",
        3,
        &[Kind::RotStopped, Kind::RotRunning],
        Play::RotInSnapshot,
    ),
    scenario(
        "crash-in-retention",
        "etcd #17780",
        "brokers are killed and lose their power in the moment in which old records go: no log goes back",
        3,
        &[KILL_LEADERS, KILL_ALL, POWER_ALL, POWER_ONE],
        Play::CrashInRetention(&[KILL_LEADERS, POWER_ALL, KILL_ALL, POWER_ONE]),
    ),
    scenario(
        "retry-after-eviction",
        "Redpanda PR 5356",
        "producers send again what is long gone, at ever new leaders: the table of producers outlives its records",
        3,
        &[KILL_LEADERS, POWER_ONE, Kind::DiskLost, KILL_ALL],
        Play::CrashInRetention(&[KILL_LEADERS, Kind::DiskLost, POWER_ONE, KILL_ALL]),
    ),
    scenario(
        "replaced-disks",
        "Redpanda suite: membership",
        "disks are replaced by empty ones one after another, brokers are killed: replicas join under new ids",
        5,
        &[Kind::DiskLost, KILL_ONE, KILL_LEADERS],
        Play::Turns(4_000),
    ),
    scenario(
        "replace-under-partition",
        "redisraft #17, #43, #44",
        "a disk is replaced while a leader is cut off: members change with a part of them away",
        5,
        &[Kind::DiskLost, LEADER_CUT],
        Play::ReplaceUnderPartition,
    ),
    scenario(
        SELF_TEST,
        "nobody",
        "fsyncs do nothing and all lose their power: the harness must find losses, or it finds nothing",
        3,
        &[Kind::LyingFsync, POWER_ALL],
        Play::SelfTest,
    ),
];

/// Those that a sound cluster passes.
pub fn sound() -> impl Iterator<Item = &'static Scenario> {
    SCENARIOS.iter().filter(|scenario| scenario.name != SELF_TEST)
}

/// The scenario of this name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}

impl<C: Connector> Nemesis<C> {
    /// Plays a scenario over and over until the time is over; each kind of fault has its turn in any case.
    pub async fn play(&mut self, scenario: &Scenario, time: Duration) -> Harness<()> {
        let ends = Instant::now() + time;
        let mut act = 0;
        while !self.stopping() && (act < self.acts(scenario) || Instant::now() < ends) {
            match scenario.play {
                Play::Turns(hold_ms) => self.turn(scenario.kinds[act % scenario.kinds.len()], hold_ms).await?,
                Play::PowerInFsync => self.power_in_fsync(act).await?,
                Play::PauseAndSwap => self.pause_and_swap().await?,
                Play::LeaderCutThenMajorityKilled => self.leader_cut_then_majority_killed().await?,
                Play::RotInLog => {
                    self.rot_kinds = rot::LOG;
                    self.turn(scenario.kinds[act % scenario.kinds.len()], 4_000).await?;
                }
                Play::RotInSnapshot => {
                    self.rot_kinds = rot::BEFORE;
                    self.await_retention().await;
                    self.turn(scenario.kinds[act % scenario.kinds.len()], 4_000).await?;
                }
                Play::CrashInRetention(kinds) => self.crash_in_retention(kinds[act % kinds.len()]).await?,
                Play::ReplaceUnderPartition => self.replace_under_partition().await?,
                Play::CrashApply => self.crash_apply().await?,
                Play::KillAgain => self.kill_again(act).await?,
                Play::SelfTest => self.self_test().await?,
                Play::LongAbsence => self.long_absence(time / 2).await?,
            }
            act += 1;
        }
        Ok(())
    }

    /// After how many repetitions every kind has had its turn.
    fn acts(&self, scenario: &Scenario) -> usize {
        match scenario.play {
            Play::Turns(_) | Play::RotInLog | Play::RotInSnapshot => scenario.kinds.len(),
            Play::CrashInRetention(kinds) => kinds.len(),
            Play::PowerInFsync => 4,
            Play::KillAgain => 2,
            _ => 1,
        }
    }

    /// One fault, for a while.
    async fn turn(&mut self, kind: Kind, hold_ms: u64) -> Harness<()> {
        let open = self.inject(kind, &[]).await?;
        let hold = Duration::from_millis(self.random.between(hold_ms / 2, hold_ms));
        self.wait(hold).await;
        self.end(vec![open]).await?;
        let rest = Duration::from_millis(self.random.between(200, 1_500));
        self.wait(rest).await;
        Ok(())
    }

    async fn power_in_fsync(&mut self, act: usize) -> Harness<()> {
        // Every fourth time fsyncs are so slow that one is certainly under way.
        let kind = [POWER_ONE, POWER_MINORITY, POWER_ALL, POWER_ONE][act % 4];
        let hosts =
            targets::hosts(if kind == POWER_ALL { Pick::All } else { Pick::One }, self.hosts(), &[], &mut self.random);
        let mut open = Vec::new();
        if act % 4 == 3 {
            open.push(self.inject_at(Kind::SlowFsync, Hit::Hosts(hosts.clone())).await?);
        }
        let moment = Duration::from_micros(self.random.between(500_000, 2_500_000));
        self.wait(moment).await;
        for slow in &mut open {
            self.confirm(slow, SEEN_PATIENCE).await?;
        }
        let cut = self.inject_at(kind, Hit::Hosts(hosts)).await?;
        let hold = Duration::from_millis(self.random.between(0, 2_000));
        self.wait(hold).await;
        open.insert(0, cut);
        self.end(open).await
    }

    async fn pause_and_swap(&mut self) -> Harness<()> {
        let mut order: Vec<usize> = (0..self.hosts()).collect();
        self.random.shuffle(&mut order);
        let minority = targets::minority(self.hosts());
        let sorted = |hosts: &[usize]| {
            let mut hosts = hosts.to_vec();
            hosts.sort_unstable();
            Hit::Hosts(hosts)
        };
        let (first, second, victim) = (&order[..minority], &order[minority..2 * minority], &order[2 * minority..]);
        let paused = self.inject_at(PAUSE_MINORITY, sorted(first)).await?;
        self.hold(2_000, 4_000).await;
        let cut = self.inject_at(POWER_ONE, sorted(&victim[..1])).await?;
        let (paused_id, cut_id) = (paused.id, cut.id);
        self.heal(cut).await?;
        self.hold(200, 1_500).await;
        // Those that were away come back, those that had everything go.
        let swapped = self.inject_at(PAUSE_MINORITY, sorted(second)).await?;
        self.heal(paused).await?;
        self.hold(4_000, 7_000).await;
        let ids = [paused_id, cut_id, swapped.id];
        self.heal(swapped).await?;
        self.recover(&ids).await
    }

    async fn leader_cut_then_majority_killed(&mut self) -> Harness<()> {
        let mut cut = self.inject(LEADER_CUT, &[]).await?;
        self.hold(2_000, 4_000).await;
        self.confirm(&mut cut, SEEN_PATIENCE).await?;
        let killed = self.inject(KILL_MAJORITY, &[]).await?;
        self.hold(1_000, 3_000).await;
        let ids = [cut.id, killed.id];
        // The one that was cut off is heard first.
        self.heal(cut).await?;
        self.hold(500, 2_000).await;
        self.heal(killed).await?;
        self.recover(&ids).await?;
        self.hold(500, 2_000).await;
        Ok(())
    }

    async fn crash_apply(&mut self) -> Harness<()> {
        for kind in [KILL_ALL, POWER_ALL, KILL_ALL, POWER_ALL] {
            let open = self.inject(kind, &[]).await?;
            self.end(vec![open]).await?;
            self.hold(500, 2_500).await;
        }
        // With each broker away in turn, others lead, and tell what they have applied.
        for host in 0..self.hosts() {
            let killed = self.inject_at(KILL_ONE, Hit::Hosts(vec![host])).await?;
            self.hold(1_000, 2_000).await;
            self.read_from((host + 1) % self.hosts()).await;
            self.end(vec![killed]).await?;
        }
        Ok(())
    }

    async fn kill_again(&mut self, act: usize) -> Harness<()> {
        let kind = [KILL_ONE, KILL_ALL][act % 2];
        let first = self.inject(kind, &[]).await?;
        let hit = first.hit.clone();
        // While one is away clients show what the others do; what follows is over too soon for that.
        self.hold(1_000, 2_000).await;
        let mut open = vec![first];
        let mut ids = Vec::new();
        for _ in 0..5 {
            for fault in open.drain(..) {
                ids.push(fault.id);
                self.heal(fault).await?;
            }
            let moment = Duration::from_millis(self.random.between(10, 700));
            self.wait(moment).await;
            open.push(self.inject_at(kind, hit.clone()).await?);
        }
        ids.extend(open.iter().map(|fault: &Open| fault.id));
        for fault in open {
            self.heal(fault).await?;
        }
        self.recover(&ids).await?;
        self.hold(500, 1_500).await;
        Ok(())
    }

    async fn long_absence(&mut self, away: Duration) -> Harness<()> {
        let killed = self.inject(KILL_ONE, &[]).await?;
        self.wait(away).await;
        self.end(vec![killed]).await
    }

    /// Waits for the log of the retained topic to start further on. False: it does not, or the run is to end.
    async fn await_retention(&mut self) -> bool {
        let (before, deadline) = ((self.log_start)(), Instant::now() + RETENTION_PATIENCE);
        while (self.log_start)() == before {
            if self.stopping() || Instant::now() >= deadline {
                return false;
            }
            self.wait(LOOK).await;
        }
        true
    }

    async fn crash_in_retention(&mut self, kind: Kind) -> Harness<()> {
        if !self.await_retention().await && !self.stopping() {
            return Err(HarnessError("no record of the retained topic goes".to_owned()));
        }
        // What the leader decided is on its way to the others; segments go, snapshots are written.
        let moment = Duration::from_millis(self.random.between(0, 300));
        self.wait(moment).await;
        let open = self.inject(kind, &[]).await?;
        self.hold(0, 2_000).await;
        self.end(vec![open]).await?;
        self.hold(500, 3_000).await;
        Ok(())
    }

    async fn replace_under_partition(&mut self) -> Harness<()> {
        let mut cut = self.inject(LEADER_CUT, &[]).await?;
        let lonely: Vec<usize> = match &cut.hit {
            Hit::Ways(ways) => ways.first().map(|way| way.from).into_iter().collect(),
            Hit::Hosts(hosts) => hosts.clone(),
        };
        self.hold(500, 2_000).await;
        // Of the others, so that a majority is left that can change the members.
        let victims = targets::free(1, self.hosts(), &lonely, &mut self.random);
        let lost = self.inject_at(Kind::DiskLost, Hit::Hosts(victims)).await?;
        let ids = [cut.id, lost.id];
        self.hold(200, 1_500).await;
        self.heal(lost).await?;
        self.hold(3_000, 8_000).await;
        self.confirm(&mut cut, SEEN_PATIENCE).await?;
        self.heal(cut).await?;
        self.recover(&ids).await?;
        self.hold(500, 2_000).await;
        Ok(())
    }

    async fn self_test(&mut self) -> Harness<()> {
        let all = Hit::Hosts((0..self.hosts()).collect());
        let mut lies = self.inject_at(Kind::LyingFsync, all.clone()).await?;
        // Long enough for acknowledgements that mean nothing, too short for a checkpoint that does not: a broker that finds its own
        // files gone refuses to start, and there would be nobody left to show the loss.
        self.hold(700, 1_200).await;
        self.confirm(&mut lies, SEEN_PATIENCE).await?;
        let cut = self.inject_at(POWER_ALL, all).await?;
        self.end(vec![cut, lies]).await
    }

    async fn hold(&mut self, from_ms: u64, to_ms: u64) {
        let time = Duration::from_millis(self.random.between(from_ms, to_ms));
        self.wait(time).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_have_names_of_their_own_and_something_happens_in_each() {
        for scenario in SCENARIOS {
            assert_eq!(SCENARIOS.iter().filter(|other| other.name == scenario.name).count(), 1);
            assert_eq!(find(scenario.name).map(|found| found.summary), Some(scenario.summary));
            assert!(!scenario.kinds.is_empty() && [3, 5].contains(&scenario.nodes), "{}", scenario.name);
        }
        assert!(find("nothing").is_none());
        assert_eq!((find(RETRIES).is_some(), find(SELF_TEST).is_some()), (true, true));
    }

    #[test]
    fn every_scenario_stands_in_the_table_of_the_docs() {
        let docs = include_str!("../../../docs/RELIABILITY.md");
        let rows: Vec<&str> = docs.lines().filter(|line| line.starts_with("| ")).collect();
        for Scenario { name, .. } in SCENARIOS {
            assert!(rows.iter().any(|row| row.contains(&format!("| `{name}`"))), "{name}");
        }
    }
}
