//! An answer onto a socket, and the room that it holds until the client has taken it.

use std::io;

use bytes::{Buf, Bytes};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use super::Door;
use super::budget::PATIENCE;
use super::connection::{End, Shares};
use super::dispatch::Answer;
use super::frames::RATE_MIN;

/// An answer that is being written.
pub(super) struct Writing {
    pieces: Pieces,
    permit: Option<OwnedSemaphorePermit>,
    /// What it holds besides, to its end.
    shares: Option<Shares>,
    /// When the client last took some of it.
    stuck_since: Instant,
    /// When it was last looked how much it reads, and what was left then.
    looked: (Instant, usize),
}

impl Writing {
    /// From its first byte on.
    pub(super) fn new(answer: Answer) -> Self {
        let (pieces, now) = (Pieces::new(answer.pieces), Instant::now());
        Self {
            looked: (now, pieces.remaining()),
            pieces,
            permit: answer.permit,
            shares: answer.shares,
            stuck_since: now,
        }
    }

    /// Writes what is left of it, and gives its share of the budget back as it goes. A client that does not read for long enough loses the
    /// connection, and with it what it holds; much sooner one that reads little while others wait for room that this answer takes, or what
    /// stands behind it on the connection, if that `holds` any.
    ///
    /// May be dropped at any time: called again it goes on where it was.
    pub(super) async fn finish(&mut self, output: &mut OwnedWriteHalf, door: &Door, holds: bool) -> Result<(), End> {
        while self.pieces.has_remaining() {
            let patience = PATIENCE.min(door.limits.write_timeout);
            match timeout(patience, output.write_buf(&mut self.pieces)).await {
                Ok(written) => {
                    written.map_err(End::Io)?;
                    self.stuck_since = Instant::now();
                }
                Err(_) if self.stuck_since.elapsed() >= door.limits.write_timeout => {
                    return Err(End::Io(io::ErrorKind::TimedOut.into()));
                }
                Err(_) => {}
            }
            self.make_room(door, holds)?;
        }
        Ok(())
    }

    /// Gives back what is not held any more. `Err`: it should be more, for others wait for it.
    fn make_room(&mut self, door: &Door, holds: bool) -> Result<(), End> {
        if let Some(permit) = &mut self.permit {
            drop(permit.split(permit.num_permits().saturating_sub(self.pieces.held())));
        }
        let left = self.pieces.remaining();
        let (elapsed, read) = (self.looked.0.elapsed(), self.looked.1 - left);
        if elapsed >= PATIENCE {
            let slow = (read as f64) < RATE_MIN as f64 * elapsed.as_secs_f64();
            let of_answers = self.permit.is_some() && door.answer_bytes.short();
            let of_requests = || door.frames.short() || door.decoded_bytes.short();
            if slow && left > 0 && (of_answers || (holds || self.shares.is_some()) && of_requests()) {
                return Err(End::Stalled(format!("{left} bytes of an answer, {read} read in {elapsed:?}")));
            }
            self.looked = (Instant::now(), left);
        }
        Ok(())
    }
}

/// Pieces of an answer, written without putting them together.
struct Pieces {
    pieces: Vec<Bytes>,
    at: usize,
    remaining: usize,
    /// Bytes of the piece at hand that are written: its memory is held to its end.
    begun: usize,
}

impl Pieces {
    fn new(pieces: Vec<Bytes>) -> Self {
        let remaining = pieces.iter().map(Bytes::len).sum();
        Self { pieces, at: 0, remaining, begun: 0 }
    }

    /// Bytes of memory that are still held.
    fn held(&self) -> usize {
        self.remaining + self.begun
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.pieces[self.at..].iter().find(|piece| !piece.is_empty()).map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [io::IoSlice<'a>]) -> usize {
        let pieces = self.pieces[self.at..].iter().filter(|piece| !piece.is_empty());
        out.iter_mut().zip(pieces).map(|(slot, piece)| *slot = io::IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "advanced past the end");
        self.remaining -= count;
        while count > 0 {
            let piece = &mut self.pieces[self.at];
            let step = count.min(piece.len());
            piece.advance(step);
            count -= step;
            self.begun += step;
            if piece.is_empty() {
                // With the memory that it shares.
                *piece = Bytes::new();
                self.at += 1;
                self.begun = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_one_run_of_bytes() {
        let pieces = || Pieces::new([&b"ab"[..], b"", b"cde", b"f"].map(Bytes::from_static).to_vec());
        for step in 1..=6 {
            let (mut pieces, mut out) = (pieces(), Vec::new());
            while pieces.has_remaining() {
                let take = step.min(pieces.chunk().len());
                out.extend_from_slice(&pieces.chunk()[..take]);
                pieces.advance(take);
            }
            assert_eq!(out, b"abcdef");
        }
        let mut whole = pieces();
        let mut slots = [io::IoSlice::new(&[]); 8];
        assert_eq!(whole.chunks_vectored(&mut slots), 3);
        whole.advance(4);
        assert_eq!((whole.remaining(), whole.held()), (2, 4), "the piece that is being written is held as a whole");
        whole.advance(2);
        assert_eq!((whole.remaining(), whole.held(), whole.chunk()), (0, 0, &b""[..]));
    }
}
