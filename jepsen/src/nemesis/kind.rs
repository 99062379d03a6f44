//! The kinds of faults: the table.
//!
//! | class | at most one of it at a time |
//! |---|---|
//! | host | brokers and whole disks: they choose their hosts first |
//! | net | what happens to packets |
//! | side | what slows or confuses single hosts that are otherwise well |
//!
//! Some kinds of different classes do not go together either: [`Kind::goes_with`].

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
    /// Packets between hosts take their time.
    Delay,
    /// Packets between hosts overtake each other, come twice or garbled.
    Unruly,
    /// Clocks are wrong by minutes.
    ClockJump,
    /// Clocks run too fast.
    ClockRate,
    /// A disk is full to the last block.
    DiskFull,
    /// fsyncs take 300 ms longer.
    SlowFsync,
    /// One fsync fails.
    FailedFsync,
    /// fsyncs do nothing. Not a fault that anybody survives: only for the harness's test of itself.
    LyingFsync,
    /// A disk is gone for good: the broker starts on an empty one.
    DiskLost,
    /// A stopped broker's file has a bit flipped, and it starts again.
    RotStopped,
    /// A running broker's file has a bit flipped under its feet.
    RotRunning,
    /// A stopped broker's file is cut short, and it starts again.
    RotTruncated,
    /// A running broker's file is cut short under its feet.
    RotCutRunning,
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
    row(Kind::Delay, "delay", "packets between hosts take 50 ± 10 ms"),
    row(Kind::Unruly, "unruly", "packets between hosts are reordered, doubled, garbled"),
    row(Kind::ClockJump, "clock-jump", "clocks of some hosts are wrong by up to 288 s"),
    row(Kind::ClockRate, "clock-rate", "clocks of some hosts run several times too fast"),
    row(Kind::DiskFull, "disk-full", "a disk has no block left"),
    row(Kind::SlowFsync, "disk-slow", "each fsync of a broker takes 300 ms longer"),
    row(Kind::FailedFsync, "disk-failed", "an fsync of a broker fails once with EIO"),
    row(Kind::DiskLost, "disk-lost", "a disk is gone for good: the broker starts on an empty one"),
    row(Kind::RotStopped, "rot-stopped", "a bit flipped in a file of a broker that is down"),
    row(Kind::RotRunning, "rot-running", "a bit flipped in a file of a broker that runs"),
    row(Kind::RotTruncated, "rot-truncated", "a file of a broker that is down cut short"),
    row(Kind::RotCutRunning, "rot-cut-running", "a file of a broker that runs cut short"),
];

/// What no broker survives; never part of `all`.
const LYING_FSYNC: Row = row(Kind::LyingFsync, "disk-lies", "fsyncs do nothing: the harness's test of itself");

impl Kind {
    /// Its line of the table.
    pub fn row(self) -> &'static Row {
        if self == Self::LyingFsync {
            return &LYING_FSYNC;
        }
        // Every other kind stands in the table; a test holds it.
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
            Self::FailedFsync | Self::DiskLost => Class::Host,
            Self::RotStopped | Self::RotRunning | Self::RotTruncated | Self::RotCutRunning => Class::Host,
            Self::Partition(_) | Self::Loss | Self::Delay | Self::Unruly => Class::Net,
            Self::ClockJump | Self::ClockRate | Self::DiskFull | Self::SlowFsync | Self::LyingFsync => Class::Side,
        }
    }

    /// It is about leaders: without one it is another fault.
    pub fn aims_at_leaders(self) -> bool {
        match self {
            Self::Kill(pick) | Self::Pause(pick) | Self::Power(pick) => pick == Pick::Leaders,
            Self::Partition(shape) => matches!(shape, Shape::Leader | Shape::OneWay),
            _ => false,
        }
    }

    /// A majority of the hosts may be gone while it lasts: without one there is no leader.
    fn may_take_leaders_away(self) -> bool {
        match self {
            Self::Kill(pick) | Self::Pause(pick) | Self::Power(pick) => matches!(pick, Pick::Majority | Pick::Leaders),
            _ => false,
        }
    }

    /// It finds nobody to hit where there is no leader.
    fn needs_a_leader(self) -> bool {
        self.class() == Class::Net && self.aims_at_leaders()
    }

    /// Keeps this one from being seen beside it, or is kept by it: hosts are hit first, and what is left may be unable to elect anybody.
    pub fn contends(self) -> bool {
        self.may_take_leaders_away() || self.needs_a_leader()
    }

    /// Both show if they happen at the same time.
    pub fn goes_with(self, other: Self) -> bool {
        let starved = |one: Self, other: Self| one.may_take_leaders_away() && other.needs_a_leader();
        let alone = self.takes_all() || other.takes_all() || self.class() == other.class();
        !alone && !starved(self, other) && !starved(other, self)
    }

    /// Nothing else shows beside it.
    pub fn takes_all(self) -> bool {
        matches!(self, Self::Kill(Pick::All) | Self::Pause(Pick::All) | Self::Power(Pick::All))
    }

    /// Brokers may end by themselves, or panic, before the recovery: something was done to their disks. (After a power cut only until
    /// they are dead: [`super::hosts`] sees to that.)
    pub fn breaks_disks(self) -> bool {
        self.rots() || matches!(self, Self::Power(_) | Self::FailedFsync | Self::LyingFsync)
    }

    /// Files are not what they should be afterwards.
    pub fn rots(self) -> bool {
        matches!(self, Self::RotStopped | Self::RotRunning | Self::RotTruncated | Self::RotCutRunning)
    }

    /// What the machine must have for it.
    pub fn needs(self) -> Needs {
        Needs {
            strace: matches!(self, Self::SlowFsync | Self::FailedFsync | Self::LyingFsync),
            faketime: matches!(self, Self::ClockJump | Self::ClockRate),
            tun: matches!(self, Self::Delay | Self::Unruly),
        }
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
    fn every_kind_of_rot_is_one_of_hosts_that_breaks_their_disks() {
        let rot = parse("rot").unwrap();
        assert_eq!(rot, [Kind::RotStopped, Kind::RotRunning, Kind::RotTruncated, Kind::RotCutRunning]);
        assert!(rot.iter().all(|kind| kind.rots() && kind.breaks_disks() && kind.class() == Class::Host));
        assert_eq!(Kind::DiskFull.class(), Class::Side);
    }

    #[test]
    fn a_leader_is_not_looked_for_where_a_majority_may_be_gone() {
        let cuts = [Kind::Partition(Shape::Leader), Kind::Partition(Shape::OneWay)];
        let takers = parse("kill-majority,kill-leaders,pause-majority,pause-leaders").unwrap();
        for (cut, taker) in cuts.iter().flat_map(|cut| takers.iter().map(move |taker| (*cut, *taker))) {
            assert!(!cut.goes_with(taker) && !taker.goes_with(cut), "{} and {}", cut.name(), taker.name());
        }
        let goes = |one: Kind, other: Kind| one.goes_with(other) && other.goes_with(one);
        assert!(
            goes(cuts[0], Kind::Kill(Pick::Minority)) && goes(cuts[1], Kind::DiskLost) && goes(cuts[0], Kind::DiskFull)
        );
        assert!(goes(Kind::Partition(Shape::Ring), Kind::Kill(Pick::Leaders)), "it cuts whomever it likes");
        assert!(!goes(Kind::Kill(Pick::One), Kind::DiskLost), "of one class");
        assert!(!goes(Kind::Kill(Pick::All), Kind::Loss), "nothing else shows");
    }

    #[test]
    fn every_kind_stands_in_the_table_once() {
        for row in KINDS {
            assert_eq!(row.kind.row().name, row.name);
            assert_eq!(KINDS.iter().filter(|other| other.name == row.name || other.kind == row.kind).count(), 1);
        }
    }
}
