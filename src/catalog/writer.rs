//! Writes the catalog's rows to their tables, behind the applier's back.
//!
//! What gathers while a write runs goes in with the next, one batch for any number of commands; a row that changed twice
//! is written once, so no more can wait than there are rows. A failed write only means that the cache is given up.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pontoon_raft::vital::vital;
use tokio::sync::{Notify, watch};

use super::tables::{Batch, Stamp, Tables};

/// The way to the tables.
pub(super) struct Writer {
    tables: Arc<dyn Tables>,
    pending: Mutex<Pending>,
    wake: Notify,
    finished: watch::Sender<bool>,
}

#[derive(Default)]
struct Pending {
    batch: Option<Batch>,
    stopped: bool,
}

impl Writer {
    /// A writer with its task, which ends after [`Self::stop`].
    pub(super) fn start(tables: Arc<dyn Tables>) -> Arc<Self> {
        let finished = watch::Sender::new(false);
        let writer = Arc::new(Self { tables, pending: Mutex::default(), wake: Notify::new(), finished });
        let ended = writer.clone();
        let give_up = move |why: &str| {
            // The next start rebuilds the tables. Whoever waits for the end need not wait for ever.
            tracing::error!(why, "the catalog's tables are not written any more");
            ended.finished.send_replace(true);
        };
        tokio::spawn(vital("catalog's tables", give_up, run(writer.clone())));
        writer
    }

    /// Has these rows written. `replace`: in place of all that are there.
    pub(super) fn write(&self, replace: bool, rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>, stamp: Stamp) {
        let mut pending = self.pending.lock();
        if pending.stopped {
            return;
        }
        match &mut pending.batch {
            Some(batch) if !replace => {
                batch.rows.extend(rows);
                batch.stamp = stamp;
            }
            batch => *batch = Some(Batch { replace, rows, stamp }),
        }
        drop(pending);
        self.wake.notify_one();
    }

    /// Forgets what waits.
    pub(super) fn forget(&self) {
        self.pending.lock().batch = None;
    }

    /// Writes what waits, then ends.
    pub(super) fn stop(&self) {
        self.pending.lock().stopped = true;
        self.wake.notify_one();
    }

    /// [`Self::stop`], and waits for the end.
    pub(super) async fn finish(&self) {
        self.stop();
        let _ = self.finished.subscribe().wait_for(|finished| *finished).await;
    }
}

async fn run(writer: Arc<Writer>) {
    let mut given_up = false;
    loop {
        let (batch, stopped) = {
            let mut pending = writer.pending.lock();
            (pending.batch.take(), pending.stopped)
        };
        match batch {
            Some(_) if given_up => {}
            Some(batch) => {
                if let Err(error) = write(&writer.tables, batch).await {
                    tracing::warn!(%error, "the catalog's tables are given up; the next start rebuilds them");
                    given_up = true;
                }
            }
            None if stopped => break,
            None => writer.wake.notified().await,
        }
    }
    writer.finished.send_replace(true);
}

async fn write(tables: &Arc<dyn Tables>, batch: Batch) -> std::io::Result<()> {
    let blocks = tables.blocks();
    let tables = tables.clone();
    let work = move || {
        // Rows without their newest changes would not agree with the next stamp: better none.
        tables.write(batch).or_else(|error| tables.clear().and(Err(error)))
    };
    match blocks {
        false => work(),
        true => tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error))),
    }
}
