//! The sends of a history by their times: for each key when somebody asked, and when who asked was acknowledged.

use std::collections::BTreeMap;

use crate::history::{History, Key, Kind, MicroOp};

/// The sends to one key.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sends {
    /// When each was invoked, ascending.
    pub invoked_ns: Vec<u64>,
    /// Of those that were acknowledged: when that was, ascending, and when they were invoked.
    pub acknowledged_ns: Vec<(u64, u64)>,
}

/// Of each key that anybody sends to.
pub fn by_key(history: &History) -> BTreeMap<Key, Sends> {
    let mut keys: BTreeMap<Key, Sends> = BTreeMap::new();
    for (id, operation) in history.operations().iter().enumerate() {
        let (invoked_ns, told) = (history.events()[operation.invoked].time_ns, history.outcome_event(id));
        for step in told.action.micro_ops() {
            let MicroOp::Send { key, .. } = step else { continue };
            let sends = keys.entry(*key).or_default();
            sends.invoked_ns.push(invoked_ns);
            sends.acknowledged_ns.extend((operation.outcome == Kind::Ok).then_some((told.time_ns, invoked_ns)));
        }
    }
    for sends in keys.values_mut() {
        sends.invoked_ns.sort_unstable();
        sends.acknowledged_ns.sort_unstable();
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Story;

    #[test]
    fn sends_are_found_by_their_keys_and_times() {
        let story = Story::new().failed_send(0, &[(0, 0, 1)]).sent(0, &[(0, 0, 2), (1, 0, 3)]).polled(1, &[(0, 0, 2)]);
        let keys = by_key(&story.history());
        let of = |invoked_ns: &[u64]| Sends { invoked_ns: invoked_ns.to_vec(), acknowledged_ns: vec![(3, 2)] };
        assert_eq!(keys, BTreeMap::from([(Key(0), of(&[0, 2])), (Key(1), of(&[2]))]));
    }
}
