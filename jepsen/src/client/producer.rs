//! Idempotent producers, whichever protocol they speak: who they are, the sequences of what they send, and how long they send it again.
//!
//! A producer asks for an id first. A send of which nobody knows what became of it is repeated under its sequence number, at any broker,
//! until that is known or time is up; one that certainly changed nothing leaves its sequence free. It knows no protocol.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use super::Sent;
use super::retries::Retries;
use crate::history::{Key, Offset, Value};

/// How long a send is repeated.
const RETRY_FOR: Duration = Duration::from_secs(12);
/// Between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Who writes a batch, and its first record's sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sequence {
    pub(super) producer_id: i64,
    pub(super) epoch: i16,
    pub(super) first: i32,
}

/// An idempotent producer: nobody, until it has asked for an id, and when it is lost.
#[derive(Debug, Default)]
pub(super) struct Producer {
    identity: Option<Identity>,
}

/// Who it is, and what it remembers under that id.
#[derive(Debug)]
struct Identity {
    id: i64,
    epoch: i16,
    /// The sequence of each key's next record.
    next: BTreeMap<Key, i32>,
}

/// What is sent at once.
pub(super) struct Batch<'a> {
    pub(super) key: Key,
    pub(super) values: &'a [Value],
    /// Only if the log ends there.
    pub(super) at: Option<Offset>,
}

/// A client that sends, as an idempotent producer or without being one.
pub(super) trait Produces: Send {
    /// `None`: it is none.
    fn producer(&mut self) -> Option<&mut Producer>;

    /// Counts for all clients of its kind.
    fn retries(&self) -> &Retries;

    /// Hears of what no broker may do.
    fn accuse(&self, what: String);

    /// Asks for a producer's id and epoch. That appends nothing, whatever happens.
    fn ask_for_id(&mut self) -> impl Future<Output = Result<(i64, i16), String>> + Send;

    /// Sends a batch once. Calls [`lose`] if it is told that its producer is lost.
    fn attempt(&mut self, batch: &Batch<'_>, by: Option<Sequence>) -> impl Future<Output = Sent> + Send;

    /// Asks another broker from now on.
    fn look_elsewhere(&mut self);
}

impl Producer {
    /// Has sent nothing yet under this id.
    pub(super) fn new(id: i64, epoch: i16) -> Self {
        Self { identity: Some(Identity { id, epoch, next: BTreeMap::new() }) }
    }

    /// Of the next record to a key; `None`: it has no id.
    fn sequence(&self, key: Key) -> Option<Sequence> {
        let Identity { id, epoch, next } = self.identity.as_ref()?;
        Some(Sequence { producer_id: *id, epoch: *epoch, first: next.get(&key).copied().unwrap_or(0) })
    }

    /// So many records were acknowledged from this sequence on. One that was lost meanwhile does not remember it: it begins anew.
    fn acknowledged(&mut self, key: Key, first: i32, count: usize) {
        if let Some(identity) = &mut self.identity {
            identity.next.insert(key, first.wrapping_add(count as i32) & i32::MAX);
        }
    }
}

/// Sends a batch; by an idempotent producer until its fate is known, or time is up.
pub(super) async fn send<P: Produces>(client: &mut P, batch: &Batch<'_>) -> Sent {
    let by = match identify(client, batch.key).await {
        Ok(None) => return client.attempt(batch, None).await,
        Ok(Some(by)) => by,
        Err(why) => return Sent::Failed(format!("no producer id: {why}")),
    };
    let deadline = Instant::now() + RETRY_FOR;
    let mut unknown: Option<String> = None;
    loop {
        match (client.attempt(batch, Some(by)).await, &unknown) {
            (Sent::At(offset), before) => {
                client.retries().acknowledged(before.is_some());
                if let Some(producer) = client.producer() {
                    producer.acknowledged(batch.key, by.first, batch.values.len());
                }
                return Sent::At(offset);
            }
            // Nothing happened yet: the sequence is still free.
            (Sent::Failed(why), None) => return Sent::Failed(why),
            (Sent::Failed(why), Some(before)) if Instant::now() >= deadline => {
                return Sent::Unknown(format!("{before}; last: {why}"));
            }
            (Sent::Unknown(why), _) if Instant::now() >= deadline => return Sent::Unknown(why),
            (Sent::Unknown(why), _) => unknown = Some(why),
            (Sent::Failed(_), Some(_)) => {}
        }
        client.look_elsewhere();
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Asks for an id, if there must be one and is none.
async fn identify<P: Produces>(client: &mut P, key: Key) -> Result<Option<Sequence>, String> {
    let Some(producer) = client.producer() else { return Ok(None) };
    if let Some(by) = producer.sequence(key) {
        return Ok(Some(by));
    }
    let (id, epoch) = client.ask_for_id().await?;
    let Some(producer) = client.producer() else { return Ok(None) };
    *producer = Producer::new(id, epoch);
    Ok(producer.sequence(key))
}

/// A producer that did all as it should and is told that it is lost accuses, once, and begins anew under another id.
pub(super) fn lose<P: Produces>(client: &mut P, key: Key, told: &str) {
    let Some(Identity { id, next, .. }) = client.producer().and_then(|producer| producer.identity.take()) else {
        return;
    };
    let next = next.get(&key).copied().unwrap_or(0);
    client.accuse(format!("producer {id}, whose next sequence of key {} is {next}, is told {told}", key.0));
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::client::retries::Counted;

    /// What becomes of an attempt.
    enum Fate {
        /// It was appended.
        Appended,
        /// Nothing was.
        Refused,
        /// Nobody knows.
        Unknown,
        /// Nothing was, and the producer is said to be lost.
        Lost,
    }

    /// Gives ids from 1 on, and tells of attempts what it was told to.
    #[derive(Default)]
    struct Script {
        producer: Option<Producer>,
        ids: i64,
        fates: VecDeque<Fate>,
        /// The sequences of all attempts, by their producers.
        sequences: Vec<(i64, i32)>,
        retries: Retries,
        accusations: parking_lot::Mutex<Vec<String>>,
    }

    impl Produces for Script {
        fn producer(&mut self) -> Option<&mut Producer> {
            self.producer.as_mut()
        }

        fn retries(&self) -> &Retries {
            &self.retries
        }

        fn accuse(&self, what: String) {
            self.accusations.lock().push(what);
        }

        async fn ask_for_id(&mut self) -> Result<(i64, i16), String> {
            self.ids += 1;
            Ok((self.ids, 0))
        }

        async fn attempt(&mut self, batch: &Batch<'_>, by: Option<Sequence>) -> Sent {
            self.sequences.extend(by.map(|by| (by.producer_id, by.first)));
            match self.fates.pop_front() {
                Some(Fate::Appended) => Sent::At(Offset(7)),
                Some(Fate::Unknown) => Sent::Unknown("no answer".to_owned()),
                Some(Fate::Lost) => {
                    lose(self, batch.key, "UNKNOWN_PRODUCER");
                    Sent::Failed("UNKNOWN_PRODUCER".to_owned())
                }
                Some(Fate::Refused) | None => Sent::Failed("refused".to_owned()),
            }
        }

        fn look_elsewhere(&mut self) {}
    }

    impl Script {
        fn of(fates: impl IntoIterator<Item = Fate>) -> Self {
            Self { producer: Some(Producer::default()), fates: fates.into_iter().collect(), ..Self::default() }
        }

        async fn send(&mut self, count: i64) -> Sent {
            let values: Vec<Value> = (0..count).map(Value).collect();
            send(self, &Batch { key: Key(3), values: &values, at: None }).await
        }

        fn told(&self) -> Vec<String> {
            self.accusations.lock().clone()
        }
    }

    #[tokio::test]
    async fn sequences_follow_what_was_acknowledged_and_a_refusal_leaves_its_own_free() {
        let mut script =
            Script::of([Fate::Appended, Fate::Refused, Fate::Unknown, Fate::Refused, Fate::Appended, Fate::Appended]);
        for (count, appended) in [(2, true), (1, false), (1, true), (1, true)] {
            assert_eq!(matches!(script.send(count).await, Sent::At(Offset(7))), appended);
        }
        assert_eq!(script.sequences, [(1, 0), (1, 2), (1, 2), (1, 2), (1, 2), (1, 3)]);
        assert_eq!(script.retries.counted(), Counted { acknowledged: 3, again: 1, met: 0 });
        assert_eq!(script.told(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn who_is_no_producer_tries_once_and_has_no_sequence() {
        let mut script = Script { fates: VecDeque::from([Fate::Unknown, Fate::Appended]), ..Script::default() };
        assert_eq!(script.send(1).await, Sent::Unknown("no answer".to_owned()));
        assert!(script.sequences.is_empty() && script.fates.len() == 1);
    }

    #[tokio::test]
    async fn a_late_success_of_a_producer_that_was_lost_meanwhile_is_none_of_the_next_one() {
        let mut script =
            Script::of([Fate::Appended, Fate::Unknown, Fate::Lost, Fate::Lost, Fate::Appended, Fate::Appended]);
        for _ in 0..3 {
            assert_eq!(script.send(1).await, Sent::At(Offset(7)));
        }
        assert_eq!(script.sequences, [(1, 0), (1, 1), (1, 1), (1, 1), (1, 1), (2, 0)], "the next one begins anew");
        assert_eq!(script.told(), ["producer 1, whose next sequence of key 3 is 1, is told UNKNOWN_PRODUCER"], "once");
    }

    #[test]
    fn sequences_wrap_to_zero() {
        let mut producer = Producer::new(1, 0);
        producer.acknowledged(Key(0), i32::MAX, 1);
        assert_eq!(producer.sequence(Key(0)).map(|by| by.first), Some(0));
    }
}
