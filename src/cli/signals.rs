//! SIGTERM and Ctrl-C: the first asks for a clean stop, the second ends the process at once.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::Failure;

/// Exit status after a second signal: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

/// Both signals.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they no longer end the process by themselves.
    pub(super) fn catch() -> Result<Self, Failure> {
        let catch = |kind| signal(kind).map_err(|error| Failure::Failed(format!("cannot catch signals: {error}")));
        Ok(Self { terminate: catch(SignalKind::terminate())?, interrupt: catch(SignalKind::interrupt())? })
    }

    /// The next one's name.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// From now on the next one ends the process at once.
    pub(super) fn impatient(mut self) {
        tokio::spawn(async move {
            let name = self.next().await;
            super::output::say(&format!("pontoon: {name} again: ending at once"));
            std::process::exit(INTERRUPTED);
        });
    }
}
