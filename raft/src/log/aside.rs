//! What a log saves into its folder before that is set aside for a person: the journal forgets the replica next, and with it whatever
//! stands nowhere else. A recovery that gives a replica up does the same ([`crate::recovery`]).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::Log;
use crate::segment_writer::FlushFailed;

/// How long that is waited for: a disk that does not answer must not keep the replica from going.
const SAVE_WAIT: Duration = Duration::from_secs(10);

impl Log {
    /// Writes what stands only in the journal where it belongs, and makes all of the folder durable, as far as the disk lets; what is
    /// missing there is told in the log. For a replica that nobody appends to any more, before its folder is moved.
    ///
    /// A sync that fails stops the directory (RULES.md J15): then the journal still has everything, and the folder should stay.
    pub(crate) async fn save_for_keeping(self: &Arc<Self>) {
        let log = self.clone();
        // By a task of its own: a sync that is not waited for any longer may fail yet, and that must be heard.
        let saving = tokio::spawn(async move { log.save().await });
        let saved = match timeout(SAVE_WAIT, saving).await {
            Ok(saved) => saved.unwrap_or_else(|panic| Err(io::Error::other(panic))),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the disk takes too long")),
        };
        if let Err(error) = saved {
            let unwritten_from = {
                let state = self.state.lock();
                state.tail.first_unwritten(state.appends_written)
            };
            let (group, replica) = (self.group, self.replica);
            tracing::warn!(%group, %replica, ?unwritten_from, %error, "not all of a replica that is set aside is kept");
        }
    }

    /// Goes on after what was only refused, and returns that in the end.
    async fn save(&self) -> io::Result<()> {
        if self.context.disk.read_dir(&self.dir).await.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            // Lost with all that was in it; nothing there can be synced, and that is no failed sync.
            return Ok(());
        }
        let mut saved = self.context.writer.flush().await.map_err(|failed| match failed {
            FlushFailed::Stopped(stopped) => stopped.into(),
            FlushFailed::Refused => io::ErrorKind::StorageFull.into(),
        });
        let (files, bases) = {
            let state = self.state.lock();
            let files: Vec<_> = state.segments.iter().map(|segment| segment.file.clone()).collect();
            let bases: Vec<_> = state.segments.iter().map(|segment| (segment.name(), segment.base.clone())).collect();
            (files, bases)
        };
        for file in &files {
            let synced = file.sync().await;
            saved = saved.and(synced.inspect_err(|error| self.context.stop_unless_refused(file.path(), error)));
        }
        for (name, base) in bases {
            self.context.stop.check()?;
            saved = saved.and(self.persist_base(name, base).await);
        }
        saved.and(self.sync_entries(&files).await)
    }
}
