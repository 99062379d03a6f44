//! The producer table: what a partition's log prefix tells about its idempotent producers, and what `append` decides by it.
//!
//! A pure function of the log prefix (RULES.md O1): replicas that appended the same frames have the same table, byte for
//! byte as [`Producers::save`] writes it. It knows no clock, no ack level and no commit.
//!
//! - Per producer: the epoch, and the last [`BATCHES_KEPT`] batches of that epoch. Only accepted batches change it.
//! - A batch whose sequences are exactly those of a kept one is a duplicate, whatever else it asks for: a retry of a
//!   produce with `If-Match-Offset` that succeeded must not be told that the log end has moved.
//! - Sequences count records, are 31 bits and wrap to 0.
//! - **Bounded by counts in the log alone** (RULES.md O7): at most [`PRODUCERS_MAX`] producers; one more drops the
//!   one whose last accepted batch has the smallest Raft index. Batch timestamps are the clients' own, so a clock in them
//!   could expire another's producer; an index cannot be forged. A dropped producer that goes on is told `UnknownProducer`
//!   and loses nothing.
//! - **A dropped producer is no new one**: one whose only batch was its first would look the same when it retries that, and have
//!   it twice. So the last [`DROPPED_MAX`] that were dropped are remembered by id and epoch, and told `UnknownProducer` also
//!   for sequence 0.
//! - **Expired by the log alone, too**: a leader says in it below which index a producer's last accepted batch is too old
//!   ([`super::expiry`]); order in the log decides. An expired producer is forgotten whole, as in Kafka: its sequence 0 is a new
//!   producer's, any other is told `UnknownProducer`. Those that were dropped are forgotten with the first that expires: each of
//!   them had last written before it. While none expires, the table is full of producers that are younger.
//! - All limits are part of the format: replicas that differed in them would drift apart.
//!
//! Saved, little endian: version (1), number of producers (u32), then each in order of its id: id (i64), epoch (i16), number of
//! batches (u8), then each, oldest first: first sequence (i32), records (u32), base offset, index, term (u64 each). If any were
//! dropped the version is 2, and then come their number (u32) and each, the longest ago first: id (i64), epoch (i16). At the end
//! the CRC-32C of all before. Empty: `01 00000000 9919637d`.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pontoon_raft::log::frame::{FrameHeader, FrameKind};
use pontoon_raft::payload::{AppendPosition, AppendState, Decision};
use pontoon_raft::types::Offset;

use super::proposal;
use super::verdict::Verdict;
use crate::record_batch::{BatchHeader, ProducerSequence};

/// How many producers a partition remembers.
pub const PRODUCERS_MAX: usize = 4096;
/// How many batches it remembers of each: as many as a Kafka client may have in flight.
pub const BATCHES_KEPT: usize = 5;

/// How many dropped producers it knows for such: four more lives of a full table, for ten bytes each.
pub const DROPPED_MAX: usize = 4 * PRODUCERS_MAX;

const VERSION: u8 = 1;
/// With dropped producers behind the others.
const VERSION_DROPPED: u8 = 2;
/// Id, epoch, number of batches and one batch: the least a saved producer takes.
const PRODUCER_BYTES_MIN: usize = 8 + 2 + 1 + BATCH_BYTES;
const BATCH_BYTES: usize = 4 + 4 + 8 + 8 + 8;
const DROPPED_BYTES: usize = 8 + 2;

/// An accepted batch of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Batch {
    sequence: i32,
    records: u32,
    base_offset: u64,
    index: u64,
    term: u64,
}

impl Batch {
    fn next_sequence(&self) -> i32 {
        // 31 bits: after 2^31-1 comes 0.
        ((self.sequence as u32).wrapping_add(self.records) & (i32::MAX as u32)) as i32
    }

    fn as_duplicate(&self) -> Verdict {
        let last_offset = self.base_offset.saturating_add(u64::from(self.records).saturating_sub(1));
        Verdict::Duplicate { index: self.index, term: self.term, base_offset: self.base_offset, last_offset }
    }
}

/// A producer. `batches` has 1 to [`BATCHES_KEPT`] of its epoch, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Producer {
    epoch: i16,
    batches: Vec<Batch>,
}

/// Producers that were dropped, and with which epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Dropped {
    epochs: BTreeMap<i64, i16>,
    /// The same ids, the longest ago first.
    order: VecDeque<i64>,
}

impl Dropped {
    fn note(&mut self, id: i64, epoch: i16) {
        // One that came back under a newer epoch and was dropped again: rare.
        if self.epochs.insert(id, epoch).is_some() {
            self.order.retain(|before| *before != id);
        }
        self.order.push_back(id);
        if self.order.len() > DROPPED_MAX
            && let Some(forgotten) = self.order.pop_front()
        {
            self.epochs.remove(&forgotten);
        }
    }

    /// Whether a producer, with this epoch, is one of them. A newer epoch begins anew, knowingly.
    fn holds(&self, id: i64, epoch: i16) -> bool {
        self.epochs.get(&id).is_some_and(|dropped| epoch <= *dropped)
    }
}

/// The table. See the module's header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Producers {
    by_id: BTreeMap<i64, Producer>,
    /// Producers by the index of their last batch: who is dropped first. The same producers as in `by_id`.
    by_last_index: BTreeMap<u64, i64>,
    dropped: Dropped,
}

impl Producers {
    /// How many producers are remembered.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Who is remembered.
    #[cfg(test)]
    pub(super) fn ids(&self) -> impl Iterator<Item = i64> {
        self.by_id.keys().copied()
    }

    /// Accepts a batch (`None`), or says why not.
    fn judge(&self, header: &BatchHeader, if_match: Option<Offset>, next_offset: u64) -> Option<Verdict> {
        if let Some(producer) = header.producer()
            && let Some(verdict) = self.judge_sequence(producer, header.record_count as u32)
        {
            return Some(verdict);
        }
        if_match.filter(|offset| offset.0 != next_offset).map(|_| Verdict::OffsetMismatch { next_offset })
    }

    fn judge_sequence(&self, producer: ProducerSequence, records: u32) -> Option<Verdict> {
        let ProducerSequence { producer_id, epoch, sequence } = producer;
        let Some(known) = self.by_id.get(&producer_id) else {
            let known_once = sequence != 0 || self.dropped.holds(producer_id, epoch);
            return known_once.then_some(Verdict::UnknownProducer);
        };
        if epoch < known.epoch {
            return Some(Verdict::Fenced { epoch: known.epoch });
        }
        let mut expected = 0;
        if epoch == known.epoch {
            if let Some(original) = known.batches.iter().find(|b| b.sequence == sequence && b.records == records) {
                return Some(original.as_duplicate());
            }
            expected = known.batches.last().map_or(0, Batch::next_sequence);
        }
        (sequence != expected).then_some(Verdict::OutOfOrder { expected })
    }

    fn note(&mut self, producer: ProducerSequence, batch: Batch) {
        let known = self
            .by_id
            .entry(producer.producer_id)
            .or_insert_with(|| Producer { epoch: producer.epoch, batches: Vec::with_capacity(BATCHES_KEPT) });
        if let Some(last) = known.batches.last() {
            self.by_last_index.remove(&last.index);
        }
        if known.epoch != producer.epoch {
            known.epoch = producer.epoch;
            known.batches.clear();
        }
        if known.batches.len() == BATCHES_KEPT {
            known.batches.remove(0);
        }
        known.batches.push(batch);
        self.by_last_index.insert(batch.index, producer.producer_id);
        if self.by_id.len() > PRODUCERS_MAX
            && let Some((_, idlest)) = self.by_last_index.pop_first()
            && let Some(dropped) = self.by_id.remove(&idlest)
        {
            self.dropped.note(idlest, dropped.epoch);
        }
    }

    /// Forgets the producers whose last accepted batch has a smaller Raft index, and with the first of them all that were dropped:
    /// each of those had last written before any that is left.
    fn expire(&mut self, below: u64) {
        let kept = self.by_last_index.split_off(&below);
        let expired = std::mem::replace(&mut self.by_last_index, kept);
        for id in expired.values() {
            self.by_id.remove(id);
        }
        if !expired.is_empty() {
            self.dropped = Dropped::default();
        }
    }

    /// Reads back what [`AppendState::save`] wrote. `InvalidData` for anything else; nothing is allocated on a lie's word.
    pub fn load(saved: &[u8]) -> io::Result<Self> {
        Self::parse(saved).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, format!("producer table: {why}")))
    }

    fn parse(saved: &[u8]) -> Result<Self, String> {
        let (body, crc) = saved.split_last_chunk::<4>().ok_or("cut short")?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err("checksum mismatch".to_owned());
        }
        let mut rest = body;
        let version = rest.try_get_u8().map_err(|_| "cut short")?;
        if !matches!(version, VERSION | VERSION_DROPPED) {
            return Err(format!("version {version} is not {VERSION} or {VERSION_DROPPED}"));
        }
        let count = rest.try_get_u32_le().map_err(|_| "cut short")? as usize;
        if count > PRODUCERS_MAX || count.saturating_mul(PRODUCER_BYTES_MIN) > rest.len() {
            return Err(format!("{count} producers in {} bytes", rest.len()));
        }
        let mut table = Self::default();
        for _ in 0..count {
            let (id, producer) = parse_producer(&mut rest)?;
            if table.by_id.last_key_value().is_some_and(|(last, _)| *last >= id) {
                return Err(format!("producer {id} is out of order"));
            }
            let last_index = producer.batches.last().map_or(0, |batch| batch.index);
            if table.by_last_index.insert(last_index, id).is_some() {
                return Err(format!("two producers at index {last_index}"));
            }
            table.by_id.insert(id, producer);
        }
        if version == VERSION_DROPPED {
            table.dropped = parse_dropped(&mut rest)?;
        }
        if rest.is_empty() { Ok(table) } else { Err(format!("{} trailing bytes", rest.len())) }
    }
}

fn parse_dropped(rest: &mut &[u8]) -> Result<Dropped, String> {
    let count = rest.try_get_u32_le().map_err(|_| "cut short")? as usize;
    if count == 0 || count > DROPPED_MAX || count.saturating_mul(DROPPED_BYTES) > rest.len() {
        return Err(format!("{count} dropped producers in {} bytes", rest.len()));
    }
    let mut dropped = Dropped::default();
    for _ in 0..count {
        let (id, epoch) = (rest.get_i64_le(), rest.get_i16_le());
        if id < 0 || epoch < 0 || dropped.epochs.contains_key(&id) {
            return Err(format!("dropped producer {id} with epoch {epoch}"));
        }
        dropped.note(id, epoch);
    }
    Ok(dropped)
}

fn parse_producer(rest: &mut &[u8]) -> Result<(i64, Producer), String> {
    if rest.len() < PRODUCER_BYTES_MIN {
        return Err("cut short".to_owned());
    }
    let id = rest.get_i64_le();
    let epoch = rest.get_i16_le();
    let count = usize::from(rest.get_u8());
    if id < 0 || epoch < 0 || !(1..=BATCHES_KEPT).contains(&count) || rest.len() < count * BATCH_BYTES {
        return Err(format!("producer {id} with epoch {epoch} and {count} batches in {} bytes", rest.len()));
    }
    let mut batches = Vec::with_capacity(BATCHES_KEPT);
    for _ in 0..count {
        batches.push(Batch {
            sequence: rest.get_i32_le(),
            records: rest.get_u32_le(),
            base_offset: rest.get_u64_le(),
            index: rest.get_u64_le(),
            term: rest.get_u64_le(),
        });
    }
    Ok((id, Producer { epoch, batches }))
}

impl AppendState for Producers {
    fn decide(&self, payload: Bytes, at: AppendPosition) -> Decision {
        if let Some(Verdict::ExpireProducers { below }) = Verdict::decode(&payload) {
            // It says so of batches before it.
            return Decision::Void { verdict: Verdict::ExpireProducers { below: below.min(at.index) }.encode() };
        }
        let Some((header, if_match)) = proposal::read(&payload).filter(|(header, _)| header.record_count > 0) else {
            return Decision::Void { verdict: Verdict::Malformed.encode() };
        };
        if let Some(verdict) = self.judge(&header, if_match, at.next_offset) {
            return Decision::Void { verdict: verdict.encode() };
        }
        Decision::Accept {
            payload: proposal::stamp(payload, at.next_offset, at.term),
            offset_span: header.record_count as u32,
            record_count: header.record_count as u32,
            max_timestamp: header.max_timestamp,
        }
    }

    fn observe(&mut self, header: &FrameHeader, prefix: &[u8]) {
        if header.kind == FrameKind::Void
            && let Some(Verdict::ExpireProducers { below }) = Verdict::decode(prefix)
        {
            self.expire(below);
        }
        if header.kind != FrameKind::Records {
            return;
        }
        let producer = BatchHeader::read(prefix).ok().and_then(|batch| batch.producer());
        if let Some(producer) = producer {
            let batch = Batch {
                sequence: producer.sequence,
                records: header.record_count,
                base_offset: header.base_offset,
                index: header.index,
                term: header.term,
            };
            self.note(producer, batch);
        }
    }

    /// The last batch of the producer that has not written for longest.
    fn oldest_remembered(&self) -> Option<u64> {
        self.by_last_index.first_key_value().map(|(index, _)| *index)
    }

    fn save(&self) -> Bytes {
        let mut out = BytesMut::new();
        let dropped = &self.dropped;
        out.put_u8(if dropped.order.is_empty() { VERSION } else { VERSION_DROPPED });
        out.put_u32_le(self.by_id.len() as u32);
        for (id, producer) in &self.by_id {
            out.put_i64_le(*id);
            out.put_i16_le(producer.epoch);
            out.put_u8(producer.batches.len() as u8);
            for batch in &producer.batches {
                out.put_i32_le(batch.sequence);
                out.put_u32_le(batch.records);
                out.put_u64_le(batch.base_offset);
                out.put_u64_le(batch.index);
                out.put_u64_le(batch.term);
            }
        }
        if !dropped.order.is_empty() {
            out.put_u32_le(dropped.order.len() as u32);
            for id in &dropped.order {
                out.put_i64_le(*id);
                out.put_i16_le(dropped.epochs.get(id).copied().unwrap_or(i16::MAX));
            }
        }
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        out.freeze()
    }
}

#[cfg(test)]
mod tests;
