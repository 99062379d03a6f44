//! What a partition's log prefix tells: its producers, and what is retained. One value for the raft crate, saved in every
//! base, checkpoint and snapshot.
//!
//! Saved, little endian: version (1), length of the producer table (u32), the table as [`Producers`] saves it, the retention part as
//! [`Retained`] does, CRC-32C of all before. Version 1, before there was retention, is the producer table alone. Empty:
//! `02 09000000 …`.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pontoon_raft::log::frame::{FrameHeader, FrameKind};
use pontoon_raft::payload::{AppendPosition, AppendState, Decision};

use super::producers::Producers;
use super::retention::Retained;
use super::verdict::Verdict;

const VERSION: u8 = 2;
/// The version whose bytes are the producer table's own.
const VERSION_PRODUCERS_ONLY: u8 = 1;

/// A partition's append state (RULES.md O1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionState {
    producers: Producers,
    retained: Retained,
}

impl PartitionState {
    /// The producers it knows.
    #[cfg(test)]
    pub(crate) fn producer_ids(&self) -> Vec<i64> {
        self.producers.ids().collect()
    }

    /// Reads back what [`AppendState::save`] wrote. `InvalidData` for anything else.
    pub fn load(saved: &[u8]) -> io::Result<Self> {
        if saved.first() == Some(&VERSION_PRODUCERS_ONLY) {
            return Ok(Self { producers: Producers::load(saved)?, retained: Retained::default() });
        }
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("append state: {why}"));
        let (producers, retained) = split(saved).map_err(invalid)?;
        Ok(Self { producers: Producers::load(producers)?, retained: Retained::load(retained).map_err(invalid)? })
    }
}

fn split(saved: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let (body, crc) = saved.split_last_chunk::<4>().ok_or("cut short")?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return Err("checksum mismatch".to_owned());
    }
    let mut rest = body;
    let version = rest.try_get_u8().map_err(|_| "cut short")?;
    if version != VERSION {
        return Err(format!("version {version} is not {VERSION}"));
    }
    let producers = rest.try_get_u32_le().map_err(|_| "cut short")? as usize;
    rest.split_at_checked(producers).ok_or_else(|| format!("{producers} bytes of producers in {}", rest.len()))
}

impl AppendState for PartitionState {
    fn decide(&self, payload: Bytes, at: AppendPosition) -> Decision {
        match Verdict::decode(&payload) {
            // A leader moves the log start: never back, never beyond what there is.
            Some(Verdict::Retention { log_start, time_ms }) => {
                let log_start = log_start.min(at.next_offset).max(self.retained.last_start());
                Decision::Void { verdict: Verdict::Retention { log_start, time_ms }.encode() }
            }
            _ => self.producers.decide(payload, at),
        }
    }

    fn observe(&mut self, header: &FrameHeader, prefix: &[u8]) {
        if header.kind == FrameKind::Void
            && let Some(Verdict::Retention { log_start, time_ms }) = Verdict::decode(prefix)
        {
            self.retained.note(header.index, header.base_offset, log_start, time_ms);
        }
        self.producers.observe(header, prefix);
    }

    fn log_start(&self, upto: u64) -> u64 {
        self.retained.log_start(upto)
    }

    fn appended_by(&self, offset: u64) -> Option<i64> {
        self.retained.appended_by(offset)
    }

    fn oldest_remembered(&self) -> Option<u64> {
        self.producers.oldest_remembered()
    }

    fn save(&self) -> Bytes {
        let producers = self.producers.save();
        let mut out = BytesMut::with_capacity(producers.len() + 64);
        out.put_u8(VERSION);
        out.put_u32_le(producers.len() as u32);
        out.put_slice(&producers);
        self.retained.save(&mut out);
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        out.freeze()
    }
}

#[cfg(test)]
mod tests;
