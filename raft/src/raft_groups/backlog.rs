//! What the transport must know of a log to pace replicas that catch up with it: the log itself knows no network.

use crate::log::Log;
use crate::transport::catch_up::Backlog;

impl Backlog for Log {
    fn bytes_behind(&self, index: u64) -> u64 {
        self.bytes_behind(index)
    }

    fn commits_wait(&self) -> bool {
        self.commits_wait()
    }
}
