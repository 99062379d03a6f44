//! What is said on a connection when hyper itself refuses a request, and how a connection ends after a refusal.
//!
//! A request line that is none, or a head that is too large, never becomes a request: hyper answers it with a bare status
//! and closes. Here, on the way to the socket, that bare answer is exchanged for one with the error body that every other
//! refusal has. It is told apart by being written while no request of ours is being answered ([`Busy`]).
//!
//! And a connection that is closed while its client is still sending would be reset, answer and all. So after a refusal what
//! comes is read and thrown away for a moment.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::api::ErrorBody;
use crate::error::{Code, Error};
use crate::http::metrics::Refusals;

/// Longest that a client which was refused may go on sending.
const LINGER: Duration = Duration::from_secs(2);
/// Most bytes of it that are read.
const LINGER_BYTES: usize = 32 << 20;
/// What is read and thrown away at a time.
const SCRATCH_BYTES: usize = 16 << 10;

/// Whether a connection's current request is being answered: from the call of the service to the end of the body.
#[derive(Clone, Default)]
pub(super) struct Busy(Arc<AtomicBool>);

impl Busy {
    /// A request has come.
    pub(super) fn begin(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// The answer's body, which says when it has ended.
    pub(super) fn until_sent(&self, body: Body) -> Answer {
        Answer { body, busy: self.clone() }
    }

    fn is(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The body of an answer. hyper drops it once it has taken all of it.
pub(super) struct Answer {
    body: Body,
    busy: Busy,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.busy.0.store(false, Ordering::Release);
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection.
pub(super) struct Wire<S> {
    stream: S,
    busy: Busy,
    /// Largest head that hyper takes, for the message.
    header_bytes_max: usize,
    refusals: Refusals,
    /// Everything written so far is flushed: the next write begins something.
    flushed: bool,
    instead: Option<Instead>,
    /// The last answer was a refusal.
    refused: bool,
    linger: Option<Linger>,
}

/// An answer that goes out in place of another.
struct Instead {
    bytes: Bytes,
    /// Length of what it stands for.
    of: usize,
}

struct Linger {
    over: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S, busy: Busy, header_bytes_max: usize, refusals: Refusals) -> Self {
        Self { stream, busy, header_bytes_max, refusals, flushed: true, instead: None, refused: false, linger: None }
    }

    /// Looks at what is about to be written, if it begins an answer.
    fn look(&mut self, bytes: &[u8]) {
        if !std::mem::replace(&mut self.flushed, false) {
            return;
        }
        let Some(status) = status(bytes) else { return };
        self.refused = status >= 400;
        if self.refused && !self.busy.is() && is_bare(bytes) {
            self.instead =
                Some(Instead { bytes: answer(status, self.header_bytes_max, &self.refusals), of: bytes.len() });
        }
    }
}

/// The status of the answer that these bytes begin.
fn status(bytes: &[u8]) -> Option<u16> {
    let rest = bytes.strip_prefix(b"HTTP/1.")?;
    std::str::from_utf8(rest.get(2..5)?).ok()?.parse().ok()
}

/// A head without a body, and nothing else.
fn is_bare(bytes: &[u8]) -> bool {
    let empty = b"\r\ncontent-length: 0\r\n";
    bytes.ends_with(b"\r\n\r\n") && bytes.windows(empty.len()).any(|window| window == empty)
}

/// What hyper's bare status means, as every other refusal is told.
fn answer(status: u16, header_bytes_max: usize, refusals: &Refusals) -> Bytes {
    let error = match status {
        431 => Error::new(
            Code::HeadersTooLarge,
            format!("the request's head has more than {header_bytes_max} bytes or too many headers"),
        ),
        414 => Error::new(Code::HeadersTooLarge, "the request's path and query are too long"),
        _ => Error::new(Code::InvalidRequest, "the request's first line or one of its headers is not HTTP/1.1"),
    };
    refusals.count(error.code);
    closing_answer(&error)
}

/// A whole answer to something that is no request, after which the connection is closed.
pub(super) fn closing_answer(error: &Error) -> Bytes {
    let status = error.code.status();
    let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("");
    let body = serde_json::to_string(&ErrorBody::from(error)).unwrap_or_default();
    let retry = error.retry_after_ms.map(|ms| format!("retry-after: {}\r\n", ms.div_ceil(1000).max(1)));
    format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{}connection: close\r\n\r\n{body}",
        body.len(),
        retry.unwrap_or_default()
    )
    .into()
}

impl<S: AsyncWrite + Unpin> Wire<S> {
    /// Sends the answer that stands for another, if there is one; then says how much of the other that was.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        let Some(instead) = &mut self.instead else { return Poll::Ready(Ok(None)) };
        while !instead.bytes.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, &instead.bytes))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            drop(instead.bytes.split_to(sent));
        }
        let of = instead.of;
        self.instead = None;
        Poll::Ready(Ok(Some(of)))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Reads on until the client has stopped, or has had its moment.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let linger = self
            .linger
            .get_or_insert_with(|| Linger { over: Box::pin(tokio::time::sleep(LINGER)), bytes_left: LINGER_BYTES });
        let mut scratch = [0; SCRATCH_BYTES];
        while linger.bytes_left > 0 && linger.over.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    linger.bytes_left = linger.bytes_left.saturating_sub(buffer.filled().len());
                }
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.look(buf);
        match ready!(this.poll_instead(cx))? {
            Some(of) => Poll::Ready(Ok(of)),
            None => Pin::new(&mut this.stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.look(bufs.first().map_or(&[][..], |first| first));
        match ready!(this.poll_instead(cx))? {
            Some(of) => Poll::Ready(Ok(of)),
            None => Pin::new(&mut this.stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.flushed |= matches!(flushed, Poll::Ready(Ok(())));
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        if this.refused {
            ready!(this.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const BARE: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

    /// What arrives when these are written, flushed one by one.
    async fn sent(busy: &Busy, pieces: &[&[u8]]) -> String {
        let (near, mut far) = tokio::io::duplex(7);
        let mut wire = Wire::new(near, busy.clone(), 8192, Refusals::default());
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let writing = tokio::spawn(async move {
            for piece in pieces {
                wire.write_all(&piece).await.unwrap();
                wire.flush().await.unwrap();
            }
        });
        let mut all = String::new();
        far.read_to_string(&mut all).await.unwrap();
        writing.await.unwrap();
        all
    }

    #[tokio::test]
    async fn a_bare_refusal_gets_the_error_body() {
        let all = sent(&Busy::default(), &[BARE]).await;
        assert!(all.starts_with("HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"), "{all}");
        assert!(all.ends_with('}') && all.contains("\"error\":\"INVALID_REQUEST\""), "{all}");
        let large = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n\r\n";
        let all = sent(&Busy::default(), &[b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", large]).await;
        assert!(all.starts_with("HTTP/1.1 200 OK\r\n") && all.contains("HEADERS_TOO_LARGE"), "{all}");
        assert!(all.contains("8192"), "{all}");
    }

    #[tokio::test]
    async fn what_is_ours_goes_out_as_it_is_whatever_it_looks_like() {
        let busy = Busy::default();
        busy.begin();
        assert_eq!(sent(&busy, &[BARE]).await.as_bytes(), BARE, "a record may look like an answer");
        let body = busy.until_sent(Body::from("x"));
        assert!(busy.is());
        drop(body);
        assert!(!busy.is());
        let not_found = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(sent(&busy, &[not_found]).await.as_bytes(), not_found);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_client_may_finish_sending_for_a_moment() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut wire = Wire::new(near, Busy::default(), 8192, Refusals::default());
        let ending = tokio::spawn(async move {
            wire.write_all(b"HTTP/1.1 413 X\r\n\r\n").await.unwrap();
            wire.flush().await.unwrap();
            wire.shutdown().await.unwrap();
        });
        far.write_all(&[7; 1000]).await.unwrap();
        let mut answer = Vec::new();
        far.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 413"));
        // It goes on for ever: that is its own affair after a while.
        ending.await.unwrap();
    }
}
