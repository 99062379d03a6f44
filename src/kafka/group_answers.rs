//! Room for answers about groups. A short request may be answered with megabytes, and who asks need not read them: as fetches do, such
//! answers hold a share of the room for answers until they are written. Little is told at once, whether there is room or not.

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;

use super::Door;
use super::connection::Client;
use super::dispatch::Handled;
use super::messages::Response;
use super::offsets::side_by_side;
use crate::coordinator::{Larger, Within};

/// An answer of so few bytes waits for no room, and holds none.
pub(super) const SMALL_BYTES: usize = 64 << 10;

/// Asks for what is to be told of each of these, and comes back once all of it has been told within the room that it holds. `ask` is given
/// the most bytes that it may come back with. `besides`: bytes of the answer that are known already.
pub(super) async fn within_room<'q, Q, T>(
    door: &Door,
    asked: &'q [Q],
    besides: usize,
    ask: impl Fn(&'q Q, usize) -> BoxFuture<'q, Within<T>>,
) -> (Vec<T>, Option<OwnedSemaphorePermit>) {
    let mut most = vec![SMALL_BYTES / asked.len().max(1); asked.len()];
    let mut share = reserve(door, besides).await;
    loop {
        let told: Vec<Within<T>> =
            side_by_side((0..asked.len()).collect(), |at| ask(&asked[at], most[at])).collect().await;
        if told.iter().all(Result::is_ok) {
            return (told.into_iter().flatten().collect(), share);
        }
        for (told, most) in told.iter().zip(&mut most) {
            if let Err(Larger(bytes)) = told {
                *most = *bytes;
            }
        }
        // All that it takes at once: who waits for more must hold nothing.
        drop((told, share));
        share = reserve(door, most.iter().fold(besides, |sum, most| sum.saturating_add(*most))).await;
    }
}

/// An answer of about so many bytes, once there is room for it.
pub(super) async fn once_there_is_room(door: &Door, client: &Client, response: Response, bytes: usize) -> Handled {
    client.handle_while_there(async { answered(response, reserve(door, bytes).await) }).await
}

/// An answer, and its share of the room.
pub(super) fn answered(response: Response, share: Option<OwnedSemaphorePermit>) -> Handled {
    match share {
        Some(share) => Handled::Holding(response, share),
        None => response.into(),
    }
}

/// Room for an answer of so many bytes, if they are many, once there is some.
pub(super) async fn reserve(door: &Door, bytes: usize) -> Option<OwnedSemaphorePermit> {
    if bytes <= SMALL_BYTES {
        return None;
    }
    Some(door.answer_bytes.reserve(bytes).await)
}
