//! A directory is opened: recovered, taken in, made durable by a checkpoint, and cleaned up.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::space::Measured;
use super::{Registry, Replica, Store, StoreOptions};
use crate::checkpointer::Checkpointer;
use crate::config::RaftConfig;
use crate::data_dir::DataDir;
use crate::disk::{Disk, create_dir_durably};
use crate::error::OpenError;
use crate::healed::Healed;
use crate::instruments::{JournalInstruments, LogInstruments};
use crate::journal::{Journal, JournalConfig, UnwrittenBytes};
use crate::log::tail::TailBudget;
use crate::log::{Log, LogContext};
use crate::recovery::{self, Found, RecoveredReplica, Recovery, Unwritten};
use crate::scrub::Scrubbed;
use crate::segment_writer::{Job, SegmentWriter, Write};
use crate::stop::StopSignal;

impl Store {
    pub(super) async fn open_with(options: StoreOptions) -> Result<Arc<Store>, OpenError> {
        let StoreOptions { disk, path, broker, config, applications } = options;
        let data_dir = DataDir::open(disk.clone(), &path, broker).await?;
        let groups = recovery::groups_dir(&path);
        create_dir_durably(&*disk, &groups).await.map_err(|error| OpenError::Io { path: groups, error })?;
        let identity = data_dir.journal();
        let budget = TailBudget::new(config.tail_cache_bytes_total);
        let recovery = Recovery {
            disk: &disk,
            root: &path,
            directory: data_dir.identity().directory,
            identity: &identity,
            config: &config,
            applications: &applications,
            budget: &budget,
            held: Arc::default(),
        };
        let began = Instant::now();
        let Found { scan, replicas, corrupt, gives_up, dead_folders, quarantined_folders, unknown_folders } =
            recovery.run().await?;
        let (recovered_ms, journal_bytes) = (began.elapsed().as_millis() as u64, scan.live_bytes());
        for path in &unknown_folders {
            tracing::warn!(path = %path.display(), "nothing on record explains this folder; it is left alone");
        }
        for path in &quarantined_folders {
            tracing::warn!(path = %path.display(), "kept for a person: what is left of a rotten or lost replica");
        }
        // The log bounds what it has outstanding before the journal sees it.
        let unwritten = Arc::new(UnwrittenBytes::new(usize::MAX));
        let journal = Journal::start(disk.clone(), identity, scan, JournalConfig::from(&config), unwritten).await?;
        journal.observe(JournalInstruments::new(broker));
        let context = context(disk, config, Arc::new(journal), budget, LogInstruments::new(broker));
        let checkpointer = Checkpointer::new(&path, data_dir.identity().directory, context.clone());
        let store = Arc::new(Self {
            data_dir,
            context,
            applications,
            registry: Arc::new(Registry::default()),
            checkpointer,
            deleted: Mutex::default(),
            quarantined: Mutex::new(quarantined_folders),
            scrubbed: Scrubbed::default(),
            unknown_folders,
            measured: Measured::default(),
            checkpointed: Mutex::new(Instant::now()),
            tasks: Mutex::new(Vec::new()),
        });
        store.measure().await.map_err(|error| OpenError::Io { path: path.clone(), error })?;
        store.start_writer();
        *store.registry.corrupt.lock() =
            corrupt.into_iter().map(|(replica, state)| ((replica.group, replica.replica), (replica, state))).collect();
        store.adopt(replicas, dead_folders, gives_up).await.map_err(|error| OpenError::Io { path, error })?;
        store.start_tasks();
        let (replicas, corrupt) = (store.registry.open.lock().len(), store.registry.corrupt.lock().len());
        let elapsed_ms = began.elapsed().as_millis() as u64;
        tracing::info!(%broker, replicas, corrupt, journal_bytes, recovered_ms, elapsed_ms, "recovered");
        Ok(store)
    }

    /// Takes the recovered replicas in, makes all of them durable by a checkpoint, and cleans up what that made needless. If the
    /// disk has no room for the checkpoint, that waits for the next start, which begins where this one did.
    ///
    /// Not if this start gives replicas up: the next one looks at folders into which this one has saved what the journal holds, may find
    /// that they will do, and vote with what peers have been told is lost. Until it is on record, nobody is told: the start is refused.
    async fn adopt(
        &self,
        replicas: Vec<RecoveredReplica>,
        dead_folders: Vec<PathBuf>,
        gives_up: bool,
    ) -> io::Result<()> {
        let mut cleanup = Vec::new();
        for RecoveredReplica { key, dir, application, state, unwritten, rotten, needless, leftovers, cuts } in replicas
        {
            let log = Log::new(self.context.clone(), key, dir, application.clone(), state);
            for (append, Unwritten { file, position, frames }) in (1..).zip(unwritten) {
                // All of them together fit.
                let _permit = self.context.writer.reserve(frames.len()).await?;
                let parts = if frames.is_empty() { Vec::new() } else { vec![frames] };
                let write = Write { log: log.clone(), file, position, parts, append, _permit };
                self.context.writer.push(Job::Write(write));
            }
            for (segment, why) in rotten {
                log.note_rot(segment, 0, &why);
            }
            for (path, why) in needless {
                self.context.healed.note(
                    &path,
                    &why,
                    "what it told stands elsewhere, too, and it is made anew where it is needed",
                );
            }
            log.restore_applied().await;
            let replica = Replica { group: key.0, replica: key.1, log, application };
            self.registry.open.lock().insert(key, replica);
            cleanup.push((leftovers, cuts));
        }
        for path in dead_folders {
            // Their deletion is on record; and they may be the room that the checkpoint needs.
            self.remove_aside(&path, None).await?;
        }
        match self.try_checkpoint().await {
            Ok(()) => {}
            Err(failed) if gives_up => return Err(failed.into()),
            // And with it the cleaning up.
            Err(failed) => return failed.put_off().map_err(io::Error::other),
        }
        for (leftovers, cuts) in cleanup {
            for (file, bytes) in cuts {
                file.set_len(bytes).await?;
                file.sync().await?;
            }
            for path in leftovers {
                match self.context.disk.remove_file(&path).await {
                    // A temporary file that the checkpoint has replaced.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }
}

fn context(
    disk: Arc<dyn Disk>,
    config: RaftConfig,
    journal: Arc<Journal>,
    budget: Arc<TailBudget>,
    instruments: LogInstruments,
) -> Arc<LogContext> {
    let stop = StopSignal::new(journal.clone());
    let writer = SegmentWriter::new(disk.clone(), config.unwritten_bytes_max, stop.clone());
    Arc::new(LogContext {
        disk,
        config,
        journal,
        writer,
        budget,
        stop,
        instruments,
        journalled_bytes: AtomicU64::new(0),
        checkpointed_bytes: AtomicU64::new(0),
        checkpoint_due: Notify::new(),
        rot_found: Notify::new(),
        healed: Healed::default(),
        accepted_bytes: AtomicU64::new(0),
    })
}
