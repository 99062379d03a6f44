//! Hostile bytes at the doors: peer messages, catalog commands, bodies of produce requests.
//!
//! The fuzz targets (`tests/fuzz`) and the tests below call the same functions; the corpora are what fuzzing came to.

use bytes::Bytes;
use pontoon::api::records::{self, Record};
use pontoon::catalog::apply::execute_bytes;
use pontoon::catalog::snapshot;
use pontoon::catalog::state::CatalogState;
use pontoon::error::Error;
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

    proptest! {
        #[test]
        fn any_body_is_refused_or_taken_whole(data in prop::collection::vec(any::<u8>(), 0..300)) {
            batch_bodies(&data);
        }
    }
}
