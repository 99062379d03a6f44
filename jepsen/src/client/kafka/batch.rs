//! Values as one record batch, and batches back to values.

use bytes::{Bytes, BytesMut};
use kafka_protocol::records::{
    Compression, NO_PARTITION_LEADER_EPOCH, NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE, Record, RecordBatchDecoder,
    RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};

use crate::client::payload;
use crate::client::producer::Sequence;
use crate::history::{Offset, Records, Value};

/// How much of foreign contents goes into an error.
const EXCERPT: usize = 160;

/// One batch of these values.
pub(super) fn encode(values: &[Value], sizes: fn(Value) -> usize, by: Option<Sequence>) -> Result<Bytes, String> {
    let no_one = Sequence { producer_id: NO_PRODUCER_ID, epoch: NO_PRODUCER_EPOCH, first: NO_SEQUENCE };
    let by = by.unwrap_or(no_one);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let record = |(at, value): (i32, &Value)| Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: NO_PARTITION_LEADER_EPOCH,
        producer_id: by.producer_id,
        producer_epoch: by.epoch,
        timestamp_type: TimestampType::Creation,
        offset: i64::from(at),
        // Of the crate, not of Kafka: records are one batch while offset and sequence go on together.
        sequence: by.first.wrapping_add(at),
        timestamp: now.as_millis() as i64,
        key: None,
        value: Some(Bytes::from(payload::text(*value, sizes(*value)))),
        headers: Default::default(),
    };
    let records: Vec<Record> = (0..).zip(values).map(record).collect();
    let mut bytes = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    RecordBatchEncoder::encode(&mut bytes, &records, &options).map_err(|error| error.to_string())?;
    Ok(bytes.freeze())
}

/// The values of all batches at or after an offset, with what is no value of ours, in words.
pub(super) fn decode(mut bytes: Bytes, from: Offset) -> Result<(Records, Vec<String>), String> {
    let sets = RecordBatchDecoder::decode_all(&mut bytes).map_err(|error| format!("batches that are none: {error}"))?;
    let (mut records, mut foreign) = (Vec::new(), Vec::new());
    for record in sets.into_iter().flat_map(|set| set.records) {
        let offset = u64::try_from(record.offset).map_err(|_| format!("a record at offset {}", record.offset))?;
        // A batch comes whole.
        if offset < from.0 {
            continue;
        }
        let text = String::from_utf8_lossy(record.value.as_deref().unwrap_or(b"null")).into_owned();
        let value = payload::value(&text).unwrap_or_else(|| {
            foreign.push(format!("offset {offset} holds {}", text.chars().take(EXCERPT).collect::<String>()));
            // One that nobody sends, another at each offset.
            Value(-1 - i64::try_from(offset).unwrap_or(i64::MAX - 1))
        });
        records.push((Offset(offset), value));
    }
    Ok((records, foreign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_from_the_offset_asked_for() {
        let by = Sequence { producer_id: 7, epoch: 0, first: 3 };
        for by in [None, Some(by)] {
            let values = [Value(1), Value(2), Value(3)];
            let bytes = encode(&values, |_| 20, by).unwrap();
            let told = |from| decode(bytes.clone(), Offset(from)).unwrap();
            assert_eq!(told(0), ((0..).map(Offset).zip(values).collect(), Vec::new()));
            assert_eq!(told(2), (vec![(Offset(2), Value(3))], Vec::new()));
            // One batch, whatever its producer; its header says who and from where on.
            assert_eq!(bytes[57..61], [0, 0, 0, 3]);
            let first = by.map_or(-1, |by| by.first);
            assert_eq!(bytes[53..57], first.to_be_bytes());
        }
    }

    #[test]
    fn foreign_contents_and_changed_bytes_are_noticed() {
        let mut bytes = encode(&[Value(1)], |_| 20, None).unwrap().to_vec();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        assert!(decode(bytes.clone().into(), Offset(0)).is_err(), "the checksum");
        let crc = crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        let (records, foreign) = decode(bytes.into(), Offset(0)).unwrap();
        assert_eq!((records, foreign.len()), (vec![(Offset(0), Value(-1))], 1));
    }

    /// Castagnoli's, bit by bit.
    fn crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 })
        })
    }
}
