//! Faults as such: chosen, injected, confirmed, healed. What each one does is in [`super::hosts`], [`super::links`] and [`super::disks`].
//!
//! A fault counts as seen only by other means than having asked for it: a process's status, a counter of dropped packets, a file
//! that is gone.

use std::time::{Duration, Instant};

use super::kind::{Kind, Pick};
use super::rot::{Rot, Rotten};
use super::{Nemesis, disks, names, targets, way_names};
use crate::client::Connector;
use crate::cluster::Harness;
use crate::cluster::netem::{self, Netem};
use crate::cluster::network::Way;
use crate::cluster::tracer::{SyncFault, Tracer};
use crate::timeline::Entry;

/// Percent of packets that are lost.
const LOSS_PERCENT: u8 = 20;
/// How much longer slow fsyncs take.
const SLOW: Duration = Duration::from_millis(300);
/// How long a leader is waited for.
const LEADER_PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at a fault that does not show yet.
const LOOK: Duration = Duration::from_millis(200);

/// A fault that lasts.
pub struct Open {
    /// Its number in the timeline.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// To whom.
    pub hit: Hit,
    /// Who led when it was decided whom to hit, if it is about leaders.
    leaders: Option<Vec<usize>>,
    /// What keeps it up.
    pub(super) means: Means,
    /// It was seen to have happened.
    pub(super) seen: bool,
}

/// Who is hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hit {
    /// These hosts.
    Hosts(Vec<usize>),
    /// These ways between hosts.
    Ways(Vec<Way>),
}

/// What keeps a fault up until it is healed.
pub(super) enum Means {
    /// Nothing more than what was done.
    Done,
    /// Packets go through here.
    Netem(Netem),
    /// Brokers are traced: by host.
    Traced(Vec<(usize, Tracer)>),
    /// Files are rotten: by host.
    Rotten(Vec<(usize, Rotten)>),
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
        let leaders = if kind.aims_at_leaders() { Some(self.await_leaders().await) } else { None };
        let hit = self.choose(kind, taken, leaders.as_deref().unwrap_or_default());
        self.inject_among(kind, hit, leaders).await
    }

    /// Who leads something, once there is somebody; empty if nobody does for a long time.
    async fn await_leaders(&mut self) -> Vec<usize> {
        let deadline = Instant::now() + LEADER_PATIENCE;
        loop {
            let leaders = self.leaders().await;
            if !leaders.is_empty() || self.stopping() || Instant::now() >= deadline {
                return leaders;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn choose(&mut self, kind: Kind, taken: &[usize], leaders: &[usize]) -> Hit {
        let hosts = self.hosts();
        match kind {
            Kind::Kill(pick) | Kind::Pause(pick) | Kind::Power(pick) => {
                Hit::Hosts(targets::hosts(pick, hosts, leaders, &mut self.random))
            }
            Kind::Partition(shape) => {
                let leader = self.random.pick(leaders).copied();
                Hit::Ways(targets::cut(shape, hosts, leader, &mut self.random))
            }
            Kind::Loss | Kind::Delay | Kind::Unruly => {
                let all = (0..hosts).flat_map(|from| (0..hosts).map(move |to| Way { from, to }));
                Hit::Ways(all.filter(|way| way.from != way.to).collect())
            }
            // A disk that lies may take what only it and one more have: one at a time.
            Kind::FailedFsync
            | Kind::DiskLost
            | Kind::RotStopped
            | Kind::RotRunning
            | Kind::RotTruncated
            | Kind::RotCutRunning => Hit::Hosts(targets::hosts(Pick::One, hosts, &[], &mut self.random)),
            Kind::ClockJump | Kind::ClockRate | Kind::DiskFull | Kind::SlowFsync | Kind::LyingFsync => {
                let most = targets::minority(hosts).max(1);
                Hit::Hosts(targets::free(1 + self.random.below(most), hosts, taken, &mut self.random))
            }
        }
    }

    /// Injects a fault of this kind here.
    pub async fn inject_at(&mut self, kind: Kind, hit: Hit) -> Harness<Open> {
        self.inject_among(kind, hit, None).await
    }

    async fn inject_among(&mut self, kind: Kind, hit: Hit, leaders: Option<Vec<usize>>) -> Harness<Open> {
        self.note_ends()?;
        let targets = match &hit {
            Hit::Hosts(hosts) => names(hosts),
            Hit::Ways(ways) => way_names(ways),
        };
        self.say(&format!("{} {}", kind.name(), brief(&targets)));
        let id = self.recorder.start_fault(kind.name(), targets);
        if kind.breaks_disks()
            && let Hit::Hosts(hosts) = &hit
        {
            self.fragile.extend(hosts);
        }
        self.disks_lie |= kind == Kind::LyingFsync;
        let mut means = Means::Done;
        let seen = match &hit {
            Hit::Hosts(hosts) => self.hit_hosts(kind, hosts, &mut means).await?,
            Hit::Ways(ways) => self.hit_ways(kind, ways, &mut means).await?,
        };
        let mut open = Open { id, kind, hit, leaders, means, seen: false };
        self.seen(&mut open, seen);
        Ok(open)
    }

    async fn hit_hosts(&mut self, kind: Kind, hosts: &[usize], means: &mut Means) -> Harness<Option<String>> {
        match kind {
            Kind::Kill(_) => self.kill(hosts).await,
            Kind::Pause(_) => self.pause(hosts).await,
            Kind::Power(_) => self.cut_power(hosts).await,
            Kind::ClockJump => self.set_clocks(hosts, false),
            Kind::ClockRate => self.set_clocks(hosts, true),
            Kind::DiskFull => self.fill_disks(hosts),
            Kind::SlowFsync => self.trace(hosts, SyncFault::Slow(SLOW), means).await,
            Kind::FailedFsync => self.trace(hosts, SyncFault::Fails, means).await,
            Kind::LyingFsync => self.trace(hosts, SyncFault::Lies, means).await,
            Kind::DiskLost => self.lose_disks(hosts).await,
            Kind::RotStopped => self.rot(hosts, Rot::Flip, true, means).await,
            Kind::RotRunning => self.rot(hosts, Rot::Flip, false, means).await,
            Kind::RotTruncated => self.rot(hosts, Rot::Truncate, true, means).await,
            Kind::RotCutRunning => self.rot(hosts, Rot::Truncate, false, means).await,
            Kind::Partition(_) | Kind::Loss | Kind::Delay | Kind::Unruly => Ok(None),
        }
    }

    async fn hit_ways(&mut self, kind: Kind, ways: &[Way], means: &mut Means) -> Harness<Option<String>> {
        // What it does shows later, by its counters.
        match kind {
            Kind::Partition(_) => self.cluster.network.lose(ways, 100).await?,
            Kind::Loss => self.cluster.network.lose(ways, LOSS_PERCENT).await?,
            Kind::Delay => *means = self.slow_links(netem::DELAY).await?,
            Kind::Unruly => *means = self.slow_links(netem::UNRULY).await?,
            _ => {}
        }
        Ok(None)
    }

    async fn slow_links(&mut self, manner: netem::Manner) -> Harness<Means> {
        let random = self.random.split();
        Netem::start(self.hosts(), manner, random).await.map(Means::Netem)
    }

    /// Writes down what was seen of a fault.
    fn seen(&mut self, open: &mut Open, evidence: Option<String>) {
        if let Some(evidence) = evidence.and_then(|evidence| aimed(evidence, open.leaders.as_deref())) {
            self.say(&format!("  {evidence}"));
            let fault = open.id;
            self.recorder.tell(|time_ns| Entry::Confirmed { time_ns, fault, evidence });
            open.seen = true;
        }
    }

    /// Sees what only time shows. Looks again for a while if there is nothing to be seen yet.
    pub async fn confirm(&mut self, open: &mut Open, patience: Duration) -> Harness<()> {
        let deadline = Instant::now() + patience;
        while !open.seen {
            let evidence = self.look(open).await?;
            self.seen(open, evidence);
            if Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    async fn look(&mut self, open: &Open) -> Harness<Option<String>> {
        Ok(match (open.kind, &open.hit, &open.means) {
            (Kind::Partition(_) | Kind::Loss, Hit::Ways(ways), _) => self.packets_lost(ways).await?,
            (_, _, Means::Netem(netem)) => netem.counters.evidence(),
            (Kind::FailedFsync, Hit::Hosts(hosts), Means::Traced(traced)) => {
                let hits: Vec<_> = traced.iter().map(|(host, tracer)| (*host, self.files_hit(*host, tracer))).collect();
                disks::syncs_failed(hosts, &hits)
            }
            (_, Hit::Hosts(hosts), Means::Traced(traced)) => {
                let hits: Vec<(usize, usize)> = traced.iter().map(|(host, tracer)| (*host, tracer.hits())).collect();
                disks::calls_hit(hosts, &hits)
            }
            (Kind::ClockJump | Kind::ClockRate, Hit::Hosts(hosts), _) => self.clocks_off(hosts).await,
            _ => None,
        })
    }

    /// Takes a fault back.
    pub async fn heal(&mut self, open: Open) -> Harness<()> {
        match (open.kind, open.hit, open.means) {
            (Kind::Kill(_) | Kind::Power(_) | Kind::DiskLost, Hit::Hosts(hosts), _) => {
                for host in hosts {
                    self.cluster.start(host)?;
                }
            }
            (Kind::Pause(_), Hit::Hosts(hosts), _) => {
                for host in hosts {
                    self.cluster.resume(host)?;
                }
            }
            (Kind::ClockJump | Kind::ClockRate, Hit::Hosts(hosts), _) => {
                for host in hosts {
                    self.cluster.set_clock(host, "+0")?;
                }
            }
            (Kind::DiskFull, Hit::Hosts(hosts), _) => {
                for host in hosts {
                    self.cluster.hosts[host].disk.drain()?;
                }
            }
            (kind, Hit::Hosts(_), Means::Traced(traced)) => self.release(traced, kind == Kind::FailedFsync).await?,
            (kind, _, Means::Rotten(rotten)) => {
                let running = matches!(kind, Kind::RotRunning | Kind::RotCutRunning);
                self.see_to_disks(&rotten, running).await?;
            }
            (_, _, Means::Netem(netem)) => drop(netem),
            (_, Hit::Ways(ways), _) => self.cluster.network.heal(&ways).await?,
            (_, Hit::Hosts(_), _) => {}
        }
        self.recorder.tell(|time_ns| Entry::Stop { time_ns, fault: open.id });
        Ok(())
    }
}

/// What is seen of a fault that is about leaders counts only if it was known who led; their names belong to it.
fn aimed(evidence: String, leaders: Option<&[usize]>) -> Option<String> {
    match leaders {
        None => Some(evidence),
        Some([]) => None,
        Some(leaders) => Some(format!("{evidence}; before, {} led", names(leaders).join(", "))),
    }
}

/// The first few of many names.
fn brief(names: &[String]) -> String {
    match names {
        [first, .., last] if names.len() > 8 => format!("{first} … {last}, {} in all", names.len()),
        _ => names.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaders_that_nobody_knew_were_not_hit() {
        let seen = |leaders| aimed("n2 ended".to_owned(), leaders);
        assert_eq!(seen(None).as_deref(), Some("n2 ended"));
        assert_eq!(seen(Some(&[1, 2][..])).as_deref(), Some("n2 ended; before, n2, n3 led"));
        assert_eq!(seen(Some(&[][..])), None);
    }
}
