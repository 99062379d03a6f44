//! Which partition a record goes to: by its key as Kafka's own clients choose, without a key one after the other.
//!
//! The same key must lead to the same partition whichever client or door it comes through; so the hash is that of Kafka's
//! Java client (`DefaultPartitioner`, `Utils.murmur2`), bit for bit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

/// Topics whose turn is remembered. One more, and all begin anew: that costs evenness for a moment, nothing else.
const TOPICS_MAX: usize = 4096;

/// The partition of a key, of `partitions` (at least one).
pub(super) fn of_key(key: &[u8], partitions: u32) -> u32 {
    // Kafka makes the hash positive by dropping its sign, not by its absolute value.
    (murmur2(key) & 0x7fff_ffff) % partitions.max(1)
}

/// MurmurHash2, 32 bit, with Kafka's seed.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let mut hash = SEED ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0, |tail, byte| tail << 8 | u32::from(*byte));
        hash = (hash ^ tail).wrapping_mul(M);
    }
    hash = (hash ^ hash >> 13).wrapping_mul(M);
    hash ^ hash >> 15
}

/// Whose turn it is, by topic: records without a key are dealt out one after the other, over requests too.
#[derive(Debug, Default)]
pub(super) struct RoundRobin(Mutex<BTreeMap<String, Arc<AtomicU32>>>);

impl RoundRobin {
    /// A topic's turn.
    pub(super) fn of(&self, topic: &str) -> Turn {
        let mut topics = self.0.lock();
        if let Some(turn) = topics.get(topic) {
            return Turn(Arc::clone(turn));
        }
        if topics.len() >= TOPICS_MAX {
            topics.clear();
        }
        Turn(Arc::clone(topics.entry(topic.to_owned()).or_default()))
    }
}

/// See [`RoundRobin`].
pub(super) struct Turn(Arc<AtomicU32>);

impl Turn {
    /// The next partition, of `partitions` (at least one).
    pub(super) fn next(&self, partitions: u32) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed) % partitions.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn the_hash_is_kafkas() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn a_negative_hash_loses_its_sign_only() {
        assert_eq!(of_key(b"21", 7), ((-973_932_308i32) & 0x7fff_ffff) as u32 % 7);
        assert_eq!(of_key(b"21", 1), 0);
        assert!((0..1000u32).all(|key| of_key(&key.to_le_bytes(), 12) < 12));
    }

    #[test]
    fn turns_are_taken_in_order_and_by_topic() {
        let robin = RoundRobin::default();
        let taken: Vec<_> = (0..5).map(|_| robin.of("a").next(3)).collect();
        assert_eq!(taken, [0, 1, 2, 0, 1]);
        assert_eq!(robin.of("b").next(3), 0);
        assert_eq!(robin.of("a").next(3), 2);
    }

    #[test]
    fn the_table_of_turns_is_bounded() {
        let robin = RoundRobin::default();
        for topic in 0..=TOPICS_MAX {
            robin.of(&topic.to_string());
        }
        assert!(robin.0.lock().len() <= TOPICS_MAX);
    }
}
