//! Batches: golden bytes, round trips, lies and bombs.

use proptest::prelude::*;

use super::*;

fn hex(text: &str) -> Bytes {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect::<Vec<_>>().into()
}

fn owned(text: &'static str) -> Option<Bytes> {
    Some(Bytes::from_static(text.as_bytes()))
}

fn header(key: &'static str, value: Option<&'static str>) -> Header {
    Header { key: Bytes::from_static(key.as_bytes()), value: value.map(|v| Bytes::from_static(v.as_bytes())) }
}

/// The three records of [`GOLDEN`].
fn golden_records() -> Vec<NewRecord> {
    vec![
        NewRecord {
            timestamp: 1_700_000_000_000,
            key: owned("k1"),
            value: owned("hello"),
            headers: vec![header("a", Some("1")), header("a", Some("2")), header("b", None)],
        },
        NewRecord { timestamp: 1_700_000_000_007, key: None, value: owned(""), headers: vec![] },
        NewRecord { timestamp: 1_699_999_999_990, key: owned(""), value: None, headers: vec![header("", Some(""))] },
    ]
}

fn build(records: &[NewRecord], producer: Option<ProducerSequence>) -> RecordBatch {
    let mut builder = RecordBatchBuilder::new(BatchLimits::default());
    for record in records {
        builder.push(record).unwrap();
    }
    builder.build(producer).unwrap()
}

fn read_back(batch: &RecordBatch) -> Vec<NewRecord> {
    let records = batch.records(1 << 20).unwrap().enumerate().map(|(at, record)| {
        let Record { offset, timestamp, key, value, headers } = record.unwrap();
        assert_eq!(offset, batch.header().base_offset + at as u64);
        assert_eq!(headers.len(), headers.iter().count());
        NewRecord { timestamp, key, value, headers: headers.iter().collect() }
    });
    records.collect()
}

/// The same batch with its records compressed, as a Kafka producer would send it.
fn compressed(batch: &RecordBatch, codec: Compression, xerial: bool) -> Bytes {
    let mut out = BytesMut::from(&batch.bytes()[..BATCH_HEADER_BYTES]);
    out.extend_from_slice(&compression::compress(codec, &batch.bytes()[BATCH_HEADER_BYTES..], xerial));
    BatchHeader { attributes: codec as i16, ..*batch.header() }.write(&mut out);
    out.freeze()
}

/// A batch with one thing changed and its checksum made good again.
fn forged(batch: &Bytes, at: usize, bytes: &[u8]) -> Bytes {
    let mut out = batch.to_vec();
    out[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32c::crc32c(&out[CRC_END..]);
    out[17..CRC_END].copy_from_slice(&crc.to_be_bytes());
    out.into()
}

fn check(bytes: Bytes) -> Result<RecordBatch, BatchError> {
    RecordBatch::check(bytes, &BatchLimits::default())
}

/// Written by kafka-python's DefaultRecordBatchBuilder from the records of [`golden_records`].
const GOLDEN: &str = "00000000000000000000005a000000000230f0def70000000000020000018bcfe568000000018bcfe56807\
    ffffffffffffffffffffffffffff0000000330000000046b310a68656c6c6f0602610231026102320262010c000e02010000100013040001020000";

/// The same by a producer: id 4711, epoch 3, sequence 2147483646.
const GOLDEN_PRODUCER: &str = "00000000000000000000005a00000000020c8d39e20000000000020000018bcfe568000000018bcfe56807\
    000000000000126700037ffffffe0000000330000000046b310a68656c6c6f0602610231026102320262010c000e02010000100013040001020000";

/// Six records by kafka-python, compressed by the libraries it uses: gzip, snappy (xerial framing), lz4, zstd.
const GOLDEN_COMPRESSED: [&str; 4] = [
    "00000000000000000000009400000000029b3f629e0001000000050000018bcfe568000000018bcfe568050000000000000009000000000005\
     000000061f8b0800d3ec006b02ffab606060e0c84ead34484954c8c9cc4b55c84f532849ad285128c9482c51284a2d484d2c2956c82c294ecd\
     49d3514055c350c1c0c404d26c489e661616906623f234b3b151e06c0e0e0a9ccdc545b6b301cdaa70fb6e010000",
    "0000000000000000000000a90000000002b5c0cf040002000000050000018bcfe568000000018bcfe568050000000000000009000000000005\
     0000000682534e4150505900000000010000000100000064ee02b878000000086b6579306461206c696e65206f662074657874207468617420\
     7265706561747320697473656c662c2061322400100078000202013d0031d63d00040404013d0032d63d00040606013ddab700040808013dda\
     b700040a0a013dd2b700",
    "0000000000000000000000b20000000002d2ee3a830003000000050000018bcfe568000000018bcfe568050000000000000009000000000005\
     0000000604224d1868406e01000000000000f96a000000fa1f78000000086b6579306461206c696e65206f6620746578742074686174207265\
     706561747320697473656c662c2024005000780002023d001f313d00232004043d001f323d00232006063d000fb700242008083d000fb70024\
     200a0a3d000fb7001d50746578740000000000",
    "0000000000000000000000950000000002d278b4470004000000050000018bcfe568000000018bcfe568050000000000000009000000000005\
     0000000628b52ffd606e00d5020002040f1680b53a9329fc7fe3e03b0e9aa0581e1e45ddcd3694010b21754e326695a208c9980dda33bc2b3c\
     f36140cf86f7d16f33eac2bd3221054c9ccc8c010b000127c08a03c7c0da064e8015078e81b50d4e0061d53eb22a03",
];

#[test]
fn a_batch_has_the_bytes_that_a_kafka_client_gives_it() {
    let producer = ProducerSequence { producer_id: 4711, epoch: 3, sequence: 2_147_483_646 };
    for (golden, producer) in [(GOLDEN, None), (GOLDEN_PRODUCER, Some(producer))] {
        let batch = build(&golden_records(), producer);
        let mut ours = BytesMut::from(&batch.bytes()[..]);
        // kafka-python leaves 0 where we say "no leader epoch".
        stamp(&mut ours, 0, 0);
        assert_eq!(ours, hex(golden));
        let checked = check(hex(golden)).unwrap();
        assert_eq!(checked.header().producer(), producer);
        assert_eq!(read_back(&checked), golden_records());
    }
}

#[test]
fn a_kafka_clients_compressed_batches_are_read() {
    for (golden, codec) in GOLDEN_COMPRESSED.iter().zip(["gzip", "snappy", "lz4", "zstd"]) {
        let batch = check(hex(golden)).unwrap();
        assert_eq!(batch.header().compression().unwrap().name(), codec);
        let records = read_back(&batch);
        assert_eq!(records.len(), 6);
        for (at, record) in records.iter().enumerate() {
            assert_eq!(record.timestamp, 1_700_000_000_000 + at as i64);
            assert_eq!(record.key, Some(Bytes::from(format!("key{}", at % 3))));
            assert_eq!(record.value, owned("a line of text that repeats itself, a line of text"));
        }
    }
}

#[test]
fn a_stamp_leaves_the_checksum_alone() {
    let mut bytes = BytesMut::from(&hex(GOLDEN)[..]);
    stamp(&mut bytes, 1 << 40, u64::MAX);
    let batch = check(bytes.freeze()).unwrap();
    assert_eq!((batch.header().base_offset, batch.header().leader_epoch), (1 << 40, i32::MAX));
    assert_eq!(batch.header().last_offset(), (1 << 40) + 2);
    assert_eq!(batch.records(1000).unwrap().next().unwrap().unwrap().offset, 1 << 40);
}

#[test]
fn the_log_append_time_stands_for_every_record() {
    let bytes = forged(&hex(GOLDEN), 21, &LOG_APPEND_TIME.to_be_bytes());
    let batch = RecordBatch::stored(bytes).unwrap();
    let times: Vec<_> = batch.records(1000).unwrap().map(|record| record.unwrap().timestamp).collect();
    assert_eq!(times, [1_700_000_000_007; 3]);
}

#[test]
fn a_batch_gets_the_time_of_its_append_where_it_stands() {
    let alone = check(Bytes::from(hex(GOLDEN).to_vec())).unwrap();
    let (at, before) = (alone.bytes().as_ptr(), *alone.header());
    let stamped = alone.with_append_time(1_800_000_000_000);
    assert_eq!(stamped.bytes().as_ptr(), at, "not copied");
    let read = BatchHeader::read(stamped.bytes()).unwrap();
    assert_eq!(read, *stamped.header());
    assert_eq!(read.crc, crc32c::crc32c(&stamped.bytes()[CRC_END..]));
    let expected =
        BatchHeader { attributes: LOG_APPEND_TIME, max_timestamp: 1_800_000_000_000, crc: read.crc, ..before };
    assert_eq!(read, expected, "nothing else of the header changes");
    assert_eq!(stamped.bytes()[BATCH_HEADER_BYTES..], hex(GOLDEN)[BATCH_HEADER_BYTES..], "nor do the records");
    assert!(stamped.records(1000).unwrap().all(|record| record.unwrap().timestamp == 1_800_000_000_000));

    let shared = check(hex(GOLDEN)).unwrap();
    let other = shared.bytes().clone();
    shared.with_append_time(5);
    assert_eq!(other, hex(GOLDEN), "who else holds the bytes sees nothing");
}

#[test]
fn lies_in_the_header_are_named() {
    let good = hex(GOLDEN);
    let field = |at: usize, bytes: &[u8]| check(forged(&good, at, bytes)).unwrap_err();

    assert_eq!(check(good.slice(..60)), Err(BatchError::Short { have: 60 }));
    assert_eq!(check(good.slice(..100)), Err(BatchError::Length { claimed: 102, have: 100 }));
    let two = [&good[..], &good[..]].concat();
    assert_eq!(check(two.into()), Err(BatchError::Length { claimed: 102, have: 204 }));
    assert_eq!(field(8, &(-1i32).to_be_bytes()), BatchError::Length { claimed: 11, have: 102 });
    assert_eq!(field(16, &[1]), BatchError::Magic(1));
    for (attributes, what) in [(16i16, "transactions"), (32, "control"), (8, "log append time"), (64, "unknown bits")] {
        let error = field(21, &attributes.to_be_bytes());
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(Error::from(error).code, Code::InvalidRequest);
    }
    assert_eq!(field(21, &5i16.to_be_bytes()), BatchError::Compression(5));
    for count in [-1, 2, 4, i32::MAX, i32::MIN] {
        let lie = BatchError::Counts { record_count: count, last_offset_delta: 2 };
        assert_eq!(field(57, &i32::to_be_bytes(count)), lie);
    }
    assert_eq!(field(57, &[0; 4]), BatchError::Empty);
    // Both counts lie together: one too few, one too many, and as many as there can be.
    let both = |count: i32| check(forged(&forged(&good, 57, &count.to_be_bytes()), 23, &(count - 1).to_be_bytes()));
    assert_eq!(both(2), Err(BatchError::TrailingBytes { records: 2, bytes: 9 }));
    assert!(matches!(both(4), Err(BatchError::Record { number: 3, .. })));
    assert!(matches!(both(i32::MAX), Err(BatchError::Record { number: 3, .. })));
    // What librdkafka says of records without timestamps.
    let timeless = NewRecord { timestamp: -1, key: None, value: owned("v"), headers: vec![] };
    let timeless = build(&[timeless], None).into_bytes();
    assert!(check(forged(&timeless, 35, &0i64.to_be_bytes())).is_ok());
    assert!(matches!(field(27, &i64::MAX.to_be_bytes()), BatchError::Timestamp { number: 1, .. }));
    assert!(matches!(field(43, &(-2i64).to_be_bytes()), BatchError::Producer { producer_id: -2, .. }));
    assert!(matches!(field(43, &7i64.to_be_bytes()), BatchError::Producer { producer_id: 7, epoch: -1, .. }));
    // Without an id, epoch and sequence mean nothing.
    assert!(check(forged(&good, 53, &[0; 4])).is_ok());
}

#[test]
fn a_max_timestamp_that_is_not_its_records_is_put_right() {
    let good = hex(GOLDEN);
    // sarama's, for years.
    for said in [-1i64, 0, 7, i64::MAX] {
        let batch = check(forged(&good, 35, &said.to_be_bytes())).unwrap();
        assert_eq!(batch.bytes()[..], good[..], "{said}");
        assert_eq!(*batch.header(), BatchHeader::read(&good).unwrap());
    }
}

#[test]
fn a_wrong_checksum_names_both() {
    let mut bytes = hex(GOLDEN).to_vec();
    bytes[17] ^= 1;
    let error = check(bytes.into()).unwrap_err();
    assert_eq!(error, BatchError::Checksum { claimed: 0x31f0_def7, actual: 0x30f0_def7 });
    assert_eq!(Error::from(error).code, Code::CorruptBatch);
}

#[test]
fn lies_in_a_record_are_named() {
    // One record: length 0e, attributes, timestamp delta, offset delta, key length 02, "k", value length 02, "v", no headers.
    let record = NewRecord { timestamp: 5, key: owned("k"), value: owned("v"), headers: vec![] };
    let good = build(&[record], None).into_bytes();
    assert_eq!(good[61..], [0x10, 0, 0, 0, 2, b'k', 2, b'v', 0]);
    for (at, byte, what) in [
        (61, 0x0f, "its length is -8"),
        (61, 0x12, "its length is 9 with 8 bytes left"),
        (61, 0x80, "its attributes byte is cut short"),
        (64, 1, "its offset delta is -1"),
        (64, 2, "offset delta 1, not 0"),
        (65, 3, "its key has length -2"),
        (65, 0x40, "its key has length 32 with 4 bytes left"),
        (67, 0x7f, "its value has length -64 with 2 bytes left"),
        (69, 1, "its header count is -1"),
        (69, 2, "its header key has a malformed length"),
        (67, 0, "its header value has a malformed length"),
    ] {
        let error = check(forged(&good, at, &[byte])).unwrap_err().to_string();
        assert!(error.contains(what), "{error}: {what}");
    }
    let null_key = NewRecord { timestamp: 5, headers: vec![header("", None)], ..NewRecord::default() };
    let bytes = build(&[null_key], None).into_bytes();
    assert_eq!(bytes[67..], [2, 0, 1]);
    let error = check(forged(&bytes, 68, &[1])).unwrap_err().to_string();
    assert!(error.contains("null header key"), "{error}");
}

#[test]
fn limits_hold_at_their_edges() {
    let record = |bytes: usize| NewRecord {
        value: Some(vec![b'x'; bytes - 6].into()),
        key: owned("key"),
        headers: vec![header("h", Some("12"))],
        timestamp: 0,
    };
    let limits = BatchLimits { record_bytes_max: 100, batch_bytes_max: 300, decompressed_bytes_max: 200 };
    let mut builder = RecordBatchBuilder::new(limits);
    builder.push(&record(100)).unwrap();
    let too_large = BatchError::RecordTooLarge { number: 1, bytes: 101, max: 100 };
    assert_eq!(builder.push(&record(101)), Err(too_large.clone()));
    builder.push(&record(100)).unwrap();
    assert!(matches!(builder.push(&record(100)), Err(BatchError::BatchTooLarge { max: 300, .. })));
    assert_eq!(builder.len(), 2);
    let batch = builder.build(None).unwrap();
    assert!(RecordBatch::check(batch.bytes().clone(), &limits).is_ok(), "what was refused left nothing behind");
    assert_eq!(Error::from(too_large).code, Code::RecordTooLarge);

    let one_less = BatchLimits { record_bytes_max: 99, ..limits };
    let error = RecordBatch::check(batch.bytes().clone(), &one_less).unwrap_err();
    assert_eq!(error, BatchError::RecordTooLarge { number: 0, bytes: 100, max: 99 });
    let small = BatchLimits { batch_bytes_max: batch.bytes().len() - 1, ..limits };
    let error = RecordBatch::check(batch.bytes().clone(), &small).unwrap_err();
    assert_eq!(Error::from(error).code, Code::RequestTooLarge);
    let squeezed = compressed(&batch, Compression::Gzip, false);
    let error = RecordBatch::check(squeezed, &limits).unwrap_err();
    assert_eq!(error, BatchError::DecompressedTooLarge { max: 200 });
}

#[test]
fn batches_of_one_request_share_what_they_may_decompress_to() {
    let plain = build(&[NewRecord { value: Some(vec![7; 100 << 10].into()), ..Default::default() }], None);
    let (bytes, limits) = (plain.bytes().len() - BATCH_HEADER_BYTES, BatchLimits::default());
    let squeezed = compressed(&plain, Compression::Gzip, false);
    let max = 3 * bytes - 1;
    let mut allowance = Allowance::new(max);
    let mut check = |batch: &Bytes, limits: &BatchLimits| {
        let checked = RecordBatch::check_within(batch.clone(), limits, None, &mut allowance);
        (checked.map(|_| ()), allowance.spent())
    };
    assert_eq!(check(&squeezed, &limits), (Ok(()), bytes));
    assert_eq!(check(plain.bytes(), &limits), (Ok(()), bytes), "nothing was decompressed");
    assert_eq!(check(&squeezed, &limits), (Ok(()), 2 * bytes));
    let together = Err(BatchError::RequestDecompressedTooLarge { max });
    assert_eq!(check(&squeezed, &limits), (together.clone(), max), "what came out before it was noticed counts");
    let tiny = compressed(&build(&golden_records(), None), Compression::Gzip, false);
    assert_eq!(check(&tiny, &limits), (together, max));
    assert_eq!(check(plain.bytes(), &limits), (Ok(()), max));

    // A batch over its own limit is told so; it has cost what was allowed, and a tiny one what its decoder takes.
    let own = BatchLimits { decompressed_bytes_max: 90 << 10, ..limits };
    let mut allowance = Allowance::new(1 << 20);
    let over = RecordBatch::check_within(squeezed, &own, None, &mut allowance).unwrap_err();
    assert_eq!((over, allowance.spent()), (BatchError::DecompressedTooLarge { max: 90 << 10 }, 90 << 10));
    RecordBatch::check_within(tiny, &limits, None, &mut allowance).unwrap();
    assert_eq!(allowance.spent(), (90 << 10) + DECODER_BYTES);
}

#[test]
fn an_empty_batch_and_a_negative_producer_are_not_built() {
    assert_eq!(RecordBatchBuilder::new(BatchLimits::default()).build(None), Err(BatchError::Empty));
    let mut builder = RecordBatchBuilder::new(BatchLimits::default());
    builder.push(&NewRecord::default()).unwrap();
    let producer = ProducerSequence { producer_id: 1, epoch: -1, sequence: 0 };
    assert!(matches!(builder.build(Some(producer)), Err(BatchError::Producer { .. })));
}

#[test]
fn a_compressed_batch_within_a_compressed_batch_is_not_records() {
    let inner = build(&golden_records(), None);
    for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let once = compression::compress(codec, &inner.bytes()[BATCH_HEADER_BYTES..], false);
        let mut out = BytesMut::from(&inner.bytes()[..BATCH_HEADER_BYTES]);
        out.extend_from_slice(&compression::compress(codec, &once, false));
        BatchHeader { attributes: codec as i16, ..*inner.header() }.write(&mut out);
        let error = check(out.freeze()).unwrap_err();
        assert!(matches!(error, BatchError::Record { .. }), "{error}");
    }
}

#[test]
fn records_share_the_batchs_memory() {
    let batch = check(hex(GOLDEN)).unwrap();
    let range = batch.bytes().as_ptr_range();
    for record in batch.records(1000).unwrap().map(Result::unwrap) {
        for part in record.key.iter().chain(&record.value).filter(|part| !part.is_empty()) {
            assert!(range.contains(&part.as_ptr()));
        }
    }
}

#[test]
fn iteration_ends_at_the_first_error() {
    let lie = forged(&hex(GOLDEN), 57, &1000i32.to_be_bytes());
    let records: Vec<_> = RecordBatch::stored(lie).unwrap().records(1000).unwrap().collect();
    assert_eq!(records.len(), 4);
    assert!(records[..3].iter().all(Result::is_ok) && records[3].is_err());
}

fn arbitrary_record() -> impl Strategy<Value = NewRecord> {
    let bytes = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from));
    let key = proptest::collection::vec(any::<u8>(), 0..5).prop_map(Bytes::from);
    let header = (key, bytes()).prop_map(|(key, value)| Header { key, value });
    let timestamp = prop_oneof![-1..100i64, Just(i64::MAX - 1), 1_700_000_000_000..1_700_000_001_000i64];
    (timestamp, bytes(), bytes(), proptest::collection::vec(header, 0..4))
        .prop_map(|(timestamp, key, value, headers)| NewRecord { timestamp, key, value, headers })
}

fn arbitrary_batch() -> impl Strategy<Value = (Vec<NewRecord>, Option<ProducerSequence>)> {
    let producer = (0..i64::MAX, 0..i16::MAX, 0..i32::MAX)
        .prop_map(|(producer_id, epoch, sequence)| ProducerSequence { producer_id, epoch, sequence });
    (proptest::collection::vec(arbitrary_record(), 1..12), proptest::option::of(producer))
}

const CODECS: [(Compression, bool); 5] = [
    (Compression::Gzip, false),
    (Compression::Snappy, false),
    (Compression::Snappy, true),
    (Compression::Lz4, false),
    (Compression::Zstd, false),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_batch_survives_the_round_trip_compressed_or_not((records, producer) in arbitrary_batch()) {
        let batch = build(&records, producer);
        let checked = check(batch.bytes().clone()).unwrap();
        prop_assert_eq!(&checked, &batch);
        prop_assert_eq!(checked.header().producer(), producer);
        prop_assert_eq!(read_back(&checked), records.clone());
        for (codec, xerial) in CODECS {
            let squeezed = check(compressed(&batch, codec, xerial)).unwrap();
            prop_assert_eq!(squeezed.header().compression().unwrap(), codec);
            prop_assert_eq!(read_back(&squeezed), records.clone());
        }
    }

    /// Whatever it came with and whatever its topic wants: the same records, of the same producer.
    #[test]
    fn every_compression_becomes_every_other((records, producer) in arbitrary_batch()) {
        let plain = build(&records, producer);
        let came = CODECS.map(|(codec, xerial)| compressed(&plain, codec, xerial)).into_iter().chain([plain.bytes().clone()]);
        for bytes in came {
            for codec in CODECS.iter().map(|(codec, _)| *codec).chain([Compression::None]) {
                let (limits, mut allowance) = (BatchLimits::default(), Allowance::new(1 << 20));
                let stored = RecordBatch::check_within(bytes.clone(), &limits, Some(codec), &mut allowance).unwrap();
                prop_assert_eq!(stored.header().compression(), Ok(codec));
                prop_assert_eq!(read_back(&stored), records.clone());
                prop_assert_eq!(stored.plain_records(1 << 20).unwrap(), &plain.bytes()[BATCH_HEADER_BYTES..]);
                let apart = |header: &BatchHeader| BatchHeader { crc: 0, attributes: 0, ..*header };
                prop_assert_eq!(apart(stored.header()), apart(plain.header()));
                // Whoever checks it again finds nothing to put right.
                prop_assert_eq!(&check(stored.bytes().clone()).unwrap(), &stored);
                let twice = RecordBatch::check(bytes.clone(), &limits).unwrap().recompressed(codec, &limits);
                prop_assert_eq!(twice.unwrap(), stored);
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_always_seen((records, producer) in arbitrary_batch(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut bytes = build(&records, producer).into_bytes().to_vec();
        // Every byte but the stamped ones.
        let at = 16 + at.index(bytes.len() - 16);
        bytes[at] ^= 1 << bit;
        prop_assert!(check(bytes.into()).is_err());
    }

    #[test]
    fn a_batch_that_passes_iterates_whole((records, producer) in arbitrary_batch(), codec in 0..5usize,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        // Bytes changed behind a good checksum: refused, or sound all through.
        let (codec, xerial) = CODECS[codec];
        for mut bytes in [build(&records, producer).into_bytes(), compressed(&build(&records, producer), codec, xerial)] {
            for (at, byte) in &edits {
                bytes = forged(&bytes, CRC_END + at.index(bytes.len() - CRC_END), &[*byte]);
            }
            if let Ok(batch) = check(bytes) {
                let read = batch.records(BatchLimits::default().decompressed_bytes_max).unwrap();
                prop_assert_eq!(read.map(Result::unwrap).count(), batch.header().record_count as usize);
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = check(bytes.clone().into());
        // As a batch's records behind a good header, too.
        let mut out = BytesMut::from(&build(&golden_records(), None).bytes()[..BATCH_HEADER_BYTES]);
        out.extend_from_slice(&bytes);
        for attributes in 0..5 {
            let header = BatchHeader { attributes, ..BatchHeader::read(&out).unwrap() };
            header.write(&mut out);
            let _ = check(out.clone().freeze());
            let stored = RecordBatch::stored(out.clone().freeze()).unwrap();
            if let Ok(records) = stored.records(1000) {
                prop_assert!(records.count() <= 3);
            }
        }
    }
}
