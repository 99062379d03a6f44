//! `compression.type`: what is stored, whatever the producer chose; what that may come to; and how it is asked for.

use super::produce::to_partitions;
use super::*;
use crate::partition::aside::testing::hold_places;
use crate::record_batch::testing::{squeezed, zeros};
use crate::record_batch::{BatchHeader, Compression};

const ALL: [(&str, Compression); 5] = [
    ("uncompressed", Compression::None),
    ("gzip", Compression::Gzip),
    ("snappy", Compression::Snappy),
    ("lz4", Compression::Lz4),
    ("zstd", Compression::Zstd),
];

impl House {
    async fn topic_with(&self, name: &str, config: &[(&str, &str)]) {
        let config = config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let spec = TopicSpec { name: name.to_owned(), partitions: 1, replicas: None, assignment: None, config };
        self.broker.create_topic(spec, PATIENCE).await.unwrap();
    }
}

/// One batch to one topic.
async fn produce(client: &mut Client, topic: &str, batch: Bytes) -> ProducedPartition {
    let mut request = to_partitions([(0, batch)]);
    request.topics[0].name = topic.to_owned();
    let Response::Produce(mut answer) = client.call(Request::Produce(request), 9).await else { panic!() };
    answer.topics.remove(0).partitions.remove(0)
}

/// All that a topic's partition holds.
async fn stored(client: &mut Client, topic: &str) -> Vec<Bytes> {
    let mut request = fetch_request(1, 0, Duration::ZERO);
    request.topics[0].topic = topic.to_owned();
    let fetched = client.fetch(request).await;
    assert_eq!(fetched.topics[0].partitions[0].error_code, 0);
    let mut rest = Bytes::from(records_of(&fetched.topics[0].partitions[0]));
    let mut batches = Vec::new();
    while !rest.is_empty() {
        let length = 12 + i32::from_be_bytes(rest[8..12].try_into().unwrap()) as usize;
        batches.push(rest.split_to(length));
    }
    batches
}

fn records(batch: &Bytes) -> Vec<crate::record_batch::Record> {
    let batch = RecordBatch::check(batch.clone(), &BatchLimits::default()).expect("a sound batch");
    batch
        .records(64 << 20)
        .unwrap()
        .map(|record| crate::record_batch::Record { offset: 0, ..record.unwrap() })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_are_stored_with_their_topics_compression() {
    let house = House::open().await;
    let mut client = house.client().await;
    for (name, codec) in ALL {
        house.topic_with(name, &[("compression.type", name)]).await;
        let producer = house.broker.create_producer(PATIENCE).await.unwrap().0;
        let batch = |sequence| {
            let producer = ProducerSequence { producer_id: producer, epoch: 0, sequence };
            batch_of(&[(&"once and again ".repeat(20), 5), ("b", 3)], Some(producer))
        };
        let sent = [batch(0), squeezed(&batch(2))];
        for (at, batch) in sent.iter().enumerate() {
            for _ in 0..2 {
                let answer = produce(&mut client, name, batch.clone()).await;
                assert_eq!(
                    (answer.error_code, answer.base_offset),
                    (0, 2 * at as i64),
                    "{name}: once, however often sent"
                );
            }
        }
        let batches = stored(&mut client, name).await;
        assert_eq!(batches.len(), 2, "{name}");
        for (at, (found, sent)) in batches.iter().zip(&sent).enumerate() {
            let header = BatchHeader::read(found).unwrap();
            assert_eq!((header.compression(), records(found)), (Ok(codec), records(sent)), "{name}");
            assert_eq!((header.producer_id, header.base_sequence), (producer, 2 * at as i32));
            assert_eq!((header.base_offset, header.max_timestamp), (2 * at as u64, 5));
        }
        // What has the compression already is stored byte for byte: here as a producer without an id would send it.
        let mut ready = batches[0].to_vec();
        ready[43..57].fill(0xff);
        let crc = crc32c::crc32c(&ready[21..]);
        ready[17..21].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(produce(&mut client, name, Bytes::from(ready.clone())).await.base_offset, 4);
        assert_eq!(stored(&mut client, name).await[2][16..], ready[16..], "{name}");
    }
    house.topic_with("timed", &[("compression.type", "lz4"), ("message.timestamp.type", "LogAppendTime")]).await;
    let told = produce(&mut client, "timed", batch_of(&[("a", 5)], None)).await.log_append_time_ms;
    let timed = RecordBatch::stored(stored(&mut client, "timed").await.remove(0)).unwrap();
    let header = timed.header();
    assert_eq!(
        (header.compression(), header.log_append_time(), header.max_timestamp),
        (Ok(Compression::Lz4), true, told)
    );
    assert_eq!(header.crc, crc32c::crc32c(&timed.bytes()[21..]));
    assert_eq!(timed.records(1000).unwrap().next().unwrap().unwrap().timestamp, told);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_its_topics_compression_makes_too_large_is_refused() {
    let house = House::open_with(|config| config.limits.request_bytes_max = 3 << 20).await;
    house.topic_with("plain", &[("compression.type", "uncompressed")]).await;
    house.topic_with("lz4", &[("compression.type", "lz4")]).await;
    let mut client = house.client().await;
    let packed = squeezed(&zeros(4));
    let refused = produce(&mut client, "plain", packed.clone()).await;
    let why = refused.error_message.unwrap();
    assert!(
        refused.error_code == 10 && why.contains("more than 3145728 bytes") && why.ends_with("uncompressed"),
        "{why}"
    );
    assert_eq!(produce(&mut client, "plain", squeezed(&zeros(2))).await.error_code, 0);
    assert_eq!(produce(&mut client, "lz4", packed).await.error_code, 0, "which is small in another way");
    // However it is to be stored.
    for topic in ["plain", "lz4"] {
        assert_eq!(produce(&mut client, topic, squeezed(&zeros(70))).await.error_code, 10, "{topic}");
    }
    assert_eq!((stored(&mut client, "plain").await.len(), stored(&mut client, "lz4").await.len()), (1, 1));
    house.close().await;
}

/// A few kilobytes become megabytes, which nobody has counted yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_batches_grow_by_has_its_room() {
    let house = House::open().await;
    house.topic_with("t", &[("compression.type", "uncompressed")]).await;
    let door = house.door();
    let request = || to_partitions([(0, squeezed(&zeros(2)))]);
    let answer = async |request| {
        let (turn, _end) = crate::kafka::connection::Turn::begin();
        let answered = crate::kafka::produce::produce(&door, request, 9, turn).await;
        let dispatch::Handled::Response(Response::Produce(mut answer)) = answered else { panic!() };
        let answer = answer.topics.remove(0).partitions.remove(0);
        (answer.error_code, answer.error_message.unwrap_or_default())
    };
    let held = door.decoded_bytes.reserve(usize::MAX).await;
    let (code, why) = answer(request()).await;
    assert!(code == 7 && why.contains("no room for ") && why.ends_with("nothing was written"), "{code}: {why}");
    assert_eq!(answer(to_partitions([(0, batch_of(&[("small", 1)], None))])).await.0, 0, "it does not grow");
    drop(held);
    assert_eq!(answer(request()).await.0, 0);
    let all = door.decoded_bytes.reserve(usize::MAX).await;
    assert_eq!(all.num_permits(), house.broker.config().limits.inflight_bytes_max, "it was given back");
    house.close().await;
}

/// A hundred and more kilobytes are few to look at, and many to compress.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_takes_long_to_compress_waits_for_a_place_aside() {
    let house = House::open().await;
    house.topic_with("t", &[("compression.type", "gzip")]).await;
    let mut client = house.client().await;
    let batch = |bytes: usize| batch_of(&[(&"x".repeat(bytes), 1)], None);
    let held = hold_places().await;
    assert_eq!(client.produce(0, batch(100_000)).await.error_code, 0);
    let mut late = to_partitions([(0, batch(200_000))]);
    late.timeout_ms = 1;
    let Response::Produce(answer) = client.call(Request::Produce(late.clone()), 9).await else { panic!() };
    assert_eq!(answer.topics[0].partitions[0].error_code, 7);
    drop(held);
    late.timeout_ms = 30_000;
    let Response::Produce(answer) = client.call(Request::Produce(late), 9).await else { panic!() };
    assert_eq!((answer.topics[0].partitions[0].error_code, answer.topics[0].partitions[0].base_offset), (0, 1));
    house.close().await;
}

async fn described(client: &mut Client, resource_type: i8, name: &str) -> DescribedConfig {
    let configuration_keys = Some(vec!["compression.type".into()]);
    let resources = vec![DescribeConfigsResource { resource_type, resource_name: name.into(), configuration_keys }];
    let request = DescribeConfigsRequest { resources, include_synonyms: true, include_documentation: false };
    let Response::DescribeConfigs(mut response) = client.call(Request::DescribeConfigs(request), 4).await else {
        panic!()
    };
    response.results.remove(0).configs.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topics_compression_is_created_changed_and_described_as_kafkas() {
    let house = House::open_with(|config| {
        config.log.insert("compression.type".into(), "lz4".into());
    });
    let house = house.await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    let broker = described(&mut client, 4, "1").await;
    assert_eq!((broker.value.as_deref(), broker.read_only), (Some("lz4"), true));
    let own = described(&mut client, 2, "t").await;
    assert_eq!((own.value.as_deref(), own.config_source, own.synonyms.len()), (Some("lz4"), 4, 2), "the broker's");
    assert_eq!(client.produce(0, batch_of(&[("a", 1)], None)).await.error_code, 0);
    let codec = |batch: &Bytes| BatchHeader::read(batch).unwrap().compression().unwrap();
    assert_eq!(codec(&stored(&mut client, "t").await[0]), Compression::Lz4);

    let alter = async |client: &mut Client, name: &str, value: &str| {
        let configs = vec![ConfigChange { name: name.into(), operation: 0, value: Some(value.into()) }];
        let resources = vec![IncrementalResource { resource_type: 2, resource_name: "t".into(), configs }];
        let request = IncrementalAlterConfigsRequest { resources, validate_only: false };
        let Response::IncrementalAlterConfigs(mut response) =
            client.call(Request::IncrementalAlterConfigs(request), 1).await
        else {
            panic!()
        };
        let answer = response.responses.remove(0);
        (answer.error_code, answer.error_message.unwrap_or_default())
    };
    let (code, why) = alter(&mut client, "compression.type", "brotli").await;
    assert!(code == 40 && why.contains("producer or uncompressed or gzip or snappy or lz4 or zstd"), "{code}: {why}");
    assert_eq!(alter(&mut client, "compression.zstd.level", "3").await.0, 40);
    assert_eq!(alter(&mut client, "compression.type", "zstd").await.0, 0);
    let own = described(&mut client, 2, "t").await;
    assert_eq!((own.value.as_deref(), own.config_source, own.synonyms.len()), (Some("zstd"), 1, 3), "its own");
    // Its partitions hear of it a moment later.
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert_eq!(client.produce(0, batch_of(&[("b", 1)], None)).await.error_code, 0);
        match codec(stored(&mut client, "t").await.last().unwrap()) {
            Compression::Zstd => break,
            other => assert!(Instant::now() < deadline && other == Compression::Lz4),
        }
    }
    // From before Zstandard: such a client could not read it.
    let mut codes = Vec::new();
    for version in [9, 10] {
        let request = Request::Fetch(fetch_request(1, 0, Duration::ZERO));
        let Response::Fetch(fetched) = client.call(request, version).await else { panic!() };
        codes.push(fetched.topics[0].partitions[0].error_code);
    }
    assert_eq!(codes, [76, 0]);
    house.close().await;
}
