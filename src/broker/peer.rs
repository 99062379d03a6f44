//! What brokers say to each other beside Raft: the calls of [`pontoon_raft::transport::PeerService`], in
//! [`pontoon_raft::codec`].
//!
//! This room knows who answers what; what an answer means is the business of `bootstrap`, `summary` and the controller.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use pontoon_raft::codec;
use pontoon_raft::transport::{CallError, Caller, PeerService, Transport};
use pontoon_raft::types::{BrokerId, ClusterId, DirectoryId};
use serde::{Deserialize, Serialize};

use super::shared::Shared;
use super::summary::Summary;
use crate::controller::requests::{ControlAnswer, ControlError, ControlRequest};

/// A broker introduces itself and asks who is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// Its number.
    pub(super) broker: BrokerId,
    /// Its data directory.
    pub(super) directory: DirectoryId,
    /// Its cluster, if it is part of one.
    pub(super) cluster: Option<ClusterId>,
    /// Where brokers reach it.
    pub(super) peer_address: String,
    /// The brokers its configuration calls the initial ones.
    pub(super) bootstrap: Vec<BrokerId>,
    /// Who leads the catalog and where, as far as it knows.
    pub(super) controller: Option<(BrokerId, String)>,
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum PeerRequest {
    /// Answered by the peer's own [`Hello`].
    Hello(Hello),
    /// For the controller.
    Control(ControlRequest),
    /// What the sender leads.
    Summary(Summary),
}

/// Its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum PeerAnswer {
    /// To a [`PeerRequest::Hello`].
    Hello(Hello),
    /// To a [`PeerRequest::Control`].
    Control(Result<ControlAnswer, ControlError>),
    /// To a [`PeerRequest::Summary`].
    Taken,
}

/// Calls the peer at an address, whoever it is.
pub(super) async fn call_address(
    transport: &Transport,
    address: &str,
    request: &PeerRequest,
    timeout: Duration,
) -> Result<PeerAnswer, CallError> {
    call_process(transport, address, request, timeout).await.map(|(_, answer)| answer)
}

/// Calls the peer at an address, whoever it is: which process ([`Transport::incarnation`]), and its answer.
pub(super) async fn call_process(
    transport: &Transport,
    address: &str,
    request: &PeerRequest,
    timeout: Duration,
) -> Result<(u64, PeerAnswer), CallError> {
    let body = codec::encode(request).into();
    // The transport's own limit covers the answer; this one covers connecting, too.
    let call = tokio::time::timeout(timeout, transport.call_address(address, body, timeout));
    let nobody = |why: String| CallError::NoAnswer(BrokerId(0), why);
    let (process, answer) = call.await.map_err(|_| nobody(format!("{address}: no answer within {timeout:?}")))??;
    let answer = codec::decode(&answer).map_err(|error| nobody(format!("{address}: {error}")))?;
    Ok((process, answer))
}

/// Calls a peer.
pub(super) async fn call(
    transport: &Transport,
    to: BrokerId,
    request: &PeerRequest,
    timeout: Duration,
) -> Result<PeerAnswer, CallError> {
    let answer = transport.call(to, codec::encode(request).into(), timeout).await?;
    codec::decode(&answer).map_err(|error| CallError::NoAnswer(to, error.to_string()))
}

/// Answers the calls of other brokers once the broker is there to answer them.
#[derive(Default)]
pub(super) struct Peers {
    shared: OnceLock<Weak<Shared>>,
}

impl Peers {
    /// From now on calls are answered.
    pub(super) fn open(&self, shared: &Arc<Shared>) {
        let _ = self.shared.set(Arc::downgrade(shared));
    }
}

impl PeerService for Peers {
    fn call(&self, from: Caller, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        let shared = self.shared.get().and_then(Weak::upgrade);
        Box::pin(async move {
            let shared = shared.ok_or("the broker is starting or stopping")?;
            let request = codec::decode(&body).map_err(|error| error.to_string())?;
            let answer = match request {
                PeerRequest::Hello(hello) => {
                    shared.take_hello(from, &hello);
                    PeerAnswer::Hello(shared.hello())
                }
                PeerRequest::Control(request) => PeerAnswer::Control(shared.controller.handle(request).await),
                PeerRequest::Summary(summary) => {
                    shared.routing.take_summary(from.broker, summary);
                    PeerAnswer::Taken
                }
            };
            Ok(codec::encode(&answer).into())
        })
    }
}
