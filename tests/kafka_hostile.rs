//! Hostile clients at the Kafka door of a real broker: each loses its own connection, with a line in the log that says why; what the
//! broker holds in memory for them stays bounded; others are served on as if nothing were. (Classes: what other brokers had to learn.)

use std::io::Write as _;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::join_all;
use pontoon::kafka::messages::{
    Api, ApiVersionsRequest, CreatableTopic, CreateTopicsRequest, DescribeGroupsRequest, FetchPartition, FetchRequest,
    FetchTopic, MetadataRequest, MetadataTopicName, OffsetDeletePartition, OffsetDeleteRequest, OffsetDeleteTopic,
    OffsetFetchGroup, OffsetFetchRequest, OffsetFetchTopic, ProducePartition, ProduceRequest, ProduceTopic, Request,
    Response,
};
use pontoon::kafka::wire::{RecordData, Writer};
use pontoon::record_batch::{BatchLimits, NewRecord, RecordBatchBuilder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::support::{Cluster, PATIENCE};

/// A broker with little room, so that it runs short soon. Whoever is closed is so because of what it does, not because time is over.
const SMALL: &[&str] = &[
    "--set=socket.request.max.bytes=4194304",
    "--set=limits.request_bytes_max=4194304",
    "--set=limits.inflight_bytes_max=8388608",
    "--set=limits.body_timeout_ms=3600000",
    "--set=limits.write_timeout_ms=3600000",
];

struct Client {
    stream: TcpStream,
    next: i32,
}

impl Client {
    async fn connect(cluster: &Cluster) -> Self {
        Self { stream: TcpStream::connect(cluster.kafka_address(1)).await.unwrap(), next: 0 }
    }

    /// One whose kernel takes little of what it is sent.
    async fn connect_small(cluster: &Cluster) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        Self { stream: socket.connect(cluster.kafka_address(1).parse().unwrap()).await.unwrap(), next: 0 }
    }

    async fn send(&mut self, request: &Request, version: i16) {
        self.next += 1;
        self.stream.write_all(&frame(request, version, self.next)).await.unwrap();
    }

    /// `None`: the connection is closed.
    async fn receive(&mut self, api: &Api, version: i16) -> Option<Response> {
        let read = async {
            let length = self.stream.read_i32().await.ok()?;
            let mut bytes = vec![0; length as usize];
            self.stream.read_exact(&mut bytes).await.ok()?;
            Some(Bytes::from(bytes))
        };
        let mut bytes = timeout(PATIENCE, read).await.expect("no answer")?;
        assert_eq!(bytes.split_to(4)[..], self.next.to_be_bytes());
        if api.is_flexible(version) && api.name != "ApiVersions" {
            assert_eq!(bytes.split_to(1)[0], 0);
        }
        Some(Response::read(api, version, bytes).unwrap())
    }

    async fn call(&mut self, request: Request, version: i16) -> Response {
        self.send(&request, version).await;
        self.receive(request.api(), version).await.expect("the connection is closed")
    }

    /// Error and base offset.
    async fn produce(&mut self, partition: i32, batch: Bytes) -> (i16, i64) {
        let Response::Produce(response) = self.call(produce_request(partition, batch), 9).await else { panic!() };
        let answer = &response.topics[0].partitions[0];
        (answer.error_code, answer.base_offset)
    }

    async fn closed(mut self) {
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await.expect("it is still open");
    }
}

fn frame(request: &Request, version: i16, correlation_id: i32) -> Bytes {
    let api = request.api();
    let flexible = api.is_flexible(version);
    let mut out = BytesMut::new();
    out.put_i32(0);
    out.put_i16(api.key);
    out.put_i16(version);
    out.put_i32(correlation_id);
    out.put_i16(-1);
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

/// A frame of these bytes behind a header without a client id.
fn raw(api: u8, version: u8, flexible: bool, body: &[u8]) -> Vec<u8> {
    let header = [&[0, api, 0, version, 0, 0, 0, 1, 255, 255][..], if flexible { &[0] } else { &[] }].concat();
    let length = ((header.len() + body.len()) as i32).to_be_bytes();
    [&length[..], &header, body].concat()
}

fn produce_request(partition: i32, batch: Bytes) -> Request {
    let partitions = vec![ProducePartition { index: partition, records: RecordData::some(vec![batch]) }];
    let topics = vec![ProduceTopic { name: "t".into(), partitions, ..Default::default() }];
    Request::Produce(ProduceRequest { acks: -1, timeout_ms: 30_000, topics, ..Default::default() })
}

fn fetch_request(partitions: usize, wait: Duration) -> Request {
    let partition = FetchPartition { partition_max_bytes: 16 << 20, ..Default::default() };
    let topic = FetchTopic { topic: "t".into(), partitions: vec![partition; partitions], ..Default::default() };
    Request::Fetch(FetchRequest {
        max_wait_ms: wait.as_millis() as i32,
        min_bytes: i32::MAX,
        max_bytes: 16 << 20,
        topics: vec![topic],
        ..Default::default()
    })
}

fn batch(value: Vec<u8>) -> Bytes {
    let limits = BatchLimits { record_bytes_max: 128 << 20, batch_bytes_max: 128 << 20, ..Default::default() };
    let mut builder = RecordBatchBuilder::new(limits);
    builder.push(&NewRecord { value: Some(value.into()), ..Default::default() }).unwrap();
    builder.build(None).unwrap().into_bytes()
}

/// A batch whose records were compressed, with length and checksum put right.
fn packed(plain: &Bytes, codec: u8, records: Vec<u8>) -> Bytes {
    let mut out = [&plain[..61], &records].concat();
    out[22] = codec;
    let length = (out.len() - 12) as i32;
    out[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&out[21..]);
    out[17..21].copy_from_slice(&crc.to_be_bytes());
    out.into()
}

/// One small batch for each codec that becomes 100 MiB.
fn bombs() -> Vec<(&'static str, Bytes)> {
    let plain = batch(vec![0; 100 << 20]);
    let records = &plain[61..];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(records).unwrap();
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(records).unwrap();
    let snappy = snap::raw::Encoder::new().compress_vec(records).unwrap();
    vec![
        ("gzip", packed(&plain, 1, gzip.finish().unwrap())),
        ("snappy", packed(&plain, 2, snappy)),
        ("lz4", packed(&plain, 3, lz4.finish().unwrap())),
        ("zstd", packed(&plain, 4, zstd::stream::encode_all(records, 3).unwrap())),
    ]
}

/// The most memory that the broker ever had, in bytes, since it was last forgotten.
fn peak_bytes(cluster: &Cluster) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.pid(1))).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn forget_peak(cluster: &Cluster) -> u64 {
    std::fs::write(format!("/proc/{}/clear_refs", cluster.pid(1)), "5").unwrap();
    peak_bytes(cluster)
}

async fn await_log(cluster: &Cluster, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !cluster.log(1).contains(what) {
        assert!(Instant::now() < deadline, "the log does not say {what:?}:\n{}", cluster.log(1));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_speak_the_protocol_loses_the_connection_and_the_log_says_why() {
    let args = ["--set=limits.body_timeout_ms=500", "--set=socket.request.max.bytes=4194304"];
    let cluster = Cluster::start_with(1, &args).await;
    cluster.create_topic(1, "t", 1).await;
    let mut honest = Client::connect(&cluster).await;
    assert_eq!(honest.produce(0, batch(b"first".to_vec())).await, (0, 0));
    let before = forget_peak(&cluster);
    let tags = [&[0, 1, 0][..], &[0xff, 0xff, 0xff, 0xff, 0x0f]].concat();
    let many_tags: Vec<u8> = [&[0, 1, 0, 0x90, 0x4e][..], &(0..10_000u32).flat_map(tag).collect::<Vec<_>>()].concat();
    let deep = raw(3, 12, true, &many_tags);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a frame of 2 GiB", vec![0x7f, 0xff, 0xff, 0xff], "a frame of 2147483647 bytes; the limit is 4194304"),
        ("a frame of negative length", vec![0x80, 0, 0, 0], "a frame of -2147483648 bytes"),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec(), "is that HTTP?"),
        ("TLS", vec![0x16, 0x03, 0x01, 0x02, 0, 1, 0, 1], "there is no TLS here"),
        ("an empty frame", vec![0, 0, 0, 0], "api key: cut short"),
        ("half a header", vec![0, 0, 0, 3, 0, 3, 0], "api version: cut short"),
        ("a handshake that is not there", raw(17, 1, false, &[0, 5, b'P', b'L', b'A', b'I', b'N']), "API 17"),
        ("an API of brokers only", raw(6, 7, true, &[]), "API 6 version 7 is not served"),
        ("a Produce of before batches", raw(0, 2, false, &[0; 8]), "Produce version 2 is not served"),
        ("2^31-1 topics", raw(3, 1, false, &[0x7f, 0xff, 0xff, 0xff]), "topics: length 2147483647 with 0 bytes left"),
        ("-2^31 topics", raw(3, 1, false, &[0x80, 0, 0, 0]), "topics: length -2147483648"),
        ("2^32-2 topics", raw(3, 12, true, &[0xff, 0xff, 0xff, 0xff, 0x0f]), "topics: length 4294967294"),
        ("a text with the sign bit", raw(3, 1, false, &[0, 0, 0, 1, 0x80, 0]), "length -32768 with 0 bytes left"),
        ("2^32-1 tagged fields", raw(3, 12, true, &tags), "cut short: 0 of 1 bytes"),
        ("a text that is none", raw(3, 1, false, &[0, 0, 0, 1, 0, 2, 0xc3, 0x28]), "not UTF-8"),
        ("records without end", raw(0, 3, false, &records_of_length(0x7fff_ffff)), "records: length 2147483647"),
        ("half a frame for ever", vec![0, 0, 1, 0, 0, 3], "half a frame for 500ms"),
    ];
    for (what, bytes, why) in cases {
        let mut hostile = Client::connect(&cluster).await;
        let peer = hostile.stream.local_addr().unwrap();
        let _ = hostile.stream.write_all(&bytes).await;
        hostile.closed().await;
        await_log(&cluster, why).await;
        let log = cluster.log(1);
        let line = log.lines().find(|line| line.contains(&peer.to_string()) && line.contains("is closed"));
        assert!(line.is_some_and(|line| line.contains(why)), "{what}: {line:?}");
        honest.call(Request::ApiVersions(ApiVersionsRequest::default()), 0).await;
    }
    // Ten thousand unknown tagged fields are passed over, as Kafka does; they take nothing.
    let mut odd = Client { next: 1, ..Client::connect(&cluster).await };
    odd.stream.write_all(&deep).await.unwrap();
    assert!(odd.receive(Api::of(3).unwrap(), 12).await.is_some());
    assert_eq!(honest.produce(0, batch(b"second".to_vec())).await, (0, 1), "the same connection all along");
    let grown = peak_bytes(&cluster).saturating_sub(before);
    assert!(grown < 32 << 20, "{} KiB for announcements", grown >> 10);
}

/// A tagged field of no bytes.
fn tag(number: u32) -> Vec<u8> {
    let mut writer = Writer::new(0, true);
    writer.unsigned_varint(number);
    writer.unsigned_varint(0);
    writer.into_bytes().to_vec()
}

/// A Produce of version 3 whose only batch says that it is so long.
fn records_of_length(length: u32) -> Vec<u8> {
    let head = [255, 255, 255, 255, 0, 0, 0, 9, 0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1, 0, 0, 0, 0];
    [&head[..], &length.to_be_bytes(), b"x"].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_batches_that_lie_are_refused_each_for_itself() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let mut client = Client::connect(&cluster).await;
    let names = ["a/b", "..", ".", "", "nul\0", "ä", &"x".repeat(300)];
    let topic = |name: &&str| CreatableTopic {
        name: (*name).to_owned(),
        num_partitions: 1,
        replication_factor: 1,
        ..Default::default()
    };
    let topics = names.iter().map(topic).collect();
    let create = Request::CreateTopics(CreateTopicsRequest { topics, timeout_ms: 30_000, validate_only: false });
    let Response::CreateTopics(refused) = client.call(create, 5).await else { panic!() };
    assert!(refused.topics.iter().all(|topic| topic.error_code == 17), "{refused:?}");
    let good = batch(b"good".to_vec());
    let nested = packed(&good, 4, zstd::stream::encode_all(&good[..], 3).unwrap());
    let change = |at: usize, bytes: &[u8]| {
        let mut plain = good.to_vec();
        plain[at..at + bytes.len()].copy_from_slice(bytes);
        let crc = crc32c::crc32c(&plain[21..]);
        plain[17..21].copy_from_slice(&crc.to_be_bytes());
        Bytes::from(plain)
    };
    let before = forget_peak(&cluster);
    for (what, lie) in [
        ("a record count of 2^31-1", change(57, &i32::MAX.to_be_bytes())),
        ("a negative record count", change(57, &(-1i32).to_be_bytes())),
        ("a last offset elsewhere", change(23, &i32::MAX.to_be_bytes())),
        ("a negative batch length", change(8, &(-1i32).to_be_bytes())),
        ("a record of negative size", change(61, &[0x01])),
        ("a record longer than its batch", change(61, &[0xfe, 0xff, 0xff, 0xff, 0x0f])),
        ("a batch within a batch, as old formats had it", nested),
        ("an unknown codec", change(21, &[0, 7])),
        ("nothing", Bytes::new()),
    ] {
        let (code, _) = client.produce(0, lie).await;
        assert!([2, 87].contains(&code), "{what}: error {code}");
    }
    assert_eq!(client.produce(0, good).await, (0, 0), "nothing of them was written");
    assert!(peak_bytes(&cluster) - before < 16 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_of_every_codec_go_off_in_little_room() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let bombs = bombs();
    let before = forget_peak(&cluster);
    let thrown = bombs.iter().flat_map(|bomb| std::iter::repeat_n(bomb, 4)).map(async |(codec, bomb)| {
        let (code, _) = Client::connect(&cluster).await.produce(0, bomb.clone()).await;
        assert_eq!(code, 10, "{codec}");
    });
    join_all(thrown).await;
    // 16 of 100 MiB. Each comes to 64 MiB and is given up, on one of few threads; the allocator keeps what was just freed for a moment.
    let grown = peak_bytes(&cluster).saturating_sub(before);
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    assert!(grown < threads * (256 << 20), "{} MiB", grown >> 20);
    assert_eq!(Client::connect(&cluster).await.produce(0, batch(b"after".to_vec())).await, (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_many_elements_take_memory_that_is_counted() {
    let args = ["--set=limits.request_bytes_max=1048576", "--set=limits.inflight_bytes_max=1048576"];
    let cluster = Cluster::start_with(1, &args).await;
    cluster.create_topic(1, "t", 1).await;
    let before = forget_peak(&cluster);
    // As many elements as possible in as few bytes: empty names. 40 bytes in memory for each.
    let name = MetadataTopicName { name: Some(String::new()), ..Default::default() };
    let dense =
        |count| Request::Metadata(MetadataRequest { topics: Some(vec![name.clone(); count]), ..Default::default() });
    let attacks = (0..64).map(async |_| {
        let mut hostile = Client::connect(&cluster).await;
        hostile.send(&dense(190_000), 8).await;
        hostile.closed().await;
    });
    join_all(attacks).await;
    await_log(&cluster, "array elements in so short a message").await;
    // Those that are let in, and wait for records, hold no more together than there is room for; the others wait for their turn.
    let waiting = (0..12).map(async |_| {
        let mut patient = Client::connect(&cluster).await;
        let request = fetch_request(5000, Duration::from_millis(100));
        patient.call(request, 4).await
    });
    for answer in join_all(waiting).await {
        let Response::Fetch(answer) = answer else { panic!() };
        assert!(answer.topics[0].partitions.iter().all(|partition| partition.error_code == 0));
    }
    let grown = peak_bytes(&cluster).saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB", grown >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sits_on_room_that_others_need_loses_it() {
    let cluster = Cluster::start_with(1, SMALL).await;
    cluster.create_topic(1, "t", 1).await;
    let mut held = Vec::new();
    for _ in 0..24 {
        let mut hostile = Client::connect(&cluster).await;
        // Enough of a large frame for all of its room.
        let part = [&(4i32 << 20).to_be_bytes()[..], &[0; 100 << 10]].concat();
        hostile.stream.write_all(&part).await.unwrap();
        held.push(hostile);
    }
    for round in 0..3 {
        let mut honest = Client::connect(&cluster).await;
        assert_eq!(honest.produce(0, batch(vec![7; 1 << 19])).await, (0, round));
    }
    await_log(&cluster, "others wait for the room that it holds").await;
    await_log(&cluster, "of a frame's 4194304 bytes").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_no_answers_loses_the_room_they_take() {
    let cluster = Cluster::start_with(1, SMALL).await;
    cluster.create_topic(1, "t", 1).await;
    let mut honest = Client::connect(&cluster).await;
    for offset in 0..16 {
        assert_eq!(honest.produce(0, batch(vec![7; 1 << 19])).await, (0, offset));
    }
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut hostile = Client::connect_small(&cluster).await;
        let mut request = fetch_request(1, Duration::ZERO);
        if let Request::Fetch(fetch) = &mut request {
            fetch.min_bytes = 1;
        }
        // More than the kernel takes for a client that reads nothing.
        for _ in 0..4 {
            hostile.send(&request, 12).await;
        }
        held.push(hostile);
    }
    let Response::Fetch(answer) = honest.call(fetch_request(1, Duration::ZERO), 12).await else { panic!() };
    assert!(answer.topics[0].partitions[0].records.0.iter().flatten().map(Bytes::len).sum::<usize>() > 1 << 20);
    await_log(&cluster, "bytes of an answer, ").await;
}

/// A client that reads a little now and then holds what it was given; others have to wait for the same room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_answers_by_the_drop_loses_the_room_they_take() {
    let cluster = Cluster::start_with(1, SMALL).await;
    cluster.create_topic(1, "t", 1).await;
    let mut honest = Client::connect(&cluster).await;
    for offset in 0..16 {
        assert_eq!(honest.produce(0, batch(vec![7; 1 << 19])).await, (0, offset));
    }
    let mut slow = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let mut hostile = Client::connect_small(&cluster).await;
        for _ in 0..4 {
            hostile.send(&fetch_request(1, Duration::ZERO), 12).await;
        }
        slow.spawn(async move {
            let mut drop = [0; 1024];
            while matches!(hostile.stream.read(&mut drop).await, Ok(1..)) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    for _ in 0..3 {
        let Response::Fetch(answer) = honest.call(fetch_request(1, Duration::ZERO), 12).await else { panic!() };
        let answer = &answer.topics[0].partitions[0];
        assert!(!answer.records.0.iter().flatten().all(Bytes::is_empty), "{answer:?}");
    }
    await_log(&cluster, "bytes of an answer, ").await;
    slow.shutdown().await;
}

/// What Kafka's own limits allow: as much as one client may send at once to all partitions of a broker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_as_large_as_kafkas_is_served() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 20).await;
    let partition = |index| ProducePartition { index, records: RecordData::some(vec![batch(vec![7; 1_000_000])]) };
    let topics =
        vec![ProduceTopic { name: "t".into(), partitions: (0..20).map(partition).collect(), ..Default::default() }];
    let request = Request::Produce(ProduceRequest { acks: -1, timeout_ms: 30_000, topics, ..Default::default() });
    let Response::Produce(answer) = Client::connect(&cluster).await.call(request, 9).await else { panic!() };
    assert!(
        answer.topics[0].partitions.iter().all(|partition| (partition.error_code, partition.base_offset) == (0, 0))
    );
}

/// A name is said once and meant for very many partitions; a group or a topic can be named again and again. What is held for an answer
/// must not be the one times the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_frame_that_names_very_much_takes_little_memory() {
    const MANY: usize = 190_000;
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 100).await;
    let mut honest = Client::connect(&cluster).await;
    assert_eq!(honest.produce(0, batch(b"first".to_vec())).await, (0, 0));
    let long = "x".repeat(32_000);
    let partitions = || (0..MANY as i32).collect::<Vec<_>>();
    let produced = |name: &str| {
        let partition = |index| ProducePartition { index, records: RecordData::some(Vec::new()) };
        let partitions = partitions().into_iter().map(partition).collect();
        vec![ProduceTopic { name: name.into(), partitions, ..Default::default() }]
    };
    let produce = |id: Option<&str>, name: &str, acks| {
        let transactional_id = id.map(Into::into);
        Request::Produce(ProduceRequest { transactional_id, acks, timeout_ms: 1, topics: produced(name) })
    };
    let offsets = |name: &str, partitions| OffsetFetchTopic { name: name.into(), partitions };
    let name = "a-group-of-consumers".to_owned();
    let fetch_offsets = |topics| OffsetFetchGroup { group_id: name.clone(), topics, ..Default::default() };
    let forget = |name: &str| {
        let partitions = partitions().into_iter().map(|partition| OffsetDeletePartition { partition }).collect();
        OffsetDeleteRequest { group_id: "g".into(), topics: vec![OffsetDeleteTopic { name: name.into(), partitions }] }
    };
    let described = |name: &str| MetadataTopicName { name: Some(name.into()), ..Default::default() };
    let requests = [
        (
            "a group's offsets",
            8,
            Request::OffsetFetch(OffsetFetchRequest {
                groups: vec![fetch_offsets(Some(vec![offsets(&long, partitions())]))],
                ..Default::default()
            }),
        ),
        (
            "a group's offsets, as they were asked for before",
            5,
            Request::OffsetFetch(OffsetFetchRequest {
                group_id: "g".into(),
                topics: Some(vec![offsets(&long, partitions())]),
                ..Default::default()
            }),
        ),
        (
            "all offsets of a group, again and again",
            8,
            Request::OffsetFetch(OffsetFetchRequest {
                groups: vec![fetch_offsets(None); 20_000],
                ..Default::default()
            }),
        ),
        ("offsets to forget", 0, Request::OffsetDelete(forget(&long))),
        ("a transaction", 9, produce(Some(&long), "t", -1)),
        ("partitions of a topic that is not there", 9, produce(None, &long, -1)),
        ("partitions that are not there", 9, produce(None, "t", -1)),
        ("acks that are not there", 9, produce(None, "t", 7)),
        (
            "a topic, again and again",
            12,
            Request::Metadata(MetadataRequest { topics: Some(vec![described("t"); 60_000]), ..Default::default() }),
        ),
        (
            "a group, again and again",
            5,
            Request::DescribeGroups(DescribeGroupsRequest {
                groups: vec![name.clone(); MANY / 4],
                ..Default::default()
            }),
        ),
    ];
    for (what, version, request) in requests {
        let bytes = frame(&request, version, 0).len() as u64;
        let before = forget_peak(&cluster);
        let mut hostile = Client::connect(&cluster).await;
        hostile.send(&request, version).await;
        assert!(hostile.receive(request.api(), version).await.is_some(), "{what}: {}", cluster.log(1));
        let grown = peak_bytes(&cluster).saturating_sub(before);
        assert!(grown < (96 << 20), "{what}: {} KiB for a frame of {} KiB", grown >> 10, bytes >> 10);
    }
    assert_eq!(honest.produce(0, batch(b"second".to_vec())).await, (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_arrive_together_all_get_through_however_little_room_there_is() {
    let args = [
        "--set=socket.request.max.bytes=1048576",
        "--set=limits.request_bytes_max=1048576",
        "--set=limits.inflight_bytes_max=2097152",
        "--set=limits.body_timeout_ms=3600000",
    ];
    let cluster = Cluster::start_with(1, &args).await;
    cluster.create_topic(1, "t", 1).await;
    // Each has begun a large frame before any goes on: the beginnings alone take all the room.
    let large = frame(&produce_request(0, batch(vec![7; 900 << 10])), 9, 1);
    let deadline = Instant::now() + PATIENCE;
    let begun = join_all((0..40).map(async |_| {
        let mut client = Client { next: 1, ..Client::connect(&cluster).await };
        client.stream.write_all(&large[..70 << 10]).await.unwrap();
        client
    }));
    let through = begun.await.into_iter().map(async |mut client| {
        loop {
            let sent = client.stream.write_all(&large[70 << 10..]).await;
            if sent.is_ok() && client.receive(Api::of(0).unwrap(), 9).await.is_some() {
                return;
            }
            // It was too slow for those who waited (this machine may be busy): again, as clients do.
            assert!(Instant::now() < deadline, "no room for ever");
            client = Client { next: 1, ..Client::connect(&cluster).await };
            let _ = client.stream.write_all(&large[..70 << 10]).await;
        }
    });
    timeout(2 * PATIENCE, join_all(through)).await.expect("frames hold each other up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_and_requests_too_many_wait_or_are_closed() {
    let args =
        ["--set=limits.connections_max=40", "--set=kafka.idle_timeout_ms=1500", "--set=kafka.inflight_requests_max=4"];
    let cluster = Cluster::start_with(1, &args).await;
    cluster.create_topic(1, "t", 1).await;
    // A thousand produces at once on one connection: the broker takes a few at a time, and all in order.
    let one = frame(&produce_request(0, batch(b"x".to_vec())), 9, 0);
    let (mut input, mut output) = Client::connect(&cluster).await.stream.into_split();
    let flood = async {
        for id in 0..1000i32 {
            let mut next = one.to_vec();
            next[8..12].copy_from_slice(&id.to_be_bytes());
            output.write_all(&next).await.unwrap();
        }
    };
    let answers = async {
        for id in 0..1000i32 {
            let length = input.read_i32().await.unwrap();
            assert_eq!(input.read_i32().await.unwrap(), id);
            let mut rest = vec![0; length as usize - 4];
            input.read_exact(&mut rest).await.unwrap();
        }
    };
    timeout(PATIENCE, async { tokio::join!(flood, answers) }).await.expect("not all are answered");
    drop((input, output));
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(Client::connect(&cluster).await);
    }
    await_log(&cluster, "a Kafka connection too many is closed").await;
    for client in idle {
        client.closed().await;
    }
    // Once they are gone there is room again.
    Client::connect(&cluster).await.call(Request::ApiVersions(ApiVersionsRequest::default()), 0).await;
}
