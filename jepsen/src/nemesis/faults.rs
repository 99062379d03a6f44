//! Each fault: done, seen to have happened, taken back.
//!
//! Seeing is by other means than having asked: a process's status, a counter of dropped packets, a file that is gone.

use std::time::Duration;

use super::kind::{Kind, Pick, Shape};
use super::{Nemesis, names, targets, way_names};
use crate::client::Connector;
use crate::cluster::Harness;
use crate::cluster::network::{self, Way};
use crate::timeline::Entry;

/// Percent of packets that are lost.
const LOSS_PERCENT: u8 = 20;
/// A paused broker must not answer for so long.
const NO_ANSWER: Duration = Duration::from_millis(300);
/// How long a fault may take to show.
const LOOKS: usize = 50;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// A fault that lasts.
#[derive(Debug)]
pub struct Open {
    /// Its number in the timeline.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// To whom.
    pub hit: Hit,
}

/// Who is hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hit {
    /// These hosts.
    Hosts(Vec<usize>),
    /// These ways between hosts.
    Ways(Vec<Way>),
}

impl Open {
    /// The hosts that another fault must leave alone.
    pub fn hosts(&self) -> Vec<usize> {
        match &self.hit {
            Hit::Hosts(hosts) => hosts.clone(),
            Hit::Ways(_) => Vec::new(),
        }
    }
}

impl<C: Connector> Nemesis<C> {
    /// Injects a fault of this kind; `taken` hosts are left alone where there is a choice.
    pub async fn inject(&mut self, kind: Kind, taken: &[usize]) -> Harness<Open> {
        let hit = self.choose(kind, taken).await;
        self.inject_at(kind, hit).await
    }

    async fn choose(&mut self, kind: Kind, _taken: &[usize]) -> Hit {
        let hosts = self.hosts();
        match kind {
            Kind::Kill(pick) | Kind::Pause(pick) | Kind::Power(pick) => {
                let leaders = if pick == Pick::Leaders { self.leaders().await } else { Vec::new() };
                Hit::Hosts(targets::hosts(pick, hosts, &leaders, &mut self.random))
            }
            Kind::Partition(shape) => {
                let by_leader = matches!(shape, Shape::Leader | Shape::OneWay);
                let leaders = if by_leader { self.leaders().await } else { Vec::new() };
                let leader = self.random.pick(&leaders).copied();
                Hit::Ways(targets::cut(shape, hosts, leader, &mut self.random))
            }
            Kind::Loss => {
                let all = (0..hosts).flat_map(|from| (0..hosts).map(move |to| Way { from, to }));
                Hit::Ways(all.filter(|way| way.from != way.to).collect())
            }
        }
    }

    /// Injects a fault of this kind here.
    pub async fn inject_at(&mut self, kind: Kind, hit: Hit) -> Harness<Open> {
        self.note_ends()?;
        let targets = match &hit {
            Hit::Hosts(hosts) => names(hosts),
            Hit::Ways(ways) => way_names(ways),
        };
        self.say(&format!("{} {}", kind.name(), targets.join(" ")));
        let id = self.recorder.start_fault(kind.name(), targets);
        let open = Open { id, kind, hit };
        let seen = match (kind, &open.hit) {
            (Kind::Kill(_), Hit::Hosts(hosts)) => self.kill(&hosts.clone()).await?,
            (Kind::Pause(_), Hit::Hosts(hosts)) => self.pause(&hosts.clone()).await?,
            (Kind::Power(_), Hit::Hosts(hosts)) => self.cut_power(&hosts.clone()).await?,
            (Kind::Partition(_), Hit::Ways(ways)) => self.lose(&ways.clone(), 100).await?,
            (Kind::Loss, Hit::Ways(ways)) => self.lose(&ways.clone(), LOSS_PERCENT).await?,
            _ => None,
        };
        self.seen(id, seen);
        Ok(open)
    }

    /// Writes down what was seen of a fault.
    fn seen(&mut self, fault: u64, evidence: Option<String>) {
        if let Some(evidence) = evidence {
            self.say(&format!("  {evidence}"));
            self.recorder.tell(|time_ns| Entry::Confirmed { time_ns, fault, evidence });
        }
    }

    async fn kill(&mut self, hosts: &[usize]) -> Harness<Option<String>> {
        use std::os::unix::process::ExitStatusExt as _;
        let mut killed = Vec::new();
        for host in hosts {
            let status = self.cluster.kill(*host).await?;
            if status.and_then(|status| status.signal()) == Some(9) {
                killed.push(*host);
            }
        }
        Ok((killed == hosts).then(|| format!("{} ended by signal 9", names(hosts).join(", "))))
    }

    async fn pause(&mut self, hosts: &[usize]) -> Harness<Option<String>> {
        for host in hosts {
            self.cluster.pause(*host)?;
        }
        for host in hosts {
            let mut looks = 0;
            while !self.cluster.broker(*host).is_some_and(|broker| broker.stands_still()) {
                looks += 1;
                if looks > LOOKS {
                    return Ok(None);
                }
                tokio::time::sleep(LOOK).await;
            }
            if self.cluster.admin.answers(*host, NO_ANSWER).await {
                return Ok(None);
            }
        }
        Ok(Some(format!("all threads of {} stand still and answer nothing", names(hosts).join(", "))))
    }

    /// Cuts the power. A broker may still run for a moment then, with a dead disk, or stand still before; both happen.
    async fn cut_power(&mut self, hosts: &[usize]) -> Harness<Option<String>> {
        self.fragile.extend(hosts);
        let at_once = self.random.percent(50);
        for host in hosts.iter().filter(|_| at_once) {
            self.cluster.pause(*host)?;
        }
        for host in hosts {
            self.cluster.hosts[*host].disk.cut_power()?;
        }
        for host in hosts {
            self.cluster.kill(*host).await?;
        }
        let mut evidence = Vec::new();
        for host in hosts {
            let disk = &mut self.cluster.hosts[*host].disk;
            disk.unmount().await?;
            disk.mount().await?;
            match disk.power_was_cut() {
                Ok(seen) => evidence.push(format!("{}: {seen}", network::name(*host))),
                Err(why) => {
                    self.say(&format!("{}: no power loss: {why}", network::name(*host)));
                    return Ok(None);
                }
            }
        }
        Ok(Some(evidence.join("; ")))
    }

    /// What it does shows later, by its counters.
    async fn lose(&mut self, ways: &[Way], percent: u8) -> Harness<Option<String>> {
        self.cluster.network.lose(ways, percent).await?;
        Ok(None)
    }

    /// Sees what only time shows.
    pub async fn confirm(&mut self, open: &mut Open) -> Harness<()> {
        if let (Kind::Partition(_) | Kind::Loss, Hit::Ways(ways)) = (open.kind, &open.hit) {
            let lost = self.cluster.network.lost().await?;
            let on_these: u64 = ways.iter().filter_map(|way| lost.get(way)).sum();
            let silent = ways.iter().filter(|way| lost.get(way).is_none_or(|count| *count == 0)).count();
            let evidence =
                format!("{on_these} packets were dropped, on {} of {} ways", ways.len() - silent, ways.len());
            self.seen(open.id, (on_these > 0).then_some(evidence));
        }
        Ok(())
    }

    /// Takes a fault back.
    pub async fn heal(&mut self, open: Open) -> Harness<()> {
        match (open.kind, &open.hit) {
            (Kind::Kill(_) | Kind::Power(_), Hit::Hosts(hosts)) => {
                for host in hosts {
                    self.cluster.start(*host)?;
                }
            }
            (Kind::Pause(_), Hit::Hosts(hosts)) => {
                for host in hosts {
                    self.cluster.resume(*host)?;
                }
            }
            (_, Hit::Ways(ways)) => self.cluster.network.heal(ways).await?,
            _ => {}
        }
        self.recorder.tell(|time_ns| Entry::Stop { time_ns, fault: open.id });
        Ok(())
    }
}
