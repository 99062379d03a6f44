//! The kinds of faults: the table.
//!
//! | class | at most one of it at a time |
//! |---|---|
//! | host | brokers and whole disks: they choose their hosts first |
//! | net | what happens to packets |
//! | side | what slows or confuses single hosts that are otherwise well |

use crate::cluster::preflight::Needs;

/// Which hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pick {
    /// One.
    One,
    /// As many as may fail with a majority left.
    Minority,
    /// One more than may fail.
    Majority,
    /// Every one.
    All,
    /// Those that lead a partition, but not all.
    Leaders,
}

/// How the network falls apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// One host is alone.
    One,
    /// A majority and a minority.
    Halves,
    /// Every host sees a majority, and no two the same (Jepsen's ring of majorities).
    Ring,
    /// A leader is alone.
    Leader,
    /// A leader's packets do not reach the others; theirs reach it.
    OneWay,
}

/// What kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `kill -9`, then a restart.
    Kill(Pick),
    /// SIGSTOP, then SIGCONT.
    Pause(Pick),
    /// The power is cut: what was not synced is gone.
    Power(Pick),
    /// Packets between hosts are dropped, all of them.
    Partition(Shape),
    /// A fifth of all packets between hosts is lost.
    Loss,
}

/// How kinds exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Brokers and whole disks.
    Host,
    /// Packets.
    Net,
    /// The rest.
    Side,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The kind.
    pub kind: Kind,
    /// Its name on the command line and in timelines.
    pub name: &'static str,
    /// In a few words.
    pub summary: &'static str,
}

const fn row(kind: Kind, name: &'static str, summary: &'static str) -> Row {
    Row { kind, name, summary }
}

/// Every kind. `--nemesis` takes a name, the part before the first dash for a family, or `all`.
pub const KINDS: &[Row] = &[
    row(Kind::Kill(Pick::One), "kill-one", "kill -9 of one broker"),
    row(Kind::Kill(Pick::Minority), "kill-minority", "kill -9 of a minority"),
    row(Kind::Kill(Pick::Majority), "kill-majority", "kill -9 of a majority"),
    row(Kind::Kill(Pick::All), "kill-all", "kill -9 of every broker"),
    row(Kind::Kill(Pick::Leaders), "kill-leaders", "kill -9 of brokers that lead"),
    row(Kind::Pause(Pick::One), "pause-one", "SIGSTOP of one broker"),
    row(Kind::Pause(Pick::Minority), "pause-minority", "SIGSTOP of a minority"),
    row(Kind::Pause(Pick::Majority), "pause-majority", "SIGSTOP of a majority"),
    row(Kind::Pause(Pick::All), "pause-all", "SIGSTOP of every broker"),
    row(Kind::Pause(Pick::Leaders), "pause-leaders", "SIGSTOP of brokers that lead"),
    row(Kind::Power(Pick::One), "power-one", "power loss of one host"),
    row(Kind::Power(Pick::Minority), "power-minority", "power loss of a minority"),
    row(Kind::Power(Pick::All), "power-all", "power loss of every host"),
    row(Kind::Partition(Shape::One), "partition-one", "one host cut off"),
    row(Kind::Partition(Shape::Halves), "partition-halves", "a majority and a minority apart"),
    row(Kind::Partition(Shape::Ring), "partition-ring", "overlapping majorities"),
    row(Kind::Partition(Shape::Leader), "partition-leader", "a leader cut off"),
    row(Kind::Partition(Shape::OneWay), "partition-oneway", "a leader is not heard, but hears"),
    row(Kind::Loss, "loss", "20 % of packets lost between hosts"),
];

impl Kind {
    /// Its line of the table.
    pub fn row(self) -> &'static Row {
        // Every kind stands in the table; a test holds it.
        KINDS.iter().find(|row| row.kind == self).unwrap_or(&KINDS[0])
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// What it excludes.
    pub fn class(self) -> Class {
        match self {
            Self::Kill(_) | Self::Pause(_) | Self::Power(_) => Class::Host,
            Self::Partition(_) | Self::Loss => Class::Net,
        }
    }

    /// Nothing else shows beside it.
    pub fn takes_all(self) -> bool {
        matches!(self, Self::Kill(Pick::All) | Self::Pause(Pick::All) | Self::Power(Pick::All))
    }

    /// What the machine must have for it.
    pub fn needs(self) -> Needs {
        Needs::default()
    }
}

/// The kinds of a comma-separated list of names, families and `all`. The error names what is unknown.
pub fn parse(list: &str) -> Result<Vec<Kind>, String> {
    let mut kinds = Vec::new();
    for word in list.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let family = |row: &&Row| row.name.split('-').next() == Some(word);
        let named: Vec<Kind> = match word {
            "all" => KINDS.iter().map(|row| row.kind).collect(),
            "none" => continue,
            _ => KINDS.iter().filter(|row| row.name == word || family(row)).map(|row| row.kind).collect(),
        };
        if named.is_empty() {
            return Err(format!("there is no fault {word:?}; `list` tells what there is"));
        }
        kinds.extend(named);
    }
    kinds.sort_unstable();
    kinds.dedup();
    Ok(kinds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_families_and_all_are_understood() {
        assert_eq!(parse("all").unwrap().len(), KINDS.len());
        assert_eq!(parse("kill, kill-one").unwrap().len(), 5);
        assert_eq!(parse("loss,power-all").unwrap(), [Kind::Power(Pick::All), Kind::Loss]);
        assert_eq!(parse("none").unwrap(), []);
        assert!(parse("kill,kil").unwrap_err().contains("\"kil\""));
    }

    #[test]
    fn every_kind_stands_in_the_table_once() {
        for row in KINDS {
            assert_eq!(row.kind.row().name, row.name);
            assert_eq!(KINDS.iter().filter(|other| other.name == row.name || other.kind == row.kind).count(), 1);
        }
    }
}
