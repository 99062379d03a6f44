//! What happens to whole hosts: killed, paused, without power, with a wrong clock.

use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Nemesis, names};
use crate::client::Connector;
use crate::cluster::Harness;
use crate::cluster::network;

/// A paused broker must not answer for so long.
const NO_ANSWER: Duration = Duration::from_millis(300);
/// How often a broker that is to stand still is looked at.
const LOOKS: usize = 100;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// The furthest that a clock jumps, as in Jepsen's suites.
const JUMP_S_MAX: u64 = 288;
/// The nearest.
const JUMP_S_MIN: u64 = 10;
/// A clock is off if it differs from this machine's by more than this: `Date` has seconds only.
const OFF_S: i64 = 3;

impl<C: Connector> Nemesis<C> {
    pub(super) async fn kill(&mut self, hosts: &[usize]) -> Harness<Option<String>> {
        let mut killed = Vec::new();
        for host in hosts {
            let status = self.cluster.kill(*host).await?;
            if status.and_then(|status| status.signal()) == Some(9) {
                killed.push(*host);
            }
        }
        Ok((killed == hosts).then(|| format!("{} ended by signal 9", names(hosts).join(", "))))
    }

    pub(super) async fn pause(&mut self, hosts: &[usize]) -> Harness<Option<String>> {
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

    /// Cuts the power. A broker may still run for a moment then, with a dead disk, or stand still before; both happen. What it says in that
    /// moment is forgiven; what it says when it has its power again is not.
    pub(super) async fn cut_power(&mut self, hosts: &[usize]) -> Harness<Option<String>> {
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
        for host in hosts {
            self.cluster.new_panic(*host)?;
        }
        if !self.disks_lie {
            self.fragile.retain(|host| !hosts.contains(host));
        }
        let mut seen = true;
        for host in hosts {
            let disk = &mut self.cluster.hosts[*host].disk;
            disk.unmount().await?;
            disk.mount().await?;
            if let Err(why) = disk.power_was_cut() {
                self.say(&format!("{}: no power loss: {why}", network::name(*host)));
                seen = false;
            }
        }
        let evidence = "what was synced is there, what was not is gone";
        Ok(seen.then(|| format!("on {} {evidence}", names(hosts).join(", "))))
    }

    /// Makes clocks jump to and fro, or run too fast. What came of it shows later.
    pub(super) fn set_clocks(&mut self, hosts: &[usize], rate: bool) -> Harness<Option<String>> {
        for host in hosts {
            let offset = if rate {
                format!("+0 x{}", self.random.between(3, 9))
            } else {
                let sign = if self.random.percent(50) { '+' } else { '-' };
                format!("{sign}{}", self.random.between(JUMP_S_MIN, JUMP_S_MAX))
            };
            self.say(&format!("  clock of {}: {offset}", network::name(*host)));
            self.cluster.set_clock(*host, &offset)?;
        }
        Ok(None)
    }

    /// By how much clocks are off, by the brokers' own word; `None` if one is right.
    pub(super) async fn clocks_off(&mut self, hosts: &[usize]) -> Option<String> {
        let mut evidence = Vec::new();
        for host in hosts {
            let time_s = self.cluster.admin.time_s(*host).await.ok()?;
            let here_s = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs() as i64;
            let off_s = time_s - here_s;
            if off_s.abs() < OFF_S {
                return None;
            }
            evidence.push(format!("{} is off by {off_s} s", network::name(*host)));
        }
        Some(evidence.join(", "))
    }
}
