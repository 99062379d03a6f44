//! Produce: order, acks, and batches that lie.

use std::collections::BTreeSet;
use std::pin::pin;

use futures_util::poll;

use super::*;
use crate::kafka::connection::Turn;
use crate::partition::aside::testing::hold_places;
use crate::record_batch::testing::{squeezed, zeros};

/// One batch for each partition, in this order.
pub(super) fn to_partitions(batches: impl IntoIterator<Item = (i32, Bytes)>) -> ProduceRequest {
    let partition = |(index, batch)| ProducePartition { index, records: RecordData::some(vec![batch]) };
    let partitions = batches.into_iter().map(partition).collect();
    let topics = vec![ProduceTopic { name: "t".into(), partitions, ..Default::default() }];
    ProduceRequest { acks: -1, timeout_ms: 30_000, topics, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn produces_of_one_connection_are_appended_in_order_and_answered_in_order() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    let Response::InitProducerId(producer) =
        client.call(Request::InitProducerId(InitProducerIdRequest::default()), 4).await
    else {
        panic!()
    };
    assert_eq!((producer.error_code, producer.producer_epoch), (0, 0));
    let batch = |sequence| {
        let producer = ProducerSequence { producer_id: producer.producer_id, epoch: 0, sequence };
        batch_of(&[(&format!("{sequence}"), 1)], Some(producer))
    };
    // All at once: out of order they would be refused.
    let requests: Vec<_> = (0..100).map(|sequence| produce_request(0, batch(sequence), -1)).collect();
    let api = requests[0].api();
    let frames: Vec<u8> = requests.iter().zip(0..).flat_map(|(request, id)| frame(request, 9, id).to_vec()).collect();
    let (mut input, mut output) = client.stream.into_split();
    let sending = tokio::spawn(async move {
        output.write_all(&frames).await.unwrap();
        output
    });
    for id in 0..100 {
        let length = input.read_i32().await.unwrap();
        let mut bytes = vec![0; length as usize];
        input.read_exact(&mut bytes).await.unwrap();
        assert_eq!(bytes[..4], i32::to_be_bytes(id));
        let Response::Produce(response) = Response::read(api, 9, Bytes::from(bytes).slice(5..)).unwrap() else {
            panic!()
        };
        let answer = &response.topics[0].partitions[0];
        assert_eq!((answer.error_code, answer.base_offset), (0, i64::from(id)));
    }
    let mut client = Client { stream: input.reunite(sending.await.unwrap()).unwrap(), next: 1000 };
    let duplicate = client.produce(0, batch(98)).await;
    assert_eq!((duplicate.error_code, duplicate.base_offset), (0, 98), "a retry has the original's offset");
    let oldest_known = client.produce(0, batch(95)).await;
    assert_eq!((oldest_known.error_code, oldest_known.base_offset), (0, 95));
    assert_eq!(client.produce(0, batch(94)).await.error_code, 45, "a retry of what is no more among the last five");
    assert_eq!(client.produce(0, batch(105)).await.error_code, 45);
    let old = ProducerSequence { producer_id: 77, epoch: 0, sequence: 5 };
    // With the log's start, by which clients see whether what they produced before is gone: without it they try for ever.
    let forgotten = client.produce(0, batch_of(&[("x", 1)], Some(old))).await;
    assert_eq!((forgotten.error_code, forgotten.log_start_offset), (59, 0));
    let newer = ProducerSequence { producer_id: producer.producer_id, epoch: 1, sequence: 0 };
    assert_eq!(client.produce(0, batch_of(&[("x", 1)], Some(newer))).await.error_code, 0);
    assert_eq!(client.produce(0, batch(100)).await.error_code, 47);
    house.close().await;
}

/// More batches in a request than tokio lets a task do at a time, and each request names them in another order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn produces_of_many_batches_are_appended_in_order_too() {
    const PARTITIONS: i32 = 200;
    const REQUESTS: i32 = 60;
    let house = House::open().await;
    house.topic("t", PARTITIONS as u32).await;
    for acks in [-1, 0] {
        let mut client = house.client().await;
        let Response::InitProducerId(producer) =
            client.call(Request::InitProducerId(InitProducerIdRequest::default()), 4).await
        else {
            panic!()
        };
        let request = |sequence: i32| {
            let producer = ProducerSequence { producer_id: producer.producer_id, epoch: 0, sequence };
            let mut partitions: Vec<_> = (0..PARTITIONS)
                .map(|index| {
                    let batch = batch_of(&[("x", 1)], Some(producer));
                    ProducePartition { index, records: RecordData::some(vec![batch]) }
                })
                .collect();
            partitions.rotate_left((sequence * 73 % PARTITIONS) as usize);
            let topics = vec![ProduceTopic { name: "t".into(), partitions, ..Default::default() }];
            Request::Produce(ProduceRequest { acks, timeout_ms: 30_000, topics, ..Default::default() })
        };
        let requests: Vec<_> = (0..REQUESTS).map(request).collect();
        let frames: Vec<u8> = requests.iter().zip(0..).flat_map(|(one, id)| frame(one, 9, id).to_vec()).collect();
        client.stream.write_all(&frames).await.unwrap();
        for _ in 0..if acks == 0 { 0 } else { REQUESTS } {
            let (_, Response::Produce(answer)) = client.receive(requests[0].api(), 9).await else { panic!() };
            let codes: BTreeSet<i16> = answer.topics[0].partitions.iter().map(|answer| answer.error_code).collect();
            assert_eq!(codes, BTreeSet::from([0]), "acks {acks}");
        }
        // A refusal closes the connection of a client that wants no answers.
        client.call(Request::ApiVersions(ApiVersionsRequest::default()), 0).await;
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_0_is_answered_by_silence_and_a_failure_by_closing() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    client.send(&produce_request(0, batch_of(&[("a", 1)], None), 0), 9).await;
    assert_eq!(client.produce(0, batch_of(&[("b", 1)], None)).await.base_offset, 1, "behind the silent one");
    client.send(&produce_request(5, batch_of(&[("c", 1)], None), 0), 9).await;
    assert!(client.closed().await);
    let mut client = house.client().await;
    let Response::Produce(refused) = client.call(produce_request(0, batch_of(&[("d", 1)], None), 2), 9).await else {
        panic!()
    };
    assert_eq!(refused.topics[0].partitions[0].error_code, 21);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_lie_are_refused_and_nothing_of_them_is_written() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    let good = batch_of(&[("a", 1), ("b", 2)], None);
    let change = |at: usize, bytes: &[u8], checksum: bool| {
        let mut batch = good.to_vec();
        batch[at..at + bytes.len()].copy_from_slice(bytes);
        if checksum {
            let crc = crc32c::crc32c(&batch[21..]);
            batch[17..21].copy_from_slice(&crc.to_be_bytes());
        }
        Bytes::from(batch)
    };
    let mut bomb = RecordBatchBuilder::new(BatchLimits {
        record_bytes_max: 80 << 20,
        batch_bytes_max: 80 << 20,
        ..Default::default()
    });
    bomb.push(&NewRecord { value: Some(vec![0; 70 << 20].into()), ..Default::default() }).unwrap();
    let bomb = bomb.build(None).unwrap().into_bytes();
    let packed = squeezed(&bomb);
    assert!(packed.len() < 1 << 20);
    let cases = [
        ("a flipped bit", change(70, &[0xff], false), 2),
        ("an old format", change(16, &[1], true), 87),
        ("another record count", change(57, &9_i32.to_be_bytes(), true), 87),
        ("a negative record count", change(57, &(-1_i32).to_be_bytes(), true), 87),
        ("another last offset", change(23, &9_i32.to_be_bytes(), true), 87),
        ("a length of less", change(8, &5_i32.to_be_bytes(), true), 2),
        ("a negative length", change(8, &(-5_i32).to_be_bytes(), true), 2),
        ("a control batch", change(21, &[0, 0x20], true), 87),
        ("a transaction", change(21, &[0, 0x10], true), 87),
        ("an unknown compression", change(21, &[0, 7], true), 87),
        ("a time before all times", change(27, &(-9_i64).to_be_bytes(), true), 32),
        ("a record that is none", change(61, &[1], true), 87),
        ("gzip that is none", change(21, &[0, 1], true), 87),
        ("two batches", Bytes::from([&good[..], &good[..]].concat()), 87),
        ("half a batch", good.slice(..good.len() / 2), 87),
        ("nothing", Bytes::new(), 87),
        ("a decompression bomb", packed, 10),
    ];
    for (what, batch, code) in cases {
        assert_eq!(client.produce(0, batch).await.error_code, code, "{what}");
    }
    assert_eq!(client.list(-1).await.0, 0);
    house.close().await;
}

/// Who consumes in a version from before Zstandard may not know it; and neither, as in Kafka, may who produces in one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zstandard_is_taken_from_the_version_on_that_has_it() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    let packed = squeezed(&batch_of(&[("a", 1)], None));
    for (version, code) in [(3, 76), (6, 76), (7, 0)] {
        let produce = produce_request(0, packed.clone(), -1);
        let Response::Produce(answer) = client.call(produce, version).await else { panic!() };
        assert_eq!(answer.topics[0].partitions[0].error_code, code, "version {version}");
    }
    house.close().await;
}

/// Each is within its own limit: 15 MB of 64 MiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_batches_of_a_request_decompress_to_together_is_bounded() {
    // So that the bound is what one batch may come to.
    let house = House::open_with(|config| config.kafka.request_bytes_max = 2 << 20).await;
    house.topic("t", 8).await;
    let mut client = house.client().await;
    let (bomb, plain) = (squeezed(&zeros(15)), batch_of(&[("plain", 1)], None));
    let small = squeezed(&plain);
    let batches = (0..6).map(|index| (index, bomb.clone())).chain([(6, small.clone()), (7, plain)]);
    let request = Request::Produce(to_partitions(batches));
    let Response::Produce(response) = client.call(request, 9).await else { panic!() };
    let answers = &response.topics[0].partitions;
    let codes: Vec<i16> = answers.iter().map(|answer| answer.error_code).collect();
    assert_eq!(codes, [0, 0, 0, 0, 10, 10, 10, 0]);
    let why = answers[5].error_message.as_deref().unwrap();
    assert!(why.contains("of one request decompress to more than 67108864 bytes together"), "{why}");
    // Each request anew.
    assert_eq!((client.produce(4, bomb).await.error_code, client.produce(6, small).await.error_code), (0, 0));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_get_their_turn_between_the_batches_of_a_request() {
    const PARTITIONS: i32 = 5;
    let house = House::open().await;
    house.topic("t", PARTITIONS as u32).await;
    for batch in [zeros(2), squeezed(&zeros(2))] {
        let door = house.door();
        let request = to_partitions((0..PARTITIONS).map(|index| (index, batch.clone())));
        let (turn, mut end) = Turn::begin();
        let mut work = pin!(crate::kafka::produce::produce(&door, request, 9, turn));
        let mut polls = 0;
        while end.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
            assert!(poll!(&mut work).is_pending());
            polls += 1;
        }
        assert!(polls >= PARTITIONS, "{polls} polls for {PARTITIONS} batches");
        let dispatch::Handled::Response(Response::Produce(answer)) = work.await else { panic!() };
        assert!(answer.topics[0].partitions.iter().all(|answer| answer.error_code == 0));
    }
    house.close().await;
}

/// One batch may take as long as many: 64 MiB and more are seen to be in a few kilobytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_bomb_waits_for_a_place_aside_as_long_as_its_request_has_time() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let (door, bomb) = (house.door(), squeezed(&zeros(70)));
    let refusal = |answered| {
        let dispatch::Handled::Response(Response::Produce(mut answer)) = answered else { panic!() };
        let refused = answer.topics.remove(0).partitions.remove(0);
        (refused.error_code, refused.error_message.unwrap())
    };
    let held = hold_places().await;
    let (turn, _end) = Turn::begin();
    let mut patient = pin!(crate::kafka::produce::produce(&door, to_partitions([(0, bomb)]), 9, turn));
    assert!(poll!(&mut patient).is_pending());
    // One that is in order, and comes to as much.
    let late = ProduceRequest { timeout_ms: 1, ..to_partitions([(0, squeezed(&zeros(15)))]) };
    let (turn, _end) = Turn::begin();
    let (code, why) = refusal(crate::kafka::produce::produce(&door, late, 9, turn).await);
    assert!(code == 7 && why.ends_with("nothing was written"), "{code}: {why}");
    drop(held);
    assert_eq!(refusal(patient.await).0, 10, "it was looked at");
    assert_eq!(house.client().await.list(-1).await.0, 0);
    house.close().await;
}

/// Who is next in line for a place aside is given it whether it is polled or not: by a client that does not read it would never be used.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_has_begun_goes_on_while_nobody_reads_the_answers_before_it() {
    let house = House::open().await;
    house.topic("t", 2).await;
    let (mut honest, mut hostile) = (house.client().await, house.client_that_takes_little().await);
    let large = || squeezed(&zeros(15));
    // Behind a fetch, so that what follows is there when the first of it begins.
    let mut fetch = Request::Fetch(fetch_request(1, 0, PATIENCE));
    if let Request::Fetch(fetch) = &mut fetch {
        fetch.topics[0].partitions[0].partition = 1;
    }
    let waits = hostile.send(&fetch, 12).await;
    // Waits for its batch's commit, and then tells very long names; the second waits for a place meanwhile.
    let mut first = to_partitions([(0, batch_of(&[("first", 1)], None))]);
    let named = |number| ProduceTopic {
        name: format!("{number}{}", "x".repeat(32_000)),
        partitions: vec![ProducePartition { index: 0, records: RecordData::some(vec![Bytes::new()]) }],
        ..Default::default()
    };
    first.topics.extend((0..300).map(named));
    hostile.send(&Request::Produce(first), 9).await;
    let held = hold_places().await;
    hostile.send(&Request::Produce(to_partitions([(0, large())])), 9).await;
    for _ in 0..20 {
        // Whatever has come is read between two turns of another connection.
        honest.call(Request::ApiVersions(ApiVersionsRequest::default()), 0).await;
    }
    assert_eq!(honest.produce(1, batch_of(&[("go on", 1)], None)).await.error_code, 0);
    assert_eq!(hostile.receive(fetch.api(), 12).await.0, waits);
    timeout(PATIENCE, hostile.stream.peek(&mut [0])).await.expect("no answer is written").unwrap();
    drop(held);
    assert_eq!(honest.produce(1, large()).await.error_code, 0);
    // In their order, once they are read.
    for offset in [0, 1] {
        let (_, Response::Produce(answer)) = hostile.receive(&APIS[0], 9).await else { panic!() };
        let first = &answer.topics[0].partitions[0];
        assert_eq!((first.error_code, first.base_offset), (0, offset));
    }
    house.close().await;
}

/// A connection of which only so many requests are worked on, beside one whose answer of 10 MB it does not read. It may send 20 more.
async fn only_so_many_are_worked_on(change: impl Fn(&mut Config), most: i64) {
    let house = House::open_with(change).await;
    house.topic("t", 1).await;
    let (mut other, mut client) = (house.client().await, house.client_that_takes_little().await);
    // Its answer tells very long names; it counts to its end.
    let mut first = to_partitions([(0, batch_of(&[("x", 1)], None))]);
    let named = |number| ProduceTopic {
        name: format!("{number}{}", "x".repeat(32_000)),
        partitions: vec![ProducePartition { index: 0, records: RecordData::some(vec![Bytes::new()]) }],
        ..Default::default()
    };
    first.topics.extend((0..300).map(named));
    client.send(&Request::Produce(first), 9).await;
    for _ in 0..20 {
        client.send(&produce_request(0, batch_of(&[("x", 1)], None), -1), 9).await;
    }
    let deadline = Instant::now() + PATIENCE;
    while other.list(-1).await.0 < most {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(1)).await;
    }
    for _ in 0..50 {
        assert_eq!(other.list(-1).await.0, most, "more than {most} are worked on");
    }
    for offset in 0..=20 {
        let (_, Response::Produce(answer)) = client.receive(&APIS[0], 9).await else { panic!() };
        let first = &answer.topics[0].partitions[0];
        assert_eq!((first.error_code, first.base_offset), (0, offset));
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_requests_of_a_connection_are_worked_on_and_the_others_wait() {
    only_so_many_are_worked_on(|config| config.kafka.inflight_requests_max = 4, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_has_its_part_of_the_room_is_not_read_beyond_it() {
    only_so_many_are_worked_on(|config| config.limits.inflight_bytes_max = 32 << 20, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_takes_long_to_check_is_not_overtaken_on_its_connection() {
    let house = House::open().await;
    house.topic("t", 5).await;
    let mut client = house.client().await;
    let (bomb, small) = (squeezed(&zeros(4)), batch_of(&[("x", 1)], None));
    // What the second brings for partition 0 stands at the end of the first.
    let first = (1..5).map(|index| (index, bomb.clone())).chain([(0, small.clone())]);
    let first = Request::Produce(to_partitions(first));
    let frames = [frame(&first, 9, 1), frame(&Request::Produce(to_partitions([(0, small)])), 9, 2)];
    client.stream.write_all(&frames.concat()).await.unwrap();
    let mut offsets = Vec::new();
    for id in 1..=2 {
        let (received, Response::Produce(answer)) = client.receive(first.api(), 9).await else { panic!() };
        let last = answer.topics[0].partitions.last().unwrap();
        assert_eq!((received, last.error_code), (id, 0));
        offsets.push(last.base_offset);
    }
    assert_eq!(offsets, [0, 1]);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_as_large_as_its_topic_allows_is_taken() {
    let house = House::open().await;
    let mut client = house.client().await;
    let value = "x".repeat(20 << 20);
    let produce = |topic: &str| {
        let mut builder = RecordBatchBuilder::new(BatchLimits {
            record_bytes_max: 32 << 20,
            batch_bytes_max: 33 << 20,
            ..Default::default()
        });
        builder.push(&NewRecord { value: Some(Bytes::from(value.clone())), ..Default::default() }).unwrap();
        let mut request = produce_request(0, builder.build(None).unwrap().into_bytes(), -1);
        if let Request::Produce(produce) = &mut request {
            produce.topics[0].name = topic.to_owned();
        }
        request
    };
    for (name, allowed, code) in [("t", "33554432", 0), ("small", "16777216", 10), ("most", "67108864", 0)] {
        let config = BTreeMap::from([("max.message.bytes".to_owned(), allowed.to_owned())]);
        let spec = TopicSpec { name: name.into(), partitions: 1, replicas: None, assignment: None, config };
        house.broker.create_topic(spec, PATIENCE).await.unwrap();
        let Response::Produce(produced) = client.call(produce(name), 9).await else { panic!() };
        assert_eq!(produced.topics[0].partitions[0].error_code, code, "{name}");
        let crate::broker::Route::Local(partition) = house.broker.route(name, 0).unwrap() else { panic!() };
        let (limits, allowed) = (partition.limits(), allowed.parse().unwrap());
        assert!(limits.batch_bytes_max > allowed && limits.decompressed_bytes_max > allowed, "{limits:?}");
    }
    let fetched = client.fetch(fetch_request(1, 0, Duration::ZERO)).await;
    assert!(records_of(&fetched.topics[0].partitions[0]).len() > value.len());
    house.close().await;
}
