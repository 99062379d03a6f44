//! Hostile bytes at the doors: peer messages, catalog commands, bodies of produce requests, Kafka's requests and record batches.
//!
//! The fuzz targets (`tests/fuzz`) and the tests below call the same functions; the corpora are what fuzzing came to.

use std::io::Write as _;

use bytes::Bytes;
use pontoon::api::records::{self, Record};
use pontoon::catalog::apply::execute_bytes;
use pontoon::catalog::snapshot;
use pontoon::catalog::state::CatalogState;
use pontoon::error::Error;
use pontoon::kafka::messages::{APIS, Request};
use pontoon::kafka::wire::{MEMORY_BASE, MEMORY_PER_BYTE, Writer};
use pontoon::record_batch::{BATCH_HEADER_BYTES, BatchLimits, NewRecord, RecordBatch, RecordBatchBuilder};
use pontoon_raft::transport::testing::read_as_messages;

const LIMITS: BatchLimits =
    BatchLimits { record_bytes_max: 4 << 10, batch_bytes_max: 64 << 10, decompressed_bytes_max: 256 << 10 };

/// Reads messages of peers: no panic, and no memory but for what the bytes hold.
pub fn peer_messages(data: &[u8]) {
    read_as_messages(data);
}

/// Applies commands, each behind two bytes of length, the way every broker does: all come to the same state, a refused one
/// changes nothing, and the state survives rows and snapshot.
pub fn catalog_commands(mut data: &[u8]) {
    let (mut one, mut other) = (CatalogState::default(), CatalogState::default());
    while let Some((length, rest)) = data.split_first_chunk::<2>() {
        let (command, rest) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
        data = rest;
        let before = one.clone();
        let first = execute_bytes(&mut one, command);
        assert_eq!(first, execute_bytes(&mut other, command), "two brokers disagree");
        assert_eq!(one, other);
        match &first {
            Ok((Ok(_), _)) => {}
            _ => assert_eq!(one, before, "a refused command changed something: {first:?}"),
        }
    }
    let rows: Vec<_> = one.row_keys().into_iter().map(|key| (key.encode(), one.row(key).unwrap())).collect();
    let pairs = rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
    assert_eq!(CatalogState::from_rows(None, pairs).as_ref(), Ok(&one));
    assert_eq!(snapshot::decode(None, &snapshot::encode(&one)).as_ref(), Ok(&one));
}

/// A frame of a Kafka client: every API in every version, or any bytes. It is refused, or understood within the memory that its length
/// allows; and what was understood is written and read back the same.
pub fn kafka_requests(data: &[u8]) {
    let Some(([api, version], body)) = data.split_first_chunk::<2>() else { return };
    let Some(api) = APIS.get(usize::from(*api)) else {
        let _ = pontoon::kafka::understand(Bytes::copy_from_slice(body));
        return;
    };
    let version = api.min + i16::from(*version) % (api.max - api.min + 1);
    let flexible = api.is_flexible(version);
    let header = [&api.key.to_be_bytes()[..], &version.to_be_bytes(), &[0, 0, 0, 7, 255, 255]].concat();
    let frame = [&header[..], if flexible { &[0] } else { &[] }, body].concat();
    let understood = pontoon::kafka::understand(frame.into());
    match Request::read_measured(api, version, Bytes::copy_from_slice(body)) {
        Ok((request, memory)) => {
            assert_eq!(understood, Ok(memory));
            assert!(memory <= MEMORY_BASE + MEMORY_PER_BYTE * body.len(), "{memory} bytes for {}", body.len());
            let mut writer = Writer::new(version, flexible);
            request.write(&mut writer);
            assert_eq!(Request::read(api, version, writer.into_bytes()).as_ref(), Ok(&request));
        }
        Err(error) => assert!(understood.is_err(), "{error}"),
    }
}

/// A record batch under a codec. Either the bytes are what a client says is compressed, or they are records, compressed by us: then every
/// codec comes to the same verdict.
pub fn kafka_batches(data: &[u8]) {
    let Some(([kind, count], body)) = data.split_first_chunk::<2>() else { return };
    let wrapped = |codec: u8, records: &[u8]| {
        let mut bytes = vec![0; BATCH_HEADER_BYTES];
        bytes[22] = codec;
        // No producer, as most have none.
        bytes[43..57].fill(255);
        bytes[23..27].copy_from_slice(&(i32::from(*count) - 1).to_be_bytes());
        bytes[57..61].copy_from_slice(&i32::from(*count).to_be_bytes());
        bytes.extend_from_slice(records);
        made_sound(&bytes)
    };
    if kind % 2 == 0 {
        return batch(wrapped(kind / 2 % 5, body));
    }
    let plain = RecordBatch::check(wrapped(0, body).into(), &LIMITS).is_ok();
    for codec in 1..=4 {
        let packed = wrapped(codec, &compressed(codec, body));
        let taken = RecordBatch::check(packed.clone().into(), &LIMITS).is_ok();
        assert_eq!(taken, plain, "codec {codec}");
        batch(packed);
    }
}

fn compressed(codec: u8, records: &[u8]) -> Vec<u8> {
    match codec {
        1 => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(records).unwrap();
            gzip.finish().unwrap()
        }
        2 => snap::raw::Encoder::new().compress_vec(records).unwrap(),
        3 => {
            let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
            lz4.write_all(records).unwrap();
            lz4.finish().unwrap()
        }
        _ => zstd::stream::encode_all(records, 1).unwrap(),
    }
}

/// A body of a produce request: refused, or taken whole, and then every record can be read.
pub fn batch_bodies(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    match kind % 4 {
        0 => batch(body.to_vec()),
        1 => batch(made_sound(body)),
        2 => records_of(body, records::parse_json),
        _ => records_of(body, records::parse_ndjson),
    }
}

fn batch(bytes: Vec<u8>) {
    let Ok(batch) = RecordBatch::check(bytes.into(), &LIMITS) else { return };
    let records: Result<Vec<_>, _> = batch.records(LIMITS.decompressed_bytes_max).unwrap().collect();
    assert_eq!(records.unwrap().len(), batch.header().record_count as usize, "a checked batch cannot be read");
}

/// Length and checksum put right, so that a fuzzer comes past them.
fn made_sound(body: &[u8]) -> Vec<u8> {
    let mut bytes = body.to_vec();
    bytes.resize(bytes.len().max(BATCH_HEADER_BYTES), 0);
    let length = bytes.len() as i32 - 12;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    bytes[16] = 2;
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes
}

type Parse<'a> = fn(&'a [u8], &mut dyn FnMut(Record<'a>) -> Result<(), Error>) -> Result<usize, Error>;

fn records_of<'a>(body: &'a [u8], parse: Parse<'a>) {
    let mut builder = RecordBatchBuilder::new(LIMITS);
    let copy = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
    let taken = parse(body, &mut |record| {
        let headers = record.headers.iter().map(|(key, value)| pontoon::record_batch::Header {
            key: copy(key.as_bytes()),
            value: value.as_deref().map(copy),
        });
        let record = NewRecord {
            timestamp: record.timestamp.unwrap_or(1),
            key: record.key.as_deref().map(copy),
            value: record.value.as_deref().map(copy),
            headers: headers.collect(),
        };
        builder.push(&record).map_err(Error::from)
    });
    if let Ok(count) = taken {
        let built = builder.build(None).unwrap();
        assert_eq!(built.header().record_count as usize, count);
        batch(built.bytes().to_vec());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn replay(target: &str, body: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
        let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{} is empty", folder.display());
        for file in files {
            println!("{}", file.display());
            body(&std::fs::read(file).unwrap());
        }
    }

    #[test]
    fn the_fuzzers_peer_messages_are_survived() {
        replay("peer_messages", peer_messages);
    }

    #[test]
    fn the_fuzzers_catalog_commands_are_survived() {
        replay("catalog_commands", catalog_commands);
    }

    #[test]
    fn the_fuzzers_batch_bodies_are_survived() {
        replay("batch_bodies", batch_bodies);
    }

    #[test]
    fn the_fuzzers_kafka_requests_are_survived() {
        replay("kafka_requests", kafka_requests);
    }

    #[test]
    fn the_fuzzers_kafka_batches_are_survived() {
        replay("kafka_batches", kafka_batches);
    }

    /// Every API in every version has a request in the corpus that is understood, and where it has arrays one with something in them.
    #[test]
    fn the_corpus_has_every_api_in_every_version() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/kafka_requests");
        for (at, api) in APIS.iter().enumerate() {
            for version in api.min..=api.max {
                let name = format!("{}-{version}", api.name);
                let data = std::fs::read(folder.join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!((data[0], data[1]), (at as u8, (version - api.min) as u8), "{name}: run write_the_corpus");
                let understood = Request::read(api, version, Bytes::copy_from_slice(&data[2..]));
                assert!(understood.is_ok(), "{name}: {understood:?}");
            }
        }
    }

    /// Draws requests that are understood, with as much in them as chance brings, from a fixed seed.
    #[test]
    #[ignore = "writes tests/fuzz/corpus/kafka_requests and kafka_batches"]
    fn write_the_corpus() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
        std::fs::create_dir_all(corpus.join("kafka_requests")).unwrap();
        std::fs::create_dir_all(corpus.join("kafka_batches")).unwrap();
        let mut state = 7u64;
        let mut draw = |end: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % end
        };
        const OLD: &[&[u8]] = &[
            &[0, 0, 0, 1],
            &[0, 0, 0, 2],
            &[0, 1, b't'],
            &[0, 2, b'a', b'b'],
            &[0, 0, 0, 0],
            &[255, 255, 255, 255],
            &[0],
            &[1],
            &[255, 255],
        ];
        const NEW: &[&[u8]] = &[&[2], &[3], &[2, b't'], &[0], &[1], &[0, 0, 0, 1], &[0; 8], &[3, b'a', b'b']];
        for (at, api) in APIS.iter().enumerate() {
            for version in api.min..=api.max {
                let tokens = if api.is_flexible(version) { NEW } else { OLD };
                let empty = Request::all_empty().into_iter().find(|request| request.api().key == api.key).unwrap();
                let mut writer = Writer::new(version, api.is_flexible(version));
                empty.write(&mut writer);
                let mut best = (0, writer.into_bytes().to_vec());
                for _ in 0..60_000 {
                    let body: Vec<u8> = (0..30).flat_map(|_| tokens[draw(tokens.len())]).copied().collect();
                    if let Ok((request, memory)) = Request::read_measured(api, version, Bytes::from(body))
                        && memory > best.0
                        && memory < 1000
                    {
                        let mut writer = Writer::new(version, api.is_flexible(version));
                        request.write(&mut writer);
                        best = (memory, writer.into_bytes().to_vec());
                    }
                }
                let data = [&[at as u8, (version - api.min) as u8][..], &best.1].concat();
                std::fs::write(corpus.join("kafka_requests").join(format!("{}-{version}", api.name)), data).unwrap();
            }
        }
        let mut builder = RecordBatchBuilder::new(LIMITS);
        for value in ["one", "two", "three"] {
            builder.push(&NewRecord { value: Some(value.into()), ..Default::default() }).unwrap();
        }
        let built = builder.build(None).unwrap().into_bytes();
        let records = &built[BATCH_HEADER_BYTES..];
        let bomb = vec![0; 300 << 10];
        for codec in 0..5u8 {
            let packed = |bytes: &[u8]| if codec == 0 { bytes.to_vec() } else { compressed(codec, bytes) };
            let write = |name: &str, kind: u8, body: &[u8]| {
                std::fs::write(
                    corpus.join("kafka_batches").join(format!("{name}-{codec}")),
                    [&[kind, 3], body].concat(),
                )
                .unwrap();
            };
            write("packed", 2 * codec, &packed(records));
            if codec > 0 {
                write("bomb", 2 * codec, &packed(&bomb));
            }
        }
        std::fs::write(corpus.join("kafka_batches/records"), [&[1, 3], records].concat()).unwrap();
        std::fs::write(corpus.join("kafka_batches/records-short"), [&[1, 3], &records[..7]].concat()).unwrap();
    }

    proptest! {
        #[test]
        fn any_request_is_refused_or_understood(data in prop::collection::vec(0..40u8, 0..200)) {
            kafka_requests(&data);
        }

        #[test]
        fn any_batch_is_refused_or_taken_whole(data in prop::collection::vec(any::<u8>(), 0..200)) {
            kafka_batches(&data);
        }

        #[test]
        fn any_body_is_refused_or_taken_whole(data in prop::collection::vec(any::<u8>(), 0..300)) {
            batch_bodies(&data);
        }
    }
}
