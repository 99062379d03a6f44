//! The door over a real broker of its own: what clients rely on, and what hostile ones try (each class of input that a broker
//! must refuse). Against real clients: `scripts/kafka-smoke`.

mod sharing;

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener as StdListener;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use pontoon_raft::types::BrokerId;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::messages::*;
use super::wire::{RecordData, Writer};
use super::*;
use crate::broker::TopicSpec;
use crate::record_batch::{
    BatchHeader, BatchLimits, Header, NewRecord, ProducerSequence, RecordBatch, RecordBatchBuilder,
};

/// Longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A broker with its door.
struct House {
    broker: Arc<Broker>,
    server: Server,
    _dir: TempDir,
}

impl House {
    async fn open() -> Self {
        Self::open_with(|_| {}).await
    }

    async fn open_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Bound for a moment: nobody else is given the port while this process asks for others.
        let peer = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut config = Config::new(BrokerId(1), dir.path().to_owned());
        config.bootstrap = BTreeMap::from([(BrokerId(1), peer.clone())]);
        config.peer.listen = peer;
        config.kafka.listener.listen = "127.0.0.1:0".into();
        config.raft.journal_file_bytes = 1 << 20;
        config.raft.reserve_produce_bytes = 0;
        config.raft.reserve_append_bytes = 0;
        change(&mut config);
        let server = Server::bind(&config).await.unwrap();
        config.kafka.listener.advertised = Some(server.advertised().to_owned());
        let broker = Broker::start(config, "127.0.0.1:1".to_owned()).await.unwrap();
        let deadline = Instant::now() + PATIENCE;
        while let Err(why) = broker.ready() {
            assert!(Instant::now() < deadline, "{why}");
            sleep(Duration::from_millis(10)).await;
        }
        server.open(Arc::clone(&broker));
        Self { broker, server, _dir: dir }
    }

    async fn topic(&self, name: &str, partitions: u32) {
        let config = BTreeMap::new();
        let spec = TopicSpec { name: name.to_owned(), partitions, replicas: None, assignment: None, config };
        self.broker.create_topic(spec, PATIENCE).await.unwrap();
    }

    async fn client(&self) -> Client {
        Client { stream: TcpStream::connect(self.server.address()).await.unwrap(), next: 0 }
    }

    async fn close(self) {
        self.server.stopping();
        self.broker.shutdown(Duration::from_secs(10)).await;
        self.server.close(Duration::from_secs(5)).await;
    }
}

/// One connection.
struct Client {
    stream: TcpStream,
    next: i32,
}

fn frame(request: &Request, version: i16, correlation_id: i32) -> Bytes {
    let api = request.api();
    let mut out = BytesMut::new();
    out.put_i32(0);
    out.put_i16(api.key);
    out.put_i16(version);
    out.put_i32(correlation_id);
    out.put_i16(4);
    out.put_slice(b"test");
    let flexible = api.is_flexible(version);
    if flexible {
        out.put_u8(0);
    }
    let mut writer = Writer::new(version, flexible);
    request.write(&mut writer);
    out.put_slice(&writer.into_bytes());
    let length = (out.len() - 4) as i32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out.freeze()
}

impl Client {
    async fn send(&mut self, request: &Request, version: i16) -> i32 {
        self.next += 1;
        self.stream.write_all(&frame(request, version, self.next)).await.unwrap();
        self.next
    }

    async fn receive(&mut self, api: &Api, version: i16) -> (i32, Response) {
        let read = async {
            let length = self.stream.read_i32().await.unwrap();
            let mut bytes = vec![0; length as usize];
            self.stream.read_exact(&mut bytes).await.unwrap();
            Bytes::from(bytes)
        };
        let mut bytes = timeout(PATIENCE, read).await.expect("no answer");
        let correlation_id = i32::from_be_bytes(bytes.split_to(4)[..].try_into().unwrap());
        if api.is_flexible(version) && api.name != "ApiVersions" {
            assert_eq!(bytes.split_to(1)[0], 0, "tagged fields in the header");
        }
        (correlation_id, Response::read(api, version, bytes).unwrap())
    }

    async fn call(&mut self, request: Request, version: i16) -> Response {
        let sent = self.send(&request, version).await;
        let (received, response) = self.receive(request.api(), version).await;
        assert_eq!(received, sent);
        response
    }

    async fn closed(&mut self) -> bool {
        let mut rest = Vec::new();
        timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await.expect("it is still open").is_err()
            || rest.is_empty()
    }

    async fn produce(&mut self, partition: i32, batch: Bytes) -> ProducedPartition {
        let Response::Produce(mut response) = self.call(produce_request(partition, batch, -1), 9).await else {
            panic!()
        };
        response.topics.remove(0).partitions.remove(0)
    }

    async fn fetch(&mut self, request: FetchRequest) -> FetchResponse {
        let Response::Fetch(response) = self.call(Request::Fetch(request), 12).await else { panic!() };
        response
    }

    async fn list(&mut self, timestamp: i64) -> (i64, i64) {
        let partitions = vec![ListOffsetsPartition { timestamp, ..Default::default() }];
        let topics = vec![ListOffsetsTopic { name: "t".into(), partitions }];
        let request = Request::ListOffsets(ListOffsetsRequest { topics, ..Default::default() });
        let Response::ListOffsets(mut response) = self.call(request, 7).await else { panic!() };
        let found = response.topics.remove(0).partitions.remove(0);
        assert_eq!(found.error_code, 0);
        (found.offset, found.timestamp)
    }
}

fn batch_of(records: &[(&str, i64)], producer: Option<ProducerSequence>) -> Bytes {
    let mut builder = RecordBatchBuilder::new(BatchLimits::default());
    for (value, timestamp) in records {
        let header = |key: &'static [u8], value: Option<&'static [u8]>| Header {
            key: Bytes::from_static(key),
            value: value.map(Bytes::from_static),
        };
        let record = NewRecord {
            timestamp: *timestamp,
            key: Some(Bytes::from_static(b"key")),
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
            headers: vec![header(b"h", Some(b"1")), header(b"h", Some(b"2")), header(b"n", None)],
        };
        builder.push(&record).unwrap();
    }
    builder.build(producer).unwrap().into_bytes()
}

fn produce_request(partition: i32, batch: Bytes, acks: i16) -> Request {
    let partitions = vec![ProducePartition { index: partition, records: RecordData::some(vec![batch]) }];
    let topics = vec![ProduceTopic { name: "t".into(), partitions, ..Default::default() }];
    Request::Produce(ProduceRequest { acks, timeout_ms: 30_000, topics, ..Default::default() })
}

fn fetch_request(partitions: i32, offset: i64, wait: Duration) -> FetchRequest {
    let partition = |partition| FetchPartition {
        partition,
        fetch_offset: offset,
        partition_max_bytes: 1 << 20,
        ..Default::default()
    };
    let partitions = (0..partitions).map(partition).collect();
    FetchRequest {
        max_wait_ms: wait.as_millis() as i32,
        min_bytes: 1,
        max_bytes: 1 << 20,
        topics: vec![FetchTopic { topic: "t".into(), partitions, ..Default::default() }],
        ..Default::default()
    }
}

fn records_of(partition: &FetchedPartition) -> Vec<u8> {
    partition.records.0.iter().flatten().flat_map(|batch| batch.to_vec()).collect()
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_found_by_id() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    client.produce(0, batch_of(&[("a", 1)], None)).await;
    let wanted = vec![MetadataTopicName { name: Some("t".into()), ..Default::default() }];
    let request = Request::Metadata(MetadataRequest { topics: Some(wanted), ..Default::default() });
    let Response::Metadata(metadata) = client.call(request, 12).await else { panic!() };
    let topic_id = metadata.topics[0].topic_id;
    assert_ne!(topic_id.0, 0);
    assert_eq!(metadata.brokers[0].port, i32::from(crate::config::port_of(house.server.address()).unwrap()));
    for (id, expected) in [(topic_id, 0), (wire::Uuid(5), 100)] {
        let mut request = fetch_request(1, 0, Duration::ZERO);
        request.topics[0].topic_id = id;
        let Response::Fetch(response) = client.call(Request::Fetch(request), 17).await else { panic!() };
        assert_eq!((response.topics[0].topic_id, response.topics[0].partitions[0].error_code), (id, expected));
        let mut request = produce_request(0, batch_of(&[("b", 1)], None), -1);
        if let Request::Produce(produce) = &mut request {
            produce.topics[0].topic_id = id;
        }
        let Response::Produce(response) = client.call(request, 13).await else { panic!() };
        assert_eq!(response.topics[0].partitions[0].error_code, expected);
    }
    house.close().await;
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
async fn topics_are_created_changed_and_deleted_with_kafkas_codes() {
    let house = House::open_with(|config| config.kafka.num_partitions = 3).await;
    let mut client = house.client().await;
    let topic = |name: &str, num_partitions, replication_factor| CreatableTopic {
        name: name.into(),
        num_partitions,
        replication_factor,
        ..Default::default()
    };
    let with = |mut topic: CreatableTopic, key: &str, value: Option<&str>| {
        topic.configs.push(ConfigValue { name: key.into(), value: value.map(Into::into) });
        topic
    };
    let placed = |mut topic: CreatableTopic, on: &[(i32, i32)]| {
        let assignment = |(partition_index, broker)| ReplicaAssignment { partition_index, broker_ids: vec![broker] };
        topic.assignments.extend(on.iter().copied().map(assignment));
        topic
    };
    let topics = vec![
        topic("good", -1, -1),
        with(with(topic("configured", 1, 1), "retention.ms", Some("1000")), "min.insync.replicas", Some("1")),
        topic("a/b", 1, 1),
        topic("..", 1, 1),
        topic("nul\0", 1, 1),
        topic(&"x".repeat(300), 1, 1),
        topic("none", 0, 1),
        topic("many", 1, 2),
        with(topic("odd", 1, 1), "no.such.key", Some("1")),
        with(topic("null", 1, 1), "retention.ms", None),
        placed(topic("placed", -1, -1), &[(1, 1), (0, 1)]),
        placed(topic("placed-nowhere", -1, -1), &[(0, 9)]),
        placed(topic("placed-with-a-gap", -1, -1), &[(0, 1), (2, 1)]),
        placed(topic("placed-both-ways", 1, -1), &[(0, 1)]),
        topic("twice", 1, 1),
        topic("twice", 1, 1),
    ];
    let codes = [0, 0, 17, 17, 17, 17, 37, 38, 40, 40, 0, 39, 39, 42, 42];
    let request = CreateTopicsRequest { topics, timeout_ms: 30_000, validate_only: true };
    for validate_only in [true, false] {
        let request = Request::CreateTopics(CreateTopicsRequest { validate_only, ..request.clone() });
        let Response::CreateTopics(response) = client.call(request, 7).await else { panic!() };
        let found: Vec<_> = response.topics.iter().map(|topic| topic.error_code).collect();
        assert_eq!(found, codes, "validate only: {validate_only}");
        assert_eq!((response.topics[0].num_partitions, response.topics[0].topic_id.0 == 0), (3, validate_only));
    }
    let again = CreateTopicsRequest { topics: vec![topic("good", 1, 1)], timeout_ms: 1000, validate_only: false };
    let Response::CreateTopics(response) = client.call(Request::CreateTopics(again), 2).await else { panic!() };
    assert_eq!(response.topics[0].error_code, 36);
    assert_eq!(house.broker.topic("placed").unwrap().partitions.len(), 2);
    let more = |name: &str, count| MorePartitions { name: name.into(), count, assignments: None };
    let on = |broker: i32, count: usize| MorePartitions {
        assignments: Some(vec![PartitionAssignment { broker_ids: vec![broker] }; count]),
        ..more("placed", 4)
    };
    for (wanted, code) in [(on(9, 2), 39), (on(-1, 2), 39), (on(1, 1), 39), (on(1, 2), 0), (on(1, 2), 37)] {
        let request = CreatePartitionsRequest { topics: vec![wanted], timeout_ms: 30_000, validate_only: false };
        let response = client.call(Request::CreatePartitions(request), 3).await;
        let Response::CreatePartitions(response) = response else { panic!() };
        assert_eq!(response.results[0].error_code, code, "{response:?}");
    }
    assert_eq!(house.broker.topic("placed").unwrap().partitions.len(), 4);
    let topics = vec![more("good", 5), more("configured", 1), more("missing", 2)];
    let request = CreatePartitionsRequest { topics, timeout_ms: 30_000, validate_only: false };
    let Response::CreatePartitions(response) = client.call(Request::CreatePartitions(request), 3).await else {
        panic!()
    };
    assert_eq!(response.results.iter().map(|result| result.error_code).collect::<Vec<_>>(), [0, 37, 3]);
    assert_eq!(house.broker.topic("good").unwrap().partitions.len(), 5);
    let resource = |resource_type, name: &str| DescribeConfigsResource {
        resource_type,
        resource_name: name.into(),
        configuration_keys: Some(vec!["retention.ms".into(), "num.partitions".into(), "min.insync.replicas".into()]),
    };
    let resources = vec![resource(2, "configured"), resource(2, "missing"), resource(4, "1"), resource(4, "9")];
    let request = DescribeConfigsRequest { resources, include_synonyms: true, include_documentation: false };
    let Response::DescribeConfigs(response) = client.call(Request::DescribeConfigs(request), 4).await else { panic!() };
    assert_eq!(response.results.iter().map(|result| result.error_code).collect::<Vec<_>>(), [0, 3, 0, 42]);
    let retention = &response.results[0].configs[0];
    assert_eq!((retention.value.as_deref(), retention.config_source, retention.synonyms.len()), (Some("1000"), 1, 2));
    let promised = &response.results[0].configs[1];
    assert_eq!(
        (promised.name.as_str(), promised.value.as_deref(), promised.read_only),
        ("min.insync.replicas", Some("1"), true)
    );
    assert_eq!(response.results[2].configs[0].value.as_deref(), Some("3"));
    let topic_names = vec!["good".into(), "missing".into()];
    let request = DeleteTopicsRequest { topic_names, timeout_ms: 30_000, ..Default::default() };
    let Response::DeleteTopics(response) = client.call(Request::DeleteTopics(request), 4).await else { panic!() };
    assert_eq!(response.topics.iter().map(|topic| topic.error_code).collect::<Vec<_>>(), [0, 3]);
    assert!(house.broker.topic("good").is_err());
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_created_by_asking_only_where_that_is_switched_on() {
    for (on, code) in [(false, 3), (true, 0)] {
        let house = House::open_with(|config| {
            config.kafka.auto_create_topics = on;
            config.kafka.num_partitions = 4;
        })
        .await;
        let mut client = house.client().await;
        let wanted = |name: &str| Some(vec![MetadataTopicName { name: Some(name.into()), ..Default::default() }]);
        for (name, may, code) in [("new", false, 3), ("new", true, code), ("a/b", true, 17), ("a/b", false, 17)] {
            let topics = wanted(name);
            let request = MetadataRequest { topics, allow_auto_topic_creation: may, ..Default::default() };
            let Response::Metadata(metadata) = client.call(Request::Metadata(request), 12).await else { panic!() };
            let topic = &metadata.topics[0];
            assert_eq!(topic.error_code, code, "{name}, on: {on}, asked for: {may}");
            assert_eq!(topic.partitions.len(), if code == 0 { 4 } else { 0 });
        }
        for (version, topics, count) in [(0, Some(vec![]), on as usize), (1, Some(vec![]), 0), (1, None, on as usize)] {
            let request = Request::Metadata(MetadataRequest { topics, ..Default::default() });
            let Response::Metadata(metadata) = client.call(request, version).await else { panic!() };
            assert_eq!(metadata.topics.len(), count, "version {version}");
        }
        house.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_api_answers_in_every_version_it_advertises() {
    let house = House::open().await;
    let mut client = house.client().await;
    for request in Request::all_empty() {
        let api = request.api();
        for version in api.min..=api.max {
            let mut request = request.clone();
            if let Request::Produce(produce) = &mut request {
                produce.acks = 1;
            }
            client.call(request, version).await;
        }
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_future_version_of_api_versions_is_answered_in_version_0() {
    let house = House::open().await;
    let mut client = house.client().await;
    let future = [&[0, 0, 0, 11, 0, 18, 0, 99, 0, 0, 0, 7][..], &[255, 255, 9]].concat();
    client.stream.write_all(&future).await.unwrap();
    let api = Api::of(18).unwrap();
    let (correlation_id, Response::ApiVersions(response)) = client.receive(api, 0).await else { panic!() };
    assert_eq!((correlation_id, response.error_code), (7, 35));
    assert!(response.api_keys.iter().any(|listed| (listed.api_key, listed.max_version) == (18, api.max)));
    let produce = response.api_keys.iter().find(|listed| listed.api_key == 0).unwrap();
    assert_eq!(produce.min_version, 0, "librdkafka");
    // The connection goes on.
    client.call(Request::ApiVersions(ApiVersionsRequest::default()), 3).await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_behind_a_request_are_passed_over() {
    let house = House::open().await;
    let mut client = house.client().await;
    // librdkafka 2.16 asking for all topics: the array's count as four bytes where one belongs.
    let body = [&[0, 3, 0, 13, 0, 0, 0, 7, 0, 1, b'x', 0][..], &[0, 0, 0, 0, 1, 0, 0]].concat();
    client.stream.write_all(&framed(&body)).await.unwrap();
    let (correlation_id, Response::Metadata(_)) = client.receive(Api::of(3).unwrap(), 13).await else { panic!() };
    assert_eq!(correlation_id, 7);
    house.close().await;
}

/// Sends bytes and expects that connection to be closed, and only that.
async fn refused(house: &House, what: &str, bytes: &[u8]) {
    let (mut hostile, mut other) = (house.client().await, house.client().await);
    let _ = hostile.stream.write_all(bytes).await;
    assert!(hostile.closed().await, "{what}");
    other.call(Request::ApiVersions(ApiVersionsRequest::default()), 0).await;
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as i32).to_be_bytes()[..], body].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_frames_close_their_own_connection_only() {
    let house = House::open_with(|config| config.limits.body_timeout = Duration::from_millis(300)).await;
    let metadata = |version: u8, body: &[u8]| {
        framed(&[&[0, 3, 0, version, 0, 0, 0, 1, 255, 255][..], if version >= 9 { &[0] } else { &[] }, body].concat())
    };
    let cases: [(&str, Vec<u8>); 15] = [
        ("a frame of 2 GiB", vec![0x7f, 0xff, 0xff, 0xff]),
        ("a frame of negative length", vec![0xff, 0xff, 0xff, 0xff]),
        ("a frame just over the limit", ((16 << 20) + 1_i32).to_be_bytes().to_vec()),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a TLS handshake", vec![0x16, 0x03, 0x01, 0x02, 0, 1, 0, 1]),
        ("an empty frame", vec![0, 0, 0, 0]),
        ("half a header", framed(&[0, 3, 0])),
        ("an API that is not served", framed(&[0, 99, 0, 0, 0, 0, 0, 1, 255, 255])),
        ("a Produce of before batches", framed(&[0, 0, 0, 2, 0, 0, 0, 1, 255, 255, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])),
        ("an array of 2^31-1 topics", metadata(1, &[0x7f, 0xff, 0xff, 0xff])),
        ("an array of -2^31 topics", metadata(1, &[0x80, 0, 0, 0])),
        ("a compact array of 2^32-1 topics", metadata(12, &[0xff, 0xff, 0xff, 0xff, 0x0f])),
        ("a string longer than the frame", metadata(1, &[0, 0, 0, 1, 0x7f, 0xff])),
        ("2^32-1 tagged fields", metadata(12, &[0, 1, 0, 0xff, 0xff, 0xff, 0xff, 0x0f])),
        ("half a frame for ever", vec![0, 0, 1, 0, 0, 3]),
    ];
    for (what, bytes) in cases {
        refused(&house, what, &bytes).await;
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_and_those_too_many_are_closed() {
    let house = House::open_with(|config| {
        config.limits.connections_max = 2;
        config.kafka.idle_timeout = Duration::from_millis(200);
    })
    .await;
    let mut idle = [house.client().await, house.client().await];
    idle[0].call(Request::ApiVersions(ApiVersionsRequest::default()), 0).await;
    idle[1].call(Request::ApiVersions(ApiVersionsRequest::default()), 0).await;
    assert!(house.client().await.closed().await, "a third");
    assert!(idle[0].closed().await && idle[1].closed().await);
    house.client().await.call(Request::ApiVersions(ApiVersionsRequest::default()), 0).await;
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
    let mut packed = bomb[..61].to_vec();
    packed.extend(zstd::stream::encode_all(&bomb[61..], 3).unwrap());
    packed[22] = 4;
    let length = (packed.len() - 12) as i32;
    packed[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&packed[21..]);
    packed[17..21].copy_from_slice(&crc.to_be_bytes());
    assert!(packed.len() < 1 << 20);
    let cases = [
        ("a flipped bit", change(70, &[0xff], false), 2),
        ("an old format", change(16, &[1], true), 43),
        ("another record count", change(57, &9_i32.to_be_bytes(), true), 2),
        ("a negative record count", change(57, &(-1_i32).to_be_bytes(), true), 2),
        ("another last offset", change(23, &9_i32.to_be_bytes(), true), 2),
        ("a length of less", change(8, &5_i32.to_be_bytes(), true), 2),
        ("a negative length", change(8, &(-5_i32).to_be_bytes(), true), 2),
        ("a control batch", change(21, &[0, 0x20], true), 87),
        ("a transaction", change(21, &[0, 0x10], true), 87),
        ("an unknown compression", change(21, &[0, 7], true), 2),
        ("gzip that is none", change(21, &[0, 1], true), 2),
        ("two batches", Bytes::from([&good[..], &good[..]].concat()), 2),
        ("nothing", Bytes::new(), 2),
        ("a decompression bomb", Bytes::from(packed), 10),
    ];
    for (what, batch, code) in cases {
        assert_eq!(client.produce(0, batch).await.error_code, code, "{what}");
    }
    assert_eq!(client.list(-1).await.0, 0);
    house.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every API in every version, fed with what it is not.
    #[test]
    fn random_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let body = Bytes::from(body);
        for api in APIS {
            for version in api.min..=api.max {
                let _ = Request::read(api, version, body.clone());
            }
        }
    }

    /// The same with a few bytes of a good request changed, so that it gets further.
    #[test]
    fn changed_requests_never_panic(at in 0..200usize, to in any::<u8>(), cut in 0..200usize) {
        let mut requests = Request::all_empty();
        requests.push(Request::Fetch(fetch_request(5, 0, Duration::ZERO)));
        requests.push(produce_request(0, batch_of(&[("a", 1)], None), -1));
        for request in requests {
            let api = request.api();
            for version in api.min..=api.max {
                let mut writer = Writer::new(version, api.is_flexible(version));
                request.write(&mut writer);
                let whole = writer.into_bytes();
                prop_assert_eq!(Request::read(api, version, whole.clone()).is_ok(), true);
                let mut changed = whole.to_vec();
                if let Some(byte) = changed.get_mut(at) {
                    *byte = to;
                }
                changed.truncate(changed.len().saturating_sub(cut % 5));
                let _ = Request::read(api, version, Bytes::from(changed));
            }
        }
    }
}

/// One consumer, as far as the group is concerned.
struct Member<'a> {
    client: &'a mut Client,
    id: String,
    generation: i32,
}

impl Member<'_> {
    fn join_request(&self) -> Request {
        let protocols = vec![JoinGroupProtocol { name: "range".into(), metadata: Bytes::from_static(b"m") }];
        Request::JoinGroup(JoinGroupRequest {
            group_id: "g".into(),
            session_timeout_ms: 10_000,
            rebalance_timeout_ms: 30_000,
            member_id: self.id.clone(),
            protocol_type: "consumer".into(),
            protocols,
            ..Default::default()
        })
    }

    /// Joins, twice if an id is given first, and brings the assignment if it leads.
    async fn join(&mut self) {
        loop {
            let Response::JoinGroup(joined) = self.client.call(self.join_request(), 5).await else { panic!() };
            self.id.clone_from(&joined.member_id);
            if joined.error_code == 79 {
                continue;
            }
            assert_eq!(joined.error_code, 0);
            self.generation = joined.generation_id;
            let assignment = |member: &JoinGroupMember| SyncGroupAssignment {
                member_id: member.member_id.clone(),
                assignment: Bytes::from(format!("for {}", member.member_id)),
            };
            let sync = SyncGroupRequest {
                group_id: "g".into(),
                generation_id: self.generation,
                member_id: self.id.clone(),
                assignments: joined.members.iter().map(assignment).collect(),
                ..Default::default()
            };
            let Response::SyncGroup(synced) = self.client.call(Request::SyncGroup(sync), 3).await else { panic!() };
            assert_eq!((synced.error_code, synced.assignment), (0, Bytes::from(format!("for {}", self.id))));
            return;
        }
    }

    async fn heartbeat(&mut self) -> i16 {
        let (group_id, generation_id, member_id) = ("g".into(), self.generation, self.id.clone());
        let request = HeartbeatRequest { group_id, generation_id, member_id, ..Default::default() };
        let Response::Heartbeat(response) = self.client.call(Request::Heartbeat(request), 3).await else { panic!() };
        response.error_code
    }

    async fn commit(&mut self, topic: &str, offset: i64) -> i16 {
        let partition = OffsetCommitPartition { offset, metadata: Some("mine".into()), ..Default::default() };
        let request = OffsetCommitRequest {
            group_id: "g".into(),
            generation_id: self.generation,
            member_id: self.id.clone(),
            topics: vec![OffsetCommitTopic { name: topic.into(), partitions: vec![partition] }],
            ..Default::default()
        };
        let Response::OffsetCommit(response) = self.client.call(Request::OffsetCommit(request), 8).await else {
            panic!()
        };
        response.topics[0].partitions[0].error_code
    }
}

impl Client {
    async fn find_coordinator(&mut self, group: &str) {
        let request = FindCoordinatorRequest { keys: vec![group.to_owned()], ..Default::default() };
        let Response::FindCoordinator(found) = self.call(Request::FindCoordinator(request), 4).await else { panic!() };
        assert_eq!((found.coordinators[0].error_code, found.coordinators[0].node_id), (0, 1));
    }

    /// What is committed for every partition: topic, partition, offset.
    async fn committed(&mut self) -> Vec<(String, i32, i64)> {
        let group = OffsetFetchGroup { group_id: "g".into(), topics: None, ..Default::default() };
        let request = OffsetFetchRequest { groups: vec![group], ..Default::default() };
        let Response::OffsetFetch(mut found) = self.call(Request::OffsetFetch(request), 8).await else { panic!() };
        let group = found.groups.remove(0);
        assert_eq!(group.error_code, 0);
        let partitions = group.topics.into_iter().flat_map(|topic| {
            topic.partitions.into_iter().map(move |found| (topic.name.clone(), found.partition, found.offset))
        });
        partitions.collect()
    }
}

/// What a coordinator would write of a group that is deleted.
fn another_groups_end(limits: &BatchLimits) -> RecordBatch {
    let mut builder = RecordBatchBuilder::new(*limits);
    let (key, value) = (Some("another".into()), Some(Bytes::from_static(b"\x01\x01")));
    builder.push(&NewRecord { key, value, ..Default::default() }).unwrap();
    builder.build(None).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_gather_commit_and_are_there_after_the_coordinator_is_new() {
    let house = House::open_with(|config| config.kafka.offsets_partitions = 2).await;
    house.topic("t", 1).await;
    let (mut one, mut two) = (house.client().await, house.client().await);
    one.find_coordinator("g").await;
    let mut one = Member { client: &mut one, id: String::new(), generation: -1 };
    let mut two = Member { client: &mut two, id: String::new(), generation: -1 };
    tokio::join!(one.join(), two.join());
    assert_eq!((one.generation, one.heartbeat().await, two.heartbeat().await), (two.generation, 0, 0));
    assert_eq!((one.commit("t", 17).await, two.commit("missing", 1).await), (0, 3));
    assert_eq!(one.client.committed().await, [("t".to_owned(), 0, 17)]);
    // Somebody writes into the coordinator's log: it notices at its next write, and reads the log anew.
    let partition = house.broker.groups().partition_of("g").unwrap();
    let crate::broker::Route::Local(log) = house.broker.route(crate::coordinator::OFFSETS_TOPIC, partition).unwrap()
    else {
        panic!()
    };
    log.produce(another_groups_end(log.limits()), crate::partition::Acks::All, None, PATIENCE).await.unwrap();
    assert_eq!(one.commit("t", 18).await, 16, "look for the coordinator again");
    assert_eq!(one.client.committed().await, [("t".to_owned(), 0, 17)]);
    assert_eq!((one.commit("t", 18).await, one.heartbeat().await, two.heartbeat().await), (0, 0, 0), "same generation");
    assert_eq!(one.client.committed().await, [("t".to_owned(), 0, 18)]);
    // A topic of the same name is another topic.
    house.broker.delete_topic("t", PATIENCE).await.unwrap();
    house.topic("t", 1).await;
    assert_eq!(one.client.committed().await, []);
    house.close().await;
}

/// Consumers end over COORDINATOR_LOAD_IN_PROGRESS in these two answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_coordinator_stops_looks_for_another() {
    let house = House::open_with(|config| config.kafka.offsets_partitions = 1).await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    client.find_coordinator("g").await;
    let mut member = Member { client: &mut client, id: String::new(), generation: -1 };
    member.join().await;
    house.broker.shutdown(Duration::from_secs(10)).await;
    assert_eq!(member.heartbeat().await, 16);
    let sync = SyncGroupRequest {
        group_id: "g".into(),
        generation_id: member.generation,
        member_id: member.id.clone(),
        ..Default::default()
    };
    let Response::SyncGroup(synced) = client.call(Request::SyncGroup(sync), 3).await else { panic!() };
    assert_eq!(synced.error_code, 16);
    house.server.close(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_groups_is_shortened_and_still_tells_everything() {
    use crate::coordinator::{CommittedOffset, GroupError, OFFSETS_TOPIC, Speaker};
    let house = House::open_with(|config| config.kafka.offsets_partitions = 1).await;
    house.broker.ensure_offsets_topic(PATIENCE).await.unwrap();
    let groups = house.broker.groups();
    let commit = |group: &'static str, offset| {
        let committed = CommittedOffset {
            topic: "t".into(),
            topic_id: 1,
            partition: 0,
            offset,
            leader_epoch: -1,
            metadata: String::new(),
            time_ms: 0,
        };
        groups.commit(group, Speaker { generation: -1, ..Default::default() }, vec![committed])
    };
    let told = async |group| groups.committed(group, None).await.unwrap()[0].offset;
    // A partition that has just been elected may not be able to confirm it yet: whoever asks is told to ask again.
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = commit("quiet", 7).await {
        let moved = matches!(error, GroupError::NotCoordinator | GroupError::Lost);
        assert!(moved && Instant::now() < deadline, "{error}");
        sleep(Duration::from_millis(10)).await;
    }
    for round in 0..22 {
        // All of them again if leadership moved under way: on a busy machine even the only replica may lose it for a moment.
        while let Err(error) = {
            let commits = (0..500).map(|number| commit("busy", round * 500 + number));
            let committed = futures_util::future::join_all(commits).await;
            committed.into_iter().collect::<Result<Vec<_>, _>>()
        } {
            let moved = matches!(error, GroupError::NotCoordinator | GroupError::Lost);
            assert!(moved && Instant::now() < deadline, "{error}");
        }
    }
    let crate::broker::Route::Local(log) = house.broker.route(OFFSETS_TOPIC, 0).unwrap() else { panic!() };
    let start = log.log_start_offset();
    assert!(start.0 > 10_000, "the log starts at {start}");
    assert_eq!((told("quiet").await, told("busy").await), (7, 22 * 500 - 1));
    // What is left of the log tells the same to a new coordinator.
    log.produce(another_groups_end(log.limits()), crate::partition::Acks::All, None, PATIENCE).await.unwrap();
    assert_eq!(commit("busy", 0).await, Err(GroupError::Lost));
    assert_eq!((told("quiet").await, told("busy").await), (7, 22 * 500 - 1));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_described_listed_left_and_deleted() {
    let house = House::open_with(|config| config.kafka.offsets_partitions = 2).await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    client.find_coordinator("g").await;
    let mut member = Member { client: &mut client, id: String::new(), generation: -1 };
    member.join().await;
    assert_eq!(member.commit("t", 3).await, 0);
    let (id, generation) = (member.id.clone(), member.generation);
    let describe = |name: &str| {
        let groups = vec![name.to_owned()];
        Request::DescribeGroups(DescribeGroupsRequest { groups, ..Default::default() })
    };
    let Response::DescribeGroups(found) = client.call(describe("g"), 5).await else { panic!() };
    let group = &found.groups[0];
    assert_eq!((group.group_state.as_str(), group.members.len()), ("Stable", 1));
    assert_eq!((&group.members[0].client_id[..], &group.members[0].client_host[..]), ("test", "/127.0.0.1"));
    let Response::DescribeGroups(found) = client.call(describe("nobody"), 5).await else { panic!() };
    assert_eq!((found.groups[0].group_state.as_str(), found.groups[0].error_code), ("Dead", 0));
    for (filter, count) in [(vec![], 1), (vec!["Stable".to_owned()], 1), (vec!["Empty".to_owned()], 0)] {
        let request = ListGroupsRequest { states_filter: filter, ..Default::default() };
        let Response::ListGroups(found) = client.call(Request::ListGroups(request), 4).await else { panic!() };
        assert_eq!((found.error_code, found.groups.len()), (0, count));
    }
    let delete = Request::DeleteGroups(DeleteGroupsRequest { groups: vec!["g".into(), "nobody".into()] });
    let codes = |response: Response| {
        let Response::DeleteGroups(response) = response else { panic!() };
        response.results.iter().map(|result| result.error_code).collect::<Vec<_>>()
    };
    assert_eq!(codes(client.call(delete.clone(), 2).await), [68, 69]);
    let leaving = |id: &str| LeavingMember { member_id: id.to_owned(), ..Default::default() };
    let members = vec![leaving(&id), leaving("nobody")];
    let leave = Request::LeaveGroup(LeaveGroupRequest { group_id: "g".into(), members, ..Default::default() });
    let Response::LeaveGroup(left) = client.call(leave, 4).await else { panic!() };
    assert_eq!(left.members.iter().map(|member| member.error_code).collect::<Vec<_>>(), [0, 25]);
    let mut gone = Member { client: &mut client, id, generation };
    assert_eq!((gone.heartbeat().await, gone.commit("t", 4).await), (25, 25));
    let topics = vec![OffsetDeleteTopic { name: "t".into(), partitions: vec![OffsetDeletePartition { partition: 0 }] }];
    let request = Request::OffsetDelete(OffsetDeleteRequest { group_id: "g".into(), topics });
    let Response::OffsetDelete(deleted) = client.call(request, 0).await else { panic!() };
    assert_eq!((deleted.error_code, deleted.topics[0].partitions[0].error_code), (0, 0));
    assert_eq!(client.committed().await, []);
    assert_eq!(codes(client.call(delete, 2).await), [0, 69]);
    assert_eq!(client.produce(0, Bytes::new()).await.error_code, 2);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_holds_the_groups_is_not_for_clients_to_change() {
    use crate::coordinator::OFFSETS_TOPIC;
    const INVALID_TOPIC: i16 = 17;
    let house = House::open().await;
    house.broker.ensure_offsets_topic(PATIENCE).await.unwrap();
    let mut client = house.client().await;
    let mut request = produce_request(0, batch_of(&[("x", 1)], None), -1);
    if let Request::Produce(produce) = &mut request {
        produce.topics[0].name = OFFSETS_TOPIC.to_owned();
    }
    let Response::Produce(refused) = client.call(request, 9).await else { panic!() };
    assert_eq!(refused.topics[0].partitions[0].error_code, INVALID_TOPIC);
    let partitions = vec![DeleteRecordsPartition { partition: 0, offset: -1 }];
    let topics = vec![DeleteRecordsTopic { name: OFFSETS_TOPIC.into(), partitions }];
    let request = Request::DeleteRecords(DeleteRecordsRequest { topics, timeout_ms: 30_000 });
    let Response::DeleteRecords(refused) = client.call(request, 2).await else { panic!() };
    assert_eq!(refused.topics[0].partitions[0].error_code, INVALID_TOPIC);
    let topics = vec![MorePartitions { name: OFFSETS_TOPIC.into(), count: 100, assignments: None }];
    let request = CreatePartitionsRequest { topics, timeout_ms: 30_000, validate_only: false };
    let Response::CreatePartitions(refused) = client.call(Request::CreatePartitions(request), 3).await else {
        panic!()
    };
    assert_eq!(refused.results[0].error_code, INVALID_TOPIC);
    let configs = vec![ConfigChange { name: "retention.ms".into(), operation: 0, value: Some("1".into()) }];
    let resources = vec![IncrementalResource { resource_type: 2, resource_name: OFFSETS_TOPIC.into(), configs }];
    let request = IncrementalAlterConfigsRequest { resources, validate_only: false };
    let Response::IncrementalAlterConfigs(refused) = client.call(Request::IncrementalAlterConfigs(request), 1).await
    else {
        panic!()
    };
    assert_eq!(refused.responses[0].error_code, INVALID_TOPIC);
    let request =
        DeleteTopicsRequest { topic_names: vec![OFFSETS_TOPIC.into()], timeout_ms: 30_000, ..Default::default() };
    let Response::DeleteTopics(refused) = client.call(Request::DeleteTopics(request), 4).await else { panic!() };
    assert_eq!(refused.topics[0].error_code, INVALID_TOPIC);
    assert_eq!(house.broker.topic(OFFSETS_TOPIC).unwrap().config["retention.ms"], "-1");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configurations_change_and_records_are_deleted() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    let change = |name: &str, operation, value: Option<&str>| ConfigChange {
        name: name.into(),
        operation,
        value: value.map(Into::into),
    };
    let incremental = |resource_type, configs, validate_only| {
        let resources = vec![IncrementalResource { resource_type, resource_name: "t".into(), configs }];
        Request::IncrementalAlterConfigs(IncrementalAlterConfigsRequest { resources, validate_only })
    };
    let mut alter = async |request| {
        let Response::IncrementalAlterConfigs(response) = client.call(request, 1).await else { panic!() };
        response.responses[0].error_code
    };
    let retention = || vec![change("retention.ms", 0, Some("5000"))];
    let set = || house.broker.topic("t").unwrap().config;
    assert_eq!((alter(incremental(2, retention(), true)).await, set().len()), (0, 0));
    assert_eq!((alter(incremental(2, retention(), false)).await, set()["retention.ms"].as_str()), (0, "5000"));
    for (wrong, code) in [
        (change("no.such", 0, Some("1")), 40),
        (change("retention.ms", 0, None), 42),
        (change("retention.ms", 2, Some("1")), 40),
    ] {
        assert_eq!(alter(incremental(2, vec![wrong], false)).await, code);
    }
    assert_eq!(alter(incremental(4, retention(), false)).await, 42);
    // What holds anyway is taken and not stored: one replica's majority is one.
    let unclean = "unclean.leader.election.enable";
    for (key, value, code) in [
        ("min.insync.replicas", "1", 0),
        ("min.insync.replicas", "2", 40),
        (unclean, "false", 0),
        (unclean, "true", 40),
    ] {
        let found = alter(incremental(2, vec![change(key, 0, Some(value))], false)).await;
        assert_eq!((found, set().len()), (code, 1), "{key}={value}");
    }
    // A list takes in and lets go; what it cannot hold is refused by its value.
    for (operation, value, code) in
        [(2, "delete", 0), (2, "compact", 40), (3, "compact", 0), (3, "delete", 40), (9, "x", 40)]
    {
        let change = vec![change("cleanup.policy", operation, Some(value))];
        assert_eq!(alter(incremental(2, change, false)).await, code, "{operation} {value}");
    }
    assert_eq!(set()["cleanup.policy"], "delete");
    alter(incremental(2, vec![change("cleanup.policy", 1, None)], false)).await;
    assert_eq!((alter(incremental(2, vec![change("retention.ms", 1, None)], false)).await, set().len()), (0, 0));
    alter(incremental(2, retention(), false)).await;
    let configs = vec![ConfigValue { name: "segment.ms".into(), value: Some("7".into()) }];
    let resources = vec![AlterConfigsResource { resource_type: 2, resource_name: "t".into(), configs }];
    let request = Request::AlterConfigs(AlterConfigsRequest { resources, validate_only: false });
    let Response::AlterConfigs(response) = client.call(request, 2).await else { panic!() };
    assert_eq!((response.responses[0].error_code, set().len()), (0, 1), "the others went back to their defaults");
    for _ in 0..5 {
        client.produce(0, batch_of(&[("a", 1)], None)).await;
    }
    for (offset, found) in [(2, (0, 2)), (99, (1, -1)), (-1, (0, 5)), (-7, (1, -1))] {
        let partitions = vec![DeleteRecordsPartition { partition: 0, offset }];
        let topics = vec![DeleteRecordsTopic { name: "t".into(), partitions }];
        let request = Request::DeleteRecords(DeleteRecordsRequest { topics, timeout_ms: 30_000 });
        let Response::DeleteRecords(response) = client.call(request, 2).await else { panic!() };
        let deleted = &response.topics[0].partitions[0];
        assert_eq!((deleted.error_code, deleted.low_watermark), found, "{offset}");
    }
    assert_eq!(client.list(-2).await.0, 5);
    // Who gives it no time is told what came of it all the same.
    client.produce(0, batch_of(&[("a", 1)], None)).await;
    let partitions = vec![DeleteRecordsPartition { partition: 0, offset: 6 }];
    let topics = vec![DeleteRecordsTopic { name: "t".into(), partitions }];
    let request = Request::DeleteRecords(DeleteRecordsRequest { topics, timeout_ms: 0 });
    let Response::DeleteRecords(response) = client.call(request, 2).await else { panic!() };
    assert_eq!((response.topics[0].partitions[0].error_code, response.topics[0].partitions[0].low_watermark), (0, 6));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_what_it_may_do_is_told_everything() {
    let house = House::open().await;
    house.topic("t", 1).await;
    let mut client = house.client().await;
    for (asked, cluster, topic) in [(false, i32::MIN, i32::MIN), (true, 0x1fa0 & !(1 << 6), 0xdf8)] {
        let request = Request::Metadata(MetadataRequest {
            topics: Some(vec![MetadataTopicName { name: Some("t".into()), ..Default::default() }]),
            include_cluster_authorized_operations: asked,
            include_topic_authorized_operations: asked,
            ..Default::default()
        });
        let Response::Metadata(response) = client.call(request, 10).await else { panic!() };
        assert_eq!(response.cluster_authorized_operations, cluster);
        assert_eq!(response.topics[0].topic_authorized_operations, topic);
        let request = DescribeClusterRequest {
            include_cluster_authorized_operations: asked,
            endpoint_type: 1,
            ..Default::default()
        };
        let Response::DescribeCluster(response) = client.call(Request::DescribeCluster(request), 2).await else {
            panic!()
        };
        assert_eq!(response.cluster_authorized_operations, cluster);
    }
    house.close().await;
}
