//! What is not copied, and not waited for one by one.

use super::*;
use crate::broker::Route;
use crate::partition::{Acks, Consistency, Fetch, FetchFrom, Partition};
use crate::record_batch::RecordBatch;

async fn fetched(partition: &Partition) -> Bytes {
    let fetch = Fetch {
        from: FetchFrom::Earliest,
        bytes_max: 1 << 20,
        wait: Duration::ZERO,
        consistency: Consistency::Committed,
    };
    partition.fetch(fetch).await.unwrap().batches.remove(0)
}

/// From a request's frame to the log and from the log to an answer: the same memory, whoever reads it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_off_the_socket_is_the_one_that_is_kept_and_sent() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let request = frame(&produce_request(0, batch_of(&[(&"x".repeat(5000), 1)], None), -1), 9, 1);
    // As it comes off a socket, without its length.
    let received = Bytes::from(request[4..].to_vec());
    let within = received.as_ptr_range();
    let dispatch::Incoming::Request(parsed, ..) = dispatch::parse(received) else { panic!() };
    let Request::Produce(mut produce) = parsed.1 else { panic!() };
    let records = produce.topics.remove(0).partitions.remove(0).records.0.unwrap().remove(0);
    assert!(within.contains(&records.as_ptr()), "the batch was copied out of its frame");
    let place = records.as_ptr();
    let Route::Local(partition) = house.broker.route("t", 0).unwrap() else { panic!() };
    let batch = RecordBatch::check(records, partition.limits()).unwrap();
    partition.produce(batch, Acks::All, None, PATIENCE).await.unwrap();
    let (one, other) = (fetched(&partition).await, fetched(&partition).await);
    assert_eq!(
        (one.as_ptr(), other.as_ptr()),
        (place, place),
        "the batch was copied on its way into the log, or out of it"
    );
    // And into the answer, between the pieces that are the answer's own.
    let partitions = vec![FetchedPartition { records: RecordData::some(vec![one]), ..Default::default() }];
    let topics = vec![FetchedTopic { topic: "t".into(), partitions, ..Default::default() }];
    let mut writer = Writer::new(12, true);
    Response::Fetch(FetchResponse { topics, ..Default::default() }).write(&mut writer);
    assert!(writer.finish().iter().any(|piece| piece.as_ptr() == place), "the batch was copied into the answer");
    house.close().await;
}

/// One fetch of very many partitions: one of them wakes it, with one timer for all (there is nothing else that could end it before).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_waits_for_hundreds_of_partitions_wakes_for_the_last() {
    const PARTITIONS: i32 = 300;
    let house = House::open().await;
    house.topic("t", PARTITIONS as u32).await;
    let (mut reader, mut writer) = (house.client().await, house.client().await);
    let mut offset = 0;
    for round in 0..3 {
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
        offset += 1;
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
            assert_eq!(round, 0, "{errors} partitions have errors");
            continue;
        }
        assert_eq!(found, [PARTITIONS - 1]);
    }
    house.close().await;
}
