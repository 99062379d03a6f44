//! The hosts' network: one bridge, a namespace with one address for each host, and a packet filter in each that can drop what comes
//! from others.
//!
//! A fault is a *rule at the receiver*: host `to` drops packets from host `from`, all of them or some. So every partition, also one
//! that goes one way only, is a set of pairs. Clients come from the bridge and are never dropped. Who is cut off from whom is decided
//! elsewhere.

use std::collections::BTreeMap;

use super::Harness;
use super::command::{run, run_with_input};

/// The clients' own address.
const CLIENTS: &str = "10.77.0.254/24";
/// The table that rules stand in.
const TABLE: &str = "jepsen";

/// A way from one host to another; hosts are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// Who sends.
    pub from: usize,
    /// Who does not get it.
    pub to: usize,
}

/// The name of a host.
pub fn name(host: usize) -> String {
    format!("n{}", host + 1)
}

/// The address of a host.
pub fn address(host: usize) -> String {
    format!("10.77.0.{}", host + 1)
}

/// The network as it is now.
pub struct Network {
    hosts: usize,
    /// Percent of packets that are lost, by way; 100 is a cut.
    losses: BTreeMap<Way, u8>,
}

impl Network {
    /// Makes the bridge and a namespace for each host.
    pub async fn create(hosts: usize) -> Harness<Self> {
        run("ip link add jepsen0 type bridge").await?;
        run(&format!("ip addr add {CLIENTS} dev jepsen0")).await?;
        run("ip link set jepsen0 up").await?;
        for host in 0..hosts {
            let (name, address) = (name(host), address(host));
            run(&format!("ip netns add {name}")).await?;
            run(&format!("ip link add {name} type veth peer name eth0 netns {name}")).await?;
            run(&format!("ip link set {name} master jepsen0 up")).await?;
            run(&format!("ip -n {name} addr add {address}/24 dev eth0")).await?;
            run(&format!("ip -n {name} link set eth0 up")).await?;
            run(&format!("ip -n {name} link set lo up")).await?;
        }
        Ok(Self { hosts, losses: BTreeMap::new() })
    }

    /// Loses so many percent of what goes these ways, on top of what others lose there: the larger counts.
    pub async fn lose(&mut self, ways: &[Way], percent: u8) -> Harness<()> {
        for way in ways {
            let lost = self.losses.entry(*way).or_default();
            *lost = (*lost).max(percent);
        }
        self.apply().await
    }

    /// Loses nothing on these ways.
    pub async fn heal(&mut self, ways: &[Way]) -> Harness<()> {
        self.losses.retain(|way, _| !ways.contains(way));
        self.apply().await
    }

    /// Loses nothing anywhere.
    pub async fn heal_all(&mut self) -> Harness<()> {
        self.losses.clear();
        self.apply().await
    }

    /// How many packets each way has lost since the rules last changed.
    pub async fn lost(&self) -> Harness<BTreeMap<Way, u64>> {
        let mut found = BTreeMap::new();
        for to in 0..self.hosts {
            if !self.losses.keys().any(|way| way.to == to) {
                continue;
            }
            let rules = run(&format!("ip netns exec {} nft list table ip {TABLE}", name(to))).await?;
            for from in 0..self.hosts {
                let count = rules.lines().find_map(|line| packets(line, &address(from)));
                found.extend(count.map(|count| (Way { from, to }, count)));
            }
        }
        Ok(found)
    }

    async fn apply(&self) -> Harness<()> {
        for to in 0..self.hosts {
            let rules = rules(self.losses.iter().filter(|(way, _)| way.to == to));
            run_with_input(&["ip", "netns", "exec", &name(to), "nft", "-f", "-"], &rules).await?;
        }
        Ok(())
    }
}

/// A whole table, put in place of the old one in one step.
fn rules<'r>(losses: impl Iterator<Item = (&'r Way, &'r u8)>) -> String {
    let mut text = format!("add table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n  chain input {{\n");
    text.push_str("    type filter hook input priority 0; policy accept;\n");
    for (way, percent) in losses {
        let chance = if *percent >= 100 { String::new() } else { format!("numgen random mod 100 < {percent} ") };
        text.push_str(&format!("    ip saddr {} {chance}counter drop\n", address(way.from)));
    }
    text.push_str("  }\n}\n");
    text
}

/// The packets that a rule about this source dropped.
fn packets(line: &str, source: &str) -> Option<u64> {
    let mut words = line.split_whitespace();
    words.find(|word| *word == "saddr")?;
    if words.next()? != source {
        return None;
    }
    words.find(|word| *word == "packets")?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_drops_all_or_some_from_each_source() {
        let losses = BTreeMap::from([(Way { from: 0, to: 2 }, 100), (Way { from: 1, to: 2 }, 20)]);
        let text = rules(losses.iter());
        assert!(text.contains("    ip saddr 10.77.0.1 counter drop\n"), "{text}");
        assert!(text.contains("    ip saddr 10.77.0.2 numgen random mod 100 < 20 counter drop\n"), "{text}");
        assert!(text.starts_with("add table ip jepsen\ndelete table ip jepsen\n"));
    }

    #[test]
    fn counters_are_read_by_source() {
        let line = "\t\tip saddr 10.77.0.2 counter packets 17 bytes 900 drop";
        assert_eq!(packets(line, "10.77.0.2"), Some(17));
        assert_eq!(packets(line, "10.77.0.3"), None);
        let some = "ip saddr 10.77.0.3 numgen random mod 100 < 20 counter packets 4 bytes 200 drop";
        assert_eq!(packets(some, "10.77.0.3"), Some(4));
        assert_eq!(packets("type filter hook input priority filter; policy accept;", "10.77.0.3"), None);
    }
}
