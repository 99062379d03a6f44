//! Who is meant by "a minority" or "a ring of majorities": choices over host numbers, and nothing else.

use super::kind::{Pick, Shape};
use crate::cluster::network::Way;
use crate::random::Random;

/// How many of so many hosts may fail with a majority left.
pub fn minority(hosts: usize) -> usize {
    hosts.saturating_sub(1) / 2
}

/// Hosts by a pick, ascending; `leaders` are those that lead something.
pub fn hosts(pick: Pick, hosts: usize, leaders: &[usize], random: &mut Random) -> Vec<usize> {
    let mut of: Vec<usize> = (0..hosts).collect();
    random.shuffle(&mut of);
    let count = match pick {
        Pick::One => 1,
        Pick::Minority => minority(hosts).max(1),
        Pick::Majority => hosts / 2 + 1,
        Pick::All => hosts,
        Pick::Leaders => {
            // Leaders first. All but one at most: with every one gone it is another fault.
            of.sort_by_key(|host| !leaders.contains(host));
            let leading = of.iter().filter(|host| leaders.contains(host)).count();
            (1 + random.below(leading)).min(hosts - 1)
        }
    };
    of.truncate(count);
    of.sort_unstable();
    of
}

/// So many hosts, ascending, those first that are not `taken`; at least one.
pub fn free(count: usize, hosts: usize, taken: &[usize], random: &mut Random) -> Vec<usize> {
    let mut of: Vec<usize> = (0..hosts).collect();
    random.shuffle(&mut of);
    of.sort_by_key(|host| taken.contains(host));
    let untaken = of.iter().filter(|host| !taken.contains(host)).count();
    of.truncate(count.min(untaken).max(1));
    of.sort_unstable();
    of
}

/// The ways that a partition cuts.
pub fn cut(shape: Shape, hosts: usize, leader: Option<usize>, random: &mut Random) -> Vec<Way> {
    let mut order: Vec<usize> = (0..hosts).collect();
    random.shuffle(&mut order);
    let leader = leader.unwrap_or(order[0]);
    match shape {
        Shape::One => apart(&order[..1], &order[1..]),
        Shape::Halves => apart(&order[..minority(hosts)], &order[minority(hosts)..]),
        Shape::Leader => {
            order.retain(|host| *host != leader);
            apart(&[leader], &order)
        }
        Shape::OneWay => {
            order.retain(|host| *host != leader);
            order.iter().map(|to| Way { from: leader, to: *to }).collect()
        }
        Shape::Ring => ring(&order),
    }
}

/// No packet passes between the two.
pub fn apart(left: &[usize], right: &[usize]) -> Vec<Way> {
    let both = |(from, to): (usize, usize)| [Way { from, to }, Way { from: to, to: from }];
    left.iter().flat_map(|left| right.iter().map(move |right| (*left, *right))).flat_map(both).collect()
}

/// In a circle, each hears itself and as many neighbours on both sides as make a majority.
fn ring(circle: &[usize]) -> Vec<Way> {
    let hosts = circle.len();
    let reach = hosts / 2 / 2 + (hosts / 2) % 2;
    let mut ways = Vec::new();
    for (place, from) in circle.iter().enumerate() {
        for (other, to) in circle.iter().enumerate() {
            let distance = place.abs_diff(other);
            if distance.min(hosts - distance) > reach {
                ways.push(Way { from: *from, to: *to });
            }
        }
    }
    // Three in a circle all are neighbours: one link is cut, and the two at its ends see each other only through the third.
    if ways.is_empty() && hosts >= 3 {
        ways = apart(&circle[..1], &circle[1..2]);
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard_by(ways: &[Way], hosts: usize, host: usize) -> Vec<usize> {
        (0..hosts).filter(|from| *from == host || !ways.contains(&Way { from: *from, to: host })).collect()
    }

    #[test]
    fn picks_have_their_sizes() {
        let mut random = Random::new(1);
        for hosts_count in [3, 5] {
            let mut count = |pick| hosts(pick, hosts_count, &[0, 1], &mut random).len();
            assert_eq!(count(Pick::One), 1);
            assert_eq!(count(Pick::Minority), hosts_count / 2);
            assert_eq!(count(Pick::Majority), hosts_count / 2 + 1);
            assert_eq!(count(Pick::All), hosts_count);
            for _ in 0..20 {
                let leaders = hosts(Pick::Leaders, hosts_count, &[1, 2], &mut random);
                assert!(leaders.iter().all(|host| [1, 2].contains(host)) && !leaders.is_empty(), "{leaders:?}");
            }
            assert_eq!(hosts(Pick::Leaders, hosts_count, &[], &mut random).len(), 1);
        }
    }

    #[test]
    fn what_is_free_leaves_others_alone() {
        let mut random = Random::new(9);
        for _ in 0..20 {
            let found = free(2, 5, &[0, 1, 2], &mut random);
            assert_eq!(found, [3, 4]);
            assert_eq!(free(2, 3, &[0, 2], &mut random), [1]);
            assert_eq!(free(2, 3, &[0, 1, 2], &mut random).len(), 1);
        }
    }

    #[test]
    fn in_a_ring_everyone_hears_a_majority_and_no_two_the_same() {
        for (hosts, majority) in [(3, 2), (5, 3)] {
            for seed in 0..20 {
                let ways = cut(Shape::Ring, hosts, None, &mut Random::new(seed));
                let heard: Vec<_> = (0..hosts).map(|host| heard_by(&ways, hosts, host)).collect();
                assert!(heard.iter().all(|heard| heard.len() >= majority), "{heard:?}");
                let mut views = heard.clone();
                views.sort();
                views.dedup();
                assert_eq!(views.len(), hosts, "{heard:?}");
            }
        }
    }

    #[test]
    fn a_cut_off_leader_hears_nobody_and_a_one_way_leader_hears_all() {
        let mut random = Random::new(4);
        let alone = cut(Shape::Leader, 5, Some(3), &mut random);
        assert_eq!(heard_by(&alone, 5, 3), [3]);
        assert_eq!(heard_by(&alone, 5, 0), [0, 1, 2, 4]);
        let one_way = cut(Shape::OneWay, 5, Some(3), &mut random);
        assert_eq!(heard_by(&one_way, 5, 3), [0, 1, 2, 3, 4]);
        assert_eq!(heard_by(&one_way, 5, 0), [0, 1, 2, 4]);
        let halves = cut(Shape::Halves, 5, None, &mut random);
        let mut sizes: Vec<usize> = (0..5).map(|host| heard_by(&halves, 5, host).len()).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [2, 2, 3, 3, 3]);
    }
}
