//! Asking the controller, wherever it is, until it answers; and telling it what became of replicas.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pontoon_raft::transport::CallError;
use pontoon_raft::types::{BrokerId, GroupId, ReplicaId};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::peer::{self, PeerAnswer, PeerRequest};
use super::shared::Shared;
use crate::catalog::command::ReplicaReport;
use crate::controller::requests::{ANSWER_WITHIN, ControlAnswer, ControlError, ControlRequest};
use crate::error::Code;

/// Between two attempts.
const RETRY_WAIT: Duration = Duration::from_millis(50);
/// Most items in one report.
const REPORT_ITEMS_MAX: usize = 10_000;

impl Shared {
    /// Asks the controller, again and again until it answers or `limit` has passed. A request may so be carried out
    /// although this ends in an error, which is [`ControlError::Unknown`] then; every request may be repeated
    /// ([`crate::controller::requests`]).
    pub(super) async fn control(
        &self,
        request: ControlRequest,
        limit: Duration,
    ) -> Result<ControlAnswer, ControlError> {
        self.control_at(None, request, limit).await
    }

    /// [`Self::control`], beginning with a broker that is said to be the controller.
    pub(super) async fn control_at(
        &self,
        mut hint: Option<(BrokerId, String)>,
        request: ControlRequest,
        limit: Duration,
    ) -> Result<ControlAnswer, ControlError> {
        let deadline = Instant::now() + limit;
        let mut outcome = Outcome::new(request.changes_the_catalog());
        let request = PeerRequest::Control(request);
        loop {
            if let Some((broker, address)) = hint.take().or_else(|| self.remembered_controller()) {
                match timeout_at(deadline, self.control_once(&request, broker, &address)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(refused @ ControlError::Refused { .. })) => return Err(outcome.refused(refused)),
                    Ok(Err(ControlError::NotController { controller })) => {
                        hint = controller.filter(|known| known.0 != self.broker);
                    }
                    Ok(Err(copied @ ControlError::CopiedDirectory(_))) => return Err(copied),
                    Ok(Err(ControlError::Unknown(why))) => outcome.note(why),
                    // It may have been sent, or proposed: dropping it takes nothing back.
                    Err(_) => outcome.note(format!("broker {broker} did not answer in time")),
                }
            }
            if timeout_at(deadline, sleep(RETRY_WAIT)).await.is_err() {
                return Err(outcome.at_the_deadline());
            }
        }
    }

    async fn control_once(
        &self,
        request: &PeerRequest,
        broker: BrokerId,
        address: &str,
    ) -> Result<ControlAnswer, ControlError> {
        if broker == self.broker {
            let PeerRequest::Control(request) = request else {
                return Err(ControlError::Unknown("not a request for the controller".to_owned()));
            };
            return self.controller.handle(request.clone()).await;
        }
        match peer::call_address(self.transport(), address, request, ANSWER_WITHIN).await {
            Ok(PeerAnswer::Control(answer)) => answer,
            Ok(_) => Err(ControlError::Unknown(format!("broker {broker} answered something else"))),
            Err(CallError::NoAnswer(_, why)) => Err(ControlError::Unknown(why)),
            Err(CallError::Unreachable(..) | CallError::Refused(..)) => {
                Err(ControlError::NotController { controller: None })
            }
        }
    }

    /// Waits until the catalog's copy here reflects this log index. `false` at the deadline.
    pub(super) async fn await_catalog(&self, index: u64, deadline: Instant) -> bool {
        let mut state = self.catalog.watch();
        let reached = state.wait_for(|state| state.applied.is_some_and(|applied| applied.1 >= index));
        matches!(timeout_at(deadline, reached).await, Ok(Ok(_)))
    }
}

/// What the attempts so far may have done: once something, a later "not me" does not undo that.
struct Outcome {
    /// Why it is not known, if the request may have been carried out.
    unknown: Option<String>,
    /// Without that there is nothing to be carried out.
    changes: bool,
}

impl Outcome {
    fn new(changes: bool) -> Self {
        Self { unknown: None, changes }
    }

    fn note(&mut self, why: String) {
        self.unknown = self.changes.then_some(why);
    }

    /// What to say when time is up.
    fn at_the_deadline(self) -> ControlError {
        self.unknown.map_or(ControlError::NotController { controller: None }, ControlError::Unknown)
    }

    /// A refusal of the last attempt. What the catalog's log has refused stands behind whatever an earlier attempt left in it; what
    /// was refused before it was proposed says nothing of that.
    fn refused(self, refusal: ControlError) -> ControlError {
        let decided = [Code::TopicExists, Code::TopicNameCollision, Code::UnknownTopic];
        match (self.unknown, refusal) {
            (Some(why), ControlError::Refused { code, message }) if decided.iter().all(|by| by.as_str() != code) => {
                ControlError::Unknown(format!("{why}; then: {message}"))
            }
            (_, refusal) => refusal,
        }
    }
}

/// What the controller has not been told yet. A thing is in it once, however often it happens.
#[derive(Default)]
pub(super) struct Reports {
    pending: Mutex<Pending>,
    wake: Notify,
}

#[derive(Default)]
struct Pending {
    created: BTreeSet<(GroupId, ReplicaId)>,
    lost: BTreeMap<(GroupId, ReplicaId), String>,
    removed: BTreeSet<(GroupId, ReplicaId)>,
    initialised: BTreeSet<(GroupId, ReplicaId)>,
}

impl Reports {
    pub(super) fn created(&self, group: GroupId, replica: ReplicaId) {
        self.add(|pending| {
            pending.created.insert((group, replica));
        });
    }

    pub(super) fn lost(&self, group: GroupId, replica: ReplicaId, why: String) {
        self.add(|pending| {
            pending.lost.insert((group, replica), shorten(why));
        });
    }

    pub(super) fn removed(&self, group: GroupId, replica: ReplicaId) {
        self.add(|pending| {
            pending.removed.insert((group, replica));
        });
    }

    pub(super) fn initialised(&self, group: GroupId, replica: ReplicaId) {
        self.add(|pending| {
            pending.initialised.insert((group, replica));
        });
    }

    fn add(&self, add: impl FnOnce(&mut Pending)) {
        add(&mut self.pending.lock());
        self.wake.notify_one();
    }

    /// Takes out up to [`REPORT_ITEMS_MAX`] of each kind.
    fn take(&self) -> ReplicaReport {
        fn some<T: Ord>(set: &mut BTreeSet<T>) -> Vec<T> {
            let mut taken = Vec::new();
            while let Some(item) = (taken.len() < REPORT_ITEMS_MAX).then(|| set.pop_first()).flatten() {
                taken.push(item);
            }
            taken
        }
        let mut pending = self.pending.lock();
        let mut lost = Vec::new();
        while let Some(((group, replica), why)) =
            (lost.len() < REPORT_ITEMS_MAX).then(|| pending.lost.pop_first()).flatten()
        {
            lost.push((group, replica, why));
        }
        ReplicaReport {
            created: some(&mut pending.created),
            lost,
            removed: some(&mut pending.removed),
            initialised: some(&mut pending.initialised),
        }
    }

    /// Puts back what could not be told.
    fn put_back(&self, report: ReplicaReport) {
        let mut pending = self.pending.lock();
        pending.created.extend(report.created);
        pending.lost.extend(report.lost.into_iter().map(|(group, replica, why)| ((group, replica), why)));
        pending.removed.extend(report.removed);
        pending.initialised.extend(report.initialised);
    }
}

/// A reason of a size that a command may have.
fn shorten(mut why: String) -> String {
    let mut end = why.len().min(200);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    why.truncate(end);
    why
}

/// Tells the controller what there is to tell, until `stop` says so.
pub(super) async fn report(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    loop {
        let report = shared.reports.take();
        let tell = async {
            if report.is_empty() {
                shared.reports.wake.notified().await;
                return;
            }
            let told = shared.control(ControlRequest::Report(report.clone()), ANSWER_WITHIN).await;
            if let Err(error) = told {
                tracing::debug!(%error, "the controller has not been told what became of replicas");
                shared.reports.put_back(report);
                sleep(RETRY_WAIT).await;
            }
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tell => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_told_is_told_again_once() {
        let reports = Reports::default();
        for _ in 0..3 {
            reports.created(GroupId(1), ReplicaId(1));
            reports.lost(GroupId(2), ReplicaId(2), "x".repeat(500));
        }
        let taken = reports.take();
        assert_eq!((taken.created.len(), taken.lost.len(), taken.lost[0].2.len()), (1, 1, 200));
        assert!(reports.take().is_empty());
        reports.created(GroupId(1), ReplicaId(1));
        reports.put_back(taken.clone());
        assert_eq!(reports.take(), taken);
    }

    #[test]
    fn what_may_have_been_done_is_never_called_undone() {
        let refused = |code| ControlError::refused(code, "why");
        let tried = |changes| {
            let mut outcome = Outcome::new(changes);
            outcome.note("no answer".to_owned());
            outcome
        };
        let none = ControlError::NotController { controller: None };
        assert_eq!(Outcome::new(true).at_the_deadline(), none, "nobody was asked");
        assert_eq!(tried(false).at_the_deadline(), none, "a question changes nothing");
        assert_eq!(tried(true).at_the_deadline(), ControlError::Unknown("no answer".to_owned()));
        assert_eq!(tried(true).refused(refused(Code::TopicExists)), refused(Code::TopicExists));
        assert!(matches!(tried(true).refused(refused(Code::NotEnoughReplicas)), ControlError::Unknown(_)));
        assert_eq!(Outcome::new(true).refused(refused(Code::NotEnoughReplicas)), refused(Code::NotEnoughReplicas));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        assert_eq!(shorten("ö".repeat(150)).len(), 200);
        assert_eq!(shorten("ö".repeat(99) + "aöö").len(), 199);
    }
}
