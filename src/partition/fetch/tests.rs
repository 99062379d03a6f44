//! Fetch over a fake log: where it begins, when it waits, and which ends are confirmed.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;

use super::*;
use crate::error::WriteOutcome;
use crate::partition::fake_log::{FakeLog, batch};
use crate::record_batch::RecordBatch;

fn fetch(from: FetchFrom) -> Fetch {
    Fetch { from, bytes_max: 1 << 20, wait: Duration::ZERO, consistency: Consistency::Committed }
}

fn at(offset: u64) -> Fetch {
    fetch(FetchFrom::Offset(Offset(offset)))
}

fn linearizable(fetch: Fetch) -> Fetch {
    Fetch { consistency: Consistency::Linearizable, ..fetch }
}

fn waiting(fetch: Fetch) -> Fetch {
    Fetch { wait: Duration::from_secs(30), ..fetch }
}

/// Three batches: offsets 0–1, 2–4, 5; timestamps 10, 20; 40, 30, 35; 40.
fn log() -> FakeLog {
    let log = FakeLog::new();
    log.push(batch(&[10, 20], None));
    log.push(batch(&[40, 30, 35], None));
    log.push(batch(&[40], None));
    log
}

fn bases(fetched: &Fetched) -> Vec<u64> {
    fetched.batches.iter().map(|b: &Bytes| RecordBatch::stored(b.clone()).unwrap().header().base_offset).collect()
}

/// Start, the batches' base offsets, next.
fn shape(fetched: Result<Fetched>) -> (u64, Vec<u64>, u64) {
    let fetched = fetched.unwrap();
    (fetched.start_offset.0, bases(&fetched), fetched.next_offset.0)
}

#[tokio::test(start_paused = true)]
async fn whole_batches_come_from_the_one_that_holds_the_offset() {
    let log = log();
    let partition = log.partition();
    assert_eq!(shape(partition.fetch(at(0)).await), (0, vec![0, 2, 5], 6));
    assert_eq!(shape(partition.fetch(at(3)).await), (3, vec![2, 5], 6));
    let fetched = partition.fetch(at(3)).await.unwrap();
    assert_eq!((fetched.log_start_offset, fetched.high_watermark, fetched.leader_epoch), (Offset(0), Offset(6), 3));
    assert_eq!(shape(partition.fetch(Fetch { bytes_max: 1, ..at(3) }).await), (3, vec![2], 5), "at least one batch");
    assert_eq!(shape(partition.fetch(at(6)).await), (6, vec![], 6));
    assert_eq!(shape(partition.fetch(fetch(FetchFrom::Latest)).await), (6, vec![], 6));
    assert_eq!(shape(partition.fetch(fetch(FetchFrom::Earliest)).await), (0, vec![0, 2, 5], 6));
    assert_eq!(log.read_indexes(), 0, "committed answers need no check");
}

#[tokio::test(start_paused = true)]
async fn uncommitted_records_are_not_served() {
    let log = log();
    log.set(|state| (state.commits, state.flushes) = (false, false));
    let partition = log.partition();
    let mut produce =
        Box::pin(partition.produce(batch(&[1], None), crate::partition::Acks::All, None, CONFIRM_TIMEOUT));
    assert!(produce.as_mut().now_or_never().is_none());
    assert_eq!(shape(partition.fetch(at(5)).await), (5, vec![5], 6));
    let offsets = partition.offsets(Consistency::Committed).await.unwrap();
    let expected = Offsets { log_start_offset: Offset(0), high_watermark: Offset(6), log_end_offset: Offset(7) };
    assert_eq!(offsets, expected);
}

#[tokio::test(start_paused = true)]
async fn an_offset_out_of_range_names_both_ends() {
    let log = log();
    log.set(|state| state.log_start = 2);
    let partition = log.partition();
    for offset in [1, 7, u64::MAX] {
        let error = partition.fetch(waiting(at(offset))).await.unwrap_err();
        assert_eq!((error.code, error.outcome), (Code::OffsetOutOfRange, WriteOutcome::None));
        let message = format!("orders/3: offset {offset} is not in 2 (log start) to 6 (high watermark)");
        assert_eq!(error.message, message);
    }
    assert_eq!(shape(partition.fetch(at(2)).await), (2, vec![2, 5], 6));
}

#[tokio::test(start_paused = true)]
async fn an_offset_above_the_high_watermark_is_confirmed_before_it_is_refused() {
    let log = log();
    let partition = log.partition();
    // A new leader learns by the ReadIndex that the record was committed.
    log.set(|state| state.on_read_index = Some(Box::new(|log| log.push(batch(&[50, 51], None)))));
    assert_eq!(shape(partition.fetch(at(7)).await), (7, vec![6], 8));
    assert_eq!(log.read_indexes(), 1);
}

#[tokio::test(start_paused = true)]
async fn only_an_answer_that_claims_an_end_is_confirmed() {
    let log = log();
    let partition = log.partition();
    let small = Fetch { bytes_max: 1, ..linearizable(at(0)) };
    assert_eq!(shape(partition.fetch(small).await), (0, vec![0], 2));
    assert_eq!(log.read_indexes(), 0);
    let at_20 = linearizable(Fetch { bytes_max: 1, ..fetch(FetchFrom::Timestamp(20)) });
    assert_eq!(shape(partition.fetch(at_20).await), (1, vec![0], 2));
    assert_eq!(log.read_indexes(), 0);
    let ends = [at(0), at(6), fetch(FetchFrom::Latest), fetch(FetchFrom::Timestamp(99)), fetch(FetchFrom::Earliest)];
    for (number, end) in ends.into_iter().enumerate() {
        partition.fetch(linearizable(end)).await.unwrap();
        assert_eq!(log.read_indexes(), number + 1, "{end:?}");
    }
    partition.offsets(Consistency::Linearizable).await.unwrap();
    assert_eq!(log.read_indexes(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_linearizable_answer_covers_what_the_confirmation_brought() {
    for (from, expected) in [
        (FetchFrom::Offset(Offset(5)), (5, vec![5, 6], 7)),
        (FetchFrom::Offset(Offset(6)), (6, vec![6], 7)),
        (FetchFrom::Latest, (7, vec![], 7)),
        (FetchFrom::Timestamp(77), (6, vec![6], 7)),
        (FetchFrom::Timestamp(99), (7, vec![], 7)),
    ] {
        let log = log();
        log.set(|state| state.on_read_index = Some(Box::new(|log| log.push(batch(&[77], None)))));
        assert_eq!(shape(log.partition().fetch(linearizable(fetch(from))).await), expected, "{from:?}");
        assert_eq!(log.read_indexes(), 1);
    }
    let log = log();
    log.set(|state| state.on_read_index = Some(Box::new(|log| log.push(batch(&[77], None)))));
    let offsets = log.partition().offsets(Consistency::Linearizable).await.unwrap();
    assert_eq!(offsets.high_watermark, Offset(7));
}

#[tokio::test(start_paused = true)]
async fn an_end_that_cannot_be_confirmed_is_not_claimed() {
    for (answer, code) in [
        (Some(Err(ProposeError::NotLeader { leader: None })), Code::NotLeader),
        (Some(Err(ProposeError::Unknown("timed out".to_owned()))), Code::NoLeader),
        (None, Code::NoLeader),
    ] {
        let log = log();
        log.set(|state| state.read_index = answer);
        let partition = log.partition();
        for from in [FetchFrom::Offset(Offset(6)), FetchFrom::Latest, FetchFrom::Offset(Offset(0))] {
            let error = partition.fetch(linearizable(fetch(from))).await.unwrap_err();
            assert_eq!((error.code, error.outcome), (code, WriteOutcome::None));
        }
        assert_eq!(partition.offsets(Consistency::Linearizable).await.unwrap_err().code, code);
        assert_eq!(partition.fetch(at(7)).await.unwrap_err().code, code, "416 is never a guess");
        assert!(partition.fetch(at(6)).await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_for_a_confirmation_when_most_are_dead() {
    let log = log();
    log.set(|state| state.majority_dead = true);
    let error = log.partition().offsets(Consistency::Linearizable).await.unwrap_err();
    assert_eq!((error.code, log.read_indexes()), (Code::NoLeader, 0));
    assert!(log.partition().fetch(at(6)).await.is_ok(), "what is committed is served on");
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_wakes_when_records_are_committed() {
    let log = log();
    let partition = log.partition();
    for consistency in [Consistency::Committed, Consistency::Linearizable] {
        let end = partition.offsets(Consistency::Committed).await.unwrap().high_watermark;
        let polled = Fetch { consistency, ..waiting(at(end.0)) };
        let poll = tokio::spawn({
            let partition = Arc::clone(&partition);
            async move { (partition.fetch(polled).await, Instant::now()) }
        });
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_secs(3)).await;
        log.push(batch(&[50], None));
        let (fetched, woken) = poll.await.unwrap();
        assert_eq!(shape(fetched), (end.0, vec![end.0], end.0 + 1));
        assert_eq!(woken - begun, Duration::from_secs(3));
    }
    assert_eq!(log.read_indexes(), 1, "once per request");
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_ends_empty_at_its_deadline() {
    let log = log();
    let begun = Instant::now();
    assert_eq!(shape(log.partition().fetch(waiting(at(6))).await), (6, vec![], 6));
    assert_eq!(begun.elapsed(), Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_ends_when_leadership_is_lost_or_the_replica_closes() {
    type End = fn(&FakeLog);
    for (end, code) in [(FakeLog::depose as End, Code::NotLeader), (FakeLog::close as End, Code::NotReady)] {
        let log = log();
        let partition = log.partition();
        let mut poll = Box::pin(partition.fetch(waiting(at(6))));
        assert!(poll.as_mut().now_or_never().is_none());
        end(&log);
        assert_eq!(poll.now_or_never().unwrap().unwrap_err().code, code);
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_outlives_a_new_term_of_the_same_leader() {
    let log = log();
    let partition = log.partition();
    let mut poll = Box::pin(partition.fetch(waiting(at(6))));
    assert!(poll.as_mut().now_or_never().is_none());
    log.elect();
    assert!(poll.as_mut().now_or_never().is_none());
    log.push(batch(&[50], None));
    assert_eq!(poll.now_or_never().unwrap().unwrap().leader_epoch, 4);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_lead_says_so() {
    let log = log();
    let partition = log.partition();
    let refused = async |code| {
        assert_eq!(partition.fetch(waiting(at(0))).await.unwrap_err().code, code);
        assert_eq!(partition.offsets(Consistency::Committed).await.unwrap_err().code, code);
        assert_eq!(partition.offset_for_timestamp(0).await.unwrap_err().code, code);
    };
    log.set(|state| state.status.leading = false);
    refused(Code::NoLeader).await;
    log.set(|state| state.status.leader = None);
    refused(Code::NoLeader).await;
    log.depose();
    refused(Code::NotLeader).await;
    log.set(|state| state.status.stopped = Some("disk".to_owned()));
    refused(Code::NotReady).await;
}

#[tokio::test(start_paused = true)]
async fn a_timestamp_finds_the_exact_record() {
    let log = log();
    let partition = log.partition();
    for (timestamp, offset) in [(-1, 0), (0, 0), (10, 0), (11, 1), (20, 1), (21, 2), (36, 2), (40, 2), (41, 6)] {
        assert_eq!(partition.offset_for_timestamp(timestamp).await.unwrap(), Offset(offset), "{timestamp}");
        let fetched = partition.fetch(fetch(FetchFrom::Timestamp(timestamp))).await.unwrap();
        assert_eq!(fetched.start_offset, Offset(offset));
    }
    let uneven = FakeLog::new();
    uneven.push(batch(&[5, 9, 7, 12], None));
    let partition = uneven.partition();
    for (timestamp, offset) in [(6, 1), (9, 1), (10, 3), (12, 3), (13, 4)] {
        assert_eq!(partition.offset_for_timestamp(timestamp).await.unwrap(), Offset(offset), "{timestamp}");
    }
}

/// The log start may lie within a batch: what is below is not there, also where it is what made the batch match.
#[tokio::test(start_paused = true)]
async fn a_timestamp_finds_nothing_below_the_log_start() {
    let log = FakeLog::new();
    log.push(batch(&[50, 10, 20, 30], None));
    log.push(batch(&[15, 25, 40], None));
    let partition = log.partition();
    let cases = [
        (0, [(0, 0), (15, 0), (40, 0), (51, 7)]),
        (1, [(0, 1), (15, 2), (40, 6), (51, 7)]),
        (3, [(0, 3), (31, 6), (40, 6), (41, 7)]),
        (4, [(0, 4), (16, 5), (40, 6), (50, 7)]),
        (7, [(0, 7), (16, 7), (40, 7), (50, 7)]),
    ];
    for (start, found) in cases {
        log.set(|state| state.log_start = start);
        for (timestamp, offset) in found {
            let at = partition.offset_for_timestamp(timestamp).await.unwrap();
            assert_eq!(at, Offset(offset), "{timestamp} from {start}");
        }
    }
}

/// Told by the batches' headers; but for the batch that holds the log start, whose largest may be of a record that is gone.
#[tokio::test(start_paused = true)]
async fn the_latest_record_is_the_first_with_the_largest_timestamp() {
    /// The batches' timestamps, the log start, and what is found.
    type Case = (&'static [&'static [i64]], u64, Option<(u64, i64)>);
    let cases: [Case; 9] = [
        (&[], 0, None),
        (&[&[-1, -1]], 0, None),
        (&[&[0]], 0, Some((0, 0))),
        (&[&[5, 9, 7], &[9, 8]], 0, Some((1, 9))),
        (&[&[5], &[i64::MAX, 1]], 0, Some((1, i64::MAX))),
        (&[&[50, 10, 20], &[15, 40, 40]], 0, Some((0, 50))),
        (&[&[50, 10, 20], &[15, 40, 40]], 1, Some((4, 40))),
        (&[&[50, 10, 45], &[15, 40]], 1, Some((2, 45))),
        (&[&[50, 10], &[-1]], 2, None),
    ];
    for (batches, start, found) in cases {
        let log = FakeLog::new();
        batches.iter().for_each(|timestamps| log.push(batch(timestamps, None)));
        log.set(|state| state.log_start = start);
        let latest = log.partition().latest_record().await.unwrap();
        let latest = latest.map(|record| (record.offset.0, record.timestamp));
        assert_eq!(latest, found, "{batches:?} from {start}");
    }
}

#[tokio::test(start_paused = true)]
async fn retention_that_overtakes_a_read_moves_it_or_refuses_it() {
    let overtake = |log: &FakeLog| log.set(|state| state.on_read = Some(Box::new(|log| log.set(|s| s.log_start = 5))));
    let log = log();
    let partition = log.partition();
    overtake(&log);
    assert_eq!(shape(partition.fetch(fetch(FetchFrom::Earliest)).await), (5, vec![5], 6));
    log.set(|state| state.log_start = 0);
    overtake(&log);
    assert_eq!(shape(partition.fetch(fetch(FetchFrom::Timestamp(0))).await), (5, vec![5], 6));
    log.set(|state| state.log_start = 0);
    overtake(&log);
    assert_eq!(partition.fetch(at(0)).await.unwrap_err().code, Code::OffsetOutOfRange);
}

#[tokio::test(start_paused = true)]
async fn rotten_records_are_not_served() {
    let log = log();
    log.set(|state| state.corrupt = true);
    let partition = log.partition();
    let error = partition.fetch(at(0)).await.unwrap_err();
    assert_eq!((error.code, error.outcome), (Code::CorruptLog, WriteOutcome::None));
    assert!(error.message.contains("corrupt frame in 0-1.segment at position 60"), "{error}");
    assert_eq!(partition.offset_for_timestamp(20).await.unwrap_err().code, Code::CorruptLog);
}

/// Clients ask again and again; the log of the broker must not drown in that.
#[tokio::test(start_paused = true)]
async fn that_records_are_rotten_is_said_once_a_while() {
    let log = log();
    let partition = log.partition();
    let said = |at: u64| partition.say_unreadable(&format!("attempt {at}"));
    assert_eq!((0..100).filter(|at| said(*at)).count(), 1);
    tokio::time::advance(super::super::UNREADABLE_AGAIN).await;
    assert_eq!((0..100).filter(|at| said(*at)).count(), 1);
}
