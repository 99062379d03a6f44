//! Bytes are Kafka's, survive the round trip, and get no memory for what they claim.

use super::*;

crate::kafka_message! {
    /// One of each.
    Sample {
        number: i32 [0..],
        later: i64 [2..] = -1,
        gone: i8 [0..=1] = 7,
        text: String [0..],
        maybe: Option<String> [0..],
        list: Vec<i32> [0..],
        bytes: Bytes [1..],
    } tagged { 3: extra: i32 [4..], 5: list_too: Vec<String> [4..], }
}

fn sample() -> Sample {
    Sample {
        number: 5,
        later: 9,
        gone: 1,
        text: "ab".to_owned(),
        maybe: None,
        list: vec![1, 2],
        bytes: Bytes::from_static(b"xyz"),
        extra: Some(17),
        list_too: None,
    }
}

fn encode(sample: &Sample, version: i16) -> Bytes {
    let mut writer = Writer::new(version, version >= 3);
    sample.write(&mut writer);
    writer.into_bytes()
}

fn decode(bytes: Bytes, version: i16) -> Result<Sample, Malformed> {
    let mut reader = Reader::new(bytes, version, version >= 3);
    let sample = Sample::read(&mut reader)?;
    reader.finish().map(|()| sample)
}

#[test]
fn the_bytes_are_kafkas() {
    let old = encode(&sample(), 0);
    assert_eq!(old[..], [0, 0, 0, 5, 1, 0, 2, b'a', b'b', 255, 255, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2]);
    let new = encode(&sample(), 4);
    let expected = [
        &[0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9, 3, b'a', b'b', 0, 3, 0, 0, 0, 1, 0, 0, 0, 2][..],
        &[4, b'x', b'y', b'z', 1, 3, 4, 0, 0, 0, 17],
    ];
    assert_eq!(new[..], expected.concat());
}

#[test]
fn a_message_survives_the_round_trip_in_every_version() {
    for version in 0..=4 {
        let read = decode(encode(&sample(), version), version).unwrap();
        assert_eq!(read.later, if version >= 2 { 9 } else { -1 });
        assert_eq!(read.gone, if version <= 1 { 1 } else { 7 });
        assert_eq!(read.extra, (version >= 4).then_some(17));
        assert_eq!((read.number, read.text.as_str(), &read.list[..]), (5, "ab", &[1, 2][..]));
    }
}

#[test]
fn every_cut_is_noticed_and_names_its_field() {
    for version in [0, 4] {
        let whole = encode(&sample(), version);
        for cut in 0..whole.len() {
            assert!(decode(whole.slice(..cut), version).is_err(), "version {version} cut at {cut}");
        }
        let longer = Bytes::from([&whole[..], &[0]].concat());
        assert!(decode(longer, version).unwrap_err().0.contains("1 bytes follow"));
    }
    let error = decode(encode(&sample(), 0).slice(..21), 0).unwrap_err();
    assert_eq!(error.0, "list: cut short: 2 of 4 bytes");
}

#[test]
fn lying_counts_and_lengths_get_no_memory() {
    let lies: [&[u8]; 4] = [
        &[0, 0, 0, 5, 1, 0x7f, 0xff],                             // a text of 32767 bytes
        &[0, 0, 0, 5, 1, 0x80, 0],                                // of -32768
        &[0, 0, 0, 5, 1, 0, 0, 255, 255, 0x7f, 0xff, 0xff, 0xff], // a list of 2^31-1
        &[0, 0, 0, 5, 1, 0, 0, 255, 255, 0x80, 0, 0, 0],          // of -2^31
    ];
    for lie in lies {
        let error = decode(Bytes::copy_from_slice(lie), 0).unwrap_err();
        assert!(error.0.contains("bytes left"), "{error}");
    }
    let null_list = [0, 0, 0, 5, 1, 0, 0, 255, 255, 255, 255, 255, 255];
    assert_eq!(decode(Bytes::copy_from_slice(&null_list), 0).unwrap_err().0, "list: null");
}

#[test]
fn too_many_elements_are_refused_even_if_their_bytes_are_there() {
    let sample = Sample { list: vec![0; ELEMENTS_MAX + 1], ..sample() };
    assert!(decode(encode(&sample, 0), 0).unwrap_err().0.contains("more than 200000"));
}

#[test]
fn elements_that_take_far_more_memory_than_bytes_are_refused() {
    // In a flexible version an empty text is one byte, and a `String`.
    let texts = |count: usize| {
        let mut writer = Writer::new(4, true);
        vec![String::new(); count].write(&mut writer);
        Reader::new(writer.into_bytes(), 4, true)
    };
    let few = MEMORY_BASE / size_of::<String>();
    let mut reader = texts(few);
    Vec::<String>::read(&mut reader).unwrap();
    assert_eq!(reader.memory_used(), few * size_of::<String>());
    assert!(Vec::<String>::read(&mut texts(2 * few)).unwrap_err().0.contains("in so short a message"));
}

/// What is passed over takes nothing, and is understood all the same.
#[test]
fn what_nobody_looks_at_is_not_kept() {
    let list = [&i32::to_be_bytes(3)[..], &[0, 1, b'a', 0, 1, b'b', 0, 1, b'c']].concat();
    let mut reader = Reader::new(list.clone().into(), 0, false);
    PassedOver::<String>::read(&mut reader).unwrap();
    assert_eq!((reader.remaining(), reader.memory_used()), (0, 0));
    assert!(PassedOver::<String>::read(&mut Reader::new(Bytes::from(list).slice(..10), 0, false)).is_err());
    let mut writer = Writer::new(4, true);
    vec![0i8; ELEMENTS_MAX + 1].write(&mut writer);
    assert!(PassedOver::<i8>::read(&mut Reader::new(writer.into_bytes(), 4, true)).is_err(), "too many");
}

/// All but record batches, which may take over the memory of their message.
#[test]
fn what_is_kept_of_a_message_is_copied_and_counted() {
    let message = encode(&sample(), 4);
    let mut reader = Reader::new(message.clone(), 4, true);
    let read = Sample::read(&mut reader).unwrap();
    assert_eq!(reader.memory_used(), "ab".len() + 2 * size_of::<i32>() + "xyz".len());
    assert!(!message.as_ptr_range().contains(&read.bytes.as_ptr()), "a few bytes keep all of their message");
}

#[test]
fn varints_are_at_most_32_bits() {
    let read = |bytes: &[u8]| Reader::new(Bytes::copy_from_slice(bytes), 0, true).unsigned_varint();
    assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Ok(u32::MAX));
    assert!(read(&[0xff, 0xff, 0xff, 0xff, 0x1f]).is_err());
    assert!(read(&[0x80; 6]).is_err());
}

#[test]
fn unknown_tagged_fields_are_skipped_and_disordered_ones_refused() {
    let mut bytes = encode(&Sample { extra: None, ..sample() }, 4).to_vec();
    bytes.pop(); // the count of tagged fields
    let unknown = [&bytes[..], &[2, 1, 2, 9, 9, 3, 4, 0, 0, 0, 8]].concat();
    assert_eq!(decode(unknown.into(), 4).unwrap().extra, Some(8));
    for wrong in [&[2, 3, 4, 0, 0, 0, 8, 3, 4, 0, 0, 0, 8][..], &[1, 3, 5, 0, 0, 0, 8, 1], &[255, 255, 255, 255, 15]] {
        assert!(decode([&bytes[..], wrong].concat().into(), 4).is_err(), "{wrong:?}");
    }
}

#[test]
fn record_batches_are_shared_both_ways() {
    let frame = Bytes::from(vec![0, 0, 0, 5, 1, 2, 3, 4, 5]);
    let read = |frame: &Bytes| {
        let read = RecordData::read(&mut Reader::new(frame.clone(), 0, false)).unwrap();
        read.0.unwrap().remove(0)
    };
    let batch = read(&frame);
    assert_eq!(batch.as_ptr(), frame[4..].as_ptr());
    // What is kept must not keep much more than itself.
    let padded = Bytes::from(vec![0, 0, 0, 4, 1, 2, 3, 4]);
    assert_eq!(read(&padded), padded[4..]);
    assert_ne!(read(&padded).as_ptr(), padded[4..].as_ptr());
    let mut writer = Writer::new(0, false);
    RecordData::some(vec![batch.clone(), batch.clone()]).write(&mut writer);
    let pieces = writer.finish();
    assert_eq!((pieces.len(), pieces[1].as_ptr()), (3, batch.as_ptr()));
    assert_eq!(pieces[0][..], [0, 0, 0, 10]);
}
