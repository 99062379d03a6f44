//! Batches as they are: what may change in one between the client that sends it and the client that reads it, and how a
//! producer's batches are numbered past 2^31-1.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use pontoon::partition::PartitionState;
use pontoon::record_batch::{BatchLimits, Header, NewRecord, ProducerSequence, RecordBatchBuilder};
use pontoon_raft::checkpoint::{Checkpoint, ReplicaState};
use pontoon_raft::codec;
use pontoon_raft::log::frame::Frame;
use pontoon_raft::payload::AppendState;
use pontoon_raft::types::GroupId;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{produce, records_url, refusal};
use crate::kafka_hostile::packed;
use crate::support::{Cluster, read, run};

/// Two records with everything in them, by producer 77.
fn rich_batch() -> Bytes {
    let record = |timestamp, value: Option<Bytes>| NewRecord {
        timestamp,
        key: Some(Bytes::from_static(b"\xff\x00key")),
        value,
        headers: vec![
            Header { key: "h".into(), value: Some(Bytes::from_static(b"\x80")) },
            Header { key: "h".into(), value: None },
        ],
    };
    let mut builder = RecordBatchBuilder::new(BatchLimits::default());
    builder.push(&record(1_700_000_000_123, Some(vec![7; 5000].into()))).unwrap();
    builder.push(&record(5, None)).unwrap();
    builder.build(Some(ProducerSequence { producer_id: 77, epoch: 3, sequence: 0 })).unwrap().into_bytes()
}

/// `batch` with another sequence, its checksum put right.
fn renumbered(batch: &[u8], sequence: i32) -> Bytes {
    let mut bytes = batch.to_vec();
    bytes[53..57].copy_from_slice(&sequence.to_be_bytes());
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

async fn raw_answer(cluster: &Cluster, id: u32, query: &str) -> reqwest::Response {
    let url = format!("{}?{query}", records_url(cluster, id, "t"));
    let answer = cluster.http.get(url).header("accept", "application/octet-stream").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    answer
}

async fn raw(cluster: &Cluster, id: u32) -> Vec<u8> {
    raw_answer(cluster, id, "consistency=linearizable").await.bytes().await.unwrap().to_vec()
}

/// The leader writes base offset (bytes 0..8) and leader epoch (12..16), which no checksum covers. All else is the client's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_read_as_it_was_sent_but_for_its_offset_and_its_leaders_epoch() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(1, "t", 1).await;
    let plain = rich_batch();
    let compressed = zstd::stream::encode_all(&plain[61..], 3).unwrap();
    let batches = [plain.clone(), renumbered(&packed(&plain, 4, compressed), 2), renumbered(&plain, 4)];
    let mut expected = Vec::new();
    for (at, sent) in batches.iter().enumerate() {
        let mut sent = sent.to_vec();
        // What a client may have left there.
        sent[..8].copy_from_slice(&0x0123_4567_89ab_cdef_u64.to_be_bytes());
        sent[12..16].fill(0xff);
        let (status, answer) = produce(&cluster, at as u32 + 1, "t", "application/octet-stream", sent.clone()).await;
        assert_eq!((status, &answer["base_offset"]), (StatusCode::OK, &json!(2 * at)), "{answer}");
        let (status, again) = produce(&cluster, at as u32 + 1, "t", "application/octet-stream", sent.clone()).await;
        assert_eq!((status, &again["duplicate"]), (StatusCode::OK, &json!(true)), "{again}");
        assert_eq!((&again["base_offset"], &again["last_offset"]), (&answer["base_offset"], &answer["last_offset"]));
        let epoch = i32::try_from(answer["leader_epoch"].as_u64().unwrap()).unwrap();
        sent[..8].copy_from_slice(&(2 * at as u64).to_be_bytes());
        sent[12..16].copy_from_slice(&epoch.to_be_bytes());
        expected.extend(sent);
    }
    for id in 1..=3 {
        assert_eq!(raw(&cluster, id).await, expected, "broker {id}");
    }
    // From disk, and whoever leads: the epoch is that of the write.
    for id in 1..=3 {
        cluster.kill(id);
    }
    cluster.restart_all(&[1, 2, 3]).await;
    assert_eq!(raw(&cluster, 1).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_batches_are_whole_and_the_first_may_begin_before_the_offset() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    for records in ["[{\"value\":\"0\"},{\"value\":\"1\"}]", "[{\"value\":\"2\"},{\"value\":\"3\"},{\"value\":\"4\"}]"]
    {
        let body = format!("{{\"records\":{records}}}");
        assert_eq!(produce(&cluster, 1, "t", "application/json", body).await.0, StatusCode::OK);
    }
    let all = raw(&cluster, 1).await;
    let (first, second) = all.split_at(12 + u32::from_be_bytes(all[8..12].try_into().unwrap()) as usize);
    assert_eq!((&first[..8], &second[..8]), (&0u64.to_be_bytes()[..], &2u64.to_be_bytes()[..]));
    for (query, bytes, next) in [
        ("offset=1", &all[..], 5),
        ("offset=1&max_bytes=1", first, 2),
        ("offset=2", second, 5),
        ("offset=4&max_bytes=1", second, 5),
        ("offset=5", &[], 5),
    ] {
        let answer = raw_answer(&cluster, 1, query).await;
        assert_eq!(answer.headers()["pontoon-next-offset"], next.to_string(), "{query}");
        assert_eq!(answer.bytes().await.unwrap(), bytes, "{query}");
    }
}

/// Gives the only batch of a stopped broker's only partition another sequence: in its segment, and in the checkpoint as it follows.
async fn renumber_only_batch(data: &Path, sequence: i32) {
    let path = data.join("checkpoint");
    let mut checkpoint = Checkpoint::decode(&std::fs::read(&path).unwrap().into()).unwrap();
    // The catalog is group 0.
    let entry = checkpoint.replicas.iter_mut().find(|entry| entry.group != GroupId(0)).unwrap();
    let mut replica: ReplicaState = codec::decode(&entry.state).unwrap();
    let frame = renumber_in_segment(&only_segment(data, entry.group), sequence).await;
    let mut state = PartitionState::default();
    state.observe(&frame.header, &frame.payload);
    replica.append_state = state.save().to_vec();
    entry.state = codec::encode(&replica).into();
    std::fs::write(path, checkpoint.encode().concat()).unwrap();
}

async fn renumber_in_segment(segment: &Path, sequence: i32) -> Frame {
    let dumped = run(&["log", "dump", segment.to_str().unwrap(), "--json"], b"").await;
    let items = String::from_utf8(dumped.stdout).unwrap();
    let mut items = items.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let position = items.find(|item| item["kind"] == "records").unwrap()["position"].as_u64().unwrap() as usize;
    let mut bytes = std::fs::read(segment).unwrap();
    let frame = Frame::decode(&mut Bytes::copy_from_slice(&bytes[position..])).unwrap();
    let frame = Frame::new(frame.header, renumbered(&frame.payload, sequence));
    let written = frame.to_bytes();
    bytes[position..position + written.len()].copy_from_slice(&written);
    std::fs::write(segment, bytes).unwrap();
    frame
}

fn only_segment(data: &Path, group: GroupId) -> PathBuf {
    let found = |folder: PathBuf| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of_group = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(&format!("{}-", group.0));
    let folder = found(data.join("groups")).find(of_group).unwrap();
    found(folder).find(|path| path.extension().is_some_and(|extension| extension == "segment")).unwrap()
}

const TWO: &str = r#"{"records":[{"value":"a"},{"value":"b"}]}"#;
const ONE: &str = r#"{"records":[{"value":"c"}]}"#;

async fn send(cluster: &Cluster, sequence: i32, body: &'static str) -> (StatusCode, Value) {
    let request = cluster.http.post(records_url(cluster, 1, "t")).header("content-type", "application/json");
    let request = request.header("producer-id", "7").header("producer-epoch", "0");
    read(request.header("producer-sequence", sequence).body(body).send().await.unwrap()).await
}

/// Sends, and is told these offsets.
async fn written(cluster: &Cluster, sequence: i32, body: &'static str, offsets: (u64, u64), duplicate: bool) {
    let (status, answer) = send(cluster, sequence, body).await;
    assert_eq!(status, StatusCode::OK, "{sequence}: {answer}");
    let told = (answer["base_offset"].as_u64(), answer["last_offset"].as_u64(), answer.get("duplicate").is_some());
    assert_eq!(told, (Some(offsets.0), Some(offsets.1), duplicate), "{sequence}: {answer}");
}

/// Is refused, and told which sequence is next.
async fn out_of_order(cluster: &Cluster, sequence: i32, next: i32) {
    let answer = send(cluster, sequence, ONE).await;
    assert!(answer.1["message"].as_str().unwrap().contains(&format!("; {next} is next")), "{sequence}: {}", answer.1);
    assert_eq!(refusal(answer), (409, "OUT_OF_ORDER_SEQUENCE".into()), "{sequence}");
}

/// A partition of two records, the first of this sequence. Nobody can write 2^31 records for a test: a log that has come that far is
/// made by hand.
async fn two_records_from(sequence: i32) -> Cluster {
    let mut cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    written(&cluster, 0, TWO, (0, 1), false).await;
    assert!(tokio::task::block_in_place(|| cluster.stop(1)).success());
    renumber_only_batch(cluster.data_dir(1), sequence).await;
    cluster.restart(1).await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_last_sequence_comes_0_and_a_duplicate_of_either_is_one() {
    let cluster = two_records_from(i32::MAX - 3).await;
    // It ends at 2^31-1; the next begins at 0 again.
    out_of_order(&cluster, 0, i32::MAX - 1).await;
    written(&cluster, i32::MAX - 1, TWO, (2, 3), false).await;
    out_of_order(&cluster, 1, 0).await;
    written(&cluster, 0, ONE, (4, 4), false).await;
    for _ in 0..2 {
        written(&cluster, i32::MAX - 1, TWO, (2, 3), true).await;
        written(&cluster, 0, ONE, (4, 4), true).await;
    }
    written(&cluster, 1, ONE, (5, 5), false).await;
    assert_eq!(cluster.fetch_all(1, "t", 0).await.len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_from_the_last_sequence_to_0_is_followed_by_1() {
    let cluster = two_records_from(i32::MAX - 2).await;
    out_of_order(&cluster, 0, i32::MAX).await;
    written(&cluster, i32::MAX, TWO, (2, 3), false).await;
    out_of_order(&cluster, 0, 1).await;
    out_of_order(&cluster, 2, 1).await;
    written(&cluster, i32::MAX, TWO, (2, 3), true).await;
    written(&cluster, 1, ONE, (4, 4), false).await;
    for (sequence, body, offsets) in [(i32::MAX, TWO, (2, 3)), (1, ONE, (4, 4))] {
        written(&cluster, sequence, body, offsets, true).await;
    }
    assert_eq!(cluster.fetch_all(1, "t", 0).await.len(), 5);
}
