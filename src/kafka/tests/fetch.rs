//! Fetch: whole batches, what a client has room for, waiting, and what is wrong with each partition.

use super::*;
use crate::kafka::connection::Client as Connection;
use crate::kafka::dispatch::Handled;
use crate::record_batch::BatchHeader;
use crate::record_batch::testing::zeros;

/// What is stored of a batch: the same but for base offset and leader epoch, which stand outside its checksum.
fn unstamped(batch: &[u8]) -> Vec<u8> {
    [&batch[8..12], &batch[16..]].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_come_back_byte_for_byte() {
    let house = House::open().await;
    house.topic("t", 2).await;
    let mut client = house.client().await;
    let (first, second) = (batch_of(&[("a", 5), ("b", 9)], None), batch_of(&[("c", 7)], None));
    assert_eq!(client.produce(0, first.clone()).await.base_offset, 0);
    assert_eq!(client.produce(0, second.clone()).await.base_offset, 2);
    let mut fetched = client.fetch(fetch_request(2, 0, Duration::ZERO)).await;
    let partitions = fetched.topics.remove(0).partitions;
    let records = records_of(&partitions[0]);
    assert_eq!(unstamped(&records[..first.len()]), unstamped(&first));
    assert_eq!(unstamped(&records[first.len()..]), unstamped(&second));
    assert_eq!((partitions[0].high_watermark, partitions[0].last_stable_offset), (3, 3));
    assert_eq!((partitions[1].error_code, partitions[1].high_watermark), (0, 0));
    let header = BatchHeader::read(&records[first.len()..]).unwrap();
    assert_eq!((header.base_offset, header.leader_epoch), (2, 1));
    // From the middle of a batch the whole batch comes.
    let mut fetched = client.fetch(fetch_request(1, 1, Duration::ZERO)).await;
    assert_eq!(records_of(&fetched.topics.remove(0).partitions[0]), records);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_returns_one_batch_however_large_and_no_more_than_it_has_room_for() {
    let house = House::open().await;
    house.topic("t", 3).await;
    let mut client = house.client().await;
    for partition in 0..3 {
        assert_eq!(client.produce(partition, batch_of(&[(&"x".repeat(5000), 1)], None)).await.error_code, 0);
    }
    let mut request = fetch_request(3, 0, Duration::ZERO);
    request.max_bytes = 10;
    let lengths = |response: FetchResponse| -> Vec<usize> {
        response.topics[0].partitions.iter().map(|partition| records_of(partition).len()).collect()
    };
    let fetched = lengths(client.fetch(request.clone()).await);
    assert!(fetched[0] > 5000 && fetched[1..] == [0, 0], "{fetched:?}");
    request.max_bytes = 11_000;
    let fetched = lengths(client.fetch(request.clone()).await);
    assert!(fetched[1] > 5000 && fetched[2] == 0, "{fetched:?}");
    // Nor within one partition, by either limit.
    let one = fetched[0];
    assert_eq!(client.produce(0, batch_of(&[(&"x".repeat(5000), 2)], None)).await.error_code, 0);
    request.max_bytes = 7_000;
    assert_eq!(lengths(client.fetch(request.clone()).await), [one, 0, 0]);
    request.max_bytes = 1 << 20;
    request.topics[0].partitions.iter_mut().for_each(|partition| partition.partition_max_bytes = 7_000);
    assert_eq!(lengths(client.fetch(request).await), [one, one, one]);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_fetch_wakes_for_any_of_its_partitions() {
    let house = House::open().await;
    house.topic("t", 20).await;
    let (mut reader, mut writer) = (house.client().await, house.client().await);
    for partition in [17, 3] {
        let request = Request::Fetch(fetch_request(20, 0, PATIENCE));
        let end = if partition == 17 { 0 } else { 1 };
        let mut request = request;
        if let Request::Fetch(fetch) = &mut request {
            fetch.topics[0].partitions[17].fetch_offset = end;
        }
        reader.send(&request, 12).await;
        assert_eq!(writer.produce(partition, batch_of(&[("a", 1)], None)).await.error_code, 0);
        let (_, Response::Fetch(response)) = reader.receive(request.api(), 12).await else { panic!() };
        for found in &response.topics[0].partitions {
            assert_eq!(!records_of(found).is_empty(), found.partition == partition, "{found:?}");
        }
    }
    // At the deadline: nothing, and no error.
    let mut request = fetch_request(20, 0, Duration::from_millis(50));
    for partition in [3, 17] {
        request.topics[0].partitions[partition].fetch_offset = 1;
    }
    let response = reader.fetch(request).await;
    assert!(response.topics[0].partitions.iter().all(|found| found.error_code == 0 && records_of(found).is_empty()));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetch_says_what_is_wrong_with_each_partition() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    client.produce(0, batch_of(&[("a", 1)], None)).await;
    let code = |response: &FetchResponse, at: usize| response.topics[0].partitions[at].error_code;
    let mut request = fetch_request(2, 0, PATIENCE);
    assert_eq!(code(&client.fetch(request.clone()).await, 1), 3, "no such partition, and no waiting for it");
    request.topics[0].partitions.truncate(1);
    for (offset, epoch, expected) in [(2, -1, 1), (-7, -1, 1), (0, 0, 74), (0, 99, 75), (0, 1, 0)] {
        request.topics[0].partitions[0].fetch_offset = offset;
        request.topics[0].partitions[0].current_leader_epoch = epoch;
        assert_eq!(code(&client.fetch(request.clone()).await, 0), expected, "offset {offset}, epoch {epoch}");
    }
    (request.session_id, request.session_epoch) = (7, 3);
    assert_eq!(client.fetch(request).await.error_code, 70, "a session we never gave");
    house.close().await;
}

/// Of many small batches a reader counts more bytes towards what there is room for than their records have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_wants_all_that_it_has_room_for_does_not_wait_for_more() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let crate::broker::Route::Local(log) = house.broker.route("t", 0).unwrap() else { panic!() };
    let batch = || RecordBatch::check(batch_of(&[(&"x".repeat(700), 1)], None), log.limits()).unwrap();
    let produced = (0..2000).map(|_| log.produce(batch(), crate::partition::Acks::All, None, PATIENCE));
    for produced in futures_util::future::join_all(produced).await {
        produced.unwrap();
    }
    let mut request = fetch_request(1, 0, 4 * PATIENCE);
    request.min_bytes = request.max_bytes;
    let mut client = house.client().await;
    let fetched = client.fetch(request.clone()).await;
    let records = records_of(&fetched.topics[0].partitions[0]).len();
    assert!((900 << 10..=1 << 20).contains(&records), "{records} bytes");
    // Nor if what else there is comes to be while it waits.
    request.topics[0].partitions[0].fetch_offset = 2000;
    let sent = client.send(&Request::Fetch(request), 12).await;
    let produced = (0..2000).map(|_| log.produce(batch(), crate::partition::Acks::All, None, PATIENCE));
    assert!(futures_util::future::join_all(produced).await.iter().all(Result::is_ok));
    let (received, _) = client.receive(Request::Fetch(FetchRequest::default()).api(), 12).await;
    assert_eq!(received, sent);
    house.close().await;
}

/// Who asks for a byte is given a batch, and room for all of it is held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_larger_than_what_was_asked_for_holds_room_for_all_of_it() {
    const MIB: usize = 1 << 20;
    let house = House::open_with(|config| config.limits.inflight_bytes_max = 8 * MIB).await;
    house.topic("t", 1).await;
    let batch = zeros(3);
    assert_eq!(house.client().await.produce(0, batch.clone()).await.error_code, 0);
    let door = house.door();
    let fetch = || {
        let (door, request) = (Arc::clone(&door), FetchRequest { max_bytes: 1, ..fetch_request(1, 0, PATIENCE) });
        tokio::spawn(async move {
            let (client, _here) = Connection::alone();
            match crate::kafka::fetch::fetch(&door, &client, request, 12).await {
                Handled::Holding(Response::Fetch(answer), share) => (answer, share),
                _ => panic!("it holds no room"),
            }
        })
    };
    let (first, second) = (fetch().await.unwrap(), fetch().await.unwrap());
    let bytes = |(answer, share): &(FetchResponse, OwnedSemaphorePermit)| {
        (records_of(&answer.topics[0].partitions[0]).len(), share.num_permits())
    };
    assert_eq!([bytes(&first), bytes(&second)], [(batch.len(), batch.len()); 2]);
    let third = fetch();
    let deadline = Instant::now() + PATIENCE;
    while !door.answer_bytes.short() {
        assert!(Instant::now() < deadline && !third.is_finished(), "it does not wait for room");
        sleep(Duration::from_millis(1)).await;
    }
    drop(first);
    assert_eq!(bytes(&third.await.unwrap()), (batch.len(), batch.len()));
    house.close().await;
}

/// It would hold room for all that it names while it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_a_fetch_names_twice_is_refused_and_nobody_waits() {
    let house = House::open().await;
    house.topic("t", 3).await;
    let mut client = house.client().await;
    let mut request = fetch_request(3, 0, 4 * PATIENCE);
    let again = FetchTopic { partitions: vec![request.topics[0].partitions[1].clone()], ..request.topics[0].clone() };
    request.topics.push(again);
    let codes = |response: &FetchResponse| -> Vec<Vec<i16>> {
        let codes = |topic: &FetchedTopic| topic.partitions.iter().map(|found| found.error_code).collect();
        response.topics.iter().map(codes).collect()
    };
    assert_eq!(codes(&client.fetch(request.clone()).await), [vec![0, 42, 0], vec![42]]);
    // By id, and those that are not there are two, as far as anybody knows.
    let id = crate::kafka::metadata::topic_uuid(&house.broker.topic("t").unwrap());
    let ids = [Uuid(7), id, Uuid(8), id];
    let topic = |topic_id| FetchTopic { topic_id, partitions: vec![FetchPartition::default()], ..Default::default() };
    request.topics = ids.into_iter().map(topic).collect();
    let Response::Fetch(response) = client.call(Request::Fetch(request), 13).await else { panic!() };
    assert_eq!(codes(&response), [[100], [42], [100], [42]]);
    house.close().await;
}
