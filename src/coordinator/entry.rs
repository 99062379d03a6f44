//! What stands in the log of consumer groups: one record per change, the group's name as key, an [`Entry`] as value.
//!
//! Entries are absolute: a later one of the same group (or of the same group and partition) takes an earlier one's place. So the state is a
//! function of the log, whatever order of reading back is used to shorten it: when all that is known has been written once
//! more, everything before that can go ([`super::shard`]).
//!
//! In [`pontoon_raft::codec`], whose first byte is the version. `Entry::GroupRemoved` is `01 01`.

use std::collections::BTreeMap;

use pontoon_raft::codec::{self, DecodeError};
use serde::{Deserialize, Serialize};

/// A change of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Entry {
    /// A generation: its members and what was assigned to them.
    Group(GroupRecord),
    /// The group is gone, offsets and all.
    GroupRemoved,
    /// Committed offsets.
    Committed(Vec<CommittedOffset>),
    /// These partitions have no committed offset any more.
    OffsetsRemoved(Vec<(String, u32)>),
}

/// A generation of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GroupRecord {
    pub(super) generation: i32,
    pub(super) protocol_type: String,
    pub(super) protocol: Option<String>,
    pub(super) leader: Option<String>,
    pub(super) members: Vec<MemberRecord>,
    /// When, in ms since 1970, by the coordinator's clock.
    pub(super) time_ms: i64,
}

/// A member of a generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MemberRecord {
    pub(super) id: String,
    pub(super) instance_id: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) session_timeout_ms: u32,
    pub(super) rebalance_timeout_ms: u32,
    pub(super) protocols: Vec<(String, Vec<u8>)>,
    pub(super) assignment: Vec<u8>,
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommittedOffset {
    /// The topic's name.
    pub topic: String,
    /// Its id: another topic of the name has not been read yet.
    pub topic_id: u128,
    /// The partition.
    pub partition: u32,
    /// The next offset to be read.
    pub offset: i64,
    /// The epoch of the record before it, -1 if the client did not say.
    pub leader_epoch: i32,
    /// The client's own words.
    pub metadata: String,
    /// When it was committed, in ms since 1970.
    pub time_ms: i64,
}

impl Entry {
    pub(super) fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(bytes)
    }
}

/// A group as the log tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StoredGroup {
    pub(super) record: Option<GroupRecord>,
    pub(super) offsets: BTreeMap<(String, u32), CommittedOffset>,
}

/// Applies an entry to what the log has told so far.
pub(super) fn apply(groups: &mut BTreeMap<String, StoredGroup>, group: String, entry: Entry) {
    match entry {
        Entry::GroupRemoved => {
            groups.remove(&group);
        }
        Entry::Group(record) => groups.entry(group).or_default().record = Some(record),
        Entry::Committed(offsets) => {
            let known = &mut groups.entry(group).or_default().offsets;
            known.extend(offsets.into_iter().map(|offset| ((offset.topic.clone(), offset.partition), offset)));
        }
        Entry::OffsetsRemoved(partitions) => {
            if let Some(known) = groups.get_mut(&group) {
                partitions.iter().for_each(|partition| drop(known.offsets.remove(partition)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(partition: u32, offset: i64) -> CommittedOffset {
        CommittedOffset {
            topic: "t".into(),
            topic_id: 7,
            partition,
            offset,
            leader_epoch: 1,
            metadata: "m".into(),
            time_ms: 5,
        }
    }

    #[test]
    fn the_bytes_stay_what_they_are() {
        assert_eq!(Entry::GroupRemoved.encode(), [1, 1]);
        let entry = Entry::Committed(vec![committed(3, 9)]);
        assert_eq!(entry.encode(), [1, 2, 1, 1, b't', 7, 3, 18, 2, 1, b'm', 10]);
        let member = MemberRecord {
            id: "a".into(),
            instance_id: None,
            client_id: "c".into(),
            client_host: "h".into(),
            session_timeout_ms: 1,
            rebalance_timeout_ms: 2,
            protocols: vec![("p".into(), vec![9])],
            assignment: vec![8],
        };
        let record = GroupRecord {
            generation: 1,
            protocol_type: "x".into(),
            protocol: Some("p".into()),
            leader: Some("a".into()),
            members: vec![member],
            time_ms: 5,
        };
        let bytes = [
            &[1, 0, 2, 1, b'x', 1, 1, b'p', 1, 1, b'a', 1][..],
            &[1, b'a', 0, 1, b'c', 1, b'h', 1, 2, 1, 1, b'p', 1, 9, 1, 8, 10],
        ];
        assert_eq!(Entry::Group(record.clone()).encode(), bytes.concat());
        assert_eq!(Entry::decode(&bytes.concat()).unwrap(), Entry::Group(record));
        assert!(Entry::decode(b"somebody's record").is_err() && Entry::decode(&[]).is_err());
    }

    #[test]
    fn later_entries_take_the_place_of_earlier_ones() {
        let mut groups = BTreeMap::new();
        let mut say = |entry| apply(&mut groups, "g".to_owned(), entry);
        say(Entry::Committed(vec![committed(0, 1), committed(1, 1)]));
        say(Entry::Group(GroupRecord { generation: 1, ..Default::default() }));
        say(Entry::Committed(vec![committed(1, 7)]));
        say(Entry::OffsetsRemoved(vec![("t".into(), 0)]));
        assert_eq!(groups["g"].record.as_ref().unwrap().generation, 1);
        assert_eq!(groups["g"].offsets.values().map(|o| o.offset).collect::<Vec<_>>(), [7]);
        apply(&mut groups, "g".to_owned(), Entry::GroupRemoved);
        assert!(groups.is_empty());
    }
}
