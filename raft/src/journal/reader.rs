//! Reading a journal back, before anything is written: all records from an LSN on, in order, one round in memory at a time.
//!
//! The reader tells a torn write from corruption by one question: *was it ever durable?* Every round, and every file, says which
//! LSN was durable when it was written (`follows`). So a bad round that nothing readable builds on is a write that the power
//! cut interrupted, acknowledged to no one; a bad round that a later one builds on was durable, and its loss is corruption
//! (RULES.md J3, J8). The reader never changes anything; [`super::Journal::start`] makes the tail durable and goes on in a new file.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::files::{LiveFile, parse_spare_name};
use super::format::{
    BLOCK_BYTES, BadBody, FILE_VERSION, FileHeader, NoHeader, ROUND_HEADER_BYTES, RoundHeader, Seed, decode_body,
    parse_file_name,
};
use super::{JournalIdentity, Lsn, Recovered};
use crate::disk::{DirEntry, Disk, DiskFile, OpenMode};
use crate::error::OpenError;

/// How much is read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// What a scan found; [`super::Journal::start`] goes on from it.
#[derive(Debug, Default)]
pub struct Scan {
    /// The last record's LSN; 0 if there is none.
    pub last: Lsn,
    pub(super) next: Lsn,
    /// Files with records, oldest first.
    pub(super) live: Vec<LiveFile>,
    /// Files without: prepared and never used, or with nothing but a torn first round. Name, length.
    pub(super) unused: Vec<(String, u64)>,
    pub(super) spares: Vec<(String, u64)>,
    pub(super) half_prepared: Vec<String>,
    /// The last round: it may not be durable yet.
    pub(super) tail: Option<Tail>,
}

impl Scan {
    /// Whether there is any file that was begun: with a header, or with a round.
    pub(crate) fn is_begun(&self) -> bool {
        !self.live.is_empty()
    }

    /// Bytes that a recovery reads, as found.
    pub fn live_bytes(&self) -> u64 {
        self.live.iter().map(|file| file.bytes).sum()
    }
}

/// The last round that was read, with its file's header if it is the first there.
#[derive(Clone, Debug)]
pub(super) struct Tail {
    pub(super) path: PathBuf,
    pub(super) position: u64,
    pub(super) parts: Vec<Bytes>,
}

/// Reads the whole journal from `from` on, calling `visitor` for each record in LSN order; an error of the visitor's ends the scan.
/// See [`Scanner`].
pub async fn scan(
    disk: &dyn Disk,
    identity: &JournalIdentity,
    from: Lsn,
    mut visitor: impl FnMut(Recovered) -> Result<(), OpenError>,
) -> Result<Scan, OpenError> {
    let mut scanner = Scanner::open(disk, identity, from).await?;
    while let Some(recovered) = scanner.next().await? {
        visitor(recovered)?;
    }
    Ok(scanner.finish())
}

/// A journal being read.
///
/// `from` is the first LSN wanted: everything below it must be in a checkpoint. Records below it that stand in the same files are
/// left out. The frames of a record share the memory of the chunk (1 MiB, or a whole round) they were read with: copy what is kept.
/// If something at or above `from` was durable and cannot be read, [`Self::next`] says `Corrupt`; nothing is changed.
pub struct Scanner<'a> {
    disk: &'a dyn Disk,
    identity: JournalIdentity,
    from: Lsn,
    /// Files yet to be read.
    files: VecDeque<FoundFile>,
    open: Option<OpenFile>,
    ready: VecDeque<Recovered>,
    scan: Scan,
    ended: bool,
}

struct FoundFile {
    name: String,
    epoch: u64,
    number: u64,
    bytes: u64,
    /// `None`: it cannot be read, or is left from an earlier use of a recycled file.
    header: Option<FileHeader>,
}

struct OpenFile {
    found: FoundFile,
    file: Arc<dyn DiskFile>,
    seed: Seed,
    position: u64,
    /// Up to where it holds rounds.
    used: u64,
    /// The last LSN before this file.
    before: Lsn,
    /// The last chunk that was read, and its position.
    chunk: (u64, Bytes),
}

impl<'a> Scanner<'a> {
    /// Lists the files and reads their headers.
    pub async fn open(disk: &'a dyn Disk, identity: &JournalIdentity, from: Lsn) -> Result<Scanner<'a>, OpenError> {
        let from = Lsn(from.0.max(1));
        let scan = Scan::default();
        let (identity, files) = (identity.clone(), VecDeque::new());
        let mut scanner = Self { disk, identity, from, files, open: None, ready: VecDeque::new(), scan, ended: false };
        let dir = scanner.identity.dir.clone();
        let entries = match disk.read_dir(&dir).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(|error| OpenError::Io { path: dir, error })?,
        };
        for entry in entries {
            scanner.list(entry).await?;
        }
        scanner.files.make_contiguous().sort_by_key(|file| (file.epoch, file.number));
        scanner.skip_retired();
        Ok(scanner)
    }

    async fn list(&mut self, entry: DirEntry) -> Result<(), OpenError> {
        let Some((epoch, number)) = parse_file_name(&entry.name).filter(|_| !entry.is_dir) else {
            if parse_spare_name(&entry.name).is_some() {
                self.scan.spares.push((entry.name, entry.bytes));
            } else if entry.name.ends_with(".new") {
                self.scan.half_prepared.push(entry.name);
            } else {
                tracing::warn!(dir = %self.identity.dir.display(), name = entry.name, "not a journal file, left alone");
            }
            return Ok(());
        };
        if epoch >= self.identity.epoch {
            let why = format!("its epoch {epoch} is not before the directory's, {}", self.identity.epoch);
            return Err(self.corrupt(&entry.name, why));
        }
        let file = self.open_file(&entry.name).await?;
        let block = self.read(&file, &entry.name, 0, BLOCK_BYTES).await?;
        let header = self.check_header(&entry.name, epoch, number, &block)?;
        self.files.push_back(FoundFile { name: entry.name, epoch, number, bytes: entry.bytes, header });
        Ok(())
    }

    fn check_header(&self, name: &str, epoch: u64, number: u64, block: &[u8]) -> Result<Option<FileHeader>, OpenError> {
        let path = || self.identity.dir.join(name);
        let header = match FileHeader::decode(block) {
            Ok(header) => header,
            Err(NoHeader::Unreadable) => return Ok(None),
            Err(NoHeader::Version(found)) => {
                return Err(OpenError::Version { path: path(), found, known: FILE_VERSION });
            }
        };
        let own = [0, self.identity.cluster];
        if !own.contains(&header.cluster) && !self.identity.former.contains(&header.cluster) {
            let (found, expected) = (header.cluster, self.identity.cluster);
            return Err(OpenError::ForeignCluster { path: path(), found, expected });
        }
        if header.directory != self.identity.directory {
            return Err(self.corrupt(name, format!("it belongs to data directory {:032x}", header.directory)));
        }
        Ok(Some(header).filter(|header| header.epoch == epoch && header.number == number))
    }

    /// Drops the files that end below `from`: those with a later file that follows an LSN below it.
    fn skip_retired(&mut self) {
        let follows = |file: &FoundFile| file.header.filter(|header| header.follows < self.from);
        let Some(keep) = self.files.iter().rposition(|file| follows(file).is_some()) else { return };
        let mut last =
            self.files.get(keep).and_then(follows).map_or(Lsn(0), |header| Lsn(header.first.0.saturating_sub(1)));
        let skipped: Vec<FoundFile> = self.files.drain(..keep).collect();
        for FoundFile { name, bytes, header, .. } in skipped.into_iter().rev() {
            match header {
                Some(header) => {
                    self.scan.live.push(LiveFile { name, last, bytes, file_bytes: bytes });
                    last = Lsn(header.first.0.saturating_sub(1));
                }
                None => self.scan.unused.push((name, bytes)),
            }
        }
        self.scan.live.reverse();
    }

    /// The next record, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Recovered>, OpenError> {
        loop {
            if let Some(recovered) = self.ready.pop_front() {
                return Ok(Some(recovered));
            }
            if self.open.is_some() {
                self.read_round().await?;
            } else if let Some(found) = self.files.pop_front() {
                self.enter(found).await?;
            } else {
                return self.end().map(|()| None);
            }
        }
    }

    /// What was found. Call it after [`Self::next`] said `None`.
    pub fn finish(mut self) -> Scan {
        assert!(self.ended, "the journal was not read to its end");
        // A torn round's LSNs are never used again (RULES.md J3), and nobody knows how many it had.
        let jump = 1 << 20;
        let last = self.scan.last.0.max(self.from.0 - 1);
        let first_ever = last == 0 && self.scan.live.is_empty() && self.scan.unused.is_empty();
        self.scan.next = Lsn(if first_ever { 1 } else { last.saturating_add(1 + jump) });
        self.scan
    }

    fn end(&mut self) -> Result<(), OpenError> {
        self.ended = true;
        let (last, from) = (self.scan.last.0, self.from.0);
        if last < from - 1 {
            let path = self.identity.dir.clone();
            let why = format!("the journal ends at LSN {last}, but {} was durable", from - 1);
            return Err(OpenError::Corrupt { path, why });
        }
        Ok(())
    }

    async fn enter(&mut self, found: FoundFile) -> Result<(), OpenError> {
        self.check_length(&found)?;
        if let Some(header) = &found.header {
            self.check_chain(&found.name, 0, header.follows)?;
            if header.first <= self.scan.last {
                let why = format!("it begins with LSN {}, but {} came before", header.first.0, self.scan.last.0);
                return Err(self.corrupt(&found.name, why));
            }
            // Below `from`, files may be gone: what they held is not missed.
            self.scan.last = self.scan.last.max(header.follows);
        }
        let file = self.open_file(&found.name).await?;
        let seed = Seed::new(&self.identity, found.epoch, found.number);
        let (position, before, chunk) = (BLOCK_BYTES as u64, self.scan.last, (0, Bytes::new()));
        self.open = Some(OpenFile { found, file, seed, position, used: 0, before, chunk });
        Ok(())
    }

    /// A file is written out to its whole length before it gets its name, and never shortened: if it is shorter, rounds that
    /// were durable may have been cut off, and no torn write looks like that.
    fn check_length(&self, found: &FoundFile) -> Result<(), OpenError> {
        let whole = found.header.map_or(0, |header| header.file_bytes).max(BLOCK_BYTES as u64);
        if found.bytes < whole {
            let why = format!("it has {} bytes, and had at least {whole}: it was cut short", found.bytes);
            return Err(self.corrupt(&found.name, why));
        }
        Ok(())
    }

    /// Something that was written when everything up to `follows` was durable: has it all been read?
    fn check_chain(&self, name: &str, position: u64, follows: Lsn) -> Result<(), OpenError> {
        if follows <= self.scan.last || follows < self.from {
            return Ok(());
        }
        let missing = self.scan.last.0.max(self.from.0 - 1).saturating_add(1);
        let (until, follows) = (follows.0, follows.0);
        let why = format!(
            "LSN {missing} to {until} cannot be read, but what stands at position {position} follows {follows}"
        );
        Err(self.corrupt(name, why))
    }

    async fn read_round(&mut self) -> Result<(), OpenError> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let at = open.position;
        let header = match self.round_header(&mut open, at).await? {
            Some(header) => Some(header),
            None => self.look_further(&mut open, at).await?,
        };
        // No round here, and none behind it: this file is done.
        let Some(header) = header else { return self.leave(open) };
        self.check_chain(&open.found.name, open.position, header.follows)?;
        if open.found.header.is_none() && header.follows > open.before {
            return Err(self.corrupt(&open.found.name, "its header cannot be read, but was durable".to_owned()));
        }
        let round_bytes = header.round_bytes();
        let at = open.position;
        let whole = self.bytes_at(&mut open, at, round_bytes as usize).await?;
        let end = ROUND_HEADER_BYTES + header.body_bytes as usize;
        let records = match whole.len() >= end {
            true => decode_body(&header, whole.slice(ROUND_HEADER_BYTES..end), open.seed),
            false => Err(BadBody::Checksum),
        };
        match records {
            Ok(records) => self.accept(&mut open, &header, whole, records),
            Err(BadBody::Checksum) => {
                // Bad, unless nothing builds on it; the next turn looks. What a checkpoint has is not missed.
                let (file, position) = (&open.found.name, open.position);
                if header.last() >= self.from {
                    tracing::warn!(file, position, "a round that cannot be read: torn, if it is the journal's last");
                } else {
                    tracing::debug!(file, position, "a round below the checkpoint cannot be read");
                }
            }
            Err(BadBody::Unknown(why)) => return Err(self.corrupt(&open.found.name, why)),
        }
        open.position += round_bytes;
        self.open = Some(open);
        Ok(())
    }

    fn accept(&mut self, open: &mut OpenFile, header: &RoundHeader, whole: Bytes, records: Vec<Recovered>) {
        self.scan.last = header.last();
        open.used = open.position + header.round_bytes();
        let path = self.identity.dir.join(&open.found.name);
        let (position, mut parts) = (open.position, vec![whole]);
        let is_first = position == BLOCK_BYTES as u64;
        if is_first {
            // The header went out with it; if it cannot be read, this one says the same.
            let (first, follows) = (header.first, header.follows);
            let JournalIdentity { cluster, directory, .. } = self.identity;
            let FoundFile { epoch, number, bytes: file_bytes, header, .. } = open.found;
            let header = header.unwrap_or(FileHeader { cluster, directory, epoch, number, first, follows, file_bytes });
            parts.insert(0, header.encode());
        }
        self.scan.tail = Some(Tail { path, position: if is_first { 0 } else { position }, parts });
        self.ready.extend(records.into_iter().filter(|record| record.lsn >= self.from));
    }

    /// The header of the round at `position`, if one is there that comes after all that was read.
    async fn round_header(&self, open: &mut OpenFile, position: u64) -> Result<Option<RoundHeader>, OpenError> {
        let bytes = self.bytes_at(open, position, ROUND_HEADER_BYTES).await?;
        Ok(self.sound_header(open, position, &bytes))
    }

    /// Bytes of the open file, shorter only at its end; read in chunks.
    async fn bytes_at(&self, open: &mut OpenFile, position: u64, bytes: usize) -> Result<Bytes, OpenError> {
        let (start, chunk) = &open.chunk;
        if position < *start || position + bytes as u64 > start + chunk.len() as u64 {
            let chunk = self.read(&open.file, &open.found.name, position, bytes.max(CHUNK_BYTES)).await?;
            open.chunk = (position, chunk);
        }
        let (start, chunk) = &open.chunk;
        let from = (position - start) as usize;
        Ok(chunk.slice(from..chunk.len().min(from + bytes)))
    }

    fn sound_header(&self, open: &OpenFile, position: u64, bytes: &[u8]) -> Option<RoundHeader> {
        let header = RoundHeader::decode(bytes, open.seed, position)?;
        let fits = position + header.round_bytes() <= open.found.bytes;
        let in_order = header.first > self.scan.last && header.follows < header.first && header.records > 0;
        (fits && in_order && header.epoch == open.found.epoch).then_some(header)
    }

    /// Looks for a sound round header behind `from`, to the end of the file, and goes there.
    async fn look_further(&self, open: &mut OpenFile, from: u64) -> Result<Option<RoundHeader>, OpenError> {
        let mut position = from + BLOCK_BYTES as u64;
        while position < open.found.bytes {
            if let Some(header) = self.round_header(open, position).await? {
                open.position = position;
                return Ok(Some(header));
            }
            position += BLOCK_BYTES as u64;
        }
        Ok(None)
    }

    fn leave(&mut self, open: OpenFile) -> Result<(), OpenError> {
        let FoundFile { name, bytes, header, .. } = open.found;
        if open.used == 0 && header.is_none() {
            self.scan.unused.push((name, bytes));
            return Ok(());
        }
        let used = open.used.max(BLOCK_BYTES as u64);
        self.scan.live.push(LiveFile { name, last: self.scan.last, bytes: used, file_bytes: bytes });
        Ok(())
    }

    async fn open_file(&self, name: &str) -> Result<Arc<dyn DiskFile>, OpenError> {
        let path = self.identity.dir.join(name);
        self.disk.open(&path, OpenMode::Read).await.map_err(|error| OpenError::Io { path, error })
    }

    async fn read(
        &self,
        file: &Arc<dyn DiskFile>,
        name: &str,
        position: u64,
        bytes: usize,
    ) -> Result<Bytes, OpenError> {
        let path = || self.identity.dir.join(name);
        file.read_at(position, bytes).await.map_err(|error| OpenError::Io { path: path(), error })
    }

    fn corrupt(&self, name: &str, why: String) -> OpenError {
        OpenError::Corrupt { path: self.identity.dir.join(name), why }
    }
}
