//! The door over a real broker of its own: what clients rely on, and what hostile ones try (each class of input that a broker
//! must refuse). Here stand the house, its client and their requests; the tests stand by subject. Against real clients:
//! `scripts/kafka-smoke`.

mod compression;
mod fetch;
mod groups;
mod metadata;
mod offsets;
mod produce;
mod protocol;
mod sessions;
mod sharing;
mod topics;

use std::collections::BTreeMap;
use std::net::TcpListener as StdListener;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use pontoon_raft::types::BrokerId;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout};

use super::messages::*;
use super::wire::{RecordData, Uuid, Writer};
use super::*;
use crate::broker::TopicSpec;
use crate::record_batch::{BatchLimits, Header, NewRecord, ProducerSequence, RecordBatch, RecordBatchBuilder};

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
        let house = Self::start_with(change).await;
        let deadline = Instant::now() + PATIENCE;
        while let Err(why) = house.broker.ready() {
            assert!(Instant::now() < deadline, "{why}");
            sleep(Duration::from_millis(10)).await;
        }
        house
    }

    /// Its door is open before the broker is part of a cluster, as that of a real one.
    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
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
        Self::start(config, dir).await
    }

    async fn start(mut config: Config, dir: TempDir) -> Self {
        let server = Server::bind(&config).await.unwrap();
        config.kafka.listener.advertised = Some(server.advertised().to_owned());
        let broker = Broker::start(config, "127.0.0.1:1".to_owned()).await.unwrap();
        server.open(Arc::clone(&broker));
        Self { broker, server, _dir: dir }
    }

    /// One of two brokers, and the other, which has no door. Both are ready.
    async fn one_of_two(change: impl FnOnce(&mut Config)) -> (Self, Arc<Broker>, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let peer = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut other = None;
        let house = Self::start_with(|config| {
            change(config);
            config.bootstrap.insert(BrokerId(2), peer.clone());
            let mut second = Config::new(BrokerId(2), dir.path().to_owned());
            second.bootstrap.clone_from(&config.bootstrap);
            second.raft.clone_from(&config.raft);
            second.peer.listen = peer;
            other = Some(second);
        });
        let house = house.await;
        let other = Broker::start(other.unwrap(), "127.0.0.1:2".to_owned()).await.unwrap();
        for broker in [&house.broker, &other] {
            broker.await_ready(PATIENCE).await;
            assert_eq!(broker.ready(), Ok(()));
        }
        (house, other, dir)
    }

    /// The same broker once more, from where it was.
    async fn started_again(self) -> Self {
        let mut config = self.broker.config().clone();
        config.kafka.listener.advertised = None;
        self.server.stopping();
        self.broker.shutdown(Duration::from_secs(10)).await;
        self.server.close(Duration::from_secs(5)).await;
        drop(self.broker);
        Self::start(config, self._dir).await
    }

    async fn topic(&self, name: &str, partitions: u32) {
        let config = BTreeMap::new();
        let spec = TopicSpec { name: name.to_owned(), partitions, replicas: None, assignment: None, config };
        self.broker.create_topic(spec, PATIENCE).await.unwrap();
    }

    async fn client(&self) -> Client {
        Client { stream: TcpStream::connect(self.server.address()).await.unwrap(), next: 0 }
    }

    /// One whose kernel takes little of what it is sent.
    async fn client_that_takes_little(&self) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        Client { stream: socket.connect(self.server.address().parse().unwrap()).await.unwrap(), next: 0 }
    }

    /// What connections share, of its own: for what is called without a connection.
    fn door(&self) -> Arc<Door> {
        let (config, stage) = (self.broker.config(), self.server.stage.subscribe());
        Arc::new(Door::new(Arc::clone(&self.broker), config.kafka.clone(), config.limits.clone(), stage))
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
        let Response::ListOffsets(mut response) = self.call(request, 9).await else { panic!() };
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
