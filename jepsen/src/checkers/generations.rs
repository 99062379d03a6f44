//! **A generation of a consumer group is one thing to all its members**:
//!
//! 1. it has one leader, and no key of it has two members;
//! 2. once something is committed (from then on the group cannot be forgotten) generations do not go back.
//!
//! Groups are no part of the history: what is found here accuses the brokers by itself.

use std::collections::BTreeMap;

use crate::client::ledger::{Assigned, Kept};

/// How many accusations of a kind are made.
const ACCUSATIONS_MAX: usize = 8;

/// What the brokers must be accused of, in sentences.
pub fn accusations(kept: &Kept) -> Vec<String> {
    let mut found = generations(&kept.assigned);
    found.truncate(ACCUSATIONS_MAX);
    found.extend(backwards(kept).into_iter().take(ACCUSATIONS_MAX));
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
    // By group, two walks over the same shares: as they ended, and as they began.
    let mut ended: Vec<&Assigned> = kept.assigned.iter().collect();
    ended.sort_by_key(|told| told.completed_ns);
    let mut began = ended.clone();
    began.sort_by_key(|told| told.invoked_ns);
    let (mut found, mut highest, mut at) = (Vec::new(), BTreeMap::<&str, i32>::new(), 0);
    for told in began {
        while let Some(before) = ended.get(at).filter(|before| before.completed_ns < told.invoked_ns) {
            let counts = kept.first_commits.get(&before.group).is_some_and(|first| *first < before.completed_ns);
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

    fn told(generation: i32, leader: &str, member: &str, keys: &[u64], at: u64) -> Assigned {
        let (leader, member) = (leader.to_owned(), member.to_owned());
        let (group, keys) = ("g".to_owned(), keys.to_vec());
        Assigned { group, generation, leader, member, keys, invoked_ns: at, completed_ns: at + 1 }
    }

    fn accused(assigned: Vec<Assigned>) -> Vec<String> {
        accusations(&Kept { assigned, ..Kept::default() })
    }

    #[test]
    fn a_generation_has_one_leader_and_a_key_one_member() {
        let sound = [told(1, "a", "a", &[0], 0), told(1, "a", "b", &[1], 0), told(2, "b", "b", &[0], 5)];
        assert!(accused(sound.to_vec()).is_empty());
        assert!(accused(vec![told(1, "a", "a", &[0], 0), told(1, "b", "b", &[1], 0)])[0].contains("led by a and by b"));
        assert!(accused(vec![told(1, "a", "a", &[0], 0), told(1, "a", "b", &[0], 0)])[0].contains("has a and b"));
    }

    #[test]
    fn generations_go_back_only_before_anything_is_committed() {
        let assigned = vec![told(5, "a", "a", &[], 0), told(5, "a", "a", &[], 10), told(4, "a", "a", &[], 20)];
        assert!(accused(assigned.clone()).is_empty());
        let kept = Kept { assigned, first_commits: BTreeMap::from([("g".to_owned(), 4)]), ..Kept::default() };
        assert_eq!(accusations(&kept), ["group g was at generation 5, and then at 4"]);
    }
}
