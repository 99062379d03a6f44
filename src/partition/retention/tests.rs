//! Where a log may start, decided over made-up segments: by time and by size.

use super::*;
use proptest::prelude::*;

const DAY: i64 = 86_400_000;
const NOW: i64 = 1_800_000_000_000;

/// Segments of a hundred records and 1000 bytes each, with these largest timestamps.
fn segments(timestamps: &[i64]) -> Vec<SegmentInfo> {
    let segment = |(number, max_timestamp): (usize, &i64)| SegmentInfo {
        first_index: number as u64 * 10,
        last_index: number as u64 * 10 + 9,
        base_offset: Offset(number as u64 * 100),
        next_offset: Offset(number as u64 * 100 + 100),
        bytes: 1000,
        max_timestamp: *max_timestamp,
        appended_by: None,
    };
    timestamps.iter().enumerate().map(segment).collect()
}

fn by_time(ms: i64) -> RetentionPolicy {
    RetentionPolicy { retention_ms: Some(ms as u64), retention_bytes: None }
}

fn by_size(bytes: u64) -> RetentionPolicy {
    RetentionPolicy { retention_ms: None, retention_bytes: Some(bytes) }
}

fn start(segments: &[SegmentInfo], log_start: u64, high_watermark: u64, policy: &RetentionPolicy) -> Option<u64> {
    plan(segments, Offset(log_start), Offset(high_watermark), policy, NOW).log_start
}

#[test]
fn segments_go_when_their_newest_record_is_too_old_and_only_from_the_front() {
    let old = segments(&[NOW - 3 * DAY, NOW - 2 * DAY, NOW - DAY / 2, NOW - 4 * DAY, NOW]);
    assert_eq!(start(&old, 0, 500, &by_time(DAY)), Some(200));
    assert_eq!(start(&old, 200, 500, &by_time(DAY)), None, "it starts there already");
    assert_eq!(start(&old, 0, 500, &by_time(DAY / 4)), Some(400));
    assert_eq!(start(&old, 0, 500, &by_time(9 * DAY)), None);
    assert_eq!(start(&old, 0, 500, &RetentionPolicy::default()), None);
}

#[test]
fn the_growing_segment_goes_too_but_nothing_that_is_not_committed() {
    let old = segments(&[NOW - 3 * DAY, NOW - 2 * DAY]);
    assert_eq!(start(&old, 0, 200, &by_time(DAY)), Some(200));
    assert_eq!(start(&old, 0, 199, &by_time(DAY)), Some(100));
    assert_eq!(start(&old, 0, 50, &by_time(DAY)), None);
}

#[test]
fn the_oldest_go_while_enough_is_left_and_the_growing_one_stays() {
    let some = segments(&[NOW; 5]);
    assert_eq!(start(&some, 0, 500, &by_size(5000)), None);
    assert_eq!(start(&some, 0, 500, &by_size(4001)), None, "what is left would be less than asked for");
    assert_eq!(start(&some, 0, 500, &by_size(4000)), Some(100));
    assert_eq!(start(&some, 0, 500, &by_size(1500)), Some(300));
    assert_eq!(start(&some, 0, 500, &by_size(0)), Some(400));
    let both = RetentionPolicy { retention_ms: Some(1), retention_bytes: Some(4000) };
    assert_eq!(start(&segments(&[NOW - 9, NOW - 9, NOW, NOW]), 0, 400, &both), Some(200));
}

/// A record from the future must not pin the log.
#[test]
fn a_segment_from_the_future_is_as_old_as_the_time_that_was_noted_behind_it() {
    let mut from_the_future = segments(&[NOW + 900 * DAY, -1, NOW]);
    let found = plan(&from_the_future, Offset(0), Offset(300), &by_time(DAY), NOW);
    assert_eq!(found, Plan { log_start: None, note_time: true });
    from_the_future[0].appended_by = Some(NOW - 2 * DAY);
    from_the_future[1].appended_by = Some(NOW - DAY / 2);
    let found = plan(&from_the_future, Offset(0), Offset(300), &by_time(DAY), NOW);
    assert_eq!(found, Plan { log_start: Some(100), note_time: false });
    // Soon it will have come, and its record will be as old as it says: until then it is young.
    for (ahead, policy) in [(AHEAD_MAX_MS as i64, by_time(DAY)), (60_000, by_time(60_000))] {
        from_the_future[0].max_timestamp = NOW + ahead + 1;
        assert!(start(&from_the_future, 0, 300, &policy).is_some());
        from_the_future[0].max_timestamp = NOW + ahead;
        assert_eq!(start(&from_the_future, 0, 300, &policy), None);
    }
    // Nobody asks for the time where no time limits anything.
    assert!(!plan(&segments(&[-1]), Offset(0), Offset(100), &by_size(1), NOW).note_time);
}

/// A leader whose clock had fallen back by days wrote down what time it thought it was.
#[test]
fn a_wrong_time_that_was_noted_takes_nothing_away_that_says_how_old_it_is() {
    let mut young = segments(&[NOW - 2 * DAY, NOW - DAY, NOW + 60_000]);
    let fallen_back = NOW - 8 * DAY;
    let found = plan(&young, Offset(0), Offset(300), &by_time(7 * DAY), fallen_back);
    assert_eq!(found, Plan { log_start: None, note_time: true });
    for segment in &mut young {
        segment.appended_by = Some(fallen_back);
    }
    let found = plan(&young, Offset(0), Offset(300), &by_time(7 * DAY), NOW);
    assert_eq!(found, Plan::default());
}

#[test]
fn a_segment_without_records_is_in_nobodys_way() {
    let mut some = segments(&[NOW - 3 * DAY, -1, NOW - 2 * DAY, NOW]);
    some[1].next_offset = some[1].base_offset;
    some[2].base_offset = some[1].base_offset;
    let found = plan(&some, Offset(0), Offset(400), &by_time(DAY), NOW);
    assert_eq!(found, Plan { log_start: Some(300), note_time: false });
}

#[test]
fn a_segments_age_is_its_first_records_or_how_long_it_is_open() {
    let minute = Duration::from_secs(60);
    assert!(is_old(NOW - 61_000, Duration::ZERO, 60_000, NOW));
    assert!(!is_old(NOW - 60_000, 9 * minute, 60_000, NOW));
    for unknown in [-1, NOW + 1] {
        assert!(is_old(unknown, minute * 2, 60_000, NOW));
        assert!(!is_old(unknown, minute, 60_000, NOW));
    }
}

fn saved(retained: &Retained) -> Vec<u8> {
    let mut out = BytesMut::new();
    retained.save(&mut out);
    out.to_vec()
}

#[test]
fn a_start_holds_from_its_own_entry_on_and_never_moves_back() {
    let mut retained = Retained::default();
    assert_eq!(saved(&retained), [0, 0]);
    retained.note(10, 500, 100, 1);
    retained.note(20, 600, 50, 2);
    retained.note(30, 700, 300, 3);
    let starts: Vec<_> = [0, 9, 10, 29, 30, u64::MAX].map(|upto| retained.log_start(upto)).into();
    assert_eq!(starts, [0, 0, 100, 100, 300, 300]);
}

#[test]
fn times_tell_by_when_something_was_there_and_go_with_the_records() {
    let mut retained = Retained::default();
    retained.note(1, 100, 0, 1000);
    retained.note(2, 100, 0, 9000);
    retained.note(3, 200, 0, 2000);
    assert_eq!(
        [50, 100, 101, 200, 201].map(|offset| retained.appended_by(offset)),
        [Some(1000), Some(1000), Some(2000), Some(2000), None]
    );
    retained.note(4, 300, 150, 3000);
    assert_eq!(retained.times.len(), 2, "the first one speaks of what is gone");
    retained.note(5, 300, 300, 4000);
    assert_eq!(retained.times, []);
}

#[test]
fn however_many_times_are_noted_few_are_kept_and_none_says_too_early() {
    let mut retained = Retained::default();
    for n in 1..=1000u64 {
        retained.note(n, n * 10, 0, n as i64 * 7);
        assert!(retained.times.len() <= TIMES_KEPT);
        let newest = retained.times.last().copied();
        for offset in (1..=n * 10).step_by(97) {
            let by = retained.appended_by(offset);
            // Appended by the note that follows it, or later.
            assert!(by.is_none_or(|by| by >= offset.div_ceil(10) as i64 * 7), "{offset}: {by:?}");
            assert!(by.is_some() || newest.is_none_or(|(below, _)| below < offset));
        }
    }
}

#[test]
fn what_is_out_of_order_or_too_much_is_not_read() {
    let mut retained = Retained::default();
    retained.note(10, 500, 100, 1);
    retained.note(30, 700, 300, 3);
    let good = saved(&retained);
    assert_eq!(Retained::load(&good), Ok(retained));
    for cut in 0..good.len() {
        assert!(Retained::load(&good[..cut]).is_err(), "{cut} bytes");
    }
    assert!(Retained::load(&[&good[..], &[0]].concat()).is_err());
    let mut swapped = good.clone();
    swapped[1..17].copy_from_slice(&good[17..33]);
    swapped[17..33].copy_from_slice(&good[1..17]);
    assert!(Retained::load(&swapped).is_err());
    assert!(Retained::load(&[255; 5000]).is_err());
}

proptest! {
    #[test]
    fn what_the_log_says_survives_the_round_trip(notes in prop::collection::vec((1..9u64, 0..9u64, any::<u8>(), any::<i64>()), 0..80)) {
        let mut retained = Retained::default();
        let (mut index, mut offset) = (0, 0);
        for (entries, records, start, time) in notes {
            index += entries;
            offset += records;
            retained.note(index, offset, offset.min(u64::from(start)), time);
            prop_assert_eq!(Retained::load(&saved(&retained)), Ok(retained.clone()));
        }
    }

    #[test]
    fn anything_at_all_is_survived(bytes: Vec<u8>) {
        let _ = Retained::load(&bytes);
    }
}
