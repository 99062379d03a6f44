//! ListOffsets and OffsetForLeaderEpoch.

use std::pin::pin;
use std::task::Poll;

use futures_util::poll;
use tokio::task::yield_now;

use super::produce::to_partitions;
use super::*;
use crate::kafka::{connection, offsets};
use crate::record_batch::DECOMPRESSED;
use crate::record_batch::testing::{squeezed, zeros};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_are_found_by_every_special_time_and_by_time() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    assert_eq!([client.list(-1).await, client.list(-2).await, client.list(-3).await], [(0, -1), (0, -1), (-1, -1)]);
    client.produce(0, batch_of(&[("a", 10), ("b", 30), ("c", 20)], None)).await;
    client.produce(0, batch_of(&[("d", 25), ("e", 15)], None)).await;
    assert_eq!([client.list(-1).await, client.list(-2).await], [(5, -1), (0, -1)]);
    assert_eq!([client.list(-4).await, client.list(-5).await], [(0, -1), (-1, -1)]);
    assert_eq!(client.list(-3).await, (1, 30), "the largest timestamp");
    let by_time = [(0, (0, 10)), (11, (1, 30)), (30, (1, 30)), (31, (-1, -1))];
    for (timestamp, found) in by_time {
        assert_eq!(client.list(timestamp).await, found, "{timestamp}");
    }
    // A producer that says nothing of its records' times in the batch's header (sarama, for years).
    let mut silent = batch_of(&[("f", 40)], None).to_vec();
    silent[35..43].copy_from_slice(&(-1i64).to_be_bytes());
    let crc = crc32c::crc32c(&silent[21..]);
    silent[17..21].copy_from_slice(&crc.to_be_bytes());
    assert_eq!(client.produce(0, silent.into()).await.error_code, 0);
    assert_eq!([client.list(31).await, client.list(-3).await], [(5, 40), (5, 40)]);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_an_epoch_is_found() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    client.produce(0, batch_of(&[("a", 1), ("b", 1)], None)).await;
    for (epoch, found) in [(1, (0, 1, 2)), (0, (0, 0, 0)), (7, (0, -1, -1))] {
        let partition = LeaderEpochPartition { leader_epoch: epoch, ..Default::default() };
        let topics = vec![LeaderEpochTopic { topic: "t".into(), partitions: vec![partition] }];
        let request = OffsetForLeaderEpochRequest { topics, ..Default::default() };
        let Response::OffsetForLeaderEpoch(response) = client.call(Request::OffsetForLeaderEpoch(request), 3).await
        else {
            panic!()
        };
        let answer = &response.topics[0].partitions[0];
        assert_eq!((answer.error_code, answer.leader_epoch, answer.end_offset), found, "epoch {epoch}");
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_of_many_partitions_are_listed_in_the_order_they_were_asked_for() {
    let house = House::open().await;
    house.topic("t", 3).await;
    house.topic("u", 1).await;
    let mut client = house.client().await;
    for _ in 0..4 {
        client.produce(0, batch_of(&[("a", 1)], None)).await;
    }
    // More than are looked at at a time; most are not there.
    let asked: Vec<i32> = (0..200).rev().collect();
    let topic = |name: &str, asked: &[i32]| {
        let partition =
            |partition: &i32| ListOffsetsPartition { partition: *partition, timestamp: -1, ..Default::default() };
        ListOffsetsTopic { name: name.into(), partitions: asked.iter().map(partition).collect() }
    };
    let topics = vec![topic("t", &asked), topic("missing", &[0]), topic("u", &[0, 7]), topic("t", &[])];
    let request = Request::ListOffsets(ListOffsetsRequest { topics, ..Default::default() });
    let Response::ListOffsets(response) = client.call(request, 7).await else { panic!() };
    let names: Vec<&str> = response.topics.iter().map(|topic| topic.name.as_str()).collect();
    assert_eq!(names, ["t", "missing", "u", "t"]);
    let found = |at: usize| {
        let listed = response.topics[at].partitions.iter();
        listed.map(|one| (one.partition, one.error_code, one.offset)).collect::<Vec<_>>()
    };
    let of = |partition| match partition {
        0 => (0, 0, 4),
        1 | 2 => (partition, 0, 0),
        missing => (missing, 3, -1),
    };
    assert_eq!(found(0), asked.into_iter().map(of).collect::<Vec<_>>());
    assert_eq!((found(1), found(2), found(3)), (vec![(0, 3, -1)], vec![(0, 0, 0), (7, 3, -1)], vec![]));
    house.close().await;
}

/// What is asked of every partition of "t".
fn list_request(partitions: i32, timestamp: i64) -> ListOffsetsRequest {
    let of = |partition| ListOffsetsPartition { partition, timestamp, ..Default::default() };
    let topics = vec![ListOffsetsTopic { name: "t".into(), partitions: (0..partitions).map(of).collect() }];
    ListOffsetsRequest { topics, ..Default::default() }
}

/// Each of many partitions takes a look into a batch that is compressed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_by_time_in_many_partitions_makes_way_after_each() {
    const PARTITIONS: i32 = 40;
    let house = House::open().await;
    house.topic("t", PARTITIONS as u32).await;
    let batch = squeezed(&zeros(1));
    let request = Request::Produce(to_partitions((0..PARTITIONS).map(|index| (index, batch.clone()))));
    let Response::Produce(produced) = house.client().await.call(request, 9).await else { panic!() };
    assert!(produced.topics[0].partitions.iter().all(|answer| answer.error_code == 0), "{produced:?}");
    let (door, (client, gone)) = (house.door(), connection::Client::alone());
    for timestamp in [0, -3] {
        let before = DECOMPRESSED.get();
        let mut work = pin!(offsets::list(&door, &client, list_request(PARTITIONS, timestamp), 9));
        let mut most = 0;
        let answered = loop {
            let seen = DECOMPRESSED.get();
            let polled = poll!(&mut work);
            most = most.max(DECOMPRESSED.get() - seen);
            match polled {
                Poll::Ready(answered) => break answered,
                Poll::Pending => yield_now().await,
            }
        };
        let dispatch::Handled::Response(Response::ListOffsets(answer)) = answered else { panic!() };
        let found = |one: &ListedOffsetsPartition| (one.error_code, one.offset, one.timestamp) == (0, 0, 0);
        assert!(answer.topics[0].partitions.iter().all(found), "{answer:?}");
        assert_eq!((DECOMPRESSED.get() - before, most), (PARTITIONS as usize, 1), "looks in all, and at once");
    }
    // Whoever has gone is not looked on for.
    gone.send_replace(true);
    let before = DECOMPRESSED.get();
    let left = offsets::list(&door, &client, list_request(PARTITIONS, 0), 9).await;
    assert!(matches!(left, dispatch::Handled::Silence));
    assert_eq!(DECOMPRESSED.get(), before);
    house.close().await;
}

/// Times that stand for something were added one by one; a version from before has other clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_version_does_not_know_is_refused_and_so_is_what_is_named_twice() {
    let house = House::open().await;
    house.topic("t", 2).await;
    let mut client = house.client().await;
    for (timestamp, since) in [(-1, 1), (-2, 1), (-3, 7), (-4, 8), (-5, 9), (-6, 11), (-7, 11)] {
        for version in 1..=10 {
            let request = Request::ListOffsets(list_request(1, timestamp));
            let Response::ListOffsets(response) = client.call(request, version).await else { panic!() };
            let expected = if version < since { 35 } else { 0 };
            let code = response.topics[0].partitions[0].error_code;
            assert_eq!(code, expected, "time {timestamp} in version {version}");
        }
    }
    let one = |partition| LeaderEpochPartition { partition, leader_epoch: 0, ..Default::default() };
    let topic = |partitions: &[i32]| LeaderEpochTopic {
        topic: "t".into(),
        partitions: partitions.iter().copied().map(one).collect(),
    };
    let topics = vec![topic(&[0, 1]), topic(&[0])];
    let request = Request::OffsetForLeaderEpoch(OffsetForLeaderEpochRequest { topics, ..Default::default() });
    let Response::OffsetForLeaderEpoch(response) = client.call(request, 4).await else { panic!() };
    let codes = |at: usize| response.topics[at].partitions.iter().map(|end| end.error_code).collect::<Vec<_>>();
    assert_eq!((codes(0), codes(1)), (vec![42, 0], vec![42]));
    house.close().await;
}
