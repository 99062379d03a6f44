//! Hostile clients at the Kafka door of a real broker: each loses its own connection, with a line in the log that says why; what the
//! broker holds in memory for them stays bounded; others are served on as if nothing were. (Classes: what other brokers had to learn.)

use std::io::Write as _;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::join_all;
use pontoon::kafka::messages::{
    Api, ApiVersionsRequest, CreatableTopic, CreateTopicsRequest, FetchPartition, FetchRequest, FetchTopic,
    ProducePartition, ProduceRequest, ProduceTopic, Request, Response,
};
use pontoon::kafka::wire::{RecordData, Writer};
use pontoon::record_batch::{BatchLimits, NewRecord, RecordBatchBuilder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::support::{Cluster, PATIENCE};

mod room;

pub struct Client {
    stream: TcpStream,
    next: i32,
}

impl Client {
    async fn connect(cluster: &Cluster) -> Self {
        Self::connect_to(cluster, 1).await
    }

    pub async fn connect_to(cluster: &Cluster, broker: u32) -> Self {
        Self::connect_at(&cluster.kafka_address(broker)).await
    }

    pub async fn connect_at(address: &str) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), next: 0 }
    }

    /// One whose kernel takes little of what it is sent.
    async fn connect_small(cluster: &Cluster) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        Self { stream: socket.connect(cluster.kafka_address(1).parse().unwrap()).await.unwrap(), next: 0 }
    }

    pub async fn send(&mut self, request: &Request, version: i16) {
        self.next += 1;
        self.stream.write_all(&frame(request, version, self.next)).await.unwrap();
    }

    /// `None`: the connection is closed.
    pub async fn receive(&mut self, api: &Api, version: i16) -> Option<Response> {
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

    pub async fn call(&mut self, request: Request, version: i16) -> Response {
        self.send(&request, version).await;
        self.receive(request.api(), version).await.expect("the connection is closed")
    }

    /// Error and base offset.
    pub async fn produce(&mut self, partition: i32, batch: Bytes) -> (i16, i64) {
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

pub fn produce_request(partition: i32, batch: Bytes) -> Request {
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

pub fn batch(value: Vec<u8>) -> Bytes {
    let limits = BatchLimits { record_bytes_max: 128 << 20, batch_bytes_max: 128 << 20, ..Default::default() };
    let mut builder = RecordBatchBuilder::new(limits);
    builder.push(&NewRecord { value: Some(value.into()), ..Default::default() }).unwrap();
    builder.build(None).unwrap().into_bytes()
}

/// A batch whose records were compressed, with length and checksum put right.
pub fn packed(plain: &Bytes, codec: u8, records: Vec<u8>) -> Bytes {
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
pub fn peak_bytes(cluster: &Cluster) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.pid(1))).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

pub fn forget_peak(cluster: &Cluster) -> u64 {
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
