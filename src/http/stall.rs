//! A socket whose reader may not stall for ever: a client that does not read its answer loses the connection, and with it
//! the memory the answer holds. While others find no room for their answers that comes much sooner.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::http::budget::Budget;

/// How long a write may make no progress while others find no room.
const PATIENCE: Duration = Duration::from_secs(1);

/// A stream with a limit on how long a write may make no progress.
pub(super) struct Stall<S> {
    stream: S,
    limit: Duration,
    /// Where answers have their room.
    budgets: [Arc<Budget>; 2],
    waiting: Option<Waiting>,
}

/// A write that makes no progress.
struct Waiting {
    since: Instant,
    /// When it is looked at again.
    look: Pin<Box<Sleep>>,
}

impl<S> Stall<S> {
    pub(super) fn new(stream: S, limit: Duration, budgets: [Arc<Budget>; 2]) -> Self {
        Self { stream, limit, budgets, waiting: None }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.waiting = None;
            return result;
        }
        let first = PATIENCE.min(self.limit);
        let waiting = self
            .waiting
            .get_or_insert_with(|| Waiting { since: Instant::now(), look: Box::pin(tokio::time::sleep(first)) });
        while waiting.look.as_mut().poll(cx).is_ready() {
            let stuck = waiting.since.elapsed();
            let needed = stuck >= PATIENCE && self.budgets.iter().any(|budget| budget.short());
            if stuck >= self.limit || needed {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let next = Instant::now() + PATIENCE.min(self.limit - stuck);
            waiting.look.as_mut().reset(next);
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stall<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stall<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn budgets() -> [Arc<Budget>; 2] {
        [Budget::new(10), Budget::new(10)]
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_makes_way_for_others() {
        let budgets = budgets();
        let (near, _far) = tokio::io::duplex(8);
        let mut stuck = Stall::new(near, Duration::from_secs(3600), budgets.clone());
        let writing = tokio::spawn(async move { stuck.write_all(&[0; 64]).await });
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(!writing.is_finished(), "nobody needs the room");
        budgets[1].reserve(11).unwrap_err();
        assert_eq!(writing.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stalls_loses_the_connection() {
        let (near, _far) = tokio::io::duplex(8);
        let error = Stall::new(near, Duration::from_secs(5), budgets()).write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_that_goes_on_does_not() {
        let (near, mut far) = tokio::io::duplex(8);
        let writing = tokio::spawn(async move {
            let mut near = Stall::new(near, Duration::from_secs(5), budgets());
            near.write_all(&[7; 64]).await
        });
        let mut read = 0;
        while read < 64 {
            tokio::time::sleep(Duration::from_secs(4)).await;
            read += far.read(&mut [0; 8]).await.unwrap();
        }
        writing.await.unwrap().unwrap();
    }
}
