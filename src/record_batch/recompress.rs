//! A batch with the compression that its topic stores (`compression.type`), whatever the producer has chosen.
//!
//! What is compressed stays as it is, every byte of every record; of the header change the compression's bits, the length and the
//! checksum. So the producer's sequence, by which a batch that is sent again is known, is the one that it came with.

use super::{BATCH_HEADER_BYTES, BatchError, BatchHeader, BatchLimits, COMPRESSION_BITS, Compression, RecordBatch};

impl RecordBatch {
    /// The same records, compressed so. Shares the bytes of a batch that is already.
    ///
    /// Errors: `RecompressedTooLarge` if that makes it larger than a batch may be, `DecompressedTooLarge` if nobody could read it then.
    pub fn recompressed(self, codec: Compression, limits: &BatchLimits) -> Result<Self, BatchError> {
        if self.header.compression()? == codec {
            return Ok(self);
        }
        let plain = self.plain_records(limits.decompressed_bytes_max)?;
        recompress(self.header, &plain, codec, limits)
    }
}

/// A batch of this header and these plain records.
pub(super) fn recompress(
    header: BatchHeader,
    plain: &[u8],
    codec: Compression,
    limits: &BatchLimits,
) -> Result<RecordBatch, BatchError> {
    // One that came uncompressed was not held to that; what is stored compressed must be, for it is read within it.
    if codec != Compression::None && plain.len() > limits.decompressed_bytes_max {
        return Err(BatchError::DecompressedTooLarge { max: limits.decompressed_bytes_max });
    }
    let mut out = codec.compress(plain, vec![0; BATCH_HEADER_BYTES], limits.batch_bytes_max)?;
    // It is held for as long as the batch is.
    out.shrink_to_fit();
    let attributes = header.attributes & !COMPRESSION_BITS | codec.attributes();
    let header = BatchHeader { attributes, ..header }.write(&mut out);
    Ok(RecordBatch { header, bytes: out.into() })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::testing::{squeezed, zeros};
    use super::super::{CRC_END, NewRecord, ProducerSequence, RecordBatchBuilder};
    use super::*;

    const ALL: [Compression; 5] =
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

    fn made(value: &[u8]) -> RecordBatch {
        let mut builder = RecordBatchBuilder::new(BatchLimits::default());
        let record = NewRecord { timestamp: 7, value: Some(Bytes::copy_from_slice(value)), ..NewRecord::default() };
        builder.push(&record).unwrap();
        builder.build(Some(ProducerSequence { producer_id: 5, epoch: 2, sequence: 9 })).unwrap()
    }

    #[test]
    fn a_batch_that_has_the_compression_is_left_as_it_is() {
        let limits = BatchLimits { batch_bytes_max: 0, decompressed_bytes_max: 0, ..BatchLimits::default() };
        for codec in ALL {
            let batch = made(&[1; 1000]).recompressed(codec, &BatchLimits::default()).unwrap();
            assert_eq!(batch.clone().recompressed(codec, &limits).unwrap().bytes().as_ptr(), batch.bytes().as_ptr());
            let mut allowance = super::super::Allowance::new(1 << 20);
            let (bytes, limits) = (batch.bytes().clone(), BatchLimits::default());
            let checked = RecordBatch::check_within(bytes, &limits, Some(codec), &mut allowance).unwrap();
            assert_eq!(checked.bytes().as_ptr(), batch.bytes().as_ptr(), "{codec:?}");
        }
    }

    /// Every bit of the attributes but the compression's, though nobody sends them yet.
    #[test]
    fn what_the_header_says_of_the_records_stays() {
        let mut bytes = made(&[1; 1000]).into_bytes().to_vec();
        bytes[..8].copy_from_slice(&77_u64.to_be_bytes());
        let header = BatchHeader { attributes: 0x7f78, leader_epoch: 3, ..BatchHeader::read(&bytes).unwrap() };
        let batch = RecordBatch { header: header.write(&mut bytes), bytes: bytes.into() };
        for codec in ALL {
            let stored = batch.clone().recompressed(codec, &BatchLimits::default()).unwrap();
            let crc = crc32c::crc32c(&stored.bytes()[CRC_END..]);
            let wanted = BatchHeader { attributes: 0x7f78 | codec as i16, crc, ..header };
            assert_eq!((*stored.header(), BatchHeader::read(stored.bytes())), (wanted, Ok(wanted)), "{codec:?}");
        }
    }

    #[test]
    fn what_does_not_shrink_is_compressed_all_the_same() {
        let noise: Vec<u8> = (0..1000_u32).flat_map(|at| crc32c::crc32c(&at.to_be_bytes()).to_be_bytes()).collect();
        let batch = made(&noise);
        for codec in ALL.into_iter().filter(|codec| *codec != Compression::None) {
            let stored = batch.clone().recompressed(codec, &BatchLimits::default()).unwrap();
            assert!(stored.bytes().len() > batch.bytes().len(), "{codec:?}");
            assert_eq!(stored.header().compression(), Ok(codec));
        }
    }

    #[test]
    fn what_becomes_too_large_is_refused() {
        let limits = BatchLimits { batch_bytes_max: 1_999_999, ..BatchLimits::default() };
        let bomb = RecordBatch::check(squeezed(&zeros(2)), &limits).unwrap();
        let refused = bomb.clone().recompressed(Compression::None, &limits);
        assert_eq!(refused, Err(BatchError::RecompressedTooLarge { stored_as: "uncompressed", max: 1_999_999 }));
        assert_eq!(bomb.recompressed(Compression::Lz4, &limits).unwrap().header().record_count, 2);
    }

    /// A large request's batch may come uncompressed and be more than readers decompress.
    #[test]
    fn what_nobody_could_read_is_not_compressed() {
        let limits = BatchLimits { decompressed_bytes_max: 1_999_999, ..BatchLimits::default() };
        let plain = RecordBatch::check(zeros(2), &limits).unwrap();
        assert_eq!(plain.clone().recompressed(Compression::None, &limits).unwrap(), plain);
        let refused = plain.recompressed(Compression::Lz4, &limits);
        assert_eq!(refused, Err(BatchError::DecompressedTooLarge { max: 1_999_999 }));
    }
}
