//! The background scrub (RULES.md J13): reads every file of the data directory that something rests on, slowly, so that rot is found
//! while the other replicas, or memory, still have what it took.
//!
//! It finds; others mend. A rotten segment is noted in its log, and [`crate::repair`] fetches what is missing. A rotten index, base or
//! boundary snapshot is made anew from the segments. What is rotten in the checkpoint or the journal is still in memory: a new checkpoint is taken, and
//! makes it needless; a journal file that was cut short and is still needed gets its length back behind it. Whatever is left is a finding, for a person.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::checkpoint::CHECKPOINT_FILE;
use crate::disk::{OpenMode, is_rot};
use crate::inspect::{FileKind, inspect_slowly};
use crate::journal::Lsn;
use crate::log::Log;
use crate::log::segment;
use crate::store::Store;

/// What the scrub has done and found.
#[derive(Default)]
pub(crate) struct Scrubbed {
    rounds: AtomicU64,
    findings: Mutex<BTreeMap<PathBuf, String>>,
}

impl Scrubbed {
    /// Whole rounds so far.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Files that are rotten and could not be mended, and what is wrong with them. Segments are not among them.
    pub(crate) fn findings(&self) -> Vec<(PathBuf, String)> {
        self.findings.lock().iter().map(|(path, why)| (path.clone(), why.clone())).collect()
    }

    fn note(&self, path: &Path, wrong: Option<String>) {
        let Some(why) = wrong else {
            self.findings.lock().remove(path);
            return;
        };
        let new = self.findings.lock().insert(path.to_owned(), why.clone()).is_none_or(|before| before != why);
        if new {
            tracing::error!(path = %path.display(), why, "rotten file");
        }
    }

    /// What a whole round has not come across is no part of the directory any more.
    fn forget_others(&self, looked: &Looked) {
        self.findings.lock().retain(|path, _| looked.contains(path));
    }
}

/// Files that a round has looked at.
type Looked = BTreeSet<PathBuf>;

/// Goes round, until the directory stops. It reads no faster than the configuration says; 0 turns it off.
pub(crate) async fn run(store: Weak<Store>) {
    let Some(context) = store.upgrade().map(|store| store.context()) else { return };
    let (pause, rate) = (context.config.scrub_interval, context.config.scrub_bytes_per_second);
    if rate == 0 {
        return;
    }
    loop {
        let round = async {
            tokio::time::sleep(pause).await;
            round(&store, rate).await;
        };
        tokio::select! {
            biased;
            _ = context.stop.stopped() => return,
            () = round => {}
        }
        let Some(store) = store.upgrade() else { return };
        store.scrubbed().rounds.fetch_add(1, Ordering::Relaxed);
        context.instruments.scrub_rounds.increment(1);
    }
}

/// One round. The store is held only for a moment at a time: one that is dropped must let go of its lock.
async fn round(store: &Weak<Store>, rate: u64) {
    let Some(logs) = store.upgrade().map(|store| store.logs()) else { return };
    let mut looked = Looked::new();
    for log in logs {
        // What is rotten it has noted.
        let _ = log.verify_slowly(rate).await;
        for path in log.side_files() {
            let wrong = check(&log.context().disk, &path, rate, None).await;
            let wrong = match wrong {
                Some(why) => mend(&log, &path, &why).await.err().map(|error| format!("{why}; {error}")),
                None => None,
            };
            let Some(store) = store.upgrade() else { return };
            store.scrubbed().note(&path, wrong);
            looked.insert(path);
        }
    }
    let Some((disk, files)) = store.upgrade().map(|store| (store.context().disk.clone(), shared_files(&store))) else {
        return;
    };
    for path in files.into_keys() {
        // Looked up again: most of it may have been written since this round began.
        let Some(until) = store.upgrade().map(|store| shared_files(&store).remove(&path)) else { return };
        let Some(until) = until else { continue };
        let mut wrong = check(&disk, &path, rate, until).await;
        let Some(store) = store.upgrade() else { return };
        if wrong.is_some() && !shared_files(&store).contains_key(&path) {
            // The writer has taken it for something else meanwhile.
            continue;
        }
        let short = cut_short(&store, &path).await;
        if (wrong.is_some() || short.is_some()) && store.checkpoint_anew().await {
            // Taken from memory: what it replaces, or makes needless, does not matter any more.
            if let Some(short) = short {
                lengthen(&store, &path, short).await;
            }
            let still = match shared_files(&store).remove(&path) {
                Some(until) => check(&disk, &path, 0, until).await,
                None => None,
            };
            if let (Some(why), None) = (&wrong, &still) {
                store.context().healed.note(&path, why, "a new checkpoint was taken from memory instead");
            }
            wrong = still;
        }
        store.scrubbed().note(&path, wrong);
        looked.insert(path);
    }
    let Some(store) = store.upgrade() else { return };
    store.scrubbed().forget_others(&looked);
}

/// How short a file was found that was made longer.
#[derive(Clone, Copy, Debug)]
struct CutShort {
    bytes: u64,
    whole: u64,
}

/// Whether this is a journal file that has been cut short: nothing of ours does that, the writer does not notice, and where nothing stands yet,
/// or nothing ever came to stand, nobody else does before the next start.
async fn cut_short(store: &Store, path: &Path) -> Option<CutShort> {
    let whole = store.context().journal.file_bytes(path.file_name()?.to_str()?)?;
    let file = store.context().disk.open(path, OpenMode::Read).await.ok()?;
    let bytes = file.len().await.ok()?;
    (bytes < whole).then_some(CutShort { bytes, whole })
}

/// Gives such a file its length back, for a recovery refuses a shorter one. What was cut off must stand in a checkpoint by now; and with that
/// a file that the writer was done with is mostly gone. If it has become shorter still, that is the next round's: only what was found before
/// that checkpoint is in it for certain.
async fn lengthen(store: &Store, path: &Path, short: CutShort) {
    let CutShort { bytes: found, whole } = short;
    let lengthened = async {
        let file = store.context().disk.open(path, OpenMode::ReadWrite).await?;
        if file.len().await? < found {
            return Ok(false);
        }
        // The writer writes nothing behind it, so that this can only make it longer.
        file.set_len(whole).await?;
        file.datasync().await.map(|()| true)
    };
    let how = match lengthened.await {
        Ok(true) => "a checkpoint was taken from memory, and it has its length again",
        Ok(false) => return,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            "a checkpoint was taken from memory, and it is not needed any more"
        }
        Err(error) => {
            let path = path.display();
            return tracing::error!(%path, found, whole, %error, "the journal was cut short under the broker");
        }
    };
    let why = format!("the journal was cut short under the broker: {found} of {whole} bytes");
    store.context().healed.note(path, &why, how);
}

/// What is wrong with a file, if something is. One that is gone was replaced meanwhile.
async fn check(disk: &Arc<dyn crate::disk::Disk>, path: &Path, rate: u64, until: Option<Lsn>) -> Option<String> {
    let mut pass = |_: crate::inspect::Item| Ok(());
    let report = match inspect_slowly(&**disk, path, rate, until, &mut pass).await {
        Ok(report) => report,
        Err(error) if error.kind() != std::io::ErrorKind::NotFound && is_rot(&error) => return Some(error.to_string()),
        // Gone, or it cannot be read just now.
        Err(_) => return None,
    };
    let problem = report.problems.first().filter(|_| report.kind != FileKind::Segment)?;
    Some(format!("at {}: {}", problem.position, problem.why))
}

/// Makes a file that lies beside a segment anew.
async fn mend(log: &Arc<Log>, path: &Path, why: &str) -> Result<(), String> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mended = match segment::parse(name) {
        Some((segment, "index")) => log.rewrite_index(segment).await,
        Some((segment, "base")) => log.rewrite_base(segment).await,
        _ => match log.rewrite_snapshot(name).await {
            Ok(false) => return Err("it is made anew when it is needed, or replaced by the next".to_owned()),
            rewritten => rewritten.map(drop),
        },
    };
    mended.map_err(|error| error.to_string())?;
    log.context().healed.note(path, why, "made anew from its segments");
    Ok(())
}

/// What all replicas rest on: the identity, the checkpoint, the journal. With a journal file that is written to, how far it is to be
/// judged. One that is only prepared holds nothing, or what it held when it was last used.
fn shared_files(store: &Store) -> BTreeMap<PathBuf, Option<Lsn>> {
    let root = store.path();
    let journal = store.context().journal.durable_files();
    let journal = journal.into_iter().map(|(name, until)| (root.join("journal").join(name), until));
    [(root.join("identity"), None), (root.join(CHECKPOINT_FILE), None)].into_iter().chain(journal).collect()
}
