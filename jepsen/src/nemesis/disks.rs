//! What happens to disks that have their power: full, slow, failing once, rotten.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Nemesis;
use super::faults::Means;
use super::recovery;
use super::rot::{self, Rot, Rotten};
use crate::client::Connector;
use crate::cluster::network;
use crate::cluster::tracer::{SyncFault, Tracer};
use crate::cluster::{Doing as _, Harness};
use crate::timeline::Entry;

/// A disk is full with less than this left.
const FULL_BYTES: u64 = 64 << 10;
/// How long a broker may take to see that it cannot go on.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// One that is not ready so often in a row stays so: a single answer may be late.
const UNREADY_LOOKS: u32 = 3;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// How many calls were hit, by host; `None` if on some of these hosts none was, or no broker ran.
pub(super) fn calls_hit(hosts: &[usize], hits: &[(usize, usize)]) -> Option<String> {
    let of_host = |host: &usize| {
        let (_, calls) = hits.iter().find(|(at, calls)| at == host && *calls > 0)?;
        Some(format!("{calls} calls of {}", network::name(*host)))
    };
    hosts.iter().map(of_host).collect::<Option<Vec<_>>>().map(|evidence| evidence.join(", "))
}

/// Of what syncs failed so that a broker must stop, by host; `None` if on some of these hosts of nothing such.
pub(super) fn syncs_failed(hosts: &[usize], hits: &[(usize, Vec<PathBuf>)]) -> Option<String> {
    let of_host = |host: &usize| {
        let (_, files) = hits.iter().find(|(at, files)| at == host && !files.is_empty())?;
        Some(format!("syncs of {files:?} failed on {}", network::name(*host)))
    };
    hosts.iter().map(of_host).collect::<Option<Vec<_>>>().map(|evidence| evidence.join(", "))
}

/// Those of these paths a failed sync of which must stop the broker with this data directory, as paths below it.
fn files_that_must_stop(data: &Path, paths: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let below = paths.into_iter().filter_map(|path| path.strip_prefix(data).map(Path::to_owned).ok());
    below.filter(|path| must_stop_a_broker(path)).collect()
}

/// Whether a failed sync of this, below the data directory, is a reason to stop: of all but the catalog's tables, which are a cache.
fn must_stop_a_broker(path: &Path) -> bool {
    !path.starts_with("catalog")
}

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

    /// Lets go of brokers. Those whose fsync failed must have stopped serving by themselves, and lose their power: what the kernel took
    /// from them and never wrote is gone then, and nothing may rest on it.
    pub(super) async fn release(&mut self, traced: Vec<(usize, Tracer)>, failed: bool) -> Harness<()> {
        for (host, tracer) in traced {
            if failed {
                self.judge_failed_sync(host, &tracer).await?;
                if let Some(evidence) = self.cut_power(&[host]).await? {
                    let text = format!("its fsync had failed: {evidence}");
                    self.recorder.tell(|time_ns| Entry::Note { time_ns, text });
                }
            }
            tracer.detach().await?;
            self.cluster.start(host)?;
        }
        Ok(())
    }

    /// Of what in a host's data directory syncs were hit so that its broker must stop; paths are those below it.
    pub(super) fn files_hit(&self, host: usize, tracer: &Tracer) -> Vec<PathBuf> {
        files_that_must_stop(&self.cluster.hosts[host].disk.data(), tracer.paths_hit())
    }

    /// A broker that was told that bytes are not durable must not go on (rule J15), wherever in its data directory that was.
    async fn judge_failed_sync(&mut self, host: usize, tracer: &Tracer) -> Harness<()> {
        let files = self.files_hit(host, tracer);
        // Only its cache was hit: the fault was not seen, and the run is rejected.
        if files.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + STOP_PATIENCE;
        let mut unready = 0;
        loop {
            let ended = self.cluster.ended_by_itself(host)?.is_some() || self.cluster.broker(host).is_none();
            unready = if self.cluster.admin.ready(host).await.is_err() { unready + 1 } else { 0 };
            if ended || unready == UNREADY_LOOKS {
                return Ok(());
            }
            if Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        let within = STOP_PATIENCE.as_secs();
        let what = format!("a sync of {files:?} failed, and {within} s after the fault it serves on");
        self.say(&format!("  {}: {what}", network::name(host)));
        self.recorder.accuse(&network::name(host), what);
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

    /// A broker that stands up again on its rotten disk, in the time that any recovery may take, is left to itself; one that does not gets an empty disk, as an operator would
    /// give it, and is accused unless what rotted is what no broker can do without. One that ran all the while is started anew first.
    pub(super) async fn see_to_disks(&mut self, rotten: &[(usize, Rotten)], anew: bool) -> Harness<()> {
        for (host, rotten) in rotten {
            if anew {
                self.cluster.kill(*host).await?;
            }
            // Perhaps it ended already, and somebody heard of that.
            self.cluster.start(*host)?;
            let deadline = Instant::now() + recovery::PATIENCE;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_must_be_hit_on_each_host_that_is_named() {
        assert_eq!(calls_hit(&[0, 2], &[(0, 3), (2, 1)]).as_deref(), Some("3 calls of n1, 1 calls of n3"));
        assert_eq!(calls_hit(&[0, 2], &[(0, 3), (2, 0)]), None);
        assert_eq!(calls_hit(&[0, 2], &[(0, 3)]), None, "no broker ran on n3");
    }

    #[test]
    fn a_failed_sync_is_seen_only_where_it_must_stop_a_broker() {
        let hit = |paths: &[&str]| files_that_must_stop(Path::new("/d"), paths.iter().map(PathBuf::from));
        let seen = |paths: &[&str]| syncs_failed(&[1], &[(1, hit(paths))]);
        assert_eq!(seen(&[]), None);
        assert_eq!(
            seen(&["/d/catalog/db", "/elsewhere/journal/1-1.journal"]),
            None,
            "a cache, and no file of this broker"
        );
        let evidence = "syncs of [\"journal/1-1.journal\"] failed on n2";
        assert_eq!(seen(&["/d/catalog/db", "/d/journal/1-1.journal"]).as_deref(), Some(evidence));
        assert_eq!(syncs_failed(&[0, 1], &[(1, hit(&["/d/checkpoint"]))]), None, "not on both");
    }

    #[test]
    fn a_failed_sync_of_a_cache_need_not_stop_a_broker() {
        assert!(!must_stop_a_broker(Path::new("catalog/snap.0001")));
        for file in ["journal/1-1.journal", "checkpoint.new", "groups/4-1/0-1.segment", "groups/4-1", ""] {
            assert!(must_stop_a_broker(Path::new(file)), "{file}");
        }
    }
}
