//! The journal's writer: takes what has gathered, writes it as one round, syncs once, tells everyone.
//!
//! One round is in flight (RULES.md J4); while it is, bypasses go on (J6). Any error of any write or sync ends the journal for good
//! (J15): everything that waits, and everything that comes later, is told `Stopped`, and nothing is ever tried again.
//! The writer owns no thread and knows no file names; [`super::files`] does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::files::{Current, LiveFile, OpenFile, Prepared, RETRY};
use super::format::{BLOCK_BYTES, FileHeader, RecordBody, RoundEncoder, Seed, round_bytes};
use super::queue::Entry;
use super::{Done, JournalIdentity, Lsn, Op, Shared, UnwrittenBytes};
use crate::disk::is_refused;
use crate::error::Stopped;
use crate::types::{GroupId, ReplicaId};

/// What a clean end is called.
pub(super) const CLOSED: &str = "closed";
const DROPPED: &str = "dropped without being closed";

/// The writer's state.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) identity: JournalIdentity,
    pub(super) unwritten: Arc<UnwrittenBytes>,
    pub(super) seal_idle: Duration,
    pub(super) current: Current,
    pub(super) ready: mpsc::Receiver<Prepared>,
    /// The next record's.
    pub(super) next: Lsn,
    /// The last durable record's.
    pub(super) durable: Lsn,
    pub(super) bypasses: Bypasses,
    /// Whether the last thing written is a Seal.
    pub(super) sealed: bool,
}

/// Appends under way to their segments.
#[derive(Default)]
pub(super) struct Bypasses {
    running: FuturesUnordered<BoxFuture<'static, (GroupId, io::Result<Direct>)>>,
    /// Also of those that were given up: they are told with the journal's end.
    entries: BTreeMap<GroupId, Vec<Entry>>,
}

/// What became of appends that were to be written to their segment.
enum Direct {
    /// They are durable there. Each one's CRC-32C.
    Written(Vec<u32>),
    /// They are not wanted any more.
    Unwanted,
    /// There was no room, and the journal is closing.
    GivenUp,
}

/// A round on its way to the disk.
struct Flight {
    io: BoxFuture<'static, io::Result<()>>,
    dones: Vec<(Lsn, Done)>,
    last: Lsn,
    bytes: u64,
    since: Instant,
}

enum Wake {
    /// Something may have come.
    Work,
    /// Nothing has, for a while.
    Idle,
    /// Everything is written, and nothing will come.
    Closed,
}

impl Writer {
    /// Runs until the journal is dropped.
    pub(super) async fn run(mut self) {
        let gone = Gone(self.shared.clone());
        let Err(stopped) = self.serve().await;
        self.shared.stop(&stopped.0);
        let stopped = self.shared.stop_reason().unwrap_or(stopped);
        if &*stopped.0 != CLOSED {
            tracing::error!(dir = %self.identity.dir.display(), why = %stopped.0, "the journal has stopped");
        }
        self.fail_waiting(&stopped);
        // Submitters may hold locks that their `Done` wants, so that only this task ever calls one.
        while !self.shared.is_dropped() {
            self.shared.work.notified().await;
            self.fail_waiting(&stopped);
        }
        self.fail_waiting(&stopped);
        drop(gone);
    }

    fn fail_waiting(&mut self, stopped: &Stopped) {
        let bypassing = std::mem::take(&mut self.bypasses.entries).into_values().flatten().map(|entry| entry.done);
        let waiting = self.shared.queue.lock().take_all();
        for done in bypassing.chain(waiting) {
            done(Err(stopped.clone()));
        }
    }

    async fn serve(&mut self) -> Result<Infallible, Stopped> {
        loop {
            self.check()?;
            self.start_bypasses();
            self.refuse();
            let limits = &self.shared.limits;
            let round = self.shared.queue.lock().take_round(limits, self.unwritten.is_full());
            if !round.is_empty() {
                let mut flight = self.begin(round, false).await?;
                let result = self.drive(&mut flight.io).await;
                self.finish(flight, result)?;
                continue;
            }
            match self.wait().await {
                Wake::Work => {}
                Wake::Idle => self.seal().await?,
                Wake::Closed => {
                    if self.wants_seal() {
                        self.seal().await?;
                    }
                    return Err(Stopped(CLOSED.into()));
                }
            }
        }
    }

    fn check(&self) -> Result<(), Stopped> {
        match self.shared.stop_reason() {
            Some(stopped) => Err(stopped),
            None if self.shared.is_dropped() => Err(Stopped(DROPPED.into())),
            None => Ok(()),
        }
    }

    fn wants_seal(&self) -> bool {
        !self.sealed || self.shared.queue.lock().has_commits()
    }

    /// Tells those who submitted after the close, and those whose replica is being deleted. No round is in flight.
    fn refuse(&self) {
        let (refused, dropped) = {
            let mut queue = self.shared.queue.lock();
            (queue.take_refused(), queue.take_dropped())
        };
        for done in refused {
            done(Err(Stopped(CLOSED.into())));
        }
        for done in dropped {
            done(Err(Stopped("the replica is being deleted".into())));
        }
    }

    async fn wait(&mut self) -> Wake {
        let quiet = {
            let queue = self.shared.queue.lock();
            // What is left behind appends that were given up will not be written either.
            let given_up = self.bypasses.running.is_empty() && !self.bypasses.entries.is_empty();
            if queue.is_closed() && (queue.is_quiet() || given_up && !self.unwritten.is_full()) {
                return Wake::Closed;
            }
            queue.is_quiet()
        };
        let may_seal = quiet && self.wants_seal();
        tokio::select! {
            biased;
            Some(done) = self.bypasses.running.next() => self.bypassed(done),
            () = self.shared.work.notified() => {}
            () = self.unwritten.room() => {}
            () = tokio::time::sleep(self.seal_idle), if may_seal => return Wake::Idle,
        }
        Wake::Work
    }

    fn start_bypasses(&mut self) {
        loop {
            let Some((group, entries)) = self.shared.queue.lock().take_bypass() else { return };
            self.bypasses.running.push(write_directly(self.shared.clone(), group, &entries));
            self.bypasses.entries.insert(group, entries);
        }
    }

    fn bypassed(&mut self, (group, result): (GroupId, io::Result<Direct>)) {
        let crcs = match result {
            Ok(Direct::Written(crcs)) => crcs,
            Ok(Direct::Unwanted) => {
                let entries = self.bypasses.entries.remove(&group).unwrap_or_default();
                return self.shared.queue.lock().drop_bypassed(&self.shared.limits, group, entries);
            }
            // Its group goes no further: behind a hole nothing of it may be on record.
            Ok(Direct::GivenUp) => return,
            // What waits for it is told with everything else.
            Err(error) => return self.shared.stop(&format!("direct write of group {group}: {error}")),
        };
        let mut entries = self.bypasses.entries.remove(&group).unwrap_or_default();
        let mut bytes = 0;
        for (entry, crc) in entries.iter_mut().zip(crcs) {
            if let RecordBody::Op(Op::Append { extent, first, last, .. }) = entry.body {
                bytes += extent.bytes;
                entry.body = RecordBody::Bypass { extent, crc, first, last };
            }
        }
        if let Some(instruments) = self.shared.instruments.get() {
            instruments.bypasses.increment(1);
            instruments.bypass_bytes.increment(bytes);
        }
        self.shared.queue.lock().bypassed(&self.shared.limits, group, entries);
    }

    /// Writes a Seal. What comes meanwhile does not wait for it: the next round goes out beside it and says (by `follows`) that
    /// the Seal was not durable yet, so that a reader does not miss it. Both are told only when both are durable: an error of
    /// either sync may be about the other's bytes.
    async fn seal(&mut self) -> Result<(), Stopped> {
        let commits = self.shared.queue.lock().take_commits(&self.shared.limits);
        let mut seal = self.begin(commits, true).await?;
        let round = loop {
            tokio::select! {
                biased;
                result = &mut seal.io => return self.finish(seal, result),
                Some(done) = self.bypasses.running.next() => self.bypassed(done),
                () = self.shared.work.notified() => {}
            }
            self.start_bypasses();
            let round = self.shared.queue.lock().take_round(&self.shared.limits, self.unwritten.is_full());
            if !round.is_empty() {
                break round;
            }
        };
        let mut next = match self.begin(round, false).await {
            Ok(next) => next,
            Err(stopped) => {
                tell(seal.dones, &Err(stopped.clone()));
                return Err(stopped);
            }
        };
        let both = async { futures_util::future::try_join(&mut seal.io, &mut next.io).await.map(|_| ()) };
        let result = self.drive(&mut Box::pin(both)).await;
        let copy = result.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string())).copied();
        let sealed = self.finish(seal, copy);
        self.finish(next, result).and(sealed)
    }

    /// Waits for the disk; meanwhile, bypasses go on.
    async fn drive(&mut self, io: &mut (impl Future<Output = io::Result<()>> + Unpin)) -> io::Result<()> {
        loop {
            self.start_bypasses();
            tokio::select! {
                biased;
                result = &mut *io => return result,
                Some(done) = self.bypasses.running.next() => self.bypassed(done),
                () = self.shared.work.notified() => {}
            }
        }
    }

    /// Gives the operations their LSNs and their place, and makes the write, to be driven by the caller.
    async fn begin(&mut self, taken: Vec<(GroupId, Entry)>, seal: bool) -> Result<Flight, Stopped> {
        let since = Instant::now();
        *self.shared.round_since.lock() = Some(since);
        let body_bytes: usize = taken.iter().map(|(_, entry)| entry.body.record_bytes()).sum();
        let bytes = round_bytes(body_bytes + if seal { RecordBody::Seal.record_bytes() } else { 0 });
        // Once, unless a file that was made small for a smaller round comes first.
        while !self.current.fits(bytes, seal) {
            if let Err(stopped) = self.roll(Current::least_bytes(bytes)).await {
                tell(taken.into_iter().map(|(_, entry)| (Lsn(0), entry.done)), &Err(stopped.clone()));
                return Err(stopped);
            }
        }
        let mut parts = Vec::new();
        let write_position = self.current.position;
        if write_position == 0 {
            parts.push(self.header().encode());
            self.current.position = BLOCK_BYTES as u64;
        }
        let Prepared { file, number, .. } = &self.current.prepared;
        let seed = Seed::new(&self.identity, self.identity.epoch, *number);
        let mut round = RoundEncoder::new(seed, self.identity.epoch, self.current.position, self.next, self.durable);
        let mut dones = Vec::with_capacity(taken.len());
        for (group, entry) in taken {
            dones.push((round.push(group, entry.replica, entry.body), entry.done));
        }
        let mut last = dones.last().map_or(Lsn(0), |(lsn, _)| *lsn);
        if seal {
            last = round.push(GroupId(0), ReplicaId(0), RecordBody::Seal);
        }
        parts.extend(round.finish());
        self.current.position += bytes;
        self.shared.live_bytes_here.store(self.current.position, Ordering::Release);
        self.next = Lsn(last.0 + 1);
        self.shared.last.store(last.0, Ordering::Release);
        self.sealed = seal;
        let (file, shared) = (file.clone(), self.shared.clone());
        let io = Box::pin(async move {
            let began = Instant::now();
            let result = file.write_and_sync(write_position, parts).await;
            if let Some(instruments) = shared.instruments.get() {
                instruments.sync_seconds.record(began.elapsed().as_secs_f64());
            }
            result
        });
        Ok(Flight { io, dones, last, bytes, since })
    }

    fn header(&self) -> FileHeader {
        FileHeader {
            cluster: self.identity.cluster,
            directory: self.identity.directory,
            epoch: self.identity.epoch,
            number: self.current.prepared.number,
            first: self.next,
            follows: self.durable,
            file_bytes: self.current.prepared.bytes,
        }
    }

    /// Goes on in the next file, which is ready unless the disk is full or the keeper is behind. `bytes`: what is wanted of its length.
    async fn roll(&mut self, bytes: u64) -> Result<(), Stopped> {
        self.shared.wanted_bytes.store(bytes, Ordering::Release);
        let prepared = tokio::select! {
            biased;
            stopped = self.shared.until_stopped() => return Err(stopped),
            prepared = self.ready.recv() => prepared,
        };
        self.shared.wanted_bytes.store(0, Ordering::Release);
        let Some(prepared) = prepared else { return Err(Stopped(DROPPED.into())) };
        let old = std::mem::replace(&mut self.current, Current::new(prepared));
        let mut live = self.shared.live.lock();
        *self.shared.here.lock() = OpenFile {
            name: self.current.prepared.name.clone(),
            first: self.next,
            file_bytes: self.current.prepared.bytes,
            bare: true,
        };
        live.push(LiveFile {
            name: old.prepared.name,
            last: Lsn(self.next.0 - 1),
            bytes: old.position,
            file_bytes: old.prepared.bytes,
        });
        Ok(())
    }

    /// Tells everyone in a round how it ended. Its error is the journal's end.
    fn finish(&mut self, flight: Flight, result: io::Result<()>) -> Result<(), Stopped> {
        *self.shared.round_since.lock() = None;
        let file = &self.current.prepared.name;
        let stopped = match result {
            Err(error) => Some(Stopped(format!("{}: {error}", self.identity.dir.join(file).display()).into())),
            Ok(()) => self.shared.stop_reason(),
        };
        if let Some(stopped) = stopped {
            // Refuse everyone before anyone is told: `is_stopped` is true in every `Done`.
            self.shared.stop(&stopped.0);
            tell(flight.dones, &Err(stopped.clone()));
            return Err(stopped);
        }
        self.durable = flight.last;
        self.shared.bytes_written.fetch_add(flight.bytes, Ordering::AcqRel);
        if let Some(instruments) = self.shared.instruments.get() {
            instruments.rounds.increment(1);
            instruments.records.increment(flight.dones.len() as u64);
            instruments.bytes.increment(flight.bytes);
            instruments.round_seconds.record(flight.since.elapsed().as_secs_f64());
        }
        tell(flight.dones, &Ok(()));
        self.shared.durable.store(flight.last.0, Ordering::Release);
        Ok(())
    }
}

fn tell(dones: impl IntoIterator<Item = (Lsn, Done)>, result: &Result<(), Stopped>) {
    for (lsn, done) in dones {
        done(result.clone().map(|()| lsn));
    }
}

/// Writes a run of appends, which stand one behind the other, with the first one's target. Nothing of it is acknowledged yet, so a full
/// disk can be waited for: but not by a replica whose deletion makes the room, nor by the journal's end.
fn write_directly(
    shared: Arc<Shared>,
    group: GroupId,
    entries: &[Entry],
) -> BoxFuture<'static, (GroupId, io::Result<Direct>)> {
    let mut all: Vec<Bytes> = Vec::new();
    let mut crcs = Vec::with_capacity(entries.len());
    let mut first = None;
    for entry in entries {
        let RecordBody::Op(Op::Append { extent, parts, target, .. }) = &entry.body else { continue };
        first.get_or_insert_with(|| (extent.position, target.clone()));
        crcs.push(parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part)));
        all.extend(parts.iter().cloned());
    }
    Box::pin(async move {
        let Some((position, target)) = first else { return (group, Ok(Direct::Written(crcs))) };
        let result = loop {
            match target.write_durably(position, all.clone()).await {
                Ok(()) => break Ok(Direct::Written(crcs)),
                Err(error) if target.is_unwanted(&error) => break Ok(Direct::Unwanted),
                Err(error) if !is_refused(&error) => break Err(error),
                Err(_) if shared.queue.lock().is_closed() => break Ok(Direct::GivenUp),
                Err(error) => {
                    shared.refusals.note(&error);
                    tracing::warn!(%group, %error, "a large append waits");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        (group, result)
    })
}

/// Whatever ends the task, a panic in a `Done` or the runtime's end, ends the journal.
struct Gone(Arc<Shared>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.stop("the journal's writer has ended");
        // Dropped unheard: there is no task left to call them from. Outside the lock, as they may hold anything.
        let unheard = self.0.queue.lock().take_all();
        drop(unheard);
    }
}
