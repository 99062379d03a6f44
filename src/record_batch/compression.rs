//! Compression of a batch's records, and back, with a limit on what comes out. What is compressed here is what Kafka's own brokers and
//! clients write, level, block sizes and framing: every client reads that.

use std::io::{self, Read, Write};

use bytes::Bytes;

use super::BatchError;

/// How a batch's records are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// Snappy, one raw block or the framing of xerial's snappy-java.
    Snappy,
    /// An LZ4 frame.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// An LZ4 frame's first four bytes. lz4_flex also reads the legacy format, whose blocks are 8 MiB; Kafka never wrote it.
const LZ4_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
/// What snappy-java puts before its blocks: this, then two 32-bit versions.
const XERIAL_MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
const XERIAL_HEADER_BYTES: usize = 16;
/// The two versions behind it, 1 and 1.
const XERIAL_VERSIONS: [u8; 8] = [0, 0, 0, 1, 0, 0, 0, 1];
/// How much snappy-java puts into a block.
const XERIAL_BLOCK_BYTES: usize = 32 << 10;
/// The best a Snappy block can do: three bytes that copy 64. A block that claims more lies, and gets no memory.
const SNAPPY_RATIO_MAX: usize = 64 / 3 + 1;
/// What decompression begins with.
const FIRST_BYTES: usize = 64 << 10;
/// The largest window that zstd itself accepts by default: 2^27 bytes, what its level 22 uses. It is touched only as far as
/// output is written, so the output limit bounds it.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Kafka's default level (`compression.zstd.level`); gzip's is zlib's own.
const ZSTD_LEVEL: i32 = 3;

#[cfg(test)]
thread_local! {
    /// How often this thread has decompressed anything: for tests that look at who does how much at a time.
    pub(crate) static DECOMPRESSED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl Compression {
    /// From the three lowest bits of the attributes.
    pub(super) fn from_attributes(attributes: i16) -> Result<Self, BatchError> {
        Ok(match attributes & 7 {
            0 => Self::None,
            1 => Self::Gzip,
            2 => Self::Snappy,
            3 => Self::Lz4,
            4 => Self::Zstd,
            other => return Err(BatchError::Compression(other)),
        })
    }

    /// The three lowest bits of the attributes.
    pub(super) fn attributes(self) -> i16 {
        self as i16
    }

    /// The name by which Kafka's configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// The plain bytes. Shares `bytes` when they are not compressed. `DecompressedTooLarge` as soon as more than
    /// `bytes_max` came out; no more than about twice that is ever held.
    pub(super) fn decompress(self, bytes: &Bytes, bytes_max: usize) -> Result<Bytes, BatchError> {
        #[cfg(test)]
        DECOMPRESSED.set(DECOMPRESSED.get() + usize::from(self != Self::None));
        let plain = match self {
            Self::None => return Ok(bytes.clone()),
            Self::Gzip => read_bounded(flate2::bufread::MultiGzDecoder::new(&bytes[..]), bytes_max),
            Self::Snappy => return snappy(bytes, bytes_max),
            Self::Lz4 => lz4(bytes, bytes_max),
            Self::Zstd => zstd(bytes, bytes_max),
        };
        match plain {
            Ok(plain) if plain.len() > bytes_max => Err(BatchError::DecompressedTooLarge { max: bytes_max }),
            Ok(plain) => Ok(plain.into()),
            Err(error) => Err(BatchError::Decompress { codec: self.name(), why: error.to_string() }),
        }
    }
    /// Writes plain bytes behind what is in `out`, which may grow to `bytes_max` in all: `RecompressedTooLarge` as soon as that is not
    /// enough. However little they shrink: Kafka's brokers look at that no more than this.
    pub(super) fn compress(self, plain: &[u8], out: Vec<u8>, bytes_max: usize) -> Result<Vec<u8>, BatchError> {
        let mut bounded = Bounded { out, bytes_max, over: false };
        let written = match self {
            Self::None => bounded.write_all(plain),
            Self::Gzip => compress_gzip(plain, &mut bounded),
            Self::Snappy => compress_snappy(plain, &mut bounded),
            Self::Lz4 => compress_lz4(plain, &mut bounded),
            Self::Zstd => compress_zstd(plain, &mut bounded),
        };
        match written {
            Ok(()) => Ok(bounded.out),
            Err(_) if bounded.over => {
                let stored_as = if self == Self::None { "uncompressed" } else { self.name() };
                Err(BatchError::RecompressedTooLarge { stored_as, max: bytes_max })
            }
            Err(error) => Err(BatchError::Compress { codec: self.name(), why: error.to_string() }),
        }
    }
}

/// Takes what is written until it would be too much.
struct Bounded {
    out: Vec<u8>,
    bytes_max: usize,
    over: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.over |= bytes.len() > self.bytes_max.saturating_sub(self.out.len());
        if self.over {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn compress_gzip(plain: &[u8], out: &mut Bounded) -> io::Result<()> {
    let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
    encoder.write_all(plain)?;
    encoder.finish().map(drop)
}

fn compress_snappy(plain: &[u8], out: &mut Bounded) -> io::Result<()> {
    out.write_all(&XERIAL_MAGIC)?;
    out.write_all(&XERIAL_VERSIONS)?;
    let mut encoder = snap::raw::Encoder::new();
    let mut block = vec![0; snap::raw::max_compress_len(XERIAL_BLOCK_BYTES.min(plain.len()))];
    for chunk in plain.chunks(XERIAL_BLOCK_BYTES) {
        let bytes = encoder.compress(chunk, &mut block)?;
        out.write_all(&(bytes as u32).to_be_bytes())?;
        out.write_all(&block[..bytes])?;
    }
    Ok(())
}

/// Blocks of 64 KiB that need no other: Java's client reads no others.
fn compress_lz4(plain: &[u8], out: &mut Bounded) -> io::Result<()> {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    let frame = FrameInfo::new().block_size(BlockSize::Max64KB).block_mode(BlockMode::Independent);
    let mut encoder = FrameEncoder::with_frame_info(frame, out);
    encoder.write_all(plain)?;
    encoder.finish()?;
    Ok(())
}

fn compress_zstd(plain: &[u8], out: &mut Bounded) -> io::Result<()> {
    let mut encoder = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?;
    // So that a small batch does not take the memory of a large one.
    encoder.set_pledged_src_size(Some(plain.len() as u64))?;
    encoder.write_all(plain)?;
    encoder.finish().map(drop)
}

/// Reads at most one byte more than `bytes_max`, so that the caller sees that there was more. Memory grows fourfold and never beyond that:
/// what a vector would ask for by itself is twice the limit, and as much again is freed on the way.
fn read_bounded(mut reader: impl Read, bytes_max: usize) -> io::Result<Vec<u8>> {
    let limit = bytes_max.saturating_add(1);
    let mut out = Vec::with_capacity(FIRST_BYTES.min(limit));
    loop {
        let (before, room) = (out.len(), out.capacity().min(limit) - out.len());
        reader.by_ref().take(room as u64).read_to_end(&mut out)?;
        if out.len() - before < room || out.len() == limit {
            return Ok(out);
        }
        out.reserve_exact(out.len().saturating_mul(4).min(limit) - out.len());
    }
}

fn lz4(bytes: &[u8], bytes_max: usize) -> io::Result<Vec<u8>> {
    if !bytes.starts_with(&LZ4_MAGIC) {
        return Err(io::Error::other("not an LZ4 frame"));
    }
    read_bounded(lz4_flex::frame::FrameDecoder::new(bytes), bytes_max)
}

fn zstd(bytes: &[u8], bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    read_bounded(decoder, bytes_max)
}

fn snappy(bytes: &[u8], bytes_max: usize) -> Result<Bytes, BatchError> {
    let mut out = Vec::new();
    if !bytes.starts_with(&XERIAL_MAGIC) {
        snappy_block(bytes, bytes_max, &mut out)?;
        return Ok(out.into());
    }
    let mut rest = bytes.get(XERIAL_HEADER_BYTES..).ok_or_else(|| snappy_error("its header is cut short"))?;
    while !rest.is_empty() {
        let Some((length, after)) = rest.split_first_chunk::<4>() else {
            return Err(snappy_error("a block's length is cut short"));
        };
        // As unsigned: a negative length is larger than anything that can follow.
        let length = u32::from_be_bytes(*length) as usize;
        let Some(block) = after.get(..length) else {
            return Err(snappy_error(&format!("a block of {length} bytes with {} left", after.len())));
        };
        snappy_block(block, bytes_max, &mut out)?;
        rest = &after[length..];
    }
    Ok(out.into())
}

/// Appends one raw block to `out`, which may grow to `bytes_max`.
fn snappy_block(block: &[u8], bytes_max: usize, out: &mut Vec<u8>) -> Result<(), BatchError> {
    let claimed = snap::raw::decompress_len(block).map_err(|error| snappy_error(&error.to_string()))?;
    if claimed > block.len().saturating_mul(SNAPPY_RATIO_MAX) {
        return Err(snappy_error(&format!("a block of {} bytes claims to hold {claimed}", block.len())));
    }
    let start = out.len();
    if claimed > bytes_max.saturating_sub(start) {
        return Err(BatchError::DecompressedTooLarge { max: bytes_max });
    }
    out.resize(start + claimed, 0);
    let written = snap::raw::Decoder::new()
        .decompress(block, &mut out[start..])
        .map_err(|error| snappy_error(&error.to_string()))?;
    out.truncate(start + written);
    Ok(())
}

fn snappy_error(why: &str) -> BatchError {
    BatchError::Decompress { codec: "snappy", why: why.to_owned() }
}

/// As clients compress, for tests: Snappy without framing, too, or in blocks of their own size.
#[cfg(test)]
pub(super) fn compress(codec: Compression, plain: &[u8], xerial: bool) -> Vec<u8> {
    match codec {
        Compression::Snappy if xerial => {
            let mut out = [XERIAL_MAGIC, XERIAL_VERSIONS].concat();
            for chunk in plain.chunks(100) {
                let block = snap::raw::Encoder::new().compress_vec(chunk).unwrap();
                out.extend_from_slice(&(block.len() as u32).to_be_bytes());
                out.extend_from_slice(&block);
            }
            out
        }
        Compression::Snappy => snap::raw::Encoder::new().compress_vec(plain).unwrap(),
        codec => codec.compress(plain, Vec::new(), usize::MAX).unwrap(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [(Compression, bool); 5] = [
        (Compression::Gzip, false),
        (Compression::Snappy, false),
        (Compression::Snappy, true),
        (Compression::Lz4, false),
        (Compression::Zstd, false),
    ];

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let plain = vec![0; 4 << 20];
        for (codec, xerial) in ALL {
            let bomb = Bytes::from(compress(codec, &plain, xerial));
            assert!(bomb.len() < plain.len() / 2, "{codec:?}");
            let limit = plain.len() - 1;
            assert_eq!(
                codec.decompress(&bomb, limit),
                Err(BatchError::DecompressedTooLarge { max: limit }),
                "{codec:?}"
            );
            assert_eq!(codec.decompress(&bomb, plain.len()).unwrap(), plain, "{codec:?}");
        }
    }

    #[test]
    fn a_snappy_block_that_claims_more_than_it_can_hold_gets_no_memory() {
        // A varint of 2^32 - 1, then one literal byte.
        let lie = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0x00, b'x']);
        let error = Compression::Snappy.decompress(&lie, usize::MAX).unwrap_err();
        assert!(error.to_string().contains("claims to hold 4294967295"), "{error}");
    }

    #[test]
    fn a_xerial_block_of_negative_length_is_refused() {
        let mut bytes = XERIAL_MAGIC.to_vec();
        bytes.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]);
        let error = Compression::Snappy.decompress(&bytes.into(), 1000).unwrap_err();
        assert!(error.to_string().contains("4294967295 bytes with 0 left"), "{error}");
    }

    #[test]
    fn lz4s_legacy_format_is_refused() {
        let legacy = Bytes::from_static(&[0x02, 0x21, 0x4c, 0x18, 0, 0, 0, 0]);
        assert!(matches!(Compression::Lz4.decompress(&legacy, 1000), Err(BatchError::Decompress { .. })));
    }

    #[test]
    fn what_is_compressed_is_framed_as_kafkas_own() {
        let plain =
            [vec![7; 100_000], (0..100_000u32).flat_map(|at| at.wrapping_mul(at).to_be_bytes()).collect()].concat();
        let begun = |codec: Compression, bytes: &[u8]| {
            let out = codec.compress(&plain, b"before".to_vec(), usize::MAX).unwrap();
            assert!(out.starts_with(&[b"before", bytes].concat()), "{codec:?}: {:02x?}", &out[..40]);
            assert_eq!(codec.decompress(&Bytes::from(out).slice(6..), plain.len()).unwrap(), plain, "{codec:?}");
        };
        begun(Compression::None, &plain);
        begun(Compression::Gzip, &[0x1f, 0x8b, 8]);
        begun(Compression::Snappy, &[XERIAL_MAGIC, XERIAL_VERSIONS].concat());
        // Version 1, independent blocks, no checksums of them; blocks of 64 KiB.
        begun(Compression::Lz4, &[&LZ4_MAGIC[..], &[0x60, 0x40]].concat());
        begun(Compression::Zstd, &[0x28, 0xb5, 0x2f, 0xfd]);
        // How long the first block of snappy-java would be.
        let snappy = Compression::Snappy.compress(&plain, Vec::new(), usize::MAX).unwrap();
        assert_eq!(snap::raw::decompress_len(&snappy[XERIAL_HEADER_BYTES + 4..]), Ok(XERIAL_BLOCK_BYTES));
    }

    #[test]
    fn nothing_is_written_past_the_limit() {
        let noise: Vec<u8> =
            (0..50_000u32).flat_map(|at| at.wrapping_mul(at).wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        for (codec, _) in ALL.into_iter().chain([(Compression::None, false)]) {
            let stored_as = if codec == Compression::None { "uncompressed" } else { codec.name() };
            let whole = codec.compress(&noise, vec![0; 61], usize::MAX).unwrap();
            assert_eq!(codec.compress(&noise, vec![0; 61], whole.len()), Ok(whole.clone()), "{codec:?}");
            for max in [0, 60, 61, whole.len() / 2, whole.len() - 1] {
                let refused = codec.compress(&noise, vec![0; 61], max);
                assert_eq!(refused, Err(BatchError::RecompressedTooLarge { stored_as, max }), "{codec:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_compressed_comes_back(plain in proptest::collection::vec(any::<u8>(), 0..2000)) {
            for (codec, xerial) in ALL {
                let bytes = Bytes::from(compress(codec, &plain, xerial));
                prop_assert_eq!(codec.decompress(&bytes, plain.len()).unwrap(), &plain);
            }
        }

        #[test]
        fn random_bytes_never_panic_nor_pass_the_limit(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0..40usize) {
            for (codec, xerial) in ALL {
                // Behind a good beginning, so that the decoders get past their magic.
                let mut hostile = compress(codec, &[7; 500], xerial);
                hostile.truncate(cut);
                hostile.extend_from_slice(&bytes);
                if let Ok(plain) = codec.decompress(&hostile.into(), 600) {
                    prop_assert!(plain.len() <= 600);
                }
            }
        }
    }
}
