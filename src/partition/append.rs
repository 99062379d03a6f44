//! Produce: from a checked batch to the ack level that was asked for (RULES.md O5, O8, O9).
//!
//! It proposes once and never again: a write that may have happened is reported as such, and the producer decides.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use pontoon_raft::error::ProposeError;
use pontoon_raft::log::frame::FRAME_PAYLOAD_BYTES_MAX;
use pontoon_raft::stages::Stages;
use pontoon_raft::types::{Appended, Offset, Outcome};
use tokio::sync::{MutexGuard, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use super::verdict::Verdict;
use super::{Acks, MAJORITY_DEAD, Partition, Produced, ReplicatedLog, proposal};
use crate::error::{Code, Error, Result};
use crate::record_batch::{BatchHeader, RecordBatch};

/// How many bytes of `acks=none` batches a partition takes on before the log has them; the next producer waits.
pub(super) const UNACKNOWLEDGED_BYTES_MAX: usize = 8 << 20;

/// Room for `acks=none` batches that have been answered, and that no log has yet. Shared by its clones.
#[derive(Clone, Debug)]
pub struct UnacknowledgedRoom {
    bytes: u32,
    room: Arc<Semaphore>,
}

impl UnacknowledgedRoom {
    /// For so many bytes.
    pub fn new(bytes: usize) -> Self {
        let bytes = u32::try_from(bytes.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        Self { bytes, room: Arc::new(Semaphore::new(bytes as usize)) }
    }

    /// Takes a share once there is room, in the order of the calls. What is larger than all of it has it for itself.
    async fn take(&self, bytes: usize) -> OwnedSemaphorePermit {
        let share = u32::try_from(bytes).map_or(self.bytes, |bytes| bytes.min(self.bytes));
        Arc::clone(&self.room).acquire_many_owned(share).await.expect("it is never closed")
    }

    /// How many bytes more it has room for.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.room.available_permits()
    }
}

impl<L: ReplicatedLog> Partition<L> {
    /// Appends one batch, atomically. Producer id, epoch and sequence stand in it. `if_match`: only if that is the log end,
    /// decided at append (RULES.md O4).
    ///
    /// On return the batch is as durable as `acks` says, or the topic's floor if that is more; with [`Acks::None`] the offsets in the answer mean nothing (0).
    ///
    /// Errors: `NOT_LEADER` (nothing written), `OFFSET_MISMATCH`, `OUT_OF_ORDER_SEQUENCE`, `PRODUCER_FENCED`,
    /// `UNKNOWN_PRODUCER`, `STORAGE_FULL`, `NOT_ENOUGH_REPLICAS…`, `OUTCOME_UNKNOWN` at the timeout.
    pub async fn produce(
        &self,
        batch: RecordBatch,
        acks: Acks,
        if_match: Option<Offset>,
        timeout: Duration,
    ) -> Result<Produced> {
        self.produce_staged(batch, acks, if_match, timeout, &Stages::start()).await
    }

    /// [`Self::produce`], noting in `stages` when the batch passes each stage here.
    pub async fn produce_staged(
        &self,
        batch: RecordBatch,
        acks: Acks,
        if_match: Option<Offset>,
        timeout: Duration,
        stages: &Arc<Stages>,
    ) -> Result<Produced> {
        let began = Instant::now();
        let (records, bytes) = (batch.header().record_count.max(0) as u64, batch.bytes().len());
        let produced = self.produce_once(batch, acks, if_match, timeout, stages).await;
        match &produced {
            Ok(_) => self.options.instruments.produced(records, bytes, began.elapsed(), stages.answered()),
            Err(error) => self.options.instruments.not_produced(error.code),
        }
        produced
    }

    async fn produce_once(
        &self,
        batch: RecordBatch,
        acks: Acks,
        if_match: Option<Offset>,
        timeout: Duration,
        stages: &Arc<Stages>,
    ) -> Result<Produced> {
        if !self.storage_has_room() {
            return Err(self.error(Code::StorageFull, "this broker's disk is full; reads go on"));
        }
        if let Some(why) = self.log.beyond_repair() {
            return Err(self.error(Code::CorruptLog, why));
        }
        // Appended it would wait for brokers to return, its fate unknown; so nothing has happened. And there may be another leader by
        // now, where this broker's peers are: whoever asks should look for it.
        if !self.log.may_have_majority() {
            return Err(self.error(Code::NoLeader, MAJORITY_DEAD));
        }
        let (bytes, max) = (batch.bytes().len(), FRAME_PAYLOAD_BYTES_MAX as usize);
        if bytes > max {
            // Longer than a frame that can be read back: whatever let it come so far, it must not be acknowledged.
            return Err(
                self.error(Code::RequestTooLarge, format_args!("a batch of {bytes} bytes; the log takes {max}"))
            );
        }
        let deadline = Instant::now() + timeout;
        let stamped = self.options.settings.log_append_time;
        let batch = if stamped { batch.with_append_time((self.options.now)()) } else { batch };
        let header = *batch.header();
        let payload = proposal::wrap(batch, if_match);
        let acks = acks.at_least(self.options.settings.acks_floor);
        if acks == Acks::Every {
            self.require_every_voter()?;
        }
        let place = self.place(deadline).await?;
        match acks {
            Acks::None => self.produce_unacknowledged(place, payload, deadline).await,
            Acks::Leader => {
                let proposal = begun(place, self.propose_flushed(payload, stages));
                self.produce_acknowledged(proposal, &header, if_match, deadline).await
            }
            Acks::All => {
                let proposal = begun(place, self.log.propose_staged(payload, None, stages.clone()));
                self.produce_acknowledged(proposal, &header, if_match, deadline).await
            }
            Acks::Every => {
                let proposal = begun(place, self.log.propose_staged(payload, None, stages.clone()));
                self.produce_every(proposal, &header, if_match, deadline).await
            }
        }
        .map(|(produced, _)| produced)
    }

    /// A batch's place before all that come later, however long it waits for it: given up once its proposal has begun.
    async fn place(&self, deadline: Instant) -> Result<MutexGuard<'_, ()>> {
        if let Ok(place) = self.proposing.try_lock() {
            return Ok(place);
        }
        timeout_at(deadline, self.proposing.lock()).await.map_err(|_| self.too_many_unacknowledged())
    }

    fn too_many_unacknowledged(&self) -> Error {
        self.error(Code::TooManyRequests, "too many unacknowledged records are waiting")
    }

    /// Waits for a proposal's answer, and says what it means. With it, where the entry that was answered stands.
    async fn produce_acknowledged(
        &self,
        proposal: impl Future<Output = Result<Appended, ProposeError>>,
        header: &BatchHeader,
        if_match: Option<Offset>,
        deadline: Instant,
    ) -> Result<(Produced, Appended)> {
        let appended = timeout_at(deadline, proposal)
            .await
            .map_err(|_| self.error(Code::OutcomeUnknown, "no answer within the timeout"))?
            .map_err(|error| self.propose_error(error))?;
        Ok((self.answer(&appended, header, if_match)?, appended))
    }

    /// `acks=leader`: the leader's own flush is enough for records. A verdict waits for its commit (RULES.md O5), which for
    /// a duplicate covers the original's flush: a group's entries become durable in order (J5).
    async fn propose_flushed(&self, payload: Bytes, stages: &Arc<Stages>) -> Result<Appended, ProposeError> {
        let (sender, flushed) = oneshot::channel();
        let mut committed = pin!(self.log.propose_staged(payload, Some(sender), stages.clone()));
        tokio::select! {
            biased;
            flushed = flushed => match flushed {
                Ok(appended) if matches!(appended.outcome, Outcome::Records { .. }) => Ok(appended),
                // A verdict, or the sender was dropped: then the proposal itself knows why.
                _ => committed.await,
            },
            appended = &mut committed => appended,
        }
    }

    /// `acks=every`, the part before the proposal: nothing is written while a voter is away.
    fn require_every_voter(&self) -> Result<()> {
        let status = self.log.status();
        // Who does not lead learns that from the proposal, and knows no better.
        let voters = status.members.values().filter(|member| status.leading && member.voter);
        let away: Vec<_> = voters
            .filter(|member| !(self.options.broker_alive)(member.broker))
            .map(|member| member.broker.to_string())
            .collect();
        if away.is_empty() {
            return Ok(());
        }
        let away = away.join(", ");
        Err(self.error(Code::NotEnoughReplicas, format_args!("acks=every needs every replica; away: broker {away}")))
    }

    /// `acks=every`, the rest: committed, then durable on every voter and here. For a duplicate the verdict's own place is
    /// awaited: it stands behind the original, so whoever has it has the original.
    async fn produce_every(
        &self,
        proposal: impl Future<Output = Result<Appended, ProposeError>>,
        header: &BatchHeader,
        if_match: Option<Offset>,
        deadline: Instant,
    ) -> Result<(Produced, Appended)> {
        let (produced, at) = self.produce_acknowledged(proposal, header, if_match, deadline).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        let every = timeout_at(deadline, self.log.await_every(at.index, at.term, left)).await;
        match every {
            Ok(Ok(())) => Ok((produced, at)),
            Ok(Err(error)) => Err(self.after_append(&produced, error)),
            Err(_) => Err(self.after_append(&produced, "the timeout passed")),
        }
    }

    fn after_append(&self, produced: &Produced, why: impl std::fmt::Display) -> Error {
        let Produced { base_offset, last_offset, .. } = produced;
        self.error(
            Code::NotEnoughReplicasAfterAppend,
            format_args!("offsets {base_offset} to {last_offset} are not on every replica yet: {why}"),
        )
    }

    /// `acks=none`: the proposal is on its way in the order of the calls, or it was refused at once.
    async fn produce_unacknowledged(
        &self,
        place: MutexGuard<'_, ()>,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<(Produced, Appended)> {
        let bytes = payload.len();
        // Its partition's first: who waits there for one that is stuck takes no room from the others.
        let room = async { (self.unacknowledged.take(bytes).await, self.options.unacknowledged.take(bytes).await) };
        let room = timeout_at(deadline, room).await.map_err(|_| self.too_many_unacknowledged())?;
        let log = self.log.clone();
        let propose = async move {
            let _room = room;
            log.propose(payload, None).await
        };
        // Polled here once, so that it stands in the group's queue before the next call's; not even tokio's budget, used up by
        // the calls before, may put that off.
        let mut proposal = Box::pin(tokio::task::unconstrained(propose));
        let first = futures_util::poll!(&mut proposal);
        drop(place);
        match first {
            Poll::Ready(Err(error)) => return Err(self.propose_error(error)),
            Poll::Ready(Ok(_)) => {}
            Poll::Pending => {
                let name = self.options.name.clone();
                tokio::spawn(async move {
                    if let Err(error) = proposal.await {
                        tracing::debug!(partition = %name, %error, "an unacknowledged batch was not written");
                    }
                });
            }
        }
        let (base_offset, last_offset) = (Offset(0), Offset(0));
        let produced = Produced { base_offset, last_offset, leader_epoch: 0, duplicate: false, append_time: None };
        Ok((produced, Appended { index: 0, term: 0, outcome: Outcome::Internal }))
    }

    /// What became of the proposal, in the producer's words.
    fn answer(&self, appended: &Appended, header: &BatchHeader, if_match: Option<Offset>) -> Result<Produced> {
        match &appended.outcome {
            Outcome::Records { base_offset, span, .. } => Ok(Produced {
                base_offset: *base_offset,
                last_offset: base_offset.plus(u64::from(span.saturating_sub(1))),
                leader_epoch: appended.term,
                duplicate: false,
                append_time: header.log_append_time().then_some(header.max_timestamp),
            }),
            Outcome::Void { verdict } => match Verdict::decode(verdict) {
                Some(verdict) => self.answer_verdict(verdict, header, if_match),
                None => Err(self.error(Code::Internal, format_args!("unreadable verdict {verdict:?}"))),
            },
            Outcome::Internal => Err(self
                .error(Code::Internal, "a batch was answered as Raft's own entry")
                .with_outcome(crate::error::WriteOutcome::Unknown)),
        }
    }

    fn answer_verdict(&self, verdict: Verdict, header: &BatchHeader, if_match: Option<Offset>) -> Result<Produced> {
        let BatchHeader { producer_id, producer_epoch, base_sequence, .. } = header;
        Err(match verdict {
            Verdict::Duplicate { term, base_offset, last_offset, .. } => {
                return Ok(Produced {
                    base_offset: Offset(base_offset),
                    last_offset: Offset(last_offset),
                    leader_epoch: term,
                    duplicate: true,
                    // Not this one's: that stands in the log only.
                    append_time: None,
                });
            }
            Verdict::OutOfOrder { expected } => self.error(
                Code::OutOfOrderSequence,
                format_args!(
                    "producer {producer_id} epoch {producer_epoch} sent sequence {base_sequence}; {expected} is next"
                ),
            ),
            Verdict::Fenced { epoch } => self.error(
                Code::ProducerFenced,
                format_args!("producer {producer_id} epoch {producer_epoch} was fenced by epoch {epoch}"),
            ),
            Verdict::UnknownProducer => self.error(
                Code::UnknownProducer,
                format_args!(
                    "producer {producer_id} epoch {producer_epoch} has no state here that sequence {base_sequence} could follow"
                ),
            ),
            Verdict::OffsetMismatch { next_offset } => self.error(
                Code::OffsetMismatch,
                format_args!("the log end is {next_offset}, not {}", if_match.unwrap_or_default()),
            ),
            Verdict::Malformed | Verdict::Retention { .. } | Verdict::ExpireProducers { .. } => {
                self.error(Code::Internal, "the log did not understand the proposal")
            }
        })
    }
}

/// A proposal that gives its place up once it was polled: from then on it stands in the group's queue.
async fn begun<T>(place: MutexGuard<'_, ()>, proposal: impl Future<Output = T>) -> T {
    let mut proposal = pin!(proposal);
    let first = futures_util::poll!(&mut proposal);
    drop(place);
    match first {
        Poll::Ready(answer) => answer,
        Poll::Pending => proposal.await,
    }
}

#[cfg(test)]
mod tests;
