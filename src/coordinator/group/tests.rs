//! A group's life, told step by step with time in hand. [`room`]: what it may take.

mod room;

use bytes::Bytes;
use tokio::sync::oneshot::Receiver;

use super::*;
use crate::coordinator::entry::CommittedOffset;
use crate::coordinator::{Join, Joined, Leaving, Sync, Synced};

const SESSION: Duration = Duration::from_secs(10);
const REBALANCE: Duration = Duration::from_secs(60);
const MEMBERS_MAX: usize = 50;

/// A group, the time, and what has been written of it.
struct Story {
    group: Group,
    now: Instant,
    out: Outbox,
    log: Vec<Entry>,
}

impl Story {
    fn new() -> Self {
        Self { group: Group::new("g", MEMBERS_MAX), now: Instant::now(), out: Outbox::default(), log: Vec::new() }
    }

    /// The round ends: entries are in the log, answers go out.
    fn settle(&mut self) {
        self.log.extend(self.out.entries.drain(..).map(|(_, entry)| entry));
        self.out.send();
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.group.tick(self.now, &mut self.out);
        self.settle();
    }

    fn ask_join(&mut self, id: &str, change: impl FnOnce(&mut Join)) -> Receiver<Result<Joined, GroupError>> {
        let mut join = Join {
            member_id: id.to_owned(),
            client_id: "c".to_owned(),
            session_timeout: SESSION,
            rebalance_timeout: REBALANCE,
            protocol_type: "consumer".to_owned(),
            protocols: vec![
                ("range".to_owned(), Bytes::from_static(b"r")),
                ("rr".to_owned(), Bytes::from_static(b"x")),
            ],
            ..Join::default()
        };
        change(&mut join);
        let (reply, answer) = oneshot::channel();
        self.group.join(join, reply, self.now, &mut self.out);
        self.settle();
        answer
    }

    fn ask_sync(&mut self, joined: &Joined, to: &[(&str, &'static [u8])]) -> Receiver<Result<Synced, GroupError>> {
        let sync = Sync {
            member_id: joined.member_id.clone(),
            generation: joined.generation,
            assignments: to.iter().map(|(id, bytes)| ((*id).to_owned(), Bytes::from_static(bytes))).collect(),
            ..Sync::default()
        };
        let (reply, answer) = oneshot::channel();
        self.group.sync(sync, reply, self.now, &mut self.out);
        self.settle();
        answer
    }

    fn heartbeat(&mut self, joined: &Joined) -> Result<(), GroupError> {
        self.group.heartbeat(&joined.member_id, None, joined.generation, self.now)
    }

    /// Two members with an assignment: the leader and the other.
    fn stable() -> (Self, Joined, Joined) {
        let mut story = Self::new();
        let (mut one, mut two) = (story.ask_join("", |_| {}), story.ask_join("", |_| {}));
        story.pass(FIRST_REBALANCE_DELAY);
        let (one, two) = (take(&mut one).unwrap(), take(&mut two).unwrap());
        let (leader, other) = if one.leader == one.member_id { (one, two) } else { (two, one) };
        let mut waiting = story.ask_sync(&other, &[]);
        assert!(waiting.try_recv().is_err(), "not before the leader has come");
        let to = [(leader.member_id.clone(), b"A"), (other.member_id.clone(), b"B")];
        let mut synced = story.ask_sync(&leader, &[(&to[0].0, to[0].1), (&to[1].0, to[1].1)]);
        assert_eq!(take(&mut synced).unwrap().assignment, "A");
        assert_eq!(take(&mut waiting).unwrap().assignment, "B");
        assert_eq!(story.group.state, GroupState::Stable);
        (story, leader, other)
    }
}

fn take<T>(answer: &mut Receiver<Result<T, GroupError>>) -> Result<T, GroupError> {
    answer.try_recv().expect("there is no answer")
}

fn offset(partition: u32, offset: i64) -> CommittedOffset {
    CommittedOffset {
        topic: "t".into(),
        topic_id: 1,
        partition,
        offset,
        leader_epoch: -1,
        metadata: String::new(),
        time_ms: crate::clock::now_ms(),
    }
}

#[test]
fn members_gather_get_assignments_and_are_in_the_log() {
    let (story, leader, other) = Story::stable();
    assert_eq!((leader.generation, leader.members.len(), other.members.len()), (1, 2, 0));
    assert_eq!((leader.protocol.as_str(), leader.members[0].metadata.as_ref()), ("range", &b"r"[..]));
    let [Entry::Group(record)] = &story.log[..] else { panic!("{:?}", story.log) };
    assert_eq!((record.generation, record.members.len(), &record.leader), (1, 2, &Some(leader.member_id)));
}

#[test]
fn a_group_comes_back_from_the_log_as_its_last_generation_was() {
    let (mut story, leader, other) = Story::stable();
    let mut third = story.ask_join("", |_| {}); // A rebalance that the failover interrupts.
    let mut stored = BTreeMap::new();
    story.log.into_iter().for_each(|entry| super::super::entry::apply(&mut stored, "g".to_owned(), entry));
    let group = Group::restore("g", MEMBERS_MAX, stored.remove("g").unwrap(), story.now);
    let mut story = Story { group, now: story.now, out: Outbox::default(), log: Vec::new() };
    assert!(third.try_recv().is_err());
    assert_eq!((story.group.state, story.group.generation), (GroupState::Stable, 1));
    assert_eq!((story.heartbeat(&leader), story.heartbeat(&other)), (Ok(()), Ok(())));
    let mut synced = story.ask_sync(&other, &[]);
    assert_eq!(take(&mut synced).unwrap().assignment, "B");
    // Who is not heard of is gone, as everybody.
    story.pass(SESSION);
    assert_eq!(story.group.state, GroupState::Empty);
}

#[test]
fn a_newcomer_starts_a_rebalance_and_old_members_are_told_by_their_heartbeat() {
    let (mut story, leader, other) = Story::stable();
    let mut new = story.ask_join("", |_| {});
    assert!(new.try_recv().is_err());
    assert_eq!(story.heartbeat(&leader), Err(GroupError::RebalanceInProgress));
    let mut first = story.ask_join(&leader.member_id, |_| {});
    assert!(first.try_recv().is_err(), "the other has not come yet");
    let mut second = story.ask_join(&other.member_id, |_| {});
    let first = take(&mut first).unwrap();
    assert_eq!((first.generation, &first.leader, first.members.len()), (2, &leader.member_id, 3));
    assert_eq!(take(&mut second).unwrap().generation, 2);
    assert_eq!(take(&mut new).unwrap().generation, 2);
    assert_eq!(story.heartbeat(&leader), Err(GroupError::IllegalGeneration));
    assert_eq!(story.heartbeat(&first), Ok(()));
}

#[test]
fn who_does_not_join_again_in_time_is_left_behind() {
    let (mut story, leader, other) = Story::stable();
    let mut new = story.ask_join("", |join| join.session_timeout = REBALANCE * 2);
    let mut first = story.ask_join(&leader.member_id, |join| join.session_timeout = REBALANCE * 2);
    story.pass(SESSION - Duration::from_secs(1));
    assert_eq!(story.heartbeat(&other), Err(GroupError::RebalanceInProgress));
    assert!(first.try_recv().is_err());
    for _ in 0..7 {
        let _ = story.heartbeat(&other); // It lives, and does not join.
        story.pass(SESSION - Duration::from_secs(1));
    }
    assert_eq!(take(&mut first).unwrap().members.len(), 2);
    assert_eq!(take(&mut new).unwrap().generation, 2);
    assert_eq!(story.heartbeat(&other), Err(GroupError::UnknownMember));
}

#[test]
fn a_member_that_is_silent_or_leaves_causes_a_rebalance() {
    for silent in [true, false] {
        let (mut story, leader, other) = Story::stable();
        if silent {
            story.pass(SESSION - Duration::from_secs(1));
            story.heartbeat(&leader).unwrap();
            story.pass(Duration::from_secs(1));
        } else {
            let leaving = Leaving { member_id: other.member_id.clone(), instance_id: None };
            assert_eq!(story.group.leave(&leaving, story.now, &mut story.out), Ok(()));
            assert_eq!(story.group.leave(&leaving, story.now, &mut story.out), Err(GroupError::UnknownMember));
        }
        assert_eq!(story.heartbeat(&leader), Err(GroupError::RebalanceInProgress));
        assert_eq!(story.heartbeat(&other), Err(GroupError::UnknownMember));
        let mut again = story.ask_join(&leader.member_id, |_| {});
        assert_eq!(take(&mut again).unwrap().members.len(), 1);
    }
}

#[test]
fn a_leader_that_brings_no_assignment_is_dropped() {
    let mut story = Story::new();
    let mut joins = [
        story.ask_join("", |j| j.session_timeout = REBALANCE * 3),
        story.ask_join("", |j| j.session_timeout = REBALANCE * 3),
    ];
    story.pass(FIRST_REBALANCE_DELAY);
    let joined = joins.each_mut().map(|join| take(join).unwrap());
    let (leader, other) =
        if joined[0].members.is_empty() { (&joined[1], &joined[0]) } else { (&joined[0], &joined[1]) };
    let mut waiting = story.ask_sync(other, &[]);
    story.pass(REBALANCE);
    assert_eq!(take(&mut waiting), Err(GroupError::RebalanceInProgress));
    assert_eq!(story.heartbeat(leader), Err(GroupError::UnknownMember));
    let mut again = story.ask_join(&other.member_id, |_| {});
    assert_eq!(take(&mut again).unwrap().leader, other.member_id);
}

#[test]
fn new_members_of_newer_clients_get_their_id_first() {
    let mut story = Story::new();
    let mut first = story.ask_join("", |join| join.id_required = true);
    let Err(GroupError::MemberIdRequired(id)) = take(&mut first) else { panic!() };
    assert!(id.starts_with("c-"));
    let mut second = story.ask_join(&id, |join| join.id_required = true);
    story.pass(FIRST_REBALANCE_DELAY);
    assert_eq!(take(&mut second).unwrap().member_id, id);
    assert_eq!(take(&mut story.ask_join("made-up", |_| {})), Err(GroupError::UnknownMember));
    // A promise that is not kept is forgotten, and the group with it.
    let mut story = Story::new();
    drop(story.ask_join("", |join| join.id_required = true));
    assert!(!story.group.is_nothing());
    story.pass(SESSION);
    assert!(story.group.is_nothing() && story.log.is_empty());
}

#[test]
fn a_static_member_keeps_its_place_over_a_restart() {
    let mut story = Story::new();
    let instance = |join: &mut Join| join.instance_id = Some("i".to_owned());
    let mut first = story.ask_join("", instance);
    story.pass(FIRST_REBALANCE_DELAY);
    let first = take(&mut first).unwrap();
    take(&mut story.ask_sync(&first, &[(&first.member_id.clone(), b"A")])).unwrap();
    for may_skip in [true, false] {
        let before = story.group.leader.clone().unwrap();
        let mut again = story.ask_join("", |join| {
            instance(join);
            join.may_skip_assignment = may_skip;
        });
        let again = take(&mut again).unwrap();
        assert_eq!((again.generation, again.skip_assignment), (1, may_skip), "no rebalance");
        assert_ne!(again.member_id, before);
        assert_eq!(again.leader == again.member_id, may_skip, "it must not take itself for one that assigns");
        assert_eq!(take(&mut story.ask_sync(&again, &[])).unwrap().assignment, "A");
        let fenced = story.group.heartbeat(&before, Some("i"), 1, story.now);
        assert_eq!(fenced, Err(GroupError::FencedInstance));
    }
    assert_eq!(story.log.len(), 3, "the new ids are in the log");
    // Another subscription is another thing.
    let mut other = story.ask_join("", |join| {
        instance(join);
        join.protocols[0].1 = Bytes::from_static(b"other");
    });
    assert_eq!(take(&mut other).unwrap().generation, 2);
}

/// What a consumer says of itself: its topics, and then its own business, such as the generation that it was in.
fn subscription(topic: &'static str, generation: u8) -> Bytes {
    [&[0, 3, 0, 0, 0, 1, 0, topic.len() as u8][..], topic.as_bytes(), &[255, 255, 255, 255, 0, 0, 0, generation]]
        .concat()
        .into()
}

#[test]
fn a_static_members_restart_is_none_of_the_others_business_whatever_it_owned_before() {
    let mut story = Story::new();
    let says = |topic, generation| {
        move |join: &mut Join| {
            join.instance_id = Some("i".to_owned());
            join.protocols = vec![("range".to_owned(), subscription(topic, generation))];
        }
    };
    let mut first = story.ask_join("", says("t", 0));
    story.pass(FIRST_REBALANCE_DELAY);
    let first = take(&mut first).unwrap();
    take(&mut story.ask_sync(&first, &[(&first.member_id.clone(), b"A")])).unwrap();
    let mut again = story.ask_join("", says("t", 9));
    let again = take(&mut again).unwrap();
    assert_eq!(again.generation, 1, "no rebalance");
    assert_eq!(take(&mut story.ask_sync(&again, &[])).unwrap().assignment, "A");
    let mut other = story.ask_join("", says("u", 9));
    assert_eq!(take(&mut other).unwrap().generation, 2, "another topic is another thing");
}

#[test]
fn a_static_member_that_comes_back_while_an_assignment_is_awaited_is_assigned_something() {
    let mut story = Story::new();
    let instance = |name: &'static str| move |join: &mut Join| join.instance_id = Some(name.to_owned());
    let (mut one, mut two) = (story.ask_join("", instance("1")), story.ask_join("", instance("2")));
    story.pass(FIRST_REBALANCE_DELAY);
    let (one, two) = (take(&mut one).unwrap(), take(&mut two).unwrap());
    let (leader, name) = if one.leader == one.member_id { (one, "2") } else { (two, "1") };
    // Its answer was lost, or its process was: the leader does not know its new id.
    let mut again = story.ask_join("", instance(name));
    assert!(again.try_recv().is_err(), "the others join again first");
    assert_eq!(take(&mut story.ask_sync(&leader, &[])), Err(GroupError::RebalanceInProgress));
    let rejoin = |join: &mut Join| join.instance_id = Some(if name == "2" { "1" } else { "2" }.to_owned());
    let leader = take(&mut story.ask_join(&leader.member_id, rejoin)).unwrap();
    let again = take(&mut again).unwrap();
    assert_eq!((leader.generation, again.generation, leader.members.len()), (2, 2, 2));
    assert!(leader.members.iter().any(|member| member.id == again.member_id));
}

/// It is told its new id with the new generation, and the coordinator may be gone before that generation is in the log.
#[test]
fn a_static_member_that_comes_back_during_a_rebalance_is_known_by_its_new_id_after_a_failover() {
    let instance = |name: &'static str| move |join: &mut Join| join.instance_id = Some(name.to_owned());
    for leads in [true, false] {
        let mut story = Story::new();
        let (mut one, mut two) = (story.ask_join("", instance("1")), story.ask_join("", instance("2")));
        story.pass(FIRST_REBALANCE_DELAY);
        let (one, two) = (take(&mut one).unwrap(), take(&mut two).unwrap());
        let (leader, name) = if one.leader == one.member_id { (&one, "1") } else { (&two, "2") };
        assert!(take(&mut story.ask_sync(leader, &[(&one.member_id, b"A"), (&two.member_id, b"B")])).is_ok());
        // A third joins, and one of them is restarted meanwhile.
        let mut third = story.ask_join("", |_| {});
        let back = if leads == (name == "1") { "1" } else { "2" };
        let (old, other, other_name) = if back == "1" { (&one, &two, "2") } else { (&two, &one, "1") };
        let mut again = story.ask_join("", instance(back));
        assert!(take(&mut story.ask_join(&other.member_id, instance(other_name))).is_ok());
        let again = take(&mut again).unwrap();
        assert!(take(&mut third).is_ok() && again.generation == 2);

        let mut stored = BTreeMap::new();
        story.log.into_iter().for_each(|entry| super::super::entry::apply(&mut stored, "g".to_owned(), entry));
        let group = Group::restore("g", MEMBERS_MAX, stored.remove("g").unwrap(), story.now);
        let mut story = Story { group, now: story.now, out: Outbox::default(), log: Vec::new() };
        assert_eq!((story.group.state, story.group.generation), (GroupState::Stable, 1));
        assert_eq!(story.group.leader.as_ref() == Some(&again.member_id), leads);
        let mut fenced = story.ask_join(&old.member_id, instance(back));
        assert_eq!(take(&mut fenced), Err(GroupError::FencedInstance));
        let mut joined = story.ask_join(&again.member_id, instance(back));
        if leads {
            assert!(joined.try_recv().is_err(), "a leader that joins again wants a new generation");
            assert!(take(&mut story.ask_join(&other.member_id, instance(other_name))).is_ok());
        }
        assert_eq!(take(&mut joined).unwrap().member_id, again.member_id);
    }
}

#[test]
fn protocols_must_have_something_in_common() {
    let (mut story, ..) = Story::stable();
    let only = |name: &str| vec![(name.to_owned(), Bytes::new())];
    let mut wrong = |change: &dyn Fn(&mut Join)| take(&mut story.ask_join("", |join| change(join)));
    assert_eq!(wrong(&|join| join.protocols = only("sticky")), Err(GroupError::InconsistentProtocol));
    assert_eq!(wrong(&|join| join.protocol_type = "connect".into()), Err(GroupError::InconsistentProtocol));
    assert_eq!(wrong(&|join| join.protocols.clear()), Err(GroupError::InconsistentProtocol));
}

#[test]
fn offsets_are_taken_from_members_of_the_present_generation() {
    let (mut story, leader, _) = Story::stable();
    let commit = |story: &mut Story, id: &str, generation| {
        let (now, out) = (story.now, &mut story.out);
        story.group.commit((id, None, generation), vec![offset(0, 5)], now, out)
    };
    assert_eq!(commit(&mut story, &leader.member_id, 1), Ok(()));
    assert_eq!(commit(&mut story, &leader.member_id, 0), Err(GroupError::IllegalGeneration));
    assert_eq!(commit(&mut story, "nobody", 1), Err(GroupError::UnknownMember));
    assert_eq!(commit(&mut story, "", -1), Err(GroupError::UnknownMember), "from outside, while there are members");
    story.settle();
    assert!(matches!(story.log.last(), Some(Entry::Committed(_))));
    assert_eq!(story.group.committed(None).len(), 1);
    assert_eq!(story.group.committed(Some(&[("t".into(), vec![9])])), []);
    let results = story.group.remove_offsets(&[("t".into(), vec![0])], &mut story.out);
    assert_eq!(results, Ok(vec![Err(GroupError::Subscribed)]), "the members' subscriptions cannot be read");
    let kind = std::mem::replace(&mut story.group.protocol_type, "connect".to_owned());
    let of_another_kind = story.group.remove_offsets(&[("t".into(), vec![0])], &mut story.out);
    assert_eq!(of_another_kind, Err(GroupError::NonEmpty));
    story.group.protocol_type = kind;
    assert_eq!(story.group.delete(&mut story.out), Err(GroupError::NonEmpty));
    story.pass(SESSION);
    assert_eq!(commit(&mut story, "", -1), Ok(()));
    // Who reads by assignment may call itself something, without being a member.
    let (now, out) = (story.now, &mut story.out);
    assert_eq!(story.group.commit(("", Some("one"), -1), vec![offset(0, 6)], now, out), Ok(()));
    assert_eq!(story.group.commit(("me", None, -1), vec![offset(0, 5)], now, out), Ok(()));
    assert_eq!(story.group.remove_offsets(&[("t".into(), vec![0])], &mut story.out), Ok(vec![Ok(())]));
    assert_eq!(story.group.committed(None), []);
}

#[test]
fn offsets_expire_only_where_nobody_is() {
    let (mut story, leader, _) = Story::stable();
    let (now, far) = (story.now, crate::clock::now_ms() + 1_000_000);
    story.group.commit((&leader.member_id, None, 1), vec![offset(0, 5)], now, &mut story.out).unwrap();
    assert!(!story.group.expire(far, far, &mut story.out));
    assert_eq!(story.group.committed(None).len(), 1);
    story.pass(SESSION);
    assert!(!story.group.expire(0, 0, &mut story.out));
    assert_eq!(story.group.committed(None).len(), 1);
    assert!(story.group.expire(far, far, &mut story.out));
    story.settle();
    assert!(matches!(&story.log[story.log.len() - 2..], [Entry::OffsetsRemoved(_), Entry::GroupRemoved]));
}

/// KIP-211. What a coordinator remembers must not depend on how long it has been one.
#[test]
fn offsets_of_who_is_no_member_expire_one_by_one_and_as_after_a_restart() {
    const HOUR: i64 = 3_600_000;
    let today = crate::clock::now_ms();
    let at = |partition, time_ms| CommittedOffset { time_ms, ..offset(partition, 5) };
    let mut left = Story::stable().0;
    left.pass(SESSION);
    for (mut story, kept) in [(Story::new(), vec![1]), (left, vec![0, 1])] {
        let offsets = vec![at(0, today - 2 * HOUR), at(1, today)];
        story.group.commit(("", None, -1), offsets, story.now, &mut story.out).unwrap();
        story.settle();
        let mut stored = BTreeMap::new();
        story.log.into_iter().for_each(|entry| super::super::entry::apply(&mut stored, "g".to_owned(), entry));
        let restored = Group::restore("g", MEMBERS_MAX, stored.remove("g").unwrap(), story.now);
        for mut group in [story.group, restored] {
            assert!(!group.expire(today - HOUR, today - HOUR, &mut Outbox::default()));
            let partitions: Vec<u32> = group.committed(None).iter().map(|offset| offset.partition).collect();
            assert_eq!(partitions, kept, "of a group that members have left for less than an hour all are kept");
        }
    }
}

/// A group that reads whatever is there, while topics come and go, must not remember them all for ever.
#[test]
fn offsets_of_topics_that_no_member_wants_expire_too() {
    let mut story = Story::new();
    let mut joined = story.ask_join("", |join| {
        join.protocols = vec![("range".to_owned(), subscription("t", 0))];
    });
    story.pass(FIRST_REBALANCE_DELAY);
    let joined = take(&mut joined).unwrap();
    let of = |topic: &str| CommittedOffset { topic: topic.to_owned(), ..offset(0, 5) };
    let commit = |story: &mut Story| {
        let (by, now) = ((joined.member_id.as_str(), None, 1), story.now);
        story.group.commit(by, vec![of("t"), of("gone")], now, &mut story.out)
    };
    take(&mut story.ask_sync(&joined, &[(&joined.member_id, b"A")])).unwrap();
    commit(&mut story).unwrap();
    assert!(!story.group.expire(0, 0, &mut story.out));
    assert_eq!(story.group.committed(None).len(), 2, "they are not old");
    let far = super::super::now_ms() + 1_000_000;
    assert!(!story.group.expire(far, far, &mut story.out));
    let topics: Vec<String> = story.group.committed(None).into_iter().map(|offset| offset.topic).collect();
    assert_eq!(topics, ["t"]);
    story.settle();
    assert_eq!(story.log.last(), Some(&Entry::OffsetsRemoved(vec![("gone".to_owned(), 0)])));
}

#[test]
fn a_group_that_never_had_an_offset_goes_by_itself() {
    let (mut story, ..) = Story::stable();
    story.pass(SESSION);
    assert_eq!(story.group.state, GroupState::Empty);
    assert!(!story.group.expire(0, 0, &mut story.out), "not at once");
    // Long before offsets would.
    assert!(story.group.expire(0, super::super::now_ms() + 1, &mut story.out));
    story.settle();
    assert_eq!(story.log.last(), Some(&Entry::GroupRemoved));
}

#[test]
fn a_commit_of_nothing_makes_no_group() {
    let mut story = Story::new();
    let now = story.now;
    assert_eq!(story.group.commit(("", None, -1), Vec::new(), now, &mut story.out), Ok(()));
    story.settle();
    assert!(story.group.is_nothing() && story.log.is_empty());
}

#[test]
fn a_member_that_asks_for_weeks_is_waited_for_an_hour() {
    let (mut story, leader, other) = Story::stable();
    let weeks = |join: &mut Join| {
        join.rebalance_timeout = Duration::from_millis(i32::MAX as u64);
        join.session_timeout = 2 * REBALANCE_TIMEOUT_MAX;
    };
    let mut first = story.ask_join(&leader.member_id, weeks);
    let mut second = story.ask_join(&other.member_id, weeks);
    let (first, _) = (take(&mut first).unwrap(), take(&mut second).unwrap());
    take(&mut story.ask_sync(&first, &[])).unwrap();
    let mut again = story.ask_join(&first.member_id, weeks);
    story.pass(REBALANCE_TIMEOUT_MAX - Duration::from_secs(1));
    assert!(again.try_recv().is_err(), "the other may still come");
    story.pass(Duration::from_secs(1));
    let again = take(&mut again).unwrap();
    assert_eq!((again.generation, again.members.len()), (3, 1));
}

#[test]
fn what_is_written_once_more_tells_the_same() {
    let (mut story, leader, _) = Story::stable();
    let now = story.now;
    story.group.commit((&leader.member_id, None, 1), vec![offset(0, 5), offset(1, 6)], now, &mut story.out).unwrap();
    drop(story.ask_join("", |_| {})); // A generation in the making is not told.
    let tell = |entries: Vec<Entry>| {
        let mut stored = BTreeMap::new();
        entries.into_iter().for_each(|entry| super::super::entry::apply(&mut stored, "g".to_owned(), entry));
        stored
    };
    assert_eq!(tell(story.group.rewrite()), tell(story.log));
}

#[test]
fn who_is_waited_for_in_vain_keeps_nobody_awake() {
    let mut story = Story::new();
    let mut promised = story.ask_join("", |join| join.id_required = true);
    assert!(matches!(take(&mut promised), Err(GroupError::MemberIdRequired(_))));
    let mut joined = story.ask_join("", |_| {});
    story.pass(FIRST_REBALANCE_DELAY);
    assert!(joined.try_recv().is_err(), "who was promised a place is waited for");
    assert!(story.group.next_deadline().unwrap() > story.now);
    story.pass(SESSION);
    assert!(take(&mut joined).is_ok());
    // A static member that does not join again, and asked for no time to do so.
    let mut story = Story::new();
    let impatient = |join: &mut Join| join.rebalance_timeout = Duration::ZERO;
    let mut first = story.ask_join("", |join| {
        impatient(join);
        join.instance_id = Some("i".to_owned());
    });
    story.pass(FIRST_REBALANCE_DELAY);
    let first = take(&mut first).unwrap();
    assert!(take(&mut story.ask_sync(&first, &[])).is_ok());
    let other = take(&mut story.ask_join("", impatient)).unwrap();
    let leaving = Leaving { member_id: other.member_id, instance_id: None };
    story.group.leave(&leaving, story.now, &mut story.out).unwrap();
    story.settle();
    assert_eq!(story.group.state, GroupState::PreparingRebalance);
    assert!(story.group.next_deadline().unwrap() > story.now);
}
