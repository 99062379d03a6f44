//! What is kept for a person: folders of replicas that were rotten or lost, and were replaced. Nothing here removes them. Those that a
//! person has removed are forgotten.

use std::io;
use std::path::PathBuf;

use super::Store;

/// Most folders that are looked at in one go.
const LOOKED_AT_MAX: usize = 100;

impl Store {
    /// Folders of replicas that were rotten or lost, and are gone from here: kept until a person removes them (RULES.md R7). One that was
    /// removed a moment ago may be among them.
    pub fn quarantined(&self) -> Vec<PathBuf> {
        self.quarantined.lock().clone()
    }

    /// Looks whether the kept folders are still there, [`LOOKED_AT_MAX`] from the given one on. Returns where to go on the next time.
    pub(super) async fn forget_removed(&self, from: usize) -> usize {
        let kept = self.quarantined();
        let from = if from < kept.len() { from } else { 0 };
        let mut removed = Vec::new();
        for path in kept.iter().skip(from).take(LOOKED_AT_MAX) {
            let listed = self.context.disk.read_dir(path).await;
            if listed.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                removed.push(path);
            }
        }
        for path in &removed {
            tracing::info!(path = %path.display(), "what was kept of a replica has been removed");
        }
        self.quarantined.lock().retain(|path| !removed.contains(&path));
        from + LOOKED_AT_MAX - removed.len()
    }
}
