//! Where new replicas go, and who is to lead: even over brokers, deterministic given state and seed.
//!
//! Pure functions. They look at how many replicas and preferred leaderships each broker has already, never at who leads
//! at the moment.

use std::collections::BTreeMap;

use pontoon_raft::types::BrokerId;

use crate::catalog::command::REPLICAS_MAX;
use crate::catalog::state::CatalogState;

/// What a broker carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    /// Replicas on it.
    pub replicas: u32,
    /// Partitions whose preferred leader it is.
    pub leads: u32,
}

/// The load of these brokers by the catalog's assignments.
pub fn loads(state: &CatalogState, brokers: impl Iterator<Item = BrokerId>) -> BTreeMap<BrokerId, Load> {
    let mut loads: BTreeMap<_, _> = brokers.map(|broker| (broker, Load::default())).collect();
    for partition in state.topics().values().flat_map(|topic| &topic.partitions) {
        for (position, replica) in partition.replicas.iter().enumerate() {
            if let Some(load) = loads.get_mut(&replica.broker) {
                load.replicas += 1;
                load.leads += u32::from(position == 0);
            }
        }
    }
    loads
}

/// Chooses brokers for `partitions` new partitions of `replicas` replicas each, the preferred leader first. `loads` are
/// the brokers to choose from and what they carry; there must be at least `replicas` of them.
///
/// Each partition goes to the brokers with the fewest replicas; ties are broken by the seed, so that the partitions of two
/// brokers are not all the same. Leaderships are then evened out by changing the order within partitions.
pub fn place(mut loads: BTreeMap<BrokerId, Load>, partitions: u32, replicas: u32, seed: u64) -> Vec<Vec<BrokerId>> {
    assert!(loads.len() >= replicas as usize, "{replicas} replicas need as many brokers");
    let mut placed = Vec::with_capacity(partitions as usize);
    for partition in 0..partitions {
        let tie = |broker: BrokerId| mix(seed ^ mix(u64::from(partition) << 32 | u64::from(broker.0)));
        let mut order: Vec<_> = loads.iter().map(|(broker, load)| (load.replicas, tie(*broker), *broker)).collect();
        order.sort_unstable();
        let mut chosen: Vec<_> = order.into_iter().take(replicas as usize).map(|(.., broker)| broker).collect();
        // The one with the fewest leaderships leads; the others keep their drawn order.
        let leads = |broker: &BrokerId| loads.get(broker).map_or(0, |load| load.leads);
        if let Some(leader) = (0..chosen.len()).min_by_key(|position| (leads(&chosen[*position]), *position)) {
            chosen[..=leader].rotate_right(1);
        }
        for (position, broker) in chosen.iter().enumerate() {
            let load = loads.entry(*broker).or_default();
            load.replicas += 1;
            load.leads += u32::from(position == 0);
        }
        placed.push(chosen);
    }
    even_leaders(&mut loads, &mut placed);
    placed
}

/// Whether replicas can be placed as somebody asks for: as many of each partition, on different brokers, of these. What is wrong,
/// otherwise.
pub fn check(assignment: &[Vec<BrokerId>], alive: &[BrokerId]) -> Result<(), String> {
    let replicas = assignment.first().map_or(0, Vec::len);
    for (number, brokers) in assignment.iter().enumerate() {
        if brokers.is_empty() || brokers.len() > REPLICAS_MAX as usize {
            return Err(format!("partition {number}: {} replicas (1 to {REPLICAS_MAX} are possible)", brokers.len()));
        }
        if brokers.len() != replicas {
            return Err(format!("partition {number}: {} replicas, and {replicas} of the first", brokers.len()));
        }
        for (at, broker) in brokers.iter().enumerate() {
            if !alive.contains(broker) {
                return Err(format!("partition {number}: broker {broker} is not there or not alive"));
            }
            if brokers[..at].contains(broker) {
                return Err(format!("partition {number}: broker {broker} is named twice"));
            }
        }
    }
    Ok(())
}

/// Moves leaderships along chains of partitions from brokers that have two more than another to that other, until none can
/// be moved.
fn even_leaders(loads: &mut BTreeMap<BrokerId, Load>, placed: &mut [Vec<BrokerId>]) {
    while let Some(path) = (!placed.is_empty()).then(|| uneven_path(loads, placed)).flatten() {
        for (partition, to) in path {
            let chosen = &mut placed[partition];
            if let Some(position) = chosen.iter().position(|broker| *broker == to) {
                if let Some(load) = loads.get_mut(&chosen[0]) {
                    load.leads -= 1;
                }
                chosen[..=position].rotate_right(1);
                loads.entry(to).or_default().leads += 1;
            }
        }
    }
}

/// The shortest chain of (partition, new leader) that takes a leadership from one broker to another with at least two
/// fewer: breadth first from the broker that leads most.
fn uneven_path(loads: &BTreeMap<BrokerId, Load>, placed: &[Vec<BrokerId>]) -> Option<Vec<(usize, BrokerId)>> {
    let mut by_leader: BTreeMap<BrokerId, Vec<usize>> = BTreeMap::new();
    for (partition, chosen) in placed.iter().enumerate() {
        by_leader.entry(*chosen.first()?).or_default().push(partition);
    }
    let mut starts: Vec<_> =
        by_leader.keys().map(|broker| (loads.get(broker).map_or(0, |l| l.leads), *broker)).collect();
    starts.sort_unstable_by(|a, b| b.cmp(a));
    for (most, start) in starts {
        let mut came_from: BTreeMap<BrokerId, Option<(usize, BrokerId)>> = BTreeMap::from([(start, None)]);
        let mut queue = std::collections::VecDeque::from([start]);
        while let Some(broker) = queue.pop_front() {
            if loads.get(&broker).is_some_and(|load| load.leads + 2 <= most) {
                let mut path = Vec::new();
                let mut at = broker;
                while let Some(Some((partition, before))) = came_from.get(&at) {
                    path.push((*partition, at));
                    at = *before;
                }
                path.reverse();
                return Some(path);
            }
            for partition in by_leader.get(&broker).into_iter().flatten() {
                for next in &placed[*partition] {
                    if !came_from.contains_key(next) {
                        came_from.insert(*next, Some((*partition, broker)));
                        queue.push_back(*next);
                    }
                }
            }
        }
    }
    None
}

/// A well-mixed function of a number (splitmix64's finaliser).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn brokers(count: u32) -> BTreeMap<BrokerId, Load> {
        (1..=count).map(|broker| (BrokerId(broker), Load::default())).collect()
    }

    fn spread(counts: impl Iterator<Item = u32>) -> u32 {
        let counts: Vec<_> = counts.collect();
        counts.iter().max().unwrap() - counts.iter().min().unwrap()
    }

    proptest! {
        #[test]
        fn replicas_and_leaders_are_even_and_distinct(
            count in 1..8u32, partitions in 1..60u32, replicas in 1..6u32, seed: u64,
        ) {
            prop_assume!(replicas <= count);
            let placed = place(brokers(count), partitions, replicas, seed);
            prop_assert_eq!(&placed, &place(brokers(count), partitions, replicas, seed));
            let (mut on, mut leads) = (BTreeMap::new(), BTreeMap::new());
            for broker in 1..=count {
                on.insert(BrokerId(broker), 0);
                leads.insert(BrokerId(broker), 0);
            }
            for chosen in &placed {
                prop_assert_eq!(chosen.len(), replicas as usize);
                prop_assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len());
                *leads.get_mut(&chosen[0]).unwrap() += 1;
                for broker in chosen {
                    *on.get_mut(broker).unwrap() += 1;
                }
            }
            prop_assert!(spread(on.values().copied()) <= 1, "{:?}", on);
            // With two replicas or more nothing keeps leaderships from being even but too few partitions to mix brokers.
            let slack = if replicas == 1 || partitions >= count * 2 { 1 } else { 2 };
            prop_assert!(spread(leads.values().copied()) <= slack, "{:?}", leads);
        }
    }

    #[test]
    fn an_assignment_names_different_brokers_that_are_there_as_many_for_each_partition() {
        let alive = [1, 2, 3].map(BrokerId);
        let checked = |assignment: &[&[u32]]| {
            let brokers = |on: &&[u32]| on.iter().copied().map(BrokerId).collect::<Vec<_>>();
            check(&assignment.iter().map(brokers).collect::<Vec<_>>(), &alive)
        };
        assert_eq!(checked(&[&[1, 2, 3], &[3, 2, 1]]), Ok(()));
        let refused: [&[&[u32]]; 5] =
            [&[&[]], &[&[1], &[1, 2]], &[&[1, 1]], &[&[4]], &[&[1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1]]];
        for wrong in refused {
            assert!(checked(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_a_broker_carries_already_counts() {
        let mut loads = brokers(3);
        loads.insert(BrokerId(1), Load { replicas: 10, leads: 10 });
        for chosen in place(loads, 10, 2, 7) {
            assert!(!chosen.contains(&BrokerId(1)));
        }
        let mut loads = brokers(3);
        loads.insert(BrokerId(2), Load { replicas: 0, leads: 4 });
        let placed = place(loads, 4, 3, 7);
        assert!(placed.iter().all(|chosen| chosen[0] != BrokerId(2)), "{placed:?}");
    }

    #[test]
    fn partitions_of_two_brokers_are_not_all_the_same() {
        let pairs: BTreeSet<_> = place(brokers(4), 40, 2, 1).into_iter().map(BTreeSet::from_iter).collect();
        assert!(pairs.len() >= 4, "{pairs:?}");
    }
}
