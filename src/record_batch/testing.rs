//! Batches for other rooms' tests.

use super::*;

/// A batch of so many records of a million zeros.
pub(crate) fn zeros(records: usize) -> Bytes {
    let mut builder = RecordBatchBuilder::new(BatchLimits { batch_bytes_max: 80 << 20, ..BatchLimits::default() });
    let record = NewRecord { value: Some(vec![0; 1_000_000].into()), ..NewRecord::default() };
    (0..records).for_each(|_| builder.push(&record).unwrap());
    builder.build(None).unwrap().into_bytes()
}

/// The same batch, its records compressed.
pub(crate) fn squeezed(plain: &Bytes) -> Bytes {
    let mut batch = plain[..BATCH_HEADER_BYTES].to_vec();
    batch.extend(zstd::stream::encode_all(&plain[BATCH_HEADER_BYTES..], 3).unwrap());
    batch[22] = 4;
    let length = (batch.len() - LENGTH_END) as i32;
    batch[8..LENGTH_END].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&batch[CRC_END..]);
    batch[17..CRC_END].copy_from_slice(&crc.to_be_bytes());
    batch.into()
}
