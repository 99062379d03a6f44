//! Produce over a fake log: ack levels, verdicts, and what is told when the outcome is not known.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;
use pontoon_raft::types::{BrokerId, GroupId, ReplicaId};

use super::*;
use crate::error::WriteOutcome;
use crate::partition::fake_log::{FakeLog, batch};
use crate::partition::{PartitionInstruments, PartitionOptions, Settings, UnacknowledgedRoom};
use crate::record_batch::{NewRecord, ProducerSequence, RecordBatchBuilder};

const SECOND: Duration = Duration::from_secs(1);

fn produced(base: u64, last: u64, leader_epoch: u64, duplicate: bool) -> Result<Produced> {
    Ok(Produced { base_offset: Offset(base), last_offset: Offset(last), leader_epoch, duplicate, append_time: None })
}

fn refused(result: Result<Produced>) -> (Code, WriteOutcome) {
    let error = result.unwrap_err();
    assert!(error.message.starts_with("orders/3: "), "{error}");
    (error.code, error.outcome)
}

#[tokio::test(start_paused = true)]
async fn acks_all_answers_once_committed() {
    let log = FakeLog::new();
    log.set(|state| state.commits = false);
    let partition = log.partition();
    let mut produce = Box::pin(partition.produce(batch(&[1, 2, 3], None), Acks::All, None, SECOND));
    assert!(produce.as_mut().now_or_never().is_none(), "flushed here is not committed");
    log.commit();
    assert_eq!(produce.await, produced(0, 2, 3, false));
    let stored = log.frame(0);
    let header = *RecordBatch::stored(stored.payload).unwrap().header();
    assert_eq!((header.base_offset, header.leader_epoch, stored.header.max_timestamp), (0, 3, 3));
}

#[tokio::test(start_paused = true)]
async fn acks_leader_answers_at_the_leaders_own_flush() {
    let log = FakeLog::new();
    log.set(|state| (state.commits, state.flushes) = (false, false));
    let partition = log.partition();
    let mut produce = Box::pin(partition.produce(batch(&[1, 2], None), Acks::Leader, None, SECOND));
    assert!(produce.as_mut().now_or_never().is_none(), "appended is not flushed");
    log.flush();
    assert_eq!(produce.now_or_never().unwrap(), produced(0, 1, 3, false));

    // A commit does not come without the answer either way.
    let produce = partition.produce(batch(&[1], None), Acks::Leader, None, SECOND);
    log.set(|state| state.commits = true);
    assert_eq!(produce.await, produced(2, 2, 3, false));
}

#[tokio::test(start_paused = true)]
async fn a_verdict_is_answered_only_after_its_entry_commits() {
    let log = FakeLog::new();
    let partition = log.partition();
    let original = partition.produce(batch(&[1, 2], Some((7, 0, 0))), Acks::All, None, SECOND).await;
    assert_eq!(original, produced(0, 1, 3, false));
    log.set(|state| state.commits = false);
    log.elect();
    for acks in [Acks::Leader, Acks::All, Acks::Every] {
        let mut retry = Box::pin(partition.produce(batch(&[1, 2], Some((7, 0, 0))), acks, None, SECOND));
        let mut wrong = Box::pin(partition.produce(batch(&[1], Some((7, 0, 9))), acks, None, SECOND));
        // Twice: the flush comes while the first poll is under way.
        for _ in 0..2 {
            assert!(retry.as_mut().now_or_never().is_none(), "{acks:?}");
            assert!(wrong.as_mut().now_or_never().is_none(), "{acks:?}");
        }
        log.commit();
        assert_eq!(retry.await, produced(0, 1, 3, true), "the original's offsets and epoch");
        assert_eq!(refused(wrong.await), (Code::OutOfOrderSequence, WriteOutcome::None));
    }
    log.depose();
    let deposed = partition.produce(batch(&[1], Some((7, 0, 9))), Acks::All, None, SECOND).await;
    assert_eq!(refused(deposed), (Code::OutcomeUnknown, WriteOutcome::Unknown), "a deposed leader refuses nothing");
}

#[tokio::test(start_paused = true)]
async fn verdicts_become_errors_that_name_the_values() {
    let log = FakeLog::new();
    let partition = log.partition();
    let produce = async |producer, if_match: Option<u64>| {
        partition.produce(batch(&[1], producer), Acks::All, if_match.map(Offset), SECOND).await
    };
    assert!(produce(Some((7, 2, 0)), Some(0)).await.is_ok());
    for (producer, if_match, code, message) in [
        (Some((7, 2, 5)), None, Code::OutOfOrderSequence, "producer 7 epoch 2 sent sequence 5; 1 is next"),
        (Some((7, 1, 1)), None, Code::ProducerFenced, "producer 7 epoch 1 was fenced by epoch 2"),
        (
            Some((8, 0, 4)),
            None,
            Code::UnknownProducer,
            "producer 8 epoch 0 has no state here that sequence 4 could follow",
        ),
        (Some((7, 2, 1)), Some(9), Code::OffsetMismatch, "the log end is 1, not 9"),
        (None, Some(0), Code::OffsetMismatch, "the log end is 1, not 0"),
    ] {
        let error = produce(producer, if_match).await.unwrap_err();
        assert_eq!((error.code, error.outcome), (code, WriteOutcome::None));
        assert_eq!(error.message, format!("orders/3: {message}"));
    }
    assert_eq!(produce(Some((7, 2, 0)), Some(0)).await, produced(0, 0, 3, true));
}

#[tokio::test(start_paused = true)]
async fn every_needs_every_voter_alive_before_it_proposes() {
    let log = FakeLog::new();
    let partition = log.partition_with(|| true, |broker| broker != BrokerId(3));
    let result = partition.produce(batch(&[1], None), Acks::Every, None, SECOND).await;
    assert!(result.as_ref().unwrap_err().message.contains("away: broker 3"));
    assert_eq!(refused(result), (Code::NotEnoughReplicas, WriteOutcome::None));
    assert_eq!(log.appended(), 0);
    assert!(partition.produce(batch(&[1], None), Acks::All, None, SECOND).await.is_ok(), "all does not");

    let learner_away = log.partition_with(|| true, |broker| broker != BrokerId(4));
    assert!(learner_away.produce(batch(&[1], None), Acks::Every, None, SECOND).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_topics_floor_raises_what_asks_for_less_and_lowers_nothing() {
    let log = FakeLog::new();
    let with = |acks_floor| {
        let options = log.options(|| true, |broker| broker != BrokerId(3));
        let settings = Settings { acks_floor, ..options.settings };
        Partition::new(log.clone(), PartitionOptions { settings, ..options })
    };
    for acks in [Acks::None, Acks::Leader, Acks::All, Acks::Every] {
        let result = with(Acks::Every).produce(batch(&[1], None), acks, None, SECOND).await;
        assert_eq!(refused(result), (Code::NotEnoughReplicas, WriteOutcome::None), "{acks:?}");
        assert_eq!(acks.at_least(Acks::None), acks);
        assert_eq!(Acks::Every.at_least(acks), Acks::Every);
    }
    assert_eq!(log.appended(), 0);
    let produced = with(Acks::All).produce(batch(&[1], None), Acks::None, None, SECOND).await.unwrap();
    assert_eq!((produced.leader_epoch, log.appended()), (log.get(|state| state.status.term), 1), "answered like all");
    assert!(with(Acks::All).produce(batch(&[1], None), Acks::Every, None, SECOND).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn records_have_the_time_of_the_partitions_clock_where_the_topic_says_so() {
    for (log_append_time, expected) in [(true, 1_700_000_000_123), (false, 5)] {
        let log = FakeLog::new();
        let options = log.options(|| true, |_| true);
        let settings = Settings { log_append_time, ..options.settings };
        let partition =
            Partition::new(log.clone(), PartitionOptions { settings, now: || 1_700_000_000_123, ..options });
        partition.produce(batch(&[4, 5], None), Acks::All, None, SECOND).await.unwrap();
        let stored = log.frame(0);
        assert_eq!(RecordBatch::stored(stored.payload).unwrap().header().max_timestamp, expected);
        assert_eq!(stored.header.max_timestamp, expected, "what retention goes by");
    }
}

#[tokio::test(start_paused = true)]
async fn every_waits_for_all_of_them_and_says_when_they_do_not_come() {
    let log = FakeLog::new();
    let partition = log.partition();
    let every = async |producer| partition.produce(batch(&[1, 2], producer), Acks::Every, None, SECOND).await;
    assert_eq!(every(Some((7, 0, 0))).await, produced(0, 1, 3, false));
    assert_eq!(log.get(|state| state.every_asked.clone()), [(1, 3)]);
    assert_eq!(every(Some((7, 0, 0))).await, produced(0, 1, 3, true));
    assert_eq!(log.get(|state| state.every_asked.clone())[1..], [(2, 3)], "behind the original, so it has it too");

    log.set(|state| state.every = Some(Err(ProposeError::Unknown("leadership was lost".to_owned()))));
    let lost = every(None).await;
    assert!(lost.as_ref().unwrap_err().message.contains("offsets 2 to 3 are not on every replica yet"));
    assert_eq!(refused(lost), (Code::NotEnoughReplicasAfterAppend, WriteOutcome::Unknown));
    log.set(|state| state.every = None);
    assert_eq!(refused(every(None).await), (Code::NotEnoughReplicasAfterAppend, WriteOutcome::Unknown));
    log.set(|state| state.commits = false);
    assert_eq!(refused(every(None).await), (Code::OutcomeUnknown, WriteOutcome::Unknown));
}

#[tokio::test(start_paused = true)]
async fn no_answer_within_the_timeout_is_unknown_and_is_not_sent_again() {
    let log = FakeLog::new();
    log.set(|state| (state.commits, state.flushes) = (false, false));
    let partition = log.partition();
    for (number, acks) in [Acks::All, Acks::Every, Acks::Leader].into_iter().enumerate() {
        let result = partition.produce(batch(&[1], None), acks, None, SECOND).await;
        assert_eq!(refused(result), (Code::OutcomeUnknown, WriteOutcome::Unknown));
        assert_eq!(log.appended(), number + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_majority_nothing_is_appended() {
    let log = FakeLog::new();
    log.set(|state| state.majority_dead = true);
    let partition = log.partition();
    for acks in [Acks::All, Acks::Every, Acks::Leader, Acks::None] {
        let result = partition.produce(batch(&[1], None), acks, None, SECOND).await;
        assert_eq!(refused(result), (Code::NoLeader, WriteOutcome::None), "{acks:?}");
    }
    assert_eq!(log.appended(), 0);
    log.set(|state| state.majority_dead = false);
    partition.produce(batch(&[1], None), Acks::All, None, SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refused_proposal_has_outcome_none_and_a_lost_one_unknown() {
    let log = FakeLog::new();
    let partition = log.partition();
    let known = Some((ReplicaId(12), BrokerId(2)));
    let stopped = ProposeError::Stopped { group: GroupId(5), why: "disk".to_owned() };
    for (error, code, outcome) in [
        (ProposeError::NotLeader { leader: known }, Code::NotLeader, WriteOutcome::None),
        (ProposeError::NotLeader { leader: None }, Code::NotLeader, WriteOutcome::None),
        (stopped, Code::NotReady, WriteOutcome::None),
        (ProposeError::Unknown("lost".to_owned()), Code::OutcomeUnknown, WriteOutcome::Unknown),
    ] {
        log.set(|state| state.propose_error = Some(error));
        for acks in [Acks::All, Acks::Every, Acks::Leader, Acks::None] {
            let result = partition.produce(batch(&[1], None), acks, None, SECOND).await;
            assert_eq!(refused(result), (code, outcome), "{acks:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn losing_leadership_under_way_is_unknown() {
    let log = FakeLog::new();
    log.set(|state| (state.commits, state.flushes) = (false, false));
    let partition = log.partition();
    for acks in [Acks::All, Acks::Leader] {
        let mut produce = Box::pin(partition.produce(batch(&[1], None), acks, None, SECOND));
        assert!(produce.as_mut().now_or_never().is_none());
        log.depose();
        assert_eq!(refused(produce.now_or_never().unwrap()), (Code::OutcomeUnknown, WriteOutcome::Unknown));
        log.commit();
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_until_there_is_room() {
    let log = FakeLog::new();
    let room = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&room);
    let partition = log.partition_with(move || seen.load(Ordering::SeqCst), |_| true);
    for acks in [Acks::All, Acks::Every, Acks::Leader, Acks::None] {
        let result = partition.produce(batch(&[1], None), acks, None, SECOND).await;
        assert_eq!(refused(result), (Code::StorageFull, WriteOutcome::None));
    }
    assert_eq!(log.appended(), 0);
    room.store(true, Ordering::SeqCst);
    assert!(partition.produce(batch(&[1], None), Acks::All, None, SECOND).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn acks_none_answers_at_once_and_keeps_the_order_of_the_calls() {
    let log = FakeLog::new();
    log.set(|state| (state.commits, state.flushes) = (false, false));
    let partition = log.partition();
    for sequence in 0..20 {
        let produce = partition.produce(batch(&[1], Some((7, 0, sequence))), Acks::None, None, SECOND);
        assert_eq!(produce.now_or_never().unwrap(), produced(0, 0, 0, false));
    }
    let kinds: Vec<_> = (0..20).map(|at| log.frame(at).header.offset_span).collect();
    assert_eq!(kinds, [1; 20], "none was out of order");
}

/// One of 3 MiB.
fn large(producer: Option<(i64, i16, i32)>) -> RecordBatch {
    let mut builder = RecordBatchBuilder::new(Default::default());
    for _ in 0..3 {
        builder.push(&NewRecord { value: Some(vec![0; 1 << 20].into()), ..Default::default() }).unwrap();
    }
    let producer = producer.map(|(producer_id, epoch, sequence)| ProducerSequence { producer_id, epoch, sequence });
    builder.build(producer).unwrap()
}

/// There is room for who comes after a batch that waited for it and has not yet been on a processor again.
#[tokio::test(start_paused = true)]
async fn a_batch_that_waits_for_room_is_not_overtaken() {
    for acks in [Acks::None, Acks::Leader, Acks::All] {
        let log = FakeLog::new();
        log.set(|state| state.commits = false);
        let partition = log.partition();
        for _ in 0..2 {
            partition.produce(large(None), Acks::None, None, SECOND).await.unwrap();
        }
        let mut waits = Box::pin(partition.produce(large(Some((7, 0, 0))), Acks::None, None, SECOND));
        assert!(waits.as_mut().now_or_never().is_none(), "there is room for two");
        // Who gives up holds nobody up.
        let mut given_up = Box::pin(partition.produce(batch(&[1], None), acks, None, SECOND));
        assert!(given_up.as_mut().now_or_never().is_none());
        drop(given_up);
        log.set(|state| state.commits = true);
        log.commit();
        while partition.unacknowledged.free() < 4 << 20 {
            tokio::task::yield_now().await;
        }
        let mut later = Box::pin(partition.produce(batch(&[1], Some((7, 0, 3))), acks, None, SECOND));
        assert!(later.as_mut().now_or_never().is_none(), "{acks:?}");
        assert!(waits.await.is_ok() && later.await.is_ok(), "{acks:?}");
        let spans: Vec<_> = (0..log.appended()).map(|at| log.frame(at).header.offset_span).collect();
        assert_eq!(spans, [3, 3, 3, 1], "{acks:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn acks_none_takes_on_no_more_than_its_bound() {
    let log = FakeLog::new();
    log.set(|state| (state.commits, state.flushes) = (false, false));
    let partition = log.partition();
    let large = || large(None);
    assert!(partition.produce(large(), Acks::None, None, SECOND).await.is_ok());
    assert!(partition.produce(large(), Acks::None, None, SECOND).await.is_ok());
    let third = partition.produce(large(), Acks::None, None, SECOND).await;
    assert_eq!(refused(third), (Code::TooManyRequests, WriteOutcome::None));
    assert_eq!(log.appended(), 2);
    log.commit();
    assert!(partition.produce(large(), Acks::None, None, SECOND).await.is_ok(), "there is room again");
}

/// However many partitions they go to: each takes on some, and a broker may lead thousands.
#[tokio::test(start_paused = true)]
async fn acks_none_takes_on_no_more_than_there_is_room_for_in_all_partitions() {
    let unacknowledged = UnacknowledgedRoom::new(8 << 20);
    let logs = [FakeLog::new(), FakeLog::new(), FakeLog::new()];
    let partitions = logs.each_ref().map(|log| {
        log.set(|state| (state.commits, state.flushes) = (false, false));
        let options = log.options(|| true, |_| true);
        Partition::new(log.clone(), PartitionOptions { unacknowledged: unacknowledged.clone(), ..options })
    });
    let [first, second, third] = &partitions;
    first.produce(large(None), Acks::None, None, SECOND).await.unwrap();
    second.produce(large(None), Acks::None, None, SECOND).await.unwrap();
    let produced = third.produce(large(None), Acks::None, None, SECOND).await;
    assert_eq!(refused(produced), (Code::TooManyRequests, WriteOutcome::None));
    assert_eq!(logs.each_ref().map(FakeLog::appended), [1, 1, 0]);
    assert!(third.produce(batch(&[1], None), Acks::None, None, SECOND).await.is_ok(), "who needs little has it");
    logs[0].commit();
    third.produce(large(None), Acks::None, None, SECOND).await.unwrap();
    logs.iter().for_each(FakeLog::commit);
    // What is larger than all of it goes by itself.
    let options = PartitionOptions { unacknowledged: UnacknowledgedRoom::new(1), ..logs[0].options(|| true, |_| true) };
    Partition::new(logs[0].clone(), options).produce(large(None), Acks::None, None, SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_the_log_could_not_read_back_is_refused() {
    let log = FakeLog::new();
    let mut bytes = vec![0; pontoon_raft::log::frame::FRAME_PAYLOAD_BYTES_MAX as usize + 1];
    bytes[16] = 2; // The magic.
    let batch = RecordBatch::stored(bytes.into()).unwrap();
    let produced = log.partition().produce(batch, Acks::All, None, SECOND).await;
    assert_eq!(refused(produced), (Code::RequestTooLarge, WriteOutcome::None));
    assert_eq!(log.appended(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_acknowledged_is_counted_by_its_code_whichever_door_it_came_through() {
    let broker = BrokerId(4_000_001);
    let recorder = crate::telemetry::recorder::recorder();
    let log = FakeLog::new();
    log.set(|state| state.commits = false);
    let instruments = Arc::new(PartitionInstruments::new(broker));
    let partition = Partition::new(log.clone(), PartitionOptions { instruments, ..log.options(|| true, |_| true) });
    let lost = partition.produce(batch(&[1], None), Acks::All, None, SECOND).await;
    assert_eq!(refused(lost), (Code::OutcomeUnknown, WriteOutcome::Unknown));
    let text = recorder.render(Some(broker));
    for (code, count) in [("OUTCOME_UNKNOWN", 1), ("STORAGE_FULL", 0)] {
        let line = format!("pontoon_produce_errors_total{{broker=\"{broker}\",code=\"{code}\"}} {count}\n");
        assert!(text.contains(&line), "{line} is missing: {text}");
    }
}
