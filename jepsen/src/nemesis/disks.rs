//! What happens to disks that have their power: full, slow, failing once, rotten.

use std::time::{Duration, Instant};

use super::Nemesis;
use super::faults::Means;
use super::rot::{self, Rot, Rotten};
use crate::client::Connector;
use crate::cluster::network;
use crate::cluster::tracer::{SyncFault, Tracer};
use crate::cluster::{Doing as _, Harness};
use crate::timeline::Entry;

/// A disk is full with less than this left.
const FULL_BYTES: u64 = 64 << 10;
/// How long a broker with a rotten disk may take to be ready before it gets a new one.
const READY_PATIENCE: Duration = Duration::from_secs(45);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

impl<C: Connector> Nemesis<C> {
    pub(super) fn fill_disks(&mut self, hosts: &[usize]) -> Harness<Option<String>> {
        let mut evidence = Vec::new();
        for host in hosts {
            let left = self.cluster.hosts[*host].disk.fill()?;
            if left > FULL_BYTES {
                return Ok(None);
            }
            evidence.push(format!("{} has {left} bytes left", network::name(*host)));
        }
        Ok(Some(evidence.join(", ")))
    }

    /// Makes fsyncs slow or fail. Which were shows later.
    pub(super) async fn trace(
        &mut self,
        hosts: &[usize],
        fault: SyncFault,
        means: &mut Means,
    ) -> Harness<Option<String>> {
        let mut traced = Vec::new();
        for host in hosts {
            let Some(pid) = self.cluster.broker(*host).map(|broker| broker.pid()) else { continue };
            traced.push((*host, Tracer::attach(pid, &network::name(*host), fault).await?));
        }
        *means = Means::Traced(traced);
        Ok(None)
    }

    /// How many calls were hit; `None` if on some host none was.
    pub(super) fn calls_hit(traced: &[(usize, Tracer)]) -> Option<String> {
        let mut evidence = Vec::new();
        for (host, tracer) in traced {
            let hits = tracer.hits();
            if hits == 0 {
                return None;
            }
            evidence.push(format!("{hits} calls of {}", network::name(*host)));
        }
        (!evidence.is_empty()).then(|| evidence.join(", "))
    }

    /// Lets go of brokers. Those whose fsync failed are started anew: what they should have done by themselves is to stop serving.
    pub(super) async fn release(&mut self, traced: Vec<(usize, Tracer)>, anew: bool) -> Harness<()> {
        for (host, tracer) in traced {
            if anew {
                self.cluster.kill(host).await?;
            }
            tracer.detach().await?;
            self.cluster.start(host)?;
        }
        Ok(())
    }

    /// Takes disks away; the brokers are down until the fault is taken back, and then find an empty one.
    pub(super) async fn lose_disks(&mut self, hosts: &[usize]) -> Harness<Option<String>> {
        let mut evidence = Vec::new();
        for host in hosts {
            self.cluster.kill(*host).await?;
            let disk = &mut self.cluster.hosts[*host].disk;
            let before = std::fs::read_dir(disk.data()).map_or(0, Iterator::count);
            disk.replace().await?;
            if before == 0 || disk.data().exists() {
                return Ok(None);
            }
            evidence.push(format!("{}: {before} entries are gone with the disk", network::name(*host)));
        }
        Ok(Some(evidence.join(", ")))
    }

    pub(super) async fn rot(
        &mut self,
        hosts: &[usize],
        what: Rot,
        stopped: bool,
        means: &mut Means,
    ) -> Harness<Option<String>> {
        let kinds = self.rot_kinds;
        let mut rotten = Vec::new();
        for host in hosts {
            if stopped {
                self.cluster.kill(*host).await?;
            }
            let data = self.cluster.hosts[*host].disk.data();
            rotten.push((*host, rot::rot(&data, what, kinds, &mut self.random).doing("rotting a file")?));
            self.cluster.start(*host)?;
        }
        let evidence: Vec<String> =
            rotten.iter().map(|(host, done)| format!("{}: {done}", network::name(*host))).collect();
        *means = Means::Rotten(rotten);
        Ok(Some(evidence.join("; ")))
    }

    /// A broker that stands up again on its rotten disk is left to itself; one that does not gets an empty disk, as an operator would
    /// give it, and is accused unless what rotted is what no broker can do without. One that ran all the while is started anew first.
    pub(super) async fn see_to_disks(&mut self, rotten: &[(usize, Rotten)], anew: bool) -> Harness<()> {
        for (host, rotten) in rotten {
            if anew {
                self.cluster.kill(*host).await?;
            }
            // Perhaps it ended already, and somebody heard of that.
            self.cluster.start(*host)?;
            let deadline = Instant::now() + READY_PATIENCE;
            let why = loop {
                if let Some(status) = self.cluster.ended_by_itself(*host)? {
                    break format!("it ended with {status}");
                }
                match self.cluster.admin.ready(*host).await {
                    Ok(()) => break String::new(),
                    Err(why) if Instant::now() >= deadline => break why,
                    Err(_) => tokio::time::sleep(LOOK).await,
                }
            };
            if why.is_empty() {
                continue;
            }
            let broker = network::name(*host);
            let what = format!("it does not start on its disk ({why}), of which this rotted: {rotten}");
            if rot::may_cost_the_directory(rotten.kind) {
                let text = format!("{broker} gets an empty disk: {what}");
                self.say(&format!("  {text}"));
                self.recorder.tell(|time_ns| Entry::Note { time_ns, text });
            } else {
                self.say(&format!("  {broker} is accused, and gets an empty disk: {what}"));
                self.recorder.accuse(&broker, what);
            }
            self.cluster.kill(*host).await?;
            self.cluster.hosts[*host].disk.replace().await?;
            self.cluster.start(*host)?;
        }
        Ok(())
    }
}
