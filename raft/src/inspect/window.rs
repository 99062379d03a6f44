//! A file, read a stretch at a time: never more memory than the stretch that was asked for, never a byte beyond the file's end.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::disk::{Disk, DiskFile, OpenMode};

/// Least that is read at a time.
const CHUNK_BYTES: u64 = 1 << 20;

/// A file with the stretch that was read last.
pub(crate) struct Window {
    file: Arc<dyn DiskFile>,
    len: u64,
    start: u64,
    chunk: Bytes,
    /// Bytes per second at most; 0: as fast as it can.
    rate: u64,
}

impl Window {
    pub(crate) async fn open(disk: &dyn Disk, path: &Path) -> io::Result<Self> {
        let file = disk.open(path, OpenMode::Read).await?;
        let len = file.len().await?;
        Ok(Self { file, len, start: 0, chunk: Bytes::new(), rate: 0 })
    }

    /// Pauses after each stretch, so that no more than so many bytes are read in a second.
    pub(crate) fn pace(&mut self, bytes_per_second: u64) {
        self.rate = bytes_per_second;
    }

    /// The file's length when it was opened.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Up to `bytes` bytes at `position`, fewer only at the end.
    pub(crate) async fn at(&mut self, position: u64, bytes: u64) -> io::Result<Bytes> {
        let end = position.saturating_add(bytes).min(self.len);
        if position >= end {
            return Ok(Bytes::new());
        }
        if position < self.start || end > self.start + self.chunk.len() as u64 {
            let wanted = (end - position).max(CHUNK_BYTES).min(self.len - position);
            self.chunk = self.file.read_at(position, wanted as usize).await?;
            self.start = position;
            if let Some(micros) = (wanted * 1_000_000).checked_div(self.rate) {
                tokio::time::sleep(Duration::from_micros(micros)).await;
            }
        }
        let from = (position - self.start) as usize;
        let to = ((end - self.start) as usize).min(self.chunk.len());
        Ok(self.chunk.slice(from.min(to)..to))
    }

    /// The first byte at or behind `position` that is not zero.
    pub(crate) async fn next_nonzero(&mut self, mut position: u64) -> io::Result<Option<u64>> {
        loop {
            let chunk = self.at(position, CHUNK_BYTES).await?;
            if chunk.is_empty() {
                return Ok(None);
            }
            if let Some(at) = chunk.iter().position(|byte| *byte != 0) {
                return Ok(Some(position + at as u64));
            }
            position += chunk.len() as u64;
        }
    }
}
