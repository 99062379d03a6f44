//! What is not copied, and not waited for one by one.

use super::*;
use crate::broker::Route;
use crate::kafka::connection::{self, Turn};
use crate::kafka::tests::produce::to_partitions;
use crate::partition::{Consistency, Fetch, FetchFrom};

/// The only batch of a partition, as it is kept.
async fn kept(house: &House, partition: u32) -> Bytes {
    let fetch = Fetch {
        from: FetchFrom::Earliest,
        bytes_max: 1 << 20,
        wait: Duration::ZERO,
        consistency: Consistency::Committed,
    };
    let Route::Local(partition) = house.broker.route("t", partition).unwrap() else { panic!() };
    let mut batches = partition.fetch(fetch).await.unwrap().batches;
    assert_eq!(batches.len(), 1);
    batches.remove(0)
}

/// The pieces of the answer to a frame as it comes off a socket, without its length.
async fn answered(door: &Arc<Door>, frame: Bytes) -> Vec<Bytes> {
    let (client, _there) = connection::Client::alone();
    let answer = dispatch::handle(Arc::clone(door), client, dispatch::parse(frame), Turn::begin().0).await;
    let dispatch::Done::Answer(answer) = answer else { panic!() };
    answer.pieces
}

/// A request's bytes, without their length.
fn received(request: Request, version: i16) -> Bytes {
    Bytes::from(frame(&request, version, 1)[4..].to_vec())
}

/// From a request's frame to the log and from the log to an answer: the same memory, whoever reads it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_off_the_socket_is_the_one_that_is_kept_and_sent() {
    let house = House::open().await;
    house.topic("t", 3).await;
    let door = house.door();
    let batch = || batch_of(&[(&"x".repeat(5000), 1)], None);
    let request = received(produce_request(0, batch(), -1), 9);
    // Nobody else has it, as nobody has what came off a socket.
    let within = request.as_ptr_range();
    answered(&door, request).await;
    let (one, other) = (kept(&house, 0).await, kept(&house, 0).await);
    assert!(within.contains(&one.as_ptr()), "the batch was copied out of its frame, or into the log");
    assert_eq!(one.as_ptr(), other.as_ptr(), "the batch was copied out of the log");
    // Into the answer, between the pieces that are the answer's own.
    let fetched = answered(&door, received(Request::Fetch(fetch_request(3, 0, Duration::ZERO)), 12)).await;
    assert!(fetched.iter().any(|piece| piece.as_ptr() == one.as_ptr()), "the batch was copied into the answer");
    house.close().await;
}

/// What the tail cache holds is counted by its own length, so it must not be the end of something larger.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_a_small_part_of_its_frame_does_not_keep_it() {
    let house = House::open().await;
    house.topic("t", 3).await;
    let door = house.door();
    let batch = || batch_of(&[(&"x".repeat(5000), 1)], None);
    let mut padded = to_partitions([(2, batch())]);
    padded.topics.push(ProduceTopic { name: "n".repeat(20_000), ..Default::default() });
    for request in [to_partitions([(0, batch()), (1, batch())]), padded] {
        let partitions: Vec<i32> = request.topics[0].partitions.iter().map(|partition| partition.index).collect();
        let frame = received(Request::Produce(request), 9);
        // Nobody else has it. What is copied is copied while it is there, so its memory is not given to the copies.
        let within = frame.as_ptr_range();
        answered(&door, frame).await;
        for partition in partitions {
            let kept = kept(&house, partition as u32).await;
            assert!(!within.contains(&kept.as_ptr()), "partition {partition}: a batch keeps its frame");
        }
    }
    // And not copied a second time.
    let all = [kept(&house, 0).await, kept(&house, 1).await, kept(&house, 2).await];
    let fetched = answered(&door, received(Request::Fetch(fetch_request(3, 0, Duration::ZERO)), 12)).await;
    for kept in &all {
        assert!(fetched.iter().any(|piece| piece.as_ptr() == kept.as_ptr()), "a batch was copied again");
    }
    house.close().await;
}

/// One fetch of very many partitions: one of them wakes it, with one timer for all (there is nothing else that could end it before).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_waits_for_hundreds_of_partitions_wakes_for_the_last() {
    const PARTITIONS: i32 = 300;
    let house = House::open().await;
    house.topic("t", PARTITIONS as u32).await;
    let (mut reader, mut writer) = (house.client().await, house.client().await);
    for offset in 0..3 {
        let mut fetch = fetch_request(PARTITIONS, 0, PATIENCE);
        fetch.topics[0].partitions[PARTITIONS as usize - 1].fetch_offset = offset;
        let request = Request::Fetch(fetch);
        reader.send(&request, 12).await;
        let produced = loop {
            let produced = writer.produce(PARTITIONS - 1, batch_of(&[("a", 1)], None)).await;
            // Its leader was just elected.
            if produced.error_code != 6 {
                break produced;
            }
            sleep(Duration::from_millis(10)).await;
        };
        assert_eq!((produced.error_code, produced.base_offset), (0, offset));
        let (_, Response::Fetch(response)) = reader.receive(request.api(), 12).await else { panic!() };
        let found: Vec<i32> = response.topics[0]
            .partitions
            .iter()
            .filter(|found| !records_of(found).is_empty())
            .map(|found| found.partition)
            .collect();
        let errors = response.topics[0].partitions.iter().filter(|found| found.error_code != 0).count();
        // Partitions that had no leader yet end the wait at once; then it is asked again.
        if errors > 0 {
            assert_eq!(offset, 0, "{errors} partitions have errors");
            continue;
        }
        assert_eq!(found, [PARTITIONS - 1]);
    }
    house.close().await;
}
