//! Topics, producers, the cluster, and whether this broker is well.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::api::{self, AlterTopic, BrokerList, CreateTopic, ProducerAnswer, ReadyAnswer, TopicDescription, TopicList};
use crate::broker::ClusterDescription;
use crate::error::Code;
use crate::http::refusal::Refusal;
use crate::http::request::{Params, TopicName, check_json, read_body};
use crate::http::{Shared, Stage};

/// How long a topic that is not known here is asked for at the controller.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(5);

/// `POST /v1/topics`
pub(super) async fn create(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let timeout = Params::read(&parts.uri, &["timeout_ms"])?.timeout(&parts.headers, api::TIMEOUT_MS_DEFAULT)?;
    check_json(&parts.headers)?;
    let received = read_body(&parts.headers, body, &shared.limits, &shared.request_bytes).await?;
    let spec = api::parse::<CreateTopic>(&received.bytes)?.into_spec()?;
    let description = shared.broker()?.create_topic(spec, timeout).await?;
    let location = [(header::LOCATION, format!("/v1/topics/{}", description.name))];
    Ok((StatusCode::CREATED, location, Json(description)).into_response())
}

/// `GET /v1/topics`
pub(super) async fn list(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<TopicList>, Refusal> {
    Params::read(request.uri(), &[])?;
    let broker = shared.broker()?;
    broker.check_known()?;
    Ok(Json(TopicList { topics: broker.topics() }))
}

/// `GET /v1/topics/{t}`
pub(super) async fn describe(
    State(shared): State<Arc<Shared>>,
    TopicName(name): TopicName,
    request: Request,
) -> Result<Json<TopicDescription>, Refusal> {
    Params::read(request.uri(), &[])?;
    let broker = shared.broker()?;
    match broker.topic(&name) {
        // This copy of the catalog may be a moment behind the one that created it.
        Err(error) if error.code == Code::UnknownTopic => {
            broker.catch_up(CATALOG_TIMEOUT).await?;
            Ok(Json(broker.topic(&name)?))
        }
        found => Ok(Json(found?)),
    }
}

/// `PATCH /v1/topics/{t}`
pub(super) async fn alter(
    State(shared): State<Arc<Shared>>,
    TopicName(name): TopicName,
    request: Request,
) -> Result<Json<TopicDescription>, Refusal> {
    let (parts, body) = request.into_parts();
    let timeout = Params::read(&parts.uri, &["timeout_ms"])?.timeout(&parts.headers, api::TIMEOUT_MS_DEFAULT)?;
    check_json(&parts.headers)?;
    let received = read_body(&parts.headers, body, &shared.limits, &shared.request_bytes).await?;
    let change: AlterTopic = api::parse(&received.bytes)?;
    let partitions = change.partitions;
    let config = change.changes()?;
    Ok(Json(shared.broker()?.alter_topic(&name, partitions, config, timeout).await?))
}

/// `DELETE /v1/topics/{t}`
pub(super) async fn delete(
    State(shared): State<Arc<Shared>>,
    TopicName(name): TopicName,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let params = Params::read(request.uri(), &["timeout_ms"])?;
    let timeout = params.timeout(request.headers(), api::TIMEOUT_MS_DEFAULT)?;
    shared.broker()?.delete_topic(&name, timeout).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /v1/producers`. It has no body; whatever was sent is not looked at.
pub(super) async fn create_producer(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Refusal> {
    let params = Params::read(request.uri(), &["timeout_ms"])?;
    let timeout = params.timeout(request.headers(), api::TIMEOUT_MS_DEFAULT)?;
    let (producer_id, producer_epoch) = shared.broker()?.create_producer(timeout).await?;
    Ok((StatusCode::CREATED, Json(ProducerAnswer { producer_id, producer_epoch })).into_response())
}

/// `GET /v1/cluster`
pub(super) async fn cluster(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<ClusterDescription>, Refusal> {
    Params::read(request.uri(), &[])?;
    Ok(Json(shared.broker()?.cluster()))
}

/// `GET /v1/brokers`
pub(super) async fn brokers(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<BrokerList>, Refusal> {
    Params::read(request.uri(), &[])?;
    Ok(Json(BrokerList { brokers: shared.broker()?.cluster().brokers }))
}

/// `GET /healthz`: the process lives and answers. Here, and in the two below, parameters are not looked at: a broker is not
/// to be restarted because its probe says too much.
pub(super) async fn healthz() -> Response {
    Json(json!({"alive": true})).into_response()
}

/// `GET /readyz`
pub(super) async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    match not_ready(&shared) {
        None => Json(ReadyAnswer { ready: true, reason: None }).into_response(),
        Some(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(ReadyAnswer { ready: false, reason: Some(reason) })).into_response()
        }
    }
}

fn not_ready(shared: &Shared) -> Option<String> {
    match shared.stage() {
        Stage::Serving => match shared.broker() {
            Ok(broker) => broker.ready().err(),
            Err(refusal) => Some(refusal.error.message),
        },
        Stage::Stopping | Stage::Closed => Some("stopping".into()),
    }
}

/// `GET /metrics`
pub(super) async fn show_metrics(State(shared): State<Arc<Shared>>) -> Response {
    // Of a broker that recovers, too: it is there, and not ready.
    shared.metrics.door.ready.set(f64::from(u8::from(not_ready(&shared).is_none())));
    if let Ok(broker) = shared.broker() {
        broker.observe();
    }
    let partitions = shared.broker().map(|broker| broker.partition_metrics()).unwrap_or_default();
    let groups = match shared.broker() {
        Ok(broker) => broker.group_metrics().await,
        Err(_) => String::new(),
    };
    let text = shared.metrics.render(shared.request_bytes_in_flight()) + &partitions + &groups;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// Any other path.
pub(super) async fn not_found(request: Request) -> Refusal {
    (Code::NotFound, format!("no such path: {}", request.uri().path())).into()
}

/// A known path, another method.
pub(super) async fn method_not_allowed(request: Request) -> Refusal {
    (Code::MethodNotAllowed, format!("{} is not a method of {}", request.method(), request.uri().path())).into()
}
