//! What is known to be rotten in a log (RULES.md R7): which segments, since what, and who waits for them to be mended.
//!
//! Whoever reads and finds bytes that are not what was written notes it here; [`crate::repair`] is woken, fetches what is missing
//! from a peer and says so. Nothing here reads or writes a file, and nothing rotten is ever served meanwhile: readers wait, up to a
//! limit, or are refused.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::Log;
use crate::error::ReadError;
use crate::journal::SegmentName;

/// How long a reader waits for a segment to be mended. What is in a peer's page cache comes in milliseconds; a peer that starts needs
/// seconds.
pub(crate) const MEND_WAIT: Duration = Duration::from_secs(60);

/// A segment that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rot {
    /// The segment.
    pub segment: SegmentName,
    /// Its file.
    pub file: PathBuf,
    /// Where the first bad place was found.
    pub position: u64,
    /// What was found.
    pub why: String,
    /// Why it could not be mended so far; `None` while it was not tried.
    pub outlook: Option<String>,
    /// Nobody is left who might have what is missing: clients that read it are refused at once.
    pub hopeless: bool,
}

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// A client: told at once where there is no hope.
    Client,
    /// The group itself, which ends when it is refused. It waits: for leadership to be handed over, for a peer to come back.
    Group,
}

/// The rot in one log.
pub(super) struct Damage {
    rotten: watch::Sender<BTreeMap<SegmentName, Rot>>,
    /// How many of the group's own readers wait for a segment.
    stuck: Mutex<BTreeMap<SegmentName, usize>>,
    /// Readers do not wait: the group is not open, or closing.
    released: watch::Sender<bool>,
}

impl Default for Damage {
    fn default() -> Self {
        Self { rotten: watch::Sender::default(), stuck: Mutex::default(), released: watch::Sender::new(true) }
    }
}

/// One of the group's own readers waits.
struct Stuck<'a>(&'a Damage, SegmentName);

impl<'a> Stuck<'a> {
    fn new(damage: &'a Damage, segment: SegmentName) -> Self {
        *damage.stuck.lock().entry(segment).or_default() += 1;
        Self(damage, segment)
    }
}

impl Drop for Stuck<'_> {
    fn drop(&mut self) {
        let mut stuck = self.0.stuck.lock();
        if let Some(count) = stuck.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                stuck.remove(&self.1);
            }
        }
    }
}

impl Log {
    /// Segments that are known to be rotten and not mended yet. Reads of the rotten places wait or fail, nothing else does.
    pub fn rot(&self) -> Vec<Rot> {
        self.damage.rotten.borrow().values().cloned().collect()
    }

    /// Whether anything is known to be rotten. Such a replica votes but must not lead, if another can (RULES.md R7).
    pub fn is_rotten(&self) -> bool {
        !self.damage.rotten.borrow().is_empty()
    }

    /// Readers wait for rot to be mended from now on.
    pub(crate) fn hold_readers(&self) {
        self.damage.released.send_replace(false);
    }

    /// Readers of rot are refused from now on, also those that wait: the group is closing.
    pub(crate) fn release_readers(&self) {
        self.damage.released.send_replace(true);
    }

    /// Notes what a reader found, and wakes the repair.
    pub(crate) fn note_rot(&self, segment: SegmentName, position: u64, why: &str) {
        let file = super::segment::path(&self.dir, segment, "segment");
        let new = self.damage.rotten.send_if_modified(|rotten| {
            let new = !rotten.contains_key(&segment);
            if new {
                let (file, why) = (file.clone(), why.to_owned());
                rotten.insert(segment, Rot { segment, file, position, why, outlook: None, hopeless: false });
            }
            new
        });
        if new {
            let (group, replica) = (self.group, self.replica);
            tracing::error!(%group, %replica, file = %file.display(), position, why, "rotten segment");
            self.context.instruments.rot_found.increment(1);
            self.context.rot_found.notify_one();
        }
    }

    /// What an attempt to mend it has come to, for those who look, and whether another may come to more.
    pub(crate) fn note_outlook(&self, segment: SegmentName, outlook: &str, hopeless: bool) {
        self.damage.rotten.send_if_modified(|rotten| {
            let Some(rot) = rotten.get_mut(&segment) else { return false };
            let outlook = Some(outlook.to_owned());
            let new = (&rot.outlook, rot.hopeless) != (&outlook, hopeless);
            (rot.outlook, rot.hopeless) = (outlook, hopeless);
            new
        });
    }

    /// The segment is whole again, or no longer part of the log.
    pub(crate) fn note_mended(&self, segment: SegmentName) {
        self.damage.rotten.send_if_modified(|rotten| rotten.remove(&segment).is_some());
    }

    /// Whether a segment holds records that may still be read: the log does not start behind it.
    pub(crate) fn holds_records(&self, segment: SegmentName) -> bool {
        let state = self.state.lock();
        let found = state.segments.iter().find(|known| known.name() == segment);
        found.is_some_and(|found| found.next_offset > state.log_start_offset)
    }

    /// Whether the group itself cannot go on before this segment is mended.
    pub(crate) fn is_stuck_at(&self, segment: SegmentName) -> bool {
        self.damage.stuck.lock().contains_key(&segment)
    }

    /// Waits until a segment is mended. False: it was not in time, or this reader is not to wait for it, or nobody may any more.
    pub(super) async fn mended(&self, segment: SegmentName, reader: Reader, limit: Duration) -> bool {
        let hopeless = |rot: &Rot| rot.hopeless && reader == Reader::Client;
        let _stuck = (reader == Reader::Group).then(|| Stuck::new(&self.damage, segment));
        let (mut rotten, mut released) = (self.damage.rotten.subscribe(), self.damage.released.subscribe());
        tokio::select! {
            biased;
            judged = rotten.wait_for(|rotten| rotten.get(&segment).is_none_or(hopeless)) => {
                judged.is_ok_and(|rotten| !rotten.contains_key(&segment))
            }
            _ = released.wait_for(|released| *released) => false,
            _ = self.context.stop.stopped() => false,
            () = tokio::time::sleep(limit) => false,
        }
    }

    /// If a read failed because of rot in this segment: notes it. What the disk cannot give counts as rot, and so does a file that is
    /// not there.
    pub(super) fn judge_read(&self, segment: SegmentName, error: ReadError) -> ReadError {
        const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
        let (position, why) = match &error {
            ReadError::Corrupt { position, why, .. } => (*position, why.clone()),
            ReadError::Io(io) if io.kind() == std::io::ErrorKind::NotFound || io.raw_os_error() == Some(EIO) => {
                (0, io.to_string())
            }
            _ => return error,
        };
        let known = {
            let state = self.state.lock();
            !state.closed && state.segments.iter().any(|known| known.name() == segment)
        };
        if known {
            self.note_rot(segment, position, &why);
        }
        let file = super::segment::path(&self.dir, segment, "segment");
        ReadError::Corrupt { file, position, why }
    }
}
