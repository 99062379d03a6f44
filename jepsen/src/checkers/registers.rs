//! **Committed offsets are linearizable registers**, and a generation of a consumer group is one thing to all its members.
//!
//! 1. Every look finds a commit that was asked for before the look ended, with that commit's offset, and none that was refused.
//! 2. Each register (a key of a group) has an order of its commits and looks that agrees with real time and in which every look finds the last
//!    commit before it. As every commit has its own word, this can be decided exactly (Gibbons and Korach, *Testing shared memories*, 1997):
//!    take each commit with the looks that found it; it was in force from the earliest end among them to the latest beginning. Where the
//!    first lies before the second, it certainly was in force all that time (a *forward zone*); else it needs one moment between the two
//!    (a *backward zone*). There is an order exactly if no two forward zones overlap and no backward zone lies within a forward one.
//! 3. In one generation there is one leader, and no key has two members.
//! 4. Once something is committed (from then on the group cannot be forgotten), generations do not go back.
//!
//! The registers are no part of the history: what is found here accuses the brokers by itself.

use std::collections::BTreeMap;

use crate::client::registers::{Assigned, Kept, Outcome, RegisterOp};

/// How many accusations of a kind are made.
const ACCUSATIONS_MAX: usize = 8;

/// What the brokers must be accused of, in sentences.
pub fn accusations(kept: &Kept) -> Vec<String> {
    let mut registers: BTreeMap<(&str, u64), Vec<&RegisterOp>> = BTreeMap::new();
    for op in &kept.ops {
        registers.entry((&op.group, op.key)).or_default().push(op);
    }
    let mut found = Vec::new();
    for ((group, key), ops) in registers {
        let wrong = register(&ops).into_iter().take(ACCUSATIONS_MAX);
        found.extend(wrong.map(|what| format!("the offset of group {group} in key {key}: {what}")));
    }
    found.extend(generations(&kept.assigned).into_iter().take(ACCUSATIONS_MAX));
    found.extend(backwards(kept).into_iter().take(ACCUSATIONS_MAX));
    found
}

/// A commit with the looks that found it.
struct Cluster<'o> {
    name: String,
    commit: Option<&'o RegisterOp>,
    earliest_end_ns: i128,
    latest_begin_ns: i128,
}

impl<'o> Cluster<'o> {
    fn of(commit: Option<&'o RegisterOp>) -> Self {
        // Nothing is committed: so it was before everything.
        let (mut earliest_end_ns, mut latest_begin_ns) = (-1, -1);
        let mut name = "nothing".to_owned();
        if let Some(op) = commit {
            // An unknown one may take effect at any time from its beginning on.
            let known = op.outcome == Outcome::Ok;
            earliest_end_ns = if known { i128::from(op.completed_ns) } else { i128::MAX };
            latest_begin_ns = i128::from(op.invoked_ns);
            name = op.value.as_ref().map_or_else(String::new, |(offset, word)| format!("{offset} ({word})"));
        }
        Self { name, commit, earliest_end_ns, latest_begin_ns }
    }

    fn look(&mut self, op: &RegisterOp) {
        self.earliest_end_ns = self.earliest_end_ns.min(i128::from(op.completed_ns));
        self.latest_begin_ns = self.latest_begin_ns.max(i128::from(op.invoked_ns));
    }

    fn zone(&self) -> (i128, i128) {
        (self.earliest_end_ns.min(self.latest_begin_ns), self.earliest_end_ns.max(self.latest_begin_ns))
    }

    fn is_forward(&self) -> bool {
        self.earliest_end_ns < self.latest_begin_ns
    }
}

fn register(ops: &[&RegisterOp]) -> Vec<String> {
    let mut found = Vec::new();
    let mut clusters: BTreeMap<Option<&str>, Cluster> = BTreeMap::new();
    clusters.insert(None, Cluster::of(None));
    for op in ops.iter().filter(|op| op.write) {
        clusters.insert(op.value.as_ref().map(|(_, word)| word.as_str()), Cluster::of(Some(op)));
    }
    let mut seen = std::collections::BTreeSet::new();
    for op in ops.iter().filter(|op| !op.write) {
        let word = op.value.as_ref().map(|(_, word)| word.as_str());
        let Some(cluster) = clusters.get_mut(&word) else {
            found.push(format!("a look finds {:?}, which nobody committed", op.value));
            continue;
        };
        seen.insert(word);
        match cluster.commit {
            Some(commit) if commit.outcome == Outcome::Failed => {
                found.push(format!("a look finds {}, which was refused", cluster.name));
            }
            Some(commit) if commit.value != op.value => {
                found.push(format!("a look finds {:?}, committed as {}", op.value, cluster.name));
            }
            Some(commit) if commit.invoked_ns > op.completed_ns => {
                found.push(format!("a look finds {} before it is committed", cluster.name));
            }
            _ => cluster.look(op),
        }
    }
    // What was refused never was; what is unknown and was never seen need not have been.
    clusters.retain(|word, cluster| match cluster.commit.map(|op| op.outcome) {
        Some(Outcome::Failed) => false,
        Some(Outcome::Unknown) => seen.contains(word),
        _ => true,
    });
    found.extend(conflicts(clusters.into_values().collect()));
    found
}

/// The zones that cannot be put in an order.
fn conflicts(mut clusters: Vec<Cluster>) -> Vec<String> {
    clusters.sort_by_key(Cluster::zone);
    let (forward, backward): (Vec<_>, Vec<_>) = clusters.into_iter().partition(Cluster::is_forward);
    let mut found = Vec::new();
    let in_force = |cluster: &Cluster| {
        let ms = |ns: i128| ns as f64 / 1e6;
        format!("{} was in force from {:.3} to {:.3} ms", cluster.name, ms(cluster.zone().0), ms(cluster.zone().1))
    };
    for pair in forward.windows(2) {
        if pair[1].zone().0 < pair[0].zone().1 {
            found.push(format!("{}, and {}", in_force(&pair[0]), in_force(&pair[1])));
        }
    }
    for cluster in &backward {
        // The last forward zone that begins before it; the zones do not overlap, or that was said above.
        let zone = cluster.zone();
        let before = forward.partition_point(|forward| forward.zone().0 < zone.0);
        if let Some(around) = forward[..before].last().filter(|around| zone.1 < around.zone().1) {
            found.push(format!("{} within the time in which {}", cluster.name, in_force(around)));
        }
    }
    found
}

fn generations(assigned: &[Assigned]) -> Vec<String> {
    let mut found = Vec::new();
    let mut leaders: BTreeMap<(&str, i32), &str> = BTreeMap::new();
    let mut owners: BTreeMap<(&str, i32, u64), &str> = BTreeMap::new();
    for told in assigned {
        let (group, generation) = (told.group.as_str(), told.generation);
        let leader = *leaders.entry((group, generation)).or_insert(&told.leader);
        if leader != told.leader {
            found.push(format!("generation {generation} of group {group} is led by {leader} and by {}", told.leader));
        }
        for key in &told.keys {
            let owner = *owners.entry((group, generation, *key)).or_insert(&told.member);
            if owner != told.member {
                let other = &told.member;
                found.push(format!("key {key} of generation {generation} of group {group} has {owner} and {other}"));
            }
        }
    }
    found
}

fn backwards(kept: &Kept) -> Vec<String> {
    let mut first_commit: BTreeMap<&str, u64> = BTreeMap::new();
    for op in kept.ops.iter().filter(|op| op.write && op.outcome == Outcome::Ok) {
        let first = first_commit.entry(&op.group).or_insert(op.completed_ns);
        *first = (*first).min(op.completed_ns);
    }
    // By group, two walks over the same shares: as they ended, and as they began.
    let mut ended: Vec<&Assigned> = kept.assigned.iter().collect();
    ended.sort_by_key(|told| told.completed_ns);
    let mut began = ended.clone();
    began.sort_by_key(|told| told.invoked_ns);
    let (mut found, mut highest, mut at) = (Vec::new(), BTreeMap::<&str, i32>::new(), 0);
    for told in began {
        while let Some(before) = ended.get(at).filter(|before| before.completed_ns < told.invoked_ns) {
            let counts = first_commit.get(before.group.as_str()).is_some_and(|first| *first < before.completed_ns);
            if counts {
                let known = highest.entry(&before.group).or_insert(before.generation);
                *known = (*known).max(before.generation);
            }
            at += 1;
        }
        if let Some(known) = highest.get(told.group.as_str()).filter(|known| **known > told.generation) {
            found.push(format!("group {} was at generation {known}, and then at {}", told.group, told.generation));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(word: &str, from: u64, to: u64, outcome: Outcome) -> RegisterOp {
        let value = Some((word.len() as u64, word.to_owned()));
        let group = "g".to_owned();
        RegisterOp { group, key: 0, write: true, value, invoked_ns: from, completed_ns: to, outcome }
    }

    fn look(word: Option<&str>, from: u64, to: u64) -> RegisterOp {
        RegisterOp {
            write: false,
            value: word.map(|word| (word.len() as u64, word.to_owned())),
            ..write("", from, to, Outcome::Ok)
        }
    }

    fn accused(ops: Vec<RegisterOp>) -> Vec<String> {
        accusations(&Kept { ops, assigned: Vec::new() })
    }

    use Outcome::{Failed, Ok, Unknown};

    #[test]
    fn what_has_an_order_is_not_accused() {
        let sound = [
            vec![look(None, 0, 1), write("a", 2, 3, Ok), look(Some("a"), 4, 5), write("b", 6, 7, Ok)],
            // At the same time: either may be seen, and one after the other.
            vec![write("a", 0, 10, Ok), write("b", 0, 10, Ok), look(Some("a"), 1, 2), look(Some("b"), 3, 4)],
            // One that nobody knows of comes late, or never.
            vec![write("a", 0, 1, Unknown), write("b", 2, 3, Ok), look(Some("b"), 4, 5), look(Some("a"), 6, 7)],
            vec![write("a", 0, 1, Unknown), look(None, 2, 3)],
            vec![write("a", 0, 1, Failed), look(None, 2, 3)],
            vec![write("a", 0, 9, Ok), look(None, 1, 2), look(Some("a"), 3, 4)],
        ];
        for ops in sound {
            assert_eq!(accused(ops.clone()), Vec::<String>::new(), "{ops:?}");
        }
    }

    #[test]
    fn what_has_none_is_accused() {
        let wrong = [
            ("stale", vec![write("a", 0, 1, Ok), write("b", 2, 3, Ok), look(Some("a"), 4, 5)]),
            ("lost", vec![write("a", 0, 1, Ok), look(None, 2, 3)]),
            (
                "back and forth",
                vec![
                    write("a", 0, 10, Ok),
                    write("b", 0, 10, Ok),
                    look(Some("a"), 11, 12),
                    look(Some("b"), 13, 14),
                    look(Some("a"), 15, 16),
                ],
            ),
            ("refused", vec![write("a", 0, 1, Failed), look(Some("a"), 2, 3)]),
            ("from nowhere", vec![look(Some("a"), 2, 3)]),
            ("from the future", vec![look(Some("a"), 0, 1), write("a", 2, 3, Unknown)]),
            ("overwritten by the unknown, and back", {
                let looks = [look(Some("b"), 4, 5), look(Some("a"), 6, 7), look(Some("b"), 8, 9)];
                [write("a", 0, 1, Unknown), write("b", 2, 3, Ok)].into_iter().chain(looks).collect()
            }),
        ];
        for (what, ops) in wrong {
            assert!(!accused(ops).is_empty(), "{what}");
        }
        let mut other = look(Some("a"), 2, 3);
        other.value = Some((99, "a".to_owned()));
        assert!(accused(vec![write("a", 0, 1, Ok), other])[0].contains("committed as 1 (a)"));
    }

    /// Against every order there is, over small histories drawn at random.
    #[test]
    fn it_agrees_with_trying_all_orders() {
        let mut random = crate::random::Random::new(5);
        let (mut sound, mut wrong) = (0, 0);
        for _ in 0..4000 {
            let words = ["a", "bb", "ccc"];
            let mut ops = Vec::new();
            for word in words {
                let from = random.between(0, 12);
                let outcome = if random.percent(25) { Unknown } else { Ok };
                ops.push(write(word, 2 * from, 2 * (from + random.between(0, 5)) + 1, outcome));
            }
            for _ in 0..3 {
                let word = random.pick(&[None, Some("a"), Some("bb"), Some("ccc")]).copied().flatten();
                let from = random.between(0, 16);
                ops.push(look(word, 2 * from, 2 * (from + random.between(0, 5)) + 1));
            }
            let verdict = accused(ops.clone()).is_empty();
            assert_eq!(verdict, has_an_order(&ops, &mut Vec::new(), None), "{ops:?}");
            *(if verdict { &mut sound } else { &mut wrong }) += 1;
        }
        assert!(sound > 400 && wrong > 400, "{sound} sound, {wrong} wrong");
    }

    /// Whether what is left of `ops` can follow what was `done`, with this word in force.
    fn has_an_order(ops: &[RegisterOp], done: &mut Vec<usize>, word: Option<&str>) -> bool {
        let left: Vec<usize> = (0..ops.len()).filter(|at| !done.contains(at)).collect();
        if left.iter().all(|at| ops[*at].outcome == Unknown) {
            return true; // They never happened.
        }
        let end = |at: &usize| if ops[*at].outcome == Unknown { u64::MAX } else { ops[*at].completed_ns };
        left.iter().any(|at| {
            let op = &ops[*at];
            let may_be_next = left.iter().all(|other| end(other) >= op.invoked_ns);
            let value = op.value.as_ref().map(|(_, word)| word.as_str());
            if !may_be_next || !op.write && value != word {
                return false;
            }
            done.push(*at);
            let found = has_an_order(ops, done, if op.write { value } else { word });
            done.pop();
            found
        })
    }

    fn told(generation: i32, leader: &str, member: &str, keys: &[u64], at: u64) -> Assigned {
        let (leader, member) = (leader.to_owned(), member.to_owned());
        let (group, keys) = ("g".to_owned(), keys.to_vec());
        Assigned { group, generation, leader, member, keys, invoked_ns: at, completed_ns: at + 1 }
    }

    #[test]
    fn a_generation_has_one_leader_and_a_key_one_member() {
        let accused = |assigned| accusations(&Kept { ops: Vec::new(), assigned });
        assert!(
            accused(vec![told(1, "a", "a", &[0], 0), told(1, "a", "b", &[1], 0), told(2, "b", "b", &[0], 5)])
                .is_empty()
        );
        assert!(accused(vec![told(1, "a", "a", &[0], 0), told(1, "b", "b", &[1], 0)])[0].contains("led by a and by b"));
        assert!(accused(vec![told(1, "a", "a", &[0], 0), told(1, "a", "b", &[0], 0)])[0].contains("has a and b"));
    }

    #[test]
    fn generations_go_back_only_before_anything_is_committed() {
        let assigned = vec![told(5, "a", "a", &[], 0), told(5, "a", "a", &[], 10), told(4, "a", "a", &[], 20)];
        assert!(accusations(&Kept { ops: Vec::new(), assigned: assigned.clone() }).is_empty());
        let kept = Kept { ops: vec![write("a", 3, 4, Ok)], assigned };
        assert_eq!(accusations(&kept), ["group g was at generation 5, and then at 4"]);
    }
}
