//! Answers that tell of what a broker has gathered for others, as JSON. A short request may be answered with megabytes, and who asks need
//! not read them: as fetches do, such answers hold a share of the room for answers until they are sent. Little needs none.

use std::io;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use crate::error::Code;
use crate::http::budget::Budget;
use crate::http::fetch::{JSON, chunks};
use crate::http::refusal::Refusal;
use crate::partition::aside::{AT_ONCE_BYTES, aside};

/// So little holds no room.
pub(super) const SMALL_BYTES: usize = 64 << 10;

/// A share of the room for answers; `None`: there is too little to tell for one.
pub(super) type Share = Option<OwnedSemaphorePermit>;

/// Room for so many bytes. Who would need more than there can ever be takes all of it.
pub(super) fn room_for(room: &Budget, bytes: usize) -> Result<Share, Refusal> {
    if bytes <= SMALL_BYTES { Ok(None) } else { room.reserve(bytes.min(room.bytes())).map(Some) }
}

/// Both.
pub(super) fn joined(one: Share, other: Share) -> Share {
    match (one, other) {
        (Some(mut one), Some(other)) => {
            one.merge(other);
            Some(one)
        }
        (one, other) => one.or(other),
    }
}

/// Writes down what `make` brings, aside if it is made of many bytes, once there is room for the text too. `share`: of what it is made of,
/// which is given back.
pub(super) async fn answer<T: Serialize>(
    room: &Budget,
    (bytes, share): (usize, Share),
    make: impl FnOnce() -> T,
) -> Result<Response, Refusal> {
    let write = || write(room, &make(), bytes, share);
    let (text, share) = if bytes > AT_ONCE_BYTES { aside(write).await } else { write() }?;
    let headers =
        [(header::CONTENT_TYPE.as_str(), JSON.to_owned()), (header::CONTENT_LENGTH.as_str(), text.len().to_string())];
    Ok(match share {
        Some(share) => (headers, chunks(vec![text], share)).into_response(),
        None => (headers, text).into_response(),
    })
}

/// Its length is looked at first: a character may become six, and a buffer that grows be twice as large as what is in it.
fn write(room: &Budget, told: &impl Serialize, bytes: usize, share: Share) -> Result<(Bytes, Share), Refusal> {
    let unwritable = |error: serde_json::Error| Refusal::from((Code::Internal, format!("the answer: {error}")));
    let mut length = Length(0);
    serde_json::to_writer(&mut length, told).map_err(unwritable)?;
    let all = bytes.saturating_add(length.0).min(room.bytes());
    let more = all.saturating_sub(share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
    let share = if length.0 <= SMALL_BYTES { None } else { joined(share, Some(room.reserve(more)?)) };
    let mut text = Vec::with_capacity(length.0);
    serde_json::to_writer(&mut text, told).map_err(unwritable)?;
    Ok((text.into(), share))
}

/// Counts what is written.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn much_holds_room_until_it_is_sent_and_little_holds_none() {
        let room = Budget::new(1 << 20);
        for (characters, escaped, held) in [(1000, 6002, 0), (100_000, 600_002, 600_002)] {
            let text = "\u{1}".repeat(characters);
            let share = room_for(&room, text.len()).unwrap();
            let sent = answer(&room, (text.len(), share), move || text).await.unwrap();
            assert_eq!(sent.headers()[header::CONTENT_LENGTH], escaped.to_string());
            assert_eq!(room.held(), held);
            let text = axum::body::to_bytes(sent.into_body(), 1 << 20).await.unwrap();
            assert_eq!((text.len(), room.held()), (escaped, 0));
        }
    }

    #[tokio::test]
    async fn without_room_nothing_is_written_and_all_of_it_is_enough_for_anything() {
        let room = Budget::new(1 << 20);
        let text = "\u{1}".repeat(500_000);
        let other = room.reserve(100).unwrap();
        let share = room_for(&room, text.len()).unwrap();
        let refused = answer(&room, (text.len(), share), || text.clone()).await.unwrap_err();
        assert_eq!((refused.error.code, room.held()), (Code::TooManyRequests, 100));
        drop(other);
        let share = room_for(&room, text.len()).unwrap();
        let sent = answer(&room, (text.len(), share), || text).await.unwrap();
        assert_eq!(room.held(), 1 << 20);
        drop(sent);
        assert_eq!(room.held(), 0);
    }
}
