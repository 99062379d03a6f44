//! What a group takes, and that it takes no more.

use super::*;

#[test]
fn the_bytes_of_a_group_are_those_of_what_is_in_it() {
    let (mut story, leader, other) = Story::stable();
    let before = story.group.bytes();
    let now = story.now;
    let long = |bytes: usize| vec![CommittedOffset { metadata: "m".repeat(bytes), ..offset(0, 5) }, offset(1, 5)];
    let by = (leader.member_id.as_str(), None, 1);
    for bytes in [0, 1000, 10] {
        let growth = story.group.growth_by_commit(&long(bytes));
        let was = story.group.bytes();
        story.group.commit(by, long(bytes), now, &mut story.out).unwrap();
        assert_eq!(growth, story.group.bytes().saturating_sub(was), "{bytes} bytes of metadata");
    }
    assert_eq!(story.group.growth_by_commit(&long(10)), 0, "what is there is no more than it was");
    let often = [vec![offset(0, 5); 100], vec![CommittedOffset { metadata: "m".repeat(900), ..offset(9, 5) }]].concat();
    let (new, again) = (THING_BYTES + 2 + 900, 99 * (THING_BYTES + 2) - 10);
    assert_eq!(story.group.growth_by_commit(&often), new + again, "what is named a hundred times was there once");
    assert_eq!(story.group.bytes(), before + 2 * (THING_BYTES + 2) + 10);
    let mut stored = BTreeMap::new();
    story.settle();
    story.log.iter().for_each(|entry| crate::coordinator::entry::apply(&mut stored, "g".to_owned(), entry.clone()));
    let restored = Group::restore("g", MEMBERS_MAX, stored.remove("g").unwrap(), now);
    assert_eq!(restored.bytes(), story.group.bytes());
    // Members: what they say, and what they are assigned.
    let same = Join { member_id: other.member_id.clone(), protocol_type: "consumer".into(), ..Join::default() };
    assert_eq!(story.group.growth_by_join(&same), 0);
    let more = |by: &Joined| Sync {
        member_id: by.member_id.clone(),
        generation: 2,
        assignments: vec![(other.member_id.clone(), Bytes::from(vec![0; 100]))],
        ..Sync::default()
    };
    assert_eq!(story.group.growth_by_sync(&more(&leader)), 0, "an assignment is there");
    let mut again = [story.ask_join(&leader.member_id, |_| {}), story.ask_join(&other.member_id, |_| {})];
    again.iter_mut().for_each(|join| assert!(take(join).is_ok()));
    assert_eq!(story.group.growth_by_sync(&more(&leader)), 2 * 98, "besides A and B, and in the log");
    assert_eq!(story.group.growth_by_sync(&more(&other)), 0, "only the leader assigns");
    drop(story.ask_join("", |join| join.id_required = true));
    let promised = story.group.promised.keys().next().unwrap().clone();
    assert_eq!(story.group.bytes(), restored.bytes() + THING_BYTES + promised.len());
    story.pass(SESSION);
    story.group.expire(i64::MAX, 0, &mut story.out);
    assert_eq!(story.group.bytes(), THING_BYTES + 4 + 2 * "consumer".len());
}

/// The first member says of what kind the group is; each text may have 32 KiB.
#[test]
fn all_that_a_member_says_counts_and_so_does_the_copy_that_is_in_the_log() {
    const LONG: usize = 32 << 10;
    let long = |join: &mut Join| {
        join.protocol_type = "k".repeat(LONG);
        join.instance_id = Some("i".repeat(LONG));
        join.protocols = (0..PROTOCOLS_MAX as u8).map(|n| (format!("{n}"), Bytes::from(vec![n; 9]))).collect();
    };
    let mut story = Story::new();
    let mut join = Join { client_id: "c".to_owned(), ..Join::default() };
    long(&mut join);
    let growth = story.group.growth_by_join(&join);
    let empty = story.group.bytes();
    let mut joined = story.ask_join("", long);
    assert_eq!(story.group.bytes(), empty + growth, "what it may grow to is known when it is let in");
    // The kind, and the member's name, id, and id as the leader's, here and in the log.
    assert!(growth > 2 * (LONG + 3 * LONG + PROTOCOLS_MAX * 64), "{growth}");
    story.pass(FIRST_REBALANCE_DELAY);
    let joined = take(&mut joined).unwrap();
    take(&mut story.ask_sync(&joined, &[(&joined.member_id, b"A")])).unwrap();
    let stored = story.group.bytes();
    story.pass(SESSION);
    assert_eq!(story.group.state, GroupState::Empty);
    assert_eq!(story.group.bytes(), empty + 2 * LONG, "the kind is kept");
    assert!(stored >= empty + growth, "{stored}");
    let again = Join { protocol_type: "k".repeat(LONG + 1), ..Join::default() };
    assert_eq!(story.group.growth_by_join(&again), THING_BYTES + 2, "the kind is there but for one letter");
}

/// While a generation is being made the last one is still in memory, whoever has gone since.
#[test]
fn who_has_left_counts_until_the_next_generation_is_in_the_log() {
    let (mut story, leader, other) = Story::stable();
    let large = |join: &mut Join| join.protocols[0].1 = Bytes::from(vec![7; 5000]);
    let mut joins = [story.ask_join(&leader.member_id, |_| {}), story.ask_join(&other.member_id, large)];
    let joined = joins.each_mut().map(|join| take(join).unwrap());
    let leads = joined.iter().find(|joined| joined.leader == joined.member_id).unwrap();
    take(&mut story.ask_sync(leads, &[])).unwrap();
    let both = story.group.bytes();
    let leaving = Leaving { member_id: other.member_id, instance_id: None };
    story.group.leave(&leaving, story.now, &mut story.out).unwrap();
    assert!(story.group.bytes() > both - 6000, "it goes once, not twice");
    let joined = take(&mut story.ask_join(&leader.member_id, |_| {})).unwrap();
    take(&mut story.ask_sync(&joined, &[])).unwrap();
    assert!(story.group.bytes() < both - 10_000);
}

/// A frame may have 100 MiB, of which a member is told by a few bytes.
#[test]
fn a_member_holds_no_more_of_a_frame_than_what_it_says() {
    let mut story = Story::new();
    let frame = Bytes::from(vec![7; 1 << 20]);
    let says = |join: &mut Join| join.protocols = vec![("range".to_owned(), frame.slice(5..9))];
    let mut joined = story.ask_join("", says);
    story.pass(FIRST_REBALANCE_DELAY);
    let joined = take(&mut joined).unwrap();
    let given = Sync {
        member_id: joined.member_id.clone(),
        generation: 1,
        assignments: vec![(joined.member_id.clone(), frame.slice(7..8))],
        ..Sync::default()
    };
    let (reply, mut answer) = oneshot::channel();
    story.group.sync(given, reply, story.now, &mut story.out);
    story.settle();
    assert_eq!((take(&mut answer).unwrap().assignment, &joined.members[0].metadata[..]), ("\x07".into(), &[7; 4][..]));
    let mut again = story.ask_join(&joined.member_id, says);
    assert!(take(&mut again).is_ok());
    assert!(frame.is_unique(), "somebody holds the frame");
}

/// A generation may have megabytes, and a round hundreds of requests.
#[test]
fn a_round_writes_a_group_once_however_often_it_changes() {
    let mut story = Story::new();
    let instance = |join: &mut Join| join.instance_id = Some("i".to_owned());
    let mut first = story.ask_join("", instance);
    story.pass(FIRST_REBALANCE_DELAY);
    let first = take(&mut first).unwrap();
    take(&mut story.ask_sync(&first, &[(&first.member_id, b"A")])).unwrap();
    story.out.entries.push(("another".to_owned(), Entry::Group(GroupRecord::default())));
    for _ in 0..9 {
        let mut join = Join { client_id: "c".to_owned(), protocol_type: "consumer".to_owned(), ..Join::default() };
        join.protocols =
            vec![("range".to_owned(), Bytes::from_static(b"r")), ("rr".to_owned(), Bytes::from_static(b"x"))];
        (join.session_timeout, join.rebalance_timeout) = (SESSION, REBALANCE);
        instance(&mut join);
        story.group.join(join, oneshot::channel().0, story.now, &mut story.out);
        let offsets = vec![offset(0, 5)];
        let id = story.group.leader.clone().unwrap();
        story.group.commit((&id, Some("i"), 1), offsets, story.now, &mut story.out).unwrap();
    }
    let kinds: Vec<_> =
        story.out.entries.iter().map(|(name, entry)| (&name[..], std::mem::discriminant(entry))).collect();
    let of = |entry: &Entry| std::mem::discriminant(entry);
    let (group, committed) = (of(&Entry::Group(GroupRecord::default())), of(&Entry::Committed(Vec::new())));
    let mut expected = vec![("another", group)];
    expected.extend([("g", committed); 8]);
    expected.extend([("g", group), ("g", committed)]);
    assert_eq!(kinds, expected);
}

#[test]
fn a_group_that_the_log_would_not_take_is_refused_its_last_member() {
    let mut story = Story::new();
    let large = |join: &mut Join| join.protocols[0].1 = Bytes::from(vec![7; GROUP_BYTES_MAX / 3]);
    let mut three = [story.ask_join("", large), story.ask_join("", large), story.ask_join("", large)];
    assert_eq!(take(&mut three[2]), Err(GroupError::Full));
    story.pass(FIRST_REBALANCE_DELAY);
    let joined = take(&mut three[0]).unwrap();
    let mut again = story.ask_join(&joined.member_id, large);
    assert!(take(&mut again).is_ok(), "who is in stays in");
    let many = |join: &mut Join| {
        join.protocols.extend((0..PROTOCOLS_MAX).map(|number| (number.to_string(), Bytes::new())));
    };
    assert_eq!(take(&mut story.ask_join("", many)), Err(GroupError::InconsistentProtocol));
}

#[test]
fn ids_are_promised_to_so_many_only_even_before_anybody_has_joined() {
    let mut story = Story::new();
    let mut promised = Vec::new();
    for _ in 0..MEMBERS_MAX {
        match take(&mut story.ask_join("", |join| join.id_required = true)) {
            Err(GroupError::MemberIdRequired(id)) => promised.push(id),
            other => panic!("{other:?}"),
        }
    }
    let mut more = story.ask_join("", |join| join.id_required = true);
    assert_eq!(take(&mut more), Err(GroupError::Full));
    // Who was promised a place gets it, the last one too.
    let mut joining: Vec<_> = promised.iter().map(|id| story.ask_join(id, |_| {})).collect();
    story.pass(FIRST_REBALANCE_DELAY);
    assert!(joining.iter_mut().all(|answer| take(answer).is_ok()));
}
