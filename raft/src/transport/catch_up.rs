//! How fast replicas that fell behind are brought up again: all of them together at no more than a configured rate, so that
//! production goes on; and never so slowly that they would not arrive.
//!
//! Only what lies well behind the log's end counts; the newest entries go at once, to slow followers too. Nor does what production adds
//! meanwhile: a replica that were level would be sent that, too. So whatever is produced, a stream gains by its turns, and arrives; and
//! a broker sends no more than production and the rate. Streams that catch up take turns, one request each. The limit gives way while
//! commits wait: then the replica may be the one whose acknowledgement is missing.
//!
//! It knows bytes and indexes, and neither logs nor connections.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// While a stream waits for its turn, how often it looks whether commits wait.
const COMMITS_POLL: Duration = Duration::from_millis(50);

/// What a stream must know of the log that it replicates.
pub trait Backlog: Send + Sync + 'static {
    /// About how many bytes stand behind the entry at `index`.
    fn bytes_behind(&self, index: u64) -> u64;

    /// Whether entries have been waiting to be committed for longer than a round takes.
    fn commits_wait(&self) -> bool;
}

/// The rate that all streams of a broker share.
pub(crate) struct Pace {
    bytes_per_second: u64,
    next: Mutex<Instant>,
}

impl Pace {
    /// 0: no limit.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, next: Mutex::new(Instant::now()) }
    }

    /// Takes the next turn for so many bytes.
    fn turn(self: &Arc<Self>, bytes: u64) -> Turn {
        let now = Instant::now();
        let mut next = self.next.lock();
        let at = now.max(*next);
        let takes = bytes.saturating_mul(1_000_000).checked_div(self.bytes_per_second).unwrap_or(0);
        let takes = Duration::from_micros(takes);
        *next = at + takes;
        Turn { pace: self.clone(), at, takes }
    }
}

/// A stream's turn. Who goes before it comes, or goes away, gives it back: what did not wait must not be waited for afterwards.
struct Turn {
    pace: Arc<Pace>,
    at: Instant,
    takes: Duration,
}

impl Turn {
    /// Resolves when it comes, or commits wait.
    async fn come(self, backlog: Arc<dyn Backlog>) {
        while Instant::now() < self.at && !backlog.commits_wait() {
            sleep_until(self.at.min(Instant::now() + COMMITS_POLL)).await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let now = Instant::now();
        if now < self.at {
            let mut next = self.pace.next.lock();
            *next = next.checked_sub(self.takes).unwrap_or(now).max(now);
        }
    }
}

/// One replication stream's part.
pub(crate) struct CatchUp {
    pace: Arc<Pace>,
    backlog: Arc<dyn Backlog>,
    /// Fewer bytes behind than this are not a matter of catching up.
    live_bytes: u64,
    /// How many bytes it was behind when it was looked at last; `None` if it was not far behind.
    behind: Option<u64>,
    /// Bytes that production has added since it fell behind, and it has not sent for nothing yet. About: behind is.
    added: i64,
}

impl CatchUp {
    pub(crate) fn new(pace: Arc<Pace>, backlog: Arc<dyn Backlog>, live_bytes: u64) -> Self {
        Self { pace, backlog, live_bytes, behind: None, added: 0 }
    }

    /// Admits the request behind the entry `last`, up to which everything was sent; `bytes` had the one before it, and are what this one
    /// is likely to have. `None`: it may go at once. Otherwise the future resolves when it may; it may be dropped.
    pub(crate) fn admit(&mut self, last: u64, bytes: u64) -> Option<impl Future<Output = ()> + Send + use<>> {
        if self.pace.bytes_per_second == 0 {
            return None;
        }
        let behind = self.backlog.bytes_behind(last);
        if behind <= self.live_bytes {
            (self.behind, self.added) = (None, 0);
            return None;
        }
        if let Some(before) = self.behind.replace(behind) {
            let added = (behind + bytes) as i64 - before as i64;
            // What it seems to lack it may owe, but not for long: a log's beginning may be deleted.
            self.added = (self.added + added).max(-(self.live_bytes as i64));
        }
        let free = self.added.clamp(0, bytes as i64);
        self.added -= free;
        let charged = bytes - free as u64;
        (charged > 0).then(|| self.pace.turn(charged).come(self.backlog.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::*;

    /// A log of which one index is one byte.
    #[derive(Default)]
    struct Line {
        end: AtomicU64,
        commits_wait: AtomicBool,
    }

    impl Backlog for Line {
        fn bytes_behind(&self, index: u64) -> u64 {
            self.end.load(Ordering::Relaxed).saturating_sub(index)
        }

        fn commits_wait(&self) -> bool {
            self.commits_wait.load(Ordering::Relaxed)
        }
    }

    const REQUEST: u64 = 1000;
    const LIVE: u64 = 5 * REQUEST;

    /// Sends until it is not behind any more, while production goes on. Returns how long it took, `None` after a day; and the most bytes
    /// that it sent within a second.
    async fn sends(pace: &Arc<Pace>, line: &Arc<Line>, produced_per_second: u64) -> (Option<Duration>, u64) {
        let mut stream = CatchUp::new(pace.clone(), line.clone(), LIVE);
        let (begun, from, mut at) = (Instant::now(), line.end.load(Ordering::Relaxed), 0);
        let (mut second, mut sent, mut most) = (0, 0, 0);
        while begun.elapsed() < Duration::from_secs(86_400) {
            at += REQUEST;
            let turn = stream.admit(at, REQUEST);
            if line.bytes_behind(at) <= LIVE {
                return (Some(begun.elapsed()), most);
            }
            if let Some(turn) = turn {
                turn.await;
            }
            if begun.elapsed().as_secs() > second {
                (second, sent) = (begun.elapsed().as_secs(), 0);
            }
            sent += REQUEST;
            most = most.max(sent);
            let produced = begun.elapsed().as_millis() as u64 * produced_per_second / 1000;
            line.end.fetch_max(from + produced, Ordering::Relaxed);
        }
        (None, most)
    }

    async fn arrives(pace: &Arc<Pace>, line: &Arc<Line>, produced_per_second: u64) -> Option<Duration> {
        sends(pace, line, produced_per_second).await.0
    }

    fn behind(bytes: u64) -> Arc<Line> {
        Arc::new(Line { end: AtomicU64::new(bytes), ..Line::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn all_streams_together_keep_to_the_rate() {
        let pace = Arc::new(Pace::new(100 * REQUEST));
        let lines = [behind(1000 * REQUEST), behind(1000 * REQUEST), behind(1000 * REQUEST)];
        let begun = Instant::now();
        let took = futures_util::future::join_all(lines.iter().map(|line| arrives(&pace, line, 0))).await;
        // 3000 requests, but for the last few of each, at 100 a second; in turn, so that all arrive together.
        let all = begun.elapsed().as_millis();
        assert!((29_000..31_000).contains(&all), "{all} ms");
        assert!(took.iter().all(|took| took.unwrap().as_millis() > 29_000), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_near_the_end_never_waits() {
        let pace = Arc::new(Pace::new(1));
        let mut stream = CatchUp::new(pace, behind(5 * REQUEST), 5 * REQUEST);
        for at in 0..100 {
            assert!(stream.admit(at, REQUEST).is_none());
        }
        let unlimited = Arc::new(Pace::new(0));
        assert!(CatchUp::new(unlimited, behind(u64::MAX), 0).admit(0, REQUEST).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_production_outruns_arrives_all_the_same() {
        let pace = Arc::new(Pace::new(10 * REQUEST));
        // Production at a hundred times the rate.
        let line = behind(10_000 * REQUEST);
        let took = arrives(&pace, &line, 1000 * REQUEST).await.expect("it was starved");
        assert!((900..1100).contains(&took.as_secs()), "{took:?}");
        // Another one keeps to the rate meanwhile.
        let other = behind(100 * REQUEST);
        assert!(arrives(&pace, &other, 0).await.unwrap() > Duration::from_secs(9));
    }

    /// While another one has turns, and once that has arrived.
    #[tokio::test(start_paused = true)]
    async fn nobody_sends_more_than_production_and_the_rate() {
        const RATE: u64 = 10 * REQUEST;
        for produced in [0, RATE / 2, RATE, 10 * RATE] {
            let pace = Arc::new(Pace::new(RATE));
            let (line, other) = (behind(1000 * REQUEST), behind(300 * REQUEST));
            let ((took, most), other) = tokio::join!(sends(&pace, &line, produced), arrives(&pace, &other, 0));
            let (took, other) = (took.unwrap().as_secs(), other.unwrap().as_secs());
            // 1300 requests in all, in turn; what a turn of the one that is produced costs is less.
            assert!((30..65).contains(&other) && (120..140).contains(&took), "{produced}: {other} s, {took} s");
            assert!(most <= produced + RATE + 2 * REQUEST, "{produced} were produced, and {most} sent, in a second");
        }
    }

    /// The first half of the log is deleted while its replica catches up.
    #[tokio::test(start_paused = true)]
    async fn what_is_deleted_meanwhile_is_not_owed_for_long() {
        let line = behind(100_000 * REQUEST);
        let mut stream = CatchUp::new(Arc::new(Pace::new(REQUEST)), line.clone(), LIVE);
        drop(stream.admit(0, REQUEST));
        line.end.store(50_000 * REQUEST, Ordering::Relaxed);
        drop(stream.admit(REQUEST, REQUEST));
        // What is produced then goes for nothing, as before.
        line.end.store(50_020 * REQUEST, Ordering::Relaxed);
        for at in 2..10 {
            assert!(stream.admit(at * REQUEST, REQUEST).is_none(), "{at}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_held_back_while_commits_wait() {
        let pace = Arc::new(Pace::new(1));
        let line = behind(1000 * REQUEST);
        line.commits_wait.store(true, Ordering::Relaxed);
        assert_eq!(arrives(&pace, &line, 0).await, Some(Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn what_went_without_waiting_is_not_waited_for_afterwards() {
        let pace = Arc::new(Pace::new(10 * REQUEST));
        let hurried = behind(1000 * REQUEST);
        hurried.commits_wait.store(true, Ordering::Relaxed);
        assert_eq!(arrives(&pace, &hurried, 0).await, Some(Duration::ZERO));
        drop(CatchUp::new(pace.clone(), behind(1000 * REQUEST), 0).admit(0, 900 * REQUEST));
        let calm = behind(100 * REQUEST);
        let took = arrives(&pace, &calm, 0).await.unwrap();
        assert!(took < Duration::from_secs(12), "{took:?}");
    }
}
